/*
 * cache: the policy of the store: which expert is in which slot, which read comes next, who leaves for it. Plain data:
 * no locks, threads or I/O; store.c calls it under its mutex (cache_state alone may be called without).
 *
 * An expert is a key k (layer * experts + expert). Its way: absent -> queued (demanded) or guessed (predicted) ->
 * reading -> resident -> absent. Demands are read in their order and before all guesses; guesses in the order of
 * (deadline, -prob), none while a demand is queued or being read. The clock counts layers (cache_advance).
 */
#ifndef CHR_CACHE_H
#define CHR_CACHE_H

#include <stdbool.h>
#include <stdint.h>

struct cache;

enum { CACHE_ABSENT, CACHE_GUESSED, CACHE_QUEUED, CACHE_READING, CACHE_RESIDENT, CACHE_FAILED };
enum { CACHE_HIT, CACHE_LATE, CACHE_MISS };

struct cache_stats {
	uint64_t hits, late, misses;
	uint64_t read_bytes, reads;
	uint64_t predicted, predicted_used, wasted_bytes, expired;
};

int64_t cache_bytes(int keys, int slots);			/* all that cache_new allocates */
/* max_guesses: reads of guesses at once. keep: clock ticks for which an abandoned expert counts as guessed. */
struct cache *cache_new(int keys, int slots, int max_guesses, int keep);	/* NULL: out of memory */
void cache_free(struct cache *c);

/* Who leaves when a slot is needed:
 *	lru	the least recently used
 *	lfru	the least used, counting use so that it halves in 32 tokens (LRFU of Lee et al., IEEE ToC 50(12), 2001)
 *	cycle	of the layer that comes round last, that is, the one just passed, the least recently used (least stale first:
 *		arXiv:2602.03921)
 *	auto	as cycle when less than 3/8 of all fit; else the one expected to be needed last: as far as its layer is away, and
 *		a round more for each in which it is likely to be passed over, going by its share of recent use (half-life 8)
 * Those predicted to be needed soon stay, whatever the policy. Without this call: lru. experts: keys per layer. */
enum cache_policy { CACHE_LRU, CACHE_LFRU, CACHE_CYCLE, CACHE_AUTO };
void cache_set_policy(struct cache *c, enum cache_policy policy, int experts, int top_k);

int cache_state(const struct cache *c, int k);			/* atomic; acquires what the reader wrote */
int cache_slot(const struct cache *c, int k);			/* of a pinned resident */
int cache_residents(const struct cache *c);

int cache_demand(struct cache *c, int k);			/* pins k; CACHE_HIT, LATE or MISS */
void cache_put(struct cache *c, int k);				/* undoes one demand */
void cache_abandon(struct cache *c, int k);			/* the same, but a read not done becomes a guess */
void cache_predict(struct cache *c, int k, float prob, int when);
void cache_advance(struct cache *c);

/* The next read to start: its key, now in state reading, and the slot it goes to; -1 when nothing may start now. */
int cache_take(struct cache *c, int *slot);
bool cache_queued(const struct cache *c);	/* a demand waits for its read to start */
bool cache_work(const struct cache *c);		/* cheap: might cache_take find something? */
bool cache_stuck(const struct cache *c);	/* a demand waits for a slot and only cache_put can give one */

/* A read ended with `got` bytes. Good: resident. Else failed until each who demanded it has called cache_put,
 * or absent at once when nobody has; the next demand reads it again. */
void cache_done(struct cache *c, int k, int64_t got, bool good);

const struct cache_stats *cache_stats(const struct cache *c);

#endif
