/* reader: what is read is what is in the file, through either engine; closing it ends, whatever
 * a simulated drive holds back. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "experts/reader.h"
#include "tap.h"

#define SIZE (4 * READER_ALIGN)

static char dir[] = "/tmp/chr-reader-XXXXXX";
static char *name[] = { "a" };

static void make_file(void)
{
	char path[64], data[SIZE];
	int fd;

	for (int i = 0; i < SIZE; i++)
		data[i] = (char)(i * 7 + i / 256);
	snprintf(path, sizeof path, "%s/a", dir);
	fd = open(path, O_WRONLY | O_CREAT, 0666);
	if (fd < 0 || write(fd, data, SIZE) != SIZE || fsync(fd) < 0 || close(fd) < 0)
		abort();
}

static void test_read(const char *what, enum reader_io io)
{
	struct reader_opt o = { .io = io };
	char *buf = aligned_alloc(READER_ALIGN, SIZE);
	struct reader_job job = { .offset = READER_ALIGN, .n = 1,
	    .part = { { buf, 2 * READER_ALIGN } }, .need = READER_ALIGN + 5 };
	struct reader *r;
	struct err e;
	int good;

	if (!(r = reader_open(dir, name, 1, &o, &e))) {
		ok(1, "%s # SKIP %s", what, e.msg);
		free(buf);
		return;
	}
	reader_submit(r, &job);
	good = reader_reap(r, true) == &job && job.error == 0 && job.got >= job.need &&
	    reader_reap(r, true) == NULL;
	for (int i = 0; good && i < READER_ALIGN + 5; i++)
		good = buf[i] == (char)((i + READER_ALIGN) * 7 + (i + READER_ALIGN) / 256);
	ok(good, "%s: bytes of the middle", what);
	job = (struct reader_job){ .offset = SIZE - READER_ALIGN, .n = 1, .part = { { buf, SIZE } },
	    .need = READER_ALIGN + 1 };
	reader_submit(r, &job);
	ok(reader_reap(r, true) == &job && job.error == READER_EOF, "%s: past the end", what);
	reader_close(r);
	free(buf);
}

/* One read has ended for the engine and is held back for an hour, another was just submitted. */
static void test_close(const char *what, enum reader_io io)
{
	struct reader_opt o = { .io = io, .sim = { .latency = 3600 } };
	char *buf = aligned_alloc(READER_ALIGN, 2 * READER_ALIGN);
	struct reader_job job[2];
	struct reader *r;
	struct err e;

	for (int i = 0; i < 2; i++)
		job[i] = (struct reader_job){ .n = 1,
		    .part = { { buf + i * READER_ALIGN, READER_ALIGN } }, .need = READER_ALIGN };
	if (!(r = reader_open(dir, name, 1, &o, &e))) {
		ok(1, "%s # SKIP %s", what, e.msg);
		free(buf);
		return;
	}
	reader_submit(r, &job[0]);
	while (!job[0].ended)
		if (reader_reap(r, false) != NULL)
			abort();
	reader_submit(r, &job[1]);
	alarm(20);		/* kills the test if it hangs */
	reader_close(r);
	alarm(0);
	ok(1, "%s: closing ends", what);
	free(buf);
}

/* Kernel threads of io_uring would take memory beside the plan. */
static void test_buffered(void)
{
	const struct reader_opt o = { .buffered = true };
	struct err e = { 0 };
	struct reader *r = reader_open(dir, name, 1, &o, &e);

	ok(r && strcmp(reader_name(r), "threads") == 0, "through the page cache threads read");
	reader_close(r);
}

int main(void)
{
	if (!mkdtemp(dir) || chdir(dir) < 0)
		return 1;
	make_file();
	test_read("io_uring", READER_URING);
	test_read("threads", READER_THREADS);
	test_close("io_uring", READER_URING);
	test_close("threads", READER_THREADS);
	test_buffered();
	ok(unlink("a") == 0 && rmdir(dir) == 0, "cleaned up");
	return tap_done();
}
