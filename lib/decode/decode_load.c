/*
 * Opening an engine: every byte is counted first (load_plan), then the weights are read
 * (load_weights). Dense weights become float32; experts stay as they are stored.
 */
#include <stdlib.h>
#include <string.h>

#include "decode/decode_int.h"
#include "base/file.h"
#include "base/pool.h"
#include "backend/quant.h"

#define MIB ((int64_t)1 << 20)
#define THREAD_BYTES (32 << 10)	/* of a compute thread: unlike in training, no matrix is copied */

#define PLAIN_HINT "a plain directory holds all experts in memory: pack it with chr-pack"

/* The type of a dense parameter in memory, and its bytes. */
static int dense_type(const struct engine *g, const struct param *p, enum dtype *t, int64_t *bytes,
    struct err *e)
{
	if (modeldir_type(&g->md, p, t, e) < 0)
		return -1;
	if (!dtype_blocks(*t))
		*t = DT_REAL;
	*bytes = mem_align64((int64_t)(*t == DT_REAL ? (size_t)param_size(p) * sizeof(real)
	    : mat_bytes(*t, p->rows, p->cols)));
	return 0;
}

/* Bytes of all dense parameters; notes whether any weights are in blocks. -1 on error. */
static int64_t dense_bytes(struct engine *g, struct err *e)
{
	const struct params *ps = g->par;
	int64_t n = 0, bytes;
	enum dtype t;

	g->opt.blocks = g->md.packed && (dtype_rounded(g->man.dt[0]) ||
	    dtype_rounded(g->man.dt[1]) || dtype_rounded(g->man.dt[2]));
	for (int i = 0; i < ps->n; i++) {
		if (param_routed(&ps->p[i]))
			continue;
		if (dense_type(g, &ps->p[i], &t, &bytes, e) < 0)
			return -1;
		n += bytes;
		g->opt.blocks = g->opt.blocks || dtype_rounded(t);
	}
	return n;
}

static int64_t rope_elements(const struct config *c, const struct engine_opt *o, bool mla)
{
	const struct rope *r = config_rope(c, mla);

	return r ? (int64_t)o->max_tokens * 2 * r->width : 0;
}

/* The type of an expert matrix, and its bytes. */
static int expert_type(const struct engine *g, const struct param *p, enum dtype *t,
    int64_t *bytes, struct err *e)
{
	if (modeldir_type(&g->md, p, t, e) < 0)
		return -1;
	if (*t == DT_F64)
		return err_set(e, EX_DATAERR, "%s: %s is F64; experts must be F32, BF16 or F16, or "
		    "in blocks", g->md.path, p->name);
	*bytes = (int64_t)mat_bytes(*t, p->rows, p->cols);
	return 0;
}

/* Bytes of all experts of a plain directory, or -1. */
static int64_t expert_total(struct engine *g, struct err *e)
{
	int64_t total = 0, first = 0, bytes = 0;
	int left = 3;
	enum dtype t;

	for (int i = 0; i < g->par->n; i++) {
		const struct param *p = &g->par->p[i];

		if (!param_routed(p))
			continue;
		if (expert_type(g, p, &t, &bytes, e) < 0)
			return -1;
		total += mem_align64(bytes);
		if (left-- > 0)
			first += bytes;
	}
	g->expert_bytes = first;
	return total;
}

/* What the limit leaves for slots, in g->opt.store.bytes. */
static int store_share(struct engine *g, const struct mem_plan *plan, struct err *e)
{
	struct store_opt *so = &g->opt.store;
	int64_t rest = g->opt.ram - mem_plan_total(plan), need = store_min_bytes(g->cfg, &g->man),
	    over;
	const char *flag = g->opt.budget ? g->opt.budget : "--ram";
	struct store_opt least = *so;

	if (so->bytes > 0 || g->opt.ram == 0 || store_plan_bytes(g->cfg, &g->man, so) <= rest)
		return 0;
	least.bytes = need;
	over = store_plan_bytes(g->cfg, &g->man, &least) - need;
	so->bytes = rest - over;
	if (so->bytes < need && (!so->force || so->bytes < g->expert_bytes))
		return err_set(e, EX_OSERR, "%s: %s %lld leaves %lld bytes for experts, one token "
		    "needs %lld: use %s %lldM%s",
		    g->md.path, flag, (long long)g->opt.ram, (long long)(so->bytes > 0 ? so->bytes
		    : 0), (long long)need, flag,
		    (long long)((g->opt.ram - so->bytes + need + (g->opt.budget ? 0 : MEM_JITTER) +
		    MIB - 1) / MIB),
		    so->force || g->opt.budget ? "" : ", or --force to thrash");
	while ((over = store_plan_bytes(g->cfg, &g->man, so) - rest) > 0 && so->bytes > over)
		so->bytes -= over;
	return 0;
}

static int plan_store(struct engine *g, struct mem_plan *plan, struct err *e)
{
	int status = store_share(g, plan, e);

	mem_plan_add(plan, "expert store", store_plan_bytes(g->cfg, &g->man, &g->opt.store));
	return status < 0 ? -1 : mem_plan_check(plan, g->opt.ram,
	    "raise --ram, or lower --batch or --context", e);
}

static int plan_experts(struct engine *g, struct mem_plan *plan, struct err *e)
{
	int64_t total;

	if (g->md.packed) {
		g->expert_bytes = g->man.gate_bytes + g->man.up_bytes + g->man.down_bytes;
		return plan_store(g, plan, e);
	}
	if ((total = expert_total(g, e)) < 0)
		return -1;
	mem_plan_add(plan, "experts", total);
	return mem_plan_check(plan, g->opt.ram, PLAIN_HINT, e);
}

static int load_manifest(struct engine *g, struct err *e)
{
	char *path = file_join(g->md.path, MANIFEST_NAME);
	int status = manifest_load_dir(&g->man, g->md.path, e);
	const char *mine = modeldir_meta(&g->md, "chronos.fingerprint");

	if (status == 0 && !g->man.packed)
		status = err_set(e, EX_DATAERR, "%s: says nothing about where experts lie: not "
		    "made by chr-pack", path);
	if (status == 0 && mine && g->man.fingerprint && strcmp(mine, g->man.fingerprint) != 0)
		status = err_set(e, EX_DATAERR, "%s: packed from model %s, but the weights beside "
		    "it are of %s", path,
		    g->man.fingerprint, mine);
	free(path);
	return status;
}

void load_plan_state(const struct engine *g, struct mem_plan *plan)
{
	const struct engine_opt *o = &g->opt;

	mem_plan_add(plan, "position tables",
	    (rope_elements(g->cfg, o, false) + rope_elements(g->cfg, o, true)) *
	    (int64_t)sizeof(real));
	mem_plan_add(plan, o->kv == KV_F32 ? "KV caches" : o->kv == KV_BF16 ? "KV caches, bf16"
	    : "KV caches, q8",
	    kv_bytes(g, false) * o->max_seqs);
	if (config_recurs(g->cfg))
		mem_plan_add(plan, "states of sequences", kv_bytes(g, true) * o->max_seqs);
	mem_plan_add(plan, "activations", scratch_bytes(g->cfg, g->par, o));
	mem_plan_add(plan, "predictor", predict_bytes(g->cfg, o->max_rows)
	    + o->max_seqs * seq_bytes(g->cfg) + (g->md.packed && o->predict & SRC_BIT(SRC_INTENT)
	    ? intent_bytes(g->md.path, g->cfg) + intend_bytes(g->cfg) : 0)
	    + (g->md.packed ? foresee_plan(g->md.path, g->cfg, o) : 0));
}

int64_t engine_program(void)
{
	return mem_program(0) + pool_threads() * THREAD_BYTES;
}

/* Opens the directory and adds up every byte the engine will hold, and what the process holds
 * already. */
int load_plan(struct engine *g, const char *dir, struct mem_plan *plan, struct err *e)
{
	const struct engine_opt *o = &g->opt;
	const struct param *look0;
	int64_t dense;

	if (modeldir_open(&g->md, dir, 0, NULL, e) < 0)
		return -1;
	g->cfg = &g->md.cfg;
	g->par = &g->md.par;
	if (g->md.packed && load_manifest(g, e) < 0)
		return -1;
	if (o->on_miss == ONMISS_SHARED && g->cfg->num_shared_experts == 0)
		return err_set(e, EX_USAGE, "%s: --on-miss shared needs a model with shared "
		    "experts", dir);
	if (g->cfg->rope.limit && o->max_tokens > g->cfg->rope.limit)
		return err_set(e, EX_USAGE, "%s: dynamic positions change beyond the %d that it "
		    "was made for: a context of %d is not supported", dir, g->cfg->rope.limit,
		    o->max_tokens);
	if ((dense = dense_bytes(g, e)) < 0)
		return -1;
	look0 = params_get(g->par, P_LOOK0, -1, -1);
	g->look_width = look0 ? look0->rows : 0;
	mem_plan_add(plan, "program", (o->budget ? 0 : engine_program()) + o->other);
	mem_plan_add(plan, "dense weights", dense);
	if (adapt_plan(g, plan, e) < 0)
		return -1;
	load_plan_state(g, plan);
	return plan_experts(g, plan, e);
}

/* Bytes of one parameter, in type t where it is a matrix that may have one. */
static int64_t planned_bytes(const struct param *p, enum dtype t)
{
	bool floats = dtype_blocks(t) ? !param_is(p, PARAM_QUANTISES) : !param_routed(p);

	return mem_align64((int64_t)(floats ? (size_t)param_size(p) * sizeof(real)
	    : mat_bytes(t, p->rows, p->cols)));
}

/* The manifest that a packed directory of this model would have, as far as sizes go. */
static void planned_manifest(struct engine *g, enum dtype t)
{
	const struct config *c = g->cfg;

	g->man = (struct manifest){ .layers = c->num_hidden_layers, .experts = c->num_experts,
	    .nclusters = 1,
	    .gate_bytes = (int64_t)mat_bytes(t, c->moe_intermediate_size, c->hidden_size),
	    .down_bytes = (int64_t)mat_bytes(t, c->hidden_size, c->moe_intermediate_size) };
	g->man.up_bytes = g->man.gate_bytes;
	g->expert_bytes = 2 * g->man.gate_bytes + g->man.down_bytes;
}

int engine_plan_config(const struct config *c, const struct params *ps, enum dtype dense,
    enum dtype expert, bool packed,
    const struct engine_opt *o, struct mem_plan *plan, struct err *e)
{
	struct engine *g = calloc(1, sizeof(*g));
	int64_t weights = 0, experts = 0;
	int status;

	if (!g)
		return err_set(e, EX_OSERR, "out of memory");
	g->opt = *o;
	engine_settle(&g->opt);
	g->opt.blocks = dtype_rounded(dense) || dtype_rounded(expert);
	g->cfg = c;
	g->par = ps;
	g->md.path = "the model";
	g->md.packed = packed;
	for (int i = 0; i < ps->n; i++)
		if (param_routed(&ps->p[i]))
			experts += planned_bytes(&ps->p[i], expert);
		else
			weights += planned_bytes(&ps->p[i], dense);
	mem_plan_add(plan, "program", (o->budget ? 0 : engine_program()) + o->other);
	mem_plan_add(plan, "dense weights", weights);
	load_plan_state(g, plan);
	if (packed) {
		planned_manifest(g, expert);
		status = plan_store(g, plan, e);
	} else {
		mem_plan_add(plan, "experts", experts);
		status = mem_plan_check(plan, g->opt.ram, PLAIN_HINT, e);
	}
	free(g);
	return status;
}

int64_t load_knope_at(const struct config *c, const struct param *p, int64_t i)
{
	const struct block *b = &c->block[p->layer];
	int64_t heads = p->kind == P_KVB ? c->num_attention_heads : c->num_key_value_heads;
	int64_t all = p->rows / heads, N = b->nope, C = p->cols, head = i / (all * C),
	    row = i / C % all, col = i % C;

	if (row < N)
		return (head * C + col) * N + row;
	return heads * N * C + (head * (all - N) + row - N) * C + col;	/* values, after all keys */
}

/* Reads one dense parameter to w; k_nope is transposed per key head. m: for what the device is to
 * get, unless the host reads its memory. */
static int read_dense(struct engine *g, const struct param *p, float *host, dev_byte *w,
    struct mirror *m, struct err *e)
{
	int64_t n = param_size(p);
	size_t bytes = (size_t)n * sizeof(real);
	real *out = backend_draft(g->be, w, m, bytes);

	/* Without a copy where there is nothing to rearrange: an embedding may be most of the
	 * dense part. */
	if (modeldir_read_f32(&g->md, p, sizeof(real) == sizeof(float) &&
	    !param_is(p, PARAM_TURNED) ? (float *)out : host, e) < 0)
		return -1;
	for (int64_t i = 0; param_is(p, PARAM_TURNED) && i < n; i++)
		out[load_knope_at(g->cfg, p, i)] = (real)host[i];
	for (int64_t i = 0; sizeof(real) != sizeof(float) && !param_is(p, PARAM_TURNED) && i < n;
	    i++)
		out[i] = (real)host[i];
	for (int64_t i = 0; g->cfg->norm_plus_one && param_is(p, PARAM_PLUS_ONE) && i < n; i++)
		out[i] += 1;
	backend_settle(g->be, w, out, bytes);
	return 0;
}

/* The same of one that stays in the type it is stored in. */
static int read_stored(struct engine *g, const struct param *p, dev_byte *w, size_t bytes,
    struct mirror *m, struct err *e)
{
	void *to = backend_draft(g->be, w, m, bytes);

	if (modeldir_read(&g->md, p, to, e) < 0)
		return -1;
	backend_settle(g->be, w, to, bytes);
	return 0;
}

/* Where decode keeps a kind: a matrix or a vector of struct layer; the rest has cases of its
 * own. */
static const struct where {
	size_t mat, vec;		/* offset + 1; 0: not there */
} places[P_KINDS] = {
#define MAT(x) { offsetof(struct layer, x) + 1, 0 }
#define VEC(x) { 0, offsetof(struct layer, x) + 1 }
	[P_IN_NORM] = VEC(in_norm), [P_POST_NORM] = VEC(post_norm),
	[P_Q] = MAT(q), [P_K] = MAT(k), [P_V] = MAT(v), [P_O] = MAT(o),
	[P_QNORM] = VEC(q_norm), [P_KNORM] = VEC(k_norm),
	[P_QA] = MAT(qa), [P_QA_NORM] = VEC(qa_norm), [P_QB] = MAT(qb), [P_KVA] = MAT(kv_a),
	[P_KVA_NORM] = VEC(kv_down_norm), [P_KVB] = VEC(k_nope_t),
	[P_QNOPE] = MAT(q_nope), [P_QROPE] = MAT(q_rope),
	[P_QNOPE_NORM] = VEC(q_nope_norm), [P_QROPE_NORM] = VEC(q_rope_norm),
	[P_KVDOWN] = MAT(kv_down), [P_KVDOWN_NORM] = VEC(kv_down_norm),
	[P_KNOPE] = VEC(k_nope_t), [P_KROPE] = VEC(k_rope), [P_MLA_V] = VEC(mla_v),
	[P_Q_BIAS] = VEC(q_bias), [P_K_BIAS] = VEC(k_bias), [P_V_BIAS] = VEC(v_bias),
	[P_O_BIAS] = VEC(o_bias), [P_GATE] = VEC(gate),
	[P_DELTA_QKVZ] = MAT(in), [P_DELTA_QKV] = MAT(in), [P_CONV_IN] = MAT(in),
	[P_DELTA_BA] = MAT(ba), [P_DELTA_Z] = MAT(z), [P_DELTA_B] = MAT(b), [P_DELTA_A] = MAT(a),
	[P_DELTA_LOG_A] = VEC(log_a), [P_DELTA_DT] = VEC(dt), [P_DELTA_NORM] = VEC(delta_norm),
	[P_CONV_IN_BIAS] = VEC(in_bias), [P_CONV] = VEC(conv), [P_CONV_BIAS] = VEC(conv_bias),
	[P_MIX] = MAT(o), [P_MIX_BIAS] = VEC(o_bias),
	[P_SINKS] = VEC(sinks), [P_LOGIT_BIAS] = VEC(logit_bias),
	[P_EXP_GATE_BIAS] = VEC(gate_bias), [P_EXP_UP_BIAS] = VEC(up_bias),
	[P_EXP_DOWN_BIAS] = VEC(down_bias),
	[P_GATE_BIAS] = VEC(router_bias), [P_SH_SIGMOID] = VEC(shared_gate),
#undef MAT
#undef VEC
};

static struct mat *expert_mat(struct expert *x, const struct param *p)
{
	int part = param_part(p);

	return part == 0 ? &x->gate : part == 1 ? &x->up : &x->down;
}

static void place_in_layer(struct layer *l, const struct param *p, struct weight w)
{
	const struct where *at = &places[p->kind];

	if (param_is(p, PARAM_FFN))
		*expert_mat(&l->ffn[p->expert < 0 ? 0 : p->expert], p) = w.m;
	else if (at->mat)
		memcpy((char *)l + at->mat - 1, &w, sizeof(w));
	else
		memcpy((char *)l + at->vec - 1, &w.m.p, sizeof(w.m.p));
}

void load_place(struct engine *g, const struct param *p, const void *w, enum dtype t)
{
	struct weight m = { { w, t, p->rows, p->cols }, (int)(p - g->par->p) };

	switch (p->kind) {
	case P_EMBED:
		g->embed = m.m;
		if (g->cfg->tie_word_embeddings)
			g->head = m;
		break;
	case P_HEAD: g->head = m; break;
	case P_NORM: g->norm = w; break;
	case P_LOOK0: g->look0 = w; break;
	case P_LOOK2: g->look2 = w; break;
	case P_KVB:
		g->layer[p->layer].mla_v = (const dev_real *)w +
		    (int64_t)g->cfg->num_attention_heads * g->cfg->block[p->layer].nope * p->cols;
		/* fall through */
	default: place_in_layer(&g->layer[p->layer], p, m);
	}
}

/* An FFN is in blocks as a whole, or not at all. */
static int check_alike(const struct engine *g, struct err *e)
{
	for (int l = 0; l < g->cfg->num_hidden_layers; l++)
		for (int f = 0; f < block_fixed(&g->cfg->block[l]); f++) {
			const struct expert *x = &g->layer[l].ffn[f];

			if (dtype_rounded(x->gate.dt) != dtype_rounded(x->up.dt) ||
			    dtype_rounded(x->gate.dt) != dtype_rounded(x->down.dt))
				return err_set(e, EX_DATAERR,
				    "%s: layer %d: gate, up and down are partly in blocks, partly "
				    "not",
				    g->md.path, l);
		}
	return 0;
}

static int load_dense(struct engine *g, struct err *e)
{
	const struct params *ps = g->par;
	int64_t biggest = 0, bytes = 0;
	enum dtype t;
	float *host;
	dev_byte *w;
	struct mirror m = { 0 };
	int status = 0;

	for (int i = 0; i < ps->n; i++)
		if (!param_routed(&ps->p[i]) && param_size(&ps->p[i]) > biggest)
			biggest = param_size(&ps->p[i]);
	w = g->be->alloc(g->be, (size_t)dense_bytes(g, e));
	g->w = (dev_real *)w;
	host = malloc(sizeof(*host) * (size_t)biggest);
	if (!w || !host)
		status = err_set(e, EX_OSERR, "%s: out of memory for dense weights", g->md.path);
	for (int i = 0; i < ps->n && status == 0; i++)
		if (!param_routed(&ps->p[i])) {
			status = dense_type(g, &ps->p[i], &t, &bytes, e);
			if (status == 0)
				status = dtype_blocks(t) ?
				    read_stored(g, &ps->p[i], w, (size_t)bytes, &m, e) :
				    read_dense(g, &ps->p[i], host, w, &m, e);
			load_place(g, &ps->p[i], w, t);
			w += bytes;
		}
	free(host);
	backend_mirror_free(&m);
	return status < 0 ? status : check_alike(g, e);
}

struct mat *load_expert_mat(struct engine *g, const struct param *p)
{
	struct expert *x = &g->experts[(int64_t)p->layer * g->cfg->num_experts + p->expert];

	return expert_mat(x, p);
}

static int load_experts(struct engine *g, struct err *e)
{
	const struct params *ps = g->par;
	int64_t total = expert_total(g, e), bytes = 0;
	struct mirror m = { 0 };
	enum dtype t;
	dev_byte *at;
	int rc = 0;

	if (total < 0)
		return -1;
	at = g->expert_mem = g->be->alloc(g->be, (size_t)total + 64);
	if (!at)
		return err_set(e, EX_OSERR, "%s: out of memory for experts", g->md.path);
	for (int i = 0; i < ps->n && rc == 0; i++) {
		const struct param *p = &ps->p[i];

		if (!param_routed(p))
			continue;
		if ((rc = expert_type(g, p, &t, &bytes, e)) < 0 ||
		    (rc = read_stored(g, p, at, (size_t)bytes, &m, e)) < 0)
			break;
		*load_expert_mat(g, p) = (struct mat){ at, t, p->rows, p->cols };
		at += mem_align64(bytes);
	}
	backend_mirror_free(&m);
	return rc;
}

static int load_tables(struct engine *g, struct err *e)
{
	for (int mla = 0; mla < 2; mla++) {
		int64_t n = rope_elements(g->cfg, &g->opt, mla);
		real *host = malloc(sizeof(*host) * (size_t)(n + 1));
		dev_real **table = mla ? &g->rope_mla : &g->rope;

		*table = g->be->alloc(g->be, sizeof(real) * (size_t)(n + 1));
		if (!host || !*table) {
			free(host);
			return err_set(e, EX_OSERR, "out of memory for position tables");
		}
		if (n > 0) {
			rope_table(config_rope(g->cfg, mla), g->opt.max_tokens, host);
			g->be->put(g->be, *table, host, sizeof(*host) * (size_t)n);
		}
		free(host);
	}
	return 0;
}

int load_layers(struct engine *g, struct err *e)
{
	const struct config *c = g->cfg;
	int S = c->num_shared_experts, sparse = 0;

	g->ffn_views = calloc((size_t)c->num_hidden_layers * (S + 1), sizeof(*g->ffn_views));
	if (!g->md.packed)
		g->experts = calloc((size_t)c->num_hidden_layers * c->num_experts + 1,
		    sizeof(*g->experts));
	if (!g->ffn_views || !(g->experts || g->md.packed))
		return err_set(e, EX_OSERR, "out of memory");
	for (int l = 0; l < c->num_hidden_layers; l++) {
		g->layer[l].sparse = c->block[l].sparse ? sparse++ : -1;
		g->layer[l].ffn = g->ffn_views + (int64_t)l * (S + 1);
	}
	return load_tables(g, e);
}

int load_weights(struct engine *g, struct err *e)
{
	if (load_layers(g, e) < 0 || load_dense(g, e) < 0)
		return -1;
	return g->md.packed ? 0 : load_experts(g, e);
}

/* --- an engine over a model in training: its weights are used where they are. Only k_nope,
 * which decode wants transposed, is copied, after each change. --- */

/* Elements of all k_nope projections, and of the largest. */
static int64_t knope_elements(const struct params *ps, int64_t *most)
{
	int64_t n = 0;

	*most = 0;
	for (int i = 0; i < ps->n; i++)
		if (param_is(&ps->p[i], PARAM_TURNED)) {
			n += (param_size(&ps->p[i]) + 15) & ~(int64_t)15;
			if (param_size(&ps->p[i]) > *most)
				*most = param_size(&ps->p[i]);
		}
	return n;
}

void engine_over_plan(const struct config *c, const struct params *ps, const struct engine_opt *o,
    struct mem_plan *plan)
{
	struct engine *g = calloc(1, sizeof(*g));
	struct mem_plan own = { 0 };
	int64_t most, n = knope_elements(ps, &most);

	if (!g)
		err_die(EX_OSERR, "out of memory");
	g->opt = *o;
	engine_settle(&g->opt);
	g->cfg = c;
	g->par = ps;
	load_plan_state(g, &own);
	mem_plan_add(plan, "decoding", mem_plan_total(&own) + (n + 2 * most) *
	    (int64_t)sizeof(real));
	free(g);
}

void engine_refresh(struct engine *g)
{
	const struct params *ps = g->par;
	dev_real *w = g->w;
	int64_t most;

	knope_elements(ps, &most);
	for (int i = 0; i < ps->n; i++) {
		const struct param *p = &ps->p[i];
		int64_t n = param_size(p);
		real *in = g->host, *out = g->host + most;

		if (!param_is(p, PARAM_TURNED))
			continue;
		g->be->get(g->be, in, g->flat + p->off, sizeof(*in) * (size_t)n);
		for (int64_t j = 0; j < n; j++)
			out[load_knope_at(g->cfg, p, j)] = in[j];
		g->be->put(g->be, w, out, sizeof(*out) * (size_t)n);
		load_place(g, p, w, DT_REAL);
		w += (n + 15) & ~(int64_t)15;
	}
}

int over_weights(struct engine *g, struct err *e)
{
	const struct params *ps = g->par;
	const struct param *look0 = params_get(ps, P_LOOK0, -1, -1);
	int64_t most, n = knope_elements(ps, &most);

	g->look_width = look0 ? look0->rows : 0;
	if (load_layers(g, e) < 0)
		return -1;
	g->w = g->be->alloc(g->be, sizeof(real) * (size_t)(n + 1));
	g->host = malloc(sizeof(real) * (size_t)(2 * most + 1));
	if (!g->w || !g->host)
		return err_set(e, EX_OSERR, "out of memory for the engine of a model in training");
	for (int i = 0; i < ps->n; i++) {
		const struct param *p = &ps->p[i];

		if (param_routed(p))
			*load_expert_mat(g, p) = (struct mat){ g->flat + p->off, DT_REAL, p->rows,
			    p->cols };
		else
			load_place(g, p, g->flat + p->off, DT_REAL);
	}
	engine_refresh(g);
	return 0;
}
