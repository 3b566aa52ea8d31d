#include "format/gguf_model.h"

#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/sniff.h"

/* Of "NAME-00002-of-00003.gguf": 2 and 3, and the length of NAME; false: not such a name. */
static bool split_name(const char *path, size_t *stem, int *no, int *count)
{
	size_t n = strlen(path);
	int end = 0;

	if (n < 20)
		return false;
	*stem = n - 20;
	return sscanf(path + *stem, "-%5d-of-%5d.gguf%n", no, count, &end) == 2 && end == 20 &&
	    *no >= 1 && *count >= *no;
}

static bool is_gguf(const char *path)
{
	char head[SNIFF_BYTES];

	return sniff_head(path, head) >= 4 &&
	    (memcmp(head, "GGUF", 4) == 0 || memcmp(head, "FUGG", 4) == 0);
}

static bool is_dir(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

static bool holds(const char *dir, const char *name)
{
	char *path = file_join(dir, name);
	bool there = path && access(path, F_OK) == 0;

	free(path);
	return there;
}

/* Does a model begin with a file of this name? */
static bool begins_model(const char *name)
{
	size_t n = strlen(name), stem;
	int no, count;

	return n > 5 && *name != '.' && strcmp(name + n - 5, ".gguf") == 0 &&
	    strncmp(name, "mmproj", 6) != 0 && (!split_name(name, &stem, &no, &count) || no == 1);
}

static int in_dir(const char *path, char **file, struct err *e)
{
	DIR *d = opendir(path);
	struct dirent *entry;
	int found = 0;

	if (!d)
		return 0;
	while ((entry = readdir(d)) != NULL)
		if (begins_model(entry->d_name) && found++ == 0)
			*file = file_join(path, entry->d_name);
	closedir(d);
	if (found <= 1)
		return found;
	free(*file);
	*file = NULL;
	return err_set(e, EX_USAGE, "%s: holds %d models of GGUF: name the file of one", path,
	    found);
}

int gguf_path(const char *path, char **file, struct err *e)
{
	size_t stem;
	int no, count;

	*file = NULL;
	if (is_dir(path))
		return holds(path, "config.json") ? 0 : in_dir(path, file, e);
	if (!is_gguf(path))
		return 0;
	if (split_name(path, &stem, &no, &count) && no != 1)
		return err_set(e, EX_NOINPUT, "%s: is number %d of %d files of a model: name the "
		    "first", path, no, count);
	*file = strdup(path);
	return *file ? 1 : err_set(e, EX_OSERR, "out of memory");
}
