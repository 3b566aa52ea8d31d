/*
 * store: experts of a model, resident or streamed from .ctsr files. The unit of residency, prediction, eviction and
 * reading is (layer, expert). One thread (the decoder's) calls these functions; reader threads do the I/O, and store_get
 * reads what it waits for when none of them has begun it.
 *
 * The way of one layer of one forward pass:
 *
 *	store_demand(s, layer, ids, n)			misses are queued ahead of all predictions; hits are pinned
 *	for each expert, resident ones first:
 *		store_get(s, layer, id, &x, &e)		waits until it is there; CRC checked on first read
 *		... compute ...
 *		store_put(s, layer, id)			unpins
 *	store_predict(s, layer', id', prob, when)	may be read when the drive is idle; expires
 *	store_advance(s)				once per layer: the clock by which predictions expire
 *
 * Slots are preallocated and page-aligned; no allocation, madvise or lock per token beyond the queue's own mutex.
 */
#ifndef CHR_STORE_H
#define CHR_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "cache.h"
#include "config.h"
#include "err.h"
#include "manifest.h"
#include "tensor.h"

struct store;

struct expert {			/* matrices of one expert, pinned between store_get and store_put */
	struct mat gate, up, down;	/* (F, D), (F, D), (D, F) */
};

struct store_opt {
	int64_t bytes;		/* for slots; 0: as many as there are experts */
	int readers;		/* I/O threads; 0 = 2 */
	enum cache_policy evict;
	bool buffered;		/* do not try O_DIRECT */
	double sim_latency;	/* seconds added to each read */
	double sim_bandwidth;	/* bytes/s the simulated drive gives, 0 = no limit */
	bool force;		/* accept a budget below one token's working set */
};

enum { STORE_HIT, STORE_LATE, STORE_MISS };	/* resident; read already under way (predicted); not known */

struct store_stats {		/* monotonic counters */
	uint64_t hits, late, misses;		/* demanded experts; they sum to all demands */
	uint64_t read_bytes, reads;		/* by demand or prediction, as returned by the kernel */
	uint64_t predicted, predicted_used;	/* predictions read; of these later demanded */
	uint64_t wasted_bytes;			/* read by prediction and evicted unused */
	uint64_t expired;			/* predictions dropped before their read began */
	double stall;				/* seconds store_get waited */
};

/* A packed directory. Checks manifest against files and config. EX_OSERR when bytes is below one token's working set
 * (K experts in every sparse layer) unless force; the message names the smallest budget. */
struct store *store_open(const char *dir, const struct config *c, const struct manifest *m, const struct store_opt *o,
    struct err *e);

/* All experts in memory: x has (layers * experts) entries, borrowed. Same calls, all hits. */
struct store *store_resident(const struct config *c, const struct expert *x);

void store_close(struct store *s);

int store_slots(const struct store *s);			/* experts that fit; INT_MAX when resident */
bool store_direct(const struct store *s);		/* reads go past the page cache; false once a file refused it */
int64_t store_plan_bytes(const struct config *c, const struct manifest *m, const struct store_opt *o); /* all it allocates */
int64_t store_min_bytes(const struct config *c, const struct manifest *m); /* store_opt.bytes for one token's working set */

/* Every expert is in memory and none will ever leave: there is nothing to predict, and no call below waits or locks. */
bool store_complete(const struct store *s);

/* status (n entries, may be NULL) gets STORE_HIT/LATE/MISS. Each demand is ended by one of: store_put after a
 * store_get that returned 0; a store_get that failed (the next demand reads the expert again); store_abandon.
 * Experts demanded and not ended must not exceed store_slots, over all calls. */
void store_demand(struct store *s, int layer, const int *ids, int n, uint8_t *status);
bool store_ready(struct store *s, int layer, int id);	/* resident now: get would not wait */
int store_get(struct store *s, int layer, int id, struct expert *x, struct err *e);	/* EX_IOERR, EX_DATAERR */
void store_put(struct store *s, int layer, int id);
/* Gives up a demand that was never fetched with store_get (on-miss shared): the read goes on as a prediction. */
void store_abandon(struct store *s, int layer, int id);

/* when: in how many store_advance() calls from now it would be demanded; dropped once that is past. */
void store_predict(struct store *s, int layer, int id, float prob, int when);
void store_advance(struct store *s);

void store_stats(const struct store *s, struct store_stats *out);

#endif
