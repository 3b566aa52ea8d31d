/* chr-intent: trains the encoder that says from a prompt which experts its answer will use. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arch/arch.h"
#include "experts/actlog.h"
#include "experts/intent_pairs.h"
#include "experts/coverage.h"
#include "experts/intent.h"
#include "base/human.h"
#include "base/json.h"
#include "base/mem.h"
#include "format/modeldir.h"
#include "base/opt.h"
#include "model/optim.h"
#include "base/pool.h"
#include "base/progress.h"
#include "format/prov.h"
#include "base/rng.h"
#include "base/sig.h"

static struct {
	const char *model;
	int batch, width, prompt_tokens;
	int64_t steps, seed, log_every;
	double epochs, lr, decay, drop, holdout;
	bool skip_bad;
} o = { .batch = 32, .width = 64, .log_every = 20, .epochs = 20, .lr = 5e-3, .decay = 0.1,
    .drop = 0.5, .holdout = 0.1 };

static struct opt opts[] = {
	{ 'm', "model", OPT_STR | OPT_TALKS, &o.model, .arg = "DIR",
	    .help = "model directory, plain or packed; gets " INTENT_NAME },
	{ 'n', "steps", OPT_COUNT, &o.steps, 0, 1e9, "N", "optimiser steps; 0: as --epochs says" },
	{ 0, "epochs", OPT_FLOAT, &o.epochs, 0, 1e6, "X", "times through the sequences" },
	{ 'b', "batch", OPT_INT, &o.batch, 1, 1 << 20, "N", "sequences per step" },
	{ 'l', "lr", OPT_FLOAT, &o.lr, 0, 100, "X", "highest learning rate" },
	{ 0, "weight-decay", OPT_FLOAT, &o.decay, 0, 100, "X", "of matrices" },
	{ 0, "drop", OPT_FLOAT, &o.drop, 0, 0.99, "X",
	    "share of a prompt's tokens that a step does not see" },
	{ 0, "width", OPT_INT, &o.width, 8, INTENT_MAX_WIDTH, "N",
	    "of the encoder; a multiple of 8" },
	{ 's', "seed", OPT_COUNT, &o.seed, 0, 0x1p62, "N",
	    "of first weights and of the order of sequences" },
	{ 0, "holdout", OPT_FLOAT, &o.holdout, 0, 0.5, "X",
	    "share of sequences that are only measured" },
	{ 0, "prompt-tokens", OPT_INT, &o.prompt_tokens, 0, 1 << 24, "N",
	    "where records mark no answer: the first N tokens are the prompt; 0: half" },
	{ 0, "log-every", OPT_COUNT | OPT_TALKS, &o.log_every, 1, 1e9, "N",
	    "steps between records, and comparisons of weights" },
	{ 0, "skip-bad", OPT_FLAG, &o.skip_bad, .help = "count and report bad records instead of "
	    "stopping" },
	{ .kind = OPT_TABLE, .value = arch_opts },
	{ .kind = OPT_TABLE, .value = human_opts },
	{ 0 }
};

static const struct opt_prog prog = { "chr-intent", "-m DIR [options] [FILE...]",
	"learn from prompts which experts answers use", "Reads activation records of chr-actlog.",
	    true };

static struct {
	struct modeldir md;
	struct intent_pairs a;
	struct intent *m;
	struct optim opt;
	double *popular;		/* (Ls, E) uses by the answers of training */
	const struct answer **train;	/* (ntrain) sequences that are not held */
	uint32_t *order;		/* (ntrain) permutation of this epoch */
	int64_t ntrain, epoch;
	real *g, *scratch, *best;	/* best: the weights so far with the least loss on the
					   sequences to choose by */
	uint32_t *tok;			/* the tokens that a step sees */
	struct progress bar;
	struct err e;
} s;

static void must(int failed)
{
	if (!failed)
		return;
	progress_clear(&s.bar);
	err_exit(&s.e);
}

static void *take(size_t n, size_t size)
{
	return mem_alloc((n ? n : 1) * size);
}

static int64_t experts(void)
{
	return (int64_t)s.md.cfg.num_sparse * s.md.cfg.num_experts;
}

/* ---- records ---- */

static int check_log(const struct actlog_model *m)
{
	const struct config *c = &s.md.cfg;
	const char *is = modeldir_fingerprint(&s.md, &s.e);

	if (!is)
		return -1;
	if (m->layers != c->num_hidden_layers || m->experts != c->num_experts ||
	    m->top_k != c->num_experts_per_tok
	    || (m->fingerprint[0] && strcmp(m->fingerprint, is) != 0))
		return err_set(&s.e, EX_DATAERR, "the records are not of this model: %d layers, %d "
		    "experts, top-%d, %s there; "
		    "%d, %d, %d, %s in %s", m->layers, m->experts, m->top_k, m->fingerprint,
		    c->num_hidden_layers,
		    c->num_experts, c->num_experts_per_tok, is, o.model);
	return 0;
}

static void read_log(int nfiles, char *const files[])
{
	struct jsonl *in = jsonl_open(nfiles, files, o.skip_bad, &s.e);
	struct actlog log;
	struct err bad = { 0 };
	int rc;

	must(!in || actlog_open(&log, in, &s.e) < 0 || check_log(&log.model) < 0);
	must(intent_pairs_open(&s.a, &s.md.cfg, o.prompt_tokens, o.holdout > 0
	    ? (int)lround(fmin(1 / o.holdout, 1e9)) : 0,
	    &s.e) < 0);
	while ((rc = actlog_next(&log, &s.e)) == 1)
		if (intent_pairs_add(&s.a, &log.act, &bad) < 0)
			must(jsonl_bad(in, &s.e, "%s", bad.msg) < 0);
	must(rc < 0 || intent_pairs_end(&s.a, &s.e) < 0);
	actlog_close(&log);
	jsonl_close(in);
	if (s.a.left_out && !opt_quiet)
		fprintf(stderr, "%lld sequences left out: no prompt, or no answer\n",
		    (long long)s.a.left_out);
}

/* What training needs besides the sequences. */
static void prepare(void)
{
	size_t most = 1;

	s.order = take((size_t)s.a.n, sizeof *s.order);
	s.train = take((size_t)s.a.n, sizeof *s.train);
	s.popular = take((size_t)experts(), sizeof *s.popular);
	for (int i = 0; i < s.a.n; i++) {
		const struct answer *x = &s.a.v[i];

		most = (size_t)x->n > most ? (size_t)x->n : most;
		if (x->part != PART_TRAIN)
			continue;
		s.train[s.ntrain++] = x;
		for (int64_t k = 0; k < experts(); k++)
			s.popular[k] += (double)x->used[k];
	}
	if (s.ntrain == 0)
		err_die(EX_DATAERR, "nothing to learn from: no sequence has a prompt and an "
		    "answer");
	s.tok = take(most, sizeof *s.tok);
	s.scratch = take((size_t)experts(), sizeof *s.scratch);
	if (!(s.m = intent_new(&s.md.cfg, s.md.fingerprint, o.width, (uint64_t)o.seed)))
		err_die(EX_OSERR, "out of memory");
	intent_popular(s.m, s.popular);
	s.g = take((size_t)s.m->par.total, sizeof *s.g);
	s.best = take((size_t)s.m->par.total, sizeof *s.best);
	must(optim_open(&s.opt, &s.m->par, NULL, backend_open("cpu", &s.e), o.decay, &s.e) < 0);
}

/* ---- training ---- */

/* Sequence number `at` of all that training goes through. */
static const struct answer *sequence(int64_t at)
{
	if (at / s.ntrain != s.epoch || at == 0) {
		s.epoch = at / s.ntrain;
		rng_shuffle((uint64_t)o.seed, (uint64_t)s.epoch + 1000, s.order,
		    (uint64_t)s.ntrain);
	}
	return s.train[s.order[at % s.ntrain]];
}

/* Its prompt without some tokens, so that what a single token says is not learned by heart. */
static int some_tokens(const struct answer *x, int64_t at)
{
	int n = 0;

	for (int i = 0; i < x->n; i++)
		if (rng_hash((uint64_t)o.seed * 1000003 + (uint64_t)at, (uint64_t)i) * 0x1p-32 >=
		    o.drop)
			s.tok[n++] = x->tok[i];
	return n;
}

/* Mean over the sequences to choose by, above their entropy; not a number without any. */
static double dev_kl(void)
{
	double sum = 0;

	for (int i = 0; i < s.a.n; i++) {
		const struct answer *x = &s.a.v[i];

		if (x->part == PART_DEV)
			sum += intent_loss(s.m, x->tok, x->n, x->used, 0, NULL, s.scratch)
			    - coverage_entropy(x->used, s.m->Ls, s.m->E);
	}
	return sum / (double)s.a.count[PART_DEV];
}

static void put_step(int64_t step, double loss, double floor, double dev, double lr, double norm,
    int64_t tokens)
{
	json_t *r = json_pack("{s:s, s:s, s:I}", "type", "step", "stage", "intent", "step",
	    (json_int_t)step);

	json_set_num(r, "loss", loss);
	json_set_num(r, "kl", loss - floor);
	json_set_num(r, "dev_kl", dev);
	json_set_num(r, "lr", lr);
	json_set_num(r, "grad_norm", norm);
	json_set_int(r, "tokens", tokens);
	json_set_int(r, "mem_bytes", mem_peak_rss());
	must(human_put(r, &s.e) < 0);
	json_decref(r);
}

/* The step whose weights are kept: the best of those that there is a record of. */
static int64_t train(int64_t steps)
{
	struct schedule schedule = { o.lr, optim_warmup(steps), steps };
	double loss = 0, floor = 0, norm, lr, dev, least = INFINITY;
	int64_t tokens = 0, since = 0, kept = steps;

	progress_start(&s.bar, "training", "steps", (double)steps);
	for (int64_t step = 1; step <= steps && !sig_stop; step++) {
		memset(s.g, 0, (size_t)s.m->par.total * sizeof *s.g);
		for (int64_t at = (step - 1) * o.batch; at < step * o.batch; at++, since++) {
			const struct answer *x = sequence(at);
			int n = some_tokens(x, at);

			loss += intent_loss(s.m, s.tok, n, x->used, 1 / (real)o.batch, s.g,
			    s.scratch);
			floor += coverage_entropy(x->used, s.m->Ls, s.m->E);
			tokens += n;
		}
		norm = optim_norm(&s.opt, backend_cpu_memory(s.g));
		if (!isfinite(loss) || !isfinite(norm))
			err_die(EX_DATAERR, "step %lld: the loss is not finite: lower --lr",
			    (long long)step);
		lr = optim_lr(&schedule, step);
		optim_step(&s.opt, backend_cpu_memory(s.m->w), backend_cpu_memory(s.g), lr,
		    optim_clip(norm, 1));
		if (step % o.log_every == 0 || step == steps) {
			dev = dev_kl();
			put_step(step, loss / (double)since, floor / (double)since, dev, lr, norm,
			    tokens);
			loss = floor = 0;
			since = 0;
			if (dev < least) {
				least = dev;
				kept = step;
				memcpy(s.best, s.m->w, (size_t)s.m->par.total * sizeof *s.best);
			}
		}
		progress_at(&s.bar, (double)step, NULL);
	}
	progress_end(&s.bar);
	if (kept < steps)
		memcpy(s.m->w, s.best, (size_t)s.m->par.total * sizeof *s.best);
	return kept;
}

/* ---- the result ---- */

static void evaluate(int64_t steps)
{
	json_t *r = json_pack("{s:s, s:s, s:I}", "type", "eval", "stage", "intent", "step",
	    (json_int_t)steps);
	struct coverage c;

	must(coverage_open(&c, &s.a, s.m, s.popular, &s.e) < 0);
	coverage_blends(&c);
	s.m->blend = c.blend;
	json_set_int(r, "sequences", s.a.count[PART_HELD]);
	json_set_int(r, "trained_on", s.ntrain);
	json_set_int(r, "left_out", s.a.left_out);
	coverage_put(&c, r);
	must(human_put(r, &s.e) < 0);
	coverage_close(&c);
	json_decref(r);
}

static void save(int argc, char **argv)
{
	json_t *had = modeldir_metadata(&s.md),
	    *command = prov_command(argc, argv, opts, OPT_TALKS), *meta;
	uint64_t seed = (uint64_t)o.seed;
	struct prov p = { .program = err_prog, .command = command, .seed = &seed, .parent_metadata =
	    had,
	    .parent = s.md.fingerprint };

	meta = prov_metadata(&p);
	must(intent_save(s.m, o.model, meta, &s.e) < 0);
	json_decref(meta);
	json_decref(command);
	json_decref(had);
}

int main(int argc, char **argv)
{
	int64_t steps, kept;
	int first;

	err_init(argv[0]);
	human_table("step", "step loss kl dev_kl lr grad_norm tokens mem_bytes", true);
	first = opt_parse(argc, argv, opts, &prog);
	if (!o.model)
		opt_usage("no model: give -m DIR");
	if (o.width % 8)
		opt_usage("--width %d: not a multiple of 8", o.width);
	sig_install();
	pool_init(1);
	must(modeldir_open(&s.md, o.model, 0, NULL, &s.e) < 0);
	if (s.md.cfg.num_sparse == 0)
		err_die(EX_DATAERR, "%s: no layer has experts", o.model);
	read_log(argc - first, argv + first);
	prepare();
	steps = o.steps ? o.steps : (int64_t)ceil(o.epochs * (double)s.ntrain / o.batch);
	kept = train(steps);
	if (sig_stop)
		err_die(EX_TEMPFAIL, "stopped by signal %d, nothing was written", (int)sig_stop);
	evaluate(kept);
	save(argc, argv);
	mem_free(s.order);
	mem_free(s.train);
	mem_free(s.popular);
	mem_free(s.tok);
	mem_free(s.scratch);
	mem_free(s.g);
	mem_free(s.best);
	optim_close(&s.opt);
	intent_free(s.m);
	intent_pairs_free(&s.a);
	modeldir_close(&s.md);
	pool_quit();
	err_close_stdout();
	return EX_OK;
}
