/* chr-diff: how far one model is from another on the same tokens: predictions, routers, and what
 * each scores. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "arch/arch.h"
#include "measure/fidelity.h"
#include "decode/infer.h"
#include "decode/infer_adapt.h"
#include "base/human.h"
#include "base/json.h"
#include "train/metric.h"
#include "base/progress.h"
#include "base/sig.h"
#include "format/modeldir.h"

#define LOGITS ((int64_t)8 << 20)	/* bytes of logits held at a time by each model, about */

static struct {
	int seq;
	double tol;
	bool skip_bad;
	const char *with;
} o;

static const struct opt opts[] = {
	{ 0, "tol", OPT_FLOAT, &o.tol, 0, 1e30, "X",
	    "logits that differ by no more count as the same" },
	{ 0, "kv-type", OPT_CHOICE, &infer.kv, 0, 0, "f32|bf16|q8",
	    "caches of the second model: exact, or smaller and lossy" },
	{ 0, "seq", OPT_INT, &o.seq, 0, 1 << 24, "N",
	    "longer texts are cut into sequences of N tokens; "
	    "0: 512, or what the model was made for where that is less" },
	{ 0, "with", OPT_STR, &o.with, 0, 0, "FLAGS",
	    "options of chr-generate that the second model runs with, token by token" },
	{ 0, "skip-bad", OPT_FLAG, &o.skip_bad, 0, 0, NULL,
	    "count and report bad records instead of stopping" },
	{ .kind = OPT_TABLE, .value = arch_opts },
	{ .kind = OPT_TABLE, .value = human_opts },
	{ 't', "tokenizer", OPT_STR, &infer.tokenizer, 0, 0, "FILE",
	    "tokenizer, when not that of the first model" },
	{ 'j', "threads", OPT_INT, &infer.threads, 0, 256, "N", "compute threads; 0: one per CPU" },
	{ 'B', "backend", OPT_STR, &infer.backend, 0, 0, "NAME", "where to compute" },
	{ 0 }
};

static const struct opt with_opts[] = {
	{ 0, "on-miss", OPT_CHOICE, &infer.on_miss, 0, 0, "wait|shared",
	    "an expert that is not there" },
	{ 0, "route-bias", OPT_FLOAT, &infer.route_bias, 0, 50, "X",
	    "prefer experts in memory: add X to their routing logits (lossy); 0: exact" },
	{ .kind = OPT_TABLE, .value = infer_adapt_opts },
	{ .kind = OPT_TABLE, .value = infer_opts },
	{ 0 }
};

static const struct opt_prog prog = { "chr-diff", "[options] DIR DIR [FILE...]",
	"how far a model (second) is from another (first)",
	"Records hold \"text\", \"messages\" or \"tokens\". Exit status 1: logits differ by more "
	    "than --tol.", false };

/* One of the two models, and what it made of the sequence at hand. */
struct side {
	const char *dir;
	struct engine *g;
	const struct config *c;
	struct seq *seq;
	real *logits;			/* (rows, V) */
	real *probs, *look;		/* (T, Ls, E), (T, look rows) as evaluated */
	int32_t *topk;			/* (T, Ls, K) */
	real *by_layer;			/* (Ls, T, E) */
	int32_t *choice;		/* (Ls, T, K) */
	struct metric metric;
	double *load;			/* (Ls, E) how often each expert was chosen */
	double logprob;
};

static struct {
	struct jsonl *in;
	struct side a, b;
	struct fidelity f;
	bool routers;			/* of the same shape */
	int rows;
	int32_t *target, *doc;		/* (rows), (T) zeros */
	float *logp;
	int64_t records, tokens, scored;
	struct progress progress;
	struct err e;
} s;

static void must(int failed)
{
	if (!failed)
		return;
	progress_clear(&s.progress);
	err_exit(&s.e);
}

static void *take(int64_t n, size_t size)
{
	void *p = calloc(n > 0 ? (size_t)n : 1, size);

	if (!p)
		err_die(EX_OSERR, "out of memory");
	return p;
}

/* The second model as --with says; its --ram is a limit on its own engine. */
static struct engine *open_with(const char *dir)
{
	struct engine *g;

	opt_parse_text("with", o.with, with_opts, &prog);
	infer.model = dir;
	infer.budget = "--ram";
	infer_open(1, o.seq, s.rows, 0);
	g = infer.g;
	infer.g = NULL;
	return g;
}

static void side_open(struct side *d, const char *dir, enum kv_type kv)
{
	struct engine_opt eo = { .max_seqs = 1, .max_tokens = o.seq, .max_rows = s.rows, .kv = kv };
	const struct config *c;
	int64_t n = o.seq;

	d->dir = dir;
	d->g = d == &s.b && o.with ? open_with(dir) : engine_open(dir, &eo, infer.be, NULL, &s.e);
	must(d->g == NULL);
	must((d->seq = seq_new(d->g, &s.e)) == NULL);
	if (d == &s.b)
		seq_adapt(d->seq, infer_adapter_alone("--with"));
	c = d->c = engine_config(d->g);
	d->logits = take((int64_t)s.rows * c->vocab_size, sizeof(real));
	d->probs = take(n * c->num_sparse * c->num_experts, sizeof(real));
	d->by_layer = take(n * c->num_sparse * c->num_experts, sizeof(real));
	d->look = take(n * config_lookahead_rows(c), sizeof(real));
	d->topk = take(n * c->num_sparse * c->num_experts_per_tok, sizeof(int32_t));
	d->choice = take(n * c->num_sparse * c->num_experts_per_tok, sizeof(int32_t));
	d->load = take((int64_t)c->num_sparse * c->num_experts, sizeof(double));
}

static void side_close(struct side *d)
{
	seq_free(d->seq);
	engine_close(d->g);
	free(d->logits);
	free(d->probs);
	free(d->by_layer);
	free(d->look);
	free(d->topk);
	free(d->choice);
	free(d->load);
}

/* Evaluates n tokens at `at` of the sequence, and scores those whose target is not -1. */
static void side_eval(struct side *d, const uint32_t *tok, int at, int n)
{
	const struct config *c = d->c;
	struct eval_item it = { .s = d->seq, .tok = tok + at, .n = n, .all = true,
	    .logits = d->logits,
	    .probs = d->probs + (int64_t)at * c->num_sparse * c->num_experts,
	    .topk = d->topk + (int64_t)at * c->num_sparse * c->num_experts_per_tok,
	    .look = c->lookahead_steps > 0 ? d->look + (int64_t)at * config_lookahead_rows(c)
	    : NULL };

	must(engine_eval(d->g, &it, 1, NULL, &s.e) < 0);
}

static void side_score(struct side *d, int n)
{
	engine_logprob(d->g, d->logits, s.target, n, s.logp);
	for (int i = 0; i < n; i++)
		d->logprob += s.target[i] >= 0 ? (double)s.logp[i] : 0;
}

/* What the router did in a sequence of n tokens. */
static void side_route(struct side *d, int n)
{
	const struct config *c = d->c;
	int Ls = c->num_sparse, E = c->num_experts, K = c->num_experts_per_tok;
	struct route_in in = { .cfg = c, .B = 1, .T = n, .doc_start = s.doc, .probs = d->by_layer,
	    .topk = d->choice,
	    .look = c->lookahead_steps > 0 ? d->look : NULL };

	for (int l = 0; l < Ls; l++)
		for (int64_t t = 0; t < n; t++) {
			memcpy(d->by_layer + (l * (int64_t)n + t) * E, d->probs + (t * Ls + l) * E,
			    sizeof(real) * (size_t)E);
			memcpy(d->choice + (l * (int64_t)n + t) * K, d->topk + (t * Ls + l) * K,
			    sizeof(int32_t) * (size_t)K);
			for (int k = 0; k < K; k++)
				d->load[l * E + d->topk[(t * Ls + l) * K + k]]++;
		}
	/* route_in wants logits */
	for (int64_t i = 0; in.look && i < (int64_t)n * config_lookahead_rows(c); i++)
		d->look[i] = (real)log(fmax((double)d->look[i], 1e-30));
	if (Ls > 0)
		route_stats_add(&d->metric.stats, &in);
	d->metric.counted = true;
}

static void compare_sequence(const uint32_t *tok, const uint32_t *mask, int n)
{
	seq_reset(s.a.seq);
	seq_reset(s.b.seq);
	for (int at = 0; at < n; at += s.rows) {
		int m = n - at < s.rows ? n - at : s.rows;

		for (int i = 0; i < m; i++) {
			s.target[i] = at + i + 1 < n && mask[at + i + 1] ? (int32_t)tok[at + i + 1]
			    : -1;
			s.scored += s.target[i] >= 0;
		}
		side_eval(&s.a, tok, at, m);
		side_eval(&s.b, tok, at, m);
		fidelity_logits(&s.f, s.a.logits, s.b.logits, m, s.a.c->vocab_size);
		side_score(&s.a, m);
		side_score(&s.b, m);
	}
	side_route(&s.a, n);
	side_route(&s.b, n);
	if (s.routers)
		fidelity_router(&s.f, s.a.by_layer, s.b.by_layer, s.a.choice, s.b.choice, n,
		    s.a.c->num_experts,
		    s.a.c->num_experts_per_tok);
	s.tokens += n;
}

static void compare_record(const json_t *rec)
{
	struct ids ids = { 0 }, mask = { 0 };
	struct err why = { 0 };

	if (infer_ids(rec, false, &ids, &mask, &why) < 0)
		must(jsonl_bad(s.in, &s.e, "%s", why.msg) < 0);
	else if (ids.n == 0)
		must(jsonl_bad(s.in, &s.e, "no tokens") < 0);
	else {
		for (int i = 0; i < ids.n && !sig_stop; i += o.seq)
			compare_sequence(ids.v + i, mask.v + i, ids.n - i < o.seq ? ids.n - i
			    : o.seq);
		s.records++;
	}
	ids_free(&ids);
	ids_free(&mask);
	progress_at(&s.progress, (double)s.tokens, "%lld records", (long long)s.records);
}

static json_t *side_json(struct side *d)
{
	double nll = s.scored > 0 ? -d->logprob / (double)s.scored : NAN;
	json_t *r = json_object();

	json_set_str(r, "model", d->dir);
	json_set_str(r, "kv_type", kv_type_name(engine_kv_type(d->g)));
	json_set_num(r, "nll", nll);
	json_set_num(r, "ppl", exp(nll));
	metric_routing(&d->metric, d->c, d->load, r);
	return r;
}

static void put_result(bool same)
{
	json_t *r = json_object(), *sides = human() ? json_object() : r;	/* side by side */

	json_set_str(r, "type", "diff");
	json_object_set_new(r, "same", json_boolean(same));
	json_set_int(r, "records", s.records);
	json_set_int(r, "tokens", s.tokens);
	fidelity_put(&s.f, r);
	json_set_int(r, "scored", s.scored);
	json_object_set_new(sides, "a", side_json(&s.a));
	json_object_set_new(sides, "b", side_json(&s.b));
	if (sides != r)
		json_object_set_new(r, "models", sides);
	must(human_put(r, &s.e) < 0);
	json_decref(r);
}

static void setup(const char *a, const char *b)
{
	struct config other;
	int64_t rows;
	int most;

	infer.model = a;
	infer_begin(false);
	must(modeldir_config(&other, b, 0, NULL, &s.e) < 0);
	most = infer_seq(b, &other, o.seq, 0);
	o.seq = infer_seq(a, &infer.cfg, o.seq, 0);
	o.seq = o.seq < most ? o.seq : most;
	config_free(&other);
	rows = LOGITS / ((int64_t)infer.cfg.vocab_size * 4);
	s.rows = rows < 16 ? 16 : rows > 256 ? 256 : (int)rows;
	s.rows = s.rows > o.seq ? o.seq : s.rows;
	s.rows = o.with ? 1 : s.rows;	/* as in generation: what may be replaced is so of single
					   tokens only */
	side_open(&s.a, a, KV_F32);
	side_open(&s.b, b, (enum kv_type)infer.kv);
	if (s.a.c->vocab_size != s.b.c->vocab_size)
		err_die(EX_DATAERR, "%s has a vocabulary of %d and %s of %d", a, s.a.c->vocab_size,
		    b, s.b.c->vocab_size);
	s.routers = s.a.c->num_sparse == s.b.c->num_sparse && s.a.c->num_experts ==
	    s.b.c->num_experts &&
	    s.a.c->num_experts_per_tok == s.b.c->num_experts_per_tok;
	fidelity_init(&s.f, s.routers ? s.a.c->num_sparse : 0);
	s.target = take(s.rows, sizeof(*s.target));
	s.logp = take(s.rows, sizeof(*s.logp));
	s.doc = take(o.seq, sizeof(*s.doc));
}

int main(int argc, char **argv)
{
	json_t *rec;
	bool same;
	int first;

	err_init(argv[0]);
	infer.pages = true;
	first = opt_parse(argc, argv, opts, &prog);
	if (argc - first < 2)
		opt_usage("two model directories are needed");
	sig_install();
	must((s.in = jsonl_open(argc - first - 2, argv + first + 2, o.skip_bad, &s.e)) == NULL);
	setup(argv[first], argv[first + 1]);
	progress_start(&s.progress, "comparing", "tokens", 0);
	while (!sig_stop && (rec = jsonl_next(s.in, &s.e)) != NULL) {
		compare_record(rec);
		json_decref(rec);
	}
	must(s.e.status != 0);
	progress_end(&s.progress);
	same = s.f.max_abs <= o.tol;
	if (!sig_stop)
		put_result(same);
	jsonl_close(s.in);
	side_close(&s.a);
	side_close(&s.b);
	free(s.target);
	free(s.logp);
	free(s.doc);
	infer_close();
	err_close_stdout();
	return sig_stop ? EX_TEMPFAIL : same ? 0 : EX_NO;
}
