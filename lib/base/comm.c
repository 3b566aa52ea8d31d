#include "base/comm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "base/opt.h"
#include "base/pool.h"

/* Set for each task of a job, by mpirun of Open MPI, by PMI and PMIx, by srun. A batch script of
 * Slurm itself has SLURM_NTASKS, but is no step. */
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

static struct {
	int rank, size, group;	/* group: ranks of one */
	bool launched;		/* and the launcher's variables are forgotten */
} ranks = { .size = 1, .group = 1 };

static bool any_set(const char *const names[], size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (getenv(names[i]) != NULL)
			return true;
	return false;
}

bool comm_launched(void)
{
	return ranks.launched || any_set(rank_of, COUNT(rank_of)) ||
	    any_set(size_of, COUNT(size_of));
}

int comm_rank(void)
{
	return ranks.rank;
}

int comm_size(void)
{
	return ranks.size;
}

int comm_count(enum comm_set s)
{
	return s == COMM_ALL ? ranks.size : s == COMM_GROUP ? ranks.group
	    : ranks.size / ranks.group;
}

int comm_place(enum comm_set s, int rank)
{
	return s == COMM_ALL ? rank : s == COMM_GROUP ? rank % ranks.group : rank / ranks.group;
}

static int set_group(int n, struct err *e)
{
	if (ranks.size % n != 0)
		return err_set(e, EX_USAGE, "%d rank%s cannot be divided into groups of %d",
		    ranks.size,
		    ranks.size > 1 ? "s" : "", n);
	ranks.group = n;
	return 0;
}

int comm_suppose(int size, int group, struct err *e)
{
	ranks.size = size;
	return set_group(group, e);
}

#define BUCKET ((int64_t)1 << 20)	/* reals on their way at a time, at least */
#define PIECE ((int64_t)1 << 14)	/* reals of one message, at least */
enum { LANES = 2 };			/* rounds of sums, and gathers, under way at a time */

/* Reals of each part that go at a time. */
static int piece(enum comm_set s)
{
	int64_t n = BUCKET / comm_count(s);

	return (int)(n > PIECE ? n : PIECE);
}

int64_t comm_scratch(int64_t n, enum comm_set s)
{
	int64_t parts = comm_count(s), part = (n + parts - 1) / parts;

	return LANES * (parts - 1) * (part < piece(s) ? part : piece(s));
}

#ifdef HAVE_MPI
#include <mpi.h>

#define REAL (sizeof(real) == sizeof(float) ? MPI_FLOAT : MPI_DOUBLE)
enum { TAG_PART = 1, TAG_MESSAGE };

struct parcel {			/* a message under way */
	MPI_Request request;
	void *bytes;
	struct parcel *next;
};

enum { SETS = COMM_PEERS + 1 };

static struct {
	bool open;
	int local;		/* ranks on this machine */
	struct parcel *sent;
	MPI_Comm set[SETS], sums[SETS], gathers[SETS];	/* the same ranks: sums and gathers go on
							   while others are called */
} comm = { .local = 1 };

/* Without one of these MPI has nobody to ask who the others are. */
static bool tied(void)
{
	return any_set(rank_of, COUNT(rank_of));
}

static int untied(int tasks, int seen, struct err *e)
{
	return err_set(e, EX_UNAVAILABLE, "started as one of %d tasks, but MPI sees %d: with srun, "
	    "--mpi=pmix "
	    "(or SLURM_MPI_TYPE=pmix); else the mpirun of the MPI this was built with", tasks,
	    seen);
}

/* What a rank starts runs by itself. */
static void forget_launcher(void)
{
	ranks.launched = comm_launched();
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
static ssize_t read_shared(ssize_t (*here)(void *self, void *buf, size_t size, struct err *e),
    void *self, void *buf,
    size_t size, struct err *e)
{
	ssize_t n = ranks.rank == 0 ? here(self, buf, size, e) : 0;

	comm_bcast(&n, sizeof n);
	if (n < 0)
		comm_bcast(e, sizeof *e);
	else
		comm_bcast(buf, (size_t)n);
	return n;
}

/* Those that exchange arrays. */
static void copy_set(enum comm_set s)
{
	MPI_Comm_dup(comm.set[s], &comm.sums[s]);
	MPI_Comm_dup(comm.set[s], &comm.gathers[s]);
}

static int start(int wanted, struct err *e)
{
	MPI_Comm node;
	int provided;

	if (MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS)
		return err_set(e, EX_UNAVAILABLE, "MPI does not start");
	MPI_Comm_rank(MPI_COMM_WORLD, &ranks.rank);
	MPI_Comm_size(MPI_COMM_WORLD, &ranks.size);
	MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
	MPI_Comm_size(node, &comm.local);
	MPI_Comm_free(&node);
	if (ranks.size >= wanted) {
		comm.set[COMM_ALL] = comm.set[COMM_PEERS] = MPI_COMM_WORLD;
		comm.set[COMM_GROUP] = MPI_COMM_SELF;
		copy_set(COMM_ALL);
		copy_set(COMM_PEERS);
		return 0;
	}
	MPI_Finalize();
	return untied(wanted, ranks.size, e);
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
	err_rank = ranks.rank;
	if (ranks.rank == 0)
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
	if (ranks.rank == 0)
		return rc;
	e->status = 0;
	e->msg[0] = '\0';
	return rc < 0 ? -1 : 0;
}

int comm_local(void)
{
	return comm.local;
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
	MPI_Reduce(ranks.rank == 0 ? MPI_IN_PLACE : x, x, n, MPI_DOUBLE, op, 0, MPI_COMM_WORLD);
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

void comm_share(void *p, size_t n, int rank)
{
	const size_t most = (size_t)1 << 30;

	for (size_t at = 0; comm.open && at < n; at += most)
		MPI_Bcast((char *)p + at, (int)(n - at < most ? n - at : most), MPI_BYTE, rank,
		    MPI_COMM_WORLD);
}

void comm_barrier(void)
{
	if (comm.open)
		MPI_Barrier(MPI_COMM_WORLD);
}

/* --- sets --- */

int comm_divide(int n, struct err *e)
{
	if (n == 1 || set_group(n, e) < 0)
		return n == 1 ? 0 : -1;
	MPI_Comm_split(MPI_COMM_WORLD, ranks.rank / n, ranks.rank, &comm.set[COMM_GROUP]);
	MPI_Comm_split(MPI_COMM_WORLD, ranks.rank % n, ranks.rank, &comm.set[COMM_PEERS]);
	MPI_Comm_free(&comm.sums[COMM_PEERS]);
	MPI_Comm_free(&comm.gathers[COMM_PEERS]);
	copy_set(COMM_PEERS);
	return 0;
}

/* --- sums and gathers --- */

/* LANES rounds of sums and LANES gathers are under way at a time. In a round of a sum, a piece
 * of every part goes to its owner, who adds them in the order of ranks when all are there. */
struct array {
	real *x;
	int64_t n;
	enum comm_set set;
};

struct lane {
	MPI_Request request;	/* MPI_REQUEST_NULL: free */
	int array;		/* of the queue, that it is for */
	int *send_n, *send_at, *recv_n, *recv_at;	/* (ranks) MPI reads them while it works */
	/* of a round: */
	real *in;		/* (ranks of the set but this, piece) */
	real *own;		/* (n) where the sum goes */
	int n, piece;
	enum comm_set set;
};

struct queue {
	struct array *array;
	int begun, now;		/* arrays; the one that is to go on next */
	int64_t at;		/* and where in its parts */
	struct lane lane[LANES];
	int next;		/* lane to be used next */
};

static struct {
	int most;
	int *counts;
	struct queue sums, gathers;
} exchange;

static int *open_queue(struct queue *q, int most, int *counts)
{
	size_t n = (size_t)ranks.size;

	if ((q->array = calloc((size_t)most, sizeof *q->array)) == NULL)
		err_die(EX_OSERR, "no memory to exchange with other ranks");
	for (int i = 0; i < LANES; i++, counts += 4 * n)
		q->lane[i] = (struct lane){ .request = MPI_REQUEST_NULL, .send_n = counts,
		    .send_at = counts + n,
		    .recv_n = counts + 2 * n, .recv_at = counts + 3 * n };
	return counts;
}

void comm_exchange_open(real *scratch, int64_t size, int most)
{
	if (!comm.open)
		return;
	exchange.most = most;
	if ((exchange.counts = calloc((size_t)ranks.size * 4 * 2 * LANES, sizeof *exchange.counts))
	    == NULL)
		err_die(EX_OSERR, "no memory to exchange with other ranks");
	open_queue(&exchange.gathers, most, open_queue(&exchange.sums, most, exchange.counts));
	for (int i = 0; i < LANES; i++)
		exchange.sums.lane[i].in = scratch + i * (size / LANES);
}

void comm_exchange_close(void)
{
	free(exchange.sums.array);
	free(exchange.gathers.array);
	free(exchange.counts);
	memset(&exchange, 0, sizeof exchange);
}

static void begin(struct queue *q, real *x, int64_t n, enum comm_set s)
{
	if (q->begun == exchange.most)
		err_die(EX_SOFTWARE, "more than %d exchanges at a time", exchange.most);
	q->array[q->begun++] = (struct array){ x, n, s };
}

/* Of part k of a sum, what goes in the round that begins at `at`. */
static int share(const struct array *s, int k, int64_t at)
{
	int parts = comm_count(s->set);
	int64_t left_over = comm_cut(s->n, k + 1, parts) - comm_cut(s->n, k, parts) - at;

	return (int)(left_over < 0 ? 0 : left_over < piece(s->set) ? left_over : piece(s->set));
}

static void start_round(struct lane *l, const struct array *s, int64_t at)
{
	int parts = comm_count(s->set), own = comm_place(s->set, ranks.rank);

	l->set = s->set;
	l->piece = share(s, parts - 1, 0);	/* the longest part, if it is short */
	l->own = s->x + comm_cut(s->n, own, parts) + at;
	l->n = share(s, own, at);
	for (int k = 0; k < parts; k++) {
		l->send_n[k] = k == own ? 0 : share(s, k, at);
		l->send_at[k] = (int)(comm_cut(s->n, k, parts) + at);
		l->recv_n[k] = k == own ? 0 : l->n;
		l->recv_at[k] = (k < own ? k : k - 1) * l->piece;
	}
	MPI_Ialltoallv(s->x, l->send_n, l->send_at, REAL, l->in, l->recv_n, l->recv_at, REAL,
	    comm.sums[s->set], &l->request);
}

static void add_pieces(const struct lane *l)
{
	enum { BLOCK = 512 };
	int parts = comm_count(l->set), place = comm_place(l->set, ranks.rank);
	real sum[BLOCK];

	for (int i = 0; i < l->n; i += BLOCK) {
		int n = l->n - i < BLOCK ? l->n - i : BLOCK;

		memset(sum, 0, sizeof sum);
		for (int k = 0; k < parts; k++) {
			const real *x = k == place ? l->own + i : l->in + (int64_t)(k < place ? k
			    : k - 1) * l->piece + i;

			for (int j = 0; j < n; j++)
				sum[j] += x[j];
		}
		memcpy(l->own + i, sum, (size_t)n * sizeof *sum);
	}
}

/* Is the lane free? */
static bool finish(struct lane *l, bool sums, bool wait)
{
	int done = 1;

	if (l->request == MPI_REQUEST_NULL)
		return true;
	if (wait)
		MPI_Wait(&l->request, MPI_STATUS_IGNORE);
	else
		MPI_Test(&l->request, &done, MPI_STATUS_IGNORE);
	if (done && sums)
		add_pieces(l);
	return done;
}

/* Is there another of this sum? The parts differ by one at most, so the last is among the
 * longest. */
static bool next_round(struct queue *q, struct lane *l)
{
	const struct array *s = &q->array[q->now];

	start_round(l, s, q->at);
	q->at += piece(s->set);
	return share(s, comm_count(s->set) - 1, q->at) > 0;
}

static void start_gather(const struct array *a, struct lane *l)
{
	int parts = comm_count(a->set);

	if (parts == 1)
		return;
	for (int k = 0; k < parts; k++) {
		l->recv_at[k] = (int)comm_cut(a->n, k, parts);
		l->recv_n[k] = (int)comm_cut(a->n, k + 1, parts) - l->recv_at[k];
	}
	MPI_Iallgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, a->x, l->recv_n, l->recv_at, REAL,
	    comm.gathers[a->set], &l->request);
}

/* Starts what there are free lanes for; with wait, all of the first n. */
static void advance(struct queue *q, int n, bool wait)
{
	bool sums = q == &exchange.sums;

	while (q->now < n && finish(&q->lane[q->next], sums, wait)) {
		struct lane *l = &q->lane[q->next];

		q->next = (q->next + 1) % LANES;
		l->array = q->now;
		if (sums && next_round(q, l))
			continue;
		if (!sums)
			start_gather(&q->array[q->now], l);
		q->now++;
		q->at = 0;
	}
}

static void poll(struct queue *q)
{
	if (q->begun == 0)
		return;
	advance(q, q->begun, false);
	for (int i = 0; i < LANES; i++)
		finish(&q->lane[i], q == &exchange.sums, false);
}

void comm_poll(void)
{
	poll(&exchange.sums);
	poll(&exchange.gathers);
}

/* Waits for the first n. */
static void end(struct queue *q, int n)
{
	n = n < q->begun ? n : q->begun;
	if (n == 0)
		return;
	advance(q, n, true);
	for (int i = 0; i < LANES; i++)
		if (q->lane[i].array < n)
			finish(&q->lane[i], q == &exchange.sums, true);
	if (n == q->begun)
		q->begun = q->now = 0;
}

void comm_reduce_begin(real *x, int64_t n, enum comm_set s)
{
	if (!comm.open || comm_count(s) == 1 || n == 0)
		return;
	begin(&exchange.sums, x, n, s);
	advance(&exchange.sums, exchange.sums.begun, false);
}

void comm_reduce_end(void)
{
	end(&exchange.sums, exchange.sums.begun);
}

void comm_gather_begin(real *x, int64_t n, enum comm_set s)
{
	if (!comm.open)
		return;
	begin(&exchange.gathers, x, n, s);
	advance(&exchange.gathers, exchange.gathers.begun, false);
}

void comm_gather_end(int n)
{
	end(&exchange.gathers, n);
}

/* --- rows of the group --- */

void comm_counts(const int32_t *own, int n, int32_t *all)
{
	if (ranks.group == 1)
		memcpy(all, own, (size_t)n * sizeof *all);
	else
		MPI_Allgather(own, n, MPI_INT32_T, all, n, MPI_INT32_T, comm.set[COMM_GROUP]);
}

void comm_rows(const real *out, real *in, int w, const struct comm_rows *r)
{
	MPI_Datatype row;

	MPI_Type_contiguous(w, REAL, &row);
	MPI_Type_commit(&row);
	MPI_Alltoallv(out, r->out_n, r->out_at, row, in, r->in_n, r->in_at, row,
	    comm.set[COMM_GROUP]);
	MPI_Type_free(&row);
}

/* --- arrays in parts --- */

static void transfer(real *x, int64_t n, int peer, bool send)
{
	for (int64_t at = 0; at < n; at += BUCKET) {
		int m = (int)(n - at < BUCKET ? n - at : BUCKET);

		if (send)
			MPI_Send(x + at, m, REAL, peer, TAG_PART, MPI_COMM_WORLD);
		else
			MPI_Recv(x + at, m, REAL, peer, TAG_PART, MPI_COMM_WORLD,
			    MPI_STATUS_IGNORE);
	}
}

void comm_gather(real *whole, const real *part, const int64_t *count)
{
	int64_t at = count[0];

	if (ranks.rank > 0) {
		transfer((real *)part, count[ranks.rank], 0, true);
		return;
	}
	memcpy(whole, part, (size_t)count[0] * sizeof *whole);
	for (int r = 1; r < ranks.size; at += count[r++])
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
	MPI_Isend(parcel->bytes, (int)n, MPI_BYTE, 0, TAG_MESSAGE, MPI_COMM_WORLD,
	    &parcel->request);
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
	MPI_Recv(p, bytes, MPI_BYTE, status.MPI_SOURCE, TAG_MESSAGE, MPI_COMM_WORLD,
	    MPI_STATUS_IGNORE);
	*n = (size_t)bytes;
	*from = status.MPI_SOURCE;
	return p;
}

#else

int comm_open(struct err *e)
{
	int n = tasks();

	return n == 1 ? 0 : err_set(e, EX_UNAVAILABLE,
	    "started as one of %d tasks, but this build has no MPI: install "
	    "libopenmpi-dev and build again, or start one", n);
}

_Noreturn void comm_abort(int status)
{
	fflush(stdout);
	_exit(status);
}

void comm_barrier(void) {}
int comm_local(void) { return 1; }
int comm_threads(int asked) { return asked; }

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

void comm_share(void *p, size_t n, int rank)
{
	(void)p, (void)n, (void)rank;
}

int comm_divide(int n, struct err *e)
{
	return set_group(n, e);
}

void comm_exchange_open(real *scratch, int64_t size, int most)
{
	(void)scratch, (void)size, (void)most;
}

void comm_reduce_begin(real *x, int64_t n, enum comm_set s)
{
	(void)x, (void)n, (void)s;
}

void comm_poll(void) {}
void comm_reduce_end(void) {}
void comm_exchange_close(void) {}

void comm_gather_begin(real *x, int64_t n, enum comm_set s)
{
	(void)x, (void)n, (void)s;
}

void comm_gather_end(int n)
{
	(void)n;
}

void comm_counts(const int32_t *own, int n, int32_t *all)
{
	memcpy(all, own, (size_t)n * sizeof *all);
}

void comm_rows(const real *out, real *in, int w, const struct comm_rows *r)
{
	(void)out, (void)in, (void)w, (void)r;
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

void comm_bcast(void *p, size_t n)
{
	comm_share(p, n, 0);
}

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
	comm_share(e, sizeof *e, rank);
	memcpy(msg, e->msg, sizeof msg);
	if (comm_rank() > 0)
		e->msg[0] = '\0';
	else if (rank > 0)
		snprintf(e->msg, sizeof e->msg, "rank %d: %.400s", rank, msg);
	return -1;
}
