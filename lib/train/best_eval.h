/*
 * best_eval: which evaluation was the best so far, and for how many there has been no better.
 *
 *	best_eval_open(&b, "+accuracy");
 *	rc = best_eval_see(&b, record, step, &e);		(1: the best so far)
 */
#ifndef CHR_BEST_EVAL_H
#define CHR_BEST_EVAL_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct best_eval {
	const char *metric;	/* a number of evaluation records; NULL: nobody asked */
	bool high;		/* more is better */
	double value;
	int64_t step;		/* of the best; -1: none yet */
	int64_t seen;		/* step of the last evaluation */
	int64_t since;		/* evaluations after the best */
};

/* spec: a metric, after a sign that says whether the lowest (-) or the highest (+) is the best.
 * Without one, losses and the router's terms are to be low and all else is to be high. Borrowed;
 * may be NULL. */
void best_eval_open(struct best_eval *b, const char *spec);

/* 1: the best so far; 0; -1: the record has no such number. The same step again changes nothing. */
int best_eval_see(struct best_eval *b, const json_t *rec, int64_t step, struct err *e)
    CHR_MUST_CHECK;

/* for train_state.json; null when nobody asked */
json_t *best_eval_state(const struct best_eval *b);
int best_eval_restore(struct best_eval *b, const json_t *state, struct err *e) CHR_MUST_CHECK;

#endif
