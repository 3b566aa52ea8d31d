/*
 * stored: where the values of a parameter lie in the files of a model, and in what form. Published
 * files hold a parameter as a tensor of its own, or as a piece of one that holds more: all experts,
 * gate and up, a transposed matrix (enum param_how of arch/param.h).
 */
#ifndef CHR_STORED_H
#define CHR_STORED_H

#include <stdbool.h>
#include <stdint.h>

#include "arch/param.h"
#include "backend/tensor.h"
#include "base/err.h"
#include "format/safetensors.h"

struct modeldir;
struct block;
struct gguf;
struct gguf_tensor;

/* Value (r, c) of a parameter is element first + r*row_step + c*col_step of a tensor. */
struct layout {
	int64_t first, row_step, col_step;
};

struct tensor_at {			/* a tensor, and the file that it is in */
	const struct st_file *st;
	const struct st_tensor *t;
	const char *file;
};

/* FP8 or MXFP4 as it is published (stored_published.h). */
struct published_at {
	struct tensor_at scale;		/* t NULL: the parameter is stored in another way */
	int64_t first;			/* number of its first row in the tensor, */
	int step;			/* and of rows from one of its to the next */
	int64_t scales;			/* in the tensor of scales, before the first one of its */
	int top;			/* of FP8: its first row in the grid of rectangles, */
	int high, wide;			/* of so many rows and columns, */
	int across;			/* so many in a row of the grid */
};

struct stored {
	const struct st_file *st;
	const struct st_tensor *t;
	const char *file;
	enum dtype type;		/* a type of blocks: the tensor is the parameter's own, or
					   it is published in them */
	int rows, cols;
	struct layout at;		/* of floats */
	/* of a GGUF file, in place of st and t: */
	const struct gguf *g;
	const struct gguf_tensor *gt, *second;	/* second: where one is not enough, */
	const struct gguf *g2;			/* and the file that it is in */
	unsigned how;
	const struct block *block;	/* of the parameter's layer; NULL: it has none */
	int head;			/* rows of a head, of AT_PAIRS */
	struct published_at pub;
};

/* Where parameter p lies in a tensor that holds it as `how` says, of ndim sizes in shape. -1: the
 * shape is not the one that this needs. */
int stored_layout(const struct param *p, unsigned how, int experts, int ndim,
    const uint64_t shape[], struct layout *at);
/* The shape of such a tensor; returns ndim. */
int stored_shape(const struct param *p, unsigned how, int experts, uint64_t shape[3]);

/* EX_DATAERR: no tensor holds it, or it has another shape or is of no type that can be read. */
int stored_find(const struct modeldir *md, const struct param *p, struct stored *s, struct err *e)
    CHR_MUST_CHECK;

/* Is it there in a form that its family is published in? Other programs know no other: blocks of
 * ours, and what was packed and unpacked, a tensor each. Of files of safetensors. */
bool stored_as_published(const struct modeldir *md, const struct param *p);

/* Bytes of n rows in s->type; of blocks, whole panels. */
int64_t stored_bytes(const struct stored *s, int n);
/* n rows from `row` on, as they are stored (s->type) or as float32. Of a type of blocks, row is the
 * first of a panel, and n a multiple of QUANT_PANEL unless the last row is among them. Files are
 * read, not mapped, so that no pages stay behind. EX_IOERR, EX_OSERR. */
int stored_read(const struct stored *s, int row, int n, void *dst, struct err *e) CHR_MUST_CHECK;
int stored_read_f32(const struct stored *s, int row, int n, float *dst, struct err *e)
    CHR_MUST_CHECK;
/* How many rows may be read at a time in about so many bytes as float32: 1 or more, whole panels of
 * blocks. A transposed matrix is read as a whole. */
int stored_step(const struct stored *s, int64_t bytes);

/* stored_find() and stored_read() of a model of GGUF files. Values in blocks of theirs are float32
 * here. */
int stored_gguf_find(const struct modeldir *md, const struct param *p, struct stored *s,
    struct err *e) CHR_MUST_CHECK;
int stored_gguf_read(const struct stored *s, int row, int n, void *dst, struct err *e)
    CHR_MUST_CHECK;

#endif
