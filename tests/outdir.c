/* Directories that appear whole: jobs that go on where they were cut. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/outdir.h"
#include "tap.h"

static char dir[] = "/tmp/chr-outdir-XXXXXX";

static char *in_dir(const char *name)
{
	return file_join(dir, name);
}

static bool there(const char *name)
{
	char *path = in_dir(name);
	bool yes = access(path, F_OK) == 0;

	free(path);
	return yes;
}

static void put(const char *name)
{
	char *path = in_dir(name);
	struct err e = { 0 };

	if (file_put(path, "x", 1, &e) < 0)
		printf("# %s\n", e.msg);
	free(path);
}

static int resume(struct outdir *d, const char *job, struct err *e)
{
	char *path = in_dir("out");
	int rc = outdir_resume(d, path, "/nowhere", false, job, e);

	free(path);
	return rc;
}

static void test_resume(void)
{
	struct outdir d, other;
	struct err e = { 0 };

	ok(resume(&d, "job one", &e) == 0 && !d.resumed, "a job begins");
	put("out.partial/a");
	ok(resume(&other, "job one", &e) < 0 && e.status == EX_TEMPFAIL,
	    "not twice at the same time: %s", e.msg);
	outdir_leave(&d);
	ok(there("out.partial/a") && !there("out"), "what it wrote stays");
	ok(resume(&d, "job one", &e) == 0 && d.resumed && there("out.partial/a"),
	    "and is there when it goes on");
	outdir_leave(&d);
	ok(resume(&d, "job one, otherwise", &e) == 0 && !d.resumed && !there("out.partial/a"),
	    "another job begins anew");
	outdir_leave(&d);
	ok(resume(&d, "job", &e) == 0 && !d.resumed, "so does one whose text is shorter");
	put("out.partial/config.json");
	ok(outdir_commit(&d, &e) == 0 && there("out/config.json") && !there("out.partial") &&
	    !there("out.partial.job"), "at the end there is the directory alone");
}

static void test_strange(void)
{
	struct outdir d;
	struct err e = { 0 };
	char *path = in_dir("out");

	ok(file_remove_tree(path, &e) == 0, "gone");
	free(path);
	path = in_dir("out.partial");
	mkdir(path, 0777);
	free(path);
	put("out.partial/mine");
	ok(resume(&d, "job", &e) < 0 && e.status == EX_CANTCREAT && there("out.partial/mine"),
	    "what no job left is kept: %s", e.msg);
	ok(resume(&d, "job", &e) < 0 || there("out.partial/mine"), "also the second time");
}

int main(void)
{
	struct err e = { 0 };

	if (!mkdtemp(dir))
		return ok(0, "setup"), tap_done();
	test_resume();
	test_strange();
	ok(file_remove_tree(dir, &e) == 0, "cleaned up");
	return tap_done();
}
