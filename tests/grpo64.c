/*
 * grpo64: the loss of chr-grpo through a whole model, in double precision, against central
 * differences: every length normalisation, ratios inside and outside of both clips, with and
 * without reference, at a temperature.
 */
#include <stdlib.h>
#include <string.h>

#include "stages/loss_grpo.h"
#include "base/pool.h"
#include "base/rng.h"
#include "tap.h"

#define NB 4
#define NT 9
#define NR (NB * NT)

static struct model m;
static struct batch b;
static real old[NR], ref[NR], coef[NR], logp[NR];
static const real adv[NB] = { 1.5, -0.75, -1.25, 0.5 };

static void make_model(void)
{
	static const char json[] = "{\"chronos_format\": 2, \"vocab_size\": 19, \"hidden_size\": "
	    "12, \"num_hidden_layers\": 2,"
	    "\"num_attention_heads\": 2, \"num_key_value_heads\": 1, \"head_dim\": 6, "
	    "\"moe_intermediate_size\": 8,"
	    "\"num_experts\": 4, \"num_experts_per_tok\": 2, \"num_shared_experts\": 1, "
	    "\"kv_latent_dim\": 6, \"rope_dim\": 2,"
	    "\"sliding_window_size\": 4, \"max_position_embeddings\": 32, \"lookahead_steps\": 0}";
	struct model_opt o = { .max_b = NB, .max_t = NT, .train = true, .head_rows = 7 };
	struct err e = { 0 };
	struct config c;
	json_t *j = json_loads(json, 0, NULL);

	if (config_from_json(&c, j, 0, NULL, &e) < 0 || model_open(&m, &c, &o, &backend_cpu, &e) <
	    0)
		err_exit(&e);
	model_init_weights(&m, 3);
	for (int64_t i = 0; i < m.par.total; i++)
		m.w[i] *= 2;
	config_free(&c);
	json_decref(j);
}

/* Prompts of three tokens; completions of 2, 3, 4 and 5. */
static void make_batch(void)
{
	b = (struct batch){ NB, NT, calloc(NR, 4), calloc(NR, 4), calloc(NR, 4), NULL };
	for (int r = 0; r < NR; r++) {
		int t = r % NT, n = 4 + r / NT;

		b.tok[r] = (uint32_t)rng_below(7, 1, (uint64_t)r, 19);
		b.target[r] = t < 2 || t >= n ? -1 : (int32_t)rng_below(7, 2, (uint64_t)r, 19);
		b.doc_start[r] = t < n ? 0 : -1;
	}
}

static double value(const struct grpo_opt *o, bool with_ref, real *grad, struct grpo_sums *s)
{
	const struct grpo_in in = { .o = o, .b = &b, .adv = adv, .old = old, .ref = with_ref ? ref
	    : NULL, .units = 5,
		.targets = 17, .coef = grad, .logp = logp };

	model_forward(&m, &b, &(struct forward_opt){ 0 });
	return grpo_loss(&m, &in, s);
}

static void check(const char *name, const struct grpo_opt *o, bool with_ref)
{
	double h = 1e-6, got = 0, want, up, down, size = 0;
	real *v = malloc((size_t)m.par.total * sizeof(*v)),
	    *keep = malloc((size_t)m.par.total * sizeof(*v));
	struct grpo_sums s;

	memset(m.g, 0, (size_t)m.par.total * sizeof(real));
	value(o, with_ref, coef, &s);
	model_backward(&m, &b);
	memcpy(keep, m.w, (size_t)m.par.total * sizeof(*v));
	for (int64_t i = 0; i < m.par.total; i++) {
		v[i] = rng_normal(11, 1, (uint64_t)i);
		got += m.g[i] * v[i];
		size += fabs(m.g[i] * v[i]);
		m.w[i] = keep[i] + h * v[i];
	}
	up = value(o, with_ref, NULL, &s);
	for (int64_t i = 0; i < m.par.total; i++)
		m.w[i] = keep[i] - h * v[i];
	down = value(o, with_ref, NULL, &s);
	memcpy(m.w, keep, (size_t)m.par.total * sizeof(*v));
	want = (up - down) / (2 * h);
	ok(fabs(got - want) < 1e-7 * (1 + size) && fabs(want) > 1e-4,
	    "%s: gradient is that of the value", name);
	printf("# %.9g, differences %.9g\n", got, want);
	free(v);
	free(keep);
}

static void test_gradients(void)
{
	static const char *const norm[] = { "by length", "by --new", "by all tokens" };
	struct grpo_opt o = { .beta = 0.3, .epsilon = 0.1, .epsilon_high = 0.25, .temperature = 0.7,
	    .max_new = 6 };
	struct grpo_sums s;

	for (o.norm = 0; o.norm < 3; o.norm++)
		check(norm[o.norm], &o, true);
	o.norm = 0;
	o.beta = 0;
	check("without a reference", &o, false);
	value(&o, false, NULL, &s);
	ok(s.clipped > 1 && s.clipped < s.tokens - 1, "some ratios are clipped, some are not");
	o.epsilon = o.epsilon_high = 1e-6;
	value(&o, false, NULL, &s);
	ok(s.clipped > 4, "more with a small epsilon");
}

/* At ratio 1 the value is -sum w A; log-probs at a temperature are those of divided logits. */
static void test_fresh(void)
{
	struct grpo_opt o = { .epsilon = 0.2, .epsilon_high = 0.2, .temperature = 0.7,
	    .max_new = 6 };
	struct grpo_in in = { .o = &o, .b = &b, .adv = adv, .old = old, .fresh = true, .units = NB,
	    .targets = 14, .logp = logp };
	real *logits = malloc(NR * 19 * sizeof(*logits));
	struct grpo_sums s;
	double worst = 0;

	model_forward(&m, &b, &(struct forward_opt){ 0 });
	model_logits(&m, logits);
	is_close(grpo_loss(&m, &in, &s), 0, 1e-12,
	    "the policy that sampled: advantages that sum to 0 give 0");
	for (int r = 0; r < NR; r++) {
		double sum = 0;

		for (int k = 0; k < 19; k++)
			sum += exp(logits[r * 19 + k] / 0.7);
		if (b.target[r] >= 0)
			worst = fmax(worst, fabs(logits[r * 19 + b.target[r]] / 0.7 - log(sum) -
			    old[r]));
	}
	is_close(worst, 0, 1e-12, "it leaves the log-probs at its temperature");
	in.fresh = false;
	model_forward(&m, &b, &(struct forward_opt){ 0 });
	is_close(grpo_loss(&m, &in, &s), 0, 1e-12, "which have ratio 1 the next time");
	free(logits);
}

static void test_advantages(void)
{
	static const double r[6] = { 1, 2, 6, 5, 5, 5 };
	double sd[2];
	real a[6];

	grpo_advantages(r, 6, 3, GRPO_SCALE_GROUP, a, sd);
	is_close(a[0], -2 / sqrt(7), 1e-12, "less the mean, by the unbiased deviation");
	ok(a[3] == 0 && a[4] == 0 && a[5] == 0 && sd[1] == 0, "equal rewards: none");
	grpo_advantages(r, 6, 3, GRPO_SCALE_NONE, a, NULL);
	is_close(a[2], 3, 1e-12, "not scaled");
	grpo_advantages(r, 6, 3, GRPO_SCALE_BATCH, a, NULL);
	is_close(a[2], 1.5, 1e-12, "by the deviation of all");
}

int main(void)
{
	pool_init(2);
	make_model();
	make_batch();
	model_forward(&m, &b, &(struct forward_opt){ 0 });
	grpo_logp(&m, &b, 0.7, ref);
	for (int r = 0; r < NR; r++) {	/* ratios around 1 on both sides of the clips */
		old[r] = ref[r] + 0.3 * rng_normal(5, 1, (uint64_t)r);
		ref[r] += 0.5 * rng_normal(5, 2, (uint64_t)r);
	}
	test_gradients();
	test_fresh();
	test_advantages();
	model_close(&m);
	free(b.tok), free(b.target), free(b.doc_start);
	return tap_done();
}
