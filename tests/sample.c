/* Sampling against its definition: greedy, penalties, what top-k, top-p and min-p leave, and the
 * distribution drawn. */
#include <string.h>

#include "base/rng.h"
#include "decode/sample.h"
#include "tap.h"

#define V 500
static float logits[V];
static struct sampler *s;

static const struct sample_opt plain = { .temperature = 1, .top_p = 1, .repetition_penalty = 1,
    .seed = 7 };

static uint32_t one(const struct sample_opt *o, uint64_t counter)
{
	return sample(s, o, logits, NULL, 0, 3, counter);
}

/* How many of the n draws lie in the set allowed[], and how many of the set were drawn at all. */
static void draws(const struct sample_opt *o, int n, const char *allowed, int *inside, int *seen)
{
	char hit[V] = { 0 };

	*inside = *seen = 0;
	for (int i = 0; i < n; i++) {
		uint32_t id = one(o, (uint64_t)i);

		*inside += allowed[id];
		*seen += !hit[id];
		hit[id] = 1;
	}
}

/* Ids whose probability rank is below `rank` among all (ties by id). */
static int rank_of(int id)
{
	int r = 0;

	for (int i = 0; i < V; i++)
		r += logits[i] > logits[id] || (logits[i] == logits[id] && i < id);
	return r;
}

static void test_greedy(void)
{
	struct sample_opt o = plain;
	uint32_t seen[2] = { 40, 40 };

	o.temperature = 0;
	memset(logits, 0, sizeof(logits));
	logits[40] = logits[90] = 2;
	ok(one(&o, 0) == 40, "temperature 0 takes the largest, ties to the lowest id");
	o.repetition_penalty = 1.5;
	ok(sample(s, &o, logits, seen, 2, 0, 0) == 90, "a penalty lowers a positive logit");
	for (int i = 0; i < V; i++)
		logits[i] = -2;
	logits[40] = -1.9f;
	ok(sample(s, &o, logits, seen, 2, 0, 0) == 0, "and a negative one");
	logits[40] = 1.2f;
	logits[41] = 0.7f;
	ok(sample(s, &o, logits, seen, 2, 0, 0) == 40,
	    "a repeated id is penalised once (1.2/1.5 > 0.7 > 1.2/2.25)");
	logits[3] = NAN;
	ok(one(&o, 0) == 40, "NaN is never chosen");
	for (int i = 0; i < V; i++)
		logits[i] = NAN;
	o.temperature = 1;
	ok(one(&o, 0) == 0, "all NaN gives an id of the vocabulary");
}

static void test_filters(void)
{
	struct sample_opt o = plain;
	char allowed[V] = { 0 };
	double p[V], z = 0, mass = 0, max = 0;
	int inside, seen, want = 0;

	for (int i = 0; i < V; i++)
		logits[i] = (float)rng_normal(1, 0, (uint64_t)i);
	for (int i = 0; i < V; i++)
		z += p[i] = exp(logits[i]);
	for (int i = 0; i < V; i++) {
		allowed[i] = rank_of(i) < 7;
		max = fmax(max, p[i]);
	}
	o.top_k = 7;
	draws(&o, 4000, allowed, &inside, &seen);
	ok(inside == 4000 && seen == 7, "top-k 7: only the 7 best, all of them");

	o.top_k = 0;
	o.top_p = 0.3;
	for (int r = 0; r < V; r++)
		for (int i = 0; i < V; i++)
			if (rank_of(i) == r) {
				allowed[i] = mass < 0.3 * z;
				want += allowed[i];
				mass += p[i];
			}
	draws(&o, 20000, allowed, &inside, &seen);
	ok(inside == 20000 && seen == want, "top-p 0.3 of %d ids: the smallest set that holds it",
	    V);

	o.top_p = 1;
	o.min_p = 0.25;
	want = 0;
	for (int i = 0; i < V; i++)
		want += allowed[i] = p[i] >= 0.25 * max;
	draws(&o, 20000, allowed, &inside, &seen);
	ok(inside == 20000 && seen == want, "min-p 0.25: %d ids", want);
	o.top_p = 1e-9;
	draws(&o, 100, allowed, &inside, &seen);
	ok(seen == 1, "top-p never leaves nothing");
}

static void test_distribution(void)
{
	struct sample_opt o = plain;
	double z = 0, chi = 0;
	int count[8] = { 0 }, n = 80000;

	for (int i = 0; i < V; i++)
		logits[i] = -INFINITY;
	for (int i = 0; i < 8; i++)
		z += exp(0.5 * (logits[i * 50] = (float)(0.4 * i)));
	o.temperature = 2;
	for (int i = 0; i < n; i++)
		count[one(&o, (uint64_t)i) / 50]++;
	for (int i = 0; i < 8; i++) {
		double want = n * exp(0.2 * i) / z;

		chi += (count[i] - want) * (count[i] - want) / want;
	}
	ok(chi < 24.3, "draws at temperature 2 follow softmax(logits / 2): chi-squared %.1f of 7 "
	    "degrees", chi);
	ok(one(&o, 5) == one(&o, 5), "the same counter draws the same");
}

int main(void)
{
	s = sampler_new(V);
	test_greedy();
	test_filters();
	test_distribution();
	sampler_free(s);
	return tap_done();
}
