/*
 * pool: the process's compute threads and parallel_for. Work is cut into chunks of `grain` items
 * whatever the number of threads, so a function that is deterministic per chunk is deterministic
 * in all. Workers spin for a while before they sleep (waking a sleeping thread costs tens of
 * microseconds).
 */
#ifndef CHR_POOL_H
#define CHR_POOL_H

#include <stdint.h>

#define POOL_MAX 256

void pool_init(int threads);	/* 0: one per CPU this process may use (sched_getaffinity). Call
				   once, before work. */
int pool_cpus(void);		/* that this process may use */
int pool_threads(void);
void pool_quit(void);

/* Calls fn(ctx, i0, i1, worker) for consecutive chunks of [0, n); worker is 0..pool_threads()-1.
 * Returns when all are done. The caller works too. Not reentrant: fn must not call pool_for. */
void pool_for(int64_t n, int64_t grain, void (*fn)(void *ctx, int64_t i0, int64_t i1, int worker),
    void *ctx);

#endif
