/*
 * gguf: reads one GGUF file, the format of llama.cpp and its kin: metadata, then tensors.
 *
 *	struct gguf *g = gguf_open("model.gguf", &e);
 *	const struct gguf_value *v = gguf_value(g, "general.architecture");
 *	json_t *name = gguf_json(v, &e);
 *	const struct gguf_tensor *t = gguf_find(g, "token_embd.weight");
 *	gguf_read(g, t, 0, buf, t->nbytes, &e);
 *	gguf_close(g);
 *
 * Versions 2 and 3, little-endian. A file is not trusted: whatever its bytes, gguf_open() either
 * refuses it with a message that names file and byte, or every value and every tensor lies inside
 * the file, no two tensors overlap, shapes agree with sizes, and keys and names are unique UTF-8
 * without NUL. What a split model is made of is a matter of gguf_model.h.
 *
 * Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
 */
#ifndef CHR_GGUF_H
#define CHR_GGUF_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "format/gguf_blocks.h"

#define GGUF_MAX_DIMS 4

struct gguf_tensor {
	const char *name;
	enum gguf_type type;
	int ndim;				/* 1 to 4 */
	uint64_t shape[GGUF_MAX_DIMS];		/* slowest first, as in safetensors: of a matrix
						   rows, then columns (the file has them the other
						   way round) */
	uint64_t offset, nbytes;		/* offset from the start of the file */
};

enum gguf_kind {
	GGUF_U8, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_FLOAT, GGUF_BOOL,
	GGUF_STRING, GGUF_ARRAY, GGUF_U64, GGUF_I64, GGUF_DOUBLE, GGUF_KINDS
};

struct gguf_value {
	const char *key;
	enum gguf_kind kind;		/* of an array, that of its members */
	bool array;
	uint64_t n;			/* members of an array, 1 otherwise */
	const unsigned char *at;	/* in the file */
};

struct gguf;

/* NULL: EX_NOINPUT, EX_DATAERR, EX_OSERR. */
struct gguf *gguf_open(const char *path, struct err *e) CHR_MUST_CHECK;
/* buf is borrowed; name is for messages */
struct gguf *gguf_open_mem(const void *buf, size_t len, const char *name, struct err *e)
    CHR_MUST_CHECK;
void gguf_close(struct gguf *g);				/* NULL is fine */
const char *gguf_name(const struct gguf *g);			/* the path */

size_t gguf_count(const struct gguf *g);
const struct gguf_tensor *gguf_at(const struct gguf *g, size_t i);	/* in order of offset */
const struct gguf_tensor *gguf_find(const struct gguf *g, const char *name);	/* NULL: absent */
/* Bytes from..from+len of a tensor; read, not mapped. EX_IOERR. */
int gguf_read(const struct gguf *g, const struct gguf_tensor *t, uint64_t from, void *buf,
    size_t len, struct err *e) CHR_MUST_CHECK;

/* n values from the `first` on, in whatever blocks they lie, as float32. EX_IOERR, EX_OSERR. */
int gguf_read_f32(const struct gguf *g, const struct gguf_tensor *t, uint64_t first, uint64_t n,
    float *dst, struct err *e) CHR_MUST_CHECK;
uint64_t gguf_elements(const struct gguf_tensor *t);

size_t gguf_value_count(const struct gguf *g);
const struct gguf_value *gguf_value_at(const struct gguf *g, size_t i);	/* in order of keys */
const struct gguf_value *gguf_value(const struct gguf *g, const char *key);	/* NULL: absent */
/* As JSON, new: an array becomes a list. NULL: a text is not UTF-8 or holds NUL, or a number is not
 * one that JSON has (EX_DATAERR). */
json_t *gguf_json(const struct gguf *g, const struct gguf_value *v, struct err *e) CHR_MUST_CHECK;

#endif
