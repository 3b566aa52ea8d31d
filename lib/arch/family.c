#include "arch/family.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "arch/arch.h"

#define AT(x) offsetof(struct config, x)

const struct key family_keys[] = {
	{ "vocab_size", KEY_INT, AT(vocab_size), KEY_REQUIRED, 1, 1 << 28 },
	{ "hidden_size", KEY_INT, AT(hidden_size), KEY_REQUIRED, 4, 1 << 20 },
	{ "num_hidden_layers", KEY_INT, AT(num_hidden_layers), KEY_REQUIRED, 1, CFG_MAX_LAYERS },
	{ "num_attention_heads", KEY_INT, AT(num_attention_heads), KEY_REQUIRED, 1, 1 << 14 },
	{ "num_key_value_heads", KEY_INT, AT(num_key_value_heads), 0, 1, 1 << 14 },
	{ "intermediate_size", KEY_INT, AT(intermediate_size), KEY_REQUIRED, 0, 1 << 24 },
	{ "tie_word_embeddings", KEY_BOOL, AT(tie_word_embeddings), 0, 0, 0 },
	{ "rope_theta", KEY_REAL, AT(rope_theta), 1e4, 1, 1e18 },
	{ "rms_norm_eps", KEY_REAL, AT(rms_norm_eps), 1e-6, 0, 1 },
	{ "max_position_embeddings", KEY_INT, AT(max_position_embeddings), KEY_REQUIRED, 1,
	1 << 30 },
	{ "bos_token_id", KEY_ID, AT(bos_token_id), -1, -1, INT_MAX },
	{ "eos_token_id", KEY_ID, AT(eos_token_id), -1, -1, INT_MAX },
	{ "pad_token_id", KEY_ID, AT(pad_token_id), -1, -1, INT_MAX },
	{ 0 }
};

const struct key family_head_keys[] = {
	{ "head_dim", KEY_INT, AT(head_dim), 0, 2, 1 << 16 },
	{ 0 }
};

const struct key family_moe_keys[] = {
	{ "num_experts", KEY_INT, AT(num_experts), KEY_REQUIRED, 0, 4096 },
	{ "num_experts_per_tok", KEY_INT, AT(num_experts_per_tok), KEY_REQUIRED, 1, 4096 },
	{ 0 }
};

const struct key family_moe_width_keys[] = {
	{ "moe_intermediate_size", KEY_INT, AT(moe_intermediate_size), KEY_REQUIRED, 1, 1 << 24 },
	{ 0 }
};

const struct key family_norm_topk_keys[] = {
	{ "norm_topk_prob", KEY_BOOL, AT(norm_topk_prob), 0, 0, 0 },
	{ 0 }
};

const struct key family_train_keys[] = {
	{ "chronos_format", KEY_INT, AT(format), 2, 1, 2 },
	{ "lookahead_steps", KEY_INT, AT(lookahead_steps), 0, 0, 16 },
	{ "lambda_balance", KEY_REAL, AT(lambda_balance), 5e-4, 0, 1e6 },
	{ "lambda_temporal", KEY_REAL, AT(lambda_temporal), 3e-3, 0, 1e6 },
	{ "lambda_lookahead", KEY_REAL, AT(lambda_lookahead), 0.1, 0, 1e6 },
	{ "lambda_lookahead_topk", KEY_REAL, AT(lambda_lookahead_topk), 0.15, 0, 1e6 },
	{ "lambda_lookahead_union", KEY_REAL, AT(lambda_lookahead_union), 0.05, 0, 1e6 },
	{ "lambda_router_locality", KEY_REAL, AT(lambda_router_locality), 0.02, 0, 1e6 },
	{ "lambda_router_anchor", KEY_REAL, AT(lambda_router_anchor), 0, 0, 1e6 },
	{ "lambda_ahead", KEY_REAL, AT(lambda_ahead), 0, 0, 1e6 },
	{ "dropout", KEY_REAL, AT(dropout), 0, 0, 0.99 },
	{ "fallback_mask_prob", KEY_REAL, AT(fallback_mask_prob), 0, 0, 1 },
	{ 0 }
};

int family_heads(struct config *c, const struct keys *k)
{
	if (c->num_key_value_heads == 0)
		c->num_key_value_heads = c->num_attention_heads;
	if (c->num_attention_heads % c->num_key_value_heads)
		return keys_bad(k, "num_key_value_heads",
		    "%d does not divide num_attention_heads %d",
		    c->num_key_value_heads,
		    c->num_attention_heads);
	if (c->head_dim == 0) {
		if (c->hidden_size % c->num_attention_heads)
			return keys_bad(k, "num_attention_heads",
			    "%d does not divide hidden_size %d, and there is no head_dim",
			    c->num_attention_heads, c->hidden_size);
		c->head_dim = c->hidden_size / c->num_attention_heads;
	}
	if (c->head_dim % 2)
		return keys_bad(k, "head_dim", "%d is odd: rotary positions need pairs",
		    c->head_dim);
	return 0;
}

int family_sparse_step(struct config *c, const struct keys *k)
{
	const json_t *dense = keys_get(k, "mlp_only_layers"), *v = keys_get(k,
	    "decoder_sparse_step");
	int step = 1, layer = 0;

	if (v && keys_int(k, "decoder_sparse_step", v, 1, INT_MAX, &step) < 0)
		return -1;
	for (int i = 0; i < c->num_hidden_layers; i++)
		c->block[i].sparse = c->num_experts > 0 && (i + 1) % step == 0;
	if (dense && !json_is_array(dense))
		return keys_bad(k, "mlp_only_layers", "must be a list");
	for (size_t i = 0; i < json_array_size(dense); i++) {
		if (keys_int(k, "mlp_only_layers", json_array_get(dense, i), 0, CFG_MAX_LAYERS - 1,
		    &layer) < 0)
			return -1;
		c->block[layer].sparse = false;
	}
	return 0;
}

int family_sparse_done(struct config *c, const struct keys *k)
{
	c->num_sparse = 0;
	for (int i = 0; i < c->num_hidden_layers; i++)
		c->num_sparse += c->block[i].sparse;
	if (c->num_sparse == 0)
		return 0;
	if (c->num_experts < 1)
		return keys_bad(k, "num_experts", "0 with sparse layers");
	if (c->num_experts_per_tok > c->num_experts)
		return keys_bad(k, "num_experts_per_tok", "%d is above num_experts %d",
		    c->num_experts_per_tok, c->num_experts);
	return 0;
}

/* --- positions --- */

static const char *const rope_names[] = { "default", "linear", "llama3", "yarn", "dynamic" };

/* A number of the object; absent or null: as it was. */
static int rope_real(const struct keys *k, const char *key, const json_t *o, const char *name,
    double lo, double hi, double *x)
{
	const json_t *v = json_object_get(o, name);

	return !v || json_is_null(v) ? 0 : keys_real(k, key, v, lo, hi, x);
}

static int rope_bool(const struct keys *k, const char *key, const json_t *o, const char *name,
    bool *x)
{
	const json_t *v = json_object_get(o, name);

	if (v && !json_is_null(v) && !json_is_boolean(v))
		return keys_bad(k, key, "%s must be true or false", name);
	*x = v && !json_is_null(v) ? json_is_true(v) : *x;
	return 0;
}

static double yarn_magnitude(double factor, double mscale)
{
	return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}

static int rope_yarn(struct rope *r, const char *key, const json_t *o, const struct keys *k)
{
	double mscale = 0;

	r->fast = 32;
	r->slow = 1;
	r->truncate = true;
	if (rope_real(k, key, o, "beta_fast", 1e-3, 1e6, &r->fast) < 0 ||
	    rope_real(k, key, o, "beta_slow", 1e-3, 1e6, &r->slow) < 0 ||
	    rope_bool(k, key, o, "truncate", &r->truncate) < 0 ||
	    rope_real(k, key, o, "mscale", 0, 1e3, &mscale) < 0)
		return -1;
	r->magnitude = yarn_magnitude(r->factor, 1);
	if (mscale != 0 && r->all_dim != 0)
		r->magnitude = yarn_magnitude(r->factor, mscale) /
		    yarn_magnitude(r->factor, r->all_dim);
	return rope_real(k, key, o, "attention_factor", 1e-3, 1e3, &r->magnitude);
}

static int rope_llama3(struct rope *r, const char *key, const json_t *o, const struct keys *k)
{
	if (rope_real(k, key, o, "low_freq_factor", 1e-3, 1e6, &r->slow) < 0 ||
	    rope_real(k, key, o, "high_freq_factor", 1e-3, 1e6, &r->fast) < 0)
		return -1;
	return r->slow > 0 && r->fast > r->slow ? 0 : keys_bad(k, key,
	    "llama3 needs low_freq_factor and a larger high_freq_factor");
}

/* Nothing in the object may be passed over that changes the frequencies. */
static int rope_check(const struct keys *k, const char *key, const json_t *o)
{
	static const char *const known[] = { "type", "rope_type", "rope_theta", "factor",
	    "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor",
	    "truncate", "mscale", "mscale_all_dim", "low_freq_factor", "high_freq_factor" };
	const char *name;
	char shown[160];
	json_t *v;

	json_object_foreach((json_t *)o, name, v) {
		size_t i = 0;

		if (strcmp(name, "partial_rotary_factor") == 0 && (arch_knows(k->arch, name) ||
		    (json_is_number(v) && json_number_value(v) == 1)))
			continue;
		if (strcmp(name, "alpha") == 0 && arch_knows(k->arch, name))
			continue;
		while (i < sizeof known / sizeof *known && strcmp(known[i], name) != 0)
			i++;
		snprintf(shown, sizeof shown, "%s.%s", key, name);
		if (i == sizeof known / sizeof *known && arch_check_key(k, name, v, shown) < 0)
			return -1;
	}
	return 0;
}

static int rope_kind(struct rope *r, const char *key, const json_t *o, const struct keys *k)
{
	const json_t *v = json_object_get(o, "rope_type");
	const char *type = json_string_value(v ? v : json_object_get(o, "type"));
	size_t i = 0, n = sizeof rope_names / sizeof *rope_names;

	while (type && i < n && strcmp(type, rope_names[i]) != 0)
		i++;
	if (i == n)
		return keys_bad(k, key,
		    "type %s is not supported, only default, linear, dynamic, llama3 and yarn",
		    type);
	if (!type && json_object_get(o, "factor"))
		return keys_bad(k, key, "has a factor and no type");
	r->kind = (enum rope_kind)i;
	return 0;
}

const char *family_rope_key(const struct keys *k)
{
	const json_t *v = keys_get(k, "rope_scaling");

	return v && !(json_is_object(v) && json_object_size(v) == 0) ? "rope_scaling"
	    : "rope_parameters";
}

/* Up to the positions of the config the frequencies are the plain ones; Hunyuan's alpha raises
 * theta for good. */
static int rope_dynamic(const struct config *c, struct rope *r, const char *key, const json_t *o,
    const struct keys *k)
{
	double alpha = 0;

	if (rope_real(k, key, o, "alpha", 0, 1e9, &alpha) < 0)
		return -1;
	if (alpha > 0 && r->dims < 4)
		return keys_bad(k, key, "alpha needs a head of 4 elements at least");
	r->limit = alpha > 0 ? 0 : c->max_position_embeddings;
	if (alpha > 0)
		r->theta *= pow(alpha, r->dims / (r->dims - 2.0));
	return 0;
}

int family_rope(struct config *c, const struct keys *k, int width)
{
	const char *key = family_rope_key(k);
	const json_t *o = keys_get(k, key), *v;
	struct rope *r = &c->rope;

	*r = (struct rope){ .width = width, .dims = width, .magnitude = 1, .factor = 1,
	    .original_max = c->max_position_embeddings, .last = width - 1 };
	if (o && !json_is_object(o))
		return keys_bad(k, key, "must be an object or null");
	if (rope_real(k, key, o, "rope_theta", 1, 1e18, &c->rope_theta) < 0)
		return -1;
	r->theta = c->rope_theta;
	v = json_object_get(o, "original_max_position_embeddings");
	if (rope_kind(r, key, o, k) < 0 || rope_check(k, key, o) < 0 ||
	    (v && !json_is_null(v) && keys_int(k, key, v, 1, 1 << 30, &r->original_max) < 0))
		return -1;
	if (r->kind == ROPE_YARN)
		r->factor = fmax(1, (double)c->max_position_embeddings / r->original_max);
	if (rope_real(k, key, o, "factor", 1, 1e6, &r->factor) < 0 ||
	    rope_real(k, key, o, "mscale_all_dim", 0, 1e3, &r->all_dim) < 0)
		return -1;
	switch (r->kind) {
	case ROPE_YARN: return rope_yarn(r, key, o, k);
	case ROPE_LLAMA3: return rope_llama3(r, key, o, k);
	case ROPE_DYNAMIC: return rope_dynamic(c, r, key, o, k);
	case ROPE_DEFAULT: case ROPE_LINEAR: break;
	}
	return 0;
}

/* A default id beyond a tiny vocabulary is no id; one that was asked for is a mistake. */
int family_ids(struct config *c, const struct keys *k)
{
	static const struct { const char *key; size_t at; } ids[] = {
		{ "bos_token_id", AT(bos_token_id) }, { "eos_token_id", AT(eos_token_id) },
		{ "pad_token_id", AT(pad_token_id) },
	};

	for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) {
		int *id = (int *)((char *)c + ids[i].at);

		if (*id < c->vocab_size)
			continue;
		if (keys_get(k, ids[i].key))
			return keys_bad(k, ids[i].key, "%d is not below vocab_size %d", *id,
			    c->vocab_size);
		*id = -1;
	}
	return 0;
}

int family_begin(struct config *c, const struct keys *k)
{
	c->num_experts_per_tok = c->num_experts_per_tok > 0 ? c->num_experts_per_tok : 1;
	c->lookahead_per_layer = c->format == 2;
	if (c->intermediate_size < 1)
		return keys_bad(k, "intermediate_size", "must be at least 1");
	if (family_heads(c, k) < 0 || family_rope(c, k, c->rope_dim ? c->rope_dim
	    : c->head_dim) < 0)
		return -1;
	for (int l = 0; l < c->num_hidden_layers; l++) {
		c->block[l].rope = c->rope;
		c->block[l].width = c->intermediate_size;
		c->block[l].scale = 1 / sqrt((double)c->head_dim);
		c->block[l].value = c->head_dim;
	}
	return family_sparse_done(c, k);
}

int family_attention_bias(struct config *c, const struct keys *k, bool fallback)
{
	bool bias = fallback;

	if (keys_bool(k, "attention_bias", fallback, &bias) < 0)
		return -1;
	for (int l = 0; l < c->num_hidden_layers; l++)
		c->block[l].qkv_bias = c->block[l].o_bias = bias;
	return 0;
}

/* The width of windows: absent, as the family has it; null: there are none, 0. */
static int window_width(const struct keys *k, int *width)
{
	const json_t *v = json_object_get(k->o, "sliding_window");

	if (json_is_null(v))
		*width = 0;
	return v && !json_is_null(v) ? keys_int(k, "sliding_window", v, 0, 1 << 30, width) : 0;
}

int family_windows(struct config *c, const struct keys *k, bool on, const bool *wanted, int width)
{
	static const char *const names[] = { "full_attention", "sliding_attention" };
	int type[CFG_MAX_LAYERS];
	bool found, slides = false;

	if (keys_list(k, "layer_types", c->num_hidden_layers, names, 2, type, &found) < 0 ||
	    window_width(k, &width) < 0)
		return -1;
	for (int l = 0; l < c->num_hidden_layers; l++) {
		bool slide = found ? type[l] == 1 : on && wanted[l] && width > 0;

		c->block[l].attn = slide ? ATTN_SLIDING : ATTN_FULL;
		c->block[l].window = slide ? width : 0;
		slides |= slide;
	}
	if (slides && !on)
		return keys_bad(k, "layer_types", "layers slide, and use_sliding_window is false");
	if (slides && width == 0)
		return keys_bad(k, "sliding_window", "is missing, and layers slide");
	return 0;
}

int family_late_windows(struct config *c, const struct keys *k, bool slide, int from)
{
	const json_t *v = keys_get(k, "max_window_layers");
	bool wanted[CFG_MAX_LAYERS];

	if (v && keys_int(k, "max_window_layers", v, 0, INT_MAX, &from) < 0)
		return -1;
	for (int l = 0; l < c->num_hidden_layers; l++)
		wanted[l] = l >= from;
	return family_windows(c, k, slide, wanted, 4096);
}

int family_partial(struct config *c, const struct keys *k, double factor)
{
	const json_t *v = keys_get(k, "partial_rotary_factor");
	const char *key = family_rope_key(k);

	if (family_heads(c, k) < 0 ||
	    (v && keys_real(k, "partial_rotary_factor", v, 1e-3, 1, &factor) < 0) ||
	    rope_real(k, key, keys_get(k, key), "partial_rotary_factor", 1e-3, 1, &factor) < 0)
		return -1;
	c->rope_dim = (int)(c->head_dim * factor);
	return c->rope_dim >= 2 && c->rope_dim % 2 == 0 ? 0 :
	    keys_bad(k, "partial_rotary_factor", "%d elements of a head cannot turn in pairs",
	    c->rope_dim);
}

int family_experts(struct config *c, const struct keys *k)
{
	for (int l = 0; l < c->num_hidden_layers; l++) {
		struct block *b = &c->block[l];

		if (!b->sparse)
			continue;
		b->width = c->moe_intermediate_size;
		b->router.renormalised = c->norm_topk_prob;
		if (b->router.scale == 0)
			b->router.scale = 1;
	}
	return family_sparse_done(c, k);
}

const struct key_alias family_deepseek_aliases[] = {
	{ "num_experts", "n_routed_experts" }, { 0 }
};

int family_count(const struct keys *k, const char *key, int lo, int *x)
{
	const json_t *v = keys_get(k, key);

	return v ? keys_int(k, key, v, lo, 1 << 20, x) : 0;
}

static int check_groups(const struct config *c, const struct keys *k,
    const struct family_deepseek *d)
{
	int least = d->softmax ? 1 : 2;	/* experts by which a group is judged */

	if (d->groups > 1 && (c->num_experts % d->groups ||
	    c->num_experts / d->groups < least))
		return keys_bad(k, "n_group", "%d groups of %d experts", d->groups, c->num_experts);
	if (d->kept > d->groups || c->num_experts / d->groups * d->kept < c->num_experts_per_tok)
		return keys_bad(k, "topk_group", "%d of %d groups for %d experts a token", d->kept,
		    d->groups, c->num_experts_per_tok);
	return 0;
}

int family_deepseek_experts(struct config *c, const struct keys *k, struct family_deepseek d)
{
	static const char *const names[] = { "dense", "sparse" };
	const json_t *v = keys_get(k, "routed_scaling_factor");
	int type[CFG_MAX_LAYERS];
	bool found;

	if (family_count(k, "first_k_dense_replace", 0, &d.first_dense) < 0 ||
	    family_count(k, "n_shared_experts", 0, &d.shared) < 0 || family_count(k, "n_group", 1,
	    &d.groups) < 0 ||
	    family_count(k, "topk_group", 1, &d.kept) < 0 ||
	    (v && keys_real(k, "routed_scaling_factor", v, 1e-6, 1e6, &d.factor) < 0) ||
	    check_groups(c, k, &d) < 0)
		return -1;
	if (!arch_knows(k->arch, "mlp_layer_types"))
		found = false;
	else if (keys_list(k, "mlp_layer_types", c->num_hidden_layers, names, 2, type, &found) < 0)
		return -1;
	c->num_shared_experts = d.shared > 0;
	for (int l = 0; l < c->num_hidden_layers; l++) {
		struct block *b = &c->block[l];

		b->sparse = found ? type[l] == 1 : l >= d.first_dense;
		if (!b->sparse)
			continue;
		b->router = (struct router){ .sigmoid = !d.softmax, .groups = d.groups,
		    .kept = d.kept, .scale = d.factor };
		b->router_bias = !d.softmax;
		b->shared = d.shared > 0;
		b->shared_width = d.shared * c->moe_intermediate_size;
	}
	return family_experts(c, k);
}

int family_deepseek_v3(struct config *c, const struct keys *k, struct family_deepseek d)
{
	bool pairs = true;

	if (keys_bool(k, "rope_interleave", true, &pairs) < 0 ||
	    family_deepseek_begin(c, k, pairs) < 0)
		return -1;
	return family_deepseek_experts(c, k, d);
}

int family_deepseek_begin(struct config *c, const struct keys *k, bool pairs)
{
	int rank = 0, latent = 512, nope = 128, turned = 64, value = 128;
	double scale, more = 1;

	if (family_count(k, "q_lora_rank", 1, &rank) < 0 ||
	    family_count(k, "kv_lora_rank", 1, &latent) < 0 ||
	    family_count(k, "qk_nope_head_dim", 1, &nope) < 0 ||
	    family_count(k, "qk_rope_head_dim", 2, &turned) < 0 ||
	    family_count(k, "v_head_dim", 1, &value) < 0)
		return -1;
	if (turned % 2)
		return keys_bad(k, "qk_rope_head_dim", "%d is odd: rotary positions need pairs",
		    turned);
	if (value > nope + turned)
		return keys_bad(k, "v_head_dim", "%d is above the %d of keys", value,
		    nope + turned);
	c->head_dim = nope + turned;
	c->rope_dim = turned;
	c->num_key_value_heads = c->num_attention_heads;
	if (family_begin(c, k) < 0)
		return -1;
	if (c->rope.kind != ROPE_DEFAULT && c->rope.all_dim != 0)
		more = yarn_magnitude(c->rope.factor, c->rope.all_dim);
	scale = more * more / sqrt((double)c->head_dim);
	for (int l = 0; l < c->num_hidden_layers; l++) {
		struct block *b = &c->block[l];

		b->attn = ATTN_LATENT;
		b->rope.pairs = pairs;
		b->q_rank = rank;
		b->latent = latent;
		b->latent_eps = 1e-6;		/* in transformers, whatever rms_norm_eps is */
		b->nope = nope;
		b->value = value;
		b->scale = scale;
	}
	return 0;
}
