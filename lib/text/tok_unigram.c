#include <float.h>
#include <stdlib.h>
#include <string.h>

#include "text/tok_impl.h"

#define UNKNOWN_COST 10		/* below the least likely token, as in SentencePiece */

struct unigram {
	double *score;			/* (V) */
	double least;
	uint32_t longest;		/* bytes of the longest entry */
	/* one thread's: the best way to each byte of a piece */
	struct way { double score; uint32_t from, id; } *way;
	size_t cap;
};

struct unigram *unigram_new(int V, uint32_t longest)
{
	struct unigram *u = bytemap_grow(NULL, 1, sizeof *u);

	*u = (struct unigram){ .least = DBL_MAX, .longest = longest };
	u->score = bytemap_grow(NULL, (size_t)V, sizeof *u->score);
	memset(u->score, 0, (size_t)V * sizeof *u->score);
	return u;
}

void unigram_set(struct unigram *u, uint32_t id, double score)
{
	u->score[id] = score;
	u->least = score < u->least ? score : u->least;
}

struct unigram *unigram_share(const struct unigram *u)
{
	struct unigram *own;

	if (!u)
		return NULL;
	own = bytemap_grow(NULL, 1, sizeof *own);
	*own = *u;
	own->way = NULL;
	own->cap = 0;
	return own;
}

void unigram_free(struct unigram *u, bool shared)
{
	if (!u)
		return;
	if (!shared)
		free(u->score);
	free(u->way);
	free(u);
}

static void offer(struct unigram *u, size_t from, size_t to, uint32_t id, double score)
{
	if (u->way[to].from != TOK_NONE && u->way[to].score >= u->way[from].score + score)
		return;
	u->way[to] = (struct way){ u->way[from].score + score, (uint32_t)from, id };
}

/* Every entry that begins at `at`, and the unknown token for its first character if none is that
 * character. */
static void extend(struct tok *t, const char *s, size_t len, size_t at, size_t n)
{
	struct unigram *u = t->unigram;
	size_t most = len - at < u->longest ? len - at : u->longest;
	bool single = false;

	for (size_t k = n; k <= most; k++) {
		const uint64_t *id;

		if (k < len - at && (s[at + k] & 0xc0) == 0x80)
			continue;
		if ((id = bytemap_get(&t->vocab, s + at, k)) == NULL || t->token[*id].special)
			continue;
		offer(u, at, at + k, (uint32_t)*id, u->score[*id]);
		single = single || k == n;
	}
	if (!single)
		offer(u, at, at + n, TOK_NONE, u->least - UNKNOWN_COST);
}

/* The way back, in order: from becomes where the token that begins here ends. */
static void turn(struct way *way, size_t len)
{
	size_t to = len;
	uint32_t next = TOK_NONE, id = TOK_NONE;

	for (;;) {
		uint32_t from = way[to].from, own = way[to].id;

		way[to].from = next;
		way[to].id = id;
		next = (uint32_t)to;
		id = own;
		if (to == 0)
			return;
		to = from;
	}
}

static bool known(const struct tok *t, size_t at)
{
	return t->unigram->way[at].id != TOK_NONE && t->unigram->way[at].id != t->unk;
}

void unigram_encode(struct tok *t, const char *s, size_t len, struct ids *out)
{
	struct unigram *u = t->unigram;

	if (u->cap < len + 1) {
		u->cap = 2 * len + 256;
		u->way = bytemap_grow(u->way, u->cap, sizeof *u->way);
	}
	for (size_t i = 0; i <= len; i++)
		u->way[i] = (struct way){ 0, TOK_NONE, TOK_NONE };
	for (size_t i = 0, n; i < len; i += n) {
		n = utf8_char(s + i, len - i);
		n += n == 0;
		extend(t, s, len, i, n);
	}
	u->way[0].from = 0;
	turn(u->way, len);
	for (size_t i = 0; i < len;) {
		size_t to = u->way[i].from, from = i;

		if (known(t, i))
			ids_push(out, u->way[i].id);
		else {
			while (to < len && !known(t, to))	/* unknown neighbours are one */
				to = u->way[to].from;
			tok_unknown(t, s + from, to - from, out);
		}
		i = to;
	}
}
