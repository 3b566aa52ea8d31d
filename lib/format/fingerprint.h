/*
 * fingerprint: what tells one model from another: 32 hex digits, the first 16 bytes of SHA-256 over
 * lines "name dtype [shape] crc32" sorted by name, over all parameters as stored. Config and
 * metadata do not count, nor how tensors are cut into parameters' files.
 */
#ifndef CHR_FINGERPRINT_H
#define CHR_FINGERPRINT_H

#include <stdint.h>

#include "arch/param.h"
#include "backend/tensor.h"
#include "base/err.h"

struct modeldir;

struct fingerprint_line {
	const struct param *p;
	const char *dtype;		/* as safetensors calls it; "U8" of our blocks */
	uint32_t crc;			/* zlib's, of the values as stored, row after row */
};

/* What the metadata say; NULL: nothing, or no such digits. */
const char *fingerprint_stored(const struct modeldir *md);
/* What a line says of a type. */
const char *fingerprint_type(enum dtype t);
/* Sorts the lines. */
void fingerprint_of(struct fingerprint_line *lines, int n, char out[33]);
/* Reads a parameter for its line. */
int fingerprint_line(const struct modeldir *md, const struct param *p, struct fingerprint_line *l,
    struct err *e) CHR_MUST_CHECK;

#endif
