/* Workloads without a model: activation records through every policy, and what a drive gives. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "experts/actlog.h"
#include "measure/bench.h"
#include "measure/drive_bench.h"
#include "base/json.h"
#include "experts/replay.h"

/* "25%" of all, or a number of experts. */
static int budget(const char *text, int all)
{
	size_t n = strlen(text);
	const char *why;
	double x;
	char num[32];
	bool share = n > 1 && n < sizeof num && text[n - 1] == '%';

	snprintf(num, sizeof num, "%.*s", (int)(share ? n - 1 : n), text);
	if (opt_float(num, &x, &why) < 0 || !(x > 0) || (!share && x != floor(x)))
		opt_usage("--budget: '%s' is neither a share such as 25%% nor a number of experts",
		    text);
	x = share ? floor(x / 100 * all) : x;
	return x > all ? all : (int)x;
}

struct machine {			/* to plan for; bandwidth 0: not asked */
	double latency, bandwidth, ram;
};

static struct machine machine(void)
{
	struct machine m = { .ram = (double)bench.ram_bw };
	const char *why = NULL, *comma = bench.drive ? strchr(bench.drive, ',') : NULL;
	char ms[64];
	int64_t bandwidth;

	if (!bench.drive && !bench.ram_bw)
		return m;
	if (!comma || !bench.ram_bw)
		opt_usage("to plan for a machine give --drive MS,BYTES and --ram-bw");
	snprintf(ms, sizeof ms, "%.*s", (int)(comma - bench.drive), bench.drive);
	if (opt_float(ms, &m.latency, &why) < 0 || opt_bytes(comma + 1, &bandwidth, &why) < 0 ||
	    bandwidth <= 0 || m.latency < 0)
		opt_usage("--drive '%s': %s", bench.drive, why ? why
		    : "not milliseconds and bytes per second");
	m.latency /= 1000;
	m.bandwidth = (double)bandwidth;
	return m;
}

/* Seconds of a token: in every layer the experts that are there are computed while the others
 * are read, then the last that came; dense weights are read from memory before each layer, while
 * the drive has nothing to do. */
static double token_time(const struct replay *r, const struct replay_result *x,
    const struct machine *m, double bytes)
{
	double sets = (double)r->nsets, tokens = (double)r->tokens, per_set = (double)x->demands /
	    sets;
	double misses = (double)(x->demands - x->hits) / sets, waits = (double)x->waits / sets;
	double io = waits * m->latency + misses * bytes / m->bandwidth, one = bytes / m->ram,
	    hit = (per_set - misses) * one;

	return sets / tokens * (fmax(io, hit) + waits * one) + (double)bench.dense_bytes / m->ram;
}

static void put_replay(const struct replay *r, const char *policy, int slots,
    const struct replay_result *x,
    const struct machine *m, double bytes)
{
	json_t *rec = bench_capsule("replay");
	double misses = (double)(x->demands - x->hits) / (double)r->tokens;

	json_set_str(rec, "policy", policy);
	json_set_int(rec, "slots", slots);
	json_set_int(rec, "experts", r->layers * r->experts);
	json_set_int(rec, "tokens", r->tokens);
	json_set_int(rec, "demands", x->demands);
	json_set_int(rec, "hits", x->hits);
	json_set_num(rec, "hit_rate", (double)x->hits / (double)x->demands);
	json_set_num(rec, "read_bytes_per_token", misses * bytes);
	if (m->bandwidth > 0)
		json_set_num(rec, "tok_per_s_planned", 1 / token_time(r, x, m, bytes));
	json_object_set_new(rec, "config", json_pack("{s:s, s:i, s:I}", "policy", policy, "slots",
	    slots, "tokens", (json_int_t)r->tokens));
	bench_metric(rec, "hit_rate", true, json_pack("[f]", (double)x->hits / (double)x->demands));
	json_object_set_new(json_object_get(rec, "metric"), "exact", json_true());
	bench_put(rec);
}

static void load_logs(struct replay *r, double *bytes, int n, char **names)
{
	struct jsonl *in;
	struct actlog a;
	struct err e = { 0 };
	int rc;

	if ((in = jsonl_open(n, names, bench.skip_bad, &e)) == NULL || actlog_open(&a, in, &e) < 0)
		err_exit(&e);
	replay_init(r, &a.model);
	while ((rc = actlog_next(&a, &e)) == 1)
		if (replay_add(r, &a.act, &e) < 0)
			err_exit(&e);
	if (rc < 0)
		err_exit(&e);
	*bytes = (double)(bench.expert_bytes ? bench.expert_bytes : a.model.expert_bytes);
	actlog_close(&a);
	jsonl_close(in);
	if (r->n == 0)
		err_die(EX_DATAERR, "no activation records: nothing to replay");
}

void bench_replay(int n, char **names)
{
	static const char *const policy[] = { "lru", "lfru", "cycle", "auto", "belady" };
	char *list = strdup(bench.budgets), *save, *word;
	struct machine m = machine();
	struct replay_result x;
	struct replay r;
	struct err e = { 0 };
	double bytes;

	if (list == NULL)
		err_die(EX_OSERR, "out of memory");
	load_logs(&r, &bytes, n, names);
	for (word = strtok_r(list, ",", &save); word; word = strtok_r(NULL, ",", &save)) {
		int slots = budget(word, r.layers * r.experts);

		if (slots < r.top_k)
			err_die(EX_DATAERR, "--budget %s: %d experts, a layer needs %d at once",
			    word, slots, r.top_k);
		for (int p = 0; p < 5; p++) {
			if ((p < 4 ? replay_run(&r, (enum cache_policy)p, slots, &x, &e)
			    : replay_belady(&r, slots, &x, &e)) < 0)
				err_exit(&e);
			put_replay(&r, policy[p], slots, &x, &m, bytes);
		}
	}
	replay_free(&r);
	free(list);
}

/* ---- drive ---- */

void bench_drive(const char *path)
{
	char *list = strdup(bench.blocks), *save, *word;
	struct err e = { 0 };

	if (list == NULL)
		err_die(EX_OSERR, "out of memory");
	for (word = strtok_r(list, ",", &save); word; word = strtok_r(NULL, ",", &save))
		for (int depth = 1; depth <= 4; depth *= 4) {
			struct drive_bench_result d;
			json_t *rec = bench_capsule("drive"), *raw = json_array();
			const char *why;
			int64_t block;

			if (opt_bytes(word, &block, &why) < 0 || block <= 0)
				opt_usage("--block '%s': %s", word, why ? why
				    : "must be more than 0");
			if (drive_bench_measure(path, block, depth, bench.reps, &d, &e) < 0)
				err_exit(&e);
			for (int i = 0; i < bench.reps; i++)
				json_array_append_new(raw, json_real(d.sample[i]));
			json_set_int(rec, "block", block);
			json_set_int(rec, "depth", depth);
			json_object_set_new(rec, "direct", json_boolean(d.direct));
			json_set_num(rec, "bytes_per_s", d.median);
			json_object_set_new(rec, "config", json_pack("{s:I, s:i}", "block",
			    (json_int_t)block, "depth", depth));
			bench_metric(rec, "bytes_per_s", true, raw);
			bench_put(rec);
			free(d.sample);
		}
	free(list);
}
