#include "format/gguf_out.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "format/gguf.h"

#define ALIGN 32

/* ---- bytes of the header ---- */

static void add(struct gguf_bytes *b, const void *p, size_t n)
{
	if (b->cap - b->n < n) {
		size_t cap = 2 * (b->cap + n) + 4096;
		unsigned char *more = realloc(b->p, cap);

		if (!more) {
			b->failed = true;
			return;
		}
		b->p = more;
		b->cap = cap;
	}
	memcpy(b->p + b->n, p, n);
	b->n += n;
}

static void add_number(struct gguf_bytes *b, uint64_t x, int bytes)
{
	unsigned char p[8];

	for (int i = 0; i < bytes; i++)
		p[i] = (unsigned char)(x >> 8 * i);
	add(b, p, (size_t)bytes);
}

static void add_text(struct gguf_bytes *b, const char *s, size_t n)
{
	add_number(b, n, 8);
	add(b, s, n);
}

static void add_real(struct gguf_bytes *b, double x)
{
	float f = (float)x;
	uint32_t bits;

	memcpy(&bits, &f, sizeof bits);
	add_number(b, bits, 4);
}

/* ---- values ---- */

static enum gguf_kind kind_of(const json_t *v, bool member)
{
	switch (json_typeof(v)) {
	case JSON_INTEGER: return member ? GGUF_I32 : GGUF_U32;
	case JSON_REAL: return GGUF_FLOAT;
	case JSON_STRING: return GGUF_STRING;
	case JSON_ARRAY: return GGUF_ARRAY;
	default: return GGUF_BOOL;
	}
}

static void add_member(struct gguf_bytes *b, const json_t *v)
{
	switch (json_typeof(v)) {
	case JSON_INTEGER: add_number(b, (uint64_t)json_integer_value(v), 4); break;
	case JSON_REAL: add_real(b, json_real_value(v)); break;
	case JSON_STRING: add_text(b, json_string_value(v), json_string_length(v)); break;
	default: add_number(b, json_is_true(v), 1); break;
	}
}

static void add_value(struct gguf_bytes *b, const json_t *v)
{
	const json_t *first = json_is_array(v) ? json_array_get(v, 0) : NULL;
	size_t i;
	json_t *x;

	add_number(b, kind_of(v, false), 4);
	if (!json_is_array(v)) {
		add_member(b, v);
		return;
	}
	add_number(b, first ? kind_of(first, true) : GGUF_I32, 4);
	add_number(b, json_array_size(v), 8);
	json_array_foreach(v, i, x)
		add_member(b, x);
}

void gguf_out_init(struct gguf_out *o)
{
	*o = (struct gguf_out){ .fd = -1 };
}

void gguf_out_values(struct gguf_out *o, const json_t *object)
{
	const char *key;
	json_t *v;

	json_object_foreach((json_t *)object, key, v) {
		add_text(&o->values, key, strlen(key));
		add_value(&o->values, v);
		o->nvalues++;
	}
}

/* ---- tensors ---- */

int gguf_out_tensor(struct gguf_out *o, const char *name, enum gguf_type t, int ndim,
    const uint64_t shape[])
{
	uint64_t values = 1, bytes;
	uint64_t *at = realloc(o->at, (size_t)(o->ntensors + 1) * sizeof *at);

	if (!at) {
		o->tensors.failed = true;
		return 0;
	}
	o->at = at;
	add_text(&o->tensors, name, strlen(name));
	add_number(&o->tensors, (uint64_t)ndim, 4);
	for (int i = ndim - 1; i >= 0; i--) {
		add_number(&o->tensors, shape[i], 8);
		values *= shape[i];
	}
	bytes = values / (uint64_t)gguf_block_values(t) * (uint64_t)gguf_block_bytes(t);
	add_number(&o->tensors, t, 4);
	add_number(&o->tensors, o->size, 8);
	o->at[o->ntensors] = o->size;
	o->size += (bytes + ALIGN - 1) / ALIGN * ALIGN;
	return (int)o->ntensors++;
}

uint64_t gguf_out_bytes(const struct gguf_out *o)
{
	return o->size;
}

/* ---- the file ---- */

static int put_header(struct gguf_out *o, struct err *e)
{
	struct gguf_bytes h = { 0 };
	int rc;

	add(&h, "GGUF", 4);
	add_number(&h, 3, 4);
	add_number(&h, o->ntensors, 8);
	add_number(&h, o->nvalues, 8);
	add(&h, o->values.p, o->values.n);
	add(&h, o->tensors.p, o->tensors.n);
	if (h.failed || o->values.failed || o->tensors.failed) {
		free(h.p);
		return err_set(e, EX_OSERR, "out of memory");
	}
	o->data = (h.n + ALIGN - 1) / ALIGN * ALIGN;
	rc = file_write_at(o->fd, h.p, h.n, 0, o->tmp, e);
	free(h.p);
	/* what stands between tensors is zeros */
	if (rc == 0 && ftruncate(o->fd, (off_t)(o->data + o->size)) < 0)
		rc = err_set(e, EX_IOERR, "%s:", o->tmp);
	return rc;
}

static int may_replace(const char *path, bool force, struct err *e)
{
	struct stat st;

	if (lstat(path, &st) < 0)
		return errno == ENOENT ? 0 : err_set(e, EX_CANTCREAT, "%s:", path);
	if (!S_ISREG(st.st_mode))
		return err_set(e, EX_CANTCREAT, "%s is there and no regular file", path);
	return force ? 0 : err_set(e, EX_CANTCREAT, "%s is there already (--force replaces it)",
	    path);
}

/* Empties what an earlier run left, and nothing else. */
static int take_tmp(struct gguf_out *o, struct err *e)
{
	char magic[4];
	struct stat st;
	ssize_t n;

	o->fd = open(o->tmp, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
	if (o->fd < 0)
		return err_set(e, EX_CANTCREAT, "%s:", o->tmp);
	if (flock(o->fd, LOCK_EX | LOCK_NB) < 0)
		return err_set(e, EX_TEMPFAIL, "%s: another process is at it", o->tmp);
	n = pread(o->fd, magic, sizeof magic, 0);
	if (fstat(o->fd, &st) < 0 || !S_ISREG(st.st_mode) ||
	    (n != 0 && (n != sizeof magic || memcmp(magic, "GGUF", sizeof magic) != 0)))
		return err_set(e, EX_CANTCREAT, "%s is there and no unfinished GGUF file", o->tmp);
	return ftruncate(o->fd, 0) < 0 ? err_set(e, EX_IOERR, "%s:", o->tmp) : 0;
}

static void close_tmp(struct gguf_out *o)
{
	if (o->fd >= 0)
		close(o->fd);
	o->fd = -1;
	free(o->tmp);
	o->tmp = NULL;
}

int gguf_out_open(struct gguf_out *o, const char *path, bool force, struct err *e)
{
	size_t n = strlen(path) + 9;

	if (may_replace(path, force, e) < 0 || file_mkdir_parents(path, e) < 0)
		return -1;
	o->path = strdup(path);
	o->tmp = malloc(n);
	if (!o->path || !o->tmp)
		return err_set(e, EX_OSERR, "out of memory");
	snprintf(o->tmp, n, "%s.partial", path);
	if (take_tmp(o, e) < 0) {
		close_tmp(o);		/* it is not ours */
		return -1;
	}
	return put_header(o, e);
}

int gguf_out_write(struct gguf_out *o, int tensor, uint64_t from, const void *buf, size_t len,
    struct err *e)
{
	return file_write_at(o->fd, buf, len, (off_t)(o->data + o->at[tensor] + from), o->tmp, e);
}

int gguf_out_commit(struct gguf_out *o, struct err *e)
{
	if (fsync(o->fd) < 0)
		return err_set(e, EX_IOERR, "%s:", o->tmp);
	if (rename(o->tmp, o->path) < 0)
		return err_set(e, EX_CANTCREAT, "%s:", o->path);
	close_tmp(o);
	return file_sync_parent(o->path, e);
}

void gguf_out_end(struct gguf_out *o)
{
	if (o->tmp)
		unlink(o->tmp);
	close_tmp(o);
	free(o->path);
	free(o->values.p);
	free(o->tensors.p);
	free(o->at);
	gguf_out_init(o);
}
