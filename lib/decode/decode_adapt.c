/*
 * What adapters add to the products of a pass. Jobs are collected and multiplied together, first
 * with A, then with B.
 */
#include "decode/decode_int.h"
#include "backend/quant.h"

int param_at(const struct engine *g, enum param_kind k, int layer, int expert)
{
	const struct param *p = params_get(g->par, k, layer, expert);

	return p ? (int)(p - g->par->p) : -1;
}

const struct engine_adapter *engine_adapters(const struct engine *g, int *n)
{
	*n = g->opt.adapters;
	return g->opt.adapter;
}

void adapt_rows(struct engine *g)
{
	struct adapts *a = &g->adapts;

	a->here = false;
	for (int j = 0; g->opt.adapters > 0 && j < g->nseg; j++) {
		const struct seg *seg = &g->t.seg[j];

		for (int r = 0; r < seg->n; r++)
			a->of_row[seg->row0 + r] = seg->it->s->adapter;
		a->here = a->here || seg->it->s->adapter > 0;
	}
}

/* What an adapter has for a parameter, or NULL. */
static const struct low *low_of(const struct engine *g, int adapter, int param)
{
	int64_t i = adapter == 0 || param < 0 ? -1
	    : g->adapts.find[(int64_t)(adapter - 1) * g->par->n + param];

	return i < 0 ? NULL : &g->adapts.low[i];
}

static int row_at(const int32_t *of, int i) { return of ? of[i] : i; }

/* Rows from i of n on that have the same adapter: how many. */
static int run(const struct engine *g, const int32_t *of, int i, int n, int *adapter)
{
	const int32_t *has = g->adapts.of_row;
	int m = 1;

	*adapter = has[row_at(of, i)];
	while (i + m < n && has[row_at(of, i + m)] == *adapter)
		m++;
	return m;
}

struct pair {			/* y (rows, out) += b (a x), x (rows, in) */
	dev_real *y;
	const dev_real *x, *a, *b;	/* a (rank, in), b (out, rank) */
	int64_t ldy, ldx;
	int rank, in, out;
};

static void collect(struct engine *g, const struct pair *p, int rows)
{
	struct adapts *t = &g->adapts;
	dev_real *mid = t->mid + t->used;

	t->down[t->jobs] = product(mid, p->rank, p->x, p->ldx, p->a, rows, p->rank, p->in);
	t->up[t->jobs] = product(p->y, p->ldy, mid, p->rank, p->b, rows, p->out, p->rank);
	t->up[t->jobs++].beta = 1;
	t->used += (int64_t)rows * p->rank;
}

static void collect_low(struct engine *g, const struct low *w, dev_real *y, const dev_real *x,
    int rows)
{
	if (w)
		collect(g, &(struct pair){ y, x, w->a, w->b, w->rows, w->cols, w->rank, w->cols,
		    w->rows }, rows);
}

static void multiply(struct engine *g)
{
	struct adapts *t = &g->adapts;

	if (t->jobs > 0) {
		g->be->gemm(g->be, GEMM_NT, t->down, t->jobs);
		g->be->gemm(g->be, GEMM_NT, t->up, t->jobs);
	}
	t->jobs = 0;
	t->used = 0;
}

void adapt_linear(struct engine *g, const struct linear *l, int n, const int32_t *of, int rows)
{
	int adapter;

	if (!g->adapts.here)
		return;
	for (int r = 0, m; r < rows; r += m) {
		m = run(g, of, r, rows, &adapter);
		for (int i = 0; i < n; i++)
			collect_low(g, low_of(g, adapter, l[i].w.param),
			    l[i].y + (int64_t)r * l[i].w.m.rows,
			    l[i].x + (int64_t)r * l[i].w.m.cols, m);
	}
	multiply(g);
}

void adapt_add(struct engine *g, enum param_kind k, int l, dev_real *y, const dev_real *x,
    const int32_t *of, int n)
{
	int param = g->adapts.here ? param_at(g, k, l, -1) : -1;
	const struct param *p = param < 0 ? NULL : &g->par->p[param];

	if (p)
		adapt_linear(g, &(struct linear){ y, x, { { NULL, DT_REAL, p->rows, p->cols },
		    param }, 1 }, 1, of, n);
}

/* --- latent attention --- */

/* y of each head += what adapters add to its keys or values: y of a head is `out` wide, x `step`
 * apart. Heads of a key or value head use its part of B; keys are absorbed into queries, so that
 * theirs is multiplied first. */
static void adapt_heads(struct engine *g, int l, enum param_kind own, dev_real *y, int out,
    const dev_real *x, int64_t step)
{
	const struct block *b = &g->cfg->block[l];
	bool whole = b->attn == ATTN_LATENT, keys = own == P_KNOPE;
	int H = g->cfg->num_attention_heads, C = b->latent, N = b->nope, adapter,
	    G = whole ? H : g->cfg->num_key_value_heads;

	if (!g->adapts.here)
		return;
	for (int64_t r = 0, m; r < g->rows; r += m) {
		const struct low *low;

		m = run(g, NULL, (int)r, g->rows, &adapter);
		low = low_of(g, adapter, param_at(g, whole ? P_KVB : own, l, -1));
		for (int h = 0; low && h < H; h++) {
			int64_t at = r * H + h, of = (int64_t)h * G / H * low->rank;
			/* in a matrix of both, values come after all keys */
			const dev_real *part = low->b + (keys ? of * N
			    : of * out + (whole ? (int64_t)G * N * low->rank : 0));

			collect(g, &(struct pair){ y + at * out, x + at * step,
			    keys ? part : low->a, keys ? low->turned : part,
			    (int64_t)H * out, H * step, low->rank, keys ? N : C, out }, (int)m);
		}
	}
	multiply(g);
}

void adapt_keys(struct engine *g, int l, int64_t step)
{
	adapt_heads(g, l, P_KNOPE, g->s.q_abs, g->cfg->block[l].latent, g->s.q, step);
}

void adapt_values(struct engine *g, int l)
{
	const struct block *b = &g->cfg->block[l];

	adapt_heads(g, l, P_MLA_V, g->s.att, b->value, g->s.ctx, b->latent);
}

/* --- convolutions --- */

const dev_real *adapt_conv(const struct engine *g, int l, int i, int *n)
{
	const struct seg *seg = g->t.seg;
	int adapter = seg[i].it->s->adapter;
	const struct low *w = low_of(g, adapter, adapter ? param_at(g, P_CONV, l, -1) : -1);

	for (*n = 1; i + *n < g->nseg && seg[i + *n].it->s->adapter == adapter; ++*n)
		continue;
	return w ? w->sum : g->layer[l].conv;
}

/* --- FFNs: gate, up and down of an expert are parameters that follow each other --- */

bool adapt_ffn(const struct engine *g, const struct ffn_part *p, int at, int *n)
{
	int adapter;

	*n = p->row0 + p->n - at;
	if (!g->adapts.here || p->param < 0)
		return false;
	*n = run(g, g->t.rowidx + at, 0, *n, &adapter);
	for (int i = 0; i < 3; i++)
		if (low_of(g, adapter, p->param + i))
			return true;
	return false;
}

/* Of matrix `which` of the experts: rows of y and x as in moe_x. */
static void collect_parts(struct engine *g, const struct ffn_part *p, int n, int which, dev_real *y,
    const dev_real *x)
{
	int adapter;

	for (int i = 0; i < n; i++)
		for (int at = p[i].row0, end = at + p[i].n, m; at < end; at += m) {
			const struct low *w;

			m = run(g, g->t.rowidx + at, 0, end - at, &adapter);
			w = low_of(g, adapter, p[i].param < 0 ? -1 : p[i].param + which);
			if (w)
				collect_low(g, w, y + (int64_t)at * w->rows,
				    x + (int64_t)at * w->cols, m);
		}
}

void adapt_up(struct engine *g, const struct ffn_part *p, int n)
{
	if (!g->adapts.here)
		return;
	collect_parts(g, p, n, 0, g->s.moe_g, g->s.moe_x);
	collect_parts(g, p, n, 1, g->s.moe_u, g->s.moe_x);
	multiply(g);
}

void adapt_down(struct engine *g, const struct ffn_part *p, int n)
{
	if (!g->adapts.here)
		return;
	collect_parts(g, p, n, 2, g->s.moe_x, g->s.moe_g);
	multiply(g);
}

/* Rows of moe_x that follow each other and have adapters, from `at` on: the first, and in *n how
 * many; *n 0: there are no more. */
static int next_rows(const struct engine *g, const struct ffn_part *p, int parts, int at, int *n)
{
	int first = at;

	*n = 0;
	for (int i = 0; i < parts; i++)
		for (int end = p[i].row0 + p[i].n, m; at < end; at += m) {
			bool has = adapt_ffn(g, &p[i], at, &m);

			if (!has && *n > 0)
				return first;
			if (has && *n == 0)
				first = at;
			*n += has ? m : 0;
		}
	return first;
}

/* Their products in blocks: gate and up. */
static void multiply_blocks(struct engine *g, const struct ffn_part *p, int n)
{
	struct scratch *s = &g->s;
	size_t row = quant_row_bytes(g->cfg->hidden_size);
	int jobs = 0, width = p->x.gate.rows;

	for (int i = 0; i < n; i++)
		for (int at = p[i].row0, end = at + p[i].n, m; at < end; at += m) {
			if (!adapt_ffn(g, &p[i], at, &m))
				continue;
			g->adapts.blocks[jobs++] = (struct qgemm_job){
			    s->moe_g + (int64_t)at * width, width, s->moe_xq + (size_t)at * row,
			    p[i].x.gate, m, 0 };
			g->adapts.blocks[jobs++] = (struct qgemm_job){
			    s->moe_u + (int64_t)at * width, width, s->moe_xq + (size_t)at * row,
			    p[i].x.up, m, 0 };
		}
	g->be->qgemm(g->be, g->adapts.blocks, jobs);
}

/* SwiGLU of n rows of moe_g and moe_u, as blocks too. */
static void close_rows(struct engine *g, int l, int64_t at, int n, int width)
{
	struct scratch *s = &g->s;
	dev_real *x = s->moe_g + at * width;

	ffn_bias(g, x, g->layer[l].gate_bias, at, n, width);
	ffn_bias(g, s->moe_u + at * width, g->layer[l].up_bias, at, n, width);
	g->be->swiglu(g->be, x, x, s->moe_u + at * width, (int64_t)n * width,
	    g->cfg->block[l].glu);
	g->be->quantize(g->be, s->moe_hq + (size_t)at * quant_row_bytes(width), x, n, width);
}

void adapt_up_blocks(struct engine *g, const struct ffn_part *p, int n)
{
	struct scratch *s = &g->s;
	int D = g->cfg->hidden_size, at, m;

	if (!g->adapts.here)
		return;
	for (at = next_rows(g, p, n, p->row0, &m); m > 0; at = next_rows(g, p, n, at + m, &m))
		g->be->gather(g->be, s->moe_x + (int64_t)at * D, s->x, s->rowidx + at, m, D);
	multiply_blocks(g, p, n);
	adapt_up(g, p, n);
	for (at = next_rows(g, p, n, p->row0, &m); m > 0; at = next_rows(g, p, n, at + m, &m))
		close_rows(g, p->layer, at, m, p->x.gate.rows);
}
