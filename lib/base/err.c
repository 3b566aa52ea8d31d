#include "base/err.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/plain.h"

const char *err_prog = "chronos";
int err_rank;
void (*err_leave)(int status);

/* Where a standard stream is closed, the first file that is opened would take its place, and be
 * read or written over as that. A descriptor that can be neither read nor written as asked says
 * so. */
static void hold_streams(void)
{
	int fd;

	for (fd = 0; fd < 3; fd = fd < 0 ? 3 : fd + 1)
		if (fcntl(fd, F_GETFD) < 0)
			fd = open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY);
}

void err_init(const char *argv0)
{
	const char *slash = argv0 ? strrchr(argv0, '/') : NULL;

	hold_streams();
	/* A file above the shell's limit on sizes is then a write that fails, as on a full disk. */
	signal(SIGXFSZ, SIG_IGN);
	if (argv0 && *argv0)
		err_prog = slash ? slash + 1 : argv0;
}

/* Formats, and appends strerror(saved) when the format asks for it with a final colon. Names and
 * words in messages come from files of strangers: the one place where they are made plain. */
static void err_format(char *out, size_t size, int saved, const char *fmt, va_list ap)
{
	size_t n = strlen(fmt), used;

	vsnprintf(out, size, fmt, ap);
	used = strlen(out);
	if (n && fmt[n - 1] == ':')
		snprintf(out + used, size - used, " %s", strerror(saved));
	plain_text(out);
}

int err_set(struct err *e, int status, const char *fmt, ...)
{
	int saved = errno;
	va_list ap;

	va_start(ap, fmt);
	err_format(e->msg, sizeof e->msg, saved, fmt, ap);
	va_end(ap);
	e->status = status;
	return -1;
}

/* One write per line, so that lines of programs that share a stderr do not mix. */
static void err_line(const char *msg)
{
	fflush(stdout);
	if (err_rank > 0)
		fprintf(stderr, "%s: rank %d: %s\n", err_prog, err_rank, msg);
	else
		fprintf(stderr, "%s: %s\n", err_prog, msg);
}

_Noreturn static void leave(int status)
{
	if (err_leave != NULL)
		err_leave(status);
	exit(status);
}

void err_die(int status, const char *fmt, ...)
{
	int saved = errno;
	char msg[512];
	va_list ap;

	va_start(ap, fmt);
	err_format(msg, sizeof msg, saved, fmt, ap);
	va_end(ap);
	err_line(msg);
	leave(status);
}

void err_exit(const struct err *e)
{
	if (e->msg[0] != '\0')
		err_line(e->msg);
	leave(e->status);
}

void err_warn(const char *fmt, ...)
{
	int saved = errno;
	char msg[512];
	va_list ap;

	if (err_rank > 0)
		return;
	va_start(ap, fmt);
	err_format(msg, sizeof msg, saved, fmt, ap);
	va_end(ap);
	err_line(msg);
}

void err_close_stdout(void)
{
	bool lost = ferror(stdout);

	if (fclose(stdout) == 0 && !lost)
		return;
	fprintf(stderr, "%s: standard output: %s\n", err_prog, lost && !errno ? "write error"
	    : strerror(errno));
	_exit(EX_IOERR);
}
