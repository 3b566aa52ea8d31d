/*
 * docpack: documents to packed rows. Documents are tokenised as bos + text + eos, put one after
 * the other, and cut into rows of T tokens. Every token is input once; a row predicts the next
 * token of its own document, positions restart at each document (and at each row), and attention
 * never crosses from one document into another.
 *
 *	struct docpack *d = docpack_open(n, files, &opt, &e);
 *	while ((got = docpack_next(d, &batch, B, &e)) > 0)	(batch.B rows, fewer than B at
 *	the end)
 *		...
 *
 * Inputs are JSONL (`tokens`, or a conversation through the chat template, or text: record.h)
 * and token shards (files named .safetensors). How regular files, of any size, and pipes are
 * gone through is told in corpus.h. Shuffling cuts documents longer than a row into pieces of a
 * row, each a document of its own: else one long article would fill whole batches, and steps
 * would learn from one text at a time.
 */
#ifndef CHR_DOCPACK_H
#define CHR_DOCPACK_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "model/model.h"
#include "text/tok.h"

struct docpack_opt {
	struct tok *tok;	/* NULL: the inputs must hold tokens, which are taken as they are */
	int vocab;		/* ids must be below */
	int T;			/* tokens of a row */
	bool shuffle;		/* of files; pipes keep their order, but for the window */
	int64_t window, ram;	/* as in struct corpus_opt */
	bool skip_bad;		/* bad records are counted, not fatal */
	uint64_t seed;
	double epochs;		/* how often to go through files; 0: without end. A pipe ends
				   when it ends */
};

struct docpack;

/* nfiles 0 is stdin; the list of names is borrowed until docpack_close(). NULL on error. */
struct docpack *docpack_open(int nfiles, char *const files[], const struct docpack_opt *o,
    struct err *e) CHR_MUST_CHECK;
void docpack_close(struct docpack *d);

bool docpack_streams(const struct docpack *d);	/* reads a pipe: how much there is nobody knows */
int64_t docpack_docs(const struct docpack *d);	/* documents of the files */
int64_t docpack_tokens(const struct docpack *d);	/* their tokens: of one epoch */
int64_t docpack_rows(const struct docpack *d);	/* rows until the end; -1: no end, or not known */
int64_t docpack_bytes(const struct docpack *d);	/* memory held, for the plan */

/* Fills up to B rows of the batch (arrays of at least B*T) and sets b->B and b->T. The last row is
 * padded. b NULL: goes on as far without reading what it passes. Returns 1, 0 at the end of the
 * data, -1 on error. */
int docpack_next(struct docpack *d, struct batch *b, int B, struct err *e) CHR_MUST_CHECK;

/* Where the next row begins: an object for train_state.json, and the way back. Seeking is exact:
 * the rows that follow are those that would have followed. A pipe is read up to that place, so it
 * must hold the same records again. */
json_t *docpack_position(const struct docpack *d);
/* NULL: the start (not of a pipe) */
int docpack_seek(struct docpack *d, const json_t *position, struct err *e) CHR_MUST_CHECK;

struct corpus *docpack_corpus(struct docpack *d);	/* where the documents come from */
json_t *docpack_inputs(const struct docpack *d);	/* what was read, for chronos.data: a
							   list as of prov_file() */

#endif
