/*
 * topk: the best of a few. K ids of the E values of p, descending, ties to the lowest id; K <= E.
 */
#ifndef CHR_TOPK_H
#define CHR_TOPK_H

#include <stdint.h>

#include "base/real.h"

static inline void topk_best(const real *p, int E, int K, int32_t *ids)
{
	int n = 0;

	for (int e = 0; e < E; e++) {
		int at = n;

		while (at > 0 && p[e] > p[ids[at - 1]])
			at--;
		if (at >= K)
			continue;
		for (int j = n < K ? n : K - 1; j > at; j--)
			ids[j] = ids[j - 1];
		ids[at] = e;
		n += n < K;
	}
}

#endif
