/* A tokenizer.json, the Hugging Face layout, to a tokenizer. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/base64.h"
#include "base/jsonfile.h"
#include "base/jsontext.h"
#include "base/sha256.h"
#include "text/tok_foreign.h"
#include "text/tok_impl.h"
#include "text/uniset.h"

/* What a file is read with: messages begin with its name. */
struct loader {
	struct tok *t;
	const char *name;
	struct err *e;
	const json_t *vocab;		/* spelling to id */
	uint32_t char_byte[512];	/* GPT-2's stand-in characters to bytes; TOK_NONE for
					   others */
	size_t bytes_n;			/* used of t->bytes */
	bool byte_level;
	/* of the decoder, for tokens that are spelled in characters */
	int replaces;
	struct { const char *what, *to; } replace[4];
};

__attribute__((format(printf, 2, 3))) static int bad(const struct loader *l, const char *fmt, ...)
{
	char msg[360];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(msg, sizeof msg, fmt, ap);
	va_end(ap);
	return err_set(l->e, EX_DATAERR, "%s: %s", l->name, msg);
}

/* GPT-2's bytes_to_unicode: printable bytes of Latin-1 stand for themselves, the others, in
 * order, for U+0100 on. */
uint32_t tok_byte_char(unsigned b)
{
	if (b <= 0x20)
		return 0x100 + b;
	if (b >= 0x7f && b <= 0xa0)
		return 0x100 + 0x21 + b - 0x7f;
	return b == 0xad ? 0x100 + 0x43 : b;
}

static const char *string_of(const json_t *o, const char *key)
{
	const char *s = json_string_value(json_object_get(o, key));

	return s ? s : "";
}

static const char *type_of(const json_t *o)
{
	return string_of(o, "type");
}

/* The bytes a spelling stands for, appended to t->bytes; false (and the spelling itself) when it
 * has characters that stand for none. */
static bool spell(struct loader *l, const char *s, size_t len, struct token *k)
{
	unsigned char *out = (unsigned char *)l->t->bytes + l->bytes_n;
	size_t n = 0;

	for (size_t i = 0; i < len; i++) {
		unsigned c = (unsigned char)s[i];

		if ((c & 0xe0) == 0xc0 && i + 1 < len)
			c = (c & 0x1f) << 6 | ((unsigned char)s[++i] & 0x3f);
		if (c >= 512 || l->char_byte[c] == TOK_NONE) {
			memcpy(out, s, n = len);
			k->s = (char *)out;
			k->len = (uint32_t)n;
			l->bytes_n += n;
			return false;
		}
		out[n++] = (unsigned char)l->char_byte[c];
	}
	k->s = (char *)out;
	k->len = (uint32_t)n;
	l->bytes_n += n;
	return true;
}

/* The byte that "<0x0A>" stands for, or -1. */
static int byte_of(const char *s, size_t len)
{
	char *end;
	long b;

	if (len != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>')
		return -1;
	b = strtol(s + 3, &end, 16);
	return end == s + 5 ? (int)b : -1;
}

/* What a token that is spelled in characters gives when it is decoded, appended to t->bytes. */
static void spell_chars(struct loader *l, const char *s, size_t len, struct token *k)
{
	char *out = l->t->bytes + l->bytes_n;
	size_t n = 0;

	if (l->t->byte_fallback && byte_of(s, len) >= 0) {
		out[n++] = (char)byte_of(s, len);
		len = 0;
	}
	for (size_t i = 0; i < len;) {
		int r = 0;

		while (r < l->replaces && (strlen(l->replace[r].what) > len - i ||
		    memcmp(s + i, l->replace[r].what, strlen(l->replace[r].what)) != 0))
			r++;
		if (r < l->replaces) {
			memcpy(out + n, l->replace[r].to, strlen(l->replace[r].to));
			n += strlen(l->replace[r].to);
			i += strlen(l->replace[r].what);
		} else
			out[n++] = s[i++];
	}
	k->s = out;
	k->len = (uint32_t)n;
	l->bytes_n += n;
}

/* An id from the file, or -1. */
static int64_t id_of(const struct loader *l, const json_t *v, const char *what, const char *token)
{
	if (!json_is_integer(v))
		return bad(l, "%s \"%.60s\": the id is not an integer", what, token);
	if (json_integer_value(v) < 0 || json_integer_value(v) >= TOK_MAX_IDS)
		return bad(l, "%s \"%.60s\": id %" JSON_INTEGER_FORMAT " is out of range (0 to %d)",
		    what, token,
			json_integer_value(v), TOK_MAX_IDS - 1);
	return json_integer_value(v);
}

/* One pass over everything that has an id, to know how many there are and how long they are. */
static int measure(struct loader *l, const json_t *added)
{
	size_t bytes = 0, longest = 0, i;
	int64_t id, top = -1;
	const char *key;
	json_t *v;

	json_object_foreach((json_t *)l->vocab, key, v) {
		id = id_of(l, v, "vocab", key);
		if (id < 0)
			return -1;
		top = id > top ? id : top;
		bytes += strlen(key);
		longest = strlen(key) > longest ? strlen(key) : longest;
	}
	json_array_foreach(added, i, v) {
		if (!*string_of(v, "content"))
			return bad(l, "added_tokens[%zu] has no content", i);
		id = id_of(l, json_object_get(v, "id"), "added token", string_of(v, "content"));
		if (id < 0)
			return -1;
		top = id > top ? id : top;
		bytes += strlen(string_of(v, "content"));
	}
	if (bytes > UINT32_MAX)
		return bad(l, "tokens of more than 4 GiB");
	l->t->V = (int)top + 1;
	l->t->token = bytemap_grow(NULL, (size_t)l->t->V, sizeof *l->t->token);
	memset(l->t->token, 0, (size_t)l->t->V * sizeof *l->t->token);
	/* take_vocab() writes before it decides */
	l->t->bytes = bytemap_grow(NULL, bytes + longest, 1);
	return 0;
}

static int taken(const struct loader *l, const char *key, int64_t id)
{
	return bad(l, "vocab \"%.60s\": id %" PRId64 " is taken already", key, id);
}

/* Entries in characters are found by their spelling. */
static int take_chars(struct loader *l)
{
	const char *key;
	json_t *v;

	json_object_foreach((json_t *)l->vocab, key, v) {
		struct token *k = &l->t->token[json_integer_value(v)];
		bool fresh;

		if (k->s)
			return taken(l, key, json_integer_value(v));
		spell_chars(l, key, strlen(key), k);
		*bytemap_put(&l->t->vocab, key, strlen(key), &fresh) =
		    (uint64_t)json_integer_value(v);
	}
	return 0;
}

/* Entries that are bytes come first: when a spelling that is not has the same bytes, it is only
 * reached by its id. */
static int take_vocab(struct loader *l)
{
	const char *key;
	json_t *v;

	for (int pass = 0; pass < 2; pass++)
		json_object_foreach((json_t *)l->vocab, key, v) {
			struct token *k = &l->t->token[json_integer_value(v)], got = { 0 };
			size_t before = l->bytes_n;
			uint64_t *id;
			bool fresh;

			if (spell(l, key, strlen(key), &got) != !pass) {
				l->bytes_n = before;
				continue;
			}
			if (k->s)
				return taken(l, key, json_integer_value(v));
			*k = got;
			id = bytemap_put(&l->t->vocab, k->s, k->len, &fresh);
			if (fresh)
				*id = (uint64_t)json_integer_value(v);
		}
	return 0;
}

static bool flag(const json_t *o, const char *key, bool standard)
{
	const json_t *v = json_object_get(o, key);

	return json_is_boolean(v) ? json_is_true(v) : standard;
}

static int by_bytes(const void *a, const void *b)
{
	const struct added *x = a, *y = b;
	int c = memcmp(x->s, y->s, x->len < y->len ? x->len : y->len);

	return c ? c : (x->len > y->len) - (x->len < y->len);
}

/* In normalized text a token is looked for as it is when normalized. */
static void normalize_added(struct tok *t, struct added *a)
{
	size_t n = a->len;
	const char *s;

	if (!a->normalized || t->norm.n == 0)
		return;
	s = norm_run(&t->norm, a->s, &n);
	a->own = bytemap_grow(NULL, n + 1, 1);
	memcpy(a->own, s, n);
	a->s = a->own;
	a->len = (uint32_t)n;
}

static int take_added_one(struct loader *l, const json_t *v, struct added *a)
{
	const char *s = string_of(v, "content");
	uint32_t id = (uint32_t)json_integer_value(json_object_get(v, "id"));
	const json_t *known = json_object_get(l->vocab, s);
	struct token *k = &l->t->token[id];

	if (known && json_integer_value(known) != id)
		return bad(l, "added token \"%.60s\" has id %u, but %"
		    JSON_INTEGER_FORMAT " in the vocab", s, id,
			json_integer_value(known));
	if (k->added || (k->s && !known))
		return bad(l, "added token \"%.60s\": id %u is taken already", s, id);
	k->s = memcpy(l->t->bytes + l->bytes_n, s, strlen(s));
	k->len = (uint32_t)strlen(s);
	l->bytes_n += k->len;
	k->added = true;
	k->special = flag(v, "special", false);
	*a = (struct added){ k->s, k->len, id, k->special, flag(v, "lstrip", false),
	    flag(v, "rstrip", false),
		flag(v, "single_word", false), flag(v, "normalized", !k->special), NULL };
	normalize_added(l->t, a);
	if (a->len > 0)
		l->t->added_first[(unsigned char)*a->s] = true;
	return 0;
}

static int take_added(struct loader *l, const json_t *added)
{
	struct tok *t = l->t;
	size_t i;
	json_t *v;

	if (added && !json_is_array(added) && !json_is_null(added))
		return bad(l, "added_tokens is not a list");
	t->added = bytemap_grow(NULL, json_array_size(added), sizeof *t->added);
	memset(t->added, 0, json_array_size(added) * sizeof *t->added);
	json_array_foreach(added, i, v)
		if (take_added_one(l, v, &t->added[t->n_added++]))
			return -1;
	qsort(t->added, (size_t)t->n_added, sizeof *t->added, by_bytes);
	for (int k = 1; k < t->n_added; k++)
		if (!by_bytes(&t->added[k - 1], &t->added[k]))
			return bad(l, "added token \"%.*s\" is there twice", (int)t->added[k].len,
			    t->added[k].s);
	return 0;
}

/* The two sides of a merge: ["a","b"], or "a b" as older files have it. */
static bool merge_sides(const json_t *m, const char *side[2], size_t len[2])
{
	if (json_is_string(m)) {
		const char *space = strchr(json_string_value(m), ' ');

		side[0] = json_string_value(m);
		if (!space || strchr(space + 1, ' '))
			return false;
		side[1] = space + 1;
		len[0] = (size_t)(space - side[0]);
	} else {
		if (json_array_size(m) != 2)
			return false;
		side[0] = json_string_value(json_array_get(m, 0));
		side[1] = json_string_value(json_array_get(m, 1));
		if (!side[0] || !side[1])
			return false;
		len[0] = strlen(side[0]);
	}
	len[1] = strlen(side[1]);
	return len[0] && len[1];
}

static int64_t vocab_id(const struct loader *l, size_t at, const char *s, size_t len)
{
	const json_t *v = json_object_getn(l->vocab, s, len);

	if (!v)
		return bad(l, "merges[%zu]: \"%.*s\" is not in the vocab", at,
		    (int)(len < 80 ? len : 80), s);
	return json_integer_value(v);
}

static int take_merge(struct loader *l, size_t at, const json_t *m)
{
	const char *side[2];
	size_t len[2];
	int64_t id[3];
	char *both;
	bool fresh;

	if (!merge_sides(m, side, len))
		return bad(l, "merges[%zu] is not a pair of tokens", at);
	both = bytemap_grow(NULL, len[0] + len[1], 1);
	memcpy(both, side[0], len[0]);
	memcpy(both + len[0], side[1], len[1]);
	id[0] = vocab_id(l, at, side[0], len[0]);
	id[1] = id[0] < 0 ? -1 : vocab_id(l, at, side[1], len[1]);
	id[2] = id[1] < 0 ? -1 : vocab_id(l, at, both, len[0] + len[1]);
	free(both);
	if (id[2] < 0)
		return -1;
	/* A pair that is there twice has the later rank, as in the Hugging Face library. */
	*pairmap_put(&l->t->merges, PAIR_KEY(id[0], id[1]), &fresh) = (uint32_t)at;
	l->t->merge_id[at] = (uint32_t)id[2];
	return 0;
}

static int take_merges(struct loader *l, const json_t *merges)
{
	size_t i;
	json_t *m;

	if (!json_is_array(merges))
		return bad(l, "model.merges is not a list");
	l->t->merge_id = bytemap_grow(NULL, json_array_size(merges), sizeof *l->t->merge_id);
	json_array_foreach(merges, i, m)
		if (take_merge(l, i, m))
			return -1;
	return 0;
}

static int take_unknown(struct loader *l, const json_t *m)
{
	const json_t *name = json_object_get(m, "unk_token"), *id = json_object_get(m, "unk_id"),
	    *u;

	l->t->unk = TOK_NONE;
	if (json_is_integer(id) && json_integer_value(id) < l->t->V && json_integer_value(id) >= 0)
		l->t->unk = (uint32_t)json_integer_value(id);
	if (!json_is_string(name) || *json_string_value(name) == '\0')
		return 0;
	if ((u = json_object_get(l->vocab, json_string_value(name))) == NULL)
		return bad(l, "unk_token \"%.60s\" is not in the vocab", json_string_value(name));
	l->t->unk = (uint32_t)json_integer_value(u);
	return 0;
}

bool tok_byte_valid(unsigned b)
{
	return b < 0xf5 && b != 0xc0 && b != 0xc1;
}

/* Bytes that hardly any text holds: control characters, and those that begin characters of planes
 * to which nothing readable belongs. Published vocabularies lack some (SmolLM2: 0x04, 0xf1). */
static bool may_lack(unsigned b)
{
	return (b < 0x20 && b != '\t' && b != '\n' && b != '\r') || (b >= 0xf1 && b <= 0xf4);
}

/* Every byte that text can hold must have a token, or text would be lost without a word. */
static int take_bytes(struct loader *l)
{
	for (unsigned b = 0; b < 256; b++) {
		bool wanted = tok_byte_valid(b) && !may_lack(b);
		char name[8];
		size_t n = l->t->chars ? (size_t)snprintf(name, sizeof name, "<0x%02X>", b)
		    : utf8_put(name, tok_byte_char(b));
		const json_t *v = json_object_getn(l->vocab, name, n);

		l->t->byte_id[b] = v ? (uint32_t)json_integer_value(v) : l->t->chars ? TOK_NONE
		    : l->t->unk;
		if (l->t->byte_id[b] == TOK_NONE && !l->t->chars && wanted)
			return bad(l, "no token for byte 0x%02x, and no unk_token", b);
	}
	return 0;
}

static int take_bpe(struct loader *l, const json_t *m)
{
	const json_t *drop = json_object_get(m, "dropout");

	if (*string_of(m, "continuing_subword_prefix") || *string_of(m, "end_of_word_suffix"))
		return bad(l, "subword prefixes and suffixes are not supported");
	if (json_is_number(drop) && json_number_value(drop) != 0)
		return bad(l, "dropout of merges is not supported");
	l->vocab = json_object_get(m, "vocab");
	if (!json_is_object(l->vocab))
		return bad(l, "model.vocab is not an object");
	l->t->ignore_merges = flag(m, "ignore_merges", false);
	l->t->fuse_unk = flag(m, "fuse_unk", false);
	return 0;
}

/* [["piece", log-probability], ..]: made into an object of ids, as other models have it. Its
 * scores are set later. */
static int take_pieces(struct loader *l, const json_t *m, json_t **vocab)
{
	const json_t *list = json_object_get(m, "vocab");
	size_t i;
	json_t *v;

	if (!json_is_array(list))
		return bad(l, "model.vocab is not a list");
	*vocab = json_object();
	json_array_foreach(list, i, v) {
		const char *s = json_string_value(json_array_get(v, 0));

		if (s == NULL || !json_is_number(json_array_get(v, 1)))
			return bad(l, "vocab[%zu] is not a pair of a piece and its log-probability",
			    i);
		/* Of a piece that comes twice the last place counts, as in the library. */
		json_object_set_new(*vocab, s, json_integer((json_int_t)i));
	}
	l->vocab = *vocab;
	l->t->fuse_unk = true;
	return 0;
}

static void take_scores(struct loader *l, const json_t *m)
{
	uint32_t longest = 1;
	const char *key;
	size_t i;
	json_t *v;

	json_object_foreach((json_t *)l->vocab, key, v)
		longest = strlen(key) > longest ? (uint32_t)strlen(key) : longest;
	l->t->unigram = unigram_new(l->t->V, longest);
	json_array_foreach(json_object_get(m, "vocab"), i, v)
		unigram_set(l->t->unigram, (uint32_t)i, json_number_value(json_array_get(v, 1)));
}

static int take_entries(struct loader *l, const json_t *m, const json_t *added, bool unigram)
{
	struct tok *t = l->t;

	t->chars = !l->byte_level;
	if (measure(l, added) || (t->chars ? take_chars(l) : take_vocab(l)) || take_unknown(l, m) ||
	    take_bytes(l))
		return -1;
	if (t->chars && !t->byte_fallback && t->unk == TOK_NONE)
		return bad(l, "no ByteLevel pre_tokenizer, no byte_fallback and no unk_token: "
		    "text outside the vocab would be lost");
	if (unigram)
		take_scores(l, m);
	else if (take_merges(l, json_object_get(m, "merges")))
		return -1;
	return take_added(l, added);
}

static int take_model(struct loader *l, const json_t *root)
{
	const json_t *m = json_object_get(root, "model");
	bool unigram = !strcmp(type_of(m), "Unigram") ||
	    (!*type_of(m) && json_is_array(json_object_get(m, "vocab")));
	json_t *pieces = NULL;
	int rc;

	if (!json_is_object(m))
		return bad(l, "no model");
	if (*type_of(m) && strcmp(type_of(m), "BPE") && !unigram)
		return bad(l, "model type \"%.40s\" is not supported, only BPE and Unigram",
		    type_of(m));
	l->t->byte_fallback = flag(m, "byte_fallback", false) && !l->byte_level;
	rc = unigram ? take_pieces(l, m, &pieces) : take_bpe(l, m);
	if (rc == 0)
		rc = take_entries(l, m, json_object_get(root, "added_tokens"), unigram);
	json_decref(pieces);
	return rc;
}

/* What this normalizer, pre-tokenizer or decoder is made of: the list in a Sequence. NULL when
 * it is a single one. */
static const json_t *parts_of(const json_t *o, const char *key)
{
	return !strcmp(type_of(o), "Sequence") ? json_object_get(o, key) : NULL;
}

/* A String or a Regex; *d says which. NULL: neither. */
static const json_t *pattern_of(const json_t *o, enum pattern_dialect *d)
{
	const json_t *p = json_object_get(o, "pattern"), *regex = json_object_get(p, "Regex");

	*d = json_is_string(regex) ? PATTERN_RUBY : PATTERN_LITERAL;
	p = *d == PATTERN_LITERAL ? json_object_get(p, "String") : regex;
	return json_is_string(p) ? p : NULL;
}

static int take_replace(struct loader *l, const json_t *o, struct err *why)
{
	enum pattern_dialect d;
	const json_t *p = pattern_of(o, &d), *to = json_object_get(o, "content");

	if (p == NULL || !json_is_string(to))
		return err_set(why, EX_DATAERR, "Replace has no pattern or no content");
	return norm_add_replace(&l->t->norm, json_string_value(p), json_string_length(p), d,
	    json_string_value(to), json_string_length(to), why);
}

/* Without a map it changes nothing. */
static int take_charsmap(struct loader *l, const json_t *o, struct err *why)
{
	const json_t *v = json_object_get(o, "precompiled_charsmap");
	size_t len = json_string_length(v), n;
	unsigned char *map;
	int rc;

	if (v == NULL || json_is_null(v) || (json_is_string(v) && len == 0))
		return 0;
	if (!json_is_string(v))
		return err_set(why, EX_DATAERR, "Precompiled: the map is no text");
	map = bytemap_grow(NULL, len + 3, 1);
	n = base64_decode(json_string_value(v), len, map);
	rc = n == (size_t)-1 ? err_set(why, EX_DATAERR, "Precompiled: the map is no base64")
	    : norm_add_charsmap(&l->t->norm, map, n, why);
	free(map);
	return rc;
}

static int take_norm(struct loader *l, const json_t *o, struct err *why)
{
	static const struct { const char *type; enum norm_kind kind; } plain[] =
	    { { "NFC", NORM_NFC }, { "NFD", NORM_NFD },
	    { "NFKC", NORM_NFKC }, { "NFKD", NORM_NFKD }, { "Lowercase", NORM_LOWER } };
	const char *type = type_of(o), *text = string_of(o, "prepend");

	for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
		if (!strcmp(type, plain[i].type))
			return norm_add(&l->t->norm, plain[i].kind, "", 0, why);
	if (!strcmp(type, "Prepend"))
		return norm_add(&l->t->norm, NORM_PREPEND, text, strlen(text), why);
	if (!strcmp(type, "Precompiled"))
		return take_charsmap(l, o, why);
	if (!strcmp(type, "Replace"))
		return take_replace(l, o, why);
	if (!strcmp(type, "Strip"))
		return (flag(o, "strip_left", true) && norm_add(&l->t->norm, NORM_STRIP_LEFT, "", 0,
		    why)) ||
		    (flag(o, "strip_right", true) && norm_add(&l->t->norm, NORM_STRIP_RIGHT, "", 0,
		    why)) ? -1 : 0;
	return err_set(why, EX_DATAERR, "\"%.40s\" is not supported", type);
}

static int take_normalizer(struct loader *l, const json_t *o, int depth)
{
	const json_t *parts = parts_of(o, "normalizers");
	struct err why = { 0 };
	size_t i;
	json_t *v;

	if (!o || json_is_null(o))
		return 0;
	if (!parts && take_norm(l, o, &why))
		return bad(l, "normalizer: %s", why.msg);
	if (parts && depth > 4)
		return bad(l, "normalizers nested more than four deep");
	json_array_foreach(parts, i, v)
		if (take_normalizer(l, v, depth + 1))
			return -1;
	return 0;
}

static int add_decoded(struct loader *l, const char *what, const char *to)
{
	if (*what == '\0' || strlen(to) > strlen(what) || l->replaces == 4)
		return bad(l, "decoder Replace of \"%.20s\" by \"%.20s\" is not supported", what,
		    to);
	l->replace[l->replaces].what = what;
	l->replace[l->replaces++].to = to;
	return 0;
}

static int take_decoder_one(struct loader *l, const json_t *o)
{
	const char *type = type_of(o);
	enum pattern_dialect d;
	const json_t *p;

	if (!strcmp(type, "ByteLevel") || !strcmp(type, "Fuse") || !strcmp(type, "ByteFallback"))
		return 0;
	if (!strcmp(type, "Replace") && (p = pattern_of(o, &d)) != NULL &&
	    d == PATTERN_LITERAL)
		return add_decoded(l, json_string_value(p), string_of(o, "content"));
	if (!strcmp(type, "Metaspace")) {
		l->t->strip = strcmp(string_of(o, "prepend_scheme"), "never") != 0 &&
		    flag(o, "add_prefix_space", true);
		return add_decoded(l, string_of(o, "replacement"), " ");
	}
	if (!strcmp(type, "Strip") && !strcmp(string_of(o, "content"), " ") &&
	    json_integer_value(json_object_get(o, "stop")) == 0) {
		l->t->strip = (int)(json_integer_value(json_object_get(o, "start")) & 15);
		return 0;
	}
	return bad(l, "decoder \"%.40s\" is not supported", type);
}

static int take_decoder(struct loader *l, const json_t *o, int depth)
{
	const json_t *parts = parts_of(o, "decoders");
	size_t i;
	json_t *v;

	if (!o || json_is_null(o))
		return 0;
	if (!parts || depth > 4)
		return take_decoder_one(l, o);
	json_array_foreach(parts, i, v)
		if (take_decoder(l, v, depth + 1))
			return -1;
	return 0;
}

static int add_regex(struct loader *l, const char *pattern, size_t len, enum pattern_dialect d,
    enum pre_behavior b, bool invert)
{
	struct err why = { 0 };

	if (pre_add_regex(&l->t->pre, pattern, len, d, b, invert, &why))
		return bad(l, "pre_tokenizer: %s", why.msg);
	return 0;
}

static int behavior_of(const struct loader *l, const json_t *o, enum pre_behavior *b)
{
	static const char *const names[] = { "Isolated", "Removed", "MergedWithPrevious",
	    "MergedWithNext", "Contiguous" };

	for (int i = 0; i < 5; i++)
		if (!strcmp(string_of(o, "behavior"), names[i])) {
			*b = (enum pre_behavior)i;
			return 0;
		}
	return bad(l, "pre_tokenizer %.40s: behavior \"%.40s\" is not known", type_of(o),
	    string_of(o, "behavior"));
}

static int take_split(struct loader *l, const json_t *o)
{
	enum pattern_dialect d;
	const json_t *v = pattern_of(o, &d);
	enum pre_behavior b = PRE_ISOLATED;

	if (v == NULL)
		return bad(l, "pre_tokenizer Split has no pattern");
	if (behavior_of(l, o, &b) < 0)
		return -1;
	return add_regex(l, json_string_value(v), json_string_length(v), d, b,
	    flag(o, "invert", false));
}

static int take_byte_level(struct loader *l, const json_t *o)
{
	struct err why = { 0 };

	if (flag(o, "add_prefix_space", true) && pre_add_space(&l->t->pre, &why))
		return bad(l, "pre_tokenizer: %s", why.msg);
	return flag(o, "use_regex", true) ? add_regex(l, TOK_GPT2, strlen(TOK_GPT2),
	    PATTERN_RUBY, PRE_ISOLATED, false) : 0;
}

static int take_metaspace(struct loader *l, const json_t *o)
{
	const char *scheme = string_of(o, "prepend_scheme");
	enum pre_scheme s = !strcmp(scheme, "never") || !flag(o, "add_prefix_space", true)
	    ? PRE_NEVER
	    : !strcmp(scheme, "first") ? PRE_FIRST : PRE_ALWAYS;
	struct err why = { 0 };

	if (pre_add_metaspace(&l->t->pre, string_of(o, "replacement"), s, flag(o, "split", true),
	    &why))
		return bad(l, "pre_tokenizer: %s", why.msg);
	return 0;
}

/* Those that the Hugging Face library has in code are of Rust, not of the engine of patterns:
 * Digits asks Rust's library (Unicode 17), Punctuation a crate of Unicode 8. */
static int take_digits(struct loader *l, const json_t *o)
{
	char class[64], *p = class + sprintf(class, "[\\p{N}");

	for (int i = 0; i < uni_numeric17_n; i++)
		p += sprintf(p, "\\x{%x}-\\x{%x}", uni_numeric17[i].a, uni_numeric17[i].b);
	strcpy(p, flag(o, "individual_digits", false) ? "]" : "]+");
	return add_regex(l, class, strlen(class), PATTERN_RUST, PRE_ISOLATED, false);
}

static int take_punctuation(struct loader *l, const json_t *o)
{
	size_t room = 32 * ((size_t)uni_punctuation8_n + 2);
	char *class = bytemap_grow(NULL, room, 1), *p = class;
	enum pre_behavior b = PRE_ISOLATED;
	int rc = json_object_get(o, "behavior") ? behavior_of(l, o, &b) : 0;

	p += sprintf(p, "[!-/:-@\\[-`{-~");
	for (int i = 0; i < uni_punctuation8_n; i++)
		p += sprintf(p, "\\x{%x}-\\x{%x}", uni_punctuation8[i].a, uni_punctuation8[i].b);
	strcpy(p, "]");
	rc = rc == 0 ? add_regex(l, class, strlen(class), PATTERN_RUST, b, false) : rc;
	free(class);
	return rc;
}

/* Those that are one pattern. 1: not of these. */
static int take_pattern(struct loader *l, const json_t *o)
{
	static const char words[] = "\\w+|[^\\w\\s]+";
	const char *type = type_of(o);

	if (!strcmp(type, "Digits"))
		return take_digits(l, o);
	if (!strcmp(type, "Whitespace"))
		return add_regex(l, words, strlen(words), PATTERN_RUST, PRE_REMOVED, true);
	if (!strcmp(type, "WhitespaceSplit"))
		return add_regex(l, "\\s", 2, PATTERN_RUST, PRE_REMOVED, false);
	return strcmp(type, "Punctuation") == 0 ? take_punctuation(l, o) : 1;
}

/* ByteLevel turns text into stand-ins for bytes, so it must be last. */
static int take_pre(struct loader *l, const json_t *o, int depth)
{
	const json_t *parts = parts_of(o, "pretokenizers");
	const char *type = type_of(o);
	size_t i;
	json_t *v;
	int rc;

	if (parts && depth <= 4) {
		json_array_foreach(parts, i, v)
			if (take_pre(l, v, depth + 1))
				return -1;
		return 0;
	}
	if (l->byte_level)
		return bad(l, "pre_tokenizer \"%.40s\" after ByteLevel", type);
	if (!strcmp(type, "ByteLevel")) {
		l->byte_level = true;
		return take_byte_level(l, o);
	}
	if (!strcmp(type, "Split"))
		return take_split(l, o);
	if (!strcmp(type, "Metaspace"))
		return take_metaspace(l, o);
	rc = take_pattern(l, o);
	return rc <= 0 ? rc : bad(l, "pre_tokenizer \"%.40s\" is not supported", type);
}

/* Does the template of a single text begin with a special token? */
static bool begins_special(const json_t *post)
{
	const json_t *first = json_array_get(json_object_get(post, "single"), 0), *part;
	size_t i;

	if (!strcmp(type_of(post), "TemplateProcessing"))
		return json_object_get(first, "SpecialToken") != NULL;
	json_array_foreach(parts_of(post, "processors"), i, part)
		if (begins_special(part))
			return true;
	return false;
}

static int take_root(struct loader *l, const json_t *root)
{
	const json_t *pre = json_object_get(root, "pre_tokenizer");

	if (!json_is_object(root))
		return bad(l, "not an object");
	if (take_normalizer(l, json_object_get(root, "normalizer"), 0) ||
	    (json_is_object(pre) && take_pre(l, pre, 0)) ||
	    take_decoder(l, json_object_get(root, "decoder"), 0))
		return -1;
	l->t->adds_bos = begins_special(json_object_get(root, "post_processor"));
	return take_model(l, root);
}

/* The tokenizer.json of another file takes its place. New reference, or NULL. */
static json_t *made(struct tok *t, json_t *root, struct err *e)
{
	free(t->json);
	t->json_len = 0;
	t->json = root != NULL ? json_dumps(root, JSON_COMPACT) : NULL;
	if (root != NULL && t->json == NULL) {
		json_decref(root);
		err_set(e, EX_DATAERR, "a tokenizer that JSON cannot hold");
		return NULL;
	}
	t->json_len = t->json != NULL ? strlen(t->json) : 0;
	return root;
}

/* Spellings in a tekken.json may hold NUL, which a document of one's own may not. */
static json_t *read_tekken(const struct tok *t, const char *name, struct err *e)
{
	struct err why = { 0 };
	int line = 0;
	json_t *root = jsontext_parse(t->json, t->json_len, JSONTEXT_RECORD, &line, &why), *out;

	if (root == NULL) {
		err_set(e, EX_DATAERR, "%s:%d: %.300s", name, line, why.msg);
		return NULL;
	}
	out = tok_of_tekken(root, name, e);
	json_decref(root);
	return out;
}

static json_t *read_root(struct tok *t, const char *name, const json_t *config, struct err *e)
{
	static const char tekken[] = "tekken.json";
	size_t n = strlen(name), k = strlen(tekken);

	if (tok_is_ranks(t->json, t->json_len))
		return made(t, tok_of_ranks(t->json, t->json_len, name, config, e), e);
	if (tok_is_pieces(t->json, t->json_len))
		return made(t, tok_of_pieces(t->json, t->json_len, name, config, e), e);
	if (n >= k && strcmp(name + n - k, tekken) == 0)
		return made(t, read_tekken(t, name, e), e);
	return jsonfile_parse(t->json, t->json_len, name, e);
}

struct tok *tok_parse(char *json, size_t len, const char *name, const json_t *config,
    struct err *e)
{
	struct tok *t = bytemap_grow(NULL, 1, sizeof *t);
	struct loader l = { .t = memset(t, 0, sizeof *t), .name = name, .e = e };
	json_t *root;
	int rc;

	t->json = json;
	t->json_len = len;
	t->work = tok_work_new();
	memset(l.char_byte, 0xff, sizeof l.char_byte);
	for (unsigned b = 0; b < 256; b++)
		l.char_byte[tok_byte_char(b)] = b;
	root = read_root(t, name, config, e);
	rc = root ? take_root(&l, root) : -1;
	json_decref(root);
	if (rc) {
		tok_free(t);
		return NULL;
	}
	tok_defaults(t);
	sha256_hex(t->json, t->json_len, t->sha256);
	return t;
}
