/*
 * Conversations as ChatML: <|im_start|>role\ncontent<|im_end|>\n for each turn. Roles and
 * contents are encoded as plain text, so nothing in a message can open or close a turn; only
 * this file puts the markers. Each part is encoded on its own, so that a prompt and the training
 * text that continues it have the same ids.
 */
#include <stdlib.h>
#include <string.h>

#include "text/tok_impl.h"

struct chat {
	struct tok *t;
	struct ids *out, *mask;
	uint32_t start, end;	/* of a turn */
	bool think;
};

static void put_mask(struct chat *c, int n, bool learn)
{
	if (c->mask)
		while (n--)
			ids_push(c->mask, learn);
}

static void put_id(struct chat *c, uint32_t id, bool learn)
{
	ids_push(c->out, id);
	put_mask(c, 1, learn);
}

static void put_text(struct chat *c, const char *s, size_t len, bool learn)
{
	int n = c->out->n;

	tok_encode(c->t, s, len, false, c->out);
	put_mask(c, c->out->n - n, learn);
}

static void put(struct chat *c, const char *s, bool learn)
{
	put_text(c, s, strlen(s), learn);
}

static void open_turn(struct chat *c, const char *role)
{
	put_id(c, c->start, false);
	put(c, role, false);
	put(c, "\n", false);
}

static void close_turn(struct chat *c, bool learn)
{
	put_id(c, c->end, learn);
	put(c, "\n", false);
}

/* A string, or a list of {"type": "text", "text": ..}. */
static void put_content(struct chat *c, const json_t *content, bool learn)
{
	size_t i;
	json_t *part;

	if (json_is_string(content))
		put_text(c, json_string_value(content), json_string_length(content), learn);
	json_array_foreach(content, i, part)
		put_content(c, json_object_get(part, "text"), learn);
}

/* Tool descriptions and calls come as JSON, or as a string of JSON. Each goes through fn. */
static void each_json(struct chat *c, const json_t *v, void (*fn)(struct chat *c, const char *s))
{
	json_t *parsed = json_is_string(v) ?
		json_loadb(json_string_value(v), json_string_length(v), 0, NULL)
		    : json_incref((json_t *)v);
	size_t i;
	json_t *o;

	if (!parsed && json_string_length(v))
		fn(c, json_string_value(v));
	if (json_is_object(parsed)) {
		char *s = json_dumps(parsed, JSON_COMPACT);

		fn(c, s ? s : "");
		free(s);
	}
	json_array_foreach(parsed, i, o)
		each_json(c, o, fn);
	json_decref(parsed);
}

static void put_tool(struct chat *c, const char *s)
{
	put(c, s, false);
	put(c, "\n", false);
}

static void put_call(struct chat *c, const char *s)
{
	put(c, "\n<tool_call>\n", true);
	put(c, s, true);
	put(c, "\n</tool_call>", true);
}

static bool is_set(const json_t *v)
{
	return json_string_length(v) || json_array_size(v);
}

static void put_system(struct chat *c, const json_t *m, const json_t *content)
{
	const json_t *tools = json_object_get(m, "tools");

	open_turn(c, "system");
	put_content(c, content, false);
	if (is_set(tools)) {
		put(c, "\n\nFunctions that can be called, one per line:\n<tools>\n", false);
		each_json(c, tools, put_tool);
		put(c, "</tools>\nA call is {\"name\": ..., \"arguments\": {...}} inside "
		    "<tool_call></tool_call>.", false);
	}
	close_turn(c, false);
}

/* The empty block is what a prompt ends with, so it is not learned; a written one is. */
static void put_assistant(struct chat *c, const json_t *m, const json_t *content)
{
	const json_t *thought = json_object_get(m, "reasoning_content"), *calls = json_object_get(m,
	    "tool_calls");
	const char *s = json_string_value(content);

	open_turn(c, "assistant");
	if (json_string_length(thought)) {
		put(c, "<think>\n", true);
		put_content(c, thought, true);
		put(c, "\n</think>\n\n", true);
	} else if (c->think && !(s && !strncmp(s, "<think>", 7))) {
		put(c, "<think>\n\n</think>\n\n", false);
	}
	put_content(c, content, true);
	if (is_set(calls))
		each_json(c, calls, put_call);
	close_turn(c, true);
}

/* Results go to the model in a turn of the user; those that follow each other share one. */
static void put_result(struct chat *c, const json_t *content, bool first, bool last)
{
	if (first)
		open_turn(c, "user");
	put(c, first ? "<tool_response>\n" : "\n<tool_response>\n", false);
	put_content(c, content, false);
	put(c, "\n</tool_response>", false);
	if (last)
		close_turn(c, false);
}

/* {role, content} or {from, value}; NULL: no such turn, or none that can be used. */
static const char *role_of(const json_t *m)
{
	const char *r = json_string_value(json_object_get(m, "role"));

	if (!r)
		r = json_string_value(json_object_get(m, "from"));
	if (!r || !*r || strchr(r, '\n'))
		return NULL;
	return !strcmp(r, "human") ? "user" : !strcmp(r, "gpt") ? "assistant" : r;
}

static const json_t *content_of(const json_t *m)
{
	const json_t *v = json_object_get(m, "content");

	return v ? v : json_object_get(m, "value");
}

static int check(const json_t *messages, struct err *e)
{
	size_t i;
	json_t *m;

	if (!json_array_size(messages))
		return err_set(e, EX_DATAERR, "messages is not a list of turns");
	json_array_foreach(messages, i, m) {
		const json_t *v = content_of(m);

		if (!role_of(m))
			return err_set(e, EX_DATAERR, "messages[%zu]: missing \"role\"", i);
		if (!json_is_string(v) && !json_is_array(v) &&
		    !(json_is_null(v) && json_object_get(m, "tool_calls")))
			return err_set(e, EX_DATAERR, "messages[%zu]: missing \"content\"", i);
	}
	return 0;
}

static bool is_tool(const json_t *m)
{
	return m && !strcmp(role_of(m), "tool");
}

static void put_turn(struct chat *c, const json_t *messages, size_t i)
{
	const json_t *m = json_array_get(messages, i), *content = content_of(m);
	const char *role = role_of(m);

	if (!strcmp(role, "system")) {
		put_system(c, m, content);
	} else if (!strcmp(role, "assistant")) {
		put_assistant(c, m, content);
	} else if (is_tool(m)) {
		put_result(c, content, !i || !is_tool(json_array_get(messages, i - 1)),
			!is_tool(json_array_get(messages, i + 1)));
	} else {
		open_turn(c, role);
		put_content(c, content, false);
		close_turn(c, false);
	}
}

int tok_chat(struct tok *t, const json_t *messages, bool generate, bool think, struct ids *out,
    struct ids *mask,
    struct err *e)
{
	int start = tok_id(t, "<|im_start|>"), end = tok_id(t, "<|im_end|>");
	struct chat c = { t, out, mask, (uint32_t)start, (uint32_t)end, think };

	if (start < 0 || end < 0)
		return err_set(e, EX_DATAERR, "the tokenizer has no <|im_start|> and <|im_end|>: "
		    "it cannot do conversations");
	if (check(messages, e))
		return -1;
	for (size_t i = 0; i < json_array_size(messages); i++)
		put_turn(&c, messages, i);
	if (generate) {
		open_turn(&c, "assistant");
		if (think)
			put(&c, "<think>\n\n</think>\n\n", false);
	}
	return 0;
}
