#include "store.h"

#include <assert.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>

#include "cache.h"
#include "crc.h"
#include "quant.h"
#include "reader.h"

#define HUGE_PAGE ((int64_t)2 << 20)
#define STACK (512 << 10)		/* of a reader thread; thread-local arrays of the whole program lie in it too */
#define MAX_READERS 64
#define SPIN 50e-6			/* seconds store_get polls; about what waking a sleeper costs */

struct fault {				/* why the last read of an expert failed */
	enum { FAULT_NONE, FAULT_READ, FAULT_EOF, FAULT_CRC } kind;
	int error;
	uint32_t crc;			/* that of what was read */
};

struct store {
	int layers, experts, D, F;
	const struct expert *resident;	/* (layers, experts); NULL: streamed, and all below is used */
	uint64_t resident_hits;		/* demands that went past the cache */
	int all;			/* experts there are */
	atomic_bool complete;		/* and all of them are in memory, each in a slot of its own */

	struct place *place;		/* (layers, experts) */
	char *dir, **file;		/* for messages */
	int nfiles;
	enum dtype dt[3];
	int64_t gate_bytes, up_bytes;

	char *base;			/* (slots, slot_bytes), a multiple of 4096 each */
	int64_t map_bytes, slot_bytes;
	int slots;

	struct reader *reader;
	pthread_t thread[MAX_READERS];
	int nthreads;

	pthread_mutex_t lock;		/* guards all below */
	pthread_cond_t work, done;
	struct cache *cache;
	bool quit;
	int idle;			/* threads waiting for work */
	int awaited;			/* key store_get sleeps for, or -1 */
	struct fault *fault;		/* (layers, experts) */
	bool *checked;			/* (layers, experts) the CRC was right once */
	double stall;
};

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int key(const struct store *s, int layer, int id)
{
	assert(layer >= 0 && layer < s->layers && id >= 0 && id < s->experts);
	return layer * s->experts + id;
}

/*
 * Planning.
 */

struct plan {
	int keys, slots, readers;
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

	p.readers = o->readers <= 0 ? 2 : o->readers < MAX_READERS ? o->readers : MAX_READERS;
	p.slot_bytes = reader_round(m->gate_bytes + m->up_bytes + m->down_bytes);
	fit = o->bytes == 0 || o->bytes / p.slot_bytes > n ? n : o->bytes / p.slot_bytes;
	p.slots = fit > 0 ? (int)fit : 0;
	p.map_bytes = p.slots * p.slot_bytes;
	return p;
}

int64_t store_plan_bytes(const struct config *c, const struct manifest *m, const struct store_opt *o)
{
	struct plan p = plan(c, m, o);

	return p.map_bytes + cache_bytes(p.keys, p.slots) + (int64_t)p.readers * STACK
	    + (int64_t)p.keys * (int64_t)(sizeof(struct place) + sizeof(struct fault) + sizeof(bool))
	    + (int64_t)sizeof(struct store);
}

int64_t store_min_bytes(const struct config *c, const struct manifest *m)
{
	return working_set(c) * reader_round(m->gate_bytes + m->up_bytes + m->down_bytes);
}

static int check_budget(const struct plan *p, const struct config *c, const struct store_opt *o, struct err *e)
{
	int64_t need = working_set(c);

	if (p->slots >= need)
		return 0;
	if (!o->force)
		return err_set(e, EX_OSERR, "%lld bytes hold %d experts, but one token needs %lld (%d layers x %d): "
		    "give the experts %lld bytes, or force it", (long long)o->bytes, p->slots, (long long)need,
		    c->num_sparse, c->num_experts_per_tok, (long long)(need * p->slot_bytes));
	need /= c->num_sparse;
	if (p->slots < need)
		return err_set(e, EX_OSERR, "%lld bytes hold %d experts, but one layer needs %lld at once: "
		    "give the experts at least %lld bytes", (long long)o->bytes, p->slots, (long long)need,
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

static int check_shape(const char *dir, const struct config *c, const struct manifest *m, struct err *e)
{
	int F = c->moe_intermediate_size, D = c->hidden_size;

	if (m->layers != c->num_hidden_layers || m->experts != c->num_experts)
		return err_set(e, EX_DATAERR, "%s: the manifest has %d layers of %d experts, the model %d of %d", dir,
		    m->layers, m->experts, c->num_hidden_layers, c->num_experts);
	if (m->layers <= 0 || m->experts <= 0 || m->layers > INT_MAX / 2 / m->experts || c->num_sparse <= 0)
		return err_set(e, EX_DATAERR, "%s: no experts", dir);
	if (!right_size(m->gate_bytes, F, D, m->dt[0]) || !right_size(m->up_bytes, F, D, m->dt[1])
	    || !right_size(m->down_bytes, D, F, m->dt[2]))
		return err_set(e, EX_DATAERR, "%s: matrices of %lld, %lld and %lld bytes are not %s, %s and %s of %d x %d", dir,
		    (long long)m->gate_bytes, (long long)m->up_bytes, (long long)m->down_bytes, dtype_name(m->dt[0]),
		    dtype_name(m->dt[1]), dtype_name(m->dt[2]), F, D);
	return 0;
}

static int check_place(const struct store *s, const struct manifest *m, int layer, int id, struct err *e)
{
	const struct place *p = manifest_at(m, layer, id);
	int64_t bytes = m->gate_bytes + m->up_bytes + m->down_bytes;

	if (p->cluster < 0 || p->cluster >= m->nclusters)
		return err_set(e, EX_DATAERR, "%s: layer %d, expert %d has no file", s->dir, layer, id);
	if (p->bytes != bytes || p->offset < 0 || p->offset % READER_ALIGN != 0)
		return err_set(e, EX_DATAERR, "%s/%s: layer %d, expert %d: %lld bytes at offset %lld, expected %lld "
		    "at a multiple of %d", s->dir, m->file[p->cluster], layer, id, (long long)p->bytes,
		    (long long)p->offset, (long long)bytes, READER_ALIGN);
	if (bytes > reader_size(s->reader, p->cluster) || p->offset > reader_size(s->reader, p->cluster) - bytes)
		return err_set(e, EX_DATAERR, "%s/%s: layer %d, expert %d: %lld bytes at offset %lld of a file of %lld",
		    s->dir, m->file[p->cluster], layer, id, (long long)bytes, (long long)p->offset,
		    (long long)reader_size(s->reader, p->cluster));
	return 0;
}

static int check_places(const struct store *s, const struct config *c, const struct manifest *m, struct err *e)
{
	int l, i;

	for (l = 0; l < m->layers; l++)
		for (i = 0; c->sparse[l] && i < m->experts; i++)
			if (check_place(s, m, l, i, e) < 0)
				return -1;
	return 0;
}

/*
 * Reader threads.
 */

static bool check_crc(struct store *s, int k, const struct reader_job *job, struct fault *f)
{
	f->crc = crc_32(job->buf, job->need);
	if (f->crc == s->place[k].crc)
		return true;
	f->kind = FAULT_CRC;
	return false;
}

/* Reads expert k into its slot; called without the lock. */
static bool read_expert(struct store *s, int k, int slot, bool checked, int64_t *got, struct fault *f)
{
	struct reader_job job = {
		.file = s->place[k].cluster, .offset = s->place[k].offset, .need = (size_t)s->place[k].bytes,
		.buf = s->base + slot * s->slot_bytes,
	};
	int status = reader_read(s->reader, &job);

	*got = (int64_t)job.got;
	if (status == 0)
		return checked || check_crc(s, k, &job, f);
	f->kind = job.error ? FAULT_READ : FAULT_EOF;
	f->error = job.error;
	return false;
}

static void wake_readers(struct store *s, int n)
{
	for (n = cache_work(s->cache) ? n < s->idle ? n : s->idle : 0; n > 0; n--)
		pthread_cond_signal(&s->work);
}

static void serve(struct store *s, int k, int slot)	/* called and returns with the lock held */
{
	bool checked = s->checked[k], good;
	struct fault f = { .kind = FAULT_NONE };
	int64_t got;

	wake_readers(s, 1);
	pthread_mutex_unlock(&s->lock);
	good = read_expert(s, k, slot, checked, &got, &f);
	pthread_mutex_lock(&s->lock);
	s->checked[k] = checked || good;
	s->fault[k] = f;
	cache_done(s->cache, k, got, good);
	if (cache_residents(s->cache) == s->all)
		atomic_store(&s->complete, true);
	/* Its turn to read may have come, too, when it waited for a slot. */
	if (s->awaited == k || (s->awaited >= 0 && cache_queued(s->cache)))
		pthread_cond_signal(&s->done);
}

static void *reader_main(void *arg)
{
	struct store *s = arg;
	int k, slot;

	prctl(PR_SET_TIMERSLACK, 1000);		/* ns: the simulated drive is late by no more than a wake-up */
	pthread_mutex_lock(&s->lock);
	while (!s->quit) {
		k = cache_take(s->cache, &slot);
		if (k >= 0) {
			serve(s, k, slot);
			continue;
		}
		s->idle++;
		pthread_cond_wait(&s->work, &s->lock);
		s->idle--;
	}
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

/* Signals are for the main thread: its reads and waits are the ones that must notice a stop. */
static int start_readers(struct store *s, int n, struct err *e)
{
	sigset_t all, old;
	pthread_attr_t a;
	int status = 0;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	pthread_attr_init(&a);
	pthread_attr_setstacksize(&a, STACK);
	for (; status == 0 && s->nthreads < n; s->nthreads += status == 0)
		status = pthread_create(&s->thread[s->nthreads], &a, reader_main, s);
	pthread_attr_destroy(&a);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return status == 0 ? 0 : err_set(e, EX_OSERR, "%s: cannot start a reader thread: %s", s->dir, strerror(status));
}

/*
 * Opening and closing.
 */

/* Touches every page, so that what the plan says is really there and no read waits for the kernel to find memory. */
static int map_slots(struct store *s, const struct plan *p, struct err *e)
{
	int64_t align = p->map_bytes >= HUGE_PAGE ? HUGE_PAGE : READER_ALIGN, i, off;
	char *q;

	s->map_bytes = p->map_bytes + align;
	q = mmap(NULL, (size_t)s->map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (q == MAP_FAILED) {
		s->map_bytes = 0;
		return err_set(e, EX_OSERR, "%s: no memory for %d experts, %lld bytes:", s->dir, p->slots,
		    (long long)p->map_bytes);
	}
	off = (align - (int64_t)((uintptr_t)q % (uintptr_t)align)) % align;
	if (off > 0)
		munmap(q, (size_t)off);
	if (off < align)
		munmap(q + off + p->map_bytes, (size_t)(align - off));
	s->base = q + off;
	s->map_bytes = p->map_bytes;
	if (align == HUGE_PAGE)
		madvise(s->base, (size_t)s->map_bytes, MADV_HUGEPAGE);
	for (i = 0; i < s->map_bytes; i += READER_ALIGN)
		s->base[i] = 0;
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

static bool alloc_tables(struct store *s, const struct plan *p, const char *dir, const struct config *c,
    const struct manifest *m, const struct store_opt *o)
{
	int i, guesses = p->readers > 1 ? p->readers - 1 : 1;

	s->place = malloc((size_t)p->keys * sizeof *s->place);
	s->fault = calloc((size_t)p->keys, sizeof *s->fault);
	s->checked = calloc((size_t)p->keys, sizeof *s->checked);
	s->cache = cache_new(p->keys, p->slots, guesses, c->num_sparse);
	if (s->cache != NULL)
		cache_set_policy(s->cache, o->evict, m->experts, c->num_experts_per_tok);
	if (s->place == NULL || s->fault == NULL || s->checked == NULL || s->cache == NULL || !copy_names(s, dir, m))
		return false;
	memcpy(s->place, m->place, (size_t)p->keys * sizeof *s->place);
	for (i = 0; i < p->keys; i++)
		if (!c->sparse[i / m->experts])
			s->place[i].cluster = -1;
	return true;
}

static struct store *store_new(const struct config *c)
{
	struct store *s = calloc(1, sizeof *s);

	if (s == NULL)
		return NULL;
	s->layers = c->num_hidden_layers;
	s->experts = c->num_experts;
	s->D = c->hidden_size;
	s->F = c->moe_intermediate_size;
	s->awaited = -1;
	s->all = c->num_sparse * c->num_experts;
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->work, NULL);
	pthread_cond_init(&s->done, NULL);
	return s;
}

static int open_streamed(struct store *s, const char *dir, const struct config *c, const struct manifest *m,
    const struct store_opt *o, struct err *e)
{
	struct reader_sim sim = { o->sim_latency, o->sim_bandwidth };
	struct plan p;

	if (check_shape(dir, c, m, e) < 0)
		return -1;
	p = plan(c, m, o);
	if (check_budget(&p, c, o, e) < 0)
		return -1;
	if (!alloc_tables(s, &p, dir, c, m, o))
		return err_set(e, EX_OSERR, "%s: no memory for the tables of %d experts", dir, p.keys);
	memcpy(s->dt, m->dt, sizeof s->dt);
	s->gate_bytes = m->gate_bytes;
	s->up_bytes = m->up_bytes;
	s->slots = p.slots;
	s->slot_bytes = p.slot_bytes;
	s->reader = reader_open(dir, m->file, m->nclusters, o->buffered, &sim, e);
	if (s->reader == NULL || check_places(s, c, m, e) < 0 || map_slots(s, &p, e) < 0)
		return -1;
	return start_readers(s, p.readers, e);
}

struct store *store_open(const char *dir, const struct config *c, const struct manifest *m, const struct store_opt *o,
    struct err *e)
{
	struct store *s = store_new(c);

	if (s == NULL) {
		err_set(e, EX_OSERR, "%s: no memory for a store", dir);
		return NULL;
	}
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
	pthread_mutex_lock(&s->lock);
	s->quit = true;
	pthread_cond_broadcast(&s->work);
	pthread_mutex_unlock(&s->lock);
	for (i = 0; i < s->nthreads; i++)
		pthread_join(s->thread[i], NULL);
	reader_close(s->reader);
	if (s->map_bytes > 0)
		munmap(s->base, (size_t)s->map_bytes);
	cache_free(s->cache);
	for (i = 0; i < s->nfiles; i++)
		free(s->file[i]);
	free(s->file);
	free(s->dir);
	free(s->place);
	free(s->fault);
	free(s->checked);
	pthread_cond_destroy(&s->work);
	pthread_cond_destroy(&s->done);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

int store_slots(const struct store *s)
{
	return s->resident ? INT_MAX : s->slots;
}

bool store_complete(const struct store *s)
{
	return s->resident || atomic_load_explicit(&s->complete, memory_order_acquire);
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
	int i, r, reads = 0;

	assert(n <= store_slots(s));
	if (store_complete(s)) {
		s->resident_hits += (uint64_t)n;
		if (status != NULL)
			memset(status, STORE_HIT, (size_t)n);
		return;
	}
	pthread_mutex_lock(&s->lock);
	for (i = 0; i < n; i++) {
		r = cache_demand(s->cache, key(s, layer, ids[i]));
		reads += r != CACHE_HIT;
		if (status != NULL)
			status[i] = what[r];
	}
	wake_readers(s, reads);
	pthread_mutex_unlock(&s->lock);
}

bool store_ready(struct store *s, int layer, int id)
{
	return store_complete(s) || cache_state(s->cache, key(s, layer, id)) == CACHE_RESIDENT;
}

static int fault_message(const struct store *s, int k, struct err *e)
{
	const struct place *p = &s->place[k];
	const struct fault *f = &s->fault[k];
	int layer = k / s->experts, id = k % s->experts;
	const char *file = s->file[p->cluster];

	if (f->kind == FAULT_CRC)
		return err_set(e, EX_DATAERR, "%s/%s: layer %d, expert %d: CRC-32 is %08x, the manifest says %08x", s->dir,
		    file, layer, id, f->crc, p->crc);
	return err_set(e, EX_IOERR, "%s/%s: layer %d, expert %d: %s at offset %lld", s->dir, file, layer, id,
	    f->kind == FAULT_EOF ? "unexpected end of file" : strerror(f->error), (long long)p->offset);
}

static bool arrived(const struct store *s, int k)
{
	int state = cache_state(s->cache, k);

	return state == CACHE_RESIDENT || state == CACHE_FAILED;
}

/* Waits for k. When no reader has begun it, this thread reads: a reader may be asleep, or busy with a guess. */
static void await(struct store *s, int k)
{
	int slot, next;

	s->awaited = k;
	while (!arrived(s, k)) {
		next = cache_state(s->cache, k) == CACHE_QUEUED ? cache_take(s->cache, &slot) : -1;
		if (next >= 0)
			serve(s, next, slot);
		else if (cache_stuck(s->cache))
			break;
		else
			pthread_cond_wait(&s->done, &s->lock);
	}
	s->awaited = -1;
}

static int fetch(struct store *s, int k, struct err *e)
{
	double start = now();
	int status = 0;

	while (cache_state(s->cache, k) == CACHE_READING && now() - start < SPIN)
		continue;
	pthread_mutex_lock(&s->lock);
	await(s, k);
	if (!arrived(s, k))
		status = err_set(e, EX_SOFTWARE, "layer %d, expert %d: all %d slots are pinned", k / s->experts,
		    k % s->experts, s->slots);
	else if (cache_state(s->cache, k) == CACHE_FAILED)
		status = fault_message(s, k, e);
	if (status < 0)
		cache_abandon(s->cache, k);
	s->stall += now() - start;
	pthread_mutex_unlock(&s->lock);
	return status;
}

int store_get(struct store *s, int layer, int id, struct expert *x, struct err *e)
{
	int k = key(s, layer, id);
	const char *p;

	if (s->resident) {
		*x = s->resident[k];
		return 0;
	}
	if (cache_state(s->cache, k) != CACHE_RESIDENT && fetch(s, k, e) < 0)
		return -1;
	p = s->base + cache_slot(s->cache, k) * s->slot_bytes;
	x->gate = (struct mat){ p, s->dt[0], s->F, s->D };
	x->up = (struct mat){ p + s->gate_bytes, s->dt[1], s->F, s->D };
	x->down = (struct mat){ p + s->gate_bytes + s->up_bytes, s->dt[2], s->D, s->F };
	return 0;
}

void store_put(struct store *s, int layer, int id)
{
	if (store_complete(s))		/* pins of demands from before do not matter any more: nobody leaves */
		return;
	pthread_mutex_lock(&s->lock);
	cache_put(s->cache, key(s, layer, id));
	if (cache_queued(s->cache))		/* for the slot; a guess may not have what this layer used */
		wake_readers(s, 1);
	pthread_mutex_unlock(&s->lock);
}

void store_abandon(struct store *s, int layer, int id)
{
	if (store_complete(s))
		return;
	pthread_mutex_lock(&s->lock);
	cache_abandon(s->cache, key(s, layer, id));
	wake_readers(s, 1);
	pthread_mutex_unlock(&s->lock);
}

void store_predict(struct store *s, int layer, int id, float prob, int when)
{
	int k = key(s, layer, id);

	if (store_complete(s) || s->place[k].cluster < 0)
		return;
	pthread_mutex_lock(&s->lock);
	cache_predict(s->cache, k, prob, when);
	wake_readers(s, 1);
	pthread_mutex_unlock(&s->lock);
}

void store_advance(struct store *s)
{
	if (store_complete(s))
		return;
	pthread_mutex_lock(&s->lock);
	cache_advance(s->cache);
	wake_readers(s, 1);
	pthread_mutex_unlock(&s->lock);
}

void store_stats(const struct store *s, struct store_stats *out)
{
	struct store *w = (struct store *)s;		/* a lock is no change that a caller can see */
	const struct cache_stats *st;

	*out = (struct store_stats){ .hits = s->resident_hits };
	if (s->resident)
		return;
	pthread_mutex_lock(&w->lock);
	st = cache_stats(s->cache);
	*out = (struct store_stats){
		.hits = st->hits + s->resident_hits, .late = st->late, .misses = st->misses,
		.read_bytes = st->read_bytes, .reads = st->reads,
		.predicted = st->predicted, .predicted_used = st->predicted_used,
		.wasted_bytes = st->wasted_bytes, .expired = st->expired, .stall = s->stall,
	};
	pthread_mutex_unlock(&w->lock);
}
