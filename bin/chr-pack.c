/* chr-pack: a model directory and a cluster manifest in, a packed model directory out; and back. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arch/arch.h"
#include "base/err.h"
#include "base/file.h"
#include "base/human.h"
#include "base/json.h"
#include "experts/cluster.h"
#include "format/manifest.h"
#include "base/mem.h"
#include "format/modeldir.h"
#include "base/opt.h"
#include "format/pack.h"
#include "base/pool.h"
#include "base/progress.h"
#include "format/prov.h"
#include "text/tok.h"
#include "base/sig.h"

static struct {
	const char *model, *out;
	int layout, dtype, quant, dense, threads;
	int64_t ram, shard_size;
	struct opt_list rule;
	bool unpack, force, dry_run;
} o = { .shard_size = (int64_t)4 << 30 };

static struct opt opts[] = {
	{ 'm', "model", OPT_STR, &o.model, .arg = "DIR", .help = "model directory to read" },
	{ 'o', "output", OPT_STR | OPT_TALKS, &o.out, .arg = "DIR", .help = "directory to make" },
	{ 0, "layout", OPT_CHOICE, &o.layout, .arg = "manifest|layer",
	    .help = "order of experts; layer: one layer after the other, without a MANIFEST" },
	{ 0, "dtype", OPT_CHOICE, &o.dtype, .arg = "model|f32|bf16|f16",
	    .help = "type of the experts; model: as they are" },
	{ 0, "quant", OPT_CHOICE, &o.quant, .arg = "none|q8|q4|q4a",
	    .help = "experts in blocks of 8 or 4 bits (lossy)" },
	{ 0, "quant-dense", OPT_CHOICE, &o.dense, .arg = "none|q8|q4|q4a",
	    .help = "also all other matrices, but the router's and the lookahead head's" },
	{ 0, "quant-for", OPT_LIST, &o.rule, .arg = "PATTERN=TYPE",
	    .help = "tensors whose name matches; q8, q4, q4a, f32, bf16 or f16; later ones go "
	    "before earlier" },
	{ 0, "shard-size", OPT_BYTES, &o.shard_size, 0, 0, "BYTES",
	    "write what is no expert in shards above this size; 0: never" },
	{ 'j', "threads", OPT_INT | OPT_TALKS, &o.threads, 0, 256, "N",
	    "threads; 0: one for each processor" },
	{ 0, "ram", OPT_BYTES | OPT_TALKS, &o.ram, 0, 0, "BYTES",
	    "limit of all memory; 0: what is of use" },
	{ 0, "dry-run", OPT_FLAG | OPT_TALKS, &o.dry_run,
	    .help = "print the memory plan and stop" },
	{ 0, "unpack", OPT_FLAG, &o.unpack, .help = "from a packed directory back to a plain one" },
	{ 0, "force", OPT_FLAG | OPT_TALKS, &o.force,
	    .help = "replace a model directory that is there" },
	{ .kind = OPT_TABLE, .value = arch_opts },
	{ .kind = OPT_TABLE, .value = human_opts },
	{ 0 }
};

static struct mem_plan plan;

static const struct opt_prog prog = { "chr-pack", "-m DIR -o DIR [options] [MANIFEST]",
	"pack the experts of a model into cluster files",
	"MANIFEST comes from chr-cluster, on standard input when not given. --layout layer and "
	    "--unpack need none.",
	    false };

/* What the model said of itself, and this command as the last of its ancestors. */
static json_t *metadata(int argc, char **argv, struct modeldir *md, const char *fingerprint)
{
	json_t *had = modeldir_metadata(md),
	    *command = prov_command(argc, argv, opts, OPT_TALKS);
	struct prov p = { .program = err_prog, .command = command, .parent_metadata = had,
	    .parent = fingerprint };
	json_t *meta = prov_metadata(&p);

	json_object_update_missing(meta, had);
	json_decref(had);
	json_decref(command);
	return meta;
}

/* "types": what was written of each, and what was lost by it; "relative_error": of all blocks
 * together. */
static void report_types(json_t *r, const struct pack *p)
{
	json_t *types = json_object();
	double error = 0, square = 0;

	for (int t = 0; t < DTYPES; t++) {
		const struct pack_sum *s = &p->by[t];
		json_t *one;

		if (!s->tensors)
			continue;
		one = json_object();
		json_set_int(one, "tensors", s->tensors);
		json_set_int(one, "bytes", s->bytes);
		if (s->converted) {
			json_set_int(one, "converted", s->converted);
			json_set_num(one, "relative_error", s->square > 0
			    ? sqrt(s->error / s->square) : 0);
		}
		json_object_set_new(types, dtype_name((enum dtype)t), one);
		error += dtype_blocks((enum dtype)t) ? s->error : 0;
		square += dtype_blocks((enum dtype)t) ? s->square : 0;
	}
	json_object_set_new(r, "types", types);
	if (square > 0)
		json_set_num(r, "relative_error", sqrt(error / square));
}

/* Where more than half is lost, little is left of what the tensor did: as a rule its values are too
 * small for the scale's type, or for the largest among them. */
static void warn_of_loss(const struct pack *p)
{
	if (p->worst > 0.5)
		err_warn("%s keeps little of itself as %s: relative error %.3g (--quant-for or "
		    "--dtype with another type)", p->worst_name,
		    dtype_name(p->worst_type), p->worst);
}

/* "resumed": what an earlier run did took none of our seconds. */
static void report_work(json_t *r, const struct pack *p, double seconds)
{
	json_set_int(r, "source_bytes", p->source_bytes);
	if (p->resumed)
		json_set_int(r, "resumed_files", p->resumed);
	else if (seconds > 0)
		json_set_num(r, "bytes_per_s", (double)p->source_bytes / seconds);
	json_set_int(r, "mem_plan", mem_plan_total(&plan));
	json_set_int(r, "mem_peak", mem_peak_rss());
}

static void report(const struct pack *p, double seconds)
{
	json_t *r = json_pack("{s:s}", "type", o.unpack ? "unpack" : "pack");
	struct err e = {0};

	json_set_int(r, "clusters", p->manifest ? p->manifest->nclusters : 0);
	json_set_int(r, "experts", p->experts);
	json_set_int(r, "bytes", p->bytes);
	if (!o.unpack)
		json_set_int(r, "padding_bytes", p->padding);
	json_set_int(r, "dense_bytes", p->dense_bytes);
	if (p->manifest)
		json_set_str(r, "dtype", dtype_name(p->dt[0]));
	if (p->dt[1] != p->dt[0])
		json_set_str(r, "up_dtype", dtype_name(p->dt[1]));
	if (p->dt[2] != p->dt[0])
		json_set_str(r, "down_dtype", dtype_name(p->dt[2]));
	if (!o.unpack)
		report_types(r, p);
	json_set_str(r, "fingerprint", p->fingerprint);
	json_set_num(r, "seconds", seconds);
	if (!o.unpack)
		report_work(r, p, seconds);
	if (human_put(r, &e) < 0)
		err_exit(&e);
	json_decref(r);
}

static struct pack_rule *rules(void)
{
	static struct pack_rule *r;

	r = mem_alloc(sizeof *r * (size_t)(o.rule.n + 1));

	for (int i = 0; i < o.rule.n; i++) {
		const char *eq = strrchr(o.rule.v[i], '=');

		if (!eq || eq == o.rule.v[i] || dtype_parse(eq + 1, &r[i].t) < 0 ||
		    r[i].t == DT_F64 || (dtype_blocks(r[i].t) && !dtype_rounded(r[i].t)))
			opt_usage("--quant-for %s: not PATTERN=q8, q4, q4a, f32, bf16 or f16",
			    o.rule.v[i]);
		r[i].pattern = strndup(o.rule.v[i], (size_t)(eq - o.rule.v[i]));
		if (!r[i].pattern)
			err_die(EX_OSERR, "out of memory");
	}
	return r;
}

/* The manifest: that of the packed directory, one that is given, or one that we make. */
static int order(struct pack *p, const char *path, struct err *e)
{
	if (o.unpack)
		return manifest_load_dir(p->manifest, o.model, e);
	if (p->md->cfg.num_sparse == 0 && !o.layout)
		return err_set(e, EX_USAGE, "%s has no experts to order: give --layout layer",
		    o.model);
	if (p->md->cfg.num_sparse == 0) {
		p->manifest = NULL;
		return 0;
	}
	if (o.layout)
		return cluster_in_order(p->manifest, &p->md->cfg, pack_expert_bytes(p), e);
	return manifest_load(p->manifest, path, e);
}

/* Plans, says so, and checks the limit; ends here when that was all. */
static void make_plan(struct pack *p)
{
	struct err e = { 0 };
	char hint[48];
	json_t *r;

	mem_plan_add(&plan, "program", mem_program(pool_threads()) + (o.dry_run ? MEM_JITTER : 0));
	if (pack_plan(p, &plan, o.ram, &e) < 0)
		err_exit(&e);
	snprintf(hint, sizeof hint, "use --ram %lldM",
	    (long long)((mem_plan_total(&plan) + MEM_JITTER) >> 20) + 1);
	if (mem_plan_check(&plan, o.ram, hint, &e) < 0 || opt_verbose)
		mem_plan_print(&plan, stderr);
	if (e.status)
		err_exit(&e);
	if (!o.dry_run)
		return;
	r = mem_plan_json(&plan);
	if (human_put(r, &e) < 0)
		err_exit(&e);
	err_close_stdout();
	exit(EX_OK);
}

int main(int argc, char **argv)
{
	static const int dtype[] = { -1, DT_F32, DT_BF16, DT_F16 }, quant[] = { -1, DT_Q8, DT_Q4,
	    DT_Q4A };
	double began = progress_clock();
	struct modeldir md;
	struct manifest m = { 0 };
	struct pack p;
	struct err e = {0};
	json_t *meta;
	int first, rc;

	err_init(argv[0]);
	first = opt_parse(argc, argv, opts, &prog);
	if (!o.model || !o.out)
		opt_usage("give a model with -m and an output directory with -o");
	if (argc - first > (o.unpack || o.layout ? 0 : 1))
		opt_usage("unexpected operand \"%s\"", argv[argc - 1]);
	if (o.unpack && (o.ram || o.dry_run))
		opt_usage("--unpack takes little memory: no --ram or --dry-run");
	if (o.unpack && (o.layout || o.dtype || o.quant || o.dense || o.rule.n))
		opt_usage("--unpack keeps types: no --layout, --dtype, --quant, --quant-dense or "
		    "--quant-for");
	if (o.dtype && o.quant)
		opt_usage("--dtype or --quant, not both");
	sig_install();
	pool_init(o.threads);
	if (modeldir_open(&md, o.model, 0, NULL, &e) < 0)
		err_exit(&e);
	p = (struct pack){ .md = &md, .manifest = &m, .out = o.out, .force = o.force,
	    .rule = rules(), .nrules = o.rule.n, .shard_size = o.shard_size, .tokenizer = tok_copy,
	    .dtype = o.quant ? quant[o.quant] : dtype[o.dtype], .dense = o.dense ? quant[o.dense]
	    : 0 };
	if ((!o.unpack && pack_types(&p, &e) < 0) ||
	    order(&p, first < argc ? argv[first] : "-", &e) < 0 ||
	    (!o.unpack && pack_check(&p, &e) < 0))
		err_exit(&e);
	if (!o.unpack)
		make_plan(&p);
	p.meta = meta = metadata(argc, argv, &md, o.unpack ? m.fingerprint : p.fingerprint);
	rc = o.unpack ? pack_undo(&p, &e) : pack_write(&p, &e);
	if (rc < 0)
		err_exit(&e);
	warn_of_loss(&p);
	report(&p, progress_clock() - began);
	json_decref(meta);
	pack_free(&p);
	manifest_free(&m);
	modeldir_close(&md);
	err_close_stdout();
	return EX_OK;
}
