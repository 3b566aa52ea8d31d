#include "base/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/sig.h"

static char *file_strdup(const char *s)
{
	size_t n = strlen(s) + 1;
	char *p = malloc(n);

	if (!p)
		err_die(EX_OSERR, "out of memory");
	return memcpy(p, s, n);
}

static int stopped(const char *name, struct err *e)
{
	return err_set(e, EX_TEMPFAIL, "%s: stopped by signal %d", name, (int)sig_stop);
}

static bool same(const struct stat *a, const struct stat *b)
{
	return S_ISREG(a->st_mode) && a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

bool file_same(const char *a, const char *b)
{
	struct stat x, y;

	return stat(a, &x) == 0 && stat(b, &y) == 0 && same(&x, &y);
}

int file_is_stdout(int fd, const char *name, struct err *e)
{
	struct stat x, y;

	if (fstat(fd, &x) == 0 && fstat(STDOUT_FILENO, &y) == 0 && same(&x, &y))
		return err_set(e, EX_USAGE, "%s: is also where the output goes", name);
	return 0;
}

/* ---- reading ---- */

ssize_t file_read(int fd, void *buf, size_t size, const char *name, struct err *e)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	int ready;
	ssize_t n;

	for (;;) {
		if (sig_stop)
			return stopped(name, e);
		/* poll() is interrupted even by signals that restart read(); half a second later it
		 * notices one that came just before it. */
		ready = poll(&p, 1, 500);
		if (ready == 0 || (ready < 0 && errno == EINTR))
			continue;
		n = read(fd, buf, size);
		if (n >= 0)
			return n;
		if (errno != EINTR && errno != EAGAIN)
			return err_set(e, errno == EISDIR ? EX_NOINPUT : EX_IOERR, "%s:", name);
	}
}

int file_read_at(int fd, void *buf, size_t n, off_t at, const char *name, struct err *e)
{
	char *p = buf;

	while (n > 0) {
		ssize_t got = pread(fd, p, n, at);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return err_set(e, EX_IOERR, "%s:", name);
		if (got == 0)
			return err_set(e, EX_IOERR, "%s: the file ended while it was read", name);
		p += got;
		at += got;
		n -= (size_t)got;
	}
	return 0;
}

int file_write_at(int fd, const void *buf, size_t n, off_t at, const char *name, struct err *e)
{
	const char *p = buf;

	while (n > 0) {
		ssize_t put = pwrite(fd, p, n, at);

		if (put < 0 && errno == EINTR)
			continue;
		if (put < 0)
			return err_set(e, EX_IOERR, "%s:", name);
		p += put;
		at += put;
		n -= (size_t)put;
	}
	return 0;
}

/* Opening a pipe with O_NONBLOCK does not wait for a writer, and poll() then does: without a writer
 * that ever was there is nothing to read, and no end either. */
static int wait_writer(int fd, const char *path, struct err *e)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	while (!sig_stop && poll(&p, 1, 500) <= 0)
		continue;
	return sig_stop ? stopped(path, e) : 0;
}

int file_open(const char *path, struct err *e)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY), flags;
	struct stat st;

	if (fd < 0)
		return err_set(e, EX_NOINPUT, "%s:", path);
	flags = fcntl(fd, F_GETFL);
	if (fstat(fd, &st) < 0 || fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0)
		err_set(e, EX_IOERR, "%s:", path);
	else if (S_ISFIFO(st.st_mode) ? wait_writer(fd, path, e) == 0 :
	    file_is_stdout(fd, path, e) == 0)
		return fd;
	close(fd);
	return -1;
}

static const char *kind(mode_t mode)
{
	return S_ISDIR(mode) ? "a directory" : S_ISFIFO(mode) ? "a named pipe" :
	    S_ISSOCK(mode) ? "a socket" : "a device";
}

int file_open_regular(const char *path, struct err *e)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;

	if (fd < 0)
		return err_set(e, EX_NOINPUT, "%s:", path);
	if (fstat(fd, &st) < 0)
		err_set(e, EX_IOERR, "%s:", path);
	else if (!S_ISREG(st.st_mode))
		err_set(e, EX_NOINPUT, "%s: is %s, not a regular file", path, kind(st.st_mode));
	else
		return fd;
	close(fd);
	return -1;
}

static int too_large(const char *path, struct err *e)
{
	return err_set(e, EX_DATAERR, "%s: is larger than %zu MiB", path, FILE_MOST >> 20);
}

/* Reads to the end, whatever stat() says about the size: the file may be a pipe. */
static int read_all(int fd, const char *path, char **buf, size_t *len, struct err *e)
{
	size_t cap = 1 << 16, used = 0;
	struct stat st;
	ssize_t n = 1;
	char *p;

	if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > 0) {
		if (st.st_size > (off_t)FILE_MOST)
			return too_large(path, e);
		cap = (size_t)st.st_size + 2;	/* one for the NUL, one so that the end is seen */
	}
	*buf = malloc(cap);
	while (*buf && n > 0) {
		if (used + 1 == cap) {
			p = realloc(*buf, cap *= 2);
			if (!p)
				break;
			*buf = p;
		}
		n = file_read(fd, *buf + used, cap - used - 1, path, e);
		used += n > 0 ? (size_t)n : 0;
		if (used > FILE_MOST)
			n = too_large(path, e);
	}
	if (*buf && n == 0) {
		(*buf)[used] = '\0';
		*len = used;
		return 0;
	}
	free(*buf);
	*buf = NULL;
	return n < 0 ? -1 : err_set(e, EX_OSERR, "%s: out of memory", path);
}

static int get(int fd, const char *path, char **buf, size_t *len, struct err *e)
{
	int rc;

	*buf = NULL;
	*len = 0;
	if (fd < 0)
		return -1;
	rc = read_all(fd, path, buf, len, e);
	close(fd);
	return rc;
}

int file_get(const char *path, char **buf, size_t *len, struct err *e)
{
	return get(file_open(path, e), path, buf, len, e);
}

int file_get_regular(const char *path, char **buf, size_t *len, struct err *e)
{
	return get(file_open_regular(path, e), path, buf, len, e);
}

static bool below(const char *dir, const char *path)
{
	size_t n = strlen(dir);

	return strncmp(path, dir, n) == 0 && path[n] == '/';
}

/* dir is REPO/snapshots/REVISION, or below it, and path in REPO/blobs. */
static bool in_blobs(const char *dir, const char *path)
{
	const char *last = NULL;
	size_t n;

	for (const char *at = dir; (at = strstr(at, "/snapshots/")) != NULL; at++)
		last = at;
	if (!last)
		return false;
	n = (size_t)(last - dir);
	return strncmp(path, dir, n) == 0 && strncmp(path + n, "/blobs/", 7) == 0;
}

bool file_within(const char *dir, const char *path)
{
	char *d = realpath(dir, NULL), *p = realpath(path, NULL);
	bool in = d && p && (below(d, p) || in_blobs(d, p));

	free(d);
	free(p);
	return in;
}

/* ---- writing ---- */

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

int file_create(const char *path, struct err *e)
{
	const struct timespec pause = { .tv_nsec = 50000000 };
	int flags = O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY, fd;
	struct stat st;

	/* A pipe that nobody reads cannot be opened without waiting, and that wait no signal
	 * ends. */
	while ((fd = open(path, flags | O_NONBLOCK, 0666)) < 0 && errno == ENXIO &&
	    stat(path, &st) == 0 && S_ISFIFO(st.st_mode)) {
		if (sig_stop)
			return stopped(path, e);
		nanosleep(&pause, NULL);
	}
	if (fd < 0)
		return err_set(e, EX_CANTCREAT, "%s:", path);
	if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK) == 0)
		return fd;
	err_set(e, EX_CANTCREAT, "%s:", path);
	close(fd);
	return -1;
}

/* A device or a pipe is written in place: renaming over /dev/stdout would be a disaster. */
static int put_in_place(const char *path, const void *buf, size_t len, struct err *e)
{
	int fd = file_create(path, e), bad;

	if (fd < 0)
		return -1;
	bad = write_all(fd, buf, len);
	if (bad)
		err_set(e, EX_IOERR, "%s:", path);
	if (close(fd) && !bad)
		return err_set(e, EX_IOERR, "%s:", path);
	return bad;
}

/* A file being written beside the one that it will be. */
struct file_tmp {
	char *path, *tmp;
	int fd;
};

/* The name can be guessed and the directory may be shared: a file or a link that somebody put there
 * is never opened (O_EXCL), another name is taken. */
static int tmp_open(struct file_tmp *t, const char *path, struct err *e)
{
	struct stat st;
	char *real;
	size_t size;

	/* Where the kernel does not follow a link, because somebody else put it into a directory of
	 * all, realpath() would. */
	if (stat(path, &st) < 0 && errno != ENOENT)
		return err_set(e, EX_CANTCREAT, "%s:", path);
	real = realpath(path, NULL);		/* a symbolic link stays one */
	t->path = real ? real : file_strdup(path);
	size = strlen(t->path) + 48;
	t->tmp = malloc(size);
	if (!t->tmp)
		err_die(EX_OSERR, "out of memory");
	t->fd = -1;
	for (int i = 0; i < 100 && t->fd < 0; i++) {
		snprintf(t->tmp, size, "%s.%ld.%d.tmp", t->path, (long)getpid(), i);
		t->fd = open(t->tmp, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
		if (t->fd < 0 && errno != EEXIST)
			break;
	}
	if (t->fd >= 0)
		return 0;
	err_set(e, EX_CANTCREAT, "%s:", t->path);
	free(t->path);
	free(t->tmp);
	return -1;
}

/* rc 0: the file gets its name, complete and synced; else it vanishes. */
static int tmp_close(struct file_tmp *t, int rc, struct err *e)
{
	if (!rc && fsync(t->fd))
		rc = err_set(e, EX_IOERR, "%s:", t->path);
	if (close(t->fd) && !rc)
		rc = err_set(e, EX_IOERR, "%s:", t->path);
	if (!rc && rename(t->tmp, t->path))
		rc = err_set(e, EX_CANTCREAT, "%s:", t->path);
	if (rc)
		unlink(t->tmp);
	else
		rc = file_sync_parent(t->path, e);
	free(t->path);
	free(t->tmp);
	return rc;
}

int file_put(const char *path, const void *buf, size_t len, struct err *e)
{
	struct file_tmp t;
	struct stat st;
	int rc;

	if (stat(path, &st) == 0 && !S_ISREG(st.st_mode))
		return put_in_place(path, buf, len, e);
	if (tmp_open(&t, path, e) < 0)
		return -1;
	rc = write_all(t.fd, buf, len) ? err_set(e, EX_IOERR, "%s:", t.path) : 0;
	return tmp_close(&t, rc, e);
}

static int copy_bytes(int from, const char *name, const struct file_tmp *to, struct err *e)
{
	size_t size = 1 << 20;
	char *buf = malloc(size);
	ssize_t n;

	if (!buf)
		err_die(EX_OSERR, "out of memory");
	while ((n = file_read(from, buf, size, name, e)) > 0)
		if (write_all(to->fd, buf, (size_t)n)) {
			n = err_set(e, EX_IOERR, "%s:", to->path);
			break;
		}
	free(buf);
	return (int)n;
}

int file_copy(const char *from, const char *to, struct err *e)
{
	int fd = file_open_regular(from, e), rc;
	struct file_tmp t;

	if (fd < 0)
		return -1;
	rc = tmp_open(&t, to, e);
	if (!rc)
		rc = tmp_close(&t, copy_bytes(fd, from, &t, e), e);
	close(fd);
	return rc;
}

/* ---- directories ---- */

/* All that path goes through, and path itself where `last` asks for it. */
static int make_dirs(const char *path, bool last, struct err *e)
{
	char *p = file_strdup(path), *s = p;
	struct stat st;
	int rc = 0;

	while (!rc && *s) {
		s += strspn(s, "/");
		s += strcspn(s, "/");
		char c = *s;

		if (!last && s[strspn(s, "/")] == '\0')
			break;
		*s = '\0';
		if (mkdir(p, 0777) &&
		    !(errno == EEXIST && stat(p, &st) == 0 && S_ISDIR(st.st_mode)))
			rc = err_set(e, EX_CANTCREAT, "%s:", p);
		*s = c;
	}
	free(p);
	return rc;
}

int file_mkdirs(const char *path, struct err *e)
{
	return make_dirs(path, true, e);
}

int file_mkdir_parents(const char *path, struct err *e)
{
	return make_dirs(path, false, e);
}

int file_mkdir_new(const char *path, struct err *e)
{
	if (make_dirs(path, false, e))
		return -1;
	return mkdir(path, 0777) ? err_set(e, EX_CANTCREAT, "%s:", path) : 0;
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

int file_sync_parent(const char *path, struct err *e)
{
	char *dir = dir_of(path);
	int rc = file_sync_dir(dir, e);

	free(dir);
	return rc;
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

char *file_last(const char *path)
{
	size_t end = strlen(path), first;
	char *d;

	while (end > 1 && path[end - 1] == '/')
		end--;
	for (first = end; first > 0 && path[first - 1] != '/'; first--)
		continue;
	if ((d = strndup(path + first, end - first)) == NULL)
		err_die(EX_OSERR, "out of memory");
	return d;
}

static bool ends_with(const char *name, const char *const suffixes[])
{
	size_t n = strlen(name);

	for (; *suffixes; suffixes++) {
		size_t m = strlen(*suffixes);

		if (n > m && strcmp(name + n - m, *suffixes) == 0)
			return true;
	}
	return false;
}

char *file_largest(const char *dir, const char *const suffixes[], int64_t least)
{
	DIR *d = opendir(dir);
	struct dirent *f;
	char *best = NULL;

	while (d && (f = readdir(d)) != NULL) {
		char *path = ends_with(f->d_name, suffixes) ? file_join(dir, f->d_name) : NULL;
		struct stat st;

		if (path && stat(path, &st) == 0 && S_ISREG(st.st_mode) && st.st_size >= least) {
			least = st.st_size + 1;
			free(best);
			best = path;
		} else
			free(path);
	}
	if (d)
		closedir(d);
	return best;
}
