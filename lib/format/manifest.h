/*
 * manifest: cluster_manifest.json: where every (layer, expert) of a packed model lies. Layers
 * are real layer indices (dense layers have no entries). chr-cluster writes one without places
 * (clusters only), chr-pack completes it.
 *
 *	struct manifest m;
 *	if (manifest_load_dir(&m, "out/packed", &e) < 0)
 *		err_exit(&e);
 *	const struct place *p = manifest_at(&m, layer, expert);		(p->cluster < 0: a dense
 *	layer)
 *	pread(fd[p->cluster], buf, p->bytes, p->offset);
 *
 * Keys: man chr-ctsr.5. What parses is consistent: a layer has all of its experts or none, each
 * once; file names are plain, distinct and end in .ctsr; in a packed manifest places of a file
 * ascend with rank and do not overlap.
 */
#ifndef CHR_MANIFEST_H
#define CHR_MANIFEST_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "backend/tensor.h"

#define MANIFEST_NAME "cluster_manifest.json"
#define MANIFEST_ALIGN 4096	/* every expert starts at a multiple of this in its file */
#define MANIFEST_MAX (1 << 20)	/* layers * experts */

struct place {			/* one expert */
	int cluster;		/* index into file[]; -1: this (layer, expert) does not exist */
	int rank;		/* order within its cluster */
	int64_t offset, bytes;	/* in the file; offset is a multiple of 4096; bytes without
				   padding */
	uint32_t crc;		/* CRC-32 (zlib) of the bytes */
};

struct manifest {
	int layers, experts;	/* num_hidden_layers, num_experts */
	int nclusters;
	char **file;		/* (nclusters) file name in the packed directory,
				   "cluster_000.ctsr" */
	struct place *place;	/* (layers, experts) */
	char *fingerprint;	/* of the model: hex, or NULL when not packed and not known */
	bool packed;		/* has places; else all below but raw, and offset, bytes, crc
				   above, are 0 */
	enum dtype dt[3];	/* of gate, up and down of every expert in the files (packed
				   only) */
	int64_t gate_bytes, up_bytes, down_bytes;	/* an expert is gate, up, down in this
							   order, no gap */
	json_t *raw;		/* as read (keeps the reference's keys and statistics) */
};

static inline struct place *manifest_at(const struct manifest *m, int layer, int expert)
{
	return &m->place[(int64_t)layer * m->experts + expert];
}

static inline int64_t manifest_align(int64_t bytes)	/* up to the next multiple of
							   MANIFEST_ALIGN */
{
	return (bytes + MANIFEST_ALIGN - 1) / MANIFEST_ALIGN * MANIFEST_ALIGN;
}

/* An empty one to be filled: files named cluster_000.ctsr on, every cluster -1, raw an empty
 * object. EX_DATAERR when the numbers are out of range. */
int manifest_init(struct manifest *m, int layers, int experts, int nclusters, struct err *e)
    CHR_MUST_CHECK;

/* EX_DATAERR; messages start with name. On error *m holds nothing to free. */
int manifest_parse(struct manifest *m, const json_t *o, const char *name, struct err *e)
    CHR_MUST_CHECK;
/* Of what the user names: "-" is stdin, and it may be gzip; and that of a packed directory. */
int manifest_load(struct manifest *m, const char *path, struct err *e) CHR_MUST_CHECK;
int manifest_load_dir(struct manifest *m, const char *dir, struct err *e) CHR_MUST_CHECK;
void manifest_free(struct manifest *m);

/* CRC-32 (zlib) of a tensor of model.safetensors of the packed directory, as stored. False: the
 * manifest has none, because chr-pack did not write one before they were there, or of this name. */
bool manifest_dense(const struct manifest *m, const char *name, uint32_t *crc);
bool manifest_has_dense(const struct manifest *m);
void manifest_set_dense(struct manifest *m, const char *name, uint32_t crc);
void manifest_clear_dense(struct manifest *m);

/* The object to write: everything the struct says, then the keys of raw that it does not know.
 * Caller decrefs. */
json_t *manifest_json(const struct manifest *m);

/* Experts in file order: *order gets (n) entries layer * experts + expert, cluster after
 * cluster, *start (nclusters + 1) the first of each. Both malloc'ed; NULL is EX_OSERR. Returns
 * n. */
int manifest_order(const struct manifest *m, int **order, int **start, struct err *e)
    CHR_MUST_CHECK;

#endif
