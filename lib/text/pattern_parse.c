/* Reads patterns of two dialects: the syntax of Oniguruma (its doc/RE, Ruby) and that of the Rust
 * crates regex and fancy-regex (their documentation). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/plain.h"
#include "text/bytemap.h"
#include "text/pattern_int.h"

#define DEPTH 100		/* of groups and of classes */
#define REPEATS 10000

struct modes { bool caseless, dotall, multiline; };

struct parser {
	const char *s;
	size_t n, i;
	bool ruby;
	struct modes mode;
	int depth;
	int last;		/* where in the output begins what a quantifier is for;
				   -1: nothing */
	bool quantified;	/* it has one already */
	struct bytemap seen;	/* ranges of an atom to its number */
	struct pattern_code *out;
	struct err *e;
};

static int fail(struct parser *p, const char *what)
{
	return err_set(p->e, EX_DATAERR, "pattern \"%.100s\": %s at offset %zu", p->s, what, p->i);
}

static bool at(const struct parser *p, const char *what)
{
	size_t n = strlen(what);

	return n <= p->n - p->i && memcmp(p->s + p->i, what, n) == 0;
}

static bool take(struct parser *p, const char *what)
{
	bool is = at(p, what);

	p->i += is ? strlen(what) : 0;
	return is;
}

static int next_char(struct parser *p, uint32_t *c)
{
	size_t n = p->i < p->n ? plain_utf8(p->s + p->i, p->n - p->i, c) : 0;

	if (n == 0)
		return fail(p, p->i < p->n ? "no UTF-8" : "an end too soon");
	p->i += n;
	return 0;
}

/* --- output --- */

static void put_code(struct parser *p, uint32_t c)
{
	struct pattern_code *o = p->out;

	if (o->n == o->cap) {
		o->cap = o->cap ? 2 * o->cap : 256;
		o->c = bytemap_grow(o->c, (size_t)o->cap, sizeof *o->c);
	}
	o->c[o->n++] = c;
}

static void put_text(struct parser *p, const char *s)
{
	while (*s != '\0')
		put_code(p, (unsigned char)*s++);
}

/* Takes the set, which is in order. */
static int put_set(struct parser *p, struct uniset *s)
{
	struct pattern_code *o = p->out;
	bool fresh;
	uint64_t *at_seen = bytemap_put(&p->seen, s->n > 0 ? (const char *)s->r : "",
	    (size_t)s->n * sizeof *s->r, &fresh);

	if (fresh && o->atoms == PATTERN_ATOMS) {
		uniset_free(s);
		return fail(p, "too many classes of characters");
	}
	if (fresh) {
		*at_seen = (uint64_t)o->atoms;
		o->atom = bytemap_grow(o->atom, (size_t)o->atoms + 1, sizeof *o->atom);
		o->atom[o->atoms++] = *s;
	} else
		uniset_free(s);
	put_code(p, 256 + (uint32_t)*at_seen);
	return 0;
}

static int put_char(struct parser *p, uint32_t c)
{
	struct uniset s = { 0 };

	uniset_add(&s, c, c);
	if (p->mode.caseless)
		uniset_add_case(&s);
	return put_set(p, &s);
}

static int put_range(struct parser *p, uint32_t a, uint32_t b, bool not)
{
	struct uniset s = { 0 };

	uniset_add(&s, a, b);
	if (not)
		uniset_not(&s);
	return put_set(p, &s);
}

/* --- sets with a name --- */

static void word(const struct parser *p, struct uniset *s)
{
	static const char *const part[] = { "Alphabetic", "M", "Nd", "Pc" };

	for (int i = 0; i < 4; i++)
		uniset_property(s, part[i], strlen(part[i]));
	if (p->ruby) {		/* Oniguruma has these of Latin-1 too: superscripts, fractions */
		uniset_add(s, 0xb2, 0xb3);
		uniset_add(s, 0xb9, 0xb9);
		uniset_add(s, 0xbc, 0xbe);
	} else
		uniset_add(s, 0x200c, 0x200d);
	uniset_order(s);
}

static void named(struct uniset *s, const char *name)
{
	uniset_property(s, name, strlen(name));
	uniset_order(s);
}

static void hex_digits(struct uniset *s)
{
	uniset_add(s, '0', '9');
	uniset_add(s, 'A', 'F');
	uniset_add(s, 'a', 'f');
}

/* \p{..}, \P{..}, \p{^..}: behind the p. */
static int property(struct parser *p, bool not, struct uniset *s)
{
	const char *name = p->s + p->i, *close, *equal;
	size_t n;

	if (p->i < p->n && *name != '{') {
		n = 1;
		p->i++;
	} else {
		if (p->i == p->n || (close = memchr(name, '}', p->n - p->i)) == NULL)
			return fail(p, "a property without its end");
		p->i += (size_t)(close - name) + 1;
		name++;
		if (*name == '^') {
			name++;
			not = !not;
		}
		n = (size_t)(close - name);
		if ((equal = memchr(name, '=', n)) != NULL) {
			n -= (size_t)(equal + 1 - name);
			name = equal + 1;
		}
	}
	if (!uniset_property(s, name, n))
		return fail(p, "a property that is not known");
	uniset_order(s);
	if (not)
		uniset_not(s);
	return 0;
}

/* \d and the like, behind the backslash: 1 with the set, 0 when it is none (and nothing read). */
static int set_escape(struct parser *p, struct uniset *s)
{
	char c = p->i < p->n ? p->s[p->i] : '\0';
	bool brace = p->i + 1 < p->n && p->s[p->i + 1] == '{';

	if ((c == 'p' || c == 'P') && (brace || !p->ruby)) {
		p->i++;
		return property(p, c == 'P', s) < 0 ? -1 : 1;
	}
	switch (c) {
	case 'd': case 'D': named(s, "Nd"); break;
	case 's': case 'S': named(s, "Space"); break;
	case 'w': case 'W': word(p, s); break;
	case 'h': case 'H':
		if (!p->ruby)
			return 0;
		hex_digits(s);
		break;
	default: return 0;
	}
	p->i++;
	if (c < 'a')
		uniset_not(s);
	return 1;
}

/* [:alpha:] of a class, behind "[:"; 0 when it is not one. */
static int posix(struct parser *p, struct uniset *s)
{
	static const char *const as[][2] = { { "alpha", "Alphabetic" }, { "digit", "Nd" },
	    { "space", "Space" }, { "blank", "Zs" }, { "cntrl", "Cc" }, { "upper", "Uppercase" },
	    { "lower", "Lowercase" }, { "ascii", "ASCII" } };
	size_t from = p->i, n;
	struct uniset own = { 0 };
	bool not = take(p, "^");
	const char *name = p->s + p->i, *end = memmem(name, p->n - p->i, ":]", 2);

	n = end != NULL ? (size_t)(end - name) : 0;
	for (size_t i = 0; n == 5 && i < sizeof as / sizeof *as; i++)
		if (memcmp(name, as[i][0], n) == 0)
			named(&own, as[i][1]);
	if (n == 5 && memcmp(name, "blank", n) == 0)
		uniset_add(&own, '\t', '\t');
	if (n == 5 && memcmp(name, "punct", n) == 0) {
		named(&own, "P");
		named(&own, "S");
	}
	if (n == 5 && memcmp(name, "alnum", n) == 0) {
		named(&own, "Alphabetic");
		named(&own, "Nd");
	}
	if (n == 4 && memcmp(name, "word", n) == 0)
		word(p, &own);
	if (n == 6 && memcmp(name, "xdigit", n) == 0)
		hex_digits(&own);
	if (own.n == 0) {
		p->i = from;
		return 0;
	}
	if (!p->ruby) {		/* these are of ASCII there */
		uniset_free(&own);
		return fail(p, "a class in [: :]");
	}
	uniset_order(&own);
	if (not)
		uniset_not(&own);
	uniset_add_set(s, &own);
	uniset_free(&own);
	p->i += n + 2;
	return 1;
}

/* --- characters --- */

static int hex_value(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10
	    : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* Behind \x or \u: digits in braces, or up to `most`. */
static int hex(struct parser *p, int most, bool exact, uint32_t *c)
{
	bool brace = take(p, "{");
	int n = 0;

	for (*c = 0; p->i < p->n && hex_value(p->s[p->i]) >= 0 && n < (brace ? 8 : most); n++)
		*c = *c << 4 | (uint32_t)hex_value(p->s[p->i++]);
	if (n == 0 || (brace && !take(p, "}")) || (exact && !brace && n != most) ||
	    *c > UNI_TOP || n > 7)
		return fail(p, "a number of a character that is none");
	if (p->ruby && !brace && most == 2 && *c > 0x7f)
		return fail(p, "a byte that is no character");
	return 0;
}

static int octal(struct parser *p, uint32_t *c)
{
	*c = 0;
	for (int k = 0; k < 2 && p->i < p->n && p->s[p->i] >= '0' && p->s[p->i] <= '7'; k++)
		*c = *c * 8 + (uint32_t)(p->s[p->i++] - '0');
	return 0;
}

/* Behind a backslash. */
static int char_escape(struct parser *p, uint32_t *c)
{
	static const char from[] = "nrtfvae", to[] = "\n\r\t\f\v\a\x1b";
	const char *f;

	if (next_char(p, c) < 0)
		return -1;
	if (*c == 'x')
		return hex(p, 2, !p->ruby, c);
	if (*c == 'u')
		return hex(p, 4, true, c);
	if (*c == '0' && p->ruby)
		return octal(p, c);
	if (*c == 'p' && p->ruby)		/* without a brace */
		return 0;
	if (*c < 0x80 && *c != 0 && (f = strchr(from, (int)*c)) != NULL) {
		*c = (unsigned char)to[f - from];
		return 0;
	}
	if ((*c >= '0' && *c <= '9') || (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z')) {
		p->i--;
		return fail(p, "an escape that is not supported");
	}
	return 0;
}

/* --- [classes] --- */

static int class_body(struct parser *p, struct uniset *s);

/* One end of a range, or 1 with a set. */
static int class_char(struct parser *p, uint32_t *c, struct uniset *s)
{
	int rc;

	if (!take(p, "\\"))
		return next_char(p, c);
	if (at(p, "b")) {
		p->i++;
		*c = '\b';
		return 0;
	}
	rc = set_escape(p, s);
	return rc != 0 ? rc : char_escape(p, c);
}

static int class_item(struct parser *p, struct uniset *s)
{
	struct uniset own = { 0 };
	uint32_t a = 0, b;
	int rc = class_char(p, &a, &own);

	if (rc != 0) {
		uniset_add_set(s, &own);
		uniset_free(&own);
		return rc < 0 ? -1 : 0;
	}
	b = a;
	if (at(p, "-") && !at(p, "-]") && !at(p, "-[") && !at(p, "-&&")) {
		p->i++;
		rc = class_char(p, &b, &own);
		uniset_free(&own);
		if (rc != 0)
			return rc < 0 ? -1 : fail(p, "a range that ends in a class");
		if (b < a)
			return fail(p, "a range whose end is before its beginning");
	}
	uniset_add(s, a, b);
	return 0;
}

static int class_nested(struct parser *p, struct uniset *s)
{
	struct uniset own = { 0 };
	int rc;

	p->i++;
	if (take(p, ":")) {
		if ((rc = posix(p, s)) != 0)
			return rc < 0 ? -1 : 0;
		p->i--;
	}
	rc = class_body(p, &own);
	uniset_add_set(s, &own);
	uniset_free(&own);
	return rc;
}

/* What stands between two &&, up to the end of the class. */
static int class_union(struct parser *p, bool first, struct uniset *s)
{
	int rc = 0;

	while (rc == 0 && !at(p, "&&") && (first || !at(p, "]"))) {
		if (p->i == p->n)
			return fail(p, "a class without its end, ]");
		rc = at(p, "[") ? class_nested(p, s) : class_item(p, s);
		first = false;
	}
	uniset_order(s);
	if (rc == 0 && p->mode.caseless)
		uniset_add_case(s);
	return rc;
}

/* Behind the [, up to and with the ]. */
static int class_body(struct parser *p, struct uniset *s)
{
	bool not = take(p, "^");
	int rc;

	if (++p->depth > DEPTH)
		return fail(p, "classes nested too deep");
	rc = class_union(p, true, s);
	while (rc == 0 && take(p, "&&")) {
		struct uniset other = { 0 };

		rc = class_union(p, false, &other);
		uniset_and(s, &other);
		uniset_free(&other);
	}
	if (rc == 0 && not)
		uniset_not(s);
	p->i += rc == 0;
	p->depth--;
	return rc;
}

/* --- what matches a place --- */

static int boundary(struct parser *p, bool not)
{
	struct uniset w[4] = { { 0 } };
	static const char *const around[] = { "(?<=", ")(?!", ")|(?<!", ")(?=" },
	    *const same[] = { "(?<=", ")(?=", ")|(?<!", ")(?!" };
	int rc = 0;

	put_text(p, "(?:");
	for (int i = 0; i < 4 && rc == 0; i++) {
		word(p, &w[i]);
		put_text(p, not ? same[i] : around[i]);
		rc = put_set(p, &w[i]);
	}
	put_text(p, "))");
	return rc;
}

static int line_begin(struct parser *p)
{
	int rc;

	if (!p->ruby && !p->mode.multiline) {
		put_text(p, "\\A");
		return 0;
	}
	put_text(p, "(?:\\A|(?<=");
	rc = put_range(p, '\n', '\n', false);
	put_text(p, p->ruby ? ")(?!\\z))" : "))");
	return rc;
}

static int line_end(struct parser *p)
{
	int rc;

	if (!p->ruby && !p->mode.multiline) {
		put_text(p, "\\z");
		return 0;
	}
	put_text(p, "(?:\\z|(?=");
	rc = put_range(p, '\n', '\n', false);
	put_text(p, "))");
	return rc;
}

/* \Z: the end, or before a newline there. */
static int last_line_end(struct parser *p)
{
	int rc;

	put_text(p, "(?=");
	rc = put_range(p, '\n', '\n', false);
	put_text(p, "?\\z)");
	return rc;
}

/* \R: what ends a line. */
static int line_break(struct parser *p)
{
	struct uniset s = { 0 };

	put_text(p, "(?>");
	if (put_range(p, '\r', '\r', false) < 0 || put_range(p, '\n', '\n', false) < 0)
		return -1;
	put_text(p, "|");
	uniset_add(&s, '\n', '\r');
	uniset_add(&s, 0x85, 0x85);
	uniset_add(&s, 0x2028, 0x2029);
	if (put_set(p, &s) < 0)
		return -1;
	put_text(p, ")");
	return 0;
}

static int escape(struct parser *p)
{
	struct uniset s = { 0 };
	uint32_t c;
	int rc;

	if (take(p, "b") || take(p, "B"))
		return boundary(p, p->s[p->i - 1] == 'B');
	if (take(p, "A") || take(p, "z")) {
		put_text(p, p->s[p->i - 1] == 'A' ? "\\A" : "\\z");
		return 0;
	}
	if (p->ruby && take(p, "Z"))
		return last_line_end(p);
	if (p->ruby && take(p, "R"))
		return line_break(p);
	if ((rc = set_escape(p, &s)) > 0)
		return put_set(p, &s);
	uniset_free(&s);
	return rc < 0 || char_escape(p, &c) < 0 ? -1 : put_char(p, c);
}

/* --- groups --- */

static int alternatives(struct parser *p);

/* The letters of (?im-s: or (?i). */
static int read_modes(struct parser *p, struct modes *m)
{
	bool on = true;

	for (; p->i < p->n && p->s[p->i] != ':' && p->s[p->i] != ')'; p->i++)
		switch (p->s[p->i]) {
		case '-': on = false; break;
		case 'i': m->caseless = on; break;
		case 'm': *(p->ruby ? &m->dotall : &m->multiline) = on; break;
		case 's':
			if (p->ruby)
				return fail(p, "a mode that is not supported");
			m->dotall = on;
			break;
		case 'u': break;
		default: return fail(p, "a group or a mode that is not supported");
		}
	return p->i < p->n ? 0 : fail(p, "a group without its end, a closing parenthesis");
}

static int close_group(struct parser *p, const char *open)
{
	put_text(p, open);
	if (alternatives(p) < 0)
		return -1;
	if (!take(p, ")"))
		return fail(p, "a group without its end, a closing parenthesis");
	put_text(p, ")");
	return 0;
}

/* Behind "(?": modes, for this group or for the rest of the one around it: 1 when they stay. What
 * follows (?i) is a group of its own in Ruby, with the alternatives that it has. */
static int mode_group(struct parser *p)
{
	struct modes m = p->mode;
	int rc;

	if (read_modes(p, &m) < 0)
		return -1;
	p->mode = m;
	if (p->s[p->i++] == ':')
		return close_group(p, "(?:");
	if (!p->ruby)
		return 1;
	put_text(p, "(?:");
	rc = alternatives(p);		/* up to, and without, the end of the group around */
	put_text(p, ")");
	return rc;
}

static int group_kind(struct parser *p)
{
	static const char *const as_is[] = { "(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!" };
	const char *end;

	for (size_t i = 0; i < sizeof as_is / sizeof *as_is; i++)
		if (take(p, as_is[i]))
			return close_group(p, as_is[i]);
	if (take(p, "(?#")) {
		if ((end = memchr(p->s + p->i, ')', p->n - p->i)) == NULL)
			return fail(p, "a comment without its end");
		p->i = (size_t)(end - p->s) + 1;
		return 0;
	}
	if (at(p, "(?<") || at(p, "(?P<")) {
		if ((end = memchr(p->s + p->i, '>', p->n - p->i)) == NULL)
			return fail(p, "a name without its end");
		p->i = (size_t)(end - p->s) + 1;
		return close_group(p, "(?:");
	}
	if (take(p, "(?"))
		return mode_group(p);
	p->i++;
	return close_group(p, "(?:");
}

static int group(struct parser *p)
{
	struct modes before = p->mode;
	int rc;

	if (++p->depth > DEPTH)
		return fail(p, "groups nested too deep");
	rc = group_kind(p);
	if (rc <= 0)
		p->mode = before;
	p->depth--;
	return rc < 0 ? -1 : 0;
}

/* --- quantifiers --- */

/* "{2,3}" at i: its bounds (high -1: none), and its length; 0 when it is none. */
static size_t interval(const struct parser *p, long *low, long *high)
{
	const char *s = p->s + p->i + 1, *end = p->s + p->n;
	long v[2] = { -1, -1 };
	bool comma = false;

	for (; s < end && *s != '}'; s++) {
		long *x = &v[comma];

		if (*s == ',' && !comma)
			comma = true;
		else if (*s < '0' || *s > '9')
			return 0;
		else if ((*x = (*x < 0 ? 0 : *x) * 10 + (*s - '0')) > REPEATS)
			*x = REPEATS + 1;
	}
	if (s == end || (v[0] < 0 && v[1] < 0))
		return 0;
	*low = v[0] < 0 ? 0 : v[0];
	*high = comma ? v[1] : v[0];
	return (size_t)(s + 1 - (p->s + p->i));
}

/* A second quantifier is for the first and what it is for. */
static void wrap(struct parser *p)
{
	int from = p->last, n;

	if (!p->quantified)
		return;
	n = p->out->n - from;
	put_text(p, "(?:)");
	memmove(p->out->c + from + 3, p->out->c + from, (size_t)n * sizeof *p->out->c);
	for (int i = 0; i < 3; i++)
		p->out->c[from + i] = (unsigned char)"(?:"[i];
}

static int put_interval(struct parser *p, long low, long high, bool single)
{
	char text[64];

	if (low > REPEATS || high > REPEATS || (high >= 0 && high < low))
		return fail(p, "numbers of a quantifier that are none");
	if (single)
		snprintf(text, sizeof text, "{%ld}", low);
	else if (high < 0)
		snprintf(text, sizeof text, "{%ld,}", low);
	else
		snprintf(text, sizeof text, "{%ld,%ld}", low, high);
	put_text(p, text);
	return 0;
}

/* 0: no quantifier here. */
static int quantifier(struct parser *p)
{
	char c = p->s[p->i];
	long low, high;
	size_t n = c == '{' ? interval(p, &low, &high) : 0;
	bool single = n > 0 && memchr(p->s + p->i, ',', n) == NULL;

	if (n == 0 && c != '*' && c != '+' && c != '?')
		return 0;
	if (p->last < 0)
		return fail(p, "a quantifier of nothing");
	wrap(p);
	if (n == 0) {
		put_code(p, (unsigned char)c);
		p->i++;
	} else {
		if (put_interval(p, low, high, single) < 0)
			return -1;
		p->i += n;
	}
	if (at(p, "?") && !(p->ruby && single)) {
		put_text(p, "?");
		p->i++;
	} else if (at(p, "+") && !(p->ruby && n > 0)) {
		put_text(p, "+");
		p->i++;
	}
	p->quantified = true;
	return 1;
}

static int atom(struct parser *p)
{
	struct uniset s = { 0 };
	uint32_t c;

	if (at(p, "("))
		return group(p);
	if (take(p, "["))
		return class_body(p, &s) < 0 ? (uniset_free(&s), -1) : put_set(p, &s);
	if (take(p, "\\"))
		return escape(p);
	if (take(p, "."))
		return p->mode.dotall ? put_range(p, 0, UNI_TOP, false)
		    : put_range(p, '\n', '\n', true);
	if (take(p, "^"))
		return line_begin(p);
	if (take(p, "$"))
		return line_end(p);
	return next_char(p, &c) < 0 ? -1 : put_char(p, c);
}

static int alternatives(struct parser *p)
{
	p->last = -1;
	while (p->i < p->n && p->s[p->i] != ')') {
		int from = p->out->n, rc;

		if (take(p, "|")) {
			put_text(p, "|");
			p->last = -1;
			continue;
		}
		if ((rc = quantifier(p)) < 0)
			return -1;
		if (rc > 0)
			continue;
		if (atom(p) < 0)
			return -1;
		p->last = p->out->n > from ? from : -1;
		p->quantified = false;
	}
	return 0;
}

int pattern_parse(const char *text, size_t len, enum pattern_dialect d, struct pattern_code *out,
    struct err *e)
{
	struct parser p = { .s = text, .n = len, .ruby = d == PATTERN_RUBY, .out = out, .e = e };
	int rc;

	if (len > PATTERN_LENGTH)
		return err_set(e, EX_DATAERR, "a pattern of %zu bytes, more than %d", len,
		    PATTERN_LENGTH);
	rc = alternatives(&p);
	if (rc == 0 && p.i < p.n)
		rc = fail(&p, "a closing parenthesis of no group");
	bytemap_free(&p.seen);
	return rc;
}

void pattern_code_free(struct pattern_code *code)
{
	for (int i = 0; i < code->atoms; i++)
		uniset_free(&code->atom[i]);
	free(code->atom);
	free(code->c);
	*code = (struct pattern_code){ 0 };
}
