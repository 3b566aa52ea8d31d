/* Model directories: what is saved is what is loaded, in one file and in shards; what does not
 * fit is named. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "format/modeldir.h"
#include "base/rng.h"
#include "tap.h"

static char dir[] = "/tmp/chr-modeldir-XXXXXX";
static struct config cfg;
static struct params ps;
static float *flat, *back;

static void fresh_dir(void)
{
	struct err e = { 0 };

	file_remove_tree(dir, &e);
	mkdir(dir, 0777);
}

static int save(enum dtype dt, int64_t shard_size, char *fp)
{
	json_t *meta = json_pack("{s:s}", "chronos.seed", "42");
	struct modeldir_out o = { .dtype = dt, .shard_size = shard_size, .meta = meta };
	struct err e = { 0 };
	int r = modeldir_save(dir, &cfg, &ps, flat, &o, fp, &e);

	if (r < 0)
		printf("# %s\n", e.msg);
	json_decref(meta);
	return r;
}

static double worst(void)
{
	double w = 0;

	for (int i = 0; i < ps.n; i++)
		for (int64_t k = 0; k < param_size(&ps.p[i]); k++)
			w = fmax(w, fabs(flat[ps.p[i].off + k] - back[ps.p[i].off + k]));
	return w;
}

/* Opens and loads the directory; the largest difference to what was saved, -1 on error (message
 * on stdout). */
static double load(char *fp)
{
	struct err e = { 0 };
	struct modeldir md;
	double w = -1;

	if (modeldir_open(&md, dir, 0, NULL, &e) == 0) {
		if (modeldir_load_f32(&md, &md.par, back, &e) == 0 && modeldir_fingerprint(&md, &e))
			w = worst();
		if (w >= 0 && fp)
			memcpy(fp, md.fingerprint, 33);
		modeldir_close(&md);
	}
	if (w < 0)
		printf("# %s\n", e.msg);
	return w;
}

static void test_one_file(void)
{
	struct err e = { 0 };
	char a[33], b[33], c[33] = "";
	struct modeldir md;

	ok(save(DT_F32, 0, a) == 0 && load(b) == 0, "float32 in one file comes back exactly");
	ok(strlen(a) == 32 && strcmp(a, b) == 0, "fingerprint %s from metadata", a);
	ok(modeldir_open(&md, dir, 0, NULL, &e) == 0 && modeldir_compute_fingerprint(&md, c, &e) ==
	    0 && strcmp(a, c) == 0,
	    "the same when computed from the file");
	ok(strcmp(modeldir_meta(&md, "chronos.seed"), "42") == 0 &&
	    strcmp(modeldir_meta(&md, "format"), "pt") == 0,
	    "metadata");
	modeldir_close(&md);
	flat[0] += 1;
	ok(save(DT_F32, 0, b) == 0 && strcmp(a, b) != 0, "another weight, another fingerprint");
	flat[0] -= 1;
	ok(save(DT_BF16, 0, b) == 0 && strcmp(a, b) != 0 && load(NULL) < 0.01, "bfloat16");
	ok(save(DT_F16, 0, b) == 0 && load(NULL) < 0.001, "float16");
}

static int there(const char *name)
{
	char *path = file_join(dir, name);
	int r = access(path, F_OK) == 0;

	free(path);
	return r;
}

static void test_shards(void)
{
	char a[33], b[33], path[100];

	fresh_dir();
	save(DT_F32, 0, a);
	ok(save(DT_F32, 20000, b) == 0 && load(NULL) == 0 && strcmp(a, b) == 0,
	    "shards hold the same model");
	ok(!there("model.safetensors") && there("model.safetensors.index.json"),
	    "and the single file is gone");
	ok(save(DT_F32, 40000, b) == 0 && load(NULL) == 0, "fewer shards");
	ok(save(DT_F32, 0, b) == 0 && load(NULL) == 0 && !there("model.safetensors.index.json"),
	    "one file again");
	save(DT_F32, 20000, b);
	for (int n = 2; n < 100; n++) {
		snprintf(path, sizeof path, "%s/model-00002-of-%05d.safetensors", dir, n);
		unlink(path);
	}
	ok(load(NULL) < 0, "a missing shard is noticed");
}

/* Writes one tensor list by hand: the model's own, with changes. */
static void write_changed(const char *skip, const char *extra, const float *extra_data, int head)
{
	char *path = file_join(dir, "model.safetensors");
	struct st_error se;
	struct st_writer *w = st_writer_create(path, &se);
	const struct param *emb = params_find(&ps, "model.embed_tokens.weight");
	uint64_t es[2] = { (uint64_t)emb->rows, (uint64_t)emb->cols }, one = 1;

	for (int i = 0; i < ps.n; i++) {
		uint64_t s[2] = { (uint64_t)ps.p[i].rows, (uint64_t)ps.p[i].cols };

		if (!skip || strcmp(skip, ps.p[i].name) != 0)
			st_writer_add(w, ps.p[i].name, ST_F32, ps.p[i].ndim, s, i % 2 ? 64 : 0,
			    &se);
	}
	if (extra)
		st_writer_add(w, extra, ST_F32, head ? 2 : 1, head ? es : &one, 0, &se);
	st_writer_begin(w, &se);
	for (int i = 0; i < ps.n; i++)
		if (!skip || strcmp(skip, ps.p[i].name) != 0)
			st_writer_data(w, flat + ps.p[i].off, (size_t)param_size(&ps.p[i]) * 4,
			    &se);
	if (extra)
		st_writer_data(w, extra_data, head ? (size_t)param_size(emb) * 4 : 4, &se);
	if (st_writer_finish(w, &se) < 0)
		printf("# %s\n", se.msg);
	free(path);
}

static void load_fails(const char *why)
{
	struct err e = { 0 };
	struct modeldir md;
	int r = modeldir_open(&md, dir, 0, NULL, &e);

	if (r == 0) {
		r = modeldir_load_f32(&md, &md.par, back, &e);
		modeldir_close(&md);
	}
	if (!ok(r < 0 && strstr(e.msg, why), "refused: %s", why))
		printf("# %d %s\n", r, e.msg);
}

static void test_changes(void)
{
	char a[33], b[33];

	fresh_dir();
	save(DT_F32, 0, a);
	write_changed(NULL, NULL, NULL, 0);
	ok(load(b) == 0 && strcmp(a, b) == 0, "padding is passed over, also by the fingerprint");
	write_changed(NULL, "lm_head.weight", flat, 1);
	ok(load(b) == 0 && strcmp(a, b) == 0, "a tied head that equals the embedding is passed "
	    "over");
	write_changed(NULL, "lm_head.weight", flat + 1, 1);
	load_fails("lm_head.weight differs");
	write_changed(NULL, "stray", flat, 0);
	load_fails("unexpected tensor \"stray\"");
	write_changed("model.norm.weight", NULL, NULL, 0);
	load_fails("\"model.norm.weight\" is missing");
	write_changed("model.norm.weight", "model.norm.weight", flat, 0);
	load_fails("has not the shape [16]");
}

static void test_packed(void)
{
	struct err e = { 0 };
	char *path = file_join(dir, "cluster_manifest.json"), a[33];
	struct modeldir md;

	fresh_dir();
	save(DT_F32, 0, a);
	file_put(path, "{}", 2, &e);
	ok(modeldir_open(&md, dir, 0, NULL, &e) == 0 && md.packed && modeldir_check(&md, &md.par,
	    &e) == 0, "packed");
	modeldir_close(&md);
	load_fails("packed");
	ok(save(DT_F32, 0, a) < 0, "nothing is saved into a packed directory");
	free(path);
}

int main(void)
{
	struct err e = { 0 };
	json_t *o = json_pack("{s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i}",
	    "chronos_format", 2, "hidden_size", 16,
	    "num_attention_heads", 2, "num_key_value_heads", 1, "num_hidden_layers", 3,
	    "vocab_size", 50,
	    "moe_intermediate_size", 8, "kv_latent_dim", 8, "num_experts", 6, "num_experts_per_tok",
	    2);

	if (!mkdtemp(dir) || config_from_json(&cfg, o, 0, NULL, &e) < 0 ||
	    params_build(&ps, &cfg, &e) < 0)
		return ok(0, "setup: %s", e.msg), tap_done();
	flat = calloc((size_t)ps.total, sizeof *flat);
	back = calloc((size_t)ps.total, sizeof *back);
	for (int64_t i = 0; i < ps.total; i++)
		flat[i] = (float)rng_uniform(1, 2, (uint64_t)i) - 0.5f;
	test_one_file();
	test_shards();
	test_changes();
	test_packed();
	ok(file_remove_tree(dir, &e) == 0, "cleaned up");
	free(flat);
	free(back);
	params_free(&ps);
	config_free(&cfg);
	json_decref(o);
	return tap_done();
}
