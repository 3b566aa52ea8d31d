/* intent: what the encoder expects, that it learns, its file and the many ways in which that can
 * be wrong; prompts and answers of activation records; coverage counted by hand. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "experts/intent_pairs.h"
#include "backend/backend.h"
#include "experts/coverage.h"
#include "base/file.h"
#include "experts/intent.h"
#include "format/modeldir.h"
#include "model/optim.h"
#include "base/rng.h"
#include "format/safetensors.h"
#include "tap.h"

static char dir[] = "/tmp/chr-intent-XXXXXX";
static struct config cfg;
static char print[33];

static const char json[] = "{\"chronos_format\":2,\"vocab_size\":40,\"hidden_size\":16,"
    "\"num_hidden_layers\":3,"
	"\"num_attention_heads\":2,\"num_key_value_heads\":1,\"head_dim\":8,\"kv_latent_dim\":8,"
	    "\"rope_dim\":4,"
	"\"moe_intermediate_size\":8,\"num_experts\":6,\"num_experts_per_tok\":2,"
	    "\"num_shared_experts\":0,"
	"\"mlp_layer_types\":[\"sparse\",\"dense\",\"sparse\"],\"lookahead_steps\":0}";

enum { SIZE = 2 * 6 };		/* sparse layers, experts */

static int make_model(real first)
{
	struct modeldir_out o = { .dtype = DT_F32 };
	struct err e = { 0 };
	struct params ps;
	real *flat;
	int rc;

	params_build(&ps, &cfg, &e);
	flat = calloc((size_t)ps.total, sizeof *flat);
	flat[0] = first;
	rc = modeldir_save(dir, &cfg, &ps, flat, &o, print, &e);
	free(flat);
	params_free(&ps);
	return rc;
}

static int same(const struct intent *a, const struct intent *b)
{
	return a->par.total == b->par.total &&
	    memcmp(a->w, b->w, (size_t)a->par.total * sizeof *a->w) == 0;
}

/* ---- what it computes ---- */

static struct intent *random_intent(uint64_t seed)
{
	struct intent *m = intent_new(&cfg, print, 16, seed);

	for (int i = 0; i < INTENT_PARAMS; i++)
		for (int64_t k = 0; k < param_size(&m->p[i]); k++)
			m->w[m->p[i].off + k] += (real)(0.4 * rng_normal(seed + 7, (uint64_t)i,
			    (uint64_t)k));
	m->blend = 0.25;
	return m;
}

static double furthest(const real *a, const real *b)
{
	double d = 0;

	for (int i = 0; i < SIZE; i++)
		d = fmax(d, fabs((double)a[i] - (double)b[i]));
	return d;
}

static void test_expect(void)
{
	static const uint32_t tok[] = { 4, 8, 15, 16, 23 }, mixed[] = { 23, 40, 8, UINT32_MAX, 4,
	    16, 15 };
	struct intent *m = random_intent(1), *fresh = intent_new(&cfg, print, 8, 1);
	double popular[SIZE] = { 1, 2, 3, 4, 5, 5, 20, 0, 0, 0, 0, 0 }, sum[2] = { 0 };
	real used[SIZE] = { 10, 0, 0, 0, 0, 0, 0, 5, 5, 0, 0, 0 };
	real a[SIZE], b[SIZE];

	intent_expect(m, tok, 5, a);
	for (int i = 0; i < SIZE; i++)
		sum[i / 6] += (double)a[i];
	ok(fabs(sum[0] - 2) < 1e-5 && fabs(sum[1] - 2) < 1e-5,
	    "each layer sums to the experts of a token");
	intent_expect(m, mixed, 7, b);
	ok(furthest(a, b) < 1e-5, "neither order nor tokens outside the vocabulary matter");
	intent_expect(m, tok, 4, b);
	ok(furthest(a, b) > 1e-3, "another prompt, another answer");
	intent_popular(fresh, popular);
	intent_expect(fresh, tok, 5, a);
	is_close((double)a[4], 2 * 5. / 20, 1e-6, "untrained it expects what is popular");
	is_close((double)a[7], 2 * 0.5 / 22.5, 1e-6, "an expert nobody used counts as half a use");
	intent_expect(fresh, tok, 0, b);
	ok(furthest(a, b) < 1e-6, "and so for no prompt at all");
	intent_blend(fresh, a, used, 5, 0.25);
	is_close((double)a[0], 0.75 * 2 / 20 + 0.25 * 2, 1e-6, "blended with what the prompt used");
	intent_free(m);
	intent_free(fresh);
}

/* ---- learning ---- */

/* Four prompts whose answers use different experts, and a token that they share. Returns the
 * excess over the entropy. */
static double learn(struct intent *m, int steps)
{
	real used[4][SIZE] = { { 0 } };
	uint32_t tok[4][3];
	double loss = 0, floor = 0;
	struct err e = { 0 };
	real scratch[SIZE], *g = calloc((size_t)m->par.total, sizeof *g);
	struct optim o;

	for (int i = 0; i < 4; i++) {
		memcpy(tok[i], (uint32_t[]){ 1, (uint32_t)i + 5, (uint32_t)i + 20 }, sizeof tok[i]);
		used[i][i] = 6;
		used[i][i + 1] = 2;
		used[i][6 + 5 - i] = 8;
		floor += coverage_entropy(used[i], 2, 6);
	}
	optim_open(&o, &m->par, NULL, backend_open("cpu", &e), 0.01, &e);
	for (int step = 0; step <= steps; step++) {
		memset(g, 0, (size_t)m->par.total * sizeof *g);
		loss = 0;
		for (int i = 0; i < 4; i++)
			loss += intent_loss(m, tok[i], 3, used[i], 0.25f, g, scratch);
		if (step < steps)
			optim_step(&o, m->w, g, 0.02, 1);
	}
	optim_close(&o);
	free(g);
	return (loss - floor) / 4;
}

static void test_learning(void)
{
	struct intent *a = intent_new(&cfg, print, 16, 3), *b = intent_new(&cfg, print, 16, 3),
	    *c = intent_new(&cfg, print, 16, 4);
	double before = learn(a, 0), after = learn(a, 150);

	ok(before > 0.5 && after < 0.01, "four prompts are learned: %.4f above the entropy, then "
	    "%.4f", before, after);
	learn(b, 0);
	learn(b, 150);
	ok(same(a, b), "the same seed gives the same bytes");
	learn(c, 150);
	ok(!same(a, c), "another does not");
	intent_free(a);
	intent_free(b);
	intent_free(c);
}

/* ---- the file ---- */

static char *name(void)
{
	return file_join(dir, INTENT_NAME);
}

/* Loading must fail with this status, and a message with this in it. */
static void refused(int status, const char *why, const char *what)
{
	struct err e = { 0 };
	struct intent *m = intent_load(dir, &cfg, &e);

	if (!ok(!m && e.status == status && strstr(e.msg, why), "%s", what))
		printf("# %d: %s\n", e.status, e.msg);
	intent_free(m);
}

static void test_file(void)
{
	struct intent *m = random_intent(9), *back;
	json_t *meta = json_pack("{s:s, s:s}", "chronos.seed", "9", "chronos.fingerprint",
	    "of something else");
	struct err e = { 0 };

	ok(!intent_load(dir, &cfg, &e) && e.status == 0 && intent_bytes(dir, &cfg) == 0,
	    "a model without one has none");
	ok(intent_save(m, dir, meta, &e) == 0, "saved");
	back = intent_load(dir, &cfg, &e);
	ok(back && same(m, back) && back->blend == m->blend && strcmp(back->fingerprint, print) ==
	    0, "and loaded");
	ok(intent_bytes(dir, &cfg) >= m->par.total * (int64_t)sizeof *m->w,
	    "its size for the plan");
	intent_free(back);
	intent_free(m);
	json_decref(meta);
}

static void test_truncated(void)
{
	struct err e = { 0 };
	char *path = name(), *buf;
	size_t len, bad = 0;

	file_get(path, &buf, &len, &e);
	for (size_t n = 0; n < len; n += n < 1200 ? 1 : 997) {
		struct intent *m;

		file_put(path, buf, n, &e);
		m = intent_load(dir, &cfg, &e);
		bad += m != NULL || e.status != EX_DATAERR;
		bad += intent_bytes(dir, &cfg) != 0;
		intent_free(m);
	}
	ok(bad == 0, "cut anywhere it is refused");
	file_put(path, buf, len, &e);
	free(buf);
	free(path);
}

static void test_wrong(void)
{
	struct intent *m = random_intent(9);
	struct config wide = cfg, more = cfg;
	struct err e = { 0 };
	struct intent *other;

	m->w[m->p[INTENT_HIDDEN].off + 3] = NAN;
	intent_save(m, dir, NULL, &e);
	refused(EX_DATAERR, "hidden.weight is not finite at 3", "a weight that is no number");
	m->w[m->p[INTENT_HIDDEN].off + 3] = 0;
	m->blend = 1.5;
	intent_save(m, dir, NULL, &e);
	refused(EX_DATAERR, "chronos.intent.blend", "a blend out of range");
	wide.vocab_size = 41;
	other = intent_new(&wide, print, 16, 1);
	intent_save(other, dir, NULL, &e);
	refused(EX_DATAERR, "embed.weight", "another vocabulary");
	intent_free(other);
	more.num_experts = 7;
	other = intent_new(&more, print, 16, 1);
	intent_save(other, dir, NULL, &e);
	refused(EX_DATAERR, "out.weight", "another number of experts");
	intent_free(other);
	m->blend = 0;
	intent_save(m, dir, NULL, &e);
	make_model(1);
	refused(EX_DATAERR, "of another model", "another model in the directory");
	make_model(0);
	other = intent_load(dir, &cfg, &e);
	ok(other != NULL, "and its own again");
	intent_free(other);
	intent_free(m);
}

/* A safetensors file that is fine but for what it holds: the encoder's tensors as far as `last`,
 * of this width and type. */
static void put_foreign(uint64_t width, enum st_dtype t, int last)
{
	static const char zero[1 << 21];
	const struct { const char *name; int ndim; uint64_t dim[2]; } want[] =
	    { { "pool.weight", 1, { width, 0 } },
		{ "embed.weight", 2, { 40, width } }, { "hidden.weight", 2, { width, width } },
		    { "hidden.bias", 1, { width, 0 } },
		{ "out.weight", 2, { SIZE, width } }, { "out.bias", 1, { SIZE, 0 } } };
	char *path = name();
	struct st_error se;
	struct st_writer *w = st_writer_create(path, &se);

	for (int i = 0; i <= last; i++)
		st_writer_add(w, want[i].name, i == last ? t : ST_F32, want[i].ndim, want[i].dim, 0,
		    &se);
	st_writer_begin(w, &se);
	for (int i = 0; i <= last; i++)
		st_writer_data(w, zero, want[i].dim[0] * (want[i].ndim == 2 ? want[i].dim[1] : 1)
		    * st_dtype_size(i == last ? t : ST_F32), &se);
	st_writer_finish(w, &se);
	free(path);
}

static void test_foreign(void)
{
	put_foreign(12, ST_F32, 5);
	refused(EX_DATAERR, "multiple of 8", "a width that is none");
	put_foreign(INTENT_MAX_WIDTH + 8, ST_F32, 5);
	refused(EX_DATAERR, "multiple of 8", "too wide");
	put_foreign(16, ST_F16, 5);
	refused(EX_DATAERR, "out.bias", "another type");
	put_foreign(16, ST_F32, 4);
	refused(EX_DATAERR, "out.bias", "a tensor missing");
	put_foreign(16, ST_F32, 5);
	refused(EX_DATAERR, "blend", "no metadata");
}

/* ---- prompts and answers ---- */

struct log {
	int64_t seq, pos;
	bool answer;
};

static int id_of(int64_t seq, int64_t pos, int layer, int k)
{
	return (int)(seq + 2 * pos + layer + 3 * k) % 6;
}

static int add(struct intent_pairs *a, const struct log *x, int64_t token, int dense, struct err *e)
{
	int n[3] = { 2, dense, 2 }, id[6];
	struct act act = { .seq = x->seq, .pos = x->pos, .token = token, .first = x->pos == 0,
	    .answer = x->answer, .n = n,
		.id = id };

	for (int i = 0; i < 6; i++)
		id[i] = id_of(x->seq, x->pos, i / 2, i % 2);
	return intent_pairs_add(a, &act, e);
}

static double total(const real *used)
{
	double sum = 0;

	for (int i = 0; i < SIZE; i++)
		sum += (double)used[i];
	return sum;
}

static void test_answers(void)
{
	/* 0: marked, with something after it; 1: one token; 2: no marks; 3: nothing before the
	 * answer; 4: no marks */
	static const struct log log[] = { { 0, 0, 0 }, { 0, 1, 0 }, { 0, 2, 1 }, { 0, 3, 1 },
	    { 0, 4, 0 }, { 1, 0, 0 }, { 2, 0, 0 },
		{ 2, 1, 0 }, { 2, 2, 0 }, { 2, 3, 0 }, { 2, 4, 0 }, { 3, 0, 1 }, { 3, 1, 1 },
		    { 4, 0, 0 }, { 4, 1, 0 } };
	struct intent_pairs a;
	struct err e = { 0 };
	int rc = intent_pairs_open(&a, &cfg, 0, 2, &e);

	for (size_t i = 0; rc == 0 && i < sizeof log / sizeof *log; i++)
		rc = add(&a, &log[i], (int64_t)i, 0, &e);
	ok(rc == 0 && intent_pairs_end(&a, &e) == 0 && a.n == 3 && a.left_out == 2,
	    "three pairs; two sequences left out");
	ok(a.v[0].n == 2 && a.v[0].tok[1] == 1 && a.v[0].tokens == 2,
	    "the prompt is what comes before the marks");
	ok(total(a.v[0].used) == 2 * 2 * 2 && total(a.v[0].touched) == 2 * 2 * 2,
	    "what comes after them does not count");
	ok(a.v[0].used[id_of(0, 2, 0, 0)] >= 1 && a.v[0].used[6 + id_of(0, 2, 2, 0)] >= 1,
	    "dense layers are not counted");
	ok(a.v[1].n == 2 && a.v[1].tok[0] == 6 && a.v[1].tokens == 3,
	    "half of a text that is not marked");
	ok(!a.v[0].id && a.v[1].id[0] == id_of(2, 0, 0, 0) && a.v[1].id[4 * 4 + 3] == id_of(2, 4, 2,
	    1),
	    "which has its experts in order");
	ok(a.v[0].part == PART_TRAIN && a.v[1].part == PART_HELD && a.v[2].part == PART_TRAIN &&
	    a.count[PART_HELD] == 1, "every second one is held");
	intent_pairs_free(&a);
	intent_pairs_open(&a, &cfg, 4, 0, &e);
	for (size_t i = 6; i < sizeof log / sizeof *log; i++)
		add(&a, &log[i], (int64_t)i, 0, &e);
	intent_pairs_end(&a, &e);
	ok(a.n == 1 && a.v[0].n == 4 && a.left_out == 2, "the first tokens of a text, as asked");
	ok(add(&a, &log[0], 40, 0, &e) < 0 && strstr(e.msg, "vocabulary"),
	    "a token outside the vocabulary");
	ok(add(&a, &log[0], -1, 0, &e) < 0 && strstr(e.msg, "no \"token\""), "no token");
	ok(add(&a, &log[0], 0, 2, &e) < 0 && strstr(e.msg, "layer 1 has no"),
	    "experts in a dense layer");
	intent_pairs_free(&a);
}

static void test_coverage(void)
{
	static const real used[SIZE] = { 1, 2, 3, 4, 5, 5, 20, 0, 0, 0, 0, 0 };
	static const real score[SIZE] = { 9, 0, 0, 0, 9, 1, 0, 0, 0, 0, 0, 0 };
	/* The prompt leaves 2 0 1. 1 and 2 are there, 1 is, 4 is not and takes the place of 0, 1
	 * and 4 are, 0 and 5 are not. */
	static const int id[] = { 0, 1, 0, 2, 1, 2, 1, 4, 1, 4, 0, 5 };
	int order[6];

	is_close(coverage_of(used, score, 2, 6, 1, order), 1 + 20, 0,
	    "of equal scores the lowest index");
	is_close(coverage_of(used, score, 2, 6, 3, order), 1 + 5 + 5 + 20, 0,
	    "three of each layer");
	is_close(coverage_of(used, score, 2, 6, 6, order), 40, 0, "all");
	is_close(coverage_of(used, used, 2, 6, 2, order), 10 + 20, 0, "the best there is");
	is_close((double)coverage_lru(id, 2, 6, 1, 2, 3, order), 5, 0,
	    "of 8 uses by 4 tokens 5 are among the last 3 experts");
	is_close((double)coverage_lru(id, 2, 6, 1, 2, 6, order), 6, 0, "and 6 among the last 6");
	is_close(coverage_entropy(used + 6, 1, 6), 0, 0, "one expert has no entropy");
	is_close(coverage_entropy((real[]){ 2, 2, 2, 2, 8, 0, 0, 0 }, 2, 4), log(4) / 2, 1e-12,
	    "four, and one");
}

int main(void)
{
	struct err e = { 0 };
	json_t *o = json_loads(json, 0, NULL);

	if (!mkdtemp(dir) || config_from_json(&cfg, o, 0, NULL, &e) < 0 || make_model(0) < 0) {
		printf("Bail out! %s\n", e.msg);
		return 1;
	}
	test_expect();
	test_learning();
	test_file();
	test_truncated();
	test_wrong();
	test_foreign();
	test_answers();
	test_coverage();
	file_remove_tree(dir, &e);
	config_free(&cfg);
	json_decref(o);
	return tap_done();
}
