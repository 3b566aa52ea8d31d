#include "stages/teacher_live.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "format/modeldir.h"

#define BLOCK ((int64_t)32 << 20)	/* bytes of logits held, about, */
#define FEWEST 64			/* rows of them where the limit is tight */

struct teacher_live {
	struct engine *g, *own;		/* own: to be closed, or NULL */
	int V;
	int64_t cap, first, have;	/* rows of logits at most; rows first..first+have-1 of
					   the batch are there */
	real *logits;			/* (cap, V) */
	struct seq *seq[TEACHER_LIVE_SEQS];	/* the first goes on where the rows before ended */
};

static int64_t rows_held(int V, int T)
{
	int64_t n = BLOCK / ((int64_t)V * (int64_t)sizeof(real)),
	    most = (int64_t)TEACHER_LIVE_SEQS * T;

	n = n < FEWEST ? FEWEST : n;
	return n < most ? n : most;
}

static struct engine_opt engine_opt(const struct teacher_live_opt *o)
{
	return (struct engine_opt){ .ram = o->ram, .budget = o->budget,
	    .max_seqs = TEACHER_LIVE_SEQS, .max_tokens = o->T,
	    .max_rows = o->rows, .other = (int64_t)o->rows * o->V * (int64_t)sizeof(real) };
}

/* --- is it the right one? --- */

static int same_tokens(const char *dir, const struct tok *a, const struct tok *b, struct err *e)
{
	int n = tok_vocab(a) > tok_vocab(b) ? tok_vocab(a) : tok_vocab(b);

	for (int i = 0; i < n; i++) {
		size_t la = 0, lb = 0;
		const char *ta = tok_bytes(a, (uint32_t)i, &la), *tb = tok_bytes(b, (uint32_t)i,
		    &lb);

		if ((ta == NULL) != (tb == NULL) ||
		    (ta != NULL && (la != lb || memcmp(ta, tb, la) != 0)))
			return err_set(e, EX_DATAERR,
			    "%s: its tokenizer is another than the student's: token %d differs",
			    dir, i);
	}
	return 0;
}

static int check_tokens(const char *dir, const struct tok *tok, struct err *e)
{
	char *path = tok_find(dir);
	struct tok *own = NULL;
	int rc = 0;

	if (tok != NULL && path != NULL)
		rc = (own = tok_load(dir, e)) == NULL ? -1 : same_tokens(dir, own, tok, e);
	tok_free(own);
	free(path);
	return rc;
}

static int check_config(const struct teacher_live_opt *o, const struct config *c,
    const struct config *student, struct err *e)
{
	if (c->vocab_size != student->vocab_size)
		return err_set(e, EX_DATAERR, "%s: its vocab_size is %d, the student's is %d",
		    o->dir, c->vocab_size,
		    student->vocab_size);
	if (o->T > c->max_position_embeddings)
		return err_set(e, EX_USAGE, "--seq %d is above the teacher's "
		    "max_position_embeddings %d", o->T,
		    c->max_position_embeddings);
	return 0;
}

/* As many rows at a time as the limit allows. */
static int fit(struct teacher_live_opt *o, int64_t *bytes, struct err *e)
{
	int rc;

	for (o->rows = (int)rows_held(o->V, o->T);; o->rows /= 2) {
		const struct engine_opt eo = engine_opt(o);
		struct mem_plan plan = {0};

		*e = (struct err){0};
		rc = engine_plan(o->dir, &eo, &plan, e);
		*bytes = mem_plan_total(&plan);
		if (rc == 0 || e->status != EX_OSERR || o->rows < 2 * FEWEST)
			return rc;
	}
}

int teacher_live_plan(struct teacher_live_opt *o, const struct config *student,
    const struct tok *tok, int64_t *bytes,
    char fingerprint[33], struct err *e)
{
	const char *print = NULL;
	struct modeldir md;

	if (modeldir_open(&md, o->dir, 0, NULL, e) < 0)
		return -1;
	if (check_config(o, &md.cfg, student, e) == 0 && check_tokens(o->dir, tok, e) == 0 &&
	    (print = modeldir_fingerprint(&md, e)) != NULL)
		memcpy(fingerprint, print, sizeof md.fingerprint);
	o->V = md.cfg.vocab_size;
	modeldir_close(&md);
	return print != NULL ? fit(o, bytes, e) : -1;
}

int teacher_live_plan_stage(struct teacher_live_opt *o, const struct distill *d,
    const struct stage_env *v, char fingerprint[33],
    struct mem_plan *p, struct err *e)
{
	int64_t bytes = 0;

	if (o->dir != NULL && teacher_live_plan(o, v->cfg, v->tok, &bytes, fingerprint, e) < 0)
		return -1;
	mem_plan_add(p, "teacher", bytes + distill_bytes(d, v->cfg->vocab_size));
	return 0;
}

/* --- */

struct teacher_live *teacher_live_over(struct engine *g, int rows, struct err *e)
{
	struct teacher_live *t = calloc(1, sizeof *t);

	if (t == NULL) {
		err_set(e, EX_OSERR, "out of memory");
		return NULL;
	}
	t->g = g;
	t->V = engine_config(g)->vocab_size;
	t->cap = rows;
	t->logits = mem_alloc((size_t)(t->cap * t->V) * sizeof *t->logits);
	for (int i = 0; i < TEACHER_LIVE_SEQS; i++)
		if ((t->seq[i] = seq_new(g, e)) == NULL) {
			teacher_live_close(t);
			return NULL;
		}
	return t;
}

struct teacher_live *teacher_live_open(const struct teacher_live_opt *o, const struct backend *be,
    struct err *e)
{
	const struct engine_opt eo = engine_opt(o);
	struct engine *g = engine_open(o->dir, &eo, be, NULL, e);
	struct teacher_live *t = g != NULL ? teacher_live_over(g, o->rows, e) : NULL;

	if (t == NULL)
		engine_close(g);
	else
		t->own = g;
	return t;
}

void teacher_live_close(struct teacher_live *t)
{
	if (t == NULL)
		return;
	for (int i = 0; i < TEACHER_LIVE_SEQS; i++)
		seq_free(t->seq[i]);
	engine_close(t->own);
	mem_free(t->logits);
	free(t);
}

/* Rows from r on that belong to one document, before row end. */
static int document_rows(const struct batch *b, int64_t r, int64_t end)
{
	int n = 1;

	while (r + n < end && (r + n) % b->T != 0 && b->doc_start[r + n] == b->doc_start[r])
		n++;
	return n;
}

/* Items for the rows from t->first on; padding is passed over. */
static int fill(struct teacher_live *t, const struct batch *b,
    struct eval_item it[TEACHER_LIVE_SEQS])
{
	int64_t R = (int64_t)b->B * b->T, end = R - t->first < t->cap ? R : t->first + t->cap,
	    r = t->first;
	int n = 0;

	while (r < end && !(b->doc_start[r] >= 0 && n == TEACHER_LIVE_SEQS)) {
		int rows = 1;

		if (b->doc_start[r] >= 0) {
			rows = document_rows(b, r, end);
			it[n] = (struct eval_item){ .s = t->seq[n], .tok = b->tok + r, .n = rows,
			    .all = true,
			    .logits = t->logits + (r - t->first) * t->V };
			if (b->doc_start[r] == r % b->T)
				seq_reset(it[n].s);
			n++;
		}
		r += rows;
	}
	t->have = r - t->first;
	return n;
}

static int evaluate(struct teacher_live *t, const struct batch *b, int64_t row, struct err *e)
{
	struct eval_item it[TEACHER_LIVE_SEQS];
	struct seq *last;
	int n;

	t->first = row;
	n = fill(t, b, it);
	if (n == 0)
		return 0;
	last = t->seq[n - 1];		/* its document may go on */
	t->seq[n - 1] = t->seq[0];
	t->seq[0] = last;
	return engine_eval(t->g, it, n, NULL, e);
}

int64_t teacher_live_rows(void *self, const struct micro *mb, int64_t row, int64_t n,
    const real **logits, struct err *e)
{
	struct teacher_live *t = self;
	int64_t left;

	if ((row == 0 || row >= t->first + t->have) && evaluate(t, &mb->b, row, e) < 0)
		return -1;
	*logits = t->logits + (row - t->first) * t->V;
	left = t->first + t->have - row;
	return left < n ? left : n;
}
