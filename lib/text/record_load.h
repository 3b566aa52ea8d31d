/*
 * record_load: goes through files of records for the first time: all threads of the pool make
 * items, and all ranks, each of some blocks, which it then hands to the others. What comes out
 * is in the order of the file and the same on every rank, whatever the number of both.
 *
 *	struct record_load *l = record_load_open(&kind, skip_bad);
 *	f = record_file_open(path, &kind, comm_size(), &e)
 *	if (record_load_begin(l, f, path, &e) == 0)
 *		do
 *			rc = record_load_next(l, room, &b, &e);
 *		while (rc == 0 && ..., !b->end);
 *	record_load_close(l);
 *
 * Ranks call these functions together, and get the same errors.
 */
#ifndef CHR_RECORD_LOAD_H
#define CHR_RECORD_LOAD_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "text/record_file.h"

struct record_load_block {
	int64_t n;			/* records that have an item */
	const int64_t *place;		/* (n) */
	const uint32_t *len;		/* (n) words of each */
	const uint32_t *word;		/* the first `room` words of all, or fewer */
	int64_t longest;		/* bytes of a line */
	bool end;			/* it is the last of the file */
};

struct record_load;

/* k is borrowed */
struct record_load *record_load_open(const struct record_kind *k, bool skip_bad);
int record_load_begin(struct record_load *l, struct record_file *f, const char *path,
    struct err *e) CHR_MUST_CHECK;
/* 0, -1 */
int record_load_next(struct record_load *l, int64_t room, const struct record_load_block **b,
    struct err *e) CHR_MUST_CHECK;
void record_load_end(struct record_load *l);		/* of the file: says how many bad records
							   there were */
const struct record_count *record_load_count(const struct record_load *l);
void record_load_close(struct record_load *l);		/* NULL: nothing */

#endif
