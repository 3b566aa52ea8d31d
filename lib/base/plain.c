#include "base/plain.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"

size_t plain_utf8(const char *text, size_t left, uint32_t *c)
{
	static const uint32_t least[5] = { 0, 0, 0x80, 0x800, 0x10000 };
	const unsigned char *s = (const unsigned char *)text;
	size_t n = s[0] < 0x80 ? 1 : s[0] >> 5 == 6 ? 2 : s[0] >> 4 == 14 ? 3 : s[0] >> 3 == 30 ? 4
	    : 0;

	*c = s[0];
	if (n < 2)
		return n;
	if (n > left)
		return 0;
	*c = s[0] & (0x7fu >> n);
	for (size_t i = 1; i < n; i++) {
		if (s[i] >> 6 != 2)
			return 0;
		*c = *c << 6 | (s[i] & 63);
	}
	return *c < least[n] || *c > 0x10ffff || (*c >= 0xd800 && *c < 0xe000) ? 0 : n;
}

/* Control characters of ASCII and of C1 (U+009B begins a sequence as ESC [ does), marks that change
 * the direction of text, other ends of lines, anchors of annotations. */
static bool acts(uint32_t c)
{
	return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0x61c || c == 0x200e || c == 0x200f ||
	    (c >= 0x2028 && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069) ||
	    (c >= 0xfff9 && c <= 0xfffb);
}

size_t plain_text(char *s)
{
	size_t len = strlen(s), to = 0, n;
	uint32_t c;

	for (size_t at = 0; at < len; at += n) {
		n = plain_utf8(s + at, len - at, &c);
		if (n == 0 || acts(c)) {
			s[to++] = '?';
			n += n == 0;
		} else {
			memmove(s + to, s + at, n);
			to += n;
		}
	}
	s[to] = '\0';
	return to;
}

void plain_write(FILE *f, const char *s, size_t len)
{
	uint32_t c;

	if (!isatty(fileno(f))) {
		fwrite(s, 1, len, f);
		return;
	}
	for (size_t n; len > 0; s += n, len -= n) {
		n = plain_utf8(s, len, &c);
		if (n > 0 && (!acts(c) || c == '\n' || c == '\t'))
			fwrite(s, 1, n, f);
		else
			putc('?', f);
		n += n == 0;
	}
}

static char *plain_copy(const char *s)
{
	char *p = strdup(s);

	if (p == NULL)
		err_die(EX_OSERR, "out of memory");
	plain_text(p);
	return p;
}

json_t *plain_json(const json_t *o)
{
	json_t *out, *v;
	const char *key;
	char *s;
	size_t i;

	if (json_is_string(o)) {
		s = plain_copy(json_string_value(o));
		out = json_string(s);
		free(s);
		return out;
	}
	if (!json_is_object(o) && !json_is_array(o))
		return json_incref((json_t *)(uintptr_t)o);
	out = json_is_object(o) ? json_object() : json_array();
	json_array_foreach(o, i, v)
		json_array_append_new(out, plain_json(v));
	json_object_foreach((json_t *)(uintptr_t)o, key, v) {
		s = plain_copy(key);
		json_object_set_new(out, s, plain_json(v));
		free(s);
	}
	return out;
}
