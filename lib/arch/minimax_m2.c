/*
 * minimax_m2: MiniMax-M2: one norm over all heads of q and one over those of k, part of each head
 * turns, experts chosen by sigmoid and a bias, under the names of Mixtral.
 */
#include "arch/arch.h"
#include "arch/family.h"

#define MOE "model.layers.%d.block_sparse_moe."

static const struct key_alias aliases[] = { { "num_experts", "num_local_experts" }, { 0 } };

static const char *const reads[] = { "rope_scaling", "rope_parameters", "partial_rotary_factor",
	"rotary_dim", "attn_type_list", NULL };

static const struct key_fallback fallbacks[] = {
	{ "rope_theta", 5e6 }, { "head_dim", 128 }, { "num_experts", 256 },
	{ "num_experts_per_tok", 8 }, { 0 }
};

static const struct key_off ignores[] = {
	{ "hidden_act", "\"silu\"" }, { "attention_dropout", NULL }, { "scoring_func",
	"\"sigmoid\"" },
	{ "use_routing_bias", "true" }, { "use_qk_norm", "true" }, { "qk_norm_type",
	"\"per_layer\"" },
	{ "shared_intermediate_size", "0" }, { "layernorm_full_attention_beta", "1" },
	{ "layernorm_linear_attention_beta", "1" }, { "layernorm_mlp_beta", "1" },
	{ "mlp_intermediate_size", NULL }, { "shared_moe_mode", "\"sigmoid\"" },
	{ "use_mtp", NULL }, { "num_mtp_modules", NULL }, { "mtp_transformer_layers", NULL },
	{ 0 }
};

static const struct param_name names[] = {
	{ P_GATE, MOE "gate.weight", 0 }, { P_GATE, "model.layers.%d.mlp.gate.weight", 0 },
	{ P_GATE_BIAS, MOE "e_score_correction_bias", 0 },
	{ P_GATE_BIAS, "model.layers.%d.mlp.e_score_correction_bias", 0 },
	{ P_EXP_GATE, MOE "experts.%d.w1.weight", 0 }, { P_EXP_UP, MOE "experts.%d.w3.weight", 0 },
	{ P_EXP_DOWN, MOE "experts.%d.w2.weight", 0 }, { 0 }
};

/* Published configs say for each layer that it is full attention, which is 1. */
static int check_types(const struct keys *k)
{
	const json_t *v = keys_get(k, "attn_type_list");

	for (size_t i = 0; i < json_array_size(v); i++)
		if (json_integer_value(json_array_get(v, i)) != 1)
			return keys_bad(k, "attn_type_list",
			    "only 1, full attention, is supported");
	return 0;
}

static int read(struct config *c, const struct keys *k)
{
	const json_t *v = keys_get(k, "rotary_dim");
	int turned = 0;

	c->moe_intermediate_size = c->intermediate_size;
	c->norm_topk_prob = true;
	if (check_types(k) < 0 || family_heads(c, k) < 0 ||
	    (v && keys_int(k, "rotary_dim", v, 2, c->head_dim, &turned) < 0) ||
	    family_partial(c, k, v ? (double)turned / c->head_dim : 1) < 0 ||
	    family_begin(c, k) < 0)
		return -1;
	for (int l = 0; l < c->num_hidden_layers; l++) {
		struct block *b = &c->block[l];

		b->qk_norm = QK_NORM_WIDTH;
		b->sparse = true;
		b->router = (struct router){ .sigmoid = true, .scale = 1 };
		b->router_bias = true;
	}
	return family_experts(c, k);
}

static const char *const architectures[] = { "MiniMaxM2ForCausalLM", NULL };
static const struct key *const tables[] = { family_keys, family_head_keys, family_moe_keys,
    family_train_keys, NULL };

const struct arch arch_minimax_m2 = { .model_type = "minimax_m2", .architectures = architectures,
	.keys = tables, .fallbacks = fallbacks, .aliases = aliases, .reads = reads,
	.ignores = ignores, .names = names, .read = read };
