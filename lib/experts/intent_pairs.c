#include "experts/intent_pairs.h"

#include <stdlib.h>
#include <string.h>

struct pending {
	int n, cap;
	uint32_t *tok;
	bool *answer;
	int *id;			/* (cap, Ls * K) */
};

static int64_t per_token(const struct intent_pairs *a)
{
	return (int64_t)a->cfg->num_sparse * a->cfg->num_experts_per_tok;
}

int intent_pairs_open(struct intent_pairs *a, const struct config *c, int prompt_tokens, int every,
    struct err *e)
{
	*a = (struct intent_pairs){ .cfg = c, .prompt_tokens = prompt_tokens, .every = every };
	a->pending = calloc(1, sizeof *a->pending);
	return a->pending ? 0 : err_set(e, EX_OSERR, "out of memory");
}

static int grow_pending(struct intent_pairs *a, struct err *e)
{
	struct pending *p = a->pending;
	size_t cap = p->cap ? 2 * (size_t)p->cap : 256;
	uint32_t *tok = realloc(p->tok, cap * sizeof *tok);
	bool *answer = realloc(p->answer, cap * sizeof *answer);
	int *id = realloc(p->id, cap * (size_t)per_token(a) * sizeof *id);

	p->tok = tok ? tok : p->tok;
	p->answer = answer ? answer : p->answer;
	p->id = id ? id : p->id;
	if (!tok || !answer || !id || cap > INT32_MAX / 2)
		return err_set(e, EX_OSERR, "out of memory");
	p->cap = (int)cap;
	/* cppcheck-suppress memleak ; they are in p */
	return 0;
}

int intent_pairs_add(struct intent_pairs *a, const struct act *act, struct err *e)
{
	struct pending *p = a->pending;
	const struct config *c = a->cfg;
	int *id;

	if (act->first && intent_pairs_end(a, e) < 0)
		return -1;
	if (act->token < 0 || act->token >= c->vocab_size)
		return err_set(e, EX_DATAERR, act->token < 0 ? "no \"token\""
		    : "\"token\" is outside the model's vocabulary");
	for (int l = 0; l < c->num_hidden_layers; l++)
		if ((act->n[l] > 0) != c->block[l].sparse)
			return err_set(e, EX_DATAERR, "layer %d has %s experts in the model", l,
			    c->block[l].sparse ? "" : "no ");
	if (p->n == p->cap && grow_pending(a, e) < 0)
		return -1;
	id = p->id + p->n * per_token(a);
	for (int l = 0; l < c->num_hidden_layers; l++)
		if (c->block[l].sparse) {
			memcpy(id, act->id + (int64_t)l * c->num_experts_per_tok,
			    sizeof *id * (size_t)act->n[l]);
			id += act->n[l];
		}
	p->tok[p->n] = (uint32_t)act->token;
	p->answer[p->n++] = act->answer;
	return 0;
}

/* Marks the answer of a sequence that does not; returns the length of the prompt. */
static int find_prompt(const struct intent_pairs *a)
{
	struct pending *p = a->pending;
	int n = 0;

	while (n < p->n && !p->answer[n])
		n++;
	if (n < p->n)
		return n;
	n = a->prompt_tokens > 0 ? a->prompt_tokens : p->n / 2;
	for (int i = n; i < p->n; i++)
		p->answer[i] = true;
	return n < p->n ? n : 0;
}

/* Uses of experts by tokens from..to of the pending sequence, or of the answer's among them. */
static void count(const struct intent_pairs *a, int from, int to, bool all, real *used)
{
	const int K = a->cfg->num_experts_per_tok, E = a->cfg->num_experts;

	for (int t = from; t < to; t++)
		for (int64_t i = 0; (all || a->pending->answer[t]) && i < per_token(a); i++)
			used[i / K * E + a->pending->id[t * per_token(a) + i]]++;
}

/* The experts of prompt and answer, one token after the other. */
static int *in_order(const struct intent_pairs *a, int n, int64_t tokens)
{
	int *id = malloc((size_t)(n + tokens) * (size_t)per_token(a) * sizeof *id), *to = id;

	for (int t = 0; id && t < a->pending->n; t++)
		if (t < n || a->pending->answer[t]) {
			memcpy(to, a->pending->id + t * per_token(a), (size_t)per_token(a) *
			    sizeof *id);
			to += per_token(a);
		}
	return id;
}

static enum answer_part part_of(const struct intent_pairs *a)
{
	if (a->every > 0 && (a->n + 1) % a->every == 0)
		return PART_HELD;
	return (a->count[PART_TRAIN] + a->count[PART_DEV]) % 10 == 4 ? PART_DEV : PART_TRAIN;
}

static int keep(struct intent_pairs *a, int n, struct err *e)
{
	struct pending *p = a->pending;
	size_t size = (size_t)a->cfg->num_sparse * (size_t)a->cfg->num_experts;
	struct answer *x;

	if (a->n == a->cap) {
		int cap = a->cap ? 2 * a->cap : 256;

		if (!(x = realloc(a->v, (size_t)cap * sizeof *x)))
			return err_set(e, EX_OSERR, "out of memory");
		a->v = x;
		a->cap = cap;
	}
	x = &a->v[a->n];
	*x = (struct answer){ .n = n, .part = part_of(a) };
	a->n++;
	a->count[x->part]++;
	x->tok = malloc((size_t)n * sizeof *x->tok);
	x->used = calloc(size, sizeof *x->used);
	x->touched = calloc(size, sizeof *x->touched);
	for (int t = n; t < p->n; t++)
		x->tokens += p->answer[t];
	x->id = x->part == PART_HELD ? in_order(a, n, x->tokens) : NULL;
	if (!x->tok || !x->used || !x->touched || (x->part == PART_HELD && !x->id))
		return err_set(e, EX_OSERR, "out of memory");
	memcpy(x->tok, p->tok, (size_t)n * sizeof *x->tok);
	count(a, n, p->n, false, x->used);
	count(a, 0, n, true, x->touched);
	return 0;
}

int intent_pairs_end(struct intent_pairs *a, struct err *e)
{
	int n, rc = 0;

	if (a->pending->n == 0)
		return 0;
	n = find_prompt(a);
	if (n > 0)
		rc = keep(a, n, e);
	else
		a->left_out++;
	a->pending->n = 0;
	return rc;
}

void intent_pairs_free(struct intent_pairs *a)
{
	for (int i = 0; i < a->n; i++) {
		free(a->v[i].tok);
		free(a->v[i].used);
		free(a->v[i].touched);
		free(a->v[i].id);
	}
	free(a->v);
	if (a->pending) {
		free(a->pending->tok);
		free(a->pending->answer);
		free(a->pending->id);
	}
	free(a->pending);
	*a = (struct intent_pairs){ 0 };
}
