/* What host code must not do with memory of a device, done on the backend trap (tests/trap.t):
 * each of these ends the process with EX_SOFTWARE; "none" does it right. Without an argument:
 * that the right way works. */
#include "tap.h"

#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "backend/backend.h"

static const struct backend *be;

/* A copy that is on its way when a row reads it: the sum is not that of what was put. */
static int early(real *dev, const real *host, bool wait)
{
	uint64_t event;

	be->put_async(be, dev, host, 4 * sizeof *host);
	event = be->event_record(be);
	if (wait)
		be->event_wait(be, event, false);
	return be->sumsq(be, dev, 4) == 4 ? 0 : EX_SOFTWARE;
}

static int plant(const char *what)
{
	real *dev = be->alloc(be, 64 * sizeof *dev), host[64] = { 1, 1, 1, 1 };
	volatile real *look = dev;

	be->put(be, dev, host, sizeof host);
	if (strcmp(what, "read") == 0)
		host[0] = look[3];
	else if (strcmp(what, "write") == 0)
		look[3] = 1;
	else if (strcmp(what, "row") == 0)
		be->scale(be, host, 2, 64);
	else if (strcmp(what, "inside") == 0)
		be->gemm(be, GEMM_NT, &(struct gemm_job){ dev, 2, dev + 8, 2, host, 2, DT_REAL, 2,
		    2, 2, 0 }, 1);
	else if (strcmp(what, "long") == 0)
		be->scale(be, dev + 1, 2, 64);
	else if (strcmp(what, "get") == 0)
		be->get(be, dev + 8, dev, sizeof *dev);
	else if (strcmp(what, "put") == 0)
		be->put(be, host, host + 8, sizeof *host);
	else if (strcmp(what, "file") == 0)
		return write(1, dev, sizeof *dev) < 0 ? EX_SOFTWARE : 0;	/* EFAULT */
	else if (strcmp(what, "early") == 0) {
		be->zero(be, dev, sizeof host);
		return early(dev, host, false);
	} else {
		be->scale(be, dev, 2, 64);
		be->get(be, host, dev, sizeof host);
		host[0] /= 2, host[1] /= 2, host[2] /= 2, host[3] /= 2;
		return early(dev, host, true);
	}
	return 0;
}

int main(int argc, char **argv)
{
	struct err e = { 0 };

	if (argc == 1) {
		const char *build = getenv("BUILD");
		char path[4096];

		snprintf(path, sizeof path, "%s/tests", build ? build : "build");
		setenv("CHR_BACKEND_PATH", path, 1);
	}
	be = backend_open("trap", &e);
	if (argc > 1)
		return be ? plant(argv[1]) : EX_UNAVAILABLE;
	ok(be != NULL, "a backend of CHR_BACKEND_PATH opens %s", e.msg);
	ok(be && plant("none") == 0, "put, a row, get, and a copy that is waited for");
	return tap_done();
}
