/* glm4_moe_lite: GLM-4.7-Flash: the maths of DeepSeek-V3. */
#include "arch/arch.h"
#include "arch/family.h"

static const char *const reads[] = { FAMILY_LATENT_READS, FAMILY_DEEPSEEK_READS,
	"rope_interleave", "mlp_layer_types", NULL };

static const struct key_off ignores[] = {
	FAMILY_DEEPSEEK_V3_IGNORES, { 0 }
};

static const struct key_fallback fallbacks[] = {
	{ "norm_topk_prob", 1 }, { "num_experts", 64 },
	{ "num_experts_per_tok", 4 }, { "moe_intermediate_size", 1536 },
	{ "rms_norm_eps", 1e-5 }, { 0 }
};

static const struct param_name names[] = { FAMILY_DEEPSEEK_NAMES, { 0 } };

static int read(struct config *c, const struct keys *k)
{
	return family_deepseek_v3(c, k, (struct family_deepseek){ 1, 1, 1, 1, 1.8, false });
}

static const char *const architectures[] = { "Glm4MoeLiteForCausalLM", NULL };
static const struct key *const tables[] = { family_keys, family_moe_keys, family_moe_width_keys,
	family_norm_topk_keys, family_train_keys, NULL };

const struct arch arch_glm4_moe_lite = { .model_type = "glm4_moe_lite",
    .architectures = architectures,
	.keys = tables, .fallbacks = fallbacks, .aliases = family_deepseek_aliases, .reads = reads,
	.ignores = ignores, .names = names, .read = read };
