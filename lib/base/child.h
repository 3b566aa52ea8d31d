/*
 * child: work in a process of its own, so that it starts with no threads, no caches and counters
 * at zero, and its peak of memory is its own. What it returns comes back as JSON.
 *
 *	json_t *r = child_run(measure, &job, NULL, &e);
 *	if (r == NULL)
 *		exit(e.status);				(e.msg is "": the child has said what was
 *							wrong)
 */
#ifndef CHR_CHILD_H
#define CHR_CHILD_H

#include <jansson.h>

#include "base/cgroup.h"
#include "base/err.h"

/* fn may end its process with a message and a status: NULL then, with that status and no
 * message. Killed by a signal: NULL with a message. group: the child joins it before fn begins;
 * may be NULL. The caller must have no threads. */
json_t *child_run(json_t *(*fn)(void *), void *arg, const struct cgroup *group, struct err *e)
    CHR_MUST_CHECK;

#endif
