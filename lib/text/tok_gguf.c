#include "text/tok_gguf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/jsonfile.h"

enum { NORMAL = 1, UNKNOWN = 2, CONTROL = 3, USER = 4, UNUSED = 5, BYTE = 6 };	/* token_type */

#define MARK "\xe2\x96\x81"		/* U+2581, a space in SentencePiece's tokens */
#define MAX_TOKENS ((size_t)1 << 22)

struct source {
	const struct gguf *g;
	struct err *e;
	json_t *tokens, *types, *scores, *merges;	/* lists; all but tokens may be NULL */
	json_t *vocab;			/* spelling to id */
	const struct tok_gguf_pre *pre;	/* NULL: SentencePiece's BPE */
};

static int bad(const struct source *s, const char *what)
{
	return err_set(s->e, EX_DATAERR, "%s: %s", gguf_name(s->g), what);
}

/* ---- values of the file ---- */

static const char *key_of(const char *name, char out[64])
{
	snprintf(out, 64, "tokenizer.%s", name);
	return out;
}

/* A value, new; *v stays NULL where there is none. */
static int take(const struct source *s, const char *name, json_t **v)
{
	char key[64];
	const struct gguf_value *at = gguf_value(s->g, key_of(name, key));

	*v = at ? gguf_json(s->g, at, s->e) : NULL;
	return at && !*v ? -1 : 0;
}

/* A list of n of one type (JSON_INTEGER: also truth). */
static int take_list(const struct source *s, const char *name, size_t n, json_type type,
    json_t **v)
{
	char msg[120];
	size_t i;
	json_t *x;

	if (take(s, name, v) < 0)
		return -1;
	if (!*v)
		return 0;
	json_array_foreach(*v, i, x)
		if (json_typeof(x) != type)
			break;
	if (json_is_array(*v) && i == json_array_size(*v) && (n == 0 || i == n))
		return 0;
	snprintf(msg, sizeof msg, "tokenizer.%s is not a list of %s, one a token", name,
	    type == JSON_STRING ? "texts" : type == JSON_REAL ? "real numbers" : "integers");
	json_decref(*v);
	*v = NULL;
	return bad(s, msg);
}

static int take_text(const struct source *s, const char *name, json_t **v)
{
	char msg[120];

	if (take(s, name, v) < 0)
		return -1;
	if (!*v || json_is_string(*v))
		return 0;
	snprintf(msg, sizeof msg, "tokenizer.%s is %s, not a text", name, jsonfile_kind(*v));
	json_decref(*v);
	*v = NULL;
	return bad(s, msg);
}

/* A token named by its id: its spelling, borrowed, or NULL. */
static const char *named(const struct source *s, const char *name)
{
	char key[64];
	const struct gguf_value *at = gguf_value(s->g, key_of(name, key));
	struct err none = { 0 };
	json_t *v = at ? gguf_json(s->g, at, &none) : NULL;
	json_int_t id = json_is_integer(v) ? json_integer_value(v) : -1;

	json_decref(v);
	return id < 0 ? NULL : json_string_value(json_array_get(s->tokens, (size_t)id));
}

static bool truth(const struct source *s, const char *name, bool absent)
{
	char key[64];
	const struct gguf_value *at = gguf_value(s->g, key_of(name, key));

	return at && at->kind == GGUF_BOOL && !at->array ? *at->at != 0 : absent;
}

static int type_at(const struct source *s, size_t i)
{
	return s->types ? (int)json_integer_value(json_array_get(s->types, i)) : NORMAL;
}

/* ---- tokens ---- */

/* Where a token lies: in the vocabulary, and those that are found in the text before all else among
 * the added ones. */
static int take_token(struct source *s, size_t i, json_t *added)
{
	const char *text = json_string_value(json_array_get(s->tokens, i));
	int type = type_at(s, i);
	char msg[160];

	if (type == UNUSED || *text == '\0')
		return 0;
	if (type == CONTROL || type == USER || (type == UNKNOWN && !s->pre))
		json_array_append_new(added, json_pack("{s:I, s:s, s:b, s:b, s:b, s:b, s:b}", "id",
		    (json_int_t)i, "content", text, "single_word", 0, "lstrip", 0, "rstrip", 0,
		    "normalized", 0, "special", type != USER));
	if (s->pre && (type == CONTROL || type == USER))
		return 0;
	if (json_object_get(s->vocab, text)) {
		snprintf(msg, sizeof msg, "tokenizer.ggml.tokens[%zu] is there twice", i);
		return bad(s, msg);
	}
	return json_object_set_new(s->vocab, text, json_integer((json_int_t)i));
}

/* ---- merges of SentencePiece's BPE ---- */

struct merge {
	json_int_t a, b;		/* ids, */
	int la, lb;			/* and lengths in characters, of its sides */
	double score;			/* of both together */
	size_t at;			/* place among all, so that sorting keeps the order */
};

struct merges { size_t n, cap; struct merge *v; };

static int by_ids(const void *x, const void *y)
{
	const struct merge *a = x, *b = y;

	return a->a != b->a ? (a->a > b->a) - (a->a < b->a) : (a->b > b->b) - (a->b < b->b);
}

/* The order of transformers: by score, then by the lengths of the sides, all falling. */
static int by_score(const void *x, const void *y)
{
	const struct merge *a = x, *b = y;

	if (a->score != b->score)
		return a->score < b->score ? 1 : -1;
	if (a->la != b->la)
		return b->la - a->la;
	if (a->lb != b->lb)
		return b->lb - a->lb;
	return (a->at > b->at) - (a->at < b->at);
}

static int add_merge(struct merges *m, struct merge x)
{
	if (m->n == m->cap) {
		size_t cap = m->cap ? 2 * m->cap : 4096;
		struct merge *v = realloc(m->v, cap * sizeof *v);

		if (!v)
			return -1;
		m->v = v;
		m->cap = cap;
	}
	m->v[m->n++] = x;
	return 0;
}

static int count_chars(const char *s, size_t n)
{
	int chars = 0;

	for (size_t i = 0; i < n; i++)
		chars += ((unsigned char)s[i] & 0xc0) != 0x80;
	return chars;
}

/* Every way to make token i of two others. */
static int split_token(const struct source *s, size_t i, struct merges *m)
{
	const json_t *token = json_array_get(s->tokens, i);
	const char *text = json_string_value(token);
	size_t len = json_string_length(token), first = m->n;
	double score = json_real_value(json_array_get(s->scores, i));

	for (size_t k = 1; k < len; k++) {
		const json_t *a, *b;

		if (((unsigned char)text[k] & 0xc0) == 0x80)
			continue;
		a = json_object_getn(s->vocab, text, k);
		b = a ? json_object_getn(s->vocab, text + k, len - k) : NULL;
		if (b && add_merge(m, (struct merge){ json_integer_value(a), json_integer_value(b),
		    count_chars(text, k), count_chars(text + k, len - k), score, 0 }) < 0)
			return -1;
	}
	if (m->n > first)
		qsort(m->v + first, m->n - first, sizeof *m->v, by_ids);
	for (size_t k = first; k < m->n; k++)
		m->v[k].at = k;
	return 0;
}

#define LONGEST_SPLIT 1024		/* bytes of a token that merges are looked for in */

static int merges_of_scores(struct source *s)
{
	struct merges m = { 0 };
	int r = 0;

	for (size_t i = 0; i < json_array_size(s->tokens) && r == 0; i++)
		if (type_at(s, i) == NORMAL && json_string_length(json_array_get(s->tokens, i)) <=
		    LONGEST_SPLIT)
			r = split_token(s, i, &m);
	if (r == 0 && m.n > 0)
		qsort(m.v, m.n, sizeof *m.v, by_score);
	s->merges = json_array();
	for (size_t i = 0; i < m.n && r == 0; i++) {
		json_t *pair = json_array();

		json_array_append(pair, json_array_get(s->tokens, (size_t)m.v[i].a));
		json_array_append(pair, json_array_get(s->tokens, (size_t)m.v[i].b));
		r = json_array_append_new(s->merges, pair);
	}
	free(m.v);
	return r == 0 ? 0 : err_set(s->e, EX_OSERR, "out of memory");
}

json_t *tok_gguf_merges(const json_t *tokens, const json_t *types, const json_t *scores,
    struct err *e)
{
	struct source s = { .e = e, .tokens = (json_t *)tokens, .types = (json_t *)types,
	    .scores = (json_t *)scores, .vocab = json_object() };
	int rc;

	for (size_t i = 0; i < json_array_size(tokens); i++)
		if (type_at(&s, i) != UNUSED)
			json_object_set_new(s.vocab, json_string_value(json_array_get(tokens, i)),
			    json_integer((json_int_t)i));
	rc = merges_of_scores(&s);
	json_decref(s.vocab);
	if (rc == 0)
		return s.merges;
	json_decref(s.merges);
	return NULL;
}

/* ---- the parts of a tokenizer.json ---- */

static json_t *split_json(const char *pattern)
{
	return json_pack("{s:s, s:{s:s}, s:s, s:b}", "type", "Split", "pattern", "Regex", pattern,
	    "behavior", "Isolated", "invert", 0);
}

static json_t *pre_json(const struct tok_gguf_pre *p)
{
	json_t *list = json_array();

	for (int i = 0; i < TOK_GGUF_SPLITS && p->split[i]; i++)
		json_array_append_new(list, split_json(p->split[i]));
	if (p->digits)
		json_array_append_new(list, json_pack("{s:s, s:b}", "type", "Digits",
		    "individual_digits", 1));
	json_array_append_new(list, json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel",
	    "add_prefix_space", 0, "trim_offsets", 1, "use_regex", p->gpt2));
	return json_pack("{s:s, s:o}", "type", "Sequence", "pretokenizers", list);
}

/* Spaces as SentencePiece's tokens have them; prefix: a text begins with one more. */
static json_t *mark_json(bool prefix)
{
	json_t *list = json_array();

	if (prefix)
		json_array_append_new(list, json_pack("{s:s, s:s}", "type", "Prepend", "prepend",
		    MARK));
	json_array_append_new(list, json_pack("{s:s, s:{s:s}, s:s}", "type", "Replace", "pattern",
	    "String", " ", "content", MARK));
	return json_pack("{s:s, s:o}", "type", "Sequence", "normalizers", list);
}

static json_t *unmark_json(bool prefix)
{
	json_t *list = json_pack("[{s:s, s:{s:s}, s:s}, {s:s}, {s:s}]", "type", "Replace",
	    "pattern", "String", MARK, "content", " ", "type", "ByteFallback", "type", "Fuse");

	if (prefix)
		json_array_append_new(list, json_pack("{s:s, s:s, s:i, s:i}", "type", "Strip",
		    "content", " ", "start", 1, "stop", 0));
	return json_pack("{s:s, s:o}", "type", "Sequence", "decoders", list);
}

static json_t *model_json(const struct source *s)
{
	const char *unk = s->pre ? NULL : named(s, "ggml.unknown_token_id");

	return json_pack("{s:s, s:s?, s:b, s:b, s:b, s:O, s:O}", "type", "BPE", "unk_token", unk,
	    "fuse_unk", !s->pre, "byte_fallback", !s->pre, "ignore_merges",
	    s->pre && s->pre->whole, "vocab", s->vocab, "merges", s->merges);
}

static json_t *tokenizer_json(const struct source *s, json_t *added)
{
	bool prefix = truth(s, "ggml.add_space_prefix", true);
	json_t *o = json_pack("{s:s, s:n, s:n, s:O}", "version", "1.0", "truncation", "padding",
	    "added_tokens", added);

	if (s->pre) {
		json_object_set_new(o, "normalizer", s->pre->nfc ? json_pack("{s:s}", "type", "NFC")
		    : json_null());
		json_object_set_new(o, "pre_tokenizer", pre_json(s->pre));
		json_object_set_new(o, "decoder", json_pack("{s:s}", "type", "ByteLevel"));
	} else {
		json_object_set_new(o, "normalizer", mark_json(prefix));
		json_object_set_new(o, "pre_tokenizer", json_null());
		json_object_set_new(o, "decoder", unmark_json(prefix));
	}
	json_object_set_new(o, "post_processor", json_null());
	json_object_set_new(o, "model", model_json(s));
	return o;
}

/* ---- the parts of a tokenizer_config.json ---- */

/* One template, or a list where there are named ones besides. */
static int template_json(const struct source *s, json_t **out)
{
	json_t *names, *one;
	char key[64];
	size_t i;
	json_t *v;

	if (take_text(s, "chat_template", out) < 0 ||
	    take_list(s, "chat_templates", 0, JSON_STRING, &names) < 0)
		return -1;
	if (!names)
		return 0;
	one = *out;
	*out = json_array();
	if (one)
		json_array_append_new(*out, json_pack("{s:s, s:o}", "name", "default", "template",
		    one));
	json_array_foreach(names, i, v) {
		snprintf(key, sizeof key, "chat_template.%.40s", json_string_value(v));
		if (take_text(s, key, &one) < 0) {
			json_decref(names);
			return -1;
		}
		if (one)
			json_array_append_new(*out, json_pack("{s:O, s:o}", "name", v, "template",
			    one));
	}
	json_decref(names);
	return 0;
}

static int config_json(const struct source *s, json_t **out)
{
	bool bos = truth(s, "ggml.add_bos_token", s->pre ? s->pre->bos : true);
	json_t *template = NULL;

	if (template_json(s, &template) < 0) {
		json_decref(template);
		return -1;
	}
	*out = json_pack("{s:s, s:s?, s:s?, s:s?, s:s?, s:b, s:b, s:b}", "tokenizer_class",
	    "PreTrainedTokenizerFast", "bos_token", named(s, "ggml.bos_token_id"), "eos_token",
	    named(s, "ggml.eos_token_id"), "pad_token", named(s, "ggml.padding_token_id"),
	    "unk_token", named(s, "ggml.unknown_token_id"), "add_bos_token", bos, "add_eos_token",
	    truth(s, "ggml.add_eos_token", false), "clean_up_tokenization_spaces", 0);
	if (template)
		json_object_set_new(*out, "chat_template", template);
	return 0;
}

/* ---- all of it ---- */

/* Which kind of tokenizer it is. */
static int take_model(struct source *s)
{
	json_t *model, *pre = NULL;
	const char *name, *pre_name;
	int r = 0;

	if (take_text(s, "ggml.model", &model) < 0)
		return -1;
	name = model ? json_string_value(model) : "";
	if (!model)
		r = bad(s, "has no tokenizer (tokenizer.ggml.model)");
	else if (strcmp(name, "llama") != 0 && strcmp(name, "gpt2") != 0)
		r = err_set(s->e, EX_DATAERR, "%s: tokenizer.ggml.model \"%.40s\" is not supported,"
		    " only gpt2 and llama", gguf_name(s->g), name);
	else if (strcmp(name, "gpt2") == 0 && (r = take_text(s, "ggml.pre", &pre)) == 0) {
		pre_name = pre ? json_string_value(pre) : "";
		s->pre = tok_gguf_pre(pre_name);
		if (!s->pre)
			r = err_set(s->e, EX_DATAERR, "%s: the pre-tokenizer \"%.40s\" "
			    "(tokenizer.ggml.pre) is not known", gguf_name(s->g), pre_name);
	}
	json_decref(model);
	json_decref(pre);
	return r;
}

static int take_lists(struct source *s)
{
	size_t n;

	if (take_list(s, "ggml.tokens", 0, JSON_STRING, &s->tokens) < 0)
		return -1;
	n = json_array_size(s->tokens);
	if (n == 0 || n > MAX_TOKENS)
		return bad(s, "tokenizer.ggml.tokens is missing, empty or too long");
	if (take_list(s, "ggml.token_type", n, JSON_INTEGER, &s->types) < 0 ||
	    take_list(s, "ggml.merges", 0, JSON_STRING, &s->merges) < 0 ||
	    take_list(s, "ggml.scores", n, JSON_REAL, &s->scores) < 0)
		return -1;
	if (!s->merges && s->pre)
		return bad(s, "tokenizer.ggml.merges is missing");
	if (!s->merges && !s->scores)
		return bad(s, "neither tokenizer.ggml.merges nor tokenizer.ggml.scores is there");
	return 0;
}

static int build(struct source *s, json_t *added)
{
	if (take_model(s) < 0 || take_lists(s) < 0)
		return -1;
	for (size_t i = 0; i < json_array_size(s->tokens); i++)
		if (take_token(s, i, added) < 0)
			return -1;
	return s->merges ? 0 : merges_of_scores(s);
}

int tok_gguf(const struct gguf *g, json_t **tokenizer, json_t **config, struct err *e)
{
	struct source s = { .g = g, .e = e, .vocab = json_object() };
	json_t *added = json_array();
	int r = build(&s, added);

	*tokenizer = NULL;
	if (r == 0)
		r = config_json(&s, config);
	if (r == 0)
		*tokenizer = tokenizer_json(&s, added);
	json_decref(added);
	json_decref(s.vocab);
	json_decref(s.tokens);
	json_decref(s.types);
	json_decref(s.scores);
	json_decref(s.merges);
	return r;
}
