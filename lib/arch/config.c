#include "arch/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "arch/arch.h"
#include "arch/family.h"
#include "arch/quantization.h"
#include "base/file.h"
#include "base/jsonfile.h"

/* A key given on the command line must count: it drops the key of the file that would go before
 * it. */
static void drop_stronger(const struct arch *a, json_t *o, const char *key)
{
	static const struct { const char *key, *stronger; } pairs[] = {
		{ "use_hybrid_attention", "layer_types" }, { "use_moe", "mlp_layer_types" },
		{ "decoder_sparse_step", "mlp_layer_types" }, { "mlp_only_layers",
		"mlp_layer_types" },
		{ "rope_parameters", "rope_scaling" }, { "inference_rope_scaling", "rope_scaling" },
		{ "sliding_window", "sliding_window_size" },
	};
	static const char *const inner[] = { "rope_theta", "partial_rotary_factor" },
	    *const objects[] = { "rope_scaling", "rope_parameters" };

	for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
		if (strcmp(key, pairs[i].key) == 0)
			json_object_del(o, pairs[i].stronger);
	for (size_t i = 0; i < sizeof inner / sizeof *inner; i++)
		for (size_t j = 0; strcmp(key, inner[i]) == 0 && j < 2; j++)
			json_object_del(json_object_get(o, objects[j]), key);
	for (const struct key_alias *x = a->aliases; x && x->key; x++)
		if (strcmp(key, x->key) == 0)
			json_object_del(o, x->theirs);
		else if (strcmp(key, x->theirs) == 0)
			json_object_del(o, x->key);
}

static int apply_set(const struct arch *a, json_t *o, const char *set, struct err *e)
{
	const char *eq = strchr(set, '=');
	json_t *v;
	char key[64];

	if (!eq || eq == set)
		return err_set(e, EX_USAGE, "--set %s: not of the form key=value", set);
	snprintf(key, sizeof key, "%.*s", (int)(eq - set), set);
	if (!arch_knows(a, key))
		return err_set(e, EX_USAGE, "--set %s: unknown key", set);
	v = json_loads(eq + 1, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, NULL);
	if (!v)
		v = json_string(eq + 1);
	if (!v)
		return err_set(e, EX_USAGE, "--set %s: value is not UTF-8", set);
	drop_stronger(a, o, key);
	json_object_set_new(o, key, v);
	return 0;
}

/* A copy in which every key has the spelling of struct key. */
static json_t *respell(const struct keys *k)
{
	json_t *o = json_copy((json_t *)k->raw), *theirs;

	for (const struct key_alias *x = k->arch->aliases; o && x && x->key; x++) {
		const json_t *own = json_object_get(o, x->key);

		if (!(theirs = json_object_get(o, x->theirs)))
			continue;
		if (own && !json_is_null(own) && !json_equal(own, theirs)) {
			err_set(k->e, EX_DATAERR, "%s: %s and %s differ", k->name, x->key,
			    x->theirs);
			json_decref(o);
			return NULL;
		}
		json_object_set(o, x->key, theirs);
		json_object_del(o, x->theirs);
	}
	return o;
}

/* The reference's weight is of a raw sum over layers and choices. On a term that is 1 at even load
 * it lets routers collapse: 8 layers of 16 experts, 150 steps of 1,024 tokens of shared text, load
 * entropy 0.4-0.7 at 0.02, 0.94 at 0.1. */
static void balance_default(struct config *c, const struct keys *k)
{
	if (c->format == 2 && !keys_get(k, "lambda_balance"))
		c->lambda_balance = 0.1;
}

json_t *config_keys(const struct config *c)
{
	return c->arch && c->arch->within ? json_object_get(c->raw, c->arch->within) : c->raw;
}

/* Where the keys are is known when the family is. */
static int find_keys(struct config *c, struct keys *k)
{
	k->whole = c->raw;
	k->raw = config_keys(c);
	if (!json_is_object(k->raw))
		return err_set(k->e, EX_DATAERR, "%s: %s: %s", k->name, c->arch->within,
		    k->raw ? "must be an object" : "is missing");
	return 0;
}

static int read_all(struct config *c, struct keys *k)
{
	if (!(k->o = respell(k)))
		return -1;
	if (arch_check_keys(k) < 0 || arch_read_keys(c, k) < 0 || k->arch->read(c, k) < 0)
		return -1;
	if (c->num_sparse == 0)
		c->lookahead_steps = 0;		/* there is nothing to look for */
	balance_default(c, k);
	return quantization_read(c, k) < 0 ? -1 : family_ids(c, k);
}

static int config_read(struct config *c, const json_t *o, const char *name, int nsets,
    const char *const sets[], struct err *e)
{
	struct keys k = { .name = name, .nsets = nsets, .sets = sets, .e = e };
	int r = 0;

	memset(c, 0, sizeof *c);
	c->embedding_multiplier = c->residual_multiplier = c->logits_scaling = 1;
	if (!json_is_object(o))
		return err_set(e, EX_DATAERR, "%s: not a JSON object", name);
	c->raw = json_deep_copy(o);
	if (!c->raw)
		return err_set(e, EX_OSERR, "out of memory");
	for (int i = 0; i < nsets; i++)
		if (strncmp(sets[i], "model_type=", 11) == 0)
			json_object_set_new(c->raw, "model_type", json_string(sets[i] + 11));
	c->arch = k.arch = arch_find(c->raw, name, e);
	r = c->arch ? find_keys(c, &k) : -1;
	for (int i = 0; i < nsets && r == 0; i++)
		r = apply_set(c->arch, config_keys(c), sets[i], e);
	if (r == 0) {
		c->names = c->arch->names;
		r = read_all(c, &k);
		json_decref((json_t *)k.o);
	}
	if (r < 0)
		config_free(c);
	return r;
}

int config_from_json(struct config *c, const json_t *o, int nsets, const char *const sets[],
    struct err *e)
{
	return config_read(c, o, "config", nsets, sets, e);
}

int config_from_object(struct config *c, const json_t *o, const char *name, int nsets,
    const char *const sets[], struct err *e)
{
	return config_read(c, o, name, nsets, sets, e);
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
	if (dir && json_is_object(o) && !arch_named(o))
		r = err_set(e, EX_DATAERR, "%s: neither model_type nor architectures, and no key "
		    "that only a model of chronos has, such as chronos_format", file);
	else
		r = o ? config_read(c, o, file, nsets, sets, e) : -1;
	json_decref(o);
	free(file);
	return r;
}

static json_t *layer_list(const struct config *c, bool mlp)
{
	json_t *a = json_array();

	for (int i = 0; i < c->num_hidden_layers; i++)
		json_array_append_new(a, json_string(mlp ? (c->block[i].sparse ? "sparse"
		    : "dense") :
		    chronos_attn_names[c->block[i].attn]));
	return a;
}

static void set_default(json_t *o, const char *key, json_t *v)
{
	if (json_object_get(o, key))
		json_decref(v);
	else
		json_object_set_new(o, key, v);
}

static json_t *key_json(const struct config *c, const struct key *f)
{
	const char *at = (const char *)c + f->at;

	if (f->kind == KEY_REAL)
		return json_real(*(const double *)at);
	if (f->kind == KEY_BOOL)
		return json_boolean(*(const bool *)at);
	if (f->kind == KEY_ID && *(const int *)at < 0)
		return json_null();
	return json_integer(*(const int *)at);
}

static json_t *rope_json(const struct rope *r)
{
	json_t *o;

	if (r->kind == ROPE_LINEAR || r->kind == ROPE_DYNAMIC)
		return json_pack("{s:s, s:f}", "type", r->kind == ROPE_LINEAR ? "linear"
		    : "dynamic", "factor", r->factor);
	if (r->kind == ROPE_LLAMA3)
		return json_pack("{s:s, s:f, s:i, s:f, s:f}", "rope_type", "llama3", "factor",
		    r->factor,
		    "original_max_position_embeddings", r->original_max, "low_freq_factor", r->slow,
		    "high_freq_factor", r->fast);
	if (r->kind == ROPE_DEFAULT)
		return json_null();
	o = json_pack("{s:s, s:f, s:i, s:f, s:f, s:f}", "type", "yarn", "factor", r->factor,
	    "original_max_position_embeddings", r->original_max, "beta_fast", r->fast,
	    "beta_slow", r->slow, "attention_factor", r->magnitude);
	if (!r->truncate)
		json_object_set_new(o, "truncate", json_false());
	return o;
}

/* What only our own readers know besides the plain values. */
static void our_keys(const struct config *c, json_t *o)
{
	bool hybrid = false;

	for (int i = 0; i < c->num_hidden_layers; i++)
		hybrid |= c->block[i].attn == ATTN_MLA;
	json_object_set_new(o, "layer_types", layer_list(c, false));
	json_object_set_new(o, "mlp_layer_types", layer_list(c, true));
	json_object_set_new(o, "use_hybrid_attention", json_boolean(hybrid));
	json_object_set_new(o, "use_moe", json_boolean(c->num_sparse > 0));
	json_object_set_new(o, "lookahead_scope", json_string(c->lookahead_per_layer ? "per_layer"
	    : "layer_mean"));
	json_object_set_new(o, "rope_scaling", rope_json(&c->rope));
	set_default(o, "hidden_act", json_string("silu"));
}

/* The keys of the network of text, new. What else is in the model is not written. */
static json_t *text_keys(const struct config *c)
{
	const char *same[] = { "bos_token_id", "eos_token_id", "pad_token_id" };
	json_t *o = json_deep_copy(c->arch->text ? config_keys(c) : c->raw);

	if (!c->arch->text)
		return o ? o : json_object();
	for (size_t i = 0; i < sizeof same / sizeof *same; i++)
		if (!json_object_get(o, same[i]) && json_object_get(c->raw, same[i]))
			json_object_set(o, same[i], json_object_get(c->raw, same[i]));
	json_object_set_new(o, "tie_word_embeddings", json_boolean(c->tie_word_embeddings));
	json_object_set_new(o, "model_type", json_string(c->arch->text->model_type));
	json_object_set_new(o, "architectures", json_pack("[s]",
	    c->arch->text->architectures[0]));
	return o;
}

/* Layers of multi-token prediction are not written: none are promised. */
static void no_mtp(json_t *o)
{
	static const char *const keys[] = { "num_nextn_predict_layers", "mtp_num_hidden_layers" };

	for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
		if (json_object_get(o, keys[i]))
			json_object_set_new(o, keys[i], json_integer(0));
}

json_t *config_to_json(const struct config *c)
{
	json_t *o = text_keys(c);

	for (const struct key *const *table = c->arch->keys; *table; table++)
		for (const struct key *f = *table; f->key; f++) {
			const char *name = arch_spelling(c->arch, o, f->key);

			if (!((f->kind == KEY_ID || f->kind == KEY_SAME) &&
			    json_is_array(json_object_get(o, name))))
				json_object_set_new(o, name, key_json(c, f));
		}
	if (c->arch->ours)
		our_keys(c, o);
	json_object_del(o, QUANTIZATION_KEY);
	no_mtp(o);
	set_default(o, "model_type", json_string(c->arch->model_type));
	set_default(o, "architectures", json_pack("[s]", c->arch->architectures[0]));
	return o;
}

void config_free(struct config *c)
{
	json_decref(c->raw);
	c->raw = NULL;
}

bool config_choice_bias(const struct config *c)
{
	bool any = false;

	for (int l = 0; l < c->num_hidden_layers; l++)
		any |= c->block[l].sparse && c->block[l].router_bias;
	return any;
}

bool config_biased(const struct config *c)
{
	bool any = false;

	for (int l = 0; l < c->num_hidden_layers; l++)
		any |= c->block[l].qkv_bias || c->block[l].o_bias || c->block[l].conv_bias ||
		    c->block[l].logit_bias;
	return any;
}

bool config_expert_biased(const struct config *c)
{
	bool any = false;

	for (int l = 0; l < c->num_hidden_layers; l++)
		any |= c->block[l].sparse && c->block[l].expert_bias;
	return any;
}

bool config_recurs(const struct config *c)
{
	bool any = false;

	for (int l = 0; l < c->num_hidden_layers; l++)
		any |= block_recurs(&c->block[l]);
	return any;
}

int config_trains(const struct config *c, struct err *e)
{
	if (!config_recurs(c) && !c->norm_plus_one)
		return 0;
	return err_set(e, EX_UNAVAILABLE, "models of the family %s can be run, but not trained",
	    c->arch->model_type);
}

const struct rope *config_rope(const struct config *c, bool mla)
{
	for (int l = 0; l < c->num_hidden_layers; l++)
		if (block_latent(&c->block[l]) == mla)
			return &c->block[l].rope;
	return NULL;
}

int config_lookahead_rows(const struct config *c)
{
	if (c->lookahead_steps == 0 || c->num_sparse == 0)
		return 0;
	return (c->lookahead_steps + 1) * c->num_experts * (c->lookahead_per_layer ? c->num_sparse
	    : 1);
}

