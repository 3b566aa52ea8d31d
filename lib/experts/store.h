/*
 * store: experts of a model, resident or streamed from .ctsr files. The unit of residency,
 * prediction, eviction and reading is (layer, expert). One thread (the decoder's) calls these
 * functions; reads go on while it computes, and each call starts those that may start and takes
 * in those that have ended.
 *
 * The way of one layer of one forward pass:
 *
 *	store_demand(s, layer, ids, n)			misses are queued ahead of all
 *							predictions; hits are pinned
 *	for each expert, resident ones first:
 *		store_get(s, layer, id, &x, &e)		waits until it is there; CRC checked on
 *							first read
 *		... compute, with a store_poll() now and then ...
 *		store_put(s, layer, id)			unpins
 *	store_predict(s, layer', id', prob, when)	may be read when the drive is idle; expires
 *	store_advance(s)				once per layer: the clock by which
 *							predictions expire
 *
 * Slots are the backend's: files are read to memory of the host, from where what has come and is
 * right goes to the device; on the CPU both are one. What struct expert names is of the device.
 * Slots are preallocated and page-aligned; there is no lock, allocation or system call but the
 * reads themselves. Where memory runs out, store_resize() gives slots back.
 */
#ifndef CHR_STORE_H
#define CHR_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "experts/cache.h"
#include "arch/config.h"
#include "base/err.h"
#include "format/manifest.h"
#include "experts/reader.h"
#include "backend/backend.h"

struct store;

struct expert {			/* matrices of one expert, pinned between store_get and store_put */
	struct mat gate, up, down;	/* (F, D), (F, D), (D, F) */
};

struct store_opt {
	int64_t bytes;		/* for slots; 0: as many as there are experts */
	struct reader_opt reader;
	enum cache_policy evict;
	double waste;		/* share of the bytes read that guesses may waste; below 0: no
				   limit */
	int64_t split;		/* demanded experts of this size or more are read in two; 0: 512
				   KiB */
	bool force;		/* accept a budget below one token's working set */
};

#define STORE_HEAT 14		/* source of what store_warm predicts */

enum { STORE_HIT, STORE_LATE, STORE_MISS };	/* resident; read already under way (predicted);
						   not known */

struct store_stats {		/* monotonic counters */
	uint64_t hits, late, misses;		/* demanded experts; they sum to all demands */
	uint64_t read_bytes, reads;		/* by demand or prediction, as returned by the
						   kernel; experts read */
	uint64_t requests;			/* reads of the drive: fewer, when neighbours are
						   read together */
	uint64_t predicted, predicted_used;	/* predictions read; of these later demanded */
	uint64_t wasted_bytes;			/* read by prediction and evicted unused */
	uint64_t wasted_by[CACHE_SOURCES];	/* of them by whom */
	uint64_t expired;			/* predictions dropped before their read began */
	double stall;				/* seconds store_get waited */
	double busy;				/* seconds in which reads were under way */
	uint64_t given_bytes;			/* by store_resize, to the kernel */
};

/* A packed directory. Checks manifest against files and config. EX_OSERR when bytes is below one
 * token's working set (K experts in every sparse layer) unless force; the message names the
 * smallest budget. */
struct store *store_open(const char *dir, const struct config *c, const struct manifest *m,
    const struct store_opt *o, const struct backend *be, struct err *e) CHR_MUST_CHECK;

/* All experts in memory: x has (layers * experts) entries, borrowed. Same calls, all hits. */
struct store *store_resident(const struct config *c, const struct expert *x);

void store_close(struct store *s);

int store_slots(const struct store *s);			/* experts that fit; INT_MAX when
							   resident */
int store_most(const struct store *s);			/* that fit when it was opened; INT_MAX
							   when resident */
int store_least(const struct store *s);			/* the fewest that store_resize goes down
							   to */
int store_room(const struct store *s);			/* of them that may be demanded at once:
							   not pinned for good */
const char *store_io(const struct store *s);		/* how reads are done; NULL when resident */
bool store_direct(const struct store *s);		/* reads go past the page cache; false
							   once a file refused it */
/* all it allocates */
int64_t store_plan_bytes(const struct config *c, const struct manifest *m,
    const struct store_opt *o);
/* store_opt.bytes for one token's working set */
int64_t store_min_bytes(const struct config *c, const struct manifest *m);

/* Every expert is in memory and none will ever leave: there is nothing to predict, and no call
 * below waits or locks. */
bool store_complete(const struct store *s);

/* status (n entries, may be NULL) gets STORE_HIT/LATE/MISS. Each demand is ended by one of:
 * store_put after a store_get that returned 0; a store_get that failed (the next demand reads
 * the expert again); store_abandon. Experts demanded and not ended must not exceed store_slots,
 * over all calls. */
void store_demand(struct store *s, int layer, const int *ids, int n, uint8_t *status);
/* resident now: get would not wait */
bool store_ready(const struct store *s, int layer, int id);
/* EX_IOERR, EX_DATAERR */
int store_get(struct store *s, int layer, int id, struct expert *x, struct err *e) CHR_MUST_CHECK;
/* Waits until gate and up of a demanded expert are there, and is true when down is not yet: x
 * has all three, of which down may be used after store_get. What they hold is not checked before
 * that either: its error must discard what came of them. */
bool store_get_half(struct store *s, int layer, int id, struct expert *x);
void store_put(struct store *s, int layer, int id);
/* Whether any read has failed so far: for who gives demands up, and so is never told by
 * store_get. 0, or -1. */
int store_failed(const struct store *s, struct err *e) CHR_MUST_CHECK;
/* Gives up a demand that was never fetched with store_get (on-miss shared): the read goes on as
 * a prediction. */
void store_abandon(struct store *s, int layer, int id);

/* when: in how many store_advance() calls from now it would be demanded; dropped once that is
 * past. prob and source are as in cache_predict. */
void store_predict(struct store *s, int layer, int id, float prob, int when, int source);
void store_expect(struct store *s, int layer, int id, float share);	/* cache_expect */
void store_advance(struct store *s);
void store_poll(struct store *s);		/* takes in what has been read and starts what
						   may start; cheap */

/* Other numbers of slots, between passes: nothing may be demanded. From store_least (one token's
 * working set, and room beside what is pinned) to store_most; fewer give their memory back to
 * the kernel, more take it again. Waits for reads under way and moves what stays out of the
 * slots that go. Returns how many there are now; a resident store does nothing. */
int store_resize(struct store *s, int slots);
int64_t store_slot_bytes(const struct store *s);	/* 0 when resident */

/* What a run says of the next (heat.h): uses of each expert, halved with time; the first `pins`
 * of the warmest stay for good, and all that fit are read ahead, warmest first, while nothing
 * else is wanted. heat: (layers, experts). EX_OSERR when pins leave less than two layers' worth
 * of slots. */
void store_heat(const struct store *s, float *heat);
int store_warm(struct store *s, const float *heat, int pins, struct err *e) CHR_MUST_CHECK;

void store_stats(const struct store *s, struct store_stats *out);

#endif
