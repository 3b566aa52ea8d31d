/*
 * opt: one table drives getopt_long, --help with live defaults, and the test that man pages list
 * the same options.
 *
 *	static struct opt opts[] = {
 *		{ 'n', "steps", OPT_COUNT, &o.steps, 1, 1e9, "N", "optimiser steps" },
 *		{ 0, "eval", OPT_STR, &o.eval, 0, 0, "FILE", "held-out records" },
 *		{ .kind = OPT_TABLE, .value = train_opts },		(more options from
 *		another table)
 *		{ 0 }
 *	};
 *	static const struct opt_prog prog = { "chr-sft", "[options] [FILE...]", "train on
 *	    conversations", "..." };
 *	int first = opt_parse(argc, argv, opts, &prog);			(index of the first operand)
 *
 * Every table gets -q, -v, -h, -V for free. A later table entry with the same long name replaces
 * an earlier one. Mistakes end the program: one line on stderr and status 64. --help and
 * --version print on stdout and exit 0.
 */
#ifndef CHR_OPT_H
#define CHR_OPT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum opt_kind {
	OPT_END,	/* end of table */
	OPT_FLAG,	/* bool *; --name sets true, --no-name sets false */
	OPT_INT,	/* int *; plain integer in lo..hi */
	OPT_COUNT,	/* int64_t *; k M G are powers of 1000 */
	OPT_BYTES,	/* int64_t *; K M G T powers of 1024, KB MB GB TB of 1000 */
	OPT_FLOAT,	/* double * in lo..hi */
	OPT_STR,	/* const char ** */
	OPT_OUT,	/* const char **; a file that is written: it must not be one that is
			   read, as an operand or by another option */
	OPT_CHOICE,	/* int *; arg is "one|two|three", value becomes the index */
	OPT_LIST,	/* struct opt_list *; may be given several times */
	OPT_TABLE,	/* value is another struct opt[] to include */
	OPT_GROUP,	/* help is a heading for --help */
	OPT_VERBOSE, OPT_HELP, OPT_VERSION,	/* opt's own */

	/* May be added to a kind, for those who write down how a result was made (prov.h): */
	OPT_KINDS = 0xff,
	OPT_JUDGES = 0x100,	/* changes a result only where an evaluation chooses it */
	OPT_TALKS = 0x200	/* where, how often, how fast, how loud: changes none */
};

struct opt_list {
	int n;
	const char **v;	/* owned by opt; lives as long as the program */
};

struct opt {
	int letter;		/* 0: long form only */
	const char *name;	/* long form, without dashes */
	int kind;		/* enum opt_kind */
	void *value;
	double lo, hi;		/* inclusive range of numbers; both 0: unchecked */
	const char *arg;	/* name of the argument in --help */
	const char *help;
};

struct opt_prog {
	const char *name;
	const char *operands;	/* "[FILE...]" */
	const char *purpose;	/* one line, lower case */
	const char *notes;	/* extra paragraphs for --help, or NULL */
	bool reads_stdin;	/* no operand and a terminal on stdin: usage on stderr, status 64 */
};

extern bool opt_quiet;	/* -q */
extern int opt_verbose;	/* -v, countable */

int opt_parse(int argc, char **argv, const struct opt *opts, const struct opt_prog *prog);
/* Was the option of this long name on the command line? */
bool opt_given(const char *name);

/* Options that are the value of an option (--`name`): words between blanks, parsed like a
 * command line without operands. */
void opt_parse_text(const char *name, const char *text, const struct opt *opts,
    const struct opt_prog *prog);

/* Whole-string number parsers, for values that are not options. Return 0, or -1 and *why is a
 * phrase. */
int opt_bytes(const char *s, int64_t *out, const char **why);
int opt_count(const char *s, int64_t *out, const char **why);
int opt_float(const char *s, double *out, const char **why);

/* Ends with status 64 and "prog: msg (try --help)". */
_Noreturn void opt_usage(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
