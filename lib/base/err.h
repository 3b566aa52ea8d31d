/*
 * err: messages and exit statuses.
 *
 * Programs call err_init(argv[0]) first and may exit through err_die(). Library code never
 * exits: a function that can fail takes a struct err, fills it with err_set() and returns what
 * err_set() returned (-1).
 *
 *	struct err e = {0};
 *	if (config_load(&c, path, &e) < 0)
 *		err_exit(&e);
 *
 * Messages are lower case, without full stop, and say what failed first: `prefs.jsonl:17:
 * missing "messages"`.
 */
#ifndef CHR_ERR_H
#define CHR_ERR_H

#include <stddef.h>
#include <sysexits.h>	/* EX_OK 0, EX_USAGE 64, EX_DATAERR 65, EX_NOINPUT 66, EX_UNAVAILABLE 69,
			   EX_SOFTWARE 70, EX_OSERR 71 (memory or budget), EX_CANTCREAT 73,
			   EX_IOERR 74, EX_TEMPFAIL 75 (stopped early) */

#define EX_NO 1		/* the answer is no (chr-diff, chr-ls --check) */

/* Stands behind a function whose result says whether it failed: the compiler warns where nobody
 * looks at it. */
#define CHR_MUST_CHECK __attribute__((warn_unused_result))

struct err {
	int status;	/* exit status a program should end with; 0 = no error */
	char msg[496];
};

extern const char *err_prog;	/* "chr-sft"; never NULL */

/* Of several processes that run as one (comm.h): those above 0 put their number before errors
 * and warn of nothing. */
extern int err_rank;
extern void (*err_leave)(int status);	/* called by err_die() and err_exit() before they exit;
					   NULL: nothing */

void err_init(const char *argv0);

/* Fills *e and returns -1. A format that ends in ':' gets ": strerror(errno)" as printf-style
 * suffix. */
int err_set(struct err *e, int status, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Prints "prog: msg\n" on stderr and exits with status; a format ending in ':' gets
 * strerror(errno). No message: it was printed by another rank. */
_Noreturn void err_die(int status, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
_Noreturn void err_exit(const struct err *e);
void err_warn(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Flushes and closes stdout; dies with EX_IOERR when any byte of it was lost. The last call of
 * every program. */
void err_close_stdout(void);

#endif
