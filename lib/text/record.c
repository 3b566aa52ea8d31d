#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/jsonfile.h"
#include "text/record.h"
#include "text/turn.h"

struct text {
	char *s;
	size_t n;
	FILE *f;	/* onto s */
	bool any;
};

static bool text_open(struct text *t)
{
	memset(t, 0, sizeof *t);
	t->f = open_memstream(&t->s, &t->n);
	return t->f != NULL;
}

/* The shortest text that is this number. */
static void add_real(FILE *f, double v)
{
	char s[40];
	int digits = 9;

	do
		snprintf(s, sizeof s, "%.*g", digits, v);
	while (strtod(s, NULL) != v && digits++ < 17);
	fputs(s, f);
}

/* Adds a string or a number on a line of its own. */
static void text_add(struct text *t, const json_t *v)
{
	if (!json_is_string(v) && !json_is_number(v))
		return;
	if (t->any)
		putc('\n', t->f);
	t->any = true;
	if (json_is_string(v))
		fwrite(json_string_value(v), 1, json_string_length(v), t->f);
	else if (json_is_integer(v))
		fprintf(t->f, "%" JSON_INTEGER_FORMAT, json_integer_value(v));
	else
		add_real(t->f, json_real_value(v));
}

static char *text_close(struct text *t, size_t *len)
{
	bool lost = fclose(t->f) != 0;

	if (lost || !t->any) {
		free(t->s);
		return NULL;
	}
	if (len)
		*len = t->n;
	return t->s;
}

/* --- turns --- */

static bool is_there(const json_t *v)
{
	return v != NULL && !json_is_null(v);
}

bool record_has_turns(const json_t *rec)
{
	return is_there(json_object_get(rec, "messages")) ||
	    is_there(json_object_get(rec, "conversations"));
}

static int check_others(const json_t *rec, struct err *e)
{
	static const char *const unread[] = { "functions", "images", "image", "videos", "video",
	    "audios", "audio" };
	const json_t *system = json_object_get(rec, "system");

	for (size_t i = 0; i < sizeof unread / sizeof *unread; i++)
		if (turn_set(json_object_get(rec, unread[i])))
			return err_set(e, EX_DATAERR, "\"%s\" beside a conversation is not read",
			    unread[i]);
	return !turn_set(system) || json_is_string(system) ? 0 : err_set(e, EX_DATAERR,
	    "\"system\" is %s, not a text", jsonfile_kind(system));
}

int record_context(const json_t *rec, json_t *turns, struct err *e)
{
	json_t *system = json_object_get(rec, "system"), *first = json_array_get(turns, 0);
	bool has = turn_is(first, "system");

	if (check_others(rec, e) < 0)
		return -1;
	if (has && turn_set(system))
		return err_set(e, EX_DATAERR, "\"system\" beside a turn of the system");
	if (has && turn_set(json_object_get(rec, "tools")) &&
	    turn_set(json_object_get(first, "tools")))
		return err_set(e, EX_DATAERR, "\"tools\" in the turn of the system and beside it");
	if (turn_set(system))
		json_array_insert_new(turns, 0, json_pack("{s:s, s:O}", "role", "system",
		    "content", system));
	return 0;
}

int record_turns(const json_t *rec, json_t **turns, struct err *e)
{
	const json_t *m = json_object_get(rec, "messages"), *c = json_object_get(rec,
	    "conversations"), *list = is_there(m) ? m : c;
	int rc = 0;

	*turns = NULL;
	if (!record_has_turns(rec))
		return 0;
	if (is_there(m) && is_there(c))
		return err_set(e, EX_DATAERR, "both \"messages\" and \"conversations\"");
	if (!json_is_array(list) && json_is_string(json_object_get(rec, "text")))
		return 0;		/* a number of messages, say, of the text */
	if (!json_is_array(list))
		return err_set(e, EX_DATAERR, "\"%s\" is %s, not a list of turns",
		    list == m ? "messages" : "conversations", jsonfile_kind(list));
	*turns = json_copy((json_t *)list);
	if (json_array_size(list) > 0)
		rc = record_context(rec, *turns, e);
	if (rc < 0) {
		json_decref(*turns);
		*turns = NULL;
	}
	return rc;
}

struct tok_chat record_chat(const json_t *rec, const json_t *messages)
{
	return (struct tok_chat){ .messages = messages, .tools = json_object_get(rec, "tools"),
	    .more = json_object_get(rec, "chat_template_kwargs") };
}

/* --- text --- */

static int add_turns(struct text *t, const json_t *messages, struct err *e)
{
	size_t i;
	json_t *m;

	if (turns_check(messages, e) < 0)
		return -1;
	json_array_foreach(messages, i, m) {
		json_t *s = turn_text(m);

		if (json_string_length(s) > 0 || json_is_string(turn_content(m)))
			text_add(t, s);
		json_decref(s);
	}
	return 0;
}

static void add_scalars(struct text *t, const json_t *rec)
{
	const char *key;
	json_t *v;

	json_object_foreach((json_t *)rec, key, v)
		text_add(t, v);
}

static void add_if_set(struct text *t, const json_t *v)
{
	if (json_string_length(v) > 0)
		text_add(t, v);
}

static const char *const one[] = { "text", "content", "story", "passage", "document", "article" };

/* Where a key that names the text holds something else, other keys do not take its place. */
static int check_named(const json_t *rec, struct err *e)
{
	for (size_t i = 0; i < sizeof one / sizeof *one; i++) {
		const json_t *v = json_object_get(rec, one[i]);

		if (json_is_array(v) || json_is_boolean(v) || json_is_object(v))
			return err_set(e, EX_DATAERR, "\"%s\" is %s, not a text", one[i],
			    jsonfile_kind(v));
	}
	return 0;
}

static bool add_named(struct text *t, const json_t *rec)
{
	static const char *const pair[][2] = {
		{ "instruction", "output" }, { "instruction", "response" },
		    { "prompt", "response" },
		{ "prompt", "completion" }, { "input", "output" }, { "question", "answer" },
		    { "query", "answer" },
	};

	for (size_t i = 0; i < sizeof one / sizeof *one; i++) {
		const json_t *v = json_object_get(rec, one[i]);

		if (json_is_string(v)) {
			text_add(t, v);
			return true;
		}
	}
	for (size_t i = 0; i < sizeof pair / sizeof *pair; i++) {
		const json_t *a = json_object_get(rec, pair[i][0]), *b = json_object_get(rec,
		    pair[i][1]);

		if (json_is_string(a) && json_is_string(b)) {
			add_if_set(t, json_object_get(rec, "system"));
			text_add(t, a);
			if (strcmp(pair[i][0], "instruction") == 0) {
				add_if_set(t, json_object_get(rec, "input"));
				add_if_set(t, json_object_get(rec, "context"));
			}
			text_add(t, b);
			return true;
		}
	}
	return false;
}

static int add_all(struct text *t, const json_t *rec, struct err *e)
{
	json_t *turns;
	int rc = 0;

	if (add_named(t, rec))
		return 0;
	if (record_turns(rec, &turns, e) < 0)
		return -1;
	if (turns == NULL && check_named(rec, e) < 0)
		return -1;
	if (turns == NULL)
		add_scalars(t, rec);
	else
		rc = add_turns(t, turns, e);
	json_decref(turns);
	return rc;
}

char *record_text(const json_t *rec, size_t *len, struct err *e)
{
	struct text t;
	char *s;
	int rc;

	if (!text_open(&t)) {
		err_set(e, EX_OSERR, "out of memory");
		return NULL;
	}
	rc = add_all(&t, rec, e);
	s = text_close(&t, len);
	if (rc == 0 && s == NULL)
		err_set(e, EX_DATAERR, "no text in the record");
	if (rc == 0)
		return s;
	free(s);
	return NULL;
}

/* (Beside a text, another value under that name is its length, say.) */
bool record_has_tokens(const json_t *rec)
{
	const json_t *v = json_object_get(rec, "tokens");

	return json_is_array(v) || (is_there(v) && !json_is_string(json_object_get(rec, "text")));
}

int record_tokens(const json_t *rec, int vocab, struct ids *out, struct err *e)
{
	const json_t *list = json_object_get(rec, "tokens");
	int64_t top = vocab ? (int64_t)vocab : UINT32_MAX;
	int n = out->n;
	size_t i;
	json_t *v;

	if (!json_is_array(list))
		return err_set(e, EX_DATAERR, list ? "\"tokens\" is not a list"
		    : "missing \"tokens\"");
	json_array_foreach(list, i, v) {
		if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) >=
		    top) {
			out->n = n;
			return err_set(e, EX_DATAERR,
			    "\"tokens\"[%zu] is not a token id below %lld", i, (long long)top);
		}
		ids_push(out, (uint32_t)json_integer_value(v));
	}
	return 0;
}

int record_mask(const json_t *rec, int n, struct ids *mask, struct err *e)
{
	const json_t *list = json_object_get(rec, "mask"), *v;
	size_t i;

	if (!json_is_array(list))
		return err_set(e, EX_DATAERR, "\"tokens\" without a list \"mask\"");
	if (json_array_size(list) != (size_t)n)
		return err_set(e, EX_DATAERR, "\"mask\" has %zu entries, \"tokens\" %d",
		    json_array_size(list), n);
	json_array_foreach(list, i, v) {
		bool learn = json_is_boolean(v) ? json_is_true(v) : json_integer_value(v) == 1;

		if (!json_is_boolean(v) && !(json_is_integer(v) && (learn ||
		    json_integer_value(v) == 0)))
			return err_set(e, EX_DATAERR, "\"mask\"[%zu] is neither 0 nor 1", i);
		ids_push(mask, learn);
	}
	return 0;
}

int record_no_mask(const json_t *rec, struct err *e)
{
	return json_is_array(json_object_get(rec, "mask")) ? err_set(e, EX_DATAERR,
	    "\"mask\" without the \"tokens\" that it is of") : 0;
}

int record_ids(const json_t *rec, struct tok *t, int vocab, struct ids *out, struct err *e)
{
	json_t *turns;
	size_t len;
	char *text;
	int rc;

	if (record_has_tokens(rec))
		return record_tokens(rec, vocab, out, e);
	if (!t)
		return err_set(e, EX_DATAERR, "no \"tokens\", and no tokenizer for text");
	if (record_turns(rec, &turns, e) < 0)
		return -1;
	if (turns) {
		const struct tok_chat c = record_chat(rec, turns);

		rc = tok_chat(t, &c, out, NULL, e);
		json_decref(turns);
		return rc;
	}
	if ((text = record_text(rec, &len, e)) == NULL)
		return -1;
	tok_encode(t, text, len, false, out);
	free(text);
	return 0;
}

/* (A conversation ends with eos and a newline.) */
void record_frame(const struct tok *t, struct ids *ids)
{
	int bos = t ? tok_bos(t) : -1, eos = t ? tok_eos(t) : -1;

	if (ids->n == 0)
		return;
	if (bos >= 0 && ids->v[0] != (uint32_t)bos) {
		ids_push(ids, 0);
		memmove(ids->v + 1, ids->v, (size_t)(ids->n - 1) * sizeof *ids->v);
		ids->v[0] = (uint32_t)bos;
	}
	if (eos >= 0 && ids->v[ids->n - 1] != (uint32_t)eos &&
	    (ids->n < 2 || ids->v[ids->n - 2] != (uint32_t)eos))
		ids_push(ids, (uint32_t)eos);
}

int record_document(const json_t *rec, struct tok *t, int vocab, struct ids *out, struct err *e)
{
	if (record_ids(rec, t, vocab, out, e) < 0)
		return -1;
	record_frame(t, out);
	return 0;
}
