/*
 * Layers of decode that remember their past in a state: the gated delta rule (rows conv and
 * delta), the short convolution of LFM2, and the gate of attention that comes with the first. A
 * state is the last inputs of the convolution, and behind them that of the delta rule; it is
 * zeros where a sequence begins. Tokens are taken one after the other, so chunks change no byte.
 */
#include "decode/decode_int.h"

/* Where the delta rule's part of a state begins, in values. */
static int64_t conv_state(const struct block *b, int width)
{
	int64_t channels = b->attn == ATTN_DELTA ? block_delta_width(b) : width;

	return ((b->taps - 1) * channels + 15) & ~(int64_t)15;
}

int64_t recur_bytes(const struct block *b, int width)
{
	int64_t n = conv_state(b, width);

	if (b->attn == ATTN_DELTA)
		n += (int64_t)b->delta.H * b->delta.dk * b->delta.dv;
	return mem_align64(n * (int64_t)sizeof(real));
}

void recur_widths(const struct config *c, int l, int64_t w[4])
{
	const struct block *b = &c->block[l];
	int64_t heads = (int64_t)c->num_attention_heads * c->head_dim, qkv = block_delta_width(b),
	    values = (int64_t)b->delta.H * b->delta.dv;

	w[0] = w[1] = w[2] = w[3] = 0;
	if (b->attn == ATTN_DELTA) {
		w[0] = b->delta.grouped ? qkv + values : qkv;
		w[1] = qkv;
		w[2] = values;
		w[3] = 4 * (int64_t)b->delta.H;
	} else if (b->attn == ATTN_CONV) {
		w[0] = 3 * (int64_t)c->hidden_size;
		w[1] = c->hidden_size;
	} else if (b->gated) {
		w[0] = 2 * heads;
		w[2] = heads;
	}
}

/* The sequences of this pass and their states of layer l. */
static const struct recur_seg *states(struct engine *g, int l)
{
	struct recur_seg *r = g->t.recur;

	for (int i = 0; i < g->nseg; i++) {
		const struct seg *seg = &g->t.seg[i];
		dev_byte *state = seg->it->s->kv[l].a;

		if (seg->it->s->len == 0)
			g->be->zero(g->be, state, (size_t)recur_bytes(&g->cfg->block[l],
			    g->cfg->hidden_size));
		r[i] = (struct recur_seg){ (dev_real *)(void *)state, seg->row0, seg->n };
	}
	return r;
}

/* ---- the delta rule ---- */

/* Heads of q, k and v of the rows, each array with a distance of its rows. */
struct qkv {
	dev_real *q, *k, *v;
	int64_t ldq, ldk, ldv;
};

static struct qkv together(const struct block *b, dev_real *x)
{
	int64_t keys = (int64_t)b->delta.G * b->delta.dk, all = block_delta_width(b);

	return (struct qkv){ x, x + keys, x + 2 * keys, all, all, all };
}

static struct qkv one_by_one(const struct block *b, dev_real *x, int64_t rows)
{
	int64_t keys = (int64_t)b->delta.G * b->delta.dk;

	return (struct qkv){ x, x + rows * keys, x + 2 * rows * keys, keys, keys,
	    (int64_t)b->delta.H * b->delta.dv };
}

/* Pieces of w values, from `at` on of each key head's part of the rows, to where they lie one
 * after the other; *at goes past them. */
static void take(struct engine *g, dev_real *to, const dev_real *from, int64_t part, int64_t *at,
    int heads, int w)
{
	g->be->copy2d(g->be, to, w, from + *at, part, (int64_t)g->rows * heads, w);
	*at += w;
}

/* q, k, v, z and b, a from projections in which those of a key head lie together. */
static struct qkv project_grouped(struct engine *g, int l)
{
	const struct delta_heads *d = &g->cfg->block[l].delta;
	struct layer *w = &g->layer[l];
	struct scratch *s = &g->s;
	int per = d->H / d->G;
	dev_real *b = s->ab, *a = b + (int64_t)g->rows * d->H, *ba = a + (int64_t)g->rows * d->H;
	struct linear in[2] = { { s->mix, s->x, w->in, 0 }, { ba, s->x, w->ba, 0 } };
	int64_t part = w->in.m.rows / d->G, at = 0;
	struct qkv x = one_by_one(&g->cfg->block[l], s->apart, g->rows);

	linear(g, in, 2);
	take(g, x.q, s->mix, part, &at, d->G, d->dk);
	take(g, x.k, s->mix, part, &at, d->G, d->dk);
	take(g, x.v, s->mix, part, &at, d->G, per * d->dv);
	take(g, s->z, s->mix, part, &at, d->G, per * d->dv);
	at = 0;
	take(g, b, ba, 2 * per, &at, d->G, per);
	take(g, a, ba, 2 * per, &at, d->G, per);
	return x;
}

static struct qkv project_apart(struct engine *g, int l)
{
	struct layer *w = &g->layer[l];
	struct scratch *s = &g->s;
	dev_real *a = s->ab + (int64_t)g->rows * g->cfg->block[l].delta.H;
	struct linear in[4] = { { s->mix, s->x, w->in, 0 }, { s->z, s->x, w->z, 0 },
	    { s->ab, s->x, w->b, 0 }, { a, s->x, w->a, 0 } };

	linear(g, in, 4);
	return together(&g->cfg->block[l], s->mix);
}

/* Channels from `first` on of layer l. */
static void convolve(struct engine *g, int l, const struct recur_seg *seg, int64_t first, int n,
    const dev_real *x, int64_t ldx, dev_real *y, int64_t ldy)
{
	const struct block *b = &g->cfg->block[l];
	const dev_real *bias = g->layer[l].conv_bias;

	for (int i = 0, m; i < g->nseg; i += m) {
		const dev_real *w = adapt_conv(g, l, i, &m);

		g->be->conv(g->be, &(struct conv_args){ .seg = seg + i, .n = m,
		    .at = first * (b->taps - 1), .C = n, .L = b->taps, .x = x, .ldx = ldx, .y = y,
		    .ldy = ldy, .w = w + first * b->taps,
		    .bias = bias ? bias + first : NULL, .silu = b->attn == ATTN_DELTA });
	}
}

static struct qkv convolve_all(struct engine *g, int l, const struct recur_seg *seg, struct qkv x)
{
	const struct block *b = &g->cfg->block[l];
	int keys = b->delta.G * b->delta.dk, values = b->delta.H * b->delta.dv;
	struct qkv y;

	if (!b->delta.grouped) {
		y = together(b, g->s.apart);
		convolve(g, l, seg, 0, 2 * keys + values, x.q, x.ldq, y.q, y.ldq);
		return y;
	}
	y = one_by_one(b, g->s.mix, g->rows);
	convolve(g, l, seg, 0, keys, x.q, x.ldq, y.q, y.ldq);
	convolve(g, l, seg, keys, keys, x.k, x.ldk, y.k, y.ldk);
	convolve(g, l, seg, 2 * keys, values, x.v, x.ldv, y.v, y.ldv);
	return y;
}

static void delta(struct engine *g, int l)
{
	const struct block *b = &g->cfg->block[l];
	const struct delta_heads *d = &b->delta;
	const struct layer *w = &g->layer[l];
	struct scratch *s = &g->s;
	const struct recur_seg *seg = states(g, l);
	int64_t heads = (int64_t)g->rows * d->H;
	struct qkv x = d->grouped ? project_grouped(g, l) : project_apart(g, l);

	x = convolve_all(g, l, seg, x);
	g->be->delta(g->be, &(struct delta_args){ .seg = seg, .n = g->nseg,
	    .at = conv_state(b, 0), .H = d->H, .G = d->G, .dk = d->dk, .dv = d->dv, .q = x.q,
	    .k = x.k, .v = x.v, .ldq = x.ldq, .ldk = x.ldk, .ldv = x.ldv, .b = s->ab,
	    .a = s->ab + heads, .a_log = w->log_a, .dt = w->dt, .o = s->att });
	g->be->rmsnorm(g->be, s->att, NULL, s->att, w->delta_norm, heads, d->dv,
	    g->cfg->rms_norm_eps);
	g->be->swiglu(g->be, s->att, s->z, s->att, heads * d->dv, (struct glu){ 0 });
}

/* ---- the short convolution ---- */

/* att = C * conv(B * x) of a projection to B, C and x. */
static void short_conv(struct engine *g, int l)
{
	int D = g->cfg->hidden_size;
	const struct recur_seg *seg = states(g, l);
	struct scratch *s = &g->s;
	struct linear in = { s->mix, s->x, g->layer[l].in, 0 };

	linear(g, &in, 1);
	if (g->cfg->block[l].conv_bias)
		attn_bias(g, s->mix, g->layer[l].in_bias, 3 * D);
	g->be->mul(g->be, s->apart, D, s->mix, 3 * D, s->mix + 2 * D, 3 * D, g->rows, D);
	convolve(g, l, seg, 0, D, s->apart, D, s->mix, 3 * D);
	g->be->mul(g->be, s->att, D, s->mix, 3 * D, s->mix + D, 3 * D, g->rows, D);
}

void recur_layer(struct engine *g, int l)
{
	if (g->cfg->block[l].attn == ATTN_DELTA)
		delta(g, l);
	else
		short_conv(g, l);
}

/* ---- the gate of attention ---- */

void gate_split(struct engine *g)
{
	int d = g->cfg->head_dim;
	int64_t heads = (int64_t)g->rows * g->cfg->num_attention_heads, at = 0;

	take(g, g->s.q, g->s.mix, 2 * d, &at, g->cfg->num_attention_heads, d);
	take(g, g->s.z, g->s.mix, 2 * d, &at, g->cfg->num_attention_heads, d);
	g->be->sigmoid(g->be, g->s.z, g->s.z, heads * d);
}

void gate_close(struct engine *g)
{
	int64_t n = (int64_t)g->cfg->num_attention_heads * g->cfg->head_dim;

	g->be->mul(g->be, g->s.att, n, g->s.att, n, g->s.z, n, g->rows, (int)n);
}
