/*
 * upcycle: a model with experts that begins as a dense one (Komatsuzaki and others 2022,
 * arXiv:2212.05055). Every expert is a copy of the dense MLP of its layer, and the weights of the
 * chosen are renormalised, so that the new model computes what the dense one does until training
 * parts the experts. Only routers, and a lookahead head, are new.
 *
 * A share of each expert may be drawn anew (Nakamura and others 2025, arXiv:2502.19261), so that
 * experts differ from the start; the first loss is then above the dense one.
 */
#ifndef CHR_UPCYCLE_H
#define CHR_UPCYCLE_H

#include "arch/config.h"
#include "base/err.h"
#include "model/model.h"

/* The configuration: that of the dense model in dir, as the family of its kind that has experts: a
 * llama becomes a mixtral, a qwen3 a qwen3_moe. 8 experts of which a token takes 2, unless sets say
 * otherwise. EX_DATAERR: a family that has no such kind. EX_USAGE: sets ask for what breaks the
 * promise above. */
int upcycle_config(struct config *c, const char *dir, int nsets, const char *const sets[],
    struct err *e) CHR_MUST_CHECK;

/* The weights of m, which has the initial ones of model_init_weights(). drop: the share of the
 * width of each expert that is drawn anew, 0 to 1, from a normal distribution of the mean and the
 * variance that the matrix has. The same for any number of ranks. */
int upcycle_weights(struct model *m, const char *dir, double drop, uint64_t seed, struct err *e)
    CHR_MUST_CHECK;

#endif
