/* Tokenizers that are not a tokenizer.json: ranks in base64, SentencePiece's messages, tekken.json
 * (the first byte says which name it has), with a configuration behind a NUL: each is refused with
 * a message, or encodes and decodes without a slip. */
#include <stdlib.h>
#include <string.h>

#include "text/tok_impl.h"

int LLVMFuzzerTestOneInput(const uint8_t *buf, size_t len);

static void check(struct tok *t)
{
	static const char text[] = " It's 12 o'clock,\n\n  \xe4\xb8\xad\xe6\x96\x87 e\xcc\x81 "
	    "\xff\xfe<s></s>\0x";
	struct ids ids = { 0 };
	size_t n;

	tok_encode(t, text, sizeof text, true, &ids);
	for (int i = 0; i < ids.n; i++)
		if (ids.v[i] >= (uint32_t)tok_vocab(t))
			abort();
	free(tok_decode(t, ids.v, ids.n, false, &n));
	ids_free(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *buf, size_t len)
{
	const uint8_t *end = len > 1 ? memchr(buf, '\0', len) : NULL;
	size_t n = end != NULL && end[-(end > buf)] == '}' ? (size_t)(end - buf) : 0;
	json_t *config = n > 0 ? json_loadb((const char *)buf, n, 0, NULL) : NULL;
	struct err e = { 0 };
	struct tok *t;
	char *copy;

	buf += config != NULL ? n + 1 : 0;
	len -= config != NULL ? n + 1 : 0;
	copy = malloc(len + 1);
	copy[len] = '\0';
	if (len > 0)
		memcpy(copy, buf, len);
	t = tok_parse(copy, len, len > 0 && *copy == '{' ? "tekken.json" : "input", config, &e);
	if (t == NULL && (e.status == 0 || e.msg[0] == '\0'))
		abort();
	if (t != NULL)
		check(t);
	tok_free(t);
	json_decref(config);
	return 0;
}
