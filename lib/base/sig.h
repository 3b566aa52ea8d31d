/*
 * sig: stop flags. SIGINT and SIGTERM ask the program to finish its step, save and exit 75 (a
 * second one kills); SIGUSR1 asks for a checkpoint and goes on; SIGPIPE keeps its default.
 */
#ifndef CHR_SIG_H
#define CHR_SIG_H

#include <signal.h>

extern volatile sig_atomic_t sig_stop;	/* signal number, or 0 */
extern volatile sig_atomic_t sig_save;	/* set by SIGUSR1; the program clears it */

void sig_install(void);

#endif
