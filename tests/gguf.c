/*
 * gguf: what a file says is read, hostile files are refused, each kind with its own message, and
 * every type of block means what the published Python package says.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/crc.h"
#include "format/gguf.h"
#include "tap.h"

/* ---- images of files ---- */

struct image {
	unsigned char b[4096];
	size_t n;
};

static void num(struct image *m, uint64_t x, int bytes)
{
	for (int i = 0; i < bytes; i++)
		m->b[m->n++] = (unsigned char)(x >> 8 * i);
}

static void text_n(struct image *m, const char *s, size_t n)
{
	num(m, n, 8);
	memcpy(m->b + m->n, s, n);
	m->n += n;
}

static void text(struct image *m, const char *s)
{
	text_n(m, s, strlen(s));
}

static void head(struct image *m, unsigned version, uint64_t tensors, uint64_t keys)
{
	m->n = 0;
	memcpy(m->b, "GGUF", 4);
	m->n = 4;
	num(m, version, 4);
	num(m, tensors, 8);
	num(m, keys, 8);
}

static void key(struct image *m, const char *name, enum gguf_kind kind)
{
	text(m, name);
	num(m, kind, 4);
}

/* A matrix (rows, cols), or a vector where rows is 0. */
static void tensor(struct image *m, const char *name, uint64_t rows, uint64_t cols, unsigned type,
    uint64_t offset)
{
	text(m, name);
	num(m, rows ? 2 : 1, 4);
	num(m, cols, 8);
	if (rows)
		num(m, rows, 8);
	num(m, type, 4);
	num(m, offset, 8);
}

/* The data: n bytes 0, 1, 2, .. after zeros up to the alignment. */
static void data(struct image *m, size_t align, size_t n)
{
	while (m->n % align)
		num(m, 0, 1);
	for (size_t i = 0; i < n; i++)
		num(m, i, 1);
}

static void refused(const struct image *m, const char *why)
{
	unsigned char *exact = malloc(m->n + 1);	/* so that reads beyond it are seen */
	struct err e = { 0 };
	struct gguf *g = gguf_open_mem(memcpy(exact, m->b, m->n), m->n, "f", &e);

	if (!ok(!g && e.status == EX_DATAERR && strstr(e.msg, why), "refused: %s", why))
		printf("# %s\n", g ? "accepted" : e.msg);
	gguf_close(g);
	free(exact);
}

/* ---- what is read ---- */

static void every_kind(struct image *m)
{
	static const float f = 1e-5f;
	static const double d = 1e300;
	uint32_t fbits;
	uint64_t dbits;

	memcpy(&fbits, &f, 4);
	memcpy(&dbits, &d, 8);
	key(m, "u8", GGUF_U8), num(m, 200, 1);
	key(m, "i8", GGUF_I8), num(m, (uint64_t)-2, 1);
	key(m, "u16", GGUF_U16), num(m, 65535, 2);
	key(m, "i16", GGUF_I16), num(m, (uint64_t)-300, 2);
	key(m, "u32", GGUF_U32), num(m, 4000000000, 4);
	key(m, "i32", GGUF_I32), num(m, (uint64_t)-70000, 4);
	key(m, "f32", GGUF_FLOAT), num(m, fbits, 4);
	key(m, "yes", GGUF_BOOL), num(m, 1, 1);
	key(m, "text", GGUF_STRING), text(m, "h\xc3\xa9");
	key(m, "u64", GGUF_U64), num(m, (uint64_t)1 << 40, 8);
	key(m, "i64", GGUF_I64), num(m, (uint64_t)-5, 8);
	key(m, "f64", GGUF_DOUBLE), num(m, dbits, 8);
	key(m, "list", GGUF_ARRAY), num(m, GGUF_I16, 4), num(m, 2, 8), num(m, 7, 2),
	    num(m, (uint64_t)-7, 2);
	key(m, "names", GGUF_ARRAY), num(m, GGUF_STRING, 4), num(m, 2, 8), text(m, ""),
	    text(m, "b");
	key(m, "none", GGUF_ARRAY), num(m, GGUF_STRING, 4), num(m, 0, 8);
}

static void value_is(const struct gguf *g, const char *name, const char *want)
{
	const struct gguf_value *v = gguf_value(g, name);
	struct err e = { 0 };
	json_t *o = v ? gguf_json(g, v, &e) : NULL;
	char *got = o ? json_dumps(o, JSON_ENCODE_ANY | JSON_COMPACT |
	    JSON_REAL_PRECISION(12)) : NULL;

	if (!ok(got && strcmp(got, want) == 0, "%s is %s", name, want))
		printf("# %s\n", got ? got : e.msg);
	free(got);
	json_decref(o);
}

static void test_values(unsigned version)
{
	struct image m;
	struct err e = { 0 };
	struct gguf *g;

	head(&m, version, 0, 15);
	every_kind(&m);
	g = gguf_open_mem(m.b, m.n, "f", &e);
	if (!ok(g != NULL && gguf_value_count(g) == 15, "version %u: every kind of value", version))
		return;
	value_is(g, "u8", "200"), value_is(g, "i8", "-2"), value_is(g, "u16", "65535");
	value_is(g, "i16", "-300"), value_is(g, "u32", "4000000000");
	value_is(g, "i32", "-70000"), value_is(g, "f32", "1e-5"), value_is(g, "yes", "true");
	value_is(g, "text", "\"h\xc3\xa9\""), value_is(g, "u64", "1099511627776");
	value_is(g, "i64", "-5"), value_is(g, "f64", "1e300");
	value_is(g, "list", "[7,-7]"), value_is(g, "names", "[\"\",\"b\"]");
	value_is(g, "none", "[]");
	ok(gguf_value(g, "nothing") == NULL, "a key that is not there");
	gguf_close(g);
}

static void no_json(const struct image *m, const char *why)
{
	struct err e = { 0 };
	struct gguf *g = gguf_open_mem(m->b, m->n, "f", &e);
	json_t *o = g ? gguf_json(g, gguf_value_at(g, 0), &e) : NULL;

	if (!ok(g && !o && strstr(e.msg, why), "no JSON: %s", why))
		printf("# %s\n", e.msg);
	json_decref(o);
	gguf_close(g);
}

static void test_no_json(void)
{
	struct image m;

	head(&m, 3, 0, 1), key(&m, "a", GGUF_STRING), text(&m, "\xff");
	no_json(&m, "f: a is not UTF-8");
	head(&m, 3, 0, 1), key(&m, "a", GGUF_STRING), text_n(&m, "b\0c", 3);
	no_json(&m, "f: a is not UTF-8 or holds NUL");
	head(&m, 3, 0, 1), key(&m, "a", GGUF_FLOAT), num(&m, 0x7f800000, 4);
	no_json(&m, "f: a is not a finite number");
	head(&m, 3, 0, 1), key(&m, "a", GGUF_U64), num(&m, UINT64_MAX, 8);
	no_json(&m, "f: a is above 63 bits");
	head(&m, 3, 0, 1), key(&m, "a", GGUF_ARRAY), num(&m, GGUF_STRING, 4), num(&m, 2, 8);
	text(&m, ""), text(&m, "\xc0");
	no_json(&m, "f: a[1] is not UTF-8");
}

static void tensors_of(const char *path, const struct image *m)
{
	struct err e = { 0 };
	struct gguf *g = m ? gguf_open_mem(m->b, m->n, "f", &e) : gguf_open(path, &e);
	const struct gguf_tensor *t;
	unsigned char b[8];

	if (!ok(g && gguf_count(g) == 2 && !gguf_find(g, "c"), "two tensors, %s",
	    path ? "of a file" : "in memory")) {
		printf("# %s\n", e.msg);
		return;
	}
	t = gguf_find(g, "b");
	ok(t && t == gguf_at(g, 0) && t->ndim == 2 && t->shape[0] == 3 && t->shape[1] == 2 &&
	    t->type == GGUF_F16 && t->nbytes == 12, "a matrix of 3 rows");
	ok(t && gguf_read(g, t, 4, b, 8, &e) == 0 && memcmp(b, "\4\5\6\7\10\11\12\13", 8) == 0,
	    "its last two rows");
	ok(t && gguf_read(g, t, 5, b, 8, &e) < 0, "and no more");
	t = gguf_find(g, "a");
	ok(t && t->ndim == 1 && t->shape[0] == 32 && t->nbytes == 34 &&
	    gguf_read(g, t, 0, b, 1, &e) == 0 && b[0] == 64, "a vector behind it");
	gguf_close(g);
}

static void test_tensors(void)
{
	char path[] = "/tmp/chr-gguf-XXXXXX";
	int fd = mkstemp(path);
	struct image m;

	head(&m, 3, 2, 1), key(&m, "general.alignment", GGUF_U32), num(&m, 64, 4);
	tensor(&m, "a", 0, 32, GGUF_Q8_0, 64);
	tensor(&m, "b", 3, 2, GGUF_F16, 0);
	data(&m, 64, 98);
	tensors_of(NULL, &m);
	ok(fd >= 0 && write(fd, m.b, m.n) == (ssize_t)m.n, "a file is written");
	tensors_of(path, NULL);
	close(fd);
	unlink(path);
}

/* ---- hostile files ---- */

static void test_heads(void)
{
	struct image m = { .n = 0 };

	refused(&m, "is empty");
	head(&m, 3, 0, 0), m.b[0] = 'X';
	refused(&m, "does not begin with \"GGUF\"");
	head(&m, 0x03000000, 0, 0);
	refused(&m, "big-endian");
	memcpy(m.b, "FUGG", 4);
	refused(&m, "big-endian");
	head(&m, 1, 0, 0);
	refused(&m, "version 1 of GGUF is not supported");
	head(&m, 4, 0, 0);
	refused(&m, "version 4 of GGUF is not supported");
	m.n = 6;
	refused(&m, "the file ends inside the version");
	head(&m, 3, UINT64_MAX, 0);
	refused(&m, "18446744073709551615 tensors in a file of 24 bytes");
	head(&m, 3, 0, (uint64_t)1 << 60);
	refused(&m, "1152921504606846976 keys in a file");
	memcpy(m.b, "version https://git-lfs.github.com/spec/v1\n", m.n = 43);
	refused(&m, "is a Git LFS pointer");
}

static void test_values_bad(void)
{
	struct image m;

	head(&m, 3, 0, 1), num(&m, 0, 8), num(&m, 0, 8);
	refused(&m, "a key of 0 bytes");
	head(&m, 3, 0, 1), num(&m, UINT64_MAX, 8), num(&m, 0, 8);
	refused(&m, "reaches beyond the end");
	head(&m, 3, 0, 1), key(&m, "\xff", GGUF_U8), num(&m, 0, 8);
	refused(&m, "a key is not UTF-8");
	head(&m, 3, 0, 1), key(&m, "a", 13), num(&m, 0, 8);
	refused(&m, "key \"a\" has a value of the unknown type 13");
	head(&m, 3, 0, 1), key(&m, "abcdef", GGUF_U64), num(&m, 0, 4);
	refused(&m, "key \"abcdef\": 1 values reach beyond the end");
	head(&m, 3, 0, 1), key(&m, "a", GGUF_BOOL), num(&m, 2, 1);
	refused(&m, "a truth value of 2");
	head(&m, 3, 0, 1), key(&m, "a", GGUF_ARRAY), num(&m, GGUF_ARRAY, 4), num(&m, 1, 8);
	num(&m, GGUF_U8, 4), num(&m, 0, 8);
	refused(&m, "lists of lists are not supported");
	head(&m, 3, 0, 1), key(&m, "a", GGUF_ARRAY), num(&m, GGUF_U32, 4);
	num(&m, ((uint64_t)1 << 62) + 1, 8), num(&m, 0, 4);
	refused(&m, "4611686018427387905 values reach beyond the end");
	head(&m, 3, 0, 1), key(&m, "a", GGUF_ARRAY), num(&m, GGUF_STRING, 4), num(&m, 2, 8);
	text(&m, "x");
	refused(&m, "the file ends inside a text");
	head(&m, 3, 0, 2), key(&m, "a", GGUF_U8), num(&m, 1, 1), key(&m, "a", GGUF_U8),
	    num(&m, 2, 1);
	refused(&m, "key \"a\" is there twice");
	head(&m, 3, 0, 1), key(&m, "general.alignment", GGUF_U32), num(&m, 24, 4);
	refused(&m, "general.alignment of 24 is not a power of two");
	head(&m, 3, 0, 1), key(&m, "general.alignment", GGUF_U32), num(&m, 0, 4);
	refused(&m, "general.alignment of 0 is not a power of two");
	head(&m, 3, 0, 1), key(&m, "general.alignment", GGUF_U64), num(&m, 32, 8);
	refused(&m, "general.alignment is not a number of 32 bits");
}

/* One tensor, and 64 bytes of data. */
static void one(struct image *m, uint64_t rows, uint64_t cols, unsigned type, uint64_t offset)
{
	head(m, 3, 1, 0), tensor(m, "w", rows, cols, type, offset), data(m, 32, 64);
}

static void test_tensors_bad(void)
{
	struct image m;

	one(&m, 4, 4, GGUF_F32, 0);
	m.n--;
	refused(&m, "tensor \"w\" of 64 bytes reaches beyond the end");
	one(&m, 4, 4, GGUF_F32, 32);
	refused(&m, "reaches beyond the end");
	one(&m, 4, 1, GGUF_F32, UINT64_MAX - 31);
	refused(&m, "reaches beyond the end");
	one(&m, 4, 1, GGUF_F32, 16);
	refused(&m, "begins at 16 of the data, no multiple of the alignment of 32");
	one(&m, 2, 48, GGUF_Q4_0, 0);
	refused(&m, "rows of 48 values, no multiple of the 32 of a block of Q4_0");
	one(&m, 1, 32, GGUF_Q4_K, 0);
	refused(&m, "no multiple of the 256 of a block of Q4_K");
	one(&m, 1, 256, 16, 0);
	refused(&m, "tensor \"w\" is of type IQ2_XXS, which is not supported");
	one(&m, 1, 256, 4, 0);
	refused(&m, "tensor \"w\" is of the unknown type 4");
	one(&m, 1, 256, UINT32_MAX, 0);
	refused(&m, "of the unknown type 4294967295");
	one(&m, 1, 0, GGUF_F32, 0);
	refused(&m, "has a dimension of 0");
	one(&m, (uint64_t)1 << 33, (uint64_t)1 << 31, GGUF_F32, 0);
	refused(&m, "its size is above 64 bits");
	one(&m, (uint64_t)1 << 62, 32, GGUF_Q8_0, 0);
	refused(&m, "its size is above 64 bits");
	head(&m, 3, 1, 0), text(&m, "w"), num(&m, 5, 4), data(&m, 1, 64);
	refused(&m, "has 5 dimensions, not 1 to 4");
	head(&m, 3, 1, 0), text(&m, "w"), num(&m, 0, 4), data(&m, 1, 64);
	refused(&m, "has 0 dimensions");
	head(&m, 3, 2, 0), tensor(&m, "a", 0, 16, GGUF_F32, 0), tensor(&m, "b", 0, 8, GGUF_F32, 32);
	data(&m, 32, 64);
	refused(&m, "tensors \"a\" and \"b\" overlap");
	head(&m, 3, 2, 0), tensor(&m, "a", 0, 8, GGUF_F32, 0), tensor(&m, "a", 0, 8, GGUF_F32, 32);
	data(&m, 32, 64);
	refused(&m, "tensor \"a\" is there twice");
	head(&m, 3, 1, 0), text_n(&m, "a\0b", 3), num(&m, 1, 4), data(&m, 1, 64);
	refused(&m, "the name of a tensor is not UTF-8 or holds NUL");
}

/* A file that ends anywhere is refused, whatever was cut off. */
static void test_cut(void)
{
	struct image m;
	int accepted = 0;

	head(&m, 3, 1, 15), every_kind(&m), tensor(&m, "w", 4, 4, GGUF_F32, 0), data(&m, 32, 64);
	for (size_t n = 0; n < m.n; n++) {
		unsigned char *exact = malloc(n + 1);
		struct err e = { 0 };
		struct gguf *g = gguf_open_mem(memcpy(exact, m.b, n), n, "f", &e);

		accepted += g != NULL;
		gguf_close(g);
		free(exact);
	}
	ok(accepted == 0, "a file cut off at any of %zu bytes is refused", m.n);
}

/* ---- blocks ---- */

/* CRC-32 of 64 blocks as float32, by dequantize() of gguf 0.19.0 on PyPI. The bytes are
 * those of a linear congruence, the halves among them made finite. */
static const struct {
	enum gguf_type type;
	uint32_t crc;
	int half[2];			/* where in a block; -1: none */
} blocks[] = {
	{ GGUF_F16, 0xd03537a9, { 0, -1 } }, { GGUF_BF16, 0x8f70b2a3, { 0, -1 } },
	{ GGUF_F32, 0x9ecd99d1, { 2, -1 } }, { GGUF_Q8_0, 0xa1c9c251, { 0, -1 } },
	{ GGUF_Q4_0, 0xc033a30c, { 0, -1 } }, { GGUF_Q4_1, 0x0a890212, { 0, 2 } },
	{ GGUF_Q5_0, 0x9e38ae93, { 0, -1 } }, { GGUF_Q5_1, 0xa4409dc2, { 0, 2 } },
	{ GGUF_Q2_K, 0x0ea7dfb6, { 80, 82 } }, { GGUF_Q3_K, 0xa1716ac9, { 108, -1 } },
	{ GGUF_Q4_K, 0x0d384b05, { 0, 2 } }, { GGUF_Q5_K, 0x7163934b, { 0, 2 } },
	{ GGUF_Q6_K, 0xf416d62d, { 208, -1 } }, { GGUF_IQ4_NL, 0x662472f6, { 0, -1 } },
	{ GGUF_IQ4_XS, 0x3d541bb3, { 0, -1 } }, { GGUF_MXFP4, 0x813bd1dc, { -1, -1 } },
};

#define NBLOCKS 64

static void test_blocks(void)
{
	static unsigned char src[NBLOCKS * 210];
	static float dst[NBLOCKS * GGUF_BLOCK_MOST];

	for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) {
		int bytes = gguf_block_bytes(blocks[i].type);
		uint64_t x = 1;
		uint32_t got;

		for (int k = 0; k < NBLOCKS * bytes; k++) {
			x = x * 6364136223846793005 + 1442695040888963407;
			src[k] = (unsigned char)(x >> 56);
		}
		for (int k = 0; k < NBLOCKS; k++)
			for (int h = 0; h < 2 && blocks[i].half[h] >= 0; h++)
				src[k * bytes + blocks[i].half[h] + 1] &= 0xbf;
		gguf_unpack(dst, src, blocks[i].type, NBLOCKS);
		got = crc_32(dst, (size_t)(NBLOCKS * gguf_block_values(blocks[i].type)) *
		    sizeof *dst);
		if (!ok(got == blocks[i].crc, "blocks of %s", gguf_type_name(blocks[i].type)))
			printf("# 0x%08x\n", got);
	}
}

int main(void)
{
	test_values(2);
	test_values(3);
	test_no_json();
	test_tensors();
	test_heads();
	test_values_bad();
	test_tensors_bad();
	test_cut();
	test_blocks();
	return tap_done();
}
