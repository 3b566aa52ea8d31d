/* Inner loops for AVX-512 (F, BW, DQ, VL). */
#include "backend/cpu/cpu_kernels.h"

#if defined(__x86_64__) && !defined(CHR_DOUBLE)
#include <immintrin.h>

/* clang ignores a whole target string that has prefer-vector-width, and needs it less: the
 * vectors are explicit. */
#ifdef __clang__
#define WIDTH ""
#else
#define WIDTH ",prefer-vector-width=512"
#endif
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma" WIDTH)))

typedef float vreal4 __attribute__((vector_size(16), aligned(4), may_alias));

/* Sums of four vectors: within 128-bit quarters, then across. */
static inline __attribute__((always_inline)) TARGET vreal4 sum4(__m512 a, __m512 b, __m512 c,
    __m512 d)
{
	__m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
	__m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
	__m512 s = _mm512_add_ps(
	    _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))),
	    _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))));
	__m256 h = _mm256_add_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));

	return (vreal4)_mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
}

static inline TARGET vreal4 fold(__m512 a)
{
	__m256 h = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));

	return (vreal4)_mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
}

static inline __attribute__((always_inline)) TARGET __m512 widened(__m256i h, enum dtype t)
{
	return t == DT_F16 ? _mm512_cvtph_ps(h)
	    : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

/* The bits of 16 E4M3 as halves are their values times 2^-8, subnormals too. */
static inline __attribute__((always_inline)) TARGET __m512 eighths(const uint8_t *p)
{
	__m256i h = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p));

	return _mm512_cvtph_ps(_mm256_and_si256(_mm256_slli_epi16(h, 7),
	    _mm256_set1_epi16((short)0xbf80)));
}

#define LANES(n) ((__mmask16)((1u << (n)) - 1))
#define KERNELS cpu_kernels_avx512
#define ISA "avx512"
#define V __m512
#define VL 16
#define V_ZERO _mm512_setzero_ps()
#define V_LOAD(p) _mm512_loadu_ps(p)
#define V_LOADN(p, n) _mm512_maskz_loadu_ps(LANES(n), p)
#define V_LOAD16(p, t) widened(_mm256_loadu_si256((const __m256i *)(p)), t)
#define V_LOAD16N(p, n, t) widened(_mm256_maskz_loadu_epi16(LANES(n), p), t)
#define V_MUL(a, b) _mm512_mul_ps(a, b)
#define V_E4M3(p) eighths(p)
#define W __m512i
#define W_LOAD(p) _mm512_loadu_si512(p)
#define V_E2M1 _mm512_setr_ps(0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6)
#define V_PICK(x, w, at) _mm512_permutexvar_ps(_mm512_srli_epi32(w, at), x)
#define PANEL_ROWS 16
#define V_STORE(p, v) _mm512_storeu_ps(p, v)
#define V_STOREN(p, n, v) _mm512_mask_storeu_ps(p, LANES(n), v)
#define V_SET1(x) _mm512_set1_ps(x)
#define V_FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define V_KEEP(v) __asm__("" : "+v"(v))
#define V_SUM4(a, b, c, d) sum4(a, b, c, d)
#define NT_M 6
#define NN_M 8
#define NN_V 3
#define FOLD(a) fold((a)[0])
#define SCORE_M 2
#define VALUE_M 2
#define VALUE_V 4
#include "backend/cpu/cpu_template.h"
#endif
