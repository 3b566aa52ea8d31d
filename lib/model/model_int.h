/*
 * model_int: what the files of the model share: saved activations and scratch. Layer l of a
 * forward-only model uses the same buffers as every other layer.
 */
#ifndef CHR_MODEL_INT_H
#define CHR_MODEL_INT_H

#include "model/model.h"

struct layer_act {
	dev_real *x;		/* (R, D) residual stream at the layer's input */
	dev_real *n1, *rstd1;	/* (R, D), (R) attention input */
	dev_real *qa, *qb;	/* queries before their norms: (R, H*d), or MLA (R, H*n) and (R,
				   H*r) */
	dev_real *ka;		/* (R, G*d) keys before their norm, or MLA (R, C) latent before
				   its norm */
	dev_real *rqa, *rqb, *rka;	/* their reciprocal deviations */
	dev_real *c;		/* (R, C) normalised latent */
	dev_real *q, *k, *v;	/* (R, H*d), (R, G*d), (R, G*d) as attention sees them */
	dev_real *o, *lse;		/* (R, H*d), (R, H) */
	dev_real *mid;		/* (R, D) after attention */
	dev_real *n2, *rstd2;	/* (R, D) MLP input */
	dev_real *weights;		/* (R, K) */
	dev_real *rsum;		/* (R) sums of sigmoid scores */
	dev_i32 *slot;		/* (R, K) place in expert order, -1: expert missing */
	dev_i32 *order, *rows;	/* (R*K) which (row, k) a slot is, and its row */
	dev_i32 *expert;	/* (R*K) whose it is, where experts have biases */
	int32_t *first;		/* host (E+1): slots of expert e are first[e]..first[e+1]-1 */
	dev_i32 *miss, *miss_row;	/* (R, K) own index, and row, where the expert is
					   missing, else -1 */
	bool any_miss;
	dev_real *eg, *eu;	/* (R*K, F) gate and up projections in slot order; NULL where
				   experts are divided */
	dev_real *sg, *su;	/* (S, R, F) of shared experts, or (R, I) of a dense MLP */
	dev_real *sgate, *sfull;	/* (R) gate of the shared expert; that times scoef. NULL: no
				   gate */
	dev_real *shared, *scoef;	/* (R, D) mean of shared experts; (R) how often added */
};

/* Rows of routed experts, those of each together, experts in order. */
struct rows {
	const int32_t *first;	/* host (E+1): rows of expert e are first[e]..first[e+1]-1 */
	const dev_real *x;		/* (n, D) inputs */
	const dev_i32 *expert;		/* (n) whose each is, where experts have biases */
	dev_real *g, *u;		/* (n, F) gate and up projections */
	dev_real *y;		/* (n, D) outputs; backward: their gradients in, those of the
				   inputs out */
	const dev_real *w;		/* (n) backward: routing weights */
	dev_real *dw;		/* (n) and their gradients out */
};

/* Rows on their way between the ranks of a group, of which each has some of the experts
 * (model_dispatch.c). Rows are of the device, counts of the host. */
struct dispatch {
	int n, place;		/* ranks of the group, this one; n 1: every expert is here, and
				   nothing below */
	int room;		/* rows that this rank's experts take at a time */
	int32_t *count;		/* (n, E) rows that each rank has for each expert */
	int32_t *none;		/* (E+1) zeros: first of a rank that has no rows */
	int32_t *first;		/* (E+1) of the rows at hand */
	dev_i32 *sort, *unsort;	/* (room) row i by experts is row sort[i] as they came */
	dev_i32 *expert;	/* (room) whose row i is, where experts have biases */
	int *out_at, *out_n, *in_at, *in_n;	/* (n) as in struct comm_rows */
	dev_real *raw, *x, *y;	/* (room, D) as they came; by experts */
	dev_real *g, *u;		/* (room, F) */
	dev_real *w, *dw;		/* (room) */
	struct mirror here, there;	/* rows as they come and go, and their order */
	struct mirror sorted, unsorted, whose;
};

struct model_act {
	void *dev, *host;	/* the two allocations: of the device, and of the host */
	int max_r, max_t, head_rows, B, T, R;
	struct layer_act *layer;	/* (L) */
	dev_real *xlast, *rlast;	/* (R, D) input of the final norm, (R) */
	dev_real *look_a, *look_h;	/* (R, D/4) before and after SiLU */
	dev_i32 *pos;		/* (R) */
	dev_i32 *zeros;		/* (R) of models with biases: row 0 of one, for every row */
	dev_i32 *iota;		/* (R*K, or room of dispatch) 0, 1, 2, ... */
	dev_i32 *tok;		/* (R) */
	dev_i32 *doc;		/* (R) */
	int32_t *hid, *hslot, *horder, *hmiss;	/* host copies while slots are built */
	real *scoef_h;
	dev_real *rope, *rope_mla;	/* (max_t, 2, d), (max_t, 2, r) */
	dev_real *logits;		/* (head_rows, V) */
	dev_real *dlogits;		/* (head_rows, V), with hooks only */
	dev_real *ones;		/* (head_rows) */
	dev_i32 *target;	/* (head_rows) of the chunk at hand, */
	dev_real *coef, *logp;	/* (head_rows) what its log-probs weigh, and they */
	dev_real *t1, *t2, *t3, *t4, *t5, *t6;	/* (R, widest of D, H*d, C, E) */
	dev_real *xs, *ys;		/* (R*K, D) */
	dev_real *a1, *a2, *a3, *a4;	/* (slots, room of dispatch or S*R, F) or (R, I) */
	dev_real *dh, *dn;		/* (R, D) gradients of the stream and of a norm's output */
	dev_real *branch;		/* (R, D) what an MLP gives, or its gradient, where that is
					   multiplied before it joins the stream */
	dev_real *dw, *wslot, *dwslot, *drow;	/* (R, K), (R*K), (R*K), (R) */
	struct gemm_job *jobs;		/* host */
	struct dispatch dispatch;
	struct forward_opt fo;
};

static inline dev_real *model_w(const struct model *m, enum param_kind k, int layer, int expert)
{
	return m->w + params_get(&m->par, k, layer, expert)->off;
}

static inline dev_real *model_g(const struct model *m, enum param_kind k, int layer, int expert)
{
	return m->g + params_get(&m->par, k, layer, expert)->off;
}

/* All products of the model go through these: with BF16 values where the model was opened so,
 * and never. */
void model_gemm(const struct model *m, enum gemm_kind kind, const struct gemm_job *jobs, int n);
void model_gemm_f32(const struct model *m, enum gemm_kind kind, const struct gemm_job *jobs, int n);
/* y(R, n) = x(R, k) W^T + beta y */
void model_linear(const struct model *m, dev_real *y, const dev_real *x, const dev_real *w, int n,
    int k,
    real beta);
/* dx(R, k) = dy(R, n) W + beta dx, and dW += dy^T x */
void model_linear_back(const struct model *m, dev_real *dx, real beta, dev_real *dw,
    const dev_real *dy,
    const dev_real *x,
    const dev_real *w, int n, int k);

/* y(R, w) += a bias(w) of layer l; and its gradient. */
void model_add_bias(struct model *m, int l, enum param_kind bias, dev_real *y, int w);
void model_add_bias_back(struct model *m, int l, enum param_kind bias, const dev_real *dy, int w);

enum { MODEL_MISSES = 3 };	/* a `what` that all ranks share */
/* of random numbers in this forward pass */
uint64_t model_key(const struct model *m, int layer, int what);
/* which sparse layer it is */
int model_sparse_index(const struct config *c, int layer);

void model_attn_forward(struct model *m, int l);	/* x -> mid */
void model_attn_back(struct model *m, int l);		/* dh: of mid -> of x */
/* mid -> out; NULL: only what backward needs */
void model_mlp_forward(struct model *m, int l, dev_real *out);
void model_mlp_back(struct model *m, int l);		/* dh: of out -> of mid */
/* x -> g, u and, unless it is NULL, y */
void model_experts_forward(struct model *m, int l, const struct rows *s);
void model_experts_back(struct model *m, int l, const struct rows *s);
/* The same for the rows in a->xs, in slot order as `first` says, through whichever rank has
 * their experts: xs -> ys; and xs, ys, wslot -> ys, dwslot. All ranks of the group call them, in
 * the same order, those without rows too. */
void model_dispatch_forward(struct model *m, int l, const int32_t *first);
void model_dispatch_back(struct model *m, int l, const int32_t *first);

void model_look_forward(struct model *m, const dev_real *h);
void model_look_back(struct model *m, const dev_real *h);	/* adds to dh */

#endif
