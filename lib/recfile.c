#include "recfile.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHUNK ((size_t)64 << 10)
#define WHERE_MOST ((off_t)1 << 30)	/* in a larger file lines are not counted */

struct recfile {
	const char *path;
	const struct record_kind *k;
	struct stat was;		/* when it was opened */

	void *shard;			/* of k, or NULL: JSONL */
	int64_t docs, doc;		/* of the shard; the one that is next */

	struct jsonl *in;		/* while it is gone through */
	bool seeks;
	int fd;				/* to read lines at their places; -1: none */
	char *buf;			/* a line */
	size_t cap;
};

int recfile_item(struct jsonl *in, const struct record_kind *k, struct ids *out, struct err *e)
{
	struct err why = {0};
	json_t *rec;
	int rc;

	do {
		if ((rec = jsonl_next(in, e)) == NULL)
			return e->status != 0 ? -1 : 0;
		out->n = 0;
		rc = k->item(k->self, rec, out, &why);
		json_decref(rec);
		if (rc < 0 && jsonl_bad(in, e, "%s", why.msg) < 0)
			return -1;
		if (rc < 0)
			out->n = 0;
	} while (out->n == 0);		/* empty, or bad and passed over */
	return 1;
}

/* path is a name in the list that jsonl_open() wants to have until it is closed: f->path. */
static int open_lines(struct recfile *f, bool skip_bad, struct err *e)
{
	if ((f->in = jsonl_open(1, (char *const *)&f->path, skip_bad, e)) == NULL)
		return -1;
	f->fd = open(f->path, O_RDONLY | O_CLOEXEC);
	return f->fd < 0 || fstat(f->fd, &f->was) < 0 ? err_set(e, EX_NOINPUT, "%s:", f->path) : 0;
}

struct recfile *recfile_open(const char *path, const struct record_kind *k, bool skip_bad, struct err *e)
{
	struct recfile *f = calloc(1, sizeof *f);
	int rc = 0;

	if (f == NULL)
		err_die(EX_OSERR, "out of memory");
	f->path = path;
	f->k = k;
	f->fd = -1;
	f->seeks = true;
	if (k->open != NULL)
		rc = k->open(k->self, path, &f->shard, &f->docs, e);
	if (rc == 0)
		rc = open_lines(f, skip_bad, e);
	if (rc >= 0)
		return f;
	recfile_close(f);
	return NULL;
}

static int next_doc(struct recfile *f, struct ids *out, int64_t *place, struct err *e)
{
	for (out->n = 0; out->n == 0 && f->doc < f->docs; f->doc++) {
		*place = f->doc;
		if (f->k->doc(f->k->self, f->shard, f->doc, out, e) < 0)
			return -1;
	}
	return out->n > 0;
}

int recfile_next(struct recfile *f, struct ids *out, int64_t *place, struct err *e)
{
	int rc = f->shard != NULL ? next_doc(f, out, place, e) : recfile_item(f->in, f->k, out, e);

	if (f->shard == NULL && rc > 0) {
		*place = jsonl_offset(f->in);
		f->seeks = jsonl_plain(f->in);
	}
	return rc <= 0 || *place < RECFILE_PLACES ? rc :
	    err_set(e, EX_DATAERR, "%s: more than %" PRId64 " GiB: cut it into several files", f->path, RECFILE_PLACES >> 30);
}

bool recfile_seeks(const struct recfile *f)
{
	return f->seeks;
}

void recfile_end(struct recfile *f, bool again)
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

void recfile_close(struct recfile *f)
{
	if (f == NULL)
		return;
	recfile_end(f, false);
	free(f->buf);
	free(f);
}

/* --- again --- */

static int changed(const struct recfile *f, struct err *e)
{
	return err_set(e, EX_DATAERR, "%s: is not what it was when this run began to read it", f->path);
}

static int check_unchanged(const struct recfile *f, struct err *e)
{
	struct stat now;

	if (fstat(f->fd, &now) < 0)
		return err_set(e, EX_IOERR, "%s:", f->path);
	return now.st_size != f->was.st_size || now.st_mtim.tv_sec != f->was.st_mtim.tv_sec ||
	    now.st_mtim.tv_nsec != f->was.st_mtim.tv_nsec ? changed(f, e) : 0;
}

static int read_chunk(struct recfile *f, int64_t at, size_t have, size_t *got, struct err *e)
{
	ssize_t n;

	if (have + CHUNK > f->cap && (f->buf = realloc(f->buf, f->cap = 2 * (have + CHUNK))) == NULL)
		err_die(EX_OSERR, "out of memory");
	while ((n = pread(f->fd, f->buf + have, CHUNK, at + (int64_t)have)) < 0 && errno == EINTR)
		continue;
	*got = n > 0 ? (size_t)n : 0;
	return n < 0 ? err_set(e, EX_IOERR, "%s:", f->path) : 0;
}

/* The line that begins at a byte of the file: its length, -1. */
static int64_t read_line(struct recfile *f, int64_t at, struct err *e)
{
	const char *nl = NULL;
	size_t have = 0, got = 1;

	while (nl == NULL && got > 0) {
		if (read_chunk(f, at, have, &got, e) < 0)
			return -1;
		nl = memchr(f->buf + have, '\n', got);
		have += got;
	}
	return nl != NULL ? nl - f->buf : (int64_t)have;
}

int recfile_at(struct recfile *f, int64_t place, struct ids *out, struct err *e)
{
	int64_t len;
	json_t *rec;
	int rc;

	out->n = 0;
	if (f->shard != NULL)
		return f->k->doc(f->k->self, f->shard, place, out, e);
	if (check_unchanged(f, e) < 0 || (len = read_line(f, place, e)) < 0)
		return -1;
	rec = json_loadb(f->buf, (size_t)len, 0, NULL);
	rc = json_is_object(rec) && f->k->item(f->k->self, rec, out, e) == 0 && out->n > 0 ? 0 : changed(f, e);
	json_decref(rec);
	return rc;
}

char *recfile_where(struct recfile *f, int64_t place)
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
