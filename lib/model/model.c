/*
 * model: memory layout, the order of layers, embedding and final norm. Attention blocks are in
 * model_attn.c, MLPs in model_mlp.c, the language-model and lookahead heads in model_head.c.
 */
#include "model/model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/comm.h"
#include "model/model_int.h"
#include "base/rng.h"

#define MAX_HEAD_DIM 512	/* attention tiles are on the stack of a thread */

/* Counts bytes (bases NULL), for a plan if there is one, or hands them out of two allocations. */
struct layout {
	struct carve dev, host;
	struct mem_plan *plan;
};

static void *take_from(struct carve *c, struct mem_plan *plan, const char *name, size_t n,
    size_t size)
{
	int64_t before = c->used;
	void *p = mem_carve(c, (int64_t)n, size);

	if (plan)
		mem_plan_add(plan, name, c->used - before);
	return p;
}

static void *take_host(struct layout *x, const char *name, size_t n, size_t size)
{
	return take_from(&x->host, x->plan, name, n, size);
}

static dev_i32 *take_ids(struct layout *x, const char *name, int64_t n)
{
	return take_from(&x->dev, x->plan, name, (size_t)n, sizeof(dev_i32));
}

static dev_real *take_real(struct layout *x, const char *name, int64_t n)
{
	return take_from(&x->dev, x->plan, name, (size_t)n, sizeof(dev_real));
}

static void layout_latent(struct layout *x, struct layer_act *a, const struct config *c,
    const struct block *b, int64_t R)
{
	int64_t H = c->num_attention_heads, d = c->head_dim;

	a->qa = take_real(x, "attention", R * b->q_rank);
	a->qb = take_real(x, "attention", R * b->q_rank);
	a->rqa = take_real(x, "attention", R);
	a->ka = take_real(x, "attention", R * b->latent);
	a->rka = take_real(x, "attention", R);
	a->c = take_real(x, "attention", R * b->latent);
	a->q = take_real(x, "attention", R * H * d);
	a->k = take_real(x, "attention", R * H * d);
	a->v = take_real(x, "attention", R * H * b->value);
	a->o = take_real(x, "attention", R * H * b->value);
	a->lse = take_real(x, "attention", R * H);
}

static void layout_attn(struct layout *x, struct layer_act *a, const struct config *c, int l,
    int64_t R)
{
	const struct block *b = &c->block[l];
	bool mla = b->attn == ATTN_MLA, raw = !mla && b->qk_norm != QK_NORM_NONE;
	int64_t H = c->num_attention_heads, G = c->num_key_value_heads, d = c->head_dim;

	if (b->attn == ATTN_LATENT) {
		layout_latent(x, a, c, b, R);
		return;
	}
	a->qa = take_real(x, "attention", R * H * (mla ? b->nope : raw ? d : 0));
	a->rqa = take_real(x, "attention", R * H);
	if (mla) {
		a->qb = take_real(x, "attention", R * H * b->rope.width);
		a->rqb = take_real(x, "attention", R * H);
		a->c = take_real(x, "attention", R * b->latent);
	}
	a->ka = take_real(x, "attention", mla ? R * b->latent : raw ? R * G * d : 0);
	a->rka = take_real(x, "attention", mla ? R : R * G);
	a->q = take_real(x, "attention", R * H * d);
	a->k = take_real(x, "attention", R * G * d);
	a->v = take_real(x, "attention", R * G * d);
	a->o = take_real(x, "attention", R * H * d);
	a->lse = take_real(x, "attention", R * H);
}

static void layout_mlp(struct layout *x, struct layer_act *a, const struct config *c, int l,
    int64_t R, bool divided)
{
	const struct block *b = &c->block[l];
	int64_t K = c->num_experts_per_tok, F = b->width, S = b->shared;

	if (!b->sparse) {
		a->sg = take_real(x, "mlp", R * F);
		a->su = take_real(x, "mlp", R * F);
		return;
	}
	a->weights = take_real(x, "router", R * K);
	a->rsum = take_real(x, "router", b->router.sigmoid ? R : 0);
	a->slot = take_ids(x, "router", R * K);
	a->order = take_ids(x, "router", R * K);
	a->rows = take_ids(x, "router", R * K);
	a->expert = take_ids(x, "router", b->expert_bias ? R * K : 0);
	a->miss = take_ids(x, "router", R * K);
	a->miss_row = take_ids(x, "router", R * K);
	a->first = take_host(x, "router", (size_t)c->num_experts + 1, sizeof(int32_t));
	if (!divided) {
		a->eg = take_real(x, "experts", R * K * F);
		a->eu = take_real(x, "experts", R * K * F);
	}
	a->sg = take_real(x, "shared experts", S * R * b->shared_width);
	a->su = take_real(x, "shared experts", S * R * b->shared_width);
	a->shared = take_real(x, "shared experts", S ? R * c->hidden_size : 0);
	a->scoef = take_real(x, "shared experts", R);
	if (b->shared_gate) {
		a->sgate = take_real(x, "shared experts", R);
		a->sfull = take_real(x, "shared experts", R);
	}
}

static void layout_layer(struct layout *x, struct layer_act *a, const struct config *c, int l,
    int64_t R, bool divided)
{
	int64_t D = c->hidden_size;

	a->x = take_real(x, "residual stream", R * D);
	a->mid = take_real(x, "residual stream", R * D);
	a->n1 = take_real(x, "norms", R * D);
	a->n2 = take_real(x, "norms", R * D);
	a->rstd1 = take_real(x, "norms", R);
	a->rstd2 = take_real(x, "norms", R);
	layout_attn(x, a, c, l, R);
	layout_mlp(x, a, c, l, R, divided);
}

/* Forward only, or computed again: every layer works in the same buffers, each part laid out
 * once per kind. Inputs of layers are kept apart if they are to be computed again. */
static void layout_shared_layers(struct layout *x, struct layer_act *a, const struct config *c,
    int64_t R, bool keep_inputs,
    bool divided)
{
	bool have_attn[2] = { false, false }, have_mlp[2] = { false, false };
	int first_attn[2] = { 0, 0 }, first_mlp[2] = { 0, 0 };

	layout_layer(x, &a[0], c, 0, R, divided);
	for (int l = 0; l < c->num_hidden_layers; l++) {
		int t = block_latent(&c->block[l]), s = c->block[l].sparse;
		struct layer_act *b = &a[l];

		if (l > 0) {
			b->x = keep_inputs ? take_real(x, "residual stream", R * c->hidden_size)
			    : a[0].x;
			b->mid = a[0].mid, b->n1 = a[0].n1, b->n2 = a[0].n2;
			b->rstd1 = a[0].rstd1, b->rstd2 = a[0].rstd2;
			if (!have_attn[t])
				layout_attn(x, b, c, l, R);
			else {
				struct layer_act *f = &a[first_attn[t]];

				b->qa = f->qa, b->qb = f->qb, b->ka = f->ka, b->rqa = f->rqa,
				    b->rqb = f->rqb;
				b->rka = f->rka, b->c = f->c, b->q = f->q, b->k = f->k, b->v = f->v,
				    b->o = f->o;
				b->lse = f->lse;
			}
			if (!have_mlp[s])
				layout_mlp(x, b, c, l, R, divided);
			else {
				struct layer_act *f = &a[first_mlp[s]];

				b->rsum = f->rsum, b->weights = f->weights, b->slot = f->slot,
				    b->order = f->order, b->rows = f->rows, b->expert = f->expert;
				b->miss = f->miss, b->miss_row = f->miss_row;
				b->first = f->first, b->eg = f->eg, b->eu = f->eu, b->sg = f->sg,
				    b->su = f->su;
				b->shared = f->shared, b->scoef = f->scoef;
				b->sgate = f->sgate, b->sfull = f->sfull;
			}
		}
		if (!have_attn[t])
			have_attn[t] = true, first_attn[t] = l;
		if (!have_mlp[s])
			have_mlp[s] = true, first_mlp[s] = l;
	}
}

static void layout_outputs(struct layout *x, struct model *m, const struct model_opt *o, int64_t R)
{
	const struct config *c = &m->cfg;
	int64_t D = c->hidden_size, rows = config_lookahead_rows(c), RE = (int64_t)c->num_sparse *
	    R * c->num_experts;
	int64_t ahead = config_ahead_pairs(c) * R * c->num_experts;

	m->probs = take_real(x, "router", RE);
	m->topk = take_ids(x, "router", c->num_sparse * R * c->num_experts_per_tok);
	m->hidden = take_real(x, "residual stream", R * D);
	m->look = take_real(x, "lookahead", R * rows);
	if (o->train) {
		m->dprobs = take_real(x, "router", RE);
		m->dlook = take_real(x, "lookahead", R * rows);
		if (ahead > 0) {
			m->ahead = take_real(x, "router", ahead);
			m->dahead = take_real(x, "router", ahead);
		}
		m->dhidden = take_real(x, "gradient scratch", R * D);
	}
}

/* Experts of a rank get as many rows as it has itself, on average. */
static void layout_dispatch(struct layout *x, struct dispatch *d, const struct model_opt *o,
    const struct config *c, int64_t R)
{
	int64_t room = R * c->num_experts_per_tok * 5 / 4 + 1, D = c->hidden_size,
	    F = c->moe_intermediate_size;
	size_t n = (size_t)o->divided, E = (size_t)c->num_experts;

	d->n = 1;
	if (o->divided <= 1)
		return;
	d->n = o->divided;
	d->place = comm_place(COMM_GROUP, comm_rank());
	d->room = (int)room;
	d->count = take_host(x, "dispatch to experts", n * E, sizeof *d->count);
	d->none = take_host(x, "dispatch to experts", E + 1, sizeof *d->none);
	d->first = take_host(x, "dispatch to experts", E + 1, sizeof *d->first);
	d->sort = take_ids(x, "dispatch to experts", room);
	d->unsort = take_ids(x, "dispatch to experts", room);
	d->expert = take_ids(x, "dispatch to experts", config_expert_biased(c) ? room : 0);
	d->out_at = take_host(x, "dispatch to experts", n, sizeof *d->out_at);
	d->out_n = take_host(x, "dispatch to experts", n, sizeof *d->out_n);
	d->in_at = take_host(x, "dispatch to experts", n, sizeof *d->in_at);
	d->in_n = take_host(x, "dispatch to experts", n, sizeof *d->in_n);
	d->raw = take_real(x, "dispatch to experts", room * D);
	d->x = take_real(x, "dispatch to experts", room * D);
	d->y = take_real(x, "dispatch to experts", room * D);
	d->g = take_real(x, "dispatch to experts", room * F);
	d->u = take_real(x, "dispatch to experts", room * F);
	if (o->train) {
		d->w = take_real(x, "dispatch to experts", room);
		d->dw = take_real(x, "dispatch to experts", room);
	}
}

static int64_t rope_size(const struct config *c, const struct model_opt *o, bool mla)
{
	const struct rope *r = config_rope(c, mla);

	return r ? (int64_t)o->max_t * 2 * r->width : 0;
}

static int64_t widest_attn(const struct config *c, const struct block *b)
{
	int64_t kv = (int64_t)c->num_attention_heads * (b->nope + b->value);

	return mem_max(mem_max(b->latent, b->q_rank), b->attn == ATTN_LATENT ? kv : 0);
}

/* The widest row of scratch that a layer needs. */
static int64_t widest(const struct config *c)
{
	int64_t wide = mem_max((int64_t)c->num_attention_heads * c->head_dim, c->hidden_size);

	for (int l = 0; l < c->num_hidden_layers; l++)
		wide = mem_max(wide, widest_attn(c, &c->block[l]));
	return mem_max(wide, c->num_experts);
}

/* Elements of the inner rows of FFNs: of all slots together, of all shared experts, or of a dense
 * MLP. */
static int64_t inner_size(const struct config *c, int64_t slots, int64_t R)
{
	int64_t n = 0;

	for (int l = 0; l < c->num_hidden_layers; l++) {
		const struct block *b = &c->block[l];

		n = mem_max(n, b->sparse ? slots * b->width : 0);
		n = mem_max(n, R * block_fixed(b) * block_fixed_width(b));
	}
	return n;
}

static void layout_scratch(struct layout *x, struct model *m, const struct model_opt *o, int64_t R)
{
	struct model_act *a = m->act;
	const struct config *c = &m->cfg;
	int64_t D = c->hidden_size, K = c->num_experts_per_tok, wide = widest(c);
	int64_t slots, inner;
	bool sparse = c->num_sparse > 0;

	layout_dispatch(x, &a->dispatch, o, c, R);
	slots = mem_max(R * K, a->dispatch.room);
	inner = inner_size(c, slots, R);

	a->xlast = take_real(x, "residual stream", R * D);
	a->rlast = take_real(x, "norms", R);
	if (c->lookahead_steps > 0) {
		a->look_a = take_real(x, "lookahead", R * (D / 4));
		a->look_h = take_real(x, "lookahead", R * (D / 4));
	}
	a->tok = take_ids(x, "batch", R);
	a->pos = take_ids(x, "batch", R);
	a->doc = take_ids(x, "batch", R);
	a->zeros = take_ids(x, "batch", config_biased(c) ? R : 0);
	a->iota = take_ids(x, "batch", mem_max(slots, R));
	a->hid = take_host(x, "router", (size_t)(R * K), 4);
	a->hslot = take_host(x, "router", (size_t)(R * K), 4);
	a->horder = take_host(x, "router", (size_t)(R * K), 4);
	a->hmiss = take_host(x, "router", (size_t)(R * K), 4);
	a->scoef_h = take_host(x, "router", (size_t)R, sizeof *a->scoef_h);
	a->rope = take_real(x, "tables", rope_size(c, o, false));
	a->rope_mla = take_real(x, "tables", rope_size(c, o, true));
	a->logits = take_real(x, "logits", (int64_t)a->head_rows * c->vocab_size);
	a->target = take_ids(x, "logits", a->head_rows);
	a->coef = take_real(x, "logits", a->head_rows);
	a->logp = take_real(x, "logits", a->head_rows);
	a->t1 = take_real(x, "scratch", R * wide);
	a->t2 = take_real(x, "scratch", R * wide);
	a->xs = take_real(x, "scratch", sparse ? R * K * D : 0);
	a->ys = take_real(x, "scratch", sparse ? R * K * D : 0);
	a->branch = take_real(x, "scratch", c->residual_multiplier != 1 ? R * D : 0);
	a->a1 = take_real(x, "scratch", inner);
	a->jobs = take_host(x, "scratch",
	    (size_t)(2 * (c->num_experts + c->num_key_value_heads) + 8),
	    sizeof(struct gemm_job));
	if (!o->train)
		return;
	a->dlogits = take_real(x, "logits", (int64_t)a->head_rows * c->vocab_size);
	a->ones = take_real(x, "logits", a->head_rows);
	a->t3 = take_real(x, "gradient scratch", R * wide);
	a->t4 = take_real(x, "gradient scratch", R * wide);
	a->t5 = take_real(x, "gradient scratch", R * wide);
	a->t6 = take_real(x, "gradient scratch", R * wide);
	a->a2 = take_real(x, "gradient scratch", inner);
	a->a3 = take_real(x, "gradient scratch", inner);
	a->a4 = take_real(x, "gradient scratch", inner);
	a->dh = take_real(x, "gradient scratch", R * D);
	a->dn = take_real(x, "gradient scratch", R * D);
	a->dw = take_real(x, "gradient scratch", R * K);
	a->wslot = take_real(x, "gradient scratch", R * K);
	a->dwslot = take_real(x, "gradient scratch", R * K);
	a->drow = take_real(x, "gradient scratch", R);
}

/* The one description of a model's memory: run with NULL bases to count. */
static void lay_out(struct layout *x, struct model *m, const struct model_opt *o)
{
	const struct config *c = &m->cfg;
	int64_t R = (int64_t)o->max_b * o->max_t;

	m->w = take_real(x, "weights", m->par.total);
	if (o->train)
		m->g = take_real(x, "gradients", m->par.total);
	layout_outputs(x, m, o, R);
	layout_scratch(x, m, o, R);
	if (o->train && !o->recompute)
		for (int l = 0; l < c->num_hidden_layers; l++)
			layout_layer(x, &m->act->layer[l], c, l, R, o->divided > 1);
	else
		layout_shared_layers(x, m->act->layer, c, R, o->train, o->divided > 1);
}

static int head_rows(const struct config *c, const struct model_opt *o)
{
	int64_t n = o->head_rows > 0 ? o->head_rows : (16 << 20) / 4 / c->vocab_size,
	    R = (int64_t)o->max_b * o->max_t;

	n = n < 96 ? 96 : n / 96 * 96;
	return (int)(n < R ? n : R);
}

static int act_open(struct model *m, const struct model_opt *o)
{
	int64_t R = (int64_t)o->max_b * o->max_t;

	m->act = calloc(1, sizeof(*m->act));
	if (!m->act)
		return -1;
	m->act->layer = calloc((size_t)m->cfg.num_hidden_layers, sizeof(*m->act->layer));
	m->act->max_r = (int)R;
	m->act->max_t = o->max_t;
	m->act->head_rows = head_rows(&m->cfg, o);
	return m->act->layer ? 0 : -1;
}

static void act_close(struct model *m)
{
	if (m->act)
		free(m->act->layer);
	free(m->act);
	m->act = NULL;
}

static int build_params(struct params *ps, const struct config *c, const struct model_opt *o,
    struct err *e)
{
	if (params_build(ps, c, e) < 0)
		return -1;
	if (o->divided <= 1 || params_divide(ps, o->divided, comm_place(COMM_GROUP, comm_rank()), e)
	    == 0)
		return 0;
	params_free(ps);
	return -1;
}

void model_plan(struct mem_plan *p, const struct config *c, const struct model_opt *o)
{
	struct model m = { .cfg = *c };
	struct layout x = { .plan = p };
	struct err e = { 0 };

	if (build_params(&m.par, c, o, &e) < 0)
		err_exit(&e);	/* a checked config has parameters, and who plans has divided
				   them: only memory can fail */
	if (act_open(&m, o) < 0)
		err_die(EX_OSERR, "out of memory");
	lay_out(&x, &m, o);
	act_close(&m);
	params_free(&m.par);
}

static void tables(struct model *m)
{
	const struct config *c = &m->cfg;
	struct model_act *a = m->act;
	real *t = malloc((size_t)a->max_t * 2 * (size_t)c->head_dim * sizeof(real));
	int niota = (int)mem_max(a->dispatch.room, a->max_r * mem_max(c->num_experts_per_tok, 1));
	int32_t *iota = malloc((size_t)niota * sizeof(*iota));

	if (!t || !iota)
		err_die(EX_OSERR, "out of memory");
	for (int mla = 0; mla < 2; mla++) {
		const struct rope *r = config_rope(c, mla);

		if (!r)
			continue;
		rope_table(r, a->max_t, t);
		m->be->put(m->be, mla ? a->rope_mla : a->rope, t, (size_t)a->max_t * 2 *
		    (size_t)r->width * sizeof(real));
	}
	for (int i = 0; i < niota; i++)
		iota[i] = i;
	m->be->put(m->be, a->iota, iota, (size_t)niota * sizeof(*iota));
	for (int i = 0; a->ones && i < a->head_rows; i++) {
		const real one = 1;

		m->be->put(m->be, a->ones + i, &one, sizeof(one));
	}
	free(t);
	free(iota);
}

int model_open(struct model *m, const struct config *c, const struct model_opt *o,
    const struct backend *be,
    struct err *e)
{
	struct layout x = { 0 };

	memset(m, 0, sizeof(*m));
	m->cfg = *c;
	m->cfg.raw = NULL;
	m->be = be;
	m->bf16 = o->bf16;
	m->recompute = o->recompute;
	if (config_trains(c, e) < 0)
		return -1;
	if ((int64_t)o->max_b * o->max_t > INT32_MAX / 64)
		return err_set(e, EX_USAGE, "batch of %d sequences of %d tokens is too large",
		    o->max_b, o->max_t);
	if (c->head_dim > MAX_HEAD_DIM)
		return err_set(e, EX_DATAERR, "head_dim %d is above %d", c->head_dim, MAX_HEAD_DIM);
	if (build_params(&m->par, c, o, e) < 0)
		return -1;
	if (act_open(m, o) < 0) {
		model_close(m);
		return err_set(e, EX_OSERR, "out of memory");
	}
	lay_out(&x, m, o);
	m->act->dev = x.dev.base = be->alloc(be, (size_t)x.dev.used);
	m->act->host = x.host.base = mem_alloc((size_t)x.host.used);
	if (!x.dev.base) {
		int64_t need = x.dev.used + x.host.used;

		model_close(m);
		return err_set(e, EX_OSERR, "out of memory: the model needs %lld bytes (fewer "
		    "sequences -b or tokens --seq need less)", (long long)need);
	}
	x.dev.used = x.host.used = 0;
	lay_out(&x, m, o);
	tables(m);
	return 0;
}

void model_close(struct model *m)
{
	if (m->act && m->act->dev)
		m->be->free(m->be, m->act->dev);
	if (m->act) {
		mem_free(m->act->host);
		backend_mirror_free(&m->act->dispatch.here);
		backend_mirror_free(&m->act->dispatch.there);
		backend_mirror_free(&m->act->dispatch.sorted);
		backend_mirror_free(&m->act->dispatch.unsorted);
		backend_mirror_free(&m->act->dispatch.whose);
	}
	act_close(m);
	params_free(&m->par);
	m->w = m->g = NULL;
}

static void init_param(struct model *m, int i, uint64_t seed, real *buf)
{
	const struct param *p = &m->par.p[i];
	double bound = 1 / sqrt((double)p->cols);	/* the reference's U(+-1/sqrt(fan_in));
							   norms are 1 */

	for (int64_t j = 0; j < param_size(p); j++)
		buf[j] = param_is(p, PARAM_BIAS) ? 0 : p->ndim == 1 ? 1
		    : (real)((2 * rng_uniform(seed, (uint64_t)i + 1, (uint64_t)j) - 1) * bound);
	m->be->put(m->be, m->w + p->off, buf, (size_t)param_size(p) * sizeof(real));
}

/* Those with any of the traits; 0: all. */
static void init_params(struct model *m, unsigned traits, uint64_t seed)
{
	int64_t most = 0;
	real *buf;

	for (int i = 0; i < m->par.n; i++)
		most = mem_max(most, param_size(&m->par.p[i]));
	if ((buf = malloc((size_t)most * sizeof(real))) == NULL)
		err_die(EX_OSERR, "out of memory");
	for (int i = 0; i < m->par.n; i++)
		if (params_here(&m->par, &m->par.p[i]) &&
		    (traits == 0 || param_is(&m->par.p[i], traits)))
			init_param(m, i, seed, buf);
	free(buf);
}

void model_init_weights(struct model *m, uint64_t seed)
{
	init_params(m, 0, seed);
}

void model_init_lookahead(struct model *m, uint64_t seed)
{
	init_params(m, PARAM_LOOK, seed);
}

static void count_flop(const struct model *m, const struct gemm_job *jobs, int n)
{
	for (int i = 0; m->profile && i < n; i++)
		profile_flop(m->profile, 2.0 * (double)jobs[i].m * (double)jobs[i].n *
		    (double)jobs[i].k);
}

void model_gemm_f32(const struct model *m, enum gemm_kind kind, const struct gemm_job *jobs, int n)
{
	count_flop(m, jobs, n);
	m->be->gemm(m->be, kind, jobs, n);
}

void model_gemm(const struct model *m, enum gemm_kind kind, const struct gemm_job *jobs, int n)
{
	count_flop(m, jobs, n);
	comm_poll();
	(m->bf16 ? m->be->gemm_bf16 : m->be->gemm_train)(m->be, kind, jobs, n);
}

void model_linear(const struct model *m, dev_real *y, const dev_real *x, const dev_real *w, int n,
    int k,
    real beta)
{
	struct gemm_job j = { y, n, x, k, w, k, DT_REAL, m->act->R, n, k, beta };

	model_gemm(m, GEMM_NT, &j, 1);
}

void model_linear_back(const struct model *m, dev_real *dx, real beta, dev_real *dw,
    const dev_real *dy,
    const dev_real *x,
    const dev_real *w, int n, int k)
{
	struct gemm_job j = { dx, k, dy, n, w, k, DT_REAL, m->act->R, k, n, beta };
	struct gemm_job g = { dw, k, dy, n, x, k, DT_REAL, n, k, m->act->R, 1 };

	if (dx)
		model_gemm(m, GEMM_NN, &j, 1);
	model_gemm(m, GEMM_TN, &g, 1);
}

void model_add_bias(struct model *m, int l, enum param_kind bias, dev_real *y, int w)
{
	m->be->combine(m->be, y, model_w(m, bias, l, -1), m->act->zeros, NULL, m->act->R, 1, w);
}

void model_add_bias_back(struct model *m, int l, enum param_kind bias, const dev_real *dy, int w)
{
	m->be->scatter_add(m->be, model_g(m, bias, l, -1), dy, m->act->zeros, m->act->R, w);
}

uint64_t model_key(const struct model *m, int layer, int what)
{
	const struct forward_opt *o = &m->act->fo;
	uint64_t rank = what == MODEL_MISSES ? 0 : (uint64_t)o->rank;
	uint32_t r[4];

	rng_philox(o->seed, 0xd0 + (uint64_t)what + (rank << 8), o->step * CFG_MAX_LAYERS +
	    (uint64_t)layer, r);
	return (uint64_t)r[0] << 32 | r[1];
}

int model_sparse_index(const struct config *c, int layer)
{
	int n = 0;

	for (int l = 0; l < layer; l++)
		n += c->block[l].sparse;
	return n;
}

static void load_batch(struct model *m, const struct batch *b)
{
	struct model_act *a = m->act;

	a->B = b->B;
	a->T = b->T;
	a->R = b->B * b->T;
	for (int i = 0; i < a->R; i++)
		a->hid[i] = b->doc_start[i] < 0 ? 0 : i % b->T - b->doc_start[i];
	m->be->put(m->be, a->pos, a->hid, (size_t)a->R * 4);
	m->be->put(m->be, a->doc, b->doc_start, (size_t)a->R * 4);
	m->be->put(m->be, a->tok, b->tok, (size_t)a->R * 4);
}

static void clear_gradients(struct model *m)
{
	size_t R = (size_t)m->act->R;

	if (!m->g)
		return;
	m->be->zero(m->be, m->dprobs, (size_t)m->cfg.num_sparse * R * (size_t)m->cfg.num_experts *
	    sizeof(real));
	m->be->zero(m->be, m->dlook, R * (size_t)config_lookahead_rows(&m->cfg) * sizeof(real));
	if (m->dahead)
		m->be->zero(m->be, m->dahead, (size_t)config_ahead_pairs(&m->cfg) * R *
		    (size_t)m->cfg.num_experts * sizeof(real));
}

/* Uniform noise of alpha / sqrt(tokens of the document * D); the scales are built where slots
 * are built later. */
static void embedding_noise(struct model *m, const struct batch *b, double alpha)
{
	struct model_act *a = m->act;
	int D = m->cfg.hidden_size;

	for (int r = 0, end; r < a->R; r = end) {
		end = r + 1;
		while (end < a->R && end % a->T != 0 && b->doc_start[end] == b->doc_start[r])
			end++;
		for (int i = r; i < end; i++)
			a->scoef_h[i] = b->doc_start[r] < 0 ? 0
			    : (real)(alpha / sqrt((double)(end - r) * D));
	}
	m->be->put(m->be, a->drow, a->scoef_h, (size_t)a->R * sizeof(real));
	m->be->noise(m->be, a->layer[0].x, a->drow, a->R, D, model_key(m, 0, 4));
}

static void need(const struct model *m, int layer)
{
	if (m->hooks)
		m->hooks->need(m->hooks->ctx, layer);
}

/* With it, the router of the next sparse one, which may be foreseen. */
static void need_layer(const struct model *m, int l)
{
	int next = l + 1;

	while (m->ahead && next < m->cfg.num_hidden_layers && !m->cfg.block[next].sparse)
		next++;
	need(m, m->ahead ? next : l);
}

/* The experts of this rank for others' rows, in the layers from first to last. */
static void idle_forward(struct model *m)
{
	m->act->R = 0;
	for (int l = 0; m->act->dispatch.n > 1 && l < m->cfg.num_hidden_layers; l++) {
		need_layer(m, l);
		if (m->cfg.block[l].sparse)
			model_dispatch_forward(m, l, m->act->dispatch.none);
	}
	need(m, m->cfg.num_hidden_layers);
}

void model_forward(struct model *m, const struct batch *b, const struct forward_opt *o)
{
	const struct config *c = &m->cfg;
	struct model_act *a = m->act;
	int D = c->hidden_size, L = c->num_hidden_layers;

	if (b->B == 0) {
		idle_forward(m);
		return;
	}
	profile_begin(m->profile, PROFILE_EMBED);
	load_batch(m, b);
	a->fo = *o;
	m->replayed = m->moved = 0;
	clear_gradients(m);
	need(m, -1);
	m->be->gather(m->be, a->layer[0].x, model_w(m, P_EMBED, -1, -1), a->tok, a->R, D);
	if (o->train && o->neftune > 0)
		embedding_noise(m, b, o->neftune);
	if (c->embedding_multiplier != 1)
		m->be->scale(m->be, a->layer[0].x, c->embedding_multiplier, (int64_t)a->R * D);
	if (o->train && c->dropout > 0)
		m->be->dropout(m->be, a->layer[0].x, (int64_t)a->R * D, c->dropout, model_key(m, 0,
		    0));
	for (int l = 0; l < L; l++) {
		dev_real *out = l + 1 < L ? a->layer[l + 1].x : a->xlast;

		need_layer(m, l);
		model_attn_forward(m, l);
		model_mlp_forward(m, l, out);
		profile_begin(m->profile, PROFILE_LOOK);
		if (l == 0 && c->lookahead_steps > 0)
			model_look_forward(m, out);
	}
	need(m, L);
	profile_begin(m->profile, PROFILE_NORM);
	m->be->rmsnorm(m->be, m->hidden, a->rlast, a->xlast, model_w(m, P_NORM, -1, -1), a->R, D,
	    c->rms_norm_eps);
	profile_begin(m->profile, PROFILE_OTHER);
}

/* The activations of a layer whose buffers others have used since. */
static void layer_again(struct model *m, int l)
{
	int64_t replayed = m->replayed, moved = m->moved;

	model_attn_forward(m, l);
	model_mlp_forward(m, l, NULL);
	m->replayed = replayed;
	m->moved = moved;
}

/* Layer l and those after it have been gone back through. A router may be foreseen from the
 * sparse layer before its own, and its gradient is complete only then. *next: the last layer
 * that was told to be complete. */
static void tell_complete(struct model *m, int l, int *next)
{
	const struct config *c = &m->cfg;

	while (*next > l) {
		int before = *next - 2;

		while (before >= l && !c->block[before].sparse)
			before--;
		if (m->ahead && c->block[*next - 1].sparse && before < l && l > 0)
			break;
		m->hooks->complete(m->hooks->ctx, --*next);
	}
}

static void layer_back(struct model *m, int l)
{
	const struct config *c = &m->cfg;
	struct model_act *a = m->act;

	if (m->recompute && l < c->num_hidden_layers - 1)
		layer_again(m, l);
	profile_begin(m->profile, PROFILE_LOOK);
	if (l == 0 && c->lookahead_steps > 0)
		model_look_back(m, c->num_hidden_layers > 1 ? a->layer[1].x : a->xlast);
	model_mlp_back(m, l);
	model_attn_back(m, l);
}

void model_backward(struct model *m, const struct batch *b)
{
	const struct config *c = &m->cfg;
	struct model_act *a = m->act;
	int D = c->hidden_size, complete = c->num_hidden_layers;
	bool idle = b->B == 0;

	profile_begin(m->profile, PROFILE_NORM);
	if (!idle)
		m->be->rmsnorm_back(m->be, a->dh, model_g(m, P_NORM, -1, -1), m->dhidden, a->xlast,
		    model_w(m, P_NORM, -1, -1), a->rlast,
		    a->R, D, false);
	if (m->hooks)
		m->hooks->complete(m->hooks->ctx, complete);
	for (int l = c->num_hidden_layers - 1; l >= 0; l--) {
		if (!idle)
			layer_back(m, l);
		else if (a->dispatch.n > 1 && c->block[l].sparse)
			model_dispatch_back(m, l, a->dispatch.none);
		if (m->hooks)
			tell_complete(m, l, &complete);
	}
	if (idle)
		return;
	profile_begin(m->profile, PROFILE_EMBED);
	if (a->fo.train && c->dropout > 0)
		m->be->dropout(m->be, a->dh, (int64_t)a->R * D, c->dropout, model_key(m, 0, 0));
	if (c->embedding_multiplier != 1)
		m->be->scale(m->be, a->dh, c->embedding_multiplier, (int64_t)a->R * D);
	m->be->scatter_add(m->be, model_g(m, P_EMBED, -1, -1), a->dh, a->tok, a->R, D);
	profile_begin(m->profile, PROFILE_OTHER);
}
