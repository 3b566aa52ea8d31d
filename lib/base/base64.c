#include "base/base64.h"

static int value(char c)
{
	if (c >= 'A' && c <= 'Z')
		return c - 'A';
	if (c >= 'a' && c <= 'z')
		return c - 'a' + 26;
	if (c >= '0' && c <= '9')
		return c - '0' + 52;
	return c == '+' ? 62 : c == '/' ? 63 : -1;
}

size_t base64_decode(const char *s, size_t len, unsigned char *out)
{
	unsigned bits = 0;
	size_t n = 0;

	for (int k = 0; k < 2 && len > 0 && s[len - 1] == '='; k++)
		len--;
	if (len % 4 == 1)
		return (size_t)-1;
	for (size_t i = 0; i < len; i++) {
		int v = value(s[i]);

		if (v < 0)
			return (size_t)-1;
		bits = bits << 6 | (unsigned)v;
		if (i % 4 > 0)
			out[n++] = (unsigned char)(bits >> (6 - 2 * (i % 4)));
	}
	return n;
}
