/*
 * Before a prompt: which experts its answer will use (intent.h). That decides who leaves the
 * store while it is answered (where several sequences go on at once, the mean over as many
 * prompts); and as many as fit are asked for until shortly after the prompt's last pass, the
 * likeliest first: they are read while the drive has nothing else to do.
 */
#include <limits.h>
#include <math.h>
#include <stdlib.h>

#include "decode/decode_int.h"

#define SPAN 8		/* tokens of the answer, one of which should use it */
#define AFTER 2		/* tokens after the prompt for which the word stands */

static int likelier(const void *a, const void *b, void *arg)
{
	const real *share = arg, x = share[*(const int *)a], y = share[*(const int *)b];

	if (x != y)
		return x > y ? -1 : 1;
	return *(const int *)a - *(const int *)b;
}

int64_t intend_bytes(const struct config *c)
{
	return (int64_t)c->num_sparse * c->num_experts * (int64_t)(sizeof(real) + sizeof(float) +
	    sizeof(int));
}

int intend_open(struct engine *g, const char *dir, struct err *e)
{
	size_t n = (size_t)g->cfg->num_sparse * (size_t)g->cfg->num_experts;

	if (!(g->opt.predict & SRC_BIT(SRC_INTENT)) || store_slots(g->store) == INT_MAX)
		return 0;
	g->intent = intent_load(dir, g->cfg, e);
	if (g->intent == NULL)
		return e->status == 0 ? 0 : -1;
	g->share = malloc(sizeof(*g->share) * n);
	g->likely = malloc(sizeof(*g->likely) * n);
	g->mix = calloc(n, sizeof(*g->mix));
	return g->share && g->likely && g->mix ? 0 : err_set(e, EX_OSERR,
	    "%s: out of memory for %s", dir, INTENT_NAME);
}

void intend(struct engine *g, const uint32_t *tok, int n)
{
	int Ls = g->cfg->num_sparse, E = g->cfg->num_experts, all = Ls * E,
	    fit = store_room(g->store);
	int passes = (n + g->opt.max_rows - 1) / g->opt.max_rows;

	if (g->intent == NULL || store_complete(g->store))
		return;
	intent_expect(g->intent, tok, n, g->share);
	g->prompts += g->prompts < g->opt.max_seqs;
	for (int i = 0; i < all; i++) {
		g->likely[i] = i;
		g->mix[i] += ((float)g->share[i] - g->mix[i]) / (float)g->prompts;
		store_expect(g->store, g->sparse[i / E], i % E, g->mix[i]);
	}
	qsort_r(g->likely, (size_t)all, sizeof(*g->likely), likelier, g->share);
	for (int i = 0; i < all && i < fit; i++) {
		int x = g->likely[i];
		float prob = 1 - expf(-SPAN * (float)g->share[x]);

		store_predict(g->store, g->sparse[x / E], x % E, prob, (passes + AFTER) * Ls,
		    SRC_INTENT);
	}
}
