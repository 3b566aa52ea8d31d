#include "arch/config.h"

#include <fnmatch.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/jsonfile.h"

/* What the checks need to name the culprit: the file, or the --set that brought the value. */
struct source {
	const char *name;
	const json_t *o;
	int nsets;
	const char *const *sets;
	struct err *e;
};

enum field_kind { F_INT, F_ID, F_REAL, F_BOOL };

/* The plain values, with defaults of the reference and ranges that keep every product of two of
 * them inside int64_t and every matrix side inside int. A fallback of 0 below the range is
 * resolved from other values. */
static const struct field {
	const char *key;
	enum field_kind kind;
	size_t at;
	double fallback, lo, hi;
} fields[] = {
#define AT(x) offsetof(struct config, x)
	{ "chronos_format", F_INT, AT(format), 1, 1, 2 },
	{ "vocab_size", F_INT, AT(vocab_size), 6400, 1, 1 << 28 },
	{ "hidden_size", F_INT, AT(hidden_size), 768, 4, 1 << 20 },
	{ "num_hidden_layers", F_INT, AT(num_hidden_layers), 8, 1, CFG_MAX_LAYERS },
	{ "num_attention_heads", F_INT, AT(num_attention_heads), 8, 1, 1 << 14 },
	{ "num_key_value_heads", F_INT, AT(num_key_value_heads), 4, 1, 1 << 14 },
	{ "head_dim", F_INT, AT(head_dim), 0, 2, 1 << 16 },
	{ "intermediate_size", F_INT, AT(intermediate_size), 0, 0, 1 << 24 },
	{ "moe_intermediate_size", F_INT, AT(moe_intermediate_size), 0, 0, 1 << 24 },
	{ "num_experts", F_INT, AT(num_experts), 4, 0, 4096 },
	{ "num_experts_per_tok", F_INT, AT(num_experts_per_tok), 1, 1, 4096 },
	{ "num_shared_experts", F_INT, AT(num_shared_experts), 1, 0, 64 },
	{ "norm_topk_prob", F_BOOL, AT(norm_topk_prob), 1, 0, 0 },
	{ "tie_word_embeddings", F_BOOL, AT(tie_word_embeddings), 1, 0, 0 },
	{ "kv_latent_dim", F_INT, AT(kv_latent_dim), 64, 1, 1 << 20 },
	{ "rope_dim", F_INT, AT(rope_dim), 0, 1, 1 << 16 },
	{ "sliding_window_size", F_INT, AT(sliding_window_size), 2048, 1, 1 << 30 },
	{ "rope_theta", F_REAL, AT(rope_theta), 1e6, 1, 1e18 },
	{ "rms_norm_eps", F_REAL, AT(rms_norm_eps), 1e-6, 0, 1 },
	{ "max_position_embeddings", F_INT, AT(max_position_embeddings), 32768, 1, 1 << 30 },
	{ "lookahead_steps", F_INT, AT(lookahead_steps), 2, 0, 16 },
	{ "lambda_balance", F_REAL, AT(lambda_balance), 5e-4, 0, 1e6 },
	{ "lambda_temporal", F_REAL, AT(lambda_temporal), 3e-3, 0, 1e6 },
	{ "lambda_lookahead", F_REAL, AT(lambda_lookahead), 0.1, 0, 1e6 },
	{ "lambda_lookahead_topk", F_REAL, AT(lambda_lookahead_topk), 0.15, 0, 1e6 },
	{ "lambda_lookahead_union", F_REAL, AT(lambda_lookahead_union), 0.05, 0, 1e6 },
	{ "lambda_router_locality", F_REAL, AT(lambda_router_locality), 0.02, 0, 1e6 },
	{ "lambda_router_anchor", F_REAL, AT(lambda_router_anchor), 0, 0, 1e6 },
	{ "lambda_ahead", F_REAL, AT(lambda_ahead), 0, 0, 1e6 },
	{ "dropout", F_REAL, AT(dropout), 0, 0, 0.99 },
	{ "fallback_mask_prob", F_REAL, AT(fallback_mask_prob), 0, 0, 1 },
	{ "bos_token_id", F_ID, AT(bos_token_id), 1, -1, INT_MAX },
	{ "eos_token_id", F_ID, AT(eos_token_id), 2, -1, INT_MAX },
	{ "pad_token_id", F_ID, AT(pad_token_id), 0, -1, INT_MAX },
#undef AT
};
#define NFIELDS (sizeof fields / sizeof *fields)

/* Keys with a meaning here beyond the plain values; --set takes these and no others. */
static const char *const other_keys[] = {
	"layer_types", "mlp_layer_types", "lookahead_scope", "use_hybrid_attention", "use_moe",
	    "model_type",
	"rope_scaling", "rope_parameters", "inference_rope_scaling", "decoder_sparse_step",
	    "mlp_only_layers",
	"hidden_act", "attention_bias", "sliding_window", "use_sliding_window",
};

/* Where Qwen3-MoE (Hugging Face) means something else by an absent key. */
static const struct { const char *key; double fallback; } qwen_fallback[] = {
	{ "num_shared_experts", 0 }, { "lookahead_steps", 0 }, { "norm_topk_prob", 0 },
	    { "tie_word_embeddings", 0 },
	{ "rope_theta", 1e4 }, { "num_experts", 128 }, { "num_experts_per_tok", 8 },
	{ "bos_token_id", -1 }, { "eos_token_id", -1 }, { "pad_token_id", -1 },
};

static const char *const layer_names[] = {
	[LAYER_MLA] = "mla_attention", [LAYER_SLIDING] = "sliding_attention", [LAYER_FULL] =
	    "full_attention",
};

static bool sets_key(const char *set, const char *key)
{
	size_t n = strlen(key);

	return strncmp(set, key, n) == 0 && set[n] == '=';
}

__attribute__((format(printf, 3, 4)))
static int bad(const struct source *s, const char *key, const char *fmt, ...)
{
	char why[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why, sizeof why, fmt, ap);
	va_end(ap);
	for (int i = 0; i < s->nsets; i++)
		if (sets_key(s->sets[i], key))
			return err_set(s->e, EX_USAGE, "--set %s: %s", s->sets[i], why);
	return err_set(s->e, EX_DATAERR, "%s: %s: %s", s->name, key, why);
}

static bool known_key(const char *key)
{
	for (size_t i = 0; i < NFIELDS; i++)
		if (strcmp(fields[i].key, key) == 0)
			return true;
	for (size_t i = 0; i < sizeof other_keys / sizeof *other_keys; i++)
		if (strcmp(other_keys[i], key) == 0)
			return true;
	return false;
}

/* A key given on the command line must count: it drops the key of the file that would go before
 * it. */
static void drop_stronger(json_t *o, const char *key)
{
	static const struct { const char *key, *stronger; } pairs[] = {
		{ "use_hybrid_attention", "layer_types" }, { "use_moe", "mlp_layer_types" },
		{ "decoder_sparse_step", "mlp_layer_types" },
		    { "mlp_only_layers", "mlp_layer_types" },
		{ "rope_parameters", "rope_scaling" }, { "inference_rope_scaling", "rope_scaling" },
		{ "sliding_window", "sliding_window_size" },
	};

	for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
		if (strcmp(key, pairs[i].key) == 0)
			json_object_del(o, pairs[i].stronger);
}

static int apply_set(json_t *o, const char *set, struct err *e)
{
	const char *eq = strchr(set, '=');
	json_t *v;
	char key[64];

	if (!eq || eq == set)
		return err_set(e, EX_USAGE, "--set %s: not of the form key=value", set);
	snprintf(key, sizeof key, "%.*s", (int)(eq - set), set);
	if (!known_key(key))
		return err_set(e, EX_USAGE, "--set %s: unknown key", set);
	v = json_loads(eq + 1, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, NULL);
	if (!v)
		v = json_string(eq + 1);
	if (!v)
		return err_set(e, EX_USAGE, "--set %s: value is not UTF-8", set);
	drop_stronger(o, key);
	json_object_set_new(o, key, v);
	return 0;
}

static const json_t *get(const struct source *s, const char *key)
{
	const json_t *v = json_object_get(s->o, key);

	return json_is_null(v) ? NULL : v;
}

static int get_bool(const struct source *s, const char *key, bool fallback, bool *out)
{
	const json_t *v = get(s, key);

	if (v && !json_is_boolean(v))
		return bad(s, key, "must be true or false");
	*out = v ? json_is_true(v) : fallback;
	return 0;
}

static int get_int(const struct source *s, const char *key, const json_t *v, double lo, double hi,
    int *out)
{
	if (!json_is_integer(v))
		return bad(s, key, "must be an integer");
	if ((double)json_integer_value(v) < lo || (double)json_integer_value(v) > hi)
		return bad(s, key, "%lld is outside %.0f..%.0f", (long long)json_integer_value(v),
		    lo, hi);
	*out = (int)json_integer_value(v);
	return 0;
}

static int get_real(const struct source *s, const char *key, const json_t *v, double lo, double hi,
    double *out)
{
	double x;

	if (!json_is_number(v))
		return bad(s, key, "must be a number");
	x = json_number_value(v);
	if (!(x >= lo && x <= hi))
		return bad(s, key, "%g is outside %g..%g", x, lo, hi);
	*out = x;
	return 0;
}

static int read_field(struct config *c, const struct field *f, double fallback,
    const struct source *s)
{
	const json_t *v = get(s, f->key);
	char *at = (char *)c + f->at;

	switch (f->kind) {
	case F_ID:
		if (json_object_get(s->o, f->key) && !v)	/* null: there is none */
			fallback = -1;
		/* Hugging Face allows several; the first one is ours */
		if (json_is_array(v))
			v = json_array_get(v, 0);
		/* fall through */
	case F_INT:
		*(int *)at = (int)fallback;
		return v ? get_int(s, f->key, v, f->lo, f->hi, (int *)at) : 0;
	case F_REAL:
		*(double *)at = fallback;
		return v ? get_real(s, f->key, v, f->lo, f->hi, (double *)at) : 0;
	case F_BOOL:
		return get_bool(s, f->key, fallback != 0, (bool *)at);
	}
	return 0;
}

static int read_fields(struct config *c, bool qwen, const struct source *s)
{
	for (size_t i = 0; i < NFIELDS; i++) {
		double fallback = fields[i].fallback;

		for (size_t j = 0; qwen && j < sizeof qwen_fallback / sizeof *qwen_fallback; j++)
			if (strcmp(fields[i].key, qwen_fallback[j].key) == 0)
				fallback = qwen_fallback[j].fallback;
		if (read_field(c, &fields[i], fallback, s) < 0)
			return -1;
	}
	return 0;
}

/* A list of num_hidden_layers names; out[i] is the index of entry i in names. *found: the key
 * was there. */
static int read_layer_list(const struct source *s, const char *key, int layers,
    const char *const *names, int nnames,
    int *out, bool *found)
{
	const json_t *v = get(s, key);

	*found = v != NULL;
	if (!v)
		return 0;
	if (!json_is_array(v))
		return bad(s, key, "must be a list");
	if (json_array_size(v) != (size_t)layers)
		return bad(s, key, "has %zu entries, num_hidden_layers is %d", json_array_size(v),
		    layers);
	for (int i = 0; i < layers; i++) {
		const char *name = json_string_value(json_array_get(v, (size_t)i));
		int k = 0;

		while (k < nnames && !(name && strcmp(name, names[k]) == 0))
			k++;
		if (k == nnames)
			return bad(s, key, "entry %d is %s%s", i, name ? "unknown: "
			    : "not a string", name ? name : "");
		out[i] = k;
	}
	return 0;
}

static int read_layer_types(struct config *c, bool qwen, const struct source *s)
{
	int type[CFG_MAX_LAYERS];
	bool found, hybrid = false, slide = false;

	if (read_layer_list(s, "layer_types", c->num_hidden_layers, layer_names, 3, type, &found) <
	    0 ||
	    get_bool(s, "use_hybrid_attention", !qwen, &hybrid) < 0 ||
	    get_bool(s, "use_sliding_window", false, &slide) < 0)
		return -1;
	for (int i = 0; i < c->num_hidden_layers; i++)
		c->layer_type[i] = found ? (enum layer_type)type[i] :
		    hybrid ? (i % 2 ? LAYER_SLIDING : LAYER_MLA) :
		    qwen && slide ? LAYER_SLIDING : LAYER_FULL;
	if (get(s, "sliding_window") && !get(s, "sliding_window_size"))
		return get_int(s, "sliding_window", get(s, "sliding_window"), 1, 1 << 30,
		    &c->sliding_window_size);
	return 0;
}

/* mlp_only_layers: a list of dense layers; decoder_sparse_step: every how many layers a sparse
 * one comes. */
static int read_hf_sparse(struct config *c, const struct source *s)
{
	const json_t *dense = get(s, "mlp_only_layers"), *v = get(s, "decoder_sparse_step");
	int step = 1, layer = 0;

	if (v && get_int(s, "decoder_sparse_step", v, 1, INT_MAX, &step) < 0)
		return -1;
	for (int i = 0; i < c->num_hidden_layers; i++)
		c->sparse[i] = c->num_experts > 0 && (i + 1) % step == 0;
	if (dense && !json_is_array(dense))
		return bad(s, "mlp_only_layers", "must be a list");
	for (size_t i = 0; i < json_array_size(dense); i++) {
		if (get_int(s, "mlp_only_layers", json_array_get(dense, i), 0, CFG_MAX_LAYERS - 1,
		    &layer) < 0)
			return -1;
		c->sparse[layer] = false;
	}
	return 0;
}

static int read_mlp_types(struct config *c, const struct source *s)
{
	static const char *const names[] = { "dense", "sparse" };
	int type[CFG_MAX_LAYERS];
	bool found, moe = true;

	if (get_bool(s, "use_moe", true, &moe) < 0 ||
	    read_layer_list(s, "mlp_layer_types", c->num_hidden_layers, names, 2, type, &found) < 0)
		return -1;
	if (found)
		for (int i = 0; i < c->num_hidden_layers; i++)
			c->sparse[i] = type[i] == 1;
	else if (read_hf_sparse(c, s) < 0)
		return -1;
	c->num_sparse = 0;
	for (int i = 0; i < c->num_hidden_layers; i++) {
		c->sparse[i] = c->sparse[i] && moe;
		c->num_sparse += c->sparse[i];
	}
	if (c->num_sparse == 0) {
		c->lookahead_steps = 0;		/* there is nothing to look for */
		return 0;
	}
	if (c->num_experts < 1)
		return bad(s, "num_experts", "0 with sparse layers");
	if (c->num_experts_per_tok > c->num_experts)
		return bad(s, "num_experts_per_tok", "%d is above num_experts %d",
		    c->num_experts_per_tok, c->num_experts);
	return 0;
}

static int read_yarn(struct config *c, const char *key, const json_t *o, bool hf,
    const struct source *s)
{
	const json_t *v;
	double max = 2048;

	c->yarn = true;
	c->yarn_factor = 16;
	c->yarn_beta_fast = 32;
	c->yarn_beta_slow = 1;
	if (hf)		/* there the length before scaling is the model's own when not stated */
		max = c->max_position_embeddings;
	c->yarn_original_max = (int)max;
	if ((v = json_object_get(o, "factor")) && get_real(s, key, v, 1, 1e6, &c->yarn_factor) < 0)
		return -1;
	if ((v = json_object_get(o, "beta_fast")) && get_real(s, key, v, 1e-3, 1e6,
	    &c->yarn_beta_fast) < 0)
		return -1;
	if ((v = json_object_get(o, "beta_slow")) && get_real(s, key, v, 1e-3, 1e6,
	    &c->yarn_beta_slow) < 0)
		return -1;
	c->yarn_attention_factor = hf ? 0.1 * log(c->yarn_factor) + 1 : 1;
	v = json_object_get(o, "attention_factor");
	if (v && !json_is_null(v) && get_real(s, key, v, 1e-3, 1e3, &c->yarn_attention_factor) < 0)
		return -1;
	v = json_object_get(o, "original_max_position_embeddings");
	return v ? get_int(s, key, v, 1, 1 << 30, &c->yarn_original_max) : 0;
}

/* rope_scaling (or rope_parameters, its newer name, which holds rope_theta too). */
static int read_rope(struct config *c, bool qwen, const struct source *s)
{
	const char *key = get(s, "rope_scaling") ? "rope_scaling" : "rope_parameters", *type;
	const json_t *o = get(s, key), *v;
	bool on = false;

	if (get_bool(s, "inference_rope_scaling", false, &on) < 0)
		return -1;
	if (o && !json_is_object(o))
		return bad(s, key, "must be an object or null");
	v = json_object_get(o, "rope_theta");
	if (v && !get(s, "rope_theta") && get_real(s, key, v, 1, 1e18, &c->rope_theta) < 0)
		return -1;
	v = json_object_get(o, "rope_type");
	type = json_string_value(v ? v : json_object_get(o, "type"));
	if (type && strcmp(type, "yarn") == 0)
		return read_yarn(c, key, o, qwen, s);
	if (o && (!type || strcmp(type, "default") != 0))
		return bad(s, key, "type must be yarn or default");
	return on ? read_yarn(c, key, NULL, false, s) : 0;
}

static int read_scope(struct config *c, const struct source *s)
{
	const json_t *v = get(s, "lookahead_scope");
	const char *name = json_string_value(v);

	c->lookahead_per_layer = c->format == 2;
	if (!v)
		return 0;
	if (!name || (strcmp(name, "layer_mean") != 0 && strcmp(name, "per_layer") != 0))
		return bad(s, "lookahead_scope", "must be layer_mean or per_layer");
	if ((strcmp(name, "per_layer") == 0) != c->lookahead_per_layer)
		return bad(s, "lookahead_scope", c->format == 2 ? "must be per_layer in format 2" :
		    "must be layer_mean in format 1");
	return 0;
}

/* The reference's weight is of a raw sum over layers and choices. On a term that is 1 at even
 * load it lets routers collapse: 8 layers of 16 experts, 150 steps of 1,024 tokens of shared
 * text, load entropy 0.4-0.7 at 0.02, 0.94 at 0.1. */
static void balance_default(struct config *c, const struct source *s)
{
	if (c->format == 2 && !get(s, "lambda_balance"))
		c->lambda_balance = 0.1;
}

/* Format 1 clamps as the reference does, odd widths included. Ours must be a rotation: even, and
 * part of a head. */
static int resolve_rope_dim(struct config *c, const struct source *s)
{
	int d = c->head_dim, half = d / 2 & ~1;
	bool mla = false;

	for (int i = 0; i < c->num_hidden_layers; i++)
		mla |= c->layer_type[i] == LAYER_MLA;
	if (c->format == 1 || !mla) {
		if (c->rope_dim == 0)
			c->rope_dim = 32;
		if (c->rope_dim > d - 1)
			c->rope_dim = d - 1;
		return 0;
	}
	if (c->rope_dim == 0)
		c->rope_dim = half > 32 ? 32 : half;
	if (c->rope_dim < 2 || c->rope_dim % 2 || c->rope_dim >= d)
		return bad(s, "rope_dim", "%d must be even and below head_dim %d", c->rope_dim, d);
	return 0;
}

static int resolve_heads(struct config *c, const struct source *s)
{
	if (c->num_attention_heads % c->num_key_value_heads)
		return bad(s, "num_key_value_heads", "%d does not divide num_attention_heads %d",
		    c->num_key_value_heads,
		    c->num_attention_heads);
	if (c->head_dim == 0) {
		if (c->hidden_size % c->num_attention_heads)
			return bad(s, "num_attention_heads",
			    "%d does not divide hidden_size %d, and there is no head_dim",
			    c->num_attention_heads, c->hidden_size);
		c->head_dim = c->hidden_size / c->num_attention_heads;
	}
	if (c->head_dim % 2)
		return bad(s, "head_dim", "%d is odd: rotary positions need pairs", c->head_dim);
	return resolve_rope_dim(c, s);
}

static void resolve_widths(struct config *c)
{
	if (c->intermediate_size == 0)
		c->intermediate_size = (int)ceil(c->hidden_size * M_PI / 64) * 64;
	if (c->moe_intermediate_size == 0)
		c->moe_intermediate_size = c->intermediate_size;
}

/* A default id beyond a tiny vocabulary is no id; one that was asked for is a mistake. */
static int check_ids(struct config *c, const struct source *s)
{
	for (size_t i = 0; i < NFIELDS; i++) {
		int *id = (int *)((char *)c + fields[i].at);

		if (fields[i].kind != F_ID || *id < c->vocab_size)
			continue;
		if (get(s, fields[i].key))
			return bad(s, fields[i].key, "%d is not below vocab_size %d", *id,
			    c->vocab_size);
		*id = -1;
	}
	return 0;
}

/* Things other models have and this one does not: refused, because ignoring them would give
 * wrong numbers. */
static int check_unsupported(const struct source *s)
{
	const json_t *act = get(s, "hidden_act");
	bool bias = false;

	if (act && (!json_is_string(act) || strcmp(json_string_value(act), "silu") != 0))
		return bad(s, "hidden_act", "only silu is supported");
	if (get_bool(s, "attention_bias", false, &bias) < 0)
		return -1;
	return bias ? bad(s, "attention_bias", "biases are not supported") : 0;
}

static int read_all(struct config *c, const struct source *s)
{
	const json_t *type = get(s, "model_type");
	bool qwen = json_is_string(type) && strcmp(json_string_value(type), "qwen3_moe") == 0;

	if (type && !json_is_string(type))
		return bad(s, "model_type", "must be a string");
	if (read_fields(c, qwen, s) < 0 || check_unsupported(s) < 0 || read_layer_types(c, qwen, s)
	    < 0 ||
	    read_mlp_types(c, s) < 0 || read_rope(c, qwen, s) < 0 || read_scope(c, s) < 0 ||
	    resolve_heads(c, s) < 0)
		return -1;
	balance_default(c, s);
	resolve_widths(c);
	return check_ids(c, s);
}

static int config_read(struct config *c, const json_t *o, const char *name, int nsets,
    const char *const sets[],
    struct err *e)
{
	struct source s = { name, NULL, nsets, sets, e };

	memset(c, 0, sizeof *c);
	if (!json_is_object(o))
		return err_set(e, EX_DATAERR, "%s: not a JSON object", name);
	c->raw = json_deep_copy(o);
	if (!c->raw)
		return err_set(e, EX_OSERR, "out of memory");
	s.o = c->raw;
	for (int i = 0; i < nsets; i++)
		if (apply_set(c->raw, sets[i], e) < 0)
			goto fail;
	if (read_all(c, &s) == 0)
		return 0;
fail:
	config_free(c);
	return -1;
}

int config_from_json(struct config *c, const json_t *o, int nsets, const char *const sets[],
    struct err *e)
{
	return config_read(c, o, "config", nsets, sets, e);
}

int config_load(struct config *c, const char *path, int nsets, const char *const sets[],
    struct err *e)
{
	struct stat st;
	bool dir = stat(path, &st) == 0 && S_ISDIR(st.st_mode);
	char *file = dir ? file_join(path, "config.json") : strdup(path);
	json_t *o = dir ? jsonfile_load(file, e) : jsonfile_input(file, e);
	int r;

	memset(c, 0, sizeof *c);
	r = o ? config_read(c, o, file, nsets, sets, e) : -1;
	json_decref(o);
	free(file);
	return r;
}

static json_t *layer_list(const struct config *c, bool mlp)
{
	json_t *a = json_array();

	for (int i = 0; i < c->num_hidden_layers; i++)
		json_array_append_new(a, json_string(mlp ? (c->sparse[i] ? "sparse" : "dense") :
		    layer_names[c->layer_type[i]]));
	return a;
}

static void set_default(json_t *o, const char *key, json_t *v)
{
	if (json_object_get(o, key))
		json_decref(v);
	else
		json_object_set_new(o, key, v);
}

static json_t *field_json(const struct config *c, const struct field *f)
{
	const char *at = (const char *)c + f->at;

	if (f->kind == F_REAL)
		return json_real(*(const double *)at);
	if (f->kind == F_BOOL)
		return json_boolean(*(const bool *)at);
	if (f->kind == F_ID && *(const int *)at < 0)
		return json_null();
	return json_integer(*(const int *)at);
}

json_t *config_to_json(const struct config *c)
{
	json_t *o = c->raw ? json_deep_copy(c->raw) : json_object();
	bool hybrid = false;

	for (size_t i = 0; i < NFIELDS; i++)
		if (!(fields[i].kind == F_ID && json_is_array(json_object_get(o, fields[i].key))))
			json_object_set_new(o, fields[i].key, field_json(c, &fields[i]));
	for (int i = 0; i < c->num_hidden_layers; i++)
		hybrid |= c->layer_type[i] == LAYER_MLA;
	json_object_set_new(o, "layer_types", layer_list(c, false));
	json_object_set_new(o, "mlp_layer_types", layer_list(c, true));
	json_object_set_new(o, "use_hybrid_attention", json_boolean(hybrid));
	json_object_set_new(o, "use_moe", json_boolean(c->num_sparse > 0));
	json_object_set_new(o, "lookahead_scope", json_string(c->lookahead_per_layer ? "per_layer"
	    : "layer_mean"));
	json_object_set_new(o, "rope_scaling", c->yarn ? json_pack("{s:s, s:f, s:i, s:f, s:f, s:f}",
	    "type", "yarn",
	    "factor", c->yarn_factor, "original_max_position_embeddings", c->yarn_original_max,
	    "beta_fast", c->yarn_beta_fast, "beta_slow", c->yarn_beta_slow,
	    "attention_factor", c->yarn_attention_factor) : json_null());
	set_default(o, "hidden_act", json_string("silu"));
	set_default(o, "model_type", json_string("chronos"));
	set_default(o, "architectures", json_pack("[s]", "ChronosForCausalLM"));
	return o;
}

void config_free(struct config *c)
{
	json_decref(c->raw);
	c->raw = NULL;
}

int config_lookahead_rows(const struct config *c)
{
	if (c->lookahead_steps == 0 || c->num_sparse == 0)
		return 0;
	return (c->lookahead_steps + 1) * c->num_experts * (c->lookahead_per_layer ? c->num_sparse
	    : 1);
}

/* The list of parameters, grown one by one. */
struct build {
	struct params *ps;
	int cap;
	bool failed;
};

static void add(struct build *b, enum param_kind kind, int layer, int expert, int rows, int cols,
    const char *name)
{
	struct params *ps = b->ps;
	int at = kind * (ps->layers + 1) + layer + 1;
	struct param *p;

	if (b->failed)
		return;
	if (ps->n == b->cap) {
		b->cap = b->cap ? b->cap * 2 : 256;
		p = realloc(ps->p, (size_t)b->cap * sizeof *p);
		if (!p) {
			b->failed = true;
			return;
		}
		ps->p = p;
	}
	p = &ps->p[ps->n];
	memset(p, 0, sizeof *p);
	if (layer < 0)
		snprintf(p->name, sizeof p->name, "%s.weight", name);
	else
		snprintf(p->name, sizeof p->name, "model.layers.%d.%s.weight", layer, name);
	p->kind = kind;
	p->layer = layer;
	p->expert = expert;
	p->ndim = cols ? 2 : 1;
	p->rows = rows;
	p->cols = cols ? cols : 1;
	p->off = ps->total;
	p->owner = -1;
	if (ps->first[at] < 0)
		ps->first[at] = ps->n;
	ps->count += param_size(p);
	ps->total += param_span(p);
	if (ps->total > INT64_MAX / 16)
		b->failed = true;
	ps->n++;
}

static void add_attention(struct build *b, const struct config *c, int l)
{
	int D = c->hidden_size, H = c->num_attention_heads, G = c->num_key_value_heads,
	    d = c->head_dim;
	int C = c->kv_latent_dim, r = c->rope_dim, n = d - r;

	if (c->layer_type[l] == LAYER_MLA) {
		add(b, P_QNOPE, l, -1, H * n, D, "self_attn.q_nope_proj");
		add(b, P_QROPE, l, -1, H * r, D, "self_attn.q_rope_proj");
		add(b, P_QNOPE_NORM, l, -1, n, 0, "self_attn.q_nope_norm");
		add(b, P_QROPE_NORM, l, -1, r, 0, "self_attn.q_rope_norm");
		add(b, P_KVDOWN, l, -1, C, D, "self_attn.kv_down_proj");
		add(b, P_KVDOWN_NORM, l, -1, C, 0, "self_attn.kv_down_norm");
		add(b, P_KNOPE, l, -1, G * n, C, "self_attn.k_nope_proj");
		add(b, P_KROPE, l, -1, G * r, C, "self_attn.k_rope_proj");
		add(b, P_MLA_V, l, -1, G * d, C, "self_attn.v_proj");
	} else {
		add(b, P_Q, l, -1, H * d, D, "self_attn.q_proj");
		add(b, P_K, l, -1, G * d, D, "self_attn.k_proj");
		add(b, P_V, l, -1, G * d, D, "self_attn.v_proj");
		add(b, P_QNORM, l, -1, d, 0, "self_attn.q_norm");
		add(b, P_KNORM, l, -1, d, 0, "self_attn.k_norm");
	}
	add(b, P_O, l, -1, D, H * d, "self_attn.o_proj");
}

/* gate, up, down: kinds of the three follow each other, so that params_get can count in steps of
 * three. */
static void add_ffn(struct build *b, enum param_kind gate, int l, int e, int F, int D,
    const char *prefix)
{
	static const char *const part[] = { "gate_proj", "up_proj", "down_proj" };
	char name[40];

	for (int i = 0; i < 3; i++) {
		if (e < 0)
			snprintf(name, sizeof name, "%s.%s", prefix, part[i]);
		else
			snprintf(name, sizeof name, "%s.%d.%s", prefix, e, part[i]);
		add(b, (enum param_kind)(gate + i), l, e, i < 2 ? F : D, i < 2 ? D : F, name);
	}
}

static void add_mlp(struct build *b, const struct config *c, int l)
{
	int D = c->hidden_size, F = c->moe_intermediate_size;

	if (!c->sparse[l]) {
		add_ffn(b, P_MLP_GATE, l, -1, c->intermediate_size, D, "mlp");
		return;
	}
	add(b, P_GATE, l, -1, c->num_experts, D, "mlp.gate");
	for (int e = 0; e < c->num_experts; e++)
		add_ffn(b, P_EXP_GATE, l, e, F, D, "mlp.experts");
	for (int s = 0; s < c->num_shared_experts; s++)
		add_ffn(b, P_SH_GATE, l, s, F, D, "mlp.shared_experts");
}

static void add_all(struct build *b, const struct config *c)
{
	int D = c->hidden_size, look = config_lookahead_rows(c);

	add(b, P_EMBED, -1, -1, c->vocab_size, D, "model.embed_tokens");
	if (!c->tie_word_embeddings)
		add(b, P_HEAD, -1, -1, c->vocab_size, D, "lm_head");
	for (int l = 0; l < c->num_hidden_layers; l++) {
		add(b, P_IN_NORM, l, -1, D, 0, "input_layernorm");
		add(b, P_POST_NORM, l, -1, D, 0, "post_attention_layernorm");
		add_attention(b, c, l);
		add_mlp(b, c, l);
	}
	add(b, P_NORM, -1, -1, D, 0, "model.norm");
	if (look) {
		add(b, P_LOOK0, -1, -1, D / 4, D, "model.lookahead_router.proj.0");
		add(b, P_LOOK2, -1, -1, look, D / 4, "model.lookahead_router.proj.2");
	}
}

static uint32_t hash_name(const char *s)		/* FNV-1a */
{
	uint32_t h = 2166136261u;

	while (*s)
		h = (h ^ (unsigned char)*s++) * 16777619u;
	return h;
}

static int build_hash(struct params *ps)
{
	ps->hash_size = 16;
	while (ps->hash_size < 2 * ps->n)
		ps->hash_size *= 2;
	ps->hash = malloc((size_t)ps->hash_size * sizeof *ps->hash);
	if (!ps->hash)
		return -1;
	memset(ps->hash, -1, (size_t)ps->hash_size * sizeof *ps->hash);
	for (int i = 0; i < ps->n; i++) {
		uint32_t at = hash_name(ps->p[i].name) & (uint32_t)(ps->hash_size - 1);

		while (ps->hash[at] >= 0)
			at = (at + 1) & (uint32_t)(ps->hash_size - 1);
		ps->hash[at] = i;
	}
	return 0;
}

int params_build(struct params *ps, const struct config *c, struct err *e)
{
	struct build b = { ps, 0, false };
	size_t nfirst = (size_t)P_KINDS * ((size_t)c->num_hidden_layers + 1);

	memset(ps, 0, sizeof *ps);
	ps->layers = c->num_hidden_layers;
	ps->first = malloc(nfirst * sizeof *ps->first);
	if (ps->first) {
		memset(ps->first, -1, nfirst * sizeof *ps->first);
		add_all(&b, c);
	}
	if (ps->first && !b.failed && build_hash(ps) == 0)
		return 0;
	params_free(ps);
	return err_set(e, EX_OSERR, "model is too large: its parameters cannot be listed");
}

int params_divide(struct params *ps, int n, int here, struct err *e)
{
	int experts = 0;

	for (int i = 0; i < ps->n; i++)
		if (ps->p[i].kind == P_EXP_GATE && ps->p[i].expert >= experts)
			experts = ps->p[i].expert + 1;
	if (n == 1)
		return 0;
	if (experts == 0 || experts % n != 0)
		return err_set(e, EX_USAGE, "%d experts cannot be divided over %d ranks", experts,
		    n);
	ps->here = here;
	ps->total = 0;
	for (int i = 0; i < ps->n; i++) {
		struct param *p = &ps->p[i];

		if (p->kind >= P_EXP_GATE && p->kind <= P_EXP_DOWN)
			p->owner = p->expert / (experts / n);
		if (p->owner > 0) {
			p->off = params_get(ps, p->kind, p->layer, p->expert % (experts / n))->off;
			continue;
		}
		p->off = ps->total;
		ps->total += param_span(p);
	}
	return 0;
}

const struct param *params_find(const struct params *ps, const char *name)
{
	uint32_t mask = (uint32_t)ps->hash_size - 1;

	for (uint32_t at = hash_name(name) & mask; ps->hash[at] >= 0; at = (at + 1) & mask)
		if (strcmp(ps->p[ps->hash[at]].name, name) == 0)
			return &ps->p[ps->hash[at]];
	return NULL;
}

const struct param *params_get(const struct params *ps, enum param_kind k, int layer, int expert)
{
	bool ffn = k >= P_EXP_GATE && k <= P_SH_DOWN;
	int at;

	if (layer < -1 || layer >= ps->layers || (expert >= 0) != ffn)
		return NULL;
	at = ps->first[k * (ps->layers + 1) + layer + 1];
	if (at < 0)
		return NULL;
	if (ffn)
		at = expert < (ps->n - at + 2) / 3 ? at + 3 * expert : ps->n;
	if (at >= ps->n || ps->p[at].kind != k || ps->p[at].layer != layer ||
	    ps->p[at].expert != expert)
		return NULL;
	return &ps->p[at];
}

int params_match(const struct params *ps, int npatterns, const char *const patterns[], bool *hit,
    struct err *e)
{
	for (int i = 0; i < npatterns; i++) {
		bool any = false;

		for (int j = 0; j < ps->n; j++)
			if (fnmatch(patterns[i], ps->p[j].name, 0) == 0)
				hit[j] = any = true;
		if (!any)
			return err_set(e, EX_USAGE,
			    "no parameter has a name like \"%s\" (chr-ls lists them)", patterns[i]);
	}
	return 0;
}

int64_t params_active(const struct params *ps, const struct config *c)
{
	int64_t expert = 3 * (int64_t)c->hidden_size * c->moe_intermediate_size;

	return ps->count - (int64_t)c->num_sparse * (c->num_experts - c->num_experts_per_tok) *
	    expert;
}

void params_free(struct params *ps)
{
	free(ps->p);
	free(ps->hash);
	free(ps->first);
	memset(ps, 0, sizeof *ps);
}
