/* deepseek_v2: DeepSeek-V2: attention from a latent, experts by softmax, in groups where
 * topk_method says so. */
#include <string.h>

#include "arch/arch.h"
#include "arch/family.h"

static const char *const reads[] = { FAMILY_LATENT_READS, FAMILY_DEEPSEEK_READS,
	"topk_method", "norm_topk_prob", NULL };

static const struct key_off ignores[] = {
	FAMILY_LATENT_IGNORES, { "partial_rotary_factor", "1" },
	{ "scoring_func", "\"softmax\"" }, { 0 }
};

static const struct key_fallback fallbacks[] = {
	{ "num_experts", 64 }, { "moe_intermediate_size", 1407 }, { 0 }
};

static const struct param_name names[] = { FAMILY_DEEPSEEK_NAMES, { 0 } };

static int read(struct config *c, const struct keys *k)
{
	const char *method = json_string_value(keys_get(k, "topk_method"));
	bool groups = method && strcmp(method, "group_limited_greedy") == 0;

	if (method && !groups && strcmp(method, "greedy") != 0)
		return keys_bad(k, "topk_method",
		    "only greedy and group_limited_greedy are supported");
	c->norm_topk_prob = false;		/* transformers does not look at it */
	if (family_deepseek_begin(c, k, true) < 0 ||
	    family_deepseek_experts(c, k, (struct family_deepseek){ 0, 2, 1, 1, 1, true }) < 0)
		return -1;
	for (int l = 0; !groups && l < c->num_hidden_layers; l++)
		c->block[l].router.groups = 1;
	return 0;
}

static const char *const architectures[] = { "DeepseekV2ForCausalLM", NULL };
static const struct key *const tables[] = { family_keys, family_moe_keys, family_moe_width_keys,
	family_train_keys, NULL };

const struct arch arch_deepseek_v2 = { .model_type = "deepseek_v2", .architectures = architectures,
	.keys = tables, .fallbacks = fallbacks, .aliases = family_deepseek_aliases, .reads = reads,
	.ignores = ignores, .names = names, .read = read };
