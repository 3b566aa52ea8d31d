/*
 * loss: base losses of the stages, as functions of the targets' log-probs. Each fills coef[r] =
 * dLoss/dlogp[r], which model_head() turns into gradients, and the loss itself comes out of the
 * log-probs.
 */
#ifndef CHR_LOSS_H
#define CHR_LOSS_H

#include "model/model.h"

/* Rows with a target; rows that are not padding. */
int64_t loss_targets(const struct batch *b);
int64_t loss_tokens(const struct batch *b);

/* Next-token cross-entropy, the part of this batch in a mean over `targets` rows: -1/targets *
 * sum_r logp[r]. A batch without targets gives 0. coef (R) or NULL: the value only, no gradient.
 * logp (R): the log-probs, for the caller to keep. */
double loss_ce(struct model *m, const struct batch *b, int64_t targets, real *coef, real *logp);

#endif
