/*
 * bf16: every kernel of the row gemm_bf16 against a sum in double of the same rounded values,
 * and its promises: a row's bytes depend on nothing but that row, B and K, and not on the number
 * of threads. AMX runs in software where the processor lacks it.
 */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "backend/backend.h"
#include "backend/cpu/cpu_bf16.h"
#include "base/pool.h"
#include "base/rng.h"
#include "tap.h"
#ifdef __x86_64__
#include "amx_emu.h"
#endif

static float *randoms(int64_t n, uint64_t stream)
{
	float *p = malloc((size_t)n * sizeof(float));

	for (int64_t i = 0; i < n; i++)
		p[i] = (float)rng_normal(5, stream, (uint64_t)i);
	return p;
}

static float rounded(float x)
{
	uint32_t u;

	memcpy(&u, &x, 4);
	u = (u + 0x7fff + (u >> 16 & 1)) & 0xffff0000;
	memcpy(&x, &u, 4);
	return x;
}

struct product { int kind, m, n, k; float *a, *b, *c; int64_t lda, ldb; };

static struct product product(int kind, int m, int n, int k)
{
	struct product p = { kind, m, n, k, randoms((int64_t)m * k, 1), randoms((int64_t)n * k, 2),
	    randoms((int64_t)m * n, 3),
		kind == GEMM_TN ? m : k, kind == GEMM_NT ? k : n };

	return p;
}

static void product_free(struct product *p) { free(p->a), free(p->b), free(p->c); }

static void multiply(const struct product *p, float *c, float beta)
{
	struct gemm_job j = { c, p->n, p->a, p->lda, p->b, p->ldb, DT_F32, p->m, p->n, p->k, beta };

	memcpy(c, p->c, (size_t)p->m * (size_t)p->n * sizeof(float));
	backend_cpu.gemm_bf16(&backend_cpu, p->kind, &j, 1);
}

/* The largest error in units of the sum of the products' magnitudes. */
static double worst_error(const struct product *p, const float *c, float beta)
{
	double worst = 0;

	for (int i = 0; i < p->m; i++)
		for (int j = 0; j < p->n; j++) {
			double sum = beta * p->c[i * p->n + j], size = fabs(sum) + 1e-30, d;

			for (int q = 0; q < p->k; q++) {
				float x = rounded(p->kind == GEMM_TN ? p->a[q * p->lda + i]
				    : p->a[i * p->lda + q]);
				float y = rounded(p->kind == GEMM_NT ? p->b[j * p->ldb + q]
				    : p->b[q * p->ldb + j]);

				sum += (double)x * y;
				size += fabs((double)x * y);
			}
			d = fabs(sum - c[i * p->n + j]) / size;
			worst = d > worst || isnan(d) ? d : worst;
		}
	return worst;
}

/* Awkward sizes, and one of several blocks each way. */
static const int size[][3] = { { 1, 1, 1 }, { 1, 7, 19 }, { 5, 16, 32 }, { 16, 33, 31 },
    { 20, 50, 64 }, { 33, 15, 70 },
	{ 32, 32, 96 }, { 48, 400, 20 }, { 150, 40, 530 }, { 40, 23, 1100 } };
#define SIZES (sizeof(size) / sizeof(size[0]))

static void test_products(const char *isa)
{
	double worst = 0;

	for (size_t s = 0; s < SIZES; s++)
		for (int kind = 0; kind < 3; kind++)
			for (int beta = 0; beta < 2; beta++) {
				struct product p = product(kind, size[s][0], size[s][1],
				    size[s][2]);
				float *c = malloc((size_t)p.m * (size_t)p.n * sizeof(float));
				double w;

				multiply(&p, c, (float)beta);
				w = worst_error(&p, c, (float)beta);
				worst = w > worst || isnan(w) ? w : worst;
				free(c);
				product_free(&p);
			}
	ok(worst < 1e-6, "%s: matrix products", isa);
	printf("# %s: worst %.2g\n", isa, worst);
}

/* Row r alone gives the same bytes as among all. */
static bool row_alone(const struct product *p, const float *c, int r)
{
	float *one = malloc((size_t)p->n * sizeof(float));
	struct gemm_job j = { one, p->n, p->kind == GEMM_TN ? p->a + r : p->a + r * p->lda, p->lda,
	    p->b, p->ldb, DT_F32, 1, p->n,
		p->k, 1 };
	bool same;

	memcpy(one, p->c + r * p->n, (size_t)p->n * sizeof(float));
	backend_cpu.gemm_bf16(&backend_cpu, p->kind, &j, 1);
	same = memcmp(one, c + r * p->n, (size_t)p->n * sizeof(float)) == 0;
	free(one);
	return same;
}

static void test_promises(const char *isa)
{
	bool rows = true, threads = true;

	for (int kind = 0; kind < 3; kind++) {
		struct product p = product(kind, 150, 70, 600);
		size_t bytes = (size_t)p.m * (size_t)p.n * sizeof(float);
		float *c = malloc(bytes), *d = malloc(bytes);

		multiply(&p, c, 1);
		for (int r = 0; r < p.m; r += 37)
			rows &= row_alone(&p, c, r);
		for (int n = 1; n <= 4; n *= 2) {
			pool_quit();
			pool_init(n);
			multiply(&p, d, 1);
			threads &= memcmp(c, d, bytes) == 0;
		}
		free(c), free(d);
		product_free(&p);
	}
	ok(rows, "%s: a row's bytes depend on that row, B and K", isa);
	ok(threads, "%s: 1, 2 and 4 threads, the same bytes", isa);
}

/* What is not a number stays none, infinity stays, halves go to even, and nothing is added by
 * padding. */
static void test_values(const char *isa)
{
	const float in[] = { NAN, INFINITY, 1 + 0x1p-8f, 1 + 3 * 0x1p-8f, -1 - 0x1p-8f,
	    1 + 0x1.1p-8f };
	const float out[] = { NAN, INFINITY, 1, 1 + 0x1p-6f, -1, 1 + 0x1p-7f };
	const float one = 1;
	bool good = true;

	for (size_t i = 0; i < sizeof(in) / sizeof(in[0]); i++)
		for (int swap = 0; swap < 2; swap++) {
			float c = 7;
			struct gemm_job j = { &c, 1, swap ? &one : &in[i], 1, swap ? &in[i] : &one,
			    1, DT_F32, 1, 1, 1, 0 };

			backend_cpu.gemm_bf16(&backend_cpu, GEMM_NT, &j, 1);
			good &= isnan(out[i]) ? isnan(c) : c == out[i];
		}
	ok(good, "%s: rounding", isa);
}

/* AVX512-BF16 adds in the order of the plain loops, so even the bytes are the same. */
static void test_equal(const struct bf16_kernels *k)
{
	bool same = true;

	for (size_t s = 0; s < SIZES; s++)
		for (int kind = 0; kind < 3; kind++) {
			struct product p = product(kind, size[s][0], size[s][1], size[s][2]);
			size_t bytes = (size_t)p.m * (size_t)p.n * sizeof(float);
			float *c = malloc(bytes), *d = malloc(bytes);

			cpu_bf16_force(k);
			multiply(&p, c, 1);
			cpu_bf16_force(&bf16_kernels_portable);
			multiply(&p, d, 1);
			same &= memcmp(c, d, bytes) == 0;
			free(c), free(d);
			product_free(&p);
		}
	ok(same, "%s: the bytes of the plain loops", k->isa);
}

/* Attention, forward and backward, two documents and two query heads a key head: out[0..3] are
 * o, dq, dk, dv. */
enum { AT = 70, AH = 4, AG = 2, AD = 24 };
static void attention(bool bf16, float *out[4])
{
	float *q = randoms(AT * AH * AD, 6), *k = randoms(AT * AG * AD, 7),
	    *v = randoms(AT * AG * AD, 8),
	      *d = randoms(AT * AH * AD, 9), *lse = malloc(AT * AH * sizeof(float));
	int32_t doc[AT];
	struct attn_args a = { .B = 1, .T = AT, .H = AH, .G = AG, .dq = AD, .dv = AD, .scale = 0.2f,
	    .doc_start = doc, .bf16 = bf16,
		.q = q, .k = k, .v = v, .o = out[0], .lse = lse, .d_o = d, .dq_ = out[1],
		    .dk = out[2], .dv_ = out[3] };

	for (int t = 0; t < AT; t++)
		doc[t] = t < 30 ? 0 : 30;
	backend_cpu.attn(&backend_cpu, &a);
	backend_cpu.attn_back(&backend_cpu, &a);
	free(q), free(k), free(v), free(d), free(lse);
}

static double difference(const float *a, const float *b, int n)
{
	double d = 0, norm = 0;

	for (int i = 0; i < n; i++) {
		d += pow((double)a[i] - (double)b[i], 2);
		norm += pow((double)b[i], 2);
	}
	return sqrt(d / norm);
}

static void test_attention(const struct bf16_kernels *k)
{
	float *half[4], *plain[4], *full[4];
	double to_plain = 0, to_full = 0;

	for (int i = 0; i < 4; i++) {
		size_t bytes = AT * AH * AD * sizeof(float);

		half[i] = calloc(1, bytes), plain[i] = calloc(1, bytes), full[i] = calloc(1, bytes);
	}
	attention(true, half);
	attention(false, full);
	cpu_bf16_force(&bf16_kernels_portable);
	attention(true, plain);
	cpu_bf16_force(k);
	for (int i = 0; i < 4; i++) {
		int n = AT * (i < 2 ? AH : AG) * AD;

		to_plain = fmax(to_plain, difference(half[i], plain[i], n));
		to_full = fmax(to_full, difference(half[i], full[i], n));
		free(half[i]), free(plain[i]), free(full[i]);
	}
	/* a sum may round to another BF16 */
	ok(to_plain < 1e-3, "%s: attention is that of the plain loops", k->isa);
	ok(to_full < 2e-2 && to_full > 1e-4, "%s: and that of f32 up to rounding", k->isa);
	printf("# %s: attention differs by %.2g and %.2g\n", k->isa, to_plain, to_full);
}

static void test_kernels(const struct bf16_kernels *k)
{
	cpu_bf16_force(k);
	test_attention(k);
	test_products(k->isa);
	test_promises(k->isa);
	test_values(k->isa);
}

int main(void)
{
	pool_init(2);
	test_kernels(&bf16_kernels_portable);
#ifdef __x86_64__
	if (!bf16_have_avx512()) {
		ok(1, "avx512-bf16 and AMX # SKIP this processor has no AVX512-BF16");
	} else {
		test_kernels(&bf16_kernels_avx512);
		test_equal(&bf16_kernels_avx512);
		if (!bf16_have_amx())
			emu_install();
		test_kernels(&bf16_kernels_amx);
		printf("# AMX: %ld instructions in software\n", emu_count);
		ok(bf16_have_amx() || emu_count > 0, "AMX ran");
	}
#endif
	pool_quit();
	return tap_done();
}
