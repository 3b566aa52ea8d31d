/*
 * route_int: what the loss terms and the statistics of the router share. Not installed.
 */
#ifndef CHR_ROUTE_INT_H
#define CHR_ROUTE_INT_H

#include <stdbool.h>

#include "backend/host.h"
#include "model/route_in.h"

/* Row r and the row k later are real tokens of one document. */
static inline bool route_linked(const struct route_in *in, int64_t r, int k)
{
	int32_t d = in->doc_start[r];

	return d >= 0 && r % in->T + k < in->T && in->doc_start[r + k] == d;
}

/* Where the block of the lookahead head (offset k, layer) of row r begins. */
static inline int64_t route_look_at(const struct route_in *in, int layer, int64_t r, int k)
{
	int blocks = in->cfg->lookahead_per_layer ? in->cfg->num_sparse : 1;

	return r * config_lookahead_rows(in->cfg) +
	    ((int64_t)k * blocks + layer) * in->cfg->num_experts;
}

/* Its probabilities into q (E). */
static inline void route_look_softmax(const struct route_in *in, int layer, int64_t r, int k,
    real *q)
{
	host_softmax(in->look + route_look_at(in, layer, r, k), in->cfg->num_experts, q);
}

/* Layer i of those with experts. */
static inline const struct router *route_router(const struct route_in *in, int i)
{
	const struct block *b = in->cfg->block;

	while (!b->sparse || i-- > 0)
		b++;
	return &b->router;
}

/* Whom the router of layer i > 0 would choose (K) of what layer i-1 says at row r. */
static inline void route_said(const struct route_in *in, int i, int64_t r, int32_t *said)
{
	int E = in->cfg->num_experts, K = in->cfg->num_experts_per_tok;
	const struct router *router = route_router(in, i);
	int64_t R = (int64_t)in->B * in->T;
	real s[E];

	router_scores(router, in->ahead + ((i - 1) * R + r) * E, E, s);
	router_choose(router, in->bias ? in->bias + (int64_t)i * E : NULL, s, E, K, said);
}

#endif
