/* AdamW against the formula in double precision, decay groups, norm, clipping, schedule. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/optim.h"
#include "base/rng.h"
#include "tap.h"

enum { N = 200, PAD = 208, STEPS = 25 };

/* Decoupled weight decay, as in algorithm 2 of arXiv:1711.05101, with PyTorch's reading of its
 * schedule. */
struct exact { double w, m, v; };

static void exact_step(struct exact *x, double g, double lr, double decay, int t)
{
	x->m = 0.9 * x->m + 0.1 * g;
	x->v = 0.95 * x->v + 0.05 * g * g;
	x->w -= lr * decay * x->w;
	x->w -= lr * (x->m / (1 - pow(0.9, t))) / (sqrt(x->v / (1 - pow(0.95, t))) + 1e-8);
}

/* A matrix, a vector and an embedding side by side, with padding after each. */
static void make_params(struct params *ps, struct param p[3])
{
	const enum param_kind kind[3] = { P_EMBED, P_NORM, P_Q };

	memset(p, 0, 3 * sizeof *p);
	for (int i = 0; i < 3; i++)
		p[i] = (struct param){ .kind = kind[i], .ndim = i == 1 ? 1 : 2, .rows = N,
		    .cols = 1,
		    .off = i * PAD };
	*ps = (struct params){ .n = 3, .p = p, .total = 3 * PAD, .count = 3 * N };
}

static double worst(const struct exact *x, const real *w)
{
	double bad = 0;

	for (int i = 0; i < 3 * N; i++)
		bad = fmax(bad, fabs(x[i].w - (double)w[i / N * PAD + i % N]));
	return bad;
}

static void test_trajectory(void)
{
	static struct exact x[3 * N];
	struct param p[3];
	struct params ps;
	struct optim o;
	struct err e = {0};
	real *w, *g;
	double padding = 0;

	make_params(&ps, p);
	w = calloc((size_t)ps.total, sizeof *w);
	g = calloc((size_t)ps.total, sizeof *g);
	ok(optim_open(&o, &ps, NULL, &backend_cpu, 0.1, &e) == 0, "optimizer opens");
	for (int i = 0; i < 3 * N; i++) {
		x[i] = (struct exact){ .w = (real)rng_normal(1, 2, (uint64_t)i) };
		w[i / N * PAD + i % N] = (real)x[i].w;
	}
	for (int t = 1; t <= STEPS; t++) {
		for (int i = 0; i < 3 * N; i++) {
			real v = (real)(rng_normal(5, (uint64_t)t, (uint64_t)i) + 0.3);

			g[i / N * PAD + i % N] = v;
			exact_step(&x[i], 0.5 * (double)v, 0.01 * t, i / N == 2 ? 0.1 : 0, t);
		}
		optim_step(&o, w, g, 0.01 * t, 0.5);
	}
	ok(o.updates == STEPS, "updates are counted");
	is_close(worst(x, w), 0, 2e-5, "the trajectory of the formula; only the matrix decays");
	for (int i = 0; i < ps.total; i++)
		padding += i % PAD >= N ? fabs((double)w[i]) : 0;
	is_close(padding, 0, 0, "padding stays zero");
	optim_close(&o);
	free(w);
	free(g);
}

static void test_frozen(void)
{
	const bool frozen[3] = { false, true, false }, all[3] = { true, true, true };
	struct mem_plan plan = {0};
	struct param p[3];
	struct params ps;
	struct optim o;
	struct err e = {0};
	real *w, *g;
	int moved[3] = {0};

	make_params(&ps, p);
	w = calloc((size_t)ps.total, sizeof *w);
	g = calloc((size_t)ps.total, sizeof *g);
	ok(optim_open(&o, &ps, all, &backend_cpu, 0, &e) < 0 && e.status == EX_USAGE,
	    "all frozen is refused");
	ok(optim_open(&o, &ps, frozen, &backend_cpu, 0, &e) == 0 && o.of[1] < 0, "one is frozen");
	optim_plan(&plan, &ps, frozen);
	ok(mem_plan_total(&plan) == 4 * PAD * (int64_t)sizeof(real), "and has no moments");
	for (int i = 0; i < 3 * N; i++)
		g[i / N * PAD + i % N] = 1;
	is_close(optim_norm(&o, g), sqrt(2 * N), 1e-4, "its gradient does not count in the norm");
	optim_step(&o, w, g, 0.01, 1);
	for (int i = 0; i < 3 * N; i++)
		moved[i / N] += w[i / N * PAD + i % N] != 0;
	ok(moved[0] == N && moved[1] == 0 && moved[2] == N, "the others move");
	optim_close(&o);
	free(w);
	free(g);
}

static void test_norm(void)
{
	struct optim_run run = { .n = 1000 };
	struct optim o = { .be = &backend_cpu, .nruns = 1, .run = &run };
	real g[1000];

	for (int i = 0; i < 1000; i++)
		g[i] = (real)0.25;
	is_close(optim_norm(&o, g), sqrt(1000 * 0.0625), 1e-6, "norm");
	g[7] = (real)NAN;
	ok(!isfinite(optim_norm(&o, g)), "a NaN shows in the norm");
	g[7] = (real)INFINITY;
	ok(!isfinite(optim_norm(&o, g)), "so does an infinity");
	is_close(optim_clip(4, 1), 0.25, 1e-12, "clipped");
	is_close(optim_clip(0.5, 1), 1, 0, "short enough as it is");
	is_close(optim_clip(4, 0), 1, 0, "no limit");
}

static void test_schedule(void)
{
	struct schedule s = { 1e-3, 10, 110 }, open_end = { 1e-3, 10, 0 };

	is_close(optim_lr(&s, 1), 1e-4, 1e-12, "warm-up begins at base / W");
	is_close(optim_lr(&s, 10), 1e-3, 1e-12, "and ends at base");
	is_close(optim_lr(&s, 60), 1e-3 * (0.1 + 0.45), 1e-12, "half way down");
	is_close(optim_lr(&s, 110), 1e-4, 1e-12, "a tenth at the end");
	is_close(optim_lr(&open_end, 100000), 1e-3, 1e-12, "no end, no decay");
	ok(optim_warmup(10) == 1 && optim_warmup(1000) == 50 && optim_warmup(1000000) == 500,
	    "default warm-up");
}

int main(void)
{
	test_trajectory();
	test_frozen();
	test_norm();
	test_schedule();
	return tap_done();
}
