/*
 * Decode on random tiny models: the bytes of a token's logits must not depend on how the text
 * was cut into calls and passes, on the other sequences, or on threads; and the values must be
 * those of the training forward pass.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "decode/decode.h"
#include "base/file.h"
#include "model/model.h"
#include "format/modeldir.h"
#include "base/pool.h"
#include "base/rng.h"
#include "tap.h"
#include "tinymodels.h"

#define T 37

static struct err e;
static char dir[256];

static void must(int failed)
{
	if (failed) {
		printf("Bail out! %s\n", e.msg);
		exit(1);
	}
}

static void write_model(const char *json, enum dtype dt)
{
	must(tinymodel(dir, json, dt, 0.35, &e) < 0);
}

static struct engine *open_engine(int max_rows)
{
	struct engine_opt o = { .max_seqs = 3, .max_tokens = T, .max_rows = max_rows,
	    .predict = SRC_MEASURED | SRC_BIT(SRC_CONTROL), .store.waste = 0.03 };
	struct engine *g = engine_open(dir, &o, &backend_cpu, NULL, &e);

	must(!g);
	return g;
}

static void text(uint32_t *tok, int n, int V, uint64_t stream)
{
	for (int i = 0; i < n; i++)
		tok[i] = (uint32_t)rng_below(11, stream, (uint64_t)i, (uint64_t)V);
}

static real *new_logits(int V) { return calloc((size_t)T * (size_t)V, sizeof(real)); }

/* All logits of a text, evaluated in calls of the given lengths (cyclic; 0 ends the list) and
 * passes of max_rows. */
static void run(real *out, const uint32_t *tok, int max_rows, const int *cut)
{
	struct engine *g = open_engine(max_rows);
	int V = engine_config(g)->vocab_size;
	struct seq *s = seq_new(g, &e);

	for (int t = 0, i = 0; t < T; i++) {
		int n;

		if (cut[i] == 0)
			i = 0;
		n = cut[i] < T - t ? cut[i] : T - t;
		must(engine_eval(g, &(struct eval_item){ .s = s, .tok = tok + t, .n = n,
		    .logits = out + (int64_t)t * V,
		    .all = true }, 1, NULL, &e) < 0);
		t += n;
	}
	engine_close(g);
}

/* The same text as the second of three sequences of different lengths, one of which was used
 * before. */
static void run_batch(real *out, const uint32_t *tok, int V)
{
	struct engine *g = open_engine(5);
	struct seq *s[3];
	struct eval_item it[3] = { 0 };
	uint32_t other[2][T];
	real *first = calloc((size_t)V, sizeof(real)), *again = calloc((size_t)V, sizeof(real));
	struct eval_stats st;

	for (int i = 0; i < 3; i++)
		must(!(s[i] = seq_new(g, &e)));
	text(other[0], T, V, 1);
	text(other[1], T, V, 2);
	must(engine_eval(g, &(struct eval_item){ .s = s[1], .tok = other[0], .n = 9 }, 1, NULL, &e)
	    < 0);
	seq_reset(s[1]);
	for (int t = 0; t < T; t += 4) {
		int n = T - t < 4 ? T - t : 4, k = 0;

		if (t < 20)
			it[k++] = (struct eval_item){ .s = s[0], .tok = other[0] + t, .n = 3,
			    .logits = first };
		it[k++] = (struct eval_item){ .s = s[1], .tok = tok + t, .n = n,
		    .logits = out + (int64_t)t * V, .all = true };
		if (t > 8)
			it[k++] = (struct eval_item){ .s = s[2], .tok = other[1] + t, .n = 1 };
		must(engine_eval(g, it, k, &st, &e) < 0);
	}
	ok(st.source[SRC_CONTROL].slots > 0 && st.source[SRC_CONTROL].hit ==
	    st.source[SRC_CONTROL].slots
	    && st.source[SRC_CONTROL].whole == st.source[SRC_CONTROL].sets,
	    "a router asked about its own input is always right");
	seq_free(s[2]);
	must(!(s[2] = seq_new(g, &e)));
	for (int t = 0; t < 20; t += 4)
		must(engine_eval(g, &(struct eval_item){ .s = s[2], .tok = other[0] + t, .n = 3,
		    .logits = again }, 1, NULL, &e)
		    < 0);
	ok(memcmp(first, again, sizeof(real) * (size_t)V) == 0,
	    "a sequence used again starts anew");
	free(first);
	free(again);
	engine_close(g);
}

static double worst(const real *a, const real *b, int64_t n)
{
	double w = 0;

	for (int64_t i = 0; i < n; i++)
		if (!(fabs((double)(a[i] - b[i])) <= w))
			w = fabs((double)(a[i] - b[i]));
	return w;
}

/* Against model_forward(): logits, router probabilities and lookahead probabilities of the whole
 * text. */
static void against_training(const real *logits, uint32_t *tok)
{
	struct modeldir md;
	struct model m;
	struct engine *g = open_engine(8);
	const struct config *c = engine_config(g);
	int Ls = c->num_sparse, E = c->num_experts, V = c->vocab_size, W = config_lookahead_rows(c);
	int32_t target[T], start[T] = { 0 };
	struct batch b = { 1, T, tok, target, start, NULL };
	struct eval_item it = { .s = seq_new(g, &e), .tok = tok, .n = T };
	real *want = new_logits(V), *look = calloc((size_t)T * (size_t)W + 1, sizeof(real));
	double router = 0, head = 0;

	memset(target, -1, sizeof(target));
	it.probs = calloc((size_t)T * (size_t)Ls * (size_t)E, sizeof(real));
	it.look = W ? look : NULL;
	must(engine_eval(g, &it, 1, NULL, &e) < 0 || modeldir_open(&md, dir, 0, NULL, &e) < 0);
	must(model_open(&m, &md.cfg, &(struct model_opt){ .max_b = 1, .max_t = T }, &backend_cpu,
	    &e) < 0);
	must(modeldir_load_f32(&md, &m.par, (float *)m.w, &e) < 0);
	model_forward(&m, &b, &(struct forward_opt){ 0 });
	model_logits(&m, want);
	is_close(worst(logits, want, (int64_t)T * V), 0, 1e-4,
	    "logits are those of the training forward");
	for (int i = 0; i < Ls; i++)
		for (int t = 0; t < T; t++)
			router = fmax(router, worst(it.probs + ((int64_t)t * Ls + i) * E,
			    m.probs + ((int64_t)i * T + t) * E, E));
	is_close(router, 0, 1e-5, "and so are router probabilities");
	if (W) {
		backend_cpu.softmax(&backend_cpu, m.look, (int64_t)T * (W / E), E);
		head = worst(look, m.look, (int64_t)T * W);
		is_close(head, 0, 1e-5, "and lookahead probabilities");
	}
	free(want);
	free(look);
	free(it.probs);
	model_close(&m);
	modeldir_close(&md);
	engine_close(g);
}

/* Logits (T, V) of an engine over m: the first 9 tokens once, then a fork each for two ways of
 * cutting the rest. */
static void run_over(struct engine *g, const uint32_t *tok, int V, real *a, real *b)
{
	struct seq *s = seq_new(g, &e), *f;
	struct eval_item it[2] = { { .s = s, .tok = tok, .n = 9, .logits = a, .all = true } };

	must(!s || engine_eval(g, it, 1, NULL, &e) < 0);
	memcpy(b, a, sizeof(real) * 9 * (size_t)V);
	must((f = seq_fork(s, &e)) == NULL);
	it[0] = (struct eval_item){ .s = f, .tok = tok + 9, .n = 4, .logits = b + 9 * V,
	    .all = true };
	it[1] = (struct eval_item){ .s = s, .tok = tok + 9, .n = T - 9, .logits = a + 9 * V,
	    .all = true };
	must(engine_eval(g, it, 2, NULL, &e) < 0);
	it[0] = (struct eval_item){ .s = f, .tok = tok + 13, .n = T - 13, .logits = b + 13 * V,
	    .all = true };
	must(engine_eval(g, it, 1, NULL, &e) < 0 || seq_len(f) != T);
	seq_free(f);
	seq_free(s);
}

/* An engine over weights in memory, before and after they change; forks. */
static void test_over(const real *full, const uint32_t *tok, int V)
{
	struct modeldir md;
	struct engine_opt o = { .max_seqs = 2, .max_tokens = T, .max_rows = 8 };
	size_t bytes = sizeof(real) * (size_t)T * (size_t)V;
	real *w, *a = new_logits(V), *b = new_logits(V), *c = new_logits(V);
	struct engine *g, *h;

	must(modeldir_open(&md, dir, 0, NULL, &e) < 0);
	w = calloc((size_t)md.par.total, sizeof(*w));
	must(modeldir_load_f32(&md, &md.par, (float *)w, &e) < 0);
	must((g = engine_over(&md.cfg, &md.par, w, &o, &backend_cpu, &e)) == NULL);
	run_over(g, tok, V, a, b);
	ok(memcmp(a, full, bytes) == 0, "an engine over weights in memory gives the same bytes");
	ok(memcmp(b, full, bytes) == 0, "and so does a fork, in other chunks");
	for (int64_t i = 0; i < md.par.total; i++)
		w[i] *= (real)1.25;
	engine_refresh(g);
	run_over(g, tok, V, a, b);
	must((h = engine_over(&md.cfg, &md.par, w, &o, &backend_cpu, &e)) == NULL);
	run_over(h, tok, V, c, b);
	ok(memcmp(a, c, bytes) == 0 && memcmp(a, full, bytes) != 0,
	    "and follows them when they change");
	engine_close(g);
	engine_close(h);
	modeldir_close(&md);
	free(w), free(a), free(b), free(c);
}

/* A token whose embedding is not finite after one that is: the pass fails, caches are as before
 * it, states are gone, and what is evaluated again gives the same bytes. */
static void test_failed_pass(const char *name, const struct config *c, const uint32_t *tok,
    const real *full)
{
	char whole[256];
	struct modeldir md;
	struct engine *g;
	struct seq *s;
	real *out = new_logits(c->vocab_size), *w;
	uint32_t bad = tok[0] == 3 ? 4 : 3;
	struct eval_item it = { .tok = tok, .n = 1 };
	size_t row = sizeof(real) * (size_t)c->vocab_size;

	must(modeldir_open(&md, dir, 0, NULL, &e) < 0);
	w = calloc((size_t)md.par.total, sizeof *w);
	must(modeldir_load_f32(&md, &md.par, w, &e) < 0);
	w[params_get(&md.par, P_EMBED, -1, -1)->off + (int64_t)bad * c->hidden_size] = NAN;
	snprintf(whole, sizeof whole, "%s", dir);
	snprintf(dir + strlen(dir), sizeof dir - strlen(dir), "-nan");
	must(file_mkdirs(dir, &e) < 0 || modeldir_save(dir, c, &md.par, w,
	    &(struct modeldir_out){ .dtype = DT_F32 }, NULL, &e) < 0);
	g = open_engine(8);
	it.s = s = seq_new(g, &e);
	must(engine_eval(g, &it, 1, NULL, &e) < 0);
	it.tok = &bad;
	ok(engine_eval(g, &it, 1, NULL, &e) < 0 && seq_len(s) == (config_recurs(c) ? 0 : 1),
	    "%s: a failed pass leaves %s", name, config_recurs(c) ? "nothing" : "caches alone");
	it = (struct eval_item){ .s = s, .tok = tok + seq_len(s), .n = 1 - seq_len(s),
	    .logits = out };
	if (it.n > 0)
		ok(engine_eval(g, &it, 1, NULL, &e) == 0 && memcmp(out, full, row) == 0,
		    "%s: and it begins anew", name);
	engine_close(g);
	modeldir_close(&md);
	snprintf(dir, sizeof dir, "%s", whole);
	free(w);
	free(out);
}

static void test_model(const char *name, const struct config *c)
{
	int V = c->vocab_size;
	uint32_t tok[T];
	real *full = new_logits(V), *other = new_logits(V);
	size_t bytes = sizeof(real) * (size_t)T * (size_t)V;

	text(tok, T, V, 0);
	run(full, tok, T, (const int[]){ T, 0 });
	run(other, tok, 3, (const int[]){ 1, 0 });
	ok(memcmp(full, other, bytes) == 0, "%s: one by one is full, byte for byte", name);
	run(other, tok, 11, (const int[]){ 5, 1, 13, 2, 0 });
	ok(memcmp(full, other, bytes) == 0, "%s: chunked is full", name);
	run(other, tok, 4, (const int[]){ T, 0 });
	ok(memcmp(full, other, bytes) == 0, "%s: small passes are full", name);
	memset(other, 0, bytes);
	run_batch(other, tok, V);
	ok(memcmp(full, other, bytes) == 0, "%s: so is one of a batch", name);
	pool_quit();
	pool_init(3);
	run(other, tok, T, (const int[]){ 30, 1, 0 });
	ok(memcmp(full, other, bytes) == 0, "%s: and with three threads", name);
	pool_quit();
	pool_init(1);
	if (!config_recurs(c)) {
		against_training(full, tok);
		test_over(full, tok, V);
	}
	test_failed_pass(name, c, tok, full);
	free(full);
	free(other);
}

static void test_refusals(void)
{
	struct engine *g = open_engine(8);
	struct seq *s = seq_new(g, &e);
	uint32_t tok[T + 1] = { 0 };
	struct eval_item it = { .s = s, .tok = tok, .n = T + 1 };
	struct mem_plan plan = { 0 };
	struct engine_opt o = { .ram = 1 << 20, .max_seqs = 1, .max_tokens = T, .max_rows = 4 };

	ok(engine_eval(g, &it, 1, NULL, &e) < 0 && seq_len(s) == 0,
	    "more tokens than the caches hold: %s", e.msg);
	tok[3] = 1u << 30;
	it.n = 5;
	ok(engine_eval(g, &it, 1, NULL, &e) < 0 && seq_len(s) == 0,
	    "a token outside the vocabulary: %s", e.msg);
	engine_close(g);
	ok(engine_open(dir, &o, &backend_cpu, &plan, &e) == NULL && e.status == EX_OSERR &&
	    strstr(e.msg, "chr-pack"),
	    "--ram 1M: %s", e.msg);
	ok(mem_plan_total(&plan) > o.ram, "and the plan was filled");
}

int main(void)
{
	char tmp[] = "/tmp/chr-decode.XXXXXX";

	must(!mkdtemp(tmp));
	pool_init(1);
	for (int i = 0; i < MODELS; i++) {
		struct config c;

		snprintf(dir, sizeof(dir), "%s/%d", tmp, i);
		must(file_mkdirs(dir, &e) < 0);
		write_model(models[i].json, i == 1 ? DT_BF16 : DT_F32);
		must(config_load(&c, dir, 0, NULL, &e) < 0);
		test_model(models[i].name, &c);
		config_free(&c);
	}
	test_refusals();
	pool_quit();
	file_remove_tree(tmp, &e);
	return tap_done();
}
