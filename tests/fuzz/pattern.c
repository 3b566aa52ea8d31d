/* The first byte says the dialect, what follows up to a NUL is a pattern, the rest is what it
 * searches: a pattern is refused with a message, or its matches follow each other and begin and end
 * between characters. */
#include <stdlib.h>
#include <string.h>

#include "text/tok_impl.h"

int LLVMFuzzerTestOneInput(const uint8_t *buf, size_t len);

static bool between(const char *s, size_t len, size_t at)
{
	return at == len || (s[at] & 0xc0) != 0x80;
}

static void check(struct pattern *p, const char *s, size_t len)
{
	size_t a, b, done = 0;

	pattern_begin(p, s, len);
	for (size_t n = 0; pattern_next(p, &a, &b); n++) {
		if (a < done || b < a || b > len || n > 2 * len || !between(s, len, a) ||
		    !between(s, len, b))
			abort();
		done = b;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *buf, size_t len)
{
	const char *end = len > 1 ? memchr(buf + 1, '\0', len - 1) : NULL, *text;
	struct err e = { 0 };
	struct pattern *p;
	char *copy;
	size_t n;

	if (end == NULL)
		return 0;
	n = (size_t)(end - (const char *)buf) - 1;
	text = end + 1;
	p = pattern_open((const char *)buf + 1, n, (enum pattern_dialect)(buf[0] % 3), &e);
	if (p == NULL && (e.status == 0 || e.msg[0] == '\0'))
		abort();
	if (p == NULL)
		return 0;
	len = utf8_valid(text, len - n - 2);
	copy = malloc(len + 1);
	check(p, memcpy(copy, text, len), len);
	free(copy);
	pattern_close(p);
	return 0;
}
