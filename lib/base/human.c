#include "base/human.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/comm.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/plain.h"
#include "base/progress.h"

#define TABLES 4
#define COLUMNS 32
#define LONGEST 100		/* bytes of a text that are shown without -v */
#define FEW 8			/* and values of a list */
#define REAL_WIDTH 9		/* most numbers of a table that grows fit in */

static bool forced_human, forced_json;

struct opt human_opts[] = {
	{ 'H', "human", OPT_FLAG | OPT_TALKS, &forced_human, 0, 0, NULL,
	    "pages for people (default on a terminal)" },
	{ 0, "json", OPT_FLAG | OPT_TALKS, &forced_json, 0, 0, NULL,
	    "records, also on a terminal" },
	{ .kind = OPT_END }
};

struct table {
	char type[24];
	bool rest;			/* other keys of the first record too */
	bool live;
	struct human_grid rows;		/* that wait, unless live */
	int n, width[COLUMNS];
	char *key[COLUMNS];
};

static struct {
	int n;
	struct table t[TABLES];
	const struct table *last;	/* whose rows were written last; NULL: a page was */
	bool any;
} s;

bool human(void)
{
	if (forced_json || forced_human)
		return !forced_json;
	return isatty(STDOUT_FILENO) && !comm_launched();
}

/* ---- cells ---- */

const char *human_bytes(double n, char out[32])
{
	static const char *const unit[] = { "B", "KiB", "MiB", "GiB", "TiB" };
	int u = 0;

	for (; (n >= 1024 || n <= -1024) && u < 4; u++)
		n /= 1024;
	snprintf(out, 32, u ? "%.1f %s" : "%.0f %s", n, unit[u]);
	return out;
}

/* Columns of a terminal that the text takes, as nearly as counting characters can say. */
static int columns_of(const char *text)
{
	int n = 0;

	for (; *text; text++)
		n += (*text & 0xc0) != 0x80;
	return n;
}

static bool is_number(const char *text)
{
	size_t digits = strspn(text + (*text == '-'), "0123456789");

	return digits > 0 || strcmp(text, "-") == 0 || *text == '\0';
}

static char *copy(const char *text)
{
	char *p = strdup(text);

	if (p == NULL)
		err_die(EX_OSERR, "out of memory");
	plain_text(p);
	return p;
}

static bool ends(const char *key, const char *tail)
{
	size_t n = strlen(key), m = strlen(tail);

	return n >= m && strcmp(key + n - m, tail) == 0;
}

static bool is_bytes(const char *key)
{
	static const char *const known[] = { "total", "available", "limit", "used", "peak_rss" };

	for (size_t i = 0; i < sizeof known / sizeof *known; i++)
		if (strcmp(key, known[i]) == 0)
			return true;
	return ends(key, "bytes") || strncmp(key, "mem_", 4) == 0;
}

static char *text_cell(const char *text)
{
	size_t n = strlen(text), max = LONGEST;
	char head[LONGEST + 32], *p = copy(text);

	if (n <= max || opt_verbose)
		return p;
	while ((p[max] & 0xc0) == 0x80)		/* not inside a character */
		max--;
	snprintf(head, sizeof head, "%.*s... (%zu bytes)", (int)max, p, n);
	free(p);
	return copy(head);
}

/* A number, text or truth. */
static char *value_cell(const char *key, const json_t *v)
{
	char text[32];

	if (json_is_string(v))
		return text_cell(json_string_value(v));
	if (json_is_boolean(v))
		return copy(json_is_true(v) ? "yes" : "no");
	if (!json_is_number(v))
		return copy("-");
	if (is_bytes(key))
		human_bytes(json_number_value(v), text);
	else if (json_is_integer(v))
		snprintf(text, sizeof text, "%lld", (long long)json_integer_value(v));
	else
		snprintf(text, sizeof text, "%.5g", json_real_value(v));
	return copy(text);
}

static char *list_cell(const char *key, const json_t *list)
{
	size_t n = json_array_size(list), shown = n > FEW && !opt_verbose ? FEW : n, size;
	char *text = NULL, *one;
	FILE *f = open_memstream(&text, &size);

	if (f == NULL)
		err_die(EX_OSERR, "out of memory");
	for (size_t i = 0; i < shown; i++) {
		one = value_cell(key, json_array_get(list, i));
		fprintf(f, "%s%s", i ? ", " : "", one);
		free(one);
	}
	if (shown < n)
		fprintf(f, ", ... (%zu)", n);
	if (n == 0)
		fputc('-', f);
	fclose(f);
	return text;
}

static bool is_flat(const json_t *v)
{
	const char *key;
	json_t *one;
	size_t i;

	json_object_foreach((json_t *)(uintptr_t)v, key, one)
		if (json_is_object(one) || (json_is_array(one) && !is_flat(one)))
			return false;
	json_array_foreach(v, i, one)
		if (json_is_object(one) || json_is_array(one))
			return false;
	return true;
}

static char *cell_of(const char *key, const json_t *v)
{
	return json_is_array(v) ? list_cell(key, v) : value_cell(key, v);
}

/* ---- grids ---- */

static void own_cell(struct human_grid *g, char *text)
{
	char **more = realloc(g->cell, (g->n + 1) * sizeof *more);

	if (more == NULL)
		err_die(EX_OSERR, "out of memory");
	g->cell = more;
	g->cell[g->n++] = text;
}

void human_cell(struct human_grid *g, const char *text)
{
	own_cell(g, copy(text));
}

/* One cell; the last of a line has no blanks behind it. */
static void put_cell(const char *text, int width, bool right, bool last, FILE *f)
{
	int pad = width - columns_of(text);

	pad = pad < 0 ? 0 : pad;
	if (right)
		fprintf(f, "%*s%s", pad, "", text);
	else
		fprintf(f, "%s%*s", text, last ? 0 : pad, "");
	fputs(last ? "\n" : "  ", f);
}

/* Whether all of a column but its first cell, which may be the head, are numbers. */
static bool measure(const struct human_grid *g, int column, int *width)
{
	bool right = !g->left && g->n > (size_t)g->columns;

	*width = 0;
	for (size_t i = (size_t)column; i < g->n; i += (size_t)g->columns) {
		int w = columns_of(g->cell[i]);

		*width = w > *width ? w : *width;
		if (i >= (size_t)g->columns)
			right = right && is_number(g->cell[i]);
	}
	return right;
}

void human_grid(struct human_grid *g, FILE *f)
{
	/* A grid may be empty and have no columns. */
	int *width = mem_alloc((size_t)(g->columns + 1) * sizeof *width);
	bool *right = mem_alloc((size_t)(g->columns + 1) * sizeof *right);

	for (int c = 0; c < g->columns; c++)
		right[c] = measure(g, c, &width[c]);
	for (size_t i = 0; i < g->n; i++) {
		int c = (int)(i % (size_t)g->columns);

		if (c == 0)
			fprintf(f, "%*s", g->indent, "");
		put_cell(g->cell[i], width[c], right[c], c == g->columns - 1, f);
		free(g->cell[i]);
	}
	free(g->cell);
	g->cell = NULL;
	g->n = 0;
	mem_free(width);
	mem_free(right);
}

/* ---- pages ---- */

/* A list of flat objects: a line for each, a column for each key. */
static void put_list(const char *name, const json_t *list, int indent)
{
	struct human_grid g = { .indent = indent + 2 };
	json_t *one, *all = json_object(), *v;
	const char *key;
	size_t i;

	printf("%*s%s\n", indent, "", name);
	json_array_foreach(list, i, one)
		json_object_update_missing(all, one);
	g.columns = (int)json_object_size(all);
	json_object_foreach(all, key, v)
		human_cell(&g, key);
	json_array_foreach(list, i, one)
		json_object_foreach(all, key, v)
			own_cell(&g, cell_of(key, json_object_get(one, key)));
	human_grid(&g, stdout);
	json_decref(all);
}

static bool is_list(const json_t *v)
{
	json_t *one;
	size_t i;

	json_array_foreach(v, i, one)
		if (!json_is_object(one) || json_object_size(one) == 0 || !is_flat(one))
			return false;
	return json_array_size(v) > 0;
}

/* Several flat objects side by side: a column for each, a line for each key of the first. */
static bool is_sides(const json_t *v)
{
	const char *key;
	json_t *one;

	if (!json_is_object(v) || json_object_size(v) < 2 || json_object_size(v) > COLUMNS)
		return false;
	json_object_foreach((json_t *)(uintptr_t)v, key, one)
		if (!json_is_object(one) || !is_flat(one))
			return false;
	return true;
}

static void put_sides(const char *name, json_t *sides, int indent)
{
	struct human_grid g = { .columns = (int)json_object_size(sides) + 1, .indent = indent };
	json_t *one, *all = json_object(), *v;
	const char *side, *key;

	human_cell(&g, name);
	json_object_foreach(sides, side, one) {
		human_cell(&g, side);
		json_object_update_missing(all, one);
	}
	json_object_foreach(all, key, v) {
		human_cell(&g, key);
		json_object_foreach(sides, side, one)
			own_cell(&g, cell_of(key, json_object_get(one, key)));
	}
	human_grid(&g, stdout);
	json_decref(all);
}

static void put_object(json_t *o, int indent, bool bytes);

static void put_nested(const char *key, json_t *v, int indent)
{
	json_t *one;
	size_t i;

	if (is_sides(v)) {
		put_sides(key, v, indent);
		return;
	}
	if (is_list(v)) {
		put_list(key, v, indent);
		return;
	}
	if (json_is_object(v)) {
		printf("%*s%s\n", indent, "", key);
		put_object(v, indent + 2, strcmp(key, "items") == 0);
	}
	json_array_foreach(v, i, one) {
		printf("%*s%s %zu\n", indent, "", key, i + 1);
		put_object(one, indent + 2, false);
	}
}

/* What is flat in two columns, then what is not. bytes: its numbers are (the items of a plan). */
static void put_object(json_t *o, int indent, bool bytes)
{
	struct human_grid g = { .columns = 2, .indent = indent, .left = true };
	const char *key;
	json_t *v;

	json_object_foreach(o, key, v)
		if (strcmp(key, "type") != 0 && !json_is_object(v) && is_flat(v)) {
			human_cell(&g, key);
			own_cell(&g, cell_of(bytes ? "bytes" : key, v));
		}
	human_grid(&g, stdout);
	json_object_foreach(o, key, v)
		if (json_is_object(v) || !is_flat(v))
			put_nested(key, v, indent);
}

static void put_page(json_t *r)
{
	const char *type = json_string_value(json_object_get(r, "type"));

	if (s.any)
		putchar('\n');
	puts(type ? type : "record");
	put_object(r, 2, false);
	s.last = NULL;
}

/* ---- tables that grow ---- */

static void add_column(struct table *t, const char *key)
{
	if (t->n == COLUMNS)
		return;
	t->key[t->n] = copy(key);
	t->width[t->n++] = columns_of(key);
}

void human_table(const char *type, const char *keys, bool live)
{
	struct table *t = &s.t[s.n];
	char *list = copy(keys), *save, *key;

	if (s.n == TABLES)
		err_die(EX_SOFTWARE, "more than %d tables", TABLES);
	s.n++;
	t->live = live;
	snprintf(t->type, sizeof t->type, "%s", type);
	for (key = strtok_r(list, " ", &save); key; key = strtok_r(NULL, " ", &save)) {
		t->rest = strcmp(key, "*") == 0;
		if (!t->rest)
			add_column(t, key);
	}
	free(list);
}

static struct table *table_of(const json_t *r)
{
	const char *type = json_string_value(json_object_get(r, "type"));

	for (int i = 0; type && i < s.n; i++)
		if (strcmp(s.t[i].type, type) == 0)
			return &s.t[i];
	return NULL;
}

/* The keys that the table was not told of, and the widths that one row tells of. */
static void settle(struct table *t, json_t *r)
{
	const char *key;
	json_t *v;

	if (!t->rest)
		return;
	t->rest = false;
	json_object_foreach(r, key, v) {
		bool known = strcmp(key, "type") == 0 || json_is_object(v) || json_is_array(v);

		for (int i = 0; i < t->n; i++)
			known = known || strcmp(t->key[i], key) == 0;
		if (!known)
			add_column(t, key);
	}
}

/* Adds to the rows that wait, which begin with their heads. */
static void keep_row(struct table *t, const json_t *r)
{
	if (t->rows.n == 0) {
		t->rows.columns = t->n;
		for (int i = 0; i < t->n; i++)
			human_cell(&t->rows, t->key[i]);
	}
	for (int i = 0; i < t->n; i++)
		own_cell(&t->rows, cell_of(t->key[i], json_object_get(r, t->key[i])));
	s.last = t;
}

void human_end(void)
{
	for (int i = 0; i < s.n; i++) {
		if (s.t[i].rows.n > 0 && s.any)
			putchar('\n');
		s.any = s.any || s.t[i].rows.n > 0;
		human_grid(&s.t[i].rows, stdout);
	}
}

static void put_row(struct table *t, json_t *r)
{
	bool head = s.last != t, number[COLUMNS];
	char *cell[COLUMNS];

	for (int i = 0; i < t->n; i++) {
		const json_t *v = json_object_get(r, t->key[i]);
		int width;

		cell[i] = cell_of(t->key[i], v);
		number[i] = is_number(cell[i]);
		width = json_is_real(v) ? REAL_WIDTH : columns_of(cell[i]);
		t->width[i] = width > t->width[i] ? width : t->width[i];
	}
	if (head && s.any)
		putchar('\n');
	for (int i = 0; head && i < t->n; i++)
		put_cell(t->key[i], t->width[i], number[i], i == t->n - 1, stdout);
	for (int i = 0; i < t->n; i++) {
		put_cell(cell[i], t->width[i], number[i], i == t->n - 1, stdout);
		free(cell[i]);
	}
	s.last = t;
}

int human_put(const json_t *record, struct err *e)
{
	struct table *t;
	json_t *r;

	if (!human())
		return json_put(stdout, record, e);
	r = plain_json(record);
	t = table_of(r);
	progress_wipe();
	if (t == NULL || t != s.last)
		human_end();
	if (t != NULL)
		settle(t, r);
	if (t == NULL)
		put_page(r);
	else if (t->live)
		put_row(t, r);
	else
		keep_row(t, r);
	s.any = s.any || t == NULL || t->live;
	json_decref(r);
	return fflush(stdout) == EOF ? err_set(e, EX_IOERR, "standard output:") : 0;
}
