/*
 * convert: a model as others publish it into a model directory of the published layout.
 *
 *	struct convert c = { .md = &md, .out = "out", .dtype = -1, .shard_size = 5000000000 };
 *	if (convert_plan(&c, &e) < 0 || convert_write(&c, &e) < 0)
 *		err_exit(&e);
 *
 * Without a type, stored values stay as they are: of safetensors every tensor, bit for bit; of
 * other files floats stay, and blocks become float32, which holds what they say. For transformers
 * (hf) a published model is written like that; one of ours as export.h says. A GGUF file is written
 * as gguf_save.h says.
 */
#ifndef CHR_CONVERT_H
#define CHR_CONVERT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "format/gguf_save.h"
#include "format/modeldir.h"
#include "format/sidefiles.h"

enum convert_to { CONVERT_SAME, CONVERT_HF, CONVERT_GGUF };

/* What a GGUF file says of the tokenizer of a model, a new object. */
typedef int convert_keys(const struct modeldir *md, json_t **keys, struct err *e);

struct convert {
	struct modeldir *md;		/* the model to read */
	const char *out;
	bool force;			/* replace a model directory at out */
	int dtype;			/* enum dtype of all parameters; -1: as they are. Blocks
					   (Q8, Q4, Q4A) are for GGUF alone */
	int64_t shard_size;		/* as in modeldir_out */
	enum convert_to to;
	sidefiles_tokenizer *tokenizer;	/* of a model in a GGUF file */
	convert_keys *keys;		/* for one */
	const json_t *meta;		/* for __metadata__; may be NULL */
	/* results of convert_plan() */
	bool copies;			/* tensors go as they are */
	int64_t tensors, bytes;		/* that will be written */
	int64_t changed;		/* parameters that get another type */
	int64_t left_out;		/* parameters that others have no place for */
	bool python;			/* the model comes as a Python file */
	bool resumed;			/* after convert_write(): an earlier run had begun */
	/* private: what is written; of md unless exported */
	const struct config *cfg;
	const struct params *ps;
	struct config own_cfg;
	struct params own_ps;
	json_t *config;
	struct gguf_save gguf;
	json_t *gguf_keys;
};

/* EX_DATAERR: a packed model. convert_end() in any case. */
int convert_plan(struct convert *c, struct err *e) CHR_MUST_CHECK;
/* EX_CANTCREAT, EX_IOERR; EX_TEMPFAIL when a signal asked to stop: the same call goes on then with
 * the first file that is not whole. */
int convert_write(struct convert *c, struct err *e) CHR_MUST_CHECK;
void convert_end(struct convert *c);

#endif
