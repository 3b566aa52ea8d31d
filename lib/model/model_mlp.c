/*
 * model_mlp: dense and mixture-of-experts MLPs of training. Tokens are sorted by expert, each
 * expert is one job of a grouped GEMM, and results are combined per row in the order of its
 * choices.
 *
 *	out = mid + sum_k w_k (a_k expert_k(x) + (1 - a_k) shared(x)) + shared(x),	a_k:
 *	expert available
 *
 * Where the model has a residual_multiplier, what comes after mid is multiplied by it.
 */
#include <string.h>

#include "model/model_int.h"
#include "base/rng.h"
#include "model/route_stats.h"

struct ffn { const dev_real *gate, *up, *down; };	/* (F, D), (F, D), (D, F) */

static struct ffn ffn_w(const struct model *m, enum param_kind gate, int l, int e)
{
	return (struct ffn){ model_w(m, gate, l, e), model_w(m, gate + 1, l, e),
	    model_w(m, gate + 2, l, e) };
}

/* g, u = x gate^T, x up^T; y (+)= scale-free down(silu(g) * u), if y is wanted */
static void ffn_forward(struct model *m, int l, struct ffn f, const dev_real *x, dev_real *g,
    dev_real *u, dev_real *y, int F, real beta)
{
	struct model_act *a = m->act;
	int D = m->cfg.hidden_size;
	struct gemm_job j[2] = {
		{ g, F, x, D, f.gate, D, DT_REAL, a->R, F, D, 0 },
		{ u, F, x, D, f.up, D, DT_REAL, a->R, F, D, 0 },
	};

	model_gemm(m, GEMM_NT, j, 2);
	if (!y)
		return;
	m->be->swiglu(m->be, a->a1, g, u, (int64_t)a->R * F, m->cfg.block[l].glu);
	model_linear(m, y, a->a1, f.down, D, F, beta);
}

/* From dy: weight gradients, and dn += dx. */
static void ffn_back(struct model *m, enum param_kind gate, int l, int e, const dev_real *dy,
    const dev_real *x, const dev_real *g,
    const dev_real *u, int F)
{
	struct model_act *a = m->act;
	struct ffn f = ffn_w(m, gate, l, e);
	struct glu glu = m->cfg.block[l].glu;
	int D = m->cfg.hidden_size;
	int64_t n = (int64_t)a->R * F;

	m->be->swiglu(m->be, a->a1, g, u, n, glu);
	model_linear_back(m, a->a2, 0, model_g(m, gate + 2, l, e), dy, a->a1, f.down, D, F);
	m->be->swiglu_back(m->be, a->a3, a->a4, a->a2, g, u, n, glu);
	model_linear_back(m, a->dn, 1, model_g(m, gate, l, e), a->a3, x, f.gate, F, D);
	model_linear_back(m, a->dn, 1, model_g(m, gate + 1, l, e), a->a4, x, f.up, F, D);
}

/* ---- routing ---- */

/* Random misses: each expert of the layer is absent with probability p in this forward; at least
 * one stays. */
static void draw_available(const struct model *m, int l, uint8_t *avail)
{
	const struct forward_opt *o = &m->act->fo;
	int E = m->cfg.num_experts, left = 0;
	uint64_t key;

	if (o->available)
		memcpy(avail, o->available, (size_t)E);
	else
		memset(avail, 1, (size_t)E);
	if (!o->train || o->fallback_mask_prob <= 0 || m->cfg.block[l].shared == 0)
		return;
	key = model_key(m, l, MODEL_MISSES);
	for (int e = 0; e < E; e++) {
		avail[e] &= rng_hash(key, (uint64_t)e) >= o->fallback_mask_prob * 4294967296.0;
		left += avail[e];
	}
	if (left == 0)
		avail[rng_hash(key, (uint64_t)E) % (uint32_t)E] = 1;
}

/* Places every chosen (row, k) of an available expert: experts ascending, rows ascending within
 * one. */
static void place_slots(struct model *m, struct layer_act *x, const int32_t *ids,
    const uint8_t *avail, bool biased)
{
	struct model_act *a = m->act;
	int E = m->cfg.num_experts, K = m->cfg.num_experts_per_tok, n = a->R * K;

	memset(x->first, 0, ((size_t)E + 1) * sizeof(*x->first));
	x->any_miss = false;
	for (int i = 0; i < n; i++)
		if (avail[ids[i]])
			x->first[ids[i] + 1]++;
		else
			x->any_miss = true;
	for (int e = 0; e < E; e++)
		x->first[e + 1] += x->first[e];
	for (int r = 0; r < a->R; r++)
		a->scoef_h[r] = 1;
	for (int i = 0; i < n; i++) {
		int32_t s = avail[ids[i]] ? x->first[ids[i]]++ : -1;

		a->hslot[i] = s;
		a->hmiss[i] = s < 0 ? i : -1;
		if (s >= 0)
			a->horder[s] = i;
	}
	memmove(x->first + 1, x->first, (size_t)E * sizeof(*x->first));
	x->first[0] = 0;
	m->be->put(m->be, x->slot, a->hslot, (size_t)n * 4);
	m->be->put(m->be, x->miss, a->hmiss, (size_t)n * 4);
	m->be->put(m->be, x->order, a->horder, (size_t)n * 4);
	for (int s = 0; biased && s < x->first[E]; s++)
		a->hslot[s] = ids[a->horder[s]];
	if (biased)
		m->be->put(m->be, x->expert, a->hslot, (size_t)x->first[E] * 4);
	for (int i = 0; i < n; i++) {
		a->hmiss[i] = a->hmiss[i] < 0 ? -1 : i / K;
		a->horder[i] /= K;	/* entries past the last slot are never read */
	}
	m->be->put(m->be, x->miss_row, a->hmiss, (size_t)n * 4);
	m->be->put(m->be, x->rows, a->horder, (size_t)n * 4);
}

/* How often the shared output is added to each row: once, plus the weight of its missing
 * experts. */
static void shared_coef(struct model *m, struct layer_act *x)
{
	struct model_act *a = m->act;
	int K = m->cfg.num_experts_per_tok;

	m->be->put(m->be, x->scoef, a->scoef_h, (size_t)a->R * sizeof(real));
	if (x->any_miss)
		m->be->combine(m->be, x->scoef, x->weights, x->miss, NULL, a->R, K, 1);
}

/* The router of layer l on the rows of this batch: what forward and backward have in common. */
static struct route_args route_args(const struct model *m, int l)
{
	const struct config *c = &m->cfg;
	const struct model_act *a = m->act;
	const struct layer_act *x = &a->layer[l];
	int64_t s = model_sparse_index(c, l), E = c->num_experts, K = c->num_experts_per_tok;

	return (struct route_args){ .r = &c->block[l].router, .n = a->R, .E = (int)E, .K = (int)K,
	    .bias = c->block[l].router_bias ? model_w(m, P_GATE_BIAS, l, -1) : NULL,
	    .probs = m->probs + s * a->R * E, .sums = x->rsum, .ids = m->topk + s * a->R * K,
	    .weights = x->weights };
}

void model_choice_bias(const struct model *m, real *bias)
{
	const struct config *c = &m->cfg;

	for (int l = 0; l < c->num_hidden_layers; l++)
		if (c->block[l].sparse && c->block[l].router_bias) {
			m->be->get(m->be, bias, model_w(m, P_GATE_BIAS, l, -1),
			    (size_t)c->num_experts * sizeof *bias);
			bias += c->num_experts;
		}
}

/* Replaces the choice (a->hid on the host, and ids) by the given one where there is one. The
 * gradient goes through the weights as always. (R3, arXiv:2510.11370: training must use the
 * experts that sampling used.) */
static void replay(struct model *m, int l, dev_i32 *ids)
{
	const struct config *c = &m->cfg;
	struct model_act *a = m->act;
	struct route_args args = route_args(m, l);
	int K = c->num_experts_per_tok;
	const int32_t *given = a->fo.replay + (int64_t)model_sparse_index(c, l) * a->R * K;

	for (int r = 0; r < a->R; r++, given += K) {
		if (given[0] < 0)
			continue;
		m->replayed++;
		m->moved += !route_same_set(given, a->hid + r * K, K);
		memcpy(a->hid + r * K, given, (size_t)K * sizeof(*given));
	}
	m->be->put(m->be, ids, a->hid, (size_t)(a->R * K) * sizeof(*ids));
	m->be->route_weights(m->be, &args);
}

/* The router of the next sparse layer, or NULL where none is to be foreseen from this one. *at:
 * offset into ahead. */
static const struct param *foreseen(const struct model *m, int l, int64_t *at)
{
	const struct config *c = &m->cfg;
	int s = model_sparse_index(c, l), next = l + 1;

	if (!m->ahead || s >= config_ahead_pairs(c))
		return NULL;
	while (!c->block[next].sparse)
		next++;
	*at = (int64_t)s * m->act->R * c->num_experts;
	return params_get(&m->par, P_GATE, next, -1);
}

static void route(struct model *m, int l, struct layer_act *x)
{
	const struct config *c = &m->cfg;
	struct model_act *a = m->act;
	int E = c->num_experts, K = c->num_experts_per_tok, D = c->hidden_size;
	struct route_args args = route_args(m, l);
	uint8_t avail[E];
	int64_t at = 0;
	const struct param *next = foreseen(m, l, &at);
	struct gemm_job logits[2] = {
		{ args.probs, E, x->n2, D, model_w(m, P_GATE, l, -1), D, DT_REAL, a->R, E, D, 0 },
		{ next ? m->ahead + at : NULL, E, x->n2, D, next ? m->w + next->off : NULL, D,
		    DT_REAL, a->R, E, D, 0 },
	};

	/* In FP32 always: a rounded score can change the choice (Switch Transformers,
	 * arXiv:2101.03961, section 2.4). */
	model_gemm_f32(m, GEMM_NT, logits, next ? 2 : 1);
	if (c->block[l].logit_bias)
		model_add_bias(m, l, P_LOGIT_BIAS, args.probs, E);
	if (next && c->block[next->layer].logit_bias)
		model_add_bias(m, next->layer, P_LOGIT_BIAS, m->ahead + at, E);
	m->be->route(m->be, &args);
	m->be->get(m->be, a->hid, args.ids, (size_t)(a->R * K) * 4);
	if (a->fo.replay)
		replay(m, l, args.ids);
	draw_available(m, l, avail);
	place_slots(m, x, a->hid, avail, c->block[l].expert_bias);
	shared_coef(m, x);
}

/* ---- forward ---- */

/* y, a row of width w for each of s, += the bias of its expert. */
static void add_biases(struct model *m, int l, enum param_kind bias, const struct rows *s,
    dev_real *y, int w)
{
	m->be->combine(m->be, y, model_w(m, bias, l, -1), s->expert, NULL,
	    s->first[m->cfg.num_experts], 1, w);
}

static void add_biases_back(struct model *m, int l, enum param_kind bias, const struct rows *s,
    const dev_real *dy, int w)
{
	m->be->scatter_add(m->be, model_g(m, bias, l, -1), dy, s->expert,
	    s->first[m->cfg.num_experts], w);
}

static void experts_up(struct model *m, int l, const struct rows *s)
{
	struct model_act *a = m->act;
	int E = m->cfg.num_experts, D = m->cfg.hidden_size, F = m->cfg.block[l].width, n = 0;

	for (int e = 0; e < E; e++) {
		int64_t at = s->first[e], rows = s->first[e + 1] - at;
		struct ffn f;

		if (rows == 0)
			continue;
		f = ffn_w(m, P_EXP_GATE, l, e);
		a->jobs[n++] = (struct gemm_job){ s->g + at * F, F, s->x + at * D, D, f.gate, D,
		    DT_REAL, rows, F, D, 0 };
		a->jobs[n++] = (struct gemm_job){ s->u + at * F, F, s->x + at * D, D, f.up, D,
		    DT_REAL, rows, F, D, 0 };
	}
	model_gemm(m, GEMM_NT, a->jobs, n);
	if (m->cfg.block[l].expert_bias) {
		add_biases(m, l, P_EXP_GATE_BIAS, s, s->g, F);
		add_biases(m, l, P_EXP_UP_BIAS, s, s->u, F);
	}
}

static void experts_down(struct model *m, int l, const struct rows *s)
{
	struct model_act *a = m->act;
	int E = m->cfg.num_experts, D = m->cfg.hidden_size, F = m->cfg.block[l].width, n = 0;

	m->be->swiglu(m->be, a->a1, s->g, s->u, (int64_t)s->first[E] * F, m->cfg.block[l].glu);
	for (int e = 0; e < E; e++) {
		int64_t at = s->first[e], rows = s->first[e + 1] - at;

		if (rows > 0)
			a->jobs[n++] = (struct gemm_job){ s->y + at * D, D, a->a1 + at * F, F,
				model_w(m, P_EXP_DOWN, l, e), F, DT_REAL, rows, D, F, 0 };
	}
	model_gemm(m, GEMM_NT, a->jobs, n);
	if (m->cfg.block[l].expert_bias)
		add_biases(m, l, P_EXP_DOWN_BIAS, s, s->y, D);
}

void model_experts_forward(struct model *m, int l, const struct rows *s)
{
	experts_up(m, l, s);
	if (s->y)
		experts_down(m, l, s);
}

/* sigmoid(x . gate) for each row, and the weight that the shared output has with it. */
static void shared_gate(struct model *m, int l, struct layer_act *x)
{
	struct model_act *a = m->act;
	int D = m->cfg.hidden_size;
	struct gemm_job z = { x->sgate, 1, x->n2, D, model_w(m, P_SH_SIGMOID, l, -1), D, DT_REAL,
	    a->R, 1, D, 0 };

	model_gemm_f32(m, GEMM_NT, &z, 1);
	m->be->sigmoid(m->be, x->sgate, x->sgate, a->R);
	m->be->copy(m->be, x->sfull, x->scoef, (size_t)a->R * sizeof(real));
	m->be->scale_rows(m->be, x->sfull, x->sgate, a->R, 1);
}

static void shared_forward(struct model *m, int l, struct layer_act *x, dev_real *out)
{
	struct model_act *a = m->act;
	const struct block *b = &m->cfg.block[l];
	int S = b->shared, D = m->cfg.hidden_size, F = b->shared_width;
	bool wanted = out || x->any_miss || b->shared_gate;

	if (S == 0)
		return;
	for (int s = 0; s < S; s++)
		ffn_forward(m, l, ffn_w(m, P_SH_GATE, l, s), x->n2, x->sg + (int64_t)s * a->R * F,
		    x->su + (int64_t)s * a->R * F, wanted ? x->shared : NULL, F, s > 0);
	if (S > 1 && wanted)
		m->be->scale(m->be, x->shared, block_shared_weight(b, 1), (int64_t)a->R * D);
	if (b->shared_gate)
		shared_gate(m, l, x);
	if (out)
		m->be->combine(m->be, out, x->shared, a->iota, b->shared_gate ? x->sfull : x->scoef,
		    a->R, 1, D);
}

static void moe_forward(struct model *m, int l, dev_real *out)
{
	struct model_act *a = m->act;
	struct layer_act *x = &a->layer[l];
	int D = m->cfg.hidden_size;

	profile_begin(m->profile, PROFILE_ROUTER);
	route(m, l, x);
	profile_begin(m->profile, PROFILE_SORT);
	m->be->gather(m->be, a->xs, x->n2, x->rows, x->first[m->cfg.num_experts], D);
	profile_begin(m->profile, PROFILE_EXPERTS);
	if (a->dispatch.n == 1)
		model_experts_forward(m, l, &(struct rows){ .first = x->first, .x = a->xs,
		    .expert = x->expert, .g = x->eg, .u = x->eu,
		    .y = out ? a->ys : NULL });
	else if (out)
		model_dispatch_forward(m, l, x->first);
	profile_begin(m->profile, PROFILE_SORT);
	if (out)
		m->be->combine(m->be, out, a->ys, x->slot, x->weights, a->R,
		    m->cfg.num_experts_per_tok,
		    D);
	profile_begin(m->profile, PROFILE_DENSE);
	shared_forward(m, l, x, out);
}

void model_mlp_forward(struct model *m, int l, dev_real *out)
{
	const struct config *c = &m->cfg;
	struct model_act *a = m->act;
	struct layer_act *x = &a->layer[l];
	dev_real *into = out && c->residual_multiplier != 1 ? a->branch : out;

	profile_begin(m->profile, PROFILE_NORM);
	m->be->rmsnorm(m->be, x->n2, x->rstd2, x->mid, model_w(m, P_POST_NORM, l, -1), a->R,
	    c->hidden_size, c->rms_norm_eps);
	if (out)
		m->be->copy(m->be, out, x->mid,
		    (size_t)a->R * (size_t)c->hidden_size * sizeof(real));
	if (into != out)
		m->be->zero(m->be, into, (size_t)a->R * (size_t)c->hidden_size * sizeof(real));
	profile_begin(m->profile, PROFILE_DENSE);
	if (c->block[l].sparse)
		moe_forward(m, l, into);
	else
		ffn_forward(m, l, ffn_w(m, P_MLP_GATE, l, -1), x->n2, x->sg, x->su, into,
		    c->block[l].width, 1);
	if (into != out)
		m->be->axpy(m->be, out, into, c->residual_multiplier,
		    (int64_t)a->R * c->hidden_size);
}

/* ---- backward ---- */

/* dA = dy W_down per expert (unscaled), from which come both the gradient of the routing weight,
 * dA . act, and, times that weight, the gradient of act: so expert outputs need not be kept. */
static void experts_back_down(struct model *m, int l, const struct rows *s)
{
	struct model_act *a = m->act;
	int E = m->cfg.num_experts, D = m->cfg.hidden_size, F = m->cfg.block[l].width;
	int64_t slots = s->first[E];
	int n = 0;

	m->be->swiglu(m->be, a->a1, s->g, s->u, slots * F, m->cfg.block[l].glu);
	for (int e = 0; e < E; e++) {
		int64_t at = s->first[e], rows = s->first[e + 1] - at;

		if (rows > 0)
			a->jobs[n++] = (struct gemm_job){ a->a2 + at * F, F, s->y + at * D, D,
				model_w(m, P_EXP_DOWN, l, e), F, DT_REAL, rows, F, D, 0 };
	}
	model_gemm(m, GEMM_NN, a->jobs, n);
	m->be->dot_rows(m->be, s->dw, a->a2, a->iota, a->a1, a->iota, slots, F);
	if (m->cfg.block[l].expert_bias) {
		m->be->dot_rows(m->be, a->a3, s->y, a->iota, model_w(m, P_EXP_DOWN_BIAS, l, -1),
		    s->expert, slots, D);
		m->be->axpy(m->be, s->dw, a->a3, 1, slots);
	}
	m->be->scale_rows(m->be, a->a2, s->w, slots, F);
	m->be->scale_rows(m->be, a->a1, s->w, slots, F);
	n = 0;
	for (int e = 0; e < E; e++) {
		int64_t at = s->first[e], rows = s->first[e + 1] - at;

		if (rows > 0)
			a->jobs[n++] = (struct gemm_job){ model_g(m, P_EXP_DOWN, l, e), F,
			    s->y + at * D, D, a->a1 + at * F, F,
				DT_REAL, D, F, rows, 1 };
	}
	model_gemm(m, GEMM_TN, a->jobs, n);
	if (m->cfg.block[l].expert_bias) {
		m->be->scale_rows(m->be, s->y, s->w, slots, D);
		add_biases_back(m, l, P_EXP_DOWN_BIAS, s, s->y, D);
	}
}

/* Through gate and up: weight gradients, then dx into y. */
static void experts_back_up(struct model *m, int l, const struct rows *s)
{
	struct model_act *a = m->act;
	int E = m->cfg.num_experts, D = m->cfg.hidden_size, F = m->cfg.block[l].width;

	m->be->swiglu_back(m->be, a->a3, a->a4, a->a2, s->g, s->u, (int64_t)s->first[E] * F,
	    m->cfg.block[l].glu);
	if (m->cfg.block[l].expert_bias) {
		add_biases_back(m, l, P_EXP_GATE_BIAS, s, a->a3, F);
		add_biases_back(m, l, P_EXP_UP_BIAS, s, a->a4, F);
	}
	for (int pass = 0; pass < 3; pass++) {
		int n = 0;

		for (int e = 0; e < E; e++) {
			int64_t at = s->first[e], rows = s->first[e + 1] - at;
			const dev_real *dg = a->a3 + at * F, *du = a->a4 + at * F,
			    *in = s->x + at * D;
			struct ffn f;

			if (rows == 0)
				continue;
			f = ffn_w(m, P_EXP_GATE, l, e);
			if (pass == 0) {
				a->jobs[n++] = (struct gemm_job){ model_g(m, P_EXP_GATE, l, e), D,
				    dg, F, in, D, DT_REAL, F, D, rows, 1 };
				a->jobs[n++] = (struct gemm_job){ model_g(m, P_EXP_UP, l, e), D, du,
				    F, in, D, DT_REAL, F, D, rows, 1 };
			} else
				a->jobs[n++] = (struct gemm_job){ s->y + at * D, D, pass == 1 ? dg
				    : du, F,
					pass == 1 ? f.gate : f.up, D, DT_REAL, rows, D, F,
					    pass == 2 };
		}
		model_gemm(m, pass == 0 ? GEMM_TN : GEMM_NN, a->jobs, n);
	}
}

void model_experts_back(struct model *m, int l, const struct rows *s)
{
	experts_back_down(m, l, s);
	experts_back_up(m, l, s);
}

static void experts_back(struct model *m, int l, struct layer_act *x, const dev_real *dy)
{
	struct model_act *a = m->act;
	int D = m->cfg.hidden_size, K = m->cfg.num_experts_per_tok;
	int64_t slots = x->first[m->cfg.num_experts];

	m->be->gather(m->be, a->ys, dy, x->rows, slots, D);
	m->be->gather(m->be, a->xs, x->n2, x->rows, slots, D);
	m->be->gather(m->be, a->wslot, x->weights, x->order, slots, 1);
	profile_begin(m->profile, PROFILE_EXPERTS_BACK);
	if (a->dispatch.n == 1)
		model_experts_back(m, l, &(struct rows){ x->first, a->xs, x->expert, x->eg, x->eu,
		    a->ys, a->wslot, a->dwslot });
	else
		model_dispatch_back(m, l, x->first);
	profile_begin(m->profile, PROFILE_SORT);
	m->be->zero(m->be, a->dw, (size_t)(a->R * K) * sizeof(real));
	m->be->combine(m->be, a->dw, a->dwslot, x->slot, NULL, (int64_t)a->R * K, 1, 1);
	m->be->combine(m->be, a->dn, a->ys, x->slot, NULL, a->R, K, D);
}

/* Of each row dy . shared is in drow: the gradients of the gate, and of what missing experts
 * weigh. */
static void shared_weights_back(struct model *m, int l, struct layer_act *x)
{
	struct model_act *a = m->act;
	bool gate = m->cfg.block[l].shared_gate;
	int64_t R = a->R;

	if (gate) {
		m->be->copy(m->be, a->t2, a->drow, (size_t)R * sizeof(real));
		m->be->scale_rows(m->be, a->t2, x->scoef, R, 1);
		m->be->sigmoid_back(m->be, a->t2, a->t2, x->sgate, R);
		model_linear_back(m, a->dn, 1, model_g(m, P_SH_SIGMOID, l, -1), a->t2, x->n2,
		    model_w(m, P_SH_SIGMOID, l, -1), 1, m->cfg.hidden_size);
		m->be->scale_rows(m->be, a->drow, x->sgate, R, 1);
	}
	if (x->any_miss)	/* weight of a missing expert scales the shared output */
		m->be->combine(m->be, a->dw, a->drow, x->miss_row, NULL,
		    R * m->cfg.num_experts_per_tok, 1, 1);
}

static void shared_back(struct model *m, int l, struct layer_act *x, const dev_real *dy)
{
	struct model_act *a = m->act;
	const struct block *b = &m->cfg.block[l];
	int S = b->shared, D = m->cfg.hidden_size, F = b->shared_width;

	if (S == 0)
		return;
	if (x->any_miss || b->shared_gate) {
		m->be->dot_rows(m->be, a->drow, dy, a->iota, x->shared, a->iota, a->R, D);
		shared_weights_back(m, l, x);
	}
	m->be->copy(m->be, a->t1, dy, (size_t)a->R * (size_t)D * sizeof(real));
	m->be->scale_rows(m->be, a->t1, b->shared_gate ? x->sfull : x->scoef, a->R, D);
	if (S > 1)
		m->be->scale(m->be, a->t1, block_shared_weight(b, 1), (int64_t)a->R * D);
	for (int s = 0; s < S; s++)
		ffn_back(m, P_SH_GATE, l, s, a->t1, x->n2, x->sg + (int64_t)s * a->R * F,
		    x->su + (int64_t)s * a->R * F, F);
}

static void router_back(struct model *m, int l, struct layer_act *x)
{
	const struct config *c = &m->cfg;
	struct model_act *a = m->act;
	int64_t E = c->num_experts, at;
	const struct param *next = foreseen(m, l, &at);
	struct route_args args = route_args(m, l);

	args.dweights = a->dw;
	args.dprobs = m->dprobs + (args.probs - m->probs);
	args.dlogits = a->t1;
	m->be->route_back(m->be, &args);
	model_linear_back(m, a->dn, 1, model_g(m, P_GATE, l, -1), a->t1, x->n2,
	    model_w(m, P_GATE, l, -1), (int)E,
	    c->hidden_size);
	if (c->block[l].logit_bias)
		model_add_bias_back(m, l, P_LOGIT_BIAS, a->t1, (int)E);
	if (next && c->block[next->layer].logit_bias)
		model_add_bias_back(m, next->layer, P_LOGIT_BIAS, m->dahead + at, (int)E);
	if (next)
		model_linear_back(m, a->dn, 1, m->g + next->off, m->dahead + at, x->n2,
		    m->w + next->off, (int)E, c->hidden_size);
}

void model_mlp_back(struct model *m, int l)
{
	const struct config *c = &m->cfg;
	struct model_act *a = m->act;
	struct layer_act *x = &a->layer[l];
	int D = c->hidden_size;
	const dev_real *dy = a->dh;

	profile_begin(m->profile, PROFILE_SORT);
	if (c->residual_multiplier != 1) {
		m->be->copy(m->be, a->branch, a->dh, (size_t)a->R * (size_t)D * sizeof(real));
		m->be->scale(m->be, a->branch, c->residual_multiplier, (int64_t)a->R * D);
		dy = a->branch;
	}
	m->be->zero(m->be, a->dn, (size_t)a->R * (size_t)D * sizeof(real));
	if (c->block[l].sparse) {
		experts_back(m, l, x, dy);
		profile_begin(m->profile, PROFILE_DENSE_BACK);
		shared_back(m, l, x, dy);
		profile_begin(m->profile, PROFILE_ROUTER);
		router_back(m, l, x);
	} else
		ffn_back(m, P_MLP_GATE, l, -1, dy, x->n2, x->sg, x->su, c->block[l].width);
	profile_begin(m->profile, PROFILE_NORM);
	m->be->rmsnorm_back(m->be, a->dh, model_g(m, P_POST_NORM, l, -1), a->dn, x->mid,
	    model_w(m, P_POST_NORM, l, -1), x->rstd2,
	    a->R, D, true);
}
