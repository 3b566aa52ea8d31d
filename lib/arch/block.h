/*
 * block: what one layer of a network computes, in terms that training, decoding, planning and
 * packing all read. A family (arch.h) fills one per layer from its config.json; maths that a block
 * cannot say is refused by name there.
 *
 * Letters as in config.h. What is the same in every layer (D, H, G, d, E, K, epsilon) stays in
 * struct config.
 */
#ifndef CHR_BLOCK_H
#define CHR_BLOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "arch/rope.h"
#include "backend/glu.h"
#include "backend/router.h"

enum attn_kind {
	ATTN_FULL,		/* grouped queries, all positions before */
	ATTN_SLIDING,		/* grouped queries, the last `window` positions */
	ATTN_MLA,		/* keys and values from a latent, in the reference's form */
	/* the same as DeepSeek published it (arXiv:2405.04434): one turned key for all heads,
	 * beside the latent */
	ATTN_LATENT,
	/* what follows has no keys and values, but a state of fixed size for each sequence */
	ATTN_DELTA,		/* the gated delta rule (arXiv:2412.06464), after a convolution */
	ATTN_CONV		/* a short convolution between two gates (LFM2) */
};

/* ATTN_DELTA: heads of values with a state (dk, dv) each, which share G heads of keys. */
struct delta_heads {
	int H, G, dk, dv;
	/* q, k, v, z of a key head lie together in one projection, and b, a in another; else each
	 * of qkv, z, b and a has its own */
	bool grouped;
};

enum qk_norm {
	QK_NORM_NONE,
	QK_NORM_HEAD,		/* RMSNorm on each head of q and k */
	QK_NORM_WIDTH		/* RMSNorm on all heads of q together, and on those of k */
};

struct block {
	enum attn_kind attn;
	int window;		/* ATTN_SLIDING: positions that a token sees, itself included */
	enum qk_norm qk_norm;
	bool norm_after;	/* the norm of q and k comes after the rotation */
	bool qkv_bias, o_bias;	/* q, k and v have a bias each; the output projection has one */
	/* q (after its norm), k and v are cut to -clip..clip before they turn; 0: they are not. It
	 * needs a norm of q and k before the rotation. */
	double clip;
	bool sinks;		/* each head has one more score, learned, of a key without value */
	struct rope rope;	/* of its width: d, or r of MLA */
	int latent, nope;	/* of a latent: C, and the part of a head without positions */
	/* ATTN_LATENT: rank of the queries, 0: full; width of a head's values */
	int q_rank, value;
	double latent_eps;	/* of the norms within attention from a latent */
	double scale;		/* of scores, q . k */
	bool gated;		/* heads of q are twice as wide: the second half, by sigmoid,
				   multiplies what the head gives */
	struct delta_heads delta;
	int taps;		/* inputs that a convolution sees: ATTN_DELTA, ATTN_CONV */
	bool conv_bias;		/* it and the projection before it have biases */

	bool sparse;		/* routed experts; else one dense MLP */
	int width;		/* F of a routed expert, or that of the dense MLP */
	struct router router;
	bool logit_bias;	/* of the router's product: it is in the logits */
	bool router_bias;	/* added to the scores for the choice only */
	bool router_bias_row;	/* it is stored as (1, E) */
	bool expert_bias;	/* gate, up and down of each routed expert have a bias each */
	struct glu glu;		/* of every FFN */
	int shared;		/* shared experts, that every token passes */
	int shared_width;	/* F of one of them */
	bool shared_gate;	/* their output is multiplied by sigmoid(x . gate) */
};

/* The weight of each shared expert where their output counts `times`: they are averaged. */
static inline double block_shared_weight(const struct block *b, double times)
{
	return times / b->shared;
}

static inline bool block_latent(const struct block *b)
{
	return b->attn == ATTN_MLA || b->attn == ATTN_LATENT;
}

/* Has it a state in place of keys and values? */
static inline bool block_recurs(const struct block *b)
{
	return b->attn == ATTN_DELTA || b->attn == ATTN_CONV;
}

/* Values of the projection that a convolution reads, all heads of q, k and v. */
static inline int64_t block_delta_width(const struct block *b)
{
	return 2 * (int64_t)b->delta.G * b->delta.dk + (int64_t)b->delta.H * b->delta.dv;
}

/* FFNs that every row passes: the shared experts, or the one MLP of a dense layer. */
static inline int block_fixed(const struct block *b) { return b->sparse ? b->shared : 1; }
static inline int block_fixed_width(const struct block *b) { return b->sparse ? b->shared_width
    : b->width; }

#endif
