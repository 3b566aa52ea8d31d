/*
 * grpo: rewards (built in, and from commands that behave and misbehave), prompts, and rollouts:
 * what is sampled does not depend on how many are sampled at a time, and the experts kept are
 * those of the training forward.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/pool.h"
#include "base/progress.h"
#include "text/prompt.h"
#include "stages/reward.h"
#include "stages/rollout.h"
#include "tap.h"

static struct err e;

static double toy(const char *s) { return reward_toy(s, strlen(s)); }

static void test_toy(void)
{
	is_close(toy(""), -1, 0, "toy: nothing");
	is_close(toy("12 + 3!"), -1, 0, "toy: no words");
	is_close(toy("the water"), 2.0 / 24 + 1, 1e-12, "toy: two common words");
	is_close(toy("zzz The the"), 3.0 / 24 + 2.0 / 3 - 0.5, 1e-12,
	    "toy: a word that is not, and one that repeats");
}

static double last(const char *s)
{
	double x = NAN;

	return reward_last_number(s, strlen(s), &x) == 0 ? x : -999;
}

static double judge_number(const char *record, const char *text, struct err *why)
{
	struct reward *r = reward_open("number", &(struct reward_opt){ 0 }, &e);
	json_t *rec = json_loads(record, 0, NULL);
	struct reward_item it = { .record = rec, .text = text, .len = strlen(text) };
	double x = -1;

	if (reward_check("number", rec, why) == 0)
		reward_ask(r, &it, &x, &e);
	json_decref(rec);
	reward_close(r);
	return x;
}

static void test_number(void)
{
	struct err why = { 0 };

	is_close(last("so 3 and 4.50 dollars."), 4.5, 0, "number: the last one");
	is_close(last("$1,234,567."), 1234567, 0, "commas, and a full stop behind");
	is_close(last("it is -7"), -7, 0, "negative");
	is_close(last("10-3"), 3, 0, "a difference is not");
	is_close(last("none, really."), -999, 0, "none");
	is_close(judge_number("{\"answer\":\"Add them. #### 1,072\"}", "I think 5 ... 1072", &why),
	    1, 0, "right");
	is_close(judge_number("{\"answer\":12}", "13", &why), 0, 0, "wrong");
	is_close(judge_number("{\"answer\":12}", "no idea", &why), 0, 0, "no number at all");
	ok(judge_number("{\"answer\":\"twelve\"}", "12", &why) < 0 && why.status == EX_DATAERR,
	    "no answer: %s", why.msg);
}

/* n completions; the sum of the rewards, or -1 with e. */
static double ask(const char *command, double timeout, int n, size_t text_len)
{
	const struct reward_opt o = { .timeout = timeout };
	struct reward *r;
	json_t *rec = json_pack("{s:s}", "answer", "7");
	char *text = malloc(text_len + 1);
	uint32_t tok[4] = { 1, 2, 3, 4 };
	json_t *prompt = json_string("a \"question\"");
	struct reward_item it = { rec, "{\"answer\":\"7\",\"id\":1.10}", prompt, text, text_len,
	    tok, 2, 4 };
	double *x = calloc((size_t)n, sizeof(*x)), sum = 0;
	int rc = 0;

	memset(text, 'x', text_len);
	e = (struct err){ 0 };
	if ((r = reward_open(command, &o, &e)) == NULL)
		rc = -1;
	for (int i = 0; i < n && rc == 0; i++)
		rc = reward_ask(r, &it, &x[i], &e);
	if (rc == 0)
		rc = reward_wait(r, &e);
	for (int i = 0; i < n; i++)
		sum += x[i] * (i + 1);
	reward_close(r);
	json_decref(rec);
	json_decref(prompt);
	free(text);
	free(x);
	return rc < 0 ? -1 : sum;
}

static void test_command(void)
{
	double began;

	is_close(ask("n=0; while read -r line; do n=$((n + 1)); echo $n; done", 10, 3, 5),
	    1 + 4 + 9, 0,
	    "command: answers belong to the completions in order");
	is_close(ask("while read -r line; do case $line in *'"
	    "\"id\":1.10}}'*) echo 1;; *) echo 0;; esac; done", 10, 1, 5), 1, 0,
	    "the record with its numbers as they are written");
	is_close(ask("while read -r line; do echo \"{\\\"reward\\\": 0.5, \\\"why\\\": []}\"; done",
	    10, 2, 5), 1.5, 0,
	    "an object with a reward");
	is_close(ask("grep -c x | head -1; cat", 10, 0, 5), 0, 0, "none asked about");
	is_close(ask("while read -r line; do case $line in '{\"prompt\":\"a \\\"question\\\"\","
	    "\"completion\":\"xx\","
	    "\"tokens\":[3,4],\"record\":{\"answer\":\"7\",\"id\":1.10}}') echo 1;; *) echo 0;; "
	    "esac; done", 10,
	    2, 2), 3, 0,
	    "what a line looks like");
	is_close(ask("sleep 0.2; while read -r line; do echo 1; done", 10, 400, 3000),
	    400 * 401 / 2.0, 0,
	    "1.2 MB to a command that is slow to begin");
	ok(ask("head -n 1 > /dev/null; exit 3", 10, 5, 9) < 0 && e.status == EX_UNAVAILABLE &&
	    strstr(e.msg, "status 3"),
	    "it ends: %s", e.msg);
	ok(ask("exec /nonexistent", 10, 900, 900) < 0 && e.status == EX_UNAVAILABLE,
	    "it never began: %s", e.msg);
	ok(ask("kill -9 $$", 10, 1, 9) < 0 && strstr(e.msg, "signal 9"), "it is killed: %s", e.msg);
	ok(ask("while read -r line; do echo good; done", 10, 2, 9) < 0 && e.status == EX_DATAERR &&
	    strstr(e.msg, "good"),
	    "no number: %s", e.msg);
	ok(ask("while read -r line; do echo NaN; done", 10, 1, 9) < 0 && e.status == EX_DATAERR,
	    "NaN: %s", e.msg);
	ok(ask("read -r line; printf '1\\n2\\n3\\n'; cat", 10, 1, 9) < 0 &&
	    strstr(e.msg, "more answers"),
	    "too many answers: %s", e.msg);
	ok(ask("head -c 100000 /dev/zero | tr '\\0' 9; cat", 10, 1, 9) < 0 &&
	    e.status == EX_DATAERR, "an endless line");
	began = progress_clock();
	ok(ask("trap '' TERM; while :; do sleep 1; done", 0.2, 1, 9) < 0 &&
	    e.status == EX_UNAVAILABLE &&
	    strstr(e.msg, "--reward-timeout"), "silence: %s", e.msg);
	ok(progress_clock() - began < 5, "and it is not waited for");
}

static void test_prompts(void)
{
	static const char *const rec[] = {
		"{\"prompt\":[{\"role\":\"user\",\"content\":\"old\"},{\"role\":\"assistant\","
		    "\"content\":\"yes\"},"
		"{\"role\":\"user\",\"content\":\"why?\"}]}",
		"{\"question\":\"why?\"}",
		"{\"conversations\":[{\"from\":\"human\",\"value\":\"why?\"},{\"from\":\"gpt\","
		    "\"value\":\"so\"}]}",
	};
	int good = 1;

	for (size_t i = 0; i < sizeof(rec) / sizeof(rec[0]); i++) {
		json_t *r = json_loads(rec[i], 0, NULL);

		json_t *text = prompt_text(r);

		good &= strcmp(json_string_value(text), "why?") == 0;
		json_decref(text);
		json_decref(r);
	}
	ok(good, "prompt, question, the last turn of the user");
}

/* --- rollouts --- */

#define P 3		/* prompts */
#define G 4
#define N (P * G)
#define NEW 10
#define T 24

static struct model m;

static void make_model(void)
{
	static const char json[] = "{\"chronos_format\": 2, \"vocab_size\": 40, \"hidden_size\": "
	    "16, \"num_hidden_layers\": 3,"
	    "\"num_attention_heads\": 2, \"num_key_value_heads\": 1, \"head_dim\": 8, "
	    "\"moe_intermediate_size\": 8,"
	    "\"num_experts\": 6, \"num_experts_per_tok\": 2, \"num_shared_experts\": 1, "
	    "\"kv_latent_dim\": 8, \"rope_dim\": 4,"
	    "\"sliding_window_size\": 6, \"max_position_embeddings\": 32, \"lookahead_steps\": 1,"
	    "\"mlp_layer_types\": [\"sparse\", \"dense\", \"sparse\"]}";
	struct model_opt o = { .max_b = N, .max_t = T, .train = true };
	struct config c;
	json_t *j = json_loads(json, 0, NULL);

	if (config_from_json(&c, j, 0, NULL, &e) < 0 || model_open(&m, &c, &o, &backend_cpu, &e) <
	    0)
		err_exit(&e);
	model_init_weights(&m, 8);
	for (int64_t i = 0; i < m.par.total; i++)
		m.w[i] *= 2;
	config_free(&c);
	json_decref(j);
}

static struct completion *new_completions(void)
{
	struct completion *c = calloc(N, sizeof(*c));

	for (int i = 0; i < N; i++) {
		c[i].tok = calloc(T, sizeof(*c[i].tok));
		c[i].topk = calloc(T * 2 * 2, sizeof(*c[i].topk));
		c[i].nprompt = 3 + 4 * (i / G);
		c[i].stream = (uint64_t)i;
		for (int t = 0; t < c[i].nprompt; t++)
			c[i].tok[t] = (uint32_t)(t * 7 + i / G) % 40;
	}
	return c;
}

static void free_completions(struct completion *c)
{
	for (int i = 0; i < N; i++) {
		gentext_free(&c[i].q.gen);
		free(c[i].tok);
		free(c[i].topk);
	}
	free(c);
}

static int ended(void *ctx, struct completion *c, struct err *why)
{
	(void)c;
	(void)why;
	++*(int *)ctx;
	return 0;
}

static int tick(void *ctx, struct err *why)
{
	(void)ctx;
	(void)why;
	return 0;
}

static struct completion *sample_all(int parallel, uint64_t seed, double temperature)
{
	struct rollout_opt o = { .group = G, .max_new = NEW, .parallel = parallel, .max_tokens = T,
		.sample = { .temperature = temperature, .top_p = 1, .repetition_penalty = 1 },
		    .gen = { .n_end = 2, .end = { 5, 11 } } };
	struct completion *c = new_completions();
	int count = 0;
	struct rollout_hook h = { ended, tick, &count };
	struct rollout *r = rollout_open(&m, &o, &backend_cpu, &e);

	if (!r || rollout_run(r, c, N, seed, &h, &e) < 0)
		err_exit(&e);
	if (count != N)
		ok(0, "%d of %d completions ended", count, N);
	rollout_close(r);
	return c;
}

static int same(const struct completion *a, const struct completion *b)
{
	for (int i = 0; i < N; i++)
		if (a[i].n != b[i].n || memcmp(a[i].tok, b[i].tok, (size_t)a[i].n * 4) != 0 ||
		    a[i].stopped != b[i].stopped ||
		    memcmp(a[i].topk, b[i].topk, (size_t)(a[i].n - 1) * 4 * 4) != 0)
			return 0;
	return 1;
}

/* Every completion is whole: it ends with an end token and has no other, or is as long as it may
 * be. */
static int well_formed(const struct completion *c, int *stopped)
{
	int good = 1;

	for (int i = 0; i < N; i++) {
		for (int t = c[i].nprompt; t < c[i].n; t++) {
			bool end = c[i].tok[t] == 5 || c[i].tok[t] == 11;

			good &= end == (c[i].stopped && t == c[i].n - 1);
		}
		good &= c[i].stopped || c[i].n == c[i].nprompt + NEW;
		*stopped += c[i].stopped;
	}
	return good;
}

/* The experts of the rollout against those of the training forward on the same tokens. */
static void against_training(const struct completion *c)
{
	static uint32_t tok[N * T];
	static int32_t target[N * T], doc[N * T], replay[2 * N * T * 2];
	struct batch b = { N, T, tok, target, doc, NULL };
	struct forward_opt fo = { .replay = replay };
	int used = 1;

	memset(replay, -1, sizeof(replay));
	for (int i = 0; i < N; i++)
		for (int t = 0; t < T; t++) {
			int r = i * T + t;

			target[r] = -1;
			doc[r] = t < c[i].n - 1 ? 0 : -1;
			tok[r] = doc[r] < 0 ? 0 : c[i].tok[t];
			for (int l = 0; l < 2 && doc[r] == 0; l++)
				memcpy(replay + (l * N * T + r) * 2, c[i].topk + (t * 2 + l) * 2,
				    2 * sizeof(*replay));
		}
	model_forward(&m, &b, &fo);
	ok(m.replayed > 100 && m.moved == 0, "the router in training agrees on all %lld choices",
	    (long long)m.replayed);
	for (int64_t i = 0; i < 2 * N * T * 2; i++)
		used &= replay[i] < 0 || m.topk[i] == replay[i];
	ok(used, "and they are the ones used");
	for (int64_t i = 0; i < m.par.total; i++)
		m.w[i] += (real)0.05 * (real)sin((double)i);
	model_forward(&m, &b, &fo);
	ok(m.moved > 0, "after a large step the router would choose others (%lld), but the same "
	    "are used", (long long)m.moved);
	used = 1;
	for (int64_t i = 0; i < 2 * N * T * 2; i++)
		used &= replay[i] < 0 || m.topk[i] == replay[i];
	ok(used, "disagreement with replay is zero");
}

static void test_rollouts(void)
{
	struct completion *a, *b;
	int stopped = 0, differ = 0, good;

	make_model();
	a = sample_all(N, 1, 1);
	good = well_formed(a, &stopped);
	ok(good && stopped > 0 && stopped < N, "completions end with an end token (%d), or for "
	    "their length",
	    stopped);
	for (int i = 1; i < G; i++)
		differ += a[i].n != a[0].n || memcmp(a[i].tok, a[0].tok, (size_t)a[0].n * 4) != 0;
	ok(differ > 0, "those of a prompt differ");
	for (int parallel = 1; parallel < N; parallel += 4) {
		b = sample_all(parallel, 1, 1);
		ok(same(a, b), "%d at a time: the same", parallel);
		free_completions(b);
	}
	b = sample_all(N, 2, 1);
	ok(!same(a, b), "another seed: others");
	free_completions(b);
	b = sample_all(5, 1, 0);
	ok(b[0].n == b[1].n && memcmp(b[0].tok, b[3].tok, (size_t)b[0].n * 4) == 0,
	    "temperature 0: all of a prompt alike");
	free_completions(b);
	against_training(a);
	b = sample_all(N, 1, 1);
	ok(!same(a, b), "other weights: other completions");
	free_completions(a);
	free_completions(b);
	model_close(&m);
}

int main(void)
{
	err_init("grpo");
	pool_init(2);
	test_toy();
	test_number();
	test_command();
	test_prompts();
	test_rollouts();
	pool_quit();
	return tap_done();
}
