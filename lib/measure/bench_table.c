/* Capsules shown as Markdown: a table for each workload. */
#include <math.h>
#include <string.h>

#include "measure/bench.h"
#include "base/human.h"
#include "base/json.h"
#include "base/plain.h"

#define MAX_COLUMNS 32

/* A number of capsules, shown when some capsule has it; `zero`: also when it is 0 in all. */
static const struct column {
	const char *head, *path;
	double scale;
	int digits;
	bool zero;
} columns[] = {
	{ "hit %", "hit_rate", 100, 1, true },
	{ "stall %", "stall_share", 100, 1, true },
	{ "KiB read per token", "read_bytes_per_token", 1 / 1024.0, 0, false },
	{ "from the drive", "disk_bytes_per_token", 1 / 1024.0, 0, false },
	{ "tok/s planned", "tok_per_s_planned", 1, 1, false },
	{ "wasted %", "wasted_share", 100, 1, false },
	{ "gate recall %", "recall_gate", 100, 1, false },
	{ "lookahead recall %", "recall_lookahead", 100, 1, false },
	{ "whole sets %", "recall_whole", 100, 1, false },
	{ "replaced %", "replaced_mass", 100, 2, false },
	{ "tok per CPU s", "tok_per_cpu_s", 1, 0, true },
	{ "GFLOP/s", "ops_per_s", 1e-9, 1, true },
	{ "6 N per token", "model_ops_per_s", 1e-9, 1, true },
	{ "major faults", "majflt", 1, 0, false },
	{ "peak RSS MiB", "peak_rss", 1 / 1048576.0, 0, true },
	{ "peak of group MiB", "cgroup.peak", 1 / 1048576.0, 0, true },
	{ "% of memory", "roofline.memory_fraction", 100, 0, true },
	{ "% of drive", "roofline.drive_fraction", 100, 0, true },
	{ "% of arithmetic", "roofline.compute_fraction", 100, 0, true },
	{ "% of FMA", "roofline.fma_fraction", 100, 0, true },
	{ "times the least", "roofline.times_floor", 1, 2, true },
	{ "KL", "quality.kl", 1, 4, true },
	{ "top-1 %", "quality.top1", 100, 1, true },
	{ "to the first", "versus.ratio.median", 1, 2, true },
};

double bench_number(const json_t *capsule, const char *path)
{
	const char *dot;

	while ((dot = strchr(path, '.')) != NULL) {
		char key[64];

		snprintf(key, sizeof key, "%.*s", (int)(dot - path), path);
		capsule = json_object_get(capsule, key);
		path = dot + 1;
	}
	capsule = json_object_get(capsule, path);
	return json_is_number(capsule) ? json_number_value(capsule) : NAN;
}

const char *bench_word(const json_t *capsule, const char *object, const char *key)
{
	const char *s = json_string_value(json_object_get(object ? json_object_get(capsule, object)
	    : capsule, key));

	return s ? s : "";
}

static bool differs(const json_t *capsules, const char *key)
{
	const json_t *first = json_object_get(json_object_get(json_array_get(capsules, 0),
	    "config"), key);
	json_t *one;
	size_t i;

	json_array_foreach((json_t *)capsules, i, one) {
		const json_t *v = json_object_get(json_object_get(one, "config"), key);

		if (v != first && (!v || !first || !json_equal((json_t *)v, (json_t *)first)))
			return true;
	}
	return false;
}

json_t *bench_differing(const json_t *capsules)
{
	json_t *keys = json_array(), *known = json_object(), *one, *v;
	const char *key;
	size_t i;

	json_array_foreach((json_t *)capsules, i, one)
		json_object_update(known, json_object_get(one, "config"));
	json_object_foreach(known, key, v)
		if (differs(capsules, key))
			json_array_append_new(keys, json_string(key));
	json_decref(known);
	return keys;
}

/* The words of a list, or the files that it tells of. */
static void join(const json_t *list, char *out, size_t size)
{
	size_t i, n = 0;
	json_t *one;

	*out = '\0';
	json_array_foreach((json_t *)list, i, one)
		if (n < size)
			n += (size_t)snprintf(out + n, size - n, "%s%s", i ? " " : "",
			    json_is_string(one) ? json_string_value(one) :
			    bench_word(one, NULL, "file"));
}

void bench_setting(const json_t *capsule, const char *key, char *out, size_t size)
{
	const json_t *v = json_object_get(json_object_get(capsule, "config"), key);
	int64_t n = json_integer_value(v);

	if (json_is_integer(v) && n >= 1 << 20 && strcmp(key, "seed") != 0)
		snprintf(out, size, "%.0fM", (double)n / 1048576.0);
	else if (json_is_integer(v))
		snprintf(out, size, "%lld", (long long)n);
	else if (json_is_real(v))
		snprintf(out, size, "%g", json_real_value(v));
	else if (json_is_boolean(v))
		snprintf(out, size, "%s", json_is_true(v) ? "yes" : "no");
	else if (json_is_array(v))
		join(v, out, size);
	else
		snprintf(out, size, "%s", json_is_string(v) ? json_string_value(v) : "");
}

/* ---- one table ---- */

static const struct unit {
	const char *name, *head;
	double scale;
	int digits;
} units[] = {
	{ "tok_per_s", "tok/s", 1, 1 }, { "ttft_s", "s to first token", 1, 3 },
	    { "hit_rate", "hit %", 100, 1 },
	{ "bytes_per_s", "GB/s", 1e-9, 2 }, { "ops_per_s", "Gop/s", 1e-9, 1 }, { NULL, "", 1, 3 },
};

static const struct unit *unit_of(const json_t *capsule)
{
	const struct unit *u = units;

	while (u->name && strcmp(u->name, bench_word(capsule, "metric", "name")) != 0)
		u++;
	return u;
}

static bool shown(const struct column *c, const json_t *capsules)
{
	bool any = false;
	json_t *one;
	size_t i;

	json_array_foreach((json_t *)capsules, i, one) {
		double v = bench_number(one, c->path);

		if (strcmp(bench_word(one, "metric", "name"), c->path) == 0)
			return false;
		any = any || (!isnan(v) && (c->zero || v != 0));
	}
	return any;
}

/* Of different models, or in different states of the cache. */
static bool differ(const json_t *capsules, const char *object, const char *key)
{
	json_t *one;
	size_t i;

	json_array_foreach((json_t *)capsules, i, one)
		if (strcmp(bench_word(one, object, key), bench_word(json_array_get(capsules, 0),
		    object, key)) != 0)
			return true;
	return false;
}

static void put_metric(const json_t *capsule, FILE *f)
{
	const struct unit *u = unit_of(capsule);
	double median = bench_number(capsule, "metric.median") * u->scale,
	    least = bench_number(capsule, "metric.least") * u->scale,
	       most = bench_number(capsule, "metric.most") * u->scale;

	if (json_array_size(json_object_get(json_object_get(capsule, "metric"), "samples")) == 1)
		fprintf(f, " %.*f |", u->digits, median);
	else
		fprintf(f, " %.*f [%.*f-%.*f] |", u->digits, median, u->digits, least, u->digits,
		    most);
}

static void put_row(const json_t *capsule, bool models, bool caches, const json_t *keys,
    const struct column *const *cols, bool mixed,
    FILE *f)
{
	json_t *key;
	char text[256];
	size_t i;

	fputc('|', f);
	if (models)
		fprintf(f, " %s |", bench_word(capsule, "model", "directory"));
	if (caches)
		fprintf(f, " %s |", bench_word(capsule, "cache", "state"));
	json_array_foreach(keys, i, key) {
		bench_setting(capsule, json_string_value(key), text, sizeof text);
		fprintf(f, " %s |", text);
	}
	put_metric(capsule, f);
	if (mixed)
		fprintf(f, " %s |", unit_of(capsule)->head);
	for (; *cols; cols++) {
		double v = bench_number(capsule, (*cols)->path);

		if (isnan(v))
			fprintf(f, " |");
		else
			fprintf(f, " %.*f |", (*cols)->digits, v * (*cols)->scale);
	}
	fputc('\n', f);
}

static void put_head(const json_t *capsules, bool models, bool caches, const json_t *keys,
    const struct column *const *cols, bool mixed, FILE *f)
{
	int n = 1 + models + caches + mixed + (int)json_array_size(keys);
	json_t *key;
	size_t i;

	fprintf(f, "|%s%s", models ? " model |" : "", caches ? " cache |" : "");
	json_array_foreach(keys, i, key)
		fprintf(f, " %s |", json_string_value(key));
	fprintf(f, mixed ? " median [least-most] | of |" : " %s |",
	    unit_of(json_array_get(capsules, 0))->head);
	for (; *cols; cols++, n++)
		fprintf(f, " %s |", (*cols)->head);
	fputs("\n|", f);
	while (n-- > 0)
		fputs("---|", f);
	fputc('\n', f);
}

static void put_table(const json_t *capsules, FILE *f)
{
	const struct column *cols[MAX_COLUMNS + 1] = { NULL };
	bool models = differ(capsules, "model", "directory"), caches = differ(capsules, "cache",
	    "state");
	bool mixed = differ(capsules, "metric", "name");
	json_t *keys = bench_differing(capsules), *one;
	size_t n = 0, i;

	for (size_t c = 0; c < sizeof columns / sizeof *columns; c++)
		if (shown(&columns[c], capsules))
			cols[n++] = &columns[c];
	put_head(capsules, models, caches, keys, cols, mixed, f);
	json_array_foreach((json_t *)capsules, i, one)
		put_row(one, models, caches, keys, cols, mixed, f);
	json_decref(keys);
}

/* ---- parts of a step (train --profile) ---- */

static void put_cell(const json_t *part, const char *key, double scale, int digits, FILE *f)
{
	double v = bench_number(part, key) * scale;

	if (isnan(v))
		fprintf(f, " |");
	else
		fprintf(f, " %.*f |", digits, v);
}

/* What took less than a thousandth is left out. */
static void put_parts(const json_t *capsule, const json_t *keys, FILE *f)
{
	json_t *one, *key;
	char text[256];
	size_t i;

	fprintf(f, "\nparts of a step");
	json_array_foreach((json_t *)keys, i, key) {
		bench_setting(capsule, json_string_value(key), text, sizeof text);
		fprintf(f, ", %s %s", json_string_value(key), text);
	}
	fprintf(f, ":\n\n| part | ms | %% of the step | GFLOP/s | %% of arithmetic "
	    "|\n|---|---|---|---|---|\n");
	json_array_foreach(json_object_get(capsule, "parts"), i, one) {
		if (bench_number(one, "share") < 0.001)
			continue;
		fprintf(f, "| %s |", bench_word(one, NULL, "part"));
		put_cell(one, "seconds", 1e3, 1, f);
		put_cell(one, "share", 100, 1, f);
		put_cell(one, "ops_per_s", 1e-9, 1, f);
		put_cell(one, "compute_fraction", 100, 0, f);
		fputc('\n', f);
	}
}

static void put_all_parts(const json_t *capsules, FILE *f)
{
	json_t *keys = bench_differing(capsules), *one;
	size_t i;

	json_array_foreach((json_t *)capsules, i, one)
		if (json_object_get(one, "parts"))
			put_parts(one, keys, f);
	json_decref(keys);
}

/* ---- all ---- */

json_t *bench_group(const json_t *capsules)
{
	json_t *groups = json_object(), *one;
	size_t i;

	json_array_foreach((json_t *)capsules, i, one) {
		const char *work = bench_word(one, NULL, "workload");

		if (!json_object_get(groups, work))
			json_object_set_new(groups, work, json_array());
		json_array_append(json_object_get(groups, work), one);
	}
	return groups;
}

/* What the numbers of a group were measured on and with. */
static void put_caption(const char *work, const json_t *group, FILE *f)
{
	const json_t *one = json_array_get(group, 0);

	fprintf(f, "%s", work);
	if (*bench_word(one, "model", "directory") && !differ(group, "model", "directory"))
		fprintf(f, ", %s", bench_word(one, "model", "directory"));
	if (*bench_word(one, "cache", "state") && !differ(group, "cache", "state"))
		fprintf(f, ", %s", bench_word(one, "cache", "state"));
	if (!isnan(bench_number(one, "roofline.memory_bytes_per_s.median")))
		fprintf(f, "; memory %.1f GB/s",
		    bench_number(one, "roofline.memory_bytes_per_s.most") / 1e9);
	if (!isnan(bench_number(one, "roofline.drive_bytes_per_s.median")))
		fprintf(f, ", drive %.2f GB/s", bench_number(one, "roofline.drive_bytes_per_s.most")
		    / 1e9);
	if (!isnan(bench_number(one, "roofline.f32_ops_per_s.most")))
		fprintf(f, "; products of f32 %.0f, of bf16 %.0f",
		    bench_number(one, "roofline.f32_ops_per_s.most") / 1e9,
		    bench_number(one, "roofline.bf16_ops_per_s.most") / 1e9);
	if (!isnan(bench_number(one, "roofline.fma_ops_per_s.most")))
		fprintf(f, ", registers %.0f GFLOP/s",
		    bench_number(one, "roofline.fma_ops_per_s.most") / 1e9);
	fprintf(f, " (%s, %d cores, commit %s):\n\n", bench_word(one, "machine", "kernels"),
	    (int)bench_number(one, "machine.cores"),
	    bench_word(one, NULL, "commit"));
}

void bench_markdown(const json_t *records, FILE *f)
{
	json_t *capsules = plain_json(records), *groups = bench_group(capsules), *group;
	const char *work;
	bool more = false;

	json_object_foreach(groups, work, group) {
		if (more)
			fputc('\n', f);
		put_caption(work, group, f);
		put_table(group, f);
		put_all_parts(group, f);
		more = true;
	}
	json_decref(groups);
	json_decref(capsules);
}

/* The cells of a Markdown row; the line between head and rows has none. */
static void add_row(struct human_grid *g, char *line)
{
	bool first = g->n == 0;
	char *bar;

	if (strncmp(line, "|---", 4) == 0)
		return;
	for (char *cell = line + 1; (bar = strchr(cell, '|')) != NULL; cell = bar + 1) {
		size_t len;

		*bar = '\0';
		cell += strspn(cell, " ");
		for (len = strlen(cell); len > 0 && cell[len - 1] == ' ';)
			cell[--len] = '\0';
		human_cell(g, cell);
		g->columns += first;
	}
}

void bench_columns(const json_t *records, FILE *f)
{
	struct human_grid g = { .indent = 2 };
	char *text = NULL, *line, *next;
	size_t size;
	FILE *m = open_memstream(&text, &size);

	if (m == NULL)
		err_die(EX_OSERR, "out of memory");
	bench_markdown(records, m);
	fclose(m);
	for (line = text; (next = strchr(line, '\n')) != NULL; line = next + 1) {
		*next = '\0';
		if (*line == '|')
			add_row(&g, line);
		else {
			human_grid(&g, f);
			g.columns = 0;
			fprintf(f, "%s\n", line);
		}
	}
	human_grid(&g, f);
	free(text);
}

void bench_table(int n, char **files)
{
	struct err e = { 0 };
	struct jsonl *in = jsonl_open(n, files, bench.skip_bad, &e);
	int64_t found = 0;
	json_t *rec;

	if (in == NULL)
		err_exit(&e);
	bench.table = true;
	while ((rec = jsonl_next(in, &e)) != NULL) {
		if (strcmp(bench_word(rec, NULL, "type"), "bench") == 0 &&
		    json_is_object(json_object_get(rec, "metric"))) {
			bench_put(rec);
			found++;
			continue;
		}
		json_decref(rec);
		if (jsonl_bad(in, &e, "not a record of chr-bench") < 0)
			break;
	}
	if (e.status)
		err_exit(&e);
	jsonl_close(in);
	if (found == 0)
		err_die(EX_DATAERR, "no records of chr-bench");
}
