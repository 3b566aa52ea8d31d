/*
 * sidefiles: what stands beside the weights of a model directory and goes with them: the
 * tokenizer, the template of conversations, how to generate.
 *
 *	sidefiles_copy("model", "out/packed", &e);
 *
 * The directory may be a stranger's, and the copy may be published. A name that is a symbolic
 * link out of the directory (file_within()) could stand for any file of the user's, so it is
 * refused and not copied; a link within it, and a link into the blobs of a Hugging Face cache
 * from a snapshot of that cache, is copied as the file that it leads to.
 */
#ifndef CHR_SIDEFILES_H
#define CHR_SIDEFILES_H

#include "base/err.h"

struct modeldir;

/* Writes the tokenizer of a model that has no files for it (GGUF) into a directory. */
typedef int sidefiles_tokenizer(const char *model, const char *dir, struct err *e);

/* config.json, and all of sidefiles_copy(); of a GGUF file what its metadata say, and the tokenizer
 * that `tokenizer` writes. */
int sidefiles_model(const struct modeldir *md, const char *dir, sidefiles_tokenizer *tokenizer,
    struct err *e) CHR_MUST_CHECK;
/* All that there are but config.json and what holds only while the weights stay the same.
 * EX_DATAERR: a link that leads out; EX_NOINPUT: a link to nowhere, or no regular file. */
int sidefiles_copy(const char *from, const char *to, struct err *e) CHR_MUST_CHECK;
/* One file of the directory, under the same name; nothing when it is not there. */
int sidefiles_copy_one(const char *from, const char *to, const char *name, struct err *e)
    CHR_MUST_CHECK;

/* May it be copied, by whatever writes it elsewhere? Also when it is not there. */
int sidefiles_own(const char *dir, const char *name, struct err *e) CHR_MUST_CHECK;

#endif
