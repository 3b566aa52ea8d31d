/*
 * model: forward and backward of the whole network for training and teacher-forced evaluation.
 * Inference with KV caches and streamed experts is decode.c; both use the same backend rows.
 *
 *	model_open(&m, &cfg, &mo, &e);  model_init_weights(&m, seed)  or  ckpt_load_weights(...)
 *	model_forward(&m, &batch, &fo);			fills router probabilities and lookahead
 *							logits
 *	... a stage turns outputs into dLoss/dlogp, route_loss() into dLoss/dprobs, dLoss/dlook,
 *	    dLoss/dahead ...
 *	model_head(&m, &batch, coef, logp);		log-probs of targets, head gradient
 *	model_backward(&m, &batch);			adds to m.g
 *
 * A stage is nothing but a function from model outputs to a loss and its gradients: the model
 * knows no stage.
 *
 * Details that have caused bugs: q/k norm before RoPE; MLA queries are [nope | rope] per head;
 * k_rope comes from the latent; the shared expert is always added with weight 1 (and again with
 * the weight of a missing expert); the lookahead head reads h after layer 0 without a norm.
 */
#ifndef CHR_MODEL_H
#define CHR_MODEL_H

#include "backend/backend.h"
#include "arch/config.h"
#include "base/mem.h"
#include "base/profile.h"

struct batch {
	int B, T;
	uint32_t *tok;		/* (R) */
	int32_t *target;	/* (R) id the row must predict, -1: none (already shifted) */
	int32_t *doc_start;	/* (R) as in attn_args; -1 = padding. Positions restart at every
				   document */
	int32_t *from;		/* (R) the record a row is of, as corpus_touch() numbers them;
				   NULL: not asked, else set by sources */
};

struct model_opt {
	int max_b, max_t;	/* capacity of the activations */
	bool train;		/* gradients and saved activations; else forward only */
	bool bf16;		/* matrix products of BF16 values, sums and all else in FP32 */
	bool recompute;		/* train: keep the input of each layer only, and compute the rest
				   again in backward: same bytes */
	int divided;		/* routed experts over groups of so many ranks (comm_divide); 0
				   or 1: all are here */
	int head_rows;		/* logits rows held at a time; 0 = default */
};

struct forward_opt {
	bool train;		/* dropout and random expert misses on */
	uint64_t seed, step;	/* of this micro-batch, for dropout and misses */
	int rank;		/* whose rows these are: ranks have the same misses, but dropout
				   and noise of their own */
	double fallback_mask_prob;
	double neftune;		/* alpha of NEFTune (arXiv:2310.05914), when train: noise on the
				   embeddings; 0: none */
	const int32_t *replay;		/* (Ls, R, K) experts to use instead of the router's
					   choice, weighted by its present probabilities; a row
					   whose first is -1 keeps its own. NULL: none */
	const uint8_t *available;	/* (E) or NULL: 0 = expert replaced by the shared output
					   in every layer */
};

/* For weights and gradients that are exchanged with others meanwhile. Layer -1 is what belongs
 * to none, such as the embedding; the last norm and an untied head are the layer after the last. */
struct model_hooks {
	void (*need)(void *ctx, int layer);	/* the weights up to this layer are needed now */
	void (*complete)(void *ctx, int layer);	/* the gradients from this layer on are complete;
						   of -1 when model_backward is done */
	void *ctx;
};

struct model {
	struct config cfg;
	struct params par;
	const struct backend *be;
	bool bf16;		/* as opened */
	bool recompute;
	struct profile *profile;	/* the owner's, or NULL: times the parts of a step */
	const struct model_hooks *hooks;	/* the owner's, or NULL */
	dev_real *w, *g;	/* (par.total) weights and gradients; g NULL unless opened for
				   training */

	/* outputs of model_forward; R = B*T of the last batch, layers counted over sparse layers
	 * only. All of this is of the device */
	dev_real *probs;		/* (Ls, R, E) router probabilities */
	dev_i32 *topk;		/* (Ls, R, K) chosen experts */
	int64_t replayed, moved;	/* (layer, row) pairs with given experts; of these, the
					   router would choose others now */
	dev_real *look;		/* (R, config_lookahead_rows) lookahead logits */
	dev_real *ahead;	/* (config_ahead_pairs, R, E) logits of the next sparse layer's
				   router on this one's input; NULL unless opened for training
				   and there are pairs */
	dev_real *hidden;		/* (R, D) after the final norm */
	/* inputs of model_backward, zeroed by model_forward, filled by route_loss() */
	dev_real *dprobs;		/* (Ls, R, E) */
	dev_real *dlook;		/* (R, config_lookahead_rows) */
	dev_real *dahead;		/* (config_ahead_pairs, R, E) or NULL */
	dev_real *dhidden;		/* (R, D) filled by model_head */
	struct model_act *act;	/* saved activations (model.c) */
};

/* every byte model_open takes */
void model_plan(struct mem_plan *p, const struct config *c, const struct model_opt *o);
int model_open(struct model *m, const struct config *c, const struct model_opt *o,
    const struct backend *be,
    struct err *e) CHR_MUST_CHECK;
void model_close(struct model *m);
void model_init_weights(struct model *m, uint64_t seed);
void model_init_lookahead(struct model *m, uint64_t seed);	/* of its head alone */

/* (Ls, E) on the host: what routers choose by besides their scores (config_choice_bias). */
void model_choice_bias(const struct model *m, real *bias);

/* A rank that has no rows in this pass calls both with an empty batch (B 0): where experts are
 * divided it has those of others. */
void model_forward(struct model *m, const struct batch *b, const struct forward_opt *o);

/* Log-probs of the targets into logp (R; host), logits computed in chunks and never held whole.
 * coef NULL: forward only. Else coef[r] = dLoss/dlogp[r] and the gradient of the head and
 * dhidden are accumulated on the way. rows: called on each chunk of logits before the log-prob
 * (n rows from row0), for losses that need whole rows; it may add to dlogits, which the gradient
 * of the log-prob is added to. May be NULL. weigh: called when the log-probs of n rows from row0
 * are known and before coef is looked at, for losses whose coef depends on them; not when coef
 * is NULL. */
struct head_hook {
	/* NULL: none */
	void (*fn)(void *ctx, const dev_real *logits, dev_real *dlogits, int64_t row0, int64_t n,
	    int V);
	/* NULL: none */
	void (*weigh)(void *ctx, int64_t row0, int64_t n);
	void *ctx;
};
void model_head(struct model *m, const struct batch *b, const real *coef, real *logp,
    const struct head_hook *hook);

/* After model_forward and model_head on the same batch; with recompute what forward_opt points
 * to must still be there. */
void model_backward(struct model *m, const struct batch *b);

void model_logits(struct model *m, dev_real *logits);	/* (R, V) of the last forward: tests and
							   dumps only */

#endif
