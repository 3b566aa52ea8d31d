/*
 * config: config.json of a model directory: the sizes of a network, and a block for each of its
 * layers (block.h). Which keys a file may have, and what they mean, is a matter of its family
 * (arch.h).
 *
 * Dimension letters used in all of lib/: B batch, T tokens of a sequence, R = B*T rows, D
 * hidden_size, L layers, H heads, G key/value heads, d head_dim, C latent, r rope_dim, E experts, K
 * experts per token, S shared experts, F moe_intermediate_size, V vocabulary.
 */
#ifndef CHR_CONFIG_H
#define CHR_CONFIG_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "arch/block.h"
#include "arch/param.h"
#include "base/err.h"

#define CFG_MAX_LAYERS 256

struct arch;

struct config {
	const struct arch *arch;
	const struct param_name *names;	/* of its tensors, where they differ from param_class */
	/* As the file says; what a layer does with them is in its block. */
	int format;			/* chronos_format: 1 or 2 */
	int vocab_size, hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads,
	    head_dim;
	int intermediate_size;		/* width of dense MLPs */
	int moe_intermediate_size, num_experts, num_experts_per_tok, num_shared_experts;
	bool norm_topk_prob, tie_word_embeddings;
	bool norm_plus_one;		/* norms multiply by 1 + weight (PARAM_PLUS_ONE) */
	int kv_latent_dim, rope_dim, sliding_window_size;
	double rope_theta, rms_norm_eps;
	/* The embedding is multiplied by the first, what attention and MLP add to the stream by the
	 * second; logits are divided by the third. 1 in most families. */
	double embedding_multiplier, residual_multiplier, logits_scaling;
	double attention_multiplier;	/* of scores, where a family has it */
	int max_position_embeddings;
	/* of full and sliding attention, before format 1 decides whether it counts */
	struct rope rope;
	struct block block[CFG_MAX_LAYERS];
	int num_sparse;			/* count of sparse layers */
	/* 0: no lookahead head; else it has lookahead_steps+1 offsets, 0 = this token */
	int lookahead_steps;
	bool lookahead_per_layer;	/* lookahead_scope */
	double lambda_balance, lambda_temporal, lambda_lookahead, lambda_lookahead_topk,
	       lambda_lookahead_union, lambda_router_locality, lambda_router_anchor, lambda_ahead;
	double dropout, fallback_mask_prob;
	int bos_token_id, eos_token_id, pad_token_id;
	int scale_rows, scale_cols;	/* quantization_config of FP8: of what one scale is for; 0:
					   it has none */
	json_t *raw;			/* the object as read, with overrides; owned */
};

/* Reads a file (a config.json, or a directory that holds one). sets: n strings "key=value" applied
 * before checking, value parsed as JSON, else taken as a string; an unknown key is EX_USAGE. 0 or
 * -1; messages name file and key. */
int config_load(struct config *c, const char *path, int nsets, const char *const sets[],
    struct err *e) CHR_MUST_CHECK;
int config_from_json(struct config *c, const json_t *o, int nsets, const char *const sets[],
    struct err *e) CHR_MUST_CHECK;
/* name: of what it came from, for messages */
int config_from_object(struct config *c, const json_t *o, const char *name, int nsets,
    const char *const sets[], struct err *e) CHR_MUST_CHECK;
/* Every key of ours with its resolved value, and those of the file. */
json_t *config_to_json(const struct config *c);
void config_free(struct config *c);

/* Outputs of the lookahead head: (lookahead_steps+1) * E, times num_sparse when per layer. 0
 * without a head. Row (k*num_sparse + i)*E + e is offset k, i-th sparse layer, expert e; step-major
 * as in the reference. */
int config_lookahead_rows(const struct config *c);
/* Pairs of consecutive sparse layers whose later router is trained to be foreseen from the earlier
 * one's input. */
static inline int config_ahead_pairs(const struct config *c)
{
	return c->lambda_ahead > 0 && c->num_sparse > 1 ? c->num_sparse - 1 : 0;
}
/* Has the router of any layer a bias for the choice? */
bool config_choice_bias(const struct config *c);
bool config_biased(const struct config *c);	/* has any layer a bias of a product? */
bool config_expert_biased(const struct config *c);	/* one of routed experts? */
bool config_recurs(const struct config *c);	/* has any layer a state? */
/* The object in which the keys of the network are: all of c->raw, or a part (struct arch). */
json_t *config_keys(const struct config *c);
/* EX_UNAVAILABLE where it can be run, but not trained. */
int config_trains(const struct config *c, struct err *e) CHR_MUST_CHECK;
/* The positions of the layers with or without MLA, which are all alike; NULL: there is no such
 * layer. */
const struct rope *config_rope(const struct config *c, bool mla);
static inline int config_kv_width(const struct config *c)
{
	return c->num_key_value_heads * c->head_dim;
}

#endif
