#include "arch/quantization.h"

#include <limits.h>
#include <string.h>

#include "arch/config.h"

#define SIDE 128		/* of a rectangle, where the config does not say */

/* weight_block_size: [rows, columns], or null where a matrix has one scale. */
static int read_size(struct config *c, const struct keys *k, const json_t *q)
{
	const json_t *size = json_object_get(q, "weight_block_size");
	int *to[] = { &c->scale_rows, &c->scale_cols };

	if (size && json_is_null(size)) {
		c->scale_rows = c->scale_cols = INT_MAX;
		return 0;
	}
	c->scale_rows = c->scale_cols = SIDE;
	if (size && (!json_is_array(size) || json_array_size(size) != 2))
		return keys_bad(k, QUANTIZATION_KEY, "weight_block_size must be two integers");
	for (size_t i = 0; size && i < 2; i++)
		if (keys_int(k, QUANTIZATION_KEY, json_array_get(size, i), 1, INT_MAX, to[i]) < 0)
			return -1;
	return 0;
}

static int read_fp8(struct config *c, const struct keys *k, const json_t *q)
{
	const char *fmt = json_string_value(json_object_get(q, "fmt"));

	if (fmt && strcmp(fmt, "e4m3") != 0)
		return keys_bad(k, QUANTIZATION_KEY, "fp8 of fmt \"%s\" is not supported, only "
		    "e4m3", fmt);
	return read_size(c, k, q);
}

static int read_method(struct config *c, const struct keys *k, const json_t *q)
{
	const char *method = json_string_value(json_object_get(q, "quant_method"));

	if (!json_is_object(q))
		return keys_bad(k, QUANTIZATION_KEY, "must be an object");
	if (json_object_size(q) == 0)
		return 0;
	if (!method)
		return keys_bad(k, QUANTIZATION_KEY, "missing quant_method");
	if (strcmp(method, "fp8") == 0)
		return read_fp8(c, k, q);
	if (strcmp(method, "mxfp4") == 0)
		return 0;
	return keys_bad(k, QUANTIZATION_KEY, "quant_method \"%s\" is not supported, only fp8 (E4M3 "
	    "with scales) and mxfp4", method);
}

int quantization_read(struct config *c, const struct keys *k)
{
	const json_t *place[] = { k->whole, k->raw };

	for (int i = 0; i < 2; i++) {
		const json_t *q = json_object_get(place[i], QUANTIZATION_KEY);

		if (q && !json_is_null(q))
			return read_method(c, k, q);
	}
	return 0;
}
