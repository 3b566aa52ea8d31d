/*
 * cpu: the CPU backend: spreads the kernels of cpu_template.h over the pool. Tasks are cut by
 * problem size alone, so results do not depend on the number of threads.
 */
#include "backend/cpu/cpu.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/topk.h"
#include "backend/cpu/cpu_kernels.h"
#include "backend/quant.h"
#include "base/isa.h"
#include "base/pool.h"
#include "base/rng.h"

const struct cpu_kernels *cpu_kernels(void)
{
#if defined(__x86_64__) && !defined(CHR_DOUBLE)
	static const struct cpu_kernels *const kernels[] = { [ISA_PORTABLE] = &cpu_kernels_portable,
	    [ISA_AVX2] = &cpu_kernels_avx2, [ISA_AVX512] = &cpu_kernels_avx512 };

	return kernels[isa_now()];
#else
	return &cpu_kernels_portable;
#endif
}

static const char *describe(CPU)
{
	static char s[64];

	snprintf(s, sizeof(s), "cpu: %s, %d threads", cpu_kernels()->isa, pool_threads());
	return s;
}

/* ---- memory ---- */

#define HUGE_PAGE ((size_t)2 << 20)

struct bytes { char *to; const char *from; };

static void zero_range(void *ctx, int64_t i0, int64_t i1, int worker)
{
	(void)worker;
	memset(((struct bytes *)ctx)->to + i0, 0, (size_t)(i1 - i0));
}

static void zero(CPU, void *p, size_t n)
{
	pool_for((int64_t)n, 1 << 19, zero_range, &(struct bytes){ p, NULL });
}

static void copy_range(void *ctx, int64_t i0, int64_t i1, int worker)
{
	struct bytes *b = ctx;

	(void)worker;
	memcpy(b->to + i0, b->from + i0, (size_t)(i1 - i0));
}

static void copy(CPU, void *dst, const void *src, size_t n)
{
	pool_for((int64_t)n, 1 << 19, copy_range, &(struct bytes){ dst, src });
}

/* Matrices are read in strides of rows: with small pages, looking up where they are costs more
 * than reading them. */
static void *alloc(CPU, size_t n)
{
	bool large = n >= 2 * HUGE_PAGE;
	size_t align = large ? HUGE_PAGE : 64;
	void *p = aligned_alloc(align, (n + align - 1) & ~(align - 1));

	if (p && large)
		madvise(p, n & ~(HUGE_PAGE - 1), MADV_HUGEPAGE);
	if (p)
		zero(cpu, p, n);
	return p;
}

static void release(CPU, void *p) { free(p); }

static void put(CPU, void *dst, const void *src, size_t n) { memcpy(dst, src, n); }

/* Reads of files go straight to where the rows find them: there is nothing to copy or wait for. */
static void *alloc_pinned(CPU, size_t n, void **dev)
{
	size_t align = n >= HUGE_PAGE ? HUGE_PAGE : 4096, off;
	char *p = mmap(NULL, n + align, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return NULL;
	off = (align - (uintptr_t)p % align) % align;
	if (off > 0)
		munmap(p, off);
	if (off < align)
		munmap(p + off + n, align - off);
	if (align == HUGE_PAGE)
		madvise(p + off, n, MADV_HUGEPAGE);
	return *dev = p + off;
}

static void free_pinned(CPU, void *host, size_t n) { munmap(host, n); }

static void put_async(CPU, CPU_ANY(void *, dev), CPU_ANY(const void *, host), CPU_ANY(size_t, n))
{
}


static uint64_t event_record(CPU) { return 0; }
static void event_wait(CPU, CPU_ANY(uint64_t, event), CPU_ANY(bool, host)) { }

/* ---- matrices ---- */

#define GEMM_MB 96	/* rows (or twice that, of many) and columns of C in one task; multiples
			   of every register tile */
#define GEMM_NB 192
#define GEMM_NB1 64	/* columns in one task when A has few rows */
#define GEMM_KB 512	/* rows of A copied together for A^T B */
#define GEMM_CONV 16	/* rows of a BF16 or F16 B converted at a time */
#define GEMM_ALONE 4	/* rows of A at most that a B in panels is decoded for one by one */

struct gemm_ctx {
	enum gemm_kind kind;
	const struct gemm_job *jobs;
	int n;
	int64_t rows;		/* of a task at most */
	int64_t *first;		/* (n+1) number of the first task of each job */
};

static int64_t col_block(const struct gemm_job *j) { return j->m < 8 ? GEMM_NB1 : GEMM_NB; }

static int64_t blocks(int64_t n, int64_t size) { return (n + size - 1) / size; }

static pthread_key_t buffer_key;

static void buffer_key_make(void)
{
	if (pthread_key_create(&buffer_key, free) != 0)
		abort();	/* the first of 1024 */
}

void *cpu_thread_buffer(size_t bytes)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	static _Thread_local void *buf;
	static _Thread_local size_t cap;

	if (bytes > cap) {
		free(buf);
		cap = (bytes + 4095) & ~(size_t)4095;
		if ((buf = aligned_alloc(64, cap)) == NULL)
			abort();	/* a few hundred kilobytes */
		pthread_once(&once, buffer_key_make);
		pthread_setspecific(buffer_key, buf);
	}
	return buf;
}

#ifndef CHR_DOUBLE
static void widen_plain(real *dst, const void *src, enum dtype t, int64_t n)
{
	tensor_to_f32(dst, src, t, (size_t)n);
}

static const char *narrow_row(const struct gemm_job *j, int64_t r)
{
	return (const char *)j->b + (size_t)(r * j->ldb) * 2;
}
#endif

#ifndef CHR_DOUBLE
/* Columns c0.. of a B in panels, which c0 begins one of: one after the other. */
static void nt_panels(const struct gemm_job *j, int64_t i0, int64_t m, int64_t c0, int64_t n)
{
	size_t bytes = quant_panel_bytes(j->bt, (int)j->k);
	float *w = cpu_thread_buffer(QUANT_PANEL * (size_t)j->k * sizeof(float));

	for (int64_t c = c0; c < c0 + n; c += QUANT_PANEL) {
		const char *panel = (const char *)j->b + (size_t)(c / QUANT_PANEL) * bytes;
		int nc = c0 + n - c < QUANT_PANEL ? (int)(c0 + n - c) : QUANT_PANEL;
		real *out = j->c + i0 * j->ldc + c;

		if (m <= GEMM_ALONE && nc == QUANT_PANEL && cpu_kernels()->panel) {
			for (int64_t i = 0; i < m; i++)
				cpu_kernels()->panel((int)j->k, j->a + (i0 + i) * j->lda, panel,
				    j->bt, out + i * j->ldc, j->beta);
			continue;
		}
		if (cpu_kernels()->unfold)
			cpu_kernels()->unfold(w, panel, j->bt, (int)j->k);
		else
			for (int r = 0; r < nc; r++)
				quant_unpack_row(w + r * j->k, panel, j->bt, r, (int)j->k);
		cpu_kernels()->nt((int)m, nc, (int)j->k, j->a + i0 * j->lda, j->lda, w, j->k, out,
		    j->ldc, j->beta);
	}
}
#endif

static void nt_convert(const struct gemm_job *j, int64_t i0, int64_t m, int64_t c0, int64_t n)
{
#ifndef CHR_DOUBLE
	float *w;

	if (dtype_blocks(j->bt)) {
		nt_panels(j, i0, m, c0, n);
		return;
	}
	w = cpu_thread_buffer(GEMM_CONV * (size_t)j->k * sizeof(float));
	if (m == 1 && cpu_kernels()->narrow) {
		cpu_kernels()->narrow((int)(n / 8 * 8), (int)j->k, j->a + i0 * j->lda,
		    narrow_row(j, c0), j->ldb, j->bt,
		    j->c + i0 * j->ldc + c0, j->beta);
		c0 += n / 8 * 8;
		n %= 8;
	}
	for (int64_t c = c0; c < c0 + n; c += GEMM_CONV) {
		int64_t nc = c0 + n - c < GEMM_CONV ? c0 + n - c : GEMM_CONV;

		for (int64_t r = 0; r < nc; r++)
			(cpu_kernels()->widen ? cpu_kernels()->widen : widen_plain)(w + r * j->k,
			    narrow_row(j, c + r), j->bt, j->k);
		cpu_kernels()->nt((int)m, (int)nc, (int)j->k, j->a + i0 * j->lda, j->lda, w, j->k,
		    j->c + i0 * j->ldc + c,
		    j->ldc, j->beta);
	}
#else
	(void)j, (void)i0, (void)m, (void)c0, (void)n;
	abort();		/* double precision has no narrow weights */
#endif
}

/* Columns of A lie lda apart, which at powers of two is one set of the cache: a block of them is
 * copied together. */
static void tn_block(const struct gemm_job *j, int64_t i0, int64_t m, int64_t c0, int64_t n)
{
	real *a = cpu_thread_buffer((size_t)(GEMM_KB * m) * sizeof(real)), *c = j->c + i0 * j->ldc +
	    c0;

	for (int64_t p = 0; p < j->k || p == 0; p += GEMM_KB) {
		int64_t k = j->k - p < GEMM_KB ? j->k - p : GEMM_KB;

		for (int64_t q = 0; q < k; q++)
			memcpy(a + q * m, j->a + (p + q) * j->lda + i0, (size_t)m * sizeof(real));
		cpu_kernels()->nn((int)m, (int)n, (int)k, a, 1, m, (const real *)j->b + p * j->ldb +
		    c0, j->ldb, c, j->ldc,
		    p == 0 ? j->beta : 1);
	}
}

static void gemm_task(const struct gemm_ctx *x, const struct gemm_job *j, int64_t t)
{
	int64_t nb = col_block(j), cols = blocks(j->n, nb);
	int64_t i0 = t / cols * x->rows, c0 = t % cols * nb;
	int64_t m = j->m - i0 < x->rows ? j->m - i0 : x->rows, n = j->n - c0 < nb ? j->n - c0 : nb;
	real *c = j->c + i0 * j->ldc + c0;

	if (x->kind == GEMM_NT && j->bt != DT_REAL)
		nt_convert(j, i0, m, c0, n);
	else if (x->kind == GEMM_NT)
		cpu_kernels()->nt((int)m, (int)n, (int)j->k, j->a + i0 * j->lda, j->lda,
		    (const real *)j->b + c0 * j->ldb,
		    j->ldb, c, j->ldc, j->beta);
	else if (x->kind == GEMM_NN)
		cpu_kernels()->nn((int)m, (int)n, (int)j->k, j->a + i0 * j->lda, j->lda, 1,
		    (const real *)j->b + c0, j->ldb, c,
		    j->ldc, j->beta);
	else
		tn_block(j, i0, m, c0, n);
}

static void gemm_range(void *ctx, int64_t t0, int64_t t1, int worker)
{
	const struct gemm_ctx *x = ctx;
	int lo = 0, hi = x->n;

	(void)worker;
	while (hi - lo > 1) {
		int mid = (lo + hi) / 2;

		if (x->first[mid] <= t0)
			lo = mid;
		else
			hi = mid;
	}
	for (int64_t t = t0; t < t1; t++) {
		while (x->first[lo + 1] <= t)
			lo++;
		gemm_task(x, &x->jobs[lo], t - x->first[lo]);
	}
}

/* Where the tasks of each of n jobs begin: (n + 1), until the next call. */
int64_t *cpu_first_tasks(int n)
{
	static int64_t *first;		/* only the thread that owns the pool calls rows */
	static int cap;

	if (n + 1 > cap) {
		int64_t *more = realloc(first, (size_t)(n + 64) * sizeof(*first));

		if (more == NULL)
			abort();
		first = more;
		cap = n + 64;
	}
	first[0] = 0;
	return first;
}

/* Numbers the tasks of at most x->rows rows. Returns how many there are. */
static int64_t count_tasks(struct gemm_ctx *x)
{
	for (int i = 0; i < x->n; i++)
		x->first[i + 1] = x->first[i] + blocks(x->jobs[i].m, x->rows) * blocks(x->jobs[i].n,
		    col_block(&x->jobs[i]));
	return x->first[x->n];
}

static void gemm(CPU, enum gemm_kind kind, const struct gemm_job *jobs, int n)
{
	struct gemm_ctx x = { kind, jobs, n, 2 * GEMM_MB, cpu_first_tasks(n) };
	int64_t tasks = count_tasks(&x);

	cpu_kernels();
	if (tasks < 8 * pool_threads()) {	/* every thread should have a few; no result
						   depends on it */
		x.rows = GEMM_MB;
		tasks = count_tasks(&x);
	}
	pool_for(tasks, 1, gemm_range, &x);
}

/* ---- rows ---- */

struct rows_ctx {		/* arguments of row-wise operations */
	real *y, *y2;
	const real *x, *x2, *x3, *x4;
	int32_t *ids;
	const int32_t *in;
	int64_t ld, ld2, ld3;
	int w, k;
	double a;
	struct glu glu;
	bool flag;
	uint64_t key;
	const real *table;
};

/* Chunks of about 16k values. */
static int64_t grain(int w) { return w >= 16384 ? 1 : 16384 / (w > 0 ? w : 1); }

#define ROWS(name) static void name(void *ctx, int64_t i0, int64_t i1, int worker)
#define CTX const struct rows_ctx *c = ctx; (void)worker

ROWS(rmsnorm_rows)
{
	CTX;
	cpu_kernels()->rmsnorm(c->y + i0 * c->w, c->y2 ? c->y2 + i0 : NULL, c->x + i0 * c->w, c->x2,
	    i1 - i0, c->w, c->a);
}

static void rmsnorm(CPU, real *y, real *rstd, const real *x, const real *g, int64_t n, int w,
    double eps)
{
	struct rows_ctx c = { .y = y, .y2 = rstd, .x = x, .x2 = g, .w = w, .a = eps };

	cpu_kernels();
	pool_for(n, grain(w), rmsnorm_rows, &c);
}

ROWS(rmsnorm_dx_rows)
{
	CTX;
	cpu_kernels()->rmsnorm_dx(c->y + i0 * c->w, c->x + i0 * c->w, c->x2 + i0 * c->w, c->x3,
	    c->x4 + i0, i1 - i0, c->w, c->flag);
}

/* The gradient of the gain is a sum over rows: fixed slices, each into its own row of a small
 * table, added in order. */
#define DG_SLICES 16
ROWS(rmsnorm_dg_slice)
{
	CTX;
	for (int64_t s = i0; s < i1; s++) {
		int64_t r0 = c->ld * s / DG_SLICES, r1 = c->ld * (s + 1) / DG_SLICES;

		cpu_kernels()->rmsnorm_dg(c->y + s * c->w, c->x + r0 * c->w, c->x2 + r0 * c->w,
		    c->x4 + r0, r1 - r0, c->w);
	}
}

static void rmsnorm_back(CPU, real *dx, real *dg, const real *dy, const real *x, const real *g,
    const real *rstd, int64_t n,
    int w, bool add_dx)
{
	real *part = cpu_thread_buffer((size_t)DG_SLICES * (size_t)w * sizeof(real));
	struct rows_ctx c = { .y = part, .x = dy, .x2 = x, .x3 = g, .x4 = rstd, .w = w, .ld = n,
	    .flag = add_dx };

	cpu_kernels();
	memset(part, 0, (size_t)DG_SLICES * (size_t)w * sizeof(real));
	pool_for(DG_SLICES, 1, rmsnorm_dg_slice, &c);
	for (int s = 0; s < DG_SLICES; s++)
		for (int j = 0; j < w; j++)
			dg[j] += part[s * w + j];
	c.y = dx;
	pool_for(n, grain(w), rmsnorm_dx_rows, &c);
}

static void rope_head(real *x, const real *cs, int w, bool back)
{
	const real *co = cs, *si = cs + w;
	int lo = w / 2, hi = w - lo;	/* odd widths: the reference rotates by (-x[lo..],
					   x[..lo]) */

	if (lo == hi) {
		for (int j = 0; j < lo; j++) {
			real a = x[j], b = x[lo + j];

			if (back) {
				x[j] = a * co[j] + b * si[lo + j];
				x[lo + j] = b * co[lo + j] - a * si[j];
			} else {
				x[j] = a * co[j] - b * si[j];
				x[lo + j] = b * co[lo + j] + a * si[lo + j];
			}
		}
		return;
	}
	real t[512];

	memcpy(t, x, (size_t)w * sizeof(real));
	for (int j = 0; j < w; j++) {
		if (!back)
			x[j] = t[j] * co[j] + (j < hi ? -t[lo + j] : t[j - hi]) * si[j];
		else
			x[j] = t[j] * co[j] + (j < lo ? t[hi + j] * si[hi + j]
			    : -t[j - lo] * si[j - lo]);
	}
}

ROWS(rope_rows)
{
	CTX;
	for (int64_t i = i0; i < i1; i++)
		for (int h = 0; h < c->k; h++)
			rope_head(c->y + i * c->ld + h * c->ld2, c->table + (int64_t)c->in[i] * 2 *
			    c->w, c->w, c->flag);
}

static void rope(CPU, real *x, int64_t ld, int64_t hs, int64_t n, int heads, int w,
    const real *table,
    const int32_t *pos,
    bool back)
{
	struct rows_ctx c = { .y = x, .ld = ld, .ld2 = hs, .k = heads, .w = w, .table = table,
	    .in = pos, .flag = back };

	pool_for(n, grain(w * heads), rope_rows, &c);
}

ROWS(rope_pairs_rows)
{
	CTX;
	for (int64_t i = i0; i < i1; i++) {
		const real *co = c->table + (int64_t)c->in[i] * 2 * c->w, *si = co + c->w;

		for (int h = 0; h < c->k; h++) {
			real *x = c->y + i * c->ld + h * c->ld2;

			for (int j = 0; j < c->w / 2; j++) {
				real a = x[2 * j], b = x[2 * j + 1], s = c->flag ? -si[j] : si[j];

				x[2 * j] = a * co[j] - b * s;
				x[2 * j + 1] = b * co[j] + a * s;
			}
		}
	}
}

static void rope_pairs(CPU, real *x, int64_t ld, int64_t hs, int64_t n, int heads, int w,
    const real *table, const int32_t *pos, bool back)
{
	struct rows_ctx c = { .y = x, .ld = ld, .ld2 = hs, .k = heads, .w = w, .table = table,
	    .in = pos, .flag = back };

	pool_for(n, grain(w * heads), rope_pairs_rows, &c);
}

ROWS(copy2d_rows)
{
	CTX;
	for (int64_t i = i0; i < i1; i++)
		memcpy(c->y + i * c->ld, c->x + i * c->ld2, (size_t)c->w * sizeof(real));
}

static void copy2d(CPU, real *dst, int64_t ldd, const real *src, int64_t lds, int64_t n, int w)
{
	struct rows_ctx c = { .y = dst, .ld = ldd, .x = src, .ld2 = lds, .w = w };

	pool_for(n, grain(w), copy2d_rows, &c);
}

ROWS(swiglu_rows)
{
	CTX;
	cpu_kernels()->swiglu(c->y + i0, c->x + i0, c->x2 + i0, i1 - i0, c->glu);
}

static void swiglu(CPU, real *y, const real *g, const real *u, int64_t n, struct glu glu)
{
	struct rows_ctx c = { .y = y, .x = g, .x2 = u, .glu = glu };

	cpu_kernels();
	pool_for(n, 16384, swiglu_rows, &c);
}

ROWS(swiglu_back_rows)
{
	CTX;
	cpu_kernels()->swiglu_back(c->y + i0, c->y2 + i0, c->x + i0, c->x2 + i0, c->x3 + i0,
	    i1 - i0, c->glu);
}

static void swiglu_back(CPU, real *dg, real *du, const real *dy, const real *g, const real *u,
    int64_t n, struct glu glu)
{
	struct rows_ctx c = { .y = dg, .y2 = du, .x = dy, .x2 = g, .x3 = u, .glu = glu };

	cpu_kernels();
	pool_for(n, 16384, swiglu_back_rows, &c);
}

ROWS(clip_rows)
{
	CTX;
	real limit = (real)c->a;

	for (int64_t i = i0; i < i1; i++)
		c->y[i] = c->y[i] > limit ? limit : c->y[i] < -limit ? -limit : c->y[i];
}

static void clip(CPU, real *x, double limit, int64_t n)
{
	struct rows_ctx c = { .y = x, .a = limit };

	pool_for(n, 65536, clip_rows, &c);
}

ROWS(clip_back_rows)
{
	CTX;
	real limit = (real)c->a;

	for (int64_t i = i0; i < i1; i++)
		c->y[i] = c->x[i] > -limit && c->x[i] < limit ? c->y[i] : 0;
}

static void clip_back(CPU, real *dx, const real *x, double limit, int64_t n)
{
	struct rows_ctx c = { .y = dx, .x = x, .a = limit };

	pool_for(n, 65536, clip_back_rows, &c);
}

ROWS(gather_rows)
{
	CTX;
	for (int64_t i = i0; i < i1; i++)
		memcpy(c->y + i * c->w, c->x + (int64_t)c->in[i] * c->w,
		    (size_t)c->w * sizeof(real));
}

static void gather(CPU, real *dst, const real *src, const int32_t *rows, int64_t n, int w)
{
	struct rows_ctx c = { .y = dst, .x = src, .in = rows, .w = w };

	pool_for(n, grain(w), gather_rows, &c);
}

ROWS(combine_rows)
{
	CTX;
	for (int64_t i = i0; i < i1; i++)
		for (int j = 0; j < c->k; j++) {
			int32_t s = c->in[i * c->k + j];

			if (s >= 0)
				cpu_kernels()->axpy(c->y + i * c->w, c->x + (int64_t)s * c->w, c->x2
				    ? c->x2[i * c->k + j] : 1, c->w);
		}
}

static void combine(CPU, real *dst, const real *src, const int32_t *slot, const real *coef,
    int64_t n,
    int k, int w)
{
	struct rows_ctx c = { .y = dst, .x = src, .in = slot, .x2 = coef, .k = k, .w = w };

	cpu_kernels();
	pool_for(n, grain(w * k), combine_rows, &c);
}

ROWS(dot_rows_rows)
{
	CTX;
	for (int64_t i = i0; i < i1; i++)
		c->y[i] = cpu_kernels()->dot(c->x + (int64_t)c->in[i] * c->w,
		    c->x2 + (int64_t)c->ids[i] * c->w, c->w);
}

static void dot_rows(CPU, real *out, const real *a, const int32_t *arow, const real *b,
    const int32_t *brow, int64_t n, int w)
{
	struct rows_ctx c = { .y = out, .x = a, .in = arow, .x2 = b,
	    .ids = (int32_t *)(uintptr_t)brow, .w = w };

	cpu_kernels();
	pool_for(n, grain(w), dot_rows_rows, &c);
}

/* One thread owns each stripe of columns, so rows are added in order. */
struct scatter_ctx { real *table; const real *src; const int32_t *ids; int64_t n; int w; };

static void scatter_cols(void *ctx, int64_t c0, int64_t c1, int worker)
{
	struct scatter_ctx *c = ctx;

	(void)worker;
	for (int64_t i = 0; i < c->n; i++)
		cpu_kernels()->axpy(c->table + (int64_t)c->ids[i] * c->w + c0,
		    c->src + i * c->w + c0, 1, c1 - c0);
}

static void scatter_add(CPU, real *table, const real *src, const int32_t *ids, int64_t n, int w)
{
	struct scatter_ctx c = { table, src, ids, n, w };

	cpu_kernels();
	pool_for(w, 64, scatter_cols, &c);
}

ROWS(axpy_rows) { CTX; cpu_kernels()->axpy(c->y + i0, c->x + i0, (real)c->a, i1 - i0); }

static void axpy(CPU, real *y, const real *x, double a, int64_t n)
{
	struct rows_ctx c = { .y = y, .x = x, .a = a };

	cpu_kernels();
	pool_for(n, 16384, axpy_rows, &c);
}

ROWS(scale_range)
{
	CTX;
	for (int64_t i = i0; i < i1; i++)
		c->y[i] *= (real)c->a;
}

static void scale(CPU, real *x, double a, int64_t n)
{
	struct rows_ctx c = { .y = x, .a = a };

	pool_for(n, 16384, scale_range, &c);
}

ROWS(scale_rows_rows)
{
	CTX;
	for (int64_t i = i0; i < i1; i++)
		for (int j = 0; j < c->w; j++)
			c->y[i * c->w + j] *= c->x[i];
}

static void scale_rows(CPU, real *x, const real *s, int64_t n, int w)
{
	struct rows_ctx c = { .y = x, .x = s, .w = w };

	pool_for(n, grain(w), scale_rows_rows, &c);
}

ROWS(mul_rows)
{
	CTX;
	for (int64_t i = i0; i < i1; i++) {
		const real *a = c->x + i * c->ld2, *b = c->x2 + i * c->ld3;

		for (int j = 0; j < c->w; j++)
			c->y[i * c->ld + j] = a[j] * b[j];
	}
}

static void mul(CPU, real *y, int64_t ldy, const real *a, int64_t lda, const real *b, int64_t ldb,
    int64_t n, int w)
{
	struct rows_ctx c = { .y = y, .ld = ldy, .x = a, .ld2 = lda, .x2 = b, .ld3 = ldb, .w = w };

	pool_for(n, grain(w), mul_rows, &c);
}

static real logistic(real x) { return (real)(1 / (1 + exp(-(double)x))); }

ROWS(sigmoid_range)
{
	CTX;
	for (int64_t i = i0; i < i1; i++)
		c->y[i] = logistic(c->x[i]);
}

static void sigmoid(CPU, real *y, const real *x, int64_t n)
{
	struct rows_ctx c = { .y = y, .x = x };

	pool_for(n, 4096, sigmoid_range, &c);
}

ROWS(sigmoid_back_range)
{
	CTX;
	for (int64_t i = i0; i < i1; i++)
		c->y[i] = c->x[i] * c->x2[i] * (1 - c->x2[i]);
}

static void sigmoid_back(CPU, real *dx, const real *dy, const real *y, int64_t n)
{
	struct rows_ctx c = { .y = dx, .x = dy, .x2 = y };

	pool_for(n, 4096, sigmoid_back_range, &c);
}

ROWS(silu_range)
{
	CTX;
	for (int64_t i = i0; i < i1; i++)
		c->y[i] = c->x[i] * logistic(c->x[i]);
}

static void silu(CPU, real *y, const real *x, int64_t n)
{
	struct rows_ctx c = { .y = y, .x = x };

	pool_for(n, 4096, silu_range, &c);
}

ROWS(silu_back_range)
{
	CTX;
	for (int64_t i = i0; i < i1; i++) {
		real s = logistic(c->x2[i]);

		c->y[i] = c->x[i] * (s + c->x2[i] * s * (1 - s));
	}
}

static void silu_back(CPU, real *dx, const real *dy, const real *x, int64_t n)
{
	struct rows_ctx c = { .y = dx, .x = dy, .x2 = x };

	pool_for(n, 4096, silu_back_range, &c);
}

ROWS(softmax_rows) { CTX; cpu_kernels()->softmax(c->y + i0 * c->w, i1 - i0, c->w); }

static void softmax(CPU, real *x, int64_t n, int w)
{
	struct rows_ctx c = { .y = x, .w = w };

	cpu_kernels();
	pool_for(n, grain(w), softmax_rows, &c);
}

ROWS(dropout_range)
{
	CTX;
	uint32_t drop = (uint32_t)(c->a * 4294967296.0);
	real keep = (real)(1 / (1 - c->a));

	for (int64_t i = i0; i < i1; i++)
		c->y[i] = rng_hash(c->key, (uint64_t)i) < drop ? 0 : c->y[i] * keep;
}

static void dropout(CPU, real *x, int64_t n, double p, uint64_t key)
{
	struct rows_ctx c = { .y = x, .a = p, .key = key };

	pool_for(n, 16384, dropout_range, &c);
}

ROWS(noise_rows)
{
	CTX;

	for (int64_t i = i0 * c->w; i < i1 * c->w; i++)
		c->y[i] += c->x[i / c->w] * (real)((rng_hash(c->key, (uint64_t)i) + 0.5) * 0x1p-31 -
		    1);
}

static void noise(CPU, real *x, const real *s, int64_t n, int w, uint64_t key)
{
	struct rows_ctx c = { .y = x, .x = s, .w = w, .key = key };

	pool_for(n, grain(w), noise_rows, &c);
}

ROWS(logprob_rows)
{
	CTX;
	int V = c->w;

	for (int64_t i = i0; i < i1; i++) {
		real *x = c->y + i * V;
		int32_t t = c->in[i];
		real coef = c->x ? c->x[i] : 0, max, sum, lp;

		c->y2[i] = 0;
		if (t < 0) {
			if (c->x)
				memset(x, 0, (size_t)V * sizeof(real));
			continue;
		}
		max = cpu_kernels()->max(x, V);
		lp = x[t] - max;
		sum = cpu_kernels()->exp_sum(x, V, max);
		c->y2[i] = lp - (real)log((double)sum);
		if (!c->x)
			continue;
		real s = -coef / sum;

		for (int j = 0; j < V; j++)
			x[j] *= s;
		x[t] += coef;
	}
}

static void logprob(CPU, real *logits, real *logp, const int32_t *target, const real *coef,
    int64_t n,
    int V)
{
	struct rows_ctx c = { .y = logits, .y2 = logp, .in = target, .x = coef, .w = V };

	cpu_kernels();
	pool_for(n, grain(V), logprob_rows, &c);
}

/* ---- optimiser ---- */

#define SUMSQ_BLOCK 65536
struct sumsq_ctx { const real *x; int64_t n; double *part; };

static void sumsq_blocks(void *ctx, int64_t b0, int64_t b1, int worker)
{
	struct sumsq_ctx *c = ctx;

	(void)worker;
	for (int64_t b = b0; b < b1; b++) {
		int64_t i = b * SUMSQ_BLOCK, n = c->n - i < SUMSQ_BLOCK ? c->n - i : SUMSQ_BLOCK;

		c->part[b] = cpu_kernels()->sumsq(c->x + i, n);
	}
}

static double sumsq(CPU, const real *x, int64_t n)
{
	int64_t nb = blocks(n, SUMSQ_BLOCK);
	struct sumsq_ctx c = { x, n, cpu_thread_buffer((size_t)nb * sizeof(double)) };
	double s = 0;

	cpu_kernels();
	pool_for(nb, 1, sumsq_blocks, &c);
	for (int64_t b = 0; b < nb; b++)
		s += c.part[b];
	return s;
}

struct adamw_ctx { const struct adamw_args *a; real c[8]; };

static void adamw_range(void *ctx, int64_t i0, int64_t i1, int worker)
{
	struct adamw_ctx *c = ctx;

	(void)worker;
	cpu_kernels()->adamw(c->a->w + i0, c->a->m + i0, c->a->v + i0, c->a->g + i0, i1 - i0, c->c);
}

static void adamw(CPU, const struct adamw_args *a)
{
	double t = (double)a->step;
	struct adamw_ctx c = { a, { (real)(a->lr / (1 - pow(a->beta1, t))), (real)a->beta1,
	    (real)a->beta2,
	    (real)(1 / (1 - pow(a->beta2, t))), (real)a->eps, (real)(a->lr * a->weight_decay),
	    (real)a->grad_scale, 0 } };

	cpu_kernels();
	pool_for(a->n, 65536, adamw_range, &c);
}

const struct backend backend_cpu = {
	.name = "cpu", .size = sizeof(struct backend), .host_reads = true,
	.describe = describe,
	.alloc = alloc, .free = release, .put = put, .get = put, .copy = copy, .zero = zero,
	.alloc_pinned = alloc_pinned, .free_pinned = free_pinned, .put_async = put_async,
	.event_record = event_record, .event_wait = event_wait,
	.gemm = gemm, .gemm_train = gemm, .gemm_bf16 = cpu_gemm_bf16, .quantize = cpu_quantize,
	.qgemm = cpu_qgemm, .qffn = cpu_qffn, .rmsnorm = rmsnorm, .rmsnorm_back = rmsnorm_back,
	.rope = rope, .rope_pairs = rope_pairs,
	.copy2d = copy2d, .attn = cpu_attn, .attn_back = cpu_attn_back, .kv_put = cpu_kv_put,
	.attn_cached = cpu_attn_cached, .conv = cpu_conv, .delta = cpu_delta, .mul = mul,
	.swiglu = swiglu, .swiglu_back = swiglu_back,
	.clip = clip, .clip_back = clip_back,
	.route = cpu_route, .route_weights = cpu_route_weights, .route_back = cpu_route_back,
	.gather = gather, .gather_blocks = cpu_gather_blocks, .combine = combine,
	.dot_rows = dot_rows, .scatter_add = scatter_add, .axpy = axpy, .scale = scale,
	.scale_rows = scale_rows, .silu = silu, .sigmoid = sigmoid, .sigmoid_back = sigmoid_back,
	.silu_back = silu_back, .softmax = softmax,
	.dropout = dropout, .noise = noise, .logprob = logprob, .diverge = cpu_diverge,
	.sumsq = sumsq, .adamw = adamw,
};
