/*
 * gguf_out: writes one GGUF file, version 3: metadata, then tensors, in any order of their bytes.
 * The file appears under its name complete, or not at all.
 *
 *	struct gguf_out o;
 *	gguf_out_init(&o);
 *	gguf_out_values(&o, keys);
 *	i = gguf_out_tensor(&o, "token_embd.weight", GGUF_F16, 2, shape);
 *	if (gguf_out_open(&o, "model.gguf", force, &e) < 0 ||
 *	    gguf_out_write(&o, i, 0, rows, bytes, &e) < 0 || gguf_out_commit(&o, &e) < 0)
 *		...
 *	gguf_out_end(&o);
 *
 * Bytes go into FILE.partial, which is locked; what another run left there is replaced.
 */
#ifndef CHR_GGUF_OUT_H
#define CHR_GGUF_OUT_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "format/gguf_blocks.h"

struct gguf_out {
	char *path, *tmp;		/* NULL until it is open */
	int fd;
	struct gguf_bytes { unsigned char *p; size_t n, cap; bool failed; } values, tensors;
	uint64_t nvalues, ntensors;
	uint64_t data, size;		/* where the data begin in the file, and their bytes */
	uint64_t *at;			/* (ntensors) offset in the data */
};

void gguf_out_init(struct gguf_out *o);
/* All members of an object: whole numbers become U32, real numbers F32, lists of whole numbers I32.
 * Every number must fit. */
void gguf_out_values(struct gguf_out *o, const json_t *object);
/* shape: slowest first, as in gguf.h; rows are whole blocks of the type. Returns its number. */
int gguf_out_tensor(struct gguf_out *o, const char *name, enum gguf_type t, int ndim,
    const uint64_t shape[]);
uint64_t gguf_out_bytes(const struct gguf_out *o);		/* of all tensors */

/* Writes the header; no value or tensor is added afterwards. EX_CANTCREAT: path is there, and
 * force is not set or it is no regular file; EX_TEMPFAIL: another process is at it; EX_OSERR,
 * EX_IOERR. */
int gguf_out_open(struct gguf_out *o, const char *path, bool force, struct err *e) CHR_MUST_CHECK;
int gguf_out_write(struct gguf_out *o, int tensor, uint64_t from, const void *buf, size_t len,
    struct err *e) CHR_MUST_CHECK;
int gguf_out_commit(struct gguf_out *o, struct err *e) CHR_MUST_CHECK;
void gguf_out_end(struct gguf_out *o);		/* removes what was not committed */

#endif
