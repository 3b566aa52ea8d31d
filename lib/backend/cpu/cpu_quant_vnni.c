/* Matrices in blocks with AVX-512 VNNI: a vector is one quad of values of 16 rows of weights, as
 * bytes from 0 on; the product with signed activations is too large by 128 (or 8) times their
 * sum, with which the sums therefore begin. */
#include "backend/cpu/cpu_quant.h"

#if defined(__x86_64__) && !defined(CHR_DOUBLE)
#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c,fma")))
#define INLINE static inline __attribute__((always_inline)) TARGET
#define AHEAD 2048	/* bytes: the hardware's prefetch ends with the page */

INLINE __m512i quad(const int8_t *q, int j)
{
	int32_t x;

	__builtin_memcpy(&x, q + j * 4, sizeof(x));
	return _mm512_set1_epi32(x);
}

/* One block of Q8 (values (8, 16, 4)) or of 4 bits (values (4, 16, 4)) into the integer sums of
 * m rows. */
INLINE void block(__m512i *sum, const uint8_t *v, const int8_t *const *q, const int m,
    const int four)
{
	const __m512i low = _mm512_set1_epi8(15);

	for (int j = 0; j < (four ? 4 : 8); j++) {
		__m512i w = _mm512_loadu_si512(v + j * 64), hi = _mm512_setzero_si512();

		_mm_prefetch((const char *)v + j * 64 + AHEAD, _MM_HINT_T0);
		if (four) {
			hi = _mm512_and_si512(_mm512_srli_epi16(w, 4), low);
			w = _mm512_and_si512(w, low);
		}
		for (int i = 0; i < m; i++) {
			sum[i] = _mm512_dpbusd_epi32(sum[i], w, quad(q[i], j));
			if (four)
				sum[i] = _mm512_dpbusd_epi32(sum[i], hi, quad(q[i], j + 4));
		}
	}
}

INLINE void panel_mul(float *out, const uint16_t *scale, const uint8_t *v,
    const struct quant_row *a, int nb, const int m,
    const enum dtype t)
{
	__m512 acc[QUANT_ROWS];

	for (int i = 0; i < m; i++)
		acc[i] = _mm512_setzero_ps();
	for (int b = 0; b < nb; b++) {
		__m512 d = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)scale)), min = d;
		const int8_t *q[QUANT_ROWS];
		__m512i sum[QUANT_ROWS];

		if (t == DT_Q4A)
			min = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(scale +
			    QUANT_PANEL)));
		for (int i = 0; i < m; i++) {
			q[i] = a[i].q + b * QUANT_BLOCK;
			sum[i] = t == DT_Q4A ? _mm512_setzero_si512()
			    : _mm512_set1_epi32(a[i].off[b]);
			if (t == DT_Q4)
				sum[i] = _mm512_srai_epi32(sum[i], 4);
		}
		block(sum, v, q, m, t != DT_Q8);
		for (int i = 0; i < m; i++) {
			__m512 s = _mm512_set1_ps(a[i].d[b]);
			__m512 x = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[i]), _mm512_mul_ps(d, s));

			if (t == DT_Q4A)
				x = _mm512_add_ps(x,
				    _mm512_mul_ps(_mm512_set1_ps((float)(a[i].off[b] / -128)),
				    _mm512_mul_ps(min, s)));
			acc[i] = _mm512_add_ps(acc[i], x);
		}
		scale += QUANT_PANEL * (t == DT_Q4A ? 2 : 1);
		v += t == DT_Q8 ? 512 : 256;
	}
	for (int i = 0; i < m; i++)
		_mm512_storeu_ps(out + i * QUANT_PANEL, acc[i]);
}

#define CASE(M) case M: panel_mul(out, scale, v, a, nb, M, t); break
#define ROWS_OF(name, type) \
static TARGET void name(float *out, const uint16_t *scale, const uint8_t *v, \
    const struct quant_row *a, int nb, int m) \
{ \
	const enum dtype t = type; \
\
	switch (m) { \
	CASE(1); CASE(2); CASE(3); CASE(4); CASE(5); CASE(6); CASE(7); CASE(8); \
	} \
}

ROWS_OF(mul_q8, DT_Q8)
ROWS_OF(mul_q4, DT_Q4)
ROWS_OF(mul_q4a, DT_Q4A)

static void mul(float *out, const void *panel, enum dtype t, int cols, const void *rows, int m)
{
	const uint8_t *v = (const uint8_t *)panel + quant_scale_bytes(t, cols);
	struct quant_row a[QUANT_ROWS];

	for (int i = 0; i < m; i++)
		a[i] = quant_row_at(rows, i, cols);
	(t == DT_Q8 ? mul_q8 : t == DT_Q4 ? mul_q4 : mul_q4a)(out, panel, v, a, quant_blocks(cols),
	    m);
}

static TARGET void row(struct quant_row to, const float *x, int cols)
{
	for (int b = 0; b < quant_blocks(cols); b++, x += QUANT_BLOCK, to.q += QUANT_BLOCK) {
		int n = cols - b * QUANT_BLOCK < QUANT_BLOCK ? cols - b * QUANT_BLOCK : QUANT_BLOCK;
		uint32_t mask = n == 32 ? 0xffffffffu : (1u << n) - 1;
		__m512 lo = _mm512_maskz_loadu_ps((__mmask16)mask, x);
		__m512 hi = _mm512_maskz_loadu_ps((__mmask16)(mask >> 16), x + 16);
		float max = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(lo),
		    _mm512_abs_ps(hi)));
		__m512 inv = _mm512_set1_ps(max > 0 ? 127 / max : 0);
		__m512i ql = _mm512_cvtps_epi32(_mm512_mul_ps(lo, inv)),
		    qh = _mm512_cvtps_epi32(_mm512_mul_ps(hi, inv));

		to.d[b] = max / 127;
		to.off[b] = -128 * _mm512_reduce_add_epi32(_mm512_add_epi32(ql, qh));
		_mm_storeu_si128((__m128i *)to.q, _mm512_cvtepi32_epi8(ql));
		_mm_storeu_si128((__m128i *)(to.q + 16), _mm512_cvtepi32_epi8(qh));
	}
}

const struct quant_kernels quant_kernels_vnni = { "vnni", mul, row };
#endif
