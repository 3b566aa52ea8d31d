#include "text/turn.h"

#include <string.h>

#include "base/jsonfile.h"
#include "base/jsontext.h"

static const char *const roles[] = { "system", "developer", "user", "assistant", "tool" };

static const json_t *name_of_role(const json_t *turn)
{
	const json_t *v = json_object_get(turn, "role");

	return v != NULL ? v : json_object_get(turn, "from");
}

const char *turn_role(const json_t *turn)
{
	const json_t *v = name_of_role(turn);
	const char *r = json_string_value(v);

	if (r == NULL || strlen(r) != json_string_length(v))
		return NULL;
	r = strcmp(r, "human") == 0 ? "user" : strcmp(r, "gpt") == 0 ? "assistant" : r;
	for (size_t i = 0; i < sizeof roles / sizeof *roles; i++)
		if (strcmp(r, roles[i]) == 0)
			return roles[i];
	return NULL;
}

bool turn_is(const json_t *turn, const char *role)
{
	const char *r = turn_role(turn);

	return r != NULL && strcmp(r, role) == 0;
}

const json_t *turn_content(const json_t *turn)
{
	const json_t *v = json_object_get(turn, "content");

	return v != NULL ? v : json_object_get(turn, "value");
}

json_t *turn_text(const json_t *turn)
{
	const json_t *content = turn_content(turn), *text;
	struct jsontext all = {0};
	json_t *v, *part;
	size_t i;

	if (json_is_string(content))
		return json_incref((json_t *)content);
	json_array_foreach(content, i, part)
		if ((text = json_object_get(part, "text")) != NULL)
			jsontext_add(&all, json_string_value(text), json_string_length(text));
	v = json_stringn(all.s != NULL ? all.s : "", all.n);
	jsontext_free(&all);
	return v;
}

bool turn_same(const json_t *a, const json_t *b)
{
	const char *r = turn_role(a);

	return r != NULL && turn_is(b, r) && json_equal(turn_content(a), turn_content(b));
}

bool turn_set(const json_t *v)
{
	return v != NULL && !json_is_null(v) &&
	    !(json_is_string(v) && json_string_length(v) == 0) &&
	    !(json_is_array(v) && json_array_size(v) == 0) &&
	    !(json_is_object(v) && json_object_size(v) == 0);
}

/* --- what is to be learned --- */

static const char *const switches[] = { "weight", "train", "training", "loss" };

/* 0, 1, or -1: something else. */
static int value_of_switch(const json_t *v)
{
	if (json_is_boolean(v))
		return json_is_true(v);
	if (json_is_number(v) && (json_number_value(v) == 0 || json_number_value(v) == 1))
		return json_number_value(v) == 1;
	return -1;
}

bool turn_learned(const json_t *turn)
{
	const json_t *v;

	for (size_t i = 0; i < sizeof switches / sizeof *switches; i++)
		if (turn_set(v = json_object_get(turn, switches[i])) && value_of_switch(v) == 0)
			return false;
	return true;
}

static int check_switches(const json_t *turn, size_t at, struct err *e)
{
	for (size_t i = 0; i < sizeof switches / sizeof *switches; i++) {
		const json_t *v = json_object_get(turn, switches[i]);

		if (v == NULL || json_is_null(v))
			continue;
		if (value_of_switch(v) < 0)
			return err_set(e, EX_DATAERR, "messages[%zu]: \"%s\" is neither 0 nor 1: a "
			    "turn is learned or not", at, switches[i]);
		if (value_of_switch(v) == 1 && !turn_is(turn, "assistant"))
			return err_set(e, EX_DATAERR, "messages[%zu]: \"%s\" of a turn of the %s: "
			    "only those of the assistant are learned", at, switches[i],
			    turn_role(turn));
	}
	return 0;
}

/* --- what it holds --- */

static int check_role(const json_t *turn, size_t at, struct err *e)
{
	const json_t *v = name_of_role(turn);

	if (!json_is_object(turn))
		return err_set(e, EX_DATAERR, "messages[%zu] is %s, not an object with a role", at,
		    jsonfile_kind(turn));
	if (v == NULL)
		return err_set(e, EX_DATAERR, "messages[%zu]: missing \"role\"", at);
	if (!json_is_string(v))
		return err_set(e, EX_DATAERR, "messages[%zu]: \"role\" is %s, not a string", at,
		    jsonfile_kind(v));
	return turn_role(turn) != NULL ? 0 : err_set(e, EX_DATAERR,
	    "messages[%zu]: role \"%.40s\" is none of system, developer, user, assistant, tool", at,
	    json_string_value(v));
}

static int check_parts(const json_t *parts, size_t at, struct err *e)
{
	json_t *part;
	size_t i;

	json_array_foreach(parts, i, part) {
		const char *type = json_string_value(json_object_get(part, "type"));

		if (!json_is_object(part))
			return err_set(e, EX_DATAERR, "messages[%zu]: \"content\"[%zu] is %s, not "
			    "an object", at, i, jsonfile_kind(part));
		if (type != NULL && strcmp(type, "text") != 0)
			return err_set(e, EX_DATAERR, "messages[%zu]: \"content\"[%zu] is of type "
			    "\"%.40s\": only \"text\" can be read", at, i, type);
		if (!json_is_string(json_object_get(part, "text")))
			return err_set(e, EX_DATAERR, "messages[%zu]: \"content\"[%zu] has no "
			    "\"text\"", at, i);
	}
	return 0;
}

static int check_content(const json_t *turn, size_t at, struct err *e)
{
	const json_t *v = turn_content(turn);

	if ((v == NULL || json_is_null(v)) && turn_set(json_object_get(turn, "tool_calls")))
		return 0;
	if (v == NULL)
		return err_set(e, EX_DATAERR, "messages[%zu]: missing \"content\"", at);
	if (json_is_array(v))
		return check_parts(v, at, e);
	return json_is_string(v) ? 0 : err_set(e, EX_DATAERR,
	    "messages[%zu]: \"content\" is %s, neither a text nor a list of parts", at,
	    jsonfile_kind(v));
}

/* Keys that say something, in turns of one role only or nowhere (NULL). */
static int check_keys(const json_t *turn, size_t at, struct err *e)
{
	static const struct { const char *key, *role; } keys[] = {
		{ "tools", "system" }, { "tool_calls", "assistant" },
		{ "reasoning_content", "assistant" }, { "function_call", NULL },
		{ "functions", NULL }, { "reasoning", NULL }, { "thinking", NULL },
		{ "images", NULL }, { "image", NULL }, { "videos", NULL }, { "video", NULL },
		{ "audios", NULL }, { "audio", NULL }, { "train_detail", NULL },
		{ "training_detail", NULL },
	};

	for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
		if (!turn_set(json_object_get(turn, keys[i].key)) ||
		    (keys[i].role != NULL && turn_is(turn, keys[i].role)))
			continue;
		return err_set(e, EX_DATAERR, "messages[%zu]: \"%s\" of a turn of the %s is not "
		    "read", at, keys[i].key, turn_role(turn));
	}
	return 0;
}

int turns_check(const json_t *turns, struct err *e)
{
	size_t i;
	json_t *m;

	if (!json_is_array(turns))
		return err_set(e, EX_DATAERR, "messages is not a list of turns");
	if (json_array_size(turns) == 0)
		return err_set(e, EX_DATAERR, "messages is not a list of turns: it is empty");
	json_array_foreach(turns, i, m) {
		const json_t *thought = json_object_get(m, "reasoning_content");

		if (check_role(m, i, e) < 0 || check_content(m, i, e) < 0 ||
		    check_keys(m, i, e) < 0 || check_switches(m, i, e) < 0)
			return -1;
		if (turn_set(thought) && !json_is_string(thought))
			return err_set(e, EX_DATAERR, "messages[%zu]: \"reasoning_content\" is %s, "
			    "not a string", i, jsonfile_kind(thought));
	}
	return 0;
}
