/*
 * drive_bench: what a drive gives: random reads of a file in blocks of one size, several at a
 * time, past the page cache, in the way and into such memory as a store reads.
 */
#ifndef CHR_DRIVE_BENCH_H
#define CHR_DRIVE_BENCH_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct drive_bench_result {
	double *sample;			/* (reps) bytes per second; the caller frees */
	double median, least, most;
	bool direct;			/* false: the file system refused O_DIRECT; the file was
					   dropped from the page cache */
};

/* A repetition reads about 256 MiB or, of a smaller file, as much as it holds. block is rounded
 * up to 4096; the file must hold one. 0, or -1: EX_NOINPUT, EX_DATAERR, EX_IOERR, EX_OSERR. */
int drive_bench_measure(const char *path, int64_t block, int depth, int reps,
    struct drive_bench_result *out, struct err *e) CHR_MUST_CHECK;

#endif
