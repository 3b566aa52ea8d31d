/*
 * cpu_cached: inner loops of attn_cached, a part of cpu_template.h. Sums of products run in GROUP fixed lanes whatever the
 * width of the machine, and nothing is contracted, so every instruction set gives the same bytes. The including file defines
 *	SCORE_M			heads done together in scores
 *	VALUE_M, VALUE_V	heads and groups of GROUP values done together in values
 */
#define GROUP 16

typedef real lanes16 __attribute__((vector_size(GROUP * sizeof(real)), aligned(sizeof(real)), may_alias));
typedef real lanes8 __attribute__((vector_size(GROUP / 2 * sizeof(real))));
typedef real lanes4 __attribute__((vector_size(GROUP / 4 * sizeof(real))));

#define AT(p) (*(const lanes16 *)(p))

/* A macro, so that no vector crosses a call. */
#define SUM_LANES(out, s) do { \
	lanes8 h_ = __builtin_shufflevector(s, s, 0, 1, 2, 3, 4, 5, 6, 7) \
	    + __builtin_shufflevector(s, s, 8, 9, 10, 11, 12, 13, 14, 15); \
	lanes4 q_ = __builtin_shufflevector(h_, h_, 0, 1, 2, 3) + __builtin_shufflevector(h_, h_, 4, 5, 6, 7); \
	(out) += (q_[0] + q_[2]) + (q_[1] + q_[3]); \
} while (0)

/* m (<= SCORE_M) heads against n (<= 4) keys; whole multiples of GROUP. */
INLINE TARGET void score_tile(const int m, const int n, real *s, int64_t lds, const real *q, int64_t ldq, const real *k,
    int w)
{
	lanes16 acc[SCORE_M][4] = { 0 };

	for (int j = 0; j + GROUP <= w; j += GROUP)
		for (int h = 0; h < m; h++) {
			lanes16 x = AT(q + h * ldq + j);

			for (int i = 0; i < n; i++)
				acc[h][i] += x * AT(k + (int64_t)i * w + j);
		}
	for (int h = 0; h < m; h++)
		for (int i = 0; i < n; i++)
			SUM_LANES(s[h * lds + i], acc[h][i]);
}

static TARGET void scores(real *s, int64_t lds, const real *q, int64_t ldq, int heads, const real *k, int n, int w)
{
	int whole = w / GROUP * GROUP;

	for (int h = 0; h < heads; h += SCORE_M) {
		bool full = heads - h >= SCORE_M;
		int i = 0;

		for (; i + 4 <= n && full; i += 4)
			score_tile(SCORE_M, 4, s + h * lds + i, lds, q + h * ldq, ldq, k + (int64_t)i * w, w);
		for (int g = h; g < heads && g < h + SCORE_M; g++) {
			int r = i;

			for (; r + 4 <= n; r += 4)
				score_tile(1, 4, s + g * lds + r, lds, q + g * ldq, ldq, k + (int64_t)r * w, w);
			for (; r < n; r++)
				score_tile(1, 1, s + g * lds + r, lds, q + g * ldq, ldq, k + (int64_t)r * w, w);
		}
	}
	for (int h = 0; h < heads && whole < w; h++)
		for (int i = 0; i < n; i++) {
			real tail = 0;

			for (int j = whole; j < w; j++)
				tail += q[h * ldq + j] * k[(int64_t)i * w + j];
			s[h * lds + i] += tail;
		}
}

/* m (<= VALUE_M) heads, v (<= VALUE_V) groups of lanes of all n values. */
INLINE TARGET void value_tile(const int m, const int v, real *o, int64_t ldo, const real *p, int64_t ldp, const real *x,
    int n, int w)
{
	lanes16 acc[VALUE_M][VALUE_V];

	for (int h = 0; h < m; h++)
		for (int j = 0; j < v; j++)
			acc[h][j] = AT(o + h * ldo + j * GROUP);
	for (int i = 0; i < n; i++, x += w)
		for (int h = 0; h < m; h++)
			for (int j = 0; j < v; j++)
				acc[h][j] += p[h * ldp + i] * AT(x + j * GROUP);
	for (int h = 0; h < m; h++)
		for (int j = 0; j < v; j++)
			*(lanes16 *)(o + h * ldo + j * GROUP) = acc[h][j];
}

INLINE TARGET void value_heads(const int m, real *o, int64_t ldo, const real *p, int64_t ldp, const real *x, int n, int w)
{
	int j = 0;

	for (; j + VALUE_V * GROUP <= w; j += VALUE_V * GROUP)
		value_tile(m, VALUE_V, o + j, ldo, p, ldp, x + j, n, w);
	for (; j + GROUP <= w; j += GROUP)
		value_tile(m, 1, o + j, ldo, p, ldp, x + j, n, w);
	for (int h = 0; h < m && j < w; h++)
		for (int i = 0; i < n; i++)
			for (int c = j; c < w; c++)
				o[h * ldo + c] += p[h * ldp + i] * x[(int64_t)i * w + c];
}

static TARGET void values(real *o, int64_t ldo, const real *p, int64_t ldp, int heads, const real *x, int n, int w)
{
	int h = 0;

	for (; h + VALUE_M <= heads; h += VALUE_M)
		value_heads(VALUE_M, o + h * ldo, ldo, p + h * ldp, ldp, x, n, w);
	for (; h < heads; h++)
		value_heads(1, o + h * ldo, ldo, p + h * ldp, ldp, x, n, w);
}

static TARGET void soften(struct softmax *h, real *s, int n, real scale, real *o, int w)
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
		for (int j = 0; j < w; j++)
			o[j] *= back;
	h->sum = h->sum * back + sum;
	h->max = max;
}

static TARGET void unpack_bf16(real *restrict x, const uint16_t *restrict b, int64_t n)
{
	for (int64_t i = 0; i < n; i++) {
		union { uint32_t u; float f; } v = { (uint32_t)b[i] << 16 };

		x[i] = v.f;
	}
}

static TARGET void unpack_q8(real *restrict x, const char *restrict head, int w)
{
	const float *d = (const float *)head;
	const int8_t *q = (const int8_t *)(d + kv_blocks(w));
	int j = 0;

	for (; j + KV_BLOCK <= w; j += KV_BLOCK, d++)
		for (int i = 0; i < KV_BLOCK; i++)
			x[j + i] = *d * (float)q[j + i];
	for (; j < w; j++)
		x[j] = *d * (float)q[j];
}

static TARGET void unpack(real *x, const void *rows, enum kv_type t, int n, int w)
{
	if (t == KV_BF16)
		unpack_bf16(x, rows, (int64_t)n * w);
	else
		for (int i = 0; i < n; i++)
			unpack_q8(x + (int64_t)i * w, (const char *)rows + (size_t)i * kv_head_bytes(t, w), w);
}
