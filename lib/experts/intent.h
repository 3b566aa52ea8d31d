/*
 * intent: which experts will the answer to this prompt use? A small encoder of the prompt's
 * tokens that chr-intent trains on activation records; it is intent.safetensors in the model
 * directory (man chr-intent.1), plain or packed.
 *
 *	struct intent *m = intent_load(dir, &cfg, &e);		(NULL with e.status 0: the model
 *	has none)
 *	intent_expect(m, prompt, n, share);			(before the prompt is evaluated)
 *	... evaluate it, counting its own uses of experts ...
 *	intent_blend(m, share, used, n, m->blend);		(after)
 *
 * Maths: x_t the embedding of token t (W wide, its own table), a = softmax over t of u . x_t, p
 * = sum a_t x_t, h = GELU(A p + a0), y = B h + b, and for each sparse layer softmax over its E
 * of the E entries of y. The order of tokens does not matter. Sums are in a fixed order: no
 * threads.
 */
#ifndef CHR_INTENT_H
#define CHR_INTENT_H

#include <jansson.h>
#include <stdint.h>

#include "arch/config.h"
#include "base/err.h"
#include "base/real.h"

#define INTENT_MAX_WIDTH 512
#define INTENT_PRIOR 2048		/* intent_blend: tokens of a prompt that count as much as
					   what was expected */

enum { INTENT_EMBED, INTENT_POOL, INTENT_HIDDEN, INTENT_HIDDEN_BIAS, INTENT_OUT, INTENT_OUT_BIAS,
    INTENT_PARAMS };

struct intent {
	int V, W, Ls, E, K;		/* Ls: sparse layers */
	double blend;			/* what the prompt's own uses are worth beside it, 0 to
					   1: found in training */
	char fingerprint[33];		/* of the model it is for */
	struct params par;		/* names and offsets, for an optimizer; in the order of
					   the enum */
	struct param p[INTENT_PARAMS];
	real *w;			/* (par.total) */
};

/* NULL with e->status 0: there is none. EX_DATAERR: damaged, of another shape, or of another
 * model than the one in dir. */
struct intent *intent_load(const char *dir, const struct config *c, struct err *e) CHR_MUST_CHECK;
void intent_free(struct intent *m);		/* NULL is fine */
/* What intent_load would hold; 0 when there is none or it cannot be read. */
int64_t intent_bytes(const char *dir, const struct config *c);

/* Expected uses of each expert per token of the answer: share is (Ls, E), each layer sums to K.
 * Allocates nothing. Tokens outside the vocabulary do not count. */
void intent_expect(const struct intent *m, const uint32_t *tok, int n, real *share);

/* share, as of intent_expect(), becomes (1 - blend) share + blend used / n, where the n tokens
 * of the prompt used each expert so often, (Ls, E). */
void intent_blend(const struct intent *m, real *share, const real *used, int n, double blend);

/* ---- training ---- */

/* A new one: embedding and A random, u and B zero, so that it expects what b says. fingerprint
 * is copied. NULL: memory. */
struct intent *intent_new(const struct config *c, const char *fingerprint, int width,
    uint64_t seed);
/* Sets b: the logarithms of how often each expert is used, (Ls, E); one that never is counts as
 * half a use. */
void intent_popular(struct intent *m, const double *used);

/* Cross-entropy, in nats, mean over layers, of the answer's uses of experts, (Ls, E), under what
 * is expected of the prompt. Adds weight times its gradient to g (par.total), unless NULL.
 * scratch: (Ls * E). Layers that were not used do not count. */
double intent_loss(const struct intent *m, const uint32_t *tok, int n, const real *used,
    real weight, real *g,
    real *scratch);

/* Writes DIR/intent.safetensors, whole or not at all. meta: strings for the metadata, may be
 * NULL. */
int intent_save(const struct intent *m, const char *dir, const json_t *meta, struct err *e)
    CHR_MUST_CHECK;

#endif
