/* The store's policy against a naive account of it: random calls, reads that end in random
 * order, some in failure. */
#include <stdlib.h>
#include <string.h>

#include "experts/cache.h"
#include "base/rng.h"
#include "tap.h"

enum { KEYS = 40, SLOTS = 9, STEPS = 200000, KEEP = 4 };

static struct {
	int pins[KEYS], in_slot[SLOTS];		/* key or -1 */
	int reading[KEYS], nreading, npinned;
	uint64_t demands, bytes, reads;
	int64_t clock, used[KEYS];
} w;

static uint64_t ticks;

static int below(int n)
{
	return (int)rng_below(7, 1, ticks++, (uint64_t)n);
}

static const char *check_take(struct cache *c, int k, int slot)
{
	int old = w.in_slot[slot];

	if (w.reading[k])
		return "read twice at once";
	if (old >= 0 && w.reading[old])
		return "slot of a running read";
	if (old >= 0 && w.pins[old] > 0)
		return "pinned expert evicted";
	if (old >= 0 && w.pins[k] == 0 && w.used[old] == w.clock)
		return "a guess evicted what this layer used";
	if (old >= 0 && cache_state(c, old) == CACHE_RESIDENT)
		return "evicted but resident";
	w.in_slot[slot] = k;
	w.reading[k] = 1;
	w.nreading++;
	return NULL;
}

static const char *step_read(struct cache *c, int max_reads)
{
	int k, slot, i;

	if (w.nreading < max_reads && (k = cache_take(c, &slot)) >= 0)
		return check_take(c, k, slot);
	if (w.nreading == 0)
		return NULL;
	for (k = below(KEYS); !w.reading[k]; k = (k + 1) % KEYS)
		continue;
	w.reading[k] = 0;
	w.nreading--;
	w.reads++;
	w.bytes += (uint64_t)k;
	i = below(20) == 0;
	cache_done(c, k, k, !i);
	for (slot = 0; i && slot < SLOTS; slot++)
		if (w.in_slot[slot] == k)
			w.in_slot[slot] = -1;
	return cache_state(c, k) == CACHE_READING ? "still reading" : NULL;
}

static const char *step_demand(struct cache *c)
{
	int k = below(KEYS), state = cache_state(c, k), want, got;

	if (w.pins[k] == 0 && w.npinned == SLOTS)
		return NULL;
	want = state == CACHE_RESIDENT ? CACHE_HIT
	    : state == CACHE_ABSENT || state == CACHE_FAILED ? CACHE_MISS : CACHE_LATE;
	w.npinned += w.pins[k]++ == 0;
	w.demands++;
	w.used[k] = w.clock;
	got = cache_demand(c, k);
	return got != want ? "status" : NULL;
}

static const char *step_end(struct cache *c)
{
	int k = below(KEYS), state = cache_state(c, k);

	if (w.pins[k] == 0)
		return NULL;
	w.npinned -= --w.pins[k] == 0;
	if (state == CACHE_RESIDENT || state == CACHE_FAILED)
		cache_put(c, k);
	else
		cache_abandon(c, k);
	return state == CACHE_FAILED && w.pins[k] == 0 && cache_state(c, k) != CACHE_ABSENT
	    ? "failure stays" : NULL;
}

static const char *step(struct cache *c, int max_reads)
{
	switch (below(10)) {
	case 0: case 1:
		return step_demand(c);
	case 2: case 3:
		return step_end(c);
	case 4: case 5:
		cache_predict(c, below(KEYS), (float)below(100) / 100, below(6),
		    below(CACHE_SOURCES));
		return NULL;
	case 6:
		cache_advance(c);
		w.clock++;
		return NULL;
	default:
		return step_read(c, max_reads);
	}
}

static const char *check_all(struct cache *c)
{
	int i, k;

	for (i = 0; i < SLOTS; i++) {
		k = w.in_slot[i];
		if (k >= 0 && cache_state(c, k) == CACHE_RESIDENT && cache_slot(c, k) != i)
			w.in_slot[i] = -1;		/* evicted and read again elsewhere */
	}
	for (k = 0; k < KEYS; k++)
		if (cache_state(c, k) == CACHE_RESIDENT && w.in_slot[cache_slot(c, k)] != k)
			return "resident in a slot of another";
	if (cache_stuck(c))
		return "stuck though pins fit";
	return NULL;
}

static void random_walk(int max_reads)
{
	struct cache *c = cache_new(KEYS, SLOTS, max_reads > 1 ? max_reads - 1 : 1, KEEP);
	const struct cache_stats *st = cache_stats(c);
	const char *wrong = NULL;
	int i;

	memset(&w, 0, sizeof w);
	memset(w.in_slot, -1, sizeof w.in_slot);
	memset(w.used, -1, sizeof w.used);
	for (i = 0; i < STEPS && wrong == NULL; i++) {
		wrong = step(c, max_reads);
		if (wrong == NULL)
			wrong = check_all(c);
	}
	ok(wrong == NULL, "%d steps with %d readers: %s", i, max_reads, wrong ? wrong : "sound");
	ok(st->hits + st->late + st->misses == w.demands, "hits + late + misses = demands");
	ok(st->reads == w.reads && st->read_bytes == w.bytes, "reads and bytes");
	ok(st->predicted_used <= st->predicted && st->expired > 0 && st->predicted_used > 0 &&
	    st->hits > 0
	    && st->late > 0 && st->wasted_bytes > 0 && st->wasted_bytes < st->read_bytes,
	    "every counter moved");
	cache_free(c);
}

static void read_now(struct cache *c)
{
	int slot, k = cache_take(c, &slot);

	if (k >= 0)
		cache_done(c, k, 10, true);
}

static void order_of_reads(void)
{
	struct cache *c = cache_new(KEYS, 8, 4, KEEP);
	int slot, got[6], i;

	cache_predict(c, 1, 0.5f, 3, 0);
	cache_predict(c, 2, 0.9f, 3, 0);
	cache_predict(c, 3, 0.1f, 1, 0);
	cache_predict(c, 4, 0.2f, 9, 0);
	cache_predict(c, 4, 0.2f, 2, 0);	/* sooner than first thought */
	cache_predict(c, 2, 0.9f, 8, 0);	/* later: the sooner stands */
	got[0] = cache_take(c, &slot);
	ok(cache_demand(c, 1) == CACHE_LATE, "a queued prediction that is demanded is late");
	ok(cache_demand(c, 7) == CACHE_MISS, "an unknown one is a miss");
	for (i = 1; i < 6; i++) {
		got[i] = cache_take(c, &slot);
		if (got[i] >= 0)
			cache_done(c, got[i], 1, true);
	}
	ok(got[0] == 3 && got[1] == 1 && got[2] == 7 && got[3] == 4 && got[4] == 2 && got[5] == -1,
	    "demands first, then (deadline, -prob): %d %d %d %d %d %d", got[0], got[1], got[2],
	    got[3], got[4], got[5]);
	cache_free(c);
}

static void guesses_wait(void)
{
	struct cache *c = cache_new(KEYS, 8, 2, KEEP);
	int slot, i;

	for (i = 0; i < 5; i++)
		cache_predict(c, i, 0.5f, 3, 0);
	cache_demand(c, 9);
	ok(cache_take(c, &slot) == 9 && cache_take(c, &slot) == -1,
	    "no guess is read beside a demand");
	cache_done(c, 9, 1, true);
	ok(cache_take(c, &slot) >= 0 && cache_take(c, &slot) >= 0 && cache_take(c, &slot) == -1,
	    "no more guesses at once than allowed");
	for (i = 0; i < 4; i++)
		cache_advance(c);
	ok(cache_stats(c)->expired == 3, "the rest expires");
	cache_free(c);
}

static void who_leaves(void)
{
	struct cache *c = cache_new(KEYS, 3, 1, KEEP);
	int k;

	for (k = 0; k < 2; k++) {		/* 0 is older than 1 */
		cache_demand(c, k);
		read_now(c);
		cache_put(c, k);
		cache_advance(c);
	}
	cache_predict(c, 2, 1, 0, 0);
	read_now(c);
	cache_advance(c);
	cache_demand(c, 3);
	read_now(c);
	ok(cache_state(c, 2) == CACHE_ABSENT && cache_stats(c)->wasted_bytes == 10,
	    "a guess that did not come true goes first");
	cache_put(c, 3);
	cache_advance(c);
	cache_predict(c, 0, 1, 2, 0);
	cache_demand(c, 4);
	read_now(c);
	ok(cache_state(c, 0) == CACHE_RESIDENT && cache_state(c, 1) == CACHE_ABSENT,
	    "a predicted resident outlives an older one");
	cache_predict(c, 5, 1, 3, 0);
	read_now(c);
	ok(cache_state(c, 5) == CACHE_RESIDENT && cache_state(c, 3) == CACHE_ABSENT,
	    "a guess takes the least recently used");
	cache_predict(c, 6, 1, 3, 0);
	read_now(c);
	ok(cache_state(c, 6) == CACHE_GUESSED, "a guess may take neither what is used now nor what "
	    "is needed no later");
	cache_put(c, 4);
	read_now(c);
	ok(cache_state(c, 6) == CACHE_GUESSED, "not even when it is unpinned, in the same layer");
	cache_free(c);
}

static void abandoned(void)
{
	struct cache *c = cache_new(KEYS, 4, 1, KEEP);
	int slot;

	cache_demand(c, 0);
	cache_demand(c, 1);
	cache_take(c, &slot);
	cache_abandon(c, 0);
	cache_abandon(c, 1);
	ok(cache_state(c, 0) == CACHE_READING && cache_state(c, 1) == CACHE_GUESSED,
	    "abandoned: reads go on as guesses");
	cache_done(c, 0, 1, false);
	ok(cache_state(c, 0) == CACHE_ABSENT, "a failed guess is forgotten");
	read_now(c);
	ok(cache_demand(c, 1) == CACHE_HIT && cache_stats(c)->predicted_used == 1,
	    "and may come true");
	cache_free(c);
}

/* Guesses that are right r times in 1000, all said to be so: what is wasted stays within the
 * share, or nothing is guessed. */
static double wasted_share(int right, double share, double *guessed)
{
	struct cache *c = cache_new(KEYS, SLOTS, 1, KEEP);
	const struct cache_stats *st = cache_stats(c);
	int i, k, slot;

	cache_set_waste(c, share);
	for (i = 0; i < 20000; i++) {
		int demanded = below(KEYS), expected = below(1000) < right ? demanded : below(KEYS);

		cache_predict(c, expected, (float)right / 1000, 1, 0);
		while ((k = cache_take(c, &slot)) >= 0)
			cache_done(c, k, 100, true);
		cache_advance(c);
		cache_demand(c, demanded);
		while ((k = cache_take(c, &slot)) >= 0)
			cache_done(c, k, 100, true);
		cache_put(c, demanded);
	}
	*guessed = (double)st->predicted / (double)st->reads;
	share = (double)st->wasted_bytes / (double)st->read_bytes;
	cache_free(c);
	return share;
}

static void credit(void)
{
	double guessed, wasted = wasted_share(990, 0.03, &guessed);

	ok(wasted < 0.03 && guessed > 0.5, "sure guesses are made: %.2f of the reads, %.4f wasted",
	    guessed, wasted);
	wasted = wasted_share(300, 0.03, &guessed);
	ok(wasted < 0.035 && guessed < 0.1, "bad ones hardly: %.3f of the reads, %.4f wasted",
	    guessed, wasted);
	wasted = wasted_share(300, -1, &guessed);
	ok(wasted > 0.2, "without a limit: %.2f wasted", wasted);
}

static void last_word(void)
{
	struct cache *c = cache_new(KEYS, SLOTS, 1, KEEP);
	int slot;

	cache_predict(c, 1, 0.9f, 2, 0);
	cache_predict(c, 2, 0.8f, 2, 0);
	cache_predict(c, 1, 0.1f, 2, 0);
	cache_predict(c, 9, 1, 20, 0);
	cache_predict(c, 9, 0.1f, 1, 0);
	ok(cache_take(c, &slot) == 2, "the last word on a guess counts");
	ok(cache_state(c, 9) == CACHE_GUESSED, "a less likely one on the next layer does not undo "
	    "what is expected later");
	cache_pin(c, 2);
	cache_done(c, 2, 1, true);
	for (int k = 3; k < KEYS; k++) {
		cache_advance(c);
		cache_demand(c, k);
		read_now(c);
		cache_put(c, k);
	}
	ok(cache_state(c, 2) == CACHE_RESIDENT && cache_pinned(c) == 1,
	    "pinned for good: never leaves");
	cache_demand(c, 30);
	ok(cache_heat(c, 30) > cache_heat(c, 5), "used lately is warmer");
	cache_free(c);
}

/* Who is expected to be used least leaves, whatever was used last. */
static void expected(void)
{
	struct cache *c = cache_new(KEYS, 6, 1, KEEP);
	int k;

	cache_set_policy(c, CACHE_AUTO, KEYS / KEEP, 2, KEYS);
	for (k = 0; k < KEYS; k++)
		cache_expect(c, k, k < 3 ? 0.9f : 0.01f);
	for (k = 0; k < KEYS; k++) {
		cache_demand(c, k);
		read_now(c);
		cache_put(c, k);
		cache_advance(c);
	}
	ok(cache_state(c, 0) == CACHE_RESIDENT && cache_state(c, 1) == CACHE_RESIDENT &&
	    cache_state(c, 2) == CACHE_RESIDENT,
	    "what is expected to be used stays");
	cache_free(c);
}

/* Slots are given up from the last one on; who stays is who would stay if reads had needed them. */
static void fewer_slots(void)
{
	struct cache *c = cache_new(KEYS, 6, 1, KEEP);
	int k, from, to, moved = 0, left = 0, low = 1;

	for (k = 0; k < 4; k++) {
		cache_demand(c, k);
		read_now(c);
		cache_put(c, k);
		cache_advance(c);
	}
	ok(cache_shrink(c, &from, &to) && cache_shrink(c, &from, &to) && from < 0 &&
	    cache_residents(c) == 4, "free ones go first");
	cache_demand(c, 0);			/* in slot 0 or so, and the last to leave but 3 */
	cache_put(c, 0);
	for (k = 0; k < 2; k++) {
		ok(cache_shrink(c, &from, &to), "then the policy says who leaves");
		moved += from >= 0;
	}
	for (k = 0; k < KEYS; k++)
		if (cache_state(c, k) == CACHE_RESIDENT) {
			left++;
			low &= cache_slot(c, k) < 2;
		}
	ok(left == 2 && cache_state(c, 0) == CACHE_RESIDENT && cache_state(c, 3) == CACHE_RESIDENT,
	    "the least recently used");
	ok(low && moved > 0, "and who stays is in the slots that are left");
	cache_pin(c, 0);
	cache_pin(c, 3);
	ok(!cache_shrink(c, &from, &to), "pinned for good");
	for (k = 0; k < 4; k++)
		ok(cache_grow(c), "again");
	ok(!cache_grow(c), "not above what there was");
	for (k = 10; k < 20; k++) {
		cache_demand(c, k);
		read_now(c);
		cache_put(c, k);
	}
	ok(cache_residents(c) == 6 && cache_state(c, 3) == CACHE_RESIDENT, "all are used");
	cache_free(c);
}

int main(void)
{
	expected();
	fewer_slots();
	order_of_reads();
	guesses_wait();
	who_leaves();
	abandoned();
	credit();
	last_word();
	random_walk(1);
	random_walk(2);
	random_walk(5);
	return tap_done();
}
