/*
 * lfm2_moe: LFM2-8B-A1B: short convolutions between two gates in most layers, experts chosen by
 * sigmoid and a bias after some dense layers, under names of its own. lfm2 is the same without
 * experts.
 */
#include "arch/arch.h"
#include "arch/family.h"

#define LAYER "model.layers.%d."
#define FFN LAYER "feed_forward."

static const struct key_alias aliases[] = {
	{ "rms_norm_eps", "norm_eps" }, { "tie_word_embeddings", "tie_embedding" },
	{ "intermediate_size", "block_ff_dim" }, { 0 }
};

#define READS "rope_scaling", "rope_parameters", "layer_types", "conv_bias", "conv_L_cache"
static const char *const reads[] = { READS, "num_dense_layers", "use_expert_bias",
	"routed_scaling_factor", NULL };
static const char *const dense_reads[] = { READS, "full_attn_idxs", "block_multiple_of",
	"block_ffn_dim_multiplier", "block_auto_adjust_ff_dim", NULL };

static const struct key_fallback fallbacks[] = {
	{ "rope_theta", 1e6 }, { "rms_norm_eps", 1e-5 }, { "tie_word_embeddings", 1 },
	{ "num_key_value_heads", 8 }, { "norm_topk_prob", 1 }, { "num_experts", 32 },
	{ "num_experts_per_tok", 4 }, { "moe_intermediate_size", 1792 },
	{ "bos_token_id", 1 }, { "eos_token_id", 2 }, { "pad_token_id", 0 }, { 0 }
};

/* Settings of training, and others that transformers does not read. */
static const struct key_off ignores[] = {
	{ "num_heads", NULL }, { "use_pos_enc", NULL }, { "theta", NULL }, { "block_dim", NULL },
	{ "block_mlp_init_scale", NULL }, { "block_norm_eps", NULL },
	{ "block_out_init_scale", NULL }, { "block_use_swiglu", NULL },
	{ "block_use_xavier_init", NULL }, { "conv_dim", NULL }, { "conv_dim_out", NULL },
	{ "conv_use_xavier_init", NULL }, { 0 }
};

static const struct param_name names[] = {
	{ P_NORM, "model.embedding_norm.weight", 0 },
	{ P_IN_NORM, LAYER "operator_norm.weight", 0 },
	{ P_POST_NORM, LAYER "ffn_norm.weight", 0 },
	{ P_QNORM, LAYER "self_attn.q_layernorm.weight", 0 },
	{ P_KNORM, LAYER "self_attn.k_layernorm.weight", 0 },
	{ P_O, LAYER "self_attn.out_proj.weight", 0 },
	{ P_CONV, LAYER "conv.conv.weight", AT_FLAT }, { P_CONV_BIAS, LAYER "conv.conv.bias", 0 },
	{ P_MLP_GATE, FFN "w1.weight", 0 }, { P_MLP_UP, FFN "w3.weight", 0 },
	{ P_MLP_DOWN, FFN "w2.weight", 0 }, { P_GATE, FFN "gate.weight", 0 },
	{ P_GATE_BIAS, FFN "expert_bias", 0 },
	{ P_EXP_GATE, FFN "experts.%d.w1.weight", 0 }, { P_EXP_UP, FFN "experts.%d.w3.weight", 0 },
	{ P_EXP_DOWN, FFN "experts.%d.w2.weight", 0 },
	{ P_EXP_GATE, FFN "experts.gate_up_proj", AT_STACKED | AT_FIRST },
	{ P_EXP_UP, FFN "experts.gate_up_proj", AT_STACKED | AT_SECOND },
	{ P_EXP_DOWN, FFN "experts.down_proj", AT_STACKED }, { 0 }
};

/* The layers that are in full_attn_idxs, all where there is no such list, have attention. */
static int by_index(const struct config *c, const struct keys *k, int *type)
{
	const json_t *list = keys_get(k, "full_attn_idxs");
	int l = 0;

	if (list && !json_is_array(list))
		return keys_bad(k, "full_attn_idxs", "must be a list");
	for (int i = 0; i < c->num_hidden_layers; i++)
		type[i] = list != NULL;
	for (size_t i = 0; i < json_array_size(list); i++) {
		if (keys_int(k, "full_attn_idxs", json_array_get(list, i), 0, CFG_MAX_LAYERS - 1,
		    &l) < 0)
			return -1;
		type[l] = 0;
	}
	return 0;
}

/* Attention and convolutions of all layers. */
static int read_mixers(struct config *c, const struct keys *k)
{
	int type[CFG_MAX_LAYERS], taps = 3;
	const json_t *v = keys_get(k, "conv_L_cache");
	bool found, bias;

	if (family_begin(c, k) < 0 || family_two_types(c, k, "conv", type, &found) < 0 ||
	    keys_bool(k, "conv_bias", false, &bias) < 0 ||
	    (v && keys_int(k, "conv_L_cache", v, 2, 256, &taps) < 0))
		return -1;
	if (!found && by_index(c, k, type) < 0)
		return -1;
	for (int l = 0; l < c->num_hidden_layers; l++) {
		struct block *b = &c->block[l];

		b->qk_norm = type[l] == 0 ? QK_NORM_HEAD : QK_NORM_NONE;
		if (type[l] == 0)
			continue;
		b->attn = ATTN_CONV;
		b->taps = taps;
		b->conv_bias = b->o_bias = bias;
	}
	return 0;
}

static int read(struct config *c, const struct keys *k)
{
	const json_t *v = keys_get(k, "routed_scaling_factor");
	double scale = 1;
	int dense = 2;
	bool bias;

	if (!keys_get(k, "layer_types"))
		return keys_bad(k, "layer_types", "is missing");
	if (read_mixers(c, k) < 0 || family_count(k, "num_dense_layers", 0, &dense) < 0 ||
	    keys_bool(k, "use_expert_bias", true, &bias) < 0 ||
	    (v && keys_real(k, "routed_scaling_factor", v, 1e-6, 1e6, &scale) < 0))
		return -1;
	for (int l = dense; l < c->num_hidden_layers; l++) {
		struct block *b = &c->block[l];

		b->sparse = true;
		b->router = (struct router){ .sigmoid = true, .more = 1e-6, .scale = scale };
		b->router_bias = bias;
	}
	return family_experts(c, k);
}

/* The width of MLPs is two thirds of what the config says, times a factor, in whole pieces. */
static int adjust_width(struct config *c, const struct keys *k)
{
	const json_t *v = keys_get(k, "block_ffn_dim_multiplier");
	bool adjust, none = json_is_null(json_object_get(k->o, "block_ffn_dim_multiplier"));
	double times = 1;
	int piece = 256, n;

	if (keys_bool(k, "block_auto_adjust_ff_dim", true, &adjust) < 0 ||
	    family_count(k, "block_multiple_of", 1, &piece) < 0 ||
	    (v && keys_real(k, "block_ffn_dim_multiplier", v, 1e-3, 1e3, &times) < 0))
		return -1;
	if (!adjust)
		return 0;
	n = (int)(2.0 * c->intermediate_size / 3);
	if (!none)
		n = ((int)(times * n) + piece - 1) / piece * piece;
	if (n < 1 || n > 1 << 24)
		return keys_bad(k, "intermediate_size", "gives MLPs of width %d", n);
	for (int l = 0; l < c->num_hidden_layers; l++)
		c->block[l].width = n;
	return 0;
}

static int read_dense(struct config *c, const struct keys *k)
{
	return read_mixers(c, k) < 0 ? -1 : adjust_width(c, k);
}

static const struct key *const tables[] = { family_keys, family_head_keys, family_moe_keys,
    family_moe_width_keys, family_norm_topk_keys, family_train_keys, NULL };
static const char *const architectures[] = { "Lfm2MoeForCausalLM", NULL };
const struct arch arch_lfm2_moe = { .model_type = "lfm2_moe", .architectures = architectures,
	.keys = tables, .fallbacks = fallbacks, .aliases = aliases, .reads = reads,
	.ignores = ignores, .names = names, .read = read };

static const struct key *const dense_tables[] = { family_keys, family_head_keys,
    family_train_keys, NULL };
static const char *const dense_architectures[] = { "Lfm2ForCausalLM", NULL };
const struct arch arch_lfm2 = { .model_type = "lfm2", .architectures = dense_architectures,
	.keys = dense_tables, .fallbacks = fallbacks, .aliases = aliases, .reads = dense_reads,
	.ignores = ignores, .names = names, .read = read_dense };
