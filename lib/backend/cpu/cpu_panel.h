/*
 * cpu_panel: products with panels of F8 and MXFP4 (quant.h), included by cpu_template.h where the
 * instruction set has
 *	V_MUL(a,b)
 *	V_E4M3(p)		VL bytes E4M3, as floats, times 2^-8
 *	W, W_LOAD(p)		a vector of VL words of 32 bits
 *	V_E2M1			the numbers that V_PICK chooses from; they may be scaled
 *	V_PICK(x,w,at)		those that the four bits from bit `at` on of each word stand for
 *	PANEL_ROWS		rows of a panel whose sums fit in registers
 * A value is rounded to a float when it is multiplied with its scale, and then is what it would be
 * in a matrix of floats: sums are those of nt, in the same order.
 */
#include "backend/quant.h"

#define PANEL_VECTORS (QUANT_BLOCK / VL)	/* of a block of a row */
#define PANEL_AHEAD 2048			/* bytes: the machine's own prefetch ends with the
						   page */

/* Vector i of row r of a block of F8, d: 2^8 times its scale. */
INLINE TARGET V f8_vector(const uint8_t *v, int r, int i, V d)
{
	return V_MUL(V_E4M3(v + r * QUANT_BLOCK + i * VL), d);
}

/* The scales of 16 rows. */
INLINE TARGET void e8m0(float d[QUANT_PANEL], const uint8_t *s)
{
	uint32_t u[QUANT_PANEL];

	for (int r = 0; r < QUANT_PANEL; r++) {
		u[r] = (uint32_t)s[r] << 23;
		u[r] = u[r] > 0x400000 ? u[r] : 0x400000;	/* 2^-127 is a subnormal */
	}
	memcpy(d, u, sizeof u);
}

/* The words that hold vector i of the four rows of a group. */
INLINE TARGET W mxfp4_words(const uint8_t *v, int group, int i)
{
	return W_LOAD(v + group * 64 + i * VL % QUANT_PANEL * 4);
}

/* Vector i of row j of the group; x: V_E2M1 times its scale. */
#define MXFP4_VECTOR(w, j, i, x) V_PICK(x, w, 8 * (j) + 4 * ((i) * VL / QUANT_PANEL))

/* The sums of PANEL_ROWS rows, from row r0 on, over one block: n vectors of a. */
INLINE TARGET void panel_f8(V *acc, const uint8_t *v, V d, const V *a, int r0, const int n)
{
	UNROLL16 for (int r = 0; r < PANEL_ROWS; r++)
		for (int i = 0; i < n; i++)
			acc[r] = V_FMA(a[i], f8_vector(v, r0 + r, i, d), acc[r]);
}

INLINE TARGET void panel_mxfp4(V *acc, const uint8_t *v, const float *d, const V *a, int r0,
    const int n)
{
	const V table = V_E2M1;

	UNROLL16 for (int g = 0; g < PANEL_ROWS / 4; g++) {
		W w[PANEL_VECTORS];

		for (int i = 0; i < n; i++)
			w[i] = mxfp4_words(v, r0 / 4 + g, i);
		UNROLL16 for (int j = 0; j < 4; j++) {
			V x = V_MUL(table, V_SET1(d[r0 + 4 * g + j]));

			UNROLL16 for (int i = 0; i < PANEL_VECTORS; i++)
				if (i < n)
					acc[4 * g + j] = V_FMA(a[i], MXFP4_VECTOR(w[i], j, i, x),
					    acc[4 * g + j]);
		}
	}
}

INLINE TARGET void panel_block(V *acc, const char *w, const enum dtype t, int k, int b, const V *a,
    int r0, const int n)
{
	size_t bytes = quant_block_bytes(t);
	const uint8_t *v = (const uint8_t *)w + quant_scale_bytes(t, k) + (size_t)b * bytes;

	UNROLL16 for (size_t i = 0; i < bytes; i += 64)
		__builtin_prefetch(v + i + PANEL_AHEAD);
	if (t == DT_F8) {
		panel_f8(acc, v, V_SET1(((const float *)w)[b] * 0x1p8f), a, r0, n);
	} else {
		float d[QUANT_PANEL];

		e8m0(d, (const uint8_t *)w + b * QUANT_PANEL);
		panel_mxfp4(acc, v, d, a, r0, n);
	}
}

INLINE TARGET void panel_rows(int k, const real *a, const char *w, const enum dtype t, int r0,
    real *c, real beta)
{
	V acc[PANEL_ROWS], x[PANEL_VECTORS];
	int b = 0, n = 0;

	for (int r = 0; r < PANEL_ROWS; r++)
		acc[r] = V_ZERO;
	for (; (b + 1) * QUANT_BLOCK <= k; b++) {
		for (int i = 0; i < PANEL_VECTORS; i++)
			x[i] = V_LOAD(a + b * QUANT_BLOCK + i * VL);
		panel_block(acc, w, t, k, b, x, r0, PANEL_VECTORS);
	}
	for (int p = b * QUANT_BLOCK; p < k; p += VL)
		x[n++] = p + VL <= k ? V_LOAD(a + p) : V_LOADN(a + p, k - p);
	if (n > 0)
		panel_block(acc, w, t, k, b, x, r0, n);
	for (int r = 0; r < PANEL_ROWS; r += 4)
		put4(c + r0 + r, V_SUM4(acc[r], acc[r + 1], acc[r + 2], acc[r + 3]), beta);
}

static TARGET void panel(int k, const real *a, const void *w, enum dtype t, real *c, real beta)
{
	for (int r0 = 0; r0 < QUANT_PANEL; r0 += PANEL_ROWS)
		if (t == DT_F8)
			panel_rows(k, a, w, DT_F8, r0, c, beta);
		else
			panel_rows(k, a, w, DT_MXFP4, r0, c, beta);
}

/* ---- as floats: four rows at a time, which are written from end to end ---- */

INLINE TARGET void put_vector(real *dst, V v, int left)
{
	if (left >= VL)
		V_STORE(dst, v);
	else if (left > 0)
		V_STOREN(dst, left, v);
}

INLINE TARGET void unfold_f8(real *dst, const char *w, int k, int g)
{
	const uint8_t *v = (const uint8_t *)w + quant_scale_bytes(DT_F8, k);

	for (int b = 0; b * QUANT_BLOCK < k; b++, v += QUANT_PANEL * QUANT_BLOCK) {
		V d = V_SET1(((const float *)w)[b] * 0x1p8f);
		int left = k - b * QUANT_BLOCK;

		for (int j = 0; j < 4; j++)
			for (int i = 0; i < PANEL_VECTORS; i++)
				put_vector(dst + (int64_t)j * k + b * QUANT_BLOCK + i * VL,
				    f8_vector(v, 4 * g + j, i, d), left - i * VL);
	}
}

INLINE TARGET void unfold_mxfp4(real *dst, const char *w, int k, int g)
{
	const uint8_t *v = (const uint8_t *)w + quant_scale_bytes(DT_MXFP4, k);
	float d[QUANT_PANEL];

	for (int b = 0; b * QUANT_BLOCK < k; b++, v += QUANT_PANEL * QUANT_BLOCK / 2) {
		int left = k - b * QUANT_BLOCK;

		e8m0(d, (const uint8_t *)w + b * QUANT_PANEL);
		UNROLL16 for (int i = 0; i < PANEL_VECTORS; i++) {
			W x = mxfp4_words(v, g, i);

			UNROLL16 for (int j = 0; j < 4; j++)
				put_vector(dst + (int64_t)j * k + b * QUANT_BLOCK + i * VL,
				    MXFP4_VECTOR(x, j, i, V_MUL(V_E2M1, V_SET1(d[4 * g + j]))),
				    left - i * VL);
		}
	}
}

static TARGET void unfold(real *dst, const void *w, enum dtype t, int k)
{
	for (int g = 0; g < QUANT_PANEL / 4; g++, dst += (int64_t)4 * k)
		if (t == DT_F8)
			unfold_f8(dst, w, k, g);
		else
			unfold_mxfp4(dst, w, k, g);
}
