/*
 * gguf_blocks: the ways in which a GGUF file stores the numbers of a tensor, and what they mean. A
 * row is cut into blocks of 32 or 256 values, each with scales of its own; floats are blocks of
 * one value.
 *
 *	gguf_unpack(dst, src, GGUF_Q4_K, cols / 256);
 *
 * From the public description of GGUF and its quantisations
 * (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md); MXFP4 is that of the OCP
 * Microscaling specification 1.0, with the nibbles of a block in another order than in published
 * safetensors: the low ones are values 0 to 15, the high ones 16 to 31.
 */
#ifndef CHR_GGUF_BLOCKS_H
#define CHR_GGUF_BLOCKS_H

#include <stddef.h>
#include <stdint.h>

#include "backend/tensor.h"

enum gguf_type {		/* the number that files have */
	GGUF_F32 = 0, GGUF_F16 = 1, GGUF_Q4_0 = 2, GGUF_Q4_1 = 3, GGUF_Q5_0 = 6, GGUF_Q5_1 = 7,
	GGUF_Q8_0 = 8, GGUF_Q2_K = 10, GGUF_Q3_K = 11, GGUF_Q4_K = 12, GGUF_Q5_K = 13,
	GGUF_Q6_K = 14, GGUF_IQ4_NL = 20, GGUF_IQ4_XS = 23, GGUF_BF16 = 30, GGUF_MXFP4 = 39
};

#define GGUF_BLOCK_MOST 256	/* values */

/* "Q4_K", also of types that are not read; NULL: no type has this number. */
const char *gguf_type_name(uint32_t type);
int gguf_block_values(uint32_t type);		/* 0: this type is not read */
int gguf_block_bytes(uint32_t type);

/* n blocks of a type that is read, as float32. The order of operations is that of the published
 * Python package, so that the numbers are the same to the bit. */
void gguf_unpack(float *dst, const void *src, enum gguf_type type, size_t n);

/* The type that holds exactly what a type of ours says, where a row is whole blocks: Q8 is Q8_0, Q4
 * is Q4_0, Q4A is Q4_1, MXFP4 is MXFP4 and floats are themselves. -1: there is none. */
int gguf_type_of(enum dtype t);
/* n <= QUANT_PANEL rows of a panel in blocks of ours (quant.h) as those of gguf_type_of(t), one row
 * after the other. cols is a multiple of QUANT_BLOCK. */
void gguf_from_panel(void *dst, const void *panel, enum dtype t, int n, int cols);

#endif
