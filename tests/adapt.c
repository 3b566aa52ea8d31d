/*
 * Adapters at generation: logits are those of the merged model; a sequence has the bytes that it
 * has alone, whatever adapters others have and however the text is cut; one without an adapter has
 * those of an engine without any. On plain models of all kinds, and on packed ones in blocks,
 * streamed and resident. With ../shared, on its published families too.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/pool.h"
#include "base/rng.h"
#include "decode/decode.h"
#include "format/manifest.h"
#include "format/modeldir.h"
#include "format/safetensors.h"
#include "model/lora.h"
#include "tap.h"
#include "tinymodels.h"

enum { T = 29, ADAPTERS = 3, SEQS = ADAPTERS + 1 };

static struct err e;
static char top[] = "/tmp/chr-adapt.XXXXXX";
static char adapter_dir[ADAPTERS][64];
static struct engine_adapter adapters[ADAPTERS];

static void must(int failed)
{
	if (failed) {
		printf("Bail out! %s\n", e.msg);
		exit(1);
	}
}

/* --- adapters --- */

/* The first is for all that can have one, the second for what is in no FFN, the third for FFNs and
 * their routers. */
static bool is_for(int which, const struct param *p)
{
	bool ffn = param_is(p, PARAM_FFN) || p->kind == P_GATE || p->kind == P_SH_SIGMOID;

	return param_is(p, PARAM_ADAPTS) && (which == 0 || ffn == (which == 2));
}

static void part_name(char *name, size_t size, const struct param *p, char part)
{
	snprintf(name, size, "base_model.model.%.*s.lora_%c.weight",
	    (int)(strlen(p->name) - strlen(".weight")), p->name, part);
}

static void add_part(struct st_writer *f, const struct param *p, char part, int rank)
{
	char name[160];
	const uint64_t shape[2] = { (uint64_t)(part == 'A' ? rank : p->rows),
	    (uint64_t)(part == 'A' ? p->cols : rank) };
	struct st_error se;

	part_name(name, sizeof name, p, part);
	st_writer_add(f, name, ST_F32, 2, shape, 0, &se);
}

static void put_part(struct st_writer *f, int64_t n, uint64_t stream, double spread)
{
	float *x = malloc((size_t)n * sizeof *x);
	struct st_error se;

	for (int64_t i = 0; i < n; i++)
		x[i] = (float)(spread * rng_normal(17, stream, (uint64_t)i));
	st_writer_data(f, x, (size_t)n * sizeof *x, &se);
	free(x);
}

/* spread 0: an adapter that changes nothing. base: NULL, or whose it says that it is */
static void write_adapter(const char *dir, const struct params *ps, int which, double spread,
    const char *base)
{
	char path[128], text[160];
	int rank = which == 0 ? 3 : which == 1 ? 5 : 1;
	struct st_writer *f;
	struct st_error se;

	must(file_mkdirs(dir, &e) < 0);
	snprintf(path, sizeof path, "%s/adapter_model.safetensors", dir);
	f = st_writer_create(path, &se);
	snprintf(text, sizeof text, "[{\"program\":\"chr-sft\",\"parent\":\"%s\"}]", base
	    ? base : "");
	if (base)
		st_writer_meta(f, "chronos.ancestry", text, &se);
	for (int i = 0; i < ps->n; i++)
		for (char part = 'A'; part <= 'B' && is_for(which, &ps->p[i]); part++)
			add_part(f, &ps->p[i], part, rank);
	st_writer_begin(f, &se);
	for (int i = 0; i < ps->n; i++)
		if (is_for(which, &ps->p[i])) {
			uint64_t stream = 8 * (uint64_t)i + 2 * (uint64_t)which;

			put_part(f, (int64_t)rank * ps->p[i].cols, stream, 0.3);
			put_part(f, (int64_t)rank * ps->p[i].rows, stream + 1, spread);
		}
	must(st_writer_finish(f, &se) < 0);
	snprintf(path, sizeof path, "%s/adapter_config.json", dir);
	snprintf(text, sizeof text, "{\"peft_type\":\"LORA\",\"r\":%d,\"lora_alpha\":%d}", rank,
	    rank == 1 ? 2 : 2 * rank - 1);
	must(file_put(path, text, strlen(text), &e) < 0);
}

static void write_adapters(const char *model, double spread)
{
	struct modeldir md;

	must(modeldir_open(&md, model, 0, NULL, &e) < 0);
	for (int i = 0; i < ADAPTERS; i++) {
		snprintf(adapter_dir[i], sizeof adapter_dir[i], "%s/adapter%d", top, i);
		adapters[i] = (struct engine_adapter){ "one", adapter_dir[i] };
		write_adapter(adapter_dir[i], &md.par, i, spread, NULL);
	}
	modeldir_close(&md);
}

static void merge(const char *model, int which, const char *to)
{
	struct modeldir md;
	real *w;

	must(modeldir_open(&md, model, 0, NULL, &e) < 0);
	w = calloc((size_t)md.par.total, sizeof *w);
	must(modeldir_load_f32(&md, &md.par, w, &e) < 0 ||
	    lora_merge(adapter_dir[which], &md.cfg, &md.par, w, NULL, &e) < 0 ||
	    file_mkdirs(to, &e) < 0 ||
	    modeldir_save(to, &md.cfg, &md.par, w, &(struct modeldir_out){ .dtype = DT_F32 },
	    NULL, &e) < 0);
	free(w);
	modeldir_close(&md);
}

/* --- texts --- */

static struct engine *open_engine(const char *model, int n, int rows, int64_t store)
{
	struct engine_opt o = { .max_seqs = SEQS + 1, .max_tokens = T, .max_rows = rows,
	    .predict = SRC_MEASURED, .store = { .waste = 0.03, .bytes = store },
	    .adapter = adapters, .adapters = n };
	struct engine *g = engine_open(model, &o, &backend_cpu, NULL, &e);

	must(!g);
	return g;
}

static size_t row_bytes(const struct engine *g)
{
	return sizeof(real) * (size_t)engine_config(g)->vocab_size;
}

static uint32_t token(const struct engine *g, int text, int i)
{
	return (uint32_t)rng_below(5, (uint64_t)text, (uint64_t)i,
	    (uint64_t)engine_config(g)->vocab_size);
}

/* All logits of a text with one adapter, in calls of `cut` tokens. Freed by the caller. */
static real *alone(struct engine *g, int text, int adapter, int cut)
{
	int64_t V = engine_config(g)->vocab_size;
	real *out = calloc((size_t)(T * V), sizeof *out);
	struct seq *s = seq_new(g, &e);
	uint32_t tok[T];

	must(!s);
	seq_adapt(s, adapter);
	for (int i = 0; i < T; i++)
		tok[i] = token(g, text, i);
	for (int i = 0; i < T; i += cut)
		must(engine_eval(g, &(struct eval_item){ .s = s, .tok = tok + i,
		    .n = T - i < cut ? T - i : cut, .logits = out + i * V, .all = true }, 1, NULL,
		    &e) < 0);
	seq_free(s);
	return out;
}

/* What the lookahead head says of it. */
static double look_apart(struct engine *g, int adapter, struct engine *merged)
{
	int64_t n = (int64_t)T * config_lookahead_rows(engine_config(g));
	real *look[2];
	double worst = 0;

	for (int k = 0; k < 2; k++) {
		struct engine *x = k == 0 ? g : merged;
		struct seq *s = seq_new(x, &e);
		uint32_t tok[T];

		look[k] = calloc((size_t)n + 1, sizeof *look[k]);
		must(!s);
		seq_adapt(s, k == 0 ? adapter : 0);
		for (int i = 0; i < T; i++)
			tok[i] = token(x, 0, i);
		must(engine_eval(x, &(struct eval_item){ .s = s, .tok = tok, .n = T,
		    .look = n > 0 ? look[k] : NULL }, 1, NULL, &e) < 0);
		seq_free(s);
	}
	for (int64_t i = 0; i < n; i++)
		worst = fmax(worst, fabs((double)(look[0][i] - look[1][i])));
	free(look[0]);
	free(look[1]);
	return worst;
}

/* The same of all adapters and of none, each a text of its own, together: they begin one after the
 * other, and go on in steps of unequal length. */
static void together(struct engine *g, real *out[SEQS])
{
	static const int turn[SEQS] = { 2, 0, 3, 1 };
	int64_t V = engine_config(g)->vocab_size;
	struct seq *s[SEQS] = { 0 };
	uint32_t tok[SEQS][T];
	int at[SEQS] = { 0 }, busy = SEQS;

	for (int step = 0; busy > 0; step++) {
		struct eval_item it[SEQS] = { 0 };
		int n = 0;

		for (int k = 0; k < SEQS && k <= step; k++) {
			int a = turn[k], m = T - at[a] < 1 + (step + a) % 3 ? T - at[a]
			    : 1 + (step + a) % 3;

			if (!s[a]) {
				must(!(s[a] = seq_new(g, &e)));
				seq_adapt(s[a], a);
				for (int i = 0; i < T; i++)
					tok[a][i] = token(g, a, i);
			}
			if (m == 0)
				continue;
			it[n] = (struct eval_item){ .s = s[a], .tok = tok[a] + at[a], .n = m,
			    .logits = out[a] + at[a] * V, .all = true };
			at[a] += m;
			n++;
		}
		must(n > 0 && engine_eval(g, it, n, NULL, &e) < 0);
		busy = n;
	}
	for (int a = 0; a < SEQS; a++)
		seq_free(s[a]);
}

/* Of each the logits of its last token only, which are not the first rows of their pass. */
static bool last_same(struct engine *g, real *const want[SEQS])
{
	struct seq *s[SEQS];
	struct eval_item it[SEQS];
	uint32_t tok[SEQS][T];
	real *out[SEQS];
	bool same = true;

	for (int a = 0; a < SEQS; a++) {
		must(!(s[a] = seq_new(g, &e)));
		seq_adapt(s[a], a);
		for (int i = 0; i < T; i++)
			tok[a][i] = token(g, a, i);
		must(engine_eval(g, &(struct eval_item){ .s = s[a], .tok = tok[a], .n = T - 2 }, 1,
		    NULL, &e) < 0);
		out[a] = calloc(1, row_bytes(g));
		it[a] = (struct eval_item){ .s = s[a], .tok = tok[a] + T - 2, .n = 2,
		    .logits = out[a] };
	}
	must(engine_eval(g, it, SEQS, NULL, &e) < 0);
	for (int a = 0; a < SEQS; a++) {
		same = same && memcmp(out[a], (char *)want[a] + (T - 1) * row_bytes(g),
		    row_bytes(g)) == 0;
		seq_free(s[a]);
		free(out[a]);
	}
	return same;
}

static bool same(const struct engine *g, const real *a, const real *b)
{
	return memcmp(a, b, T * row_bytes(g)) == 0;
}

static double apart(const struct engine *g, const real *a, const real *b)
{
	double worst = 0, most = 0;

	for (int64_t i = 0; i < (int64_t)T * engine_config(g)->vocab_size; i++) {
		worst = fmax(worst, isfinite(a[i]) ? fabs((double)(a[i] - b[i])) : INFINITY);
		most = fmax(most, fabs((double)b[i]));
	}
	return worst / fmax(most, 1);
}

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* Of half of the tokens at most: a router that chooses differently spoils the others. */
static double apart_mostly(const struct engine *g, const real *a, const real *b)
{
	int V = engine_config(g)->vocab_size;
	double of[T] = { 0 }, most = 0;

	for (int i = 0; i < T; i++)
		for (int64_t v = (int64_t)i * V; v < (int64_t)(i + 1) * V; v++) {
			of[i] = fmax(of[i], fabs((double)(a[v] - b[v])));
			most = fmax(most, fabs((double)b[v]));
		}
	qsort(of, T, sizeof *of, by_size);
	return of[T / 2] / most;
}

/* --- what must hold --- */

/* The bytes of each sequence alone, in `want`, are kept together, in chunks, by a fork. */
static void test_engine(const char *name, struct engine *g, real *const want[SEQS])
{
	real *got[SEQS];
	struct seq *s, *f;
	uint32_t tok[T];
	bool kept = true;

	for (int a = 0; a < SEQS; a++)
		got[a] = calloc(T, row_bytes(g));
	together(g, got);
	for (int a = 0; a < SEQS; a++)
		kept = kept && same(g, got[a], want[a]);
	ok(kept, "%s: together as alone, byte for byte", name);
	ok(last_same(g, want), "%s: and where only the last logits are asked for", name);
	for (int a = 0; a < SEQS; a++) {
		free(got[a]);
		got[a] = alone(g, a, a, 4);
		kept = kept && same(g, got[a], want[a]);
	}
	ok(kept, "%s: in chunks as at once", name);
	must(!(s = seq_new(g, &e)));
	seq_adapt(s, 1);
	for (int i = 0; i < T; i++)
		tok[i] = token(g, 1, i);
	must(engine_eval(g, &(struct eval_item){ .s = s, .tok = tok, .n = T - 1 }, 1, NULL, &e) <
	    0);
	must((f = seq_fork(s, &e)) == NULL);
	must(engine_eval(g, &(struct eval_item){ .s = f, .tok = tok + T - 1, .n = 1,
	    .logits = got[1] }, 1, NULL, &e) < 0);
	ok(memcmp(got[1], (char *)want[1] + (T - 1) * row_bytes(g), row_bytes(g)) == 0,
	    "%s: a fork has the adapter of its original", name);
	seq_free(s);
	seq_free(f);
	for (int a = 0; a < SEQS; a++)
		free(got[a]);
}

static void test_merged(const char *name, const char *model, struct engine *g,
    real *const want[SEQS])
{
	char to[128];

	for (int i = 0; i < ADAPTERS; i++) {
		struct engine *m;
		real *x;
		double d;

		snprintf(to, sizeof to, "%s/merged", top);
		merge(model, i, to);
		m = open_engine(to, 0, 8, 0);
		x = alone(m, i + 1, 0, T);
		d = apart(m, want[i + 1], x);
		ok(d < 1e-4, "%s: adapter %d is as merged, %.1e away", name, i, d);
		free(x);
		x = alone(g, i + 1, 0, T);
		ok(apart(m, want[i + 1], x) > 1e-3, "%s: and not as the base", name);
		free(x);
		if (config_lookahead_rows(engine_config(g)) > 0)
			ok(look_apart(g, i + 1, m) < 1e-5, "%s: its lookahead head too", name);
		engine_close(m);
		file_remove_tree(to, &e);
	}
}

static void test_plain(const char *name, const char *model)
{
	struct engine *g, *bare = open_engine(model, 0, 7, 0);
	real *want[SEQS], *x = alone(bare, 0, 0, T);

	write_adapters(model, 0.3);
	g = open_engine(model, ADAPTERS, 7, 0);
	for (int a = 0; a < SEQS; a++)
		want[a] = alone(g, a, a, T);
	ok(same(g, want[0], x), "%s: without an adapter as in an engine without", name);
	test_engine(name, g, want);
	test_merged(name, model, g, want);
	engine_close(g);
	pool_quit();
	pool_init(3);
	g = open_engine(model, ADAPTERS, T, 0);
	test_engine("three threads, other passes", g, want);
	engine_close(g);
	pool_quit();
	pool_init(1);
	for (int a = 0; a < SEQS; a++)
		free(want[a]);
	free(x);
	engine_close(bare);
}

static int pack(const char *model, const char *to, const char *how)
{
	const char *build = getenv("BUILD");
	char cmd[900];

	snprintf(cmd, sizeof cmd, "rm -rf %s; %.300s/chr-pack -q -m %s --layout layer %s -o %s "
	    "> /dev/null", to, build ? build : "build", model, how, to);
	return system(cmd) == 0 ? 0 : -1;
}

/* Bytes for the experts of one token. */
static int64_t least(const char *packed)
{
	struct config c;
	struct manifest m = { 0 };
	int64_t n;

	must(config_load(&c, packed, 0, NULL, &e) < 0 || manifest_load_dir(&m, packed, &e) < 0);
	n = store_min_bytes(&c, &m);
	manifest_free(&m);
	config_free(&c);
	return n;
}

/* Blocks of 8 bits cost no more with adapters than without: want, of the packed model, is near what
 * floats give. */
static void test_near(const char *title, const char *model, real *const want[SEQS])
{
	struct engine *g = open_engine(model, ADAPTERS, 7, 0);
	double base = 0;

	for (int a = 0; a < SEQS; a++) {
		real *x = alone(g, a, a, T);
		double d = apart_mostly(g, want[a], x);

		base = a == 0 ? d : base;
		ok(a == 0 || d < 0.05 + 1.2 * base, "%s: adapter %d near floats, %.2g away",
		    title, a, d);
		free(x);
	}
	engine_close(g);
}

/* Adapters of the model that was packed. */
static void test_packed(const char *name, const char *model, const char *how)
{
	char to[128], title[200];
	struct engine *all, *few, *bare;
	real *want[SEQS], *x;

	snprintf(to, sizeof to, "%s/packed", top);
	snprintf(title, sizeof title, "%s, %s", name, how);
	must(pack(model, to, how));
	write_adapters(model, 0.3);
	bare = open_engine(to, 0, 7, 0);
	all = open_engine(to, ADAPTERS, 7, 0);
	few = open_engine(to, ADAPTERS, 7, least(to));
	for (int a = 0; a < SEQS; a++)
		want[a] = alone(all, a, a, T);
	x = alone(bare, 0, 0, T);
	ok(same(all, want[0], x), "%s: without an adapter as in an engine without", title);
	free(x);
	x = alone(bare, 1, 0, T);
	ok(apart(all, want[1], x) > 1e-3, "%s: with one not", title);
	free(x);
	if (strstr(how, "--quant q8"))
		test_near(title, model, want);
	test_engine(title, all, want);
	snprintf(title, sizeof title, "%s, %s, %d of %d experts in memory", name, how,
	    store_slots(engine_store(few)), engine_config(few)->num_sparse *
	    engine_config(few)->num_experts);
	test_engine(title, few, want);
	engine_close(all);
	engine_close(few);
	write_adapters(model, 0);
	all = open_engine(to, ADAPTERS, 7, 0);
	for (int a = 1; a < SEQS; a++) {
		free(want[a]);
		want[a] = alone(all, a, a, T);
		x = alone(bare, a, 0, T);
		ok(same(all, want[a], x), "%s: an adapter %d of zeros changes no byte", title, a);
		free(x);
	}
	for (int a = 0; a < SEQS; a++)
		free(want[a]);
	engine_close(all);
	engine_close(bare);
}

/* --- what is refused, and what it takes --- */

static void test_plan(const char *model)
{
	struct engine_opt o = { .max_seqs = 1, .max_tokens = T, .max_rows = 4 };
	struct mem_plan without = { 0 }, with = { 0 };
	int64_t more = 0;

	write_adapters(model, 0.3);
	must(engine_plan(model, &o, &without, &e) < 0);
	o.adapter = adapters;
	o.adapters = ADAPTERS;
	must(engine_plan(model, &o, &with, &e) < 0);
	for (int i = 0; i < with.n; i++)
		if (strcmp(with.item[i].name, "adapters") == 0)
			more = with.item[i].bytes;
	ok(more > 0 && mem_plan_total(&with) >= mem_plan_total(&without) + more,
	    "adapters are in the plan: %lld bytes", (long long)more);
	o.ram = mem_plan_total(&with) - more / 2;
	with = (struct mem_plan){ 0 };
	ok(engine_plan(model, &o, &with, &e) < 0 && e.status == EX_OSERR, "and in --ram: %s",
	    e.msg);
}

static bool opens(const char *model, bool foreign)
{
	struct engine_opt o = { .max_seqs = 1, .max_tokens = T, .max_rows = 4, .foreign = foreign,
	    .adapter = adapters, .adapters = ADAPTERS };
	struct engine *g = engine_open(model, &o, &backend_cpu, NULL, &e);

	engine_close(g);
	return g != NULL;
}

static void test_refused(const char *model, const char *other)
{
	struct modeldir md;
	const char *mine = NULL;

	write_adapters(other, 0.3);
	ok(!opens(model, false) && e.status == EX_DATAERR, "an adapter of other shapes: %s",
	    e.msg);
	write_adapters(model, 0.3);
	must(modeldir_open(&md, model, 0, NULL, &e) < 0 ||
	    !(mine = modeldir_fingerprint(&md, &e)));
	write_adapter(adapter_dir[1], &md.par, 1, 0.3, mine);
	ok(opens(model, false), "one that was trained on this model");
	write_adapter(adapter_dir[1], &md.par, 1, 0.3, "0123456789abcdef0123456789abcdef");
	ok(!opens(model, false) && e.status == EX_DATAERR, "on another: %s", e.msg);
	ok(opens(model, true), "which may be forced");
	modeldir_close(&md);
	adapters[0].dir = "nosuch";
	ok(!opens(model, false) && e.status == EX_NOINPUT, "and one that is not there: %s",
	    e.msg);
}

/* --- all models --- */

static void test_families(void)
{
	static const char *const family[] = { "deepseek_v2", "deepseek_v3", "deepseek_v3-fp8",
	    "dots1", "ernie4_5_moe", "glm4_moe", "glm4_moe_lite", "gpt_oss", "gpt_oss-mxfp4",
	    "granitemoe", "hunyuan_v1_moe", "lfm2_moe", "llama", "minimax_m2", "mixtral", "olmoe",
	    "qwen2", "qwen2_moe", "qwen3", "qwen3_5_moe_text", "qwen3_moe", "qwen3_next" };
	const char *shared = getenv("CHR_SHARED");
	char dir[400];

	for (size_t i = 0; i < sizeof family / sizeof *family; i++) {
		snprintf(dir, sizeof dir, "%s/golden/families/%s", shared ? shared : "../shared",
		    family[i]);
		if (access(dir, F_OK) < 0)
			ok(1, "%s # SKIP no %s", family[i], dir);
		else
			test_plain(family[i], dir);
	}
}

int main(void)
{
	char dir[MODELS][128];

	must(!mkdtemp(top));
	pool_init(1);
	for (int i = 0; i < MODELS; i++) {
		snprintf(dir[i], sizeof dir[i], "%s/%d", top, i);
		must(file_mkdirs(dir[i], &e) < 0 ||
		    tinymodel(dir[i], models[i].json, DT_F32, 0.35, &e) < 0);
		test_plain(models[i].name, dir[i]);
		test_packed(models[i].name, dir[i], "--quant q8 --quant-dense q8");
		test_packed(models[i].name, dir[i], i % 2 ? "--quant q4" : "--quant q4a "
		    "--quant-dense q4");
	}
	test_families();
	test_plan(dir[0]);
	test_refused(dir[0], dir[1]);
	pool_quit();
	file_remove_tree(top, &e);
	return tap_done();
}
