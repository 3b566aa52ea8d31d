#include "base/outdir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"

static bool same(const char *a, const char *b)
{
	struct stat x, y;

	return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static bool only_files(const char *path)
{
	DIR *dir = opendir(path);
	bool good = dir != NULL;
	struct dirent *de;
	struct stat st;

	while (good && (de = readdir(dir)))
		if (strcmp(de->d_name, ".") != 0 && strcmp(de->d_name, "..") != 0)
			good = fstatat(dirfd(dir), de->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
			    !S_ISDIR(st.st_mode);
	if (dir)
		closedir(dir);
	return good;
}

static int may_replace(const char *path, bool force, struct err *e)
{
	char *config = file_join(path, "config.json");
	bool model = access(config, F_OK) == 0;
	struct stat st;

	free(config);
	if (lstat(path, &st) < 0)
		return errno == ENOENT ? 0 : err_set(e, EX_CANTCREAT, "%s:", path);
	if (!force)
		return err_set(e, EX_CANTCREAT, "%s exists (--force replaces it)", path);
	if (!S_ISDIR(st.st_mode) || !model || !only_files(path))
		return err_set(e, EX_CANTCREAT, "%s is not a model directory of plain files: not "
		    "replaced", path);
	return 0;
}

static void release(struct outdir *d)
{
	if (d->job >= 0)
		close(d->job);
	free(d->path);
	free(d->tmp);
}

/* Names, and whether the path may be written. what: "PID.tmp" or "partial". */
static int prepare(struct outdir *d, const char *path, const char *source, bool force,
    const char *what, struct err *e)
{
	size_t n = strlen(path), size = n + 32;

	while (n > 1 && path[n - 1] == '/')
		n--;
	*d = (struct outdir){ .path = strndup(path, n), .tmp = malloc(size), .force = force,
	    .job = -1 };
	if (!d->path || !d->tmp)
		return err_set(e, EX_OSERR, "out of memory");
	snprintf(d->tmp, size, "%s.%s", d->path, what);
	if (same(d->path, source))
		return err_set(e, EX_USAGE, "%s is the model itself", path);
	return may_replace(d->path, force, e);
}

int outdir_begin(struct outdir *d, const char *path, const char *source, bool force, struct err *e)
{
	char what[32];

	snprintf(what, sizeof what, "%ld.tmp", (long)getpid());
	if (prepare(d, path, source, force, what, e) == 0 && file_mkdir_new(d->tmp, e) == 0)
		return 0;
	release(d);
	return -1;
}

/* ---- jobs that can be resumed ---- */

/* The file beside PATH.partial that says whose it is; locked while somebody is at it. */
static char *job_name(const struct outdir *d)
{
	size_t n = strlen(d->tmp) + 5;
	char *name = malloc(n);

	if (name)
		snprintf(name, n, "%s.job", d->tmp);
	return name;
}

static void drop_job(const struct outdir *d)
{
	char *name = d->job >= 0 ? job_name(d) : NULL;

	if (name)
		unlink(name);
	free(name);
}

static int lock_job(struct outdir *d, const char *name, struct err *e)
{
	d->job = open(name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
	if (d->job < 0)
		return err_set(e, EX_CANTCREAT, "%s:", name);
	if (flock(d->job, LOCK_EX | LOCK_NB) == 0)
		return 0;
	if (errno == EWOULDBLOCK)
		return err_set(e, EX_TEMPFAIL, "%s: another process is at it", d->tmp);
	return err_set(e, EX_CANTCREAT, "cannot lock %s:", name);
}

static bool same_job(const struct outdir *d, const char *job)
{
	size_t n = strlen(job);
	char *text = malloc(n + 1);
	bool same_text = text && pread(d->job, text, n + 1, 0) == (ssize_t)n &&
	    memcmp(text, job, n) == 0;

	free(text);
	return same_text;
}

/* What another job left is removed; of what is no job's, nothing. */
static int begin_job(struct outdir *d, const char *job, bool known, struct err *e)
{
	size_t n = strlen(job);
	struct stat st;

	if (lstat(d->tmp, &st) == 0) {
		if (!known || !only_files(d->tmp))
			return err_set(e, EX_CANTCREAT, "%s is there, and not of a job that can "
			    "go on: remove it", d->tmp);
		if (file_remove_tree(d->tmp, e) < 0)
			return -1;
	}
	if (ftruncate(d->job, 0) < 0 || pwrite(d->job, job, n, 0) != (ssize_t)n ||
	    fsync(d->job) < 0)
		return err_set(e, EX_CANTCREAT, "cannot write to %s.job:", d->tmp);
	return file_mkdir_new(d->tmp, e);
}

int outdir_resume(struct outdir *d, const char *path, const char *source, bool force,
    const char *job, struct err *e)
{
	int rc = prepare(d, path, source, force, "partial", e);
	char *name = rc == 0 ? job_name(d) : NULL;
	bool known = name && access(name, F_OK) == 0;

	if (rc == 0)
		rc = !name ? err_set(e, EX_OSERR, "out of memory") : file_mkdir_parents(name, e) < 0
		    ? -1 : lock_job(d, name, e);
	if (rc == 0) {
		d->resumed = access(d->tmp, F_OK) == 0 && same_job(d, job);
		rc = d->resumed ? 0 : begin_job(d, job, known, e);
		if (rc < 0 && !known)
			drop_job(d);
	}
	free(name);
	if (rc < 0)
		release(d);
	return rc;
}

void outdir_leave(struct outdir *d)
{
	release(d);
}

/* ---- the end ---- */

/* Where the file system can, both names are swapped at once, so that there is always a whole
 * model at path. */
static int put_in_place(const struct outdir *d, struct err *e)
{
	if (d->force && renameat2(AT_FDCWD, d->tmp, AT_FDCWD, d->path, RENAME_EXCHANGE) == 0)
		return file_remove_tree(d->tmp, e);
	if (d->force && errno != ENOENT && file_remove_tree(d->path, e) < 0)
		return -1;
	if (rename(d->tmp, d->path) < 0)
		return err_set(e, EX_CANTCREAT, "cannot rename %s to %s:", d->tmp, d->path);
	return 0;
}

int outdir_commit(struct outdir *d, struct err *e)
{
	int rc = file_sync_dir(d->tmp, e);

	if (rc == 0)
		rc = put_in_place(d, e);
	if (rc == 0)
		rc = file_sync_parent(d->path, e);
	if (rc < 0 && d->job < 0) {
		outdir_abort(d);
		return -1;
	}
	if (rc == 0)
		drop_job(d);
	release(d);
	return rc;
}

void outdir_abort(struct outdir *d)
{
	struct err e;

	file_remove_tree(d->tmp, &e);
	drop_job(d);
	release(d);
}
