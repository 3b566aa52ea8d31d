/*
 * Four things happen at once. A thread reads pieces of parameters into slots; the main thread and
 * the pool convert them; a thread writes them to files; and a thread syncs files that are
 * complete and reads them back. Slots go round: read, converted, written, read again.
 */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "backend/published.h"
#include "base/crc.h"
#include "base/isa.h"
#include "base/pool.h"
#include "base/sig.h"
#include "format/modeldir.h"
#include "format/pack_int.h"
#include "format/stored.h"

#define SLOTS 4
#define THREADS 3			/* beside the pool */
#define PIECE_MOST ((int64_t)8 << 20)	/* as float32; larger ones gain nothing */
#define WRITEBACK ((int64_t)16 << 20)	/* written before the drive is told to begin */
#define BESIDE ((int64_t)256 << 10)	/* stacks, a writer, a line of the journal */
#define JSON_EXPERT 1700		/* bytes of memory per expert in the manifest as JSON; */
#define JSON_TENSOR 300			/* and per other tensor */

struct slot {
	char *raw, *out;		/* as stored; as written, unless that is the same */
	double *error, *square;		/* of each panel */
	int part, row, n;
	_Atomic bool bad;
};

struct pipe {
	struct pack_job *j;
	struct slot slot[SLOTS];
	float *scratch;			/* (threads, 2, panel) floats */
	size_t panel;			/* values of the largest */
	char *memory;

	pthread_mutex_t lock;
	pthread_cond_t moved;
	int64_t filled, converted, written;	/* slots, from the first on */
	bool all_read, all_written, failed;
	struct err err;			/* what failed first */
	struct pack_file *closing;	/* complete, to be synced and read back; NULL: none */
	struct st_writer *closing_w;
	bool closed;			/* nothing more will be */
};

/* ---- the plan ---- */

static int step_of(const struct stored *s, int64_t bytes)
{
	int n = stored_step(s, bytes);

	return n >= s->rows ? s->rows : n < QUANT_PANEL ? QUANT_PANEL : n / QUANT_PANEL *
	    QUANT_PANEL;
}

struct sizes { size_t raw, out, panel; int panels; };

static int measure(struct pack_job *j, int64_t piece, struct sizes *z, struct err *e)
{
	*z = (struct sizes){ 64, 64, 16, 1 };
	for (int i = 0; i < j->nparts; i++) {
		struct pack_part *pt = &j->part[i];
		int n = QUANT_PANEL < pt->pa->rows ? QUANT_PANEL : pt->pa->rows;
		struct stored s;

		if (stored_find(j->p->md, pt->pa, &s, e) < 0)
			return -1;
		pt->step = step_of(&s, piece);
		pt->stored = stored_bytes(&s, pt->pa->rows);
		z->raw = (size_t)mem_max((int64_t)z->raw, stored_bytes(&s, pt->step));
		if (pt->was != pt->to)
			z->out = (size_t)mem_max((int64_t)z->out,
			    (int64_t)mat_bytes(pt->to, pt->step, pt->pa->cols));
		z->panel = (size_t)mem_max((int64_t)z->panel, (int64_t)n * pt->pa->cols);
		z->panels = (int)mem_max(z->panels, quant_panels(pt->step));
	}
	return 0;
}

/* Memory of the pipe, cut into its pieces; p may be NULL, to count. */
static int64_t carve(struct pipe *p, char *base, const struct sizes *z)
{
	struct carve c = { .base = base };

	for (int i = 0; i < SLOTS; i++) {
		struct slot s = { .raw = mem_carve(&c, (int64_t)z->raw, 1),
		    .out = mem_carve(&c, (int64_t)z->out, 1),
		    .error = mem_carve(&c, z->panels, sizeof *s.error),
		    .square = mem_carve(&c, z->panels, sizeof *s.square) };

		if (p)
			p->slot[i] = s;
	}
	c.used = (c.used + 4095) & ~(int64_t)4095;
	if (p)
		p->j->buf = c.base + c.used;
	c.used += (int64_t)PACK_CHUNK;
	if (p) {
		p->panel = z->panel;
		p->scratch = (float *)(void *)(c.base + c.used);
	}
	mem_carve(&c, (int64_t)z->panel * 2 * pool_threads(), sizeof(float));
	return c.used;
}

static int64_t json_bytes(const struct pack_job *j)
{
	const struct manifest *m = j->p->manifest;
	int64_t experts = m ? (int64_t)j->p->md->cfg.num_sparse * m->experts : 0;

	return experts * JSON_EXPERT + (j->nparts - 3 * experts) * JSON_TENSOR;
}

static void plan_items(struct pack_job *j, struct mem_plan *plan, const struct sizes *z)
{
	int64_t pipe = carve(NULL, NULL, z), json = json_bytes(j);

	mem_plan_add(plan, "pieces of matrices", pipe);
	mem_plan_add(plan, "list of matrices", j->nparts * (int64_t)sizeof *j->part);
	mem_plan_add(plan, "readers and writers", BESIDE);
	if (json > pipe)	/* when pieces are freed */
		mem_plan_add(plan, "manifest", json - pipe);
}

int pack_pipe_plan(struct pack_job *j, struct mem_plan *plan, int64_t limit, struct err *e)
{
	struct mem_plan try;
	struct sizes z;

	for (j->piece = PIECE_MOST;; j->piece /= 2) {
		if (measure(j, j->piece, &z, e) < 0)
			return -1;
		try = *plan;
		plan_items(j, &try, &z);
		if (!limit || mem_plan_total(&try) <= limit || j->piece == 0)
			break;
	}
	*plan = try;
	return 0;
}

/* ---- slots ---- */

static void fail(struct pipe *p, const struct err *e)
{
	pthread_mutex_lock(&p->lock);
	if (!p->failed)
		p->err = *e;
	p->failed = true;
	pthread_cond_broadcast(&p->moved);
	pthread_mutex_unlock(&p->lock);
}

/* Waits until *count is above at, or *end. False: it never will be, or all has failed. */
static bool await(struct pipe *p, const int64_t *count, int64_t at, const bool *end)
{
	bool more;

	pthread_mutex_lock(&p->lock);
	while (*count <= at && !p->failed && !(end && *end))
		pthread_cond_wait(&p->moved, &p->lock);
	more = *count > at && !p->failed;
	pthread_mutex_unlock(&p->lock);
	return more;
}

static void advance(struct pipe *p, int64_t *count)
{
	pthread_mutex_lock(&p->lock);
	(*count)++;
	pthread_cond_broadcast(&p->moved);
	pthread_mutex_unlock(&p->lock);
}

static void finish(struct pipe *p, bool *end)
{
	pthread_mutex_lock(&p->lock);
	*end = true;
	pthread_cond_broadcast(&p->moved);
	pthread_mutex_unlock(&p->lock);
}

/* ---- reading ---- */

/* Pages that were read are of no more use to anybody. */
static void drop_pages(const struct st_file *st, const struct st_tensor *t)
{
	if (st && t && st_fd(st) >= 0)
		posix_fadvise(st_fd(st), (off_t)t->offset, (off_t)t->nbytes, POSIX_FADV_DONTNEED);
}

static int read_part(struct pipe *p, int i, const struct stored *s, struct err *e)
{
	struct pack_part *pt = &p->j->part[i];

	pt->source = 0;
	for (int row = 0; row < pt->pa->rows; row += pt->step) {
		int n = pt->pa->rows - row < pt->step ? pt->pa->rows - row : pt->step;
		struct slot *slot = &p->slot[p->filled % SLOTS];

		if (!await(p, &p->written, p->filled - SLOTS, NULL))
			return -1;
		if (stored_read(s, row, n, slot->raw, e) < 0) {
			fail(p, e);
			return -1;
		}
		pt->source = crc_32_more(pt->source, slot->raw, (size_t)stored_bytes(s, n));
		slot->part = i;
		slot->row = row;
		slot->n = n;
		advance(p, &p->filled);
	}
	return 0;
}

static void *reader(void *arg)
{
	struct pipe *p = arg;
	struct pack_job *j = p->j;
	struct stored s, before = { 0 };
	struct err e = { 0 };

	for (int k = 0; k < j->nfiles; k++)
		for (int i = 0; i < j->file[k].n && !j->file[k].done; i++) {
			const struct param *pa = j->part[j->file[k].first + i].pa;

			if (stored_find(j->p->md, pa, &s, &e) < 0) {
				fail(p, &e);
				return NULL;
			}
			if (s.t != before.t)
				drop_pages(before.st, before.t);
			before = s;
			if (read_part(p, j->file[k].first + i, &s, &e) < 0)
				return NULL;
		}
	drop_pages(before.st, before.t);
	finish(p, &p->all_read);
	return NULL;
}

/* ---- converting ---- */

static void to_f32(float *x, const void *src, enum dtype t, int n, int cols)
{
	if (dtype_blocks(t))
		quant_unpack_panel(x, src, t, n, cols);
	else
		tensor_to_f32(x, src, t, (size_t)n * (size_t)cols);
}

/* What is lost; not finite where a value of either is not. In the same order whatever the vectors
 * of the machine are. */
static void losses(const float *x, const float *back, size_t n, double *error, double *square)
{
	double err[8] = { 0 }, sq[8] = { 0 };
	size_t i = 0;

	for (; i + 8 <= n; i += 8)
		for (size_t k = 0; k < 8; k++) {
			double d = (double)back[i + k] - (double)x[i + k];

			err[k] += d * d;
			sq[k] += (double)x[i + k] * (double)x[i + k];
		}
	for (; i < n; i++) {
		double d = (double)back[i] - (double)x[i];

		err[0] += d * d;
		sq[0] += (double)x[i] * (double)x[i];
	}
	*error = *square = 0;
	for (size_t k = 0; k < 8; k++) {
		*error += err[k];
		*square += sq[k];
	}
}

static size_t rows_at(enum dtype t, int64_t panel, int cols)
{
	return dtype_blocks(t) ? (size_t)panel * quant_panel_bytes(t, cols)
	    : (size_t)panel * QUANT_PANEL * (size_t)cols * dtype_size(t);
}

struct convert {			/* a slot in the hands of the pool */
	struct pipe *p;
	struct slot *s;
	const struct pack_part *pt;
};

/* A piece that stays as it is holds numbers all the same. */
static bool kept(const struct convert *c, int64_t panel, int n, float *x)
{
	const char *raw = c->s->raw + rows_at(c->pt->was, panel, c->pt->pa->cols);
	size_t values = (size_t)n * (size_t)c->pt->pa->cols;

	if (!dtype_blocks(c->pt->was))
		return tensor_finite(raw, c->pt->was, values);
	if (!dtype_rounded(c->pt->was))
		return published_finite(raw, c->pt->was, c->pt->pa->cols);
	to_f32(x, raw, c->pt->was, n, c->pt->pa->cols);
	return tensor_finite(x, DT_F32, values);
}

static bool converted(const struct convert *c, int64_t panel, int n, float *x, float *back)
{
	enum dtype to = c->pt->to;
	int cols = c->pt->pa->cols;
	char *out = c->s->out + rows_at(to, panel, cols);
	size_t values = (size_t)n * (size_t)cols;

	to_f32(x, c->s->raw + rows_at(c->pt->was, panel, cols), c->pt->was, n, cols);
	if (!dtype_blocks(to))
		tensor_from_f32(out, to, x, values);
	else if (quant_pack_panel(out, to, x, n, cols) < 0)
		return false;
	to_f32(back, out, to, n, cols);
	losses(x, back, values, &c->s->error[panel], &c->s->square[panel]);
	return isfinite(c->s->error[panel]) && isfinite(c->s->square[panel]);
}

static void convert_panels(void *ctx, int64_t i0, int64_t i1, int worker)
{
	const struct convert *c = ctx;
	float *x = c->p->scratch + 2 * c->p->panel * (size_t)worker, *back = x + c->p->panel;

	for (int64_t i = i0; i < i1; i++) {
		int left = c->s->n - (int)i * QUANT_PANEL,
		    n = left < QUANT_PANEL ? left : QUANT_PANEL;

		if (!(c->pt->was == c->pt->to ? kept(c, i, n, x) : converted(c, i, n, x, back)))
			c->s->bad = true;
	}
}

static int convert(struct pipe *p, struct slot *s, struct err *e)
{
	struct pack_part *pt = &p->j->part[s->part];
	struct convert c = { p, s, pt };
	int64_t values = (int64_t)QUANT_PANEL * pt->pa->cols;

	s->bad = false;
	if (s->row == 0)
		pt->error = pt->square = 0;
	pool_for(quant_panels(s->n), 1 + 16384 / values, convert_panels, &c);
	if (s->bad)
		return pack_refuse(p->j->p, pt->pa, pt->was, pt->to, e);
	for (int i = 0; pt->was != pt->to && i < quant_panels(s->n); i++) {
		pt->error += s->error[i];
		pt->square += s->square[i];
	}
	return 0;
}

/* ---- writing ---- */

struct output {				/* the file being written */
	struct pack_file *f;
	struct st_writer *w;
	int64_t told, at;		/* bytes that the drive was told of, bytes written */
};

static void write_back(struct output *o, size_t n)
{
	o->at += (int64_t)n;
	if (o->at - o->told < WRITEBACK)
		return;
	sync_file_range(st_writer_fd(o->w), o->told, o->at - o->told, SYNC_FILE_RANGE_WRITE);
	o->told = o->at;
}

static int write_slot(struct pack_job *j, struct output *o, const struct slot *s, struct err *e)
{
	struct pack_part *pt = &j->part[s->part];
	size_t n = mat_bytes(pt->to, s->n, pt->pa->cols);
	const char *data = pt->was == pt->to ? s->raw : s->out;
	struct st_error se;

	if (!o->w && !(o->w = pack_begin_file(j, o->f, e)))
		return -1;
	pt->crc = crc_32_more(s->row ? pt->crc : 0, data, n);
	if (st_writer_data(o->w, data, n, &se) < 0)
		return modeldir_st_err(e, o->f->name, &se);
	write_back(o, n);
	return 0;
}

/* Hands the file to the thread that syncs it. */
static bool close_file(struct pipe *p, struct output *o)
{
	bool taken;

	pthread_mutex_lock(&p->lock);
	while (p->closing && !p->failed)
		pthread_cond_wait(&p->moved, &p->lock);
	taken = !p->failed;
	if (taken) {
		p->closing = o->f;
		p->closing_w = o->w;
		pthread_cond_broadcast(&p->moved);
	}
	pthread_mutex_unlock(&p->lock);
	if (!taken)
		st_writer_abort(o->w);
	*o = (struct output){ 0 };
	return taken;
}

static void *writer(void *arg)
{
	struct pipe *p = arg;
	struct pack_job *j = p->j;
	struct output o = { 0 };
	struct err e = { 0 };

	for (int k = 0; await(p, &p->converted, p->written, &p->all_written);) {
		const struct slot *s = &p->slot[p->written % SLOTS];
		bool last = s->row + s->n == j->part[s->part].pa->rows;

		while (s->part >= j->file[k].first + j->file[k].n || j->file[k].done)
			k++;
		o.f = &j->file[k];
		last &= s->part == o.f->first + o.f->n - 1;
		if (write_slot(j, &o, s, &e) < 0) {
			fail(p, &e);
			break;
		}
		advance(p, &p->written);
		if (last && !close_file(p, &o))
			break;
	}
	st_writer_abort(o.w);
	finish(p, &p->closed);
	return NULL;
}

/* ---- syncing and reading back ---- */

static int close_one(struct pipe *p, struct err *e)
{
	struct st_writer *w = p->closing_w;
	struct st_error se;

	p->closing_w = NULL;
	if (st_writer_finish(w, &se) < 0)
		return modeldir_st_err(e, p->closing->name, &se);
	return pack_journal_add(p->j, p->closing, e);
}

static void *closer(void *arg)
{
	struct pipe *p = arg;
	struct err e = { 0 };
	bool more = true;

	while (more) {
		pthread_mutex_lock(&p->lock);
		while (!p->closing && !p->closed)
			pthread_cond_wait(&p->moved, &p->lock);
		more = p->closing != NULL;
		pthread_mutex_unlock(&p->lock);
		if (more && close_one(p, &e) < 0)
			fail(p, &e);
		pthread_mutex_lock(&p->lock);
		p->closing = NULL;
		pthread_cond_broadcast(&p->moved);
		pthread_mutex_unlock(&p->lock);
	}
	return NULL;
}

/* ---- all together ---- */

int pack_stopped(struct err *e)
{
	return err_set(e, EX_TEMPFAIL, "stopped by signal %d", (int)sig_stop);
}

/* Waits for a piece that was read, and looks for signals meanwhile. */
static bool next_piece(struct pipe *p)
{
	struct err e = { 0 };
	struct timespec t;
	bool more;

	pthread_mutex_lock(&p->lock);
	while (p->filled <= p->converted && !p->failed && !p->all_read && !sig_stop) {
		clock_gettime(CLOCK_REALTIME, &t);
		t.tv_sec += 1;
		pthread_cond_timedwait(&p->moved, &p->lock, &t);
	}
	more = p->filled > p->converted && !p->failed && !sig_stop;
	pthread_mutex_unlock(&p->lock);
	if (sig_stop && pack_stopped(&e) < 0)
		fail(p, &e);
	return more;
}

static void say(struct pack_job *j, double began, int64_t before)
{
	double s = progress_clock() - began;

	progress_at(&j->bar, (double)j->done / 1e6, "%.1f MB/s",
	    s > 0 ? (double)(j->done - before) / 1e6 / s : 0);
}

static void convert_all(struct pipe *p)
{
	struct pack_job *j = p->j;
	double began = progress_clock();
	int64_t before = j->done;
	struct err e = { 0 };

	isa_name();		/* chosen before there are threads that ask */
	while (next_piece(p)) {
		struct slot *s = &p->slot[p->converted % SLOTS];
		const struct pack_part *pt = &j->part[s->part];
		int64_t bytes = (int64_t)mat_bytes(pt->was, s->n, pt->pa->cols);

		if (convert(p, s, &e) < 0) {
			fail(p, &e);
			return;
		}
		advance(p, &p->converted);
		j->done += bytes;
		say(j, began, before);
	}
	finish(p, &p->all_written);
}

/* Signals go to the main thread (pool.h). */
static int start(pthread_t *t, void *(*fn)(void *), struct pipe *p)
{
	sigset_t all, old;
	int rc;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	rc = pthread_create(t, NULL, fn, p);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return rc;
}

static int run(struct pipe *p)
{
	void *(*const role[THREADS])(void *) = { closer, writer, reader };
	pthread_t thread[THREADS];
	struct err e = { 0 };
	int n = 0;

	for (; n < THREADS && start(&thread[n], role[n], p) == 0; n++)
		;
	if (n < THREADS) {
		err_set(&e, EX_OSERR, "cannot start a thread");
		fail(p, &e);
		if (n < 2)
			finish(p, &p->closed);
	}
	convert_all(p);
	for (int i = 0; i < n; i++)
		pthread_join(thread[i], NULL);
	st_writer_abort(p->closing_w);
	return p->failed ? -1 : 0;
}

int pack_pipe(struct pack_job *j, struct err *e)
{
	struct pipe p = { .j = j, .lock = PTHREAD_MUTEX_INITIALIZER,
	    .moved = PTHREAD_COND_INITIALIZER };
	struct sizes z;
	int rc;

	if (measure(j, j->piece, &z, e) < 0)
		return -1;
	p.memory = mem_alloc((size_t)carve(NULL, NULL, &z) + 4096);
	carve(&p, (char *)(((uintptr_t)p.memory + 4095) & ~(uintptr_t)4095), &z);
	rc = run(&p);
	if (rc < 0)
		*e = p.err;
	j->buf = NULL;
	mem_free(p.memory);
	return rc;
}
