/*
 * A drive that fails: preloaded (LD_PRELOAD) into a program it stands before preadv(), and with
 * HAVE_URING before io_uring_submit(), for files whose name ends in ".ctsr".
 *
 *	FAULT=eio|end|short|slow	the read fails; brings nothing; brings a part; takes ten
 *					times as long (io_uring: 1 ms longer)
 *	FAULT_AFTER=N			the first N reads are as they should be (default 0)
 *	FAULT_TIMES=N			and those after the N bad ones again (default: none)
 *	FAULT_LOG=FILE			gets a byte for each bad read, so that a test knows there
 *					were some
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#ifdef HAVE_URING
#include <liburing.h>
#endif

#define BLOCK 4096	/* direct reads end at one */

typedef ssize_t (*preadv_fn)(int, const struct iovec *, int, off_t);

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

static void rest(double seconds)
{
	nanosleep(&(struct timespec){ (time_t)seconds,
	    (long)((seconds - (double)(time_t)seconds) * 1e9) }, NULL);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int is(const char *kind) { return strcmp(getenv("FAULT"), kind) == 0; }

/* Is this read one of the bad ones? */
static int strikes(int fd)
{
	long after, i;

	if (!getenv("FAULT") || !is_cluster(fd))
		return 0;
	after = number("FAULT_AFTER", 0);
	i = atomic_fetch_add(&reads, 1);
	if (i < after || i - after >= number("FAULT_TIMES", 1L << 40))
		return 0;
	note();
	return 1;
}

/* Half of the first part. */
static struct iovec part_of(const struct iovec *v)
{
	return (struct iovec){ v->iov_base, v->iov_len > 2 * BLOCK ? v->iov_len / 2 / BLOCK * BLOCK
	    : BLOCK };
}

static ssize_t bad_read(preadv_fn real, int fd, const struct iovec *v, int n, off_t at)
{
	struct iovec part = part_of(v);
	double began = now();
	ssize_t got;

	if (is("short"))
		return real(fd, &part, 1, at);
	if (is("slow")) {
		got = real(fd, v, n, at);
		rest(9 * (now() - began));
		return got;
	}
	if (is("end"))
		return 0;
	errno = EIO;
	return -1;
}

static ssize_t read_at(const char *name, int fd, const struct iovec *v, int n, off_t at)
{
	preadv_fn real = (preadv_fn)dlsym(RTLD_NEXT, name);

	return strikes(fd) ? bad_read(real, fd, v, n, at) : real(fd, v, n, at);
}

ssize_t preadv(int fd, const struct iovec *v, int n, off_t at)
{
	return read_at("preadv", fd, v, n, at);
}
ssize_t preadv64(int fd, const struct iovec *v, int n, off_t at)
{
	return read_at("preadv64", fd, v, n, at);
}

#ifdef HAVE_URING
/* Turns an entry of the queue into one that goes wrong. */
static void spoil(struct io_uring_sqe *q)
{
	static struct iovec part[4096];
	static unsigned n;
	static int nowhere = -1;

	if (is("slow")) {
		rest(1e-3);
	} else if (is("end")) {
		q->opcode = IORING_OP_NOP;
	} else if (is("short")) {
		part[n % 4096] = part_of((const struct iovec *)(uintptr_t)q->addr);
		q->addr = (uintptr_t)&part[n++ % 4096];
		q->len = 1;
	} else {		/* there is nothing at address 0: EIO */
		if (nowhere < 0)
			nowhere = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
		q->fd = nowhere;
		q->off = 0;
	}
}

int io_uring_submit(struct io_uring *ring)
{
	int (*real)(struct io_uring *) = (int (*)(struct io_uring *))dlsym(RTLD_NEXT,
	    "io_uring_submit");
	unsigned i;

	for (i = ring->sq.sqe_head; i != ring->sq.sqe_tail; i++) {
		struct io_uring_sqe *q = &ring->sq.sqes[i & *ring->sq.kring_mask];

		if (q->opcode == IORING_OP_READV && strikes(q->fd))
			spoil(q);
	}
	return real(ring);
}
#endif
