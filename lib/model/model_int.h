/*
 * model_int: what the files of the model share: saved activations and scratch. Layer l of a
 * forward-only model uses the same buffers as every other layer.
 */
#ifndef CHR_MODEL_INT_H
#define CHR_MODEL_INT_H

#include "model/model.h"

struct layer_act {
	real *x;		/* (R, D) residual stream at the layer's input */
	real *n1, *rstd1;	/* (R, D), (R) attention input */
	real *qa, *qb;		/* queries before their norms: (R, H*d), or MLA (R, H*n) and (R,
				   H*r) */
	real *ka;		/* (R, G*d) keys before their norm, or MLA (R, C) latent before
				   its norm */
	real *rqa, *rqb, *rka;	/* their reciprocal deviations */
	real *c;		/* (R, C) normalised latent */
	real *q, *k, *v;	/* (R, H*d), (R, G*d), (R, G*d) as attention sees them */
	real *o, *lse;		/* (R, H*d), (R, H) */
	real *mid;		/* (R, D) after attention */
	real *n2, *rstd2;	/* (R, D) MLP input */
	real *weights;		/* (R, K) */
	int32_t *slot;		/* (R, K) place in expert order, -1: expert missing */
	int32_t *order, *rows;	/* (R*K) which (row, k) a slot is, and its row */
	int32_t *first;		/* host (E+1): slots of expert e are first[e]..first[e+1]-1 */
	int32_t *miss, *miss_row;	/* (R, K) own index, and row, where the expert is
					   missing, else -1 */
	bool any_miss;
	real *eg, *eu;		/* (R*K, F) gate and up projections in slot order; NULL where
				   experts are divided */
	real *sg, *su;		/* (S, R, F) of shared experts, or (R, I) of a dense MLP */
	real *sgate, *sfull;	/* (R) gate of the shared expert; that times scoef. NULL: no gate */
	real *shared, *scoef;	/* (R, D) mean of shared experts; (R) how often it is added */
};

/* Rows of routed experts, those of each together, experts in order. */
struct rows {
	const int32_t *first;	/* host (E+1): rows of expert e are first[e]..first[e+1]-1 */
	const real *x;		/* (n, D) inputs */
	real *g, *u;		/* (n, F) gate and up projections */
	real *y;		/* (n, D) outputs; backward: their gradients in, those of the
				   inputs out */
	const real *w;		/* (n) backward: routing weights */
	real *dw;		/* (n) and their gradients out */
};

/* Rows on their way between the ranks of a group, of which each has some of the experts
 * (model_dispatch.c). Host memory. */
struct dispatch {
	int n, place;		/* ranks of the group, this one; n 1: every expert is here, and
				   nothing below */
	int room;		/* rows that this rank's experts take at a time */
	int32_t *count;		/* (n, E) rows that each rank has for each expert */
	int32_t *none;		/* (E+1) zeros: first of a rank that has no rows */
	int32_t *first;		/* (E+1) of the rows at hand */
	int32_t *sort, *unsort;	/* (room) row i by experts is row sort[i] as they came */
	int *out_at, *out_n, *in_at, *in_n;	/* (n) as in struct comm_rows */
	real *raw, *x, *y;	/* (room, D) as they came; by experts */
	real *g, *u;		/* (room, F) */
	real *w, *dw;		/* (room) */
};

struct model_act {
	void *base;		/* the one allocation */
	int max_r, max_t, head_rows, B, T, R;
	struct layer_act *layer;	/* (L) */
	real *xlast, *rlast;	/* (R, D) input of the final norm, (R) */
	real *look_a, *look_h;	/* (R, D/4) before and after SiLU */
	int32_t *pos;		/* (R) */
	int32_t *zeros;		/* (R) of models with biases: row 0 of one, for every row */
	int32_t *iota;		/* (R*K, or room of dispatch) 0, 1, 2, ... */
	int32_t *tok;		/* (R) */
	int32_t *doc;		/* (R) */
	int32_t *hid, *hslot, *horder, *hmiss;	/* host copies while slots are built */
	real *scoef_h;
	real *rope, *rope_mla;	/* (max_t, 2, d), (max_t, 2, r) */
	real *logits;		/* (head_rows, V) */
	real *dlogits;		/* (head_rows, V), with hooks only */
	real *ones;		/* (head_rows) */
	real *t1, *t2, *t3, *t4, *t5, *t6;	/* (R, widest of D, H*d, C, E) */
	real *xs, *ys;		/* (R*K, D) */
	real *a1, *a2, *a3, *a4;	/* (slots, room of dispatch or S*R, F) or (R, I) */
	real *dh, *dn;		/* (R, D) gradients of the stream and of a norm's output */
	real *dw, *wslot, *dwslot, *drow;	/* (R, K), (R*K), (R*K), (R) */
	struct gemm_job *jobs;
	struct dispatch dispatch;
	struct forward_opt fo;
};

static inline real *model_w(const struct model *m, enum param_kind k, int layer, int expert)
{
	return m->w + params_get(&m->par, k, layer, expert)->off;
}

static inline real *model_g(const struct model *m, enum param_kind k, int layer, int expert)
{
	return m->g + params_get(&m->par, k, layer, expert)->off;
}

/* All products of the model go through these: with BF16 values where the model was opened so,
 * and never. */
void model_gemm(const struct model *m, enum gemm_kind kind, const struct gemm_job *jobs, int n);
void model_gemm_f32(const struct model *m, enum gemm_kind kind, const struct gemm_job *jobs, int n);
/* y(R, n) = x(R, k) W^T + beta y */
void model_linear(const struct model *m, real *y, const real *x, const real *w, int n, int k,
    real beta);
/* dx(R, k) = dy(R, n) W + beta dx, and dW += dy^T x */
void model_linear_back(const struct model *m, real *dx, real beta, real *dw, const real *dy,
    const real *x,
    const real *w, int n, int k);

enum { MODEL_MISSES = 3 };	/* a `what` that all ranks share */
/* of random numbers in this forward pass */
uint64_t model_key(const struct model *m, int layer, int what);
/* which sparse layer it is */
int model_sparse_index(const struct config *c, int layer);

void model_attn_forward(struct model *m, int l);	/* x -> mid */
void model_attn_back(struct model *m, int l);		/* dh: of mid -> of x */
/* mid -> out; NULL: only what backward needs */
void model_mlp_forward(struct model *m, int l, real *out);
void model_mlp_back(struct model *m, int l);		/* dh: of out -> of mid */
/* x -> g, u and, unless it is NULL, y */
void model_experts_forward(struct model *m, int l, const struct rows *s);
void model_experts_back(struct model *m, int l, const struct rows *s);
/* The same for the rows in a->xs, in slot order as `first` says, through whichever rank has
 * their experts: xs -> ys; and xs, ys, wslot -> ys, dwslot. All ranks of the group call them, in
 * the same order, those without rows too. */
void model_dispatch_forward(struct model *m, int l, const int32_t *first);
void model_dispatch_back(struct model *m, int l, const int32_t *first);

void model_look_forward(struct model *m, const real *h);
void model_look_back(struct model *m, const real *h);	/* adds to dh */

#endif
