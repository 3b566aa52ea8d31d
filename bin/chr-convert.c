/* chr-convert: a model of any kind in, a model directory or a GGUF file out. */
#include <stdio.h>
#include <stdlib.h>

#include "arch/arch.h"
#include "base/err.h"
#include "base/human.h"
#include "base/json.h"
#include "base/opt.h"
#include "base/pool.h"
#include "base/progress.h"
#include "base/sig.h"
#include "format/convert.h"
#include "format/prov.h"
#include "text/tok_gguf.h"
#include "text/tok.h"

static struct {
	const char *out;
	int to, dtype, threads;
	int64_t shard_size;
	bool dry, force;
} o = { .shard_size = 5000000000 };

static struct opt opts[] = {
	{ 'o', "output", OPT_STR | OPT_TALKS, &o.out, .arg = "DIR|FILE",
	    .help = "directory or file to make" },
	{ 0, "to", OPT_CHOICE, &o.to, .arg = "same|hf|gguf",
	    .help = "hf: for transformers and what reads its models; gguf: a file for llama.cpp" },
	{ 0, "dtype", OPT_CHOICE, &o.dtype, .arg = "keep|f32|bf16|f16|q8_0|q4_0|q4_1",
	    .help = "type of all weights; keep: as they are, blocks of a GGUF file as f32; q8_0, "
	    "q4_0, q4_1: for gguf" },
	{ 0, "shard-size", OPT_BYTES, &o.shard_size, 1, 1e15, "BYTES",
	    "largest size of a file, but for one large tensor" },
	{ 0, "dry-run", OPT_FLAG, &o.dry, .help = "say what would be written, and stop" },
	{ 0, "force", OPT_FLAG | OPT_TALKS, &o.force,
	    .help = "replace a model directory that is there" },
	{ 'j', "threads", OPT_INT | OPT_TALKS, &o.threads, 0, POOL_MAX, "N",
	    "threads; 0: one per CPU" },
	{ .kind = OPT_TABLE, .value = arch_opts },
	{ .kind = OPT_TABLE, .value = human_opts },
	{ 0 }
};

static const struct opt_prog prog = { "chr-convert", "MODEL -o DIR|FILE [options]",
	"make a model directory or a GGUF file of a model",
	"MODEL is a directory of a supported family, or a GGUF file. What was written before a "
	    "command was cut stays in\nDIR.partial, and the same command goes on with it.", false };

/* What the model said of itself, and this command as the last of its ancestors. */
static json_t *metadata(int argc, char **argv, const struct modeldir *md)
{
	json_t *had = modeldir_metadata(md), *command = prov_command(argc, argv, opts, OPT_TALKS);
	struct prov p = { .program = err_prog, .command = command, .parent_metadata = had,
	    .parent = modeldir_meta(md, "chronos.fingerprint") };
	json_t *meta = prov_metadata(&p);

	json_object_update_missing(meta, had);
	json_decref(had);
	json_decref(command);
	return meta;
}

/* The tokenizer of a model that has one. */
static int tokenizer_keys(const struct modeldir *md, json_t **keys, struct err *e)
{
	struct tok_gguf_of of = { md->path, md->cfg.vocab_size,
	    json_object_get(config_keys(&md->cfg), "eos_token_id"),
	    md->cfg.arch == &arch_chronos };
	char *file = tok_find(md->path);

	*keys = NULL;
	if (!file) {
		err_warn("%s: has no tokenizer, and the file gets none", md->path);
		return 0;
	}
	free(file);
	return tok_gguf_say(&of, keys, e);
}

static void warn(const struct convert *c, const char *model)
{
	if (c->left_out > 0)
		err_warn("%s: the lookahead head is left out: %s has none", model,
		    c->to == CONVERT_GGUF ? "a GGUF file" : "a qwen3_moe");
	if (c->gguf.m.note)
		err_warn("%s: %s", model, c->gguf.m.note);
	if (c->gguf.narrow > 0)
		err_warn("%s: %lld tensors have rows that are no multiple of 32 values and stay "
		    "floats, such as %s", model, (long long)c->gguf.narrow, c->gguf.narrow_first);
}

static void report(const struct convert *c, const char *model, double seconds)
{
	const json_t *type = json_object_get(c->md->cfg.raw, "model_type");
	json_t *r = json_pack("{s:s, s:s, s:s?, s:s}", "type", o.dry ? "plan" : "convert", "model",
	    model, "model_type", json_string_value(type), "output", o.out);
	struct err e = {0};

	json_set_int(r, "tensors", c->tensors);
	json_set_int(r, "bytes", c->bytes);
	json_set_int(r, "changed", c->changed);
	if (c->to != CONVERT_SAME)
		json_set_int(r, "left_out", c->left_out);
	if (c->to == CONVERT_HF)
		json_object_set_new(r, "python", json_boolean(c->python));
	if (c->to == CONVERT_GGUF) {
		json_object_set_new(r, "architecture", json_string(c->gguf.m.arch));
		json_set_int(r, "narrow", c->gguf.narrow);
	} else if (!o.dry)
		json_object_set_new(r, "resumed", json_boolean(c->resumed));
	if (!o.dry)
		json_set_num(r, "seconds", seconds);
	if (human_put(r, &e) < 0)
		err_exit(&e);
	json_decref(r);
}

int main(int argc, char **argv)
{
	static const int dtype[] = { -1, DT_F32, DT_BF16, DT_F16, DT_Q8, DT_Q4, DT_Q4A };
	double began = progress_clock();
	struct modeldir md;
	struct convert c;
	struct err e = {0};
	json_t *meta;
	int first;

	err_init(argv[0]);
	first = opt_parse(argc, argv, opts, &prog);
	if (argc - first != 1 || !o.out)
		opt_usage("give one model, and an output directory or file with -o");
	if (o.to != CONVERT_GGUF && dtype[o.dtype] >= DT_Q8)
		opt_usage("--dtype q8_0, q4_0 and q4_1 are for --to gguf");
	sig_install();
	pool_init(o.threads);
	if (modeldir_open(&md, argv[first], 0, NULL, &e) < 0)
		err_exit(&e);
	meta = metadata(argc, argv, &md);
	c = (struct convert){ .md = &md, .out = o.out, .force = o.force, .dtype = dtype[o.dtype],
	    .shard_size = o.shard_size, .meta = meta,
	    .to = (enum convert_to)o.to, .tokenizer = tok_copy, .keys = tokenizer_keys };
	if (convert_plan(&c, &e) < 0 || (!o.dry && convert_write(&c, &e) < 0))
		err_exit(&e);
	warn(&c, argv[first]);
	report(&c, argv[first], progress_clock() - began);
	convert_end(&c);
	json_decref(meta);
	modeldir_close(&md);
	err_close_stdout();
	return EX_OK;
}
