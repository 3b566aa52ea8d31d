/* The canonical command line, and the ancestry list. */
#include <string.h>

#include "format/prov.h"
#include "tap.h"

static bool flag;
static int64_t steps;
static const char *out, *dtype;
static const struct opt inner[] = {
	{ 'n', "steps", OPT_COUNT, &steps, 0, 0, "N", "" },
	{ 0, "skip-bad", OPT_FLAG, &flag, 0, 0, NULL, "" },
	{ 0, "skip", OPT_COUNT, &steps, 0, 0, "N", "" },
	{ .kind = OPT_END }
};
static const struct opt opts[] = {
	{ 'o', "out", OPT_STR | OPT_TALKS, &out, 0, 0, "DIR", "" },
	{ .kind = OPT_TABLE, .value = (void *)inner },
	{ 0, "dtype", OPT_STR, &dtype, 0, 0, "T", "" },
	{ .kind = OPT_END }
};

static void gives(const char *want, int argc, char *const argv[])
{
	json_t *list = prov_command(argc, argv, opts, OPT_TALKS);
	char got[400] = "";
	size_t i;
	json_t *v;

	json_array_foreach(list, i, v) {
		if (i > 0)
			snprintf(got + strlen(got), sizeof got - strlen(got), "%s%s", i > 1 ? " "
			    : "", json_string_value(v));
	}
	if (!ok(strcmp(got, want) == 0, "%s", want))
		printf("# got %s\n", got);
	json_decref(list);
}
#define GIVES(want, ...) \
	gives(want, (int)(sizeof((char *[]){ "p", __VA_ARGS__ }) / sizeof(char *)), \
	    (char *[]){ "p", __VA_ARGS__, NULL })

static void test_ancestry(void)
{
	json_t *cmd = json_pack("[s, s]", "p", "x"), *first, *second, *list;
	struct prov p = { .program = "p", .command = cmd };

	first = prov_metadata(&p);
	p.parent_metadata = first;
	p.parent = "abcd";
	second = prov_metadata(&p);
	list = json_loads(json_string_value(json_object_get(second, "chronos.ancestry")), 0, NULL);
	ok(json_array_size(list) == 2, "each program appends itself");
	ok(json_is_null(json_object_get(json_array_get(list, 0), "parent")),
	    "the first has no parent");
	ok(strcmp(json_string_value(json_object_get(json_array_get(list, 1), "parent")), "abcd") ==
	    0, "the second has");
	ok(json_object_get(second, "chronos.seed") == NULL, "what is not known is left out");
	json_decref(list);
	json_decref(first);
	json_decref(second);
	json_decref(cmd);
}

int main(void)
{
	GIVES("--steps=20 a b", "-n", "20", "a", "b");
	GIVES("--steps=20 a", "-n20", "-o", "dir", "a");
	GIVES("--steps=20 a", "a", "-qn20");
	GIVES("--steps=20", "-qqn", "20", "-odir");
	GIVES("--steps=20 --dtype=bf16", "--steps=20", "--out=x", "--dt", "bf16", "--out", "y");
	GIVES("--skip-bad --no-skip-bad --skip=3 --skip-bad", "--skip-bad", "--no-skip-bad",
	    "--skip", "3", "--skip-b");
	GIVES("--steps=1 - -n 2", "-n", "1", "-", "--", "-n", "2");
	test_ancestry();
	return tap_done();
}
