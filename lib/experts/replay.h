/*
 * replay: activation logs through the cache of the store, without a store: what each policy
 * would have found in memory.
 *
 *	struct replay r;
 *	replay_init(&r, &log.model);
 *	while (actlog_next(&log, &e) == 1)
 *		replay_add(&r, &log.act, &e);
 *	replay_run(&r, CACHE_LRU, slots, &res, &e);
 *	replay_belady(&r, slots, &res, &e);
 */
#ifndef CHR_REPLAY_H
#define CHR_REPLAY_H

#include "experts/actlog.h"
#include "experts/cache.h"

struct replay {
	int layers, experts, top_k;
	int64_t tokens, n, cap;
	int *key;		/* (n) layer * experts + expert, in the order of demand */
	int64_t *set;		/* (nsets + 1) where the experts of each token and layer begin */
	int64_t nsets, set_cap;
};

struct replay_result {
	int64_t demands, hits;
	int64_t waits;		/* layers of a token that had a miss */
};

void replay_init(struct replay *r, const struct actlog_model *m);
void replay_free(struct replay *r);
/* EX_OSERR */
int replay_add(struct replay *r, const struct act *a, struct err *e) CHR_MUST_CHECK;

/* slots: at least top_k. 0, or -1 with EX_OSERR. */
int replay_run(const struct replay *r, enum cache_policy policy, int slots,
    struct replay_result *out, struct err *e) CHR_MUST_CHECK;

/* The best that any policy could have done, knowing what comes (Belady 1966; no reading ahead):
 * who leaves is needed last. */
int replay_belady(const struct replay *r, int slots, struct replay_result *out, struct err *e)
    CHR_MUST_CHECK;

#endif
