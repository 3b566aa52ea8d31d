#include "corpus.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "comm.h"
#include "json.h"
#include "progress.h"
#include "prov.h"
#include "rng.h"

enum { STREAM_ORDER = 0x64617461 };	/* random stream of the items' order; the epoch is added */

struct corpus {
	struct corpus_opt o;
	int nfiles;
	char *const *files;
	json_t *inputs;			/* prov_file() of each file */

	/* files: everything in memory */
	uint32_t *word;			/* items one after the other */
	int64_t *off;			/* (n + 1) where each begins in word */
	uint32_t *order;		/* (n) of this epoch */
	int64_t n, cap_items, cap_words;

	/* a pipe: one item at a time */
	struct jsonl *in;
	bool fetched;			/* scratch is the item that is next */
	struct ids scratch;		/* the item last made */

	int64_t epoch, index;
};

static bool regular(const char *path)
{
	struct stat st;

	return strcmp(path, "-") != 0 && (stat(path, &st) < 0 || S_ISREG(st.st_mode));
}

static bool all_stdin(const struct corpus *c)
{
	bool all = true;

	for (int i = 0; i < c->nfiles; i++)
		all &= strcmp(c->files[i], "-") == 0;
	return all;
}

/* The next record's item into scratch. 1, 0 at the end, -1. */
static int read_item(struct corpus *c, struct jsonl *in, struct err *e)
{
	struct err why = {0};
	json_t *rec;
	int rc;

	do {
		if ((rec = jsonl_next(in, e)) == NULL)
			return e->status != 0 ? -1 : 0;
		c->scratch.n = 0;
		rc = c->o.item(c->o.self, rec, &c->scratch, &why);
		json_decref(rec);
		if (rc < 0 && jsonl_bad(in, e, "%s", why.msg) < 0)
			return -1;
		if (rc < 0)
			c->scratch.n = 0;
	} while (c->scratch.n == 0);	/* empty, or bad and passed over */
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

static int add(struct corpus *c, const uint32_t *item, int64_t n, struct err *e)
{
	int64_t at = corpus_words(c);

	if (grow(&c->off, c->n + 2, &c->cap_items, sizeof *c->off, e) < 0 ||
	    grow(&c->word, at + n, &c->cap_words, sizeof *c->word, e) < 0)
		return -1;
	c->off[0] = 0;
	memcpy(c->word + at, item, (size_t)n * sizeof *item);
	c->off[++c->n] = at + n;
	return 0;
}

int corpus_add(struct corpus *c, const uint32_t *item, int64_t n, struct err *e)
{
	int64_t piece = c->o.piece > 0 ? c->o.piece : n;
	int rc = 0;

	for (int64_t i = 0; rc == 0 && i < n; i += piece)
		rc = add(c, item + i, n - i < piece ? n - i : piece, e);
	return rc;
}

static int load_jsonl(struct corpus *c, char *path, struct progress *p, struct err *e)
{
	struct jsonl *in = jsonl_open(1, &path, c->o.skip_bad, e);
	int rc;

	if (in == NULL)
		return -1;
	while ((rc = read_item(c, in, e)) > 0) {
		if ((rc = corpus_add(c, c->scratch.v, c->scratch.n, e)) < 0)
			break;
		progress_at(p, (double)c->n, "%" PRId64 " tokens", corpus_words(c));
	}
	progress_clear(p);
	jsonl_close(in);
	return rc;
}

static int load_file(struct corpus *c, char *path, struct progress *p, struct err *e)
{
	int64_t before = c->n;
	int rc = c->o.file != NULL ? c->o.file(c->o.self, c, path, e) : 0;

	if (rc == 0)
		rc = load_jsonl(c, path, p, e);
	return rc < 0 ? -1 : json_array_append_new(c->inputs, prov_file(path, c->n - before, e));
}

static void shuffle(struct corpus *c)
{
	for (int64_t i = 0; i < c->n; i++)
		c->order[i] = (uint32_t)i;
	if (c->o.shuffle)
		rng_shuffle(c->o.seed, STREAM_ORDER + ((uint64_t)c->epoch << 32), c->order, (uint64_t)c->n);
}

static int load(struct corpus *c, struct err *e)
{
	struct progress p;
	int rc = 0;

	c->inputs = json_array();
	progress_start(&p, "reading", c->o.unit, 0);
	for (int i = 0; i < c->nfiles && rc == 0; i++)
		rc = load_file(c, c->files[i], &p, e);
	progress_end(&p);
	if (rc < 0)
		return -1;
	if (c->n == 0)
		return err_set(e, EX_DATAERR, "%s: no %s to train on", c->files[0], c->o.unit);
	if (c->n > UINT32_MAX)
		return err_set(e, EX_DATAERR, "more than %" PRIu32 " %s", UINT32_MAX, c->o.unit);
	c->order = malloc((size_t)c->n * sizeof *c->order);
	if (c->order == NULL)
		return err_set(e, EX_OSERR, "no memory for the order of %" PRId64 " %s", c->n, c->o.unit);
	shuffle(c);
	return 0;
}

struct corpus *corpus_open(int nfiles, char *const files[], const struct corpus_opt *o, struct err *e)
{
	static char *const from_stdin[] = { "-" };
	struct corpus *c = calloc(1, sizeof *c);
	bool stream = nfiles == 0;
	int rc;

	if (c == NULL) {
		err_set(e, EX_OSERR, "out of memory");
		return NULL;
	}
	c->o = *o;
	c->nfiles = nfiles > 0 ? nfiles : 1;
	c->files = nfiles > 0 ? files : from_stdin;
	for (int i = 0; i < nfiles; i++)
		stream |= !regular(files[i]);
	if (stream && comm_size() > 1 && !all_stdin(c))
		rc = err_set(e, EX_USAGE, "of several ranks only the first has a pipe: give it as the standard input, alone");
	else if (stream)
		rc = (c->in = jsonl_open(c->nfiles, c->files, o->skip_bad, e)) == NULL ? -1 : 0;
	else
		rc = load(c, e);
	if (rc < 0) {
		corpus_close(c);
		return NULL;
	}
	return c;
}

void corpus_close(struct corpus *c)
{
	if (c == NULL)
		return;
	if (c->in != NULL)
		jsonl_close(c->in);
	ids_free(&c->scratch);
	json_decref(c->inputs);
	free(c->order);
	free(c->word);
	free(c->off);
	free(c);
}

bool corpus_streams(const struct corpus *c)
{
	return c->in != NULL;
}

int64_t corpus_items(const struct corpus *c)
{
	return c->n;
}

int64_t corpus_words(const struct corpus *c)
{
	return c->n > 0 ? c->off[c->n] : 0;
}

int64_t corpus_bytes(const struct corpus *c)
{
	return c->cap_words * (int64_t)sizeof *c->word + c->cap_items * (int64_t)sizeof *c->off +
	    c->n * (int64_t)sizeof *c->order;
}

int corpus_get(struct corpus *c, const uint32_t **item, int64_t *n, struct err *e)
{
	int64_t i;
	int rc;

	if (c->in != NULL) {
		if (!c->fetched && (rc = read_item(c, c->in, e)) <= 0)
			return rc;
		c->fetched = true;
		*item = c->scratch.v;
		*n = c->scratch.n;
		return 1;
	}
	if (c->index == c->n) {
		c->epoch++;
		c->index = 0;
		shuffle(c);
	}
	i = c->order[c->index];
	*item = c->word + c->off[i];
	*n = c->off[i + 1] - c->off[i];
	return 1;
}

void corpus_advance(struct corpus *c)
{
	c->fetched = false;
	c->index++;
}

int64_t corpus_epoch(const struct corpus *c)
{
	return c->epoch;
}

int64_t corpus_index(const struct corpus *c)
{
	return c->index;
}

int64_t corpus_passed(const struct corpus *c)
{
	return c->epoch * c->n + c->index;
}

/* Reads and drops the items before the place. */
static int skip_stream(struct corpus *c, int64_t index, struct err *e)
{
	int rc = 1;

	if (index < c->index)
		return err_set(e, EX_SOFTWARE, "a pipe cannot be rewound");
	while (c->index < index && (c->fetched || (rc = read_item(c, c->in, e)) > 0))
		corpus_advance(c);
	return rc != 0 ? (rc > 0 ? 0 : -1) : err_set(e, EX_DATAERR,
	    "%s: the input is not the one this run began with: it ends after %" PRId64 " records", jsonl_name(c->in), c->index);
}

int corpus_seek(struct corpus *c, int64_t epoch, int64_t index, struct err *e)
{
	if (c->in != NULL)
		return skip_stream(c, index, e);
	if (epoch < 0 || index < 0 || index > c->n)
		return err_set(e, EX_DATAERR, "train_state.json: its position is not in this data");
	c->epoch = epoch;
	c->index = index;
	shuffle(c);
	return 0;
}

json_t *corpus_inputs(const struct corpus *c)
{
	if (c->in == NULL)
		return json_incref(c->inputs);
	return json_pack("[{s:s, s:I}]", "file", "<stdin>", "records", (json_int_t)c->index);
}
