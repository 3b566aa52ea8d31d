/* Matrices in blocks with AVX2: as with VNNI, but the 16-bit sums of pairs would overflow with
 * bytes from 0 on, so Q8 goes by the absolute values of activations and weights that took their
 * signs. */
#include "backend/cpu/cpu_quant.h"

#if defined(__x86_64__) && !defined(CHR_DOUBLE)
#include <immintrin.h>

#define TARGET __attribute__((target("avx2,f16c,fma")))
#define INLINE static inline __attribute__((always_inline)) TARGET

/* Sums of quads: w (32) unsigned bytes times a signed */
INLINE __m256i quads(__m256i sum, __m256i w, __m256i a)
{
	return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, a),
	    _mm256_set1_epi16(1)));
}

INLINE __m256i quad(const int8_t *q, int j)
{
	int32_t x;

	__builtin_memcpy(&x, q + j * 4, sizeof(x));
	return _mm256_set1_epi32(x);
}

INLINE void block_q8(__m256i sum[2], const uint8_t *v, const int8_t *q)
{
	for (int j = 0; j < 8; j++) {
		__m256i a = quad(q, j), abs = _mm256_abs_epi8(a), bias = _mm256_set1_epi8(-128);

		for (int half = 0; half < 2; half++) {
			__m256i w = _mm256_loadu_si256((const __m256i *)(v + j * 64 + half * 32));

			sum[half] = quads(sum[half], abs,
			    _mm256_sign_epi8(_mm256_xor_si256(w, bias), a));
		}
	}
}

INLINE void block_q4(__m256i sum[2], const uint8_t *v, const int8_t *q)
{
	const __m256i low = _mm256_set1_epi8(15);

	for (int j = 0; j < 4; j++)
		for (int half = 0; half < 2; half++) {
			__m256i w = _mm256_loadu_si256((const __m256i *)(v + j * 64 + half * 32));

			sum[half] = quads(sum[half], _mm256_and_si256(w, low), quad(q, j));
			sum[half] = quads(sum[half], _mm256_and_si256(_mm256_srli_epi16(w, 4), low),
			    quad(q, j + 4));
		}
}

static TARGET void mul(float *out, const void *panel, enum dtype t, int cols, const void *rows,
    int m)
{
	const uint8_t *values = (const uint8_t *)panel + quant_scale_bytes(t, cols);
	int per = t == DT_Q4A ? 2 : 1;

	for (int i = 0; i < m; i++) {
		struct quant_row a = quant_row_at(rows, i, cols);
		__m256 acc[2] = { _mm256_setzero_ps(), _mm256_setzero_ps() };
		const uint16_t *scale = panel;
		const uint8_t *v = values;

		for (int b = 0; b < quant_blocks(cols); b++, scale += per * QUANT_PANEL,
		    v += t == DT_Q8 ? 512 : 256) {
			__m256i start = _mm256_set1_epi32(t == DT_Q4 ? a.off[b] / 16 : 0),
			    sum[2] = { start, start };
			__m256 s = _mm256_set1_ps(a.d[b]);

			if (t == DT_Q8)
				block_q8(sum, v, a.q + b * QUANT_BLOCK);
			else
				block_q4(sum, v, a.q + b * QUANT_BLOCK);
			for (int half = 0; half < 2; half++) {
				__m256 d = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(scale +
				    half * 8)));
				__m256 x = _mm256_mul_ps(_mm256_cvtepi32_ps(sum[half]),
				    _mm256_mul_ps(d, s));

				if (t == DT_Q4A) {
					d = _mm256_cvtph_ps(
					    _mm_loadu_si128((const __m128i *)(scale + QUANT_PANEL +
					    half * 8)));
					x = _mm256_add_ps(x,
					    _mm256_mul_ps(_mm256_set1_ps((float)(a.off[b] / -128)),
					    _mm256_mul_ps(d, s)));
				}
				acc[half] = _mm256_add_ps(acc[half], x);
			}
		}
		_mm256_storeu_ps(out + i * QUANT_PANEL, acc[0]);
		_mm256_storeu_ps(out + i * QUANT_PANEL + 8, acc[1]);
	}
}

static void row(struct quant_row to, const float *x, int cols)
{
	quant_kernels_portable.row(to, x, cols);
}

const struct quant_kernels quant_kernels_avx2 = { "avx2", mul, row };
#endif
