/*
 * kernels: every instruction set this machine has against the portable loops, and the promise of
 * GEMM_NT: a row's result depends on nothing but that row, B and K.
 */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "backend/backend.h"
#include "base/isa.h"
#include "backend/cpu/cpu_kernels.h"
#include "backend/published.h"
#include "base/pool.h"
#include "base/rng.h"
#include "tap.h"

static float *randoms(int64_t n, uint64_t stream)
{
	float *p = malloc((size_t)n * sizeof(float));

	for (int64_t i = 0; i < n; i++)
		p[i] = (float)rng_normal(5, stream, (uint64_t)i);
	return p;
}

static double worst_rel(const float *a, const float *b, int64_t n)
{
	double w = 0;

	for (int64_t i = 0; i < n; i++) {
		double d = fabs((double)a[i] - (double)b[i]) / (1 + fabs((double)b[i]));

		w = d > w || isnan(d) ? d : w;
	}
	return w;
}

/* Products of awkward sizes; tolerance is that of k float32 additions. */
static void test_products(const char *isa)
{
	static const int size[][3] = { { 1, 1, 1 }, { 1, 7, 19 }, { 1, 65, 40 }, { 5, 6, 7 },
	    { 7, 47, 33 }, { 13, 50, 16 },
		{ 97, 193, 65 }, { 40, 49, 300 }, { 33, 16, 31 } };
	double worst = 0;

	for (size_t s = 0; s < sizeof(size) / sizeof(size[0]); s++)
		for (int kind = 0; kind < 3; kind++) {
			int m = size[s][0], n = size[s][1], k = size[s][2];
			float *a = randoms((int64_t)m * k, 1), *b = randoms((int64_t)n * k, 2),
			    *c = randoms((int64_t)m * n, 3),
			      *d = randoms((int64_t)m * n, 3);
			struct gemm_job j = { c, n, a, kind == GEMM_TN ? m : k, b, kind == GEMM_NT
			    ? k : n, DT_F32, m, n, k, 1 };
			double w;

			isa_force(isa);
			backend_cpu.gemm(&backend_cpu, kind, &j, 1);
			j.c = d;
			isa_force("portable");
			backend_cpu.gemm(&backend_cpu, kind, &j, 1);
			w = worst_rel(c, d, (int64_t)m * n);
			worst = w > worst ? w : worst;
			free(a), free(b), free(c), free(d);
		}
	ok(worst < 1e-5, "%s: matrix products", isa);
	printf("# worst %.2g\n", worst);
}

static void test_glu(const char *isa, struct glu glu)
{
	enum { N = 2049 };
	float *x = randoms(N, 4), *y = randoms(N, 5), *d = randoms(N, 6), out[2][3][N];
	double worst = 0;

	for (int i = 0; i < 2; i++) {
		isa_force(i ? "portable" : isa);
		cpu_kernels()->swiglu(out[i][0], x, y, N, glu);
		cpu_kernels()->swiglu_back(out[i][1], out[i][2], d, x, y, N, glu);
	}
	for (int j = 0; j < 3; j++)
		worst = fmax(worst, worst_rel(out[0][j], out[1][j], N));
	ok(worst < 1e-6, "%s: %s and backward", isa, glu.limit > 0 ? "clamped swiglu" : "swiglu");
	free(x), free(y), free(d);
}

static void test_rows(const char *isa)
{
	enum { N = 37, W = 77 };
	float *x = randoms(N * W, 4), *y = randoms(N * W, 5), *g = randoms(N * W, 6), out[2][N * W],
	    aux[2][N * W], r[2][N];
	double sq[2];

	for (int i = 0; i < 2; i++) {
		isa_force(i ? "portable" : isa);
		const struct cpu_kernels *k = cpu_kernels();

		memcpy(out[i], x, sizeof(out[i]));
		k->softmax(out[i], N, W);
		sq[i] = k->sumsq(x, N * W);
	}
	ok(worst_rel(out[0], out[1], N * W) < 1e-6, "%s: softmax", isa);
	ok(fabs(sq[0] - sq[1]) < 1e-9 * sq[1], "%s: sum of squares", isa);
	for (int i = 0; i < 2; i++) {
		isa_force(i ? "portable" : isa);
		const struct cpu_kernels *k = cpu_kernels();

		k->rmsnorm(out[i], r[i], x, y, N, W, 1e-6);
		k->rmsnorm_dx(aux[i], g, x, y, r[i], N, W, 0);
	}
	ok(worst_rel(out[0], out[1], N * W) < 1e-5 && worst_rel(aux[0], aux[1], N * W) < 1e-5,
	    "%s: rmsnorm and backward", isa);
	for (int i = 0; i < 2; i++) {
		float c[8] = { 0.01f, 0.9f, 0.95f, 1.2f, 1e-8f, 0.001f, 0.5f, 0 };

		isa_force(i ? "portable" : isa);
		memcpy(out[i], x, sizeof(out[i]));
		memcpy(aux[i], y, sizeof(aux[i]));
		float *v = randoms(N * W, 8);

		for (int j = 0; j < N * W; j++)
			v[j] *= v[j];
		cpu_kernels()->adamw(out[i], aux[i], v, g, N * W, c);
		free(v);
	}
	ok(worst_rel(out[0], out[1], N * W) < 1e-6 && worst_rel(aux[0], aux[1], N * W) < 1e-6,
	    "%s: adamw", isa);
	free(x), free(y), free(g);
}

/* Softmax of this suite against libm, over the whole useful range. */
static void test_exp(const char *isa)
{
	double worst = 0;

	isa_force(isa);
	for (int i = 0; i < 20000; i++) {
		float x[2] = { 0, (float)(-80.0 * i / 20000) }, y = x[1];

		cpu_kernels()->exp_sum(x, 2, 0);
		worst = fmax(worst, fabs((double)x[1] / exp((double)y) - 1));
	}
	ok(worst < 3e-7, "%s: exp", isa);
	printf("# worst relative error %.2g\n", worst);
}

/* Rows one by one, in threes, and all at once; narrow weights too: the same bytes. */
static void test_invariance(const char *isa, enum dtype dt)
{
	enum { M = 101, N = 203, K = 77 };
	float *a = randoms(M * K, 1), *w = randoms(N * K, 2), *one = calloc(M * N, 4),
	    *all = calloc(M * N, 4);
	void *b = malloc(N * K * 4);
	static const int step[] = { 1, 3, 7, 100 };
	struct gemm_job j = { all, N, a, K, b, K, dt, M, N, K, 0 };
	int same = 1;

	isa_force(isa);
	for (int i = 0; i < N * K; i += 50)		/* among them subnormal halves */
		w[i] *= ldexpf(1, -(i % 24));
	tensor_from_f32(b, dt, w, N * K);
	backend_cpu.gemm(&backend_cpu, GEMM_NT, &j, 1);
	for (size_t s = 0; s < sizeof(step) / sizeof(step[0]); s++) {
		memset(one, 0, M * N * 4);
		for (int i = 0; i < M; i += step[s]) {
			struct gemm_job r = { one + i * N, N, a + i * K, K, b, K, dt,
			    M - i < step[s] ? M - i : step[s], N, K, 0 };

			backend_cpu.gemm(&backend_cpu, GEMM_NT, &r, 1);
		}
		same &= memcmp(one, all, M * N * 4) == 0;
	}
	ok(same, "%s: rows of GEMM_NT do not depend on batching, %s weights", isa, dtype_name(dt));
	tensor_to_f32(w, b, dt, N * K);
	j = (struct gemm_job){ one, N, a, K, w, K, DT_F32, M, N, K, 0 };
	backend_cpu.gemm(&backend_cpu, GEMM_NT, &j, 1);
	ok(memcmp(one, all, M * N * 4) == 0, "%s: %s weights are what they are as floats", isa,
	    dtype_name(dt));
	free(a), free(w), free(one), free(all), free(b);
}

/* Random bits of numbers, in panels: E4M3 without its NaN, scales of many sizes. */
static char *panels(enum dtype t, int rows, int cols)
{
	char *w = aligned_alloc(64, mat_bytes(t, rows, cols));
	int nb = quant_blocks(cols);
	uint8_t *values = malloc((size_t)QUANT_PANEL * (size_t)nb * QUANT_BLOCK), *s = malloc(
	    (size_t)nb * QUANT_PANEL);
	float *d = malloc((size_t)nb * sizeof *d);

	for (int p = 0; p < quant_panels(rows); p++) {
		int n = rows - p * QUANT_PANEL < QUANT_PANEL ? rows - p * QUANT_PANEL : QUANT_PANEL;
		void *to = w + (size_t)p * quant_panel_bytes(t, cols);

		for (int i = 0; i < QUANT_PANEL * nb * QUANT_BLOCK; i++) {
			values[i] = (uint8_t)rng_hash((uint64_t)p, (uint64_t)i);
			if (t == DT_F8 && (values[i] & 127) == 127)
				values[i] = 0;
		}
		for (int i = 0; i < QUANT_PANEL * nb; i++)
			s[i] = (uint8_t)(i % 11 == 0 ? 0 : 120 + rng_hash(77, (uint64_t)i) % 16);
		for (int b = 0; b < nb; b++)
			d[b] = (float)rng_normal(6, (uint64_t)p, (uint64_t)b) * 0.01f;
		if (t == DT_F8)
			published_f8_put(to, values, d, QUANT_BLOCK, n, cols);
		else
			published_mxfp4_put(to, values, s, n, cols);
	}
	free(values), free(s), free(d);
	return w;
}

/* Panels of F8 and MXFP4 against the same matrix in floats: the same bytes. */
static void test_panels(const char *isa, enum dtype t)
{
	static const int size[][2] = { { 1, 1 }, { 16, 32 }, { 17, 33 }, { 40, 100 }, { 200, 77 },
	    { 5, 31 }, { 33, 4 }, { 16, 48 }, { 70, 257 } };
	static const int rows[] = { 1, 2, 9, 100 };
	int same = 1;

	isa_force(isa);
	for (size_t i = 0; i < sizeof size / sizeof *size; i++)
		for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
			for (int beta = 0; beta < 2; beta++) {
				int m = rows[r], n = size[i][0], k = size[i][1];
				char *w = panels(t, n, k);
				float *f = malloc(sizeof *f * (size_t)n * (size_t)k),
				    *a = randoms((int64_t)m * k, 8),
				    *c = randoms((int64_t)m * n, 3),
				    *d = randoms((int64_t)m * n, 3);
				struct gemm_job j = { c, n, a, k, w, 0, t, m, n, k, (real)beta };

				quant_unpack(f, w, t, n, k);
				backend_cpu.gemm(&backend_cpu, GEMM_NT, &j, 1);
				j = (struct gemm_job){ d, n, a, k, f, k, DT_F32, m, n, k,
				    (real)beta };
				backend_cpu.gemm(&backend_cpu, GEMM_NT, &j, 1);
				same &= memcmp(c, d, sizeof *c * (size_t)m * (size_t)n) == 0;
				free(w), free(f), free(a), free(c), free(d);
			}
	ok(same, "%s: %s weights are what they are as floats", isa, dtype_name(t));
}

/* More threads get smaller tasks. */
static void test_threads(const char *isa)
{
	enum { M = 200, N = 1200, K = 70 };
	float *a = randoms(M * K, 1), *b = randoms(N * K, 2), *c = calloc(M * N, 4),
	    *one = calloc(M * N, 4);
	bool same = true;

	isa_force(isa);
	for (int kind = 0; kind < 3; kind++) {
		struct gemm_job j = { one, N, a, kind == GEMM_TN ? M : K, b, kind == GEMM_NT ? K
		    : N, DT_F32, M, N, K, 0 };

		for (int threads = 1; threads <= 3; threads += 2) {
			pool_quit();
			pool_init(threads);
			j.c = threads == 1 ? one : c;
			backend_cpu.gemm(&backend_cpu, kind, &j, 1);
		}
		same &= memcmp(one, c, M * N * 4) == 0;
	}
	ok(same, "%s: 1 and 3 threads, the same bytes", isa);
	pool_quit();
	pool_init(2);
	free(a), free(b), free(c), free(one);
}

int main(void)
{
	static const char *const isa[] = { "portable", "avx2", "avx512" };

	pool_init(2);
	for (int i = 0; i < 3; i++) {
		if (isa_force(isa[i]) < 0) {
			ok(1, "%s # SKIP not on this machine", isa[i]);
			continue;
		}
		test_products(isa[i]);
		test_glu(isa[i], (struct glu){ 0 });
		test_glu(isa[i], (struct glu){ 0.5, 1.702 });
		test_rows(isa[i]);
		test_exp(isa[i]);
		test_threads(isa[i]);
		for (int t = DT_F32; t <= DT_F16; t++)
			test_invariance(isa[i], (enum dtype)t);
		test_panels(isa[i], DT_F8);
		test_panels(isa[i], DT_MXFP4);
	}
	return tap_done();
}
