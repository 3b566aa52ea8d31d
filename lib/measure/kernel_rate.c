#include "measure/kernel_rate.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "base/pool.h"
#include "base/progress.h"
#include "backend/quant.h"
#include "base/rng.h"

#define HUGE ((size_t)2 << 20)
#define AT_ONCE 8		/* experts in one call of a backend row */
#define WORK 4e8		/* FLOP of a sample of gemm, at least */

static void fill(void *ctx, int64_t i0, int64_t i1, int worker)
{
	uint32_t *w = ctx;

	(void)worker;
	for (int64_t i = i0; i < i1; i++)
		w[i] = rng_hash(7, (uint64_t)i) & 0x3f3f3f3f;
}

void *kernel_rate_weights(size_t bytes)
{
	size_t size = (bytes + HUGE - 1) & ~(HUGE - 1);
	void *w = aligned_alloc(HUGE, size);

	if (w == NULL)
		return NULL;
	madvise(w, size, MADV_HUGEPAGE);
	pool_for((int64_t)(size / 4), 1 << 16, fill, w);
	return w;
}

/* ---- memory ---- */

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

double kernel_rate_read_rate(const void *p, size_t bytes)
{
	double t = progress_clock();

	pool_for((int64_t)(bytes / 64) * 8, 32768, sum_range, (void *)p);
	return (double)bytes / (progress_clock() - t);
}

/* ---- registers ---- */

#ifdef __x86_64__
#define ROUNDS 500000

/* 20 independent chains of 16-lane multiply-adds. */
__attribute__((target("avx512f"))) static void fma_chunk(void *ctx, int64_t i0, int64_t i1,
    int worker)
{
	__m512 a[20], x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(0.001f);
	float s = 0;

	(void)i0, (void)i1;
	for (int i = 0; i < 20; i++)
		a[i] = _mm512_set1_ps((float)i);
	for (int r = 0; r < ROUNDS; r++) {
#pragma GCC unroll 20
		for (int i = 0; i < 20; i++)
			a[i] = _mm512_fmadd_ps(a[i], x, y);
	}
	for (int i = 0; i < 20; i++)
		s += _mm512_reduce_add_ps(a[i]);
	((volatile float *)ctx)[worker * 16] = s;
}

double kernel_rate_fma_rate(void)
{
	float out[16 * POOL_MAX];
	double t;

	if (!__builtin_cpu_supports("avx512f"))
		return 0;
	t = progress_clock();
	pool_for(pool_threads(), 1, fma_chunk, out);
	return (double)ROUNDS * 20 * 32 * pool_threads() / (progress_clock() - t);
}
#else
double kernel_rate_fma_rate(void) { return 0; }
#endif

/* ---- floats ---- */

static double flop(const struct gemm_job *j)
{
	return 2.0 * (double)j->m * (double)j->n * (double)j->k;
}

static dev_real *numbers(int64_t n, int period)
{
	dev_real *p = backend_cpu.alloc(&backend_cpu, (size_t)n * sizeof *p);
	real *host = malloc((size_t)n * sizeof *host);

	for (int64_t i = 0; host && i < n; i++)
		host[i] = (real)(i % period) * (real)0.1;
	if (p && host)
		backend_cpu.put(&backend_cpu, p, host, (size_t)n * sizeof *host);
	free(host);
	return p;
}

int kernel_rate_gemm_open(struct kernel_rate_gemm *g, enum gemm_kind kind, int m, int n, int k,
    struct err *e)
{
	dev_real *a = numbers((int64_t)m * k, 13), *b = numbers((int64_t)n * k, 11),
	    *c = numbers((int64_t)m * n, 1);

	*g = (struct kernel_rate_gemm){ .kind = kind, .job = { c, n, a, kind == GEMM_TN ? m : k, b,
	    kind == GEMM_NT ? k : n,
	    DT_REAL, m, n, k, 0 } };
	g->calls = 1 + (int)(WORK / flop(&g->job));
	if (a && b && c)
		return 0;
	kernel_rate_gemm_close(g);
	return err_set(e, EX_OSERR, "out of memory for a product of matrices");
}

double kernel_rate_gemm_rate(const struct kernel_rate_gemm *g, const struct backend *be, bool bf16)
{
	double t = progress_clock();

	for (int i = 0; i < g->calls; i++)
		(bf16 ? be->gemm_bf16 : be->gemm_train)(be, g->kind, &g->job, 1);
	return flop(&g->job) * g->calls / (progress_clock() - t);
}

void kernel_rate_gemm_close(struct kernel_rate_gemm *g)
{
	backend_cpu.free(&backend_cpu, (void *)g->job.a);
	backend_cpu.free(&backend_cpu, (void *)g->job.b);
	backend_cpu.free(&backend_cpu, g->job.c);
}

/* ---- blocks ---- */

size_t kernel_rate_expert_bytes(enum dtype t, int D, int F)
{
	return 2 * mat_bytes(t, F, D) + mat_bytes(t, D, F);
}

static void *take(size_t bytes) { return backend_cpu.alloc(&backend_cpu, bytes); }

int kernel_rate_ffn_open(struct kernel_rate_ffn *f, enum dtype t, int D, int F, int rows,
    int experts, const void *w, struct err *e)
{
	size_t n = (size_t)rows;
	real *x = malloc(n * (size_t)D * sizeof *x);

	*f = (struct kernel_rate_ffn){ .t = t, .D = D, .F = F, .rows = rows, .experts = experts,
	    .w = w, .one = mat_bytes(t, F, D),
	    .all = kernel_rate_expert_bytes(t, D, F),
	    .x = take(n * (size_t)D * sizeof *f->x),
	    .y = take(n * (size_t)D * AT_ONCE * sizeof *f->y),
	    .a = take(quant_row_bytes(D) * n),
	    .h = take(quant_row_bytes(F) * n * AT_ONCE),
	    .gate = take(n * (size_t)F * AT_ONCE * sizeof *f->gate),
	    .up = take(n * (size_t)F * AT_ONCE * sizeof *f->up) };
	if (!x || !f->x || !f->y || !f->a || !f->h || !f->gate || !f->up) {
		free(x);
		kernel_rate_ffn_close(f);
		return err_set(e, EX_OSERR, "out of memory for rows of activations");
	}
	for (int i = 0; i < rows * D; i++)
		x[i] = (real)rng_normal(1, 2, (uint64_t)i);
	backend_cpu.put(&backend_cpu, f->x, x, n * (size_t)D * sizeof *x);
	free(x);
	return 0;
}

static struct gemm_job product(const struct kernel_rate_ffn *f, dev_real *y, const dev_real *x,
    const char *w, int out, int in)
{
	return (struct gemm_job){ .c = y, .ldc = out, .a = x, .lda = in, .b = w, .ldb = in,
	    .bt = f->t, .m = f->rows, .n = out, .k = in };
}

/* n experts of floats from w on. */
static void floats(const struct kernel_rate_ffn *f, const char *w, int n)
{
	struct gemm_job job[2 * AT_ONCE];
	int64_t hidden = (int64_t)f->rows * f->F;

	for (int i = 0; i < n; i++) {
		job[2 * i] = product(f, f->gate + hidden * i, f->x, w + i * f->all, f->F, f->D);
		job[2 * i + 1] = product(f, f->up + hidden * i, f->x, w + i * f->all + f->one, f->F,
		    f->D);
	}
	backend_cpu.gemm(&backend_cpu, GEMM_NT, job, 2 * n);
	backend_cpu.swiglu(&backend_cpu, f->gate, f->gate, f->up, hidden * n,
	    (struct glu){ 0 });
	for (int i = 0; i < n; i++)
		job[i] = product(f, f->y + (int64_t)f->rows * f->D * i, f->gate + hidden * i,
		    w + i * f->all + 2 * f->one, f->D, f->F);
	backend_cpu.gemm(&backend_cpu, GEMM_NT, job, n);
}

double kernel_rate_ffn_seconds(const struct kernel_rate_ffn *f)
{
	size_t h = quant_row_bytes(f->F) * (size_t)f->rows;
	struct qffn_job up[AT_ONCE];
	struct qgemm_job down[AT_ONCE];
	double t = progress_clock();

	for (int x = 0; x < f->experts; x += AT_ONCE) {
		int n = f->experts - x < AT_ONCE ? f->experts - x : AT_ONCE;

		if (!dtype_rounded(f->t)) {
			floats(f, f->w + (size_t)x * f->all, n);
			continue;
		}
		backend_cpu.quantize(&backend_cpu, f->a, f->x, f->rows, f->D);
		for (int i = 0; i < n; i++) {
			const char *p = f->w + (size_t)(x + i) * f->all;

			up[i] = (struct qffn_job){ .a = f->a, .h = f->h + h * (size_t)i,
			    .gate = { p, f->t, f->F, f->D },
			    .up = { p + f->one, f->t, f->F, f->D }, .m = f->rows };
			down[i] = (struct qgemm_job){ f->y + (int64_t)f->rows * f->D * i, f->D,
			    up[i].h,
			    { p + 2 * f->one, f->t, f->D, f->F }, f->rows, 0 };
		}
		backend_cpu.qffn(&backend_cpu, up, n);
		backend_cpu.qgemm(&backend_cpu, down, n);
	}
	return progress_clock() - t;
}

double kernel_rate_ffn_ops(const struct kernel_rate_ffn *f)
{
	return 6.0 * f->experts * f->rows * f->D * f->F;
}
double kernel_rate_ffn_bytes(const struct kernel_rate_ffn *f)
{
	return (double)f->all * f->experts;
}

void kernel_rate_ffn_close(struct kernel_rate_ffn *f)
{
	backend_cpu.free(&backend_cpu, f->x);
	backend_cpu.free(&backend_cpu, f->y);
	backend_cpu.free(&backend_cpu, f->a);
	backend_cpu.free(&backend_cpu, f->h);
	backend_cpu.free(&backend_cpu, f->gate);
	backend_cpu.free(&backend_cpu, f->up);
}
