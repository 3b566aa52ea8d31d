/* Any bytes as a message, and as the beginning of a file: what comes out is UTF-8 that a
 * terminal does not act on, no longer than what went in, and the same when it is done again. */
#include <stdlib.h>
#include <string.h>

#include "base/plain.h"
#include "base/sniff.h"

int LLVMFuzzerTestOneInput(const uint8_t *buf, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *buf, size_t len)
{
	char *s = malloc(len + 1), *again;
	size_t was, n, k;
	uint32_t c;

	if (!s)
		return 0;
	memcpy(s, buf, len);
	s[len] = '\0';
	was = strlen(s);
	n = plain_text(s);
	if (n > was || n != strlen(s))
		abort();
	for (size_t i = 0; i < n; i += k)
		if ((k = plain_utf8(s + i, n - i, &c)) == 0 || c < 0x20 ||
		    (c >= 0x7f && c < 0xa0) || (c >= 0x202a && c <= 0x202e) ||
		    (c >= 0x2066 && c <= 0x2069))
			abort();
	again = strdup(s);
	if (!again || plain_text(again) != n || strcmp(again, s) != 0)
		abort();
	sniff(buf, len);
	free(again);
	free(s);
	return 0;
}
