/*
 * The way of a token: engine_eval() cuts the new tokens of its items into passes of at most
 * max_rows rows; a pass takes its rows through every layer (decode_attn.c, decode_moe.c) and
 * ends with the logits that were asked for.
 */
#include <stdlib.h>
#include <string.h>

#include "decode/decode_int.h"
#include "backend/quant.h"
#include "base/mem.h"
#include "base/progress.h"

static void carve_attention(struct scratch *s, const struct config *c, int64_t R, struct carve *v)
{
	int64_t H = c->num_attention_heads, G = c->num_key_value_heads, d = c->head_dim, C = 0,
	    r = 0;

	for (int l = 0; l < c->num_hidden_layers; l++)
		if (c->block[l].attn == ATTN_MLA) {
			C = c->block[l].latent;
			r = c->block[l].rope.width;
		}
	s->q = mem_carve(v, R * H * d, sizeof(real));
	s->q2 = mem_carve(v, R * H * r, sizeof(real));
	s->q_abs = mem_carve(v, R * H * C, sizeof(real));
	s->k = mem_carve(v, R * mem_max(G * d, C), sizeof(real));
	s->k2 = mem_carve(v, R * G * d, sizeof(real));
	s->ctx = mem_carve(v, R * H * C, sizeof(real));
	s->att = mem_carve(v, R * H * d, sizeof(real));
	s->kcache = mem_carve(v, R, sizeof(*s->kcache));
	s->vcache = mem_carve(v, R, sizeof(*s->vcache));
}

/* Rows of FFNs that R rows of a layer are, and the widest of their inner rows. */
static int64_t layer_rows(const struct config *c, int l, int64_t R)
{
	const struct block *b = &c->block[l];

	return R * (block_fixed(b) + (b->sparse ? c->num_experts_per_tok : 0));
}

static int layer_width(const struct config *c, int l)
{
	const struct block *b = &c->block[l];

	return b->sparse && b->shared_width > b->width &&
	    b->shared > 0 ? b->shared_width : b->width;
}

static void carve_experts(struct scratch *s, const struct config *c, int64_t R, bool blocks,
    struct carve *v)
{
	int64_t K = c->num_experts_per_tok, S = c->num_shared_experts, E = c->num_experts;
	int64_t rows = 0, inner = 0;

	for (int l = 0; l < c->num_hidden_layers; l++) {
		int64_t n = layer_rows(c, l, R);

		rows = mem_max(rows, n);
		inner = mem_max(inner, n * layer_width(c, l));
	}
	s->sgate = mem_carve(v, S > 0 ? R : 0, sizeof(real));
	s->router = mem_carve(v, R * E, sizeof(real));
	s->router_next = mem_carve(v, R * E, sizeof(real));
	s->ahead = mem_carve(v, R * c->hidden_size, sizeof(real));
	s->weight = mem_carve(v, R * K, sizeof(real));
	s->coef = mem_carve(v, R * (K + S + 1), sizeof(real));
	s->moe_x = mem_carve(v, rows * c->hidden_size, sizeof(real));
	s->moe_g = mem_carve(v, inner, sizeof(real));
	s->moe_u = mem_carve(v, inner, sizeof(real));
	s->ids = mem_carve(v, R * K, sizeof(*s->ids));
	s->slot = mem_carve(v, R * (K + S + 1), sizeof(*s->slot));
	s->rowidx = mem_carve(v, rows, sizeof(*s->rowidx));
	s->count = mem_carve(v, E, sizeof(*s->count));
	s->start = mem_carve(v, E + 1, sizeof(*s->start));
	s->order = mem_carve(v, R * K, sizeof(*s->order));
	s->wanted = mem_carve(v, E, sizeof(*s->wanted));
	s->exact = mem_carve(v, K, sizeof(*s->exact));
	s->part = mem_carve(v, E + S + 1, sizeof(*s->part));
	s->qffn = mem_carve(v, E + S + 1, sizeof(*s->qffn));
	s->qgemm = mem_carve(v, E + S + 1, sizeof(*s->qgemm));
	if (blocks) {
		int64_t most = mem_max(c->hidden_size, (int64_t)c->num_attention_heads *
		    c->head_dim);
		int64_t hidden = 0;

		for (int l = 0; l < c->num_hidden_layers; l++)
			hidden = mem_max(hidden, layer_rows(c, l, R) *
			    (int64_t)quant_row_bytes(layer_width(c, l)));
		s->xq = mem_carve(v, mem_max(R, HEAD_ROWS), quant_row_bytes((int)most));
		s->moe_xq = mem_carve(v, rows, quant_row_bytes(c->hidden_size));
		s->moe_hq = mem_carve(v, hidden, 1);
	}
	s->job = mem_carve(v, 2 * (E + S + 1) + c->num_attention_heads + 1, sizeof(*s->job));
}

/* Places the scratch arrays at base (NULL: only counts) and returns their bytes. */
int64_t scratch_layout(struct scratch *s, const struct config *c, const struct params *ps,
    const struct engine_opt *o,
    char *base)
{
	struct carve v = { base, 0 };
	int64_t R = o->max_rows, D = c->hidden_size;
	const struct param *look0 = params_get(ps, P_LOOK0, -1, -1);

	s->h = mem_carve(&v, R * D, sizeof(real));
	s->x = mem_carve(&v, R * D, sizeof(real));
	carve_attention(s, c, R, &v);
	carve_experts(s, c, R, o->blocks, &v);
	s->head_x = mem_carve(&v, HEAD_ROWS * D, sizeof(real));
	s->logits = mem_carve(&v, HEAD_ROWS * (int64_t)c->vocab_size, sizeof(real));
	s->look_h = mem_carve(&v, look0 ? HEAD_ROWS * (int64_t)look0->rows : 0, sizeof(real));
	s->look = mem_carve(&v, HEAD_ROWS * (int64_t)config_lookahead_rows(c), sizeof(real));
	s->tok = mem_carve(&v, R, sizeof(*s->tok));
	s->pos = mem_carve(&v, R, sizeof(*s->pos));
	s->zeros = mem_carve(&v, config_biased(c) ? R : 0, sizeof(*s->zeros));
	s->lo = mem_carve(&v, R, sizeof(*s->lo));
	s->hi = mem_carve(&v, R, sizeof(*s->hi));
	s->head_row = mem_carve(&v, R, sizeof(*s->head_row));
	s->about = mem_carve(&v, R, sizeof(*s->about));
	s->seg = mem_carve(&v, o->max_seqs, sizeof(*s->seg));
	return v.used;
}

int64_t kv_bytes(const struct engine *g)
{
	int64_t n = 0;
	struct kv kv;

	for (int l = 0; l < g->cfg->num_hidden_layers; l++)
		n += kv_layout(g->cfg, &g->opt, l, &kv, NULL);
	return n;
}

int64_t seq_bytes(const struct config *c)
{
	int64_t E = c->num_experts, K = c->num_experts_per_tok;

	return c->num_sparse * (3 * E * (int64_t)sizeof(float) + K * (int64_t)sizeof(int32_t))
	    + c->num_hidden_layers * (int64_t)sizeof(struct kv);
}

/* Sequences, scratch, store and predictor, in memory that the plan counted. */
static int open_state(struct engine *g, const char *dir, struct err *e)
{
	int L = g->cfg->num_hidden_layers;
	size_t each = (size_t)g->cfg->num_sparse * (size_t)g->cfg->num_experts + 1;
	int64_t per_seq = kv_bytes(g);

	g->scratch_mem = g->be->alloc(g->be, (size_t)scratch_layout(&g->s, g->cfg, g->par,
	    &g->opt,
	    NULL));
	g->kv_mem = g->be->alloc(g->be, (size_t)(per_seq * g->opt.max_seqs));
	g->seqs = calloc((size_t)g->opt.max_seqs, sizeof(*g->seqs));
	g->predict = predict_new(g->cfg, g->opt.max_rows, g->opt.predict);
	if (!g->scratch_mem || !g->kv_mem || !g->seqs || !g->predict)
		return err_set(e, EX_OSERR, "%s: out of memory for caches", dir);
	scratch_layout(&g->s, g->cfg, g->par, &g->opt, g->scratch_mem);
	for (int i = 0; i < g->opt.max_seqs; i++) {
		struct seq *s = &g->seqs[i];
		char *base = (char *)g->kv_mem + i * per_seq;

		s->g = g;
		s->kv = calloc((size_t)L, sizeof(*s->kv));
		s->expect = calloc(each, sizeof(*s->expect));
		s->coming = calloc(each, sizeof(*s->coming));
		s->same = calloc(each, sizeof(*s->same));
		s->last = calloc((size_t)g->cfg->num_sparse * g->cfg->num_experts_per_tok + 1,
		    sizeof(*s->last));
		if (!s->kv || !s->expect || !s->coming || !s->same || !s->last)
			return err_set(e, EX_OSERR, "%s: out of memory for sequences", dir);
		for (int l = 0; l < L; l++)
			base += kv_layout(g->cfg, &g->opt, l, &s->kv[l], base);
	}
	g->store = g->md.packed ? store_open(dir, g->cfg, &g->man, &g->opt.store, e)
	    : store_resident(g->cfg, g->experts);
	for (int l = 0, i = 0; l < L; l++)
		if (g->cfg->block[l].sparse)
			g->sparse[i++] = l;
	return g->store ? intend_open(g, dir, e) : -1;
}

void engine_settle(struct engine_opt *o)
{
	if (o->max_rows < o->max_seqs)
		o->max_rows = o->max_seqs;
}

static struct engine *prepare(const char *dir, const struct engine_opt *o, struct mem_plan *plan,
    struct err *e)
{
	struct engine *g = calloc(1, sizeof(*g));

	if (!g) {
		err_set(e, EX_OSERR, "out of memory");
		return NULL;
	}
	g->opt = *o;
	engine_settle(&g->opt);
	if (load_plan(g, dir, plan, e) < 0) {
		engine_close(g);
		return NULL;
	}
	return g;
}

int engine_plan(const char *dir, const struct engine_opt *o, struct mem_plan *plan, struct err *e)
{
	struct engine *g = prepare(dir, o, plan, e);

	engine_close(g);
	return g ? 0 : -1;
}

struct engine *engine_open(const char *dir, const struct engine_opt *o, const struct backend *be,
    struct mem_plan *plan,
    struct err *e)
{
	struct mem_plan own = { 0 };
	struct engine *g = prepare(dir, o, plan ? plan : &own, e);

	if (!g)
		return NULL;
	g->be = be;
	if (load_weights(g, e) < 0 || open_state(g, dir, e) < 0) {
		engine_close(g);
		return NULL;
	}
	return g;
}

struct engine *engine_over(const struct config *c, const struct params *ps, const real *w,
    const struct engine_opt *o,
    const struct backend *be, struct err *e)
{
	struct engine *g = calloc(1, sizeof(*g));

	if (!g) {
		err_set(e, EX_OSERR, "out of memory");
		return NULL;
	}
	g->opt = *o;
	engine_settle(&g->opt);
	g->cfg = c;
	g->par = ps;
	g->flat = w;
	g->be = be;
	if (over_weights(g, e) < 0 || open_state(g, "model in training", e) < 0) {
		engine_close(g);
		return NULL;
	}
	return g;
}

void engine_close(struct engine *g)
{
	if (!g)
		return;
	store_close(g->store);
	predict_free(g->predict);
	intent_free(g->intent);
	free(g->share);
	free(g->likely);
	free(g->mix);
	for (int i = 0; g->seqs && i < g->opt.max_seqs; i++) {
		free(g->seqs[i].kv);
		free(g->seqs[i].expect);
		free(g->seqs[i].coming);
		free(g->seqs[i].same);
		free(g->seqs[i].last);
	}
	free(g->seqs);
	if (g->be) {
		g->be->free(g->be, g->kv_mem);
		g->be->free(g->be, g->scratch_mem);
		g->be->free(g->be, g->w);
		g->be->free(g->be, g->rope);
		g->be->free(g->be, g->rope_mla);
		g->be->free(g->be, g->expert_mem);
	}
	free(g->host);
	free(g->experts);
	free(g->ffn_views);
	manifest_free(&g->man);
	modeldir_close(&g->md);
	free(g);
}

const struct config *engine_config(const struct engine *g) { return g->cfg; }
struct store *engine_store(struct engine *g) { return g->store; }
int64_t engine_expert_bytes(const struct engine *g) { return g->expert_bytes; }

const char *engine_fingerprint(struct engine *g, struct err *e)
{
	return g->md.packed && g->man.fingerprint ? g->man.fingerprint
	    : modeldir_fingerprint(&g->md, e);
}

struct seq *seq_new(struct engine *g, struct err *e)
{
	for (int i = 0; i < g->opt.max_seqs; i++)
		if (!g->seqs[i].used) {
			g->seqs[i].used = true;
			seq_reset(&g->seqs[i]);
			return &g->seqs[i];
		}
	err_set(e, EX_SOFTWARE, "all %d sequences are in use", g->opt.max_seqs);
	return NULL;
}

void seq_reset(struct seq *s)
{
	s->len = 0;
	s->expects = false;
}

struct seq *seq_fork(const struct seq *s, struct err *e)
{
	struct seq *t = seq_new(s->g, e);
	const struct config *c = s->g->cfg;

	if (!t)
		return NULL;
	t->len = s->len;
	t->expects = s->expects;
	memcpy(t->expect, s->expect, sizeof(*t->expect) * (size_t)c->num_sparse *
	    (size_t)c->num_experts);
	memcpy(t->last, s->last, sizeof(*t->last) * (size_t)c->num_sparse *
	    (size_t)c->num_experts_per_tok);
	for (int l = 0; l < s->g->cfg->num_hidden_layers; l++)
		kv_copy(s->g, l, &t->kv[l], &s->kv[l], s->len);
	return t;
}

void seq_free(struct seq *s)
{
	if (s)
		s->used = false;
}

int seq_len(const struct seq *s) { return s->len; }

static int check_items(const struct engine *g, const struct eval_item *it, int n, struct err *e)
{
	if (n > g->opt.max_seqs)
		return err_set(e, EX_SOFTWARE, "%d items for %d sequences", n, g->opt.max_seqs);
	for (int i = 0; i < n; i++) {
		if (it[i].n > g->opt.max_tokens - it[i].s->len)
			return err_set(e, EX_DATAERR,
			    "sequence of %lld tokens does not fit into caches for %d",
			    (long long)it[i].s->len + it[i].n, g->opt.max_tokens);
		for (int t = 0; t < it[i].n; t++)
			if (it[i].tok[t] >= (uint32_t)g->cfg->vocab_size)
				return err_set(e, EX_DATAERR,
				    "token %u is outside the vocabulary of %d", it[i].tok[t],
				    g->cfg->vocab_size);
	}
	return 0;
}

/* Takes up to max_rows tokens from the items, in order; done is what earlier passes took.
 * Returns rows. */
static int fill_pass(struct engine *g, struct eval_item *it, int n, int *first, int *done)
{
	struct scratch *s = &g->s;
	bool one = true;

	g->rows = g->nseg = 0;
	while (*first < n && g->rows < g->opt.max_rows) {
		struct eval_item *x = &it[*first];
		int left = x->n - *done, room = g->opt.max_rows - g->rows, m = left < room ? left
		    : room;

		if (m > 0)
			s->seg[g->nseg++] = (struct seg){ x, g->rows, m, *done };
		for (int i = 0; i < m; i++, g->rows++) {
			s->tok[g->rows] = x->tok[*done + i];
			s->pos[g->rows] = x->s->len + i;
			s->about[g->rows] = (struct predict_row){ 0 };
			if (i == 0 && x->s->len > 0)
				s->about[g->rows] = (struct predict_row){ .last = x->s->last,
				    .expect = x->s->expects ? x->s->expect : NULL };
		}
		one = one && x->n == 1 && x->s->len > 0;
		*done += m;
		if (*done == x->n) {
			(*first)++;
			*done = 0;
		}
	}
	g->single = one;
	return g->rows;
}

static real *logits_of(const struct engine *g, const struct seg *seg, int i)
{
	const struct eval_item *it = seg->it;

	if (!it->logits || !(it->all || seg->done + i == it->n - 1))
		return NULL;
	return it->logits + (it->all ? (int64_t)(seg->done + i) * g->cfg->vocab_size : 0);
}

static void head_block(struct engine *g, const int32_t *rows, real *const *out, int n)
{
	struct scratch *s = &g->s;
	int D = g->cfg->hidden_size, V = g->cfg->vocab_size;
	struct linear l = { s->logits, s->head_x, g->head, 0 };

	g->be->gather(g->be, s->head_x, s->h, rows, n, D);
	g->be->rmsnorm(g->be, s->head_x, NULL, s->head_x, g->norm, n, D,
	    g->cfg->rms_norm_eps);
	linear(g, &l, 1, n);
	for (int i = 0; i < n; i++)
		g->be->get(g->be, out[i], s->logits + (int64_t)i * V,
		    sizeof(real) * (size_t)V);
}

static void head(struct engine *g)
{
	int32_t rows[HEAD_ROWS];
	real *out[HEAD_ROWS];
	int n = 0;

	for (int j = 0; j < g->nseg; j++)
		for (int i = 0; i < g->s.seg[j].n; i++) {
			out[n] = logits_of(g, &g->s.seg[j], i);
			rows[n] = g->s.seg[j].row0 + i;
			n += out[n] != NULL;
			if (n == HEAD_ROWS) {
				head_block(g, rows, out, n);
				n = 0;
			}
		}
	if (n > 0)
		head_block(g, rows, out, n);
}

static int pass(struct engine *g, struct err *e)
{
	embed_rows(g);
	for (int l = 0; l < g->cfg->num_hidden_layers; l++) {
		attn_layer(g, l);
		store_poll(g->store);
		if (ffn_layer(g, l, e) < 0)
			return -1;
		if (l == 0 && g->look0)
			look_rows(g);
	}
	head(g);
	for (int j = 0; j < g->nseg; j++) {
		struct seq *s = g->s.seg[j].it->s;
		float *t = s->expect;

		s->len += g->s.seg[j].n;
		s->expect = s->coming;
		s->coming = t;
		s->expects = (look_mode(g) & SRC_BIT(SRC_LOOK)) != 0;
	}
	return 0;
}

int engine_eval(struct engine *g, struct eval_item *it, int n, struct eval_stats *st, struct err *e)
{
	struct eval_stats own;
	struct store_stats before, after;
	double t0 = progress_clock();
	int64_t rows = 0;
	int first = 0, done = 0, status = 0;

	g->st = st ? st : &own;
	*g->st = (struct eval_stats){ 0 };
	if (check_items(g, it, n, e) < 0)
		return -1;
	store_stats(g->store, &before);
	g->replaced = 0;
	for (int i = 0; i < n; i++)
		if (it[i].s->len == 0 && it[i].n > 1)
			intend(g, it[i].tok, it[i].n);
	while (status == 0 && fill_pass(g, it, n, &first, &done) > 0) {
		rows += g->rows;
		status = pass(g, e);
	}
	store_stats(g->store, &after);
	g->st->wall = progress_clock() - t0;
	g->st->stall = after.stall - before.stall;
	g->st->compute = g->st->wall - g->st->stall;
	if (rows > 0 && g->cfg->num_sparse > 0)
		g->st->replaced_mass = g->replaced / ((double)rows * g->cfg->num_sparse);
	return status;
}

/* --- products with dense weights, floats or blocks, and rows of the embedding --- */

void linear(struct engine *g, const struct linear *l, int n, int rows)
{
	struct gemm_job dense[4];
	struct qgemm_job blocks[4];
	const real *quantised = NULL;
	int nd = 0, nb = 0;

	for (int i = 0; i < n; i++)
		if (!dtype_blocks(l[i].w.dt))
			dense[nd++] = (struct gemm_job){ .c = l[i].y, .ldc = l[i].w.rows,
			    .a = l[i].x, .lda = l[i].w.cols,
			    .b = l[i].w.p, .ldb = l[i].w.cols, .bt = l[i].w.dt, .m = rows,
			    .n = l[i].w.rows, .k = l[i].w.cols,
			    .beta = l[i].beta };
	if (nd > 0)
		g->be->gemm(g->be, GEMM_NT, dense, nd);
	for (int i = 0; i < n; i++) {
		if (!dtype_blocks(l[i].w.dt))
			continue;
		if (quantised && quantised != l[i].x) {
			g->be->qgemm(g->be, blocks, nb);
			nb = 0;
		}
		if (quantised != l[i].x)
			g->be->quantize(g->be, g->s.xq, l[i].x, rows, l[i].w.cols);
		quantised = l[i].x;
		blocks[nb++] = (struct qgemm_job){ l[i].y, l[i].w.rows, g->s.xq, l[i].w, rows,
		    l[i].beta };
	}
	if (nb > 0)
		g->be->qgemm(g->be, blocks, nb);
}

void embed_rows(struct engine *g)
{
	const struct mat *w = &g->embed;
	int D = g->cfg->hidden_size;

	if (!dtype_blocks(w->dt)) {
		g->be->gather(g->be, g->s.h, w->p, (const int32_t *)g->s.tok, g->rows, D);
		return;
	}
#ifndef CHR_DOUBLE
	for (int r = 0; r < g->rows; r++)
		quant_unpack_row(g->s.h + (int64_t)r * D, w->p, w->dt, (int)g->s.tok[r], D);
#endif
}
