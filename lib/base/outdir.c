#include "base/outdir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

int outdir_begin(struct outdir *d, const char *path, const char *source, bool force, struct err *e)
{
	size_t n = strlen(path), size = n + 32;

	while (n > 1 && path[n - 1] == '/')
		n--;
	*d = (struct outdir){ .path = strndup(path, n), .tmp = malloc(size), .force = force };
	if (!d->path || !d->tmp) {
		err_set(e, EX_OSERR, "out of memory");
		goto fail;
	}
	snprintf(d->tmp, size, "%s.%ld.tmp", d->path, (long)getpid());
	if (same(d->path, source)) {
		err_set(e, EX_USAGE, "%s is the model itself", path);
		goto fail;
	}
	if (may_replace(d->path, force, e) == 0 && file_mkdir_new(d->tmp, e) == 0)
		return 0;
fail:
	free(d->path);
	free(d->tmp);
	return -1;
}

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
	char *parent = strdup(d->path), *slash = parent ? strrchr(parent, '/') : NULL;
	int rc = file_sync_dir(d->tmp, e);

	if (slash)
		slash[slash == parent] = '\0';
	if (rc == 0)
		rc = put_in_place(d, e);
	if (rc == 0)
		rc = file_sync_dir(slash ? parent : ".", e);
	free(parent);
	if (rc < 0) {
		outdir_abort(d);
		return -1;
	}
	free(d->path);
	free(d->tmp);
	return 0;
}

void outdir_abort(struct outdir *d)
{
	struct err e;

	file_remove_tree(d->tmp, &e);
	free(d->path);
	free(d->tmp);
}
