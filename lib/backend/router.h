/*
 * router: how a router's scores become a choice of experts and their weights, and on the host
 * what that comes to, for the cpu's rows and for those who foresee a choice or bend it.
 *
 * A row's logits z (E) become scores s: sigmoid(z), or softmax(z). The K experts are chosen by
 * s + bias, in the best groups; their weights are of s alone.
 */
#ifndef CHR_ROUTER_H
#define CHR_ROUTER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/real.h"

struct router {
	bool sigmoid;		/* a score is sigmoid(logit); else the softmax of the logits */
	bool renormalised;	/* weights are divided by the sum of the chosen scores, */
	double floor;		/* or by this where that is less; */
	double more;		/* this is added to the sum before */
	/* experts lie in so many groups, and the choice is among those of the `kept` best; up to
	 * 1: among all. A group is as good as its best expert, or with sigmoid scores as its
	 * best two together */
	int groups, kept;
	double scale;		/* weights are multiplied by it */
};

/* A choice that is that of the largest logits. bias: of a row's experts, or NULL, everywhere. */
static inline bool router_by_logits(const struct router *r, const real *bias)
{
	return !bias && r->groups <= 1;
}

/* Scores s (E) of logits z, or the share of each in their sum. Both return that sum. s may be z
 * where scores are sigmoids. */
real router_scores(const struct router *r, const real *z, int E, real *s);
real router_shares(const struct router *r, const real *z, int E, real *p);
/* The K chosen by scores, best first, ties to the lowest id. */
void router_choose(const struct router *r, const real *bias, const real *s, int E, int K,
    int32_t *ids);
/* Weights of the chosen (K) from the shares p (E) of scores that sum to `all`. */
void router_weigh(const struct router *r, const real *p, real all, const int32_t *ids, int K,
    real *weight);
/* What chosen scores that sum to `sum` are divided by where weights are renormalised. */
real router_denominator(const struct router *r, real sum);
/* One finite number for each expert, of which the K largest are what router_choose() chooses, and
 * the others the larger the less they lack: the logits themselves where these decide. wants may be
 * z. */
void router_wants(const struct router *r, const real *bias, const real *z, int E, int K,
    real *wants);

#endif
