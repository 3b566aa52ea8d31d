/* Filters, tests, methods and functions of templates: those that published templates use, and
 * their neighbours. */
#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "text/jinja_int.h"

/* --- arguments --- */

/* Argument i, or the one of that name; NULL: not given. */
static const struct val *arg(const struct args *a, int i, const char *name)
{
	if (i < a->n)
		return &a->v[i];
	for (int k = 0; name != NULL && k < a->nkw; k++)
		if (jinja_str_is(a->kw[k], name))
			return &a->kwv[k];
	return NULL;
}

static const struct val *need(struct run *r, const struct args *a, int i, const char *name,
    const char *of)
{
	const struct val *v = arg(a, i, name);

	if (v == NULL)
		jinja_fail(r, "%s needs an argument", of);
	return v;
}

static const struct str *text_arg(struct run *r, const struct args *a, int i, const char *name,
    const char *absent)
{
	const struct val *v = arg(a, i, name);

	return v == NULL || v->k == V_NONE ? absent != NULL ? jinja_str_of(r, absent) : NULL
	    : jinja_val_text(r, *v);
}

static int64_t int_arg(struct run *r, const struct args *a, int i, const char *name, int64_t absent)
{
	const struct val *v = arg(a, i, name);

	if (v == NULL || v->k == V_NONE)
		return absent;
	if (v->k != V_INT && v->k != V_BOOL)
		jinja_fail(r, "a whole number is wanted, not %s", jinja_val_type(*v));
	return v->k == V_BOOL ? v->b : v->i;
}

static bool flag_arg(const struct args *a, int i, const char *name, bool absent)
{
	const struct val *v = arg(a, i, name);

	return v != NULL ? jinja_val_true(*v) : absent;
}

/* --- strings --- */

static bool in_set(const struct str *set, uint32_t c)
{
	if (set == NULL)
		return jinja_is_space(c);
	for (size_t i = 0, n; i < set->n; i += n)
		if (jinja_char(set, i, &n) == c)
			return true;
	return false;
}

static const struct str *strip(struct run *r, const struct str *s, const struct str *set, int sides)
{
	size_t from = 0, to = s->n, n;

	while (sides & 1 && from < to && in_set(set, jinja_char(s, from, &n)))
		from += n;
	while (sides & 2 && to > from) {
		size_t last = to - 1;

		while (last > from && (s->p[last] & 0xc0) == 0x80)
			last--;
		if (!in_set(set, jinja_char(s, last, &n)))
			break;
		to = last;
	}
	jinja_step(r, set != NULL ? (int64_t)(set->n * (s->n - (to - from))) : 0);
	return jinja_str_slice(r, s, from, to - from);
}

static const char *find(const struct str *s, size_t from, const struct str *what)
{
	return from > s->n ? NULL : what->n == 0 ? s->p + from : memmem(s->p + from, s->n - from,
	    what->p, what->n);
}

static const struct str *replace(struct run *r, const struct str *s, const struct str *old,
    const struct str *new,
    int64_t count)
{
	const struct str *out = jinja_str_of(r, "");
	size_t at = 0;
	const char *p;

	if (old->n == 0)
		return s;
	while (count-- != 0 && (p = find(s, at, old)) != NULL) {
		jinja_step(r, 1);
		out = jinja_str_join(r, out, jinja_str_slice(r, s, at, (size_t)(p - s->p) - at));
		out = jinja_str_join(r, out, new);
		at = (size_t)(p - s->p) + old->n;
	}
	return jinja_str_join(r, out, jinja_str_slice(r, s, at, s->n - at));
}

/* The first byte at or after i of a character that is a blank (or is none). */
static size_t next_blank(const struct str *s, size_t i, bool blank)
{
	for (size_t n; i < s->n; i += n)
		if (jinja_is_space(jinja_char(s, i, &n)) == blank)
			break;
	return i;
}

static struct val split_space(struct run *r, const struct str *s, int64_t most)
{
	struct val v = jinja_val_list(r, false);

	for (size_t i = 0, from; (from = next_blank(s, i, false)) < s->n;) {
		const struct str *part;

		jinja_step(r, 1);
		i = most == 0 ? s->n : next_blank(s, from, true);
		part = jinja_str_slice(r, s, from, i - from);
		jinja_list_push(r, v.l, jinja_val_str(most-- == 0 ? strip(r, part, NULL, 2)
		    : part));
	}
	return v;
}

static struct val split(struct run *r, const struct str *s, const struct str *by, int64_t most)
{
	struct val v = jinja_val_list(r, false);
	size_t at = 0;
	const char *p;

	if (by == NULL)
		return split_space(r, s, most);
	if (by->n == 0)
		jinja_fail(r, "split: empty separator");
	while (most-- != 0 && (p = find(s, at, by)) != NULL) {
		jinja_step(r, 1);
		jinja_list_push(r, v.l,
		    jinja_val_str(jinja_str_slice(r, s, at, (size_t)(p - s->p) - at)));
		at = (size_t)(p - s->p) + by->n;
	}
	jinja_list_push(r, v.l, jinja_val_str(jinja_str_slice(r, s, at, s->n - at)));
	return v;
}

/* From the end: the last `most` separators. */
static struct val rsplit(struct run *r, const struct str *s, const struct str *by, int64_t most)
{
	struct list *all;
	struct val v = jinja_val_list(r, false);
	size_t joined = 0;

	if (by == NULL || most < 0)
		return split(r, s, by, most);
	all = split(r, s, by, -1).l;
	if (all->n - 1 <= most)
		return (struct val){ .k = V_LIST, .l = all };
	for (int i = 0; i < all->n - (int)most; i++)
		joined += all->v[i].s->n + (i > 0 ? by->n : 0);
	jinja_list_push(r, v.l, jinja_val_str(jinja_str_slice(r, s, 0, joined)));
	for (int i = all->n - (int)most; i < all->n; i++)
		jinja_list_push(r, v.l, all->v[i]);
	return v;
}

static struct val split_lines(struct run *r, const struct str *s)
{
	struct val v = jinja_val_list(r, false);
	size_t from = 0;

	for (size_t i = 0, n; i < s->n; i += n) {
		if (!jinja_ends_line(jinja_char(s, i, &n)))
			continue;
		jinja_step(r, 1);
		jinja_list_push(r, v.l, jinja_val_str(jinja_str_slice(r, s, from, i - from)));
		n += s->p[i] == '\r' && i + 1 < s->n && s->p[i + 1] == '\n';
		from = i + n;
	}
	if (from < s->n)
		jinja_list_push(r, v.l, jinja_val_str(jinja_str_slice(r, s, from, s->n - from)));
	return v;
}

static bool starts(const struct str *s, const struct str *with, bool at_end)
{
	return with->n <= s->n && memcmp(at_end ? s->p + s->n - with->n : s->p, with->p, with->n) ==
	    0;
}

static struct val starts_with(struct run *r, const struct str *s, struct val v, bool at_end)
{
	if (v.k == V_STR)
		return jinja_val_bool(starts(s, v.s, at_end));
	if (v.k != V_LIST)
		jinja_fail(r, "startswith and endswith need a string, not %s", jinja_val_type(v));
	for (int i = 0; i < v.l->n; i++)
		if (v.l->v[i].k == V_STR && starts(s, v.l->v[i].s, at_end))
			return jinja_val_bool(true);
	return jinja_val_bool(false);
}

static struct val position(struct run *r, const struct str *s, const struct str *what, bool last,
    bool must)
{
	const char *p = NULL, *q;

	for (size_t at = 0; (q = find(s, at, what)) != NULL && (p == NULL || last);
	    at = (size_t)(q - s->p) + 1) {
		jinja_step(r, 1);
		p = q;
	}
	if (p == NULL && must)
		jinja_fail(r, "substring not found");
	return jinja_val_int(p == NULL ? -1
	    : jinja_str_count(jinja_str_slice(r, s, 0, (size_t)(p - s->p))));
}

static struct val join(struct run *r, struct val v, const struct str *by,
    const struct str *attribute)
{
	struct list *l = jinja_val_items(r, v);
	const struct str *out = jinja_str_of(r, "");

	for (int i = 0; i < l->n; i++) {
		jinja_step(r, 1);
		if (i > 0)
			out = jinja_str_join(r, out, by);
		out = jinja_str_join(r, out, jinja_val_text(r, attribute != NULL
		    ? jinja_attr(r, l->v[i], attribute) : l->v[i]));
	}
	return jinja_val_str(out);
}

static const struct str *pad(struct run *r, const struct str *s, int64_t width, char fill, int left)
{
	int64_t n = width - jinja_str_count(s), before = left == 2 ? n / 2 : left ? 0 : n;
	char *p;

	if (n <= 0)
		return s;
	if (n > 1 << 20)
		jinja_fail(r, "a padded string is too long");
	p = memset(jinja_alloc(r, (size_t)n), fill, (size_t)n);
	return jinja_str_join(r, jinja_str_join(r, jinja_str_new(r, p, (size_t)before, JINJA_DATA),
	    s),
	    jinja_str_new(r, p, (size_t)(n - before), JINJA_DATA));
}

/* "{} {0} {name}".format(..): fields without a format of their own. */
static struct val format(struct run *r, const struct str *s, const struct args *a)
{
	const struct str *out = jinja_str_of(r, "");
	int next = 0;

	for (size_t i = 0; i < s->n; i++) {
		const char *close;
		const struct str *field;
		const struct val *v;

		if ((s->p[i] == '{' || s->p[i] == '}') && i + 1 < s->n && s->p[i + 1] == s->p[i])
			i++;
		else if (s->p[i] == '{') {
			if ((close = memchr(s->p + i, '}', s->n - i)) == NULL)
				jinja_fail(r, "format: '{' without '}'");
			field = jinja_str_slice(r, s, i + 1, (size_t)(close - s->p) - i - 1);
			v = NULL;
			if (field->n == 0 || isdigit((unsigned char)field->p[0]))
				v = arg(a, field->n == 0 ? next++ : atoi(field->p), NULL);
			for (int k = 0; v == NULL && k < a->nkw; k++)
				v = jinja_str_same(a->kw[k], field) ? &a->kwv[k] : NULL;
			if (v == NULL)
				jinja_fail(r, "format: no value for '{%.*s}'", (int)field->n,
				    field->p);
			out = jinja_str_join(r, out, jinja_val_text(r, *v));
			i = (size_t)(close - s->p);
			continue;
		}
		out = jinja_str_join(r, out, jinja_str_slice(r, s, i, 1));
	}
	return jinja_val_str(out);
}

/* --- methods --- */

enum { M_SPLIT, M_RSPLIT, M_SPLITLINES, M_STRIP, M_LSTRIP, M_RSTRIP, M_STARTS, M_ENDS, M_UPPER,
    M_LOWER, M_TITLE, M_CAPITAL,
	M_REPLACE, M_FIND, M_RFIND, M_INDEX, M_RINDEX, M_COUNT, M_JOIN, M_FORMAT, M_ISDIGIT,
	    M_ISALPHA, M_ISALNUM, M_ISSPACE,
	M_ISUPPER, M_ISLOWER, M_NOPREFIX, M_NOSUFFIX, M_ZFILL, M_LJUST, M_RJUST, M_CENTER,
	    M_STRINGS };

static const char *const string_methods[M_STRINGS] = { "split", "rsplit", "splitlines", "strip",
    "lstrip", "rstrip",
	"startswith", "endswith", "upper", "lower", "title", "capitalize", "replace", "find",
	    "rfind", "index", "rindex",
	"count", "join", "format", "isdigit", "isalpha", "isalnum", "isspace", "isupper", "islower",
	    "removeprefix",
	"removesuffix", "zfill", "ljust", "rjust", "center" };
static const char *const dict_methods[] = { "items", "keys", "values", "get", "copy", NULL };
static const char *const list_methods[] = { "index", "count", "copy", NULL };
/* The sandbox of transformers forbids what changes a value. */
static const char *const forbidden[] = { "append", "extend", "insert", "pop", "remove", "clear",
    "update", "setdefault",
	"popitem", "sort", "reverse", NULL };

static int name_in(const struct str *name, const char *const *list, int n)
{
	for (int i = 0; n > 0 ? i < n : list[i] != NULL; i++)
		if (jinja_str_is(name, list[i]))
			return i;
	return -1;
}

bool jinja_lib_has_method(struct val v, const struct str *name)
{
	if (v.k == V_STR)
		return name_in(name, string_methods, M_STRINGS) >= 0;
	if (v.k == V_DICT)
		return name_in(name, dict_methods, 0) >= 0 || (name_in(name, forbidden, 0) >= 3 &&
		    !jinja_str_is(name, "remove") &&
		    !jinja_str_is(name, "sort") && !jinja_str_is(name, "reverse") &&
		    jinja_dict_find(v.d, name) == NULL);
	return v.k == V_LIST && (name_in(name, list_methods, 0) >= 0 || name_in(name, forbidden, 0)
	    >= 0);
}

static struct val string_search(struct run *r, int m, const struct str *s, const struct args *a)
{
	const struct str *what = jinja_val_text(r, *need(r, a, 0, NULL, "a search"));
	int64_t n = 0;

	if (m != M_COUNT)
		return position(r, s, what, m == M_RFIND || m == M_RINDEX, m == M_INDEX ||
		    m == M_RINDEX);
	for (const char *p = s->p; what->n > 0 && (p = find(s, (size_t)(p - s->p), what)) != NULL;
	    p += what->n)
		n++;
	return jinja_val_int(n);
}

static const struct str *string_affix(struct run *r, const struct str *s, const struct args *a,
    bool at_end)
{
	const struct str *what = jinja_val_text(r, *need(r, a, 0, NULL, "removeprefix"));

	return starts(s, what, at_end) ? jinja_str_slice(r, s, at_end ? 0 : what->n, s->n - what->n)
	    : s;
}

static struct val string_method(struct run *r, int m, const struct str *s, const struct args *a)
{
	const struct val *v;

	switch (m) {
	case M_SPLIT: return split(r, s, text_arg(r, a, 0, "sep", NULL),
	    int_arg(r, a, 1, "maxsplit", -1));
	case M_RSPLIT: return rsplit(r, s, text_arg(r, a, 0, "sep", NULL),
	    int_arg(r, a, 1, "maxsplit", -1));
	case M_SPLITLINES: return split_lines(r, s);
	case M_STRIP: return jinja_val_str(strip(r, s, text_arg(r, a, 0, "chars", NULL), 3));
	case M_LSTRIP: return jinja_val_str(strip(r, s, text_arg(r, a, 0, "chars", NULL), 1));
	case M_RSTRIP: return jinja_val_str(strip(r, s, text_arg(r, a, 0, "chars", NULL), 2));
	case M_STARTS: case M_ENDS: return starts_with(r, s, *need(r, a, 0, NULL, "startswith"),
	    m == M_ENDS);
	case M_UPPER: return jinja_val_str(jinja_case(r, s, JINJA_UPPERED));
	case M_LOWER: return jinja_val_str(jinja_case(r, s, JINJA_LOWERED));
	case M_TITLE: return jinja_val_str(jinja_case(r, s, JINJA_TITLED));
	case M_CAPITAL: return jinja_val_str(jinja_case(r, s, JINJA_CAPITAL));
	case M_REPLACE:
		v = need(r, a, 1, "new", "replace");
		return jinja_val_str(replace(r, s,
		    jinja_val_text(r, *need(r, a, 0, "old", "replace")), jinja_val_text(r, *v),
		    int_arg(r, a, 2, "count", -1)));
	case M_FIND: case M_RFIND: case M_INDEX: case M_RINDEX: case M_COUNT: return string_search(
	    r, m, s, a);
	case M_JOIN: return join(r, *need(r, a, 0, NULL, "join"), s, NULL);
	case M_FORMAT: return format(r, s, a);
	case M_NOPREFIX: case M_NOSUFFIX: return jinja_val_str(string_affix(r, s, a,
	    m == M_NOSUFFIX));
	case M_ZFILL: return jinja_val_str(pad(r, s, int_arg(r, a, 0, NULL, 0), '0', 0));
	case M_LJUST: return jinja_val_str(pad(r, s, int_arg(r, a, 0, NULL, 0), ' ', 1));
	case M_RJUST: return jinja_val_str(pad(r, s, int_arg(r, a, 0, NULL, 0), ' ', 0));
	case M_CENTER: return jinja_val_str(pad(r, s, int_arg(r, a, 0, NULL, 0), ' ', 2));
	default: return jinja_val_bool(jinja_all(s, (enum jinja_kind)(m - M_ISDIGIT)));
	}
}

static struct val pairs(struct run *r, const struct dict *d)
{
	struct val v = jinja_val_list(r, false);

	for (int i = 0; i < d->n; i++) {
		struct val p = jinja_val_list(r, true);

		jinja_list_push(r, p.l, d->key[i]);
		jinja_list_push(r, p.l, d->v[i]);
		jinja_list_push(r, v.l, p);
	}
	return v;
}

static struct val dict_method(struct run *r, int m, struct val self, const struct args *a)
{
	const struct val *key, *v, *absent;
	struct val out = jinja_val_list(r, false);

	switch (m) {
	case 0: return pairs(r, self.d);
	case 1: return (struct val){ .k = V_LIST, .l = jinja_val_items(r, self) };
	case 2:
		for (int i = 0; i < self.d->n; i++)
			jinja_list_push(r, out.l, self.d->v[i]);
		return out;
	case 3:
		key = need(r, a, 0, "key", "get");
		absent = arg(a, 1, "default");
		v = key->k == V_LIST || key->k == V_DICT || key->k == V_UNDEF ? NULL
		    : jinja_dict_get(self.d, *key);
		return v != NULL ? *v : absent != NULL ? *absent : (struct val){ .k = V_NONE };
	default: return self;		/* nothing can change it */
	}
}

static struct val list_method(struct run *r, int m, struct val self, const struct args *a)
{
	int64_t n = 0;
	struct val v;

	if (m == 2)
		return self;
	v = *need(r, a, 0, NULL, "a search");
	for (int i = 0; i < self.l->n; i++)
		if (jinja_val_equal(r, self.l->v[i], v)) {
			if (m == 0)
				return jinja_val_int(i);
			n++;
		}
	if (m == 0)
		jinja_fail(r, "index: the value is not in the list");
	return jinja_val_int(n);
}

struct val jinja_lib_method(struct run *r, const struct method *m, const struct args *a)
{
	int i;

	if (m->self.k == V_LOOP)
		return a->n > 0 ? a->v[m->self.loop->at % a->n] : jinja_val_undef("cycle");
	if (m->self.k == V_STR)
		return string_method(r, name_in(m->name, string_methods, M_STRINGS), m->self.s, a);
	i = name_in(m->name, m->self.k == V_DICT ? dict_methods : list_methods, 0);
	if (i < 0)
		jinja_fail(r, "'%.*s' changes a %s, which templates may not", (int)m->name->n,
		    m->name->p, jinja_val_type(m->self));
	return m->self.k == V_DICT ? dict_method(r, i, m->self, a) : list_method(r, i, m->self, a);
}

/* --- tests --- */

static bool is_number(struct val v) { return v.k == V_INT || v.k == V_FLOAT || v.k == V_BOOL; }

static bool compared(struct run *r, const struct str *name, struct val v, struct val w, bool *known)
{
	static const char *const names[] = { "eq", "==", "equalto", "ne", "!=", "lt", "<",
	    "lessthan", "gt", ">", "greaterthan",
	    "le", "<=", "ge", ">=", NULL };
	int i = name_in(name, names, 0);

	*known = i >= 0;
	if (i < 0)
		return false;
	if (i < 5)
		return jinja_val_equal(r, v, w) == (i < 3);
	i = i < 8 ? 0 : i < 11 ? 1 : i < 13 ? 2 : 3;
	return i == 0 ? jinja_val_order(r, v, w) < 0 : i == 1 ? jinja_val_order(r, v, w) > 0
	    : i == 2 ? jinja_val_order(r, v, w) <= 0
	    : jinja_val_order(r, v, w) >= 0;
}

static bool member(struct run *r, struct val v, struct val in)
{
	struct list *l;

	if (in.k == V_STR)
		return v.k == V_STR && find(in.s, 0, v.s) != NULL;
	l = jinja_val_items(r, in);
	for (int i = 0; i < l->n; i++)
		if (jinja_val_equal(r, l->v[i], v))
			return true;
	return false;
}

static bool case_is(const struct str *s, int (*other)(int))
{
	for (size_t i = 0; i < s->n; i++)
		if (other((unsigned char)s->p[i]))
			return false;
	return true;
}

static bool type_is(struct run *r, const struct str *name, struct val v)
{
	if (jinja_str_is(name, "defined"))
		return v.k != V_UNDEF;
	if (jinja_str_is(name, "undefined"))
		return v.k == V_UNDEF;
	if (jinja_str_is(name, "none"))
		return v.k == V_NONE;
	if (jinja_str_is(name, "string"))
		return v.k == V_STR;
	if (jinja_str_is(name, "mapping"))
		return v.k == V_DICT;
	if (jinja_str_is(name, "iterable"))
		return v.k == V_STR || v.k == V_LIST || v.k == V_DICT || v.k == V_UNDEF;
	if (jinja_str_is(name, "sequence"))
		return v.k == V_STR || v.k == V_LIST || v.k == V_DICT || v.k == V_UNDEF;
	if (jinja_str_is(name, "number"))
		return is_number(v);
	if (jinja_str_is(name, "integer"))
		return v.k == V_INT;
	if (jinja_str_is(name, "float"))
		return v.k == V_FLOAT;
	if (jinja_str_is(name, "boolean"))
		return v.k == V_BOOL;
	if (jinja_str_is(name, "true") || jinja_str_is(name, "false"))
		return v.k == V_BOOL && v.b == jinja_str_is(name, "true");
	if (jinja_str_is(name, "callable"))
		return v.k == V_FUNC || v.k == V_METHOD || v.k == V_MACRO;
	if (jinja_str_is(name, "lower") || jinja_str_is(name, "upper"))
		return case_is(jinja_val_text(r, v), jinja_str_is(name, "lower") ? isupper
		    : islower);
	jinja_fail(r, "unknown test '%.*s'", (int)name->n, name->p);
}

bool jinja_lib_test(struct run *r, const struct str *name, struct val v, const struct args *a)
{
	bool known = false, yes = a->n > 0 && compared(r, name, v, a->v[0], &known);
	int64_t by;

	if (known)
		return yes;
	if (jinja_str_is(name, "in"))
		return member(r, v, *need(r, a, 0, NULL, "in"));
	if (jinja_str_is(name, "sameas"))
		return v.k == need(r, a, 0, NULL, "sameas")->k && jinja_val_equal(r, v, a->v[0]);
	if (jinja_str_is(name, "odd") || jinja_str_is(name, "even") ||
	    jinja_str_is(name, "divisibleby")) {
		by = jinja_str_is(name, "divisibleby") ? int_arg(r, a, 0, "num", 1) : 2;
		if (v.k != V_INT || by == 0)
			jinja_fail(r, "'%.*s' needs a whole number", (int)name->n, name->p);
		return (v.i % by == 0) != jinja_str_is(name, "odd");
	}
	return type_is(r, name, v);
}

/* --- filters --- */

static struct val tojson(struct run *r, struct val v, const struct args *a)
{
	const struct val *sep = arg(a, 2, "separators"), *indent = arg(a, 1, "indent");
	struct dump d = { .ascii = flag_arg(a, 0, "ensure_ascii", false), .indent = -1,
	    .sort = flag_arg(a, 3, "sort_keys", false) };
	const struct str *text;
	char *copy[2];

	if (indent != NULL && indent->k == V_INT)
		d.indent = indent->i < 0 ? 0 : indent->i > 64 ? 64 : (int)indent->i;
	if (sep != NULL && sep->k == V_LIST && sep->l->n == 2)
		for (int i = 0; i < 2; i++) {
			text = jinja_val_text(r, sep->l->v[i]);
			copy[i] = jinja_alloc(r, text->n + 1);
			memcpy(copy[i], text->p, text->n);
			copy[i][text->n] = '\0';
			*(i == 0 ? &d.item : &d.key) = copy[i];
		}
	return jinja_val_str(jinja_val_dump(r, v, &d));
}

static struct val length(struct run *r, struct val v)
{
	if (v.k == V_UNDEF)
		return jinja_val_int(0);
	if (v.k == V_STR)
		return jinja_val_int(jinja_str_count(v.s));
	if (v.k != V_LIST && v.k != V_DICT)
		jinja_fail(r, "%s has no length", jinja_val_type(v));
	return jinja_val_int(v.k == V_LIST ? v.l->n : v.d->n);
}

/* Path of attributes and indices: "a.b.0". */
static struct val path(struct run *r, struct val v, const struct str *p)
{
	struct list *parts = split(r, p, jinja_str_of(r, "."), -1).l;

	for (int i = 0; i < parts->n; i++) {
		const struct str *s = parts->v[i].s;

		if (v.k == V_UNDEF)
			return v;
		if (v.k == V_LIST && s->n > 0 && isdigit((unsigned char)s->p[0]))
			v = atoi(s->p) < v.l->n ? v.l->v[atoi(s->p)] : jinja_val_undef("element");
		else if (v.k == V_DICT && jinja_dict_find(v.d, s) != NULL)
			v = *jinja_dict_find(v.d, s);
		else
			v = jinja_attr(r, v, s);
	}
	return v;
}

/* select, reject, selectattr, rejectattr: at says where the name of the test is. */
/* What select and map go through: anything that is false is nothing. */
static struct list *some(struct run *r, struct val v)
{
	return jinja_val_true(v) ? jinja_val_items(r, v) : jinja_val_list(r, false).l;
}

static struct val chosen(struct run *r, struct val v, const struct args *a, bool attribute,
    bool keep)
{
	struct list *l = some(r, v);
	struct val out = jinja_val_list(r, false);
	const struct str *of = attribute ? jinja_val_text(r, *need(r, a, 0, NULL, "selectattr"))
	    : NULL;
	int at = attribute;

	for (int i = 0; i < l->n; i++) {
		struct val item = of != NULL ? path(r, l->v[i], of) : l->v[i];
		struct args rest = { .n = a->n - at - 1, .v = a->v + at + 1 };
		bool yes;

		jinja_step(r, 1);
		rest.n = rest.n < 0 ? 0 : rest.n;
		yes = a->n > at ? jinja_lib_test(r, jinja_val_text(r, a->v[at]), item, &rest)
		    : jinja_val_true(item);
		if (yes == keep)
			jinja_list_push(r, out.l, l->v[i]);
	}
	return out;
}

static struct val map(struct run *r, struct val v, const struct args *a)
{
	struct list *l = some(r, v);
	struct val out = jinja_val_list(r, false);
	const struct val *attribute = arg(a, a->n, "attribute"), *absent = arg(a, a->n, "default");
	struct args rest = { .n = a->n > 0 ? a->n - 1 : 0, .v = a->v + 1, .nkw = a->nkw,
	    .kw = a->kw, .kwv = a->kwv };

	for (int i = 0; i < l->n; i++) {
		struct val item;

		jinja_step(r, 1);
		if (attribute != NULL)
			item = path(r, l->v[i], jinja_val_text(r, *attribute));
		else
			item = jinja_lib_filter(r, jinja_val_text(r, *need(r, a, 0, NULL, "map")),
			    l->v[i], &rest);
		jinja_list_push(r, out.l, item.k == V_UNDEF && absent != NULL ? *absent : item);
	}
	return out;
}

static struct val sort_key(struct run *r, struct val v, const struct str *attribute, bool exact)
{
	if (attribute != NULL)
		v = path(r, v, attribute);
	return v.k == V_STR && !exact ? jinja_val_str(jinja_case(r, v.s, JINJA_LOWERED)) : v;
}

static struct val sorted(struct run *r, struct val v, const struct str *attribute, bool down,
    bool exact)
{
	struct list *in = jinja_val_items(r, v);
	struct val out = jinja_val_list(r, false);

	for (int i = 0; i < in->n; i++) {
		struct val key = sort_key(r, in->v[i], attribute, exact);
		int at = i;

		jinja_list_push(r, out.l, in->v[i]);
		for (; at > 0; at--) {		/* equal ones keep their order */
			int c = jinja_val_order(r, sort_key(r, out.l->v[at - 1], attribute, exact),
			    key);

			jinja_step(r, 1);
			if (down ? c >= 0 : c <= 0)
				break;
			out.l->v[at] = out.l->v[at - 1];
		}
		out.l->v[at] = in->v[i];
	}
	return out;
}

static struct val unique(struct run *r, struct val v)
{
	struct list *in = jinja_val_items(r, v);
	struct val out = jinja_val_list(r, false);

	for (int i = 0; i < in->n; i++) {
		bool seen = false;

		for (int k = 0; k < out.l->n && !seen; k++)
			seen = jinja_val_equal(r, sort_key(r, out.l->v[k], NULL, false),
			    sort_key(r, in->v[i], NULL, false));
		if (!seen)
			jinja_list_push(r, out.l, in->v[i]);
	}
	return out;
}

static struct val reversed(struct run *r, struct val v)
{
	struct list *in = jinja_val_items(r, v);
	struct val out = v.k == V_STR ? jinja_val_str(jinja_str_of(r, ""))
	    : jinja_val_list(r, false);

	for (int i = in->n - 1; i >= 0; i--)
		if (v.k == V_STR)
			out.s = jinja_str_join(r, out.s, in->v[i].s);
		else
			jinja_list_push(r, out.l, in->v[i]);
	return out;
}

static struct val indent(struct run *r, const struct str *s, const struct args *a)
{
	const struct val *w = arg(a, 0, "width");
	bool first = flag_arg(a, 1, "first", false), blank = flag_arg(a, 2, "blank", false);
	const struct str *by = w != NULL && w->k == V_STR ? w->s : pad(r, jinja_str_of(r, ""),
	    int_arg(r, a, 0, "width", 4), ' ', 0);
	struct list *lines = split(r, s, jinja_str_of(r, "\n"), -1).l;
	const struct str *out = jinja_str_of(r, "");

	for (int i = 0; i < lines->n; i++) {
		if (i > 0)
			out = jinja_str_join(r, out, jinja_str_of(r, "\n"));
		if (i == 0 ? first : blank || lines->v[i].s->n > 0)
			out = jinja_str_join(r, out, by);
		out = jinja_str_join(r, out, lines->v[i].s);
	}
	return jinja_val_str(out);
}

static struct val to_number(struct run *r, struct val v, const struct args *a, bool real)
{
	const struct val zero = { .k = V_FLOAT };
	const struct val *absent = arg(a, 0, "default");
	const struct str *s;
	char text[64], *end;
	double f;

	if (is_number(v))
		f = v.k == V_FLOAT ? v.f : v.k == V_BOOL ? v.b : (double)v.i;
	else {
		s = v.k == V_STR ? strip(r, v.s, NULL, 3) : jinja_str_of(r, "");
		snprintf(text, sizeof text, "%.*s", (int)(s->n < 63 ? s->n : 63), s->p);
		f = strtod(text, &end);
		if (end == text || *end != '\0' || !isfinite(f))
			return absent != NULL ? *absent : real ? zero : jinja_val_int(0);
	}
	if (real)
		return (struct val){ .k = V_FLOAT, .f = f };
	return v.k == V_INT ? v : jinja_val_int(fabs(f) < 9e18 ? (int64_t)f : 0);
}

static struct val rounded(struct run *r, struct val v, const struct args *a)
{
	int64_t digits = int_arg(r, a, 0, "precision", 0);
	const struct str *how = text_arg(r, a, 1, "method", "common");
	double f = to_number(r, v, &(struct args){ 0 }, true).f, by = pow(10, (double)digits);

	if (jinja_str_is(how, "ceil"))
		f = ceil(f * by) / by;
	else if (jinja_str_is(how, "floor"))
		f = floor(f * by) / by;
	else {
		char text[400];

		snprintf(text, sizeof text, "%.*f", digits < 0 ? 0 : digits > 50 ? 50 : (int)digits,
		    f);
		f = digits >= 0 ? strtod(text, NULL) : nearbyint(f * by) / by;
	}
	return (struct val){ .k = V_FLOAT, .f = f };
}

static struct val best(struct run *r, struct val v, bool high)
{
	struct list *l = jinja_val_items(r, v);
	struct val b = l->n > 0 ? l->v[0] : jinja_val_undef("the best of nothing");

	for (int i = 1; i < l->n; i++)
		if ((jinja_val_order(r, l->v[i], b) > 0) == high && !jinja_val_equal(r, l->v[i], b))
			b = l->v[i];
	return b;
}

static struct val sum(struct run *r, struct val v, const struct str *attribute)
{
	struct list *l = jinja_val_items(r, v);
	double real = 0;
	int64_t n = 0;
	bool whole = true;

	for (int i = 0; i < l->n; i++) {
		struct val x = attribute != NULL ? path(r, l->v[i], attribute) : l->v[i];

		if (!is_number(x))
			jinja_fail(r, "sum: %s is no number", jinja_val_type(x));
		whole = whole && x.k != V_FLOAT;
		real += x.k == V_FLOAT ? x.f : x.k == V_BOOL ? x.b : (double)x.i;
		n += x.k == V_FLOAT ? 0 : x.k == V_BOOL ? x.b : x.i;
	}
	return whole ? jinja_val_int(n) : (struct val){ .k = V_FLOAT, .f = real };
}

static struct val batch(struct run *r, struct val v, int64_t size)
{
	struct list *l = jinja_val_items(r, v);
	struct val out = jinja_val_list(r, false);

	if (size < 1)
		jinja_fail(r, "batch: the size is %lld", (long long)size);
	for (int i = 0; i < l->n; i++) {
		if (i % size == 0)
			jinja_list_push(r, out.l, jinja_val_list(r, false));
		jinja_list_push(r, out.l->v[out.l->n - 1].l, l->v[i]);
	}
	return out;
}

static const struct str *escaped(struct run *r, const struct str *s)
{
	static const char *const pair[][2] = { { "&", "&amp;" }, { "<", "&lt;" }, { ">", "&gt;" },
	    { "\"", "&#34;" },
	    { "'", "&#39;" } };

	for (size_t i = 0; i < sizeof pair / sizeof *pair; i++)
		s = replace(r, s, jinja_str_of(r, pair[i][0]), jinja_str_of(r, pair[i][1]), -1);
	return s;
}

static struct val by_default(const struct args *a, struct val v)
{
	const struct val *d = arg(a, 0, "default_value");
	bool falsy = flag_arg(a, 1, "boolean", false);

	if (v.k != V_UNDEF && (!falsy || jinja_val_true(v)))
		return v;
	return d != NULL ? *d : jinja_val_str(&(const struct str){ .p = "", .origin = JINJA_OWN });
}

static struct val end_of(struct run *r, struct val v, bool last)
{
	struct list *l = jinja_val_items(r, v);

	return l->n > 0 ? l->v[last ? l->n - 1 : 0]
	    : jinja_val_undef("the first or last of nothing");
}

static struct val to_list(struct run *r, struct val v)
{
	struct list *l = jinja_val_items(r, v);
	struct val out = jinja_val_list(r, false);

	for (int i = 0; i < l->n; i++)
		jinja_list_push(r, out.l, l->v[i]);
	return out;
}

static struct val dict_sort(struct run *r, struct val v, const struct args *a)
{
	const struct str *by = text_arg(r, a, 1, "by", "key");

	if (v.k != V_DICT)
		jinja_fail(r, "dictsort is not for %s", jinja_val_type(v));
	return sorted(r, pairs(r, v.d), jinja_str_of(r, jinja_str_is(by, "value") ? "1" : "0"),
	    flag_arg(a, 2, "reverse", false),
	    flag_arg(a, 0, "case_sensitive", false));
}

static struct val items(struct run *r, struct val v)
{
	if (v.k != V_DICT && v.k != V_UNDEF)
		jinja_fail(r, "items is not for %s", jinja_val_type(v));
	return v.k == V_UNDEF ? jinja_val_list(r, false) : pairs(r, v.d);
}

static struct val absolute(struct run *r, struct val v)
{
	if (v.k != V_INT && v.k != V_FLOAT)
		jinja_fail(r, "abs is not for %s", jinja_val_type(v));
	return v.k == V_INT ? jinja_val_int(v.i < 0 ? -v.i : v.i) : (struct val){ .k = V_FLOAT,
	    .f = fabs(v.f) };
}

enum { F_TOJSON, F_LENGTH, F_COUNT, F_LOWER, F_UPPER, F_TRIM, F_STRING, F_SAFE, F_ITEMS,
    F_SELECTATTR, F_REJECTATTR, F_SELECT,
	F_REJECT, F_MAP, F_JOIN, F_CAPITALIZE, F_TITLE, F_REPLACE, F_DEFAULT, F_D, F_FIRST, F_LAST,
	    F_LIST, F_INT, F_FLOAT,
	F_DICTSORT, F_UNIQUE, F_SORT, F_REVERSE, F_INDENT, F_ROUND, F_ABS, F_BATCH, F_ESCAPE, F_E,
	    F_MIN, F_MAX, F_SUM, F_ATTR,
	F_WORDCOUNT, F_FORMAT, F_ALL };

static const char *const filters[F_ALL] = { "tojson", "length", "count", "lower", "upper", "trim",
    "string", "safe", "items",
	"selectattr", "rejectattr", "select", "reject", "map", "join", "capitalize", "title",
	    "replace", "default", "d", "first",
	"last", "list", "int", "float", "dictsort", "unique", "sort", "reverse", "indent", "round",
	    "abs", "batch", "escape",
	"e", "min", "max", "sum", "attr", "wordcount", "format" };

static struct val list_filter(struct run *r, int f, struct val v, const struct args *a)
{
	switch (f) {
	case F_SELECTATTR: case F_REJECTATTR: return chosen(r, v, a, true, f == F_SELECTATTR);
	case F_SELECT: case F_REJECT: return chosen(r, v, a, false, f == F_SELECT);
	case F_MAP: return map(r, v, a);
	case F_FIRST: case F_LAST: return end_of(r, v, f == F_LAST);
	case F_LIST: return to_list(r, v);
	case F_DICTSORT: return dict_sort(r, v, a);
	case F_UNIQUE: return unique(r, v);
	case F_SORT:
		return sorted(r, v, text_arg(r, a, 2, "attribute", NULL), flag_arg(a, 0, "reverse",
		    false),
		    flag_arg(a, 1, "case_sensitive", false));
	case F_REVERSE: return reversed(r, v);
	case F_BATCH: return batch(r, v, int_arg(r, a, 0, "linecount", 1));
	case F_MIN: case F_MAX: return best(r, v, f == F_MAX);
	case F_SUM: return sum(r, v, text_arg(r, a, 0, "attribute", NULL));
	default: return items(r, v);
	}
}

static struct val text_filter(struct run *r, int f, struct val v, const struct args *a)
{
	const struct str *s = jinja_val_text(r, v);

	switch (f) {
	case F_LOWER: return jinja_val_str(jinja_case(r, s, JINJA_LOWERED));
	case F_UPPER: return jinja_val_str(jinja_case(r, s, JINJA_UPPERED));
	case F_CAPITALIZE: return jinja_val_str(jinja_case(r, s, JINJA_CAPITAL));
	case F_TITLE: return jinja_val_str(jinja_case(r, s, JINJA_WORDS));
	case F_TRIM: return jinja_val_str(strip(r, s, text_arg(r, a, 0, "chars", NULL), 3));
	case F_REPLACE:
		return jinja_val_str(replace(r, s,
		    jinja_val_text(r, *need(r, a, 0, "s", "replace")),
		    jinja_val_text(r, *need(r, a, 1, "new", "replace")),
		    int_arg(r, a, 2, "count", -1)));
	case F_INDENT: return indent(r, s, a);
	case F_ESCAPE: case F_E: return jinja_val_str(escaped(r, s));
	case F_WORDCOUNT: return jinja_val_int(split_space(r, s, -1).l->n);
	default: return jinja_val_str(s);	/* string, safe */
	}
}

struct val jinja_lib_filter(struct run *r, const struct str *name, struct val v,
    const struct args *a)
{
	int f = name_in(name, filters, F_ALL);

	switch (f) {
	case -1: jinja_fail(r, "unknown filter '%.*s'", (int)name->n, name->p);
	case F_TOJSON: return tojson(r, v, a);
	case F_LENGTH: case F_COUNT: return length(r, v);
	case F_DEFAULT: case F_D: return by_default(a, v);
	case F_INT: case F_FLOAT: return to_number(r, v, a, f == F_FLOAT);
	case F_ROUND: return rounded(r, v, a);
	case F_ABS: return absolute(r, v);
	case F_JOIN: return join(r, v, text_arg(r, a, 0, "d", ""), text_arg(r, a, 1, "attribute",
	    NULL));
	case F_ATTR: return jinja_attr(r, v, jinja_val_text(r, *need(r, a, 0, "name", "attr")));
	case F_FORMAT: jinja_fail(r, "the filter format is not supported: use %%");
	case F_LOWER: case F_UPPER: case F_CAPITALIZE: case F_TITLE: case F_TRIM: case F_REPLACE:
	    case F_INDENT: case F_ESCAPE:
	case F_E: case F_WORDCOUNT: case F_STRING: case F_SAFE:
		return text_filter(r, f, v, a);
	default: return list_filter(r, f, v, a);
	}
}

/* --- functions --- */

enum { FN_NAMESPACE, FN_RAISE, FN_RANGE, FN_STRFTIME, FN_DICT, FN_ALL };

static const char *const functions[FN_ALL] = { "namespace", "raise_exception", "range",
    "strftime_now", "dict" };

int jinja_lib_find_func(const struct str *name) { return name_in(name, functions, FN_ALL); }

static struct val range(struct run *r, const struct args *a)
{
	int64_t from = a->n > 1 ? int_arg(r, a, 0, NULL, 0) : 0, to = int_arg(r, a, a->n > 1, NULL,
	    0);
	int64_t step = int_arg(r, a, 2, NULL, 1);
	struct val v = jinja_val_list(r, false);

	if (step == 0)
		jinja_fail(r, "range: the step is zero");
	if (from < -(1LL << 40) || from > 1LL << 40 || to < -(1LL << 40) || to > 1LL << 40 ||
	    (to - from) / step > JINJA_RANGE)
		jinja_fail(r, "range: more than %d numbers", JINJA_RANGE);
	for (int64_t i = from; step > 0 ? i < to : i > to; i += step) {
		jinja_step(r, 1);
		jinja_list_push(r, v.l, jinja_val_int(i));
	}
	return v;
}

static struct val strftime_now(struct run *r, const struct args *a)
{
	const struct str *fmt = jinja_val_text(r, *need(r, a, 0, NULL, "strftime_now"));
	char text[256], spec[128];
	time_t now = time(NULL);
	struct tm tm;

	snprintf(spec, sizeof spec, "%.*s", (int)(fmt->n < 127 ? fmt->n : 127), fmt->p);
	localtime_r(&now, &tm);
	text[strftime(text, sizeof text, spec, &tm)] = '\0';
	return jinja_val_str(jinja_str_new(r, memcpy(jinja_alloc(r, sizeof text), text,
	    sizeof text), strlen(text), JINJA_OWN));
}

static struct val new_dict(struct run *r, const struct args *a, enum vkind k)
{
	struct val v = jinja_val_dict(r);

	if (a->n > 0 && a->v[0].k == V_DICT)
		for (int i = 0; i < a->v[0].d->n; i++)
			jinja_dict_set(r, v.d, a->v[0].d->key[i], a->v[0].d->v[i]);
	else if (a->n > 0 && a->v[0].k == V_LIST)
		for (int i = 0; i < a->v[0].l->n; i++) {
			struct list *pair = jinja_val_items(r, a->v[0].l->v[i]);

			if (pair->n != 2)
				jinja_fail(r, "dict: a pair has %d elements", pair->n);
			jinja_dict_set(r, v.d, pair->v[0], pair->v[1]);
		}
	for (int i = 0; i < a->nkw; i++)
		jinja_dict_set(r, v.d, jinja_val_str(a->kw[i]), a->kwv[i]);
	v.k = k;
	return v;
}

struct val jinja_lib_func(struct run *r, int func, const struct args *a)
{
	const struct str *s;

	switch (func) {
	case FN_NAMESPACE: return new_dict(r, a, V_NS);
	case FN_DICT: return new_dict(r, a, V_DICT);
	case FN_RANGE: return range(r, a);
	case FN_STRFTIME: return strftime_now(r, a);
	default:
		s = jinja_val_text(r, *need(r, a, 0, "message", "raise_exception"));
		jinja_fail(r, "the template refuses: %.*s", (int)(s->n < 300 ? s->n : 300), s->p);
	}
}
