#include "experts/oracle.h"

#include <stdlib.h>
#include <string.h>

#include "experts/actlog.h"

struct oracle {
	int n, room;
	struct oracle_seq *seq;		/* (n) */
	int tokens;			/* that the last has room for */
	int64_t bytes;
};

/* An array of `from` elements, made to be of `to`. */
static void *more(struct oracle *o, void *p, int64_t from, int64_t to, size_t size)
{
	void *q = realloc(p, (size_t)to * size);

	if (q == NULL)
		err_die(EX_OSERR, "out of memory for the log of --oracle");
	o->bytes += (to - from) * (int64_t)size;
	return q;
}

static void begin(struct oracle *o)
{
	if (o->n == o->room) {
		int to = o->room ? 2 * o->room : 16;

		o->seq = more(o, o->seq, o->room, to, sizeof *o->seq);
		o->room = to;
	}
	o->seq[o->n++] = (struct oracle_seq){ 0 };
	o->tokens = 0;
}

static void add(struct oracle *o, const struct config *c, const struct act *a)
{
	struct oracle_seq *q = &o->seq[o->n - 1];
	int64_t K = c->num_experts_per_tok, each = c->num_sparse * K;
	int64_t room = o->tokens ? 2 * o->tokens : 256;
	int32_t *to;

	if (q->n == o->tokens) {
		q->tok = more(o, q->tok, o->tokens, room, sizeof *q->tok);
		q->ids = more(o, q->ids, o->tokens * each, room * each, sizeof *q->ids);
		o->tokens = (int)room;
	}
	q->tok[q->n] = (uint32_t)a->token;
	to = q->ids + q->n++ * each;
	for (int l = 0; l < c->num_hidden_layers; l++)
		for (int k = 0; k < a->n[l]; k++)
			*to++ = a->id[l * K + k];
}

static int check_model(const struct actlog_model *m, const struct config *c, const char *path,
    struct err *e)
{
	if (m->layers == c->num_hidden_layers && m->experts == c->num_experts &&
	    m->top_k == c->num_experts_per_tok)
		return 0;
	return err_set(e, EX_DATAERR, "%s: a log of a model of %d layers and %d experts, top-%d, "
	    "not of this one", path, m->layers, m->experts, m->top_k);
}

/* Does the record have experts in exactly the layers that this model has? */
static int check_act(const struct act *a, const struct config *c, const char *path, struct err *e)
{
	bool fits = a->token >= 0;

	for (int l = 0; l < c->num_hidden_layers; l++)
		fits = fits && (a->n[l] > 0) == c->block[l].sparse;
	return fits ? 0 : err_set(e, EX_DATAERR, "%s: sequence %lld, position %lld: no token, or "
	    "experts in other layers than this model has", path, (long long)a->seq,
	    (long long)a->pos);
}

static int read_log(struct oracle *o, struct jsonl *in, const struct config *c, const char *path,
    struct err *e)
{
	struct actlog log;
	int rc;

	if (actlog_open(&log, in, e) < 0)
		return -1;
	rc = check_model(&log.model, c, path, e);
	while (rc == 0 && (rc = actlog_next(&log, e)) == 1) {
		if ((rc = check_act(&log.act, c, path, e)) < 0)
			break;
		if (log.act.first)
			begin(o);
		add(o, c, &log.act);
	}
	actlog_close(&log);
	return rc;
}

struct oracle *oracle_load(const char *path, const struct config *c, struct err *e)
{
	char *files[1] = { (char *)path };
	struct jsonl *in = jsonl_open(1, files, false, e);
	struct oracle *o;

	if (in == NULL)
		return NULL;
	if ((o = calloc(1, sizeof *o)) == NULL)
		err_set(e, EX_OSERR, "out of memory");
	else if (read_log(o, in, c, path, e) < 0) {
		oracle_free(o);
		o = NULL;
	}
	jsonl_close(in);
	return o;
}

void oracle_free(struct oracle *o)
{
	for (int i = 0; o && i < o->n; i++) {
		free(o->seq[i].tok);
		free(o->seq[i].ids);
	}
	if (o)
		free(o->seq);
	free(o);
}

int64_t oracle_bytes(const struct oracle *o)
{
	return o ? (int64_t)sizeof *o + o->bytes : 0;
}

const struct oracle_seq *oracle_find(const struct oracle *o, const uint32_t *tok, int n)
{
	const struct oracle_seq *nothing = NULL;	/* after the prompt */

	for (int i = 0; i < o->n; i++) {
		const struct oracle_seq *q = &o->seq[i];

		if (q->n < n || memcmp(q->tok, tok, (size_t)n * sizeof *tok) != 0)
			continue;
		if (q->n > n)
			return q;
		nothing = q;
	}
	return nothing;
}
