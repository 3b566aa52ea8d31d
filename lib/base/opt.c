#include "base/opt.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "base/file.h"
#include "base/mem.h"

#define OPT_MAX 128
#define OPT_NAME 48		/* bytes of a name, at most */
#define OPT_COLUMN 30		/* where the help text starts */
#define OPT_WIDTH 96

enum { OPT_LONG = 1000, OPT_NO = 2000 };	/* getopt's values for --name and --no-name of
						   table entry 0 */

bool opt_quiet;
int opt_verbose;

/* The tables flattened. */
static struct opt_set {
	int n;
	struct opt o[OPT_MAX];
} set;
static bool given[OPT_MAX];	/* was this one on the command line? */

static const struct opt standard[] = {
	{ .kind = OPT_GROUP, .help = "General" },
	{ 'q', "quiet", OPT_FLAG | OPT_TALKS, &opt_quiet, 0, 0, NULL,
	    "say nothing that is not an error" },
	{ 'v', "verbose", OPT_VERBOSE | OPT_TALKS, &opt_verbose, 0, 0, NULL,
	    "say more; may be repeated" },
	{ 'h', "help", OPT_HELP, NULL, 0, 0, NULL, "print this help" },
	{ 'V', "version", OPT_VERSION, NULL, 0, 0, NULL, "print version and features" },
	{ .kind = OPT_END }
};

void opt_usage(const char *fmt, ...)
{
	char msg[400];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(msg, sizeof msg, fmt, ap);
	va_end(ap);
	err_die(EX_USAGE, "%s (try --help)", msg);
}

/* --- numbers --- */

static const struct unit { const char *name; double by; } bytes_units[] = {
	{ "K", 1024 }, { "M", 1048576 }, { "G", 1073741824 }, { "T", 1099511627776 },
	{ "KB", 1e3 }, { "MB", 1e6 }, { "GB", 1e9 }, { "TB", 1e12 }, { NULL, 0 }
}, count_units[] = { { "k", 1e3 }, { "M", 1e6 }, { "G", 1e9 }, { NULL, 0 } };

/* [-]digits[.digits][unit], and the product must be whole and fit. */
static int scaled(const char *s, const struct unit *u, int64_t *out, const char **why)
{
	size_t sign = *s == '-', n = strspn(s + sign, "0123456789."),
	    whole = strspn(s + sign, "0123456789");
	char *end;
	long double v;

	*why = "not a number";
	if (!whole)
		return -1;
	v = strtold(s, &end);
	if (end != s + sign + n) {
		if (end < s + sign + n)		/* 1.2.3 */
			return -1;
		end = (char *)s + sign + n;	/* 1e3, 0x10: strtold went further than we allow */
		v = 0;
	}
	while (u->name && strcmp(u->name, end))
		u++;
	if (*end && !u->name) {
		*why = "not a number with a known unit";
		return -1;
	}
	v *= *end ? (long double)u->by : 1;
	if (v >= 9223372036854775808.0L || v < -9223372036854775808.0L) {
		*why = "out of range";
		return -1;
	}
	if (v != floorl(v)) {
		*why = "not a whole number";
		return -1;
	}
	*out = (int64_t)v;
	return 0;
}

int opt_bytes(const char *s, int64_t *out, const char **why)
{
	return scaled(s, bytes_units, out, why);
}

int opt_count(const char *s, int64_t *out, const char **why)
{
	return scaled(s, count_units, out, why);
}

int opt_float(const char *s, double *out, const char **why)
{
	char *end;
	double v;

	*why = "not a number";
	if (!*s || s[strspn(s, "0123456789+-.eE")])	/* no hexadecimal, no "inf", no blanks */
		return -1;
	v = strtod(s, &end);
	if (end == s || *end)
		return -1;
	*why = "out of range";
	if (!isfinite(v))
		return -1;
	*out = v;
	return 0;
}

static int plain_int(const char *s, int64_t *out, const char **why)
{
	size_t sign = *s == '-', n = strspn(s + sign, "0123456789");

	*why = "not a whole number";
	if (!n || s[sign + n])
		return -1;
	errno = 0;
	*out = strtoll(s, NULL, 10);
	*why = "out of range";
	return errno ? -1 : 0;
}

/* --- the table --- */

static void set_add(const struct opt *o)
{
	int i;

	for (i = 0; i < set.n; i++)
		if (o->name && set.o[i].name && !strcmp(set.o[i].name, o->name))
			break;
	if (i == OPT_MAX)
		err_die(EX_SOFTWARE, "more than %d options", OPT_MAX);
	set.o[i] = *o;
	set.o[i].kind &= OPT_KINDS;
	set.n += i == set.n;
}

static void set_fill(const struct opt *o)
{
	for (; o->kind != OPT_END; o++) {
		if (o->kind == OPT_TABLE)
			set_fill(o->value);
		else
			set_add(o);
	}
}

/* The program's own options come first in --help and win over the standard ones in letters
 * (chr-tokenize -v). */
static void set_standard(void)
{
	for (const struct opt *s = standard; s->kind != OPT_END; s++) {
		struct opt o = *s;
		bool known = false;

		for (int i = 0; i < set.n; i++) {
			if (o.letter && set.o[i].letter == o.letter)
				o.letter = 0;
			known |= o.name && set.o[i].name && !strcmp(set.o[i].name, o.name);
		}
		if (!known)
			set_add(&o);
	}
}

static bool takes_arg(const struct opt *o)
{
	return o->kind >= OPT_INT && o->kind <= OPT_LIST;
}

/* --- help --- */

static void print_scaled(char *buf, size_t size, int64_t v, const struct unit *u)
{
	const char *name = "";
	int64_t shown = v;

	for (; u->name && !u->name[1]; u++)	/* single-letter units only */
		if (v && v % (int64_t)u->by == 0) {
			name = u->name;
			shown = v / (int64_t)u->by;
		}
	snprintf(buf, size, "%lld%s", (long long)shown, name);
}

static void choice_name(const char *names, int i, char *buf, size_t size)
{
	for (; i > 0 && *names; i--) {
		names += strcspn(names, "|");
		names += *names == '|';
	}
	snprintf(buf, size, "%.*s", (int)strcspn(names, "|"), names);
}

/* What the variable holds now, or "" when there is nothing to say. */
static void default_text(const struct opt *o, char *buf, size_t size)
{
	*buf = '\0';
	switch (o->kind) {
	case OPT_INT: snprintf(buf, size, "%d", *(int *)o->value); break;
	case OPT_COUNT: print_scaled(buf, size, *(int64_t *)o->value, count_units); break;
	case OPT_BYTES: print_scaled(buf, size, *(int64_t *)o->value, bytes_units); break;
	case OPT_FLOAT: snprintf(buf, size, "%g", *(double *)o->value); break;
	case OPT_CHOICE: choice_name(o->arg, *(int *)o->value, buf, size); break;
	case OPT_STR: case OPT_OUT:
		if (*(const char **)o->value && **(const char **)o->value)
			snprintf(buf, size, "%s", *(const char **)o->value);
		break;
	case OPT_FLAG:
		if (*(bool *)o->value)
			snprintf(buf, size, "on; --no-%s", o->name);
		break;
	default: break;
	}
}

/* Prints text from `column`, broken at blanks. */
static void print_wrapped(const char *text, int column)
{
	int at = column;

	while (*text) {
		int n = (int)strcspn(text, " ");

		if (at > column && at + 1 + n > OPT_WIDTH) {
			printf("\n%*s", column, "");
			at = column;
		}
		at += printf("%s%.*s", at > column ? " " : "", n, text);
		text += n;
		text += strspn(text, " ");
	}
	putchar('\n');
}

static bool is_text(const struct opt *o)
{
	return o->kind == OPT_STR || o->kind == OPT_OUT || o->kind == OPT_LIST;
}

static void help_option(const struct opt *o)
{
	char def[128], text[768];
	int n = o->letter ? printf("  -%c, --%s", o->letter, o->name) : printf("      --%s",
	    o->name);

	if (takes_arg(o))
		n += printf(" %s", o->arg ? o->arg : is_text(o) ? "TEXT" : "N");
	if (n + 2 > OPT_COLUMN) {
		putchar('\n');
		n = 0;
	}
	printf("%*s", OPT_COLUMN - n, "");
	default_text(o, def, sizeof def);
	snprintf(text, sizeof text, "%s%s%s%s", o->help ? o->help : "", *def ? " (" : "", def, *def
	    ? ")" : "");
	print_wrapped(text, OPT_COLUMN);
}

static void help(const struct opt_prog *prog)
{
	printf("usage: %s %s\n%s: %s\n", prog->name, prog->operands ? prog->operands : "[options]",
	    prog->name,
		prog->purpose);
	for (int i = 0; i < set.n; i++) {
		if (set.o[i].kind == OPT_GROUP) {
			printf("\n%s:\n", set.o[i].help);
		} else {
			if (i == 0)
				printf("\nOptions:\n");
			help_option(&set.o[i]);
		}
	}
	if (prog->notes)
		printf("\n%s\n", prog->notes);
	err_close_stdout();
	exit(EX_OK);
}

static void version(void)
{
	printf("%s %s\n%s\n", err_prog, CHR_VERSION, CHR_FEATURES);
	err_close_stdout();
	exit(EX_OK);
}

/* --- values --- */

static int choice_index(const char *names, const char *s)
{
	for (int i = 0; ; i++) {
		size_t n = strcspn(names, "|");

		if (strlen(s) == n && !strncmp(names, s, n))
			return i;
		if (!names[n])
			return -1;
		names += n + 1;
	}
}

static void list_add(struct opt_list *l, const char *s)
{
	const char **v = realloc(l->v, ((size_t)l->n + 1) * sizeof *v);

	if (!v)
		err_die(EX_OSERR, "out of memory");
	v[l->n++] = s;
	l->v = v;
}

static void in_range(const struct opt *o, double v, const char *arg)
{
	if ((o->lo != 0 || o->hi != 0) && (v < o->lo || v > o->hi))
		opt_usage("--%s: %s is not between %.10g and %.10g", o->name, arg, o->lo, o->hi);
}

static void take_number(const struct opt *o, const char *arg)
{
	int (*parse)(const char *, int64_t *, const char **) = o->kind == OPT_INT ? plain_int
		: o->kind == OPT_COUNT ? opt_count : opt_bytes;
	const char *why;
	int64_t v;

	if (parse(arg, &v, &why))
		opt_usage("--%s: %s is %s", o->name, arg, why);
	in_range(o, (double)v, arg);
	if (o->kind != OPT_INT)
		*(int64_t *)o->value = v;
	else if (v < INT_MIN || v > INT_MAX)
		opt_usage("--%s: %s is out of range", o->name, arg);
	else
		*(int *)o->value = (int)v;
}

static void take_value(const struct opt *o, const char *arg)
{
	const char *why;
	double d;
	int i;

	switch (o->kind) {
	case OPT_INT: case OPT_COUNT: case OPT_BYTES:
		take_number(o, arg);
		break;
	case OPT_FLOAT:
		if (opt_float(arg, &d, &why))
			opt_usage("--%s: %s is %s", o->name, arg, why);
		in_range(o, d, arg);
		*(double *)o->value = d;
		break;
	case OPT_CHOICE:
		i = choice_index(o->arg, arg);
		if (i < 0)
			opt_usage("--%s: %s is none of %s", o->name, arg, o->arg);
		*(int *)o->value = i;
		break;
	case OPT_STR: case OPT_OUT:
		*(const char **)o->value = arg;
		break;
	case OPT_LIST:
		list_add(o->value, arg);
		break;
	default:
		err_die(EX_SOFTWARE, "option --%s has no kind", o->name);
	}
}

bool opt_given(const char *name)
{
	for (int i = 0; i < set.n; i++)
		if (set.o[i].name != NULL && strcmp(set.o[i].name, name) == 0)
			return given[i];
	return false;
}

static void take(int i, bool no, const char *arg, const struct opt_prog *prog)
{
	const struct opt *o = &set.o[i];

	given[i] = true;
	switch (o->kind) {
	case OPT_HELP: help(prog); break;
	case OPT_VERSION: version(); break;
	case OPT_VERBOSE: ++*(int *)o->value; break;
	case OPT_FLAG: *(bool *)o->value = !no; break;
	default: take_value(o, arg);
	}
}

/* --- parsing --- */

static int find_letter(int c)
{
	for (int i = 0; i < set.n; i++)
		if (set.o[i].letter == c)
			return i;
	return -1;
}

/* getopt's tables from ours. */
static void make_getopt(char *letters, struct option *l)
{
	static char no[OPT_MAX][OPT_NAME];	/* names of --no-* flags */

	*letters++ = ':';	/* a missing argument is told apart from an unknown option */
	for (int i = 0; i < set.n; i++) {
		const struct opt *o = &set.o[i];

		if (o->kind == OPT_GROUP)
			continue;
		if (o->letter) {
			*letters++ = (char)o->letter;
			if (takes_arg(o))
				*letters++ = ':';
		}
		*l++ = (struct option){ o->name, takes_arg(o), NULL, OPT_LONG + i };
		if (o->kind == OPT_FLAG) {
			snprintf(no[i], sizeof no[i], "no-%s", o->name);
			*l++ = (struct option){ no[i], 0, NULL, OPT_NO + i };
		}
	}
	*letters = '\0';
	*l = (struct option){0};
}

_Noreturn static void complain(int c, char **argv)
{
	const char *word = argv[optind - 1];

	if (c == ':')
		opt_usage("%s needs an argument", word);
	if (optopt >= OPT_LONG)
		opt_usage("%s takes no argument", word);
	if (optopt)
		opt_usage("unknown option -%c", optopt);
	opt_usage("unknown option %s", word);
}

/* Writing would destroy what is read. */
static void check_output(const struct opt *out, int n, char *const operand[])
{
	const char *path = *(const char *const *)out->value;

	for (int i = 0; path && i < n; i++)
		if (file_same(path, operand[i]))
			opt_usage("--%s %s is also read", out->name, path);
	for (int i = 0; path && i < set.n; i++) {
		const struct opt *o = &set.o[i];
		const char *other = o->kind == OPT_STR ? *(const char **)o->value : NULL;

		if (other && file_same(path, other))
			opt_usage("--%s %s is also the file of --%s", out->name, path, o->name);
	}
}

int opt_parse(int argc, char **argv, const struct opt *opts, const struct opt_prog *prog)
{
	static struct option l[2 * OPT_MAX + 1];
	static char letters[2 * OPT_MAX + 2];
	int c;

	set.n = 0;
	memset(given, 0, sizeof given);
	set_fill(opts);
	set_standard();
	make_getopt(letters, l);
	opterr = 0;
	while ((c = getopt_long(argc, argv, letters, l, NULL)) != -1) {
		if (c == '?' || c == ':')
			complain(c, argv);
		else if (c >= OPT_NO)
			take(c - OPT_NO, true, optarg, prog);
		else
			take(c >= OPT_LONG ? c - OPT_LONG : find_letter(c), false, optarg, prog);
	}
	if (prog->reads_stdin && optind == argc && isatty(STDIN_FILENO))
		opt_usage("usage: %s %s", prog->name, prog->operands);
	for (int i = 0; i < set.n; i++)
		if (set.o[i].kind == OPT_OUT)
			check_output(&set.o[i], argc - optind, argv + optind);
	return optind;
}

void opt_parse_text(const char *name, const char *text, const struct opt *opts,
    const struct opt_prog *prog)
{
	/* values point into the words, which follow */
	static struct text { struct text *next; char *argv[]; } *kept;
	size_t most = strlen(text) / 2 + 3;
	struct text *t = mem_alloc(sizeof *t + most * sizeof *t->argv + strlen(text) + 1);
	char **argv = t->argv, *save, *words = strcpy((char *)(argv + most), text);
	int argc = 0;

	t->next = kept;
	kept = t;
	argv[argc++] = (char *)err_prog;
	for (char *w = strtok_r(words, " \t\n", &save); w; w = strtok_r(NULL, " \t\n", &save))
		argv[argc++] = w;
	optind = 0;		/* getopt begins anew */
	if (opt_parse(argc, argv, opts, prog) < argc)
		opt_usage("--%s: \"%s\" is not an option", name, argv[optind]);
}
