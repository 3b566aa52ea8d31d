/* chr-generate: continues prompts. Records in, completions out in the same order; plain text for
 * one prompt by hand. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/comm.h"
#include "base/rank_deal.h"
#include "decode/gentext.h"
#include "base/guard.h"
#include "decode/infer.h"
#include "base/json.h"
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
	json_t *rec;
	int64_t number;			/* of the record */
	struct gentext gen;
	struct seq *seq;
	float *logits;
	size_t printed;
	double began, first, ended, prefill, expected;
	struct job *next;
};

static struct {
	struct jsonl *in;
	struct gentext_opt gen;
	struct sampler *sampler;
	struct report report;
	struct job *head, **tail;	/* in input order; the head is the next to be written */
	int active, waiting, context;	/* waiting: ended, but behind one that has not */
	int64_t count;
	bool text;			/* text out */
	struct guard_store squeeze;		/* of --guard */
	bool shed;			/* ended with prompts left, for want of memory */
	struct progress progress;
	struct err e;
} s = { .tail = &s.head };

static void must(int failed)
{
	if (!failed)
		return;
	progress_clear(&s.progress);
	err_exit(&s.e);
}

/* What a template takes besides turns. */
static json_t *with_tools(json_t *ask, const json_t *rec)
{
	static const char *const keys[] = { "tools", "chat_template_kwargs" };

	for (int i = 0; i < 2; i++)
		if (json_object_get(rec, keys[i]))
			json_object_set(ask, keys[i], json_object_get(rec, keys[i]));
	return ask;
}

/* The record that says what to evaluate: a user's turn, or what "prompt" holds. New reference. */
static json_t *asked(const json_t *rec)
{
	json_t *prompt = json_object_get(rec, "prompt");

	if (json_is_array(prompt))
		return with_tools(json_pack("{s:O}", "messages", prompt), rec);
	if (json_is_string(prompt))
		return o.chat ? with_tools(json_pack("{s:[{s:s,s:O}]}", "messages", "role",
		    "user", "content", prompt), rec)
		    : json_pack("{s:O}", "text", prompt);
	return json_incref((json_t *)rec);
}

/* A job for a record, or NULL when the record is bad: s.e says so, or it is passed over. Takes
 * the reference. */
static struct job *new_job(json_t *rec)
{
	struct sample_opt so = { o.temperature, o.top_p, o.min_p, o.penalty, o.top_k,
	    (uint64_t)o.seed };
	const json_t *seed = json_object_get(rec, "seed");
	struct ids ids = { 0 };
	struct err why = { 0 };
	json_t *ask = asked(rec);
	struct job *j = NULL;
	int status = infer_ids(ask, true, &ids, NULL, &why);

	json_decref(ask);
	if (status == 0 && ids.n == 0)
		status = err_set(&why, EX_DATAERR, "empty prompt, and no token to begin with");
	if (status == 0 && s.context > 0 && ids.n >= s.context)
		status = err_set(&why, EX_DATAERR,
		    "prompt of %d tokens leaves nothing of --context %d", ids.n, s.context);
	if (status < 0) {
		json_decref(rec);
		if (!s.in) {
			s.e = why;
			must(true);
		}
		jsonl_bad(s.in, &s.e, "%s", why.msg);
	} else if ((j = calloc(1, sizeof(*j))) == NULL)
		err_die(EX_OSERR, "out of memory");
	else {
		if (json_is_integer(seed))
			so.seed = (uint64_t)json_integer_value(seed);
		j->number = s.count++;
		gentext_start(&j->gen, &ids, &so, o.max_new, (uint64_t)j->number);
		j->rec = rec;
	}
	ids_free(&ids);
	return j;
}

/* Says how long the prompt will take, before it does. */
static void expect(struct job *j)
{
	struct expectation x;

	must(engine_expect(infer.g, j->gen.ids.n, &x, &s.e) < 0);
	j->expected = x.seconds;
	if (opt_quiet || !(opt_verbose || (x.seconds > 1 && isatty(STDERR_FILENO))))
		return;
	progress_clear(&s.progress);
	fprintf(stderr, "%s: prompt of %d tokens: %.2g s to the first token (%.2g s of computing, "
	    "%.2g s to read %.4g MB)\n", err_prog,
	    j->gen.ids.n, x.seconds, x.compute, x.reads, x.bytes / 1e6);
}

/* Evaluates the prompt and draws the first token. */
static void start_job(struct job *j)
{
	struct eval_item it = { .tok = j->gen.ids.v, .n = j->gen.ids.n };
	struct eval_stats st;

	j->began = progress_clock();
	*s.tail = j;
	s.tail = &j->next;
	if (j->gen.max_new > s.context - j->gen.nprompt)
		j->gen.max_new = s.context - j->gen.nprompt;
	j->logits = malloc(sizeof(*j->logits) * (size_t)infer.cfg.vocab_size);
	j->seq = seq_new(infer.g, &s.e);
	must(!j->seq || !j->logits);
	it.s = j->seq;
	it.logits = j->logits;
	expect(j);
	must(engine_eval(infer.g, &it, 1, &st, &s.e) < 0 || report_prompt(&s.report, it.n, &st,
	    &s.e) < 0);
	if (!j->gen.finish)
		gentext_next(&j->gen, &s.gen, s.sampler, j->logits);
	j->first = j->ended = progress_clock();
	j->prefill = st.wall;
	s.active++;
}

static void end_job(struct job *j)
{
	j->ended = progress_clock();
	seq_free(j->seq);
	free(j->logits);
	j->seq = NULL;
	j->logits = NULL;
	s.active--;
	s.waiting++;
}

static void free_job(struct job *j)
{
	json_decref(j->rec);
	gentext_free(&j->gen);
	free(j);
}

static void write_result(const char *p, size_t n, const double sums[RANK_DEAL_SUMS])
{
	(void)sums;
	if (fwrite(p, 1, n, stdout) != n || fflush(stdout) != 0)
		err_die(EX_IOERR, "standard output:");
}

static void write_record(struct job *j, FILE *out)
{
	const struct gentext *g = &j->gen;
	json_t *timing = json_object(), *tokens = json_array();
	int made = g->ids.n - g->nprompt;
	double decode = j->ended - j->first;

	for (int i = g->nprompt; i < g->ids.n; i++)
		json_array_append_new(tokens, json_integer(g->ids.v[i]));
	json_object_set_new(j->rec, "completion", json_text(g->text ? g->text : "", g->len));
	json_object_set_new(j->rec, "tokens", tokens);
	json_set_str(j->rec, "finish", g->finish);
	json_set_num(timing, "prefill_s", j->prefill);
	json_set_num(timing, "decode_s", decode);
	json_set_num(timing, "ttft_s", j->first - j->began);
	json_set_num(timing, "ttft_expected_s", j->expected);
	json_set_num(timing, "tok_per_s", made > 1 && decode > 0 ? (made - 1) / decode : 0);
	json_object_set_new(j->rec, "timing", timing);
	must(json_put_carried(out, j->rec, &s.e) < 0);
}

/* What has not been shown of a text. */
static void write_text(struct job *j, FILE *out)
{
	size_t n = gentext_shown(&j->gen, &s.gen);

	fwrite(j->gen.text ? j->gen.text + j->printed : "", 1, n - j->printed, out);
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

/* Writes what can be written in order. */
static void flush_jobs(void)
{
	struct job *j;

	while ((j = s.head) != NULL) {
		if (s.text && comm_size() == 1)
			write_text(j, stdout);
		if (!j->gen.finish)
			return;
		if (comm_size() > 1)
			send_result(j);
		else if (s.text)
			putchar('\n');
		else
			write_record(j, stdout);
		s.waiting--;
		s.head = j->next;
		if (!s.head)
			s.tail = &s.head;
		free_job(j);
	}
}

/* One token for every active job. */
static void step(void)
{
	struct eval_item it[1024];
	struct job *job[1024];
	struct eval_stats st;
	int n = 0;

	for (struct job *j = s.head; j; j = j->next)
		if (j->seq && !j->gen.finish) {
			it[n] = (struct eval_item){ .s = j->seq,
			    .tok = &j->gen.ids.v[j->gen.ids.n - 1], .n = 1,
			    .logits = j->logits };
			job[n++] = j;
		}
	if (n == 0)
		return;
	must(engine_eval(infer.g, it, n, &st, &s.e) < 0 || report_step(&s.report, n, &st, &s.e) <
	    0);
	for (int i = 0; i < n; i++)
		gentext_next(&job[i]->gen, &s.gen, s.sampler, job[i]->logits);
}

static void end_jobs(void)
{
	for (struct job *j = s.head; j; j = j->next) {
		if (sig_stop && !j->gen.finish)
			j->gen.finish = "interrupted";
		if (j->seq && j->gen.finish)
			end_job(j);
	}
	flush_jobs();
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

static void run_records(void)
{
	bool more = true, room;

	progress_start(&s.progress, "generating", "tokens", 0);
	while (!sig_stop && (more || s.active > 0)) {
		room = guard_store_check(&s.squeeze) != GUARD_LIMIT;
		/* A slow one at the head may hold back only so many results. */
		while (room && more && !sig_stop && s.active < o.batch &&
		    s.waiting < 16 * o.batch) {
			struct job *j = next_record();

			more = j != NULL;
			if (j)
				start_job(j);
			end_jobs();
			room = guard_store_check(&s.squeeze) != GUARD_LIMIT;
		}
		s.shed = more && s.active == 0 && !sig_stop;
		if (s.shed)
			break;
		step();
		end_jobs();
		if (!s.text || !isatty(STDOUT_FILENO))
			progress_at(&s.progress, (double)s.report.tokens, "%lld prompts",
			    (long long)s.count);
	}
	if (s.e.status != 0)		/* those before it are written */
		rank_deal_fail(s.count, &s.e);
	if (s.shed && comm_size() > 1)	/* the others would wait for what is left */
		comm_abort(EX_TEMPFAIL);
	rank_deal_finish(s.count);
	progress_end(&s.progress);
}

static void run_prompt(struct job *j)
{
	start_job(j);
	end_jobs();
	while (s.active > 0 && !sig_stop) {
		guard_store_check(&s.squeeze);
		step();
		end_jobs();
	}
}

/* Answers to what is typed. The caches hold `held`; a turn evaluates only what is new. */
static void converse(void)
{
	json_t *messages = json_array();
	struct sample_opt so = { o.temperature, o.top_p, o.min_p, o.penalty, o.top_k,
	    (uint64_t)o.seed };
	struct seq *seq = seq_new(infer.g, &s.e);
	float *logits = malloc(sizeof(*logits) * (size_t)infer.cfg.vocab_size);
	struct ids held = { 0 };
	char *line = NULL;
	size_t cap = 0;
	ssize_t n;

	must(!seq || !logits);
	while (fputs("> ", stderr), !sig_stop && (n = getline(&line, &cap, stdin)) > 0) {
		struct gentext g;
		struct ids ids = { 0 };
		int at = 0;
		size_t shown = 0;

		line[n - (line[n - 1] == '\n')] = '\0';
		json_array_append_new(messages, json_pack("{s:s,s:o}", "role", "user", "content",
		    json_text(line, strlen(line))));
		must(tok_chat(infer.tok, &(struct tok_chat){ .messages = messages,
		    .generate = true }, &ids,
		    NULL, &s.e) < 0);
		while (at < held.n && at < ids.n - 1 && held.v[at] == ids.v[at])
			at++;
		if (at < held.n)
			seq_reset(seq);
		if (ids.n >= s.context) {
			err_warn("the conversation has outgrown --context %d", s.context);
			ids_free(&ids);
			break;
		}
		gentext_start(&g, &ids, &so, o.max_new < s.context - ids.n ? o.max_new
		    : s.context - ids.n, (uint64_t)s.count++);
		while (!g.finish && !sig_stop) {
			int from = seq_len(seq);
			struct eval_item it = { .s = seq, .tok = g.ids.v + from,
			    .n = g.ids.n - from, .logits = logits };
			struct eval_stats st;

			guard_store_check(&s.squeeze);
			must(engine_eval(infer.g, &it, 1, &st, &s.e) < 0);
			must((from < g.nprompt ? report_prompt(&s.report, it.n, &st, &s.e)
			    : report_step(&s.report, 1, &st, &s.e)) < 0);
			gentext_next(&g, &s.gen, s.sampler, logits);
			fwrite(g.text ? g.text + shown : "", 1, gentext_shown(&g, &s.gen) - shown,
			    stdout);
			shown = gentext_shown(&g, &s.gen);
			fflush(stdout);
		}
		putchar('\n');
		json_array_append_new(messages, json_pack("{s:s,s:o}", "role", "assistant",
		    "content",
		    json_text(g.text ? g.text : "", g.len)));
		held.n = 0;
		for (int i = 0; i < seq_len(seq); i++)
			ids_push(&held, g.ids.v[i]);
		gentext_free(&g);
		ids_free(&ids);
	}
	ids_free(&held);
	free(line);
	free(logits);
	json_decref(messages);
	seq_free(seq);
}

static void set_ends(void)
{
	s.gen = (struct gentext_opt){ .tok = infer.tok, .end = { infer.cfg.eos_token_id, -1, -1 },
	    .nstop = o.stop.n,
	    .stop = o.stop.v };
	if (infer.tok) {
		s.gen.end[1] = tok_eos(infer.tok);
		s.gen.end[2] = tok_id(infer.tok, "<|im_end|>");
	} else if (o.stop.n || o.raw || o.prompt || o.chat)
		err_die(EX_NOINPUT, "%s has no tokenizer.json: give -t FILE", infer.model);
}

/* Tokens a sequence may have: what the prompt by hand needs, else --context. */
static void set_context(const struct job *by_hand)
{
	int most = infer.cfg.max_position_embeddings;

	s.context = o.context ? o.context : by_hand ? by_hand->gen.nprompt + o.max_new
	    : o.max_new > CONTEXT / 2 ? 2 * o.max_new : CONTEXT;
	if (!o.context && s.context > most)
		s.context = most;
	if (s.context > most)
		err_warn("--context %d is beyond the %d positions that %s was made for", s.context,
		    most, infer.model);
	if (by_hand && by_hand->gen.nprompt >= s.context && o.max_new > 0)
		err_die(EX_DATAERR, "prompt of %d tokens leaves nothing of the context of %d",
		    by_hand->gen.nprompt, s.context);
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

int main(int argc, char **argv)
{
	struct job *by_hand = NULL;
	bool talk;
	int first, V;

	err_init(argv[0]);
	first = opt_parse(argc, argv, opts, &prog);
	talk = o.chat && !o.prompt && first == argc && isatty(STDIN_FILENO);
	if (o.prompt && first < argc)
		opt_usage("-p and files do not go together");
	if (!o.prompt && !talk && first == argc && isatty(STDIN_FILENO))
		opt_usage("nothing to continue: give -p TEXT, a file, or --chat");
	must(comm_open(&s.e) < 0);
	if (comm_size() > 1 && (o.prompt || talk || o.stats))
		opt_usage("%s is for one process, not %d", o.stats ? "--stats" : o.prompt ? "-p"
		    : "a conversation", comm_size());
	rank_deal_open(write_result);
	sig_install();
	infer_begin(false);
	set_ends();
	V = infer.cfg.vocab_size;
	if (o.prompt)
		by_hand = new_job(json_pack("{s:o}", "prompt",
		    json_text(o.prompt, strlen(o.prompt))));
	else if (!talk && !infer.dry_run &&
	    (s.in = jsonl_open(argc - first, argv + first, o.skip_bad, &s.e)) == NULL)
		must(true);
	set_context(by_hand);
	open_guard();
	infer_open(o.batch, s.context, o.chunk, gentext_bytes(V, o.batch));
	s.text = o.raw || (o.prompt && isatty(STDOUT_FILENO));
	s.squeeze.store = engine_store(infer.g);
	if ((s.sampler = sampler_new(V)) == NULL)
		err_die(EX_OSERR, "out of memory");
	must(report_open(&s.report, o.stats, infer.g, &s.e) < 0);
	if (by_hand)
		run_prompt(by_hand);
	else if (talk)
		converse();
	else
		run_records();
	must(report_close(&s.report, &s.e) < 0);
	jsonl_close(s.in);
	sampler_free(s.sampler);
	guard_close(s.squeeze.guard);
	infer_close();
	err_close_stdout();
	if (s.shed)
		err_warn("stopped after %lld prompts: others are left", (long long)s.count);
	return comm_close(sig_stop || s.shed ? EX_TEMPFAIL : 0, &s.e);
}
