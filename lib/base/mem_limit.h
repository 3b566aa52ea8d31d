/*
 * mem_limit: how much memory this process may take: the control groups it is in, each level up
 * to the root (v1 and v2, wherever they are mounted), and what the machine has left.
 *
 *	struct mem_limit l;
 *	mem_limit_read(&l, "");
 *	if (plan > l.left) ...
 *
 * What counts as used in a group is what its kernel could not take back at once: its usage
 * without inactive file pages. A file that is missing, or that says nothing sensible, is no
 * limit. Root, "" for this machine, is put before /proc and the mount points: tests have trees
 * of their own.
 */
#ifndef CHR_MEM_LIMIT_H
#define CHR_MEM_LIMIT_H

#include <stdbool.h>
#include <stdint.h>

#define MEM_LIMIT_NONE INT64_MAX
#define MEM_LIMIT_LEVELS 32

struct mem_limit_group {		/* one level of a hierarchy that has a limit */
	char dir[512];		/* with root */
	bool v2;
	int64_t limit, used;
};

struct mem_limit {
	int ngroup;			/* from the process's own group to the root, v2 before
					   v1; the nearest MEM_LIMIT_LEVELS */
	struct mem_limit_group group[MEM_LIMIT_LEVELS];
	char own[2][512];		/* directory of the process's own group in v1 and in v2,
					   "": not in one */
	int64_t total, available;	/* MemTotal and MemAvailable; MEM_LIMIT_NONE: not known */
	double some10, full10;		/* percent of the last ten seconds that some, or all,
					   tasks waited; -1: not known */

	int64_t left;			/* the smallest of available and limit - used;
					   MEM_LIMIT_NONE when nothing is known */
	int by;				/* which group that is; -1: the machine */
	double share;			/* the largest of used / limit and 1 - available / total */
	int share_by;			/* likewise */
};

void mem_limit_read(struct mem_limit *l, const char *root);

#endif
