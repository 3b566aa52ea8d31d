/* Whatever gguf_open_mem() accepts must be as it promises: every value and every byte of a tensor
 * readable, everything found by name, no tensor over another. What its metadata say of a network
 * and of a tokenizer is made into objects, or refused with a message. */
#include <stdlib.h>
#include <string.h>

#include "arch/config.h"
#include "arch/gguf_names.h"
#include "format/gguf.h"
#include "text/tok_gguf.h"

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

static bool has(const void *ctx, const char *tensor)
{
	return gguf_find(ctx, tensor) != NULL;
}

static void must_say(const struct err *e)
{
	if (e->status == 0 || !e->msg[0])
		abort();
}

static void network(const struct gguf *g, const json_t *meta)
{
	static const float freqs[4] = { 1, 1, 2, 8 };
	const struct param_name *names;
	struct gguf_facts f = { .meta = meta, .name = "f", .vocab = 320, .has = has, .ctx = g,
	    .freqs = gguf_find(g, "rope_freqs.weight") ? freqs : NULL, .n_freqs = 4 };
	static struct config c;
	struct err e = { 0 };
	json_t *o = gguf_config(&f, &names, &e);

	if (!o)
		must_say(&e);
	else if (config_from_object(&c, o, "f", 0, NULL, &e) < 0)
		must_say(&e);
	else
		config_free(&c);
	json_decref(o);
}

static void tokenizer(const struct gguf *g)
{
	json_t *tokenizer, *config = NULL;
	struct err e = { 0 };

	if (tok_gguf(g, &tokenizer, &config, &e) < 0)
		must_say(&e);
	else if (!json_object_get(tokenizer, "model"))
		abort();
	json_decref(tokenizer);
	json_decref(config);
}

int LLVMFuzzerTestOneInput(const uint8_t *buf, size_t len)
{
	json_t *meta = json_object();
	struct err e = { 0 };
	struct gguf *g = gguf_open_mem(buf, len, "f", &e);
	const struct gguf_tensor *t;
	const struct gguf_value *v;
	uint64_t end = 0;

	if (!g) {
		must_say(&e);
		json_decref(meta);
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
		if (o)
			json_object_set_new(meta, v->key, o);
	}
	network(g, meta);
	tokenizer(g);
	json_decref(meta);
	sink += gguf_find(g, "") != NULL;
	gguf_close(g);
	return 0;
}
