#include "text/record_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/jsontext.h"
#include "base/sig.h"
#include "base/sniff.h"

#define CHUNK ((size_t)64 << 10)
#define PAGE ((size_t)4 << 10)		/* what the rest of a block's last line is looked for in,
					   at least */
#define WHERE_MOST ((off_t)1 << 30)	/* in a larger file lines are not counted */

enum {
	BLOCK_LEAST = 64 << 10, BLOCK_MOST = 1 << 20,	/* bytes */
	DOCS_LEAST = 16, DOCS_MOST = 1024,
	BLOCKS = 4			/* for each process, at least, so that they have about
					   equally much */
};

struct record_file {
	const char *path;
	const struct record_kind *k;
	struct stat was;		/* when it was opened */
	int64_t block;			/* bytes or documents of one */

	void *shard;			/* of k, or NULL: JSONL */
	int64_t docs;			/* of the shard */

	struct jsonl *in;		/* gzip, while it is gone through */
	int64_t done;			/* blocks of it */
	bool seeks;
	int mark;			/* bytes before the first line */
	int fd;				/* to read lines at their places; -1: none */
	char *buf;			/* a line */
	size_t cap;
};

/* The text of the record, so that its numbers stay as they are written. */
static void append_source(struct ids *out, const char *line, size_t len)
{
	struct jsontext text = {0};
	int at = out->n + 1, words;

	jsontext_compact(&text, line, len);
	words = (int)((text.n + 3) / 4);
	ids_push(out, (uint32_t)text.n);
	for (int i = 0; i < words; i++)
		ids_push(out, 0);
	memcpy(out->v + at, text.s, text.n);
	jsontext_free(&text);
}

int record_item(const struct record_kind *k, struct tok *t, const char *line, size_t len,
    struct ids *out, struct record_count *n, struct err *why)
{
	size_t mark = jsonl_mark(line, len);
	json_t *rec = jsonl_parse(line += mark, len -= mark, why);
	int rc = 0;

	out->n = 0;
	if (rec == NULL)
		return why->status != 0 ? -1 : 0;
	rc = k->item(k->self, t, rec, out, n, why);
	json_decref(rec);
	if (rc < 0)
		out->n = 0;
	else if (k->source && out->n > 0)
		append_source(out, line, len);
	return rc < 0 ? -1 : 0;
}

int record_file_item(struct jsonl *in, const struct record_kind *k, struct ids *out,
    struct record_count *n, struct err *e)
{
	struct err why = {0};
	const char *line;
	size_t len;

	do {
		if ((line = jsonl_line(in, &len, e)) == NULL)
			return e->status != 0 ? -1 : 0;
		if (record_item(k, k->tok, line, len, out, n, &why) < 0 &&
		    jsonl_bad(in, e, "%s", why.msg) < 0)
			return -1;
	} while (out->n == 0);		/* empty, or bad and passed over */
	return 1;
}

/* Blocks of each of `parts` processes, neither too small to be worth it nor larger than they
 * should hold. */
static int64_t block_size(int64_t n, int parts, int64_t least, int64_t most)
{
	int64_t size = n / ((int64_t)BLOCKS * parts);

	return size < least ? least : size > most ? most : size;
}

/* path is a name in the list that jsonl_open() wants to have until it is closed: f->path. */
static int open_lines(struct record_file *f, int parts, struct err *e)
{
	char head[SNIFF_BYTES];
	ssize_t n;

	if ((f->in = jsonl_open(1, (char *const *)&f->path, false, e)) == NULL)
		return -1;
	if ((f->fd = file_open(f->path, e)) < 0)
		return -1;
	if (fstat(f->fd, &f->was) < 0)
		return err_set(e, EX_IOERR, "%s:", f->path);
	f->block = block_size(f->was.st_size, parts, BLOCK_LEAST, BLOCK_MOST);
	if ((n = pread(f->fd, head, sizeof head, 0)) < 0)
		return err_set(e, EX_IOERR, "%s:", f->path);
	f->seeks = n < 2 || head[0] != '\x1f' || head[1] != '\x8b';
	if (f->seeks && (f->mark = jsonl_begin(head, (size_t)n, f->path, e)) < 0)
		return -1;
	if (f->seeks) {
		jsonl_close(f->in);
		f->in = NULL;
	}
	return 0;
}

struct record_file *record_file_open(const char *path, const struct record_kind *k, int parts,
    struct err *e)
{
	struct record_file *f = calloc(1, sizeof *f);
	int rc = 0;

	if (f == NULL)
		err_die(EX_OSERR, "out of memory");
	f->path = path;
	f->k = k;
	f->fd = -1;
	f->seeks = true;
	if (k->open != NULL)
		rc = k->open(k->self, path, &f->shard, &f->docs, e);
	if (rc > 0)
		f->block = block_size(f->docs, parts, DOCS_LEAST, DOCS_MOST);
	else if (rc == 0)
		rc = open_lines(f, parts, e);
	if (rc >= 0)
		return f;
	record_file_close(f);
	return NULL;
}

bool record_file_seeks(const struct record_file *f)
{
	return f->seeks;
}

bool record_file_is_shard(const struct record_file *f)
{
	return f->shard != NULL;
}

int64_t record_file_size(const struct record_file *f)
{
	return f->shard != NULL ? f->docs : f->was.st_size;
}

/* --- blocks --- */

/* Up to n bytes at a place: how many there were, -1. */
static ssize_t read_at(const struct record_file *f, char *to, size_t n, int64_t at, struct err *e)
{
	size_t have = 0;
	ssize_t got = 1;

	while (have < n && got > 0) {
		if (sig_stop)
			return err_set(e, EX_TEMPFAIL, "%s: stopped by signal %d", f->path,
			    (int)sig_stop);
		got = pread(f->fd, to + have, n - have, at + (int64_t)have);
		if (got < 0 && errno == EINTR)
			got = 1;
		else if (got > 0)
			have += (size_t)got;
	}
	return got < 0 ? err_set(e, EX_IOERR, "%s:", f->path) : (ssize_t)have;
}

/* Reads on until the text has the end of the line that begins at `at`, or the file ends. Where
 * the line ends, -1. */
static int64_t line_end(struct record_file *f, struct lineblock *b, size_t at, int64_t from,
    struct err *e)
{
	char *nl = memchr(b->text + at, '\n', b->n - at);
	ssize_t got = 1;
	size_t stop;

	while (nl == NULL && got > 0 && b->n - at < JSONL_MAX_LINE) {
		size_t had = b->n, want = had - at > PAGE ? had - at : PAGE;

		lineblock_reserve(b, had + want);
		if ((got = read_at(f, b->text + had, want, from + (int64_t)had, e)) < 0)
			return -1;
		b->n += (size_t)got;
		nl = memchr(b->text + had, '\n', (size_t)got);
	}
	stop = nl != NULL ? (size_t)(nl - b->text) : b->n;
	return stop - at < JSONL_MAX_LINE ? (int64_t)stop :
	    err_set(e, EX_DATAERR, "line is longer than %zu MiB", JSONL_MAX_LINE >> 20);
}

/* The lines that begin in block k. The byte before it tells whether one begins with it. */
static int read_plain(struct record_file *f, int64_t k, struct record_file_block *b, struct err *e)
{
	int64_t size = f->was.st_size, to = (k + 1) * f->block < size ? (k + 1) * f->block : size;
	int64_t from = k * f->block - (k > 0), at = k > 0 ? 0 : f->mark, stop = 0;
	ssize_t got;
	char *nl;

	b->end = to == size;
	if (from >= to)
		return 0;
	lineblock_reserve(&b->lines, (size_t)(to - from) + PAGE);
	if ((got = read_at(f, b->lines.text, (size_t)(to - from), from, e)) < 0)
		return -1;
	b->lines.n = (size_t)got;
	if (k > 0) {
		nl = memchr(b->lines.text, '\n', b->lines.n);
		at = nl != NULL ? nl + 1 - b->lines.text : got;
	}
	for (; at < got; at = stop + 1) {
		if ((stop = line_end(f, &b->lines, (size_t)at, from, e)) < 0)
			return -1;
		lineblock_mark(&b->lines, (size_t)at, (size_t)(stop - at), from + at);
	}
	return 0;
}

/* The next block of gzip. keep false: only goes by. */
static int read_gzip(struct record_file *f, bool keep, struct record_file_block *b, struct err *e)
{
	int64_t n = 0;
	const char *s = "";
	size_t len;

	while (n < f->block && (s = jsonl_line(f->in, &len, e)) != NULL) {
		if (keep)
			lineblock_add(&b->lines, s, len, jsonl_offset(f->in));
		n += (int64_t)len + 1;
	}
	b->end = s == NULL;
	return e->status != 0 ? -1 : 0;
}

int record_file_read(struct record_file *f, int64_t k, struct record_file_block *b, struct err *e)
{
	int rc = 0;

	lineblock_clear(&b->lines);
	b->docs = 0;
	if (f->shard != NULL) {
		b->first = k * f->block < f->docs ? k * f->block : f->docs;
		b->docs = f->docs - b->first < f->block ? f->docs - b->first : f->block;
		b->end = b->first + b->docs == f->docs;
		return 0;
	}
	if (f->seeks)
		return read_plain(f, k, b, e);
	for (b->end = false; rc == 0 && f->done <= k && !b->end; f->done++)
		rc = read_gzip(f, f->done == k, b, e);
	return rc;
}

int record_file_doc(struct record_file *f, int64_t i, struct ids *out, struct err *e)
{
	out->n = 0;
	return f->k->doc(f->k->self, f->shard, i, out, e);
}

void record_file_end(struct record_file *f, bool again)
{
	if (f->in != NULL)
		jsonl_close(f->in);
	f->in = NULL;
	if (again)
		return;
	if (f->fd >= 0)
		close(f->fd);
	f->fd = -1;
	if (f->shard != NULL)
		f->k->close(f->shard);
	f->shard = NULL;
}

void record_file_close(struct record_file *f)
{
	if (f == NULL)
		return;
	record_file_end(f, false);
	free(f->buf);
	free(f);
}

/* --- again --- */

static int changed(const struct record_file *f, struct err *e)
{
	return err_set(e, EX_DATAERR, "%s: is not what it was when this run began to read it",
	    f->path);
}

static int check_unchanged(const struct record_file *f, struct err *e)
{
	struct stat now;

	if (fstat(f->fd, &now) < 0)
		return err_set(e, EX_IOERR, "%s:", f->path);
	return now.st_size != f->was.st_size || now.st_mtim.tv_sec != f->was.st_mtim.tv_sec ||
	    now.st_mtim.tv_nsec != f->was.st_mtim.tv_nsec ? changed(f, e) : 0;
}

static int read_chunk(struct record_file *f, int64_t at, size_t have, size_t *got, struct err *e)
{
	ssize_t n;

	if (have + CHUNK > f->cap && (f->buf = realloc(f->buf, f->cap = 2 * (have + CHUNK))) ==
	    NULL)
		err_die(EX_OSERR, "out of memory");
	while ((n = pread(f->fd, f->buf + have, CHUNK, at + (int64_t)have)) < 0 && errno == EINTR)
		continue;
	*got = n > 0 ? (size_t)n : 0;
	return n < 0 ? err_set(e, EX_IOERR, "%s:", f->path) : 0;
}

/* The line that begins at a byte of the file, and a NUL: its length, -1. */
static int64_t read_line(struct record_file *f, int64_t at, struct err *e)
{
	const char *nl = NULL;
	size_t have = 0, got = 1;
	int64_t len;

	while (nl == NULL && got > 0) {
		if (read_chunk(f, at, have, &got, e) < 0)
			return -1;
		nl = memchr(f->buf + have, '\n', got);
		have += got;
	}
	len = nl != NULL ? nl - f->buf : (int64_t)have;
	f->buf[len] = '\0';
	return len;
}

int record_file_at(struct record_file *f, int64_t place, struct ids *out, struct err *e)
{
	struct record_count again = {0};	/* it was counted when the file was gone through */
	int64_t len;

	if (f->shard != NULL)
		return record_file_doc(f, place, out, e);
	if (check_unchanged(f, e) < 0 || (len = read_line(f, place, e)) < 0)
		return -1;
	return record_item(f->k, f->k->tok, f->buf, (size_t)len, out, &again, e) == 0 &&
	    out->n > 0 ? 0 : changed(f, e);
}

char *record_file_where(struct record_file *f, int64_t place)
{
	struct err e = {0};
	struct jsonl *in = NULL;
	char *s = NULL;
	size_t len;
	int rc;

	if (f->docs == 0 && f->was.st_size < WHERE_MOST)
		in = jsonl_open(1, (char *const *)&f->path, false, &e);
	while (in != NULL && jsonl_line(in, &len, &e) != NULL && jsonl_offset(in) < place)
		continue;
	if (f->docs > 0)
		rc = asprintf(&s, "%s:document %" PRId64, f->path, place);
	else if (in != NULL && e.status == 0)
		rc = asprintf(&s, "%s:%" PRId64, f->path, jsonl_lineno(in));
	else
		rc = asprintf(&s, "%s:byte %" PRId64, f->path, place);
	if (in != NULL)
		jsonl_close(in);
	if (rc < 0)
		err_die(EX_OSERR, "out of memory");
	return s;
}
