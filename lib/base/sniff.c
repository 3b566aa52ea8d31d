#include "base/sniff.h"

#include <stdint.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "base/file.h"

#define LFS "a Git LFS pointer, not the file itself: fetch that with `git lfs pull`"

static const struct magic {
	const char *bytes;
	size_t n;
	const char *what;
} magics[] = {
	{ "version https://git-lfs", 23, LFS },
	{ "version https://hawser", 22, LFS },		/* the first name of Git LFS */
	{ "\x1f\x8b", 2, "gzip data, packed once more than it should be" },
	{ "GGUF", 4, "a GGUF file" },
	{ "FUGG", 4, "a GGUF file of the other byte order" },
	{ "PK\3\4", 4, "a ZIP archive, as PyTorch writes checkpoints" },
	{ "\x80\2", 2, "a Python pickle, as PyTorch once wrote checkpoints" },
	{ "\x89HDF\r\n", 6, "an HDF5 file" },
	{ "\x93NUMPY", 6, "a NumPy array" },
	{ "\x28\xb5\x2f\xfd", 4, "zstd data" },
	{ "\xfd" "7zXZ", 5, "xz data" },
	{ "BZh", 3, "bzip2 data" },
	{ "\xff\xfe", 2, "text in UTF-16, not UTF-8" },
	{ "\xfe\xff", 2, "text in UTF-16, not UTF-8" },
};

/* "<!DOCTYPE" and "<html" in any case, white space before; an error of a download in XML too. */
static bool is_page(const char *p, size_t n)
{
	static const char *const tag[] = { "<!doctype", "<html", "<head", "<?xml" };
	size_t at = 0;

	while (at < n && p[at] != '\0' && strchr(" \t\r\n", p[at]))
		at++;
	for (size_t i = 0; i < sizeof tag / sizeof *tag; i++)
		if (n - at >= strlen(tag[i]) && strncasecmp(p + at, tag[i], strlen(tag[i])) == 0)
			return true;
	return false;
}

/* A safetensors file begins with the length of its header, little-endian and never so large that
 * the last of eight bytes is used: two bytes alone may be such a length. */
bool sniff_safetensors(const void *head, size_t n)
{
	const unsigned char *p = head;

	return n >= 9 && p[4] == 0 && p[5] == 0 && p[6] == 0 && p[7] == 0 && p[8] == '{';
}

const char *sniff(const void *head, size_t n)
{
	const unsigned char *p = head;

	if (n == 0)
		return "empty";
	if (sniff_safetensors(p, n))
		return NULL;
	for (size_t i = 0; i < sizeof magics / sizeof *magics; i++)
		if (n >= magics[i].n && memcmp(head, magics[i].bytes, magics[i].n) == 0)
			return magics[i].what;
	/* JSON in UTF-16 without a mark: each second byte of ASCII is zero. */
	if (n >= 4 && ((p[0] == 0 && p[1] && p[2] == 0 && p[3]) ||
	    (p[0] && p[1] == 0 && p[2] && p[3] == 0)))
		return "text in UTF-16, not UTF-8";
	return is_page(head, n) ? "a web page, as a download that failed leaves" : NULL;
}

ssize_t sniff_head(const char *path, char head[SNIFF_BYTES])
{
	struct err e = {0};
	int fd = file_open_regular(path, &e);
	ssize_t n;

	if (fd < 0)
		return -1;
	n = pread(fd, head, SNIFF_BYTES, 0);
	close(fd);
	return n;
}

const char *sniff_file(const char *path)
{
	char head[SNIFF_BYTES];
	ssize_t n = sniff_head(path, head);

	return n < 0 ? NULL : sniff(head, (size_t)n);
}
