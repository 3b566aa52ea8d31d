/*
 * forecast: how fast a model that need not be packed, or even be here, will generate on this
 * machine within one budget of memory after another. Of the model only headers are read; the plan
 * is that of the engine (fit.h), the rates are measured here with the engine's own kernels.
 *
 *	struct forecast_opt o = { .budgets = "8G,16G" };
 *	rc = forecast(&f, &o, &e);		(1: some budget holds the model, 0: none does)
 *
 * The time of a token, with K experts in each of Ls layers, B bytes each, of which a share h is
 * found in memory:
 *
 *	t = dense + attention + L * layer + Ls * max(reads + w c, K c)
 *	reads = w * latency + K (1 - h) * B / drive
 *
 * dense: every matrix that a token is multiplied with, at the rate of one row of its type; c: an
 * expert likewise; w: the share of layers in which any expert is missing. So it goes in the engine:
 * experts that are there are computed while the others are read, and the last to come is computed
 * when it is there. What is read ahead of its layer moves reads to where the processor works on
 * dense matrices; that gain is not counted. With everything in memory h = 1 and w = 0.
 *
 * A prompt of P tokens in n passes of R rows, from an empty store:
 *
 *	t = P * (dense + attention) + n * L * layer + sum over passes of max(experts, reads)
 *
 * at the rates of R rows, and of R K / E rows for each expert; a pass touches
 * E (1 - (1 - K/E)^R) experts of a layer, and from the second on a share of slots / experts of them
 * is in memory.
 */
#ifndef CHR_FORECAST_H
#define CHR_FORECAST_H

#include "measure/fit.h"

struct forecast_opt {
	const char *budgets;	/* a list of bytes, with commas; NULL: 8G,16G,32G, or of what is
				   less than the first a quarter, a half and all */
	const char *drive;	/* BYTES_PER_S[,MS]; NULL: measured */
	const char *log;	/* activation records; NULL: every expert is as likely */
};

/* f: opened for FIT_GENERATE; its o is changed and put back. Writes a record of the rates, then one
 * for each budget. 1, 0 or -1: EX_USAGE, EX_DATAERR (the log is of another model), EX_IOERR,
 * EX_OSERR, EX_CANTCREAT. */
int forecast(struct fit *f, struct fit_opt *o, const struct forecast_opt *w, struct err *e)
    CHR_MUST_CHECK;

#endif
