/*
 * pattern: the regular expressions by which tokenizers cut text, in the dialects of the two engines
 * that run them elsewhere. What a class of characters holds is ours (uniset.h): a pattern is turned
 * into one over kinds of characters, at most 256 of them, where two characters are of one kind if
 * no class of the pattern tells them apart. PCRE2 then sees a byte per character and no Unicode.
 *
 *	struct pattern *p = pattern_open("\\p{L}+", 6, PATTERN_RUBY, &e);
 *	pattern_begin(p, text, len);
 *	while (pattern_next(p, &a, &b))
 *		... text[a..b) matches ...
 *	pattern_close(p);
 *
 * Refused: what depends on which character it was (references to groups), and syntax that the
 * dialect has not.
 */
#ifndef CHR_PATTERN_H
#define CHR_PATTERN_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

enum pattern_dialect {
	PATTERN_LITERAL,	/* the text itself */
	PATTERN_RUBY,		/* Oniguruma's Ruby syntax: patterns of a tokenizer.json */
	PATTERN_RUST		/* regex-syntax and fancy-regex: patterns of tiktoken */
};

struct pattern;

/* NULL: EX_DATAERR, with the pattern and what is wrong in it. */
struct pattern *pattern_open(const char *text, size_t len, enum pattern_dialect d, struct err *e)
    CHR_MUST_CHECK;
/* The same for another thread, which must be closed first. NULL gives NULL. */
struct pattern *pattern_share(const struct pattern *p);
void pattern_close(struct pattern *p);

/* s: valid UTF-8, which must stay until the last pattern_next(). */
void pattern_begin(struct pattern *p, const char *s, size_t len);
/* The next match as bytes [a, b), never an empty one where the last ended. A pattern that runs
 * into PCRE2's limits matches nothing from there on. */
bool pattern_next(struct pattern *p, size_t *a, size_t *b);

#endif
