#include "measure/lsview.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/human.h"
#include "base/opt.h"
#include "base/plain.h"

static struct human_grid tensors = { .columns = 4, .indent = 2 };

static const char *str(const json_t *r, const char *key)
{
	const char *s = json_string_value(json_object_get(r, key));

	return s ? s : "-";
}

/* A value in one line of the table; -v shows all of it. */
static void put_value(const char *s)
{
	size_t n = strlen(s), max = 100;
	char head[104];

	if (n <= max || opt_verbose) {
		fputs(s, stdout);
		return;
	}
	while ((s[max] & 0xc0) == 0x80)		/* not inside a character */
		max--;
	snprintf(head, sizeof head, "%.*s", (int)max, s);
	fputs(head, stdout);
	printf("... (%zu bytes)", n);
}

static double num(const json_t *r, const char *key)
{
	return json_number_value(json_object_get(r, key));
}

static void add_tensor(const json_t *r)
{
	char *shape = json_dumps(json_object_get(r, "shape"), JSON_COMPACT), b[32];

	human_cell(&tensors, str(r, "name"));
	human_cell(&tensors, str(r, "dtype"));
	human_cell(&tensors, shape);
	human_cell(&tensors, human_bytes(num(r, "bytes"), b));
	free(shape);
}

static void show_metadata(const json_t *r)
{
	json_t *meta = json_object_get(r, "metadata"), *v;
	const char *key;

	json_object_foreach(meta, key, v) {
		if (strcmp(key, "chronos.ancestry") == 0)
			continue;		/* has records of its own */
		printf("  ");
		fputs(key, stdout);
		printf(": ");
		put_value(json_string_value(v));
		putchar('\n');
	}
}

static void show_ancestry(const json_t *r)
{
	const json_t *command = json_object_get(r, "command");

	printf("  %2.0f. made by:", num(r, "n"));
	if (!json_is_array(command))
		printf(" %s", str(r, "program"));
	for (size_t i = 0; i < json_array_size(command); i++) {
		const char *s = json_string_value(json_array_get(command, i));

		putchar(' ');
		fputs(s ? s : "?", stdout);
	}
	printf(strcmp(str(r, "parent"), "-") ? " (from %.8s)\n" : "\n", str(r, "parent"));
}

static void show_model(const json_t *r)
{
	char a[32], b[32], c[32];

	printf("  %s format %.0f: %.4g M parameters, %.4g M active per token, %s in tensors\n",
	    str(r, "model_type"),
	    num(r, "format"), num(r, "params") / 1e6, num(r, "active_params") / 1e6,
	    human_bytes(num(r, "bytes"), a));
	if (num(r, "sparse_layers") > 0)
		printf("  %.0f layers of %.0f experts, %.0f per token; one expert %s, all %s%s\n",
		    num(r, "sparse_layers"),
		    num(r, "experts"), num(r, "experts_per_token"),
		    human_bytes(num(r, "expert_bytes"), b),
		    human_bytes(num(r, "experts_bytes"), c),
		    json_is_true(json_object_get(r, "packed")) ? ", packed" : "");
	printf("  fingerprint %s\n", str(r, "fingerprint"));
}

static void show_bad(const json_t *r)
{
	printf("BAD ");
	fputs(str(r, "file"), stdout);
	if (json_object_get(r, "name")) {
		putchar(' ');
		fputs(str(r, "name"), stdout);
	}
	if (json_object_get(r, "layer"))
		printf(" layer %.0f expert %.0f", num(r, "layer"), num(r, "expert"));
	printf(": ");
	if (json_object_get(r, "error"))
		fputs(str(r, "error"), stdout);
	else
		printf("%.0f NaN, %.0f infinite, the first at %.0f", num(r, "nan"), num(r, "inf"),
		    num(r, "first"));
	putchar('\n');
}

static void show(const json_t *r)
{
	const char *type = str(r, "type");
	char b[32];

	if (strcmp(type, "file") == 0) {
		fputs(str(r, "file"), stdout);
		printf(": %.0f tensors, %s\n", num(r, "tensors"), human_bytes(num(r, "bytes"), b));
	} else if (strcmp(type, "metadata") == 0)
		show_metadata(r);
	else if (strcmp(type, "ancestry") == 0)
		show_ancestry(r);
	else if (strcmp(type, "model") == 0) {
		fputs(str(r, "path"), stdout);
		putchar('\n');
		show_model(r);
	} else if (strcmp(type, "bad") == 0)
		show_bad(r);
	else if (strcmp(type, "check") == 0) {
		fputs(str(r, "path"), stdout);
		printf(": %s: %.0f tensors, %s read, %.0f bad\n", num(r, "bad") == 0 ? "ok"
		    : "NOT OK", num(r, "tensors"),
		    human_bytes(num(r, "bytes"), b), num(r, "bad"));
	}
}

void lsview_put(const json_t *record)
{
	json_t *r = plain_json(record);

	if (strcmp(str(r, "type"), "tensor") == 0)
		add_tensor(r);
	else {
		lsview_end();
		show(r);
	}
	json_decref(r);
}

void lsview_end(void)
{
	human_grid(&tensors, stdout);
}
