/*
 * cpu: rows of the CPU backend that live in files of their own.
 */
#ifndef CHR_CPU_H
#define CHR_CPU_H

#include "backend/backend.h"

void cpu_attn(const struct attn_args *a);			/* cpu_attn.c */
void cpu_attn_back(const struct attn_args *a);
void cpu_kv_put(const struct kv_put_args *a);			/* cpu_decode.c */
void cpu_attn_cached(const struct attn_cached_args *a);
void cpu_gemm_bf16(enum gemm_kind kind, const struct gemm_job *jobs, int n);	/* cpu_bf16.c */
const char *cpu_bf16_isa(void);		/* "amx-bf16", "avx512-bf16" or "portable" */
void cpu_quantize(void *rows, const real *x, int64_t n, int w);	/* cpu_quant.c */
void cpu_qgemm(const struct qgemm_job *jobs, int n);
void cpu_qffn(const struct qffn_job *jobs, int n);
void cpu_diverge(const struct diverge_args *a);			/* cpu_diverge.c */

/* Scratch of the calling thread, one per thread: the next call may move it. Grows, never
 * shrinks: steady state allocates nothing. Freed when the thread ends. Not thread-local storage,
 * which would lie in every thread's stack. */
void *cpu_thread_buffer(size_t bytes);

#endif
