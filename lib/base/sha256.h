/*
 * sha256: FIPS 180-4, for fingerprints of data and models.
 *
 *	struct sha256 s;
 *	sha256_init(&s); sha256_update(&s, buf, len); ...; sha256_final(&s, digest);
 */
#ifndef CHR_SHA256_H
#define CHR_SHA256_H

#include <stddef.h>
#include <stdint.h>

struct sha256 {
	uint32_t h[8];
	uint64_t len;		/* bytes so far */
	uint8_t block[64];
};

void sha256_init(struct sha256 *s);
void sha256_update(struct sha256 *s, const void *buf, size_t len);
void sha256_final(struct sha256 *s, uint8_t digest[32]);

/* of one buffer, lower case, NUL-terminated */
void sha256_hex(const void *buf, size_t len, char out[65]);

#endif
