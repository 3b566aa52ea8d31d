/*
 * Conversations: turns are brought into one layout, the chat template makes a text of them that
 * knows where its bytes come from, and the text becomes ids.
 *
 * What is learned: what stands inside {% generation %}, where the template has it. Else each
 * turn of the assistant, from where a prompt for it would end (the text that
 * add_generation_prompt adds) to the end mark.
 */
#include <stdlib.h>
#include <string.h>

#include "text/jinja.h"
#include "text/tok_impl.h"

/* As it renders in any engine of templates: no tags but Jinja's own, and every blank taken away
 * by hand. */
const char tok_chat_template[] =
	"{%- macro said(c) %}{%- if c is string %}{{- c }}{%- elif c %}{%- for part in c %}"
	"{{- part['text'] }}{%- endfor %}{%- endif %}{%- endmacro %}"
	"{%- macro listed(tools) %}{{- 'Functions that can be called, one per line:\\n<tools>\\n' "
	    "}}"
	"{%- for tool in tools %}{{- tool if tool is string else tool | tojson(separators=(',', "
	    "':')) }}"
	"{{- '\\n' }}{%- endfor %}{{- '</tools>\\nA call is {\"name\": ..., \"arguments\": {...}} "
	    "inside "
	"<tool_call></tool_call>.' }}{%- endmacro %}"
	"{%- if tools and messages[0]['role'] != 'system' %}"
	"{{- '<|im_start|>system\\n' + listed(tools) + '<|im_end|>\\n' }}{%- endif %}"
	"{%- for m in messages %}{%- if m['role'] == 'tool' %}"
	"{%- if loop.first or messages[loop.index0 - 1]['role'] != 'tool' %}{{- '<|im_start|>user' "
	    "}}{%- endif %}"
	"{{- '\\n<tool_response>\\n' + said(m['content']) + '\\n</tool_response>' }}"
	"{%- if loop.last or messages[loop.index0 + 1]['role'] != 'tool' %}{{- '<|im_end|>\\n' "
	    "}}{%- endif %}"
	"{%- else %}{{- '<|im_start|>' + m['role'] + '\\n' }}{%- if m['role'] == 'assistant' %}"
	"{%- if m['reasoning_content'] %}{{- '<think>\\n' + said(m['reasoning_content']) + "
	    "'\\n</think>\\n\\n' }}"
	"{%- elif enable_thinking is defined and not enable_thinking and said(m['content'])[:7] != "
	    "'<think>' %}"
	"{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}{{- said(m['content']) }}"
	"{%- if m['role'] == 'system' and loop.first and tools %}{{- '\\n\\n' + listed(tools) "
	    "}}{%- endif %}"
	"{%- for call in m['tool_calls'] or [] %}{{- '\\n<tool_call>\\n' }}"
	"{{- call if call is string else (call['function'] if call['function'] is mapping else "
	    "call)"
	" | tojson(separators=(',', ':')) }}{{- '\\n</tool_call>' }}{%- endfor %}{{- "
	    "'<|im_end|>\\n' }}"
	"{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
	"{%- if enable_thinking is defined and not enable_thinking %}{{- "
	    "'<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
	"{%- endif %}";

/* --- turns in one layout --- */

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

static const char *kind_of(const json_t *v)
{
	return !v ? "missing" : json_is_object(v) ? "an object" : json_is_array(v) ? "a list"
	    : json_is_number(v) ? "a number"
	    : json_is_boolean(v) ? "true or false" : json_is_null(v) ? "null" : "a text";
}

/* A list of parts: texts only, since what is not read must not vanish. */
static int check_parts(size_t turn, const json_t *parts, struct err *e)
{
	size_t i;
	json_t *part;

	json_array_foreach(parts, i, part) {
		const char *type = json_string_value(json_object_get(part, "type"));

		if (!json_is_string(json_object_get(part, "text")))
			return err_set(e, EX_DATAERR,
			    "messages[%zu]: content[%zu] is of type \"%.40s\": only text is read",
			    turn,
			    i, type ? type : "");
	}
	return 0;
}

static int check_content(size_t i, const json_t *m, const json_t *v, struct err *e)
{
	if (json_is_string(v) || (json_is_null(v) && json_object_get(m, "tool_calls")))
		return 0;
	if (json_is_array(v))
		return check_parts(i, v, e);
	if (!v)
		return err_set(e, EX_DATAERR, "messages[%zu]: missing \"content\"", i);
	return err_set(e, EX_DATAERR, "messages[%zu]: \"content\" is %s, not a text or a list of "
	    "texts", i, kind_of(v));
}

/* A text that holds JSON, as tool descriptions and arguments come, or NULL. New reference. */
static json_t *json_in(const json_t *v)
{
	return json_is_string(v) ? json_loadb(json_string_value(v), json_string_length(v), 0, NULL)
	    : NULL;
}

/* Arguments that are a text of JSON become what it says, in both layouts of a call. */
static void open_arguments(json_t *call)
{
	json_t *f = json_object_get(call, "function"), *in = json_is_object(f) ? f : call;
	json_t *args = json_in(json_object_get(in, "arguments"));

	if (json_is_object(args))
		json_object_set(in, "arguments", args);
	json_decref(args);
}

static int take_calls(json_t *turn, size_t at, struct err *e)
{
	json_t *calls = json_object_get(turn, "tool_calls"), *list = json_in(calls), *call;
	size_t i;

	if (list)
		json_object_set_new(turn, "tool_calls", json_is_array(list) ? list
		    : json_pack("[o]", list));
	calls = json_object_get(turn, "tool_calls");
	if (calls && !json_is_array(calls) && !json_is_null(calls) && !json_is_string(calls))
		return err_set(e, EX_DATAERR, "messages[%zu]: \"tool_calls\" is %s, not a list", at,
		    kind_of(calls));
	if (json_is_string(calls))
		json_object_set_new(turn, "tool_calls", json_string_length(calls)
		    ? json_pack("[O]", calls) : json_null());
	json_array_foreach(json_object_get(turn, "tool_calls"), i, call)
		open_arguments(call);
	return 0;
}

/* 0: is not learned. */
static int check_weight(size_t i, const json_t *m, struct err *e)
{
	const json_t *w = json_object_get(m, "weight");

	if (!w || json_is_null(w) || (json_is_number(w) && (json_number_value(w) == 0 ||
	    json_number_value(w) == 1)))
		return 0;
	return err_set(e, EX_DATAERR, "messages[%zu]: \"weight\" must be 0 (not learned) or 1", i);
}

/* New reference, or NULL. */
static json_t *turn_of(const json_t *m, size_t i, struct err *e)
{
	const json_t *v = json_object_get(m, "content");
	json_t *turn;

	v = v ? v : json_object_get(m, "value");
	if (!role_of(m)) {
		err_set(e, EX_DATAERR, "messages[%zu]: missing \"role\"", i);
		return NULL;
	}
	if (check_content(i, m, v, e) || check_weight(i, m, e))
		return NULL;
	turn = json_deep_copy(m);
	json_object_set_new(turn, "role", json_string(role_of(m)));
	json_object_set(turn, "content", (json_t *)v);
	json_object_del(turn, "from");
	json_object_del(turn, "value");
	if (take_calls(turn, i, e) == 0)
		return turn;
	json_decref(turn);
	return NULL;
}

static json_t *turns_of(const json_t *messages, struct err *e)
{
	json_t *turns = json_array(), *m, *turn;
	size_t i;

	if (!json_array_size(messages))
		err_set(e, EX_DATAERR, "messages is not a list of turns");
	json_array_foreach(messages, i, m) {
		if (!(turn = turn_of(m, i, e)))
			break;
		json_array_append_new(turns, turn);
	}
	if (json_array_size(turns) && json_array_size(turns) == json_array_size(messages))
		return turns;
	json_decref(turns);
	return NULL;
}

/* The tools of the record, or those that the first system turn carries: a list. New reference,
 * or NULL. */
static json_t *tools_of(const struct tok_chat *c)
{
	const json_t *first = json_array_get(c->messages, 0), *v = c->tools;
	json_t *list;

	if (!v || json_is_null(v))
		v = role_of(first) && !strcmp(role_of(first), "system") ? json_object_get(first,
		    "tools") : NULL;
	if (!v || json_is_null(v) || (json_is_string(v) && !json_string_length(v)))
		return NULL;
	if ((list = json_in(v)) == NULL)
		list = json_incref((json_t *)v);
	if (!json_is_array(list))
		list = json_pack("[o]", list);
	if (json_array_size(list))
		return list;
	json_decref(list);
	return NULL;
}

/* --- rendering --- */

static void add_token(json_t *own, const char *key, const struct tok *t, int id)
{
	if (id >= 0)
		json_object_set_new(own, key, json_stringn(t->token[id].s, t->token[id].len));
}

static json_t *own_values(const struct tok *t)
{
	json_t *own = json_object();

	add_token(own, "bos_token", t, t->bos);
	add_token(own, "eos_token", t, t->eos);
	add_token(own, "pad_token", t, t->pad);
	return own;
}

/* think: 1 an empty block is asked for, 0 as the template has it. */
static int render(const struct tok *t, const struct tok_chat *c, json_t *turns, bool generate,
    bool think,
    struct jinja_text *out, struct err *e)
{
	json_t *own = own_values(t), *given = json_is_object(c->more) ? json_copy((json_t *)c->more)
	    : json_object();
	json_t *tools = tools_of(c);
	int rc;

	json_object_set(given, "messages", turns);
	json_object_set_new(given, "add_generation_prompt", json_boolean(generate));
	if (tools)
		json_object_set_new(given, "tools", tools);
	if (think)
		json_object_set_new(given, "enable_thinking", json_false());
	rc = jinja_render(t->chat, own, given, out, e);
	json_decref(own);
	json_decref(given);
	return rc;
}

/* --- what is learned --- */

struct marker {
	const struct tok *t;
	struct jinja_text *text;
	char *head[2];			/* what a prompt ends with: with an empty thought, and
					   without; "" when unknown */
	const char *end;		/* the end mark's text */
	size_t end_len;
};

/* What add_generation_prompt adds to a conversation; "" when it changes what was there.
 * malloc'ed. */
static int header(struct marker *x, const struct tok_chat *c, json_t *turns, bool think,
    char **head, struct err *e)
{
	struct jinja_text with, without;

	if (render(x->t, c, turns, true, think, &with, e) < 0)
		return -1;
	if (render(x->t, c, turns, false, think, &without, e) < 0) {
		jinja_text_free(&with);
		return -1;
	}
	*head = strdup(with.len > without.len && memcmp(with.text, without.text, without.len) == 0 ?
	    with.text + without.len : "");
	jinja_text_free(&with);
	jinja_text_free(&without);
	return *head ? 0 : err_set(e, EX_OSERR, "out of memory");
}

static bool is_at(const struct jinja_text *t, size_t at, const char *s, size_t n)
{
	return n > 0 && n <= t->len - at && (t->from[at] & JINJA_FROM) == JINJA_OWN &&
	    memcmp(t->text + at, s, n) == 0;
}

/* Where what the assistant says begins, at or after `at`; len: nowhere. */
static size_t next_turn(const struct marker *x, size_t at)
{
	const struct jinja_text *t = x->text;

	for (; at < t->len; at++) {
		for (int i = 0; i < 2; i++)
			if (is_at(t, at, x->head[i], strlen(x->head[i])))
				return at + strlen(x->head[i]);
		if (!*x->head[1] && (t->from[at] & JINJA_FROM) == JINJA_ASSISTANT)
			return at;
	}
	return at;
}

/* Just behind the end mark of the turn that begins at `at`, or behind its last byte when the
 * template has none. */
static size_t turn_end(const struct marker *x, size_t at)
{
	size_t next = next_turn(x, at), last = at;

	for (size_t i = at; i < next; i++) {
		if (is_at(x->text, i, x->end, x->end_len))
			return i + x->end_len;
		if ((x->text->from[i] & JINJA_FROM) == JINJA_ASSISTANT)
			last = i + 1;
	}
	return last;
}

/* Marks the turns of the assistant; their number must be that of the conversation. */
static int mark_turns(struct marker *x, const json_t *turns, struct err *e)
{
	size_t i, at = 0, said = 0;
	json_t *m;

	json_array_foreach(turns, i, m) {
		const json_t *w = json_object_get(m, "weight");
		bool learn = !json_is_number(w) || json_number_value(w) != 0;
		size_t end;

		if (strcmp(role_of(m), "assistant") != 0)
			continue;
		if ((at = next_turn(x, at)) == x->text->len)
			break;
		end = turn_end(x, at);
		for (; at < end; at++)
			x->text->from[at] |= learn ? JINJA_LEARN : 0;
		said++;
	}
	if (i < json_array_size(turns))
		return err_set(e, EX_DATAERR, "the chat template does not show where turn %zu of "
		    "the assistant begins, and has "
		    "no {%% generation %%}", said + 1);
	return 0;
}

/* The token that ends turns: eos where the template writes it, else <|im_end|>. */
static void find_end(struct marker *x)
{
	const int ids[] = { x->t->eos, tok_id(x->t, "<|im_end|>") };

	x->end = "";
	for (int i = 0; i < 2 && x->end_len == 0; i++) {
		if (ids[i] < 0)
			continue;
		x->end = x->t->token[ids[i]].s;
		x->end_len = x->t->token[ids[i]].len;
		if (!memmem(x->text->text, x->text->len, x->end, x->end_len))
			x->end_len = 0;
	}
}

static int mark(const struct tok *t, const struct tok_chat *c, json_t *turns,
    struct jinja_text *text, struct err *e)
{
	struct marker x = { .t = t, .text = text };
	int rc;

	if (jinja_marks(t->chat))
		return 0;
	rc = header(&x, c, turns, true, &x.head[0], e);
	if (rc == 0)
		rc = header(&x, c, turns, false, &x.head[1], e);
	find_end(&x);
	if (rc == 0)
		rc = mark_turns(&x, turns, e);
	free(x.head[0]);
	free(x.head[1]);
	return rc;
}

/* --- ids --- */

/* Ids of bytes [from, to), all learned or none. */
static void put_run(struct tok *t, const struct jinja_text *x, size_t from, size_t to,
    struct ids *out, struct ids *mask)
{
	int n = out->n;

	tok_encode_from(t, x->text + from, x->from + from, to - from, out);
	for (; mask && n < out->n; n++)
		ids_push(mask, (x->from[from] & JINJA_LEARN) != 0);
}

/* Spelled in characters, a text cannot be cut without a mark of its beginning: the ids of what
 * comes before a border are counted instead. */
static void put_whole(struct tok *t, const struct jinja_text *x, struct ids *out, struct ids *mask)
{
	int n = out->n;

	tok_encode_from(t, x->text, x->from, x->len, out);
	if (!mask)
		return;
	for (size_t i = 0, to; i < x->len; i = to) {
		struct ids part = { 0 };
		int upto = out->n - n;

		for (to = i + 1; to < x->len && (x->from[to] & JINJA_LEARN) ==
		    (x->from[i] & JINJA_LEARN); to++)
			;
		if (to < x->len) {
			tok_encode_from(t, x->text, x->from, to, &part);
			for (upto = 0; upto < part.n && upto < out->n - n &&
			    part.v[upto] == out->v[n + upto]; upto++)
				;
		}
		while (mask->n < n + upto)
			ids_push(mask, (x->from[i] & JINJA_LEARN) != 0);
		ids_free(&part);
	}
	while (mask->n < out->n)
		ids_push(mask, 0);
}

/* A run of what is learned is encoded on its own, so that a prompt and the text that continues
 * it have the same ids. */
static void put_text(struct tok *t, const struct jinja_text *x, struct ids *out, struct ids *mask)
{
	if (t->chars) {
		put_whole(t, x, out, mask);
		return;
	}
	for (size_t i = 0, to; i < x->len; i = to) {
		for (to = i + 1; to < x->len && (x->from[to] & JINJA_LEARN) ==
		    (x->from[i] & JINJA_LEARN); to++)
			;
		put_run(t, x, i, to, out, mask);
	}
}

int tok_chat(struct tok *t, const struct tok_chat *c, struct ids *out, struct ids *mask,
    struct err *e)
{
	struct jinja_text text;
	json_t *turns;
	int rc;

	if (!t->chat && t->chat_error.status) {
		*e = t->chat_error;
		return -1;
	}
	if (!t->chat)
		return err_set(e, EX_DATAERR, "the tokenizer has no chat template, and no "
		    "<|im_start|> and <|im_end|> for ours: "
		    "it cannot do conversations");
	if ((turns = turns_of(c->messages, e)) == NULL)
		return -1;
	rc = render(t, c, turns, c->generate, c->think, &text, e);
	if (rc == 0) {
		rc = mark(t, c, turns, &text, e);
		if (rc == 0)
			put_text(t, &text, out, mask);
		jinja_text_free(&text);
	}
	json_decref(turns);
	return rc;
}

bool tok_own_template(const struct tok *t)
{
	return t->own_template;
}
