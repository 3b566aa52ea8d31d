#include "data.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "corpus.h"
#include "record.h"
#include "safetensors.h"

struct data {
	struct data_opt o;
	struct corpus *corpus;
	struct ids scratch;		/* a document of a shard */
	int64_t limit;			/* tokens to deliver in all, -1 without end */

	/* position; doc NULL: the next document is not fetched yet */
	const uint32_t *doc;
	int64_t len, offset;		/* of the current document, and where in it the next row begins */
	int64_t taken;			/* tokens delivered in all */
};

static bool is_shard(const char *path)
{
	size_t n = strlen(path);

	return n > 12 && strcmp(path + n - 12, ".safetensors") == 0;
}

static int document(void *self, const json_t *rec, struct ids *out, struct err *why)
{
	struct data *d = self;

	return record_document(rec, d->o.tok, d->o.vocab, out, why);
}

/* A token shard: "tokens" (N) U16 or U32, "offsets" (docs + 1) I64. */
struct shard {
	const struct st_tensor *tok, *off;
	int64_t n, docs;
};

static int check_shard(struct shard *s, const struct st_file *f, const char *path, struct err *e)
{
	s->tok = st_find(f, "tokens");
	s->off = st_find(f, "offsets");
	if (s->tok == NULL || s->off == NULL)
		return err_set(e, EX_DATAERR, "%s: not a token shard: no \"%s\"", path, s->tok ? "offsets" : "tokens");
	if (s->tok->ndim != 1 || (s->tok->dtype != ST_U16 && s->tok->dtype != ST_U32) || s->off->ndim != 1 ||
	    s->off->dtype != ST_I64 || s->off->shape[0] < 1)
		return err_set(e, EX_DATAERR, "%s: not a token shard: tokens must be U16 or U32, offsets I64", path);
	s->n = (int64_t)s->tok->shape[0];
	s->docs = (int64_t)s->off->shape[0] - 1;
	return 0;
}

/* Document i into scratch. A mapped file may be unaligned, hence memcpy. */
static int shard_doc(struct data *d, const struct shard *s, int64_t i, const char *path, struct err *e)
{
	int64_t at[2];

	memcpy(at, (const char *)s->off->data + i * (int64_t)sizeof *at, sizeof at);
	if (at[0] < 0 || at[1] < at[0] || at[1] > s->n || at[1] - at[0] > INT32_MAX / 2)
		return err_set(e, EX_DATAERR, "%s: document %" PRId64 ": offsets out of order", path, i);
	d->scratch.n = 0;
	for (int64_t j = at[0]; j < at[1]; j++) {
		uint16_t narrow;
		uint32_t id;

		if (s->tok->dtype == ST_U16) {
			memcpy(&narrow, (const char *)s->tok->data + j * 2, sizeof narrow);
			id = narrow;
		} else {
			memcpy(&id, (const char *)s->tok->data + j * 4, sizeof id);
		}
		if (id >= (uint32_t)d->o.vocab)
			return err_set(e, EX_DATAERR, "%s: token %" PRIu32 " of document %" PRId64 " is not below the model's"
			    " vocab_size %d", path, id, i, d->o.vocab);
		ids_push(&d->scratch, id);
	}
	record_frame(d->o.tok, &d->scratch);
	return 0;
}

static int load_shard(void *self, struct corpus *c, const char *path, struct err *e)
{
	struct data *d = self;
	struct st_error se;
	struct st_file *f;
	struct shard s = {0};
	int rc;

	if (!is_shard(path))
		return 0;
	if ((f = st_open(path, ST_MMAP, &se)) == NULL)
		return err_set(e, se.code == ST_EOPEN ? EX_NOINPUT : EX_DATAERR, "%s: %s", path, se.msg);
	rc = check_shard(&s, f, path, e);
	for (int64_t i = 0; rc == 0 && i < s.docs; i++) {
		rc = shard_doc(d, &s, i, path, e);
		if (rc == 0 && d->scratch.n > 0)
			rc = corpus_add(c, d->scratch.v, d->scratch.n, e);
	}
	st_close(f);
	return rc < 0 ? -1 : 1;
}

struct data *data_open(int nfiles, char *const files[], const struct data_opt *o, struct err *e)
{
	struct data *d = calloc(1, sizeof *d);
	const struct corpus_opt co = { .unit = "documents", .item = document, .file = load_shard, .self = d,
	    .shuffle = o->shuffle, .piece = o->shuffle ? o->T : 0, .skip_bad = o->skip_bad, .seed = o->seed };

	if (d == NULL) {
		err_set(e, EX_OSERR, "out of memory");
		return NULL;
	}
	d->o = *o;
	if ((d->corpus = corpus_open(nfiles, files, &co, e)) == NULL) {
		data_close(d);
		return NULL;
	}
	for (int i = 0; i < nfiles; i++)
		if (corpus_streams(d->corpus) && is_shard(files[i])) {
			err_set(e, EX_USAGE, "%s: token shards cannot be read together with a pipe", files[i]);
			data_close(d);
			return NULL;
		}
	d->limit = o->epochs > 0 && !corpus_streams(d->corpus) ?
	    llround(o->epochs * (double)corpus_words(d->corpus)) : -1;
	return d;
}

void data_close(struct data *d)
{
	if (d == NULL)
		return;
	corpus_close(d->corpus);
	ids_free(&d->scratch);
	free(d);
}

bool data_streams(const struct data *d)
{
	return corpus_streams(d->corpus);
}

int64_t data_docs(const struct data *d)
{
	return corpus_items(d->corpus);
}

int64_t data_tokens(const struct data *d)
{
	return corpus_words(d->corpus);
}

int64_t data_rows(const struct data *d)
{
	return d->limit < 0 ? -1 : (d->limit + d->o.T - 1) / d->o.T;
}

int64_t data_bytes(const struct data *d)
{
	return corpus_bytes(d->corpus);
}

/* Makes d->doc the document at the position. 1, 0 at the end, -1. */
static int fetch(struct data *d, struct err *e)
{
	return d->doc != NULL ? 1 : corpus_get(d->corpus, &d->doc, &d->len, e);
}

static void advance(struct data *d, int64_t n)
{
	d->taken += n;
	d->offset += n;
	if (d->offset < d->len)
		return;
	d->doc = NULL;
	d->offset = 0;
	corpus_advance(d->corpus);
}

/* Tokens into row r from column t on, as many as this document and the row have. */
static int64_t place(struct data *d, struct batch *b, int64_t r, int t)
{
	int64_t at = r * d->o.T + t, n = d->len - d->offset;

	if (n > d->o.T - t)
		n = d->o.T - t;
	if (d->limit >= 0 && n > d->limit - d->taken)
		n = d->limit - d->taken;
	for (int64_t i = 0; i < n; i++) {
		int64_t j = d->offset + i;

		b->tok[at + i] = d->doc[j];
		b->target[at + i] = j + 1 < d->len ? (int32_t)d->doc[j + 1] : -1;
		b->doc_start[at + i] = t;
	}
	advance(d, n);
	return n;
}

static void pad(struct batch *b, int64_t at, int64_t n)
{
	for (int64_t i = at; i < at + n; i++) {
		b->tok[i] = 0;
		b->target[i] = -1;
		b->doc_start[i] = -1;
	}
}

int data_next(struct data *d, struct batch *b, int B, struct err *e)
{
	int t = 0, rc = 1;

	b->T = d->o.T;
	for (b->B = 0; b->B < B; b->B++) {
		for (t = 0; t < b->T; ) {
			if (d->taken == d->limit || (rc = fetch(d, e)) == 0)
				break;
			if (rc < 0)
				return -1;
			t += (int)place(d, b, b->B, t);
		}
		if (t < b->T)
			break;
	}
	if (b->B < B && t > 0) {
		pad(b, (int64_t)b->B * b->T + t, b->T - t);
		b->B++;
	}
	return b->B > 0;
}

json_t *data_position(const struct data *d)
{
	return json_pack("{s:I, s:I, s:I, s:I}", "epoch", (json_int_t)corpus_epoch(d->corpus), "document",
	    (json_int_t)corpus_index(d->corpus), "offset", (json_int_t)d->offset, "tokens", (json_int_t)d->taken);
}

int data_seek(struct data *d, const json_t *position, struct err *e)
{
	json_int_t epoch = 0, index = 0, offset = 0, taken = 0;

	if (position != NULL && json_unpack((json_t *)position, "{s:I, s:I, s:I, s:I}", "epoch", &epoch, "document",
	    &index, "offset", &offset, "tokens", &taken) < 0)
		return err_set(e, EX_DATAERR, "train_state.json: no position in the data");
	if (corpus_seek(d->corpus, epoch, index, e) < 0)
		return -1;
	d->doc = NULL;
	d->offset = offset;
	d->taken = taken;
	if (offset == 0)
		return 0;
	if (fetch(d, e) < 0)
		return -1;
	return d->doc == NULL || offset < 0 || offset >= d->len || corpus_index(d->corpus) != index ?
	    err_set(e, EX_DATAERR, "train_state.json: its position is not in this data") : 0;
}

json_t *data_inputs(const struct data *d)
{
	json_t *list = corpus_inputs(d->corpus);

	if (data_streams(d)) {
		json_t *in = json_array_get(list, 0);

		json_object_set_new(in, "records", json_integer(corpus_index(d->corpus) + (d->offset > 0)));
		json_object_set_new(in, "tokens", json_integer(d->taken));
	}
	return list;
}
