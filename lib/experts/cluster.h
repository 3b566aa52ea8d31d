/*
 * cluster: from activation records to an order of experts in files: which experts are used
 * together is counted, each layer's co-activation graph is cut into communities (graph.h), and
 * communities become clusters between two sizes.
 *
 *	struct coact c;
 *	coact_init(&c, &log.model, hold_every, &e);
 *	while (actlog_next(&log, &e) == 1)
 *		coact_add(&c, &log.act, &e);
 *	cluster_sizes(&c, &opt);
 *	cluster_plan(&p, &c, &opt, &e);
 *	json_t *manifest = cluster_manifest(&p, &c, &opt, fingerprint, &e);
 *
 * There is no edge between layers: two experts are together when one token uses both in the same
 * layer (weight w_token) or a token uses one and the next token the other (w_next). Communities
 * are therefore found layer by layer, each with its own null model; one null model for all
 * layers would take every layer for a single community.
 */
#ifndef CHR_CLUSTER_H
#define CHR_CLUSTER_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "arch/config.h"
#include "experts/actlog.h"
#include "base/err.h"
#include "format/manifest.h"

struct coact {				/* what was counted; memory depends on the model only */
	int layers, experts, top_k;
	int64_t pairs;			/* per layer: experts * (experts - 1) / 2 */
	uint32_t *token, *next, *held;	/* (layers, pairs) same token; next token; same token of
					   held-out sequences */
	int64_t *heat;			/* (layers, experts) uses, held-out sequences excluded */
	bool *sparse;			/* (layers) */
	int hold_every;			/* every so many-th sequence is held out; 0: none */
	int64_t sequences, tokens, held_sequences, held_tokens, held_reads;
	int *prev, *nprev;		/* (layers, top_k), (layers) of the last token */
};

enum cluster_layout { LAYOUT_LOUVAIN, LAYOUT_LAYER, LAYOUT_HOT };

struct cluster_opt {
	enum cluster_layout layout;
	double w_token, w_next, resolution;
	uint64_t seed;
	int tries;			/* Louvain runs per layer; the best counts */
	int64_t expert_bytes;		/* a file needs this, rounded up to 4096, per expert */
	int64_t max_bytes, min_bytes;	/* of a cluster; neighbours in file order are joined
					   until min_bytes; 1: never */
};

struct cluster_plan {
	int n, nodes;			/* clusters; experts of sparse layers */
	int *order;			/* (nodes) layer * experts + expert, in file order */
	int *start;			/* (n + 1) first of each cluster in order */
	int64_t edges;			/* of the graph: pairs of experts with weight */
	int communities;		/* over all layers; 0 unless Louvain ran */
	double modularity;		/* of the communities: mean over the layers that have
					   edges */
	double cluster_modularity;	/* of the clusters, split and joined, same mean */
};

int coact_init(struct coact *c, const struct actlog_model *m, int hold_every, struct err *e)
    CHR_MUST_CHECK;
/* EX_DATAERR: a layer both dense and sparse */
int coact_add(struct coact *c, const struct act *a, struct err *e) CHR_MUST_CHECK;
void coact_free(struct coact *c);

/* Sizes that are 0: at most 64 MiB and at least 4 MiB, or 1/128 and 1/512 of the experts where
 * that is more, so that a large model does not become thousands of files; min_bytes never above
 * max_bytes. */
void cluster_sizes(const struct coact *c, struct cluster_opt *o);

/* EX_USAGE when max_bytes does not hold one expert, EX_DATAERR when nothing was counted. */
int cluster_plan(struct cluster_plan *p, const struct coact *c, const struct cluster_opt *o,
    struct err *e) CHR_MUST_CHECK;
void cluster_plan_free(struct cluster_plan *p);

/* Share of held-out expert reads that directly follow, in the file, another read of the same
 * token and layer. NaN when nothing was held out. */
double cluster_sequential(const struct cluster_plan *p, const struct coact *c);

/* cluster_manifest.json without places; caller decrefs. fingerprint may be "". */
json_t *cluster_manifest(const struct cluster_plan *p, const struct coact *c,
    const struct cluster_opt *o,
    const char *fingerprint, struct err *e) CHR_MUST_CHECK;

/* The layout that needs no activations: experts layer after layer, of so many bytes each, in
 * clusters of the sizes of cluster_sizes(). Fills *m, which has no fingerprint. */
int cluster_in_order(struct manifest *m, const struct config *cfg, int64_t expert_bytes,
    struct err *e) CHR_MUST_CHECK;

const char *cluster_layout_name(enum cluster_layout l);

#endif
