#include "base/jsonfile.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/jsontext.h"
#include "base/sniff.h"

static int is_what(const char *name, const char *what, struct err *e)
{
	return err_set(e, EX_DATAERR, "%s: is %s, where JSON should be", name, what);
}

json_t *jsonfile_parse(const char *text, size_t len, const char *name, struct err *e)
{
	const char *what = sniff(text, len);
	struct err why = {0};
	json_t *o;
	int line;

	if (what) {
		is_what(name, what, e);
		return NULL;
	}
	if (len >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) {
		text += 3;
		len -= 3;
	}
	o = jsontext_parse(text, len, JSONTEXT_FILE, &line, &why);
	if (!o)
		err_set(e, EX_DATAERR, "%s:%d: %s", name, line, why.msg);
	return o;
}

json_t *jsonfile_load(const char *path, struct err *e)
{
	json_t *o;
	char *text;
	size_t len;

	if (file_get_regular(path, &text, &len, e) < 0)
		return NULL;
	o = jsonfile_parse(text, len, path, e);
	free(text);
	return o;
}

static char *grow(char *buf, size_t cap)
{
	char *p = realloc(buf, cap);

	if (!p)
		err_die(EX_OSERR, "out of memory");
	return p;
}

/* All of it, gzip undone; NULL on error. */
static char *read_input(struct jsonl *in, const char *name, size_t *len, struct err *e)
{
	size_t cap = 1 << 16;
	char *buf = grow(NULL, cap);
	ssize_t n;

	*len = 0;
	while ((n = jsonl_bytes(in, buf + *len, cap - *len, e)) > 0) {
		*len += (size_t)n;
		if (*len == cap)
			buf = grow(buf, cap *= 2);
		if (*len > FILE_MOST)
			n = err_set(e, EX_DATAERR, "%s: is larger than %zu MiB", name,
			    FILE_MOST >> 20);
		if (n < 0)
			break;
	}
	if (n == 0)
		return buf;
	free(buf);
	return NULL;
}

/* A model's file in place of its directory, for one. What is packed is looked at later. */
static int check_head(const char *path, struct err *e)
{
	char head[SNIFF_BYTES];
	ssize_t n = sniff_head(path, head);
	const char *what;

	if (n < 2 || memcmp(head, "\x1f\x8b", 2) == 0)
		return 0;
	what = sniff_safetensors(head, (size_t)n) ? "a safetensors file" : sniff(head, (size_t)n);
	return what ? is_what(path, what, e) : 0;
}

json_t *jsonfile_input(const char *path, struct err *e)
{
	struct jsonl *in = check_head(path, e) < 0 ? NULL :
	    jsonl_open(1, (char *const *)&path, false, e);
	json_t *o = NULL;
	char *text;
	size_t len;

	if (!in)
		return NULL;
	e->status = 0;
	/* It opens the file; the end of an empty one is no error. */
	text = jsonl_peek(in, e) < 0 && e->status ? NULL : read_input(in, jsonl_name(in), &len, e);
	if (text)
		o = jsonfile_parse(text, len, jsonl_name(in), e);
	free(text);
	jsonl_close(in);
	return o;
}

const char *jsonfile_kind(const json_t *v)
{
	switch (json_typeof(v)) {
	case JSON_OBJECT:	return "an object";
	case JSON_ARRAY:	return "a list";
	case JSON_STRING:	return "a string";
	case JSON_INTEGER:
	case JSON_REAL:		return "a number";
	case JSON_NULL:		return "null";
	default:		return json_is_true(v) ? "true" : "false";
	}
}

int jsonfile_int(const json_t *o, const char *key, int64_t lo, int64_t hi, int64_t *v,
    const char *name, struct err *e)
{
	const json_t *j = json_object_get(o, key);

	*v = json_integer_value(j);
	if (!j)
		return err_set(e, EX_DATAERR, "%s: missing \"%s\"", name, key);
	if (!json_is_integer(j))
		return err_set(e, EX_DATAERR, "%s: \"%s\" is %s, not a whole number", name, key,
		    json_is_real(j) ? "a fraction" : jsonfile_kind(j));
	if (*v < lo || *v > hi)
		return err_set(e, EX_DATAERR, "%s: \"%s\" is %" PRId64 ", not in %" PRId64 "..%"
		    PRId64, name, key, *v, lo, hi);
	return 0;
}

int jsonfile_number(const json_t *o, const char *key, double *v, const char *name,
    struct err *e)
{
	const json_t *j = json_object_get(o, key);

	*v = json_number_value(j);
	if (json_is_number(j) && isfinite(*v))
		return 0;
	if (!j)
		return err_set(e, EX_DATAERR, "%s: missing \"%s\"", name, key);
	return err_set(e, EX_DATAERR, "%s: \"%s\" is %s, not a number", name, key,
	    json_is_number(j) ? "infinite" : jsonfile_kind(j));
}

int jsonfile_put(const char *dir, const char *name, json_t *o, size_t flags, struct err *e)
{
	char *text = json_dumps(o, flags), *path = file_join(dir, name);
	size_t n = text ? strlen(text) : 0;
	int rc;

	if (text)
		text[n] = '\n';		/* in place of the NUL */
	rc = text ? file_put(path, text, n + 1, e) : err_set(e, EX_OSERR, "out of memory");
	json_decref(o);
	free(text);
	free(path);
	return rc;
}
