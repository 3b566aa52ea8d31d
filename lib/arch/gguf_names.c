#include "arch/gguf_names.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arch/config.h"

#define BLK "blk.%d."

/* ---- tensors ---- */

#define ENDS_OF(norm) \
	{ P_EMBED, "token_embd.weight", 0 }, { P_NORM, "output_norm.weight", norm }, \
	{ P_HEAD, "output.weight", 0 }, { P_IN_NORM, BLK "attn_norm.weight", norm }
#define ENDS ENDS_OF(0)
#define NORM2(name) { P_POST_NORM, BLK name ".weight", 0 }
#define QKV(how) \
	{ P_Q, BLK "attn_q.weight", how }, { P_K, BLK "attn_k.weight", how }, \
	{ P_V, BLK "attn_v.weight", 0 }, { P_O, BLK "attn_output.weight", 0 }, \
	{ P_Q_BIAS, BLK "attn_q.bias", how }, { P_K_BIAS, BLK "attn_k.bias", how }, \
	{ P_V_BIAS, BLK "attn_v.bias", 0 }, { P_O_BIAS, BLK "attn_output.bias", 0 }
#define QK_NORMS(how) \
	{ P_QNORM, BLK "attn_q_norm.weight", how }, { P_KNORM, BLK "attn_k_norm.weight", how }
#define DENSE \
	{ P_MLP_GATE, BLK "ffn_gate.weight", 0 }, { P_MLP_UP, BLK "ffn_up.weight", 0 }, \
	{ P_MLP_DOWN, BLK "ffn_down.weight", 0 }
#define EXPERTS \
	{ P_GATE, BLK "ffn_gate_inp.weight", 0 }, \
	{ P_EXP_GATE, BLK "ffn_gate_exps.weight", AT_STACKED }, \
	{ P_EXP_UP, BLK "ffn_up_exps.weight", AT_STACKED }, \
	{ P_EXP_GATE, BLK "ffn_gate_up_exps.weight", AT_STACKED | AT_FIRST }, \
	{ P_EXP_UP, BLK "ffn_gate_up_exps.weight", AT_STACKED | AT_SECOND }, \
	{ P_EXP_DOWN, BLK "ffn_down_exps.weight", AT_STACKED }
/* as files were written before experts were stacked */
#define EXPERTS_APART \
	{ P_EXP_GATE, BLK "ffn_gate.%d.weight", 0 }, { P_EXP_UP, BLK "ffn_up.%d.weight", 0 }, \
	{ P_EXP_DOWN, BLK "ffn_down.%d.weight", 0 }
#define SHARED \
	{ P_SH_GATE, BLK "ffn_gate_shexp.weight", 0 }, { P_SH_UP, BLK "ffn_up_shexp.weight", 0 }, \
	{ P_SH_DOWN, BLK "ffn_down_shexp.weight", 0 }, \
	{ P_SH_SIGMOID, BLK "ffn_gate_inp_shexp.weight", 0 }
#define ROUTER_BIAS \
	{ P_GATE_BIAS, BLK "exp_probs_b.bias", 0 }, { P_GATE_BIAS, BLK "exp_probs_b", 0 }

static const struct param_name llama_names[] = { ENDS, NORM2("ffn_norm"), QKV(AT_PAIRS), DENSE,
	EXPERTS, EXPERTS_APART, { 0 } };
static const struct param_name plain_names[] = { ENDS, NORM2("ffn_norm"), QKV(0), QK_NORMS(0),
	DENSE, EXPERTS, SHARED, { 0 } };
static const struct param_name deepseek_names[] = { ENDS, NORM2("ffn_norm"), DENSE, EXPERTS,
	SHARED, ROUTER_BIAS, { P_Q, BLK "attn_q.weight", 0 }, { P_QA, BLK "attn_q_a.weight", 0 },
	{ P_QA_NORM, BLK "attn_q_a_norm.weight", 0 }, { P_QB, BLK "attn_q_b.weight", 0 },
	{ P_KVA, BLK "attn_kv_a_mqa.weight", 0 }, { P_KVA_NORM, BLK "attn_kv_a_norm.weight", 0 },
	{ P_KVB, BLK "attn_k_b.weight", AT_KV_APART },
	{ P_KVB, BLK "attn_v_b.weight", AT_KV_APART },
	{ P_KVB, BLK "attn_kv_b.weight", 0 }, { P_O, BLK "attn_output.weight", 0 },
	{ 0 } };
static const struct param_name glm_names[] = { ENDS, NORM2("post_attention_norm"), QKV(0),
	QK_NORMS(0), DENSE, EXPERTS, SHARED, ROUTER_BIAS, { 0 } };

static const struct param_name gpt_oss_names[] = { ENDS, NORM2("post_attention_norm"),
	NORM2("ffn_norm"), QKV(0), EXPERTS, { P_SINKS, BLK "attn_sinks.weight", 0 },
	{ P_LOGIT_BIAS, BLK "ffn_gate_inp.bias", 0 },
	{ P_EXP_GATE_BIAS, BLK "ffn_gate_exps.bias", 0 },
	{ P_EXP_UP_BIAS, BLK "ffn_up_exps.bias", 0 },
	{ P_EXP_DOWN_BIAS, BLK "ffn_down_exps.bias", 0 }, { 0 } };

/* Norms of 1 + w, and A as it is meant. */
#define DELTA(tiled) \
	ENDS_OF(AT_PLUS_ONE), QKV(0), QK_NORMS(AT_PLUS_ONE), EXPERTS, SHARED, DENSE, \
	{ P_POST_NORM, BLK "post_attention_norm.weight", AT_PLUS_ONE }, \
	{ P_DELTA_LOG_A, BLK "ssm_a", AT_EXP | (tiled) }, \
	{ P_DELTA_LOG_A, BLK "ssm_a.weight", AT_EXP | (tiled) }, \
	{ P_DELTA_DT, BLK "ssm_dt.bias", tiled }, { P_DELTA_NORM, BLK "ssm_norm.weight", 0 }, \
	{ P_CONV, BLK "ssm_conv1d.weight", tiled }, \
	{ P_MIX, BLK "ssm_out.weight", (tiled) ? (tiled) | AT_ACROSS : 0 }
static const struct param_name qwen3next_names[] = { DELTA(0),
	{ P_DELTA_QKVZ, BLK "attn_qkv.weight", AT_QKVZ_APART },
	{ P_DELTA_QKVZ, BLK "attn_gate.weight", AT_QKVZ_APART },
	{ P_DELTA_QKVZ, BLK "ssm_in.weight", 0 },
	{ P_DELTA_BA, BLK "ssm_ba.weight", 0 }, { 0 } };
static const struct param_name qwen35moe_names[] = { DELTA(AT_TILED),
	{ P_DELTA_QKV, BLK "attn_qkv.weight", AT_TILED },
	{ P_DELTA_Z, BLK "attn_gate.weight", AT_TILED },
	{ P_DELTA_B, BLK "ssm_beta.weight", AT_TILED },
	{ P_DELTA_A, BLK "ssm_alpha.weight", AT_TILED }, { 0 } };

const char *gguf_harmless(const char *tensor, int layers)
{
	int l = -1, end = 0;

	if (sscanf(tensor, "blk.%9d.%n", &l, &end) != 1 || end == 0)
		return NULL;
	if (l >= layers || strncmp(tensor + end, "nextn.", 6) == 0)
		return "multi-token prediction";
	return strcmp(tensor + end, "attn_rot_embd.weight") == 0 ||
	    strcmp(tensor + end, "attn_rot_embd") == 0 ? "frequencies, which follow from the keys"
	    : NULL;
}

/* ---- keys ---- */

struct reader {
	const struct gguf_facts *f;
	const char *arch;
	json_t *o;			/* the config in the making */
	struct err *e;
	bool failed;
};

static void fail(struct reader *r, const char *key, const char *what)
{
	if (!r->failed)
		err_set(r->e, EX_DATAERR, "%s: %s.%s: %s", r->f->name, r->arch, key, what);
	r->failed = true;
}

static const json_t *get(const struct reader *r, const char *key)
{
	char full[160];

	snprintf(full, sizeof full, "%s.%s", r->arch, key);
	return json_object_get(r->f->meta, full);
}

/* A number; of a list of one a layer, all alike. NULL: absent. */
static const json_t *number(struct reader *r, const char *key)
{
	const json_t *v = get(r, key), *x = v;
	size_t i;
	json_t *y;

	if (json_is_array(v))
		x = json_array_get(v, 0);
	json_array_foreach(v, i, y)
		if (!json_equal(x, y))
			fail(r, key, "differs from layer to layer, which is not supported");
	if (v && !json_is_number(x))
		fail(r, key, "is not a number");
	return v ? x : NULL;
}

static json_int_t count(struct reader *r, const char *key, json_int_t absent)
{
	const json_t *v = number(r, key);

	if (v && !json_is_integer(v))
		fail(r, key, "is not a whole number");
	if (v && (json_integer_value(v) < 0 || json_integer_value(v) > 1 << 30))
		fail(r, key, "is out of range");
	return v ? json_integer_value(v) : absent;
}

static json_int_t needed(struct reader *r, const char *key)
{
	if (!get(r, key))
		fail(r, key, "is missing");
	return count(r, key, 0);
}

static double real_of(struct reader *r, const char *key, double absent)
{
	const json_t *v = number(r, key);

	return v ? json_number_value(v) : absent;
}

static bool truth(struct reader *r, const char *key, bool absent)
{
	const json_t *v = get(r, key);

	if (v && !json_is_boolean(v))
		fail(r, key, "is not true or false");
	return v ? json_is_true(v) : absent;
}

static void set(struct reader *r, const char *key, json_t *v)
{
	json_object_set_new(r->o, key, v);
}

static void set_int(struct reader *r, const char *key, json_int_t v)
{
	set(r, key, json_integer(v));
}

/* A key that is carried over where it is there. */
static void carry(struct reader *r, const char *from, const char *to)
{
	if (get(r, from))
		set_int(r, to, count(r, from, 0));
}

static bool has(const struct reader *r, const char *tensor)
{
	return r->f->has(r->f->ctx, tensor);
}

/* Keys that change nothing here. */
static bool ignored(const char *key)
{
	static const char *const keys[] = { "vocab_size", "context_length", "block_count",
	    "rope.scaling.finetuned", "rope.dimension_sections", "nextn_predict_layers",
	    "rope.scaling.yarn_ext_factor", "attention.causal", "use_parallel_residual",
	    "tensor_data_layout", "interleave_moe_layer_step", "moe_every_n_layers" };

	for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
		if (strcmp(keys[i], key) == 0)
			return true;
	return false;
}

/* ---- positions ---- */

/* As published by Meta with Llama 3.1. */
double gguf_llama3_factor(double wave, double factor, double low, double high, double original)
{
	double smooth = (original / wave - low) / (high - low);

	if (wave > original / low)
		return factor;
	return wave >= original / high ? 1 / ((1 - smooth) / factor + smooth) : 1;
}

/* Are these the factors by which files divide the frequencies of Llama 3, from the parameters of
 * its config? */
static bool llama3_is(const float *got, int n, double theta, double factor, double high,
    double original)
{
	for (int i = 0; i < n; i++) {
		double wave = 2 * M_PI * pow(theta, (double)i / n);
		double f = gguf_llama3_factor(wave, factor, 1, high, original);

		if (fabs((double)got[i] - f) > 1e-5 * f)
			return false;
	}
	return true;
}

static void llama3(struct reader *r, double theta, int width)
{
	const float *freq = r->f->freqs;
	int n = r->f->n_freqs;
	double factor = n > 0 ? (double)freq[n - 1] : 0;

	if (n != width / 2)
		fail(r, "rope.dimension_count", "does not agree with rope_freqs.weight");
	for (int original = 64; !r->failed && original <= 1 << 20; original *= 2)
		for (int high = 2; high <= 8; high++)
			if (llama3_is(freq, n, theta, factor, high, original)) {
				set(r, "rope_scaling", json_pack(
				    "{s:s, s:f, s:f, s:f, s:i}", "rope_type", "llama3", "factor",
				    factor, "low_freq_factor", 1.0, "high_freq_factor",
				    (double)high, "original_max_position_embeddings", original));
				return;
			}
	fail(r, "rope", "the factors of rope_freqs.weight are not those of Llama 3, and others "
	    "are not supported");
}

static void yarn(struct reader *r, double factor)
{
	double all_dim = real_of(r, "rope.scaling.yarn_log_multiplier", 0) * 10;
	json_t *o = json_pack("{s:s, s:f}", "rope_type", "yarn", "factor", factor);

	json_object_set_new(o, "original_max_position_embeddings",
	    json_integer(needed(r, "rope.scaling.original_context_length")));
	json_object_set_new(o, "beta_fast", json_real(real_of(r, "rope.scaling.yarn_beta_fast",
	    32)));
	json_object_set_new(o, "beta_slow", json_real(real_of(r, "rope.scaling.yarn_beta_slow",
	    1)));
	if (all_dim != 0) {		/* published configs have both alike */
		json_object_set_new(o, "mscale", json_real(all_dim));
		json_object_set_new(o, "mscale_all_dim", json_real(all_dim));
	}
	if (real_of(r, "rope.scaling.yarn_attn_factor", 1) != 1 ||
	    real_of(r, "rope.scaling.attn_factor", 1) != 1)
		fail(r, "rope.scaling.attn_factor", "another than 1 is not supported");
	set(r, "rope_scaling", o);
}

/* width: the elements of a head that turn. */
static void positions(struct reader *r, int width)
{
	const json_t *type = get(r, "rope.scaling.type");
	const char *name = type ? json_string_value(type) : "none";
	double theta = real_of(r, "rope.freq_base", 1e4);
	double factor = real_of(r, "rope.scaling.factor", real_of(r, "rope.scale_linear", 0));

	set(r, "rope_theta", json_real(theta));
	if (!type && factor != 0 && factor != 1)
		name = "linear";
	if (r->f->freqs)
		llama3(r, theta, width);
	else if (name && strcmp(name, "linear") == 0 && factor > 0)
		set(r, "rope_scaling", json_pack("{s:s, s:f}", "rope_type", "linear", "factor",
		    factor));
	else if (name && strcmp(name, "yarn") == 0 && factor > 0)
		yarn(r, factor);
	else if (!name || strcmp(name, "none") != 0)
		fail(r, "rope.scaling.type", "is not none, linear or yarn with a factor");
}

/* ---- what all architectures have ---- */

static json_t *token(const struct reader *r, const char *key)
{
	char full[80];
	const json_t *v;

	snprintf(full, sizeof full, "tokenizer.ggml.%s_token_id", key);
	v = json_object_get(r->f->meta, full);
	return json_is_integer(v) && json_integer_value(v) < r->f->vocab ? json_copy((json_t *)v)
	    : NULL;
}

static void set_tokens(struct reader *r)
{
	static const char *const ends[] = { "eos", "eot", "eom" };
	json_t *list = json_array(), *v;

	set(r, "bos_token_id", (v = token(r, "bos")) ? v : json_null());
	set(r, "pad_token_id", (v = token(r, "padding")) ? v : json_null());
	for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
		if ((v = token(r, ends[i])) != NULL)
			json_array_append_new(list, v);
	if (json_array_size(list) > 0)
		set(r, "eos_token_id", list);
	else
		json_decref(list);
}

static int layers_of(struct reader *r)
{
	json_int_t n = needed(r, "block_count") - count(r, "nextn_predict_layers", 0);

	if (n < 1 || n > CFG_MAX_LAYERS)
		fail(r, "block_count", "is out of range");
	return r->failed ? 0 : (int)n;
}

static void begin(struct reader *r, const char *type)
{
	json_int_t heads = needed(r, "attention.head_count");

	set(r, "model_type", json_string(type));
	set_int(r, "vocab_size", r->f->vocab);
	set_int(r, "hidden_size", needed(r, "embedding_length"));
	set_int(r, "num_hidden_layers", layers_of(r));
	set_int(r, "num_attention_heads", heads);
	set_int(r, "max_position_embeddings", needed(r, "context_length"));
	set(r, "rms_norm_eps", json_real(real_of(r, "attention.layer_norm_rms_epsilon", 1e-6)));
	set(r, "tie_word_embeddings", json_boolean(!has(r, "output.weight")));
	set_tokens(r);
	if (get(r, "attention.head_count_kv"))
		set_int(r, "num_key_value_heads", count(r, "attention.head_count_kv", 0));
}

/* Heads of grouped queries; returns the width of one. */
static int heads(struct reader *r)
{
	json_int_t n = needed(r, "attention.head_count");
	json_int_t width = count(r, "attention.key_length",
	    n > 0 ? needed(r, "embedding_length") / n : 0);

	if (count(r, "attention.value_length", width) != width)
		fail(r, "attention.value_length", "another than attention.key_length is not "
		    "supported");
	set_int(r, "head_dim", width);
	return (int)width;
}

/* All of a head turns. */
static void whole(struct reader *r)
{
	int width = heads(r);

	if (count(r, "rope.dimension_count", width) != width)
		fail(r, "rope.dimension_count", "another than the width of a head is not "
		    "supported");
	positions(r, width);
}

/* A part of a head turns. */
static void partly(struct reader *r)
{
	int width = heads(r), turned = (int)count(r, "rope.dimension_count", width);

	set(r, "partial_rotary_factor", json_real(width > 0 ? (double)turned / width : 1));
	positions(r, turned);
}

/* ---- the architectures ---- */

static void llama(struct reader *r)
{
	bool experts = count(r, "expert_count", 0) > 0;

	begin(r, experts ? "mixtral" : "llama");
	whole(r);
	set_int(r, "intermediate_size", needed(r, "feed_forward_length"));
	if (!experts) {
		set(r, "attention_bias", json_boolean(has(r, "blk.0.attn_q.bias")));
		return;
	}
	set_int(r, "num_local_experts", needed(r, "expert_count"));
	set_int(r, "num_experts_per_tok", needed(r, "expert_used_count"));
	carry(r, "attention.sliding_window", "sliding_window");
}

static void qwen2(struct reader *r)
{
	begin(r, "qwen2");
	whole(r);
	set_int(r, "intermediate_size", needed(r, "feed_forward_length"));
}

static void qwen3(struct reader *r)
{
	begin(r, "qwen3");
	whole(r);
	set_int(r, "intermediate_size", needed(r, "feed_forward_length"));
	set(r, "attention_bias", json_false());
}

static void experts(struct reader *r, const char *width, bool renormalised)
{
	set_int(r, "num_experts", needed(r, "expert_count"));
	set_int(r, "num_experts_per_tok", needed(r, "expert_used_count"));
	if (width)
		set_int(r, "moe_intermediate_size", needed(r, width));
	set(r, "norm_topk_prob", json_boolean(truth(r, "expert_weights_norm", renormalised)));
	if (real_of(r, "expert_weights_scale", 1) != 1 && real_of(r, "expert_weights_scale", 1) !=
	    0)
		fail(r, "expert_weights_scale", "another than 1 is not supported");
}

static void qwen2moe(struct reader *r)
{
	begin(r, "qwen2_moe");
	whole(r);
	set_int(r, "intermediate_size", count(r, "feed_forward_length", 1));
	experts(r, "expert_feed_forward_length", false);
	set_int(r, "shared_expert_intermediate_size",
	    needed(r, "expert_shared_feed_forward_length"));
}

static void qwen3moe(struct reader *r)
{
	begin(r, "qwen3_moe");
	whole(r);
	set_int(r, "intermediate_size", count(r, "feed_forward_length", 1));
	experts(r, "expert_feed_forward_length", true);
}

static void olmoe(struct reader *r)
{
	begin(r, "olmoe");
	whole(r);
	set_int(r, "intermediate_size", needed(r, "feed_forward_length"));
	experts(r, NULL, false);
	if (get(r, "attention.clamp_kqv"))
		set(r, "clip_qkv", json_real(real_of(r, "attention.clamp_kqv", 0)));
}

/* The experts of DeepSeek and those after it. */
static void routed(struct reader *r, bool sigmoid)
{
	json_int_t groups = count(r, "expert_group_count", 1);

	set_int(r, "n_routed_experts", needed(r, "expert_count"));
	set_int(r, "num_experts_per_tok", needed(r, "expert_used_count"));
	set_int(r, "moe_intermediate_size", needed(r, "expert_feed_forward_length"));
	set_int(r, "n_shared_experts", count(r, "expert_shared_count", 0));
	set_int(r, "first_k_dense_replace", count(r, "leading_dense_block_count", 0));
	set_int(r, "n_group", groups > 1 ? groups : 1);
	set_int(r, "topk_group", groups > 1 ? count(r, "expert_group_used_count", groups) : 1);
	set(r, "routed_scaling_factor", json_real(real_of(r, "expert_weights_scale", 1)));
	set(r, "norm_topk_prob", json_boolean(truth(r, "expert_weights_norm", sigmoid)));
	set_int(r, "intermediate_size", needed(r, "feed_forward_length"));
}

static void deepseek2(struct reader *r)
{
	json_int_t gating = count(r, "expert_gating_func", 1);
	json_int_t turned = needed(r, "rope.dimension_count");
	json_int_t key = count(r, "attention.key_length_mla",
	    count(r, "attention.key_length", 192));
	json_int_t value = count(r, "attention.value_length_mla",
	    count(r, "attention.value_length", 128));

	if (gating != 1 && gating != 2)
		fail(r, "expert_gating_func", "is neither 1 (softmax) nor 2 (sigmoid)");
	begin(r, gating == 2 ? "deepseek_v3" : "deepseek_v2");
	json_object_del(r->o, "num_key_value_heads");	/* 1 where the latent is attended to */
	set(r, "q_lora_rank", json_null());	/* absent means another thing to others */
	if (count(r, "attention.q_lora_rank", 0) > 0)	/* 0: the queries are not from a latent */
		carry(r, "attention.q_lora_rank", "q_lora_rank");
	set_int(r, "kv_lora_rank", needed(r, "attention.kv_lora_rank"));
	set_int(r, "qk_rope_head_dim", turned);
	set_int(r, "qk_nope_head_dim", key - turned);
	set_int(r, "v_head_dim", value);
	routed(r, gating == 2);
	if (gating == 1 && count(r, "expert_group_count", 1) > 1)
		set(r, "topk_method", json_string("group_limited_greedy"));
	if (gating == 1 && truth(r, "expert_weights_norm", false))
		fail(r, "expert_weights_norm", "true is not supported with softmax");
	positions(r, (int)turned);
}

static void glm4moe(struct reader *r)
{
	begin(r, "glm4_moe");
	partly(r);
	routed(r, true);
	if (count(r, "expert_gating_func", 2) != 2)
		fail(r, "expert_gating_func", "is not 2 (sigmoid)");
	set(r, "attention_bias", json_boolean(has(r, "blk.0.attn_q.bias")));
	set(r, "use_qk_norm", json_boolean(has(r, "blk.0.attn_q_norm.weight")));
}

static void gpt_oss(struct reader *r)
{
	json_t *rope;

	begin(r, "gpt_oss");
	whole(r);
	set_int(r, "intermediate_size", needed(r, "expert_feed_forward_length"));
	set_int(r, "num_local_experts", needed(r, "expert_count"));
	set_int(r, "num_experts_per_tok", needed(r, "expert_used_count"));
	set_int(r, "sliding_window", needed(r, "attention.sliding_window"));
	rope = json_object_get(r->o, "rope_scaling");
	if (rope)
		json_object_set_new(rope, "truncate", json_false());
	else
		set(r, "rope_parameters", json_pack("{s:s}", "rope_type", "default"));
}

/* Which layers have the gated delta rule. */
static void delta_layers(struct reader *r)
{
	const json_t *list = get(r, "attention.recurrent_layers");
	int n = layers_of(r);
	json_t *types = json_array();

	if (list && json_array_size(list) < (size_t)n)
		fail(r, "attention.recurrent_layers", "is not a list of one a layer");
	for (int l = 0; l < n; l++) {
		json_int_t every = count(r, "full_attention_interval", 4);
		bool delta = list ? json_is_true(json_array_get(list, (size_t)l)) ||
		    json_integer_value(json_array_get(list, (size_t)l)) > 0
		    : every > 0 && (l + 1) % every != 0;

		json_array_append_new(types, json_string(delta ? "linear_attention"
		    : "full_attention"));
	}
	set(r, "layer_types", types);
}

static void delta(struct reader *r, const char *type)
{
	json_int_t inner = needed(r, "ssm.inner_size"), n = needed(r, "ssm.time_step_rank");

	begin(r, type);
	partly(r);
	delta_layers(r);
	set_int(r, "intermediate_size", count(r, "feed_forward_length", 1));
	experts(r, "expert_feed_forward_length", true);
	set_int(r, "shared_expert_intermediate_size",
	    needed(r, "expert_shared_feed_forward_length"));
	set_int(r, "linear_conv_kernel_dim", needed(r, "ssm.conv_kernel"));
	set_int(r, "linear_key_head_dim", needed(r, "ssm.state_size"));
	set_int(r, "linear_num_key_heads", needed(r, "ssm.group_count"));
	set_int(r, "linear_num_value_heads", n);
	set_int(r, "linear_value_head_dim", n > 0 ? inner / n : 0);
}

static void qwen3next(struct reader *r)
{
	delta(r, "qwen3_next");
}

static void qwen35moe(struct reader *r)
{
	delta(r, "qwen3_5_moe_text");
}

#define COMMON "embedding_length", "feed_forward_length", "attention.head_count", \
	"attention.head_count_kv", "attention.layer_norm_rms_epsilon", "attention.key_length", \
	"attention.value_length", "rope.dimension_count", "rope.freq_base", "rope.scaling.type", \
	"rope.scaling.factor", "rope.scale_linear", "rope.scaling.attn_factor", \
	"rope.scaling.original_context_length", "rope.scaling.yarn_attn_factor", \
	"rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", \
	"rope.scaling.yarn_log_multiplier"
#define ROUTED "expert_count", "expert_used_count", "expert_feed_forward_length", \
	"expert_weights_norm", "expert_weights_scale"

#define DELTA_KEYS ROUTED, "expert_shared_feed_forward_length", "ssm.conv_kernel", \
	"ssm.state_size", "ssm.group_count", "ssm.time_step_rank", "ssm.inner_size", \
	"full_attention_interval", "attention.recurrent_layers"

static const struct architecture {
	const char *name;
	void (*read)(struct reader *r);
	const struct param_name *names;
	const char *keys[16];		/* besides those of all */
} all[] = {
	{ "llama", llama, llama_names, { "expert_count", "expert_used_count",
	    "attention.sliding_window" } },
	{ "qwen2", qwen2, plain_names, { NULL } },
	{ "qwen3", qwen3, plain_names, { NULL } },
	{ "qwen2moe", qwen2moe, plain_names, { ROUTED, "expert_shared_feed_forward_length" } },
	{ "qwen3moe", qwen3moe, plain_names, { ROUTED } },
	{ "olmoe", olmoe, plain_names, { ROUTED, "attention.clamp_kqv" } },
	{ "deepseek2", deepseek2, deepseek_names, { "attention.q_lora_rank",
	    "attention.kv_lora_rank", "attention.key_length_mla", "attention.value_length_mla" } },
	{ "glm4moe", glm4moe, glm_names, { NULL } },
	{ "gpt-oss", gpt_oss, gpt_oss_names, { ROUTED, "attention.sliding_window" } },
	{ "qwen3next", qwen3next, qwen3next_names, { DELTA_KEYS } },
	{ "qwen35moe", qwen35moe, qwen35moe_names, { DELTA_KEYS } },
};

static const char *const common_keys[] = { COMMON };
static const char *const deepseek_keys[] = { ROUTED, "expert_shared_count", "expert_group_count",
	"expert_group_used_count", "expert_gating_func", "leading_dense_block_count" };

static bool listed(const char *const *list, size_t n, const char *key)
{
	for (size_t i = 0; i < n && list[i]; i++)
		if (strcmp(list[i], key) == 0)
			return true;
	return false;
}

static bool known(const struct architecture *a, const char *key)
{
	bool deepseek = a->read == deepseek2 || a->read == glm4moe;

	return listed(common_keys, sizeof common_keys / sizeof *common_keys, key) ||
	    listed(a->keys, sizeof a->keys / sizeof *a->keys, key) || ignored(key) ||
	    (deepseek && listed(deepseek_keys, sizeof deepseek_keys / sizeof *deepseek_keys, key));
}

static void check_keys(struct reader *r, const struct architecture *a)
{
	size_t n = strlen(a->name);
	const char *key;
	json_t *v;

	json_object_foreach((json_t *)r->f->meta, key, v)
		if (strncmp(key, a->name, n) == 0 && key[n] == '.' && !known(a, key + n + 1))
			fail(r, key + n + 1, "is not supported");
}

static const struct architecture *find(const struct gguf_facts *f, struct err *e)
{
	const char *name = json_string_value(json_object_get(f->meta, "general.architecture"));
	char list[256] = "";

	for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
		if (name && strcmp(all[i].name, name) == 0)
			return &all[i];
		snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", i ? ", " : "",
		    all[i].name);
	}
	err_set(e, EX_DATAERR, "%s: architecture \"%.40s\" is not supported; supported are %s",
	    f->name, name ? name : "", list);
	return NULL;
}

const struct param_name *gguf_tensors(const char *arch)
{
	for (size_t i = 0; i < sizeof all / sizeof *all; i++)
		if (strcmp(all[i].name, arch) == 0)
			return all[i].names;
	return NULL;
}

json_t *gguf_config(const struct gguf_facts *f, const struct param_name **names, struct err *e)
{
	const struct architecture *a = find(f, e);
	struct reader r = { .f = f, .e = e };

	if (!a)
		return NULL;
	r.arch = a->name;
	r.o = json_object();
	check_keys(&r, a);
	a->read(&r);
	*names = a->names;
	if (!r.failed)
		return r.o;
	json_decref(r.o);
	return NULL;
}
