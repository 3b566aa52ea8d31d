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

#endif
