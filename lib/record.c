#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "record.h"

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
		fprintf(t->f, "%.9g", json_real_value(v));
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

const json_t *record_messages(const json_t *rec)
{
	const json_t *m = json_object_get(rec, "messages");

	if (!json_is_array(m))
		m = json_object_get(rec, "conversations");
	return json_is_array(m) ? m : NULL;
}

static void add_turns(struct text *t, const json_t *messages)
{
	size_t i;
	json_t *m;

	json_array_foreach(messages, i, m) {
		const json_t *v = json_object_get(m, "content");

		text_add(t, json_is_string(v) ? v : json_object_get(m, "value"));
	}
}

static void add_scalars(struct text *t, const json_t *rec)
{
	const char *key;
	json_t *v;

	json_object_foreach((json_t *)rec, key, v)
		text_add(t, v);
}

static bool add_named(struct text *t, const json_t *rec)
{
	static const char *const one[] = { "text", "content", "story", "passage", "document", "article" };
	static const char *const pair[][2] = {
		{ "instruction", "output" }, { "instruction", "response" }, { "prompt", "response" },
		{ "prompt", "completion" }, { "input", "output" }, { "question", "answer" }, { "query", "answer" },
	};

	for (size_t i = 0; i < sizeof one / sizeof *one; i++) {
		const json_t *v = json_object_get(rec, one[i]);

		if (json_is_string(v)) {
			text_add(t, v);
			return true;
		}
	}
	for (size_t i = 0; i < sizeof pair / sizeof *pair; i++) {
		const json_t *a = json_object_get(rec, pair[i][0]), *b = json_object_get(rec, pair[i][1]);

		if (json_is_string(a) && json_is_string(b)) {
			text_add(t, a);
			text_add(t, b);
			return true;
		}
	}
	return false;
}

char *record_text(const json_t *rec, size_t *len)
{
	struct text t;

	if (!text_open(&t))
		return NULL;
	if (!add_named(&t, rec)) {
		const json_t *m = record_messages(rec);

		if (m)
			add_turns(&t, m);
		else
			add_scalars(&t, rec);
	}
	return text_close(&t, len);
}
