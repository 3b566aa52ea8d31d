/* Whatever gguf_open_mem() accepts must be as it promises: every value and every byte of a tensor
 * readable, everything found by name, no tensor over another. */
#include <stdlib.h>
#include <string.h>

#include "format/gguf.h"

int LLVMFuzzerTestOneInput(const uint8_t *buf, size_t len);

static volatile unsigned sink;

static void touch(const struct gguf *g, const struct gguf_tensor *t)
{
	size_t block = (size_t)gguf_block_bytes(t->type);
	float x[GGUF_BLOCK_MOST];
	unsigned char b[GGUF_BLOCK_MOST];
	struct err e = { 0 };

	if (gguf_find(g, t->name) != t || t->nbytes % block || t->nbytes == 0)
		abort();
	for (uint64_t at = 0; at < t->nbytes; at += block) {
		if (gguf_read(g, t, at, b, block, &e) < 0)
			abort();
		gguf_unpack(x, b, t->type, 1);
		memcpy(b, x, 4);
		sink += b[0];
	}
	if (gguf_read(g, t, t->nbytes, b, 1, &e) == 0)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *buf, size_t len)
{
	struct err e = { 0 };
	struct gguf *g = gguf_open_mem(buf, len, "f", &e);
	const struct gguf_tensor *t;
	const struct gguf_value *v;
	uint64_t end = 0;

	if (!g) {
		if (e.status == 0 || !e.msg[0])
			abort();
		return 0;
	}
	for (size_t i = 0; (t = gguf_at(g, i)); i++) {
		if (t->offset < end || t->nbytes > len - t->offset)
			abort();
		end = t->offset + t->nbytes;
		touch(g, t);
	}
	for (size_t i = 0; (v = gguf_value_at(g, i)); i++) {
		json_t *o = gguf_json(g, v, &e);

		if (gguf_value(g, v->key) != v || (v->array && o && json_array_size(o) != v->n))
			abort();
		json_decref(o);
	}
	sink += gguf_find(g, "") != NULL;
	gguf_close(g);
	return 0;
}
