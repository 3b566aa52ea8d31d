/*
 * Engines over a model in training: its weights are used where they are. Only k_nope, which decode wants transposed, is
 * copied, after each change.
 */
#include <stdlib.h>

#include "decode_int.h"

/* Elements of all k_nope projections, and of the largest. */
static int64_t knope_elements(const struct params *ps, int64_t *most)
{
	int64_t n = 0;

	*most = 0;
	for (int i = 0; i < ps->n; i++)
		if (ps->p[i].kind == P_KNOPE) {
			n += (param_size(&ps->p[i]) + 15) & ~(int64_t)15;
			if (param_size(&ps->p[i]) > *most)
				*most = param_size(&ps->p[i]);
		}
	return n;
}

void engine_over_plan(const struct config *c, const struct params *ps, const struct engine_opt *o, struct mem_plan *plan)
{
	struct engine *g = calloc(1, sizeof(*g));
	struct mem_plan own = { 0 };
	int64_t most, n = knope_elements(ps, &most);

	if (!g)
		err_die(EX_OSERR, "out of memory");
	g->opt = *o;
	engine_settle(&g->opt);
	g->cfg = c;
	g->par = ps;
	load_plan_state(g, &own);
	mem_plan_add(plan, "decoding", mem_plan_total(&own) + (n + 2 * most) * (int64_t)sizeof(real));
	free(g);
}

void engine_refresh(struct engine *g)
{
	const struct params *ps = g->par;
	real *w = g->w;
	int64_t most;

	knope_elements(ps, &most);
	for (int i = 0; i < ps->n; i++) {
		const struct param *p = &ps->p[i];
		int64_t n = param_size(p);
		real *in = g->host, *out = g->host + most;

		if (p->kind != P_KNOPE)
			continue;
		g->be->get(in, g->flat + p->off, sizeof(*in) * (size_t)n);
		for (int64_t j = 0; j < n; j++)
			out[load_knope_at(g->cfg, p, j)] = in[j];
		g->be->put(w, out, sizeof(*out) * (size_t)n);
		load_place(g, p, w, DT_REAL);
		w += (n + 15) & ~(int64_t)15;
	}
}

int over_weights(struct engine *g, struct err *e)
{
	const struct params *ps = g->par;
	const struct param *look0 = params_get(ps, P_LOOK0, -1, -1);
	int64_t most, n = knope_elements(ps, &most);

	g->look_width = look0 ? look0->rows : 0;
	if (load_layers(g, e) < 0)
		return -1;
	g->w = g->be->alloc(sizeof(real) * (size_t)(n + 1));
	g->host = malloc(sizeof(real) * (size_t)(2 * most + 1));
	if (!g->w || !g->host)
		return err_set(e, EX_OSERR, "out of memory for the engine of a model in training");
	for (int i = 0; i < ps->n; i++) {
		const struct param *p = &ps->p[i];

		if (load_is_expert(p))
			*load_expert_mat(g, p) = (struct mat){ g->flat + p->off, DT_REAL, p->rows, p->cols };
		else
			load_place(g, p, g->flat + p->off, DT_REAL);
	}
	engine_refresh(g);
	return 0;
}
