#include "base/cgroup.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Of /proc/self/cgroup: where this process is in the hierarchy that controls memory ("": there
 * is none), or in version 2. */
static bool own_group(bool v2, char *path, size_t size)
{
	FILE *f = fopen("/proc/self/cgroup", "re");
	char line[4096];
	bool found = false;

	while (f && !found && fgets(line, sizeof line, f)) {
		char *list = strchr(line, ':'), *at = list ? strchr(list + 1, ':') : NULL;

		if (at == NULL)
			continue;
		*at++ = '\0';
		at[strcspn(at, "\n")] = '\0';
		for (char *save, *word = strtok_r(list + 1, ",", &save); word;
		    word = strtok_r(NULL, ",", &save))
			found = found || (!v2 && strcmp(word, "memory") == 0);
		found = found || (v2 && list[1] == '\0' && strncmp(line, "0:", 2) == 0);
		if (found)
			snprintf(path, size, "%s", at);
	}
	if (f)
		fclose(f);
	return found;
}

/* Of /proc/self/mountinfo: where that hierarchy is mounted, and which of its groups is the root
 * there. */
static bool mount_point(bool v2, char *root, char *at, size_t size)
{
	FILE *f = fopen("/proc/self/mountinfo", "re");
	char line[4096], type[64], options[1024], from[1024], to[1024];
	bool found = false;

	while (f && !found && fgets(line, sizeof line, f)) {
		const char *dash = strstr(line, " - ");

		if (dash == NULL || sscanf(line, "%*d %*d %*s %1023s %1023s", from, to) != 2 ||
		    sscanf(dash, " - %63s %*s %1023s", type, options) != 2)
			continue;
		found = v2 ? strcmp(type, "cgroup2") == 0
		    : strcmp(type, "cgroup") == 0 && (strstr(options, ",memory") ||
		    strncmp(options, "memory", 6) == 0);
		if (found) {
			snprintf(root, size, "%s", from);
			snprintf(at, size, "%s", to);
		}
	}
	if (f)
		fclose(f);
	return found;
}

static int put_value(const struct cgroup *g, const char *name, int64_t v, struct err *e)
{
	char path[4200], text[32];
	int n = snprintf(text, sizeof text, "%lld", (long long)v), fd;
	bool done;

	snprintf(path, sizeof path, "%s/%s", g->dir, name);
	if ((fd = open(path, O_WRONLY | O_CLOEXEC)) < 0)
		return err_set(e, EX_UNAVAILABLE, "cannot limit memory by %s:", path);
	done = write(fd, text, (size_t)n) == n;
	if (!done)
		err_set(e, EX_UNAVAILABLE, "cannot limit memory by %s:", path);
	close(fd);
	return done ? 0 : -1;
}

int cgroup_make(struct cgroup *g, int64_t limit, struct err *e)
{
	char own[1024], root[1024], at[1024], dir[4096];
	bool v2 = !mount_point(false, root, at, sizeof root) || !own_group(false, own, sizeof own);
	size_t skip;

	*g = (struct cgroup){ 0 };
	if (v2 && (!mount_point(true, root, at, sizeof root) || !own_group(true, own, sizeof own)))
		return err_set(e, EX_UNAVAILABLE, "no control group of memory is mounted");
	skip = strcmp(root, "/") == 0 || strncmp(own, root, strlen(root)) != 0 ? 0 : strlen(root);
	snprintf(dir, sizeof dir, "%s%s/chronos.%d", at, own + skip, (int)getpid());
	if (mkdir(dir, 0755) < 0)
		return err_set(e, EX_UNAVAILABLE, "cannot make a control group %s:", dir);
	*g = (struct cgroup){ strdup(dir), v2 };
	if (g->dir == NULL) {
		rmdir(dir);
		return err_set(e, EX_OSERR, "out of memory");
	}
	if (put_value(g, v2 ? "memory.max" : "memory.limit_in_bytes", limit, e) < 0) {
		cgroup_remove(g);
		return -1;
	}
	return 0;
}

int cgroup_join(const struct cgroup *g, struct err *e)
{
	return put_value(g, "cgroup.procs", getpid(), e);
}

int64_t cgroup_peak(const struct cgroup *g)
{
	char path[4200];
	long long v = -1;
	FILE *f;

	snprintf(path, sizeof path, "%s/%s", g->dir, g->v2 ? "memory.peak"
	    : "memory.max_usage_in_bytes");
	if ((f = fopen(path, "re")) == NULL)
		return -1;
	if (fscanf(f, "%lld", &v) != 1)
		v = -1;
	fclose(f);
	return v;
}

void cgroup_remove(struct cgroup *g)
{
	if (g->dir)
		rmdir(g->dir);
	free(g->dir);
	g->dir = NULL;
}
