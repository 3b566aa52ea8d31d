/*
 * deal: records dealt to the ranks of a job (comm.h) one by one, in turn, and what they give written by rank 0 in the order
 * of the records. Every rank reads all records; each works on its own.
 *
 *	deal_open(write, ctx);
 *	for (int64_t i = 0; (rec = jsonl_next(in, &e)) != NULL; i++)
 *		if (deal_own(i))
 *			deal_put(i, text, n, NULL);
 *	deal_finish(i);
 *
 * With one rank deal_put() writes at once.
 */
#ifndef CHR_DEAL_H
#define CHR_DEAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "err.h"

#define DEAL_SUMS 2

/* Called by rank 0 for each record, in their order; sums as given to deal_put(). */
void deal_open(void (*write)(const char *p, size_t n, const double sums[DEAL_SUMS]));

bool deal_own(int64_t record);
/* All that an own record gives, once for each (n may be 0). Records of a rank come in order. sums may be NULL: zeros. */
void deal_put(int64_t record, const char *p, size_t n, const double sums[DEAL_SUMS]);
/* Rank 0 returns when all of the first `records` records have been written. A stop signal ends all ranks with
 * EX_TEMPFAIL, as far as they have come. */
void deal_finish(int64_t records);
/* Ends the program for an error in the input, which every rank has met after `records` records. */
_Noreturn void deal_fail(int64_t records, struct err *e);

#endif
