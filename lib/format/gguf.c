#include "format/gguf.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/plain.h"
#include "base/sniff.h"

#define MAX_KEY 65535
#define MAX_ALIGN ((uint64_t)1 << 30)
#define MIN_INFO 25		/* bytes of the smallest entry of a tensor, */
#define MIN_VALUE 14		/* and of the smallest key with its value */

struct gguf {
	char *name;
	int fd;				/* -1: memory of the caller */
	const unsigned char *base;
	uint64_t size, at;		/* at: where the parser is */
	uint64_t align, data;		/* data: where it begins */
	struct gguf_tensor *t;		/* (n) */
	struct gguf_tensor **by_name;	/* (n) */
	struct gguf_value *v;		/* (nv), in order of keys */
	size_t n, nv;
	struct err *e;			/* of the call in progress */
};

__attribute__((format(printf, 3, 4)))
static int bad(struct gguf *g, uint64_t pos, const char *fmt, ...)
{
	char msg[360];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(msg, sizeof msg, fmt, ap);
	va_end(ap);
	return err_set(g->e, EX_DATAERR, "%s: %s (byte %llu)", g->name, msg,
	    (unsigned long long)pos);
}

/* ---- numbers and texts of the header ---- */

static uint64_t little(const unsigned char *p, int n)
{
	uint64_t x = 0;

	for (int i = n - 1; i >= 0; i--)
		x = x << 8 | p[i];
	return x;
}

static uint64_t left(const struct gguf *g)
{
	return g->size - g->at;
}

static int take(struct gguf *g, int n, uint64_t *x, const char *what)
{
	*x = 0;
	if (left(g) < (uint64_t)n)
		return bad(g, g->at, "the file ends inside %s", what);
	*x = little(g->base + g->at, n);
	g->at += (uint64_t)n;
	return 0;
}

/* A text; its bytes stay where they are. */
static int take_string(struct gguf *g, const unsigned char **s, uint64_t *n, const char *what)
{
	uint64_t start = g->at;

	*s = NULL;
	if (take(g, 8, n, what) < 0)
		return -1;
	if (*n > left(g))
		return bad(g, start, "%s of %llu bytes reaches beyond the end of the file", what,
		    (unsigned long long)*n);
	*s = g->base + g->at;
	g->at += *n;
	return 0;
}

static bool is_text(const unsigned char *s, uint64_t n)
{
	uint32_t c;
	size_t k;

	for (uint64_t i = 0; i < n; i += k) {
		k = plain_utf8((const char *)s + i, n - i, &c);
		if (k == 0 || c == 0)
			return false;
	}
	return true;
}

/* A key or the name of a tensor, malloc'ed. */
static int take_name(struct gguf *g, const char **out, const char *what)
{
	const unsigned char *s;
	uint64_t n, start = g->at;

	if (take_string(g, &s, &n, what) < 0)
		return -1;
	if (n == 0 || n > MAX_KEY)
		return bad(g, start, "%s of %llu bytes", what, (unsigned long long)n);
	if (!is_text(s, n))
		return bad(g, start, "%s is not UTF-8 or holds NUL", what);
	*out = strndup((const char *)s, n);
	return *out ? 0 : err_set(g->e, EX_OSERR, "out of memory");
}

/* ---- metadata ---- */

static const int kind_bytes[GGUF_KINDS] = {
	[GGUF_U8] = 1, [GGUF_I8] = 1, [GGUF_BOOL] = 1, [GGUF_U16] = 2, [GGUF_I16] = 2,
	[GGUF_U32] = 4, [GGUF_I32] = 4, [GGUF_FLOAT] = 4,
	[GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_DOUBLE] = 8
};

static int take_kind(struct gguf *g, const char *key, enum gguf_kind *kind)
{
	uint64_t x, start = g->at;

	if (take(g, 4, &x, "a type of value") < 0)
		return -1;
	if (x >= GGUF_KINDS)
		return bad(g, start, "key \"%.80s\" has a value of the unknown type %llu", key,
		    (unsigned long long)x);
	*kind = (enum gguf_kind)x;
	return 0;
}

static int skip_strings(struct gguf *g, const struct gguf_value *v)
{
	const unsigned char *s;
	uint64_t n;

	for (uint64_t i = 0; i < v->n; i++)
		if (take_string(g, &s, &n, "a text") < 0)
			return -1;
	return 0;
}

static int check_bools(struct gguf *g, const struct gguf_value *v)
{
	for (uint64_t i = 0; i < v->n; i++)
		if (v->at[i] > 1)
			return bad(g, (uint64_t)(v->at - g->base) + i,
			    "key \"%.80s\": a truth value of %d", v->key, v->at[i]);
	return 0;
}

/* Steps over the value of v, whose type is known. */
static int take_members(struct gguf *g, struct gguf_value *v)
{
	uint64_t start = g->at, size;

	v->at = g->base + g->at;
	if (v->kind == GGUF_STRING)
		return skip_strings(g, v);
	size = (uint64_t)kind_bytes[v->kind];
	if (v->n > left(g) / size)
		return bad(g, start, "key \"%.80s\": %llu values reach beyond the end of the file",
		    v->key, (unsigned long long)v->n);
	g->at += v->n * size;
	return v->kind == GGUF_BOOL ? check_bools(g, v) : 0;
}

static int take_value(struct gguf *g, struct gguf_value *v)
{
	uint64_t start;

	v->n = 1;
	if (take_name(g, &v->key, "a key") < 0 || take_kind(g, v->key, &v->kind) < 0)
		return -1;
	v->array = v->kind == GGUF_ARRAY;
	start = g->at;
	if (v->array && (take_kind(g, v->key, &v->kind) < 0 || take(g, 8, &v->n, "a length") < 0))
		return -1;
	if (v->kind == GGUF_ARRAY)
		return bad(g, start, "key \"%.80s\": lists of lists are not supported", v->key);
	return take_members(g, v);
}

static int by_key(const void *a, const void *b)
{
	return strcmp(((const struct gguf_value *)a)->key, ((const struct gguf_value *)b)->key);
}

static int take_values(struct gguf *g)
{
	for (size_t i = 0; i < g->nv; i++)
		if (take_value(g, &g->v[i]) < 0)
			return -1;
	qsort(g->v, g->nv, sizeof *g->v, by_key);
	for (size_t i = 1; i < g->nv; i++)
		if (strcmp(g->v[i - 1].key, g->v[i].key) == 0)
			return bad(g, (uint64_t)(g->v[i].at - g->base),
			    "key \"%.80s\" is there twice", g->v[i].key);
	return 0;
}

static int take_alignment(struct gguf *g)
{
	const struct gguf_value *v = gguf_value(g, "general.alignment");

	g->align = 32;
	if (!v)
		return 0;
	if (v->array || v->kind != GGUF_U32)
		return bad(g, (uint64_t)(v->at - g->base), "general.alignment is not a number of "
		    "32 bits");
	g->align = little(v->at, 4);
	if (g->align == 0 || g->align > MAX_ALIGN || g->align & (g->align - 1))
		return bad(g, (uint64_t)(v->at - g->base), "general.alignment of %llu is not a "
		    "power of two", (unsigned long long)g->align);
	return 0;
}

/* ---- tensors ---- */

static int take_shape(struct gguf *g, struct gguf_tensor *t)
{
	uint64_t ndim, start = g->at;

	if (take(g, 4, &ndim, "a shape") < 0)
		return -1;
	if (ndim == 0 || ndim > GGUF_MAX_DIMS)
		return bad(g, start, "tensor \"%.80s\" has %llu dimensions, not 1 to %d", t->name,
		    (unsigned long long)ndim, GGUF_MAX_DIMS);
	t->ndim = (int)ndim;
	for (int i = 0; i < t->ndim; i++) {
		uint64_t *d = &t->shape[t->ndim - 1 - i];

		start = g->at;
		if (take(g, 8, d, "a shape") < 0)
			return -1;
		if (*d == 0 || *d > INT64_MAX)
			return bad(g, start, "tensor \"%.80s\" has a dimension of %llu", t->name,
			    (unsigned long long)*d);
	}
	return 0;
}

/* Bytes from type and shape. */
static int measure(struct gguf *g, struct gguf_tensor *t, uint64_t type, uint64_t pos)
{
	const char *known = gguf_type_name((uint32_t)type);
	uint64_t values = (uint64_t)gguf_block_values((uint32_t)type), n;

	if (values == 0 && known)
		return bad(g, pos, "tensor \"%.80s\" is of type %s, which is not supported",
		    t->name, known);
	if (values == 0)
		return bad(g, pos, "tensor \"%.80s\" is of the unknown type %llu", t->name,
		    (unsigned long long)type);
	t->type = (enum gguf_type)type;
	if (t->shape[t->ndim - 1] % values)
		return bad(g, pos, "tensor \"%.80s\" has rows of %llu values, no multiple of the "
		    "%llu of a block of %s", t->name,
		    (unsigned long long)t->shape[t->ndim - 1], (unsigned long long)values, known);
	n = t->shape[t->ndim - 1] / values;
	for (int i = 0; i < t->ndim - 1; i++)
		if (__builtin_mul_overflow(n, t->shape[i], &n))
			n = UINT64_MAX;
	if (__builtin_mul_overflow(n, (uint64_t)gguf_block_bytes((uint32_t)type), &t->nbytes) ||
	    t->nbytes > INT64_MAX)
		return bad(g, pos, "tensor \"%.80s\": its size is above 64 bits", t->name);
	return 0;
}

static int take_tensor(struct gguf *g, struct gguf_tensor *t)
{
	uint64_t type, start = g->at;

	if (take_name(g, &t->name, "the name of a tensor") < 0 || take_shape(g, t) < 0 ||
	    take(g, 4, &type, "a type") < 0 || measure(g, t, type, start) < 0)
		return -1;
	start = g->at;
	if (take(g, 8, &t->offset, "an offset") < 0)
		return -1;
	return t->offset % g->align == 0 ? 0 : bad(g, start, "tensor \"%.80s\" begins at %llu of "
	    "the data, no multiple of the alignment of %llu", t->name,
	    (unsigned long long)t->offset, (unsigned long long)g->align);
}

static int by_offset(const void *a, const void *b)
{
	const struct gguf_tensor *x = a, *y = b;

	return (x->offset > y->offset) - (x->offset < y->offset);
}

static int by_name(const void *a, const void *b)
{
	return strcmp((*(struct gguf_tensor *const *)a)->name,
	    (*(struct gguf_tensor *const *)b)->name);
}

/* Offsets become those in the file. */
static int place_tensors(struct gguf *g)
{
	uint64_t size = g->data > g->size ? 0 : g->size - g->data;

	qsort(g->t, g->n, sizeof *g->t, by_offset);
	for (size_t i = 0; i < g->n; i++) {
		struct gguf_tensor *t = &g->t[i];

		if (t->offset > size || t->nbytes > size - t->offset)
			return bad(g, g->size, "tensor \"%.80s\" of %llu bytes reaches beyond the "
			    "end of the file", t->name, (unsigned long long)t->nbytes);
		if (i > 0 && t[-1].offset + t[-1].nbytes > g->data + t->offset)
			return bad(g, g->data + t->offset, "tensors \"%.80s\" and \"%.80s\" "
			    "overlap", t[-1].name, t->name);
		t->offset += g->data;
		g->by_name[i] = t;
	}
	qsort(g->by_name, g->n, sizeof *g->by_name, by_name);
	for (size_t i = 1; i < g->n; i++)
		if (by_name(&g->by_name[i - 1], &g->by_name[i]) == 0)
			return bad(g, g->by_name[i]->offset, "tensor \"%.80s\" is there twice",
			    g->by_name[i]->name);
	return 0;
}

/* ---- the whole file ---- */

static int take_head(struct gguf *g)
{
	uint64_t version, n, nv;

	if (g->size >= 4 && memcmp(g->base, "FUGG", 4) == 0)
		return bad(g, 0, "the file is big-endian, which is not supported");
	if (g->size < 4 || memcmp(g->base, "GGUF", 4) != 0) {
		const char *what = sniff(g->base, g->size < SNIFF_BYTES ? g->size : SNIFF_BYTES);

		return what ? err_set(g->e, EX_DATAERR, "%s: is %s, where GGUF should be", g->name,
		    what) : bad(g, 0, "does not begin with \"GGUF\"");
	}
	g->at = 4;
	if (take(g, 4, &version, "the version") < 0)
		return -1;
	if (version && (version & 0xffffff) == 0)
		return bad(g, 4, "the file is big-endian, which is not supported");
	if (version < 2 || version > 3)
		return bad(g, 4, "version %llu of GGUF is not supported, only 2 and 3",
		    (unsigned long long)version);
	if (take(g, 8, &n, "the number of tensors") < 0 ||
	    take(g, 8, &nv, "the number of keys") < 0)
		return -1;
	if (n > left(g) / MIN_INFO)
		return bad(g, 8, "%llu tensors in a file of %llu bytes", (unsigned long long)n,
		    (unsigned long long)g->size);
	if (nv > left(g) / MIN_VALUE)
		return bad(g, 16, "%llu keys in a file of %llu bytes", (unsigned long long)nv,
		    (unsigned long long)g->size);
	g->n = (size_t)n;
	g->nv = (size_t)nv;
	return 0;
}

static int take_room(struct gguf *g)
{
	g->t = calloc(g->n + 1, sizeof *g->t);
	g->by_name = calloc(g->n + 1, sizeof *g->by_name);
	g->v = calloc(g->nv + 1, sizeof *g->v);
	if (!g->t || !g->by_name || !g->v)
		return err_set(g->e, EX_OSERR, "out of memory");
	return 0;
}

static int parse(struct gguf *g)
{
	if (take_head(g) < 0 || take_room(g) < 0)
		return -1;
	if (take_values(g) < 0 || take_alignment(g) < 0)
		return -1;
	for (size_t i = 0; i < g->n; i++)
		if (take_tensor(g, &g->t[i]) < 0)
			return -1;
	g->data = (g->at + g->align - 1) / g->align * g->align;
	return place_tensors(g);
}

static struct gguf *new_file(const char *name, struct err *e)
{
	struct gguf *g = calloc(1, sizeof *g);

	if (g)
		g->name = strdup(name);
	if (!g || !g->name) {
		free(g);
		err_set(e, EX_OSERR, "out of memory");
		return NULL;
	}
	g->fd = -1;
	g->e = e;
	return g;
}

static struct gguf *finish(struct gguf *g, int r)
{
	g->e = NULL;
	if (r == 0)
		return g;
	gguf_close(g);
	return NULL;
}

struct gguf *gguf_open_mem(const void *buf, size_t len, const char *name, struct err *e)
{
	struct gguf *g = new_file(name, e);

	if (!g)
		return NULL;
	g->base = buf;
	g->size = len;
	return finish(g, parse(g));
}

static int map(struct gguf *g)
{
	struct stat st;

	g->fd = file_open_regular(g->name, g->e);
	if (g->fd < 0)
		return -1;
	if (fstat(g->fd, &st) < 0)
		return err_set(g->e, EX_IOERR, "%s:", g->name);
	g->size = (uint64_t)st.st_size;
	if (g->size == 0)
		return err_set(g->e, EX_DATAERR, "%s: empty, where GGUF should be", g->name);
	g->base = mmap(NULL, g->size, PROT_READ, MAP_PRIVATE, g->fd, 0);
	if (g->base == MAP_FAILED) {
		g->base = NULL;
		return err_set(g->e, EX_OSERR, "%s:", g->name);
	}
	return 0;
}

struct gguf *gguf_open(const char *path, struct err *e)
{
	struct gguf *g = new_file(path, e);

	return g ? finish(g, map(g) < 0 ? -1 : parse(g)) : NULL;
}

void gguf_close(struct gguf *g)
{
	if (!g)
		return;
	if (g->fd >= 0) {
		if (g->base)
			munmap((void *)g->base, g->size);
		close(g->fd);
	}
	for (size_t i = 0; g->t && i < g->n; i++)
		free((char *)g->t[i].name);
	for (size_t i = 0; g->v && i < g->nv; i++)
		free((char *)g->v[i].key);
	free(g->name);
	free(g->t);
	free(g->by_name);
	free(g->v);
	free(g);
}

/* ---- what was read ---- */

const char *gguf_name(const struct gguf *g)
{
	return g->name;
}

size_t gguf_count(const struct gguf *g)
{
	return g->n;
}

const struct gguf_tensor *gguf_at(const struct gguf *g, size_t i)
{
	return i < g->n ? &g->t[i] : NULL;
}

const struct gguf_tensor *gguf_find(const struct gguf *g, const char *name)
{
	struct gguf_tensor key = { .name = name }, *k = &key, **hit;

	hit = bsearch(&k, g->by_name, g->n, sizeof *g->by_name, by_name);
	return hit ? *hit : NULL;
}

int gguf_read(const struct gguf *g, const struct gguf_tensor *t, uint64_t from, void *buf,
    size_t len, struct err *e)
{
	if (from > t->nbytes || len > t->nbytes - from)
		return err_set(e, EX_SOFTWARE, "%s: tensor \"%.80s\" is read beyond its end",
		    g->name, t->name);
	if (g->fd < 0) {
		memcpy(buf, g->base + t->offset + from, len);
		return 0;
	}
	return file_read_at(g->fd, buf, len, (off_t)(t->offset + from), g->name, e);
}

uint64_t gguf_elements(const struct gguf_tensor *t)
{
	return t->nbytes / (uint64_t)gguf_block_bytes(t->type) *
	    (uint64_t)gguf_block_values(t->type);
}

/* Blocks from..from+n, through buf. */
static int read_blocks(const struct gguf *g, const struct gguf_tensor *t, uint64_t from, uint64_t n,
    char *buf, float *room, struct err *e)
{
	uint64_t bytes = (uint64_t)gguf_block_bytes(t->type);

	if (gguf_read(g, t, from * bytes, buf, (size_t)(n * bytes), e) < 0)
		return -1;
	gguf_unpack(room, buf, t->type, (size_t)n);
	return 0;
}

#define READ_VALUES 16384		/* at a time; a multiple of every block */

int gguf_read_f32(const struct gguf *g, const struct gguf_tensor *t, uint64_t first, uint64_t n,
    float *dst, struct err *e)
{
	uint64_t per = (uint64_t)gguf_block_values(t->type), end = first + n;
	uint64_t bytes = READ_VALUES / per * (uint64_t)gguf_block_bytes(t->type);
	float *room = malloc(READ_VALUES * sizeof *room + bytes);
	int r = 0;

	if (!room)
		return err_set(e, EX_OSERR, "out of memory");
	while (first < end && r == 0) {
		uint64_t skip = first % per, here = READ_VALUES - skip, blocks;

		if (here > end - first)
			here = end - first;
		blocks = (skip + here + per - 1) / per;
		r = read_blocks(g, t, first / per, blocks, (char *)(room + READ_VALUES), room, e);
		if (r == 0)
			memcpy(dst, room + skip, here * sizeof *dst);
		dst += here;
		first += here;
	}
	free(room);
	return r;
}

size_t gguf_value_count(const struct gguf *g)
{
	return g->nv;
}

const struct gguf_value *gguf_value_at(const struct gguf *g, size_t i)
{
	return i < g->nv ? &g->v[i] : NULL;
}

const struct gguf_value *gguf_value(const struct gguf *g, const char *key)
{
	const struct gguf_value k = { .key = key };

	return bsearch(&k, g->v, g->nv, sizeof *g->v, by_key);
}

/* The number of fewest digits that is this one in single precision: 1e-05, as who wrote the file
 * had it, and not 9.99999975e-06. */
static double shortest(float f)
{
	char text[32];

	for (int digits = 6; digits < 9; digits++) {
		snprintf(text, sizeof text, "%.*g", digits, (double)f);
		if (strtof(text, NULL) == f)
			return strtod(text, NULL);
	}
	return (double)f;
}

static json_t *real_json(const unsigned char *p, enum gguf_kind kind)
{
	uint64_t bits = little(p, kind_bytes[kind]);
	uint32_t low = (uint32_t)bits;
	double d;
	float f;

	memcpy(&d, &bits, sizeof d);
	memcpy(&f, &low, sizeof f);
	return json_real(kind == GGUF_FLOAT ? shortest(f) : d);	/* NULL: not finite */
}

/* One member at *p, which moves on. */
static json_t *member_json(const unsigned char **p, enum gguf_kind kind)
{
	int size = kind_bytes[kind];
	const unsigned char *at = *p;
	uint64_t x;

	if (kind == GGUF_STRING) {
		x = little(at, 8);
		*p = at + 8 + x;
		return is_text(at + 8, x) ? json_stringn((const char *)at + 8, x) : NULL;
	}
	*p = at + size;
	if (kind == GGUF_FLOAT || kind == GGUF_DOUBLE)
		return real_json(at, kind);
	x = little(at, size);
	if (kind == GGUF_BOOL)
		return json_boolean(x);
	if (kind == GGUF_U64 && x > INT64_MAX)
		return NULL;
	if (kind == GGUF_I8 || kind == GGUF_I16 || kind == GGUF_I32)
		x = (uint64_t)((int64_t)(x << (64 - 8 * size)) >> (64 - 8 * size));
	return json_integer((json_int_t)x);
}

static int no_json(const struct gguf *g, const struct gguf_value *v, uint64_t i, struct err *e)
{
	const char *why = v->kind == GGUF_STRING ? "is not UTF-8 or holds NUL" :
	    v->kind == GGUF_U64 ? "is above 63 bits" : "is not a finite number";

	return v->array ? err_set(e, EX_DATAERR, "%s: %.100s[%llu] %s", g->name, v->key,
	    (unsigned long long)i, why) : err_set(e, EX_DATAERR, "%s: %.100s %s", g->name, v->key,
	    why);
}

json_t *gguf_json(const struct gguf *g, const struct gguf_value *v, struct err *e)
{
	const unsigned char *p = v->at;
	json_t *list, *x;

	if (!v->array) {
		x = member_json(&p, v->kind);
		if (!x)
			no_json(g, v, 0, e);
		return x;
	}
	list = json_array();
	for (uint64_t i = 0; i < v->n; i++) {
		x = member_json(&p, v->kind);
		if (!x || json_array_append_new(list, x) < 0) {
			no_json(g, v, i, e);
			json_decref(list);
			return NULL;
		}
	}
	return list;
}
