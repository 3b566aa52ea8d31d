#include "stages/rollout.h"

#include <stdlib.h>
#include <string.h>

#include "decode/decode.h"

#define CHUNK 256	/* rows of a prompt evaluated at a time */

struct slot {
	struct completion *c;	/* NULL: free */
	struct seq *seq;
	real *logits;		/* (V) after its last token */
};

struct rollout {
	struct rollout_opt o;
	const struct config *cfg;
	struct engine *g;
	struct sampler *sampler;
	struct seq *prompt;	/* of the group whose completions are being started */
	real *first;		/* (V) logits after the prompt */
	float *narrow;		/* (V) */
	real *logits;		/* (parallel, V) */
	struct slot *slot;	/* (parallel) */
	struct eval_item *item;	/* (parallel) */
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
	mem_plan_add(p, "decoding", (o->parallel + 1) * V * (int64_t)sizeof(real) + 5 * V *
	    (int64_t)sizeof(float));
}

struct rollout *rollout_open(const struct model *m, const struct rollout_opt *o,
    const struct backend *be, struct err *e)
{
	const struct engine_opt eo = engine_options(o);
	size_t V = (size_t)m->cfg.vocab_size, n = (size_t)o->parallel;
	struct rollout *r = calloc(1, sizeof *r);

	if (r == NULL) {
		err_set(e, EX_OSERR, "out of memory");
		return NULL;
	}
	r->o = *o;
	r->cfg = &m->cfg;
	r->sampler = sampler_new(m->cfg.vocab_size);
	r->first = malloc(V * sizeof *r->first);
	r->narrow = malloc(V * sizeof *r->narrow);
	r->logits = malloc(n * V * sizeof *r->logits);
	r->slot = calloc(n, sizeof *r->slot);
	r->item = calloc(n, sizeof *r->item);
	if (!r->sampler || !r->first || !r->narrow || !r->logits || !r->slot || !r->item)
		err_set(e, EX_OSERR, "out of memory for rollouts");
	else if ((r->g = engine_over(&m->cfg, &m->par, m->w, &eo, be, e)) != NULL) {
		for (size_t i = 0; i < n; i++)
			r->slot[i].logits = r->logits + i * V;
		return r;
	}
	rollout_close(r);
	return NULL;
}

void rollout_close(struct rollout *r)
{
	if (r == NULL)
		return;
	engine_close(r->g);
	sampler_free(r->sampler);
	free(r->first);
	free(r->narrow);
	free(r->logits);
	free(r->slot);
	free(r->item);
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

static void sample_next(struct rollout *r, struct completion *c, const real *logits)
{
	int V = r->cfg->vocab_size, had = c->gen.ids.n;

	for (int v = 0; v < V; v++)
		r->narrow[v] = (float)logits[v];
	gentext_next(&c->gen, &r->o.gen, r->sampler, r->narrow);
	if (c->gen.end >= 0)
		c->tok[c->n++] = (uint32_t)c->gen.end;
	else if (c->gen.ids.n > had)
		c->tok[c->n++] = c->gen.ids.v[had];
}

static int finish(struct slot *s, const struct rollout_hook *h, struct err *e)
{
	struct completion *c = s->c;

	c->stopped = strcmp(c->gen.finish, "stop") == 0;
	seq_free(s->seq);
	*s = (struct slot){ .logits = s->logits };
	return h->done(h->ctx, c, e);
}

/* Starts completion c in a free slot, with the token that follows the prompt. */
static int begin(struct rollout *r, struct slot *s, struct completion *all, struct completion *c,
    uint64_t seed,
    const struct rollout_hook *h, struct err *e)
{
	struct completion *head = all + (c - all) / r->o.group * r->o.group;
	struct sample_opt so = r->o.sample;
	struct ids ids = { .n = c->nprompt, .v = c->tok };

	if (c == head && begin_group(r, c, e) < 0)
		return -1;
	if (c != head)
		memcpy(c->topk, head->topk, (size_t)(c->nprompt * row_width(r)) * sizeof *c->topk);
	so.seed = seed;
	gentext_free(&c->gen);
	gentext_start(&c->gen, &ids, &so, r->o.max_new, c->stream);
	c->n = c->nprompt;
	s->c = c;
	if ((s->seq = seq_fork(r->prompt, e)) == NULL)
		return -1;
	sample_next(r, c, r->first);
	return c->gen.finish != NULL ? finish(s, h, e) : 0;
}

/* Evaluates the last token of each completion under way and samples the next. Returns how many
 * there were, or -1. */
static int step(struct rollout *r, const struct rollout_hook *h, struct err *e)
{
	struct slot *at[r->o.parallel];
	int n = 0;

	for (struct slot *s = r->slot; s < r->slot + r->o.parallel; s++)
		if (s->c != NULL) {
			struct completion *c = s->c;

			r->item[n] = (struct eval_item){ .s = s->seq, .tok = &c->tok[c->n - 1],
			    .n = 1, .logits = s->logits,
			    .topk = c->topk + (c->n - 1) * row_width(r) };
			at[n++] = s;
		}
	if (n > 0 && engine_eval(r->g, r->item, n, NULL, e) < 0)
		return -1;
	for (int i = 0; i < n; i++) {
		sample_next(r, at[i]->c, at[i]->logits);
		if (at[i]->c->gen.finish != NULL && finish(at[i], h, e) < 0)
			return -1;
	}
	return h->tick(h->ctx, e) < 0 ? -1 : n;
}

static int run(struct rollout *r, struct completion *c, int n, uint64_t seed,
    const struct rollout_hook *h, struct err *e)
{
	int started = 0, live = 0;

	do {
		for (int i = 0; i < r->o.parallel && started < n; i++)
			/* one may end with its first token */
			while (r->slot[i].c == NULL && started < n)
				if (begin(r, &r->slot[i], c, &c[started++], seed, h, e) < 0)
					return -1;
		if ((live = step(r, h, e)) < 0)
			return -1;
	} while (live > 0 || started < n);
	return 0;
}

int rollout_run(struct rollout *r, struct completion *c, int n, uint64_t seed,
    const struct rollout_hook *h,
    struct err *e)
{
	int rc;

	engine_refresh(r->g);
	if ((r->prompt = seq_new(r->g, e)) == NULL)
		return -1;
	rc = run(r, c, n, seed, h, e);
	for (int i = 0; i < r->o.parallel; i++) {
		seq_free(r->slot[i].seq);
		r->slot[i].seq = NULL;
		r->slot[i].c = NULL;
	}
	seq_free(r->prompt);
	return rc;
}
