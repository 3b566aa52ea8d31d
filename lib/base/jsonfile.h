/*
 * jsonfile: a JSON document that is a whole file: config.json, tokenizer.json, a manifest.
 *
 *	json_t *o = jsonfile_load(path, &e);		(a file of a model directory)
 *
 * Keys that come twice are refused: which one holds would be a matter of luck. A byte order mark of
 * UTF-8 is passed over; UTF-16, a web page or a Git LFS pointer are named.
 */
#ifndef CHR_JSONFILE_H
#define CHR_JSONFILE_H

#include <jansson.h>
#include <stdint.h>

#include "base/err.h"

/* The document in text, of the file `name`; NULL: EX_DATAERR. */
json_t *jsonfile_parse(const char *text, size_t len, const char *name, struct err *e)
    CHR_MUST_CHECK;

/* Of a regular file; NULL: what file_get_regular() says, or EX_DATAERR. */
json_t *jsonfile_load(const char *path, struct err *e) CHR_MUST_CHECK;
/* Of what the user names: also a pipe, "-" for standard input, gzip. */
json_t *jsonfile_input(const char *path, struct err *e) CHR_MUST_CHECK;

/* Writes it, with a newline behind, as a file of a directory, whole or not at all; flags are
 * those of jansson. Takes over the reference to o. */
int jsonfile_put(const char *dir, const char *name, json_t *o, size_t flags, struct err *e)
    CHR_MUST_CHECK;

/* Members of an object of the file `name`. A number must be one: 8 is neither "8" nor true, and
 * what is missing is not 0. -1: EX_DATAERR with the key and what it is instead. */
int jsonfile_int(const json_t *o, const char *key, int64_t lo, int64_t hi, int64_t *v,
    const char *name, struct err *e) CHR_MUST_CHECK;
int jsonfile_number(const json_t *o, const char *key, double *v, const char *name,
    struct err *e) CHR_MUST_CHECK;

const char *jsonfile_kind(const json_t *v);	/* "a string" */

#endif
