#include "decode/generation.h"

#include <math.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/jsonfile.h"

static int number(const json_t *o, const char *path, const char *key, double lo, double hi,
    double *v, struct err *e)
{
	const json_t *j = json_object_get(o, key);

	*v = -1;
	if (j == NULL || json_is_null(j))
		return 0;
	if (!json_is_number(j) || !(json_number_value(j) >= lo && json_number_value(j) <= hi))
		return err_set(e, EX_DATAERR, "%s: %s is not a number from %g to %g", path, key, lo,
		    hi);
	*v = json_number_value(j);
	return 0;
}

static int add_end(struct generation *d, const json_t *id, const char *path, struct err *e)
{
	if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >
	    INT32_MAX)
		return err_set(e, EX_DATAERR, "%s: eos_token_id is not a token's number, or a list "
		    "of them", path);
	if (d->n_end == GENTEXT_ENDS / 2)	/* config.json and the tokenizer have some too */
		return err_set(e, EX_DATAERR, "%s: eos_token_id has more than %d tokens", path,
		    GENTEXT_ENDS / 2);
	d->end[d->n_end++] = (uint32_t)json_integer_value(id);
	return 0;
}

static int ends(struct generation *d, const json_t *v, const char *path, struct err *e)
{
	size_t i;
	json_t *id;

	if (v == NULL || json_is_null(v))
		return 0;
	if (!json_is_array(v))
		return add_end(d, v, path, e);
	json_array_foreach(v, i, id)
		if (add_end(d, id, path, e) < 0)
			return -1;
	return 0;
}

/* What changes texts and is not done here is said, once. */
static void warn_unread(const json_t *o, const char *path)
{
	static const char *const keys[] = { "stop_strings", "bad_words_ids", "suppress_tokens",
	    "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id", "num_beams",
	    "no_repeat_ngram_size", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h",
	    "penalty_alpha", "encoder_repetition_penalty", "sequence_bias", "guidance_scale",
	    "min_length", "min_new_tokens", "exponential_decay_length_penalty" };
	static bool said;

	for (size_t i = 0; !said && i < sizeof keys / sizeof *keys; i++) {
		const json_t *v = json_object_get(o, keys[i]);

		if (v == NULL || json_is_null(v) || json_is_false(v) || (json_is_number(v) &&
		    (json_number_value(v) == 0 || json_number_value(v) == 1)) ||
		    (json_is_array(v) && json_array_size(v) == 0))
			continue;
		err_warn("%s: %s, which changes texts, is not read", path, keys[i]);
	}
	said = true;
}

static int take(struct generation *d, const json_t *o, const char *path, struct err *e)
{
	const json_t *sample = json_object_get(o, "do_sample");
	double top_k;

	if (!json_is_object(o))
		return err_set(e, EX_DATAERR, "%s: not a JSON object", path);
	if (sample != NULL && !json_is_boolean(sample) && !json_is_null(sample))
		return err_set(e, EX_DATAERR, "%s: do_sample is %s, neither true nor false", path,
		    jsonfile_kind(sample));
	if (number(o, path, "temperature", 0, 1e6, &d->temperature, e) < 0 ||
	    number(o, path, "top_p", 0, 1, &d->top_p, e) < 0 || number(o, path, "min_p", 0, 1,
	    &d->min_p, e) < 0 ||
	    number(o, path, "repetition_penalty", 1e-3, 1e3, &d->repetition_penalty, e) < 0 ||
	    number(o, path, "top_k", 0, 1e9, &top_k, e) < 0 ||
	    ends(d, json_object_get(o, "eos_token_id"), path, e) < 0)
		return -1;
	if (top_k != floor(top_k))
		return err_set(e, EX_DATAERR, "%s: top_k is not a whole number", path);
	d->top_k = (int)top_k;
	warn_unread(o, path);
	if (json_is_false(sample))
		d->temperature = 0;
	return 0;
}

int generation_read(struct generation *d, const char *dir, struct err *e)
{
	char *path;
	struct stat st;
	json_t *o;
	int rc = 0;

	*d = (struct generation){ -1, -1, -1, -1, -1, 0, { 0 } };
	if (dir == NULL)
		return 0;
	path = file_join(dir, "generation_config.json");
	if (stat(path, &st) == 0) {
		o = jsonfile_load(path, e);
		rc = o != NULL ? take(d, o, path, e) : -1;
		json_decref(o);
	}
	free(path);
	return rc;
}

static void add(struct gentext_opt *o, int64_t id)
{
	for (int i = 0; i < o->n_end; i++)
		if (o->end[i] == id)
			return;
	if (id >= 0 && o->n_end < GENTEXT_ENDS)
		o->end[o->n_end++] = (uint32_t)id;
}

void generation_ends(const struct generation *d, const struct config *c, const struct tok *t,
    struct gentext_opt *o)
{
	const json_t *list = json_object_get(config_keys(c), "eos_token_id");
	size_t i;
	json_t *id;

	for (int k = 0; d != NULL && k < d->n_end; k++)
		add(o, d->end[k]);
	add(o, c->eos_token_id);
	json_array_foreach(list, i, id)
		add(o, json_is_integer(id) ? json_integer_value(id) : -1);
	if (t != NULL) {
		add(o, tok_eos(t));
		add(o, tok_id(t, "<|im_end|>"));
	}
}
