/*
 * reward_int: the kinds of rewards. Not installed.
 */
#ifndef CHR_REWARD_INT_H
#define CHR_REWARD_INT_H

#include "stages/reward.h"

struct reward {
	int (*ask)(struct reward *r, const struct reward_item *it, double *x, struct err *e);
	int (*poll)(struct reward *r, int wait, struct err *e);		/* NULL: answers at once */
	/* NULL: nothing to give back */
	void (*close)(struct reward *r);
	void *self;
};

/* reward_cmd.c */
int reward_open_command(struct reward *r, const char *command, double timeout, struct err *e)
    CHR_MUST_CHECK;
/* reward_lm.c */
int reward_open_lm(struct reward *r, const char *dir, const struct reward_opt *o, struct err *e)
    CHR_MUST_CHECK;
int reward_plan_lm(const char *dir, const struct reward_opt *o, struct mem_plan *p, struct err *e)
    CHR_MUST_CHECK;

#endif
