/*
 * backend: one table of operations, chosen at run time. Operations act on memory that stays on
 * the device; only put, get and alloc cross. cpu.c is the specification. A missing row fails at
 * open and is named: no silent fallback.
 *
 * Pointers of operations are of the device (tensor.h says what the host may do with them), and
 * so are those inside of jobs and arguments; the jobs, the arguments and tables of pointers
 * themselves are memory of the host. There may be several instances, one of each device.
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
#include "backend/glu.h"
#include "backend/kv.h"
#include "base/real.h"
#include "backend/router.h"
#include "backend/tensor.h"

enum gemm_kind {
	GEMM_NT,	/* C(M,N) = A(M,K) B(N,K)^T + beta C forward of y = x W^T; B may be F32,
			   BF16, F16, F8 or MXFP4 (the last two in panels of quant.h) */
	GEMM_NN,	/* C(M,N) = A(M,K) B(K,N)    + beta C	dx = dy W */
	GEMM_TN		/* C(M,N) = A(K,M)^T B(K,N)  + beta C	dW = dy^T x */
};

struct gemm_job {
	dev_real *c; int64_t ldc;
	const dev_real *a; int64_t lda;
	/* bt is DT_REAL except for GEMM_NT; panels have no ldb */
	const void *b; int64_t ldb; enum dtype bt;
	int64_t m, n, k;				/* m 0 is a no-op */
	real beta;					/* 0 (c is not read) or 1 */
};

/* Products with matrices in Q8, Q4 or Q4A (quant.h). Rows of activations are quantised by the
 * quantize row, quant_row_bytes(w) apart. As with GEMM_NT, one row of c depends on that row of a
 * and on w only. */
struct qgemm_job {		/* C(m, w.rows) = A(m, w.cols) W^T + beta C */
	dev_real *c; int64_t ldc;
	const dev_byte *a;
	struct mat w;
	int64_t m;
	real beta;
};

struct qffn_job {		/* h = glu(A gate^T, A up^T), quantised rows of gate.rows values */
	const dev_byte *a;
	dev_byte *h;
	struct mat gate, up;
	int64_t m;
	const dev_real *gate_bias, *up_bias;	/* (gate.rows) added to the products; NULL: none */
	struct glu glu;
};

/* Self-attention of training: B sequences of T rows, causal, query t of row b sees keys
 * max(doc_start, t-window+1)..t of the same row. Heads are interleaved in a row: q is (R, H*dq),
 * k (R, G*dq), v (R, G*dv), o (R, H*dv). */
struct attn_args {
	int B, T, H, G, dq, dv;
	int window;			/* 0: none */
	real scale;
	const dev_i32 *doc_start;	/* (R) index in the sequence of the first token of this
					   token's document; -1: padding, attends to nothing, o
					   is 0 */
	bool bf16;			/* products of values rounded to BF16, as of gemm_bf16 */
	double dropout; uint64_t drop_key;
	const dev_real *q, *k, *v;
	const dev_real *sinks;			/* (H) scores of one key more, whose value is 0;
						   NULL: none */
	dev_real *o, *lse;			/* lse (R, H) log-sum-exp kept for backward */
	const dev_real *d_o;		/* backward: dO in, */
	dev_real *dq_, *dk, *dv_;		/* gradients out (overwritten) */
	dev_real *dsinks;			/* (H) added to; only with sinks */
};

/* Stores x (n, heads * w) as positions pos..pos+n-1 of a cache (kv.h); n <= slots. */
struct kv_put_args {
	enum kv_type type;
	void *cache;
	int slots, heads, w, pos;
	const dev_real *x;
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
	const dev_real *q; int64_t ldq;		/* (n, H*dk) */
	dev_real *o; int64_t ldo;			/* (n, H*dv) */
	enum kv_type type;
	int slots;				/* of all caches */
	const void *const *kcache, *const *vcache;	/* (n) G heads of dk and of dv values */
	const dev_i32 *lo, *hi;			/* (n) */
	const dev_real *sinks;			/* (H) as in attn_args */
	int G2, dk2;
	const dev_real *q2; int64_t ldq2;		/* (n, H*dk2) */
	const void *const *k2cache;		/* (n) G2 heads of dk2 values */
};

/* Rows row0..row0+n-1 are the next tokens of one sequence; `state` is what its tokens before
 * left, zeros when there are none, and is changed to what these leave. */
struct recur_seg {
	dev_real *state;
	int row0, n;
};

/* Each channel convolved with weights of its own over the last L inputs, the newest last:
 * y = w[0] x[t-L+1] + .. + w[L-1] x[t] (+ bias), then silu where asked. The state is the last
 * L - 1 inputs, (L - 1, C), oldest first. As of delta, the result of a row does not depend on how
 * the tokens of its sequence are cut into calls, nor on other sequences. */
struct conv_args {
	const struct recur_seg *seg; int n;	/* sequences */
	int64_t at;				/* of the state of this row in theirs */
	int C, L;				/* L >= 2 */
	const dev_real *x; int64_t ldx;		/* (rows, C) */
	dev_real *y; int64_t ldy;		/* (rows, C), not x */
	const dev_real *w, *bias;		/* (C, L); (C), or NULL */
	bool silu;
};

/* The gated delta rule (Yang, Kautz, Hatamizadeh, arXiv:2412.06464), token by token. Each of H
 * heads has a state S (dk, dv); with k and q of length one (x / sqrt(x . x + 1e-6)) and q divided
 * by sqrt(dk),
 *	S = d S + k (beta (v - (d S)^T k))^T,	o = S^T q,
 *	d = exp(-exp(a_log) log(1 + exp(a + dt))),	beta = 1 / (1 + exp(-b)).
 * Head h reads head h*G/H of q and k. */
struct delta_args {
	const struct recur_seg *seg; int n;
	int64_t at;				/* of (H, dk, dv) in the states of sequences */
	int H, G, dk, dv;
	const dev_real *q, *k; int64_t ldq, ldk;	/* (rows, G*dk) */
	const dev_real *v; int64_t ldv;		/* (rows, H*dv) */
	const dev_real *a, *b;			/* (rows, H) */
	const dev_real *a_log, *dt;		/* (H) */
	dev_real *o;				/* (rows, H*dv) */
};

struct route_args {
	const struct router *r;
	int64_t n;
	int E, K;
	/* (E) added to the scores for the choice only; NULL: none */
	const dev_real *bias;
	/* (n, E) route: logits in; shares of the scores, that sum to 1, out */
	dev_real *probs;
	dev_real *sums;			/* (n) with sigmoid scores, their sums; NULL: not kept */
	dev_i32 *ids;			/* (n, K) */
	dev_real *weights;		/* (n, K) */
	/* back */
	const dev_real *dweights, *dprobs;	/* (n, K); (n, E), may be NULL */
	dev_real *dlogits;		/* (n, E) overwritten */
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
	const dev_real *student, *teacher;		/* (n, V) */
	const dev_i32 *target;			/* (n) */
	dev_real *value;				/* (n) */
	dev_real *dstudent; double coef;	/* (n, V) += coef * dvalue/dstudent; NULL: not
						   wanted */
};

struct adamw_args {
	dev_real *w, *g, *m, *v;
	int64_t n;
	double lr, beta1, beta2, eps, weight_decay, grad_scale;
	int64_t step;				/* 1-based, for bias correction */
};

struct backend {
	const char *name;
	size_t size;			/* of this struct: another version of it is refused */
	bool host_reads;		/* what alloc gives is memory of the host as well */
	void *own;			/* the instance's: which device, its queues */
#define ROW(type, name, args) type (*name) args;
#include "backend/rows.h"
#undef ROW
};

/* "cpu", "blas" (blas/blas.h), or NULL/"auto" for the best present. Any other NAME or
 * NAME:DEVICE is a third party's: the shared object NAME.so in a directory of CHR_BACKEND_PATH
 * (divided by colons), whose function chr_backend_probe is a backend_probe. NULL with
 * EX_UNAVAILABLE naming what is missing: the backend, the first row that it does not have. */
const struct backend *backend_open(const char *name, struct err *e) CHR_MUST_CHECK;

/* The same for a trainer of a model of this width: "auto" is then blas where it is there and
 * measures faster by a factor that noise does not reach. Below BACKEND_WIDE it has not won
 * anywhere, and is not asked. */
#define BACKEND_WIDE 1024
#define BACKEND_WINS 1.15
const struct backend *backend_open_training(const char *name, int width, struct err *e)
    CHR_MUST_CHECK;
extern const struct backend backend_cpu;
/* For who computes on the host, and leaves some of it to rows of backend_cpu: they work on any
 * memory of the host. */
dev_real *backend_cpu_memory(real *host);

/* Opens a device ("": the first) and returns its instance, which lasts as long as the process.
 * NULL, with e->status and e->msg set, when there is none. cpu: for what it leaves to it. */
typedef const struct backend *backend_probe(const char *device, const struct backend *cpu,
    struct err *e);

/* A copy of device memory for the host: none where it reads that itself, else grown as needed and
 * kept. */
struct mirror { void *p; size_t size; };

/* n bytes of device memory to read: in place, or a copy made now. */
const void *backend_read(const struct backend *be, const void *dev, struct mirror *m, size_t n);
/* Where to write what n bytes are to be, which does not hold what is there; and, with any part of
 * both, the end of writing. Between them, fetch makes it hold that. */
void *backend_draft(const struct backend *be, void *dev, struct mirror *m, size_t n);
void backend_settle(const struct backend *be, void *dev, const void *draft, size_t n);
void backend_fetch(const struct backend *be, void *draft, const void *dev, size_t n);
void backend_mirror_free(struct mirror *m);

#endif
