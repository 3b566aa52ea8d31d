/*
 * optim: AdamW (Loshchilov, Hutter 2019, arXiv:1711.05101) over the flat parameter array, global-norm clipping, and the
 * learning rate of each update.
 *
 *	optim_open(&o, &m.par, NULL, m.be, weight_decay, &e);
 *	optim_reduce(&o, m.g);
 *	norm = optim_norm(&o, m.g);
 *	optim_step(&o, m.w, m.g, optim_lr(&schedule, o.updates + 1), optim_clip(norm, 1.0));
 *
 * Frozen parameters keep their values: they have no moments, and their gradients do not count in the norm.
 *
 * Ranks (comm.h) divide the moments (ZeRO stage 1, Rajbhandari et al. 2020, arXiv:1910.02054): the parameter array is cut
 * into one part per rank, with as many moments in each. A rank gets the sum over ranks of its part of the gradients,
 * updates its part of the weights, and hands it to the others. All ranks make the same calls.
 *
 * betas 0.9 and 0.95, eps 1e-8. Weight decay acts on matrices; vectors (norms) and the embedding (also when it is the
 * tied head) have none.
 */
#ifndef CHR_OPTIM_H
#define CHR_OPTIM_H

#include "backend.h"
#include "config.h"
#include "err.h"

struct optim {
	const struct backend *be;
	real *m, *v;			/* (own) first and second moments of what is not frozen, on the device: this rank's */
	int64_t total, updates;		/* elements over all ranks; updates done so far */
	int64_t *at;			/* (n of the parameters) where each one's moments begin of all; -1: frozen */
	int64_t first, own;		/* the moments of this rank are first .. first + own of all */
	int64_t *cut, *moment_cut;	/* (ranks + 1) where each rank's part of the parameters and of the moments begins */
	real *scratch;			/* comm_scratch() reals; NULL: one rank */
	real *whole;			/* moments of the largest parameter, on the way to a file; NULL: one rank */
	double weight_decay;
	int nruns;			/* of this rank's part: neighbours that share their weight decay go in one call */
	struct optim_run { int64_t off, at, n; bool decay; } *run;
};

/* frozen: (n of ps), or NULL for none. optim_bytes: what optim_open takes on the device for moments; optim_comm_bytes: to
 * exchange with other ranks. */
int64_t optim_bytes(const struct params *ps, const bool *frozen);
int64_t optim_comm_bytes(const struct params *ps);
int optim_open(struct optim *o, const struct params *ps, const bool *frozen, const struct backend *be,
    double weight_decay, struct err *e);
void optim_close(struct optim *o);

/* Gradients of this rank's batch to those of all ranks' batches: the sum, for this rank's part; and, for files, all of it. */
void optim_reduce(const struct optim *o, real *g);
void optim_collect(const struct optim *o, real *g);
double optim_norm(const struct optim *o, const real *g);	/* L2 norm of all gradients; not finite if any is not */
double optim_clip(double norm, double limit);		/* factor for the gradients; limit 0: none */

/* Moments (o->m or o->v) of parameter i, whole, for rank 0; the others send their part. With one rank, where they are. */
const real *optim_whole(const struct optim *o, const real *moments, const struct params *ps, int i);
/* Takes this rank's part of n values, the moments of parameter i. */
void optim_take(const struct optim *o, real *moments, int i, const real *whole, int64_t n);

/* One update of w with gradients g * grad_scale; counts it. */
void optim_step(struct optim *o, real *w, real *g, double lr, double grad_scale);

/* Linear to base over `warmup` updates, then base * (0.1 + 0.45 * (1 + cos(pi * (s-W)/(total-W)))),
 * a tenth of it at the end. total 0: nobody knows (a pipe without -n), it stays at base. */
struct schedule {
	double base;
	int64_t warmup, total;
};
double optim_lr(const struct schedule *s, int64_t update);	/* update: from 1 */
int64_t optim_warmup(int64_t total);			/* the default: total / 20, at least 1, at most 500 */

#endif
