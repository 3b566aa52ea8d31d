#include "stages/loss_grpo.h"

#include <math.h>

#include "base/comm.h"
#include "model/model_int.h"

static int targets_of(const struct batch *b, int i)
{
	int n = 0;

	for (int t = 0; t < b->T; t++)
		n += b->target[(int64_t)i * b->T + t] >= 0;
	return n;
}

static double weight(const struct grpo_in *in, int i)
{
	double all = in->o->norm == GRPO_TOKEN ? (double)in->targets : (double)in->units *
	    (in->o->norm == GRPO_CONSTANT ? in->o->max_new : targets_of(in->b, i));

	return all > 0 ? 1 / all : 0;
}

/* One token: its part of L, and the derivative by its log-prob. */
static double token(const struct grpo_in *in, int64_t r, double w, struct grpo_sums *s, double *d)
{
	const struct grpo_opt *o = in->o;
	double lp = in->logp[r], a = in->adv[r / in->b->T], ratio = in->fresh ? 1
	    : exp(lp - in->old[r]);
	bool clipped = a > 0 ? ratio > 1 + o->epsilon_high : a < 0 && ratio < 1 - o->epsilon;
	double value = -w * a * (!clipped ? ratio : a > 0 ? 1 + o->epsilon_high : 1 - o->epsilon);

	*d = clipped ? 0 : -w * a * ratio;
	s->surrogate += value;
	s->clipped += clipped;
	s->tokens++;
	if (in->ref != NULL) {
		double x = in->ref[r] - lp, k3 = exp(x) - x - 1,
		    mean = o->beta / (double)in->targets;

		s->kl += k3;
		value += mean * k3;
		*d += mean * (1 - exp(x));
	}
	return value;
}

/* Values and, with coef, derivatives of n rows from row0. */
static double rows(const struct grpo_in *in, int64_t row0, int64_t n, struct grpo_sums *s)
{
	double sum = 0, w = 0, d;
	int seq = -1;

	for (int64_t r = row0; r < row0 + n; r++) {
		d = 0;
		if (in->b->target[r] >= 0) {
			if (seq != r / in->b->T) {
				seq = (int)(r / in->b->T);
				w = weight(in, seq);
			}
			sum += token(in, r, w, s, &d);
		}
		if (in->coef != NULL)
			in->coef[r] = (real)d;
	}
	return sum;
}

static void weigh(void *ctx, int64_t row0, int64_t n)
{
	struct grpo_sums s = {0};

	rows(ctx, row0, n, &s);
}

/* Dividing the hidden states divides the logits. */
static void heat(struct model *m, dev_real *x, double temperature)
{
	if (temperature != 1)
		m->be->scale(m->be, x, 1 / temperature,
		    (int64_t)m->act->R * m->cfg.hidden_size);
}

void grpo_logp(struct model *m, const struct batch *b, double temperature, real *logp)
{
	heat(m, m->hidden, temperature);
	model_head(m, b, NULL, logp, NULL);
}

double grpo_loss(struct model *m, const struct grpo_in *in, struct grpo_sums *sums)
{
	const struct head_hook hook = { .weigh = weigh, .ctx = (void *)(uintptr_t)in };
	int64_t R = (int64_t)in->b->B * in->b->T;
	double value;

	*sums = (struct grpo_sums){0};
	heat(m, m->hidden, in->o->temperature);
	model_head(m, in->b, in->coef, in->logp, &hook);
	if (in->coef != NULL)
		heat(m, m->dhidden, in->o->temperature);
	value = rows(in, 0, R, sums);
	for (int64_t r = 0; in->fresh && r < R; r++)
		in->old[r] = in->logp[r];
	return value;
}

static double deviation(const double *x, int n, double mean)
{
	double sum = 0;

	for (int i = 0; i < n; i++)
		sum += (x[i] - mean) * (x[i] - mean);
	return n > 1 ? sqrt(sum / (n - 1)) : 0;
}

static double mean_of(const double *x, int n)
{
	double sum = 0;

	for (int i = 0; i < n; i++)
		sum += x[i];
	return n > 0 ? sum / n : 0;
}

/* The same over the rewards of all ranks. */
static double deviation_of_all(const double *reward, int n)
{
	double v[2] = { n, 0 }, square = 0;

	for (int i = 0; i < n; i++)
		v[1] += reward[i];
	comm_sum(v, 2);
	for (int i = 0; i < n; i++)
		square += (reward[i] - v[1] / v[0]) * (reward[i] - v[1] / v[0]);
	comm_sum(&square, 1);
	return v[0] > 1 ? sqrt(square / (v[0] - 1)) : 0;
}

bool grpo_advantages(const double *reward, int n, int G, enum grpo_scale scale, real *adv,
    double *spread)
{
	double all = deviation_of_all(reward, n);
	bool good = scale != GRPO_SCALE_BATCH || isfinite(all);

	for (int g = 0; g + G <= n; g += G) {
		double mean = mean_of(reward + g, G), sd = deviation(reward + g, G, mean);
		double by = scale == GRPO_SCALE_NONE ? 1 : fmax(scale == GRPO_SCALE_GROUP ? sd
		    : all, 1e-6);

		for (int i = g; i < g + G; i++)
			adv[i] = (real)((reward[i] - mean) / by);
		for (int i = g; i < g + G; i++)
			good = good && isfinite(adv[i]) && isfinite(sd);
		if (spread != NULL)
			spread[g / G] = sd;
	}
	return good;
}
