#include "drive.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "rng.h"

#define ALIGN 4096
#define WANT ((int64_t)256 << 20)
#define MAX_DEPTH 64

struct run {
	int fd;
	int64_t block, places, reads;
	uint64_t seed;
	_Atomic int64_t next;
	_Atomic int error;		/* errno; -1: end of file */
};

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *reads(void *arg)
{
	struct run *r = arg;
	char *buf = aligned_alloc(ALIGN, (size_t)r->block);
	int64_t i;

	if (buf == NULL) {
		r->error = ENOMEM;
		return NULL;
	}
	memset(buf, 0, (size_t)r->block);
	while (r->error == 0 && (i = atomic_fetch_add(&r->next, 1)) < r->reads) {
		off_t at = (off_t)rng_below(r->seed, 1, (uint64_t)i, (uint64_t)r->places) * r->block;
		ssize_t n;

		do
			n = pread(r->fd, buf, (size_t)r->block, at);
		while (n < 0 && errno == EINTR);
		if (n != r->block)
			r->error = n < 0 ? errno : -1;
	}
	free(buf);
	return NULL;
}

static int measure(struct run *r, const char *path, int depth, double *speed, struct err *e)
{
	pthread_t thread[MAX_DEPTH];
	double start = now();
	int n;

	r->next = 0;
	for (n = 0; n < depth; n++)
		if (pthread_create(&thread[n], NULL, reads, r) != 0)
			break;
	for (int i = 0; i < n; i++)
		pthread_join(thread[i], NULL);
	if (n < depth)
		return err_set(e, EX_OSERR, "cannot start %d threads", depth);
	if (r->error == ENOMEM)
		return err_set(e, EX_OSERR, "out of memory for blocks of %lld bytes", (long long)r->block);
	if (r->error)
		return err_set(e, EX_IOERR, "%s: %s", path, r->error < 0 ? "shorter than it was" : strerror(r->error));
	*speed = (double)(r->reads * r->block) / (now() - start);
	return 0;
}

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static int summarise(struct drive_result *out, int reps, struct err *e)
{
	double *v = malloc((size_t)reps * sizeof *v);

	if (v == NULL)
		return err_set(e, EX_OSERR, "out of memory");
	memcpy(v, out->sample, (size_t)reps * sizeof *v);
	qsort(v, (size_t)reps, sizeof *v, by_size);
	out->least = v[0];
	out->median = (v[reps / 2] + v[(reps - 1) / 2]) / 2;
	out->most = v[reps - 1];
	free(v);
	return 0;
}

static int open_file(const char *path, struct run *r, bool *direct, struct err *e)
{
	struct stat st;

	*direct = true;
	r->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_DIRECT);
	if (r->fd < 0 && errno == EINVAL) {
		*direct = false;
		r->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	}
	if (r->fd < 0)
		return err_set(e, EX_NOINPUT, "cannot open %s:", path);
	if (fstat(r->fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size < r->block)
		return err_set(e, EX_DATAERR, "%s: not a plain file of at least %lld bytes", path, (long long)r->block);
	r->places = st.st_size / r->block;
	r->reads = WANT / r->block < r->places ? WANT / r->block : r->places;
	r->reads = r->reads > 0 ? r->reads : 1;
	return 0;
}

int drive_measure(const char *path, int64_t block, int depth, int reps, struct drive_result *out, struct err *e)
{
	struct run r = { .fd = -1, .block = (block + ALIGN - 1) / ALIGN * ALIGN };
	int rc = open_file(path, &r, &out->direct, e);

	out->sample = calloc((size_t)reps, sizeof *out->sample);
	if (rc == 0 && out->sample == NULL)
		rc = err_set(e, EX_OSERR, "out of memory");
	for (int i = 0; rc == 0 && i < reps; i++) {
		if (!out->direct)
			posix_fadvise(r.fd, 0, 0, POSIX_FADV_DONTNEED);
		r.seed = (uint64_t)i + 1;
		rc = measure(&r, path, depth < MAX_DEPTH ? depth : MAX_DEPTH, &out->sample[i], e);
	}
	if (rc == 0)
		rc = summarise(out, reps, e);
	if (r.fd >= 0)
		close(r.fd);
	if (rc < 0)
		free(out->sample);
	return rc;
}
