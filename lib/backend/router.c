#include "backend/router.h"

#include <math.h>
#include <string.h>

#include "backend/host.h"
#include "base/topk.h"

#define EPSILON ((real)1e-20)

real router_scores(const struct router *r, const real *z, int E, real *s)
{
	real sum = 0;

	if (!r->sigmoid) {
		host_softmax(z, E, s);
		return 1;
	}
	for (int e = 0; e < E; e++)
		sum += s[e] = (real)(1 / (1 + exp(-(double)z[e])));
	return sum;
}

real router_shares(const struct router *r, const real *z, int E, real *p)
{
	real sum = router_scores(r, z, E, p);

	for (int e = 0; r->sigmoid && e < E; e++)
		p[e] /= sum;
	return sum;
}

/* What groups are chosen by. */
static real group_score(const real *x, int n, bool two)
{
	real first = -INFINITY, second = -INFINITY;

	for (int e = 0; e < n; e++)
		if (x[e] > first) {
			second = first;
			first = x[e];
		} else if (x[e] > second)
			second = x[e];
	return two ? first + second : first;
}

/* score (groups); in[g]: is it one of the kept? Returns the least score of these. */
static real best_groups(const struct router *r, real *by, int E, real *score, bool *in)
{
	int n = E / r->groups;
	int32_t best[r->groups];

	memset(in, 0, (size_t)r->groups * sizeof *in);
	for (int g = 0; g < r->groups; g++)
		score[g] = group_score(by + g * n, n, r->sigmoid);
	topk_best(score, r->groups, r->kept, best);
	for (int g = 0; g < r->kept; g++)
		in[best[g]] = true;
	return score[best[r->kept - 1]];
}

/* by (E): scores and bias; experts of groups that are out are no choice at all. */
static void choose_by(const struct router *r, real *by, int E, int K, int32_t *ids)
{
	int groups = r->groups > 1 ? r->groups : 1;
	real score[groups];
	bool in[groups];

	if (groups > 1)
		best_groups(r, by, E, score, in);
	for (int e = 0; groups > 1 && e < E; e++)
		if (!in[e / (E / groups)])
			by[e] = -INFINITY;
	topk_best(by, E, K, ids);
}

void router_choose(const struct router *r, const real *bias, const real *s, int E, int K,
    int32_t *ids)
{
	real by[E];

	if (router_by_logits(r, bias)) {
		topk_best(s, E, K, ids);
		return;
	}
	for (int e = 0; e < E; e++)
		by[e] = s[e] + (bias ? bias[e] : 0);
	choose_by(r, by, E, K, ids);
}

real router_denominator(const struct router *r, real sum)
{
	return r->floor > 0 ? (real)fmax((double)sum, r->floor)
	    : sum + (r->more > 0 ? (real)r->more : EPSILON);
}

void router_weigh(const struct router *r, const real *p, real all, const int32_t *ids, int K,
    real *w)
{
	real sum = 0;

	for (int k = 0; k < K; k++)
		sum += w[k] = r->sigmoid ? p[ids[k]] * all : p[ids[k]];
	for (int k = 0; r->renormalised && k < K; k++)
		w[k] /= router_denominator(r, sum);
	for (int k = 0; r->scale != 1 && k < K; k++)
		w[k] *= (real)r->scale;
}

/* Experts of groups that are out lie below the chosen by what their group lacks. */
static void demote(const struct router *r, real *wants, int E, int K)
{
	int n = E / r->groups;
	real score[r->groups], by[E], least;
	bool in[r->groups];
	int32_t ids[K];
	real last = best_groups(r, wants, E, score, in);

	memcpy(by, wants, sizeof by);
	choose_by(r, by, E, K, ids);
	least = wants[ids[K - 1]];
	for (int e = 0; e < E; e++)
		if (!in[e / n])
			wants[e] = (wants[e] < least ? wants[e] : least) - (last - score[e / n]);
}

void router_wants(const struct router *r, const real *bias, const real *z, int E, int K,
    real *wants)
{
	real s[E];

	if (router_by_logits(r, bias)) {
		memmove(wants, z, (size_t)E * sizeof *z);
		return;
	}
	router_scores(r, z, E, s);
	for (int e = 0; e < E; e++)
		wants[e] = s[e] + (bias ? bias[e] : 0);
	if (r->groups > 1)
		demote(r, wants, E, K);
}
