/*
 * A drive that fails: preloaded (LD_PRELOAD) into a program it stands before pread() for files whose name ends in ".ctsr".
 *
 *	FAULT=eio|end|short|slow	the read fails; brings nothing; brings a part; takes ten times as long
 *	FAULT_AFTER=N			the first N reads are as they should be (default 0)
 *	FAULT_TIMES=N			and those after the N bad ones again (default: none)
 *	FAULT_LOG=FILE			gets a byte for each bad read, so that a test knows there were some
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096	/* direct reads end at one */

typedef ssize_t (*pread_fn)(int, void *, size_t, off_t);

static atomic_long reads;

static long number(const char *name, long otherwise)
{
	const char *v = getenv(name);

	return v ? atol(v) : otherwise;
}

static int is_cluster(int fd)
{
	char link[64], name[4096];
	ssize_t n;

	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	n = readlink(link, name, sizeof name);
	return n >= 5 && memcmp(name + n - 5, ".ctsr", 5) == 0;
}

static void note(void)
{
	const char *file = getenv("FAULT_LOG");
	int fd = file ? open(file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666) : -1;

	if (fd < 0)
		return;
	if (write(fd, ".", 1) != 1)
		abort();
	close(fd);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static ssize_t slow_read(pread_fn real, int fd, void *buf, size_t n, off_t at)
{
	double began = now(), more;
	ssize_t got = real(fd, buf, n, at);

	more = 9 * (now() - began);
	nanosleep(&(struct timespec){ (time_t)more, (long)((more - (double)(time_t)more) * 1e9) }, NULL);
	return got;
}

static ssize_t bad_read(pread_fn real, int fd, void *buf, size_t n, off_t at)
{
	const char *kind = getenv("FAULT");

	note();
	if (strcmp(kind, "slow") == 0)
		return slow_read(real, fd, buf, n, at);
	if (strcmp(kind, "short") == 0)
		return real(fd, buf, n > BLOCK ? n / 2 / BLOCK * BLOCK + (n < 2 * BLOCK) * BLOCK : n, at);
	if (strcmp(kind, "end") == 0)
		return 0;
	errno = EIO;
	return -1;
}

static ssize_t read_at(const char *name, int fd, void *buf, size_t n, off_t at)
{
	pread_fn real = (pread_fn)dlsym(RTLD_NEXT, name);
	long after, i;

	if (!getenv("FAULT") || !is_cluster(fd))
		return real(fd, buf, n, at);
	after = number("FAULT_AFTER", 0);
	i = atomic_fetch_add(&reads, 1);
	if (i < after || i - after >= number("FAULT_TIMES", 1L << 40))
		return real(fd, buf, n, at);
	return bad_read(real, fd, buf, n, at);
}

ssize_t pread(int fd, void *buf, size_t n, off_t at) { return read_at("pread", fd, buf, n, at); }
ssize_t pread64(int fd, void *buf, size_t n, off_t at) { return read_at("pread64", fd, buf, n, at); }
