/*
 * optim: AdamW (Loshchilov, Hutter 2019, arXiv:1711.05101) over the flat parameter array,
 * global-norm clipping, and the learning rate of each update.
 *
 *	optim_open(&o, &m.par, NULL, m.be, weight_decay, &e);
 *	optim_reduce(&o, m.g, layer);			(several ranks: begins the sums of layers
 *							from this one on)
 *	optim_reduce_end(&o, m.g);			(begins the rest, and waits)
 *	norm = optim_norm(&o, m.g);
 *	optim_step(&o, m.w, m.g, optim_lr(&schedule, o.updates + 1), optim_clip(norm, 1.0));
 *
 * Frozen parameters keep their values: they have no moments, and their gradients do not count in
 * the norm.
 *
 * Ranks (comm.h) divide the moments (ZeRO stage 1, Rajbhandari et al. 2020, arXiv:1910.02054):
 * the parameters of each layer are cut into one part per rank. A rank gets the sum over ranks of
 * its part of the gradients, updates its part of the weights, and hands it to the others. The
 * sums of a layer can begin while those before it are still being computed, and a layer be
 * computed while the weights of those after it are on their way. Experts that are divided over a
 * group of ranks (params_divide) have peers only: the ranks that hold the same ones. All ranks
 * make the same calls.
 *
 * betas 0.9 and 0.95, eps 1e-8. Weight decay acts on matrices; vectors (norms) and the embedding
 * (also when it is the tied head) have none.
 */
#ifndef CHR_OPTIM_H
#define CHR_OPTIM_H

#include "backend/backend.h"
#include "base/comm.h"
#include "arch/config.h"
#include "base/err.h"
#include "base/mem.h"

struct optim_bucket {			/* neighbours of one layer and one set of ranks, none of
					   them frozen */
	int64_t off, n;			/* of the parameter array, padding included */
	int64_t at;			/* where the moments of this rank's part begin */
	int layer;			/* after whose backward pass its gradients are complete;
					   -1: after all */
	enum comm_set set;
};

struct optim {
	const struct backend *be;
	dev_real *m, *v;		/* first and second moments of this rank's parts of the
					   buckets, on the device */
	int64_t updates;		/* done so far */
	double weight_decay;
	int nbuckets, begun;		/* begun: sums of gradients under way, in the order of
					   `bucket` */
	struct optim_bucket *bucket;	/* the last layer first */
	int *of;			/* (n of the parameters) bucket of each; -1: frozen */
	real *scratch;			/* of comm_exchange_open(); NULL: one rank */
	real *whole;			/* the largest parameter, on the way to a file; NULL: one
					   rank, or not the first */
	struct mirror seen;		/* of what a file gets */
	struct mirror gsum, wsum;	/* of gradients and weights, while ranks exchange them */
	int64_t total;			/* of the parameter array */
	dev_real *gathering;		/* the array that is being made whole, its place on the */
	real *gathered;			/* host, and how many buckets of it are on the device */
	int settled;
	int nruns;			/* of this rank's parts: neighbours that share their
					   weight decay go in one call */
	struct optim_run { int64_t off, at, n; bool decay; } *run;
};

/* frozen: (n of ps), or NULL for none. optim_plan: what optim_open takes. */
void optim_plan(struct mem_plan *p, const struct params *ps, const bool *frozen);
int optim_open(struct optim *o, const struct params *ps, const bool *frozen,
    const struct backend *be,
    double weight_decay, struct err *e) CHR_MUST_CHECK;
void optim_close(struct optim *o);

/* Gradients of this rank's batch to those of all ranks' batches: the sum, for this rank's parts.
 * Nothing else may touch g from the first call to the end. And, for files, the whole sum. */
void optim_reduce(struct optim *o, dev_real *g, int layer);
void optim_reduce_end(struct optim *o, dev_real *g);
void optim_collect(struct optim *o, dev_real *g);
/* L2 norm of all gradients; not finite if any is not */
double optim_norm(const struct optim *o, const dev_real *g);
double optim_clip(double norm, double limit);		/* factor for the gradients; limit 0:
							   none */

/* Moments (o->m or o->v) of parameter i, or its values in an array over parameters, whole, for
 * rank 0; the others send their part. In memory of the host, until the next call. */
const real *optim_moments(struct optim *o, const dev_real *moments, const struct params *ps,
    int i);
const real *optim_values(struct optim *o, const dev_real *w, const struct params *ps, int i);
/* Takes this rank's part of the moments of parameter i. One rank: the place for all of them, to
 * be filled instead. */
void optim_take(const struct optim *o, dev_real *moments, const struct params *ps, int i,
    const real *whole);
dev_real *optim_place(const struct optim *o, dev_real *moments, const struct params *ps, int i);

/* One update of w with gradients g * grad_scale; counts it. With several ranks, only this rank's
 * parts are there then: what layers up to `layer` need (-1: what belongs to none, such as the
 * embedding; INT_MAX: all) is after optim_ready(). */
void optim_step(struct optim *o, dev_real *w, dev_real *g, double lr, double grad_scale);
void optim_ready(struct optim *o, int layer);

/* Linear to base over `warmup` updates, then base * (0.1 + 0.45 * (1 + cos(pi * (s-W)/(total-W)))),
 * a tenth of it at the end. total 0: nobody knows (a pipe without -n), it stays at base. */
struct schedule {
	double base;
	int64_t warmup, total;
};
double optim_lr(const struct schedule *s, int64_t update);	/* update: from 1 */
int64_t optim_warmup(int64_t total);			/* the default: total / 20, at least 1,
							   at most 500 */

#endif
