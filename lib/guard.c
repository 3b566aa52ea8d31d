#include "guard.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "memlimit.h"
#include "opt.h"
#include "progress.h"

#define FDS 4
#define PERIOD 1.0		/* seconds between readings without an event */
#define TRIGGER "some 200000 2000000"	/* waiting for 0.2 of 2 seconds; without privilege windows are multiples of 2 s */

struct guard {
	char root[256];
	double warn, limit, read;	/* read: when */
	enum guard_level level, said;
	struct pollfd fd[FDS];
	int n;
	int held[FDS], nheld;		/* descriptors that events need besides */
};

/* --- events --- */

static int open_at(const char *dir, const char *name, int flags)
{
	char path[1024];
	int n = snprintf(path, sizeof path, "%s/%s", dir, name);

	return n > 0 && (size_t)n < sizeof path ? open(path, flags | O_CLOEXEC | O_NONBLOCK) : -1;
}

static void watch(struct guard *g, int fd, short events)
{
	if (fd >= 0 && g->n < FDS)
		g->fd[g->n++] = (struct pollfd){ .fd = fd, .events = events };
	else if (fd >= 0)
		close(fd);
}

static bool ask_pressure(struct guard *g, const char *dir, const char *name)
{
	int fd = open_at(dir, name, O_RDWR);

	if (fd < 0)
		return false;
	if (write(fd, TRIGGER, sizeof TRIGGER) < 0) {
		close(fd);
		return false;
	}
	watch(g, fd, POLLPRI);
	return true;
}

/* A v1 group writes to an eventfd when the kernel has to work for its memory. */
static void ask_v1(struct guard *g, const char *dir)
{
	int level = open_at(dir, "memory.pressure_level", O_RDONLY), control = open_at(dir, "cgroup.event_control", O_WRONLY);
	int event = level >= 0 && control >= 0 ? eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) : -1;
	char line[64];
	int n = snprintf(line, sizeof line, "%d %d medium", event, level);

	if (event >= 0 && write(control, line, (size_t)n) == n) {
		watch(g, event, POLLIN);
		g->held[g->nheld++] = level;
		level = event = -1;
	}
	if (control >= 0)
		close(control);
	if (level >= 0)
		close(level);
	if (event >= 0)
		close(event);
}

static void ask(struct guard *g)
{
	struct memlimit l;
	char proc[300];

	memlimit_read(&l, g->root);
	snprintf(proc, sizeof proc, "%s/proc/pressure", g->root);
	if (l.own[1][0] == '\0' || !ask_pressure(g, l.own[1], "memory.pressure"))
		ask_pressure(g, proc, "memory");
	if (l.own[1][0] != '\0')
		watch(g, open_at(l.own[1], "memory.events", O_RDONLY), POLLPRI);
	if (l.own[0][0] != '\0')
		ask_v1(g, l.own[0]);
}

/* Has something come? Takes it, so that the next one is news. */
static bool news(struct guard *g)
{
	bool come = false;

	if (g->n == 0 || poll(g->fd, (nfds_t)g->n, 0) <= 0)
		return false;
	for (int i = 0; i < g->n; i++) {
		char buf[1024];

		if (!(g->fd[i].revents & g->fd[i].events))
			continue;
		come = true;
		if (pread(g->fd[i].fd, buf, sizeof buf, 0) < 0 && read(g->fd[i].fd, buf, sizeof buf) < 0)
			g->fd[i].fd = ~g->fd[i].fd;	/* it cannot be taken: poll passes over it from now on */
	}
	return come;
}

/* --- levels --- */

static void say(struct guard *g, const struct memlimit *l, enum guard_level level)
{
	const char *whose = l->share_by >= 0 ? l->group[l->share_by].dir : "this machine";
	int64_t bytes = l->share_by >= 0 ? l->group[l->share_by].limit : l->total;

	if (level <= g->said || (level == GUARD_WARN && opt_quiet))
		return;
	g->said = level;
	err_warn("%.1f %% of the %.1f MiB of %s are in use; the %s is at %.0f %%", 100 * l->share,
	    (double)bytes / (1 << 20), whose, level == GUARD_LIMIT ? "limit" : "warning", 100 * (level == GUARD_LIMIT ? g->limit : g->warn));
}

enum guard_level guard_look(struct guard *g)
{
	struct memlimit l;

	if (g == NULL)
		return GUARD_OK;
	memlimit_read(&l, g->root);
	g->read = progress_clock();
	g->level = l.share >= g->limit ? GUARD_LIMIT : l.share >= g->warn ? GUARD_WARN : GUARD_OK;
	say(g, &l, g->level);
	return g->level;
}

enum guard_level guard_check(struct guard *g)
{
	if (g == NULL)
		return GUARD_OK;
	return news(g) || progress_clock() - g->read >= PERIOD ? guard_look(g) : g->level;
}

struct guard *guard_open(const char *root, double warn, double limit, struct err *e)
{
	struct guard *g;

	if (!(warn > 0 && warn < limit)) {
		err_set(e, EX_USAGE, "a warning at %g %% is not below the limit at %g %%", 100 * warn, 100 * limit);
		return NULL;
	}
	if ((g = calloc(1, sizeof *g)) == NULL || snprintf(g->root, sizeof g->root, "%s", root) >= (int)sizeof g->root) {
		free(g);
		err_set(e, EX_OSERR, "out of memory");
		return NULL;
	}
	g->warn = warn;
	g->limit = limit;
	ask(g);
	return g;
}

void guard_close(struct guard *g)
{
	if (g == NULL)
		return;
	for (int i = 0; i < g->n; i++)
		close(g->fd[i].fd >= 0 ? g->fd[i].fd : ~g->fd[i].fd);
	for (int i = 0; i < g->nheld; i++)
		close(g->held[i]);
	free(g);
}

int guard_events(const struct guard *g)
{
	return g->n;
}

int64_t guard_room(const char *root, double share, int64_t own)
{
	struct memlimit l;
	int64_t room = INT64_MAX;

	memlimit_read(&l, root);
	if (l.total < MEMLIMIT_NONE && l.available <= l.total)
		room = (int64_t)(share * (double)l.total) - (l.total - l.available) + own;
	for (int i = 0; i < l.ngroup; i++) {
		int64_t r = (int64_t)(share * (double)l.group[i].limit) - l.group[i].used + own;

		room = r < room ? r : room;
	}
	return room > 1 ? room : 1;	/* 0 would be no limit */
}
