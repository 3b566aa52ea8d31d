/*
 * gemm: matrix products of the cpu backend, of FP32 and of BF16 values, beside OpenBLAS (when built with it) and the
 * machine's multiply-add rate, same run, interleaved. JSON records, GFLOP/s, best and median of the repetitions.
 *
 *	build/bench/gemm [THREADS]
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backend.h"
#include "pool.h"

#ifdef HAVE_OPENBLAS
#include <cblas.h>
#endif
#ifdef __x86_64__
#include <immintrin.h>
#endif
#include <stdio.h>

#define REPS 7

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

static void record(const char *what, const char *kind, int m, int n, int k, double *g)
{
	qsort(g, REPS, sizeof(*g), by_value);
	printf("{\"type\":\"bench\",\"what\":\"%s\",\"kind\":\"%s\",\"m\":%d,\"n\":%d,\"k\":%d,\"threads\":%d,"
	    "\"gflops_median\":%.1f,\"gflops_best\":%.1f}\n", what, kind, m, n, k, pool_threads(), g[REPS / 2], g[REPS - 1]);
	fflush(stdout);
}

#ifdef __x86_64__
/* 20 independent chains of 16-lane multiply-adds. */
__attribute__((target("avx512f"))) static void fma_chunk(void *ctx, int64_t i0, int64_t i1, int worker)
{
	__m512 a[20], x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(0.001f);
	float s = 0;

	(void)i0, (void)i1, (void)worker;
	for (int i = 0; i < 20; i++)
		a[i] = _mm512_set1_ps((float)i);
	for (int r = 0; r < 2000000; r++) {
#pragma GCC unroll 20
		for (int i = 0; i < 20; i++)
			a[i] = _mm512_fmadd_ps(a[i], x, y);
	}
	for (int i = 0; i < 20; i++)
		s += _mm512_reduce_add_ps(a[i]);
	((volatile float *)ctx)[worker * 16] = s;
}

static void bench_peak(void)
{
	double g[REPS];
	float sink[16 * POOL_MAX];

	if (!__builtin_cpu_supports("avx512f"))
		return;
	for (int r = 0; r < REPS; r++) {
		double t = now();

		pool_for(pool_threads(), 1, fma_chunk, sink);
		g[r] = 2e6 * 20 * 32 * pool_threads() / (now() - t) * 1e-9;
	}
	record("fma_registers", "-", 0, 0, 0, g);
}
#else
static void bench_peak(void) { }
#endif

static char half_name[64];	/* with the kernels of gemm_bf16 */
static const char *const kind_name[] = { "NT", "NN", "TN" };

static void bench_shape(int kind, int m, int n, int k)
{
	float *a = backend_cpu.alloc((size_t)m * (size_t)k * 4), *b = backend_cpu.alloc((size_t)n * (size_t)k * 4),
	      *c = backend_cpu.alloc((size_t)m * (size_t)n * 4);
	int64_t lda = kind == GEMM_TN ? m : k, ldb = kind == GEMM_NT ? k : n;
	struct gemm_job j = { c, n, a, lda, b, ldb, DT_F32, m, n, k, 0 };
	int calls = 1 + (int)(4e8 / (2.0 * m * n * k));
	double ours[REPS], half[REPS];

	for (int64_t i = 0; i < (int64_t)m * k; i++)
		a[i] = (float)(i % 13) * 0.1f;
	for (int64_t i = 0; i < (int64_t)n * k; i++)
		b[i] = (float)(i % 11) * 0.1f;
#ifdef HAVE_OPENBLAS
	double blas[REPS];
#endif
	for (int r = 0; r < REPS; r++) {
		double t = now();

		for (int i = 0; i < calls; i++)
			backend_cpu.gemm((enum gemm_kind)kind, &j, 1);
		ours[r] = 2.0 * m * n * k * calls / (now() - t) * 1e-9;
		t = now();
		for (int i = 0; i < calls; i++)
			backend_cpu.gemm_bf16((enum gemm_kind)kind, &j, 1);
		half[r] = 2.0 * m * n * k * calls / (now() - t) * 1e-9;
#ifdef HAVE_OPENBLAS
		t = now();
		for (int i = 0; i < calls; i++)
			cblas_sgemm(CblasRowMajor, kind == GEMM_TN ? CblasTrans : CblasNoTrans,
			    kind == GEMM_NT ? CblasTrans : CblasNoTrans, m, n, k, 1, a, (int)lda, b, (int)ldb, 0, c, n);
		blas[r] = 2.0 * m * n * k * calls / (now() - t) * 1e-9;
#endif
	}
	record("chronos", kind_name[kind], m, n, k, ours);
	record(half_name, kind_name[kind], m, n, k, half);
#ifdef HAVE_OPENBLAS
	record("openblas", kind_name[kind], m, n, k, blas);
#endif
	backend_cpu.free(a), backend_cpu.free(b), backend_cpu.free(c);
}

int main(int argc, char **argv)
{
	static const int shape[][3] = { { 1, 1024, 768 }, { 4, 1024, 768 }, { 16, 1024, 768 }, { 64, 1024, 768 },
		{ 256, 256, 128 }, { 2048, 256, 256 }, { 2048, 128, 256 }, { 480, 6400, 256 }, { 1024, 1024, 1024 } };

	pool_init(argc > 1 ? atoi(argv[1]) : 0);
	snprintf(half_name, sizeof(half_name), "chronos %s", cpu_bf16_isa());
	bench_peak();
	for (size_t s = 0; s < sizeof(shape) / sizeof(shape[0]); s++)
		for (int kind = 0; kind < 3; kind++)
			bench_shape(kind, shape[s][0], shape[s][1], shape[s][2]);
	return 0;
}
