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

/* A block of one row, which lies in every fourth byte of its place in a panel. */
static void mxfp4_put_row(uint8_t *to, const uint8_t *from, int width)
{
	uint8_t x[QUANT_BLOCK / 2] = { 0 };

	memcpy(x, from, (size_t)(width + 1) / 2);
	if (width % 2)
		x[width / 2] &= 15;
	for (int i = 0; i < QUANT_BLOCK / 4; i++) {
		uint8_t a = x[i], b = x[QUANT_BLOCK / 4 + i];

		to[8 * i] = (uint8_t)((a & 15) | b << 4);
		to[8 * i + 4] = (uint8_t)(a >> 4 | (b & 240));
	}
}

static void mxfp4_get_row(uint8_t *to, const uint8_t *from)
{
	for (int i = 0; i < QUANT_BLOCK / 4; i++) {
		uint8_t a = from[8 * i], b = from[8 * i + 4];

		to[i] = (uint8_t)((a & 15) | b << 4);
		to[QUANT_BLOCK / 4 + i] = (uint8_t)(a >> 4 | (b & 240));
	}
}

void published_mxfp4_put(void *panel, const uint8_t *blocks, const uint8_t *scales, int n, int cols)
{
	int nb = quant_blocks(cols);
	uint8_t *v = values_of(panel, DT_MXFP4, cols), *s = panel;

	memset(panel, 0, quant_panel_bytes(DT_MXFP4, cols));
	for (int r = 0; r < n; r++)
		for (int b = 0; b < nb; b++) {
			s[b * QUANT_PANEL + r] = scales[(int64_t)r * nb + b];
			mxfp4_put_row(v + (size_t)b * quant_block_bytes(DT_MXFP4) +
			    half_at(r, 0) / 2, blocks + ((int64_t)r * nb + b) * (QUANT_BLOCK / 2),
			    block_width(b, cols));
		}
}

void published_mxfp4_get(uint8_t *blocks, uint8_t *scales, const void *panel, int n, int cols)
{
	int nb = quant_blocks(cols);
	const uint8_t *v = values_of((void *)panel, DT_MXFP4, cols), *s = panel;

	for (int r = 0; r < n; r++)
		for (int b = 0; b < nb; b++) {
			scales[(int64_t)r * nb + b] = s[b * QUANT_PANEL + r];
			mxfp4_get_row(blocks + ((int64_t)r * nb + b) * (QUANT_BLOCK / 2),
			    v + (size_t)b * quant_block_bytes(DT_MXFP4) + half_at(r, 0) / 2);
		}
}

void published_row(float *dst, const void *panel, enum dtype t, int r, int cols)
{
	const uint8_t *v = values_of((void *)panel, t, cols), *s = panel;
	const float *scale = panel;

	for (int b = 0; b < quant_blocks(cols); b++, v += quant_block_bytes(t)) {
		float x[QUANT_BLOCK];

		for (int k = 0; t == DT_F8 && k < QUANT_BLOCK; k++)
			x[k] = published_e4m3(v[r * QUANT_BLOCK + k]) * scale[b];
		for (int k = 0; t == DT_MXFP4 && k < QUANT_BLOCK / 2; k++) {
			float d = published_e8m0(s[b * QUANT_PANEL + r]);
			uint8_t two = v[half_at(r, k) / 2];

			x[k] = published_e2m1(two) * d;
			x[QUANT_BLOCK / 2 + k] = published_e2m1(two >> 4) * d;
		}
		memcpy(dst + b * QUANT_BLOCK, x, (size_t)block_width(b, cols) * sizeof *x);
	}
}

/* Bytes that are a NaN when their low seven bits are all set; a loop with no way out is wide. */
static bool any_nan(const uint8_t *v, size_t n)
{
	unsigned bad = 0;

	for (size_t i = 0; i < n; i++)
		bad |= (v[i] & 127) == 127;
	return bad;
}

bool published_finite(const void *panel, enum dtype t, int cols)
{
	const uint8_t *v = values_of((void *)panel, t, cols), *s = panel;
	size_t nb = (size_t)quant_blocks(cols);
	const float *d = panel;
	bool good = t != DT_F8 || !any_nan(v, nb * quant_block_bytes(t));

	for (size_t b = 0; t == DT_F8 && b < nb; b++)
		good &= isfinite(d[b] * 448);
	for (size_t i = 0; t == DT_MXFP4 && i < nb * QUANT_PANEL; i++)
		good &= isfinite(published_e8m0(s[i]) * 6);
	return good;
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
