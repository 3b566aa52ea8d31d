#include "backend/published.h"

#include <math.h>
#include <string.h>

static uint8_t *values_of(void *panel, enum dtype t, int cols)
{
	return (uint8_t *)panel + quant_scale_bytes(t, cols);
}

static int block_width(int b, int cols)
{
	return cols - b * QUANT_BLOCK < QUANT_BLOCK ? cols - b * QUANT_BLOCK : QUANT_BLOCK;
}

/* ---- F8 ---- */

void published_f8_put(void *panel, const uint8_t *values, const float *scales, int wide, int n,
    int cols)
{
	uint8_t *v = values_of(panel, DT_F8, cols);
	float *d = panel;

	memset(panel, 0, quant_panel_bytes(DT_F8, cols));
	for (int b = 0; b < quant_blocks(cols); b++) {
		d[b] = scales[b * QUANT_BLOCK / wide];
		for (int r = 0; r < n; r++)
			memcpy(v + (b * QUANT_PANEL + r) * QUANT_BLOCK,
			    values + (int64_t)r * cols + b * QUANT_BLOCK,
			    (size_t)block_width(b, cols));
	}
}

void published_f8_get(uint8_t *values, float *scales, const void *panel, int wide, int n, int cols)
{
	const uint8_t *v = values_of((void *)panel, DT_F8, cols);
	const float *d = panel;

	for (int b = 0; b < quant_blocks(cols); b++) {
		scales[b * QUANT_BLOCK / wide] = d[b];
		for (int r = 0; r < n; r++)
			memcpy(values + (int64_t)r * cols + b * QUANT_BLOCK,
			    v + (b * QUANT_PANEL + r) * QUANT_BLOCK,
			    (size_t)block_width(b, cols));
	}
}

/* ---- MXFP4 ---- */

/* Where value k of row r of a block is, in a panel: which half of which byte. */
static int half_at(int r, int k)
{
	return 2 * (r / 4 * 64 + k % 16 * 4 + r % 4) + k / 16;
}

void published_mxfp4_put(void *panel, const uint8_t *blocks, const uint8_t *scales, int n, int cols)
{
	int nb = quant_blocks(cols);
	uint8_t *v = values_of(panel, DT_MXFP4, cols), *s = panel;

	memset(panel, 0, quant_panel_bytes(DT_MXFP4, cols));
	for (int b = 0; b < nb; b++, v += quant_block_bytes(DT_MXFP4), s += QUANT_PANEL)
		for (int r = 0; r < n; r++) {
			const uint8_t *from = blocks + ((int64_t)r * nb + b) * (QUANT_BLOCK / 2);

			s[r] = scales[(int64_t)r * nb + b];
			for (int k = 0; k < block_width(b, cols); k++)
				v[half_at(r, k) / 2] |= (uint8_t)((from[k / 2] >> k % 2 * 4 & 15)
				    << half_at(r, k) % 2 * 4);
		}
}

void published_mxfp4_get(uint8_t *blocks, uint8_t *scales, const void *panel, int n, int cols)
{
	int nb = quant_blocks(cols);
	const uint8_t *v = values_of((void *)panel, DT_MXFP4, cols), *s = panel;

	memset(blocks, 0, (size_t)n * (size_t)nb * (QUANT_BLOCK / 2));
	for (int b = 0; b < nb; b++, v += quant_block_bytes(DT_MXFP4), s += QUANT_PANEL)
		for (int r = 0; r < n; r++) {
			uint8_t *to = blocks + ((int64_t)r * nb + b) * (QUANT_BLOCK / 2);

			scales[(int64_t)r * nb + b] = s[r];
			for (int k = 0; k < QUANT_BLOCK; k++)
				to[k / 2] |= (uint8_t)((v[half_at(r, k) / 2] >> half_at(r, k) % 2 *
				    4 & 15) << k % 2 * 4);
		}
}

void published_row(float *dst, const void *panel, enum dtype t, int r, int cols)
{
	const uint8_t *v = values_of((void *)panel, t, cols), *s = panel;
	const float *scale = panel;

	for (int b = 0; b < quant_blocks(cols); b++, v += quant_block_bytes(t)) {
		float *x = dst + b * QUANT_BLOCK,
		    d = t == DT_F8 ? scale[b] : published_e8m0(s[b * QUANT_PANEL + r]);
		int n = block_width(b, cols);

		if (t == DT_F8)
			for (int k = 0; k < n; k++)
				x[k] = published_e4m3(v[r * QUANT_BLOCK + k]) * d;
		else
			for (int k = 0; k < n; k++)
				x[k] = published_e2m1(v[half_at(r, k) / 2] >> half_at(r, k) % 2 *
				    4) * d;
	}
}

/* ---- numbers ---- */

static float float_of(uint32_t u)
{
	float f;

	memcpy(&f, &u, sizeof f);
	return f;
}

/* Exponent and fraction, moved to where a float has them, are the value times 2^-120; this holds
 * for subnormals too, and the product is exact. */
float published_e4m3(uint8_t bits)
{
	uint32_t sign = (uint32_t)(bits & 128) << 24;

	if ((bits & 127) == 127)
		return NAN;
	return float_of(sign | (uint32_t)(bits & 127) << 20) * 0x1p120f;
}

float published_e2m1(uint8_t bits)
{
	static const float x[16] = { 0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3,
	    -4, -6 };

	return x[bits & 15];
}

float published_e8m0(uint8_t s)
{
	return s == 0 ? 0x1p-127f : float_of((uint32_t)s << 23);
}
