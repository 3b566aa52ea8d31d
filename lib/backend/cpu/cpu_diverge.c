/*
 * cpu_diverge: how far a student's next-token distribution is from a teacher's, with gradient:
 * the row diverge.
 *
 * Sums are of terms whose first order in an error of the normalisation cancels: q ln(q/p) - q +
 * p instead of q ln(q/p). So a divergence of 1e-6 comes out right although the float32
 * probabilities sum to 1 only within 1e-6.
 */
#include <math.h>
#include <string.h>

#include "backend/cpu/cpu.h"
#include "backend/cpu/cpu_kernels.h"
#include "base/pool.h"

/* p = softmax(z * s); returns the log of its denominator. */
static double log_softmax_sum(const struct cpu_kernels *kern, real *p, const real *z, real s, int V)
{
	real max, sum;

	for (int j = 0; j < V; j++)
		p[j] = z[j] * s;
	max = kern->max(p, V);
	sum = kern->exp_sum(p, V, max);
	for (int j = 0; j < V; j++)
		p[j] /= sum;
	return (double)max + log((double)sum);
}

/* p is the student's, q the teacher's distribution; ln(q_j / p_j) = (zq_j - zp_j) * s - c. */
struct pair {
	const real *zp, *zq;
	real *p, *q;
	double s, c;
	int V;
};

static double log_ratio(const struct pair *x, int j)
{
	return ((double)x->zq[j] - (double)x->zp[j]) * x->s - x->c;
}

/* KL(teacher || student) */
static double forward_kl(const struct pair *x, real *d, double coef)
{
	double sum = 0;

	for (int j = 0; j < x->V; j++) {
		double p = (double)x->p[j], q = (double)x->q[j];

		sum += q * log_ratio(x, j) - q + p;
		if (d != NULL)
			d[j] += (real)(coef * (p - q));
	}
	return sum;
}

/* d value / dp in q, and its mean under p: what the gradient through the softmax needs. */
static void through_softmax(const struct pair *x, double mean, real *d, double coef)
{
	for (int j = 0; d != NULL && j < x->V; j++)
		d[j] += (real)(coef * (double)x->p[j] * ((double)x->q[j] - mean));
}

/* KL(student || teacher) */
static double reverse_kl(const struct pair *x, real *d, double coef)
{
	double sum = 0, mean = 0;

	for (int j = 0; j < x->V; j++) {
		double p = (double)x->p[j], q = (double)x->q[j], r = -log_ratio(x, j);

		sum += p * r - p + q;
		mean += p * r;
		x->q[j] = (real)r;
	}
	through_softmax(x, mean, d, coef);
	return sum;
}

/* (KL(teacher || m) + KL(student || m)) / 2, m the mean of both */
static double jensen_shannon(const struct pair *x, real *d, double coef)
{
	double sum = 0, mean = 0;

	for (int j = 0; j < x->V; j++) {
		double p = (double)x->p[j], q = (double)x->q[j], r = log_ratio(x, j);
		double m = fmax(r, 0) + log1p(exp(-fabs(r))) - M_LN2;		/* ln(m / p) */

		sum += 0.5 * (q * (r - m) - p * m);
		mean -= 0.5 * p * m;
		x->q[j] = (real)(-0.5 * m);
	}
	through_softmax(x, mean, d, coef);
	return sum;
}

static double diverge_row(const struct cpu_kernels *kern, const struct diverge_args *a, int64_t i,
    real *scratch)
{
	int V = a->V;
	real *d = a->dstudent != NULL ? a->dstudent + i * V : NULL;
	struct pair x = { a->student + i * V, a->teacher + i * V, scratch, scratch + V,
	    1 / a->temperature, 0, V };
	double coef = a->coef / a->temperature;

	x.c = log_softmax_sum(kern, x.q, x.zq, (real)x.s, V) - log_softmax_sum(kern, x.p, x.zp,
	    (real)x.s, V);
	switch (a->kind) {
	case DIVERGE_FORWARD:
		return forward_kl(&x, d, coef);
	case DIVERGE_REVERSE:
		return reverse_kl(&x, d, coef);
	default:
		return jensen_shannon(&x, d, coef);
	}
}

static void diverge_rows(void *ctx, int64_t i0, int64_t i1, int worker)
{
	const struct diverge_args *a = ctx;
	const struct cpu_kernels *kern = cpu_kernels();
	real *scratch = cpu_thread_buffer(2 * (size_t)a->V * sizeof(real));

	(void)worker;
	for (int64_t i = i0; i < i1; i++)
		a->value[i] = a->target[i] < 0 ? 0 : (real)diverge_row(kern, a, i, scratch);
}

void cpu_diverge(CPU, const struct diverge_args *a)
{
	struct diverge_args args = *a;

	cpu_kernels();
	pool_for(a->n, 4, diverge_rows, &args);
}
