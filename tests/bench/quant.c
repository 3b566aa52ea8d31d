/* What the kernels for experts in blocks and in floats reach: bytes of weights per second for one row (more memory than any cache holds),
 * operations for more rows. build/bench/quant [THREADS] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backend.h"
#include "pool.h"
#include "quant.h"
#include "rng.h"

#define REPS 7
#define EXPERTS 96	/* of 1024 x 768 */

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int less(const void *a, const void *b) { return *(const double *)a > *(const double *)b ? 1 : -1; }

/* Seconds: least, median, most of REPS passes over all experts with m rows each. */
static void pass(const char *w, enum dtype t, int m)
{
	int D = 1024, F = 768;
	size_t one = mat_bytes(t, F, D), down = mat_bytes(t, D, F), all = 2 * one + down;
	float *x = calloc((size_t)m * D, sizeof(*x)), *y = calloc((size_t)m * D * 8, sizeof(*y));
	char *a = aligned_alloc(64, quant_row_bytes(D) * (size_t)m), *h = aligned_alloc(64, quant_row_bytes(F) * (size_t)m * 8);
	struct qffn_job f[8];
	struct qgemm_job g[8];
	double s[REPS], macs = (double)EXPERTS * m * 3.0 * D * F;

	for (int i = 0; i < m * D; i++)
		x[i] = (float)rng_normal(1, 2, (uint64_t)i);
	for (int r = -1; r < REPS; r++) {
		double t0 = now();

		for (int e = 0; e < EXPERTS; e += 8) {
			backend_cpu.quantize(a, x, m, D);
			for (int i = 0; i < 8; i++) {
				const char *p = w + (size_t)(e + i) * all;

				f[i] = (struct qffn_job){ a, h + quant_row_bytes(F) * (size_t)(m * i), { p, t, F, D }, { p + one, t, F, D }, m };
				g[i] = (struct qgemm_job){ y + (size_t)m * D * i, D, f[i].h, { p + 2 * one, t, D, F }, m, 0 };
			}
			backend_cpu.qffn(f, 8);
			backend_cpu.qgemm(g, 8);
		}
		if (r >= 0)
			s[r] = now() - t0;
	}
	qsort(s, REPS, sizeof(*s), less);
	printf("| %s | %d | %.1f [%.1f-%.1f] | %.0f [%.0f-%.0f] |\n", dtype_name(t), m, (double)all * EXPERTS / s[REPS / 2] / 1e9,
	    (double)all * EXPERTS / s[REPS - 1] / 1e9, (double)all * EXPERTS / s[0] / 1e9, 2 * macs / s[REPS / 2] / 1e9,
	    2 * macs / s[REPS - 1] / 1e9, 2 * macs / s[0] / 1e9);
	free(x), free(y), free(a), free(h);
}

/* The same with experts of floats, as the engine computes them. */
static void pass_floats(const char *w, enum dtype t, int m)
{
	int D = 1024, F = 768;
	size_t one = mat_bytes(t, F, D), all = 3 * one;
	int experts = (int)(mat_bytes(DT_BF16, F, D) * EXPERTS / one) / 8 * 8;
	float *x = calloc((size_t)m * D, sizeof(*x)), *y = calloc((size_t)m * D * 8, sizeof(*y));
	float *g = calloc((size_t)m * F * 8, sizeof(*g)), *u = calloc((size_t)m * F * 8, sizeof(*u));
	struct gemm_job j[16];
	double s[REPS], macs = (double)experts * m * 3.0 * D * F, bytes = (double)all * experts;

	for (int i = 0; i < m * D; i++)
		x[i] = (float)rng_normal(1, 2, (uint64_t)i);
	for (int r = -1; r < REPS; r++) {
		double t0 = now();

		for (int e = 0; e < experts; e += 8) {
			for (int i = 0; i < 16; i++)
				j[i] = (struct gemm_job){ .c = (i & 1 ? u : g) + (size_t)m * F * (i / 2), .ldc = F, .a = x, .lda = D,
				    .b = w + (size_t)(e + i / 2) * all + (i & 1) * one, .ldb = D, .bt = t, .m = m, .n = F, .k = D };
			backend_cpu.gemm(GEMM_NT, j, 16);
			backend_cpu.swiglu(g, g, u, (int64_t)m * F * 8);
			for (int i = 0; i < 8; i++)
				j[i] = (struct gemm_job){ .c = y + (size_t)m * D * i, .ldc = D, .a = g + (size_t)m * F * i, .lda = F,
				    .b = w + (size_t)(e + i) * all + 2 * one, .ldb = F, .bt = t, .m = m, .n = D, .k = F };
			backend_cpu.gemm(GEMM_NT, j, 8);
		}
		if (r >= 0)
			s[r] = now() - t0;
	}
	qsort(s, REPS, sizeof(*s), less);
	printf("| %s | %d | %.1f [%.1f-%.1f] | %.0f [%.0f-%.0f] |\n", dtype_name(t), m, bytes / s[REPS / 2] / 1e9, bytes / s[REPS - 1] / 1e9,
	    bytes / s[0] / 1e9, 2 * macs / s[REPS / 2] / 1e9, 2 * macs / s[REPS - 1] / 1e9, 2 * macs / s[0] / 1e9);
	free(x), free(y), free(g), free(u);
}

static volatile uint64_t sink;

static void sum_range(void *ctx, int64_t i0, int64_t i1, int worker)
{
	const uint64_t *p = ctx;
	uint64_t s[8] = { 0 };

	(void)worker;
	for (int64_t i = i0; i < i1; i += 8)
		for (int j = 0; j < 8; j++)
			s[j] += p[i + j];
	sink = s[0] + s[1] + s[2] + s[3] + s[4] + s[5] + s[6] + s[7];
}

int main(int argc, char **argv)
{
	size_t bytes = mat_bytes(DT_BF16, 768, 1024) * 3 * EXPERTS + (1 << 20);
	char *w = aligned_alloc(2 << 20, (bytes + (2 << 20) - 1) & ~(size_t)((2 << 20) - 1));
	double best = 1e9;

	pool_init(argc > 1 ? atoi(argv[1]) : 0);
	if (!w)
		return 71;
	for (size_t i = 0; i < bytes; i++)	/* small exponents in what is read as scales */
		w[i] = (char)(rng_hash(7, i) & 0x3f);
	for (int r = 0; r < REPS; r++) {
		double t0 = now(), t;

		pool_for((int64_t)(bytes / 64) * 8, 32768, sum_range, w);
		t = now() - t0;
		best = t < best ? t : best;
	}
	printf("%s, %d threads; reading memory: %.1f GB/s\n\n| type | rows | GB/s of weights | GOP/s |\n|---|---|---|---|\n",
	    cpu_isa(), pool_threads(), (double)bytes / best / 1e9);
	for (enum dtype t = DT_Q8; t <= DT_Q4A; t++)
		for (int m = 1; m <= 128; m *= m == 1 ? 4 : m == 4 ? 4 : 8)
			pass(w, t, m);
	for (enum dtype t = DT_F32; t <= DT_F16; t++)
		for (int m = 1; m <= 128; m *= m == 1 ? 4 : m == 4 ? 4 : 8)
			pass_floats(w, t, m);
	return 0;
}
