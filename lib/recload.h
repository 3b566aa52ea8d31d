/*
 * recload: goes through files of records for the first time: all threads of the pool make items, and all ranks, each of
 * some blocks, which it then hands to the others. What comes out is in the order of the file and the same on every rank,
 * whatever the number of both.
 *
 *	struct recload *l = recload_open(&kind, skip_bad);
 *	f = recfile_open(path, &kind, comm_size(), &e)
 *	if (recload_begin(l, f, path, &e) == 0)
 *		do
 *			rc = recload_next(l, room, &b, &e);
 *		while (rc == 0 && ..., !b->end);
 *	recload_close(l);
 *
 * Ranks call these functions together, and get the same errors.
 */
#ifndef CHR_RECLOAD_H
#define CHR_RECLOAD_H

#include <stdbool.h>
#include <stdint.h>

#include "err.h"
#include "recfile.h"

struct recload_block {
	int64_t n;			/* records that have an item */
	const int64_t *place;		/* (n) */
	const uint32_t *len;		/* (n) words of each */
	const uint32_t *word;		/* the first `room` words of all, or fewer */
	int64_t longest;		/* bytes of a line */
	bool end;			/* it is the last of the file */
};

struct recload;

struct recload *recload_open(const struct record_kind *k, bool skip_bad);	/* k is borrowed */
int recload_begin(struct recload *l, struct recfile *f, const char *path, struct err *e);
int recload_next(struct recload *l, int64_t room, const struct recload_block **b, struct err *e);	/* 0, -1 */
void recload_end(struct recload *l);		/* of the file: says how many bad records there were */
const struct record_count *recload_count(const struct recload *l);
void recload_close(struct recload *l);		/* NULL: nothing */

#endif
