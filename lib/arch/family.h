/*
 * family: what the files of families share: reading of the keys that most of them have.
 */
#ifndef CHR_FAMILY_H
#define CHR_FAMILY_H

#include "arch/arch.h"
#include "arch/config.h"
#include "arch/keys.h"

#define KEY_AT(x) offsetof(struct config, x)

/* Tables of plain values: sizes and ids of any model; head_dim; routed experts; the width of one
 * and whether weights are renormalised, where a family has such keys; training, which is ours. End
 * with a NULL key. */
extern const struct key family_keys[], family_head_keys[], family_moe_keys[],
    family_moe_width_keys[],
    family_norm_topk_keys[], family_train_keys[];

/* What most published families have in common: heads, positions, and in every layer full attention
 * and a dense MLP; the caller adds what it has besides. */
int family_begin(struct config *c, const struct keys *k);
/* attention_bias, of q, k, v and o; absent: `fallback`. */
int family_attention_bias(struct config *c, const struct keys *k, bool fallback);
/* The windows of layers: layer_types where it is there, else wanted[l]. on: use_sliding_window,
 * without which none may slide; width: of a window where the config has no such key, 0: none. */
int family_windows(struct config *c, const struct keys *k, bool on, const bool *wanted, int width);
/* Windows for the layers from max_window_layers on; slide: whether there are any where layer_types
 * is absent. */
int family_late_windows(struct config *c, const struct keys *k, bool slide, int from);
/* partial_rotary_factor, of the rotary object or by itself: how much of a head turns. Before
 * family_begin(). */
int family_partial(struct config *c, const struct keys *k, double factor);

/* An integer key of at least lo; absent: *x stays as it is. */
int family_count(const struct keys *k, const char *key, int lo, int *x);

/* The experts of DeepSeek-V3 and those after it: scores by sigmoid, a bias for the choice, groups,
 * a factor, shared experts as one wide one, dense layers first. What the family means by absent
 * keys: */
struct family_deepseek {
	int first_dense, shared, groups, kept;
	double factor;
	bool softmax;		/* as in DeepSeek-V2: scores by softmax, and no bias */
};
int family_deepseek_experts(struct config *c, const struct keys *k, struct family_deepseek d);
/* Keys that it reads, for lists of them, and its aliases and names of tensors. */
#define FAMILY_DEEPSEEK_READS "first_k_dense_replace", "n_shared_experts", "n_group", \
	"topk_group", "routed_scaling_factor"
#define FAMILY_DEEPSEEK_NAMES \
	{ P_SH_GATE, "model.layers.%d.mlp.shared_experts.gate_proj.weight", 0 }, \
	{ P_SH_UP, "model.layers.%d.mlp.shared_experts.up_proj.weight", 0 }, \
	{ P_SH_DOWN, "model.layers.%d.mlp.shared_experts.down_proj.weight", 0 }
extern const struct key_alias family_deepseek_aliases[];
/* DeepSeek-V3 and what has its maths, whole; and the keys that these may ignore. */
int family_deepseek_v3(struct config *c, const struct keys *k, struct family_deepseek d);
#define FAMILY_DEEPSEEK_V3_IGNORES FAMILY_LATENT_IGNORES, { "partial_rotary_factor", "1" }, \
	{ "scoring_func", "\"sigmoid\"" }, { "topk_method", "\"noaux_tc\"" }

/* In place of family_begin(): attention from a latent as DeepSeek-V2 and those after it have it.
 * mscale_all_dim scales the scores too. pairs: of neighbours turn. */
int family_deepseek_begin(struct config *c, const struct keys *k, bool pairs);
#define FAMILY_LATENT_READS "rope_scaling", "rope_parameters", "q_lora_rank", "kv_lora_rank", \
	"qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"
#define FAMILY_LATENT_IGNORES { "hidden_act", "\"silu\"" }, { "attention_dropout", NULL }, \
	{ "attention_bias", "false" }, { "mlp_bias", "false" }, { "head_dim", NULL }, \
	{ "qk_head_dim", NULL }, { "moe_layer_freq", "1" }
/* What Qwen3-Next and those after it have in common, in place of family_begin(): gated attention
 * with norms of 1 + weight in some layers, the gated delta rule in the others, and in all that the
 * caller makes sparse one shared expert with a gate; family_experts() comes after it. grouped: as
 * in struct delta_heads. */
int family_delta(struct config *c, const struct keys *k, bool grouped);
#define FAMILY_DELTA_READS "rope_scaling", "rope_parameters", "partial_rotary_factor", \
	"attention_bias", "layer_types", "full_attention_interval", "linear_conv_kernel_dim", \
	"linear_key_head_dim", "linear_value_head_dim", "linear_num_key_heads", \
	"linear_num_value_heads", "shared_expert_intermediate_size"
/* layer_types of full attention (0) and one other; *found as of keys_list(). */
int family_two_types(const struct config *c, const struct keys *k, const char *other, int *type,
    bool *found);
/* All layers that are sparse get experts of moe_intermediate_size; ends the reading of a family
 * with experts. */
int family_experts(struct config *c, const struct keys *k);

/* Keys of our own models, which also models have that were published and trained here. */
extern const struct key chronos_keys[];
#define CHRONOS_READS "layer_types", "mlp_layer_types", "lookahead_scope", \
	"use_hybrid_attention", "use_moe", "model_type", "rope_scaling", "rope_parameters", \
	"inference_rope_scaling", "decoder_sparse_step", "mlp_only_layers", "sliding_window", \
	"use_sliding_window"
extern const char *const chronos_attn_names[];		/* by enum attn_kind */
/* Everything that follows from them, blocks too. published: absent keys mean what they mean in
 * transformers. */
int chronos_layers(struct config *c, const struct keys *k, bool published);

/* head_dim where it is absent, and whether heads divide. */
int family_heads(struct config *c, const struct keys *k);
/* decoder_sparse_step and mlp_only_layers. */
int family_sparse_step(struct config *c, const struct keys *k);
/* counts sparse layers and checks experts */
int family_sparse_done(struct config *c, const struct keys *k);
/* rope_scaling or rope_parameters as transformers understands them, into c->rope for heads of which
 * `width` elements turn. */
int family_rope(struct config *c, const struct keys *k, int width);
/* The one that counts where both are there. */
const char *family_rope_key(const struct keys *k);
/* token ids against the vocabulary */
int family_ids(struct config *c, const struct keys *k);

#endif
