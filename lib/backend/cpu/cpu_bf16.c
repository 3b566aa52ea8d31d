#include "backend/cpu/cpu_bf16.h"

#include <stdlib.h>
#include <string.h>

#include "backend/cpu/cpu.h"
#include "backend/cpu/cpu_kernels.h"
#include "base/pool.h"

/* ---- plain C: the specification ---- */

static uint32_t round_bf16(real x)
{
	union { float f; uint32_t u; } v = { (float)x };

	if ((v.u & 0x7fffffff) > 0x7f800000)
		return v.u >> 16 | 0x40;	/* a NaN stays one */
	return (v.u + 0x7fff + (v.u >> 16 & 1)) >> 16;
}

static void pack_portable(uint32_t *tile, const real *x, int64_t ld, int rows, int k, bool k_major,
    bool pair_major)
{
	int64_t rs = k_major ? 1 : ld, ks = k_major ? ld : 1;

	for (int p0 = 0; p0 < k; p0 += BF16_TILE_K, tile += BF16_TILE_WORDS)
		for (int r = 0; r < BF16_TILE; r++)
			for (int q = 0; q < BF16_TILE; q++) {
				int p = p0 + 2 * q;
				uint32_t lo = r < rows && p < k ? round_bf16(x[r * rs + p * ks])
				    : 0;
				uint32_t hi = r < rows && p + 1 < k
				    ? round_bf16(x[r * rs + (p + 1) * ks]) : 0;

				tile[pair_major ? q * BF16_TILE + r : r * BF16_TILE + q] =
				    hi << 16 | lo;
			}
}

static real half(uint32_t bits)
{
	union { uint32_t u; float f; } v = { bits };

	return v.f;
}

/* The product of two BF16 values is exact in FP32, so whether multiply and add are fused makes
 * no difference. The odd k comes first, as in vdpbf16ps. */
static void mul_row(real *c, int n, int tiles, const uint32_t *a, const uint32_t *b)
{
	for (int t = 0; t < tiles; t++, a += BF16_TILE_WORDS)
		for (int q = 0; q < BF16_TILE; q++)
			for (int j0 = 0; j0 < n; j0 += BF16_TILE) {
				const uint32_t *bq = b + ((int64_t)(j0 / BF16_TILE) * tiles + t) *
				    BF16_TILE_WORDS + q * BF16_TILE;
				real lo = half(a[q] << 16), hi = half(a[q] & 0xffff0000);

				for (int j = 0; j < BF16_TILE; j++)
					c[j0 + j] += hi * half(bq[j] & 0xffff0000);
				for (int j = 0; j < BF16_TILE; j++)
					c[j0 + j] += lo * half(bq[j] << 16);
			}
}

static void mul_portable(int m, int n, int tiles, const uint32_t *a, const uint32_t *b, real *c,
    int64_t ldc, bool add)
{
	int width = (n + BF16_TILE - 1) / BF16_TILE * BF16_TILE;

	for (int i = 0; i < m; i++) {
		if (!add)
			memset(c + i * ldc, 0, (size_t)width * sizeof(real));
		mul_row(c + i * ldc, n, tiles, a + (int64_t)(i / BF16_TILE) * tiles *
		    BF16_TILE_WORDS + i % BF16_TILE * BF16_TILE, b);
	}
}

const struct bf16_kernels bf16_kernels_portable = { .isa = "portable", .pack = pack_portable,
    .mul = mul_portable };

/* ---- the choice ---- */

static const struct bf16_kernels *forced;

void cpu_bf16_force(const struct bf16_kernels *k) { forced = k; }

const struct bf16_kernels *cpu_bf16_kernels(void)
{
#if defined(__x86_64__) && !defined(CHR_DOUBLE)
	static const struct bf16_kernels *best;

	if (!best)
		best = bf16_have_amx() ? &bf16_kernels_amx : bf16_have_avx512()
		    ? &bf16_kernels_avx512 : &bf16_kernels_portable;
	if (!forced && cpu_kernels() == &cpu_kernels_avx512)
		return best;
#endif
	return forced ? forced : &bf16_kernels_portable;
}

const char *cpu_bf16_isa(void) { return cpu_bf16_kernels()->isa; }

/* ---- blocks ---- */

#define BLOCK_K 512	/* sums of k go through C in blocks of this: part of the result */
#define BLOCK_N 384	/* columns of B packed together, and */
#define BLOCK_M 32	/* rows of A: 384 and 32 KiB, in the second cache */

struct bf16_task { const struct gemm_job *j; int64_t i0, m, c0, n; };

struct bf16_ctx {
	const struct bf16_kernels *kern;
	enum gemm_kind kind;
	const struct gemm_job *jobs;
	int n;
	int64_t rows;		/* of a task at most */
	int64_t *first;		/* (n+1) number of the first task of each job */
};

static int64_t blocks(int64_t n, int64_t size) { return (n + size - 1) / size; }

/* Panels of rows r0.. of the operand that is A, or columns of B, for k values from p. */
static void pack_panels(const struct bf16_kernels *kern, uint32_t *to, const real *from, int64_t ld,
    bool k_major, bool is_b,
    int64_t r0, int64_t rows, int64_t p, int k)
{
	int64_t words = blocks(k, BF16_TILE_K) * BF16_TILE_WORDS;

	for (int64_t r = 0; r < rows; r += BF16_TILE, to += words)
		kern->pack(to, from + (k_major ? p * ld + r0 + r : (r0 + r) * ld + p), ld,
		    (int)(rows - r < BF16_TILE ? rows - r : BF16_TILE), k, k_major, is_b);
}

/* A block of C that is not whole goes through a whole one. Sums begin with what is in C either
 * way. */
static void mul_edge(const struct bf16_kernels *kern, int m, int n, int tiles, const uint32_t *a,
    const uint32_t *b, real *c,
    int64_t ldc, bool add)
{
	_Alignas(64) real t[BLOCK_M * BLOCK_M];

	for (int i = 0; add && i < BLOCK_M; i++) {
		memset(t + i * BLOCK_M, 0, BLOCK_M * sizeof(real));
		if (i < m)
			memcpy(t + i * BLOCK_M, c + i * ldc, (size_t)n * sizeof(real));
	}
	kern->mul(m, n, tiles, a, b, t, BLOCK_M, add);
	for (int i = 0; i < m; i++)
		memcpy(c + i * ldc, t + i * BLOCK_M, (size_t)n * sizeof(real));
}

struct soon { const real *x; int64_t ld; int rows, w; };	/* what is packed next (cpu_ask) */

static void mul_rows(const struct bf16_kernels *kern, int m, int64_t n, int tiles,
    const uint32_t *a, const uint32_t *b,
    real *c, int64_t ldc, bool add, struct soon s)
{
	for (int64_t j = 0; j < n; j += BLOCK_M, b += (int64_t)2 * tiles * BF16_TILE_WORDS) {
		int w = (int)(n - j < BLOCK_M ? n - j : BLOCK_M);

		cpu_ask(s.x, s.ld, s.rows, s.w, (int)(j / BLOCK_M), (int)blocks(n, BLOCK_M));
		if (m % BF16_TILE == 0 && w % BF16_TILE == 0)
			kern->mul(m, w, tiles, a, b, c + j, ldc, add);
		else
			mul_edge(kern, m, w, tiles, a, b, c + j, ldc, add);
	}
}

void cpu_bf16_mul(uint32_t *scratch, int m, int n, int k, const real *a, int64_t lda,
    bool a_k_major, const real *b,
    int64_t ldb, bool b_k_major, real *c, int64_t ldc, bool add)
{
	const struct bf16_kernels *kern = cpu_bf16_kernels();
	int tiles = (int)blocks(k, BF16_TILE_K);
	uint32_t *pa = scratch, *pb = scratch + blocks(m, BF16_TILE) * tiles * BF16_TILE_WORDS;

	pack_panels(kern, pa, a, lda, a_k_major, false, 0, m, 0, k);
	pack_panels(kern, pb, b, ldb, b_k_major, true, 0, n, 0, k);
	for (int i = 0; i < m; i += BLOCK_M, pa += 2 * tiles * BF16_TILE_WORDS)
		mul_rows(kern, m - i < BLOCK_M ? m - i : BLOCK_M, n, tiles, pa, pb, c + i * ldc,
		    ldc, add, (struct soon){0});
}

static struct soon panels_at(const real *from, int64_t ld, bool k_major, int64_t r0, int64_t rows,
    int64_t p, int64_t k)
{
	k = k < p + BLOCK_K ? k - p : BLOCK_K;
	if (k_major)
		return (struct soon){ from + p * ld + r0, ld, (int)k, (int)rows };
	return (struct soon){ from + r0 * ld + p, ld, (int)rows, (int)k };
}

static struct soon b_at(const struct bf16_ctx *x, const struct bf16_task *t, int64_t p)
{
	return panels_at(t->j->b, t->j->ldb, x->kind != GEMM_NT, t->c0, t->n, p, t->j->k);
}

/* next: the task that this thread is likely to get. */
static void bf16_task(const struct bf16_ctx *x, const struct bf16_task *t,
    const struct bf16_task *next)
{
	const struct gemm_job *j = t->j;
	bool cols = x->kind == GEMM_TN;
	uint32_t *b = cpu_thread_buffer((size_t)(BLOCK_N + BLOCK_M) * BLOCK_K * 2),
	    *a = b + BLOCK_N * BLOCK_K / 2;

	for (int64_t p = 0; p < j->k; p += BLOCK_K) {
		int k = (int)(j->k - p < BLOCK_K ? j->k - p : BLOCK_K),
		    tiles = (int)blocks(k, BF16_TILE_K);
		struct soon other = p + k < j->k ? b_at(x, t, p + k) : b_at(x, next, 0);

		pack_panels(x->kern, b, j->b, j->ldb, x->kind != GEMM_NT, true, t->c0, t->n, p, k);
		for (int64_t left = t->m, i = t->i0; left > 0; i += BLOCK_M, left -= BLOCK_M) {
			int m = (int)(left < BLOCK_M ? left : BLOCK_M);

			pack_panels(x->kern, a, j->a, j->lda, cols, false, i, m, p, k);
			mul_rows(x->kern, m, t->n, tiles, a, b, j->c + i * j->ldc + t->c0, j->ldc,
			    p > 0 || j->beta != 0,
			    left > BLOCK_M ? panels_at(j->a, j->lda, cols, i + BLOCK_M, BLOCK_M, p,
			    j->k) : other);
		}
	}
	for (int64_t i = t->i0; j->k == 0 && j->beta == 0 && i < t->i0 + t->m; i++)
		memset(j->c + i * j->ldc + t->c0, 0, (size_t)t->n * sizeof(real));
}

/* Task t, of a job from *job on. */
static struct bf16_task task_at(const struct bf16_ctx *x, int64_t t, int *job)
{
	while (x->first[*job + 1] <= t)
		++*job;
	const struct gemm_job *j = &x->jobs[*job];
	int64_t cols = blocks(j->n, BLOCK_N), at = t - x->first[*job];
	struct bf16_task task = { j, at / cols * x->rows, x->rows, at % cols * BLOCK_N, BLOCK_N };

	task.m = j->m - task.i0 < task.m ? j->m - task.i0 : task.m;
	task.n = j->n - task.c0 < task.n ? j->n - task.c0 : task.n;
	return task;
}

static void bf16_range(void *ctx, int64_t t0, int64_t t1, int worker)
{
	const struct bf16_ctx *x = ctx;
	int job = 0;

	(void)worker;
	if (x->kern->begin)
		x->kern->begin();
	for (int64_t t = t0; t < t1; t++) {
		int64_t after = t + pool_threads() < x->first[x->n] ? t + pool_threads() : t;
		struct bf16_task task = task_at(x, t, &job),
		    next = task_at(x, after, &(int){ job });

		bf16_task(x, &task, &next);
	}
	if (x->kern->end)
		x->kern->end();
}

/* A task packs its part of B for itself: the more rows it has, the less often that is done. But
 * every thread should have a few tasks. No result depends on it. */
static int64_t task_rows(const struct gemm_job *jobs, int n)
{
	int64_t rows = 1024;

	for (; rows > 4 * BLOCK_M; rows /= 2) {
		int64_t tasks = 0;

		for (int i = 0; i < n; i++)
			tasks += blocks(jobs[i].m, rows) * blocks(jobs[i].n, BLOCK_N);
		if (tasks >= 4 * pool_threads())
			break;
	}
	return rows;
}

void cpu_gemm_bf16(CPU, enum gemm_kind kind, const struct gemm_job *jobs, int n)
{
	int64_t *first = cpu_first_tasks(n);
	struct bf16_ctx x = { cpu_bf16_kernels(), kind, jobs, n, task_rows(jobs, n), NULL };

	x.first = first;
	for (int i = 0; i < n; i++)
		first[i + 1] = first[i] + blocks(jobs[i].m, x.rows) * blocks(jobs[i].n, BLOCK_N);
	pool_for(first[n], 1, bf16_range, &x);
}
