/* Inner loops for AVX2 and FMA. */
#include "backend/cpu/cpu_kernels.h"

#if defined(__x86_64__) && !defined(CHR_DOUBLE)
#include <immintrin.h>

#define TARGET __attribute__((target("avx2,fma,f16c")))

static inline TARGET __m256i lanes(int n)
{
	static const int32_t m[16] = { -1, -1, -1, -1, -1, -1, -1, -1 };

	return _mm256_loadu_si256((const __m256i *)(m + 8 - n));
}

typedef float vreal4 __attribute__((vector_size(16), aligned(4), may_alias));

/* Sums of four vectors: within 128-bit halves first, then across. */
static inline __attribute__((always_inline)) TARGET vreal4 sum4(__m256 a, __m256 b, __m256 c,
    __m256 d)
{
	__m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
	__m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
	__m256 s = _mm256_add_ps(
	    _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(ab), _mm256_castps_pd(cd))),
	    _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(ab), _mm256_castps_pd(cd))));

	return (vreal4)_mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
}

static inline TARGET vreal4 fold(__m256 a, __m256 b)
{
	__m256 s = _mm256_add_ps(a, b);

	return (vreal4)_mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
}

static inline __attribute__((always_inline)) TARGET __m256 widened(__m128i h, enum dtype t)
{
	return t == DT_F16 ? _mm256_cvtph_ps(h)
	    : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

static inline TARGET __m128i load16(const uint16_t *p, int n)
{
	uint16_t h[8] = { 0 };

	for (int i = 0; i < n; i++)
		h[i] = p[i];
	return _mm_loadu_si128((const __m128i *)h);
}

/* The bits of 8 E4M3 as halves are their values times 2^-8, subnormals too. */
static inline __attribute__((always_inline)) TARGET __m256 eighths(const uint8_t *p)
{
	__m128i h = _mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i *)p));

	return _mm256_cvtph_ps(_mm_and_si128(_mm_slli_epi16(h, 7), _mm_set1_epi16((short)0xbf80)));
}

/* Eight of the positive numbers x by the three bits from `at` on, with the sign that follows. */
static inline __attribute__((always_inline)) TARGET __m256 pick(__m256 x, __m256i w, const int at)
{
	__m256i sign = _mm256_and_si256(_mm256_slli_epi32(w, 28 - at),
	    _mm256_set1_epi32((int)0x80000000));

	return _mm256_or_ps(_mm256_permutevar8x32_ps(x, _mm256_srli_epi32(w, at)),
	    _mm256_castsi256_ps(sign));
}

#define KERNELS cpu_kernels_avx2
#define ISA "avx2"
#define V __m256
#define VL 8
#define V_ZERO _mm256_setzero_ps()
#define V_LOAD(p) _mm256_loadu_ps(p)
#define V_LOADN(p, n) _mm256_maskload_ps(p, lanes(n))
#define V_LOAD16(p, t) widened(_mm_loadu_si128((const __m128i *)(p)), t)
#define V_LOAD16N(p, n, t) widened(load16(p, n), t)
#define V_MUL(a, b) _mm256_mul_ps(a, b)
#define V_E4M3(p) eighths(p)
#define W __m256i
#define W_LOAD(p) _mm256_loadu_si256((const __m256i *)(p))
#define V_E2M1 _mm256_setr_ps(0, 0.5f, 1, 1.5f, 2, 3, 4, 6)
#define V_PICK(x, w, at) pick(x, w, at)
#define PANEL_ROWS 8
#define V_STORE(p, v) _mm256_storeu_ps(p, v)
#define V_STOREN(p, n, v) _mm256_maskstore_ps(p, lanes(n), v)
#define V_SET1(x) _mm256_set1_ps(x)
#define V_FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#define V_KEEP(v) __asm__("" : "+x"(v))
#define V_SUM4(a, b, c, d) sum4(a, b, c, d)
#define NT_M 3
#define NN_M 4
#define NN_V 2
#define FOLD(a) fold((a)[0], (a)[1])
#define SCORE_M 1
#define VALUE_M 2
#define VALUE_V 2
#include "backend/cpu/cpu_template.h"
#endif
