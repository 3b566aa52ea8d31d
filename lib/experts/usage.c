#include "experts/usage.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/jsonfile.h"
#include "base/json.h"

#define MOST 1e6		/* uses, halved with time, cannot be more */

static int check(const char *path, const json_t *o, const struct config *c, const char *fingerprint,
    struct err *e)
{
	const char *type = json_string_value(json_object_get(o, "type"));
	const char *of = json_string_value(json_object_get(o, "fingerprint"));

	if (type == NULL || strcmp(type, "heat") != 0 ||
	    json_integer_value(json_object_get(o, "version")) != 1 || of == NULL)
		return err_set(e, EX_DATAERR, "%s: not a heat file of this version", path);
	if (strcmp(of, fingerprint) != 0)
		return err_set(e, EX_DATAERR, "%s: recorded with model %.64s, not this one, %s",
		    path, of, fingerprint);
	if (json_array_size(json_object_get(o, "heat")) != (size_t)c->num_hidden_layers)
		return err_set(e, EX_DATAERR, "%s: \"heat\" is not of %d layers", path,
		    c->num_hidden_layers);
	return 0;
}

static int read_layers(const char *path, const json_t *layers, const struct config *c, float *heat,
    struct err *e)
{
	for (int l = 0; l < c->num_hidden_layers; l++) {
		const json_t *row = json_array_get(layers, (size_t)l);

		if (json_array_size(row) != (size_t)c->num_experts)
			return err_set(e, EX_DATAERR,
			    "%s: layer %d of \"heat\" is not of %d experts", path, l,
			    c->num_experts);
		for (int i = 0; i < c->num_experts; i++) {
			const json_t *x = json_array_get(row, (size_t)i);
			double v = json_number_value(x);

			if (!json_is_number(x) || !(v >= 0 && v <= MOST))
				return err_set(e, EX_DATAERR,
				    "%s: layer %d, expert %d of \"heat\" is not a number of 0 to "
				    "1e6", path, l, i);
			heat[l * c->num_experts + i] = (float)v;
		}
	}
	return 0;
}

int64_t usage_bytes(const struct config *c)
{
	return (int64_t)c->num_hidden_layers * c->num_experts * (int64_t)(sizeof(float) +
	    sizeof(int));
}

int usage_load(const char *path, const struct config *c, const char *fingerprint, float *heat,
    struct err *e)
{
	json_t *o;
	int status;

	if (access(path, F_OK) != 0 && errno == ENOENT)
		return 0;
	if ((o = jsonfile_input(path, e)) == NULL)
		return -1;
	status = check(path, o, c, fingerprint, e);
	if (status == 0)
		status = read_layers(path, json_object_get(o, "heat"), c, heat, e);
	json_decref(o);
	return status < 0 ? -1 : 1;
}

int usage_save(const char *path, const struct config *c, const char *fingerprint, const float *heat,
    struct err *e)
{
	json_t *o = json_pack("{s:s, s:i, s:s}", "type", "heat", "version", 1, "fingerprint",
	    fingerprint), *layers = json_array();
	char *text;
	int status;

	for (int l = 0; l < c->num_hidden_layers; l++) {
		json_t *row = json_array();

		for (int i = 0; i < c->num_experts; i++)
			json_array_append_new(row, json_real(heat[l * c->num_experts + i]));
		json_array_append_new(layers, row);
	}
	json_object_set_new(o, "heat", layers);
	text = json_dumps(o, JSON_COMPACT | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(6));
	json_decref(o);
	if (text == NULL)
		return err_set(e, EX_OSERR, "%s: out of memory", path);
	status = file_put(path, text, strlen(text), e);
	free(text);
	return status;
}
