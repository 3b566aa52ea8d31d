/* What chr-ls --check must find: each kind of damage, and nothing in a good model. */
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "format/manifest.h"
#include "format/modeldir.h"
#include "format/pack.h"
#include "base/pool.h"
#include "base/rng.h"
#include "tap.h"
#include "format/verify.h"

static char dir[] = "/tmp/chr-verify-XXXXXX";
static char *model, *packed;
static struct config cfg;
static struct params ps;
static float *flat;

static struct {
	int n;
	char last[300], name[100];
	int layer, expert;
	uint64_t nan, inf, first;
} seen;

static void note(void *ctx, const struct verify_bad *b)
{
	(void)ctx;
	seen.n++;
	snprintf(seen.last, sizeof seen.last, "%s", b->why ? b->why : "");
	snprintf(seen.name, sizeof seen.name, "%s", b->tensor ? b->tensor : "");
	seen.layer = b->layer;
	seen.expert = b->expert;
	seen.nan = b->nan;
	seen.inf = b->inf;
	seen.first = b->first;
}

static void save(enum dtype dt)
{
	struct modeldir_out o = { .dtype = dt, .meta = NULL };
	struct err e = { 0 };

	if (modeldir_save(model, &cfg, &ps, flat, &o, NULL, &e) < 0)
		printf("# %s\n", e.msg);
}

static int verify(const char *path)
{
	struct verify v = { .bad = note };
	struct modeldir md;
	struct err e = { 0 };

	memset(&seen, 0, sizeof seen);
	if (modeldir_open(&md, path, 0, NULL, &e) < 0) {
		printf("# %s\n", e.msg);
		return -1;
	}
	if (verify_model(&v, &md, &e) < 0)
		printf("# %s\n", e.msg);
	modeldir_close(&md);
	if (v.found != seen.n)
		return -1;
	if (seen.n)
		printf("# %d: %s%s\n", seen.n, seen.name, seen.last);
	return seen.n;
}

/* Changes one byte of a file, from its end if at is negative. */
static void flip(const char *in, const char *name, off_t at)
{
	char *path = file_join(in, name);
	int fd = open(path, O_RDWR);
	unsigned char c;
	struct stat st;

	if (fd >= 0 && fstat(fd, &st) == 0) {
		at += at < 0 ? st.st_size : 0;
		if (pread(fd, &c, 1, at) == 1 && (c ^= 1, pwrite(fd, &c, 1, at) == 1))
			close(fd);
	}
	free(path);
}

static void test_finite(enum dtype dt)
{
	const struct param *p = params_find(&ps, "model.layers.1.mlp.experts.3.up_proj.weight");
	float *x = flat + p->off, a = x[5], b = x[9], c = x[70];

	save(dt);
	ok(verify(model) == 0, "%s: a good model", dtype_name(dt));
	x[9] = NAN;
	x[5] = -INFINITY;
	x[70] = NAN;
	save(dt);
	ok(verify(model) == 1 && strcmp(seen.name, p->name) == 0 && seen.nan == 2 &&
	    seen.inf == 1 && seen.first == 5,
	    "%s: NaN and infinity are found and counted", dtype_name(dt));
	x[5] = a;
	x[9] = b;
	x[70] = c;
}

static void test_fingerprint(void)
{
	save(DT_F32);
	flip(model, "model.safetensors", -4);	/* lowest bit of the last number */
	ok(verify(model) == 1 && strstr(seen.last, "fingerprint"),
	    "a changed weight does not match the fingerprint");
}

static void test_beside(void)
{
	static const char *const name[] = { "optimizer.safetensors", INTENT_NAME,
	    FORESEE_NAME };
	struct err e = { 0 };

	save(DT_F32);
	for (int i = 0; i < 3; i++) {
		char *path = file_join(model, name[i]);

		file_put(path, "short", 5, &e);
		ok(verify(model) == 1 && strstr(seen.last, "too short"), "%s beside the weights",
		    name[i]);
		unlink(path);
		free(path);
	}
}

static void test_names(void)
{
	char *path = file_join(model, "config.json"), *text;
	struct err e = { 0 };
	size_t len;
	char *at;

	save(DT_F32);
	file_get(path, &text, &len, &e);
	at = strstr(text, "\"num_experts\": 4");
	if (at)
		at[15] = '5';
	file_put(path, text, len, &e);
	ok(at && verify(model) == -1,
	    "tensors that config.json does not ask for");
	free(text);
	free(path);
}

static void pack(void)
{
	struct manifest m;
	struct modeldir md;
	struct err e = { 0 };
	struct mem_plan plan = { 0 };
	struct pack p = { .md = &md, .manifest = &m, .out = packed, .dtype = -1, .force = true };
	int next[2] = { 0 };

	save(DT_BF16);
	if (modeldir_open(&md, model, 0, NULL, &e) < 0 || manifest_init(&m, 2, 4, 2, &e) < 0)
		printf("# %s\n", e.msg);
	for (int i = 0; i < 8; i++)
		m.place[i] = (struct place){ .cluster = i % 2, .rank = next[i % 2]++ };
	if (pack_types(&p, &e) < 0 || pack_check(&p, &e) < 0 || pack_plan(&p, &plan, 0, &e) < 0 ||
	    pack_write(&p, &e) < 0)
		printf("# %s\n", e.msg);
	pack_free(&p);
	manifest_free(&m);
	modeldir_close(&md);
}

/* Bits of the tensors that are no experts; of a manifest from before their CRCs were noted. */
static void test_dense(const char *manifest)
{
	static const char *const tensor[] = { "model.embed_tokens.weight", "model.norm.weight" };
	struct err e = { 0 };
	struct modeldir md;
	int64_t at[2] = { 0 };
	char *text, *key;
	struct view v;
	size_t len;

	if (modeldir_open(&md, packed, 0, NULL, &e) == 0) {
		for (int i = 0; i < 2; i++)
			at[i] = modeldir_find(&md, tensor[i], &v) == 0 ? (int64_t)v.t->offset : 0;
		modeldir_close(&md);
	}
	for (int i = 0; i < 2; i++) {
		flip(packed, "model.safetensors", at[i]);
		ok(verify(packed) == 1 && strcmp(seen.name, tensor[i]) == 0 &&
		    strstr(seen.last, "CRC"), "one bit of %s", tensor[i]);
		flip(packed, "model.safetensors", at[i]);
	}
	flip(packed, "model.safetensors", at[0]);
	flip(packed, "model.safetensors", at[1]);
	ok(verify(packed) == 2, "two bits, in two tensors");
	file_get(manifest, &text, &len, &e);
	key = strstr(text, "\"dense_crc32\"");
	if (key)
		key[1] = '_';
	file_put(manifest, text, len, &e);
	ok(key && verify(packed) == 0, "a manifest without their CRCs cannot tell");
	if (key)
		key[1] = 'd';
	file_put(manifest, text, len, &e);
	flip(packed, "model.safetensors", at[0]);
	flip(packed, "model.safetensors", at[1]);
	ok(verify(packed) == 0, "and back");
	free(text);
}

static void test_packed(void)
{
	struct err e = { 0 };
	struct manifest m;
	char *name, *path;
	struct stat st;

	pack();
	ok(verify(packed) == 0, "a good packed model");
	name = file_join(packed, MANIFEST_NAME);
	manifest_load(&m, name, &e);
	flip(packed, m.file[1], manifest_at(&m, 1, 1)->offset + 2);
	ok(verify(packed) == 1 && seen.layer == 1 && seen.expert == 1 && strstr(seen.last, "CRC"),
	    "one bit of an expert");
	flip(packed, m.file[1], manifest_at(&m, 1, 1)->offset + 2);
	ok(verify(packed) == 0, "and back");
	test_dense(name);
	path = file_join(packed, m.file[0]);
	stat(path, &st);
	if (truncate(path, st.st_size - 1) < 0)
		printf("# truncate\n");
	ok(verify(packed) == 1, "a truncated file");
	unlink(path);
	ok(verify(packed) == 1 && strstr(seen.last, "No such file"), "a missing file");
	free(path);
	pack();
	file_put(name, "{}", 2, &e);
	ok(verify(packed) == 1, "a manifest that is none");
	manifest_free(&m);
	free(name);
}

static void test_other_manifest(void)
{
	char *name = file_join(packed, MANIFEST_NAME), *text, *at;
	struct err e = { 0 };
	size_t len;

	pack();
	file_get(name, &text, &len, &e);
	at = strstr(text, "\"fingerprint\"");
	at = at ? strchr(at + 13, '"') : NULL;
	if (at)
		at[1] = at[1] == '0' ? '1' : '0';
	file_put(name, text, len, &e);
	ok(at && verify(packed) == 1 && strstr(seen.last, "another model"),
	    "a manifest of another model");
	free(text);
	free(name);
}

int main(void)
{
	struct err e = { 0 };
	json_t *o = json_pack("{s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i}",
	    "chronos_format", 2, "hidden_size", 16,
	    "num_attention_heads", 2, "num_key_value_heads", 1, "num_hidden_layers", 2,
	    "vocab_size", 50,
	    "moe_intermediate_size", 8, "kv_latent_dim", 8, "num_experts", 4, "num_experts_per_tok",
	    2);

	pool_init(2);
	if (!mkdtemp(dir) || config_from_json(&cfg, o, 0, NULL, &e) < 0 ||
	    params_build(&ps, &cfg, &e) < 0)
		return ok(0, "setup: %s", e.msg), tap_done();
	model = file_join(dir, "model");
	packed = file_join(dir, "packed");
	mkdir(model, 0777);
	flat = calloc((size_t)ps.total, sizeof *flat);
	for (int64_t i = 0; i < ps.total; i++)
		flat[i] = (float)rng_normal(1, 2, (uint64_t)i);
	for (int t = DT_F32; t <= DT_F16; t++)
		test_finite((enum dtype)t);
	test_fingerprint();
	test_beside();
	test_names();
	test_packed();
	test_other_manifest();
	ok(file_remove_tree(dir, &e) == 0, "cleaned up");
	free(flat);
	free(model);
	free(packed);
	params_free(&ps);
	config_free(&cfg);
	json_decref(o);
	pool_quit();
	return tap_done();
}
