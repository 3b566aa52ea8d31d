/*
 * cpu_attn: self-attention of training in tiles, memory linear in the sequence (FlashAttention,
 * arXiv:2205.14135; the backward pass recomputes probabilities from the saved log-sum-exp,
 * arXiv:2307.08691). One task is one tile of queries of one head (forward), or one key/value
 * head of one sequence (backward), so sums have a fixed order.
 */
#include "backend/cpu/cpu.h"

#include <math.h>
#include <string.h>

#include "backend/cpu/cpu_bf16.h"
#include "backend/cpu/cpu_kernels.h"
#include "base/pool.h"
#include "base/rng.h"

#define TILE 64

/* First key that query t may see; keys lo..t are visible. */
static int first_key(const struct attn_args *a, int64_t row0, int t)
{
	int lo = a->doc_start[row0 + t];

	if (a->window > 0 && t - a->window + 1 > lo)
		lo = t - a->window + 1;
	return lo;
}

/* The keys any query of the tile [t0, t1) sees, from a tile boundary; -1 when all are padding. */
static int tile_first_key(const struct attn_args *a, int64_t row0, int t0, int t1)
{
	int lo = -1;

	for (int t = t0; t < t1; t++)
		if (a->doc_start[row0 + t] >= 0) {
			int f = first_key(a, row0, t);

			lo = lo < 0 || f < lo ? f : lo;
		}
	return lo < 0 ? -1 : lo / TILE * TILE;
}

static uint64_t drop_key(const struct attn_args *a, int b, int h)
{
	return a->drop_key + 0x9e3779b97f4a7c15u * (uint64_t)(b * a->H + h + 1);
}

/* 0, or 1/(1-p): what dropout multiplies the probability of (query t, key s) by. */
static real drop_factor(const struct attn_args *a, uint64_t key, int t, int s)
{
	uint32_t cut = (uint32_t)(a->dropout * 4294967296.0);

	return rng_hash(key, (uint64_t)t * (uint64_t)a->T + (uint64_t)s) < cut ? 0
	    : (real)(1 / (1 - a->dropout));
}

#define SCRATCH CPU_BF16_WORDS(TILE, TILE, 512)	/* a tile by a tile of heads, or a tile of heads
						   by a tile */

/* C(m,n) = A B + beta C of a tile, in the precision asked for; which sides are given with k as
 * the slow index. */
static void product(const struct attn_args *at, uint32_t *scratch, int m, int n, int k,
    const real *a, int64_t lda,
    bool a_k_major, const real *b, int64_t ldb, bool b_k_major, real *c, int64_t ldc, real beta)
{
	const struct cpu_kernels *kn = cpu_kernels();

	if (at->bf16)
		cpu_bf16_mul(scratch, m, n, k, a, lda, a_k_major, b, ldb, b_k_major, c, ldc,
		    beta != 0);
	else if (b_k_major)
		kn->nn(m, n, k, a, a_k_major ? 1 : lda, a_k_major ? lda : 1, b, ldb, c, ldc, beta);
	else
		kn->nt(m, n, k, a, lda, b, ldb, c, ldc, beta);
}

static void bf16_begin(const struct attn_args *at)
{
	if (at->bf16 && cpu_bf16_kernels()->begin)
		cpu_bf16_kernels()->begin();
}

static void bf16_end(const struct attn_args *at)
{
	if (at->bf16 && cpu_bf16_kernels()->end)
		cpu_bf16_kernels()->end();
}

struct tile {			/* scores of one tile of queries against one tile of keys */
	real s[TILE * TILE], o[TILE * 512];
	real max[TILE], sum[TILE];
	_Alignas(64) uint32_t scratch[SCRATCH];
};

static const real *head_q(const struct attn_args *a, const real *q, int64_t row, int h, int w)
{
	return q + (row * a->H + h) * w;
}

static const real *head_kv(const struct attn_args *a, const real *k, int64_t row, int g, int w)
{
	return k + (row * a->G + g) * w;
}

/* s(nq, nk) = scale * q k^T */
static void scores(const struct attn_args *a, uint32_t *scratch, int64_t row0, int h, int t0,
    int nq, int s0, int nk, real *s)
{
	int g = h / (a->H / a->G);
	real scale = a->scale;

	product(a, scratch, nq, nk, a->dq, head_q(a, a->q, row0 + t0, h, a->dq),
	    (int64_t)a->H * a->dq, false,
	    head_kv(a, a->k, row0 + s0, g, a->dq), (int64_t)a->G * a->dq, false, s, TILE, 0);
	for (int i = 0; i < nq; i++)
		for (int j = 0; j < nk; j++)
			s[i * TILE + j] *= scale;
}

/* Zeros outside of [v0, v1). */
static void blank(real *s, int v0, int v1, int n)
{
	memset(s, 0, (size_t)v0 * sizeof(real));
	memset(s + v1, 0, (size_t)(n - v1) * sizeof(real));
}

/* One row of a tile enters the running softmax: probabilities of visible keys in place, zero
 * elsewhere. */
static void soft_row(struct tile *x, int i, int dv, int vis0, int vis1, int nk)
{
	const struct cpu_kernels *kn = cpu_kernels();
	real *s = x->s + i * TILE, m, f;

	if (vis0 >= vis1) {
		memset(s, 0, (size_t)nk * sizeof(real));
		return;
	}
	m = kn->max(s + vis0, vis1 - vis0);
	m = m > x->max[i] ? m : x->max[i];
	f = (real)exp((double)(x->max[i] - m));
	if (f != 1)
		for (int c = 0; c < dv; c++)
			x->o[i * dv + c] *= f;
	x->max[i] = m;
	x->sum[i] = x->sum[i] * f + kn->exp_sum(s + vis0, vis1 - vis0, m);
	blank(s, vis0, vis1, nk);
}

static void visible(const struct attn_args *a, int64_t row0, int t, int s0, int nk, int *v0,
    int *v1)
{
	int lo = first_key(a, row0, t) - s0, hi = t + 1 - s0;

	*v0 = lo < 0 ? 0 : lo;
	*v1 = hi > nk ? nk : hi;
	if (a->doc_start[row0 + t] < 0 || *v1 < *v0)
		*v0 = *v1 = 0;
}

static void forward_tile(const struct attn_args *a, int b, int h, int t0)
{
	struct tile *x = cpu_thread_buffer(sizeof(*x));
	int64_t row0 = (int64_t)b * a->T;
	int nq = a->T - t0 < TILE ? a->T - t0 : TILE, g = h / (a->H / a->G), dv = a->dv;
	int lo = tile_first_key(a, row0, t0, t0 + nq);

	memset(x->o, 0, (size_t)(nq * dv) * sizeof(real));
	for (int i = 0; i < nq; i++)
		x->max[i] = a->sinks ? a->sinks[h] : -INFINITY, x->sum[i] = a->sinks ? 1 : 0;
	for (int s0 = lo; lo >= 0 && s0 < t0 + nq; s0 += TILE) {
		int nk = t0 + nq - s0 < TILE ? t0 + nq - s0 : TILE;

		scores(a, x->scratch, row0, h, t0, nq, s0, nk, x->s);
		for (int i = 0; i < nq; i++) {
			int v0, v1;

			visible(a, row0, t0 + i, s0, nk, &v0, &v1);
			soft_row(x, i, dv, v0, v1, nk);
			if (a->dropout > 0)
				for (int j = v0; j < v1; j++)
					x->s[i * TILE + j] *= drop_factor(a, drop_key(a, b, h),
					    t0 + i, s0 + j);
		}
		product(a, x->scratch, nq, dv, nk, x->s, TILE, false, head_kv(a, a->v, row0 + s0, g,
		    dv), (int64_t)a->G * dv,
		    true, x->o, dv, 1);
	}
	for (int i = 0; i < nq; i++) {
		real *o = a->o + ((row0 + t0 + i) * a->H + h) * dv, inv = x->sum[i] > 0
		    ? 1 / x->sum[i] : 0;

		for (int c = 0; c < dv; c++)
			o[c] = x->o[i * dv + c] * inv;
		if (a->lse)
			a->lse[(row0 + t0 + i) * a->H + h] = x->sum[i] > 0
			    ? x->max[i] + (real)log((double)x->sum[i]) : 0;
	}
}

static void forward_tasks(void *ctx, int64_t i0, int64_t i1, int worker)
{
	const struct attn_args *a = ctx;
	int tiles = (a->T + TILE - 1) / TILE;

	(void)worker;
	bf16_begin(a);
	for (int64_t i = i0; i < i1; i++)
		forward_tile(a, (int)(i / tiles / a->H), (int)(i / tiles % a->H),
		    (int)(i % tiles) * TILE);
	bf16_end(a);
}

void cpu_attn(CPU, const struct attn_args *a)
{
	cpu_kernels();
	pool_for((int64_t)a->B * a->H * ((a->T + TILE - 1) / TILE), 1, forward_tasks,
	    (void *)(uintptr_t)a);
}

struct back_tile {
	real p[TILE * TILE], dp[TILE * TILE], delta[TILE];
	_Alignas(64) uint32_t scratch[SCRATCH];
};

/* p = exp(s - lse) on visible pairs; dp becomes p * (dp - delta) * scale; p is left with dropout
 * applied. */
static void back_pairs(const struct attn_args *a, struct back_tile *x, int b, int h, int t0, int nq,
    int s0, int nk)
{
	int64_t row0 = (int64_t)b * a->T;
	const struct cpu_kernels *kn = cpu_kernels();

	for (int i = 0; i < nq; i++) {
		real *p = x->p + i * TILE, *dp = x->dp + i * TILE, keep[TILE];
		real lse = a->lse[(row0 + t0 + i) * a->H + h], delta = x->delta[i],
		    scale = a->scale;
		int v0, v1;

		visible(a, row0, t0 + i, s0, nk, &v0, &v1);
		blank(p, v0, v1, nk);
		blank(dp, v0, v1, nk);
		if (v1 > v0)
			kn->exp_sum(p + v0, v1 - v0, lse);
		for (int j = v0; a->dropout > 0 && j < v1; j++) {
			keep[j] = drop_factor(a, drop_key(a, b, h), t0 + i, s0 + j);
			dp[j] *= keep[j];
		}
		for (int j = v0; j < v1; j++)
			dp[j] = p[j] * (dp[j] - delta) * scale;
		for (int j = v0; a->dropout > 0 && j < v1; j++)
			p[j] *= keep[j];
	}
}

static void back_tile(const struct attn_args *a, int b, int h, int t0, int nq, int s0, int nk)
{
	struct back_tile *x = cpu_thread_buffer(sizeof(*x));
	const struct cpu_kernels *kn = cpu_kernels();
	int64_t row0 = (int64_t)b * a->T, qrow = row0 + t0, krow = row0 + s0;
	int g = h / (a->H / a->G), dq = a->dq, dv = a->dv;
	int64_t ldq = (int64_t)a->H * dq, ldo = (int64_t)a->H * dv, ldk = (int64_t)a->G * dq,
	    ldv = (int64_t)a->G * dv;
	const real *dob = head_q(a, a->d_o, qrow, h, dv);

	for (int i = 0; i < nq; i++)
		x->delta[i] = kn->dot(dob + i * ldo, head_q(a, a->o, qrow + i, h, dv), dv);
	scores(a, x->scratch, row0, h, t0, nq, s0, nk, x->p);
	product(a, x->scratch, nq, nk, dv, dob, ldo, false, head_kv(a, a->v, krow, g, dv), ldv,
	    false, x->dp, TILE, 0);
	back_pairs(a, x, b, h, t0, nq, s0, nk);
	product(a, x->scratch, nk, dv, nq, x->p, TILE, true, dob, ldo, true,
	    a->dv_ + (krow * a->G + g) * dv, ldv, 1);
	product(a, x->scratch, nk, dq, nq, x->dp, TILE, true, head_q(a, a->q, qrow, h, dq), ldq,
	    true,
	    a->dk + (krow * a->G + g) * dq, ldk, 1);
	product(a, x->scratch, nq, dq, nk, x->dp, TILE, false, head_kv(a, a->k, krow, g, dq), ldk,
	    true,
	    a->dq_ + (qrow * a->H + h) * dq, ldq, 1);
}

/* One sequence, one key/value head: all its query heads, so that dk and dv are summed by one
 * thread. */
static void backward_tasks(void *ctx, int64_t i0, int64_t i1, int worker)
{
	const struct attn_args *a = ctx;

	(void)worker;
	bf16_begin(a);
	for (int64_t i = i0; i < i1; i++) {
		int b = (int)(i / a->G), g = (int)(i % a->G), per = a->H / a->G;

		for (int h = g * per; h < (g + 1) * per; h++)
			for (int t0 = 0; t0 < a->T; t0 += TILE) {
				int nq = a->T - t0 < TILE ? a->T - t0 : TILE;
				int lo = tile_first_key(a, (int64_t)b * a->T, t0, t0 + nq);

				for (int s0 = lo; lo >= 0 && s0 < t0 + nq; s0 += TILE)
					back_tile(a, b, h, t0, nq, s0, t0 + nq - s0 < TILE
					    ? t0 + nq - s0 : TILE);
			}
	}
	bf16_end(a);
}

/* A sink's probability takes from every key; its value is 0. */
static void sink_tasks(void *ctx, int64_t h0, int64_t h1, int worker)
{
	const struct attn_args *a = ctx;

	(void)worker;
	for (int64_t h = h0; h < h1; h++) {
		real sum = 0;

		for (int64_t r = 0; r < (int64_t)a->B * a->T; r++) {
			real p = (real)exp((double)(a->sinks[h] - a->lse[r * a->H + h]));

			sum += p * cpu_kernels()->dot(head_q(a, a->d_o, r, (int)h, a->dv),
			    head_q(a, a->o, r, (int)h, a->dv), a->dv);
		}
		a->dsinks[h] -= sum;
	}
}

void cpu_attn_back(CPU, const struct attn_args *a)
{
	size_t rows = (size_t)a->B * (size_t)a->T;

	cpu_kernels();
	backend_cpu.zero(&backend_cpu, a->dq_, rows * (size_t)(a->H * a->dq) * sizeof(real));
	backend_cpu.zero(&backend_cpu, a->dk, rows * (size_t)(a->G * a->dq) * sizeof(real));
	backend_cpu.zero(&backend_cpu, a->dv_, rows * (size_t)(a->G * a->dv) * sizeof(real));
	pool_for((int64_t)a->B * a->G, 1, backward_tasks, (void *)(uintptr_t)a);
	if (a->sinks)
		pool_for(a->H, 1, sink_tasks, (void *)(uintptr_t)a);
}
