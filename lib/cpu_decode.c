/*
 * The attn_cached row of the cpu backend: queries of decode against KV caches. Keys are taken in blocks of BLOCK counted
 * from the first key a row sees, with a running maximum (Milakov, Gimelshein 2018), so neither the length of a cache nor
 * the place of the window in it enters the arithmetic. Sums of products run in LANES fixed lanes whatever the vector
 * width of the machine.
 */
#include <math.h>
#include <string.h>

#include "backend.h"
#include "pool.h"

#define BLOCK 64
#define LANES 16
#define HEADS 8		/* heads done together when they share a key head, so that a key is fetched once */

#if defined __x86_64__ && !defined __SANITIZE_ADDRESS__ && !defined __SANITIZE_THREAD__
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CLONES
#endif

typedef real lanes __attribute__((vector_size(LANES * sizeof(real)), aligned(sizeof(real))));

typedef real half __attribute__((vector_size(LANES / 2 * sizeof(real))));
typedef real quarter __attribute__((vector_size(LANES / 4 * sizeof(real))));

/* A macro, so that no vector crosses a call between functions of different instruction sets. */
#define SUM_LANES(out, s) do { \
	half h_ = __builtin_shufflevector(s, s, 0, 1, 2, 3, 4, 5, 6, 7) \
	    + __builtin_shufflevector(s, s, 8, 9, 10, 11, 12, 13, 14, 15); \
	quarter q_ = __builtin_shufflevector(h_, h_, 0, 1, 2, 3) + __builtin_shufflevector(h_, h_, 4, 5, 6, 7); \
	(out) += (q_[0] + q_[2]) + (q_[1] + q_[3]); \
} while (0)

/* out[i] += q . key of slot i, n slots; four keys at a time, each summed in the same way as alone */
CLONES static void block_scores(real *out, const real *q, const real *k, int64_t ldk, int n, int w)
{
	int whole = w / LANES * LANES, i = 0;

	for (; i + 4 <= n; i += 4) {
		const real *k0 = k + i * ldk, *k1 = k0 + ldk, *k2 = k1 + ldk, *k3 = k2 + ldk;
		lanes s0 = { 0 }, s1 = { 0 }, s2 = { 0 }, s3 = { 0 };

		for (int j = 0; j < whole; j += LANES) {
			lanes x = *(const lanes *)(q + j);

			s0 += x * *(const lanes *)(k0 + j);
			s1 += x * *(const lanes *)(k1 + j);
			s2 += x * *(const lanes *)(k2 + j);
			s3 += x * *(const lanes *)(k3 + j);
		}
		SUM_LANES(out[i], s0);
		SUM_LANES(out[i + 1], s1);
		SUM_LANES(out[i + 2], s2);
		SUM_LANES(out[i + 3], s3);
	}
	for (; i < n; i++) {
		lanes s = { 0 };

		for (int j = 0; j < whole; j += LANES)
			s += *(const lanes *)(q + j) * *(const lanes *)(k + i * ldk + j);
		SUM_LANES(out[i], s);
	}
	if (whole == w)
		return;
	for (i = 0; i < n; i++) {
		real tail = 0;

		for (int j = whole; j < w; j++)
			tail += q[j] * k[i * ldk + j];
		out[i] += tail;
	}
}

/* o += sum of p[i] * value of slot i, in order of i */
CLONES static void block_values(real *restrict o, const real *p, const real *v, int64_t ldv, int n, int w)
{
	int i = 0;

	for (; i + 4 <= n; i += 4, v += 4 * ldv) {
		const real *v1 = v + ldv, *v2 = v1 + ldv, *v3 = v2 + ldv;

		for (int j = 0; j < w; j++)
			o[j] = (((o[j] + p[i] * v[j]) + p[i + 1] * v1[j]) + p[i + 2] * v2[j]) + p[i + 3] * v3[j];
	}
	for (; i < n; i++, v += ldv)
		for (int j = 0; j < w; j++)
			o[j] += p[i] * v[j];
}

/* Running softmax of one head. */
struct head {
	real max, sum;
};

/* Turns n scores into weights relative to the new maximum and rescales what was summed before. */
static void block_softmax(struct head *h, real *s, int n, real scale, real *o, int dv)
{
	real max = h->max, sum = 0, back;

	for (int i = 0; i < n; i++) {
		s[i] *= scale;
		if (s[i] > max)
			max = s[i];
	}
	back = (real)exp(h->max - max);		/* 0 at first: exp(-inf) */
	for (int i = 0; i < n; i++) {
		s[i] = sizeof(real) == 4 ? (real)expf((float)(s[i] - max)) : (real)exp(s[i] - max);
		sum += s[i];
	}
	if (back != 1)
		for (int j = 0; j < dv; j++)
			o[j] *= back;
	h->sum = h->sum * back + sum;
	h->max = max;
}

/* Query row i, heads h0..h0+nh-1, which read the same key and value head. */
static void attend(const struct attn_cached_args *a, int i, int h0, int nh)
{
	int g = h0 * a->G / a->H, total = a->hi[i] - a->lo[i] + 1;
	const real *k = a->kcache[i] + a->lo[i] * a->ldk + (int64_t)g * a->dk;
	const real *v = a->vcache[i] + a->lo[i] * a->ldv + (int64_t)g * a->dv;
	real s[BLOCK];
	struct head head[HEADS];
	real *o = a->o + i * a->ldo + (int64_t)h0 * a->dv;

	memset(o, 0, sizeof(real) * (size_t)nh * a->dv);
	for (int h = 0; h < nh; h++)
		head[h] = (struct head){ .max = -INFINITY };
	for (int b = 0; b < total; b += BLOCK) {
		int n = total - b < BLOCK ? total - b : BLOCK;

		for (int h = 0; h < nh; h++) {
			memset(s, 0, sizeof(s));
			block_scores(s, a->q + i * a->ldq + (int64_t)(h0 + h) * a->dk, k + b * a->ldk, a->ldk, n, a->dk);
			if (a->dk2 > 0) {
				int g2 = (h0 + h) * a->G2 / a->H;

				block_scores(s, a->q2 + i * a->ldq2 + (int64_t)(h0 + h) * a->dk2,
				    a->k2cache[i] + (a->lo[i] + b) * a->ldk2 + (int64_t)g2 * a->dk2, a->ldk2, n, a->dk2);
			}
			block_softmax(&head[h], s, n, a->scale, o + (int64_t)h * a->dv, a->dv);
			block_values(o + (int64_t)h * a->dv, s, v + b * a->ldv, a->ldv, n, a->dv);
		}
	}
	for (int h = 0; h < nh; h++) {
		real r = 1 / head[h].sum;

		for (int j = 0; j < a->dv; j++)
			o[(int64_t)h * a->dv + j] *= r;
	}
}

static int heads_together(const struct attn_cached_args *a)
{
	int rep = a->H / a->G;		/* divides: checked with the config */

	/* One query row must still give every thread something to do. */
	for (int m = HEADS; m > 1; m--)
		if (rep % m == 0 && (int64_t)a->n * (a->H / m) >= 2 * pool_threads())
			return m;
	return 1;
}

struct work {
	const struct attn_cached_args *a;
	int nh;
};

static void attend_range(void *ctx, int64_t i0, int64_t i1, int worker)
{
	const struct work *w = ctx;
	int per_row = w->a->H / w->nh;

	(void)worker;
	for (int64_t i = i0; i < i1; i++)
		attend(w->a, (int)(i / per_row), (int)(i % per_row) * w->nh, w->nh);
}

void cpu_attn_cached(const struct attn_cached_args *a)
{
	struct work w = { a, heads_together(a) };

	pool_for((int64_t)a->n * (a->H / w.nh), 1, attend_range, &w);
}
