/* What begins with '{' is a tokenizer.json, which is refused with a message or encodes and
 * decodes without a slip; the rest is text, which must come back from tokenizers as it was, at
 * once and token by token. */
#include <stdlib.h>
#include <string.h>

#include "text/tok_impl.h"

int LLVMFuzzerTestOneInput(const uint8_t *buf, size_t len);

static void check_text(struct tok *t, const char *s, size_t len, bool exact)
{
	struct tok_stream st = { { 0 } };
	struct ids ids = { 0 };
	size_t n, k = 0;
	char *whole, *parts;

	tok_encode(t, s, len, true, &ids);
	whole = tok_decode(t, ids.v, ids.n, false, &n);
	if (exact && (n != len || memcmp(whole, s, n)))
		abort();
	parts = malloc(n + 16);
	for (int i = 0; i < ids.n; i++)
		k += tok_stream_put(t, &st, ids.v[i], false, parts + k);
	k += tok_stream_end(&st, parts + k);
	if (k != n || memcmp(parts, whole, n))
		abort();
	free(parts);
	free(whole);
	ids_free(&ids);
}

static void check_file(const uint8_t *buf, size_t len)
{
	static const char text[] = "It's 12 o'clock,\n\n  \xe4\xb8\xad\xe6\x96\x87 "
	    "\xff\xfe<|im_end|><think>\0x";
	struct err e = { 0 };
	char *copy = malloc(len + 1);
	struct tok *t = tok_parse(memcpy(copy, buf, len), len, "input", NULL, &e);

	if (!t && (!e.status || !*e.msg))
		abort();
	if (t)
		check_text(t, text, sizeof text, false);
	tok_free(t);
}

static struct tok *known(const char *name)
{
	struct err e = { 0 };
	struct tok *t = tok_load(name, &e);

	if (!t)
		err_exit(&e);
	return t;
}

int LLVMFuzzerTestOneInput(const uint8_t *buf, size_t len)
{
	static struct tok *a, *b;

	if (!a) {
		a = known("tests/data/tok/gpt2.json");
		b = known("tests/data/tok/qwen.json");
	}
	if (len && *buf == '{') {
		check_file(buf, len);
	} else {
		check_text(a, (const char *)buf, len, true);
		check_text(b, (const char *)buf, len, true);
	}
	return 0;
}
