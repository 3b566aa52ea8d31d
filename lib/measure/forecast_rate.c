#include "measure/forecast_rate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/progress.h"
#include "base/rng.h"
#include "decode/decode.h"
#include "measure/drive_bench.h"
#include "measure/kernel_rate.h"

#define MIB ((int64_t)1 << 20)
#define MOST (192 * MIB)		/* of memory to measure on */
#define LARGE (64 * MIB)		/* file that is fit to measure a drive with */
#define SCRATCH (128 * MIB)
#define SAMPLES 3
#define SAMPLE_SECONDS 0.02

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(double *v, int n)
{
	qsort(v, (size_t)n, sizeof *v, by_value);
	return v[n / 2];
}

/* --- kernels --- */

int forecast_rate_ffn(enum dtype t, int D, int F, int rows, int64_t bytes, double *rate,
    struct err *e)
{
	size_t one = kernel_rate_expert_bytes(t, D, F);
	int n = (int)((bytes < MOST ? bytes : MOST) / (int64_t)one) + 1;
	struct kernel_rate_ffn f;
	double v[SAMPLES];
	void *w = kernel_rate_weights(one * (size_t)n);

	if (w == NULL)
		return err_set(e, EX_OSERR, "out of memory to measure kernels on");
	if (kernel_rate_ffn_open(&f, t, D, F, rows, n, w, e) < 0) {
		free(w);
		return -1;
	}
	kernel_rate_ffn_seconds(&f);
	for (int i = 0; i < SAMPLES; i++) {
		double took = 0;
		int times = 0;

		for (; took < SAMPLE_SECONDS; times++)
			took += kernel_rate_ffn_seconds(&f);
		v[i] = kernel_rate_ffn_ops(&f) / 2 * times / took;
	}
	*rate = median(v, SAMPLES);
	kernel_rate_ffn_close(&f);
	free(w);
	return 0;
}

double forecast_rate_memory(struct err *e)
{
	void *w = kernel_rate_weights((size_t)MOST);
	double v[SAMPLES];

	if (w == NULL) {
		err_set(e, EX_OSERR, "out of memory to measure its speed on");
		return 0;
	}
	for (int i = 0; i < SAMPLES; i++)
		v[i] = kernel_rate_read_rate(w, (size_t)MOST);
	free(w);
	return median(v, SAMPLES);
}

/* Arrays of zeros for n rows. */
struct rows {
	dev_real *q, *o;
	dev_byte *cache;
	const void **k;
	dev_i32 *lo, *hi;
};

static void fill(struct rows *r, int n, int tokens)
{
	int32_t *at = calloc((size_t)n, sizeof *at);

	for (int i = 0; i < n; i++)
		r->k[i] = r->cache;
	backend_cpu.put(&backend_cpu, r->lo, at, (size_t)n * sizeof *at);
	for (int i = 0; at && i < n; i++)
		at[i] = tokens - 1;
	backend_cpu.put(&backend_cpu, r->hi, at, (size_t)n * sizeof *at);
	free(at);
}

double forecast_rate_attn(enum kv_type type, int n, int H, int G, int w, int tokens)
{
	const struct backend *be = &backend_cpu;
	size_t wide = (size_t)n * (size_t)H * (size_t)w * sizeof(real);
	struct rows r = { .q = be->alloc(be, wide), .o = be->alloc(be, wide),
	    .cache = be->alloc(be, kv_cache_bytes(type, G, tokens, w)),
	    .k = calloc((size_t)n, sizeof *r.k), .lo = be->alloc(be, (size_t)n * sizeof *r.lo),
	    .hi = be->alloc(be, (size_t)n * sizeof *r.hi) };
	double v[SAMPLES], rate = 0;

	if (r.q && r.o && r.cache && r.k && r.lo && r.hi) {
		const struct attn_cached_args a = { .n = n, .H = H, .G = G, .dk = w, .dv = w,
		    .scale = 1, .q = r.q, .ldq = (int64_t)H * w, .o = r.o, .ldo = (int64_t)H * w,
		    .type = type, .slots = tokens, .kcache = r.k, .vcache = r.k, .lo = r.lo,
		    .hi = r.hi };

		be->zero(be, r.q, wide);
		be->zero(be, (dev_real *)r.cache, kv_cache_bytes(type, G, tokens, w));
		fill(&r, n, tokens);
		for (int i = 0; i < SAMPLES; i++) {
			double begun = progress_clock(), took;
			int times = 0;

			do {
				be->attn_cached(be, &a);
				took = progress_clock() - begun;
				times++;
			} while (took < SAMPLE_SECONDS);
			v[i] = 2.0 * n * H * w * tokens * times / took;
		}
		rate = median(v, SAMPLES);
	}
	be->free(be, r.q);
	be->free(be, r.o);
	be->free(be, r.cache);
	be->free(be, r.lo);
	be->free(be, r.hi);
	free(r.k);
	return rate;
}

/* --- a layer --- */

#define TOKENS 96

static const char shape[] = "{\"chronos_format\":2,\"vocab_size\":64,\"hidden_size\":64,"
    "\"num_hidden_layers\":%d,\"num_attention_heads\":2,\"num_key_value_heads\":1,"
    "\"head_dim\":32,\"moe_intermediate_size\":32,\"num_experts\":8,\"num_experts_per_tok\":2,"
    "\"num_shared_experts\":0,\"lookahead_steps\":0,\"use_hybrid_attention\":false,"
    "\"max_position_embeddings\":256}";

static double run(struct engine *g, struct err *e)
{
	struct seq *s = seq_new(g, e);
	real logits[64];
	double v[TOKENS];

	if (s == NULL)
		return -1;
	for (int i = 0; i < TOKENS; i++) {
		const uint32_t tok = (uint32_t)i % 64;
		struct eval_item it = { .s = s, .tok = &tok, .n = 1, .logits = logits };
		double begun = progress_clock();

		if (engine_eval(g, &it, 1, NULL, e) < 0)
			return -1;
		v[i] = progress_clock() - begun;
	}
	seq_free(s);
	return median(v, TOKENS);
}

/* Seconds of a token of so many layers, or -1. */
static double small(const struct backend *be, int layers, struct err *e)
{
	static struct config c;
	const struct engine_opt o = { .max_seqs = 1, .max_tokens = TOKENS, .max_rows = 1 };
	char text[sizeof shape + 16];
	struct engine *g = NULL;
	struct params ps = { 0 };
	double t = -1;
	real *host;
	dev_real *w;
	json_t *json;

	snprintf(text, sizeof text, shape, layers);
	json = json_loads(text, 0, NULL);
	if (config_from_json(&c, json, 0, NULL, e) == 0 && params_build(&ps, &c, e) == 0) {
		host = malloc((size_t)ps.total * sizeof *host);
		w = be->alloc(be, (size_t)ps.total * sizeof *host);
		for (int64_t i = 0; host && i < ps.total; i++)
			host[i] = (real)(rng_normal(3, 1, (uint64_t)i) / 8);
		if (host && w) {
			be->put(be, w, host, (size_t)ps.total * sizeof *host);
			g = engine_over(&c, &ps, w, &o, be, e);
		} else
			err_set(e, EX_OSERR, "out of memory for a small model");
		t = g ? run(g, e) : -1;
		engine_close(g);
		be->free(be, w);
		free(host);
	}
	json_decref(json);
	params_free(&ps);
	config_free(&c);
	return t;
}

int forecast_rate_layer(const struct backend *be, double *layer, double *token, struct err *e)
{
	double two = small(be, 2, e), ten = two < 0 ? -1 : small(be, 10, e);

	if (ten < 0)
		return -1;
	*layer = fmax((ten - two) / 8, 0);
	*token = fmax(two - 2 * *layer, 0);
	return 0;
}

/* --- the drive --- */

static int write_noise(int fd)
{
	uint64_t *w = malloc((size_t)MIB);
	int rc = w ? 0 : -1;

	for (int64_t i = 0; rc == 0 && i < SCRATCH / MIB; i++) {
		for (int64_t k = 0; k < MIB / 8; k++)
			w[k] = ((uint64_t)rng_hash(5, (uint64_t)(i * MIB + k)) << 32) + (uint64_t)k;
		for (int64_t at = 0; rc == 0 && at < MIB; ) {
			ssize_t n = write(fd, (char *)w + at, (size_t)(MIB - at));

			at += n > 0 ? n : 0;
			rc = n > 0 ? 0 : -1;
		}
	}
	free(w);
	return rc == 0 && fsync(fd) == 0 ? 0 : -1;
}

/* A file that has no name any more: in the directory, else in TMPDIR. -1: neither. */
static int scratch(const char *dir, struct err *e)
{
	const char *tmp = getenv("TMPDIR"), *where[] = { dir, tmp && *tmp ? tmp : "/tmp" };

	for (int i = 0; i < 2; i++) {
		char *path = file_join(where[i], ".chr-fit-drive-XXXXXX");
		int fd = path ? mkstemp(path) : -1;

		if (fd >= 0)
			unlink(path);
		free(path);
		if (fd >= 0 && write_noise(fd) == 0)
			return fd;
		if (fd >= 0)
			close(fd);
	}
	return err_set(e, EX_CANTCREAT, "%s: no room for a file to measure the drive with: give "
	    "--drive", dir);
}

int forecast_rate_drive(const char *dir, int64_t block, int depth, struct forecast_drive *d,
    struct err *e)
{
	static const char *const weights[] = { ".ctsr", ".safetensors", ".gguf", NULL };
	struct drive_bench_result one = { 0 }, many = { 0 };
	char *path = file_largest(dir, weights, LARGE), made[32];
	int fd = path ? -1 : scratch(dir, e), rc = path || fd >= 0 ? 0 : -1;
	const char *use = path ? path : made;

	snprintf(made, sizeof made, "/proc/self/fd/%d", fd);
	if (rc == 0)
		rc = drive_bench_measure(use, block, 1, SAMPLES, &one, e);
	if (rc == 0 && (rc = drive_bench_measure(use, block, depth, SAMPLES, &many, e)) == 0) {
		double alone = (double)block / one.median, each = (double)block / many.median;

		*d = (struct forecast_drive){ .bytes_per_s = many.median,
		    .latency = fmax(alone - each, 0), .direct = many.direct };
		snprintf(d->from, sizeof d->from, "%s", path ? path : dir);
	}
	free(one.sample);
	free(many.sample);
	if (fd >= 0)
		close(fd);
	free(path);
	return rc;
}
