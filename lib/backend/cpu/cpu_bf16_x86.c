/* BF16 tiles with AVX512-BF16, and with AMX (Intel 64 and IA-32 Architectures SDM, volume 1,
 * chapter 18). */
#include "backend/cpu/cpu_bf16.h"

#if defined(__x86_64__) && !defined(CHR_DOUBLE)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")))
#define TARGET_AMX __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma," \
	"amx-tile,amx-bf16")))
#define INLINE static inline __attribute__((always_inline)) TARGET

#define XFEATURE_TILE_DATA 18
#define ARCH_REQ_XCOMP_PERM 0x1023

/* ---- into tiles ---- */

static inline __mmask16 lanes(int n)
{
	return n >= 16 ? 0xffff : n > 0 ? (__mmask16)((1u << n) - 1) : 0;
}

/* Transposes 16 x 16 words. */
INLINE void transpose(__m512i v[16])
{
	__m512i t[16];

	for (int i = 0; i < 16; i += 4) {
		__m512i a = _mm512_unpacklo_epi32(v[i], v[i + 1]), b = _mm512_unpackhi_epi32(v[i],
		    v[i + 1]);
		__m512i c = _mm512_unpacklo_epi32(v[i + 2], v[i + 3]),
		    d = _mm512_unpackhi_epi32(v[i + 2], v[i + 3]);

		t[i] = _mm512_unpacklo_epi64(a, c);
		t[i + 1] = _mm512_unpackhi_epi64(a, c);
		t[i + 2] = _mm512_unpacklo_epi64(b, d);
		t[i + 3] = _mm512_unpackhi_epi64(b, d);
	}
	for (int i = 0; i < 4; i++) {
		__m512i a = _mm512_shuffle_i32x4(t[i], t[i + 4], 0x88),
		    b = _mm512_shuffle_i32x4(t[i], t[i + 4], 0xdd);
		__m512i c = _mm512_shuffle_i32x4(t[i + 8], t[i + 12], 0x88),
		    d = _mm512_shuffle_i32x4(t[i + 8], t[i + 12], 0xdd);

		v[i] = _mm512_shuffle_i32x4(a, c, 0x88);
		v[i + 8] = _mm512_shuffle_i32x4(a, c, 0xdd);
		v[i + 4] = _mm512_shuffle_i32x4(b, d, 0x88);
		v[i + 12] = _mm512_shuffle_i32x4(b, d, 0xdd);
	}
}

INLINE void store(uint32_t *tile, __m512i v[16], bool transposed)
{
	if (transposed)
		transpose(v);
	for (int i = 0; i < 16; i++)
		_mm512_store_si512(tile + i * 16, v[i]);
}

/* Asks for the same place in the next panel: 16 rows are too many streams for the hardware's own
 * prefetch. */
INLINE __m512i whole_row(const float *x, int64_t ld)
{
	_mm_prefetch((const char *)(x + 16 * ld), _MM_HINT_T0);
	_mm_prefetch((const char *)(x + 16 * ld + 16), _MM_HINT_T0);
	return (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + 16), _mm512_loadu_ps(x));
}

INLINE __m512i part_row(const float *x, int k)
{
	__m512 hi = k > 16 ? _mm512_maskz_loadu_ps(lanes(k - 16), x + 16) : _mm512_setzero_ps();

	return (__m512i)_mm512_cvtne2ps_pbh(hi, _mm512_maskz_loadu_ps(lanes(k), x));
}

/* Rows with k consecutive: a row is the next 16 pairs. */
INLINE void pack_rows(uint32_t *tile, const float *x, int64_t ld, int rows, int k, bool pair_major)
{
	for (int p = 0; p < k; p += 32, tile += BF16_TILE_WORDS) {
		__m512i v[16];

		if (rows == 16 && k - p >= 32)
			for (int r = 0; r < 16; r++)
				v[r] = whole_row(x + r * ld + p, ld);
		else
			for (int r = 0; r < 16; r++)
				v[r] = r < rows ? part_row(x + r * ld + p, k - p)
				    : _mm512_setzero_si512();
		store(tile, v, pair_major);
	}
}

/* Rows side by side: two neighbours along k become the halves of words. */
INLINE void pack_columns(uint32_t *tile, const float *x, int64_t ld, int rows, int k,
    bool pair_major)
{
	const __m512i halves = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25,
	    9, 24, 8, 23, 7, 22, 6, 21, 5,
	    20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
	__mmask16 in = lanes(rows);

	for (int p = 0; p < k; p += 32, tile += BF16_TILE_WORDS) {
		__m512i v[16];

		for (int q = 0; q < 16; q++) {
			int at = p + 2 * q;
			__m512 lo = at < k ? _mm512_maskz_loadu_ps(in, x + at * ld)
			    : _mm512_setzero_ps();
			__m512 hi = at + 1 < k ? _mm512_maskz_loadu_ps(in, x + (at + 1) * ld)
			    : _mm512_setzero_ps();

			v[q] = _mm512_permutexvar_epi16(halves, (__m512i)_mm512_cvtne2ps_pbh(hi,
			    lo));
		}
		store(tile, v, !pair_major);
	}
}

static TARGET void pack(uint32_t *tile, const float *x, int64_t ld, int rows, int k, bool k_major,
    bool pair_major)
{
	if (k_major && pair_major)
		pack_columns(tile, x, ld, rows, k, true);
	else if (k_major)
		pack_columns(tile, x, ld, rows, k, false);
	else if (pair_major)
		pack_rows(tile, x, ld, rows, k, true);
	else
		pack_rows(tile, x, ld, rows, k, false);
}

/* ---- AVX512-BF16 ---- */

/* Rows of C (m of them, all in one panel of A) against v (1 or 2) panels of B. */
INLINE void mul_part(const int m, const int v, int tiles, const uint32_t *a, const uint32_t *b,
    float *c, int64_t ldc,
    bool add)
{
	__m512 acc[8][2];

	for (int i = 0; i < m; i++)
		for (int j = 0; j < v; j++)
			__builtin_prefetch(c + i * ldc + (v + j) * 16, 1);
	for (int i = 0; i < m; i++)
		for (int j = 0; j < v; j++)
			acc[i][j] = add ? _mm512_loadu_ps(c + i * ldc + j * 16)
			    : _mm512_setzero_ps();
	for (int t = 0; t < tiles; t++, a += BF16_TILE_WORDS, b += BF16_TILE_WORDS)
		for (int q = 0; q < 16; q++) {
			__m512i bv[2];

			for (int j = 0; j < v; j++)
				bv[j] = _mm512_load_si512(b + (int64_t)j * tiles * BF16_TILE_WORDS +
				    q * 16);
			for (int i = 0; i < m; i++) {
				__m512i av = _mm512_set1_epi32((int)a[i * 16 + q]);

				for (int j = 0; j < v; j++)
					acc[i][j] = _mm512_dpbf16_ps(acc[i][j], (__m512bh)av,
					    (__m512bh)bv[j]);
			}
		}
	for (int i = 0; i < m; i++)
		for (int j = 0; j < v; j++)
			_mm512_storeu_ps(c + i * ldc + j * 16, acc[i][j]);
}

static TARGET void mul_avx512(int m, int n, int tiles, const uint32_t *a, const uint32_t *b,
    float *c, int64_t ldc, bool add)
{
	for (int i = 0; i < m; ) {
		const uint32_t *ai = a + (int64_t)(i / 16) * tiles * BF16_TILE_WORDS + i % 16 * 16;
		bool few = m - i <= 4;

		if (n > 16 && !few)
			mul_part(8, 2, tiles, ai, b, c + i * ldc, ldc, add);
		else if (n > 16)
			mul_part(4, 2, tiles, ai, b, c + i * ldc, ldc, add);
		else if (!few)
			mul_part(8, 1, tiles, ai, b, c + i * ldc, ldc, add);
		else
			mul_part(4, 1, tiles, ai, b, c + i * ldc, ldc, add);
		i += few ? 4 : 8;
	}
}

const struct bf16_kernels bf16_kernels_avx512 = { .isa = "avx512-bf16", .pack = pack,
    .mul = mul_avx512 };

/* ---- AMX: tiles 0 to 3 are C, 4 and 5 A, 6 and 7 B ---- */

static TARGET_AMX void amx_begin(void)
{
	/* palette 1, all eight tiles of 16 rows of 64 bytes */
	static const struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16];
	    uint8_t rows[16]; } config = {
		.palette = 1, .bytes = { 64, 64, 64, 64, 64, 64, 64, 64 }, .rows = { 16, 16, 16, 16,
		    16, 16, 16, 16 } };

	_tile_loadconfig(&config);
}

static TARGET_AMX void amx_end(void) { _tile_release(); }

/* The conditions are constants where this is inlined. */
static inline __attribute__((always_inline)) TARGET_AMX void amx_block(const bool two_m,
    const bool two_n, int tiles,
    const uint32_t *a, const uint32_t *b, float *c, int64_t ldc, bool add)
{
	const uint32_t *a1 = a + (int64_t)tiles * BF16_TILE_WORDS, *b1 = b + (int64_t)tiles *
	    BF16_TILE_WORDS;
	int64_t bytes = ldc * (int64_t)sizeof(*c);

	if (add) {
		_tile_loadd(0, c, bytes);
		if (two_n)
			_tile_loadd(1, c + 16, bytes);
		if (two_m)
			_tile_loadd(2, c + 16 * ldc, bytes);
		if (two_m && two_n)
			_tile_loadd(3, c + 16 * ldc + 16, bytes);
	} else {
		_tile_zero(0);
		_tile_zero(1);
		_tile_zero(2);
		_tile_zero(3);
	}
	for (int64_t t = 0; t < tiles; t++) {
		_tile_loadd(4, a + t * BF16_TILE_WORDS, 64);
		_tile_loadd(6, b + t * BF16_TILE_WORDS, 64);
		_tile_dpbf16ps(0, 4, 6);
		if (two_n) {
			_tile_loadd(7, b1 + t * BF16_TILE_WORDS, 64);
			_tile_dpbf16ps(1, 4, 7);
		}
		if (two_m) {
			_tile_loadd(5, a1 + t * BF16_TILE_WORDS, 64);
			_tile_dpbf16ps(2, 5, 6);
		}
		if (two_m && two_n)
			_tile_dpbf16ps(3, 5, 7);
	}
	_tile_stored(0, c, bytes);
	if (two_n)
		_tile_stored(1, c + 16, bytes);
	if (two_m)
		_tile_stored(2, c + 16 * ldc, bytes);
	if (two_m && two_n)
		_tile_stored(3, c + 16 * ldc + 16, bytes);
}

static TARGET_AMX void mul_amx(int m, int n, int tiles, const uint32_t *a, const uint32_t *b,
    float *c, int64_t ldc, bool add)
{
	if (m > 16 && n > 16)
		amx_block(true, true, tiles, a, b, c, ldc, add);
	else if (m > 16)
		amx_block(true, false, tiles, a, b, c, ldc, add);
	else if (n > 16)
		amx_block(false, true, tiles, a, b, c, ldc, add);
	else
		amx_block(false, false, tiles, a, b, c, ldc, add);
}

const struct bf16_kernels bf16_kernels_amx = { .isa = "amx-bf16", .pack = pack, .mul = mul_amx,
    .begin = amx_begin,
	.end = amx_end };

/* ---- what there is: by feature bits, since model numbers are wrong in virtual machines ---- */

bool bf16_have_avx512(void)
{
	unsigned a, b, c, d;

	return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
}

bool bf16_have_amx(void)
{
	unsigned a, b, c, d;

	if (!bf16_have_avx512() || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) ||
	    !(d >> 24 & 1))
		return false;
	return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_TILE_DATA) == 0;
}
#endif
