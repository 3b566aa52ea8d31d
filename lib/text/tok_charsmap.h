/*
 * tok_charsmap: SentencePiece's compiled map of characters: a double-array trie of texts (Aoe 1989;
 * the units are those of darts-clone) and what they become. Used as in the Hugging Face library,
 * which asks for whole graphemes of up to five bytes and then for characters, and takes the
 * shortest text that is in the map.
 */
#ifndef CHR_TOK_CHARSMAP_H
#define CHR_TOK_CHARSMAP_H

#include <stddef.h>

#include "base/err.h"

struct charsmap;

/* The bytes are copied. NULL: EX_DATAERR. */
struct charsmap *charsmap_open(const unsigned char *s, size_t len, struct err *e) CHR_MUST_CHECK;
void charsmap_free(struct charsmap *m);
/* Calls put with what valid UTF-8 becomes, part by part. */
void charsmap_run(const struct charsmap *m, const char *s, size_t len,
    void (*put)(void *ctx, const char *s, size_t len), void *ctx);

#endif
