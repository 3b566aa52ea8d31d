/*
 * cpu_bf16: matrix products of BF16 values with sums in FP32, for the row gemm_bf16. Operands
 * are rounded (to nearest, ties to even) into tiles as they are read: 16 rows of A, or 16
 * columns of B, by 16 pairs of neighbours along k. The tiles of a panel follow each other along
 * k. A tile of A is (row, pair), a tile of B (pair, column); a pair is one word, its even k in
 * the low half. That is what AMX and AVX512-BF16 multiply, and what plain C can as well.
 */
#ifndef CHR_CPU_BF16_H
#define CHR_CPU_BF16_H

#include <stdbool.h>
#include <stdint.h>

#include "base/real.h"

#define BF16_TILE 16			/* rows, columns, pairs */
#define BF16_TILE_K 32
#define BF16_TILE_WORDS 256

struct bf16_kernels {
	const char *isa;
	/* One panel: rows (<= 16) rows, or columns, of k values in tiles, zeros at the edges.
	 * k_major: value (row, p) is at x[p * ld + row], else at x[row * ld + p]. pair_major:
	 * for B. */
	void (*pack)(uint32_t *tile, const real *x, int64_t ld, int rows, int k, bool k_major,
	    bool pair_major);
	/* C(m, n) = A B, or += when add, m and n at most 32, from one or two panels of `tiles`
	 * tiles each. Writes C in whole tiles. One element's sum depends on its row, its column
	 * and k alone. */
	void (*mul)(int m, int n, int tiles, const uint32_t *a, const uint32_t *b, real *c,
	    int64_t ldc, bool add);
	void (*begin)(void), (*end)(void);	/* around calls of mul by one thread; NULL:
						   nothing */
};

extern const struct bf16_kernels bf16_kernels_portable;
#if defined(__x86_64__) && !defined(CHR_DOUBLE)
extern const struct bf16_kernels bf16_kernels_avx512, bf16_kernels_amx;
bool bf16_have_avx512(void), bf16_have_amx(void);	/* and, of AMX, may we use it: asks the
							   kernel for it */
#endif

/* C(m, n) = A(m, k) B(k, n), or += when add, on one thread, between begin and end. a_k_major: A
 * is given as (k, m), and b_k_major: B as (k, n), else as (n, k). k is one block. scratch holds
 * CPU_BF16_WORDS(m, n, k). */
#define CPU_BF16_WORDS(m, n, k) (((m) + 15) / 16 * 16 + ((n) + 31) / 32 * 32) * \
	(((k) + 31) / 32 * 16)
void cpu_bf16_mul(uint32_t *scratch, int m, int n, int k, const real *a, int64_t lda,
    bool a_k_major, const real *b,
    int64_t ldb, bool b_k_major, real *c, int64_t ldc, bool add);

/* The kernels that gemm_bf16 uses: those that go with cpu_kernels(), or the given ones (tests;
 * NULL: as before). */
const struct bf16_kernels *cpu_bf16_kernels(void);
void cpu_bf16_force(const struct bf16_kernels *k);

#endif
