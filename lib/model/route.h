/*
 * route: what the router did: loss terms with gradients, and statistics for records. DESIGN
 * section 4: format 2 terms are per layer, masked to real tokens; format 1 uses the layer mean
 * and a raw balance sum.
 *
 * balance E/K * sum_e f_e P_e per layer, 1 at uniform load (Switch Transformer, arXiv:2101.03961;
 over the global
 *              batch: arXiv:2501.11873)
 *   temporal   mean sum_e (P_t - P_{t-1})^2
 *   locality   mean -ln( P_t mass on topK(P_{t-1}) / K )
 * lookahead CE of head offset k at t against the router at t+k; topk and union: mass on the chosen
 sets
 *   anchor     mean KL(P || P_ref), same tokens
 * ahead CE of a layer's router, applied to the input of the router before it, against its choice on
 its own input,
 *              plus CE of the latter against the choice of the former
 */
#ifndef CHR_ROUTE_H
#define CHR_ROUTE_H

#include "arch/config.h"
#include "base/real.h"

struct route_in {		/* this rank's rows of a batch; other ranks (comm.h) have others
				   at the same time, or none */
	const struct config *cfg;
	int B, T;
	const int32_t *doc_start;	/* (R), -1 padding */
	const real *probs;		/* (Ls, R, E) */
	const int32_t *topk;		/* (Ls, R, K) */
	const real *look;		/* (R, rows) logits or NULL */
	const real *ref_probs;		/* (Ls, R, E) of the anchor's reference on the same
					   tokens, or NULL */
	const real *ahead;		/* (Ls-1, R, E) logits of layer i+1's router on layer i's
					   input, or NULL */
	int64_t total_tokens;		/* real tokens of the whole step (all micro-batches and
					   ranks); 0 = this batch's own */
};

struct route_lambda { double balance, temporal, locality, lookahead, topk, union_, anchor, ahead; };

/* Load counts of the optimiser step so far, on all ranks: (Ls, E), zeroed by the caller at each
 * step, updated by route_loss. */
struct route_load { double *count; double tokens; };

struct route_terms { double balance, temporal, locality, lookahead, topk, union_, anchor, ahead; };

/* Adds lambda-weighted gradients, scaled by this batch's share of total_tokens, to dprobs, dlook
 * and dahead (each may be NULL: values only). Returns the weighted sum of the terms of this
 * batch (scaled likewise); *t gets unweighted values of this batch. With several ranks all call
 * it, means are over the rows of all, and what is returned is this rank's part of them: the sum
 * over ranks is the value. Scratch is allocated once per shape through `scratch`
 * (NULL-initialised by the caller). */
struct route_scratch;
double route_loss(const struct route_in *in, const struct route_lambda *lam,
    struct route_load *load,
    struct route_terms *t, real *dprobs, real *dlook, real *dahead, struct route_scratch **scratch);
void route_scratch_free(struct route_scratch *s);

/* Counts for step records; add up over batches, divide at the end. Offsets 1..lookahead_steps. */
#define ROUTE_MAX_STEPS 16
struct route_stats {
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
bool route_same_set(const int32_t *a, const int32_t *b, int K);	/* the same experts, in any order */
/* mean over layers, / ln E: 1 = even */
double route_load_entropy(const struct route_load *l, int layers, int E);

#endif
