/*
 * export: what others need to run a model of ours. Where it is all that a Qwen3-MoE is, its
 * config.json can say so, and every program that knows that family runs it; else the directory gets
 * a Python file with the model, which transformers loads (trust_remote_code).
 */
#ifndef CHR_EXPORT_H
#define CHR_EXPORT_H

#include <jansson.h>
#include <stdbool.h>

#include "arch/config.h"
#include "base/err.h"

#define EXPORT_PYTHON "modeling_chronos.py"

/* Does it become a Qwen3-MoE? */
bool export_as_qwen3_moe(const struct config *c);
/* Is it what others know as it is: of a published family, and nothing added here? */
bool export_published(const struct config *c);
/* Else: the config.json, new; NULL with EX_DATAERR: positions that the Python file does not know.
 * *python: the directory needs it. Only that file has a lookahead head: else it is left out. */
json_t *export_config(const struct config *c, const char *name, bool *python, struct err *e)
    CHR_MUST_CHECK;
/* In a directory of a model that was trained here: a text begins with the token bos, which programs
 * here know and others read in tokenizer.json. Nothing where there is no tokenizer. */
int export_tokenizer(const char *dir, int bos, struct err *e) CHR_MUST_CHECK;
int export_python(const char *dir, struct err *e) CHR_MUST_CHECK;	/* writes the file */

#endif
