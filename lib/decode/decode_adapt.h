/*
 * decode_adapt: adapters of an engine (Hu et al. 2021, arXiv:2106.09685). A row whose sequence has
 * one gets y = W x + B (A x) of each matrix W that the adapter is for, with its factor in B. W
 * stays what it is: floats, blocks, or an expert that is read when it is needed. x is what W is
 * multiplied with before it is quantised.
 *
 * Each function here comes after the product with W and adds to it. Rows without an adapter, and
 * matrices that it is not for, are left as they are, so such rows have the bytes of an engine
 * without adapters. Rows of one adapter lie together in a pass (decode.c), and are multiplied
 * together; what a row gets does not depend on the others. Not installed.
 */
#ifndef CHR_DECODE_ADAPT_H
#define CHR_DECODE_ADAPT_H

#include <stdbool.h>
#include <stdint.h>

#include "arch/param.h"
#include "backend/backend.h"
#include "base/mem.h"
#include "model/adapter.h"

struct engine;
struct ffn_part;
struct linear;

struct low {			/* what one adapter has for one matrix (rows, cols) */
	int rank, rows, cols;
	dev_real *a, *b;	/* (rank, cols), (rows, rank). Of PARAM_TURNED b is as the matrix
				   is: of each key head (rank, N), then what is left of its rows */
	dev_real *turned;	/* (cols, rank) A transposed; of PARAM_TURNED */
	dev_real *sum;		/* (rows, cols) W + B A; of P_CONV, which is no product */
};

struct adapts {
	struct adapter *file;		/* (adapters of engine_opt) until they are loaded */
	int opened;			/* so many of them */
	int64_t matrices;		/* of all, */
	struct low *low;		/* (matrices) */
	int32_t *find;			/* (adapters, parameters of the model) which, or -1 */
	void *weights, *tables;
	dev_real *mid;			/* A x of the jobs that wait: */
	int64_t used;			/* so many values of it */
	struct gemm_job *down, *up;	/* their products with A, and with B */
	struct qgemm_job *blocks;
	int jobs;
	int32_t *of_row;		/* (max_rows) adapter of each row of this pass */
	bool here;			/* one of them has one */
};

/* decode_adapt_load.c. Opens the adapters and counts every byte that they, and reading them, will
 * take. */
int adapt_plan(struct engine *g, struct mem_plan *plan, struct err *e) CHR_MUST_CHECK;
/* Were they trained on this model? */
int adapt_check(struct engine *g, struct err *e) CHR_MUST_CHECK;
/* Once the dense weights are there. */
int adapt_load(struct engine *g, struct err *e) CHR_MUST_CHECK;
void adapt_close(struct engine *g);

/* decode_adapt.c. Index of a parameter; -1: the model has none. */
int param_at(const struct engine *g, enum param_kind k, int layer, int expert);

/* Notes who has which, of the rows of a pass that begins. */
void adapt_rows(struct engine *g);

/* After linear_rows(), with its arguments. */
void adapt_linear(struct engine *g, const struct linear *l, int n, const int32_t *of, int rows);
/* The same of the one matrix of this kind that layer l has (-1: the model): y += B (A x) for n
 * rows, which are rows `of` of the pass, or NULL: the first n. */
void adapt_add(struct engine *g, enum param_kind k, int l, dev_real *y, const dev_real *x,
    const int32_t *of, int n);

/* What is left of k_nope and of the values (mla_v, or those of kv_b) where they are multiplied with
 * queries and contexts: q_abs += (q B) A, heads of q `step` apart, and att += (ctx A^T) B^T. */
void adapt_keys(struct engine *g, int l, int64_t step);
void adapt_values(struct engine *g, int l);

/* Weights of layer l's convolution for segment i of the pass, and for how many from there on. */
const dev_real *adapt_conv(const struct engine *g, int l, int i, int *n);

/* Whether row `at` of moe_x, one of part p, has an adapter that is for some of its matrices; of how
 * many rows of the part from there on that is said. */
bool adapt_ffn(const struct engine *g, const struct ffn_part *p, int at, int *n);
/* Of parts as in ffn_parts(): gate and up in moe_g and moe_u, down in moe_x, from its input in
 * moe_g. */
void adapt_up(struct engine *g, const struct ffn_part *p, int n);
void adapt_down(struct engine *g, const struct ffn_part *p, int n);
/* All of the first half of an FFN in blocks, of the rows for which adapt_ffn() is true. */
void adapt_up_blocks(struct engine *g, const struct ffn_part *p, int n);

#endif
