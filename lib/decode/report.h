/*
 * report: token records (man chr-jsonl.5): what each step of generation cost and where its
 * experts came from. Counters are differences between records, so their sums are the totals of
 * the summary.
 */
#ifndef CHR_REPORT_H
#define CHR_REPORT_H

#include <jansson.h>
#include <stdio.h>

#include "decode/decode.h"

struct report {
	FILE *f;			/* NULL: nobody wants records */
	struct engine *g;
	struct store_stats last, first;
	long majflt;
	int64_t rchar, disk;		/* of /proc/self/io when it began */
	double began, wall, compute, stall, prefill, mass;
	int64_t tokens, prompt_tokens, steps;
	struct eval_stats sum;
};

/* spec: a number (an open descriptor) or a file name; NULL: totals only. */
int report_open(struct report *r, const char *spec, struct engine *g, struct err *e) CHR_MUST_CHECK;
/* One engine_eval: a prompt of n tokens, or step n (from 0) of `rows` sequences. */
int report_prompt(struct report *r, int n, const struct eval_stats *st, struct err *e)
    CHR_MUST_CHECK;
int report_step(struct report *r, int rows, const struct eval_stats *st, struct err *e)
    CHR_MUST_CHECK;
/* writes the summary */
int report_close(struct report *r, struct err *e) CHR_MUST_CHECK;

/* Adds what each predictor did; "recall" of such a sum, into o. */
void report_sources(struct eval_stats *sum, const struct eval_stats *st);
void report_recall(json_t *o, const struct eval_stats *sum);

/* What the kernel says this process has read: by system calls, and from the disk. */
void report_io(int64_t *rchar, int64_t *disk);
long report_majflt(void);	/* page faults of this process that had to wait for a disk */

#endif
