/*
 * quant_fit: the scales of blocks. Sixteen blocks, one of each row of a panel, are searched
 * together, each in a lane of its own, so that the result does not depend on how wide the
 * vectors of the machine are.
 *
 * From each of several scales (and minima) to begin with, the values are rounded, the scale is
 * fitted to what they became by least squares, and so on; the one with the smallest squared
 * error stays, and is refined further.
 */
#ifndef CHR_QUANT_FIT_H
#define CHR_QUANT_FIT_H

#include <stdint.h>

#include "backend/quant.h"
#include "base/isa.h"

struct quant_fit {		/* x is approximated by d * q + m */
	float x[QUANT_BLOCK][QUANT_PANEL];	/* in */
	float d[QUANT_PANEL], m[QUANT_PANEL];	/* out: half-precision values; m is 0 but for Q4A */
	int8_t q[QUANT_BLOCK][QUANT_PANEL];
};

/* Follows isa_name(). -1: a value is not finite, or too large for a half-precision scale. */
int quant_fit(struct quant_fit *f, enum dtype t);

#endif
