/* Reads through io_uring (Axboe, "Efficient IO with io_uring", 2019): the thread that decodes
 * submits and reaps. */
#include "experts/reader_int.h"

#ifdef HAVE_URING

#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <stdlib.h>

struct state {
	struct reader *r;
	struct io_uring ring;
	int unsent;		/* queue entries filled, not yet given to the kernel */
};

void *reader_uring_open(struct reader *r)
{
	struct state *s = calloc(1, sizeof *s);

	if (s == NULL)
		return NULL;
	s->r = r;
	if (io_uring_queue_init(READER_JOBS, &s->ring, 0) < 0) {
		free(s);
		return NULL;
	}
	return s;
}

static void hand_over(struct state *s)
{
	while (s->unsent > 0) {
		int n = io_uring_submit(&s->ring);

		/* else a bug of ours */
		assert(n >= 0 || n == -EINTR || n == -EAGAIN || n == -EBUSY || n == -ENOMEM);
		s->unsent -= n > 0 ? n : 0;
	}
}

static void submit(void *state, struct reader_job *job)
{
	struct state *s = state;
	struct io_uring_sqe *q;
	int64_t offset = reader_rest(job);

	while ((q = io_uring_get_sqe(&s->ring)) == NULL)
		hand_over(s);
	io_uring_prep_readv(q, s->r->f[job->file].fd, job->left, (unsigned)job->nleft,
	    (uint64_t)offset);
	io_uring_sqe_set_data(q, job);
	s->unsent++;
}

static struct reader_job *reap(void *state, bool wait)
{
	struct state *s = state;
	struct io_uring_cqe *c;
	struct reader_job *job;
	int n;

	for (;;) {
		hand_over(s);
		n = io_uring_peek_cqe(&s->ring, &c);
		if (n == -EAGAIN && !wait)
			return NULL;
		if (n == -EAGAIN)
			n = io_uring_wait_cqe(&s->ring, &c);
		if (n < 0)
			continue;		/* a signal */
		job = io_uring_cqe_get_data(c);
		n = c->res;
		io_uring_cqe_seen(&s->ring, c);
		if (reader_step(s->r, job, n))
			return job;
		submit(s, job);
	}
}

static void shut(void *state)
{
	struct state *s = state;

	io_uring_queue_exit(&s->ring);
	free(s);
}

const struct reader_engine reader_uring = { "io_uring", submit, reap, shut };

#else

void *reader_uring_open(struct reader *r)
{
	(void)r;
	return NULL;
}

const struct reader_engine reader_uring = { .name = "io_uring" };

#endif
