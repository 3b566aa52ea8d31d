#include "arch/gguf_meta.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arch/arch.h"
#include "arch/gguf_names.h"

struct writer {
	const struct config *c;
	const char *arch;
	const struct block *full;	/* the first with attention, */
	const struct block *sparse;	/* with experts; NULL: there is none */
	int dense;			/* layers before the first with experts */
	struct gguf_meta *m;
};

/* ---- keys ---- */

static void set(struct writer *w, const char *key, json_t *v)
{
	char full[120];

	snprintf(full, sizeof full, "%s.%s", w->arch, key);
	json_object_set_new(w->m->keys, full, v);
}

static void number(struct writer *w, const char *key, int v)
{
	set(w, key, json_integer(v));
}

static void real_number(struct writer *w, const char *key, double v)
{
	set(w, key, json_real((double)(float)v));
}

static void truth(struct writer *w, const char *key, bool v)
{
	set(w, key, json_boolean(v));
}

/* ---- positions ---- */

static void llama3(struct writer *w, const struct rope *r)
{
	int n = r->width / 2;

	w->m->freqs = malloc((size_t)n * sizeof *w->m->freqs);
	w->m->n_freqs = w->m->freqs ? n : 0;
	for (int i = 0; i < w->m->n_freqs; i++)
		w->m->freqs[i] = (float)gguf_llama3_factor(2 * M_PI * pow(r->theta, (double)i / n),
		    r->factor, r->slow, r->fast, r->original_max);
}

static void positions(struct writer *w)
{
	const struct rope *r = &w->full->rope;

	number(w, "rope.dimension_count", r->width);
	real_number(w, "rope.freq_base", r->theta);
	if (r->kind == ROPE_LLAMA3)
		llama3(w, r);
	if (r->kind != ROPE_LINEAR && r->kind != ROPE_YARN)
		return;
	set(w, "rope.scaling.type", json_string(r->kind == ROPE_YARN ? "yarn" : "linear"));
	real_number(w, "rope.scaling.factor", r->factor);
	if (r->kind == ROPE_LINEAR)
		return;
	number(w, "rope.scaling.original_context_length", r->original_max);
	real_number(w, "rope.scaling.yarn_beta_fast", r->fast);
	real_number(w, "rope.scaling.yarn_beta_slow", r->slow);
	if (r->all_dim != 0)
		real_number(w, "rope.scaling.yarn_log_multiplier", 0.1 * r->all_dim);
}

/* ---- what architectures have in common ---- */

static void common(struct writer *w, int mlp)
{
	const struct config *c = w->c;

	number(w, "block_count", c->num_hidden_layers);
	number(w, "context_length", c->max_position_embeddings);
	number(w, "embedding_length", c->hidden_size);
	number(w, "feed_forward_length", mlp);
	number(w, "attention.head_count", c->num_attention_heads);
	real_number(w, "attention.layer_norm_rms_epsilon", c->rms_norm_eps);
	number(w, "vocab_size", c->vocab_size);
	positions(w);
}

static void heads(struct writer *w)
{
	number(w, "attention.head_count_kv", w->c->num_key_value_heads);
	number(w, "attention.key_length", w->c->head_dim);
	number(w, "attention.value_length", w->c->head_dim);
}

static void experts(struct writer *w, const char *width)
{
	if (!w->sparse)
		return;
	number(w, "expert_count", w->c->num_experts);
	number(w, "expert_used_count", w->c->num_experts_per_tok);
	if (width)
		number(w, width, w->sparse->width);
}

#define WIDTH "expert_feed_forward_length"
#define SHARED_WIDTH "expert_shared_feed_forward_length"

/* ---- the architectures ---- */

static void dense(struct writer *w)
{
	common(w, w->c->block[0].width);
	heads(w);
}

static void mixtral(struct writer *w)
{
	dense(w);
	experts(w, NULL);
}

static void moe(struct writer *w)
{
	common(w, w->c->intermediate_size);
	heads(w);
	experts(w, WIDTH);
}

static void moe_shared(struct writer *w)
{
	moe(w);
	if (w->sparse && w->sparse->shared > 0)
		number(w, SHARED_WIDTH, w->sparse->shared_width);
}

static void gpt_oss(struct writer *w)
{
	common(w, w->sparse ? w->sparse->width : w->c->intermediate_size);
	heads(w);
	experts(w, WIDTH);
	for (int l = w->c->num_hidden_layers - 1; l >= 0; l--)
		if (w->c->block[l].attn == ATTN_SLIDING)
			number(w, "attention.sliding_window", w->c->block[l].window);
}

/* The experts of DeepSeek and those after it. */
static void routed(struct writer *w)
{
	const struct router *r = &w->sparse->router;

	experts(w, WIDTH);
	number(w, "leading_dense_block_count", w->dense);
	number(w, "expert_shared_count", w->sparse->shared * w->sparse->shared_width /
	    w->sparse->width);
	if (r->groups > 1 && r->kept < r->groups) {
		number(w, "expert_group_count", r->groups);
		number(w, "expert_group_used_count", r->kept);
	}
	real_number(w, "expert_weights_scale", r->scale);
	truth(w, "expert_weights_norm", r->renormalised);
	number(w, "expert_gating_func", r->sigmoid ? 2 : 1);
}

static void deepseek2(struct writer *w)
{
	const struct block *b = w->full;

	common(w, w->c->intermediate_size);
	number(w, "attention.head_count_kv", 1);	/* the latent */
	number(w, "attention.q_lora_rank", b->q_rank);
	number(w, "attention.kv_lora_rank", b->latent);
	number(w, "attention.key_length", b->latent + b->rope.width);
	number(w, "attention.value_length", b->latent);
	number(w, "attention.key_length_mla", b->nope + b->rope.width);
	number(w, "attention.value_length_mla", b->value);
	if (w->sparse)
		routed(w);
}

static void glm4moe(struct writer *w)
{
	common(w, w->c->intermediate_size);
	heads(w);
	if (w->sparse)
		routed(w);
}

/* Attention comes every so many layers; or a list says where it does not. */
static void delta_layers(struct writer *w)
{
	const struct config *c = w->c;
	int every = 1, n = c->num_hidden_layers;
	json_t *list;

	while (every < n && c->block[every - 1].attn == ATTN_DELTA)
		every++;
	for (int l = 0; l < n; l++)
		if ((c->block[l].attn == ATTN_DELTA) != ((l + 1) % every != 0))
			every = 0, l = n;
	if (every > 0) {
		number(w, "full_attention_interval", every);
		return;
	}
	list = json_array();
	for (int l = 0; l < n; l++)
		json_array_append_new(list, json_boolean(c->block[l].attn == ATTN_DELTA));
	set(w, "attention.recurrent_layers", list);
}

static void delta(struct writer *w)
{
	const struct block *b = w->full;

	for (int l = 0; l < w->c->num_hidden_layers; l++)
		if (w->c->block[l].attn == ATTN_DELTA)
			b = &w->c->block[l];
	moe_shared(w);
	delta_layers(w);
	number(w, "ssm.conv_kernel", b->taps);
	number(w, "ssm.state_size", b->delta.dk);
	number(w, "ssm.group_count", b->delta.G);
	number(w, "ssm.time_step_rank", b->delta.H);
	number(w, "ssm.inner_size", b->delta.H * b->delta.dv);
}

/* Of the three positions of a token, which of text are one, each turns a part of a head. */
static void qwen35moe(struct writer *w)
{
	int pairs = w->full->rope.width / 2, third = pairs / 3;

	delta(w);
	set(w, "rope.dimension_sections", json_pack("[i, i, i, i]", pairs - 2 * third, third,
	    third, 0));
}

/* ---- which architecture ---- */

enum needs {
	NEEDS_HEAD = 1 << 0,		/* a tensor output.weight, also of a tied model */
	NEEDS_SQUARE = 1 << 1,		/* heads that together are as wide as the model */
	NEEDS_SHARED = 1 << 2,		/* shared experts */
	NEEDS_STATE = 1 << 3,		/* keys and values of the delta rule of one width */
	NEEDS_SPARSE = 1 << 4,		/* experts in some layer */
	NEEDS_PAIRED = 1 << 5,		/* a key for each query */
	NEEDS_MSCALE = 1 << 6		/* YaRN that scales scores too */
};

static const struct family {
	const char *type, *arch;
	void (*write)(struct writer *w);
	unsigned needs;
} families[] = {
	{ "llama", "llama", dense, 0 },
	{ "mixtral", "llama", mixtral, 0 },
	{ "qwen2", "qwen2", dense, NEEDS_SQUARE },
	{ "qwen3", "qwen3", dense, 0 },
	{ "qwen2_moe", "qwen2moe", moe_shared, NEEDS_HEAD | NEEDS_SQUARE | NEEDS_SHARED },
	{ "qwen3_moe", "qwen3moe", moe, NEEDS_SPARSE },
	{ "chronos", "qwen3moe", moe, NEEDS_SPARSE },
	{ "olmoe", "olmoe", mixtral, NEEDS_HEAD | NEEDS_SQUARE | NEEDS_PAIRED },
	{ "deepseek_v2", "deepseek2", deepseek2, NEEDS_SHARED | NEEDS_MSCALE },
	{ "deepseek_v3", "deepseek2", deepseek2, NEEDS_SHARED | NEEDS_MSCALE },
	{ "glm4_moe_lite", "deepseek2", deepseek2, NEEDS_SHARED | NEEDS_MSCALE },
	{ "glm4_moe", "glm4moe", glm4moe, NEEDS_SPARSE },
	{ "gpt_oss", "gpt-oss", gpt_oss, NEEDS_HEAD },
	{ "qwen3_next", "qwen3next", delta, NEEDS_SHARED | NEEDS_STATE },
	{ "qwen3_5_moe", "qwen35moe", qwen35moe, NEEDS_SHARED | NEEDS_STATE },
	{ "qwen3_5_moe_text", "qwen35moe", qwen35moe, NEEDS_SHARED | NEEDS_STATE },
};

static const struct family *find(const char *type)
{
	for (size_t i = 0; i < sizeof families / sizeof *families; i++)
		if (strcmp(families[i].type, type) == 0)
			return &families[i];
	return NULL;
}

/* ---- is what is written what is meant? ---- */

struct check {
	const struct config *c;
	const struct params *ps;
	const struct gguf_meta *m;
	const char *name;		/* of the model */
	struct err *e;
};

static int cannot(const struct check *k, int layer, const char *what)
{
	char where[32] = "";

	if (layer >= 0)
		snprintf(where, sizeof where, "layer %d: ", layer);
	return err_set(k->e, EX_DATAERR, "%s: %s%s: architecture \"%s\" of llama.cpp cannot say it",
	    k->name, where, what, k->m->arch);
}

/* Will the file have this tensor of the model, or of its first layer? */
static bool has(const void *ctx, const char *tensor)
{
	const struct check *k = ctx;
	char name[104];

	if (k->m->head && strcmp(tensor, "output.weight") == 0)
		return true;
	for (const struct param_name *n = k->m->names; n->name; n++) {
		bool model = n->kind < P_IN_NORM;

		snprintf(name, sizeof name, n->name, 0, 0);
		if (strcmp(name, tensor) == 0)
			return params_get(k->ps, n->kind, model ? -1 : 0, -1) != NULL;
	}
	return false;
}

/* What layers may differ in, and what that is called. */
enum value { WHOLE, FLAG, REAL };
#define B(field, kind, what) { offsetof(struct block, field), kind, what }
static const struct {
	size_t at;
	enum value kind;
	const char *what;
} fields[] = {
	B(window, WHOLE, "its window"), B(qk_norm, WHOLE, "its norms of queries and keys"),
	B(norm_after, FLAG, "norms of queries and keys after the rotation"),
	B(qkv_bias, FLAG, "its biases of queries, keys and values"),
	B(o_bias, FLAG, "its bias of the output of attention"),
	B(clip, REAL, "queries, keys and values that are cut (clip_qkv)"),
	B(sinks, FLAG, "its sinks"), B(gated, FLAG, "its gate of attention"),
	B(rope.kind, WHOLE, "its kind of positions"), B(rope.width, WHOLE, "the width that turns"),
	B(rope.pairs, FLAG, "the order of what turns"),
	B(rope.dims, WHOLE, "frequencies of another width (chronos_format 1)"),
	B(rope.theta, REAL, "its frequencies"), B(rope.factor, REAL, "the factor of its positions"),
	B(rope.magnitude, REAL, "the factor of attention of its positions"),
	B(rope.original_max, WHOLE, "its positions before they were stretched"),
	B(rope.slow, REAL, "the ramp of its positions"),
	B(rope.fast, REAL, "the ramp of its positions"),
	B(latent, WHOLE, "its latent"), B(nope, WHOLE, "its heads"),
	B(q_rank, WHOLE, "the rank of its queries"), B(value, WHOLE, "the width of its values"),
	B(scale, REAL, "the scale of its scores"), B(delta.H, WHOLE, "its heads of values"),
	B(delta.G, WHOLE, "its heads of keys"), B(delta.dk, WHOLE, "its heads of keys"),
	B(delta.dv, WHOLE, "its heads of values"), B(taps, WHOLE, "its convolution"),
	B(sparse, FLAG, "whether it has experts"), B(width, WHOLE, "the width of its FFN"),
	B(router.sigmoid, FLAG, "the scores of its router"),
	B(router.renormalised, FLAG, "whether weights of experts are renormalised "
	    "(norm_topk_prob)"),
	B(router.groups, WHOLE, "its groups of experts"),
	B(router.kept, WHOLE, "its groups of experts"),
	B(router.scale, REAL, "the scale of its experts' weights"),
	B(logit_bias, FLAG, "the bias of its router"),
	B(router_bias, FLAG, "the bias of its choice"),
	B(expert_bias, FLAG, "biases of its experts"),
	B(glu.limit, REAL, "its activation"), B(glu.alpha, REAL, "its activation"),
	B(shared, WHOLE, "its shared experts"),
	B(shared_width, WHOLE, "the width of its shared experts"),
	B(shared_gate, FLAG, "the gate of its shared expert"),
};
#undef B

static double value_at(const struct block *b, size_t at, enum value kind)
{
	const char *p = (const char *)b + at;
	double x;
	int n;
	bool flag;

	if (kind == REAL)
		memcpy(&x, p, sizeof x);
	else if (kind == WHOLE) {
		memcpy(&n, p, sizeof n);
		x = n;
	} else {
		memcpy(&flag, p, sizeof flag);
		x = flag;
	}
	return x;
}

static bool alike(double a, double b)
{
	return fabs(a - b) <= 1e-6 * fmax(fabs(a), fabs(b));
}

/* A window that no text outgrows is none, and groups that are all kept are none. */
static struct block plain(const struct config *c, const struct block *b)
{
	struct block x = *b;

	if (x.attn == ATTN_SLIDING && x.window >= c->max_position_embeddings) {
		x.attn = ATTN_FULL;
		x.window = 0;
	}
	if (!x.sparse)
		x.router = (struct router){ 0 };
	if (x.router.groups <= 1 || x.router.kept >= x.router.groups)
		x.router.groups = x.router.kept = 1;
	return x;
}

static const char *const kinds[] = { "full attention", "sliding attention",
    "latent attention (mla_attention)", "latent attention", "the delta rule",
    "a short convolution" };

static int compare_layer(const struct check *k, const struct config *again, int l)
{
	struct block a = plain(k->c, &k->c->block[l]), b = plain(again, &again->block[l]);

	if (a.attn != b.attn)
		return cannot(k, l, kinds[a.attn]);
	for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
		if (!alike(value_at(&a, fields[i].at, fields[i].kind),
		    value_at(&b, fields[i].at, fields[i].kind)))
			return cannot(k, l, fields[i].what);
	return 0;
}

static int compare(const struct check *k, const struct config *again)
{
	const struct config *a = k->c, *b = again;

	if (!alike(a->embedding_multiplier, b->embedding_multiplier) ||
	    !alike(a->residual_multiplier, b->residual_multiplier) ||
	    !alike(a->logits_scaling, b->logits_scaling))
		return cannot(k, -1, "its multipliers");
	if (a->hidden_size != b->hidden_size || a->num_experts != b->num_experts ||
	    (a->num_sparse > 0 && a->num_experts_per_tok != b->num_experts_per_tok) ||
	    a->num_attention_heads != b->num_attention_heads ||
	    a->num_key_value_heads != b->num_key_value_heads || a->head_dim != b->head_dim ||
	    a->norm_plus_one != b->norm_plus_one || !alike(a->rms_norm_eps, b->rms_norm_eps))
		return cannot(k, -1, "its sizes");
	for (int l = 0; l < a->num_hidden_layers; l++)
		if (compare_layer(k, again, l) < 0)
			return -1;
	return 0;
}

/* As the reader of files has it. */
static int read_again(const struct check *k)
{
	struct gguf_facts f = { .meta = k->m->keys, .name = k->name, .vocab = k->c->vocab_size,
	    .freqs = k->m->freqs, .n_freqs = k->m->n_freqs, .has = has, .ctx = k };
	const struct param_name *names;
	json_t *o = gguf_config(&f, &names, k->e);
	struct config *again = o ? malloc(sizeof *again) : NULL;
	int rc = -1;

	if (again && config_from_object(again, o, k->name, 0, NULL, k->e) == 0) {
		rc = compare(k, again);
		config_free(again);
	}
	free(again);
	json_decref(o);
	return rc;
}

/* The reference's latent attention is in no architecture, so that not even keys can say it. */
static int check_form(const struct check *k)
{
	for (int l = 0; l < k->c->num_hidden_layers; l++)
		if (k->c->block[l].attn == ATTN_MLA)
			return cannot(k, l, kinds[ATTN_MLA]);
	return 0;
}

/* What llama.cpp asks for besides. */
static int check_needs(const struct check *k, unsigned needs)
{
	const struct config *c = k->c;

	if (needs & NEEDS_SQUARE && c->num_attention_heads * c->head_dim != c->hidden_size)
		return cannot(k, -1, "heads that are not as wide as the model together");
	if (needs & NEEDS_PAIRED && c->num_attention_heads != c->num_key_value_heads)
		return cannot(k, -1, "fewer heads of keys than of queries");
	if (needs & NEEDS_SPARSE && c->num_sparse == 0)
		return cannot(k, -1, "a model without experts");
	for (int l = 0; l < c->num_hidden_layers; l++) {
		const struct block *b = &c->block[l];

		if (needs & NEEDS_SHARED && b->sparse && b->shared == 0)
			return cannot(k, l, "experts of which none is shared");
		if (needs & NEEDS_MSCALE && b->rope.kind == ROPE_YARN && b->rope.all_dim == 0)
			return cannot(k, l, "YaRN without mscale_all_dim");
		if (needs & NEEDS_STATE && b->attn == ATTN_DELTA && b->delta.dk != b->delta.dv)
			return cannot(k, l, "keys and values of two widths");
		if (b->sparse && !b->router.sigmoid && b->router.groups > 1 &&
		    b->router.kept < b->router.groups)
			return cannot(k, l, "groups of experts that are judged by their best");
		if (k->m->freqs && strcmp(k->m->arch, "llama") != 0)
			return cannot(k, l, "the positions of Llama 3");
	}
	return 0;
}

/* ---- all of it ---- */

static struct writer writer_of(const struct config *c, const char *arch, struct gguf_meta *m)
{
	struct writer w = { .c = c, .arch = arch, .full = &c->block[0], .m = m };

	for (int l = c->num_hidden_layers - 1; l >= 0; l--) {
		if (!block_recurs(&c->block[l]))
			w.full = &c->block[l];
		if (c->block[l].sparse) {
			w.sparse = &c->block[l];
			w.dense = l;
		}
	}
	return w;
}

int gguf_meta(const struct config *c, const struct params *ps, const char *name,
    struct gguf_meta *m, struct err *e)
{
	const char *type = c->arch->model_type;
	const struct family *f = find(type);
	struct check k = { c, ps, m, name, e };
	struct writer w;
	int rc;

	*m = (struct gguf_meta){ 0 };
	if (!f)
		return err_set(e, EX_DATAERR, "%s: a model of family \"%s\" is not written as GGUF",
		    name, type);
	m->arch = f->arch;
	m->names = gguf_tensors(f->arch);
	m->head = f->needs & NEEDS_HEAD && c->tie_word_embeddings;
	m->keys = json_pack("{s:s}", "general.architecture", f->arch);
	w = writer_of(c, f->arch, m);
	f->write(&w);
	if (w.full->rope.kind == ROPE_YARN && !w.full->rope.truncate)
		m->note = "llama.cpp rounds the ends of YaRN's ramp, which this model does not: it "
		    "turns some pairs otherwise";
	rc = check_form(&k) < 0 || read_again(&k) < 0 ? -1 : check_needs(&k, f->needs);
	if (rc < 0)
		gguf_meta_free(m);
	return rc;
}

void gguf_meta_free(struct gguf_meta *m)
{
	json_decref(m->keys);
	free(m->freqs);
	*m = (struct gguf_meta){ 0 };
}

const struct param_name *gguf_meta_name(const struct gguf_meta *m, enum param_kind kind)
{
	for (const struct param_name *n = m->names; n->name; n++)
		if (n->kind == kind)
			return n;
	return NULL;
}
