#include "experts/replay.h"

#include <stdlib.h>

void replay_init(struct replay *r, const struct actlog_model *m)
{
	*r = (struct replay){ .layers = m->layers, .experts = m->experts, .top_k = m->top_k };
}

void replay_free(struct replay *r)
{
	free(r->key);
	free(r->set);
	*r = (struct replay){ 0 };
}

static bool grow(void *array, int64_t *cap, int64_t need, size_t size)
{
	void **p = array, *q;

	if (need <= *cap)
		return true;
	q = realloc(*p, (size_t)(need * 2) * size);
	if (q == NULL)
		return false;
	*p = q;
	*cap = need * 2;
	return true;
}

int replay_add(struct replay *r, const struct act *a, struct err *e)
{
	for (int l = 0; l < r->layers; l++) {
		if (a->n[l] == 0)
			continue;
		if (!grow(&r->key, &r->cap, r->n + a->n[l], sizeof *r->key) ||
		    !grow(&r->set, &r->set_cap, r->nsets + 2, sizeof *r->set))
			return err_set(e, EX_OSERR, "out of memory for %lld demands",
			    (long long)r->n);
		r->set[r->nsets++] = r->n;
		for (int i = 0; i < a->n[l]; i++)
			r->key[r->n++] = l * r->experts + a->id[l * r->top_k + i];
		r->set[r->nsets] = r->n;
	}
	r->tokens++;
	return 0;
}

static int sets_per_token(const struct replay *r)
{
	return r->tokens > 0 ? (int)(r->nsets / r->tokens) : 1;
}

int replay_run(const struct replay *r, enum cache_policy policy, int slots,
    struct replay_result *out, struct err *e)
{
	int per_token = sets_per_token(r), k, slot;
	struct cache *c = cache_new(r->layers * r->experts, slots, 1, per_token);

	*out = (struct replay_result){ .demands = r->n };
	if (c == NULL)
		return err_set(e, EX_OSERR, "out of memory for a cache of %d", slots);
	cache_set_policy(c, policy, r->experts, r->top_k, r->layers * r->experts);
	for (int64_t s = 0; s < r->nsets; s++) {
		int64_t hits = out->hits;

		for (int64_t i = r->set[s]; i < r->set[s + 1]; i++)
			out->hits += cache_demand(c, r->key[i]) == CACHE_HIT;
		out->waits += out->hits - hits < r->set[s + 1] - r->set[s];
		while ((k = cache_take(c, &slot)) >= 0)
			cache_done(c, k, 1, true);
		for (int64_t i = r->set[s]; i < r->set[s + 1]; i++)
			cache_put(c, r->key[i]);
		cache_advance(c);
	}
	cache_free(c);
	return 0;
}

/* For each demand, the set in which the same expert is demanded next; nsets: never. */
static int64_t *next_uses(const struct replay *r)
{
	int keys = r->layers * r->experts;
	int64_t *next = malloc(sizeof *next * (size_t)(r->n + 1)),
	    *last = malloc(sizeof *last * (size_t)keys);

	for (int k = 0; last && k < keys; k++)
		last[k] = r->nsets;
	for (int64_t s = r->nsets - 1; next && last && s >= 0; s--) {
		for (int64_t i = r->set[s]; i < r->set[s + 1]; i++)
			next[i] = last[r->key[i]];
		for (int64_t i = r->set[s]; i < r->set[s + 1]; i++)
			last[r->key[i]] = s;
	}
	if (last == NULL) {
		free(next);
		next = NULL;
	}
	free(last);
	return next;
}

struct oracle {
	int64_t *due;		/* (keys) next use of a resident; -1: absent */
	int *who;		/* (slots) residents */
	int n, slots;
};

static void admit(struct oracle *o, int k, int64_t due, int64_t now)
{
	int worst = -1;

	if (o->n < o->slots) {
		o->who[o->n++] = k;
	} else {
		for (int i = 0; i < o->n; i++)	/* what this set demands has its due at now: it
						   stays */
			if (o->due[o->who[i]] != now &&
			    (worst < 0 || o->due[o->who[i]] > o->due[o->who[worst]]))
				worst = i;
		o->due[o->who[worst]] = -1;
		o->who[worst] = k;
	}
	o->due[k] = due;
}

int replay_belady(const struct replay *r, int slots, struct replay_result *out, struct err *e)
{
	int keys = r->layers * r->experts;
	struct oracle o = { malloc(sizeof *o.due * (size_t)keys),
	    malloc(sizeof *o.who * (size_t)slots), 0, slots };
	int64_t *next = next_uses(r);
	int rc = 0;

	*out = (struct replay_result){ .demands = r->n };
	if (!o.due || !o.who || !next)
		rc = err_set(e, EX_OSERR, "out of memory for %lld demands", (long long)r->n);
	for (int k = 0; rc == 0 && k < keys; k++)
		o.due[k] = -1;
	for (int64_t s = 0; rc == 0 && s < r->nsets; s++) {
		int64_t hits = out->hits;

		for (int64_t i = r->set[s]; i < r->set[s + 1]; i++)
			if (o.due[r->key[i]] >= 0)
				out->hits++;
			else
				admit(&o, r->key[i], s, s);
		out->waits += out->hits - hits < r->set[s + 1] - r->set[s];
		for (int64_t i = r->set[s]; i < r->set[s + 1]; i++)
			o.due[r->key[i]] = next[i];
	}
	free(o.due);
	free(o.who);
	free(next);
	return rc;
}
