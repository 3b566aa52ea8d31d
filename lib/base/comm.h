/*
 * comm: the ranks of a job, one program started n times by mpirun or srun, over MPI where the
 * build has it.
 *
 *	if (comm_open(&e) < 0)			(under no launcher: one rank, and MPI is not
 *						touched)
 *		err_exit(&e);
 *	comm_sum(v, n);				(on every rank, in the same order)
 *	if (comm_agree(rc, &e) < 0) ...		(all go on or all end, and one message says why)
 *	return comm_close(rc, &e);
 *
 * With one rank every call returns at once and changes nothing. A rank that exits before
 * comm_close() ends the whole job with its status. Ranks above 0 warn of nothing and their
 * standard output goes nowhere: rank 0 speaks for the job. Sums are taken in an order that
 * depends on the number of ranks only, so a run can be repeated byte for byte.
 *
 * Standard input belongs to rank 0; JSONL from it reaches every rank (json.h), which must then
 * read in the same order.
 */
#ifndef CHR_COMM_H
#define CHR_COMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/real.h"

/* EX_UNAVAILABLE: a launcher started several tasks and this build has no MPI, or MPI sees only
 * one of them. */
int comm_open(struct err *e) CHR_MUST_CHECK;
/* The program's end: gives back rc. That of rank 0 is the job's: the others have 0 (and *e,
 * whose status is then 0 too, has no message), or their launcher might stop rank 0 before it has
 * said what there is to say. */
int comm_close(int rc, struct err *e);
_Noreturn void comm_abort(int status);		/* ends all ranks at once */

bool comm_launched(void);			/* by mpirun or srun, be it as the only rank */
int comm_rank(void);				/* from 0 */
int comm_size(void);
int comm_local(void);				/* ranks on this machine, which share its memory */
/* For plans of a job that is not this one: answers to questions of numbers are as if there were
 * so many ranks, in groups. */
int comm_suppose(int ranks, int group, struct err *e) CHR_MUST_CHECK;
/* For pool_init(): as asked, but where that is 0 (all), ranks on one machine that were not given
 * CPUs of their own divide them. */
int comm_threads(int asked);

/* Over all ranks, the result on all. Exact for integers below 2^53. */
void comm_sum(double *x, int n);
void comm_max(double *x, int n);
bool comm_any(bool x);
void comm_bcast(void *p, size_t n);		/* from rank 0 */
void comm_share(void *p, size_t n, int rank);	/* from this rank */
void comm_barrier(void);

/* rc below 0 on any rank: -1 on all, with *e of the first of them; its message is kept by rank 0
 * only, which names the rank. Else rc. */
int comm_agree(int rc, struct err *e) CHR_MUST_CHECK;

/* Some of the ranks, numbered from 0 in their order. After comm_divide(n) a group is n
 * neighbours, and the peers of a rank are those with its place in the other groups; before, a
 * group is one rank, and all are peers. */
enum comm_set { COMM_ALL, COMM_GROUP, COMM_PEERS };

/* once; EX_USAGE: the ranks do not divide by n */
int comm_divide(int n, struct err *e) CHR_MUST_CHECK;
int comm_count(enum comm_set s);
int comm_place(enum comm_set s, int rank);	/* of a rank in its own set */

/* An array of n entries belongs to a set in parts, nearly equal: part k begins here. */
static inline int64_t comm_cut(int64_t n, int k, int parts)
{
	return n / parts * k + n % parts * k / parts;
}

/* Sums over a set that go on while the program computes: each rank gets the sum of its own part,
 * and what is in the others is undefined. All begin the same sums in the same order, and none
 * touches an array before comm_reduce_end(). They move on when a function of this module is
 * called, so comm_poll() should be, now and then. Host memory. */
int64_t comm_scratch(int64_t n, enum comm_set s);	/* reals that comm_exchange_open() wants
							   for such an array: the most of all */
/* At most so many sums, and gathers, begun at a time. */
void comm_exchange_open(real *scratch, int64_t size, int most);
void comm_reduce_begin(real *x, int64_t n, enum comm_set s);	/* n < 2^31 */
void comm_poll(void);
void comm_reduce_end(void);

/* In the same way, each rank's own part of an array to the others of the set. */
void comm_gather_begin(real *x, int64_t n, enum comm_set s);	/* n < 2^31 */
void comm_gather_end(int n);			/* waits for the first n of those begun since all
						   were last waited for */
void comm_exchange_close(void);			/* after the last end */

/* n integers of each rank of the group, in its order. */
void comm_counts(const int32_t *own, int n, int32_t *all);
/* Rows of w reals to and from each rank of the group: out_n[k] of them at out + out_at[k] * w go
 * to place k. */
struct comm_rows {
	const int *out_at, *out_n, *in_at, *in_n;
};
void comm_rows(const real *out, real *in, int w, const struct comm_rows *r);

/* The parts, count[r] reals at `part` of each rank, one after the other into `whole` of rank 0. */
void comm_gather(real *whole, const real *part, const int64_t *count);

/* Messages to rank 0, which takes them as they come. Sending does not wait: the bytes are
 * copied. */
void comm_send(const void *p, size_t n);
/* Rank 0: a malloc'ed message and who sent it. wait false: NULL when there is none. */
void *comm_receive(bool wait, size_t *n, int *from);

#endif
