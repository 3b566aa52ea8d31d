/*
 * gguf_save: a model of any layout, packed or not, into one GGUF file, rows at a time.
 *
 *	struct gguf_save s = { .md = &md, .out = "model.gguf", .type = -1, .keys = tokenizer };
 *	if (gguf_save_plan(&s, &e) < 0 || gguf_save_write(&s, &e) < 0)
 *		...
 *	gguf_save_end(&s);
 *
 * Without a type values stay as they are: floats, and blocks of ours (quant.h) and MXFP4 as those
 * of GGUF that hold the same bits. Blocks that it has not (FP8), and those of a matrix whose
 * columns it has in another order, become float32. Vectors, routers, convolutions and biases are
 * float32 always, as llama.cpp wants them.
 */
#ifndef CHR_GGUF_SAVE_H
#define CHR_GGUF_SAVE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "arch/gguf_meta.h"
#include "base/err.h"
#include "format/gguf_blocks.h"
#include "format/gguf_out.h"
#include "format/manifest.h"
#include "format/modeldir.h"
#include "format/packed.h"

struct gguf_tensor_out;

struct gguf_save {
	const struct modeldir *md;	/* the model to read */
	const char *out;
	bool force;			/* replace a file at out */
	int type;			/* enum gguf_type of matrices: F32, BF16, F16, Q8_0, Q4_0,
					   Q4_1; -1: as they are */
	const json_t *keys;		/* more metadata (the tokenizer); may be NULL */
	const json_t *meta;		/* an object of texts: where the model comes from; may be
					   NULL */
	/* NULL, or called when so many more bytes are written; below 0: stop */
	int (*tick)(void *ctx, int64_t bytes, struct err *e);
	void *ctx;
	/* results of gguf_save_plan() */
	int64_t tensors, bytes;		/* that will be written */
	int64_t changed;		/* parameters that get another type */
	int64_t left_out;		/* parameters that GGUF has no place for */
	int64_t narrow;			/* tensors that stay floats: their rows are no multiple of
					   a block, */
	char narrow_first[104];		/* such as this */
	/* private */
	struct gguf_meta m;
	struct gguf_tensor_out *t;	/* (n) */
	int n;
	struct gguf_out o;
	struct manifest manifest;	/* of a packed model */
	struct packed experts;
};

/* EX_DATAERR: an architecture of llama.cpp cannot say it (gguf_meta.h). gguf_save_end() in any
 * case. */
int gguf_save_plan(struct gguf_save *s, struct err *e) CHR_MUST_CHECK;
/* EX_CANTCREAT, EX_IOERR; EX_DATAERR: a value is too large for its type, and nothing is written. */
int gguf_save_write(struct gguf_save *s, struct err *e) CHR_MUST_CHECK;
void gguf_save_end(struct gguf_save *s);

#endif
