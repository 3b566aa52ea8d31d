/*
 * attn: attention of decode over caches of each type, beside the memory bandwidth of a plain
 * sum, same run, interleaved. JSON records: microseconds of one layer (median), gigabytes of
 * cache a second, and the fraction of that bandwidth.
 *
 *	build/bench/attn [CONTEXT [THREADS [SHAPE]]]	a shape by its number, from 0
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "backend/backend.h"
#include "base/pool.h"
#include "base/rng.h"

#define REPS 9
#define SUM_BYTES ((size_t)256 << 20)
#define LAYERS 16	/* caches taken in turn, so that none stays in the last cache */

static const struct { const char *name; int n, H, G, dk, G2, dk2; } shapes[] = {
	{ "gqa 16:4", 1, 16, 4, 64, 0, 0 }, { "gqa 32:8", 1, 32, 8, 128, 0, 0 },
	    { "heads 16:16", 1, 16, 16, 64, 0, 0 },
	{ "mla 16", 1, 16, 1, 128, 4, 32 }, { "mla 16, wide", 1, 16, 1, 512, 1, 64 },
	    { "gqa 16:4, batch of 8", 8, 16, 4, 64, 0, 0 },
};

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(double *x)
{
	qsort(x, REPS, sizeof(*x), by_value);
	return x[REPS / 2];
}

static volatile uint64_t sink[POOL_MAX * 8];	/* so that sums are taken */

static void sum_range(void *ctx, int64_t i0, int64_t i1, int worker)
{
	typedef uint64_t words __attribute__((vector_size(64)));
	const words *p = ctx;
	words s[4] = { 0 };

	for (int64_t i = i0 * 4096; i < i1 * 4096; i += 4)
		for (int j = 0; j < 4; j++)
			s[j] += p[i + j];
	sink[worker * 8] = s[0][0] + s[1][1] + s[2][2] + s[3][3];
}

struct caches {
	void *k, *v;
	size_t kb, vb;		/* bytes of one layer of one sequence */
};

static struct caches fill(int shape, enum kv_type t, int T)
{
	int G = shapes[shape].G, w = shapes[shape].dk, g2 = shapes[shape].G2,
	    w2 = shapes[shape].dk2;
	struct caches c = { .kb = kv_cache_bytes(t, G, T, w), .vb = g2 ? kv_cache_bytes(t, g2, T,
	    w2) : kv_cache_bytes(t, G, T, w) };
	size_t n = (size_t)shapes[shape].n * LAYERS;
	real *x = malloc(sizeof(*x) * (size_t)G * (size_t)w * 2 + sizeof(*x) * (size_t)g2 *
	    (size_t)w2);

	c.k = backend_cpu.alloc(&backend_cpu, n * c.kb);
	c.v = backend_cpu.alloc(&backend_cpu, n * c.vb);
	for (int i = 0; i < G * w * 2 || i < g2 * w2; i++)
		x[i] = (real)rng_normal(1, (uint64_t)i, 0);
	for (size_t i = 0; i < n; i++)
		for (int p = 0; p < T; p++) {
			struct kv_put_args a = { t, (char *)c.k + i * c.kb, T, G, w, p,
			    x + p % (G * w), 1 };

			backend_cpu.kv_put(&backend_cpu, &a);
			a.cache = (char *)c.v + i * c.vb;
			if (g2)
				a.heads = g2, a.w = w2, a.x = x;
			backend_cpu.kv_put(&backend_cpu, &a);
		}
	free(x);
	return c;
}

/* Seconds of one layer, and what a plain sum reads in a second beside it. */
static double measure(int shape, struct caches *c, enum kv_type t, int T, const void *sum,
    double *bandwidth)
{
	int n = shapes[shape].n, H = shapes[shape].H, w = shapes[shape].dk, w2 = shapes[shape].dk2;
	bool mla = w2 > 0;
	real *q = calloc((size_t)n * H * (w + w2), sizeof(*q)), *o = calloc((size_t)n * H * w,
	    sizeof(*o));
	const void *k[8], *v[8];
	int32_t lo[8] = { 0 }, hi[8];
	double took[REPS], gb[REPS];

	for (int i = 0; i < n * H * (w + w2); i++)
		q[i] = (real)rng_normal(2, (uint64_t)i, 0);
	for (int r = 0; r < REPS; r++) {
		double t0 = now();

		pool_for((int64_t)(SUM_BYTES / 64 / 4096), 1, sum_range, (void *)(uintptr_t)sum);
		gb[r] = (double)SUM_BYTES / (now() - t0) * 1e-9;
		t0 = now();
		for (int l = 0; l < LAYERS; l++) {
			for (int i = 0; i < n; i++) {
				k[i] = (char *)c->k + (size_t)(l * n + i) * c->kb;
				v[i] = (char *)c->v + (size_t)(l * n + i) * c->vb;
				hi[i] = T - 1;
			}
			backend_cpu.attn_cached(&backend_cpu,
			    &(struct attn_cached_args){ .n = n,
			    .H = H,
			    .G = shapes[shape].G, .dk = w, .dv = w,
			    .scale = (real)(1 / sqrt(w + w2)), .q = q, .ldq = (int64_t)H * w,
			    .o = o, .ldo = (int64_t)H * w, .type = t,
			    .slots = T, .kcache = k, .vcache = mla ? k : v, .lo = lo, .hi = hi,
			    .G2 = shapes[shape].G2, .dk2 = w2,
			    .q2 = q + n * H * w, .ldq2 = (int64_t)H * w2, .k2cache = v });
		}
		took[r] = (now() - t0) / LAYERS;
	}
	*bandwidth = median(gb);
	free(q);
	free(o);
	return median(took);
}

int main(int argc, char **argv)
{
	static const char *const type[] = { "f32", "bf16", "q8" };
	int T = argc > 1 ? atoi(argv[1]) : 4000;
	void *sum = backend_cpu.alloc(&backend_cpu, SUM_BYTES);

	pool_init(argc > 2 ? atoi(argv[2]) : 0);
	for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++)
		for (int t = KV_F32; t <= KV_Q8 && (argc <= 3 || (size_t)atoi(argv[3]) == s); t++) {
			struct caches c = fill((int)s, (enum kv_type)t, T);
			double peak, sec = measure((int)s, &c, (enum kv_type)t, T, sum, &peak);
			double gb = (double)((c.kb + c.vb) * (size_t)shapes[s].n) / sec * 1e-9;

			printf("{\"type\":\"bench\",\"what\":\"attn_cached\",\"shape\":\"%s\","
			    "\"kv\":\"%s\",\"context\":%d,\"threads\":%d,"
			    "\"us\":%.1f,\"mb\":%.3f,\"gb_s\":%.2f,\"sum_gb_s\":%.2f,"
			    "\"fraction\":%.3f}\n", shapes[s].name, type[t], T,
			    pool_threads(), sec * 1e6, (double)((c.kb + c.vb) * (size_t)shapes[s].n)
			    * 1e-6, gb, peak, gb / peak);
			fflush(stdout);
			backend_cpu.free(&backend_cpu, c.k);
			backend_cpu.free(&backend_cpu, c.v);
		}
	backend_cpu.free(&backend_cpu, sum);
	pool_quit();
	return 0;
}
