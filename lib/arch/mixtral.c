/*
 * mixtral: routed experts in every layer, the weights of the chosen renormalised (which is the
 * softmax over their scores), under names of its own.
 */
#include "arch/arch.h"
#include "arch/family.h"

#define MOE "model.layers.%d.block_sparse_moe."

static const struct key_alias aliases[] = { { "num_experts", "num_local_experts" }, { 0 } };

static const char *const reads[] = { "rope_scaling", "rope_parameters", "sliding_window", NULL };

static const struct key_fallback fallbacks[] = {
	{ "rope_theta", 1e6 }, { "rms_norm_eps", 1e-5 }, { "num_experts", 8 },
	{ "num_experts_per_tok", 2 }, { "num_key_value_heads", 8 }, { 0 }
};

static const struct key_off ignores[] = {
	{ "hidden_act", "\"silu\"" }, { "attention_dropout", NULL }, { "attention_bias", "false" },
	{ 0 }
};

static const struct param_name names[] = {
	{ P_GATE, MOE "gate.weight", 0 }, { P_GATE, "model.layers.%d.mlp.gate.weight", 0 },
	{ P_EXP_GATE, MOE "experts.%d.w1.weight", 0 },
	{ P_EXP_UP, MOE "experts.%d.w3.weight", 0 }, { P_EXP_DOWN, MOE "experts.%d.w2.weight", 0 },
	{ 0 }
};

static int read(struct config *c, const struct keys *k)
{
	bool wanted[CFG_MAX_LAYERS];

	c->moe_intermediate_size = c->intermediate_size;
	c->norm_topk_prob = true;
	if (family_begin(c, k) < 0)
		return -1;
	for (int l = 0; l < c->num_hidden_layers; l++) {
		c->block[l].sparse = true;
		wanted[l] = true;
	}
	return family_windows(c, k, true, wanted, 0) < 0 ? -1 : family_experts(c, k);
}

static const char *const architectures[] = { "MixtralForCausalLM", NULL };
static const struct key *const tables[] = { family_keys, family_head_keys, family_moe_keys,
    family_train_keys, NULL };

const struct arch arch_mixtral = { .model_type = "mixtral", .architectures = architectures,
	.keys = tables, .fallbacks = fallbacks, .aliases = aliases, .reads = reads,
	.ignores = ignores, .names = names, .read = read };
