/*
 * lora: low-rank adapters (Hu et al. 2021, arXiv:2106.09685). A matrix W of the model becomes W0
 * + alpha/rank * B A; only A (rank, columns) and B (rows, rank) are trained.
 *
 * The model computes with the sum, which is made after each update, and knows nothing of
 * adapters: every stage, every matrix and every backend works as it does without. The gradients
 * of A and B follow from that of W:
 *
 *	dB = alpha/rank * dW A^T		dA = alpha/rank * B^T dW
 *
 *	lora_open(&l, &m.par, hit, rank, alpha, m.be, &e);
 *	lora_start(&l, m.w, seed);			(keeps W0; A is random, B is 0)
 *	for each step: ... m.g ...
 *		lora_gradients(&l, m.g);
 *		optim_step(&o, l.w, l.g, ...);
 *		lora_apply(&l, m.w);
 *
 * On disk an adapter has PEFT's layout: adapter.h reads it, adapter_save.h writes it.
 */
#ifndef CHR_LORA_H
#define CHR_LORA_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "backend/backend.h"
#include "arch/config.h"
#include "base/err.h"
#include "base/mem.h"

#define LORA_MAX_RANK 4096

struct lora {
	const struct backend *be;
	const struct params *model;
	struct params par;		/* A and B of each target, in turn */
	dev_real *w, *g;		/* (par.total) */
	int n, *target;			/* (n) which parameters of the model */
	int rank;			/* of all */
	double alpha;
	dev_real *w0;			/* the targets as they were, one after the other */
	dev_real *scaled;		/* factor * A or B: room for the largest */
};

/* hit: (n of model) what gets an adapter; embeddings, vectors and convolutions cannot
 * (EX_USAGE). */
int lora_open(struct lora *l, const struct params *model, const bool *hit, int rank, double alpha,
    const struct backend *be, struct err *e) CHR_MUST_CHECK;
void lora_close(struct lora *l);
/* With the moments of the optimizer. */
void lora_plan(struct mem_plan *p, const struct params *model, const bool *hit, int rank);

void lora_start(struct lora *l, const dev_real *w, uint64_t seed);
void lora_apply(const struct lora *l, dev_real *w);
void lora_gradients(struct lora *l, const dev_real *g);

/* Adds the adapter in dir to the flat host array w of the model's parameters. Its metadata (as
 * of prov.h) go to *metadata unless NULL. Fails as adapter.h does, and
 * where the sum is not finite (EX_DATAERR). */
int lora_merge(const char *dir, const struct config *c, const struct params *model, real *w,
    json_t **metadata, struct err *e) CHR_MUST_CHECK;

#endif
