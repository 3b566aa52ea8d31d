/*
 * cpu_route: routers (router.h): the choice of experts, its weights, and the way back.
 *
 * What is kept of a row is the share p of each score s in their sum S, so that statistics of
 * routers mean the same whatever the score: of a softmax p = s and S = 1.
 */
#include <math.h>
#include <string.h>

#include "backend/cpu/cpu.h"
#include "backend/cpu/cpu_kernels.h"
#include "base/pool.h"

static real sum_of(const struct route_args *a, int64_t i)
{
	return a->r->sigmoid ? a->sums[i] : 1;
}

/* Weights of row i from its shares, of scores that sum to `all`. */
static void weigh(const struct route_args *a, int64_t i, real all)
{
	router_weigh(a->r, a->probs + i * a->E, all, a->ids + i * a->K, a->K,
	    a->weights + i * a->K);
}

static void route_rows(void *ctx, int64_t i0, int64_t i1, int worker)
{
	const struct route_args *a = ctx;

	(void)worker;
	if (!a->r->sigmoid)
		cpu_kernels()->softmax(a->probs + i0 * a->E, i1 - i0, a->E);
	for (int64_t i = i0; i < i1; i++) {
		real *p = a->probs + i * a->E, all = 1;

		if (a->r->sigmoid)
			all = router_scores(a->r, p, a->E, p);
		router_choose(a->r, a->bias, p, a->E, a->K, a->ids + i * a->K);
		for (int e = 0; a->r->sigmoid && e < a->E; e++)
			p[e] /= all;
		if (a->sums)
			a->sums[i] = all;
		weigh(a, i, all);
	}
}

static int64_t grain(int w) { return w >= 16384 ? 1 : 16384 / (w > 0 ? w : 1); }

void cpu_route(CPU, const struct route_args *a)
{
	cpu_kernels();
	pool_for(a->n, grain(a->E * 8), route_rows, (void *)(uintptr_t)a);
}

static void weights_rows(void *ctx, int64_t i0, int64_t i1, int worker)
{
	const struct route_args *a = ctx;

	(void)worker;
	for (int64_t i = i0; i < i1; i++)
		weigh(a, i, sum_of(a, i));
}

void cpu_route_weights(CPU, const struct route_args *a)
{
	pool_for(a->n, grain(a->E), weights_rows, (void *)(uintptr_t)a);
}

/* d, the gradient of the shares, becomes that of the scores: p = s / S. */
static void through_shares(real *d, const real *p, int E, real all)
{
	real dot = 0;

	for (int e = 0; e < E; e++)
		dot += d[e] * p[e];
	for (int e = 0; e < E; e++)
		d[e] = (d[e] - dot) / all;
}

/* Adds to d the gradient of the chosen scores through the weights. */
static void through_weights(const struct route_args *a, int64_t i, real *d, real all)
{
	const real *dw = a->dweights + i * a->K, *p = a->probs + i * a->E,
	    *w = a->weights + i * a->K;
	const int32_t *ids = a->ids + i * a->K;
	real sum = 0, dot = 0, by = 1, scale = (real)a->r->scale;

	for (int k = 0; k < a->K; k++) {
		sum += p[ids[k]] * all;
		dot += dw[k] * w[k];
	}
	if (a->r->renormalised)
		by = router_denominator(a->r, sum);
	if (!a->r->renormalised || (a->r->floor > 0 && (double)sum < a->r->floor))
		dot = 0;		/* divided by what does not depend on them */
	for (int k = 0; k < a->K; k++)
		d[ids[k]] += a->r->renormalised ? (scale * dw[k] - dot) / by : scale * dw[k];
}

static void back_rows(void *ctx, int64_t i0, int64_t i1, int worker)
{
	const struct route_args *a = ctx;
	int E = a->E;

	(void)worker;
	for (int64_t i = i0; i < i1; i++) {
		real *d = a->dlogits + i * E, all = sum_of(a, i), dot = 0;
		const real *p = a->probs + i * E;

		if (a->dprobs)
			memcpy(d, a->dprobs + i * E, (size_t)E * sizeof(real));
		else
			memset(d, 0, (size_t)E * sizeof(real));
		if (a->r->sigmoid)
			through_shares(d, p, E, all);
		through_weights(a, i, d, all);
		for (int e = 0; !a->r->sigmoid && e < E; e++)
			dot += d[e] * p[e];
		for (int e = 0; e < E; e++)
			d[e] = a->r->sigmoid ? d[e] * (p[e] * all) * (1 - p[e] * all)
			    : p[e] * (d[e] - dot);
	}
}

void cpu_route_back(CPU, const struct route_args *a)
{
	pool_for(a->n, grain(a->E * 8), back_rows, (void *)(uintptr_t)a);
}
