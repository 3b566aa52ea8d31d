#include "stages/rollout.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "decode/batch.h"

#define CHUNK 256	/* rows of a prompt evaluated at a time */

struct rollout {
	struct rollout_opt o;
	const struct config *cfg;
	struct engine *g;
	struct sampler *sampler;
	struct batch *batch;
	struct seq *prompt;	/* of the group whose completions are being started */
	real *first;		/* (V) logits after the prompt */
	/* of the run under way */
	struct completion *all;
	int n, started;
	uint64_t seed;
	const struct rollout_hook *hook;
	struct err e;		/* of a prompt that could not be evaluated */
};

static struct engine_opt engine_options(const struct rollout_opt *o)
{
	return (struct engine_opt){ .max_seqs = o->parallel + 1, .max_tokens = o->max_tokens,
	    .max_rows = o->max_tokens < CHUNK ? o->max_tokens : CHUNK };
}

void rollout_plan(struct mem_plan *p, const struct config *c, const struct params *ps,
    const struct rollout_opt *o)
{
	const struct engine_opt eo = engine_options(o);
	int64_t V = c->vocab_size;

	engine_over_plan(c, ps, &eo, p);
	mem_plan_add(p, "decoding", batch_bytes(c, o->parallel) + V * (int64_t)(sizeof(real) + 4 *
	    sizeof(float)));
}

static struct request *next(void *ctx);
static int drawn(void *ctx, struct request *q, struct err *e);
static int done(void *ctx, struct request *q, struct err *e);
static int step(void *ctx, int n, const struct eval_stats *st, struct err *e);

struct rollout *rollout_open(const struct model *m, const struct rollout_opt *o,
    const struct backend *be, struct err *e)
{
	const struct engine_opt eo = engine_options(o);
	struct rollout *r = calloc(1, sizeof *r);
	const struct batch_hook hook = { .next = next, .drawn = drawn, .step = step, .done = done,
	    .ctx = r };

	if (r == NULL) {
		err_set(e, EX_OSERR, "out of memory");
		return NULL;
	}
	r->o = *o;
	r->cfg = &m->cfg;
	r->sampler = sampler_new(m->cfg.vocab_size);
	r->first = malloc((size_t)m->cfg.vocab_size * sizeof *r->first);
	if (!r->sampler || !r->first)
		err_set(e, EX_OSERR, "out of memory for rollouts");
	else if ((r->g = engine_over(&m->cfg, &m->par, m->w, &eo, be, e)) != NULL)
		r->batch = batch_open(&(struct batch_opt){ .engine = r->g, .gen = &r->o.gen,
		    .sampler = r->sampler,
		    .most = o->parallel }, &hook, e);
	if (r->batch != NULL)
		return r;
	rollout_close(r);
	return NULL;
}

void rollout_close(struct rollout *r)
{
	if (r == NULL)
		return;
	batch_close(r->batch);
	engine_close(r->g);
	sampler_free(r->sampler);
	free(r->first);
	free(r);
}

static int64_t row_width(const struct rollout *r)
{
	return (int64_t)r->cfg->num_sparse * r->cfg->num_experts_per_tok;
}

/* Evaluates the prompt of a group, whose first completion gets its experts. */
static int begin_group(struct rollout *r, struct completion *c, struct err *e)
{
	struct eval_item it = { .s = r->prompt, .tok = c->tok, .n = c->nprompt, .logits = r->first,
	    .topk = c->topk };

	seq_reset(r->prompt);
	return engine_eval(r->g, &it, 1, NULL, e);
}

/* Starts the next completion, with the token that follows the prompt of its group. */
static struct request *next(void *ctx)
{
	struct rollout *r = ctx;
	struct completion *c = r->all + r->started, *head = r->all + r->started / r->o.group *
	    r->o.group;
	struct sample_opt so = r->o.sample;
	struct ids ids;

	if (r->started == r->n || (c == head && begin_group(r, c, &r->e) < 0))
		return NULL;
	ids = (struct ids){ .n = c->nprompt, .v = c->tok };
	if (c != head)
		memcpy(c->topk, head->topk, (size_t)(c->nprompt * row_width(r)) * sizeof *c->topk);
	so.seed = r->seed;
	gentext_free(&c->q.gen);
	c->q = (struct request){ .fork = r->prompt, .first = r->first, .topk = c->topk };
	gentext_start(&c->q.gen, &ids, &so, r->o.max_new, c->stream);
	c->n = c->nprompt;
	r->started++;
	return &c->q;
}

static struct completion *completion_of(struct request *q)
{
	return (struct completion *)((char *)q - offsetof(struct completion, q));
}

static int drawn(void *ctx, struct request *q, struct err *e)
{
	struct completion *c = completion_of(q);

	(void)ctx, (void)e;
	if (q->gen.end >= 0)
		c->tok[c->n++] = (uint32_t)q->gen.end;
	else if (q->gen.ids.n > c->n)
		c->tok[c->n++] = q->gen.ids.v[q->gen.ids.n - 1];
	return 0;
}

static int done(void *ctx, struct request *q, struct err *e)
{
	struct rollout *r = ctx;
	struct completion *c = completion_of(q);

	c->stopped = strcmp(q->gen.finish, "stop") == 0;
	return r->hook->done(r->hook->ctx, c, e);
}

static int step(void *ctx, int n, const struct eval_stats *st, struct err *e)
{
	struct rollout *r = ctx;

	(void)n, (void)st;
	return r->hook->tick(r->hook->ctx, e);
}

int rollout_run(struct rollout *r, struct completion *c, int n, uint64_t seed,
    const struct rollout_hook *h, struct err *e)
{
	int rc;

	engine_refresh(r->g);
	if ((r->prompt = seq_new(r->g, e)) == NULL)
		return -1;
	r->all = c, r->n = n, r->started = 0, r->seed = seed, r->hook = h;
	r->e.status = 0;
	rc = batch_run(r->batch, e);
	if (rc == 0 && r->e.status != 0) {
		*e = r->e;
		rc = -1;
	}
	seq_free(r->prompt);
	return rc;
}
