/*
 * qwen2_moe: Qwen1.5-MoE and Qwen2-57B-A14B: biases of q, k and v, and one shared expert of its own
 * width whose output is multiplied by a gate.
 */
#include <limits.h>

#include "arch/arch.h"
#include "arch/family.h"

#define SHARED "model.layers.%d.mlp.shared_expert."

static const struct key_alias aliases[] = { { "num_experts", "num_local_experts" }, { 0 } };

static const char *const reads[] = { "rope_scaling", "rope_parameters", "sliding_window",
	"use_sliding_window", "max_window_layers", "layer_types", "qkv_bias", "decoder_sparse_step",
	"mlp_only_layers", "shared_expert_intermediate_size", NULL };

static const struct key_fallback fallbacks[] = {
	{ "num_experts", 60 }, { "num_experts_per_tok", 4 }, { "moe_intermediate_size", 1408 },
	{ 0 }
};

static const struct key_off ignores[] = {
	{ "hidden_act", "\"silu\"" }, { "attention_dropout", NULL }, { 0 }
};

static const struct param_name names[] = {
	{ P_SH_GATE, SHARED "gate_proj.weight", 0 }, { P_SH_UP, SHARED "up_proj.weight", 0 },
	{ P_SH_DOWN, SHARED "down_proj.weight", 0 }, { 0 }
};

/* Every other layer, of those before max_window_layers. */
static int read_windows(struct config *c, const struct keys *k)
{
	const json_t *v = keys_get(k, "max_window_layers");
	bool slide = false, wanted[CFG_MAX_LAYERS];
	int until = 28;

	if (keys_bool(k, "use_sliding_window", false, &slide) < 0 ||
	    (v && keys_int(k, "max_window_layers", v, 0, INT_MAX, &until) < 0))
		return -1;
	for (int l = 0; l < c->num_hidden_layers; l++)
		wanted[l] = l % 2 == 0 && l < until;
	return family_windows(c, k, slide, wanted, 4096);
}

static int read(struct config *c, const struct keys *k)
{
	const json_t *v = keys_get(k, "shared_expert_intermediate_size");
	int width = 5632;
	bool bias = true;

	if (keys_bool(k, "qkv_bias", true, &bias) < 0 || family_begin(c, k) < 0 ||
	    (v && keys_int(k, "shared_expert_intermediate_size", v, 1, 1 << 24, &width) < 0) ||
	    family_sparse_step(c, k) < 0 || read_windows(c, k) < 0)
		return -1;
	c->num_shared_experts = 1;
	for (int l = 0; l < c->num_hidden_layers; l++) {
		struct block *b = &c->block[l];

		b->qkv_bias = bias;
		b->shared = b->sparse;
		b->shared_gate = b->sparse;
		b->shared_width = width;
	}
	return family_experts(c, k);
}

static const char *const architectures[] = { "Qwen2MoeForCausalLM", NULL };
static const struct key *const tables[] = { family_keys, family_head_keys, family_moe_keys,
    family_moe_width_keys,
	family_norm_topk_keys, family_train_keys, NULL };

const struct arch arch_qwen2_moe = { .model_type = "qwen2_moe", .architectures = architectures,
	.keys = tables, .fallbacks = fallbacks, .aliases = aliases, .reads = reads,
	.ignores = ignores, .names = names, .read = read };
