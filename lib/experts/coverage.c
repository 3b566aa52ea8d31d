#include "experts/coverage.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"

static const char *const source_name[COVERAGE_SOURCES] = { "intent", "popularity", "prompt",
    "prompt_popularity",
	"prompt_intent", "oracle", "lru" };
static const double budget[] = { 0.125, 0.25, 0.5 };

enum { BUDGETS = sizeof budget / sizeof *budget, BLENDS = 11 };

struct gain {			/* of one source over another, sequence by sequence */
	double sum, square;
	int64_t n;
};

struct measure {
	double loss, floor, uses, covered[BUDGETS][COVERAGE_SOURCES];
	struct gain gain[BUDGETS], blend[BUDGETS];	/* intent over popularity: alone, and
							   with what the prompt used */
	int64_t n;
};

static size_t size_of(const struct coverage *c)
{
	return (size_t)c->m->Ls * (size_t)c->m->E;
}

static void popular_share(const struct intent *m, const double *popular, real *score)
{
	for (int l = 0; l < m->Ls; l++) {
		const double *u = popular + (int64_t)l * m->E;
		double sum = 0;

		for (int e = 0; e < m->E; e++)
			sum += u[e];
		for (int e = 0; e < m->E && sum > 0; e++)
			score[(int64_t)l * m->E + e] = (real)(u[e] / sum * m->K);
	}
}

int coverage_open(struct coverage *c, const struct intent_pairs *a, const struct intent *m,
    const double *popular, struct err *e)
{
	bool ok;

	*c = (struct coverage){ .a = a, .m = m };
	ok = (c->order = calloc((size_t)m->E, sizeof *c->order)) != NULL;
	for (int i = 0; i < COVERAGE_SOURCES; i++)
		ok = (c->score[i] = calloc(size_of(c), sizeof **c->score)) != NULL && ok;
	if (!ok) {
		coverage_close(c);
		return err_set(e, EX_OSERR, "out of memory");
	}
	popular_share(m, popular, c->score[BY_POPULARITY]);
	return 0;
}

void coverage_close(struct coverage *c)
{
	for (int i = 0; i < COVERAGE_SOURCES; i++)
		free(c->score[i]);
	free(c->order);
	*c = (struct coverage){ 0 };
}

double coverage_entropy(const real *used, int Ls, int E)
{
	double sum = 0;

	for (int l = 0; l < Ls; l++, used += E) {
		double all = 0;

		for (int e = 0; e < E; e++)
			all += (double)used[e];
		for (int e = 0; e < E; e++)
			sum -= used[e] > 0 ? (double)used[e] / all * log((double)used[e] / all) : 0;
	}
	return sum / Ls;
}

/* Puts the N highest first. */
static void select_top(const real *score, int E, int N, int *order)
{
	for (int e = 0; e < E; e++)
		order[e] = e;
	for (int k = 0; k < N; k++) {
		int best = k, id;

		for (int i = k + 1; i < E; i++)
			if (score[order[i]] > score[order[best]]
			    || (score[order[i]] == score[order[best]] && order[i] < order[best]))
				best = i;
		id = order[best];
		order[best] = order[k];
		order[k] = id;
	}
}

double coverage_of(const real *used, const real *score, int Ls, int E, int N, int *order)
{
	double sum = 0;

	for (int l = 0; l < Ls; l++) {
		select_top(score + (int64_t)l * E, E, N, order);
		for (int k = 0; k < N; k++)
			sum += (double)used[(int64_t)l * E + order[k]];
	}
	return sum;
}

/* Puts expert e first in the list of n, of at most N; was it there? */
static bool use(int *list, int *n, int N, int e)
{
	int at = 0;
	bool there;

	while (at < *n && list[at] != e)
		at++;
	there = at < *n;
	if (!there && *n < N)
		(*n)++;
	at = there ? at : *n - 1;
	memmove(list + 1, list, (size_t)at * sizeof *list);
	list[0] = e;
	return there;
}

int64_t coverage_lru(const int *id, int n, int64_t T, int Ls, int K, int N, int *order)
{
	int64_t hits = 0;

	for (int l = 0; l < Ls; l++) {
		int held = 0;

		for (int64_t t = 0; t < T; t++)
			for (int k = 0; k < K; k++)
				hits += use(order, &held, N, id[(t * Ls + l) * K + k]) && t >= n;
	}
	return hits;
}

static int experts_of(const struct coverage *c, int b)
{
	int n = (int)lround(budget[b] * c->m->E);

	return n < 1 ? 1 : n;
}

static double covered(const struct coverage *c, const struct answer *x, int source, int b)
{
	if (source == BY_LRU)
		return (double)coverage_lru(x->id, x->n, x->n + x->tokens, c->m->Ls, c->m->K,
		    experts_of(c, b), c->order);
	return coverage_of(x->used, c->score[source], c->m->Ls, c->m->E, experts_of(c, b),
	    c->order);
}

static void blend(const struct coverage *c, const struct answer *x, int from, int to,
    double how_much)
{
	memcpy(c->score[to], c->score[from], size_of(c) * sizeof **c->score);
	intent_blend(c->m, c->score[to], x->touched, x->n, how_much);
}

/* What covers most, shares of all budgets added up. */
static double best_blend(const struct coverage *c, int from, int to)
{
	double sum[BLENDS] = { 0 };
	int best = 0;

	for (int i = 0; i < c->a->n; i++) {
		const struct answer *x = &c->a->v[i];

		if (x->part != PART_DEV)
			continue;
		if (from == BY_INTENT)
			intent_expect(c->m, x->tok, x->n, c->score[from]);
		for (int k = 0; k < BLENDS; k++) {
			blend(c, x, from, to, (double)k / (BLENDS - 1));
			for (int b = 0; b < BUDGETS; b++)
				sum[k] += covered(c, x, to, b) / (double)x->tokens;
		}
	}
	for (int k = 1; k < BLENDS; k++)
		if (sum[k] > sum[best])
			best = k;
	return (double)best / (BLENDS - 1);
}

void coverage_blends(struct coverage *c)
{
	c->blend = best_blend(c, BY_INTENT, BY_PROMPT_INTENT);
	c->blend_popularity = best_blend(c, BY_POPULARITY, BY_PROMPT_POPULARITY);
}

/* ---- the held sequences ---- */

static void add_gain(struct gain *g, double d)
{
	g->sum += d;
	g->square += d * d;
	g->n++;
}

static void scores(const struct coverage *c, const struct answer *x)
{
	size_t bytes = size_of(c) * sizeof **c->score;

	intent_expect(c->m, x->tok, x->n, c->score[BY_INTENT]);
	memcpy(c->score[BY_PROMPT], x->touched, bytes);
	memcpy(c->score[BY_ORACLE], x->used, bytes);
	blend(c, x, BY_INTENT, BY_PROMPT_INTENT, c->blend);
	blend(c, x, BY_POPULARITY, BY_PROMPT_POPULARITY, c->blend_popularity);
}

static void measure(const struct coverage *c, const struct answer *x, struct measure *z)
{
	double uses = (double)x->tokens * c->m->Ls * c->m->K;

	scores(c, x);
	for (int b = 0; b < BUDGETS; b++) {
		double got[COVERAGE_SOURCES];

		for (int i = 0; i < COVERAGE_SOURCES; i++) {
			got[i] = covered(c, x, i, b);
			z->covered[b][i] += got[i];
		}
		add_gain(&z->gain[b], (got[BY_INTENT] - got[BY_POPULARITY]) / uses);
		add_gain(&z->blend[b], (got[BY_PROMPT_INTENT] - got[BY_PROMPT_POPULARITY]) / uses);
	}
	/* The scores of this sequence are done with. */
	z->loss += intent_loss(c->m, x->tok, x->n, x->used, 0, NULL, c->score[BY_PROMPT_INTENT]);
	z->floor += coverage_entropy(x->used, c->m->Ls, c->m->E);
	z->uses += uses;
	z->n++;
}

static void put_gain(json_t *r, const char *key, const char *error, const struct gain *g)
{
	double n = (double)g->n, mean = g->sum / n;

	json_set_num(r, key, mean);
	json_set_num(r, error, g->n > 1 ? sqrt(fmax(g->square / n - mean * mean, 0) / (n - 1))
	    : NAN);
}

static json_t *budgets(const struct coverage *c, const struct measure *z)
{
	json_t *list = json_array();

	for (int b = 0; b < BUDGETS; b++) {
		json_t *r = json_object();

		json_set_num(r, "share", budget[b]);
		json_set_int(r, "experts", experts_of(c, b));
		for (int i = 0; i < COVERAGE_SOURCES; i++)
			json_set_num(r, source_name[i], z->covered[b][i] / z->uses);
		put_gain(r, "gain", "gain_error", &z->gain[b]);
		put_gain(r, "blend_gain", "blend_gain_error", &z->blend[b]);
		json_array_append_new(list, r);
	}
	return list;
}

void coverage_put(const struct coverage *c, json_t *rec)
{
	struct measure z = { 0 };

	for (int i = 0; i < c->a->n; i++)
		if (c->a->v[i].part == PART_HELD)
			measure(c, &c->a->v[i], &z);
	json_set_num(rec, "loss", z.loss / (double)z.n);
	json_set_num(rec, "kl", (z.loss - z.floor) / (double)z.n);
	json_set_num(rec, "blend", c->blend);
	json_set_num(rec, "blend_popularity", c->blend_popularity);
	json_object_set_new(rec, "coverage", z.n > 0 ? budgets(c, &z) : json_null());
}
