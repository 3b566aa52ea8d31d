/*
 * corpus: records as items, arrays of 32-bit words (tokens, mostly) that a source makes batches of.
 *
 *	struct corpus *c = corpus_open(n, files, &opt, &e);
 *	while ((rc = corpus_get(c, &item, &len, &e)) > 0) {
 *		...
 *		corpus_advance(c);
 *	}
 *
 * Regular files are read once, by all threads and ranks (recload.h), to find where their records
 * begin and how long their items are: 8 and 4 bytes an item, and 4 for its place in the order.
 * The first items, up to opt.ram bytes of words, are kept in memory; the others are made again
 * from their records when their turn comes and their words are asked for. Files are gone through
 * in a new order each epoch and have no end: who reads them counts. gzip cannot be read at a
 * place, so all of it must be among what is kept.
 *
 * A name FILE:SHARE, unless there is a file of that whole name, gives the file a share: then all
 * must have one, each file has an order and epochs of its own, and the next item is that of the
 * file that is furthest behind its share of words.
 *
 * If any input is a pipe, all are read once, as they come: in order, the first item is there
 * after its record; or, with a window of N items, drawn at random from the next N.
 */
#ifndef CHR_CORPUS_H
#define CHR_CORPUS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "text/record_file.h"

struct corpus;

struct corpus_opt {
	const char *unit;	/* what an item is, for people: "documents" */
	struct record_kind kind;
	bool shuffle;		/* of files; pipes keep their order, but for the window */
	int64_t window;		/* of pipes, in items; 0: none */
	int64_t piece;		/* items of files or a window above this length are cut into
				   pieces, each an item; 0: whole */
	int64_t longest;	/* words of an item at most, about: for the plan of a window */
	int64_t ram;		/* bytes of files' words to keep in memory */
	bool skip_bad;		/* bad records are counted, not fatal */
	uint64_t seed;
};

/* nfiles 0 is stdin; the list of names is borrowed until corpus_close(). NULL on error; no items
 * are one. Ranks open the same files together. */
struct corpus *corpus_open(int nfiles, char *const files[], const struct corpus_opt *o,
    struct err *e) CHR_MUST_CHECK;
void corpus_close(struct corpus *c);

bool corpus_streams(const struct corpus *c);	/* reads a pipe: how much there is nobody knows */
int64_t corpus_items(const struct corpus *c);	/* of the files, all together; 0 of a pipe */
int64_t corpus_words(const struct corpus *c);
int64_t corpus_bytes(const struct corpus *c);	/* memory held, for the plan */
const struct record_count *corpus_count(const struct corpus *c);	/* of files: of one epoch */

/* The item that is next, valid until the next call. item NULL: only its length is wanted, for
 * which no file is read. 1, 0 at the end (of a pipe), -1. */
int corpus_get(struct corpus *c, const uint32_t **item, int64_t *n, struct err *e) CHR_MUST_CHECK;
void corpus_advance(struct corpus *c);
int64_t corpus_passed(const struct corpus *c);	/* items gone by in all */

/* Where it stands, and the way back, which is exact. A pipe is read up to that place, so it must
 * hold the same records again. Objects may hold other keys than corpus's own. NULL: the start. */
json_t *corpus_position(const struct corpus *c);
int corpus_seek(struct corpus *c, const json_t *position, struct err *e) CHR_MUST_CHECK;

/* Which records were used since corpus_forget(), before which none are noted: corpus_touch()
 * adds the one that corpus_get() gave, if it is not the last already, and returns its number,
 * from 0, or -1; corpus_advance() does so too. corpus_where(): "file:line" of one; malloc'ed.
 * Forgetting NULL does nothing, and it has touched none. */
void corpus_forget(struct corpus *c);
int corpus_touch(struct corpus *c);
int corpus_touched(const struct corpus *c);
char *corpus_where(struct corpus *c, int i);

json_t *corpus_inputs(const struct corpus *c);	/* for chronos.data: a list as of prov_file() */

#endif
