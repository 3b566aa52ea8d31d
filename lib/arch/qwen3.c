/* qwen3: Qwen3, dense: a norm on each head of q and k. */
#include "arch/arch.h"
#include "arch/family.h"

static const char *const reads[] = { "rope_scaling", "rope_parameters", "sliding_window",
	"use_sliding_window", "max_window_layers", "layer_types", "attention_bias", NULL };

static const struct key_fallback fallbacks[] = { { "head_dim", 128 }, { 0 } };

static const struct key_off ignores[] = {
	{ "hidden_act", "\"silu\"" }, { "attention_dropout", NULL }, { 0 }
};

static int read(struct config *c, const struct keys *k)
{
	bool slide = false;

	if (keys_bool(k, "use_sliding_window", false, &slide) < 0 || family_begin(c, k) < 0 ||
	    family_attention_bias(c, k, false) < 0)
		return -1;
	for (int l = 0; l < c->num_hidden_layers; l++)
		c->block[l].qk_norm = QK_NORM_HEAD;
	return family_late_windows(c, k, slide, 28);
}

static const char *const architectures[] = { "Qwen3ForCausalLM", NULL };
static const struct key *const tables[] = { family_keys, family_head_keys, family_train_keys,
    NULL };

const struct arch arch_qwen3 = { .model_type = "qwen3", .architectures = architectures,
	.keys = tables, .fallbacks = fallbacks, .reads = reads, .ignores = ignores, .read = read };
