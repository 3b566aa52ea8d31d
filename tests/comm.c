/* Sums, gathers and rows between ranks against what they must be: one process, or mpirun -n 4
 * (tests/mpi.t). */
#include <stdlib.h>
#include <string.h>

#include "base/comm.h"
#include "base/rng.h"
#include "tap.h"

/* What rank r has at i of array a: small integers, so that sums are exact in any order. */
static real value(int r, int a, int64_t i)
{
	return (real)(rng_hash((uint64_t)(r * 64 + a), (uint64_t)i) % 1000);
}

/* The rank at place k of a set of which this one is. */
static int member(enum comm_set s, int k)
{
	int group = comm_count(COMM_GROUP), rank = comm_rank();

	return s == COMM_ALL ? k : s == COMM_GROUP ? rank / group * group + k : rank % group + k *
	    group;
}

static real sum_of(enum comm_set s, int a, int64_t i)
{
	real sum = 0;

	for (int k = 0; k < comm_count(s); k++)
		sum += value(member(s, k), a, i);
	return sum;
}

/* Arrays of one to several rounds, and shorter than there are ranks, all at the same time. */
static void test_sums(void)
{
	static const int64_t size[] = { 3, 0, 40000, 3000017, 1, 2500000, 1200000 };
	static const enum comm_set set[] = { COMM_ALL, COMM_ALL, COMM_PEERS, COMM_ALL, COMM_PEERS,
	    COMM_PEERS, COMM_ALL };
	enum { N = sizeof size / sizeof *size };
	real *x[N], *scratch = calloc((size_t)comm_scratch(3000017, COMM_ALL) + 1, sizeof *scratch);
	bool bad = false;

	comm_exchange_open(scratch, comm_scratch(3000017, COMM_ALL), N);
	for (int turn = 0; turn < 2; turn++) {
		for (int a = 0; a < N; a++) {
			x[a] = malloc((size_t)size[a] * sizeof *x[a] + 1);
			for (int64_t i = 0; i < size[a]; i++)
				x[a][i] = value(comm_rank(), a, i);
			comm_reduce_begin(x[a], size[a], set[a]);
			comm_poll();
		}
		comm_reduce_end();
		for (int a = 0; a < N; a++) {
			int k = comm_place(set[a], comm_rank()), parts = comm_count(set[a]);

			for (int64_t i = comm_cut(size[a], k, parts); i < comm_cut(size[a], k + 1,
			    parts); i++)
				bad |= x[a][i] != sum_of(set[a], a, i);
			comm_gather_begin(x[a], size[a], set[a]);
		}
		for (int a = 0; a < N; a++) {
			if (a != 3)		/* two at once, too */
				comm_gather_end(a + 1);
			for (int64_t i = 0; a != 3 && i < size[a]; i++)
				bad |= x[a][i] != sum_of(set[a], a, i);
		}
		for (int a = 0; a < N; a++)
			free(x[a]);
	}
	comm_exchange_close();
	free(scratch);
	ok(!comm_any(bad), "sums of %d ranks, in parts and gathered", comm_size());
}

/* Rank at place k sends 3 k + j + 1 rows to place j, from the back of its array. */
static void test_rows(void)
{
	enum { W = 5, MOST = 64 };
	int n = comm_count(COMM_GROUP), own = comm_place(COMM_GROUP, comm_rank()), out_at[n],
	    out_n[n], in_at[n], in_n[n], at = MOST;
	real out[MOST * W], in[MOST * W];
	bool bad = false;

	for (int i = 0; i < MOST * W; i++)
		out[i] = value(comm_rank(), 9, i);
	for (int k = 0, sum = 0; k < n; k++) {
		out_n[k] = 3 * own + k + 1;
		out_at[k] = at -= out_n[k];
		in_n[k] = 3 * k + own + 1;
		in_at[k] = sum;
		sum += in_n[k];
	}
	comm_rows(out, in, W, &(struct comm_rows){ out_at, out_n, in_at, in_n });
	for (int k = 0; k < n; k++) {
		int first = MOST;

		for (int j = 0; j <= own; j++)
			first -= 3 * k + j + 1;
		for (int i = 0; i < in_n[k] * W; i++)
			bad |= in[in_at[k] * W + i] != value(member(COMM_GROUP, k), 9,
			    first * W + i);
	}
	ok(!comm_any(bad), "rows within groups of %d", n);
}

static void test_counts(void)
{
	int n = comm_count(COMM_GROUP);
	int32_t own[3] = { comm_rank(), 7, -comm_rank() }, all[3 * n];
	bool bad = false;

	comm_counts(own, 3, all);
	for (int k = 0; k < n; k++)
		bad |= all[3 * k] != member(COMM_GROUP, k) || all[3 * k + 1] != 7 ||
		    all[3 * k + 2] != -member(COMM_GROUP, k);
	ok(!comm_any(bad), "counts within groups");
}

static void test_cuts(void)
{
	bool bad = false;

	for (int64_t n = 0; n < 50; n++)
		for (int parts = 1; parts < 9; parts++)
			for (int k = 0; k < parts; k++) {
				int64_t m = comm_cut(n, k + 1, parts) - comm_cut(n, k, parts);

				bad |= m < n / parts || m > (n + parts - 1) / parts ||
				    comm_cut(n, 0, parts) != 0 || comm_cut(n, parts, parts) != n;
			}
	ok(!bad, "parts differ by one at most");
}

int main(void)
{
	struct err e = {0};

	if (comm_open(&e) < 0)
		err_exit(&e);
	test_cuts();
	test_sums();
	if (comm_size() % 2 == 0) {
		ok(comm_divide(2, &e) == 0 && comm_count(COMM_GROUP) == 2 &&
		    comm_count(COMM_PEERS) == comm_size() / 2,
		    "groups of two");
		test_sums();
		test_rows();
	}
	test_counts();
	ok(comm_divide(comm_size() + 1, &e) < 0 && e.status == EX_USAGE,
	    "groups larger than all are refused");
	return comm_close(tap_done(), &e);
}
