/*
 * Capsules as a picture: speed, hits and stall against how many experts fit in memory; and, when
 * the quality of some is known, how far they are from the exact model against how fast. A series
 * is the capsules of one workload whose other settings are the same.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "measure/bench.h"
#include "base/svg.h"

enum { SPEED, HIT, STALL, KL, TOP1, PANELS };

/* What differs besides the memory. */
static void series_name(const json_t *capsule, const json_t *keys, bool works, bool models,
    char *out, size_t size)
{
	char text[64];
	size_t i, n = 0;
	json_t *key;

	*out = '\0';
	if (works)
		n += (size_t)snprintf(out, size, "%s ", bench_word(capsule, NULL, "workload"));
	if (models && n < size)
		n += (size_t)snprintf(out + n, size - n, "%s ", bench_word(capsule, "model",
		    "directory"));
	json_array_foreach((json_t *)keys, i, key) {
		const char *name = json_string_value(key);

		if (n >= size || strcmp(name, "ram") == 0 || strcmp(name, "cgroup") == 0 ||
		    strcmp(name, "slots") == 0)
			continue;
		bench_setting(capsule, name, text, sizeof text);
		n += (size_t)snprintf(out + n, size - n, "%s %s ", name, text);
	}
	if (*out == '\0')
		snprintf(out, size, "%s", bench_word(capsule, NULL, "workload"));
}

/* Of all experts, how many fit, in percent; NaN where that is no question. */
static double share(const json_t *capsule)
{
	double slots = bench_number(capsule, "store.slots"), all = bench_number(capsule,
	    "store.experts");

	if (isnan(slots)) {
		slots = bench_number(capsule, "slots");
		all = bench_number(capsule, "experts");
	}
	return 100 * slots / all;
}

static int put(struct svg *s, int panel, const char *name, double x, double y, double low,
    double high)
{
	if (isnan(x) || isnan(y))
		return 0;
	return svg_point(s, panel, name, x, y, isnan(low) ? y : low, isnan(high) ? y : high);
}

static int put_capsule(struct svg *s, const json_t *c, const char *name, bool quality)
{
	double x = share(c), v = bench_number(c, "tok_per_s"),
	    low = bench_number(c, "summary.tok_per_s.least"),
	       high = bench_number(c, "summary.tok_per_s.most");
	int rc = put(s, SPEED, name, x, v, low, high);

	rc |= put(s, HIT, name, x, 100 * bench_number(c, "hit_rate"), NAN, NAN);
	rc |= put(s, STALL, name, x, 100 * bench_number(c, "stall_share"), NAN, NAN);
	if (quality) {
		rc |= put(s, KL, name, v, bench_number(c, "quality.kl"), NAN, NAN);
		rc |= put(s, TOP1, name, v, 100 * bench_number(c, "quality.top1"), NAN, NAN);
	}
	return rc;
}

static bool any(const json_t *capsules, double (*number)(const json_t *))
{
	json_t *one;
	size_t i;

	json_array_foreach((json_t *)capsules, i, one)
		if (!isnan(number(one)))
			return true;
	return false;
}

static double kl(const json_t *capsule) { return bench_number(capsule, "quality.kl"); }

static bool models_differ(const json_t *capsules)
{
	for (size_t i = 1; i < json_array_size(capsules); i++)
		if (strcmp(bench_word(json_array_get(capsules, i), "model", "directory"),
		    bench_word(json_array_get(capsules, 0), "model", "directory")) != 0)
			return true;
	return false;
}

static int put_group(struct svg *s, const json_t *group, bool works, bool quality)
{
	json_t *keys = bench_differing(group), *one;
	char name[128];
	size_t i;
	int rc = 0;

	json_array_foreach((json_t *)group, i, one) {
		series_name(one, keys, works, models_differ(group), name, sizeof name);
		rc |= put_capsule(s, one, name, quality);
	}
	json_decref(keys);
	return rc;
}

int bench_draw(const json_t *capsules, const char *path, struct err *e)
{
	bool quality = any(capsules, kl);
	struct svg *s;
	json_t *groups, *group;
	const char *work;
	int rc = 0;

	if (!any(capsules, share))
		return err_set(e, EX_DATAERR, "--plot: no speed or hits against memory in these "
		    "records");
	if ((s = svg_new(quality ? PANELS : KL)) == NULL)
		return err_set(e, EX_OSERR, "out of memory for a picture");
	svg_panel(s, SPEED, "speed", "experts in memory, %", "tokens per second");
	svg_panel(s, HIT, "experts found in memory", "experts in memory, %", "%");
	svg_panel(s, STALL, "time spent waiting", "experts in memory, %", "%");
	if (quality) {
		svg_panel(s, KL, "distance from exact", "tokens per second", "KL, nats");
		svg_panel(s, TOP1, "same best token", "tokens per second", "%");
	}
	groups = bench_group(capsules);
	json_object_foreach(groups, work, group)
		rc |= put_group(s, group, json_object_size(groups) > 1, quality);
	rc = rc ? err_set(e, EX_DATAERR, "--plot: more than 16 kinds of runs")
	    : svg_write(s, path, e);
	json_decref(groups);
	svg_free(s);
	return rc;
}
