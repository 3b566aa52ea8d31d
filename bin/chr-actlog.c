/* chr-actlog: which experts every token of a text uses in every layer. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#include "experts/actlog.h"
#include "base/comm.h"
#include "base/rank_deal.h"
#include "decode/generation.h"
#include "decode/gentext.h"
#include "decode/infer.h"
#include "decode/infer_adapt.h"
#include "base/json.h"
#include "base/progress.h"
#include "base/sig.h"

static struct {
	int seq, generate, chunk;
	int64_t seed;
	double temperature;
	bool gzip, skip_bad;
} o = { .chunk = 256, .temperature = 0.8 };

static const struct opt opts[] = {
	{ 0, "seq", OPT_INT, &o.seq, 0, 1 << 24, "N",
	    "longer texts are cut into sequences of N tokens; "
	    "0: 512, or what the model was made for where that is less" },
	{ 'z', "gzip", OPT_FLAG, &o.gzip, 0, 0, NULL, "write gzip" },
	{ 0, "generate", OPT_INT, &o.generate, 0, 1 << 24, "N",
	    "take records as prompts; log N tokens generated after each too" },
	{ 0, "temperature", OPT_FLOAT, &o.temperature, 0, 1e6, "X",
	    "of --generate; 0 always takes the most likely token" },
	{ 's', "seed", OPT_COUNT, &o.seed, 0, 9e18, "N", "of --generate" },
	{ 0, "chunk", OPT_INT, &o.chunk, 1, 1 << 16, "N", "tokens evaluated at a time" },
	{ 0, "skip-bad", OPT_FLAG, &o.skip_bad, 0, 0, NULL,
	    "count and report bad records instead of stopping" },
	{ .kind = OPT_TABLE, .value = infer_adapt_opts },
	{ .kind = OPT_TABLE, .value = infer_opts },
	{ 0 }
};

static const struct opt_prog prog = { "chr-actlog", "[FILE...]", "log which experts texts use",
	"Records hold \"text\", \"messages\" or \"tokens\". The output is for chr-cluster.", true };

static struct {
	struct jsonl *in;
	gzFile gz;
	struct seq *seq;
	int32_t *topk;			/* (--seq + --generate, Ls, K) */
	char *line;
	FILE *out;			/* what the record gives */
	char *text;			/* in memory, */
	size_t size;
	int64_t records;
	struct sampler *sampler;
	float *logits;
	int64_t nseq, tokens;
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

static void put(const char *text, size_t n)
{
	if (s.gz ? gzwrite(s.gz, text, (unsigned)n) != (int)n : fwrite(text, 1, n, stdout) != n)
		err_die(EX_IOERR, "write error:");
}

/* The record's lines: at once, or to rank 0. */
static void put_line(const char *text, size_t n)
{
	if (s.out == NULL)
		put(text, n);
	else if (fwrite(text, 1, n, s.out) != n)
		err_die(EX_OSERR, "out of memory");
}

static void flush_lines(void)
{
	if (s.out == NULL && !s.gz && fflush(stdout) != 0)
		err_die(EX_IOERR, "write error:");
}

static void put_model(void)
{
	const char *print = engine_fingerprint(infer.g, &s.e);
	struct actlog_model m = { .layers = infer.cfg.num_hidden_layers,
	    .experts = infer.cfg.num_experts,
	    .top_k = infer.cfg.num_experts_per_tok, .expert_bytes = engine_expert_bytes(infer.g) };
	json_t *r;
	char *text;

	must(!print);
	snprintf(m.fingerprint, sizeof(m.fingerprint), "%s", print);
	r = actlog_model_json(&m);
	json_set_str(r, "kv_type", kv_type_name(engine_kv_type(infer.g)));
	text = json_dumps(r, JSON_COMPACT);
	if (!text)
		err_die(EX_OSERR, "out of memory");
	put(text, strlen(text));
	put("\n", 1);
	free(text);
	json_decref(r);
}

/* Longest record: each expert id has at most 5 bytes with its comma. */
static size_t line_size(void)
{
	return 160 + (size_t)infer.cfg.num_hidden_layers *
	    (3 + 5 * (size_t)infer.cfg.num_experts_per_tok);
}

/* mark: a key of its own, or "" */
static void put_act(int pos, uint32_t token, const char *mark, const int32_t *topk)
{
	int K = infer.cfg.num_experts_per_tok;
	char *p = s.line;

	p += sprintf(p, "{\"type\":\"act\",\"seq\":%lld,\"pos\":%d,\"token\":%u,%s\"layers\":[",
	    (long long)s.nseq, pos, token,
	    mark);
	for (int l = 0; l < infer.cfg.num_hidden_layers; l++) {
		*p++ = '[';
		if (infer.cfg.block[l].sparse) {
			for (int k = 0; k < K; k++)
				p += sprintf(p, k ? ",%d" : "%d", topk[k]);
			topk += K;
		}
		*p++ = ']';
		*p++ = ',';
	}
	p += sprintf(p - 1, "]}\n") - 1;
	put_line(s.line, (size_t)(p - s.line));
}

/* Appends up to o.generate tokens and their choices, of which the first `from` are there. */
static void generate(struct gentext *g, int from)
{
	int64_t per_token = (int64_t)infer.cfg.num_sparse * infer.cfg.num_experts_per_tok;
	struct gentext_opt go = { 0 };

	generation_ends(NULL, &infer.cfg, infer.tok, &go);
	while (gentext_next(g, &go, s.sampler, s.logits), g->ids.n > from && !sig_stop) {
		struct eval_item it = { .s = s.seq, .tok = g->ids.v + from, .n = 1,
		    .logits = s.logits,
		    .topk = s.topk + from * per_token };

		must(engine_eval(infer.g, &it, 1, NULL, &s.e) < 0);
		from++;
		if (g->finish)
			break;
	}
}

/* mask: (n) is it of the answer? */
static void log_sequence(const uint32_t *tok, const uint32_t *mask, int n)
{
	int64_t per_token = (int64_t)infer.cfg.num_sparse * infer.cfg.num_experts_per_tok;
	struct eval_item it = { .s = s.seq, .tok = tok, .n = n, .topk = s.topk, .logits = o.generate
	    ? s.logits : NULL };
	struct sample_opt so = { .temperature = o.temperature, .top_p = 0.95, .min_p = 0.05,
	    .repetition_penalty = 1,
	    .top_k = 40, .seed = (uint64_t)o.seed };
	struct ids prompt = { .n = n, .v = (uint32_t *)tok };
	struct gentext g;

	seq_reset(s.seq);
	must(engine_eval(infer.g, &it, 1, NULL, &s.e) < 0);
	gentext_start(&g, &prompt, &so, o.generate, gentext_stream(&prompt));
	if (o.generate)
		generate(&g, n);
	for (int i = 0; i < seq_len(s.seq); i++)
		put_act(i, g.ids.v[i], i >= n ? "\"gen\":true," : mask[i] ? "\"answer\":true," : "",
		    s.topk + i * per_token);
	s.tokens += seq_len(s.seq);
	gentext_free(&g);
	s.nseq++;
	flush_lines();
}

static void write_result(const char *p, size_t n, const double sums[RANK_DEAL_SUMS])
{
	(void)sums;
	put(p, n);
	flush_lines();
}

static void log_ids(const struct ids *ids, const struct ids *mask)
{
	if (comm_size() > 1 && (s.out = open_memstream(&s.text, &s.size)) == NULL)
		err_die(EX_OSERR, "out of memory");
	for (int i = 0; i < ids->n && !sig_stop; i += o.seq)
		log_sequence(ids->v + i, mask->v + i, ids->n - i < o.seq ? ids->n - i : o.seq);
	if (s.out == NULL)
		return;
	if (fclose(s.out) != 0)
		err_die(EX_OSERR, "out of memory");
	if (!sig_stop)
		rank_deal_put(s.records - 1, s.text, s.size, NULL);
	free(s.text);
}

/* Of a mask of what the assistant says, the last turn; nothing of a text, where all is 1, and of
 * prompts. */
static void only_answer(struct ids *mask)
{
	int end = mask->n, begin;

	while (end > 0 && !mask->v[end - 1])
		end--;
	for (begin = end; begin > 0 && mask->v[begin - 1]; begin--)
		;
	if (begin == 0 || o.generate)
		begin = end;
	memset(mask->v, 0, (size_t)begin * sizeof(*mask->v));
}

static void log_record(const json_t *rec)
{
	struct ids ids = { 0 }, mask = { 0 };
	struct err why = { 0 };
	int adapter;

	if ((adapter = infer_adapter(rec, &why)) < 0 ||
	    infer_ids(rec, o.generate > 0, &ids, &mask, &why) < 0) {
		if (jsonl_bad(s.in, &s.e, "%s", why.msg) < 0)
			rank_deal_fail(s.records, &s.e);
	} else if (!rank_deal_own(s.records++)) {
		s.nseq += (ids.n + o.seq - 1) / o.seq;
	} else {
		if (ids.n > 0)
			only_answer(&mask);
		seq_adapt(s.seq, adapter);
		log_ids(&ids, &mask);
	}
	ids_free(&ids);
	ids_free(&mask);
	progress_at(&s.progress, (double)s.tokens, "%lld sequences", (long long)s.nseq);
}

int main(int argc, char **argv)
{
	json_t *rec;
	int first, most;

	err_init(argv[0]);
	first = opt_parse(argc, argv, opts, &prog);
	must(comm_open(&s.e) < 0);
	rank_deal_open(write_result);
	sig_install();
	infer_begin(false);
	o.seq = infer_seq(infer.model, &infer.cfg, o.seq, o.generate);
	if (infer.cfg.num_sparse == 0)
		err_die(EX_DATAERR, "%s: no layer has experts", infer.model);
	if (!infer.dry_run && (s.in = jsonl_open(argc - first, argv + first, o.skip_bad, &s.e)) ==
	    NULL)
		must(true);
	most = o.seq + o.generate;
	infer_open(1, most, o.chunk, (int64_t)most * infer.cfg.num_sparse *
	    infer.cfg.num_experts_per_tok * 4
	    + (int64_t)infer.cfg.vocab_size * 20);
	s.topk = calloc((size_t)most * infer.cfg.num_sparse * infer.cfg.num_experts_per_tok,
	    sizeof(*s.topk));
	s.logits = calloc((size_t)infer.cfg.vocab_size, sizeof(*s.logits));
	s.line = malloc(line_size());
	s.sampler = sampler_new(infer.cfg.vocab_size);
	if (!s.topk || !s.logits || !s.line || !s.sampler)
		err_die(EX_OSERR, "out of memory");
	must((s.seq = seq_new(infer.g, &s.e)) == NULL);
	if (o.gzip && comm_rank() == 0 && (s.gz = gzdopen(dup(STDOUT_FILENO), "wb")) == NULL)
		err_die(EX_IOERR, "cannot write gzip:");
	put_model();
	progress_start(&s.progress, "logging", "tokens", 0);
	while (!sig_stop && (rec = jsonl_next(s.in, &s.e)) != NULL) {
		log_record(rec);
		json_decref(rec);
	}
	if (s.e.status != 0)
		rank_deal_fail(s.records, &s.e);
	rank_deal_finish(s.records);
	progress_end(&s.progress);
	if (s.gz && gzclose(s.gz) != Z_OK)
		err_die(EX_IOERR, "write error:");
	jsonl_close(s.in);
	sampler_free(s.sampler);
	free(s.topk);
	free(s.logits);
	free(s.line);
	infer_close();
	err_close_stdout();
	return comm_close(sig_stop ? EX_TEMPFAIL : 0, &s.e);
}
