/*
 * published: matrices in the blocks that models are published in, to and from panels of quant.h
 * without loss: the bits of values and scales are the same, only their places differ.
 *
 *	F8	values (rows, cols) E4M3, one byte each; scales (rows / high, cols / wide) floats,
 *		rounded up, each for a rectangle of `high` rows and `wide` columns
 *	MXFP4	blocks (rows, nb, 16) bytes, value 2i in the low half of byte i and 2i + 1 in its
 *		high half; scales (rows, nb) bytes. nb is quant_blocks(cols)
 */
#ifndef CHR_PUBLISHED_H
#define CHR_PUBLISHED_H

#include <stdbool.h>
#include <stdint.h>

#include "backend/quant.h"

/* Do rectangles of so many rows and columns have one scale for all of a panel's block? */
static inline bool published_f8_fits(int high, int wide)
{
	return high % QUANT_PANEL == 0 && wide % QUANT_BLOCK == 0;
}

/* One panel of n <= 16 rows. scales: those of the row of rectangles that these rows lie in. */
void published_f8_put(void *panel, const uint8_t *values, const float *scales, int wide, int n,
    int cols);
void published_f8_get(uint8_t *values, float *scales, const void *panel, int wide, int n, int cols);
void published_mxfp4_put(void *panel, const uint8_t *blocks, const uint8_t *scales, int n,
    int cols);
void published_mxfp4_get(uint8_t *blocks, uint8_t *scales, const void *panel, int n, int cols);

/* The values of row r of a panel of type t. */
void published_row(float *dst, const void *panel, enum dtype t, int r, int cols);

/* Are all values of a panel finite, whatever the bits of those whose scale is large? */
bool published_finite(const void *panel, enum dtype t, int cols);

/* The numbers that bits stand for: E4M3, with its NaN; E2M1 (the low four bits); 2^(s - 127), where
 * s = 255 gives infinity. */
float published_e4m3(uint8_t bits);
float published_e2m1(uint8_t bits);
float published_e8m0(uint8_t s);

#endif
