/*
 * rope: rotary positions (Su et al., arXiv:2104.09864) and the ways in which models stretch them.
 *
 *	real *table = malloc(sizeof(real) * n * 2 * r.width);
 *	rope_table(&r, n, table);		row p: width cosines, then width sines
 */
#ifndef CHR_ROPE_H
#define CHR_ROPE_H

#include <stdbool.h>

#include "base/real.h"

enum rope_kind {
	ROPE_DEFAULT,
	ROPE_LINEAR,		/* every frequency divided by factor */
	ROPE_LLAMA3,		/* long waves divided by factor, short ones kept, a blend between */
	ROPE_YARN,		/* Peng et al., arXiv:2309.00071: a ramp over the frequencies */
	ROPE_DYNAMIC		/* as the default up to `limit`, beyond which they would change */
};

struct rope {
	enum rope_kind kind;
	int width;		/* elements of a head that turn: pairs (i, i + width/2), */
	bool pairs;		/* or (2i, 2i + 1) */
	/* the i-th frequency is theta^(-2i/dims); it is width but in format 1 */
	int dims;
	double theta, factor;
	double all_dim;		/* mscale_all_dim, 0: not given */
	/* cosines and sines are multiplied by it (YaRN's attention factor), 1 otherwise */
	double magnitude;
	int original_max;	/* positions of the model before it was stretched */
	/* YaRN: beta_slow and beta_fast; llama3: low_freq_factor and high_freq_factor */
	double slow, fast;
	bool truncate;		/* YaRN: the ends of the ramp are whole numbers, */
	int last;		/* and at most this */
	int limit;		/* positions for which the table holds; 0: any number */
};

void rope_table(const struct rope *r, int n, real *table);	/* (n, 2, width) */

#endif
