/* Text to pieces. A piece is what merges never cross. */
#include <stdlib.h>
#include <string.h>

#include "text/jinja.h"
#include "text/tok_impl.h"

/* Bytes of the character that begins at s, 0 when it is not valid there. What PCRE2 takes for
 * valid: no overlong forms, no surrogates, nothing above U+10FFFF. */
size_t utf8_char(const char *text, size_t len)
{
	const unsigned char *s = (const unsigned char *)text;
	unsigned c = len > 0 ? s[0] : 0xff;
	size_t n = c < 0x80 ? 1 : c < 0xc2 ? 0 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : c < 0xf5 ? 4 : 0;

	if (n > len)
		return 0;
	for (size_t i = 1; i < n; i++)
		if ((s[i] & 0xc0) != 0x80)
			return 0;
	if ((c == 0xe0 && s[1] < 0xa0) || (c == 0xed && s[1] > 0x9f) || (c == 0xf0 && s[1] < 0x90)
	    ||
	    (c == 0xf4 && s[1] > 0x8f))
		return 0;
	return n;
}

size_t utf8_valid(const char *s, size_t len)
{
	size_t i = 0, n;
	uint64_t w;

	while (i < len) {
		if (len - i >= 8) {
			memcpy(&w, s + i, 8);
			if (!(w & 0x8080808080808080u)) {
				i += 8;
				continue;
			}
		}
		n = utf8_char(s + i, len - i);
		if (!n)
			break;
		i += n;
	}
	return i;
}

static uint32_t utf8_get(const char *p, size_t n)
{
	const unsigned char *s = (const unsigned char *)p;
	uint32_t c = n == 1 ? s[0] : s[0] & (0x7fu >> n);

	for (size_t i = 1; i < n; i++)
		c = c << 6 | (s[i] & 0x3f);
	return c;
}

unsigned utf8_put(char *out, uint32_t c)
{
	if (c < 0x80) {
		out[0] = (char)c;
		return 1;
	}
	if (c < 0x800) {
		out[0] = (char)(0xc0 | c >> 6);
		out[1] = (char)(0x80 | (c & 0x3f));
		return 2;
	}
	if (c < 0x10000) {
		out[0] = (char)(0xe0 | c >> 12);
		out[1] = (char)(0x80 | (c >> 6 & 0x3f));
		out[2] = (char)(0x80 | (c & 0x3f));
		return 3;
	}
	out[0] = (char)(0xf0 | c >> 18);
	out[1] = (char)(0x80 | (c >> 12 & 0x3f));
	out[2] = (char)(0x80 | (c >> 6 & 0x3f));
	out[3] = (char)(0x80 | (c & 0x3f));
	return 4;
}

static struct pre_step *add_step(struct pre *p, struct err *e)
{
	if (p->n == TOK_MAX_STEPS) {
		err_set(e, EX_DATAERR, "more than %d pre-tokenizer steps", TOK_MAX_STEPS);
		return NULL;
	}
	return memset(&p->step[p->n], 0, sizeof *p->step);
}

int pre_add_space(struct pre *p, struct err *e)
{
	struct pre_step *st = add_step(p, e);

	if (!st)
		return -1;
	st->kind = PRE_SPACE;
	p->n++;
	return 0;
}

int pre_add_metaspace(struct pre *p, const char *mark, enum pre_scheme scheme, bool split,
    struct err *e)
{
	struct pre_step *st = add_step(p, e);

	if (!st)
		return -1;
	if (strlen(mark) >= sizeof st->mark || !*mark)
		return err_set(e, EX_DATAERR, "Metaspace: replacement \"%.40s\" is not one "
		    "character", mark);
	st->kind = PRE_METASPACE;
	st->scheme = scheme;
	st->behavior = PRE_NEXT;
	strcpy(st->mark, mark);
	p->n++;
	if (split)
		st->pattern = pattern_open(mark, strlen(mark), PATTERN_LITERAL, e);
	return split && st->pattern == NULL ? -1 : 0;
}

int pre_add_regex(struct pre *p, const char *pattern, size_t len, enum pattern_dialect d,
    enum pre_behavior behavior, bool invert, struct err *e)
{
	struct pre_step *st = add_step(p, e);

	if (!st)
		return -1;
	st->behavior = behavior;
	st->invert = invert;
	p->n++;		/* now pre_free() knows of the pattern */
	st->pattern = pattern_open(pattern, len, d, e);
	return st->pattern != NULL ? 0 : -1;
}

/* Compiled patterns are only read; what a match writes to is not shared. */
void pre_share(const struct pre *p, struct pre *own)
{
	*own = *p;
	for (int i = 0; i < own->n; i++)
		own->step[i].pattern = pattern_share(p->step[i].pattern);
}

void pre_free(struct pre *p)
{
	for (int i = 0; i < p->n; i++)
		pattern_close(p->step[i].pattern);
	memset(p, 0, sizeof *p);
}

/* A span of the text, not yet handed on because the next one may join it. */
struct splitter {
	struct pre *p;
	int k;			/* the step */
	const char *s;
	const struct piece_sink *sink;
	bool held, held_match;
	size_t from, to;
};

static void run_step(struct pre *p, int k, const char *s, size_t len,
    const struct piece_sink *sink);

static void release(struct splitter *x)
{
	if (x->held && x->to > x->from)
		run_step(x->p, x->k + 1, x->s + x->from, x->to - x->from, x->sink);
	x->held = false;
}

static bool joins(enum pre_behavior b, bool held_match, bool match)
{
	switch (b) {
	case PRE_PREVIOUS: return match && !held_match;
	case PRE_NEXT: return held_match && !match;
	case PRE_CONTIGUOUS: return held_match == match;
	case PRE_ISOLATED: case PRE_REMOVED: break;
	}
	return false;
}

static void span(struct splitter *x, size_t from, size_t to, bool match)
{
	const struct pre_step *st = &x->p->step[x->k];

	match ^= st->invert;
	if (st->behavior == PRE_REMOVED && match) {
		release(x);
		return;
	}
	if (x->held && joins(st->behavior, x->held_match, match)) {
		x->to = to;
		x->held_match = match;
		return;
	}
	release(x);
	x->held = true;
	x->held_match = match;
	x->from = from;
	x->to = to;
}

static void run_regex(struct pre *p, int k, const char *s, size_t len,
    const struct piece_sink *sink)
{
	struct splitter x = { .p = p, .k = k, .s = s, .sink = sink };
	struct pattern *pattern = p->step[k].pattern;
	size_t done = 0, a, b;

	pattern_begin(pattern, s, len);
	while (pattern_next(pattern, &a, &b)) {
		if (a > done)
			span(&x, done, a, false);
		span(&x, a, b, true);
		done = b;
	}
	if (done < len)
		span(&x, done, len, false);
	release(&x);
}

static void run_space(struct pre *p, int k, const char *s, size_t len,
    const struct piece_sink *sink)
{
	char *t;

	if (*s == ' ') {
		run_step(p, k + 1, s, len, sink);
		return;
	}
	t = bytemap_grow(NULL, len + 1, 1);
	t[0] = ' ';
	memcpy(t + 1, s, len);
	run_step(p, k + 1, t, len + 1, sink);
	free(t);
}

/* Spaces become marks, one is put in front as the scheme says, and pieces begin with them. */
static void run_metaspace(struct pre *p, int k, const char *s, size_t len,
    const struct piece_sink *sink)
{
	const struct pre_step *st = &p->step[k];
	size_t m = strlen(st->mark), n = 0;
	char *t = bytemap_grow(NULL, (len + 1) * m, 1);
	bool begun = *s == ' ' || (len >= m && memcmp(s, st->mark, m) == 0);

	if (!begun && (st->scheme == PRE_ALWAYS || (st->scheme == PRE_FIRST && s == p->begin))) {
		memcpy(t, st->mark, m);
		n = m;
	}
	for (size_t i = 0; i < len; i++)
		if (s[i] == ' ') {
			memcpy(t + n, st->mark, m);
			n += m;
		} else
			t[n++] = s[i];
	if (st->pattern != NULL)
		run_regex(p, k, t, n, sink);
	else
		run_step(p, k + 1, t, n, sink);
	free(t);
}

/* A run of text, through the steps from k on. len is above 0. */
static void run_step(struct pre *p, int k, const char *s, size_t len, const struct piece_sink *sink)
{
	if (k == p->n)
		sink->piece(sink->ctx, s, len);
	else if (p->step[k].kind == PRE_SPACE)
		run_space(p, k, s, len, sink);
	else if (p->step[k].kind == PRE_METASPACE)
		run_metaspace(p, k, s, len, sink);
	else
		run_regex(p, k, s, len, sink);
}

/* Patterns only see valid UTF-8. Each longest run of bytes that is not is a piece of its own. */
void pre_split(struct pre *p, const char *s, size_t len, bool first, const struct piece_sink *sink)
{
	size_t n;

	for (p->begin = first ? s : NULL; len; p->begin = NULL) {
		n = utf8_valid(s, len);
		if (n)
			run_step(p, 0, s, n, sink);
		s += n;
		len -= n;
		for (n = 0; n < len && !utf8_char(s + n, len - n); n++)
			;
		if (n)
			sink->piece(sink->ctx, s, n);
		s += n;
		len -= n;
	}
}

static bool is_blank(uint32_t c)	/* Unicode White_Space */
{
	return (c >= 9 && c <= 13) || c == ' ' || c == 0x85 || c == 0xa0 || c == 0x1680 ||
	    (c >= 0x2000 && c <= 0x200a) ||
		c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

/* The character that begins at s[i], or ends before it; 0 at the ends of the text and in invalid
 * UTF-8. */
static uint32_t char_after(const char *s, size_t len, size_t i, size_t *n)
{
	*n = i < len ? utf8_char(s + i, len - i) : 0;
	return *n ? utf8_get(s + i, *n) : 0;
}

static uint32_t char_before(const char *s, size_t from, size_t i, size_t *n)
{
	for (*n = 1; *n <= 4 && *n <= i - from; ++*n)
		if (utf8_char(s + i - *n, *n) == *n)
			return utf8_get(s + i - *n, *n);
	*n = 0;
	return 0;
}

bool tok_blank_after(const char *s, size_t len, size_t *n)
{
	return is_blank(char_after(s, len, 0, n));
}

bool tok_blank_before(const char *s, size_t len, size_t *n)
{
	return is_blank(char_before(s, 0, len, n));
}

/* Letters, digits and underscore; outside ASCII all but blanks and the general punctuation
 * block. */
static bool is_word(uint32_t c)
{
	if (c >= 0x80)
		return !is_blank(c) && !(c >= 0x2010 && c <= 0x205e) &&
		    !(c >= 0x3001 && c <= 0x3020);
	return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
	    c == '_';
}

/* May the bytes at `at` be this token? */
static bool is_allowed(const struct added *a, const struct allowed *allowed, size_t at)
{
	if (allowed->from == NULL)
		return allowed->special || !a->special;
	for (uint32_t i = 0; i < a->len; i++) {
		int from = allowed->from[at + i] & JINJA_FROM;

		if (from != JINJA_OWN && (a->special || from != JINJA_ASSISTANT))
			return false;
	}
	return true;
}

/* The longest added token that s begins with: the sorted table is narrowed byte by byte. */
static const struct added *longest_added(const struct tok *t, const char *s, size_t len,
    bool normalized, const struct allowed *allowed, size_t at)
{
	int lo = 0, hi = t->n_added;
	const struct added *best = NULL;

	for (uint32_t i = 0; i < len && lo < hi; i++) {
		unsigned char c = (unsigned char)s[i];
		int a = lo, b = hi, m;

		while (a < b) {			/* the first that has c or more at i */
			m = (a + b) / 2;
			if (t->added[m].len > i && (unsigned char)t->added[m].s[i] >= c)
				b = m;
			else
				a = m + 1;
		}
		lo = a;
		for (b = hi; a < b;) {		/* the first that has more */
			m = (a + b) / 2;
			if ((unsigned char)t->added[m].s[i] > c)
				b = m;
			else
				a = m + 1;
		}
		hi = a;
		/* Of those that are left the shortest comes first. */
		if (lo < hi && t->added[lo].len == i + 1 && t->added[lo].normalized == normalized &&
		    is_allowed(&t->added[lo], allowed, at))
			best = &t->added[lo];
	}
	return best;
}

const struct added *pre_find_added(const struct tok *t, const char *s, size_t len, size_t from,
    bool normalized, const struct allowed *allowed, size_t *start, size_t *end)
{
	const struct added *a;
	uint32_t before, after;
	size_t n;

	for (size_t i = from; i < len; i++) {
		if (!t->added_first[(unsigned char)s[i]])
			continue;
		a = longest_added(t, s + i, len - i, normalized, allowed, i);
		if (!a)
			continue;
		*start = i;
		*end = i + a->len;
		before = char_before(s, 0, *start, &n);
		after = char_after(s, len, *end, &n);
		if (a->single_word && (is_word(before) || is_word(after)))
			continue;
		if (a->lstrip)
			while (is_blank(char_before(s, from, *start, &n)))
				*start -= n;
		if (a->rstrip)
			while (is_blank(char_after(s, len, *end, &n)))
				*end += n;
		return a;
	}
	return NULL;
}
