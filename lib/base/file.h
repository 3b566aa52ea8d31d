/*
 * file: whole files in and out, never half written.
 *
 * Files of a model directory come from strangers. What is read from one is a regular file of
 * bounded size (file_get_regular()); a link to one is followed, because the cache of Hugging
 * Face is made of links. What is copied from one into another directory lies within it
 * (file_within()): a link that leads out of the directory could publish any file of the user's.
 *
 * What the user names may be a pipe or a device. Opening and reading one can wait for ever for
 * somebody at the other end, so a stop signal (sig.h) ends the wait: EX_TEMPFAIL.
 */
#ifndef CHR_FILE_H
#define CHR_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/err.h"

#define FILE_MOST ((size_t)256 << 20)	/* bytes of a file that file_get() reads */

/* Writes a temporary name in the same directory, fsyncs, renames over path, fsyncs the directory.
 * 0, or -1 (EX_CANTCREAT when it cannot be created, EX_IOERR when the write failed; the old file
 * is then intact). */
int file_put(const char *path, const void *buf, size_t len, struct err *e) CHR_MUST_CHECK;

/* Reads a whole file; *buf is malloc'ed, NUL-terminated, and the caller frees. EX_NOINPUT when it
 * cannot be opened, EX_DATAERR when it is above FILE_MOST. */
int file_get(const char *path, char **buf, size_t *len, struct err *e) CHR_MUST_CHECK;
/* The same of a file that is part of a directory: EX_NOINPUT unless it is a regular one. */
int file_get_regular(const char *path, char **buf, size_t *len, struct err *e) CHR_MUST_CHECK;

/* A descriptor for reading, or -1. Of a pipe there is something to read then, or its end. */
int file_open(const char *path, struct err *e) CHR_MUST_CHECK;
int file_open_regular(const char *path, struct err *e) CHR_MUST_CHECK;		/* never waits */
/* A descriptor for writing in place, of a new or emptied file, or -1; a pipe then has a reader. */
int file_create(const char *path, struct err *e) CHR_MUST_CHECK;
/* read(2) that a stop signal ends: bytes, 0 at the end, -1. */
ssize_t file_read(int fd, void *buf, size_t size, const char *name, struct err *e) CHR_MUST_CHECK;

/* Is the file in the directory, wherever links lead? In a snapshot of a Hugging Face cache, the
 * blobs beside it count as in it. */
bool file_within(const char *dir, const char *path);

/* The largest regular file of a directory whose name ends with one of the suffixes (NULL ends the
 * list) and that has at least so many bytes, malloc'ed; NULL: there is none. */
char *file_largest(const char *dir, const char *const suffixes[], int64_t least);
bool file_same(const char *a, const char *b);	/* one regular file, by whatever names */
/* -1, EX_USAGE: standard output goes to the regular file that is open, so that reading it would
 * read what is written. file_open() asks that itself. */
int file_is_stdout(int fd, const char *name, struct err *e) CHR_MUST_CHECK;

int file_mkdirs(const char *path, struct err *e) CHR_MUST_CHECK;		/* like mkdir -p */
/* All but the last; and the last one too, which must not be there yet. */
int file_mkdir_parents(const char *path, struct err *e) CHR_MUST_CHECK;
int file_mkdir_new(const char *path, struct err *e) CHR_MUST_CHECK;
int file_sync_dir(const char *path, struct err *e) CHR_MUST_CHECK;
int file_sync_parent(const char *path, struct err *e) CHR_MUST_CHECK;	/* where path lies */
/* All n bytes at a place of a regular file, whatever signals interrupt. name: of the file, for
 * messages. EX_IOERR, also where it ends before. */
int file_read_at(int fd, void *buf, size_t n, off_t at, const char *name, struct err *e)
    CHR_MUST_CHECK;
int file_write_at(int fd, const void *buf, size_t n, off_t at, const char *name, struct err *e)
    CHR_MUST_CHECK;
/* A directory of plain files, one level deep or more. Who cleans up after another error need not
 * look at the result. */
int file_remove_tree(const char *path, struct err *e);
char *file_join(const char *dir, const char *name);		/* malloc'ed "dir/name" */
char *file_last(const char *path);		/* malloc'ed: its last part, without slashes */
/* A regular file, whole or not at all, as file_put() writes it. */
int file_copy(const char *from, const char *to, struct err *e) CHR_MUST_CHECK;

#endif
