/*
 * base64: bytes that stand in a text (RFC 4648, section 4).
 */
#ifndef CHR_BASE64_H
#define CHR_BASE64_H

#include <stddef.h>

/* Decodes s[0..len) to out, of which 3 bytes for each 4 characters begun are needed; '=' at the
 * end may be missing. The number of bytes, or (size_t)-1 when it is no base64. */
size_t base64_decode(const char *s, size_t len, unsigned char *out);

#endif
