/*
 * cpu_cached: inner loops of attn_cached, a part of cpu_template.h. Sums of products run in
 * GROUP fixed lanes whatever the width of the machine, and nothing is contracted, so every
 * instruction set gives the same bytes. The including file defines
 *	SCORE_M			heads done together in scores
 *	VALUE_M, VALUE_V	heads and groups of GROUP values done together in values
 *	FOLD(a)			vreal4: the sums of 4 lanes each of the SUB vectors of a group,
 *				half on half: with lanes 0..15,
 *				(0..3 + 8..11) + (4..7 + 12..15)
 */
#define GROUP 16
#define SUB (GROUP / VL)

/* Macros, so that no vector crosses a call. The tree of a sum ends in (0 + 2) + (1 + 3). */
#define ADD_SUM(out, a) do { \
	vreal4 q_ = FOLD(a); \
	*(out) += (q_[0] + q_[2]) + (q_[1] + q_[3]); \
} while (0)

#define PAIRS(q, r) (__builtin_shufflevector(q, r, 0, 4, 1, 5) + __builtin_shufflevector(q, r, 2, \
	6, 3, 7))

#define ADD_SUM4(out, a) do { \
	vreal4 q0_ = FOLD((a)[0]), q1_ = FOLD((a)[1]), q2_ = FOLD((a)[2]), q3_ = FOLD((a)[3]); \
	vreal4 x_ = PAIRS(q0_, q1_), y_ = PAIRS(q2_, q3_); \
	*(vreal4 *)(out) += __builtin_shufflevector(x_, y_, 0, 1, 4, 5) + \
	    __builtin_shufflevector(x_, y_, 2, 3, 6, 7); \
} while (0)

/* m (<= SCORE_M) heads against n (1 or 4) keys; whole groups only. */
INLINE TARGET void score_tile(const int m, const int n, real *s, int64_t lds, const real *q,
    int64_t ldq, const real *k,
    int w)
{
	V acc[SCORE_M][4][SUB];

	for (int h = 0; h < m; h++)
		for (int i = 0; i < n; i++)
			for (int u = 0; u < SUB; u++)
				acc[h][i][u] = V_ZERO;
	for (int j = 0; j + GROUP <= w; j += GROUP)
		for (int u = 0; u < SUB; u++) {
			V key[4];

			for (int i = 0; i < n; i++) {
				key[i] = V_LOAD(k + (int64_t)i * w + j + u * VL);
				V_KEEP(key[i]);
			}
			for (int h = 0; h < m; h++) {
				V x = V_LOAD(q + h * ldq + j + u * VL);

				for (int i = 0; i < n; i++)
					acc[h][i][u] += x * key[i];
			}
		}
	for (int h = 0; h < m; h++)
		if (n == 4)
			ADD_SUM4(s + h * lds, acc[h]);
		else
			ADD_SUM(s + h * lds, acc[h][0]);
}

static TARGET void scores(real *s, int64_t lds, const real *q, int64_t ldq, int heads,
    const real *k, int n, int w)
{
	int whole = w / GROUP * GROUP;

	for (int h = 0; h < heads; h += SCORE_M) {
		bool full = heads - h >= SCORE_M;
		int i = 0;

		for (; i + 4 <= n && full; i += 4)
			score_tile(SCORE_M, 4, s + h * lds + i, lds, q + h * ldq, ldq,
			    k + (int64_t)i * w, w);
		for (int g = h; g < heads && g < h + SCORE_M; g++) {
			int r = i;

			for (; r + 4 <= n; r += 4)
				score_tile(1, 4, s + g * lds + r, lds, q + g * ldq, ldq,
				    k + (int64_t)r * w, w);
			for (; r < n; r++)
				score_tile(1, 1, s + g * lds + r, lds, q + g * ldq, ldq,
				    k + (int64_t)r * w, w);
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

/* m (<= VALUE_M) heads, v (<= VALUE_V) groups of all n values. */
INLINE TARGET void value_tile(const int m, const int v, real *o, int64_t ldo, const real *p,
    int64_t ldp, const real *x,
    int n, int w)
{
	V acc[VALUE_M][VALUE_V * SUB];

	for (int h = 0; h < m; h++)
		for (int j = 0; j < v * SUB; j++)
			acc[h][j] = V_LOAD(o + h * ldo + j * VL);
	for (int i = 0; i < n; i++, x += w) {
		V val[VALUE_V * SUB];

		for (int j = 0; j < v * SUB; j++) {
			val[j] = V_LOAD(x + j * VL);
			V_KEEP(val[j]);
		}
		for (int h = 0; h < m; h++) {
			V y = V_SET1(p[h * ldp + i]);

			for (int j = 0; j < v * SUB; j++)
				acc[h][j] += y * val[j];
		}
	}
	for (int h = 0; h < m; h++)
		for (int j = 0; j < v * SUB; j++)
			V_STORE(o + h * ldo + j * VL, acc[h][j]);
}

INLINE TARGET void value_heads(const int m, real *o, int64_t ldo, const real *p, int64_t ldp,
    const real *x, int n, int w)
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

static TARGET void values(real *o, int64_t ldo, const real *p, int64_t ldp, int heads,
    const real *x, int n, int w)
{
	int h = 0;

	for (; h + VALUE_M <= heads; h += VALUE_M)
		value_heads(VALUE_M, o + h * ldo, ldo, p + h * ldp, ldp, x, n, w);
	for (; h < heads; h++)
		value_heads(1, o + h * ldo, ldo, p + h * ldp, ldp, x, n, w);
}

/* Scales n scores in place and returns the largest, or max if that is larger. */
static TARGET real scale_max(real *s, int n, real scale, real max)
{
	real m[GROUP];
	int i = 0;

	for (int j = 0; j < GROUP; j++)
		m[j] = max;
	for (; i + GROUP <= n; i += GROUP)
		for (int j = 0; j < GROUP; j++) {
			s[i + j] *= scale;
			m[j] = s[i + j] > m[j] ? s[i + j] : m[j];
		}
	for (; i < n; i++) {
		s[i] *= scale;
		max = s[i] > max ? s[i] : max;
	}
	for (int j = 0; j < GROUP; j++)
		max = m[j] > max ? m[j] : max;
	return max;
}

static TARGET void soften(struct softmax *h, real *s, int n, real scale, real *o, int w)
{
	real max = scale_max(s, n, scale, h->max), back = h->max < max - 87 ? 0
	    : kexp(h->max - max);

	h->sum = h->sum * back + exp_sum(s, n, max);
	h->max = max;
	for (int j = 0; j < w && back != 1; j++)
		o[j] *= back;
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
			unpack_q8(x + (int64_t)i * w, (const char *)rows + (size_t)i *
			    kv_head_bytes(t, w), w);
}
