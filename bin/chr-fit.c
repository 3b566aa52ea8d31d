/*
 * chr-fit: says what of a model fits within the memory of this machine, or within given limits,
 * for training or generating.
 */
#include <string.h>

#include "arch/arch.h"
#include "base/err.h"
#include "format/modeldir.h"
#include "measure/fit.h"
#include "measure/fit_for.h"
#include "measure/forecast.h"
#include "base/human.h"
#include "base/json.h"
#include "model/lora.h"
#include "base/mem_limit.h"
#include "base/pool.h"
#include "experts/predict.h"
#include "stages/prefs.h"
#include "stages/teacher_topk.h"

static struct fit_opt o = { .ranks = 1, .expert_parallel = 1, .group = 4, .max_new = 128,
    .chunk = 256, .readers = 4, .data = 1 << 20, .data_ram = (int64_t)1 << 30,
	.temperature = 4, .factor = 1 };
static struct forecast_opt w;
static struct {
	const char *replay, *calibration, *predict, *heat;
	int64_t ram;
	double margin;
	int stage, dtype, quant, dense, threads, server, seqs, context;
	bool learn;
} a = { .margin = 5, .predict = "gate,same,lookahead,previous,popularity" };

static const struct opt opts[] = {
	{ .kind = OPT_GROUP, .help = "What to run" },
	{ 'm', "model", OPT_STR, &o.model, 0, 0, "DIR", "model directory, plain or packed" },
	{ 'c', "config", OPT_STR, &o.config, 0, 0, "FILE",
	    "config.json of a model that need not be there" },
	{ 0, "set", OPT_LIST, &o.sets, 0, 0, "KEY=VALUE",
	    "override a value of config.json; may be repeated" },
	{ 't', "tokenizer", OPT_STR, &o.tokenizer, 0, 0, "FILE",
	    "tokenizer, when not that of the model" },
	{ 0, "stage", OPT_CHOICE, &a.stage, 0, 0, "pretrain|sft|dpo|orpo|grpo|distill|generate",
	    "which program" },
	{ 'b', "batch", OPT_INT, &o.batch, 0, 65536, "N", "as there; 0: as it does without" },
	{ 0, "accum", OPT_INT, &o.accum, 0, 65536, "N", "micro-batches of a step; 0: 1" },
	{ 0, "seq", OPT_INT, &o.seq, 0, 1 << 24, "N",
	    "tokens of a sequence, or of the context of generate; 0: as without" },
	{ 'j', "threads", OPT_INT, &a.threads, 0, 256, "N", "threads; 0: one per CPU" },
	{ .kind = OPT_GROUP, .help = "Training" },
	{ 0, "ref", OPT_CHOICE, &o.ref, 0, 0, "auto|yes|no",
	    "with the frozen starting model (router anchor, reference); auto: all but pretrain" },
	{ 0, "freeze", OPT_LIST, &o.freeze, 0, 0, "PATTERN", "as of the trainers" },
	{ 0, "lora-rank", OPT_INT, &o.rank, 0, LORA_MAX_RANK, "R", "as of the trainers" },
	{ 0, "lora-target", OPT_LIST, &o.target, 0, 0, "NAME", "as of the trainers" },
	{ 'G', "group", OPT_INT, &o.group, 2, 4096, "N", "as of chr-grpo" },
	{ 0, "parallel", OPT_INT, &o.parallel, 0, 65536, "N", "as of chr-grpo" },
	{ 0, "new", OPT_INT, &o.max_new, 1, 1 << 20, "N", "as of chr-grpo" },
	{ 0, "reward", OPT_LIST, &o.reward, 0, 0, "SPEC", "as of chr-grpo" },
	{ 0, "precompute-ref", OPT_STR, &prefs_ref, 0, 0, "FILE", "as of chr-dpo" },
	{ 0, "ranks", OPT_INT, &o.ranks, 1, 1 << 20, "N",
	    "of the job, each with a batch; the plan is that of one" },
	{ 0, "expert-parallel", OPT_INT, &o.expert_parallel, 1, 65536, "N", "as of the trainers" },
	{ 0, "teacher", OPT_STR, &o.teacher, 0, 0, "DIR", "as of chr-distill" },
	{ 0, "teacher-ram", OPT_BYTES, &o.teacher_ram, 0, 0, "BYTES", "as of chr-distill" },
	{ 0, "topk", OPT_INT, &o.topk, 0, TEACHER_TOPK_MAX, "K", "as of chr-distill" },
	{ 0, "temperature", OPT_FLOAT, &o.temperature, 0.01, 1000, "X",
	    "as of chr-distill, whose FILE is made for one" },
	{ 0, "eval", OPT_STR, &o.eval, 0, 0, "FILE", "as of the trainers" },
	{ 0, "data-ram", OPT_BYTES, &o.data_ram, 0, 0, "BYTES", "as of the trainers" },
	{ 0, "shuffle-window", OPT_COUNT, &o.window, 0, 1e9, "N", "as of the trainers" },
	{ 0, "data", OPT_BYTES, &o.data, 0, 0, "BYTES",
	    "without FILE: what the trainer holds of its data" },
	{ .kind = OPT_GROUP, .help = "Generating" },
	{ 0, "chunk", OPT_INT, &o.chunk, 1, 1 << 16, "N", "as of chr-generate" },
	{ 0, "readers", OPT_INT, &o.readers, 1, 64, "N", "as of chr-generate" },
	{ 0, "kv-type", OPT_CHOICE, &o.kv, 0, 0, "f32|bf16|q8", "as of chr-generate" },
	{ 0, "predict", OPT_STR, &a.predict, 0, 0, "LIST",
	    "as of chr-generate; intent takes memory" },
	{ 0, "heat", OPT_STR, &a.heat, 0, 0, "FILE", "as of chr-generate" },
	{ 0, "packed", OPT_FLAG, &o.packed, 0, 0, NULL, "with -c: experts are read from disk" },
	{ 0, "dtype", OPT_CHOICE, &a.dtype, 0, 0, "f32|bf16|f16", "with -c: of the experts" },
	{ 0, "quant", OPT_CHOICE, &a.quant, 0, 0, "none|q8|q4|q4a", "with -c: experts in blocks" },
	{ 0, "quant-dense", OPT_CHOICE, &a.dense, 0, 0, "none|q8|q4|q4a",
	    "with -c: and other matrices" },
	{ 0, "replay", OPT_STR, &a.replay, 0, 0, "FILE",
	    "records of chr-bench replay: what speed which memory buys" },
	{ .kind = OPT_GROUP, .help = "Forecast, also of a published model without options" },
	{ 0, "budgets", OPT_STR, &w.budgets, 0, 0, "LIST",
	    "of memory, such as 8G,16G,32G" },
	{ 0, "drive", OPT_STR, &w.drive, 0, 0, "BYTES_PER_S[,MS]",
	    "its speed, and the latency of a read; measured where the model is by default" },
	{ 0, "log", OPT_STR, &w.log, 0, 0, "FILE",
	    "activation records (chr-actlog), which say how often an expert is in memory" },
	{ .kind = OPT_GROUP, .help = "Another server" },
	{ 0, "for", OPT_CHOICE, &a.server, 0, 0, "none|vllm|sglang|llama.cpp",
	    "the flags with which it holds the model within --vram" },
	{ 0, "seqs", OPT_INT, &a.seqs, 0, 1 << 16, "N", "parallel sequences; 0: what fits" },
	{ 0, "context", OPT_INT, &a.context, 0, 1 << 30, "N",
	    "tokens of one; 0: the model's, 32768 at most, or what fits" },
	{ .kind = OPT_GROUP, .help = "Limits" },
	{ 0, "ram", OPT_BYTES, &a.ram, 0, 0, "BYTES",
	    "memory; 0: what this process may still take on this machine" },
	{ 0, "vram", OPT_BYTES, &o.vram, 0, 0, "BYTES",
	    "and of a device that holds weights and activations; 0: there is none" },
	{ 0, "margin", OPT_FLOAT, &a.margin, 0, 90, "PERCENT", "of the limits left alone" },
	{ 0, "allow-seq", OPT_FLAG, &o.allow_seq, 0, 0, NULL, "the sequence may become shorter" },
	{ 0, "allow-rank", OPT_FLAG, &o.allow_rank, 0, 0, NULL,
	    "the adapter's rank may become lower" },
	{ .kind = OPT_GROUP, .help = "Past runs" },
	{ 'l', "learn", OPT_FLAG, &a.learn, 0, 0, NULL,
	    "FILEs are step records: write how measured peaks compare with plans" },
	{ 0, "calibration", OPT_STR, &a.calibration, 0, 0, "FILE",
	    "what --learn wrote: multiply plans by it" },
	{ .kind = OPT_TABLE, .value = arch_opts },
	{ .kind = OPT_TABLE, .value = human_opts },
	{ .kind = OPT_END }
};

static int put(json_t *r, struct err *e)
{
	int rc = human_put(r, e);

	json_decref(r);
	return rc;
}

static int learn(int n, char **logs, struct err *e)
{
	json_t *r = fit_learn(n, logs, e);

	return r != NULL ? put(r, e) : -1;
}

static void put_groups(json_t *r, const struct mem_limit *l)
{
	json_t *list = json_array();

	for (int i = 0; i < l->ngroup; i++)
		json_array_append_new(list, json_pack("{s:o, s:I, s:I}", "dir",
		    json_text(l->group[i].dir, strlen(l->group[i].dir)), "limit",
		    (json_int_t)l->group[i].limit, "used", (json_int_t)l->group[i].used));
	json_object_set_new(r, "groups", list);
}

/* Settles the limits and says where they come from. */
static int limits(struct err *e)
{
	json_t *r = json_pack("{s:s, s:s}", "type", "fit", "step", "limits");
	const double share = 1 - a.margin / 100;
	struct mem_limit l;
	const char *by;

	mem_limit_read(&l, "");
	if (l.total < MEM_LIMIT_NONE)
		json_set_int(r, "total", l.total);
	if (l.available < MEM_LIMIT_NONE)
		json_set_int(r, "available", l.available);
	put_groups(r, &l);
	if (l.some10 >= 0)
		json_set_num(r, "pressure_some", l.some10);
	if (l.full10 >= 0)
		json_set_num(r, "pressure_full", l.full10);
	by = a.ram > 0 ? "--ram" : l.by >= 0 ? l.group[l.by].dir : l.left < MEM_LIMIT_NONE
	    ? "machine" : "nothing";
	json_object_set_new(r, "by", json_text(by, strlen(by)));
	json_set_num(r, "margin", a.margin);
	o.ram = a.ram > 0 ? (int64_t)((double)a.ram * share) : l.left < MEM_LIMIT_NONE
	    ? (int64_t)((double)l.left * share) : 0;
	if (o.ram == 0 && a.ram == 0 && l.left < MEM_LIMIT_NONE)
		o.ram = 1;		/* nothing is left, which is not "no limit" */
	o.vram = (int64_t)((double)o.vram * share);
	json_set_int(r, "limit", o.ram);
	if (o.vram > 0)
		json_set_int(r, "device_limit", o.vram);
	return put(r, e);
}

static void say(const struct fit_result *x, const struct fit *f)
{
	char args[192];

	fit_args(f, &x->at, args, sizeof args);
	if (!human())
		mem_plan_print(&x->plan, stderr);
	fprintf(stderr, "%s %s, %.1f MiB of %.1f\n", x->as_asked ? "fits:" : x->fits
	    ? "does not fit as asked; this would:"
	    : "does not fit; the least tried is", args, (double)fit_bytes(f, &x->plan) / (1 << 20),
	    (double)o.ram / (1 << 20));
	if (!x->fits && f->o->stage == FIT_GENERATE && !f->packed)
		fprintf(stderr, "a plain directory holds all experts in memory: packed by chr-pack,"
		    " they are read from disk\n");
}

/* Exit status, or -1. */
static int fit(struct err *e)
{
	struct fit_result x;
	struct fit f;
	int rc;

	if (limits(e) < 0)
		return -1;
	human_table("fit", a.replay ? "step policy tok_per_s read_bytes_per_token slots experts "
	    "bytes fits" : "step *", false);
	rc = fit_open(&f, &o, e);
	if (rc == 0 && a.replay != NULL)
		rc = fit_replay(&f, a.replay, e);
	if (rc == 0)
		rc = fit_reason(&f, &x, e);
	if (rc == 0 && !opt_quiet)
		say(&x, &f);
	fit_close(&f);
	return rc < 0 ? -1 : x.as_asked ? 0 : EX_NO;
}

/* Exit status, or -1. */
static int other(struct err *e)
{
	static const enum dtype quant[] = { DT_F32, DT_Q8, DT_Q4, DT_Q4A };
	const struct fit_for f = { .server = (enum fit_server)a.server, .vram = o.vram,
	    .limit = (int64_t)((double)o.vram * (1 - a.margin / 100)), .ram = a.ram,
	    .seqs = a.seqs, .context = a.context, .small_kv = o.kv == KV_Q8,
	    .quant = quant[a.quant] };
	int rc;

	if (o.vram == 0)
		opt_usage("how large is the card? --for needs --vram");
	if (a.quant && f.server != FOR_LLAMA)
		opt_usage("--quant with --for is for llama.cpp");
	rc = fit_for(o.model, o.config, &o.sets, &f, e);
	return rc < 0 ? -1 : rc ? 0 : EX_NO;
}

/* Exit status, or -1. */
static int foresee(struct err *e)
{
	static char bytes[32];
	struct fit f;
	int rc;

	if (a.ram > 0 && w.budgets == NULL) {
		snprintf(bytes, sizeof bytes, "%lld", (long long)a.ram);
		w.budgets = bytes;
	}
	human_table("forecast", "budget fits slots experts hit_rate read_bytes_per_token "
	    "decode_tok_per_s prefill_tok_per_s bytes", false);
	rc = fit_open(&f, &o, e);
	if (rc == 0)
		rc = forecast(&f, &o, &w, e);
	fit_close(&f);
	return rc < 0 ? -1 : rc > 0 ? 0 : EX_NO;
}

/* A forecast is asked for, or nothing of a model that somebody published. */
static bool foresees(void)
{
	static const char *const other[] = { "stage", "batch", "accum", "seq", "ranks", "vram",
	    "expert-parallel", "lora-rank", "lora-target", "freeze", "ref", "eval", "data",
	    "tokenizer", "calibration" };
	static struct config c;
	struct err e = { 0 };
	bool published;

	if (w.budgets != NULL || w.log != NULL || w.drive != NULL)
		return true;
	for (size_t i = 0; i < sizeof other / sizeof *other; i++)
		if (opt_given(other[i]))
			return false;
	if (o.nfiles > 0)
		return false;
	if (modeldir_config(&c, o.config ? o.config : o.model, o.sets.n,
	    (const char *const *)o.sets.v, &e) < 0)
		err_exit(&e);
	published = c.arch != &arch_chronos;
	config_free(&c);
	return published;
}

static void settle(void)
{
	const char *why;
	static const enum dtype dtype[] = { DT_F32, DT_BF16, DT_F16 }, quant[] = { DT_F32, DT_Q8,
	    DT_Q4, DT_Q4A };

	if ((o.model != NULL) == (o.config != NULL))
		opt_usage("which model? -m DIR, or -c FILE");
	if ((a.seqs > 0 || a.context > 0) && a.server == FOR_NONE)
		opt_usage("--seqs and --context are for --for; else it is -b and --seq");
	if (a.server == FOR_NONE && (o.model != NULL || o.config != NULL) && foresees()) {
		if (opt_given("stage") && a.stage != FIT_GENERATE)
			opt_usage("a forecast is of --stage generate");
		a.stage = FIT_GENERATE;
		o.as_packed = true;
	}
	if (a.server == FOR_NONE && !o.as_packed && o.model != NULL &&
	    (o.packed || a.dtype || a.quant || a.dense))
		opt_usage("--packed, --dtype, --quant and --quant-dense are for -c; a directory "
		    "says so itself");
	if (a.dtype && a.quant)
		opt_usage("--dtype or --quant, not both");
	if ((o.teacher != NULL || o.topk > 0) && a.stage != FIT_DISTILL)
		opt_usage("--teacher and --topk are for --stage distill");
	if (a.stage == FIT_DISTILL && (o.teacher != NULL) == (o.topk > 0))
		opt_usage("who is the teacher? --teacher DIR, or --topk K");
	if (a.stage == FIT_GENERATE && (o.nfiles > 0 || o.eval != NULL))
		opt_usage("FILEs are a trainer's data, not prompts");
	if ((o.predict = source_list(a.predict, &why)) < 0)
		opt_usage("--predict '%s': %s", a.predict, why);
	if (o.rank == 0 && o.target.n > 0)
		opt_usage("an adapter needs --lora-rank R");
	if (o.rank > 0 && o.freeze.n > 0)
		opt_usage("--lora-rank freezes the whole model, so it goes without --freeze");
	o.stage = (enum fit_stage)a.stage;
	o.expert = a.quant ? quant[a.quant] : dtype[a.dtype];
	o.dense = quant[a.dense];
	o.heat = a.heat != NULL;
}

int main(int argc, char **argv)
{
	static const struct opt_prog prog = {
		.name = "chr-fit", .operands = "[options] -m DIR | -c FILE [FILE...], or -l "
		    "[FILE...]",
		.purpose = "say what of a model fits in memory",
		.notes = "FILEs are what a trainer would read, or with -l step records. Records of "
		    "each step of the reasoning go to\n"
		    "stdout, the plan is the last.\n"
		    "Exit status: 0 it fits as asked, 1 it does not.",
	};
	struct err e = { 0 };
	int first, rc;

	err_init(argv[0]);
	first = opt_parse(argc, argv, opts, &prog);
	o.nfiles = a.learn ? 0 : argc - first;
	o.files = argv + first;
	if (!a.learn)
		settle();
	pool_init(a.threads);
	if (a.calibration != NULL && fit_calibration(a.calibration, fit_stage_name[a.stage],
	    &o.factor, &e) < 0)
		err_exit(&e);
	rc = a.learn ? learn(argc - first, argv + first, &e) : a.server != FOR_NONE ? other(&e)
	    : o.as_packed ? foresee(&e) : fit(&e);
	human_end();
	if (rc < 0)
		err_exit(&e);
	pool_quit();
	err_close_stdout();
	return rc;
}
