/* chr-score: how likely a model finds texts, record by record and in total; tensors for
 * comparison with --dump. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/comm.h"
#include "base/rank_deal.h"
#include "decode/infer.h"
#include "decode/infer_adapt.h"
#include "base/human.h"
#include "base/json.h"
#include "base/jsontext.h"
#include "base/progress.h"
#include "format/safetensors.h"
#include "base/sig.h"
#include "stages/teacher_topk.h"

#define LOGITS ((int64_t)16 << 20)	/* bytes of logits held at a time, about */

static struct {
	int seq, topk;
	double temperature;
	const char *dump;
	bool skip_bad;
} o = { .temperature = 4 };

static const struct opt opts[] = {
	{ 0, "seq", OPT_INT, &o.seq, 0, 1 << 24, "N",
	    "longer texts are scored in windows of N tokens; "
	    "0: 512, or what the model was made for where that is less" },
	{ 0, "dump", OPT_OUT, &o.dump, 0, 0, "FILE",
	    "write logits, router and lookahead probabilities (safetensors)" },
	{ 0, "topk", OPT_INT, &o.topk, 0, TEACHER_TOPK_MAX, "K",
	    "instead of scores write the K best candidates for each token, as chr-distill reads "
	    "them; 0: do not" },
	{ 0, "temperature", OPT_FLOAT, &o.temperature, 0.01, 1000, "X", "of that distillation" },
	{ 0, "skip-bad", OPT_FLAG, &o.skip_bad, 0, 0, NULL,
	    "count and report bad records instead of stopping" },
	{ .kind = OPT_TABLE, .value = infer_adapt_opts },
	{ .kind = OPT_TABLE, .value = infer_opts },
	{ .kind = OPT_TABLE, .value = human_opts },
	{ 0 }
};

static const struct opt_prog prog = { "chr-score", "[FILE...]",
    "log-probability and perplexity of texts",
	"Records hold \"text\", \"messages\" or \"tokens\". Of messages, what the assistant says "
	    "is scored.", true };

static struct {
	struct jsonl *in;
	struct seq *seq;
	int rows;			/* of logits */
	float *logits, *logp;		/* (rows, V), (rows) */
	int32_t *target;		/* (rows) */
	uint32_t *best;			/* (rows, K) with --topk, */
	float *best_logp, *rest;	/* (rows, K), (rows) */
	json_t *topk;			/* and the record of the window */
	int adapter;			/* of the record */
	FILE *out;			/* what the record gives */
	int64_t records, tokens;	/* records read; tokens of those written */
	double logprob;
	struct progress progress;
	struct err e;
} s;

/* What --dump collects: R rows so far. */
static struct {
	int64_t R, cap;
	float *logits, *probs, *look;	/* (R, V), (R, Ls, E), (R, look rows) */
	int64_t *ids, *record;
} d;

static void must(int failed)
{
	if (!failed)
		return;
	progress_clear(&s.progress);
	err_exit(&s.e);
}

static void *grow(void *p, int64_t n, size_t size)
{
	if ((p = realloc(p, (size_t)n * size + 1)) == NULL)
		err_die(EX_OSERR, "out of memory for --dump");
	return p;
}

static void dump_room(int n)
{
	int64_t V = infer.cfg.vocab_size, P = (int64_t)infer.cfg.num_sparse * infer.cfg.num_experts;

	if (d.R + n <= d.cap)
		return;
	d.cap = 2 * (d.R + n);
	d.logits = grow(d.logits, d.cap * V, sizeof(float));
	d.probs = grow(d.probs, d.cap * P, sizeof(float));
	d.look = grow(d.look, d.cap * config_lookahead_rows(&infer.cfg), sizeof(float));
	d.ids = grow(d.ids, d.cap, sizeof(int64_t));
	d.record = grow(d.record, d.cap, sizeof(int64_t));
}

static void dump_rows(const uint32_t *tok, int n)
{
	int64_t V = infer.cfg.vocab_size;

	memcpy(d.logits + d.R * V, s.logits, sizeof(float) * (size_t)(n * V));
	for (int i = 0; i < n; i++, d.R++) {
		d.ids[d.R] = tok[i];
		d.record[d.R] = s.records;
	}
}

static void topk_rows(const uint32_t *tok, int n)
{
	int K = o.topk;

	teacher_topk_choose(s.logits, s.target, n, infer.cfg.vocab_size, K, o.temperature, s.best,
	    s.best_logp, s.rest);
	for (int i = 0; i < n; i++)
		teacher_topk_add(s.topk, tok[i], s.target[i] >= 0 ? K : 0, s.best + (size_t)i *
		    (size_t)K,
		    s.best_logp + (size_t)i * (size_t)K, (double)s.rest[i]);
}

/* Evaluates n tokens at pos of a window, and adds the log-probabilities of those among the
 * following that count. */
static void score_rows(const uint32_t *tok, const uint32_t *mask, int n, bool last, int64_t *count,
    double *sum)
{
	struct err why = { 0 };
	struct eval_item it = { .s = s.seq, .tok = tok, .n = n, .all = true };
	bool wanted = o.dump != NULL;

	for (int i = 0; i < n; i++) {
		bool follows = i + 1 < n || !last;

		s.target[i] = follows && mask[i + 1] ? (int32_t)tok[i + 1] : -1;
		wanted = wanted || s.target[i] >= 0;
	}
	it.logits = wanted ? s.logits : NULL;
	if (o.dump) {
		dump_room(n);
		it.probs = d.probs + d.R * infer.cfg.num_sparse * infer.cfg.num_experts;
		it.look = infer.cfg.lookahead_steps ? d.look + d.R *
		    config_lookahead_rows(&infer.cfg) : NULL;
	}
	if (engine_eval(infer.g, &it, 1, NULL, &why) < 0)
		must(err_set(&s.e, why.status, "%s:%lld: %s", jsonl_name(s.in),
		    (long long)jsonl_lineno(s.in),
		    why.msg));
	if (o.dump)
		dump_rows(tok, n);
	if (o.topk)
		topk_rows(tok, n);
	if (!wanted)
		return;
	engine_logprob(infer.g, s.logits, s.target, n, s.logp);
	for (int i = 0; i < n; i++)
		if (s.target[i] >= 0) {
			(*count)++;
			*sum += (double)s.logp[i];
		}
}

/* A page has what the line of the record says, as numbers of json_t. */
static int put_page(const struct jsontext *text)
{
	json_t *r = json_loadb(text->s, text->n, JSON_ALLOW_NUL, NULL);
	int rc = r != NULL ? human_put(r, &s.e) : 0;

	json_decref(r);
	return rc;
}

/* Writes a record with what else there was in that which was read, but for what is bulky. */
static void put_record(json_t *r)
{
	static const char *const left[] = { "type", "text", "messages", "conversations", "tokens",
	    "mask", NULL };
	struct jsontext text = {0};
	size_t len;
	const char *line = jsonl_text(s.in, &len);

	infer_adapter_put(r, s.adapter);
	jsontext_record(&text, line, len, r, true, left);
	if (!sig_stop)
		must((human() && s.out == stdout ? put_page(&text) : jsontext_put(&text, s.out,
		    &s.e)) < 0);
	jsontext_free(&text);
	json_decref(r);
}

/* Windows of --seq tokens; each begins with the last token of the one before, so that every
 * token but the first of the text is predicted once. */
static void score(const struct ids *ids, const struct ids *mask, int64_t *count, double *sum)
{
	for (int w = 0; w < ids->n - 1 || w == 0; w += o.seq - 1) {
		int n = ids->n - w < o.seq ? ids->n - w : o.seq;

		seq_reset(s.seq);
		seq_adapt(s.seq, s.adapter);
		if (o.topk)
			s.topk = teacher_topk_record(infer.cfg.vocab_size, o.temperature);
		for (int i = 0; i < n && !sig_stop; i += s.rows) {
			int m = n - i < s.rows ? n - i : s.rows;

			score_rows(ids->v + w + i, mask->v + w + i, m, i + m == n, count, sum);
			progress_at(&s.progress, (double)(s.tokens + *count), "%lld records",
			    (long long)s.records);
		}
		if (o.topk)
			put_record(s.topk);
	}
}

static void put_score(json_t *r, int64_t tokens, double logprob)
{
	json_set_int(r, "tokens", tokens);
	json_set_num(r, "logprob", logprob);
	json_set_num(r, "nll", tokens ? -logprob / (double)tokens : NAN);
	json_set_num(r, "ppl", tokens ? exp(-logprob / (double)tokens) : NAN);
}

/* The record of a text; with --topk, those of its windows come before and in place of it. */
static void score_ids(const struct ids *ids, const struct ids *mask)
{
	json_t *r = json_object();
	int64_t count = 0;
	double sum = 0;
	char *text = NULL;
	size_t size = 0;

	if ((s.out = comm_size() > 1 ? open_memstream(&text, &size) : stdout) == NULL)
		err_die(EX_OSERR, "out of memory");
	json_set_str(r, "type", "score");
	score(ids, mask, &count, &sum);
	put_score(r, count, sum);
	if (o.topk)
		json_decref(r);
	else
		put_record(r);
	if (s.out != stdout && fclose(s.out) != 0)
		err_die(EX_OSERR, "out of memory");
	if (!sig_stop || comm_size() == 1)
		rank_deal_put(s.records, text, size, (double[RANK_DEAL_SUMS]){ (double)count,
		    sum });
	free(text);
}

/* Lines of another process, each a record. */
static void put_lines(const char *p, size_t n)
{
	for (size_t len; n > 0; p += len, n -= len) {
		const char *end = memchr(p, '\n', n);
		json_t *r = json_loadb(p, len = end ? (size_t)(end - p) + 1 : n, 0, NULL);

		must(r == NULL || human_put(r, &s.e) < 0);
		json_decref(r);
	}
}

static void write_result(const char *p, size_t n, const double sums[RANK_DEAL_SUMS])
{
	if (human())
		put_lines(p, n);
	else if (n > 0 && (fwrite(p, 1, n, stdout) != n || fflush(stdout) != 0))
		err_die(EX_IOERR, "standard output:");
	s.tokens += (int64_t)sums[0];
	s.logprob += sums[1];
}

static void score_record(const json_t *rec)
{
	struct ids ids = { 0 }, mask = { 0 };
	struct err why = { 0 };
	int rc = infer_ids(rec, false, &ids, &mask, &why);

	if (rc == 0 && ids.n == 0)
		rc = err_set(&why, EX_DATAERR, "no tokens");
	if (rc == 0 && (s.adapter = infer_adapter(rec, &why)) < 0)
		rc = -1;
	if (rc < 0) {
		if (jsonl_bad(s.in, &s.e, "%s", why.msg) < 0)
			rank_deal_fail(s.records, &s.e);
	} else {
		if (rank_deal_own(s.records))
			score_ids(&ids, &mask);
		s.records++;
	}
	ids_free(&ids);
	ids_free(&mask);
}

static void put_total(double seconds)
{
	json_t *r = json_object();

	json_set_str(r, "type", "total");
	json_set_int(r, "records", s.records);
	put_score(r, s.tokens, s.logprob);
	json_set_str(r, "kv_type", kv_type_name(engine_kv_type(infer.g)));
	json_set_num(r, "seconds", seconds);
	json_set_num(r, "tok_per_s", seconds > 0 ? (double)s.tokens / seconds : 0);
	must(human_put(r, &s.e) < 0);
	json_decref(r);
}

/* From (R, Ls, E), as it is collected, to (Ls, R, E). */
static void layers_first(float *dst, const float *src, int64_t R, int Ls, int E)
{
	for (int64_t r = 0; r < R; r++)
		for (int l = 0; l < Ls; l++)
			memcpy(dst + (l * R + r) * E, src + (r * Ls + l) * E,
			    sizeof(float) * (size_t)E);
}

static void write_dump(void)
{
	const struct config *c = &infer.cfg;
	uint64_t R = (uint64_t)d.R, V = (uint64_t)c->vocab_size, Ls = (uint64_t)c->num_sparse,
	    E = (uint64_t)c->num_experts;
	uint64_t heads = (uint64_t)c->lookahead_steps + 1;
	bool look = c->lookahead_steps > 0, each = look && c->lookahead_per_layer;
	struct st_error se;
	struct st_writer *w = st_writer_create(o.dump, &se);
	float *probs = grow(NULL, d.R * c->num_sparse * c->num_experts, sizeof(float));

	layers_first(probs, d.probs, d.R, c->num_sparse, c->num_experts);
	st_writer_add(w, "input_ids", ST_I64, 1, (uint64_t[]){ R }, 0, &se);
	st_writer_add(w, "record", ST_I64, 1, (uint64_t[]){ R }, 0, &se);
	st_writer_add(w, "logits", ST_F32, 2, (uint64_t[]){ R, V }, 0, &se);
	st_writer_add(w, "router_probs", ST_F32, 3, (uint64_t[]){ Ls, R, E }, 0, &se);
	if (look)
		st_writer_add(w, "lookahead_probs", ST_F32, each ? 4 : 3,
		    each ? (uint64_t[]){ R, heads, Ls, E } : (uint64_t[]){ R, heads, E, 0 }, 0,
		    &se);
	st_writer_begin(w, &se);
	st_writer_data(w, d.ids, R * 8, &se);
	st_writer_data(w, d.record, R * 8, &se);
	st_writer_data(w, d.logits, R * V * 4, &se);
	st_writer_data(w, probs, Ls * R * E * 4, &se);
	if (look)
		st_writer_data(w, d.look, R * (uint64_t)config_lookahead_rows(c) * 4, &se);
	free(probs);
	if (st_writer_finish(w, &se) < 0)
		err_die(se.code == ST_EOPEN ? EX_CANTCREAT : EX_IOERR, "%s: %s", o.dump, se.msg);
}

static void setup(void)
{
	int V = infer.cfg.vocab_size;
	int64_t rows = LOGITS / ((int64_t)V * 4);

	o.seq = infer_seq(infer.model, &infer.cfg, o.seq, 0);
	s.rows = rows < 16 ? 16 : rows > 256 ? 256 : (int)rows;
	if (s.rows > o.seq)
		s.rows = o.seq;
	if (o.topk > V)
		o.topk = V;
	infer_open(1, o.seq, s.rows, (int64_t)s.rows * (4 * (int64_t)V + 12 + 8 * (int64_t)o.topk));
	s.logits = malloc(sizeof(*s.logits) * (size_t)s.rows * (size_t)V);
	s.logp = malloc(sizeof(*s.logp) * (size_t)s.rows);
	s.target = malloc(sizeof(*s.target) * (size_t)s.rows);
	s.best = malloc(sizeof(*s.best) * (size_t)s.rows * (size_t)o.topk + 1);
	s.best_logp = malloc(sizeof(*s.best_logp) * (size_t)s.rows * (size_t)o.topk + 1);
	s.rest = malloc(sizeof(*s.rest) * (size_t)s.rows);
	if (!s.logits || !s.logp || !s.target || !s.best || !s.best_logp || !s.rest)
		err_die(EX_OSERR, "out of memory");
	must((s.seq = seq_new(infer.g, &s.e)) == NULL);
}

int main(int argc, char **argv)
{
	json_t *rec;
	int first;
	double began;

	err_init(argv[0]);
	first = opt_parse(argc, argv, opts, &prog);
	must(comm_open(&s.e) < 0);
	if (o.dump && comm_size() > 1)
		opt_usage("--dump is for one process, not %d", comm_size());
	rank_deal_open(write_result);
	human_table("score", "tokens logprob nll ppl *", true);
	infer.pages = true;
	sig_install();
	infer_begin(false);
	if (!infer.dry_run && (s.in = jsonl_open(argc - first, argv + first, o.skip_bad, &s.e)) ==
	    NULL)
		must(true);
	setup();
	began = progress_clock();
	progress_start(&s.progress, "scoring", "tokens", 0);
	while (!sig_stop && (rec = jsonl_next(s.in, &s.e)) != NULL) {
		score_record(rec);
		json_decref(rec);
	}
	if (s.e.status != 0)
		rank_deal_fail(s.records, &s.e);
	rank_deal_finish(s.records);
	progress_end(&s.progress);
	if (!sig_stop) {
		put_total(progress_clock() - began);
		if (o.dump)
			write_dump();
	}
	jsonl_close(s.in);
	free(s.logits);
	free(s.logp);
	free(s.target);
	free(s.best);
	free(s.best_logp);
	free(s.rest);
	free(d.logits);
	free(d.probs);
	free(d.look);
	free(d.ids);
	free(d.record);
	infer_close();
	err_close_stdout();
	return comm_close(sig_stop ? EX_TEMPFAIL : 0, &s.e);
}
