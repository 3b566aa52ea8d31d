#include "decode_int.h"
#include "quant.h"

/* Only a row of the embedding is read, unless it is the head as well. */
static bool read_by_token(const struct engine *g, const struct param *p)
{
	if (p->kind == P_EMBED)
		return params_get(g->par, P_HEAD, -1, -1) == NULL;
	if (p->kind == P_LOOK0 || p->kind == P_LOOK2)
		return look_mode(g) != 0;
	return !load_is_expert(p);
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
		*bytes += t == DT_REAL ? param_size(p) * (int64_t)sizeof(real) : (int64_t)mat_bytes(t, p->rows, p->cols);
		*products += p->ndim == 2 ? param_size(p) : 0;
	}
}
