/*
 * Demand-only reads through the store against plain preads of the same places: what the queue,
 * the threads and the CRC cost. One record per sample; every read is cold (O_DIRECT, file
 * dropped from the cache before).
 *
 *	build/bench/store [DIR [MiB]]		the file goes to DIR (default .) and is removed
 */
#include <fcntl.h>
#include <jansson.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#include <zlib.h>

#include "base/json.h"
#include "base/rng.h"
#include "experts/store.h"

enum { EXPERTS = 16, TOPK = 4, MAX_MIB = 64 << 10, HUGE_PAGE = 2 << 20, ROUNDS = 3 };

static char name[] = "store-bench.tmp";
static char *dir, *path;
static int64_t total;

static double now(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void write_file(void)
{
	enum { CHUNK = 1 << 20 };
	uint32_t *buf = malloc(CHUNK);
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
	int64_t off, i;

	if (fd < 0)
		err_die(EX_CANTCREAT, "%s:", path);
	for (off = 0; off < total; off += CHUNK) {
		for (i = 0; i < CHUNK / 4; i++)
			buf[i] = rng_hash(1, (uint64_t)(off / 4 + i));
		if (write(fd, buf, CHUNK) != CHUNK)
			err_die(EX_IOERR, "%s:", path);
	}
	fsync(fd);
	close(fd);
	free(buf);
}

static void drop_cache(void)
{
	int fd = open(path, O_RDONLY);

	if (fd < 0 || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0)
		err_die(EX_IOERR, "%s:", path);
	close(fd);
}

struct sweep {				/* a random order of all experts of one size */
	int64_t slot;
	uint32_t *order, n;
	atomic_uint next;
};

static void *plain_main(void *arg)
{
	struct sweep *w = arg;
	int fd = open(path, O_RDONLY | O_DIRECT);
	void *buf;
	uint32_t i;

	if (fd < 0 || posix_memalign(&buf, HUGE_PAGE, (size_t)(w->slot + HUGE_PAGE)) != 0)
		err_die(EX_IOERR, "%s:", path);
	madvise(buf, (size_t)(w->slot + HUGE_PAGE), MADV_HUGEPAGE);	/* as the store's slots */
	memset(buf, 0, (size_t)w->slot);
	while ((i = atomic_fetch_add(&w->next, 1)) < w->n)
		if (pread(fd, buf, (size_t)w->slot, (off_t)w->order[i] * w->slot) != w->slot)
			err_die(EX_IOERR, "%s:", path);
	close(fd);
	free(buf);
	return NULL;
}

static void plain_sweep(struct sweep *w, int threads)
{
	pthread_t t[16];
	int i;

	atomic_store(&w->next, 0);
	for (i = 0; i < threads; i++)
		if (pthread_create(&t[i], NULL, plain_main, w) != 0)
			err_die(EX_OSERR, "cannot start a thread");
	for (i = 0; i < threads; i++)
		pthread_join(t[i], NULL);
}

/* TOPK experts of one layer at once, as a decoder would, but with nothing computed; every expert
 * once. */
static void store_sweep(struct sweep *w, struct store *s)
{
	int layer, first, ids[TOPK], j;
	struct err e = {0};
	struct expert x;
	uint32_t i;

	for (i = 0; i < w->n; i++) {
		if (w->order[i] % TOPK != 0)
			continue;
		layer = (int)(w->order[i] / EXPERTS);
		first = (int)(w->order[i] % EXPERTS) / TOPK;
		for (j = 0; j < TOPK; j++)
			ids[j] = first + j * (EXPERTS / TOPK);
		store_demand(s, layer, ids, TOPK, NULL);
		for (j = 0; j < TOPK; j++) {
			if (store_get(s, layer, ids[j], &x, &e) < 0)
				err_exit(&e);
			store_put(s, layer, ids[j]);
		}
		store_advance(s);
	}
}

static void put_record(const struct sweep *w, const char *what, int threads, bool direct,
    double wall, double cpu,
    double stall, int64_t bytes)
{
	json_t *o = json_object();
	struct err e = {0};

	json_set_str(o, "type", "bench");
	json_set_str(o, "name", what);
	json_set_int(o, "expert_bytes", w->slot);
	json_set_int(o, "threads", threads);
	json_object_set_new(o, "direct", json_boolean(direct));
	json_set_int(o, "bytes", bytes);
	json_set_num(o, "wall", wall);
	json_set_num(o, "cpu", cpu);
	json_set_num(o, "stall", stall);
	json_set_num(o, "bytes_per_s", (double)bytes / wall);
	if (json_put(stdout, o, &e) < 0)
		err_exit(&e);
	json_decref(o);
}

static void bench_plain(struct sweep *w, int threads)
{
	double wall, cpu;

	drop_cache();
	wall = now(CLOCK_MONOTONIC);
	cpu = now(CLOCK_PROCESS_CPUTIME_ID);
	plain_sweep(w, threads);
	put_record(w, "pread", threads, true, now(CLOCK_MONOTONIC) - wall,
	    now(CLOCK_PROCESS_CPUTIME_ID) - cpu, 0,
	    (int64_t)w->n * w->slot);
}

static void bench_store(struct sweep *w, const struct config *c, const struct manifest *m,
    int threads)
{
	struct store_opt o = { .bytes = 2 * TOPK * w->slot, .reader = { .io = threads > 0
	    ? READER_THREADS : READER_URING, .threads = threads },
		.waste = -1, .force = true };
	struct store_stats before, after;
	struct err e = {0};
	struct store *s;
	double wall, cpu;
	int pass;

	drop_cache();
	s = store_open(dir, c, m, &o, &backend_cpu, &e);
	if (s == NULL)
		err_exit(&e);
	for (pass = 0; pass < 2; pass++) {
		store_stats(s, &before);
		wall = now(CLOCK_MONOTONIC);
		cpu = now(CLOCK_PROCESS_CPUTIME_ID);
		store_sweep(w, s);
		wall = now(CLOCK_MONOTONIC) - wall;
		cpu = now(CLOCK_PROCESS_CPUTIME_ID) - cpu;
		store_stats(s, &after);
		put_record(w, pass ? "store" : "store first read", threads, store_direct(s), wall,
		    cpu,
		    after.stall - before.stall, (int64_t)(after.read_bytes - before.read_bytes));
	}
	store_close(s);
}

/* Says that the file holds BF16 experts of this size, one after the other; layer and expert in
 * file order. */
static void describe(struct config *c, struct manifest *m, int64_t slot, int64_t n)
{
	static char *file[] = { name };
	int D = 256, F = (int)(slot / 6 / D), l, fd = open(path, O_RDONLY);
	Bytef *map = mmap(NULL, (size_t)total, PROT_READ, MAP_SHARED, fd, 0);
	int64_t k;

	if (fd < 0 || map == MAP_FAILED)
		err_die(EX_IOERR, "%s:", path);
	close(fd);

	*c = (struct config){ .hidden_size = D, .moe_intermediate_size = F, .num_hidden_layers =
	    (int)(n / EXPERTS),
		.num_experts = EXPERTS, .num_experts_per_tok = TOPK, .num_sparse =
		    (int)(n / EXPERTS) };
	for (l = 0; l < c->num_hidden_layers && l < CFG_MAX_LAYERS; l++)
		c->block[l].sparse = true;
	*m = (struct manifest){ .layers = c->num_hidden_layers, .experts = EXPERTS, .nclusters = 1,
	    .file = file,
		.dt = { DT_BF16, DT_BF16, DT_BF16 }, .place = calloc((size_t)n, sizeof *m->place) };
	m->gate_bytes = m->up_bytes = m->down_bytes = (int64_t)2 * D * F;
	for (k = 0; k < n; k++)
		m->place[k] = (struct place){ .offset = k * slot, .bytes = (int64_t)6 * D * F,
			.crc = (uint32_t)crc32(0, map + k * slot, (uInt)(6 * D * F)) };
	munmap(map, (size_t)total);
}

static void bench_size(int64_t slot)
{
	struct sweep w = { .slot = slot };
	struct manifest m;
	struct config c;
	int64_t n = total / slot / EXPERTS;
	int threads, round;
	uint32_t i;

	n = (n < CFG_MAX_LAYERS ? n : CFG_MAX_LAYERS) * EXPERTS;
	describe(&c, &m, slot, n);
	w.n = (uint32_t)n;
	w.order = malloc((size_t)n * sizeof *w.order);
	for (i = 0; i < w.n; i++)
		w.order[i] = i;
	rng_shuffle(3, 4, w.order, w.n);
	for (threads = 0; threads <= 4; threads += threads + (threads == 0))
		/* in turns, since the drive has other guests */
		for (round = 0; round < ROUNDS; round++) {
			if (threads > 0)
				bench_plain(&w, threads);
			bench_store(&w, &c, &m, threads);
		}
	free(w.order);
	free(m.place);
}

int main(int argc, char **argv)
{
	static const int64_t size[] = { 64 << 10, 256 << 10, 1 << 20, 4 << 20 };
	size_t i;

	err_init(argv[0]);
	dir = argc > 1 ? argv[1] : (char *)".";
	total = (int64_t)(argc > 2 ? atoi(argv[2]) : 256) << 20;
	if (total < (EXPERTS * 4) << 20 || total > (int64_t)MAX_MIB << 20)
		err_die(EX_USAGE, "usage: store [DIR [MiB]], at least %d MiB", EXPERTS * 4);
	path = malloc(strlen(dir) + sizeof name + 1);
	sprintf(path, "%s/%s", dir, name);
	write_file();
	for (i = 0; i < sizeof size / sizeof *size; i++)
		bench_size(size[i]);
	unlink(path);
	free(path);
	err_close_stdout();
	return 0;
}
