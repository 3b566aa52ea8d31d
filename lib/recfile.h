/*
 * recfile: a file of records, gone through once and then read again at any place. A record becomes an item, an array of
 * 32-bit words; its place is a number below 2^40 (RECFILE_PLACES) that finds it again: the byte at which its line begins,
 * or the number of a shard's document.
 *
 *	struct recfile *f = recfile_open(path, &kind, skip_bad, &e);
 *	while ((rc = recfile_next(f, &item, &place, &e)) > 0)
 *		...
 *	recfile_end(f, true);
 *	recfile_at(f, place, &item, &e);
 *
 * gzip can only be read from its beginning, so there recfile_seeks() is false and recfile_at() is not to be called.
 * A file that stays open may be renamed or removed; one that is changed is noticed and refused.
 */
#ifndef CHR_RECFILE_H
#define CHR_RECFILE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "err.h"
#include "json.h"
#include "tok.h"

#define RECFILE_PLACES ((int64_t)1 << 40)

struct record_kind {
	/* The item of a record, appended to the empty out; nothing: the record is passed over. 0, or -1: a bad record. */
	int (*item)(void *self, const json_t *rec, struct ids *out, struct err *why);
	/* Files that are not JSONL: 1 and what doc and close take, and how many documents there are; 0: it is JSONL; -1.
	 * NULL: all are JSONL. */
	int (*open)(void *self, const char *path, void **shard, int64_t *docs, struct err *e);
	int (*doc)(void *self, void *shard, int64_t i, struct ids *out, struct err *e);		/* as item */
	void (*close)(void *shard);
	void *self;
};

struct recfile;

/* The next record's item into out, bad ones and those that are passed over left out: 1, 0 at the end, -1. */
int recfile_item(struct jsonl *in, const struct record_kind *k, struct ids *out, struct err *e);

/* path and k are borrowed. */
struct recfile *recfile_open(const char *path, const struct record_kind *k, bool skip_bad, struct err *e);
int recfile_next(struct recfile *f, struct ids *out, int64_t *place, struct err *e);	/* 1, 0 at the end, -1 */
bool recfile_seeks(const struct recfile *f);		/* known after the first recfile_next() */
void recfile_end(struct recfile *f, bool again);	/* of going through it; again: recfile_at() will be called */
int recfile_at(struct recfile *f, int64_t place, struct ids *out, struct err *e);	/* one that recfile_next() gave */
void recfile_close(struct recfile *f);			/* NULL: nothing */

/* "file:line", or "file:document N" of a shard, or "file:byte N" where lines are too many to count, for people; malloc'ed.
 * Reads the file up to there. */
char *recfile_where(struct recfile *f, int64_t place);

#endif
