/*
 * loss_grpo: group-relative policy optimisation (Shao et al. 2024, arXiv:2402.03300). For token
 * t of completion i with advantage A_i and ratio r = exp(ln p - ln p_old):
 *
 *	L = -sum w_i min(r A_i, clip(r, 1 - epsilon, 1 + epsilon_high) A_i) + beta mean(e^x - x -
 *	    1), x = ln p_ref - ln p
 *
 *	w_i	GRPO_SEQUENCE	1 / (N n_i): mean over the n_i tokens of each of the N
 *				completions, then over these
 *		GRPO_CONSTANT	1 / (N max_new) (Dr. GRPO, arXiv:2503.20783)
 *		GRPO_TOKEN	1 / all tokens (DAPO, arXiv:2503.14476, also for two epsilons)
 *
 * The mean of the KL estimate (k3, Schulman 2020) is over all tokens of the step. Log-probs are
 * those of the policy at the temperature it was sampled with.
 */
#ifndef CHR_LOSS_GRPO_H
#define CHR_LOSS_GRPO_H

#include <stdbool.h>

#include "model/model.h"

enum grpo_norm { GRPO_SEQUENCE, GRPO_CONSTANT, GRPO_TOKEN };
enum grpo_scale { GRPO_SCALE_GROUP, GRPO_SCALE_BATCH, GRPO_SCALE_NONE };

struct grpo_opt {
	double beta, epsilon, epsilon_high, temperature;
	int norm, max_new;
};

struct grpo_in {
	const struct grpo_opt *o;
	const struct batch *b;		/* a completion per sequence; its tokens are the targets */
	const real *adv;		/* (B) advantages */
	real *old;			/* (R) log-probs of the policy that sampled, */
	bool fresh;			/* or, when this is that policy: they are written */
	const real *ref;		/* (R) of the reference, or NULL when beta is 0 */
	int64_t units, targets;		/* N, and all tokens of the step */
	real *coef, *logp;		/* (R) scratch; coef NULL: no gradient */
};

/* surrogate: part of L; others: sums over tokens */
struct grpo_sums { double surrogate, kl, clipped, tokens; };

/* Log-probs of the targets at a temperature, after model_forward(). */
void grpo_logp(struct model *m, const struct batch *b, double temperature, real *logp);

/* This batch's part of L, after model_forward(); with coef, the head's gradient. */
double grpo_loss(struct model *m, const struct grpo_in *in, struct grpo_sums *sums);

/* false: the rewards, or their squares, are too large to be added up.
 * Advantages of n rewards, of groups of G that follow each other: less the mean of the group and
 * divided by the unbiased standard deviation (at least 1e-6) of the group, of all ranks'
 * rewards, or not at all. spread (n / G, may be NULL): of each group. */
bool grpo_advantages(const double *reward, int n, int G, enum grpo_scale scale, real *adv,
    double *spread);

#endif
