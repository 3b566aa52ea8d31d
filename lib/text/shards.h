/*
 * shards: token shards, the tokenized form of a corpus. A shard is a safetensors file with
 * "tokens" (N), U16 when the vocabulary fits and U32 otherwise, and "offsets" (documents + 1)
 * I64: document i is tokens[offsets[i]..offsets[i+1]). Metadata: chronos.version,
 * chronos.vocab_size, and chronos.tokenizer, the SHA-256 of the tokenizer.json.
 *
 *	struct shards *s = shards_open("corpus.safetensors", tok, 512 << 20, NULL, &e);
 *	while (...)
 *		shards_add(s, ids.v, ids.n, &e);
 *	shards_close(s, &e);
 *
 * Shards after the first are named corpus-00002.safetensors and so on. Each appears when it is
 * complete.
 */
#ifndef CHR_SHARDS_H
#define CHR_SHARDS_H

#include <stdint.h>
#include <stdio.h>

#include "base/err.h"
#include "text/tok.h"

struct shards;

/* limit: bytes of tokens that begin a new shard (a longer document has one of its own); held in
 * memory until then. log (may be NULL) gets a record for each shard:
 * {"type":"shard","file":..,"documents":..,"tokens":..}. */
struct shards *shards_open(const char *path, const struct tok *t, int64_t limit, FILE *log,
    struct err *e) CHR_MUST_CHECK;
int shards_add(struct shards *s, const uint32_t *ids, int n, struct err *e) CHR_MUST_CHECK;
/* writes the last one; frees s in any case */
int shards_close(struct shards *s, struct err *e) CHR_MUST_CHECK;
void shards_abort(struct shards *s);			/* what is not written yet is lost; NULL
							   is fine */

#endif
