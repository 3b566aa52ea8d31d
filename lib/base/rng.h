/*
 * rng: counter-based random numbers: the value at (seed, stream, counter) needs no state, so
 * results do not depend on threads or on the order of calls, and resuming needs only the
 * counter. Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2,
 * 3", SC 2011.
 */
#ifndef CHR_RNG_H
#define CHR_RNG_H

#include <stdint.h>

void rng_philox(uint64_t seed, uint64_t stream, uint64_t counter, uint32_t out[4]);

/* [0, 1) with 53 bits */
static inline double rng_uniform(uint64_t seed, uint64_t stream, uint64_t counter)
{
	uint32_t o[4];

	rng_philox(seed, stream, counter, o);
	return (double)(((uint64_t)o[0] << 32 | o[1]) >> 11) * 0x1p-53;
}

double rng_normal(uint64_t seed, uint64_t stream, uint64_t counter);		/* Box-Muller */
uint64_t rng_below(uint64_t seed, uint64_t stream, uint64_t counter, uint64_t n);	/* 0..n-1 */

/* Fisher-Yates permutation of 0..n-1. */
void rng_shuffle(uint64_t seed, uint64_t stream, uint32_t *p, uint64_t n);

/* A cheap hash for dropout masks: uniform 32 bits of (key, i). */
static inline uint32_t rng_hash(uint64_t key, uint64_t i)
{
	uint64_t x = key + i * 0x9e3779b97f4a7c15u;

	x ^= x >> 30; x *= 0xbf58476d1ce4e5b9u;
	x ^= x >> 27; x *= 0x94d049bb133111ebu;
	return (uint32_t)(x >> 32);
}

#endif
