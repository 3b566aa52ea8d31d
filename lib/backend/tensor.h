/*
 * tensor: data types and a view of a matrix: where it lives and how it is stored. No arithmetic.
 *
 * Memory of a device has types of its own. Elsewhere than in a backend a dev_real * may be moved
 * on by so many values and handed to a row, to put and to get, and that is all: what it points to
 * is no number there, so the compiler refuses a read, a write, and a host array in its place.
 * The sources of a backend (lib/backend, and those of a third party) are compiled with
 * CHR_BACKEND_SIDE, and for them it is the number it holds.
 */
#ifndef CHR_TENSOR_H
#define CHR_TENSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/real.h"

#ifdef CHR_BACKEND_SIDE
typedef real dev_real;
typedef int32_t dev_i32;
typedef char dev_byte;
#else
typedef struct { real of_device; } dev_real;
typedef struct { int32_t of_device; } dev_i32;
typedef struct { char of_device; } dev_byte;
#endif

enum dtype {			/* of weights; files may hold more (safetensors.h) */
	DT_F64, DT_F32, DT_BF16, DT_F16,
	DT_Q8, DT_Q4, DT_Q4A,	/* matrices in blocks of 32 values (quant.h) */
	DT_F8, DT_MXFP4,
	DTYPES
};

const char *dtype_name(enum dtype t);			/* "F32", as in safetensors; "Q8" */
int dtype_parse(const char *name, enum dtype *t);	/* "f32", "BF16", "q4a"; -1 unknown */

static inline bool dtype_blocks(enum dtype t) { return t >= DT_Q8; }

/* Of the blocks, those that floats are rounded to here, and that rounded activations are multiplied
 * with (rows quantize, qgemm and qffn). The others are published in their blocks and multiplied as
 * the floats that they stand for (row gemm). */
static inline bool dtype_rounded(enum dtype t) { return t >= DT_Q8 && t <= DT_Q4A; }

static inline size_t dtype_size(enum dtype t)		/* of one value; 0 for blocks */
{
	return dtype_blocks(t) ? 0 : t == DT_F64 ? 8 : t == DT_F32 ? 4 : 2;
}

/* (rows, cols) row-major weight: y = x W^T has rows outputs and cols inputs. */
struct mat {
	const void *p;
	enum dtype dt;
	int rows, cols;
};

/* Conversions of n values; BF16 and F16 round to nearest even; NaN stays NaN; F16 overflow
 * becomes infinity. */
void tensor_to_f32(float *dst, const void *src, enum dtype from, size_t n);
void tensor_from_f32(void *dst, enum dtype to, const float *src, size_t n);

/* Are all n values numbers, neither NaN nor infinite? Not of blocks: quant_unpack() tells. */
bool tensor_finite(const void *src, enum dtype t, size_t n);

#endif
