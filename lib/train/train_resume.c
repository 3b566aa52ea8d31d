/*
 * train_resume: going on from a checkpoint. What defines a run is compared with what the
 * checkpoint was made from, data and starting model by their digests, and its numbers must make
 * sense: a run that goes on as another would look like the one that it is not.
 */
#include "train/train_impl.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/comm.h"
#include "base/json.h"

/* --- settings --- */

static json_t *list_of(const struct opt_list *l)
{
	json_t *list = json_array();

	for (int i = 0; i < l->n; i++)
		json_array_append_new(list, json_string(l->v[i]));
	return list;
}

/* SHA-256 of each file that src reads, in their order. What comes through a pipe has none. */
static json_t *digests(const struct train *t, const void *src)
{
	json_t *inputs = t->s->source->inputs(src), *list = json_array(), *in;
	size_t i;

	json_array_foreach(inputs, i, in)
		if (json_object_get(in, "sha256") != NULL)
			json_array_append(list, json_object_get(in, "sha256"));
	json_decref(inputs);
	return list;
}

static json_t *lora_settings(const struct train *t)
{
	const struct train_opt *o = &t->o;

	return o->lora_rank == 0 ? json_null() : json_pack("{s:i, s:f, s:o, s:s}", "rank",
	    o->lora_rank, "alpha", o->lora_alpha, "target", list_of(&o->lora_target), "of",
	    t->parent);
}

static json_t *best_settings(const struct train *t)
{
	const struct train_opt *o = &t->o;

	return o->keep_best == NULL ? json_null() : json_pack("[s, o, I, I, I]", o->keep_best,
	    digests(t, t->eval_src), (json_int_t)o->eval_every, (json_int_t)o->eval_batches,
	    (json_int_t)o->patience);
}

json_t *train_settings(const struct train *t)
{
	const struct train_opt *o = &t->o;
	json_t *s = json_pack("{s:I, s:i, s:i, s:i, s:f, s:I, s:f, s:f, s:b, s:b}", "seed",
	    (json_int_t)o->seed, "batch", o->batch * comm_size(), "accum", o->accum, "seq",
	    o->seq, "lr", o->lr, "warmup", (json_int_t)o->warmup, "weight-decay",
	    o->weight_decay, "clip", o->clip, "shuffle", o->shuffle, "skip-bad", o->skip_bad);
	json_t *data = t->s->source->identity(t->src), *config = config_to_json(&t->cfg);
	json_t *own = t->s->settings != NULL ? t->s->settings() : NULL;

	json_object_set_new(s, "model", json_string(t->parent));
	json_object_set_new(s, "tokenizer", json_string(t->tok != NULL ? tok_sha256(t->tok) : ""));
	json_object_update(s, data);
	json_object_set_new(s, "backend", json_string(t->be->name));
	json_object_set_new(s, "compute", json_string(o->compute ? "bf16" : "f32"));
	if (own != NULL)
		json_object_update(s, own);
	json_object_set_new(s, "config.json", config);
	json_object_set_new(s, "freeze", list_of(&o->freeze));
	json_object_set_new(s, "lora", lora_settings(t));
	json_object_set_new(s, "keep-best", best_settings(t));
	json_object_set_new(s, "data", digests(t, t->src));
	json_decref(data);
	json_decref(own);
	return s;
}

/* Which backend "auto" was is found by measuring, and a run that goes on must not find another:
 * that of the checkpoint. */
const char *train_backend(const struct train *t)
{
	static char name[64];
	struct err none = { 0 };
	json_t *state = NULL;
	const char *was;

	if (t->resume == NULL || strcmp(t->o.backend, "auto") != 0 || ckpt_state(t->resume, &state,
	    &none) < 0)
		return t->o.backend;
	was = json_string_value(json_object_get(json_object_get(state, "settings"), "backend"));
	snprintf(name, sizeof name, "%s", was != NULL ? was : "auto");
	json_decref(state);
	return name;
}

/* --- comparing --- */

/* Names the first file that is another one. */
static int other_data(const struct train *t, const json_t *now, const json_t *was, struct err *e)
{
	json_t *inputs = t->s->source->inputs(t->src), *in;
	const char *name = NULL;
	size_t i, at = 0;

	json_array_foreach(inputs, i, in) {
		if (json_object_get(in, "sha256") == NULL)
			continue;
		if (!json_equal(json_array_get(now, at), json_array_get(was, at)))
			name = json_string_value(json_object_get(in, "file"));
		at++;
		if (name != NULL)
			break;
	}
	if (json_array_size(now) != json_array_size(was))
		err_set(e, EX_USAGE, "--resume: %zu files of data, but %zu when %s was written",
		    json_array_size(now), json_array_size(was), t->resume);
	else
		err_set(e, EX_USAGE, "--resume: %s: not the data that %s was trained on (other "
		    "records, or another order)", name != NULL ? name : "?", t->resume);
	json_decref(inputs);
	return -1;
}

static int other_value(const struct train *t, const char *key, const json_t *now,
    const json_t *was, struct err *e)
{
	char *a = json_dumps(was, JSON_ENCODE_ANY | JSON_COMPACT),
	    *b = json_dumps(now, JSON_ENCODE_ANY | JSON_COMPACT);

	err_set(e, EX_USAGE, "--resume: %s is %s, but was %s when %s was written", key, b,
	    a != NULL ? a : "absent", t->resume);
	free(a);
	free(b);
	return -1;
}

static int differs(const struct train *t, const char *key, const json_t *now, const json_t *was,
    struct err *e)
{
	if (strcmp(key, "data") == 0)
		return other_data(t, now, was, e);
	if (strcmp(key, "model") == 0)
		return err_set(e, EX_USAGE, "--resume: %s: not the model that %s started from",
		    t->o.model != NULL ? t->o.model : t->o.upcycle != NULL ? t->o.upcycle :
		    "no -m or --upcycle", t->resume);
	if (strcmp(key, "tokenizer") == 0)
		return err_set(e, EX_USAGE, "--resume: the tokenizer is not that of %s",
		    t->resume);
	if (json_is_object(now))
		return err_set(e, EX_USAGE, "--resume: %s is not that of %s", key, t->resume);
	return other_value(t, key, now, was, e);
}

static int compare_settings(const struct train *t, const json_t *old, struct err *e)
{
	json_t *now = train_settings(t), *v;
	const char *key;
	int rc = 0;

	json_object_foreach(now, key, v) {
		const json_t *was = json_object_get(old, key);

		if (rc == 0 && !json_equal(v, was))
			rc = differs(t, key, v, was, e);
	}
	json_decref(now);
	return rc;
}

/* --- restoring --- */

/* The step in the name of a checkpoint's directory; -1: OUT itself. */
static int64_t named_step(const struct train *t)
{
	return strcmp(t->resume, t->o.out) == 0 ? -1 : ckpt_step(strrchr(t->resume, '/') + 1);
}

static int check_numbers(const struct train *t, int64_t step, int64_t tokens, struct err *e)
{
	const int64_t named = named_step(t), total = t->schedule.total;
	const char *what = step < 0 ? "its step is below 0" :
	    named >= 0 && named != step ? "its step is not that of its name" :
	    tokens < 0 ? "its tokens are below 0" :
	    t->bad.skipped > step ? "more steps were skipped than taken" :
	    t->best.metric != NULL && (t->best.step > step || t->best.seen > step) ?
	    "its best evaluation is of a later step" : NULL;

	if (what != NULL)
		return err_set(e, EX_DATAERR, "%s/train_state.json: %s", t->resume, what);
	if (total > 0 && step > total)
		return err_set(e, EX_DATAERR, "%s is at step %" PRId64 ", beyond the %" PRId64
		    " steps of this run", t->resume, step, total);
	return 0;
}

static int restore_state(struct train *t, const json_t *state, struct err *e)
{
	json_t *position, *settings, *best;
	json_int_t step, tokens;
	const char *stage;

	if (json_unpack((json_t *)state, "{s:s, s:I, s:I, s:o, s:o, s:o}", "stage", &stage,
	    "step", &step, "tokens", &tokens, "position", &position, "settings", &settings,
	    "best", &best) < 0)
		return err_set(e, EX_DATAERR, "%s/train_state.json: not the state of a run",
		    t->resume);
	if (strcmp(stage, t->s->name) != 0)
		return err_set(e, EX_USAGE, "--resume: %s is of the stage %s", t->resume, stage);
	if (compare_settings(t, settings, e) < 0 || best_eval_restore(&t->best, best, e) < 0 ||
	    badstep_restore(&t->bad, json_object_get(state, "bad"), e) < 0 ||
	    check_numbers(t, step, tokens, e) < 0)
		return -1;
	t->step = t->first_step = step;
	t->opt.updates = step - t->bad.skipped;
	t->tokens = t->first_tokens = t->clock_tokens = tokens;
	return t->s->source->seek(t->src, position, e);
}

int train_restore(struct train *t, struct err *e)
{
	json_t *state = NULL;
	int rc = ckpt_state(t->resume, &state, e);

	if (rc < 0)
		return -1;
	rc = restore_state(t, state, e);
	if (rc == 0 && !opt_quiet)
		err_warn("going on from %s", t->resume);
	json_decref(state);
	return rc;
}
