/*
 * crc: CRC-32 as in zlib and gzip, at memory speed where the CPU multiplies without carry: the
 * store checks every expert it reads for the first time, on the same cores that compute.
 */
#ifndef CHR_CRC_H
#define CHR_CRC_H

#include <stddef.h>
#include <stdint.h>

uint32_t crc_32(const void *p, size_t n);	/* == zlib's crc32(0, p, n) */
/* of what has this CRC, with n bytes more: == crc32(crc, p, n) */
uint32_t crc_32_more(uint32_t crc, const void *p, size_t n);

#endif
