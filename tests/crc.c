/* Our CRC-32 against zlib's. */
#include <stdlib.h>
#include <zlib.h>

#include "base/crc.h"
#include "base/rng.h"
#include "tap.h"

enum { SIZE = 100000 };

int main(void)
{
	unsigned char *p = malloc(SIZE);
	int i, n, wrong = 0;

	for (i = 0; i < SIZE; i++)
		p[i] = (unsigned char)rng_hash(3, (uint64_t)i);
	ok(crc_32("123456789", 9) == 0xcbf43926, "the check value of the catalogue");
	ok(crc_32(p, 0) == 0, "nothing");
	for (n = 1; n < 700; n++)
		wrong += crc_32(p + n % 5, (size_t)n) != crc32(0, p + n % 5, (uInt)n);
	for (i = 0; i < 200; i++) {
		n = (int)rng_below(1, 2, (uint64_t)i, SIZE - 64);
		wrong += crc_32(p + i % 64, (size_t)n) != crc32(0, p + i % 64, (uInt)n);
	}
	ok(wrong == 0, "every length up to 700 and some above, at odd addresses");
	free(p);
	return tap_done();
}
