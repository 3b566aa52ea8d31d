#include "measure/bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "base/child.h"
#include "base/isa.h"
#include "base/human.h"
#include "base/json.h"
#include "format/prov.h"

struct bench_opt bench = { .budgets = "12.5%,25%,50%,75%", .blocks = "64K,256K,1M,4M",
    .memory = (int64_t)256 << 20, .prompt = 128,
	.new = 64, .chunk = 256, .reps = 5, .batch = 8, .seq = 256, .steps = 3 };

struct opt bench_opts[] = {
	{ .kind = OPT_GROUP, .help = "decode, prefill, load: a model" },
	{ 'p', "prompt", OPT_INT, &bench.prompt, 1, 1 << 20, "N",
	    "prompt tokens; longer prompts of files are cut" },
	{ 'n', "new", OPT_INT, &bench.new, 1, 1 << 20, "N", "tokens generated (decode)" },
	{ 's', "seed", OPT_COUNT, &bench.seed, 0, 9e18, "N",
	    "of random prompts, tokens and weights, when none are given" },
	{ 0, "chunk", OPT_INT, &bench.chunk, 1, 1 << 16, "N", "prompt tokens evaluated at a time" },
	{ 0, "vs", OPT_STR, &bench.vs, 0, 0, "FLAGS",
	    "a second configuration: these options besides; the two take turns, AB BA" },
	{ 0, "cgroup", OPT_BYTES, &bench.cgroup, 0, 0, "BYTES",
	    "run within a control group of this much memory, page cache included" },
	{ 0, "memory", OPT_BYTES, &bench.memory, 1 << 20, 1e13, "BYTES",
	    "memory to measure the speed of memory on" },
	{ 0, "quality", OPT_STR, &bench.quality, 0, 0, "FILE",
	    "what chr-diff says of this configuration, to go with its speed" },
	{ 0, "on-miss", OPT_CHOICE, &infer.on_miss, 0, 0, "wait|shared",
	    "an expert that is not there: wait, or let the shared experts stand in (lossy)" },
	{ 0, "route-bias", OPT_FLOAT, &infer.route_bias, 0, 50, "X",
	    "prefer experts in memory: add X to their routing logits (lossy); 0: exact" },
	{ .kind = OPT_GROUP, .help = "train: steps of a model of -m, or of random weights" },
	{ 'c', "config", OPT_STR, &bench.config, 0, 0, "FILE",
	    "config.json of a model of random weights" },
	{ 0, "set", OPT_LIST, &bench.sets, 0, 0, "KEY=VALUE",
	    "override a value of config.json; may be repeated" },
	{ 'b', "batch", OPT_INT, &bench.batch, 1, 65536, "N", "sequences of a step" },
	{ 0, "seq", OPT_INT, &bench.seq, 2, 1 << 20, "N", "tokens of a sequence" },
	{ 0, "steps", OPT_INT, &bench.steps, 1, 1 << 20, "N",
	    "steps of a repetition, after one that is not counted" },
	{ 0, "compute", OPT_CHOICE, &bench.compute, 0, 0, "f32|bf16",
	    "values that matrix products multiply" },
	{ 0, "recompute", OPT_FLAG, &bench.recompute, 0, 0, NULL,
	    "compute activations again instead of keeping them" },
	{ 0, "profile", OPT_FLAG, &bench.profile, 0, 0, NULL,
	    "time, speed and share of the kernels' speed, by part of a step" },
	{ .kind = OPT_GROUP, .help = "replay: activation records through every policy" },
	{ 0, "budget", OPT_STR, &bench.budgets, 0, 0, "LIST",
	    "experts in memory: shares of all, or numbers" },
	{ 0, "drive", OPT_STR, &bench.drive, 0, 0, "MS,BYTES",
	    "of the machine to plan for: milliseconds of a read, bytes per second" },
	{ 0, "ram-bw", OPT_BYTES, &bench.ram_bw, 0, 0, "BYTES",
	    "bytes per second that its memory is read with" },
	{ 0, "expert-bytes", OPT_BYTES, &bench.expert_bytes, 0, 0, "N",
	    "size of an expert; 0: as the records say" },
	{ 0, "dense-bytes", OPT_BYTES, &bench.dense_bytes, 0, 0, "N",
	    "weights besides experts that every token reads" },
	{ 0, "skip-bad", OPT_FLAG, &bench.skip_bad, 0, 0, NULL,
	    "count and report bad records instead of stopping" },
	{ .kind = OPT_GROUP, .help = "drive: reads of a file, past the page cache" },
	{ 0, "block", OPT_STR, &bench.blocks, 0, 0, "LIST", "sizes of reads" },
	{ .kind = OPT_GROUP, .help = "all" },
	{ 'r', "repetitions", OPT_INT, &bench.reps, 1, 1000, "N", "of each measurement" },
	{ 0, "table", OPT_FLAG, &bench.table, 0, 0, NULL, "Markdown instead of records" },
	{ 0, "plot", OPT_OUT, &bench.plot, 0, 0, "FILE", "draw them: an SVG picture" },
	{ 0, "compare", OPT_STR, &bench.compare, 0, 0, "FILE",
	    "exit status 1 when something is slower than in FILE, beyond the spread" },
	{ .kind = OPT_TABLE, .value = infer_opts },
	{ .kind = OPT_TABLE, .value = human_opts },
	{ 0 }
};

static struct {
	json_t *command, *machine, *capsules;
	const char *commit;
	const struct opt_prog *prog;
} s;

/* ---- what stands in every capsule ---- */

/* The value of the first line of /proc/cpuinfo that begins so; "" when there is none. */
static void cpu_line(const char *key, char *out, size_t size)
{
	FILE *f = fopen("/proc/cpuinfo", "re");
	char line[8192];

	*out = '\0';
	while (f && !*out && fgets(line, sizeof line, f)) {
		char *colon = strchr(line, ':');

		if (colon && strncmp(line, key, strlen(key)) == 0)
			snprintf(out, size, "%.*s", (int)strcspn(colon + 2, "\n"), colon[1]
			    ? colon + 2 : "");
	}
	if (f)
		fclose(f);
}

/* What matters to our kernels. */
static json_t *cpu_flags(void)
{
	static const char *const known[] = { "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16",
	    "avx_vnni", "amx_int8", "amx_bf16",
		"asimd", "asimddp", "i8mm", "sve", NULL };
	json_t *list = json_array();
	char flags[8192], *save;

	cpu_line("flags", flags, sizeof flags);
	if (!*flags)
		cpu_line("Features", flags, sizeof flags);
	for (char *w = strtok_r(flags, " ", &save); w; w = strtok_r(NULL, " ", &save))
		for (int i = 0; known[i]; i++)
			if (strcmp(w, known[i]) == 0)
				json_array_append_new(list, json_string(w));
	return list;
}

static json_t *machine(void)
{
	json_t *m = json_object();
	struct utsname u = { 0 };
	char model[256];

	uname(&u);
	cpu_line("model name", model, sizeof model);
	json_set_str(m, "cpu", *model ? model : u.machine);
	json_object_set_new(m, "cpu_flags", cpu_flags());
	json_set_str(m, "kernels", isa_name());
	json_set_int(m, "cores", sysconf(_SC_NPROCESSORS_ONLN));
	json_set_int(m, "memory", sysconf(_SC_PHYS_PAGES) * (int64_t)sysconf(_SC_PAGESIZE));
	json_set_str(m, "system", u.sysname);
	json_set_str(m, "release", u.release);
	return m;
}

void bench_begin(int argc, char **argv, const struct opt_prog *prog, const char *commit)
{

	s.command = prov_command(argc, argv, bench_opts, 0);
	s.machine = machine();
	s.capsules = json_array();
	s.commit = commit;
	s.prog = prog;
}

json_t *bench_capsule(const char *workload)
{
	json_t *r = json_object();
	time_t now = time(NULL);
	struct tm tm;
	char date[32];

	gmtime_r(&now, &tm);
	strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", &tm);
	json_set_str(r, "type", "bench");
	json_set_int(r, "version", 1);
	json_set_str(r, "workload", workload);
	json_set_str(r, "program", CHR_VERSION);
	json_set_str(r, "commit", s.commit);
	json_object_set(r, "command", s.command);
	json_set_str(r, "date", date);
	json_object_set(r, "machine", s.machine);
	return r;
}

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

json_t *bench_spread(const json_t *samples)
{
	size_t all = json_array_size(samples), n = 0;
	double *v = calloc(all + 1, sizeof *v);
	json_t *r = json_object();

	if (v == NULL)
		err_die(EX_OSERR, "out of memory");
	for (size_t i = 0; i < all; i++)
		if (json_is_number(json_array_get(samples, i)))
			v[n++] = json_number_value(json_array_get(samples, i));
	qsort(v, n, sizeof *v, by_size);
	if (n > 0) {
		json_set_num(r, "median", (v[n / 2] + v[(n - 1) / 2]) / 2);
		json_set_num(r, "least", v[0]);
		json_set_num(r, "most", v[n - 1]);
	} else {
		json_decref(r);
		r = json_null();
	}
	free(v);
	return r;
}

void bench_metric(json_t *capsule, const char *name, bool more, json_t *samples)
{
	json_t *m = json_object(), *spread = bench_spread(samples);

	json_set_str(m, "name", name);
	json_set_str(m, "better", more ? "more" : "less");
	json_object_update(m, spread);
	json_object_set_new(m, "samples", samples);
	json_object_set_new(capsule, "metric", m);
	json_decref(spread);
}

/* ---- samples ---- */

json_t *bench_child(json_t *(*fn)(void *), void *arg)
{
	struct err e = { 0 };
	json_t *r = child_run(fn, arg, NULL, &e);

	if (r)
		return r;
	if (*e.msg)
		err_exit(&e);
	exit(e.status);
}

static json_t *number(double v)
{
	return isnan(v) ? json_null() : json_real(v);
}

json_t *bench_column(const json_t *samples, const char *phase, const char *key)
{
	json_t *list = json_array(), *one;
	size_t i;

	json_array_foreach((json_t *)samples, i, one)
		json_array_append_new(list, number(bench_number(phase ? json_object_get(one, phase)
		    : one, key)));
	return list;
}

static double of_spread(const json_t *list, const char *what)
{
	json_t *spread = bench_spread(list);
	double v = json_is_object(spread) ? json_number_value(json_object_get(spread, what)) : NAN;

	json_decref(spread);
	return v;
}

double bench_median(const json_t *list) { return of_spread(list, "median"); }
double bench_most(const json_t *list) { return of_spread(list, "most"); }

double bench_median_of(const json_t *samples, const char *phase, const char *key)
{
	json_t *list = bench_column(samples, phase, key);
	double v = bench_median(list);

	json_decref(list);
	return v;
}

void bench_put_keys(json_t *r, json_t *all, const json_t *samples, const char *phase,
    const char *const keys[])
{
	for (int i = 0; keys[i]; i++) {
		json_t *list = bench_column(samples, phase, keys[i]);
		char name[32];

		snprintf(name, sizeof name, "%s", keys[i]);
		for (char *dot = strchr(name, '.'); dot; dot = strchr(dot, '.'))
			*dot = '_';
		json_object_set_new(all, name, bench_spread(list));
		json_set_num(r, name, bench_median(list));
		json_decref(list);
	}
}

json_t *bench_versus(const json_t *first, const json_t *second, const char *phase, const char *key,
    json_t *r)
{
	json_t *x = bench_column(first, phase, key), *y = bench_column(second, phase, key),
	    *ratio = json_array();

	for (size_t i = 0; i < json_array_size(x); i++)
		json_array_append_new(ratio, json_real(json_number_value(json_array_get(y, i)) /
		    json_number_value(json_array_get(x, i))));
	json_set_str(r, "of", key);
	json_object_set_new(r, "ratio", bench_spread(ratio));
	json_object_set_new(r, "ratios", ratio);
	json_decref(x);
	json_decref(y);
	return r;
}

/* ---- configurations ---- */

static json_t *choice(const char *names, int i)
{
	for (; i > 0 && strchr(names, '|'); i--)
		names = strchr(names, '|') + 1;
	return json_stringn(names, strcspn(names, "|"));
}

static json_t *value(const struct opt *o)
{
	const char *text;

	switch (o->kind & OPT_KINDS) {
	case OPT_FLAG: return json_boolean(*(bool *)o->value);
	case OPT_INT: return json_integer(*(int *)o->value);
	case OPT_COUNT: case OPT_BYTES: return json_integer(*(int64_t *)o->value);
	case OPT_FLOAT: return json_real(*(double *)o->value);
	case OPT_CHOICE: return choice(o->arg, *(int *)o->value);
	case OPT_STR: case OPT_OUT:
		text = *(const char **)o->value;
		return text ? json_string(text) : json_null();
	default: return NULL;
	}
}

void bench_config(json_t *o, const struct opt *opts)
{
	/* Where things are, what other workloads are told, what is done with the results, and
	 * what stands elsewhere in the record. */
	static const char *const omit[] = { "model", "tokenizer", "dry-run", "cold", "vs", "memory",
	    "quality", "budget", "drive", "ram-bw",
		"expert-bytes", "dense-bytes", "skip-bad", "block", "config", "set", "batch", "seq",
		    "steps", "compute", "recompute", "profile",
		"repetitions", "table", "plot", "compare", "human", "json", NULL };

	for (; opts->kind != OPT_END; opts++) {
		json_t *v = opts->kind == OPT_TABLE ? NULL : value(opts);
		bool left_out = false;

		if (opts->kind == OPT_TABLE)
			bench_config(o, opts->value);
		for (int i = 0; omit[i] && v; i++)
			left_out = left_out || strcmp(omit[i], opts->name) == 0;
		if (v && !left_out)
			json_object_set(o, opts->name, v);
		json_decref(v);
	}
}

void bench_second(const char *flags)
{
	bench.vs = NULL;
	opt_parse_text("vs", flags, bench_opts, s.prog);
	if (bench.vs)
		opt_usage("--vs within --vs");
}

/* ---- results ---- */

void bench_put(json_t *capsule)
{
	struct err e = { 0 };

	if (!bench.table && !human() && json_put(stdout, capsule, &e) < 0)
		err_exit(&e);
	json_array_append_new(s.capsules, capsule);
}

int bench_end(void)
{
	struct err e = { 0 };
	int slower = 0;

	if (bench.table)
		bench_markdown(s.capsules, stdout);
	else if (human())
		bench_columns(s.capsules, stdout);
	if (bench.plot && bench_draw(s.capsules, bench.plot, &e) < 0)
		err_exit(&e);
	human_table("compare", "workload metric ratio verdict same_machine old_commit new_commit",
	    false);
	if (bench.compare && bench_compare(s.capsules, bench.compare, &slower, &e) < 0)
		err_exit(&e);
	human_end();
	json_decref(s.capsules);
	json_decref(s.command);
	json_decref(s.machine);
	return slower > 0 ? EX_NO : EX_OK;
}
