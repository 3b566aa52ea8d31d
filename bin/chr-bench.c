/* chr-bench: measures what a machine and a model could do together, as records. */
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "actlog.h"
#include "drive.h"
#include "err.h"
#include "json.h"
#include "opt.h"
#include "prov.h"
#include "replay.h"

#define MAX_LIST 32

static struct {
	const char *budgets, *drive, *blocks;
	int64_t ram_bw, expert_bytes, dense_bytes;
	int reps;
	bool skip_bad;
} o = { .budgets = "12.5%,25%,50%,75%", .blocks = "64K,256K,1M,4M", .reps = 5 };

static const struct opt opts[] = {
	{ .kind = OPT_GROUP, .help = "replay: activation records through every policy" },
	{ 0, "budget", OPT_STR, &o.budgets, 0, 0, "LIST", "experts in memory: shares of all, or numbers" },
	{ 0, "drive", OPT_STR, &o.drive, 0, 0, "MS,BYTES", "of the machine to plan for: milliseconds of a read, bytes per second" },
	{ 0, "ram-bw", OPT_BYTES, &o.ram_bw, 0, 0, "BYTES", "bytes per second that its memory is read with" },
	{ 0, "expert-bytes", OPT_BYTES, &o.expert_bytes, 0, 0, "N", "size of an expert; 0: as the records say" },
	{ 0, "dense-bytes", OPT_BYTES, &o.dense_bytes, 0, 0, "N", "weights besides experts that every token reads" },
	{ 0, "skip-bad", OPT_FLAG, &o.skip_bad, 0, 0, NULL, "count and report bad records instead of stopping" },
	{ .kind = OPT_GROUP, .help = "drive: reads of a file, past the page cache" },
	{ 0, "block", OPT_STR, &o.blocks, 0, 0, "LIST", "sizes of reads" },
	{ 'r', "repetitions", OPT_INT, &o.reps, 1, 1000, "N", "of each measurement" },
	{ .kind = OPT_END }
};

static const struct opt_prog prog = { "chr-bench", "[options] replay [FILE...]\n       chr-bench [options] drive FILE",
	"plan for a machine, and measure one",
	"replay reads activation records of chr-actlog; drive measures random reads of a large file, such as a .ctsr.", false };

static json_t *capsule(const char *workload, int argc, char **argv)
{
	static const char *const omit[] = { NULL };
	json_t *r = json_pack("{s:s, s:i, s:s, s:s}", "type", "bench", "version", 1, "workload", workload, "program", CHR_VERSION);

	json_object_set_new(r, "command", prov_command(argc, argv, opts, omit));
	return r;
}

static void put(json_t *r)
{
	struct err e = { 0 };

	if (json_put(stdout, r, &e) < 0)
		err_exit(&e);
	json_decref(r);
}

/* ---- replay ---- */

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
		opt_usage("--budget: '%s' is neither a share such as 25%% nor a number of experts", text);
	x = share ? floor(x / 100 * all) : x;
	return x > all ? all : (int)x;
}

struct machine {			/* to plan for; bandwidth 0: not asked */
	double latency, bandwidth, ram;
};

static struct machine machine(void)
{
	struct machine m = { .ram = (double)o.ram_bw };
	const char *why = NULL, *comma = o.drive ? strchr(o.drive, ',') : NULL;
	char ms[64];
	int64_t bandwidth;

	if (!o.drive && !o.ram_bw)
		return m;
	if (!comma || !o.ram_bw)
		opt_usage("to plan for a machine give --drive MS,BYTES and --ram-bw");
	snprintf(ms, sizeof ms, "%.*s", (int)(comma - o.drive), o.drive);
	if (opt_float(ms, &m.latency, &why) < 0 || opt_bytes(comma + 1, &bandwidth, &why) < 0 || bandwidth <= 0 || m.latency < 0)
		opt_usage("--drive '%s': %s", o.drive, why ? why : "not milliseconds and bytes per second");
	m.latency /= 1000;
	m.bandwidth = (double)bandwidth;
	return m;
}

/* Seconds of a token: in every layer the experts that are there are computed while the others are read, then the last that came;
 * dense weights are read from memory before each layer, while the drive has nothing to do. */
static double token_time(const struct replay *r, const struct replay_result *x, const struct machine *m, double bytes)
{
	double sets = (double)r->nsets, tokens = (double)r->tokens, per_set = (double)x->demands / sets;
	double misses = (double)(x->demands - x->hits) / sets, waits = (double)x->waits / sets;
	double io = waits * m->latency + misses * bytes / m->bandwidth, one = bytes / m->ram, hit = (per_set - misses) * one;

	return sets / tokens * (fmax(io, hit) + waits * one) + (double)o.dense_bytes / m->ram;
}

static void put_replay(const struct replay *r, const char *policy, int slots, const struct replay_result *x,
    const struct machine *m, double bytes, int argc, char **argv)
{
	json_t *rec = capsule("replay", argc, argv);
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
		json_set_num(rec, "tok_per_s", 1 / token_time(r, x, m, bytes));
	put(rec);
}

static void load_logs(struct replay *r, double *bytes, int n, char **names)
{
	struct jsonl *in;
	struct actlog a;
	struct err e = { 0 };
	int rc;

	if ((in = jsonl_open(n, names, o.skip_bad, &e)) == NULL || actlog_open(&a, in, &e) < 0)
		err_exit(&e);
	replay_init(r, &a.model);
	while ((rc = actlog_next(&a, &e)) == 1)
		if (replay_add(r, &a.act, &e) < 0)
			err_exit(&e);
	if (rc < 0)
		err_exit(&e);
	*bytes = (double)(o.expert_bytes ? o.expert_bytes : a.model.expert_bytes);
	actlog_close(&a);
	jsonl_close(in);
	if (r->n == 0)
		err_die(EX_DATAERR, "no activation records: nothing to replay");
}

static void replay(int argc, char **argv, int n, char **names)
{
	static const char *const policy[] = { "lru", "lfru", "cycle", "auto", "belady" };
	char *list = strdup(o.budgets), *save, *word;
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
			err_die(EX_DATAERR, "--budget %s: %d experts, a layer needs %d at once", word, slots, r.top_k);
		for (int p = 0; p < 5; p++) {
			if ((p < 4 ? replay_run(&r, (enum cache_policy)p, slots, &x, &e) : replay_belady(&r, slots, &x, &e)) < 0)
				err_exit(&e);
			put_replay(&r, policy[p], slots, &x, &m, bytes, argc, argv);
		}
	}
	replay_free(&r);
	free(list);
}

/* ---- drive ---- */

static void drive(int argc, char **argv, const char *path)
{
	char *list = strdup(o.blocks), *save, *word;
	struct err e = { 0 };

	if (list == NULL)
		err_die(EX_OSERR, "out of memory");
	for (word = strtok_r(list, ",", &save); word; word = strtok_r(NULL, ",", &save))
		for (int depth = 1; depth <= 4; depth *= 4) {
			struct drive_result d;
			json_t *rec = capsule("drive", argc, argv), *raw = json_array();
			const char *why;
			int64_t block;

			if (opt_bytes(word, &block, &why) < 0 || block <= 0)
				opt_usage("--block '%s': %s", word, why ? why : "must be more than 0");
			if (drive_measure(path, block, depth, o.reps, &d, &e) < 0)
				err_exit(&e);
			for (int i = 0; i < o.reps; i++)
				json_array_append_new(raw, json_real(d.sample[i]));
			json_set_int(rec, "block", block);
			json_set_int(rec, "depth", depth);
			json_object_set_new(rec, "direct", json_boolean(d.direct));
			json_set_num(rec, "bytes_per_s", d.median);
			json_set_num(rec, "least", d.least);
			json_set_num(rec, "most", d.most);
			json_object_set_new(rec, "samples", raw);
			put(rec);
			free(d.sample);
		}
	free(list);
}

int main(int argc, char **argv)
{
	int first;

	err_init(argv[0]);
	first = opt_parse(argc, argv, opts, &prog);
	if (first == argc)
		opt_usage("no workload: replay or drive");
	if (strcmp(argv[first], "replay") == 0)
		replay(argc, argv, argc - first - 1, argv + first + 1);
	else if (strcmp(argv[first], "drive") == 0 && argc - first == 2)
		drive(argc, argv, argv[first + 1]);
	else
		opt_usage(strcmp(argv[first], "drive") == 0 ? "drive takes one file" : "no workload \"%s\": replay or drive", argv[first]);
	err_close_stdout();
	return EX_OK;
}
