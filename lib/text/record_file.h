/*
 * record_file: a file of records, gone through once, in blocks (recload.h), and then read again
 * at any place. A record becomes an item, an array of 32-bit words; its place is a number below
 * 2^40 (RECORD_FILE_PLACES) that finds it again: the byte at which its line begins, or the
 * number of a shard's document.
 *
 *	struct record_file *f = record_file_open(path, &kind, 1, &e);
 *	for (int64_t k = 0; !block.end; k++)
 *		record_file_read(f, k, &block, &e);
 *	record_file_end(f, true);
 *	record_file_at(f, place, &item, &e);
 *
 * gzip can only be read from its beginning, so there record_file_seeks() is false and
 * record_file_at() is not to be called. A file that stays open may be renamed or removed; one
 * that is changed is noticed and refused.
 */
#ifndef CHR_RECORD_FILE_H
#define CHR_RECORD_FILE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/json.h"
#include "text/lineblock.h"
#include "text/tok.h"

#define RECORD_FILE_PLACES ((int64_t)1 << 40)

struct record_count {		/* records whose items are not all of them */
	int64_t cut, dropped;	/* too long: shortened, left out */
	int64_t empty;		/* left out: there is nothing to learn */
};

struct record_kind {
	/* The item of a record, appended to the empty out; nothing: the record is passed over.
	 * 0, or -1: a bad record. Several threads may ask, each with a tokenizer of its own: tok
	 * or a share of it. */
	int (*item)(const void *self, struct tok *t, const json_t *rec, struct ids *out,
	    struct record_count *n,
	    struct err *why);
	/* Files that are not JSONL: 1 and what doc and close take, and how many documents there
	 * are; 0: it is JSONL; -1. NULL: all are JSONL. */
	int (*open)(void *self, const char *path, void **shard, int64_t *docs, struct err *e);
	/* as item, but one at a time */
	int (*doc)(void *self, void *shard, int64_t i, struct ids *out, struct err *e);
	void (*close)(void *shard);
	/* Items of records end with the record: its length in bytes, then its text without white
	 * space, filled up to whole words. */
	bool source;
	void *self;
	struct tok *tok;	/* may be NULL */
};

struct record_file;

/* The item of the record on a line, which ends with a NUL, into out; none: the line is blank, or
 * the record passed over. 0, or -1: it is bad. */
int record_item(const struct record_kind *k, struct tok *t, const char *line, size_t len,
    struct ids *out, struct record_count *n, struct err *why) CHR_MUST_CHECK;

/* The next record's item into out, bad ones and those that are passed over left out: 1, 0 at the
 * end, -1. */
int record_file_item(struct jsonl *in, const struct record_kind *k, struct ids *out,
    struct record_count *n, struct err *e) CHR_MUST_CHECK;

/* path and k are borrowed. parts: how many processes will go through it together. */
struct record_file *record_file_open(const char *path, const struct record_kind *k, int parts,
    struct err *e) CHR_MUST_CHECK;
bool record_file_seeks(const struct record_file *f);
bool record_file_is_shard(const struct record_file *f);
int64_t record_file_size(const struct record_file *f);		/* bytes, or documents of a shard */

struct record_file_block {
	struct lineblock lines;		/* of JSONL; places are those of their records */
	int64_t first, docs;		/* of a shard: documents, for record_file_doc() */
	bool end;			/* it is the last, or there is none */
};
/* Block k, which is the same lines or documents in every process that has the same file; k grows
 * from one call to the next, and those between are passed over. 0, or -1: then the lines before
 * the error are there, and if record_file_seeks(), EX_DATAERR is about the line after them,
 * whose number whoever counts lines puts before the message. */
int record_file_read(struct record_file *f, int64_t k, struct record_file_block *b, struct err *e)
    CHR_MUST_CHECK;
int record_file_doc(struct record_file *f, int64_t i, struct ids *out, struct err *e)
    CHR_MUST_CHECK;

/* of going through it; again: record_file_at() will be called */
void record_file_end(struct record_file *f, bool again);
/* the item of a record */
int record_file_at(struct record_file *f, int64_t place, struct ids *out, struct err *e)
    CHR_MUST_CHECK;
void record_file_close(struct record_file *f);			/* NULL: nothing */

/* "file:line", or "file:document N" of a shard, or "file:byte N" where lines are too many to
 * count, for people; malloc'ed. Reads the file up to there. */
char *record_file_where(struct record_file *f, int64_t place);

#endif
