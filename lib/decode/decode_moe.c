/*
 * The feed-forward half of a layer, and the lookahead head. Rows are sorted by expert; experts
 * that are there are computed at once, together with the shared ones, while the others are still
 * being read. In which order experts arrive changes only where in moe_x their rows lie: the sum
 * over a row's experts is always in slot order.
 */
#include <string.h>

#include "decode/decode_int.h"
#include "backend/quant.h"

static struct gemm_job times_mat(dev_real *y, const dev_real *x, const struct mat *w, int rows)
{
	return (struct gemm_job){ .c = y, .ldc = w->rows, .a = x, .lda = w->cols, .b = w->p,
	    .ldb = w->cols,
	    .bt = w->dt, .m = rows, .n = w->rows, .k = w->cols };
}

static bool part_blocks(const struct ffn_part *p) { return dtype_rounded(p->x.gate.dt); }

static int part_width(const struct ffn_part *p) { return p->x.gate.rows; }

static bool parts_alike(const struct ffn_part *p, const struct ffn_part *q)
{
	return part_blocks(p) == part_blocks(q) && part_width(p) == part_width(q);
}

/* Of a table of all experts' biases, that of a part. */
static const dev_real *bias_of(const struct ffn_part *p, const dev_real *table)
{
	return table && p->expert >= 0 ? table + (int64_t)p->expert * part_width(p) : NULL;
}

void ffn_bias(struct engine *g, dev_real *x, const dev_real *table, int64_t row0, int64_t n, int w)
{
	if (table)
		g->be->combine(g->be, x, table, g->s.row_expert + row0, NULL, n, 1, w);
}

void ffn_place(struct engine *g, int at, int row, int expert)
{
	g->t.rowidx[at] = row;
	if (g->s.row_expert)
		g->t.row_expert[at] = expert;
}

/* Which rows of x, and of whose experts, n rows of moe_x from row0 on are. */
static void push_rows(struct engine *g, int64_t row0, int64_t n)
{
	push(g, g->s.rowidx + row0, g->t.rowidx + row0, (size_t)n * sizeof *g->t.rowidx);
	if (g->s.row_expert)
		push(g, g->s.row_expert + row0, g->t.row_expert + row0,
		    (size_t)n * sizeof *g->t.row_expert);
}

/*
 * FFNs of n parts whose rows follow each other in moe_x, in two steps, for floats and for
 * blocks: SwiGLU of gate and up, then down; the result replaces the input in moe_x. s->xq has
 * the rows of s->x as blocks.
 */

static void up_blocks(struct engine *g, const struct ffn_part *p, int n)
{
	struct scratch *s = &g->s;
	struct tables *t = &g->t;
	const struct layer *l = &g->layer[p->layer];
	size_t row = quant_row_bytes(g->cfg->hidden_size), hidden = quant_row_bytes(part_width(p));
	int64_t row0 = p[0].row0, rows = p[n - 1].row0 + p[n - 1].n - row0;
	int jobs = 0;

	push_rows(g, row0, rows);
	g->be->gather(g->be, (dev_real *)(s->moe_xq + row0 * row), (const dev_real *)s->xq,
	    s->rowidx + row0, rows,
	    (int)(row / sizeof(real)));
	for (int i = 0; i < n; i++)
		for (int at = p[i].row0, end = at + p[i].n, m; at < end; at += m)
			if (!adapt_ffn(g, &p[i], at, &m))
				t->qffn[jobs++] = (struct qffn_job){ s->moe_xq + at * row,
				    s->moe_hq + at * hidden, p[i].x.gate, p[i].x.up, m,
				    bias_of(&p[i], l->gate_bias), bias_of(&p[i], l->up_bias),
				    g->cfg->block[p->layer].glu };
	g->be->qffn(g->be, t->qffn, jobs);
	adapt_up_blocks(g, p, n);
}

static void down_blocks(struct engine *g, const struct ffn_part *p, int n)
{
	struct scratch *s = &g->s;
	struct tables *t = &g->t;
	int D = g->cfg->hidden_size;
	size_t hidden = quant_row_bytes(part_width(p));

	for (int i = 0; i < n; i++)
		t->qgemm[i] = (struct qgemm_job){ s->moe_x + (int64_t)p[i].row0 * D, D,
		    s->moe_hq + p[i].row0 * hidden, p[i].x.down,
		    p[i].n, 0 };
	g->be->qgemm(g->be, t->qgemm, n);
}

static void up_floats(struct engine *g, const struct ffn_part *p, int n)
{
	struct scratch *s = &g->s;
	struct tables *t = &g->t;
	const struct layer *l = &g->layer[p->layer];
	int D = g->cfg->hidden_size, width = part_width(p);
	int64_t row0 = p[0].row0, rows = p[n - 1].row0 + p[n - 1].n - row0;

	push_rows(g, row0, rows);
	g->be->gather(g->be, s->moe_x + row0 * D, s->x, s->rowidx + row0, rows, D);
	for (int i = 0; i < n; i++) {
		const dev_real *x = s->moe_x + (int64_t)p[i].row0 * D;

		t->job[2 * i] = times_mat(s->moe_g + (int64_t)p[i].row0 * width, x, &p[i].x.gate,
		    p[i].n);
		t->job[2 * i + 1] = times_mat(s->moe_u + (int64_t)p[i].row0 * width, x, &p[i].x.up,
		    p[i].n);
	}
	g->be->gemm(g->be, GEMM_NT, t->job, 2 * n);
	adapt_up(g, p, n);
	ffn_bias(g, s->moe_g + row0 * width, l->gate_bias, row0, rows, width);
	ffn_bias(g, s->moe_u + row0 * width, l->up_bias, row0, rows, width);
	g->be->swiglu(g->be, s->moe_g + row0 * width, s->moe_g + row0 * width,
	    s->moe_u + row0 * width, rows * width, g->cfg->block[p->layer].glu);
}

static void down_floats(struct engine *g, const struct ffn_part *p, int n)
{
	struct scratch *s = &g->s;
	struct tables *t = &g->t;
	int D = g->cfg->hidden_size, width = part_width(p);

	for (int i = 0; i < n; i++)
		t->job[i] = times_mat(s->moe_x + (int64_t)p[i].row0 * D,
		    s->moe_g + (int64_t)p[i].row0 * width,
		    &p[i].x.down, p[i].n);
	g->be->gemm(g->be, GEMM_NT, t->job, n);
}

static void ffn_up(struct engine *g, const struct ffn_part *p, int n)
{
	(part_blocks(p) ? up_blocks : up_floats)(g, p, n);
}

static void ffn_down(struct engine *g, const struct ffn_part *p, int n)
{
	int64_t row0 = p[0].row0, rows = p[n - 1].row0 + p[n - 1].n - row0;
	int D = g->cfg->hidden_size;

	(part_blocks(p) ? down_blocks : down_floats)(g, p, n);
	adapt_down(g, p, n);
	ffn_bias(g, g->s.moe_x + row0 * D, g->layer[p->layer].down_bias, row0, rows, D);
}

void ffn_parts(struct engine *g, const struct ffn_part *p, int n)
{
	for (int i = 0, m; i < n; i += m) {
		for (m = 1; i + m < n && parts_alike(&p[i + m], &p[i]); m++)
			continue;
		ffn_up(g, p + i, m);
		ffn_down(g, p + i, m);
	}
}

static int fixed_param(const struct engine *g, int l, int f)
{
	return g->cfg->block[l].sparse ? param_at(g, P_SH_GATE, l, f)
	    : param_at(g, P_MLP_GATE, l, -1);
}

/* Shared experts (or the MLP of a dense layer) take all rows and the first places of moe_x. */
static int fixed_parts(struct engine *g, int l, struct ffn_part *p)
{
	int n = block_fixed(&g->cfg->block[l]);

	for (int f = 0; f < n; f++) {
		p[f] = (struct ffn_part){ g->layer[l].ffn[f], f * g->rows, g->rows, l, -1,
		    fixed_param(g, l, f) };
		for (int r = 0; r < g->rows; r++)
			ffn_place(g, f * g->rows + r, r, -1);
	}
	return n;
}

/* The shared experts of layer l have been computed: their rows times sigmoid(x . gate). */
static void gate_shared(struct engine *g, int l)
{
	const struct block *b = &g->cfg->block[l];
	struct scratch *s = &g->s;
	int D = g->cfg->hidden_size;
	struct mat gate = { g->layer[l].shared_gate, DT_REAL, 1, D };
	struct gemm_job z = times_mat(s->sgate, s->x, &gate, g->rows);

	if (!b->shared_gate)
		return;
	g->be->gemm(g->be, GEMM_NT, &z, 1);
	adapt_add(g, P_SH_SIGMOID, l, s->sgate, s->x, NULL, g->rows);
	g->be->sigmoid(g->be, s->sgate, s->sgate, g->rows);
	for (int f = 0; f < b->shared; f++)
		g->be->scale_rows(g->be, s->moe_x + (int64_t)f * g->rows * D, s->sgate, g->rows, D);
}

static int next_sparse(const struct engine *g, int l)
{
	for (l++; l < g->cfg->num_hidden_layers; l++)
		if (g->layer[l].sparse >= 0)
			return l;
	return -1;
}

static void router(struct engine *g, int l, const dev_real *x, dev_real *logits)
{
	struct mat gate = { g->layer[l].gate, DT_REAL, g->cfg->num_experts, g->cfg->hidden_size };
	struct gemm_job job = times_mat(logits, x, &gate, g->rows);

	g->be->gemm(g->be, GEMM_NT, &job, 1);
	adapt_add(g, P_GATE, l, logits, x, NULL, g->rows);
	if (g->layer[l].logit_bias)
		g->be->combine(g->be, logits, g->layer[l].logit_bias, g->s.zeros, NULL, g->rows, 1,
		    g->cfg->num_experts);
}

const real *router_bias(const struct engine *g, int l)
{
	return g->layer[l].router_bias ? g->t.bias + (int64_t)g->layer[l].sparse *
	    g->cfg->num_experts : NULL;
}

/* What the router of layer l says of rows of x, to the predictor. */
static void hear(struct engine *g, enum predictor who, int l, const dev_real *x)
{
	struct scratch *s = &g->s;
	struct tables *t = &g->t;
	int E = g->cfg->num_experts;
	size_t n = (size_t)g->rows * (size_t)E;

	router(g, l, x, s->router_next);
	pull(g, t->router_next, s->router_next, n * sizeof *t->router_next);
	for (int r = 0; r < g->rows; r++)
		router_wants(&g->cfg->block[l].router, router_bias(g, l),
		    t->router_next + (int64_t)r * E, E, g->cfg->num_experts_per_tok,
		    t->router_next + (int64_t)r * E);
	predict_hear(g->predict, who, g->layer[l].sparse, t->router_next, g->rows);
}

static bool asked(const struct engine *g, enum predictor s)
{
	return g->opt.predict & SRC_BIT(s);
}

/* The router's choice. */
static void choose(struct engine *g, int l)
{
	const struct config *c = g->cfg;
	struct scratch *s = &g->s;
	struct tables *t = &g->t;
	size_t n = (size_t)g->rows * (size_t)c->num_experts_per_tok;

	router(g, l, s->x, s->router);
	if (asked(g, SRC_CONTROL))
		hear(g, SRC_CONTROL, l, s->x);
	g->be->route(g->be, &(struct route_args){ .r = &c->block[l].router, .n = g->rows,
	    .E = c->num_experts, .K = c->num_experts_per_tok, .bias = g->layer[l].router_bias,
	    .probs = s->router, .sums = s->sums, .ids = s->ids, .weights = s->weight });
	pull(g, t->ids, s->ids, n * sizeof *t->ids);
	pull(g, t->weight, s->weight, n * sizeof *t->weight);
}

/* Where the results for each row are, and what they weigh: n of them. */
static void push_slots(struct engine *g, int n)
{
	size_t all = (size_t)g->rows * (size_t)n;

	push(g, g->s.slot, g->t.slot, all * sizeof *g->t.slot);
	push(g, g->s.coef, g->t.coef, all * sizeof *g->t.coef);
}

/* The next router's input, if the routed experts of layer l added nothing: computes the shared
 * ones, which lie first. */
static void look_past_shared(struct engine *g, int l, int next)
{
	const struct config *c = g->cfg;
	struct scratch *s = &g->s;
	struct tables *t = &g->t;
	const struct block *b = &c->block[l];
	int S = b->shared, D = c->hidden_size;

	g->be->copy(g->be, s->ahead, s->h, sizeof(real) * (size_t)g->rows * (size_t)D);
	for (int i = 0; i < g->rows * S; i++) {
		t->slot[i] = i % S * g->rows + i / S;
		t->coef[i] = (real)(block_shared_weight(b, 1) * c->residual_multiplier);
	}
	push_slots(g, S);
	if (S > 0)
		g->be->combine(g->be, s->ahead, s->moe_x, s->slot, s->coef, g->rows, S, D);
	g->be->rmsnorm(g->be, s->ahead, NULL, s->ahead, g->layer[next].post_norm, g->rows, D,
	    c->rms_norm_eps);
	hear(g, SRC_SHARED, next, s->ahead);
}

/* Says what the next sparse layer will need. *fixed becomes 0 when this has computed the shared
 * experts. */
static void tell_next(struct engine *g, int l, int *fixed)
{
	int next = g->opt.predict & SRC_MEASURED && !store_complete(g->store) ? next_sparse(g, l)
	    : -1;
	struct tables *t = &g->t;

	foresee_rows(g, l);
	oracle_rows(g, l);
	if (next < 0)
		return;
	if (asked(g, SRC_GATE))
		hear(g, SRC_GATE, next, g->s.x);
	if (asked(g, SRC_SHARED)) {
		ffn_parts(g, t->part, *fixed);
		gate_shared(g, l);
		*fixed = 0;
		look_past_shared(g, l, next);
	}
	predict_next(g->predict, g->store, g->layer[next].sparse, t->about, g->rows);
}

static void trace(struct engine *g, int i)
{
	const struct config *c = g->cfg;
	int K = c->num_experts_per_tok, E = c->num_experts, D = c->hidden_size;
	bool probs = false;

	for (int j = 0; j < g->nseg; j++)
		probs |= g->t.seg[j].it->probs != NULL;
	if (probs)
		pull(g, g->t.router, g->s.router, (size_t)(g->rows * E) * sizeof(real));
	for (int j = 0; j < g->nseg; j++) {
		const struct seg *seg = &g->t.seg[j];

		for (int r = 0; r < seg->n; r++) {
			int64_t at = (int64_t)(seg->done + r) * c->num_sparse + i,
			    row = seg->row0 + r;

			if (seg->it->topk)
				memcpy(seg->it->topk + at * K, g->t.ids + row * K,
				    sizeof(int32_t) * K);
			if (seg->it->probs)
				memcpy(seg->it->probs + at * E, g->t.router + row * E,
				    sizeof(real) * E);
			if (seg->it->inputs)
				g->be->get(g->be, seg->it->inputs + at * D, g->s.x + row * D,
				    sizeof(real) * (size_t)D);
		}
	}
}

/* Sorts slots by expert (count, start, order) and lists the experts wanted, those in memory
 * first. */
static int sort_slots(struct engine *g, int l)
{
	struct tables *t = &g->t;
	int E = g->cfg->num_experts, n = g->rows * g->cfg->num_experts_per_tok, wanted = 0;

	memset(t->count, 0, sizeof(*t->count) * E);
	for (int j = 0; j < n; j++)
		t->count[t->ids[j]]++;
	t->start[0] = 0;
	for (int x = 0; x < E; x++)
		t->start[x + 1] = t->start[x] + t->count[x];
	memset(t->count, 0, sizeof(*t->count) * E);
	for (int j = 0; j < n; j++)
		t->order[t->start[t->ids[j]] + t->count[t->ids[j]]++] = j;
	for (int ready = 1; ready >= 0; ready--)
		for (int x = 0; x < E; x++)
			if (t->count[x] > 0 && store_ready(g->store, l, x) == ready)
				t->wanted[wanted++] = x;
	return wanted;
}

/* Gives the rows of expert x the places of moe_x from `row` on. */
static void place_rows(struct engine *g, int l, int x, int row, struct ffn_part *p)
{
	struct tables *t = &g->t;
	int K = g->cfg->num_experts_per_tok, width = K + g->cfg->block[l].shared;

	p->row0 = row;
	p->n = t->count[x];
	p->layer = l;
	p->expert = x;
	p->param = param_at(g, P_EXP_GATE, l, x);
	for (int i = t->start[x]; i < t->start[x + 1]; i++, row++) {
		int j = t->order[i];

		ffn_place(g, row, j / K, x);
		t->slot[j / K * width + j % K] = row;
	}
}

static int take(struct engine *g, int l, int x, int row, struct ffn_part *p, struct err *e)
{
	if (store_get(g->store, l, x, &p->x, e) < 0)
		return -1;
	place_rows(g, l, x, row, p);
	return 0;
}

/* Waits for expert x, computing with gate and up as soon as they are there. */
static int await(struct engine *g, int l, int x, int row, struct ffn_part *p, struct err *e)
{
	bool early = store_get_half(g->store, l, x, &p->x);

	if (early) {
		place_rows(g, l, x, row, p);
		ffn_up(g, p, 1);
	}
	if (take(g, l, x, row, p, e) < 0)
		return -1;
	if (!early)
		ffn_up(g, p, 1);
	ffn_down(g, p, 1);
	return 0;
}

static void release(struct engine *g, int l, const int32_t *ids, int taken, int n)
{
	for (int i = 0; i < taken; i++)
		store_put(g->store, l, ids[i]);
	for (int i = taken; i < n; i++)
		store_abandon(g->store, l, ids[i]);
}

static bool any_ready(struct engine *g, int l, const int32_t *ids, int n)
{
	for (int i = 0; i < n; i++)
		if (store_ready(g->store, l, ids[i]))
			return true;
	return false;
}

/* Computes those of n demanded experts that are there, with the `fixed` parts already in
 * t->part, and moves them to the front of ids. Returns how many. */
static int compute_ready(struct engine *g, int l, int32_t *ids, int n, int fixed, int *row,
    struct err *e)
{
	struct ffn_part *p = g->t.part;
	int taken = 0;

	for (int i = 0; i < n; i++) {
		int x = ids[i];

		if (!store_ready(g->store, l, x))
			continue;
		take(g, l, x, *row, &p[fixed + taken], e);	/* cannot fail: it is there */
		*row += p[fixed + taken].n;
		ids[i] = ids[taken];
		ids[taken++] = x;
	}
	ffn_parts(g, p, fixed + taken);
	if (fixed > 0)
		gate_shared(g, l);
	return taken;
}

/* Computes n demanded experts, and the `fixed` parts along with the first of them, as they
 * arrive. *row: next free place of moe_x. */
static int compute(struct engine *g, int l, int32_t *ids, int n, int fixed, int *row, struct err *e)
{
	while (n > 0 || fixed > 0) {
		int taken = 1;

		if (fixed > 0 || any_ready(g, l, ids, n)) {
			taken = compute_ready(g, l, ids, n, fixed, row, e);
		} else if (g->single && g->opt.on_miss == ONMISS_SHARED) {
			if (store_failed(g->store, e) == 0)
				break;
			release(g, l, ids, 0, n);
			return -1;
		} else if (await(g, l, ids[0], *row, g->t.part, e) < 0) {
			/* the failed demand has ended by itself */
			release(g, l, ids + 1, 0, n - 1);
			return -1;
		} else
			*row += g->t.part[0].n;
		release(g, l, ids, taken, taken);
		store_poll(g->store);
		ids += taken;
		n -= taken;
		fixed = 0;
	}
	release(g, l, ids, 0, n);	/* soft: the shared experts stand in for what is not
					   there */
	return 0;
}

/* Weights of a row's slots; shared experts are averaged, and take the weight of what is missing
 * once more. All that a layer adds is multiplied by a factor in some families. */
static void coefficients(struct engine *g, const struct block *b)
{
	struct tables *t = &g->t;
	int K = b->sparse ? g->cfg->num_experts_per_tok : 0, n = block_fixed(b);
	real times = (real)g->cfg->residual_multiplier;

	for (int r = 0; r < g->rows; r++) {
		real *coef = t->coef + (int64_t)r * (K + n), missing = 0, all = 0;
		int32_t *slot = t->slot + (int64_t)r * (K + n);

		for (int k = 0; k < K; k++) {
			real weight = t->weight[(int64_t)r * K + k];

			all += weight;
			coef[k] = weight * times;
			if (slot[k] < 0)
				missing += weight;
		}
		for (int f = 0; f < n; f++) {
			coef[K + f] = times * (b->sparse ? (real)block_shared_weight(b, 1 + missing)
			    : 1);
			slot[K + f] = f * g->rows + r;
		}
		g->replaced += missing > 0 ? (double)(missing / all) : 0;
	}
}

/* Each sequence remembers what its last row used. */
static void remember(struct engine *g, int i)
{
	int K = g->cfg->num_experts_per_tok;

	for (int j = 0; j < g->nseg; j++) {
		const struct seg *seg = &g->t.seg[j];

		memcpy(seg->it->s->last + (int64_t)i * K,
		    g->t.ids + (int64_t)(seg->row0 + seg->n - 1) * K, sizeof(int32_t) * (size_t)K);
	}
}

static int routed(struct engine *g, int l, struct err *e)
{
	struct layer *w = &g->layer[l];
	struct tables *t = &g->t;
	int n, most = store_room(g->store), fixed = fixed_parts(g, l, t->part),
	    row = fixed * g->rows;

	choose(g, l);
	if (!store_complete(g->store) || asked(g, SRC_CONTROL)) {
		predict_seen(g->predict, w->sparse, t->ids, g->rows, t->about, g->st->source);
		remember(g, w->sparse);
	}
	if (g->single && g->opt.route_bias > 0 && !store_complete(g->store))
		bias_route(g, l);
	trace(g, w->sparse);
	n = sort_slots(g, l);
	for (int i = 0; i < n; i += most) {
		int m = n - i < most ? n - i : most;

		store_demand(g->store, l, t->wanted + i, m, NULL);
		if (i == 0) {
			tell_next(g, l, &fixed);
			memset(t->slot, -1, sizeof(*t->slot) * (size_t)g->rows *
			    (g->cfg->num_experts_per_tok + g->cfg->block[l].shared));
		}
		if (compute(g, l, t->wanted + i, m, i == 0 ? fixed : 0, &row, e) < 0)
			return -1;
	}
	store_advance(g->store);
	return 0;
}

/* h += FFN(RMSNorm(h)) */
int ffn_layer(struct engine *g, int l, struct err *e)
{
	struct layer *w = &g->layer[l];
	const struct block *b = &g->cfg->block[l];
	struct scratch *s = &g->s;
	struct tables *t = &g->t;
	int D = g->cfg->hidden_size, K = b->sparse ? g->cfg->num_experts_per_tok : 0;

	g->be->rmsnorm(g->be, s->x, NULL, s->h, w->post_norm, g->rows, D, g->cfg->rms_norm_eps);
	if (g->opt.blocks)
		g->be->quantize(g->be, s->xq, s->x, g->rows, D);
	if (!b->sparse)
		ffn_parts(g, t->part, fixed_parts(g, l, t->part));
	else if (routed(g, l, e) < 0)
		return -1;
	coefficients(g, b);
	push_slots(g, K + block_fixed(&g->cfg->block[l]));
	g->be->combine(g->be, s->h, s->moe_x, s->slot, s->coef, g->rows, K + block_fixed(b), D);
	return 0;
}

/* Which segment and item token row r belongs to. */
static const struct seg *seg_of(const struct engine *g, int r)
{
	const struct seg *seg = g->t.seg;

	while (r >= seg->row0 + seg->n)
		seg++;
	return seg;
}

static void look_block(struct engine *g, const int32_t *rows, int n)
{
	const struct backend *be = g->be;
	struct scratch *s = &g->s;
	struct tables *t = &g->t;
	int D = g->cfg->hidden_size, W = config_lookahead_rows(g->cfg), E = g->cfg->num_experts;
	struct mat m0 = { g->look0, DT_REAL, g->look_width, D }, m2 = { g->look2, DT_REAL, W,
	    g->look_width };
	struct gemm_job job;

	be->put(be, s->head_row, rows, (size_t)n * sizeof *rows);
	be->gather(be, s->head_x, s->h, s->head_row, n, D);
	job = times_mat(s->look_h, s->head_x, &m0, n);
	be->gemm(be, GEMM_NT, &job, 1);
	adapt_add(g, P_LOOK0, -1, s->look_h, s->head_x, rows, n);
	be->silu(be, s->look_h, s->look_h, (int64_t)n * g->look_width);
	job = times_mat(s->look, s->look_h, &m2, n);
	be->gemm(be, GEMM_NT, &job, 1);
	adapt_add(g, P_LOOK2, -1, s->look, s->look_h, rows, n);
	pull(g, t->look, s->look, (size_t)(n * W) * sizeof *t->look);
	for (int i = 0; i < n; i++) {
		const struct seg *seg = seg_of(g, rows[i]);
		struct seq *q = seg->it->s;
		int64_t first = (int64_t)i * W;
		int at = rows[i] - seg->row0;

		if (look_mode(g) && at == seg->n - 1
		    && predict_look(g->predict, g->store, t->look + first, g->layer[0].sparse == 0,
		    q->same,
		    q->coming))
			t->about[rows[i]].same = q->same;
		if (seg->it->look) {
			be->softmax(be, s->look + first, W / E, E);
			be->get(be, seg->it->look + (int64_t)(seg->done + at) * W,
			    s->look + first, sizeof(real) * (size_t)W);
		}
	}
}

/* The lookahead head on the rows that want it: all of a traced item, else the last one when it
 * predicts. */
void look_rows(struct engine *g)
{
	struct tables *t = &g->t;
	int n = 0;

	for (int i = 0; i < g->nseg; i++) {
		const struct seg *seg = &t->seg[i];
		int first = seg->it->look ? seg->row0 : seg->row0 + seg->n - (look_mode(g) ? 1 : 0);

		for (int r = first; r < seg->row0 + seg->n; r++)
			t->head_row[n++] = r;
	}
	for (int i = 0; i < n; i += HEAD_ROWS)
		look_block(g, t->head_row + i, n - i < HEAD_ROWS ? n - i : HEAD_ROWS);
}
