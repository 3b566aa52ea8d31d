/* Values of templates: strings that know where their bytes come from, lists, dictionaries; their
 * text as Python has it. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text/jinja_int.h"

/* --- memory --- */

struct chunk { struct chunk *next; size_t size, used; char p[]; };

void jinja_fail(struct run *r, const char *fmt, ...)
{
	char text[400];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	err_set(r->e, EX_DATAERR, "%s:%d: %s", r->name, r->line, text);
	longjmp(r->fail, 1);
}

void *jinja_alloc(struct run *r, size_t n)
{
	struct arena *a = r->arena;
	struct chunk *c = a->chunk;
	void *p;

	if (n > a->limit || a->used + n > a->limit)
		jinja_fail(r, "the template needs more than %zu MiB of memory", a->limit >> 20);
	n = (n + 15) & ~(size_t)15;
	if (c == NULL || c->size - c->used < n) {
		size_t size = n > 65536 ? n : 65536;

		if ((c = malloc(sizeof *c + size)) == NULL)
			err_die(EX_OSERR, "out of memory");
		*c = (struct chunk){ .next = a->chunk, .size = size };
		a->chunk = c;
	}
	p = c->p + c->used;
	c->used += n;
	a->used += n;
	return p;
}

void jinja_arena_free(struct arena *a)
{
	for (struct chunk *c = a->chunk, *next; c != NULL; c = next) {
		next = c->next;
		free(c);
	}
	*a = (struct arena){ .limit = a->limit };
}

void jinja_step(struct run *r, int64_t n)
{
	if ((r->steps += n) > JINJA_STEPS)
		jinja_fail(r, "the template takes more than %d steps", JINJA_STEPS);
}

/* --- strings --- */

const struct str *jinja_str_new(struct run *r, const char *p, size_t n, uint8_t origin)
{
	struct str *s = jinja_alloc(r, sizeof *s);

	*s = (struct str){ .p = p, .n = n, .origin = origin };
	return s;
}

const struct str *jinja_str_of(struct run *r, const char *p)
{
	return jinja_str_new(r, p, strlen(p), JINJA_OWN);
}

const struct str *jinja_str_slice(struct run *r, const struct str *s, size_t at, size_t n)
{
	struct str *t = jinja_alloc(r, sizeof *t);

	*t = (struct str){ .p = s->p + at, .from = s->from ? s->from + at : NULL, .n = n,
	    .origin = s->origin };
	return t;
}

static void put_from(uint8_t *to, const struct str *s)
{
	if (s->from != NULL)
		memcpy(to, s->from, s->n);
	else
		memset(to, s->origin, s->n);
}

const struct str *jinja_str_join(struct run *r, const struct str *a, const struct str *b)
{
	size_t n = a->n + b->n;
	char *p;
	uint8_t *from;
	struct str *s;

	if (a->n == 0 || b->n == 0)
		return a->n == 0 ? b : a;
	p = jinja_alloc(r, n);
	memcpy(p, a->p, a->n);
	memcpy(p + a->n, b->p, b->n);
	if (a->from == NULL && b->from == NULL && a->origin == b->origin)
		return jinja_str_new(r, p, n, a->origin);
	from = jinja_alloc(r, n);
	put_from(from, a);
	put_from(from + a->n, b);
	s = jinja_alloc(r, sizeof *s);
	*s = (struct str){ .p = p, .from = from, .n = n };
	return s;
}

bool jinja_str_is(const struct str *s, const char *p)
{
	return s->n == strlen(p) && memcmp(s->p, p, s->n) == 0;
}

bool jinja_str_same(const struct str *a, const struct str *b)
{
	return a->n == b->n && memcmp(a->p, b->p, a->n) == 0;
}

int64_t jinja_str_count(const struct str *s)
{
	int64_t n = 0;

	for (size_t i = 0; i < s->n; i++)
		n += (s->p[i] & 0xc0) != 0x80;
	return n;
}

size_t jinja_str_at(const struct str *s, int64_t i)
{
	size_t at = 0;

	for (; at < s->n; at++)
		if ((s->p[at] & 0xc0) != 0x80 && i-- == 0)
			break;
	return at;
}

/* --- values --- */

struct val jinja_val_str(const struct str *s) { return (struct val){ .k = V_STR, .s = s }; }
struct val jinja_val_int(int64_t i) { return (struct val){ .k = V_INT, .i = i }; }
struct val jinja_val_bool(bool b) { return (struct val){ .k = V_BOOL, .b = b }; }
struct val jinja_val_undef(const char *name) { return (struct val){ .k = V_UNDEF, .name = name }; }

struct val jinja_val_list(struct run *r, bool tuple)
{
	struct list *l = jinja_alloc(r, sizeof *l);

	*l = (struct list){ .tuple = tuple };
	return (struct val){ .k = V_LIST, .l = l };
}

struct val jinja_val_dict(struct run *r)
{
	struct dict *d = jinja_alloc(r, sizeof *d);

	*d = (struct dict){ 0 };
	return (struct val){ .k = V_DICT, .d = d };
}

static void *grow(struct run *r, void *old, int n, int *cap)
{
	struct val *v;

	if (n < *cap)
		return old;
	*cap = *cap ? 2 * *cap : 8;
	v = jinja_alloc(r, (size_t)*cap * sizeof *v);
	if (n > 0)
		memcpy(v, old, (size_t)n * sizeof *v);
	return v;
}

void jinja_list_push(struct run *r, struct list *l, struct val v)
{
	l->v = grow(r, l->v, l->n, &l->cap);
	l->v[l->n++] = v;
}

static bool same_key(struct val a, struct val b)
{
	if (a.k == V_STR || b.k == V_STR)
		return a.k == b.k && jinja_str_same(a.s, b.s);
	if (a.k == V_NONE || b.k == V_NONE)
		return a.k == b.k;
	return (a.k == V_FLOAT ? a.f : a.k == V_BOOL ? (double)a.b : (double)a.i) ==
	    (b.k == V_FLOAT ? b.f : b.k == V_BOOL ? (double)b.b : (double)b.i);
}

struct val *jinja_dict_get(const struct dict *d, struct val key)
{
	for (int i = 0; i < d->n; i++)
		if (same_key(d->key[i], key))
			return &d->v[i];
	return NULL;
}

struct val *jinja_dict_find(const struct dict *d, const struct str *key)
{
	return jinja_dict_get(d, jinja_val_str(key));
}

void jinja_dict_set(struct run *r, struct dict *d, struct val key, struct val v)
{
	struct val *old;
	int cap = d->cap;

	if (key.k != V_STR && key.k != V_INT && key.k != V_BOOL && key.k != V_FLOAT &&
	    key.k != V_NONE)
		jinja_fail(r, "%s cannot be a key", jinja_val_type(key));
	if ((old = jinja_dict_get(d, key)) != NULL) {
		*old = v;
		return;
	}
	d->key = grow(r, d->key, d->n, &cap);
	d->v = grow(r, d->v, d->n, &d->cap);
	d->key[d->n] = key;
	d->v[d->n++] = v;
}

bool jinja_val_true(struct val v)
{
	switch (v.k) {
	case V_UNDEF: case V_NONE: return false;
	case V_BOOL: return v.b;
	case V_INT: return v.i != 0;
	case V_FLOAT: return v.f != 0;
	case V_STR: return v.s->n > 0;
	case V_LIST: return v.l->n > 0;
	case V_DICT: return v.d->n > 0;
	default: return true;
	}
}

const char *jinja_val_type(struct val v)
{
	switch (v.k) {
	case V_UNDEF: return "Undefined";
	case V_NONE: return "NoneType";
	case V_BOOL: return "bool";
	case V_INT: return "int";
	case V_FLOAT: return "float";
	case V_STR: return "str";
	case V_LIST: return v.l->tuple ? "tuple" : "list";
	case V_DICT: return "dict";
	case V_NS: return "Namespace";
	case V_MACRO: return "Macro";
	case V_LOOP: return "LoopContext";
	default: return "function";
	}
}

static bool number(struct val v) { return v.k == V_INT || v.k == V_FLOAT || v.k == V_BOOL; }

static double real_of(struct val v)
{
	return v.k == V_FLOAT ? v.f : v.k == V_BOOL ? (double)v.b : (double)v.i;
}

static bool equal_lists(struct run *r, const struct list *a, const struct list *b)
{
	bool same = a->n == b->n && a->tuple == b->tuple;

	for (int i = 0; same && i < a->n; i++)
		same = jinja_val_equal(r, a->v[i], b->v[i]);
	return same;
}

static bool equal_dicts(struct run *r, const struct dict *a, const struct dict *b)
{
	bool same = a->n == b->n;

	for (int i = 0; same && i < a->n; i++) {
		const struct val *v = jinja_dict_get(b, a->key[i]);

		same = v != NULL && jinja_val_equal(r, a->v[i], *v);
	}
	return same;
}

bool jinja_val_equal(struct run *r, struct val a, struct val b)
{
	bool same = false;

	jinja_step(r, 1);
	if (++r->depth > JINJA_DEPTH)
		jinja_fail(r, "nested more than %d deep", JINJA_DEPTH);
	if (number(a) && number(b))
		same = a.k == V_INT && b.k == V_INT ? a.i == b.i : real_of(a) == real_of(b);
	else if (a.k != b.k)
		same = false;
	else if (a.k == V_STR)
		same = jinja_str_same(a.s, b.s);
	else if (a.k == V_LIST)
		same = equal_lists(r, a.l, b.l);
	else if (a.k == V_DICT)
		same = equal_dicts(r, a.d, b.d);
	else
		same = a.k == V_NONE || a.k == V_UNDEF || a.m == b.m;
	r->depth--;
	return same;
}

int jinja_val_order(struct run *r, struct val a, struct val b)
{
	if (number(a) && number(b)) {
		double x = real_of(a), y = real_of(b);

		return (x > y) - (x < y);
	}
	if (a.k == V_STR && b.k == V_STR) {
		int c = memcmp(a.s->p, b.s->p, a.s->n < b.s->n ? a.s->n : b.s->n);

		return c != 0 ? c : (a.s->n > b.s->n) - (a.s->n < b.s->n);
	}
	if (a.k == V_LIST && b.k == V_LIST) {
		for (int i = 0; i < a.l->n && i < b.l->n; i++)
			if (!jinja_val_equal(r, a.l->v[i], b.l->v[i]))
				return jinja_val_order(r, a.l->v[i], b.l->v[i]);
		return (a.l->n > b.l->n) - (a.l->n < b.l->n);
	}
	jinja_fail(r, "'<' is not for %s and %s", jinja_val_type(a), jinja_val_type(b));
}

/* What a loop, join, list and the like go through. */
struct list *jinja_val_items(struct run *r, struct val v)
{
	struct list *l;

	if (v.k == V_LIST)
		return v.l;
	l = jinja_val_list(r, false).l;
	if (v.k == V_DICT)
		for (int i = 0; i < v.d->n; i++)
			jinja_list_push(r, l, v.d->key[i]);
	else if (v.k == V_STR)
		for (size_t i = 0, n; i < v.s->n; i += n) {
			for (n = 1; i + n < v.s->n && (v.s->p[i + n] & 0xc0) == 0x80; n++)
				;
			jinja_step(r, 1);
			jinja_list_push(r, l, jinja_val_str(jinja_str_slice(r, v.s, i, n)));
		}
	else if (v.k != V_UNDEF)
		jinja_fail(r, "'%s' cannot be gone through", jinja_val_type(v));
	return l;
}

/* --- from JSON --- */

static uint8_t origin_of(const json_t *message, uint8_t origin)
{
	const char *role = json_string_value(json_object_get(message, "role"));

	return role != NULL && strcmp(role, "assistant") == 0 ? JINJA_ASSISTANT : origin;
}

static struct val from_object(struct run *r, const json_t *j, uint8_t origin)
{
	struct val v = jinja_val_dict(r);
	const char *key;
	json_t *item;

	origin = origin_of(j, origin);
	json_object_foreach((json_t *)j, key, item)
		jinja_dict_set(r, v.d, jinja_val_str(jinja_str_new(r, key, strlen(key), origin)),
		    jinja_val_json(r, item, origin));
	return v;
}

static struct val from_array(struct run *r, const json_t *j, uint8_t origin)
{
	struct val v = jinja_val_list(r, false);
	json_t *item;
	size_t i;

	json_array_foreach(j, i, item)
		jinja_list_push(r, v.l, jinja_val_json(r, item, origin));
	return v;
}

struct val jinja_val_json(struct run *r, const json_t *j, uint8_t origin)
{
	struct val v = { .k = V_NONE };

	if (++r->depth > JINJA_DEPTH)
		jinja_fail(r, "a value is nested more than %d deep", JINJA_DEPTH);
	switch (json_typeof(j)) {
	case JSON_OBJECT: v = from_object(r, j, origin); break;
	case JSON_ARRAY: v = from_array(r, j, origin); break;
	case JSON_STRING: v = jinja_val_str(jinja_str_new(r, json_string_value(j),
	    json_string_length(j), origin)); break;
	case JSON_INTEGER: v = jinja_val_int(json_integer_value(j)); break;
	case JSON_REAL: v = (struct val){ .k = V_FLOAT, .f = json_real_value(j) }; break;
	case JSON_TRUE: case JSON_FALSE: v = jinja_val_bool(json_is_true(j)); break;
	default: break;
	}
	r->depth--;
	return v;
}

/* --- to text --- */

/* Python's repr of a float: the shortest that reads back. */
static const struct str *float_text(struct run *r, double f)
{
	char digits[40], *p = jinja_alloc(r, 48), *e;
	int exponent, n = 1;

	if (!isfinite(f))
		return jinja_str_of(r, isnan(f) ? "nan" : f > 0 ? "inf" : "-inf");
	while (snprintf(digits, sizeof digits, "%.*e", n - 1, f), strtod(digits, NULL) != f)
		n++;
	e = strchr(digits, 'e');
	exponent = atoi(e + 1);
	if (exponent < -4 || exponent >= 16) {
		*e = '\0';
		snprintf(p, 48, "%se%c%02u", digits, exponent < 0 ? '-' : '+',
		    (unsigned)abs(exponent) % 1000);
	} else {
		snprintf(p, 48, "%.*f", n - 1 > exponent ? n - 1 - exponent : 1, f);
	}
	return jinja_str_of(r, p);
}

struct text { struct run *r; char *p; uint8_t *from; size_t n, cap; };

static void put(struct text *t, const char *p, size_t n, const uint8_t *from, uint8_t origin)
{
	if (t->n + n > t->cap) {
		size_t cap = 2 * (t->n + n) + 64;
		char *q = jinja_alloc(t->r, cap);
		uint8_t *f = jinja_alloc(t->r, cap);

		if (t->n > 0) {
			memcpy(q, t->p, t->n);
			memcpy(f, t->from, t->n);
		}
		t->p = q, t->from = f, t->cap = cap;
	}
	memcpy(t->p + t->n, p, n);
	if (from != NULL)
		memcpy(t->from + t->n, from, n);
	else
		memset(t->from + t->n, origin, n);
	t->n += n;
}

static void puts_at(struct text *t, const char *s) { put(t, s, strlen(s), NULL, JINJA_DATA); }

static void put_str(struct text *t, const struct str *s) { put(t, s->p, s->n, s->from, s->origin); }

static const struct str *text_end(struct text *t)
{
	struct str *s = jinja_alloc(t->r, sizeof *s);

	*s = (struct str){ .p = t->p ? t->p : "", .from = t->from, .n = t->n };
	return s;
}

static uint8_t from_at(const struct str *s, size_t i) { return s->from ? s->from[i] : s->origin; }

/* A string as Python writes it in a list. */
static void put_quoted(struct text *t, const struct str *s)
{
	char quote = memchr(s->p, '\'', s->n) != NULL && memchr(s->p, '"', s->n) == NULL ? '"'
	    : '\'', esc[12];

	put(t, &quote, 1, NULL, JINJA_DATA);
	for (size_t i = 0, n; i < s->n; i += n) {
		uint32_t c = jinja_char(s, i, &n);

		if (c == '\\' || c == (unsigned char)quote)
			snprintf(esc, sizeof esc, "\\%c", (int)c);
		else if (c == '\n' || c == '\r' || c == '\t')
			snprintf(esc, sizeof esc, "\\%c", c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
		else if (!jinja_is_printable(c))
			snprintf(esc, sizeof esc, c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x"
			    : "\\U%08x", c);
		else
			snprintf(esc, sizeof esc, "%.*s", (int)n, s->p + i);
		put(t, esc, strlen(esc), NULL, from_at(s, i));
	}
	put(t, &quote, 1, NULL, JINJA_DATA);
}

static void put_repr(struct text *t, struct val v);

static void repr_list(struct text *t, const struct list *l)
{
	puts_at(t, l->tuple ? "(" : "[");
	for (int i = 0; i < l->n; i++) {
		puts_at(t, i > 0 ? ", " : "");
		put_repr(t, l->v[i]);
	}
	puts_at(t, l->tuple ? l->n == 1 ? ",)" : ")" : "]");
}

static void repr_dict(struct text *t, const struct dict *d)
{
	puts_at(t, "{");
	for (int i = 0; i < d->n; i++) {
		puts_at(t, i > 0 ? ", " : "");
		put_repr(t, d->key[i]);
		puts_at(t, ": ");
		put_repr(t, d->v[i]);
	}
	puts_at(t, "}");
}

static void put_plain(struct text *t, struct val v)
{
	char buf[32];

	switch (v.k) {
	case V_NONE: puts_at(t, "None"); break;
	case V_BOOL: puts_at(t, v.b ? "True" : "False"); break;
	case V_INT:
		snprintf(buf, sizeof buf, "%lld", (long long)v.i);
		puts_at(t, buf);
		break;
	case V_FLOAT: put_str(t, float_text(t->r, v.f)); break;
	case V_UNDEF: break;
	default:
		puts_at(t, "<");
		puts_at(t, jinja_val_type(v));
		puts_at(t, ">");
	}
}

static void put_repr(struct text *t, struct val v)
{
	jinja_step(t->r, 1);
	if (++t->r->depth > JINJA_DEPTH)
		jinja_fail(t->r, "a value is nested more than %d deep", JINJA_DEPTH);
	if (v.k == V_STR)
		put_quoted(t, v.s);
	else if (v.k == V_LIST)
		repr_list(t, v.l);
	else if (v.k == V_DICT)
		repr_dict(t, v.d);
	else if (v.k == V_UNDEF)
		puts_at(t, "Undefined");
	else
		put_plain(t, v);
	t->r->depth--;
}

const struct str *jinja_val_repr(struct run *r, struct val v)
{
	struct text t = { .r = r };

	put_repr(&t, v);
	return text_end(&t);
}

const struct str *jinja_val_text(struct run *r, struct val v)
{
	struct text t = { .r = r };

	if (v.k == V_STR)
		return v.s;
	if (v.k == V_LIST || v.k == V_DICT)
		return jinja_val_repr(r, v);
	put_plain(&t, v);
	return text_end(&t);
}

/* --- json.dumps --- */

/* A character of more than one byte as \uXXXX, with surrogates. The bytes taken. */
static size_t put_escape(struct text *t, const struct str *s, size_t i)
{
	unsigned char c = (unsigned char)s->p[i];
	size_t n = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : 2;
	uint32_t u = c & (0xffu >> (n + 1));
	char buf[16];

	for (size_t k = 1; k < n && i + k < s->n; k++)
		u = u << 6 | ((unsigned char)s->p[i + k] & 63);
	if (u >= 0x10000)
		snprintf(buf, sizeof buf, "\\u%04x\\u%04x", 0xd800 + ((u - 0x10000) >> 10),
		    0xdc00 + (u & 0x3ff));
	else
		snprintf(buf, sizeof buf, "\\u%04x", u);
	put(t, buf, strlen(buf), NULL, from_at(s, i));
	return n;
}

static void dump_string(struct text *t, const struct str *s, bool ascii)
{
	static const char from[] = "\"\\\n\r\t\b\f", to[] = "\"\\nrtbf";

	puts_at(t, "\"");
	for (size_t i = 0; i < s->n; i++) {
		unsigned char c = (unsigned char)s->p[i];
		const char *f = c ? strchr(from, c) : NULL;
		char buf[8] = { (char)c, '\0' };

		if (c >= 0x80 && ascii) {
			i += put_escape(t, s, i) - 1;
			continue;
		}
		if (f != NULL)
			snprintf(buf, sizeof buf, "\\%c", to[f - from]);
		else if (c < 32)
			snprintf(buf, sizeof buf, "\\u%04x", c);
		put(t, buf, f != NULL || c < 32 ? strlen(buf) : 1, NULL, from_at(s, i));
	}
	puts_at(t, "\"");
}

static void dump(struct text *t, struct val v, const struct dump *d, int level);

static void new_line(struct text *t, const struct dump *d, int level)
{
	if (d->indent < 0)
		return;
	puts_at(t, "\n");
	for (int i = 0; i < d->indent * level; i++)
		puts_at(t, " ");
}

static void separate(struct text *t, const struct dump *d, int level, bool first)
{
	if (!first)
		puts_at(t, d->item != NULL ? d->item : d->indent < 0 ? ", " : ",");
	new_line(t, d, level);
}

static void dump_list(struct text *t, const struct list *l, const struct dump *d, int level)
{
	puts_at(t, "[");
	for (int i = 0; i < l->n; i++) {
		separate(t, d, level + 1, i == 0);
		dump(t, l->v[i], d, level + 1);
	}
	if (l->n > 0)
		new_line(t, d, level);
	puts_at(t, "]");
}

static const struct dict *sorted(struct run *r, const struct dict *d)
{
	struct dict *s = jinja_val_dict(r).d;

	for (int i = 0; i < d->n; i++)
		jinja_dict_set(r, s, d->key[i], d->v[i]);
	for (int i = 1; i < s->n; i++)
		for (int j = i; j > 0 && jinja_val_order(r, s->key[j], s->key[j - 1]) < 0; j--) {
			struct val k = s->key[j], v = s->v[j];

			s->key[j] = s->key[j - 1], s->v[j] = s->v[j - 1];
			s->key[j - 1] = k, s->v[j - 1] = v;
			jinja_step(r, 1);
		}
	return s;
}

static void dump_dict(struct text *t, const struct dict *of, const struct dump *d, int level)
{
	const struct dict *x = d->sort ? sorted(t->r, of) : of;

	puts_at(t, "{");
	for (int i = 0; i < x->n; i++) {
		separate(t, d, level + 1, i == 0);
		if (x->key[i].k == V_STR)
			dump_string(t, x->key[i].s, d->ascii);
		else {
			puts_at(t, "\"");
			dump(t, x->key[i], d, level);
			puts_at(t, "\"");
		}
		puts_at(t, d->key != NULL ? d->key : ": ");
		dump(t, x->v[i], d, level + 1);
	}
	if (x->n > 0)
		new_line(t, d, level);
	puts_at(t, "}");
}

static void dump(struct text *t, struct val v, const struct dump *d, int level)
{
	jinja_step(t->r, 1);
	if (level > JINJA_DEPTH)
		jinja_fail(t->r, "a value is nested more than %d deep", JINJA_DEPTH);
	switch (v.k) {
	case V_STR: dump_string(t, v.s, d->ascii); break;
	case V_LIST: dump_list(t, v.l, d, level); break;
	case V_DICT: dump_dict(t, v.d, d, level); break;
	case V_NONE: puts_at(t, "null"); break;
	case V_BOOL: puts_at(t, v.b ? "true" : "false"); break;
	case V_FLOAT:
		if (!isfinite(v.f))
			puts_at(t, isnan(v.f) ? "NaN" : v.f > 0 ? "Infinity" : "-Infinity");
		else
			put_plain(t, v);
		break;
	case V_INT: put_plain(t, v); break;
	default: jinja_fail(t->r, "tojson: %s is not JSON", jinja_val_type(v));
	}
}

const struct str *jinja_val_dump(struct run *r, struct val v, const struct dump *d)
{
	struct text t = { .r = r };

	dump(&t, v, d, 0);
	return text_end(&t);
}
