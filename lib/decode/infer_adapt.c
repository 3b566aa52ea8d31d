#include "decode/infer_adapt.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/jsonfile.h"

static struct opt_list given;
static struct engine_adapter *all;	/* (given.n) */

struct opt infer_adapt_opts[] = {
	{ 0, "adapter", OPT_LIST, &given, 0, 0, "[NAME=]DIR",
	    "LoRA adapter to run the model with; of several, a record's \"adapter\" names one" },
	{ 0 }
};

/* NAME=DIR, or DIR, whose last part is the name. */
static struct engine_adapter parse(const char *text)
{
	size_t n = strcspn(text, "=/");
	char *name;

	if (text[n] != '=' || n == 0)
		return (struct engine_adapter){ file_last(text), text };
	if ((name = strndup(text, n)) == NULL)
		err_die(EX_OSERR, "out of memory");
	return (struct engine_adapter){ name, text + n + 1 };
}

const struct engine_adapter *infer_adapters(int *n)
{
	*n = given.n;
	if (all != NULL || given.n == 0)
		return all;
	all = calloc((size_t)given.n, sizeof *all);
	if (all == NULL)
		err_die(EX_OSERR, "out of memory");
	for (int i = 0; i < given.n; i++) {
		all[i] = parse(given.v[i]);
		for (int j = 0; j < i; j++)
			if (strcmp(all[i].name, all[j].name) == 0)
				opt_usage("--adapter: two are named '%s': give NAME=DIR",
				    all[i].name);
	}
	return all;
}

int infer_adapter(const json_t *rec, struct err *e)
{
	const json_t *v = json_object_get(rec, "adapter");
	const char *name = json_string_value(v);
	int n;
	const struct engine_adapter *a = infer_adapters(&n);

	if (v == NULL)
		return n == 1;
	if (json_is_null(v))
		return 0;
	if (name == NULL)
		return err_set(e, EX_DATAERR, "\"adapter\" is %s, neither a name nor null",
		    jsonfile_kind(v));
	for (int i = 0; i < n; i++)
		if (strcmp(a[i].name, name) == 0)
			return i + 1;
	return err_set(e, EX_DATAERR, "\"adapter\" is \"%.60s\", and no --adapter has that name",
	    name);
}

int infer_adapter_alone(const char *what)
{
	if (given.n > 1)
		opt_usage("%s takes one --adapter, not %d", what, given.n);
	return given.n;
}

void infer_adapter_put(json_t *rec, int number)
{
	const char *name = number > 0 ? all[number - 1].name : NULL;

	if (name != NULL)
		json_object_set_new(rec, "adapter", json_text(name, strlen(name)));
	else if (given.n > 0)
		json_object_set_new(rec, "adapter", json_null());
}
