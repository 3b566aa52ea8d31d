#include "train/train_impl.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/comm.h"
#include "train/docpack.h"
#include "base/file.h"
#include "base/json.h"
#include "format/modeldir.h"
#include "format/sidefiles.h"
#include "train/train_plan.h"
#include "train/upcycle.h"
#include "base/pool.h"
#include "base/sig.h"

/* --- documents, packed: the source of stages that learn from every token --- */

static void *packed_open(const struct train_opt *o, const struct config *c, struct tok *t,
    int nfiles,
    char *const files[], bool eval, struct err *e)
{
	const struct docpack_opt d = { .tok = t, .vocab = c->vocab_size, .T = o->seq,
	    .shuffle = o->shuffle && !eval,
	    .window = eval ? 0 : o->shuffle_window, .ram = o->data_ram, .skip_bad = o->skip_bad,
	    .seed = (uint64_t)o->seed, .epochs = eval ? 1 : o->epochs };

	return docpack_open(nfiles, files, &d, e);
}

static void packed_close(void *self)
{
	docpack_close(self);
}

static bool packed_streams(const void *self)
{
	return docpack_streams(self);
}

static int64_t packed_rows(const void *self)
{
	return docpack_rows(self);
}

static int64_t packed_bytes(const void *self)
{
	return docpack_bytes(self);
}

static json_t *packed_identity(const void *self)
{
	return json_pack("{s:I, s:I}", "documents", (json_int_t)docpack_docs(self), "data_tokens",
	    (json_int_t)docpack_tokens(self));
}

/* Of every rank B rows: goes by those of others. */
static int packed_next(void *self, struct micro *mb, int B, struct err *e)
{
	int first = 0, rc;

	mb->b.B = 0;
	for (int r = 0; r < comm_size(); r++) {
		if ((rc = docpack_next(self, r == comm_rank() ? &mb->b : NULL, B, e)) < 0)
			return -1;
		first |= rc;
	}
	return first;
}

static json_t *packed_position(const void *self)
{
	return docpack_position(self);
}

static int packed_seek(void *self, const json_t *position, struct err *e)
{
	return docpack_seek(self, position, e);
}

static json_t *packed_inputs(const void *self)
{
	return docpack_inputs(self);
}

static struct corpus *packed_corpus(void *self)
{
	return docpack_corpus(self);
}

const struct source packed_source = {
	.open = packed_open, .close = packed_close, .streams = packed_streams, .rows = packed_rows,
	.bytes = packed_bytes, .identity = packed_identity, .next = packed_next,
	    .position = packed_position, .seek = packed_seek,
	.inputs = packed_inputs, .corpus = packed_corpus,
};

/* --- options --- */

static bool given(const struct train *t, const char *name)
{
	size_t i, n = strlen(name);
	json_t *v;

	json_array_foreach(t->command, i, v) {
		const char *s = json_string_value(v);

		if (strncmp(s, "--", 2) == 0 && strncmp(s + 2, name, n) == 0 && s[2 + n] == '=')
			return true;
	}
	return false;
}

static int check_options(struct train *t, struct err *e)
{
	struct train_opt *o = &t->o;

	if (o->upcycle != NULL && (o->config != NULL || o->model != NULL))
		return err_set(e, EX_USAGE, "--upcycle says what the model is, so it goes without "
		    "-c and -m");
	if (o->upcycle_drop > 0 && o->upcycle == NULL)
		return err_set(e, EX_USAGE, "--upcycle-drop needs --upcycle DIR");
	if (o->config == NULL && o->model == NULL && o->upcycle == NULL && !o->resume)
		return err_set(e, EX_USAGE, "a new model needs a configuration: -c FILE (or -m DIR "
		    "to go on from a model)");
	if (o->out == NULL && o->grad_dump == NULL && !o->dry_run && !t->measured)
		return err_set(e, EX_USAGE, "where should the model go? -o DIR");
	if (o->resume && o->out == NULL)
		return err_set(e, EX_USAGE, "--resume needs -o DIR");
	if (o->resume && o->force)
		return err_set(e, EX_USAGE, "--resume and --force contradict each other");
	if (t->s->no_noise && ((given(t, "dropout") && o->dropout > 0) ||
	    (given(t, "fallback-mask-prob") && o->mask_prob > 0)))
		return err_set(e, EX_USAGE, "%s compares log-probabilities, so it has neither "
		    "dropout nor missing experts",
		    t->s->name);
	if (o->lora_rank > 0 && o->model == NULL)
		return err_set(e, EX_USAGE, "--lora-rank makes an adapter for a model: -m DIR");
	if (o->lora_rank > 0 && o->freeze.n > 0)
		return err_set(e, EX_USAGE, "--lora-rank freezes the whole model, so it goes "
		    "without --freeze");
	if (o->lora_rank == 0 && (o->lora_target.n > 0 || o->lora_alpha > 0))
		return err_set(e, EX_USAGE, "an adapter needs --lora-rank R");
	if (o->lora_alpha == 0)
		o->lora_alpha = 2 * o->lora_rank;
	if (o->keep_best != NULL && o->eval == NULL)
		return err_set(e, EX_USAGE, "--keep-best needs --eval FILE");
	if (o->patience > 0 && (o->keep_best == NULL || o->eval_every == 0))
		return err_set(e, EX_USAGE, "--patience needs --keep-best and --eval-every");
	if (o->expert_parallel > 1 && t->s->generates)
		return err_set(e, EX_USAGE, "%s generates with the model in training, so each rank "
		    "needs all experts: no "
		    "--expert-parallel", t->s->name);
	if (given(t, "steps") && o->steps > 0 && !given(t, "epochs"))
		o->epochs = 0;
	return 0;
}

/* Looks at OUT: what to go on from, or whether it may be replaced. */
static int look_at_out(struct train *t, struct err *e)
{
	const char *out = t->o.out;

	if (out == NULL || t->o.grad_dump != NULL || t->o.dry_run)
		return 0;
	if (ckpt_lock(out, &t->lock, e) < 0)
		return -1;
	if (t->o.resume && ckpt_newest(out, &t->resume, e) < 0)
		return -1;
	if (t->o.resume && t->resume == NULL && !opt_quiet)
		err_warn("%s: no checkpoint yet, starting from the beginning", out);
	if (t->resume == NULL && !t->o.force && ckpt_occupied(out))
		return err_set(e, EX_CANTCREAT, "%s: holds a model already (--resume goes on, "
		    "--force replaces it)", out);
	if (t->resume == NULL && t->o.config == NULL && t->o.model == NULL && t->o.upcycle == NULL)
		return err_set(e, EX_USAGE, "nothing to resume, and a new model needs -c FILE");
	return 0;
}

/* Rank 0 looks, and the others go by what it found. */
static int check_out(struct train *t, struct err *e)
{
	size_t n = 0;

	if (comm_agree(comm_rank() == 0 ? look_at_out(t, e) : 0, e) < 0)
		return -1;
	n = t->resume != NULL ? strlen(t->resume) + 1 : 0;
	comm_bcast(&n, sizeof n);
	if (n > 0 && t->resume == NULL && (t->resume = malloc(n)) == NULL)
		err_die(EX_OSERR, "out of memory");
	comm_bcast(t->resume, n);
	return 0;
}

/* --- configuration, tokenizer, data --- */

/* Does the configuration ask for this value? A trained model's config.json only tells what its own
 * stage used. */
static bool configured(const struct train *t, const char *key)
{
	size_t n = strlen(key);

	for (int i = 0; i < t->o.sets.n; i++)
		if (strncmp(t->o.sets.v[i], key, n) == 0 && t->o.sets.v[i][n] == '=')
			return true;
	return (t->o.config != NULL || t->o.model == NULL) && json_object_get(t->cfg.raw, key) !=
	    NULL;
}

/* Options first, then config.json, then the stage's defaults. What is used goes into the new
 * config.json. */
static void settle(struct train *t)
{
	struct config *c = &t->cfg;

	if (given(t, "dropout") || !configured(t, "dropout"))
		c->dropout = t->o.dropout;
	if (given(t, "fallback-mask-prob") || !configured(t, "fallback_mask_prob"))
		c->fallback_mask_prob = c->num_shared_experts > 0 ? t->o.mask_prob : 0;
	if (given(t, "anchor-lambda") || !configured(t, "lambda_router_anchor"))
		c->lambda_router_anchor = t->o.model != NULL || given(t, "anchor-lambda")
		    ? t->o.anchor : 0;
	if (t->s->no_noise)
		c->dropout = c->fallback_mask_prob = 0;
	if (!given(t, "seq") && t->o.seq > c->max_position_embeddings)
		t->o.seq = c->max_position_embeddings;
	t->lambda = (struct route_lambda){ c->lambda_balance, c->lambda_temporal,
	    c->lambda_router_locality,
	    c->lambda_lookahead, c->lambda_lookahead_topk, c->lambda_lookahead_union,
	    c->lambda_router_anchor,
	    c->lambda_ahead };
}

/* An adapter holds no new head, and would leave it as it begins. */
static int check_head(const struct train *t, struct err *e)
{
	struct config c;
	int had;

	if (t->o.lora_rank == 0 || t->o.model == NULL || config_lookahead_rows(&t->cfg) == 0)
		return 0;
	if (modeldir_config(&c, t->o.model, 0, NULL, e) < 0)
		return -1;
	had = config_lookahead_rows(&c);
	config_free(&c);
	return had ? 0 : err_set(e, EX_USAGE, "--set lookahead_steps: %s has no lookahead head, "
	    "and an adapter (--lora-rank) cannot hold a new one", t->o.model);
}

static int open_config(struct train *t, struct err *e)
{
	const struct train_opt *o = &t->o;
	const char *path = o->config != NULL ? o->config : o->model != NULL ? o->model : t->resume;
	const char *const *sets = (const char *const *)o->sets.v;

	if ((o->upcycle != NULL ? upcycle_config(&t->cfg, o->upcycle, o->sets.n, sets, e)
	    : modeldir_config(&t->cfg, path, o->sets.n, sets, e)) < 0 ||
	    config_trains(&t->cfg, e) < 0 || check_head(t, e) < 0)
		return -1;
	settle(t);
	if (o->seq > t->cfg.max_position_embeddings)
		return err_set(e, EX_USAGE, "--seq %d is above the model's max_position_embeddings "
		    "%d", o->seq,
		    t->cfg.max_position_embeddings);
	t->has_ref = t->s->needs_ref || t->lambda.anchor > 0;
	if (t->has_ref && o->model == NULL)
		return err_set(e, EX_USAGE, "%s needs a model to start from: -m DIR",
		    t->s->needs_ref ? t->s->name : "the router anchor (--anchor-lambda)");
	return 0;
}

static bool holds_tokenizer(const char *dir)
{
	char *path = dir != NULL ? tok_find(dir) : NULL;
	bool there = path != NULL;

	free(path);
	return there;
}

/* What stands beside the tokenizer is written beside the weights again, whatever it says. */
static int check_beside(const char *path, struct err *e)
{
	const char *slash = strrchr(path, '/');
	char *dir = holds_tokenizer(path) ? strdup(path) : slash != NULL ?
	    strndup(path, (size_t)(slash - path + 1)) : strdup(".");
	int rc = dir == NULL ? err_set(e, EX_OSERR, "out of memory") :
	    sidefiles_own(dir, "tokenizer_config.json", e) < 0 ? -1 :
	    sidefiles_own(dir, "chat_template.jinja", e);

	free(dir);
	return rc;
}

/* The model whose weights the new one begins with; NULL: none. */
static const char *start(const struct train *t)
{
	return t->o.upcycle != NULL ? t->o.upcycle : t->o.model;
}

static int open_tokenizer(struct train *t, struct err *e)
{
	const char *path = t->o.tokenizer;

	if (path == NULL && holds_tokenizer(start(t)))
		path = start(t);
	if (path == NULL && holds_tokenizer(t->resume))
		path = t->resume;
	if (path == NULL)
		return 0;
	if (check_beside(path, e) < 0)
		return -1;
	if ((t->tok = tok_load(path, e)) == NULL)
		return -1;
	if (tok_fits(t->tok, t->cfg.vocab_size, path, e) < 0)
		return -1;
	t->cfg.bos_token_id = tok_bos(t->tok);
	t->cfg.eos_token_id = tok_eos(t->tok);
	t->cfg.pad_token_id = tok_pad(t->tok);
	return 0;
}

static int open_data(struct train *t, struct err *e)
{
	const struct source *s = t->s->source;
	const char *eval = t->o.eval;

	t->src = s->open(&t->o, &t->cfg, t->tok, t->nfiles, t->files, false, e);
	if (t->src == NULL)
		return -1;
	t->streams = s->streams(t->src);
	if (eval == NULL)
		return 0;
	t->eval_src = s->open(&t->o, &t->cfg, t->tok, 1, (char *const *)&t->o.eval, true, e);
	if (t->eval_src == NULL)
		return -1;
	if (s->streams(t->eval_src))
		return err_set(e, EX_USAGE, "--eval %s: must be a regular file, it is read more "
		    "than once", eval);
	return 0;
}

static int64_t ceil_div(int64_t a, int64_t b)
{
	return (a + b - 1) / b;
}

static void plan_steps(struct train *t)
{
	int64_t rows = t->s->source->rows(t->src);
	int64_t total = rows < 0 ? 0 : ceil_div(ceil_div(rows, (int64_t)t->o.batch * comm_size()),
	    t->o.accum);

	if (t->o.steps > 0 && (total == 0 || t->o.steps < total))
		total = t->o.steps;
	t->schedule = (struct schedule){ .base = t->o.lr, .total = total,
	    .warmup = t->o.warmup > 0 ? t->o.warmup : optim_warmup(total > 0 ? total : INT64_MAX) };
}

/* --- memory --- */

static int sequences(const struct train *t)
{
	return t->o.batch * (t->s->group > 0 ? t->s->group : 1);
}

int64_t train_rows(const struct train *t)
{
	return (int64_t)sequences(t) * t->o.seq;
}

static struct stage_env stage_env(const struct train *t, bool planning)
{
	return (struct stage_env){ .o = &t->o, .cfg = &t->cfg, .tok = t->tok, .be = t->be,
	    .m = planning ? NULL : &t->m, .sequences = sequences(t), .src = t->src,
	    .eval_src = t->eval_src,
	    .parent = t->parent };
}

/* An adapter is whole on every rank, and so must be what it is for. */
static int check_adapter(const struct train *t, const struct params *ps, struct err *e)
{
	for (int i = 0; t->o.lora_rank > 0 && i < ps->n; i++)
		if (t->picked[i] && ps->p[i].owner >= 0)
			return err_set(e, EX_USAGE,
			    "%s: experts that --expert-parallel divides cannot have an adapter",
			    ps->p[i].name);
	return 0;
}

static int plan_memory(struct train *t, struct err *e)
{
	const struct stage_env env = stage_env(t, true);
	const struct train_opt *o = &t->o;
	const int64_t data = t->s->source->bytes(t->src) +
	    (t->eval_src != NULL ? t->s->source->bytes(t->eval_src) : 0),
	    program = mem_program(pool_threads()) + (o->dry_run ? MEM_JITTER : 0);
	struct train_plan_run r = { .cfg = &t->cfg, .batch = o->batch, .accum = o->accum,
	    .seq = o->seq, .group = sequences(t) / o->batch,
	    .extra = t->s->source->extra, .ref = t->has_ref, .lora_rank = o->lora_rank,
	    .recompute = o->recompute, .divided = o->expert_parallel };
	const int ranks = comm_local();		/* each takes as much */
	int64_t limit = o->ram, room = o->guard ? guard_room("", o->guard_stop / 100,
	    ranks * mem_peak_rss()) / ranks : 0;
	struct params ps;
	int rc;

	if (o->guard && (limit == 0 || room < limit))
		limit = room > 0 ? room : 1;
	if (params_build(&ps, &t->cfg, e) < 0)
		return -1;
	rc = params_divide(&ps, o->expert_parallel, comm_place(COMM_GROUP, comm_rank()), e);
	if (rc == 0)
		rc = train_plan_pick(&t->picked, &t->cfg, &ps, o->lora_rank, &o->lora_target,
		    &o->freeze, e);
	if (rc == 0)
		rc = check_adapter(t, &ps, e);
	r.picked = t->picked;
	if (rc == 0)
		train_plan_run(&t->plan, &r, &ps, t->be);
	t->parameters = ps.count;
	params_free(&ps);
	mem_plan_add(&t->plan, "training data", data);
	mem_plan_add(&t->plan, "program and tokenizer", program - data);
	if (rc < 0 || (t->s->plan != NULL && t->s->plan(&env, &t->plan, e) < 0))
		return -1;
	/* a small model, and large blocks of records */
	if (mem_plan_total(&t->plan) < mem_peak_rss())
		mem_plan_add(&t->plan, "reading records",
		    mem_peak_rss() - mem_plan_total(&t->plan));
	return mem_plan_check(&t->plan, limit, t->o.recompute ?
	    "a smaller --batch or --seq (and more --accum) needs less" :
	    "--recompute needs less, and so does a smaller --batch or --seq (and more --accum)", e);
}

static void open_batches(struct train *t)
{
	size_t n = (size_t)train_rows(t);

	t->micro = mem_alloc((size_t)t->o.accum * sizeof *t->micro);
	for (int i = 0; i < t->o.accum; i++) {
		t->micro[i].b.tok = mem_alloc(n * sizeof(uint32_t));
		t->micro[i].b.target = mem_alloc(n * sizeof(int32_t));
		t->micro[i].b.doc_start = mem_alloc(n * sizeof(int32_t));
		t->micro[i].b.from = mem_alloc(n * sizeof(int32_t));
		if (t->s->source->extra > 0)
			t->micro[i].extra = mem_alloc((size_t)t->o.batch * t->s->source->extra);
	}
	t->coef = mem_alloc(n * sizeof *t->coef);
	t->logp = mem_alloc(n * sizeof *t->logp);
	route_step_open(&t->route, &t->cfg);
}

/* --- weights --- */

/* What the starting model says of itself, for the ancestry of the new one. */
static int open_parent(struct train *t, struct err *e)
{
	struct modeldir md;
	const char *fingerprint;

	if (start(t) == NULL)
		return 0;
	if (modeldir_open(&md, start(t), 0, NULL, e) < 0)
		return -1;
	t->metadata = modeldir_metadata(&md);
	if ((fingerprint = modeldir_fingerprint(&md, e)) != NULL)
		snprintf(t->parent, sizeof t->parent, "%s", fingerprint);
	modeldir_close(&md);
	return fingerprint != NULL ? 0 : -1;
}

/* The weights to begin with: those of -m, of the checkpoint, or random ones. */
static int first_weights(struct train *t, struct err *e)
{
	if (t->o.model != NULL && (t->resume == NULL || t->o.lora_rank > 0))
		return ckpt_load_weights(t->o.model, &t->m, e);
	if (t->resume != NULL)
		return 0;
	model_init_weights(&t->m, (uint64_t)t->o.seed);
	return t->o.upcycle == NULL ? 0 : upcycle_weights(&t->m, t->o.upcycle, t->o.upcycle_drop,
	    (uint64_t)t->o.seed, e);
}

/* What is trained, its optimizer, and the checkpoint of both. */
static int open_trained(struct train *t, struct err *e)
{
	bool adapter = t->o.lora_rank > 0;

	t->trained = (struct weights){ &t->m.par, t->be, t->m.w, t->m.g };
	if (adapter) {
		if (lora_open(&t->lora, &t->m.par, t->picked, t->o.lora_rank, t->o.lora_alpha,
		    t->be, e) < 0)
			return -1;
		lora_start(&t->lora, t->m.w, (uint64_t)t->o.seed);
		t->trained = (struct weights){ &t->lora.par, t->be, t->lora.w, t->lora.g };
	}
	if (optim_open(&t->opt, t->trained.par, adapter ? NULL : t->picked, t->be,
	    t->o.weight_decay, e) < 0)
		return -1;
	if (t->resume != NULL && ckpt_load(t->resume, &t->trained, &t->opt, e) < 0)
		return -1;
	if (t->resume != NULL && adapter)
		lora_apply(&t->lora, t->m.w);
	if (config_choice_bias(&t->cfg)) {
		t->choice_bias = mem_alloc((size_t)t->cfg.num_sparse * (size_t)t->cfg.num_experts *
		    sizeof *t->choice_bias);
		model_choice_bias(&t->m, t->choice_bias);
	}
	return 0;
}

static int open_models(struct train *t, struct err *e)
{
	const struct model_opt train = { .max_b = sequences(t), .max_t = t->o.seq, .train = true,
	    .bf16 = t->o.compute,
	    .recompute = t->o.recompute, .divided = t->o.expert_parallel };
	const struct model_opt frozen = { .max_b = sequences(t), .max_t = t->o.seq,
	    .bf16 = t->o.compute,
	    .divided = t->o.expert_parallel };

	if (model_open(&t->m, &t->cfg, &train, t->be, e) < 0)
		return -1;
	if (t->has_ref && (model_open(&t->ref, &t->cfg, &frozen, t->be, e) < 0 ||
	    ckpt_load_weights(t->o.model, &t->ref, e) < 0))
		return -1;
	return first_weights(t, e) < 0 || open_trained(t, e) < 0 ? -1 : 0;
}

/* The first change to OUT. */
static int take_out(struct train *t, struct err *e)
{
	if (t->o.out == NULL || t->o.grad_dump != NULL || comm_rank() > 0)
		return 0;
	if (file_mkdirs(t->o.out, e) < 0 || (t->lock < 0 && ckpt_lock(t->o.out, &t->lock, e) < 0) ||
	    ckpt_clean(t->o.out, e) < 0)
		return -1;
	return t->o.force ? ckpt_remove_all(t->o.out, e) : 0;
}

static int prepare_stage(struct train *t, struct err *e)
{
	const struct stage_env env = stage_env(t, true);

	return t->s->prepare != NULL ? t->s->prepare(&env, e) : 0;
}

static int open_stage(struct train *t, struct err *e)
{
	const struct stage_env env = stage_env(t, false);

	return t->s->open != NULL ? t->s->open(&env, e) : 0;
}

static int open_inputs(struct train *t, struct err *e)
{
	if (open_config(t, e) < 0)
		return -1;
	t->be = backend_open_training(train_backend(t), t->cfg.hidden_size, e);
	return t->be == NULL || open_tokenizer(t, e) < 0 ||
	    open_data(t, e) < 0 ? -1 : 0;
}

int train_setup(struct train *t, struct err *e)
{
	if (check_options(t, e) < 0 || comm_divide(t->o.expert_parallel, e) < 0 ||
	    check_out(t, e) < 0)
		return -1;
	pool_init(comm_threads(t->o.threads));
	sig_install();
	if (comm_agree(open_inputs(t, e), e) < 0)
		return -1;
	plan_steps(t);
	if (comm_agree(plan_memory(t, e), e) < 0)
		return -1;
	if (t->o.dry_run)
		return 0;
	if (t->o.guard && (t->guard = guard_open("", t->o.guard_warn / 100, t->o.guard_stop / 100,
	    e)) == NULL)
		return -1;
	open_batches(t);
	if (comm_agree(open_parent(t, e), e) < 0 || comm_agree(prepare_stage(t, e), e) < 0 ||
	    open_models(t, e) < 0 ||
	    (t->resume != NULL && train_restore(t, e) < 0) || open_stage(t, e) < 0)
		return -1;
	return take_out(t, e);
}

void train_teardown(struct train *t)
{
	if (t->s->close != NULL)
		t->s->close();
	for (int i = 0; t->micro != NULL && i < t->o.accum; i++) {
		mem_free(t->micro[i].b.tok);
		mem_free(t->micro[i].b.target);
		mem_free(t->micro[i].b.doc_start);
		mem_free(t->micro[i].b.from);
		mem_free(t->micro[i].extra);
	}
	mem_free(t->micro);
	mem_free(t->coef);
	mem_free(t->logp);
	route_step_close(&t->route);
	route_scratch_free(t->scratch);
	mem_free(t->choice_bias);
	for (size_t i = 0; i < sizeof t->seen / sizeof(struct mirror); i++)
		backend_mirror_free((struct mirror *)&t->seen + i);
	optim_close(&t->opt);
	badstep_close(&t->bad);
	if (t->lora.be != NULL)
		lora_close(&t->lora);
	mem_free(t->picked);
	if (t->m.w != NULL)
		model_close(&t->m);
	if (t->ref.w != NULL)
		model_close(&t->ref);
	if (t->src != NULL)
		t->s->source->close(t->src);
	if (t->eval_src != NULL)
		t->s->source->close(t->eval_src);
	guard_close(t->guard);
	tok_free(t->tok);
	config_free(&t->cfg);
	json_decref(t->position);
	json_decref(t->metadata);
	json_decref(t->command);
	free(t->resume);
	if (t->lock >= 0)
		close(t->lock);
}
