/*
 * ernie4_5_moe: ERNIE 4.5: pairs of neighbours turn, a bias for the choice among softmax scores,
 * shared experts as one wide one, experts in a range of layers.
 */
#include "arch/arch.h"
#include "arch/family.h"

static const struct key_alias aliases[] = {
	{ "num_experts", "moe_num_experts" }, { "num_experts_per_tok", "moe_k" }, { 0 }
};

static const char *const reads[] = { "rope_scaling", "rope_parameters", "moe_layer_start_index",
	"moe_layer_end_index", "moe_layer_interval", "moe_num_shared_experts", "moe_norm_min",
	NULL };

static const struct key_fallback fallbacks[] = {
	{ "rope_theta", 5e5 }, { "rms_norm_eps", 1e-5 }, { "tie_word_embeddings", 1 },
	{ "num_experts", 64 }, { "num_experts_per_tok", 6 }, { 0 }
};

static const struct key_off ignores[] = {
	{ "hidden_act", "\"silu\"" }, { "attention_dropout", NULL }, { "use_bias", "false" },
	{ "moe_use_aux_free", "true" }, { "moe_gate", "\"topk\"" }, { "moe_capacity", NULL }, { 0 }
};

static const struct param_name names[] = {
	FAMILY_DEEPSEEK_NAMES,
	{ P_GATE_BIAS, "model.layers.%d.mlp.moe_statics.e_score_correction_bias", 0 },
	{ P_GATE_BIAS, "model.layers.%d.mlp.gate.moe_statics.e_score_correction_bias", 0 }, { 0 }
};

static int read(struct config *c, const struct keys *k)
{
	const json_t *v = keys_get(k, "moe_norm_min");
	int first = 1, last = -1, step = 1, shared = 2;
	double floor = 1e-12;

	if (family_begin(c, k) < 0 || family_count(k, "moe_layer_start_index", 0, &first) < 0 ||
	    family_count(k, "moe_layer_end_index", -1, &last) < 0 ||
	    family_count(k, "moe_layer_interval", 1, &step) < 0 ||
	    family_count(k, "moe_num_shared_experts", 0, &shared) < 0 ||
	    (v && keys_real(k, "moe_norm_min", v, 0, 1, &floor) < 0))
		return -1;
	c->norm_topk_prob = true;
	c->num_shared_experts = shared > 0;
	for (int l = 0; l < c->num_hidden_layers; l++) {
		struct block *b = &c->block[l];

		b->rope.pairs = true;
		b->sparse = (l + 1) % step == 0 && l >= first && (last < 0 || l <= last);
		b->router = (struct router){ .floor = floor, .scale = 1 };
		b->router_bias = b->router_bias_row = true;
		b->shared = b->sparse && shared > 0;
		b->shared_width = shared * c->moe_intermediate_size;
	}
	return family_experts(c, k);
}

static const char *const architectures[] = { "Ernie4_5_MoeForCausalLM", NULL };
static const struct key *const tables[] = { family_keys, family_head_keys, family_moe_keys,
    family_moe_width_keys,
	family_train_keys, NULL };

const struct arch arch_ernie4_5_moe = { .model_type = "ernie4_5_moe",
	.architectures = architectures, .keys = tables, .fallbacks = fallbacks, .aliases = aliases,
	.reads = reads, .ignores = ignores, .names = names, .read = read };
