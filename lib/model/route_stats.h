/*
 * route_stats: counts of what the router did, for step records. Add up over batches, divide at
 * the end. Offsets 1..lookahead_steps.
 */
#ifndef CHR_ROUTE_STATS_H
#define CHR_ROUTE_STATS_H

#include <stdbool.h>

#include "model/route_in.h"

struct route_stats {			/* a record of doubles alone */
	double slots[ROUTE_MAX_STEPS + 1], slot_hit[ROUTE_MAX_STEPS + 1],
	    repeat_hit[ROUTE_MAX_STEPS + 1];
	double sets[ROUTE_MAX_STEPS + 1], set_hit[ROUTE_MAX_STEPS + 1],
	    repeat_set[ROUTE_MAX_STEPS + 1];
	double pairs, overlap;		/* adjacent tokens; sum of |A n B| / |A u B| over layers
					   and pairs */
	/* of the K best of in->ahead; layers but the first */
	double ahead_slots, ahead_hit, ahead_sets, ahead_whole;
	double union_rows, union_recall;	/* share of the union of the next steps' sets in
						   the min(E, K*steps) best of max_k Q, summed
						   over rows */
};

void route_stats_add(struct route_stats *s, const struct route_in *in);
/* load: (layers, E) how often each expert was chosen. Mean over layers, / ln E: 1 is even. */
double route_load_entropy(const double *load, int layers, int E);
bool route_same_set(const int32_t *a, const int32_t *b, int K);	/* the same experts, in any order */

#endif
