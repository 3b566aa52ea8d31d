/*
 * badstep: steps that must not be taken, because their loss or gradient is not finite or the
 * loss jumped: whether they are, which records they are of, and a dump of their batches.
 *
 *	if (badstep_spikes(&b, loss, &median)) ...
 *	badstep_report(&b, &step, &e);		(e says what is wrong; now it names the records
 *						too, and they are dumped)
 *	if (badstep_skip(&b))			(may this step be passed over?)
 *		...
 *	badstep_good(&b, loss);			(a step that was taken)
 */
#ifndef CHR_BADSTEP_H
#define CHR_BADSTEP_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "text/corpus.h"
#include "base/err.h"
#include "train/micro.h"

enum { BADSTEP_WINDOW = 64, BADSTEP_LEAST = 16 };	/* losses that the median is of; how many
							   there must be */

struct badstep {
	const char *path;		/* --dump-bad, or NULL */
	int64_t most;			/* --skip-nonfinite: steps that may be skipped in a row */
	double spike;			/* --max-spike, or 0 */
	FILE *f;
	int64_t skipped, row;		/* steps skipped so far, and since the last good one */
	double loss[BADSTEP_WINDOW];	/* of the last good steps, a ring; only with a limit on
					   spikes */
	int64_t seen;
};

struct badstep_step {
	int64_t number;
	const struct micro *micro;	/* (n), with b.from */
	int n, only;			/* only: the micro-batch it was seen in, -1: not known */
	struct corpus *corpus;
	int64_t row0;			/* rows of a micro-batch that ranks before this one have */
};

bool badstep_spikes(const struct badstep *b, double loss, double *median);
/* On all ranks. Adds the records' names to the message in *e, and writes the batches, those of
 * all ranks, to the dump. A dump that cannot be written is an error of its own: then *e is that.
 * Always -1. */
int badstep_report(struct badstep *b, const struct badstep_step *s, struct err *e);
bool badstep_skip(struct badstep *b);
void badstep_good(struct badstep *b, double loss);
void badstep_close(struct badstep *b);

json_t *badstep_state(const struct badstep *b);			/* for train_state.json */
/* state NULL: none. -1: its numbers make no sense. */
int badstep_restore(struct badstep *b, const json_t *state, struct err *e) CHR_MUST_CHECK;

#endif
