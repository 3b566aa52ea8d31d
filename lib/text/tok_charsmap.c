#include "text/tok_charsmap.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/plain.h"
#include "text/bytemap.h"
#include "text/uniset.h"

#define GRAPHEME 6		/* those of as many bytes are not looked for as a whole */

struct charsmap {
	uint32_t *unit;		/* (units) */
	size_t units;
	char *to;		/* (to_len) texts, each with a NUL behind it */
	size_t to_len;
};

struct charsmap *charsmap_open(const unsigned char *s, size_t len, struct err *e)
{
	struct charsmap *m;
	uint32_t size = 0;

	for (int i = 0; i < 4 && len >= 4; i++)
		size |= (uint32_t)s[i] << 8 * i;
	if (len < 8 || size < 4 || size % 4 != 0 || size > len - 4) {
		err_set(e, EX_DATAERR, "precompiled_charsmap of %zu bytes has no trie of %u", len,
		    size);
		return NULL;
	}
	m = bytemap_grow(NULL, 1, sizeof *m);
	*m = (struct charsmap){ .units = size / 4, .to_len = len - 4 - size };
	m->unit = bytemap_grow(NULL, m->units, sizeof *m->unit);
	for (size_t i = 0; i < m->units; i++)
		m->unit[i] = (uint32_t)s[4 + 4 * i] | (uint32_t)s[5 + 4 * i] << 8 |
		    (uint32_t)s[6 + 4 * i] << 16 | (uint32_t)s[7 + 4 * i] << 24;
	m->to = bytemap_grow(NULL, m->to_len + 1, 1);
	memcpy(m->to, s + 4 + size, m->to_len);
	m->to[m->to_len] = '\0';
	return m;
}

void charsmap_free(struct charsmap *m)
{
	if (m == NULL)
		return;
	free(m->unit);
	free(m->to);
	free(m);
}

static size_t offset(uint32_t unit)
{
	return (size_t)(unit >> 10) << ((unit & 1 << 9) >> 6);
}

/* What the shortest beginning of s that is in the map becomes, or NULL. */
static const char *find(const struct charsmap *m, const char *s, size_t len)
{
	size_t at = offset(m->unit[0]);

	for (size_t i = 0; i < len && s[i] != '\0'; i++) {
		unsigned char c = (unsigned char)s[i];
		uint32_t unit;

		at ^= c;
		if (at >= m->units)
			return NULL;
		unit = m->unit[at];
		if ((unit & (1u << 31 | 0xff)) != c)
			return NULL;
		at ^= offset(unit);
		if (at >= m->units)
			return NULL;
		if (unit >> 8 & 1) {
			size_t value = m->unit[at] & 0x7fffffff;

			return value <= m->to_len ? m->to + value : NULL;
		}
	}
	return NULL;
}

/* Marks that are newer than utf8proc join what is before them too. */
static bool parts(uint32_t before, uint32_t c, utf8proc_int32_t *state)
{
	const char *kind = uni_category_of(before);

	if (utf8proc_category((utf8proc_int32_t)c) == UTF8PROC_CATEGORY_CN &&
	    *uni_category_of(c) == 'M' && strcmp(kind, "Cc") != 0 && strcmp(kind, "Zl") != 0 &&
	    strcmp(kind, "Zp") != 0)
		return false;
	return utf8proc_grapheme_break_stateful((utf8proc_int32_t)before, (utf8proc_int32_t)c,
	    state);
}

/* Bytes of the grapheme that s begins with. */
static size_t grapheme(const char *s, size_t len)
{
	utf8proc_int32_t state = 0;
	uint32_t before = 0, c = 0;
	size_t n = plain_utf8(s, len, &before), k;

	while (n < len && (k = plain_utf8(s + n, len - n, &c)) > 0) {
		if (parts(before, c, &state))
			break;
		before = c;
		n += k;
	}
	return n > 0 ? n : 1;
}

void charsmap_run(const struct charsmap *m, const char *s, size_t len,
    void (*put)(void *ctx, const char *s, size_t len), void *ctx)
{
	for (size_t i = 0, n, k; i < len; i += n) {
		const char *to;

		n = grapheme(s + i, len - i);
		if (n < GRAPHEME && (to = find(m, s + i, n)) != NULL) {
			put(ctx, to, strlen(to));
			continue;
		}
		for (size_t j = i; j < i + n; j += k) {
			uint32_t c;

			k = plain_utf8(s + j, i + n - j, &c);
			k += k == 0;
			to = find(m, s + j, k);
			put(ctx, to != NULL ? to : s + j, to != NULL ? strlen(to) : k);
		}
	}
}
