#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"

static char *file_strdup(const char *s)
{
	size_t n = strlen(s) + 1;
	char *p = malloc(n);

	if (!p)
		err_die(EX_OSERR, "out of memory");
	return memcpy(p, s, n);
}

static int write_all(int fd, const char *buf, size_t len)
{
	while (len) {
		ssize_t n = write(fd, buf, len < 1u << 30 ? len : 1u << 30);

		if (n < 0 && errno != EINTR)
			return -1;
		if (n > 0) {
			buf += n;
			len -= (size_t)n;
		}
	}
	return 0;
}

static char *dir_of(const char *path)
{
	char *d = file_strdup(path), *slash = strrchr(d, '/');

	if (!slash)
		strcpy(d, ".");		/* path is not empty here: it has been opened */
	else
		slash[slash == d] = '\0';
	return d;
}

/* A device or a pipe is written in place: renaming over /dev/stdout would be a disaster. */
static int put_in_place(const char *path, const void *buf, size_t len, struct err *e)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC), bad;

	if (fd < 0)
		return err_set(e, EX_CANTCREAT, "%s:", path);
	bad = write_all(fd, buf, len);
	if (bad)
		err_set(e, EX_IOERR, "%s:", path);
	if (close(fd) && !bad)
		return err_set(e, EX_IOERR, "%s:", path);
	return bad;
}

static int put_and_rename(const char *path, const char *tmp, const void *buf, size_t len,
    struct err *e)
{
	int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
	char *dir;
	int rc;

	if (fd < 0)
		return err_set(e, EX_CANTCREAT, "%s:", tmp);
	rc = write_all(fd, buf, len) || fsync(fd) ? err_set(e, EX_IOERR, "%s:", tmp) : 0;
	if (close(fd) && !rc)
		rc = err_set(e, EX_IOERR, "%s:", tmp);
	if (!rc && rename(tmp, path))
		rc = err_set(e, EX_CANTCREAT, "%s:", path);
	if (rc) {
		unlink(tmp);
		return rc;
	}
	dir = dir_of(path);
	rc = file_sync_dir(dir, e);
	free(dir);
	return rc;
}

int file_put(const char *path, const void *buf, size_t len, struct err *e)
{
	char *real = realpath(path, NULL), *tmp;	/* a symbolic link stays one */
	struct stat st;
	size_t size;
	int rc;

	if (real)
		path = real;
	if (stat(path, &st) == 0 && !S_ISREG(st.st_mode)) {
		rc = put_in_place(path, buf, len, e);
	} else {
		size = strlen(path) + 32;
		tmp = mem_alloc(size);
		snprintf(tmp, size, "%s.%ld.tmp", path, (long)getpid());
		rc = put_and_rename(path, tmp, buf, len, e);
		mem_free(tmp);
	}
	free(real);
	return rc;
}

/* Reads to the end, whatever stat() says about the size: the file may be a pipe. */
static int read_all(int fd, char **buf, size_t *len)
{
	size_t cap = 1 << 16, used = 0;
	struct stat st;
	char *p;
	ssize_t n = 1;

	if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > 0)
		cap = (size_t)st.st_size + 2;	/* one for the NUL, one so that the end is seen */
	*buf = malloc(cap);
	while (*buf && n) {
		if (used + 1 == cap) {
			p = realloc(*buf, cap *= 2);
			if (!p)
				break;
			*buf = p;
		}
		n = read(fd, *buf + used, cap - used - 1);
		if (n < 0 && errno != EINTR)
			break;
		used += n > 0 ? (size_t)n : 0;
	}
	if (!*buf || n) {
		free(*buf);
		*buf = NULL;
		return -1;
	}
	(*buf)[used] = '\0';
	*len = used;
	return 0;
}

int file_get(const char *path, char **buf, size_t *len, struct err *e)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), rc;

	*buf = NULL;
	*len = 0;
	if (fd < 0)
		return err_set(e, EX_NOINPUT, "%s:", path);
	rc = read_all(fd, buf, len);
	if (rc)
		err_set(e, errno == EISDIR ? EX_NOINPUT : errno == ENOMEM ? EX_OSERR : EX_IOERR,
		    "%s:", path);
	close(fd);
	return rc;
}

int file_mkdirs(const char *path, struct err *e)
{
	char *p = file_strdup(path), *s = p;
	struct stat st;
	int rc = 0;

	while (!rc && *s) {
		s += strspn(s, "/");
		s += strcspn(s, "/");
		char c = *s;

		*s = '\0';
		if (mkdir(p, 0777) && !(errno == EEXIST && stat(p, &st) == 0 &&
		    S_ISDIR(st.st_mode)))
			rc = err_set(e, EX_CANTCREAT, "%s:", p);
		*s = c;
	}
	free(p);
	return rc;
}

int file_sync_dir(const char *path, struct err *e)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), bad;

	if (fd < 0)
		return err_set(e, EX_IOERR, "%s:", path);
	bad = fsync(fd) && errno != EINVAL;	/* some file systems cannot sync a directory */
	if (bad)
		err_set(e, EX_IOERR, "%s:", path);
	close(fd);
	return bad ? -1 : 0;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st; (void)type; (void)ftw;
	return remove(path);
}

int file_remove_tree(const char *path, struct err *e)
{
	if (nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS) == 0 || errno == ENOENT)
		return 0;
	return err_set(e, EX_CANTCREAT, "cannot remove %s:", path);
}

char *file_join(const char *dir, const char *name)
{
	size_t n = strlen(dir), size = n + strlen(name) + 2;
	char *p = malloc(size);

	if (!p)
		err_die(EX_OSERR, "out of memory");
	snprintf(p, size, "%s%s%s", dir, n && dir[n - 1] == '/' ? "" : "/", name);
	return p;
}

int file_copy(const char *from, const char *to, struct err *e)
{
	char *buf;
	size_t len;
	int rc = file_get(from, &buf, &len, e);

	if (!rc)
		rc = file_put(to, buf, len, e);
	free(buf);
	return rc;
}
