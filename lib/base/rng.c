#include "base/rng.h"

#include <math.h>

static void philox_round(uint32_t c[4], const uint32_t k[2])
{
	uint64_t p0 = (uint64_t)0xd2511f53 * c[0], p1 = (uint64_t)0xcd9e8d57 * c[2];
	uint32_t c0 = (uint32_t)(p1 >> 32) ^ c[1] ^ k[0];
	uint32_t c2 = (uint32_t)(p0 >> 32) ^ c[3] ^ k[1];

	c[0] = c0;
	c[1] = (uint32_t)p1;
	c[2] = c2;
	c[3] = (uint32_t)p0;
}

/* Key is the seed; the 128-bit counter is (counter, stream), low words first. */
void rng_philox(uint64_t seed, uint64_t stream, uint64_t counter, uint32_t out[4])
{
	uint32_t k[2] = { (uint32_t)seed, (uint32_t)(seed >> 32) };

	out[0] = (uint32_t)counter;
	out[1] = (uint32_t)(counter >> 32);
	out[2] = (uint32_t)stream;
	out[3] = (uint32_t)(stream >> 32);
	for (int i = 0; i < 10; i++) {
		philox_round(out, k);
		k[0] += 0x9e3779b9;
		k[1] += 0xbb67ae85;
	}
}

double rng_normal(uint64_t seed, uint64_t stream, uint64_t counter)
{
	uint32_t o[4];
	double u, v;

	rng_philox(seed, stream, counter, o);
	/* (0, 1]: log is finite */
	u = (double)((((uint64_t)o[0] << 32 | o[1]) >> 11) + 1) * 0x1p-53;
	v = (double)(((uint64_t)o[2] << 32 | o[3]) >> 11) * 0x1p-53;
	return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

/* High word of a 64 x 64 bit product; the bias is below n / 2^64. */
uint64_t rng_below(uint64_t seed, uint64_t stream, uint64_t counter, uint64_t n)
{
	uint32_t o[4];

	rng_philox(seed, stream, counter, o);
	return (uint64_t)((unsigned __int128)((uint64_t)o[0] << 32 | o[1]) * n >> 64);
}

void rng_shuffle(uint64_t seed, uint64_t stream, uint32_t *p, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++) {
		uint64_t j = rng_below(seed, stream, i, i + 1);

		p[i] = p[j];
		p[j] = (uint32_t)i;
	}
}
