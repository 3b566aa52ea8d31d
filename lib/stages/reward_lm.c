/* A reward from another model: the mean log-probability of the completion's tokens. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "decode/decode.h"
#include "stages/reward_int.h"

#define BLOCK 16	/* rows of logits held at a time */

struct lm {
	struct engine *g;
	struct seq *seq;
	real *logits;		/* (BLOCK, V) */
};

static struct engine_opt options(const struct reward_opt *o)
{
	return (struct engine_opt){ .max_seqs = 1, .max_tokens = o->max_tokens, .max_rows = 256,
	    .predict = SRC_BIT(SRC_GATE), .store = { .waste = 0.03 } };
}

int reward_plan_lm(const char *dir, const struct reward_opt *o, struct mem_plan *p, struct err *e)
{
	const struct engine_opt eo = options(o);
	struct mem_plan own = { 0 };
	int64_t bytes = 0;

	if (engine_plan(dir, &eo, &own, e) < 0)
		return -1;
	for (int i = 0; i < own.n; i++)
		if (strcmp(own.item[i].name, "program") != 0)	/* the trainer counts that */
			bytes += own.item[i].bytes;
	mem_plan_add(p, "reward model", bytes);
	return 0;
}

static double log_prob(const real *x, int V, uint32_t id)
{
	double max = -INFINITY, sum = 0;

	for (int v = 0; v < V; v++)
		max = fmax(max, (double)x[v]);
	for (int v = 0; v < V; v++)
		sum += exp((double)x[v] - max);
	return (double)x[id] - max - log(sum);
}

static int ask_lm(struct reward *r, const struct reward_item *it, double *x, struct err *e)
{
	struct lm *lm = r->self;
	int V = engine_config(lm->g)->vocab_size;
	double sum = 0;
	struct eval_item ev = { .s = lm->seq, .tok = it->tok, .n = it->nprompt - 1 };

	seq_reset(lm->seq);
	if (ev.n > 0 && engine_eval(lm->g, &ev, 1, NULL, e) < 0)
		return -1;
	/* token at + i + 1 is predicted at at + i */
	for (int at = it->nprompt - 1; at < it->n - 1; at += BLOCK) {
		ev = (struct eval_item){ .s = lm->seq, .tok = it->tok + at, .n = it->n - 1 - at,
		    .logits = lm->logits, .all = true };
		if (ev.n > BLOCK)
			ev.n = BLOCK;
		if (engine_eval(lm->g, &ev, 1, NULL, e) < 0)
			return -1;
		for (int i = 0; i < ev.n; i++)
			sum += log_prob(lm->logits + (int64_t)i * V, V, it->tok[at + i + 1]);
	}
	*x = it->n > it->nprompt ? sum / (it->n - it->nprompt) : 0;
	return 0;
}

static void close_lm(struct reward *r)
{
	struct lm *lm = r->self;

	seq_free(lm->seq);
	engine_close(lm->g);
	free(lm->logits);
	free(lm);
}

static int same_tokenizer(const char *dir, const struct tok *mine, struct err *e)
{
	struct tok *t = tok_load(dir, e);
	int rc = 0;

	if (t == NULL)
		return -1;
	if (mine == NULL || strcmp(tok_sha256(t), tok_sha256(mine)) != 0)
		rc = err_set(e, EX_DATAERR, "reward lm:%s: has another tokenizer than the model in "
		    "training", dir);
	tok_free(t);
	return rc;
}

int reward_open_lm(struct reward *r, const char *dir, const struct reward_opt *o, struct err *e)
{
	const struct engine_opt eo = options(o);
	struct lm *lm = calloc(1, sizeof *lm);

	if (lm == NULL)
		return err_set(e, EX_OSERR, "out of memory");
	*r = (struct reward){ ask_lm, NULL, close_lm, lm };
	if (same_tokenizer(dir, o->tok, e) < 0 || (lm->g = engine_open(dir, &eo, o->be, NULL, e)) ==
	    NULL)
		/* cppcheck-suppress memleak ; r owns lm: whoever opened r closes it, also after
		 * an error */
		return -1;
	if (tok_fits(o->tok, engine_config(lm->g)->vocab_size, dir, e) < 0)
		/* cppcheck-suppress memleak */
		return -1;
	lm->logits = malloc((size_t)BLOCK * (size_t)engine_config(lm->g)->vocab_size *
	    sizeof *lm->logits);
	if (lm->logits == NULL)
		/* cppcheck-suppress memleak */
		return err_set(e, EX_OSERR, "out of memory");
	/* cppcheck-suppress memleak */
	return (lm->seq = seq_new(lm->g, e)) != NULL ? 0 : -1;
}
