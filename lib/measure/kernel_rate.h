/*
 * kernel_rate: what the processor and its memory give, in the kernels that models are computed
 * with: the ceilings that a model's speed is held against. Each call is one sample; threads are
 * those of the pool (pool_init first).
 *
 *	double *w = kernel_rate_weights(bytes);
 *	printf("%g bytes/s\n", kernel_rate_read_rate(w, bytes));
 */
#ifndef CHR_KERNEL_RATE_H
#define CHR_KERNEL_RATE_H

#include "backend/backend.h"

/* Memory to measure on, in huge pages where there are any, filled with bytes that are small
 * numbers whether read as floats, as half-precision scales or as blocks. NULL: out of memory.
 * free() it. */
void *kernel_rate_weights(size_t bytes);

/* bytes per second that all threads read it with */
double kernel_rate_read_rate(const void *p, size_t bytes);
double kernel_rate_fma_rate(void);		/* FLOP/s of multiply-adds in registers
						   (AVX-512); 0: not known for this processor */

struct kernel_rate_gemm {			/* a product of floats: (m, k) by (n, k)
						   transposed, or as the kind says */
	enum gemm_kind kind;
	struct gemm_job job;
	int calls;			/* products in a sample */
};

/* EX_OSERR */
int kernel_rate_gemm_open(struct kernel_rate_gemm *g, enum gemm_kind kind, int m, int n, int k,
    struct err *e) CHR_MUST_CHECK;
/* FLOP/s of the row gemm_train, or gemm_bf16, of a backend of the CPU */
double kernel_rate_gemm_rate(const struct kernel_rate_gemm *g, const struct backend *be, bool bf16);
void kernel_rate_gemm_close(struct kernel_rate_gemm *g);

struct kernel_rate_ffn {			/* experts in blocks or floats, each on the same
						   rows of activations */
	enum dtype t;
	int D, F, rows, experts;
	const char *w;			/* borrowed */
	size_t one, all;		/* bytes of gate or up, and of an expert */
	dev_real *x, *y;
	dev_byte *a, *h;
	dev_real *gate, *up;		/* (AT_ONCE, rows, F), of floats */
};

size_t kernel_rate_expert_bytes(enum dtype t, int D, int F);
/* w: experts * kernel_rate_expert_bytes(t, D, F) bytes of kernel_rate_weights(). */
int kernel_rate_ffn_open(struct kernel_rate_ffn *f, enum dtype t, int D, int F, int rows,
    int experts, const void *w, struct err *e) CHR_MUST_CHECK;
double kernel_rate_ffn_seconds(const struct kernel_rate_ffn *f);	/* of all experts once */
/* in that time: additions and multiplications, */
double kernel_rate_ffn_ops(const struct kernel_rate_ffn *f);
double kernel_rate_ffn_bytes(const struct kernel_rate_ffn *f);	/* and bytes of weights read */
void kernel_rate_ffn_close(struct kernel_rate_ffn *f);

#endif
