/*
 * refcache: log-probs of pairs under a reference model, in a file, so that the model need not be
 * there. A safetensors file: "keys" (N) U64 ascending, "logp" (N, 2) F64; metadata
 * "chronos.reference" is the fingerprint of the model, "chronos.crc32" the CRC-32 of the data.
 *
 *	struct refcache *c = refcache_load(path, fingerprint, &e);	or refcache_new(),
 *	refcache_put().., refcache_save()
 *	if (!refcache_get(c, key, logp))
 *		...
 */
#ifndef CHR_REFCACHE_H
#define CHR_REFCACHE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct refcache;

struct refcache *refcache_new(void);
/* NULL on error */
struct refcache *refcache_load(const char *path, const char *fingerprint, struct err *e)
    CHR_MUST_CHECK;
void refcache_free(struct refcache *c);

void refcache_put(struct refcache *c, uint64_t key, const double logp[2]);
void refcache_sort(struct refcache *c);		/* after the last put, before the first get */
bool refcache_get(const struct refcache *c, uint64_t key, double logp[2]);
int64_t refcache_entries(const struct refcache *c);
/* sorted */
int refcache_save(const struct refcache *c, const char *path, const char *fingerprint,
    struct err *e) CHR_MUST_CHECK;

#endif
