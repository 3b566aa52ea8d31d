/*
 * verify: is a file, or a whole model, complete and finite? Everything is read; what is wrong is
 * told one by one, and the search goes on.
 *
 *	struct verify v = { .bad = print_it, .ctx = &x };
 *	if (verify_model(&v, &md, &e) < 0)
 *		err_exit(&e);
 *	return v.found ? EX_NO : EX_OK;
 *
 * Reads in parallel (pool.h); what is told, and its order, does not depend on the number of
 * threads.
 */
#ifndef CHR_VERIFY_H
#define CHR_VERIFY_H

#include <stdint.h>

#include "base/err.h"
#include "format/modeldir.h"
#include "format/safetensors.h"

struct verify_bad {
	const char *file;
	const char *tensor;		/* NULL: the file as such, or an expert */
	int layer, expert;		/* of a packed expert, else -1 */
	uint64_t nan, inf, first;	/* elements that are not finite, and the index of the
					   first; all 0 with why */
	const char *why;		/* what else is wrong; else NULL */
};

struct verify {
	void (*bad)(void *ctx, const struct verify_bad *b);
	void *ctx;
	int64_t tensors, bytes, found;	/* looked at; calls of bad */
};

/* 0 however much is found; -1 only when the work cannot be done (EX_OSERR). */
int verify_file(struct verify *v, const struct st_file *f, const char *name, struct err *e)
    CHR_MUST_CHECK;

/* Tensors against config.json; all files, those of optimizer and intents included; the
 * fingerprint in the metadata; of a packed model the place and CRC of every expert, and the CRCs
 * of all other tensors that chr-pack noted. */
int verify_model(struct verify *v, struct modeldir *md, struct err *e) CHR_MUST_CHECK;

/* reports something found elsewhere */
void verify_tell(struct verify *v, const char *file, const char *why);

#endif
