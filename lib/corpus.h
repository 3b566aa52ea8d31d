/*
 * corpus: records as items, arrays of 32-bit words (tokens, mostly) that a source makes batches of. Regular files are
 * read once, into memory, and gone through in a new order each epoch. If any input is a pipe, all are read once, as
 * they come, in order: the first item is there after its record.
 *
 *	struct corpus *c = corpus_open(n, files, &opt, &e);
 *	while ((rc = corpus_get(c, &item, &len, &e)) > 0) {
 *		...
 *		corpus_advance(c);
 *	}
 *
 * Where it stands is two numbers, epoch and index; going back to them is exact. Files have no end: who reads them
 * counts the epochs.
 */
#ifndef CHR_CORPUS_H
#define CHR_CORPUS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "err.h"
#include "tok.h"

struct corpus;

struct corpus_opt {
	const char *unit;	/* what an item is, for people: "documents" */
	/* The item of a record, appended to out; nothing: the record is passed over. 0, or -1: a bad record. */
	int (*item)(void *self, const json_t *rec, struct ids *out, struct err *why);
	/* Files that are not JSONL: adds their items. 1, 0: it is JSONL, -1. NULL: all are. */
	int (*file)(void *self, struct corpus *c, const char *path, struct err *e);
	void *self;		/* for both */
	bool shuffle;		/* of files; pipes keep their order */
	int64_t piece;		/* items of files above this length are cut into pieces, each an item; 0: whole */
	bool skip_bad;		/* bad records are counted, not fatal */
	uint64_t seed;
};

/* nfiles 0 is stdin; the list of names is borrowed until corpus_close(). NULL on error; no items are one. */
struct corpus *corpus_open(int nfiles, char *const files[], const struct corpus_opt *o, struct err *e);
void corpus_close(struct corpus *c);
/* From opt.file only. */
int corpus_add(struct corpus *c, const uint32_t *item, int64_t n, struct err *e);

bool corpus_streams(const struct corpus *c);	/* reads a pipe: how much there is nobody knows */
int64_t corpus_items(const struct corpus *c);	/* in memory: of one epoch; 0 of a pipe */
int64_t corpus_words(const struct corpus *c);
int64_t corpus_bytes(const struct corpus *c);	/* memory held, for the plan */

/* The item that is next, valid until the next call. 1, 0 at the end (of a pipe), -1. */
int corpus_get(struct corpus *c, const uint32_t **item, int64_t *n, struct err *e);
void corpus_advance(struct corpus *c);

int64_t corpus_epoch(const struct corpus *c);
int64_t corpus_index(const struct corpus *c);	/* items of this epoch gone by */
int64_t corpus_passed(const struct corpus *c);	/* items gone by in all */
/* A pipe is read up to that place, so it must hold the same records again. */
int corpus_seek(struct corpus *c, int64_t epoch, int64_t index, struct err *e);

json_t *corpus_inputs(const struct corpus *c);	/* for chronos.data: a list as of prov_file() */

#endif
