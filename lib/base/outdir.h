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
	bool resumed;		/* tmp has what an earlier run of the same job left */
	int job;		/* the locked file of a job that can be resumed; else -1 */
};

/* Refuses (EX_CANTCREAT) a path that exists, unless force and it is a flat model directory: one
 * with a config.json and nothing but files, so that a wrong name does not cost more than a
 * model. Never the directory `source`. Makes missing parents. */
int outdir_begin(struct outdir *d, const char *path, const char *source, bool force, struct err *e)
    CHR_MUST_CHECK;
/* The same for a long job that goes on where it was cut. Files are written into PATH.partial, which
 * stays when the program is killed; each must be whole or absent there. job: text that tells this
 * job from another (what it reads, and its options), kept in PATH.partial.job; what another job
 * left at PATH.partial is removed first. EX_TEMPFAIL: another process is at it. EX_CANTCREAT:
 * PATH.partial is something else. */
int outdir_resume(struct outdir *d, const char *path, const char *source, bool force,
    const char *job, struct err *e) CHR_MUST_CHECK;
void outdir_leave(struct outdir *d);	/* ends it so that it can be resumed */
/* what was at path is then gone; on error aborts, or leaves what can be resumed */
int outdir_commit(struct outdir *d, struct err *e) CHR_MUST_CHECK;
void outdir_abort(struct outdir *d);

#endif
