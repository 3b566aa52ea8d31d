/*
 * route_loss: loss terms of the router with their gradients. Format 2 terms are per layer and
 * masked to real tokens; format 1 uses the mean over layers and a raw balance sum.
 *
 * P is a distribution over experts whatever the router: of a softmax its probabilities, of sigmoid
 * scores the share of each in their sum (as in the balance of DeepSeek-V3, arXiv:2412.19437, eq.
 * 18). A bias for the choice, groups and scaling are not in P: they are in the choices, topK(P)
 * below, which are always the router's own.
 *
 *   balance    E/K * sum_e f_e P_e per layer, 1 at uniform load (Switch Transformer,
 *              arXiv:2101.03961; over the global batch: arXiv:2501.11873)
 *   temporal   mean sum_e (P_t - P_{t-1})^2
 *   locality   mean -ln( P_t mass on topK(P_{t-1}) / K )
 *   lookahead  CE of head offset k at t against the router at t+k; topk and union: mass on the
 *              chosen sets
 *   anchor     mean KL(P || P_ref), same tokens
 *   ahead      CE of a layer's router, applied to the input of the router before it (as P, a
 *              distribution), against its choice on its own input, plus CE of the latter's P
 *              against the choice that it would make of the former
 *
 * All are means over the rows of a whole optimiser step, of all its micro-batches and ranks, so
 * that cutting the same rows differently changes neither the loss nor its gradient:
 *
 *	route_step_clear(&s);
 *	for each micro-batch: route_step_rows(&s, &in);		(the denominators; no model yet)
 *	for each micro-batch: route_step_load(&s, &in);		(what the experts' load is; after
 *								its forward pass)
 *	for each micro-batch: loss += route_loss(&in, &lam, &s, dprobs, dlook, dahead, &scratch);
 *	route_step_end(&s);
 *	route_step_terms(&s, &terms);
 *
 * All rows come before the first gradient. All loads do so where lam->balance is above 0: the
 * gradient of every row's probabilities is the load of the whole step.
 */
#ifndef CHR_ROUTE_LOSS_H
#define CHR_ROUTE_LOSS_H

#include "model/route_in.h"

struct route_lambda { double balance, temporal, locality, lookahead, topk, union_, anchor, ahead; };

struct route_terms { double balance, temporal, locality, lookahead, topk, union_, anchor, ahead; };

struct route_count {			/* rows of all ranks */
	double pairs[ROUTE_MAX_STEPS + 1];	/* that have a successor at each offset; at 0:
						   real tokens */
	double full;			/* that have all of them */
};

struct route_sums {			/* over layers and rows, of this rank until
					   route_step_end() */
	double temporal, locality, anchor, ahead, union_;
	double lookahead[ROUTE_MAX_STEPS + 1], topk[ROUTE_MAX_STEPS + 1];	/* by offset */
};

struct route_step {
	const struct config *cfg;
	struct route_count n;
	struct route_sums sum;
	double *load;			/* (Ls, E) how often each expert was chosen, on all ranks */
	double *mass;			/* (Ls, E) sums of probabilities, like the sums */
};

/* Borrows c. Ends the program when there is no memory. */
void route_step_open(struct route_step *s, const struct config *c);
void route_step_close(struct route_step *s);
void route_step_clear(struct route_step *s);

/* Counts a batch: of `in` only cfg, B, T and doc_start, or only topk besides. All ranks call
 * them together, those without rows too. */
void route_step_rows(struct route_step *s, const struct route_in *in);
void route_step_load(struct route_step *s, const struct route_in *in);

/* Adds what this rank's batch is worth to the sums, and lambda-weighted gradients to dprobs,
 * dlook and dahead (each may be NULL: values only, and then rows and loads may come later).
 * Returns this batch's part of the weighted sum of the terms: the sum of what is returned, over
 * batches and ranks, is the value. Scratch is allocated once per shape through `scratch`
 * (NULL-initialised by the caller). */
struct route_scratch;
double route_loss(const struct route_in *in, const struct route_lambda *lam, struct route_step *s,
    real *dprobs, real *dlook, real *dahead, struct route_scratch **scratch);
void route_scratch_free(struct route_scratch *s);

void route_step_end(struct route_step *s);	/* sums over ranks; all call it */
/* Unweighted values of the step; 0 where it has no rows for a term. */
void route_step_terms(const struct route_step *s, struct route_terms *t);

#endif
