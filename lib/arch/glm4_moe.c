/*
 * glm4_moe: GLM-4.5 and 4.6, Solar: half of each head turns, biases of q, k and v and norms on them
 * where the config says so, the experts of DeepSeek-V3.
 */
#include "arch/arch.h"
#include "arch/family.h"

static const char *const reads[] = { "rope_scaling", "rope_parameters", "partial_rotary_factor",
	"attention_bias", "use_qk_norm", FAMILY_DEEPSEEK_READS, NULL };

static const struct key_off ignores[] = {
	{ "hidden_act", "\"silu\"" }, { "attention_dropout", NULL }, { "scoring_func",
	"\"sigmoid\"" },
	{ "topk_method", "\"noaux_tc\"" }, { "moe_layer_freq", "1" }, { 0 }
};

static const struct key_fallback fallbacks[] = {
	{ "norm_topk_prob", 1 }, { "num_experts", 128 }, { "num_experts_per_tok", 8 },
	{ "moe_intermediate_size", 1408 }, { "rms_norm_eps", 1e-5 }, { 0 }
};

static const struct param_name names[] = { FAMILY_DEEPSEEK_NAMES, { 0 } };

static int read(struct config *c, const struct keys *k)
{
	bool bias = false, norm = false;

	if (keys_bool(k, "attention_bias", false, &bias) < 0 ||
	    keys_bool(k, "use_qk_norm", false, &norm) < 0 || family_partial(c, k, 0.5) < 0 ||
	    family_begin(c, k) < 0)
		return -1;
	for (int l = 0; l < c->num_hidden_layers; l++) {
		c->block[l].qkv_bias = bias;
		c->block[l].qk_norm = norm ? QK_NORM_HEAD : QK_NORM_NONE;
	}
	return family_deepseek_experts(c, k, (struct family_deepseek){ 1, 1, 1, 1, 1, false });
}

static const char *const architectures[] = { "Glm4MoeForCausalLM", NULL };
static const struct key *const tables[] = { family_keys, family_head_keys, family_moe_keys,
    family_moe_width_keys,
	family_norm_topk_keys, family_train_keys, NULL };

const struct arch arch_glm4_moe = { .model_type = "glm4_moe", .architectures = architectures,
	.keys = tables, .fallbacks = fallbacks, .aliases = family_deepseek_aliases, .reads = reads,
	.ignores = ignores, .names = names, .read = read };
