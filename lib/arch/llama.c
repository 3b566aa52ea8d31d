/* llama: Llama 2 and 3, and the many models that are published as such: grouped queries, a dense
 * MLP. */
#include "arch/arch.h"
#include "arch/family.h"

static const char *const reads[] = { "rope_scaling", "rope_parameters", "attention_bias", NULL };

static const struct key_off ignores[] = {
	{ "hidden_act", "\"silu\"" }, { "mlp_bias", "false" }, { "attention_dropout", NULL },
	{ "rope_interleaved", "false" }, { "is_llama_config", NULL },
	{ "max_sequence_length", NULL }, { 0 }
};

static int read(struct config *c, const struct keys *k)
{
	return family_begin(c, k) < 0 ? -1 : family_attention_bias(c, k, false);
}

static const char *const architectures[] = { "LlamaForCausalLM", NULL };
static const struct key *const tables[] = { family_keys, family_head_keys, family_train_keys,
    NULL };

const struct arch arch_llama = { .model_type = "llama", .architectures = architectures,
	.keys = tables, .reads = reads, .ignores = ignores, .read = read };
