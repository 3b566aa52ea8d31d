#include "stages/loss_pref.h"

#include <math.h>

/* --- one pair --- */

static double log_sigmoid(double x)
{
	return x < 0 ? x - log1p(exp(x)) : -log1p(exp(-x));
}

static double sigmoid(double x)
{
	return x < 0 ? exp(x) / (1 + exp(x)) : 1 / (1 + exp(-x));
}

/* Loss of the scaled log-ratio x, and its derivative. */
static double dpo_of_ratio(const struct dpo_opt *o, double x, double *d)
{
	if (o->kind == DPO_HINGE) {
		*d = x < 1 ? -1 : 0;
		return x < 1 ? 1 - x : 0;
	}
	if (o->kind == DPO_IPO) {
		*d = 2 * (x - 0.5 / o->beta);
		return (x - 0.5 / o->beta) * (x - 0.5 / o->beta);
	}
	*d = -(1 - o->smoothing) * sigmoid(-x) + o->smoothing * sigmoid(x);
	return -(1 - o->smoothing) * log_sigmoid(x) - o->smoothing * log_sigmoid(-x);
}

struct pref_loss dpo_pair(const struct dpo_opt *o, const struct pref *p, const double logp[2])
{
	double scale[2] = { o->beta, o->beta }, x, d, nll = -logp[CHOSEN] / p->targets[CHOSEN];
	struct pref_loss l;

	for (int s = 0; o->kind == DPO_IPO && s < 2; s++)
		scale[s] = 1.0 / p->targets[s];
	x = scale[CHOSEN] * (logp[CHOSEN] - p->ref[CHOSEN]) - scale[REJECTED] *
	    (logp[REJECTED] - p->ref[REJECTED]);
	l.loss = dpo_of_ratio(o, x, &d) + o->rpo_alpha * nll;
	l.d[CHOSEN] = d * scale[CHOSEN] - o->rpo_alpha / p->targets[CHOSEN];
	l.d[REJECTED] = -d * scale[REJECTED];
	return l;
}

/* A completion that is all but certain has no finite odds; below this its complement counts as
 * constant. */
#define ODDS_FLOOR 1e-6

static double log_odds(double a, double *d)
{
	double rest = -expm1(a);

	*d = rest > ODDS_FLOOR ? 1 / rest : 1;
	return a - log(rest > ODDS_FLOOR ? rest : ODDS_FLOOR);
}

struct pref_loss orpo_pair(const struct orpo_opt *o, const struct pref *p, const double logp[2],
    double *nll,
    double *ratio)
{
	double a[2], odds[2], dodds[2], x, d;
	struct pref_loss l;

	for (int s = 0; s < 2; s++) {
		a[s] = logp[s] / p->targets[s];
		odds[s] = log_odds(a[s], &dodds[s]);
	}
	x = o->beta * (odds[CHOSEN] - odds[REJECTED]);
	d = -o->lambda * o->beta * sigmoid(-x);
	l.loss = -a[CHOSEN] - o->lambda * log_sigmoid(x);
	l.d[CHOSEN] = (-1 + d * dodds[CHOSEN]) / p->targets[CHOSEN];
	l.d[REJECTED] = -d * dodds[REJECTED] / p->targets[REJECTED];
	if (nll)
		*nll = -a[CHOSEN];
	if (ratio)
		*ratio = -log_sigmoid(x);
	return l;
}

/* --- a batch --- */

static void sums(const struct batch *b, const struct pref *p, const real *logp, double out[2])
{
	for (int s = 0; s < 2; s++) {
		out[s] = 0;
		for (int32_t r = p->first[s]; r < p->first[s] + p->rows[s]; r++)
			if (b->target[r] >= 0)
				out[s] += logp[r];
	}
}

void loss_pref_reference(struct model *m, const struct batch *b, struct pref *pair, int n,
    real *logp)
{
	model_head(m, b, NULL, logp, NULL);
	for (int i = 0; i < n; i++)
		sums(b, &pair[i], logp, pair[i].ref);
}

static void spread(const struct batch *b, const struct pref *p, const double d[2], double scale,
    real *coef)
{
	for (int s = 0; s < 2; s++)
		for (int32_t r = p->first[s]; r < p->first[s] + p->rows[s]; r++)
			coef[r] = b->target[r] >= 0 ? (real)(d[s] * scale) : 0;
}

/* The head runs twice: log-probs first, and gradients once their coefficients are known. */
static void begin(struct model *m, const struct batch *b, real *coef, real *logp)
{
	model_head(m, b, NULL, logp, NULL);
	for (int64_t r = 0; coef && r < (int64_t)b->B * b->T; r++)
		coef[r] = 0;
}

static void add(double *sum, double *weight, int i, double value, double w)
{
	sum[i] += value;
	weight[i] += w;
}

/* A tie counts half: before the first step policy and reference agree on everything. */
static double won(double w, double l)
{
	return w > l ? 1 : w == l ? 0.5 : 0;
}

enum { D_CHOSEN, D_REJECTED, D_MARGIN, D_ACCURACY, D_LOGP_W, D_LOGP_L, D_DRIFT_W, D_DRIFT_L };
const char *const loss_dpo_metrics[] = {
	"reward_chosen", "reward_rejected", "margin", "accuracy", "logp_chosen", "logp_rejected",
	    "drift_chosen",
	"drift_rejected", NULL
};

static void measure_dpo(const struct dpo_opt *o, const struct pref *p, const double logp[2],
    double *sum, double *weight)
{
	double drift[2] = { logp[CHOSEN] - p->ref[CHOSEN], logp[REJECTED] - p->ref[REJECTED] };
	double w = o->beta * drift[CHOSEN], l = o->beta * drift[REJECTED];

	add(sum, weight, D_CHOSEN, w, 1);
	add(sum, weight, D_REJECTED, l, 1);
	add(sum, weight, D_MARGIN, w - l, 1);
	add(sum, weight, D_ACCURACY, won(w, l), 1);
	add(sum, weight, D_LOGP_W, logp[CHOSEN], p->targets[CHOSEN]);
	add(sum, weight, D_LOGP_L, logp[REJECTED], p->targets[REJECTED]);
	add(sum, weight, D_DRIFT_W, drift[CHOSEN], p->targets[CHOSEN]);
	add(sum, weight, D_DRIFT_L, drift[REJECTED], p->targets[REJECTED]);
}

double loss_dpo(struct model *m, const struct batch *b, const struct pref *pair, int n,
    int64_t units,
    const struct dpo_opt *o, real *coef, real *logp, double *sum, double *weight)
{
	double total = 0, scale = units > 0 ? 1 / (double)units : 0, lp[2];

	begin(m, b, coef, logp);
	for (int i = 0; i < n; i++) {
		struct pref_loss l;

		sums(b, &pair[i], logp, lp);
		l = dpo_pair(o, &pair[i], lp);
		total += l.loss;
		measure_dpo(o, &pair[i], lp, sum, weight);
		if (coef)
			spread(b, &pair[i], l.d, scale, coef);
	}
	if (coef)
		model_head(m, b, coef, logp, NULL);
	return total * scale;
}

enum { O_NLL, O_RATIO, O_MARGIN, O_ACCURACY, O_LOGP_W, O_LOGP_L };
const char *const loss_orpo_metrics[] = {
	"nll", "odds_ratio", "margin", "accuracy", "logp_chosen", "logp_rejected", NULL
};

static void measure_orpo(const struct pref *p, const double logp[2], double nll, double ratio,
    double *sum,
    double *weight)
{
	double w = logp[CHOSEN] / p->targets[CHOSEN], l = logp[REJECTED] / p->targets[REJECTED];

	add(sum, weight, O_NLL, nll, 1);
	add(sum, weight, O_RATIO, ratio, 1);
	add(sum, weight, O_MARGIN, w - l, 1);
	add(sum, weight, O_ACCURACY, won(w, l), 1);
	add(sum, weight, O_LOGP_W, logp[CHOSEN], p->targets[CHOSEN]);
	add(sum, weight, O_LOGP_L, logp[REJECTED], p->targets[REJECTED]);
}

double loss_orpo(struct model *m, const struct batch *b, const struct pref *pair, int n,
    int64_t units,
    const struct orpo_opt *o, real *coef, real *logp, double *sum, double *weight)
{
	double total = 0, scale = units > 0 ? 1 / (double)units : 0, lp[2], nll, ratio;

	begin(m, b, coef, logp);
	for (int i = 0; i < n; i++) {
		struct pref_loss l;

		sums(b, &pair[i], logp, lp);
		l = orpo_pair(o, &pair[i], lp, &nll, &ratio);
		total += l.loss;
		measure_orpo(&pair[i], lp, nll, ratio, sum, weight);
		if (coef)
			spread(b, &pair[i], l.d, scale, coef);
	}
	if (coef)
		model_head(m, b, coef, logp, NULL);
	return total * scale;
}
