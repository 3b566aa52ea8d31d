#include "format/prov.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/sha256.h"

/* What every program understands without a table (opt.h). */
static const struct opt free_opts[] = {
	{ 'q', "quiet", OPT_FLAG | OPT_TALKS, NULL, 0, 0, NULL, NULL },
	{ 'v', "verbose", OPT_FLAG | OPT_TALKS, NULL, 0, 0, NULL, NULL },
	{ 0 }
};

/* The option of this letter (or, letter 0, whose name starts with name[0..len)); an exact name
 * wins. */
static const struct opt *find(const struct opt *o, int letter, const char *name, size_t len)
{
	const struct opt *prefix = NULL, *sub;

	for (; o->kind != OPT_END; o++) {
		if (o->kind == OPT_TABLE) {
			sub = find(o->value, letter, name, len);
			if (sub != NULL && (letter != 0 || strlen(sub->name) == len))
				return sub;
			if (sub != NULL)
				prefix = sub;
		} else if (o->kind == OPT_GROUP || o->name == NULL) {
			continue;
		} else if (letter != 0) {
			if (o->letter == letter)
				return o;
		} else if (strncmp(o->name, name, len) == 0) {
			if (o->name[len] == '\0')
				return o;
			prefix = o;
		}
	}
	return prefix;
}

static const struct opt *find_any(const struct opt *opts, int letter, const char *name, size_t len)
{
	const struct opt *o = find(opts, letter, name, len);

	return o != NULL ? o : find(free_opts, letter, name, len);
}

static void append(json_t *list, const struct opt *o, bool no, const char *value,
    int omit)
{
	json_t *s;

	if (o->kind & omit)
		return;
	s = value != NULL ? json_sprintf("--%s=%s", o->name, value) : json_sprintf("--%s%s",
	    no ? "no-" : "", o->name);
	if (s != NULL)			/* NULL: an argument that is not UTF-8 */
		json_array_append_new(list, s);
}

/* One "--name", "--name=value" or "--name value". Returns how many more arguments it took. */
static int long_option(json_t *list, const char *arg, const char *next, const struct opt *opts,
    int omit)
{
	size_t len = strcspn(arg, "=");
	const struct opt *o = find_any(opts, 0, arg, len);
	bool no = false;

	if (o == NULL && len > 3 && strncmp(arg, "no-", 3) == 0) {
		o = find_any(opts, 0, arg + 3, len - 3);
		no = true;
	}
	if (o == NULL)
		return 0;
	if ((o->kind & OPT_KINDS) == OPT_FLAG) {
		append(list, o, no, NULL, omit);
		return 0;
	}
	append(list, o, false, arg[len] == '=' ? arg + len + 1 : next, omit);
	return arg[len] != '=';
}

/* "-qn20", "-qn 20": letters until one takes the rest, or the next argument, as its value. */
static int short_options(json_t *list, const char *arg, const char *next, const struct opt *opts,
    int omit)
{
	const struct opt *o;

	for (; *arg != '\0'; arg++) {
		if ((o = find_any(opts, *arg, "", 0)) == NULL)
			continue;
		if ((o->kind & OPT_KINDS) == OPT_FLAG) {
			append(list, o, false, NULL, omit);
			continue;
		}
		append(list, o, false, arg[1] != '\0' ? arg + 1 : next, omit);
		return arg[1] == '\0';
	}
	return 0;
}

json_t *prov_command(int argc, char *const argv[], const struct opt *opts, int omit)
{
	json_t *list = json_array(), *operands = json_array();
	int i;

	json_array_append_new(list, json_string(err_prog));
	for (i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
		if (argv[i][0] != '-' || argv[i][1] == '\0')
			json_array_append_new(operands, json_string(argv[i]));
		else if (argv[i][1] == '-')
			i += long_option(list, argv[i] + 2, argv[i + 1], opts, omit);
		else
			i += short_options(list, argv[i] + 1, argv[i + 1], opts, omit);
	}
	for (i++; i < argc; i++)
		json_array_append_new(operands, json_string(argv[i]));
	json_array_extend(list, operands);
	json_decref(operands);
	return list;
}

static int hash_file(const char *path, char hex[65], struct err *e)
{
	static uint8_t buf[1 << 16];
	uint8_t digest[32];
	struct sha256 s;
	FILE *f = fopen(path, "rb");
	size_t n;
	int bad;

	if (f == NULL)
		return err_set(e, EX_NOINPUT, "%s:", path);
	sha256_init(&s);
	while ((n = fread(buf, 1, sizeof buf, f)) > 0)
		sha256_update(&s, buf, n);
	bad = ferror(f);
	fclose(f);
	if (bad)
		return err_set(e, EX_IOERR, "%s: cannot read", path);
	sha256_final(&s, digest);
	for (int i = 0; i < 32; i++)
		snprintf(hex + 2 * i, 3, "%02x", digest[i]);
	return 0;
}

json_t *prov_file(const char *path, int64_t records, struct err *e)
{
	char hex[65];

	if (hash_file(path, hex, e) < 0)
		return NULL;
	return json_pack("{s:s, s:s, s:I}", "file", path, "sha256", hex, "records",
	    (json_int_t)records);
}

static void set_dump(json_t *meta, const char *key, const json_t *value)
{
	char *s = json_dumps(value, JSON_COMPACT | JSON_REAL_PRECISION(15));

	if (s != NULL)
		json_object_set_new(meta, key, json_string(s));
	free(s);
}

/* The parent's list with this program at the end; a parent that has none, or none that parses,
 * starts a new one. */
static json_t *ancestry(const struct prov *p)
{
	const char *old = json_string_value(json_object_get(p->parent_metadata,
	    "chronos.ancestry"));
	json_t *list = old != NULL ? json_loads(old, 0, NULL) : NULL;

	if (!json_is_array(list)) {
		json_decref(list);
		list = json_array();
	}
	json_array_append_new(list, json_pack("{s:s, s:s, s:O?, s:s?}", "program", p->program,
	    "version", CHR_VERSION,
	    "command", p->command, "parent", p->parent));
	return list;
}

json_t *prov_metadata(const struct prov *p)
{
	json_t *meta = json_object(), *list = ancestry(p);

	json_object_set_new(meta, "chronos.version", json_string(CHR_VERSION));
	if (p->config != NULL)
		set_dump(meta, "chronos.config", p->config);
	if (p->seed != NULL)
		json_object_set_new(meta, "chronos.seed", json_sprintf("%" PRIu64, *p->seed));
	if (p->data != NULL)
		set_dump(meta, "chronos.data", p->data);
	set_dump(meta, "chronos.ancestry", list);
	json_decref(list);
	return meta;
}
