/* The store against files made here, with preadv replaced by one that counts, logs, and fails
 * when told to. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <zlib.h>

#include "base/file.h"
#include "memtree.h"
#include "base/opt.h"
#include "base/rng.h"
#include "decode/guard_store.h"
#include "experts/store.h"
#include "tap.h"

enum {
	LAYERS = 4, DENSE = 1, EXPERTS = 8, TOPK = 2, D = 32, F = 48,
	MATRIX = F * D * 4, BYTES = 3 * MATRIX, SLOT = 20480, KEYS = LAYERS * EXPERTS,
	LOG = 4096
};

static char dir[PATH_MAX - 64];
static char *names[] = { (char *)"cluster_000.ctsr", (char *)"cluster_001.ctsr" };
static struct place places[KEYS];
static struct config config;
static struct manifest manifest;
static char *content;			/* (KEYS, BYTES) */

/*
 * The shim.
 */

static struct {
	pthread_mutex_t lock;
	int fail_errno;			/* what every read returns, 0: nothing */
	int bad;			/* an expert that cannot be read, or -1 */
	bool refuse_direct, interrupt, shorten;
	uint64_t calls, bytes;
	int n, key[LOG];		/* experts in order of their first read call */
	int flying, most_flying, twice;
	bool in_flight[KEYS];
} shim = { .lock = PTHREAD_MUTEX_INITIALIZER, .bad = -1 };

static int key_at(int fd, off_t off)
{
	char link[64], name[PATH_MAX];
	int k;
	ssize_t n;

	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	n = readlink(link, name, sizeof name - 1);
	if (n < 0)
		return -1;
	name[n] = '\0';
	for (k = 0; k < KEYS; k++)
		if (places[k].cluster >= 0 && off >= places[k].offset && off < places[k].offset +
		    SLOT
		    && strstr(name, names[places[k].cluster]) != NULL)
			return k;
	return -1;
}

static int shim_enter(int fd, off_t off, int *k)
{
	int error = 0;

	pthread_mutex_lock(&shim.lock);
	*k = key_at(fd, off);
	error = shim.fail_errno;
	if (shim.refuse_direct && (fcntl(fd, F_GETFL) & O_DIRECT))
		error = EINVAL;
	if (shim.interrupt && shim.calls % 2 == 0)
		error = EINTR;
	shim.calls++;
	if (*k >= 0) {
		shim.twice += shim.in_flight[*k];
		shim.in_flight[*k] = true;
		if (shim.n < LOG && (shim.n == 0 || shim.key[shim.n - 1] != *k))
			shim.key[shim.n++] = *k;
	}
	if (++shim.flying > shim.most_flying)
		shim.most_flying = shim.flying;
	pthread_mutex_unlock(&shim.lock);
	return error;
}

static void shim_leave(int k, ssize_t n)
{
	pthread_mutex_lock(&shim.lock);
	if (n > 0)
		shim.bytes += (uint64_t)n;
	if (k >= 0)
		shim.in_flight[k] = false;
	shim.flying--;
	pthread_mutex_unlock(&shim.lock);
}

ssize_t preadv(int fd, const struct iovec *part, int parts, off_t off)
{
	struct iovec one = part[0];
	int k, error = shim_enter(fd, off, &k);
	ssize_t n = -1, i;

	if (shim.shorten && one.iov_len > 8192) {
		one.iov_len = 8192 + 512 * (size_t)(shim.calls % 8);
		part = &one;
		parts = 1;
	}
	if (shim.bad >= 0 && k >= 0 && places[k].cluster == places[shim.bad].cluster &&
	    off < places[shim.bad].offset + SLOT
	    && off + (off_t)parts * SLOT > places[shim.bad].offset) {
		parts = (int)((places[shim.bad].offset - off) / SLOT);
		error = parts > 0 ? 0 : EIO;
	}
	if (error == 0)
		n = syscall(SYS_preadv, fd, part, parts, off, 0L);
	else
		errno = error;
	/* so that a thread sanitizer sees these writes */
	for (i = 0; i < n && i < (ssize_t)part[0].iov_len; i += 256)
		/* cppcheck-suppress selfAssignment */
		((volatile char *)part[0].iov_base)[i] |= 0;
	error = errno;
	shim_leave(k, n);
	errno = error;
	return n;
}

static int shim_read(int i)		/* the expert of the i-th read, -1: there were less */
{
	int k;

	pthread_mutex_lock(&shim.lock);
	k = i < shim.n ? shim.key[i] : -1;
	pthread_mutex_unlock(&shim.lock);
	return k;
}

static void shim_reset(void)
{
	shim.fail_errno = 0;
	shim.bad = -1;
	shim.refuse_direct = shim.interrupt = shim.shorten = false;
	shim.calls = shim.bytes = 0;
	shim.n = shim.most_flying = shim.twice = 0;
}

/*
 * Files, stores, small helpers.
 */

static void make_content(void)
{
	uint32_t *p;
	int64_t i;

	content = malloc((size_t)KEYS * BYTES);
	p = (uint32_t *)(void *)content;
	for (i = 0; i < (int64_t)KEYS * BYTES / 4; i++)
		p[i] = rng_hash(99, (uint64_t)i);
}

static void file_path(char *path, int cluster)
{
	snprintf(path, PATH_MAX, "%s/%s", dir, names[cluster]);
}

/* Experts alternate between the files, in reverse order, after one page for a header. */
static void write_files(void)
{
	int64_t end[2] = { 4096, 4096 };
	char *buf[2], path[PATH_MAX];
	struct err e = {0};
	int k, f;

	buf[0] = calloc(1, 4096 + KEYS * SLOT);
	buf[1] = calloc(1, 4096 + KEYS * SLOT);
	for (k = KEYS - 1; k >= 0; k--) {
		f = k % 2;
		places[k] = (struct place){ .cluster = -1 };
		if (k / EXPERTS == DENSE)
			continue;
		places[k] = (struct place){ .cluster = f, .offset = end[f], .bytes = BYTES,
			.crc = (uint32_t)crc32(0, (Bytef *)content + (size_t)k * BYTES, BYTES) };
		memcpy(buf[f] + end[f], content + (size_t)k * BYTES, BYTES);
		end[f] += SLOT;
	}
	for (f = 0; f < 2; f++) {
		file_path(path, f);
		if (file_put(path, buf[f], (size_t)end[f], &e) < 0)
			err_exit(&e);
		free(buf[f]);
	}
}

static void describe(void)
{
	int l;

	config = (struct config){ .hidden_size = D, .moe_intermediate_size = F, .num_hidden_layers =
	    LAYERS,
		.num_experts = EXPERTS, .num_experts_per_tok = TOPK, .num_sparse = LAYERS - 1 };
	for (l = 0; l < LAYERS; l++)
		config.block[l].sparse = l != DENSE;
	manifest = (struct manifest){ .layers = LAYERS, .experts = EXPERTS, .nclusters = 2,
	    .file = names,
		.place = places, .dt = { DT_F32, DT_F32, DT_F32 }, .gate_bytes = MATRIX,
		    .up_bytes = MATRIX, .down_bytes = MATRIX };
}

/* readers: threads that read; 0: io_uring, which the shim does not see. */
static struct store *open_slots(int slots, int readers, struct store_opt o)
{
	struct err e = {0};
	struct store *s;

	o.bytes = (int64_t)slots * SLOT;
	o.reader.io = readers > 0 ? READER_THREADS : READER_AUTO;
	o.reader.threads = readers;
	o.force = true;
	if (o.waste == 0)
		o.waste = -1;
	s = store_open(dir, &config, &manifest, &o, &backend_cpu, &e);
	if (s == NULL)
		err_exit(&e);
	shim_reset();
	return s;
}

static struct store_stats stats(const struct store *s)
{
	struct store_stats st;

	store_stats(s, &st);
	return st;
}

static void nap(double seconds)
{
	struct timespec t = { (time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9) };

	nanosleep(&t, NULL);
}

static bool wait_reads(struct store *s, uint64_t n)	/* at most 5 s */
{
	int i;

	for (i = 0; i < 5000 && stats(s).reads < n; i++) {
		nap(0.001);
		store_poll(s);
	}
	return stats(s).reads == n;
}

static void wait_begun(struct store *s)
{
	int i;

	store_poll(s);
	for (i = 0; i < 5000 && shim_read(0) < 0; i++)
		nap(0.001);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static bool same(const struct expert *x, int layer, int id)
{
	const char *want = content + (size_t)(layer * EXPERTS + id) * BYTES;

	return x->gate.rows == F && x->gate.cols == D && x->up.rows == F && x->down.rows == D &&
	    x->down.cols == F
	    && x->gate.dt == DT_F32 && (uintptr_t)x->gate.p % 4096 == 0 &&
	    memcmp(x->gate.p, want, MATRIX) == 0
	    && memcmp(x->up.p, want + MATRIX, MATRIX) == 0 && memcmp(x->down.p, want + 2 * MATRIX,
	    MATRIX) == 0;
}

/* One expert demanded, compared and put back: its status, or -1. */
static int touch(struct store *s, int layer, int id)
{
	struct err e = {0};
	struct expert x;
	uint8_t status;

	store_demand(s, layer, &id, 1, &status);
	if (store_get(s, layer, id, &x, &e) < 0) {
		printf("# %s\n", e.msg);
		return -1;
	}
	if (!same(&x, layer, id))
		return -1;
	store_put(s, layer, id);
	return status;
}

/*
 * Tests.
 */

static uint64_t ticks;

static int below(int n)
{
	return (int)rng_below(5, 2, ticks++, (uint64_t)n);
}

struct walk { uint64_t demands, status[3]; bool wrong; };

static void walk_layer(struct store *s, int layer, struct walk *w)
{
	int ids[EXPERTS], n = 1 + below(store_slots(s) < 4 ? store_slots(s) : 4), i, j, left;
	bool given_up[EXPERTS] = { false };
	uint8_t status[EXPERTS];
	struct expert x;
	struct err e = {0};

	for (i = 0; i < n; i++)
		for (ids[i] = below(EXPERTS), j = 0; j < i; j++)
			if (ids[j] == ids[i])
				ids[i] = (ids[i] + 1) % EXPERTS, j = -1;
	store_demand(s, layer, ids, n, status);
	for (i = 0, left = n; i < n; i++) {
		w->demands++;
		w->status[status[i]]++;
		w->wrong |= status[i] == STORE_HIT && !store_ready(s, layer, ids[i]);
		if (status[i] != STORE_HIT && below(6) == 0) {
			store_abandon(s, layer, ids[i]);
			given_up[i] = true;
			left--;
		}
	}
	for (i = 0; i < n; i++) {
		if (given_up[i])
			continue;
		if (below(2) && store_get_half(s, layer, ids[i], &x))
			w->wrong |= memcmp(x.gate.p, content + (size_t)(layer * EXPERTS + ids[i]) *
			    BYTES, 2 * MATRIX) != 0;
		w->wrong |= store_get(s, layer, ids[i], &x, &e) < 0 || !same(&x, layer, ids[i]);
		if (below(2))
			store_put(s, layer, ids[i]), given_up[i] = true;
	}
	for (i = 0; i < n; i++)
		if (!given_up[i])
			store_put(s, layer, ids[i]);
}

static void random_walk(int slots, int readers, struct store_opt o, const char *what)
{
	struct store *s = open_slots(slots, readers, o);
	struct walk w = {0};
	struct store_stats st;
	int i, j;

	for (i = 0; i < 600; i++) {
		if (i % LAYERS != DENSE)
			walk_layer(s, i % LAYERS, &w);
		for (j = below(4); j > 0; j--)
			store_predict(s, below(LAYERS), below(EXPERTS), (float)below(100) / 100,
			    below(5), below(CACHE_SOURCES));
		store_advance(s);
		if (below(50) == 0)
			nap(0.002);
		store_poll(s);
	}
	st = stats(s);
	ok(!w.wrong, "%s: %d slots, %d readers (%s): content", what, slots, readers, store_io(s));
	ok(st.requests > 0 && st.busy > 0 && st.stall <= st.busy + 1,
	    "requests, busy and stall are sound");
	ok(st.hits + st.late + st.misses == w.demands && st.hits == w.status[STORE_HIT]
	    && st.late == w.status[STORE_LATE] && st.misses == w.status[STORE_MISS],
	    "hits, late, misses add up");
	store_close(s);
	ok(shim.twice == 0, "never two reads of one expert at once");
}

static uint64_t rchar(uint64_t *own)
{
	unsigned long long v = 0;
	char buf[512];
	int fd = open("/proc/self/io", O_RDONLY);
	ssize_t n = read(fd, buf, sizeof buf - 1);

	close(fd);
	if (n <= 0)
		return 0;
	buf[n] = '\0';
	sscanf(buf, "rchar: %llu", &v);
	*own = (uint64_t)n;
	return v;
}

static void bytes_read(bool buffered)
{
	struct store *s = open_slots(6, 2, (struct store_opt){ .reader.buffered = buffered });
	uint64_t r0, r1, own = 0, own1;
	struct store_stats st;
	struct walk w = {0};
	int i;

	r0 = rchar(&own);
	for (i = 0; i < 100; i++) {
		walk_layer(s, i % 2 ? 3 : 2, &w);
		store_predict(s, 0, below(EXPERTS), 1, 3, 0);
		store_advance(s);
	}
	for (i = 0; i < 8; i++)			/* all that is still queued expires */
		store_advance(s);
	do {
		st = stats(s);
		nap(0.02);
		store_poll(s);
	} while (stats(s).reads != st.reads);
	r1 = rchar(&own1);
	st = stats(s);
	store_close(s);
	if (r0 == 0)
		printf("# no /proc/self/io\n");
	ok(r0 == 0 || r1 - r0 - own == st.read_bytes,
	    "read_bytes is what /proc/self/io counts (%llu)",
	    (unsigned long long)st.read_bytes);
	ok(shim.bytes == st.read_bytes && st.read_bytes == st.reads * SLOT,
	    "and what preadv returned, a slot per read");
	ok(st.predicted_used <= st.predicted && st.predicted <= st.reads
	    && st.wasted_bytes <= st.predicted * SLOT, "predictions are among the reads");
}

static void odd_reads(void)
{
	struct store *s = open_slots(24, 2, (struct store_opt){0});
	bool direct = store_direct(s);
	int id, good = 1;

	shim.interrupt = shim.shorten = true;
	for (id = 0; id < EXPERTS; id++)
		good &= touch(s, 2, id) == STORE_MISS;
	ok(good && store_direct(s) == direct, "interrupted and short reads are continued");
	shim_reset();
	shim.refuse_direct = true;
	for (id = 0, good = 1; id < EXPERTS; id++)
		good &= touch(s, 3, id) == STORE_MISS;
	ok(good && !store_direct(s), "a drive that refuses O_DIRECT is read buffered, and "
	    "store_direct says so");
	store_close(s);
	s = open_slots(24, 1, (struct store_opt){ .reader.buffered = true });
	ok(touch(s, 2, 0) == STORE_MISS && !store_direct(s), "buffered on request");
	store_close(s);
}

static int get_error(struct store *s, int layer, int id, struct err *e)
{
	struct expert x;

	*e = (struct err){0};
	store_demand(s, layer, &id, 1, NULL);
	if (store_get(s, layer, id, &x, e) == 0)
		store_put(s, layer, id);
	return e->status;
}

static bool names_expert(const struct err *e, int layer, int id)
{
	char want[64];

	printf("# %s\n", e->msg);
	snprintf(want, sizeof want, "layer %d, expert %d", layer, id);
	return strstr(e->msg, want) != NULL && strstr(e->msg, names[id % 2]) != NULL &&
	    strstr(e->msg, dir) != NULL;
}

static void flip_byte(int layer, int id)
{
	const struct place *p = &places[layer * EXPERTS + id];
	char path[PATH_MAX], c;
	int fd;

	file_path(path, p->cluster);
	fd = open(path, O_RDWR);
	if (syscall(SYS_pread64, fd, &c, (size_t)1, (off_t)(p->offset + BYTES - 7)) == 1) {
		c ^= 4;
		ok(pwrite(fd, &c, 1, p->offset + BYTES - 7) == 1, "a byte is flipped");
	}
	fsync(fd);
	close(fd);
}

static void bad_reads(void)
{
	struct store *s = open_slots(6, 2, (struct store_opt){0});
	struct expert x;
	struct err e;
	char path[PATH_MAX];
	int id = 5, i;

	flip_byte(2, 5);
	ok(get_error(s, 2, 5, &e) == EX_DATAERR && names_expert(&e, 2, 5),
	    "a wrong byte is bad data, named");
	ok(!store_ready(s, 2, 5) && touch(s, 2, 4) == STORE_MISS, "others are not affected");
	store_predict(s, 2, 5, 1, 9, 0);
	ok(wait_reads(s, 3) && get_error(s, 2, 5, &e) == EX_DATAERR,
	    "a corrupt guess is reported when it is demanded");
	flip_byte(2, 5);
	ok(touch(s, 2, 5) == STORE_MISS, "and read again when the file is whole");

	shim.fail_errno = EIO;
	store_demand(s, 3, &id, 1, NULL);
	ok(get_error(s, 3, 5, &e) == EX_IOERR && names_expert(&e, 3, 5),
	    "an unreadable one is an I/O error, named");
	e.status = 0;
	ok(store_get(s, 3, 5, &x, &e) < 0 && e.status == EX_IOERR, "for each who demanded it");
	shim_reset();
	ok(touch(s, 3, 5) == STORE_MISS, "and a later demand reads it");

	file_path(path, 0);
	ok(truncate(path, places[0].offset + 4096) == 0, "a file loses its end");
	ok(get_error(s, 0, 0, &e) == EX_IOERR && names_expert(&e, 0, 0) &&
	    strstr(e.msg, "end of file") != NULL,
	    "unexpected end of file, named");
	ok(truncate(path, places[0].offset) == 0 && get_error(s, 0, 0, &e) == EX_IOERR,
	    "also when nothing is left");
	file_path(path, 1);
	ok(unlink(path) == 0 && touch(s, 0, 1) == STORE_MISS,
	    "a file may be unlinked while it is open");
	for (i = 0; i < 40; i++)
		get_error(s, 0, 0, &e);
	ok(touch(s, 0, 1) >= 0, "failed reads give their slots back");
	store_close(s);
	write_files();
}

static int open_error(struct err *e, const struct store_opt *o)
{
	struct store *s;

	*e = (struct err){0};
	s = store_open(dir, &config, &manifest, o, &backend_cpu, e);
	printf("# %s\n", s ? "opened" : e->msg);
	store_close(s);
	return s ? 0 : e->status;
}

static void bad_directories(void)
{
	static char outside[] = "../cluster_000.ctsr";
	struct store_opt o = {0};
	char path[PATH_MAX];
	struct err e;

	file_path(path, 1);
	unlink(path);
	ok(open_error(&e, &o) == EX_NOINPUT && strstr(e.msg, names[1]), "a missing file");
	ok(mkdir(path, 0777) == 0 && open_error(&e, &o) == EX_DATAERR && strstr(e.msg, names[1]),
	    "a directory for a file");
	rmdir(path);
	ok(mkfifo(path, 0666) == 0 && open_error(&e, &o) == EX_DATAERR, "a FIFO for a file");
	unlink(path);
	write_files();
	ok(truncate(path, places[9 + 16].offset + 100) == 0 && open_error(&e, &o) == EX_DATAERR
	    && strstr(e.msg, names[1]), "a truncated file");
	write_files();
	manifest.file = (char *[]){ names[0], outside };
	ok(open_error(&e, &o) == EX_DATAERR, "a name that leaves the directory");
	manifest.file = names;
	places[3].offset += 512;
	ok(open_error(&e, &o) == EX_DATAERR && strstr(e.msg, "layer 0, expert 3"), "an odd offset");
	places[3].offset = INT64_MAX / 4096 * 4096;
	ok(open_error(&e, &o) == EX_DATAERR, "an offset near 2^63");
	places[3].offset = -4096;
	ok(open_error(&e, &o) == EX_DATAERR, "a negative offset");
	write_files();
	places[3].cluster = 2;
	ok(open_error(&e, &o) == EX_DATAERR, "a file that does not exist");
	write_files();
	manifest.gate_bytes = INT64_MAX;
	ok(open_error(&e, &o) == EX_DATAERR, "a gate of 2^63 bytes");
	manifest.gate_bytes = MATRIX;
	config.num_experts = 9;
	ok(open_error(&e, &o) == EX_DATAERR, "a model with more experts than the manifest");
	describe();
	ok(open_error(&e, &o) == 0, "and as it should be");
}

static void budgets(void)
{
	int64_t need = (int64_t)TOPK * (LAYERS - 1) * SLOT;
	struct store_opt o = { .bytes = need - 1 };
	struct store *s;
	char want[32];
	struct err e;

	snprintf(want, sizeof want, "%lld", (long long)need);
	ok(open_error(&e, &o) == EX_OSERR && strstr(e.msg, want) != NULL,
	    "below one token: refused, with the smallest budget");
	ok(store_min_bytes(&config, &manifest) == need, "which store_min_bytes knows");
	o.force = true;
	ok(open_error(&e, &o) == 0, "unless forced");
	o.bytes = TOPK * SLOT - 1;
	ok(open_error(&e, &o) == EX_OSERR, "never below one layer");
	o.bytes = -1;
	ok(open_error(&e, &o) == EX_OSERR, "a negative budget is none");
	o = (struct store_opt){ .bytes = need };
	ok(open_error(&e, &o) == 0, "one token is enough");
	o.bytes = INT64_MAX;
	s = store_open(dir, &config, &manifest, &o, &backend_cpu, &e);
	ok(s != NULL && store_slots(s) == (LAYERS - 1) * EXPERTS, "no more slots than experts");
	ok(store_plan_bytes(&config, &manifest, &o) > (int64_t)store_slots(s) * SLOT,
	    "the plan has them and more");
	store_close(s);
}

static void all_resident(void)
{
	struct expert x[KEYS], y;
	int k, ids[] = { 3, 1, 4 };
	struct store_stats st;
	uint8_t status[3];
	struct err e = {0};
	struct store *s;

	for (k = 0; k < KEYS; k++)
		x[k].gate = x[k].up = x[k].down = (struct mat){ content + (size_t)k * BYTES, DT_F32,
		    F, D };
	s = store_resident(&config, x);
	store_demand(s, 2, ids, 3, status);
	ok(status[0] == STORE_HIT && status[2] == STORE_HIT && store_ready(s, 2, 4) &&
	    store_slots(s) == INT_MAX,
	    "resident: all hits");
	ok(store_get(s, 2, 4, &y, &e) == 0 && y.gate.p == x[2 * EXPERTS + 4].gate.p,
	    "its own matrices");
	store_put(s, 2, 4);
	store_abandon(s, 2, 3);
	store_predict(s, 2, 3, 1, 1, 0);
	store_advance(s);
	st = stats(s);
	ok(st.hits == 3 && st.late + st.misses + st.reads == 0 && !store_direct(s), "and no reads");
	store_close(s);
}

/* A slow drive: what is demanded overtakes what is predicted. */
static void priority(void)
{
	struct store *s = open_slots(24, 1, (struct store_opt){ .reader.sim.latency = 0.02,
	    .evict = CACHE_LRU });
	struct store_stats st;
	int id, begun;

	store_predict(s, 0, 0, 1, 9, 0);
	wait_begun(s);					/* it is on its way */
	for (id = 1; id < EXPERTS; id++)
		store_predict(s, 0, id, (float)id, 5, 0);
	begun = (int)stats(s).predicted;
	ok(touch(s, 3, 2) == STORE_MISS && begun == 1, "a demand among predictions");
	ok(shim_read(1) == 3 * EXPERTS + 2, "it is the second read");
	st = stats(s);
	ok(st.stall >= 0.015 && st.stall < 5, "store_get waited for it (%.0f ms)", st.stall * 1e3);
	ok(wait_reads(s, EXPERTS + 1) && touch(s, 0, 3) == STORE_HIT, "a finished guess is a hit");
	st = stats(s);
	ok(st.predicted_used == 1 && st.hits == 1 && st.misses == 1, "counted so");
	store_predict(s, 2, 4, 1, 9, 0);
	store_poll(s);
	ok(touch(s, 2, 4) == STORE_LATE && stats(s).late == 1, "one under way is late, not missed");
	store_close(s);
}

static void expiry(void)
{
	struct store *s = open_slots(24, 2, (struct store_opt){ .reader.sim.latency = 0.1 });
	struct store_stats st;
	int id = 0;

	store_demand(s, 3, &id, 1, NULL);		/* no guess begins beside it */
	for (id = 0; id < EXPERTS; id++)
		store_predict(s, 0, id, 1, 1, 0);
	store_advance(s);
	ok(stats(s).expired == 0, "a prediction for the next layer lives in it");
	store_advance(s);
	ok(stats(s).expired == EXPERTS, "and is dropped after it");
	wait_reads(s, 1);
	st = stats(s);
	ok(st.reads == 1 && st.predicted == 0, "never read");
	store_close(s);
}

/* Experts that lie one behind the other and are wanted together are one read. */
static void neighbours(int readers)
{
	struct store *s = open_slots(24, readers, (struct store_opt){0});
	int ids[] = { 6, 4, 2, 0 }, i, good = 1;	/* even ones are in one file, in reverse
							   order */
	struct expert x;
	struct err e = {0};

	store_demand(s, 2, ids, 4, NULL);
	for (i = 0; i < 4; i++)
		good &= store_get(s, 2, ids[i], &x, &e) == 0 && same(&x, 2, ids[i]);
	ok(good && stats(s).reads == 4 && stats(s).requests == 1,
	    "four neighbours in one read by %s", store_io(s));
	ok(stats(s).read_bytes == 4 * SLOT, "of their bytes");
	for (i = 0; i < 4; i++)
		store_put(s, 2, ids[i]);
	shim.interrupt = shim.shorten = true;
	for (i = 0; i < 4; i++)
		ids[i]++;
	store_demand(s, 2, ids, 4, NULL);
	for (i = 0, good = 1; i < 4; i++)
		good &= store_get(s, 2, ids[i], &x, &e) == 0 && same(&x, 2, ids[i]);
	ok(good, "short reads of several are continued");
	store_close(s);
}

static void halves(void)
{
	struct store *s = open_slots(24, 1, (struct store_opt){ .split = 1, .reader.sim.bandwidth =
	    1e6 });
	int id = 5;
	struct expert x;
	struct err e = {0};

	store_demand(s, 2, &id, 1, NULL);
	ok(store_get_half(s, 2, 5, &x) && !store_ready(s, 2, 5), "gate and up are there first");
	ok(memcmp(x.gate.p, content + (size_t)(2 * EXPERTS + 5) * BYTES, 2 * MATRIX) == 0,
	    "with their content");
	ok(store_get(s, 2, 5, &x, &e) == 0 && same(&x, 2, 5) && !store_get_half(s, 2, 5, &x),
	    "then all, of which there is no half");
	ok(stats(s).reads == 1 && stats(s).requests == 2 && stats(s).read_bytes == SLOT,
	    "in two reads, a byte once");
	store_put(s, 2, 5);
	flip_byte(2, 6);
	id = 6;
	store_demand(s, 2, &id, 1, NULL);
	ok(store_get_half(s, 2, 6, &x) && store_get(s, 2, 6, &x, &e) < 0 && e.status == EX_DATAERR,
	    "a wrong byte in the second is found");
	flip_byte(2, 6);
	shim.fail_errno = EIO;
	ok(touch(s, 3, 6) < 0, "an error in both is one");
	shim_reset();
	ok(touch(s, 3, 6) == STORE_MISS, "and can be read again");
	store_close(s);
}

/* Of neighbours read together only the one that cannot be read fails. */
static void bad_neighbour(void)
{
	struct store *s = open_slots(24, 1, (struct store_opt){0});
	int ids[] = { 6, 4, 2, 0 }, i, good = 0;
	struct expert x;
	struct err e = {0};

	shim.bad = 2 * EXPERTS + 4;
	store_demand(s, 2, ids, 4, NULL);
	for (i = 3; i >= 0; i--)
		good += i != 1 && store_get(s, 2, ids[i], &x, &e) == 0 && same(&x, 2, ids[i]);
	ok(good == 3, "the others are there");
	ok(store_get(s, 2, 4, &x, &e) < 0 && e.status == EX_IOERR && names_expert(&e, 2, 4),
	    "and it is named");
	e = (struct err){0};
	ok(store_failed(s, &e) < 0 && names_expert(&e, 2, 4), "also to who gives demands up");
	shim_reset();
	ok(touch(s, 2, 4) == STORE_MISS && store_failed(s, &e) == 0, "until it has been read");
	for (i = 0; i < 4; i++)
		if (i != 1)
			store_put(s, 2, ids[i]);
	store_close(s);
}

/* What another run has recorded: the warmest are read before anybody asks, and some of them
 * stay. */
static void warm(void)
{
	struct store *s = open_slots(6, 2, (struct store_opt){0});
	float heat[KEYS] = { 0 }, after[KEYS];
	struct err e = {0};
	int i;

	heat[2] = 3;
	heat[2 * EXPERTS + 5] = 9;
	heat[3 * EXPERTS + 1] = 5;
	ok(store_warm(s, heat, 3, &e) < 0 && e.status == EX_OSERR,
	    "pins leave two layers' worth: %s", e.msg);
	ok(store_warm(s, heat, 2, &e) == 0 && store_room(s) == 4 && wait_reads(s, 3),
	    "as many as are warm are read");
	for (i = 0; i < 40; i++) {
		store_advance(s);
		touch(s, i % 2 ? 0 : 3, i % EXPERTS);
	}
	ok(store_ready(s, 2, 5) && store_ready(s, 3, 1) && !store_ready(s, 0, 2),
	    "those pinned stay");
	store_heat(s, after);
	ok(after[2 * EXPERTS + 5] < 9 && after[3 * EXPERTS + 0] > 0.5f,
	    "heat fades, and what is used gets it");
	store_close(s);
}

#ifdef __SANITIZE_THREAD__
#define GIVEN 4		/* tenths of what was given back, at least: its shadow takes pages
			   meanwhile */
#else
#define GIVEN 9
#endif

/* To the page: statm's counters of each CPU are added up now and then. */
static int64_t rss(void)
{
	FILE *f = fopen("/proc/self/smaps_rollup", "r");
	char line[256];
	long long kb = -1;

	while (f != NULL && kb < 0 && fgets(line, sizeof line, f) != NULL)
		if (sscanf(line, "Rss: %lld kB", &kb) != 1)
			kb = -1;
	if (kb < 0)
		abort();
	fclose(f);
	return kb * 1024;
}

static struct { bool wrong; int hits; } pass;

static void pass_through(struct store *s, int experts)
{
	int l, id;

	pass.wrong = false;
	pass.hits = 0;
	for (l = 0; l < LAYERS; l++)
		for (id = 0; l != DENSE && id < experts; id++) {
			int status = touch(s, l, id);

			pass.wrong |= status < 0;
			pass.hits += status == STORE_HIT;
			store_advance(s);
		}
}

/* Memory given back while it runs, and taken again: the same experts, at whatever time. */
static void resized(int readers, enum cache_policy policy)
{
	const int all = (LAYERS - 1) * EXPERTS, least = TOPK * (LAYERS - 1);
	struct store *s = open_slots(all, readers, (struct store_opt){ .evict = policy });
	int64_t before, after;
	int id = 3, n;

	pass_through(s, EXPERTS);
	ok(store_complete(s) && !pass.wrong && store_most(s) == all && store_least(s) == least,
	    "everything is there");
	pass_through(s, EXPERTS);
	before = rss();
	ok(store_resize(s, all - 4) == all - 4 && !store_complete(s), "four slots less");
	pass_through(s, 4);
	ok(!pass.wrong && pass.hits > 0, "who is left is where it is looked for");
	store_predict(s, 3, 7, 1, 5, 0);
	store_predict(s, 0, 7, 1, 5, 0);
	store_poll(s);
	ok(store_resize(s, 0) == least && store_slots(s) == least,
	    "not below one token's working set, with reads under way");
	after = rss();
	ok(before - after >= (all - least) * (int64_t)SLOT * GIVEN / 10,
	    "the kernel has it: %lld of %d bytes", (long long)(before - after),
	    (all - least) * SLOT);
	ok((int64_t)stats(s).given_bytes == (all - least) * (int64_t)SLOT, "so says the counter");
	pass_through(s, EXPERTS);
	ok(!pass.wrong, "few slots, the same bytes");
	for (n = least; n <= all; n++)
		ok(store_resize(s, n) == n, "one more");
	ok(rss() - after >= (all - least) * (int64_t)SLOT * 9 / 10, "which takes memory");
	pass_through(s, EXPERTS);
	pass_through(s, EXPERTS);
	ok(!pass.wrong && store_complete(s) && pass.hits == all && store_resize(s, all + 5) == all,
	    "everything is there again");
	ok(touch(s, 2, id) == STORE_HIT, "a hit");
	store_close(s);
}

/* In a control group of 100 MiB whose usage is what the test says it is. */
static void use(struct guard *g, int mib)
{
	char text[32];

	snprintf(text, sizeof text, "%lld\n", (long long)(mib * MIB));
	put("/sys/fs/cgroup/g/memory.current", text);
	guard_look(g);
}

static void squeezed(void)
{
	const int all = (LAYERS - 1) * EXPERTS, least = TOPK * (LAYERS - 1);
	struct store *s = open_slots(all, 2, (struct store_opt){0});
	struct guard_store q = { .store = s };
	struct err e = {0};

	ok(guard_store_check(&q) == GUARD_OK, "no guard, nothing to do");
	v2("/g");
	put("/sys/fs/cgroup/g/memory.max", "104857600\n");
	use(NULL, 50);
	q.guard = guard_open(root, 0.85, 0.95, &e);
	pass_through(s, EXPERTS);
	ok(guard_store_check(&q) == GUARD_OK && store_slots(s) == all, "enough: all slots");
	use(q.guard, 90);
	ok(guard_store_check(&q) == GUARD_WARN && store_slots(s) == all, "a warning takes none");
	use(q.guard, 96);
	ok(guard_store_check(&q) == GUARD_LIMIT && store_slots(s) == least,
	    "the limit takes them, while it lasts down to the least");
	ok(guard_store_check(&q) == GUARD_LIMIT && stats(s).given_bytes ==
	    (uint64_t)((all - least) * SLOT), "then there is nothing to give");
	pass_through(s, EXPERTS);
	ok(!pass.wrong, "it goes on with these");
	use(q.guard, 86);
	guard_store_check(&q);
	q.calm -= 10;
	ok(guard_store_check(&q) == GUARD_WARN && store_slots(s) == least,
	    "above the warning none are taken again");
	use(q.guard, 50);
	ok(guard_store_check(&q) == GUARD_OK && store_slots(s) == least, "below it not at once");
	q.calm -= 10;
	ok(guard_store_check(&q) == GUARD_OK && store_slots(s) == least + all / 8,
	    "but when that has lasted, an eighth");
	ok(guard_store_check(&q) == GUARD_OK && store_slots(s) == least + all / 8,
	    "and not the next at once");
	put("/sys/fs/cgroup/g/memory.max", "61440\n");
	put("/sys/fs/cgroup/g/memory.current", "8192\n");
	q.calm -= 10;
	guard_store_check(&q);
	ok(store_slots(s) == least + all / 8, "nor where it would come to the warning");
	put("/sys/fs/cgroup/g/memory.max", "104857600\n");
	for (int i = 0; i < 10; i++) {
		q.calm -= 10;
		guard_store_check(&q);
	}
	pass_through(s, EXPERTS);
	ok(store_slots(s) == all && !pass.wrong, "at last all");
	guard_close(q.guard);
	tree_end();
	store_close(s);
}

static void waste(void)
{
	struct store *s = open_slots(TOPK * (LAYERS - 1), 2, (struct store_opt){0});
	int id;

	store_predict(s, 0, 0, 1, 0, 3);
	ok(wait_reads(s, 1) && store_ready(s, 0, 0), "a prediction is read unasked");
	for (id = 0; id < EXPERTS; id++) {
		store_advance(s);
		touch(s, 2, id);
	}
	ok(stats(s).wasted_bytes == SLOT && stats(s).wasted_by[3] == SLOT && !store_ready(s, 0, 0),
	    "evicted unused: wasted, by whom");
	store_close(s);
}

static void slow_drive(void)
{
	double bandwidth = SLOT / 0.005, t = now();
	struct store *s = open_slots(24, 4,
	    (struct store_opt){ .reader.sim = { 0.05, bandwidth } });
	int ids[EXPERTS] = { 0, 1, 2, 3, 4, 5, 6, 7 }, id, good = 1;
	struct expert x;
	struct err e = {0};

	store_demand(s, 2, ids, EXPERTS, NULL);
	for (id = 0; id < EXPERTS; id++)
		good &= store_get(s, 2, id, &x, &e) == 0;
	t = now() - t;
	/* Two runs of four neighbours: transfers end after 50 + 20 and 50 + 40 ms. */
	ok(good && t >= 0.09 && t < 0.4, "a simulated drive: latencies overlap, transfers do not "
	    "(%.0f ms)", t * 1e3);
	store_close(s);
}

static void too_many_pins(void)
{
	struct store *s = open_slots(2, 2, (struct store_opt){0});
	int ids[] = { 0, 1 }, id = 2;
	struct expert x;
	struct err e = {0};

	store_demand(s, 2, ids, 2, NULL);
	store_get(s, 2, 0, &x, &e);
	store_get(s, 2, 1, &x, &e);
	store_demand(s, 3, &id, 1, NULL);
	ok(store_get(s, 3, 2, &x, &e) < 0 && e.status == EX_SOFTWARE,
	    "more pins than slots: an error, not a hang");
	store_put(s, 2, 0);
	store_put(s, 2, 1);
	ok(touch(s, 3, 2) >= 0, "and all is well after store_put");
	store_close(s);
}

int main(void)
{
	struct err e = {0};

	snprintf(dir, sizeof dir, "%s/store.XXXXXX", getenv("BUILD") ? getenv("BUILD") : ".");
	if (mkdtemp(dir) == NULL)
		err_die(EX_CANTCREAT, "%s:", dir);
	make_content();
	describe();
	write_files();
	random_walk(2, 1, (struct store_opt){0}, "walk");
	random_walk(3, 2, (struct store_opt){0}, "walk");
	random_walk(6, 2, (struct store_opt){ .reader.buffered = true }, "buffered");
	random_walk(12, 4, (struct store_opt){ .reader.sim = { 0.0002, 200e6 } }, "slow drive");
	random_walk(12, 0, (struct store_opt){ .reader.sim = { 0.0002, 200e6 } }, "slow drive");
	random_walk(24, 8, (struct store_opt){0}, "walk");
	random_walk(6, 0, (struct store_opt){0}, "walk");
	random_walk(6, 0, (struct store_opt){ .split = 1, .reader.sim.latency = 0.0001 }, "in two");
	random_walk(7, 0, (struct store_opt){ .evict = CACHE_AUTO, .waste = 0.1 }, "on credit");
	bytes_read(false);
	bytes_read(true);
	odd_reads();
	bad_reads();
	bad_directories();
	budgets();
	all_resident();
	priority();
	expiry();
	neighbours(1);
	neighbours(0);
	bad_neighbour();
	halves();
	warm();
	resized(2, CACHE_AUTO);
	resized(0, CACHE_LRU);
	opt_quiet = true;
	squeezed();
	waste();
	slow_drive();
	too_many_pins();
	file_remove_tree(dir, &e);
	free(content);
	return tap_done();
}
