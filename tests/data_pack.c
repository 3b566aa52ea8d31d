/* Packing: every token once, targets within documents, order, position, pipes, shards. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "text/corpus.h"
#include "train/docpack.h"
#include "base/rng.h"
#include "format/safetensors.h"
#include "tap.h"

enum { DOCS = 37, T = 16, B = 3, VOCAB = 1000 };

static char dir[] = "/tmp/data_pack.XXXXXX", jsonl[64], shard[64], pipe_path[64];
static uint32_t doc[DOCS][40];
static int len[DOCS];

/* Documents of distinct tokens: document i holds i * 25 .. so that a token tells where it comes
 * from. */
static void make_docs(void)
{
	FILE *f = fopen(jsonl, "w");

	for (int i = 0; i < DOCS; i++) {
		len[i] = 1 + (int)rng_below(7, 1, (uint64_t)i, 25);
		fprintf(f, "{\"tokens\":[");
		for (int j = 0; j < len[i]; j++)
			fprintf(f, "%s%d", j ? "," : "", doc[i][j] = (uint32_t)(i * 25 + j));
		fprintf(f, "]}\n");
	}
	fclose(f);
}

static void make_shard(void)
{
	struct st_error e;
	struct st_writer *w = st_writer_create(shard, &e);
	int64_t off[DOCS + 1] = {0};
	uint64_t n, docs = DOCS + 1;

	for (int i = 0; i < DOCS; i++)
		off[i + 1] = off[i] + len[i];
	n = (uint64_t)off[DOCS];
	st_writer_add(w, "tokens", ST_U16, 1, &n, 0, &e);
	st_writer_add(w, "offsets", ST_I64, 1, &docs, 0, &e);
	st_writer_begin(w, &e);
	for (int i = 0; i < DOCS; i++)
		for (int j = 0; j < len[i]; j++)
			st_writer_data(w, &(uint16_t){ (uint16_t)doc[i][j] }, 2, &e);
	st_writer_data(w, off, sizeof off, &e);
	ok(st_writer_finish(w, &e) == 0, "shard written");
}

struct rows {			/* batches as they came */
	int n;
	uint32_t tok[400 * T];
	int32_t target[400 * T], start[400 * T];
};

/* Up to `most` batches of d into r. */
static void collect(struct docpack *d, struct rows *r, int most)
{
	struct batch b = {0};
	struct err e = {0};
	int rc = 1;

	for (r->n = 0; most-- > 0 && r->n + B <= 400; r->n += b.B) {
		b.tok = r->tok + r->n * T;
		b.target = r->target + r->n * T;
		b.doc_start = r->start + r->n * T;
		if ((rc = docpack_next(d, &b, B, &e)) <= 0)
			break;
	}
	if (rc < 0)
		ok(0, "docpack_next: %s", e.msg);
}

static int total_tokens(void)
{
	int n = 0;

	for (int i = 0; i < DOCS; i++)
		n += len[i];
	return n;
}

/* Every row's place agrees with the documents, which shuffling cut into pieces of a row: right
 * neighbours, right targets, right starts. */
static int consistent(const struct rows *r, int *tokens)
{
	int good = 1, *seen = calloc(VOCAB, sizeof *seen);

	*tokens = 0;
	for (int i = 0; i < r->n * T; i++) {
		int t = i % T, id = (int)r->tok[i] / 25, at = (int)r->tok[i] % 25, s = r->start[i];

		if (s < 0) {
			good &= r->target[i] == -1;
			continue;
		}
		++*tokens;
		seen[r->tok[i]]++;
		good &= at < len[id] && r->target[i] == (at + 1 < len[id] && (at + 1) % T
		    ? (int32_t)doc[id][at + 1] : -1);
		good &= s <= t && (int)r->tok[i - t + s] == (int)r->tok[i] - (t - s);
		good &= s == 0 || r->tok[i - t + s] % 25 % T == 0;
	}
	for (int i = 0; i < VOCAB; i++)
		good &= seen[i] <= 1;
	free(seen);
	return good;
}

static int64_t ram = 1 << 20, window;

static struct docpack *open_data(char *path, bool shuffle, double epochs)
{
	static char *file;
	struct docpack_opt o = { .vocab = VOCAB, .T = T, .shuffle = shuffle, .seed = 3,
	    .epochs = epochs,
	    .ram = ram, .window = window };
	struct err e = {0};
	struct docpack *d;

	file = path;		/* a pipe's name is looked at until it is closed */
	if ((d = docpack_open(1, &file, &o, &e)) == NULL)
		ok(0, "%s: %s", file, e.msg);
	return d;
}

static void test_epoch(struct rows *r)
{
	struct docpack *d = open_data(jsonl, true, 1);
	int n, pieces = 0;

	for (int i = 0; i < DOCS; i++)
		pieces += (len[i] + T - 1) / T;
	ok(docpack_docs(d) == pieces && docpack_tokens(d) == total_tokens(),
	    "all documents read, long ones in pieces");
	ok(docpack_rows(d) == (total_tokens() + T - 1) / T, "rows known in advance");
	collect(d, r, 1000);
	ok(r->n == docpack_rows(d), "as many rows as said");
	ok(consistent(r, &n), "targets, starts and neighbours are those of the documents");
	ok(n == total_tokens(), "every token once");
	docpack_close(d);
}

static void test_limits(struct rows *r)
{
	struct docpack *d = open_data(jsonl, true, 2.5);
	int n = 0;

	collect(d, r, 1000);
	for (int i = 0; i < r->n * T; i++)
		n += r->start[i] >= 0;
	ok(n == (int)(2.5 * total_tokens() + 0.5), "two and a half epochs");
	docpack_close(d);
}

/* From any batch on, a seek gives what went on without one: across epochs too. */
static void test_position(struct rows *r, struct rows *other)
{
	struct err e = {0};
	int bad = 0;

	for (int k = 0; k < 30; k++) {
		struct docpack *a = open_data(jsonl, true, 0), *b = open_data(jsonl, true, 0);
		json_t *p;
		char *text;

		collect(a, r, k);
		p = docpack_position(a);
		text = json_dumps(p, 0);
		json_decref(p);
		p = json_loads(text, 0, NULL);
		collect(a, r, 12);
		bad += docpack_seek(b, p, &e) != 0;
		collect(b, other, 12);
		bad += r->n != other->n || memcmp(r->tok, other->tok, (size_t)r->n * T * 4) != 0 ||
		    memcmp(r->target, other->target, (size_t)r->n * T * 4) != 0;
		json_decref(p);
		free(text);
		docpack_close(a);
		docpack_close(b);
	}
	ok(bad == 0, "seek is exact");
}

static void test_order(struct rows *r, struct rows *other)
{
	struct docpack *d = open_data(jsonl, false, 1), *s;
	int plain = 1;

	collect(d, r, 1000);
	for (int i = 1; i < total_tokens(); i++)
		plain &= r->tok[i] > r->tok[i - 1];
	ok(plain, "without --shuffle in order");
	s = open_data(shard, false, 1);
	collect(s, other, 1000);
	ok(r->n == other->n && memcmp(r->tok, other->tok, (size_t)r->n * T * 4) == 0,
	    "a shard gives the same rows");
	docpack_close(s);
	docpack_close(d);
	d = open_data(jsonl, true, 0);
	collect(d, other, 1000);
	ok(memcmp(r->tok, other->tok, 20 * T) != 0, "shuffled otherwise");
	ok(memcmp(other->tok, other->tok + total_tokens(), 20 * T) != 0,
	    "each epoch in another order");
	docpack_close(d);
}

/* A pipe: same rows as the file unshuffled; a second one, read up to a position, goes on from
 * there. */
static FILE *feed(void)
{
	char cmd[256];

	snprintf(cmd, sizeof cmd, "cat %s > %s", jsonl, pipe_path);
	return popen(cmd, "r");
}

static void test_pipe(struct rows *r, struct rows *other)
{
	struct docpack *d = open_data(jsonl, false, 1), *p;
	struct err e = {0};
	json_t *at;
	FILE *f = feed();

	collect(d, r, 1000);
	docpack_close(d);
	p = open_data(pipe_path, true, 5);
	ok(docpack_streams(p) && docpack_rows(p) == -1, "a pipe is known as one");
	collect(p, other, 4);
	at = docpack_position(p);
	ok(other->n == 4 * B && memcmp(r->tok, other->tok, (size_t)other->n * T * 4) == 0,
	    "rows of a pipe in order");
	collect(p, other, 1000);
	ok(other->n == r->n - 4 * B, "a pipe ends once");
	pclose(f);
	docpack_close(p);
	f = feed();
	p = open_data(pipe_path, true, 5);
	ok(docpack_seek(p, at, &e) == 0, "seek on a pipe");
	collect(p, other, 1000);
	ok(other->n == r->n - 4 * B && memcmp(r->tok + 4 * B * T, other->tok, (size_t)other->n * T *
	    4) == 0,
	    "and it goes on from there");
	pclose(f);
	docpack_close(p);
	json_decref(at);
}

/* With only a part of the data in memory, or nothing, the rows are the same, and so is the way
 * back. */
static void test_index(struct rows *r, struct rows *other, char *path)
{
	int bad = 0, less = 1;
	int64_t all;

	for (int shuffle = 0; shuffle < 2; shuffle++) {
		struct docpack *d = open_data(path, shuffle, 3);

		collect(d, r, 1000);
		all = docpack_bytes(d);
		docpack_close(d);
		for (ram = 0; ram <= 800; ram += 400) {
			d = open_data(path, shuffle, 3);
			less &= docpack_bytes(d) < all;
			collect(d, other, 1000);
			bad += r->n != other->n || memcmp(r->tok, other->tok, (size_t)r->n * T * 4)
			    != 0 ||
			    memcmp(r->target, other->target, (size_t)r->n * T * 4) != 0;
			docpack_close(d);
		}
		ram = 1 << 20;
	}
	ok(bad == 0, "%s: the same rows from an index", path);
	ok(less, "in less memory");
}

static void run_shell(const char *fmt, const char *a, const char *b)
{
	char cmd[300];

	snprintf(cmd, sizeof cmd, fmt, a, b);
	if (system(cmd) != 0)
		ok(0, "%s", cmd);
}

static void test_changes(struct rows *r)
{
	char copy[80], *text;
	struct docpack *d;
	struct batch b = { .tok = r->tok, .target = r->target, .doc_start = r->start };
	struct err e = {0};

	snprintf(copy, sizeof copy, "%s/copy.jsonl", dir);
	run_shell("cp %s %s", jsonl, copy);
	ram = 0;
	d = open_data(copy, true, 0);
	run_shell("rm %s", copy, "");
	ok(docpack_next(d, &b, B, &e) == 1, "a file that was removed is still there for who reads "
	    "it");
	docpack_close(d);
	run_shell("cp %s %s", jsonl, copy);
	d = open_data(copy, true, 0);
	corpus_forget(docpack_corpus(d));
	ok(docpack_next(d, &b, B, &e) == 1 && corpus_touched(docpack_corpus(d)) > 0,
	    "records are noted");
	text = corpus_where(docpack_corpus(d), 0);
	snprintf(e.msg, sizeof e.msg, "%s:%d", copy, 1 + (int)r->tok[0] / 25);
	ok(strcmp(text, e.msg) == 0, "and named: %s", text);
	free(text);
	run_shell("echo >> %s", copy, "");
	ok(docpack_next(d, &b, B, &e) == -1 && e.status == EX_DATAERR && strstr(e.msg, "copy.jsonl")
	    != NULL,
	    "a changed file is refused: %s", e.msg);
	docpack_close(d);
	ram = 1 << 20;
	unlink(copy);
}

static int64_t bytes_read(void)	/* by this process */
{
	FILE *f = fopen("/proc/self/io", "r");
	long long n = 0;

	if (f == NULL || fscanf(f, "rchar: %lld", &n) != 1)
		n = -1;
	if (f != NULL)
		fclose(f);
	return n;
}

/* Two ranks, of which each goes by the rows of the other: together they have all rows, and what
 * is passed is not read. */
static void test_pass(struct rows *r, struct rows *dealt, char *file)
{
	struct docpack *d, *half[2];
	struct batch b = { .B = 0 };
	struct err e = {0};
	int64_t before, after;
	int rc = 1, passed = 1;

	ram = 0;
	d = open_data(file, true, 3);
	collect(d, r, 1000);
	docpack_close(d);
	half[0] = open_data(file, true, 3);
	half[1] = open_data(file, true, 3);
	dealt->n = 0;
	for (int k = 0; rc > 0 && rc == passed && dealt->n + B <= 400; k = !k, dealt->n += b.B) {
		b.tok = dealt->tok + dealt->n * T;
		b.target = dealt->target + dealt->n * T;
		b.doc_start = dealt->start + dealt->n * T;
		rc = docpack_next(half[k], &b, B, &e);
		passed = docpack_next(half[!k], NULL, B, &e);
	}
	ok(rc == passed && dealt->n == r->n && memcmp(r->tok, dealt->tok, (size_t)r->n * T * 4) ==
	    0 &&
	    memcmp(r->target, dealt->target, (size_t)r->n * T * 4) == 0,
	    "rows dealt to two are the rows of one");
	docpack_close(half[0]);
	docpack_close(half[1]);
	d = open_data(file, true, 0);
	before = bytes_read();
	after = bytes_read();
	rc = docpack_next(d, NULL, 1000, &e);
	after = bytes_read() - after - (after - before);	/* looking is reading too */
	ok(rc == 1 && after < 16, "and rows passed are not read: %d bytes", (int)after);
	docpack_close(d);
	ram = 1 << 20;
}

static void test_gzip(struct rows *r, struct rows *other)
{
	char zipped[80], *file = zipped;
	struct docpack_opt o = { .vocab = VOCAB, .T = T, .epochs = 1, .ram = 100 };
	struct docpack *d = open_data(jsonl, true, 2);
	struct err e = {0};

	snprintf(zipped, sizeof zipped, "%s/docs.gz", dir);
	run_shell("gzip -c %s > %s", jsonl, zipped);
	collect(d, r, 1000);
	docpack_close(d);
	d = open_data(zipped, true, 2);
	collect(d, other, 1000);
	docpack_close(d);
	ok(r->n == other->n && memcmp(r->tok, other->tok, (size_t)r->n * T * 4) == 0,
	    "gzip gives the same rows");
	ok(docpack_open(1, &file, &o, &e) == NULL && e.status == EX_OSERR,
	    "gzip that cannot be kept is refused: %s", e.msg);
	unlink(zipped);
}

/* Every token once, in another order, and a seek is exact; another window is refused. */
static void test_window(struct rows *r, struct rows *other)
{
	struct docpack *p;
	struct err e = {0};
	json_t *at;
	FILE *f = feed();
	int n, rest;

	window = 9;
	p = open_data(pipe_path, true, 1);
	collect(p, r, 1000);
	ok(consistent(r, &n) && n == total_tokens(),
	    "a window: every token once, in pieces of a row");
	ok(r->tok[0] / 25 > 0 || r->tok[T] / 25 > 1, "not in order");
	pclose(f);
	docpack_close(p);
	f = feed();
	p = open_data(pipe_path, true, 1);
	collect(p, other, 3);
	at = docpack_position(p);
	n = other->n;
	pclose(f);
	docpack_close(p);
	f = feed();
	p = open_data(pipe_path, true, 1);
	ok(docpack_seek(p, at, &e) == 0, "seek in a window");
	collect(p, other, 1000);
	rest = r->n - n;
	ok(other->n == rest && memcmp(r->tok + n * T, other->tok, (size_t)rest * T * 4) == 0,
	    "and it goes on from there");
	pclose(f);
	docpack_close(p);
	window = 8;
	p = open_data(pipe_path, true, 1);
	ok(docpack_seek(p, at, &e) < 0 && e.status == EX_USAGE, "another window is refused: %s",
	    e.msg);
	docpack_close(p);
	json_decref(at);
	window = 0;
}

/* Tokens below 500 come from one file, the others from another. */
static void test_mix(struct rows *r, struct rows *other)
{
	char a[80], b[80], odd[80], mix_a[90], mix_b[90], whole[90], *files[2] = { mix_a, mix_b },
	    *one = whole;
	struct docpack_opt o = { .vocab = VOCAB, .T = T, .shuffle = true, .seed = 5, .epochs = 10,
	    .ram = 1 << 20 };
	struct err e = {0};
	struct docpack *d;
	int low = 0, all = 0, apart = 0;
	json_t *at;

	snprintf(a, sizeof a, "%s/a.jsonl", dir);
	snprintf(b, sizeof b, "%s/b.jsonl", dir);
	snprintf(odd, sizeof odd, "%s/a.jsonl:7", dir);
	snprintf(mix_a, sizeof mix_a, "%s:0.75", a);
	snprintf(mix_b, sizeof mix_b, "%s:0.25", b);
	run_shell("head -20 %s > %s", jsonl, a);
	run_shell("tail -n +21 %s > %s", jsonl, b);
	d = docpack_open(2, files, &o, &e);
	ok(d != NULL && docpack_tokens(d) == total_tokens(), "two files with shares");
	collect(d, r, 7);
	at = docpack_position(d);
	collect(d, r, 100);
	for (int i = 0; i < r->n * T; i++) {
		all += r->start[i] >= 0;
		low += r->start[i] >= 0 && r->tok[i] < 500;
		apart += r->start[i] >= 0 && abs(4 * low - 3 * all) > 6 * 25;
	}
	ok(apart == 0 && low > total_tokens(), "three quarters of the tokens are of the first, at "
	    "any time");
	docpack_close(d);
	o.ram = 0;
	d = docpack_open(2, files, &o, &e);
	ok(docpack_seek(d, at, &e) == 0, "seek in a mix");
	collect(d, other, 100);
	ok(r->n == other->n && memcmp(r->tok, other->tok, (size_t)r->n * T * 4) == 0,
	    "is exact, from an index too");
	docpack_close(d);
	snprintf(mix_b, sizeof mix_b, "%s:0.5", b);
	d = docpack_open(2, files, &o, &e);
	ok(docpack_seek(d, at, &e) < 0 && e.status == EX_USAGE, "another share is refused: %s",
	    e.msg);
	docpack_close(d);
	json_decref(at);
	snprintf(mix_b, sizeof mix_b, "%s", b);
	ok(docpack_open(2, files, &o, &e) == NULL && e.status == EX_USAGE,
	    "a share for some only: %s", e.msg);
	snprintf(mix_b, sizeof mix_b, "%s:0.5", pipe_path);
	ok(docpack_open(2, files, &o, &e) == NULL && e.status == EX_USAGE, "a share of a pipe: %s",
	    e.msg);
	e = (struct err){0};
	run_shell("cp %s %s", b, odd);
	snprintf(whole, sizeof whole, "%s", odd);
	d = docpack_open(1, &one, &o, &e);
	ok(d != NULL, "a file whose name ends like a share is that file: %s", d ? "" : e.msg);
	collect(d, r, 1);
	ok(r->tok[0] >= 500, "with its own records");
	docpack_close(d);
	unlink(a);
	unlink(b);
	unlink(odd);
}

static void refuses(const char *text, const char *name, const char *want)
{
	struct docpack_opt o = { .vocab = VOCAB, .T = T, .epochs = 1 };
	struct err e = {0};
	char path[80], *file = path;
	FILE *f;

	snprintf(path, sizeof path, "%s/%s", dir, name);
	f = fopen(path, "w");
	fputs(text, f);
	fclose(f);
	ok(docpack_open(1, &file, &o, &e) == NULL && strstr(e.msg, want) != NULL, "%s: %s", name,
	    e.msg);
	unlink(path);
}

int main(void)
{
	struct rows *r = malloc(sizeof *r), *other = malloc(sizeof *other);

	if (mkdtemp(dir) == NULL || r == NULL || other == NULL)
		return 1;
	snprintf(jsonl, sizeof jsonl, "%s/docs.jsonl", dir);
	snprintf(shard, sizeof shard, "%s/docs.safetensors", dir);
	snprintf(pipe_path, sizeof pipe_path, "%s/pipe", dir);
	mkfifo(pipe_path, 0600);
	make_docs();
	make_shard();
	test_epoch(r);
	test_limits(r);
	test_position(r, other);
	test_order(r, other);
	test_pipe(r, other);
	test_index(r, other, jsonl);
	test_index(r, other, shard);
	test_changes(r);
	test_pass(r, other, jsonl);
	test_pass(r, other, shard);
	test_gzip(r, other);
	test_window(r, other);
	test_mix(r, other);
	refuses("", "empty", "no documents");
	refuses("{\"tokens\":[1,2]}\n{\"tokens\":[1000]}\n", "large", "large:2:");
	refuses("{\"tokens\":[-1]}\n", "negative", "negative:1:");
	refuses("{\"text\":\"words\"}\n", "text", "tokenizer");
	refuses("not a shard", "bad.safetensors", "bad.safetensors");
	unlink(jsonl);
	unlink(shard);
	unlink(pipe_path);
	rmdir(dir);
	free(r);
	free(other);
	return tap_done();
}
