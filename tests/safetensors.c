/*
 * safetensors.h: what is written is read, and hostile files are refused, each kind with its own
 * message.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "format/safetensors.h"
#include "tap.h"

static char path[] = "/tmp/chr-safetensors-XXXXXX";

/* A file image: length, header, then n bytes of data. */
static unsigned char *image(const char *header, size_t hlen, size_t n, size_t *len)
{
	unsigned char *p = malloc(8 + hlen + n + 1);

	for (int i = 0; i < 8; i++)
		p[i] = (unsigned char)((uint64_t)hlen >> 8 * i);
	memcpy(p + 8, header, hlen);
	for (size_t i = 0; i < n; i++)
		p[8 + hlen + i] = (unsigned char)i;
	*len = 8 + hlen + n;
	return p;
}

static struct st_file *open_text(const char *header, size_t n, unsigned char **img,
    struct st_error *e)
{
	size_t len;

	*img = image(header, strlen(header), n, &len);
	return st_open_mem(*img, len, e);
}

static void refused(const char *header, size_t n, enum st_code code, const char *why)
{
	struct st_error e;
	unsigned char *img;
	struct st_file *f = open_text(header, n, &img, &e);

	if (!ok(!f && e.code == code && strstr(e.msg, why), "refused: %s", why))
		printf("# %s: %d %s\n", header, f ? 0 : (int)e.code, f ? "accepted" : e.msg);
	st_close(f);
	free(img);
}

static void accepted(const char *header, size_t n, const char *what)
{
	struct st_error e;
	unsigned char *img;
	struct st_file *f = open_text(header, n, &img, &e);

	if (!ok(f != NULL, "accepted: %s", what))
		printf("# %s\n", e.msg);
	st_close(f);
	free(img);
}

#define T(name, dtype, shape, off) "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" \
	shape ",\"data_offsets\":" off "}"

static void test_hostile(void)
{
	refused("[]", 0, ST_EJSON, "does not start with {");
	refused(" {}", 0, ST_EJSON, "does not start with {");
	refused("", 0, ST_EJSON, "does not start with {");
	refused("{", 0, ST_EJSON, "a string is missing");
	refused("{\"a", 0, ST_EJSON, "ends inside a string");
	refused("{} x", 0, ST_EJSON, "more text behind");
	refused("{}", 1, ST_EHOLE, "1 bytes behind the last tensor");
	refused("{" T("a", "F32", "[1]", "[0,4]") ",}", 4, ST_EJSON, "a string is missing");
	refused("{" T("a", "F32", "[1]", "[0,4]") " " T("b", "F32", "[0]", "[4,4]") "}", 4,
	    ST_EJSON, "comma");
	refused("{\"a\":3}", 0, ST_EJSON, "not an object");
	refused("{\"a\":{}}", 0, ST_EJSON, "a string is missing");
	refused("{\"a\" {}}", 0, ST_EJSON, "colon");
	refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[]}}", 4, ST_EJSON, "has no data_offsets");
	refused("{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, ST_EJSON, "has no shape");
	refused("{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, ST_EJSON, "has no dtype");
	refused("{" T("a", "F31", "[1]", "[0,4]") "}", 4, ST_EDTYPE, "unknown dtype \"F31\"");
	refused("{\"a\":{\"dtype\":4,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, ST_EJSON,
	    "a string is missing");
	refused("{" T("a", "F32", "1", "[0,4]") "}", 4, ST_EJSON, "shape is not a list");
	refused("{" T("a", "F32", "[-1]", "[0,4]") "}", 4, ST_EJSON, "negative");
	refused("{" T("a", "F32", "[1.0]", "[0,4]") "}", 4, ST_EJSON, "not whole");
	refused("{" T("a", "F32", "[1e0]", "[0,4]") "}", 4, ST_EJSON, "not whole");
	refused("{" T("a", "F32", "[01]", "[0,4]") "}", 4, ST_EJSON, "leading zero");
	refused("{" T("a", "F32", "[\"1\"]", "[0,4]") "}", 4, ST_EJSON, "a number is missing");
	refused("{" T("a", "F32", "[1", "[0,4]") "}", 4, ST_EJSON, "a number is missing");
	refused("{" T("a", "F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]") "}", 4, ST_ESHAPE,
	    "more than 8 dimensions");
	refused("{" T("a", "F32", "[1]", "[0]") "}", 4, ST_EJSON, "must be two numbers");
	refused("{" T("a", "F32", "[1]", "[0,4,8]") "}", 4, ST_EJSON, "must be two numbers");
	refused("{" T("a", "F32", "[1]", "4") "}", 4, ST_EJSON, "data_offsets is not a list");
	refused("{" T("a", "F32", "[2]", "[0,8]") "}", 4, ST_ERANGE,
	    "describes a file of 70 bytes, this one has 66");
	refused("{" T("a", "F32", "[1]", "[4,0]") "}", 4, ST_ERANGE, "ends before it begins");
	refused("{" T("a", "F32", "[2]", "[0,4]") "}", 4, ST_ESHAPE,
	    "shape takes 8 bytes, data_offsets give 4");
	refused("{" T("a", "F32", "[0]", "[0,4]") "}", 4, ST_ESHAPE, "shape takes 0 bytes");
	refused("{" T("a", "F32", "[18446744073709551616]", "[0,4]") "}", 4, ST_EOVERFLOW,
	    "a number above 64 bits");
	refused("{" T("a", "F32", "[4294967296,4294967296]", "[0,0]") "}", 0, ST_EOVERFLOW,
	    "above 64 bits");
	refused("{" T("a", "F32", "[4611686018427387905]", "[0,4]") "}", 4, ST_EOVERFLOW,
	    "above 64 bits");
	refused("{" T("a", "F32", "[1]", "[0,4]") "," T("b", "F32", "[1]", "[0,4]") "}", 4,
	    ST_EOVERLAP, "overlaps \"a\"");
	refused("{" T("a", "F32", "[2]", "[0,8]") "," T("b", "F32", "[1]", "[4,8]") "}", 8,
	    ST_EOVERLAP, "overlaps");
	refused("{" T("a", "F32", "[1]", "[0,4]") "," T("b", "F32", "[1]", "[8,12]") "}", 12,
	    ST_EHOLE, "a hole of 4 bytes");
	refused("{" T("a", "F32", "[1]", "[4,8]") "}", 8, ST_EHOLE,
	    "a hole of 4 bytes before tensor \"a\"");
	refused("{" T("a", "F32", "[1]", "[0,4]") "," T("a", "F32", "[1]", "[4,8]") "}", 8, ST_EDUP,
	    "tensor \"a\" twice");
	refused("{" T("a", "F32", "[1]", "[0,4]") "," T("\\u0061", "F32", "[1]", "[4,8]") "}", 8,
	    ST_EDUP, "twice");
	refused("{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,"
	    "4]}}", 4, ST_EDUP,
	    "\"dtype\" twice");
	refused("{\"__metadata__\":{},\"__metadata__\":{}}", 0, ST_EDUP, "__metadata__ twice");
	refused("{\"__metadata__\":{\"k\":\"a\",\"k\":\"b\"}}", 0, ST_EDUP, "key \"k\" twice");
	refused("{\"__metadata__\":{\"k\":1}}", 0, ST_EJSON, "not a string");
	refused("{\"__metadata__\":[]}", 0, ST_EJSON, "not an object");
	refused("{\"\xff\":{}}", 0, ST_EUTF8, "not UTF-8");
	refused("{\"\xc0\x80\":{}}", 0, ST_EUTF8, "not UTF-8");
	refused("{\"\xed\xa0\x80\":{}}", 0, ST_EUTF8, "not UTF-8");
	refused("{\"\xf4\x90\x80\x80\":{}}", 0, ST_EUTF8, "not UTF-8");
	refused("{\"\\ud800\":{}}", 0, ST_EUTF8, "surrogate");
	refused("{\"\\udc00\\ud800\":{}}", 0, ST_EUTF8, "surrogate");
	refused("{\"\\ud800\\u0041\":{}}", 0, ST_EUTF8, "surrogate");
	refused("{\"\\u00zz\":{}}", 0, ST_EJSON, "escape");
	refused("{\"\\x\":{}}", 0, ST_EJSON, "escape");
	refused("{\"\\u0000\":{}}", 0, ST_EJSON, "NUL");
	refused("{\"a\nb\":{}}", 0, ST_EJSON, "control character");
	refused("{\"a\":{\"x\":nonsense}}", 0, ST_EJSON, "not a value");
}

static void test_deep(void)
{
	char text[400] = "{\"a\":{\"x\":";
	size_t n = strlen(text);

	memset(text + n, '[', 300);
	text[n + 300] = 0;
	refused(text, 0, ST_EDEPTH, "nested deeper");
}

static void test_lengths(void)
{
	struct st_error e;
	unsigned char b[16] = { 9, 0, 0, 0, 0, 0, 0, 0, '{', '}' };

	ok(!st_open_mem(NULL, 0, &e) && e.code == ST_ESHORT, "empty file: %s", e.msg);
	ok(!st_open_mem(b, 7, &e) && e.code == ST_ESHORT, "seven bytes: %s", e.msg);
	ok(!st_open_mem(b, 10, &e) && e.code == ST_ESHORT && strstr(e.msg, "longer than the file"),
	    "%s", e.msg);
	memset(b, 0xff, 8);
	ok(!st_open_mem(b, 10, &e) && e.code == ST_ESHORT && strstr(e.msg, "limit"), "%s", e.msg);
	b[7] = 0;
	ok(!st_open_mem(b, 10, &e) && strstr(e.msg, "limit"), "header of 2^56 bytes");
}

static void test_accepted(void)
{
	accepted("{}", 0, "no tensor");
	accepted("{  }   \n", 0, "padding behind the header");
	accepted("{\"__metadata__\":{}}", 0, "empty metadata");
	accepted("{" T("a", "F32", "[]", "[0,4]") "}", 4, "a scalar");
	accepted("{" T("a", "F32", "[0,7]", "[0,0]") "}", 0, "an empty tensor");
	accepted("{" T("b", "U8", "[3]", "[4,7]") "," T("a", "F32", "[1]", "[0,4]") "}", 7,
	    "any order");
	accepted("{" T("a", "U8", "[1]", "[0,1]") "," T("z", "F32", "[0]", "[1,1]") "," T("b", "U8",
	    "[1]", "[1,2]") "}", 2,
	    "an empty tensor in the middle");
	accepted("{\"a\":{\"new\":[{\"k\":null},-1.5e3,\"s\"],\"dtype\":\"U8\",\"shape\":[1],"
	    "\"data_offsets\":[0,1]}}", 1,
	    "keys of later versions");
	accepted("{" T("a", "U8", "[1,1,1,1,1,1,1,1]", "[0,1]") "}", 1, "eight dimensions");
}

static void test_lookup(void)
{
	struct st_error e;
	unsigned char *img;
	struct st_file *f = open_text("{\"__metadata__\":{\"k\":\"\\u20ac\\ud83d\\ude00\\n\\/\"},"
	    T("experts.1", "U8", "[1]", "[0,1]") "," T("experts.10", "U16", "[1]", "[1,3]") ","
	    T("\\u00e9", "F8_E4M3", "[2]", "[3,5]") "}", 5, &img, &e);
	const struct st_tensor *t;

	if (!ok(f != NULL, "opened"))
		return;
	t = st_find(f, "experts.10");
	ok(t && t->dtype == ST_U16 && *(const unsigned char *)t->data == 1,
	    "experts.10 is not experts.1");
	ok(!st_find(f, "experts") && !st_find(f, "experts.100") && !st_find(f, ""),
	    "and nothing else is found");
	ok(st_find(f, "\xc3\xa9") != NULL, "escaped names are found by their text");
	ok(strcmp(st_meta(f, "k"), "\xe2\x82\xac\xf0\x9f\x98\x80\n/") == 0 && !st_meta(f, "K"),
	    "metadata unescaped");
	ok(st_count(f) == 3 && strcmp(st_at(f, 0)->name, "experts.1") == 0 && !st_at(f, 3),
	    "in order of offset");
	st_close(f);
	free(img);
}

/* Every prefix and every flipped bit of a good file: refused, or consistent (checked by ASan's
 * eyes). */
static void test_damage(void)
{
	static const char header[] = "{\"__metadata__\":{\"k\":\"v\\u0041\"}," T("a", "F32",
	    "[2,1]", "[0,8]") ","
	    T("b\\n", "BOOL", "[3]", "[8,11]") "}";
	struct st_error e;
	size_t len, opened = 0;
	unsigned char *img = image(header, strlen(header), 11, &len), *part;
	struct st_file *f;

	for (size_t n = 0; n < len; n++) {
		part = malloc(n ? n : 1);	/* its own block, so that a read beyond n is seen */
		memcpy(part, img, n);
		f = st_open_mem(part, n, &e);
		opened += f != NULL;
		st_close(f);
		free(part);
	}
	ok(opened == 0, "no prefix of a file is a file");
	for (size_t i = 0; i < len * 8; i++) {
		img[i / 8] ^= (unsigned char)(1 << i % 8);
		f = st_open_mem(img, len, &e);
		for (size_t k = 0; f && k < st_count(f); k++)
			opened += *((const unsigned char *)st_at(f, k)->data + st_at(f, k)->nbytes -
			    1);
		st_close(f);
		img[i / 8] ^= (unsigned char)(1 << i % 8);
	}
	ok(1, "flipped bits do no harm");
	free(img);
}

static void write_all_types(const char *to)
{
	uint64_t shape[2] = { 2, 3 };
	unsigned char data[48];
	struct st_error e;
	struct st_writer *w = st_writer_create(to, &e);

	for (int i = 0; i < 48; i++)
		data[i] = (unsigned char)i;
	st_writer_meta(w, "quote \" and \\", "line\nnext \xe2\x82\xac", &e);
	for (int t = 0; t < ST_DTYPES; t++)
		st_writer_add(w, st_dtype_name((enum st_dtype)t), (enum st_dtype)t, 2, shape, t % 3
		    ? 0 : 64, &e);
	st_writer_add(w, "scalar", ST_I64, 0, NULL, 4096, &e);
	st_writer_begin(w, &e);
	for (int t = 0; t < ST_DTYPES; t++) {
		size_t n = 6 * st_dtype_size((enum st_dtype)t);

		st_writer_data(w, data, 1, &e);
		st_writer_data(w, data + 1, n - 1, &e);
	}
	st_writer_data(w, data, 8, &e);
	if (st_writer_finish(w, &e) < 0)
		printf("# %s\n", e.msg);
}

static size_t slurp(const char *name, unsigned char *buf, size_t cap)
{
	FILE *f = fopen(name, "rb");
	size_t n = f ? fread(buf, 1, cap, f) : 0;

	if (f)
		fclose(f);
	return n;
}

static void test_round_trip(int mode)
{
	struct st_error e;
	struct st_file *f = st_open(path, mode, &e);
	const struct st_tensor *t;
	unsigned char got[48];
	int bad = 0;

	if (!ok(f != NULL, "what was written opens (%s)", mode == ST_MMAP ? "mapped" : "read"))
		return;
	for (int k = 0; k < ST_DTYPES; k++) {
		t = st_find(f, st_dtype_name((enum st_dtype)k));
		bad += !t || (int)t->dtype != k || t->ndim != 2 || t->shape[1] != 3 ||
		    st_elements(t) != 6 ||
		    st_read(f, t, 0, got, (size_t)t->nbytes, &e) < 0 ||
		    (k % 3 == 0 && t->offset % 64);
		for (size_t i = 0; t && i < t->nbytes; i++)
			bad += got[i] != i || (t->data && ((const unsigned char *)t->data)[i] != i);
		bad += t && (t->data != NULL) != (mode == ST_MMAP);
	}
	ok(bad == 0, "all dtypes come back, aligned where asked");
	t = st_find(f, "scalar");
	ok(t && t->offset % 4096 == 0 && st_data_start(f) % 4096 == 0 && t->ndim == 0,
	    "4096-byte alignment in the file");
	ok(strcmp(st_meta(f, "quote \" and \\"), "line\nnext \xe2\x82\xac") == 0, "metadata");
	ok(t && st_read(f, t, 4, got, 5, &e) < 0 && e.code == ST_ERANGE,
	    "no read past a tensor: %s", e.msg);
	st_close(f);
}

static void test_files(void)
{
	static unsigned char a[32768], b[32768];
	char other[80];
	struct st_error e;
	struct st_file *f;
	size_t n, m;

	write_all_types(path);
	test_round_trip(ST_MMAP);
	test_round_trip(ST_READ);
	snprintf(other, sizeof other, "%s.b", path);
	write_all_types(other);
	n = slurp(path, a, sizeof a);
	m = slurp(other, b, sizeof b);
	ok(n > 0 && n == m && memcmp(a, b, n) == 0, "the same calls give the same bytes");
	f = st_open(other, ST_READ, &e);
	ok(truncate(other, (off_t)n - 4) == 0 && st_read(f, st_find(f, "scalar"), 0, a, 8, &e) <
	    0 && e.code == ST_EIO,
	    "a file cut while open is noticed: %s", e.msg);
	st_close(f);
	ok(!st_open(other, ST_MMAP, &e) && e.code == ST_ERANGE, "a truncated file is refused: %s",
	    e.msg);
	unlink(other);
	ok(!st_open(other, ST_MMAP, &e) && e.code == ST_EOPEN, "no such file: %s", e.msg);
	ok(!st_open("/tmp", ST_READ, &e) && e.code == ST_EOPEN, "a directory: %s", e.msg);
}

static struct st_writer *begin(const char *name, struct st_error *e)
{
	uint64_t two = 2;
	struct st_writer *w = st_writer_create(path, e);

	st_writer_add(w, name, ST_U8, 1, &two, 0, e);
	return w;
}

static void test_misuse(void)
{
	struct st_error e;
	struct st_writer *w;
	uint64_t big[2] = { UINT64_MAX, 2 };

	unlink(path);
	w = begin("a", &e);
	st_writer_begin(w, &e);
	st_writer_data(w, "x", 1, &e);
	ok(st_writer_finish(w, &e) < 0 && e.code == ST_EUSE && access(path, F_OK) < 0,
	    "too few bytes: %s", e.msg);
	w = begin("a", &e);
	st_writer_begin(w, &e);
	ok(st_writer_data(w, "xyz", 3, &e) < 0 && st_writer_finish(w, &e) < 0 &&
	    strstr(e.msg, "more than"), "%s", e.msg);
	w = begin("a", &e);
	ok(st_writer_data(w, "x", 1, &e) < 0 && st_writer_finish(w, &e) < 0,
	    "data before the header: %s", e.msg);
	w = begin("a", &e);
	st_writer_add(w, "a", ST_U8, 0, NULL, 0, &e);
	ok(st_writer_begin(w, &e) < 0 && e.code == ST_EDUP && st_writer_finish(w, &e) < 0, "%s",
	    e.msg);
	w = begin("__pad.7", &e);
	ok(st_writer_finish(w, &e) < 0 && strstr(e.msg, "reserved"), "%s", e.msg);
	w = begin("\xff", &e);
	ok(st_writer_finish(w, &e) < 0 && e.code == ST_EUTF8, "%s", e.msg);
	w = begin("a", &e);
	ok(st_writer_add(w, "b", ST_U8, 0, NULL, 48, &e) < 0 && st_writer_finish(w, &e) < 0, "%s",
	    e.msg);
	w = begin("a", &e);
	ok(st_writer_add(w, "b", ST_U8, 2, big, 0, &e) < 0 && e.code == ST_EOVERFLOW, "%s", e.msg);
	st_writer_abort(w);
	w = begin("a", &e);
	st_writer_meta(w, "k", "1", &e);
	ok(st_writer_meta(w, "k", "2", &e) < 0 && st_writer_finish(w, &e) < 0, "%s", e.msg);
	ok(!st_writer_create("/nonexistent/x", &e) && e.code == ST_EOPEN &&
	    st_writer_finish(NULL, &e) < 0, "%s", e.msg);
	ok(!st_writer_create("/dev/null", &e) && e.code == ST_EOPEN,
	    "a device is not replaced by a file: %s", e.msg);
	ok(access(path, F_OK) < 0, "no failed writer left a file");
}

/* A full disk, played by a limit on the size of files. */
static void test_full(void)
{
	static char data[100000];
	struct rlimit old, low;
	struct st_error e;
	struct st_writer *w;
	uint64_t n = sizeof data;
	int r;

	signal(SIGXFSZ, SIG_IGN);
	getrlimit(RLIMIT_FSIZE, &old);
	low = old;
	low.rlim_cur = 50000;
	w = st_writer_create(path, &e);
	st_writer_add(w, "a", ST_U8, 1, &n, 0, &e);
	st_writer_begin(w, &e);
	setrlimit(RLIMIT_FSIZE, &low);
	st_writer_data(w, data, sizeof data, &e);
	r = st_writer_finish(w, &e);
	setrlimit(RLIMIT_FSIZE, &old);
	ok(r < 0 && e.code == ST_EIO && access(path, F_OK) < 0, "a write that fails: %s", e.msg);
}

static void test_many(void)
{
	const uint64_t one = 1;
	struct st_error e;
	struct st_writer *w = st_writer_create(path, &e);
	struct st_file *f;
	char name[40];
	int found = 0, n = 30000;

	for (int i = 0; i < n; i++) {
		snprintf(name, sizeof name, "t.%d", i);
		st_writer_add(w, name, ST_U8, 1, &one, 0, &e);
	}
	st_writer_begin(w, &e);
	for (int i = 0; i < n; i++)
		st_writer_data(w, &(unsigned char){ (unsigned char)i }, 1, &e);
	ok(st_writer_finish(w, &e) == 0, "%d tensors written", n);
	f = st_open(path, ST_MMAP, &e);
	for (int i = 0; f && i < n; i++) {
		const struct st_tensor *t;

		snprintf(name, sizeof name, "t.%d", i);
		t = st_find(f, name);
		found += t && *(const unsigned char *)t->data == (unsigned char)i;
	}
	ok(found == n, "and found");
	st_close(f);
	unlink(path);
}

int main(void)
{
	int fd = mkstemp(path);

	if (fd >= 0)
		close(fd);
	test_hostile();
	test_deep();
	test_lengths();
	test_accepted();
	test_lookup();
	test_damage();
	test_files();
	test_misuse();
	test_full();
	test_many();
	return tap_done();
}
