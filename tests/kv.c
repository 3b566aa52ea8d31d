/*
 * kv: caches of every type. A lossy cache is an exact one of the rounded values, to the byte;
 * rings hold what a window sees wherever they begin; kernels of every instruction set agree; and
 * what rounding costs is bounded from both sides.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/cpu/cpu_kernels.h"
#include "base/isa.h"
#include "decode/decode_int.h"
#include "base/file.h"
#include "model/model.h"
#include "format/modeldir.h"
#include "base/pool.h"
#include "base/rng.h"
#include "tap.h"
#include "tinymodel.h"

static struct err e;
static char dir[256];
static const char *const name[] = { "f32", "bf16", "q8" };

static void must(int failed)
{
	if (failed) {
		printf("Bail out! %s\n", e.msg);
		exit(1);
	}
}

static real *randoms(int64_t n, uint64_t stream)
{
	real *x = malloc(sizeof(*x) * (size_t)n);

	for (int64_t i = 0; i < n; i++)
		x[i] = (real)rng_normal(5, stream, (uint64_t)i);
	return x;
}

/* ---- rows ---- */

/* The value that a cache of type t makes of x[j] in a row of w values, from the definition in
 * kv.h. */
static float rounded(enum kv_type t, const float *x, int j, int w)
{
	int b = j / KV_BLOCK * KV_BLOCK, n = w - b < KV_BLOCK ? w - b : KV_BLOCK;
	float max = 0, y;
	uint16_t h;

	if (t == KV_F32)
		return x[j];
	if (t == KV_BF16) {
		tensor_from_f32(&h, DT_BF16, &x[j], 1);
		tensor_to_f32(&y, &h, DT_BF16, 1);
		return y;
	}
	for (int i = b; i < b + n; i++)
		max = fmaxf(max, fabsf(x[i]));
	return max / 127 * rintf(x[j] * (127 / max));
}

struct problem {		/* attention of n rows over caches of T positions, of which a
				   window is seen */
	int n, H, G, dk, dv, G2, dk2, T, slots, window;
	bool sinks;
};

struct cache {
	enum kv_type t;
	int heads, w, slots;
	char *p;
};

static struct cache cache_of(enum kv_type t, const real *x, int T, int heads, int w, int slots)
{
	struct cache c = { t, heads, w, slots, backend_cpu.alloc(&backend_cpu,
	    kv_cache_bytes(t,
	    heads, slots, w))
	    };

	/* In uneven pieces, across the ring's end. */
	for (int p = 0, n; p < T; p += n) {
		n = 1 + p % 7 < T - p ? 1 + p % 7 : T - p;
		n = n < slots ? n : slots;
		backend_cpu.kv_put(&backend_cpu, &(struct kv_put_args){ t, c.p,
		    slots, heads, w, p,
		    x + (int64_t)p * heads * w, n });
	}
	return c;
}

/* The last n positions attend, each to its window. o (n, H*dv) */
static void attend(const struct problem *p, const struct cache *k, const struct cache *v,
    const struct cache *k2,
    const real *q, const real *q2, const real *sinks, real *o)
{
	const void *kp[64], *vp[64], *k2p[64];
	int32_t lo[64], hi[64];

	for (int i = 0; i < p->n; i++) {
		hi[i] = p->T - p->n + i;
		lo[i] = hi[i] + 1 > p->window ? hi[i] + 1 - p->window : 0;
		kp[i] = k->p;
		vp[i] = v->p;
		k2p[i] = k2->p;
	}
	backend_cpu.attn_cached(&backend_cpu, &(struct attn_cached_args){ .n = p->n,
	    .H = p->H,
	    .G = p->G,
	    .dk = p->dk, .dv = p->dv,
	    .scale = 0.2f, .q = q, .ldq = p->H * p->dk, .o = o, .ldo = p->H * p->dv, .type = k->t,
	    .slots = k->slots,
	    .kcache = kp, .vcache = vp, .lo = lo, .hi = hi, .G2 = p->G2, .dk2 = p->dk2, .q2 = q2,
	    .ldq2 = p->H * p->dk2, .k2cache = k2p, .sinks = p->sinks ? sinks : NULL });
}

/* n rows of w values as a cache of type t makes them. */
static real *kept(enum kv_type t, const real *x, int64_t n, int w)
{
	real *y = malloc(sizeof(*y) * (size_t)(n * w + 1));

	for (int64_t i = 0; i < n; i++)
		for (int j = 0; j < w; j++)
			y[i * w + j] = rounded(t, x + i * w, j, w);
	return y;
}

/* Keys, values, rotated keys and queries of a problem. */
struct docpack {
	real *k, *v, *k2, *q, *q2, *sinks;
};

/* How far o is from softmax attention in double precision. */
static double error(const struct problem *p, const struct docpack *d, const real *o)
{
	double worst = 0;

	for (int i = 0; i < p->n; i++)
		for (int h = 0; h < p->H; h++) {
			int hi = p->T - p->n + i, lo = hi + 1 > p->window ? hi + 1 - p->window : 0;
			int g = h * p->G / p->H, g2 = p->dk2 ? h * p->G2 / p->H : 0,
			    row = i * p->H + h;
			double sum = p->sinks ? exp((double)d->sinks[h]) : 0, out[256] = { 0 };

			for (int s = lo; s <= hi; s++) {
				double x = 0, y;

				for (int j = 0; j < p->dk; j++)
					x += (double)d->q[row * p->dk + j] *
					    d->k[(s * p->G + g) * p->dk + j];
				for (int j = 0; j < p->dk2; j++)
					x += (double)d->q2[row * p->dk2 + j] *
					    d->k2[(s * p->G2 + g2) * p->dk2 + j];
				y = exp(x * (double)0.2f);
				sum += y;
				for (int j = 0; j < p->dv; j++)
					out[j] += y * d->v[(s * p->G + g) * p->dv + j];
			}
			for (int j = 0; j < p->dv; j++)
				worst = fmax(worst, fabs(out[j] / sum - o[row * p->dv + j]));
		}
	return worst;
}

static void solve(const struct problem *p, enum kv_type t, const struct docpack *d, int slots,
    real *o)
{
	struct cache k = cache_of(t, d->k, p->T, p->G, p->dk, slots), v = cache_of(t, d->v, p->T,
	    p->G, p->dv, slots);
	struct cache k2 = cache_of(t, d->k2, p->T, p->G2, p->dk2, slots);

	memset(o, 0xff, sizeof(*o) * (size_t)p->n * (size_t)p->H * (size_t)p->dv);
	attend(p, &k, &v, &k2, d->q, d->q2, d->sinks, o);
	backend_cpu.free(&backend_cpu, k.p);
	backend_cpu.free(&backend_cpu, v.p);
	backend_cpu.free(&backend_cpu, k2.p);
}

static void test_problem(const struct problem *p, enum kv_type t)
{
	static const char *const isa[] = { "portable", "avx2", "avx512" };
	size_t bytes = sizeof(real) * (size_t)p->n * (size_t)p->H * (size_t)p->dv;
	struct docpack d = { randoms((int64_t)p->T * p->G * p->dk, 1),
	    randoms((int64_t)p->T * p->G * p->dv, 2),
		randoms((int64_t)p->T * (p->G2 + 1) * (p->dk2 + 1), 3),
		    randoms((int64_t)p->n * p->H * p->dk, 4),
		randoms((int64_t)p->n * p->H * (p->dk2 + 1), 5), randoms(p->H, 6) };
	struct docpack r = { kept(t, d.k, (int64_t)p->T * p->G, p->dk),
	    kept(t, d.v, (int64_t)p->T * p->G, p->dv),
		kept(t, d.k2, (int64_t)p->T * p->G2, p->dk2), d.q, d.q2, d.sinks };
	real *o = malloc(bytes), *other = malloc(bytes);
	bool same = true;

	isa_force("portable");
	solve(p, KV_F32, &r, p->T, o);
	for (int i = 0; i < 3; i++) {
		if (isa_force(isa[i]) < 0)
			continue;
		solve(p, t, &d, p->T, other);
		same = same && memcmp(o, other, bytes) == 0;
		solve(p, t, &d, p->slots, other);
		same = same && memcmp(o, other, bytes) == 0;
	}
	ok(same, "%s, %d heads over %d of %d: every kernel, ring or not, as exact caches of its "
	    "values", name[t], p->H, p->G, p->dk);
	ok(error(p, &r, o) < 2e-6, "%s: which is softmax attention", name[t]);
	free(d.k), free(d.v), free(d.k2), free(d.q), free(d.q2), free(d.sinks);
	free(r.k), free(r.v), free(r.k2);
	free(o), free(other);
}

static void test_rows(void)
{
	static const struct problem p[] = {
		{ 5, 4, 2, 33, 33, 0, 0, 300, 104, 100, false },
		{ 3, 8, 1, 70, 48, 0, 0, 211, 211, 1000, false },
		{ 1, 2, 2, 16, 16, 0, 0, 65, 17, 9, false },
		{ 6, 12, 1, 100, 100, 4, 20, 150, 150, 1000, false },
		{ 4, 16, 16, 64, 64, 0, 0, 129, 67, 64, false },
		{ 2, 6, 3, 7, 5, 0, 0, 40, 9, 8, false },
		{ 5, 16, 2, 33, 33, 0, 0, 300, 104, 100, true },
	};

	for (size_t i = 0; i < sizeof(p) / sizeof(*p); i++)
		for (int t = KV_F32; t <= KV_Q8; t++)
			test_problem(&p[i], (enum kv_type)t);
	isa_force("portable");
	ok(kv_head_bytes(KV_BF16, 33) == 66 && kv_head_bytes(KV_Q8, 33) == 8 + 36 &&
	    kv_head_bytes(KV_Q8, 64) == 72,
	    "bytes of a row");
}

/* Values that a row may hold by mistake are not hidden. */
static void test_odd_values(void)
{
	static const float bad[] = { INFINITY, -INFINITY, NAN };
	bool shown = true;
	float x[64], y[64];
	char row[256];

	for (int t = KV_BF16; t <= KV_Q8; t++)
		for (int i = 0; i < 3; i++) {
			for (int j = 0; j < 64; j++)
				x[j] = 1;
			x[40] = bad[i];
			backend_cpu.kv_put(&backend_cpu,
			    &(struct kv_put_args){ (enum kv_type)t,
			    row, 1, 1, 64, 0,
			    x, 1 });
			cpu_kernels()->unpack(y, row, (enum kv_type)t, 1, 64);
			shown = shown && !isfinite(y[40]) && y[0] == 1 && y[31] == 1;
		}
	ok(shown, "what is not finite stays so, and the block beside it is itself");
	memset(x, 0, sizeof(x));
	x[1] = 1e-38f;
	backend_cpu.kv_put(&backend_cpu, &(struct kv_put_args){ KV_Q8, row, 1, 1, 64,
	    0, x, 1 });
	cpu_kernels()->unpack(y, row, KV_Q8, 1, 64);
	ok(fabsf(y[1]) <= 1e-38f && y[0] == 0 && y[63] == 0,
	    "blocks of zeros and of next to nothing");
}

/* ---- models ---- */

#define T 230
/* prices: bounds */
static const struct { const char *name; double price[3]; const char *json; } models[] = {
	{ "mla and sliding", { 0, 0.012, 0.03 }, "{\"chronos_format\":2,\"hidden_size\":24,"
	    "\"num_attention_heads\":4,"
	    "\"num_key_value_heads\":2,\"head_dim\":40,\"rope_dim\":6,\"kv_latent_dim\":45,"
	    "\"sliding_window_size\":21,"
	    "\"num_hidden_layers\":4,\"num_experts\":6,\"num_experts_per_tok\":2,"
	    "\"moe_intermediate_size\":13,"
	    "\"vocab_size\":61,\"use_hybrid_attention\":true,\"lookahead_steps\":2,"
	    "\"num_shared_experts\":2}" },
	{ "full attention", { 0, 0.004, 0.009 }, "{\"chronos_format\":2,\"hidden_size\":20,"
	    "\"num_attention_heads\":4,\"num_key_value_heads\":1,"
	    "\"head_dim\":36,\"num_hidden_layers\":3,\"num_experts\":7,\"num_experts_per_tok\":3,"
	    "\"moe_intermediate_size\":9,"
	    "\"vocab_size\":50,\"use_hybrid_attention\":false,\"lookahead_steps\":0,"
	    "\"num_shared_experts\":0}" },
	{ "states between", { 0, 0.004, 0.009 }, "{\"model_type\":\"qwen3_next\","
	    "\"hidden_size\":20,\"num_attention_heads\":2,\"num_key_value_heads\":1,"
	    "\"head_dim\":32,\"linear_num_key_heads\":1,\"linear_num_value_heads\":3,"
	    "\"linear_key_head_dim\":7,\"linear_value_head_dim\":9,"
	    "\"full_attention_interval\":2,\"num_hidden_layers\":4,\"num_experts\":6,"
	    "\"num_experts_per_tok\":2,\"moe_intermediate_size\":13,\"vocab_size\":61,"
	    "\"max_position_embeddings\":512}" },
	{ "biases, sinks and windows", { 0, 0.01, 0.03 },
	    "{\"model_type\":\"gpt_oss\",\"hidden_size\":20,"
	    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":40,"
	    "\"intermediate_size\":9,\"num_hidden_layers\":3,\"num_local_experts\":5,"
	    "\"num_experts_per_tok\":2,\"sliding_window\":21,\"swiglu_limit\":1.0,"
	    "\"vocab_size\":50,\"max_position_embeddings\":512}" },
};

static void write_model(const char *json)
{
	must(tinymodel(dir, json, DT_F32, 0.25, &e) < 0);
}

static struct engine *open_engine(enum kv_type t, int max_rows)
{
	struct engine_opt o = { .max_seqs = 3, .max_tokens = T, .max_rows = max_rows, .kv = t };
	struct engine *g = engine_open(dir, &o, &backend_cpu, NULL, &e);

	must(!g);
	return g;
}

static void text(uint32_t *tok, int V, uint64_t stream)
{
	for (int i = 0; i < T; i++)
		tok[i] = (uint32_t)rng_below(11, stream, (uint64_t)i, (uint64_t)V);
}

/* Tokens from..T-1 in calls of the given lengths, cyclic. */
static void rest(struct seq *s, const uint32_t *tok, int from, const int *cut, real *out, int V)
{
	for (int t = from, i = 0, n; t < T; t += n, i++) {
		if (cut[i] == 0)
			i = 0;
		n = cut[i] < T - t ? cut[i] : T - t;
		must(engine_eval(s->g, &(struct eval_item){ .s = s, .tok = tok + t, .n = n,
		    .logits = out + (int64_t)t * V,
		    .all = true }, 1, NULL, &e) < 0);
	}
}

static void run(enum kv_type t, int max_rows, const int *cut, const uint32_t *tok, real *out, int V)
{
	struct engine *g = open_engine(t, max_rows);

	rest(seq_new(g, &e), tok, 0, cut, out, V);
	engine_close(g);
}

/* A sequence beside another, forked when its rings have come round, and used again after a
 * reset: every row as alone. */
static void test_forks(const char *model, enum kv_type t, const uint32_t *tok, const real *full,
    int V)
{
	struct engine *g = open_engine(t, 9);
	struct seq *s = seq_new(g, &e), *other = seq_new(g, &e), *f;
	size_t bytes = sizeof(real) * (size_t)T * (size_t)V;
	real *out = calloc(T, sizeof(real) * (size_t)V), *of = calloc(T, sizeof(real) * (size_t)V);
	uint32_t noise[T];
	int at = 0;

	text(noise, V, 7);
	for (; at < 120; at += 3) {
		struct eval_item it[2] = { { .s = other, .tok = noise + at, .n = 1 + at % 2 },
			{ .s = s, .tok = tok + at, .n = 3, .logits = out + (int64_t)at * V,
			    .all = true } };

		must(engine_eval(g, it, 2, NULL, &e) < 0);
	}
	must((f = seq_fork(s, &e)) == NULL);
	memcpy(of, out, bytes);
	rest(s, tok, at, (const int[]){ 1, 0 }, out, V);
	rest(f, tok, at, (const int[]){ 7, 2, 0 }, of, V);
	ok(memcmp(out, full, bytes) == 0, "%s, %s: one of a batch is the same", model, name[t]);
	ok(memcmp(of, full, bytes) == 0, "%s, %s: and so is its fork", model, name[t]);
	seq_reset(s);
	memset(out, 0, bytes);
	rest(s, tok, 0, (const int[]){ 5, 0 }, out, V);
	ok(memcmp(out, full, bytes) == 0, "%s, %s: and it again after a reset", model, name[t]);
	engine_close(g);
	free(out);
	free(of);
}

/* A prefix that nobody asked logits of, after a call that was refused. */
static void test_prefix(const char *model, enum kv_type t, const uint32_t *tok, const real *full,
    int V)
{
	struct engine *g = open_engine(t, 9);
	struct seq *s = seq_new(g, &e);
	real *out = calloc(T, sizeof(real) * (size_t)V);
	struct eval_item it = { .s = s, .tok = tok, .n = T + 1 };

	must(engine_eval(g, &it, 1, NULL, &e) == 0 || seq_len(s) != 0);
	it = (struct eval_item){ .s = s, .tok = tok, .n = 100 };
	must(engine_eval(g, &it, 1, NULL, &e) < 0);
	rest(s, tok, 100, (const int[]){ 11, 1, 0 }, out, V);
	ok(memcmp(out + 100 * V, full + 100 * V, sizeof(real) * (size_t)(T - 100) * (size_t)V) == 0,
	    "%s, %s: after a prefix without logits", model, name[t]);
	engine_close(g);
	free(out);
}

static void test_plan(const char *model, enum kv_type t)
{
	struct engine_opt o = { .max_seqs = 3, .max_tokens = T, .max_rows = 9, .kv = t };
	struct mem_plan plan = { 0 };
	struct engine *g = open_engine(t, 9);
	const struct config *c = engine_config(g);
	/* 3 inputs of 14 + 27 channels up to a multiple of 16, 3 heads of 7 x 9 */
	int64_t want = 0, got = 0, states = 0, state = (128 + 189) * 4 / 64 * 64 + 64;

	for (int l = 0; l < c->num_hidden_layers; l++) {
		bool is_mla = c->block[l].attn == ATTN_MLA, ring = c->block[l].attn ==
		    ATTN_SLIDING;
		int window = c->block[l].window,
		    slots = ring && window + 8 < T ? window + 8 : T,
		    G = c->num_key_value_heads;
		int w[2] = { is_mla ? c->kv_latent_dim : c->head_dim, is_mla ? c->rope_dim
		    : c->head_dim };

		states += block_recurs(&c->block[l]) ? state : 0;
		for (int i = 0; i < 2 && !block_recurs(&c->block[l]); i++) {
			int64_t row = t == KV_F32 ? 4 * w[i] : t == KV_BF16 ? 2 * w[i]
			    : (w[i] + 31) / 32 * 4 + (w[i] + 3) / 4 * 4;

			want += (row * slots * (is_mla && i == 0 ? 1 : G) + 63) / 64 * 64;
		}
	}
	must(engine_plan(dir, &o, &plan, &e) < 0);
	for (int i = 0; i < plan.n; i++)
		if (strcmp(plan.item[i].name, t == KV_F32 ? "KV caches" : t == KV_BF16
		    ? "KV caches, bf16" : "KV caches, q8") == 0)
			got = plan.item[i].bytes;
		else if (strcmp(plan.item[i].name, "states of sequences") == 0)
			states -= plan.item[i].bytes / 3;
	ok(got == want * 3, "%s, %s: the plan has the bytes of the caches", model, name[t]);
	ok(states == 0, "%s, %s: and those of states", model, name[t]);
	engine_close(g);
}

/* Mean |a - b| over mean |b|: routers that choose another expert make a few logits differ much. */
static double price(const real *a, const real *b, int64_t n)
{
	double d = 0, size = 0;

	for (int64_t i = 0; i < n; i++) {
		d += fabs((double)(a[i] - b[i]));
		size += fabs((double)b[i]);
	}
	return d / size;
}

static void test_model(const char *model, const double *most, int V)
{
	uint32_t tok[T];
	size_t bytes = sizeof(real) * (size_t)T * (size_t)V;
	real *exact = NULL, *full, *out = malloc(bytes);

	text(tok, V, 0);
	for (int t = KV_F32; t <= KV_Q8; t++) {
		full = malloc(bytes);
		run((enum kv_type)t, T, (const int[]){ T, 0 }, tok, full, V);
		run((enum kv_type)t, 1, (const int[]){ 1, 0 }, tok, out, V);
		ok(memcmp(full, out, bytes) == 0, "%s, %s: one by one is full, byte for byte",
		    model, name[t]);
		run((enum kv_type)t, 16, (const int[]){ 5, 1, 33, 2, 0 }, tok, out, V);
		ok(memcmp(full, out, bytes) == 0, "%s, %s: chunked is full", model, name[t]);
		pool_quit();
		pool_init(3);
		run((enum kv_type)t, 7, (const int[]){ T, 0 }, tok, out, V);
		ok(memcmp(full, out, bytes) == 0, "%s, %s: small passes with three threads are "
		    "full", model, name[t]);
		pool_quit();
		pool_init(1);
		test_forks(model, (enum kv_type)t, tok, full, V);
		test_prefix(model, (enum kv_type)t, tok, full, V);
		test_plan(model, (enum kv_type)t);
		if (t == KV_F32) {
			exact = full;
			continue;
		}
		printf("# %s, %s: %.3g\n", model, name[t], price(full, exact, (int64_t)T * V));
		ok(price(full, exact, (int64_t)T * V) < most[t], "%s, %s: the price in logits",
		    model, name[t]);
		ok(memcmp(full, exact, bytes) != 0, "%s, %s: there is one", model, name[t]);
		free(full);
	}
	free(exact);
	free(out);
}

int main(void)
{
	char tmp[] = "/tmp/chr-kv.XXXXXX";

	must(!mkdtemp(tmp));
	pool_init(1);
	test_rows();
	test_odd_values();
	for (size_t i = 0; i < sizeof(models) / sizeof(*models); i++) {
		struct config c;

		snprintf(dir, sizeof(dir), "%s/%zu", tmp, i);
		must(file_mkdirs(dir, &e) < 0);
		write_model(models[i].json);
		must(config_load(&c, dir, 0, NULL, &e) < 0);
		test_model(models[i].name, models[i].price, c.vocab_size);
		config_free(&c);
	}
	pool_quit();
	file_remove_tree(tmp, &e);
	return tap_done();
}
