#include "model/optim.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool decays(const struct param *p)
{
	return param_is(p, PARAM_DECAYS);
}

/* --- buckets --- */

/* The gradients of the head and the last norm are complete before any layer's; the embedding may
 * be the head too. */
static int complete_after(const struct params *ps, const struct param *p)
{
	return param_is(p, PARAM_LATE) ? ps->layers : p->layer;
}

static enum comm_set set_of(const struct param *p)
{
	return p->owner < 0 ? COMM_ALL : COMM_PEERS;
}

static bool is_frozen(const bool *frozen, int i)
{
	return frozen != NULL && frozen[i];
}

static bool fits(const struct optim_bucket *b, const struct params *ps, const struct param *p)
{
	return b->layer == complete_after(ps, p) && b->set == set_of(p) &&
	    b->off + b->n == p->off &&
	    b->n + param_span(p) < INT32_MAX;
}

static int by_layer(const void *a, const void *b)
{
	const struct optim_bucket *x = a, *y = b;

	return x->layer != y->layer ? (x->layer < y->layer) - (x->layer > y->layer)
	    : (x->off > y->off) - (x->off < y->off);
}

static int find_bucket(const struct optim_bucket *b, int n, int64_t off)
{
	for (int i = 0; i < n; i++)
		if (off >= b[i].off && off < b[i].off + b[i].n)
			return i;
	return -1;
}

/* Fills bucket (at most n of ps) from the parameters of one array, which are like those of any
 * other. */
static int cut_buckets(struct optim_bucket *bucket, const struct params *ps, const bool *frozen)
{
	int n = 0;

	for (int i = 0; i < ps->n; i++) {
		const struct param *p = &ps->p[i];

		if (is_frozen(frozen, i) || !params_here(ps, p))
			continue;
		if (n == 0 || !fits(&bucket[n - 1], ps, p))
			bucket[n++] = (struct optim_bucket){ .off = p->off,
			    .layer = complete_after(ps, p), .set = set_of(p) };
		bucket[n - 1].n += param_span(p);
	}
	qsort(bucket, (size_t)n, sizeof *bucket, by_layer);
	return n;
}

/* Part of a bucket that rank r has, if it has any: of the parameter array. */
static int64_t part(const struct optim_bucket *b, int r, int64_t *begin)
{
	int k = comm_place(b->set, r), parts = comm_count(b->set);

	*begin = b->off + comm_cut(b->n, k, parts);
	return comm_cut(b->n, k + 1, parts) - comm_cut(b->n, k, parts);
}

/* Of n entries from off on, those in rank r's part. */
static int64_t common(const struct optim_bucket *b, int r, int64_t off, int64_t n, int64_t *begin)
{
	int64_t end, m = part(b, r, begin);

	end = *begin + m < off + n ? *begin + m : off + n;
	*begin = *begin > off ? *begin : off;
	return end > *begin ? end - *begin : 0;
}

/* Gives every bucket its place among the moments of this rank; returns how many there are. */
static int64_t place_moments(struct optim_bucket *b, int n)
{
	int64_t at = 0, begin;

	for (int i = 0; i < n; i++) {
		b[i].at = at;
		at += part(&b[i], comm_rank(), &begin);
	}
	return at;
}

/* A run ends where the next one begins: the padding between parameters is zero in every array
 * and stays so. */
static void build_runs(struct optim *o, const struct params *ps)
{
	for (int i = 0; i < ps->n; i++) {
		const struct param *p = &ps->p[i];
		const struct optim_bucket *b = o->of[i] < 0 ? NULL : &o->bucket[o->of[i]];
		struct optim_run *r = o->nruns > 0 ? &o->run[o->nruns - 1] : NULL;
		int64_t own, off, at, n = b == NULL || !params_here(ps, p) ? 0
		    : common(b, comm_rank(), p->off, param_span(p), &off);

		if (n == 0)
			continue;
		part(b, comm_rank(), &own);
		at = b->at + off - own;
		if (r == NULL || r->decay != decays(p) || r->off + r->n != off ||
		    r->at + r->n != at) {
			r = &o->run[o->nruns++];
			*r = (struct optim_run){ off, at, 0, decays(p) };
		}
		r->n += n;
	}
}

/* --- memory --- */

static int64_t largest(const struct params *ps)
{
	int64_t n = 0;

	for (int i = 0; i < ps->n; i++)
		n = param_span(&ps->p[i]) > n ? param_span(&ps->p[i]) : n;
	return n;
}

static int64_t scratch_size(const struct optim_bucket *b, int n)
{
	int64_t most = 0;

	for (int i = 0; i < n; i++)
		most = comm_scratch(b[i].n, b[i].set) > most ? comm_scratch(b[i].n, b[i].set)
		    : most;
	return most;
}

void optim_plan(struct mem_plan *p, const struct params *ps, const bool *frozen)
{
	struct optim_bucket *b = mem_alloc(((size_t)ps->n + 1) * sizeof *b);
	int n = cut_buckets(b, ps, frozen);

	mem_plan_add(p, "optimizer", 2 * place_moments(b, n) * (int64_t)sizeof(real));
	if (comm_size() > 1)
		mem_plan_add(p, "exchange with other ranks", (scratch_size(b, n) + largest(ps)) *
		    (int64_t)sizeof(real));
	mem_free(b);
}

static int open_exchange(struct optim *o, const struct params *ps, struct err *e)
{
	int64_t size = scratch_size(o->bucket, o->nbuckets);

	if (comm_size() == 1)
		return 0;
	for (int i = 0; i < ps->n; i++)
		if (o->of[i] >= 0 && param_span(&ps->p[i]) > INT32_MAX)
			return err_set(e, EX_USAGE,
			    "%s: is too large to be exchanged between ranks", ps->p[i].name);
	o->scratch = mem_alloc((size_t)size * sizeof *o->scratch);
	if (comm_rank() == 0)
		o->whole = mem_alloc((size_t)largest(ps) * sizeof *o->whole);
	comm_exchange_open(o->scratch, size, o->nbuckets);
	return 0;
}

/* Experts are alike to those who hold others in their place. */
static bool uneven(const struct params *ps, const bool *frozen)
{
	for (int i = 1; frozen != NULL && i < ps->n; i++)
		if (ps->p[i].owner >= 0 && ps->p[i].expert > 0 &&
		    frozen[i] != frozen[params_get(ps, ps->p[i].kind, ps->p[i].layer, 0) - ps->p])
			return true;
	return false;
}

int optim_open(struct optim *o, const struct params *ps, const bool *frozen,
    const struct backend *be,
    double weight_decay, struct err *e)
{
	int64_t own;

	*o = (struct optim){ .be = be, .weight_decay = weight_decay, .total = ps->total };
	if (comm_count(COMM_GROUP) > 1 && uneven(ps, frozen))
		return err_set(e, EX_USAGE, "some experts are frozen and others are not: divided "
		    "over ranks, all or none can be");
	o->bucket = calloc((size_t)ps->n, sizeof *o->bucket);
	o->of = calloc((size_t)ps->n, sizeof *o->of);
	o->run = calloc((size_t)ps->n, sizeof *o->run);
	if (o->bucket == NULL || o->of == NULL || o->run == NULL) {
		optim_close(o);
		return err_set(e, EX_OSERR, "no memory for the optimizer");
	}
	o->nbuckets = cut_buckets(o->bucket, ps, frozen);
	own = place_moments(o->bucket, o->nbuckets);
	for (int i = 0; i < ps->n; i++)
		o->of[i] = is_frozen(frozen, i) ? -1 : find_bucket(o->bucket, o->nbuckets,
		    ps->p[i].off);
	build_runs(o, ps);
	if (o->nbuckets == 0) {
		optim_close(o);
		return err_set(e, EX_USAGE, "everything is frozen: nothing to train");
	}
	own = own > 0 ? own : 1;	/* of a small model, many ranks have nothing */
	o->m = be->alloc(be, (size_t)own * sizeof *o->m);
	o->v = be->alloc(be, (size_t)own * sizeof *o->v);
	if (o->m != NULL && o->v != NULL && open_exchange(o, ps, e) == 0)
		return 0;
	if (o->m == NULL || o->v == NULL)
		err_set(e, EX_OSERR, "no memory for the optimizer's moments");
	optim_close(o);
	return -1;
}

void optim_close(struct optim *o)
{
	if (o->scratch != NULL) {
		optim_ready(o, INT_MAX);
		comm_exchange_close();
	}
	if (o->m != NULL)
		o->be->free(o->be, o->m);
	if (o->v != NULL)
		o->be->free(o->be, o->v);
	free(o->bucket);
	free(o->of);
	free(o->run);
	mem_free(o->scratch);
	mem_free(o->whole);
	backend_mirror_free(&o->seen);
	backend_mirror_free(&o->gsum);
	backend_mirror_free(&o->wsum);
	memset(o, 0, sizeof *o);
}

/* --- between ranks --- */

/* An array over parameters as the exchange, which works in memory of the host, finds it. */
static real *on_host(struct optim *o, dev_real *x, struct mirror *m)
{
	return backend_draft(o->be, x, m, (size_t)o->total * sizeof(real));
}

void optim_reduce(struct optim *o, dev_real *g, int layer)
{
	real *host = on_host(o, g, &o->gsum);

	for (; o->begun < o->nbuckets && o->bucket[o->begun].layer >= layer; o->begun++) {
		const struct optim_bucket *b = &o->bucket[o->begun];

		backend_fetch(o->be, host + b->off, g + b->off, (size_t)b->n * sizeof *host);
		comm_reduce_begin(host + b->off, b->n, b->set);
	}
}

void optim_reduce_end(struct optim *o, dev_real *g)
{
	real *host = on_host(o, g, &o->gsum);
	int64_t begin, n;

	if (comm_size() == 1)
		return;
	optim_reduce(o, g, -1);
	comm_reduce_end();
	o->begun = 0;
	for (int i = 0; i < o->nbuckets; i++) {
		n = part(&o->bucket[i], comm_rank(), &begin);
		backend_settle(o->be, g + begin, host + begin, (size_t)n * sizeof *host);
	}
}

/* In the order in which a forward pass needs weights: what belongs to no layer first. */
static const struct optim_bucket *needed(const struct optim *o, int i)
{
	return &o->bucket[o->nbuckets - 1 - i];
}

static void begin_gathers(struct optim *o, dev_real *x, struct mirror *m)
{
	int64_t begin, n;

	if (comm_size() == 1)
		return;
	o->gathering = x;
	o->gathered = on_host(o, x, m);
	o->settled = 0;
	for (int i = 0; i < o->nbuckets; i++) {
		const struct optim_bucket *b = needed(o, i);

		n = part(b, comm_rank(), &begin);
		backend_fetch(o->be, o->gathered + begin, x + begin, (size_t)n * sizeof(real));
		comm_gather_begin(o->gathered + b->off, b->n, b->set);
	}
}

void optim_ready(struct optim *o, int layer)
{
	int n = 0;

	while (n < o->nbuckets && needed(o, n)->layer <= layer)
		n++;
	comm_gather_end(n);
	for (; o->gathering && o->settled < n; o->settled++) {
		const struct optim_bucket *b = needed(o, o->settled);

		backend_settle(o->be, o->gathering + b->off, o->gathered + b->off,
		    (size_t)b->n * sizeof(real));
	}
}

void optim_collect(struct optim *o, dev_real *g)
{
	begin_gathers(o, g, &o->gsum);
	optim_ready(o, INT_MAX);
}

/* Does rank r hold parameter p? */
static bool holds(const struct param *p, int r)
{
	return p->owner < 0 || p->owner == comm_place(COMM_GROUP, r);
}

/* One rank: where its moments begin. */
static int64_t place_of(const struct optim *o, const struct params *ps, int i)
{
	const struct optim_bucket *b = &o->bucket[o->of[i]];

	return b->at + ps->p[i].off - b->off;
}

static const real *seen(struct optim *o, const dev_real *x, int64_t n)
{
	return backend_read(o->be, x, &o->seen, (size_t)n * sizeof(real));
}

const real *optim_moments(struct optim *o, const dev_real *moments, const struct params *ps,
    int i)
{
	const struct param *p = &ps->p[i];
	const struct optim_bucket *b = &o->bucket[o->of[i]];
	int64_t count[comm_size()], begin, own;

	if (comm_size() == 1)
		return seen(o, moments + place_of(o, ps, i), param_size(p));
	for (int r = 0; r < comm_size(); r++)
		count[r] = holds(p, r) ? common(b, r, p->off, param_size(p), &begin) : 0;
	common(b, comm_rank(), p->off, param_size(p), &begin);
	part(b, comm_rank(), &own);
	comm_gather(o->whole, seen(o, moments + b->at + (begin - own), count[comm_rank()]), count);
	return o->whole;
}

const real *optim_values(struct optim *o, const dev_real *w, const struct params *ps, int i)
{
	const struct param *p = &ps->p[i];
	int64_t count[comm_size()];

	if (holds(p, 0))
		return comm_rank() == 0 ? seen(o, w + p->off, param_size(p)) : NULL;
	for (int r = 0; r < comm_size(); r++)
		count[r] = r == p->owner ? param_size(p) : 0;	/* its owner in the first group */
	comm_gather(o->whole, seen(o, w + p->off, count[comm_rank()]), count);
	return o->whole;
}

void optim_take(const struct optim *o, dev_real *moments, const struct params *ps, int i,
    const real *whole)
{
	const struct param *p = &ps->p[i];
	const struct optim_bucket *b = &o->bucket[o->of[i]];
	int64_t begin, own, n = params_here(ps, p) ? common(b, comm_rank(), p->off, param_size(p),
	    &begin) : 0;

	if (n == 0)
		return;
	part(b, comm_rank(), &own);
	o->be->put(o->be, moments + b->at + (begin - own), whole + (begin - p->off),
	    (size_t)n * sizeof *whole);
}

dev_real *optim_place(const struct optim *o, dev_real *moments, const struct params *ps, int i)
{
	return comm_size() > 1 ? NULL : moments + place_of(o, ps, i);
}

/* --- updates --- */

double optim_norm(const struct optim *o, const dev_real *g)
{
	double sum = 0;

	for (int i = 0; i < o->nruns; i++)
		sum += o->be->sumsq(o->be, g + o->run[i].off, o->run[i].n);
	comm_sum(&sum, 1);
	return sqrt(sum);
}

double optim_clip(double norm, double limit)
{
	return limit > 0 && norm > limit ? limit / norm : 1;
}

void optim_step(struct optim *o, dev_real *w, dev_real *g, double lr, double grad_scale)
{
	o->updates++;
	for (int i = 0; i < o->nruns; i++) {
		int64_t off = o->run[i].off, at = o->run[i].at;
		struct adamw_args a = {
			.w = w + off, .g = g + off, .m = o->m + at, .v = o->v + at,
			    .n = o->run[i].n,
			.lr = lr, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8,
			.weight_decay = o->run[i].decay ? o->weight_decay : 0,
			.grad_scale = grad_scale, .step = o->updates,
		};

		o->be->adamw(o->be, &a);
	}
	begin_gathers(o, w, &o->wsum);
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
