/*
 * batch: texts that are generated together. Requests come one after the other, a prompt is
 * evaluated when its request is taken, and each step draws one token for all that are under way.
 * What a request gives depends on itself alone, not on what else runs.
 *
 *	struct batch *b = batch_open(&(struct batch_opt){ .engine = g, .gen = &gen, .sampler = s,
 *	    .most = 8 }, &hook, &e);
 *	rc = batch_run(b, &e);		(hook.next gives requests until it has none; hook.done
 *					takes them back)
 *	batch_close(b);
 *
 * A server calls batch_add(), batch_step() and batch_cancel() itself.
 */
#ifndef CHR_BATCH_H
#define CHR_BATCH_H

#include "decode/decode.h"
#include "decode/gentext.h"

struct request {		/* the caller's, from batch_add() until hook.done */
	struct gentext gen;	/* started: gentext_start() */
	struct seq *seq;	/* NULL: a new one. Else the caller's, which has evaluated the
				   first seq_len() tokens of gen.ids, fewer than all, and keeps
				   it */
	const struct seq *fork;	/* NULL, or: has evaluated the whole prompt, and goes on
				   elsewhere; */
	const real *first;	/* (V) the logits it gave */
	int adapter;		/* of a new sequence: seq_adapt() */
	int32_t *topk;		/* NULL, or (tokens, Ls, K): the experts of each token that is
				   evaluated */

	double began, drawn, ended;	/* when its prompt was begun, its first token drawn, and
					   it ended */
	double prefill;			/* seconds of evaluating the prompt */

	struct request *behind;	/* private */
	real *logits;
	bool own, under_way;
};

struct batch_hook {		/* each may be NULL but done; -1 ends batch_run() with *e */
	struct request *(*next)(void *ctx);	/* NULL: there are no more */
	bool (*room)(void *ctx);		/* may one more begin? */
	bool (*stop)(void *ctx);		/* end them all now, as "interrupted" */
	/* n tokens of it */
	int (*prompt)(void *ctx, struct request *q, int n, const struct eval_stats *st,
	    struct err *e);
	int (*drawn)(void *ctx, struct request *q, struct err *e);	/* a token, or the end */
	/* a step of n requests */
	int (*step)(void *ctx, int n, const struct eval_stats *st, struct err *e);
	/* has ended; the caller frees its text */
	int (*done)(void *ctx, struct request *q, struct err *e);
	/* the first that has not been given to done */
	int (*show)(void *ctx, struct request *first, struct err *e);
	void *ctx;
};

struct batch_opt {
	struct engine *engine;
	const struct gentext_opt *gen;
	struct sampler *sampler;
	int most;		/* requests under way at a time: sequences of the engine */
	bool ordered;		/* done in the order of batch_add(); so many times `most` may
				   wait behind a slow one: */
#define BATCH_WAITING 16
};

struct batch;

/* Takes (most, V) logits. NULL: EX_OSERR. */
struct batch *batch_open(const struct batch_opt *o, const struct batch_hook *h, struct err *e)
    CHR_MUST_CHECK;
void batch_close(struct batch *b);
int64_t batch_bytes(const struct config *c, int most);

int batch_add(struct batch *b, struct request *q, struct err *e) CHR_MUST_CHECK;
/* how many are under way after it, or -1 */
int batch_step(struct batch *b, struct err *e) CHR_MUST_CHECK;
/* it ends with the next step */
void batch_cancel(struct batch *b, struct request *q, const char *finish);
int batch_active(const struct batch *b);

/* Until there is nothing left: 0, 1 when requests were left for want of room, or -1. */
int batch_run(struct batch *b, struct err *e) CHR_MUST_CHECK;

#endif
