/*
 * modeldir: a model directory on disk: config.json and model.safetensors (or shards named by
 * model.safetensors.index.json), in and out.
 *
 *	struct modeldir md;
 *	modeldir_open(&md, "out/sft", 0, NULL, &e);
 *	float *flat = mem_alloc(md.par.total * sizeof *flat);
 *	modeldir_load_f32(&md, &md.par, flat, &e);
 *	... modeldir_fingerprint(&md, &e), modeldir_meta(&md, "chronos.ancestry") ...
 *	modeldir_close(&md);
 *
 * A model of GGUF files is read the same way. It has no files here: nfiles is 0.
 *
 * A packed directory (one with a cluster_manifest.json) holds its experts in .ctsr files; here
 * they are then absent and not missed (store.h reads them).
 */
#ifndef CHR_MODELDIR_H
#define CHR_MODELDIR_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "arch/config.h"
#include "base/err.h"
#include "format/safetensors.h"
#include "backend/tensor.h"

#define MODELDIR_INDEX "model.safetensors.index.json"
#define INTENT_NAME "intent.safetensors"	/* beside the weights (intent.h, foresee.h) */
#define FORESEE_NAME "foresee.safetensors"

struct gguf_model;

struct modeldir {
	char *path;
	struct config cfg;
	struct params par;		/* that cfg asks for */
	bool packed;
	int nfiles;
	char **file;			/* (nfiles) paths */
	struct st_file **st;		/* (nfiles) mapped */
	struct gguf_model *gguf;	/* in place of these; NULL: it is none (gguf_model.h) */
	char fingerprint[33];		/* "" until asked for */
};

/* A tensor where it lies, for tools that show or check files; parameters are read through the
 * functions below, whatever tensors hold them. */
struct view {
	const struct st_tensor *t;	/* dtype, shape, nbytes, offset in the file, data
					   (mapped) */
	const struct st_file *st;
	const char *file;
};

/* The config of a model alone: config_load(), or of a model in GGUF files what their metadata say.
 * path may also be a config.json. */
int modeldir_config(struct config *c, const char *path, int nsets, const char *const sets[],
    struct err *e) CHR_MUST_CHECK;
/* Opens config (with overrides as in config_load) and files, or a GGUF file or a directory of one;
 * reads no weights, but checks that every tensor is there and none is too many, as modeldir_check()
 * does. Tensors that are known to be harmless are said once on stderr. EX_NOINPUT, EX_DATAERR. */
int modeldir_open(struct modeldir *md, const char *path, int nsets, const char *const sets[],
    struct err *e) CHR_MUST_CHECK;
void modeldir_close(struct modeldir *md);

bool modeldir_padding(const char *tensor);	/* between others, of no meaning */
/* 0, or -1: absent */
int modeldir_find(const struct modeldir *md, const char *name, struct view *v);

/* One parameter, or n rows of it from `row` on, as float32, however it is stored (stored.h); dst
 * has param_size(p) entries, or n * p->cols. Absent, of another shape or not a float type:
 * EX_DATAERR; EX_IOERR. */
int modeldir_read_f32(const struct modeldir *md, const struct param *p, float *dst, struct err *e)
    CHR_MUST_CHECK;
int modeldir_read_rows_f32(const struct modeldir *md, const struct param *p, int row, int n,
    float *dst, struct err *e) CHR_MUST_CHECK;

/* The type a parameter is stored in, and its values in that type: mat_bytes(type, rows, cols) of
 * quant.h for a matrix; of rows in blocks, whole panels. A matrix in our blocks is a tensor of U8
 * and the metadata says of which type: "quant.NAME" is "Q8 ROWS COLS". */
int modeldir_type(const struct modeldir *md, const struct param *p, enum dtype *t, struct err *e)
    CHR_MUST_CHECK;
int modeldir_read(const struct modeldir *md, const struct param *p, void *dst, struct err *e)
    CHR_MUST_CHECK;
int modeldir_read_rows(const struct modeldir *md, const struct param *p, int row, int n, void *dst,
    struct err *e) CHR_MUST_CHECK;

/* May all of them be read? The packed are refused, whose experts are not here, and what
 * modeldir_check() finds. */
int modeldir_loadable(const struct modeldir *md, const struct params *ps, struct err *e)
    CHR_MUST_CHECK;
/* All of them: flat has ps->total entries; gaps between parameters are left alone. Missing and
 * unexpected tensors are errors that name them. A tied lm_head.weight that equals the embedding
 * is passed over. */
int modeldir_load_f32(const struct modeldir *md, const struct params *ps, float *flat,
    struct err *e) CHR_MUST_CHECK;

/* Is every tensor of the files a parameter (or padding, or a tied head), and every parameter
 * there in its shape? Reads no weights. modeldir_load_f32() does this first. */
int modeldir_check(const struct modeldir *md, const struct params *ps, struct err *e)
    CHR_MUST_CHECK;

/* What tells this model, as it is on disk now, from another without reading its weights: its
 * config, and the name, size and time of each file; new. NULL: EX_NOINPUT, a file is gone. */
json_t *modeldir_state(const struct modeldir *md, struct err *e) CHR_MUST_CHECK;

/* of __metadata__, which a GGUF file has not; NULL if absent */
const char *modeldir_meta(const struct modeldir *md, const char *key);
/* all of it, an object of strings; new */
json_t *modeldir_metadata(const struct modeldir *md);

/* What tells one model from another (fingerprint.h). Taken from metadata "chronos.fingerprint" when
 * there, else computed by reading everything. NULL on error. */
const char *modeldir_fingerprint(struct modeldir *md, struct err *e) CHR_MUST_CHECK;
int modeldir_compute_fingerprint(const struct modeldir *md, char out[33], struct err *e)
    CHR_MUST_CHECK;

struct modeldir_out {
	enum dtype dtype;		/* DT_F32, DT_BF16, DT_F16 */
	const enum dtype *types;	/* of each parameter, in place of dtype; NULL: all alike */
	int64_t shard_size;		/* bytes; a larger model is written in shards. 0: never */
	const json_t *meta;		/* an object of strings for __metadata__; may be NULL */
	const json_t *config;		/* what config.json says but for the type, in place of what
					   the config does; may be NULL */
	bool unprinted;			/* no fingerprint: each parameter is then read once */
	bool keep;			/* files that are there already are whole, and of this:
					   they stay */
	/* What gives the values in place of flat; at most one of the two. A whole parameter, until
	 * the next call; or n rows of it. Each is asked for twice. */
	const float *(*get)(void *ctx, int i);
	int (*rows)(void *ctx, int i, int row, int n, float *dst, struct err *e);
	/* NULL, or called when so many more bytes are written; below 0: stop */
	int (*tick)(void *ctx, int64_t bytes, struct err *e);
	void *ctx;
};

/* Writes model.safetensors (or shards and index), then config.json, into an existing directory;
 * each file is whole or absent, files of a model that was there before are replaced. Adds
 * "format" and "chronos.fingerprint" to the metadata; fingerprint (33 bytes, may be NULL)
 * receives the latter. Tensors are those that the family publishes (param_name in arch/param.h). A
 * number that is too large for o->dtype: EX_DATAERR with the tensor's name, and nothing is
 * written, or, unprinted, no more. */
int modeldir_save(const char *dir, const struct config *c, const struct params *ps,
    const float *flat,
    const struct modeldir_out *o, char *fingerprint, struct err *e) CHR_MUST_CHECK;

/* Writes the tensors of md as they are, also those that no parameter lies in, in shards of
 * o->shard_size; config.json is not written. */
int modeldir_copy(const char *dir, const struct modeldir *md, const struct modeldir_out *o,
    struct err *e) CHR_MUST_CHECK;

/* Fills e from a safetensors error: the status that fits, what else the file is if that can be
 * told, or "file: message (byte N)". Returns -1. */
int modeldir_st_err(struct err *e, const char *file, const struct st_error *se);

#endif
