/*
 * reader: the files of a packed directory and how bytes get out of them: whole aligned reads
 * with O_DIRECT where the file system takes it, several under way at once, and a simulated
 * slower drive for tests and planning. One thread (the store's) calls these functions.
 *
 *	reader_submit(r, &job);				any number, then go on computing
 *	while ((done = reader_reap(r, true)) != NULL)	waits for the next to end; NULL: nothing
 *							is under way
 *		...
 *
 * Reads go through io_uring where the library was built with liburing and the kernel permits it,
 * else to threads that call preadv (reader_uring.c, reader_threads.c). Which of them changes no
 * byte.
 */
#ifndef CHR_READER_H
#define CHR_READER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/err.h"

#define READER_ALIGN 4096	/* of offsets, lengths and memory: what O_DIRECT asks of any
				   drive in use */
#define READER_PARTS 16		/* pieces of memory of one job */
#define READER_JOBS 64		/* under way at once, at most */
#define READER_EOF (-1)
#define READER_THREADS_USUAL 4

struct reader;

struct reader_sim {		/* a drive: latencies of reads overlap, their transfers do not */
	double latency;		/* seconds added to each read */
	double bandwidth;	/* bytes/s of all reads together, 0 = no limit */
};

enum reader_io { READER_AUTO, READER_URING, READER_THREADS };

struct reader_opt {
	enum reader_io io;
	int threads;		/* of READER_THREADS; 0: READER_THREADS_USUAL */
	bool buffered;		/* do not try O_DIRECT */
	struct reader_sim sim;
};

/* Opens dir/file[i] for i < n: plain files only, names without '/'. EX_NOINPUT, EX_DATAERR,
 * EX_OSERR; EX_UNAVAILABLE: io_uring was asked for and is not to be had. */
struct reader *reader_open(const char *dir, char *const file[], int n, const struct reader_opt *o,
    struct err *e) CHR_MUST_CHECK;
void reader_close(struct reader *r);				/* waits for what is under way */
/* what it holds, stacks of threads included */
int64_t reader_bytes(int nfiles, int threads);

int64_t reader_size(const struct reader *r, int file);		/* as it was at open */
bool reader_direct(const struct reader *r);	/* every file is read with O_DIRECT: false as
						   soon as one refused */
const char *reader_name(const struct reader *r);		/* "io_uring" or "threads" */

struct reader_job {		/* one read; the caller keeps it until it comes back */
	int file;
	int64_t offset;		/* multiple of READER_ALIGN */
	int n;			/* parts: aligned memory whose lengths are multiples of
				   READER_ALIGN, filled in order */
	struct iovec part[READER_PARTS];
	size_t need;		/* bytes that must come; what is asked for is all the parts hold */
	size_t got;		/* out: bytes the kernel returned, also when the read failed */
	int error;		/* out: 0, errno, or READER_EOF for an unexpected end of the file */

	struct reader_job *next, *later;	/* the reader's own */
	size_t have;
	double due;
	bool refused, ended;
	int nleft;
	struct iovec left[READER_PARTS];
};

void reader_submit(struct reader *r, struct reader_job *job);
/* The next job that has ended, or NULL. wait: blocks until there is one; NULL then means that
 * nothing is under way. */
struct reader_job *reader_reap(struct reader *r, bool wait);

static inline int64_t reader_round(int64_t bytes)
{
	return (bytes + READER_ALIGN - 1) / READER_ALIGN * READER_ALIGN;
}

#endif
