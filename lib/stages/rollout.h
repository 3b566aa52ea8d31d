/*
 * rollout: completions sampled from a model in training: with its own weights where they are,
 * with caches, several at a time. The G completions of a prompt share its evaluation. Which
 * experts every token used is kept, so that training can use the same ones.
 *
 *	struct rollout *r = rollout_open(m, &o, be, &e);
 *	rollout_run(r, c, n, &hook, &e);		(after each change of the weights)
 *
 * What is sampled depends on weights, prompt, seed and stream, not on how many are sampled at a
 * time.
 */
#ifndef CHR_ROLLOUT_H
#define CHR_ROLLOUT_H

#include "decode/batch.h"
#include "model/model.h"

struct rollout_opt {
	struct sample_opt sample;
	struct gentext_opt gen;
	int group;		/* completions of a prompt */
	int max_new;
	int parallel;		/* completions under way at a time */
	int max_tokens;		/* of prompt and completion */
};

struct completion {
	/* given */
	int nprompt;
	uint64_t stream;
	/* (max_tokens) and (max_tokens, Ls, K): the caller's memory */
	uint32_t *tok;		/* the prompt, then what was sampled, with the end token if it
				   came to one */
	int32_t *topk;		/* experts of tokens 0..n-2; the last one was never evaluated */
	/* found */
	int n;
	bool stopped;		/* at an end token or a stop text, not for its length */
	struct request q;		/* with its text, until the next run */
};

struct rollout_hook {
	int (*done)(void *ctx, struct completion *c, struct err *e);	/* one has ended */
	/* a token was sampled for all under way */
	int (*tick)(void *ctx, struct err *e);
	void *ctx;
};

struct rollout;

void rollout_plan(struct mem_plan *p, const struct config *c, const struct params *ps,
    const struct rollout_opt *o);
struct rollout *rollout_open(const struct model *m, const struct rollout_opt *o,
    const struct backend *be, struct err *e) CHR_MUST_CHECK;
void rollout_close(struct rollout *r);

/* n completions, the groups one after the other. seed: of this run's draws. 0 or -1. */
int rollout_run(struct rollout *r, struct completion *c, int n, uint64_t seed,
    const struct rollout_hook *h,
    struct err *e) CHR_MUST_CHECK;

#endif
