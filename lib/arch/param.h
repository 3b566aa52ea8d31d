/*
 * param: the parameters of a network. One table says of each kind what it is called, its shape,
 * when a layer has it and how it is treated; the list of a model's parameters follows from it and
 * the blocks of its config.
 */
#ifndef CHR_PARAM_H
#define CHR_PARAM_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct config;

/* In the order in which the parameters of a layer lie in a file. gate, up and down of an FFN follow
 * each other. */
enum param_kind {
	P_EMBED, P_HEAD, P_NORM, P_IN_NORM, P_POST_NORM,
	/* full and sliding attention */
	P_Q, P_K, P_V, P_Q_BIAS, P_K_BIAS, P_V_BIAS, P_QNORM, P_KNORM,
	/* latent attention as published, then in the reference's form */
	P_QA, P_QA_NORM, P_QB, P_KVA, P_KVA_NORM, P_KVB,
	P_QNOPE, P_QROPE, P_QNOPE_NORM, P_QROPE_NORM, P_KVDOWN, P_KVDOWN_NORM, P_KNOPE, P_KROPE,
	P_MLA_V,
	P_O, P_O_BIAS,						/* of any attention */
	/* gated delta rule: projections of key heads together (q, k, v, z and b, a of each), or
	 * apart */
	P_DELTA_QKVZ, P_DELTA_BA, P_DELTA_QKV, P_DELTA_Z, P_DELTA_B, P_DELTA_A,
	P_DELTA_LOG_A, P_DELTA_DT, P_DELTA_NORM,		/* (H), (H), (dv) */
	P_CONV_IN, P_CONV_IN_BIAS,			/* short convolution: (3D, D), (3D) */
	P_CONV, P_CONV_BIAS,					/* (channels, taps), (channels) */
	P_MIX, P_MIX_BIAS,					/* output projection of both */
	P_SINKS,				/* (H) of full and sliding attention */
	P_GATE, P_LOGIT_BIAS, P_GATE_BIAS,	/* router (E, D), (E), (E) */
	/* of all routed experts: (E, F), (E, F), (E, D) */
	P_EXP_GATE_BIAS, P_EXP_UP_BIAS, P_EXP_DOWN_BIAS,
	P_EXP_GATE, P_EXP_UP, P_EXP_DOWN,			/* routed experts */
	P_SH_GATE, P_SH_UP, P_SH_DOWN,				/* shared experts */
	/* gate of the shared expert (1, D) */
	P_SH_SIGMOID,
	P_MLP_GATE, P_MLP_UP, P_MLP_DOWN,			/* dense layers */
	P_LOOK0, P_LOOK2,
	P_KINDS
};

enum param_trait {
	PARAM_DECAYS = 1 << 0,		/* weight decay applies */
	PARAM_QUANTISES = 1 << 1,	/* may be stored in blocks: not the router, which decides,
	    nor what
					   the engine keeps transposed */
	PARAM_ADAPTS = 1 << 2,		/* may have an adapter (LoRA) */
	PARAM_ROUTED = 1 << 3,		/* of a routed expert: streamed, divided over ranks */
	PARAM_SHARED = 1 << 4,		/* of a shared expert */
	PARAM_FFN = 1 << 5,		/* gate, up or down of some FFN */
	PARAM_LATE = 1 << 6,		/* its gradient is complete before that of any layer */
	PARAM_ROW = 1 << 7,		/* a token reads one row of it */
	PARAM_LOOK = 1 << 8,		/* of the lookahead head */
	PARAM_BIAS = 1 << 9,		/* begins as 0; other vectors are norms and begin as 1 */
	PARAM_TURNED = 1 << 10,		/* decoding wants it transposed per key head */
	PARAM_PLUS_ONE = 1 << 11	/* a norm that is stored less 1 (norm_plus_one) */
};

/* What a parameter's shape is made of. */
enum param_dim {
	/* D/4, outputs of the lookahead head */
	DIM_NONE, DIM_ONE, DIM_V, DIM_D, DIM_QUARTER, DIM_LOOK,
	DIM_Q, DIM_KV, DIM_QNORM, DIM_KNORM,				/* H*d, G*d; d or these */
	DIM_N, DIM_R, DIM_C, DIM_HN, DIM_HR, DIM_GN, DIM_GR,		/* MLA */
	/* width of the block's FFN, of its shared */
	DIM_QA, DIM_KVA, DIM_KVB, DIM_O,	/* Q, C + r, H*(N+V), H*V */
	DIM_BIAS, DIM_BIAS_COLS,		/* (E) of a router, or (1, E) */
	DIM_E, DIM_F, DIM_SF, DIM_H,
	DIM_DQKVZ, DIM_DBA, DIM_DQKV, DIM_DZ, DIM_DH, DIM_DV,	/* delta rule */
	DIM_3D, DIM_CHANNELS, DIM_TAPS, DIM_MIX			/* convolutions; D or H*dv */
};

/* Which layers have it, or whether the model does. */
enum param_when {
	WHEN_ALWAYS, WHEN_UNTIED, WHEN_LOOK, WHEN_Q, WHEN_GQA, WHEN_QKV_BIAS, WHEN_O_BIAS,
	WHEN_QK_NORM,
	WHEN_MLA, WHEN_LATENT, WHEN_Q_RANK, WHEN_SPARSE,
	WHEN_LOGIT_BIAS, WHEN_ROUTER_BIAS, WHEN_EXPERT_BIAS, WHEN_SHARED_GATE, WHEN_DENSE,
	WHEN_SINKS,
	WHEN_ATTENTION, WHEN_DELTA, WHEN_GROUPED, WHEN_APART, WHEN_CONV, WHEN_CONV_BIAS,
	WHEN_RECURS
};

struct param_class {
	const char *name;	/* tensor, with %d for the layer and another for the expert */
	enum param_when when;
	enum param_dim rows, cols;	/* cols DIM_NONE: a vector */
	unsigned traits;
};

extern const struct param_class param_class[P_KINDS];

/* How the tensor of a name holds a parameter of shape (rows, cols): */
enum param_how {
	AT_STACKED = 1 << 0,		/* one of those of all experts: shape (E, rows, cols) */
	AT_TURNED = 1 << 1,		/* transposed: (cols, rows) */
	AT_FIRST = 1 << 2,		/* the first half of (2 rows, cols), or of the transposed */
	AT_SECOND = 1 << 3,		/* the second */
	AT_EVEN = 1 << 4,		/* rows 0, 2, .. of (2 rows, cols) */
	AT_ODD = 1 << 5,		/* rows 1, 3, .. */
	AT_FLAT = 1 << 6,		/* (rows, 1, cols), as convolutions have it */
	/* halves, and every second, are those of the columns: of (rows, 2 cols) */
	AT_ACROSS = 1 << 7,
	/* of GGUF files (gguf_names.h): rows 0, d/2, 1, d/2 + 1, .. of each head of d, */
	AT_PAIRS = 1 << 8,
	AT_PLUS_ONE = 1 << 9,		/* 1 + w where w is meant, */
	AT_EXP = 1 << 10,		/* -exp(x) where x is meant, */
	/* the value heads of each key head not together, but first the first of all key heads, then
	 * the second: of rows, or with AT_ACROSS of columns, */
	AT_TILED = 1 << 11,
	/* in two tensors, of this name and of the next entry: keys, transposed (H, C, N), and
	 * values (H, V, C) of kv_b; q, k, v and z of qkvz. */
	AT_KV_APART = 1 << 12,
	AT_QKVZ_APART = 1 << 13,
	/* it holds others too */
	AT_SEVERAL = AT_STACKED | AT_FIRST | AT_SECOND | AT_EVEN | AT_ODD
};

/* How a family calls a kind where it is not as in param_class; a list ends with a NULL name. A kind
 * may have several entries: files are written as the first says, and read as the first says whose
 * tensor they hold. */
struct param_name {
	enum param_kind kind;
	const char *name;	/* with %d for the layer and, unless stacked, for the expert */
	unsigned how;		/* of enum param_how; 0: as it is */
};

/* Where the routed experts of any family may lie besides: as transformers holds them in memory
 * since its fifth version. A list of a family that says where they are there has that last; of any
 * kind, the last entry is the name in that memory (homes.h). */
extern const struct param_name param_also[];

struct param {
	char name[104];			/* of its tensor, where it has one of its own */
	enum param_kind kind;
	/* -1 where meaningless; expert is also the index of a shared expert */
	int layer, expert;
	int ndim;			/* 1 or 2 */
	int rows, cols;			/* 1-D: rows = length, cols = 1 */
	/* element offset in one flat array of all parameters, a multiple of 16 */
	int64_t off;
	/* of several arrays, the one that it is in; -1: it is in all */
	int owner;
};

static inline bool param_is(const struct param *p,
    enum param_trait t) { return param_class[p->kind].traits & t; }
static inline bool param_routed(const struct param *p) { return param_is(p, PARAM_ROUTED); }
/* 0 gate, 1 up, 2 down of an FFN. */
static inline int param_part(const struct param *p)
{
	return param_routed(p) ? (int)(p->kind - P_EXP_GATE) :
	    param_is(p, PARAM_SHARED) ? (int)(p->kind - P_SH_GATE) : (int)(p->kind - P_MLP_GATE);
}

struct params {
	int n;
	struct param *p;
	int64_t total;			/* elements of the flat array (padding included) */
	int64_t count;			/* real parameters, of all arrays */
	int here;			/* which of several arrays is meant: params_divide() */
	/* private: tables behind params_find and params_get */
	int *hash, hash_size;
	int *first, layers;
};

#define PARAMS_MAX (1 << 18)	/* tensors of one model; the largest published have 70,000 */

/* Every parameter in file order. gate, up and down of one expert are adjacent. EX_DATAERR above
 * PARAMS_MAX. */
int params_build(struct params *ps, const struct config *c, struct err *e) CHR_MUST_CHECK;
/* Divides routed experts over n arrays, neighbours together: off is then that in the owner's array,
 * total is of any of them (all are alike, an expert taking the place of the one as far from the
 * owner's first), and params_here() tells what is in the one at place `here`. EX_USAGE: the experts
 * do not divide by n. */
int params_divide(struct params *ps, int n, int here, struct err *e) CHR_MUST_CHECK;
static inline bool params_here(const struct params *ps, const struct param *p)
{
	return p->owner < 0 || p->owner == ps->here;
}
/* O(1); NULL if absent */
const struct param *params_find(const struct params *ps, const char *name);
/* O(1), NULL */
const struct param *params_get(const struct params *ps, enum param_kind k, int layer, int expert);
/* hit[i] (n of ps): does the name of parameter i match one of the shell patterns? -1: one matches
 * nothing (EX_USAGE). */
int params_match(const struct params *ps, int npatterns, const char *const patterns[], bool *hit,
    struct err *e) CHR_MUST_CHECK;
/* those that a token meets */
int64_t params_active(const struct params *ps, const struct config *c);
void params_free(struct params *ps);
static inline int64_t param_size(const struct param *p) { return (int64_t)p->rows * p->cols; }
/* with padding */
static inline int64_t param_span(const struct param *p) { return (param_size(p) + 15) / 16 * 16; }

#endif
