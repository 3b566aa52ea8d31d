/*
 * foresee_spool: what a model did on some texts, for chr-foresee: the input of every router, on
 * disk, one layer after the other, and the choices, in memory. The file has no name: it is gone
 * when the program ends, however it ends.
 *
 *	foresee_spool_open(&s, dir, &cfg, tokens, chunk, &e);
 *	for each piece of a sequence: foresee_spool_add(&s, inputs, topk, n, first, held, &e);
 *	for each layer: foresee_spool_layer(&s, i, x, &e);
 */
#ifndef CHR_FORESEE_SPOOL_H
#define CHR_FORESEE_SPOOL_H

#include <stdbool.h>
#include <stdint.h>

#include "arch/config.h"
#include "base/err.h"
#include "base/real.h"

struct foresee_spool {
	const struct config *cfg;
	int fd, chunk;
	int64_t most, n;		/* tokens: that there is room for; so far */
	int32_t *ids;			/* (Ls, most, K) what routers chose */
	bool *first;			/* (most) begins a sequence */
	bool *held;			/* (most) only to measure */
	real *turn;			/* (chunk, D) rows of one layer */
};

/* Bytes of memory, and of the disk. */
int64_t foresee_spool_bytes(const struct config *c, int64_t tokens, int chunk);
int64_t foresee_spool_disk(const struct config *c, int64_t tokens);
/* dir: where the file goes. EX_CANTCREAT; EX_IOERR: not so much room is left. */
int foresee_spool_open(struct foresee_spool *s, const char *dir, const struct config *c,
    int64_t tokens, int chunk, struct err *e) CHR_MUST_CHECK;
void foresee_spool_close(struct foresee_spool *s);
/* n tokens, at most chunk and what there is room for: inputs (n, Ls, D), topk (n, Ls, K). first:
 * they begin a sequence. EX_IOERR. */
int foresee_spool_add(struct foresee_spool *s, const real *inputs, const int32_t *topk, int n,
    bool first, bool held, struct err *e) CHR_MUST_CHECK;
/* Inputs of sparse layer i: x (n, D). EX_IOERR */
int foresee_spool_layer(const struct foresee_spool *s, int i, real *x, struct err *e)
    CHR_MUST_CHECK;
/* (K) the choice of layer i at token t */
static inline const int32_t *foresee_spool_ids(const struct foresee_spool *s, int i, int64_t t)
{
	return s->ids + ((int64_t)i * s->most + t) * s->cfg->num_experts_per_tok;
}

#endif
