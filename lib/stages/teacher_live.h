/*
 * teacher_live: a teacher that is there: a model directory, evaluated on the batches of its
 * student. Plain or packed; packed ones read experts from disk within a limit. The logits are
 * the same for every limit, and for every number of threads.
 *
 *	struct teacher_live_opt o = { "out/teacher", ram, "--teacher-ram", T };
 *	teacher_live_plan(&o, &cfg, tok, &bytes, fingerprint, &e);
 *	struct teacher_live *t = teacher_live_open(&o, be, &e);
 *	struct teacher teacher = { .rows = teacher_live_rows, .self = t };
 *
 * Each document of a row is a sequence of its own, as it is for the student. Several are
 * evaluated at once, as many rows as logits have room for within the limit: the more, the less
 * often the experts of a packed teacher are read.
 */
#ifndef CHR_TEACHER_LIVE_H
#define CHR_TEACHER_LIVE_H

#include <stdint.h>

#include "backend/backend.h"
#include "arch/config.h"
#include "decode/decode.h"
#include "stages/distill.h"
#include "text/tok.h"

#define TEACHER_LIVE_SEQS 8		/* documents evaluated at a time */

struct teacher_live_opt {
	const char *dir;
	int64_t ram;		/* limit on all that teacher_live_open takes; 0: none */
	const char *budget;	/* the option that sets it, for messages */
	int T;			/* tokens of a row */
	int rows, V;		/* teacher_live_plan: of a block of logits */
};

/* Is it a teacher for this student? The vocabularies must have the same size and, where both
 * have a tokenizer (tok may be NULL), the same tokens. *bytes is what teacher_live_open will
 * take. */
int teacher_live_plan(struct teacher_live_opt *o, const struct config *student,
    const struct tok *tok, int64_t *bytes,
    char fingerprint[33], struct err *e) CHR_MUST_CHECK;

/* The same as a stage's plan (train.h): an item for it, unless o->dir is NULL, and for what
 * distill_open takes. */
int teacher_live_plan_stage(struct teacher_live_opt *o, const struct distill *d,
    const struct stage_env *v, char fingerprint[33],
    struct mem_plan *p, struct err *e) CHR_MUST_CHECK;

struct teacher_live;
/* NULL on error */
struct teacher_live *teacher_live_open(const struct teacher_live_opt *o, const struct backend *be,
    struct err *e) CHR_MUST_CHECK;
/* rows: of logits held. g has to have TEACHER_LIVE_SEQS sequences; teacher_live_close() leaves
 * it open. */
struct teacher_live *teacher_live_over(struct engine *g, int rows, struct err *e) CHR_MUST_CHECK;
void teacher_live_close(struct teacher_live *t);

/* As struct teacher has it; self is the struct teacher_live. */
int64_t teacher_live_rows(void *self, const struct micro *mb, int64_t row, int64_t n,
    const real **logits, struct err *e) CHR_MUST_CHECK;

#endif
