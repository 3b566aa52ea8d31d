#include "decode/guard_store.h"

#include "base/progress.h"

static int step(const struct store *s)		/* slots given or taken at a time */
{
	int n = store_most(s) / 8;

	return n > 0 ? n : 1;
}

static void say(struct guard_store *q, int before)
{
	if (q->said)
		return;
	q->said = true;
	err_warn("memory is short: %d of %d experts' room given back, %.1f MiB; it is taken again "
	    "when there is enough",
	    before - store_slots(q->store), store_most(q->store),
	    (double)(before - store_slots(q->store)) * (double)store_slot_bytes(q->store) /
	    (1 << 20));
}

static enum guard_level give(struct guard_store *q)
{
	int before = store_slots(q->store), least = store_least(q->store), n = before, last = n + 1;
	enum guard_level level = GUARD_LIMIT;

	while (level == GUARD_LIMIT && n > least && n < last) {
		last = n;
		n = store_resize(q->store, n - step(q->store));
		level = guard_look(q->guard);
	}
	if (n < before)
		say(q, before);
	return level;
}

static void take(struct guard_store *q)
{
	int n = store_slots(q->store), more = step(q->store);
	double now = progress_clock();

	if (q->calm == 0)
		q->calm = now;
	if (now - q->calm < GUARD_STORE_CALM)
		return;
	q->calm = now;
	if (guard_slack(q->guard) >= more * store_slot_bytes(q->store))
		store_resize(q->store, n + more < store_most(q->store) ? n + more
		    : store_most(q->store));
}

enum guard_level guard_store_check(struct guard_store *q)
{
	enum guard_level level = guard_check(q->guard);

	if (q->guard == NULL)
		return level;
	if (level != GUARD_OK)
		q->calm = 0;
	if (level == GUARD_LIMIT)
		return give(q);
	if (level == GUARD_OK && store_slots(q->store) < store_most(q->store))
		take(q);
	return level;
}
