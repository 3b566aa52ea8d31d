/* Any bytes as a JSONL or gzip file: records or an error with a place, never a crash. */
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int fd = memfd_create("jsonl", 0);
	char path[32];
	char *const files[] = { path };
	struct err e = {0};
	struct jsonl *in;
	json_t *rec;

	if (fd < 0 || write(fd, data, size) != (ssize_t)size)
		abort();
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	in = jsonl_open(1, files, size % 2, &e);
	if (!in)
		abort();
	while ((rec = jsonl_next(in, &e)) != NULL)
		json_decref(rec);
	if (e.status && e.status != EX_DATAERR)
		abort();
	jsonl_close(in);
	close(fd);
	return 0;
}
