/*
 * outdir: a directory that appears under its name complete, or not at all.
 *
 *	struct outdir d;
 *	if (outdir_begin(&d, "out/packed", "out/dpo", force, &e) < 0) ...
 *	... write files into d.tmp ...
 *	rc = ok ? outdir_commit(&d, &e) : (outdir_abort(&d), -1);
 */
#ifndef CHR_OUTDIR_H
#define CHR_OUTDIR_H

#include <stdbool.h>

#include "base/err.h"

struct outdir {
	char *path;		/* without trailing slashes */
	char *tmp;		/* the directory to write into, beside path */
	bool force;
};

/* Refuses (EX_CANTCREAT) a path that exists, unless force and it is a flat model directory: one
 * with a config.json and nothing but files, so that a wrong name does not cost more than a
 * model. Never the directory `source`. Makes missing parents. */
int outdir_begin(struct outdir *d, const char *path, const char *source, bool force, struct err *e)
    CHR_MUST_CHECK;
/* what was at path is then gone; aborts on error */
int outdir_commit(struct outdir *d, struct err *e) CHR_MUST_CHECK;
void outdir_abort(struct outdir *d);

#endif
