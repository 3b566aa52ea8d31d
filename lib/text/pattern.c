/* Patterns over kinds of characters, run by PCRE2. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text/bytemap.h"
#include "text/pattern_int.h"
#include "text/tok_impl.h"

#define PAGE 256		/* code points of one */
#define PAGES ((UNI_TOP + 1) / PAGE)
#define KINDS 256

struct kinds {
	uint16_t page[PAGES];
	uint8_t *kind;			/* (pages that differ, PAGE); of ASCII the first */
};

struct pattern {
	bool shared;
	char *text;			/* of a literal one, else NULL */
	size_t text_len;
	struct kinds *kinds;
	pcre2_code *code;
	bool jit;

	/* one thread's */
	pcre2_match_data *match;
	pcre2_match_context *context;
	pcre2_jit_stack *stack;
	const char *s;			/* what is searched, and where the search is */
	size_t len, pos;
	bool matched;			/* the last match ended at pos */
	uint8_t *work;			/* (cap) the kind of each character */
	const uint8_t *sym;
	size_t n, cap;
	bool bytes;			/* characters are bytes */
	size_t at_char, at_byte;	/* the same place, up to which it was counted */
};

/* --- kinds --- */

struct event { uint32_t at; int atom; };

struct segment { uint32_t a; uint8_t kind; };

struct partition {
	struct event *event;
	int events;
	struct segment *segment;
	int segments;
	struct bytemap seen;		/* atoms that a kind is in, as bits, to its number */
	uint8_t *bits;			/* (kinds, width) the same by number */
	int kinds, width;
};

static int by_place(const void *a, const void *b)
{
	const struct event *x = a, *y = b;

	return (x->at > y->at) - (x->at < y->at);
}

/* Where each set begins and ends, in the order of code points. */
static void take_events(struct partition *x, const struct pattern_code *code)
{
	size_t n = 0;

	for (int i = 0; i < code->atoms; i++)
		n += 2 * (size_t)code->atom[i].n;
	x->event = bytemap_grow(NULL, n, sizeof *x->event);
	for (int i = 0; i < code->atoms; i++)
		for (int k = 0; k < code->atom[i].n; k++) {
			x->event[x->events++] = (struct event){ code->atom[i].r[k].a, i };
			x->event[x->events++] = (struct event){ code->atom[i].r[k].b + 1, i };
		}
	qsort(x->event, (size_t)x->events, sizeof *x->event, by_place);
}

/* The kind of what is in the sets of `now`; -1: there are too many. */
static int kind_of(struct partition *x, const uint8_t *now)
{
	bool fresh;
	uint64_t *v = bytemap_put(&x->seen, (const char *)now, (size_t)x->width, &fresh);

	if (!fresh)
		return (int)*v;
	if (x->kinds == KINDS)
		return -1;
	x->bits = bytemap_grow(x->bits, (size_t)x->kinds + 1, (size_t)x->width);
	memcpy(x->bits + (size_t)x->kinds * (size_t)x->width, now, (size_t)x->width);
	*v = (uint64_t)x->kinds;
	return x->kinds++;
}

static int sweep(struct partition *x)
{
	uint8_t now[PATTERN_ATOMS / 8 + 1] = { 0 };
	uint32_t from = 0;

	x->segment = bytemap_grow(NULL, (size_t)x->events + 1, sizeof *x->segment);
	for (int i = 0; from <= UNI_TOP;) {
		int kind;

		while (i < x->events && x->event[i].at == from) {
			now[x->event[i].atom / 8] ^= (uint8_t)(1 << x->event[i].atom % 8);
			i++;
		}
		if ((kind = kind_of(x, now)) < 0)
			return -1;
		x->segment[x->segments++] = (struct segment){ from, (uint8_t)kind };
		from = i < x->events ? x->event[i].at : UNI_TOP + 1;
	}
	return 0;
}

static struct kinds *make_kinds(const struct partition *x)
{
	struct kinds *k = bytemap_grow(NULL, 1, sizeof *k);
	struct bytemap seen = { 0 };
	uint8_t page[PAGE];
	size_t pages = 0;
	int s = 0;

	k->kind = NULL;
	for (uint32_t c = 0; c <= UNI_TOP; c++) {
		bool fresh;
		uint64_t *v;

		while (s + 1 < x->segments && x->segment[s + 1].a <= c)
			s++;
		page[c % PAGE] = x->segment[s].kind;
		if (c % PAGE != PAGE - 1)
			continue;
		v = bytemap_put(&seen, (const char *)page, PAGE, &fresh);
		if (fresh) {
			k->kind = bytemap_grow(k->kind, pages + 1, PAGE);
			memcpy(k->kind + pages * PAGE, page, PAGE);
			*v = pages++;
		}
		k->page[c / PAGE] = (uint16_t)*v;
	}
	bytemap_free(&seen);
	return k;
}

/* --- compiling --- */

struct text { char *s; size_t n, cap; };

static void put(struct text *t, const char *s, size_t n)
{
	if (t->n + n > t->cap) {
		t->cap = 2 * (t->n + n) + 256;
		t->s = bytemap_grow(t->s, t->cap, 1);
	}
	memcpy(t->s + t->n, s, n);
	t->n += n;
}

/* The kinds of a set, as a class of bytes. */
static void put_atom(struct text *t, const struct partition *x, int atom)
{
	char one[8];
	int n = 0;

	put(t, "[", 1);
	for (int k = 0; k < x->kinds; k++)
		if (x->bits[(size_t)k * (size_t)x->width + (size_t)atom / 8] >> atom % 8 & 1) {
			put(t, one, (size_t)snprintf(one, sizeof one, "\\x%02x", (unsigned)k));
			n++;
		}
	if (n > 0)
		put(t, "]", 1);
	else		/* an empty set */
		put(t, "^\\x00-\\xff]", 11);
}

static int compile(struct pattern *p, const char *source, const struct text *t, struct err *e)
{
	PCRE2_UCHAR why[128];
	PCRE2_SIZE at;
	size_t size = 0;
	int code;

	p->code = pcre2_compile((PCRE2_SPTR)t->s, t->n, 0, &code, &at, NULL);
	if (p->code == NULL) {
		pcre2_get_error_message(code, why, sizeof why);
		return err_set(e, EX_DATAERR, "pattern \"%.100s\": %s", source, (char *)why);
	}
	pcre2_jit_compile(p->code, PCRE2_JIT_COMPLETE);	/* when it cannot, matching is slower */
	p->jit = pcre2_pattern_info(p->code, PCRE2_INFO_JITSIZE, &size) == 0 && size > 0;
	return 0;
}

static int compile_code(struct pattern *p, const char *source, const struct pattern_code *code,
    struct err *e)
{
	struct partition x = { .width = code->atoms / 8 + 1 };
	struct text t = { 0 };
	int rc = 0;

	take_events(&x, code);
	if (sweep(&x) < 0)
		rc = err_set(e, EX_DATAERR, "pattern \"%.100s\": more than %d kinds of characters",
		    source, KINDS);
	for (int i = 0; rc == 0 && i < code->n; i++) {
		char byte = (char)code->c[i];

		if (code->c[i] < 256)
			put(&t, &byte, 1);
		else
			put_atom(&t, &x, (int)code->c[i] - 256);
	}
	if (rc == 0) {
		put(&t, "", 1);
		t.n--;
		p->kinds = make_kinds(&x);
		rc = compile(p, source, &t, e);
	}
	free(t.s);
	free(x.event);
	free(x.segment);
	free(x.bits);
	bytemap_free(&x.seen);
	return rc;
}

/* Patterns may recurse deeply on long pieces: the machine stack's 32 KiB are too few. */
static void own_match(struct pattern *p)
{
	p->match = pcre2_match_data_create_from_pattern(p->code, NULL);
	p->context = pcre2_match_context_create(NULL);
	p->stack = pcre2_jit_stack_create(32 << 10, 16 << 20, NULL);
	if (p->match == NULL || p->context == NULL)
		err_die(EX_OSERR, "out of memory for the tokenizer");
	if (p->stack != NULL)
		pcre2_jit_stack_assign(p->context, NULL, p->stack);
}

struct pattern *pattern_open(const char *text, size_t len, enum pattern_dialect d, struct err *e)
{
	struct pattern *p = bytemap_grow(NULL, 1, sizeof *p);
	struct pattern_code code = { 0 };
	int rc;

	*p = (struct pattern){ .text_len = len };
	if (d == PATTERN_LITERAL) {
		if (utf8_valid(text, len) < len) {
			err_set(e, EX_DATAERR, "pattern \"%.100s\": no UTF-8", text);
			pattern_close(p);
			return NULL;
		}
		p->text = memcpy(bytemap_grow(NULL, len + 1, 1), text, len);
		return p;
	}
	rc = pattern_parse(text, len, d, &code, e);
	if (rc == 0)
		rc = compile_code(p, text, &code, e);
	pattern_code_free(&code);
	if (rc == 0) {
		own_match(p);
		return p;
	}
	pattern_close(p);
	return NULL;
}

struct pattern *pattern_share(const struct pattern *p)
{
	struct pattern *own;

	if (p == NULL)
		return NULL;
	own = bytemap_grow(NULL, 1, sizeof *own);
	*own = (struct pattern){ .shared = true, .text = p->text, .text_len = p->text_len,
	    .kinds = p->kinds, .code = p->code, .jit = p->jit };
	if (own->code != NULL)
		own_match(own);
	return own;
}

void pattern_close(struct pattern *p)
{
	if (p == NULL)
		return;
	pcre2_match_data_free(p->match);
	pcre2_jit_stack_free(p->stack);
	pcre2_match_context_free(p->context);
	free(p->work);
	if (!p->shared) {
		pcre2_code_free(p->code);
		free(p->text);
		if (p->kinds != NULL)
			free(p->kinds->kind);
		free(p->kinds);
	}
	free(p);
}

/* --- matching --- */

/* The valid character at s, and its bytes. */
static uint32_t get(const unsigned char *s, size_t *n)
{
	if (s[0] < 0xe0) {
		*n = 2;
		return (s[0] & 0x1fu) << 6 | (s[1] & 0x3fu);
	}
	if (s[0] < 0xf0) {
		*n = 3;
		return (s[0] & 0xfu) << 12 | (s[1] & 0x3fu) << 6 | (s[2] & 0x3fu);
	}
	*n = 4;
	return (s[0] & 7u) << 18 | (s[1] & 0x3fu) << 12 | (s[2] & 0x3fu) << 6 | (s[3] & 0x3fu);
}

static void translate(struct pattern *p)
{
	const unsigned char *s = (const unsigned char *)p->s;
	const struct kinds *k = p->kinds;
	uint8_t *out;
	size_t n = 0;

	if (p->cap < p->len) {
		p->cap = p->len < 1024 ? 1024 : p->len + p->len / 4;
		p->work = bytemap_grow(p->work, p->cap, 1);
	}
	out = p->work;
	for (size_t i = 0, step; i < p->len; i += step) {
		uint32_t c = s[i];

		step = 1;
		if (c >= 0x80) {
			c = get(s + i, &step);
			out[n++] = k->kind[(size_t)k->page[c / PAGE] * PAGE + c % PAGE];
		} else
			out[n++] = k->kind[c];
	}
	p->sym = out;
	p->n = n;
	p->bytes = n == p->len;
}

void pattern_begin(struct pattern *p, const char *s, size_t len)
{
	p->s = s;
	p->len = len;
	p->pos = p->at_char = p->at_byte = 0;
	p->matched = false;
	if (p->text == NULL)
		translate(p);
}

/* The byte where character i begins, which is not before the last one asked for. */
static size_t byte_of(struct pattern *p, size_t i)
{
	static const uint8_t length[16] = { 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 4 };
	size_t at = p->at_byte;

	if (p->bytes)
		return i;
	for (size_t n = i - p->at_char; n > 0; n--)
		at += length[(unsigned char)p->s[at] >> 4];
	p->at_char = i;
	p->at_byte = at;
	return at;
}

static bool search(struct pattern *p, size_t *a, size_t *b)
{
	PCRE2_SIZE *ov = pcre2_get_ovector_pointer(p->match);
	int rc = PCRE2_ERROR_JIT_STACKLIMIT;

	if (p->jit)
		rc = pcre2_jit_match(p->code, p->sym, p->n, p->pos, 0, p->match, p->context);
	if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
		rc = pcre2_match(p->code, p->sym, p->n, p->pos, PCRE2_NO_JIT, p->match,
		    p->context);
	*a = ov[0];
	*b = ov[1];
	return rc >= 0;
}

static bool next_literal(struct pattern *p, size_t *a, size_t *b)
{
	const char *at = p->text_len > 0 ? memmem(p->s + p->pos, p->len - p->pos, p->text,
	    p->text_len) : NULL;

	if (at == NULL)
		return false;
	*a = (size_t)(at - p->s);
	p->pos = *b = *a + p->text_len;
	return true;
}

bool pattern_next(struct pattern *p, size_t *a, size_t *b)
{
	size_t from, to;

	if (p->text != NULL)
		return next_literal(p, a, b);
	while (p->pos < p->n && search(p, &from, &to)) {
		if (from == to && from == p->pos && p->matched) {
			p->pos++;
			p->matched = false;
			continue;
		}
		p->pos = to;
		p->matched = true;
		*a = byte_of(p, from);
		*b = byte_of(p, to);
		return true;
	}
	return false;
}
