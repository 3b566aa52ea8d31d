#include "base/child.h"

#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

_Noreturn static void child(json_t *(*fn)(void *), void *arg, const struct cgroup *group, int fd)
{
	struct err e = { 0 };
	FILE *f = fdopen(fd, "w");
	json_t *r;

	if (f == NULL)
		err_die(EX_OSERR, "cannot open a pipe:");
	if (group && cgroup_join(group, &e) < 0)
		err_exit(&e);
	r = fn(arg);
	if (json_dumpf(r, f, JSON_COMPACT) < 0 || fclose(f) != 0)
		err_die(EX_IOERR, "a measurement could not be handed on");
	_exit(EX_OK);	/* what stdout holds is the parent's to write */
}

static int ended(pid_t pid, bool limited, struct err *e)
{
	int status;

	if (waitpid(pid, &status, 0) < 0)
		return err_set(e, EX_OSERR, "waiting for a measurement:");
	if (WIFSIGNALED(status))
		return err_set(e, EX_OSERR, "a measurement was killed by signal %d (%s)%s",
		    WTERMSIG(status), strsignal(WTERMSIG(status)),
		    limited && WTERMSIG(status) == SIGKILL
		    ? ": its control group has too little memory" : "");
	if (WEXITSTATUS(status) != EX_OK) {
		e->status = WEXITSTATUS(status);
		e->msg[0] = '\0';
		return -1;
	}
	return 0;
}

json_t *child_run(json_t *(*fn)(void *), void *arg, const struct cgroup *group, struct err *e)
{
	int fd[2];
	FILE *f;
	json_t *r = NULL;
	pid_t pid;

	fflush(NULL);
	if (pipe(fd) < 0 || (pid = fork()) < 0) {
		err_set(e, EX_OSERR, "cannot start a measurement:");
		return NULL;
	}
	if (pid == 0) {
		close(fd[0]);
		child(fn, arg, group, fd[1]);
	}
	close(fd[1]);
	if ((f = fdopen(fd[0], "r")) != NULL) {
		r = json_loadf(f, JSON_DECODE_ANY, NULL);
		fclose(f);
	}
	if (ended(pid, group != NULL, e) < 0) {
		json_decref(r);
		return NULL;
	}
	if (r == NULL)
		err_set(e, EX_SOFTWARE, "a measurement ended without a result");
	return r;
}
