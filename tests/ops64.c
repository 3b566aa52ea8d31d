/*
 * ops64: every operation of the cpu backend in double precision: matrix products against plain
 * loops, and each backward row against central differences of its forward row, in every
 * argument.
 */
#include <stdlib.h>
#include <string.h>

#include "backend/backend.h"
#include "base/pool.h"
#include "base/rng.h"
#include "base/topk.h"
#include "tap.h"

#define STEP 1e-6
#define TOL 1e-7

static const struct backend *be = &backend_cpu;
static uint64_t stream;

static struct { void *p[256]; int n; } held;	/* what zeros() gave, until release() */

static void *zeros(int64_t n, size_t size)
{
	void *p = held.n < 256 ? calloc((size_t)n, size) : NULL;

	if (p == NULL)
		abort();
	return held.p[held.n++] = p;
}

static void release(void)
{
	while (held.n > 0)
		free(held.p[--held.n]);
}

static real *randoms(int64_t n)
{
	real *p = zeros(n, sizeof(real));

	stream++;
	for (int64_t i = 0; i < n; i++)
		p[i] = rng_normal(5, stream, (uint64_t)i);
	return p;
}

/* An op under test: f() fills out (nout) from its inputs; the loss is out . seed. */
struct op {
	void (*f)(void *ctx);
	void *ctx;
	const real *out, *seed;
	int64_t nout;
};

static double loss(const struct op *o)
{
	double s = 0;

	o->f(o->ctx);
	for (int64_t i = 0; i < o->nout; i++)
		s += o->out[i] * o->seed[i];
	return s;
}

/* Gradient `g` of input `x` (n values) against differences, element by element; of many values
 * every 7th, which meets every head, dimension and column. */
static void check(const struct op *o, const char *name, real *x, const real *g, int64_t n)
{
	double worst = 0;

	for (int64_t i = 0; i < n; i += n > 500 ? 7 : 1) {
		real keep = x[i];
		double up, down, d;

		x[i] = keep + STEP;
		up = loss(o);
		x[i] = keep - STEP;
		down = loss(o);
		x[i] = keep;
		d = fabs((up - down) / (2 * STEP) - g[i]) / (1 + fabs(g[i]));
		worst = d > worst || isnan(d) ? d : worst;
	}
	if (!ok(worst < TOL, "%s", name))
		printf("# worst %g\n", worst);
}

/* ---- matrices ---- */

static void gemm_case(enum gemm_kind kind, int m, int n, int k, real beta)
{
	real *a = randoms((int64_t)(m + k) * (m + k + 3)),
	    *b = randoms((int64_t)(n + k) * (n + k + 3));
	int64_t lda = (kind == GEMM_TN ? m : k) + 3, ldb = (kind == GEMM_NT ? k : n) + 3,
	    ldc = n + 2;
	real *c = randoms(m * ldc), *was = zeros(m * ldc, sizeof(real));
	struct gemm_job j = { c, ldc, a, lda, b, ldb, DT_REAL, m, n, k, beta };
	double worst = 0;

	memcpy(was, c, (size_t)(m * ldc) * sizeof(real));
	be->gemm(be, kind, &j, 1);
	for (int i = 0; i < m; i++)
		for (int q = 0; q < ldc; q++) {
			double want = q < n ? beta * was[i * ldc + q] : was[i * ldc + q];

			for (int p = 0; q < n && p < k; p++)
				want += (kind == GEMM_TN ? a[p * lda + i] : a[i * lda + p]) *
				    (kind == GEMM_NT ? b[q * ldb + p] : b[p * ldb + q]);
			worst = fmax(worst, fabs(want - c[i * ldc + q]));
		}
	if (!(worst < 1e-11))
		ok(0, "gemm kind %d %dx%dx%d beta %g: %g", kind, m, n, k, beta, worst);
	release();
}

static void test_gemm(void)
{
	static const int size[] = { 1, 2, 3, 5, 8, 17, 97, 193 };
	int before = tap_failed;

	for (int kind = 0; kind < 3; kind++)
		for (int m = 0; m < 8; m++)
			for (int n = 0; n < 8; n++)
				for (int k = 0; k < 7; k += 2)
					gemm_case(kind, size[m], size[n], size[k], (m + n) % 2);
	gemm_case(GEMM_TN, 5, 50, 600, 1);
	gemm_case(GEMM_NN, 90, 50, 600, 0);
	ok(tap_failed == before, "matrix products of all kinds and edges");
}

/* ---- rows ---- */

struct rms { real *x, *g, *y, *rstd; int n, w; };
static void rms_f(void *c)
{
	struct rms *r = c; be->rmsnorm(be, r->y, r->rstd, r->x, r->g, r->n, r->w, 1e-6);
}

static void test_rmsnorm(void)
{
	int n = 37, w = 19;
	struct rms r = { randoms(n * w), randoms(w), randoms(n * w), randoms(n), n, w };
	real *seed = randoms(n * w), *dx = zeros(n * w, sizeof(real)), *dg = zeros(w, sizeof(real));
	struct op o = { rms_f, &r, r.y, seed, n * w };

	rms_f(&r);
	be->rmsnorm_back(be, dx, dg, seed, r.x, r.g, r.rstd, n, w, true);
	check(&o, "rmsnorm: input", r.x, dx, n * w);
	check(&o, "rmsnorm: gain", r.g, dg, w);
}

struct rope { real *x, *in, *table; int32_t pos[3]; int w; bool pairs; };
static void rope_f(void *c)
{
	struct rope *r = c;

	memcpy(r->x, r->in, (size_t)(3 * 2 * (r->w + 1)) * sizeof(real));
	(r->pairs ? be->rope_pairs : be->rope)(be, r->x, 2 * (r->w + 1), r->w + 1, 3, 2, r->w,
	    r->table, r->pos, false);
}

static void test_rope(int w, bool pairs)
{
	int n = 3 * 2 * (w + 1);
	struct rope r = { randoms(n), randoms(n), randoms(8 * 2 * w), { 0, 5, 7 }, w, pairs };
	real *seed = randoms(n), *g = zeros(n, sizeof(real));
	struct op o = { rope_f, &r, r.x, seed, n };

	memcpy(g, seed, (size_t)n * sizeof(real));
	(pairs ? be->rope_pairs : be->rope)(be, g, 2 * (w + 1), w + 1, 3, 2, w, r.table, r.pos,
	    true);
	check(&o, w % 2 ? "rope: odd width" : pairs ? "rope of neighbours" : "rope", r.in, g, n);
}

static void attn_f(void *c) { be->attn(be, c); }

static void test_attn(const char *name, int T, int window, double drop, bool sinks)
{
	enum { B = 2, NH = 4, G = 2, DQ = 5, DV = 3 };
	int R = B * T;
	int32_t *doc = zeros(R, sizeof(*doc));
	struct attn_args a = { .B = B, .T = T, .H = NH, .G = G, .dq = DQ, .dv = DV,
	    .window = window, .scale = 0.4,
		.doc_start = doc, .dropout = drop, .drop_key = 77 };
	real *q = randoms(R * NH * DQ), *k = randoms(R * G * DQ), *v = randoms(R * G * DV),
	    *seed = randoms(R * NH * DV);
	struct op o = { attn_f, &a, NULL, seed, R * NH * DV };
	char what[100];

	for (int r = 0; r < R; r++)
		doc[r] = r % T >= T - 2 && r >= T ? -1 : r % T >= T / 3 ? T / 3 : 0;
	a.q = q, a.k = k, a.v = v, a.o = randoms(R * NH * DV), a.lse = randoms(R * NH),
	    a.d_o = seed;
	a.dq_ = randoms(R * NH * DQ), a.dk = randoms(R * G * DQ), a.dv_ = randoms(R * G * DV);
	real *sink = randoms(NH), *dsink = zeros(NH, sizeof(real));

	if (sinks)
		a.sinks = sink, a.dsinks = dsink;
	o.out = a.o;
	be->attn(be, &a);
	be->attn_back(be, &a);
	snprintf(what, sizeof(what), "attention, %s: queries", name);
	check(&o, what, q, a.dq_, R * NH * DQ);
	snprintf(what, sizeof(what), "attention, %s: keys", name);
	check(&o, what, k, a.dk, R * G * DQ);
	snprintf(what, sizeof(what), "attention, %s: values", name);
	check(&o, what, v, a.dv_, R * G * DV);
	if (sinks)
		check(&o, "attention: sinks", sink, dsink, NH);
	for (int r = 0; r < R; r++)
		for (int h = 0; doc[r] < 0 && h < NH * DV; h++)
			if (a.o[r * NH * DV + h] != 0) {
				ok(0, "padding attends to nothing");
				return;
			}
	ok(1, "padding attends to nothing");
}

struct unit { real *g, *u, *y; int n; struct glu glu; };
static void glu_f(void *c) { struct unit *x = c; be->swiglu(be, x->y, x->g, x->u, x->n, x->glu); }
static void sigmoid_f(void *c) { struct unit *x = c; be->sigmoid(be, x->y, x->g, x->n); }
static void silu_f(void *c) { struct unit *x = c; be->silu(be, x->y, x->g, x->n); }
static void clip_f(void *c)
{
	struct unit *x = c;

	memcpy(x->y, x->g, (size_t)x->n * sizeof(real));
	be->clip(be, x->y, x->glu.limit, x->n);
}

/* Some of the values are beyond the limit, on either side. */
static void test_clamped(void)
{
	int n = 50;
	struct unit x = { randoms(n), randoms(n), randoms(n), n, { 0.6, 1.702 } };
	real *seed = randoms(n), *dg = randoms(n), *du = randoms(n);
	struct op o = { glu_f, &x, x.y, seed, n }, c = { clip_f, &x, x.y, seed, n };
	int out = 0;

	for (int i = 0; i < n; i++)
		out += fabs(x.g[i]) > 0.6;
	ok(out > 5 && out < n - 5, "%d of %d values are beyond the limit", out, n);
	be->swiglu_back(be, dg, du, seed, x.g, x.u, n, x.glu);
	check(&o, "clamped swiglu: gate", x.g, dg, n);
	check(&o, "clamped swiglu: up", x.u, du, n);
	memcpy(dg, seed, (size_t)n * sizeof(real));
	be->clip_back(be, dg, x.g, x.glu.limit, n);
	check(&c, "clip", x.g, dg, n);
}

static void test_swiglu(void)
{
	int n = 50;
	struct unit x = { randoms(n), randoms(n), randoms(n), n, { 0, 0 } };
	real *seed = randoms(n), *dg = randoms(n), *du = randoms(n);
	struct op o = { glu_f, &x, x.y, seed, n }, s = { silu_f, &x, x.y, seed, n };

	be->swiglu_back(be, dg, du, seed, x.g, x.u, n, x.glu);
	check(&o, "swiglu: gate", x.g, dg, n);
	check(&o, "swiglu: up", x.u, du, n);
	be->silu_back(be, dg, seed, x.g, n);
	check(&s, "silu", x.g, dg, n);
	s.f = sigmoid_f;
	be->sigmoid(be, x.y, x.g, n);
	be->sigmoid_back(be, dg, seed, x.y, n);
	check(&s, "sigmoid", x.g, dg, n);
}

/* Loss of routing: seed . shares + wseed . weights, with the choice held still. */
struct route { struct route_args a; real *z, *both; };
static void route_f(void *c)
{
	struct route *x = c;
	struct route_args *a = &x->a;
	int32_t ids[64];

	memcpy(ids, a->ids, (size_t)(a->n * a->K) * sizeof(*ids));
	memcpy(a->probs, x->z, (size_t)(a->n * a->E) * sizeof(real));
	be->route(be, a);
	if (a->dlogits) {		/* differences: the choice stays */
		memcpy(a->ids, ids, (size_t)(a->n * a->K) * sizeof(*ids));
		be->route_weights(be, a);
	}
	memcpy(x->both, a->probs, (size_t)(a->n * a->E) * sizeof(real));
	memcpy(x->both + a->n * a->E, a->weights, (size_t)(a->n * a->K) * sizeof(real));
}

static void test_route(const char *name, struct router r, bool bias)
{
	int n = 9, E = 8, K = 3;
	real *seed = randoms(n * (E + K));
	struct route x = { { &r, n, E, K, bias ? randoms(E) : NULL, randoms(n * E), randoms(n),
	    zeros(n * K, sizeof(int32_t)), randoms(n * K), seed + n * E, seed, NULL },
	    randoms(n * E),
	    randoms(n * (E + K)) };
	struct op o = { route_f, &x, x.both, seed, n * (E + K) };

	route_f(&x);
	x.a.dlogits = randoms(n * E);
	be->route_back(be, &x.a);
	check(&o, name, x.z, x.a.dlogits, n * E);
}

static void test_ties(void)
{
	struct router r = { .scale = 1 };
	real p[2 * 7], w[2 * 3];
	int32_t ids[2 * 3];
	int good = 1;

	for (int i = 0; i < 2 * 7; i++)
		p[i] = i % 2;		/* ties: lowest ids first, chosen ones descending */
	be->route(be, &(struct route_args){ .r = &r, .n = 2, .E = 7, .K = 3, .probs = p, .ids = ids,
	    .weights = w });
	for (int i = 0; i < 2; i++)
		for (int k = 0; k < 3; k++)
			good &= ids[i * 3 + k] == (i * 7 % 2 == 0) + 2 * k;
	ok(good, "routing breaks ties to the lowest id");
}

/* Groups and biases against choices worked out by hand. */
static void test_choices(void)
{
	struct router two = { .sigmoid = true, .groups = 4, .kept = 2, .scale = 1 };
	struct router one = { .groups = 4, .kept = 1, .scale = 2 };
	/* best two together: groups 0 (0 + 3) and 2 (2 + 2), though 3 has the second best expert */
	real z[8] = { 0, 3, -1, -1, 2, 2, 2.5, -9 }, p[8], w[3], bias[8] = { 0 };
	int32_t ids[3];
	struct route_args a = { .r = &two, .n = 1, .E = 8, .K = 3, .probs = p, .ids = ids,
	    .weights = w };

	memcpy(p, z, sizeof(z));
	be->route(be, &a);
	ok(ids[0] == 1 && ids[1] == 4 && ids[2] == 5, "groups by their best two");
	ok(fabs(w[0] - 1 / (1 + exp(-3))) < 1e-6, "weights are scores");
	a.bias = bias;
	bias[2] = 5;
	memcpy(p, z, sizeof(z));
	be->route(be, &a);
	ok(ids[0] == 2 && fabs(w[0] - 1 / (1 + exp(1))) < 1e-6,
	    "a bias counts for the choice only");
	bias[0] = bias[1] = -9;			/* chosen all the same: the others are out */
	bias[2] = bias[3] = bias[6] = bias[7] = -99;
	memcpy(p, z, sizeof(z));
	be->route(be, &a);
	ok(ids[0] == 4 && ids[1] == 5 && ids[2] == 1, "no expert of a group that is out");
	a = (struct route_args){ .r = &one, .n = 1, .E = 8, .K = 2, .probs = p, .ids = ids,
	    .weights = w };
	memcpy(p, z, sizeof(z));
	be->route(be, &a);
	ok(ids[0] == 1 && ids[1] == 0 && fabs(w[0] - 2 * p[1]) < 1e-6,
	    "groups by their best, scaled");
}

/* What a prediction goes by: the largest K are the choice, and all is finite. */
static void test_wants(void)
{
	static const struct router of[] = {
		{ .scale = 1 }, { .sigmoid = true, .scale = 1 },
		{ .sigmoid = true, .groups = 4, .kept = 2, .scale = 1 },
		{ .groups = 4, .kept = 1, .scale = 1 }, { .sigmoid = true, .groups = 2, .kept = 1,
		    .scale = 2 },
	};
	int E = 16, K = 3, wrong = 0, n = 0;
	real *z = randoms(E), *bias = randoms(E), s[16], wants[16];
	int32_t ids[3], by[3];

	for (size_t i = 0; i < sizeof of / sizeof *of; i++)
		for (int pass = 0; pass < 100; pass++, n++) {
			const real *b = pass % 2 ? bias : NULL;

			for (int e = 0; e < E; e++) {
				z[e] = (real)rng_normal(31, (uint64_t)n, (uint64_t)e);
				bias[e] = (real)(0.5 * rng_normal(32, (uint64_t)n, (uint64_t)e));
			}
			router_scores(&of[i], z, E, s);
			router_choose(&of[i], b, s, E, K, ids);
			router_wants(&of[i], b, z, E, K, wants);
			topk_best(wants, E, K, by);
			wrong += memcmp(ids, by, sizeof ids) != 0;
			for (int e = 0; e < E; e++)
				wrong += !isfinite(wants[e]);
		}
	ok(wrong == 0, "what routers want: %d of %d are other choices", wrong, n);
}

struct lp { real *z, *tmp, *logp; int32_t *target; int n, V; };
static void lp_f(void *c)
{
	struct lp *x = c;

	memcpy(x->tmp, x->z, (size_t)(x->n * x->V) * sizeof(real));
	be->logprob(be, x->tmp, x->logp, x->target, NULL, x->n, x->V);
}

static void test_logprob(void)
{
	int n = 6, V = 41;
	int32_t target[6] = { 3, 40, -1, 0, 7, 7 };
	struct lp x = { randoms(n * V), randoms(n * V), randoms(n), target, n, V };
	real *seed = randoms(n);
	struct op o = { lp_f, &x, x.logp, seed, n };
	real *g = zeros(n * V, sizeof(real));

	memcpy(g, x.z, (size_t)(n * V) * sizeof(real));
	be->logprob(be, g, x.logp, target, seed, n, V);
	check(&o, "log-probability of targets", x.z, g, n * V);
	ok(x.logp[2] == 0, "no target: log-probability 0");
}

static void diverge_f(void *c) { be->diverge(be, c); }

/* Logits far enough apart that some probabilities are next to nothing. */
static void test_diverge(enum diverge_kind kind, const char *name)
{
	int n = 5, V = 37;
	int32_t target[5] = { 3, 36, -1, 0, 7 };
	real *z = randoms(n * V), *teacher = randoms(n * V), *seed = zeros(n, sizeof(real)),
	    *g = zeros(n * V, sizeof(real));
	struct diverge_args a = { .kind = kind, .temperature = 1.7, .n = n, .V = V, .student = z,
	    .teacher = teacher,
	    .target = target, .value = randoms(n) };
	struct diverge_args back = a;
	struct op o = { diverge_f, &a, a.value, seed, n };
	double worst = 0;

	for (int i = 0; i < n * V; i++) {
		teacher[i] *= i % 11 ? 3 : 40;
		g[i] = 1;		/* what is there already is added to */
	}
	for (int i = 0; i < n; i++)
		seed[i] = 0.6;
	back.dstudent = g;
	back.coef = 0.6;
	be->diverge(be, &back);
	for (int i = 0; i < n * V; i++)
		g[i] -= 1;
	check(&o, name, z, g, n * V);
	ok(a.value[2] == 0 && a.value[0] > 0, "%s: positive, and 0 without a target", name);
	memcpy(z, teacher, (size_t)(n * V) * sizeof(real));
	memset(g, 0, (size_t)(n * V) * sizeof(real));
	be->diverge(be, &back);
	for (int i = 0; i < n * V; i++)
		worst = fmax(worst, fabs(g[i]));
	for (int i = 0; i < n; i++)
		worst = fmax(worst, fabs(a.value[i]));
	ok(worst < 1e-14, "%s: nothing between equals", name);
	release();
}

static void test_moves(void)
{
	real *src = randoms(4 * 3), *dst = zeros(5 * 3, sizeof(real)),
	    *dot = zeros(5, sizeof(real));
	int32_t slot[10] = { 0, 1, 2, -1, 3, 3, -1, -1, 1, 0 }, rows[5] = { 3, 0, 0, 1, 2 };
	uint32_t ids[5] = { 1, 1, 0, 2, 1 };
	real *coef = randoms(10), *tab = zeros(3 * 3, sizeof(real)),
	    *got = zeros(5 * 3, sizeof(real));
	double worst = 0;

	be->combine(be, dst, src, slot, coef, 5, 2, 3);
	for (int i = 0; i < 5; i++)
		for (int j = 0; j < 3; j++) {
			double want = 0;

			for (int k = 0; k < 2; k++)
				want += slot[i * 2 + k] < 0 ? 0 : coef[i * 2 + k] *
				    src[slot[i * 2 + k] * 3 + j];
			worst = fmax(worst, fabs(want - dst[i * 3 + j]));
		}
	ok(worst < 1e-14, "combine");
	be->gather(be, got, src, rows, 5, 3);
	be->dot_rows(be, dot, got, (int32_t[]){ 0, 1, 2, 3, 4 }, src, rows, 5, 3);
	worst = 0;
	for (int i = 0; i < 5; i++) {
		double want = 0;

		for (int j = 0; j < 3; j++)
			want += src[rows[i] * 3 + j] * src[rows[i] * 3 + j];
		worst = fmax(worst, fabs(want - dot[i]));
	}
	ok(worst < 1e-14, "gather and dot_rows");
	be->scatter_add(be, tab, got, (const int32_t *)ids, 5, 3);
	worst = 0;
	for (int j = 0; j < 3; j++)
		worst = fmax(worst, fabs(tab[3 + j] - (got[j] + got[3 + j] + got[12 + j])));
	ok(worst < 1e-14, "scatter_add");
}

static void test_dropout(void)
{
	int n = 100000;
	real *x = zeros(n, sizeof(real)), *y = zeros(n, sizeof(real));
	double kept = 0;
	int same = 1;

	for (int i = 0; i < n; i++)
		x[i] = y[i] = 1;
	be->dropout(be, x, n, 0.25, 9);
	be->dropout(be, y, n, 0.25, 9);
	for (int i = 0; i < n; i++) {
		kept += x[i] != 0;
		same &= x[i] == y[i] && (x[i] == 0 || fabs(x[i] - 1 / 0.75) < 1e-12);
	}
	ok(same, "dropout: same key, same mask, scaled");
	ok(fabs(kept / n - 0.75) < 0.01, "dropout keeps 1-p");
}

static void test_noise(void)
{
	enum { N = 1000, W = 60 };
	real *x = zeros(N * W, sizeof(real)), *s = zeros(N, sizeof(real));
	double sum = 0, squares = 0, largest = 0;

	for (int i = 0; i < N; i++)
		s[i] = i % 2 ? 2 : 0;
	be->noise(be, x, s, N, W, 9);
	for (int i = 0; i < N * W; i++) {
		largest = fmax(largest, i / W % 2 ? 0 : fabs(x[i]));
		sum += x[i];
		squares += x[i] * x[i];
	}
	ok(largest == 0, "noise: none where the scale is 0");
	ok(fabs(sum / (N * W)) < 0.02 && fabs(squares / (N * W / 2) - 4.0 / 3) < 0.03,
	    "noise: uniform in (-s, s)");
}

int main(void)
{
	pool_init(2);
	test_gemm();
	test_rmsnorm();
	test_rope(6, false);
	test_rope(6, true);
	test_rope(5, false);
	test_attn("causal", 11, 0, 0, false);
	test_attn("window", 11, 3, 0, false);
	test_attn("several tiles, window, dropout", 71, 40, 0.3, false);
	test_attn("sinks", 11, 3, 0, true);
	test_attn("several tiles, sinks, dropout", 71, 40, 0.3, true);
	test_swiglu();
	test_clamped();
	test_route("routing, plain weights", (struct router){ .scale = 1 }, false);
	test_route("routing, normalised weights", (struct router){ .renormalised = true,
	    .scale = 1 },
	    false);
	test_route("routing, floor, bias", (struct router){ .renormalised = true, .scale = 1.5,
	    .floor = 0.4 }, true);
	test_route("sigmoid routing", (struct router){ .sigmoid = true, .scale = 1.5 }, false);
	test_route("sigmoid routing, bias, groups", (struct router){ .sigmoid = true,
	    .renormalised = true, .groups = 4, .kept = 2, .scale = 2.5 }, true);
	test_ties();
	test_choices();
	test_wants();
	test_logprob();
	test_diverge(DIVERGE_FORWARD, "forward KL");
	test_diverge(DIVERGE_REVERSE, "reverse KL");
	test_diverge(DIVERGE_JS, "Jensen-Shannon divergence");
	test_moves();
	test_dropout();
	test_noise();
	return tap_done();
}
