#include "comm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "json.h"
#include "opt.h"
#include "pool.h"

/* Set for each task of a job, by mpirun of Open MPI, by PMI and PMIx, by srun. A batch script of Slurm itself has
 * SLURM_NTASKS, but is no step. */
static const char *const size_of[] = { "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS" };
static const char *const rank_of[] = { "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK" };

#define COUNT(a) (sizeof(a) / sizeof *(a))

static int number(const char *name)
{
	const char *s = getenv(name);

	return s != NULL ? atoi(s) : 0;
}

/* How many tasks the launcher says there are; where it gives only a rank, at least that many. */
static int tasks(void)
{
	int n = 1;

	for (size_t i = 0; i < COUNT(size_of); i++)
		n = number(size_of[i]) > n ? number(size_of[i]) : n;
	for (size_t i = 0; n == 1 && i < COUNT(rank_of); i++)
		n = number(rank_of[i]) > 0 ? number(rank_of[i]) + 1 : n;
	return n;
}

#ifdef HAVE_MPI
#include <mpi.h>

#define REAL (sizeof(real) == sizeof(float) ? MPI_FLOAT : MPI_DOUBLE)
#define BUCKET ((int64_t)1 << 20)	/* reals on their way at a time, at least */
#define PIECE ((int64_t)1 << 14)	/* reals of one message, at least */
enum { TAG_PART = 1, TAG_MESSAGE };

struct parcel {			/* a message under way */
	MPI_Request request;
	void *bytes;
	struct parcel *next;
};

static struct {
	bool open;
	int rank, size, local;
	struct parcel *sent;
} comm = { .size = 1, .local = 1 };

/* Without one of these MPI has nobody to ask who the others are. */
static bool tied(void)
{
	bool any = false;

	for (size_t i = 0; i < COUNT(rank_of); i++)
		any |= getenv(rank_of[i]) != NULL;
	return any;
}

static int untied(int tasks, int seen, struct err *e)
{
	return err_set(e, EX_UNAVAILABLE, "started as one of %d tasks, but MPI sees %d: with srun, --mpi=pmix "
	    "(or SLURM_MPI_TYPE=pmix); else the mpirun of the MPI this was built with", tasks, seen);
}

/* What a rank starts runs by itself. */
static void forget_launcher(void)
{
	for (size_t i = 0; i < COUNT(size_of); i++)
		unsetenv(size_of[i]);
	for (size_t i = 0; i < COUNT(rank_of); i++)
		unsetenv(rank_of[i]);
}

_Noreturn void comm_abort(int status)
{
	fflush(stdout);
	if (comm.open)
		MPI_Abort(MPI_COMM_WORLD, status);
	_exit(status);
}

static void leave(int status)
{
	if (comm.open)
		comm_abort(status);
}

/* A program that ends by exit(). */
static void left(void)
{
	leave(EX_SOFTWARE);
}

/* Standard input, read by rank 0 for all. */
static ssize_t read_shared(ssize_t (*here)(void *self, void *buf, size_t size, struct err *e), void *self, void *buf,
    size_t size, struct err *e)
{
	ssize_t n = comm.rank == 0 ? here(self, buf, size, e) : 0;

	comm_bcast(&n, sizeof n);
	if (n < 0)
		comm_bcast(e, sizeof *e);
	else
		comm_bcast(buf, (size_t)n);
	return n;
}

static int start(int wanted, struct err *e)
{
	MPI_Comm node;
	int provided;

	if (MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS)
		return err_set(e, EX_UNAVAILABLE, "MPI does not start");
	MPI_Comm_rank(MPI_COMM_WORLD, &comm.rank);
	MPI_Comm_size(MPI_COMM_WORLD, &comm.size);
	MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
	MPI_Comm_size(node, &comm.local);
	MPI_Comm_free(&node);
	if (comm.size >= wanted)
		return 0;
	MPI_Finalize();
	return untied(wanted, comm.size, e);
}

int comm_open(struct err *e)
{
	int wanted = tasks();

	if (wanted == 1)
		return 0;
	if (!tied())
		return untied(wanted, 1, e);
	if (start(wanted, e) < 0)
		return -1;
	comm.open = true;
	forget_launcher();
	err_leave = leave;
	atexit(left);
	jsonl_stdin = read_shared;
	err_rank = comm.rank;
	if (comm.rank == 0)
		return 0;
	opt_quiet = true;
	return freopen("/dev/null", "w", stdout) != NULL ? 0 : err_set(e, EX_OSERR, "/dev/null:");
}

static void drop_sent(bool wait)
{
	struct parcel **at = &comm.sent, *p;

	while ((p = *at) != NULL) {
		int done = 1;

		if (wait)
			MPI_Wait(&p->request, MPI_STATUS_IGNORE);
		else
			MPI_Test(&p->request, &done, MPI_STATUS_IGNORE);
		if (!done) {
			at = &p->next;
			continue;
		}
		*at = p->next;
		free(p->bytes);
		free(p);
	}
}

int comm_close(int rc, struct err *e)
{
	if (!comm.open)
		return rc;
	drop_sent(true);
	MPI_Finalize();
	comm.open = false;
	if (comm.rank == 0)
		return rc;
	e->status = 0;
	e->msg[0] = '\0';
	return rc < 0 ? -1 : 0;
}

int comm_rank(void)
{
	return comm.rank;
}

int comm_size(void)
{
	return comm.size;
}

int comm_threads(int asked)
{
	int n = pool_cpus();

	if (asked > 0 || comm.local == 1 || n < sysconf(_SC_NPROCESSORS_ONLN))
		return asked;
	return n / comm.local > 0 ? n / comm.local : 1;
}

/* To rank 0 and back, so that all ranks hold the same bytes. */
static void reduce(double *x, int n, MPI_Op op)
{
	if (!comm.open)
		return;
	MPI_Reduce(comm.rank == 0 ? MPI_IN_PLACE : x, x, n, MPI_DOUBLE, op, 0, MPI_COMM_WORLD);
	MPI_Bcast(x, n, MPI_DOUBLE, 0, MPI_COMM_WORLD);
}

void comm_sum(double *x, int n)
{
	reduce(x, n, MPI_SUM);
}

void comm_max(double *x, int n)
{
	reduce(x, n, MPI_MAX);
}

void comm_bcast(void *p, size_t n)
{
	const size_t most = (size_t)1 << 30;

	for (size_t at = 0; comm.open && at < n; at += most)
		MPI_Bcast((char *)p + at, (int)(n - at < most ? n - at : most), MPI_BYTE, 0, MPI_COMM_WORLD);
}

void comm_barrier(void)
{
	if (comm.open)
		MPI_Barrier(MPI_COMM_WORLD);
}

static void bcast_from(struct err *e, int rank)
{
	MPI_Bcast(e, sizeof *e, MPI_BYTE, rank, MPI_COMM_WORLD);
}

/* --- arrays in parts --- */

/* Reals of each rank's part that go at a time. */
static int64_t piece(void)
{
	int64_t n = BUCKET / comm.size;

	return n > PIECE ? n : PIECE;
}

int64_t comm_scratch(void)
{
	return comm.open ? 2 * piece() * comm.size : 0;
}

static int64_t longest(const int64_t *cut)
{
	int64_t most = 0;

	for (int r = 0; r < comm.size; r++)
		most = cut[r + 1] - cut[r] > most ? cut[r + 1] - cut[r] : most;
	return most;
}

/* Of part r, what goes in the round that begins at `at`. */
static int64_t share(const int64_t *cut, int r, int64_t at)
{
	int64_t left_over = cut[r + 1] - cut[r] - at;

	return left_over < 0 ? 0 : left_over < piece() ? left_over : piece();
}

void comm_reduce_scatter(real *x, const int64_t *cut, real *scratch)
{
	int64_t P = piece();
	real *out = scratch, *in = scratch + P * comm.size;

	for (int64_t at = 0; comm.open && at < longest(cut); at += P) {
		int64_t n = share(cut, comm.rank, at);
		real *own = x + cut[comm.rank] + at;

		for (int r = 0; r < comm.size; r++)
			memcpy(out + r * P, x + cut[r] + at, (size_t)share(cut, r, at) * sizeof *x);
		MPI_Alltoall(out, (int)P, REAL, in, (int)P, REAL, MPI_COMM_WORLD);
		for (int64_t i = 0; i < n; i++)
			own[i] = in[i];
		for (int r = 1; r < comm.size; r++)
			for (int64_t i = 0; i < n; i++)
				own[i] += in[r * P + i];
	}
}

void comm_allgather(real *x, const int64_t *cut, real *scratch)
{
	int64_t P = piece();
	real *in = scratch + P * comm.size;

	for (int64_t at = 0; comm.open && at < longest(cut); at += P) {
		memcpy(scratch, x + cut[comm.rank] + at, (size_t)share(cut, comm.rank, at) * sizeof *x);
		MPI_Allgather(scratch, (int)P, REAL, in, (int)P, REAL, MPI_COMM_WORLD);
		for (int r = 0; r < comm.size; r++)
			if (r != comm.rank)
				memcpy(x + cut[r] + at, in + r * P, (size_t)share(cut, r, at) * sizeof *x);
	}
}

static void transfer(real *x, int64_t n, int peer, bool send)
{
	for (int64_t at = 0; at < n; at += BUCKET) {
		int m = (int)(n - at < BUCKET ? n - at : BUCKET);

		if (send)
			MPI_Send(x + at, m, REAL, peer, TAG_PART, MPI_COMM_WORLD);
		else
			MPI_Recv(x + at, m, REAL, peer, TAG_PART, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
	}
}

void comm_gather(real *whole, const real *part, const int64_t *count)
{
	int64_t at = count[0];

	if (comm.rank > 0) {
		transfer((real *)part, count[comm.rank], 0, true);
		return;
	}
	memcpy(whole, part, (size_t)count[0] * sizeof *whole);
	for (int r = 1; r < comm.size; at += count[r++])
		transfer(whole + at, count[r], r, false);
}

/* --- messages --- */

void comm_send(const void *p, size_t n)
{
	struct parcel *parcel = malloc(sizeof *parcel);

	drop_sent(false);
	if (parcel == NULL || n > INT32_MAX || (parcel->bytes = malloc(n + 1)) == NULL)
		err_die(EX_OSERR, "no memory for a message of %zu bytes to rank 0", n);
	memcpy(parcel->bytes, p, n);
	MPI_Isend(parcel->bytes, (int)n, MPI_BYTE, 0, TAG_MESSAGE, MPI_COMM_WORLD, &parcel->request);
	parcel->next = comm.sent;
	comm.sent = parcel;
}

void *comm_receive(bool wait, size_t *n, int *from)
{
	int there = 1, bytes;
	MPI_Status status;
	void *p;

	if (wait)
		MPI_Probe(MPI_ANY_SOURCE, TAG_MESSAGE, MPI_COMM_WORLD, &status);
	else
		MPI_Iprobe(MPI_ANY_SOURCE, TAG_MESSAGE, MPI_COMM_WORLD, &there, &status);
	if (!there)
		return NULL;
	MPI_Get_count(&status, MPI_BYTE, &bytes);
	if ((p = malloc((size_t)bytes + 1)) == NULL)
		err_die(EX_OSERR, "no memory for a message of %d bytes", bytes);
	MPI_Recv(p, bytes, MPI_BYTE, status.MPI_SOURCE, TAG_MESSAGE, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
	*n = (size_t)bytes;
	*from = status.MPI_SOURCE;
	return p;
}

#else

int comm_open(struct err *e)
{
	int n = tasks();

	return n == 1 ? 0 : err_set(e, EX_UNAVAILABLE, "started as one of %d tasks, but this build has no MPI: install "
	    "libopenmpi-dev and build again, or start one", n);
}

_Noreturn void comm_abort(int status)
{
	fflush(stdout);
	_exit(status);
}

void comm_barrier(void) {}
int comm_rank(void) { return 0; }
int comm_size(void) { return 1; }
int comm_threads(int asked) { return asked; }
int64_t comm_scratch(void) { return 0; }

int comm_close(int rc, struct err *e)
{
	(void)e;
	return rc;
}

void comm_sum(double *x, int n)
{
	(void)x, (void)n;
}

void comm_max(double *x, int n)
{
	(void)x, (void)n;
}

void comm_bcast(void *p, size_t n)
{
	(void)p, (void)n;
}

static void bcast_from(struct err *e, int rank)
{
	(void)e, (void)rank;
}

void comm_reduce_scatter(real *x, const int64_t *cut, real *scratch)
{
	(void)x, (void)cut, (void)scratch;
}

void comm_allgather(real *x, const int64_t *cut, real *scratch)
{
	(void)x, (void)cut, (void)scratch;
}

void comm_gather(real *whole, const real *part, const int64_t *count)
{
	memcpy(whole, part, (size_t)count[0] * sizeof *whole);
}

void comm_send(const void *p, size_t n)
{
	(void)p, (void)n;
}

void *comm_receive(bool wait, size_t *n, int *from)
{
	(void)wait, (void)n, (void)from;
	return NULL;
}

#endif

bool comm_any(bool x)
{
	double v = x;

	comm_max(&v, 1);
	return v > 0;
}

int comm_agree(int rc, struct err *e)
{
	double first = rc < 0 ? comm_size() - comm_rank() : 0;
	int rank;
	char msg[sizeof e->msg];

	comm_max(&first, 1);
	if (comm_size() == 1 || first == 0)
		return rc;
	rank = comm_size() - (int)first;
	bcast_from(e, rank);
	memcpy(msg, e->msg, sizeof msg);
	if (comm_rank() > 0)
		e->msg[0] = '\0';
	else if (rank > 0)
		snprintf(e->msg, sizeof e->msg, "rank %d: %.400s", rank, msg);
	return -1;
}
