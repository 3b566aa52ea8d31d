/*
 * What a token costs, and how long a prompt will take: rates are measured with a few experts,
 * the rest is arithmetic.
 */
#include <math.h>
#include <string.h>

#include "decode/decode_int.h"
#include "backend/quant.h"
#include "base/progress.h"

/* Only a row of the embedding is read, unless it is the head as well. */
static bool read_by_token(const struct engine *g, const struct param *p)
{
	if (param_is(p, PARAM_ROW))
		return g->cfg->tie_word_embeddings;
	if (param_is(p, PARAM_LOOK))
		return look_mode(g) != 0;
	return !param_routed(p);
}

/* Multiply-adds of a token with the state of a layer: it is summed twice and changed once. */
static int64_t state_products(const struct block *b)
{
	return 3 * (int64_t)b->delta.H * b->delta.dk * b->delta.dv;
}

void engine_token_cost(const struct engine *g, int64_t *bytes, int64_t *products)
{
	int64_t experts = (int64_t)g->cfg->num_sparse * g->cfg->num_experts_per_tok;
	struct err e = { 0 };

	*bytes = experts * g->expert_bytes;
	*products = experts * 3 * g->cfg->hidden_size * g->cfg->moe_intermediate_size;
	for (int i = 0; i < g->par->n; i++) {
		const struct param *p = &g->par->p[i];
		enum dtype t = DT_REAL;

		if (!read_by_token(g, p))
			continue;
		if (!g->flat && (modeldir_type(&g->md, p, &t, &e) < 0 || !dtype_blocks(t)))
			t = DT_REAL;
		*bytes += t == DT_REAL ? param_size(p) * (int64_t)sizeof(real)
		    : (int64_t)mat_bytes(t, p->rows, p->cols);
		*products += p->ndim == 2 && !param_is(p, PARAM_BIAS) ? param_size(p) : 0;
	}
	for (int l = 0; l < g->cfg->num_hidden_layers; l++)
		if (block_recurs(&g->cfg->block[l])) {
			*bytes += 2 * recur_bytes(&g->cfg->block[l], g->cfg->hidden_size);
			*products += state_products(&g->cfg->block[l]);
		}
}

enum { PROBES = 4, PROBE_ROWS = 64 };

static int first_sparse(const struct engine *g)
{
	int l = 0;

	while (g->layer[l].sparse < 0)
		l++;
	return l;
}

/* Seconds that one of the first experts takes to come from the drive; 0: they are in memory. *x:
 * one of them, demanded. */
static int probe_drive(struct engine *g, int l, struct expert *x, double *seconds, struct err *e)
{
	int ids[PROBES] = { 0, 1, 2, 3 }, n = g->cfg->num_experts_per_tok < PROBES
	    ? g->cfg->num_experts_per_tok : PROBES;
	struct store_stats before, after;
	double t = progress_clock();

	store_stats(g->store, &before);
	store_demand(g->store, l, ids, n, NULL);
	for (int i = 0; i < n; i++) {
		if (store_get(g->store, l, ids[i], x, e) < 0) {
			for (i++; i < n; i++)
				store_abandon(g->store, l, ids[i]);
			return -1;
		}
		if (i + 1 < n)
			store_put(g->store, l, ids[i]);
	}
	t = progress_clock() - t;
	store_stats(g->store, &after);
	*seconds = after.reads > before.reads ? t / (double)(after.reads - before.reads) : 0;
	return n - 1;
}

/* Multiplications per second with expert x, on rows of zeros. */
static double probe_compute(struct engine *g, int l, const struct expert *x)
{
	struct ffn_part p = { *x, 0, g->opt.max_rows < PROBE_ROWS ? g->opt.max_rows : PROBE_ROWS, l,
	    -1, -1 };
	int D = g->cfg->hidden_size, F = g->cfg->block[l].width;
	double t = 0;

	for (int r = 0; r < p.n; r++)
		ffn_place(g, r, r, -1);
	g->be->zero(g->be, g->s.x, sizeof(real) * (size_t)p.n * (size_t)D);
	if (g->opt.blocks)
		g->be->quantize(g->be, g->s.xq, g->s.x, p.n, D);
	for (int i = 0; i < 2; i++) {		/* the first time is for the caches */
		t = progress_clock();
		ffn_parts(g, &p, 1);
	}
	return 3.0 * p.n * D * F / (progress_clock() - t);
}

static int probe(struct engine *g, struct err *e)
{
	int l = first_sparse(g), held;
	struct expert one;

	if ((held = probe_drive(g, l, &one, &g->read_time, e)) < 0)
		return -1;
	g->speed = probe_compute(g, l, &one);
	store_put(g->store, l, held);
	return 0;
}

/* Multiplications of the scores and sums of attention of n tokens after none. */
static double attention(const struct engine *g, double n)
{
	const struct config *c = g->cfg;
	double span = 0, state = 0;

	for (int l = 0; l < c->num_hidden_layers; l++)
		if (block_recurs(&c->block[l]))
			state += (double)state_products(&c->block[l]);
		else
			span += c->block[l].window > 0 &&
			    c->block[l].window < n ? c->block[l].window : n / 2;
	return n * (2 * span * c->num_attention_heads * c->head_dim + state);
}

/* Multiplications of one token, but for attention. */
static double work(const struct engine *g)
{
	const struct config *c = g->cfg;
	double dense = 0, expert = 3.0 * c->hidden_size * c->moe_intermediate_size;

	for (int i = 0; i < g->par->n; i++)
		if (!param_routed(&g->par->p[i]))
			dense += (double)param_size(&g->par->p[i]);
	return dense - 2.0 * c->vocab_size * c->hidden_size + c->num_sparse *
	    c->num_experts_per_tok * expert;
}

int engine_expect(struct engine *g, int n, struct expectation *x, struct err *e)
{
	const struct config *c = g->cfg;
	double touched, passes = ceil((double)n / g->opt.max_rows), per_pass = n / passes;

	*x = (struct expectation){ 0 };
	if (c->num_sparse == 0)
		return 0;
	if (g->speed == 0 && probe(g, e) < 0)
		return -1;
	touched = c->num_sparse * c->num_experts *
	    (1 - pow(1 - (double)c->num_experts_per_tok / c->num_experts, per_pass));
	if (touched > store_slots(g->store))
		touched *= passes;
	x->bytes = g->read_time > 0 ? touched * (double)g->expert_bytes : 0;
	x->reads = touched * g->read_time;
	x->compute = (n * work(g) + attention(g, n)) / g->speed;
	x->seconds = fmax(x->compute, x->reads);
	return 0;
}
