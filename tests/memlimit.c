/* memlimit.c on trees of files that look like /proc and control groups. */
#include "base/mem_limit.h"
#include "memtree.h"
#include "tap.h"

static struct mem_limit get(void)
{
	struct mem_limit l;

	mem_limit_read(&l, root);
	return l;
}

static void test_machine(void)
{
	struct mem_limit l;

	tree();
	l = get();
	ok(l.total == 16384 * MIB && l.available == 8192 * MIB && l.left == l.available &&
	    l.by == -1, "no groups: the machine");
	is_close(l.share, 0.5, 1e-12, "half of which is in use");
	ok(fabs(l.some10 - 1.5) < 1e-12 && fabs(l.full10 - 0.25) < 1e-12, "pressure");
	put("/proc/meminfo", "MemTotal: -5 kB\nMemAvailable: lots\n");
	put("/proc/pressure/memory", "some\n");
	l = get();
	ok(l.total == MEM_LIMIT_NONE && l.left == MEM_LIMIT_NONE && l.share == 0 && l.some10 < 0,
	    "nonsense is nothing known");
}

static void test_v2(void)
{
	struct mem_limit l;

	v2("/a/b/c");
	put("/sys/fs/cgroup/a/b/c/memory.max", "max\n");
	put("/sys/fs/cgroup/a/b/c/memory.current", "1048576\n");
	put("/sys/fs/cgroup/a/b/memory.max", "104857600\n");
	put("/sys/fs/cgroup/a/b/memory.high", "max\n");
	put("/sys/fs/cgroup/a/b/memory.current", "62914560\n");
	put("/sys/fs/cgroup/a/b/memory.stat", "anon 1\nfile 41943040\ninactive_file "
	    "20971520\nactive_file 20971520\n");
	put("/sys/fs/cgroup/a/memory.max", "1073741824\n");
	put("/sys/fs/cgroup/a/memory.current", "62914560\n");
	l = get();
	ok(l.ngroup == 2, "v2: two levels have a limit");
	ok(l.left == 60 * MIB && l.by == 0, "the nearer one binds; inactive file pages do not "
	    "count");
	ok(strstr(l.group[l.by].dir, "/sys/fs/cgroup/a/b") != NULL, "and is named");
	is_close(l.share, 0.5, 1e-12, "used of its limit");
	ok(strlen(l.own[1]) > 2 && strcmp(l.own[1] + strlen(l.own[1]) - 2, "/c") == 0 &&
	    l.own[0][0] == '\0', "the own group");
	put("/sys/fs/cgroup/a/memory.current", "1063256064\n");
	l = get();
	ok(l.left == 10 * MIB && l.by == 1, "a fuller group around it binds");
	put("/sys/fs/cgroup/a/b/memory.high", "52428800\n");
	l = get();
	ok(l.left == 10 * MIB && l.group[0].limit == 50 * MIB && l.share_by == 1,
	    "memory.high below memory.max is a limit");
	put("/sys/fs/cgroup/a/b/c/memory.max", "0\n");
	l = get();
	ok(l.left == 0 && l.by == 0 && l.share >= 1, "a limit of nothing leaves nothing");
}

static void test_v1(void)
{
	struct mem_limit l;

	v1("/job/step");
	put("/sys/fs/cgroup/memory/job/step/memory.limit_in_bytes", "9223372036854771712\n");
	put("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "209715200\n");
	put("/sys/fs/cgroup/memory/job/memory.usage_in_bytes", "157286400\n");
	put("/sys/fs/cgroup/memory/job/memory.stat",
	    "inactive_file 0\ntotal_inactive_file 52428800\n");
	put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
	l = get();
	ok(l.ngroup == 1 && l.left == 100 * MIB && !l.group[0].v2,
	    "v1: the huge number is no limit, a group around is");
	put("/proc/self/mountinfo", "31 1 0:27 /job /sys/fs/cgroup/memory ro - cgroup cgroup rw,"
	    "memory\n");
	put("/sys/fs/cgroup/memory/step/memory.limit_in_bytes", "104857600\n");
	put("/sys/fs/cgroup/memory/step/memory.usage_in_bytes", "99614720\n");
	l = get();
	ok(l.ngroup == 1 && l.left == 5 * MIB, "a container sees only its part of the hierarchy");
	put("/proc/self/cgroup", "5:memory:/elsewhere\n0::/\n");
	put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "41943040\n");
	put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "0\n");
	l = get();
	ok(l.ngroup == 1 && l.left == 40 * MIB, "what is not in that part counts as its top");
}

static void test_hostile(void)
{
	static const char *const limit[] = { "", "\n", "-1\n", "12abc\n", "0x100000\n",
	    "99999999999999999999999999\n", " 5\n", "max" };
	static const char *const cgroup[] = { "", ":::\n", "0::relative\n", "0::/../../etc\n",
	    "0\n", "5:memory\n" };
	char deep[600] = "";
	struct mem_limit l;

	v2("/g");
	for (size_t i = 0; i < sizeof limit / sizeof *limit; i++) {
		put("/sys/fs/cgroup/g/memory.max", limit[i]);
		l = get();
		ok(l.ngroup == 0 && l.by == -1, "a limit of \"%.*s\" is none",
		    (int)strcspn(limit[i], "\n"), limit[i]);
	}
	put("/sys/fs/cgroup/g/memory.max", "1000000\n");
	put("/sys/fs/cgroup/g/memory.current", "x\n");
	l = get();
	ok(l.ngroup == 1 && l.left == 1000000, "usage that is no number counts as none");
	put("/sys/fs/cgroup/g/memory.current", "5000000\n");
	put("/sys/fs/cgroup/g/memory.stat", "inactive_file 9000000\n");
	l = get();
	ok(l.group[0].used == 0 && l.left == 1000000, "more cache than usage");
	for (size_t i = 0; i < sizeof cgroup / sizeof *cgroup; i++) {
		put("/proc/self/cgroup", cgroup[i]);
		l = get();
		ok(l.ngroup == 0, "/proc/self/cgroup that says \"%.*s\"",
		    (int)strcspn(cgroup[i], "\n"), cgroup[i]);
	}
	put("/proc/self/cgroup", "0::/g\n");
	put("/proc/self/mountinfo", "30 1 - cgroup2\n - \n30 1 0:26 / /sys/fs/cgroup rw - "
	    "cgroup2\n");
	l = get();
	ok(l.ngroup == 0 && l.own[1][0] == '\0', "mounts that are cut off");
	for (int i = 0; i < 100; i++)
		strcat(deep, "/g");
	v2(deep);
	for (size_t n = strlen(deep); n > 0; n -= 2) {
		char path[800];

		snprintf(path, sizeof path, "/sys/fs/cgroup%.*s/memory.max", (int)n, deep);
		put(path, "1000\n");
	}
	l = get();
	ok(l.ngroup == MEM_LIMIT_LEVELS, "only so many levels are kept");
	memset(deep, 'x', sizeof deep - 1);
	deep[0] = '/';
	v2(deep);
	l = get();
	ok(l.ngroup == 0, "a path that is too long");
}

int main(void)
{
	struct mem_limit l;

	test_machine();
	test_v2();
	test_v1();
	test_hostile();
	mem_limit_read(&l, "");
	ok(l.left > 0 && l.total > 0, "this machine");
	tree_end();
	return tap_done();
}
