/*
 * gguf_model: a model in GGUF files: one, or a set of splits NAME-00001-of-0000N.gguf, of which
 * the first has the metadata.
 *
 *	char *file;
 *	if (gguf_path("models/tiny", &file, &e) > 0) ... gguf_open(file, &e) ...
 */
#ifndef CHR_GGUF_MODEL_H
#define CHR_GGUF_MODEL_H

#include <jansson.h>
#include <stdbool.h>

#include "arch/config.h"
#include "arch/param.h"
#include "base/err.h"
#include "format/gguf.h"

/* Is the model at `path` one of GGUF? 1: *file is its first file, malloc'ed: the file that path
 * names, or the only model of a directory that has GGUF files and no config.json. 0: it is not.
 * -1: which model of a directory is meant cannot be told (EX_USAGE), or path names a split that is
 * not the first (EX_NOINPUT). *file is NULL unless the result is 1. */
int gguf_path(const char *path, char **file, struct err *e) CHR_MUST_CHECK;

struct gguf_model {
	int n;
	struct gguf **g;		/* (n) files */
	const struct param_name *names;	/* of tensors (gguf_names.h) */
	json_t *config;			/* as a config.json */
};

/* All files of the model whose first is `file`. NULL: EX_NOINPUT, EX_DATAERR: a file is missing, is
 * of another model or of an architecture that is not supported. */
struct gguf_model *gguf_model_open(const char *file, struct err *e) CHR_MUST_CHECK;
void gguf_model_close(struct gguf_model *m);		/* NULL is fine */
/* NULL: absent; *g: the file that it is in */
const struct gguf_tensor *gguf_model_find(const struct gguf_model *m, const char *name,
    const struct gguf **g);

#endif
