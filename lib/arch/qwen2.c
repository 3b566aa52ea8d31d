/* qwen2: Qwen2 and Qwen2.5, dense: q, k and v have biases. */
#include "arch/arch.h"
#include "arch/family.h"

static const char *const reads[] = { "rope_scaling", "rope_parameters", "sliding_window",
	"use_sliding_window", "max_window_layers", "layer_types", NULL };

static const struct key_off ignores[] = {
	{ "hidden_act", "\"silu\"" }, { "attention_dropout", NULL }, { "qkv_bias", "true" }, { 0 }
};

static int read(struct config *c, const struct keys *k)
{
	bool slide = false;

	if (keys_bool(k, "use_sliding_window", false, &slide) < 0 || family_begin(c, k) < 0)
		return -1;
	for (int l = 0; l < c->num_hidden_layers; l++)
		c->block[l].qkv_bias = true;
	return family_late_windows(c, k, slide, 28);
}

static const char *const architectures[] = { "Qwen2ForCausalLM", NULL };
static const struct key *const tables[] = { family_keys, family_head_keys, family_train_keys,
    NULL };

const struct arch arch_qwen2 = { .model_type = "qwen2", .architectures = architectures,
	.keys = tables, .reads = reads, .ignores = ignores, .read = read };
