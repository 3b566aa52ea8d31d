#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "decode/gentext.h"

int64_t gentext_bytes(int V, int texts)
{
	return (int64_t)V * (4 * texts + 16);
}

uint64_t gentext_stream(const struct ids *prompt)
{
	uint64_t h = (uint64_t)prompt->n;

	for (int i = 0; i < prompt->n; i++)		/* splitmix64's steps (Steele et al.
							   2014) */
		h = (h ^ (h >> 30) ^ prompt->v[i]) * 0xbf58476d1ce4e5b9u + 0x9e3779b97f4a7c15u;
	return h ^ (h >> 31);
}

void gentext_start(struct gentext *g, const struct ids *prompt, const struct sample_opt *so,
    int max_new, uint64_t stream)
{
	*g = (struct gentext){ .nprompt = prompt->n, .max_new = max_new, .sample = *so,
	    .stream = stream, .end = -1 };
	for (int i = 0; i < prompt->n; i++)
		ids_push(&g->ids, prompt->v[i]);
	if (max_new == 0)
		g->finish = "length";
}

static void reserve(struct gentext *g, size_t more)
{
	char *p;

	if (g->len + more <= g->cap)
		return;
	g->cap = 2 * (g->len + more) + 256;
	if ((p = realloc(g->text, g->cap)) == NULL)
		err_die(EX_OSERR, "out of memory");
	g->text = p;
}

/* Cuts the text at the first stop string that ends in its last `fresh` bytes. */
static bool cut_at_stop(struct gentext *g, const struct gentext_opt *o, size_t fresh)
{
	size_t cut = g->len;

	for (int i = 0; i < o->nstop; i++) {
		size_t n = strlen(o->stop[i]), from = g->len - fresh;
		char *at;

		if (n == 0)
			continue;
		from = from > n - 1 ? from - (n - 1) : 0;
		at = g->len > from ? memmem(g->text + from, g->len - from, o->stop[i], n) : NULL;
		if (at && (size_t)(at - g->text) < cut)
			cut = (size_t)(at - g->text);
	}
	if (cut == g->len)
		return false;
	g->len = cut;
	return true;
}

static size_t add_text(struct gentext *g, const struct tok *tok, uint32_t id)
{
	size_t n = 0;

	tok_bytes(tok, id, &n);
	reserve(g, n + 16);
	n = tok_stream_put(tok, &g->tail, id, true, g->text + g->len);
	g->len += n;
	return n;
}

void gentext_next(struct gentext *g, const struct gentext_opt *o, struct sampler *s,
    const float *logits)
{
	int made = g->ids.n - g->nprompt;
	uint32_t id = sample(s, &g->sample, logits, g->ids.v, g->ids.n, g->stream, (uint64_t)made);
	size_t fresh = 0;

	for (int i = 0; i < o->n_end; i++)
		if (id == o->end[i]) {
			g->finish = "stop";
			g->end = (int32_t)id;
		}
	if (!g->finish) {
		ids_push(&g->ids, id);
		if (o->tok)
			fresh = add_text(g, o->tok, id);
		if (made + 1 >= g->max_new)
			g->finish = "length";
	}
	if (g->finish && o->tok) {
		size_t n;

		reserve(g, 16);
		n = tok_stream_end(&g->tail, g->text + g->len);
		g->len += n;
		fresh += n;
	}
	if (cut_at_stop(g, o, fresh))
		g->finish = "stop";
}

size_t gentext_shown(const struct gentext *g, const struct gentext_opt *o)
{
	size_t held = 0;

	for (int i = 0; i < o->nstop && !g->finish; i++) {
		size_t n = strlen(o->stop[i]);

		for (size_t k = n < g->len + 1 ? n : g->len + 1; k-- > held + 1;)
			if (memcmp(g->text + g->len - k, o->stop[i], k) == 0) {
				held = k;
				break;
			}
	}
	return g->len - held;
}

void gentext_free(struct gentext *g)
{
	ids_free(&g->ids);
	free(g->text);
	*g = (struct gentext){ 0 };
}
