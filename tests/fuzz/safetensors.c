/* Whatever st_open_mem() accepts must be as the header promises: every byte readable, everything
 * found by name. */
#include <stdlib.h>
#include <string.h>

#include "format/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *buf, size_t len);

static volatile unsigned sink;

static void touch(const struct st_file *f, const struct st_tensor *t)
{
	const unsigned char *p = t->data;
	unsigned sum = 0;

	if (t->nbytes != st_elements(t) * st_dtype_size(t->dtype) || st_find(f, t->name) != t)
		abort();
	for (uint64_t i = 0; i < t->nbytes; i++)
		sum += p[i];
	sink += sum + (unsigned)strlen(t->name);
}

int LLVMFuzzerTestOneInput(const uint8_t *buf, size_t len)
{
	const char *key, *value;
	struct st_error e;
	struct st_file *f = st_open_mem(buf, len, &e);
	uint64_t bytes = 0;

	if (!f) {
		if (e.code == ST_OK || !e.msg[0] || e.pos > len)
			abort();
		return 0;
	}
	for (size_t i = 0; i < st_count(f); i++) {
		touch(f, st_at(f, i));
		bytes += st_at(f, i)->nbytes;
	}
	if (st_data_start(f) + bytes != len)
		abort();
	for (size_t i = 0; (key = st_meta_at(f, i, &value)); i++)
		if (st_meta(f, key) != value)
			abort();
	sink += st_find(f, "") != NULL;
	st_close(f);
	return 0;
}
