/* Panels of quant.h as the blocks of GGUF files that hold the same bits in other places. */
#include <string.h>

#include "backend/quant.h"
#include "format/gguf_blocks.h"

int gguf_type_of(enum dtype t)
{
	switch (t) {
	case DT_F32: return GGUF_F32;
	case DT_F16: return GGUF_F16;
	case DT_BF16: return GGUF_BF16;
	case DT_Q8: return GGUF_Q8_0;
	case DT_Q4: return GGUF_Q4_0;
	case DT_Q4A: return GGUF_Q4_1;
	case DT_MXFP4: return GGUF_MXFP4;
	default: return -1;
	}
}

/* Block b of row r: halves d and, of Q4A, m; then 32 bytes, or 16 of which each has values k and
 * k + 16. */
static void put_block(uint8_t *dst, const uint8_t *panel, enum dtype t, int r, int b, int cols)
{
	const uint8_t *v = panel + quant_scale_bytes(t, cols) + (size_t)b * quant_block_bytes(t)
	    + r * 4;
	const uint8_t *scale = panel + 2 * ((size_t)b * QUANT_PANEL * (t == DT_Q4A ? 2 : 1) +
	    (size_t)r);
	int n = t == DT_Q8 ? QUANT_BLOCK : QUANT_BLOCK / 2;

	memcpy(dst, scale, 2);
	dst += 2;
	if (t == DT_Q4A) {
		memcpy(dst, scale + 2 * QUANT_PANEL, 2);
		dst += 2;
	}
	for (int k = 0; k < n; k++)
		dst[k] = (uint8_t)(v[k / 4 * 64 + k % 4] - (t == DT_Q8 ? 128 : 0));
}

/* One byte of scale; values k and k + 16 share a byte here too. */
static void put_mxfp4(uint8_t *dst, const uint8_t *panel, int r, int b, int cols)
{
	const uint8_t *v = panel + quant_scale_bytes(DT_MXFP4, cols) + (size_t)b *
	    quant_block_bytes(DT_MXFP4) + r / 4 * 64 + r % 4;

	dst[0] = panel[b * QUANT_PANEL + r];
	for (int k = 0; k < QUANT_BLOCK / 2; k++)
		dst[1 + k] = v[4 * k];
}

void gguf_from_panel(void *dst, const void *panel, enum dtype t, int n, int cols)
{
	size_t bytes = (size_t)gguf_block_bytes((uint32_t)gguf_type_of(t));
	uint8_t *out = dst;

	for (int r = 0; r < n; r++)
		for (int b = 0; b < cols / QUANT_BLOCK; b++, out += bytes)
			if (t == DT_MXFP4)
				put_mxfp4(out, panel, r, b, cols);
			else
				put_block(out, panel, t, r, b, cols);
}
