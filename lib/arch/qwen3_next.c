/*
 * qwen3_next: Qwen3-Next: three layers of the gated delta rule for one of gated attention, many
 * small experts and one that is shared, with a gate.
 */
#include "arch/arch.h"
#include "arch/family.h"

#define DELTA "model.layers.%d.linear_attn."
#define MLP "model.layers.%d.mlp."

static const struct key_alias aliases[] = { { "num_experts", "num_local_experts" }, { 0 } };

static const char *const reads[] = { FAMILY_DELTA_READS, "decoder_sparse_step", "mlp_only_layers",
	NULL };

static const struct key_fallback fallbacks[] = {
	{ "num_experts", 512 }, { "num_experts_per_tok", 10 }, { "moe_intermediate_size", 512 },
	{ "norm_topk_prob", 1 }, { "num_key_value_heads", 2 }, { "head_dim", 256 },
	{ "intermediate_size", 5632 }, { 0 }
};

static const struct key_off ignores[] = {
	{ "hidden_act", "\"silu\"" }, { "attention_dropout", NULL },
	{ "use_sliding_window", "false" }, { 0 }
};

static const struct param_name names[] = {
	{ P_CONV, DELTA "conv1d.weight", AT_FLAT }, { P_MIX, DELTA "out_proj.weight", 0 },
	{ P_SH_GATE, MLP "shared_expert.gate_proj.weight", 0 },
	{ P_SH_UP, MLP "shared_expert.up_proj.weight", 0 },
	{ P_SH_DOWN, MLP "shared_expert.down_proj.weight", 0 },
	{ P_EXP_GATE, MLP "experts.%d.gate_proj.weight", 0 },
	{ P_EXP_UP, MLP "experts.%d.up_proj.weight", 0 },
	{ P_EXP_DOWN, MLP "experts.%d.down_proj.weight", 0 },
	{ P_EXP_GATE, MLP "experts.gate_up_proj", AT_STACKED | AT_FIRST },
	{ P_EXP_UP, MLP "experts.gate_up_proj", AT_STACKED | AT_SECOND },
	{ P_EXP_DOWN, MLP "experts.down_proj", AT_STACKED }, { 0 }
};

static int read(struct config *c, const struct keys *k)
{
	return family_sparse_step(c, k) < 0 || family_delta(c, k, true) < 0 ? -1 :
	    family_experts(c, k);
}

static const char *const architectures[] = { "Qwen3NextForCausalLM", NULL };
static const struct key *const tables[] = { family_keys, family_head_keys, family_moe_keys,
    family_moe_width_keys,
	family_norm_topk_keys, family_train_keys, NULL };

const struct arch arch_qwen3_next = { .model_type = "qwen3_next", .architectures = architectures,
	.keys = tables, .fallbacks = fallbacks, .aliases = aliases, .reads = reads,
	.ignores = ignores, .names = names, .read = read };
