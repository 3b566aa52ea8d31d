/*
 * cache: the policy of the store: which expert is in which slot, which read comes next, who
 * leaves for it. Plain data: no locks, threads or I/O.
 *
 * An expert is a key k (layer * experts + expert). Its way: absent -> queued (demanded) or
 * guessed (predicted) -> reading -> resident -> absent. Demands are read in their order and
 * before all guesses; guesses in the order of (deadline, -prob), none while a demand is queued
 * or being read, so they get only what the drive has to spare. The clock counts layers
 * (cache_advance).
 *
 * Guesses live on credit, so that those that turn out wrong cost at most a given share of all
 * bytes read (cache_set_waste): what was read and used earns that share of its size, a guess of
 * probability p holds back (1 - p) of its size until it is used, and the whole size is spent
 * when it leaves unused. A guess that would take more than a quarter of the credit is not made,
 * unless it is so sure that it will earn more than it costs, by its probability: where guesses are
 * often wrong only the surest are left, and at last none.
 */
#ifndef CHR_CACHE_H
#define CHR_CACHE_H

#include <stdbool.h>
#include <stdint.h>

struct cache;

enum { CACHE_ABSENT, CACHE_GUESSED, CACHE_QUEUED, CACHE_READING, CACHE_RESIDENT, CACHE_FAILED };
enum { CACHE_HIT, CACHE_LATE, CACHE_MISS };

#define CACHE_SOURCES 16		/* who predicts: the caller's numbers, kept apart in
					   wasted_by, */
#define CACHE_ABANDONED 15	/* but this: what was demanded and then given up */

struct cache_stats {
	uint64_t hits, late, misses;
	uint64_t read_bytes, reads;
	uint64_t predicted, predicted_used, wasted_bytes, expired;
	uint64_t wasted_by[CACHE_SOURCES];
};

int64_t cache_bytes(int keys, int slots);			/* all that cache_new allocates */
/* max_guesses: reads of guesses at once. keep: clock ticks for which an abandoned expert counts
 * as guessed. */
/* NULL: out of memory */
struct cache *cache_new(int keys, int slots, int max_guesses, int keep);
void cache_set_waste(struct cache *c, double share);	/* of all bytes read; without this call
							   guesses have no limit */
void cache_free(struct cache *c);

/* Who leaves when a slot is needed:
 *	lru	the least recently used
 *	lfru	the least used, counting use so that it halves in 32 tokens (LRFU of Lee et al.,
 *		IEEE ToC 50(12), 2001)
 *	cycle	of the layer that comes round last, that is, the one just passed, the least
 *		recently used (least stale first:
 *		arXiv:2602.03921)
 *	auto	as cycle when less than 3/8 of all fit; else the one expected to be needed last:
 *		as far as its layer is away, and
 *		a round more for each in which it is likely to be passed over, going by its share
 *		    of recent use (half-life 8), and,
 *		where there is one, by the share expected (cache_expect), which then counts for
 *		    more, however few fit
 * Those predicted to be needed soon stay, whatever the policy. Without this call: lru. experts:
 * keys per layer; all: keys that are experts (layers may have none). */
enum cache_policy { CACHE_LRU, CACHE_LFRU, CACHE_CYCLE, CACHE_AUTO };
void cache_set_policy(struct cache *c, enum cache_policy policy, int experts, int top_k, int all);

int cache_state(const struct cache *c, int k);
int cache_slot(const struct cache *c, int k);			/* of a pinned resident */
int cache_residents(const struct cache *c);

/* of a resident that stays anyway: only counted */
void cache_use(struct cache *c, int k);
/* pins k; CACHE_HIT, LATE or MISS */
int cache_demand(struct cache *c, int k);
void cache_put(struct cache *c, int k);				/* undoes one demand */
/* the same, but a read not done becomes a guess */
void cache_abandon(struct cache *c, int k);
/* prob: that it will be demanded by then. The soonest deadline counts, and the last word on it. */
void cache_predict(struct cache *c, int k, float prob, int when, int source);
void cache_advance(struct cache *c);

/* The next read to start: its key, now in state reading, and the slot it goes to; -1 when
 * nothing may start now. */
int cache_take(struct cache *c, int *slot);
/* The same for k, if it waits for its read as the one before does (a demand, or a guess); false:
 * not now. */
bool cache_take_too(struct cache *c, int k, bool demand, int *slot);
bool cache_queued(const struct cache *c);	/* a demand waits for its read to start */
bool cache_work(const struct cache *c);		/* cheap: might cache_take find something? */
bool cache_stuck(const struct cache *c);	/* a demand waits for a slot and only cache_put
						   can give one */

/* A read ended with `got` bytes. Good: resident. Else failed until each who demanded it has
 * called cache_put, or absent at once when nobody has; the next demand reads it again. */
void cache_done(struct cache *c, int k, int64_t got, bool good);

/* Uses of k, halved with time: what is recorded of a run for the next, and what that begins
 * with. */
double cache_heat(const struct cache *c, int k);
void cache_set_heat(struct cache *c, int k, double heat);
/* share: of the tokens to come that will use k, as somebody expects; stands until the next word.
 * auto goes by it. */
void cache_expect(struct cache *c, int k, float share);
void cache_pin(struct cache *c, int k);		/* once in memory it never leaves */
int cache_pinned(const struct cache *c);

/* Other numbers of slots while it runs, from 1 to what cache_new was told; those in use are
 * always the first. Nothing may be demanded or being read. cache_shrink gives up the last slot:
 * false when all else is pinned for good, else who leaves, if anybody must, is gone, and when
 * *from is not -1 what is in slot *from (the last) goes to slot *to now. */
bool cache_shrink(struct cache *c, int *from, int *to);
bool cache_grow(struct cache *c);		/* by one; false: it has all */
void cache_forget_demands(struct cache *c);	/* as if each had been put back */

const struct cache_stats *cache_stats(const struct cache *c);

#endif
