#include "reader.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct file {
	int fd;
	int64_t size;
};

struct reader {
	int n;
	struct file *f;
	atomic_bool direct;
	struct reader_sim sim;
	pthread_mutex_t lock;		/* guards idle_at */
	double idle_at;			/* when the simulated drive has sent all that was asked of it */
};

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* read_ahead_kb may be megabytes: without this a buffered read of one expert brings its neighbours too. */
static void set_buffered(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags >= 0 && (flags & O_DIRECT))
		fcntl(fd, F_SETFL, flags & ~O_DIRECT);
	posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
}

static int open_file(struct reader *r, int dirfd, const char *dir, const char *name, struct file *f, struct err *e)
{
	int flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK;		/* a FIFO must not block us */
	bool direct = atomic_load(&r->direct);
	struct stat st;

	if (strchr(name, '/') != NULL)
		return err_set(e, EX_DATAERR, "%s: file name \"%s\" leaves the directory", dir, name);
	f->fd = openat(dirfd, name, direct ? flags | O_DIRECT : flags);
	if (f->fd < 0 && direct && errno == EINVAL) {
		atomic_store(&r->direct, direct = false);
		f->fd = openat(dirfd, name, flags);
	}
	if (f->fd < 0)
		return err_set(e, errno == EMFILE || errno == ENFILE ? EX_OSERR : EX_NOINPUT, "%s/%s:", dir, name);
	if (fstat(f->fd, &st) < 0)
		return err_set(e, EX_IOERR, "%s/%s:", dir, name);
	if (!S_ISREG(st.st_mode))
		return err_set(e, EX_DATAERR, "%s/%s: not a plain file", dir, name);
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

struct reader *reader_open(const char *dir, char *const file[], int n, bool buffered, const struct reader_sim *sim,
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
	atomic_init(&r->direct, !buffered);
	r->sim = *sim;
	pthread_mutex_init(&r->lock, NULL);
	if (open_files(r, dir, file, n, e) < 0) {
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
	for (i = 0; i < r->n; i++)
		if (r->f[i].fd >= 0)
			close(r->f[i].fd);
	pthread_mutex_destroy(&r->lock);
	free(r->f);
	free(r);
}

int64_t reader_size(const struct reader *r, int file)
{
	return r->f[file].size;
}

bool reader_direct(const struct reader *r)
{
	return atomic_load(&r->direct);
}

/* Loops over signals and short reads. A short direct read may end anywhere, but the next must start on an aligned
 * offset, so it repeats the odd bytes; one that brings nothing new has met the end of the file. */
static int read_all(struct reader *r, struct reader_job *job)
{
	size_t want = (size_t)reader_round((int64_t)job->need), have = 0, from;
	int fd = r->f[job->file].fd;
	bool refused = false;
	ssize_t n;

	while (have < job->need) {
		from = have / READER_ALIGN * READER_ALIGN;
		n = pread(fd, (char *)job->buf + from, want - from, job->offset + (off_t)from);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EINVAL && !refused) {
			refused = true;
			atomic_store(&r->direct, false);
			set_buffered(fd);
			continue;
		}
		if (n < 0) {
			job->error = errno;
			return -1;
		}
		job->got += (size_t)n;
		if (from + (size_t)n <= have) {
			job->error = 0;
			return -1;
		}
		have = from + (size_t)n;
	}
	return 0;
}

/* When the simulated drive would deliver `bytes` asked for now. */
static double sim_due(struct reader *r, size_t bytes)
{
	double due = now() + r->sim.latency;

	if (r->sim.bandwidth <= 0)
		return due;
	pthread_mutex_lock(&r->lock);
	if (due < r->idle_at)
		due = r->idle_at;
	due += (double)bytes / r->sim.bandwidth;
	r->idle_at = due;
	pthread_mutex_unlock(&r->lock);
	return due;
}

static void sleep_until(double due)
{
	struct timespec t = { (time_t)due, (long)((due - (double)(time_t)due) * 1e9) };

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
		continue;
}

int reader_read(struct reader *r, struct reader_job *job)
{
	bool sim = r->sim.latency > 0 || r->sim.bandwidth > 0;
	double due = sim ? sim_due(r, (size_t)reader_round((int64_t)job->need)) : 0;
	int status;

	job->got = 0;
	job->error = 0;
	status = read_all(r, job);
	if (sim)
		sleep_until(due);
	return status;
}
