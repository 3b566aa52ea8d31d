#include "arch/arch.h"

#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arch/config.h"

/* One a file, but for what is the same with a part more or less. */
#define FAMILIES(F) F(chronos) F(deepseek_v2) F(deepseek_v3) F(dots1) F(ernie4_5_moe) \
	F(glm4_moe) F(glm4_moe_lite) F(gpt_oss) F(granitemoe) \
	F(hunyuan_v1_moe) F(lfm2) F(lfm2_moe) F(llama) F(minimax_m2) F(mixtral) F(olmoe) \
	F(qwen2) F(qwen2_moe) F(qwen3) F(qwen3_5) F(qwen3_5_moe) F(qwen3_5_moe_text) \
	F(qwen3_5_text) F(qwen3_moe) F(qwen3_next)
#define DECLARE(name) extern const struct arch arch_##name;
#define ADDRESS(name) &arch_##name,

FAMILIES(DECLARE)
static const struct arch *const families[] = { FAMILIES(ADDRESS) };
#define NFAMILIES (sizeof families / sizeof *families)

static struct opt_list ignored;

struct opt arch_opts[] = {
	{ 0, "ignore-key", OPT_LIST, &ignored, 0, 0, "NAME",
	    "go on without this key of config.json, which is not supported; may be repeated" },
	{ 0 }
};

/* Keys of transformers that change no number of inference, whatever their value. */
static const char *const harmless[] = {
	"architectures", "auto_map", "aux_loss_alpha", "aux_loss_coef", "bad_words_ids",
	"begin_suppress_tokens", "chunk_size_feed_forward", "decoder_start_token_id",
	"diversity_penalty", "do_sample", "dtype", "early_stopping",
	"encoder_no_repeat_ngram_size", "eod_token_id", "ep_size",
	"exponential_decay_length_penalty", "finetuning_task", "flash_attn",
	"forced_bos_token_id", "forced_eos_token_id", "id2label", "image_token_id",
	"initializer_range", "keys_to_ignore_at_inference", "label2id", "length_penalty",
	"max_length", "min_length", "model_type", "no_repeat_ngram_size", "num_beam_groups",
	"num_beams", "num_return_sequences", "output_attentions", "output_hidden_states",
	"output_router_logits", "output_scores", "prefix", "pretraining_tp", "problem_type",
	"remove_invalid_values", "repetition_penalty", "return_dict",
	"return_dict_in_generate", "router_aux_loss_coef", "router_jitter_noise",
	"router_z_loss_coef", "sep_token_id", "seq_aux", "suppress_tokens",
	"task_specific_params", "temperature", "tf_legacy_loss", "tokenizer_class", "top_k",
	"top_p", "torch_dtype", "torchscript", "transformers_version", "typical_p",
	"transformers.js_config", "unsloth_fixed", "unsloth_version", "use_bfloat16", "use_cache",
	"vision_end_token_id", "vision_start_token_id",
	"quantization_config",			/* quantization_read() */
	"num_nextn_predict_layers",		/* its tensors are passed over: arch_harmless() */
};

static bool in_list(const char *const *list, size_t n, const char *key)
{
	for (size_t i = 0; i < n && list[i]; i++)
		if (strcmp(list[i], key) == 0)
			return true;
	return false;
}

static const struct arch *by_architecture(const char *name)
{
	for (size_t i = 0; name && i < NFAMILIES; i++)
		if (in_list(families[i]->architectures, 16, name))
			return families[i];
	return NULL;
}

static const struct arch *by_type(const char *type)
{
	for (size_t i = 0; type && i < NFAMILIES; i++)
		if (strcmp(families[i]->model_type, type) == 0 ||
		    (families[i]->also && strcmp(families[i]->also, type) == 0))
			return families[i];
	return NULL;
}

static int unknown(const char *name, const char *key, const char *value, struct err *e)
{
	char list[512] = "";

	for (size_t i = 0; i < NFAMILIES; i++)
		snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", i ? ", " : "",
		    families[i]->model_type);
	return err_set(e, EX_DATAERR, "%s: %s \"%s\" is not supported; supported are %s", name, key,
	    value, list);
}

bool arch_named(const json_t *o)
{
	static const char *const own[] = { "model_type", "architectures", "chronos_format",
	    "use_hybrid_attention", "use_moe", "kv_latent_dim", "rope_dim", "num_shared_experts",
	    "sliding_window_size", "lookahead_steps", "lookahead_scope", "lambda_balance",
	    "lambda_temporal", "lambda_lookahead", "lambda_ahead" };
	bool any = false;

	for (size_t i = 0; i < sizeof own / sizeof *own; i++)
		any |= json_object_get(o, own[i]) != NULL;
	return any;
}

const struct arch *arch_find(const json_t *o, const char *name, struct err *e)
{
	const json_t *type = json_object_get(o, "model_type");
	const char *first = json_string_value(json_array_get(json_object_get(o, "architectures"),
	    0));
	const struct arch *a;

	if (type && !json_is_null(type)) {
		if (!json_is_string(type))
			err_set(e, EX_DATAERR, "%s: model_type: must be a string", name);
		else if ((a = by_type(json_string_value(type))))
			return a;
		else
			unknown(name, "model_type", json_string_value(type), e);
		return NULL;
	}
	if (!first && json_is_object(json_object_get(o, "text_config"))) {
		err_set(e, EX_DATAERR, "%s: neither model_type nor architectures, which say what "
		    "text_config is of", name);
		return NULL;
	}
	if (!first)
		return &arch_chronos;		/* a new model, of which only sizes are given */
	if (!(a = by_architecture(first)))
		unknown(name, "architecture", first, e);
	return a;
}

const char *arch_spelling(const struct arch *a, const json_t *raw, const char *key)
{
	for (const struct key_alias *x = a ? a->aliases : NULL; x && x->key; x++)
		if (strcmp(x->key, key) == 0 && json_object_get(raw, x->theirs))
			return x->theirs;
	return key;
}

bool arch_knows(const struct arch *a, const char *key)
{
	for (const struct key *const *table = a->keys; *table; table++)
		for (const struct key *k = *table; k->key; k++)
			if (strcmp(k->key, key) == 0)
				return true;
	for (const struct key_alias *x = a->aliases; x && x->key; x++)
		if (strcmp(x->theirs, key) == 0)
			return true;
	return a->reads && in_list(a->reads, 64, key);
}

static double fallback_of(const struct arch *a, const struct key *k)
{
	for (const struct key_fallback *f = a->fallbacks; f && f->key; f++)
		if (strcmp(f->key, k->key) == 0)
			return f->value;
	return k->fallback;
}

int arch_read_keys(struct config *c, const struct keys *k)
{
	for (const struct key *const *table = k->arch->keys; *table; table++)
		for (const struct key *f = *table; f->key; f++)
			if (keys_read(k, f, fallback_of(k->arch, f), c) < 0)
				return -1;
	return 0;
}

/* --- keys that nobody reads --- */

/* Does a value say "without this"? What nobody knows has no other default. */
static bool is_off(const json_t *v)
{
	return json_is_null(v) || json_is_false(v) || (json_is_array(v) &&
	    json_array_size(v) == 0) ||
	    (json_is_object(v) && json_object_size(v) == 0) ||
	    (json_is_string(v) && *json_string_value(v) == '\0');
}

/* A list has a value where each of its entries, one a layer, has it. */
static bool same_value(const json_t *v, const char *text)
{
	json_t *o = json_loads(text, JSON_DECODE_ANY, NULL);
	bool same = json_is_number(v) && json_is_number(o)
	    ? json_number_value(v) == json_number_value(o) :
	    json_equal(v, o);

	json_decref(o);
	for (size_t i = 0; json_is_array(v) && (i == 0 || same) && i < json_array_size(v); i++)
		same = same_value(json_array_get(v, i), text);
	return same;
}

static int refuse(const struct keys *k, const char *key, const json_t *v, const char *only)
{
	char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT), why[128] = "";

	if (only)
		snprintf(why, sizeof why, ", only %s", only);
	err_set(k->e, EX_DATAERR,
	    "%s: %s: %.80s%s is not supported for %s%s (--ignore-key %s goes on without it)",
	    k->name, key, text, strlen(text) > 80 ? "..." : "", k->arch->model_type, why, key);
	free(text);
	return -1;
}

int arch_check_key(const struct keys *k, const char *key, const json_t *v, const char *shown)
{
	const char *only = NULL;

	if (*key == '_' || in_list(harmless, sizeof harmless / sizeof *harmless, key) ||
	    in_list(ignored.v, (size_t)ignored.n, shown))
		return 0;
	for (const struct key_off *x = k->arch->ignores; x && x->key; x++) {
		if (strcmp(x->key, key) != 0)
			continue;
		if (!x->value || json_is_null(v) || same_value(v, x->value))
			return 0;
		only = only ? only : x->value;
	}
	return !only && is_off(v) ? 0 : refuse(k, shown, v, only);
}

int arch_check_keys(const struct keys *k)
{
	const char *key;
	json_t *v;

	json_object_foreach((json_t *)k->raw, key, v)
		if (!arch_knows(k->arch, key) && arch_check_key(k, key, v, key) < 0)
			return -1;
	if (k->whole == k->raw)
		return 0;
	json_object_foreach((json_t *)k->whole, key, v)
		if (v != k->raw && !arch_knows(k->arch, key) && arch_check_key(k, key, v, key) < 0)
			return -1;
	return 0;
}

/* --- tensors --- */

const char *arch_harmless(const struct config *c, const char *tensor, int *layer)
{
	int l = -1, end = 0;

	*layer = -1;
	if (fnmatch("*rotary_emb.inv_freq", tensor, 0) == 0)
		return "frequencies, which follow from config.json";
	if (strncmp(tensor, "mtp.", 4) == 0 || strncmp(tensor, "model.mtp.", 10) == 0)
		return "multi-token prediction";
	if (strncmp(tensor, "model.visual.", 13) == 0 || strncmp(tensor, "visual.", 7) == 0)
		return "vision";
	if (c->scale_rows > 0 && (fnmatch("*.activation_scale", tensor, 0) == 0 ||
	    fnmatch("*.input_scale", tensor, 0) == 0))
		return "scales of activations, which stay floats";
	if (sscanf(tensor, "model.layers.%9d.%n", &l, &end) != 1 || end == 0 ||
	    l < c->num_hidden_layers)
		return NULL;
	*layer = l;
	return "multi-token prediction";
}

void arch_mtp_mark(int layer, char name[64])
{
	snprintf(name, 64, "model.layers.%d.eh_proj.weight", layer);
}
