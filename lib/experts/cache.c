#include "experts/cache.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

enum { QUEUE, LRU, FRESH, LISTS };	/* to be read for a demand; used at least once; read as a
					   guess, not yet used */

struct entry {
	uint8_t state, source;
	bool guess;			/* its read was or is for a prediction that has not come
					   true yet */
	bool pinned;			/* for good */
	int pins;			/* demands not yet put back */
	int slot;
	int heap;			/* index in heap[] while guessed */
	int prev, next;			/* in one of the lists, newest first */
	float prob;
	float heat;			/* uses, halved with time, at clock `used` */
	float share;			/* of tokens expected to use it */
	int64_t deadline;		/* clock of the predicted demand; nothing is predicted
					   when it is past */
	int64_t used;			/* clock of the last demand, -1: none */
};

struct cache {
	int keys, slots, most, max_guesses, keep;	/* most: slots there can be */
	enum cache_policy policy;
	bool adapts, expects;		/* the policy asked for is auto; shares have been given */
	int all;			/* keys that are experts */
	int experts, layers, layer;	/* keys per layer; layers; of the last demand */
	double usual;			/* share of tokens that use an expert: K / E */
	int64_t clock;
	struct entry *e;		/* (keys + LISTS); the last ones are heads of the lists */
	int *heap, nheap;		/* (keys) guesses, the next to read first */
	int *free, nfree;		/* (slots) */
	int64_t *got;			/* (slots) bytes read into each */
	int demands, guesses;		/* reads going on */
	int residents, pinned;
	double waste, credit, size;	/* share of bytes; bytes; mean of those read so far, 0:
					   none yet */
	struct cache_stats st;
};

int64_t cache_bytes(int keys, int slots)
{
	return (int64_t)sizeof(struct cache) + (int64_t)(keys + LISTS) *
	    (int64_t)sizeof(struct entry)
	    + (int64_t)keys * (int64_t)sizeof(int) + (int64_t)slots *
	    (int64_t)(sizeof(int) + sizeof(int64_t));
}

struct cache *cache_new(int keys, int slots, int max_guesses, int keep)
{
	struct cache *c = calloc(1, sizeof *c);
	int i;

	if (c == NULL)
		return NULL;
	c->keys = keys;
	c->slots = c->most = c->nfree = slots;
	c->max_guesses = max_guesses;
	c->keep = keep;
	c->waste = -1;
	c->e = calloc((size_t)keys + LISTS, sizeof *c->e);
	c->heap = calloc((size_t)keys, sizeof *c->heap);
	c->free = calloc((size_t)slots, sizeof *c->free);
	c->got = calloc((size_t)slots, sizeof *c->got);
	if (c->e == NULL || c->heap == NULL || c->free == NULL || c->got == NULL) {
		cache_free(c);
		return NULL;
	}
	for (i = 0; i < keys; i++)
		c->e[i].deadline = c->e[i].used = c->e[i].slot = -1;
	for (i = keys; i < keys + LISTS; i++)
		c->e[i].prev = c->e[i].next = i;
	for (i = 0; i < slots; i++)
		c->free[i] = slots - 1 - i;
	return c;
}

void cache_free(struct cache *c)
{
	if (c == NULL)
		return;
	free(c->e);
	free(c->heap);
	free(c->free);
	free(c->got);
	free(c);
}

/* With few in memory, what was used last is most of what can be kept, and counting only adds
 * noise. */
static void adapt(struct cache *c)
{
	if (c->adapts)
		c->policy = !c->expects && c->slots < c->all * 3 / 8 ? CACHE_CYCLE : CACHE_AUTO;
}

void cache_set_policy(struct cache *c, enum cache_policy policy, int experts, int top_k, int all)
{
	c->adapts = policy == CACHE_AUTO;
	c->policy = policy;
	c->all = all;
	adapt(c);
	c->experts = experts;
	c->layers = c->keys / experts;
	c->usual = (double)top_k / experts;
}

void cache_set_waste(struct cache *c, double share)
{
	c->waste = share;
}

#define HALF_LIFE (c->policy == CACHE_LFRU ? 32 : 8)	/* tokens */
#define PRIOR 16		/* tokens of average use that an expert counts as having, */
#define EXPECTED 64		/* or of the use expected of it */

static double heat(const struct cache *c, const struct entry *x)
{
	return x->used < 0 ? 0 : x->heat * exp2(-(double)(c->clock - x->used) /
	    (HALF_LIFE * (double)c->keep));
}

/* The larger, the sooner it leaves; equal ones by recency. */
static double staleness(const struct cache *c, int k)
{
	double away = (k / c->experts - c->layer + c->layers - 1) % c->layers + 1, uses;

	if (c->policy == CACHE_LFRU)
		return -heat(c, &c->e[k]);
	if (c->policy == CACHE_CYCLE)
		return away;
	uses = c->expects ? (heat(c, &c->e[k]) + EXPECTED * c->e[k].share) /
	    (HALF_LIFE / M_LN2 + EXPECTED)
	    : (heat(c, &c->e[k]) + PRIOR * c->usual) / (HALF_LIFE / M_LN2 + PRIOR);
	return away + c->layers * (1 / uses);
}

int cache_state(const struct cache *c, int k)
{
	return c->e[k].state;
}

static void set_state(struct cache *c, int k, int state)
{
	c->e[k].state = (uint8_t)state;
}

int cache_slot(const struct cache *c, int k)
{
	return c->e[k].slot;
}

int cache_residents(const struct cache *c)
{
	return c->residents;
}

static void list_add(struct cache *c, int list, int k)
{
	int head = c->keys + list, next = c->e[head].next;

	c->e[k].prev = head;
	c->e[k].next = next;
	c->e[next].prev = k;
	c->e[head].next = k;
}

static void list_remove(struct cache *c, int k)
{
	c->e[c->e[k].prev].next = c->e[k].next;
	c->e[c->e[k].next].prev = c->e[k].prev;
}

static int list_oldest(const struct cache *c, int list)		/* -1: empty */
{
	int k = c->e[c->keys + list].prev;

	return k < c->keys ? k : -1;
}

static int list_newer(const struct cache *c, int k)
{
	int n = c->e[k].prev;

	return n < c->keys ? n : -1;
}

static bool sooner(const struct entry *a, const struct entry *b)
{
	return a->deadline < b->deadline || (a->deadline == b->deadline && a->prob > b->prob);
}

static void heap_set(struct cache *c, int i, int k)
{
	c->heap[i] = k;
	c->e[k].heap = i;
}

static void heap_up(struct cache *c, int i, int k)
{
	for (; i > 0 && sooner(&c->e[k], &c->e[c->heap[(i - 1) / 2]]); i = (i - 1) / 2)
		heap_set(c, i, c->heap[(i - 1) / 2]);
	heap_set(c, i, k);
}

static void heap_down(struct cache *c, int i, int k)
{
	int child;

	for (; (child = 2 * i + 1) < c->nheap; i = child) {
		if (child + 1 < c->nheap && sooner(&c->e[c->heap[child + 1]],
		    &c->e[c->heap[child]]))
			child++;
		if (!sooner(&c->e[c->heap[child]], &c->e[k]))
			break;
		heap_set(c, i, c->heap[child]);
	}
	heap_set(c, i, k);
}

static void heap_remove(struct cache *c, int k)
{
	int i = c->e[k].heap, last = c->heap[--c->nheap];

	if (last == k)
		return;
	if (sooner(&c->e[last], &c->e[k]))
		heap_up(c, i, last);
	else
		heap_down(c, i, last);
}

static void guess(struct cache *c, int k, float prob, int64_t deadline, int source)
{
	c->e[k].prob = prob;
	c->e[k].deadline = deadline;
	c->e[k].source = (uint8_t)source;
	set_state(c, k, CACHE_GUESSED);
	heap_up(c, c->nheap++, k);
}

static void enqueue(struct cache *c, int k)
{
	set_state(c, k, CACHE_QUEUED);
	list_add(c, QUEUE, k);
}

#define SAVED 8			/* credit is at most that of this many guesses */

/* What reading k for a guess of this probability would hold back. */
static double stake(const struct cache *c, float prob)
{
	return (1 - fmin(prob, 1)) * c->size;
}

/* A guess that is likelier to earn its share than to cost its size pays for itself. Where many such
 * were wrong nevertheless, those who predict are not to be believed. */
static bool pays_itself(const struct cache *c, float prob)
{
	return 1 - prob <= c->waste * prob && c->credit > -SAVED * c->size;
}

static bool affordable(const struct cache *c, float prob)
{
	return c->waste < 0 || 4 * stake(c, prob) <= c->credit || pays_itself(c, prob);
}

static void earn(struct cache *c, double bytes)
{
	c->credit = fmin(c->credit + bytes, SAVED * c->size);
}

/* A guess came true while it is read or after. */
static void guess_used(struct cache *c, int k)
{
	if (!c->e[k].guess)
		return;
	c->e[k].guess = false;
	c->st.predicted_used++;
	earn(c, stake(c, c->e[k].prob));
	if (cache_state(c, k) == CACHE_READING) {	/* earns its share as a demand when it
							   ends */
		c->guesses--;
		c->demands++;
	} else
		earn(c, c->waste * c->size);
}

static void guess_wasted(struct cache *c, int k, int64_t bytes)
{
	c->st.wasted_bytes += (uint64_t)bytes;
	c->st.wasted_by[c->e[k].source] += (uint64_t)bytes;
	c->credit -= (double)bytes - stake(c, c->e[k].prob);
	c->e[k].guess = false;
}

static void warm(struct cache *c, struct entry *x)
{
	x->heat = (float)heat(c, x) + 1;
	x->used = c->clock;
}

void cache_use(struct cache *c, int k)
{
	warm(c, &c->e[k]);
	guess_used(c, k);
	c->st.hits++;
}

int cache_demand(struct cache *c, int k)
{
	struct entry *x = &c->e[k];

	x->pins++;
	warm(c, x);
	c->layer = c->experts > 0 ? k / c->experts : 0;
	switch (cache_state(c, k)) {
	case CACHE_RESIDENT:
		guess_used(c, k);
		list_remove(c, k);
		list_add(c, LRU, k);
		c->st.hits++;
		return CACHE_HIT;
	case CACHE_GUESSED:
		heap_remove(c, k);
		enqueue(c, k);
		break;
	case CACHE_READING:
		guess_used(c, k);
		break;
	case CACHE_QUEUED:
		break;
	default:
		enqueue(c, k);
		c->st.misses++;
		return CACHE_MISS;
	}
	c->st.late++;
	return CACHE_LATE;
}

void cache_put(struct cache *c, int k)
{
	assert(c->e[k].pins > 0);
	if (--c->e[k].pins == 0 && cache_state(c, k) == CACHE_FAILED)
		set_state(c, k, CACHE_ABSENT);
}

void cache_abandon(struct cache *c, int k)
{
	struct entry *x = &c->e[k];

	cache_put(c, k);
	if (x->pins > 0)
		return;
	if (cache_state(c, k) == CACHE_QUEUED) {
		list_remove(c, k);
		guess(c, k, 1, c->clock + c->keep, CACHE_ABANDONED);
	} else if (cache_state(c, k) == CACHE_READING) {
		x->guess = true;
		x->prob = 1;
		x->source = CACHE_ABANDONED;
		x->deadline = c->clock + c->keep;
		c->demands--;
		c->guesses++;
		c->st.predicted++;
	}
}

static void forget(struct cache *c, int k)
{
	heap_remove(c, k);
	set_state(c, k, CACHE_ABSENT);
	c->st.expired++;
}

void cache_predict(struct cache *c, int k, float prob, int when, int source)
{
	struct entry *x = &c->e[k];
	int64_t deadline = c->clock + (when > 0 ? when : 0);

	switch (cache_state(c, k)) {
	case CACHE_GUESSED:
		/* A less likely word on the next layer says nothing against a likelier one on
		 * what comes later. */
		if (deadline > x->deadline || (deadline < x->deadline && prob < x->prob))
			break;
		heap_remove(c, k);
		set_state(c, k, CACHE_ABSENT);
		/* fall through */
	case CACHE_ABSENT:
		if (affordable(c, prob))
			guess(c, k, prob, deadline, source);
		break;
	default:			/* keeps it from being evicted until then */
		if (prob >= 0.5f && (x->deadline < c->clock || deadline < x->deadline))
			x->deadline = deadline;
	}
}

void cache_advance(struct cache *c)
{
	int k;

	c->clock++;
	while (c->nheap > 0 && c->e[k = c->heap[0]].deadline < c->clock)
		forget(c, k);
}

/* Whether x may leave for a read that is needed at `deadline` (a guess; -1: a demand). */
static bool evictable(const struct cache *c, const struct entry *x, int64_t deadline)
{
	return x->pins == 0 && !x->pinned &&
	    (deadline < 0 || (x->used != c->clock && (x->deadline < c->clock ||
	    x->deadline > deadline)));
}

/* Who leaves: a guess that did not come true; else, of those not predicted, the one that the
 * policy names; else, of those that may, the one predicted for the latest time. -1: nobody. */
static int victim(const struct cache *c, int64_t deadline)
{
	int list, k, latest = -1, stalest;
	double most, stale;
	const struct entry *x;

	for (list = FRESH; list >= LRU; list--) {
		stalest = -1;
		most = 0;
		for (k = list_oldest(c, list); k >= 0; k = list_newer(c, k)) {
			x = &c->e[k];
			if (!evictable(c, x, deadline))
				continue;
			if (x->deadline < c->clock && c->policy == CACHE_LRU)
				return k;
			if (x->deadline < c->clock && ((stale = staleness(c, k)) > most ||
			    stalest < 0)) {
				stalest = k;
				most = stale;
			}
			if (latest < 0 || x->deadline > c->e[latest].deadline)
				latest = k;
		}
		if (stalest >= 0)
			return stalest;
	}
	return latest;
}

static int evict(struct cache *c, int v)		/* the slot that is free now */
{
	int slot = c->e[v].slot;

	if (c->e[v].guess)
		guess_wasted(c, v, c->got[slot]);
	c->e[v].slot = -1;
	c->residents--;
	list_remove(c, v);
	set_state(c, v, CACHE_ABSENT);
	return slot;
}

static int slot_for(struct cache *c, int64_t deadline)
{
	int v;

	if (c->nfree > 0)
		return c->free[--c->nfree];
	v = victim(c, deadline);
	return v < 0 ? -1 : evict(c, v);
}

static bool may_guess(const struct cache *c)
{
	return c->nheap > 0 && c->demands == 0 && c->guesses < c->max_guesses;
}

bool cache_queued(const struct cache *c)
{
	return list_oldest(c, QUEUE) >= 0;
}

bool cache_work(const struct cache *c)
{
	return cache_queued(c) || may_guess(c);
}

static bool begin(struct cache *c, int k, bool demand, int *slot)
{
	struct entry *x = &c->e[k];

	*slot = slot_for(c, demand ? -1 : x->deadline);
	if (*slot < 0)
		return false;
	if (demand) {
		list_remove(c, k);
		c->demands++;
	} else {
		heap_remove(c, k);
		c->guesses++;
		c->st.predicted++;
		c->credit -= stake(c, x->prob);
	}
	x->guess = !demand;
	x->slot = *slot;
	set_state(c, k, CACHE_READING);
	return true;
}

int cache_take(struct cache *c, int *slot)
{
	int k = list_oldest(c, QUEUE);
	bool demand = k >= 0;

	if (demand)
		return begin(c, k, true, slot) ? k : -1;
	while (may_guess(c) && !affordable(c, c->e[c->heap[0]].prob))
		forget(c, c->heap[0]);
	if (!may_guess(c))
		return -1;
	k = c->heap[0];
	return begin(c, k, false, slot) ? k : -1;
}

bool cache_take_too(struct cache *c, int k, bool demand, int *slot)
{
	if (cache_state(c, k) != (demand ? CACHE_QUEUED : CACHE_GUESSED))
		return false;
	return (demand || affordable(c, c->e[k].prob)) && begin(c, k, demand, slot);
}

bool cache_stuck(const struct cache *c)
{
	return cache_queued(c) && c->demands + c->guesses == 0 && c->nfree == 0 &&
	    victim(c, -1) < 0;
}

void cache_done(struct cache *c, int k, int64_t got, bool good)
{
	struct entry *x = &c->e[k];

	c->st.reads++;
	c->st.read_bytes += (uint64_t)got;
	if (x->guess)
		c->guesses--;
	else
		c->demands--;
	if (good) {
		c->size += ((double)got - c->size) / (double)(c->st.reads < 64 ? c->st.reads : 64);
		if (!x->guess)
			earn(c, c->waste * (double)got);
		c->got[x->slot] = got;
		c->residents++;
		list_add(c, x->guess ? FRESH : LRU, k);
		set_state(c, k, CACHE_RESIDENT);
		return;
	}
	if (x->guess)
		guess_wasted(c, k, got);
	c->free[c->nfree++] = x->slot;
	x->slot = -1;
	set_state(c, k, x->pins > 0 ? CACHE_FAILED : CACHE_ABSENT);
}

double cache_heat(const struct cache *c, int k)
{
	return heat(c, &c->e[k]);
}

void cache_set_heat(struct cache *c, int k, double heat)
{
	c->e[k].heat = (float)heat;
	c->e[k].used = c->clock;
}

void cache_expect(struct cache *c, int k, float share)
{
	c->e[k].share = fmaxf(share, 1e-4f);
	if (c->adapts && !c->expects) {
		c->expects = true;
		adapt(c);
	}
}

void cache_pin(struct cache *c, int k)
{
	c->pinned += !c->e[k].pinned;
	c->e[k].pinned = true;
}

int cache_pinned(const struct cache *c)
{
	return c->pinned;
}

static int holder(const struct cache *c, int slot)	/* -1: it is free */
{
	for (int k = 0; k < c->keys; k++)
		if (c->e[k].slot == slot)
			return k;
	return -1;
}

bool cache_shrink(struct cache *c, int *from, int *to)
{
	int last = c->slots - 1, i = 0, v = c->nfree > 0 ? -1 : victim(c, -1);

	*from = *to = -1;
	assert(c->demands + c->guesses == 0 && !cache_queued(c));
	if (last == 0 || (c->nfree == 0 && v < 0))
		return false;
	if (v >= 0)
		c->free[c->nfree++] = evict(c, v);
	while (i < c->nfree && c->free[i] != last)
		i++;
	if (i == c->nfree) {
		*from = last;
		*to = c->e[holder(c, last)].slot = c->free[--i];
		c->got[*to] = c->got[last];
	}
	c->free[i] = c->free[--c->nfree];
	c->slots--;
	adapt(c);
	return true;
}

bool cache_grow(struct cache *c)
{
	if (c->slots == c->most)
		return false;
	c->free[c->nfree++] = c->slots++;
	adapt(c);
	return true;
}

void cache_forget_demands(struct cache *c)
{
	for (int k = 0; k < c->keys; k++)
		c->e[k].pins = 0;
}

const struct cache_stats *cache_stats(const struct cache *c)
{
	return &c->st;
}
