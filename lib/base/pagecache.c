#include "base/pagecache.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* The next file with that suffix, opened; -1 when there is no more. */
static int next_file(DIR *d, const char *suffix, const char **name)
{
	size_t m = strlen(suffix);
	struct dirent *f;

	while (d && (f = readdir(d)) != NULL) {
		size_t n = strlen(f->d_name);
		int fd;

		if (n < m || strcmp(f->d_name + n - m, suffix) != 0)
			continue;
		if ((fd = openat(dirfd(d), f->d_name, O_RDONLY | O_CLOEXEC)) >= 0) {
			*name = f->d_name;
			return fd;
		}
	}
	return -1;
}

void pagecache_drop(const char *dir, const char *suffix)
{
	DIR *d = opendir(dir);
	const char *name;
	int fd;

	while ((fd = next_file(d, suffix, &name)) >= 0) {
		if (fdatasync(fd) < 0 || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0)
			err_warn("%s/%s: cannot drop from the page cache", dir, name);
		close(fd);
	}
	if (d)
		closedir(d);
}

int pagecache_fill(const char *dir, const char *suffix, struct err *e)
{
	size_t size = 1 << 20;
	char *buf = malloc(size);
	DIR *d = opendir(dir);
	const char *name;
	ssize_t n = 0;
	int fd;

	if (d == NULL || buf == NULL)
		n = err_set(e, d ? EX_OSERR : EX_NOINPUT, d ? "out of memory" : "cannot open %s:",
		    dir);
	while (n >= 0 && (fd = next_file(d, suffix, &name)) >= 0) {
		while ((n = read(fd, buf, size)) > 0)
			;
		if (n < 0)
			err_set(e, EX_IOERR, "%s/%s:", dir, name);
		close(fd);
	}
	if (d)
		closedir(d);
	free(buf);
	return n < 0 ? -1 : 0;
}

static int64_t resident(int fd, int64_t size)
{
	int64_t page = sysconf(_SC_PAGESIZE), pages = (size + page - 1) / page, n = 0;
	unsigned char *there = malloc((size_t)pages);
	void *p = mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, fd, 0);

	if (there && p != MAP_FAILED && mincore(p, (size_t)size, there) == 0)
		for (int64_t i = 0; i < pages; i++)
			n += there[i] & 1;
	if (p != MAP_FAILED)
		munmap(p, (size_t)size);
	free(there);
	return n * page < size ? n * page : size;
}

double pagecache_share(const char *dir, const char *suffix)
{
	DIR *d = opendir(dir);
	int64_t all = 0, there = 0;
	const char *name;
	struct stat st;
	int fd;

	while ((fd = next_file(d, suffix, &name)) >= 0) {
		if (fstat(fd, &st) == 0 && st.st_size > 0) {
			all += st.st_size;
			there += resident(fd, st.st_size);
		}
		close(fd);
	}
	if (d)
		closedir(d);
	return all > 0 ? (double)there / (double)all : 0;
}
