/*
 * grpo_int: what grpo.c (options, loss, what a run holds) and grpo_source.c (prompts to judged
 * completions) share. Not installed.
 */
#ifndef CHR_GRPO_INT_H
#define CHR_GRPO_INT_H

#include "stages/grpo.h"
#include "stages/loss_grpo.h"
#include "text/prompt.h"
#include "stages/reward.h"
#include "stages/rollout.h"

#define GRPO_REWARDS 7

struct grpo_flags {
	int group, max_new, parallel, iterations, scale, log_samples;
	struct grpo_opt loss;
	struct sample_opt sample;
	struct opt_list reward, reward_weight, stop;
	double timeout;
	bool chat, replay, mask_overlong;
};
extern struct grpo_flags grpo_flags;

/* What all sources of a run share. */
struct grpo_run {
	struct rollout *rollout;
	int n;					/* rewards */
	struct reward *reward[GRPO_REWARDS];
	double weight[GRPO_REWARDS];
};
extern struct grpo_run grpo_run;

/* The completions of one micro-batch, for the loss. micro.extra holds a pointer to it. */
struct grpo_slice {
	int n;				/* sequences */
	const struct completion *c;	/* (n) */
	const double *reward;		/* (n) weighted sums */
	const double *part;		/* (n, rewards) */
	const double *spread;		/* (n / group) standard deviations */
	const real *adv;		/* (n) */
	real *old, *ref;		/* (n, T) log-probs of the targets: of the policy that
					   sampled, of the reference */
	bool fresh;			/* old is not known yet */
	bool eval;
	int32_t *replay;		/* (Ls, n*T, K) */
	int32_t *used;			/* (n*T, K) scratch */
};

extern const struct source grpo_source;
/* Memory of the rollouts of one source: `micros` micro-batches of `sequences`. */
int64_t grpo_source_bytes(const struct config *c, const struct train_opt *o, int micros,
    int sequences);

#endif
