/* What the kernels for experts in blocks and in floats reach: bytes of weights per second for
 * one row (more memory than any cache holds), operations for more rows. build/bench/quant
 * [THREADS] */
#include <stdio.h>
#include <stdlib.h>

#include "measure/kernel_rate.h"
#include "base/pool.h"
#include "base/isa.h"

#define REPS 7
#define EXPERTS 96
#define D 1024
#define F 768

static int less(const void *a, const void *b)
{
	return *(const double *)a > *(const double *)b ? 1 : -1;
}

/* Least, median, most of REPS passes over all experts with m rows each. */
static void pass(const void *w, enum dtype t, int m)
{
	struct kernel_rate_ffn f;
	struct err e = { 0 };
	double s[REPS], bytes, ops;

	if (kernel_rate_ffn_open(&f, t, D, F, m, EXPERTS, w, &e) < 0)
		err_exit(&e);
	for (int r = -1; r < REPS; r++)
		s[r < 0 ? 0 : r] = kernel_rate_ffn_seconds(&f);
	qsort(s, REPS, sizeof(*s), less);
	bytes = kernel_rate_ffn_bytes(&f) / 1e9;
	ops = kernel_rate_ffn_ops(&f) / 1e9;
	printf("| %s | %d | %.1f [%.1f-%.1f] | %.0f [%.0f-%.0f] |\n", dtype_name(t), m,
	    bytes / s[REPS / 2], bytes / s[REPS - 1], bytes / s[0],
	    ops / s[REPS / 2], ops / s[REPS - 1], ops / s[0]);
	kernel_rate_ffn_close(&f);
}

int main(int argc, char **argv)
{
	size_t bytes = kernel_rate_expert_bytes(DT_F32, D, F) * EXPERTS;
	double best = 0;
	void *w;

	pool_init(argc > 1 ? atoi(argv[1]) : 0);
	if ((w = kernel_rate_weights(bytes)) == NULL)
		return 71;
	for (int r = 0; r < REPS; r++) {
		double x = kernel_rate_read_rate(w, bytes);

		best = x > best ? x : best;
	}
	printf("%s, %d threads; reading memory: %.1f GB/s\n\n| type | rows | GB/s of weights | "
	    "GOP/s |\n|---|---|---|---|\n",
	    isa_name(), pool_threads(), best / 1e9);
	for (enum dtype t = DT_Q8; t < DTYPES; t++)
		for (int m = 1; m <= 128; m *= m == 1 ? 4 : m == 4 ? 4 : 8)
			pass(w, t, m);
	for (enum dtype t = DT_F32; t <= DT_F16; t++)
		for (int m = 1; m <= 128; m *= m == 1 ? 4 : m == 4 ? 4 : 8)
			pass(w, t, m);
	free(w);
	return 0;
}
