/*
 * guard: memory watched while a program works, so that it stops in good order before the kernel
 * kills it.
 *
 *	struct guard *g = guard_open("", 0.85, 0.95, &e);
 *	... after each step:
 *	if (guard_check(g) == GUARD_LIMIT)
 *		save and stop;
 *
 * Levels are shares of a limit in use: of the process's control group, of each group around it,
 * and of the machine (memlimit.h). The kernel says when to look where it lets us ask: pressure
 * (PSI), memory.events of a v2 group, memory.pressure_level of a v1 group, and the usage of one.
 * Besides that, usage is read at most once a second. Pressure alone decides nothing: a job that
 * reads many files has it without being in danger.
 */
#ifndef CHR_GUARD_H
#define CHR_GUARD_H

#include <stdint.h>

#include "base/err.h"

struct guard;
enum guard_level { GUARD_OK, GUARD_WARN, GUARD_LIMIT };

/* root: as in mem_limit_read(). warn < limit, shares above 0. EX_USAGE when they are not,
 * EX_OSERR. */
struct guard *guard_open(const char *root, double warn, double limit, struct err *e) CHR_MUST_CHECK;
void guard_close(struct guard *g);		/* may be NULL */

/* Cheap enough for every step. Says on stderr when a level is reached for the first time. g may
 * be NULL: GUARD_OK. */
enum guard_level guard_check(struct guard *g);
enum guard_level guard_look(struct guard *g);	/* the same, and reads now */
int guard_events(const struct guard *g);	/* how many kinds of events the kernel will tell */

/* Bytes that this process may hold in all before a share of some limit is in use, if nobody else
 * takes more; own: what it holds now. */
int64_t guard_room(const char *root, double share, int64_t own);
int64_t guard_slack(const struct guard *g);	/* more that it may take before the warning */

#endif
