/*
 * cgroup: a group of processes with a limit on memory, page cache included, within the group
 * this process is in. Linux control groups, version 1 (memory.limit_in_bytes) or 2 (memory.max)
 * as mounted; it takes the right to make directories there.
 */
#ifndef CHR_CGROUP_H
#define CHR_CGROUP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct cgroup {
	char *dir;
	bool v2;
};

/* 0, or -1 with EX_UNAVAILABLE and what is not permitted or not there. */
int cgroup_make(struct cgroup *g, int64_t limit, struct err *e) CHR_MUST_CHECK;
/* this process; EX_UNAVAILABLE */
int cgroup_join(const struct cgroup *g, struct err *e) CHR_MUST_CHECK;
/* bytes its processes have held at most; -1: the kernel does not say */
int64_t cgroup_peak(const struct cgroup *g);
void cgroup_remove(struct cgroup *g);				/* when its processes have ended */

#endif
