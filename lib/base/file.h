/*
 * file: whole files in and out, never half written.
 */
#ifndef CHR_FILE_H
#define CHR_FILE_H

#include <stddef.h>

#include "base/err.h"

/* Writes a temporary name in the same directory, fsyncs, renames over path, fsyncs the directory.
 * 0, or -1 (EX_CANTCREAT when it cannot be created, EX_IOERR when the write failed; the old file
 * is then intact). */
int file_put(const char *path, const void *buf, size_t len, struct err *e);

/* Reads a whole file; *buf is malloc'ed, NUL-terminated, and the caller frees. EX_NOINPUT when
 * it cannot be opened. */
int file_get(const char *path, char **buf, size_t *len, struct err *e);

int file_mkdirs(const char *path, struct err *e);		/* like mkdir -p */
int file_sync_dir(const char *path, struct err *e);
/* a directory of plain files, one level deep or more */
int file_remove_tree(const char *path, struct err *e);
char *file_join(const char *dir, const char *name);		/* malloc'ed "dir/name" */
/* through file_put: whole or not at all */
int file_copy(const char *from, const char *to, struct err *e);

#endif
