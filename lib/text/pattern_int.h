/*
 * pattern_int: between pattern_parse.c, which reads a pattern, and pattern.c, which runs it: the
 * pattern in PCRE2's syntax, with numbers for sets of characters.
 */
#ifndef CHR_PATTERN_INT_H
#define CHR_PATTERN_INT_H

#include "text/pattern.h"
#include "text/uniset.h"

#define PATTERN_ATOMS 1024	/* sets that differ */
#define PATTERN_LENGTH (1 << 16)

struct pattern_code {
	uint32_t *c;		/* (n) below 256: a byte of syntax; 256 + i: one of atom[i] */
	int n, cap;
	struct uniset *atom;	/* (atoms), in order */
	int atoms;
};

/* out is zeroed before, and freed by pattern_code_free(), on error too. */
int pattern_parse(const char *text, size_t len, enum pattern_dialect d, struct pattern_code *out,
    struct err *e) CHR_MUST_CHECK;
void pattern_code_free(struct pattern_code *code);

#endif
