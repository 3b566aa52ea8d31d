/*
 * predict: who is needed next. Turns the outputs of the two predictors into store_predict() calls and counts how often
 * they were right:
 *
 *	gate		the router of the next sparse layer, applied to the router input of this one (one step ahead)
 *	lookahead	the head read after layer 0, for the tokens that follow (a whole token ahead)
 *
 * Recall is counted on what was really asked of the store: the gate for every row, the head for the first row that a
 * sequence evaluates after a prediction. Layers are counted over sparse layers.
 */
#ifndef CHR_PREDICT_H
#define CHR_PREDICT_H

#include "config.h"
#include "decode.h"
#include "real.h"
#include "store.h"

struct predict;

struct predict *predict_new(const struct config *c, int max_rows);	/* NULL: out of memory */
void predict_free(struct predict *p);
int64_t predict_bytes(const struct config *c, int max_rows);			/* what predict_new takes */
int predict_set_size(const struct config *c);		/* entries of the `next` arrays below: Ls * K */

/* probs (R, E): softmax of layer i's router on layer i-1's router input. Asks the store for layer i, one step away. */
void predict_gate(struct predict *p, struct store *s, int i, const real *probs, int R);

/* look (rows): softmaxed head of the last token of a sequence. since: sparse layers this token has already passed.
 * next gets the sets of the following token, for predict_seen. */
void predict_look(struct predict *p, struct store *s, const real *look, int since, int32_t *next);

/* Layer i's router chose ids (R, K). next[r]: the sets predicted for row r by predict_look, or NULL. */
void predict_seen(struct predict *p, int i, const int32_t *ids, int R, const int32_t *const *next,
    struct eval_stats *st);

#endif
