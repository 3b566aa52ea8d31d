#include "experts/reader_int.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/progress.h"

/* read_ahead_kb may be megabytes: without this a buffered read of one expert brings its
 * neighbours too. */
static void set_buffered(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags >= 0 && (flags & O_DIRECT))
		fcntl(fd, F_SETFL, flags & ~O_DIRECT);
	posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
}

static int open_file(struct reader *r, int dirfd, const char *dir, const char *name,
    struct reader_file *f, struct err *e)
{
	int flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK;		/* a FIFO must not block us */
	bool direct = atomic_load(&r->direct);
	struct stat st;

	if (strchr(name, '/') != NULL)
		return err_set(e, EX_DATAERR, "%s: file name \"%s\" leaves the directory", dir,
		    name);
	f->fd = openat(dirfd, name, direct ? flags | O_DIRECT : flags);
	if (f->fd < 0 && direct && errno == EINVAL) {
		atomic_store(&r->direct, direct = false);
		f->fd = openat(dirfd, name, flags);
	}
	if (f->fd < 0)
		return err_set(e, errno == EMFILE || errno == ENFILE ? EX_OSERR : EX_NOINPUT,
		    "%s/%s:", dir, name);
	if (fstat(f->fd, &st) < 0)
		return err_set(e, EX_IOERR, "%s/%s:", dir, name);
	if (!S_ISREG(st.st_mode))
		return err_set(e, EX_DATAERR, "%s/%s: not a plain file", dir, name);
	/* Before Linux 5.11 io_uring gives up on a read that would block where this flag stays. */
	fcntl(f->fd, F_SETFL, (direct ? O_DIRECT : 0));
	if (!direct)
		set_buffered(f->fd);
	f->size = st.st_size;
	return 0;
}

static int open_files(struct reader *r, const char *dir, char *const file[], int n, struct err *e)
{
	int i, status = 0, dirfd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (dirfd < 0)
		return err_set(e, EX_NOINPUT, "%s:", dir);
	for (i = 0; i < n && status == 0; i++, r->n++) {
		r->f[i].fd = -1;
		status = open_file(r, dirfd, dir, file[i], &r->f[i], e);
	}
	close(dirfd);
	return status;
}

/* Through the page cache io_uring reads in threads of the kernel, whose memory and whose pages
 * on their way count against a limit and cannot be planned: a run with --ram at the limit of its
 * control group was killed each time. */
static int open_engine(struct reader *r, const char *dir, const struct reader_opt *o, struct err *e)
{
	bool uring = o->io == READER_URING || (o->io == READER_AUTO && atomic_load(&r->direct));

	r->engine = &reader_uring;
	r->state = uring ? reader_uring_open(r) : NULL;
	if (r->state == NULL && o->io == READER_URING)
		return err_set(e, EX_UNAVAILABLE, "%s: io_uring is not available here: use threads",
		    dir);
	if (r->state == NULL) {
		r->engine = &reader_threads;
		r->state = reader_threads_open(r, o->threads > 0 ? o->threads
		    : READER_THREADS_USUAL, e);
	}
	return r->state != NULL ? 0 : -1;
}

struct reader *reader_open(const char *dir, char *const file[], int n, const struct reader_opt *o,
    struct err *e)
{
	struct reader *r = calloc(1, sizeof *r);

	if (r != NULL)
		r->f = calloc(n > 0 ? (size_t)n : 1, sizeof *r->f);
	if (r == NULL || r->f == NULL) {
		free(r);
		err_set(e, EX_OSERR, "%s: out of memory for %d files", dir, n);
		return NULL;
	}
	atomic_init(&r->direct, !o->buffered);
	r->sim = o->sim;
	r->simulated = r->sim.latency > 0 || r->sim.bandwidth > 0;
	r->last = &r->first;
	if (r->simulated)
		prctl(PR_SET_TIMERSLACK, 1000);		/* ns: late by no more than a wake-up */
	if (open_files(r, dir, file, n, e) < 0 || open_engine(r, dir, o, e) < 0) {
		reader_close(r);
		return NULL;
	}
	return r;
}

void reader_close(struct reader *r)
{
	int i;

	if (r == NULL)
		return;
	for (struct reader_job *job = r->first; job != NULL; job = job->later)
		job->due = 0;		/* nobody waits for a drive that is not there */
	while (reader_reap(r, true) != NULL)
		continue;
	if (r->state != NULL)
		r->engine->close(r->state);
	for (i = 0; i < r->n; i++)
		if (r->f[i].fd >= 0)
			close(r->f[i].fd);
	free(r->f);
	free(r);
}

int64_t reader_bytes(int nfiles, int threads)
{
	return (int64_t)sizeof(struct reader) + nfiles * (int64_t)sizeof(struct reader_file) +
	    (int64_t)(threads > 0 ? threads : READER_THREADS_USUAL) * READER_STACK_USED;
}

int64_t reader_size(const struct reader *r, int file)
{
	return r->f[file].size;
}

bool reader_direct(const struct reader *r)
{
	return atomic_load(&r->direct);
}

const char *reader_name(const struct reader *r)
{
	return r->engine->name;
}

/* A short direct read may end anywhere, but the next must start on an aligned offset, so it
 * repeats the odd bytes. */
int64_t reader_rest(struct reader_job *job)
{
	size_t from = job->have / READER_ALIGN * READER_ALIGN, skip = from;

	job->nleft = 0;
	for (int i = 0; i < job->n; i++) {
		size_t cut = skip < job->part[i].iov_len ? skip : job->part[i].iov_len;

		skip -= cut;
		if (cut < job->part[i].iov_len)
			job->left[job->nleft++] = (struct iovec){ (char *)job->part[i].iov_base +
			    cut, job->part[i].iov_len - cut };
	}
	return job->offset + (int64_t)from;
}

bool reader_step(struct reader *r, struct reader_job *job, int64_t n)
{
	size_t from = job->have / READER_ALIGN * READER_ALIGN;

	if (n == -EINTR || n == -EAGAIN)
		return false;
	if (n == -EINVAL && !job->refused) {
		job->refused = true;
		atomic_store(&r->direct, false);
		set_buffered(r->f[job->file].fd);
		return false;
	}
	if (n < 0) {
		job->error = (int)-n;
		return true;
	}
	job->got += (size_t)n;
	if (from + (size_t)n <= job->have) {		/* nothing new: the end of the file */
		job->error = READER_EOF;
		return true;
	}
	job->have = from + (size_t)n;
	return job->have >= job->need;
}

/* When the simulated drive would deliver `bytes` asked for now. */
static double sim_due(struct reader *r, size_t bytes)
{
	double due = progress_clock() + r->sim.latency;

	if (r->sim.bandwidth <= 0)
		return due;
	if (due < r->idle_at)
		due = r->idle_at;
	due += (double)bytes / r->sim.bandwidth;
	r->idle_at = due;
	return due;
}

static void sleep_until(double due)
{
	struct timespec t = { (time_t)due, (long)((due - (double)(time_t)due) * 1e9) };

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
		continue;
}

void reader_submit(struct reader *r, struct reader_job *job)
{
	size_t bytes = 0;

	job->got = job->have = 0;
	job->error = 0;
	job->refused = job->ended = false;
	job->later = NULL;
	for (int i = 0; i < job->n; i++)
		bytes += job->part[i].iov_len;
	if (r->simulated) {
		job->due = sim_due(r, bytes);
		*r->last = job;
		r->last = &job->later;
	}
	r->under_way++;
	r->engine->submit(r->state, job);
}

/* Dues never fall in order of submission, so the first submitted is the first delivered. */
static struct reader_job *reap_simulated(struct reader *r, bool wait)
{
	struct reader_job *job, *done;

	while ((done = r->engine->reap(r->state, wait && !r->first->ended)) != NULL)
		done->ended = true;
	job = r->first;
	if (!job->ended || (!wait && progress_clock() < job->due))
		return NULL;
	sleep_until(job->due);
	r->first = job->later;
	if (r->first == NULL)
		r->last = &r->first;
	return job;
}

struct reader_job *reader_reap(struct reader *r, bool wait)
{
	struct reader_job *job;

	if (r->under_way == 0)
		return NULL;
	job = r->simulated ? reap_simulated(r, wait) : r->engine->reap(r->state, wait);
	r->under_way -= job != NULL;
	return job;
}
