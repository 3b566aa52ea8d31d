/*
 * foresee_fit: training and measuring the heads of foresee.h on what a model did (foresee_spool.h).
 * Each layer's heads are trained by themselves, all horizons together, by the cross-entropy of
 * sigmoid(z) against the router's choice: of each expert whether it is chosen. (The softmax of z
 * against 1/K for each of the K, which the lookahead head learns by, named fewer whole sets: 60 of
 * 100 instead of 67, on a model of 64 experts, top-8.)
 *
 *	foresee_fit_open(&t, f, &spool, gates, be, &opt, &e);
 *	for each sparse layer i:
 *		foresee_fit_layer(&t, i, &loss, &e);	trains
 *		foresee_fit_measure(&t, i, recall);	of the held tokens
 *	foresee_fit_close(&t);
 */
#ifndef CHR_FORESEE_FIT_H
#define CHR_FORESEE_FIT_H

#include "backend/backend.h"
#include "base/mem.h"
#include "experts/foresee.h"
#include "model/optim.h"
#include "stages/foresee_spool.h"

struct foresee_opt {
	int batch;		/* tokens of a step */
	double epochs, lr, decay;
	uint64_t seed;
};

/* Of what guesses, over held tokens of one layer and horizon: */
enum foresee_by { FORESEE_BY_HEADS, FORESEE_BY_GATE, FORESEE_BY_PREVIOUS, FORESEE_BY_POPULARITY,
    FORESEE_BY_CONTROL, FORESEE_BYS };
struct foresee_recall {
	int64_t n[FORESEE_BYS];		/* tokens where there was one */
	int64_t hit[FORESEE_BYS];	/* of their K experts, those named */
	int64_t whole[FORESEE_BYS];	/* all K named */
};

struct foresee_router {		/* of a sparse layer, on the host */
	const struct router *r;
	const real *gate;		/* (E, D) */
	const real *logit_bias, *bias;	/* (E) added to logits; for the choice; or NULL */
};

struct foresee_fit {
	struct foresee *f;
	const struct foresee_spool *spool;
	const struct foresee_router *router;	/* (Ls) */
	const struct backend *be;
	struct foresee_opt o;
	int K;
	struct optim optim;
	dev_real *w, *g;		/* (one.total) of the layer in hand, and gradients */
	dev_real *gates;		/* (H + 1, E, D) routers of it and of its horizons */
	void *dev_mem, *host_mem;
	/* Arrays for a batch of B tokens, on the device and on the host. */
	dev_real *x, *pre, *hidden, *z, *xs, *dz, *dhidden, *dx;
	real *hx, *hz, *hdx;
	real *previous, *dprevious, *dbias, *dscale;	/* (H, E) three times, (H, D) */
	real *wants;			/* (E) */
	dev_i32 *first;			/* (B) zeros */
	int64_t *row;			/* (B) tokens */
	real *all;			/* (n, D) inputs of the layer */
	uint32_t *order;		/* (n) */
	int64_t *train;			/* (n) tokens to learn from; ntrain of them */
	int64_t ntrain;
	double *popular;		/* (Ls, E) uses by these */
	int32_t *best;			/* (K) */
};

/* f, spool and routers are borrowed. What it holds is foresee_fit_bytes(); it ends the program when
 * there is no memory. EX_DATAERR: no token to learn from. */
int64_t foresee_fit_bytes(const struct config *c, int width, int horizons, int64_t tokens,
    int batch);
int foresee_fit_open(struct foresee_fit *t, struct foresee *f, const struct foresee_spool *spool,
    const struct foresee_router *router, const struct backend *be, const struct foresee_opt *o,
    struct err *e) CHR_MUST_CHECK;
void foresee_fit_close(struct foresee_fit *t);

/* Trains the heads of layer i in place; *loss: of the last tenth of the steps, in nats per
 * horizon. Stops early when a signal asks. EX_IOERR, EX_DATAERR: not finite. */
int foresee_fit_layer(struct foresee_fit *t, int i, double *loss, struct err *e) CHR_MUST_CHECK;
/* recall: (H + 1), entry h of horizon h; 0 has the control alone. After foresee_fit_layer(i). */
void foresee_fit_measure(struct foresee_fit *t, int i, struct foresee_recall *recall);

/* The loss of the tokens t->row[0..n) of layer i, whose inputs are in t->hx, with the weights in
 * t->w, and their gradients in t->g. */
double foresee_fit_loss(struct foresee_fit *t, int i, int n);

#endif
