/*
 * reader: the files of a packed directory and how bytes get out of them: whole aligned reads with O_DIRECT where the
 * file system takes it, and a simulated slower drive for tests and planning. Used by store; several threads may read.
 */
#ifndef CHR_READER_H
#define CHR_READER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "err.h"

#define READER_ALIGN 4096	/* of offsets, lengths and memory: what O_DIRECT asks of any drive in use */

struct reader;

struct reader_sim {		/* a drive: latencies of reads overlap, their transfers do not */
	double latency;		/* seconds added to each read */
	double bandwidth;	/* bytes/s of all reads together, 0 = no limit */
};

/* Opens dir/file[i] for i < n: plain files only, names without '/'. EX_NOINPUT, EX_DATAERR, EX_OSERR. */
struct reader *reader_open(const char *dir, char *const file[], int n, bool buffered, const struct reader_sim *sim,
    struct err *e);
void reader_close(struct reader *r);

int64_t reader_size(const struct reader *r, int file);		/* as it was at open */
bool reader_direct(const struct reader *r);	/* every file is read with O_DIRECT: false as soon as one refused */

struct reader_job {
	int file;
	int64_t offset;		/* multiple of READER_ALIGN */
	size_t need;		/* bytes that must come; what is asked for is need rounded up to READER_ALIGN */
	void *buf;		/* aligned, holds the rounded length */
	size_t got;		/* out: bytes the kernel returned, also when the read failed */
	int error;		/* out: errno of a failed read, 0 for an unexpected end of the file */
};

/* 0, or -1 with job->error set. */
int reader_read(struct reader *r, struct reader_job *job);

static inline int64_t reader_round(int64_t bytes)
{
	return (bytes + READER_ALIGN - 1) / READER_ALIGN * READER_ALIGN;
}

#endif
