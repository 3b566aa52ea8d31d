/*
 * cpu: rows of the CPU backend that live in files of their own.
 */
#ifndef CHR_CPU_H
#define CHR_CPU_H

#include "backend/backend.h"

/* There is one CPU: its rows do not look at the instance. */
#define CPU_ANY(type, name) type name __attribute__((unused))
#define CPU CPU_ANY(const struct backend *, cpu)

void cpu_attn(CPU, const struct attn_args *a);			/* cpu_attn.c */
void cpu_attn_back(CPU, const struct attn_args *a);
void cpu_kv_put(CPU, const struct kv_put_args *a);			/* cpu_decode.c */
void cpu_attn_cached(CPU, const struct attn_cached_args *a);
void cpu_conv(CPU, const struct conv_args *a);			/* cpu_recur.c */
void cpu_delta(CPU, const struct delta_args *a);
void cpu_gemm_bf16(CPU, enum gemm_kind kind, const struct gemm_job *jobs,
    int n);	/* cpu_bf16.c */
const char *cpu_bf16_isa(void);		/* "amx-bf16", "avx512-bf16" or "portable" */
void cpu_quantize(CPU, dev_byte *rows, const real *x, int64_t n, int w);	/* cpu_quant.c */
void cpu_qgemm(CPU, const struct qgemm_job *jobs, int n);
void cpu_qffn(CPU, const struct qffn_job *jobs, int n);
/* of w.cols values each */
void cpu_gather_blocks(CPU, real *dst, const struct mat *w, const int32_t *rows, int64_t n);
void cpu_route(CPU, const struct route_args *a);			/* cpu_route.c */
void cpu_route_weights(CPU, const struct route_args *a);
void cpu_route_back(CPU, const struct route_args *a);
void cpu_diverge(CPU, const struct diverge_args *a);			/* cpu_diverge.c */

/* Scratch of the calling thread, one per thread: the next call may move it. Grows, never
 * shrinks: steady state allocates nothing. Freed when the thread ends. Not thread-local storage,
 * which would lie in every thread's stack. */
void *cpu_thread_buffer(size_t bytes);

#endif
