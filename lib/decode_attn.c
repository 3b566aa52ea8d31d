/*
 * Attention of decode: projections, caches, and the attn_cached row. MLA is absorbed (DeepSeek-V2, arXiv:2405.04434): the
 * cache holds the latent and the rotated keys; queries are taken to the latent space and the context back from it.
 */
#include <math.h>

#include "decode_int.h"

static int max_int(int a, int b) { return a > b ? a : b; }

static int64_t align64(int64_t n) { return (n + 63) & ~(int64_t)63; }

static void kv_widths(const struct config *c, int l, int64_t *wa, int64_t *wb)
{
	bool mla = c->layer_type[l] == LAYER_MLA;

	*wa = mla ? c->kv_latent_dim : config_kv_width(c);
	*wb = mla ? (int64_t)c->num_key_value_heads * c->rope_dim : config_kv_width(c);
}

/* Places the caches of layer l at base and returns their bytes; a sliding layer keeps its window and one pass. */
int64_t kv_layout(const struct config *c, const struct engine_opt *o, int l, struct kv *kv, char *base)
{
	int64_t slots = o->max_tokens, wa, wb, bytes;

	kv_widths(c, l, &wa, &wb);
	if (c->layer_type[l] == LAYER_SLIDING && (int64_t)c->sliding_window_size + o->max_rows < slots)
		slots = (int64_t)c->sliding_window_size + o->max_rows;
	bytes = align64(slots * wa * (int64_t)sizeof(real));
	*kv = (struct kv){ (real *)base, (real *)(base + bytes), 0, (int)slots };
	return bytes + align64(slots * wb * (int64_t)sizeof(real));
}

void kv_copy(const struct engine *g, int l, struct kv *to, const struct kv *from, int len)
{
	int64_t wa, wb, n = len - from->base;

	kv_widths(g->cfg, l, &wa, &wb);
	to->base = from->base;
	g->be->copy(to->a, from->a, sizeof(real) * (size_t)(n * wa));
	g->be->copy(to->b, from->b, sizeof(real) * (size_t)(n * wb));
}

/* Moves the last `keep` of `have` slots to the front, in pieces that do not overlap. */
static void slide(const struct backend *be, real *cache, int width, int have, int keep)
{
	int shift = have - keep;

	for (int i = 0; i < keep; i += shift) {
		int n = keep - i < shift ? keep - i : shift;

		be->copy(cache + (int64_t)i * width, cache + (int64_t)(i + shift) * width,
		    sizeof(real) * (size_t)n * width);
	}
}

/* Makes room for n slots after position len and says in which slot they begin. */
static int kv_room(const struct engine *g, struct kv *kv, int len, int n, int wa, int wb)
{
	int have = len - kv->base, keep = g->cfg->sliding_window_size - 1;

	if (have + n > kv->slots) {	/* sliding layers only: the others hold max_tokens */
		if (keep > have)
			keep = have;
		slide(g->be, kv->a, wa, have, keep);
		slide(g->be, kv->b, wb, have, keep);
		kv->base += have - keep;
		have = keep;
	}
	return have;
}

/* Appends the new rows of a (R, wa) and b (R, wb) to the caches and fills lo, hi and the cache pointers of each row. */
static void kv_append(struct engine *g, int l, const real *a, int wa, const real *b, int wb)
{
	struct scratch *s = &g->s;
	bool sliding = g->layer[l].type == LAYER_SLIDING;
	int window = g->cfg->sliding_window_size;

	for (int i = 0; i < g->nseg; i++) {
		struct seg *seg = &s->seg[i];
		struct kv *kv = &seg->it->s->kv[l];
		int slot = kv_room(g, kv, seg->it->s->len, seg->n, wa, wb);

		g->be->copy(kv->a + (int64_t)slot * wa, a + (int64_t)seg->row0 * wa, sizeof(real) * (size_t)seg->n * wa);
		g->be->copy(kv->b + (int64_t)slot * wb, b + (int64_t)seg->row0 * wb, sizeof(real) * (size_t)seg->n * wb);
		for (int r = seg->row0; r < seg->row0 + seg->n; r++, slot++) {
			s->hi[r] = slot;
			s->lo[r] = sliding ? max_int(slot - window + 1, 0) : 0;
			s->kcache[r] = kv->a;
			s->vcache[r] = s->k2cache[r] = kv->b;
		}
	}
}

static struct gemm_job product(real *y, int64_t ldy, const real *x, int64_t ldx, const real *w, int rows, int out, int in)
{
	return (struct gemm_job){ .c = y, .ldc = ldy, .a = x, .lda = ldx, .b = w, .ldb = in, .bt = DT_REAL,
	    .m = rows, .n = out, .k = in };
}

static void gqa(struct engine *g, int l)
{
	const struct backend *be = g->be;
	const struct config *c = g->cfg;
	struct layer *w = &g->layer[l];
	struct scratch *s = &g->s;
	int R = g->rows, d = c->head_dim;
	int Hd = c->num_attention_heads * d, Gd = config_kv_width(c);
	struct linear qkv[3] = { { s->q, s->x, w->q, 0 }, { s->k, s->x, w->k, 0 }, { s->k2, s->x, w->v, 0 } };

	linear(g, qkv, 3, R);
	be->rmsnorm(s->q, NULL, s->q, w->q_norm, (int64_t)R * c->num_attention_heads, d, c->rms_norm_eps);
	be->rmsnorm(s->k, NULL, s->k, w->k_norm, (int64_t)R * c->num_key_value_heads, d, c->rms_norm_eps);
	be->rope(s->q, Hd, d, R, c->num_attention_heads, d, g->rope, s->pos, false);
	be->rope(s->k, Gd, d, R, c->num_key_value_heads, d, g->rope, s->pos, false);
	kv_append(g, l, s->k, Gd, s->k2, Gd);
	be->attn_cached(&(struct attn_cached_args){
	    .n = R, .H = c->num_attention_heads, .G = c->num_key_value_heads, .dk = d, .dv = d,
	    .scale = (real)(1 / sqrt(d)), .q = s->q, .ldq = Hd, .o = s->att, .ldo = Hd,
	    .kcache = s->kcache, .ldk = Gd, .vcache = s->vcache, .ldv = Gd, .lo = s->lo, .hi = s->hi });
}

/* Queries and the new cache rows: q_abs (R, H*C), q2 (R, H*r), k latent (R, C), k2 rotated keys (R, G*r). */
static void mla_project(struct engine *g, const struct layer *w)
{
	const struct backend *be = g->be;
	const struct config *c = g->cfg;
	struct scratch *s = &g->s;
	int R = g->rows, H = c->num_attention_heads, G = c->num_key_value_heads;
	int C = c->kv_latent_dim, r = c->rope_dim, N = c->head_dim - r;
	struct linear down[3] = { { s->q, s->x, w->q_nope, 0 }, { s->q2, s->x, w->q_rope, 0 }, { s->k, s->x, w->kv_down, 0 } };

	linear(g, down, 3, R);
	be->rmsnorm(s->q, NULL, s->q, w->q_nope_norm, (int64_t)R * H, N, c->rms_norm_eps);
	be->rmsnorm(s->q2, NULL, s->q2, w->q_rope_norm, (int64_t)R * H, r, c->rms_norm_eps);
	be->rmsnorm(s->k, NULL, s->k, w->kv_down_norm, R, C, c->rms_norm_eps);
	for (int h = 0; h < H; h++)
		s->job[h] = product(s->q_abs + (int64_t)h * C, (int64_t)H * C, s->q + (int64_t)h * N, (int64_t)H * N,
		    w->k_nope_t + (int64_t)(h * G / H) * C * N, R, C, N);
	s->job[H] = product(s->k2, G * r, s->k, C, w->k_rope, R, G * r, C);
	be->gemm(GEMM_NT, s->job, H + 1);
	be->rope(s->q2, (int64_t)H * r, r, R, H, r, g->rope_mla, s->pos, false);
	be->rope(s->k2, (int64_t)G * r, r, R, G, r, g->rope_mla, s->pos, false);
}

static void mla(struct engine *g, int l)
{
	const struct config *c = g->cfg;
	struct layer *w = &g->layer[l];
	struct scratch *s = &g->s;
	int R = g->rows, H = c->num_attention_heads, G = c->num_key_value_heads;
	int C = c->kv_latent_dim, r = c->rope_dim, d = c->head_dim;

	mla_project(g, w);
	kv_append(g, l, s->k, C, s->k2, G * r);
	g->be->attn_cached(&(struct attn_cached_args){
	    .n = R, .H = H, .G = 1, .dk = C, .dv = C, .scale = (real)(1 / sqrt(d)),
	    .q = s->q_abs, .ldq = (int64_t)H * C, .o = s->ctx, .ldo = (int64_t)H * C,
	    .kcache = s->kcache, .ldk = C, .vcache = s->kcache, .ldv = C, .lo = s->lo, .hi = s->hi,
	    .G2 = G, .dk2 = r, .q2 = s->q2, .ldq2 = (int64_t)H * r, .k2cache = s->k2cache, .ldk2 = (int64_t)G * r });
	for (int h = 0; h < H; h++)
		s->job[h] = product(s->att + (int64_t)h * d, (int64_t)H * d, s->ctx + (int64_t)h * C, (int64_t)H * C,
		    w->mla_v + (int64_t)(h * G / H) * d * C, R, d, C);
	g->be->gemm(GEMM_NT, s->job, H);
}

/* h += Attn(RMSNorm(h)) */
void attn_layer(struct engine *g, int l)
{
	const struct config *c = g->cfg;
	struct layer *w = &g->layer[l];
	struct scratch *s = &g->s;
	struct linear out = { s->h, s->att, w->o, 1 };

	g->be->rmsnorm(s->x, NULL, s->h, w->in_norm, g->rows, c->hidden_size, c->rms_norm_eps);
	if (w->type == LAYER_MLA)
		mla(g, l);
	else
		gqa(g, l);
	linear(g, &out, 1, g->rows);
}
