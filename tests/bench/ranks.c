/*
 * What a step of several ranks exchanges: the gradients of N million parameters to their owners,
 * the weights back, and a small sum. Bytes are those that a rank sends.
 *
 *	mpirun -n 2 build/bench/ranks [N]
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/comm.h"
#include "base/progress.h"

#define ROUNDS 15

enum { REDUCE, GATHER, SUM, KINDS };

/* The fastest of several times. */
static double seconds(int kind, real *x, int64_t n)
{
	double t, best = 1e9, v[4] = {0};

	for (int i = 0; i < ROUNDS; i++) {
		comm_barrier();
		t = progress_clock();
		if (kind == REDUCE) {
			comm_reduce_begin(x, n, COMM_ALL);
			comm_reduce_end();
		} else if (kind == GATHER) {
			comm_gather_begin(x, n, COMM_ALL);
			comm_gather_end(1);
		} else
			comm_sum(v, 4);
		t = progress_clock() - t;
		comm_max(&t, 1);
		best = t < best ? t : best;
	}
	return best;
}

int main(int argc, char **argv)
{
	static const char *const name[] = { "gradients", "weights", "small sum" };
	int64_t n = (argc > 1 ? atoi(argv[1]) : 16) * (int64_t)1000000;
	struct err e = {0};
	real *x, *scratch;
	int ranks;

	err_init(argv[0]);
	if (comm_open(&e) < 0)
		err_exit(&e);
	ranks = comm_size();
	x = calloc((size_t)n, sizeof *x);
	scratch = calloc((size_t)comm_scratch(n, COMM_ALL) + 1, sizeof *scratch);
	if (x == NULL || scratch == NULL)
		err_die(EX_OSERR, "out of memory");
	comm_exchange_open(scratch, comm_scratch(n, COMM_ALL), 1);
	for (int kind = 0; kind < KINDS && ranks > 1; kind++) {
		double s = seconds(kind, x, n), bytes = kind == SUM ? 0
		    : (double)(n * (ranks - 1) / ranks) * sizeof *x;

		printf("ranks: %d of %lld M parameters, %-9s %9.3f ms  %6.2f GB/s a rank\n", ranks,
		    (long long)(n / 1000000),
		    name[kind], s * 1e3, bytes / s / 1e9);
	}
	if (ranks == 1)
		printf("ranks: one has nobody to exchange with; mpirun -n 2 %s\n", argv[0]);
	comm_exchange_close();
	free(x);
	free(scratch);
	return comm_close(0, &e);
}
