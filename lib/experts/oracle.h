/*
 * oracle: which experts a run will use, from the log of the same run (chr-actlog --generate): what
 * a prefetcher could gain that is always right. The log is a measure for others, not a way to
 * generate: the text is known before.
 *
 *	struct oracle *o = oracle_load("run.jsonl", &cfg, &e);
 *	const struct oracle_seq *q = oracle_find(o, prompt, n);		(NULL: not in the log)
 *	... q->tok[pos], q->ids + (pos * Ls + i) * K ...
 */
#ifndef CHR_ORACLE_H
#define CHR_ORACLE_H

#include <stdint.h>

#include "arch/config.h"
#include "base/err.h"

struct oracle_seq {
	int n;			/* tokens */
	uint32_t *tok;		/* (n) */
	int32_t *ids;		/* (n, Ls, K) */
};

struct oracle;

/* NULL: EX_NOINPUT, EX_DATAERR: no log, one without tokens, or of a model of another shape. */
struct oracle *oracle_load(const char *path, const struct config *c, struct err *e) CHR_MUST_CHECK;
void oracle_free(struct oracle *o);		/* NULL is fine */
int64_t oracle_bytes(const struct oracle *o);	/* that it holds; 0 of NULL */
/* The first sequence in the log that begins with these tokens and is longer; else one that is just
 * these: a prompt may have no answer. NULL: none. */
const struct oracle_seq *oracle_find(const struct oracle *o, const uint32_t *tok, int n);

#endif
