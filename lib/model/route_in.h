/*
 * route_in: what the router did with the rows of a batch, which the loss terms (route_loss.h)
 * and the statistics (route_stats.h) are computed from.
 */
#ifndef CHR_ROUTE_IN_H
#define CHR_ROUTE_IN_H

#include "arch/config.h"
#include "base/real.h"

#define ROUTE_MAX_STEPS 16	/* largest offset of the lookahead head */

struct route_in {		/* this rank's rows of a batch; other ranks (comm.h) have others
				   at the same time, or none */
	const struct config *cfg;
	int B, T;
	const int32_t *doc_start;	/* (R), -1 padding */
	const real *probs;		/* (Ls, R, E) shares of the scores, which sum to 1 */
	const int32_t *topk;		/* (Ls, R, K) */
	const real *look;		/* (R, rows) logits or NULL */
	const real *ref_probs;		/* (Ls, R, E) of the anchor's reference on the same
					   tokens, or NULL */
	const real *ahead;		/* (Ls-1, R, E) logits of layer i+1's router on layer i's
					   input, or NULL */
	const real *bias;		/* (Ls, E) that routers choose by besides their scores;
					   NULL: none has any */
};

#endif
