/*
 * model_head: the language-model head in chunks of rows, so that logits are never held whole,
 * and the lookahead head.
 */
#include "model/model_int.h"

static enum param_kind head_kind(const struct model *m)
{
	return m->cfg.tie_word_embeddings ? P_EMBED : P_HEAD;
}

/* Logits, or their gradient, of n rows, in place. */
static void scale_logits(struct model *m, dev_real *logits, int64_t n)
{
	if (m->cfg.logits_scaling != 1)
		m->be->scale(m->be, logits, 1 / m->cfg.logits_scaling, n * m->cfg.vocab_size);
}

static void chunk_logits(struct model *m, dev_real *logits, int64_t r0, int64_t n)
{
	int D = m->cfg.hidden_size, V = m->cfg.vocab_size;
	struct gemm_job j = { logits, V, m->hidden + r0 * D, D, model_w(m, head_kind(m), -1, -1), D,
	    DT_REAL, n, V, D, 0 };

	profile_begin(m->profile, PROFILE_HEAD);
	model_gemm(m, GEMM_NT, &j, 1);
	scale_logits(m, logits, n);
	profile_begin(m->profile, PROFILE_LOSS);
}

/* dlogits is overwritten. */
static void chunk_back(struct model *m, dev_real *dlogits, int64_t r0, int64_t n)
{
	int D = m->cfg.hidden_size, V = m->cfg.vocab_size;
	struct gemm_job dx = { m->dhidden + r0 * D, D, dlogits, V, model_w(m, head_kind(m), -1, -1),
	    D, DT_REAL, n, D, V, 0 };
	struct gemm_job dw = { model_g(m, head_kind(m), -1, -1), D, dlogits, V, m->hidden + r0 * D,
	    D, DT_REAL, V, D, n, 1 };

	profile_begin(m->profile, PROFILE_HEAD);
	scale_logits(m, dlogits, n);
	model_gemm(m, GEMM_NN, &dx, 1);
	model_gemm(m, GEMM_TN, &dw, 1);
	profile_begin(m->profile, PROFILE_LOSS);
}

/* Log-probs of the chunk's targets to the host. coef: on the device, or NULL. */
static void chunk_logp(struct model *m, real *logp, const dev_real *coef, int64_t n)
{
	struct model_act *a = m->act;

	m->be->logprob(m->be, a->logits, a->logp, a->target, coef, n, m->cfg.vocab_size);
	m->be->get(m->be, logp, a->logp, (size_t)n * sizeof *logp);
}

/* What each log-prob weighs, to the device; coef NULL: nothing. */
static const dev_real *chunk_coef(struct model *m, const real *coef, int64_t r0, int64_t n)
{
	if (!coef)
		return NULL;
	m->be->put(m->be, m->act->coef, coef + r0, (size_t)n * sizeof *coef);
	return m->act->coef;
}

void model_head(struct model *m, const struct batch *b, const real *coef, real *logp,
    const struct head_hook *hook)
{
	struct model_act *a = m->act;
	int V = m->cfg.vocab_size;

	for (int64_t r0 = 0; r0 < a->R; r0 += a->head_rows) {
		int64_t n = a->R - r0 < a->head_rows ? a->R - r0 : a->head_rows;

		chunk_logits(m, a->logits, r0, n);
		m->be->put(m->be, a->target, b->target + r0, (size_t)n * sizeof *b->target);
		if (hook && hook->fn) {
			m->be->zero(m->be, a->dlogits, (size_t)(n * V) * sizeof(real));
			hook->fn(hook->ctx, a->logits, a->dlogits, r0, n, V);
		}
		if (hook && hook->weigh && coef) {
			chunk_logp(m, logp + r0, a->ones, n);
			hook->weigh(hook->ctx, r0, n);
			m->be->scale_rows(m->be, a->logits, chunk_coef(m, coef, r0, n), n, V);
		} else
			chunk_logp(m, logp + r0, chunk_coef(m, coef, r0, n), n);
		if (hook && hook->fn && coef)
			m->be->axpy(m->be, a->logits, a->dlogits, 1, n * V);
		if (coef)
			chunk_back(m, a->logits, r0, n);
	}
}

void model_logits(struct model *m, dev_real *logits)
{
	chunk_logits(m, logits, 0, m->act->R);
}

void model_look_forward(struct model *m, const dev_real *h)
{
	struct model_act *a = m->act;
	int D = m->cfg.hidden_size, W = D / 4;

	model_linear(m, a->look_a, h, model_w(m, P_LOOK0, -1, -1), W, D, 0);
	m->be->silu(m->be, a->look_h, a->look_a, (int64_t)a->R * W);
	model_linear(m, m->look, a->look_h, model_w(m, P_LOOK2, -1, -1),
	    config_lookahead_rows(&m->cfg), W, 0);
}

void model_look_back(struct model *m, const dev_real *h)
{
	struct model_act *a = m->act;
	int D = m->cfg.hidden_size, W = D / 4;

	model_linear_back(m, a->t1, 0, model_g(m, P_LOOK2, -1, -1), m->dlook, a->look_h,
	    model_w(m, P_LOOK2, -1, -1),
	    config_lookahead_rows(&m->cfg), W);
	m->be->silu_back(m->be, a->t1, a->t1, a->look_a, (int64_t)a->R * W);
	model_linear_back(m, a->dh, 1, model_g(m, P_LOOK0, -1, -1), a->t1, h,
	    model_w(m, P_LOOK0, -1, -1), W, D);
}
