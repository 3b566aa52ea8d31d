/*
 * grpo: the stage of chr-grpo. A step asks for `group` completions of each of its prompts, has
 * them judged, and makes those better than their group's mean more likely. The rollouts of a
 * step are used for `iterations` steps.
 *
 *	grpo_defaults();
 *	opts includes grpo_opts
 *	train_run(grpo_stage(), ...);
 */
#ifndef CHR_GRPO_H
#define CHR_GRPO_H

#include "train/train.h"

extern const struct opt grpo_opts[];

void grpo_defaults(void);
const struct stage *grpo_stage(void);		/* from the options; a mistake in them ends the
						   program */
/* the stage's plan, by itself */
int grpo_plan(const struct stage_env *v, struct mem_plan *p, struct err *e) CHR_MUST_CHECK;

#endif
