/* replay: hit counts by hand; Belady's against every way of choosing, by force; no policy beats
 * it; what each policy keeps. */
#include <stdlib.h>
#include <string.h>

#include "experts/replay.h"
#include "base/rng.h"
#include "tap.h"

/* One expert per layer and token: tokens rows of `layers` ids. */
static struct replay trace(const int *id, int tokens, int layers, int experts)
{
	struct actlog_model m = { .layers = layers, .experts = experts, .top_k = 1 };
	struct replay r;
	struct err e = { 0 };
	int one[8];

	replay_init(&r, &m);
	for (int l = 0; l < layers; l++)
		one[l] = 1;
	for (int t = 0; t < tokens; t++) {
		struct act a = { .n = one, .id = (int *)(uintptr_t)(id + t * layers) };

		if (replay_add(&r, &a, &e) < 0)
			abort();
	}
	return r;
}

static int64_t hits(const struct replay *r, int policy, int slots)
{
	struct replay_result x;
	struct err e = { 0 };

	if ((policy < 0 ? replay_belady(r, slots, &x, &e) : replay_run(r, (enum cache_policy)policy,
	    slots, &x, &e)) < 0)
		abort();
	return x.hits;
}

/* The most hits from demand i on, with what is in memory as a bit set: every expert that could
 * leave is tried. */
static int best(const struct replay *r, int64_t i, unsigned in, int slots)
{
	int most = 0;

	if (i == r->n)
		return 0;
	if (in >> r->key[i] & 1)
		return 1 + best(r, i + 1, in, slots);
	if (__builtin_popcount(in) < slots)
		return best(r, i + 1, in | 1u << r->key[i], slots);
	for (int k = 0; k < 32; k++)
		if (in >> k & 1) {
			int n = best(r, i + 1, (in & ~(1u << k)) | 1u << r->key[i], slots);

			most = n > most ? n : most;
		}
	return most;
}

static void test_belady(void)
{
	int id[14], wrong = 0, beaten = 0;

	for (int round = 0; round < 200; round++) {
		int slots = 2 + round % 2;
		struct replay r;
		int64_t got;

		for (int i = 0; i < 14; i++)
			id[i] = (int)rng_below(3, (uint64_t)round, (uint64_t)i, 4);
		r = trace(id, 7, 2, 4);
		got = hits(&r, -1, slots);
		wrong += got != best(&r, 0, 0, slots);
		for (int p = CACHE_LRU; p <= CACHE_AUTO; p++)
			beaten += hits(&r, p, slots) > got;
		replay_free(&r);
	}
	ok(wrong == 0, "the offline optimum is what trying everything finds (%d of 200 differ)",
	    wrong);
	ok(beaten == 0, "no policy finds more");
}

static void test_by_hand(void)
{
	/* a layer, three experts in turn */
	static const int one[] = { 0, 1, 2, 0, 1, 2, 0, 1, 2 };
	/* two layers, both 0 and 1 by turns */
	static const int two[] = { 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0 };
	static const int popular[] = { 0, 0, 0, 0, 1, 0, 2, 3, 0, 1, 0, 2, 3, 0 };
	struct replay r = trace(one, 9, 1, 3);

	ok(hits(&r, CACHE_LRU, 2) == 0 && hits(&r, CACHE_LRU, 3) == 6,
	    "lru: a round larger than memory finds nothing");
	ok(hits(&r, -1, 2) == 3, "the optimum finds every second of what could be");
	replay_free(&r);
	r = trace(two, 7, 2, 2);
	ok(hits(&r, CACHE_LRU, 3) == 0, "lru: layers by turns throw out what comes next");
	ok(hits(&r, CACHE_CYCLE, 3) > 0, "cycle: the layer that is ahead keeps its own");
	replay_free(&r);
	r = trace(popular, 14, 1, 4);
	ok(hits(&r, CACHE_LFRU, 2) > hits(&r, CACHE_LRU, 2), "lfru: the popular one stays");
	replay_free(&r);
}

int main(void)
{
	test_by_hand();
	test_belady();
	return tap_done();
}
