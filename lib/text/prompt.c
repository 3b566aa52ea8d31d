#include "text/prompt.h"

#include <string.h>

#include "text/record.h"

static const json_t *content_of(const json_t *turn)
{
	const json_t *v = json_object_get(turn, "content");

	return v != NULL ? v : json_object_get(turn, "value");
}

static bool is_user(const json_t *turn)
{
	const char *role = json_string_value(json_object_get(turn, "role"));

	if (role == NULL)
		role = json_string_value(json_object_get(turn, "from"));
	return role != NULL && (strcmp(role, "user") == 0 || strcmp(role, "human") == 0);
}

/* How many turns there are up to the last one of the user; 0: it says nothing. */
static size_t turns_asked(const json_t *turns)
{
	size_t n = json_array_size(turns);

	while (n > 0 && !is_user(json_array_get(turns, n - 1)))
		n--;
	return n;
}

/* The string or the list that holds the question, or NULL. */
static const json_t *asked(const json_t *rec)
{
	const json_t *v = json_object_get(rec, "prompt");

	if (v == NULL)
		v = json_object_get(rec, "question");
	if (v == NULL)
		v = record_messages(rec);
	return json_is_string(v) || json_is_array(v) ? v : NULL;
}

static int chat_ids(struct tok *t, const json_t *rec, const json_t *v, const struct prompt_opt *o,
    struct ids *out, struct err *why)
{
	json_t *turns = json_array();
	struct tok_chat c = record_chat(rec, turns);
	size_t n = json_is_array(v) ? turns_asked(v) : 0;
	int rc = -1;

	for (size_t i = 0; i < n; i++)
		json_array_append(turns, json_array_get(v, i));
	if (json_is_string(v))
		json_array_append_new(turns, json_pack("{s:s, s:O}", "role", "user", "content", v));
	c.generate = true;
	c.think = o->think;
	if (json_array_size(turns) == 0)
		err_set(why, EX_DATAERR, "the prompt has no turn of the user");
	else
		rc = tok_chat(t, &c, out, NULL, why);
	json_decref(turns);
	return rc;
}

int prompt_ids(struct tok *t, const json_t *rec, const struct prompt_opt *o, struct ids *out,
    struct err *why)
{
	const json_t *v = asked(rec);
	int bos = tok_bos(t);

	if (v == NULL)
		return err_set(why, EX_DATAERR, "missing \"prompt\"");
	if (json_is_array(v) || o->chat)
		return chat_ids(t, rec, v, o, out, why);
	if (bos >= 0)
		ids_push(out, (uint32_t)bos);
	tok_encode(t, json_string_value(v), json_string_length(v), false, out);
	return out->n > 0 ? 0 : err_set(why, EX_DATAERR,
	    "the prompt is empty, and there is no token to begin with");
}

const char *prompt_text(const json_t *rec)
{
	const json_t *v = asked(rec);
	size_t n = json_is_array(v) ? turns_asked(v) : 0;

	if (json_is_array(v))
		v = n > 0 ? content_of(json_array_get(v, n - 1)) : NULL;
	return json_string_value(v);
}
