/*
 * qwen3_moe: Qwen3-MoE as transformers has it, and models of that shape that were trained here,
 * which keep our keys of training and may have shared experts.
 */
#include "arch/arch.h"
#include "arch/family.h"

static const struct key_fallback fallbacks[] = {
	{ "chronos_format", 2 }, { "num_shared_experts", 0 }, { "lookahead_steps", 0 },
	{ "norm_topk_prob", 0 }, { "tie_word_embeddings", 0 }, { "rope_theta", 1e4 },
	{ "num_experts", 128 },
	{ "num_experts_per_tok", 8 }, { "sliding_window_size", 4096 },
	{ "bos_token_id", -1 }, { "eos_token_id", -1 }, { "pad_token_id", -1 },
	{ 0 }
};

static const struct key_alias aliases[] = { { "num_experts", "num_local_experts" }, { 0 } };

static const char *const reads[] = { CHRONOS_READS, "attention_bias", NULL };

static const struct key_off ignores[] = {
	{ "hidden_act", "\"silu\"" }, { "attention_dropout", NULL },
	{ "max_window_layers", NULL },		/* this family slides in all layers or in none */
	{ 0 }
};

static int read(struct config *c, const struct keys *k)
{
	return chronos_layers(c, k, true) < 0 ? -1 : family_attention_bias(c, k, false);
}

static const char *const architectures[] = { "Qwen3MoeForCausalLM", NULL };
static const struct key *const tables[] = { chronos_keys, NULL };

const struct arch arch_qwen3_moe = { .model_type = "qwen3_moe", .architectures = architectures,
	.keys = tables, .fallbacks = fallbacks, .aliases = aliases, .reads = reads,
	.ignores = ignores, .ours = true, .read = read };
