/*
 * safetensors.h: reads and writes safetensors files. One header, C99 and POSIX, usable alone.
 *
 * In exactly one file, before any other #include:
 *
 *	#define SAFETENSORS_IMPLEMENTATION
 *	#include "format/safetensors.h"
 *
 * Reading:
 *
 *	struct st_error e;
 *	struct st_file *f = st_open("model.safetensors", ST_MMAP, &e);
 *	if (!f)
 *		return fprintf(stderr, "%s at byte %llu\n", e.msg, (unsigned long long)e.pos), 1;
 *	const struct st_tensor *t = st_find(f, "model.norm.weight");
 *	... t->dtype, t->shape[0..ndim), t->data ...
 *	st_close(f);
 *
 * Writing (every tensor is declared before the first byte of data, so data can be streamed):
 *
 *	struct st_writer *w = st_writer_create("out.safetensors", &e);
 *	st_writer_meta(w, "format", "pt", &e);
 *	st_writer_add(w, "a", ST_F32, 2, shape, 0, &e);
 *	st_writer_begin(w, &e);
 *	st_writer_data(w, a, sizeof a, &e);
 *	if (st_writer_finish(w, &e) < 0) ...
 *
 * The file appears under its name complete and synced, or not at all. A failed writer stays
 * failed, so checking the result of st_writer_finish() alone is enough. The same calls give the
 * same bytes.
 *
 * A file is not trusted: whatever its bytes, st_open() either refuses it with a message or every
 * tensor it returns lies inside the file, no two overlap, no byte of data is without a tensor,
 * shapes agree with sizes, and names are unique UTF-8 without NUL. Data is little-endian as in
 * the file, and aligned only as far as the file aligns it. (A mapped file must not be truncated
 * by others while it is open: the kernel answers with SIGBUS. ST_READ has an error for that.)
 *
 * Format: https://github.com/huggingface/safetensors
 */
#ifndef SAFETENSORS_H
#define SAFETENSORS_H

#if defined(SAFETENSORS_IMPLEMENTATION) && !defined(_GNU_SOURCE) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L
#endif
#if defined(SAFETENSORS_IMPLEMENTATION) && !defined(_FILE_OFFSET_BITS)
#define _FILE_OFFSET_BITS 64
#endif

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ST_MAX_DIMS 8
#define ST_MAX_HEADER 100000000		/* bytes; the limit of the reference implementation */

enum st_dtype {
	ST_F64, ST_F32, ST_F16, ST_BF16, ST_F8_E4M3, ST_F8_E5M2, ST_F8_E8M0, ST_C64,
	ST_I64, ST_I32, ST_I16, ST_I8, ST_U64, ST_U32, ST_U16, ST_U8, ST_BOOL,
	ST_DTYPES
};

enum st_code {
	ST_OK,
	ST_EOPEN,	/* cannot be opened or created: errno was */
	ST_EIO,		/* a read or write failed, or the file ended early */
	ST_ENOMEM,
	ST_ESHORT,	/* file shorter than it says */
	ST_EJSON,	/* header is not the JSON it must be */
	ST_EDEPTH,	/* nested too deeply */
	ST_EUTF8,
	ST_EDUP,	/* a name or key twice */
	ST_EDTYPE,	/* unknown element type */
	ST_ESHAPE,	/* shape and size disagree, or too many dimensions */
	ST_ERANGE,	/* offsets outside the file, or backwards */
	ST_EOVERFLOW,
	ST_EOVERLAP,
	ST_EHOLE,	/* bytes that belong to no tensor */
	ST_EUSE		/* writer used wrongly */
};

struct st_error {
	enum st_code code;
	uint64_t pos;		/* byte in the file where the trouble is, 0 when there is no such
				   place */
	char msg[240];		/* no file name, no newline, printable */
};

struct st_tensor {
	const char *name;
	enum st_dtype dtype;
	int ndim;			/* 0: a scalar */
	uint64_t shape[ST_MAX_DIMS];
	uint64_t offset, nbytes;	/* offset from the start of the file */
	const void *data;		/* NULL in ST_READ mode: use st_read() */
};

size_t st_dtype_size(enum st_dtype t);
const char *st_dtype_name(enum st_dtype t);		/* "BF16" */
int st_dtype_parse(const char *name);			/* -1: unknown */
uint64_t st_elements(const struct st_tensor *t);

struct st_file;
enum { ST_MMAP, ST_READ };	/* map the file, or read only the header and then what is asked
				   for */

struct st_file *st_open(const char *path, int mode, struct st_error *e);	/* NULL on error */
/* buf is borrowed */
struct st_file *st_open_mem(const void *buf, size_t len, struct st_error *e);
void st_close(struct st_file *f);						/* NULL is fine */

size_t st_count(const struct st_file *f);
/* in order of offset */
const struct st_tensor *st_at(const struct st_file *f, size_t i);
/* exact name, O(1); NULL if absent */
const struct st_tensor *st_find(const struct st_file *f, const char *name);
/* of __metadata__; NULL if absent */
const char *st_meta(const struct st_file *f, const char *key);
size_t st_meta_count(const struct st_file *f);
/* returns the key */
const char *st_meta_at(const struct st_file *f, size_t i, const char **value);
uint64_t st_data_start(const struct st_file *f);
uint64_t st_size(const struct st_file *f);
/* -1 for st_open_mem() */
int st_fd(const struct st_file *f);

/* Copies bytes from..from+len of a tensor; works in every mode. 0, or -1 with ST_EIO. */
int st_read(const struct st_file *f, const struct st_tensor *t, uint64_t from, void *buf,
    size_t len,
    struct st_error *e);

struct st_writer;
struct st_writer *st_writer_create(const char *path, struct st_error *e);
int st_writer_meta(struct st_writer *w, const char *key, const char *value, struct st_error *e);
/* align: 0, or a power of two up to 1 MiB that the tensor's place in the file is a multiple of;
 * gaps become U8 tensors named __pad.N, because the format allows no holes. */
int st_writer_add(struct st_writer *w, const char *name, enum st_dtype t, int ndim,
    const uint64_t *shape,
    uint64_t align, struct st_error *e);
/* Pads what was added so far to a multiple of align, as an aligned tensor after it would. */
int st_writer_pad(struct st_writer *w, uint64_t align, struct st_error *e);
/* all declared: writes the header */
int st_writer_begin(struct st_writer *w, struct st_error *e);
/* place in the file of the i-th tensor added */
uint64_t st_writer_offset(const struct st_writer *w, size_t i);
/* of the file being written */
int st_writer_fd(const struct st_writer *w);
/* in order, any pieces */
int st_writer_data(struct st_writer *w, const void *buf, size_t len, struct st_error *e);
/* frees w in any case; NULL fails with e as it is */
int st_writer_finish(struct st_writer *w, struct st_error *e);
/* as if it had never been; NULL is fine */
void st_writer_abort(struct st_writer *w);

#ifdef __cplusplus
}
#endif
#endif

#ifdef SAFETENSORS_IMPLEMENTATION

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define ST__MAX_DEPTH 32
#define ST__BUFFER (256u << 10)

static const struct { const char *name; size_t size; } st__types[ST_DTYPES] = {
	[ST_F64] = { "F64", 8 }, [ST_F32] = { "F32", 4 }, [ST_F16] = { "F16", 2 },
	    [ST_BF16] = { "BF16", 2 },
	[ST_F8_E4M3] = { "F8_E4M3", 1 }, [ST_F8_E5M2] = { "F8_E5M2", 1 }, [ST_F8_E8M0] =
	    { "F8_E8M0", 1 },
	[ST_C64] = { "C64", 8 }, [ST_I64] = { "I64", 8 }, [ST_I32] = { "I32", 4 },
	    [ST_I16] = { "I16", 2 },
	[ST_I8] = { "I8", 1 }, [ST_U64] = { "U64", 8 }, [ST_U32] = { "U32", 4 },
	    [ST_U16] = { "U16", 2 },
	[ST_U8] = { "U8", 1 }, [ST_BOOL] = { "BOOL", 1 },
};

struct st__pair { const char *key, *value; };

struct st_file {
	int fd;
	const unsigned char *base;	/* whole file, or NULL in ST_READ mode */
	int mapped;
	uint64_t size, data_start;
	char *header;			/* our copy; names and metadata point into it */
	struct st_tensor *t;
	size_t n, cap;
	struct st__pair *meta;
	size_t nmeta, cap_meta;
	size_t *hash, hash_size;	/* index + 1 into t, 0 empty */
	uint64_t end;			/* of the tensor that ends last, from data_start on */
	uint64_t seed;
};

/* Names in messages come from the file: what a terminal would act on is replaced. */
#if defined(__GNUC__)
__attribute__((format(printf, 4, 5)))
#endif
static int st__fail(struct st_error *e, enum st_code code, uint64_t pos, const char *fmt, ...)
{
	va_list ap;
	char *p;

	e->code = code;
	e->pos = pos;
	va_start(ap, fmt);
	vsnprintf(e->msg, sizeof e->msg, fmt, ap);
	va_end(ap);
	for (p = e->msg; *p; p++)
		if ((unsigned char)*p < 0x20 || (unsigned char)*p >= 0x7f)
			*p = '?';
	return -1;
}

size_t st_dtype_size(enum st_dtype t)
{
	return st__types[t].size;
}

const char *st_dtype_name(enum st_dtype t)
{
	return st__types[t].name;
}

int st_dtype_parse(const char *name)
{
	int i;

	for (i = 0; i < ST_DTYPES; i++)
		if (strcmp(st__types[i].name, name) == 0)
			return i;
	return -1;
}

static int st__mul(uint64_t a, uint64_t b, uint64_t *out)	/* -1: overflow */
{
	*out = a * b;
	return a && *out / a != b ? -1 : 0;
}

static int st__bytes(enum st_dtype t, int ndim, const uint64_t *shape, uint64_t *out)
{
	uint64_t n = 1;
	int i;

	for (i = 0; i < ndim; i++)
		if (st__mul(n, shape[i], &n) < 0)
			return -1;
	return st__mul(n, st__types[t].size, out);
}

uint64_t st_elements(const struct st_tensor *t)
{
	return t->nbytes / st__types[t->dtype].size;
}

/* Length of the UTF-8 character at s, or 0 when it is not one (overlong, surrogate, beyond
 * U+10FFFF, cut off). */
static size_t st__utf8(const unsigned char *s, size_t n)
{
	unsigned min;
	uint32_t c;
	size_t len, i;

	if (n == 0)
		return 0;
	if (s[0] < 0x80)
		return 1;
	len = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
	if (s[0] < 0xc2 || s[0] > 0xf4)
		return 0;
	min = len == 4 ? 0x10000 : len == 3 ? 0x800 : 0x80;
	c = s[0] & (0x7fu >> len);
	if (n < len)
		return 0;
	for (i = 1; i < len; i++) {
		if ((s[i] & 0xc0) != 0x80)
			return 0;
		c = c << 6 | (s[i] & 0x3f);
	}
	return c < min || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff) ? 0 : len;
}

/* The parser walks over our copy of the header and unescapes strings in place: they only get
 * shorter, and the NUL lands at the latest on the closing quote. */
struct st__json {
	unsigned char *s;
	size_t n, at;
	struct st_error *e;
};

static int st__bad(struct st__json *j, size_t at, const char *what)
{
	return st__fail(j->e, ST_EJSON, 8 + (uint64_t)at, "header: %s", what);
}

static int st__peek(struct st__json *j)		/* next character that is no space, -1 at the end */
{
	while (j->at < j->n && (j->s[j->at] == ' ' || j->s[j->at] == '\t' || j->s[j->at] == '\n' ||
	    j->s[j->at] == '\r'))
		j->at++;
	return j->at < j->n ? j->s[j->at] : -1;
}

static int st__take(struct st__json *j, int c)	/* 1 and steps over it if c is next */
{
	if (st__peek(j) != c)
		return 0;
	j->at++;
	return 1;
}

static int st__hex4(struct st__json *j, uint32_t *out)
{
	int i, c;

	*out = 0;
	if (j->n - j->at < 4)
		return st__bad(j, j->at, "ends inside a string");
	for (i = 0; i < 4; i++) {
		c = j->s[j->at++];
		if (c >= '0' && c <= '9')
			c -= '0';
		else if ((c | 32) >= 'a' && (c | 32) <= 'f')
			c = (c | 32) - 'a' + 10;
		else
			return st__bad(j, j->at - 1, "bad \\u escape");
		*out = *out << 4 | (uint32_t)c;
	}
	return 0;
}

static size_t st__put_utf8(unsigned char *p, uint32_t c)
{
	if (c < 0x80) {
		p[0] = (unsigned char)c;
		return 1;
	}
	if (c < 0x800) {
		p[0] = (unsigned char)(0xc0 | c >> 6);
		p[1] = (unsigned char)(0x80 | (c & 0x3f));
		return 2;
	}
	if (c < 0x10000) {
		p[0] = (unsigned char)(0xe0 | c >> 12);
		p[1] = (unsigned char)(0x80 | (c >> 6 & 0x3f));
		p[2] = (unsigned char)(0x80 | (c & 0x3f));
		return 3;
	}
	p[0] = (unsigned char)(0xf0 | c >> 18);
	p[1] = (unsigned char)(0x80 | (c >> 12 & 0x3f));
	p[2] = (unsigned char)(0x80 | (c >> 6 & 0x3f));
	p[3] = (unsigned char)(0x80 | (c & 0x3f));
	return 4;
}

/* After "\u": one code point, from a surrogate pair if need be. */
static int st__unicode(struct st__json *j, uint32_t *c)
{
	size_t start = j->at - 2;
	uint32_t low;

	if (st__hex4(j, c) < 0)
		return -1;
	if (*c == 0)
		return st__bad(j, start, "NUL in a string");
	if (*c < 0xd800 || *c > 0xdfff)
		return 0;
	if (*c > 0xdbff || j->n - j->at < 6 || j->s[j->at] != '\\' || j->s[j->at + 1] != 'u')
		return st__fail(j->e, ST_EUTF8, 8 + (uint64_t)start,
		    "header: half of a surrogate pair");
	j->at += 2;
	if (st__hex4(j, &low) < 0)
		return -1;
	if (low < 0xdc00 || low > 0xdfff)
		return st__fail(j->e, ST_EUTF8, 8 + (uint64_t)start,
		    "header: half of a surrogate pair");
	*c = 0x10000 + ((*c - 0xd800) << 10) + (low - 0xdc00);
	return 0;
}

static int st__escape(struct st__json *j, unsigned char *out, size_t *w)
{
	static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
	const char *p;
	uint32_t c;

	if (++j->at >= j->n)
		return st__bad(j, j->at, "ends inside a string");
	if (j->s[j->at] == 'u') {
		j->at++;
		if (st__unicode(j, &c) < 0)
			return -1;
		*w += st__put_utf8(out + *w, c);
		return 0;
	}
	p = j->s[j->at] ? strchr(from, j->s[j->at]) : NULL;
	if (!p)
		return st__bad(j, j->at - 1, "unknown escape in a string");
	out[(*w)++] = (unsigned char)to[p - from];
	j->at++;
	return 0;
}

static int st__string(struct st__json *j, const char **out)
{
	unsigned char *to;
	size_t w = 0, len;

	if (!st__take(j, '"'))
		return st__bad(j, j->at, "a string is missing");
	to = j->s + j->at;
	*out = (const char *)to;
	while (j->at < j->n && j->s[j->at] != '"') {
		if (j->s[j->at] < 0x20)
			return st__bad(j, j->at, "control character in a string");
		if (j->s[j->at] == '\\') {
			if (st__escape(j, to, &w) < 0)
				return -1;
			continue;
		}
		len = st__utf8(j->s + j->at, j->n - j->at);
		if (len == 0)
			return st__fail(j->e, ST_EUTF8, 8 + (uint64_t)j->at, "header: not UTF-8");
		memmove(to + w, j->s + j->at, len);
		w += len;
		j->at += len;
	}
	if (j->at >= j->n)
		return st__bad(j, j->at, "ends inside a string");
	j->at++;
	to[w] = 0;
	return 0;
}

static int st__uint(struct st__json *j, uint64_t *out)
{
	int c = st__peek(j);
	size_t start = j->at;
	uint64_t d;

	*out = 0;
	if (c == '-')
		return st__bad(j, start, "a negative number");
	if (c < '0' || c > '9')
		return st__bad(j, start, "a number is missing");
	for (; j->at < j->n && j->s[j->at] >= '0' && j->s[j->at] <= '9'; j->at++) {
		d = (uint64_t)(j->s[j->at] - '0');
		if (*out > (UINT64_MAX - d) / 10)
			return st__fail(j->e, ST_EOVERFLOW, 8 + (uint64_t)start,
			    "header: a number above 64 bits");
		*out = *out * 10 + d;
	}
	if (c == '0' && j->at - start > 1)
		return st__bad(j, start, "a number with a leading zero");
	if (j->at < j->n && (j->s[j->at] == '.' || (j->s[j->at] | 32) == 'e'))
		return st__bad(j, start, "a number that is not whole");
	return 0;
}

static int st__skip(struct st__json *j, int depth);

static int st__skip_list(struct st__json *j, int depth, int close)
{
	const char *key;

	if (depth >= ST__MAX_DEPTH)
		return st__fail(j->e, ST_EDEPTH, 8 + (uint64_t)j->at,
		    "header: nested deeper than %d", ST__MAX_DEPTH);
	j->at++;
	if (st__take(j, close))
		return 0;
	do {
		if (close == '}' && st__string(j, &key) < 0)
			return -1;
		if (close == '}' && !st__take(j, ':'))
			return st__bad(j, j->at, "a colon is missing");
		if (st__skip(j, depth + 1) < 0)
			return -1;
	} while (st__take(j, ','));
	return st__take(j, close) ? 0 : st__bad(j, j->at, "a comma or closing bracket is missing");
}

static int st__skip_number(struct st__json *j)
{
	size_t start = j->at, digits = 0;

	for (; j->at < j->n && j->s[j->at] && strchr("+-.eE0123456789", j->s[j->at]); j->at++)
		digits += j->s[j->at] >= '0' && j->s[j->at] <= '9';
	return digits ? 0 : st__bad(j, start, "not a value");
}

/* Steps over a value nobody asked for: the format lets writers add keys. */
static int st__skip(struct st__json *j, int depth)
{
	static const char *const words[] = { "true", "false", "null" };
	int c = st__peek(j), i;
	const char *s;

	if (c == '{' || c == '[')
		return st__skip_list(j, depth, c == '{' ? '}' : ']');
	if (c == '"')
		return st__string(j, &s);
	for (i = 0; i < 3; i++) {
		size_t n = strlen(words[i]);

		if (j->n - j->at >= n && memcmp(j->s + j->at, words[i], n) == 0) {
			j->at += n;
			return 0;
		}
	}
	return st__skip_number(j);
}

static int st__grow(void **p, size_t n, size_t *cap, size_t size, struct st_error *e)
{
	size_t want = *cap ? *cap * 2 : 64;
	void *q;

	if (n < *cap)
		return 0;
	q = realloc(*p, want * size);
	if (!q)
		return st__fail(e, ST_ENOMEM, 0, "out of memory");
	*p = q;
	*cap = want;
	return 0;
}

static int st__metadata(struct st_file *f, struct st__json *j)
{
	void *p;
	size_t at, i;

	if (!st__take(j, '{'))
		return st__bad(j, j->at, "__metadata__ is not an object");
	if (st__take(j, '}'))
		return 0;
	do {
		p = f->meta;
		if (st__grow(&p, f->nmeta, &f->cap_meta, sizeof *f->meta, j->e) < 0)
			return -1;
		f->meta = (struct st__pair *)p;
		st__peek(j);
		at = j->at;
		if (st__string(j, &f->meta[f->nmeta].key) < 0)
			return -1;
		if (f->nmeta >= 16384)
			return st__bad(j, at, "more than 16384 keys in __metadata__");
		for (i = 0; i < f->nmeta; i++)
			if (strcmp(f->meta[i].key, f->meta[f->nmeta].key) == 0)
				return st__fail(j->e, ST_EDUP, 8 + (uint64_t)at,
				    "header: key \"%.80s\" twice in __metadata__",
				    f->meta[i].key);
		if (!st__take(j, ':'))
			return st__bad(j, j->at, "a colon is missing");
		if (st__peek(j) != '"')
			return st__bad(j, j->at, "a value in __metadata__ is not a string");
		if (st__string(j, &f->meta[f->nmeta++].value) < 0)
			return -1;
	} while (st__take(j, ','));
	return st__take(j, '}') ? 0 : st__bad(j, j->at, "a comma or closing bracket is missing");
}

static int st__dtype(struct st__json *j, struct st_tensor *t)
{
	const char *name;
	size_t at;
	int k;

	st__peek(j);
	at = j->at;
	if (st__string(j, &name) < 0)
		return -1;
	k = st_dtype_parse(name);
	if (k < 0)
		return st__fail(j->e, ST_EDTYPE, 8 + (uint64_t)at,
		    "header: unknown dtype \"%.20s\"", name);
	t->dtype = (enum st_dtype)k;
	return 0;
}

static int st__shape(struct st__json *j, struct st_tensor *t)
{
	if (!st__take(j, '['))
		return st__bad(j, j->at, "shape is not a list");
	t->ndim = 0;
	if (st__take(j, ']'))
		return 0;
	do {
		if (t->ndim == ST_MAX_DIMS)
			return st__fail(j->e, ST_ESHAPE, 8 + (uint64_t)j->at,
			    "header: more than %d dimensions", ST_MAX_DIMS);
		if (st__uint(j, &t->shape[t->ndim++]) < 0)
			return -1;
	} while (st__take(j, ','));
	return st__take(j, ']') ? 0 : st__bad(j, j->at, "a comma or closing bracket is missing");
}

static int st__offsets(struct st__json *j, uint64_t *begin, uint64_t *end)
{
	if (!st__take(j, '['))
		return st__bad(j, j->at, "data_offsets is not a list");
	if (st__uint(j, begin) < 0)
		return -1;
	if (!st__take(j, ','))
		return st__bad(j, j->at, "data_offsets must be two numbers");
	if (st__uint(j, end) < 0)
		return -1;
	return st__take(j, ']') ? 0 : st__bad(j, j->at, "data_offsets must be two numbers");
}

/* What the fields of one entry say must agree with each other and with the file. */
static int st__check(struct st_file *f, struct st_tensor *t, uint64_t begin, uint64_t end,
    size_t at,
    struct st_error *e)
{
	uint64_t pos = 8 + (uint64_t)at, want;

	if (begin > end)
		return st__fail(e, ST_ERANGE, pos, "tensor \"%.80s\" ends before it begins",
		    t->name);
	if (end > (uint64_t)INT64_MAX - f->data_start)
		return st__fail(e, ST_ERANGE, pos, "tensor \"%.80s\" ends at %llu, beyond what a "
		    "file can have", t->name, (unsigned long long)end);
	f->end = end > f->end ? end : f->end;
	if (st__bytes(t->dtype, t->ndim, t->shape, &want) < 0)
		return st__fail(e, ST_EOVERFLOW, pos,
		    "tensor \"%.80s\": size of its shape is above 64 bits", t->name);
	if (want != end - begin)
		return st__fail(e, ST_ESHAPE, pos,
		    "tensor \"%.80s\": shape takes %llu bytes, data_offsets give %llu", t->name,
		    (unsigned long long)want, (unsigned long long)(end - begin));
	t->offset = f->data_start + begin;
	t->nbytes = end - begin;
	t->data = f->base && end <= f->size - f->data_start ? f->base + t->offset : NULL;
	return 0;
}

static int st__entry(struct st_file *f, struct st__json *j, struct st_tensor *t, size_t at)
{
	static const char *const keys[] = { "dtype", "shape", "data_offsets" };
	uint64_t begin = 0, end = 0;
	unsigned seen = 0;
	const char *key;
	size_t key_at;
	int k, r;

	if (!st__take(j, '{'))
		return st__bad(j, j->at, "a tensor's entry is not an object");
	do {
		st__peek(j);
		key_at = j->at;
		if (st__string(j, &key) < 0)
			return -1;
		for (k = 0; k < 3 && strcmp(key, keys[k]) != 0; k++)
			;
		if (k < 3 && seen & 1u << k)
			return st__fail(j->e, ST_EDUP, 8 + (uint64_t)key_at,
			    "tensor \"%.80s\": \"%s\" twice", t->name, keys[k]);
		seen |= 1u << k;
		if (!st__take(j, ':'))
			return st__bad(j, j->at, "a colon is missing");
		r = k == 0 ? st__dtype(j, t) : k == 1 ? st__shape(j, t) : k == 2
		    ? st__offsets(j, &begin, &end) : st__skip(j, 2);
		if (r < 0)
			return -1;
	} while (st__take(j, ','));
	if (!st__take(j, '}'))
		return st__bad(j, j->at, "a comma or closing bracket is missing");
	for (k = 0; k < 3; k++)
		if (!(seen & 1u << k))
			return st__fail(j->e, ST_EJSON, 8 + (uint64_t)at,
			    "tensor \"%.80s\" has no %s", t->name, keys[k]);
	return st__check(f, t, begin, end, at, j->e);
}

static int st__header(struct st_file *f, struct st__json *j)
{
	int had_meta = 0;
	const char *name;
	size_t at;
	void *p;

	if (j->n == 0 || j->s[0] != '{')
		return st__bad(j, 0, "does not start with {");
	j->at = 1;
	if (!st__take(j, '}')) {
		do {
			st__peek(j);
			at = j->at;
			if (st__string(j, &name) < 0)
				return -1;
			if (!st__take(j, ':'))
				return st__bad(j, j->at, "a colon is missing");
			if (strcmp(name, "__metadata__") == 0) {
				if (had_meta++)
					return st__fail(j->e, ST_EDUP, 8 + (uint64_t)at,
					    "header: __metadata__ twice");
				if (st__metadata(f, j) < 0)
					return -1;
				continue;
			}
			p = f->t;
			if (st__grow(&p, f->n, &f->cap, sizeof *f->t, j->e) < 0)
				return -1;
			f->t = (struct st_tensor *)p;
			memset(&f->t[f->n], 0, sizeof *f->t);
			f->t[f->n].name = name;
			if (st__entry(f, j, &f->t[f->n], at) < 0)
				return -1;
			f->n++;
		} while (st__take(j, ','));
		if (!st__take(j, '}'))
			return st__bad(j, j->at, "a comma or closing bracket is missing");
	}
	return st__peek(j) < 0 ? 0 : st__bad(j, j->at, "more text behind the closing bracket");
}

static int st__by_place(const void *a, const void *b)
{
	const struct st_tensor *x = (const struct st_tensor *)a, *y = (const struct st_tensor *)b;

	if (x->offset != y->offset)
		return x->offset < y->offset ? -1 : 1;
	if (x->nbytes != y->nbytes)
		return x->nbytes < y->nbytes ? -1 : 1;
	return x->name < y->name ? -1 : x->name > y->name;	/* order in the header */
}

static int st__check_cover(struct st_file *f, struct st_error *e)
{
	uint64_t at = f->data_start;
	size_t i;

	if (f->end > f->size - at)
		return st__fail(e, ST_ERANGE, 0, "cut short: the header describes a file of "
		    "%llu bytes, this one has %llu", (unsigned long long)(at + f->end),
		    (unsigned long long)f->size);
	if (f->n)
		qsort(f->t, f->n, sizeof *f->t, st__by_place);
	for (i = 0; i < f->n; at = f->t[i].offset + f->t[i].nbytes, i++) {
		if (f->t[i].offset < at)
			return st__fail(e, ST_EOVERLAP, f->t[i].offset,
			    "tensor \"%.80s\" overlaps \"%.80s\"", f->t[i].name,
			    f->t[i - 1].name);
		if (f->t[i].offset > at)
			return st__fail(e, ST_EHOLE, at,
			    "a hole of %llu bytes before tensor \"%.80s\"",
			    (unsigned long long)(f->t[i].offset - at), f->t[i].name);
	}
	if (at != f->size)
		return st__fail(e, ST_EHOLE, at, "%llu bytes behind the last tensor",
		    (unsigned long long)(f->size - at));
	return 0;
}

/* FNV-1a with a start that the file's author cannot know, so that no file makes every name
 * collide. */
static size_t st__hash(const struct st_file *f, const char *name)
{
	uint64_t h = 14695981039346656037u ^ f->seed;

	for (; *name; name++)
		h = (h ^ (unsigned char)*name) * 1099511628211u;
	h ^= h >> 29;
	return (size_t)((h * 0xbf58476d1ce4e5b9u) >> 24) & (f->hash_size - 1);
}

static int st__index(struct st_file *f, struct st_error *e)
{
	size_t i, at;

	f->seed = (uint64_t)(uintptr_t)f->header * 0x9e3779b97f4a7c15u;
	f->hash_size = 16;
	while (f->hash_size < 2 * f->n)
		f->hash_size *= 2;
	f->hash = (size_t *)calloc(f->hash_size, sizeof *f->hash);
	if (!f->hash)
		return st__fail(e, ST_ENOMEM, 0, "out of memory");
	for (i = 0; i < f->n; i++) {
		for (at = st__hash(f, f->t[i].name); f->hash[at];
		    at = (at + 1) & (f->hash_size - 1))
			if (strcmp(f->t[f->hash[at] - 1].name, f->t[i].name) == 0)
				return st__fail(e, ST_EDUP,
				    8 + (uint64_t)(f->t[i].name - f->header),
				    "tensor \"%.80s\" twice", f->t[i].name);
		f->hash[at] = i + 1;
	}
	return 0;
}

static int st__pread(int fd, void *buf, size_t len, uint64_t at, struct st_error *e)
{
	char *p = (char *)buf;
	ssize_t r;

	while (len) {
		r = pread(fd, p, len, (off_t)at);
		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0)
			return st__fail(e, ST_EIO, at, "read: %s", strerror(errno));
		if (r == 0)
			return st__fail(e, ST_EIO, at, "file ended early: it was cut while open");
		p += r;
		at += (uint64_t)r;
		len -= (size_t)r;
	}
	return 0;
}

static int st__get(const struct st_file *f, void *buf, size_t len, uint64_t at, struct st_error *e)
{
	if (f->fd >= 0)			/* also when mapped: a file cut short is then an error
					   and no SIGBUS */
		return st__pread(f->fd, buf, len, at, e);
	memcpy(buf, f->base + at, len);
	return 0;
}

static int st__parse(struct st_file *f, struct st_error *e)
{
	unsigned char b[8];
	struct st__json j;
	uint64_t n = 0;
	int i;

	if (f->size < 8)
		return st__fail(e, ST_ESHORT, 0, "file of %llu bytes is too short",
		    (unsigned long long)f->size);
	if (st__get(f, b, 8, 0, e) < 0)
		return -1;
	for (i = 7; i >= 0; i--)
		n = n << 8 | b[i];
	if (n > ST_MAX_HEADER)
		return st__fail(e, ST_ESHORT, 0, "header of %llu bytes is above the limit of %d",
		    (unsigned long long)n,
		    ST_MAX_HEADER);
	if (n > f->size - 8)
		return st__fail(e, ST_ESHORT, 0, "header of %llu bytes is longer than the file "
		    "of %llu: cut short, or no safetensors file", (unsigned long long)n,
		    (unsigned long long)f->size);
	f->data_start = 8 + n;
	f->header = (char *)malloc((size_t)n + 1);
	if (!f->header)
		return st__fail(e, ST_ENOMEM, 0, "out of memory");
	if (st__get(f, f->header, (size_t)n, 8, e) < 0)
		return -1;
	j.s = (unsigned char *)f->header;
	j.n = (size_t)n;
	j.at = 0;
	j.e = e;
	return st__header(f, &j) < 0 || st__check_cover(f, e) < 0 || st__index(f, e) < 0 ? -1 : 0;
}

static struct st_file *st__start(int fd, const void *base, uint64_t size, struct st_error *e)
{
	struct st_file *f = (struct st_file *)calloc(1, sizeof *f);

	memset(e, 0, sizeof *e);
	if (!f) {
		st__fail(e, ST_ENOMEM, 0, "out of memory");
		return NULL;
	}
	f->fd = fd;
	f->base = (const unsigned char *)base;
	f->size = size;
	return f;
}

static struct st_file *st__ready(struct st_file *f, struct st_error *e)
{
	if (st__parse(f, e) == 0)
		return f;
	st_close(f);
	return NULL;
}

struct st_file *st_open_mem(const void *buf, size_t len, struct st_error *e)
{
	struct st_file *f = st__start(-1, len ? buf : "", len, e);

	return f ? st__ready(f, e) : NULL;
}

struct st_file *st_open(const char *path, int mode, struct st_error *e)
{
	/* a FIFO must not hang us */
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), why = errno;
	struct st_file *f = st__start(fd, NULL, 0, e);
	struct stat st;
	void *p = NULL;

	if (!f) {
		if (fd >= 0)
			close(fd);
		return NULL;
	}
	if (fd < 0 || fstat(fd, &st) < 0) {
		st__fail(e, ST_EOPEN, 0, "%s", strerror(fd < 0 ? why : errno));
		st_close(f);
		return NULL;
	}
	if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size > SIZE_MAX) {
		st__fail(e, ST_EOPEN, 0, S_ISREG(st.st_mode) ? "too large for this machine"
		    : "not a regular file");
		st_close(f);
		return NULL;
	}
	f->size = (uint64_t)st.st_size;
	if (mode == ST_MMAP && f->size) {
		p = mmap(NULL, (size_t)f->size, PROT_READ, MAP_PRIVATE, fd, 0);
		if (p == MAP_FAILED) {
			st__fail(e, ST_EIO, 0, "cannot be mapped into memory: %s",
			    strerror(errno));
			st_close(f);
			return NULL;
		}
		f->base = (const unsigned char *)p;
		f->mapped = 1;
		/* The header alone is wanted; the kernel would read megabytes behind it. */
		posix_madvise(p, (size_t)f->size, POSIX_MADV_RANDOM);
	}
	f = st__ready(f, e);
	if (f && f->mapped)
		posix_madvise(p, (size_t)f->size, POSIX_MADV_NORMAL);
	return f;
}

void st_close(struct st_file *f)
{
	if (!f)
		return;
	if (f->mapped)
		munmap((void *)(uintptr_t)f->base, (size_t)f->size);
	if (f->fd >= 0)
		close(f->fd);
	free(f->header);
	free(f->t);
	free(f->meta);
	free(f->hash);
	free(f);
}

size_t st_count(const struct st_file *f)
{
	return f->n;
}

const struct st_tensor *st_at(const struct st_file *f, size_t i)
{
	return i < f->n ? &f->t[i] : NULL;
}

const struct st_tensor *st_find(const struct st_file *f, const char *name)
{
	size_t at;

	for (at = st__hash(f, name); f->hash[at]; at = (at + 1) & (f->hash_size - 1))
		if (strcmp(f->t[f->hash[at] - 1].name, name) == 0)
			return &f->t[f->hash[at] - 1];
	return NULL;
}

const char *st_meta(const struct st_file *f, const char *key)
{
	size_t i;

	for (i = 0; i < f->nmeta; i++)
		if (strcmp(f->meta[i].key, key) == 0)
			return f->meta[i].value;
	return NULL;
}

size_t st_meta_count(const struct st_file *f)
{
	return f->nmeta;
}

const char *st_meta_at(const struct st_file *f, size_t i, const char **value)
{
	if (i >= f->nmeta)
		return NULL;
	*value = f->meta[i].value;
	return f->meta[i].key;
}

uint64_t st_data_start(const struct st_file *f)
{
	return f->data_start;
}

uint64_t st_size(const struct st_file *f)
{
	return f->size;
}

int st_fd(const struct st_file *f)
{
	return f->fd;
}

int st_read(const struct st_file *f, const struct st_tensor *t, uint64_t from, void *buf,
    size_t len,
    struct st_error *e)
{
	if (from > t->nbytes || len > t->nbytes - from)
		return st__fail(e, ST_ERANGE, t->offset, "read past the end of tensor \"%.80s\"",
		    t->name);
	return st__get(f, buf, len, t->offset + from, e);
}

/* ---- writing ---- */

struct st__decl {
	char *name;
	enum st_dtype dtype;
	int ndim, pad;			/* pad: one of ours, filled with zeros */
	uint64_t shape[ST_MAX_DIMS], offset, nbytes, align;
};

struct st_writer {
	char *path, *tmp;
	int fd, begun;
	struct st_error err;		/* the first one; sticky */
	struct st__decl *d;
	size_t n, cap;
	size_t *added, nadded, cap_added;	/* the caller's tensors among d; pads are ours */
	struct st__pair *meta;
	size_t nmeta, cap_meta;
	uint64_t data_start, end, at;	/* at: place in the file of the next byte of data */
	size_t next;			/* tensor that byte belongs to */
	char *buf;			/* header under construction, then bytes on their way */
	size_t len, cap_buf;
};

#if defined(__GNUC__)
__attribute__((format(printf, 4, 5)))
#endif
static int st__wfail(struct st_writer *w, struct st_error *e, enum st_code code, const char *fmt,
    ...)
{
	char text[200];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	st__fail(&w->err, code, w->at, "%s", text);
	*e = w->err;
	return -1;
}

static int st__sticky(const struct st_writer *w, struct st_error *e)
{
	if (w && w->err.code == ST_OK)
		return 0;
	if (w)
		*e = w->err;
	return -1;
}

static int st__valid(const char *s)
{
	size_t n = strlen(s), len;

	for (; n; s += len, n -= len)
		if ((len = st__utf8((const unsigned char *)s, n)) == 0)
			return 0;
	return 1;
}

static char *st__copy(const char *s)
{
	size_t n = strlen(s) + 1;
	char *p = (char *)malloc(n);

	return p ? (char *)memcpy(p, s, n) : NULL;
}

struct st_writer *st_writer_create(const char *path, struct st_error *e)
{
	struct st_writer *w = (struct st_writer *)calloc(1, sizeof *w);
	size_t n = strlen(path) + 40;
	struct stat st;
	int i;

	memset(e, 0, sizeof *e);
	if (!w || !(w->path = st__copy(path)) || !(w->tmp = (char *)malloc(n))) {
		st__fail(e, ST_ENOMEM, 0, "out of memory");
		if (w)
			free(w->path);
		free(w);
		return NULL;
	}
	w->fd = -1;
	/* renaming over /dev/null would be a disaster */
	if (stat(path, &st) == 0 && !S_ISREG(st.st_mode)) {
		st__fail(e, ST_EOPEN, 0, "not a regular file");
		st_writer_abort(w);
		return NULL;
	}
	for (i = 0; i < 100 && w->fd < 0; i++) {
		snprintf(w->tmp, n, "%s.%ld.%d.tmp", path, (long)getpid(), i);
		w->fd = open(w->tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
		if (w->fd < 0 && errno != EEXIST)
			break;
	}
	if (w->fd < 0) {
		st__fail(e, ST_EOPEN, 0, "%s", strerror(errno));
		st_writer_abort(w);
		return NULL;
	}
	return w;
}

void st_writer_abort(struct st_writer *w)
{
	size_t i;

	if (!w)
		return;
	if (w->fd >= 0) {
		close(w->fd);
		unlink(w->tmp);
	}
	for (i = 0; i < w->n; i++)
		free(w->d[i].name);
	for (i = 0; i < w->nmeta; i++) {
		free((char *)(uintptr_t)w->meta[i].key);
		free((char *)(uintptr_t)w->meta[i].value);
	}
	free(w->d);
	free(w->added);
	free(w->meta);
	free(w->buf);
	free(w->path);
	free(w->tmp);
	free(w);
}

int st_writer_meta(struct st_writer *w, const char *key, const char *value, struct st_error *e)
{
	char *k, *v;
	size_t i;
	void *p;

	if (st__sticky(w, e) < 0)
		return -1;
	if (w->begun)
		return st__wfail(w, e, ST_EUSE, "metadata \"%.80s\" after the header was written",
		    key);
	if (!st__valid(key) || !st__valid(value))
		return st__wfail(w, e, ST_EUTF8, "metadata \"%.80s\" is not UTF-8", key);
	for (i = 0; i < w->nmeta; i++)
		if (strcmp(w->meta[i].key, key) == 0)
			return st__wfail(w, e, ST_EDUP, "metadata \"%.80s\" twice", key);
	p = w->meta;
	k = st__copy(key);
	v = st__copy(value);
	if (!k || !v || st__grow(&p, w->nmeta, &w->cap_meta, sizeof *w->meta, e) < 0) {
		free(k);
		free(v);
		return st__wfail(w, e, ST_ENOMEM, "out of memory");
	}
	w->meta = (struct st__pair *)p;
	w->meta[w->nmeta].key = k;
	w->meta[w->nmeta++].value = v;
	return 0;
}

static int st__declare(struct st_writer *w, const char *name, enum st_dtype t, int ndim,
    const uint64_t *shape,
    struct st_error *e)
{
	struct st__decl *d;
	uint64_t bytes;
	void *p = w->d;

	if (st__bytes(t, ndim, shape, &bytes) < 0 || bytes > (uint64_t)INT64_MAX / 2 - w->end)
		return st__wfail(w, e, ST_EOVERFLOW, "tensor \"%.80s\" is too large", name);
	if (st__grow(&p, w->n, &w->cap, sizeof *w->d, e) < 0)
		return st__wfail(w, e, ST_ENOMEM, "out of memory");
	w->d = (struct st__decl *)p;
	d = &w->d[w->n];
	memset(d, 0, sizeof *d);
	d->name = st__copy(name);
	if (!d->name)
		return st__wfail(w, e, ST_ENOMEM, "out of memory");
	d->dtype = t;
	d->ndim = ndim;
	if (ndim)
		memcpy(d->shape, shape, (size_t)ndim * sizeof *shape);
	d->offset = w->end;
	d->nbytes = bytes;
	w->end += bytes;
	w->n++;
	return 0;
}

/* Offsets are counted from the start of the data here; the data starts at a multiple of the
 * largest alignment. */
static int st__pad(struct st_writer *w, uint64_t align, struct st_error *e)
{
	uint64_t gap = align ? (align - w->end % align) % align : 0;
	char name[40];

	if (gap == 0)
		return 0;
	snprintf(name, sizeof name, "__pad.%lu", (unsigned long)(w->n - w->nadded));
	if (st__declare(w, name, ST_U8, 1, &gap, e) < 0)
		return -1;
	w->d[w->n - 1].pad = 1;
	return 0;
}

int st_writer_add(struct st_writer *w, const char *name, enum st_dtype t, int ndim,
    const uint64_t *shape,
    uint64_t align, struct st_error *e)
{
	void *p;

	if (st__sticky(w, e) < 0)
		return -1;
	if (w->begun)
		return st__wfail(w, e, ST_EUSE, "tensor \"%.80s\" after the header was written",
		    name);
	if ((int)t < 0 || t >= ST_DTYPES || ndim < 0 || ndim > ST_MAX_DIMS)
		return st__wfail(w, e, ST_ESHAPE, "tensor \"%.80s\": bad dtype or number of "
		    "dimensions", name);
	if (align & (align - 1) || align > 1 << 20)
		return st__wfail(w, e, ST_EUSE, "tensor \"%.80s\": alignment is not a power of two "
		    "up to 1 MiB", name);
	if (strncmp(name, "__pad.", 6) == 0 || strcmp(name, "__metadata__") == 0)
		return st__wfail(w, e, ST_EUSE, "tensor name \"%.80s\" is reserved", name);
	if (!st__valid(name))
		return st__wfail(w, e, ST_EUTF8, "tensor name \"%.80s\" is not UTF-8", name);
	if (st__pad(w, align, e) < 0)
		return -1;
	p = w->added;
	if (st__grow(&p, w->nadded, &w->cap_added, sizeof *w->added, e) < 0)
		return st__wfail(w, e, ST_ENOMEM, "out of memory");
	w->added = (size_t *)p;
	if (st__declare(w, name, t, ndim, shape, e) < 0)
		return -1;
	w->d[w->n - 1].align = align;
	w->added[w->nadded++] = w->n - 1;
	return 0;
}

int st_writer_pad(struct st_writer *w, uint64_t align, struct st_error *e)
{
	if (st__sticky(w, e) < 0)
		return -1;
	if (w->begun || align & (align - 1) || align > 1 << 20)
		return st__wfail(w, e, ST_EUSE, "padding to %llu bytes", (unsigned long long)align);
	return st__pad(w, align, e);
}

uint64_t st_writer_offset(const struct st_writer *w, size_t i)
{
	return w->data_start + w->d[w->added[i]].offset;
}

int st_writer_fd(const struct st_writer *w)
{
	return w->fd;
}

/* Appends text to the header; memory that runs out is noticed at the end, by the sticky error. */
static void st__text(struct st_writer *w, const char *s, size_t n, struct st_error *e)
{
	size_t want = w->cap_buf ? w->cap_buf : 4096;
	char *p;

	if (w->err.code != ST_OK)
		return;
	while (want - w->len < n)
		want *= 2;
	if (want != w->cap_buf) {
		p = (char *)realloc(w->buf, want);
		if (!p) {
			st__wfail(w, e, ST_ENOMEM, "out of memory");
			return;
		}
		w->buf = p;
		w->cap_buf = want;
	}
	memcpy(w->buf + w->len, s, n);
	w->len += n;
}

static void st__quote(struct st_writer *w, const char *s, struct st_error *e)
{
	char esc[8];

	st__text(w, "\"", 1, e);
	for (; *s; s++)
		if (*s == '"' || *s == '\\') {
			esc[0] = '\\';
			esc[1] = *s;
			st__text(w, esc, 2, e);
		} else if ((unsigned char)*s < 0x20) {
			snprintf(esc, sizeof esc, "\\u%04x", (unsigned)(unsigned char)*s);
			st__text(w, esc, 6, e);
		} else
			st__text(w, s, 1, e);
	st__text(w, "\"", 1, e);
}

static void st__put_entry(struct st_writer *w, const struct st__decl *d, struct st_error *e)
{
	char num[80];
	int i, n;

	st__quote(w, d->name, e);
	n = snprintf(num, sizeof num, ":{\"dtype\":\"%s\",\"shape\":[", st__types[d->dtype].name);
	st__text(w, num, (size_t)n, e);
	for (i = 0; i < d->ndim; i++) {
		n = snprintf(num, sizeof num, "%s%llu", i ? "," : "",
		    (unsigned long long)d->shape[i]);
		st__text(w, num, (size_t)n, e);
	}
	n = snprintf(num, sizeof num, "],\"data_offsets\":[%llu,%llu]}",
	    (unsigned long long)d->offset,
	    (unsigned long long)(d->offset + d->nbytes));
	st__text(w, num, (size_t)n, e);
}

static void st__put_header(struct st_writer *w, struct st_error *e)
{
	size_t i;

	st__text(w, "\0\0\0\0\0\0\0\0{", 9, e);
	if (w->nmeta) {
		st__text(w, "\"__metadata__\":{", 16, e);
		for (i = 0; i < w->nmeta; i++) {
			if (i)
				st__text(w, ",", 1, e);
			st__quote(w, w->meta[i].key, e);
			st__text(w, ":", 1, e);
			st__quote(w, w->meta[i].value, e);
		}
		st__text(w, "}", 1, e);
	}
	for (i = 0; i < w->n; i++) {
		if (i || w->nmeta)
			st__text(w, ",", 1, e);
		st__put_entry(w, &w->d[i], e);
	}
	st__text(w, "}", 1, e);
}

static int st__by_name(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static int st__unique(struct st_writer *w, struct st_error *e)
{
	char **names = (char **)malloc((w->n + 1) * sizeof *names);
	size_t i;
	int r = 0;

	if (!names)
		return st__wfail(w, e, ST_ENOMEM, "out of memory");
	for (i = 0; i < w->n; i++)
		names[i] = w->d[i].name;
	qsort(names, w->n, sizeof *names, st__by_name);
	for (i = 1; i < w->n && r == 0; i++)
		if (strcmp(names[i - 1], names[i]) == 0)
			r = st__wfail(w, e, ST_EDUP, "tensor \"%.80s\" twice", names[i]);
	free(names);
	return r;
}

static int st__write(struct st_writer *w, const char *p, size_t n, struct st_error *e)
{
	ssize_t r;

	while (n) {
		r = write(w->fd, p, n);
		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0)
			return st__wfail(w, e, ST_EIO, "write: %s", strerror(errno));
		p += r;
		n -= (size_t)r;
	}
	return 0;
}

static int st__flush(struct st_writer *w, struct st_error *e)
{
	size_t n = w->len;

	w->len = 0;
	return st__write(w, w->buf, n, e);
}

/* Bytes of the file, through a buffer so that thousands of small tensors are not thousands of
 * system calls. */
static int st__send(struct st_writer *w, const char *p, size_t n, struct st_error *e)
{
	w->at += n;
	if (n > w->cap_buf - w->len && st__flush(w, e) < 0)
		return -1;
	if (n >= w->cap_buf)
		return st__write(w, p, n, e);
	memcpy(w->buf + w->len, p, n);
	w->len += n;
	return 0;
}

/* Steps over tensors that are complete, and fills pads. */
static int st__advance(struct st_writer *w, struct st_error *e)
{
	static const char zeros[4096] = { 0 };
	const struct st__decl *d;
	uint64_t left;

	for (; w->next < w->n; w->next++) {
		d = &w->d[w->next];
		left = w->data_start + d->offset + d->nbytes - w->at;
		if (left && !d->pad)
			return 0;
		for (; left; left = w->data_start + d->offset + d->nbytes - w->at)
			if (st__send(w, zeros, left < sizeof zeros ? (size_t)left : sizeof zeros, e)
			    < 0)
				return -1;
	}
	return 0;
}

int st_writer_begin(struct st_writer *w, struct st_error *e)
{
	uint64_t align = 8, n;
	size_t i;
	char *p;

	if (st__sticky(w, e) < 0)
		return -1;
	if (w->begun++)
		return st__wfail(w, e, ST_EUSE, "begun twice");
	if (st__unique(w, e) < 0)
		return -1;
	for (i = 0; i < w->n; i++)
		if (w->d[i].align > align)
			align = w->d[i].align;
	st__put_header(w, e);
	while (w->err.code == ST_OK && w->len % align)
		st__text(w, " ", 1, e);
	if (w->err.code != ST_OK)
		return -1;
	n = (uint64_t)w->len - 8;
	if (n > ST_MAX_HEADER)
		return st__wfail(w, e, ST_EUSE, "header of %llu bytes is above the limit of %d",
		    (unsigned long long)n,
		    ST_MAX_HEADER);
	for (i = 0; i < 8; i++)
		w->buf[i] = (char)(n >> 8 * i);
	w->data_start = w->at = w->len;
	if (st__flush(w, e) < 0)
		return -1;
	if (w->cap_buf < ST__BUFFER) {
		p = (char *)realloc(w->buf, ST__BUFFER);
		if (!p)
			return st__wfail(w, e, ST_ENOMEM, "out of memory");
		w->buf = p;
		w->cap_buf = ST__BUFFER;
	}
	return st__advance(w, e);
}

int st_writer_data(struct st_writer *w, const void *buf, size_t len, struct st_error *e)
{
	const char *p = (const char *)buf;
	uint64_t left;
	size_t n;

	if (st__sticky(w, e) < 0)
		return -1;
	if (!w->begun)
		return st__wfail(w, e, ST_EUSE, "data before the header was written");
	while (len) {
		if (w->next == w->n)
			return st__wfail(w, e, ST_EUSE, "%llu bytes more than the tensors hold",
			    (unsigned long long)len);
		left = w->data_start + w->d[w->next].offset + w->d[w->next].nbytes - w->at;
		n = left < len ? (size_t)left : len;
		if (st__send(w, p, n, e) < 0 || st__advance(w, e) < 0)
			return -1;
		p += n;
		len -= n;
	}
	return 0;
}

static int st__sync_dir(const char *path)
{
	char *dir = st__copy(path), *slash;
	int fd, r;

	if (!dir)
		return -1;
	slash = strrchr(dir, '/');
	if (slash)
		slash[slash == dir] = 0;
	fd = open(slash ? dir : ".", O_RDONLY | O_CLOEXEC);
	free(dir);
	if (fd < 0)
		return -1;
	r = fsync(fd);
	if (r < 0 && errno == EINVAL)		/* this file system cannot sync directories */
		r = 0;
	close(fd);
	return r;
}

static int st__commit(struct st_writer *w, struct st_error *e)
{
	int fd = w->fd;

	if (st__sticky(w, e) < 0)
		return -1;
	if (!w->begun || w->next < w->n)
		return st__wfail(w, e, ST_EUSE, "tensor \"%.80s\" is not complete", w->n
		    ? w->d[w->next].name : "");
	if (st__flush(w, e) < 0)
		return -1;
	if (fsync(fd) < 0)
		return st__wfail(w, e, ST_EIO, "fsync: %s", strerror(errno));
	w->fd = -1;
	if (close(fd) < 0 || rename(w->tmp, w->path) < 0) {
		st__wfail(w, e, ST_EIO, "%s", strerror(errno));
		unlink(w->tmp);
		return -1;
	}
	return st__sync_dir(w->path) < 0 ? st__wfail(w, e, ST_EIO, "fsync of the directory: %s",
	    strerror(errno)) : 0;
}

int st_writer_finish(struct st_writer *w, struct st_error *e)
{
	int r = w ? st__commit(w, e) : -1;

	st_writer_abort(w);
	return r;
}

#endif
