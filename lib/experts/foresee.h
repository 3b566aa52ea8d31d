/*
 * foresee: heads for a model whose router was not trained to be foreseen. From what the router of
 * sparse layer i reads, they say which experts the next layers will want: horizon h is the layer h
 * places on, and after the last layer the first ones of the next token. chr-foresee trains them
 * with all else frozen; they are foresee.safetensors in the model directory (man chr-foresee.1),
 * plain or packed.
 *
 *	struct foresee *f = foresee_load(dir, &cfg, &e);	(NULL, e.status 0: there is none)
 *	const real *q = foresee_part(f, i, FORESEE_SCALE);	(of layer i)
 *
 * Maths, of layer i with input x (D) and j = i + h: the router of layer j, G_j (E, D), applied to x
 * ahead of time, and what layers between may change, through a narrow hidden layer,
 *
 *	z = G_j (s_h * x) + O_h silu(A x) + b_h + p_h * last_j
 *
 * where last_j (E) is 1 for the experts that the token before used in layer j. The K largest of z
 * are the guess. s begins as the ratio of the two norms' weights, so that G_j reads what it would
 * read if the layers between added nothing; O, b and p begin as 0.
 */
#ifndef CHR_FORESEE_H
#define CHR_FORESEE_H

#include <jansson.h>
#include <stdint.h>

#include "arch/config.h"
#include "base/err.h"
#include "base/real.h"
#include "format/modeldir.h"

#define FORESEE_MAX_WIDTH 4096
#define FORESEE_MAX_HORIZON 8

enum { FORESEE_IN,		/* A (W, D) */
	FORESEE_SCALE,		/* s (H, D) */
	FORESEE_OUT,		/* O (H*E, W) */
	FORESEE_BIAS,		/* b (H, E) */
	FORESEE_PREVIOUS,	/* p (H, E) */
	FORESEE_PARTS };

struct foresee {
	int D, Ls, E, W, H;		/* Ls: sparse layers; H: horizons, at most Ls */
	char fingerprint[33];		/* of the model they are for */
	struct params par;		/* of all layers; a layer's parts are neighbours */
	struct params one;		/* those of one layer, for an optimizer */
	real *w;			/* (par.total) */
};

/* NULL with e->status 0: there is none. EX_DATAERR: damaged, of another shape, or of another
 * model than the one in dir. */
struct foresee *foresee_load(const char *dir, const struct config *c, struct err *e) CHR_MUST_CHECK;
void foresee_free(struct foresee *f);		/* NULL is fine */
/* What foresee_load would hold, and its width in *width; 0 when there is none or it cannot be
 * read. */
int64_t foresee_bytes(const char *dir, const struct config *c, int *width, int *horizons);

/* Where a part of layer i lies. */
real *foresee_part(const struct foresee *f, int i, int part);
/* The layer that horizon h (from 1) of layer i is, among sparse ones; *on: 1, of the next token. */
static inline int foresee_target(const struct foresee *f, int i, int h, int *on)
{
	*on = i + h >= f->Ls;
	return (i + h) % f->Ls;
}

/* New ones that guess what the routers say ahead of time. norms: (Ls, D) weights of the norms
 * before the routers. fingerprint is copied. NULL: memory. */
struct foresee *foresee_new(const struct config *c, const char *fingerprint, int width,
    int horizons, const real *norms, uint64_t seed);
/* Writes DIR/foresee.safetensors, whole or not at all. meta: strings for the metadata, or NULL. */
int foresee_save(const struct foresee *f, const char *dir, const json_t *meta, struct err *e)
    CHR_MUST_CHECK;

#endif
