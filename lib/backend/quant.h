/*
 * quant: matrices of 8 or 4 bits. A row is cut into blocks of 32 values (the last one padded
 * with zeros); a block has a scale of its own, and for Q4A a minimum. Blocks never reach into
 * another row.
 *
 *	Q8	x = d * q		q in -127..127	8.5 bits per value
 *	Q4	x = d * q		q in -8..7	4.5 bits
 *	Q4A	x = d * q + m		q in 0..15	5 bits
 *	F8	x = d * q		q E4M3		8.06 bits	one d for 16 rows
 *	MXFP4	x = d * q		q E2M1		4.25 bits
 *
 * d and m are IEEE half floats; that of F8 is a float32, that of MXFP4 a power of two. The last two
 * are what models are published in (published.h), bit for bit: E4M3 (Micikevicius et al. 2022, FP8
 * Formats for Deep Learning) without its NaN, E2M1 and E8M0 (OCP Microscaling Formats 1.0). In
 * memory and on disk rows lie in panels of 16, so that a vector
 * of 16 lanes computes 16 outputs at once and a tile of a matrix unit is 64 consecutive bytes a
 * row. A panel of nb blocks is
 *
 *	scales	(nb, 16) halves; Q4A: (nb, 2, 16), scales then minima; F8: (nb) floats; MXFP4:
 *		(nb, 16) bytes s for 2^(s - 127); zeros up to a multiple of 64 bytes
 *	values	(nb, 8, 16, 4) bytes for Q8: quad k/4 of the block, row, k%4; the byte is q + 128
 *		(nb, 4, 16, 4) bytes for Q4 and Q4A: value k < 16 in the low half of byte (k/4,
 *		    row, k%4), value k + 16 in
 *		its high half; the half is q + 8 for Q4, q for Q4A
 *		(nb, 16, 32) bytes for F8: row, value
 *		(nb, 4, 16) words of 32 bits for MXFP4: bits 8j + 4h from the lowest of word i of
 *		    group g are value 16h + i of row 4g + j
 *
 * little-endian. Rows beyond the last have scale and minimum 0, of F8 and MXFP4 values 0.
 *
 * Q8, Q4, Q4A: activations are quantised to 8 bits per block of 32 when a product is taken. A
 * product is exact integers within a block and single precision over blocks, in their order: every
 * kernel, on every machine and for any number of rows, gives the same bytes.
 *
 * F8, MXFP4: nothing is rounded that was not before. A product has the bytes of the same product
 * with the matrix as float32.
 */
#ifndef CHR_QUANT_H
#define CHR_QUANT_H

#include <stddef.h>
#include <stdint.h>

#include "backend/tensor.h"

#define QUANT_BLOCK 32
#define QUANT_PANEL 16

static inline int quant_blocks(int cols) { return (cols + QUANT_BLOCK - 1) / QUANT_BLOCK; }
static inline int quant_panels(int rows) { return (rows + QUANT_PANEL - 1) / QUANT_PANEL; }

static inline size_t quant_scale_bytes(enum dtype t, int cols)	/* of one panel's scales, */
{
	size_t block = t == DT_F8 ? 4 : QUANT_PANEL * (t == DT_MXFP4 ? 1 : t == DT_Q4A ? 4 : 2);

	return ((size_t)quant_blocks(cols) * block + 63) & ~(size_t)63;
}

static inline size_t quant_block_bytes(enum dtype t)	/* of a block of its 16 rows, */
{
	return QUANT_PANEL * QUANT_BLOCK / (t == DT_Q8 || t == DT_F8 ? 1 : 2);
}

/* and of all of it: a multiple of 64 */
static inline size_t quant_panel_bytes(enum dtype t, int cols)
{
	return quant_scale_bytes(t, cols) + (size_t)quant_blocks(cols) * quant_block_bytes(t);
}

/* Of a matrix in any type. 0 when that does not fit a size_t or rows or cols is not positive. */
static inline size_t mat_bytes(enum dtype t, int rows, int cols)
{
	size_t n;

	if (rows <= 0 || cols <= 0 || cols > INT32_MAX - QUANT_BLOCK)
		return 0;
	if (dtype_blocks(t))
		return __builtin_mul_overflow((size_t)quant_panels(rows),
		    quant_panel_bytes(t, cols), &n) ? 0 : n;
	return __builtin_mul_overflow((size_t)rows * (size_t)cols, dtype_size(t), &n) ? 0 : n;
}

/* (rows, cols) floats to blocks of type t (Q8, Q4, Q4A) and back (of any type). The scale of a
 * block is searched for (quant_fit.h); the bytes are the same on every machine. dst must be all of
 * mat_bytes(). -1: a value is not finite, or a block spans more than a half-precision scale can, so
 * that its largest would be cut off. Threads of the pool. */
int quant_pack(void *dst, enum dtype t, const float *src, int rows, int cols);
void quant_unpack(float *dst, const void *src, enum dtype t, int rows, int cols);
/* The same of one panel, n <= QUANT_PANEL rows, by the thread that calls. */
int quant_pack_panel(void *dst, enum dtype t, const float *src, int n, int cols);
void quant_unpack_panel(float *dst, const void *src, enum dtype t, int n, int cols);
void quant_unpack_row(float *dst, const void *src, enum dtype t, int row, int cols);

/* A row of activations: (nb, 32) values, (nb) scales, (nb) corrections: -128 times the sum of
 * the values of a block, which is what a product with weights stored as q + 128 has too much. */
struct quant_row {
	float *d;
	int32_t *off;
	int8_t *q;
};

static inline size_t quant_row_bytes(int cols)	/* a multiple of 64 */
{
	return ((size_t)quant_blocks(cols) * (8 + QUANT_BLOCK) + 63) & ~(size_t)63;
}

static inline struct quant_row quant_row_at(const void *rows, int64_t i, int cols)
{
	char *p = (char *)rows + (size_t)i * quant_row_bytes(cols);
	size_t nb = (size_t)quant_blocks(cols);

	return (struct quant_row){ (float *)(p + nb * QUANT_BLOCK),
	    (int32_t *)(p + nb * (QUANT_BLOCK + 4)), (int8_t *)p };
}

#endif
