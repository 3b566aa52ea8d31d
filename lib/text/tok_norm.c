/* Text as the vocabulary spells it: Unicode's normal forms, and replacements of strings and
 * patterns. */
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "text/tok_impl.h"

static void put(struct norm_text *t, const char *s, size_t n)
{
	if (n == 0)
		return;
	if (t->n + n > t->cap) {
		t->cap = 2 * (t->n + n);
		t->s = bytemap_grow(t->s, t->cap, 1);
	}
	memcpy(t->s + t->n, s, n);
	t->n += n;
}

static struct norm_step *add_step(struct norm *n, enum norm_kind kind, struct err *e)
{
	if (n->n == TOK_MAX_STEPS) {
		err_set(e, EX_DATAERR, "more than %d normalizer steps", TOK_MAX_STEPS);
		return NULL;
	}
	n->step[n->n] = (struct norm_step){ .kind = kind };
	return &n->step[n->n++];
}

static char *copy(const char *s, size_t len)
{
	char *p = bytemap_grow(NULL, len + 1, 1);

	memcpy(p, s, len);
	p[len] = '\0';
	return p;
}

int norm_add(struct norm *n, enum norm_kind kind, const char *text, size_t len, struct err *e)
{
	struct norm_step *st = add_step(n, kind, e);

	if (st == NULL)
		return -1;
	st->to = copy(text, len);
	st->to_len = len;
	return 0;
}

int norm_add_replace(struct norm *n, const char *pattern, size_t len, bool literal, const char *to,
    size_t to_len,
    struct err *e)
{
	struct norm_step *st = add_step(n, NORM_REPLACE, e);

	if (st == NULL)
		return -1;
	st->to = copy(to, to_len);
	st->to_len = to_len;
	if (literal) {
		st->what = copy(pattern, len);
		st->what_len = len;
		return len > 0 ? 0 : err_set(e, EX_DATAERR, "Replace of an empty string");
	}
	return pattern_open(&st->pattern, pattern, len, false, e);
}

void norm_free(struct norm *n)
{
	for (int i = 0; i < n->n; i++) {
		free(n->step[i].what);
		free(n->step[i].to);
		pattern_close(&n->step[i].pattern, false);
	}
	memset(n, 0, sizeof *n);
}

/* Compiled patterns are only read; what a match writes to is each thread's own. */
void norm_share(const struct norm *n, struct norm *own)
{
	*own = *n;
	for (int i = 0; i < own->n; i++)
		pattern_share(&own->step[i].pattern);
}

void norm_unshare(struct norm *own)
{
	for (int i = 0; i < own->n; i++)
		pattern_close(&own->step[i].pattern, true);
}

/* --- the steps: each takes valid UTF-8 and appends to *to --- */

static bool ascii(const char *s, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (s[i] & 0x80)
			return false;
	return true;
}

static void form(const char *s, size_t len, utf8proc_option_t options, struct norm_text *to)
{
	utf8proc_uint8_t *out;
	utf8proc_ssize_t n;

	if (ascii(s, len)) {		/* is in every form already */
		put(to, s, len);
		return;
	}
	n = utf8proc_map((const utf8proc_uint8_t *)s, (utf8proc_ssize_t)len, &out,
	    options | UTF8PROC_STABLE);
	if (n < 0)
		err_die(EX_OSERR, "%s", utf8proc_errmsg(n));
	put(to, (const char *)out, (size_t)n);
	free(out);
}

static void lower(const char *s, size_t len, struct norm_text *to)
{
	for (size_t i = 0; i < len;) {
		utf8proc_int32_t c;
		utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)s + i,
		    (utf8proc_ssize_t)(len - i), &c);
		char out[4];

		put(to, out, utf8_put(out, (uint32_t)utf8proc_tolower(c)));
		i += (size_t)n;
	}
}

static void strip(const char *s, size_t len, bool left, bool right, struct norm_text *to)
{
	size_t n;

	while (left && len > 0 && tok_blank_after(s, len, &n)) {
		s += n;
		len -= n;
	}
	while (right && len > 0 && tok_blank_before(s, len, &n))
		len -= n;
	put(to, s, len);
}

static void replace(const struct norm_step *st, const char *s, size_t len, struct norm_text *to)
{
	size_t at = 0, a, b;

	while (at < len) {
		if (st->what != NULL) {
			const char *p = memmem(s + at, len - at, st->what, st->what_len);

			a = p != NULL ? (size_t)(p - s) : len;
			b = a + st->what_len;
		} else if (!pattern_find(&st->pattern, s, len, at, &a, &b) || b == a)
			a = len;
		put(to, s + at, a - at);
		if (a == len)
			return;
		put(to, st->to, st->to_len);
		at = b;
	}
}

static void run_step(const struct norm_step *st, const char *s, size_t len, struct norm_text *to)
{
	switch (st->kind) {
	case NORM_NFC: form(s, len, UTF8PROC_COMPOSE, to); break;
	case NORM_NFD: form(s, len, UTF8PROC_DECOMPOSE, to); break;
	case NORM_NFKC: form(s, len, UTF8PROC_COMPOSE | UTF8PROC_COMPAT, to); break;
	case NORM_NFKD: form(s, len, UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT, to); break;
	case NORM_LOWER: lower(s, len, to); break;
	case NORM_STRIP_LEFT: strip(s, len, true, false, to); break;
	case NORM_STRIP_RIGHT: strip(s, len, false, true, to); break;
	case NORM_PREPEND:
		put(to, st->to, len > 0 ? st->to_len : 0);
		put(to, s, len);
		break;
	case NORM_REPLACE: replace(st, s, len, to); break;
	}
}

/* Bytes that are no UTF-8 stay as they are, between runs that are. */
static void valid_runs(const struct norm_step *st, const char *s, size_t len, struct norm_text *to)
{
	while (len > 0) {
		size_t n = utf8_valid(s, len);

		if (n > 0)
			run_step(st, s, n, to);
		s += n;
		len -= n;
		if (len > 0) {
			put(to, s++, 1);
			len--;
		}
	}
}

const char *norm_run(struct norm *n, const char *s, size_t *len)
{
	for (int i = 0; i < n->n; i++) {
		struct norm_text *to = &n->text[i % 2];

		to->n = 0;
		valid_runs(&n->step[i], s, *len, to);
		s = to->s;
		*len = to->n;
	}
	return s;
}
