/*
 * What got slower: each capsule beside those of an earlier run that measured the same. The same
 * is: workload, model, prompts, state of the cache, and every setting that both know. Slower:
 * the best of the new samples is worse than the worst of the old, with three or more of each
 * (chance alone does that once in twenty times with three, once in 252 with five); of a number
 * that has no chance in it, any loss.
 */
#include <math.h>
#include <string.h>

#include "measure/bench.h"
#include "base/human.h"
#include "base/json.h"
#include "base/plain.h"

#define ENOUGH 3
#define ROUNDING 1e-8		/* records have nine digits */

static bool same_value(const json_t *a, const json_t *b)
{
	double x = json_number_value(a), y = json_number_value(b);

	if (json_is_number(a) && json_is_number(b))
		return fabs(x - y) <= ROUNDING * fabs(x);
	return !a || !b || json_equal(a, b);
}

static bool same_config(const json_t *a, const json_t *b)
{
	const char *key;
	json_t *v;

	json_object_foreach((json_t *)a, key, v)
		if (!same_value(v, json_object_get(b, key)))
			return false;
	return true;
}

static bool same_work(const json_t *a, const json_t *b)
{
	return strcmp(bench_word(a, NULL, "workload"), bench_word(b, NULL, "workload")) == 0 &&
	    strcmp(bench_word(a, "metric", "name"), bench_word(b, "metric", "name")) == 0 &&
	    strcmp(bench_word(a, "cache", "state"), bench_word(b, "cache", "state")) == 0 &&
	    strcmp(bench_word(a, "model", "fingerprint"), bench_word(b, "model", "fingerprint")) ==
	    0 &&
	    strcmp(bench_word(a, "model", "experts"), bench_word(b, "model", "experts")) == 0 &&
	    strcmp(bench_word(a, NULL, "prompts_digest"), bench_word(b, NULL, "prompts_digest")) ==
	    0 &&
	    same_config(json_object_get(a, "config"), json_object_get(b, "config"));
}

static bool same_machine(const json_t *a, const json_t *b)
{
	static const char *const keys[] = { "cpu", "cores", "memory", NULL };

	for (int i = 0; keys[i]; i++)
		if (!same_value(json_object_get(json_object_get(a, "machine"), keys[i]),
		    json_object_get(json_object_get(b, "machine"), keys[i])))
			return false;
	return true;
}

static size_t samples(const json_t *capsule)
{
	return json_array_size(json_object_get(json_object_get(capsule, "metric"), "samples"));
}

static const char *verdict(const json_t *old, const json_t *new)
{
	bool more = strcmp(bench_word(new, "metric", "better"), "more") == 0;
	bool exact = json_is_true(json_object_get(json_object_get(new, "metric"), "exact"));
	double sign = more ? 1 : -1, new_best = sign * bench_number(new, more ? "metric.most"
	    : "metric.least"),
	       new_worst = sign * bench_number(new, more ? "metric.least" : "metric.most"),
	       old_best = sign * bench_number(old, more ? "metric.most" : "metric.least"),
	       old_worst = sign * bench_number(old, more ? "metric.least" : "metric.most");

	/* A record from elsewhere may lack a number: then nothing is known, which is not "same". */
	if (!isfinite(new_best + new_worst + old_best + old_worst))
		return "unsure";
	if (!exact && (samples(old) < ENOUGH || samples(new) < ENOUGH))
		return "unsure";
	return old_worst - new_best > ROUNDING * fabs(old_worst) ? "slower" : new_worst - old_best >
	    ROUNDING * fabs(old_best) ? "faster" : "same";
}

static json_t *spread_of(const json_t *capsule)
{
	return bench_spread(json_object_get(json_object_get(capsule, "metric"), "samples"));
}

static int put_record(const json_t *old, const json_t *new, const char *v, struct err *e)
{
	json_t *r = json_object();
	int rc;

	json_set_str(r, "type", "compare");
	json_set_str(r, "workload", bench_word(new, NULL, "workload"));
	json_object_set(r, "config", json_object_get(new, "config"));
	json_set_str(r, "metric", bench_word(new, "metric", "name"));
	json_object_set_new(r, "old", spread_of(old));
	json_object_set_new(r, "new", spread_of(new));
	json_set_str(r, "old_commit", bench_word(old, NULL, "commit"));
	json_set_str(r, "new_commit", bench_word(new, NULL, "commit"));
	json_object_set_new(r, "same_machine", json_boolean(same_machine(old, new)));
	json_set_num(r, "ratio", bench_number(new, "metric.median") / bench_number(old,
	    "metric.median"));
	json_set_str(r, "verdict", v);
	rc = human_put(r, e);
	json_decref(r);
	return rc;
}

/* A row of the table that is shown instead of records; keys: the settings that tell these
 * capsules apart. */
static void put_row(const json_t *old, const json_t *record, const json_t *settings, const char *v)
{
	json_t *new = plain_json(record), *keys = plain_json(settings), *key;
	char text[128];
	size_t i;

	printf("| %s", bench_word(new, NULL, "workload"));
	json_array_foreach((json_t *)keys, i, key) {
		bench_setting(new, json_string_value(key), text, sizeof text);
		if (*text)
			printf("%s%s %s", i ? ", " : ": ", json_string_value(key), text);
	}
	printf(" | %s | %.4g [%.4g-%.4g] | %.4g [%.4g-%.4g] | %.2f | %s |\n",
	    bench_word(new, "metric", "name"),
	    bench_number(old, "metric.median"), bench_number(old, "metric.least"),
	    bench_number(old, "metric.most"),
	    bench_number(new, "metric.median"), bench_number(new, "metric.least"),
	    bench_number(new, "metric.most"),
	    bench_number(new, "metric.median") / bench_number(old, "metric.median"), v);
	json_decref(new);
	json_decref(keys);
}

static json_t *load(const char *path, struct err *e)
{
	json_t *all = json_array(), *rec;
	char *name = (char *)path;
	struct jsonl *in = jsonl_open(1, &name, false, e);

	while (in && (rec = jsonl_next(in, e)) != NULL)
		json_array_append_new(all, rec);
	jsonl_close(in);
	if (e->status == 0)
		return all;
	json_decref(all);
	return NULL;
}

/* The last one of the old that did the same; NULL: none. */
static const json_t *counterpart(const json_t *old, const json_t *capsule)
{
	for (size_t i = json_array_size(old); i-- > 0;)
		if (same_work(json_array_get(old, i), capsule))
			return json_array_get(old, i);
	return NULL;
}

int bench_compare(const json_t *capsules, const char *path, int *slower, struct err *e)
{
	json_t *old = load(path, e), *keys = bench_differing(capsules), *one;
	int found = 0, rc = old ? 0 : -1;
	size_t i;

	*slower = 0;
	json_array_foreach((json_t *)capsules, i, one) {
		const json_t *before = rc == 0 ? counterpart(old, one) : NULL;
		const char *v = before ? verdict(before, one) : "";

		if (!before)
			continue;
		if (!same_machine(before, one) && found == 0)
			err_warn("%s: measured on another machine", path);
		if (bench.table && found == 0)
			printf("\n| what | of | old | new | ratio | verdict "
			    "|\n|---|---|---|---|---|---|\n");
		if (bench.table)
			put_row(before, one, keys, v);
		else
			rc = put_record(before, one, v, e);
		found++;
		*slower += strcmp(v, "slower") == 0;
	}
	if (rc == 0 && found == 0)
		rc = err_set(e, EX_DATAERR, "%s: nothing that was measured now", path);
	json_decref(old);
	json_decref(keys);
	return rc;
}
