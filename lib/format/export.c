#include "format/export.h"

#include <stdlib.h>
#include <unistd.h>

#include "arch/arch.h"
#include "base/file.h"
#include "base/jsonfile.h"

static const char python[] = {
#include "format/modeling_chronos.inc"
};

/* Full attention with norms on heads, no shared expert, positions as they are, or stretched as that
 * family has it. */
bool export_as_qwen3_moe(const struct config *c)
{
	for (int l = 0; l < c->num_hidden_layers; l++) {
		const struct block *b = &c->block[l];

		if (b->attn != ATTN_FULL || b->qk_norm != QK_NORM_HEAD || b->norm_after ||
		    (b->rope.kind != ROPE_DEFAULT && c->arch != &arch_qwen3_moe) || b->shared > 0)
			return false;
	}
	return c->num_sparse > 0;
}

static json_t *id_or_null(int id)
{
	return id >= 0 ? json_integer(id) : json_null();
}

static json_t *dense_layers(const struct config *c)
{
	json_t *list = json_array();

	for (int l = 0; l < c->num_hidden_layers; l++)
		if (!c->block[l].sparse)
			json_array_append_new(list, json_integer(l));
	return list;
}

/* With the keys of transformers before and since version 5. */
static json_t *qwen3_moe(const struct config *c)
{
	json_t *ours = config_to_json(c), *o = json_pack("{s:[s], s:s, s:b, s:f, s:s, s:f, s:b, "
	    "s:b, s:n, s:O?, s:i, s:o}",
	    "architectures", "Qwen3MoeForCausalLM", "model_type", "qwen3_moe", "attention_bias",
	    c->block[0].qkv_bias, "attention_dropout", 0.0, "hidden_act", "silu",
	    "initializer_range", 0.02, "use_cache", 1, "use_sliding_window", 0,
	    "sliding_window", "rope_scaling", json_object_get(ours, "rope_scaling"),
	    "decoder_sparse_step", 1, "mlp_only_layers", dense_layers(c));
	const struct { const char *key; int value; } sizes[] = {
		{ "vocab_size", c->vocab_size }, { "hidden_size", c->hidden_size },
		{ "intermediate_size", c->intermediate_size },
		{ "moe_intermediate_size", c->moe_intermediate_size },
		{ "num_hidden_layers", c->num_hidden_layers },
		{ "num_attention_heads", c->num_attention_heads },
		{ "num_key_value_heads", c->num_key_value_heads }, { "head_dim", c->head_dim },
		{ "num_experts", c->num_experts },
		{ "num_experts_per_tok", c->num_experts_per_tok },
		{ "max_position_embeddings", c->max_position_embeddings },
	};

	for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
		json_object_set_new(o, sizes[i].key, json_integer(sizes[i].value));
	json_decref(ours);
	json_object_set_new(o, "norm_topk_prob", json_boolean(c->norm_topk_prob));
	json_object_set_new(o, "tie_word_embeddings", json_boolean(c->tie_word_embeddings));
	json_object_set_new(o, "rms_norm_eps", json_real(c->rms_norm_eps));
	json_object_set_new(o, "rope_theta", json_real(c->rope_theta));
	json_object_set_new(o, "bos_token_id", id_or_null(c->bos_token_id));
	json_object_set_new(o, "eos_token_id", id_or_null(c->eos_token_id));
	json_object_set_new(o, "pad_token_id", id_or_null(c->pad_token_id));
	return o;
}

/* Does the Python file compute these positions as we do? */
static bool known_rope(const struct config *c)
{
	for (int l = 0; l < c->num_hidden_layers; l++) {
		enum rope_kind k = c->block[l].rope.kind;
		const json_t *o = json_object_get(c->raw, "rope_scaling");

		if (k == ROPE_LLAMA3 || (k == ROPE_YARN && (c->arch != &arch_chronos ||
		    json_object_get(o, "mscale") || json_object_get(o, "mscale_all_dim"))))
			return false;
	}
	return true;
}

static json_t *chronos(const struct config *c)
{
	json_t *o = config_to_json(c);

	json_object_set_new(o, "model_type", json_string("chronos"));
	json_object_set_new(o, "architectures", json_pack("[s]", "ChronosForCausalLM"));
	json_object_set_new(o, "auto_map", json_pack("{s:s, s:s, s:s}", "AutoConfig",
	    "modeling_chronos.ChronosConfig", "AutoModel", "modeling_chronos.ChronosModel",
	    "AutoModelForCausalLM", "modeling_chronos.ChronosForCausalLM"));
	return o;
}

/* As a family publishes it, the head of ours left out. */
static json_t *without_lookahead(const struct config *c)
{
	json_t *o = config_to_json(c);

	json_object_set_new(o, "lookahead_steps", json_integer(0));
	return o;
}

/* A Qwen3-MoE that was trained here has keys of ours. */
bool export_published(const struct config *c)
{
	return (!c->arch->ours || (c->arch == &arch_qwen3_moe && !json_object_get(c->raw,
	    "chronos_format"))) && c->lookahead_steps == 0;
}

json_t *export_config(const struct config *c, const char *name, bool *needs_python, struct err *e)
{
	*needs_python = false;
	if (!c->arch->ours)
		return without_lookahead(c);
	*needs_python = !export_as_qwen3_moe(c);
	if (!*needs_python)
		return qwen3_moe(c);
	if (known_rope(c))
		return chronos(c);
	err_set(e, EX_DATAERR, "%s: rope_scaling of this kind is not exported", name);
	return NULL;
}

/* The text of an added token; NULL: there is none of this id. */
static const char *added_token(const json_t *tokenizer, int id)
{
	size_t i;
	json_t *t;

	json_array_foreach(json_object_get(tokenizer, "added_tokens"), i, t)
		if (json_integer_value(json_object_get(t, "id")) == id)
			return json_string_value(json_object_get(t, "content"));
	return NULL;
}

static json_t *begins_with(const char *token, int id)
{
	return json_pack("{s:s, s:[{s:{s:s, s:i}}, {s:{s:s, s:i}}], s:[{s:{s:s, s:i}}, "
	    "{s:{s:s, s:i}}, {s:{s:s, s:i}}], s:{s:{s:s, s:[i], s:[s]}}}", "type",
	    "TemplateProcessing", "single", "SpecialToken", "id", token, "type_id", 0, "Sequence",
	    "id", "A", "type_id", 0, "pair", "SpecialToken", "id", token, "type_id", 0, "Sequence",
	    "id", "A", "type_id", 0, "Sequence", "id", "B", "type_id", 1, "special_tokens", token,
	    "id", token, "ids", id, "tokens", token);
}

#define JSON_FORM (JSON_INDENT(2) | JSON_REAL_PRECISION(17))

/* The object of a file of dir: 0 with NULL where it is not there. */
static int get_json(const char *dir, const char *name, json_t **o, struct err *e)
{
	char *path = file_join(dir, name);
	bool there = access(path, F_OK) == 0;

	*o = there ? jsonfile_load(path, e) : NULL;
	free(path);
	return there && !*o ? -1 : 0;
}

int export_tokenizer(const char *dir, int bos, struct err *e)
{
	json_t *o, *config = NULL;
	const char *token;
	int rc = get_json(dir, "tokenizer.json", &o, e);

	if (rc == 0)
		rc = get_json(dir, "tokenizer_config.json", &config, e);
	token = o ? added_token(o, bos) : NULL;
	if (rc == 0 && token && !json_is_object(json_object_get(o, "post_processor"))) {
		json_object_set_new(o, "post_processor", begins_with(token, bos));
		rc = jsonfile_put(dir, "tokenizer.json", json_incref(o), JSON_FORM, e);
	}
	if (rc == 0 && token && config) {
		json_object_set_new(config, "add_bos_token", json_true());
		rc = jsonfile_put(dir, "tokenizer_config.json", json_incref(config), JSON_FORM, e);
	}
	json_decref(o);
	json_decref(config);
	return rc;
}

int export_python(const char *dir, struct err *e)
{
	char *path = file_join(dir, EXPORT_PYTHON);
	int rc = file_put(path, python, sizeof python, e);

	free(path);
	return rc;
}
