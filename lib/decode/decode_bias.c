/*
 * Routing that prefers experts in memory (after Skliar et al., "Mixture of Cache-Conditional
 * Experts", arXiv:2412.00099): their logits get a bonus when the K experts are chosen; the
 * weights stay those of the router, over the chosen. Lossy, and what is in memory depends on how
 * fast the drive is, so two runs may differ. The weight of experts passed over is counted.
 */
#include <math.h>
#include <string.h>

#include "decode/decode_int.h"

/* The K with the largest scores, in descending order of the router's own probability, ties to
 * the lowest id. */
static void pick(int32_t *ids, int K, const real *prob, const real *bonus, int E)
{
	int n = 0;

	for (int x = 0; x < E; x++) {
		int j;

		if (n == K && !(prob[x] * bonus[x] > prob[ids[K - 1]] * bonus[ids[K - 1]]))
			continue;
		for (j = n < K ? n++ : K - 1; j > 0 && prob[x] * bonus[x] > prob[ids[j - 1]] *
		    bonus[ids[j - 1]]; j--)
			ids[j] = ids[j - 1];
		ids[j] = x;
	}
	for (int i = 1; i < K; i++)
		for (int j = i; j > 0 && (prob[ids[j]] > prob[ids[j - 1]] ||
		    (prob[ids[j]] == prob[ids[j - 1]] && ids[j] < ids[j - 1])); j--) {
			int32_t t = ids[j];

			ids[j] = ids[j - 1];
			ids[j - 1] = t;
		}
}

void bias_route(struct engine *g, int l)
{
	int E = g->cfg->num_experts, K = g->cfg->num_experts_per_tok;
	struct tables *t = &g->t;
	real *bonus = t->router_next;		/* (E): read only after this */

	pull(g, t->router, g->s.router, (size_t)g->rows * (size_t)E * sizeof *t->router);
	for (int x = 0; x < E; x++)
		bonus[x] = (real)(store_ready(g->store, l, x) ? exp(g->opt.route_bias) : 1);
	for (int r = 0; r < g->rows; r++) {
		const real *prob = t->router + (int64_t)r * E;
		int32_t *ids = t->ids + (int64_t)r * K;
		real *weight = t->weight + (int64_t)r * K, sum = 0;
		int kept = 0;

		memcpy(t->exact, ids, sizeof(*ids) * (size_t)K);
		pick(ids, K, prob, bonus, E);
		for (int k = 0; k < K; k++) {
			bool keeps = predict_among(ids, K, t->exact[k]);

			kept += keeps;
			g->replaced += keeps ? 0 : (double)weight[k];
		}
		if (kept == K)
			continue;
		for (int k = 0; k < K; k++)
			sum += prob[ids[k]];
		for (int k = 0; k < K; k++)
			weight[k] = g->cfg->block[l].router.renormalised ? prob[ids[k]] / sum
			    : prob[ids[k]];
	}
}
