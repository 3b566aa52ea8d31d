/*
 * Steps of training: the trainer's own (train_measure), in children, two configurations in
 * turns, and between them what the processor gives: the kernels' products of matrices of 1024
 * and multiply-adds in registers. One capsule for each configuration.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "measure/bench.h"
#include "base/json.h"
#include "measure/kernel_rate.h"
#include "train/loss.h"
#include "base/pool.h"
#include "base/rng.h"
#include "base/sha256.h"
#include "train/train.h"

#define SIZE 1024		/* of the matrices that the kernels' speed is measured with */
#define TRIES 5

struct side {			/* a configuration */
	struct infer infer;
	struct bench_opt bench;
	json_t *samples;
};

struct inputs {
	int n;
	char **files;
};

static void use(const struct side *x)
{
	infer = x->infer;
	bench = x->bench;
}

/* ---- random tokens: the source when there are no files ---- */

struct draw {
	uint64_t seed, n;
	int T, vocab;
};

static void *draw_open(const struct train_opt *o, const struct config *c, struct tok *t, int nfiles,
    char *const files[], bool eval,
    struct err *e)
{
	struct draw *d = calloc(1, sizeof *d);

	(void)t, (void)nfiles, (void)files, (void)eval;
	if (d == NULL)
		err_set(e, EX_OSERR, "out of memory");
	else
		*d = (struct draw){ .seed = (uint64_t)o->seed, .T = o->seq,
		    .vocab = c->vocab_size };
	return d;
}

/* Every row one document, whose last token has no target. */
static int draw_next(void *self, struct micro *mb, int B, struct err *e)
{
	struct draw *d = self;
	struct batch *b = &mb->b;

	(void)e;
	b->B = B;
	b->T = d->T;
	for (int64_t r = 0; r < (int64_t)B * d->T; r++) {
		b->tok[r] = (uint32_t)rng_below(d->seed, 1, d->n++, (uint64_t)d->vocab);
		b->target[r] = -1;
		b->doc_start[r] = 0;
		b->from[r] = 0;
		if (r % d->T > 0)
			b->target[r - 1] = (int32_t)b->tok[r];
	}
	return 1;
}

static void draw_close(void *self) { free(self); }
static bool draw_streams(const void *self) { (void)self; return false; }
static int64_t draw_rows(const void *self) { (void)self; return -1; }
static int64_t draw_bytes(const void *self) { (void)self; return 0; }
static json_t *draw_inputs(const void *self) { (void)self; return json_string("random"); }
/* Its records have no names: none of them can be wrong. */
static struct corpus *draw_corpus(void *self) { (void)self; return NULL; }

static const struct source draw_source = {
	.open = draw_open, .close = draw_close, .streams = draw_streams, .rows = draw_rows,
	    .bytes = draw_bytes, .next = draw_next,
	.inputs = draw_inputs, .corpus = draw_corpus,
};

/* ---- a sample ---- */

static double mean_loss(const struct stage_in *in)
{
	return loss_ce(in->m, &in->mb->b, in->targets, in->coef, in->logp);
}

static void set_train_flags(void)
{
	struct train_opt *o = &train_flags;

	o->model = infer.model;
	o->tokenizer = infer.tokenizer;
	o->backend = infer.backend;
	o->threads = infer.threads;
	o->ram = infer.ram;
	o->dry_run = infer.dry_run;
	o->config = bench.config;
	o->sets = bench.sets;
	o->seed = bench.seed;
	o->batch = bench.batch;
	o->seq = bench.seq;
	o->compute = bench.compute;
	o->recompute = bench.recompute;
	o->skip_bad = bench.skip_bad;
	o->lr = 5e-4;		/* as chr-pretrain */
	o->mask_prob = 0.08;
}

/* What tells this model from another: its weights, or the configuration of random ones. */
static void put_model(json_t *r, const struct train_cost *c)
{
	char *text = json_dumps(c->config, JSON_COMPACT | JSON_SORT_KEYS), digest[65];
	json_t *m = json_object();

	sha256_hex(text, strlen(text), digest);
	digest[32] = '\0';
	json_set_str(m, "directory", infer.model ? infer.model : bench.config);
	json_set_str(m, "fingerprint", *c->parent ? c->parent : digest);
	json_set_int(m, "parameters", c->parameters);
	json_set_int(m, "active_parameters", c->active);
	json_object_set_new(m, "config", c->config);
	json_object_set_new(r, "model", m);
	free(text);
}

static json_t *sample_json(const struct train_cost *c)
{
	json_t *r = json_object(), *profile = profile_json(&c->profile), *steps = json_array();
	double tokens = (double)c->tokens, wall = 0, cpu = bench_number(profile, "cpu_seconds"),
	    gflop = bench_number(profile, "gflop");

	for (int i = 0; i < c->steps; i++) {
		wall += c->step_s[i];
		json_array_append_new(steps, json_real(c->step_s[i]));
	}
	put_model(r, c);
	json_object_set_new(r, "data", c->data);
	json_set_int(r, "seq", c->seq);
	json_set_num(r, "open_s", c->open_s);
	json_set_int(r, "tokens", c->tokens);
	json_object_set_new(r, "step_s", steps);
	json_set_num(r, "wall", wall);
	json_set_num(r, "tok_per_s", tokens / wall);
	json_set_num(r, "tok_per_cpu_s", tokens / cpu);
	json_set_num(r, "ops", gflop * 1e9);
	json_set_num(r, "ops_per_s", gflop * 1e9 / wall);
	json_set_num(r, "model_ops_per_s", 6 * (double)c->active * tokens / wall);
	json_set_num(r, "loss", c->loss);
	json_set_int(r, "mem_plan", c->plan);
	json_set_int(r, "peak_rss", mem_peak_rss());
	json_object_set_new(r, "parts", json_incref(json_object_get(profile, "parts")));
	json_decref(profile);
	return r;
}

static json_t *measure(void *arg)
{
	static const struct stage random = { .name = "train", .source = &draw_source,
	    .loss = mean_loss },
	    documents = { .name = "train", .source = &packed_source, .loss = mean_loss };
	const struct inputs *in = arg;
	struct train_cost c = { .steps = bench.steps, .step_s = calloc((size_t)bench.steps,
	    sizeof *c.step_s) };
	struct err e = { 0 };
	json_t *r;

	if (c.step_s == NULL)
		err_die(EX_OSERR, "out of memory");
	set_train_flags();
	if (train_measure(in->n > 0 ? &documents : &random, in->n, in->files, &c, &e) < 0)
		err_exit(&e);
	r = infer.dry_run ? NULL : sample_json(&c);
	free(c.step_s);
	return r;
}

/* ---- ceilings ---- */

static double product(bool bf16)
{
	struct kernel_rate_gemm g;
	struct err e = { 0 };
	double best = 0;

	if (kernel_rate_gemm_open(&g, GEMM_NT, SIZE, SIZE, SIZE, &e) < 0)
		err_exit(&e);
	kernel_rate_gemm_rate(&g, &backend_cpu, bf16);
	for (int i = 0; i < TRIES; i++)
		best = fmax(best, kernel_rate_gemm_rate(&g, &backend_cpu, bf16));
	kernel_rate_gemm_close(&g);
	return best;
}

static json_t *measure_ceilings(void *arg)
{
	const struct side *x = arg;
	json_t *r = json_object();
	double fma = 0;

	pool_init(x->infer.threads);
	for (int i = 0; i < TRIES; i++)
		fma = fmax(fma, kernel_rate_fma_rate());
	json_set_num(r, "fma", fma > 0 ? fma : NAN);
	json_set_num(r, "f32", product(false));
	json_set_num(r, "bf16", product(true));
	pool_quit();
	return r;
}

/* ---- capsules ---- */

static const char *compute_name(void)
{
	return bench.compute ? "bf16" : "f32";
}

static json_t *list_of(const struct opt_list *l)
{
	json_t *list = json_array();

	for (int i = 0; i < l->n; i++)
		json_array_append_new(list, json_string(l->v[i]));
	return list;
}

static json_t *config(const json_t *sample)
{
	return json_pack("{s:o, s:O, s:O, s:i, s:i, s:s, s:b, s:i, s:I, s:I}", "set",
	    list_of(&bench.sets), "data",
	    json_object_get(sample, "data"), "seq", json_object_get(sample, "seq"), "batch",
	    bench.batch, "steps", bench.steps, "compute",
	    compute_name(), "recompute", bench.recompute, "threads", infer.threads, "ram",
	    (json_int_t)infer.ram, "seed",
	    (json_int_t)bench.seed);
}

/* The operations are those of matrix products and attention; what the profile counts, recomputed
 * ones too. */
static json_t *roofline(const struct side *x, const json_t *ceilings)
{
	static const char *const keys[][2] = { { "f32", "f32_ops_per_s" },
	    { "bf16", "bf16_ops_per_s" }, { "fma", "fma_ops_per_s" } };
	const json_t *one = json_array_get(x->samples, 0);
	double speed = bench_median_of(x->samples, NULL, "ops_per_s"), most[3];
	json_t *r = json_object();

	for (int i = 0; i < 3; i++) {
		json_t *v = bench_column(ceilings, NULL, keys[i][0]);

		json_object_set_new(r, keys[i][1], bench_spread(v));
		most[i] = bench_most(v);
		json_decref(v);
	}
	json_set_num(r, "ops_per_token", bench_number(one, "ops") / bench_number(one, "tokens"));
	json_set_num(r, "model_ops_per_token", 6 * bench_number(one, "model.active_parameters"));
	json_set_num(r, "compute_fraction", speed / most[bench.compute]);
	json_set_num(r, "f32_fraction", speed / most[0]);
	json_set_num(r, "fma_fraction", speed / most[2]);
	return r;
}

/* A number of a part, by name, in all samples. */
static json_t *part_column(const json_t *samples, const char *part, const char *key)
{
	json_t *list = json_array(), *sample, *one;
	size_t i, j;

	json_array_foreach((json_t *)samples, i, sample)
		json_array_foreach(json_object_get(sample, "parts"), j, one)
			if (strcmp(bench_word(one, NULL, "part"), part) == 0)
				json_array_append_new(list, json_incref(json_object_get(one, key)));
	return list;
}

static double part_median(const json_t *samples, const char *part, const char *key)
{
	json_t *list = part_column(samples, part, key);
	double v = bench_median(list);

	json_decref(list);
	return v;
}

static json_t *parts(const json_t *samples, double ceiling)
{
	json_t *all = json_array(), *first;
	size_t i;

	json_array_foreach(json_object_get(json_array_get(samples, 0), "parts"), i, first) {
		const char *name = bench_word(first, NULL, "part");
		double gflops = part_median(samples, name, "gflops");
		json_t *one = json_object();

		json_set_str(one, "part", name);
		json_set_num(one, "share", part_median(samples, name, "share"));
		json_set_num(one, "seconds", part_median(samples, name, "seconds") / bench.steps);
		json_set_num(one, "ops_per_s", gflops * 1e9);
		json_set_num(one, "compute_fraction", gflops * 1e9 / ceiling);
		json_array_append_new(all, one);
	}
	return all;
}

static bool same_loss(const json_t *a, const json_t *b)
{
	return json_equal(json_object_get(json_array_get(a, 0), "loss"),
	    json_object_get(json_array_get(b, 0), "loss"));
}

/* Keys that stand in the capsule once; parts are asked for with --profile. */
static void strip(json_t *samples)
{
	json_t *one;
	size_t i;

	json_array_foreach(samples, i, one) {
		json_object_del(one, "model");
		json_object_del(one, "data");
		if (!bench.profile)
			json_object_del(one, "parts");
	}
}

static void put_side(const struct side *x, const struct side *first, const json_t *ceilings)
{
	static const char *const keys[] = { "tok_per_s", "tok_per_cpu_s", "ops_per_s",
	    "model_ops_per_s", "open_s", "loss", "mem_plan",
		"peak_rss", NULL };
	json_t *r = bench_capsule("train"), *all = json_object(), *one = json_array_get(x->samples,
	    0), *roof;

	use(x);
	json_object_set_new(r, "config", config(one));
	json_object_set(r, "model", json_object_get(one, "model"));
	bench_put_keys(r, all, x->samples, NULL, keys);
	json_object_set_new(r, "summary", all);
	bench_metric(r, "tok_per_s", true, bench_column(x->samples, NULL, "tok_per_s"));
	roof = roofline(x, ceilings);
	json_object_set_new(r, "roofline", roof);
	if (bench.profile)
		json_object_set_new(r, "parts",
		    parts(x->samples, bench_number(roof, bench.compute ? "bf16_ops_per_s.most" :
		    "f32_ops_per_s.most")));
	if (first)
		json_object_set_new(r, "versus", bench_versus(first->samples, x->samples, NULL,
		    "tok_per_s", json_pack("{s:b}", "same_loss",
		    same_loss(first->samples, x->samples))));
	strip(x->samples);
	json_object_set(r, "samples", x->samples);
	bench_put(r);
}

/* ---- runs ---- */

static void make_side(struct side *x)
{
	*x = (struct side){ .infer = infer, .bench = bench, .samples = json_array() };
	if (infer.model == NULL && bench.config == NULL)
		opt_usage("no model: give -c CONFIG, or -m DIR");
}

/* The second configuration has the settings of the first and its own. */
static void second_side(struct side *x, const char *flags)
{
	const char **v = calloc((size_t)bench.sets.n + 1, sizeof *v);

	if (v == NULL)
		err_die(EX_OSERR, "out of memory");
	if (bench.sets.n > 0)
		memcpy(v, bench.sets.v, (size_t)bench.sets.n * sizeof *v);
	bench.sets.v = v;
	bench_second(flags);
	make_side(x);
}

static void run(struct side *x, struct inputs *in)
{
	use(x);
	json_array_append_new(x->samples, bench_child(measure, in));
}

void bench_train(int n, char **files)
{
	struct inputs in = { n, files };
	struct side side[2];
	int sides = bench.vs ? 2 : 1, reps = bench.reps;
	const char *second = bench.vs;
	json_t *ceilings = json_array();

	make_side(&side[0]);
	if (infer.dry_run) {
		measure(&in);
		exit(EX_OK);
	}
	if (second)
		second_side(&side[1], second);
	for (int i = 0; i < reps; i++) {
		json_array_append_new(ceilings, bench_child(measure_ceilings, &side[0]));
		for (int j = 0; j < sides; j++)
			run(&side[sides == 2 ? (i + j) % 2 : 0], &in);
	}
	json_array_append_new(ceilings, bench_child(measure_ceilings, &side[0]));
	for (int j = 0; j < sides; j++)
		put_side(&side[j], j ? &side[0] : NULL, ceilings);
	use(&side[0]);
	for (int j = 0; j < sides; j++)
		json_decref(side[j].samples);
	if (sides == 2)
		free(side[1].bench.sets.v);
	json_decref(ceilings);
}
