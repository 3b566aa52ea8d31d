/*
 * json: JSONL in and out, over jansson.
 *
 *	struct jsonl *in = jsonl_open(argc - first, argv + first, skip_bad, &e);
 *	json_t *rec;
 *	while ((rec = jsonl_next(in, &e)) != NULL) { ...; json_decref(rec); }
 *	if (e.status) err_exit(&e);
 *
 * Reads plain or gzip input (zlib tells which), file after file; "-" or no file is stdin. A
 * record is available as soon as its line is complete, so the reader works at the end of a live
 * pipe. A byte order mark of UTF-8 is passed over. UTF-16, NUL bytes, invalid UTF-8, values that
 * are not objects, and lines above 64 MiB are errors that name file and line.
 */
#ifndef CHR_JSON_H
#define CHR_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "base/err.h"

struct jsonl;

#define JSONL_MAX_LINE ((size_t)64 << 20)

/* nfiles 0 reads stdin. NULL on error (a file that cannot be opened: EX_NOINPUT; opened when its
 * turn comes, but checked for existence at once). */
struct jsonl *jsonl_open(int nfiles, char *const files[], bool skip_bad, struct err *e)
    CHR_MUST_CHECK;

/* Next record (caller json_decref()s) or NULL at the end (e->status 0) or on error (e->status
 * set). Empty lines are passed over. With skip_bad, bad lines are counted and warned about once
 * instead. */
json_t *jsonl_next(struct jsonl *in, struct err *e) CHR_MUST_CHECK;

/* Next raw line without its newline (valid until the next call, NUL-terminated, *len bytes) or
 * NULL, as above. */
const char *jsonl_line(struct jsonl *in, size_t *len, struct err *e) CHR_MUST_CHECK;

/* That line again, also after jsonl_next(), for what of it is carried on (jsontext.h). */
const char *jsonl_text(const struct jsonl *in, size_t *len);

/* Of the first n bytes of a file, gzip undone: how many are a mark and no text, or -1: it is no
 * text that could be read as lines. */
int jsonl_begin(const char *head, size_t n, const char *name, struct err *e) CHR_MUST_CHECK;
/* Of a line: how many bytes are a mark before a record, as files that begin with one have it in
 * their middle when they are joined. jsonl_line() has passed over them. */
size_t jsonl_mark(const char *line, size_t len);

/* Is there another line, or the end, or an error, that can be had without waiting for who
 * writes? */
bool jsonl_ready(struct jsonl *in);

/* The record on a line that ends with a NUL; any thread may ask. NULL: the line is blank
 * (why->status 0) or bad. */
json_t *jsonl_parse(const char *line, size_t len, struct err *why) CHR_MUST_CHECK;

/* For inputs that may be something else than JSONL. Peek: the first byte not yet read, opening
 * the next file at the end of one; -1 at the end of all or on error. Bytes: up to n bytes of the
 * open file as they are (gzip undone); 0 at its end, after which peek goes on to the next; -1 on
 * error. */
int jsonl_peek(struct jsonl *in, struct err *e) CHR_MUST_CHECK;
bool jsonl_has_objects(const struct jsonl *in);	/* of what was peeked at: "[", blanks, "{" */
ssize_t jsonl_bytes(struct jsonl *in, void *buf, size_t n, struct err *e) CHR_MUST_CHECK;

/* For messages about the record last returned: e gets "file:line: " + text, EX_DATAERR; returns -1.
 * With skip_bad it counts the record instead and returns 0: drop it and go on. */
int jsonl_bad(struct jsonl *in, struct err *e, const char *fmt, ...)
    __attribute__((format(printf, 3, 4))) CHR_MUST_CHECK;

/* of an earlier line of the file */
int jsonl_bad_at(struct jsonl *in, int64_t lineno, struct err *e, const char *text);

/* How standard input is read where several processes share it (comm.h): `here` reads it in the
 * one that has it. NULL: it is this process's own. */
extern ssize_t (*jsonl_stdin)(ssize_t (*here)(void *self, void *buf, size_t size, struct err *e),
    void *self, void *buf,
    size_t size, struct err *e);

const char *jsonl_name(const struct jsonl *in);	/* file of the last record, "<stdin>" */
int64_t jsonl_lineno(const struct jsonl *in);
int64_t jsonl_offset(const struct jsonl *in);	/* at which byte of its file, gzip undone, the
						   last line began */
bool jsonl_plain(const struct jsonl *in);	/* that file is not gzip: the byte can be sought */
int64_t jsonl_skipped(const struct jsonl *in);
void jsonl_close(struct jsonl *in);		/* says how many bad records there were */

/* Writes one compact line in key order (reals as %.9g, UTF-8 kept) and flushes it. 0, or -1 with
 * EX_IOERR. */
int json_put(FILE *f, const json_t *o, struct err *e) CHR_MUST_CHECK;

/* Adds a number; a non-finite value is stored as null (JSON has no NaN). */
void json_set_num(json_t *o, const char *key, double v);
void json_set_int(json_t *o, const char *key, int64_t v);
void json_set_str(json_t *o, const char *key, const char *v);

/* The JSON string of bytes that need not be UTF-8: what is not becomes U+FFFD. */
json_t *json_text(const char *s, size_t len);

#endif
