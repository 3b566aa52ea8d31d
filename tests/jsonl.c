/* jsonl: plain and gzip, live pipes, hostile lines. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>

#include "base/file.h"
#include "base/json.h"
#include "base/sig.h"
#include "tap.h"

static char dir[] = "/tmp/chr-jsonl-XXXXXX";

static char *put(const char *name, const void *buf, size_t len)
{
	struct err e = {0};
	char *path = file_join(dir, name);

	if (file_put(path, buf, len, &e))
		err_exit(&e);
	return path;
}

static size_t gz(const char *text, unsigned char *out, size_t size, int flush)
{
	z_stream z = {0};

	deflateInit2(&z, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
	z.next_in = (Bytef *)(uintptr_t)text;
	z.avail_in = (uInt)strlen(text);
	z.next_out = out;
	z.avail_out = (uInt)size;
	deflate(&z, flush);
	deflateEnd(&z);
	return size - z.avail_out;
}

/* Reads one file; the values of "n" are joined: "1,2,3". The status of the error, if any, is
 * returned. */
static int read_file(const char *path, bool skip, char *got, struct err *e)
{
	struct jsonl *in;
	json_t *rec;

	*e = (struct err){0};
	*got = '\0';
	in = jsonl_open(1, (char *const *)&path, skip, e);
	if (!in)
		return e->status;
	while ((rec = jsonl_next(in, e)) != NULL) {
		sprintf(got + strlen(got), "%s%lld", *got ? "," : "",
		    json_integer_value(json_object_get(rec, "n")));
		json_decref(rec);
	}
	if (skip)
		sprintf(got + strlen(got), " skipped %lld", (long long)jsonl_skipped(in));
	jsonl_close(in);
	return e->status;
}

static void expect_bytes(const char *what, const void *buf, size_t len, bool skip, int status,
    const char *want,
	const char *message)
{
	char *path = put("in", buf, len), got[256];
	struct err e;
	int rc = read_file(path, skip, got, &e);
	int good = rc == status && !strcmp(got, want) && strstr(e.msg, message);

	ok(good, "%s", what);
	if (!good)
		printf("# status %d, records '%s', message '%s'\n", rc, got, e.msg);
	unlink(path);
	free(path);
}

static void expect(const char *what, const char *text, int status, const char *want,
    const char *message)
{
	expect_bytes(what, text, strlen(text), false, status, want, message);
}

static void test_plain(void)
{
	expect("records", "{\"n\":1}\n{\"n\":2}\n", 0, "1,2", "");
	expect("last line without newline", "{\"n\":1}\n{\"n\":2}", 0, "1,2", "");
	expect("empty lines and carriage returns", "\n{\"n\":1}\r\n  \n\r\n{\"n\":2}\n\n", 0, "1,2",
	    "");
	expect("empty file", "", 0, "", "");
	expect("broken JSON names file and line", "{\"n\":1}\n{\"n\":\n", EX_DATAERR, "1",
	    "/in:2: ");
	expect("an array is not a record", "[1]\n", EX_DATAERR, "",
	    ":1: not an object but a JSON array; JSONL has one object per line");
	expect("a bare value is not a record", "7\n", EX_DATAERR, "", ":1: ");
	expect("two values in a line", "{} {}\n", EX_DATAERR, "", ":1: ");
	expect("bad UTF-8", "{\"n\":1,\"s\":\"a\xff\"}\n", EX_DATAERR, "", ":1: ");
	expect("overlong UTF-8", "{\"n\":1,\"s\":\"\xc0\x80\"}\n", EX_DATAERR, "", ":1: ");
	expect("lone surrogate", "{\"s\":\"\\ud800\"}\n", EX_DATAERR, "", ":1: ");
	expect_bytes("NUL byte", "{\"n\":1}\n{\"n\":\0}\n", 16, false, EX_DATAERR, "1",
	    ":2: NUL byte");
	expect_bytes("skip-bad counts", "{\"n\":1}\nx\n[]\n{\"n\":2}\n", 21, true, 0,
	    "1,2 skipped 2", "");
	expect("numbers beyond 64 bits and doubles are no fault",
	    "{\"n\":1,\"x\":99999999999999999999,\"y\":-1e999,\"z\":1e-999}\n", 0, "1", "");
	expect("an integer of 64 bits without sign, in a key that nobody reads",
	    "{\"n\":1,\"hash\":13835058055282163712,\"s\":\"13835058055282163712\"}\n", 0, "1", "");
	expect("a mark of UTF-8", "\xef\xbb\xbf{\"n\":1}\n", 0, "1", "");
	expect_bytes("UTF-16", "\xff\xfe{\0\"\0n\0\"\0", 10, false, EX_DATAERR, "",
	    ":1: is text in UTF-16");
	expect("a list over lines", "[\n{\"n\":1}\n]\n", EX_DATAERR, "",
	    ":1: not an object but a JSON array");
	expect("an object over lines", "{\n\"n\":1}\n", EX_DATAERR, "",
	    ":1: the object does not end on its line");
	expect_bytes("UTF-16 of the other order", "\xfe\xff\0{\0\"", 6, false, EX_DATAERR, "",
	    ":1: is text in UTF-16");
	expect_bytes("UTF-16 that nothing marks", "{\0\"\0n\0\"\0:\0001\0}\0", 14, false,
	    EX_DATAERR, "", ":1: is text in UTF-16");
	expect("a NUL character in a text", "{\"n\":1,\"s\":\"a\\u0000\"}\n", 0, "1", "");
	expect("a NUL character in a key", "{\"a\\u0000\":1}\n", EX_DATAERR, "",
	    ":1: a NUL character (\\u0000) in a key");
	expect("a key twice", "{\"n\":1,\"n\":2}\n", EX_DATAERR, "", ":1: duplicate key");
	expect("a byte that is not UTF-8, and where", "{\"n\":\"\xc3\"}\n", EX_DATAERR, "",
	    ":1: not UTF-8: byte 7 is 0xc3");
	expect("half of a surrogate pair", "{\"n\":\"\\ud800\"}\n", EX_DATAERR, "",
	    ":1: half of a surrogate pair alone");
	expect("text that is no JSON", "hello\n", EX_DATAERR, "", ":1: not JSON near 'hello'");
	expect("lines that end with CR and LF", "{\"n\":1}\r\n\r\n{\"n\":2}\r\n", 0, "1,2", "");
	expect("one byte that could have been gzip", "\x1f", EX_DATAERR, "", ":1: ");
}

static void test_deep(void)
{
	size_t n = 1 << 20;
	char *s = malloc(n);

	memset(s, '[', n);
	expect_bytes("a million brackets", s, n, false, EX_DATAERR, "", ":1: ");
	free(s);
}

static void test_long(void)
{
	size_t n = (size_t)5 << 20, limit = ((size_t)64 << 20) + 2;
	char *s = malloc(limit);

	memset(s, 'a', limit);
	memcpy(s, "{\"n\":1,\"s\":\"", 12);
	memcpy(s + n - 12, "\"}\n{\"n\":2}\n", 11);
	expect_bytes("a line of 5 MiB", s, n - 1, false, 0, "1,2", "");
	memset(s + n - 12, 'a', 12);
	expect_bytes("a line above 64 MiB", s, limit, false, EX_DATAERR, "", "longer than 64 MiB");
	free(s);
}

static void test_gzip(void)
{
	unsigned char b[512];
	size_t n = gz("{\"n\":1}\n{\"n\":2}\n", b, sizeof b, Z_FINISH), m;

	expect_bytes("gzip", b, n, false, 0, "1,2", "");
	m = n + gz("{\"n\":3}", b + n, sizeof b - n, Z_FINISH);
	expect_bytes("two gzip members", b, m, false, 0, "1,2,3", "");
	expect_bytes("truncated second member", b, m - 9, false, EX_DATAERR, "1,2",
	    "/in: gzip data is truncated");
	expect_bytes("truncated trailer", b, n - 1, false, EX_DATAERR, "1,2",
	    "/in: gzip data is truncated");
	expect_bytes("header alone", b, 10, false, EX_DATAERR, "", "truncated");
	memcpy(b + n, "junk", 4);
	expect_bytes("junk after gzip", b, n + 4, false, EX_DATAERR, "1,2",
	    "/in: gzip data is damaged");
	b[n - 6] ^= 1;
	expect_bytes("wrong checksum", b, n, false, EX_DATAERR, "", "damaged");
}

/* A record must be there as soon as its line is; a reader that waits for more dies of the alarm. */
static void test_live(bool compressed)
{
	const char *path = "-";
	const char *kind = compressed ? "gzip" : "plain";
	unsigned char b[256];
	struct err e = {0};
	struct jsonl *in;
	json_t *rec;
	size_t n;
	int p[2], saved = dup(0);

	if (pipe(p))
		return;
	dup2(p[0], 0);
	alarm(10);
	in = jsonl_open(1, (char *const *)&path, false, &e);
	n = compressed ? gz("{\"n\":5}\n{\"n\"", b, sizeof b, Z_SYNC_FLUSH)
		: (size_t)sprintf((char *)b, "{\"n\":5}\n{\"n\"");
	ok(write(p[1], b, n) == (ssize_t)n, "%s: write", kind);
	rec = jsonl_next(in, &e);
	ok(rec != NULL, "%s: record on an open pipe", kind);
	json_decref(rec);
	ok(!strcmp(jsonl_name(in), "<stdin>") && jsonl_lineno(in) == 1, "%s: place", kind);
	close(p[1]);
	ok(!jsonl_next(in, &e) && e.status == EX_DATAERR, "%s: half a record is an error", kind);
	alarm(0);
	jsonl_close(in);
	close(p[0]);
	dup2(saved, 0);
	close(saved);
}

/* A signal that only asks for a checkpoint must not leave the reader deaf to the one that stops. */
static void test_stop(void)
{
	struct err e = {0};
	struct jsonl *in;
	int fd[2];
	pid_t pid;

	sig_install();
	if (pipe(fd))
		return;
	pid = fork();
	if (pid == 0) {
		usleep(50000);
		kill(getppid(), SIGUSR1);
		usleep(50000);
		kill(getppid(), SIGTERM);
		sleep(5);		/* the pipe stays open: its end would end the wait, too */
		_exit(0);
	}
	close(fd[1]);
	dup2(fd[0], STDIN_FILENO);
	close(fd[0]);
	in = jsonl_open(0, NULL, false, &e);
	ok(!jsonl_next(in, &e) && e.status == EX_TEMPFAIL && sig_save,
	    "SIGUSR1 and SIGTERM during a wait: stopped");
	jsonl_close(in);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static void test_open(void)
{
	char *const both[] = { put("a", "{\"n\":1}", 7), put("b", "{\"n\":2}\n", 8) },
	    *const none[] = { "/nonexistent" };
	char *const folder[] = { dir };
	struct err e = {0};
	struct jsonl *in = jsonl_open(2, both, false, &e);
	json_t *rec = jsonl_next(in, &e);

	json_decref(rec);
	rec = jsonl_next(in, &e);
	ok(rec && !strcmp(jsonl_name(in), both[1]) && jsonl_lineno(in) == 1,
	    "a file without final newline, then another");
	json_decref(rec);
	ok(jsonl_bad(in, &e, "missing \"%s\"", "text") == -1 &&
	    strstr(e.msg, "/b:1: missing \"text\""), "jsonl_bad");
	jsonl_close(in);
	e = (struct err){0};
	ok(!jsonl_open(1, none, false, &e) && e.status == EX_NOINPUT, "missing file: 66 at once");
	ok(!jsonl_open(1, folder, false, &e) && e.status == EX_NOINPUT, "a directory: 66");
	free(both[0]);
	free(both[1]);
}

static void test_put(void)
{
	char *text = NULL;
	size_t size;
	struct err e = {0};
	FILE *f = open_memstream(&text, &size), *full = fopen("/dev/full", "w");
	json_t *o = json_object();

	json_set_str(o, "type", "step");
	json_set_int(o, "n", (int64_t)1 << 53);
	json_set_num(o, "x", 1.0 / 3);
	json_set_num(o, "nan", NAN);
	json_set_str(o, "s", "é\n");
	ok(json_put(f, o, &e) == 0, "json_put");
	fclose(f);
	ok(!strcmp(text, "{\"type\":\"step\",\"n\":9007199254740992,\"x\":0.333333333,\"nan\":null,"
	    "\"s\":\"é\\n\"}\n"),
		"order, %%.9g, null for NaN, UTF-8 kept");
	if (full) {
		ok(json_put(full, o, &e) == -1 && e.status == EX_IOERR, "a full disk is 74");
		fclose(full);
	}
	json_decref(o);
	free(text);
}

int main(void)
{
	struct err e = {0};

	if (!mkdtemp(dir))
		return 1;
	if (!freopen("/dev/null", "w", stderr))	/* warnings of skip-bad */
		return 1;
	test_plain();
	test_deep();
	test_long();
	test_gzip();
	test_live(false);
	test_live(true);
	test_open();
	test_put();
	test_stop();
	file_remove_tree(dir, &e);
	return tap_done();
}
