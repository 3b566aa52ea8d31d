/*
 * gemm: matrix products of the cpu backend, of FP32 and of BF16 values, beside OpenBLAS (when
 * built with it) and the machine's multiply-add rate, same run, interleaved. JSON records,
 * GFLOP/s, best and median of the repetitions, and the median by processor time of all threads,
 * which others on the machine change less.
 *
 * Whoever computed last may have threads that spin for a while before they sleep (OpenBLAS's for
 * tens of milliseconds) and take a CPU from the next. So each repetition begins when nobody in
 * this process uses one, with a product that is not timed.
 *
 *	build/bench/gemm [THREADS [ROWS COLUMNS DEPTH]]		the threads are ours; without a
 *	shape: several
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "backend/cpu/cpu.h"
#include "measure/kernel_rate.h"
#include "base/pool.h"
#include "base/progress.h"

#ifdef HAVE_OPENBLAS
#include <cblas.h>
#endif

#define REPS 7
#define PAUSE_NS 2000000L

static char half_name[64];	/* with the kernels of gemm_bf16 */
static const char *const kind_name[] = { "NT", "NN", "TN" };

static double ours(const struct kernel_rate_gemm *g)
{
	return kernel_rate_gemm_rate(g, &backend_cpu, false);
}

static double half(const struct kernel_rate_gemm *g)
{
	return kernel_rate_gemm_rate(g, &backend_cpu, true);
}

#ifdef HAVE_OPENBLAS
static double blas(const struct kernel_rate_gemm *g)
{
	const struct gemm_job *j = &g->job;
	double t = progress_clock();

	for (int i = 0; i < g->calls; i++)
		cblas_sgemm(CblasRowMajor, g->kind == GEMM_TN ? CblasTrans : CblasNoTrans,
		    g->kind == GEMM_NT ? CblasTrans : CblasNoTrans,
		    (int)j->m, (int)j->n, (int)j->k, 1, j->a, (int)j->lda, j->b, (int)j->ldb, 0,
		    j->c, (int)j->ldc);
	return 2.0 * (double)j->m * (double)j->n * (double)j->k * g->calls / (progress_clock() - t);
}
#endif

static const struct contender {
	const char *name;
	double (*rate)(const struct kernel_rate_gemm *g);
} contender[] = {
	{ "chronos", ours }, { half_name, half },
#ifdef HAVE_OPENBLAS
	{ "openblas", blas },
#endif
};
#define CONTENDERS (sizeof contender / sizeof *contender)

static double cpu_clock(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Returns when all threads of this process sleep. */
static void settle(void)
{
	const struct timespec pause = { .tv_nsec = PAUSE_NS };
	double before;

	do {
		before = cpu_clock();
		nanosleep(&pause, NULL);
	} while (cpu_clock() - before > 0.1 * 1e-9 * PAUSE_NS);
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void record(const char *what, const char *kind, int m, int n, int k, double *g,
    double *by_cpu)
{
	qsort(g, REPS, sizeof(*g), by_value);
	qsort(by_cpu, REPS, sizeof(*by_cpu), by_value);
	printf("{\"type\":\"bench\",\"what\":\"%s\",\"kind\":\"%s\",\"m\":%d,\"n\":%d,\"k\":%d,"
	    "\"threads\":%d,"
	    "\"gflops_median\":%.1f,\"gflops_best\":%.1f,\"gflop_per_cpu_s\":%.1f}\n", what, kind,
	    m, n, k, pool_threads(), g[REPS / 2],
	    g[REPS - 1], by_cpu[REPS / 2]);
	fflush(stdout);
}

static void bench_peak(void)
{
	double g[REPS], by_cpu[REPS];

	for (int r = 0; r < REPS; r++) {
		double t = progress_clock(), cpu = cpu_clock();

		g[r] = kernel_rate_fma_rate() * 1e-9;
		by_cpu[r] = g[r] * (progress_clock() - t) / (cpu_clock() - cpu);
	}
	if (g[0] > 0)
		record("fma_registers", "-", 0, 0, 0, g, by_cpu);
}

static void bench_shape(enum gemm_kind kind, int m, int n, int k)
{
	struct kernel_rate_gemm g, once;
	struct err e = { 0 };
	double rate[CONTENDERS][REPS], by_cpu[CONTENDERS][REPS];

	if (kernel_rate_gemm_open(&g, kind, m, n, k, &e) < 0)
		err_exit(&e);
	once = g;
	once.calls = 1;
	for (int r = 0; r < REPS; r++)
		for (size_t c = 0; c < CONTENDERS; c++) {
			double t, cpu;

			settle();
			contender[c].rate(&once);
			t = progress_clock();
			cpu = cpu_clock();
			rate[c][r] = contender[c].rate(&g) * 1e-9;
			by_cpu[c][r] = rate[c][r] * (progress_clock() - t) / (cpu_clock() - cpu);
		}
	for (size_t c = 0; c < CONTENDERS; c++)
		record(contender[c].name, kind_name[kind], m, n, k, rate[c], by_cpu[c]);
	kernel_rate_gemm_close(&g);
}

int main(int argc, char **argv)
{
	static const int shape[][3] = { { 1, 1024, 768 }, { 4, 1024, 768 }, { 16, 1024, 768 },
	    { 64, 1024, 768 },
		{ 256, 256, 128 }, { 2048, 256, 256 }, { 2048, 128, 256 }, { 480, 6400, 256 },
		    { 1024, 1024, 1024 } };
	bool one = argc > 4;

	pool_init(argc > 1 ? atoi(argv[1]) : 0);
	snprintf(half_name, sizeof(half_name), "chronos %s", cpu_bf16_isa());
	bench_peak();
	if (one)
		bench_shape(GEMM_NT, atoi(argv[2]), atoi(argv[3]), atoi(argv[4]));
	for (size_t s = 0; s < sizeof(shape) / sizeof(shape[0]) && !one; s++)
		for (int kind = 0; kind < 3; kind++)
			bench_shape((enum gemm_kind)kind, shape[s][0], shape[s][1], shape[s][2]);
	return 0;
}
