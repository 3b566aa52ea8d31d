#include "train/train.h"

#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/comm.h"
#include "base/human.h"
#include "base/json.h"
#include "train/loss.h"
#include "format/prov.h"
#include "base/rng.h"
#include "base/sig.h"
#include "train/train_impl.h"

/* --- one step --- */

/* Counts a micro-batch, over all ranks. */
static void measure(const struct train *t, struct micro *mb)
{
	struct tally *own = &mb->own;
	double v[3];

	*own = (struct tally){0};
	if (mb->b.B > 0) {
		own->tokens = loss_tokens(&mb->b);
		own->targets = loss_targets(&mb->b);
		own->units = t->s->units != NULL ? t->s->units(mb) : own->targets;
	}
	v[0] = (double)own->tokens, v[1] = (double)own->targets, v[2] = (double)own->units;
	comm_sum(v, 3);
	mb->all = (struct tally){ (int64_t)v[0], (int64_t)v[1], (int64_t)v[2] };
}

/* The same on all ranks. */
static int next_micro(struct train *t, void *src, struct micro *mb, struct err *e)
{
	int rc = comm_agree(t->s->source->next(src, mb, t->o.batch, e), e);

	if (rc > 0)
		measure(t, mb);
	return rc;
}

/* Takes the micro-batches of a step. Their number, 0 at the end of the data, or -1. */
static int take(struct train *t, struct err *e)
{
	const struct source *s = t->s->source;
	int n, rc;

	if (s->midway == NULL || !s->midway(t->src))
		corpus_forget(s->corpus(t->src));
	if (t->streams) {		/* a stop signal may end the wait for records in the
					   middle of this */
		json_decref(t->position);
		t->position = t->s->source->position(t->src);
	}
	for (n = 0; n < t->o.accum; n++) {
		if ((rc = next_micro(t, t->src, &t->micro[n], e)) < 0)
			return -1;
		if (rc == 0)
			break;
	}
	return n;
}

struct pass {			/* through a micro-batch */
	int64_t number;		/* of it in the run, for random numbers */
	struct tally all;	/* of the step or the batch that the loss is a mean over */
	bool train, count;	/* count: take statistics */
	bool loaded;		/* the choices of its experts are counted already */
};

static void forward(struct train *t, const struct micro *mb, const struct pass *p)
{
	const struct forward_opt fo = { .train = p->train, .seed = (uint64_t)t->o.seed,
	    .step = (uint64_t)p->number, .rank = comm_rank(),
	    .fallback_mask_prob = p->train ? t->cfg.fallback_mask_prob : 0,
	    .neftune = t->o.neftune, .replay = mb->replay };

	model_forward(&t->m, &mb->b, &fo);
}

/* Forward and losses of a micro-batch; this rank's part of the sums goes to t->now. */
static void run_micro(struct train *t, const struct micro *mb, const struct pass *p)
{
	const struct forward_opt plain = {0};
	struct stage_in in = { .m = &t->m, .ref = t->has_ref ? &t->ref : NULL, .mb = mb,
	    .targets = p->all.targets, .units = p->all.units, .coef = p->train ? t->coef : NULL,
	    .logp = t->logp, .sum = t->now.sum, .weight = t->now.weight };
	double base = 0;

	if (t->has_ref)
		model_forward(&t->ref, &mb->b, &plain);
	forward(t, mb, p);
	profile_begin(t->m.profile, PROFILE_LOSS);
	if (mb->b.B > 0)
		base = t->s->loss(&in);
	if (!p->loaded)
		train_router_load(t, &mb->b);
	metric_add(&t->now, base, train_router_loss(t, &mb->b, p->train, p->count));
}

static void clear_step(struct train *t)
{
	metric_clear(&t->now);
	route_step_clear(&t->route);
}

/* The balance of a step needs the load of all its micro-batches before the gradients of the
 * first, whose own pass comes next. So the others are gone through twice. */
static bool count_ahead(struct train *t, int n)
{
	bool needed = t->lambda.balance > 0 && t->cfg.num_sparse > 0;

	for (int i = 1; i < n && needed; i++) {
		const struct pass p = { .number = t->step * t->o.accum + i, .train = true };

		forward(t, &t->micro[i], &p);
		train_router_load(t, &t->micro[i].b);
	}
	return needed;
}

/* Sums over batches and ranks are complete. */
static void sum_up(struct train *t)
{
	metric_reduce(&t->now);
	if (t->cfg.num_sparse > 0)
		route_step_end(&t->route);
	route_step_terms(&t->route, &t->now.terms);
}

/* --- the exchange with other ranks, while the model computes --- */

static void need_weights(void *ctx, int layer)
{
	struct train *t = ctx;
	enum profile_part at = t->profile.at;

	profile_begin(t->m.profile, PROFILE_EXCHANGE);
	optim_ready(&t->opt, layer);
	profile_begin(t->m.profile, at);
}

static void begin_sums(void *ctx, int layer)
{
	struct train *t = ctx;

	if (t->last_micro)
		optim_reduce(&t->opt, t->trained.g, layer);
}

static void start_hooks(struct train *t)
{
	t->hooks = (struct model_hooks){ need_weights, begin_sums, t };
	t->m.hooks = comm_size() > 1 && t->o.lora_rank == 0 ? &t->hooks : NULL;
}

/* Gradients of n micro-batches: the sum over ranks, of which each has its part of the
 * parameters. */
static int gradients(struct train *t, int n, bool count, struct err *e)
{
	struct pass p = { .train = true, .count = count };
	bool ahead;

	for (int i = 0; i < n; i++) {
		p.all.targets += t->micro[i].all.targets;
		p.all.units += t->micro[i].all.units;
		p.all.tokens += t->micro[i].all.tokens;
	}
	clear_step(t);
	for (int i = 0; i < n; i++)
		train_router_rows(t, &t->micro[i].b);
	profile_begin(t->m.profile, PROFILE_OPTIM);
	t->be->zero(t->be, t->m.g, (size_t)t->m.par.total * sizeof *t->m.g);
	t->tokens += p.all.tokens;
	t->bad_micro = -1;
	ahead = count_ahead(t, n);
	for (int i = 0; i < n; i++) {
		p.number = t->step * t->o.accum + i;
		p.loaded = ahead && i > 0;
		run_micro(t, &t->micro[i], &p);
		if (comm_any(!isfinite(t->now.loss))) {
			t->bad_micro = i;
			sum_up(t);
			return err_set(e, EX_DATAERR,
			    "step %" PRId64 ", micro-batch %d of %d: the loss is not finite (%g)",
			    t->step + 1, i + 1, n, t->now.loss);
		}
		t->last_micro = i == n - 1;
		model_backward(&t->m, &t->micro[i].b);
	}
	if (t->o.lora_rank > 0)
		lora_gradients(&t->lora, t->m.g);
	profile_begin(t->m.profile, PROFILE_EXCHANGE);
	optim_reduce_end(&t->opt, t->trained.g);
	profile_begin(t->m.profile, PROFILE_OPTIM);
	sum_up(t);
	return 0;
}

/* A measure that is not finite, written as null. (The perplexity of a large finite loss may be.) */
static int check_record(const json_t *rec, struct err *e)
{
	const char *key;
	json_t *v;

	json_object_foreach((json_t *)rec, key, v)
		if (json_is_null(v) && strcmp(key, "perplexity") != 0)
			return err_set(e, EX_DATAERR, "step %" JSON_INTEGER_FORMAT ", %s record: %s"
			    " is not finite", json_integer_value(json_object_get(rec, "step")),
			    json_string_value(json_object_get(rec, "type")), key);
	return 0;
}

/* refused: a step that is passed over because of what is not finite. */
static int put_step(struct train *t, double lr, double norm, bool refused, struct err *e)
{
	double now = progress_clock(), dt = now - t->clock;
	json_t *rec = json_pack("{s:s, s:s, s:I}", "type", "step", "stage", t->s->name, "step",
	    (json_int_t)t->step);
	int rc;

	metric_losses(&t->now, rec);
	metric_stage(&t->now, t->s->metrics, rec);
	json_set_num(rec, "lr", lr);
	json_set_num(rec, "grad_norm", norm);
	json_set_int(rec, "tokens", t->tokens);
	json_set_num(rec, "tok_per_s", dt > 0 ? (double)(t->tokens - t->clock_tokens) / dt : 0);
	metric_routing(&t->now, &t->cfg, t->route.load, rec);
	if (t->bad.most > 0)
		json_set_int(rec, "skipped", t->bad.skipped);
	json_set_int(rec, "mem_bytes", mem_peak_rss());
	json_set_int(rec, "mem_plan", mem_plan_total(&t->plan));
	json_set_int(rec, "mem_peak", mem_peak_rss());
	rc = human_put(rec, e);
	if (rc == 0 && !refused)
		rc = check_record(rec, e);
	json_decref(rec);
	t->clock = now;
	t->clock_tokens = t->tokens;
	return rc;
}

/* Is there anything wrong with the gradients of a step? */
static int check_step(const struct train *t, int n, double norm, struct err *e)
{
	double median;

	if (!isfinite(norm))
		return err_set(e, EX_DATAERR, "step %" PRId64 ", %d micro-batches: the gradient is "
		    "not finite (loss %g)",
		    t->step + 1, n, t->now.loss);
	return badstep_spikes(&t->bad, t->now.loss, &median) ? err_set(e, EX_DATAERR,
	    "step %" PRId64 ": the loss is %g, and"
	    " the median of the steps before %g (--max-spike)", t->step + 1, t->now.loss, median)
	    : 0;
}

/* A step that cannot be taken: the end, or it counts as a step that changed nothing. */
static int refuse_step(struct train *t, int n, bool log, double lr, double norm, struct err *e)
{
	const struct badstep_step s = { t->step + 1, t->micro, n, t->bad_micro,
	    t->s->source->corpus(t->src),
	    comm_rank() * train_rows(t) / t->o.seq };
	bool spike = isfinite(t->now.loss) && isfinite(norm);

	badstep_report(&t->bad, &s, e);
	if (e->status != EX_DATAERR || spike || !badstep_skip(&t->bad))
		return -1;
	progress_clear(&t->progress);
	err_warn("%s; skipped, %" PRId64 " in a row", e->msg, t->bad.row);
	*e = (struct err){0};
	t->step++;
	return log ? put_step(t, lr, norm, true, e) : 0;
}

static int train_step(struct train *t, int n, struct err *e)
{
	bool log = (t->step + 1) % t->o.log_every == 0 || t->step + 1 == t->schedule.total;
	double norm = NAN, lr = optim_lr(&t->schedule, t->step + 1);
	int rc = gradients(t, n, log, e);

	profile_begin(t->m.profile, PROFILE_OPTIM);
	if (rc == 0) {
		norm = optim_norm(&t->opt, t->trained.g);
		rc = check_step(t, n, norm, e);
	}
	if (rc < 0)
		return refuse_step(t, n, log, lr, norm, e);
	optim_step(&t->opt, t->trained.w, t->trained.g, lr, optim_clip(norm, t->o.clip));
	if (t->m.hooks == NULL || t->s->generates)	/* else the next forward pass waits for
							   each layer's weights */
		optim_ready(&t->opt, INT_MAX);
	if (t->o.lora_rank > 0)
		lora_apply(&t->lora, t->m.w);
	profile_begin(t->m.profile, PROFILE_OTHER);
	badstep_good(&t->bad, t->now.loss);
	t->step++;
	progress_at(&t->progress, (double)t->step, "loss %.4f, %.0f tokens/s", t->now.loss,
	    (double)(t->tokens - t->clock_tokens) / fmax(progress_clock() - t->clock, 1e-9));
	return log ? put_step(t, lr, norm, false, e) : 0;
}

/* --- the longest batch --- */

/* Every row of every sequence a token with a target, one document each: no batch can take more. */
static void fill_batch(const struct train *t, struct batch *b)
{
	b->T = t->o.seq;
	b->B = (int)(train_rows(t) / b->T);
	for (int64_t r = 0; r < train_rows(t); r++) {
		b->tok[r] = rng_hash(1, (uint64_t)r) % (uint32_t)t->cfg.vocab_size;
		b->target[r] = (int32_t)b->tok[r];
		b->doc_start[r] = 0;
	}
}

/* Goes through the longest batch there can be and forgets it, so that what does not fit shows
 * before the first step. */
static void rehearse(struct train *t)
{
	const struct forward_opt fo = { .train = true, .fallback_mask_prob =
	    t->cfg.fallback_mask_prob }, plain = {0};
	struct micro *mb = &t->micro[0];

	fill_batch(t, &mb->b);
	clear_step(t);
	train_router_rows(t, &mb->b);
	if (t->has_ref)
		model_forward(&t->ref, &mb->b, &plain);
	model_forward(&t->m, &mb->b, &fo);
	loss_ce(&t->m, &mb->b, train_rows(t), t->coef, t->logp);
	train_router_load(t, &mb->b);
	train_router_loss(t, &mb->b, true, false);
	t->last_micro = false;
	model_backward(&t->m, &mb->b);
}

/* --- evaluation --- */

/* Held-out loss: the mean over all targets (or what else the stage counts), each batch weighing
 * by its own. */
static int evaluate(struct train *t, struct err *e)
{
	const struct source *src = t->s->source;
	struct micro *mb = &t->micro[0];
	double began = progress_clock(), sum = 0, units = 0;
	int64_t targets = 0;
	json_t *rec;
	int rc = 0, best = 0;

	if (src->seek(t->eval_src, NULL, e) < 0)
		return -1;
	clear_step(t);
	for (int64_t i = 0; t->o.eval_batches == 0 || i < t->o.eval_batches; i++) {
		double before = t->now.base;
		struct pass p = { .count = true };

		if ((rc = next_micro(t, t->eval_src, mb, e)) <= 0)
			break;
		p.all = mb->all;
		train_router_rows(t, &mb->b);
		run_micro(t, mb, &p);
		sum += (double)mb->all.units * (t->now.base - before);
		units += (double)mb->all.units;
		targets += mb->all.targets;
	}
	if (rc < 0)
		return -1;
	sum_up(t);
	comm_sum(&sum, 1);
	t->now.base = t->now.loss = units > 0 ? sum / units : 0;
	rec = json_pack("{s:s, s:s, s:I}", "type", "eval", "stage", t->s->name, "step",
	    (json_int_t)t->step);
	metric_losses(&t->now, rec);
	if (t->s->units == NULL)
		json_set_num(rec, "perplexity", exp(t->now.base));
	json_set_int(rec, "targets", targets);
	metric_stage(&t->now, t->s->metrics, rec);
	metric_routing(&t->now, &t->cfg, t->route.load, rec);
	json_set_num(rec, "seconds", progress_clock() - began);
	if (t->best.metric != NULL && (best = best_eval_see(&t->best, rec, t->step, e)) >= 0)
		json_object_set_new(rec, "best", json_boolean(best));
	rc = best < 0 ? -1 : human_put(rec, e);
	if (rc == 0)
		rc = check_record(rec, e);
	t->bad_eval = rc < 0 && best >= 0;
	json_decref(rec);
	t->clock += progress_clock() - began;	/* not the next step's time */
	return comm_agree(rc, e);
}

/* --- saving --- */

static json_t *state(const struct train *t)
{
	return json_pack("{s:s, s:s, s:I, s:I, s:I, s:o, s:o, s:o, s:o}", "chronos_version",
	    CHR_VERSION, "stage", t->s->name,
	    "step", (json_int_t)t->step, "total", (json_int_t)t->schedule.total, "tokens",
	    (json_int_t)t->tokens,
	    "position", t->position != NULL ? json_incref(t->position)
	    : t->s->source->position(t->src), "settings", train_settings(t),
	    "best", best_eval_state(&t->best), "bad", badstep_state(&t->bad));
}

static bool finite_weights(const struct train *t)
{
	return isfinite(optim_norm(&t->opt, t->trained.w));
}

/* What the last update left: no pass has gone over it yet. A run that began with a weight that
 * is no number, and may skip what meets it, can only hand it on. */
static int check_weights(const struct train *t, struct err *e)
{
	return finite_weights(t) || (t->began_bad && t->o.skip_nonfinite > 0) ? 0 :
	    err_set(e, EX_DATAERR, "step %" PRId64 ": weights are not finite after the update; "
	    "no checkpoint of it", t->step);
}

static int save(struct train *t, bool final, struct err *e)
{
	const uint64_t seed = (uint64_t)t->o.seed;
	struct ckpt c = { .w = t->trained, .cfg = &t->cfg, .opt = &t->opt, .tok = t->tok,
	    .dtype = t->o.dtype == 1 ? DT_BF16 : DT_F32, .shard_size = t->o.shard_size };
	struct prov p = { .program = err_prog, .command = t->command, .seed = &seed,
	    .parent_metadata = t->metadata,
	    .parent = t->parent[0] != '\0' ? t->parent : NULL };
	json_t *config = config_to_json(&t->cfg), *data = t->s->source->inputs(t->src);
	int rc = check_weights(t, e);

	optim_ready(&t->opt, INT_MAX);
	p.config = config;
	p.data = data;
	c.adapter = t->o.lora_rank > 0 ? &t->lora : NULL;
	c.base = t->o.model;
	c.metadata = prov_metadata(&p);
	c.state = state(t);
	if (rc == 0)
		rc = ckpt_save(t->o.out, t->step, &c, e);
	if (rc == 0 && final && comm_rank() == 0)
		rc = ckpt_publish(t->o.out, t->step, e);
	if (rc == 0 && comm_rank() == 0)
		rc = ckpt_prune(t->o.out, t->o.keep, t->best.step, e);
	json_decref(c.metadata);
	json_decref(c.state);
	json_decref(config);
	json_decref(data);
	return comm_agree(rc, e);
}

/* --- the loop --- */

static bool every(int64_t step, int64_t n)
{
	return n > 0 && step % n == 0;
}

/* Where it says that the model is no good, a checkpoint keeps what there is. */
static int evaluate_or_save(struct train *t, struct err *e)
{
	struct err why = {0};

	if (evaluate(t, e) == 0)
		return 0;
	if (t->bad_eval && t->step > t->first_step)
		save(t, false, &why);
	return -1;
}

/* An evaluation, and a checkpoint when it is the best so far. */
static int look(struct train *t, struct err *e)
{
	if (evaluate_or_save(t, e) < 0)
		return -1;
	return t->best.step == t->step ? save(t, false, e) : 0;
}

/* Must the run end early? The same on all ranks. */
static bool told_to_stop(struct train *t)
{
	bool full = guard_check(t->guard) == GUARD_LIMIT;
	double why[2] = { sig_stop, full };

	comm_sum(why, 2);
	if (why[1] > 0 && !full && guard_look(t->guard) != GUARD_LIMIT)
		err_warn("memory is short for another rank");
	return why[0] + why[1] > 0;
}

/* What is due after a step. Returns 1 to stop early, 0 to go on, -1. */
static int after_step(struct train *t, struct err *e)
{
	const struct source *src = t->s->source;
	bool last = t->step == t->schedule.total, whole = src->midway == NULL ||
	    !src->midway(t->src);

	t->stopping |= told_to_stop(t) || t->step - t->first_step == t->o.stop_after;
	t->due |= comm_any(sig_save) || every(t->step, t->o.save_every);
	t->look_due |= every(t->step, t->o.eval_every);
	sig_save = 0;
	if (last || !whole)
		return 0;
	if (t->eval_src != NULL && t->look_due && look(t, e) < 0)
		return -1;
	t->look_due = false;
	if (!(t->stopping || t->due))
		return 0;
	t->due = false;
	return save(t, false, e) < 0 ? -1 : t->stopping;
}

static bool given_up(const struct train *t)
{
	return t->o.patience > 0 && t->best.since >= t->o.patience;
}

/* The result is this step's model, or the best. The last checkpoint then stays, so that --resume
 * finds the end. */
static int finish(struct train *t, struct err *e)
{
	if (t->step == 0)
		return err_set(e, EX_DATAERR, "no tokens to train on");
	if (t->eval_src != NULL && !given_up(t) && evaluate_or_save(t, e) < 0)
		return -1;
	if (t->best.metric == NULL || t->best.step == t->step)
		return save(t, true, e);
	if (save(t, false, e) < 0)
		return -1;
	if (!opt_quiet)
		err_warn("the result is the model of step %" PRId64 ", with %s %g", t->best.step,
		    t->best.metric, t->best.value);
	if (comm_rank() > 0 || !ckpt_exists(t->o.out, t->best.step))
		return comm_agree(0, e);
	return comm_agree(ckpt_publish(t->o.out, t->best.step, e), e);
}

/* A signal came while the next records did not: what was done so far is saved, as after any step.
 * */
static int stop_waiting(struct train *t, struct err *e)
{
	*e = (struct err){0};
	return save(t, false, e) < 0 ? -1 : EX_TEMPFAIL;
}

/* Evaluations and checkpoints are not parts of a step, and no profile counts them. */
static void watch(struct train *t, bool on)
{
	if (!t->o.profile)
		return;
	if (on)
		profile_resume(&t->profile, PROFILE_DATA);
	else
		profile_begin(t->m.profile, PROFILE_OTHER);
	t->m.profile = t->ref.profile = on ? &t->profile : NULL;
}

static int loop(struct train *t, struct err *e)
{
	int n, rc;

	start_hooks(t);
	t->began_bad = !finite_weights(t);
	rehearse(t);
	t->clock = progress_clock();
	if (t->best.metric != NULL && t->step == 0 && look(t, e) < 0)
		return -1;
	while ((t->schedule.total == 0 || t->step < t->schedule.total) && !given_up(t)) {
		watch(t, true);
		if ((n = take(t, e)) < 0)
			return e->status == EX_TEMPFAIL ? stop_waiting(t, e) : -1;
		json_decref(t->position);
		t->position = NULL;
		if (n == 0)
			break;
		if (comm_agree(train_step(t, n, e), e) < 0)
			return -1;
		watch(t, false);
		if ((rc = after_step(t, e)) < 0)
			return -1;
		if (rc > 0)
			return EX_TEMPFAIL;
	}
	return finish(t, e);
}

static int dump_gradients(struct train *t, struct err *e)
{
	int n;

	start_hooks(t);
	n = take(t, e);
	if (n < 0 || (n > 0 && gradients(t, n, false, e) < 0))
		return -1;
	if (n == 0)
		return err_set(e, EX_DATAERR, "no tokens to train on");
	optim_collect(&t->opt, t->trained.g);
	return comm_agree(ckpt_put_gradients(t->o.grad_dump, &t->trained, &t->opt, e), e);
}

static int put_profile(struct train *t, struct err *e)
{
	json_t *rec = json_pack("{s:s, s:s, s:I, s:I}", "type", "profile", "stage", t->s->name,
	    "steps",
	    (json_int_t)(t->step - t->first_step), "tokens",
	    (json_int_t)(t->tokens - t->first_tokens));
	json_t *parts = profile_json(&t->profile);
	int rc;

	json_object_update(rec, parts);
	rc = human_put(rec, e);
	json_decref(parts);
	json_decref(rec);
	return rc;
}

static int print_plan(struct train *t, struct err *e)
{
	json_t *rec = mem_plan_json(&t->plan);
	int rc;

	json_set_int(rec, "steps", t->schedule.total);
	json_set_int(rec, "parameters", t->parameters);
	json_set_int(rec, "tokens_per_step", train_rows(t) * comm_size() * t->o.accum);
	rc = human_put(rec, e);
	json_decref(rec);
	if (!opt_quiet && !human())
		mem_plan_print(&t->plan, stderr);
	return rc;
}

/* What of a step, and of an evaluation, people see: its losses, and the first of what the stage
 * measures, so that a row fits in a line of a terminal. */
static void tables(const struct stage *s)
{
	char measures[128] = "", keys[sizeof measures + 128];
	size_t n = 0;

	for (int i = 0; i < 4 && s->metrics != NULL && s->metrics[i] != NULL && n < sizeof measures;
	    i++)
		n += (size_t)snprintf(measures + n, sizeof measures - n, " %s", s->metrics[i]);
	snprintf(keys, sizeof keys, "step loss base%s lr grad_norm tok_per_s mem_bytes", measures);
	human_table("step", keys, true);
	snprintf(keys, sizeof keys, "stage step loss base%s%s seconds", s->units == NULL ?
	    " perplexity" : "", measures);
	human_table("eval", keys, true);
}

int train_run(const struct stage *s, int argc, char *const argv[], const struct opt *opts,
    int nfiles,
    char *const files[], struct err *e)
{
	struct train t = { .o = train_flags, .s = s, .nfiles = nfiles, .files = files, .lock = -1 };
	int rc;

	if (comm_open(e) < 0)
		return -1;
	t.command = prov_command(argc, argv, opts,
	    train_flags.keep_best != NULL ? OPT_TALKS : OPT_TALKS | OPT_JUDGES);
	best_eval_open(&t.best, t.o.keep_best);
	tables(s);
	t.bad = (struct badstep){ .path = t.o.dump_bad, .most = t.o.skip_nonfinite,
	    .spike = t.o.max_spike };
	rc = comm_agree(train_setup(&t, e), e);
	if (rc == 0 && t.o.dry_run) {
		rc = print_plan(&t, e);
	} else if (rc == 0) {
		progress_start(&t.progress, s->name, "steps", (double)t.schedule.total);
		rc = t.o.grad_dump != NULL ? dump_gradients(&t, e) : loop(&t, e);
		progress_end(&t.progress);
		if (t.o.profile && t.step > t.first_step && (rc == 0 || rc == EX_TEMPFAIL) &&
		    put_profile(&t, e) < 0)
			rc = -1;
		if (rc == EX_TEMPFAIL && !opt_quiet)
			err_warn("stopped after step %"
			    PRId64 " with a checkpoint; --resume goes on", t.step);
	}
	train_teardown(&t);
	return comm_close(rc, e);
}

/* --- measuring --- */

/* As loop() takes steps. */
static int measure_step(struct train *t, struct err *e)
{
	int n, rc;

	watch(t, true);
	if ((n = take(t, e)) < 0)
		return -1;
	if (n == 0)
		return err_set(e, EX_DATAERR, "the data end after %" PRId64 " steps", t->step);
	rc = comm_agree(train_step(t, n, e), e);
	watch(t, false);
	return sig_stop ? err_set(e, EX_TEMPFAIL, "stopped by a signal") : rc;
}

static int measure_steps(struct train *t, struct train_cost *c, struct err *e)
{
	int64_t before;

	if (measure_step(t, e) < 0)
		return -1;
	before = t->tokens;
	t->profile = (struct profile){0};
	for (int i = 0; i < c->steps; i++) {
		double began = progress_clock();

		if (measure_step(t, e) < 0)
			return -1;
		c->step_s[i] = progress_clock() - began;
	}
	c->tokens = t->tokens - before;
	c->loss = t->now.loss;
	c->profile = t->profile;
	c->data = t->s->source->inputs(t->src);
	return 0;
}

int train_measure(const struct stage *s, int nfiles, char *const files[], struct train_cost *c,
    struct err *e)
{
	struct train t = { .o = train_flags, .s = s, .nfiles = nfiles, .files = files, .lock = -1,
	    .measured = true };
	double began = progress_clock();
	int rc;

	t.o.steps = 0;
	t.o.epochs = 0;			/* without end, so no step is the last, which is always
					   recorded */
	t.o.log_every = INT64_MAX;
	t.o.profile = true;
	rc = train_setup(&t, e);
	if (rc == 0 && t.o.dry_run) {
		rc = print_plan(&t, e);
	} else if (rc == 0) {
		c->open_s = progress_clock() - began;
		c->seq = t.o.seq;
		c->parameters = t.parameters;
		c->active = params_active(&t.m.par, &t.cfg);
		c->plan = mem_plan_total(&t.plan);
		c->config = config_to_json(&t.cfg);
		memcpy(c->parent, t.parent, sizeof c->parent);
		progress_start(&t.progress, s->name, "steps", c->steps + 1);
		rc = measure_steps(&t, c, e);
		progress_end(&t.progress);
	}
	train_teardown(&t);
	return rc;
}
