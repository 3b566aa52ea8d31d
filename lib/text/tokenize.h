/*
 * tokenize: records to records with tokens, or to token shards, by all threads of the pool, in
 * their order.
 *
 *	struct tokenize *z = tokenize_open(&opt);
 *	while (...)
 *		rc = tokenize_records(z, in, &e);
 *	tokenize_close(z);
 *
 * Records are taken as they come: those that are there are worked on together, and written
 * before another is waited for.
 */
#ifndef CHR_TOKENIZE_H
#define CHR_TOKENIZE_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"
#include "base/json.h"
#include "text/shards.h"
#include "text/tok.h"

struct tokenize_opt {
	struct tok *tok;
	struct shards *shards;	/* where ids go; NULL: records on standard output */
	bool chat;		/* conversations go through the template */
	bool mask;		/* of what is to be learned, in records */
	bool special;		/* special tokens written in a text become themselves */
};

struct tokenize;

struct tokenize *tokenize_open(const struct tokenize_opt *o);
/* all that are left of it. 0, -1 */
int tokenize_records(struct tokenize *z, struct jsonl *in, struct err *e) CHR_MUST_CHECK;
/* one whole text */
int tokenize_text(struct tokenize *z, const char *name, const char *text, size_t len,
    struct err *e) CHR_MUST_CHECK;
void tokenize_close(struct tokenize *z);

#endif
