/*
 * A model of random weights, of any shape, to measure with: build/bench/gen/model DIR LOCALITY
 * SEED [KEY=VALUE...] Writes config.json, BF16 shards, manifest.json (experts in layer order,
 * for chr-pack) and prompts.jsonl. A config.json that is there, of any family, gives the shape.
 *
 * Weights are normal and scaled so that activations neither grow nor die: routing is then nearly
 * uniform, the worst case for any cache. LOCALITY, 0 to 1, is a dial built into the weights.
 * Every token belongs to a topic (few topics are common, most are rare: Zipf); embeddings of a
 * topic share a direction, to which routers answer, so that a topic prefers experts of its own;
 * and the head prefers tokens of the topic of the last one.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "arch/arch.h"
#include "arch/config.h"
#include "base/err.h"
#include "base/file.h"
#include "base/json.h"
#include "format/manifest.h"
#include "base/pool.h"
#include "base/rng.h"
#include "format/safetensors.h"

#define TOPICS 64
#define SHARD ((int64_t)2 << 30)
#define PROMPTS 16
#define PROMPT_TOKENS 128

static const char shape[] = "{\"chronos_format\":2,\"vocab_size\":32000,\"hidden_size\":1024,"
    "\"num_hidden_layers\":16,"
    "\"num_attention_heads\":16,\"num_key_value_heads\":4,\"head_dim\":64,"
    "\"moe_intermediate_size\":768,\"num_experts\":64,"
    "\"num_experts_per_tok\":8,\"num_shared_experts\":0,\"norm_topk_prob\":true,"
    "\"lookahead_steps\":0,\"use_hybrid_attention\":false,"
    "\"tie_word_embeddings\":false,\"max_position_embeddings\":8192}";

static struct config cfg;
static double locality;
static uint64_t seed;

/* Topic t has a share of 1 / (t + 1). */
static int topic_of(uint64_t stream, uint64_t i)
{
	double total = 0, x;
	int t = 0;

	for (int k = 0; k < TOPICS; k++)
		total += 1.0 / (k + 1);
	x = rng_uniform(seed, stream, i) * total;
	while (t < TOPICS - 1 && (x -= 1.0 / (t + 1)) > 0)
		t++;
	return t;
}

static int token_topic[1 << 20];

/* Nearly normal, variance 1: the sum of four uniform bytes. */
static float noise(uint64_t key, uint64_t i)
{
	uint32_t x = rng_hash(key, i);

	return ((float)((x & 255) + (x >> 8 & 255) + (x >> 16 & 255) + (x >> 24)) - 510) *
	    (1 / 147.8f);
}

static float direction(int topic, int64_t d)	/* of length sqrt(D) */
{
	return rng_hash(seed * 977 + (uint64_t)topic, (uint64_t)d) & 1 ? 1 : -1;
}

static bool prefers(int topic, int layer, int expert)
{
	return (int64_t)(rng_hash(seed * 31 + (uint64_t)(topic * 1000 + layer), (uint64_t)expert) %
	    (uint32_t)cfg.num_experts)
	    < cfg.num_experts_per_tok;
}

static double spread_of(const struct param *p)
{
	switch (p->kind) {
	case P_EMBED: return 1;
	case P_O: return 0.05 / sqrt(p->cols);
	case P_EXP_DOWN: case P_SH_DOWN: case P_MLP_DOWN: return 0.3 / sqrt(p->cols);
	default: return 1 / sqrt(p->cols);
	}
}

struct fill { const struct param *p; uint16_t *out; int row0; uint64_t key; };

static void fill_rows(void *ctx, int64_t i0, int64_t i1, int worker)
{
	const struct fill *f = ctx;
	const struct param *p = f->p;
	float scale = (float)spread_of(p), keep = (float)sqrt(1 - locality * locality * 0.5);

	(void)worker;
	for (int64_t i = i0; i < i1; i++) {
		int64_t row = f->row0 + i;

		for (int k = 0; k < p->cols; k++) {
			float x = p->ndim == 1 ? 1 : noise(f->key, (uint64_t)(row * p->cols + k)) *
			    scale;

			if (p->kind == P_EMBED)
				x = x * keep + (float)(locality * 0.7) * direction(token_topic[row],
				    k);
			else if (p->kind == P_HEAD)
				x += (float)(locality * 12 / p->cols) * direction(token_topic[row],
				    k);
			else if (p->kind == P_GATE)
				for (int t = 0; locality > 0 && t < TOPICS; t++)
					if (prefers(t, p->layer, (int)row))
						x += (float)(locality * 4 / p->cols) * direction(t,
						    k);
			tensor_from_f32(&f->out[i * p->cols + k], DT_BF16, &x, 1);
		}
	}
}

static void fail(const char *what, const struct st_error *se)
{
	err_die(EX_CANTCREAT, "%s: %s", what, se->msg);
}

static void write_tensor(struct st_writer *w, const struct param *p, uint16_t *buf,
    const char *path)
{
	int rows = p->cols > (1 << 22) ? 1 : (1 << 22) / p->cols;
	struct st_error se;

	for (int r = 0; r < p->rows; r += rows) {
		int n = p->rows - r < rows ? p->rows - r : rows;
		struct fill f = { p, buf, r, seed * 1000003 + (uint64_t)(p->off / 16) };

		pool_for(n, 16, fill_rows, &f);
		if (st_writer_data(w, buf, (size_t)n * (size_t)p->cols * 2, &se) < 0)
			fail(path, &se);
	}
}

/* Parameters i0..i1-1 in one file. */
static void write_shard(const char *dir, const struct params *ps, int i0, int i1, const char *name,
    uint16_t *buf)
{
	char *path = file_join(dir, name);
	struct st_error se;
	struct st_writer *w = st_writer_create(path, &se);

	if (!w)
		fail(path, &se);
	st_writer_meta(w, "format", "pt", &se);
	for (int i = i0; i < i1; i++) {
		uint64_t dims[2] = { (uint64_t)ps->p[i].rows, (uint64_t)ps->p[i].cols };

		st_writer_add(w, ps->p[i].name, ST_BF16, ps->p[i].ndim, dims, 0, &se);
	}
	if (st_writer_begin(w, &se) < 0)
		fail(path, &se);
	for (int i = i0; i < i1; i++)
		write_tensor(w, &ps->p[i], buf, path);
	if (st_writer_finish(w, &se) < 0)
		fail(path, &se);
	free(path);
}

/* where the shard that begins at i ends */
static int shard_of(const struct params *ps, int i, int64_t *bytes)
{
	for (*bytes = 0; i < ps->n; i++) {
		if (*bytes > 0 && *bytes + param_size(&ps->p[i]) * 2 > SHARD)
			break;
		*bytes += param_size(&ps->p[i]) * 2;
	}
	return i;
}

static void put_json(const char *dir, const char *name, json_t *o)
{
	char *path = file_join(dir, name);

	if (json_dump_file(o, path, JSON_INDENT(1)) < 0)
		err_die(EX_CANTCREAT, "cannot write %s:", path);
	json_decref(o);
	free(path);
}

static void write_weights(const char *dir, const struct params *ps)
{
	json_t *map = json_object();
	uint16_t *buf = malloc(((size_t)1 << 22) * 2 + (1 << 20) * 2);
	int n = 0, k = 0, next;
	int64_t bytes, total = 0;
	char name[64];

	if (!buf)
		err_die(EX_OSERR, "out of memory");
	for (int i = 0; i < ps->n; i = shard_of(ps, i, &bytes))
		n++;
	for (int i = 0; i < ps->n; i = next) {
		next = shard_of(ps, i, &bytes);
		total += bytes;
		if (n == 1)
			snprintf(name, sizeof(name), "model.safetensors");
		else
			snprintf(name, sizeof(name), "model-%05d-of-%05d.safetensors", ++k, n);
		write_shard(dir, ps, i, next, name, buf);
		for (int j = i; j < next; j++)
			json_object_set_new(map, ps->p[j].name, json_string(name));
	}
	if (n > 1)
		put_json(dir, "model.safetensors.index.json", json_pack("{s:{s:I}, s:O}",
		    "metadata", "total_size",
		    (json_int_t)total, "weight_map", map));
	json_decref(map);
	free(buf);
}

static void write_manifest(const char *dir)
{
	struct manifest m;
	struct err e;

	if (manifest_init(&m, cfg.num_hidden_layers, cfg.num_experts, cfg.num_sparse, &e) < 0)
		err_exit(&e);
	for (int l = 0, s = 0; l < cfg.num_hidden_layers; s += cfg.block[l].sparse, l++)
		for (int x = 0; cfg.block[l].sparse && x < cfg.num_experts; x++) {
			manifest_at(&m, l, x)->cluster = s;
			manifest_at(&m, l, x)->rank = x;
		}
	put_json(dir, "manifest.json", manifest_json(&m));
	manifest_free(&m);
}

/* Topics last as long as the dial says; within one, tokens are drawn evenly. */
static void write_prompts(const char *dir)
{
	char *path = file_join(dir, "prompts.jsonl");
	FILE *f = fopen(path, "w");
	uint64_t n = 0;

	if (!f)
		err_die(EX_CANTCREAT, "cannot write %s:", path);
	for (int i = 0; i < PROMPTS; i++) {
		int topic = token_topic[3 + (int)rng_below(seed, 3, n++, (uint64_t)cfg.vocab_size -
		    3)];

		fprintf(f, "{\"tokens\":[");
		for (int t = 0; t < PROMPT_TOKENS; t++) {
			int id;

			if (rng_uniform(seed, 4, n++) > locality)
				topic = token_topic[3 + (int)rng_below(seed, 3, n++,
				    (uint64_t)cfg.vocab_size - 3)];
			do
				id = 3 + (int)rng_below(seed, 5, n++, (uint64_t)cfg.vocab_size - 3);
			while (locality > 0 && token_topic[id] != topic);
			fprintf(f, "%s%d", t ? "," : "", id);
		}
		fprintf(f, "]}\n");
	}
	if (fclose(f) != 0)
		err_die(EX_IOERR, "cannot write %s:", path);
	free(path);
}

int main(int argc, char **argv)
{
	char *path;
	struct params ps;
	struct err e;

	err_init(argv[0]);
	if (argc < 4) {
		fprintf(stderr, "usage: model DIR LOCALITY SEED [KEY=VALUE...]\n");
		return EX_USAGE;
	}
	locality = atof(argv[2]);
	seed = (uint64_t)atoll(argv[3]);
	mkdir(argv[1], 0777);
	path = file_join(argv[1], "config.json");
	if ((access(path, F_OK) < 0 && file_put(path, shape, strlen(shape), &e) < 0) ||
	    config_load(&cfg, path, argc - 4,
	    (const char *const *)argv + 4, &e) < 0
	    || params_build(&ps, &cfg, &e) < 0)
		err_exit(&e);
	if (cfg.arch == &arch_chronos)
		put_json(argv[1], "config.json", config_to_json(&cfg));
	pool_init(0);
	for (int i = 0; i < cfg.vocab_size && i < 1 << 20; i++)
		token_topic[i] = topic_of(2, (uint64_t)i);
	write_weights(argv[1], &ps);
	if (cfg.num_sparse > 0)
		write_manifest(argv[1]);
	write_prompts(argv[1]);
	params_free(&ps);
	free(path);
	return 0;
}
