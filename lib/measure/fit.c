#include "measure/fit.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "train/chat.h"
#include "base/comm.h"
#include "decode/decode.h"
#include "stages/distill.h"
#include "base/file.h"
#include "format/gguf_model.h"
#include "format/modeldir.h"
#include "decode/gentext.h"
#include "stages/grpo_int.h"
#include "experts/usage.h"
#include "base/human.h"
#include "base/json.h"
#include "base/jsonfile.h"
#include "stages/teacher_live.h"
#include "stages/loss_pref.h"
#include "train/train_plan.h"
#include "base/pool.h"
#include "stages/prefs.h"
#include "backend/quant.h"
#include "text/tok.h"
#include "stages/teacher_topk.h"

#define MAX_ROWS (INT32_MAX / 64)	/* of a batch: model_open's */
#define MAX_BATCH 65536
#define MAX_SEQS 1024			/* of chr-generate */
#define SHORTEST 16			/* sequence that is still proposed */
#define TOKEN_BYTES 110			/* of a tokenizer, by entry of its vocabulary, about */

const char *const fit_stage_name[FIT_STAGES] = { "pretrain", "sft", "dpo", "orpo", "grpo",
    "distill", "generate" };

/* --- the plan --- */

static struct train_opt train_opt(const struct fit *f, const struct fit_point *at)
{
	return (struct train_opt){ .batch = at->batch, .accum = at->accum, .seq = at->seq,
	    .eval = f->o->eval, .epochs = 1,
	    .shuffle = true, .shuffle_window = f->o->window, .data_ram = f->o->data_ram };
}

static bool pairs(const struct fit *f)
{
	return f->o->stage == FIT_DPO || f->o->stage == FIT_ORPO;
}

/* What the trainers' own struct stage and options say; tests/fit.t compares. */
static void settle(struct fit *f)
{
	const struct fit_opt *o = f->o;

	f->ref = o->ref == FIT_REF_YES || (o->ref == FIT_REF_AUTO && o->stage != FIT_PRETRAIN);
	f->group = pairs(f) ? 2 : o->stage == FIT_GRPO ? o->group : 1;
	f->asked = (struct fit_point){ o->batch, o->accum, o->seq, o->rank, false };
	if (f->asked.batch == 0)
		f->asked.batch = o->stage == FIT_GENERATE ? 1 : pairs(f) || o->stage == FIT_GRPO ? 2
		    : 8;
	if (f->asked.accum == 0)
		f->asked.accum = 1;
	if (f->asked.seq == 0)
		f->asked.seq = o->stage == FIT_GENERATE ? 2048 : 512;
	if (o->seq == 0 && f->asked.seq > f->cfg.max_position_embeddings)
		f->asked.seq = f->cfg.max_position_embeddings;
	f->train = train_opt(f, &f->asked);
	if (pairs(f) || o->stage == FIT_GRPO)
		chat_flags.truncate = CHAT_DROP;
	grpo_flags.group = o->group;
	grpo_flags.parallel = o->parallel;
	grpo_flags.max_new = o->max_new > 0 ? o->max_new : grpo_flags.max_new;
	grpo_flags.reward = o->reward;
}

static const struct source *source(const struct fit *f, int seq)
{
	switch (f->o->stage) {
	case FIT_SFT: return &chat_source;
	case FIT_DPO: case FIT_ORPO: return &prefs_source;
	case FIT_GRPO: return &grpo_source;
	case FIT_DISTILL: return f->o->topk > 0 ? teacher_topk_source(f->o->topk, f->o->temperature,
	    seq) : &chat_text_source;
	default: return &packed_source;
	}
}

/* Goes through the data as the trainer does when it starts, and holds what that would. */
static int open_data(struct fit *f, struct err *e)
{
	const struct source *s = source(f, f->asked.seq);
	const struct fit_opt *o = f->o;

	f->data = o->data;
	if (o->stage == FIT_GENERATE)
		return 0;
	if (o->nfiles > 0) {
		if ((f->src = s->open(&f->train, &f->cfg, f->tok, o->nfiles, o->files, false, e)) ==
		    NULL)
			return -1;
		f->data = s->bytes(f->src);
	}
	if (o->eval == NULL)
		return 0;
	if ((f->eval_src = s->open(&f->train, &f->cfg, f->tok, 1, (char *const *)&o->eval, true, e))
	    == NULL)
		return -1;
	f->data += s->bytes(f->eval_src);
	return 0;
}

static bool has_file(const char *dir, const char *name)
{
	char *path = dir != NULL ? file_join(dir, name) : NULL;
	bool there = path != NULL && access(path, F_OK) == 0;

	free(path);
	return there;
}

static bool has_tokenizer(const char *dir)
{
	char *path = dir != NULL ? tok_find(dir) : NULL;
	bool there = path != NULL;

	free(path);
	return there;
}

static int open_packed(struct fit *f, struct err *e)
{
	bool there = f->o->model != NULL && has_file(f->o->model, MANIFEST_NAME);

	f->packed = there || (f->o->model == NULL && f->o->packed) ||
	    (f->o->as_packed && f->cfg.num_sparse > 0);
	f->supposed = !there && (f->o->model == NULL || f->o->as_packed);
	if (f->o->stage != FIT_GENERATE || !f->packed)
		return 0;
	if (f->supposed) {
		int F = f->cfg.moe_intermediate_size, D = f->cfg.hidden_size;
		int64_t in = (int64_t)mat_bytes(f->expert, F, D);

		f->man = (struct manifest){ .layers = f->cfg.num_hidden_layers,
		    .experts = f->cfg.num_experts, .nclusters = 1,
		    .gate_bytes = in, .up_bytes = in, .down_bytes = (int64_t)mat_bytes(f->expert,
		    D, F) };
		return 0;
	}
	return manifest_load_dir(&f->man, f->o->model, e);
}

/* What the program to be run holds besides its plan: as much as this one, which has opened the
 * same files. */
static int64_t program_bytes(struct fit *f)
{
	struct mem_plan plan;
	struct err e = { 0 };
	int64_t tok = f->tok == NULL ? (int64_t)f->cfg.vocab_size * TOKEN_BYTES : 0;
	int64_t held = f->data - (f->o->nfiles > 0 ? 0 : f->o->data);

	if (f->o->stage != FIT_GENERATE)
		return mem_program(pool_threads()) + MEM_JITTER + tok - held;
	/* For what planning takes itself; a plan that fails will do so again where it is used. */
	if (fit_plan(f, &f->asked, &plan, &e) < 0)
		plan.n = 0;
	return engine_program() + MEM_JITTER + tok;
}

bool fit_has_weights(const char *dir)
{
	struct err none = { 0 };
	char *gguf = NULL;
	bool there = dir && gguf_path(dir, &gguf, &none) > 0;

	free(gguf);
	return there || has_file(dir, "model.safetensors") ||
	    has_file(dir, "model.safetensors.index.json");
}

enum dtype fit_config_dtype(const struct config *c)
{
	const json_t *v = json_object_get(c->raw, "dtype");
	const char *s = json_string_value(v ? v : json_object_get(c->raw, "torch_dtype"));

	return s && strcmp(s, "float32") == 0 ? DT_F32 : s && strcmp(s, "float16") == 0 ? DT_F16
	    : DT_BF16;
}

/* Are the tensors those of the config? And of what type are experts? */
static int check_weights(struct fit *f, struct err *e)
{
	struct modeldir md;
	int rc = 0, i = 0;

	if (modeldir_open(&md, f->o->model, 0, NULL, e) < 0)
		return -1;
	while (i < md.par.n && !param_routed(&md.par.p[i]))
		i++;
	if (f->o->as_packed && f->o->expert == DT_F32 && !md.packed && i < md.par.n)
		rc = modeldir_type(&md, &md.par.p[i], &f->expert, e);
	modeldir_close(&md);
	return rc;
}

int fit_open(struct fit *f, const struct fit_opt *o, struct err *e)
{
	const char *path = o->config != NULL ? o->config : o->model, *tok = o->tokenizer;

	*f = (struct fit){ .o = o, .expert = o->expert };
	if ((f->be = backend_open("cpu", e)) == NULL ||
	    modeldir_config(&f->cfg, path, o->sets.n, (const char *const *)o->sets.v, e) < 0)
		return -1;
	if (o->stage != FIT_GENERATE && config_trains(&f->cfg, e) < 0)
		return -1;
	if (fit_has_weights(o->model) && check_weights(f, e) < 0)
		return -1;
	if (o->as_packed && o->expert == DT_F32 && !fit_has_weights(o->model))
		f->expert = fit_config_dtype(&f->cfg);
	settle(f);
	if (f->asked.seq > f->cfg.max_position_embeddings && o->stage != FIT_GENERATE)
		return err_set(e, EX_USAGE, "--seq %d is above the model's max_position_embeddings "
		    "%d", f->asked.seq,
		    f->cfg.max_position_embeddings);
	if (tok == NULL && !o->as_packed && has_tokenizer(o->model))
		tok = o->model;
	if (tok != NULL && ((f->tok = tok_load(tok, e)) == NULL ||
	    tok_fits(f->tok, f->cfg.vocab_size, tok, e) < 0))
		return -1;
	if (params_build(&f->ps, &f->cfg, e) < 0 || open_packed(f, e) < 0 || open_data(f, e) < 0)
		return -1;
	f->program = program_bytes(f);
	if (o->expert_parallel > 1 && (o->stage == FIT_GRPO || o->stage == FIT_GENERATE))
		return err_set(e, EX_USAGE, "%s needs all experts on each rank: no "
		    "--expert-parallel", fit_stage_name[o->stage]);
	/* Last: the data were read by one. */
	return comm_suppose(o->ranks, o->expert_parallel, e) < 0 ? -1 : params_divide(&f->ps,
	    o->expert_parallel, 0, e);
}

void fit_close(struct fit *f)
{
	const struct source *s = source(f, f->asked.seq);

	if (f->src != NULL)
		s->close(f->src);
	if (f->eval_src != NULL)
		s->close(f->eval_src);
	manifest_free(&f->man);
	params_free(&f->ps);
	tok_free(f->tok);
	config_free(&f->cfg);
}

static int plan_teacher(struct fit *f, const struct stage_env *v, struct mem_plan *plan,
    struct err *e)
{
	struct teacher_live_opt where = { .dir = f->o->teacher, .ram = f->o->teacher_ram,
	    .budget = "--teacher-ram", .T = v->o->seq };
	const struct distill d = { .teacher = f->o->topk > 0 ? teacher_topk_teacher
	    : (struct teacher){ .rows = teacher_live_rows } };
	struct mem_plan own = { 0 };
	char fingerprint[33];

	if (f->teacher_seq != v->o->seq) {
		if (teacher_live_plan_stage(&where, &d, v, fingerprint, &own, e) < 0)
			return -1;
		f->teacher = mem_plan_total(&own);
		f->teacher_seq = v->o->seq;
	}
	mem_plan_add(plan, "teacher", f->teacher);
	return 0;
}

/* What the stage holds besides. */
static int plan_stage(struct fit *f, const struct fit_point *at, struct mem_plan *plan,
    struct err *e)
{
	const struct train_opt o = train_opt(f, at);
	const struct stage_env v = { .o = &o, .cfg = &f->cfg, .tok = f->tok, .be = f->be,
	    .sequences = at->batch * f->group };

	if (f->o->stage == FIT_GRPO)
		return grpo_plan(&v, plan, e);
	return f->o->stage == FIT_DISTILL ? plan_teacher(f, &v, plan, e) : 0;
}

static int plan_training(struct fit *f, const struct fit_point *at, struct mem_plan *plan,
    struct err *e)
{
	struct train_plan_run r = { .cfg = &f->cfg, .batch = at->batch, .accum = at->accum,
	    .seq = at->seq, .group = f->group,
	    .extra = source(f, at->seq)->extra, .ref = f->ref, .lora_rank = at->rank,
	    .recompute = at->recompute, .divided = f->o->expert_parallel };
	bool *picked = NULL;
	int rc = train_plan_pick(&picked, &f->cfg, &f->ps, at->rank, &f->o->target,
	    &f->o->freeze, e);

	r.picked = picked;
	if (rc == 0) {
		train_plan_run(plan, &r, &f->ps, f->be);
		mem_plan_add(plan, "training data", f->data);
		mem_plan_add(plan, "program and tokenizer", f->program);
	}
	mem_free(picked);
	return rc == 0 ? plan_stage(f, at, plan, e) : rc;
}

/* slots: bytes for experts; 0: what the limit leaves. */
static int plan_engine(struct fit *f, const struct fit_point *at, int64_t slots,
    struct mem_plan *plan, struct err *e)
{
	struct engine_opt o = { .budget = "--ram", .max_seqs = at->batch, .max_tokens = at->seq,
	    .max_rows = f->o->chunk,
	    .kv = (enum kv_type)f->o->kv, .predict = f->o->predict,
	    .other = gentext_bytes(f->cfg.vocab_size, at->batch) + (f->o->heat
	    ? usage_bytes(&f->cfg) : 0) + f->program,
	    .store = { .reader.threads = f->o->readers, .bytes = slots } };

	/* A calibration says that the process will take more, or less, than is planned within
	 * the limit. */
	if (slots == 0)
		o.ram = f->o->factor > 0 ? (int64_t)((double)f->o->ram / f->o->factor) : f->o->ram;
	if (!f->supposed)
		return engine_plan(f->o->model, &o, plan, e);
	return engine_plan_config(&f->cfg, &f->ps, f->o->dense, f->expert, f->packed, &o, plan, e);
}

int fit_plan(struct fit *f, const struct fit_point *at, struct mem_plan *plan, struct err *e)
{
	*plan = (struct mem_plan){ 0 };
	return f->o->stage == FIT_GENERATE ? plan_engine(f, at, 0, plan, e) : plan_training(f, at,
	    plan, e);
}

int64_t fit_bytes(const struct fit *f, const struct mem_plan *plan)
{
	return (int64_t)((double)mem_plan_total(plan) * f->o->factor);
}

int64_t fit_device_bytes(const struct fit *f, const struct mem_plan *plan)
{
	static const char *const host[] = { "program", "program and tokenizer", "training data",
	    "batches", "rollouts",
	    "checkpoint in transit", "expert store", "predictor" };
	int64_t total = mem_plan_total(plan);

	for (int i = 0; i < plan->n; i++)
		for (size_t k = 0; k < sizeof host / sizeof *host; k++)
			if (strcmp(plan->item[i].name, host[k]) == 0)
				total -= plan->item[i].bytes;
	return (int64_t)((double)total * f->o->factor);
}

bool fit_holds(const struct fit *f, const struct mem_plan *plan)
{
	return (f->o->ram == 0 || fit_bytes(f, plan) <= f->o->ram) &&
	    (f->o->vram == 0 || fit_device_bytes(f, plan) <= f->o->vram);
}

static int64_t slot_bytes(const struct fit *f)
{
	return store_min_bytes(&f->cfg, &f->man) / ((int64_t)f->cfg.num_experts_per_tok *
	    f->cfg.num_sparse);
}

int fit_slots(const struct fit *f, const struct mem_plan *plan)
{
	int64_t n = (int64_t)f->cfg.num_sparse * f->cfg.num_experts, have = 0, over;

	if (f->o->stage != FIT_GENERATE || !f->packed || n == 0)
		return -1;
	for (int i = 0; i < plan->n; i++)
		if (strcmp(plan->item[i].name, "expert store") == 0)
			have = plan->item[i].bytes;
	for (; n > 0; n -= over > slot_bytes(f) ? over / slot_bytes(f) : 1) {
		const struct store_opt so = { .reader.threads = f->o->readers,
		    .bytes = n * slot_bytes(f) };

		if ((over = store_plan_bytes(&f->cfg, &f->man, &so) - have) <= 0)
			return (int)n;
	}
	return 0;
}

/* --- one record after another --- */

static json_t *record(const struct fit *f, const char *step, const struct fit_point *at)
{
	bool generate = f->o->stage == FIT_GENERATE;
	json_t *r = json_pack("{s:s, s:s, s:s, s:i}", "type", "fit", "step", step, "stage",
	    fit_stage_name[f->o->stage],
	    "batch", at->batch);

	if (!generate)
		json_set_int(r, "accum", at->accum);
	json_set_int(r, generate ? "context" : "seq", at->seq);
	if (at->rank > 0)
		json_set_int(r, "rank", at->rank);
	if (at->recompute)
		json_object_set_new(r, "recompute", json_true());
	return r;
}

static void add_numbers(const struct fit *f, json_t *r, const struct mem_plan *plan, bool holds)
{
	int slots = fit_slots(f, plan);

	if (slots >= 0) {
		json_set_int(r, "slots", slots);
		json_set_int(r, "experts", (int64_t)f->cfg.num_sparse * f->cfg.num_experts);
	}
	json_set_int(r, "bytes", fit_bytes(f, plan));
	if (f->o->vram > 0)
		json_set_int(r, "device_bytes", fit_device_bytes(f, plan));
	json_object_set_new(r, "fits", json_boolean(holds));
}

static int put(json_t *r, struct err *e)
{
	int rc = human_put(r, e);

	json_decref(r);
	return rc;
}

/* 1: fits, 0: does not, -1. */
static int holds(struct fit *f, const struct fit_point *at, struct mem_plan *plan, struct err *e)
{
	if ((int64_t)at->batch * f->group * at->seq > MAX_ROWS && f->o->stage != FIT_GENERATE)
		return err_set(e, EX_USAGE, "a batch of %d sequences of %d tokens is too large",
		    at->batch * f->group, at->seq);
	if (fit_plan(f, at, plan, e) == 0)
		return fit_holds(f, plan);
	if (f->o->stage != FIT_GENERATE || e->status != EX_OSERR || plan->n == 0)
		return -1;
	*e = (struct err){ 0 };
	return 0;
}

static int try(struct fit *f, const char *step, const struct fit_point *at, struct mem_plan *plan,
    struct err *e)
{
	int rc = holds(f, at, plan, e);
	json_t *r;

	if (rc < 0)
		return -1;
	r = record(f, step, at);
	add_numbers(f, r, plan, rc);
	return put(r, e) < 0 ? -1 : rc;
}

/* The largest value of *x (of *at), from least to most, with which it fits, or 0; and its plan,
 * or that of least. */
static int largest(struct fit *f, struct fit_point *at, int *x, int least, int most,
    struct mem_plan *plan, struct err *e)
{
	int lo = least - 1, hi = most;

	while (lo < hi) {
		int rc;

		*x = lo + (int)(((int64_t)hi - lo + 1) / 2);
		if ((rc = holds(f, at, plan, e)) < 0)
			return -1;
		if (rc)
			lo = *x;
		else
			hi = *x - 1;
	}
	*x = lo < least ? least : lo;
	if (holds(f, at, plan, e) < 0)
		return -1;
	*x = lo < least ? 0 : lo;
	return 0;
}

static int most_batch(const struct fit *f, const struct fit_point *at)
{
	int64_t n = f->o->stage == FIT_GENERATE ? MAX_SEQS
	    : MAX_ROWS / ((int64_t)f->group * at->seq);

	return (int)(n < MAX_BATCH ? n : MAX_BATCH);
}

static int most_seq(const struct fit *f, const struct fit_point *at)
{
	int64_t n = f->o->stage == FIT_GENERATE ? INT64_MAX
	    : MAX_ROWS / ((int64_t)f->group * at->batch);
	int most = f->cfg.max_position_embeddings > f->asked.seq ? f->cfg.max_position_embeddings
	    : f->asked.seq;

	return (int)(n < most ? n : most);
}

/* A record of the largest *x; x is in *at. */
static int put_largest(struct fit *f, const char *step, struct fit_point *at, int *x, int least,
    int most,
    struct err *e)
{
	struct mem_plan plan;
	json_t *r;

	if (most < least)
		return 0;
	if (largest(f, at, x, least, most, &plan, e) < 0)
		return -1;
	r = record(f, step, at);
	add_numbers(f, r, &plan, *x >= least);
	return put(r, e);
}

/* --- what to change --- */

/* Fewer sequences at a time and as many more times, so that what a step learns from is the same. */
static int lower_batch(struct fit *f, struct fit_result *x, struct err *e)
{
	const int whole = x->at.batch * x->at.accum;
	int rc = 0;

	for (int b = x->at.batch - 1; b > 0 && rc == 0; b--) {
		if (whole % b != 0)
			continue;
		x->at.batch = b;
		x->at.accum = whole / b;
		rc = try(f, "batch", &x->at, &x->plan, e);
	}
	return rc;
}

static int lower_sequences(struct fit *f, struct fit_result *x, struct err *e)
{
	if (largest(f, &x->at, &x->at.batch, 1, x->at.batch, &x->plan, e) < 0)
		return -1;
	if (x->at.batch == 0)
		x->at.batch = 1;
	return try(f, "batch", &x->at, &x->plan, e);
}

static int lower_seq(struct fit *f, struct fit_result *x, struct err *e)
{
	if (largest(f, &x->at, &x->at.seq, SHORTEST, x->at.seq, &x->plan, e) < 0)
		return -1;
	if (x->at.seq == 0)
		x->at.seq = SHORTEST;
	return try(f, "seq", &x->at, &x->plan, e);
}

static int lower_rank(struct fit *f, struct fit_result *x, struct err *e)
{
	int rc = 0;

	while (x->at.rank > 1 && rc == 0) {
		x->at.rank /= 2;
		rc = try(f, "rank", &x->at, &x->plan, e);
	}
	return rc;
}

static int change(struct fit *f, struct fit_result *x, struct err *e)
{
	bool generate = f->o->stage == FIT_GENERATE;
	int rc = 0;

	if (!generate) {
		x->at.recompute = true;
		rc = try(f, "recompute", &x->at, &x->plan, e);
	}
	if (rc == 0 && x->at.batch > 1)
		rc = generate ? lower_sequences(f, x, e) : lower_batch(f, x, e);
	if (rc == 0 && f->o->allow_seq && x->at.seq > SHORTEST)
		rc = lower_seq(f, x, e);
	if (rc == 0 && f->o->allow_rank)
		rc = lower_rank(f, x, e);
	return rc;
}

void fit_args(const struct fit *f, const struct fit_point *p, char *s, size_t size)
{
	int n = f->o->stage == FIT_GENERATE ? snprintf(s, size, "-b %d --context %d", p->batch,
	    p->seq)
	    : snprintf(s, size, "-b %d --accum %d --seq %d", p->batch, p->accum, p->seq);

	if (p->rank > 0)
		n += snprintf(s + n, size - (size_t)n, " --lora-rank %d", p->rank);
	if (p->recompute)
		n += snprintf(s + n, size - (size_t)n, " --recompute");
	if (f->o->expert_parallel > 1)
		snprintf(s + n, size - (size_t)n, " --expert-parallel %d", f->o->expert_parallel);
}

static int put_plan(const struct fit *f, const struct fit_result *x, struct err *e)
{
	json_t *r = mem_plan_json(&x->plan), *more = record(f, "", &x->at);
	char args[192];

	fit_args(f, &x->at, args, sizeof args);
	json_object_del(more, "type");
	json_object_del(more, "step");
	add_numbers(f, more, &x->plan, x->fits);
	json_object_update(r, more);
	json_decref(more);
	json_set_int(r, "parameters", f->ps.count);
	json_set_str(r, "args", args);
	return put(r, e);
}

int fit_reason(struct fit *f, struct fit_result *x, struct err *e)
{
	struct fit_point p = f->asked;
	int rc;

	*x = (struct fit_result){ .at = p };
	if ((rc = try(f, "asked", &p, &x->plan, e)) < 0)
		return -1;
	x->as_asked = rc;
	if (!x->as_asked && (rc = change(f, x, e)) < 0)
		return -1;
	x->fits = rc;
	if (put_largest(f, "largest_batch", &p, &p.batch, 1, most_batch(f, &p), e) < 0)
		return -1;
	p = f->asked;
	if (put_largest(f, "longest_seq", &p, &p.seq, 2, most_seq(f, &p), e) < 0)
		return -1;
	if (holds(f, &x->at, &x->plan, e) < 0)
		return -1;
	return put_plan(f, x, e);
}

/* --- speed --- */

/* A speed may be missing, but what is there is a number. */
static int check_numbers(const json_t *rec, struct err *e)
{
	static const char *const key[] = { "slots", "tok_per_s_planned",
		"read_bytes_per_token" };

	for (size_t i = 0; i < sizeof key / sizeof *key; i++) {
		const json_t *v = json_object_get(rec, key[i]);

		if (v && !json_is_number(v) && !json_is_null(v))
			return err_set(e, EX_DATAERR, "\"%s\" is %s, not a number", key[i],
			    jsonfile_kind(v));
	}
	return 0;
}

static int put_speed(struct fit *f, const json_t *rec, struct err *e)
{
	const json_t *policy = json_object_get(rec, "policy");
	json_int_t slots = json_integer_value(json_object_get(rec, "slots"));
	double speed = json_number_value(json_object_get(rec, "tok_per_s_planned"));
	struct mem_plan plan = { 0 };
	json_t *r;

	if (check_numbers(rec, e) < 0)
		return -1;
	if (slots < 1 || slots > (json_int_t)f->cfg.num_sparse * f->cfg.num_experts)
		return err_set(e, EX_DATAERR, "%lld slots: the model has %d experts",
		    (long long)slots,
		    f->cfg.num_sparse * f->cfg.num_experts);
	if (plan_engine(f, &f->asked, slots * slot_bytes(f), &plan, e) < 0)
		return -1;
	r = record(f, "speed", &f->asked);
	json_set_str(r, "policy", json_is_string(policy) ? json_string_value(policy) : "");
	json_set_num(r, "read_bytes_per_token",
	    json_number_value(json_object_get(rec, "read_bytes_per_token")));
	if (speed > 0) {
		json_set_num(r, "tok_per_s", speed);
		json_set_num(r, "bytes_per_tok_per_s", (double)fit_bytes(f, &plan) / speed);
	}
	add_numbers(f, r, &plan, fit_holds(f, &plan));
	return put(r, e);
}

int fit_replay(struct fit *f, const char *file, struct err *e)
{
	char *const names[] = { (char *)file };
	struct jsonl *in;
	json_t *rec;
	int n = 0, rc = 0;

	if (f->o->stage != FIT_GENERATE || !f->packed)
		return err_set(e, EX_USAGE, "--replay is for --stage generate and a packed model");
	if ((in = jsonl_open(1, names, false, e)) == NULL)
		return -1;
	while (rc == 0 && (rec = jsonl_next(in, e)) != NULL) {
		const char *work = json_string_value(json_object_get(rec, "workload"));
		const char *policy = json_string_value(json_object_get(rec, "policy"));

		if (work != NULL && strcmp(work, "replay") == 0 &&
		    (policy == NULL || strcmp(policy, "belady") != 0)) {
			struct err why = { 0 };

			n++;
			if (put_speed(f, rec, &why) < 0)
				rc = why.status == EX_DATAERR ? jsonl_bad(in, e, "%s", why.msg)
				    : err_set(e, why.status, "%s", why.msg);
		}
		json_decref(rec);
	}
	jsonl_close(in);
	if (rc < 0 || e->status != 0)
		return -1;
	return n > 0 ? 0 : err_set(e, EX_DATAERR, "%s: no records of chr-bench replay", file);
}
