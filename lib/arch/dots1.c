/* dots1: dots.llm1: the attention of Qwen3 and the experts of DeepSeek-V3. */
#include "arch/arch.h"
#include "arch/family.h"

static const char *const reads[] = { "rope_scaling", "rope_parameters", "attention_bias",
	"sliding_window", "max_window_layers", "layer_types", FAMILY_DEEPSEEK_READS, NULL };

static const struct key_off ignores[] = {
	{ "hidden_act", "\"silu\"" }, { "attention_dropout", NULL }, { "scoring_func",
	"\"sigmoid\"" }, { "scoring_func", "\"noaux_tc\"" },
	{ "topk_method", "\"noaux_tc\"" }, { "moe_layer_freq", "1" },
	{ "use_sliding_window", "false" }, { 0 }
};

static const struct param_name names[] = { FAMILY_DEEPSEEK_NAMES, { 0 } };

static int read(struct config *c, const struct keys *k)
{
	if (family_begin(c, k) < 0 || family_attention_bias(c, k, false) < 0 ||
	    family_late_windows(c, k, true, 62) < 0)
		return -1;
	for (int l = 0; l < c->num_hidden_layers; l++)
		c->block[l].qk_norm = QK_NORM_HEAD;
	return family_deepseek_experts(c, k, (struct family_deepseek){ 0, 0, 1, 1, 1, false });
}

static const char *const architectures[] = { "Dots1ForCausalLM", NULL };
static const struct key *const tables[] = { family_keys, family_head_keys, family_moe_keys,
    family_moe_width_keys,
	family_norm_topk_keys, family_train_keys, NULL };

const struct arch arch_dots1 = { .model_type = "dots1", .architectures = architectures,
	.keys = tables, .aliases = family_deepseek_aliases, .reads = reads, .ignores = ignores,
	.names = names, .read = read };
