#include "optim.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool decays(const struct param *p)
{
	return p->ndim >= 2 && p->kind != P_EMBED;
}

static int64_t span(const struct params *ps, int i)
{
	return (i + 1 < ps->n ? ps->p[i + 1].off : ps->total) - ps->p[i].off;
}

/* A run ends where the next one begins: the padding between parameters is zero in every array and
 * stays so. */
static void build_runs(struct optim *o, const struct params *ps, const bool *frozen)
{
	struct optim_run *r = NULL;
	int64_t at = 0;

	for (int i = 0; i < ps->n; i++) {
		if (frozen != NULL && frozen[i]) {
			o->at[i] = -1;
			r = NULL;
			continue;
		}
		if (r == NULL || r->decay != decays(&ps->p[i])) {
			r = &o->run[o->nruns++];
			*r = (struct optim_run){ ps->p[i].off, at, 0, decays(&ps->p[i]) };
		}
		o->at[i] = at;
		at += span(ps, i);
		r->n += span(ps, i);
	}
}

static int64_t elements(const struct params *ps, const bool *frozen)
{
	int64_t n = 0;

	for (int i = 0; i < ps->n; i++)
		n += frozen != NULL && frozen[i] ? 0 : span(ps, i);
	return n;
}

int64_t optim_bytes(const struct params *ps, const bool *frozen)
{
	return 2 * elements(ps, frozen) * (int64_t)sizeof(real);
}

int optim_open(struct optim *o, const struct params *ps, const bool *frozen, const struct backend *be,
    double weight_decay, struct err *e)
{
	*o = (struct optim){ .be = be, .total = elements(ps, frozen), .weight_decay = weight_decay };
	if (o->total == 0)
		return err_set(e, EX_USAGE, "everything is frozen: nothing to train");
	o->m = be->alloc((size_t)o->total * sizeof *o->m);
	o->v = be->alloc((size_t)o->total * sizeof *o->v);
	o->at = calloc((size_t)ps->n, sizeof *o->at);
	o->run = calloc((size_t)ps->n, sizeof *o->run);
	if (o->m == NULL || o->v == NULL || o->at == NULL || o->run == NULL) {
		optim_close(o);
		return err_set(e, EX_OSERR, "no memory for the optimizer's moments");
	}
	build_runs(o, ps, frozen);
	return 0;
}

void optim_close(struct optim *o)
{
	if (o->m != NULL)
		o->be->free(o->m);
	if (o->v != NULL)
		o->be->free(o->v);
	free(o->at);
	free(o->run);
	memset(o, 0, sizeof *o);
}

double optim_norm(const struct optim *o, const real *g)
{
	double sum = 0;

	for (int i = 0; i < o->nruns; i++)
		sum += o->be->sumsq(g + o->run[i].off, o->run[i].n);
	return sqrt(sum);
}

double optim_clip(double norm, double limit)
{
	return limit > 0 && norm > limit ? limit / norm : 1;
}

void optim_step(struct optim *o, real *w, real *g, double lr, double grad_scale)
{
	o->updates++;
	for (int i = 0; i < o->nruns; i++) {
		int64_t off = o->run[i].off, at = o->run[i].at;
		struct adamw_args a = {
			.w = w + off, .g = g + off, .m = o->m + at, .v = o->v + at, .n = o->run[i].n,
			.lr = lr, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8,
			.weight_decay = o->run[i].decay ? o->weight_decay : 0,
			.grad_scale = grad_scale, .step = o->updates,
		};

		o->be->adamw(&a);
	}
}

double optim_lr(const struct schedule *s, int64_t update)
{
	double x;

	if (update < s->warmup)
		return s->base * (double)update / (double)s->warmup;
	if (s->total <= s->warmup)
		return s->base;
	x = (double)(update - s->warmup) / (double)(s->total - s->warmup);
	return s->base * (0.1 + 0.45 * (1 + cos(M_PI * fmin(x, 1))));
}

int64_t optim_warmup(int64_t total)
{
	int64_t w = total / 20;

	return w < 1 ? 1 : w > 500 ? 500 : w;
}
