/*
 * route: loss terms and statistics of the router. A view is what one set of terms is computed
 * on: a layer in format 2, the mean over layers in format 1.
 */
#include "model/route.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/topk.h"
#include "base/comm.h"
#include "backend/host.h"
#include "base/pool.h"

#define MASS_MIN ((real)1e-9)	/* the reference's clamp under logarithms */

struct route_scratch {
	int64_t R;
	int E, K, workers;
	real *mean, *dmean;	/* (R, E) format 1 */
	int32_t *ids;		/* (R, K) choices of the mean */
	real *q, *dq;		/* per worker: (steps+1, E) */
	uint8_t *in_set;	/* per worker: (E) */
};

struct view {
	const struct route_in *in;
	const real *p;		/* (R, E) */
	const int32_t *ids;	/* (R, K) */
	real *dp;		/* (R, E) or NULL */
	int layer;		/* block of the lookahead head */
	double share;
	double pairs[ROUTE_MAX_STEPS + 1];	/* rows with a valid successor at each offset */
	double full, offsets;	/* rows with all successors; offsets with any pair */
	struct route_terms t;
};

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
	free(s->mean), free(s->dmean), free(s->ids), free(s->q), free(s->dq), free(s->in_set);
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
	s->R = R, s->E = c->num_experts, s->K = c->num_experts_per_tok, s->workers = pool_threads();
	if (c->format == 1) {
		s->mean = need((size_t)(R * s->E), sizeof(real));
		s->dmean = need((size_t)(R * s->E), sizeof(real));
		s->ids = need((size_t)(R * s->K), sizeof(int32_t));
	}
	s->q = need((size_t)s->workers * block, sizeof(real));
	s->dq = need((size_t)s->workers * block, sizeof(real));
	s->in_set = need((size_t)s->workers * (size_t)s->E, 1);
	return s;
}

/* Row r and the row k later are real tokens of one document. */
static bool linked(const struct route_in *in, int64_t r, int k)
{
	int32_t d = in->doc_start[r];

	return d >= 0 && r % in->T + k < in->T && in->doc_start[r + k] == d;
}

static void count_pairs(struct view *v)
{
	const struct route_in *in = v->in;
	int steps = in->cfg->lookahead_steps > 0 ? in->cfg->lookahead_steps : 1;

	for (int64_t r = 0; r < (int64_t)in->B * in->T; r++) {
		for (int k = 0; k <= steps; k++)
			v->pairs[k] += linked(in, r, k);
		v->full += linked(in, r, in->cfg->lookahead_steps);
	}
	comm_sum(v->pairs, steps + 1);
	comm_sum(&v->full, 1);
	for (int k = in->cfg->format == 2 ? 0 : 1; k <= in->cfg->lookahead_steps; k++)
		v->offsets += v->pairs[k] > 0;
}

static bool chosen(const int32_t *ids, int K, int e)
{
	for (int k = 0; k < K; k++)
		if (ids[k] == e)
			return true;
	return false;
}

/* set[e]: is e among the ids? */
static void mark(uint8_t *set, int E, const int32_t *ids, int K)
{
	memset(set, 0, (size_t)E);
	for (int k = 0; k < K; k++)
		set[ids[k]] = 1;
}

/* temporal and locality of the pair (r, r+1) */
static void pair_terms(struct view *v, const struct route_lambda *lam, int64_t r)
{
	const struct route_in *in = v->in;
	int E = in->cfg->num_experts, K = in->cfg->num_experts_per_tok;
	const real *a = v->p + r * E, *b = a + E;
	const int32_t *ids = v->ids + r * K;
	double n = v->pairs[1], sq = 0;
	real mass = 0;

	for (int e = 0; e < E; e++)
		sq += (double)(b[e] - a[e]) * (double)(b[e] - a[e]);
	for (int k = 0; k < K; k++)
		mass += b[ids[k]];
	mass = mass < MASS_MIN ? MASS_MIN : mass;
	v->t.temporal += sq / n;
	v->t.locality += -log((double)mass / K) / n;
	if (!v->dp)
		return;
	real gt = (real)(2 * lam->temporal * v->share / n),
	    gl = (real)(-lam->locality * v->share / n) / mass;
	real *da = v->dp + r * E, *db = da + E;

	for (int e = 0; e < E; e++) {
		db[e] += gt * (b[e] - a[e]);
		da[e] -= gt * (b[e] - a[e]);
	}
	for (int k = 0; k < K && mass > MASS_MIN; k++)
		db[ids[k]] += gl;
}

static void anchor_term(struct view *v, const struct route_lambda *lam, int64_t r, const real *ref)
{
	int E = v->in->cfg->num_experts;
	const real *p = v->p + r * E;
	double n = v->pairs[0];
	real g = (real)(lam->anchor * v->share / n);

	for (int e = 0; e < E; e++) {
		real ratio = (p[e] < MASS_MIN ? MASS_MIN : p[e]) / (ref[e] < MASS_MIN ? MASS_MIN
		    : ref[e]);
		real lr = (real)log((double)ratio);

		v->t.anchor += (double)(p[e] * lr) / n;
		if (v->dp)
			v->dp[r * E + e] += g * (lr + 1);
	}
}

/* What the layer before says learns the router's choice, and the router the choice of what was
 * said: both give way, or routers stay as hard to foresee as they are. z, dz: row r of in->ahead
 * for this layer, and its gradient; dz NULL: no gradients. */
static void ahead_term(struct view *v, const struct route_lambda *lam, int64_t r, const real *z,
    real *dz)
{
	int E = v->in->cfg->num_experts, K = v->in->cfg->num_experts_per_tok;
	const real *p = v->p + r * E;
	const int32_t *ids = v->ids + r * K;
	int32_t said[K];
	uint8_t set[E];
	double n = v->pairs[0], ce = 0;
	real q[E], g = (real)(lam->ahead * v->share / n);
	double log_sum = host_softmax(z, E, q);

	topk_best(z, E, K, said);
	for (int k = 0; k < K; k++) {
		real ps = p[said[k]];

		ce += log_sum - (double)z[ids[k]] - log((double)(ps < MASS_MIN ? MASS_MIN : ps));
		if (dz && ps > MASS_MIN)
			v->dp[r * E + said[k]] -= g / K / ps;
	}
	v->t.ahead += ce / K / n;
	mark(set, E, ids, K);
	for (int e = 0; dz && e < E; e++)
		dz[e] += g * (q[e] - (set[e] ? (real)1 / K : 0));
}

/* Cross-entropy and top-k mass of offset k at row r. Format 1 learns the router's probabilities,
 * format 2 its choices. */
static void offset_terms(struct view *v, const struct route_lambda *lam, int64_t r, int k,
    const real *q, real *dq)
{
	const struct config *c = v->in->cfg;
	int E = c->num_experts, K = c->num_experts_per_tok;
	const real *p = v->p + (r + k) * E;
	const int32_t *ids = v->ids + (r + k) * K;
	double n = v->pairs[k] * v->offsets, ce = 0;
	real mass = 0, g = (real)(lam->lookahead * v->share / n);
	uint8_t set[E];

	mark(set, E, ids, K);
	for (int e = 0; e < E; e++) {
		real target = c->format == 1 ? p[e] : set[e] ? (real)1 / K : 0;
		real qe = q[e] < MASS_MIN ? MASS_MIN : q[e];

		if (target == 0)
			continue;
		ce -= (double)target * log((double)qe);
		if (q[e] > MASS_MIN)
			dq[e] -= g * target / qe;
	}
	for (int j = 0; j < K; j++)
		mass += q[ids[j]];
	mass = mass < MASS_MIN ? MASS_MIN : mass;
	v->t.lookahead += ce / n;
	v->t.topk += -log((double)mass / K) / n;
	for (int j = 0; j < K && mass > MASS_MIN; j++)
		dq[ids[j]] -= (real)(lam->topk * v->share / n) / mass;
}

/* Mass of the best offset on everything needed in the next steps tokens. */
static void union_term(struct view *v, const struct route_lambda *lam, int64_t r, const real *q,
    real *dq, uint8_t *set)
{
	const struct config *c = v->in->cfg;
	int E = c->num_experts, K = c->num_experts_per_tok, size = 0;
	real mass = 0;

	memset(set, 0, (size_t)E);
	for (int k = 1; k <= c->lookahead_steps; k++)
		for (int j = 0; j < K; j++)
			set[v->ids[(r + k) * K + j]] = 1;
	for (int pass = 0; pass < 2; pass++) {
		real g = pass ? (real)(lam->union_ * v->share / v->full) / mass : 0;

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
		mass = mass < MASS_MIN ? MASS_MIN : mass;
	}
	v->t.union_ += -log((double)mass / size) / v->full;
}

static int blocks(const struct route_in *in)
{
	return in->cfg->lookahead_per_layer ? in->cfg->num_sparse : 1;
}

/* Probabilities of the head's block (offset k, layer) of row r. */
static void look_softmax(const struct route_in *in, int layer, int64_t r, int k, real *q)
{
	int E = in->cfg->num_experts, rows = config_lookahead_rows(in->cfg);

	host_softmax(in->look + r * rows + ((int64_t)k * blocks(in) + layer) * E, E, q);
}

static void look_terms(struct view *v, const struct route_lambda *lam, int64_t r, real *dlook,
    struct route_scratch *s,
    int worker)
{
	const struct route_in *in = v->in;
	const struct config *c = in->cfg;
	int E = c->num_experts, steps = c->lookahead_steps, rows = config_lookahead_rows(c);
	real *q = s->q + (int64_t)worker * (steps + 1) * E, *dq = s->dq + (int64_t)worker *
	    (steps + 1) * E;

	memset(dq, 0, (size_t)((steps + 1) * E) * sizeof(real));
	for (int k = c->format == 2 ? 0 : 1; k <= steps; k++) {
		look_softmax(in, v->layer, r, k, q + k * E);
		if (linked(in, r, k))
			offset_terms(v, lam, r, k, q + k * E, dq + k * E);
	}
	if (linked(in, r, steps))
		union_term(v, lam, r, q, dq, s->in_set + (int64_t)worker * E);
	for (int k = c->format == 2 ? 0 : 1; dlook && k <= steps; k++) {
		real *dz = dlook + r * rows + ((int64_t)k * blocks(in) + v->layer) * E, dot = 0;

		for (int e = 0; e < E; e++)
			dot += dq[k * E + e] * q[k * E + e];
		for (int e = 0; e < E; e++)
			dz[e] += q[k * E + e] * (dq[k * E + e] - dot);
	}
}

struct route_ctx {
	const struct route_in *in;
	const struct route_lambda *lam;
	struct route_load *load;
	real *dprobs, *dlook, *dahead;
	struct route_scratch *s;
	struct view *view;	/* one per layer (format 2) or one */
	double *balance;	/* per layer */
	double share;
};

/* f: share of each expert in the load of the step so far; P: mean probability in this batch. */
static double balance_term(const struct route_ctx *x, int i, double tokens)
{
	const struct config *c = x->in->cfg;
	int E = c->num_experts, K = c->num_experts_per_tok;
	int64_t R = (int64_t)x->in->B * x->in->T;
	const real *p = x->in->probs + (int64_t)i * R * E;
	double unit = c->format == 1 ? (double)E : (double)E / K / c->num_sparse, value = 0;

	for (int e = 0; e < E; e++) {
		double f = x->load->count[(int64_t)i * E + e] / x->load->tokens, mean = 0;
		real g = (real)(x->lam->balance * x->share * unit * f / tokens);

		for (int64_t r = 0; r < R; r++)
			if (x->in->doc_start[r] >= 0) {
				mean += (double)p[r * E + e];
				if (x->dprobs)
					x->dprobs[((int64_t)i * R + r) * E + e] += g;
			}
		value += unit * f * mean / tokens;
	}
	return value;
}

/* tokens: of this batch. What there was before is counted by rank 0. */
static void count_load(const struct route_in *in, struct route_load *load, double tokens)
{
	int E = in->cfg->num_experts, K = in->cfg->num_experts_per_tok;
	int64_t R = (int64_t)in->B * in->T;

	load->tokens += tokens;
	if (comm_rank() > 0)
		memset(load->count, 0, (size_t)in->cfg->num_sparse * (size_t)E *
		    sizeof *load->count);
	for (int64_t r = 0; r < R; r++) {
		if (in->doc_start[r] < 0)
			continue;
		for (int i = 0; i < in->cfg->num_sparse; i++)
			for (int k = 0; k < K; k++)
				load->count[(int64_t)i * E + in->topk[((int64_t)i * R + r) * K +
				    k]]++;
	}
	comm_sum(load->count, in->cfg->num_sparse * E);
}

static void view_terms(struct view *v, struct route_ctx *x, int worker)
{
	const struct route_in *in = v->in;
	int64_t R = (int64_t)in->B * in->T;

	for (int64_t r = 0; r < R; r++) {
		if (in->doc_start[r] < 0)
			continue;
		if (linked(in, r, 1))
			pair_terms(v, x->lam, r);
		if (in->look && in->cfg->lookahead_steps > 0)
			look_terms(v, x->lam, r, x->dlook, x->s, worker);
	}
}

/* The anchor is per layer in both formats. */
static void layer_anchor(struct view *v, struct route_ctx *x, int i)
{
	const struct route_in *in = v->in;
	int64_t R = (int64_t)in->B * in->T;
	struct view a = *v;

	a.p = in->probs + (int64_t)i * R * in->cfg->num_experts;
	a.dp = x->dprobs ? x->dprobs + (int64_t)i * R * in->cfg->num_experts : NULL;
	a.share = x->share / in->cfg->num_sparse;
	a.t.anchor = 0;
	for (int64_t r = 0; r < R; r++)
		if (in->doc_start[r] >= 0)
			anchor_term(&a, x->lam, r, in->ref_probs + ((int64_t)i * R + r) *
			    in->cfg->num_experts);
	v->t.anchor += a.t.anchor / in->cfg->num_sparse;
}

/* Per layer in both formats: what layer i-1 says of layer i. */
static void layer_ahead(struct view *v, struct route_ctx *x, int i)
{
	const struct route_in *in = v->in;
	int64_t R = (int64_t)in->B * in->T, E = in->cfg->num_experts;
	int pairs = in->cfg->num_sparse - 1;
	struct view a = *v;

	a.share = x->share / pairs;
	a.t.ahead = 0;
	for (int64_t r = 0; r < R; r++) {
		int64_t at = ((i - 1) * R + r) * E;

		if (in->doc_start[r] >= 0)
			ahead_term(&a, x->lam, r, in->ahead + at, a.dp && x->dahead ? x->dahead + at
			    : NULL);
	}
	v->t.ahead += a.t.ahead / pairs;
}

static void layer_task(void *ctx, int64_t i0, int64_t i1, int worker)
{
	struct route_ctx *x = ctx;

	for (int64_t i = i0; i < i1; i++) {
		struct view *v = &x->view[i];

		x->balance[i] = balance_term(x, (int)i, v->pairs[0]);
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
	struct view v = x->view[0];

	memset(x->s->mean, 0, (size_t)n * sizeof(real));
	memset(x->s->dmean, 0, (size_t)n * sizeof(real));
	for (int i = 0; i < Ls; i++)
		for (int64_t j = 0; j < n; j++)
			x->s->mean[j] += in->probs[(int64_t)i * n + j] / Ls;
	for (int64_t r = 0; r < R; r++)
		topk_best(x->s->mean + r * E, E, K, x->s->ids + r * K);
	v.p = x->s->mean, v.ids = x->s->ids, v.dp = x->dprobs ? x->s->dmean : NULL,
	    v.share = x->share, v.layer = 0;
	view_terms(&v, x, 0);
	x->view[0].t = v.t;
	for (int i = 0; x->dprobs && i < Ls; i++)
		for (int64_t j = 0; j < n; j++)
			x->dprobs[(int64_t)i * n + j] += x->s->dmean[j] / Ls;
}

static void sum_terms(const struct route_ctx *x, struct route_terms *t)
{
	int Ls = x->in->cfg->num_sparse;
	double f = x->in->cfg->format == 2 ? 1.0 / Ls : 1;

	memset(t, 0, sizeof(*t));
	for (int i = 0; i < Ls; i++) {
		const struct route_terms *v = &x->view[i].t;

		t->balance += x->balance[i];
		t->anchor += v->anchor;
		t->ahead += v->ahead;
		t->temporal += v->temporal * f;
		t->locality += v->locality * f;
		t->lookahead += v->lookahead * f;
		t->topk += v->topk * f;
		t->union_ += v->union_ * f;
	}
}

double route_loss(const struct route_in *in, const struct route_lambda *lam,
    struct route_load *load,
    struct route_terms *t, real *dprobs, real *dlook, real *dahead, struct route_scratch **scratch)
{
	const struct config *c = in->cfg;
	int Ls = c->num_sparse;
	int64_t R = (int64_t)in->B * in->T;
	struct view view[Ls > 0 ? Ls : 1], first = { .in = in };
	double balance[Ls > 0 ? Ls : 1];
	struct route_ctx x = { in, lam, load, dprobs, dlook, dahead, scratch_get(scratch, in), view,
	    balance, 1 };

	memset(t, 0, sizeof(*t));
	count_pairs(&first);
	if (Ls == 0 || first.pairs[0] == 0)
		return 0;
	count_load(in, load, first.pairs[0]);
	x.share = in->total_tokens > 0 ? first.pairs[0] / (double)in->total_tokens : 1;
	for (int i = 0; i < Ls; i++) {
		view[i] = first;
		view[i].p = in->probs + (int64_t)i * R * c->num_experts;
		view[i].ids = in->topk + (int64_t)i * R * c->num_experts_per_tok;
		view[i].dp = dprobs ? dprobs + (int64_t)i * R * c->num_experts : NULL;
		view[i].layer = i;
		view[i].share = x.share / Ls;
	}
	pool_for(Ls, 1, layer_task, &x);
	if (c->format == 1)
		mean_terms(&x);
	sum_terms(&x, t);
	return x.share * (lam->balance * t->balance + lam->temporal * t->temporal + lam->locality *
	    t->locality +
	    lam->lookahead * t->lookahead + lam->topk * t->topk + lam->union_ * t->union_ +
	    lam->anchor * t->anchor +
	    lam->ahead * t->ahead);
}

/* ---- statistics ---- */

static int hits(const int32_t *a, const int32_t *b, int K)
{
	int n = 0;

	for (int k = 0; k < K; k++)
		n += chosen(b, K, a[k]);
	return n;
}

/* Experts of offset k at row r: predicted by the head, and by repeating the current token's. */
static void stat_offset(struct route_stats *s, const struct route_in *in, const int32_t *ids,
    int64_t r, int k,
    const real *q)
{
	int E = in->cfg->num_experts, K = in->cfg->num_experts_per_tok, n;
	int32_t best[K];

	topk_best(q, E, K, best);
	n = hits(ids + (r + k) * K, best, K);
	s->slots[k] += K, s->slot_hit[k] += n;
	s->sets[k]++, s->set_hit[k] += n == K;
	n = hits(ids + (r + k) * K, ids + r * K, K);
	s->repeat_hit[k] += n, s->repeat_set[k] += n == K;
}

static void stat_union(struct route_stats *s, const struct route_in *in, const int32_t *ids,
    int64_t r, const real *q)
{
	int E = in->cfg->num_experts, K = in->cfg->num_experts_per_tok,
	    steps = in->cfg->lookahead_steps;
	int budget = K * steps < E ? K * steps : E, size = 0, found = 0;
	real best[E];
	int32_t top[budget];
	uint8_t set[E];

	memset(set, 0, (size_t)E);
	for (int e = 0; e < E; e++) {
		best[e] = q[E + e];
		for (int k = 2; k <= steps; k++)
			best[e] = q[k * E + e] > best[e] ? q[k * E + e] : best[e];
	}
	topk_best(best, E, budget, top);
	for (int k = 1; k <= steps; k++)
		for (int j = 0; j < K; j++)
			set[ids[(r + k) * K + j]] = 1;
	for (int e = 0; e < E; e++)
		size += set[e];
	for (int j = 0; j < budget; j++)
		found += set[top[j]];
	s->union_rows++;
	s->union_recall += (double)found / size;
}

/* Rows [r0, r1) of one view. */
static void stat_view(struct route_stats *s, const struct route_in *in, int layer,
    const int32_t *ids, int64_t r0, int64_t r1)
{
	const struct config *c = in->cfg;
	int E = c->num_experts, K = c->num_experts_per_tok, steps = c->lookahead_steps;
	real q[(steps + 1) * E];

	for (int64_t r = r0; r < r1; r++) {
		if (linked(in, r, 1)) {
			int n = hits(ids + r * K, ids + (r + 1) * K, K);

			s->pairs++;
			s->overlap += (double)n / (2 * K - n);
		}
		for (int k = 1; in->look && k <= steps && linked(in, r, k); k++) {
			look_softmax(in, layer, r, k, q + k * E);
			stat_offset(s, in, ids, r, k, q + k * E);
		}
		if (in->look && steps > 0 && linked(in, r, steps))
			stat_union(s, in, ids, r, q);
	}
}

/* The experts of layer i, from 1, as named at layer i-1. */
static void stat_ahead(struct route_stats *s, const struct route_in *in, int i, int64_t r0,
    int64_t r1)
{
	int E = in->cfg->num_experts, K = in->cfg->num_experts_per_tok;
	int64_t R = (int64_t)in->B * in->T;
	int32_t best[K];

	for (int64_t r = r0; r < r1; r++) {
		int n;

		if (in->doc_start[r] < 0)
			continue;
		topk_best(in->ahead + ((i - 1) * R + r) * E, E, K, best);
		n = hits(in->topk + (i * R + r) * K, best, K);
		s->ahead_slots += K, s->ahead_hit += n;
		s->ahead_sets++, s->ahead_whole += n == K;
	}
}

/* Rows in so many slices, each counted for itself, whatever the number of threads. */
#define STAT_SLICES 32

struct stat_ctx {
	const struct route_in *in;
	const int32_t *ids;	/* (R, K) choices of the mean over layers; NULL: a view per layer */
	struct route_stats part[STAT_SLICES];
};

static void stat_slice(void *ctx, int64_t s0, int64_t s1, int worker)
{
	struct stat_ctx *x = ctx;
	const struct route_in *in = x->in;
	int Ls = in->cfg->num_sparse, K = in->cfg->num_experts_per_tok;
	int64_t R = (int64_t)in->B * in->T;

	(void)worker;
	for (int64_t s = s0; s < s1; s++) {
		int64_t r0 = R * s / STAT_SLICES, r1 = R * (s + 1) / STAT_SLICES;

		for (int i = 1; in->ahead && i < Ls; i++)
			stat_ahead(&x->part[s], in, i, r0, r1);
		for (int i = 0; i < (x->ids ? 1 : Ls); i++)
			stat_view(&x->part[s], in, i, x->ids ? x->ids : in->topk + i * R * K, r0,
			    r1);
	}
}

static void stat_sum(struct route_stats *s, const struct route_stats *part)
{
	double *to = (double *)s;	/* a record of counts alone */
	const double *from = (const double *)part;

	for (size_t i = 0; i < sizeof *s / sizeof *to; i++)
		to[i] += from[i];
}

/* What all layers together prefer: (R, K). */
static int32_t *mean_choices(const struct route_in *in)
{
	int E = in->cfg->num_experts, K = in->cfg->num_experts_per_tok;
	int64_t R = (int64_t)in->B * in->T;
	int32_t *ids = need((size_t)(R * K), sizeof(int32_t));
	real p[E];

	for (int64_t r = 0; r < R; r++) {
		memset(p, 0, sizeof p);
		for (int i = 0; i < in->cfg->num_sparse; i++)
			for (int e = 0; e < E; e++)
				p[e] += in->probs[(i * R + r) * E + e];
		topk_best(p, E, K, ids + r * K);
	}
	return ids;
}

void route_stats_add(struct route_stats *s, const struct route_in *in)
{
	const struct config *c = in->cfg;
	bool mean = c->num_sparse > 0 && !c->lookahead_per_layer && c->lookahead_steps > 0;
	int32_t *ids = mean ? mean_choices(in) : NULL;
	struct stat_ctx x = { .in = in, .ids = ids };

	pool_for(STAT_SLICES, 1, stat_slice, &x);
	for (int i = 0; i < STAT_SLICES; i++)
		stat_sum(s, &x.part[i]);
	free(ids);
}

double route_load_entropy(const struct route_load *l, int layers, int E)
{
	double sum = 0;

	for (int i = 0; i < layers; i++) {
		double total = 0, h = 0;

		for (int e = 0; e < E; e++)
			total += l->count[(int64_t)i * E + e];
		for (int e = 0; e < E && total > 0; e++) {
			double f = l->count[(int64_t)i * E + e] / total;

			h -= f > 0 ? f * log(f) : 0;
		}
		sum += h;
	}
	return layers > 0 && E > 1 ? sum / layers / log(E) : 0;
}

bool route_same_set(const int32_t *a, const int32_t *b, int K)
{
	int found = 0;

	for (int i = 0; i < K; i++)
		for (int j = 0; j < K; j++)
			found += a[i] == b[j];
	return found == K;
}
