/* Philox4x32-10 against the known answers of Random123 (kat_vectors), SHA-256 against FIPS
 * 180-4, and statistics. */
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "base/sha256.h"
#include "tap.h"

static void philox_is(uint64_t key, uint64_t hi, uint64_t lo, uint32_t a, uint32_t b, uint32_t c,
    uint32_t d)
{
	uint32_t o[4];

	rng_philox(key, hi, lo, o);
	ok(o[0] == a && o[1] == b && o[2] == c && o[3] == d, "Philox of key %016llx",
	    (unsigned long long)key);
}

static void test_moments(void)
{
	double u = 0, n1 = 0, n2 = 0;
	int count = 100000;

	for (int i = 0; i < count; i++) {
		double z = rng_normal(1, 2, (uint64_t)i);

		u += rng_uniform(1, 3, (uint64_t)i);
		n1 += z;
		n2 += z * z;
	}
	is_close(u / count, 0.5, 0.005, "mean of uniform");
	is_close(n1 / count, 0, 0.015, "mean of normal");
	is_close(n2 / count, 1, 0.025, "variance of normal");
}

static void test_below(void)
{
	int count[7] = {0}, good = 1;

	for (uint64_t i = 0; i < 70000; i++) {
		uint64_t v = rng_below(5, 6, i, 7);

		good &= v < 7;
		count[v % 7]++;
	}
	for (int i = 0; i < 7; i++)
		good &= abs(count[i] - 10000) < 500;
	ok(good, "rng_below is in range and even");
	ok(rng_below(5, 6, 0, 1) == 0, "rng_below(1) is 0");
}

static void test_shuffle(void)
{
	uint32_t p[1000], q[1000];
	unsigned char seen[1000] = {0};
	int good = 1, still = 0;

	rng_shuffle(9, 1, p, 1000);
	rng_shuffle(9, 2, q, 1000);
	for (uint32_t i = 0; i < 1000; i++) {
		good &= p[i] < 1000 && !seen[p[i]]++;
		still += p[i] == i;
	}
	ok(good, "shuffle is a permutation");
	ok(still < 20, "few stay in place");
	ok(memcmp(p, q, sizeof p) != 0, "streams differ");
	rng_shuffle(9, 1, q, 1000);
	ok(memcmp(p, q, sizeof p) == 0, "same seed, same order");
}

static void sha_is(const char *text, const char *want)
{
	char hex[65];

	sha256_hex(text, strlen(text), hex);
	ok(!strcmp(hex, want), "SHA-256 of \"%.20s\"", text);
}

/* A million letters a, in pieces of every size. */
static void test_sha_pieces(void)
{
	static const uint8_t want[4] = { 0xcd, 0xc7, 0x6e, 0x5c };
	char a[200];
	uint8_t digest[32];
	struct sha256 s;
	size_t left = 1000000, n = 0;

	memset(a, 'a', sizeof a);
	sha256_init(&s);
	while (left) {
		n = n % sizeof a + 1;
		n = n < left ? n : left;
		sha256_update(&s, a, n);
		left -= n;
	}
	sha256_final(&s, digest);
	ok(!memcmp(digest, want, 4) && digest[31] == 0xd0, "SHA-256 of a million a");
}

int main(void)
{
	philox_is(0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8);
	philox_is(UINT64_MAX, UINT64_MAX, UINT64_MAX, 0x408f276d, 0x41c83b0e, 0xa20bc7c6,
	    0x6d5451fd);
	philox_is(0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88,
		0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1);
	test_moments();
	test_below();
	test_shuffle();
	sha_is("", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
	sha_is("abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
	sha_is("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
		"248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
	test_sha_pieces();
	return tap_done();
}
