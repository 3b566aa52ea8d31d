/*
 * fidelity: how far one model's outputs are from another's, on the same tokens. Sums, for the
 * caller to divide.
 *
 *	struct fidelity f;
 *	fidelity_init(&f, Ls);
 *	fidelity_logits(&f, a, b, n, V);			(as often as there are rows)
 *	fidelity_router(&f, pa, pb, ta, tb, R, E, K);
 *	fidelity_put(&f, record);
 *
 * a is the reference and b what is compared with it. Divergences of routers are KL(b || a), the
 * anchor's direction (route.h); of predictions KL(a || b), what is lost by using b where a was
 * meant.
 */
#ifndef CHR_FIDELITY_H
#define CHR_FIDELITY_H

#include <jansson.h>
#include <stdint.h>

#include "arch/config.h"
#include "base/real.h"

struct fidelity {
	int64_t rows, logits, top1;	/* rows; numbers compared; rows whose best token is the
					   same */
	int64_t first;			/* first row whose best token differs; -1: none */
	double max_abs, sum_abs, kl;	/* of logits */
	int layers;			/* of routers; 0: not comparable */
	int64_t routed, slots, shared;	/* rows; chosen experts of a; those that b chose as well */
	double router_kl[CFG_MAX_LAYERS];
};

void fidelity_init(struct fidelity *f, int layers);

/* Rows of logits (n, V). */
void fidelity_logits(struct fidelity *f, const real *a, const real *b, int64_t n, int V);

/* Probabilities (layers, R, E) and choices (layers, R, K). */
void fidelity_router(struct fidelity *f, const real *pa, const real *pb, const int32_t *ta,
    const int32_t *tb, int64_t R,
    int E, int K);

/* the keys of chr-jsonl(5), "diff" */
void fidelity_put(const struct fidelity *f, json_t *rec);

#endif
