/* Conversations: what is learned, packing whole, truncation, epochs, position, pipes. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "train/chat.h"
#include "base/file.h"
#include "tap.h"

enum { T = 16, B = 3, TALKS = 40, ROWS = 400 };

static char dir[] = "/tmp/chat.XXXXXX", *path, *pipe_path;
static struct config cfg = { .vocab_size = 1000 };

/* Talk i: tokens i*20 .. i*20+len-1, of which those from the third on are learned, the last two
 * not. */
static int length(int i)
{
	return 5 + i * 7 % 12;
}

static bool learned(int i, int j)
{
	return j >= 3 && j < length(i) - 2;
}

static void write_talks(void)
{
	FILE *f = fopen(path, "w");

	for (int i = 0; i < TALKS; i++) {
		fprintf(f, "{\"tokens\":[");
		for (int j = 0; j < length(i); j++)
			fprintf(f, "%s%d", j ? "," : "", i * 20 + j);
		fprintf(f, "],\"mask\":[");
		for (int j = 0; j < length(i); j++)
			fprintf(f, "%s%d", j ? "," : "", learned(i, j));
		fprintf(f, "]}\n");
	}
	fclose(f);
}

struct rows {
	int n, seen[TALKS], targets;
	bool right;		/* neighbours, targets and starts are those of the talks, whole */
};

static void look_at(struct rows *r, const struct batch *b)
{
	r->n += b->B;
	for (int i = 0; i < b->B * b->T; i++) {
		int talk = (int)b->tok[i] / 20, at = (int)b->tok[i] % 20, s = b->doc_start[i];
		bool next = learned(talk, at + 1);

		if (s < 0) {
			r->right &= b->target[i] == -1;
			continue;
		}
		r->seen[talk] += at == 0;
		r->targets += b->target[i] >= 0;
		r->right &= i % b->T - s == at && b->target[i] == (next ? (int32_t)b->tok[i] + 1
		    : -1);
		/* what follows the last target is left out */
		r->right &= at < length(talk) - 3;
		r->right &= at == length(talk) - 4 || b->tok[i + 1] == b->tok[i] + 1;
	}
}

static struct micro micro_new(void)
{
	struct micro mb = {0};

	mb.b.tok = calloc(B * T, 4);
	mb.b.target = calloc(B * T, 4);
	mb.b.doc_start = calloc(B * T, 4);
	return mb;
}

static void micro_free(struct micro *mb)
{
	free(mb->b.tok), free(mb->b.target), free(mb->b.doc_start);
}

static void collect(void *c, struct rows *r, int most)
{
	struct micro mb = micro_new();
	struct err e = {0};

	*r = (struct rows){ .right = true };
	while (most-- > 0 && chat_source.next(c, &mb, B, &e) > 0)
		look_at(r, &mb.b);
	micro_free(&mb);
}

static void *open_talks(char *file, bool shuffle, double epochs)
{
	static char *name;
	static struct train_opt o;
	static struct err e;
	void *c;

	o = (struct train_opt){ .batch = B, .seq = T, .shuffle = shuffle, .epochs = epochs,
	    .seed = 5 };
	name = file;
	c = chat_source.open(&o, &cfg, NULL, 1, &name, false, &e);
	if (c == NULL)
		ok(0, "%s", e.msg);
	return c;
}

static void test_epoch(void)
{
	void *c = open_talks(path, true, 1);
	int64_t rows = chat_source.rows(c);
	int targets = 0, all = 1;
	struct rows r;

	for (int i = 0; i < TALKS; i++)
		targets += length(i) - 5;
	collect(c, &r, ROWS);
	ok(r.right, "whole, with their own neighbours, targets and starts");
	for (int i = 0; i < TALKS; i++)
		all &= r.seen[i] == (length(i) > 5);
	ok(all, "each once, but those without anything to learn");
	ok(r.targets == targets, "every learned token is a target");
	ok(r.n <= rows && rows - r.n < B, "as many rows as said, rounded up to a batch: %d of %d",
	    r.n, (int)rows);
	chat_source.close(c);
}

static void test_epochs(void)
{
	void *c = open_talks(path, true, 2.5);
	int n = 0, usable = 0;
	struct rows r;

	collect(c, &r, ROWS);
	for (int i = 0; i < TALKS; i++) {
		n += r.seen[i];
		usable += length(i) > 5;
	}
	ok(n == (int)(2.5 * usable + 0.5), "two and a half epochs");
	chat_source.close(c);
}

static void test_seek(void)
{
	void *c = open_talks(path, true, 2), *d = open_talks(path, true, 2);
	struct micro a = micro_new(), b = micro_new();
	struct err e = {0};
	json_t *position;
	struct rows r;
	int same = 1, n = 0, rc;

	collect(c, &r, 7);
	position = chat_source.position(c);
	ok(chat_source.seek(d, position, &e) == 0, "seek");
	while ((rc = chat_source.next(c, &a, B, &e)) > 0 && ++n)
		same &= chat_source.next(d, &b, B, &e) == rc && a.b.B == b.b.B &&
		    memcmp(a.b.tok, b.b.tok, (size_t)(a.b.B * T) * 4) == 0;
	ok(same && n > 7, "the same micro-batches follow, into the next epoch");
	json_decref(position);
	position = json_pack("{s:i, s:i}", "epoch", 0, "conversation", 999);
	ok(chat_source.seek(d, position, &e) < 0, "not beyond the end");
	json_decref(position);
	micro_free(&a), micro_free(&b);
	chat_source.close(c);
	chat_source.close(d);
}

static void test_pipe(void)
{
	void *c = open_talks(path, false, 1), *d;
	struct rows r, s;

	collect(c, &r, ROWS);
	chat_source.close(c);
	if (mkfifo(pipe_path, 0600) < 0)
		err_die(EX_CANTCREAT, "%s:", pipe_path);
	if (fork() == 0) {
		char command[200];

		snprintf(command, sizeof command, "cat %s > %s", path, pipe_path);
		_exit(system(command) != 0);
	}
	d = open_talks(pipe_path, true, 1);
	ok(chat_source.streams(d) && chat_source.rows(d) < 0, "a pipe: nobody knows how long");
	collect(d, &s, ROWS);
	ok(s.right && s.n == r.n && s.targets == r.targets && memcmp(r.seen, s.seen, sizeof r.seen)
	    == 0,
	    "gives what the file gives in order");
	chat_source.close(d);
}

static void test_fit(void)
{
	struct ids a = {0}, m = {0};
	struct record_count n = {0};

	for (uint32_t i = 0; i < 9; i++) {
		ids_push(&a, i);
		ids_push(&m, i + 10);
	}
	ok(chat_fit(&a, &m, 9, &n) && a.n == 9 && n.cut == 0, "fits");
	ok(chat_fit(&a, &m, 7, &n) && a.n == 7 && a.v[6] == 6 && m.v[6] == 16 && m.n == 7,
	    "keep-start");
	chat_flags.truncate = CHAT_KEEP_END;
	ok(chat_fit(&a, &m, 4, &n) && a.n == 4 && a.v[0] == 3 && a.v[3] == 6 && m.v[0] == 13 &&
	    n.cut == 2, "keep-end");
	chat_flags.truncate = CHAT_DROP;
	ok(!chat_fit(&a, NULL, 3, &n) && n.dropped == 1, "drop");
	chat_flags.truncate = CHAT_KEEP_START;
	ids_free(&a);
	ids_free(&m);
}

static void bad(const char *text, const char *why)
{
	json_t *rec = json_loads(text, 0, NULL);
	struct record_count n = {0};
	struct ids out = {0};
	struct err e = {0};

	ok(chat_words(NULL, 100, rec, 9, &out, &n, &e) < 0 && out.n == 0 && strstr(e.msg, why) !=
	    NULL, "%s: %s", text, e.msg);
	ids_free(&out);
	json_decref(rec);
}

int main(void)
{
	struct err e = {0};

	if (!mkdtemp(dir))
		err_die(EX_CANTCREAT, "%s:", dir);
	opt_quiet = true;
	path = file_join(dir, "talks.jsonl");
	pipe_path = file_join(dir, "pipe");
	write_talks();
	test_epoch();
	test_epochs();
	test_seek();
	test_pipe();
	test_fit();
	bad("{\"text\":\"no turns\"}", "messages");
	bad("{\"tokens\":[1,2]}", "mask");
	bad("{\"tokens\":[1,2],\"mask\":[1]}", "mask");
	bad("{\"tokens\":[1,100],\"mask\":[1,1]}", "below 100");
	bad("{\"messages\":[]}", "tokenizer");
	file_remove_tree(dir, &e);
	free(path);
	free(pipe_path);
	return tap_done();
}
