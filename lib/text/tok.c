/* Pieces to ids, ids to bytes. */
#include "text/tok.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "text/jinja.h"
#include "text/tok_impl.h"

#define CACHE_PIECE 64			/* longest piece worth remembering, in bytes */
#define CACHE_PIECES (1u << 16)

static void ids_reserve(struct ids *a, size_t more)
{
	size_t need = (size_t)a->n + more, cap = a->cap ? (size_t)a->cap : 64;

	if (need <= (size_t)a->cap)
		return;
	if (need > INT_MAX)
		err_die(EX_OSERR, "more than %d tokens in one list", INT_MAX);
	while (cap < need)
		cap *= 2;
	if (cap > INT_MAX)
		cap = INT_MAX;
	a->v = bytemap_grow(a->v, cap, sizeof *a->v);
	a->cap = (int)cap;
}

void ids_push(struct ids *a, uint32_t id)
{
	if (a->n == a->cap)
		ids_reserve(a, 1);
	a->v[a->n++] = id;
}

void ids_append(struct ids *a, const uint32_t *v, size_t n)
{
	if (n == 0)
		return;
	ids_reserve(a, n);
	memcpy(a->v + a->n, v, n * sizeof *v);
	a->n += (int)n;
}

void ids_free(struct ids *a)
{
	free(a->v);
	memset(a, 0, sizeof *a);
}

/* One piece while its pairs merge: a list of symbols, and a heap of the pairs that may merge, as
 * rank << 32 | place, so that the lowest rank comes first and, of equal ones, the leftmost. */
struct word_work {
	size_t cap;
	uint32_t *id, *next, *prev;	/* (cap); a symbol that was merged away has id TOK_NONE */
	uint64_t *heap;
	size_t heap_n, heap_cap;
	struct ids symbols;
};

struct word_work *tok_work_new(void)
{
	struct word_work *w = bytemap_grow(NULL, 1, sizeof *w);

	return memset(w, 0, sizeof *w);
}

void tok_work_free(struct word_work *w)
{
	if (!w)
		return;
	free(w->id);
	free(w->next);
	free(w->prev);
	free(w->heap);
	ids_free(&w->symbols);
	free(w);
}

static void heap_push(struct word_work *w, uint64_t x)
{
	size_t i, up;

	if (w->heap_n == w->heap_cap) {
		w->heap_cap = w->heap_cap ? 2 * w->heap_cap : 256;
		w->heap = bytemap_grow(w->heap, w->heap_cap, sizeof *w->heap);
	}
	for (i = w->heap_n++; i; i = up) {
		up = (i - 1) / 2;
		if (w->heap[up] <= x)
			break;
		w->heap[i] = w->heap[up];
	}
	w->heap[i] = x;
}

static uint64_t heap_pop(struct word_work *w)
{
	uint64_t top = w->heap[0], x = w->heap[--w->heap_n];
	size_t i = 0, kid;

	while ((kid = 2 * i + 1) < w->heap_n) {
		kid += kid + 1 < w->heap_n && w->heap[kid + 1] < w->heap[kid];
		if (w->heap[kid] >= x)
			break;
		w->heap[i] = w->heap[kid];
		i = kid;
	}
	w->heap[i] = x;
	return top;
}

static uint32_t rank_at(const struct tok *t, const struct word_work *w, uint32_t i)
{
	if (w->next[i] == TOK_NONE)
		return TOK_NONE;
	return pairmap_get(&t->merges, PAIR_KEY(w->id[i], w->id[w->next[i]]), TOK_NONE);
}

static void offer(const struct tok *t, struct word_work *w, uint32_t i)
{
	uint32_t rank = rank_at(t, w, i);

	if (rank != TOK_NONE)
		heap_push(w, (uint64_t)rank << 32 | i);
}

void tok_unknown(const struct tok *t, const char *s, size_t n, struct ids *out)
{
	bool bytes = t->byte_fallback;

	for (size_t i = 0; bytes && i < n; i++)
		bytes = t->byte_id[(unsigned char)s[i]] != TOK_NONE;
	for (size_t i = 0; bytes && i < n; i++)
		ids_push(out, t->byte_id[(unsigned char)s[i]]);
	if (!bytes && t->unk != TOK_NONE)
		ids_push(out, t->unk);
}

/* A piece as the vocabulary's characters; unknown neighbours are one where the file says so. */
static void characters(struct tok *t, const char *s, size_t len, struct ids *out)
{
	bool after_unknown = false;

	for (size_t i = 0, n; i < len; i += n) {
		const uint64_t *id;
		int had = out->n;

		n = utf8_char(s + i, len - i);
		n += n == 0;
		if ((id = bytemap_get(&t->vocab, s + i, n)) != NULL)
			ids_push(out, (uint32_t)*id);
		else
			tok_unknown(t, s + i, n, out);
		if (out->n == had + 1 && out->v[had] == t->unk && id == NULL) {
			out->n -= after_unknown && t->fuse_unk;
			after_unknown = true;
		} else
			after_unknown = false;
	}
}

/* Bytes that UTF-8 never holds become U+FFFD where they have no token; others that have none are
 * left out, as `tokenizers` does (tok_load.c says which may lack one). */
static void stand_ins(const struct tok *t, const char *s, size_t len, struct ids *out)
{
	for (size_t i = 0; i < len; i++) {
		unsigned b = (unsigned char)s[i];

		if (t->byte_id[b] != TOK_NONE)
			ids_push(out, t->byte_id[b]);
		else if (!tok_byte_valid(b))
			for (int k = 0; k < 3; k++)
				ids_push(out, t->byte_id[(unsigned char)"\xef\xbf\xbd"[k]]);
	}
}

/* 0: nothing of the piece has a token. */
static uint32_t work_start(struct tok *t, struct word_work *w, const char *s, uint32_t len)
{
	uint32_t n;

	w->symbols.n = 0;
	if (t->chars)
		characters(t, s, len, &w->symbols);
	else
		stand_ins(t, s, len, &w->symbols);
	n = (uint32_t)w->symbols.n;
	if (w->cap < n) {
		w->cap = n < 256 ? 256 : 2 * (size_t)n;
		w->id = bytemap_grow(w->id, w->cap, sizeof *w->id);
		w->next = bytemap_grow(w->next, w->cap, sizeof *w->next);
		w->prev = bytemap_grow(w->prev, w->cap, sizeof *w->prev);
	}
	for (uint32_t i = 0; i < n; i++) {
		w->id[i] = w->symbols.v[i];
		w->prev[i] = i - 1;		/* TOK_NONE for the first */
		w->next[i] = i + 1;
	}
	w->heap_n = 0;
	if (n == 0)
		return 0;
	w->next[n - 1] = TOK_NONE;
	for (uint32_t i = 0; i + 1 < n; i++)
		offer(t, w, i);
	return n;
}

static void merge_at(const struct tok *t, struct word_work *w, uint32_t i, uint32_t rank)
{
	uint32_t gone = w->next[i];

	w->id[i] = t->merge_id[rank];
	w->id[gone] = TOK_NONE;
	w->next[i] = w->next[gone];
	if (w->next[i] != TOK_NONE)
		w->prev[w->next[i]] = i;
	offer(t, w, i);
	if (w->prev[i] != TOK_NONE)
		offer(t, w, w->prev[i]);
}

static void encode_long(struct tok *t, const char *s, uint32_t len, struct ids *out)
{
	struct word_work *w = t->work;

	if (work_start(t, w, s, len) == 0)
		return;
	while (w->heap_n) {
		uint64_t top = heap_pop(w);
		uint32_t i = (uint32_t)top, rank = (uint32_t)(top >> 32);

		/* else an older state of the list */
		if (w->id[i] != TOK_NONE && rank_at(t, w, i) == rank)
			merge_at(t, w, i, rank);
	}
	for (uint32_t i = 0; i != TOK_NONE; i = w->next[i])
		ids_push(out, w->id[i]);
}

static void encode_piece(struct tok *t, const char *s, size_t len, struct ids *out)
{
	uint64_t *whole = t->ignore_merges ? bytemap_get(&t->vocab, s, len) : NULL;

	if (whole && !t->token[*whole].special)
		ids_push(out, (uint32_t)*whole);
	else if (t->unigram)
		unigram_encode(t, s, len, out);
	else
		encode_long(t, s, (uint32_t)len, out);
}

struct encoding {
	struct tok *t;
	struct ids *out;
};

/* The cache remembers, per piece, where in cache_ids its ids are and how many (at most
 * CACHE_PIECE times three, 8 bits). */
static void take_piece(void *ctx, const char *s, size_t len)
{
	struct encoding *x = ctx;
	struct tok *t = x->t;
	uint64_t *v;
	bool fresh;
	int first;

	if (len > CACHE_PIECE) {
		/* Places in a piece are 32-bit; no pattern makes pieces that long, only hostile
		 * text does. */
		for (; len > TOK_NONE / 2; s += TOK_NONE / 2, len -= TOK_NONE / 2)
			encode_piece(t, s, TOK_NONE / 2, x->out);
		encode_piece(t, s, len, x->out);
		return;
	}
	if (t->cache.n >= CACHE_PIECES) {
		bytemap_clear(&t->cache);
		t->cache_ids.n = 0;
	}
	v = bytemap_put(&t->cache, s, len, &fresh);
	if (fresh) {
		first = t->cache_ids.n;
		encode_piece(t, s, len, &t->cache_ids);
		*v = (uint64_t)first << 8 | (uint64_t)(t->cache_ids.n - first);
	}
	ids_append(x->out, t->cache_ids.v + (*v >> 8), *v & 0xff);
}

/* Where each byte of a run comes from, once the normalizer has moved them: from one place, or
 * from strangers. */
static const uint8_t *moved(const uint8_t *from, size_t len, size_t new_len, uint8_t *all)
{
	uint8_t least = JINJA_OWN;

	for (size_t i = 0; i < len; i++) {
		uint8_t f = from[i] & JINJA_FROM;

		least = f == JINJA_DATA || least == JINJA_DATA ? JINJA_DATA : f == JINJA_ASSISTANT
		    ? f : least;
	}
	memset(all, least, new_len);
	return all;
}

static void encode_span(struct tok *t, const char *s, size_t len, bool normalized,
    const struct allowed *allowed, bool first, struct ids *out);

static void encode_normalized(struct tok *t, const char *s, size_t len,
    const struct allowed *allowed,
    bool first, struct ids *out)
{
	size_t n = len;
	const char *text = norm_run(&t->norm, s, &n);
	struct allowed own = *allowed;
	uint8_t *all = NULL;

	if (own.from != NULL && text != s) {
		all = bytemap_grow(NULL, n + 1, 1);
		own.from = moved(own.from, len, n, all);
	}
	encode_span(t, text, n, true, &own, first, out);
	free(all);
}

/* Added tokens are cut out of the text in two passes, as the Hugging Face library does: first
 * those that want the text as it is, then those that want it normalized. */
static void encode_span(struct tok *t, const char *s, size_t len, bool normalized,
    const struct allowed *allowed, bool first, struct ids *out)
{
	struct encoding x = { t, out };
	struct piece_sink sink = { take_piece, &x };
	size_t from = 0, a = 0, b = 0;
	const struct added *found;

	do {
		found = pre_find_added(t, s, len, from, normalized, allowed, &a, &b);
		if (!found)
			a = len;
		if (a > from && !normalized) {
			struct allowed rest = { allowed->special, allowed->from ? allowed->from +
			    from : NULL };

			encode_normalized(t, s + from, a - from, &rest, from == 0, out);
		} else if (a > from)
			pre_split(&t->pre, s + from, a - from, first && from == 0, &sink);
		if (found)
			ids_push(out, found->id);
		from = b;
	} while (found && from < len);
}

void tok_encode(struct tok *t, const char *text, size_t len, bool special, struct ids *out)
{
	const struct allowed allowed = { special, NULL };

	if (len)
		encode_span(t, text, len, false, &allowed, true, out);
}

void tok_encode_from(struct tok *t, const char *text, const uint8_t *from, size_t len,
    struct ids *out)
{
	const struct allowed allowed = { false, from };

	if (len)
		encode_span(t, text, len, false, &allowed, true, out);
}

int tok_vocab(const struct tok *t)
{
	return t->V;
}

int tok_fits(const struct tok *t, int vocab_size, const char *path, struct err *e)
{
	return t->V <= vocab_size ? 0 : err_set(e, EX_DATAERR, "%s: the tokenizer has %d tokens, "
	    "the model's vocab_size is only %d", path, t->V, vocab_size);
}

int tok_bos(const struct tok *t)
{
	return t->bos;
}

bool tok_adds_bos(const struct tok *t)
{
	return t->adds_bos;
}

int tok_eos(const struct tok *t)
{
	return t->eos;
}

int tok_pad(const struct tok *t)
{
	return t->pad;
}

const char *tok_sha256(const struct tok *t)
{
	return t->sha256;
}

int tok_id(const struct tok *t, const char *token)
{
	size_t len = strlen(token);
	const uint64_t *v;

	for (int i = 0; i < t->n_added; i++)
		if (t->added[i].len == len && !memcmp(t->added[i].s, token, len))
			return (int)t->added[i].id;
	v = bytemap_get(&t->vocab, token, len);
	return v ? (int)*v : -1;
}

bool tok_is_special(const struct tok *t, uint32_t id)
{
	return id < (uint32_t)t->V && t->token[id].special;
}

const char *tok_bytes(const struct tok *t, uint32_t id, size_t *len)
{
	if (id >= (uint32_t)t->V || !t->token[id].s) {
		*len = 0;
		return NULL;
	}
	*len = t->token[id].len;
	return t->token[id].s;
}

char *tok_decode(const struct tok *t, const uint32_t *ids, int n, bool skip_special, size_t *len)
{
	size_t total = 0, k;
	const char *s;
	char *out, *p;

	for (int i = 0; i < n; i++)
		if (tok_bytes(t, ids[i], &k) && !(skip_special && t->token[ids[i]].special))
			total += k;
	p = out = bytemap_grow(NULL, total + 1, 1);
	for (int i = 0; i < n; i++) {
		s = tok_bytes(t, ids[i], &k);
		if (!s || (skip_special && t->token[ids[i]].special))
			continue;
		memcpy(p, s, k);
		p += k;
	}
	for (k = 0; k < (size_t)t->strip && out + k < p && out[k] == ' '; k++)
		;
	memmove(out, out + k, total - k);
	out[total - k] = '\0';
	if (len)
		*len = total - k;
	return out;
}

/* Bytes at the end of s that begin a character and may yet be completed. */
static size_t unfinished(const unsigned char *s, size_t len)
{
	for (size_t n = 1; n <= 3 && n <= len; n++) {
		unsigned c = s[len - n];

		if ((c & 0xc0) != 0x80)
			return n < (c >= 0xf0 && c < 0xf5 ? 4u : c >= 0xe0 && c < 0xf0 ? 3u
			    : c >= 0xc2 && c < 0xe0 ? 2u : 0) ?
				n : 0;
	}
	return 0;
}

size_t tok_stream_put(const struct tok *t, struct tok_stream *s, uint32_t id, bool skip_special,
    char *out)
{
	size_t k, held = s->tail[7], hold;
	const char *b = tok_bytes(t, id, &k);

	if (!b || (skip_special && t->token[id].special))
		return 0;
	while (s->tail[6] < t->strip && k > 0 && *b == ' ') {	/* of the beginning of the text */
		b++;
		k--;
		s->tail[6]++;
	}
	if (k > 0)
		s->tail[6] = UINT8_MAX;
	memcpy(out, s->tail, held);
	memcpy(out + held, b, k);
	k += held;
	hold = unfinished((unsigned char *)out, k);
	memcpy(s->tail, out + k - hold, hold);
	s->tail[7] = (unsigned char)hold;
	return k - hold;
}

size_t tok_stream_end(struct tok_stream *s, char *out)
{
	size_t held = s->tail[7];

	memcpy(out, s->tail, held);
	s->tail[7] = 0;
	return held;
}

struct tok *tok_share(const struct tok *t)
{
	struct tok *own;

	if (!t)
		return NULL;
	own = bytemap_grow(NULL, 1, sizeof *own);
	*own = *t;
	own->shared = true;
	own->cache = (struct bytemap){ 0 };
	own->cache_ids = (struct ids){ 0 };
	own->work = tok_work_new();
	pre_share(&t->pre, &own->pre);
	norm_share(&t->norm, &own->norm);
	for (int i = 0; i < 2; i++)
		own->norm.text[i] = (struct norm_text){ 0 };
	own->unigram = unigram_share(t->unigram);
	return own;
}

static void free_shared(struct tok *t)
{
	free(t->json);
	free(t->config_json);
	free(t->token);
	free(t->bytes);
	bytemap_free(&t->vocab);
	pairmap_free(&t->merges);
	free(t->merge_id);
	for (int i = 0; i < t->n_added; i++)
		free(t->added[i].own);
	free(t->added);
	norm_free(&t->norm);
	jinja_close(t->chat);
	jinja_close(t->chat_tools);
	free(t->template_text);
}

void tok_free(struct tok *t)
{
	char *texts[2];

	if (!t)
		return;
	texts[0] = t->norm.text[0].s, texts[1] = t->norm.text[1].s;
	if (!t->shared)
		free_shared(t);
	else
		norm_unshare(&t->norm);
	pre_free(&t->pre);
	for (int i = 0; i < 2; i++)
		free(texts[i]);
	unigram_free(t->unigram, t->shared);
	bytemap_free(&t->cache);
	ids_free(&t->cache_ids);
	tok_work_free(t->work);
	free(t);
}
