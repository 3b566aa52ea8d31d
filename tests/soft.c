/*
 * What stands in for experts that are not in memory, of routers by sigmoid with a bias, groups and
 * a scaling factor, and of plain ones. Where all experts are the shared one, whatever stands in
 * gives the same: the weights must add up.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/pool.h"
#include "decode/decode.h"
#include "format/modeldir.h"
#include "tap.h"
#include "tinymodel.h"

enum { N = 24, V = 61 };

static struct err e;
static char dir[] = "/tmp/chr-soft-XXXXXX", plain[64], packed[64];

static const struct { const char *name, *json; } models[] = {
	{ "sigmoid, bias, groups, factor", "{\"model_type\":\"glm4_moe\",\"vocab_size\":61,"
	    "\"hidden_size\":24,\"num_hidden_layers\":3,\"num_attention_heads\":4,"
	    "\"num_key_value_heads\":2,\"head_dim\":8,\"intermediate_size\":20,"
	    "\"max_position_embeddings\":64,\"n_routed_experts\":16,\"num_experts_per_tok\":3,"
	    "\"n_shared_experts\":1,\"moe_intermediate_size\":12,\"n_group\":4,\"topk_group\":2,"
	    "\"routed_scaling_factor\":2.5}" },
	{ "softmax", "{\"model_type\":\"hunyuan_v1_moe\",\"vocab_size\":61,\"hidden_size\":24,"
	    "\"num_hidden_layers\":3,\"num_attention_heads\":4,\"num_key_value_heads\":2,"
	    "\"head_dim\":8,\"intermediate_size\":12,\"max_position_embeddings\":64,"
	    "\"num_experts\":16,\"moe_topk\":3}" },
};

static void must(int failed)
{
	if (failed) {
		printf("Bail out! %s\n", e.msg);
		exit(1);
	}
}

/* Every routed expert becomes the shared one. */
static void level(void)
{
	struct modeldir md;
	float *w;

	must(modeldir_open(&md, plain, 0, NULL, &e) < 0);
	w = calloc((size_t)md.par.total, sizeof *w);
	must(modeldir_load_f32(&md, &md.par, w, &e) < 0);
	for (int i = 0; i < md.par.n; i++) {
		const struct param *p = &md.par.p[i], *from;

		if (!param_routed(p))
			continue;
		from = params_get(&md.par, (enum param_kind)(P_SH_GATE + param_part(p)), p->layer,
		    0);
		memcpy(w + p->off, w + from->off, (size_t)param_size(p) * sizeof *w);
	}
	must(modeldir_save(plain, &md.cfg, &md.par, w, &(struct modeldir_out){ .dtype = DT_F32 },
	    NULL, &e) < 0);
	free(w);
	modeldir_close(&md);
}

static int pack(void)
{
	const char *build = getenv("BUILD");
	char cmd[900];

	snprintf(cmd, sizeof cmd, "rm -rf %s; %.500s/chr-pack -q -m %s --layout layer -o %s "
	    "> /dev/null", packed, build ? build : "build", plain, packed);
	return system(cmd) == 0 ? 0 : -1;
}

/* Logits (N, V), one token at a time; returns the share of weight that was replaced. */
static double run(const char *from, int on_miss, double bias, real *logits)
{
	struct engine_opt o = { .max_seqs = 1, .max_tokens = N, .max_rows = 4, .on_miss = on_miss,
	    .route_bias = bias, .store.reader.sim.latency = on_miss || bias > 0 ? 0.02 : 0 };
	struct engine *g = engine_open(from, &o, &backend_cpu, NULL, &e);
	struct eval_stats st;
	struct seq *s;
	double replaced = 0;

	must(!g || !(s = seq_new(g, &e)));
	for (int i = 0; i < N; i++) {
		uint32_t tok = (uint32_t)rng_below(7, 1, (uint64_t)i, V);

		must(engine_eval(g, &(struct eval_item){ .s = s, .tok = &tok, .n = 1,
		    .logits = logits + i * V }, 1, &st, &e) < 0);
		replaced += st.replaced_mass;
	}
	seq_free(s);
	engine_close(g);
	return replaced / N;
}

static double worst(const real *a, const real *b)
{
	double w = 0;

	for (int i = 0; i < N * V; i++)
		w = fmax(w, isfinite(a[i]) ? fabs((double)(a[i] - b[i])) : INFINITY);
	return w;
}

int main(void)
{
	static real want[N * V], got[N * V];
	double replaced;
	char cmd[100];

	pool_init(2);
	if (!mkdtemp(dir))
		return 1;
	snprintf(plain, sizeof plain, "%s/plain", dir);
	snprintf(packed, sizeof packed, "%s/packed", dir);
	must(mkdir(plain, 0777) < 0);
	for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
		must(tinymodel(plain, models[i].json, DT_F32, 0.35, &e) < 0);
		level();
		must(pack());
		run(plain, ONMISS_WAIT, 0, want);
		replaced = run(packed, ONMISS_SHARED, 0, got);
		ok(replaced > 0.01 && replaced <= 1 && worst(got, want) < 1e-4,
		    "%s: shared experts take %.2f of the weight, %.1e away", models[i].name,
		    replaced, worst(got, want));
		replaced = run(packed, ONMISS_WAIT, 9, got);
		ok(replaced > 0.01 && replaced <= 1 && worst(got, want) < 1e-4,
		    "%s: experts in memory are preferred for %.2f of the weight, %.1e away",
		    models[i].name, replaced, worst(got, want));
	}
	pool_quit();
	snprintf(cmd, sizeof cmd, "rm -rf %s", dir);
	return system(cmd) != 0 ? 1 : tap_done();
}
