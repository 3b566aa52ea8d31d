/* chr-tokenize: text to token ids and back, and the training of tokenizers. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/opt.h"
#include "base/pool.h"
#include "base/progress.h"
#include "text/record.h"
#include "text/shards.h"
#include "text/tok.h"
#include "text/tokenize.h"

static struct {
	const char *tokenizer, *out;
	bool train, decode, text, jsonl, chat, mask, special, skip_special, lines, skip_bad;
	int64_t vocab, min_freq, shard_size;
	int threads;
} o = { .vocab = 6400, .min_freq = 2, .chat = true, .shard_size = 512 << 20 };

static const struct opt opts[] = {
	{ 't', "tokenizer", OPT_STR, &o.tokenizer, 0, 0, "FILE",
	    "a tokenizer.json or another file of one, or its directory" },
	{ 'o', "out", OPT_OUT, &o.out, 0, 0, "FILE",
	    "--train: the tokenizer to write; else a token shard" },
	{ 'd', "decode", OPT_FLAG, &o.decode, 0, 0, NULL, "tokens to text" },
	{ 0, "text", OPT_FLAG, &o.text, 0, 0, NULL,
	    "input is text (with -d: ids between blanks), whatever it looks like" },
	{ 0, "jsonl", OPT_FLAG, &o.jsonl, 0, 0, NULL, "input is JSONL, whatever it looks like" },
	{ 0, "skip-bad", OPT_FLAG, &o.skip_bad, 0, 0, NULL,
	    "count and report bad records instead of stopping" },
	{ .kind = OPT_GROUP, .help = "Encoding" },
	{ 0, "chat", OPT_FLAG, &o.chat, 0, 0, NULL, "conversations go through the chat template" },
	{ 0, "mask", OPT_FLAG, &o.mask, 0, 0, NULL, "add \"mask\": 1 where an assistant speaks" },
	{ 0, "special", OPT_FLAG, &o.special, 0, 0, NULL,
	    "special tokens written in a text become themselves" },
	{ 'j', "threads", OPT_INT, &o.threads, 0, 256, "N", "threads; 0: one per CPU" },
	{ 0, "shard-size", OPT_BYTES, &o.shard_size, 1, 1e15, "BYTES",
	    "with -o: begin another shard at this size" },
	{ .kind = OPT_GROUP, .help = "Decoding" },
	{ 0, "skip-special", OPT_FLAG, &o.skip_special, 0, 0, NULL, "leave special tokens out" },
	{ 0, "lines", OPT_FLAG, &o.lines, 0, 0, NULL, "a newline after the text of each record" },
	{ .kind = OPT_GROUP, .help = "Training" },
	{ 0, "train", OPT_FLAG, &o.train, 0, 0, NULL, "make a tokenizer of the input" },
	{ 'v', "vocab", OPT_COUNT, &o.vocab, TOK_MIN_VOCAB, 4e6, "N", "size of the vocabulary" },
	{ 0, "min-freq", OPT_COUNT, &o.min_freq, 1, 1e15, "N",
	    "merge only pairs that occur this often" },
	{ 0 }
};

static const struct opt_prog prog = {
	"chr-tokenize", "[FILE...]", "text to tokens and back; trains tokenizers",
	"A file is JSONL when its name ends in .jsonl or .jsonl.gz or its first byte is '{', and "
	    "text otherwise. One that is a JSON array of objects is refused.", true
};

/* One input document: a record, or a whole text with rec NULL. */
struct doc {
	struct jsonl *in;
	json_t *rec;
	char *text;
	size_t len;
};

typedef int (*doc_fn)(void *ctx, struct doc *d, struct err *e);
typedef int (*records_fn)(void *ctx, struct jsonl *in, struct err *e);

static bool ends_with(const char *s, const char *end)
{
	size_t n = strlen(s), k = strlen(end);

	return n >= k && !strcmp(s + n - k, end);
}

static bool is_jsonl(struct jsonl *in, int first)
{
	const char *name = jsonl_name(in);

	if (o.jsonl || o.text)
		return o.jsonl;
	return ends_with(name, ".jsonl") || ends_with(name, ".jsonl.gz") || first == '{' ||
	    (first == '[' && (ends_with(name, ".json") || jsonl_has_objects(in)));
}

static int one_text(struct jsonl *in, doc_fn fn, void *ctx, struct err *e)
{
	struct doc d = { .in = in };
	size_t cap = 0;
	ssize_t n;
	int rc;

	do {
		if (cap - d.len < 1 << 16) {
			char *p = realloc(d.text, cap = 2 * cap + (1 << 17));

			if (!p) {
				free(d.text);
				return err_set(e, EX_OSERR, "%s: out of memory", jsonl_name(in));
			}
			d.text = p;
		}
		n = jsonl_bytes(in, d.text + d.len, cap - d.len - 1, e);
		d.len += n > 0 ? (size_t)n : 0;
	} while (n > 0);
	d.text[d.len] = '\0';
	rc = n < 0 ? -1 : fn(ctx, &d, e);
	free(d.text);
	return rc;
}

static int each_record(struct jsonl *in, doc_fn fn, void *ctx, struct err *e)
{
	struct doc d = { .in = in };
	int rc = 0;

	while (!rc && (d.rec = jsonl_next(in, e))) {
		rc = fn(ctx, &d, e);
		json_decref(d.rec);
	}
	return rc || e->status ? -1 : 0;
}

/* Each file is read on its own, since each may be of another kind. records: takes all of a file;
 * NULL: fn each. */
static int each_doc(int n, char **files, doc_fn fn, records_fn records, void *ctx, struct err *e)
{
	static char *standard_input[] = { "-" };
	struct jsonl *all = jsonl_open(n, files, false, e);	/* a missing file is told at once */
	int rc = 0;

	if (!all)
		return -1;
	jsonl_close(all);

	if (!n) {
		n = 1;
		files = standard_input;
	}
	for (int i = 0; i < n && !rc; i++) {
		struct jsonl *in = jsonl_open(1, &files[i], o.skip_bad, e);
		int first;

		if (!in)
			return -1;
		first = jsonl_peek(in, e);
		if (e->status)
			rc = -1;
		else if (first >= 0 && !is_jsonl(in, first))
			rc = one_text(in, fn, ctx, e);
		else if (first >= 0)
			rc = records != NULL ? records(ctx, in, e) : each_record(in, fn, ctx, e);
		jsonl_close(in);
	}
	return rc;
}

struct run {
	struct tok *t;
	struct ids ids;
	struct tokenize *z;
	struct shards *shards;
	struct tok_trainer *trainer;
	struct progress progress;
	int64_t docs, bytes;
};

static int encode_text(void *ctx, struct doc *d, struct err *e)
{
	struct run *r = ctx;

	return tokenize_text(r->z, jsonl_name(d->in), d->text, d->len, e);
}

static int encode_records(void *ctx, struct jsonl *in, struct err *e)
{
	struct run *r = ctx;

	return tokenize_records(r->z, in, e);
}

static int parse_ids(struct run *r, struct doc *d, struct err *why)
{
	for (char *s = d->text, *end;; s = end) {
		unsigned long long id;

		s += strspn(s, " \t\r\n\v\f,");
		if (s == d->text + d->len)
			return 0;
		id = strtoull(s, &end, 10);
		if (end == s || *s == '-' || *s == '+' || id >= (unsigned long long)tok_vocab(r->t))
			return err_set(why, EX_DATAERR, "\"%.*s\" is not a token id below %d",
			    (int)strcspn(s, " \n"), s,
				tok_vocab(r->t));
		ids_push(&r->ids, (uint32_t)id);
	}
}

static int decode(void *ctx, struct doc *d, struct err *e)
{
	struct run *r = ctx;
	struct err why = { 0 };
	size_t len;
	char *text;

	r->ids.n = 0;
	if (!d->rec && parse_ids(r, d, &why))
		return err_set(e, EX_DATAERR, "%s: %s", jsonl_name(d->in), why.msg);
	if (d->rec && record_tokens(d->rec, tok_vocab(r->t), &r->ids, &why))
		return jsonl_bad(d->in, e, "%s", why.msg);
	text = tok_decode(r->t, r->ids.v, r->ids.n, o.skip_special, &len);
	fwrite(text, 1, len, stdout);
	free(text);
	if (o.lines)
		putchar('\n');
	fflush(stdout);
	return ferror(stdout) ? err_set(e, EX_IOERR, "standard output:") : 0;
}

static int learn(void *ctx, struct doc *d, struct err *e)
{
	struct run *r = ctx;
	char *text = d->text;
	size_t len = d->len;
	struct err why = { 0 };

	if (d->rec && !(text = record_text(d->rec, &len, &why)))
		return jsonl_bad(d->in, e, "%s", why.msg);
	tok_trainer_add(r->trainer, text, len);
	if (d->rec)
		free(text);
	r->bytes += (int64_t)len;
	progress_at(&r->progress, (double)++r->docs, "%.1f MB", (double)r->bytes / 1e6);
	return 0;
}

static void show_size(void *ctx, int size)
{
	progress_at(ctx, size, NULL);
}

static void train(int n, char **files, struct err *e)
{
	struct run r = { .trainer = tok_trainer_new() };
	double began = progress_clock();

	progress_start(&r.progress, "counting", "documents", 0);
	if (each_doc(n, files, learn, NULL, &r, e))
		err_exit(e);
	progress_end(&r.progress);
	progress_start(&r.progress, "merging", "tokens", (double)o.vocab);
	r.t = tok_trainer_run(r.trainer, (int)o.vocab, o.min_freq, show_size, &r.progress, e);
	progress_end(&r.progress);
	if (!r.t || tok_save(r.t, o.out, e))
		err_exit(e);
	if (!opt_quiet)
		err_warn("%s: %d tokens of %" PRId64 " documents, %.1f MB, in %.1f s%s", o.out,
		    tok_vocab(r.t), r.docs,
			(double)r.bytes / 1e6, progress_clock() - began,
			tok_vocab(r.t) < o.vocab ? "; no other pair is frequent enough" : "");
	tok_trainer_free(r.trainer);
	tok_free(r.t);
}

static void run(int n, char **files, struct err *e)
{
	struct run r = { .t = tok_load(o.tokenizer, e) };
	int rc;

	if (!r.t)
		err_exit(e);
	if (o.out && !(r.shards = shards_open(o.out, r.t, o.shard_size, stdout, e)))
		err_exit(e);
	pool_init(o.decode ? 1 : o.threads);
	r.z = tokenize_open(&(struct tokenize_opt){ r.t, r.shards, o.chat, o.mask, o.special });
	rc = o.decode ? each_doc(n, files, decode, NULL, &r, e) : each_doc(n, files, encode_text,
	    encode_records, &r, e);
	if (rc || (r.shards && shards_close(r.shards, e)))
		err_exit(e);
	tokenize_close(r.z);
	pool_quit();
	ids_free(&r.ids);
	tok_free(r.t);
}

int main(int argc, char **argv)
{
	struct err e = { 0 };
	int first;

	err_init(argv[0]);
	first = opt_parse(argc, argv, opts, &prog);
	if (o.text && o.jsonl)
		opt_usage("--text and --jsonl exclude each other");
	if (o.decode && (o.train || o.out || o.mask))
		opt_usage("--decode writes text: no --train, --out or --mask with it");
	if (o.train && !o.out)
		opt_usage("--train needs -o FILE");
	if (!o.train && !o.tokenizer)
		opt_usage("-t FILE is missing");
	if (o.train)
		train(argc - first, argv + first, &e);
	else
		run(argc - first, argv + first, &e);
	err_close_stdout();
	return EX_OK;
}
