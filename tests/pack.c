/* Packing: what lies where, that it reads back, that unpacking is the identity, and what is
 * refused. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>

#include "experts/cluster.h"
#include "base/file.h"
#include "format/manifest.h"
#include "format/modeldir.h"
#include "base/rng.h"
#include "tap.h"

static const char config[] = "{\"chronos_format\":2,\"vocab_size\":96,\"hidden_size\":32,"
    "\"num_hidden_layers\":3,"
	"\"num_attention_heads\":2,\"num_key_value_heads\":1,\"head_dim\":16,"
	    "\"intermediate_size\":40,"
	"\"moe_intermediate_size\":24,\"num_experts\":8,\"num_experts_per_tok\":2,"
	    "\"num_shared_experts\":1,"
	"\"mlp_layer_types\":[\"dense\",\"sparse\",\"sparse\"],\"kv_latent_dim\":8,\"rope_dim\":8,"
	"\"sliding_window_size\":16,\"tie_word_embeddings\":false}";

static char dir[] = "/tmp/chr-pack-XXXXXX";
static const char *build;

/* Runs a command in which %s is the directory of this test; its exit status. */
__attribute__((format(printf, 1, 2))) static int sh(const char *fmt, ...)
{
	char cmd[2048];
	va_list ap;
	int n = snprintf(cmd, sizeof cmd, "PATH=\"%s:$PATH\"; cd %s && exec 2>>log; ", build, dir),
	    rc;

	va_start(ap, fmt);
	vsnprintf(cmd + n, sizeof cmd - (size_t)n, fmt, ap);
	va_end(ap);
	rc = system(cmd);
	return WIFEXITED(rc) ? WEXITSTATUS(rc) : -1;
}

static char *in_dir(const char *name)
{
	return file_join(dir, name);
}

static void make_model(const char *name, enum dtype dt, uint64_t seed)
{
	struct modeldir_out out = { .dtype = dt };
	json_t *o = json_loads(config, 0, NULL);
	char *path = in_dir(name), fp[33];
	struct params ps = {0};
	struct config c;
	struct err e = {0};
	float *flat;

	ok(config_from_json(&c, o, 0, NULL, &e) == 0 && params_build(&ps, &c, &e) == 0, "config %s",
	    e.msg);
	flat = calloc((size_t)ps.total, sizeof *flat);
	for (int64_t i = 0; i < ps.total; i++)
		flat[i] = (float)rng_normal(seed, 0, (uint64_t)i);
	mkdir(path, 0777);
	ok(modeldir_save(path, &c, &ps, flat, &out, fp, &e) == 0, "model %s %s", name, e.msg);
	free(flat);
	free(path);
	json_decref(o);
	params_free(&ps);
	config_free(&c);
}

/* A manifest of three clusters whose order is a permutation, as chr-cluster would write it. */
static void make_manifest(const char *name, int layers, int experts, int dense,
    const char *fingerprint)
{
	char *path = in_dir(name), *text;
	struct manifest m;
	struct err e = {0};
	int next[3] = {0};
	json_t *o;

	manifest_init(&m, layers, experts, 3, &e);
	for (int i = dense * experts; i < layers * experts; i++) {
		int node = dense * experts + (i * 5 + 3) % ((layers - dense) * experts);

		m.place[node] = (struct place){ .cluster = i % 3, .rank = next[i % 3]++ };
	}
	m.fingerprint = fingerprint ? strdup(fingerprint) : NULL;
	o = manifest_json(&m);
	text = json_dumps(o, 0);
	ok(file_put(path, text, strlen(text), &e) == 0, "manifest %s %s", name, e.msg);
	free(text);
	free(path);
	json_decref(o);
	manifest_free(&m);
}

/* Every tensor of a is in b with the same type, shape and bytes, and the other way round. */
static int same_tensors(const char *a, const char *b)
{
	char *pa = in_dir(a), *pb = in_dir(b);
	struct modeldir x, y;
	struct err e = {0};
	int good = modeldir_open(&x, pa, 0, NULL, &e) == 0 && modeldir_open(&y, pb, 0, NULL, &e) ==
	    0;
	struct view v, w;

	for (int i = 0; good && i < x.par.n; i++)
		good = modeldir_find(&x, x.par.p[i].name, &v) == 0 &&
		    modeldir_find(&y, x.par.p[i].name, &w) == 0
		    && v.t->dtype == w.t->dtype && v.t->nbytes == w.t->nbytes &&
		    memcmp(v.t->data, w.t->data, v.t->nbytes) == 0;
	good = good && x.nfiles == 1 && y.nfiles == 1 && st_count(x.st[0]) == st_count(y.st[0])
	    && strcmp(modeldir_meta(&x, "chronos.fingerprint"),
	    modeldir_meta(&y, "chronos.fingerprint")) == 0;
	free(pa);
	free(pb);
	modeldir_close(&x);
	modeldir_close(&y);
	return good;
}

/* One expert of a packed directory against the model, value by value after conversion to dt. */
static int expert_lies(const struct modeldir *md, const struct manifest *m,
    struct st_file *const st[], int l, int x)
{
	static const enum param_kind kind[3] = { P_EXP_GATE, P_EXP_UP, P_EXP_DOWN };
	static const char *const part[3] = { "gate", "up", "down" };
	const struct place *pl = manifest_at(m, l, x);
	uint32_t crc = 0;
	uint64_t at = (uint64_t)pl->offset;
	int good = pl->offset % MANIFEST_ALIGN == 0;

	for (int i = 0; i < 3; i++) {
		const struct param *p = params_get(&md->par, kind[i], l, x);
		size_t n = (size_t)param_size(p), bytes = n * dtype_size(m->dt[0]);
		float *f = calloc(n, sizeof *f);
		void *want = calloc(n, sizeof *f);
		const struct st_tensor *t;
		char key[64];
		struct err e;

		snprintf(key, sizeof key, "l%d_e%d__%s_proj.weight", l, x, part[i]);
		t = st_find(st[pl->cluster], key);
		modeldir_read_f32(md, p, f, &e);
		tensor_from_f32(want, m->dt[0], f, n);
		good = good && t && t->offset == at && t->nbytes == bytes &&
		    memcmp(t->data, want, bytes) == 0;
		crc = (uint32_t)crc32(crc, want, (unsigned)bytes);
		at += bytes;
		free(f);
		free(want);
	}
	return good && crc == pl->crc && (int64_t)at == pl->offset + pl->bytes;
}

static void check_packed(const char *model, const char *packed, const char *dtype)
{
	char *pm = in_dir(model), *pp = in_dir(packed), *mf = file_join(pp, MANIFEST_NAME);
	struct st_file *st[3] = {0};
	struct modeldir md, pd;
	struct manifest m;
	struct st_error se;
	struct err e = {0};
	int good;

	ok(modeldir_open(&md, pm, 0, NULL, &e) == 0 && manifest_load(&m, mf, &e) == 0 && m.packed &&
	    m.nclusters == 3
	    && strcmp(dtype_name(m.dt[0]), dtype) == 0, "%s: manifest %s", packed, e.msg);
	for (int k = 0; k < 3; k++) {
		char *f = file_join(pp, m.file[k]);

		st[k] = st_open(f, ST_MMAP, &se);
		ok(st[k] && st_size(st[k]) % MANIFEST_ALIGN == 0 && st_data_start(st[k]) %
		    MANIFEST_ALIGN == 0,
		    "%s: %s is whole, aligned and padded", packed, m.file[k]);
		free(f);
	}
	good = 1;
	for (int x = 0; x < 8; x++)
		good = good && manifest_at(&m, 0, x)->cluster < 0 && expert_lies(&md, &m, st, 1, x)
		    && expert_lies(&md, &m, st, 2, x);
	ok(good, "%s: every expert lies where it should, with its CRC", packed);
	ok(modeldir_open(&pd, pp, 0, NULL, &e) == 0 && pd.packed && modeldir_check(&pd, &pd.par, &e)
	    == 0
	    && !st_find(pd.st[0], "model.layers.1.mlp.experts.0.gate_proj.weight"),
	    "%s: the rest in model.safetensors %s",
	    packed, e.msg);
	ok(strcmp(modeldir_fingerprint(&pd, &e), modeldir_fingerprint(&md, &e)) == 0
	    && strcmp(m.fingerprint, modeldir_fingerprint(&md, &e)) == 0,
	    "%s: fingerprint of the model", packed);
	for (int k = 0; k < 3; k++)
		st_close(st[k]);
	manifest_free(&m);
	modeldir_close(&md);
	modeldir_close(&pd);
	free(mf);
	free(pm);
	free(pp);
}

static void test_types(void)
{
	static const char *const model[] = { "f32", "bf16" }, *const to[] = { "model", "f32",
	    "bf16", "f16" };
	static const char *const name[] = { "F32", "F32", "BF16", "F16" };
	char packed[32];

	for (int i = 0; i < 2; i++)
		for (int k = 0; k < 4; k++) {
			snprintf(packed, sizeof packed, "%s-%s", model[i], to[k]);
			ok(sh("chr-pack -m %s -o %s --dtype %s m.json > %s.out", model[i], packed,
			    to[k], packed) == 0, "pack %s",
			    packed);
			check_packed(model[i], packed, k ? name[k] : i ? "BF16" : "F32");
			ok(sh("chr-pack --unpack -m %s -o %s.un > /dev/null", packed, packed) == 0,
			    "unpack %s", packed);
			snprintf(packed, sizeof packed, "%s-%s.un", model[i], to[k]);
			ok(k && k != i + 1 ? !same_tensors(model[i], packed)
			    : same_tensors(model[i], packed),
			    "%s is %s", packed, k && k != i + 1 ? "another model" : "the model");
		}
	ok(sh("grep -q '^{\"type\":\"pack\",\"clusters\":3,\"experts\":16,\"bytes\":147456,"
	    "\"padding_bytes\":49152,' f32-model.out") == 0,
	    "record on stdout");
	ok(sh("grep -q chr-pack f32-model/model.safetensors") == 0, "command in the ancestry");
	ok(sh("cat m.json | gzip | chr-pack -m f32 -o stdin > /dev/null && cmp "
	    "stdin/cluster_001.ctsr f32-model/cluster_001.ctsr")
	    == 0, "manifest from standard input, the same bytes");
	ok(sh("chr-pack -m f32 -o again f32-model/cluster_manifest.json >/dev/null && "
	    "cmp again/cluster_manifest.json f32-model/cluster_manifest.json") == 0,
	    "a packed manifest serves as well");
}

static void test_refusals(void)
{
	ok(sh("chr-pack -m f32 -o no layers.json") == 65, "manifest of more layers");
	ok(sh("chr-pack -m f32 -o no experts.json") == 65, "manifest of fewer experts");
	ok(sh("chr-pack -m f32 -o no dense.json") == 65,
	    "manifest with experts in the dense layer");
	ok(sh("chr-pack -m f32 -o no finger.json") == 65, "manifest of another fingerprint");
	ok(sh("grep -q 'fingerprint 5eed there' log && grep -q '4 layers of 8 experts there, 3 of "
	    "8' log"
	    " && grep -q 'layer 0 has experts there' log") == 0, "messages say what differs");
	ok(sh("chr-pack -m f32-model -o no m.json") == 65, "packed already");
	ok(sh("chr-pack --unpack -m f32 -o no") == 66, "nothing to unpack");
	ok(sh("chr-pack -m f32 -o no none.json") == 66, "no such manifest");
	ok(sh("echo '{' | chr-pack -m f32 -o no") == 65, "broken manifest");
	ok(sh("chr-pack -m f32 -o f32-model m.json") == 73, "output exists");
	ok(sh("chr-pack -m f32 -o ./f32/ --force m.json") == 64, "output is the model");
	ok(sh("mkdir data && touch data/precious && chr-pack -m f32 -o data --force m.json; test "
	    "$? = 73 && test -e data/precious")
	    == 0, "--force replaces no other directory");
	ok(sh("chr-pack -m bf16 -o f32-model --force m.json > /dev/null && cmp "
	    "f32-model/cluster_000.ctsr bf16-model/cluster_000.ctsr")
	    == 0, "--force replaces a model");
	ok(sh("chr-pack -m f32 -o no --unpack m.json") == 64 && sh("chr-pack -m f32") == 64,
	    "usage");
	ok(sh("test ! -e no && ! ls | grep tmp") == 0, "refusals leave nothing behind");
}

/* Without a manifest: the layout of chr-cluster, and nothing is read from standard input. */
static void test_layout(void)
{
	ok(sh("chr-pack -m f32 -o plain --layout layer > plain.out < /dev/null && "
	    "chr-pack --unpack -m plain -o plain.un > plain.out") == 0 &&
	    same_tensors("f32", "plain.un"), "--layout layer needs no manifest");
	ok(sh("printf '{\"type\":\"model\",\"layers\":3,\"experts\":8,\"top_k\":2,"
	    "\"expert_bytes\":9216}\n{\"type\":\"act\",\"seq\":1,\"pos\":0,"
	    "\"layers\":[[],[0,1],[2,3]]}\n' | chr-cluster -q --holdout 0 --layout layer | "
	    "chr-pack -m f32 -o plain2 > plain.out && for f in plain/*.ctsr; do cmp $f "
	    "plain2/${f#plain/} || exit 1; done") == 0, "and is what chr-cluster makes");
	ok(sh("chr-pack -m f32 -o no --layout layer m.json") == 64, "no manifest with it");
	ok(sh("chr-pack -m f32-model -o no --layout layer < /dev/null") == 65, "packed already");
}

/* Flips one byte in the middle of an expert. */
static void test_corruption(void)
{
	ok(sh("printf '\\125' | dd of=f32-f32/cluster_002.ctsr bs=1 seek=13000 conv=notrunc "
	    "2>/dev/null && "
	    "chr-pack --unpack -m f32-f32 -o no") == 65 && sh("grep -q 'is corrupt (CRC-32' log") ==
	    0, "corrupt expert found");
	ok(sh("truncate -s 9000 f32-f16/cluster_000.ctsr && chr-pack --unpack -m f32-f16 -o no") ==
	    65, "truncated file found");
	ok(sh("rm f32-bf16/cluster_000.ctsr && chr-pack --unpack -m f32-bf16 -o no") == 66,
	    "missing file found");
	ok(sh("chr-pack -m f32 -o full m.json > /dev/full") == 74, "lost record");
	ok(sh("test ! -e no && ! ls | grep tmp") == 0, "failures leave nothing behind");
}

/* Dense tensors in another type: unpacking gives another model, and does not call it a broken
 * one. */
static void test_dense_types(void)
{
	static const char *const to[] = { "f16", "bf16" };

	for (int i = 0; i < 2; i++) {
		ok(sh("chr-pack -m f32 -o dense-%s --quant-for '*.self_attn.*_proj.weight=%s' "
		    "--quant-for 'model.norm.weight=bf16' m.json "
		    "> dense.out", to[i], to[i]) == 0, "dense tensors to %s", to[i]);
		ok(sh("chr-pack --unpack -m dense-%s -o dense-%s.un > dense.out && chr-ls -q "
		    "--check dense-%s.un > /dev/null", to[i],
		    to[i], to[i]) == 0, "unpack them");
		ok(sh("chr-ls dense-%s.un | grep '\"name\":\"[^\"]*o_proj' > dense.out && test "
		    "$(grep -ci '\"dtype\":\"%s\"' dense.out) = 3",
		    to[i], to[i]) == 0, "they are %s", to[i]);
	}
	ok(sh("chr-pack -m f32 -o kept --dtype f32 --quant-for 'model.norm.weight=f32' m.json > "
	    "kept.out && "
	    "chr-pack --unpack -m kept -o kept.un > kept.out") == 0 &&
	    same_tensors("f32", "kept.un"), "the type it has is no conversion");
}

/* The only model with a value beyond 65504 is in `tensor`; it must not become infinity. */
static void test_overflow(const char *tensor, const char *options)
{
	char *path = in_dir("big"), *file = file_join(path, "model.safetensors");
	struct modeldir md;
	struct err e = {0};
	struct view v;
	float big = 70000;
	FILE *f;

	sh("rm -rf big && cp -r f32 big");
	if (modeldir_open(&md, path, 0, NULL, &e) < 0 || modeldir_find(&md, tensor, &v) < 0 ||
	    !(f = fopen(file, "r+")))
		abort();
	fseek(f, (long)v.t->offset + 20, SEEK_SET);
	fwrite(&big, sizeof big, 1, f);
	fclose(f);
	modeldir_close(&md);
	ok(sh("chr-pack -m big -o no %s m.json", options) == 65 &&
	    sh("tail -1 log | grep -q '%s .*too large for F16'", tensor) == 0,
	    "a value too large for F16 in %s", tensor);
	ok(sh("test ! -e no && ! ls | grep tmp") == 0, "leaves nothing behind");
	free(file);
	free(path);
}

/* From activations to a packed model, with each layout. */
static void test_pipe(void)
{
	sh("printf '{\"type\":\"model\",\"layers\":3,\"experts\":8,\"top_k\":2,"
	    "\"expert_bytes\":9216}\\n' > act; "
	    "for i in 1 2 3 4 5 6 7 8; do for p in 0 1 2 3; do "
	    "printf '{\"type\":\"act\",\"seq\":%%d,\"pos\":%%d,\"layers\":[[],[%%d,%%d],[%%d,"
	    "7]]}\\n' $i $p $((p)) $((p + 4)) "
	    "$((i %% 7)); done; done >> act");
	ok(sh("for l in louvain layer hot; do chr-cluster --layout $l --min-bytes 1 --max-bytes "
	    "50K act | "
	    "chr-pack -m f32 -o p.$l > /dev/null && chr-pack --unpack -m p.$l -o u.$l > /dev/null "
	    "|| exit 1; done") == 0,
	    "chr-cluster | chr-pack | unpack");
	ok(same_tensors("f32", "u.hot") && same_tensors("f32", "u.louvain"),
	    "the model comes back from every layout");
	ok(sh("chr-cluster bad") == 66, "missing log");
	ok(sh("{ cat act; echo '{\"type\":\"act\",\"seq\":9,\"pos\":0,\"layers\":[[],[0,9],[1,"
	    "2]]}'; } | chr-cluster") == 65
	    && sh("tail -1 log | grep -q 'stdin>:34: expert id out of range'") == 0,
	    "a bad record is named");
	ok(sh("tail -n +2 act | chr-cluster") == 65 && sh("chr-cluster < /dev/null") == 65,
	    "no model record, no records");
	ok(sh("{ cat act; echo '{\"type\":\"act\"}'; cat act; } | chr-cluster --skip-bad -q > "
	    "skip.json && "
	    "grep -q '\"sequences\":15,\"tokens\":60' skip.json") == 0,
	    "logs may be joined, bad records skipped");
}

int main(void)
{
	const char *b = getenv("BUILD");
	struct err e = {0};

	build = realpath(b ? b : "build", NULL);
	if (!build || !mkdtemp(dir))
		return 1;
	make_model("f32", DT_F32, 1);
	make_model("bf16", DT_BF16, 2);
	make_manifest("m.json", 3, 8, 1, NULL);
	make_manifest("layers.json", 4, 8, 1, NULL);
	make_manifest("experts.json", 3, 7, 1, NULL);
	make_manifest("dense.json", 3, 8, 0, NULL);
	make_manifest("finger.json", 3, 8, 1, "5eed");
	test_types();
	test_refusals();
	test_layout();
	test_corruption();
	test_dense_types();
	test_overflow("model.layers.1.mlp.experts.3.up_proj.weight", "--dtype f16");
	test_overflow("model.layers.1.self_attn.o_proj.weight",
	    "--quant-for '*.self_attn.o_proj.weight=f16'");
	test_pipe();
	if (tap_failed)
		sh("sed 's/^/# /' log");
	ok(file_remove_tree(dir, &e) == 0, "cleaned up");
	return tap_done();
}
