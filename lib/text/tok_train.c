/*
 * Byte-pair merges from counts (Sennrich, Haddow, Birch, "Neural machine translation of rare
 * words with subword units", ACL 2016). Distinct pieces are counted once; then the most frequent
 * pair is merged in the pieces that hold it, which an index knows, and the counts of the pairs
 * around it follow. A heap holds the counts; entries that are out of date are found out when
 * they come up.
 */
#include <stdlib.h>
#include <string.h>

#include "text/tok_impl.h"

#define TRAIN_PIECE 256		/* longer pieces (which no language has) are cut: merging is
				   linear in their length */

static const char *const first_tokens[] = {
	"<|endoftext|>", "<|im_start|>", "<|im_end|>",
	"<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
};
#define N_FIRST ((int)(sizeof first_tokens / sizeof *first_tokens))
#define N_SPECIAL 3

_Static_assert(N_FIRST + 256 == TOK_MIN_VOCAB, "the header says how small a vocabulary can be");

struct word {
	size_t off;		/* of its symbols */
	uint32_t n;
	int64_t count;
};

struct pair {
	uint32_t a, b;
	int64_t count;
	uint32_t *where;	/* (n_where) words that held it, some of them no more, some twice */
	uint32_t n_where, cap;
	uint32_t stamp;		/* the merge that changed it last */
	bool merged;		/* it may come back when its parts are made another way */
};

struct entry {
	int64_t count;
	uint32_t a, b;		/* ties go to the lower pair */
	uint32_t pair;
};

struct piece {			/* the bytes of a token being made */
	char *s;
	size_t len;
};

struct tok_trainer {
	struct pre pre;
	struct bytemap pieces;	/* to how often */
	uint32_t *symbols;
	struct word *word;
	uint32_t n_words;
	struct pair *pair;
	uint32_t n_pairs, cap_pairs;
	struct pairmap index;	/* to a place in pair */
	struct entry *heap;
	size_t heap_n, heap_cap;
	struct piece *token;
	int V;
	struct bytemap known;	/* bytes of a token to its id */
	uint64_t *merge;	/* (n_merges) PAIR_KEY */
	size_t n_merges, cap_merges;
	uint32_t *touched;	/* pairs whose count the present merge raised */
	size_t n_touched, cap_touched;
	uint32_t stamp;
};

struct tok_trainer *tok_trainer_new(void)
{
	struct tok_trainer *r = bytemap_grow(NULL, 1, sizeof *r);
	struct err e = { 0 };

	memset(r, 0, sizeof *r);
	if (pre_add_regex(&r->pre, TOK_GPT2, strlen(TOK_GPT2), PATTERN_RUBY, PRE_ISOLATED, false,
	    &e))
		err_exit(&e);	/* out of memory: the pattern is ours */
	return r;
}

void tok_trainer_free(struct tok_trainer *r)
{
	if (!r)
		return;
	pre_free(&r->pre);
	bytemap_free(&r->pieces);
	free(r->symbols);
	free(r->word);
	for (uint32_t i = 0; i < r->n_pairs; i++)
		free(r->pair[i].where);
	free(r->pair);
	pairmap_free(&r->index);
	free(r->heap);
	for (int i = 0; i < r->V; i++)
		free(r->token[i].s);
	free(r->token);
	bytemap_free(&r->known);
	free(r->merge);
	free(r->touched);
	free(r);
}

static void count_piece(void *ctx, const char *s, size_t len)
{
	struct tok_trainer *r = ctx;
	bool fresh;

	for (size_t n; len; s += n, len -= n) {
		n = len < TRAIN_PIECE ? len : TRAIN_PIECE;
		++*bytemap_put(&r->pieces, s, n, &fresh);
	}
}

void tok_trainer_add(struct tok_trainer *r, const char *text, size_t len)
{
	struct piece_sink sink = { count_piece, r };

	pre_split(&r->pre, text, len, true, &sink);
}

static bool before(const struct entry *x, const struct entry *y)
{
	if (x->count != y->count)
		return x->count > y->count;
	return x->a != y->a ? x->a < y->a : x->b < y->b;
}

static void heap_push(struct tok_trainer *r, uint32_t pair)
{
	const struct pair *p = &r->pair[pair];
	struct entry x = { p->count, p->a, p->b, pair };
	size_t i, up;

	if (r->heap_n == r->heap_cap) {
		r->heap_cap = r->heap_cap ? 2 * r->heap_cap : 4096;
		r->heap = bytemap_grow(r->heap, r->heap_cap, sizeof *r->heap);
	}
	for (i = r->heap_n++; i; i = up) {
		up = (i - 1) / 2;
		if (!before(&x, &r->heap[up]))
			break;
		r->heap[i] = r->heap[up];
	}
	r->heap[i] = x;
}

static struct entry heap_pop(struct tok_trainer *r)
{
	struct entry top = r->heap[0], x = r->heap[--r->heap_n];
	size_t i = 0, kid;

	while ((kid = 2 * i + 1) < r->heap_n) {
		kid += kid + 1 < r->heap_n && before(&r->heap[kid + 1], &r->heap[kid]);
		if (!before(&r->heap[kid], &x))
			break;
		r->heap[i] = r->heap[kid];
		i = kid;
	}
	r->heap[i] = x;
	return top;
}

static uint32_t find_pair(struct tok_trainer *r, uint32_t a, uint32_t b)
{
	bool fresh;
	uint32_t *i = pairmap_put(&r->index, PAIR_KEY(a, b), &fresh);

	if (!fresh)
		return *i;
	if (r->n_pairs == r->cap_pairs) {
		r->cap_pairs = r->cap_pairs ? 2 * r->cap_pairs : 4096;
		r->pair = bytemap_grow(r->pair, r->cap_pairs, sizeof *r->pair);
	}
	r->pair[r->n_pairs] = (struct pair){ .a = a, .b = b };
	return *i = r->n_pairs++;
}

static void add_where(struct pair *p, uint32_t word)
{
	if (p->n_where && p->where[p->n_where - 1] == word)
		return;
	if (p->n_where == p->cap) {
		p->cap = p->cap ? 2 * p->cap : 4;
		p->where = bytemap_grow(p->where, p->cap, sizeof *p->where);
	}
	p->where[p->n_where++] = word;
}

static void touch(struct tok_trainer *r, uint32_t pair, uint32_t stamp)
{
	if (r->pair[pair].stamp == stamp)
		return;
	r->pair[pair].stamp = stamp;
	if (r->n_touched == r->cap_touched) {
		r->cap_touched = r->cap_touched ? 2 * r->cap_touched : 256;
		r->touched = bytemap_grow(r->touched, r->cap_touched, sizeof *r->touched);
	}
	r->touched[r->n_touched++] = pair;
}

/* Counts each pair of a word up or down. What rises may be new here: id is the symbol just made,
 * or TOK_NONE for all. */
static void count_pairs(struct tok_trainer *r, uint32_t word, int sign, uint32_t id, uint32_t stamp)
{
	const struct word *w = &r->word[word];
	const uint32_t *s = r->symbols + w->off;

	for (uint32_t i = 0; i + 1 < w->n; i++) {
		uint32_t k = find_pair(r, s[i], s[i + 1]);

		r->pair[k].count += sign * w->count;
		if (sign > 0 && (id == TOK_NONE || s[i] == id || s[i + 1] == id)) {
			add_where(&r->pair[k], word);
			touch(r, k, stamp);
		}
	}
}

static bool holds(const struct tok_trainer *r, const struct word *w, uint32_t a, uint32_t b)
{
	const uint32_t *s = r->symbols + w->off;

	for (uint32_t i = 0; i + 1 < w->n; i++)
		if (s[i] == a && s[i + 1] == b)
			return true;
	return false;
}

static void merge_word(struct tok_trainer *r, struct word *w, uint32_t a, uint32_t b, uint32_t id)
{
	uint32_t *s = r->symbols + w->off, n = 0;

	for (uint32_t i = 0; i < w->n; i++) {
		bool both = s[i] == a && i + 1 < w->n && s[i + 1] == b;

		s[n++] = both ? id : s[i];
		i += both;
	}
	w->n = n;
}

static void push_touched(struct tok_trainer *r, int64_t min_freq)
{
	for (size_t i = 0; i < r->n_touched; i++)
		if (r->pair[r->touched[i]].count >= min_freq)
			heap_push(r, r->touched[i]);
	r->n_touched = 0;
}

static uint32_t add_token(struct tok_trainer *r, const char *a, size_t na, const char *b, size_t nb)
{
	struct piece p = { bytemap_grow(NULL, na + nb, 1), na + nb };
	bool fresh;
	uint64_t *id;

	memcpy(p.s, a, na);
	memcpy(p.s + na, b, nb);
	id = bytemap_put(&r->known, p.s, p.len, &fresh);
	if (!fresh) {			/* the same bytes by other merges: ab + c, a + bc */
		free(p.s);
		return (uint32_t)*id;
	}
	*id = (uint64_t)r->V;
	r->token = bytemap_grow(r->token, (size_t)r->V + 1, sizeof *r->token);
	r->token[r->V] = p;
	return (uint32_t)r->V++;
}

static void merge(struct tok_trainer *r, uint32_t pair, int64_t min_freq)
{
	struct pair p = r->pair[pair];		/* a copy: the table moves while it grows */
	const struct piece a = r->token[p.a], b = r->token[p.b];
	uint32_t id = add_token(r, a.s, a.len, b.s, b.len), stamp;

	if (r->n_merges == r->cap_merges) {
		r->cap_merges = r->cap_merges ? 2 * r->cap_merges : 4096;
		r->merge = bytemap_grow(r->merge, r->cap_merges, sizeof *r->merge);
	}
	if (!p.merged)
		r->merge[r->n_merges++] = PAIR_KEY(p.a, p.b);
	r->pair[pair].merged = true;
	stamp = ++r->stamp;
	r->pair[pair].where = NULL;
	r->pair[pair].n_where = r->pair[pair].cap = 0;
	for (uint32_t i = 0; i < p.n_where; i++) {
		uint32_t w = p.where[i];

		if (!holds(r, &r->word[w], p.a, p.b))
			continue;
		count_pairs(r, w, -1, id, stamp);
		merge_word(r, &r->word[w], p.a, p.b, id);
		count_pairs(r, w, 1, id, stamp);
	}
	free(p.where);
	push_touched(r, min_freq);
}

/* Bytes in the order of their stand-in characters, as the Hugging Face trainer has them. */
static void add_first(struct tok_trainer *r)
{
	uint32_t of[512];

	memset(of, 0xff, sizeof of);
	for (unsigned b = 0; b < 256; b++)
		of[tok_byte_char(b)] = b;
	for (int i = 0; i < N_FIRST; i++)
		add_token(r, first_tokens[i], strlen(first_tokens[i]), "", 0);
	for (int c = 0; c < 512; c++)
		if (of[c] != TOK_NONE)
			add_token(r, &(char){ (char)of[c] }, 1, "", 0);
}

static void add_words(struct tok_trainer *r, int64_t min_freq)
{
	const struct bytemap *m = &r->pieces;

	r->stamp = 1;
	r->symbols = bytemap_grow(NULL, m->text_n, sizeof *r->symbols);
	r->word = bytemap_grow(NULL, m->n, sizeof *r->word);
	for (size_t i = 0; i < m->text_n; i++)
		r->symbols[i] = (uint32_t)*bytemap_get(&r->known, m->text + i, 1);
	for (size_t i = 0; i < m->cap; i++) {
		if (!m->slot[i].hash)
			continue;
		r->word[r->n_words] = (struct word){ m->slot[i].off, m->slot[i].len,
		    (int64_t)m->slot[i].value };
		count_pairs(r, r->n_words++, 1, TOK_NONE, r->stamp);
	}
	push_touched(r, min_freq);
}

/* The stand-in spelling of a token; the first ones are spelled as they are. */
static char *spelling(const struct tok_trainer *r, uint32_t id, char *out)
{
	const struct piece *p = &r->token[id];

	if (id < (uint32_t)N_FIRST) {
		memcpy(out, p->s, p->len);
		out += p->len;
	} else {
		for (size_t i = 0; i < p->len; i++)
			out += utf8_put(out, tok_byte_char((unsigned char)p->s[i]));
	}
	*out = '\0';
	return out;
}

static json_t *model_json(const struct tok_trainer *r)
{
	json_t *vocab = json_object(), *merges = json_array();
	char *s = bytemap_grow(NULL, 4 * TRAIN_PIECE + 8, 1);

	for (int i = 0; i < r->V; i++) {
		spelling(r, (uint32_t)i, s);
		json_object_set_new(vocab, s, json_integer(i));
	}
	for (size_t i = 0; i < r->n_merges; i++) {
		char *end = spelling(r, (uint32_t)(r->merge[i] >> 32), s);

		*end = ' ';
		spelling(r, (uint32_t)r->merge[i], end + 1);
		json_array_append_new(merges, json_string(s));
	}
	free(s);
	return json_pack("{s:s, s:n, s:n, s:n, s:n, s:b, s:b, s:b, s:o, s:o}", "type", "BPE",
	    "dropout", "unk_token",
		"continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", 0, "byte_fallback",
		    0, "ignore_merges", 0,
		"vocab", vocab, "merges", merges);
}

static json_t *added_json(void)
{
	json_t *added = json_array();

	for (int i = 0; i < N_FIRST; i++)
		json_array_append_new(added, json_pack("{s:i, s:s, s:b, s:b, s:b, s:b, s:b}", "id",
		    i,
			"content", first_tokens[i], "single_word", 0, "lstrip", 0, "rstrip", 0,
			    "normalized", 0,
			"special", i < N_SPECIAL));
	return added;
}

static json_t *byte_level(void)
{
	return json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0,
	    "trim_offsets", 1,
		"use_regex", 1);
}

static struct tok *finish(const struct tok_trainer *r, struct err *e)
{
	json_t *root = json_pack("{s:s, s:n, s:n, s:o, s:n, s:o, s:n, s:o, s:o}", "version", "1.0",
	    "truncation", "padding",
		"added_tokens", added_json(), "normalizer", "pre_tokenizer", byte_level(),
		    "post_processor",
		"decoder", byte_level(), "model", model_json(r));
	char *text = root ? json_dumps(root, JSON_INDENT(1)) : NULL;

	json_decref(root);
	if (!text) {
		err_set(e, EX_OSERR, "out of memory for the tokenizer");
		return NULL;
	}
	return tok_parse(text, strlen(text), "trained tokenizer", NULL, e);
}

struct tok *tok_trainer_run(struct tok_trainer *r, int vocab, int64_t min_freq,
    void (*progress)(void *ctx, int size), void *ctx, struct err *e)
{
	if (vocab < TOK_MIN_VOCAB || vocab >= TOK_MAX_IDS) {
		err_set(e, EX_USAGE, "a vocabulary of %d is not between %d and %d", vocab,
		    TOK_MIN_VOCAB, TOK_MAX_IDS - 1);
		return NULL;
	}
	min_freq = min_freq < 1 ? 1 : min_freq;
	add_first(r);
	add_words(r, min_freq);
	while (r->V < vocab && r->heap_n) {
		struct entry top = heap_pop(r);
		int64_t count = r->pair[top.pair].count;

		if (count == top.count)
			merge(r, top.pair, min_freq);
		else if (count < top.count && count >= min_freq)
			heap_push(r, top.pair);
		if (progress)
			progress(ctx, r->V);
	}
	return finish(r, e);
}
