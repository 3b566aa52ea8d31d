/* pool: every item once, for any number of threads, under many short jobs and late wake-ups. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/pool.h"
#include "tap.h"

#define N 10007

static unsigned char seen[N];
static atomic_int bad_worker, bad_chunk;

static void mark(void *ctx, int64_t i0, int64_t i1, int worker)
{
	int64_t grain = *(int64_t *)ctx;

	if (worker < 0 || worker >= pool_threads())
		atomic_fetch_add(&bad_worker, 1);
	if (i0 % grain || i1 <= i0 || i1 - i0 > grain)
		atomic_fetch_add(&bad_chunk, 1);
	for (; i0 < i1; i0++)
		seen[i0]++;
}

static int all_once(int64_t n)
{
	for (int64_t i = 0; i < N; i++)
		if (seen[i] != (i < n))
			return 0;
	return 1;
}

static void test_cover(int threads)
{
	static const int64_t sizes[] = { 0, 1, 7, 64, N }, grains[] = { 1, 7, 4096, 100000 };
	int good = 1;

	pool_init(threads);
	for (int i = 0; i < 5; i++)
		for (int j = 0; j < 4; j++) {
			int64_t grain = grains[j];

			memset(seen, 0, sizeof seen);
			pool_for(sizes[i], grain, mark, &grain);
			good &= all_once(sizes[i]);
		}
	ok(good, "%d threads: each item once", threads);
	ok(pool_threads() == threads, "%d threads", threads);
	pool_quit();
	ok(pool_threads() == 1, "one thread after pool_quit");
}

static void add(void *ctx, int64_t i0, int64_t i1, int worker)
{
	int64_t *sum = ctx;	/* one cell per chunk: plain memory, made visible by pool_for
				   alone */

	(void)worker;
	for (int64_t i = i0; i < i1; i++)
		sum[i] += i;
}

/* Jobs follow each other at once, and after pauses long enough for the workers to sleep. */
static void test_many(void)
{
	static int64_t sum[64];
	int jobs = 0, good = 1;

	pool_init(4);
	for (int round = 0; round < 20; round++) {
		nanosleep(&(struct timespec){ .tv_nsec = round % 2 ? 200000 : 0 }, NULL);
		for (int i = 0; i < 100; i++, jobs++)
			pool_for(64, 1, add, sum);
	}
	for (int64_t i = 0; i < 64; i++)
		good &= sum[i] == i * jobs;
	ok(good, "%d short jobs", jobs);
	pool_quit();
}

int main(void)
{
	ok(pool_threads() == 1, "one thread before pool_init");
	test_cover(1);
	test_cover(2);
	test_cover(5);
	test_many();
	pool_init(0);
	ok(pool_threads() >= 1, "one thread per CPU");
	pool_quit();
	ok(!bad_worker && !bad_chunk, "worker numbers and chunks as promised");
	return tap_done();
}
