/* Characters and their case, as Python's str has them (the Unicode Standard, 3.13 and its
 * SpecialCasing; Python's documentation of str). */
#include <stdlib.h>
#include <string.h>

#include "base/plain.h"
#include "text/jinja_int.h"
#include "text/tok_impl.h"
#include "text/uniset.h"

uint32_t jinja_char(const struct str *s, size_t i, size_t *n)
{
	uint32_t c;

	*n = plain_utf8(s->p + i, s->n - i, &c);
	if (*n > 0)
		return c;
	*n = 1;
	return (unsigned char)s->p[i];
}

bool jinja_is_space(uint32_t c)
{
	return (c >= 9 && c <= 13) || (c >= 28 && c <= 32) || (c >= 0x80 && (c == 0x85 ||
	    *uni_category_of(c) == 'Z'));
}

bool jinja_ends_line(uint32_t c)
{
	return (c >= 10 && c <= 13) || (c >= 28 && c <= 30) || c == 0x85 || c == 0x2028 ||
	    c == 0x2029;
}

bool jinja_is_printable(uint32_t c)
{
	const char *k;

	if (c < 0x7f)
		return c >= 32;
	k = uni_category_of(c);
	return *k != 'C' && *k != 'Z';
}

static bool is_lower(uint32_t c)
{
	return strcmp(uni_category_of(c), "Ll") == 0 || uni_in(uni_lowercase, uni_lowercase_n, c);
}

static bool is_upper(uint32_t c)
{
	return strcmp(uni_category_of(c), "Lu") == 0 || uni_in(uni_uppercase, uni_uppercase_n, c);
}

static bool is_cased(uint32_t c)
{
	return is_lower(c) || is_upper(c) || strcmp(uni_category_of(c), "Lt") == 0;
}

static bool is_digit(uint32_t c)
{
	/* digits that count no decimal places */
	static const struct unirange other[] = { { 0xb2, 0xb3 }, { 0xb9, 0xb9 },
	    { 0x1369, 0x1371 }, { 0x19da, 0x19da }, { 0x2070, 0x2070 }, { 0x2074, 0x2079 },
	    { 0x2080, 0x2089 }, { 0x2460, 0x2468 }, { 0x2474, 0x247c }, { 0x2488, 0x2490 },
	    { 0x24ea, 0x24ea }, { 0x24f5, 0x24fd }, { 0x24ff, 0x24ff }, { 0x2776, 0x277e },
	    { 0x2780, 0x2788 }, { 0x278a, 0x2792 }, { 0x10a40, 0x10a43 },
	    { 0x10e60, 0x10e68 }, { 0x11052, 0x1105a }, { 0x1f100, 0x1f10a } };

	return strcmp(uni_category_of(c), "Nd") == 0 ||
	    uni_in(other, sizeof other / sizeof *other, c);
}

bool jinja_all(const struct str *s, enum jinja_kind kind)
{
	bool any = false;

	for (size_t i = 0, n; i < s->n; i += n) {
		uint32_t c = jinja_char(s, i, &n);
		const char *k = uni_category_of(c);
		bool cased = is_cased(c), is;

		switch (kind) {
		case JINJA_DIGIT: is = is_digit(c); break;
		case JINJA_ALPHA: is = *k == 'L'; break;
		case JINJA_ALNUM: is = *k == 'L' || *k == 'N'; break;
		case JINJA_SPACE: is = jinja_is_space(c); break;
		case JINJA_UPPER: is = !cased || is_upper(c); break;
		default: is = !cased || is_lower(c); break;
		}
		if (!is)
			return false;
		any = any || cased || kind < JINJA_UPPER;
	}
	return any;
}

/* --- case --- */

/* Does Unicode pass over it where a final sigma is looked for? */
static bool ignorable(uint32_t c)
{
	static const uint32_t mark[] = { 0x27, 0x2e, 0x3a, 0xb7, 0x387, 0x55f, 0x5f4, 0x2018,
	    0x2019, 0x2024, 0x2027, 0xfe13, 0xfe52, 0xfe55, 0xff07, 0xff0e, 0xff1a };
	static const char kinds[] = "Mn Me Cf Lm Sk";

	for (size_t i = 0; i < sizeof mark / sizeof *mark; i++)
		if (mark[i] == c)
			return true;
	return strstr(kinds, uni_category_of(c)) != NULL;
}

/* Is the sigma at i the last letter of a word that has others, of those from `begin` on? */
static bool final_sigma(const struct str *s, size_t begin, size_t i, size_t n)
{
	uint32_t c = 0;
	size_t at = i, k;

	do {
		if (at == begin)
			return false;
		for (at--; at > begin && (s->p[at] & 0xc0) == 0x80; at--)
			;
		c = jinja_char(s, at, &k);
	} while (ignorable(c));
	if (!is_cased(c))
		return false;
	for (at = i + n; at < s->n; at += k)
		if (!ignorable(c = jinja_char(s, at, &k)))
			return !is_cased(c);
	return true;
}

struct out { struct run *r; char *p; uint8_t *from; size_t n, cap; };

static void put_char(struct out *o, uint32_t c, uint8_t from)
{
	unsigned n;

	if (o->n + 4 > o->cap) {
		size_t cap = 2 * o->cap + 64;
		char *p = jinja_alloc(o->r, cap);
		uint8_t *f = jinja_alloc(o->r, cap);

		if (o->n > 0) {
			memcpy(p, o->p, o->n);
			memcpy(f, o->from, o->n);
		}
		o->p = p, o->from = f, o->cap = cap;
	}
	n = utf8_put(o->p + o->n, c);
	memset(o->from + o->n, from, n);
	o->n += n;
}

static void put_case(struct out *o, const struct str *s, size_t begin, size_t i, enum uni_case how)
{
	uint32_t form[3], c;
	size_t n;
	int k;

	c = jinja_char(s, i, &n);
	k = uni_full(c, how, form);
	if (c == 0x3a3 && how == UNI_LOWER)
		form[0] = final_sigma(s, begin, i, n) ? 0x3c2 : 0x3c3;
	for (int j = 0; j < k; j++)
		put_char(o, form[j], s->from ? s->from[i] : s->origin);
}

static bool begins_word(uint32_t c)	/* behind it, says Jinja's filter */
{
	return jinja_is_space(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
}

const struct str *jinja_case(struct run *r, const struct str *s, enum jinja_change how)
{
	struct out o = { .r = r };
	struct str *t = jinja_alloc(r, sizeof *t);
	bool first = true;
	size_t begin = 0;	/* the filter puts words together that it changed one by one */

	for (size_t i = 0, n; i < s->n; i += n) {
		uint32_t c = jinja_char(s, i, &n);

		put_case(&o, s, begin, i, how == JINJA_UPPERED ? UNI_UPPER
		    : how == JINJA_LOWERED || !first ? UNI_LOWER
		    : how == JINJA_WORDS ? UNI_UPPER : UNI_TITLE);
		begin = how == JINJA_WORDS && first ? i + n : begin;
		first = how == JINJA_TITLED ? !is_cased(c) : how == JINJA_WORDS
		    ? begins_word(c) : false;
	}
	*t = (struct str){ .p = o.p ? o.p : "", .from = o.from, .n = o.n };
	return t;
}
