/* reader_int: what the files of reader share. Not installed. */
#ifndef CHR_READER_INT_H
#define CHR_READER_INT_H

#include <stdatomic.h>

#include "experts/reader.h"

#define READER_STACK (512 << 10)	/* of a reader thread; thread-local arrays of the whole
					   program lie in it too, */
#define READER_STACK_USED (64 << 10)	/* no more of it is touched */

struct reader_file {
	int fd;
	int64_t size;
};

struct reader_engine {		/* how reads are done */
	const char *name;
	void (*submit)(void *state, struct reader_job *job);
	/* one that has ended; wait only when one is under way */
	struct reader_job *(*reap)(void *state, bool wait);
	void (*close)(void *state);				/* nothing is under way */
};

struct reader {
	int n;
	struct reader_file *f;
	atomic_bool direct;
	const struct reader_engine *engine;
	void *state;
	int under_way;
	struct reader_sim sim;
	bool simulated;
	double idle_at;			/* when the simulated drive has sent all that was asked
					   of it */
	struct reader_job *first, **last;	/* simulated: in order of submission, which is
						   that of delivery */
};

/* What is left to read of a job, in job->left; the offset it goes on at. */
int64_t reader_rest(struct reader_job *job);
/* Takes the result of one read call, n bytes or -errno; true: the job has ended, else it goes on
 * with reader_rest. */
bool reader_step(struct reader *r, struct reader_job *job, int64_t n);

void *reader_uring_open(struct reader *r);		/* NULL: not to be had here */
void *reader_threads_open(struct reader *r, int threads, struct err *e);
extern const struct reader_engine reader_uring, reader_threads;

#endif
