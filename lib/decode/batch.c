#include "decode/batch.h"

#include <stdlib.h>
#include <string.h>

#include "base/progress.h"

struct batch {
	struct batch_opt o;
	struct batch_hook h;
	int V;
	int64_t row;			/* Ls * K */
	real *logits;			/* (most, V) */
	real **free;			/* rows of it that nobody has: the first of most - active */
	float *narrow;			/* (V) what is drawn from, when real is double */
	struct eval_item *item;		/* (most) */
	struct request **asked;		/* (most) whose items they are */
	struct request *head, **tail;	/* in the order of adding: not given to done yet */
	int active, waiting;		/* under way; ended, but behind one that has not */
};

int64_t batch_bytes(const struct config *c, int most)
{
	return ((int64_t)most * (int64_t)sizeof(real) + (int64_t)sizeof(float)) * c->vocab_size;
}

struct batch *batch_open(const struct batch_opt *o, const struct batch_hook *h, struct err *e)
{
	const struct config *c = engine_config(o->engine);
	struct batch *b = calloc(1, sizeof *b);
	size_t n = (size_t)o->most, V = (size_t)c->vocab_size;

	if (b != NULL) {
		b->o = *o;
		b->h = *h;
		b->V = c->vocab_size;
		b->row = (int64_t)c->num_sparse * c->num_experts_per_tok;
		b->tail = &b->head;
		b->logits = malloc(n * V * sizeof *b->logits);
		b->free = malloc(n * sizeof *b->free);
		b->narrow = malloc(V * sizeof *b->narrow);
		b->item = calloc(n, sizeof *b->item);
		b->asked = calloc(n, sizeof *b->asked);
		for (size_t i = 0; b->free != NULL && i < n; i++)
			b->free[i] = b->logits + i * V;
	}
	if (b && b->logits && b->free && b->narrow && b->item && b->asked)
		return b;
	batch_close(b);
	err_set(e, EX_OSERR, "out of memory for %d texts at a time", o->most);
	return NULL;
}

void batch_close(struct batch *b)
{
	if (b == NULL)
		return;
	free(b->logits);
	free(b->free);
	free(b->narrow);
	free(b->item);
	free(b->asked);
	free(b);
}

int batch_active(const struct batch *b)
{
	return b->active;
}

static const float *narrow(struct batch *b, const real *logits)
{
#ifdef CHR_DOUBLE
	for (int v = 0; v < b->V; v++)
		b->narrow[v] = (float)logits[v];
	return b->narrow;
#else
	(void)b;
	return logits;
#endif
}

static int draw(struct batch *b, struct request *q, const real *logits, struct err *e)
{
	gentext_next(&q->gen, b->o.gen, b->o.sampler, narrow(b, logits));
	return b->h.drawn != NULL ? b->h.drawn(b->h.ctx, q, e) : 0;
}

/* Gives back what an ended request had. */
static void leave(struct batch *b, struct request *q)
{
	q->ended = progress_clock();
	if (q->own)
		seq_free(q->seq);
	q->seq = q->own ? NULL : q->seq;
	q->under_way = false;
	b->active--;
	b->free[b->o.most - b->active - 1] = q->logits;
	b->waiting++;
}

static void take_out(struct batch *b, struct request **at)
{
	struct request *q = *at;

	*at = q->behind;
	if (b->tail == &q->behind)
		b->tail = at;
	b->waiting--;
}

/* Those that have ended go to done: in their order, or as they are. */
static int give_back(struct batch *b, struct err *e)
{
	struct request **at = &b->head, *q;

	while ((q = *at) != NULL) {
		if (q->under_way && q->gen.finish)
			leave(b, q);
		if (at == &b->head && b->h.show != NULL && b->h.show(b->h.ctx, q, e) < 0)
			return -1;
		if (q->under_way || (b->o.ordered && at != &b->head)) {
			at = &q->behind;
			continue;
		}
		take_out(b, at);
		if (b->h.done(b->h.ctx, q, e) < 0)
			return -1;
	}
	return 0;
}

/* Evaluates what of the prompt the caches lack. */
static int evaluate(struct batch *b, struct request *q, struct err *e)
{
	int have = seq_len(q->seq), n = q->gen.ids.n - have;
	struct eval_item it = { .s = q->seq, .tok = q->gen.ids.v + have, .n = n,
	    .logits = q->logits,
	    .topk = q->topk != NULL ? q->topk + have * b->row : NULL };
	struct eval_stats st;

	if (engine_eval(b->o.engine, &it, 1, &st, e) < 0)
		return -1;
	q->prefill = st.wall;
	return b->h.prompt != NULL ? b->h.prompt(b->h.ctx, q, n, &st, e) : 0;
}

int batch_add(struct batch *b, struct request *q, struct err *e)
{
	int rc = 0;

	q->began = progress_clock();
	q->own = q->seq == NULL;
	if (q->own)
		q->seq = q->fork != NULL ? seq_fork(q->fork, e) : seq_new(b->o.engine, e);
	if (q->seq == NULL)
		return -1;
	if (q->own && q->fork == NULL)
		seq_adapt(q->seq, q->adapter);
	q->behind = NULL;
	*b->tail = q;
	b->tail = &q->behind;
	q->logits = b->free[b->o.most - b->active - 1];
	q->under_way = true;
	b->active++;
	if (q->fork == NULL)
		rc = evaluate(b, q, e);
	if (rc == 0 && !q->gen.finish)
		rc = draw(b, q, q->fork != NULL ? q->first : q->logits, e);
	q->drawn = q->ended = progress_clock();
	return rc < 0 ? -1 : give_back(b, e);
}

void batch_cancel(struct batch *b, struct request *q, const char *finish)
{
	(void)b;
	if (!q->gen.finish)
		q->gen.finish = finish;
}

int batch_step(struct batch *b, struct err *e)
{
	struct eval_stats st;
	int n = 0;

	for (struct request *q = b->head; q != NULL; q = q->behind) {
		if (!q->under_way || q->gen.finish)
			continue;
		b->item[n] = (struct eval_item){ .s = q->seq,
		    .tok = &q->gen.ids.v[q->gen.ids.n - 1], .n = 1,
		    .logits = q->logits, .topk = q->topk != NULL ? q->topk + (q->gen.ids.n - 1) *
		    b->row : NULL };
		b->asked[n++] = q;
	}
	if (n > 0 && engine_eval(b->o.engine, b->item, n, &st, e) < 0)
		return -1;
	for (int i = 0; i < n; i++)
		if (draw(b, b->asked[i], b->asked[i]->logits, e) < 0)
			return -1;
	if (n > 0 && b->h.step != NULL && b->h.step(b->h.ctx, n, &st, e) < 0)
		return -1;
	return give_back(b, e) < 0 ? -1 : b->active;
}

static bool room(const struct batch *b)
{
	return b->h.room == NULL || b->h.room(b->h.ctx);
}

static bool stopped(const struct batch *b)
{
	return b->h.stop != NULL && b->h.stop(b->h.ctx);
}

/* Takes requests while there are places, and so long as a slow one at the head holds back only
 * so many. */
static int admit(struct batch *b, bool *more, struct err *e)
{
	while (*more && b->active < b->o.most && b->waiting < BATCH_WAITING * b->o.most &&
	    !stopped(b) && room(b)) {
		struct request *q = b->h.next(b->h.ctx);

		*more = q != NULL;
		if (q != NULL && batch_add(b, q, e) < 0)
			return -1;
	}
	return 0;
}

static int interrupt(struct batch *b, struct err *e)
{
	for (struct request *q = b->head; q != NULL; q = q->behind)
		batch_cancel(b, q, "interrupted");
	return give_back(b, e);
}

int batch_run(struct batch *b, struct err *e)
{
	bool more = b->h.next != NULL;

	while (more || b->active > 0) {
		if (admit(b, &more, e) < 0)
			return -1;
		if (stopped(b))
			return interrupt(b, e);
		if (b->active == 0 && more)
			return 1;
		if (batch_step(b, e) < 0)
			return -1;
	}
	return 0;
}
