/*
 * train_plan: the memory of a training run, from its configuration alone: no data, no tokenizer,
 * and nothing of it is taken. The trainers and chr-fit add up the same items here; what a stage
 * holds besides (plan of struct stage), its data and the program are the caller's to add.
 *
 *	struct train_plan_run r = { .cfg = &cfg, .batch = 8, .accum = 1, .group = 1, .seq = 512 };
 *	train_plan_run(&plan, &r, &ps, be);
 */
#ifndef CHR_TRAIN_PLAN_H
#define CHR_TRAIN_PLAN_H

#include "backend/backend.h"
#include "arch/config.h"
#include "base/mem.h"
#include "base/opt.h"

struct train_plan_run {
	const struct config *cfg;
	int batch, accum, seq;	/* as the options of those names */
	int group;		/* sequences of an item of the batch, at least 1 */
	size_t extra;		/* bytes of struct micro's extra for an item */
	bool ref;		/* holds the frozen starting model as well */
	bool recompute;		/* as of model_opt */
	int divided;		/* the same */
	int lora_rank;		/* 0: the model itself is trained */
	const bool *picked;	/* (parameters) that get an adapter or, without one, stay as they
				   are; NULL: none */
};

/* ps: of r->cfg. */
void train_plan_run(struct mem_plan *p, const struct train_plan_run *r, const struct params *ps,
    const struct backend *be);

/* Which parameters --lora-target (with an adapter) or --freeze name: *picked, mem_free()d by the
 * caller, stays NULL when there is nothing to pick. EX_USAGE when a pattern names none. */
int train_plan_pick(bool **picked, const struct config *c, const struct params *ps,
    int lora_rank, const struct opt_list *target, const struct opt_list *freeze, struct err *e)
    CHR_MUST_CHECK;

#endif
