/* chr-merge: a model directory and adapters on it in, one plain model directory out. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arch/arch.h"
#include "base/err.h"
#include "base/file.h"
#include "base/human.h"
#include "base/json.h"
#include "model/adapter.h"
#include "model/lora.h"
#include "base/mem.h"
#include "format/modeldir.h"
#include "base/opt.h"
#include "base/outdir.h"
#include "base/pool.h"
#include "format/prov.h"
#include "format/sidefiles.h"

static struct {
	const char *model, *out;
	int dtype, threads;
	bool force;
} o;

static struct opt opts[] = {
	{ 'm', "model", OPT_STR, &o.model, .arg = "DIR",
	    .help = "the model that the adapters were trained on" },
	{ 'o', "out", OPT_STR | OPT_TALKS, &o.out, .arg = "DIR",
	    .help = "model directory to make" },
	{ 0, "dtype", OPT_CHOICE, &o.dtype, .arg = "f32|bf16|f16",
	    .help = "type of the weights written" },
	{ 0, "force", OPT_FLAG | OPT_TALKS, &o.force, 
	    .help = "replace a model directory that is there; take "
	    "an adapter of another model" },
	{ 'j', "threads", OPT_INT | OPT_TALKS, &o.threads, 0, POOL_MAX, "N",
	    "threads; 0: one per CPU" },
	{ .kind = OPT_TABLE, .value = arch_opts },
	{ .kind = OPT_TABLE, .value = human_opts },
	{ 0 }
};

static const struct opt_prog prog = { "chr-merge", "-m DIR -o DIR [options] ADAPTER...",
	"add LoRA adapters to the weights of a model",
	"ADAPTER is a directory with adapter_model.safetensors and adapter_config.json, as the "
	    "trainers write it with\n"
	"--lora-rank, and as PEFT does.", false };

static int check_base(const char *adapter, const json_t *metadata, const char *fingerprint,
    struct err *e)
{
	char *base = o.force ? NULL : adapter_base(metadata);
	int rc = base != NULL ? adapter_fits(adapter, base, o.model, fingerprint, NULL, e) : 0;

	free(base);
	return rc;
}

/* What is wrong with the model is not to be blamed on an adapter. */
static int check_finite(const struct modeldir *md, const float *w, struct err *e)
{
	for (int i = 0; i < md->par.n; i++) {
		const struct param *p = &md->par.p[i];

		if (!tensor_finite(w + p->off, DT_F32, (size_t)param_size(p)))
			return err_set(e, EX_DATAERR, "%s: %s has a value that is not finite",
			    md->path, p->name);
	}
	return 0;
}

/* Adds all adapters to w; *metadata becomes that of the last. */
static int merge(const struct modeldir *md, const char *fingerprint, int n, char *const adapter[],
    float *w,
    json_t **metadata, struct err *e)
{
	for (int i = 0; i < n; i++) {
		json_decref(*metadata);
		*metadata = NULL;
		if (lora_merge(adapter[i], &md->cfg, &md->par, w, metadata, e) < 0 ||
		    check_base(adapter[i], *metadata, fingerprint, e) < 0)
			return -1;
	}
	return 0;
}

static int write_model(const struct modeldir *md, const float *w, const json_t *metadata,
    char *fingerprint,
    struct err *e)
{
	static const enum dtype dtype[] = { DT_F32, DT_BF16, DT_F16 };
	const struct modeldir_out out = { .dtype = dtype[o.dtype], .meta = metadata };
	struct outdir d;

	if (outdir_begin(&d, o.out, o.model, o.force, e) < 0)
		return -1;
	if (modeldir_save(d.tmp, &md->cfg, &md->par, w, &out, fingerprint, e) < 0 ||
	    sidefiles_copy(o.model, d.tmp, e) < 0) {
		outdir_abort(&d);
		return -1;
	}
	return outdir_commit(&d, e);
}

/* An adapter from elsewhere does not know its ancestors: then those of the model are the ones to
 * name. */
static json_t *provenance(int argc, char **argv, const struct modeldir *md, const json_t *adapter,
    const char *fingerprint)
{
	json_t *command = prov_command(argc, argv, opts, OPT_TALKS), *own = modeldir_metadata(md);
	const json_t *had = json_object_get(adapter, "chronos.ancestry") != NULL ? adapter : own;
	struct prov p = { .program = err_prog, .command = command, .parent_metadata = had,
	    .parent = fingerprint };
	json_t *meta = prov_metadata(&p);

	json_object_update_missing(meta, (json_t *)had);
	json_decref(command);
	json_decref(own);
	return meta;
}

int main(int argc, char **argv)
{
	struct modeldir md;
	struct err e = {0};
	json_t *had = NULL, *meta, *rec;
	char made[33];
	const char *base;
	float *w;
	int first;

	err_init(argv[0]);
	first = opt_parse(argc, argv, opts, &prog);
	if (!o.model || !o.out)
		opt_usage("give a model with -m and an output directory with -o");
	if (first == argc)
		opt_usage("which adapter?");
	pool_init(o.threads);
	if (modeldir_open(&md, o.model, 0, NULL, &e) < 0 || (base = modeldir_fingerprint(&md, &e))
	    == NULL)
		err_exit(&e);
	w = mem_alloc((size_t)md.par.total * sizeof *w);
	if (modeldir_load_f32(&md, &md.par, w, &e) < 0 || check_finite(&md, w, &e) < 0 ||
	    merge(&md, base, argc - first, argv + first, w, &had, &e) < 0)
		err_exit(&e);
	meta = provenance(argc, argv, &md, had, base);
	if (write_model(&md, w, meta, made, &e) < 0)
		err_exit(&e);
	rec = json_pack("{s:s, s:i, s:s, s:s}", "type", "merge", "adapters", argc - first, "base",
	    base, "fingerprint", made);
	if (human_put(rec, &e) < 0)
		err_exit(&e);
	json_decref(rec);
	json_decref(meta);
	json_decref(had);
	mem_free(w);
	modeldir_close(&md);
	err_close_stdout();
	return EX_OK;
}
