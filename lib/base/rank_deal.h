/*
 * rank_deal: records dealt to the ranks of a job (comm.h) one by one, in turn, and what they
 * give written by rank 0 in the order of the records. Every rank reads all records; each works
 * on its own.
 *
 *	rank_deal_open(write, ctx);
 *	for (int64_t i = 0; (rec = jsonl_next(in, &e)) != NULL; i++)
 *		if (rank_deal_own(i))
 *			rank_deal_put(i, text, n, NULL);
 *	rank_deal_finish(i);
 *
 * With one rank rank_deal_put() writes at once.
 */
#ifndef CHR_RANK_DEAL_H
#define CHR_RANK_DEAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define RANK_DEAL_SUMS 2

/* Called by rank 0 for each record, in their order; sums as given to rank_deal_put(). */
void rank_deal_open(void (*write)(const char *p, size_t n, const double sums[RANK_DEAL_SUMS]));

bool rank_deal_own(int64_t record);
/* All that an own record gives, once for each (n may be 0). Records of a rank come in order.
 * sums may be NULL: zeros. */
void rank_deal_put(int64_t record, const char *p, size_t n, const double sums[RANK_DEAL_SUMS]);
/* Rank 0 returns when all of the first `records` records have been written. A stop signal ends
 * all ranks with EX_TEMPFAIL, as far as they have come. */
void rank_deal_finish(int64_t records);
/* Ends the program for an error in the input, which every rank has met after `records` records. */
_Noreturn void rank_deal_fail(int64_t records, struct err *e);

#endif
