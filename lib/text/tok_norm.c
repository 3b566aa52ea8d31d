/* Text as the vocabulary spells it: Unicode's normal forms, and replacements of strings and
 * patterns. */
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/plain.h"
#include "text/tok_charsmap.h"
#include "text/tok_impl.h"
#include "text/uniset.h"

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

int norm_add_replace(struct norm *n, const char *pattern, size_t len, enum pattern_dialect d,
    const char *to, size_t to_len, struct err *e)
{
	struct norm_step *st = add_step(n, NORM_REPLACE, e);

	if (st == NULL)
		return -1;
	st->to = copy(to, to_len);
	st->to_len = to_len;
	if (len == 0)
		return err_set(e, EX_DATAERR, "Replace of an empty string");
	st->pattern = pattern_open(pattern, len, d, e);
	return st->pattern != NULL ? 0 : -1;
}

int norm_add_charsmap(struct norm *n, const unsigned char *s, size_t len, struct err *e)
{
	struct norm_step *st = add_step(n, NORM_CHARSMAP, e);

	if (st == NULL)
		return -1;
	st->map = charsmap_open(s, len, e);
	return st->map != NULL ? 0 : -1;
}

void norm_free(struct norm *n)
{
	for (int i = 0; i < n->n; i++) {
		free(n->step[i].to);
		charsmap_free(n->step[i].map);
		pattern_close(n->step[i].pattern);
	}
	memset(n, 0, sizeof *n);
}

/* Compiled patterns are only read; what a match writes to is each thread's own. */
void norm_share(const struct norm *n, struct norm *own)
{
	*own = *n;
	for (int i = 0; i < own->n; i++)
		own->step[i].pattern = pattern_share(n->step[i].pattern);
}

void norm_unshare(struct norm *own)
{
	for (int i = 0; i < own->n; i++)
		pattern_close(own->step[i].pattern);
}

/* --- the steps: each takes valid UTF-8 and appends to *to --- */

static bool ascii(const char *s, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (s[i] & 0x80)
			return false;
	return true;
}

static void form_run(const char *s, size_t len, utf8proc_option_t options, struct norm_text *to)
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

/* The library that published tokenizers were made with has the normal forms of Unicode 9.0: what
 * came later is a character like any other to it, which neither changes nor moves. */
static void form(const char *s, size_t len, utf8proc_option_t options, struct norm_text *to)
{
	size_t from = 0, n;

	for (size_t i = 0; i < len; i += n) {
		uint32_t c = 0;

		n = plain_utf8(s + i, len - i, &c);
		if (c < uni_late[0].a || !uni_in(uni_late, uni_late_n, c))
			continue;
		form_run(s + from, i - from, options, to);
		put(to, s + i, n);
		from = i + n;
	}
	form_run(s + from, len - from, options, to);
}

/* Letters with a lower case that utf8proc may be too old for: those of Unicode 15 to 17. */
static uint32_t new_lower(uint32_t c)
{
	static const uint32_t single[][2] = { { 0x1c89, 0x1c8a }, { 0xa7cb, 0x264 },
	    { 0xa7cc, 0xa7cd }, { 0xa7ce, 0xa7cf }, { 0xa7d2, 0xa7d3 }, { 0xa7d4, 0xa7d5 },
	    { 0xa7da, 0xa7db }, { 0xa7dc, 0x19b } };

	if (c >= 0x10d50 && c <= 0x10d65)
		return c + 0x20;
	if (c >= 0x16ea0 && c <= 0x16eb8)
		return c + 0x1b;
	for (size_t i = 0; i < sizeof single / sizeof *single; i++)
		if (single[i][0] == c)
			return single[i][1];
	return c;
}

static void lower(const char *s, size_t len, struct norm_text *to)
{
	for (size_t i = 0, n; i < len; i += n) {
		uint32_t c = 0, low[3];
		char out[4];
		int k;

		n = plain_utf8(s + i, len - i, &c);
		k = uni_full(c, UNI_LOWER, low);
		if (k == 1 && low[0] == c)
			low[0] = new_lower(c);
		for (int j = 0; j < k; j++)
			put(to, out, utf8_put(out, low[j]));
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

	pattern_begin(st->pattern, s, len);
	while (pattern_next(st->pattern, &a, &b)) {
		put(to, s + at, a - at);
		put(to, st->to, st->to_len);
		at = b;
	}
	put(to, s + at, len - at);
}

static void put_part(void *to, const char *s, size_t len)
{
	put(to, s, len);
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
	case NORM_CHARSMAP: charsmap_run(st->map, s, len, put_part, to); break;
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
