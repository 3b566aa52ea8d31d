#include "experts/store.h"

#include <assert.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <zlib.h>

#include "experts/cache.h"
#include "base/crc.h"
#include "base/pool.h"
#include "backend/quant.h"
#include "base/progress.h"

#define DEMANDS ((int64_t)16 << 20)	/* bytes of demanded reads under way at once, */
#define GUESSES ((int64_t)3 << 20)	/* and of guesses: a demand that comes waits for no more
					   than these */
#define MERGED ((int64_t)1 << 20)	/* neighbours are read together up to this */
#define SPLIT ((int64_t)512 << 10)	/* demanded experts are read in two from this size on, so
					   that gate and up can be used first */
#define WARM_PASSES 8			/* through all layers: after them what a run before has
					   recorded says nothing any more */
#define CRC_PIECE ((int64_t)256 << 10)

struct fetched {			/* the last read of an expert, or that under way */
	enum { FAULT_NONE, FAULT_READ, FAULT_EOF, FAULT_CRC } fault;
	int error;
	uint32_t crc;			/* that of what was read, where it is wrong */
	int pieces;			/* still to come */
	bool gate_up;			/* is there */
	int64_t got;			/* bytes */
};

struct flight {				/* a read under way: experts that lie one behind the
					   other in their file */
	struct reader_job job;
	int key[READER_PARTS];
	size_t need[READER_PARTS];	/* bytes of the job with which each part is there */
	bool demand, gate_up;		/* gate_up: brings only these of a split expert */
	int64_t bytes;
	struct flight *free;		/* next that is not in use */
};

struct store {
	int layers, experts, D, F;
	const struct expert *resident;	/* (layers, experts); NULL: streamed, and all below is
					   used */
	uint64_t resident_hits;		/* demands of a resident store */
	int all;			/* experts there are */
	bool complete;			/* and all of them are in memory, each in a slot of its
					   own */

	struct place *place;		/* (layers, experts) */
	int *after;			/* (layers, experts) key of the expert that follows in
					   the file, or -1 */
	char *dir, **file;		/* for messages */
	int nfiles;
	enum dtype dt[3];
	int64_t gate_bytes, up_bytes;

	const struct backend *be;
	char *base;			/* (slots, slot_bytes), a multiple of 4096 each: where */
	dev_byte *dev;			/* files are read to, and the same on the device */
	uint64_t *copied;		/* (slots) the event after the last copy of a slot */
	int64_t map_bytes, slot_bytes, split;
	int slots, most;		/* in use, always the first; there are */
	int layer_needs, token_needs;	/* experts of one token in one layer, in all */

	struct reader *reader;
	struct flight *flight, *idle;	/* (READER_JOBS) */
	int64_t flying[2];		/* bytes under way: guesses, demands */
	int flights;
	double since, busy;		/* when reads began to be under way; seconds before that */

	struct cache *cache;
	struct fetched *fetched;	/* (layers, experts) */
	bool *checked;			/* (layers, experts) the CRC was right once */
	int failed;			/* the last expert whose read failed, if it has not been
					   read since; or -1 */
	struct fetched failure;		/* what happened to it */
	double stall;
	uint64_t requests, given;	/* given: bytes, by store_resize */
};

static int key(const struct store *s, int layer, int id)
{
	assert(layer >= 0 && layer < s->layers && id >= 0 && id < s->experts);
	return layer * s->experts + id;
}

/*
 * Planning.
 */

struct plan {
	int keys, slots;
	int64_t slot_bytes, map_bytes;
};

static int64_t working_set(const struct config *c)	/* experts of one token */
{
	int K = c->num_experts_per_tok < c->num_experts ? c->num_experts_per_tok : c->num_experts;

	return (int64_t)K * c->num_sparse;
}

static struct plan plan(const struct config *c, const struct manifest *m, const struct store_opt *o)
{
	struct plan p = { .keys = m->layers * m->experts };
	int64_t n = (int64_t)c->num_sparse * c->num_experts, fit;

	p.slot_bytes = reader_round(m->gate_bytes + m->up_bytes + m->down_bytes);
	fit = o->bytes == 0 || o->bytes / p.slot_bytes > n ? n : o->bytes / p.slot_bytes;
	p.slots = fit > 0 ? (int)fit : 0;
	p.map_bytes = p.slots * p.slot_bytes;
	return p;
}

int64_t store_plan_bytes(const struct config *c, const struct manifest *m,
    const struct store_opt *o)
{
	struct plan p = plan(c, m, o);

	return p.map_bytes + cache_bytes(p.keys, p.slots) + reader_bytes(m->nclusters,
	    o->reader.threads)
	    + (int64_t)p.keys * (int64_t)(sizeof(struct place) + sizeof(struct fetched) +
	    sizeof(bool) + sizeof(int))
	    + p.slots * (int64_t)sizeof(uint64_t)
	    + READER_JOBS * (int64_t)sizeof(struct flight) + (int64_t)sizeof(struct store);
}

int64_t store_min_bytes(const struct config *c, const struct manifest *m)
{
	return working_set(c) * reader_round(m->gate_bytes + m->up_bytes + m->down_bytes);
}

static int check_budget(const struct plan *p, const struct config *c, const struct store_opt *o,
    struct err *e)
{
	int64_t need = working_set(c);

	if (p->slots >= need)
		return 0;
	if (!o->force)
		return err_set(e, EX_OSERR, "%lld bytes hold %d experts, but one token needs %lld "
		    "(%d layers x %d): "
		    "give the experts %lld bytes, or force it", (long long)o->bytes, p->slots,
		    (long long)need,
		    c->num_sparse, c->num_experts_per_tok, (long long)(need * p->slot_bytes));
	need /= c->num_sparse;
	if (p->slots < need)
		return err_set(e, EX_OSERR, "%lld bytes hold %d experts, but one layer needs %lld "
		    "at once: "
		    "give the experts at least %lld bytes", (long long)o->bytes, p->slots,
		    (long long)need,
		    (long long)(need * p->slot_bytes));
	return 0;
}

/*
 * Checking the manifest.
 */

static bool right_size(int64_t bytes, int rows, int cols, enum dtype t)
{
	size_t n = mat_bytes(t, rows, cols);

	return n > 0 && n < INT64_MAX / 8 && bytes == (int64_t)n;
}

static int check_shape(const char *dir, const struct config *c, const struct manifest *m,
    struct err *e)
{
	int F = c->moe_intermediate_size, D = c->hidden_size;

	if (m->layers != c->num_hidden_layers || m->experts != c->num_experts)
		return err_set(e, EX_DATAERR, "%s: the manifest has %d layers of %d experts, the "
		    "model %d of %d", dir,
		    m->layers, m->experts, c->num_hidden_layers, c->num_experts);
	if (m->layers <= 0 || m->experts <= 0 || m->layers > INT_MAX / 2 / m->experts ||
	    c->num_sparse <= 0)
		return err_set(e, EX_DATAERR, "%s: no experts", dir);
	if (!right_size(m->gate_bytes, F, D, m->dt[0]) || !right_size(m->up_bytes, F, D, m->dt[1])
	    || !right_size(m->down_bytes, D, F, m->dt[2]))
		return err_set(e, EX_DATAERR, "%s: matrices of %lld, %lld and %lld bytes are not "
		    "%s, %s and %s of %d x %d", dir,
		    (long long)m->gate_bytes, (long long)m->up_bytes, (long long)m->down_bytes,
		    dtype_name(m->dt[0]),
		    dtype_name(m->dt[1]), dtype_name(m->dt[2]), F, D);
	return 0;
}

static int check_place(const struct store *s, const struct manifest *m, int layer, int id,
    struct err *e)
{
	const struct place *p = manifest_at(m, layer, id);
	int64_t bytes = m->gate_bytes + m->up_bytes + m->down_bytes;

	if (p->cluster < 0 || p->cluster >= m->nclusters)
		return err_set(e, EX_DATAERR, "%s: layer %d, expert %d has no file", s->dir, layer,
		    id);
	if (p->bytes != bytes || p->offset < 0 || p->offset % READER_ALIGN != 0)
		return err_set(e, EX_DATAERR, "%s/%s: layer %d, expert %d: %lld bytes at offset "
		    "%lld, expected %lld "
		    "at a multiple of %d", s->dir, m->file[p->cluster], layer, id,
		    (long long)p->bytes,
		    (long long)p->offset, (long long)bytes, READER_ALIGN);
	if (bytes > reader_size(s->reader, p->cluster) || p->offset > reader_size(s->reader,
	    p->cluster) - bytes)
		return err_set(e, EX_DATAERR, "%s/%s: layer %d, expert %d: %lld bytes at offset "
		    "%lld of a file of %lld",
		    s->dir, m->file[p->cluster], layer, id, (long long)bytes, (long long)p->offset,
		    (long long)reader_size(s->reader, p->cluster));
	return 0;
}

static int check_places(const struct store *s, const struct config *c, const struct manifest *m,
    struct err *e)
{
	int l, i;

	for (l = 0; l < m->layers; l++)
		for (i = 0; c->block[l].sparse && i < m->experts; i++)
			if (check_place(s, m, l, i, e) < 0)
				return -1;
	return 0;
}

/*
 * Reads.
 */

struct crc_work { const char *p; int64_t n; uint32_t *crc; };

static void crc_pieces(void *ctx, int64_t i0, int64_t i1, int worker)
{
	const struct crc_work *w = ctx;

	(void)worker;
	for (int64_t i = i0; i < i1; i++) {
		int64_t at = i * CRC_PIECE, n = w->n - at < CRC_PIECE ? w->n - at : CRC_PIECE;

		w->crc[i] = crc_32(w->p + at, (size_t)n);
	}
}

/* By all threads: on the first pass through a model every expert is checked, while the drive
 * reads the next. */
static uint32_t crc_of(const char *p, int64_t n)
{
	uint32_t piece[64], crc;
	struct crc_work w = { p, n, piece };
	int64_t pieces = (n + CRC_PIECE - 1) / CRC_PIECE;

	if (pieces > 64)
		return crc_32(p, (size_t)n);
	pool_for(pieces, 1, crc_pieces, &w);
	crc = piece[0];
	for (int64_t i = 1; i < pieces; i++)
		crc = (uint32_t)crc32_combine(crc, piece[i], i + 1 < pieces ? CRC_PIECE
		    : n - i * CRC_PIECE);
	return crc;
}

/* Bytes from..to of expert k have come: they go on to the device. */
static void to_device(struct store *s, int k, int64_t from, int64_t to)
{
	int slot = cache_slot(s->cache, k);
	int64_t at = slot * s->slot_bytes + from;

	s->be->put_async(s->be, s->dev + at, s->base + at, (size_t)(to - from));
	s->copied[slot] = s->be->event_record(s->be);
}

/* All of expert k is there, or will not come. */
static void finish(struct store *s, int k)
{
	struct fetched *f = &s->fetched[k];
	const struct place *p = &s->place[k];

	if (f->fault == FAULT_NONE && !s->checked[k]) {
		f->crc = crc_of(s->base + cache_slot(s->cache, k) * s->slot_bytes, p->bytes);
		s->checked[k] = f->crc == p->crc;
		f->fault = s->checked[k] ? FAULT_NONE : FAULT_CRC;
	}
	if (f->fault != FAULT_NONE) {
		s->failed = k;
		s->failure = *f;
	} else if (s->failed == k)
		s->failed = -1;
	if (f->fault == FAULT_NONE)
		to_device(s, k, f->gate_up ? s->gate_bytes + s->up_bytes : 0, p->bytes);
	cache_done(s->cache, k, f->got, f->fault == FAULT_NONE);
}

/* Takes in part i of a flight, of which `got` bytes were read. */
static void land(struct store *s, struct flight *f, int i, size_t got)
{
	struct fetched *x = &s->fetched[f->key[i]];

	x->got += (int64_t)got;
	if (f->job.error != 0 && f->job.have < f->need[i]) {
		x->fault = f->job.error == READER_EOF ? FAULT_EOF : FAULT_READ;
		x->error = f->job.error;
	} else if (f->gate_up) {
		x->gate_up = true;
		to_device(s, f->key[i], 0, s->gate_bytes + s->up_bytes);
	}
	if (--x->pieces == 0)
		finish(s, f->key[i]);
}

static void submit(struct store *s, struct flight *f)
{
	s->flying[f->demand] += f->bytes;
	if (s->flights++ == 0)
		s->since = progress_clock();
	s->requests++;
	reader_submit(s->reader, &f->job);
}

/* Reads the parts of a flight from the i-th on again, which begins at byte `begin`: what failed
 * is in one before. */
static void read_rest(struct store *s, struct flight *f, int i, size_t begin)
{
	int n = f->job.n - i;

	memmove(f->key, f->key + i, (size_t)n * sizeof *f->key);
	memmove(f->job.part, f->job.part + i, (size_t)n * sizeof *f->job.part);
	memmove(f->need, f->need + i, (size_t)n * sizeof *f->need);
	for (int j = 0; j < n; j++)
		f->need[j] -= begin;
	f->job.n = n;
	f->job.need = f->need[n - 1];
	f->job.offset += (int64_t)begin;
	f->bytes -= (int64_t)begin;
	submit(s, f);
}

static void land_all(struct store *s, struct flight *f)
{
	size_t begin = 0, got;
	bool failed = false;
	int i = 0;

	s->flying[f->demand] -= f->bytes;
	if (--s->flights == 0)
		s->busy += progress_clock() - s->since;
	for (; i < f->job.n && !failed; i++) {
		size_t whole = f->job.part[i].iov_len;

		failed = f->job.error != 0 && f->job.have < f->need[i];
		/* What was read twice after a short read belongs to the last. */
		got = f->job.got > begin ? f->job.got - begin : 0;
		land(s, f, i, !failed && i + 1 < f->job.n && got > whole ? whole : got);
		begin += whole;
	}
	s->complete = cache_residents(s->cache) == s->all;
	if (i < f->job.n) {
		read_rest(s, f, i, begin);
		return;
	}
	f->free = s->idle;
	s->idle = f;
}

static struct flight *new_flight(struct store *s, int k, bool demand)
{
	struct flight *f = s->idle;

	s->idle = f->free;
	f->demand = demand;
	f->gate_up = false;
	f->bytes = 0;
	f->job.n = 0;
	f->job.file = s->place[k].cluster;
	f->job.offset = s->place[k].offset;
	return f;
}

/* Bytes from..to of expert k, whole pages, of which those up to `need` must come. */
static void add_part(struct store *s, struct flight *f, int k, int slot, int64_t from, int64_t to,
    int64_t need)
{
	s->be->event_wait(s->be, s->copied[slot], true);
	s->fetched[k].pieces++;
	f->job.part[f->job.n] = (struct iovec){ s->base + slot * s->slot_bytes + from,
	    (size_t)(to - from) };
	f->job.need = f->need[f->job.n] = (size_t)(f->bytes + need - from);
	f->key[f->job.n++] = k;
	f->bytes += to - from;
}

/* Starts the read of k, in two if it is large, with those behind it in the file that are wanted,
 * too, if it is small. */
static void start(struct store *s, int k, int slot, bool demand)
{
	int64_t bytes = s->place[k].bytes, half = reader_round(s->gate_bytes + s->up_bytes);
	struct flight *f = new_flight(s, k, demand);

	s->fetched[k] = (struct fetched){ 0 };
	if (demand && s->slot_bytes >= s->split && half < s->slot_bytes && s->idle != NULL) {
		add_part(s, f, k, slot, 0, half, half);
		f->gate_up = true;
		submit(s, f);
		f = new_flight(s, k, demand);
		f->job.offset += half;
		add_part(s, f, k, slot, half, s->slot_bytes, bytes);
	} else
		add_part(s, f, k, slot, 0, s->slot_bytes, bytes);
	while ((k = s->after[k]) >= 0 && f->job.n < READER_PARTS && f->bytes + s->slot_bytes <=
	    MERGED
	    && cache_take_too(s->cache, k, demand, &slot)) {
		s->fetched[k] = (struct fetched){ 0 };
		add_part(s, f, k, slot, 0, s->slot_bytes, s->place[k].bytes);
	}
	submit(s, f);
}

static void start_reads(struct store *s)
{
	int k, slot;

	while (s->idle != NULL) {
		bool demand = cache_queued(s->cache);
		int64_t most = demand ? DEMANDS : GUESSES, under_way = s->flying[demand];

		if ((under_way > 0 && under_way + s->slot_bytes > most) ||
		    (k = cache_take(s->cache, &slot)) < 0)
			return;
		start(s, k, slot, demand);
	}
}

/* wait: until a read has ended. false: none is under way. */
static bool pump(struct store *s, bool wait)
{
	struct reader_job *job;
	bool any = false;

	start_reads(s);
	while ((job = reader_reap(s->reader, wait && !any)) != NULL) {
		land_all(s, (struct flight *)job);
		start_reads(s);
		any = true;
	}
	return any || s->flights > 0;
}

void store_poll(struct store *s)
{
	if (!s->complete && !s->resident && (s->flights > 0 || cache_work(s->cache)))
		pump(s, false);
}

/*
 * Opening and closing.
 */

/* Touches every page, so that what the plan says is really there and no read waits for the
 * kernel to find memory. */
static void touch_slots(struct store *s, int from, int to)
{
	for (int64_t i = from * s->slot_bytes; i < to * s->slot_bytes; i += READER_ALIGN)
		s->base[i] = 0;
}

static int map_slots(struct store *s, const struct plan *p, struct err *e)
{
	void *dev;

	s->base = s->be->alloc_pinned(s->be, (size_t)p->map_bytes, &dev);
	if (s->base == NULL)
		return err_set(e, EX_OSERR, "%s: no memory for %d experts, %lld bytes:", s->dir,
		    p->slots, (long long)p->map_bytes);
	s->dev = dev;
	s->map_bytes = p->map_bytes;
	touch_slots(s, 0, p->slots);
	return 0;
}

static bool copy_names(struct store *s, const char *dir, const struct manifest *m)
{
	s->dir = strdup(dir);
	s->file = calloc((size_t)m->nclusters + 1, sizeof *s->file);
	if (s->dir == NULL || s->file == NULL)
		return false;
	for (; s->nfiles < m->nclusters; s->nfiles++) {
		s->file[s->nfiles] = strdup(m->file[s->nfiles]);
		if (s->file[s->nfiles] == NULL)
			return false;
	}
	return true;
}

static bool alloc_tables(struct store *s, const struct plan *p, const char *dir,
    const struct config *c,
    const struct manifest *m, const struct store_opt *o)
{
	int i;

	s->place = malloc((size_t)p->keys * sizeof *s->place);
	s->fetched = calloc((size_t)p->keys, sizeof *s->fetched);
	s->checked = calloc((size_t)p->keys, sizeof *s->checked);
	s->copied = calloc((size_t)p->slots, sizeof *s->copied);
	s->after = malloc((size_t)p->keys * sizeof *s->after);
	s->flight = calloc(READER_JOBS, sizeof *s->flight);
	s->cache = cache_new(p->keys, p->slots, READER_JOBS, c->num_sparse);
	if (s->place == NULL || s->fetched == NULL || s->checked == NULL || s->copied == NULL ||
	    s->after == NULL ||
	    s->flight == NULL
	    || s->cache == NULL || !copy_names(s, dir, m))
		return false;
	cache_set_policy(s->cache, o->evict, m->experts, c->num_experts_per_tok,
	    c->num_sparse * m->experts);
	cache_set_waste(s->cache, o->waste);
	for (i = 0; i < READER_JOBS; i++) {
		s->flight[i].free = s->idle;
		s->idle = &s->flight[i];
	}
	memcpy(s->place, m->place, (size_t)p->keys * sizeof *s->place);
	for (i = 0; i < p->keys; i++)
		if (!c->block[i / m->experts].sparse)
			s->place[i].cluster = -1;
	return true;
}

static int by_place(const void *a, const void *b, void *arg)
{
	const struct place *place = arg, *p = &place[*(const int *)a], *q = &place[*(const int *)b];

	if (p->cluster != q->cluster)
		return p->cluster < q->cluster ? -1 : 1;
	return p->offset < q->offset ? -1 : p->offset > q->offset;
}

/* Who lies right behind whom. */
static int find_neighbours(struct store *s, struct err *e)
{
	int n = s->layers * s->experts, i, *order = malloc((size_t)n * sizeof *order);

	if (order == NULL)
		return err_set(e, EX_OSERR, "%s: no memory for the order of %d experts", s->dir, n);
	for (i = 0; i < n; i++)
		order[i] = i;
	qsort_r(order, (size_t)n, sizeof *order, by_place, s->place);
	for (i = 0; i < n; i++) {
		const struct place *p = &s->place[order[i]], *q = i + 1 < n
		    ? &s->place[order[i + 1]] : NULL;

		s->after[order[i]] = q && p->cluster >= 0 && q->cluster == p->cluster &&
		    q->offset == p->offset + s->slot_bytes
		    ? order[i + 1] : -1;
	}
	free(order);
	return 0;
}

static struct store *store_new(const struct config *c)
{
	struct store *s = calloc(1, sizeof *s);

	if (s == NULL)
		return NULL;
	s->layers = c->num_hidden_layers;
	s->experts = c->num_experts;
	s->failed = -1;
	s->D = c->hidden_size;
	s->F = c->moe_intermediate_size;
	s->all = c->num_sparse * c->num_experts;
	return s;
}

static int open_streamed(struct store *s, const char *dir, const struct config *c,
    const struct manifest *m,
    const struct store_opt *o, struct err *e)
{
	struct plan p;

	if (check_shape(dir, c, m, e) < 0)
		return -1;
	p = plan(c, m, o);
	if (check_budget(&p, c, o, e) < 0)
		return -1;
	if (!alloc_tables(s, &p, dir, c, m, o))
		return err_set(e, EX_OSERR, "%s: no memory for the tables of %d experts", dir,
		    p.keys);
	memcpy(s->dt, m->dt, sizeof s->dt);
	s->gate_bytes = m->gate_bytes;
	s->up_bytes = m->up_bytes;
	s->slots = s->most = p.slots;
	s->layer_needs = c->num_experts_per_tok;
	s->token_needs = (int)working_set(c);
	s->split = o->split > 0 ? o->split : SPLIT;
	s->slot_bytes = p.slot_bytes;
	s->reader = reader_open(dir, m->file, m->nclusters, &o->reader, e);
	if (s->reader == NULL || check_places(s, c, m, e) < 0 || find_neighbours(s, e) < 0)
		return -1;
	return map_slots(s, &p, e);
}

struct store *store_open(const char *dir, const struct config *c, const struct manifest *m,
    const struct store_opt *o, const struct backend *be, struct err *e)
{
	struct store *s = store_new(c);

	if (s == NULL) {
		err_set(e, EX_OSERR, "%s: no memory for a store", dir);
		return NULL;
	}
	s->be = be;
	if (open_streamed(s, dir, c, m, o, e) < 0) {
		store_close(s);
		return NULL;
	}
	return s;
}

struct store *store_resident(const struct config *c, const struct expert *x)
{
	struct store *s = store_new(c);

	if (s != NULL)
		s->resident = x;
	return s;
}

void store_close(struct store *s)
{
	int i;

	if (s == NULL)
		return;
	reader_close(s->reader);
	if (s->map_bytes > 0)
		s->be->free_pinned(s->be, s->base, (size_t)s->map_bytes);
	cache_free(s->cache);
	for (i = 0; i < s->nfiles; i++)
		free(s->file[i]);
	free(s->file);
	free(s->dir);
	free(s->place);
	free(s->fetched);
	free(s->copied);
	free(s->checked);
	free(s->after);
	free(s->flight);
	free(s);
}

int store_slots(const struct store *s)
{
	return s->resident ? INT_MAX : s->slots;
}

int store_room(const struct store *s)
{
	return s->resident ? INT_MAX : s->slots - cache_pinned(s->cache);
}

const char *store_io(const struct store *s)
{
	return s->resident ? NULL : reader_name(s->reader);
}

bool store_complete(const struct store *s)
{
	return s->resident || s->complete;
}

bool store_direct(const struct store *s)
{
	return s->resident == NULL && reader_direct(s->reader);
}

/*
 * Demanding and predicting.
 */

void store_demand(struct store *s, int layer, const int *ids, int n, uint8_t *status)
{
	static const uint8_t what[] = {
		[CACHE_HIT] = STORE_HIT, [CACHE_LATE] = STORE_LATE, [CACHE_MISS] = STORE_MISS
	};

	assert(n <= store_room(s));
	if (store_complete(s)) {
		for (int i = 0; i < n && !s->resident; i++)
			cache_use(s->cache, key(s, layer, ids[i]));
		s->resident_hits += s->resident ? (uint64_t)n : 0;
		if (status != NULL)
			memset(status, STORE_HIT, (size_t)n);
		return;
	}
	for (int i = 0; i < n; i++) {
		int r = cache_demand(s->cache, key(s, layer, ids[i]));

		if (status != NULL)
			status[i] = what[r];
	}
	pump(s, false);
}

bool store_ready(const struct store *s, int layer, int id)
{
	return store_complete(s) || cache_state(s->cache, key(s, layer, id)) == CACHE_RESIDENT;
}

static int fault_message(const struct store *s, int k, const struct fetched *f, struct err *e)
{
	const struct place *p = &s->place[k];
	int layer = k / s->experts, id = k % s->experts;
	const char *file = s->file[p->cluster];

	if (f->fault == FAULT_CRC)
		return err_set(e, EX_DATAERR, "%s/%s: layer %d, expert %d: CRC-32 is %08x, the "
		    "manifest says %08x", s->dir,
		    file, layer, id, f->crc, p->crc);
	return err_set(e, EX_IOERR, "%s/%s: layer %d, expert %d: %s at offset %lld", s->dir, file,
	    layer, id,
	    f->fault == FAULT_EOF ? "unexpected end of file" : strerror(f->error),
	    (long long)p->offset);
}

int store_failed(const struct store *s, struct err *e)
{
	return s->resident || s->failed < 0 ? 0 : fault_message(s, s->failed, &s->failure, e);
}

static bool arrived(const struct store *s, int k)
{
	int state = cache_state(s->cache, k);

	return state == CACHE_RESIDENT || state == CACHE_FAILED;
}

static int fetch(struct store *s, int k, struct err *e)
{
	double start = progress_clock();
	int status = 0;

	while (!arrived(s, k) && pump(s, true))
		continue;
	if (!arrived(s, k))
		status = err_set(e, EX_SOFTWARE, "layer %d, expert %d: all %d slots are pinned",
		    k / s->experts,
		    k % s->experts, s->slots);
	else if (cache_state(s->cache, k) == CACHE_FAILED)
		status = fault_message(s, k, &s->fetched[k], e);
	if (status < 0)
		cache_abandon(s->cache, k);
	s->stall += progress_clock() - start;
	return status;
}

static void views(const struct store *s, int k, struct expert *x)
{
	int slot = cache_slot(s->cache, k);
	const dev_byte *p = s->dev + slot * s->slot_bytes;

	s->be->event_wait(s->be, s->copied[slot], false);
	x->gate = (struct mat){ p, s->dt[0], s->F, s->D };
	x->up = (struct mat){ p + s->gate_bytes, s->dt[1], s->F, s->D };
	x->down = (struct mat){ p + s->gate_bytes + s->up_bytes, s->dt[2], s->D, s->F };
}

bool store_get_half(struct store *s, int layer, int id, struct expert *x)
{
	int k = key(s, layer, id);
	double begun;

	if (store_ready(s, layer, id))
		return false;
	begun = progress_clock();
	while (!arrived(s, k) && !s->fetched[k].gate_up && pump(s, true))
		continue;
	s->stall += progress_clock() - begun;
	if (cache_state(s->cache, k) != CACHE_READING || !s->fetched[k].gate_up)
		return false;
	views(s, k, x);
	return true;
}

int store_get(struct store *s, int layer, int id, struct expert *x, struct err *e)
{
	int k = key(s, layer, id);

	if (s->resident) {
		*x = s->resident[k];
		return 0;
	}
	if (cache_state(s->cache, k) != CACHE_RESIDENT && fetch(s, k, e) < 0)
		return -1;
	views(s, k, x);
	return 0;
}

void store_put(struct store *s, int layer, int id)
{
	if (!store_complete(s))		/* else pins do not matter any more: nobody leaves */
		cache_put(s->cache, key(s, layer, id));
}

void store_abandon(struct store *s, int layer, int id)
{
	if (!store_complete(s))
		cache_abandon(s->cache, key(s, layer, id));
}

void store_predict(struct store *s, int layer, int id, float prob, int when, int source)
{
	int k = key(s, layer, id);

	if (!store_complete(s) && s->place[k].cluster >= 0)
		cache_predict(s->cache, k, prob, when, source);
}

void store_expect(struct store *s, int layer, int id, float share)
{
	if (!store_complete(s))
		cache_expect(s->cache, key(s, layer, id), share);
}

void store_advance(struct store *s)
{
	if (s->resident)
		return;
	cache_advance(s->cache);
	if (!s->complete)
		pump(s, false);
}

/*
 * Fewer slots, and more again.
 */

int store_most(const struct store *s)
{
	return s->resident ? INT_MAX : s->most;
}

int store_least(const struct store *s)
{
	int n = s->resident ? INT_MAX : cache_pinned(s->cache) + 2 * s->layer_needs;

	if (s->resident || s->most < s->token_needs)
		return store_most(s);
	n = n > s->token_needs ? n : s->token_needs;
	return n < s->most ? n : s->most;
}

int64_t store_slot_bytes(const struct store *s)
{
	return s->resident ? 0 : s->slot_bytes;
}

static void drain(struct store *s)
{
	struct reader_job *job;

	while (s->flights > 0 && (job = reader_reap(s->reader, true)) != NULL)
		land_all(s, (struct flight *)job);
}

static void shrink(struct store *s, int slots)
{
	int before = s->slots, from, to;
	int64_t bytes;

	while (s->slots > slots && cache_shrink(s->cache, &from, &to)) {
		if (from >= 0) {
			s->be->event_wait(s->be, s->copied[from], false);
			s->be->event_wait(s->be, s->copied[to], false);
			s->be->copy(s->be, s->dev + to * s->slot_bytes,
			    s->dev + from * s->slot_bytes, (size_t)s->slot_bytes);
		}
		s->slots--;
	}
	bytes = (before - s->slots) * s->slot_bytes;
	if (madvise(s->base + s->slots * s->slot_bytes, (size_t)bytes, MADV_DONTNEED) == 0)
		s->given += (uint64_t)bytes;
}

int store_resize(struct store *s, int slots)
{
	int before = s->slots;

	if (s->resident)
		return store_slots(s);
	if (s->complete)		/* which keeps no account of what is put back */
		cache_forget_demands(s->cache);
	drain(s);
	if (slots < s->slots)
		shrink(s, slots > store_least(s) ? slots : store_least(s));
	while (s->slots < slots && cache_grow(s->cache))
		s->slots++;
	if (s->slots > before)
		touch_slots(s, before, s->slots);
	s->complete = cache_residents(s->cache) == s->all;
	return s->slots;
}

void store_heat(const struct store *s, float *heat)
{
	for (int k = 0; k < s->layers * s->experts; k++)
		heat[k] = s->resident ? 0 : (float)cache_heat(s->cache, k);
}

static int warmer(const void *a, const void *b, void *arg)
{
	const float *heat = arg, x = heat[*(const int *)a], y = heat[*(const int *)b];

	if (x != y)
		return x > y ? -1 : 1;
	return *(const int *)a - *(const int *)b;
}

int store_warm(struct store *s, const float *heat, int pins, struct err *e)
{
	int n = s->layers * s->experts, *order;

	if (s->resident)
		return 0;
	if (pins > s->slots - 2 * s->layer_needs)
		return err_set(e, EX_OSERR, "%s: pinning %d of %d slots leaves less than two "
		    "layers' worth, %d", s->dir, pins, s->slots,
		    2 * s->layer_needs);
	if ((order = malloc((size_t)n * sizeof *order)) == NULL)
		return err_set(e, EX_OSERR, "%s: no memory for the order of %d experts", s->dir, n);
	for (int i = 0; i < n; i++)
		order[i] = i;
	qsort_r(order, (size_t)n, sizeof *order, warmer, (void *)heat);
	for (int i = 0; i < n; i++)
		cache_set_heat(s->cache, order[i], heat[order[i]]);
	for (int i = 0; i < n && i < s->slots && heat[order[i]] > 0; i++) {
		if (i < pins && s->place[order[i]].cluster >= 0)
			cache_pin(s->cache, order[i]);
		store_predict(s, order[i] / s->experts, order[i] % s->experts, 1,
		    WARM_PASSES * s->layers, STORE_HEAT);
	}
	free(order);
	return 0;
}

void store_stats(const struct store *s, struct store_stats *out)
{
	const struct cache_stats *st;

	*out = (struct store_stats){ .hits = s->resident_hits };
	if (s->resident)
		return;
	st = cache_stats(s->cache);
	*out = (struct store_stats){
		.hits = st->hits, .late = st->late, .misses = st->misses,
		.read_bytes = st->read_bytes, .reads = st->reads, .requests = s->requests,
		.predicted = st->predicted, .predicted_used = st->predicted_used,
		.wasted_bytes = st->wasted_bytes, .expired = st->expired, .stall = s->stall,
		.given_bytes = s->given, .busy = s->busy + (s->flights > 0 ? progress_clock() -
		    s->since : 0),
	};
	memcpy(out->wasted_by, st->wasted_by, sizeof out->wasted_by);
}
