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

#include "base/jsonfile.h"
#include "base/jsontext.h"
#include "text/jinja.h"
#include "text/tok_impl.h"
#include "text/turn.h"

/* As it renders in any engine of templates: no filter that one has and another has not (tojson
 * sorts keys in Jinja's own library), and every blank taken away by hand. */
const char tok_chat_template[] =
	"{%- macro text(content) -%}"
	"{%- if content is string -%}{{ content }}"
	"{%- elif content -%}{%- for part in content -%}{{ part['text'] }}{%- endfor -%}"
	"{%- endif -%}"
	"{%- endmacro -%}"
	"{%- macro quote(s) -%}"
	"{{ '\"' + s | replace('\\\\', '\\\\\\\\') | replace('\"', '\\\\\"')"
	" | replace('\\n', '\\\\n') | replace('\\r', '\\\\r') | replace('\\t', '\\\\t') + '\"' }}"
	"{%- endmacro -%}"
	"{%- macro json(v) -%}"
	"{%- if v is none -%}null"
	"{%- elif v is boolean -%}{{ 'true' if v else 'false' }}"
	"{%- elif v is string -%}{{ quote(v) }}"
	"{%- elif v is mapping -%}{{ '{' }}"
	"{%- for k, x in v.items() -%}"
	"{{ '' if loop.first else ',' }}{{ quote(k) }}:{{ json(x) }}{%- endfor -%}{{ '}' }}"
	"{%- elif v is iterable -%}{{ '[' }}"
	"{%- for x in v -%}{{ '' if loop.first else ',' }}{{ json(x) }}{%- endfor -%}{{ ']' }}"
	"{%- else -%}{{ v }}{%- endif -%}"
	"{%- endmacro -%}"
	"{%- macro squeeze(s) -%}"
	"{%- set at = namespace(string=false, escape=false) -%}"
	"{%- for c in s -%}"
	"{%- if at.string or c not in ' \\t\\r\\n' -%}{{ c }}{%- endif -%}"
	"{%- if at.escape -%}{%- set at.escape = false -%}"
	"{%- elif at.string and c == '\\\\' -%}{%- set at.escape = true -%}"
	"{%- elif c == '\"' -%}{%- set at.string = not at.string -%}{%- endif -%}"
	"{%- endfor -%}"
	"{%- endmacro -%}"
	"{%- macro functions(list) -%}"
	"{{ '\\n\\nFunctions that can be called, one per line:\\n<tools>\\n' }}"
	"{%- for tool in list -%}{{ tool if tool is string else json(tool) }}{{ '\\n' }}"
	"{%- endfor -%}"
	"{{ '</tools>\\nA call is {\"name\": ..., \"arguments\": {...}} inside "
	"<tool_call></tool_call>.' }}"
	"{%- endmacro -%}"
	"{%- set given = tools if tools is defined and tools else [] -%}"
	"{%- if given and messages[0]['role'] != 'system' -%}"
	"{{ '<|im_start|>system\\n' + functions(given) + '<|im_end|>\\n' }}{%- endif -%}"
	"{%- for message in messages -%}"
	"{%- set role = message['role'] -%}"
	"{%- if role == 'tool' -%}"
	"{%- if loop.first or messages[loop.index0 - 1]['role'] != 'tool' -%}"
	"{{ '<|im_start|>user' }}{%- endif -%}"
	"{{ '\\n<tool_response>\\n' + text(message['content']) + '\\n</tool_response>' }}"
	"{%- if loop.last or messages[loop.index0 + 1]['role'] != 'tool' -%}"
	"{{ '<|im_end|>\\n' }}{%- endif -%}"
	"{%- else -%}"
	"{{ '<|im_start|>' + role + '\\n' }}"
	"{%- if role == 'assistant' and message['reasoning_content'] -%}"
	"{{ '<think>\\n' + text(message['reasoning_content']) + '\\n</think>\\n\\n' }}"
	"{%- elif role == 'assistant' and enable_thinking is defined and not enable_thinking"
	" and text(message['content'])[:7] != '<think>' -%}"
	"{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}"
	"{{ text(message['content']) }}"
	"{%- if role == 'system' and loop.first and given -%}{{ functions(given) }}"
	"{%- elif role == 'system' and message['tools'] -%}{{ functions(message['tools']) }}"
	"{%- endif -%}"
	"{%- if role == 'assistant' and message['tool_calls'] -%}"
	"{%- for call in message['tool_calls'] -%}"
	"{{ '\\n<tool_call>\\n' }}"
	"{%- if call is string -%}{{ call }}{%- else -%}"
	"{%- set f = call['function'] if call['function'] else call -%}"
	"{{ '{\"name\":' + quote(f['name']) }}"
	"{%- if f['arguments'] is defined -%}{{ ',\"arguments\":' }}"
	"{%- if not f['arguments'] -%}{{ '{}' }}"
	"{%- elif f['arguments'] is string -%}{{ squeeze(f['arguments']) }}"
	"{%- else -%}{{ json(f['arguments']) }}{%- endif -%}{%- endif -%}"
	"{{ '}' }}{%- endif -%}{{ '\\n</tool_call>' }}"
	"{%- endfor -%}{%- endif -%}"
	"{{ '<|im_end|>\\n' }}"
	"{%- endif -%}"
	"{%- endfor -%}"
	"{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}"
	"{%- if enable_thinking is defined and not enable_thinking -%}"
	"{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}{%- endif -%}";

/* --- turns in one layout --- */

/* JSON in a text, as tool descriptions and arguments come, or NULL. New reference. */
static json_t *json_in(const json_t *v)
{
	struct err why = {0};

	return json_is_string(v) ? jsontext_parse(json_string_value(v), json_string_length(v),
	    JSONTEXT_RECORD, NULL, &why) : NULL;
}

static json_t *string_of(struct jsontext *text)
{
	json_t *s = json_stringn(text->s != NULL ? text->s : "", text->n);

	jsontext_free(text);
	return s;
}

/* The JSON of a value as it was written: the text itself, where it came as one. */
static void add_json(struct jsontext *out, const json_t *v)
{
	char *s;

	if (json_is_string(v)) {
		jsontext_compact(out, json_string_value(v), json_string_length(v));
		return;
	}
	if ((s = json_dumps(v, JSON_COMPACT)) == NULL)
		err_die(EX_OSERR, "out of memory");
	jsontext_add(out, s, strlen(s));
	free(s);
}

/* --- calls --- */

static int bad_call(size_t at, const char *what, struct err *e)
{
	return err_set(e, EX_DATAERR, "messages[%zu]: \"tool_calls\": %s", at, what);
}

/* {"name", "arguments"} with the arguments as they were written, for our template. */
static json_t *call_text(const json_t *name, const json_t *args)
{
	struct jsontext text = {0};
	char *quoted = json_dumps(name, JSON_ENCODE_ANY);

	if (quoted == NULL)
		err_die(EX_OSERR, "out of memory");
	jsontext_add(&text, "{\"name\":", 8);
	jsontext_add(&text, quoted, strlen(quoted));
	if (args)
		jsontext_add(&text, ",\"arguments\":", 13);
	if (args && turn_set(args))
		add_json(&text, args);
	else if (args)
		jsontext_add(&text, "{}", 2);
	jsontext_add(&text, "}", 1);
	free(quoted);
	return string_of(&text);
}

/* A call in either layout: a text for our template; for another, arguments that are a text of
 * JSON become what it says. New reference, or NULL. */
static json_t *call_of(const struct tok *t, json_t *call, size_t at, struct err *e)
{
	json_t *f = json_object_get(call, "function"), *in = json_is_object(f) ? f : call;
	json_t *args = json_object_get(in, "arguments"), *opened = json_in(args), *out = NULL;

	if (!json_is_object(call))
		bad_call(at, "a call that is no object", e);
	else if (!json_is_string(json_object_get(in, "name")))
		bad_call(at, "a call without a \"name\"", e);
	else if (args && turn_set(args) && !json_is_object(args) && !json_is_object(opened))
		bad_call(at, "\"arguments\" are neither an object nor the JSON of one", e);
	else if (!t->own_template)
		out = call_text(json_object_get(in, "name"), args);
	else {
		if (opened)
			json_object_set(in, "arguments", opened);
		out = json_incref(call);
	}
	json_decref(opened);
	return out;
}

/* A list of calls, one call, or the JSON of either. */
static int add_calls(const struct tok *t, json_t *list, json_t *v, size_t at, struct err *e)
{
	json_t *in = json_is_string(v) ? json_in(v) : json_incref(v), *one;
	int rc = in ? 0 : bad_call(at, "a text that is no JSON", e);
	size_t i;

	if (json_is_array(in)) {
		json_array_foreach(in, i, one)
			if (rc == 0)
				rc = add_calls(t, list, one, at, e);
	} else if (in) {
		one = call_of(t, in, at, e);
		rc = one ? json_array_append_new(list, one) : -1;
	}
	json_decref(in);
	return rc;
}

static int take_calls(const struct tok *t, json_t *turn, size_t at, struct err *e)
{
	json_t *calls = json_object_get(turn, "tool_calls"), *list;
	int rc;

	if (!calls)
		return 0;
	list = json_array();
	rc = turn_set(calls) ? add_calls(t, list, calls, at, e) : 0;
	json_object_set_new(turn, "tool_calls", list);
	return rc;
}

/* --- turns --- */

/* New reference, or NULL. */
static json_t *turn_of(const struct tok *t, const json_t *m, size_t i, struct err *e)
{
	json_t *turn = json_deep_copy(m), *content = (json_t *)turn_content(m);

	json_object_set_new(turn, "role", json_string(turn_role(m)));
	if (content)
		json_object_set(turn, "content", content);
	else
		json_object_set_new(turn, "content", json_null());
	json_object_del(turn, "from");
	json_object_del(turn, "value");
	if (take_calls(t, turn, i, e) == 0)
		return turn;
	json_decref(turn);
	return NULL;
}

static json_t *turns_of(const struct tok *t, const json_t *messages, struct err *e)
{
	json_t *turns, *m, *turn;
	size_t i;

	if (turns_check(messages, e) < 0)
		return NULL;
	turns = json_array();
	json_array_foreach(messages, i, m) {
		if (!(turn = turn_of(t, m, i, e)))
			break;
		json_array_append_new(turns, turn);
	}
	if (i == json_array_size(messages))
		return turns;
	json_decref(turns);
	return NULL;
}

/* --- tools --- */

/* Our template takes each as the text that it came as. */
static void add_tool(const struct tok *t, json_t *list, const char *s, size_t len)
{
	json_t *in = json_loadb(s, len, JSON_DECODE_ANY, NULL);
	struct jsontext text = {0};
	struct err why;

	if (in == NULL)		/* it has numbers that only the other reader takes */
		in = jsontext_parse(s, len, JSONTEXT_RECORD, NULL, &why);
	if (t->own_template || json_is_string(in)) {
		json_array_append(list, in);
	} else {
		jsontext_compact(&text, s, len);
		json_array_append_new(list, string_of(&text));
	}
	json_decref(in);
}

/* The tools of a list, an object, or the JSON of either; other text is a description in words. */
static json_t *tool_list(const struct tok *t, const json_t *v)
{
	json_t *in = json_is_string(v) ? json_in(v) : json_incref((json_t *)v);
	json_t *list = json_array();
	struct jsontext all = {0};
	const char *s, *one;
	size_t len;

	if (in)
		add_json(&all, v);
	if (json_is_array(in)) {
		for (s = all.s + 1; jsontext_element(&s, all.s + all.n, &one, &len);)
			add_tool(t, list, one, len);
	} else if (in) {
		add_tool(t, list, all.s, all.n);
	} else {
		json_array_append(list, (json_t *)v);
	}
	jsontext_free(&all);
	json_decref(in);
	return list;
}

/* The tools of the record, or those that the first system turn carries. New reference, or NULL. */
static json_t *tools_of(const struct tok *t, const struct tok_chat *c)
{
	const json_t *first = json_array_get(c->messages, 0), *v = c->tools;

	if (!turn_set(v))
		v = turn_is(first, "system") ? json_object_get(first, "tools") : NULL;
	return turn_set(v) ? tool_list(t, v) : NULL;
}

/* Is what stands beside the turns of a kind that a template can be given? */
static int check_given(const struct tok_chat *c, struct err *e)
{
	const json_t *first = json_array_get(c->messages, 0);
	const json_t *tools = turn_set(c->tools) ? c->tools : json_object_get(first, "tools");
	json_t *one;
	size_t i;

	if (turn_set(tools) && !json_is_array(tools) && !json_is_object(tools) &&
	    !json_is_string(tools))
		return err_set(e, EX_DATAERR, "\"tools\" is %s, not a list of objects",
		    jsonfile_kind(tools));
	json_array_foreach(tools, i, one)
		if (!json_is_object(one) && !json_is_string(one))
			return err_set(e, EX_DATAERR, "\"tools\"[%zu] is %s, not an object", i,
			    jsonfile_kind(one));
	if (turn_set(c->more) && !json_is_object(c->more))
		return err_set(e, EX_DATAERR, "\"chat_template_kwargs\" is %s, not an object",
		    jsonfile_kind(c->more));
	return 0;
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

static const struct jinja *template_of(const struct tok *t, const json_t *tools)
{
	return tools && t->chat_tools ? t->chat_tools : t->chat;
}

/* think: 1 an empty block is asked for, 0 as the template has it. *with is the template. New. */
static json_t *given_of(const struct tok *t, const struct tok_chat *c, json_t *turns, bool generate,
    bool think, const struct jinja **with)
{
	json_t *given = json_is_object(c->more) ? json_copy((json_t *)c->more) : json_object();
	json_t *tools = tools_of(t, c);

	*with = template_of(t, tools);
	json_object_set(given, "messages", turns);
	json_object_set_new(given, "add_generation_prompt", json_boolean(generate));
	if (tools)
		json_object_set_new(given, "tools", tools);
	if (think)
		json_object_set_new(given, "enable_thinking", json_false());
	return given;
}

static int render(const struct tok *t, const struct tok_chat *c, json_t *turns, bool generate,
    bool think, struct jinja_text *out, struct err *e)
{
	const struct jinja *with;
	json_t *own = own_values(t), *given = given_of(t, c, turns, generate, think, &with);
	int rc = jinja_render(with, own, given, out, e);

	json_decref(own);
	json_decref(given);
	return rc;
}

/* --- what is learned --- */

struct marker {
	const struct tok *t;
	struct jinja_text *text;
	char *head[2];			/* what a prompt ends with: with an empty thought, and
					   without; "" when unknown; NULL: not looked for yet */
	const char *end;		/* the end mark's text */
	size_t end_len;
};

static char *copy(const char *s)
{
	char *p = strdup(s);

	if (p == NULL)
		err_die(EX_OSERR, "out of memory");
	return p;
}

/* The text, and with the same rendering what a prompt would end with. 1: the template does not
 * allow it. */
static int render_once(const struct tok *t, const struct tok_chat *c, json_t *turns,
    struct marker *x, struct err *e)
{
	const struct jinja *with;
	json_t *own = own_values(t), *given = given_of(t, c, turns, c->generate, false, &with);
	json_t *again[4];
	struct jinja_text tail[4] = { { 0 } };
	int rc;

	for (int i = 0; i < 4; i++) {
		again[i] = json_pack("{s:b}", "add_generation_prompt", i < 2);
		if (i % 2 == 0)
			json_object_set_new(again[i], "enable_thinking", json_false());
	}
	rc = jinja_render_tails(with, own, given, x->text, 4, again, tail, e);
	if (rc == 0 && tail[2].len + tail[3].len > 0) {
		jinja_text_free(x->text);
		rc = 1;
	}
	for (int i = 0; i < 2 && rc == 0; i++)
		x->head[i] = copy(tail[i].text);
	for (int i = 0; i < 4; i++) {
		json_decref(again[i]);
		jinja_text_free(&tail[i]);
	}
	json_decref(own);
	json_decref(given);
	return rc;
}

/* The text of a prompt or of none: the one that there is, or *own. */
static const struct jinja_text *text_of(const struct marker *x, const struct tok_chat *c,
    json_t *turns, bool generate, bool think, struct jinja_text *own, struct err *e)
{
	if (generate == c->generate && think == c->think)
		return x->text;
	return render(x->t, c, turns, generate, think, own, e) == 0 ? own : NULL;
}

/* What add_generation_prompt adds to a conversation; "" when it changes what was there. */
static int header(struct marker *x, const struct tok_chat *c, json_t *turns, bool think,
    char **head, struct err *e)
{
	struct jinja_text own[2] = { { 0 } };
	const struct jinja_text *with = text_of(x, c, turns, true, think, &own[0], e);
	const struct jinja_text *without = with != NULL ? text_of(x, c, turns, false, think,
	    &own[1], e) : NULL;

	if (without != NULL)
		*head = copy(with->len > without->len && memcmp(with->text, without->text,
		    without->len) == 0 ? with->text + without->len : "");
	jinja_text_free(&own[0]);
	jinja_text_free(&own[1]);
	return without != NULL ? 0 : -1;
}

static int headers(struct marker *x, const struct tok_chat *c, json_t *turns,
    const struct jinja *with, struct err *e)
{
	if (x->head[0] != NULL)
		return 0;
	if (header(x, c, turns, c->think, &x->head[c->think ? 0 : 1], e) < 0)
		return -1;
	if (!jinja_mentions(with, "enable_thinking")) {
		x->head[c->think ? 1 : 0] = copy(x->head[c->think ? 0 : 1]);
		return 0;
	}
	return header(x, c, turns, !c->think, &x->head[c->think ? 1 : 0], e);
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
		bool learn = turn_learned(m);
		size_t end;

		if (!turn_is(m, "assistant"))
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

/* The text of a conversation with marks on what is learned of it. */
static int render_marked(const struct tok *t, const struct tok_chat *c, json_t *turns,
    struct jinja_text *text, struct err *e)
{
	struct marker x = { .t = t, .text = text };
	json_t *tools = tools_of(t, c);
	const struct jinja *with = template_of(t, tools);
	int rc = 1;

	json_decref(tools);
	if (!jinja_marks(with) && !c->think)
		rc = render_once(t, c, turns, &x, e);
	if (rc > 0)
		rc = render(t, c, turns, c->generate, c->think, text, e);
	if (rc < 0)
		return -1;
	if (!jinja_marks(with)) {
		rc = headers(&x, c, turns, with, e);
		find_end(&x);
		if (rc == 0)
			rc = mark_turns(&x, turns, e);
		free(x.head[0]);
		free(x.head[1]);
	}
	if (rc < 0)
		jinja_text_free(text);
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
	if (check_given(c, e) < 0 || (turns = turns_of(t, c->messages, e)) == NULL)
		return -1;
	rc = render_marked(t, c, turns, &text, e);
	if (rc == 0) {
		put_text(t, &text, out, mask);
		jinja_text_free(&text);
	}
	json_decref(turns);
	return rc;
}
