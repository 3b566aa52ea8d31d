/*
 * progress: the one line about how far a long job is. On a terminal it is redrawn in place at
 * most five times a second; elsewhere a plain line is written every 30 s, so that a batch log is
 * never silent. --quiet silences both.
 *
 *	struct progress p;
 *	progress_start(&p, "tokenizing", "lines", 0);		(0: nobody knows how many)
 *	while (...)
 *		progress_at(&p, ++n, "%d bad", bad);		(cheap: looks at the clock,
 *		seldom writes)
 *	progress_end(&p);
 *
 * Writes to stderr only. Messages of err_warn() in between should be preceded by progress_clear().
 */
#ifndef CHR_PROGRESS_H
#define CHR_PROGRESS_H

#include <stdbool.h>

struct progress {
	const char *what, *unit;
	double total;			/* 0: unknown, no percentage and no time left */
	double first, began, last;	/* first count seen; seconds on the monotonic clock */
	bool tty, drawn;
};

void progress_start(struct progress *p, const char *what, const char *unit, double total);

/* done: units so far. fmt may be NULL; its text follows the counts. */
void progress_at(struct progress *p, double done, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

void progress_clear(struct progress *p);	/* wipes a line drawn on the terminal */
void progress_wipe(void);			/* the same for whichever is drawn */
void progress_end(struct progress *p);		/* the same, for good */

double progress_clock(void);			/* seconds, monotonic */

#endif
