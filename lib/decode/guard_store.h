/*
 * guard_store: a store of experts that makes room while memory is short. Between passes, when
 * the guard's limit is reached, the store gives back an eighth of its slots at a time until the
 * limit is not reached any more or only one token's working set is left; when the warning has
 * not been reached for GUARD_STORE_CALM seconds, and there is room for an eighth below it, it
 * takes one back, and another after the same time again.
 *
 *	struct guard_store q = { .guard = g, .store = store };
 *	... between passes:
 *	if (guard_store_check(&q) == GUARD_LIMIT)
 *		take nothing new
 */
#ifndef CHR_GUARD_STORE_H
#define CHR_GUARD_STORE_H

#include <stdbool.h>

#include "base/guard.h"
#include "experts/store.h"

#define GUARD_STORE_CALM 3.0	/* seconds */

struct guard_store {
	struct guard *guard;	/* NULL: nothing is watched */
	struct store *store;
	double calm;		/* since when the warning has not been reached, or 0 */
	bool said;		/* that slots were given back */
};

/* Level that is left when slots have been given back, if there were any to give. Says so once on
 * stderr. As cheap as guard_check() while all is well. */
enum guard_level guard_store_check(struct guard_store *q);

#endif
