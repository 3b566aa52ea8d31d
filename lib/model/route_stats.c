#include "model/route_stats.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/pool.h"
#include "base/topk.h"
#include "model/route_int.h"

static bool chosen(const int32_t *ids, int K, int e)
{
	for (int k = 0; k < K; k++)
		if (ids[k] == e)
			return true;
	return false;
}

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
		if (route_linked(in, r, 1)) {
			int n = hits(ids + r * K, ids + (r + 1) * K, K);

			s->pairs++;
			s->overlap += (double)n / (2 * K - n);
		}
		for (int k = 1; in->look && k <= steps && route_linked(in, r, k); k++) {
			route_look_softmax(in, layer, r, k, q + k * E);
			stat_offset(s, in, ids, r, k, q + k * E);
		}
		if (in->look && steps > 0 && route_linked(in, r, steps))
			stat_union(s, in, ids, r, q);
	}
}

/* The experts of layer i, from 1, as named at layer i-1. */
static void stat_ahead(struct route_stats *s, const struct route_in *in, int i, int64_t r0,
    int64_t r1)
{
	int K = in->cfg->num_experts_per_tok;
	int64_t R = (int64_t)in->B * in->T;
	int32_t best[K];

	for (int64_t r = r0; r < r1; r++) {
		int n;

		if (in->doc_start[r] < 0)
			continue;
		route_said(in, i, r, best);
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
	int32_t *ids = mem_alloc((size_t)(R * K) * sizeof *ids);
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
	mem_free(ids);
}

double route_load_entropy(const double *load, int layers, int E)
{
	double sum = 0;

	for (int i = 0; i < layers; i++) {
		double total = 0, h = 0;

		for (int e = 0; e < E; e++)
			total += load[(int64_t)i * E + e];
		for (int e = 0; e < E && total > 0; e++) {
			double f = load[(int64_t)i * E + e] / total;

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
