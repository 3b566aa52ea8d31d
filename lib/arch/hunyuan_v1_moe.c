/*
 * hunyuan_v1_moe: Hunyuan-A13B: norms on q and k after the rotation, experts in every layer with
 * one shared one, under names of its own.
 */
#include "arch/arch.h"
#include "arch/family.h"

#define MLP "model.layers.%d.mlp."
#define SHARED MLP "shared_mlp."

static const struct key_alias aliases[] = { { "num_experts_per_tok", "moe_topk" }, { 0 } };

static const struct key_fallback fallbacks[] = {
	{ "rms_norm_eps", 1e-5 }, { "num_experts", 1 }, { "num_experts_per_tok", 1 }, { 0 }
};

static const char *const reads[] = { "rope_scaling", "rope_parameters", "alpha", "attention_bias",
	"moe_intermediate_size", "attention_head_dim", NULL };

static const struct key_off ignores[] = {
	{ "hidden_act", "\"silu\"" }, { "attention_dropout", NULL }, { "mlp_bias", "false" },
	{ "use_qk_norm", "true" }, { "use_mixed_mlp_moe", "true" }, { "num_shared_expert", "1" },
	{ "use_cla", "false" }, { "cla_share_factor", NULL }, { "norm_type", "\"rms\"" },
	{ "moe_drop_tokens", "false" }, { "capacity_factor", NULL }, { "use_rotary_pos_emb",
	"true" },
	{ "moe_random_routing_dropped_token", "false" }, { "moe_layer_num_skipped", "0" },
	{ "group_limited_greedy", "false" }, { "norm_topk_prob", "true" },
	{ "routed_scaling_factor", "1" }, { "class_num", NULL }, { "dense_list", NULL },
	{ "pool_type", NULL }, { "num_media_embeds", NULL }, { "org_vocab_size", NULL },
	/* ids of tokens */
	{ "im_start_id", NULL }, { "im_end_id", NULL }, { "im_newline_id", NULL },
	{ "mask_init_id", NULL }, { "pad_id", NULL }, { "text_start_id", NULL },
	{ "text_end_id", NULL }, { "video_start_id", NULL }, { "video_end_id", NULL }, { 0 }
};

static const struct param_name names[] = {
	{ P_QNORM, "model.layers.%d.self_attn.query_layernorm.weight", 0 },
	{ P_KNORM, "model.layers.%d.self_attn.key_layernorm.weight", 0 },
	{ P_GATE, MLP "gate.wg.weight", 0 }, { P_SH_GATE, SHARED "gate_proj.weight", 0 },
	{ P_SH_UP, SHARED "up_proj.weight", 0 }, { P_SH_DOWN, SHARED "down_proj.weight", 0 }, { 0 }
};

/* What transformers makes of the widths, whatever these keys say. */
static int check_widths(const struct config *c, const struct keys *k)
{
	int width = c->intermediate_size, head = c->head_dim;

	if (keys_same(k, "moe_intermediate_size", 1, 1 << 24, &width) < 0 ||
	    family_count(k, "attention_head_dim", 1, &head) < 0)
		return -1;
	if (width != c->intermediate_size)
		return keys_bad(k, "moe_intermediate_size", "%d is not intermediate_size", width);
	return head == c->head_dim ? 0 :
	    keys_bad(k, "attention_head_dim", "%d is not the %d of a head", head, c->head_dim);
}

static int read(struct config *c, const struct keys *k)
{
	c->moe_intermediate_size = c->intermediate_size;
	c->norm_topk_prob = true;
	c->num_shared_experts = 1;
	if (family_begin(c, k) < 0 || check_widths(c, k) < 0 ||
	    family_attention_bias(c, k, false) < 0)
		return -1;
	for (int l = 0; l < c->num_hidden_layers; l++) {
		struct block *b = &c->block[l];

		b->qk_norm = QK_NORM_HEAD;
		b->norm_after = true;
		b->sparse = true;
		b->shared = 1;
		b->shared_width = c->intermediate_size;
	}
	return family_experts(c, k);
}

static const char *const architectures[] = { "HunYuanMoEV1ForCausalLM", NULL };
/* Published configs list them for each layer. */
static const struct key lists[] = {
	{ "num_experts", KEY_SAME, KEY_AT(num_experts), KEY_REQUIRED, 1, 4096 },
	{ "num_experts_per_tok", KEY_SAME, KEY_AT(num_experts_per_tok), KEY_REQUIRED, 1, 4096 },
	{ 0 }
};
static const struct key *const tables[] = { family_keys, family_head_keys, lists,
    family_train_keys, NULL };

const struct arch arch_hunyuan_v1_moe = { .model_type = "hunyuan_v1_moe",
	.architectures = architectures, .keys = tables, .fallbacks = fallbacks,
	.aliases = aliases, .reads = reads,
	.ignores = ignores, .names = names, .read = read };
