/*
 * backend: one table of operations, chosen at run time. Operations act on memory that stays on
 * the device; only put, get and alloc cross. cpu.c is the specification. A missing row fails at
 * open and is named: no silent fallback.
 *
 * All matrices are row-major. `real` is float in programs. Every row is deterministic: the
 * result does not depend on the number of threads. GEMM_NT results of one row of A depend on
 * nothing but that row, B and K: not on M, not on how rows are batched. (Decode relies on it:
 * cached, chunked and full evaluation give the same bytes.)
 */
#ifndef CHR_BACKEND_H
#define CHR_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "backend/kv.h"
#include "base/real.h"
#include "backend/tensor.h"

enum gemm_kind {
	GEMM_NT,	/* C(M,N) = A(M,K) B(N,K)^T + beta C forward of y = x W^T; B may be F32,
			   BF16 or F16 */
	GEMM_NN,	/* C(M,N) = A(M,K) B(K,N)    + beta C	dx = dy W */
	GEMM_TN		/* C(M,N) = A(K,M)^T B(K,N)  + beta C	dW = dy^T x */
};

struct gemm_job {
	real *c; int64_t ldc;
	const real *a; int64_t lda;
	const void *b; int64_t ldb; enum dtype bt;	/* bt is DT_REAL except for GEMM_NT */
	int64_t m, n, k;				/* m 0 is a no-op */
	real beta;					/* 0 (c is not read) or 1 */
};

/* Products with matrices in blocks (quant.h). Rows of activations are quantised by the quantize
 * row, quant_row_bytes(w) apart. As with GEMM_NT, one row of c depends on that row of a and on w
 * only. */
struct qgemm_job {		/* C(m, w.rows) = A(m, w.cols) W^T + beta C */
	real *c; int64_t ldc;
	const void *a;
	struct mat w;
	int64_t m;
	real beta;
};

struct qffn_job {		/* h = silu(A gate^T) * (A up^T), quantised rows of gate.rows
				   values */
	const void *a;
	void *h;
	struct mat gate, up;
	int64_t m;
};

/* Self-attention of training: B sequences of T rows, causal, query t of row b sees keys
 * max(doc_start, t-window+1)..t of the same row. Heads are interleaved in a row: q is (R, H*dq),
 * k (R, G*dq), v (R, G*dv), o (R, H*dv). */
struct attn_args {
	int B, T, H, G, dq, dv;
	int window;			/* 0: none */
	real scale;
	const int32_t *doc_start;	/* (R) index in the sequence of the first token of this
					   token's document; -1: padding, attends to nothing, o
					   is 0 */
	bool bf16;			/* products of values rounded to BF16, as of gemm_bf16 */
	double dropout; uint64_t drop_key;
	const real *q, *k, *v;
	real *o, *lse;			/* lse (R, H) log-sum-exp kept for backward */
	const real *d_o;		/* backward: dO in, */
	real *dq_, *dk, *dv_;		/* gradients out (overwritten) */
};

/* Stores x (n, heads * w) as positions pos..pos+n-1 of a cache (kv.h); n <= slots. */
struct kv_put_args {
	enum kv_type type;
	void *cache;
	int slots, heads, w, pos;
	const real *x;
	int64_t n;
};

/* Attention of inference: n query rows against caches (kv.h). Row i sees the keys of positions
 * lo[i]..hi[i] inclusive (never empty) of its own caches. score = scale * (q . k + q2 . k2): the
 * second part is MLA's rotated keys (k is then the latent, which is also the value); dk2 0
 * leaves it out. Head h reads key/value head h*G/H of k and v, and h*G2/H of k2. The result of a
 * row depends on the keys in its range only: not on n, nor on where in the cache the range lies. */
struct attn_cached_args {
	int n, H, G, dk, dv;
	real scale;
	const real *q; int64_t ldq;		/* (n, H*dk) */
	real *o; int64_t ldo;			/* (n, H*dv) */
	enum kv_type type;
	int slots;				/* of all caches */
	const void *const *kcache, *const *vcache;	/* (n) G heads of dk and of dv values */
	const int32_t *lo, *hi;			/* (n) */
	int G2, dk2;
	const real *q2; int64_t ldq2;		/* (n, H*dk2) */
	const void *const *k2cache;		/* (n) G2 heads of dk2 values */
};

enum diverge_kind {
	DIVERGE_FORWARD,	/* KL(teacher || student) */
	DIVERGE_REVERSE,	/* KL(student || teacher) */
	DIVERGE_JS		/* Jensen-Shannon: mean of the KL of both to their mean; at most
				   ln 2 */
};

/* Rows of logits of a student and of a teacher: the divergence of their distributions at a
 * temperature, softmax(logits / temperature). Rows without a target are passed over: value 0, no
 * gradient. */
struct diverge_args {
	enum diverge_kind kind;
	double temperature;
	int64_t n; int V;
	const real *student, *teacher;		/* (n, V) */
	const int32_t *target;			/* (n) */
	real *value;				/* (n) */
	real *dstudent; double coef;		/* (n, V) += coef * dvalue/dstudent; NULL: not
						   wanted */
};

struct adamw_args {
	real *w, *g, *m, *v;
	int64_t n;
	double lr, beta1, beta2, eps, weight_decay, grad_scale;
	int64_t step;				/* 1-based, for bias correction */
};

struct backend {
	const char *name;
	const char *(*describe)(void);		/* "cpu: avx512, 2 threads" */

	void *(*alloc)(size_t bytes);		/* zeroed, 64-byte aligned; NULL when out of
						   memory */
	void (*free)(void *p);
	void (*put)(void *dev, const void *host, size_t bytes);
	void (*get)(void *host, const void *dev, size_t bytes);
	void (*copy)(void *dst, const void *src, size_t bytes);
	void (*zero)(void *p, size_t bytes);

	/* independent jobs, one parallel region */
	void (*gemm)(enum gemm_kind kind, const struct gemm_job *jobs, int n);

	/* The same with A and B rounded to BF16, to nearest, and sums in FP32: what is computed
	 * from one row of A (of GEMM_TN: one column) depends on nothing but that, B and K here
	 * too. bt is DT_REAL. */
	void (*gemm_bf16)(enum gemm_kind kind, const struct gemm_job *jobs, int n);

	void (*quantize)(void *rows, const real *x, int64_t n, int w);
	void (*qgemm)(const struct qgemm_job *jobs, int n);
	void (*qffn)(const struct qffn_job *jobs, int n);

	/* y(n,w) = x * rsqrt(mean(x^2) + eps) * g; rstd(n) kept for backward (may be NULL). In
	 * place (y == x) allowed in inference. */
	void (*rmsnorm)(real *y, real *rstd, const real *x, const real *g, int64_t n, int w,
	    double eps);
	/* dx += ..., dg += ...; dy and dx may be the same array only if add_dx is false (then dx
	 * is overwritten) */
	void (*rmsnorm_back)(real *dx, real *dg, const real *dy, const real *x, const real *g,
	    const real *rstd,
	    int64_t n, int w, bool add_dx);

	/* Rotates heads of width w at x + row*ld + head*hs, in place. table (positions, 2, w):
	 * cosines then sines. back: the transpose, for gradients. */
	void (*rope)(real *x, int64_t ld, int64_t hs, int64_t n, int heads, int w,
	    const real *table,
	    const int32_t *pos, bool back);

	/* n pieces of w values, from src + i*lds to dst + i*ldd */
	void (*copy2d)(real *dst, int64_t ldd, const real *src, int64_t lds, int64_t n, int w);

	void (*attn)(const struct attn_args *a);
	void (*attn_back)(const struct attn_args *a);
	void (*kv_put)(const struct kv_put_args *a);
	void (*attn_cached)(const struct attn_cached_args *a);

	/* y = silu(g) * u */
	void (*swiglu)(real *y, const real *g, const real *u, int64_t n);
	void (*swiglu_back)(real *dg, real *du, const real *dy, const real *g, const real *u,
	    int64_t n);

	/* Rows of router logits (n,E) -> softmax probs (n,E, in place), K best ids (descending;
	 * ties: lowest id) and weights (n,K) = prob, divided by their sum + 1e-20 when norm. */
	void (*route)(real *logits, int32_t *ids, real *weights, int64_t n, int E, int K,
	    bool norm);
	/* The weights that route would give a choice made elsewhere. */
	void (*route_weights)(real *weights, const real *probs, const int32_t *ids, int64_t n,
	    int E, int K, bool norm);
	/* dlogits (n,E, overwritten) from dweights (n,K) and dprobs (n,E; may be NULL) */
	void (*route_back)(real *dlogits, const real *dweights, const real *dprobs,
	    const real *probs,
	    const int32_t *ids, const real *weights, int64_t n, int E, int K, bool norm);

	/* dst[i] = src[rows[i]] */
	void (*gather)(real *dst, const real *src, const int32_t *rows, int64_t n, int w);
	/* dst[i] += sum_j coef[i*k+j] * src[slot[i*k+j]], j in order; slot < 0 is passed over;
	 * coef NULL means 1 */
	void (*combine)(real *dst, const real *src, const int32_t *slot, const real *coef,
	    int64_t n, int k, int w);
	void (*dot_rows)(real *out, const real *a, const int32_t *arow, const real *b,
	    const int32_t *brow,
	    /* out[i] = a[arow[i]] . b[brow[i]] */
	    int64_t n, int w);
	/* table[id[i]] += src[i], deterministic order */
	void (*scatter_add)(real *table, const real *src, const uint32_t *ids, int64_t n, int w);

	void (*axpy)(real *y, const real *x, double a, int64_t n);		/* y += a x */
	void (*scale)(real *x, double a, int64_t n);
	void (*scale_rows)(real *x, const real *s, int64_t n, int w);
	void (*silu)(real *y, const real *x, int64_t n);
	void (*silu_back)(real *dx, const real *dy, const real *x, int64_t n);	/* dx may be dy */
	void (*softmax)(real *x, int64_t n, int w);				/* rows in place */
	/* same call on gradients */
	void (*dropout)(real *x, int64_t n, double p, uint64_t key);
	/* row i += s[i] * uniform in (-1, 1) */
	void (*noise)(real *x, const real *s, int64_t n, int w, uint64_t key);

	/* Rows of logits (n,V): logp[i] = log softmax(logits)[target[i]] (0 where target < 0).
	 * When coef is given the logits are overwritten by coef[i] * (onehot - softmax), the
	 * gradient of sum_i coef[i]*logp[i]. */
	void (*logprob)(real *logits, real *logp, const int32_t *target, const real *coef,
	    int64_t n, int V);

	void (*diverge)(const struct diverge_args *a);

	double (*sumsq)(const real *x, int64_t n);
	/* Loshchilov, Hutter 2019, bias-corrected */
	void (*adamw)(const struct adamw_args *a);
};

/* "cpu", or NULL/"auto" for the best present. NULL with EX_UNAVAILABLE naming what is missing. */
const struct backend *backend_open(const char *name, struct err *e);
extern const struct backend backend_cpu;


#endif
