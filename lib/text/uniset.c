/* Sets of characters (Unicode Standard Annexes 24 and 44 say what the properties are). */
#include "text/uniset.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "text/bytemap.h"

void uniset_add(struct uniset *s, uint32_t a, uint32_t b)
{
	if (s->n == s->cap) {
		s->cap = s->cap ? 2 * s->cap : 8;
		s->r = bytemap_grow(s->r, (size_t)s->cap, sizeof *s->r);
	}
	s->r[s->n++] = (struct unirange){ a, b };
}

void uniset_add_ranges(struct uniset *s, const struct unirange *r, int n)
{
	for (int i = 0; i < n; i++)
		uniset_add(s, r[i].a, r[i].b);
}

void uniset_add_set(struct uniset *s, const struct uniset *more)
{
	uniset_add_ranges(s, more->r, more->n);
}

static int by_start(const void *a, const void *b)
{
	const struct unirange *x = a, *y = b;

	return (x->a > y->a) - (x->a < y->a);
}

void uniset_order(struct uniset *s)
{
	int n = 0;

	if (s->n == 0)
		return;
	qsort(s->r, (size_t)s->n, sizeof *s->r, by_start);
	for (int i = 1; i < s->n; i++)
		if (s->r[i].a <= s->r[n].b + 1)
			s->r[n].b = s->r[i].b > s->r[n].b ? s->r[i].b : s->r[n].b;
		else
			s->r[++n] = s->r[i];
	s->n = n + 1;
}

void uniset_not(struct uniset *s)
{
	struct uniset out = { 0 };
	uint32_t next = 0;

	for (int i = 0; i < s->n; i++) {
		if (s->r[i].a > next)
			uniset_add(&out, next, s->r[i].a - 1);
		next = s->r[i].b + 1;
	}
	if (next <= UNI_TOP)
		uniset_add(&out, next, UNI_TOP);
	free(s->r);
	*s = out;
}

void uniset_and(struct uniset *s, const struct uniset *other)
{
	struct uniset out = { 0 };

	for (int i = 0, j = 0; i < s->n && j < other->n;) {
		struct unirange x = s->r[i], y = other->r[j];
		uint32_t a = x.a > y.a ? x.a : y.a, b = x.b < y.b ? x.b : y.b;

		if (a <= b)
			uniset_add(&out, a, b);
		i += x.b <= y.b;
		j += y.b <= x.b;
	}
	free(s->r);
	*s = out;
}

bool uni_in(const struct unirange *r, int n, uint32_t c)
{
	int lo = 0, hi = n;

	while (lo < hi) {
		int m = (lo + hi) / 2;

		if (r[m].b < c)
			lo = m + 1;
		else
			hi = m;
	}
	return lo < n && r[lo].a <= c;
}

const char *uni_category_of(uint32_t c)
{
	int lo = 0, hi = uni_category_n;

	while (hi - lo > 1) {		/* the last run that begins at or before it */
		int m = (lo + hi) / 2;

		if (uni_category[m] >> 8 <= c)
			lo = m;
		else
			hi = m;
	}
	return uni_category_name[uni_category[lo] & 0xff];
}

bool uniset_has(const struct uniset *s, uint32_t c)
{
	return uni_in(s->r, s->n, c);
}

void uniset_free(struct uniset *s)
{
	free(s->r);
	*s = (struct uniset){ 0 };
}

/* --- case --- */

#define CASED 0x1e944		/* no letter at or above it has another case */

static void add_forms(struct uniset *s, uint32_t c)
{
	int32_t form[3] = { utf8proc_tolower((int32_t)c), utf8proc_toupper((int32_t)c),
	    utf8proc_totitle((int32_t)c) };

	for (int i = 0; i < 3; i++)
		if (form[i] != (int32_t)c)
			uniset_add(s, (uint32_t)form[i], (uint32_t)form[i]);
}

static void add_orbit(struct uniset *s, const uint32_t orbit[4])
{
	for (int i = 0; i < 4; i++) {
		if (orbit[i] == 0 || !uniset_has(s, orbit[i]))
			continue;
		for (int k = 0; k < 4; k++)
			if (orbit[k] != 0)
				uniset_add(s, orbit[k], orbit[k]);
		uniset_order(s);
		return;
	}
}

void uniset_add_case(struct uniset *s)
{
	struct uniset all = { 0 };

	uniset_add_set(&all, s);
	for (int i = 0; i < s->n; i++)
		for (uint32_t c = s->r[i].a; c <= s->r[i].b && c < CASED; c++)
			add_forms(&all, c);
	uniset_order(&all);
	for (int i = 0; i < uni_orbits; i++)
		add_orbit(&all, uni_orbit[i]);
	free(s->r);
	*s = all;
}

int uni_full(uint32_t c, enum uni_case how, uint32_t out[3])
{
	int lo = 0, hi = uni_full_cases, n = 1;

	while (lo < hi) {
		int m = (lo + hi) / 2;

		if (uni_full_case[m][0] < c)
			lo = m + 1;
		else
			hi = m;
	}
	if (lo == uni_full_cases || uni_full_case[lo][0] != c) {
		out[0] = (uint32_t)(how == UNI_UPPER ? utf8proc_toupper((int32_t)c)
		    : how == UNI_TITLE ? utf8proc_totitle((int32_t)c)
		    : utf8proc_tolower((int32_t)c));
		return 1;
	}
	memcpy(out, uni_full_case[lo] + 1 + 3 * how, 3 * sizeof *out);
	while (n < 3 && out[n] != 0)
		n++;
	return n;
}

/* --- properties --- */

/* Adds the runs of a table whose value is `want`. */
static void add_runs(struct uniset *s, const uint32_t *run, int n, unsigned want)
{
	for (int i = 0; i < n; i++)
		if ((run[i] & 0xff) == want)
			uniset_add(s, run[i] >> 8, i + 1 < n ? (run[i + 1] >> 8) - 1 : UNI_TOP);
}

static bool add_category(struct uniset *s, const char *name)
{
	bool any = false;

	for (int i = 0; i < uni_category_names; i++) {
		const char *c = uni_category_name[i];

		if (tolower((unsigned char)c[0]) != name[0] || (name[1] != '\0' &&
		    (c[1] != name[1] || name[2] != '\0')))
			continue;
		add_runs(s, uni_category, uni_category_n, (unsigned)i);
		any = true;
	}
	return any;
}

static const char *short_name(const char *name)
{
	static const char *const names[][2] = { { "letter", "l" }, { "uppercaseletter", "lu" },
	    { "lowercaseletter", "ll" }, { "titlecaseletter", "lt" }, { "modifierletter", "lm" },
	    { "otherletter", "lo" }, { "mark", "m" }, { "nonspacingmark", "mn" },
	    { "spacingmark", "mc" }, { "enclosingmark", "me" }, { "number", "n" },
	    { "decimalnumber", "nd" }, { "letternumber", "nl" }, { "othernumber", "no" },
	    { "punctuation", "p" }, { "connectorpunctuation", "pc" },
	    { "dashpunctuation", "pd" }, { "openpunctuation", "ps" },
	    { "closepunctuation", "pe" }, { "initialpunctuation", "pi" },
	    { "finalpunctuation", "pf" }, { "otherpunctuation", "po" }, { "symbol", "s" },
	    { "mathsymbol", "sm" }, { "currencysymbol", "sc" }, { "modifiersymbol", "sk" },
	    { "othersymbol", "so" }, { "separator", "z" }, { "spaceseparator", "zs" },
	    { "lineseparator", "zl" }, { "paragraphseparator", "zp" }, { "other", "c" },
	    { "control", "cc" }, { "format", "cf" }, { "surrogate", "cs" },
	    { "privateuse", "co" }, { "unassigned", "cn" } };

	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		if (strcmp(name, names[i][0]) == 0)
			return names[i][1];
	return name;
}

static bool add_script(struct uniset *s, const char *name)
{
	for (int i = 0; i < uni_script_names; i++)
		if (strcmp(uni_script_name[i], name) == 0) {
			add_runs(s, uni_script, uni_script_n, (unsigned)i);
			return true;
		}
	return false;
}

static void add_blank(struct uniset *s)
{
	static const struct unirange space[] = { { 9, 13 }, { 0x85, 0x85 } };

	uniset_add_ranges(s, space, 2);
	add_category(s, "z");
}

static bool add_other(struct uniset *s, const char *name)
{
	if (strcmp(name, "any") == 0) {
		uniset_add(s, 0, UNI_TOP);
	} else if (strcmp(name, "ascii") == 0) {
		uniset_add(s, 0, 0x7f);
	} else if (strcmp(name, "assigned") == 0) {
		add_category(s, "cn");
		uniset_order(s);
		uniset_not(s);
	} else if (strcmp(name, "whitespace") == 0 || strcmp(name, "space") == 0) {
		add_blank(s);
	} else if (strcmp(name, "alphabetic") == 0 || strcmp(name, "alpha") == 0) {
		add_category(s, "l");
		add_category(s, "nl");
		uniset_add_ranges(s, uni_alphabetic, uni_alphabetic_n);
	} else if (strcmp(name, "lowercase") == 0 || strcmp(name, "lower") == 0) {
		add_category(s, "ll");
		uniset_add_ranges(s, uni_lowercase, uni_lowercase_n);
	} else if (strcmp(name, "uppercase") == 0 || strcmp(name, "upper") == 0) {
		add_category(s, "lu");
		uniset_add_ranges(s, uni_uppercase, uni_uppercase_n);
	} else {
		return false;
	}
	return true;
}

bool uniset_property(struct uniset *s, const char *name, size_t len)
{
	struct uniset own = { 0 };
	char plain[40];
	size_t n = 0;
	bool known;

	for (size_t i = 0; i < len; i++) {
		if (name[i] == ' ' || name[i] == '_' || name[i] == '-')
			continue;
		if (n + 1 == sizeof plain || name[i] == '\0')
			return false;
		plain[n++] = (char)tolower((unsigned char)name[i]);
	}
	plain[n] = '\0';
	if (n == 0)
		return false;
	known = add_category(&own, short_name(plain)) || add_script(&own, plain) ||
	    add_other(&own, plain);
	if (known)
		uniset_add_set(s, &own);
	uniset_free(&own);
	return known;
}
