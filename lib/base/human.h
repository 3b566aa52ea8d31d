/*
 * human: what a program says on stdout, as records for a program or as pages and tables for people.
 *
 *	static struct opt opts[] = { ..., { .kind = OPT_TABLE, .value = human_opts }, { 0 } };
 *	human_table("step", "step loss lr *");	(records of this type are rows of a table)
 *	human_put(record, &e);			(in place of json_put(stdout, record, &e))
 *
 * People read stdout when it is a terminal and no launcher reads it for them (mpirun gives its
 * ranks terminals of their own); -H and --json force one or the other. For people a record is a
 * page: its type, then a line for each key. An object in it is indented, or, where it holds several
 * flat objects, a table with a column for each. Columns are as wide as what is in them. Text may
 * come from files of strangers and passes through plain.h.
 */
#ifndef CHR_HUMAN_H
#define CHR_HUMAN_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include "base/err.h"
#include "base/opt.h"

extern struct opt human_opts[];		/* -H --human, --json */

bool human(void);			/* is stdout for people? Asked after opt_parse() */

/* Writes a record in the way that was chosen. 0, or -1 with EX_IOERR. */
int human_put(const json_t *record, struct err *e) CHR_MUST_CHECK;

/* For people, records of `type` are rows of a table of these keys, which are separated by blanks.
 * "*" as the last one: also the other keys of the first such record whose values are numbers or
 * text. live: a row is written at once, and columns may get wider on the way; else rows wait for
 * a record of another type, or the end. */
void human_table(const char *type, const char *keys, bool live);

void human_end(void);			/* writes the rows that wait */

/* ---- parts, for pages of other shapes ---- */

/* A table whose cells are added row by row; strings are copied. */
struct human_grid {
	int columns, indent;
	bool left;		/* all columns stand left */
	size_t n;		/* cells */
	char **cell;
};

void human_cell(struct human_grid *g, const char *text);

/* Writes the rows and forgets them. Columns of numbers stand right, others left. */
void human_grid(struct human_grid *g, FILE *f);

/* 1536 as "1.5 KiB"; returns out. */
const char *human_bytes(double n, char out[32]);

#endif
