/*
 * route_loss: loss terms of the router. A view is what one set of terms is computed on: a layer
 * in format 2, the mean over layers in format 1.
 */
#include "model/route_loss.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/comm.h"
#include "base/mem.h"
#include "base/pool.h"
#include "base/topk.h"
#include "model/route_int.h"

#define MASS_MIN ((real)1e-9)	/* the reference's clamp under logarithms */

struct route_scratch {
	int64_t R;
	int E, K, workers;
	real *mean, *dmean;	/* (R, E) format 1 */
	int32_t *ids;		/* (R, K) choices of the mean */
	real *q, *dq;		/* per worker: (steps+1, E) */
	uint8_t *in_set;	/* per worker: (E) */
	double *mass;		/* (Ls, E) of the batch */
};

struct view {
	const struct route_in *in;
	const struct route_lambda *lam;
	const struct route_count *n;
	double offsets;		/* of the lookahead head that have any pair */
	const real *p;		/* (R, E) */
	const int32_t *ids;	/* (R, K) */
	real *dp;		/* (R, E) or NULL */
	int layer;		/* block of the lookahead head */
	double share;		/* of this view in the mean over layers */
	struct route_sums sum;
};

/* --- a step --- */

static size_t table_size(const struct config *c)
{
	return (size_t)c->num_sparse * (size_t)c->num_experts;
}

void route_step_open(struct route_step *s, const struct config *c)
{
	*s = (struct route_step){ .cfg = c };
	s->load = mem_alloc((table_size(c) + 1) * sizeof *s->load);
	s->mass = mem_alloc((table_size(c) + 1) * sizeof *s->mass);
}

void route_step_close(struct route_step *s)
{
	mem_free(s->load);
	mem_free(s->mass);
	*s = (struct route_step){0};
}

void route_step_clear(struct route_step *s)
{
	s->n = (struct route_count){0};
	s->sum = (struct route_sums){0};
	memset(s->load, 0, table_size(s->cfg) * sizeof *s->load);
	memset(s->mass, 0, table_size(s->cfg) * sizeof *s->mass);
}

void route_step_rows(struct route_step *s, const struct route_in *in)
{
	int most = in->cfg->lookahead_steps, steps = most > 0 ? most : 1;
	struct route_count own = {0};

	for (int64_t r = 0; r < (int64_t)in->B * in->T; r++) {
		for (int k = 0; k <= steps; k++)
			own.pairs[k] += route_linked(in, r, k);
		own.full += route_linked(in, r, most);
	}
	comm_sum((double *)&own, sizeof own / sizeof(double));
	for (int k = 0; k <= steps; k++)
		s->n.pairs[k] += own.pairs[k];
	s->n.full += own.full;
}

/* comm_sum() adds what is there already too, so that is rank 0's alone. */
void route_step_load(struct route_step *s, const struct route_in *in)
{
	int E = in->cfg->num_experts, K = in->cfg->num_experts_per_tok, Ls = in->cfg->num_sparse;
	int64_t R = (int64_t)in->B * in->T;

	if (comm_rank() > 0)
		memset(s->load, 0, table_size(in->cfg) * sizeof *s->load);
	for (int64_t r = 0; r < R; r++) {
		if (in->doc_start[r] < 0)
			continue;
		for (int i = 0; i < Ls; i++)
			for (int k = 0; k < K; k++)
				s->load[i * E + in->topk[((int64_t)i * R + r) * K + k]]++;
	}
	comm_sum(s->load, Ls * E);
}

void route_step_end(struct route_step *s)
{
	comm_sum((double *)&s->sum, sizeof s->sum / sizeof(double));
	comm_sum(s->mass, (int)table_size(s->cfg));
}

/* The offset where the lookahead head begins to learn. */
static int first_offset(const struct config *c)
{
	return c->format == 2 ? 0 : 1;
}

static double offsets(const struct config *c, const struct route_count *n)
{
	double found = 0;

	for (int k = first_offset(c); k <= c->lookahead_steps; k++)
		found += n->pairs[k] > 0;
	return found;
}

/* --- values --- */

static double mean(double sum, double n)
{
	return n > 0 ? sum / n : 0;
}

/* f: share of each expert in the load; P: its mean probability. */
static double balance(const struct route_step *s, const double *mass)
{
	const struct config *c = s->cfg;
	double unit = c->format == 1 ? (double)c->num_experts
	    : (double)c->num_experts / c->num_experts_per_tok / c->num_sparse;
	double n = s->n.pairs[0], value = 0;

	for (int i = 0; i < c->num_sparse; i++) {
		double layer = 0;

		for (int e = i * c->num_experts; e < (i + 1) * c->num_experts; e++)
			layer += unit * (s->load[e] / n) * mass[e] / n;
		value += layer;
	}
	return value;
}

/* The values of the step's terms, or what a batch's sums are worth of them. */
static void terms(const struct route_step *s, const struct route_sums *x, const double *mass,
    struct route_terms *t)
{
	const struct config *c = s->cfg;
	const double *n = s->n.pairs, views = c->format == 2 ? c->num_sparse : 1;
	double found = offsets(c, &s->n) * views;

	*t = (struct route_terms){0};
	if (c->num_sparse == 0 || n[0] == 0)
		return;
	t->balance = balance(s, mass);
	t->temporal = mean(x->temporal, n[1] * views);
	t->locality = mean(x->locality, n[1] * views);
	for (int k = first_offset(c); k <= c->lookahead_steps; k++) {
		t->lookahead += mean(x->lookahead[k], n[k] * found);
		t->topk += mean(x->topk[k], n[k] * found);
	}
	t->union_ = mean(x->union_, s->n.full * views);
	t->anchor = x->anchor / (n[0] * c->num_sparse);
	t->ahead = mean(x->ahead, n[0] * (c->num_sparse - 1));
}

void route_step_terms(const struct route_step *s, struct route_terms *t)
{
	terms(s, &s->sum, s->mass, t);
}

static double weighted(const struct route_lambda *lam, const struct route_terms *t)
{
	return lam->balance * t->balance + lam->temporal * t->temporal +
	    lam->locality * t->locality + lam->lookahead * t->lookahead + lam->topk * t->topk +
	    lam->union_ * t->union_ + lam->anchor * t->anchor + lam->ahead * t->ahead;
}

static void add_sums(struct route_sums *s, const struct route_sums *part)
{
	double *to = (double *)s;	/* a record of doubles alone */
	const double *from = (const double *)part;

	for (size_t i = 0; i < sizeof *s / sizeof *to; i++)
		to[i] += from[i];
}

/* --- rows --- */

/* set[e]: is e among the ids? */
static void mark(uint8_t *set, int E, const int32_t *ids, int K)
{
	memset(set, 0, (size_t)E);
	for (int k = 0; k < K; k++)
		set[ids[k]] = 1;
}

static real at_least_min(real x)
{
	return x < MASS_MIN ? MASS_MIN : x;
}

/* temporal and locality of the pair (r, r+1) */
static void pair_terms(struct view *v, int64_t r)
{
	const struct route_in *in = v->in;
	int E = in->cfg->num_experts, K = in->cfg->num_experts_per_tok;
	const real *a = v->p + r * E, *b = a + E;
	const int32_t *ids = v->ids + r * K;
	double n = v->n->pairs[1], sq = 0;
	real mass = 0;

	for (int e = 0; e < E; e++)
		sq += (double)(b[e] - a[e]) * (double)(b[e] - a[e]);
	for (int k = 0; k < K; k++)
		mass += b[ids[k]];
	mass = at_least_min(mass);
	v->sum.temporal += sq;
	v->sum.locality += -log((double)mass / K);
	if (!v->dp)
		return;
	real gt = (real)(2 * v->lam->temporal * v->share / n),
	    gl = (real)(-v->lam->locality * v->share / n) / mass;
	real *da = v->dp + r * E, *db = da + E;

	for (int e = 0; e < E; e++) {
		db[e] += gt * (b[e] - a[e]);
		da[e] -= gt * (b[e] - a[e]);
	}
	for (int k = 0; k < K && mass > MASS_MIN; k++)
		db[ids[k]] += gl;
}

static void anchor_term(struct view *v, int64_t r, const real *ref)
{
	int E = v->in->cfg->num_experts;
	const real *p = v->p + r * E;
	real g = (real)(v->lam->anchor * v->share / v->n->pairs[0]);

	for (int e = 0; e < E; e++) {
		real lr = (real)log((double)(at_least_min(p[e]) / at_least_min(ref[e])));

		v->sum.anchor += (double)(p[e] * lr);
		if (v->dp)
			v->dp[r * E + e] += g * (lr + 1);
	}
}

/* -ln of the share of each of K ids in the scores of logits z, summed; dz (E, may be NULL) gets g
 * times the gradient of their mean. Where scores are sigmoids s that sum to S,
 * d ln(s_j / S) / dz_e = (1 - s_e) ([e is j] - s_e / S). */
static double shares_entropy(const struct router *router, const real *z, int E, const int32_t *ids,
    int K, real g, real *dz)
{
	real q[E], sum = router->sigmoid ? router_shares(router, z, E, q) : 0;
	double ln = router->sigmoid ? log((double)at_least_min(sum)) : host_softmax(z, E, q);
	uint8_t set[E];
	double ce = 0;

	mark(set, E, ids, K);
	for (int k = 0; k < K; k++) {
		double x = (double)z[ids[k]];

		ce += ln - (router->sigmoid ? -log1p(exp(-x)) : x);
	}
	for (int e = 0; dz && e < E; e++)
		dz[e] += g * (router->sigmoid ? 1 - q[e] * sum : 1) *
		    (q[e] - (set[e] ? (real)1 / K : 0));
	return ce;
}

/* What the layer before says learns the router's choice, and the router the choice of what was
 * said: both give way, or routers stay as hard to foresee as they are. z, dz: row r of in->ahead
 * for layer i, and its gradient; dz NULL: no gradients. */
static void ahead_term(struct view *v, int i, int64_t r, const real *z, real *dz)
{
	int E = v->in->cfg->num_experts, K = v->in->cfg->num_experts_per_tok;
	const real *p = v->p + r * E;
	int32_t said[K];
	real g = (real)(v->lam->ahead * v->share / v->n->pairs[0]);
	double ce = shares_entropy(route_router(v->in, i), z, E, v->ids + r * K, K, g, dz);

	route_said(v->in, i, r, said);
	for (int k = 0; k < K; k++) {
		real ps = p[said[k]];

		ce -= log((double)at_least_min(ps));
		if (dz && ps > MASS_MIN)
			v->dp[r * E + said[k]] -= g / K / ps;
	}
	v->sum.ahead += ce / K;
}

/* Cross-entropy and top-k mass of offset k at row r. Format 1 learns the router's probabilities,
 * format 2 its choices. */
static void offset_terms(struct view *v, int64_t r, int k, const real *q, real *dq)
{
	const struct config *c = v->in->cfg;
	int E = c->num_experts, K = c->num_experts_per_tok;
	const real *p = v->p + (r + k) * E;
	const int32_t *ids = v->ids + (r + k) * K;
	double n = v->n->pairs[k] * v->offsets, ce = 0;
	real mass = 0, g = (real)(v->lam->lookahead * v->share / n);
	uint8_t set[E];

	mark(set, E, ids, K);
	for (int e = 0; e < E; e++) {
		real target = c->format == 1 ? p[e] : set[e] ? (real)1 / K : 0;
		real qe = at_least_min(q[e]);

		if (target == 0)
			continue;
		ce -= (double)target * log((double)qe);
		if (q[e] > MASS_MIN)
			dq[e] -= g * target / qe;
	}
	for (int j = 0; j < K; j++)
		mass += q[ids[j]];
	mass = at_least_min(mass);
	v->sum.lookahead[k] += ce;
	v->sum.topk[k] += -log((double)mass / K);
	for (int j = 0; j < K && mass > MASS_MIN; j++)
		dq[ids[j]] -= (real)(v->lam->topk * v->share / n) / mass;
}

/* Mass of the best offset on everything needed in the next steps tokens. */
static void union_term(struct view *v, int64_t r, const real *q, real *dq, uint8_t *set)
{
	const struct config *c = v->in->cfg;
	int E = c->num_experts, K = c->num_experts_per_tok, size = 0;
	real mass = 0;

	memset(set, 0, (size_t)E);
	for (int k = 1; k <= c->lookahead_steps; k++)
		for (int j = 0; j < K; j++)
			set[v->ids[(r + k) * K + j]] = 1;
	for (int pass = 0; pass < 2; pass++) {
		real g = pass ? (real)(v->lam->union_ * v->share / v->n->full) / mass : 0;

		for (int e = 0; e < E; e++) {
			int best = 1;

			if (!set[e])
				continue;
			for (int k = 2; k <= c->lookahead_steps; k++)
				if (q[k * E + e] > q[best * E + e])
					best = k;
			if (pass)
				dq[best * E + e] -= g;
			else
				mass += q[best * E + e], size++;
		}
		mass = at_least_min(mass);
	}
	v->sum.union_ += -log((double)mass / size);
}

/* --- a batch --- */

struct route_ctx {
	const struct route_in *in;
	const struct route_lambda *lam;
	const struct route_step *step;
	real *dprobs, *dlook, *dahead;
	struct route_scratch *s;
	struct view *view;	/* one per layer (format 2) or one */
};

/* dq to the logits of the head, by the derivative of softmax. */
static void look_back(const struct view *v, int64_t r, const real *q, const real *dq, real *dlook)
{
	int E = v->in->cfg->num_experts;

	for (int k = first_offset(v->in->cfg); k <= v->in->cfg->lookahead_steps; k++) {
		real *dz = dlook + route_look_at(v->in, v->layer, r, k), dot = 0;

		for (int e = 0; e < E; e++)
			dot += dq[k * E + e] * q[k * E + e];
		for (int e = 0; e < E; e++)
			dz[e] += q[k * E + e] * (dq[k * E + e] - dot);
	}
}

static void look_terms(struct view *v, struct route_ctx *x, int64_t r, int worker)
{
	const struct route_in *in = v->in;
	const struct config *c = in->cfg;
	int E = c->num_experts, steps = c->lookahead_steps;
	int64_t at = (int64_t)worker * (steps + 1) * E;
	real *q = x->s->q + at, *dq = x->s->dq + at;

	memset(dq, 0, (size_t)((steps + 1) * E) * sizeof(real));
	for (int k = first_offset(c); k <= steps; k++) {
		route_look_softmax(in, v->layer, r, k, q + k * E);
		if (route_linked(in, r, k))
			offset_terms(v, r, k, q + k * E, dq + k * E);
	}
	if (route_linked(in, r, steps))
		union_term(v, r, q, dq, x->s->in_set + (int64_t)worker * E);
	if (x->dlook)
		look_back(v, r, q, dq, x->dlook);
}

/* The gradient of balance is the same for all rows. */
static void layer_balance(struct route_ctx *x, int i)
{
	const struct config *c = x->in->cfg;
	int E = c->num_experts, K = c->num_experts_per_tok;
	int64_t R = (int64_t)x->in->B * x->in->T;
	const real *p = x->in->probs + (int64_t)i * R * E;
	double unit = c->format == 1 ? (double)E : (double)E / K / c->num_sparse,
	    n = x->step->n.pairs[0];

	for (int e = 0; e < E; e++) {
		double f = x->step->load[(int64_t)i * E + e] / n, sum = 0;
		real g = (real)(x->lam->balance * unit * f / n);

		for (int64_t r = 0; r < R; r++)
			if (x->in->doc_start[r] >= 0) {
				sum += (double)p[r * E + e];
				if (x->dprobs)
					x->dprobs[((int64_t)i * R + r) * E + e] += g;
			}
		x->s->mass[(int64_t)i * E + e] = sum;
	}
}

static void view_terms(struct view *v, struct route_ctx *x, int worker)
{
	const struct route_in *in = v->in;
	int64_t R = (int64_t)in->B * in->T;

	for (int64_t r = 0; r < R; r++) {
		if (in->doc_start[r] < 0)
			continue;
		if (route_linked(in, r, 1))
			pair_terms(v, r);
		if (in->look && in->cfg->lookahead_steps > 0)
			look_terms(v, x, r, worker);
	}
}

/* The anchor is per layer in both formats. */
static void layer_anchor(struct view *v, struct route_ctx *x, int i)
{
	const struct route_in *in = v->in;
	int64_t R = (int64_t)in->B * in->T, E = in->cfg->num_experts;
	struct view a = *v;

	a.p = in->probs + i * R * E;
	a.dp = x->dprobs ? x->dprobs + i * R * E : NULL;
	a.share = 1.0 / in->cfg->num_sparse;
	for (int64_t r = 0; r < R; r++)
		if (in->doc_start[r] >= 0)
			anchor_term(&a, r, in->ref_probs + (i * R + r) * E);
	v->sum.anchor = a.sum.anchor;
}

/* Per layer in both formats: what layer i-1 says of layer i. */
static void layer_ahead(struct view *v, struct route_ctx *x, int i)
{
	const struct route_in *in = v->in;
	int64_t R = (int64_t)in->B * in->T, E = in->cfg->num_experts;
	struct view a = *v;

	a.share = 1.0 / (in->cfg->num_sparse - 1);
	for (int64_t r = 0; r < R; r++) {
		int64_t at = ((i - 1) * R + r) * E;

		if (in->doc_start[r] >= 0)
			ahead_term(&a, i, r, in->ahead + at,
			    a.dp && x->dahead ? x->dahead + at : NULL);
	}
	v->sum.ahead = a.sum.ahead;
}

static void layer_task(void *ctx, int64_t i0, int64_t i1, int worker)
{
	struct route_ctx *x = ctx;

	for (int64_t i = i0; i < i1; i++) {
		struct view *v = &x->view[i];

		layer_balance(x, (int)i);
		if (x->in->ref_probs)
			layer_anchor(v, x, (int)i);
		if (x->in->ahead && i > 0)
			layer_ahead(v, x, (int)i);
		if (x->in->cfg->format == 2)
			view_terms(v, x, worker);
	}
}

/* Format 1: the terms of the mean over layers; its gradient goes to every layer alike. */
static void mean_terms(struct route_ctx *x)
{
	const struct route_in *in = x->in;
	int Ls = in->cfg->num_sparse, E = in->cfg->num_experts, K = in->cfg->num_experts_per_tok;
	int64_t R = (int64_t)in->B * in->T, n = R * E;
	struct view *v = &x->view[0];

	memset(x->s->mean, 0, (size_t)n * sizeof(real));
	memset(x->s->dmean, 0, (size_t)n * sizeof(real));
	for (int i = 0; i < Ls; i++)
		for (int64_t j = 0; j < n; j++)
			x->s->mean[j] += in->probs[(int64_t)i * n + j] / Ls;
	for (int64_t r = 0; r < R; r++)
		topk_best(x->s->mean + r * E, E, K, x->s->ids + r * K);
	v->p = x->s->mean;
	v->ids = x->s->ids;
	v->dp = x->dprobs ? x->s->dmean : NULL;
	v->share = 1;
	view_terms(v, x, 0);
	for (int i = 0; x->dprobs && i < Ls; i++)
		for (int64_t j = 0; j < n; j++)
			x->dprobs[(int64_t)i * n + j] += x->s->dmean[j] / Ls;
}

/* --- scratch --- */

static void *need(size_t n, size_t size)
{
	void *p = calloc(n ? n : 1, size);

	if (!p)
		err_die(EX_OSERR, "out of memory");
	return p;
}

void route_scratch_free(struct route_scratch *s)
{
	if (!s)
		return;
	free(s->mean);
	free(s->dmean);
	free(s->ids);
	free(s->q);
	free(s->dq);
	free(s->in_set);
	free(s->mass);
	free(s);
}

static struct route_scratch *scratch_get(struct route_scratch **sp, const struct route_in *in)
{
	const struct config *c = in->cfg;
	int64_t R = (int64_t)in->B * in->T;
	size_t block = (size_t)(c->lookahead_steps + 1) * (size_t)c->num_experts;
	struct route_scratch *s = *sp;

	if (s && s->R >= R && s->E == c->num_experts && s->K == c->num_experts_per_tok &&
	    s->workers >= pool_threads())
		return s;
	route_scratch_free(s);
	s = *sp = need(1, sizeof(*s));
	s->R = R;
	s->E = c->num_experts;
	s->K = c->num_experts_per_tok;
	s->workers = pool_threads();
	if (c->format == 1) {
		s->mean = need((size_t)(R * s->E), sizeof(real));
		s->dmean = need((size_t)(R * s->E), sizeof(real));
		s->ids = need((size_t)(R * s->K), sizeof(int32_t));
	}
	s->q = need((size_t)s->workers * block, sizeof(real));
	s->dq = need((size_t)s->workers * block, sizeof(real));
	s->in_set = need((size_t)s->workers * (size_t)s->E, 1);
	s->mass = need(table_size(c), sizeof(double));
	return s;
}

static void set_view(struct route_ctx *x, int i)
{
	const struct config *c = x->in->cfg;
	int64_t R = (int64_t)x->in->B * x->in->T;

	x->view[i] = (struct view){ .in = x->in, .lam = x->lam, .n = &x->step->n,
	    .offsets = offsets(c, &x->step->n), .layer = i, .share = 1.0 / c->num_sparse,
	    .p = x->in->probs + i * R * c->num_experts,
	    .ids = x->in->topk + i * R * c->num_experts_per_tok,
	    .dp = x->dprobs ? x->dprobs + i * R * c->num_experts : NULL };
}

double route_loss(const struct route_in *in, const struct route_lambda *lam, struct route_step *s,
    real *dprobs, real *dlook, real *dahead, struct route_scratch **scratch)
{
	int Ls = in->cfg->num_sparse;
	struct view view[Ls > 0 ? Ls : 1];
	struct route_ctx x = { in, lam, s, dprobs, dlook, dahead, scratch_get(scratch, in), view };
	struct route_sums sum = {0};
	struct route_terms t;

	if (in->B == 0)
		return 0;
	for (int i = 0; i < Ls; i++)
		set_view(&x, i);
	pool_for(Ls, 1, layer_task, &x);
	if (in->cfg->format == 1 && Ls > 0)
		mean_terms(&x);
	for (int i = 0; i < Ls; i++)
		add_sums(&sum, &view[i].sum);
	add_sums(&s->sum, &sum);
	for (size_t i = 0; i < table_size(in->cfg); i++)
		s->mass[i] += x.s->mass[i];
	terms(s, &sum, x.s->mass, &t);
	return weighted(lam, &t);
}
