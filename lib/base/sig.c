#include "base/sig.h"

#include <stddef.h>

volatile sig_atomic_t sig_stop, sig_save;

static void sig_on_stop(int sig)
{
	sig_stop = sig;
	/* The next one is for a program that does not come to the end of its step. */
	signal(SIGINT, SIG_DFL);
	signal(SIGTERM, SIG_DFL);
}

static void sig_on_save(int sig)
{
	(void)sig;
	sig_save = 1;
}

void sig_install(void)
{
	/* or a blocked write to stdout would be lost */
	struct sigaction sa = { .sa_flags = SA_RESTART };

	sigemptyset(&sa.sa_mask);
	sa.sa_handler = sig_on_stop;
	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
	sa.sa_handler = sig_on_save;
	sigaction(SIGUSR1, &sa, NULL);
}
