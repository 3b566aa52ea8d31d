#include "backend/blas/blas.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/pool.h"
#include "base/progress.h"

#define BLOCK_M 512		/* rows and columns of a task: each is one call, by one thread */
#define BLOCK_N 512
#define LEAST 65536.0		/* multiplications below which a call costs more than it saves */

enum { ROW_MAJOR = 101, NO_TRANS = 111, TRANS = 112 };	/* of cblas.h */

#ifndef CHR_DOUBLE
static struct {
	void (*sgemm)(int order, int trans_a, int trans_b, int m, int n, int k, float alpha,
	    const float *a, int lda,
	    const float *b, int ldb, float beta, float *c, int ldc);
	const char *(*core)(void);	/* OpenBLAS: which kernels it chose; or NULL */
} blas;

static void *symbol(void *library, const char *name, void *to)
{
	void *p = dlsym(library, name);

	memcpy(to, &p, sizeof p);
	return p;
}

/* Threads are the pool's: each call is one thread's. */
static void one_thread(void *library)
{
	static const char *const by_value[] = { "openblas_set_num_threads", "MKL_Set_Num_Threads",
	    "bli_thread_set_num_threads" };
	void (*set)(int);

	for (size_t i = 0; i < sizeof by_value / sizeof *by_value; i++)
		if (symbol(library, by_value[i], &set) != NULL)
			set(1);
}

static int load(struct err *e)
{
	const char *name = getenv("CHR_BLAS");
	void *library;

	if (blas.sgemm != NULL)
		return 0;
	name = name != NULL ? name : CHR_BLAS;
	if ((library = dlopen(name, RTLD_NOW | RTLD_LOCAL)) == NULL)
		return err_set(e, EX_UNAVAILABLE, "backend blas: %s: not found (Debian: "
		    "libopenblas0; CHR_BLAS names another "
		    "library)", name);
	if (symbol(library, "cblas_sgemm", &blas.sgemm) == NULL)
		return err_set(e, EX_UNAVAILABLE, "backend blas: %s has no cblas_sgemm", name);
	symbol(library, "openblas_get_corename", &blas.core);
	one_thread(library);
	return 0;
}

struct products {
	enum gemm_kind kind;
	const struct gemm_job *job;
	int n;
	int64_t *first;			/* (n+1) number of the first task of each */
};

static int64_t tasks_of(const struct gemm_job *j)
{
	return (j->m + BLOCK_M - 1) / BLOCK_M * ((j->n + BLOCK_N - 1) / BLOCK_N);
}

static void multiply(enum gemm_kind kind, const struct gemm_job *j, int64_t task)
{
	int64_t across = (j->n + BLOCK_N - 1) / BLOCK_N, i = task / across * BLOCK_M,
	    c = task % across * BLOCK_N;
	int64_t m = j->m - i < BLOCK_M ? j->m - i : BLOCK_M, n = j->n - c < BLOCK_N ? j->n - c
	    : BLOCK_N;
	const float *a = j->a + (kind == GEMM_TN ? i : i * j->lda);
	const float *b = (const float *)j->b + (kind == GEMM_NT ? c * j->ldb : c);

	blas.sgemm(ROW_MAJOR, kind == GEMM_TN ? TRANS : NO_TRANS, kind == GEMM_NT ? TRANS
	    : NO_TRANS, (int)m, (int)n,
	    (int)j->k, 1, a, (int)j->lda, b, (int)j->ldb, j->beta, j->c + i * j->ldc + c,
	    (int)j->ldc);
}

static void range(void *ctx, int64_t t0, int64_t t1, int worker)
{
	const struct products *x = ctx;
	int at = 0;

	(void)worker;
	for (int64_t t = t0; t < t1; t++) {
		while (x->first[at + 1] <= t)
			at++;
		multiply(x->kind, &x->job[at], t - x->first[at]);
	}
}

/* Tasks are cut by the sizes alone, so results do not depend on the number of threads. */
static void gemm_train(const struct backend *be, enum gemm_kind kind, const struct gemm_job *jobs,
    int n)
{
	struct products x = { kind, jobs, n, NULL };
	double work = 0;

	for (int i = 0; i < n; i++)
		work += (double)jobs[i].m * (double)jobs[i].n * (double)jobs[i].k;
	if (work < LEAST * n || (x.first = malloc((size_t)(n + 1) * sizeof *x.first)) == NULL) {
		be->gemm(be, kind, jobs, n);
		return;
	}
	x.first[0] = 0;
	for (int i = 0; i < n; i++)
		x.first[i + 1] = x.first[i] + (jobs[i].k > 0 ? tasks_of(&jobs[i]) : 0);
	pool_for(x.first[n], 1, range, &x);
	free(x.first);
}

static const char *describe(const struct backend *be)
{
	static char s[160];

	(void)be;
	snprintf(s, sizeof s, "blas: %s %s for products of training, else %s", CHR_BLAS, blas.core
	    ? blas.core() : "",
	    backend_cpu.describe(&backend_cpu));
	return s;
}
#endif

const struct backend *blas_open(struct err *e)
{
#ifndef CHR_DOUBLE
	static struct backend be;

	if (load(e) < 0)
		return NULL;
	be = backend_cpu;
	be.name = "blas";
	be.describe = describe;
	be.gemm_train = gemm_train;
	return &be;
#else
	err_set(e, EX_UNAVAILABLE, "backend blas has no double precision");
	return NULL;
#endif
}

double blas_rate(const struct backend *be, int n)
{
	size_t bytes = (size_t)n * (size_t)n * sizeof(real);
	real *a = be->alloc(be, bytes), *b = be->alloc(be, bytes), *c = be->alloc(be, bytes);
	struct gemm_job j = { c, n, a, n, b, n, DT_REAL, n, n, n, 0 };
	double best = 0;

	for (int i = 0; a && b && c && i < 4; i++) {		/* the first is for the caches */
		double t = progress_clock(), rate;

		be->gemm_train(be, GEMM_NT, &j, 1);
		rate = 2.0 * n * n * n / (progress_clock() - t);
		best = i > 0 && rate > best ? rate : best;
	}
	be->free(be, a);
	be->free(be, b);
	be->free(be, c);
	return best;
}
