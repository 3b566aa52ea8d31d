#include "base/pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

#define POOL_SPIN_NS 50000

/*
 * The job is guarded by one word: job number << 32 | POOL_OPEN | workers inside. A worker enters
 * by adding one while the job is open; the caller closes the job when no chunk is left and waits
 * for the count to fall to zero. So a worker that wakes late finds the job closed and nobody
 * waits for it.
 */
#define POOL_OPEN 0x80000000u
#define POOL_INSIDE 0x0000ffffu
#define POOL_JOB(state) ((state) >> 32)

static struct {
	_Alignas(64) _Atomic uint64_t state;
	_Alignas(64) _Atomic int64_t next;	/* first item nobody has taken */
	_Alignas(64) _Atomic int sleepers;
	_Atomic bool quit;
	pthread_mutex_t lock;
	pthread_cond_t wake;
	int64_t n, grain;
	void (*fn)(void *, int64_t, int64_t, int);
	void *ctx;
	int threads;
	pthread_t thread[POOL_MAX];
} pool = { .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER, .threads = 1 };

static inline void cpu_relax(void)
{
#if defined __x86_64__ || defined __i386__
	__builtin_ia32_pause();
#elif defined __aarch64__
	__asm__ volatile("yield");
#endif
}

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void pool_work(int worker)
{
	int64_t i;

	while ((i = atomic_fetch_add_explicit(&pool.next, pool.grain, memory_order_relaxed)) <
	    pool.n)
		pool.fn(pool.ctx, i, pool.n - i < pool.grain ? pool.n : i + pool.grain, worker);
}

static bool pool_news(uint64_t done)
{
	return POOL_JOB(atomic_load(&pool.state)) != done || atomic_load(&pool.quit);
}

/* Returns when there is a job other than `done`: spins first, then sleeps. */
static void pool_wait(uint64_t done)
{
	int64_t start = now_ns();

	do {
		for (int i = 0; i < 64; i++) {
			if (pool_news(done))
				return;
			cpu_relax();
		}
	} while (now_ns() - start < POOL_SPIN_NS);
	pthread_mutex_lock(&pool.lock);
	atomic_fetch_add(&pool.sleepers, 1);
	while (!pool_news(done))
		pthread_cond_wait(&pool.wake, &pool.lock);
	atomic_fetch_sub(&pool.sleepers, 1);
	pthread_mutex_unlock(&pool.lock);
}

static void *pool_main(void *arg)
{
	int worker = (int)(intptr_t)arg;
	uint64_t done = 0, s;

	for (;;) {
		pool_wait(done);
		if (atomic_load(&pool.quit))
			return NULL;
		s = atomic_load(&pool.state);
		while (s & POOL_OPEN && !atomic_compare_exchange_weak(&pool.state, &s, s + 1))
			;
		done = POOL_JOB(s);
		if (s & POOL_OPEN) {
			pool_work(worker);
			atomic_fetch_sub(&pool.state, 1);
		}
	}
}

static void pool_wake(void)
{
	if (!atomic_load(&pool.sleepers))
		return;
	pthread_mutex_lock(&pool.lock);
	pthread_cond_broadcast(&pool.wake);
	pthread_mutex_unlock(&pool.lock);
}

void pool_for(int64_t n, int64_t grain, void (*fn)(void *, int64_t, int64_t, int), void *ctx)
{
	uint64_t job;

	if (grain < 1)
		grain = 1;
	if (pool.threads == 1 || n <= grain) {
		for (int64_t i = 0; i < n; i += grain)
			fn(ctx, i, n - i < grain ? n : i + grain, 0);
		return;
	}
	pool.n = n;
	pool.grain = grain;
	pool.fn = fn;
	pool.ctx = ctx;
	atomic_store(&pool.next, 0);
	job = (POOL_JOB(atomic_load(&pool.state)) + 1) & 0xffffffff;
	atomic_store(&pool.state, job << 32 | POOL_OPEN);
	pool_wake();
	pool_work(0);
	atomic_fetch_and(&pool.state, ~(uint64_t)POOL_OPEN);
	for (int i = 1; atomic_load(&pool.state) & POOL_INSIDE; i++) {
		cpu_relax();
		if (i % 1024 == 0)
			sched_yield();	/* the worker inside may need this very CPU */
	}
}

int pool_cpus(void)
{
	cpu_set_t set;

	return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

void pool_init(int threads)
{
	static const int fault[] = { SIGILL, SIGSEGV, SIGBUS, SIGFPE };
	sigset_t all, old;
	int t;

	if (threads <= 0)
		threads = pool_cpus();
	if (threads > POOL_MAX)
		threads = POOL_MAX;
	atomic_store(&pool.quit, false);
	atomic_store(&pool.state, 0);
	/* Signals go to the main thread, whose reads they must interrupt; faults belong to whom
	 * they happen. */
	sigfillset(&all);
	for (size_t i = 0; i < sizeof fault / sizeof fault[0]; i++)
		sigdelset(&all, fault[i]);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	for (t = 1; t < threads; t++)
		if (pthread_create(&pool.thread[t], NULL, pool_main, (void *)(intptr_t)t))
			break;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pool.threads = t;
}

int pool_threads(void)
{
	return pool.threads;
}

void pool_quit(void)
{
	atomic_store(&pool.quit, true);
	pthread_mutex_lock(&pool.lock);
	pthread_cond_broadcast(&pool.wake);
	pthread_mutex_unlock(&pool.lock);
	for (int t = 1; t < pool.threads; t++)
		pthread_join(pool.thread[t], NULL);
	pool.threads = 1;
}
