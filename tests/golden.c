/*
 * golden: compares with cases computed by an independent implementation in double precision.
 *
 *	build/tests/golden DIR...	(default: the shared golden folders when they are there)
 *
 * A folder holds config.json, model.safetensors, reference-model.safetensors, batch.safetensors,
 * expected.safetensors and expected.json. Agreement asked of float32: 2e-5 on logits and
 * probabilities, 1e-5 relative on scalars, 1e-4 in relative L2 norm on each gradient.
 */
#include <glob.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "decode/decode.h"
#include "stages/distill.h"
#include "stages/teacher_live.h"
#include "train/loss.h"
#include "stages/loss_grpo.h"
#include "stages/loss_pref.h"
#include "train/metric.h"
#include "model/model.h"
#include "format/modeldir.h"
#include "base/pool.h"
#include "model/route_loss.h"
#include "model/route_stats.h"
#include "format/safetensors.h"
#include "tap.h"

#define TOL_PROB 2e-5
#define TOL_SCALAR 1e-5
#define TOL_GRAD 1e-4
#define NOISE 1e-12

struct golden {
	char dir[4096];
	const char *name;
	struct st_file *batch, *want;
	json_t *scalar;
	struct modeldir md;
	struct model m, ref;
	struct batch b;
	int64_t R;
	struct route_scratch *scratch;
};

static const void *data(struct st_file *f, const char *name)
{
	const struct st_tensor *t = st_find(f, name);

	if (!t)
		err_die(EX_DATAERR, "golden case lacks %s", name);
	return t->data;
}

static struct st_file *open_in(const struct golden *g, const char *name)
{
	char path[4200];
	struct st_error e;
	struct st_file *f;

	snprintf(path, sizeof(path), "%s/%s", g->dir, name);
	if ((f = st_open(path, ST_MMAP, &e)) == NULL)
		err_die(EX_DATAERR, "%s: %s", path, e.msg);
	return f;
}

static double worst(const float *got, const float *want, int64_t n)
{
	double w = 0;

	for (int64_t i = 0; i < n; i++) {
		double d = fabs((double)got[i] - (double)want[i]);

		w = d > w || isnan(d) ? d : w;
	}
	return w;
}

static void near_all(const struct golden *g, const char *what, const float *got, const float *want,
    int64_t n)
{
	double w = worst(got, want, n);

	if (ok(w <= TOL_PROB, "%s: %s", g->name, what))
		printf("# worst %.2g\n", w);
	else
		printf("# worst %.3g, allowed %g\n", w, TOL_PROB);
}

static void scalar(const struct golden *g, const char *key, double got)
{
	json_t *o = json_object_get(g->scalar, key);
	double want;
	char name[256];

	if (!o)
		o = json_object_get(json_object_get(g->scalar, "metrics"), key);
	want = json_number_value(o);
	snprintf(name, sizeof(name), "%s: %s", g->name, key);
	is_close(got, want, TOL_SCALAR * fabs(want), name);
}

static void load_weights(struct golden *g, struct model *m, const char *file)
{
	struct st_file *f = open_in(g, file);

	for (int i = 0; i < m->par.n; i++) {
		const struct param *p = &m->par.p[i];

		memcpy(m->w + p->off, data(f, p->name), (size_t)param_size(p) * sizeof(float));
	}
	st_close(f);
}

static void load_batch(struct golden *g)
{
	const struct st_tensor *t = st_find(g->batch, "input_ids");
	const int64_t *ids = data(g->batch, "input_ids"), *labels = data(g->batch, "labels");
	int B = (int)t->shape[0], T = (int)t->shape[1];

	g->R = (int64_t)B * T;
	g->b = (struct batch){ B, T, calloc((size_t)g->R, 4), calloc((size_t)g->R, 4),
	    calloc((size_t)g->R, 4), NULL };
	for (int64_t r = 0; r < g->R; r++) {
		int64_t next = r % T + 1 < T ? labels[r + 1] : -100;

		g->b.tok[r] = (uint32_t)ids[r];
		g->b.target[r] = next < 0 ? -1 : (int32_t)next;
	}
}

static struct route_in route_in(struct golden *g)
{
	return (struct route_in){ .cfg = &g->m.cfg, .B = g->b.B, .T = g->b.T, .doc_start =
	    g->b.doc_start,
		.probs = g->m.probs, .topk = g->m.topk, .look = g->m.look };
}

/* A step of one batch. */
static double whole_step(struct golden *g, const struct route_in *in,
    const struct route_lambda *lam, struct route_terms *t, bool gradients)
{
	struct route_step s;
	double sum;

	route_step_open(&s, in->cfg);
	route_step_rows(&s, in);
	route_step_load(&s, in);
	sum = route_loss(in, lam, &s, gradients ? g->m.dprobs : NULL,
	    gradients ? g->m.dlook : NULL, NULL, &g->scratch);
	route_step_end(&s);
	route_step_terms(&s, t);
	route_step_close(&s);
	return sum;
}

static void check_outputs(struct golden *g)
{
	struct forward_opt fo = { 0 };
	const struct config *c = &g->m.cfg;
	int V = c->vocab_size, E = c->num_experts;
	float *logits = malloc((size_t)g->R * (size_t)V * 4), *mask;
	uint8_t avail[E];
	int64_t blocks = g->R * (c->lookahead_steps + 1);

	model_forward(&g->m, &g->b, &fo);
	model_logits(&g->m, logits);
	near_all(g, "logits", logits, data(g->want, "logits"), g->R * V);
	near_all(g, "router probabilities", g->m.probs, data(g->want, "router_probs"),
	    c->num_sparse * g->R * E);
	g->m.be->softmax(g->m.be, g->m.look, blocks, E);
	near_all(g, "lookahead probabilities", g->m.look, data(g->want, "lookahead_probs"),
	    blocks * E);
	mask = (float *)(uintptr_t)data(g->want, "available_mask");
	for (int e = 0; e < E; e++)
		avail[e] = mask[e] > 0.5f;
	fo.available = avail;
	model_forward(&g->m, &g->b, &fo);
	model_logits(&g->m, logits);
	near_all(g, "logits with missing experts", logits, data(g->want, "logits_masked"),
	    g->R * V);
	free(logits);
}

/* 12 tokens of prefill, then single steps, all sequences in one call. */
static void check_cached(struct golden *g)
{
	struct err e = { 0 };
	struct mem_plan plan = { 0 };
	struct engine_opt o = { .max_seqs = g->b.B, .max_tokens = g->b.T, .max_rows = g->b.B *
	    g->b.T };
	struct engine *en = engine_open(g->dir, &o, &backend_cpu, &plan, &e);
	int V = g->m.cfg.vocab_size, B = g->b.B, T = g->b.T;
	struct eval_item it[B];
	float *logits = malloc((size_t)g->R * (size_t)V * 4);

	if (!en)
		err_exit(&e);
	memset(it, 0, sizeof(it));
	for (int b = 0; b < B; b++)
		it[b].s = seq_new(en, &e);
	for (int t = 0; t < T; t += it[0].n) {
		for (int b = 0; b < B; b++) {
			it[b].tok = g->b.tok + b * T + t;
			it[b].n = t == 0 ? 12 : 1;
			it[b].logits = logits + ((int64_t)b * T + t) * V;
			it[b].all = true;
		}
		if (engine_eval(en, it, B, NULL, &e) < 0)
			err_exit(&e);
	}
	near_all(g, "cached logits", logits, data(g->want, "logits_cached"), g->R * V);
	for (int b = 0; b < B; b++)
		seq_free(it[b].s);
	engine_close(en);
	free(logits);
}

static void check_gradients(struct golden *g, const char *loss)
{
	double w = 0;
	const char *at = "";

	for (int i = 0; i < g->m.par.n; i++) {
		const struct param *p = &g->m.par.p[i];
		char key[200];
		const float *want, *got = g->m.g + p->off;
		double d = 0, n = 0;

		snprintf(key, sizeof(key), "grad.%s.%s", loss, p->name);
		if (!st_find(g->want, key))
			want = NULL;	/* this loss does not reach it: the gradient must be zero */
		else
			want = data(g->want, key);
		for (int64_t j = 0; j < param_size(p); j++) {
			double x = want ? (double)want[j] : 0;

			d += ((double)got[j] - x) * ((double)got[j] - x);
			n += x * x;
		}
		if (sqrt(n) < NOISE)	/* zero but for the rounding of the case itself */
			n = 0, d = sqrt(d) < NOISE ? 0 : d;
		d = n > 0 ? sqrt(d / n) : d > 0 ? INFINITY : 0;
		if (d > w || isnan(d))
			w = d, at = p->name;
	}
	ok(w <= TOL_GRAD, "%s: gradients of %s", g->name, loss);
	printf("# worst %.2g at %s\n", w, at);
}

/* The per-layer value of a term whose format 1 loss is on the layer mean. */
static void check_per_layer(struct golden *g, const struct route_in *in)
{
	struct config c = *in->cfg;
	struct route_in per = *in;
	struct route_lambda lam = { 0 };
	struct route_terms t;

	c.format = 2;
	per.cfg = &c;
	per.look = NULL;
	whole_step(g, &per, &lam, &t, false);
	scalar(g, "temporal_per_layer", t.temporal);
}

static void check_metrics(struct golden *g, const struct route_in *in)
{
	struct route_stats s = { 0 };
	int steps = g->m.cfg.lookahead_steps;
	double recall = 0;

	route_stats_add(&s, in);
	for (int k = 1; k <= steps; k++)
		recall += s.slot_hit[k] / s.slots[k] / steps;
	scalar(g, "router_adjacent_jaccard", s.overlap / s.pairs);
	scalar(g, "lookahead_topk_recall", recall);
	scalar(g, "lookahead_union_recall", s.union_recall / s.union_rows);
	check_per_layer(g, in);
}

static void check_pretrain(struct golden *g)
{
	const struct config *c = &g->m.cfg;
	struct forward_opt fo = { 0 };
	struct route_lambda lam = { c->lambda_balance, c->lambda_temporal,
	    c->lambda_router_locality, c->lambda_lookahead,
		c->lambda_lookahead_topk, c->lambda_lookahead_union, 0, 0 };
	struct route_terms t;
	double ce = 0, total, n = 0;
	real coef[g->R], logp[g->R];

	memset(g->m.g, 0, (size_t)g->m.par.total * sizeof(real));
	model_forward(&g->m, &g->b, &fo);
	for (int64_t r = 0; r < g->R; r++)
		n += g->b.target[r] >= 0;
	for (int64_t r = 0; r < g->R; r++)
		coef[r] = (real)(-1 / n);
	model_head(&g->m, &g->b, coef, logp, NULL);
	struct route_in in = route_in(g);

	total = whole_step(g, &in, &lam, &t, true);
	for (int64_t r = 0; r < g->R; r++)
		ce -= (double)logp[r] / n;
	model_backward(&g->m, &g->b);
	scalar(g, "ce", ce);
	scalar(g, "balance_raw", t.balance);
	scalar(g, "temporal", t.temporal);
	scalar(g, "router_locality", t.locality);
	scalar(g, "lookahead", t.lookahead);
	scalar(g, "lookahead_topk", t.topk);
	scalar(g, "lookahead_union", t.union_);
	scalar(g, "pretrain_total", ce + total);
	check_gradients(g, "pretrain");
	check_metrics(g, &in);
}

/* The sequences of the preferences as completions of one prompt. The caller frees. */
static struct batch sampled_batch(const struct golden *g)
{
	const struct st_tensor *t = st_find(g->batch, "pref_ids");
	const int64_t *ids = data(g->batch, "pref_ids"), *target = data(g->batch, "pref_targets");
	const float *mask = data(g->batch, "pref_mask");
	int B = (int)t->shape[0], T = (int)t->shape[1], R = B * T;
	struct batch b = { B, T, calloc((size_t)R, 4), calloc((size_t)R, 4), calloc((size_t)R, 4),
	    NULL };

	for (int r = 0; r < R; r++) {
		b.tok[r] = (uint32_t)ids[r];
		b.target[r] = mask[r] > 0.5f ? (int32_t)target[r] : -1;
	}
	return b;
}

/* The reference's base loss is -mean(A mean ln p) + beta kl: at ratio 1 it has the gradient of
 * ours. */
static void check_grpo(struct golden *g)
{
	struct batch b = sampled_batch(g);
	struct model_opt mo = { .max_b = b.B, .max_t = b.T, .train = true, .head_rows = 7 };
	struct grpo_opt o = { .beta = json_number_value(json_object_get(g->scalar, "grpo_beta")),
	    .epsilon = 0.2,
		.epsilon_high = 0.2, .temperature = 1 };
	struct forward_opt fo = { 0 };
	struct grpo_sums s;
	struct golden own = *g;
	int R = b.B * b.T, n = 0;
	real adv[b.B], coef[R], logp[R], old[R], ref[R];
	double reward[b.B], pg = 0;
	struct err e = { 0 };

	if (model_open(&own.m, &g->md.cfg, &mo, &backend_cpu, &e) < 0)
		err_exit(&e);
	for (int i = 0; i < b.B; i++)
		reward[i] = json_number_value(json_array_get(json_object_get(g->scalar,
		    "grpo_rewards"), (size_t)i));
	grpo_advantages(reward, b.B, b.B, GRPO_SCALE_GROUP, adv, NULL);
	for (int r = 0; r < R; r++)
		n += b.target[r] >= 0;
	load_weights(&own, &own.m, "reference-model.safetensors");
	model_forward(&own.m, &b, &fo);
	grpo_logp(&own.m, &b, 1, ref);
	load_weights(&own, &own.m, "model.safetensors");
	model_forward(&own.m, &b, &fo);
	grpo_loss(&own.m, &(struct grpo_in){ &o, &b, adv, old, true, ref, b.B, n, coef, logp }, &s);
	model_backward(&own.m, &b);
	for (int i = 0; i < b.B; i++) {
		double sum = 0;
		int len = 0;

		for (int r = i * b.T; r < (i + 1) * b.T; r++)
			if (b.target[r] >= 0)
				sum += (double)logp[r], len++;
		pg -= (double)adv[i] * sum / len / b.B;
	}
	scalar(g, "grpo_pg", pg);
	scalar(g, "grpo_kl", s.kl / n);
	scalar(g, "grpo", pg + o.beta * s.kl / n);
	check_gradients(&own, "grpo");
	model_close(&own.m);
	free(b.tok), free(b.target), free(b.doc_start);
}

static void check_anchor(struct golden *g)
{
	struct forward_opt fo = { 0 };
	struct route_lambda lam = { .anchor = 1 };
	struct route_terms t;
	double total;

	load_weights(g, &g->ref, "reference-model.safetensors");
	model_forward(&g->ref, &g->b, &fo);
	memset(g->m.g, 0, (size_t)g->m.par.total * sizeof(real));
	model_forward(&g->m, &g->b, &fo);
	struct route_in in = route_in(g);

	in.ref_probs = g->ref.probs;
	total = whole_step(g, &in, &lam, &t, true);
	memset(g->m.dhidden, 0, (size_t)g->R * (size_t)g->m.cfg.hidden_size * sizeof(real));
	model_backward(&g->m, &g->b);
	scalar(g, "anchor_per_layer", total);
	check_gradients(g, "anchor");
}

/* Rows 0 and 1 are chosen, 2 and 3 rejected. */
static void find_pairs(const struct batch *b, struct pref pair[2])
{
	int T = b->T;

	for (int i = 0; i < 2; i++) {
		pair[i] = (struct pref){ .n = 2, .first = { i * T, (i + 2) * T },
		    .rows = { T, T } };
		for (int s = 0; s < 2; s++)
			for (int r = pair[i].first[s]; r < pair[i].first[s] + T; r++)
				pair[i].targets[s] += b->target[r] >= 0;
	}
}

static void check_preferences(struct golden *g)
{
	const struct dpo_opt dpo =
	    { .beta = json_number_value(json_object_get(g->scalar, "dpo_beta")) };
	const struct orpo_opt orpo = { json_number_value(json_object_get(g->scalar, "orpo_lambda")),
		json_number_value(json_object_get(g->scalar, "orpo_beta")) };
	struct forward_opt fo = { 0 };
	struct pref pair[2];
	struct batch b = sampled_batch(g);
	double sum[METRIC_MAX] = { 0 }, weight[METRIC_MAX] = { 0 };
	real *coef = calloc((size_t)(b.B * b.T), sizeof(*coef)), *logp = calloc((size_t)(b.B * b.T),
	    sizeof(*logp));

	find_pairs(&b, pair);
	load_weights(g, &g->ref, "reference-model.safetensors");
	model_forward(&g->ref, &b, &fo);
	loss_pref_reference(&g->ref, &b, pair, 2, logp);
	memset(g->m.g, 0, (size_t)g->m.par.total * sizeof(real));
	model_forward(&g->m, &b, &fo);
	scalar(g, "dpo", loss_dpo(&g->m, &b, pair, 2, 2, &dpo, coef, logp, sum, weight));
	model_backward(&g->m, &b);
	check_gradients(g, "dpo");
	memset(sum, 0, sizeof(sum));
	memset(weight, 0, sizeof(weight));
	memset(g->m.g, 0, (size_t)g->m.par.total * sizeof(real));
	model_forward(&g->m, &b, &fo);
	scalar(g, "orpo", loss_orpo(&g->m, &b, pair, 2, 2, &orpo, coef, logp, sum, weight));
	scalar(g, "orpo_nll", sum[0] / weight[0]);
	scalar(g, "orpo_or", sum[1] / weight[1]);
	model_backward(&g->m, &b);
	check_gradients(g, "orpo");
	free(b.tok), free(b.target), free(b.doc_start), free(coef), free(logp);
}

/* The teacher's logits come in blocks smaller than a row of the batch, its own engine going on
 * where it was. */
static void check_distill(struct golden *g)
{
	struct distill d = { .o = { DIVERGE_FORWARD, 0.7, 4 } };
	const struct engine_opt eo = { .max_seqs = TEACHER_LIVE_SEQS, .max_tokens = g->b.T,
	    .max_rows = 5 };
	const struct micro mb = { .b = g->b, .own = { .targets = loss_targets(&g->b) } };
	double sum[METRIC_MAX] = { 0 }, weight[METRIC_MAX] = { 0 };
	real coef[g->R], logp[g->R];
	const struct stage_in in = { .m = &g->m, .mb = &mb, .targets = mb.own.targets, .coef = coef,
	    .logp = logp, .sum = sum,
		.weight = weight };
	struct forward_opt fo = { 0 };
	struct err e = { 0 };
	struct engine *en;
	struct teacher_live *live;

	load_weights(g, &g->ref, "reference-model.safetensors");
	en = engine_over(&g->ref.cfg, &g->ref.par, g->ref.w, &eo, &backend_cpu, &e);
	if (!en || (live = teacher_live_over(en, 5, &e)) == NULL || distill_open(&d, &backend_cpu,
	    g->m.cfg.vocab_size, &e) < 0)
		err_exit(&e);
	d.teacher = (struct teacher){ .rows = teacher_live_rows, .self = live };
	memset(g->m.g, 0, (size_t)g->m.par.total * sizeof(real));
	model_forward(&g->m, &g->b, &fo);
	scalar(g, "distill_shifted", distill_loss(&d, &in));
	scalar(g, "distill_shifted_kd", sum[1] / weight[1]);
	model_backward(&g->m, &g->b);
	check_gradients(g, "distill");
	distill_close(&d);
	teacher_live_close(live);
	engine_close(en);
}

static void run(const char *dir)
{
	struct golden g = { 0 };
	struct err e = { 0 };
	struct model_opt o = { .train = true, .head_rows = 7 };
	char path[4200];

	snprintf(g.dir, sizeof(g.dir), "%s", dir);
	g.name = strrchr(dir, '/') ? strrchr(dir, '/') + 1 : dir;
	g.batch = open_in(&g, "batch.safetensors");
	g.want = open_in(&g, "expected.safetensors");
	snprintf(path, sizeof(path), "%s/expected.json", dir);
	if ((g.scalar = json_load_file(path, 0, NULL)) == NULL)
		err_die(EX_DATAERR, "%s: not JSON", path);
	if (modeldir_open(&g.md, dir, 0, NULL, &e) < 0)
		err_exit(&e);
	load_batch(&g);
	o.max_b = 4, o.max_t = g.b.T;	/* the largest batch is the pairs' */
	if (model_open(&g.m, &g.md.cfg, &o, &backend_cpu, &e) < 0 || model_open(&g.ref, &g.md.cfg,
	    &o, &backend_cpu, &e) < 0)
		err_exit(&e);
	load_weights(&g, &g.m, "model.safetensors");
	check_outputs(&g);
	check_cached(&g);
	check_pretrain(&g);
	check_grpo(&g);
	check_anchor(&g);
	check_preferences(&g);
	check_distill(&g);
	model_close(&g.m);
	model_close(&g.ref);
	route_scratch_free(g.scratch);
	modeldir_close(&g.md);
	st_close(g.batch);
	st_close(g.want);
	json_decref(g.scalar);
	free(g.b.tok), free(g.b.target), free(g.b.doc_start);
}

int main(int argc, char **argv)
{
	glob_t found = { 0 };
	char pattern[4200];
	const char *shared = getenv("CHR_SHARED");

	err_init(argv[0]);
	pool_init(2);
	for (int i = 1; i < argc; i++)
		run(argv[i]);
	if (argc > 1)
		return tap_done();
	snprintf(pattern, sizeof(pattern), "%s/golden/*/expected.json", shared ? shared
	    : "../shared");
	if (glob(pattern, 0, NULL, &found) != 0)
		return tap_skip("no golden folders");
	for (size_t i = 0; i < found.gl_pathc; i++) {
		*strrchr(found.gl_pathv[i], '/') = 0;
		run(found.gl_pathv[i]);
	}
	globfree(&found);
	return tap_done();
}
