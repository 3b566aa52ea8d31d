/*
 * A reward from a command. Lines are written when the pipe takes them and read when they are
 * there, never waiting for one while the other is full; answers belong to the completions in the
 * order in which these were asked about.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/json.h"
#include "base/jsontext.h"
#include "base/progress.h"
#include "stages/reward_int.h"

#define MOST_LINE 65536		/* bytes of an answer */
#define GRACE 5			/* seconds that a command has to end after its input did */

struct command {
	char *text;
	pid_t pid;
	int in, out;		/* its standard input and output; -1: closed */
	double timeout, heard;	/* heard: when it last said something, or was asked while nothing
				   else was open */
	bool failed;
	char *send, *got;	/* not yet written, of this `sent` gone; read, but no line yet */
	size_t send_len, sent, send_cap, got_len;
	double **want;		/* (nwant) where answers belong, in order */
	int nwant, cap_want;
	int64_t answers;
};

extern char **environ;

static int start(struct command *c, struct err *e)
{
	int in[2] = { -1, -1 }, out[2] = { -1, -1 }, rc = 0;
	char *argv[] = { "sh", "-c", c->text, NULL };
	posix_spawn_file_actions_t fa;
	posix_spawnattr_t at;
	sigset_t ours;

	posix_spawn_file_actions_init(&fa);
	posix_spawnattr_init(&at);
	posix_spawnattr_setflags(&at, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGDEF);
	sigemptyset(&ours);		/* ignored here (err.c), which a command need not expect */
	sigaddset(&ours, SIGXFSZ);
	posix_spawnattr_setsigdefault(&at, &ours);
	if (pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0)
		rc = errno;
	if (rc == 0) {
		posix_spawn_file_actions_adddup2(&fa, in[0], 0);
		posix_spawn_file_actions_adddup2(&fa, out[1], 1);
		rc = posix_spawn(&c->pid, "/bin/sh", &fa, &at, argv, environ);
	}
	posix_spawn_file_actions_destroy(&fa);
	posix_spawnattr_destroy(&at);
	c->in = in[1];
	c->out = out[0];
	if (in[0] >= 0)
		close(in[0]);
	if (out[1] >= 0)
		close(out[1]);
	if (rc != 0) {
		c->pid = 0;
		return err_set(e, EX_OSERR, "reward '%s': cannot be started: %s", c->text,
		    strerror(rc));
	}
	fcntl(c->in, F_SETFL, O_NONBLOCK);
	fcntl(c->out, F_SETFL, O_NONBLOCK);
	return 0;
}

/* Waits up to `seconds` for the end of the process. */
static bool reap(struct command *c, double seconds, int *status)
{
	const struct timespec nap = { .tv_nsec = 5000000 };
	double until = progress_clock() + seconds;

	do {
		if (waitpid(c->pid, status, WNOHANG) != 0) {
			c->pid = 0;
			return true;
		}
		nanosleep(&nap, NULL);
	} while (progress_clock() < until);
	return false;
}

/* It reads no more, or writes no more: why? */
static int ended(struct command *c, struct err *e)
{
	int status = 0;

	c->failed = true;
	close(c->in);
	c->in = -1;
	if (!reap(c, GRACE, &status))
		return err_set(e, EX_UNAVAILABLE, "reward '%s': closed its output after %"
		    PRId64 " answers", c->text,
		    c->answers);
	if (WIFSIGNALED(status))
		return err_set(e, EX_UNAVAILABLE, "reward '%s': killed by signal %d after %"
		    PRId64 " answers", c->text,
		    WTERMSIG(status), c->answers);
	return err_set(e, EX_UNAVAILABLE, "reward '%s': ended with status %d after %"
	    PRId64 " answers", c->text,
	    WEXITSTATUS(status), c->answers);
}

static int bad_line(struct command *c, const char *line, size_t len, struct err *e)
{
	c->failed = true;
	return err_set(e, EX_DATAERR, "reward '%s': answer %"
	    PRId64 " is neither a number nor {\"reward\":x}: %.*s", c->text,
	    c->answers + 1, len > 80 ? 80 : (int)len, line);
}

/* A number, or an object with one under "reward". */
static int answer(struct command *c, const char *line, size_t len, struct err *e)
{
	json_t *v = json_loadb(line, len, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, NULL);
	const json_t *x = json_is_object(v) ? json_object_get(v, "reward") : v;
	bool good = json_is_number(x);

	if (good) {
		*c->want[0] = json_number_value(x);
		memmove(c->want, c->want + 1, (size_t)--c->nwant * sizeof *c->want);
		c->answers++;
	}
	json_decref(v);
	return good ? 0 : bad_line(c, line, len, e);
}

static int take_lines(struct command *c, struct err *e)
{
	char *line = c->got, *nl;

	while ((nl = memchr(line, '\n', c->got_len - (size_t)(line - c->got))) != NULL) {
		if (c->nwant == 0) {
			c->failed = true;
			return err_set(e, EX_DATAERR, "reward '%s': more answers than completions",
			    c->text);
		}
		if (answer(c, line, (size_t)(nl - line), e) < 0)
			return -1;
		line = nl + 1;
	}
	c->got_len -= (size_t)(line - c->got);
	memmove(c->got, line, c->got_len);
	return c->got_len < MOST_LINE ? 0 : bad_line(c, c->got, c->got_len, e);
}

static int receive(struct command *c, struct err *e)
{
	ssize_t n = read(c->out, c->got + c->got_len, MOST_LINE - c->got_len);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n <= 0)
		return ended(c, e);
	c->got_len += (size_t)n;
	c->heard = progress_clock();
	return take_lines(c, e);
}

/* write() to a pipe that may have no reader, in a program where SIGPIPE ends it. */
static ssize_t write_quietly(int fd, const void *p, size_t n)
{
	const struct timespec now = {0};
	sigset_t pipe_only, before, pending;
	bool was;
	ssize_t rc;

	sigemptyset(&pipe_only);
	sigaddset(&pipe_only, SIGPIPE);
	sigpending(&pending);
	was = sigismember(&pending, SIGPIPE);
	pthread_sigmask(SIG_BLOCK, &pipe_only, &before);
	rc = write(fd, p, n);
	if (rc < 0 && errno == EPIPE && !was) {
		sigtimedwait(&pipe_only, NULL, &now);
		errno = EPIPE;
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return rc;
}

static int transmit(struct command *c, struct err *e)
{
	ssize_t n = write_quietly(c->in, c->send + c->sent, c->send_len - c->sent);

	if (n < 0 && errno == EPIPE)
		return ended(c, e);
	if (n > 0)
		c->sent += (size_t)n;
	if (c->sent == c->send_len)
		c->sent = c->send_len = 0;
	return 0;
}

static int silence(struct command *c, struct err *e)
{
	c->failed = true;
	return err_set(e, EX_UNAVAILABLE, "reward '%s': no answer for %g seconds "
	    "(--reward-timeout), %d are missing", c->text,
	    c->timeout, c->nwant);
}

static int poll_command(struct reward *r, int wait, struct err *e)
{
	struct command *c = r->self;

	while (c->nwant > 0) {
		struct pollfd p[2] = { { .fd = c->out, .events = POLLIN },
		    { .fd = c->send_len > 0 ? c->in : -1, .events = POLLOUT } };
		double left = c->timeout - (progress_clock() - c->heard);
		int ms = !wait ? 0 : c->timeout <= 0 ? -1 : left > 0
		    ? (int)(1000 * (left < 3600 ? left : 3600)) + 1 : 0;
		int n = poll(p, 2, ms);

		if (n < 0 && errno != EINTR)
			return err_set(e, EX_OSERR, "reward '%s':", c->text);
		if (n > 0 && p[1].revents && transmit(c, e) < 0)
			return -1;
		if (n > 0 && p[0].revents && receive(c, e) < 0)
			return -1;
		if (n == 0 && c->timeout > 0 && left <= 0)
			return silence(c, e);
		if (n == 0 && !wait)
			break;
	}
	return 0;
}

static void queue(struct command *c, const char *line)
{
	size_t n = strlen(line) + 1;

	if (c->send_len + n > c->send_cap) {
		c->send_cap = 2 * (c->send_len + n);
		if ((c->send = realloc(c->send, c->send_cap)) == NULL)
			err_die(EX_OSERR, "out of memory");
	}
	memcpy(c->send + c->send_len, line, n);
	c->send[c->send_len + n - 1] = '\n';
	c->send_len += n;
}

static void expect(struct command *c, double *x)
{
	if (c->nwant == c->cap_want) {
		c->cap_want = 2 * c->cap_want + 64;
		if ((c->want = realloc(c->want, (size_t)c->cap_want * sizeof *c->want)) == NULL)
			err_die(EX_OSERR, "out of memory");
	}
	if (c->nwant == 0)
		c->heard = progress_clock();
	c->want[c->nwant++] = x;
}

static int ask_command(struct reward *r, const struct reward_item *it, double *x, struct err *e)
{
	struct command *c = r->self;
	struct jsontext line = {0};
	json_t *tokens = json_array(), *o;

	for (int i = it->nprompt; i < it->n; i++)
		json_array_append_new(tokens, json_integer(it->tok[i]));
	o = json_pack("{s:O, s:o, s:o}", "prompt", it->prompt, "completion",
	    json_text(it->text, it->len), "tokens", tokens);
	jsontext_record(&line, "{}", 2, o, true, NULL);
	line.n--;			/* the brace at the end */
	jsontext_add(&line, ",\"record\":", 10);
	jsontext_add(&line, it->source, strlen(it->source));
	jsontext_add(&line, "}", 1);
	json_decref(o);
	queue(c, line.s);
	jsontext_free(&line);
	expect(c, x);
	return poll_command(r, 0, e);
}

static void stop(struct command *c)
{
	int status = 0;

	if (!c->failed && reap(c, GRACE, &status)) {
		if (status != 0)
			err_warn("reward '%s': ended with %s %d", c->text, WIFSIGNALED(status)
			    ? "signal" : "status",
			    WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
		return;
	}
	kill(-c->pid, SIGTERM);
	if (!reap(c, 1, &status)) {
		kill(-c->pid, SIGKILL);
		waitpid(c->pid, &status, 0);
	}
}

static void close_command(struct reward *r)
{
	struct command *c = r->self;

	if (c->in >= 0)
		close(c->in);
	if (c->pid > 0)
		stop(c);
	if (c->out >= 0)
		close(c->out);
	free(c->text);
	free(c->send);
	free(c->got);
	free(c->want);
	free(c);
}

int reward_open_command(struct reward *r, const char *command, double timeout, struct err *e)
{
	struct command *c = calloc(1, sizeof *c);

	if (c == NULL)
		return err_set(e, EX_OSERR, "out of memory");
	*r = (struct reward){ ask_command, poll_command, close_command, c };
	c->in = c->out = -1;
	c->timeout = timeout;
	c->text = strdup(command);
	c->got = malloc(MOST_LINE);
	if (c->text == NULL || c->got == NULL)
		/* cppcheck-suppress memleak ; r owns c: whoever opened r closes it, also after
		 * an error */
		return err_set(e, EX_OSERR, "out of memory");
	return start(c, e);
}
