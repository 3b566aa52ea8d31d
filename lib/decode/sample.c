#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "decode/sample.h"

#define BINS 1024
#define BINS_PER_NAT 32

struct cand {
	float x;		/* logit, later weight relative to the best */
	uint32_t id;
};

struct sampler {
	int V;
	float *x;		/* (V) penalised logits */
	struct cand *c;		/* (V) */
	uint32_t *stamp, now;	/* (V) == now: penalised in this draw */
};

struct sampler *sampler_new(int V)
{
	struct sampler *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->V = V;
	s->x = calloc((size_t)V, sizeof(*s->x));
	s->c = calloc((size_t)V, sizeof(*s->c));
	s->stamp = calloc((size_t)V, sizeof(*s->stamp));
	if (!s->x || !s->c || !s->stamp) {
		sampler_free(s);
		return NULL;
	}
	return s;
}

void sampler_free(struct sampler *s)
{
	if (!s)
		return;
	free(s->x);
	free(s->c);
	free(s->stamp);
	free(s);
}

static void penalise(struct sampler *s, double penalty, const uint32_t *seen, int n)
{
	if (++s->now == 0) {
		memset(s->stamp, 0, sizeof(*s->stamp) * (size_t)s->V);
		s->now = 1;
	}
	for (int i = 0; i < n; i++) {
		float *x = &s->x[seen[i]];

		if (s->stamp[seen[i]] == s->now)
			continue;
		s->stamp[seen[i]] = s->now;
		*x = (float)(*x > 0 ? *x / penalty : *x * penalty);
	}
}

static uint32_t best_of(const struct sampler *s)
{
	uint32_t best = 0;

	for (int i = 1; i < s->V; i++)
		if (s->x[i] > s->x[best])
			best = (uint32_t)i;
	return best;
}

/* a comes after b: smaller, or as large with a higher id */
static int behind(struct cand a, struct cand b)
{
	return a.x < b.x || (a.x == b.x && a.id > b.id);
}

static int by_rank(const void *a, const void *b)
{
	const struct cand *x = a, *y = b;

	return behind(*x, *y) ? 1 : behind(*y, *x) ? -1 : 0;
}

/* c[0] is the last in rank of a heap of n; its place goes to x. */
static void sift(struct cand *c, int n, struct cand x)
{
	int i = 0;

	for (int child; (child = 2 * i + 1) < n; i = child) {
		if (child + 1 < n && behind(c[child + 1], c[child]))
			child++;
		if (!behind(c[child], x))
			break;
		c[i] = c[child];
	}
	c[i] = x;
}

static int top_k(struct sampler *s, int k)
{
	int n = 0;

	for (int i = 0; i < s->V; i++) {
		struct cand x = { s->x[i], (uint32_t)i };

		if (n < k) {
			s->c[n++] = x;
			for (int j = n - 1; j > 0 && behind(s->c[j], s->c[(j - 1) / 2]);
			    j = (j - 1) / 2) {
				struct cand t = s->c[j];

				s->c[j] = s->c[(j - 1) / 2];
				s->c[(j - 1) / 2] = t;
			}
		} else if (behind(s->c[0], x))
			sift(s->c, n, x);
	}
	return n;
}

static int bin_of(float x, float best, double temperature)
{
	double b = (best - x) / temperature * BINS_PER_NAT;

	return b < BINS - 1 ? (int)b : BINS - 1;
}

/* Every id that can be among the best with mass top_p, without sorting the vocabulary: whole
 * bins of logits, best first, until they hold the mass. */
static int top_bins(struct sampler *s, float best, double temperature, double top_p, double *mass)
{
	double bin[BINS] = { 0 }, held = 0;
	int last = 0, n = 0;

	*mass = 0;
	for (int i = 0; i < s->V; i++) {
		double w = exp((s->x[i] - best) / temperature);

		bin[bin_of(s->x[i], best, temperature)] += w;
		*mass += w;
	}
	while (last < BINS - 1 && (held += bin[last]) < top_p * *mass)
		last++;
	for (int i = 0; i < s->V; i++)
		if (bin_of(s->x[i], best, temperature) <= last)
			s->c[n++] = (struct cand){ s->x[i], (uint32_t)i };
	return n;
}

static int all(struct sampler *s)
{
	for (int i = 0; i < s->V; i++)
		s->c[i] = (struct cand){ s->x[i], (uint32_t)i };
	return s->V;
}

/* Logits become weights relative to the best; what falls below min_p of it is dropped. Returns
 * how many are left. */
static int weigh(struct cand *c, int n, float best, double temperature, double min_p, double *mass)
{
	int m = 0;

	*mass = 0;
	for (int i = 0; i < n; i++) {
		double w = exp((c[i].x - best) / temperature);

		*mass += w;
		if (w >= min_p && w > 0)
			c[m++] = (struct cand){ (float)w, c[i].id };
	}
	return m;
}

static uint32_t draw(const struct cand *c, int n, double u)
{
	double sum = 0;
	int i = 0;

	for (int j = 0; j < n; j++)
		sum += c[j].x;
	for (u *= sum; i < n - 1 && u >= c[i].x; i++)
		u -= c[i].x;
	return c[i].id;
}

uint32_t sample(struct sampler *s, const struct sample_opt *o, const float *logits,
    const uint32_t *seen, int nseen,
    uint64_t stream, uint64_t counter)
{
	uint32_t best;
	double mass, all_mass = -1, held = 0;
	bool cut = o->top_p < 1, few = o->top_k > 0 && o->top_k < s->V;
	float top;
	int n, keep = 0;

	for (int i = 0; i < s->V; i++)
		s->x[i] = isnan(logits[i]) ? -INFINITY : logits[i];
	if (o->repetition_penalty != 1)
		penalise(s, o->repetition_penalty, seen, nseen);
	best = best_of(s);
	top = s->x[best];
	if (o->temperature <= 0 || !isfinite(top))
		return best;
	n = few ? top_k(s, o->top_k) : cut ? top_bins(s, top, o->temperature, o->top_p, &all_mass)
	    : all(s);
	if (few || cut)
		qsort(s->c, (size_t)n, sizeof(*s->c), by_rank);
	n = weigh(s->c, n, top, o->temperature, o->min_p, &mass);
	if (!cut)
		keep = n;
	else
		while (keep < n && (keep == 0 || held < o->top_p * (all_mass >= 0 ? all_mass
		    : mass)))
			held += s->c[keep++].x;
	return draw(s->c, keep, rng_uniform(o->seed, stream, counter));
}
