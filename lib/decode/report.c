#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/file.h"
#include "base/json.h"
#include "base/progress.h"
#include "decode/report.h"

long report_majflt(void)
{
	struct rusage u;

	return getrusage(RUSAGE_SELF, &u) == 0 ? u.ru_majflt : 0;
}

void report_io(int64_t *rchar, int64_t *disk)
{
	FILE *f = fopen("/proc/self/io", "r");
	char line[128];
	long long v;

	*rchar = *disk = 0;
	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "rchar: %lld", &v) == 1)
			*rchar = v;
		if (sscanf(line, "read_bytes: %lld", &v) == 1)
			*disk = v;
	}
	if (f)
		fclose(f);
}

int report_open(struct report *r, const char *spec, struct engine *g, struct err *e)
{
	int fd;

	*r = (struct report){ .g = g, .majflt = report_majflt(), .began = progress_clock() };
	store_stats(engine_store(g), &r->last);
	r->first = r->last;
	report_io(&r->rchar, &r->disk);
	if (!spec)
		return 0;
	if (*spec && strspn(spec, "0123456789") == strlen(spec) && strlen(spec) < 6)
		r->f = fdopen(atoi(spec), "w");
	else if ((fd = file_create(spec, e)) < 0)
		return -1;
	else
		r->f = fdopen(fd, "w");
	return r->f ? 0 : err_set(e, EX_CANTCREAT, "--stats %s:", spec);
}

static void put_store(json_t *o, const struct store_stats *a, const struct store_stats *b)
{
	json_set_int(o, "read_bytes", (int64_t)(b->read_bytes - a->read_bytes));
	json_set_int(o, "wasted_bytes", (int64_t)(b->wasted_bytes - a->wasted_bytes));
	json_set_int(o, "hits", (int64_t)(b->hits - a->hits));
	json_set_int(o, "misses", (int64_t)(b->misses - a->misses));
	json_set_int(o, "late", (int64_t)(b->late - a->late));
}

/* Of a store that may give memory back while it runs. */
static void put_slots(json_t *o, const struct store *store, int slots, uint64_t given)
{
	if (store_slots(store) == INT_MAX)
		return;
	json_set_int(o, "slots", slots);
	json_set_int(o, "given_bytes", (int64_t)given);
}

static void put_share(json_t *o, const char *key, uint64_t part, uint64_t whole)
{
	if (whole > 0)
		json_set_num(o, key, (double)part / (double)whole);
	else
		json_object_set_new(o, key, json_null());
}

void report_recall(json_t *o, const struct eval_stats *st)
{
	const struct source_stats *all = &st->source[SRC_TOGETHER];
	json_t *r = json_object();

	for (enum predictor s = SRC_GATE; s < SRC_N; s++)
		if (st->source[s].sets > 0)
			put_share(r, source_name[s], st->source[s].hit, st->source[s].slots);
	put_share(r, "whole", all->whole, all->sets);
	json_object_set_new(o, "recall", r);
}

static void put_time(json_t *o, double wall, double compute, double stall)
{
	json_set_num(o, "wall", wall);
	json_set_num(o, "compute", compute);
	json_set_num(o, "stall", stall);
}

static void add(struct report *r, const struct eval_stats *st)
{
	r->wall += st->wall;
	r->compute += st->compute;
	r->stall += st->stall;
}

static int put(struct report *r, const char *type, const char *count, int64_t n, int rows,
    const struct eval_stats *st,
    struct err *e)
{
	struct store_stats now;
	long faults = report_majflt();
	json_t *o;
	int status;

	add(r, st);
	store_stats(engine_store(r->g), &now);
	if (!r->f)
		return 0;
	o = json_object();
	json_set_str(o, "type", type);
	json_set_int(o, count, n);
	if (rows > 0)
		json_set_int(o, "rows", rows);
	put_time(o, st->wall, st->compute, st->stall);
	put_store(o, &r->last, &now);
	put_slots(o, engine_store(r->g), store_slots(engine_store(r->g)),
	    now.given_bytes - r->last.given_bytes);
	json_set_num(o, "replaced_mass", st->replaced_mass);
	report_recall(o, st);
	json_set_int(o, "majflt", faults - r->majflt);
	status = json_put(r->f, o, e);
	json_decref(o);
	r->last = now;
	r->majflt = faults;
	return status;
}

void report_sources(struct eval_stats *sum, const struct eval_stats *st)
{
	for (enum predictor s = SRC_GATE; s < SRC_N; s++) {
		sum->source[s].slots += st->source[s].slots;
		sum->source[s].hit += st->source[s].hit;
		sum->source[s].sets += st->source[s].sets;
		sum->source[s].whole += st->source[s].whole;
		sum->source[s].lead += st->source[s].lead;
	}
}

int report_prompt(struct report *r, int n, const struct eval_stats *st, struct err *e)
{
	r->prompt_tokens += n;
	r->prefill += st->wall;
	return put(r, "prefill", "tokens", n, 0, st, e);
}

int report_step(struct report *r, int rows, const struct eval_stats *st, struct err *e)
{
	r->tokens += rows;
	r->mass += st->replaced_mass * rows;
	report_sources(&r->sum, st);
	return put(r, "token", "n", r->steps++, rows, st, e);
}

/* What each source was worth by itself, and what guesses in its name wasted. */
static json_t *sources(const struct report *r, const struct store_stats *now)
{
	json_t *all = json_object();

	for (enum predictor s = SRC_GATE; s < SRC_LABELS; s++) {
		uint64_t wasted = now->wasted_by[s] - r->first.wasted_by[s];
		const struct source_stats *st = &r->sum.source[s];
		json_t *o;

		if ((s >= SRC_N || st->sets == 0) && wasted == 0)
			continue;
		o = json_object();
		if (s < SRC_N) {
			put_share(o, "slots", st->hit, st->slots);
			put_share(o, "whole", st->whole, st->sets);
			json_set_num(o, "lead_us", st->sets > 0 ? 1e6 * st->lead / (double)st->sets
			    : 0);
		}
		json_set_int(o, "wasted_bytes", (int64_t)wasted);
		json_object_set_new(all, source_name[s], o);
	}
	return all;
}

static void put_adapters(json_t *o, const struct engine *g)
{
	int n;
	const struct engine_adapter *a = engine_adapters(g, &n);
	json_t *names = json_array();

	for (int i = 0; i < n; i++)
		json_array_append_new(names, json_text(a[i].name, strlen(a[i].name)));
	json_object_set_new(o, "adapters", names);
}

static json_t *summary(struct report *r)
{
	struct store *store = engine_store(r->g);
	struct store_stats now;
	double decode = r->wall - r->prefill;
	int64_t rchar, disk;
	json_t *o = json_object();

	store_stats(store, &now);
	report_io(&rchar, &disk);
	json_set_str(o, "type", "summary");
	json_set_int(o, "tokens", r->tokens);
	json_set_int(o, "prompt_tokens", r->prompt_tokens);
	json_set_num(o, "elapsed", progress_clock() - r->began);
	json_set_num(o, "prefill", r->prefill);
	put_time(o, r->wall, r->compute, r->stall);
	json_set_num(o, "tok_per_s", decode > 0 ? (double)r->tokens / decode : 0);
	put_store(o, &r->first, &now);
	json_set_int(o, "reads", (int64_t)(now.reads - r->first.reads));
	json_set_int(o, "requests", (int64_t)(now.requests - r->first.requests));
	json_set_int(o, "predicted", (int64_t)(now.predicted - r->first.predicted));
	json_set_int(o, "predicted_used", (int64_t)(now.predicted_used - r->first.predicted_used));
	json_set_int(o, "expired", (int64_t)(now.expired - r->first.expired));
	json_set_num(o, "replaced_mass", r->tokens > 0 ? r->mass / (double)r->tokens : 0);
	report_recall(o, &r->sum);
	json_object_set_new(o, "sources", sources(r, &now));
	json_set_num(o, "busy", now.busy - r->first.busy);
	json_set_int(o, "rchar", rchar - r->rchar);
	json_set_int(o, "disk_bytes", disk - r->disk);
	json_set_int(o, "expert_bytes", engine_expert_bytes(r->g));
	put_slots(o, store, store_most(store), now.given_bytes - r->first.given_bytes);
	if (store_slots(store) < INT_MAX) {
		json_set_str(o, "io", store_io(store));
		json_object_set_new(o, "direct", json_boolean(store_direct(store)));
	}
	json_set_str(o, "kv_type", kv_type_name(engine_kv_type(r->g)));
	put_adapters(o, r->g);
	json_set_int(o, "peak_rss", mem_peak_rss());
	return o;
}

int report_close(struct report *r, struct err *e)
{
	json_t *o;
	int status;

	if (!r->f)
		return 0;
	o = summary(r);
	status = json_put(r->f, o, e);
	json_decref(o);
	if (fclose(r->f) != 0 && status == 0)
		status = err_set(e, EX_IOERR, "--stats:");
	r->f = NULL;
	return status;
}
