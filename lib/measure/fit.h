/*
 * fit: what of a model fits within given memory: the plan of a run (plan.h, decode.h) for one
 * set of numbers after another, nothing opened or taken.
 *
 *	struct fit f;
 *	if (fit_open(&f, &o, &e) < 0) err_exit(&e);
 *	fit_plan(&f, &point, &plan, &e);
 *	if (!fit_holds(&f, &plan)) ...
 *
 * fit_reason() goes on from there as a careful person would and writes down each step.
 */
#ifndef CHR_FIT_H
#define CHR_FIT_H

#include <jansson.h>
#include <stdio.h>

#include "backend/backend.h"
#include "arch/config.h"
#include "format/manifest.h"
#include "base/mem.h"
#include "base/opt.h"
#include "train/train.h"

enum fit_stage { FIT_PRETRAIN, FIT_SFT, FIT_DPO, FIT_ORPO, FIT_GRPO, FIT_DISTILL, FIT_GENERATE,
    FIT_STAGES };
extern const char *const fit_stage_name[FIT_STAGES];

enum { FIT_REF_AUTO, FIT_REF_YES, FIT_REF_NO };

struct fit_opt {
	enum fit_stage stage;
	const char *model, *config;		/* one of them */
	const char *tokenizer;			/* NULL: the model's, if there is one; else
						   guessed from the vocabulary */
	int nfiles; char *const *files;		/* the trainer's data; none: data bytes are taken
						   to be held */
	const char *eval;			/* its --eval, or NULL */
	const char *teacher;			/* FIT_DISTILL; NULL: a file of topk candidates */
	struct opt_list sets, target, freeze, reward;
	int batch, accum, seq, rank;		/* asked for; 0: the stage's default.
						   FIT_GENERATE: sequences, -, context, - */
	int ref, chunk, readers, kv, predict;	/* ref: FIT_REF_AUTO, as the stage does from a
						   model; kv: enum kv_type; predict: SRC_BIT()s */
	int ranks, expert_parallel;		/* of the job; the plan is that of one rank */
	int group, parallel, max_new, topk;	/* as of chr-grpo, and chr-distill */
	bool heat;				/* as of chr-generate */
	bool packed;				/* a configuration of FIT_GENERATE: experts are
						   streamed */
	bool as_packed;				/* a plain directory of FIT_GENERATE is planned as
						   chr-pack would pack it; its tokenizer
						   is not read */
	enum dtype dense, expert;		/* of both; DT_F32 of the latter: as stored */
	int64_t data, teacher_ram, data_ram, window;	/* data_ram, window: --data-ram,
							   --shuffle-window */
	int64_t ram, vram;			/* limits; 0: none */
	bool allow_seq, allow_rank;		/* may be lowered; that changes what is learned
						   or can be said */
	double temperature;			/* as of chr-distill */
	double factor;				/* measured peak by plan (calibration); 1: as
						   planned */
};

struct fit_point { int batch, accum, seq, rank; bool recompute; };

struct fit {
	const struct fit_opt *o;
	struct config cfg;
	struct params ps;
	const struct backend *be;
	struct tok *tok;
	struct manifest man;			/* of a packed model */
	bool packed, ref;
	bool supposed;				/* no directory, or as_packed of a plain one */
	enum dtype expert;			/* of a model that is supposed */
	int group;
	struct fit_point asked;
	struct train_opt train;			/* as a trainer would have it, for the point
						   asked for */
	void *src, *eval_src;			/* opened as there; NULL: no data were given */
	int64_t data;				/* bytes that these hold, or are taken to */
	int64_t program;			/* what the process holds besides */
	int64_t teacher; int teacher_seq;	/* bytes, and for which sequence length they are */
};

int fit_open(struct fit *f, const struct fit_opt *o, struct err *e) CHR_MUST_CHECK;
void fit_close(struct fit *f);

bool fit_has_weights(const char *dir);		/* or is there only a configuration? */

/* in which a published config.json says that its weights are; BF16 where it does not */
enum dtype fit_config_dtype(const struct config *c);

/* -1: EX_OSERR when a packed model's experts leave no room within o->ram (the plan is filled
 * then too), or other errors. */
int fit_plan(struct fit *f, const struct fit_point *at, struct mem_plan *plan, struct err *e)
    CHR_MUST_CHECK;

int64_t fit_bytes(const struct fit *f, const struct mem_plan *plan);	/* with o->factor */
/* of these, what a device would hold */
int64_t fit_device_bytes(const struct fit *f, const struct mem_plan *plan);
/* within o->ram, and the device's part within o->vram */
bool fit_holds(const struct fit *f, const struct mem_plan *plan);
/* experts of a packed model in memory; -1: all, always */
int fit_slots(const struct fit *f, const struct mem_plan *plan);

/* options; 192 bytes are enough */
void fit_args(const struct fit *f, const struct fit_point *p, char *s, size_t size);

struct fit_result {
	bool as_asked, fits;			/* fits: at least when changed as the records
						   say, to: */
	struct fit_point at;
	struct mem_plan plan;			/* of it */
};

/* Writes a record for each step: what was asked for, what to change until it fits, the largest
 * batch and the longest sequence; and at the end the plan. 0 or -1. */
int fit_reason(struct fit *f, struct fit_result *x, struct err *e) CHR_MUST_CHECK;

/* What speed which memory buys: a record for each of chr-bench replay's in file. */
int fit_replay(struct fit *f, const char *file, struct err *e) CHR_MUST_CHECK;

/* Ratios of mem_peak to mem_plan in the step records of past runs, by stage: an object
 * {"stage":{"ratio":..,"runs":..}} of those with at least FIT_RUNS runs, or NULL. */
#define FIT_RUNS 3
json_t *fit_learn(int n, char *const logs[], struct err *e) CHR_MUST_CHECK;
/* 1 for a stage it has not */
int fit_calibration(const char *file, const char *stage, double *factor, struct err *e)
    CHR_MUST_CHECK;

#endif
