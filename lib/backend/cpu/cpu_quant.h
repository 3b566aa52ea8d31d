/*
 * cpu_quant: the inner loops for matrices in blocks, one set per instruction set; all give the
 * same bytes. cpu_quant.c picks one at run time and spreads the work over threads.
 */
#ifndef CHR_CPU_QUANT_H
#define CHR_CPU_QUANT_H

#include "backend/quant.h"
#include "base/isa.h"

#define QUANT_ROWS 8		/* rows of activations that mul takes at most */

struct quant_kernels {
	const char *isa;
	/* out(m, 16) = m <= QUANT_ROWS consecutive rows of activations times a panel of type t */
	void (*mul)(float *out, const void *panel, enum dtype t, int cols, const void *rows, int m);
	/* One row: in each block d = max |x| / 127, q = x * (1 / d) to nearest, ties to even */
	void (*row)(struct quant_row to, const float *x, int cols);
};

extern const struct quant_kernels quant_kernels_portable;
#if defined(__x86_64__) && !defined(CHR_DOUBLE)
extern const struct quant_kernels quant_kernels_avx2, quant_kernels_vnni;
#endif

/* In use: follows isa_name(). */
const struct quant_kernels *quant_kernels(void);

#endif
