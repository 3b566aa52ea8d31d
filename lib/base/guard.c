#include "base/guard.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/mem_limit.h"
#include "base/opt.h"
#include "base/progress.h"

#define FDS 6
#define PERIOD 1.0		/* seconds between readings without an event */
#define TRIGGER "some 200000 2000000"	/* waiting for 0.2 of 2 seconds; without privilege
					   windows are multiples of 2 s */

struct guard {
	char root[256];
	double warn, limit, read;	/* read: when */
	enum guard_level level, said;
	struct pollfd fd[FDS];
	int n;
	int held[FDS], nheld;		/* descriptors that events need besides */
	char events[160];		/* their kinds, for people */
};

/* --- events --- */

static int open_at(const char *dir, const char *name, int flags)
{
	char path[1024];
	int n = snprintf(path, sizeof path, "%s/%s", dir, name);

	return n > 0 && (size_t)n < sizeof path ? open(path, flags | O_CLOEXEC | O_NONBLOCK) : -1;
}

/* kind: said under --verbose. */
static void watch(struct guard *g, int fd, short events, const char *kind)
{
	size_t n = strlen(g->events);

	if (fd >= 0 && g->n < FDS) {
		g->fd[g->n++] = (struct pollfd){ .fd = fd, .events = events };
		snprintf(g->events + n, sizeof g->events - n, "%s%s", n > 0 ? ", " : "", kind);
	} else if (fd >= 0)
		close(fd);
}

static bool ask_pressure(struct guard *g, const char *dir, const char *name, const char *kind)
{
	int fd = open_at(dir, name, O_RDWR);

	if (fd < 0)
		return false;
	if (write(fd, TRIGGER, sizeof TRIGGER) < 0) {
		close(fd);
		return false;
	}
	watch(g, fd, POLLPRI, kind);
	return true;
}

/* A v1 group writes to an eventfd when what `file` tells of passes `argument`. */
static void ask_v1(struct guard *g, const char *dir, const char *file, const char *argument,
    const char *kind)
{
	int of = open_at(dir, file, O_RDONLY), control = open_at(dir, "cgroup.event_control",
	    O_WRONLY);
	int event = of >= 0 && control >= 0 ? eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) : -1;
	char line[96];
	int n = snprintf(line, sizeof line, "%d %d %s", event, of, argument);

	if (event >= 0 && g->nheld < FDS && write(control, line, (size_t)n) == n) {
		watch(g, event, POLLIN, kind);
		g->held[g->nheld++] = of;
		of = event = -1;
	}
	if (control >= 0)
		close(control);
	if (of >= 0)
		close(of);
	if (event >= 0)
		close(event);
}

/* Of the nearest v1 group that has a limit: when its usage passes the limit's share. */
static void ask_usage(struct guard *g, const struct mem_limit *l)
{
	char bytes[32];

	for (int i = 0; i < l->ngroup; i++)
		if (!l->group[i].v2) {
			snprintf(bytes, sizeof bytes, "%lld",
			    (long long)(g->limit * (double)l->group[i].limit));
			ask_v1(g, l->group[i].dir, "memory.usage_in_bytes", bytes,
			    "the group's usage");
			return;
		}
}

static void ask(struct guard *g)
{
	struct mem_limit l;
	char proc[300];

	mem_limit_read(&l, g->root);
	snprintf(proc, sizeof proc, "%s/proc/pressure", g->root);
	if (l.own[1][0] == '\0' || !ask_pressure(g, l.own[1], "memory.pressure",
	    "the group's pressure"))
		ask_pressure(g, proc, "memory", "the machine's pressure");
	if (l.own[1][0] != '\0')
		watch(g, open_at(l.own[1], "memory.events", O_RDONLY), POLLPRI,
		    "the group's events");
	if (l.own[0][0] != '\0')
		ask_v1(g, l.own[0], "memory.pressure_level", "medium", "the group's pressure (v1)");
	ask_usage(g, &l);
	if (opt_verbose)
		err_warn("--guard: the kernel tells of %s%s; usage is read every %g s besides",
		    g->n > 0 ? g->events : "nothing", l.some10 < 0
		    ? " (no pressure stall information here)" : "", PERIOD);
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
		if (pread(g->fd[i].fd, buf, sizeof buf, 0) < 0 && read(g->fd[i].fd, buf, sizeof buf)
		    < 0)
			g->fd[i].fd = ~g->fd[i].fd;	/* it cannot be taken: poll passes over
							   it from now on */
	}
	return come;
}

/* --- levels --- */

static void say(struct guard *g, const struct mem_limit *l, enum guard_level level)
{
	const char *whose = l->share_by >= 0 ? l->group[l->share_by].dir : "this machine";
	int64_t bytes = l->share_by >= 0 ? l->group[l->share_by].limit : l->total;

	if (level <= g->said || (level == GUARD_WARN && opt_quiet))
		return;
	g->said = level;
	err_warn("%.1f %% of the %.1f MiB of %s are in use; the %s is at %.0f %%", 100 * l->share,
	    (double)bytes / (1 << 20), whose, level == GUARD_LIMIT ? "limit" : "warning",
	    100 * (level == GUARD_LIMIT ? g->limit : g->warn));
}

enum guard_level guard_look(struct guard *g)
{
	struct mem_limit l;

	if (g == NULL)
		return GUARD_OK;
	mem_limit_read(&l, g->root);
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
		err_set(e, EX_USAGE, "a warning at %g %% is not below the limit at %g %%",
		    100 * warn, 100 * limit);
		return NULL;
	}
	if ((g = calloc(1, sizeof *g)) == NULL || snprintf(g->root, sizeof g->root, "%s", root) >=
	    (int)sizeof g->root) {
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

int64_t guard_slack(const struct guard *g)
{
	return guard_room(g->root, g->warn, 0);
}

int64_t guard_room(const char *root, double share, int64_t own)
{
	struct mem_limit l;
	int64_t room = INT64_MAX;

	mem_limit_read(&l, root);
	if (l.total < MEM_LIMIT_NONE && l.available <= l.total)
		room = (int64_t)(share * (double)l.total) - (l.total - l.available) + own;
	for (int i = 0; i < l.ngroup; i++) {
		int64_t r = (int64_t)(share * (double)l.group[i].limit) - l.group[i].used + own;

		room = r < room ? r : room;
	}
	return room > 1 ? room : 1;	/* 0 would be no limit */
}
