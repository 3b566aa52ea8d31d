#include "text/prompt.h"

#include "base/jsonfile.h"
#include "text/record.h"
#include "text/turn.h"

/* How many turns there are up to the last one of the user; 0: it says nothing. */
static size_t turns_asked(const json_t *turns)
{
	size_t n = json_array_size(turns);

	while (n > 0 && !turn_is(json_array_get(turns, n - 1), "user"))
		n--;
	return n;
}

/* The string or the list that holds the question, in a new reference; NULL: there is none. */
static int asked(const json_t *rec, json_t **v, struct err *why)
{
	const char *key = "prompt";

	*v = json_object_get(rec, key);
	if (*v == NULL)
		*v = json_object_get(rec, key = "question");
	if (*v == NULL)
		return record_turns(rec, v, why);
	if (!json_is_string(*v) && !json_is_array(*v))
		return err_set(why, EX_DATAERR, "\"%s\" is %s, neither a text nor a list of turns",
		    key, jsonfile_kind(*v));
	if (json_is_string(*v)) {
		json_incref(*v);
		return 0;
	}
	*v = json_copy(*v);
	if (json_array_size(*v) == 0 || record_context(rec, *v, why) == 0)
		return 0;
	json_decref(*v);
	return -1;
}

/* The turns to be answered, of which `v` is text of the user or a list. */
static int chat_ids(struct tok *t, const json_t *rec, const json_t *v, const struct prompt_opt *o,
    struct ids *out, struct err *why)
{
	json_t *turns = json_array();
	struct tok_chat c = record_chat(rec, turns);
	size_t n = json_is_array(v) ? turns_asked(v) : 0;
	int rc = 0;

	for (size_t i = 0; i < n; i++)
		json_array_append(turns, json_array_get(v, i));
	if (json_is_string(v)) {
		json_array_append_new(turns, json_pack("{s:s, s:O}", "role", "user", "content", v));
		rc = record_context(rec, turns, why);
	}
	if (json_array_size(turns) == 0)
		rc = err_set(why, EX_DATAERR, "the prompt has no turn of the user");
	c.generate = true;
	c.think = o->think;
	if (rc == 0)
		rc = tok_chat(t, &c, out, NULL, why);
	json_decref(turns);
	return rc;
}

static int text_ids(struct tok *t, const json_t *v, struct ids *out, struct err *why)
{
	int bos = tok_bos(t);

	if (bos >= 0)
		ids_push(out, (uint32_t)bos);
	tok_encode(t, json_string_value(v), json_string_length(v), false, out);
	return out->n > 0 ? 0 : err_set(why, EX_DATAERR,
	    "the prompt is empty, and there is no token to begin with");
}

int prompt_ids(struct tok *t, const json_t *rec, const struct prompt_opt *o, struct ids *out,
    struct err *why)
{
	json_t *v;
	int rc;

	if (asked(rec, &v, why) < 0)
		return -1;
	if (v == NULL)
		return err_set(why, EX_DATAERR, "missing \"prompt\"");
	rc = json_is_array(v) || o->chat ? chat_ids(t, rec, v, o, out, why)
	    : text_ids(t, v, out, why);
	json_decref(v);
	return rc;
}

json_t *prompt_text(const json_t *rec)
{
	struct err why = {0};
	json_t *v = NULL, *text;
	size_t n;

	if (asked(rec, &v, &why) < 0 || v == NULL)
		return json_string("");
	n = json_is_array(v) ? turns_asked(v) : 0;
	text = json_is_string(v) ? json_incref(v)
	    : n > 0 ? turn_text(json_array_get(v, n - 1)) : json_string("");
	json_decref(v);
	return text;
}
