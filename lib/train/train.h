/*
 * train: the loop that all trainers share. A trainer is where batches come from and what the
 * loss is (struct stage); train_run() owns accumulation, schedule, clipping, AdamW, router
 * losses, evaluation, checkpoints, records, signals.
 *
 *	static const struct stage stage = { "pretrain", &packed_source, loss };
 *	static const struct stage *ready(void) { return &stage; }
 *	train_flags.lr = 5e-4;				(the stage's own defaults, before the table
 *							is read)
 *	return train_main(argc, argv, opts, &prog, ready);	(opts includes train_opts)
 *
 * One optimiser step:
 *
 *	take `accum` micro-batches			so that the number of targets of the
 *							whole step is known
 *	for each: model_forward
 *	          stage->loss				base loss; fills the head's gradient
 *							through model_head
 *	          route_loss				router terms; fills dprobs, dlook and dahead
 *	          model_backward
 *	clip to the global norm, AdamW, record
 *
 * Ranks (comm.h) share each micro-batch: rank r has the r-th --batch items of every ranks *
 * --batch, and everything that is a mean or a sum over the batch is one over all of them. So n
 * ranks with batch b are one with batch n * b, but for rounding (and dropout and noise, of which
 * each rank draws its own). Gradients go to other ranks while the last backward pass of a step
 * is still computing those of earlier layers, weights while the next step's forward pass does
 * not need them yet. Rank 0 writes records and checkpoints.
 *
 * The state that carries over from one step to the next is weights, moments, step count and
 * position in the data, all of it in a checkpoint; random numbers are functions of seed and
 * step. So 20 steps equal 10 + 10, bit for bit.
 */
#ifndef CHR_TRAIN_H
#define CHR_TRAIN_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "arch/config.h"
#include "base/err.h"
#include "model/model.h"
#include "base/opt.h"
#include "base/profile.h"
#include "text/tok.h"
#include "train/micro.h"

struct train_opt {
	const char *model, *out, *config, *tokenizer, *backend, *eval, *grad_dump, *keep_best,
	    *dump_bad, *upcycle;
	struct opt_list sets, freeze, lora_target;
	int64_t steps, stop_after, warmup, save_every, eval_every, eval_batches, patience,
	    log_every, shard_size, ram,
	    seed, data_ram, shuffle_window, skip_nonfinite;
	double epochs, lr, clip, weight_decay, mask_prob, dropout, anchor, lora_alpha, neftune,
	    max_spike, guard_warn,
	    guard_stop, upcycle_drop;
	int batch, accum, seq, threads, keep, dtype, compute, lora_rank, expert_parallel;
	bool shuffle, skip_bad, resume, force, dry_run, guard, profile, recompute;
};
extern struct train_opt train_flags;		/* what the table fills in */
extern const struct opt train_opts[];

/* Where batches come from. `self` is what open returned. */
struct source {
	/* bytes of micro.extra, for each item of --batch */
	size_t extra;
	void *(*open)(const struct train_opt *o, const struct config *c, struct tok *t, int nfiles,
	    /* eval: in order, once; t may be NULL */
	    char *const files[], bool eval, struct err *e);
	void (*close)(void *self);
	bool (*streams)(const void *self);			/* reads a pipe */
	/* items until the end; -1: no end, or not known */
	int64_t (*rows)(const void *self);
	int64_t (*bytes)(const void *self);			/* memory held */
	/* object that tells other data from this, for --resume */
	json_t *(*identity)(const void *self);
	/* This rank's up to B items of the next B of every rank, b.B 0 when it has none; it
	 * passes over those of others. 1, also when only others have some; 0 at the end; -1. */
	int (*next)(void *self, struct micro *mb, int B, struct err *e);
	/* has given only part of what it cannot make again: no checkpoint now; NULL: never */
	bool (*midway)(const void *self);
	json_t *(*position)(const void *self);
	int (*seek)(void *self, const json_t *position, struct err *e);	/* NULL: the start */
	json_t *(*inputs)(const void *self);			/* chronos.data */
	/* where the records come from, to name them; may be NULL */
	struct corpus *(*corpus)(void *self);
};
extern const struct source packed_source;			/* documents, packed (data.h) */

struct stage_in {
	struct model *m;	/* after model_forward on this batch */
	struct model *ref;	/* the frozen start, after the same; NULL unless asked for */
	const struct micro *mb;
	int64_t targets, units;	/* of the whole step, on all ranks; means are over units */
	real *coef;		/* (R) scratch; NULL: the loss only, no gradient (evaluation) */
	real *logp;		/* (R) scratch */
	double *sum, *weight;	/* (METRIC_MAX) add to them: measures by stage->metrics; records
				   show sum / weight */
};

struct stage_env {		/* what a stage may build on */
	const struct train_opt *o;
	const struct config *cfg;
	struct tok *tok;	/* NULL: none */
	const struct backend *be;
	const struct model *m;	/* the one in training, its weights in place; NULL while planning */
	int sequences;		/* of a micro-batch at most */
	void *src, *eval_src;	/* what stage->source opened; eval_src NULL: no --eval */
	const char *parent;	/* fingerprint of the starting model; "": none */
};

struct stage {
	const char *name;	/* "pretrain": the records' "stage" */
	const struct source *source;
	double (*loss)(const struct stage_in *in);	/* this batch's part of the step's base
							   loss */
	const char *const *metrics;	/* names of what loss measures, NULL-terminated, at most
					   METRIC_MAX; NULL: nothing */
	int64_t (*units)(const struct micro *mb);	/* NULL: rows with a target */
	int group;		/* sequences of an item, which --batch counts and source->rows
				   and next give; 0: 1 */
	json_t *(*settings)(void);	/* object: options of its own that a resumed run must
					   share; NULL: none */
	bool no_noise;		/* neither dropout nor random misses */
	bool needs_ref;		/* the frozen starting model (-m), also without a router anchor */
	bool generates;		/* with the model in training, whose experts must all be here */
	/* What the stage holds besides (a teacher, an engine): what it will take, taken before
	 * the first step, given back (also if never taken). NULL: nothing. */
	int (*plan)(const struct stage_env *v, struct mem_plan *p, struct err *e);
	int (*open)(const struct stage_env *v, struct err *e);
	/* Before the models are opened: what is computed once, in memory given back before they
	 * take it. NULL: nothing. */
	int (*prepare)(const struct stage_env *v, struct err *e);
	void (*close)(void);
	const struct err *why;	/* what kept the loss from being a number, status 0 so far; NULL:
				   nothing that the stage knows */
};

/* Trains and writes OUT. Returns 0, or EX_TEMPFAIL when it stopped early with a checkpoint, or
 * -1. */
int train_run(const struct stage *s, int argc, char *const argv[], const struct opt *opts,
    int nfiles,
    char *const files[], struct err *e) CHR_MUST_CHECK;

/* All of a trainer's main() but its defaults. ready: called when the options are read, to check
 * them and to give the stage. Returns the exit status. */
int train_main(int argc, char **argv, const struct opt *opts, const struct opt_prog *prog,
    const struct stage *(*ready)(void));

/* What steps cost: those of train_run() as train_flags say, but for how many and what is
 * written, which is nothing. One that is not counted comes first, for memory to be there. */
struct train_cost {
	int steps;			/* to take; the rest is result */
	double *step_s;			/* (steps) the caller's */
	double open_s;			/* until the first step */
	int64_t tokens;			/* of all counted steps */
	double loss;			/* of the last */
	struct profile profile;
	int seq;			/* no longer than the model's positions */
	int64_t parameters, active, plan;
	json_t *config, *data;		/* of the model; as in chronos.data. The caller decrefs
					   both */
	char parent[33];		/* fingerprint of the starting model; "": none */
};
/* 0, or -1; with --dry-run the plan is printed and nothing else done. */
int train_measure(const struct stage *s, int nfiles, char *const files[], struct train_cost *c,
    struct err *e) CHR_MUST_CHECK;

#endif
