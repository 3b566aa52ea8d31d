#include "arch/keys.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "arch/arch.h"
#include "arch/config.h"

static bool sets_key(const char *set, const char *key)
{
	size_t n = strlen(key);

	return strncmp(set, key, n) == 0 && set[n] == '=';
}

int keys_bad(const struct keys *k, const char *key, const char *fmt, ...)
{
	char why[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why, sizeof why, fmt, ap);
	va_end(ap);
	key = arch_spelling(k->arch, k->raw, key);
	for (int i = 0; i < k->nsets; i++)
		if (sets_key(k->sets[i], key))
			return err_set(k->e, EX_USAGE, "--set %s: %s", k->sets[i], why);
	return err_set(k->e, EX_DATAERR, "%s: %s: %s", k->name, key, why);
}

const json_t *keys_get(const struct keys *k, const char *key)
{
	const json_t *v = json_object_get(k->o, key);

	return json_is_null(v) ? NULL : v;
}

int keys_bool(const struct keys *k, const char *key, bool fallback, bool *out)
{
	const json_t *v = keys_get(k, key);

	if (v && !json_is_boolean(v))
		return keys_bad(k, key, "must be true or false");
	*out = v ? json_is_true(v) : fallback;
	return 0;
}

int keys_int(const struct keys *k, const char *key, const json_t *v, double lo, double hi,
    int *out)
{
	if (!json_is_integer(v))
		return keys_bad(k, key, "must be an integer");
	if ((double)json_integer_value(v) < lo || (double)json_integer_value(v) > hi)
		return keys_bad(k, key, "%lld is outside %.0f..%.0f",
		    (long long)json_integer_value(v),
		    lo, hi);
	*out = (int)json_integer_value(v);
	return 0;
}

int keys_real(const struct keys *k, const char *key, const json_t *v, double lo, double hi,
    double *out)
{
	double x;

	if (!json_is_number(v))
		return keys_bad(k, key, "must be a number");
	x = json_number_value(v);
	if (!(x >= lo && x <= hi))
		return keys_bad(k, key, "%g is outside %g..%g", x, lo, hi);
	*out = x;
	return 0;
}

int keys_same(const struct keys *k, const char *key, double lo, double hi, int *out)
{
	const json_t *v = keys_get(k, key), *one;
	size_t i;

	if (!json_is_array(v))
		return v ? keys_int(k, key, v, lo, hi, out) : 0;
	if (json_array_size(v) == 0)
		return keys_bad(k, key, "an empty list");
	json_array_foreach(v, i, one)
		if (!json_equal(one, json_array_get(v, 0)))
			return keys_bad(k, key,
			    "entry %zu differs from the first; only one value for all layers is "
			    "supported", i);
	return keys_int(k, key, json_array_get(v, 0), lo, hi, out);
}

int keys_read(const struct keys *k, const struct key *f, double fallback, struct config *c)
{
	const json_t *v = keys_get(k, f->key), *one;
	char *at = (char *)c + f->at;
	size_t i;

	if (!v && fallback == KEY_REQUIRED)
		return keys_bad(k, f->key, "is missing");
	if (v)
		fallback = 0;		/* KEY_REQUIRED fits no int */
	switch (f->kind) {
	case KEY_ID:
		if (json_object_get(k->o, f->key) && !v)	/* null: there is none */
			fallback = -1;
		/* Hugging Face allows several; the first one is ours, and texts end at all. */
		json_array_foreach(v, i, one)
			if (keys_int(k, f->key, one, f->lo, f->hi, (int *)at) < 0)
				return -1;
		if (json_is_array(v))
			v = json_array_get(v, 0);
		/* fall through */
	case KEY_INT:
		*(int *)at = (int)fallback;
		return v ? keys_int(k, f->key, v, f->lo, f->hi, (int *)at) : 0;
	case KEY_SAME:
		*(int *)at = (int)fallback;
		return keys_same(k, f->key, f->lo, f->hi, (int *)at);
	case KEY_REAL:
		*(double *)at = fallback;
		return v ? keys_real(k, f->key, v, f->lo, f->hi, (double *)at) : 0;
	case KEY_BOOL:
		return keys_bool(k, f->key, fallback != 0, (bool *)at);
	}
	return 0;
}

int keys_list(const struct keys *k, const char *key, int layers, const char *const *names,
    int nnames, int *out, bool *found)
{
	const json_t *v = keys_get(k, key);

	*found = v != NULL;
	if (!v)
		return 0;
	if (!json_is_array(v))
		return keys_bad(k, key, "must be a list");
	if (json_array_size(v) != (size_t)layers)
		return keys_bad(k, key, "has %zu entries, num_hidden_layers is %d",
		    json_array_size(v),
		    layers);
	for (int i = 0; i < layers; i++) {
		const char *name = json_string_value(json_array_get(v, (size_t)i));
		int j = 0;

		while (j < nnames && !(name && strcmp(name, names[j]) == 0))
			j++;
		if (j == nnames)
			return keys_bad(k, key, "entry %d is %s%s", i, name ? "unknown: "
			    : "not a string", name ? name : "");
		out[i] = j;
	}
	return 0;
}

