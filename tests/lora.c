/* Adapters: the sum, its gradients by finite differences, the layout on disk, merging, hostile
 * files. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "arch/arch.h"
#include "base/file.h"
#include "base/jsonfile.h"
#include "model/adapter.h"
#include "model/adapter_save.h"
#include "model/lora.h"
#include "model/lora_target.h"
#include "model/peft.h"
#include "base/pool.h"
#include "base/rng.h"
#include "format/safetensors.h"
#include "tap.h"

enum { RANK = 3 };

static char dir[] = "/tmp/lora.XXXXXX";
static struct config cfg;
static struct params ps;
static real *w, *g, *c;
static bool *hit;

#define SIZES "\"vocab_size\":50, \"hidden_size\":16, \"num_hidden_layers\":2," \
	"\"num_attention_heads\":2, \"num_key_value_heads\":1, \"head_dim\":8," \
	"\"max_position_embeddings\":64,"

/* What an adapter has for a parameter, or NULL. */
static const struct adapter_matrix *matrix_of(const struct adapter *a, int param)
{
	for (int i = 0; i < a->n; i++)
		if (a->matrix[i].param == param)
			return &a->matrix[i];
	return NULL;
}

/* keys: of config.json besides; target: n that get an adapter */
static void make_model(const char *keys, int n, const char *const target[])
{
	char text[1024];
	struct err e = {0};
	json_t *o;

	snprintf(text, sizeof text, "{" SIZES "%s}", keys);
	o = json_loads(text, 0, NULL);
	ok(config_from_json(&cfg, o, 0, NULL, &e) == 0 && params_build(&ps, &cfg, &e) == 0,
	    "a model %s", e.msg);
	w = mem_alloc((size_t)ps.total * sizeof *w);
	g = mem_alloc((size_t)ps.total * sizeof *g);
	c = mem_alloc((size_t)ps.total * sizeof *c);
	hit = mem_alloc((size_t)ps.n * sizeof *hit);
	for (int i = 0; i < ps.n; i++)
		for (int64_t j = 0; j < param_size(&ps.p[i]); j++) {
			w[ps.p[i].off + j] = (real)rng_normal(1, (uint64_t)i, (uint64_t)j);
			c[ps.p[i].off + j] = (real)rng_normal(2, (uint64_t)i, (uint64_t)j);
		}
	ok(lora_target(hit, &cfg, &ps, n, target, &e) == 0, "targets %s", e.msg);
	json_decref(o);
}

static void free_model(void)
{
	mem_free(w), mem_free(g), mem_free(c), mem_free(hit);
	params_free(&ps);
	config_free(&cfg);
}

/* A loss whose gradient is known: sum of c * W^2 / 2. */
static double loss(const struct lora *l, real *x)
{
	double sum = 0;

	lora_apply(l, x);
	for (int64_t i = 0; i < ps.total; i++) {
		sum += 0.5 * (double)c[i] * (double)x[i] * (double)x[i];
		g[i] = c[i] * x[i];
	}
	return sum;
}

static void test_gradients(struct lora *l, real *x)
{
	double worst = 0, h = 1e-2, norm = 0;

	for (int64_t i = 0; i < l->par.n; i++)
		for (int64_t j = 0; j < param_size(&l->par.p[i]); j++)
			l->w[l->par.p[i].off + j] = (real)(0.3 * rng_normal(3, (uint64_t)i,
			    (uint64_t)j));
	loss(l, x);
	lora_gradients(l, g);
	for (int64_t i = 0; i < l->par.n; i++)
		for (int64_t j = 0; j < param_size(&l->par.p[i]); j += 5) {
			real *at = &l->w[l->par.p[i].off + j], was = *at;
			double up, down, want = (double)l->g[l->par.p[i].off + j];

			*at = was + (real)h, up = loss(l, x);
			*at = was - (real)h, down = loss(l, x);
			*at = was;
			worst = fmax(worst, fabs((up - down) / (2 * h) - want));
			norm = fmax(norm, fabs(want));
		}
	is_close(worst / norm, 0, 2e-3, "gradients of A and B by finite differences");
	loss(l, x);
}

static void test_sum(struct lora *l, const real *x)
{
	double worst = 0;
	int others = 0;

	for (int t = 0; t < l->n; t++) {
		const struct param *p = &ps.p[l->target[t]], *a = &l->par.p[2 * t], *b = a + 1;

		for (int i = 0; i < p->rows; i++)
			for (int j = 0; j < p->cols; j++) {
				double s = 0;

				for (int k = 0; k < RANK; k++)
					s += (double)l->w[b->off + i * RANK + k] *
					    (double)l->w[a->off + k * p->cols + j];
				s = (double)w[p->off + i * p->cols + j] + 7.0 / RANK * s;
				worst = fmax(worst, fabs(s - (double)x[p->off + i * p->cols + j]));
			}
	}
	is_close(worst, 0, 1e-5, "W + alpha/rank * B A");
	for (int i = 0; i < ps.n; i++)
		if (!hit[i])
			others += memcmp(x + ps.p[i].off, w + ps.p[i].off,
			    (size_t)param_size(&ps.p[i]) * sizeof *x) != 0;
	ok(others == 0, "and nothing else");
}

/* Writes l as PEFT would; cut: leaves the last tensor out; rank: what the configuration says. */
static void write_adapter(const struct lora *l, int cut, const char *config)
{
	char *path = file_join(dir, "adapter_model.safetensors"),
	    *conf = file_join(dir, "adapter_config.json");
	struct st_error se;
	struct err e = {0};
	struct st_writer *f = st_writer_create(path, &se);

	for (int i = 0; i < l->par.n - cut; i++) {
		const uint64_t shape[2] = { (uint64_t)l->par.p[i].rows,
		    (uint64_t)l->par.p[i].cols };

		st_writer_add(f, l->par.p[i].name, ST_F32, 2, shape, 0, &se);
	}
	st_writer_begin(f, &se);
	for (int i = 0; i < l->par.n - cut; i++)
		st_writer_data(f, l->w + l->par.p[i].off, (size_t)param_size(&l->par.p[i]) * 4,
		    &se);
	ok(st_writer_finish(f, &se) == 0 && file_put(conf, config, strlen(config), &e) == 0,
	    "adapter written");
	free(path);
	free(conf);
}

/* What adapter.h gives is what was written. */
static void test_reader(const struct lora *l)
{
	float *x = mem_alloc((size_t)l->par.total * sizeof *x);
	const struct adapter_matrix *m;
	struct adapter a;
	struct err e = {0};
	int same = 0, found = 0;

	ok(adapter_open(&a, dir, &cfg, &ps, &e) == 0, "opened %s", e.msg);
	for (int t = 0; t < l->n; t++) {
		const struct param *pa = &l->par.p[2 * t], *pb = pa + 1;

		m = matrix_of(&a, l->target[t]);
		if (m == NULL || m->rank != RANK || fabs(m->factor - 7.0 / RANK) > 1e-12)
			continue;
		found++;
		if (adapter_read_a(&a, m, x, &e) == 0 &&
		    memcmp(x, l->w + pa->off, (size_t)param_size(pa) * sizeof *x) == 0 &&
		    adapter_read_b(&a, m, x, &e) == 0)
			same += memcmp(x, l->w + pb->off, (size_t)param_size(pb) * sizeof *x) == 0;
	}
	ok(found == l->n && a.n == l->n, "%d matrices of %d", found, l->n);
	ok(same == l->n, "A and B as they were %s", e.msg);
	ok(matrix_of(&a, 0) == NULL, "none of the embedding");
	adapter_close(&a);
	mem_free(x);
}

static void refused(const char *what, const char *config, const struct lora *l, int cut)
{
	real *y = mem_alloc((size_t)ps.total * sizeof *y);
	struct err e = {0};

	write_adapter(l, cut, config);
	ok(lora_merge(dir, &cfg, &ps, y, NULL, &e) < 0 && e.status == EX_DATAERR,
	    "refused: %s: %s", what, e.msg);
	mem_free(y);
}

/* rest: what follows r and lora_alpha */
static bool takes(const char *rest, struct err *e)
{
	char text[256];
	struct peft p;
	json_t *o;
	int rc;

	snprintf(text, sizeof text, "{\"r\":8,\"lora_alpha\":16,%s}", rest);
	o = json_loads(text, 0, NULL);
	rc = peft_parse(&p, o, "c", e);
	json_decref(o);
	if (rc < 0)
		return false;
	rc = p.rank == 8 && p.alpha == 16;
	peft_free(&p);
	return rc;
}

static void asks(const char *rest, const char *key)
{
	char want[64];
	struct err e = {0};
	bool took = takes(rest, &e);

	snprintf(want, sizeof want, "c: \"%s\" is ", key);
	ok(!took && e.status == EX_DATAERR && strncmp(e.msg, want, strlen(want)) == 0,
	    "refused: %s: %s", rest, e.msg);
}

static void test_variants(void)
{
	static const char *const fine[] = { "\"use_dora\":false", "\"use_rslora\":null",
	    "\"rank_pattern\":{}", "\"use_rslora\":true",
	    "\"rank_pattern\":{\"q_proj\":4}",
	    "\"alpha_pattern\":{\"q_proj\":0.5}",
	    "\"modules_to_save\":[]", "\"modules_to_save\":[\"lm_head\"]",
	    "\"target_parameters\":[\"experts.down_proj\"]", "\"init_lora_weights\":true",
	    "\"init_lora_weights\":false", "\"init_lora_weights\":\"gaussian\"",
	    "\"init_lora_weights\":\"eva\"", "\"init_lora_weights\":\"orthogonal\"",
	    "\"peft_type\":\"LORA\"", "\"bias\":\"none\"", "\"target_modules\":[\"q_proj\"]",
	    "\"auto_mapping\":{\"unsloth_fixed\":true}", "\"some_new_key\":null",
	    "\"megatron_core\":\"megatron.core\"", "\"qalora_group_size\":16" };
	static const char *const on[] = { "use_dora", "fan_in_fan_out", "lora_bias",
	    "use_qalora", "some_new_key" };
	static const char *const value[] = { "1", "\"true\"", "true", "0", "1.5", "{\"a\":1}" };
	static const char *const init[] = { "pissa", "pissa_niter_16", "olora", "corda", "loftq",
	    "lora_ga", "unheard_of" };
	char text[128];
	struct err e = {0};

	for (size_t i = 0; i < sizeof fine / sizeof *fine; i++)
		ok(takes(fine[i], &e), "taken: %s %s", fine[i], e.msg);
	for (size_t i = 0; i < sizeof on / sizeof *on; i++)
		for (size_t k = 0; k < sizeof value / sizeof *value; k++) {
			snprintf(text, sizeof text, "\"%s\":%s", on[i], value[k]);
			asks(text, on[i]);
		}
	for (size_t i = 0; i < sizeof init / sizeof *init; i++) {
		snprintf(text, sizeof text, "\"init_lora_weights\":\"%s\"", init[i]);
		asks(text, "init_lora_weights");
	}
	asks("\"init_lora_weights\":1", "init_lora_weights");
	asks("\"peft_type\":\"ADALORA\"", "peft_type");
	asks("\"bias\":\"all\"", "bias");
	asks("\"bias\":\"lora_only\"", "bias");
	asks("\"use_rslora\":1", "use_rslora");
	asks("\"rank_pattern\":[4]", "rank_pattern");
	asks("\"alpha_pattern\":4", "alpha_pattern");
	asks("\"modules_to_save\":\"lm_head\"", "modules_to_save");
	asks("\"modules_to_save\":{\"lm_head\":1}", "modules_to_save");
	asks("\"target_parameters\":[1]", "target_parameters");
	asks("\"target_parameters\":true", "target_parameters");
	asks("\"layer_replication\":[[0,2]]", "layer_replication");
	asks("\"trainable_token_indices\":[1]", "trainable_token_indices");
}

/* What PEFT 0.21 makes of patterns: get_pattern_key() of its utils, and LoraLayer's scale. */
static void test_shapes(void)
{
	static const struct { const char *module; int rank; double factor; } want[] = {
		{ "model.layers.0.self_attn.q_proj", 4, 8 / 2. },
		{ "model.layers.10.self_attn.q_proj", 2, 8 / 1.4142135623730951 },
		{ "model.layers.1.mlp.experts.3.up_proj", 9, 5 / 3. },
		{ "model.layers.1.xq_proj", 16, 8 / 4. },
		{ "model.layers.1.mlp.down_proj", 16, 0.5 / 4 },
		{ "q_proj", 2, 8 / 1.4142135623730951 },
	};
	static const char *const wrong[] = { "\"rank_pattern\":{\"q(\":4}",
	    "\"rank_pattern\":{\"q\":0}", "\"rank_pattern\":{\"q\":2.5}",
	    "\"rank_pattern\":{\"q\":5000}", "\"alpha_pattern\":{\"q\":null}",
	    "\"alpha_pattern\":{\"q\":0}", "\"alpha_pattern\":{\"q\":4,\"\\\\C\":4}" };
	json_t *o = json_loads("{\"r\":16,\"lora_alpha\":8,\"use_rslora\":true,\"rank_pattern\":"
	    "{\"layers.0.self_attn.q_proj\":4,\"q_proj\":2,\"mlp.*.(up|gate)_proj\":9},"
	    "\"alpha_pattern\":{\"experts\\\\.[0-9]+\\\\.up_proj\":5,\"down_proj\":0.5}}", 0, NULL);
	struct err e = {0};
	struct peft p;

	ok(peft_parse(&p, o, "c", &e) == 0, "patterns: %s", e.msg);
	json_decref(o);
	for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
		int rank = 0;
		double factor = 0;

		bool took = peft_shape(&p, want[i].module, &rank, &factor, &e) == 0;

		ok(took && rank == want[i].rank && fabs(factor - want[i].factor) < 1e-12,
		    "%s: rank %d, %g times", want[i].module, rank, factor);
	}
	peft_free(&p);
	for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
		ok(!takes(wrong[i], &e) && e.status == EX_DATAERR, "refused: %s: %s", wrong[i],
		    e.msg);
	o = json_loads("{\"r\":1,\"lora_alpha\":1,\"rank_pattern\":{\"(?:(?:a|aa)*)*[bc]\":4}}", 0,
	    NULL);
	ok(peft_parse(&p, o, "c", &e) == 0 && peft_shape(&p,
	    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", &(int){0}, &(double){0}, &e) < 0 &&
	    e.status == EX_DATAERR, "a pattern without end: %s", e.msg);
	peft_free(&p);
	json_decref(o);
}

/* The same adapter, said in another way; worst difference from x. */
static double said(const struct lora *l, const char *config, const real *x)
{
	real *y = mem_alloc((size_t)ps.total * sizeof *y);
	struct err e = {0};
	double worst = 0;

	memcpy(y, w, (size_t)ps.total * sizeof *y);
	write_adapter(l, 0, config);
	if (lora_merge(dir, &cfg, &ps, y, NULL, &e) < 0)
		worst = INFINITY, printf("# %s\n", e.msg);
	for (int64_t i = 0; i < ps.total; i++)
		worst = fmax(worst, fabs((double)(x[i] - y[i])));
	mem_free(y);
	return worst;
}

/* A number is one, there and in range. */
static void test_numbers(void)
{
	static const char *const bad[] = { "null", "false", "true", "\"8\"", "[8]", "{}" };
	static const char *const key[] = { "r", "lora_alpha" };
	char text[128];
	struct err e = {0};
	struct peft p;

	for (int k = 0; k < 2; k++)
		for (size_t i = 0; i <= sizeof bad / sizeof *bad; i++) {
			bool missing = i == sizeof bad / sizeof *bad;
			json_t *o;

			if (missing)
				snprintf(text, sizeof text, "{\"%s\":8}", key[!k]);
			else
				snprintf(text, sizeof text, "{\"%s\":8,\"%s\":%s}", key[!k], key[k],
				    bad[i]);
			o = json_loads(text, 0, NULL);
			ok(peft_parse(&p, o, "c", &e) < 0 && e.status == EX_DATAERR &&
			    strstr(e.msg, key[k]), "refused: %s: %s", text, e.msg);
			json_decref(o);
		}
}

static void test_merge(const struct lora *l, const real *x)
{
	real *y = mem_alloc((size_t)ps.total * sizeof *y);
	struct err e = {0};
	const char *text = "{\"r\": 3, \"lora_alpha\": 7, \"lora_dropout\": 0.5}";
	json_t *metadata = NULL;
	real at;

	ok(strcmp(l->par.p[0].name,
	    "base_model.model.model.layers.0.self_attn.q_nope_proj.lora_A.weight") == 0,
	    "PEFT's names: %s", l->par.p[0].name);
	write_adapter(l, 0, text);
	memcpy(y, w, (size_t)ps.total * sizeof *y);
	ok(lora_merge(dir, &cfg, &ps, y, &metadata, &e) == 0, "merged %s", e.msg);
	ok(memcmp(x, y, (size_t)ps.total * sizeof *y) == 0, "bit for bit what was trained");
	test_reader(l);
	ok(said(l, "{\"r\": 64, \"lora_alpha\": 1, \"rank_pattern\": {\".*\": 3},"
	    "\"alpha_pattern\": {\".*\": 7}}", x) == 0, "rank and factor by patterns");
	ok(said(l, "{\"r\": 3, \"lora_alpha\": 4.0414518843273806, \"use_rslora\": true}", x) <
	    1e-5,
	    "the rank-stabilised factor");
	refused("another rank by a pattern", "{\"r\": 3, \"lora_alpha\": 7,"
	    "\"rank_pattern\": {\"q_nope_proj\": 2}}", l, 0);
	refused("a part absent", text, l, 1);
	refused("another rank", "{\"r\": 4, \"lora_alpha\": 1}", l, 0);
	refused("no rank", "{\"lora_alpha\": 1}", l, 0);
	refused("a huge rank", "{\"r\": 99999999999, \"lora_alpha\": 1}", l, 0);
	refused("DoRA", "{\"r\": 3, \"lora_alpha\": 1, \"use_dora\": true}", l, 0);
	refused("no JSON", "{", l, 0);
	refused("a huge factor", "{\"r\": 3, \"lora_alpha\": 1e300}", l, 0);
	at = l->w[l->par.p[1].off];
	l->w[l->par.p[1].off] = NAN;
	refused("NaN in the adapter", text, l, 0);
	l->w[l->par.p[1].off] = at;
	json_decref(metadata);
	mem_free(y);
}

static void ours(void)
{
	static const char *const target[] = { "*.self_attn.*_proj.weight",
	    "*.layers.1.mlp.experts.2.*" };
	struct lora l;
	struct err e = {0};
	real *x;

	make_model("\"chronos_format\":2, \"moe_intermediate_size\":12, \"num_experts\":4,"
	    "\"kv_latent_dim\":8, \"rope_dim\":4", 2, target);
	x = mem_alloc((size_t)ps.total * sizeof *x);
	memcpy(x, w, (size_t)ps.total * sizeof *x);
	ok(lora_open(&l, &ps, hit, RANK, 7, &backend_cpu, &e) == 0, "opened %s", e.msg);
	lora_start(&l, x, 1);
	lora_apply(&l, x);
	ok(memcmp(x, w, (size_t)ps.total * sizeof *x) == 0, "it begins at nothing");
	test_gradients(&l, x);
	test_sum(&l, x);
	test_merge(&l, x);
	lora_close(&l);
	hit[0] = true;
	ok(lora_open(&l, &ps, hit, RANK, 7, &backend_cpu, &e) < 0 && e.status == EX_USAGE,
	    "not for embeddings: %s", e.msg);
	mem_free(x);
	free_model();
}

/* --- published families --- */

static const float *weights(void *ctx, int i)
{
	const struct lora *l = ctx;

	return (const float *)l->w + l->par.p[i].off;
}

/* Merged again from what adapter_save() wrote, its configuration changed by `edit`; NULL: as it
 * is. */
static int merged(const struct lora *l, void (*edit)(json_t *o), real *y, struct err *e)
{
	const json_t *metadata = json_object();
	const struct adapter_save s = { .cfg = &cfg, .lora = l, .base = "somewhere",
	    .metadata = metadata, .get = weights, .ctx = (void *)(uintptr_t)l };
	char *path = file_join(dir, ADAPTER_CONFIG);
	json_t *o;

	ok(adapter_save(&s, dir, e) == 0, "saved %s", e->msg);
	o = jsonfile_load(path, e);
	if (edit)
		edit(o);
	ok(jsonfile_put(dir, ADAPTER_CONFIG, o, 0, e) == 0, "configuration %s", e->msg);
	json_decref((json_t *)(uintptr_t)metadata);
	free(path);
	memcpy(y, w, (size_t)ps.total * sizeof *y);
	return lora_merge(dir, &cfg, &ps, y, NULL, e);
}

static void no_patterns(json_t *o) { json_object_del(o, "rank_pattern"); }
static void no_parameters(json_t *o) { json_object_del(o, "target_parameters"); }
static void fewer(json_t *o) { json_array_remove(json_object_get(o, "target_parameters"), 1); }
static void a_bias(json_t *o)
{
	json_array_append_new(json_object_get(o, "target_parameters"),
	    json_string("experts.gate_up_proj_bias"));
}

/* Experts, router and head: of all experts together on disk, each with its own here. */
static void family(const char *keys, bool biased)
{
	static const char *const target[] = { "experts", "router", "lm_head", "q_proj" };
	static const struct { const char *what; void (*edit)(json_t *); } wrong[] = {
		{ "ranks that no pattern says", no_patterns },
		{ "parameters unsaid", no_parameters },
		{ "one of them unsaid", fewer }, { "a bias", a_bias } };
	const struct adapter_matrix *m;
	struct adapter a;
	struct lora l;
	struct err e = {0};
	real *x, *y;

	make_model(keys, 4, target);
	x = mem_alloc((size_t)ps.total * sizeof *x);
	y = mem_alloc((size_t)ps.total * sizeof *y);
	memcpy(x, w, (size_t)ps.total * sizeof *x);
	ok(lora_open(&l, &ps, hit, RANK, 7, &backend_cpu, &e) == 0, "opened %s", e.msg);
	ok(l.n == 1 + 2 * (3 * 4 + 2), "%d matrices", l.n);
	lora_start(&l, x, 1);
	test_gradients(&l, x);
	test_sum(&l, x);
	ok(merged(&l, NULL, y, &e) == 0, "merged %s", e.msg);
	ok(memcmp(x, y, (size_t)ps.total * sizeof *y) == 0, "%s: bit for bit what was trained",
	    cfg.arch->model_type);
	ok(adapter_open(&a, dir, &cfg, &ps, &e) == 0 && a.n == l.n, "%d of them read", a.n);
	m = matrix_of(&a, (int)(params_get(&ps, P_EXP_UP, 1, 3) - ps.p));
	ok(m && m->rank == RANK && fabs(m->factor - 7.0 / RANK) < 1e-12, "of the rank trained");
	ok(m && m->b.t == a.matrix[matrix_of(&a, (int)(params_get(&ps, P_EXP_GATE, 1, 0) -
	    ps.p)) - a.matrix].b.t, "gate and up in one tensor");
	adapter_close(&a);
	for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
		if (biased || wrong[i].edit != a_bias)
			ok(merged(&l, wrong[i].edit, y, &e) < 0 && e.status == EX_DATAERR,
			    "refused: %s: %s", wrong[i].what, e.msg);
	lora_close(&l);
	mem_free(x), mem_free(y);
	free_model();
}

/* Does the target mean so many matrices? 0: it is refused. */
static void means(const char *target, int want)
{
	bool *on = mem_alloc((size_t)ps.n * sizeof *on);
	struct err e = {0};
	int n = 0, rc = lora_target(on, &cfg, &ps, 1, &target, &e);

	for (int i = 0; i < ps.n; i++)
		n += on[i];
	ok(want ? rc == 0 && n == want : rc < 0 && e.status == EX_USAGE, "%s: %d %s", target, n,
	    e.msg);
	mem_free(on);
}

static void test_targets(void)
{
	static const char *const attention[] = { "attention" };

	make_model("\"model_type\":\"mixtral\", \"intermediate_size\":12, \"num_local_experts\":4,"
	    "\"num_experts_per_tok\":2, \"tie_word_embeddings\":false", 1, attention);
	means("all-linear", 2 * (4 + 1 + 12));
	means("attention", 8);
	means("router", 2);
	means("experts", 24);
	means("w1", 8);
	means("mlp.experts.gate_up_proj", 16);
	means("gate_up_proj", 16);
	means("block_sparse_moe.gate", 2);
	means("mlp.gate.weight", 2);
	means("model.layers.1.self_attn.q_proj", 1);
	means("lm_head", 1);
	means("*.layers.0.*_proj.weight", 4);
	means("roj", 0);
	means("norm", 0);
	means("embed_tokens", 0);
	means("shared_experts", 0);
	means("mlp", 0);
	means("*nosuch*", 0);
	free_model();
	make_model("\"model_type\":\"qwen3\", \"intermediate_size\":12,"
	    "\"tie_word_embeddings\":true", 1, attention);
	means("mlp", 6);
	means("down_proj", 2);
	means("all-linear", 14);
	means("lm_head", 0);
	free_model();
}

int main(void)
{
	struct err e = {0};

	if (!mkdtemp(dir))
		err_die(EX_CANTCREAT, "%s:", dir);
	pool_init(1);
	ours();
	family("\"model_type\":\"mixtral\", \"intermediate_size\":12, \"num_local_experts\":4,"
	    "\"num_experts_per_tok\":2, \"tie_word_embeddings\":false", false);
	family("\"model_type\":\"gpt_oss\", \"intermediate_size\":12, \"num_local_experts\":4,"
	    "\"num_experts_per_tok\":2, \"tie_word_embeddings\":false,"
	    "\"layer_types\":[\"sliding_attention\",\"full_attention\"],"
	    "\"sliding_window\":16, \"swiglu_limit\":7.0", true);
	test_targets();
	test_variants();
	test_shapes();
	test_numbers();
	file_remove_tree(dir, &e);
	return tap_done();
}
