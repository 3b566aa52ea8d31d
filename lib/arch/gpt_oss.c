/*
 * gpt_oss: gpt-oss: biases of every product, a sink in each head, windows in every other layer, and
 * experts with a clamped SwiGLU (backend/glu.h), chosen by logits with a bias and weighed by the
 * softmax over the chosen. Gate and up of all experts are the even and odd columns of one tensor.
 */
#include "arch/arch.h"
#include "arch/family.h"

static const struct key_alias aliases[] = { { "num_experts", "num_local_experts" }, { 0 } };

static const char *const reads[] = { "rope_scaling", "rope_parameters", "attention_bias",
	"sliding_window", "layer_types", "swiglu_limit", "swiglu_alpha", NULL };

static const struct key_fallback fallbacks[] = {
	{ "rope_theta", 1.5e5 }, { "rms_norm_eps", 1e-5 }, { "head_dim", 64 },
	{ "num_key_value_heads", 8 }, { "num_experts", 128 }, { "num_experts_per_tok", 4 }, { 0 }
};

static const struct key_off ignores[] = {
	{ "hidden_act", "\"silu\"" }, { "attention_dropout", NULL },
	{ "experts_per_token", NULL }, { "initial_context_length", NULL }, { 0 }
};

#define MLP "model.layers.%d.mlp."
#define EXPERTS MLP "experts."

static const struct param_name names[] = {
	{ P_GATE, MLP "router.weight", 0 }, { P_LOGIT_BIAS, MLP "router.bias", 0 },
	{ P_EXP_GATE_BIAS, EXPERTS "gate_up_proj_bias", AT_EVEN | AT_ACROSS },
	{ P_EXP_UP_BIAS, EXPERTS "gate_up_proj_bias", AT_ODD | AT_ACROSS },
	{ P_EXP_GATE, EXPERTS "gate_up_proj", AT_STACKED | AT_TURNED | AT_EVEN },
	{ P_EXP_UP, EXPERTS "gate_up_proj", AT_STACKED | AT_TURNED | AT_ODD },
	{ P_EXP_DOWN, EXPERTS "down_proj", AT_STACKED | AT_TURNED }, { 0 }
};

/* Positions are stretched where the config says nothing of them; a new object. */
static json_t *with_positions(const struct keys *k)
{
	json_t *o = json_copy((json_t *)k->o);

	if (!keys_get(k, "rope_scaling") && !json_object_get(o, "rope_parameters"))
		json_object_set_new(o, "rope_parameters", json_pack(
		    "{s:s, s:f, s:f, s:f, s:b, s:i}", "rope_type", "yarn", "factor", 32.0,
		    "beta_fast", 32.0, "beta_slow", 1.0,
		    "truncate", 0, "original_max_position_embeddings", 4096));
	return o;
}

static int read_glu(const struct keys *k, struct glu *g)
{
	const json_t *limit = keys_get(k, "swiglu_limit"), *alpha = keys_get(k, "swiglu_alpha");

	*g = (struct glu){ .limit = 7, .alpha = 1.702 };
	return (limit && keys_real(k, "swiglu_limit", limit, 1e-6, 1e9, &g->limit) < 0) ||
	    (alpha && keys_real(k, "swiglu_alpha", alpha, 1e-6, 1e6, &g->alpha) < 0) ? -1 : 0;
}

static int read_layers(struct config *c, const struct keys *k)
{
	bool wanted[CFG_MAX_LAYERS];
	struct glu glu;

	c->moe_intermediate_size = c->intermediate_size;
	c->norm_topk_prob = true;
	for (int l = 0; l < c->num_hidden_layers; l++)
		wanted[l] = l % 2 == 0;
	if (read_glu(k, &glu) < 0 || family_begin(c, k) < 0 ||
	    family_attention_bias(c, k, true) < 0 || family_windows(c, k, true, wanted, 128) < 0)
		return -1;
	for (int l = 0; l < c->num_hidden_layers; l++) {
		struct block *b = &c->block[l];

		b->sinks = true;
		b->sparse = b->logit_bias = b->expert_bias = true;
		b->glu = glu;
	}
	return family_experts(c, k);
}

static int read(struct config *c, const struct keys *k)
{
	struct keys all = *k;
	json_t *o = with_positions(k);
	int r;

	all.o = o;
	r = read_layers(c, &all);
	json_decref(o);
	return r;
}

static const char *const architectures[] = { "GptOssForCausalLM", NULL };
static const struct key *const tables[] = { family_keys, family_head_keys, family_moe_keys,
    family_train_keys, NULL };

const struct arch arch_gpt_oss = { .model_type = "gpt_oss", .architectures = architectures,
	.keys = tables, .fallbacks = fallbacks, .aliases = aliases, .reads = reads,
	.ignores = ignores, .names = names, .read = read };
