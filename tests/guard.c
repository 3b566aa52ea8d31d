/* guard.c on trees of files, and what it asks of this kernel. */
#include <time.h>

#include "base/guard.h"
#include "memtree.h"
#include "base/opt.h"
#include "tap.h"

/* Sends stderr to a file; the number of lines in it. */
static char log_name[] = "/tmp/chr-guard-XXXXXX";

static void log_begin(void)
{
	int fd = mkstemp(log_name);

	if (fd < 0 || dup2(fd, STDERR_FILENO) < 0)
		abort();
	close(fd);
}

static int lines(const char *word)
{
	FILE *f = fopen(log_name, "r");
	char line[1024];
	int n = 0;

	if (f == NULL)
		abort();
	while (fgets(line, sizeof line, f) != NULL)
		n += strstr(line, word) != NULL;
	fclose(f);
	return n;
}

static double clock_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void use(int64_t mib)
{
	char text[32];

	snprintf(text, sizeof text, "%lld\n", (long long)(mib * MIB));
	put("/sys/fs/cgroup/g/memory.current", text);
}

static void test_levels(void)
{
	struct err e = { 0 };
	struct guard *g;
	enum guard_level level;
	double looked, began;

	v2("/g/h");
	put("/sys/fs/cgroup/g/memory.max", "104857600\n");
	put("/sys/fs/cgroup/g/h/memory.max", "max\n");
	use(50);
	g = guard_open(root, 0.85, 0.95, &e);
	ok(g != NULL && guard_look(g) == GUARD_OK, "half of the group's limit");
	use(84);
	looked = clock_now();
	ok(guard_look(g) == GUARD_OK && lines("in use") == 0, "below the warning nothing is said");
	use(86);
	began = clock_now();
	level = guard_check(g);
	ok(level == GUARD_OK || clock_now() - began > 0.5 || began - looked > 0.5,
	    "without an event usage is not read twice in a second");
	ok(guard_look(g) == GUARD_WARN && guard_look(g) == GUARD_WARN, "above it");
	ok(lines("warning is at 85 %") == 1 && lines("/sys/fs/cgroup/g are") == 1,
	    "is said once, with the group's name");
	put("/sys/fs/cgroup/g/memory.stat", "inactive_file 52428800\n");
	ok(guard_look(g) == GUARD_OK, "file pages that can be dropped do not count");
	use(146);
	ok(guard_look(g) == GUARD_LIMIT && lines("limit is at 95 %") == 1, "above the limit");
	use(140);
	ok(guard_look(g) == GUARD_WARN && lines("in use") == 2,
	    "below it again; nothing is said twice");
	put("/proc/meminfo", "MemTotal: 1000000 kB\nMemAvailable: 40000 kB\n");
	ok(guard_look(g) == GUARD_LIMIT, "a machine that has nothing left");
	put("/proc/meminfo", "");
	put("/sys/fs/cgroup/g/memory.max", "max\n");
	ok(guard_look(g) == GUARD_OK, "nothing known is no danger");
	guard_close(g);
}

static void test_quiet(void)
{
	struct err e = { 0 };
	struct guard *g;
	int before = lines("in use");

	v1("/g");
	put("/sys/fs/cgroup/memory/g/memory.limit_in_bytes", "104857600\n");
	put("/sys/fs/cgroup/memory/g/memory.usage_in_bytes", "94371840\n");
	opt_quiet = true;
	g = guard_open(root, 0.85, 0.95, &e);
	ok(guard_look(g) == GUARD_WARN && lines("in use") == before,
	    "v1; --quiet keeps a warning back");
	put("/sys/fs/cgroup/memory/g/memory.usage_in_bytes", "104857600\n");
	ok(guard_look(g) == GUARD_LIMIT && lines("in use") == before + 1,
	    "but not why a program stops");
	guard_close(g);
	opt_quiet = false;
}

static void test_verbose(void)
{
	struct err e = { 0 };
	char path[128];

	v1("/g");
	snprintf(path, sizeof path, "%s/proc/pressure/memory", root);
	unlink(path);
	opt_verbose = true;
	guard_close(guard_open(root, 0.85, 0.95, &e));
	ok(lines("the kernel tells of nothing (no pressure stall information here); usage is read "
	    "every 1 s besides") == 1,
	    "--verbose says what the kernel does not tell");
	opt_verbose = false;
}

static void test_room(void)
{
	v2("/g");
	put("/sys/fs/cgroup/g/memory.max", "104857600\n");
	use(30);
	ok(guard_room(root, 0.9, 10 * MIB) == 70 * MIB, "room: what the others leave of the share");
	use(300);
	ok(guard_room(root, 0.9, 10 * MIB) == 1, "none");
	put("/sys/fs/cgroup/g/memory.max", "max\n");
	ok(guard_room(root, 0.75, 0) == 4096 * MIB, "of the machine");
}

int main(void)
{
	struct err e = { 0 };
	struct guard *g;

	err_init("guard");
	log_begin();
	test_levels();
	test_quiet();
	test_verbose();
	test_room();
	tree_end();
	ok(guard_open("", 0.95, 0.85, &e) == NULL && e.status == EX_USAGE,
	    "a limit below the warning is refused");
	ok(guard_check(NULL) == GUARD_OK && guard_look(NULL) == GUARD_OK, "no guard, no danger");
	e = (struct err){ 0 };
	g = guard_open("", 0.9999, 1, &e);
	ok(g != NULL && guard_look(g) == GUARD_OK, "this machine");
	printf("# the kernel tells of %d kinds of events\n", guard_events(g));
	guard_close(g);
	unlink(log_name);
	return tap_done();
}
