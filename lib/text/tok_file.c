/* The files of a tokenizer: which there are in a directory, what stands beside them (names of
 * tokens, chat templates), and what is saved. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/jsonfile.h"
#include "base/plain.h"
#include "base/sniff.h"
#include "format/gguf_model.h"
#include "text/jinja.h"
#include "text/tok_gguf.h"
#include "text/tok_impl.h"

/* bos_token and the like: "x", or {"content": "x"}. A token that the tokenizer lacks is none. */
static int named_token(const struct tok *t, const json_t *config, const char *key)
{
	const json_t *v = json_object_get(config, key);
	const char *s = json_string_value(json_is_object(v) ? json_object_get(v, "content") : v);

	return s ? tok_id(t, s) : -1;
}

static int first_special(const struct tok *t, const char *const names[])
{
	for (; *names; names++) {
		int id = tok_id(t, *names);

		if (id >= 0 && tok_is_special(t, (uint32_t)id))
			return id;
	}
	return -1;
}

/* A template that cannot be read is an error of who wants to use it. */
static void set_template(struct tok *t, const char *source, size_t len, const char *name, bool own)
{
	jinja_close(t->chat);
	t->chat_error = (struct err){ 0 };
	t->chat = jinja_open(source, len, name, &t->chat_error);
	t->own_template = own && strcmp(source, tok_chat_template) != 0;
}

/* A tokenizer.json alone: go by the names in use. */
void tok_defaults(struct tok *t)
{
	static const char *const bos[] = { "<|im_start|>", "<|begin_of_text|>", "<s>",
	    "<|endoftext|>", NULL };
	static const char *const eos[] = { "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "</s>",
	    "<|endoftext|>", NULL };
	static const char *const pad[] = { "<|endoftext|>", "<pad>", NULL };

	t->bos = first_special(t, bos);
	t->eos = first_special(t, eos);
	t->pad = first_special(t, pad);
	if (tok_id(t, "<|im_start|>") >= 0 && tok_id(t, "<|im_end|>") >= 0)
		set_template(t, tok_chat_template, strlen(tok_chat_template),
		    "the built-in chat template", false);
}

/* What stands where a template should be is no template, and ours is not meant either. */
static void no_template(struct tok *t, const char *path, const char *what)
{
	jinja_close(t->chat);
	t->chat = NULL;
	err_set(&t->chat_error, EX_DATAERR, "%s: %s", path, what);
}

/* The template of that name in a list of them, or NULL. */
static const char *named_template(const json_t *list, const char *name)
{
	size_t i;
	json_t *o;

	json_array_foreach(list, i, o)
		if (json_is_string(json_object_get(o, "name")) &&
		    !strcmp(json_string_value(json_object_get(o, "name")), name))
			return json_string_value(json_object_get(o, "template"));
	return NULL;
}

/* The template of a configuration: a text, or a list of named ones, of which that for tools is
 * for conversations with tools, as transformers has it. */
static void take_template(struct tok *t, const json_t *config, const char *path)
{
	const json_t *v = json_object_get(config, "chat_template");
	const char *source = json_is_string(v) ? json_string_value(v)
	    : named_template(v, "default");
	const char *tools = named_template(v, "tool_use");

	if (v == NULL || json_is_null(v) || (json_is_array(v) && json_array_size(v) == 0))
		return;
	if (source == NULL) {
		no_template(t, path, "chat_template is neither a text nor a list with one that is "
		    "named \"default\"");
		return;
	}
	set_template(t, source, strlen(source), path, true);
	if (tools != NULL && t->chat != NULL)
		t->chat_tools = jinja_open(tools, strlen(tools), path, &t->chat_error);
	if (tools != NULL && t->chat_tools == NULL) {
		jinja_close(t->chat);
		t->chat = NULL;
	}
}

/* UTF-8 without NUL? */
static bool is_text(const char *s, size_t len)
{
	uint32_t c = 1;

	for (size_t i = 0, n; i < len && c; i += n)
		if ((n = plain_utf8(s + i, len - i, &c)) == 0)
			return false;
	return c != 0;
}

/* chat_template.jinja beside a tokenizer.json; it goes before the configuration. */
static int read_template(struct tok *t, const char *path, struct err *e)
{
	size_t len, mark;
	const char *what;

	if (file_get_regular(path, &t->template_text, &len, e))
		return -1;
	jinja_close(t->chat_tools);
	t->chat_tools = NULL;
	mark = len >= 3 && memcmp(t->template_text, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
	what = len > 0 ? sniff(t->template_text, len) : NULL;
	if (what == NULL && !is_text(t->template_text, len))
		what = "no text in UTF-8";
	if (what != NULL)
		return err_set(e, EX_DATAERR, "%s: is %s", path, what);
	set_template(t, t->template_text + mark, len - mark, path, true);
	return 0;
}

/* What names a token is text; another type would silently be none. */
static int check_tokens(const json_t *config, const char *path, struct err *e)
{
	static const char *const key[] = { "bos_token", "eos_token", "pad_token" };

	if (!json_is_object(config))
		return err_set(e, EX_DATAERR, "%s: not a JSON object", path);
	for (size_t i = 0; i < sizeof key / sizeof *key; i++) {
		const json_t *v = json_object_get(config, key[i]);

		if (v && !json_is_null(v) && !json_is_string(v) &&
		    !json_is_string(json_object_get(v, "content")))
			return err_set(e, EX_DATAERR, "%s: \"%s\" is %s, not a token", path, key[i],
			    jsonfile_kind(v));
	}
	return 0;
}

static int take_config(struct tok *t, const json_t *config, const char *path, struct err *e)
{
	if (check_tokens(config, path, e) < 0)
		return -1;
	t->bos = named_token(t, config, "bos_token");
	t->eos = named_token(t, config, "eos_token");
	t->pad = named_token(t, config, "pad_token");
	if (json_is_boolean(json_object_get(config, "add_bos_token")))
		t->adds_bos = json_is_true(json_object_get(config, "add_bos_token"));
	take_template(t, config, path);
	return 0;
}

static bool is_dir(const char *path)
{
	struct stat st;

	return !stat(path, &st) && S_ISDIR(st.st_mode);
}

/* Files of a tokenizer, in the order in which they are looked for. */
static const char *const files[] = { "tokenizer.json", "tekken.json", "tiktoken.model",
    "tokenizer.model", "qwen.tiktoken", "spiece.model", "sentencepiece.bpe.model" };

static bool gguf_has_tokenizer(const char *file)
{
	struct err none = { 0 };
	struct gguf *g = gguf_open(file, &none);
	bool has = g && gguf_value(g, "tokenizer.ggml.model");

	gguf_close(g);
	return has;
}

char *tok_find(const char *dir)
{
	struct stat st;
	struct err e = { 0 };
	char *first;

	if (gguf_path(dir, &first, &e) != 0) {
		if (first && !gguf_has_tokenizer(first)) {
			free(first);
			first = NULL;
		}
		return first;
	}
	for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
		char *path = file_join(dir, files[i]);

		if (stat(path, &st) == 0)
			return path;
		free(path);
	}
	return NULL;
}

/* A file beside one of a tokenizer, malloc'ed; NULL when it is not there, or the tokenizer's file
 * has another name. */
static char *beside(const char *path, const char *name)
{
	const char *slash = strrchr(path, '/');
	char *dir, *side;
	struct stat st;
	size_t i = 0;

	while (i < sizeof files / sizeof *files && strcmp(slash ? slash + 1 : path, files[i]))
		i++;
	if (i == sizeof files / sizeof *files)
		return NULL;
	dir = slash ? strndup(path, (size_t)(slash - path + 1)) : strdup(".");
	side = dir ? file_join(dir, name) : NULL;
	free(dir);
	if (side && stat(side, &st)) {
		free(side);
		side = NULL;
	}
	return side;
}

/* What stands beside a tokenizer's file. */
struct config_file { char *path, *text; size_t len; json_t *root; };

static int read_config(struct config_file *c, const char *file, struct err *e)
{
	c->path = beside(file, "tokenizer_config.json");
	if (c->path == NULL)
		return 0;
	if (file_get_regular(c->path, &c->text, &c->len, e) < 0)
		return -1;
	c->root = jsonfile_parse(c->text, c->len, c->path, e);
	return c->root != NULL ? 0 : -1;
}

static int take_beside(struct tok *t, struct config_file *c, const char *file, struct err *e)
{
	char *template = beside(file, "chat_template.jinja");
	int rc = 0;

	if (c->root != NULL) {
		t->config_json = c->text;
		t->config_len = c->len;
		c->text = NULL;
		rc = take_config(t, c->root, c->path, e);
	}
	if (rc == 0 && template)
		rc = read_template(t, template, e);
	free(template);
	return rc;
}

/* What tok_gguf() makes of a file goes the way of any other. */
static struct tok *load_gguf(const char *file, struct err *e)
{
	struct gguf *g = gguf_open(file, e);
	json_t *root = NULL, *config = NULL;
	struct tok *t = NULL;
	char *json;

	if (g && tok_gguf(g, &root, &config, e) == 0) {
		json = json_dumps(root, JSON_COMPACT);
		t = tok_parse(json, strlen(json), file, NULL, e);
	}
	if (t) {
		t->config_json = json_dumps(config, JSON_INDENT(2));
		t->config_len = strlen(t->config_json);
		if (take_config(t, config, file, e) < 0) {
			tok_free(t);
			t = NULL;
		}
	}
	json_decref(root);
	json_decref(config);
	gguf_close(g);
	return t;
}

struct tok *tok_load(const char *path, struct err *e)
{
	bool dir = is_dir(path);
	char *file, *json, *first;
	struct config_file c = { 0 };
	struct tok *t = NULL;
	size_t len;
	int found = gguf_path(path, &first, e);

	if (found != 0) {
		t = found > 0 ? load_gguf(first, e) : NULL;
		free(first);
		return t;
	}
	if ((file = dir ? tok_find(path) : strdup(path)) == NULL)
		file = file_join(path, files[0]);
	if (!(dir ? file_get_regular : file_get)(file, &json, &len, e)) {
		if (read_config(&c, file, e) == 0)
			t = tok_parse(json, len, file, c.root, e);
		else
			free(json);
	}
	if (t && take_beside(t, &c, file, e)) {
		tok_free(t);
		t = NULL;
	}
	json_decref(c.root);
	free(c.path);
	free(c.text);
	free(file);
	return t;
}

static void set_token(json_t *config, const char *key, const struct tok *t, int id)
{
	json_object_set_new(config, key, id < 0 ? json_null() :
		json_stringn(t->token[id].s, t->token[id].len));
}

static char *make_config(const struct tok *t)
{
	json_t *o = json_object();
	char *text;

	json_object_set_new(o, "tokenizer_class", json_string("PreTrainedTokenizerFast"));
	set_token(o, "bos_token", t, t->bos);
	set_token(o, "eos_token", t, t->eos);
	set_token(o, "pad_token", t, t->pad);
	set_token(o, "unk_token", t, t->pad);
	json_object_set_new(o, "add_bos_token", json_false());
	json_object_set_new(o, "add_eos_token", json_false());
	json_object_set_new(o, "clean_up_tokenization_spaces", json_false());
	if (tok_id(t, "<|im_start|>") >= 0 && tok_id(t, "<|im_end|>") >= 0)
		json_object_set_new(o, "chat_template", json_string(tok_chat_template));
	text = json_dumps(o, JSON_INDENT(2));
	json_decref(o);
	return text;
}

static int save_config(const struct tok *t, const char *dir, struct err *e)
{
	char *path = file_join(dir, "tokenizer_config.json"), *text = t->config_json ? NULL
	    : make_config(t);
	int rc;

	if (t->config_json)
		rc = file_put(path, t->config_json, t->config_len, e);
	else
		rc = text ? file_put(path, text, strlen(text), e) : err_set(e, EX_OSERR,
		    "out of memory");
	free(path);
	free(text);
	return rc;
}

int tok_save(const struct tok *t, const char *dir_or_file, struct err *e)
{
	char *path;
	int rc;

	if (!is_dir(dir_or_file))
		return file_put(dir_or_file, t->json, t->json_len, e);
	path = file_join(dir_or_file, "tokenizer.json");
	rc = file_put(path, t->json, t->json_len, e);
	free(path);
	if (rc == 0 && t->template_text) {
		path = file_join(dir_or_file, "chat_template.jinja");
		rc = file_put(path, t->template_text, strlen(t->template_text), e);
		free(path);
	}
	return rc ? rc : save_config(t, dir_or_file, e);
}

int tok_copy(const char *model, const char *dir, struct err *e)
{
	struct tok *t = tok_load(model, e);
	int rc = t ? tok_save(t, dir, e) : -1;

	tok_free(t);
	return rc;
}
