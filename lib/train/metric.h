/*
 * metric: what a step or an evaluation measured, added up over micro-batches and written as
 * fields of a record.
 *
 * Recall of offset k: of the experts that the router chose at t+k, the share that the lookahead
 * head had named at t (slots), and the share of layers whose whole set it had named; "repeat" is
 * the same for the guess that the experts of t will be chosen again; "recall_gate" is of one
 * layer ahead, by the next router on this layer's input. Overlap: |A n B| / |A u B| of the sets
 * of adjacent tokens. Load entropy: 1 is even use.
 */
#ifndef CHR_METRIC_H
#define CHR_METRIC_H

#include <jansson.h>

#include "arch/config.h"
#include "model/route_loss.h"
#include "model/route_stats.h"

#define METRIC_MAX 16		/* measures of a stage's own */

struct metric {
	double base, loss;		/* sums: each batch brings its part of the mean */
	struct route_terms terms;	/* of all batches and ranks */
	bool counted;			/* stats were taken */
	struct route_stats stats;
	double sum[METRIC_MAX], weight[METRIC_MAX];	/* of the stage's own measures */
};

void metric_clear(struct metric *m);
/* A batch's base loss and what the router's terms add to it. */
void metric_add(struct metric *m, double base, double route);
/* Sums over ranks (comm.h), all but the terms. */
void metric_reduce(struct metric *m);
/* "loss", "base", "balance", ... */
void metric_losses(const struct metric *m, json_t *rec);
/* names NULL-terminated, or NULL */
void metric_stage(const struct metric *m, const char *const *names, json_t *rec);
/* load: (Ls, E) how often each expert was chosen */
void metric_routing(const struct metric *m, const struct config *c, const double *load,
    json_t *rec);

#endif
