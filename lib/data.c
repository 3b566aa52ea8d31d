#include "data.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "json.h"
#include "progress.h"
#include "prov.h"
#include "record.h"
#include "rng.h"
#include "safetensors.h"

enum { STREAM_ORDER = 0x64617461 };	/* random stream of the documents' order; the epoch is added */

struct data {
	struct data_opt o;
	int nfiles;
	char *const *files;
	json_t *inputs;			/* prov_file() of each file */

	/* files: everything in memory */
	uint32_t *tok;			/* documents one after the other */
	int64_t *off;			/* (ndocs + 1) where each begins in tok */
	uint32_t *order;		/* (ndocs) of this epoch */
	int64_t ndocs, cap_docs, cap_tok, limit;	/* limit: tokens to deliver in all, -1 without end */

	/* a pipe: one document at a time */
	struct jsonl *in;
	struct ids scratch;		/* the document last tokenised */

	/* position; doc NULL: the next document is not fetched yet */
	const uint32_t *doc;
	int64_t len, offset;		/* of the current document, and where in it the next row begins */
	int64_t epoch, index, taken;	/* documents gone by in this epoch; tokens delivered in all */
};

static bool regular(const char *path)
{
	struct stat st;

	return strcmp(path, "-") != 0 && (stat(path, &st) < 0 || S_ISREG(st.st_mode));
}

static bool is_shard(const char *path)
{
	size_t n = strlen(path);

	return n > 12 && strcmp(path + n - 12, ".safetensors") == 0;
}

/* bos and eos around scratch, unless the document brings its own. (A conversation ends with eos and
 * a newline.) */
static void frame(struct data *d)
{
	struct ids *s = &d->scratch;
	int bos = d->o.tok ? tok_bos(d->o.tok) : -1, eos = d->o.tok ? tok_eos(d->o.tok) : -1;

	if (s->n == 0)
		return;
	if (bos >= 0 && s->v[0] != (uint32_t)bos) {
		ids_push(s, 0);
		memmove(s->v + 1, s->v, (size_t)(s->n - 1) * sizeof *s->v);
		s->v[0] = (uint32_t)bos;
	}
	if (eos >= 0 && s->v[s->n - 1] != (uint32_t)eos && (s->n < 2 || s->v[s->n - 2] != (uint32_t)eos))
		ids_push(s, (uint32_t)eos);
}

/* The next record's document into scratch. 1, 0 at the end, -1. */
static int read_doc(struct data *d, struct jsonl *in, struct err *e)
{
	struct err why = {0};
	json_t *rec;
	int rc;

	do {
		if ((rec = jsonl_next(in, e)) == NULL)
			return e->status != 0 ? -1 : 0;
		d->scratch.n = 0;
		rc = record_ids(rec, d->o.tok, d->o.vocab, &d->scratch, &why);
		json_decref(rec);
		if (rc < 0 && jsonl_bad(in, e, "%s", why.msg) < 0)
			return -1;
		frame(d);
	} while (d->scratch.n == 0);	/* empty, or bad and passed over */
	return 1;
}

static int grow(void *pp, int64_t need, int64_t *cap, size_t size, struct err *e)
{
	int64_t want = need + need / 2 + 1024;
	void *p, **at = pp;

	if (need <= *cap)
		return 0;
	if ((p = realloc(*at, (size_t)want * size)) == NULL)
		return err_set(e, EX_OSERR, "no memory for %" PRId64 " bytes of training data", want * (int64_t)size);
	*at = p;
	*cap = want;
	return 0;
}

static int append(struct data *d, struct err *e)
{
	int64_t at = data_tokens(d), n = d->scratch.n;

	if (grow(&d->off, d->ndocs + 2, &d->cap_docs, sizeof *d->off, e) < 0 ||
	    grow(&d->tok, at + n, &d->cap_tok, sizeof *d->tok, e) < 0)
		return -1;
	d->off[0] = 0;
	memcpy(d->tok + at, d->scratch.v, (size_t)n * sizeof *d->tok);
	d->off[++d->ndocs] = at + n;
	return 0;
}

static int load_jsonl(struct data *d, char *path, struct progress *p, struct err *e)
{
	struct jsonl *in = jsonl_open(1, &path, d->o.skip_bad, e);
	int rc;

	if (in == NULL)
		return -1;
	while ((rc = read_doc(d, in, e)) > 0) {
		if ((rc = append(d, e)) < 0)
			break;
		progress_at(p, (double)d->ndocs, "%" PRId64 " tokens", d->off[d->ndocs]);
	}
	if (jsonl_skipped(in) > 0) {
		progress_clear(p);
		err_warn("%s: %" PRId64 " bad records passed over", path, jsonl_skipped(in));
	}
	jsonl_close(in);
	return rc;
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
	frame(d);
	return 0;
}

static int load_shard(struct data *d, const char *path, struct err *e)
{
	struct st_error se;
	struct st_file *f = st_open(path, ST_MMAP, &se);
	struct shard s = {0};
	int rc;

	if (f == NULL)
		return err_set(e, se.code == ST_EOPEN ? EX_NOINPUT : EX_DATAERR, "%s: %s", path, se.msg);
	rc = check_shard(&s, f, path, e);
	for (int64_t i = 0; rc == 0 && i < s.docs; i++) {
		rc = shard_doc(d, &s, i, path, e);
		if (rc == 0 && d->scratch.n > 0)
			rc = append(d, e);
	}
	st_close(f);
	return rc;
}

static void shuffle(struct data *d)
{
	for (int64_t i = 0; i < d->ndocs; i++)
		d->order[i] = (uint32_t)i;
	if (d->o.shuffle)
		rng_shuffle(d->o.seed, STREAM_ORDER + ((uint64_t)d->epoch << 32), d->order, (uint64_t)d->ndocs);
}

static int load(struct data *d, struct err *e)
{
	struct progress p;
	int64_t before;
	int rc = 0;

	d->inputs = json_array();
	progress_start(&p, "reading", "documents", 0);
	for (int i = 0; i < d->nfiles && rc == 0; i++) {
		before = d->ndocs;
		rc = is_shard(d->files[i]) ? load_shard(d, d->files[i], e) : load_jsonl(d, d->files[i], &p, e);
		if (rc == 0)
			rc = json_array_append_new(d->inputs, prov_file(d->files[i], d->ndocs - before, e));
	}
	progress_end(&p);
	if (rc < 0)
		return -1;
	if (d->ndocs == 0)
		return err_set(e, EX_DATAERR, "%s: no tokens to train on", d->files[0]);
	if (d->ndocs > UINT32_MAX)
		return err_set(e, EX_DATAERR, "more than %" PRIu32 " documents", UINT32_MAX);
	d->order = malloc((size_t)d->ndocs * sizeof *d->order);
	if (d->order == NULL)
		return err_set(e, EX_OSERR, "no memory for the order of %" PRId64 " documents", d->ndocs);
	d->limit = d->o.epochs > 0 ? llround(d->o.epochs * (double)data_tokens(d)) : -1;
	shuffle(d);
	return 0;
}

struct data *data_open(int nfiles, char *const files[], const struct data_opt *o, struct err *e)
{
	static char *const from_stdin[] = { "-" };
	struct data *d = calloc(1, sizeof *d);
	bool stream = nfiles == 0;
	int rc = 0;

	if (d == NULL) {
		err_set(e, EX_OSERR, "out of memory");
		return NULL;
	}
	d->o = *o;
	d->nfiles = nfiles > 0 ? nfiles : 1;
	d->files = nfiles > 0 ? files : from_stdin;
	d->limit = -1;
	for (int i = 0; i < nfiles; i++)
		stream |= !regular(files[i]);
	for (int i = 0; i < nfiles && stream && rc == 0; i++)
		if (is_shard(files[i]))
			rc = err_set(e, EX_USAGE, "%s: token shards cannot be read together with a pipe", files[i]);
	if (rc == 0 && stream)
		rc = (d->in = jsonl_open(d->nfiles, d->files, o->skip_bad, e)) == NULL ? -1 : 0;
	else if (rc == 0)
		rc = load(d, e);
	if (rc < 0) {
		data_close(d);
		return NULL;
	}
	return d;
}

void data_close(struct data *d)
{
	if (d == NULL)
		return;
	if (d->in != NULL)
		jsonl_close(d->in);
	ids_free(&d->scratch);
	json_decref(d->inputs);
	free(d->order);
	free(d->tok);
	free(d->off);
	free(d);
}

bool data_streams(const struct data *d)
{
	return d->in != NULL;
}

int64_t data_docs(const struct data *d)
{
	return d->ndocs;
}

int64_t data_tokens(const struct data *d)
{
	return d->ndocs > 0 ? d->off[d->ndocs] : 0;
}

int64_t data_rows(const struct data *d)
{
	return d->limit < 0 ? -1 : (d->limit + d->o.T - 1) / d->o.T;
}

int64_t data_bytes(const struct data *d)
{
	return d->cap_tok * (int64_t)sizeof *d->tok + d->cap_docs * (int64_t)sizeof *d->off +
	    d->ndocs * (int64_t)sizeof *d->order;
}

/* Makes d->doc the document at the position. 1, 0 at the end, -1. */
static int fetch(struct data *d, struct err *e)
{
	int rc;

	if (d->doc != NULL)
		return 1;
	if (d->in != NULL) {
		if ((rc = read_doc(d, d->in, e)) <= 0)
			return rc;
		d->doc = d->scratch.v;
		d->len = d->scratch.n;
		return 1;
	}
	if (d->index == d->ndocs) {
		d->epoch++;
		d->index = 0;
		shuffle(d);
	}
	d->doc = d->tok + d->off[d->order[d->index]];
	d->len = d->off[d->order[d->index] + 1] - d->off[d->order[d->index]];
	return 1;
}

static void advance(struct data *d, int64_t n)
{
	d->taken += n;
	d->offset += n;
	if (d->offset < d->len)
		return;
	d->doc = NULL;
	d->offset = 0;
	d->index++;
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
	return json_pack("{s:I, s:I, s:I, s:I}", "epoch", (json_int_t)d->epoch, "document", (json_int_t)d->index,
	    "offset", (json_int_t)d->offset, "tokens", (json_int_t)d->taken);
}

/* Reads and drops the documents before the position. */
static int skip_stream(struct data *d, int64_t docs, int64_t offset, struct err *e)
{
	int rc = 1;

	while (d->index < docs && (rc = fetch(d, e)) > 0) {
		d->doc = NULL;
		d->index++;
	}
	if (rc > 0 && offset > 0)
		rc = fetch(d, e);
	if (rc < 0)
		return -1;
	if (rc == 0 || (offset > 0 && offset >= d->len))
		return err_set(e, EX_DATAERR, "%s: the input is not the one this run began with: it ends after %" PRId64
		    " records", jsonl_name(d->in), d->index);
	return 0;
}

int data_seek(struct data *d, const json_t *position, struct err *e)
{
	json_int_t epoch = 0, index = 0, offset = 0, taken = 0;

	if (position != NULL && json_unpack((json_t *)position, "{s:I, s:I, s:I, s:I}", "epoch", &epoch, "document",
	    &index, "offset", &offset, "tokens", &taken) < 0)
		return err_set(e, EX_DATAERR, "train_state.json: no position in the data");
	if (d->in != NULL) {
		if (index < d->index || skip_stream(d, index, offset, e) < 0)
			return e->status != 0 ? -1 : err_set(e, EX_SOFTWARE, "a pipe cannot be rewound");
	} else {
		if (epoch < 0 || index < 0 || index > d->ndocs || offset < 0 || taken < 0 || (index == d->ndocs && offset))
			return err_set(e, EX_DATAERR, "train_state.json: its position is not in this data");
		d->epoch = epoch;
		d->index = index;
		d->doc = NULL;
		shuffle(d);
		if (index < d->ndocs && fetch(d, e) > 0 && offset >= d->len)
			return err_set(e, EX_DATAERR, "train_state.json: its position is not in this data");
	}
	d->offset = offset;
	d->taken = taken;
	return 0;
}

json_t *data_inputs(const struct data *d)
{
	if (d->in == NULL)
		return json_incref(d->inputs);
	return json_pack("[{s:s, s:I, s:I}]", "file", "<stdin>", "records", (json_int_t)(d->index + (d->offset > 0)),
	    "tokens", (json_int_t)d->taken);
}
