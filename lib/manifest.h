/*
 * manifest: cluster_manifest.json: where every (layer, expert) of a packed model lies. Layers are real layer indices
 * (dense layers have no entries). chr-cluster writes one without places (clusters only), chr-pack completes it.
 */
#ifndef CHR_MANIFEST_H
#define CHR_MANIFEST_H

#include <jansson.h>
#include <stdint.h>

#include "err.h"
#include "tensor.h"

struct place {			/* one expert */
	int cluster;		/* index into file[]; -1: this (layer, expert) does not exist */
	int rank;		/* order within its cluster */
	int64_t offset, bytes;	/* in the file; offset is a multiple of 4096; bytes without padding */
	uint32_t crc;		/* CRC-32 (zlib) of the bytes */
};

struct manifest {
	int layers, experts;	/* num_hidden_layers, num_experts */
	int nclusters;
	char **file;		/* (nclusters) file name in the packed directory, "cluster_000.ctsr" */
	struct place *place;	/* (layers, experts) */
	char *fingerprint;	/* of the model: hex, or NULL when not packed and not known */
	enum dtype dtype;	/* of expert matrices in the files (packed only) */
	int64_t gate_bytes, up_bytes, down_bytes;	/* an expert is gate, up, down in this order, no gap */
	json_t *raw;		/* as read (keeps the reference's keys and statistics) */
};

static inline struct place *manifest_at(const struct manifest *m, int layer, int expert)
{
	return &m->place[(int64_t)layer * m->experts + expert];
}

int manifest_parse(struct manifest *m, const json_t *o, const char *name, struct err *e);
int manifest_load(struct manifest *m, const char *path, struct err *e);
void manifest_free(struct manifest *m);

#endif
