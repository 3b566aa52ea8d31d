/*
 * pack: a model directory whose experts lie in .ctsr files in the order a manifest gives, and
 * back (man chr-ctsr.5).
 *
 *	struct pack p = { .md = &md, .manifest = &m, .out = "out/packed", .dtype = -1, .meta =
 *	    meta };
 *	if (pack_types(&p, &e) < 0 || pack_check(&p, &e) < 0 || pack_plan(&p, &plan, 0, &e) < 0 ||
 *	    pack_write(&p, &e) < 0)
 *		err_exit(&e);
 *	pack_free(&p);
 *
 * A model of any size goes through a memory of fixed size, read once: pieces of matrices are read,
 * converted, written and read back from the disk at the same time. What is complete is kept when a
 * run ends early, and the next run of the same work goes on from there.
 */
#ifndef CHR_PACK_H
#define CHR_PACK_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/mem.h"
#include "format/manifest.h"
#include "format/modeldir.h"
#include "format/sidefiles.h"

struct pack_rule {			/* tensors whose name matches the pattern (fnmatch) get
					   this type */
	const char *pattern;
	enum dtype t;
};

struct pack_sum {			/* what was written of one type */
	int tensors, converted;		/* converted: of these, from another type */
	int64_t bytes;
	double error, square;		/* sums over converted values: squared error, square */
};

struct pack {
	struct modeldir *md;		/* the model to read */
	struct manifest *manifest;	/* order of experts; pack_write() completes it. NULL: a
					   model without experts */
	const char *out;
	bool force;			/* replace a model directory at out */
	int dtype;			/* enum dtype of the experts written; -1: as they are */
	int dense;			/* of other matrices with PARAM_QUANTISES; 0:
					   as they are */
	const struct pack_rule *rule;	/* (nrules) go before both; the last that matches holds */
	int nrules;
	int64_t shard_size;		/* bytes; more tensors than that which are no experts come
					   in shards. 0: never */
	sidefiles_tokenizer *tokenizer;	/* of a model in a GGUF file */
	const json_t *meta;		/* object of strings for the __metadata__ of
					   model.safetensors */
	/* results */
	int model_dtype;		/* of the experts in md; -1: several */
	enum dtype dt[3];		/* of gate, up and down as written */
	struct pack_sum by[DTYPES];	/* (enum dtype) after pack_write() */
	int experts;
	int64_t bytes, padding;		/* of experts; of what lies between them */
	int64_t dense_bytes;		/* tensors of model.safetensors */
	double worst;			/* relative error of the tensor that conversion cost most */
	const char *worst_name;		/* its name; NULL: none did */
	enum dtype worst_type;		/* what it was converted to */
	int64_t source_bytes;		/* that all parameters have in md */
	int resumed;			/* files that an earlier run had written */
	char fingerprint[33];		/* of md; of what was written after pack_undo(), and where
					   there are no experts */
	struct pack_job *job;		/* pack_plan()'s */
};

/* Fills dt: EX_DATAERR when it is not the same in all experts, or there is nothing to do. EX_USAGE:
 * a rule that matches no tensor, or asks for blocks of nothing but what has no PARAM_QUANTISES;
 * a type for experts of a model without. */
int pack_types(struct pack *p, struct err *e) CHR_MUST_CHECK;
/* then: of one expert as it will be written, without padding */
int64_t pack_expert_bytes(const struct pack *p);

/* Is the manifest of this model: layers, experts, which layers are sparse, fingerprint when both
 * have one? EX_DATAERR says what differs. Fills fingerprint; a model that says none has digits
 * there that stand for it, in the metadata too, until pack_write() has read it all. */
int pack_check(struct pack *p, struct err *e) CHR_MUST_CHECK;

/* Lists the work and adds to the plan what it will take: as much as is of use, less where limit
 * (of the whole plan, 0: none) asks for it, and the least there is where that is above it. */
int pack_plan(struct pack *p, struct mem_plan *plan, int64_t limit, struct err *e) CHR_MUST_CHECK;
void pack_free(struct pack *p);

/* Writes p->out: cluster files, model.safetensors (or shards) of all other tensors, config.json,
 * tokenizer, manifest. Every file is synced, read back from the disk and compared. Until all is
 * complete it lies in "OUT.partial", where the same work goes on; that of another is removed.
 * EX_CANTCREAT, EX_IOERR; EX_TEMPFAIL when a signal asked to stop or another process is at it;
 * EX_DATAERR: values that the type does not hold, or the manifest is of another fingerprint. */
int pack_write(struct pack *p, struct err *e) CHR_MUST_CHECK;

/* md is packed and nothing in it is quantised: writes p->out with all tensors in
 * model.safetensors, experts in the type they were packed in (p->dt is set to it). CRCs are
 * checked, and the fingerprint when packing changed no type. */
int pack_undo(struct pack *p, struct err *e) CHR_MUST_CHECK;

#endif
