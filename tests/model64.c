/*
 * model64: gradients of the whole model in double precision against central differences, for
 * every kind of layer and both formats. For each parameter tensor one random direction v: (L(w +
 * hv) - L(w - hv)) / 2h must equal g . v.
 *
 * The loss is a random mixture of target log-probs plus every router term. Format 1's lookahead
 * cross-entropy has a detached, smooth target, which differences would not hold still: its
 * weight is 0 here (the golden cases check it).
 */
#include <stdlib.h>
#include <string.h>

#include "model/model.h"
#include "base/pool.h"
#include "base/rng.h"
#include "model/route_loss.h"
#include "tap.h"

#define NB 2
#define NT 13

struct problem {
	struct model m;
	struct batch b;
	struct forward_opt fo;
	struct route_lambda lam;
	struct route_scratch *scratch;
	real *ref;		/* probabilities of another model */
	real *bias;		/* of the choices, or NULL */
	real coef[NB * NT];
};

/* Row b of the batch, or all of it when b is below 0. */
static struct batch part(const struct problem *p, int b)
{
	int at = b < 0 ? 0 : b * NT;

	return (struct batch){ b < 0 ? NB : 1, NT, p->b.tok + at, p->b.target + at,
	    p->b.doc_start + at, NULL };
}

/* ref: room for p->ref of this part. */
static struct route_in part_in(const struct problem *p, const struct batch *b, real *ref)
{
	const struct config *c = &p->m.cfg;
	int64_t n = (int64_t)b->B * NT * c->num_experts, at = b->tok - p->b.tok;

	for (int i = 0; i < c->num_sparse; i++)
		memcpy(ref + i * n, p->ref + ((int64_t)i * NB * NT + at) * c->num_experts,
		    (size_t)n * sizeof *ref);
	return (struct route_in){ .cfg = c, .B = b->B, .T = NT, .doc_start = b->doc_start,
	    .probs = p->m.probs, .topk = p->m.topk,
	    .look = c->lookahead_steps > 0 ? p->m.look : NULL, .ref_probs = ref,
	    .ahead = p->m.ahead, .bias = p->bias };
}

/* Of a step of one micro-batch, or of NB. */
static double loss(struct problem *p, bool grad, bool split)
{
	const struct config *c = &p->m.cfg;
	real logp[NB * NT], ref[(c->num_sparse * NB * NT + 1) * c->num_experts];
	struct route_step step;
	double sum = 0;

	route_step_open(&step, c);
	for (int pass = 0; pass < 3; pass++)
		for (int i = 0; i < (split ? NB : 1); i++) {
			struct batch b = part(p, split ? i : -1);
			struct route_in in = part_in(p, &b, ref);
			real *coef = p->coef + (b.tok - p->b.tok);

			if (pass == 0)
				route_step_rows(&step, &in);
			if (pass > 0)
				model_forward(&p->m, &b, &p->fo);
			if (pass == 1)
				route_step_load(&step, &in);
			if (pass < 2)
				continue;
			model_head(&p->m, &b, grad ? coef : NULL, logp, NULL);
			for (int r = 0; r < b.B * NT; r++)
				sum += coef[r] * logp[r];
			sum += route_loss(&in, &p->lam, &step, grad ? p->m.dprobs : NULL,
			    grad ? p->m.dlook : NULL, grad ? p->m.dahead : NULL, &p->scratch);
			if (grad)
				model_backward(&p->m, &b);
		}
	route_step_close(&step);
	return sum;
}

/* The same rows in one micro-batch, whose gradient is there, or in two. */
static void check_split(struct problem *p, const char *name, double whole)
{
	size_t n = (size_t)p->m.par.total;
	real *g = malloc(n * sizeof *g);
	double d = 0, norm = 0, value;

	memcpy(g, p->m.g, n * sizeof *g);
	memset(p->m.g, 0, n * sizeof *g);
	value = loss(p, true, true);
	for (size_t i = 0; i < n; i++) {
		d += (g[i] - p->m.g[i]) * (g[i] - p->m.g[i]);
		norm += g[i] * g[i];
	}
	ok(fabs(value - whole) < 1e-12 * fabs(whole) && norm > 0 && sqrt(d / norm) < 1e-12,
	    "%s: a step in two micro-batches", name);
	printf("# loss %.15g and %.15g, gradients differ by %.2g\n", whole, value,
	    sqrt(d / norm));
	memcpy(p->m.g, g, n * sizeof *g);
	free(g);
}

/* Two documents and padding at the end of the second sequence. */
static void make_batch(struct problem *p)
{
	int V = p->m.cfg.vocab_size;

	p->b = (struct batch){ NB, NT, calloc(NB * NT, 4), calloc(NB * NT, 4), calloc(NB * NT, 4),
	    NULL };
	for (int r = 0; r < NB * NT; r++) {
		int t = r % NT;

		p->b.tok[r] = (uint32_t)rng_below(7, 1, (uint64_t)r, (uint64_t)V);
		p->b.target[r] = t == NT - 1 || t == 4 ? -1 : (int32_t)rng_below(7, 2, (uint64_t)r,
		    (uint64_t)V);
		p->b.doc_start[r] = r >= NT && t > 9 ? -1 : t >= 5 ? 5 : 0;
		if (p->b.doc_start[r] < 0)
			p->b.target[r] = -1;
		p->coef[r] = p->b.target[r] < 0 ? 0 : -rng_uniform(7, 3, (uint64_t)r);
	}
}

static double check_param(struct problem *p, const struct param *q, int i)
{
	int64_t n = param_size(q);
	double h = 1e-6, up, down, got = 0, want;
	real *w = p->m.w + q->off, *keep = malloc((size_t)n * sizeof(real)),
	    *v = malloc((size_t)n * sizeof(real));

	memcpy(keep, w, (size_t)n * sizeof(real));
	for (int64_t j = 0; j < n; j++) {
		v[j] = rng_normal(11, (uint64_t)i, (uint64_t)j);
		got += p->m.g[q->off + j] * v[j];
		w[j] = keep[j] + h * v[j];
	}
	up = loss(p, false, false);
	for (int64_t j = 0; j < n; j++)
		w[j] = keep[j] - h * v[j];
	down = loss(p, false, false);
	want = (up - down) / (2 * h);
	memcpy(w, keep, (size_t)n * sizeof(real));
	free(keep);
	free(v);
	return fabs(got - want) / (fabs(want) + 1e-3);
}

/* Experts given for most rows: not those of the router, so that their weights are far from the
 * best. */
static int32_t *given_experts(const struct config *c)
{
	int K = c->num_experts_per_tok, n = c->num_sparse * NB * NT;
	int32_t *ids = malloc((size_t)(n * K) * sizeof(*ids));

	for (int i = 0; i < n; i++)
		for (int k = 0; k < K; k++)
			ids[i * K + k] = i % 7 == 0 ? -1 : (i + k * (1 + i % 2)) % c->num_experts;
	return ids;
}

static void check_config(const char *name, const char *json, double dropout, double miss,
    bool replay)
{
	struct problem p = { 0 };
	struct err e = { 0 };
	struct config c;
	struct model_opt o = { .max_b = NB, .max_t = NT, .train = true, .head_rows = 5 };
	json_t *j = json_loads(json, 0, NULL);
	double worst = 0, whole;
	const char *at = "";

	if (!j || config_from_json(&c, j, 0, NULL, &e) < 0 || model_open(&p.m, &c, &o, &backend_cpu,
	    &e) < 0) {
		ok(0, "%s: %s", name, e.msg);
		return;
	}
	p.m.cfg.dropout = dropout;
	p.fo = (struct forward_opt){ .train = true, .seed = 3, .step = 5, .fallback_mask_prob =
	    miss };
	p.lam = (struct route_lambda){ 0.3, 0.7, 0.4, c.format == 1 ? 0 : 0.5, 0.6, 0.8, 0.9,
	    c.lambda_ahead };
	p.fo.replay = replay ? given_experts(&c) : NULL;
	make_batch(&p);
	model_init_weights(&p.m, 99);
	for (int64_t i = 0; i < p.m.par.total; i++)	/* norms away from one, routers away from
							   flat */
		p.m.w[i] = p.m.w[i] * 1.5 + 0.05 * rng_normal(1, 2, (uint64_t)i);
	if (config_choice_bias(&c)) {
		p.bias = malloc((size_t)(c.num_sparse * c.num_experts) * sizeof *p.bias);
		model_choice_bias(&p.m, p.bias);
	}
	model_forward(&p.m, &p.b, &p.fo);
	size_t np = (size_t)c.num_sparse * NB * NT * (size_t)c.num_experts * sizeof(real);

	p.ref = malloc(np + 1);
	memcpy(p.ref, p.m.probs, np);
	for (size_t i = 0; i < np / sizeof(real); i++)	/* any positive numbers do for a
							   reference */
		p.ref[i] = 0.5 * p.ref[i] + 0.5 * rng_uniform(4, 4, i);
	memset(p.m.g, 0, (size_t)p.m.par.total * sizeof(real));
	whole = loss(&p, true, false);
	if (dropout == 0 && miss == 0 && !replay)
		check_split(&p, name, whole);
	for (int i = 0; i < p.m.par.n; i++) {
		double d = check_param(&p, &p.m.par.p[i], i);

		if (d > worst || isnan(d))
			worst = d, at = p.m.par.p[i].name;
	}
	ok(worst < 1e-5, "%s: %d tensors against differences", name, p.m.par.n);
	printf("# worst %.2g at %s\n", worst, at);
	free(p.b.tok), free(p.b.target), free(p.b.doc_start), free(p.ref), free(p.bias),
	    free((void *)(uintptr_t)p.fo.replay);
	route_scratch_free(p.scratch);
	model_close(&p.m);
	config_free(&c);
	json_decref(j);
}

#define COMMON "\"model_type\": \"chronos\", \"vocab_size\": 23, \"hidden_size\": 16, " \
    "\"num_hidden_layers\": 3," \
	"\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"head_dim\": 6, " \
	    "\"moe_intermediate_size\": 10," \
	"\"intermediate_size\": 14, \"num_experts\": 5, \"num_experts_per_tok\": 2, " \
	    "\"kv_latent_dim\": 9," \
	"\"sliding_window_size\": 3, \"max_position_embeddings\": 64, \"rope_theta\": 100.0"

#define PUBLISHED "\"vocab_size\": 23, \"hidden_size\": 16, \"num_hidden_layers\": 3," \
	"\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"head_dim\": 6," \
	"\"intermediate_size\": 14, \"max_position_embeddings\": 64, \"rope_theta\": 100.0"
#define EXPERTS ", \"num_local_experts\": 5, \"num_experts_per_tok\": 2"

#define DEEPSEEK ", \"n_routed_experts\": 6, \"num_experts_per_tok\": 2," \
	"\"moe_intermediate_size\": 10, \"n_shared_experts\": 2"

#define LATENT ", \"kv_lora_rank\": 9, \"qk_nope_head_dim\": 6, \"qk_rope_head_dim\": 4," \
	"\"v_head_dim\": 3, \"first_k_dense_replace\": 1"

static void check_families(void)
{
	check_config("llama, llama3 positions, biases", "{\"model_type\": \"llama\", " PUBLISHED
	    ", \"attention_bias\": true, \"rope_scaling\": {"
	    "\"rope_type\": \"llama3\", \"factor\": 8,"
	    "\"low_freq_factor\": 1, \"high_freq_factor\": 4,"
	    "\"original_max_position_embeddings\": 16}}", 0.2, 0, false);
	check_config("qwen2, windows in the last layers", "{\"model_type\": \"qwen2\", " PUBLISHED
	    ", \"use_sliding_window\": true, \"sliding_window\": 3, \"max_window_layers\": 1}",
	    0, 0, false);
	check_config("qwen3", "{\"model_type\": \"qwen3\", " PUBLISHED "}", 0, 0, false);
	check_config("mixtral", "{\"model_type\": \"mixtral\", " PUBLISHED EXPERTS
	    ", \"sliding_window\": 4}", 0, 0, false);
	check_config("olmoe, lookahead head", "{\"model_type\": \"olmoe\", " PUBLISHED EXPERTS
	    ", \"lookahead_steps\": 2, \"lambda_ahead\": 0.7}", 0, 0, false);
	check_config("qwen2_moe", "{\"model_type\": \"qwen2_moe\", " PUBLISHED EXPERTS
	    ", \"moe_intermediate_size\": 10, \"shared_expert_intermediate_size\": 9,"
	    "\"decoder_sparse_step\": 2}", 0, 0, false);
	check_config("dots1", "{\"model_type\": \"dots1\", " PUBLISHED DEEPSEEK ", \"n_group\": 2,"
	    "\"topk_group\": 1, \"norm_topk_prob\": true, \"routed_scaling_factor\": 2.5,"
	    "\"first_k_dense_replace\": 1, \"lambda_ahead\": 0.6, \"lookahead_steps\": 2}", 0, 0,
	    false);
	check_config("dots1, weights as they are, experts given", "{\"model_type\": \"dots1\", "
	    PUBLISHED DEEPSEEK ", \"routed_scaling_factor\": 1.5}", 0, 0.3, true);
	check_config("deepseek_v3, yarn",
	    "{\"model_type\": \"deepseek_v3\", " PUBLISHED DEEPSEEK LATENT
	    ", \"q_lora_rank\": 7, \"n_group\": 2, \"topk_group\": 1,"
	    "\"rope_scaling\": {\"type\": \"yarn\","
	    "\"factor\": 4, \"original_max_position_embeddings\": 16, \"mscale\": 0.7,"
	    "\"mscale_all_dim\": 1.0}}", 0.1, 0, false);
	check_config("deepseek_v2, groups", "{\"model_type\": \"deepseek_v2\", " PUBLISHED DEEPSEEK
	    LATENT ", \"topk_method\": \"group_limited_greedy\", \"n_group\": 3,"
	    "\"topk_group\": 2, \"lookahead_steps\": 1}", 0, 0.3, false);
	check_config("glm4_moe", "{\"model_type\": \"glm4_moe\", " PUBLISHED DEEPSEEK
	    ", \"attention_bias\": true, \"use_qk_norm\": true, \"lookahead_steps\": 1,"
	    "\"partial_rotary_factor\": 0.67}", 0, 0, false);
	check_config("ernie4_5_moe", "{\"model_type\": \"ernie4_5_moe\", " PUBLISHED
	    ", \"moe_num_experts\": 6, \"moe_k\": 2, \"moe_intermediate_size\": 10,"
	    "\"moe_layer_start_index\": 0, \"lambda_ahead\": 0.6,"
	    "\"tie_word_embeddings\": false}", 0, 0, false);
	check_config("hunyuan_v1_moe", "{\"model_type\": \"hunyuan_v1_moe\", " PUBLISHED
	    ", \"num_experts\": 6, \"moe_topk\": 2}", 0, 0.2, false);
	check_config("minimax_m2", "{\"model_type\": \"minimax_m2\", " PUBLISHED EXPERTS
	    ", \"rotary_dim\": 4, \"lambda_ahead\": 0.6}", 0, 0, false);
	check_config("granitemoe", "{\"model_type\": \"granitemoe\", " PUBLISHED EXPERTS
	    ", \"embedding_multiplier\": 3, \"residual_multiplier\": 0.4,"
	    "\"attention_multiplier\": 0.2, \"logits_scaling\": 1.7,"
	    "\"attention_bias\": true, \"tie_word_embeddings\": true}", 0, 0, false);
	check_config("granitemoe, dropout, foreseen", "{\"model_type\": \"granitemoe\", " PUBLISHED
	    EXPERTS ", \"residual_multiplier\": 0.4, \"lookahead_steps\": 1,"
	    "\"lambda_ahead\": 0.7}", 0.2, 0, false);
	check_config("gpt_oss", "{\"model_type\": \"gpt_oss\", " PUBLISHED EXPERTS
	    ", \"sliding_window\": 4, \"swiglu_limit\": 0.7}", 0, 0, false);
	check_config("gpt_oss, foreseen, dropout, experts given", "{\"model_type\": \"gpt_oss\", "
	    PUBLISHED EXPERTS ", \"attention_bias\": false, \"swiglu_alpha\": 1.1,"
	    "\"lambda_ahead\": 0.7, \"lookahead_steps\": 1}", 0.2, 0, true);
	check_config("olmoe, clipped", "{\"model_type\": \"olmoe\", " PUBLISHED EXPERTS
	    ", \"clip_qkv\": 0.8}", 0, 0, false);
	check_config("qwen2_moe, misses", "{\"model_type\": \"qwen2_moe\", " PUBLISHED EXPERTS
	    ", \"moe_intermediate_size\": 10, \"shared_expert_intermediate_size\": 9}", 0, 0.4,
	    false);
}

int main(void)
{
	pool_init(2);
	check_config("format 1, hybrid", "{" COMMON ", \"lambda_ahead\": 0.9, \"rope_dim\": 3, "
	    "\"lookahead_steps\": 2}", 0, 0, false);
	check_config("format 1, dropout and misses",
	    "{" COMMON ", \"lambda_ahead\": 0.9, \"rope_dim\": 4, \"lookahead_steps\": 3}", 0.2,
	    0.4, false);
	check_config("format 2, hybrid", "{" COMMON ", \"lambda_ahead\": 0.9, \"chronos_format\": "
	    "2, \"rope_dim\": 4, \"lookahead_steps\": 2}", 0, 0, false);
	check_config("format 2, dropout and misses",
	    "{" COMMON ", \"lambda_ahead\": 0.9, \"chronos_format\": 2, \"rope_dim\": 2,"
	    "\"lookahead_steps\": 1, \"num_shared_experts\": 2, \"tie_word_embeddings\": false}",
	    0.3, 0.5, false);
	check_config("format 2, full attention, dense layer, no shared expert",
	    "{" COMMON ", \"chronos_format\": 2, \"rope_dim\": 4,"
	    "\"use_hybrid_attention\": false, \"num_shared_experts\": 0, \"norm_topk_prob\": false,"
	    " \"lookahead_steps\": 0,"
	    "\"mlp_layer_types\": [\"dense\", \"sparse\", \"sparse\"]}", 0, 0, false);
	check_config("format 2, a dense layer between, foreseen across it",
	    "{" COMMON ", \"chronos_format\": 2, \"rope_dim\": 4,"
	    "\"lambda_ahead\": 1.7, \"mlp_layer_types\": [\"sparse\", \"dense\", \"sparse\"]}", 0,
	    0, false);
	check_config("format 2, nothing foreseen",
	    "{" COMMON ", \"chronos_format\": 2, \"rope_dim\": 4}", 0, 0, false);
	check_config("format 2, yarn", "{" COMMON ", \"chronos_format\": 2, \"rope_dim\": 4, "
	    "\"lookahead_steps\": 2,"
	    "\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4, "
	    "\"original_max_position_embeddings\": 8,"
	    "\"beta_fast\": 32, \"beta_slow\": 1, \"attention_factor\": 1.1}}", 0, 0, false);
	check_config("format 2, experts given", "{" COMMON ", \"lambda_ahead\": 0.9, "
	    "\"chronos_format\": 2, \"rope_dim\": 4, \"lookahead_steps\": 2}",
	    0, 0, true);
	check_config("format 1, experts given, plain weights",
	    "{" COMMON ", \"rope_dim\": 3, \"lookahead_steps\": 2,"
	    "\"norm_topk_prob\": false}", 0, 0, true);
	check_families();
	return tap_done();
}
