/*
 * Routing that prefers experts in memory (after Skliar et al., "Mixture of Cache-Conditional
 * Experts", arXiv:2412.00099): their logits get a bonus when the K experts are chosen, and the
 * router goes on from there as ever: scores, bias, groups. The weights stay those of the router,
 * over the chosen. Lossy, and what is in memory depends on how fast the drive is, so two runs may
 * differ. The share of the weight of experts passed over is counted.
 */
#include <math.h>
#include <string.h>

#include "decode/decode_int.h"

/* Scores p (E) of one row become those of logits that are ln(bonus) larger. */
static void bend(const struct router *r, real *p, const real *bonus, int E)
{
	real sum = 0;

	for (int x = 0; x < E; x++) {
		p[x] *= r->sigmoid ? bonus[x] / (1 + p[x] * (bonus[x] - 1)) : bonus[x];
		sum += p[x];
	}
	for (int x = 0; !r->sigmoid && x < E; x++)
		p[x] /= sum;
}

/* One row: p (E) shares of scores that sum to `all`; ids and weight (K) are exact, and become
 * those of the bent choice. Returns the share of the weight that was passed over. */
static double bend_row(struct engine *g, int l, const real *p, real all, const real *bonus,
    int32_t *ids, real *weight)
{
	const struct router *r = &g->cfg->block[l].router;
	int E = g->cfg->num_experts, K = g->cfg->num_experts_per_tok, kept = 0;
	int32_t *exact = g->t.exact;
	real bent[E], whole = 0, passed = 0;

	for (int x = 0; x < E; x++)
		bent[x] = r->sigmoid ? p[x] * all : p[x];
	bend(r, bent, bonus, E);
	memcpy(exact, ids, sizeof(*ids) * (size_t)K);
	router_choose(r, router_bias(g, l), bent, E, K, ids);
	for (int k = 0; k < K; k++) {
		bool keeps = predict_among(ids, K, exact[k]);

		kept += keeps;
		whole += weight[k];
		passed += keeps ? 0 : weight[k];
	}
	if (kept == K) {
		memcpy(ids, exact, sizeof(*ids) * (size_t)K);	/* the order of the sum, too */
		return 0;
	}
	router_weigh(r, p, all, ids, K, weight);
	return passed > 0 ? (double)(passed / whole) : 0;
}

void bias_route(struct engine *g, int l)
{
	int E = g->cfg->num_experts, K = g->cfg->num_experts_per_tok;
	struct tables *t = &g->t;
	real *bonus = t->router_next;		/* (E): read only after this */

	pull(g, t->router, g->s.router, (size_t)g->rows * (size_t)E * sizeof *t->router);
	pull(g, t->sums, g->s.sums, (size_t)g->rows * sizeof *t->sums);
	for (int x = 0; x < E; x++)
		bonus[x] = (real)(store_ready(g->store, l, x) ? exp(g->opt.route_bias) : 1);
	for (int r = 0; r < g->rows; r++)
		g->replaced += bend_row(g, l, t->router + (int64_t)r * E, t->sums[r], bonus,
		    t->ids + (int64_t)r * K, t->weight + (int64_t)r * K);
}
