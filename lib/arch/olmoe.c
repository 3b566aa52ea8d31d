/* olmoe: OLMoE: one norm over all heads of q and one over those of k, routed experts in every
 * layer. */
#include "arch/arch.h"
#include "arch/family.h"

static const struct key_alias aliases[] = { { "num_experts", "num_local_experts" }, { 0 } };

static const char *const reads[] = { "rope_scaling", "rope_parameters", "attention_bias",
	"clip_qkv", NULL };

static const struct key_fallback fallbacks[] = {
	{ "rms_norm_eps", 1e-5 }, { "num_experts", 64 }, { "num_experts_per_tok", 8 }, { 0 }
};

static const struct key_off ignores[] = {
	{ "hidden_act", "\"silu\"" }, { "attention_dropout", NULL }, { 0 }
};

static int read(struct config *c, const struct keys *k)
{
	const json_t *v = keys_get(k, "clip_qkv");
	double clip = 0;

	c->moe_intermediate_size = c->intermediate_size;
	if ((v && keys_real(k, "clip_qkv", v, 1e-6, 1e9, &clip) < 0) ||
	    family_begin(c, k) < 0 || family_attention_bias(c, k, false) < 0)
		return -1;
	for (int l = 0; l < c->num_hidden_layers; l++) {
		c->block[l].sparse = true;
		c->block[l].qk_norm = QK_NORM_WIDTH;
		c->block[l].clip = clip;
	}
	return family_experts(c, k);
}

static const char *const architectures[] = { "OlmoeForCausalLM", NULL };
static const struct key *const tables[] = { family_keys, family_head_keys, family_moe_keys,
    family_norm_topk_keys,
	family_train_keys, NULL };

const struct arch arch_olmoe = { .model_type = "olmoe", .architectures = architectures,
	.keys = tables, .fallbacks = fallbacks, .aliases = aliases, .reads = reads,
	.ignores = ignores, .read = read };
