/*
 * The way of a token: engine_eval() cuts the new tokens of its items into passes of at most
 * max_rows rows; a pass takes its rows through every layer (decode_attn.c, decode_moe.c) and
 * ends with the logits that were asked for.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "decode/decode_int.h"
#include "backend/quant.h"
#include "base/mem.h"
#include "base/progress.h"

/* Where the arrays go: with bases NULL, nowhere, and only their bytes count. */
struct room {
	struct carve dev, host;
	bool apart;		/* the host does not read device memory */
};

static dev_real *reals(struct room *r, int64_t n) { return mem_carve(&r->dev, n, sizeof(dev_real));
    }

static dev_i32 *ints(struct room *r, int64_t n) { return mem_carve(&r->dev, n, sizeof(dev_i32)); }

static dev_byte *rows_of(struct room *r, int64_t n, size_t size)
{
	return mem_carve(&r->dev, n, size);
}

static void *hosts(struct room *r, int64_t n, size_t size) { return mem_carve(&r->host, n, size); }

/* The host's of n values of 4 or 8 bytes that the device has at dev. */
static void *twin(struct room *r, void *dev, int64_t n, size_t size)
{
	return r->apart ? mem_carve(&r->host, n, size) : dev;
}

/* What goes into output projections. */
static int64_t widest_mix(const struct config *c)
{
	int64_t n = (int64_t)c->num_attention_heads * c->head_dim;

	for (int l = 0; l < c->num_hidden_layers; l++)
		if (block_recurs(&c->block[l]))
			n = mem_max(n, c->block[l].attn == ATTN_CONV ? c->hidden_size
			    : (int64_t)c->block[l].delta.H * c->block[l].delta.dv);
	return n;
}

static void carve_recurrent(struct scratch *s, const struct config *c, int64_t R, struct room *v)
{
	int64_t most[4] = { 0 }, w[4];

	for (int l = 0; l < c->num_hidden_layers; l++) {
		recur_widths(c, l, w);
		for (int i = 0; i < 4; i++)
			most[i] = mem_max(most[i], w[i]);
	}
	s->mix = reals(v, R * most[0]);
	s->apart = reals(v, R * most[1]);
	s->z = reals(v, R * most[2]);
	s->ab = reals(v, R * most[3]);
}

static void carve_attention(struct scratch *s, struct tables *t, const struct config *c, int64_t R,
    struct room *v)
{
	int64_t H = c->num_attention_heads, G = c->num_key_value_heads, d = c->head_dim, C = 0,
	    r = 0, Q = 0;

	for (int l = 0; l < c->num_hidden_layers; l++)
		if (block_latent(&c->block[l])) {
			C = c->block[l].latent;
			r = c->block[l].rope.width;
			Q = c->block[l].q_rank;
		}
	s->qa = reals(v, R * Q);
	s->q = reals(v, R * H * d);
	s->q2 = reals(v, R * H * r);
	s->q_abs = reals(v, R * H * C);
	s->k = reals(v, R * mem_max(G * d, C));
	s->k2 = reals(v, R * G * d);
	s->ctx = reals(v, R * mem_max(H * C, C + r));
	s->att = reals(v, R * widest_mix(c));
	carve_recurrent(s, c, R, v);
	t->kcache = hosts(v, R, sizeof(*t->kcache));
	t->vcache = hosts(v, R, sizeof(*t->vcache));
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

/* What the host knows of rows and experts. */
static void carve_choices(struct scratch *s, struct tables *t, const struct config *c,
    const struct engine_opt *o, int64_t rows, struct room *v)
{
	int64_t R = o->max_rows;
	int64_t K = c->num_experts_per_tok, S = c->num_shared_experts, E = c->num_experts;
	bool biased = config_expert_biased(c);

	s->sgate = reals(v, S > 0 ? R : 0);
	t->router = twin(v, s->router = reals(v, R * E), R * E, sizeof(real));
	t->router_next = twin(v, s->router_next = reals(v, R * E), R * E, sizeof(real));
	t->weight = twin(v, s->weight = reals(v, R * K), R * K, sizeof(real));
	t->sums = twin(v, s->sums = reals(v, R), R, sizeof(real));
	t->coef = twin(v, s->coef = reals(v, R * (K + S + 1)), R * (K + S + 1), sizeof(real));
	t->ids = twin(v, s->ids = ints(v, R * K), R * K, sizeof(int32_t));
	t->slot = twin(v, s->slot = ints(v, R * (K + S + 1)), R * (K + S + 1), sizeof(int32_t));
	t->rowidx = twin(v, s->rowidx = ints(v, rows), rows, sizeof(int32_t));
	s->row_expert = biased ? ints(v, rows) : NULL;
	t->row_expert = biased ? twin(v, s->row_expert, rows, sizeof(int32_t)) : NULL;
	t->count = hosts(v, E, sizeof(*t->count));
	t->start = hosts(v, E + 1, sizeof(*t->start));
	t->order = hosts(v, R * K, sizeof(*t->order));
	t->wanted = hosts(v, E, sizeof(*t->wanted));
	t->exact = hosts(v, K, sizeof(*t->exact));
	t->bias = hosts(v, config_choice_bias(c) ? c->num_sparse * E : 0, sizeof(*t->bias));
	t->part = hosts(v, E + S + 1, sizeof(*t->part));
	t->qffn = hosts(v, (E + S + 1) * (o->adapters + 1), sizeof(*t->qffn));
	t->qgemm = hosts(v, E + S + 1, sizeof(*t->qgemm));
	t->job = hosts(v, 2 * (E + S + 1) + c->num_attention_heads + 1, sizeof(*t->job));
}

static void carve_experts(struct scratch *s, struct tables *t, const struct config *c,
    const struct engine_opt *o, struct room *v)
{
	int64_t R = o->max_rows, rows = 0, inner = 0, hidden = 0,
	    most = mem_max(c->hidden_size, widest_mix(c));

	for (int l = 0; l < c->num_hidden_layers; l++) {
		int64_t n = layer_rows(c, l, R);

		rows = mem_max(rows, n);
		inner = mem_max(inner, n * layer_width(c, l));
		hidden = mem_max(hidden, n * (int64_t)quant_row_bytes(layer_width(c, l)));
	}
	carve_choices(s, t, c, o, rows, v);
	s->ahead = reals(v, R * c->hidden_size);
	s->moe_x = reals(v, rows * c->hidden_size);
	s->moe_g = reals(v, inner);
	s->moe_u = reals(v, inner);
	if (!o->blocks)
		return;
	s->xq = rows_of(v, mem_max(R, HEAD_ROWS), quant_row_bytes((int)most));
	s->moe_xq = rows_of(v, rows, quant_row_bytes(c->hidden_size));
	s->moe_hq = rows_of(v, hidden, 1);
}

static void carve_scratch(struct scratch *s, struct tables *t, const struct config *c,
    const struct params *ps, const struct engine_opt *o, struct room *v)
{
	int64_t R = o->max_rows, D = c->hidden_size, look = HEAD_ROWS * config_lookahead_rows(c);
	const struct param *look0 = params_get(ps, P_LOOK0, -1, -1);

	s->h = reals(v, R * D);
	s->x = reals(v, R * D);
	carve_attention(s, t, c, R, v);
	carve_experts(s, t, c, o, v);
	s->head_x = reals(v, HEAD_ROWS * D);
	s->logits = reals(v, HEAD_ROWS * (int64_t)c->vocab_size);
	s->look_h = reals(v, look0 ? HEAD_ROWS * (int64_t)look0->rows : 0);
	t->look = twin(v, s->look = reals(v, look), look, sizeof(real));
	s->head_row = ints(v, HEAD_ROWS);
	t->tok = twin(v, s->tok = ints(v, R), R, sizeof(int32_t));
	t->pos = twin(v, s->pos = ints(v, R), R, sizeof(int32_t));
	s->zeros = ints(v, config_biased(c) ? R : 0);
	t->lo = twin(v, s->lo = ints(v, R), R, sizeof(int32_t));
	t->hi = twin(v, s->hi = ints(v, R), R, sizeof(int32_t));
	t->head_row = hosts(v, R, sizeof(*t->head_row));
	t->about = hosts(v, R, sizeof(*t->about));
	t->seg = hosts(v, o->max_seqs, sizeof(*t->seg));
	t->turn = hosts(v, o->max_seqs, sizeof(*t->turn));
	t->recur = hosts(v, config_recurs(c) ? o->max_seqs : 0, sizeof(*t->recur));
}

/* For a plan: on a device whose memory the host reads. */
int64_t scratch_bytes(const struct config *c, const struct params *ps, const struct engine_opt *o)
{
	struct scratch s;
	struct tables t;
	struct room v = { .apart = false };

	carve_scratch(&s, &t, c, ps, o, &v);
	return v.dev.used + v.host.used;
}

static bool open_scratch(struct engine *g)
{
	struct room v = { .apart = !g->be->host_reads };

	carve_scratch(&g->s, &g->t, g->cfg, g->par, &g->opt, &v);
	g->scratch_mem = g->be->alloc(g->be, (size_t)v.dev.used);
	g->tables_mem = mem_alloc((size_t)v.host.used);
	v.dev = (struct carve){ g->scratch_mem, 0 };
	v.host = (struct carve){ g->tables_mem, 0 };
	carve_scratch(&g->s, &g->t, g->cfg, g->par, &g->opt, &v);
	return g->scratch_mem != NULL;
}

int64_t kv_bytes(const struct engine *g, bool states)
{
	int64_t n = 0;
	struct kv kv;

	for (int l = 0; l < g->cfg->num_hidden_layers; l++)
		if (block_recurs(&g->cfg->block[l]) == states)
			n += kv_layout(g->cfg, &g->opt, l, &kv, NULL);
	return n;
}

int64_t seq_bytes(const struct config *c)
{
	int64_t E = c->num_experts, K = c->num_experts_per_tok;

	return c->num_sparse * (3 * E * (int64_t)sizeof(float) + K * (int64_t)sizeof(int32_t))
	    + c->num_hidden_layers * (int64_t)sizeof(struct kv);
}

/* Those of routers, where the host needs them. */
static void keep_biases(struct engine *g)
{
	int E = g->cfg->num_experts;

	for (int i = 0; i < g->cfg->num_sparse; i++) {
		const struct layer *w = &g->layer[g->sparse[i]];

		if (w->router_bias)
			g->be->get(g->be, g->t.bias + (int64_t)i * E, w->router_bias,
			    (size_t)E * sizeof(real));
	}
}

/* Sequences, scratch, store and predictor, in memory that the plan counted. */
static int open_state(struct engine *g, const char *dir, struct err *e)
{
	int L = g->cfg->num_hidden_layers;
	size_t each = (size_t)g->cfg->num_sparse * (size_t)g->cfg->num_experts + 1;
	int64_t per_seq = kv_bytes(g, false) + kv_bytes(g, true);

	g->kv_mem = g->be->alloc(g->be, (size_t)(per_seq * g->opt.max_seqs));
	g->seqs = calloc((size_t)g->opt.max_seqs, sizeof(*g->seqs));
	g->predict = predict_new(g->cfg, g->opt.max_rows, g->opt.predict);
	if (!open_scratch(g) || !g->kv_mem || !g->seqs || !g->predict)
		return err_set(e, EX_OSERR, "%s: out of memory for caches", dir);
	for (int i = 0; i < g->opt.max_seqs; i++) {
		struct seq *s = &g->seqs[i];
		dev_byte *base = (dev_byte *)g->kv_mem + i * per_seq;

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
	g->store = g->md.packed ? store_open(dir, g->cfg, &g->man, &g->opt.store, g->be, e)
	    : store_resident(g->cfg, g->experts);
	for (int l = 0, i = 0; l < L; l++)
		if (g->cfg->block[l].sparse)
			g->sparse[i++] = l;
	keep_biases(g);
	return g->store && intend_open(g, dir, e) == 0 ? foresee_open(g, dir, e) : -1;
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
	if (adapt_check(g, e) < 0 || load_weights(g, e) < 0 || adapt_load(g, e) < 0 ||
	    open_state(g, dir, e) < 0) {
		engine_close(g);
		return NULL;
	}
	return g;
}

struct engine *engine_over(const struct config *c, const struct params *ps, const dev_real *w,
    const struct engine_opt *o,
    const struct backend *be, struct err *e)
{
	struct engine *g;

	if (config_trains(c, e) < 0)
		return NULL;
	if ((g = calloc(1, sizeof(*g))) == NULL) {
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
	foresee_close(g);
	intent_free(g->intent);
	adapt_close(g);
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
	mem_free(g->tables_mem);
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
			g->seqs[i].adapter = 0;
			seq_reset(&g->seqs[i]);
			return &g->seqs[i];
		}
	err_set(e, EX_SOFTWARE, "all %d sequences are in use", g->opt.max_seqs);
	return NULL;
}

void seq_adapt(struct seq *s, int adapter)
{
	s->adapter = adapter;
}

void seq_reset(struct seq *s)
{
	s->len = 0;
	s->expects = false;
	s->known = NULL;
	foresee_forget(s->g, (int)(s - s->g->seqs));
}

struct seq *seq_fork(const struct seq *s, struct err *e)
{
	struct seq *t = seq_new(s->g, e);
	const struct config *c = s->g->cfg;

	if (!t)
		return NULL;
	t->len = s->len;
	t->adapter = s->adapter;
	t->expects = s->expects;
	t->known = s->known;
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

/* The order in which items are taken: no result depends on it, but rows of one adapter are
 * multiplied together. */
static void take_turns(struct engine *g, const struct eval_item *it, int n)
{
	int k = 0;

	for (int a = 0; a <= g->opt.adapters; a++)
		for (int i = 0; i < n; i++)
			if (it[i].s->adapter == a)
				g->t.turn[k++] = i;
}

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

/* Takes up to max_rows tokens from the items, those of an adapter together; done is what earlier
 * passes took. Returns rows. */
static int fill_pass(struct engine *g, struct eval_item *it, int n, int *first, int *done)
{
	struct tables *t = &g->t;
	bool one = true;

	g->rows = g->nseg = 0;
	while (*first < n && g->rows < g->opt.max_rows) {
		struct eval_item *x = &it[g->t.turn[*first]];
		int left = x->n - *done, room = g->opt.max_rows - g->rows, m = left < room ? left
		    : room;

		if (m > 0)
			t->seg[g->nseg++] = (struct seg){ x, g->rows, m, *done };
		for (int i = 0; i < m; i++, g->rows++) {
			t->tok[g->rows] = (int32_t)x->tok[*done + i];
			t->pos[g->rows] = x->s->len + i;
			t->about[g->rows] = (struct predict_row){ 0 };
			if (i == 0 && x->s->len > 0)
				t->about[g->rows] = (struct predict_row){ .last = x->s->last,
				    .expect = x->s->expects ? x->s->expect : NULL,
				    .ahead = g->fore.heads && x->n == 1 ?
				    &g->fore.of[x->s - g->seqs] : NULL, .pos = x->s->len };
		}
		one = one && x->n == 1 && x->s->len > 0;
		*done += m;
		if (*done == x->n) {
			(*first)++;
			*done = 0;
		}
	}
	g->single = one;
	adapt_rows(g);
	push(g, g->s.tok, t->tok, (size_t)g->rows * sizeof *t->tok);
	push(g, g->s.pos, t->pos, (size_t)g->rows * sizeof *t->pos);
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

	g->be->put(g->be, s->head_row, rows, (size_t)n * sizeof *rows);
	g->be->gather(g->be, s->head_x, s->h, s->head_row, n, D);
	g->be->rmsnorm(g->be, s->head_x, NULL, s->head_x, g->norm, n, D,
	    g->cfg->rms_norm_eps);
	linear_rows(g, &l, 1, rows, n);
	if (g->cfg->logits_scaling != 1)
		g->be->scale(g->be, s->logits, 1 / g->cfg->logits_scaling, (int64_t)n * V);
	for (int i = 0; i < n; i++)
		g->be->get(g->be, out[i], s->logits + (int64_t)i * V,
		    sizeof(real) * (size_t)V);
}

/* Weights that are damaged, or sums that run over, give no distribution to draw from. */
static int check_finite(const real *logits, int V, struct err *e)
{
	real sum = 0;			/* 0 times what is finite is 0 */

	for (int v = 0; v < V; v++)
		sum += 0 * logits[v];
	return sum == 0 ? 0 : err_set(e, EX_DATAERR,
	    "the model's logits are not finite; chr-ls --check looks for "
	    "weights that are not");
}

static int head(struct engine *g, struct err *e)
{
	int32_t rows[HEAD_ROWS];
	real *out[HEAD_ROWS];
	int n = 0;

	for (int j = 0; j < g->nseg; j++)
		for (int i = 0; i < g->t.seg[j].n; i++) {
			out[n] = logits_of(g, &g->t.seg[j], i);
			rows[n] = g->t.seg[j].row0 + i;
			n += out[n] != NULL;
			if (n == HEAD_ROWS) {
				head_block(g, rows, out, n);
				n = 0;
			}
		}
	if (n > 0)
		head_block(g, rows, out, n);
	for (int j = 0; j < g->nseg; j++)
		for (int i = 0; i < g->t.seg[j].n; i++) {
			const real *logits = logits_of(g, &g->t.seg[j], i);

			if (logits != NULL && check_finite(logits, g->cfg->vocab_size, e) < 0)
				return -1;
		}
	return 0;
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
	if (!isfinite(g->be->sumsq(g->be, g->s.h, (int64_t)g->rows * g->cfg->hidden_size)))
		return err_set(e, EX_DATAERR, "what the model computes is not finite; chr-ls "
		    "--check looks for weights "
		    "that are not");
	if (head(g, e) < 0)
		return -1;
	for (int j = 0; j < g->nseg; j++) {
		struct seq *s = g->t.seg[j].it->s;
		float *t = s->expect;

		s->len += g->t.seg[j].n;
		s->expect = s->coming;
		s->coming = t;
		s->expects = (look_mode(g) & SRC_BIT(SRC_LOOK)) != 0;
	}
	return 0;
}

/* States that a pass which failed has changed in part cannot go back. */
static void forget(struct engine *g)
{
	for (int j = 0; config_recurs(g->cfg) && j < g->nseg; j++)
		seq_reset(g->t.seg[j].it->s);
}

/* What may be said of an item's experts before it is evaluated. */
static int begin(struct engine *g, const struct eval_item *it, struct err *e)
{
	if (it->s->len > 0)
		return it->n > 0 ? oracle_check(it->s, it->tok[0], e) : 0;
	if (it->n > 1)
		intend(g, it->tok, it->n);
	return oracle_begin(g, it->s, it->tok, it->n, e);
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
		if (begin(g, &it[i], e) < 0)
			return -1;
	take_turns(g, it, n);
	while (status == 0 && fill_pass(g, it, n, &first, &done) > 0) {
		rows += g->rows;
		if ((status = pass(g, e)) < 0)
			forget(g);
	}
	store_stats(g->store, &after);
	g->st->wall = progress_clock() - t0;
	g->st->stall = after.stall - before.stall;
	g->st->compute = g->st->wall - g->st->stall;
	if (rows > 0 && g->cfg->num_sparse > 0)
		g->st->replaced_mass = g->replaced / ((double)rows * g->cfg->num_sparse);
	return status;
}

void engine_logprob(struct engine *g, const real *logits, const int32_t *target, int n,
    real *logp)
{
	const struct backend *be = g->be;
	struct scratch *s = &g->s;
	int V = g->cfg->vocab_size;

	for (int i = 0; i < n; i += HEAD_ROWS) {
		int m = n - i < HEAD_ROWS ? n - i : HEAD_ROWS;

		be->put(be, s->logits, logits + (int64_t)i * V, sizeof(real) * (size_t)m *
		    (size_t)V);
		be->put(be, s->head_row, target + i, sizeof(*target) * (size_t)m);
		be->logprob(be, s->logits, s->head_x, s->head_row, NULL, m, V);
		be->get(be, logp + i, s->head_x, sizeof(*logp) * (size_t)m);
	}
}

/* --- products with dense weights, floats or blocks, and rows of the embedding --- */

static void multiply(struct engine *g, const struct linear *l, int n, int rows)
{
	struct gemm_job dense[LINEAR_JOBS];
	struct qgemm_job blocks[LINEAR_JOBS];
	const dev_real *quantised = NULL;
	int nd = 0, nb = 0;

	for (int i = 0; i < n; i++) {
		const struct mat *w = &l[i].w.m;

		if (!dtype_rounded(w->dt))
			dense[nd++] = (struct gemm_job){ .c = l[i].y, .ldc = w->rows,
			    .a = l[i].x, .lda = w->cols, .b = w->p, .ldb = w->cols, .bt = w->dt,
			    .m = rows, .n = w->rows, .k = w->cols, .beta = l[i].beta };
	}
	if (nd > 0)
		g->be->gemm(g->be, GEMM_NT, dense, nd);
	for (int i = 0; i < n; i++) {
		const struct mat *w = &l[i].w.m;

		if (!dtype_rounded(w->dt))
			continue;
		if (quantised && quantised != l[i].x) {
			g->be->qgemm(g->be, blocks, nb);
			nb = 0;
		}
		if (quantised != l[i].x)
			g->be->quantize(g->be, g->s.xq, l[i].x, rows, w->cols);
		quantised = l[i].x;
		blocks[nb++] = (struct qgemm_job){ l[i].y, w->rows, g->s.xq, *w, rows, l[i].beta };
	}
	if (nb > 0)
		g->be->qgemm(g->be, blocks, nb);
}

void linear_rows(struct engine *g, const struct linear *l, int n, const int32_t *of, int rows)
{
	multiply(g, l, n, rows);
	adapt_linear(g, l, n, of, rows);
}

void linear(struct engine *g, const struct linear *l, int n)
{
	linear_rows(g, l, n, NULL, g->rows);
}

void embed_rows(struct engine *g)
{
	const struct mat *w = &g->embed;

	if (dtype_blocks(w->dt))
		g->be->gather_blocks(g->be, g->s.h, w, g->s.tok, g->rows);
	else
		g->be->gather(g->be, g->s.h, w->p, g->s.tok, g->rows, g->cfg->hidden_size);
	if (g->cfg->embedding_multiplier != 1)
		g->be->scale(g->be, g->s.h, g->cfg->embedding_multiplier,
		    (int64_t)g->rows * g->cfg->hidden_size);
}
