#include "base/sha256.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static const uint32_t sha256_k[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
	    0xab1c5ed5,
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7,
	    0xc19bf174,
	0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc,
	    0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351,
	    0x14292967,
	0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e,
	    0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585,
	    0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
	    0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
	    0xc67178f2,
};

static uint32_t rotr(uint32_t x, int n)
{
	return x >> n | x << (32 - n);
}

/* One round; what is called a in it is called b in the next, and so on, by who passes them. */
static inline void sha256_round(uint32_t a, uint32_t b, uint32_t c, uint32_t *d, uint32_t e,
    uint32_t f, uint32_t g,
    uint32_t *h, uint32_t kw)
{
	uint32_t t = *h + (rotr(e, 6) ^ rotr(e, 11) ^ rotr(e, 25)) + ((e & f) ^ (~e & g)) + kw;

	*d += t;
	*h = t + (rotr(a, 2) ^ rotr(a, 13) ^ rotr(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
}

static void sha256_block(uint32_t s[8], const uint8_t *p)
{
	uint32_t w[64], a = s[0], b = s[1], c = s[2], d = s[3], e = s[4], f = s[5], g = s[6],
	    h = s[7];

	for (int i = 0; i < 16; i++)
		w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 |
		    (uint32_t)p[4 * i + 2] << 8
			| p[4 * i + 3];
	for (int i = 16; i < 64; i++) {
		uint32_t x = w[i - 15], y = w[i - 2];

		w[i] = w[i - 16] + (rotr(x, 7) ^ rotr(x, 18) ^ x >> 3)
			+ w[i - 7] + (rotr(y, 17) ^ rotr(y, 19) ^ y >> 10);
	}
	for (int i = 0; i < 64; i++)
		w[i] += sha256_k[i];
	for (int i = 0; i < 64; i += 8) {
		sha256_round(a, b, c, &d, e, f, g, &h, w[i]);
		sha256_round(h, a, b, &c, d, e, f, &g, w[i + 1]);
		sha256_round(g, h, a, &b, c, d, e, &f, w[i + 2]);
		sha256_round(f, g, h, &a, b, c, d, &e, w[i + 3]);
		sha256_round(e, f, g, &h, a, b, c, &d, w[i + 4]);
		sha256_round(d, e, f, &g, h, a, b, &c, w[i + 5]);
		sha256_round(c, d, e, &f, g, h, a, &b, w[i + 6]);
		sha256_round(b, c, d, &e, f, g, h, &a, w[i + 7]);
	}
	s[0] += a, s[1] += b, s[2] += c, s[3] += d, s[4] += e, s[5] += f, s[6] += g, s[7] += h;
}

static void sha256_blocks(uint32_t s[8], const uint8_t *p, size_t n)
{
	for (; n > 0; n--, p += 64)
		sha256_block(s, p);
}

#ifdef __x86_64__
#include <cpuid.h>
#include <immintrin.h>

/*
 * The processor's own instructions, four rounds at a time. They want the state as two registers,
 * (a b e f) and (c d g h), highest first; m holds the last sixteen words.
 */
__attribute__((target("sha,sse4.1"))) static void sha256_blocks_ni(uint32_t s[8], const uint8_t *p,
    size_t n)
{
	const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
	__m128i *at = (__m128i *)(void *)s, x = _mm_shuffle_epi32(_mm_loadu_si128(at), 0xb1);
	__m128i y = _mm_shuffle_epi32(_mm_loadu_si128(at + 1), 0x1b), abef = _mm_alignr_epi8(x, y,
	    8);
	__m128i cdgh = _mm_blend_epi16(y, x, 0xf0), m[4];

	for (; n > 0; n--, p += 64) {
		__m128i abef0 = abef, cdgh0 = cdgh;

		for (int i = 0; i < 16; i++) {
			__m128i *w = &m[i % 4], last = m[(i + 3) % 4];

			if (i < 4)
				*w = _mm_shuffle_epi8(
				    _mm_loadu_si128((const __m128i *)(const void *)p + i), swap);
			else
				*w = _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(*w,
				    m[(i + 1) % 4]),
					_mm_alignr_epi8(last, m[(i + 2) % 4], 4)), last);
			x = _mm_add_epi32(*w,
			    _mm_loadu_si128((const __m128i *)(const void *)sha256_k + i));
			cdgh = _mm_sha256rnds2_epu32(cdgh, abef, x);
			abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(x, 0x0e));
		}
		abef = _mm_add_epi32(abef, abef0);
		cdgh = _mm_add_epi32(cdgh, cdgh0);
	}
	x = _mm_shuffle_epi32(abef, 0x1b);
	y = _mm_shuffle_epi32(cdgh, 0xb1);
	_mm_storeu_si128(at, _mm_blend_epi16(x, y, 0xf0));
	_mm_storeu_si128(at + 1, _mm_alignr_epi8(y, x, 8));
}

static bool have_ni(void)
{
	const char *isa = getenv("CHR_ISA");
	unsigned a, b, c, d;

	return (isa == NULL || strcmp(isa, "portable") != 0) && __builtin_cpu_supports("sse4.1") &&
		__get_cpuid_count(7, 0, &a, &b, &c, &d) && b >> 29 & 1;
}

static void add_blocks(uint32_t s[8], const uint8_t *p, size_t n)
{
	static _Atomic int ni;		/* 0: not known yet */

	if (ni == 0)
		ni = have_ni() ? 1 : -1;
	if (ni > 0)
		sha256_blocks_ni(s, p, n);
	else
		sha256_blocks(s, p, n);
}

#else

static void add_blocks(uint32_t s[8], const uint8_t *p, size_t n)
{
	sha256_blocks(s, p, n);
}

#endif

void sha256_init(struct sha256 *s)
{
	*s = (struct sha256){ .h = { 0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
		0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19 } };
}

void sha256_update(struct sha256 *s, const void *buf, size_t len)
{
	const uint8_t *p = buf;
	size_t have = s->len % 64;

	if (!len)
		return;
	s->len += len;
	if (have) {
		size_t n = 64 - have < len ? 64 - have : len;

		memcpy(s->block + have, p, n);
		if (have + n < 64)
			return;
		add_blocks(s->h, s->block, 1);
		p += n;
		len -= n;
	}
	add_blocks(s->h, p, len / 64);
	memcpy(s->block, p + len / 64 * 64, len % 64);
}

void sha256_final(struct sha256 *s, uint8_t digest[32])
{
	uint64_t bits = s->len * 8;
	uint8_t pad[72] = { 0x80 };
	size_t n = (s->len % 64 < 56 ? 56 : 120) - s->len % 64;

	for (int i = 0; i < 8; i++)
		pad[n + (size_t)i] = (uint8_t)(bits >> (56 - 8 * i));
	sha256_update(s, pad, n + 8);
	for (int i = 0; i < 32; i++)
		digest[i] = (uint8_t)(s->h[i / 4] >> (24 - 8 * (i % 4)));
}

void sha256_hex(const void *buf, size_t len, char out[65])
{
	struct sha256 s;
	uint8_t d[32];

	sha256_init(&s);
	sha256_update(&s, buf, len);
	sha256_final(&s, d);
	for (int i = 0; i < 32; i++) {
		out[2 * i] = "0123456789abcdef"[d[i] >> 4];
		out[2 * i + 1] = "0123456789abcdef"[d[i] & 15];
	}
	out[64] = '\0';
}
