/*
 * stored_published: parameters that lie in FP8 or MXFP4 in the files of a model, as they are
 * published (backend/published.h): a tensor of values and one of scales.
 *
 *	FP8	NAME F8_E4M3, of the shape that floats would have; NAME_scale_inv or NAME_scale: one
 *		scale for each rectangle of weight_block_size (config.json), or for all; F32, BF16,
 *		F16, or F8_E8M0
 *	MXFP4	NAME_blocks U8, of the shape that floats would have if they were not transposed, the
 *		last size cut into (cols / 32, 16); NAME_scales U8, without the 16
 *
 * A matrix that the engine may keep in blocks has their type, and is read into panels; what rounds
 * no values but has no such kernel (rectangles that cut panels, vectors) has type F32.
 */
#ifndef CHR_STORED_PUBLISHED_H
#define CHR_STORED_PUBLISHED_H

#include "format/stored.h"

#define STORED_BLOCKS "_blocks"

/* Is it a tensor of such values? */
bool stored_is_published(const struct st_tensor *t);
/* Completes s, whose tensor is that of parameter p. EX_DATAERR: there are no scales, or a shape is
 * not the one it must be. */
int stored_published(const struct modeldir *md, const struct param *p, unsigned how,
    struct stored *s, struct err *e) CHR_MUST_CHECK;
/* stored_read() of it. EX_DATAERR, with the tensor's name, when a value is no number. */
int stored_published_read(const struct stored *s, int row, int n, void *dst, struct err *e)
    CHR_MUST_CHECK;

#endif
