/* Published families against the logits of transformers: shared/golden/families (see README
 * there). */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "arch/arch.h"
#include "base/pool.h"
#include "decode/decode.h"
#include "format/safetensors.h"
#include "model/model.h"
#include "format/modeldir.h"
#include "tap.h"

enum { B = 2, T = 40, GIVEN = 12, GREEDY = 36 };

struct gold {
	struct st_file *f;
	int32_t tok[B * T], greedy[GREEDY];
	float *logits;			/* (B, T, V) */
	int V;
};

static int get(const struct gold *g, const char *name, void *dst, size_t bytes)
{
	const struct st_tensor *t = st_find(g->f, name);
	struct st_error se;

	return t && t->nbytes == bytes ? st_read(g->f, t, 0, dst, bytes, &se) : -1;
}

static int gold_open(struct gold *g, const char *dir)
{
	char path[512];
	const struct st_tensor *t;
	struct st_error se;

	snprintf(path, sizeof path, "%s/expected.safetensors", dir);
	if (!(g->f = st_open(path, ST_READ, &se)) || !(t = st_find(g->f, "logits")))
		return -1;
	g->V = (int)t->shape[2];
	g->logits = malloc(t->nbytes);
	return get(g, "tokens", g->tok, sizeof g->tok) < 0 || get(g, "greedy", g->greedy,
	    sizeof g->greedy) < 0 ||
	    get(g, "logits", g->logits, t->nbytes) < 0 ? -1 : 0;
}

static double worst(const real *a, const float *b, int64_t n)
{
	double w = 0;

	for (int64_t i = 0; i < n; i++)
		w = fmax(w, isfinite(a[i]) ? fabs((double)a[i] - (double)b[i]) : INFINITY);
	return w;
}

/* Row b of the tokens in chunks; logits of all positions. */
static int eval(struct engine *g, const struct gold *x, int b, int chunk, real *logits,
    struct eval_stats *st)
{
	struct err e = { 0 };
	struct seq *s = seq_new(g, &e);
	int r = 0;

	for (int i = 0; s && i < T && r == 0; i += chunk) {
		struct eval_item it = { .s = s, .tok = (const uint32_t *)x->tok + b * T + i,
		    .n = T - i < chunk ? T - i : chunk, .logits = logits + (int64_t)i * x->V,
		    .all = true };

		if ((r = engine_eval(g, &it, 1, st, &e)) < 0)
			printf("# %s\n", e.msg);
	}
	if (s)
		seq_free(s);
	return s ? r : -1;
}

static int best(const real *logits, int V)
{
	int k = 0;

	for (int i = 1; i < V; i++)
		if (logits[i] > logits[k])
			k = i;
	return k;
}

static bool greedy_same(struct engine *g, const struct gold *x, real *logits)
{
	struct err e = { 0 };
	struct seq *s = seq_new(g, &e);
	bool same = true;

	for (int i = 0; i + 1 < GREEDY; i++) {
		struct eval_item it = { .s = s, .tok = (const uint32_t *)&x->greedy[i], .n = 1,
		    .logits = logits };

		if (engine_eval(g, &it, 1, NULL, &e) < 0)
			return false;
		same &= i + 1 < GIVEN || best(logits, x->V) == x->greedy[i + 1];
	}
	seq_free(s);
	return same;
}

/* Both rows in one call after 11 and 17 tokens each, the second from a fork that outlives
 * its model: the bytes of `all`. */
static bool together_same(struct engine *g, const struct gold *x, const real *all, real *logits)
{
	enum { FIRST = 11, SECOND = 17 };
	struct err e = { 0 };
	struct seq *a = seq_new(g, &e), *b = seq_new(g, &e), *fork;
	struct eval_item it[2] = {
		{ .s = a, .tok = (const uint32_t *)x->tok, .n = FIRST },
		{ .s = b, .tok = (const uint32_t *)x->tok + T, .n = SECOND } };
	int64_t n1 = (int64_t)(T - FIRST) * x->V, n2 = (int64_t)(T - SECOND) * x->V;

	if (engine_eval(g, it, 2, NULL, &e) < 0 || (fork = seq_fork(b, &e)) == NULL)
		return false;
	seq_free(b);
	b = seq_new(g, &e);		/* the same place, other tokens */
	it[0] = (struct eval_item){ .s = b, .tok = (const uint32_t *)x->tok + 3, .n = 2 };
	if (engine_eval(g, it, 1, NULL, &e) < 0)
		return false;
	it[0] = (struct eval_item){ .s = a, .tok = (const uint32_t *)x->tok + FIRST,
	    .n = T - FIRST, .logits = logits, .all = true };
	it[1] = (struct eval_item){ .s = fork, .tok = (const uint32_t *)x->tok + T + SECOND,
	    .n = T - SECOND, .logits = logits + n1, .all = true };
	if (engine_eval(g, it, 2, NULL, &e) < 0)
		return false;
	seq_free(a);
	seq_free(b);
	seq_free(fork);
	return memcmp(logits, all + (int64_t)FIRST * x->V, (size_t)n1 * sizeof *all) == 0 &&
	    memcmp(logits + n1, all + (int64_t)(T + SECOND) * x->V, (size_t)n2 * sizeof *all) == 0;
}

static void test_engine(const char *name, const char *dir, const struct gold *x)
{
	struct engine_opt o = { .max_seqs = 3, .max_tokens = 64, .max_rows = 64, .kv = KV_F32,
	    .predict = SRC_BIT(SRC_CONTROL) };
	struct eval_stats st;
	struct err e = { 0 };
	struct engine *g = engine_open(dir, &o, &backend_cpu, NULL, &e);
	int64_t n = (int64_t)B * T * x->V;
	real *all, *cut;
	double w;

	if (!ok(g != NULL, "%s: opens %s", name, e.msg))
		return;
	all = malloc((size_t)n * sizeof *all);
	cut = malloc((size_t)n * sizeof *cut);
	for (int b = 0; b < B; b++) {
		eval(g, x, b, T, all + (int64_t)b * T * x->V, &st);
		eval(g, x, b, 7, cut + (int64_t)b * T * x->V, NULL);
	}
	w = worst(all, x->logits, n);
	ok(w < 1e-3, "%s: logits of transformers, at most %.1e away", name, w);
	ok(memcmp(all, cut, (size_t)n * sizeof *all) == 0, "%s: the same in chunks of 7", name);
	ok(together_same(g, x, all, cut), "%s: the same beside another and from a fork", name);
	ok(greedy_same(g, x, all), "%s: the same greedy tokens", name);
	ok(st.source[SRC_CONTROL].hit == st.source[SRC_CONTROL].slots,
	    "%s: predictors choose as its routers do, %lu of %lu", name,
	    (unsigned long)st.source[SRC_CONTROL].hit,
	    (unsigned long)st.source[SRC_CONTROL].slots);
	engine_close(g);
	free(all);
	free(cut);
}

/* Families that can be run only say so by name. */
static void test_refused(const char *name, const struct config *c)
{
	struct model_opt o = { .max_b = B, .max_t = T };
	struct err e = { 0 };
	struct model m;

	ok(model_open(&m, c, &o, &backend_cpu, &e) < 0 && e.status == EX_UNAVAILABLE &&
	    strstr(e.msg, c->arch->model_type), "%s: is not trained: %s", name, e.msg);
}

/* The forward pass of training. */
static void test_model(const char *name, const char *dir, const struct gold *x)
{
	struct model_opt o = { .max_b = B, .max_t = T };
	int32_t doc[B * T] = { 0 }, target[B * T];
	struct batch b = { .B = B, .T = T, .tok = (uint32_t *)x->tok, .target = target,
	    .doc_start = doc };
	struct forward_opt fo = { 0 };
	struct modeldir md;
	struct err e = { 0 };
	struct model m;
	int64_t n = (int64_t)B * T * x->V;
	real *logits;
	double w;

	memset(target, -1, sizeof target);
	if (!ok(modeldir_open(&md, dir, 0, NULL, &e) == 0, "%s: config and files %s", name, e.msg))
		return;
	if (config_recurs(&md.cfg)) {
		test_refused(name, &md.cfg);
		modeldir_close(&md);
		return;
	}
	if (!ok(model_open(&m, &md.cfg, &o,
	    &backend_cpu, &e) == 0 &&
	    modeldir_load_f32(&md, &m.par, m.w, &e) == 0, "%s: opens for training %s", name, e.msg))
		return;
	logits = malloc((size_t)n * sizeof *logits);
	model_forward(&m, &b, &fo);
	model_logits(&m, logits);
	w = worst(logits, x->logits, n);
	ok(w < 1e-3, "%s: training computes them too, at most %.1e away", name, w);
	model_close(&m);
	modeldir_close(&md);
	free(logits);
}

int main(void)
{
	static const char *const families[] = { "deepseek_v2", "deepseek_v3", "deepseek_v3-fp8",
	    "deepseek_v3-mtp", "dots1", "ernie4_5_moe", "glm4_moe", "glm4_moe_lite", "gpt_oss",
	    "gpt_oss-mxfp4", "granitemoe", "hunyuan_v1_moe", "lfm2_moe", "llama", "minimax_m2",
	    "mixtral", "olmoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_5_moe",
	    "qwen3_5_moe_text", "qwen3_moe", "qwen3_moe-bf16-shards", "qwen3_next" };
	const char *shared = getenv("CHR_SHARED");
	char dir[400];

	pool_init(2);
	for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
		struct gold x = { 0 };

		snprintf(dir, sizeof dir, "%s/golden/families/%s", shared ? shared : "../shared",
		    families[i]);
		if (access(dir, F_OK) < 0) {
			ok(1, "%s # SKIP no %s", families[i], dir);
			continue;
		}
		if (!ok(gold_open(&x, dir) == 0, "%s: expected values", families[i]))
			continue;
		test_engine(families[i], dir, &x);
		test_model(families[i], dir, &x);
		st_close(x.f);
		free(x.logits);
	}
	pool_quit();
	return tap_done();
}
