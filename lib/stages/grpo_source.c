/*
 * Prompts to judged completions. Items of the corpus are a prompt's ids and its record; a
 * rollout samples and judges what the micro-batches of one step need, and they are given out
 * once per iteration.
 */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "train/chat.h"
#include "base/comm.h"
#include "text/corpus.h"
#include "stages/grpo_int.h"
#include "base/human.h"
#include "base/json.h"

#define EVAL_SEED 0x6576616c	/* held-out prompts are always answered with the same draws */

struct grpo_data {
	struct tok *tok;
	const struct config *cfg;
	const struct train_opt *o;
	bool eval;
	struct corpus *corpus;
	int64_t limit;			/* prompts to take in all; -1: no end, or not known */

	int micros, most;		/* micro-batches of a rollout at most; completions */
	struct completion *c;		/* (most) */
	json_t **rec;			/* (most / group) */
	char **source;			/* (most / group) their text */
	double *reward, *part, *spread;	/* (most), (most, rewards), (most / group) */
	real *adv;			/* (most) */
	struct grpo_slice *slice;	/* (micros) */

	int n, have;			/* completions, micro-batches of the rollout at hand */
	int at, iteration;		/* micro-batch that is next; how often all were given */
	bool cut;			/* the step that got the last of them was told so */
	int64_t rollouts;		/* so far */
};

/* --- items: n ids, then the record's text --- */

static int item(const void *self, struct tok *t, const json_t *rec, struct ids *out,
    struct record_count *n,
    struct err *why)
{
	const struct grpo_data *d = self;
	const struct prompt_opt po = { .chat = grpo_flags.chat, .think = chat_flags.think };
	struct ids ids = {0};
	int rc = prompt_ids(t, rec, &po, &ids, why);

	for (int i = 0; i < grpo_flags.reward.n && rc == 0; i++)
		rc = reward_check(grpo_flags.reward.v[i], rec, why);
	if (rc == 0 && chat_fit(&ids, NULL, d->o->seq - grpo_flags.max_new, n)) {
		ids_push(out, (uint32_t)ids.n);
		for (int i = 0; i < ids.n; i++)
			ids_push(out, ids.v[i]);
	}
	ids_free(&ids);
	return rc;
}

/* --- opening --- */

static int64_t completion_bytes(const struct config *c, int T)
{
	return T * (int64_t)(sizeof(uint32_t) + (size_t)c->num_sparse *
	    (size_t)c->num_experts_per_tok * sizeof(int32_t));
}

static int64_t slice_bytes(const struct config *c, int T, int n)
{
	int64_t R = (int64_t)n * T, K = c->num_experts_per_tok;

	return n * (int64_t)sizeof(real) + 2 * R * (int64_t)sizeof(real) +
	    (c->num_sparse + 1) * R * K * (int64_t)sizeof(int32_t);
}

int64_t grpo_source_bytes(const struct config *c, const struct train_opt *o, int micros,
    int sequences)
{
	return (int64_t)micros * (sequences * completion_bytes(c, o->seq) + slice_bytes(c, o->seq,
	    sequences));
}

static void open_rollouts(struct grpo_data *d)
{
	const struct config *c = d->cfg;
	int T = d->o->seq, n = d->o->batch * grpo_flags.group;
	size_t K = (size_t)c->num_experts_per_tok, R = (size_t)n * (size_t)T,
	    Ls = (size_t)c->num_sparse;

	d->most = d->micros * n;
	d->c = mem_alloc((size_t)d->most * sizeof *d->c);
	d->rec = mem_alloc((size_t)d->most * sizeof *d->rec);
	d->source = mem_alloc((size_t)d->most * sizeof *d->source);
	d->reward = mem_alloc((size_t)d->most * sizeof *d->reward);
	d->part = mem_alloc((size_t)d->most * GRPO_REWARDS * sizeof *d->part);
	d->spread = mem_alloc((size_t)d->most * sizeof *d->spread);
	d->adv = mem_alloc((size_t)d->most * sizeof *d->adv);
	d->slice = mem_alloc((size_t)d->micros * sizeof *d->slice);
	for (int i = 0; i < d->most; i++) {
		d->c[i].tok = mem_alloc((size_t)T * sizeof(uint32_t));
		d->c[i].topk = mem_alloc((size_t)T * (Ls * K + 1) * sizeof(int32_t));
	}
	for (int i = 0; i < d->micros; i++) {
		d->slice[i].old = mem_alloc(R * sizeof(real));
		d->slice[i].ref = mem_alloc(R * sizeof(real));
		d->slice[i].replay = mem_alloc((Ls * R * K + 1) * sizeof(int32_t));
		d->slice[i].used = mem_alloc((R * K + 1) * sizeof(int32_t));
	}
}

static void drop_records(struct grpo_data *d)
{
	for (int i = 0; i < d->n / grpo_flags.group; i++) {
		json_decref(d->rec[i]);
		free(d->source[i]);
		d->rec[i] = NULL;
		d->source[i] = NULL;
	}
}

static void close_rollouts(struct grpo_data *d)
{
	drop_records(d);
	for (int i = 0; i < d->most; i++) {
		mem_free(d->c[i].tok);
		mem_free(d->c[i].topk);
		gentext_free(&d->c[i].q.gen);
	}
	for (int i = 0; i < (d->slice != NULL ? d->micros : 0); i++) {
		mem_free(d->slice[i].old);
		mem_free(d->slice[i].ref);
		mem_free(d->slice[i].replay);
		mem_free(d->slice[i].used);
	}
	mem_free(d->c);
	mem_free(d->rec);
	mem_free(d->source);
	mem_free(d->reward);
	mem_free(d->part);
	mem_free(d->spread);
	mem_free(d->adv);
	mem_free(d->slice);
}

static void grpo_close(void *self)
{
	struct grpo_data *d = self;

	if (d->corpus != NULL && corpus_streams(d->corpus))
		chat_report(corpus_count(d->corpus));
	corpus_close(d->corpus);
	close_rollouts(d);
	free(d);
}

static int open_corpus(struct grpo_data *d, int nfiles, char *const files[], struct err *e)
{
	const struct train_opt *o = d->o;
	const struct corpus_opt co = { .unit = "prompts", .kind = { .item = item, .source = true,
	    .self = d, .tok = d->tok },
	    .shuffle = o->shuffle && !d->eval, .window = d->eval ? 0 : o->shuffle_window,
	    .longest = 2 * o->seq,
	    .ram = o->data_ram, .skip_bad = o->skip_bad, .seed = (uint64_t)o->seed };

	if (d->tok == NULL)
		return err_set(e, EX_NOINPUT, "prompts need a tokenizer: -t FILE");
	if (grpo_flags.max_new >= o->seq)
		return err_set(e, EX_USAGE, "--new %d leaves nothing of --seq %d for a prompt",
		    grpo_flags.max_new, o->seq);
	if ((d->corpus = corpus_open(nfiles, files, &co, e)) == NULL)
		return -1;
	d->limit = corpus_streams(d->corpus) || (o->epochs == 0 && !d->eval) ? -1 :
	    llround((d->eval ? 1 : o->epochs) * (double)corpus_items(d->corpus));
	if (!corpus_streams(d->corpus))
		chat_report(corpus_count(d->corpus));
	return 0;
}

static void *grpo_open(const struct train_opt *o, const struct config *c, struct tok *t, int nfiles,
    char *const files[],
    bool eval, struct err *e)
{
	struct grpo_data *d = calloc(1, sizeof *d);

	if (d == NULL) {
		err_set(e, EX_OSERR, "out of memory");
		return NULL;
	}
	d->tok = t;
	d->cfg = c;
	d->o = o;
	d->eval = eval;
	d->micros = eval ? 1 : o->accum;
	if (open_corpus(d, nfiles, files, e) == 0)
		return d;
	grpo_close(d);
	return NULL;
}

/* --- a rollout --- */

/* What record_file.h appended to the item. */
static void set_record(struct grpo_data *d, int i, const char *text, size_t len)
{
	struct err why = {0};

	if ((d->source[i] = strndup(text, len)) == NULL)
		err_die(EX_OSERR, "out of memory");
	d->rec[i] = jsonl_parse(d->source[i], len, &why);
}

/* The next prompt for completions i .. i + group - 1; below 0, it is another rank's. 1, 0 at the
 * end, -1. */
static int take_prompt(struct grpo_data *d, int i, struct err *e)
{
	int64_t passed = corpus_passed(d->corpus), words;
	const uint32_t *w = NULL;
	int rc, G = grpo_flags.group;

	if (passed == d->limit)
		return 0;
	if ((rc = corpus_get(d->corpus, i >= 0 ? &w : NULL, &words, e)) <= 0)
		return rc;
	for (int g = 0; i >= 0 && g < G; g++) {
		struct completion *c = &d->c[i + g];

		c->nprompt = (int)w[0];
		c->stream = (uint64_t)passed * (uint64_t)G + (uint64_t)g;
		memcpy(c->tok, w + 1, (size_t)w[0] * sizeof *w);
	}
	if (i >= 0) {
		w += 1 + w[0];
		set_record(d, i / G, (const char *)(w + 1), w[0]);
	}
	corpus_advance(d->corpus);
	return 1;
}

static int judge(void *ctx, struct completion *c, struct err *e)
{
	struct grpo_data *d = ctx;
	int64_t i = c - d->c;
	const json_t *rec = d->rec[i / grpo_flags.group];
	json_t *prompt = prompt_text(rec);
	const struct reward_item it = { .record = rec, .source = d->source[i / grpo_flags.group],
	    .prompt = prompt,
	    .text = c->q.gen.text != NULL ? c->q.gen.text : "", .len = c->q.gen.len, .tok = c->tok,
	    .nprompt = c->nprompt, .n = c->n };
	int rc = 0;

	for (int k = 0; k < grpo_run.n && rc == 0; k++)
		rc = reward_ask(grpo_run.reward[k], &it, &d->part[i * grpo_run.n + k], e);
	json_decref(prompt);
	return rc;
}

static int tick(void *ctx, struct err *e)
{
	(void)ctx;
	for (int k = 0; k < grpo_run.n; k++)
		if (reward_poll(grpo_run.reward[k], e) < 0)
			return -1;
	return 0;
}

static int collect(struct grpo_data *d, struct err *e)
{
	for (int k = 0; k < grpo_run.n; k++)
		if (reward_wait(grpo_run.reward[k], e) < 0)
			return -1;
	for (int i = 0; i < d->n; i++) {
		d->reward[i] = 0;
		for (int k = 0; k < grpo_run.n; k++)
			d->reward[i] += grpo_run.weight[k] * d->part[i * grpo_run.n + k];
	}
	return 0;
}

/* Experts from the order of sampling (token, layer) to that of training (layer, row). Padding
 * keeps its own. */
static void lay_out_experts(const struct config *cfg, struct grpo_slice *s, int T)
{
	int K = cfg->num_experts_per_tok, Ls = cfg->num_sparse;
	int64_t R = (int64_t)s->n * T;

	for (int64_t i = 0; i < Ls * R * K; i++)
		s->replay[i] = -1;
	for (int i = 0; i < s->n; i++)
		for (int t = 0; t < s->c[i].n - 1; t++)
			for (int l = 0; l < Ls; l++)
				memcpy(s->replay + (l * R + (int64_t)i * T + t) * K,
				    s->c[i].topk + ((int64_t)t * Ls + l) * K,
				    (size_t)K * sizeof(int32_t));
}

/* Rows that the longest completion takes: its last token is no input. */
static int longest(const struct completion *c, int n)
{
	int T = 0;

	for (int i = 0; i < n; i++)
		T = c[i].n - 1 > T ? c[i].n - 1 : T;
	return T;
}

/* Names the largest reward of all ranks, on the rank that has it. */
static int too_large(const struct grpo_data *d, struct err *e)
{
	double most = 0, own;
	int at = 0, k;

	for (int i = 0; i < d->n * grpo_run.n; i++)
		if (fabs(d->part[i]) > most) {
			most = fabs(d->part[i]);
			at = i;
		}
	own = most;
	comm_max(&most, 1);
	if (own < most || d->n == 0)
		return 0;
	k = at % grpo_run.n;
	return err_set(e, EX_DATAERR, "reward '%s': %g is too large, the rewards cannot be added "
	    "up", grpo_flags.reward.v[k], d->part[at]);
}

static int advantages(struct grpo_data *d, struct err *e)
{
	bool good = grpo_advantages(d->reward, d->n, grpo_flags.group,
	    (enum grpo_scale)grpo_flags.scale, d->adv, d->spread);

	return comm_any(!good) ? comm_agree(too_large(d, e), e) : 0;
}

static void cut_slices(struct grpo_data *d)
{
	int G = grpo_flags.group, size = d->o->batch * G;

	for (int m = 0; m < d->have; m++) {
		struct grpo_slice *s = &d->slice[m];
		int i = m * size < d->n ? m * size : d->n;

		s->n = d->n - i < size ? d->n - i : size;
		s->c = d->c + i;
		s->reward = d->reward + i;
		s->part = d->part + i * grpo_run.n;
		s->spread = d->spread + i / G;
		s->fresh = true;
		s->eval = d->eval;
		s->adv = d->adv + i;
		lay_out_experts(d->cfg, s, longest(s->c, s->n));
	}
}

/* Sample records, before the step record of the step that learns from them. */
static int log_samples(const struct grpo_data *d, struct err *e)
{
	int64_t step = (d->rollouts - 1) * grpo_flags.iterations + 1;
	int rc = 0, n = d->eval || step % d->o->log_every != 0 ? 0 : grpo_flags.log_samples;

	for (int i = 0; i < n && i < d->n && rc == 0; i++) {
		const struct completion *c = &d->c[i];
		json_t *r = json_pack("{s:s, s:s, s:I, s:o, s:o, s:s}", "type", "sample", "stage",
		    "grpo", "step",
		    (json_int_t)step, "prompt", prompt_text(d->rec[i / grpo_flags.group]),
		    "completion",
		    json_text(c->q.gen.text != NULL ? c->q.gen.text : "", c->q.gen.len), "finish",
		    c->stopped ? "stop" : "length");

		json_set_int(r, "tokens", c->n - c->nprompt);
		json_set_num(r, "reward", d->reward[i]);
		json_set_num(r, "advantage", (double)d->adv[i]);
		rc = human_put(r, e);
		json_decref(r);
	}
	return rc;
}

/* This rank's prompts of the micro-batches of a step, of which the others have theirs. */
static int take_prompts(struct grpo_data *d, struct err *e)
{
	int b = d->o->batch, all = d->micros * b * comm_size(), k, rc = 1;

	d->n = 0;
	for (k = 0; k < all; k++) {
		bool own = k / b % comm_size() == comm_rank();

		if ((rc = take_prompt(d, own ? d->n : -1, e)) <= 0)
			break;
		d->n += own ? grpo_flags.group : 0;
	}
	d->have = (k + b * comm_size() - 1) / (b * comm_size());
	return rc < 0 ? -1 : k > 0;
}

/* Samples and judges what a step needs. 1, 0 at the end of the prompts, -1. */
static int roll_out(struct grpo_data *d, struct err *e)
{
	const struct rollout_hook hook = { judge, tick, d };
	uint64_t seed = (uint64_t)d->o->seed + (d->eval ? EVAL_SEED : 0);
	int rc;

	if (d->c == NULL)
		open_rollouts(d);
	drop_records(d);
	d->at = d->iteration = 0;
	if ((rc = take_prompts(d, e)) <= 0)
		return rc;
	d->rollouts++;
	if (d->n > 0)
		rc = rollout_run(grpo_run.rollout, d->c, d->n, seed, &hook, e);
	if (rc >= 0)
		rc = collect(d, e);
	if (comm_agree(rc, e) < 0)
		return -1;
	if (advantages(d, e) < 0)
		return -1;
	cut_slices(d);
	return log_samples(d, e) < 0 ? -1 : 1;
}

/* --- micro-batches --- */

static void fill_row(struct batch *b, int i, const struct completion *c, int record)
{
	bool learn = c->stopped || !grpo_flags.mask_overlong;

	for (int t = 0; t < b->T; t++) {
		int64_t r = (int64_t)i * b->T + t;
		bool in = t < c->n - 1;

		b->tok[r] = in ? c->tok[t] : 0;
		b->doc_start[r] = in ? 0 : -1;
		if (b->from != NULL)
			b->from[r] = record;
		b->target[r] = in && learn && t + 1 >= c->nprompt ? (int32_t)c->tok[t + 1] : -1;
	}
}

/* Which of the records since the step that asked for the rollout this rank's i-th prompt is: as
 * take_prompts() dealt them. */
static int record_of(const struct grpo_data *d, int i)
{
	int b = d->o->batch;

	return (i / b * comm_size() + comm_rank()) * b + i % b;
}

static void fill(const struct grpo_data *d, struct grpo_slice *s, struct micro *mb)
{
	mb->b.B = s->n;
	mb->b.T = longest(s->c, s->n);
	for (int i = 0; i < s->n; i++)
		fill_row(&mb->b, i, &s->c[i],
		    record_of(d, (int)(s->c + i - d->c) / grpo_flags.group));
	mb->replay = grpo_flags.replay ? s->replay : NULL;
	memcpy(mb->extra, &s, sizeof s);
}

/* A rollout that is smaller than a step, at the end of the prompts, ends its steps early: 0, and
 * the next call goes on. */
static int grpo_next(void *self, struct micro *mb, int B, struct err *e)
{
	struct grpo_data *d = self;
	int rc;

	(void)B;
	if (d->at == d->have) {
		if (d->have > 0 && d->have < d->micros && !d->cut) {
			d->cut = true;
			return 0;
		}
		d->cut = false;
		d->at = 0;
		d->iteration++;
		if ((d->have == 0 || d->eval || d->iteration == grpo_flags.iterations) &&
		    (rc = roll_out(d, e)) <= 0)
			return rc;
	}
	fill(d, &d->slice[d->at++], mb);
	return 1;
}

static bool grpo_midway(const void *self)
{
	const struct grpo_data *d = self;

	return d->have > 0 && d->iteration + 1 < grpo_flags.iterations;
}

static bool grpo_streams(const void *self)
{
	return corpus_streams(((const struct grpo_data *)self)->corpus);
}

static int64_t grpo_rows(const void *self)
{
	const struct grpo_data *d = self;
	int64_t step = (int64_t)d->o->batch * comm_size() * d->micros;

	return d->limit < 0 ? -1 : (d->limit + step - 1) / step * step * (d->eval ? 1
	    : grpo_flags.iterations);
}

static int64_t grpo_bytes(const void *self)
{
	return corpus_bytes(((const struct grpo_data *)self)->corpus);
}

static json_t *grpo_identity(const void *self)
{
	const struct grpo_data *d = self;

	return json_pack("{s:I, s:I, s:i, s:b}", "prompts", (json_int_t)corpus_items(d->corpus),
	    "data_words",
	    (json_int_t)corpus_words(d->corpus), "truncate", chat_flags.truncate, "think",
	    chat_flags.think);
}

static json_t *grpo_position(const void *self)
{
	const struct grpo_data *d = self;
	json_t *p = corpus_position(d->corpus);

	json_object_set_new(p, "rollouts", json_integer(d->rollouts));
	return p;
}

static int grpo_seek(void *self, const json_t *position, struct err *e)
{
	struct grpo_data *d = self;
	json_int_t rollouts = 0;

	if (position != NULL && json_unpack((json_t *)position, "{s:I}", "rollouts", &rollouts) < 0)
		return err_set(e, EX_DATAERR, "train_state.json: no position in the data");
	d->rollouts = rollouts;
	d->have = d->at = 0;
	d->cut = false;
	return corpus_seek(d->corpus, position, e);
}

static struct corpus *grpo_corpus(void *self)
{
	return ((struct grpo_data *)self)->corpus;
}

static json_t *grpo_inputs(const void *self)
{
	return corpus_inputs(((const struct grpo_data *)self)->corpus);
}

const struct source grpo_source = {
	.extra = sizeof(struct grpo_slice *), .open = grpo_open, .close = grpo_close,
	    .streams = grpo_streams,
	.rows = grpo_rows, .bytes = grpo_bytes, .identity = grpo_identity, .next = grpo_next,
	    .midway = grpo_midway,
	.position = grpo_position, .seek = grpo_seek, .inputs = grpo_inputs, .corpus = grpo_corpus,
};
