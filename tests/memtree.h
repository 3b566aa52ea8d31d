/* memtree: a tree of files that look like /proc and control groups, for memlimit.c and guard.c.
 * tree(), v2() and v1() begin a new one in `root`; put() writes a file of it; tree_end() removes
 * it. */
#ifndef MEMTREE_H
#define MEMTREE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"

#define MIB ((int64_t)1 << 20)

static char root[64];

/* Writes a file of the tree, and the directories on the way. */
static void put(const char *path, const char *text)
{
	char name[1024], dir[1024];
	struct err e = { 0 };
	FILE *f;

	snprintf(name, sizeof name, "%s%s", root, path);
	snprintf(dir, sizeof dir, "%s", name);
	*strrchr(dir, '/') = '\0';
	if (file_mkdirs(dir, &e) < 0 || (f = fopen(name, "w")) == NULL)
		abort();
	fputs(text, f);
	fclose(f);
}

static void tree_end(void)
{
	char cmd[128];

	snprintf(cmd, sizeof cmd, "rm -rf %s", root);
	if (root[0] != '\0' && system(cmd) != 0)
		abort();
	root[0] = '\0';
}

static void tree(void)
{
	tree_end();
	snprintf(root, sizeof root, "/tmp/chr-memtree-XXXXXX");
	if (mkdtemp(root) == NULL)
		abort();
	put("/proc/meminfo", "MemTotal:       16777216 kB\nMemFree:  100 kB\nMemAvailable:    "
	    "8388608 kB\n");
	put("/proc/pressure/memory", "some avg10=1.50 avg60=0.40 avg300=0.10 total=5\nfull "
	    "avg10=0.25 avg60=0 avg300=0 total=3\n");
}

static void v2(const char *own)
{
	char line[600];

	tree();
	snprintf(line, sizeof line, "0::%s\n", own);
	put("/proc/self/cgroup", line);
	put("/proc/self/mountinfo", "1 0 8:1 / / rw - ext4 /dev/sda rw\n"
	    "30 1 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n");
}

__attribute__((unused)) static void v1(const char *own)
{
	char line[600];

	tree();
	snprintf(line, sizeof line, "9:name=systemd:/x\n5:cpu,memory,pids:%s\n", own);
	put("/proc/self/cgroup", line);
	put("/proc/self/mountinfo", "30 1 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
	    "31 1 0:27 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n");
}

#endif
