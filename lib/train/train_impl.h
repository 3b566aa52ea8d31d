/*
 * train_impl: the state of a run, shared by train.c (the loop) and train_setup.c (what must be
 * there before it starts).
 */
#ifndef CHR_TRAIN_IMPL_H
#define CHR_TRAIN_IMPL_H

#include "train/badstep.h"
#include "train/best_eval.h"
#include "train/ckpt.h"
#include "base/guard.h"
#include "model/lora.h"
#include "base/mem.h"
#include "train/metric.h"
#include "model/optim.h"
#include "base/progress.h"
#include "model/route_loss.h"
#include "train/train.h"

struct train {
	struct train_opt o;		/* as given, with what follows from other options filled
					   in */
	const struct stage *s;
	int nfiles;
	char *const *files;
	json_t *command;		/* canonical command line */

	struct config cfg;
	struct tok *tok;		/* NULL: none needed */
	const struct backend *be;
	struct model m, ref;		/* ref: the frozen start; open when has_ref */
	struct model_hooks hooks;	/* of m, when its own weights are trained */
	bool last_micro;		/* of a step: its gradients are complete after this one */
	bool has_ref;
	bool *picked;			/* (parameters) that --freeze or --lora-target names;
					   NULL: neither was given */
	struct lora lora;		/* open when o.lora_rank > 0 */
	struct weights trained;		/* of m, or of lora */
	struct optim opt;
	struct schedule schedule;
	json_t *metadata;		/* of the starting model (-m), or NULL */
	char parent[33];		/* its fingerprint */

	void *src, *eval_src;
	bool streams;			/* the data come through a pipe */
	json_t *position;		/* of a stream: where the step being taken began; NULL
					   between steps */
	struct micro *micro;		/* (accum), and with several ranks one for what is not
					   this one's */
	real *coef, *logp;		/* (R) */
	struct route_lambda lambda;
	struct route_step route;	/* of the step, or of the evaluation */
	struct route_scratch *scratch;
	real *choice_bias;		/* (Ls, E) of routers, or NULL: none has any */
	struct {			/* what the router's losses see of the models, and give */
		struct mirror probs, topk, look, ref, ahead, dprobs, dlook, dahead;
	} seen;
	struct mem_plan plan;
	int64_t parameters;

	bool measured;			/* by train_measure(): nothing is written */
	bool stopping, due, look_due;	/* stop, save, evaluate as soon as the source is not
					   midway */
	struct guard *guard;		/* NULL: none */
	int lock;			/* on OUT; -1: none */
	char *resume;			/* directory of the checkpoint to go on from, or NULL */
	int64_t step, first_step;	/* optimiser steps done; when this run began */
	int64_t tokens, first_tokens;	/* input so far, padding not counted; when this run began */
	struct metric now;		/* of the step */
	bool began_bad;			/* with weights that are not finite */
	struct best_eval best;
	bool bad_eval;			/* the last evaluation measured what is not finite */
	struct badstep bad;
	int bad_micro;			/* of the step: the micro-batch whose loss is not finite,
					   -1: not known */
	struct progress progress;
	struct profile profile;		/* the models point to it under --profile */
	double clock;			/* time of the last record, */
	int64_t clock_tokens;		/* and the tokens then */
};

/* Everything up to the first step. Returns 0, or -1. After --dry-run there is only the plan. */
int train_setup(struct train *t, struct err *e) CHR_MUST_CHECK;
void train_teardown(struct train *t);

/* What the router's terms of a batch are (train_router.c). Rows: before the model has seen it. */
void train_router_rows(struct train *t, const struct batch *b);
void train_router_load(struct train *t, const struct batch *b);
/* This rank's part of the step's weighted terms. gradients: they go to the model. count: what
 * the router did goes into the statistics of the step. */
double train_router_loss(struct train *t, const struct batch *b, bool gradients, bool count);

int64_t train_rows(const struct train *t);	/* of a micro-batch at most, on this rank */

/* train_resume.c: what a resumed run must have in common with the one before, and going on from
 * the checkpoint t->resume, whose weights are there already. */
const char *train_backend(const struct train *t);	/* what to open: until the next call */
json_t *train_settings(const struct train *t);
int train_restore(struct train *t, struct err *e) CHR_MUST_CHECK;

#endif
