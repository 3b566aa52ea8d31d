#include "optim.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "comm.h"

static bool decays(const struct param *p)
{
	return p->ndim >= 2 && p->kind != P_EMBED;
}

static int64_t span(const struct params *ps, int i)
{
	return (i + 1 < ps->n ? ps->p[i + 1].off : ps->total) - ps->p[i].off;
}

/* Moments of parameter i that are this rank's: of all, from *at on. */
static int64_t owned(const struct optim *o, int64_t at, int64_t n, int64_t *begin)
{
	int64_t end = at + n < o->first + o->own ? at + n : o->first + o->own;

	*begin = at > o->first ? at : o->first;
	return end > *begin ? end - *begin : 0;
}

static void place(struct optim *o, const struct params *ps, const bool *frozen)
{
	int64_t at = 0;

	for (int i = 0; i < ps->n; i++) {
		bool is = frozen != NULL && frozen[i];

		o->at[i] = is ? -1 : at;
		at += is ? 0 : span(ps, i);
	}
}

/* Parts with as many moments each. Frozen parameters belong to the part that ends after them. */
static void cut(struct optim *o, const struct params *ps)
{
	int n = comm_size(), r = 1;

	for (int k = 0; k <= n; k++)
		o->moment_cut[k] = o->total / n * k + o->total % n * k / n;
	for (int i = 0; i < ps->n; i++)
		for (; o->at[i] >= 0 && r < n && o->moment_cut[r] < o->at[i] + span(ps, i); r++)
			o->cut[r] = ps->p[i].off + o->moment_cut[r] - o->at[i];
	o->cut[0] = 0;
	o->cut[n] = ps->total;
	o->first = o->moment_cut[comm_rank()];
	o->own = o->moment_cut[comm_rank() + 1] - o->first;
}

/* A run ends where the next one begins: the padding between parameters is zero in every array and
 * stays so. */
static void build_runs(struct optim *o, const struct params *ps)
{
	struct optim_run *r = NULL;

	for (int i = 0; i < ps->n; i++) {
		int64_t begin, n = o->at[i] < 0 ? 0 : owned(o, o->at[i], span(ps, i), &begin);

		if (n == 0) {
			r = NULL;
			continue;
		}
		if (r == NULL || r->decay != decays(&ps->p[i])) {
			r = &o->run[o->nruns++];
			*r = (struct optim_run){ ps->p[i].off + begin - o->at[i], begin - o->first, 0, decays(&ps->p[i]) };
		}
		r->n += n;
	}
}

static int64_t elements(const struct params *ps, const bool *frozen)
{
	int64_t n = 0;

	for (int i = 0; i < ps->n; i++)
		n += frozen != NULL && frozen[i] ? 0 : span(ps, i);
	return n;
}

/* Moments of the rank that has the most. */
static int64_t share(int64_t total)
{
	return total / comm_size() + (total % comm_size() > 0);
}

static int64_t largest(const struct params *ps)
{
	int64_t n = 0;

	for (int i = 0; i < ps->n; i++)
		n = span(ps, i) > n ? span(ps, i) : n;
	return n;
}

int64_t optim_bytes(const struct params *ps, const bool *frozen)
{
	return 2 * share(elements(ps, frozen)) * (int64_t)sizeof(real);
}

int64_t optim_comm_bytes(const struct params *ps)
{
	return comm_size() == 1 ? 0 : (comm_scratch() + largest(ps)) * (int64_t)sizeof(real);
}

static bool open_exchange(struct optim *o, const struct params *ps)
{
	if (comm_size() == 1)
		return true;
	o->scratch = calloc((size_t)comm_scratch(), sizeof *o->scratch);
	o->whole = calloc((size_t)largest(ps), sizeof *o->whole);
	return o->scratch != NULL && o->whole != NULL;
}

int optim_open(struct optim *o, const struct params *ps, const bool *frozen, const struct backend *be,
    double weight_decay, struct err *e)
{
	*o = (struct optim){ .be = be, .total = elements(ps, frozen), .weight_decay = weight_decay };
	if (o->total == 0)
		return err_set(e, EX_USAGE, "everything is frozen: nothing to train");
	if (comm_size() > 1 && be != &backend_cpu)
		return err_set(e, EX_UNAVAILABLE, "training on several ranks needs the backend cpu");
	o->m = be->alloc((size_t)share(o->total) * sizeof *o->m);
	o->v = be->alloc((size_t)share(o->total) * sizeof *o->v);
	o->at = calloc((size_t)ps->n, sizeof *o->at);
	o->run = calloc((size_t)ps->n, sizeof *o->run);
	o->cut = calloc((size_t)comm_size() + 1, sizeof *o->cut);
	o->moment_cut = calloc((size_t)comm_size() + 1, sizeof *o->moment_cut);
	if (o->m == NULL || o->v == NULL || o->at == NULL || o->run == NULL || o->cut == NULL || o->moment_cut == NULL ||
	    !open_exchange(o, ps)) {
		optim_close(o);
		return err_set(e, EX_OSERR, "no memory for the optimizer's moments");
	}
	place(o, ps, frozen);
	cut(o, ps);
	build_runs(o, ps);
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
	free(o->cut);
	free(o->moment_cut);
	free(o->scratch);
	free(o->whole);
	memset(o, 0, sizeof *o);
}

void optim_reduce(const struct optim *o, real *g)
{
	comm_reduce_scatter(g, o->cut, o->scratch);
}

void optim_collect(const struct optim *o, real *g)
{
	comm_allgather(g, o->cut, o->scratch);
}

const real *optim_whole(const struct optim *o, const real *moments, const struct params *ps, int i)
{
	int64_t at = o->at[i], n = param_size(&ps->p[i]), count[comm_size()], begin;

	if (comm_size() == 1)
		return moments + at;
	for (int r = 0; r < comm_size(); r++) {
		int64_t from = o->moment_cut[r] > at ? o->moment_cut[r] : at,
		    to = o->moment_cut[r + 1] < at + n ? o->moment_cut[r + 1] : at + n;

		count[r] = to > from ? to - from : 0;
	}
	owned(o, at, n, &begin);
	comm_gather(o->whole, moments + (begin - o->first), count);
	return o->whole;
}

void optim_take(const struct optim *o, real *moments, int i, const real *whole, int64_t n)
{
	int64_t begin, m = owned(o, o->at[i], n, &begin);

	if (m > 0)
		memcpy(moments + (begin - o->first), whole + (begin - o->at[i]), (size_t)m * sizeof *moments);
}

double optim_norm(const struct optim *o, const real *g)
{
	double sum = 0;

	for (int i = 0; i < o->nruns; i++)
		sum += o->be->sumsq(g + o->run[i].off, o->run[i].n);
	comm_sum(&sum, 1);
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
	comm_allgather(w, o->cut, o->scratch);
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
