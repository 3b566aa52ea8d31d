/*
 * granitemoe: Granite 3 MoE: the attention of Llama, the weights of the chosen experts renormalised
 * (which is the softmax over their scores), and factors for the embedding, what each layer adds,
 * the scores of attention, and the logits. Gate and up of all experts are one tensor.
 */
#include "arch/arch.h"
#include "arch/family.h"

#define MOE "model.layers.%d.block_sparse_moe."

static const struct key granite_keys[] = {
	{ "embedding_multiplier", KEY_REAL, KEY_AT(embedding_multiplier), 1, -1e6, 1e6 },
	{ "residual_multiplier", KEY_REAL, KEY_AT(residual_multiplier), 1, -1e6, 1e6 },
	{ "attention_multiplier", KEY_REAL, KEY_AT(attention_multiplier), 1, -1e6, 1e6 },
	{ "logits_scaling", KEY_REAL, KEY_AT(logits_scaling), 1, 1e-6, 1e6 },
	{ 0 }
};

static const struct key_alias aliases[] = { { "num_experts", "num_local_experts" }, { 0 } };

static const char *const reads[] = { "rope_scaling", "rope_parameters", "attention_bias", NULL };

static const struct key_fallback fallbacks[] = {
	{ "num_experts", 8 }, { "num_experts_per_tok", 2 }, { 0 }
};

static const struct key_off ignores[] = {
	{ "hidden_act", "\"silu\"" }, { "attention_dropout", NULL }, { 0 }
};

static const struct param_name names[] = {
	{ P_GATE, MOE "router.layer.weight", 0 },
	{ P_EXP_GATE, MOE "input_linear.weight", AT_STACKED | AT_FIRST },
	{ P_EXP_UP, MOE "input_linear.weight", AT_STACKED | AT_SECOND },
	{ P_EXP_DOWN, MOE "output_linear.weight", AT_STACKED },
	/* as transformers has them in memory */
	{ P_GATE, MOE "router.weight", 0 },
	{ P_EXP_GATE, MOE "experts.gate_up_proj", AT_STACKED | AT_FIRST },
	{ P_EXP_UP, MOE "experts.gate_up_proj", AT_STACKED | AT_SECOND },
	{ P_EXP_DOWN, MOE "experts.down_proj", AT_STACKED }, { 0 }
};

static int read(struct config *c, const struct keys *k)
{
	c->moe_intermediate_size = c->intermediate_size;
	c->norm_topk_prob = true;
	if (family_begin(c, k) < 0 || family_attention_bias(c, k, false) < 0)
		return -1;
	for (int l = 0; l < c->num_hidden_layers; l++) {
		c->block[l].sparse = true;
		c->block[l].scale = c->attention_multiplier;
	}
	return family_experts(c, k);
}

static const char *const architectures[] = { "GraniteMoeForCausalLM", NULL };
static const struct key *const tables[] = { family_keys, family_head_keys, family_moe_keys,
    granite_keys, family_train_keys, NULL };

const struct arch arch_granitemoe = { .model_type = "granitemoe", .architectures = architectures,
	.keys = tables, .fallbacks = fallbacks, .aliases = aliases, .reads = reads,
	.ignores = ignores, .names = names, .read = read };
