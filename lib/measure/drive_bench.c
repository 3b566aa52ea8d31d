#include "measure/drive_bench.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/progress.h"
#include "experts/reader.h"
#include "base/rng.h"

#define WANT ((int64_t)256 << 20)
#define HUGE_PAGE ((int64_t)2 << 20)
#define MAX_DEPTH READER_JOBS

struct run {
	struct reader *reader;
	int depth;
	int64_t block, places, reads;
	char *mem;				/* (depth, block), touched */
	int64_t mapped;
	struct reader_job job[MAX_DEPTH];
};

static void begin(struct run *r, struct reader_job *job, uint64_t seed, int64_t i)
{
	job->offset = (int64_t)rng_below(seed, 1, (uint64_t)i, (uint64_t)r->places) * r->block;
	reader_submit(r->reader, job);
}

static int measure(struct run *r, const char *path, uint64_t seed, double *speed, struct err *e)
{
	double start = progress_clock();
	struct reader_job *job;
	int64_t begun = 0;

	for (; begun < r->reads && begun < r->depth; begun++)
		begin(r, &r->job[begun], seed, begun);
	while ((job = reader_reap(r->reader, true)) != NULL) {
		if (job->error != 0)
			return err_set(e, EX_IOERR, "%s: %s", path, job->error == READER_EOF
			    ? "shorter than it was"
			    : strerror(job->error));
		if (begun < r->reads)
			begin(r, job, seed, begun++);
	}
	*speed = (double)(r->reads * r->block) / (progress_clock() - start);
	return 0;
}

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static int summarise(struct drive_bench_result *out, int reps, struct err *e)
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

static int open_file(const char *path, struct run *r, struct err *e)
{
	struct reader_opt o = { .threads = r->depth };
	char *copy = strdup(path), *slash = copy ? strrchr(copy, '/') : NULL, *name = slash
	    ? slash + 1 : copy;
	int64_t size;

	if (copy == NULL)
		return err_set(e, EX_OSERR, "out of memory");
	if (slash)
		*slash = '\0';
	r->reader = reader_open(slash == NULL ? "." : *copy ? copy : "/", &name, 1, &o, e);
	free(copy);
	if (r->reader == NULL)
		return -1;
	size = reader_size(r->reader, 0);
	if (size < r->block)
		return err_set(e, EX_DATAERR, "%s: not a plain file of at least %lld bytes", path,
		    (long long)r->block);
	r->places = size / r->block;
	r->reads = WANT / r->block < r->places ? WANT / r->block : r->places;
	r->reads = r->reads > 0 ? r->reads : 1;
	return 0;
}

/* As the slots of a store: in huge pages where there are any, and every page touched. */
static int open_memory(struct run *r, struct err *e)
{
	r->mapped = r->depth * r->block + HUGE_PAGE;
	r->mem = mmap(NULL, (size_t)r->mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
	    -1, 0);
	if (r->mem == MAP_FAILED) {
		r->mem = NULL;
		return err_set(e, EX_OSERR, "out of memory for %d blocks of %lld bytes", r->depth,
		    (long long)r->block);
	}
	madvise(r->mem, (size_t)r->mapped, MADV_HUGEPAGE);
	memset(r->mem, 0, (size_t)r->mapped);
	for (int i = 0; i < r->depth; i++) {
		r->job[i] = (struct reader_job){ .n = 1, .need = (size_t)r->block };
		r->job[i].part[0] = (struct iovec){ r->mem +
		    (HUGE_PAGE - (int64_t)((uintptr_t)r->mem % HUGE_PAGE)) % HUGE_PAGE
		    + i * r->block, (size_t)r->block };
	}
	return 0;
}

static void uncache(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return;
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	close(fd);
}

int drive_bench_measure(const char *path, int64_t block, int depth, int reps,
    struct drive_bench_result *out, struct err *e)
{
	struct run *r = calloc(1, sizeof *r);
	int rc;

	out->sample = calloc((size_t)reps, sizeof *out->sample);
	if (r == NULL || out->sample == NULL) {
		free(r);
		free(out->sample);
		return err_set(e, EX_OSERR, "out of memory");
	}
	r->block = reader_round(block);
	r->depth = depth < MAX_DEPTH ? depth : MAX_DEPTH;
	rc = open_file(path, r, e);
	if (rc == 0)
		rc = open_memory(r, e);
	for (int i = 0; rc == 0 && i < reps; i++) {
		if (!reader_direct(r->reader))
			uncache(path);
		rc = measure(r, path, (uint64_t)i + 1, &out->sample[i], e);
	}
	if (rc == 0) {
		out->direct = reader_direct(r->reader);
		rc = summarise(out, reps, e);
	}
	reader_close(r->reader);
	if (r->mem != NULL)
		munmap(r->mem, (size_t)r->mapped);
	free(r);
	if (rc < 0)
		free(out->sample);
	return rc;
}
