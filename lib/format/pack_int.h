/*
 * pack_int: what the sources of pack.h share. The work is a list of parts, each a parameter on its
 * way, in the order in which they are written, and a list of files that they go into.
 *
 * The fingerprint of a published model is known only when all of it has been read, which happens
 * once, while it is packed. Until then tokens of the same length stand for it in the headers of
 * files; they are replaced at the end.
 */
#ifndef CHR_PACK_INT_H
#define CHR_PACK_INT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "backend/quant.h"
#include "base/mem.h"
#include "base/progress.h"
#include "format/pack.h"
#include "format/safetensors.h"

#define PACK_TOKEN_MODEL "5be0cd19137e2179c1059ed8367cd507"
#define PACK_TOKEN_SELF "1f83d9abfb41bd6b9b05688c510e527f"
#define PACK_CHUNK ((size_t)1 << 20)	/* bytes read back at a time */
#define PACK_JOURNAL "pack.journal"

struct pack_part {
	const struct param *pa;
	enum dtype was, to;
	int step;		/* rows of it in memory at a time: whole panels, or all */
	int64_t stored;		/* its bytes in the model */
	uint32_t source, crc;	/* CRC-32 as stored, and as written */
	int64_t offset;		/* in its file */
	double error, square;	/* of conversion: sums of squared errors and of squares */
};

struct pack_file {
	char name[256];
	int cluster;		/* -1: model.safetensors, or a shard of it */
	int first, n;		/* parts */
	bool done;		/* complete, read back and in the journal */
	int64_t bytes;
	uint32_t crc;		/* of it all, with tokens for fingerprints that came later */
};

struct pack_job {
	struct pack *p;
	const char *dir;		/* being written */
	int nparts, nfiles;
	struct pack_part *part;
	struct pack_file *file;
	/* fingerprints, or their tokens: of the model that is read; what chronos.fingerprint says,
	 * which in a directory without clusters is of the model that is written */
	char model[33], self[33];
	int64_t piece;			/* bytes as float32 that a piece may have */
	int journal;			/* descriptor, -1: none yet */
	char *buf;			/* PACK_CHUNK, aligned for O_DIRECT */
	struct progress bar;
	int64_t done;			/* bytes of the model */
};

static inline size_t pack_bytes(const struct pack_part *pt)	/* as written */
{
	return mat_bytes(pt->to, pt->pa->rows, pt->pa->cols);
}

/* ---- pack.c ---- */

/* Declares a tensor; a matrix in blocks by its metadata too. */
int pack_declare(struct st_writer *w, const char *key, const struct param *pa, enum dtype t,
    size_t align, struct st_error *se);
/* Metadata of model.safetensors; fingerprint may be NULL. Errors stick to the writer. */
void pack_meta(struct st_writer *w, const struct pack *p, const char *fingerprint);
enum st_dtype pack_st_type(enum dtype t);
void pack_ctsr_key(char key[64], int layer, int expert, int i);
/* Does the file system hold so many bytes more? */
int pack_fits(const char *dir, const char *out, int64_t bytes, struct err *e) CHR_MUST_CHECK;
/* What stands beside the weights; intents only where these are the same. */
int pack_side_files(const struct pack *p, const char *dir, bool same_weights, struct err *e)
    CHR_MUST_CHECK;

/* A file of the job, ready for data: every tensor declared, offsets of parts set. NULL: e says. */
struct st_writer *pack_begin_file(struct pack_job *j, const struct pack_file *f, struct err *e)
    CHR_MUST_CHECK;

/* ---- pack_check.c ---- */

/* The type to write a parameter in. */
int pack_type(const struct pack *p, const struct param *pa, enum dtype *t, struct err *e)
    CHR_MUST_CHECK;
/* Is the manifest of a model of this shape, and of this fingerprint? */
int pack_check_manifest(const struct pack *p, struct err *e) CHR_MUST_CHECK;
int pack_check_print(const struct pack *p, const char *fingerprint, struct err *e) CHR_MUST_CHECK;
/* -1, EX_DATAERR: says what is wrong with values of a parameter that did not go into type `to`. */
int pack_refuse(const struct pack *p, const struct param *pa, enum dtype was, enum dtype to,
    struct err *e)
    CHR_MUST_CHECK;

/* ---- pack_pipe.c: the parts through memory of a fixed size into the files ---- */

/* Sets j->piece and the step of each part to the largest within limit (0: as large as is of use);
 * adds what will be taken. */
int pack_pipe_plan(struct pack_job *j, struct mem_plan *plan, int64_t limit, struct err *e)
    CHR_MUST_CHECK;
/* Reads, converts, writes and reads back at the same time; files that are done are passed over. */
int pack_pipe(struct pack_job *j, struct err *e) CHR_MUST_CHECK;
int pack_stopped(struct err *e) CHR_MUST_CHECK;	/* -1, EX_TEMPFAIL: a signal asked for it */

/* ---- pack_resume.c: what is complete, and the fingerprints ---- */

/* Tells this work from others (outdir.h): the command and the version of the program, which are in
 * the metadata, the manifest, config.json, and size and time of each file of the model. */
int pack_job_text(const struct pack_job *j, char out[65], struct err *e) CHR_MUST_CHECK;
/* Takes up what an earlier run left in j->dir, as far as it is whole, and removes the rest. *found:
 * files that are done. */
int pack_journal_open(struct pack_job *j, int *found, struct err *e) CHR_MUST_CHECK;
/* A file that was synced: read from the disk, compared, noted, done. */
int pack_journal_add(struct pack_job *j, struct pack_file *f, struct err *e) CHR_MUST_CHECK;
/* All files are done: fingerprints are computed, noted and put where tokens stand. */
int pack_journal_prints(struct pack_job *j, struct err *e) CHR_MUST_CHECK;
void pack_journal_close(struct pack_job *j);

#endif
