/*
 * Workloads of a model: runs in children, two configurations in turns, and between them the
 * ceilings of the machine: what its drive gives at the size of an expert, what memory is read
 * with, what its kernels compute. One capsule for each configuration.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "measure/bench.h"
#include "base/child.h"
#include "measure/drive_bench.h"
#include "base/file.h"
#include "base/json.h"
#include "measure/kernel_rate.h"
#include "format/gguf_model.h"
#include "format/manifest.h"
#include "format/modeldir.h"
#include "base/pool.h"

#define MIB ((int64_t)1 << 20)
#define FFN_ROWS 128		/* rows of an expert when its speed of computing is measured */
#define FFN_BYTES (4 << 20)	/* of experts then: with so many rows arithmetic is what it takes */

struct side {			/* a configuration */
	struct infer infer;
	struct bench_opt bench;
	json_t *samples, *model;
	int64_t peak;		/* of its control group; -1: none */
	char *file;		/* the largest one that it reads while it runs */
	int64_t block;		/* and in what pieces */
	enum dtype dt;		/* of its experts */
	int D, F;
};

struct ceilings {		/* samples, for a side */
	const struct side *side;
	bool drive;		/* to be measured, too */
};

static void use(const struct side *x)
{
	infer = x->infer;
	bench = x->bench;
}

/* ---- what a model is ---- */

static void read_manifest(struct side *x, char fingerprint[33], struct err *e)
{
	struct manifest m;

	if (manifest_load_dir(&m, x->infer.model, e) < 0)
		err_exit(e);
	x->dt = m.dt[0];
	x->block = manifest_align(m.gate_bytes + m.up_bytes + m.down_bytes);
	if (m.fingerprint)
		snprintf(fingerprint, 33, "%s", m.fingerprint);
	manifest_free(&m);
}

static void describe(struct side *x)
{
	static const char *const plain[] = { ".safetensors", NULL };
	static const char *const packed[] = { ".ctsr", NULL };
	struct modeldir md;
	struct err e = { 0 };
	char fingerprint[33] = "";
	const char *id;

	if (!x->infer.model)
		opt_usage("no model: give -m DIR");
	if (modeldir_open(&md, x->infer.model, 0, NULL, &e) < 0)
		err_exit(&e);
	x->D = md.cfg.hidden_size;
	x->F = md.cfg.moe_intermediate_size;
	x->block = MIB;
	x->file = md.gguf ? strdup(gguf_name(md.gguf->g[0])) : file_largest(x->infer.model,
	    md.packed ? packed : plain, 1);
	if (md.packed)
		read_manifest(x, fingerprint, &e);
	if (!*fingerprint) {
		if ((id = modeldir_fingerprint(&md, &e)) == NULL)
			err_exit(&e);
		snprintf(fingerprint, sizeof fingerprint, "%s", id);
	}
	x->model = json_pack("{s:s, s:s, s:b, s:s, s:I}", "directory", x->infer.model,
	    "fingerprint", fingerprint, "packed", md.packed,
	    "experts", dtype_name(x->dt), "parameters", (json_int_t)md.par.count);
	modeldir_close(&md);
}

static void make_side(struct side *x)
{
	*x = (struct side){ .infer = infer, .bench = bench, .samples = json_array(), .peak = -1,
	    .dt = DT_F32 };
	describe(x);
}

/* ---- ceilings ---- */

static double compute_rate(const struct side *x, struct err *e)
{
	size_t one = dtype_blocks(x->dt) ? kernel_rate_expert_bytes(x->dt, x->D, x->F) : 0;
	int n = one ? (int)(FFN_BYTES / one) + 1 : 0;
	struct kernel_rate_gemm g;
	struct kernel_rate_ffn f;
	double rate;
	void *w;

	if (!one) {
		if (kernel_rate_gemm_open(&g, GEMM_NT, 1024, 1024, 1024, e) < 0)
			err_exit(e);
		rate = fmax(kernel_rate_gemm_rate(&g, &backend_cpu, false),
		    kernel_rate_gemm_rate(&g, &backend_cpu, false));
		kernel_rate_gemm_close(&g);
		return rate;
	}
	if ((w = kernel_rate_weights(one * (size_t)n)) == NULL)
		err_die(EX_OSERR, "out of memory to measure kernels on");
	if (kernel_rate_ffn_open(&f, x->dt, x->D, x->F, FFN_ROWS, n, w, e) < 0)
		err_exit(e);
	kernel_rate_ffn_seconds(&f);
	rate = kernel_rate_ffn_ops(&f) / fmin(kernel_rate_ffn_seconds(&f),
	    kernel_rate_ffn_seconds(&f));
	kernel_rate_ffn_close(&f);
	free(w);
	return rate;
}

static json_t *measure_ceilings(void *arg)
{
	const struct ceilings *c = arg;
	size_t bytes = (size_t)c->side->bench.memory;
	json_t *r = json_object();
	struct drive_bench_result d;
	struct err e = { 0 };
	double best = 0;
	void *w;

	if (c->drive) {
		if (drive_bench_measure(c->side->file, c->side->block, c->side->infer.readers, 2,
		    &d, &e) < 0)
			err_exit(&e);
		json_set_num(r, "drive", d.most);
		free(d.sample);
	}
	pool_init(c->side->infer.threads);
	if ((w = kernel_rate_weights(bytes)) == NULL)
		err_die(EX_OSERR, "out of memory to measure its speed on: give --memory");
	for (int i = 0; i < 3; i++)
		best = fmax(best, kernel_rate_read_rate(w, bytes));
	free(w);
	json_set_num(r, "memory", best);
	json_set_num(r, "compute", compute_rate(c->side, &e));
	pool_quit();
	return r;
}

/* ---- runs ---- */

static void run(struct side *x, struct bench_run *r)
{
	struct cgroup group = { 0 };
	struct err e = { 0 };
	json_t *sample;

	use(x);
	if (bench.cgroup && cgroup_make(&group, bench.cgroup, &e) < 0)
		err_exit(&e);
	sample = child_run(bench_sample, r, group.dir ? &group : NULL, &e);
	if (group.dir) {
		int64_t peak = cgroup_peak(&group);

		x->peak = peak > x->peak ? peak : x->peak;
		cgroup_remove(&group);
	}
	if (sample == NULL && *e.msg)
		err_exit(&e);
	if (sample == NULL)
		exit(e.status);
	json_array_append_new(x->samples, sample);
}

/* What the first sample of any side says of its engine. */
static int64_t engine_int(const struct side *x, const char *key)
{
	return json_integer_value(json_object_get(json_array_get(x->samples, 0), key));
}

static bool reads_drive(const struct side *x, const char *workload)
{
	return x->file && (strcmp(workload, "load") == 0 || engine_int(x, "slots") < engine_int(x,
	    "experts"));
}

/* ---- capsules ---- */

static void put_summary(json_t *r, const struct side *x, const char *phase)
{
	static const char *const of_phase[] = { "tok_per_s", "hit_rate", "stall_share",
	    "read_bytes_per_token", "disk_bytes_per_token",
		"wasted_share", "replaced_mass", "recall.gate", "recall.lookahead", "recall.whole",
		    NULL };
	static const char *const of_run[] = { "ttft_s", "open_s", "majflt", "peak_rss", NULL };
	json_t *all = json_object();

	bench_put_keys(r, all, x->samples, phase, of_phase);
	bench_put_keys(r, all, x->samples, NULL, of_run);
	json_object_set_new(r, "summary", all);
}

/* What --sim-ssd pretends of the drive, at most. */
static double simulated(const struct side *x)
{
	const char *comma = x->infer.sim_ssd ? strchr(x->infer.sim_ssd, ',') : NULL, *why;
	int64_t bandwidth = 0;

	return comma && opt_bytes(comma + 1, &bandwidth, &why) == 0 && bandwidth > 0
	    ? (double)bandwidth : INFINITY;
}

static json_t *roofline(const struct side *x, const char *workload, const char *phase,
    const json_t *ceilings)
{
	json_t *r = json_object(), *drive = bench_column(ceilings, NULL, "drive"),
	    *memory = bench_column(ceilings, NULL, "memory"),
	       *compute = bench_column(ceilings, NULL, "compute");
	double token = (double)engine_int(x, "token_bytes"), ops = 2 * (double)engine_int(x,
	    "token_products");
	double speed = bench_median_of(x->samples, phase, "tok_per_s"),
	    read = bench_median_of(x->samples, phase, "read_bytes_per_token");
	double disk = fmin(bench_most(drive), simulated(x)), bus = bench_most(memory),
	    alu = bench_most(compute);
	bool decode = strcmp(workload, "decode") == 0, load = strcmp(workload, "load") == 0,
	    streams = reads_drive(x, workload);

	json_object_set_new(r, "memory_bytes_per_s", bench_spread(memory));
	json_object_set_new(r, "drive_bytes_per_s", bench_spread(drive));
	json_set_int(r, "drive_block", x->block);
	json_set_int(r, "drive_depth", x->infer.readers);
	json_object_set_new(r, "ops_per_s", bench_spread(compute));
	json_set_num(r, "weight_bytes_per_token", token);
	json_set_num(r, "ops_per_token", ops);
	if (decode)
		json_set_num(r, "memory_fraction", token * speed / bus);
	else if (!load)
		json_set_num(r, "compute_fraction", ops * speed / alu);
	if (!load)
		json_set_num(r, "drive_fraction", streams ? read * speed / disk : NAN);
	else {
		double bytes = bench_median_of(x->samples, NULL, "disk_bytes"),
		    least = fmax(bench_median_of(x->samples, phase, "compute"), bytes / disk);

		json_set_num(r, "floor_s", least);
		json_set_num(r, "times_floor", bench_median_of(x->samples, NULL, "ttft_s") / least);
	}
	json_decref(drive);
	json_decref(memory);
	json_decref(compute);
	return r;
}

/* The keys of what chr-diff said that say how good. */
static void put_quality(json_t *r, const struct side *x)
{
	static const char *const keys[] = { "kl", "top1", "max_abs", "mean_abs", NULL };
	char *path = (char *)x->bench.quality;
	struct err e = { 0 };
	struct jsonl *in;
	json_t *q, *out = json_object(), *rec = NULL;

	if ((in = jsonl_open(1, &path, false, &e)) == NULL)
		err_exit(&e);
	while ((q = jsonl_next(in, &e)) != NULL) {
		json_decref(rec);
		rec = q;
	}
	if (e.status)
		err_exit(&e);
	if (!json_is_number(json_object_get(rec, "kl")))
		err_die(EX_DATAERR, "%s: not a record of chr-diff", path);
	for (int i = 0; keys[i]; i++)
		if (json_object_get(rec, keys[i]))
			json_object_set(out, keys[i], json_object_get(rec, keys[i]));
	json_set_num(out, "ppl", json_number_value(json_object_get(json_object_get(rec, "b"),
	    "ppl")));
	json_object_set_new(r, "quality", out);
	json_decref(rec);
	jsonl_close(in);
}

static bool same_tokens(const json_t *a, const json_t *b)
{
	return json_equal(json_object_get(json_array_get(a, 0), "tokens_digest"),
	    json_object_get(json_array_get(b, 0), "tokens_digest"));
}

static void put_side(struct side *x, const struct side *first, const char *workload,
    const json_t *ceilings)
{
	const char *phase = strcmp(workload, "decode") == 0 ? "decode" : "prefill";
	bool load = strcmp(workload, "load") == 0;
	json_t *r = bench_capsule(workload), *config = json_object(),
	    *one = json_array_get(x->samples, 0);

	use(x);
	bench_config(config, bench_opts);
	json_object_set_new(r, "config", config);
	json_object_set(r, "model", x->model);
	json_object_set_new(r, "cache", json_incref(json_object_get(one, "cache")));
	json_object_set_new(r, "prompts_digest",
	    json_incref(json_object_get(one, "prompts_digest")));
	json_object_set_new(r, "tokens_digest", json_incref(json_object_get(one, "tokens_digest")));
	json_object_set_new(r, "store", json_pack("{s:I, s:I, s:I, s:O}", "slots",
	    (json_int_t)engine_int(x, "slots"), "experts",
	    (json_int_t)engine_int(x, "experts"), "expert_bytes", (json_int_t)engine_int(x,
	    "expert_bytes"), "direct",
	    json_object_get(one, "direct")));
	put_summary(r, x, phase);
	bench_metric(r, load ? "ttft_s" : "tok_per_s", !load, bench_column(x->samples, load ? NULL
	    : phase, load ? "ttft_s" : "tok_per_s"));
	json_object_set_new(r, "roofline", roofline(x, workload, phase, ceilings));
	if (bench.cgroup)
		json_object_set_new(r, "cgroup", json_pack("{s:I, s:I}", "limit",
		    (json_int_t)bench.cgroup, "peak", (json_int_t)x->peak));
	if (bench.quality)
		put_quality(r, x);
	if (first)
		json_object_set_new(r, "versus", bench_versus(first->samples, x->samples, load
		    ? NULL : phase, load ? "ttft_s" : "tok_per_s",
		    json_pack("{s:b}", "same_tokens", same_tokens(first->samples, x->samples))));
	json_object_set_new(r, "samples", json_incref(x->samples));
	bench_put(r);
}

void bench_model(const char *workload, int n, char **files)
{
	struct bench_run r = { workload, n, files };
	struct side side[2];
	int sides = bench.vs ? 2 : 1, reps = bench.reps;
	const char *second = bench.vs;
	json_t *ceilings = json_array();
	struct ceilings c = { .side = &side[0] };

	if (infer.dry_run)
		bench_sample(&r);	/* which prints the plan and ends */
	make_side(&side[0]);
	if (second) {
		bench_second(second);
		make_side(&side[1]);
	}
	c.drive = side[0].file && (strcmp(workload, "load") == 0 ||
	    json_is_true(json_object_get(side[0].model, "packed")));
	for (int i = 0; i < reps; i++) {
		json_array_append_new(ceilings, bench_child(measure_ceilings, &c));
		for (int j = 0; j < sides; j++)
			run(&side[sides == 2 ? (i + j) % 2 : 0], &r);
	}
	json_array_append_new(ceilings, bench_child(measure_ceilings, &c));
	for (int j = 0; j < sides; j++)
		put_side(&side[j], j ? &side[0] : NULL, workload, ceilings);
	use(&side[0]);
	for (int j = 0; j < sides; j++) {
		json_decref(side[j].samples);
		json_decref(side[j].model);
		free(side[j].file);
	}
	json_decref(ceilings);
}
