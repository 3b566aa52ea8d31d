#include "base/crc.h"

#include <zlib.h>

#ifdef __x86_64__
#include <immintrin.h>

/*
 * Folding, after Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ
 * Instruction" (Intel, 2009): a block times x^n mod P keeps its remainder n bits further on, so
 * blocks are multiplied onto later ones until 16 bytes are left. The constants are x^(n+32) and
 * x^(n-32) mod P for n = 512 and 128, bit-reflected.
 */
__attribute__((target("pclmul,sse4.1"))) static inline __m128i fold(__m128i a, __m128i by,
    __m128i next)
{
	return _mm_xor_si128(next, _mm_xor_si128(_mm_clmulepi64_si128(a, by, 0x00),
	    _mm_clmulepi64_si128(a, by, 0x11)));
}

/* n >= 64 */
__attribute__((target("pclmul,sse4.1"))) static uint32_t crc_folded(const unsigned char *p,
    size_t n)
{
	const __m128i by64 = _mm_set_epi64x(0x1c6e41596, 0x154442bd4),
	    by16 = _mm_set_epi64x(0x0ccaa009e, 0x1751997d0);
	unsigned char last[16];
	__m128i x[4];
	int i;

	for (i = 0; i < 4; i++)
		x[i] = _mm_loadu_si128((const __m128i *)(const void *)p + i);
	/* CRC-32 starts from all ones */
	x[0] = _mm_xor_si128(x[0], _mm_cvtsi32_si128(-1));
	for (p += 64, n -= 64; n >= 64; p += 64, n -= 64)
		for (i = 0; i < 4; i++)
			x[i] = fold(x[i], by64, _mm_loadu_si128((const __m128i *)(const void *)p +
			    i));
	for (i = 1; i < 4; i++)
		x[i] = fold(x[i - 1], by16, x[i]);
	_mm_storeu_si128((__m128i *)(void *)last, x[3]);
	/* zlib inverts what it is given: all ones make it start from zero, since the start is in
	 * x[0] already. */
	return (uint32_t)crc32_z(crc32_z(0xffffffff, last, sizeof last), p, n);
}

uint32_t crc_32(const void *p, size_t n)
{
	if (n >= 64 && __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1"))
		return crc_folded(p, n);
	return (uint32_t)crc32_z(0, p, n);
}

#else

uint32_t crc_32(const void *p, size_t n)
{
	return (uint32_t)crc32_z(0, p, n);
}

#endif

uint32_t crc_32_more(uint32_t crc, const void *p, size_t n)
{
	return n < 4096 ? (uint32_t)crc32_z(crc, p, n)
	    : (uint32_t)crc32_combine(crc, crc_32(p, n), (z_off_t)n);
}
