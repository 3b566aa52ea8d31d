#include "base/mem_limit.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define UNLIMITED ((int64_t)1 << 60)	/* v1 says 2^63 less a page where v2 says max */
#define LINE 4096

static FILE *open_in(const char *dir, const char *name)
{
	char path[LINE];
	int n = snprintf(path, sizeof path, "%s/%s", dir, name);

	return n > 0 && (size_t)n < sizeof path ? fopen(path, "re") : NULL;
}

/* A decimal number and nothing else; -1: it is none. Too large for 63 bits: MEM_LIMIT_NONE. */
static int64_t number(const char *s)
{
	char *end;
	unsigned long long v;

	if (!isdigit((unsigned char)*s))
		return -1;
	errno = 0;
	v = strtoull(s, &end, 10);
	if (*end != '\0' && *end != '\n' && *end != ' ')
		return -1;
	return errno == ERANGE || v > INT64_MAX ? MEM_LIMIT_NONE : (int64_t)v;
}

static int64_t number_in(const char *dir, const char *name)
{
	FILE *f = open_in(dir, name);
	char line[LINE];
	int64_t v = -1;

	if (f == NULL)
		return -1;
	if (fgets(line, sizeof line, f) != NULL)
		v = number(line);
	fclose(f);
	return v;
}

/* The number after key at the beginning of a line, or -1. */
static int64_t field(const char *dir, const char *name, const char *key)
{
	FILE *f = open_in(dir, name);
	size_t n = strlen(key);
	char line[LINE];
	int64_t v = -1;

	if (f == NULL)
		return -1;
	while (v < 0 && fgets(line, sizeof line, f) != NULL)
		if (strncmp(line, key, n) == 0)
			v = number(line + n + strspn(line + n, " \t"));
	fclose(f);
	return v;
}

static void add_level(struct mem_limit *l, const char *dir, bool v2)
{
	int64_t limit = number_in(dir, v2 ? "memory.max" : "memory.limit_in_bytes");
	int64_t high = v2 ? number_in(dir, "memory.high") : -1;
	int64_t used = number_in(dir, v2 ? "memory.current" : "memory.usage_in_bytes");
	int64_t cache = field(dir, "memory.stat", v2 ? "inactive_file " : "total_inactive_file ");
	struct mem_limit_group *g = &l->group[l->ngroup];

	if (limit < 0 || (high >= 0 && high < limit))
		limit = high;
	if (limit < 0 || limit >= UNLIMITED || l->ngroup == MEM_LIMIT_LEVELS)
		return;
	*g = (struct mem_limit_group){ .v2 = v2, .limit = limit, .used = used - (cache > 0 ? cache
	    : 0) };
	if (g->used < 0)
		g->used = 0;
	snprintf(g->dir, sizeof g->dir, "%s", dir);
	l->ngroup++;
}

/* The group `path` of a hierarchy mounted at dir, and the groups around it, up to the mount
 * point. */
static void climb(struct mem_limit *l, const char *mount, const char *path, bool v2)
{
	char dir[sizeof l->own[0]];
	int n = snprintf(dir, sizeof dir, "%s%s", mount, path);
	size_t top = strlen(mount);

	if (n < 0 || (size_t)n >= sizeof dir)
		return;
	while (strlen(dir) > top && dir[strlen(dir) - 1] == '/')
		dir[strlen(dir) - 1] = '\0';
	memcpy(l->own[v2], dir, sizeof dir);
	for (;;) {
		add_level(l, dir, v2);
		if (strlen(dir) <= top)
			return;
		*strrchr(dir, '/') = '\0';
	}
}

static bool has_word(const char *list, const char *word)
{
	size_t n = strlen(word);

	for (const char *p = list; (p = strstr(p, word)) != NULL; p += n)
		if ((p == list || p[-1] == ',') && (p[n] == '\0' || p[n] == ','))
			return true;
	return false;
}

/* The path in the hierarchy: of the line "N:controllers:path", v2's N and controllers being "0"
 * and "". */
static bool own_path(const char *root, bool v2, char *path, size_t size)
{
	char proc[LINE], line[LINE];
	bool found = false;
	FILE *f;

	snprintf(proc, sizeof proc, "%s/proc/self", root);
	if ((f = open_in(proc, "cgroup")) == NULL)
		return false;
	while (!found && fgets(line, sizeof line, f) != NULL) {
		char *list = strchr(line, ':'), *at = list != NULL ? strchr(list + 1, ':') : NULL;

		if (at == NULL)
			continue;
		*list++ = *at++ = '\0';
		at[strcspn(at, "\n")] = '\0';
		if (*at == '/' && strlen(at) < size &&
		    (v2 ? strcmp(line, "0") == 0 && *list == '\0' : has_word(list, "memory"))) {
			memcpy(path, at, strlen(at) + 1);
			found = true;
		}
	}
	fclose(f);
	return found;
}

/* A line of mountinfo: "id parent dev root mount options... - type source super-options". False:
 * another kind of mount. */
static bool parse_mount(char *line, bool v2, const char **base, const char **mount)
{
	char *word[5], *save = NULL, *tail = strstr(line, " - "), *type, *options;

	if (tail == NULL)
		return false;
	*tail = '\0';
	for (int i = 0; i < 5; i++)
		if ((word[i] = strtok_r(i == 0 ? line : NULL, " ", &save)) == NULL)
			return false;
	type = strtok_r(tail + 3, " ", &save);
	if (type == NULL || strtok_r(NULL, " ", &save) == NULL ||
	    (options = strtok_r(NULL, " \n", &save)) == NULL)
		return false;
	*base = word[3];
	*mount = word[4];
	return v2 ? strcmp(type, "cgroup2") == 0 : strcmp(type, "cgroup") == 0 &&
	    has_word(options, "memory");
}

/* What of the path lies under base, the part of the hierarchy that is mounted; "": it is not
 * there (another namespace). */
static const char *under(const char *path, const char *base)
{
	size_t n = strcmp(base, "/") == 0 ? 0 : strlen(base);

	if (strncmp(path, base, n) != 0 || (path[n] != '/' && path[n] != '\0') ||
	    strstr(path, "/..") != NULL)
		return "";
	return path + n;
}

static void read_hierarchy(struct mem_limit *l, const char *root, bool v2)
{
	char path[sizeof l->own[0]], proc[LINE], line[LINE], dir[LINE];
	const char *base, *mount;
	FILE *f;

	if (!own_path(root, v2, path, sizeof path))
		return;
	snprintf(proc, sizeof proc, "%s/proc/self", root);
	if ((f = open_in(proc, "mountinfo")) == NULL)
		return;
	while (l->own[v2][0] == '\0' && fgets(line, sizeof line, f) != NULL)
		if (parse_mount(line, v2, &base, &mount) && (size_t)snprintf(dir, sizeof dir,
		    "%s%s", root, mount) < sizeof dir)
			climb(l, dir, under(path, base), v2);
	fclose(f);
}

static void read_machine(struct mem_limit *l, const char *root)
{
	char proc[LINE], line[LINE];
	FILE *f;
	int64_t total, available;

	snprintf(proc, sizeof proc, "%s/proc", root);
	total = field(proc, "meminfo", "MemTotal:");
	available = field(proc, "meminfo", "MemAvailable:");
	l->total = total >= 0 && total < UNLIMITED / 1024 ? total * 1024 : MEM_LIMIT_NONE;
	l->available = available >= 0 && available < UNLIMITED / 1024 ? available * 1024
	    : MEM_LIMIT_NONE;
	l->some10 = l->full10 = -1;
	if ((f = open_in(proc, "pressure/memory")) == NULL)
		return;
	while (fgets(line, sizeof line, f) != NULL) {
		sscanf(line, "some avg10=%lf", &l->some10);
		sscanf(line, "full avg10=%lf", &l->full10);
	}
	fclose(f);
}

void mem_limit_read(struct mem_limit *l, const char *root)
{
	*l = (struct mem_limit){ .by = -1, .share_by = -1 };
	read_machine(l, root);
	read_hierarchy(l, root, true);
	read_hierarchy(l, root, false);
	l->left = l->available;
	if (l->total < MEM_LIMIT_NONE && l->total > 0 && l->available <= l->total)
		l->share = 1 - (double)l->available / (double)l->total;
	for (int i = 0; i < l->ngroup; i++) {
		const struct mem_limit_group *g = &l->group[i];
		int64_t left = g->used < g->limit ? g->limit - g->used : 0;
		double share = g->limit > 0 ? (double)g->used / (double)g->limit : 1;

		if (left < l->left) {
			l->left = left;
			l->by = i;
		}
		if (share > l->share) {
			l->share = share;
			l->share_by = i;
		}
	}
}
