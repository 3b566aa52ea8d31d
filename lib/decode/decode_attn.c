/*
 * Attention of decode: projections, caches, and the attn_cached row. MLA is absorbed
 * (DeepSeek-V2, arXiv:2405.04434): the cache holds the latent and the rotated keys; queries are
 * taken to the latent space and the context back from it.
 */
#include <math.h>

#include "decode/decode_int.h"

static int max_int(int a, int b) { return a > b ? a : b; }

const char *kv_type_name(enum kv_type t)
{
	return t == KV_F32 ? "f32" : t == KV_BF16 ? "bf16" : "q8";
}

enum kv_type engine_kv_type(const struct engine *g) { return g->opt.kv; }

/* What the two caches of a layer hold of a position: heads and their width. */
struct shape {
	int heads[2], w[2];
};

static struct shape kv_shape(const struct config *c, int l)
{
	int G = c->num_key_value_heads, d = c->head_dim;

	if (c->block[l].attn == ATTN_LATENT)
		return (struct shape){ { 1, 1 }, { c->block[l].latent, c->block[l].rope.width } };
	if (c->block[l].attn == ATTN_MLA)
		return (struct shape){ { 1, G }, { c->block[l].latent, c->block[l].rope.width } };
	return (struct shape){ { G, G }, { d, d } };
}

/* Places the caches of layer l at base and returns their bytes. A sliding layer needs the keys
 * that the first row of a pass sees when the last one is stored. */
int64_t kv_layout(const struct config *c, const struct engine_opt *o, int l, struct kv *kv,
    dev_byte *base)
{
	struct shape s = kv_shape(c, l);
	int64_t slots = o->max_tokens, bytes;

	if (block_recurs(&c->block[l])) {
		*kv = (struct kv){ .a = base };
		return recur_bytes(&c->block[l], c->hidden_size);
	}
	if (c->block[l].window > 0 && (int64_t)c->block[l].window - 1 + o->max_rows < slots)
		slots = (int64_t)c->block[l].window - 1 + o->max_rows;
	bytes = mem_align64((int64_t)kv_cache_bytes(o->kv, s.heads[0], (int)slots, s.w[0]));
	*kv = (struct kv){ base, base + bytes, (int)slots };
	return bytes + mem_align64((int64_t)kv_cache_bytes(o->kv, s.heads[1], (int)slots, s.w[1]));
}

/* The positions of a sequence of len tokens that the caches of layer l still hold. */
void kv_copy(const struct engine *g, int l, struct kv *to, const struct kv *from, int len)
{
	struct shape s = kv_shape(g->cfg, l);

	if (block_recurs(&g->cfg->block[l])) {
		g->be->copy(g->be, to->a, from->a, (size_t)recur_bytes(&g->cfg->block[l],
		    g->cfg->hidden_size));
		return;
	}
	for (int i = 0; i < 2; i++) {
		size_t head = kv_cache_bytes(g->opt.kv, 1, from->slots, s.w[i]);
		size_t used = kv_cache_bytes(g->opt.kv, 1, len < from->slots ? len : from->slots,
		    s.w[i]);

		for (int h = 0; h < s.heads[i]; h++)
			g->be->copy(g->be, (i ? to->b : to->a) + (size_t)h * head,
			    (i ? from->b : from->a) + (size_t)h * head, used);
	}
}

/* Stores the new rows of a and b (kv_shape) and fills lo, hi and the cache pointers of each row. */
static void kv_append(struct engine *g, int l, const dev_real *a, const dev_real *b)
{
	struct tables *t = &g->t;
	struct shape sh = kv_shape(g->cfg, l);
	int window = g->cfg->block[l].window;

	for (int i = 0; i < g->nseg; i++) {
		struct seg *seg = &t->seg[i];
		struct kv *kv = &seg->it->s->kv[l];
		int pos = seg->it->s->len;

		for (int j = 0; j < 2; j++)
			g->be->kv_put(g->be, &(struct kv_put_args){ .type = g->opt.kv,
			    .cache = j ? kv->b
			    : kv->a, .slots = kv->slots,
			    .heads = sh.heads[j], .w = sh.w[j], .pos = pos, .n = seg->n,
			    .x = (j ? b : a) + (int64_t)seg->row0 * sh.heads[j] * sh.w[j] });
		for (int r = seg->row0; r < seg->row0 + seg->n; r++, pos++) {
			t->hi[r] = pos;
			t->lo[r] = window > 0 ? max_int(pos - window + 1, 0) : 0;
			t->kcache[r] = kv->a;
			t->vcache[r] = kv->b;
		}
	}
	push(g, g->s.lo, t->lo, (size_t)g->rows * sizeof *t->lo);
	push(g, g->s.hi, t->hi, (size_t)g->rows * sizeof *t->hi);
}

/* The same for every sequence. */
static int kv_slots(const struct engine *g, int l) { return g->t.seg[0].it->s->kv[l].slots; }

void attn_bias(struct engine *g, dev_real *y, const dev_real *bias, int w)
{
	g->be->combine(g->be, y, bias, g->s.zeros, NULL, g->rows, 1, w);
}

/* RMSNorm of the heads of q or k, each by itself or all of a row together. */
static void qk_norm(struct engine *g, const struct block *b, dev_real *x, const dev_real *norm,
    int heads)
{
	int d = g->cfg->head_dim;
	bool whole = b->qk_norm == QK_NORM_WIDTH;

	g->be->rmsnorm(g->be, x, NULL, x, norm, (int64_t)g->rows * (whole ? 1 : heads),
	    whole ? heads * d : d, g->cfg->rms_norm_eps);
}

static void turn(struct engine *g, const struct block *b, dev_real *x, int heads)
{
	int d = g->cfg->head_dim;

	(b->rope.pairs ? g->be->rope_pairs : g->be->rope)(g->be, x, (int64_t)heads * d, d, g->rows,
	    heads, b->rope.width, g->rope, g->s.pos, false);
}

/* q, k and v (in k2) of the rows of this pass, before they turn. */
static void clip(struct engine *g, const struct block *b)
{
	const struct config *c = g->cfg;
	int64_t kv = (int64_t)g->rows * c->num_key_value_heads * c->head_dim;

	if (b->clip == 0)
		return;
	g->be->clip(g->be, g->s.q, b->clip, (int64_t)g->rows * c->num_attention_heads *
	    c->head_dim);
	g->be->clip(g->be, g->s.k, b->clip, kv);
	g->be->clip(g->be, g->s.k2, b->clip, kv);
}

/* q, k and v (in k2) of the rows of this pass, turned. */
static void gqa_project(struct engine *g, int l)
{
	const struct config *c = g->cfg;
	const struct block *b = &c->block[l];
	struct layer *w = &g->layer[l];
	struct scratch *s = &g->s;
	int H = c->num_attention_heads, G = c->num_key_value_heads, d = c->head_dim;
	dev_real *q = b->gated ? s->mix : s->q;
	struct linear qkv[3] = { { q, s->x, w->q, 0 }, { s->k, s->x, w->k, 0 },
	    { s->k2, s->x, w->v, 0 } };

	linear(g, qkv, 3);
	if (b->qkv_bias) {
		attn_bias(g, q, w->q_bias, w->q.m.rows);
		attn_bias(g, s->k, w->k_bias, G * d);
		attn_bias(g, s->k2, w->v_bias, G * d);
	}
	if (b->gated)
		gate_split(g);
	if (!b->norm_after) {
		if (b->qk_norm != QK_NORM_NONE) {
			qk_norm(g, b, s->q, w->q_norm, H);
			qk_norm(g, b, s->k, w->k_norm, G);
		}
		clip(g, b);
		turn(g, b, s->q, H);
		turn(g, b, s->k, G);
	} else {
		turn(g, b, s->q, H);
		turn(g, b, s->k, G);
		qk_norm(g, b, s->q, w->q_norm, H);
		qk_norm(g, b, s->k, w->k_norm, G);
	}
}

static void gqa(struct engine *g, int l)
{
	const struct backend *be = g->be;
	const struct config *c = g->cfg;
	struct scratch *s = &g->s;
	struct tables *t = &g->t;
	int R = g->rows, d = c->head_dim, Hd = c->num_attention_heads * d;

	gqa_project(g, l);
	kv_append(g, l, s->k, s->k2);
	be->attn_cached(be, &(struct attn_cached_args){
	    .n = R, .H = c->num_attention_heads, .G = c->num_key_value_heads, .dk = d, .dv = d,
	    .scale = (real)c->block[l].scale, .q = s->q, .ldq = Hd, .o = s->att, .ldo = Hd,
	    .type = g->opt.kv, .slots = kv_slots(g, l), .kcache = t->kcache, .vcache = t->vcache,
	    .lo = s->lo, .hi = s->hi, .sinks = g->layer[l].sinks });
	if (c->block[l].gated)
		gate_close(g);
}

/* Queries and the new cache rows: q_abs (R, H*C), q2 (R, H*r), k latent (R, C), k2 rotated keys
 * (R, G*r). */
static void mla_project(struct engine *g, int l)
{
	const struct backend *be = g->be;
	const struct config *c = g->cfg;
	struct scratch *s = &g->s;
	struct tables *t = &g->t;
	int R = g->rows, H = c->num_attention_heads, G = c->num_key_value_heads;
	int C = c->block[l].latent, r = c->block[l].rope.width, N = c->block[l].nope;
	const struct layer *w = &g->layer[l];
	struct linear down[3] = { { s->q, s->x, w->q_nope, 0 }, { s->q2, s->x, w->q_rope, 0 },
	    { s->k, s->x, w->kv_down, 0 } };

	linear(g, down, 3);
	be->rmsnorm(be, s->q, NULL, s->q, w->q_nope_norm, (int64_t)R * H, N, c->rms_norm_eps);
	be->rmsnorm(be, s->q2, NULL, s->q2, w->q_rope_norm, (int64_t)R * H, r, c->rms_norm_eps);
	be->rmsnorm(be, s->k, NULL, s->k, w->kv_down_norm, R, C, c->rms_norm_eps);
	for (int h = 0; h < H; h++)
		t->job[h] = product(s->q_abs + (int64_t)h * C, (int64_t)H * C,
		    s->q + (int64_t)h * N, (int64_t)H * N,
		    w->k_nope_t + (int64_t)(h * G / H) * C * N, R, C, N);
	t->job[H] = product(s->k2, G * r, s->k, C, w->k_rope, R, G * r, C);
	be->gemm(be, GEMM_NT, t->job, H + 1);
	adapt_keys(g, l, N);
	adapt_add(g, P_KROPE, l, s->k2, s->k, NULL, R);
	be->rope(be, s->q2, (int64_t)H * r, r, R, H, r, g->rope_mla, s->pos, false);
	be->rope(be, s->k2, (int64_t)G * r, r, R, G, r, g->rope_mla, s->pos, false);
}

/* The same for a latent as published: one turned key for all heads. */
static void latent_project(struct engine *g, int l)
{
	const struct backend *be = g->be;
	const struct config *c = g->cfg;
	const struct block *b = &c->block[l];
	const struct layer *w = &g->layer[l];
	struct scratch *s = &g->s;
	int R = g->rows, H = c->num_attention_heads, d = c->head_dim;
	int C = b->latent, r = b->rope.width, N = b->nope;
	struct linear in[2] = { { b->q_rank ? s->qa : s->q, s->x, b->q_rank ? w->qa : w->q, 0 },
	    { s->ctx, s->x, w->kv_a, 0 } }, up = { s->q, s->qa, w->qb, 0 };

	linear(g, in, 2);
	if (b->q_rank) {
		be->rmsnorm(be, s->qa, NULL, s->qa, w->qa_norm, R, b->q_rank, b->latent_eps);
		linear(g, &up, 1);
	}
	be->copy2d(be, s->k, C, s->ctx, C + r, R, C);
	be->copy2d(be, s->k2, r, s->ctx + C, C + r, R, r);
	be->copy2d(be, s->q2, r, s->q + N, d, (int64_t)R * H, r);
	be->rmsnorm(be, s->k, NULL, s->k, w->kv_down_norm, R, C, b->latent_eps);
	for (int h = 0; h < H; h++)
		g->t.job[h] = product(s->q_abs + (int64_t)h * C, (int64_t)H * C,
		    s->q + (int64_t)h * d, (int64_t)H * d, w->k_nope_t + (int64_t)h * C * N, R, C,
		    N);
	be->gemm(be, GEMM_NT, g->t.job, H);
	adapt_keys(g, l, d);
	(b->rope.pairs ? be->rope_pairs : be->rope)(be, s->q2, (int64_t)H * r, r, R, H, r,
	    g->rope_mla, s->pos, false);
	(b->rope.pairs ? be->rope_pairs : be->rope)(be, s->k2, r, r, R, 1, r, g->rope_mla, s->pos,
	    false);
}

static void mla(struct engine *g, int l)
{
	const struct config *c = g->cfg;
	struct layer *w = &g->layer[l];
	struct scratch *s = &g->s;
	struct tables *t = &g->t;
	int R = g->rows, H = c->num_attention_heads, G = c->num_key_value_heads;
	const struct block *b = &c->block[l];
	int C = b->latent, r = b->rope.width, v = b->value;
	bool shared = b->attn == ATTN_LATENT;	/* one turned key for all heads */

	(shared ? latent_project : mla_project)(g, l);
	kv_append(g, l, s->k, s->k2);
	g->be->attn_cached(g->be, &(struct attn_cached_args){
	    .n = R, .H = H, .G = 1, .dk = C, .dv = C, .scale = (real)b->scale,
	    .q = s->q_abs, .ldq = (int64_t)H * C, .o = s->ctx, .ldo = (int64_t)H * C,
	    .type = g->opt.kv, .slots = kv_slots(g, l), .kcache = t->kcache, .vcache = t->kcache,
	    .lo = s->lo, .hi = s->hi,
	    .G2 = shared ? 1 : G, .dk2 = r, .q2 = s->q2, .ldq2 = (int64_t)H * r,
	    .k2cache = t->vcache });
	for (int h = 0; h < H; h++)
		t->job[h] = product(s->att + (int64_t)h * v, (int64_t)H * v, s->ctx + (int64_t)h *
		    C, (int64_t)H * C,
		    w->mla_v + (int64_t)(h * G / H) * v * C, R, v, C);
	g->be->gemm(g->be, GEMM_NT, t->job, H);
	adapt_values(g, l);
}

/* h += Attn(RMSNorm(h)) */
void attn_layer(struct engine *g, int l)
{
	const struct config *c = g->cfg;
	struct layer *w = &g->layer[l];
	struct scratch *s = &g->s;
	bool times = c->residual_multiplier != 1;
	struct linear out = { times ? s->x : s->h, s->att, w->o, times ? 0 : 1 };

	g->be->rmsnorm(g->be, s->x, NULL, s->h, w->in_norm, g->rows, c->hidden_size,
	    c->rms_norm_eps);
	if (block_recurs(&c->block[l]))
		recur_layer(g, l);
	else if (block_latent(&c->block[l]))
		mla(g, l);
	else
		gqa(g, l);
	linear(g, &out, 1);
	if (c->block[l].o_bias)
		attn_bias(g, out.y, w->o_bias, c->hidden_size);
	if (times)
		g->be->axpy(g->be, s->h, s->x, c->residual_multiplier,
		    (int64_t)g->rows * c->hidden_size);
}
