/* Going through files by blocks: the same lines however they are cut, the same items whatever
 * the number of threads. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/pool.h"
#include "text/record_load.h"
#include "text/record.h"
#include "base/rng.h"
#include "tap.h"

static char dir[] = "/tmp/recload.XXXXXX", path[64], zipped[64], bad[64];
static struct tok *tok;

/* A record of n bytes with its newline, of words that repeat; text of any length. */
static void put_record(FILE *f, int i, size_t n)
{
	static const char frame[] = "{\"text\":\"\"}\n";
	size_t left = n - (sizeof frame - 1);

	fputs("{\"text\":\"", f);
	for (size_t k = 0; k < left; k++)
		fputc(" etaoinshrdlucmfw"[rng_below(3, (uint64_t)i, k, 17)], f);
	fputs("\"}\n", f);
}

/* Records that end where a block does, blank lines, a record longer than several blocks, and no
 * newline at the end. */
static void make_files(void)
{
	FILE *f = fopen(path, "w");
	char command[200];

	for (int i = 0; i < 160; i++)
		put_record(f, i, 1024);
	for (int i = 0; i < 900; i++)
		put_record(f, i, 12 + (size_t)rng_below(4, 0, (uint64_t)i, 300));
	fputs("\n \t\n\r\n", f);
	put_record(f, 2000, 200000);
	for (int i = 0; i < 100; i++)
		put_record(f, i, 40);
	fputs("{\"text\":\"the end\"}", f);
	fclose(f);
	snprintf(command, sizeof command, "gzip -c %s > %s", path, zipped);
	ok(system(command) == 0, "gzip");
}

static void make_bad(void)
{
	FILE *f = fopen(bad, "w");

	for (int i = 0; i < 3000; i++) {
		if (i == 1200 || i == 1201 || i == 2500)
			fputs(i == 1200 ? "{\"text\":}\n" : i == 1201 ? "[]\n\n"
			    : "{\"messages\":[]}\n", f);
		put_record(f, i, 100);
	}
	fclose(f);
}

static int item(const void *self, struct tok *t, const json_t *rec, struct ids *out,
    struct record_count *n,
    struct err *why)
{
	(void)self;
	n->cut += json_string_length(json_object_get(rec, "text")) > 1000;
	return record_document(rec, t, 0, out, why);
}

static struct record_kind kind = { .item = item };

struct all {			/* of a file */
	int64_t n, words, skipped;
	int64_t *place;
	uint32_t *len, *word;
	struct record_count count;
	struct err e;
};

static void add(struct all *a, int64_t place, const uint32_t *word, uint32_t len)
{
	a->place = realloc(a->place, (size_t)(a->n + 1) * sizeof *a->place);
	a->len = realloc(a->len, (size_t)(a->n + 1) * sizeof *a->len);
	a->word = realloc(a->word, (size_t)(a->words + len + 1) * sizeof *a->word);
	a->place[a->n] = place;
	a->len[a->n++] = len;
	memcpy(a->word + a->words, word, len * sizeof *word);
	a->words += len;
}

static void drop(struct all *a)
{
	free(a->place);
	free(a->len);
	free(a->word);
}

static int same(const struct all *a, const struct all *b)
{
	return a->n == b->n && a->words == b->words && memcmp(a->place, b->place,
	    (size_t)a->n * sizeof *a->place) == 0 &&
	    memcmp(a->len, b->len, (size_t)a->n * sizeof *a->len) == 0 &&
	    memcmp(a->word, b->word, (size_t)a->words * sizeof *a->word) == 0 &&
	    a->count.cut == b->count.cut &&
	    a->e.status == b->e.status && strcmp(a->e.msg, b->e.msg) == 0;
}

/* What one thread makes that reads line after line. */
static struct all one_by_one(char *file, bool skip_bad)
{
	struct all a = {0};
	struct jsonl *in = jsonl_open(1, &file, skip_bad, &a.e);
	struct ids ids = {0};

	while (record_file_item(in, &kind, &ids, &a.count, &a.e) > 0)
		add(&a, jsonl_offset(in), ids.v, (uint32_t)ids.n);
	a.skipped = jsonl_skipped(in);
	jsonl_close(in);
	ids_free(&ids);
	return a;
}

/* What blocks and threads make; words only up to room. */
static struct all by_blocks(const char *file, bool skip_bad, int threads, int64_t room)
{
	const struct record_load_block *b;
	struct all a = {0};
	struct record_load *l;
	struct record_file *f;
	int64_t words = 0;
	int rc;

	pool_init(threads);
	l = record_load_open(&kind, skip_bad);
	f = record_file_open(file, &kind, 1, &a.e);
	rc = record_load_begin(l, f, file, &a.e);
	while (rc == 0 && (rc = record_load_next(l, room - words > 0 ? room - words : 0, &b, &a.e))
	    == 0) {
		const uint32_t *word = b->word;

		for (int64_t i = 0; i < b->n; i++) {
			bool there = words + b->len[i] <= room;

			add(&a, b->place[i], word, there ? b->len[i] : 0);
			words = there ? words + b->len[i] : room;
			a.len[a.n - 1] = b->len[i];
			word += b->len[i];
		}
		if (b->end)
			break;
	}
	a.count = *record_load_count(l);
	record_load_end(l);
	record_load_close(l);
	record_file_close(f);
	pool_quit();
	return a;
}

static void test_threads(char *file, const char *name)
{
	struct all one = one_by_one(file, false), few;

	for (int threads = 1; threads < 8; threads += threads) {
		struct all a = by_blocks(file, false, threads, INT64_MAX);

		ok(same(&a, &one) && a.n > 1000, "%s: %d threads: the items of one", name, threads);
		drop(&a);
	}
	few = by_blocks(file, false, 3, 20000);
	ok(few.n == one.n && few.words <= 20000 && few.words > 19000 &&
	    memcmp(few.len, one.len, (size_t)one.n * sizeof *one.len) == 0 &&
	    memcmp(few.word, one.word, (size_t)few.words * sizeof *one.word) == 0,
	    "%s: all lengths, and the first words", name);
	drop(&few);
	drop(&one);
}

static void test_bad(void)
{
	struct all one = one_by_one(bad, false), skip = one_by_one(bad, true), a;

	ok(strstr(one.e.msg, ":1201: ") != NULL, "a bad record: %s", one.e.msg);
	for (int threads = 1; threads < 4; threads++) {
		a = by_blocks(bad, false, threads, INT64_MAX);
		ok(a.e.status == one.e.status && strcmp(a.e.msg, one.e.msg) == 0,
		    "%d threads: the same message: %s", threads, a.e.msg);
		drop(&a);
		a = by_blocks(bad, true, threads, INT64_MAX);
		ok(same(&a, &skip) && skip.skipped == 3, "%d threads: passed over, the same items",
		    threads);
		drop(&a);
	}
	drop(&one);
	drop(&skip);
}

/* All lines, by processes that take every n-th block, are those of the file. */
static int same_lines(char *file, int parts)
{
	struct record_file *f[8];
	struct record_file_block b = {0};
	struct err e = {0};
	struct jsonl *in = jsonl_open(1, &file, false, &e);
	int good = 1, blocks = 0;
	const char *s;
	size_t len;

	for (int p = 0; p < parts; p++)
		f[p] = record_file_open(file, &kind, parts, &e);
	for (int64_t k = 0; !b.end && good; k++, blocks++) {
		good &= record_file_read(f[k % parts], k, &b, &e) == 0;
		for (int64_t i = 0; i < b.lines.count && good; i++) {
			s = jsonl_line(in, &len, &e);
			good = s != NULL && len == b.lines.line[i].len &&
			    memcmp(s, lineblock_text(&b.lines, i), len + 1) == 0 &&
			    jsonl_offset(in) == b.lines.line[i].place;
		}
	}
	good &= jsonl_line(in, &len, &e) == NULL && e.status == 0 && blocks > 4;
	jsonl_close(in);
	lineblock_free(&b.lines);
	for (int p = 0; p < parts; p++)
		record_file_close(f[p]);
	return good;
}

int main(void)
{
	struct err e = {0};

	err_init("recload");
	if (mkdtemp(dir) == NULL || (tok = tok_load("tests/data/tok/gpt2.json", &e)) == NULL)
		return printf("Bail out! %s\n", e.msg);
	kind.tok = tok;
	snprintf(path, sizeof path, "%s/records.jsonl", dir);
	snprintf(zipped, sizeof zipped, "%s/records.gz", dir);
	snprintf(bad, sizeof bad, "%s/bad.jsonl", dir);
	make_files();
	make_bad();
	for (int parts = 1; parts <= 8; parts++)
		ok(same_lines(path, parts) && same_lines(zipped, parts),
		    "blocks for %d have the lines of the file", parts);
	test_threads(path, "a file");
	test_threads(zipped, "gzip");
	err_rank = 1;		/* whose warnings nobody hears */
	test_bad();
	unlink(path);
	unlink(zipped);
	unlink(bad);
	rmdir(dir);
	tok_free(tok);
	return tap_done();
}
