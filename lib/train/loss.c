#include "train/loss.h"

int64_t loss_targets(const struct batch *b)
{
	int64_t n = 0;

	for (int64_t r = 0; r < (int64_t)b->B * b->T; r++)
		n += b->target[r] >= 0;
	return n;
}

int64_t loss_tokens(const struct batch *b)
{
	int64_t n = 0;

	for (int64_t r = 0; r < (int64_t)b->B * b->T; r++)
		n += b->doc_start[r] >= 0;
	return n;
}

double loss_ce(struct model *m, const struct batch *b, int64_t targets, real *coef, real *logp)
{
	double scale = targets > 0 ? 1 / (double)targets : 0, sum = 0;
	int64_t R = (int64_t)b->B * b->T;

	for (int64_t r = 0; coef != NULL && r < R; r++)
		coef[r] = b->target[r] >= 0 ? (real)-scale : 0;
	model_head(m, b, coef, logp, NULL);
	for (int64_t r = 0; r < R; r++)
		if (b->target[r] >= 0)
			sum += logp[r];
	return -scale * sum;
}
