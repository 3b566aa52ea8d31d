/*
 * bad: steps that must not be taken, because their loss or gradient is not finite or the loss jumped: whether they are,
 * which records they are of, and a dump of their batches.
 *
 *	if (bad_spikes(&b, loss, &median)) ...
 *	bad_report(&b, &step, &e);		(e says what is wrong; now it names the records too, and they are dumped)
 *	if (bad_skip(&b))			(may this step be passed over?)
 *		...
 *	bad_good(&b, loss);			(a step that was taken)
 */
#ifndef CHR_BAD_H
#define CHR_BAD_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "corpus.h"
#include "err.h"
#include "train.h"

enum { BAD_WINDOW = 64, BAD_LEAST = 16 };	/* losses that the median is of; how many there must be */

struct bad {
	const char *path;		/* --dump-bad, or NULL */
	int64_t most;			/* --skip-nonfinite: steps that may be skipped in a row */
	double spike;			/* --max-spike, or 0 */
	FILE *f;
	int64_t skipped, row;		/* steps skipped so far, and since the last good one */
	double loss[BAD_WINDOW];	/* of the last good steps, a ring; only with a limit on spikes */
	int64_t seen;
};

struct bad_step {
	int64_t number;
	const struct micro *micro;	/* (n), with b.from */
	int n, only;			/* only: the micro-batch it was seen in, -1: not known */
	struct corpus *corpus;
	int64_t row0;			/* rows of a micro-batch that ranks before this one have */
};

bool bad_spikes(const struct bad *b, double loss, double *median);
/* On all ranks. Adds the records' names to the message in *e, and writes the batches, those of all ranks, to the dump. A dump that cannot be written is an
 * error of its own: then *e is that. Always -1. */
int bad_report(struct bad *b, const struct bad_step *s, struct err *e);
bool bad_skip(struct bad *b);
void bad_good(struct bad *b, double loss);
void bad_close(struct bad *b);

json_t *bad_state(const struct bad *b);			/* for train_state.json */
void bad_restore(struct bad *b, const json_t *state);	/* NULL: none */

#endif
