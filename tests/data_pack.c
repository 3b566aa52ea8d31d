/* Packing: every token once, targets within documents, order, position, pipes, shards. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "data.h"
#include "rng.h"
#include "safetensors.h"
#include "tap.h"

enum { DOCS = 37, T = 16, B = 3, VOCAB = 1000 };

static char dir[] = "/tmp/data_pack.XXXXXX", jsonl[64], shard[64], pipe_path[64];
static uint32_t doc[DOCS][40];
static int len[DOCS];

/* Documents of distinct tokens: document i holds i * 25 .. so that a token tells where it comes from. */
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
static void collect(struct data *d, struct rows *r, int most)
{
	struct batch b = {0};
	struct err e = {0};
	int rc = 1;

	for (r->n = 0; most-- > 0 && r->n + B <= 400; r->n += b.B) {
		b.tok = r->tok + r->n * T;
		b.target = r->target + r->n * T;
		b.doc_start = r->start + r->n * T;
		if ((rc = data_next(d, &b, B, &e)) <= 0)
			break;
	}
	if (rc < 0)
		ok(0, "data_next: %s", e.msg);
}

static int total_tokens(void)
{
	int n = 0;

	for (int i = 0; i < DOCS; i++)
		n += len[i];
	return n;
}

/* Every row's place agrees with the documents, which shuffling cut into pieces of a row: right neighbours, right
 * targets, right starts. */
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
		good &= at < len[id] && r->target[i] == (at + 1 < len[id] && (at + 1) % T ? (int32_t)doc[id][at + 1] : -1);
		good &= s <= t && (int)r->tok[i - t + s] == (int)r->tok[i] - (t - s);
		good &= s == 0 || r->tok[i - t + s] % 25 % T == 0;
	}
	for (int i = 0; i < VOCAB; i++)
		good &= seen[i] <= 1;
	free(seen);
	return good;
}

static struct data *open_data(char *path, bool shuffle, double epochs)
{
	static char *file;
	struct data_opt o = { .vocab = VOCAB, .T = T, .shuffle = shuffle, .seed = 3, .epochs = epochs };
	struct err e = {0};
	struct data *d;

	file = path;		/* a pipe's name is looked at until it is closed */
	if ((d = data_open(1, &file, &o, &e)) == NULL)
		ok(0, "%s: %s", file, e.msg);
	return d;
}

static void test_epoch(struct rows *r)
{
	struct data *d = open_data(jsonl, true, 1);
	int n, pieces = 0;

	for (int i = 0; i < DOCS; i++)
		pieces += (len[i] + T - 1) / T;
	ok(data_docs(d) == pieces && data_tokens(d) == total_tokens(), "all documents read, long ones in pieces");
	ok(data_rows(d) == (total_tokens() + T - 1) / T, "rows known in advance");
	collect(d, r, 1000);
	ok(r->n == data_rows(d), "as many rows as said");
	ok(consistent(r, &n), "targets, starts and neighbours are those of the documents");
	ok(n == total_tokens(), "every token once");
	data_close(d);
}

static void test_limits(struct rows *r)
{
	struct data *d = open_data(jsonl, true, 2.5);
	int n = 0;

	collect(d, r, 1000);
	for (int i = 0; i < r->n * T; i++)
		n += r->start[i] >= 0;
	ok(n == (int)(2.5 * total_tokens() + 0.5), "two and a half epochs");
	data_close(d);
}

/* From any batch on, a seek gives what went on without one: across epochs too. */
static void test_position(struct rows *r, struct rows *other)
{
	struct err e = {0};
	int bad = 0;

	for (int k = 0; k < 30; k++) {
		struct data *a = open_data(jsonl, true, 0), *b = open_data(jsonl, true, 0);
		json_t *p;
		char *text;

		collect(a, r, k);
		p = data_position(a);
		text = json_dumps(p, 0);
		json_decref(p);
		p = json_loads(text, 0, NULL);
		collect(a, r, 12);
		bad += data_seek(b, p, &e) != 0;
		collect(b, other, 12);
		bad += r->n != other->n || memcmp(r->tok, other->tok, (size_t)r->n * T * 4) != 0 ||
		    memcmp(r->target, other->target, (size_t)r->n * T * 4) != 0;
		json_decref(p);
		free(text);
		data_close(a);
		data_close(b);
	}
	ok(bad == 0, "seek is exact");
}

static void test_order(struct rows *r, struct rows *other)
{
	struct data *d = open_data(jsonl, false, 1), *s;
	int plain = 1;

	collect(d, r, 1000);
	for (int i = 1; i < total_tokens(); i++)
		plain &= r->tok[i] > r->tok[i - 1];
	ok(plain, "without --shuffle in order");
	s = open_data(shard, false, 1);
	collect(s, other, 1000);
	ok(r->n == other->n && memcmp(r->tok, other->tok, (size_t)r->n * T * 4) == 0, "a shard gives the same rows");
	data_close(s);
	data_close(d);
	d = open_data(jsonl, true, 0);
	collect(d, other, 1000);
	ok(memcmp(r->tok, other->tok, 20 * T) != 0, "shuffled otherwise");
	ok(memcmp(other->tok, other->tok + total_tokens(), 20 * T) != 0, "each epoch in another order");
	data_close(d);
}

/* A pipe: same rows as the file unshuffled; a second one, read up to a position, goes on from there. */
static FILE *feed(void)
{
	char cmd[256];

	snprintf(cmd, sizeof cmd, "cat %s > %s", jsonl, pipe_path);
	return popen(cmd, "r");
}

static void test_pipe(struct rows *r, struct rows *other)
{
	struct data *d = open_data(jsonl, false, 1), *p;
	struct err e = {0};
	json_t *at;
	FILE *f = feed();

	collect(d, r, 1000);
	data_close(d);
	p = open_data(pipe_path, true, 5);
	ok(data_streams(p) && data_rows(p) == -1, "a pipe is known as one");
	collect(p, other, 4);
	at = data_position(p);
	ok(other->n == 4 * B && memcmp(r->tok, other->tok, (size_t)other->n * T * 4) == 0, "rows of a pipe in order");
	collect(p, other, 1000);
	ok(other->n == r->n - 4 * B, "a pipe ends once");
	pclose(f);
	data_close(p);
	f = feed();
	p = open_data(pipe_path, true, 5);
	ok(data_seek(p, at, &e) == 0, "seek on a pipe");
	collect(p, other, 1000);
	ok(other->n == r->n - 4 * B && memcmp(r->tok + 4 * B * T, other->tok, (size_t)other->n * T * 4) == 0,
	    "and it goes on from there");
	pclose(f);
	data_close(p);
	json_decref(at);
}

static void refuses(const char *text, const char *name, const char *want)
{
	struct data_opt o = { .vocab = VOCAB, .T = T, .epochs = 1 };
	struct err e = {0};
	char path[80], *file = path;
	FILE *f;

	snprintf(path, sizeof path, "%s/%s", dir, name);
	f = fopen(path, "w");
	fputs(text, f);
	fclose(f);
	ok(data_open(1, &file, &o, &e) == NULL && strstr(e.msg, want) != NULL, "%s: %s", name, e.msg);
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
