/* Parameters in tensors of several: what is written in each layout is in the published place, and
 * is what is read, whole and in pieces. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/quant.h"
#include "base/file.h"
#include "base/rng.h"
#include "format/modeldir.h"
#include "format/stored.h"
#include "tap.h"

enum { D = 16, F = 40, E = 3, LAYERS = 2 };

static char dir[] = "/tmp/chr-stored-XXXXXX";
static struct config cfg;
static struct params ps;
static float *flat, *back;

#define EXPERTS "model.layers.%d.mlp.experts."

static const struct param_name halves[] = {
	{ P_EXP_GATE, EXPERTS "both", AT_STACKED | AT_FIRST },
	{ P_EXP_UP, EXPERTS "both", AT_STACKED | AT_SECOND },
	{ P_EXP_DOWN, EXPERTS "down", AT_STACKED }, { 0 } };
static const struct param_name woven[] = {
	{ P_EXP_GATE, EXPERTS "both", AT_STACKED | AT_TURNED | AT_EVEN },
	{ P_EXP_UP, EXPERTS "both", AT_STACKED | AT_TURNED | AT_ODD },
	{ P_EXP_DOWN, EXPERTS "down", AT_STACKED | AT_TURNED },
	{ P_Q, "model.layers.%d.attn.q", AT_FLAT }, { 0 } };
static const struct param_name rows[] = {
	{ P_EXP_GATE, EXPERTS "both", AT_STACKED | AT_EVEN },
	{ P_EXP_UP, EXPERTS "both", AT_STACKED | AT_ODD },
	{ P_IN_NORM, "model.layers.%d.norms", AT_FIRST },
	{ P_POST_NORM, "model.layers.%d.norms", AT_SECOND }, { 0 } };
static const struct param_name across[] = {
	{ P_EXP_GATE, EXPERTS "both", AT_STACKED | AT_EVEN | AT_ACROSS },
	{ P_EXP_UP, EXPERTS "both", AT_STACKED | AT_ODD | AT_ACROSS },
	{ P_K, "model.layers.%d.attn.kv", AT_FIRST | AT_ACROSS },
	{ P_V, "model.layers.%d.attn.kv", AT_SECOND | AT_ACROSS }, { 0 } };
/* As transformers 5 holds experts in memory. */
static const struct param_name memory[] = {
	{ P_EXP_GATE, EXPERTS "gate_up_proj", AT_STACKED | AT_FIRST },
	{ P_EXP_UP, EXPERTS "gate_up_proj", AT_STACKED | AT_SECOND },
	{ P_EXP_DOWN, EXPERTS "down_proj", AT_STACKED }, { 0 } };
/* A second way in, for a file written in the first. */
static const struct param_name either[] = {
	{ P_EXP_GATE, EXPERTS "%d.w1", 0 }, { P_EXP_GATE, EXPERTS "both", AT_STACKED | AT_FIRST },
	{ P_EXP_UP, EXPERTS "%d.w3", 0 }, { P_EXP_UP, EXPERTS "both", AT_STACKED | AT_SECOND },
	{ P_EXP_DOWN, EXPERTS "%d.w2", 0 }, { P_EXP_DOWN, EXPERTS "down", AT_STACKED }, { 0 } };

static void setup(const struct param_name *names)
{
	struct err e = { 0 };

	params_free(&ps);
	cfg.names = names;
	if (params_build(&ps, &cfg, &e) < 0)
		err_exit(&e);
}

/* A directory of the file in dir, without what a family would check. */
static int open_file(struct modeldir *md)
{
	static char path[64], *file = path;
	static struct st_file *st;
	struct st_error se;

	snprintf(path, sizeof path, "%s/model.safetensors", dir);
	if (!(st = st_open(path, ST_READ, &se)))
		return -1;
	*md = (struct modeldir){ .path = dir, .cfg = cfg, .par = ps, .nfiles = 1, .file = &file,
	    .st = &st };
	return 0;
}

static int save(enum dtype t)
{
	struct err e = { 0 };
	int r = modeldir_save(dir, &cfg, &ps, flat, &(struct modeldir_out){ .dtype = t }, NULL, &e);

	if (r < 0)
		printf("# %s\n", e.msg);
	return r;
}

/* Parameter p is read as it was saved, in pieces of n rows. */
static bool same(const struct modeldir *md, const struct param *p, int n)
{
	struct err e = { 0 };
	bool good = true;

	memset(back, 0x55, (size_t)param_size(p) * sizeof *back);
	for (int r = 0; r < p->rows && good; r += n)
		good = modeldir_read_rows_f32(md, p, r, p->rows - r < n ? p->rows - r : n,
		    back + (int64_t)r * p->cols, &e) == 0;
	if (!good)
		printf("# %s\n", e.msg);
	return good && memcmp(back, flat + p->off, (size_t)param_size(p) * sizeof *back) == 0;
}

static int differing(const struct modeldir *md, int n)
{
	int bad = 0;

	for (int i = 0; i < ps.n; i++)
		bad += !same(md, &ps.p[i], n);
	return bad;
}

static void test_layout(const char *what, const struct param_name *names)
{
	struct modeldir md;

	setup(names);
	if (!ok(save(DT_F32) == 0 && open_file(&md) == 0, "%s: written", what))
		return;
	ok(differing(&md, 1 << 20) == 0, "%s: read as written", what);
	ok(differing(&md, 7) == 0, "%s: seven rows at a time", what);
	st_close(md.st[0]);
}

/* One value of a tensor of floats. */
static float element(const struct modeldir *md, const char *tensor, int64_t i)
{
	struct st_error se;
	struct view v;
	float x = -1;

	if (modeldir_find(md, tensor, &v) < 0 ||
	    st_read(v.st, v.t, (uint64_t)i * sizeof x, &x, sizeof x, &se) < 0)
		return -1;
	return x;
}

static float given(enum param_kind k, int expert, int r, int c)
{
	const struct param *p = params_get(&ps, k, 1, expert);

	return flat[p->off + (int64_t)r * p->cols + c];
}

static void test_places(void)
{
	const char *both = "model.layers.1.mlp.experts.both";
	const char *down = "model.layers.1.mlp.experts.down";
	struct modeldir md;
	struct view v;

	setup(halves);
	if (!ok(save(DT_F32) == 0 && open_file(&md) == 0, "written in halves"))
		return;
	ok(modeldir_find(&md, both, &v) == 0 && v.t->ndim == 3 && v.t->shape[0] == E &&
	    v.t->shape[1] == 2 * F && v.t->shape[2] == D, "the shape is (E, 2F, D)");
	ok(element(&md, both, (2 * 2 * F + 5) * D + 3) == given(P_EXP_GATE, 2, 5, 3) &&
	    element(&md, both, (2 * 2 * F + F + 5) * D + 3) == given(P_EXP_UP, 2, 5, 3),
	    "gate above up");
	st_close(md.st[0]);
	setup(woven);
	if (!ok(save(DT_F32) == 0 && open_file(&md) == 0, "written transposed"))
		return;
	ok(modeldir_find(&md, both, &v) == 0 && v.t->ndim == 3 && v.t->shape[1] == D &&
	    v.t->shape[2] == 2 * F, "the shape is (E, D, 2F)");
	ok(element(&md, both, (2 * D + 3) * 2 * F + 10) == given(P_EXP_GATE, 2, 5, 3) &&
	    element(&md, both, (2 * D + 3) * 2 * F + 11) == given(P_EXP_UP, 2, 5, 3),
	    "gate and up take turns");
	ok(element(&md, down, (2 * F + 3) * D + 5) == given(P_EXP_DOWN, 2, 5, 3),
	    "down is (E, F, D)");
	st_close(md.st[0]);
	setup(across);
	if (!ok(save(DT_F32) == 0 && open_file(&md) == 0, "written side by side"))
		return;
	ok(element(&md, both, (2 * F + 5) * 2 * D + 6) == given(P_EXP_GATE, 2, 5, 3) &&
	    element(&md, both, (2 * F + 5) * 2 * D + 7) == given(P_EXP_UP, 2, 5, 3),
	    "columns take turns");
	ok(element(&md, "model.layers.1.attn.kv", 5 * 2 * D + D + 3) == given(P_V, -1, 5, 3),
	    "or follow each other");
	st_close(md.st[0]);
}

static void test_choice(void)
{
	struct modeldir md;

	setup(halves);
	if (!ok(save(DT_F32) == 0, "written in halves"))
		return;
	setup(either);
	ok(open_file(&md) == 0 && differing(&md, 1 << 20) == 0, "another layout that is listed");
	ok(modeldir_check(&md, &ps, &(struct err){ 0 }) == 0, "and no tensor is one too many");
	st_close(md.st[0]);
	ok(save(DT_F32) == 0 && open_file(&md) == 0 && differing(&md, 1 << 20) == 0,
	    "the first of two is written and read");
	st_close(md.st[0]);
	setup(memory);
	if (!ok(save(DT_F32) == 0, "written as in the memory of transformers"))
		return;
	setup(NULL);
	ok(open_file(&md) == 0 && differing(&md, 1 << 20) == 0 &&
	    modeldir_check(&md, &ps, &(struct err){ 0 }) == 0, "which any family reads");
	st_close(md.st[0]);
}

static void test_types(void)
{
	struct modeldir md;
	struct err e = { 0 };

	for (int64_t i = 0; i < ps.total; i++)
		flat[i] = (float)((int)(flat[i] * 64)) / 64;
	setup(woven);
	ok(save(DT_BF16) == 0 && open_file(&md) == 0 && differing(&md, 7) == 0,
	    "BF16 transposed");
	st_close(md.st[0]);
	setup(halves);
	ok(save(DT_F16) == 0 && open_file(&md) == 0 && differing(&md, 3) == 0, "F16 in halves");
	ok(modeldir_compute_fingerprint(&md, (char[33]){ "" }, &e) == 0, "fingerprint");
	md.cfg.num_experts = E + 1;
	ok(modeldir_read_f32(&md, params_get(&ps, P_EXP_GATE, 1, 0), back, &e) < 0 &&
	    strstr(e.msg, "has not the shape [4,"), "another shape is named: %s", e.msg);
	st_close(md.st[0]);
}

int main(void)
{
	struct err e = { 0 };
	json_t *o = json_pack("{s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:b}",
	    "chronos_format", 2, "hidden_size", D, "num_attention_heads", 2,
	    "num_key_value_heads", 1, "num_hidden_layers", LAYERS, "vocab_size", 50,
	    "moe_intermediate_size", F, "num_experts", E, "num_experts_per_tok", 2,
	    "use_hybrid_attention", 0);

	if (!mkdtemp(dir) || config_from_json(&cfg, o, 0, NULL, &e) < 0 ||
	    params_build(&ps, &cfg, &e) < 0)
		return ok(0, "setup: %s", e.msg), tap_done();
	flat = calloc((size_t)ps.total, sizeof *flat);
	back = calloc((size_t)ps.total, sizeof *back);
	for (int64_t i = 0; i < ps.total; i++)
		flat[i] = (float)rng_uniform(1, 2, (uint64_t)i) - 0.5f;
	test_layout("halves", halves);
	test_layout("transposed, even and odd columns", woven);
	test_layout("even and odd rows, halves of vectors", rows);
	test_layout("even and odd columns, halves of columns", across);
	test_places();
	test_choice();
	test_types();
	ok(file_remove_tree(dir, &e) == 0, "cleaned up");
	free(flat);
	free(back);
	params_free(&ps);
	config_free(&cfg);
	json_decref(o);
	return tap_done();
}
