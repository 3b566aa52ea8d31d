/*
 * gguf_model: a model in GGUF files: one, or a set of splits NAME-00001-of-0000N.gguf, of which
 * the first has the metadata.
 *
 *	char *file;
 *	if (gguf_path("models/tiny", &file, &e) > 0) ... gguf_open(file, &e) ...
 */
#ifndef CHR_GGUF_MODEL_H
#define CHR_GGUF_MODEL_H

#include "base/err.h"

/* Is the model at `path` one of GGUF? 1: *file is its first file, malloc'ed: the file that path
 * names, or the only model of a directory that has GGUF files and no config.json. 0: it is not.
 * -1: which model of a directory is meant cannot be told (EX_USAGE), or path names a split that is
 * not the first (EX_NOINPUT). *file is NULL unless the result is 1. */
int gguf_path(const char *path, char **file, struct err *e) CHR_MUST_CHECK;

#endif
