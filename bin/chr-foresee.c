/* chr-foresee: trains heads that say which experts the next layers of a model will want. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/human.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/opt.h"
#include "base/progress.h"
#include "base/sig.h"
#include "decode/infer.h"
#include "experts/foresee.h"
#include "format/modeldir.h"
#include "format/prov.h"
#include "stages/foresee_fit.h"
#include "stages/foresee_spool.h"
#include "text/corpus.h"

#define TEXTS_RAM (64 << 20)	/* bytes of tokens kept in memory; others are read again */

static struct {
	int64_t tokens, seed;
	int seq, chunk, width, horizons, batch;
	double epochs, lr, decay, holdout;
	const char *spool;
	bool skip_bad;
} o = { .tokens = 65536, .chunk = 64, .horizons = FORESEE_MAX_HORIZON, .batch = 256,
    .epochs = 6, .lr = 2e-2, .decay = 0.01, .holdout = 0.1 };

static struct opt opts[] = {
	{ 'n', "tokens", OPT_COUNT, &o.tokens, 2, 1e9, "N", "tokens of the texts to learn from" },
	{ 0, "seq", OPT_INT, &o.seq, 0, 1 << 24, "N",
	    "longer texts are cut into sequences of N tokens; "
	    "0: 512, or what the model was made for where that is less" },
	{ 0, "width", OPT_INT, &o.width, 0, FORESEE_MAX_WIDTH, "N",
	    "of the hidden layer of each layer's heads; 0: a quarter of the model's, at most 128" },
	{ 0, "horizons", OPT_INT, &o.horizons, 1, FORESEE_MAX_HORIZON, "N",
	    "how many layers ahead" },
	{ 'b', "batch", OPT_INT, &o.batch, 1, 1 << 16, "N", "tokens of a step" },
	{ 0, "epochs", OPT_FLOAT, &o.epochs, 0, 1e6, "X", "times through the tokens" },
	{ 'l', "lr", OPT_FLOAT, &o.lr, 0, 100, "X", "highest learning rate" },
	{ 0, "weight-decay", OPT_FLOAT, &o.decay, 0, 100, "X", "of matrices" },
	{ 's', "seed", OPT_COUNT, &o.seed, 0, 0x1p62, "N", "of first weights and of the order" },
	{ 0, "holdout", OPT_FLOAT, &o.holdout, 0, 0.5, "X",
	    "share of sequences that are only measured" },
	{ 0, "spool", OPT_STR, &o.spool, .arg = "DIR",
	    .help = "where activations go meanwhile, in a file without a name; without: the "
	    "model directory" },
	{ 0, "chunk", OPT_INT, &o.chunk, 1, 1 << 16, "N", "tokens evaluated at a time" },
	{ 0, "skip-bad", OPT_FLAG, &o.skip_bad, .help = "count and report bad records instead of "
	    "stopping" },
	{ .kind = OPT_TABLE, .value = infer_opts },
	{ .kind = OPT_TABLE, .value = human_opts },
	{ 0 }
};

static const struct opt_prog prog = { "chr-foresee", "-m DIR [options] [FILE...]",
	"learn which experts the next layers of a model will want",
	"Records hold \"text\", \"messages\" or \"tokens\". The heads lie beside the model, as\n"
	    FORESEE_NAME ".", true };

static struct {
	struct foresee_spool spool;
	struct foresee_router *router;	/* (Ls) */
	real *norms;			/* (Ls, D) */
	real *routers;			/* what router[] points into */
	struct foresee *heads;
	struct foresee_fit fit;
	struct seq *seq;
	real *inputs;			/* (chunk, Ls, D) */
	int32_t *topk;			/* (chunk, Ls, K) */
	int64_t sequences;
	char fingerprint[33];
	json_t *metadata;
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

/* ---- what the program holds beside the engine ---- */

static int64_t router_values(const struct config *c)
{
	return (int64_t)c->num_sparse * ((int64_t)c->num_experts * (c->hidden_size + 2) +
	    c->hidden_size);
}

static int64_t piece_bytes(const struct config *c)
{
	return (int64_t)o.chunk * c->num_sparse * (c->hidden_size * (int64_t)sizeof *s.inputs +
	    c->num_experts_per_tok * (int64_t)sizeof *s.topk);
}

static int64_t plan(const struct config *c)
{
	int64_t each = (int64_t)c->hidden_size * (o.width + o.horizons) +
	    (int64_t)o.horizons * c->num_experts * (o.width + 2);

	return foresee_spool_bytes(c, o.tokens, o.chunk) + router_values(c) *
	    (int64_t)sizeof(real) + piece_bytes(c) + c->num_sparse * each * (int64_t)sizeof(real) +
	    foresee_fit_bytes(c, o.width, o.horizons, o.tokens, o.batch);
}

/* ---- routers, and the norms before them ---- */

/* Values of a parameter, which has them, at *to; NULL: this layer has none. */
static const real *read_values(const struct modeldir *md, const struct param *p, real **to)
{
	const real *at = *to;

	if (p == NULL)
		return NULL;
	must(modeldir_read_f32(md, p, *to, &s.e) < 0);
	*to += param_size(p);
	return at;
}

static void read_routers(const struct modeldir *md)
{
	const struct config *c = &md->cfg;
	int D = c->hidden_size;
	real *to;

	s.router = mem_alloc((size_t)c->num_sparse * sizeof *s.router);
	s.routers = to = mem_alloc((size_t)router_values(c) * sizeof *to);
	s.norms = mem_alloc((size_t)c->num_sparse * (size_t)D * sizeof *s.norms);
	for (int l = 0, i = 0; l < c->num_hidden_layers; l++) {
		real *norm = s.norms + (int64_t)i * D;

		if (!c->block[l].sparse)
			continue;
		s.router[i++] = (struct foresee_router){ .r = &infer.cfg.block[l].router,
		    .gate = read_values(md, params_get(&md->par, P_GATE, l, -1), &to),
		    .logit_bias = read_values(md, params_get(&md->par, P_LOGIT_BIAS, l, -1), &to),
		    .bias = read_values(md, params_get(&md->par, P_GATE_BIAS, l, -1), &to) };
		read_values(md, params_get(&md->par, P_POST_NORM, l, -1), &norm);
		for (int d = 0; c->norm_plus_one && d < D; d++)
			norm[d - D] += 1;
	}
}

/* Ends the program where the heads could not be written at the end. */
static void read_model(void)
{
	const char *is;
	struct modeldir md;

	must(modeldir_open(&md, infer.model, 0, NULL, &s.e) < 0);
	if (md.gguf)
		err_die(EX_USAGE, "%s: a GGUF file has no place for heads: make a model directory "
		    "of it with chr-convert", infer.model);
	if ((is = modeldir_fingerprint(&md, &s.e)) == NULL)
		err_exit(&s.e);
	memcpy(s.fingerprint, is, sizeof s.fingerprint);
	s.metadata = modeldir_metadata(&md);
	read_routers(&md);
	modeldir_close(&md);
}

/* ---- what the model does on the texts ---- */

static bool held(int64_t sequence)
{
	int64_t every = o.holdout > 0 ? (int64_t)(1 / o.holdout + 0.5) : 0;

	return every > 0 && sequence % every == every - 1;
}

static void run_sequence(const uint32_t *tok, int n)
{
	bool measured = held(s.sequences++);

	seq_reset(s.seq);
	for (int i = 0, m; i < n && !sig_stop; i += m) {
		struct eval_item it = { .s = s.seq, .tok = tok + i, .inputs = s.inputs,
		    .topk = s.topk };

		it.n = m = n - i < o.chunk ? n - i : o.chunk;
		must(engine_eval(infer.g, &it, 1, NULL, &s.e) < 0 ||
		    foresee_spool_add(&s.spool, s.inputs, s.topk, m, i == 0, measured, &s.e) < 0);
		progress_at(&s.bar, (double)s.spool.n, NULL);
	}
}

static int item(const void *self, struct tok *tok, const json_t *rec, struct ids *out,
    struct record_count *n, struct err *why)
{
	(void)self;
	(void)n;
	return infer_ids_by(tok, rec, false, out, NULL, why);
}

static struct corpus *open_texts(int nfiles, char *const files[])
{
	const struct corpus_opt co = { .unit = "texts", .kind = { .item = item, .tok = infer.tok },
	    .shuffle = true, .piece = o.seq, .longest = o.seq, .ram = TEXTS_RAM,
	    .skip_bad = o.skip_bad, .seed = (uint64_t)o.seed };
	struct corpus *c = corpus_open(nfiles, files, &co, &s.e);

	must(c == NULL);
	return c;
}

/* Sequences in the corpus's order, as far as there is room, each once. */
static void run_texts(struct corpus *c)
{
	const uint32_t *tok;
	int64_t n, left = corpus_streams(c) ? INT64_MAX : corpus_items(c);
	int rc = 1;

	progress_start(&s.bar, "running the model", "tokens", (double)o.tokens);
	for (; left > 0 && !sig_stop && s.spool.n + 1 < s.spool.most; left--) {
		if ((rc = corpus_get(c, &tok, &n, &s.e)) <= 0)
			break;
		if (n > s.spool.most - s.spool.n)
			n = s.spool.most - s.spool.n;
		for (int64_t i = 0; i < n; i += o.seq)	/* those of a pipe come whole */
			run_sequence(tok + i, n - i < o.seq ? (int)(n - i) : o.seq);
		corpus_advance(c);
	}
	must(rc < 0);
	progress_end(&s.bar);
}

/* ---- heads ---- */

static const char *const by_name[FORESEE_BYS] = { "foresee", "gate", "previous", "popularity",
    "control" };

static void put_shares(json_t *r, const struct foresee_recall *c)
{
	char key[32];

	for (int by = 0; by < FORESEE_BYS; by++) {
		if (c->n[by] == 0)
			continue;
		json_set_num(r, by_name[by], (double)c->hit[by] / (double)c->n[by] /
		    infer.cfg.num_experts_per_tok);
		snprintf(key, sizeof key, "%s_whole", by_name[by]);
		json_set_num(r, key, (double)c->whole[by] / (double)c->n[by]);
	}
}

/* layer: below 0 for all. next: of the token that follows, of which routers cannot be asked. */
static void put_recall(int layer, int horizon, bool next, const struct foresee_recall *c)
{
	json_t *r = json_object();
	int64_t rows = c->n[FORESEE_BY_HEADS];

	json_set_str(r, "type", layer < 0 ? "eval" : "recall");
	json_set_str(r, "stage", "foresee");
	if (layer >= 0)
		json_set_int(r, "layer", layer);
	json_set_int(r, "horizon", horizon);
	json_object_set_new(r, "next_token", json_boolean(next));
	json_set_int(r, "tokens", rows ? rows : c->n[FORESEE_BY_CONTROL]);
	put_shares(r, c);
	must(human_put(r, &s.e) < 0);
	json_decref(r);
}

static void put_step(int layer, double loss)
{
	json_t *r = json_object();

	json_set_str(r, "type", "step");
	json_set_str(r, "stage", "foresee");
	json_set_int(r, "layer", layer);
	json_set_num(r, "loss", loss);
	json_set_int(r, "tokens", s.fit.ntrain);
	json_set_int(r, "mem_bytes", mem_peak_rss());
	must(human_put(r, &s.e) < 0);
	json_decref(r);
}

static void add_up(struct foresee_recall *all, const struct foresee_recall *c)
{
	for (int by = 0; by < FORESEE_BYS; by++) {
		all->n[by] += c->n[by];
		all->hit[by] += c->hit[by];
		all->whole[by] += c->whole[by];
	}
}

static void train(void)
{
	/* of layers of the same token, and of the next */
	struct foresee_recall of[FORESEE_MAX_HORIZON + 1], all[2][FORESEE_MAX_HORIZON + 1] = { 0 };
	int l = 0, next;
	double loss;

	progress_start(&s.bar, "training", "layers", s.heads->Ls);
	for (int i = 0; i < s.heads->Ls && !sig_stop; i++, l++) {
		while (!infer.cfg.block[l].sparse)
			l++;
		must(foresee_fit_layer(&s.fit, i, &loss, &s.e) < 0);
		put_step(l, loss);
		foresee_fit_measure(&s.fit, i, of);
		for (int h = 0; h <= s.heads->H; h++) {
			foresee_target(s.heads, i, h, &next);
			put_recall(l, h, next, &of[h]);
			add_up(&all[next][h], &of[h]);
		}
		progress_at(&s.bar, i + 1, NULL);
	}
	progress_end(&s.bar);
	for (next = 0; next < 2; next++)
		for (int h = next; h <= s.heads->H && !sig_stop; h++)
			put_recall(-1, h, next, &all[next][h]);
}

static void save(int argc, char **argv)
{
	json_t *command = prov_command(argc, argv, opts, OPT_TALKS), *meta;
	uint64_t seed = (uint64_t)o.seed;
	struct prov p = { .program = err_prog, .command = command, .seed = &seed,
	    .parent_metadata = s.metadata, .parent = s.fingerprint };

	meta = prov_metadata(&p);
	must(foresee_save(s.heads, infer.model, meta, &s.e) < 0);
	json_decref(meta);
	json_decref(command);
}

static void stop_early(void)
{
	if (sig_stop)
		err_die(EX_TEMPFAIL, "stopped by signal %d, nothing was written", (int)sig_stop);
}

static void make_heads(void)
{
	const struct foresee_opt fo = { .batch = o.batch, .epochs = o.epochs, .lr = o.lr,
	    .decay = o.decay, .seed = (uint64_t)o.seed };

	s.heads = foresee_new(&infer.cfg, s.fingerprint, o.width, o.horizons, s.norms,
	    (uint64_t)o.seed);
	if (s.heads == NULL)
		err_die(EX_OSERR, "out of memory");
	must(foresee_fit_open(&s.fit, s.heads, &s.spool, s.router, infer.be, &fo, &s.e) < 0);
}

static void close_all(void)
{
	foresee_fit_close(&s.fit);
	foresee_free(s.heads);
	foresee_spool_close(&s.spool);
	mem_free(s.router);
	mem_free(s.routers);
	mem_free(s.norms);
	mem_free(s.inputs);
	mem_free(s.topk);
	json_decref(s.metadata);
	infer_close();
}

int main(int argc, char **argv)
{
	struct corpus *texts = NULL;
	int first;

	err_init(argv[0]);
	infer.pages = true;
	human_table("step", "layer loss tokens mem_bytes", true);
	human_table("recall", "layer horizon foresee foresee_whole gate gate_whole previous "
	    "popularity", false);
	human_table("eval", "horizon next_token foresee foresee_whole gate gate_whole previous "
	    "popularity", false);
	first = opt_parse(argc, argv, opts, &prog);
	sig_install();
	infer_begin(false);
	if (infer.cfg.num_sparse == 0)
		err_die(EX_DATAERR, "%s: no layer has experts", infer.model);
	if (o.horizons > infer.cfg.num_sparse)
		o.horizons = infer.cfg.num_sparse;
	if (o.width == 0)
		o.width = infer.cfg.hidden_size < 512 ? (infer.cfg.hidden_size + 3) / 4 : 128;
	o.seq = infer_seq(infer.model, &infer.cfg, o.seq, 0);
	if (!infer.dry_run)
		texts = open_texts(argc - first, argv + first);
	infer_open(1, o.seq, o.chunk, plan(&infer.cfg) + (texts ? corpus_bytes(texts) : 0));
	read_model();
	must(foresee_spool_open(&s.spool, o.spool ? o.spool : infer.model, &infer.cfg, o.tokens,
	    o.chunk, &s.e) < 0 || (s.seq = seq_new(infer.g, &s.e)) == NULL);
	s.inputs = mem_alloc((size_t)o.chunk * (size_t)infer.cfg.num_sparse *
	    (size_t)infer.cfg.hidden_size * sizeof *s.inputs);
	s.topk = mem_alloc((size_t)o.chunk * (size_t)infer.cfg.num_sparse *
	    (size_t)infer.cfg.num_experts_per_tok * sizeof *s.topk);
	run_texts(texts);
	corpus_close(texts);
	stop_early();
	make_heads();
	train();
	stop_early();
	save(argc, argv);
	close_all();
	err_close_stdout();
	return EX_OK;
}
