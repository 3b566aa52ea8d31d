/* A tokenizer as the metadata of a GGUF file: tok_gguf.c the other way round. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/jsonfile.h"
#include "text/tok_gguf.h"
#include "text/tok_impl.h"

enum { NORMAL = 1, UNKNOWN = 2, CONTROL = 3, USER = 4, UNUSED = 5, BYTE = 6 };	/* token_type */

struct said {
	const struct tok *t;
	const char *name;		/* of the model, for messages */
	const json_t *root, *model;	/* tokenizer.json, and the model in it */
	json_t *keys;			/* in the making */
	json_t *tokens, *types;		/* (V) of the model */
	struct tok_gguf_pre pre;	/* what the pre-tokenizer does, */
	bool bytes;			/* which ends in bytes */
	bool prefix;			/* of pieces: a space is put before a text */
	struct err *e;
};

static int bad(const struct said *s, const char *what)
{
	return err_set(s->e, EX_DATAERR, "%s: its tokenizer: %.300s", s->name, what);
}

static const char *type_of(const json_t *o)
{
	const char *type = json_string_value(json_object_get(o, "type"));

	return type ? type : "";
}

static void set(struct said *s, const char *key, json_t *v)
{
	char full[100];

	snprintf(full, sizeof full, "tokenizer.%s", key);
	json_object_set_new(s->keys, full, v);
}

/* ---- how a text is cut ---- */

static int unknown_step(const struct said *s, const char *what, const json_t *o)
{
	char msg[120];

	snprintf(msg, sizeof msg, "llama.cpp has no %s \"%.40s\" like its", what, type_of(o));
	return bad(s, msg);
}

static bool is_false(const json_t *o, const char *key)
{
	return !json_is_true(json_object_get(o, key));
}

static int take_split(struct said *s, const json_t *o)
{
	const char *regex = json_string_value(json_object_get(json_object_get(o, "pattern"),
	    "Regex"));
	const char *behavior = json_string_value(json_object_get(o, "behavior"));
	bool kept = behavior && (is_false(o, "invert") ? strcmp(behavior, "Isolated") == 0
	    : strcmp(behavior, "Removed") == 0);
	int n = 0;

	while (n < TOK_GGUF_SPLITS && s->pre.split[n])
		n++;
	if (!regex || !kept || n == TOK_GGUF_SPLITS || s->pre.digits || s->bytes)
		return unknown_step(s, "pre-tokenizer", o);
	s->pre.split[n] = regex;
	return 0;
}

/* Takes o, or each of its steps where it is a sequence: `list` names them. */
static int each_step(struct said *s, const json_t *o, const char *list, int depth,
    int (*take)(struct said *s, const json_t *o))
{
	const json_t *v;
	size_t i;

	if (strcmp(type_of(o), "Sequence") != 0 || depth == 4)
		return take(s, o);
	json_array_foreach(json_object_get(o, list), i, v)
		if (each_step(s, v, list, depth + 1, take) < 0)
			return -1;
	return 0;
}

static int take_pre(struct said *s, const json_t *o)
{
	const char *type = type_of(o);
	const json_t *v;

	if (strcmp(type, "Split") == 0)
		return take_split(s, o);
	if (strcmp(type, "Digits") == 0 && !is_false(o, "individual_digits") && !s->bytes) {
		s->pre.digits = true;
		return 0;
	}
	if (strcmp(type, "ByteLevel") == 0 && is_false(o, "add_prefix_space") && !s->bytes) {
		v = json_object_get(o, "use_regex");
		s->bytes = true;
		s->pre.gpt2 = !v || json_is_true(v);
		return 0;
	}
	return unknown_step(s, "pre-tokenizer", o);
}

static int take_nfc(struct said *s, const json_t *o)
{
	if (json_is_null(o) || !o)
		return 0;
	if (strcmp(type_of(o), "NFC") != 0)
		return unknown_step(s, "normalizer", o);
	s->pre.nfc = true;
	return 0;
}

static int say_pre(struct said *s)
{
	const char *name, *first;
	char msg[240];

	if (each_step(s, json_object_get(s->root, "pre_tokenizer"), "pretokenizers", 0,
	    take_pre) < 0 || each_step(s, json_object_get(s->root, "normalizer"), "normalizers", 0,
	    take_nfc) < 0)
		return -1;
	s->pre.whole = json_is_true(json_object_get(s->model, "ignore_merges"));
	name = tok_gguf_pre_name(&s->pre);
	if (name) {
		set(s, "ggml.model", json_string("gpt2"));
		set(s, "ggml.pre", json_string(name));
		return 0;
	}
	first = s->pre.split[0];
	snprintf(msg, sizeof msg, "no pre-tokenizer of llama.cpp cuts a text like it%s%.120s",
	    first ? ": " : "", first ? first : "");
	return bad(s, msg);
}

/* ---- pieces with scores ---- */

#define MARK "\xe2\x96\x81"

static bool has_text(const json_t *o, const char *key, const char *want)
{
	const char *s = json_string_value(json_object_get(o, key));

	return s && strcmp(s, want) == 0;
}

/* Spaces become marks, and one may be put in front. */
static int take_marks(struct said *s, const json_t *o)
{
	if (json_is_null(o) || !o)
		return 0;
	if (strcmp(type_of(o), "Prepend") == 0 && has_text(o, "prepend", MARK))
		s->prefix = true;
	else if (strcmp(type_of(o), "Replace") != 0 || !has_text(o, "content", MARK) ||
	    !has_text(json_object_get(o, "pattern"), "String", " "))
		return unknown_step(s, "normalizer", o);
	return 0;
}

static int take_metaspace(struct said *s, const json_t *o)
{
	const json_t *scheme = json_object_get(o, "prepend_scheme");

	if (json_is_null(o) || !o)
		return 0;
	if (strcmp(type_of(o), "Metaspace") != 0 || !has_text(o, "replacement", MARK) ||
	    !json_is_false(json_object_get(o, "split")))
		return unknown_step(s, "pre-tokenizer", o);
	s->prefix |= scheme ? strcmp(json_string_value(scheme) ? json_string_value(scheme) : "",
	    "never") != 0 : !json_is_false(json_object_get(o, "add_prefix_space"));
	return 0;
}

/* The spelling of what a merge makes, new. */
static json_t *merged(const json_t *merge)
{
	const json_t *a = json_array_get(merge, 0), *b = json_array_get(merge, 1);
	const char *pair = json_string_value(merge), *gap = pair ? strchr(pair, ' ') : NULL;

	if (json_is_array(merge))
		return json_sprintf("%s%s", json_string_value(a), json_string_value(b));
	return gap ? json_sprintf("%.*s%s", (int)(gap - pair), pair, gap + 1) : json_null();
}

/* The token that each merge makes, new; NULL: of one there is none. */
static uint32_t *tokens_of(const struct said *s, const json_t *merges)
{
	const json_t *vocab = json_object_get(s->model, "vocab");
	uint32_t *of = malloc((json_array_size(merges) + 1) * sizeof *of);
	json_t *m;
	size_t i;

	json_array_foreach(merges, i, m) {
		json_t *text = of ? merged(m) : NULL;
		const char *name = json_string_value(text);
		const json_t *id = name ? json_object_get(vocab, name) : NULL;

		if (of && id)
			of[i] = (uint32_t)json_integer_value(id);
		json_decref(text);
		if (!id) {
			free(of);
			return NULL;
		}
	}
	return of;
}

/* "==", and spaces: their order among themselves does not matter. */
static bool is_run(const char *text)
{
	size_t n = strlen(text), k = utf8_char(text, n);

	for (size_t i = k; i < n; i += k)
		if (k == 0 || i + k > n || memcmp(text, text + i, k) != 0)
			return false;
	return true;
}

/* Merges that make a token stand together, but that those of runs may be mixed: such a group has
 * one score, and the earlier it is, the higher. of: which token each of n merges makes. */
static bool set_scores(const struct said *s, const uint32_t *of, size_t n, json_t *scores)
{
	size_t *last = calloc(json_array_size(scores) + 1, sizeof *last), end = 0;
	bool good = last != NULL;
	int group = 0;

	for (size_t i = 0; i < n && good; i++)
		last[of[i]] = i;
	for (size_t i = 0; i < n && good; i++) {
		const char *text = json_string_value(json_array_get(s->tokens, of[i]));

		if (i == 0 || i > end)
			group++;
		else if (of[i] != of[i - 1])
			good = is_run(text) && is_run(json_string_value(json_array_get(s->tokens,
			    of[i - 1])));
		end = i == 0 || last[of[i]] > end ? last[of[i]] : end;
		json_array_set_new(scores, of[i], json_real(-group));
	}
	free(last);
	return good;
}

/* One of each token; of those that are never made it does not matter. NULL: no scores say these
 * merges (EX_DATAERR). */
static json_t *scores_of(const struct said *s, const json_t *merges)
{
	json_t *scores = json_array(), *again = NULL;
	uint32_t *of = tokens_of(s, merges);
	bool good;

	for (size_t i = 0; i < json_array_size(s->tokens); i++)
		json_array_append_new(scores, json_real(0));
	good = of && set_scores(s, of, json_array_size(merges), scores);
	free(of);
	if (good && !(again = tok_gguf_merges(s->tokens, s->types, scores, s->e))) {
		json_decref(scores);
		return NULL;
	}
	good &= json_array_size(again) == json_array_size(merges);
	json_decref(again);
	if (good)
		return scores;
	json_decref(scores);
	bad(s, "its merges cannot be said by a score of each token, which is what llama.cpp has "
	    "for pieces of SentencePiece");
	return NULL;
}

/* Merges are left out: they follow from scores. */
static int say_pieces(struct said *s, const json_t *merges)
{
	json_t *scores;

	if (each_step(s, json_object_get(s->root, "normalizer"), "normalizers", 0,
	    take_marks) < 0 ||
	    take_metaspace(s, json_object_get(s->root, "pre_tokenizer")) < 0 ||
	    !(scores = scores_of(s, merges)))
		return -1;
	set(s, "ggml.model", json_string("llama"));
	set(s, "ggml.pre", json_string("default"));
	set(s, "ggml.add_space_prefix", json_boolean(s->prefix));
	set(s, "ggml.scores", scores);
	return 0;
}

/* ---- tokens ---- */

static int put_token(struct said *s, json_int_t id, const char *text, int type)
{
	if (id < 0 || (size_t)id >= json_array_size(s->tokens))
		return bad(s, "a token has an id that the model has not");
	json_array_set_new(s->tokens, (size_t)id, json_string(text));
	json_array_set_new(s->types, (size_t)id, json_integer(type));
	return 0;
}

static bool is_byte(const char *text)
{
	return strlen(text) == 6 && strncmp(text, "<0x", 3) == 0 && text[5] == '>';
}

static int take_tokens(struct said *s, int vocab)
{
	const json_t *unk = json_object_get(s->model, "unk_token"), *v;
	bool fallback = json_is_true(json_object_get(s->model, "byte_fallback"));
	const char *text;
	char pad[24];
	size_t i;

	s->tokens = json_array();
	s->types = json_array();
	for (int id = 0; id < vocab; id++) {
		snprintf(pad, sizeof pad, "[PAD%d]", id);
		json_array_append_new(s->tokens, json_string(pad));
		json_array_append_new(s->types, json_integer(UNUSED));
	}
	json_object_foreach((json_t *)json_object_get(s->model, "vocab"), text, v)
		if (put_token(s, json_integer_value(v), text, fallback && is_byte(text) ? BYTE :
		    json_is_string(unk) && strcmp(json_string_value(unk), text) == 0 && fallback
		    ? UNKNOWN : NORMAL) < 0)
			return -1;
	json_array_foreach(json_object_get(s->root, "added_tokens"), i, v) {
		json_int_t id = json_integer_value(json_object_get(v, "id"));
		bool special = json_is_true(json_object_get(v, "special"));

		if (json_integer_value(json_array_get(s->types, (size_t)id)) != UNKNOWN &&
		    put_token(s, id, json_string_value(json_object_get(v, "content")),
		    special ? CONTROL : USER) < 0)
			return -1;
	}
	return 0;
}

static json_t *merge_texts(const json_t *merges)
{
	json_t *list = json_array(), *m;
	size_t i;

	json_array_foreach(merges, i, m)
		json_array_append_new(list, json_is_string(m) ? json_incref(m) :
		    json_sprintf("%s %s", json_string_value(json_array_get(m, 0)),
		    json_string_value(json_array_get(m, 1))));
	return list;
}

static void say_id(struct said *s, const char *key, int id)
{
	if (id >= 0)
		set(s, key, json_integer(id));
}

/* Ends of a turn: that of the tokenizer, and what config.json has besides. */
static void say_ends(struct said *s, const json_t *ends)
{
	static const char *const more[] = { "ggml.eot_token_id", "ggml.eom_token_id" };
	int eos = s->t->eos, n = json_is_array(ends) ? (int)json_array_size(ends) : 1, said = 0;

	for (int i = 0; i < n; i++) {
		const json_t *v = json_is_array(ends) ? json_array_get(ends, (size_t)i) : ends;
		int id = json_is_integer(v) ? (int)json_integer_value(v) : -1;

		if (id < 0 || id == eos)
			continue;
		if (eos < 0)
			eos = id;
		else if (said < 2)
			say_id(s, more[said++], id);
	}
	say_id(s, "ggml.eos_token_id", eos);
}

static void say_specials(struct said *s, const struct tok_gguf_of *of)
{
	const char *unk = json_string_value(json_object_get(s->model, "unk_token"));

	say_id(s, "ggml.bos_token_id", s->t->bos);
	say_ends(s, of->ends);
	say_id(s, "ggml.padding_token_id", s->t->pad);
	say_id(s, "ggml.unknown_token_id", unk ? tok_id(s->t, unk) : -1);
	set(s, "ggml.add_bos_token", json_boolean(s->t->bos >= 0 && (of->own ||
	    s->t->adds_bos)));
}

/* ---- the chat template ---- */

static void say_templates(struct said *s, const json_t *list)
{
	json_t *names = json_array(), *o;
	size_t i;
	char key[80];

	json_array_foreach(list, i, o) {
		const char *name = json_string_value(json_object_get(o, "name"));
		json_t *text = json_object_get(o, "template");

		if (!name || !json_is_string(text))
			continue;
		snprintf(key, sizeof key, "chat_template%s%.40s", strcmp(name, "default") ? "."
		    : "", strcmp(name, "default") ? name : "");
		if (strcmp(name, "default") != 0)
			json_array_append_new(names, json_string(name));
		set(s, key, json_incref(text));
	}
	if (json_array_size(names) > 0)
		set(s, "chat_templates", names);
	else
		json_decref(names);
}

static int say_template(struct said *s)
{
	json_t *config = s->t->config_json ? jsonfile_parse(s->t->config_json, s->t->config_len,
	    s->name, s->e) : NULL;
	json_t *template = json_object_get(config, "chat_template");

	if (s->t->config_json && !config)
		return -1;
	if (s->t->template_text)
		set(s, "chat_template", json_string(s->t->template_text));
	else if (json_is_array(template))
		say_templates(s, template);
	else if (json_is_string(template))
		set(s, "chat_template", json_incref(template));
	else if (!s->t->own_template && s->t->chat)
		set(s, "chat_template", json_string(tok_chat_template));
	if (!is_false(config, "add_eos_token"))
		set(s, "ggml.add_eos_token", json_true());
	json_decref(config);
	return 0;
}

/* ---- all of it ---- */

static int say(struct said *s, const struct tok_gguf_of *of)
{
	const json_t *merges = json_object_get(s->model, "merges");
	int rc;

	if (strcmp(type_of(s->model), "BPE") != 0 || !json_is_array(merges))
		return unknown_step(s, "tokenizer of type", s->model);
	if (take_tokens(s, of->vocab) < 0)
		return -1;
	rc = json_is_true(json_object_get(s->model, "byte_fallback")) ? say_pieces(s, merges)
	    : say_pre(s);
	if (rc < 0)
		return -1;
	set(s, "ggml.tokens", json_incref(s->tokens));
	set(s, "ggml.token_type", json_incref(s->types));
	if (s->bytes)
		set(s, "ggml.merges", merge_texts(merges));
	say_specials(s, of);
	return say_template(s);
}

int tok_gguf_say(const struct tok_gguf_of *of, json_t **keys, struct err *e)
{
	struct tok *t = tok_load(of->model, e);
	struct said s = { .t = t, .name = of->model, .keys = json_object(), .e = e };
	json_t *root = t ? jsonfile_parse(t->json, t->json_len, of->model, e) : NULL;
	int rc = -1;

	s.root = root;
	s.model = json_object_get(root, "model");
	if (root)
		rc = say(&s, of);
	json_decref(s.tokens);
	json_decref(s.types);
	json_decref(root);
	tok_free(t);
	*keys = rc == 0 ? s.keys : NULL;
	if (rc < 0)
		json_decref(s.keys);
	return rc;
}
