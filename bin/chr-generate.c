/* chr-generate: continues prompts. Records in, completions out in the same order; plain text for
 * one prompt by hand. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/comm.h"
#include "base/rank_deal.h"
#include "base/plain.h"
#include "decode/batch.h"
#include "decode/generation.h"
#include "base/guard.h"
#include "decode/infer.h"
#include "decode/infer_adapt.h"
#include "base/json.h"
#include "base/jsonfile.h"
#include "base/jsontext.h"
#include "base/progress.h"
#include "decode/report.h"
#include "base/sig.h"
#include "decode/guard_store.h"

#define CONTEXT 2048	/* tokens of a sequence when nothing says how many there will be */

static struct {
	const char *prompt, *stats;
	int batch, max_new, context, chunk, top_k;
	int64_t seed;
	double temperature, top_p, min_p, penalty, kv_warn, kv_shed;
	bool chat, raw, skip_bad, guard;
	struct opt_list stop;
} o = { .batch = 1, .max_new = 128, .chunk = 256, .top_k = 40, .temperature = 0.8, .top_p = 0.95,
    .min_p = 0.05,
	.penalty = 1, .kv_warn = 85, .kv_shed = 95 };

static const struct opt opts[] = {
	{ 'p', "prompt", OPT_STR, &o.prompt, 0, 0, "TEXT", "continue TEXT instead of records" },
	{ 'n', "new", OPT_INT, &o.max_new, 0, 1 << 24, "N",
	    "at most N new tokens for each prompt" },
	{ 'b', "batch", OPT_INT, &o.batch, 1, 1024, "N", "sequences evaluated together" },
	{ 0, "context", OPT_INT, &o.context, 0, 1 << 24, "N",
	    "room for N tokens, prompt included; 0: as many as needed, "
	    "2048 when that is not known" },
	{ 0, "chunk", OPT_INT, &o.chunk, 1, 1 << 16, "N", "prompt tokens evaluated at a time" },
	{ 0, "chat", OPT_FLAG, &o.chat, 0, 0, NULL,
	    "a prompt is what a user says; converses on a terminal" },
	{ 0, "raw", OPT_FLAG, &o.raw, 0, 0, NULL, "text out, not records (as with -p on a "
	    "terminal)" },
	{ 0, "stop", OPT_LIST, &o.stop, 0, 0, "TEXT", "end at TEXT, which is left out" },
	{ 0, "stats", OPT_OUT, &o.stats, 0, 0, "FD|FILE", "write a record for each step" },
	{ 0, "skip-bad", OPT_FLAG, &o.skip_bad, 0, 0, NULL,
	    "count and report bad records instead of stopping" },
	{ .kind = OPT_TABLE, .value = infer_adapt_opts },
	{ .kind = OPT_GROUP, .help = "sampling" },
	{ 0, "temperature", OPT_FLOAT, &o.temperature, 0, 1e6, "X",
	    "0 always takes the most likely token" },
	{ 0, "top-k", OPT_INT, &o.top_k, 0, INT_MAX, "N",
	    "among the N most likely tokens; 0: all" },
	{ 0, "top-p", OPT_FLOAT, &o.top_p, 0, 1, "X",
	    "among the fewest that have probability X together" },
	{ 0, "min-p", OPT_FLOAT, &o.min_p, 0, 1, "X",
	    "among those at least X times as likely as the best" },
	{ 0, "repeat-penalty", OPT_FLOAT, &o.penalty, 1e-3, 1e3, "X",
	    "make tokens that occurred less likely; 1: do not" },
	{ 's', "seed", OPT_COUNT, &o.seed, 0, 9e18, "N",
	    "of the draws; a record's own \"seed\" goes before it" },
	{ 0, "on-miss", OPT_CHOICE, &infer.on_miss, 0, 0, "wait|shared",
	    "an expert that is not there: wait, or let the shared experts stand in (lossy)" },
	{ 0, "route-bias", OPT_FLOAT, &infer.route_bias, 0, 50, "X",
	    "prefer experts in memory: add X to their routing logits (lossy); 0: exact" },
	{ 0, "guard", OPT_FLAG, &o.guard, 0, 0, NULL,
	    "when memory runs out, hold fewer experts, then take no new prompts" },
	{ 0, "kv-warn", OPT_FLOAT, &o.kv_warn, 1, 100, "PERCENT", "of a limit in use: say so" },
	{ 0, "kv-shed", OPT_FLOAT, &o.kv_shed, 1, 100, "PERCENT", "of it: do so" },
	{ .kind = OPT_TABLE, .value = infer_opts },
	{ 0 }
};

static const struct opt_prog prog = { "chr-generate", "[FILE...]", "continue prompts with a model",
	"Records hold \"prompt\" (text, or messages), \"messages\", \"text\" or \"tokens\"; the "
	    "others are carried through.",
	false };

struct job {
	struct request q;		/* first: a request is its job */
	struct jsontext line;		/* the record */
	int64_t number;			/* of it */
	size_t printed;
	double expected;
};

static struct {
	struct jsonl *in;
	struct gentext_opt gen;
	struct generation said;		/* by the model's maker */
	struct sampler *sampler;
	struct report report;
	struct batch *batch;
	int context;
	int64_t count;
	bool text;			/* text out */
	struct guard_store squeeze;	/* of --guard */
	struct job *by_hand;		/* -p: not begun yet */
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

/* --- what a record asks --- */

/* The record with these turns instead of what it asks. Takes the reference. */
static json_t *with_turns(const json_t *rec, json_t *turns)
{
	static const char *const others[] = { "prompt", "conversations", "tokens" };
	json_t *ask = json_copy((json_t *)rec);

	for (int i = 0; i < 3; i++)
		json_object_del(ask, others[i]);
	json_object_set_new(ask, "messages", turns);
	return ask;
}

/* The record that says what to evaluate: a user's turn, or what "prompt" holds. New reference. */
static json_t *asked(const json_t *rec)
{
	json_t *prompt = json_object_get(rec, "prompt");

	if (json_is_array(prompt))
		return with_turns(rec, json_incref(prompt));
	if (json_is_string(prompt) && o.chat)
		return with_turns(rec, json_pack("[{s:s,s:O}]", "role", "user", "content", prompt));
	return json_is_string(prompt) ? json_pack("{s:O}", "text", prompt)
	    : json_incref((json_t *)rec);
}

static int ids_of(const json_t *rec, struct ids *ids, struct err *why)
{
	const json_t *prompt = json_object_get(rec, "prompt");
	json_t *ask;
	int rc;

	if (prompt && !json_is_null(prompt) && !json_is_string(prompt) && !json_is_array(prompt))
		return err_set(why, EX_DATAERR, "\"prompt\" is %s, neither a text nor a list of "
		    "turns", jsonfile_kind(prompt));
	ask = asked(rec);
	rc = infer_ids(ask, true, ids, NULL, why);
	json_decref(ask);
	if (rc == 0 && ids->n == 0)
		return err_set(why, EX_DATAERR, "empty prompt, and no token to begin with");
	if (rc == 0 && s.context > 0 && ids->n >= s.context)
		return err_set(why, EX_DATAERR, "prompt of %d tokens leaves nothing of --context "
		    "%d", ids->n, s.context);
	return rc;
}

/* A record's own "seed" goes before the option. */
static int seed_of(const json_t *rec, uint64_t *seed, struct err *why)
{
	const json_t *v = json_object_get(rec, "seed");

	*seed = (uint64_t)o.seed;
	if (v == NULL || json_is_null(v))
		return 0;
	if (!json_is_integer(v))
		return err_set(why, EX_DATAERR, "\"seed\" is not a whole number "
		    "from -2^63 to 2^63-1");
	*seed = (uint64_t)json_integer_value(v);
	return 0;
}

static struct sample_opt sampling(uint64_t seed)
{
	return (struct sample_opt){ o.temperature, o.top_p, o.min_p, o.penalty, o.top_k, seed };
}

/* The text that the record came as; that of -p has none. */
static void keep_line(struct jsontext *to, const json_t *rec)
{
	size_t len;
	char *text = s.in != NULL ? NULL : json_dumps(rec, JSON_COMPACT);
	const char *line = s.in != NULL ? jsonl_text(s.in, &len) : text;

	if (line == NULL)
		err_die(EX_OSERR, "out of memory");
	jsontext_add(to, line, text != NULL ? strlen(text) : len);
	free(text);
}

/* A job for a record, or NULL when the record is bad: s.e says so, or it is passed over. Takes
 * the reference. */
static struct job *new_job(json_t *rec)
{
	struct sample_opt so;
	struct ids ids = { 0 };
	struct err why = { 0 };
	struct job *j = NULL;
	uint64_t seed;
	int adapter;

	if (seed_of(rec, &seed, &why) < 0 || (adapter = infer_adapter(rec, &why)) < 0 ||
	    ids_of(rec, &ids, &why) < 0) {
		if (!s.in) {
			s.e = why;
			must(true);
		}
		if (jsonl_bad(s.in, &s.e, "%s", why.msg) < 0)
			j = NULL;	/* s.e says so, and the loop ends */
	} else if ((j = calloc(1, sizeof(*j))) == NULL)
		err_die(EX_OSERR, "out of memory");
	else {
		so = sampling(seed);
		j->number = s.count++;
		j->q.adapter = adapter;
		gentext_start(&j->q.gen, &ids, &so, o.max_new, gentext_stream(&ids));
		keep_line(&j->line, rec);
	}
	json_decref(rec);
	ids_free(&ids);
	return j;
}

static void free_job(struct job *j)
{
	jsontext_free(&j->line);
	gentext_free(&j->q.gen);
	free(j);
}

/* The next that is this rank's; NULL: there is none, or s.e says why. */
static struct job *next_record(void)
{
	struct job *j = NULL;
	json_t *rec;

	while (!j && s.e.status == 0 && (rec = jsonl_next(s.in, &s.e)) != NULL)
		if ((j = new_job(rec)) != NULL && !rank_deal_own(j->number)) {
			free_job(j);
			j = NULL;
		}
	return j;
}

/* --- what is written --- */

static void write_result(const char *p, size_t n, const double sums[RANK_DEAL_SUMS])
{
	(void)sums;
	if (fwrite(p, 1, n, stdout) != n || fflush(stdout) != 0)
		err_die(EX_IOERR, "standard output:");
}

static void write_record(struct job *j, FILE *out)
{
	const struct gentext *g = &j->q.gen;
	json_t *timing = json_object(), *tokens = json_array(), *set = json_object();
	struct jsontext text = {0};
	int made = g->ids.n - g->nprompt;
	double decode = j->q.ended - j->q.drawn;

	for (int i = g->nprompt; i < g->ids.n; i++)
		json_array_append_new(tokens, json_integer(g->ids.v[i]));
	json_object_set_new(set, "completion", json_text(g->text ? g->text : "", g->len));
	json_object_set_new(set, "tokens", tokens);
	json_set_str(set, "finish", g->finish);
	infer_adapter_put(set, j->q.adapter);
	json_set_num(timing, "prefill_s", j->q.prefill);
	json_set_num(timing, "decode_s", decode);
	json_set_num(timing, "ttft_s", j->q.drawn - j->q.began);
	json_set_num(timing, "ttft_expected_s", j->expected);
	json_set_num(timing, "tok_per_s", made > 1 && decode > 0 ? (made - 1) / decode : 0);
	json_object_set_new(set, "timing", timing);
	jsontext_record(&text, j->line.s, j->line.n, set, false, NULL);
	json_decref(set);
	must(jsontext_put(&text, out, &s.e) < 0);
	jsontext_free(&text);
}

/* What has not been shown of a text. On a terminal, what would be a command to it is made
 * visible. */
static void write_text(struct job *j, FILE *out)
{
	size_t n = gentext_shown(&j->q.gen, &s.gen);

	if (n > j->printed)
		plain_write(out, j->q.gen.text + j->printed, n - j->printed);
	j->printed = n;
	fflush(out);
}

/* To rank 0. */
static void send_result(struct job *j)
{
	char *text;
	size_t size;
	FILE *out = open_memstream(&text, &size);

	if (out == NULL)
		err_die(EX_OSERR, "out of memory");
	if (s.text) {
		write_text(j, out);
		putc('\n', out);
	} else
		write_record(j, out);
	if (fclose(out) != 0)
		err_die(EX_OSERR, "out of memory");
	rank_deal_put(j->number, text, size, NULL);
	free(text);
}

/* --- what the batch calls --- */

/* Says how long the prompt will take, before it does. */
static void expect(struct job *j)
{
	struct expectation x;

	must(engine_expect(infer.g, j->q.gen.ids.n, &x, &s.e) < 0);
	j->expected = x.seconds;
	if (opt_quiet || !(opt_verbose || (x.seconds > 1 && isatty(STDERR_FILENO))))
		return;
	progress_clear(&s.progress);
	fprintf(stderr, "%s: prompt of %d tokens: %.2g s to the first token (%.2g s of computing, "
	    "%.2g s to read %.4g MB)\n", err_prog, j->q.gen.ids.n, x.seconds, x.compute, x.reads,
	    x.bytes / 1e6);
}

static struct request *next(void *ctx)
{
	struct job *j = s.in ? next_record() : s.by_hand;

	(void)ctx;
	s.by_hand = NULL;
	if (j == NULL)
		return NULL;
	if (j->q.gen.max_new > s.context - j->q.gen.nprompt)
		j->q.gen.max_new = s.context - j->q.gen.nprompt;
	expect(j);
	return &j->q;
}

static bool room(void *ctx)
{
	(void)ctx;
	return guard_store_check(&s.squeeze) != GUARD_LIMIT || s.by_hand != NULL;
}

static bool stop(void *ctx)
{
	(void)ctx;
	return sig_stop;
}

static int prompt_done(void *ctx, struct request *q, int n, const struct eval_stats *st,
    struct err *e)
{
	(void)ctx, (void)q;
	return report_prompt(&s.report, n, st, e);
}

static int step_done(void *ctx, int n, const struct eval_stats *st, struct err *e)
{
	(void)ctx;
	guard_store_check(&s.squeeze);
	if (s.in && (!s.text || !isatty(STDOUT_FILENO)))
		progress_at(&s.progress, (double)s.report.tokens, "%lld prompts",
		    (long long)s.count);
	return report_step(&s.report, n, st, e);
}

static int show(void *ctx, struct request *first, struct err *e)
{
	(void)ctx, (void)e;
	if (s.text && comm_size() == 1)
		write_text((struct job *)first, stdout);
	return 0;
}

static int done(void *ctx, struct request *q, struct err *e)
{
	struct job *j = (struct job *)q;

	(void)ctx, (void)e;
	if (comm_size() > 1)
		send_result(j);
	else if (s.text)
		putchar('\n');
	else
		write_record(j, stdout);
	free_job(j);
	return 0;
}

/* Whether prompts are left for want of memory. */
static bool run(void)
{
	int rc;

	if (s.in)
		progress_start(&s.progress, "generating", "tokens", 0);
	rc = batch_run(s.batch, &s.e);
	must(rc < 0);
	if (s.in) {
		if (s.e.status != 0)		/* those before it are written */
			rank_deal_fail(s.count, &s.e);
		if (rc == 1 && comm_size() > 1)	/* the others would wait for what is left */
			comm_abort(EX_TEMPFAIL);
		rank_deal_finish(s.count);
		progress_end(&s.progress);
	}
	return rc == 1;
}

/* --- a conversation --- */

struct talk {
	json_t *messages;
	struct seq *seq;		/* whose caches hold `held` */
	struct ids held;
};

/* The job of the next turn, whose caches keep what they share with it; NULL: no room. */
static struct job *turn(struct talk *t)
{
	struct sample_opt so = sampling((uint64_t)o.seed);
	struct ids ids = { 0 };
	struct job *j = NULL;
	int at = 0;

	must(tok_chat(infer.tok, &(struct tok_chat){ .messages = t->messages, .generate = true },
	    &ids, NULL, &s.e) < 0);
	while (at < t->held.n && at < ids.n - 1 && t->held.v[at] == ids.v[at])
		at++;
	if (at < t->held.n)
		seq_reset(t->seq);
	if (ids.n >= s.context)
		err_warn("the conversation has outgrown --context %d", s.context);
	else if ((j = calloc(1, sizeof *j)) == NULL)
		err_die(EX_OSERR, "out of memory");
	else {
		gentext_start(&j->q.gen, &ids, &so, o.max_new < s.context - ids.n ? o.max_new
		    : s.context - ids.n,
		    gentext_stream(&ids));
		j->q.seq = t->seq;
	}
	ids_free(&ids);
	return j;
}

static void add_turn(struct talk *t, const char *role, const char *text, size_t n)
{
	json_array_append_new(t->messages, json_pack("{s:s,s:o}", "role", role, "content",
	    json_text(text, n)));
}

static int said(void *ctx, struct request *q, struct err *e)
{
	struct talk *t = ctx;

	(void)e;
	putchar('\n');
	add_turn(t, "assistant", q->gen.text ? q->gen.text : "", q->gen.len);
	t->held.n = 0;
	for (int i = 0; i < seq_len(t->seq); i++)
		ids_push(&t->held, q->gen.ids.v[i]);
	free_job((struct job *)q);
	return 0;
}

/* Answers to what is typed; a turn evaluates only what is new. */
static void converse(struct talk *t)
{
	char *line = NULL;
	size_t cap = 0;
	ssize_t n;
	struct job *j;

	t->messages = json_array();
	must((t->seq = seq_new(infer.g, &s.e)) == NULL);
	seq_adapt(t->seq, infer_adapter_alone("a conversation"));
	while (fputs("> ", stderr), !sig_stop && (n = getline(&line, &cap, stdin)) > 0) {
		add_turn(t, "user", line, (size_t)(n - (line[n - 1] == '\n')));
		if ((j = turn(t)) == NULL)
			break;
		must(batch_add(s.batch, &j->q, &s.e) < 0);
		while (batch_active(s.batch) > 0 && !sig_stop)
			must(batch_step(s.batch, &s.e) < 0);
	}
	ids_free(&t->held);
	free(line);
	json_decref(t->messages);
	seq_free(t->seq);
}

/* --- opening --- */

/* Options that were not given are as the model's maker says. */
static void set_generation(void)
{
	must(generation_read(&s.said, infer.model, &s.e) < 0);
	if (s.said.temperature >= 0 && !opt_given("temperature"))
		o.temperature = s.said.temperature;
	if (s.said.top_k >= 0 && !opt_given("top-k"))
		o.top_k = s.said.top_k;
	if (s.said.top_p >= 0 && !opt_given("top-p"))
		o.top_p = s.said.top_p;
	if (s.said.min_p >= 0 && !opt_given("min-p"))
		o.min_p = s.said.min_p;
	if (s.said.repetition_penalty > 0 && !opt_given("repeat-penalty"))
		o.penalty = s.said.repetition_penalty;
	s.gen = (struct gentext_opt){ .tok = infer.tok, .nstop = o.stop.n, .stop = o.stop.v };
	generation_ends(&s.said, &infer.cfg, infer.tok, &s.gen);
	if (!infer.tok && (o.stop.n || o.raw || o.prompt || o.chat))
		err_die(EX_NOINPUT, "%s has no tokenizer.json: give -t FILE", infer.model);
}

/* Tokens a sequence may have: what the prompt by hand needs, else --context. */
static void set_context(const struct job *by_hand)
{
	int most = infer.cfg.max_position_embeddings;

	s.context = o.context ? o.context : by_hand ? by_hand->q.gen.nprompt + o.max_new
	    : o.max_new > CONTEXT / 2 ? 2 * o.max_new : CONTEXT;
	if (!o.context && s.context > most)
		s.context = most;
	if (s.context > most)
		err_warn("--context %d is beyond the %d positions that %s was made for", s.context,
		    most, infer.model);
	if (by_hand && by_hand->q.gen.nprompt >= s.context && o.max_new > 0)
		err_die(EX_DATAERR, "prompt of %d tokens leaves nothing of the context of %d",
		    by_hand->q.gen.nprompt, s.context);
}

/* A packed model takes what memory leaves below the warning. */
static void open_guard(void)
{
	const int ranks = comm_local();		/* each takes as much */
	int64_t room;

	if (!o.guard)
		return;
	s.squeeze.guard = guard_open("", o.kv_warn / 100, o.kv_shed / 100, &s.e);
	must(s.squeeze.guard == NULL);
	room = guard_room("", o.kv_warn / 100, ranks * mem_peak_rss()) / ranks;
	comm_barrier();				/* nobody takes any before all have looked */
	room = room > 0 ? room : 1;
	if (infer.ram == 0 || room < infer.ram)
		infer.ram = room;
}

static void open_batch(struct talk *talk)
{
	struct batch_hook hook = { .next = next, .room = room, .stop = stop, .prompt = prompt_done,
	    .step = step_done,
	    .show = show, .done = done };

	if (talk) {
		hook.ctx = talk;
		hook.done = said;
	}
	if ((s.sampler = sampler_new(infer.cfg.vocab_size)) == NULL)
		err_die(EX_OSERR, "out of memory");
	s.batch = batch_open(&(struct batch_opt){ .engine = infer.g, .gen = &s.gen,
	    .sampler = s.sampler,
	    .most = o.batch, .ordered = true }, &hook, &s.e);
	must(s.batch == NULL);
}

static void check_usage(int operands, bool talk)
{
	if (o.prompt && operands > 0)
		opt_usage("-p and files do not go together");
	if (!o.prompt && !talk && operands == 0 && isatty(STDIN_FILENO))
		opt_usage("nothing to continue: give -p TEXT, a file, or --chat");
	if (o.prompt || talk)
		infer_adapter_alone(o.prompt ? "-p" : "a conversation");
	must(comm_open(&s.e) < 0);
	if (comm_size() > 1 && (o.prompt || talk || o.stats))
		opt_usage("%s is for one process, not %d", o.stats ? "--stats" : o.prompt ? "-p"
		    : "a conversation", comm_size());
}

static void close_all(void)
{
	must(report_close(&s.report, &s.e) < 0);
	jsonl_close(s.in);
	batch_close(s.batch);
	sampler_free(s.sampler);
	guard_close(s.squeeze.guard);
	infer_close();
	err_close_stdout();
}

int main(int argc, char **argv)
{
	struct talk conversation = { 0 };
	bool talk, shed = false;
	int first;

	err_init(argv[0]);
	first = opt_parse(argc, argv, opts, &prog);
	talk = o.chat && !o.prompt && first == argc && isatty(STDIN_FILENO);
	check_usage(argc - first, talk);
	rank_deal_open(write_result);
	sig_install();
	infer_begin(false);
	set_generation();
	if (o.prompt)
		s.by_hand = new_job(json_pack("{s:o}", "prompt",
		    json_text(o.prompt, strlen(o.prompt))));
	else if (!talk && !infer.dry_run &&
	    (s.in = jsonl_open(argc - first, argv + first, o.skip_bad, &s.e)) == NULL)
		must(true);
	set_context(s.by_hand);
	open_guard();
	infer_open(o.batch, s.context, o.chunk, gentext_bytes(infer.cfg.vocab_size, o.batch));
	s.text = o.raw || talk || (o.prompt && isatty(STDOUT_FILENO));
	s.squeeze.store = engine_store(infer.g);
	open_batch(talk ? &conversation : NULL);
	must(report_open(&s.report, o.stats, infer.g, &s.e) < 0);
	if (talk)
		converse(&conversation);
	else
		shed = run();
	close_all();
	if (shed)
		err_warn("stopped after %lld prompts: others are left", (long long)s.count);
	return comm_close(sig_stop || shed ? EX_TEMPFAIL : 0, &s.e);
}
