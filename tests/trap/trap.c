/*
 * trap: a backend that computes as cpu does, and whose memory cannot be read or written but in its
 * rows. It stands for a device in the tests: what runs here does not reach into device memory.
 *
 *	CHR_BACKEND_PATH=build/tests chr-pretrain -B trap ...
 *
 * Every row opens the memory, checks that each of its pointers, those inside of jobs too, lies in
 * one allocation with all that the row will touch, calls the row of cpu, and closes it again.
 * Anything else that touches it ends the process with EX_SOFTWARE and a line that says where; a
 * system call that is handed such memory fails with EFAULT. put_async copies as late as its events
 * permit: what is used before, or written over, has wrong bytes. While a row runs the memory is
 * open to all threads; other threads than the pool's, which only rows use, must not touch it, and
 * none has an address of it.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sysexits.h>
#include <unistd.h>

#include "backend/backend.h"
#include "backend/quant.h"

#define ARENA ((size_t)64 << 30)	/* of addresses; memory is taken as it is used */
#define PAGE ((size_t)4096)
#define HUGE_PAGE ((size_t)2 << 20)	/* of these there are few to open and close */
#define MOST 4096			/* allocations, and copies under way */

static const struct backend *cpu;
static char *arena;
static size_t used;
static struct piece { char *p; size_t n; } piece[MOST];
static int pieces;
static struct late { char *dev; const char *host; size_t n; uint64_t event; } late[MOST];
static int lates;
static uint64_t event = 1;

static bool of_device(const void *p)
{
	return (const char *)p >= arena && (const char *)p < arena + ARENA;
}

__attribute__((noreturn)) static void violation(const char *row, const char *what)
{
	fprintf(stderr, "trap: %s: %s\n", row, what);
	_exit(EX_SOFTWARE);
}

static void on_fault(int sig, siginfo_t *info, void *context)
{
	static const char text[] = "trap: host code touches memory of the device\n";

	(void)context;
	if (of_device(info->si_addr)) {
		if (write(2, text, sizeof text - 1) < 0)
			_exit(EX_IOERR);
		_exit(EX_SOFTWARE);
	}
	signal(sig, SIG_DFL);
}

static void protect(int how)
{
	mprotect(arena, (used + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE, how);
}

static void open_memory(void) { protect(PROT_READ | PROT_WRITE); }

static void close_memory(void) { protect(PROT_NONE); }

/* n bytes at p, of one allocation */
static void dev(const char *row, const char *arg, const void *at, int64_t n)
{
	const char *p = at;
	char what[96];

	if (n == 0)
		return;
	for (int i = 0; i < pieces; i++)
		if (p >= piece[i].p && p < piece[i].p + piece[i].n) {
			if (n > 0 && (size_t)n <= piece[i].n - (size_t)(p - piece[i].p))
				return;
			snprintf(what, sizeof what, "%s: %lld bytes reach out of their allocation",
			    arg, (long long)n);
			violation(row, what);
		}
	snprintf(what, sizeof what, "%s: is not memory of the device", arg);
	violation(row, what);
}

static void host(const char *row, const char *arg, const void *p)
{
	char what[96];

	snprintf(what, sizeof what, "%s: is memory of the device", arg);
	if (of_device(p))
		violation(row, what);
}

#define REALS(p, n) dev(__func__, #p, p, (int64_t)(n) * (int64_t)sizeof(real))
#define INTS(p, n) dev(__func__, #p, p, (int64_t)(n) * (int64_t)sizeof(int32_t))
#define BYTES(p, n) dev(__func__, #p, p, (int64_t)(n))
#define HOST(p) host(__func__, #p, p)
#define CALL(call) do { open_memory(); cpu->call; close_memory(); } while (0)
#define TRAP const struct backend *be __attribute__((unused))

static int64_t largest(const int32_t *ids, int64_t n)
{
	int64_t most = -1;

	open_memory();
	for (int64_t i = 0; i < n; i++)
		most = ids[i] > most ? ids[i] : most;
	close_memory();
	return most + 1;
}

/* Values from the first to the last of n pieces of w, ld apart. */
static int64_t span(int64_t n, int64_t ld, int64_t w) { return n > 0 ? (n - 1) * ld + w : 0; }

/* ---- memory ---- */

static const char *trap_describe(TRAP) { return "trap: cpu behind closed doors"; }

static void *trap_alloc(TRAP, size_t n)
{
	size_t size = (n + PAGE) / PAGE * PAGE;	/* a page that is not its own follows */
	char *p = arena + used;

	if (pieces == MOST || used + size + PAGE > ARENA)
		return NULL;
	piece[pieces++] = (struct piece){ p, n };
	used += size + PAGE;
	close_memory();
	return p;
}

static void trap_free(TRAP, void *p)
{
	for (int i = 0; p && i < pieces; i++)
		if (piece[i].p == p) {
			madvise(p, (piece[i].n + PAGE) / PAGE * PAGE, MADV_DONTNEED);
			piece[i] = piece[--pieces];
			return;
		}
	if (p)
		violation("free", "no allocation begins there");
}

static void trap_put(TRAP, void *to, const void *from, size_t n)
{
	BYTES(to, n);
	HOST(from);
	CALL(put(cpu, to, from, n));
}

static void trap_get(TRAP, void *to, const void *from, size_t n)
{
	BYTES(from, n);
	HOST(to);
	CALL(get(cpu, to, from, n));
}

static void trap_copy(TRAP, void *to, const void *from, size_t n)
{
	BYTES(to, n);
	BYTES(from, n);
	CALL(copy(cpu, to, from, n));
}

static void trap_zero(TRAP, void *p, size_t n)
{
	BYTES(p, n);
	CALL(zero(cpu, p, n));
}

static void *trap_alloc_pinned(TRAP, size_t n, void **to)
{
	void *mirror;

	return (*to = trap_alloc(be, n)) ? cpu->alloc_pinned(cpu, n, &mirror) : NULL;
}

static void trap_free_pinned(TRAP, void *p, size_t n)
{
	lates = 0;
	cpu->free_pinned(cpu, p, n);
}

static void copy_until(uint64_t end)
{
	int done = 0;

	open_memory();
	for (; done < lates && late[done].event < end; done++)
		memcpy(late[done].dev, late[done].host, late[done].n);
	close_memory();
	memmove(late, late + done, (size_t)(lates - done) * sizeof *late);
	lates -= done;
}

static void trap_put_async(TRAP, void *to, const void *from, size_t n)
{
	BYTES(to, n);
	HOST(from);
	if (lates == MOST)
		copy_until(event);
	late[lates++] = (struct late){ to, from, n, event };
}

static uint64_t trap_event_record(TRAP) { return ++event; }

static void trap_event_wait(TRAP, uint64_t until, bool to_host)
{
	(void)to_host;
	if (lates > 0)
		copy_until(until);
}

/* ---- products ---- */

static void product(const char *row, enum gemm_kind kind, const struct gemm_job *j)
{
	int64_t size = j->bt == DT_REAL ? (int64_t)sizeof(real) : (int64_t)dtype_size(j->bt),
	    blocks = dtype_blocks(j->bt) ? (int64_t)mat_bytes(j->bt, (int)j->n, (int)j->k) : 0;
	bool tn = kind == GEMM_TN;

	if (j->m == 0)
		return;
	dev(row, "c", j->c, span(j->m, j->ldc, j->n) * (int64_t)sizeof(real));
	if (j->k == 0)
		return;
	dev(row, "a", j->a, (tn ? span(j->k, j->lda, j->m) : span(j->m, j->lda, j->k)) *
	    (int64_t)sizeof(real));
	dev(row, "b", j->b, blocks > 0 ? blocks : (kind == GEMM_NT ? span(j->n, j->ldb, j->k)
	    : span(j->k, j->ldb, j->n)) * size);
}

static void trap_gemm(TRAP, enum gemm_kind kind, const struct gemm_job *jobs, int n)
{
	HOST(jobs);
	for (int i = 0; i < n; i++)
		product(__func__, kind, &jobs[i]);
	CALL(gemm(cpu, kind, jobs, n));
}

static void trap_gemm_train(TRAP, enum gemm_kind kind, const struct gemm_job *jobs, int n)
{
	HOST(jobs);
	for (int i = 0; i < n; i++)
		product(__func__, kind, &jobs[i]);
	CALL(gemm_train(cpu, kind, jobs, n));
}

static void trap_gemm_bf16(TRAP, enum gemm_kind kind, const struct gemm_job *jobs, int n)
{
	HOST(jobs);
	for (int i = 0; i < n; i++)
		product(__func__, kind, &jobs[i]);
	CALL(gemm_bf16(cpu, kind, jobs, n));
}

static void trap_quantize(TRAP, char *rows, const real *x, int64_t n, int w)
{
	BYTES(rows, n * (int64_t)quant_row_bytes(w));
	REALS(x, n * w);
	CALL(quantize(cpu, rows, x, n, w));
}

static void matrix(const char *row, const struct mat *w)
{
	dev(row, "matrix", w->p, (int64_t)mat_bytes(w->dt, w->rows, w->cols));
}

static void trap_qgemm(TRAP, const struct qgemm_job *jobs, int n)
{
	HOST(jobs);
	for (int i = 0; i < n; i++) {
		const struct qgemm_job *j = &jobs[i];

		if (j->m == 0)
			continue;
		REALS(j->c, span(j->m, j->ldc, j->w.rows));
		BYTES(j->a, j->m * (int64_t)quant_row_bytes(j->w.cols));
		matrix(__func__, &j->w);
	}
	CALL(qgemm(cpu, jobs, n));
}

static void trap_qffn(TRAP, const struct qffn_job *jobs, int n)
{
	HOST(jobs);
	for (int i = 0; i < n; i++) {
		const struct qffn_job *j = &jobs[i];

		if (j->m == 0)
			continue;
		BYTES(j->a, j->m * (int64_t)quant_row_bytes(j->gate.cols));
		BYTES(j->h, j->m * (int64_t)quant_row_bytes(j->gate.rows));
		matrix(__func__, &j->gate);
		matrix(__func__, &j->up);
		REALS(j->gate_bias, j->gate_bias ? j->gate.rows : 0);
		REALS(j->up_bias, j->up_bias ? j->up.rows : 0);
	}
	CALL(qffn(cpu, jobs, n));
}

/* ---- rows of values ---- */

static void trap_rmsnorm(TRAP, real *y, real *rstd, const real *x, const real *g, int64_t n, int w,
    double eps)
{
	REALS(y, n * w);
	REALS(rstd, rstd ? n : 0);
	REALS(x, n * w);
	REALS(g, w);
	CALL(rmsnorm(cpu, y, rstd, x, g, n, w, eps));
}

static void trap_rmsnorm_back(TRAP, real *dx, real *dg, const real *dy, const real *x,
    const real *g, const real *rstd, int64_t n, int w, bool add_dx)
{
	REALS(dx, n * w);
	REALS(dg, w);
	REALS(dy, n * w);
	REALS(x, n * w);
	REALS(g, w);
	REALS(rstd, n);
	CALL(rmsnorm_back(cpu, dx, dg, dy, x, g, rstd, n, w, add_dx));
}

static void trap_rope(TRAP, real *x, int64_t ld, int64_t hs, int64_t n, int heads, int w,
    const real *table, const int32_t *pos, bool back)
{
	REALS(x, span(n, ld, span(heads, hs, w)));
	INTS(pos, n);
	REALS(table, largest(pos, n) * 2 * w);
	CALL(rope(cpu, x, ld, hs, n, heads, w, table, pos, back));
}

static void trap_rope_pairs(TRAP, real *x, int64_t ld, int64_t hs, int64_t n, int heads, int w,
    const real *table, const int32_t *pos, bool back)
{
	REALS(x, span(n, ld, span(heads, hs, w)));
	INTS(pos, n);
	REALS(table, largest(pos, n) * 2 * w);
	CALL(rope_pairs(cpu, x, ld, hs, n, heads, w, table, pos, back));
}

static void trap_copy2d(TRAP, real *dst, int64_t ldd, const real *src, int64_t lds, int64_t n,
    int w)
{
	REALS(dst, span(n, ldd, w));
	REALS(src, span(n, lds, w));
	CALL(copy2d(cpu, dst, ldd, src, lds, n, w));
}

static void attention(const char *row, const struct attn_args *a)
{
	const int64_t R = (int64_t)a->B * a->T, size = (int64_t)sizeof(real);

	host(row, "a", a);
	dev(row, "doc_start", a->doc_start, R * (int64_t)sizeof(int32_t));
	dev(row, "q", a->q, R * a->H * a->dq * size);
	dev(row, "k", a->k, R * a->G * a->dq * size);
	dev(row, "v", a->v, R * a->G * a->dv * size);
	dev(row, "o", a->o, R * a->H * a->dv * size);
	dev(row, "lse", a->lse, R * a->H * size);
	dev(row, "sinks", a->sinks, a->sinks ? a->H * size : 0);
}

static void trap_attn(TRAP, const struct attn_args *a)
{
	attention(__func__, a);
	CALL(attn(cpu, a));
}

static void trap_attn_back(TRAP, const struct attn_args *a)
{
	const int64_t R = (int64_t)a->B * a->T;

	attention(__func__, a);
	REALS(a->d_o, R * a->H * a->dv);
	REALS(a->dq_, R * a->H * a->dq);
	REALS(a->dk, R * a->G * a->dq);
	REALS(a->dv_, R * a->G * a->dv);
	REALS(a->dsinks, a->sinks ? a->H : 0);
	CALL(attn_back(cpu, a));
}

static void trap_kv_put(TRAP, const struct kv_put_args *a)
{
	HOST(a);
	BYTES(a->cache, kv_cache_bytes(a->type, a->heads, a->slots, a->w));
	REALS(a->x, a->n * a->heads * a->w);
	CALL(kv_put(cpu, a));
}

static void trap_attn_cached(TRAP, const struct attn_cached_args *a)
{
	HOST(a);
	HOST(a->kcache);
	HOST(a->vcache);
	HOST(a->k2cache);
	REALS(a->q, span(a->n, a->ldq, (int64_t)a->H * a->dk));
	REALS(a->o, span(a->n, a->ldo, (int64_t)a->H * a->dv));
	REALS(a->q2, a->dk2 ? span(a->n, a->ldq2, (int64_t)a->H * a->dk2) : 0);
	INTS(a->lo, a->n);
	INTS(a->hi, a->n);
	REALS(a->sinks, a->sinks ? a->H : 0);
	for (int i = 0; i < a->n; i++) {
		BYTES(a->kcache[i], kv_cache_bytes(a->type, a->G, a->slots, a->dk));
		BYTES(a->vcache[i], kv_cache_bytes(a->type, a->G, a->slots, a->dv));
		if (a->dk2)
			BYTES(a->k2cache[i], kv_cache_bytes(a->type, a->G2, a->slots, a->dk2));
	}
	CALL(attn_cached(cpu, a));
}

/* What sequences have, from `at` on, and how many rows there are in all. */
static int64_t sequences(const char *row, const struct recur_seg *seg, int n, int64_t at,
    int64_t size)
{
	int64_t rows = 0;

	host(row, "seg", seg);
	for (int i = 0; i < n; i++) {
		dev(row, "state", seg[i].state + at, size * (int64_t)sizeof(real));
		rows = seg[i].row0 + seg[i].n > rows ? seg[i].row0 + seg[i].n : rows;
	}
	return rows;
}

static void trap_conv(TRAP, const struct conv_args *a)
{
	int64_t rows = sequences(__func__, a->seg, a->n, a->at, (int64_t)(a->L - 1) * a->C);

	HOST(a);
	REALS(a->x, span(rows, a->ldx, a->C));
	REALS(a->y, span(rows, a->ldy, a->C));
	REALS(a->w, (int64_t)a->C * a->L);
	REALS(a->bias, a->bias ? a->C : 0);
	CALL(conv(cpu, a));
}

static void trap_delta(TRAP, const struct delta_args *a)
{
	int64_t rows = sequences(__func__, a->seg, a->n, a->at, (int64_t)a->H * a->dk * a->dv);

	HOST(a);
	REALS(a->q, span(rows, a->ldq, (int64_t)a->G * a->dk));
	REALS(a->k, span(rows, a->ldk, (int64_t)a->G * a->dk));
	REALS(a->v, span(rows, a->ldv, (int64_t)a->H * a->dv));
	REALS(a->a, rows * a->H);
	REALS(a->b, rows * a->H);
	REALS(a->a_log, a->H);
	REALS(a->dt, a->H);
	REALS(a->o, rows * a->H * a->dv);
	CALL(delta(cpu, a));
}

static void trap_mul(TRAP, real *y, int64_t ldy, const real *a, int64_t lda, const real *b,
    int64_t ldb, int64_t n, int w)
{
	REALS(y, span(n, ldy, w));
	REALS(a, span(n, lda, w));
	REALS(b, span(n, ldb, w));
	CALL(mul(cpu, y, ldy, a, lda, b, ldb, n, w));
}

static void trap_swiglu(TRAP, real *y, const real *g, const real *u, int64_t n, struct glu glu)
{
	REALS(y, n);
	REALS(g, n);
	REALS(u, n);
	CALL(swiglu(cpu, y, g, u, n, glu));
}

static void trap_swiglu_back(TRAP, real *dg, real *du, const real *dy, const real *g,
    const real *u, int64_t n, struct glu glu)
{
	REALS(dg, n);
	REALS(du, n);
	REALS(dy, n);
	REALS(g, n);
	REALS(u, n);
	CALL(swiglu_back(cpu, dg, du, dy, g, u, n, glu));
}

static void trap_clip(TRAP, real *x, double limit, int64_t n)
{
	REALS(x, n);
	CALL(clip(cpu, x, limit, n));
}

static void trap_clip_back(TRAP, real *dx, const real *x, double limit, int64_t n)
{
	REALS(dx, n);
	REALS(x, n);
	CALL(clip_back(cpu, dx, x, limit, n));
}

static void router(const char *row, const struct route_args *a)
{
	const int64_t size = (int64_t)sizeof(real), choices = a->n * a->K;

	host(row, "a", a);
	host(row, "r", a->r);
	dev(row, "bias", a->bias, a->bias ? a->E * size : 0);
	dev(row, "probs", a->probs, a->n * a->E * size);
	dev(row, "sums", a->sums, a->sums ? a->n * size : 0);
	dev(row, "ids", a->ids, choices * (int64_t)sizeof(int32_t));
	dev(row, "weights", a->weights, choices * size);
}

static void trap_route(TRAP, const struct route_args *a)
{
	router(__func__, a);
	CALL(route(cpu, a));
}

static void trap_route_weights(TRAP, const struct route_args *a)
{
	router(__func__, a);
	CALL(route_weights(cpu, a));
}

static void trap_route_back(TRAP, const struct route_args *a)
{
	router(__func__, a);
	REALS(a->dweights, a->n * a->K);
	REALS(a->dprobs, a->dprobs ? a->n * a->E : 0);
	REALS(a->dlogits, a->n * a->E);
	CALL(route_back(cpu, a));
}

static void trap_gather(TRAP, real *dst, const real *src, const int32_t *rows, int64_t n, int w)
{
	REALS(dst, n * w);
	INTS(rows, n);
	REALS(src, n ? largest(rows, n) * w : 0);
	CALL(gather(cpu, dst, src, rows, n, w));
}

static void trap_gather_blocks(TRAP, real *dst, const struct mat *w, const int32_t *rows,
    int64_t n)
{
	HOST(w);
	REALS(dst, n * w->cols);
	INTS(rows, n);
	matrix(__func__, w);
	CALL(gather_blocks(cpu, dst, w, rows, n));
}

static void trap_combine(TRAP, real *dst, const real *src, const int32_t *slot, const real *coef,
    int64_t n, int k, int w)
{
	REALS(dst, n * w);
	INTS(slot, n * k);
	REALS(coef, coef ? n * k : 0);
	REALS(src, n > 0 && k > 0 ? largest(slot, n * k) * w : 0);
	CALL(combine(cpu, dst, src, slot, coef, n, k, w));
}

static void trap_dot_rows(TRAP, real *out, const real *a, const int32_t *arow, const real *b,
    const int32_t *brow, int64_t n, int w)
{
	REALS(out, n);
	INTS(arow, n);
	INTS(brow, n);
	REALS(a, n ? largest(arow, n) * w : 0);
	REALS(b, n ? largest(brow, n) * w : 0);
	CALL(dot_rows(cpu, out, a, arow, b, brow, n, w));
}

static void trap_scatter_add(TRAP, real *table, const real *src, const int32_t *ids, int64_t n,
    int w)
{
	REALS(src, n * w);
	INTS(ids, n);
	REALS(table, n ? largest(ids, n) * w : 0);
	CALL(scatter_add(cpu, table, src, ids, n, w));
}

static void trap_axpy(TRAP, real *y, const real *x, double a, int64_t n)
{
	REALS(y, n);
	REALS(x, n);
	CALL(axpy(cpu, y, x, a, n));
}

static void trap_scale(TRAP, real *x, double a, int64_t n)
{
	REALS(x, n);
	CALL(scale(cpu, x, a, n));
}

static void trap_scale_rows(TRAP, real *x, const real *s, int64_t n, int w)
{
	REALS(x, n * w);
	REALS(s, n);
	CALL(scale_rows(cpu, x, s, n, w));
}

static void trap_silu(TRAP, real *y, const real *x, int64_t n)
{
	REALS(y, n);
	REALS(x, n);
	CALL(silu(cpu, y, x, n));
}

static void trap_silu_back(TRAP, real *dx, const real *dy, const real *x, int64_t n)
{
	REALS(dx, n);
	REALS(dy, n);
	REALS(x, n);
	CALL(silu_back(cpu, dx, dy, x, n));
}

static void trap_sigmoid(TRAP, real *y, const real *x, int64_t n)
{
	REALS(y, n);
	REALS(x, n);
	CALL(sigmoid(cpu, y, x, n));
}

static void trap_sigmoid_back(TRAP, real *dx, const real *dy, const real *y, int64_t n)
{
	REALS(dx, n);
	REALS(dy, n);
	REALS(y, n);
	CALL(sigmoid_back(cpu, dx, dy, y, n));
}

static void trap_softmax(TRAP, real *x, int64_t n, int w)
{
	REALS(x, n * w);
	CALL(softmax(cpu, x, n, w));
}

static void trap_dropout(TRAP, real *x, int64_t n, double p, uint64_t key)
{
	REALS(x, n);
	CALL(dropout(cpu, x, n, p, key));
}

static void trap_noise(TRAP, real *x, const real *s, int64_t n, int w, uint64_t key)
{
	REALS(x, n * w);
	REALS(s, n);
	CALL(noise(cpu, x, s, n, w, key));
}

/* ---- losses and updates ---- */

static void trap_logprob(TRAP, real *logits, real *logp, const int32_t *target, const real *coef,
    int64_t n, int V)
{
	REALS(logits, n * V);
	REALS(logp, n);
	INTS(target, n);
	REALS(coef, coef ? n : 0);
	CALL(logprob(cpu, logits, logp, target, coef, n, V));
}

static void trap_diverge(TRAP, const struct diverge_args *a)
{
	HOST(a);
	REALS(a->student, a->n * a->V);
	REALS(a->teacher, a->n * a->V);
	INTS(a->target, a->n);
	REALS(a->value, a->n);
	REALS(a->dstudent, a->dstudent ? a->n * a->V : 0);
	CALL(diverge(cpu, a));
}

static double trap_sumsq(TRAP, const real *x, int64_t n)
{
	double sum;

	REALS(x, n);
	open_memory();
	sum = cpu->sumsq(cpu, x, n);
	close_memory();
	return sum;
}

static void trap_adamw(TRAP, const struct adamw_args *a)
{
	HOST(a);
	REALS(a->w, a->n);
	REALS(a->g, a->n);
	REALS(a->m, a->n);
	REALS(a->v, a->n);
	CALL(adamw(cpu, a));
}

/* ---- opening ---- */

static const struct backend trap = {
	.name = "trap", .size = sizeof(struct backend),
#define ROW(type, name, args) .name = trap_##name,
#include "backend/rows.h"
#undef ROW
};

/* The device "lame" has no row attn_back. */
static const struct backend lame = {
	.name = "trap", .size = sizeof(struct backend),
#define trap_attn_back NULL
#define ROW(type, name, args) .name = trap_##name,
#include "backend/rows.h"
#undef ROW
#undef trap_attn_back
};

backend_probe chr_backend_probe;

const struct backend *chr_backend_probe(const char *device, const struct backend *of_host,
    struct err *e)
{
	struct sigaction a = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };

	if (strcmp(device, "lame") == 0)
		return &lame;
	if (*device) {
		e->status = EX_UNAVAILABLE;
		snprintf(e->msg, sizeof e->msg, "trap has no device %s", device);
		return NULL;
	}
	cpu = of_host;
	if (arena == NULL)
		arena = mmap(NULL, ARENA + HUGE_PAGE, PROT_NONE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (arena == MAP_FAILED) {
		e->status = EX_OSERR;
		snprintf(e->msg, sizeof e->msg, "no addresses for the backend trap");
		return NULL;
	}
	arena += (HUGE_PAGE - (uintptr_t)arena % HUGE_PAGE) % HUGE_PAGE;
	madvise(arena, ARENA, MADV_HUGEPAGE);
	sigaction(SIGSEGV, &a, NULL);
	return &trap;
}
