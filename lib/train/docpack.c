#include "train/docpack.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "text/corpus.h"
#include "text/record.h"
#include "format/modeldir.h"

struct docpack {
	struct docpack_opt o;
	struct corpus *corpus;
	int64_t limit;			/* tokens to deliver in all, -1 without end */

	/* position; len 0: which document is next is not known yet; doc NULL: its tokens are not
	 * fetched */
	const uint32_t *doc;
	int64_t len, offset;		/* of the current document, and where in it the next row
					   begins */
	int64_t taken;			/* tokens delivered in all */
};

static bool is_shard(const char *path)
{
	size_t n = strlen(path);

	return n > 12 && strcmp(path + n - 12, ".safetensors") == 0;
}

static int document(const void *self, struct tok *t, const json_t *rec, struct ids *out,
    struct record_count *n,
    struct err *why)
{
	const struct docpack *d = self;

	(void)n;
	return record_document(rec, t, d->o.vocab, out, why);
}

/* A token shard: "tokens" (N) U16 or U32, "offsets" (docs + 1) I64. */
struct shard {
	char *path;
	struct st_file *f;
	const struct st_tensor *tok, *off;
	int64_t n, docs;
	void *buf;			/* a document as it is in the file */
	size_t cap;
};

static void close_shard(void *shard)
{
	struct shard *s = shard;

	if (s->f != NULL)
		st_close(s->f);
	free(s->path);
	free(s->buf);
	free(s);
}

static int check_shard(struct shard *s, struct err *e)
{
	s->tok = st_find(s->f, "tokens");
	s->off = st_find(s->f, "offsets");
	if (s->tok == NULL || s->off == NULL)
		return err_set(e, EX_DATAERR, "%s: not a token shard: no \"%s\"", s->path, s->tok
		    ? "offsets" : "tokens");
	if (s->tok->ndim != 1 || (s->tok->dtype != ST_U16 && s->tok->dtype != ST_U32) ||
	    s->off->ndim != 1 ||
	    s->off->dtype != ST_I64 || s->off->shape[0] < 1)
		return err_set(e, EX_DATAERR, "%s: not a token shard: tokens must be U16 or U32, "
		    "offsets I64", s->path);
	s->n = (int64_t)s->tok->shape[0];
	s->docs = (int64_t)s->off->shape[0] - 1;
	return 0;
}

/* Tokens at[0] .. at[1] of the file into s->buf. */
static int read_doc(struct shard *s, int64_t i, int64_t at[2], size_t size, struct err *e)
{
	struct st_error se = {0};
	size_t bytes;

	if (st_read(s->f, s->off, (uint64_t)i * sizeof *at, at, 2 * sizeof *at, &se) < 0)
		return err_set(e, EX_IOERR, "%s: %s", s->path, se.msg);
	if (at[0] < 0 || at[1] < at[0] || at[1] > s->n || at[1] - at[0] > INT32_MAX / 2)
		return err_set(e, EX_DATAERR, "%s: document %" PRId64 ": offsets out of order",
		    s->path, i);
	bytes = (size_t)(at[1] - at[0]) * size;
	if (bytes > s->cap && (s->buf = realloc(s->buf, s->cap = 2 * bytes)) == NULL)
		err_die(EX_OSERR, "out of memory");
	return bytes == 0 || st_read(s->f, s->tok, (uint64_t)at[0] * size, s->buf, bytes, &se) == 0
	    ? 0 :
	    err_set(e, EX_IOERR, "%s: %s", s->path, se.msg);
}

static int shard_doc(void *self, void *shard, int64_t i, struct ids *out, struct err *e)
{
	const struct docpack *d = self;
	struct shard *s = shard;
	bool narrow = s->tok->dtype == ST_U16;
	int64_t at[2];

	if (read_doc(s, i, at, narrow ? 2 : 4, e) < 0)
		return -1;
	for (int64_t j = 0; j < at[1] - at[0]; j++) {
		uint32_t id = narrow ? ((const uint16_t *)s->buf)[j]
		    : ((const uint32_t *)s->buf)[j];

		if (id >= (uint32_t)d->o.vocab)
			return err_set(e, EX_DATAERR, "%s: token %" PRIu32 " of document %"
			    PRId64 " is not below the model's"
			    " vocab_size %d", s->path, id, i, d->o.vocab);
		ids_push(out, id);
	}
	record_frame(d->o.tok, out);
	return 0;
}

static int open_shard(void *self, const char *path, void **shard, int64_t *docs, struct err *e)
{
	struct st_error se;
	struct shard *s;

	(void)self;
	if (!is_shard(path))
		return 0;
	if ((s = calloc(1, sizeof *s)) == NULL || (s->path = strdup(path)) == NULL)
		err_die(EX_OSERR, "out of memory");
	if ((s->f = st_open(path, ST_READ, &se)) == NULL)
		modeldir_st_err(e, path, &se);
	if (s->f == NULL || check_shard(s, e) < 0) {
		close_shard(s);
		return -1;
	}
	*shard = s;
	*docs = s->docs;
	return 1;
}

struct docpack *docpack_open(int nfiles, char *const files[], const struct docpack_opt *o,
    struct err *e)
{
	struct docpack *d = calloc(1, sizeof *d);
	const struct corpus_opt co = { .unit = "documents",
	    .kind = { .item = document, .open = open_shard, .doc = shard_doc, .close = close_shard,
	    .self = d, .tok = o->tok },
	    .shuffle = o->shuffle, .piece = o->shuffle || o->window > 0 ? o->T : 0,
	    .window = o->window, .longest = o->T,
	    .ram = o->ram, .skip_bad = o->skip_bad, .seed = o->seed };

	if (d == NULL) {
		err_set(e, EX_OSERR, "out of memory");
		return NULL;
	}
	d->o = *o;
	if ((d->corpus = corpus_open(nfiles, files, &co, e)) == NULL) {
		docpack_close(d);
		return NULL;
	}
	for (int i = 0; i < nfiles; i++)
		if (corpus_streams(d->corpus) && is_shard(files[i])) {
			err_set(e, EX_USAGE, "%s: token shards cannot be read together with a pipe",
			    files[i]);
			docpack_close(d);
			return NULL;
		}
	d->limit = o->epochs > 0 && !corpus_streams(d->corpus) ?
	    llround(o->epochs * (double)corpus_words(d->corpus)) : -1;
	return d;
}

void docpack_close(struct docpack *d)
{
	if (d == NULL)
		return;
	corpus_close(d->corpus);
	free(d);
}

bool docpack_streams(const struct docpack *d)
{
	return corpus_streams(d->corpus);
}

int64_t docpack_docs(const struct docpack *d)
{
	return corpus_items(d->corpus);
}

int64_t docpack_tokens(const struct docpack *d)
{
	return corpus_words(d->corpus);
}

int64_t docpack_rows(const struct docpack *d)
{
	return d->limit < 0 ? -1 : (d->limit + d->o.T - 1) / d->o.T;
}

int64_t docpack_bytes(const struct docpack *d)
{
	return corpus_bytes(d->corpus);
}

/* Finds the document at the position, and its tokens if they are asked for. 1, 0 at the end, -1. */
static int fetch(struct docpack *d, bool tokens, struct err *e)
{
	if (d->doc != NULL || (!tokens && d->len > 0))
		return 1;
	return corpus_get(d->corpus, tokens ? &d->doc : NULL, &d->len, e);
}

static void advance(struct docpack *d, int64_t n)
{
	d->taken += n;
	d->offset += n;
	if (d->offset < d->len)
		return;
	d->doc = NULL;
	d->offset = d->len = 0;
	corpus_advance(d->corpus);
}

/* Tokens of this document that a row has room for from column t on. */
static int64_t fitting(const struct docpack *d, int t)
{
	int64_t n = d->len - d->offset;

	if (n > d->o.T - t)
		n = d->o.T - t;
	return d->limit >= 0 && n > d->limit - d->taken ? d->limit - d->taken : n;
}

/* n tokens into row r from column t on. */
static void place(const struct docpack *d, struct batch *b, int64_t r, int t, int64_t n)
{
	int64_t at = r * d->o.T + t;
	int record = corpus_touch(d->corpus);

	for (int64_t i = 0; i < n; i++) {
		int64_t j = d->offset + i;

		b->tok[at + i] = d->doc[j];
		b->target[at + i] = j + 1 < d->len ? (int32_t)d->doc[j + 1] : -1;
		b->doc_start[at + i] = t;
		if (b->from != NULL)
			b->from[at + i] = record;
	}
}

static void pad(struct batch *b, int64_t at, int64_t n)
{
	for (int64_t i = at; i < at + n; i++) {
		b->tok[i] = 0;
		b->target[i] = -1;
		b->doc_start[i] = -1;
	}
}

/* Fills row r, or only goes on by a row when b is NULL. Its tokens, fewer than T at the end; -1. */
static int next_row(struct docpack *d, struct batch *b, int64_t r, struct err *e)
{
	int64_t n;
	int t, rc;

	for (t = 0; t < d->o.T && d->taken != d->limit; t += (int)n) {
		if ((rc = fetch(d, b != NULL, e)) < 0)
			return -1;
		if (rc == 0)
			break;
		n = fitting(d, t);
		if (b != NULL)
			place(d, b, r, t, n);
		advance(d, n);
	}
	if (b != NULL && t > 0)
		pad(b, r * d->o.T + t, d->o.T - t);
	return t;
}

int docpack_next(struct docpack *d, struct batch *b, int B, struct err *e)
{
	int rows, t = d->o.T;

	for (rows = 0; rows < B && t == d->o.T; rows += t > 0)
		if ((t = next_row(d, b, rows, e)) < 0)
			return -1;
	if (b != NULL) {
		b->T = d->o.T;
		b->B = rows;
	}
	return rows > 0;
}

json_t *docpack_position(const struct docpack *d)
{
	json_t *p = corpus_position(d->corpus);

	json_object_set_new(p, "offset", json_integer(d->offset));
	json_object_set_new(p, "tokens", json_integer(d->taken));
	return p;
}

int docpack_seek(struct docpack *d, const json_t *position, struct err *e)
{
	json_int_t offset = 0, taken = 0;

	if (position != NULL && json_unpack((json_t *)position, "{s:I, s:I}", "offset", &offset,
	    "tokens", &taken) < 0)
		return err_set(e, EX_DATAERR, "train_state.json: no position in the data");
	if (corpus_seek(d->corpus, position, e) < 0)
		return -1;
	d->doc = NULL;
	d->len = 0;
	d->offset = offset;
	d->taken = taken;
	if (offset == 0)
		return 0;
	if (fetch(d, false, e) < 0)
		return -1;
	return d->len == 0 || offset < 0 || offset >= d->len ?
	    err_set(e, EX_DATAERR, "train_state.json: its position is not in this data") : 0;
}

struct corpus *docpack_corpus(struct docpack *d)
{
	return d->corpus;
}

json_t *docpack_inputs(const struct docpack *d)
{
	json_t *list = corpus_inputs(d->corpus);

	if (docpack_streams(d)) {
		json_t *in = json_array_get(list, 0);

		json_object_set_new(in, "records",
		    json_integer(corpus_passed(d->corpus) + (d->offset > 0)));
		json_object_set_new(in, "tokens", json_integer(d->taken));
	}
	return list;
}
