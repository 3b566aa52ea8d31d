/*
 * cpu_kernels: the single-threaded inner loops of the CPU backend. cpu_template.h is written
 * once and compiled for each instruction set; cpu.c picks one table at run time and spreads the
 * work over threads.
 */
#ifndef CHR_CPU_KERNELS_H
#define CHR_CPU_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backend/glu.h"
#include "backend/kv.h"
#include "base/isa.h"
#include "base/real.h"
#include "backend/tensor.h"

struct softmax {		/* of one head, on its way over the keys */
	real max, sum;
};

/* Channels of the row conv, c (<= CPU_CONV_W) of n rows. */
#define CPU_CONV_W 64
struct conv_piece {
	const real *past;	/* (L - 1, c) inputs before the first row, ldp apart */
	const real *x;		/* (n, c) */
	real *y;		/* (n, c) */
	const real *w;		/* (L, CPU_CONV_W) weights, turned */
	const real *bias;	/* (c), or NULL */
	int64_t ldp, ldx, ldy;
	int L;
	bool silu;
};

struct delta_piece {		/* n tokens of one head of the row delta */
	real *s;		/* (dk, dv) state */
	const real *q, *k;	/* (n, dk) of length one, q scaled */
	const real *v;		/* (n, dv) */
	real *o;		/* (n, dv) */
	const real *decay, *beta;	/* (n) */
	int64_t ldv, ldo;
	int n, dk, dv;
};

struct cpu_kernels {
	const char *isa;
	/* C(m,n) = A(m,k) B(n,k)^T + beta C. Lanes run along k; the sum of one element depends
	 * on its row and column alone, never on the tile it falls in. */
	void (*nt)(int m, int n, int k, const real *a, int64_t lda, const real *b, int64_t ldb,
	    real *c, int64_t ldc,
	    real beta);
	/* nt of one row with a BF16 or F16 B, n a multiple of 8: the same sums; and such values
	 * as floats. NULL: not here. */
	void (*narrow)(int n, int k, const real *a, const void *b, int64_t ldb, enum dtype t,
	    real *c, real beta);
	void (*widen)(real *dst, const void *src, enum dtype t, int64_t n);
	/* nt of one row with the 16 rows of a panel in F8 or MXFP4 (quant.h): the same sums; and
	 * such a panel as floats (16, k). NULL: not here. */
	void (*panel)(int k, const real *a, const void *w, enum dtype t, real *c, real beta);
	void (*unfold)(real *dst, const void *w, enum dtype t, int k);
	/* C(m,n) = sum_p A(i,p) B(p,j) + beta C with A(i,p) = a[i*ars + p*acs]; p ascending for
	 * each element. */
	void (*nn)(int m, int n, int k, const real *a, int64_t ars, int64_t acs, const real *b,
	    int64_t ldb,
	    real *c, int64_t ldc, real beta);
	void (*softmax)(real *x, int64_t n, int w);
	/* exp(x - max) in place over w values, returns the sum */
	real (*exp_sum)(real *x, int w, real max);
	real (*max)(const real *x, int w);
	void (*swiglu)(real *y, const real *g, const real *u, int64_t n, struct glu glu);
	void (*swiglu_back)(real *dg, real *du, const real *dy, const real *g, const real *u,
	    int64_t n, struct glu glu);
	void (*rmsnorm)(real *y, real *rstd, const real *x, const real *g, int64_t n, int w,
	    double eps);
	void (*rmsnorm_dx)(real *dx, const real *dy, const real *x, const real *g, const real *rstd,
	    int64_t n, int w,
	    int add);
	void (*rmsnorm_dg)(real *dg, const real *dy, const real *x, const real *rstd, int64_t n,
	    int w);
	real (*dot)(const real *a, const real *b, int n);
	void (*axpy)(real *y, const real *x, real a, int64_t n);
	void (*adamw)(real *w, real *m, real *v, const real *g, int64_t n, const real c[8]);
	double (*sumsq)(const real *x, int64_t n);

	/* Of attn_cached (cpu_cached.h), for heads that read the same n keys (n, w) and values
	 * (n, w). Every table gives the same bytes, and cutting n or heads into several calls
	 * changes none. */
	/* += q.k */
	void (*scores)(real *s, int64_t lds, const real *q, int64_t ldq, int heads, const real *k,
	    int n, int w);
	/* scores to weights; o rescaled */
	void (*soften)(struct softmax *h, real *s, int n, real scale, real *o, int w);
	/* += p v */
	void (*values)(real *o, int64_t ldo, const real *p, int64_t ldp, int heads, const real *v,
	    int n, int w);
	/* lossy types */
	void (*unpack)(real *x, const void *rows, enum kv_type t, int n, int w);
	/* cpu_recur.h: the same bytes from every table, however rows are cut */
	void (*conv)(const struct conv_piece *p, int c, int n);
	void (*delta)(const struct delta_piece *p);
};

extern const struct cpu_kernels cpu_kernels_portable;
#if defined(__x86_64__) && !defined(CHR_DOUBLE)
extern const struct cpu_kernels cpu_kernels_avx2, cpu_kernels_avx512;
#endif

/* Asks for part t of `parts` of a matrix of rows of w values, ld apart, that is read soon: its
 * cache lines, in order. Inline whatever the compiler thinks, and without a division for each:
 * among the tiles of a product both cost more than they bring. */
static inline __attribute__((always_inline)) void cpu_ask(const real *x, int64_t ld, int rows,
    int w, int t, int parts)
{
	const int line = 64 / (int)sizeof *x;
	int per = (w + line - 1) / line, at = rows * per * t / parts, n = rows * per * (t + 1) /
	    parts - at, left;

	if (n == 0)
		return;
	x += at / per * ld + at % per * line;
	left = per - at % per;
	for (; n > 0; n--, x += line) {
		__builtin_prefetch(x, 0, 2);
		if (--left == 0) {
			left = per;
			x += ld - per * line;
		}
	}
}

/* The table in use; set by isa_force() and at first use. */
const struct cpu_kernels *cpu_kernels(void);
int64_t *cpu_first_tasks(int n);	/* cpu.c: of products cut into tasks; for the thread that
					   owns the pool */

#endif
