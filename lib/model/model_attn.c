/*
 * model_attn: attention blocks of training. Full and sliding layers are grouped-query attention
 * with RMSNorm on each head of q and k before RoPE; MLA compresses keys and values into a latent
 * (DeepSeek-V2, arXiv:2405.04434, in the reference's form: k_rope per key/value head, from the
 * latent).
 */
#include <math.h>

#include "model/model_int.h"

struct dims { int D, H, G, d, r, n, C, v; };

/* r, n and C are of MLA. */
static struct dims dims(const struct config *c, int l)
{
	const struct block *b = &c->block[l];

	return (struct dims){ c->hidden_size, c->num_attention_heads, c->num_key_value_heads,
	    c->head_dim, b->rope.width, b->nope, b->latent, b->value };
}

static struct gemm_job nt_job(dev_real *y, int64_t ldy, const dev_real *x, const dev_real *w,
    int64_t rows,
    int n, int k)
{
	return (struct gemm_job){ y, ldy, x, k, w, k, DT_REAL, rows, n, k, 0 };
}

/* How a norm of q or k cuts the rows of its heads: n rows of w. */
struct cut { int64_t n; int w; };

static struct cut norm_cut(const struct model *m, int l, int heads)
{
	bool whole = m->cfg.block[l].qk_norm == QK_NORM_WIDTH;
	int d = m->cfg.head_dim;

	return (struct cut){ (int64_t)m->act->R * (whole ? 1 : heads), whole ? heads * d : d };
}

static void qk_norm(struct model *m, int l, dev_real *y, dev_real *rstd, const dev_real *x,
    enum param_kind norm, int heads)
{
	struct cut c = norm_cut(m, l, heads);

	m->be->rmsnorm(m->be, y, rstd, x, model_w(m, norm, l, -1), c.n, c.w, m->cfg.rms_norm_eps);
}

/* The rotation of heads of full or sliding attention, or back. */
static void turn(struct model *m, int l, dev_real *x, int heads, bool back)
{
	const struct rope *r = &m->cfg.block[l].rope;
	int d = m->cfg.head_dim;

	(r->pairs ? m->be->rope_pairs : m->be->rope)(m->be, x, (int64_t)heads * d, d, m->act->R,
	    heads, r->width, m->act->rope, m->act->pos, back);
}

/* From the gradient dy of q or k, that of the projection: dx, or dy itself without a norm. */
static const dev_real *turn_norm_back(struct model *m, int l, dev_real *dx, dev_real *dy,
    const dev_real *x, const dev_real *rstd, enum param_kind norm, int heads)
{
	const struct block *b = &m->cfg.block[l];
	struct cut c = norm_cut(m, l, heads);

	if (!b->norm_after)
		turn(m, l, dy, heads, true);
	if (b->qk_norm == QK_NORM_NONE)
		return dy;
	if (b->clip > 0) {		/* what was cut is the norm's output */
		m->be->rmsnorm(m->be, m->act->t5, NULL, x, model_w(m, norm, l, -1), c.n, c.w,
		    m->cfg.rms_norm_eps);
		m->be->clip_back(m->be, dy, m->act->t5, b->clip, c.n * c.w);
	}
	m->be->rmsnorm_back(m->be, dx, model_g(m, norm, l, -1), dy, x, model_w(m, norm, l, -1),
	    rstd, c.n, c.w, false);
	if (b->norm_after)
		turn(m, l, dx, heads, true);
	return dx;
}

static void gqa_project(struct model *m, int l)
{
	struct model_act *a = m->act;
	struct layer_act *x = &a->layer[l];
	const struct block *b = &m->cfg.block[l];
	struct dims s = dims(&m->cfg, l);
	bool norm = b->qk_norm != QK_NORM_NONE;
	dev_real *q = norm ? x->qa : x->q, *k = norm ? x->ka : x->k;
	struct gemm_job j[3] = {
		nt_job(q, s.H * s.d, x->n1, model_w(m, P_Q, l, -1), a->R, s.H * s.d, s.D),
		nt_job(k, s.G * s.d, x->n1, model_w(m, P_K, l, -1), a->R, s.G * s.d, s.D),
		nt_job(x->v, s.G * s.d, x->n1, model_w(m, P_V, l, -1), a->R, s.G * s.d, s.D),
	};

	profile_begin(m->profile, PROFILE_PROJECT);
	model_gemm(m, GEMM_NT, j, 3);
	profile_begin(m->profile, PROFILE_NORM);
	if (b->qkv_bias) {
		model_add_bias(m, l, P_Q_BIAS, q, s.H * s.d);
		model_add_bias(m, l, P_K_BIAS, k, s.G * s.d);
		model_add_bias(m, l, P_V_BIAS, x->v, s.G * s.d);
	}
	if (b->norm_after) {
		turn(m, l, x->qa, s.H, false);
		turn(m, l, x->ka, s.G, false);
	}
	if (norm) {
		qk_norm(m, l, x->q, x->rqa, x->qa, P_QNORM, s.H);
		qk_norm(m, l, x->k, x->rka, x->ka, P_KNORM, s.G);
	}
	if (b->clip > 0) {
		m->be->clip(m->be, x->q, b->clip, (int64_t)a->R * s.H * s.d);
		m->be->clip(m->be, x->k, b->clip, (int64_t)a->R * s.G * s.d);
		m->be->clip(m->be, x->v, b->clip, (int64_t)a->R * s.G * s.d);
	}
	if (!b->norm_after) {
		turn(m, l, x->q, s.H, false);
		turn(m, l, x->k, s.G, false);
	}
}

/* One part of the MLA query: norm per head, then into its columns of q. */
static void mla_query(struct model *m, int l, const dev_real *raw, dev_real *rstd,
    enum param_kind norm,
    int at, int w)
{
	struct model_act *a = m->act;
	struct dims s = dims(&m->cfg, l);
	int64_t heads = (int64_t)a->R * s.H;

	m->be->rmsnorm(m->be, a->t1, rstd, raw, model_w(m, norm, l, -1), heads, w,
	    m->cfg.rms_norm_eps);
	m->be->copy2d(m->be, a->layer[l].q + at, s.d, a->t1, w, heads, w);
}

static void mla_keys(struct model *m, int l)
{
	struct model_act *a = m->act;
	struct layer_act *x = &a->layer[l];
	struct dims s = dims(&m->cfg, l);
	int n = 0;

	for (int g = 0; g < s.G; g++) {
		dev_real *k = x->k + g * s.d;

		a->jobs[n++] = nt_job(k, s.G * s.d, x->c, model_w(m, P_KNOPE, l, -1) + (int64_t)g *
		    s.n * s.C, a->R, s.n, s.C);
		a->jobs[n++] = nt_job(k + s.n, s.G * s.d, x->c, model_w(m, P_KROPE, l, -1) +
		    (int64_t)g * s.r * s.C, a->R, s.r,
		    s.C);
	}
	a->jobs[n++] = nt_job(x->v, s.G * s.d, x->c, model_w(m, P_MLA_V, l, -1), a->R, s.G * s.d,
	    s.C);
	model_gemm(m, GEMM_NT, a->jobs, n);
}

static void mla_project(struct model *m, int l)
{
	struct model_act *a = m->act;
	struct layer_act *x = &a->layer[l];
	struct dims s = dims(&m->cfg, l);
	struct gemm_job j[3] = {
		nt_job(x->qa, s.H * s.n, x->n1, model_w(m, P_QNOPE, l, -1), a->R, s.H * s.n, s.D),
		nt_job(x->qb, s.H * s.r, x->n1, model_w(m, P_QROPE, l, -1), a->R, s.H * s.r, s.D),
		nt_job(x->ka, s.C, x->n1, model_w(m, P_KVDOWN, l, -1), a->R, s.C, s.D),
	};

	profile_begin(m->profile, PROFILE_PROJECT);
	model_gemm(m, GEMM_NT, j, 3);
	profile_begin(m->profile, PROFILE_NORM);
	mla_query(m, l, x->qa, x->rqa, P_QNOPE_NORM, 0, s.n);
	mla_query(m, l, x->qb, x->rqb, P_QROPE_NORM, s.n, s.r);
	m->be->rmsnorm(m->be, x->c, x->rka, x->ka, model_w(m, P_KVDOWN_NORM, l, -1), a->R,
	    s.C,
	    m->cfg.rms_norm_eps);
	profile_begin(m->profile, PROFILE_PROJECT);
	mla_keys(m, l);
	profile_begin(m->profile, PROFILE_NORM);
	m->be->rope(m->be, x->q + s.n, s.H * s.d, s.d, a->R, s.H, s.r, a->rope_mla, a->pos,
	    false);
	m->be->rope(m->be, x->k + s.n, s.G * s.d, s.d, a->R, s.G, s.r, a->rope_mla, a->pos,
	    false);
}

/* ---- attention from a latent, as published ---- */

static void turn_pairs(struct model *m, int l, dev_real *x, int64_t ld, int64_t hs, int heads,
    bool back)
{
	const struct rope *r = &m->cfg.block[l].rope;

	(r->pairs ? m->be->rope_pairs : m->be->rope)(m->be, x, ld, hs, m->act->R, heads, r->width,
	    m->act->rope_mla, m->act->pos, back);
}

static void latent_queries(struct model *m, int l)
{
	struct model_act *a = m->act;
	struct layer_act *x = &a->layer[l];
	struct dims s = dims(&m->cfg, l);
	int Q = m->cfg.block[l].q_rank;

	if (Q == 0)
		model_linear(m, x->q, x->n1, model_w(m, P_Q, l, -1), s.H * s.d, s.D, 0);
	else {
		model_linear(m, x->qa, x->n1, model_w(m, P_QA, l, -1), Q, s.D, 0);
		m->be->rmsnorm(m->be, x->qb, x->rqa, x->qa, model_w(m, P_QA_NORM, l, -1), a->R, Q,
		    m->cfg.block[l].latent_eps);
		model_linear(m, x->q, x->qb, model_w(m, P_QB, l, -1), s.H * s.d, Q, 0);
	}
	turn_pairs(m, l, x->q + s.n, (int64_t)s.H * s.d, s.d, s.H, false);
}

/* The latent, the one turned key in t1, and from both the keys and values of each head. */
static void latent_project(struct model *m, int l)
{
	struct model_act *a = m->act;
	struct layer_act *x = &a->layer[l];
	struct dims s = dims(&m->cfg, l);
	const dev_real *kva = model_w(m, P_KVA, l, -1);
	int64_t heads = (int64_t)a->R * s.H;
	int w = s.n + s.v;

	profile_begin(m->profile, PROFILE_PROJECT);
	latent_queries(m, l);
	model_linear(m, x->ka, x->n1, kva, s.C, s.D, 0);
	model_linear(m, a->t1, x->n1, kva + (int64_t)s.C * s.D, s.r, s.D, 0);
	m->be->rmsnorm(m->be, x->c, x->rka, x->ka, model_w(m, P_KVA_NORM, l, -1), a->R, s.C,
	    m->cfg.block[l].latent_eps);
	turn_pairs(m, l, a->t1, s.r, s.r, 1, false);
	model_linear(m, a->t2, x->c, model_w(m, P_KVB, l, -1), s.H * w, s.C, 0);
	m->be->copy2d(m->be, x->k, s.d, a->t2, w, heads, s.n);
	m->be->copy2d(m->be, x->v, s.v, a->t2 + s.n, w, heads, s.v);
	for (int h = 0; h < s.H; h++)
		m->be->copy2d(m->be, x->k + (int64_t)h * s.d + s.n, (int64_t)s.H * s.d, a->t1, s.r,
		    a->R, s.r);
}

static void latent_queries_back(struct model *m, int l)
{
	struct model_act *a = m->act;
	struct layer_act *x = &a->layer[l];
	struct dims s = dims(&m->cfg, l);
	int Q = m->cfg.block[l].q_rank;

	turn_pairs(m, l, a->t1 + s.n, (int64_t)s.H * s.d, s.d, s.H, true);
	if (Q == 0) {
		model_linear_back(m, a->dn, 1, model_g(m, P_Q, l, -1), a->t1, x->n1,
		    model_w(m, P_Q, l, -1), s.H * s.d, s.D);
		return;
	}
	model_linear_back(m, a->t5, 0, model_g(m, P_QB, l, -1), a->t1, x->qb,
	    model_w(m, P_QB, l, -1), s.H * s.d, Q);
	m->be->rmsnorm_back(m->be, a->t6, model_g(m, P_QA_NORM, l, -1), a->t5, x->qa,
	    model_w(m, P_QA_NORM, l, -1), x->rqa, a->R, Q, false);
	model_linear_back(m, a->dn, 1, model_g(m, P_QA, l, -1), a->t6, x->n1,
	    model_w(m, P_QA, l, -1), Q, s.D);
}

/* The gradient of the one turned key, in t4: the sum over heads. */
static void shared_key_back(struct model *m, int l)
{
	struct model_act *a = m->act;
	struct dims s = dims(&m->cfg, l);

	m->be->zero(m->be, a->t4, (size_t)a->R * (size_t)s.r * sizeof(real));
	for (int h = 0; h < s.H; h++) {
		m->be->copy2d(m->be, a->t5, s.r, a->t2 + (int64_t)h * s.d + s.n,
		    (int64_t)s.H * s.d, a->R, s.r);
		m->be->axpy(m->be, a->t4, a->t5, 1, (int64_t)a->R * s.r);
	}
	turn_pairs(m, l, a->t4, s.r, s.r, 1, true);
}

/* Gradients of q, k, v are in t1, t2, t3. */
static void latent_project_back(struct model *m, int l)
{
	struct model_act *a = m->act;
	struct layer_act *x = &a->layer[l];
	struct dims s = dims(&m->cfg, l);
	int64_t heads = (int64_t)a->R * s.H, turned = (int64_t)s.C * s.D;
	int w = s.n + s.v;

	shared_key_back(m, l);
	m->be->copy2d(m->be, a->t5, w, a->t2, s.d, heads, s.n);
	m->be->copy2d(m->be, a->t5 + s.n, w, a->t3, s.v, heads, s.v);
	model_linear_back(m, a->t6, 0, model_g(m, P_KVB, l, -1), a->t5, x->c,
	    model_w(m, P_KVB, l, -1), s.H * w, s.C);
	m->be->rmsnorm_back(m->be, a->t5, model_g(m, P_KVA_NORM, l, -1), a->t6, x->ka,
	    model_w(m, P_KVA_NORM, l, -1), x->rka, a->R, s.C, false);
	model_linear_back(m, a->dn, 0, model_g(m, P_KVA, l, -1), a->t5, x->n1,
	    model_w(m, P_KVA, l, -1), s.C, s.D);
	model_linear_back(m, a->dn, 1, model_g(m, P_KVA, l, -1) + turned, a->t4, x->n1,
	    model_w(m, P_KVA, l, -1) + turned, s.r, s.D);
	latent_queries_back(m, l);
}

static struct attn_args attn_args(const struct model *m, int l)
{
	const struct config *c = &m->cfg;
	const struct model_act *a = m->act;
	const struct layer_act *x = &a->layer[l];
	bool drop = a->fo.train && c->dropout > 0;

	return (struct attn_args){
		.B = a->B, .T = a->T, .H = c->num_attention_heads, .G = c->num_key_value_heads,
		.dq = c->head_dim, .dv = c->block[l].value,
		.window = c->block[l].window,
		.scale = (real)c->block[l].scale, .doc_start = a->doc,
		    .bf16 = m->bf16,
		.dropout = drop ? c->dropout : 0, .drop_key = drop ? model_key(m, l, 1) : 0,
		.q = x->q, .k = x->k, .v = x->v, .o = x->o, .lse = x->lse,
		.sinks = c->block[l].sinks ? model_w(m, P_SINKS, l, -1) : NULL,
	};
}

/* The two products of each visible pair, on average over a sequence without a break; only asked
 * for when profiling. */
static double attn_flop(const struct model *m, const struct attn_args *at)
{
	double w = at->window > 0 && at->window < at->T ? at->window : at->T;

	if (!m->profile)
		return 0;
	return 2.0 * (at->dq + at->dv) * at->H * at->B * (w * (w + 1) / 2 + (at->T - w) * w);
}

void model_attn_forward(struct model *m, int l)
{
	const struct config *c = &m->cfg;
	struct model_act *a = m->act;
	struct layer_act *x = &a->layer[l];
	struct dims s = dims(c, l);
	struct attn_args at;
	bool drop = a->fo.train && c->dropout > 0, apart = drop || c->residual_multiplier != 1;

	profile_begin(m->profile, PROFILE_NORM);
	m->be->rmsnorm(m->be, x->n1, x->rstd1, x->x, model_w(m, P_IN_NORM, l, -1), a->R, s.D,
	    c->rms_norm_eps);
	if (c->block[l].attn == ATTN_MLA)
		mla_project(m, l);
	else if (c->block[l].attn == ATTN_LATENT)
		latent_project(m, l);
	else
		gqa_project(m, l);
	at = attn_args(m, l);
	profile_begin(m->profile, PROFILE_ATTN);
	profile_flop(m->profile, attn_flop(m, &at));
	m->be->attn(m->be, &at);
	profile_begin(m->profile, PROFILE_PROJECT);
	m->be->copy(m->be, x->mid, x->x, (size_t)a->R * (size_t)s.D * sizeof(real));
	if (apart) {
		model_linear(m, a->t1, x->o, model_w(m, P_O, l, -1), s.D, s.H * s.v, 0);
		if (c->block[l].o_bias)
			model_add_bias(m, l, P_O_BIAS, a->t1, s.D);
		if (drop)
			m->be->dropout(m->be, a->t1, (int64_t)a->R * s.D, c->dropout,
			    model_key(m, l, 2));
		m->be->axpy(m->be, x->mid, a->t1, c->residual_multiplier, (int64_t)a->R * s.D);
	} else {
		model_linear(m, x->mid, x->o, model_w(m, P_O, l, -1), s.D, s.H * s.v, 1);
		if (c->block[l].o_bias)
			model_add_bias(m, l, P_O_BIAS, x->mid, s.D);
	}
}

/* One projection: its bias, its weights, and dn (+)= dx. */
static void project_back(struct model *m, int l, enum param_kind w, enum param_kind bias,
    const dev_real *dy, int width, real beta)
{
	struct layer_act *x = &m->act->layer[l];

	if (m->cfg.block[l].qkv_bias)
		model_add_bias_back(m, l, bias, dy, width);
	model_linear_back(m, m->act->dn, beta, model_g(m, w, l, -1), dy, x->n1,
	    model_w(m, w, l, -1), width, m->cfg.hidden_size);
}

/* Gradients of q, k, v are in t1, t2, t3; each part goes through its projection into dn. */
static void gqa_project_back(struct model *m, int l)
{
	struct model_act *a = m->act;
	struct layer_act *x = &a->layer[l];
	struct dims s = dims(&m->cfg, l);
	const dev_real *dy;

	if (m->cfg.block[l].clip > 0)
		m->be->clip_back(m->be, a->t3, x->v, m->cfg.block[l].clip,
		    (int64_t)a->R * s.G * s.d);
	project_back(m, l, P_V, P_V_BIAS, a->t3, s.G * s.d, 0);
	dy = turn_norm_back(m, l, a->t3, a->t1, x->qa, x->rqa, P_QNORM, s.H);
	project_back(m, l, P_Q, P_Q_BIAS, dy, s.H * s.d, 1);
	dy = turn_norm_back(m, l, a->t3, a->t2, x->ka, x->rka, P_KNORM, s.G);
	project_back(m, l, P_K, P_K_BIAS, dy, s.G * s.d, 1);
}

/* dq of one part: out of its columns, back through the norm and the projection. */
static void mla_query_back(struct model *m, int l, const dev_real *raw, const dev_real *rstd,
    enum param_kind norm,
    enum param_kind proj, int at, int w, real beta, dev_real *tmp, dev_real *tmp2)
{
	struct model_act *a = m->act;
	struct dims s = dims(&m->cfg, l);
	int64_t heads = (int64_t)a->R * s.H;

	m->be->copy2d(m->be, tmp, w, a->t1 + at, s.d, heads, w);
	m->be->rmsnorm_back(m->be, tmp2, model_g(m, norm, l, -1), tmp, raw, model_w(m, norm,
	    l,
	    -1), rstd,
	    heads, w, false);
	model_linear_back(m, a->dn, beta, model_g(m, proj, l, -1), tmp2, a->layer[l].n1,
	    model_w(m, proj, l, -1), s.H * w, s.D);
}

static void mla_project_back(struct model *m, int l)
{
	struct model_act *a = m->act;
	struct layer_act *x = &a->layer[l];
	struct dims s = dims(&m->cfg, l);
	int64_t R = a->R, kv = R * s.G;
	dev_real *dc = a->t4, *tmp = a->t5, *tmp2 = a->t6;

	m->be->rope(m->be, a->t1 + s.n, s.H * s.d, s.d, R, s.H, s.r, a->rope_mla, a->pos,
	    true);
	m->be->rope(m->be, a->t2 + s.n, s.G * s.d, s.d, R, s.G, s.r, a->rope_mla, a->pos,
	    true);
	mla_query_back(m, l, x->qa, x->rqa, P_QNOPE_NORM, P_QNOPE, 0, s.n, 0, tmp, tmp2);
	mla_query_back(m, l, x->qb, x->rqb, P_QROPE_NORM, P_QROPE, s.n, s.r, 1, tmp, tmp2);
	model_linear_back(m, dc, 0, model_g(m, P_MLA_V, l, -1), a->t3, x->c,
	    model_w(m, P_MLA_V, l, -1), s.G * s.d, s.C);
	m->be->copy2d(m->be, tmp, s.n, a->t2, s.d, kv, s.n);
	model_linear_back(m, dc, 1, model_g(m, P_KNOPE, l, -1), tmp, x->c,
	    model_w(m, P_KNOPE, l, -1), s.G * s.n, s.C);
	m->be->copy2d(m->be, tmp, s.r, a->t2 + s.n, s.d, kv, s.r);
	model_linear_back(m, dc, 1, model_g(m, P_KROPE, l, -1), tmp, x->c,
	    model_w(m, P_KROPE, l, -1), s.G * s.r, s.C);
	m->be->rmsnorm_back(m->be, tmp, model_g(m, P_KVDOWN_NORM, l, -1), dc, x->ka,
	    model_w(m, P_KVDOWN_NORM, l, -1), x->rka, R, s.C,
	    false);
	model_linear_back(m, a->dn, 1, model_g(m, P_KVDOWN, l, -1), tmp, x->n1,
	    model_w(m, P_KVDOWN, l, -1), s.C, s.D);
}

void model_attn_back(struct model *m, int l)
{
	const struct config *c = &m->cfg;
	struct model_act *a = m->act;
	struct layer_act *x = &a->layer[l];
	struct dims s = dims(c, l);
	struct attn_args at = attn_args(m, l);
	const dev_real *dout = a->dh;
	bool drop = a->fo.train && c->dropout > 0;

	profile_begin(m->profile, PROFILE_PROJECT_BACK);
	if (drop || c->residual_multiplier != 1) {
		m->be->copy(m->be, a->dn, a->dh, (size_t)a->R * (size_t)s.D * sizeof(real));
		m->be->scale(m->be, a->dn, c->residual_multiplier, (int64_t)a->R * s.D);
		dout = a->dn;
	}
	if (drop)
		m->be->dropout(m->be, a->dn, (int64_t)a->R * s.D, c->dropout,
		    model_key(m, l, 2));
	model_linear_back(m, a->t4, 0, model_g(m, P_O, l, -1), dout, x->o, model_w(m, P_O, l, -1),
	    s.D, s.H * s.v);
	if (c->block[l].o_bias)
		model_add_bias_back(m, l, P_O_BIAS, dout, s.D);
	at.d_o = a->t4, at.dq_ = a->t1, at.dk = a->t2, at.dv_ = a->t3;
	at.dsinks = at.sinks ? model_g(m, P_SINKS, l, -1) : NULL;
	profile_begin(m->profile, PROFILE_ATTN_BACK);
	profile_flop(m->profile, 2.5 * attn_flop(m, &at));
	m->be->attn_back(m->be, &at);
	profile_begin(m->profile, PROFILE_PROJECT_BACK);
	if (c->block[l].attn == ATTN_MLA)
		mla_project_back(m, l);
	else if (c->block[l].attn == ATTN_LATENT)
		latent_project_back(m, l);
	else
		gqa_project_back(m, l);
	profile_begin(m->profile, PROFILE_NORM);
	m->be->rmsnorm_back(m->be, a->dh, model_g(m, P_IN_NORM, l, -1), a->dn, x->x,
	    model_w(m, P_IN_NORM, l, -1), x->rstd1, a->R, s.D,
	    true);
}
