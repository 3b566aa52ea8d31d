/*
 * gemm: matrix products of the cpu backend, of FP32 and of BF16 values, beside OpenBLAS (when built with it) and the
 * machine's multiply-add rate, same run, interleaved. JSON records, GFLOP/s, best and median of the repetitions.
 *
 *	build/bench/gemm [THREADS]
 */
#include <stdio.h>
#include <stdlib.h>

#include "kernel.h"
#include "pool.h"
#include "progress.h"

#ifdef HAVE_OPENBLAS
#include <cblas.h>
#endif

#define REPS 7

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

static void bench_peak(void)
{
	double g[REPS];

	for (int r = 0; r < REPS; r++)
		g[r] = kernel_fma_rate() * 1e-9;
	if (g[0] > 0)
		record("fma_registers", "-", 0, 0, 0, g);
}

static char half_name[64];	/* with the kernels of gemm_bf16 */
static const char *const kind_name[] = { "NT", "NN", "TN" };

static void bench_shape(enum gemm_kind kind, int m, int n, int k)
{
	struct kernel_gemm g;
	struct err e = { 0 };
	double ours[REPS], half[REPS];

	if (kernel_gemm_open(&g, kind, m, n, k, &e) < 0)
		err_exit(&e);
#ifdef HAVE_OPENBLAS
	double blas[REPS];
#endif
	for (int r = 0; r < REPS; r++) {
		ours[r] = kernel_gemm_rate(&g, backend_cpu.gemm) * 1e-9;
		half[r] = kernel_gemm_rate(&g, backend_cpu.gemm_bf16) * 1e-9;
#ifdef HAVE_OPENBLAS
		double t = progress_clock();

		for (int i = 0; i < g.calls; i++)
			cblas_sgemm(CblasRowMajor, kind == GEMM_TN ? CblasTrans : CblasNoTrans,
			    kind == GEMM_NT ? CblasTrans : CblasNoTrans, m, n, k, 1, g.job.a, (int)g.job.lda, g.job.b, (int)g.job.ldb, 0,
			    g.job.c, n);
		blas[r] = 2.0 * m * n * k * g.calls / (progress_clock() - t) * 1e-9;
#endif
	}
	record("chronos", kind_name[kind], m, n, k, ours);
	record(half_name, kind_name[kind], m, n, k, half);
#ifdef HAVE_OPENBLAS
	record("openblas", kind_name[kind], m, n, k, blas);
#endif
	kernel_gemm_close(&g);
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
			bench_shape((enum gemm_kind)kind, shape[s][0], shape[s][1], shape[s][2]);
	return 0;
}
