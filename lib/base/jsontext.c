#include "base/jsontext.h"

#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/plain.h"

void jsontext_add(struct jsontext *t, const char *s, size_t len)
{
	if (len >= t->cap - t->n) {
		t->cap = 2 * (t->n + len) + 4096;
		if ((t->s = realloc(t->s, t->cap)) == NULL)
			err_die(EX_OSERR, "out of memory for a record");
	}
	memcpy(t->s + t->n, s, len);
	t->n += len;
	t->s[t->n] = '\0';
}

void jsontext_free(struct jsontext *t)
{
	free(t->s);
	*t = (struct jsontext){0};
}

static void add_char(struct jsontext *t, char c)
{
	jsontext_add(t, &c, 1);
}

/* --- where things end; a text that is no JSON has an end as well --- */

static bool is_space(char c)
{
	return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

static size_t skip_space(const char *s, size_t i, size_t n)
{
	while (i < n && is_space(s[i]))
		i++;
	return i;
}

static size_t string_end(const char *s, size_t i, size_t n)
{
	for (i++; i < n && s[i] != '"'; i++)
		if (s[i] == '\\')
			i++;
	return i < n ? i + 1 : n;
}

static bool is_number(char c)
{
	return (c >= '0' && c <= '9') || c == '-' || c == '+' || c == '.' || c == 'e' || c == 'E';
}

static size_t number_end(const char *s, size_t i, size_t n)
{
	while (i < n && is_number(s[i]))
		i++;
	return i;
}

static size_t value_end(const char *s, size_t i, size_t n)
{
	size_t depth = 0;

	do {
		if (s[i] == '"') {
			i = string_end(s, i, n);
			continue;
		}
		if (s[i] == '{' || s[i] == '[')
			depth++;
		else if (s[i] == '}' || s[i] == ']')
			depth--;
		i++;
	} while (i < n && (depth > 0 || !strchr(",]} \t\r\n", s[i])));
	return i;
}

/* --- strings as json_dumps() writes them --- */

static unsigned hex4(const char *s)
{
	char digits[5] = { s[0], s[1], s[2], s[3], '\0' };

	return (unsigned)strtoul(digits, NULL, 16);
}

static void add_utf8(struct jsontext *out, uint32_t c)
{
	char b[4];

	if (c < 0x80) {
		add_char(out, (char)c);
	} else if (c < 0x800) {
		b[0] = (char)(0xc0 | c >> 6);
		b[1] = (char)(0x80 | (c & 0x3f));
		jsontext_add(out, b, 2);
	} else if (c < 0x10000) {
		b[0] = (char)(0xe0 | c >> 12);
		b[1] = (char)(0x80 | (c >> 6 & 0x3f));
		b[2] = (char)(0x80 | (c & 0x3f));
		jsontext_add(out, b, 3);
	} else {
		b[0] = (char)(0xf0 | c >> 18);
		b[1] = (char)(0x80 | (c >> 12 & 0x3f));
		b[2] = (char)(0x80 | (c >> 6 & 0x3f));
		b[3] = (char)(0x80 | (c & 0x3f));
		jsontext_add(out, b, 4);
	}
}

static void add_character(struct jsontext *out, uint32_t c)
{
	static const char escape[] = "\b\f\n\r\t\"\\", letter[] = "bfnrt\"\\";
	const char *at = c != 0 && c < 0x80 ? strchr(escape, (int)c) : NULL;
	char text[8];
	int n;

	if (at != NULL) {
		add_char(out, '\\');
		add_char(out, letter[at - escape]);
	} else if (c < 0x20) {
		n = snprintf(text, sizeof text, "\\u%04X", c);
		jsontext_add(out, text, (size_t)n);
	} else {
		add_utf8(out, c);
	}
}

/* The escape at s[i], a backslash: how long it is. */
static size_t add_escape(struct jsontext *out, const char *s, size_t left)
{
	uint32_t c;

	if (left >= 6 && s[1] == 'u') {
		c = hex4(s + 2);
		if (c >= 0xd800 && c < 0xdc00 && left >= 12 && s[6] == '\\' && s[7] == 'u') {
			add_character(out, 0x10000 + ((c - 0xd800) << 10) + (hex4(s + 8) - 0xdc00));
			return 12;
		}
		add_character(out, c);
		return 6;
	}
	if (left >= 2 && s[1] == '/')
		add_char(out, '/');
	else
		jsontext_add(out, s, left < 2 ? left : 2);
	return left < 2 ? left : 2;
}

static void add_string(struct jsontext *out, const char *s, size_t n)
{
	const char *p;

	for (size_t i = 0; i < n;) {
		p = memchr(s + i, '\\', n - i);
		jsontext_add(out, s + i, (p != NULL ? (size_t)(p - s) : n) - i);
		i = p != NULL ? (size_t)(p - s) : n;
		if (p != NULL)
			i += add_escape(out, s + i, n - i);
	}
}

/* --- values --- */

/* Does json_t give this number back as it is written? */
static bool is_plain(const char *s, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if ((s[i] < '0' || s[i] > '9') && !(i == 0 && s[i] == '-' && n > 1 && s[1] != '0'))
			return false;
	return n <= 18;
}

/* A number that jansson would refuse, as the nearest that it takes. */
static void add_fitting(struct jsontext *out, const char *s, size_t n, bool any)
{
	char text[64];
	bool real = memchr(s, '.', n) || memchr(s, 'e', n) || memchr(s, 'E', n);
	double v;
	char *copy = strndup(s, n);

	if (copy == NULL)
		err_die(EX_OSERR, "out of memory for a record");
	v = strtod(copy, NULL);
	errno = 0;
	if (!real && (strtoll(copy, NULL, 10), errno == 0))
		jsontext_add(out, s, n);
	else if ((real && isfinite(v) && (v == 0 || fabs(v) >= DBL_MIN)) || (!isfinite(v) && !any))
		jsontext_add(out, s, n);
	else
		jsontext_add(out, text, (size_t)snprintf(text, sizeof text, "%.17e",
		    isfinite(v) ? v : copysign(DBL_MAX, v)));
	free(copy);
}

struct walk {
	bool fit;		/* numbers become such as jansson reads, */
	bool any;		/* also those that no double holds */
	bool keep;		/* lists and objects under some keys become strings where that is
				   needed for their numbers */
	bool odd;		/* a number went by whose spelling json_t does not hold */
};

static void add_value(struct jsontext *out, const char *s, size_t n, struct walk *w);

/* Is the string at s[a..b) the key of a list or an object that may have to be kept as text? Where
 * that begins, else 0. */
static size_t kept_value(const char *s, size_t a, size_t b, size_t n)
{
	static const char *const kept[] = { "\"arguments\"", "\"tools\"" };
	size_t i = skip_space(s, b, n);

	if (i == n || s[i] != ':')
		return 0;
	i = skip_space(s, i + 1, n);
	if (i == n || (s[i] != '{' && s[i] != '['))
		return 0;
	for (size_t k = 0; k < sizeof kept / sizeof *kept; k++)
		if (b - a == strlen(kept[k]) && memcmp(s + a, kept[k], b - a) == 0)
			return i;
	return 0;
}

/* A list or an object: as a string if it holds a number that would change. */
static void add_kept(struct jsontext *out, const char *s, size_t n)
{
	struct jsontext text = {0};
	struct walk w = {0};

	add_value(&text, s, n, &w);
	if (!w.odd) {
		jsontext_add(out, text.s, text.n);
	} else {
		add_char(out, '"');
		for (size_t i = 0; i < text.n; i++) {
			unsigned char c = (unsigned char)text.s[i];

			if (c < 0x80)
				add_character(out, c);
			else
				add_char(out, (char)c);
		}
		add_char(out, '"');
	}
	jsontext_free(&text);
}

static void add_number(struct jsontext *out, const char *s, size_t n, struct walk *w)
{
	w->odd = w->odd || !is_plain(s, n);
	if (w->fit)
		add_fitting(out, s, n, w->any);
	else
		jsontext_add(out, s, n);
}

static void add_value(struct jsontext *out, const char *s, size_t n, struct walk *w)
{
	size_t at, end;

	for (size_t i = 0; i < n; i = end) {
		end = i + 1;
		if (s[i] == '"') {
			end = string_end(s, i, n);
			add_string(out, s + i, end - i);
			if (w->keep && (at = kept_value(s, i, end, n)) != 0) {
				add_char(out, ':');
				end = value_end(s, at, n);
				add_kept(out, s + at, end - at);
			}
		} else if ((s[i] >= '0' && s[i] <= '9') || s[i] == '-') {
			end = number_end(s, i, n);
			add_number(out, s + i, end - i, w);
		} else if (!is_space(s[i])) {
			add_char(out, s[i]);
		}
	}
}

void jsontext_compact(struct jsontext *out, const char *s, size_t len)
{
	struct walk w = {0};

	add_value(out, s, len, &w);
}

bool jsontext_element(const char **s, const char *end, const char **v, size_t *len)
{
	size_t n = (size_t)(end - *s), i = skip_space(*s, 0, n);

	if (i < n && (*s)[i] == ',')
		i = skip_space(*s, i + 1, n);
	if (i == n || (*s)[i] == ']')
		return false;
	*v = *s + i;
	*len = value_end(*s, i, n) - i;
	*s = *v + *len;
	return true;
}

/* --- a record --- */

static int add_dumped(const char *buffer, size_t size, void *out)
{
	jsontext_add(out, buffer, size);
	return 0;
}

static void add_json(struct jsontext *out, const json_t *v)
{
	if (json_dump_callback(v, add_dumped, out,
	    JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(9)) < 0)
		err_die(EX_SOFTWARE, "cannot write a record as JSON");
}

static void add_key(struct jsontext *out, const char *key, size_t len)
{
	json_t *name = json_stringn(key, len);

	if (out->s[out->n - 1] != '{')
		add_char(out, ',');
	add_json(out, name);
	add_char(out, ':');
	json_decref(name);
}

/* One that the text of the record had is not written again: `gone`. */
static void add_members(struct jsontext *out, const json_t *set, const json_t *gone)
{
	const char *key;
	json_t *v;

	json_object_foreach((json_t *)set, key, v) {
		if (json_object_get(gone, key) != NULL)
			continue;
		add_key(out, key, strlen(key));
		add_json(out, v);
	}
}

static bool is_dropped(const char *const drop[], const char *key)
{
	for (; drop != NULL && *drop != NULL; drop++)
		if (strcmp(*drop, key) == 0)
			return true;
	return false;
}

/* A member of the text. */
static void add_member(struct jsontext *out, const char *key, const char *value, size_t len,
    const json_t *set, bool first, json_t *gone, const char *const drop[])
{
	json_t *v = json_object_get(set, key);

	if (is_dropped(drop, key) || (v != NULL && first))
		return;
	add_key(out, key, strlen(key));
	if (v == NULL) {
		jsontext_compact(out, value, len);
		return;
	}
	add_json(out, v);
	json_object_set_new(gone, key, json_true());
}

void jsontext_record(struct jsontext *out, const char *line, size_t len, const json_t *set,
    bool first, const char *const drop[])
{
	json_t *gone = json_object();
	size_t i = skip_space(line, 0, len), end, at;

	add_char(out, '{');
	if (first)
		add_members(out, set, NULL);
	for (i = skip_space(line, i + 1, len); i < len && line[i] == '"'; i = skip_space(line, i,
	    len)) {
		json_t *name;

		end = string_end(line, i, len);
		name = json_loadb(line + i, end - i, JSON_DECODE_ANY, NULL);
		at = skip_space(line, skip_space(line, end, len) + 1, len);
		i = value_end(line, at, len);
		add_member(out, json_string_value(name), line + at, i - at, set, first, gone, drop);
		json_decref(name);
		i = skip_space(line, i, len);
		i = skip_space(line, i + (i < len && line[i] == ','), len);
	}
	if (!first)
		add_members(out, set, gone);
	add_char(out, '}');
	json_decref(gone);
}

int jsontext_put(struct jsontext *t, FILE *f, struct err *e)
{
	add_char(t, '\n');
	return fwrite(t->s, 1, t->n, f) == t->n && fflush(f) == 0 ? 0 : err_set(e, EX_IOERR, "%s:",
	    f == stdout ? "standard output" : "write");
}

/* --- reading, and what is wrong --- */

/* Which byte of the text is not UTF-8, from 1. */
static size_t bad_byte(const char *s, size_t len)
{
	uint32_t code;
	size_t i = 0, n;

	while (i < len && (n = plain_utf8(s + i, len - i, &code)) > 0)
		i += n;
	return i + 1;
}

/* What programs write that take JSON for the literals of their own language. */
static int explain_literal(const char *near, struct err *why)
{
	static const char *const literal[][2] = { { "NaN", "null" }, { "Infinity", "null" },
	    { "-", "null, where -Infinity or -NaN is meant" }, { "None", "null" },
	    { "True", "true" }, { "False", "false" } };
	size_t n;

	for (size_t i = 0; i < sizeof literal / sizeof *literal; i++) {
		n = strlen(literal[i][0]);
		if (strncmp(near, " near '", 7) == 0 && strncmp(near + 7, literal[i][0], n) == 0 &&
		    strcmp(near + 7 + n, "'") == 0)
			return err_set(why, EX_DATAERR, "%s is not JSON, which has %s",
			    literal[i][0], literal[i][1]);
	}
	return 0;
}

static void explain_syntax(const char *text, const char *near, struct err *why)
{
	if (explain_literal(near, why) < 0)
		return;
	if (strstr(text, "expected") == text + 11 && text[0] == '\'')
		err_set(why, EX_DATAERR, "not JSON%s", near);
	else if (strncmp(text, "invalid Unicode", 15) == 0)
		err_set(why, EX_DATAERR, "half of a surrogate pair alone:%s", text + 15);
	else if (strncmp(text, "control character", 17) == 0)
		err_set(why, EX_DATAERR, "%s, which a string can only hold as \\uXXXX", text);
	else
		err_set(why, EX_DATAERR, "%s", text);
}

static void explain(const json_error_t *je, const char *s, size_t len, struct err *why)
{
	const char *near = strstr(je->text, " near ");
	size_t bad;

	near = near != NULL ? near : "";
	switch (json_error_code(je)) {
	case json_error_invalid_utf8:
		bad = bad_byte(s, len);
		err_set(why, EX_DATAERR, "not UTF-8: byte %zu is 0x%02x", bad,
		    bad <= len ? (unsigned char)s[bad - 1] : 0);
		break;
	case json_error_null_character:
	case json_error_null_byte_in_key:
		err_set(why, EX_DATAERR, "a NUL character (\\u0000) in a %s",
		    json_error_code(je) == json_error_null_byte_in_key ? "key" : "string");
		break;
	case json_error_duplicate_key:
		err_set(why, EX_DATAERR, "duplicate key%s", near);
		break;
	case json_error_stack_overflow:
		err_set(why, EX_DATAERR, "nesting beyond a depth of %d", JSON_PARSER_MAX_DEPTH);
		break;
	case json_error_numeric_overflow:
		err_set(why, EX_DATAERR, "a number beyond what a double holds%s", near);
		break;
	case json_error_premature_end_of_input:
		err_set(why, EX_DATAERR, "JSON that is cut off%s", near);
		break;
	case json_error_end_of_input_expected:
		err_set(why, EX_DATAERR, "something follows the end of the JSON%s", near);
		break;
	default:
		explain_syntax(je->text, near, why);
	}
}

static json_t *load_again(const char *s, size_t len, size_t flags, struct walk w, json_error_t *je)
{
	struct jsontext copy = {0};
	json_t *v;

	add_value(&copy, s, len, &w);
	v = json_loadb(copy.s != NULL ? copy.s : "", copy.n, flags, je);
	jsontext_free(&copy);
	return v;
}

/* Can the text have what add_kept() is for? */
static bool has_kept(const char *s, size_t len)
{
	return memmem(s, len, "\"arguments\"", 11) != NULL ||
	    memmem(s, len, "\"tools\"", 7) != NULL;
}

json_t *jsontext_parse(const char *s, size_t len, enum jsontext_use use, int *line,
    struct err *why)
{
	size_t flags = JSON_REJECT_DUPLICATES | (use == JSONTEXT_RECORD ? JSON_ALLOW_NUL : 0);
	struct walk w = { .keep = use == JSONTEXT_RECORD && has_kept(s, len) };
	json_error_t je;
	json_t *v = json_loadb(s, len, flags, &je);

	if (v == NULL && json_error_code(&je) == json_error_numeric_overflow) {
		w.fit = true;
		w.any = use == JSONTEXT_RECORD;
		v = load_again(s, len, flags, w, &je);
	} else if (v != NULL && w.keep) {
		json_decref(v);
		v = load_again(s, len, flags, w, &je);
	}
	if (line != NULL)
		*line = je.line;
	if (v != NULL)
		return v;
	if (memchr(s, '\0', len) != NULL)
		err_set(why, EX_DATAERR, "NUL byte");
	else
		explain(&je, s, len, why);
	return NULL;
}
