/* deepseek_v3: DeepSeek-V3 and R1, Kimi-K2: attention from a latent, experts by sigmoid, a bias and
 * groups. */
#include "arch/arch.h"
#include "arch/family.h"

static const char *const reads[] = { FAMILY_LATENT_READS, FAMILY_DEEPSEEK_READS,
	"rope_interleave", NULL };

static const struct key_off ignores[] = {
	FAMILY_DEEPSEEK_V3_IGNORES, { 0 }
};

static const struct key_fallback fallbacks[] = {
	{ "norm_topk_prob", 1 }, { "num_experts", 256 },
	{ "num_experts_per_tok", 8 }, { "moe_intermediate_size", 2048 }, { 0 }
};

static const struct param_name names[] = { FAMILY_DEEPSEEK_NAMES, { 0 } };

static int read(struct config *c, const struct keys *k)
{
	return family_deepseek_v3(c, k, (struct family_deepseek){ 3, 1, 8, 4, 2.5, false });
}

static const char *const architectures[] = { "DeepseekV3ForCausalLM", NULL };
static const struct key *const tables[] = { family_keys, family_moe_keys, family_moe_width_keys,
	family_norm_topk_keys, family_train_keys, NULL };

const struct arch arch_deepseek_v3 = { .model_type = "deepseek_v3", .also = "kimi_k2",
    .architectures = architectures,
	.keys = tables, .fallbacks = fallbacks, .aliases = family_deepseek_aliases, .reads = reads,
	.ignores = ignores, .names = names, .read = read };
