/* Text to pieces. A piece is what merges never cross. */
#include <stdlib.h>
#include <string.h>

#include "text/tok_impl.h"

/* Bytes of the character that begins at s, 0 when it is not valid there. What PCRE2 takes for
 * valid: no overlong forms, no surrogates, nothing above U+10FFFF. */
static size_t utf8_char(const unsigned char *s, size_t len)
{
	unsigned c = s[0];
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
		n = utf8_char((const unsigned char *)s + i, len - i);
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
	st->prefix_space = true;
	p->n++;
	return 0;
}

/* Patterns may recurse deeply on long pieces: the machine stack's 32 KiB are too few. */
static int add_context(struct pre *p, struct err *e)
{
	if (p->context)
		return 0;
	p->context = pcre2_match_context_create(NULL);
	p->stack = pcre2_jit_stack_create(32 << 10, 16 << 20, NULL);
	if (!p->context)
		return err_set(e, EX_OSERR, "out of memory for the tokenizer");
	if (p->stack)
		pcre2_jit_stack_assign(p->context, NULL, p->stack);
	return 0;
}

int pre_add_regex(struct pre *p, const char *pattern, size_t len, bool literal,
    enum pre_behavior behavior, bool invert,
    struct err *e)
{
	uint32_t options = PCRE2_UTF | (literal ? PCRE2_LITERAL
	    : PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C);
	struct pre_step *st = add_step(p, e);
	PCRE2_UCHAR why[128];
	PCRE2_SIZE at;
	int code;

	if (!st || add_context(p, e))
		return -1;
	/* The dialect of the Hugging Face library has set operations in classes; PCRE2 reads
	 * them as plain characters. */
	if (!literal && memmem(pattern, len, "&&[", 3))
		return err_set(e, EX_DATAERR, "pattern \"%.100s\": class intersection (&&) is not "
		    "supported", pattern);
	st->code = pcre2_compile((PCRE2_SPTR)pattern, len, options, &code, &at, NULL);
	if (!st->code) {
		pcre2_get_error_message(code, why, sizeof why);
		return err_set(e, EX_DATAERR, "pattern \"%.100s\": %s at offset %zu", pattern,
		    (char *)why, at);
	}
	/* when it cannot, matching is slower */
	pcre2_jit_compile(st->code, PCRE2_JIT_COMPLETE);
	st->match = pcre2_match_data_create_from_pattern(st->code, NULL);
	st->behavior = behavior;
	st->invert = invert;
	p->n++;		/* now pre_free() knows of the code */
	if (!st->match)
		return err_set(e, EX_OSERR, "out of memory for the tokenizer");
	return 0;
}

/* Compiled patterns are only read; what a match writes to is not shared. */
void pre_share(const struct pre *p, struct pre *own)
{
	struct err e = { 0 };

	*own = *p;
	own->context = NULL;
	own->stack = NULL;
	if (p->context && add_context(own, &e))
		err_exit(&e);
	for (int i = 0; i < own->n; i++) {
		struct pre_step *st = &own->step[i];

		if (st->code && !(st->match = pcre2_match_data_create_from_pattern(st->code, NULL)))
			err_die(EX_OSERR, "out of memory for the tokenizer");
	}
}

void pre_free(struct pre *p, bool shared)
{
	for (int i = 0; i < p->n; i++) {
		pcre2_match_data_free(p->step[i].match);
		if (!shared)
			pcre2_code_free(p->step[i].code);
	}
	pcre2_jit_stack_free(p->stack);
	pcre2_match_context_free(p->context);
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

/* Finds the next match at or after pos. A pattern that runs into PCRE2's limits matches nothing
 * from there on: the rest is one piece, and nothing of the text is lost. */
static bool find_match(struct pre *p, int k, const char *s, size_t len, size_t pos, size_t *a,
    size_t *b)
{
	struct pre_step *st = &p->step[k];
	int rc = pcre2_match(st->code, (PCRE2_SPTR)s, len, pos, PCRE2_NO_UTF_CHECK, st->match,
	    p->context);
	PCRE2_SIZE *ov;

	if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
		rc = pcre2_match(st->code, (PCRE2_SPTR)s, len, pos, PCRE2_NO_UTF_CHECK |
		    PCRE2_NO_JIT, st->match,
			p->context);
	if (rc < 0)
		return false;
	ov = pcre2_get_ovector_pointer(st->match);
	*a = ov[0];
	*b = ov[1];
	return *a >= pos && *b >= *a && *b <= len;	/* \K in a lookaround breaks this */
}

static void run_regex(struct pre *p, int k, const char *s, size_t len,
    const struct piece_sink *sink)
{
	struct splitter x = { .p = p, .k = k, .s = s, .sink = sink };
	size_t pos = 0, done = 0, a, b;
	bool matched = false;

	while (pos < len && find_match(p, k, s, len, pos, &a, &b)) {
		if (a == b && a == done && matched) {	/* empty, right after a match */
			pos = a < len ? a + utf8_char((const unsigned char *)s + a, len - a) : len;
			continue;
		}
		if (a > done)
			span(&x, done, a, false);
		span(&x, a, b, true);
		matched = true;
		pos = done = b;
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

/* A run of text, through the steps from k on. len is above 0. */
static void run_step(struct pre *p, int k, const char *s, size_t len, const struct piece_sink *sink)
{
	if (k == p->n)
		sink->piece(sink->ctx, s, len);
	else if (p->step[k].prefix_space)
		run_space(p, k, s, len, sink);
	else
		run_regex(p, k, s, len, sink);
}

/* Patterns only see valid UTF-8. Each longest run of bytes that is not is a piece of its own. */
void pre_split(struct pre *p, const char *s, size_t len, const struct piece_sink *sink)
{
	size_t n;

	while (len) {
		n = utf8_valid(s, len);
		if (n)
			run_step(p, 0, s, n, sink);
		s += n;
		len -= n;
		for (n = 0; n < len && !utf8_char((const unsigned char *)s + n, len - n); n++)
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
	*n = i < len ? utf8_char((const unsigned char *)s + i, len - i) : 0;
	return *n ? utf8_get(s + i, *n) : 0;
}

static uint32_t char_before(const char *s, size_t from, size_t i, size_t *n)
{
	for (*n = 1; *n <= 4 && *n <= i - from; ++*n)
		if (utf8_char((const unsigned char *)s + i - *n, *n) == *n)
			return utf8_get(s + i - *n, *n);
	*n = 0;
	return 0;
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

/* The longest added token that s begins with: the sorted table is narrowed byte by byte. */
static const struct added *longest_added(const struct tok *t, const char *s, size_t len,
    bool normalized, bool special)
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
		    (special || !t->added[lo].special))
			best = &t->added[lo];
	}
	return best;
}

const struct added *pre_find_added(const struct tok *t, const char *s, size_t len, size_t from,
    bool normalized,
    bool special, size_t *start, size_t *end)
{
	const struct added *a;
	uint32_t before, after;
	size_t n;

	for (size_t i = from; i < len; i++) {
		if (!t->added_first[(unsigned char)s[i]])
			continue;
		a = longest_added(t, s + i, len - i, normalized, special);
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
