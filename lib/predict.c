#include <stdlib.h>
#include <string.h>

#include "predict.h"

struct predict {
	const struct config *cfg;
	int layer[CFG_MAX_LAYERS];	/* real index of the i-th sparse layer */
	int32_t *gate;			/* (R, K) what the gate said about layer gate_layer */
	int gate_layer;			/* -1: nothing */
	float *score;			/* (E) */
	int32_t *best;			/* (K) */
};

int predict_set_size(const struct config *c)
{
	return c->num_sparse * c->num_experts_per_tok;
}

int64_t predict_bytes(const struct config *c, int max_rows)
{
	return (int64_t)sizeof(struct predict) + 4 * (int64_t)c->num_experts
	    + 4 * (int64_t)(max_rows + 1) * c->num_experts_per_tok;
}

struct predict *predict_new(const struct config *c, int max_rows)
{
	struct predict *p = calloc(1, sizeof(*p));

	if (!p)
		return NULL;
	p->cfg = c;
	p->gate_layer = -1;
	p->gate = calloc((size_t)max_rows * c->num_experts_per_tok + 1, sizeof(*p->gate));
	p->score = calloc((size_t)c->num_experts + 1, sizeof(*p->score));
	p->best = calloc((size_t)c->num_experts_per_tok + 1, sizeof(*p->best));
	if (!p->gate || !p->score || !p->best) {
		predict_free(p);
		return NULL;
	}
	for (int l = 0, i = 0; l < c->num_hidden_layers; l++)
		if (c->sparse[l])
			p->layer[i++] = l;
	return p;
}

void predict_free(struct predict *p)
{
	if (!p)
		return;
	free(p->gate);
	free(p->score);
	free(p->best);
	free(p);
}

/* The K largest of probs (E) in descending order, ties to the lowest id. */
static void top(int32_t *best, int K, const real *probs, int E)
{
	int n = 0;

	for (int x = 0; x < E; x++) {
		int j;

		if (n == K && !(probs[x] > probs[best[K - 1]]))
			continue;
		j = n < K ? n++ : K - 1;
		for (; j > 0 && probs[x] > probs[best[j - 1]]; j--)
			best[j] = best[j - 1];
		best[j] = x;
	}
}

void predict_gate(struct predict *p, struct store *s, int i, const real *probs, int R)
{
	int E = p->cfg->num_experts, K = p->cfg->num_experts_per_tok;

	memset(p->score, 0, sizeof(*p->score) * E);
	for (int r = 0; r < R; r++) {
		int32_t *best = p->gate + (int64_t)r * K;

		top(best, K, probs + (int64_t)r * E, E);
		for (int k = 0; k < K; k++)
			p->score[best[k]] += (float)probs[(int64_t)r * E + best[k]];
	}
	p->gate_layer = i;
	for (int x = 0; x < E; x++)
		if (p->score[x] > 0)
			store_predict(s, p->layer[i], x, p->score[x] < 1 ? p->score[x] : 1, 1);
}

void predict_look(struct predict *p, struct store *s, const real *look, int since, int32_t *next)
{
	int E = p->cfg->num_experts, K = p->cfg->num_experts_per_tok, Ls = p->cfg->num_sparse;

	for (int k = 1; k <= p->cfg->lookahead_steps; k++)
		for (int i = 0; i < Ls; i++) {
			int64_t row = p->cfg->lookahead_per_layer ? (int64_t)k * Ls + i : k;
			int32_t *best = k == 1 ? next + (int64_t)i * K : p->best;

			top(best, K, look + row * E, E);
			for (int j = 0; j < K; j++)
				store_predict(s, p->layer[i], best[j], (float)look[row * E + best[j]], k * Ls - since + i);
		}
}

static bool among(const int32_t *set, int n, int32_t x)
{
	for (int i = 0; i < n; i++)
		if (set[i] == x)
			return true;
	return false;
}

void predict_seen(struct predict *p, int i, const int32_t *ids, int R, const int32_t *const *next,
    struct eval_stats *st)
{
	int K = p->cfg->num_experts_per_tok;

	for (int r = 0; r < R; r++) {
		const int32_t *gate = p->gate_layer == i ? p->gate + (int64_t)r * K : NULL;
		const int32_t *look = next[r] ? next[r] + (int64_t)i * K : NULL;
		int both = 0;

		for (int k = 0; k < K; k++) {
			bool g = gate && among(gate, K, ids[(int64_t)r * K + k]);
			bool h = look && among(look, K, ids[(int64_t)r * K + k]);

			st->gate_hit += g;
			st->look_hit += h;
			both += g || h;
		}
		st->slots += K;
		st->gate_pred += gate ? K : 0;
		st->look_pred += look ? K : 0;
		st->sets += gate || look;
		st->sets_whole += (gate || look) && both == K;
	}
}
