/*
 * kv: how keys and values of inference are kept. A cache holds `slots` positions of some heads:
 * (heads, slots) rows of w values; position p is in slot p % slots, so a cache of fewer slots
 * than positions is a ring.
 *
 *	KV_F32	as computed (real)
 *	KV_BF16	rounded to nearest even: 2 bytes a value
 *	KV_Q8	in blocks of 32 within the row, x = d * q: all d as floats, then the q in
 *		-127..127, a byte each,
 *		up to a multiple of 4 bytes: 9 bits a value; the last block may be shorter
 *
 * Attention over a lossy cache is that over a KV_F32 cache of the same values, to the byte.
 */
#ifndef CHR_KV_H
#define CHR_KV_H

#include <stddef.h>
#include <stdint.h>

#include "base/real.h"

enum kv_type { KV_F32, KV_BF16, KV_Q8 };

#define KV_BLOCK 32

static inline int kv_blocks(int w) { return (w + KV_BLOCK - 1) / KV_BLOCK; }

static inline size_t kv_head_bytes(enum kv_type t, int w)	/* of one row */
{
	return t == KV_F32 ? (size_t)w * sizeof(real) : t == KV_BF16 ? (size_t)w * 2
	    : (size_t)kv_blocks(w) * sizeof(float) + (((size_t)w + 3) & ~(size_t)3);
}

static inline size_t kv_cache_bytes(enum kv_type t, int heads, int slots, int w)
{
	return (size_t)heads * (size_t)slots * kv_head_bytes(t, w);
}

#endif
