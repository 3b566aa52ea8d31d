/*
 * qwen3_5_moe: Qwen3.5 and 3.6 with experts: Qwen3-Next with projections of the delta rule apart,
 * and experts in every layer; qwen3_5 is the same with dense MLPs. Published directories hold a
 * network of vision too, which is passed over: the keys of that of text are in text_config, and its
 * tensors have a prefix. Of text alone the three positions of a token (mrope) are one.
 */
#include "arch/arch.h"
#include "arch/family.h"

static const struct key_alias aliases[] = { { "num_experts", "num_local_experts" }, { 0 } };

static const char *const reads[] = { FAMILY_DELTA_READS, NULL };

static const struct key_fallback fallbacks[] = {
	{ "num_experts", 256 }, { "num_experts_per_tok", 8 }, { "moe_intermediate_size", 512 },
	{ "num_key_value_heads", 2 }, { "head_dim", 256 }, { "intermediate_size", 1 }, { 0 }
};

static const struct key_fallback dense_fallbacks[] = {
	{ "num_key_value_heads", 4 }, { "head_dim", 256 }, { 0 }
};

static const struct key_off ignores[] = {
	{ "hidden_act", "\"silu\"" }, { "attention_dropout", NULL },
	{ "attn_output_gate", "true" }, { "mamba_ssm_dtype", NULL },
	{ "mrope_section", NULL }, { "mrope_interleaved", NULL },
	/* of the family before, which this one does not ask */
	{ "norm_topk_prob", NULL }, { "decoder_sparse_step", NULL }, { "mlp_only_layers", NULL },
	{ "mtp_num_hidden_layers", NULL }, { "mtp_use_dedicated_embeddings", NULL },
	{ "vision_config", NULL }, { "video_token_id", NULL }, { "audio_token_id", NULL },
	{ "language_model_only", NULL }, { 0 }
};

#define LAYER(in) in "layers.%d."
#define NAMES(in) \
	{ P_EMBED, in "embed_tokens.weight", 0 }, { P_NORM, in "norm.weight", 0 }, \
	{ P_IN_NORM, LAYER(in) "input_layernorm.weight", 0 }, \
	{ P_POST_NORM, LAYER(in) "post_attention_layernorm.weight", 0 }, \
	{ P_Q, LAYER(in) "self_attn.q_proj.weight", 0 }, \
	{ P_K, LAYER(in) "self_attn.k_proj.weight", 0 }, \
	{ P_V, LAYER(in) "self_attn.v_proj.weight", 0 }, \
	{ P_Q_BIAS, LAYER(in) "self_attn.q_proj.bias", 0 }, \
	{ P_K_BIAS, LAYER(in) "self_attn.k_proj.bias", 0 }, \
	{ P_V_BIAS, LAYER(in) "self_attn.v_proj.bias", 0 }, \
	{ P_QNORM, LAYER(in) "self_attn.q_norm.weight", 0 }, \
	{ P_KNORM, LAYER(in) "self_attn.k_norm.weight", 0 }, \
	{ P_O, LAYER(in) "self_attn.o_proj.weight", 0 }, \
	{ P_O_BIAS, LAYER(in) "self_attn.o_proj.bias", 0 }, \
	{ P_DELTA_QKV, LAYER(in) "linear_attn.in_proj_qkv.weight", 0 }, \
	{ P_DELTA_Z, LAYER(in) "linear_attn.in_proj_z.weight", 0 }, \
	{ P_DELTA_B, LAYER(in) "linear_attn.in_proj_b.weight", 0 }, \
	{ P_DELTA_A, LAYER(in) "linear_attn.in_proj_a.weight", 0 }, \
	{ P_DELTA_LOG_A, LAYER(in) "linear_attn.A_log", 0 }, \
	{ P_DELTA_DT, LAYER(in) "linear_attn.dt_bias", 0 }, \
	{ P_DELTA_NORM, LAYER(in) "linear_attn.norm.weight", 0 }, \
	{ P_CONV, LAYER(in) "linear_attn.conv1d.weight", AT_FLAT }, \
	{ P_MIX, LAYER(in) "linear_attn.out_proj.weight", 0 }, \
	{ P_MLP_GATE, LAYER(in) "mlp.gate_proj.weight", 0 }, \
	{ P_MLP_UP, LAYER(in) "mlp.up_proj.weight", 0 }, \
	{ P_MLP_DOWN, LAYER(in) "mlp.down_proj.weight", 0 }, \
	{ P_GATE, LAYER(in) "mlp.gate.weight", 0 }, \
	{ P_SH_GATE, LAYER(in) "mlp.shared_expert.gate_proj.weight", 0 }, \
	{ P_SH_UP, LAYER(in) "mlp.shared_expert.up_proj.weight", 0 }, \
	{ P_SH_DOWN, LAYER(in) "mlp.shared_expert.down_proj.weight", 0 }, \
	{ P_SH_SIGMOID, LAYER(in) "mlp.shared_expert_gate.weight", 0 }, \
	{ P_EXP_GATE, LAYER(in) "mlp.experts.%d.gate_proj.weight", 0 }, \
	{ P_EXP_UP, LAYER(in) "mlp.experts.%d.up_proj.weight", 0 }, \
	{ P_EXP_DOWN, LAYER(in) "mlp.experts.%d.down_proj.weight", 0 }, \
	{ P_EXP_GATE, LAYER(in) "mlp.experts.gate_up_proj", AT_STACKED | AT_FIRST }, \
	{ P_EXP_UP, LAYER(in) "mlp.experts.gate_up_proj", AT_STACKED | AT_SECOND }, \
	{ P_EXP_DOWN, LAYER(in) "mlp.experts.down_proj", AT_STACKED }

static const struct param_name names[] = { NAMES("model.language_model."), { 0 } };
/* transformers reads such names into a network of text too */
static const struct param_name text_names[] = { NAMES("model."), NAMES("model.language_model."),
	{ 0 } };

static int read_dense(struct config *c, const struct keys *k)
{
	return family_delta(c, k, false);
}

static int read_text(struct config *c, const struct keys *k)
{
	for (int l = 0; l < c->num_hidden_layers; l++)
		c->block[l].sparse = true;
	c->norm_topk_prob = true;
	return family_delta(c, k, false) < 0 ? -1 : family_experts(c, k);
}

/* Whether the head is tied is said of the whole. */
static int read_tied(struct config *c, const struct keys *k)
{
	const json_t *v = json_object_get(k->whole, "tie_word_embeddings");

	if (v && !json_is_null(v) && !json_is_boolean(v))
		return keys_bad(k, "tie_word_embeddings", "must be true or false");
	c->tie_word_embeddings = json_is_true(v);
	return 0;
}

static int read(struct config *c, const struct keys *k)
{
	return read_tied(c, k) < 0 ? -1 : read_text(c, k);
}

static int read_dense_whole(struct config *c, const struct keys *k)
{
	return read_tied(c, k) < 0 ? -1 : read_dense(c, k);
}

static const struct key *const tables[] = { family_keys, family_head_keys, family_moe_keys,
    family_moe_width_keys, family_train_keys, NULL };

static const char *const text_architectures[] = { "Qwen3_5MoeForCausalLM", NULL };
const struct arch arch_qwen3_5_moe_text = { .model_type = "qwen3_5_moe_text",
	.architectures = text_architectures,
	.keys = tables, .fallbacks = fallbacks, .aliases = aliases, .reads = reads,
	.ignores = ignores, .names = text_names, .read = read_text };

static const char *const architectures[] = { "Qwen3_5MoeForConditionalGeneration", NULL };
const struct arch arch_qwen3_5_moe = { .model_type = "qwen3_5_moe",
	.architectures = architectures, .within = "text_config", .text = &arch_qwen3_5_moe_text,
	.keys = tables, .fallbacks = fallbacks, .aliases = aliases, .reads = reads,
	.ignores = ignores, .names = names, .read = read };

static const struct key *const dense_tables[] = { family_keys, family_head_keys,
    family_train_keys, NULL };

static const char *const dense_text_architectures[] = { "Qwen3_5ForCausalLM", NULL };
const struct arch arch_qwen3_5_text = { .model_type = "qwen3_5_text",
	.architectures = dense_text_architectures,
	.keys = dense_tables, .fallbacks = dense_fallbacks, .reads = reads,
	.ignores = ignores, .names = text_names, .read = read_dense };

static const char *const dense_architectures[] = { "Qwen3_5ForConditionalGeneration", NULL };
const struct arch arch_qwen3_5 = { .model_type = "qwen3_5",
	.architectures = dense_architectures, .within = "text_config", .text = &arch_qwen3_5_text,
	.keys = dense_tables, .fallbacks = dense_fallbacks, .reads = reads,
	.ignores = ignores, .names = names, .read = read_dense_whole };
