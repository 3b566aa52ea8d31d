/* Backend blas: its products are cpu's within rounding, on odd shapes and in groups, and do not
 * depend on threads. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend/blas/blas.h"
#include "base/pool.h"
#include "base/rng.h"
#include "tap.h"

static real *numbers(int64_t n, uint64_t key)
{
	real *p = malloc((size_t)n * sizeof *p);

	for (int64_t i = 0; i < n; i++)
		p[i] = (real)rng_hash(key, (uint64_t)i) / 4294967296 - (real)0.5;
	return p;
}

/* Largest difference of the two results, by the square root of the depth. */
static double compare(const struct backend *blas, enum gemm_kind kind, int m, int n, int k,
    real beta)
{
	real *a = numbers((int64_t)m * k, 1), *b = numbers((int64_t)n * k, 2), *c[2];
	double worst = 0;

	for (int i = 0; i < 2; i++) {
		struct gemm_job j = { c[i] = numbers((int64_t)m * n, 3), n, a, kind == GEMM_TN ? m
		    : k, b,
		    kind == GEMM_NT ? k : n, DT_REAL, m, n, k, beta };
		const struct backend *be = i ? blas : &backend_cpu;

		be->gemm_train(be, kind, &j, 1);
	}
	for (int64_t i = 0; i < (int64_t)m * n; i++)
		worst = fmax(worst, fabs((double)(c[0][i] - c[1][i])) / sqrt(k));
	free(a), free(b), free(c[0]), free(c[1]);
	return worst;
}

static bool same_on_threads(const struct backend *blas)
{
	real *a = numbers(700 * 300, 1), *b = numbers(900 * 300, 2), *c[2];
	bool same;

	for (int i = 0; i < 2; i++) {
		struct gemm_job j[2] = { { c[i] = calloc(700 * 900, sizeof(real)), 900, a, 300, b,
		    300, DT_REAL, 700, 900,
		    300, 0 }, { NULL, 1, a, 300, b, 300, DT_REAL, 0, 0, 300, 0 } };

		pool_quit();
		pool_init(1 + 2 * i);
		blas->gemm_train(blas, GEMM_NT, j, 2);
	}
	same = memcmp(c[0], c[1], 700 * 900 * sizeof(real)) == 0;
	free(a), free(b), free(c[0]), free(c[1]);
	return same;
}

int main(void)
{
	static const int shape[][3] = { { 1, 1, 1 }, { 3, 5, 7 }, { 64, 192, 96 },
	    { 513, 511, 100 }, { 700, 1030, 33 },
	    { 1, 900, 300 } };
	struct err e = { 0 };
	const struct backend *blas;

	pool_init(2);
	if ((blas = backend_open("blas", &e)) == NULL)
		return tap_skip(e.msg);
	printf("# %s\n", blas->describe(blas));
	for (int s = 0; s < 6; s++)
		for (int kind = GEMM_NT; kind <= GEMM_TN; kind++)
			ok(compare(blas, (enum gemm_kind)kind, shape[s][0], shape[s][1],
			    shape[s][2], kind == GEMM_TN) < 1e-6,
			    "%d x %d x %d, kind %d", shape[s][0], shape[s][1], shape[s][2], kind);
	ok(same_on_threads(blas), "1 and 3 threads: the same bytes");
	ok(blas->gemm == backend_cpu.gemm, "decoding keeps the kernels of cpu");
	pool_quit();
	return tap_done();
}
