/*
 * loss_pref: losses on pairs of completions, one preferred to the other. Those of one pair are
 * plain functions of sums of log-probs; the batch's go from model outputs to coefficients for
 * model_head(), as all of loss.h does.
 *
 *	loss_pref_reference(ref, &b, pair, n, logp);		or pair[i].ref from elsewhere
 *	loss = loss_dpo(m, &b, pair, n, units, &opt, coef, logp, sum, weight);
 */
#ifndef CHR_LOSS_PREF_H
#define CHR_LOSS_PREF_H

#include "model/model.h"

enum { CHOSEN, REJECTED };

struct pref {			/* a pair in a batch; by CHOSEN and REJECTED */
	int n;			/* pairs of the batch, the same in all of them */
	int32_t first[2];	/* row of the batch where it begins; its rows follow each other */
	int32_t rows[2];
	int32_t targets[2];	/* rows with a target, at least 1 */
	uint64_t key;		/* of what it says */
	double ref[2];		/* sum of log-probs under the reference */
};

/* --- one pair: `logp` are sums over targets --- */

struct pref_loss {
	double loss;
	double d[2];		/* dloss / dlogp */
};

enum dpo_kind { DPO_SIGMOID, DPO_IPO, DPO_HINGE };

struct dpo_opt {
	enum dpo_kind kind;
	double beta;
	double smoothing;	/* chance that a label is wrong; DPO_SIGMOID only */
	double rpo_alpha;	/* weight of the chosen completion's mean negative log-prob */
};

/* With h = (logp_w - ref_w) - (logp_l - ref_l):
 *	sigmoid	-(1 - s) ln sigmoid(beta h) - s ln sigmoid(-beta h)	Rafailov et al. 2023,
 *	arXiv:2305.18290; s: Mitchell 2023
 *	ipo	(h - 1 / (2 beta))^2, each log-prob a mean over targets	Azar et al. 2023,
 *	arXiv:2310.12036
 *	hinge	max(0, 1 - beta h)					Zhao et al. 2023,
 *	arXiv:2305.10425
 * plus rpo_alpha * -logp_w / targets_w (Pang et al. 2024, arXiv:2404.19733). */
struct pref_loss dpo_pair(const struct dpo_opt *o, const struct pref *p, const double logp[2]);

struct orpo_opt {
	double lambda;
	double beta;		/* inside the sigmoid; 1 is the paper's, 0.1 the form of the
				   reference */
};

/* a: mean log-prob of a target. -a_w - lambda ln sigmoid(beta (o(a_w) - o(a_l))), o(a) = a - ln
 * max(1 - e^a, 1e-6). Hong et al. 2024, arXiv:2403.07691. nll and ratio (may be NULL): the two
 * parts, without lambda. */
struct pref_loss orpo_pair(const struct orpo_opt *o, const struct pref *p, const double logp[2],
    double *nll,
    double *ratio);

/* --- a batch --- */

/* Sums of log-probs of model m's last forward into pair[].ref. logp (R): scratch. */
void loss_pref_reference(struct model *m, const struct batch *b, struct pref *pair, int n,
    real *logp);

/* This batch's part of a mean over `units` pairs. coef (R) or NULL: the value only. logp (R):
 * scratch. sum and weight: measures are added in the order of the names. */
double loss_dpo(struct model *m, const struct batch *b, const struct pref *pair, int n,
    int64_t units,
    const struct dpo_opt *o, real *coef, real *logp, double *sum, double *weight);
extern const char *const loss_dpo_metrics[];

double loss_orpo(struct model *m, const struct batch *b, const struct pref *pair, int n,
    int64_t units,
    const struct orpo_opt *o, real *coef, real *logp, double *sum, double *weight);
extern const char *const loss_orpo_metrics[];

#endif
