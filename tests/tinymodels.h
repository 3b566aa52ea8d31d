/* Networks of all kinds, small enough to write and run in a moment: config.json's text for
 * tinymodel(). */
#ifndef TINYMODELS_H
#define TINYMODELS_H

#include "tinymodel.h"

static const struct { const char *name, *json; } models[] = {
	{ "mla and sliding, format 2", "{\"chronos_format\":2,\"hidden_size\":24,"
	    "\"num_attention_heads\":4,"
	    "\"num_key_value_heads\":2,\"head_dim\":10,\"rope_dim\":4,\"kv_latent_dim\":9,"
	    "\"sliding_window_size\":7,"
	    "\"num_hidden_layers\":4,\"num_experts\":6,\"num_experts_per_tok\":2,"
	    "\"moe_intermediate_size\":13,"
	    "\"vocab_size\":61,\"use_hybrid_attention\":true,\"lookahead_steps\":2,"
	    "\"num_shared_experts\":2}" },
	{ "mla and sliding, format 1, odd rope", "{\"hidden_size\":24,\"num_attention_heads\":3,"
	    "\"num_key_value_heads\":3,\"head_dim\":8,\"rope_dim\":5,\"kv_latent_dim\":20,"
	    "\"sliding_window_size\":16,"
	    "\"num_hidden_layers\":3,\"num_experts\":5,\"num_experts_per_tok\":1,"
	    "\"moe_intermediate_size\":40,"
	    "\"vocab_size\":97,\"use_hybrid_attention\":true,\"lookahead_steps\":1}" },
	{ "full attention, dense first, untied, no shared, yarn",
	    "{\"chronos_format\":2,\"hidden_size\":20,"
	    "\"num_attention_heads\":4,\"num_key_value_heads\":1,\"head_dim\":6,"
	    "\"num_hidden_layers\":3,\"num_experts\":7,"
	    "\"num_experts_per_tok\":3,\"moe_intermediate_size\":9,\"intermediate_size\":31,"
	    "\"vocab_size\":50,"
	    "\"use_hybrid_attention\":false,\"lookahead_steps\":0,\"num_shared_experts\":0,"
	    "\"norm_topk_prob\":false,"
	    "\"tie_word_embeddings\":false,\"mlp_layer_types\":[\"dense\",\"sparse\",\"sparse\"],"
	    "\"inference_rope_scaling\":true,\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4,"
	    "\"original_max_position_embeddings\":64,\"beta_fast\":32,\"beta_slow\":1,"
	    "\"attention_factor\":1.0}}" },
	{ "delta rule and gated attention", "{\"model_type\":\"qwen3_next\",\"hidden_size\":24,"
	    "\"num_attention_heads\":2,\"num_key_value_heads\":1,\"head_dim\":16,"
	    "\"linear_num_key_heads\":2,\"linear_num_value_heads\":6,\"linear_key_head_dim\":5,"
	    "\"linear_value_head_dim\":19,\"linear_conv_kernel_dim\":3,"
	    "\"full_attention_interval\":3,\"num_hidden_layers\":4,\"num_experts\":6,"
	    "\"num_experts_per_tok\":2,\"moe_intermediate_size\":13,"
	    "\"shared_expert_intermediate_size\":9,\"vocab_size\":61,"
	    "\"max_position_embeddings\":64}" },
	{ "groups and a bias", "{\"model_type\":\"glm4_moe\",\"hidden_size\":20,"
	    "\"num_attention_heads\":2,\"num_key_value_heads\":1,\"head_dim\":8,"
	    "\"intermediate_size\":31,\"num_hidden_layers\":3,\"n_routed_experts\":9,"
	    "\"num_experts_per_tok\":4,\"n_group\":3,\"topk_group\":2,"
	    "\"moe_intermediate_size\":9,\"first_k_dense_replace\":1,\"n_shared_experts\":1,"
	    "\"vocab_size\":50,\"max_position_embeddings\":64}" },
	{ "short convolution with biases", "{\"model_type\":\"lfm2_moe\",\"hidden_size\":20,"
	    "\"num_attention_heads\":2,\"num_key_value_heads\":1,\"intermediate_size\":31,"
	    "\"layer_types\":[\"conv\",\"full_attention\",\"conv\"],\"conv_L_cache\":5,"
	    "\"conv_bias\":true,\"tie_word_embeddings\":false,\"num_hidden_layers\":3,"
	    "\"num_dense_layers\":1,"
	    "\"num_experts\":5,\"num_experts_per_tok\":2,\"moe_intermediate_size\":9,"
	    "\"vocab_size\":50,\"max_position_embeddings\":64}" },
	{ "biases, sinks and windows", "{\"model_type\":\"gpt_oss\",\"hidden_size\":20,"
	    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":8,"
	    "\"intermediate_size\":9,\"num_hidden_layers\":3,\"num_local_experts\":5,"
	    "\"num_experts_per_tok\":2,\"sliding_window\":6,\"swiglu_limit\":1.0,"
	    "\"vocab_size\":50,\"max_position_embeddings\":64}" },
	{ "multipliers", "{\"model_type\":\"granitemoe\",\"hidden_size\":20,"
	    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"intermediate_size\":9,"
	    "\"head_dim\":6,"
	    "\"num_hidden_layers\":3,\"num_local_experts\":5,\"num_experts_per_tok\":2,"
	    "\"embedding_multiplier\":3,\"residual_multiplier\":0.4,"
	    "\"attention_multiplier\":0.2,\"logits_scaling\":1.7,\"attention_bias\":true,"
	    "\"vocab_size\":50,\"max_position_embeddings\":64}" },
	{ "clipped", "{\"model_type\":\"olmoe\",\"hidden_size\":20,"
	    "\"num_attention_heads\":2,\"num_key_value_heads\":1,\"intermediate_size\":9,"
	    "\"num_hidden_layers\":2,\"num_experts\":5,\"num_experts_per_tok\":2,"
	    "\"clip_qkv\":0.8,\"vocab_size\":50,\"max_position_embeddings\":64}" },
};
#define MODELS ((int)(sizeof(models) / sizeof(*models)))

#endif
