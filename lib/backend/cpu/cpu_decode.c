/*
 * Rows kv_put and attn_cached of the cpu backend: caches of keys and values, and queries against
 * them. Keys are taken in blocks of BLOCK counted from the first key a row sees, oldest first,
 * with a running maximum (Milakov, Gimelshein 2018), so neither the size of a cache nor the
 * place of the window in it enters the arithmetic. Within a block keys come in pieces, short
 * enough to stay in the first cache while every head of the task takes them, and unpacked there
 * if need be; a ring's end is one more cut.
 */
#include <math.h>
#include <string.h>

#include "backend/cpu/cpu.h"
#include "backend/cpu/cpu_kernels.h"
#include "base/pool.h"
#include "backend/tensor.h"

#define BLOCK 64
#define HEADS 8		/* heads done together when they share a key head, so that a key is
			   fetched once */
#define PIECE 4096	/* values in a piece, about */

/* ---- storing ---- */

/* Blocks of a row that is not finite become NaN, as its products would. */
static void pack_q8(char *head, const real *x, int w)
{
	float *d = (float *)head;
	int8_t *q = (int8_t *)(d + kv_blocks(w));

	for (int j = 0; j < w; j += KV_BLOCK, d++) {
		int n = w - j < KV_BLOCK ? w - j : KV_BLOCK;
		float max = 0, wrong = 0, inv;

		for (int i = 0; i < n; i++) {
			max = fabsf((float)x[j + i]) > max ? fabsf((float)x[j + i]) : max;
			wrong += (float)x[j + i] * 0;
		}
		inv = max > 1e-30f && wrong == 0 ? 127 / max : 0;
		*d = max / 127 + wrong;
		for (int i = 0; i < n; i++)
			q[j + i] = inv > 0 ? (int8_t)lrintf((float)x[j + i] * inv) : 0;
	}
}

static void pack_bf16(uint16_t *to, const real *x, int w)
{
	float f[KV_BLOCK];

	for (int j = 0; j < w; j += KV_BLOCK) {
		int n = w - j < KV_BLOCK ? w - j : KV_BLOCK;

		for (int i = 0; i < n; i++)
			f[i] = (float)x[j + i];
		tensor_from_f32(to + j, DT_BF16, f, (size_t)n);
	}
}

static void put_rows(void *ctx, int64_t i0, int64_t i1, int worker)
{
	const struct kv_put_args *a = ctx;
	size_t bytes = kv_head_bytes(a->type, a->w);

	(void)worker;
	for (int64_t i = i0; i < i1; i++)
		for (int h = 0; h < a->heads; h++) {
			const real *x = a->x + (i * a->heads + h) * a->w;
			char *to = (char *)a->cache + ((size_t)h * (size_t)a->slots +
			    (size_t)((a->pos + i) % a->slots)) * bytes;

			if (a->type == KV_F32)
				memcpy(to, x, bytes);
			else if (a->type == KV_BF16)
				pack_bf16((uint16_t *)to, x, a->w);
			else
				pack_q8(to, x, a->w);
		}
}

void cpu_kv_put(CPU, const struct kv_put_args *a)
{
	pool_for(a->n, 16, put_rows, (void *)(uintptr_t)a);
}

/* ---- attention ---- */

struct work {
	const struct attn_cached_args *a;
	const struct cpu_kernels *kern;
	int heads;		/* of a task */
	int widest;
};

/* Keys or values of one head, and room for a piece of them as floats. */
struct view {
	const char *base;
	int w;
	real *room;
};

static struct view view_of(const struct work *k, const void *cache, int head, int w, real *room)
{
	size_t bytes = kv_cache_bytes(k->a->type, 1, k->a->slots, w);

	return (struct view){ (const char *)cache + (size_t)head * bytes, w, room };
}

/* Keys of a piece from position p on, of n that are left in the block. */
static int piece(const struct work *k, int p, int n)
{
	int most = PIECE / k->widest / 4 * 4, slot = p % k->a->slots;

	most = most < 4 ? 4 : most;
	n = n < most ? n : most;
	return n < k->a->slots - slot ? n : k->a->slots - slot;
}

static const real *floats(const struct work *k, const struct view *v, int p, int n)
{
	const char *rows = v->base + (size_t)(p % k->a->slots) * kv_head_bytes(k->a->type, v->w);

	if (k->a->type == KV_F32)
		return (const real *)rows;
	k->kern->unpack(v->room, rows, k->a->type, n, v->w);
	return v->room;
}

/* s(heads, BLOCK) += scores of n keys from position p on, of query row i and the heads h0.. of
 * the task */
static void piece_scores(const struct work *k, int i, int h0, int p, int n, real *s, real *room)
{
	const struct attn_cached_args *a = k->a;
	struct view keys = view_of(k, a->kcache[i], h0 * a->G / a->H, a->dk, room);
	int per = a->dk2 > 0 ? a->H / a->G2 : 1, h1 = h0 + k->heads, next;

	k->kern->scores(s, BLOCK, a->q + i * a->ldq + (int64_t)h0 * a->dk, a->dk, k->heads,
	    floats(k, &keys, p, n), n, a->dk);
	for (int h = h0; h < h1 && a->dk2 > 0; h = next) {
		struct view keys2 = view_of(k, a->k2cache[i], h / per, a->dk2, room);

		next = h / per * per + per < h1 ? h / per * per + per : h1;
		k->kern->scores(s + (h - h0) * BLOCK, BLOCK, a->q2 + i * a->ldq2 + (int64_t)h *
		    a->dk2, a->dk2, next - h,
		    floats(k, &keys2, p, n), n, a->dk2);
	}
}

/* Query row i, heads h0.. of the task, which read the same key and value head. */
static void attend(const struct work *k, int i, int h0, real *room)
{
	const struct attn_cached_args *a = k->a;
	struct view v = view_of(k, a->vcache[i], h0 * a->G / a->H, a->dv, room);
	real s[HEADS * BLOCK], *o = a->o + i * a->ldo + (int64_t)h0 * a->dv;
	struct softmax soft[HEADS];

	memset(o, 0, sizeof(real) * (size_t)k->heads * (size_t)a->dv);
	for (int h = 0; h < k->heads; h++)
		soft[h] = a->sinks ? (struct softmax){ .max = a->sinks[h0 + h], .sum = 1 }
		    : (struct softmax){ .max = -INFINITY };
	for (int p = a->lo[i], n; p <= a->hi[i]; p += n) {
		n = a->hi[i] + 1 - p < BLOCK ? a->hi[i] + 1 - p : BLOCK;
		memset(s, 0, sizeof(real) * BLOCK * (size_t)k->heads);
		for (int j = 0, m; j < n; j += m) {
			m = piece(k, p + j, n - j);
			piece_scores(k, i, h0, p + j, m, s + j, room);
		}
		for (int h = 0; h < k->heads; h++)
			k->kern->soften(&soft[h], s + h * BLOCK, n, a->scale,
			    o + (int64_t)h * a->dv, a->dv);
		for (int j = 0, m; j < n; j += m) {
			m = piece(k, p + j, n - j);
			k->kern->values(o, a->dv, s + j, BLOCK, k->heads, floats(k, &v, p + j, m),
			    m, a->dv);
		}
	}
	for (int h = 0; h < k->heads; h++) {
		real r = 1 / soft[h].sum;

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

static int max_int(int a, int b) { return a > b ? a : b; }

static void attend_range(void *ctx, int64_t i0, int64_t i1, int worker)
{
	const struct work *k = ctx;
	int per_row = k->a->H / k->heads;
	real *room = NULL;

	(void)worker;
	if (k->a->type != KV_F32)
		room = cpu_thread_buffer(sizeof(real) * (size_t)max_int(PIECE, 4 * k->widest));
	for (int64_t i = i0; i < i1; i++)
		attend(k, (int)(i / per_row), (int)(i % per_row) * k->heads, room);
}

void cpu_attn_cached(CPU, const struct attn_cached_args *a)
{
	struct work k = { a, cpu_kernels(), heads_together(a), max_int(max_int(a->dk, a->dv),
	    a->dk2) };

	pool_for((int64_t)a->n * (a->H / k.heads), 1, attend_range, &k);
}
