/*
 * config: config.json of a model directory, and the list of parameters that follows from it.
 *
 * Keys and defaults are the reference's (man chr-model.5); chronos_format 1 (key absent)
 * reproduces its parameterisation, 2 is ours. Unknown keys are kept and written back.
 *
 * Dimension letters used in all of lib/: B batch, T tokens of a sequence, R = B*T rows, D
 * hidden_size, L layers, H heads, G key/value heads, d head_dim, C latent, r rope_dim, E
 * experts, K experts per token, S shared experts, F moe_intermediate_size, V vocabulary.
 */
#ifndef CHR_CONFIG_H
#define CHR_CONFIG_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#define CFG_MAX_LAYERS 256

enum layer_type { LAYER_MLA, LAYER_SLIDING, LAYER_FULL };

struct config {
	int format;			/* chronos_format: 1 or 2 */
	int vocab_size, hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads,
	    head_dim;
	int intermediate_size;		/* width of dense MLPs */
	int moe_intermediate_size, num_experts, num_experts_per_tok, num_shared_experts;
	bool norm_topk_prob, tie_word_embeddings;
	int kv_latent_dim, rope_dim, sliding_window_size;
	double rope_theta, rms_norm_eps;
	int max_position_embeddings;
	bool yarn;			/* rope_scaling.type == "yarn" */
	double yarn_factor, yarn_beta_fast, yarn_beta_slow, yarn_attention_factor;
	int yarn_original_max;
	enum layer_type layer_type[CFG_MAX_LAYERS];
	bool sparse[CFG_MAX_LAYERS];	/* mlp_layer_types; false: dense MLP of intermediate_size */
	int num_sparse;			/* count of sparse layers */
	int lookahead_steps;		/* 0: no lookahead head; else it has lookahead_steps+1
					   offsets, 0 = this token */
	bool lookahead_per_layer;	/* lookahead_scope */
	double lambda_balance, lambda_temporal, lambda_lookahead, lambda_lookahead_topk,
	    lambda_lookahead_union,
	       lambda_router_locality, lambda_router_anchor, lambda_ahead;
	double dropout, fallback_mask_prob;
	int bos_token_id, eos_token_id, pad_token_id;
	json_t *raw;			/* the object as read, with overrides; owned */
};

/* Reads a file (a config.json, or a directory that holds one). sets: n strings "key=value"
 * applied before checking, value parsed as JSON, else taken as a string; an unknown key is
 * EX_USAGE. 0 or -1; messages name file and key. */
int config_load(struct config *c, const char *path, int nsets, const char *const sets[],
    struct err *e);
int config_from_json(struct config *c, const json_t *o, int nsets, const char *const sets[],
    struct err *e);
json_t *config_to_json(const struct config *c);		/* complete: every key with its resolved
							   value */
void config_free(struct config *c);

/* Outputs of the lookahead head: (lookahead_steps+1) * E, times num_sparse when per layer. 0
 * without a head. Row (k*num_sparse + i)*E + e is offset k, i-th sparse layer, expert e;
 * step-major as in the reference. */
int config_lookahead_rows(const struct config *c);
/* Pairs of consecutive sparse layers whose later router is trained to be foreseen from the
 * earlier one's input. */
static inline int config_ahead_pairs(const struct config *c)
{
	return c->lambda_ahead > 0 && c->num_sparse > 1 ? c->num_sparse - 1 : 0;
}
static inline int config_kv_width(const struct config *c)
{
	return c->num_key_value_heads * c->head_dim;
}

enum param_kind {
	P_EMBED, P_HEAD, P_NORM, P_IN_NORM, P_POST_NORM,
	/* full and sliding attention (o is shared with MLA) */
	P_Q, P_K, P_V, P_O, P_QNORM, P_KNORM,
	P_QNOPE, P_QROPE, P_QNOPE_NORM, P_QROPE_NORM, P_KVDOWN, P_KVDOWN_NORM, P_KNOPE, P_KROPE,
	    P_MLA_V,
	P_GATE,							/* router (E, D) */
	P_EXP_GATE, P_EXP_UP, P_EXP_DOWN,			/* routed experts */
	P_SH_GATE, P_SH_UP, P_SH_DOWN,				/* shared experts */
	P_MLP_GATE, P_MLP_UP, P_MLP_DOWN,			/* dense layers */
	P_LOOK0, P_LOOK2,
	P_KINDS
};

struct param {
	char name[104];			/* tensor name in model.safetensors */
	enum param_kind kind;
	int layer, expert;		/* -1 where meaningless; expert is also the index of a
					   shared expert */
	int ndim;			/* 1 or 2 */
	int rows, cols;			/* 1-D: rows = length, cols = 1 */
	int64_t off;			/* element offset in one flat array of all parameters, a
					   multiple of 16 */
	int owner;			/* of several arrays, the one that it is in; -1: it is in
					   all */
};

struct params {
	int n;
	struct param *p;
	int64_t total;			/* elements of the flat array (padding included) */
	int64_t count;			/* real parameters, of all arrays */
	int here;			/* which of several arrays is meant: params_divide() */
	/* private: tables behind params_find and params_get */
	int *hash, hash_size;
	int *first, layers;
};

/* Every parameter in file order. gate, up and down of one expert are adjacent. */
int params_build(struct params *ps, const struct config *c, struct err *e);
/* Divides routed experts over n arrays, neighbours together: off is then that in the owner's
 * array, total is of any of them (all are alike, an expert taking the place of the one as far
 * from the owner's first), and params_here() tells what is in the one at place `here`. EX_USAGE:
 * the experts do not divide by n. */
int params_divide(struct params *ps, int n, int here, struct err *e);
static inline bool params_here(const struct params *ps, const struct param *p)
{
	return p->owner < 0 || p->owner == ps->here;
}
/* O(1); NULL if absent */
const struct param *params_find(const struct params *ps, const char *name);
/* O(1), NULL */
const struct param *params_get(const struct params *ps, enum param_kind k, int layer, int expert);
/* hit[i] (n of ps): does the name of parameter i match one of the shell patterns? -1: one
 * matches nothing (EX_USAGE). */
int params_match(const struct params *ps, int npatterns, const char *const patterns[], bool *hit,
    struct err *e);
/* those that a token meets */
int64_t params_active(const struct params *ps, const struct config *c);
void params_free(struct params *ps);
static inline int64_t param_size(const struct param *p) { return (int64_t)p->rows * p->cols; }
/* with padding */
static inline int64_t param_span(const struct param *p) { return (param_size(p) + 15) / 16 * 16; }

#endif
