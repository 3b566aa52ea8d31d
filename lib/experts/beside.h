/*
 * beside: a file of trained tensors that stands beside the weights of a model and is for that
 * model alone: the encoder of chr-intent, the heads of chr-foresee. Its metadata name the model by
 * its fingerprint.
 *
 *	struct beside b;
 *	if ((rc = beside_open(&b, dir, INTENT_NAME, &e)) == 1) {	(0: there is none)
 *		... describe the parameters ps by the shapes found in b.f ...
 *		rc = beside_check(&b, ps, &e) < 0 || beside_read(&b, ps, w, &e) < 0 ||
 *		    beside_model(&b, "chr-intent", fingerprint, &e) < 0 ? -1 : 1;
 *		beside_close(&b);
 *	}
 */
#ifndef CHR_BESIDE_H
#define CHR_BESIDE_H

#include <jansson.h>

#include "arch/param.h"
#include "base/err.h"
#include "base/real.h"
#include "format/safetensors.h"

struct beside {
	const char *dir;
	char *path;
	struct st_file *f;
};

/* 1, 0: there is no such file, -1: EX_DATAERR, EX_NOINPUT */
int beside_open(struct beside *b, const char *dir, const char *name, struct err *e) CHR_MUST_CHECK;
void beside_close(struct beside *b);
/* Are all parameters there, as F32 in their shapes, and nothing else? EX_DATAERR */
int beside_check(const struct beside *b, const struct params *ps, struct err *e) CHR_MUST_CHECK;
/* w: (ps->total). EX_DATAERR: a value is not finite; EX_IOERR. */
int beside_read(const struct beside *b, const struct params *ps, real *w, struct err *e)
    CHR_MUST_CHECK;
/* Is the file of the model in its directory? Its fingerprint (33). EX_DATAERR; maker: the program
 * that makes such a file. */
int beside_model(const struct beside *b, const char *maker, char *fingerprint, struct err *e)
    CHR_MUST_CHECK;

/* Writes DIR/NAME, whole or not at all. meta: strings for the metadata, may be NULL; a fingerprint
 * in it does not count. EX_CANTCREAT, EX_IOERR. */
int beside_save(const char *dir, const char *name, const struct params *ps, const real *w,
    const json_t *meta, const char *fingerprint,
    struct err *e) CHR_MUST_CHECK;

#endif
