/* config.json: defaults, checks, overrides; the list of parameters against the golden models'
 * own headers. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "arch/config.h"
#include "base/file.h"
#include "tap.h"

static int load(struct config *c, const char *text, struct err *e)
{
	json_t *o = json_loads(text, 0, NULL);
	int r = config_from_json(c, o, 0, NULL, e);

	json_decref(o);
	return r;
}

static void refused(const char *text, const char *why)
{
	struct err e = { 0 };
	struct config c;
	int r = load(&c, text, &e);

	if (!ok(r < 0 && e.status == EX_DATAERR && strstr(e.msg, why), "refused: %s", text))
		printf("# got %d, %s\n", r, e.msg);
	if (r == 0)
		config_free(&c);
}

static void test_defaults(void)
{
	struct err e = { 0 };
	struct config c;
	struct params ps;

	if (!ok(load(&c, "{}", &e) == 0, "an empty object is the reference's default model"))
		return;
	ok(c.format == 1 && c.hidden_size == 768 && c.head_dim == 96 && c.intermediate_size ==
	    2432 &&
	    c.moe_intermediate_size == 2432 && c.rope_dim == 32 && c.num_sparse == 8,
	    "default sizes");
	ok(c.block[0].attn == ATTN_MLA && c.block[1].attn == ATTN_SLIDING &&
	    c.block[7].attn == ATTN_SLIDING,
	    "even layers MLA, odd sliding");
	ok(!c.lookahead_per_layer && config_lookahead_rows(&c) == 12,
	    "format 1 predicts the layer mean");
	ok(c.dropout == 0 && c.fallback_mask_prob == 0 && c.lambda_lookahead == 0.1,
	    "stage values");
	ok(params_build(&ps, &c, &e) == 0 && ps.count == 241426816,
	    "default model has 241,426,816 parameters");
	params_free(&ps);
	config_free(&c);
}

static void test_formats(void)
{
	struct err e = { 0 };
	struct config c;

	ok(load(&c, "{\"hidden_size\":256,\"num_attention_heads\":8,\"rope_dim\":32}", &e) == 0 &&
	    c.rope_dim == 31 &&
	    c.intermediate_size == 832, "format 1 clamps rope_dim, odd widths included");
	config_free(&c);
	ok(load(&c, "{\"chronos_format\":2,\"hidden_size\":256,\"num_attention_heads\":8}", &e) ==
	    0 && c.rope_dim == 16 &&
	    c.lookahead_per_layer && config_lookahead_rows(&c) == 3 * 4 * 8,
	    "format 2: even rope_dim, head per layer");
	config_free(&c);
	ok(load(&c, "{\"use_hybrid_attention\":false,\"use_moe\":false}", &e) == 0 &&
	    c.block[0].attn == ATTN_FULL &&
	    c.num_sparse == 0 && config_lookahead_rows(&c) == 0, "dense model with full attention");
	config_free(&c);
	ok(load(&c, "{\"vocab_size\":2}", &e) == 0 && c.bos_token_id == 1 && c.eos_token_id == -1,
	    "a default id beyond the vocabulary is none");
	config_free(&c);
}

static void test_qwen(void)
{
	static const char text[] = "{\"model_type\":\"qwen3_moe\",\"vocab_size\":151936,"
	    "\"hidden_size\":2048,"
	    "\"num_hidden_layers\":6,\"num_attention_heads\":32,\"num_key_value_heads\":4,"
	    "\"head_dim\":128,"
	    "\"intermediate_size\":6144,\"moe_intermediate_size\":768,\"num_experts\":128,"
	    "\"num_experts_per_tok\":8,"
	    "\"decoder_sparse_step\":2,\"mlp_only_layers\":[1],"
	    "\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4.0,"
	    "\"original_max_position_embeddings\":32768},\"tie_word_embeddings\":false,"
	    "\"sliding_window\":null,"
	    "\"bos_token_id\":151643,\"eos_token_id\":[151645,151643],\"attention_dropout\":0.0}";
	struct err e = { 0 };
	struct config c;
	struct params ps;
	const struct param *p;

	if (!ok(load(&c, text, &e) == 0, "a Qwen3-MoE config loads"))
		printf("# %s\n", e.msg);
	ok(c.block[0].attn == ATTN_FULL && !c.block[0].sparse && !c.block[1].sparse &&
	    c.block[3].sparse &&
	    c.num_sparse == 2,
	    "decoder_sparse_step and mlp_only_layers");
	ok(c.num_shared_experts == 0 && c.lookahead_steps == 0 && !c.norm_topk_prob &&
	    c.eos_token_id == 151645 &&
	    c.pad_token_id == -1, "its own meaning of absent keys");
	ok(c.format == 2 && c.lookahead_per_layer, "trained by the terms of format 2");
	ok(c.rope.kind == ROPE_YARN && c.rope.factor == 4 && c.rope.original_max == 32768 &&
	    fabs(c.rope.magnitude - 1.1386294) < 1e-6,
	    "yarn");
	ok(params_build(&ps, &c, &e) == 0 && params_find(&ps, "lm_head.weight") &&
	    params_find(&ps, "model.layers.0.mlp.gate_proj.weight") &&
	    !params_find(&ps, "model.layers.0.mlp.gate.weight"),
	    "untied head, dense layer");
	p = params_get(&ps, P_EXP_DOWN, 5, 127);
	ok(p && strcmp(p->name, "model.layers.5.mlp.experts.127.down_proj.weight") == 0 &&
	    p->rows == 2048 && p->cols == 768,
	    "params_get of the last expert");
	ok(!params_get(&ps, P_EXP_DOWN, 5, 128) && !params_get(&ps, P_EXP_DOWN, 0, 0) &&
	    !params_get(&ps, P_SH_GATE, 5, 0) &&
	    !params_get(&ps, P_EXP_UP, 6, 0) && !params_get(&ps, P_QNOPE, 0, -1),
	    "params_get of what is not there");
	params_free(&ps);
	config_free(&c);
}

/* Frequencies and magnitude of the positions of a head of 16, against those of the formulas of
 * transformers (modeling_rope_utils), worked out by themselves. */
static void positions(const char *more, const double want[8], double magnitude)
{
	char text[600];
	struct err e = { 0 };
	struct config c;
	real table[2 * 2 * 16];
	int bad = 0;

	snprintf(text, sizeof text, "{\"model_type\":\"qwen3_moe\",\"hidden_size\":64,"
	    "\"num_attention_heads\":4,\"head_dim\":16,\"num_hidden_layers\":2,%s}", more);
	if (load(&c, text, &e) < 0) {
		ok(0, "%s: %s", more, e.msg);
		return;
	}
	rope_table(&c.block[1].rope, 2, table);
	for (int i = 0; i < 16; i++) {
		double cosine = table[32 + i], sine = table[48 + i], f = atan2(sine, cosine);

		bad += !(fabs(f / want[i % 8] - 1) < 1e-5) ||
		    !(fabs(hypot(cosine, sine) / magnitude - 1) < 1e-6);
	}
	ok(bad == 0, "positions of %s", more);
	config_free(&c);
}

static void test_positions(void)
{
	positions("\"max_position_embeddings\":512,\"rope_scaling\":{\"rope_type\":\"yarn\","
	    "\"factor\":8.0,\"original_max_position_embeddings\":1024}", (double[]){ 1, 0.316227766,
	    0.078125, 0.0177878118, 0.0034375, 0.000395284708, 0.000125, 3.95284708e-05 },
	    1.20794415);
	positions("\"rope_parameters\":{\"rope_theta\":150000.0,\"rope_type\":\"yarn\","
	    "\"factor\":32.0,\"original_max_position_embeddings\":64,\"truncate\":false}",
	    (double[]){ 1, 0.0852490992, 0.00158791484, 0.000357944587, 8.0687153e-05,
	    1.81883367e-05, 4.09997848e-06, 9.2420895e-07 }, 1.34657359);
	positions("\"max_position_embeddings\":4096,\"rope_scaling\":{\"type\":\"yarn\","
	    "\"factor\":40,\"original_max_position_embeddings\":512,\"mscale\":0.7,"
	    "\"mscale_all_dim\":1.0}", (double[]){ 1, 0.239147248, 0.05125, 0.00849862121, 0.00025,
	    7.90569415e-05, 2.5e-05, 7.90569415e-06 }, 0.919155995);
	positions("\"max_position_embeddings\":4096,\"rope_scaling\":{\"type\":\"yarn\","
	    "\"original_max_position_embeddings\":512,\"attention_factor\":null}", (double[]){ 1,
	    0.247052942, 0.05625, 0.0108703295, 0.00125, 0.000395284708, 0.000125,
	    3.95284708e-05 }, 1.20794415);
	positions("\"rope_theta\":500000.0,\"rope_scaling\":{\"rope_type\":\"llama3\","
	    "\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
	    "\"original_max_position_embeddings\":8192}", (double[]){ 1, 0.193922745, 0.0376060309,
	    0.00729266474, 0.000524846161, 3.4281022e-05, 6.64786987e-06, 1.28917317e-06 }, 1);
	positions("\"rope_scaling\":{\"type\":\"linear\",\"factor\":4.0}", (double[]){ 0.25,
	    0.0790569415, 0.025, 0.00790569415, 0.0025, 0.000790569415, 0.00025,
	    7.90569415e-05 }, 1);
}

/* The base of the frequencies of a config. */
static double theta(const char *text)
{
	struct err e = { 0 };
	struct config c;
	double t;

	if (load(&c, text, &e) < 0) {
		printf("# %s\n", e.msg);
		return 0;
	}
	t = c.block[0].rope.theta;
	config_free(&c);
	return t;
}

#define LLAMA "{\"model_type\":\"llama\",\"vocab_size\":99,\"hidden_size\":64," \
	"\"num_hidden_layers\":2,\"num_attention_heads\":4,\"intermediate_size\":96," \
	"\"max_position_embeddings\":128,"

/* Which of two objects and keys counts, as in transformers. */
static void test_which_rope(void)
{
	static const char *const set[] = { "rope_theta=77" };
	struct err e = { 0 };
	struct config c;
	json_t *o;

	ok(theta(LLAMA "\"rope_theta\":500,\"rope_parameters\":{\"rope_theta\":3e5}}") == 3e5,
	    "rope_theta of the object goes before that beside it");
	ok(theta(LLAMA "\"rope_theta\":500,\"rope_parameters\":{\"rope_theta\":3e5},"
	    "\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}}") == 500,
	    "with rope_scaling, rope_parameters is not looked at");
	ok(theta(LLAMA "\"rope_scaling\":{},\"rope_parameters\":{\"rope_theta\":7e4}}") == 7e4,
	    "an empty rope_scaling is none");
	o = json_loads(LLAMA "\"rope_parameters\":{\"rope_theta\":3e5}}", 0, NULL);
	ok(config_from_json(&c, o, 1, set, &e) == 0 && c.block[0].rope.theta == 77,
	    "--set rope_theta goes before both");
	config_free(&c);
	json_decref(o);
	ok(load(&c, LLAMA "\"rope_parameters\":{\"rope_type\":\"dynamic\",\"factor\":4.0}}", &e)
	    == 0 && c.block[0].rope.theta == 1e4 && c.block[0].rope.limit == 128,
	    "dynamic positions are the plain ones, up to a limit");
	config_free(&c);
	refused(LLAMA "\"rope_parameters\":{\"rope_type\":\"dynamic\",\"factor\":4.0,"
	    "\"alpha\":9.0}}", "rope_parameters.alpha");
	ok(load(&c, LLAMA "\"rope_interleaved\":false,\"is_llama_config\":true,"
	    "\"transformers.js_config\":{\"kv_cache_dtype\":{}}}", &e) == 0,
	    "what SmolLM2 says besides changes nothing");
	config_free(&c);
}

#define HUNYUAN "{\"model_type\":\"hunyuan_v1_moe\",\"vocab_size\":99,\"hidden_size\":64," \
	"\"num_hidden_layers\":2,\"num_attention_heads\":4,\"intermediate_size\":48," \
	"\"max_position_embeddings\":128,\"num_experts\":8,\"num_shared_expert\":[1,1]," \
	"\"norm_topk_prob\":true,\"dense_list\":[4096,0],\"pool_type\":\"last\"," \
	"\"moe_intermediate_size\":[48,48],\"attention_head_dim\":16,\"rope_scaling\":{" \
	"\"alpha\":1000.0,\"beta_fast\":32,\"beta_slow\":1,\"factor\":1.0,\"mscale\":1.0," \
	"\"mscale_all_dim\":1.0,\"type\":\"dynamic\"},"

/* Configs as they are published, where they say more than transformers writes. */
static void test_published(void)
{
	struct err e = { 0 };
	struct config c;
	json_t *o;

	ok(load(&c, HUNYUAN "\"moe_topk\":[3,3]}", &e) == 0 && c.num_experts_per_tok == 3 &&
	    fabs(c.block[0].rope.theta / (1e4 * pow(1000, 16 / 14.)) - 1) < 1e-12 &&
	    c.block[0].rope.limit == 0, "Hunyuan: lists over layers, alpha %s", e.msg);
	o = config_to_json(&c);
	ok(json_array_size(json_object_get(o, "moe_topk")) == 2, "a list is written back");
	json_decref(o);
	config_free(&c);
	refused(HUNYUAN "\"moe_topk\":[3,2]}", "moe_topk: entry 1");
	refused("{\"text_config\":{\"model_type\":\"llama\"}}", "neither model_type");
	refused("{\"model_type\":\"llava\",\"text_config\":{\"model_type\":\"llama\"}}",
	    "model_type \"llava\"");
	refused(HUNYUAN "\"moe_topk\":3,\"mlp_bias\":true}", "mlp_bias");
	refused("{\"model_type\":\"qwen3_moe\",\"num_hidden_layers\":2,\"layer_types\":"
	    "[\"full_attention\",\"sliding_attention\"]}", "use_sliding_window");
	ok(load(&c, "{\"model_type\":\"qwen3_moe\",\"num_hidden_layers\":2,"
	    "\"use_sliding_window\":true,\"sliding_window\":null}", &e) == 0 &&
	    c.block[0].attn == ATTN_FULL, "a window of null is none");
	config_free(&c);
	ok(load(&c, "{\"model_type\":\"qwen3_moe\",\"num_hidden_layers\":2,"
	    "\"use_sliding_window\":true}", &e) == 0 && c.block[1].window == 4096,
	    "an absent one is the default");
	config_free(&c);
	refused("{\"model_type\":\"qwen2\",\"vocab_size\":99,\"hidden_size\":64,"
	    "\"num_hidden_layers\":1,\"num_attention_heads\":4,\"intermediate_size\":96,"
	    "\"max_position_embeddings\":128,\"layer_types\":[\"sliding_attention\"]}",
	    "use_sliding_window is false");
}

#define V2 "{\"model_type\":\"deepseek_v2\",\"vocab_size\":99,\"hidden_size\":64," \
	"\"num_hidden_layers\":1,\"num_attention_heads\":4,\"intermediate_size\":96," \
	"\"max_position_embeddings\":128,\"n_routed_experts\":8,\"num_experts_per_tok\":2," \
	"\"moe_intermediate_size\":32,\"qk_nope_head_dim\":16," \
	"\"partial_rotary_factor\":1.0,"

static void test_latent(void)
{
	struct err e = { 0 };
	struct config c;
	double m = 0.1 * 0.7 * log(40) + 1;

	refused(V2 "\"qk_rope_head_dim\":9,\"v_head_dim\":16}", "qk_rope_head_dim: 9 is odd");
	refused(V2 "\"qk_rope_head_dim\":8,\"v_head_dim\":32}", "above the 24");
	ok(load(&c, V2 "\"qk_rope_head_dim\":8,\"v_head_dim\":16,\"rope_scaling\":{\"type\":"
	    "\"yarn\",\"factor\":40,\"original_max_position_embeddings\":64,\"mscale\":0.7,"
	    "\"mscale_all_dim\":0.7}}", &e) == 0 &&
	    fabs(c.block[0].scale * sqrt(24) / (m * m) - 1) < 1e-12,
	    "DeepSeek-V2: mscale_all_dim scales the scores %s", e.msg);
	config_free(&c);
}

static void test_head(void)
{
	struct err e = { 0 };
	struct config c;

	ok(load(&c, V2 "\"qk_rope_head_dim\":8,\"v_head_dim\":16,\"lookahead_steps\":2}", &e) ==
	    0 && c.lookahead_steps == 2 && config_lookahead_rows(&c) == 3 * 8,
	    "a published family may have a lookahead head");
	config_free(&c);
	ok(load(&c, LLAMA "\"lookahead_steps\":2}", &e) == 0 && c.lookahead_steps == 0,
	    "a dense one has nothing to look for");
	config_free(&c);
}

static void test_spellings(void)
{
	struct err e = { 0 };
	struct config c;
	json_t *o;

	ok(load(&c,
	    "{\"model_type\":\"qwen3_moe\",\"num_local_experts\":6,\"num_experts_per_tok\":2}",
	    &e) == 0 && c.num_experts == 6, "num_local_experts is num_experts");
	o = config_to_json(&c);
	ok(json_integer_value(json_object_get(o, "num_local_experts")) == 6 &&
	    !json_object_get(o, "num_experts"), "and is written back as it came");
	json_decref(o);
	config_free(&c);
	refused("{\"model_type\":\"qwen3_moe\",\"num_local_experts\":16,\"num_experts\":8}",
	    "differ");
	refused("{\"model_type\":\"qwen3_moe\",\"num_local_experts\":\"8\"}", "num_local_experts");
	refused("{\"architectures\":[\"JambaForCausalLM\"]}", "JambaForCausalLM");
	ok(load(&c, "{\"architectures\":[\"Qwen3MoeForCausalLM\"]}", &e) == 0 &&
	    c.num_experts == 128,
	    "without model_type the architecture names the family");
	config_free(&c);
	refused("{\"model_type\":\"qwen3_moe\",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2,"
	    "\"short_factor\":[1.0]}}", "rope_scaling.short_factor");
	refused("{\"model_type\":\"qwen3_moe\",\"rope_parameters\":{\"rope_type\":\"default\","
	    "\"partial_rotary_factor\":0.5}}", "partial_rotary_factor");
	refused("{\"model_type\":\"llama\",\"hidden_size\":64}", "is missing");
	refused("{\"model_type\":\"qwen3_moe\",\"layer_types\":[\"linear_attention\"],"
	    "\"num_hidden_layers\":1}", "linear_attention");
}

#define SIZES "\"hidden_size\":32,\"num_hidden_layers\":5,\"num_attention_heads\":2," \
	"\"vocab_size\":99,\"max_position_embeddings\":64"
#define NEXT "{\"model_type\":\"qwen3_next\"," SIZES
#define LFM "{\"model_type\":\"lfm2_moe\",\"intermediate_size\":48,\"num_key_value_heads\":1," \
	SIZES ","

/* Which layers have a state, by what a config may say of it; shapes of what is in one. */
static void test_states(void)
{
	struct err e = { 0 };
	struct config c;
	struct params ps;

	if (!ok(load(&c, NEXT ",\"linear_num_key_heads\":2,\"linear_num_value_heads\":6,"
	    "\"linear_key_head_dim\":5,\"linear_value_head_dim\":7,\"num_experts\":8,"
	    "\"num_experts_per_tok\":2}", &e) == 0,
	    "Qwen3-Next: %s", e.msg))
		return;
	ok(c.block[2].attn == ATTN_DELTA && c.block[3].attn == ATTN_FULL && c.block[3].gated &&
	    c.block[4].attn == ATTN_DELTA && c.rope.width == 64, "every fourth layer attends");
	ok(params_build(&ps, &c, &e) == 0 &&
	    params_get(&ps, P_DELTA_QKVZ, 0, -1)->rows == 2 * 2 * 5 + 2 * 6 * 7 &&
	    params_get(&ps, P_CONV, 0, -1)->rows == 2 * 2 * 5 + 6 * 7 &&
	    params_get(&ps, P_CONV, 0, -1)->cols == 4 && !params_get(&ps, P_K, 0, -1) &&
	    !params_get(&ps, P_O, 0, -1) && params_get(&ps, P_Q, 3, -1)->rows == 2 * 2 * 256,
	    "its projections");
	ok(config_trains(&c, &e) < 0 && e.status == EX_UNAVAILABLE, "it is not trained");
	params_free(&ps);
	config_free(&c);
	ok(load(&c, LFM "\"layer_types\":[\"conv\",\"conv\",\"full_attention\",\"conv\",\"conv\"]}",
	    &e) == 0 && c.block[1].attn == ATTN_CONV && c.block[1].taps == 3 &&
	    !c.block[1].sparse && c.block[2].sparse && c.block[2].attn == ATTN_FULL &&
	    c.tie_word_embeddings, "LFM2-MoE: %s", e.msg);
	config_free(&c);
	ok(load(&c, "{\"model_type\":\"lfm2\",\"block_ff_dim\":300,\"block_multiple_of\":64,"
	    "\"num_key_value_heads\":1,\"full_attn_idxs\":[0,4]," SIZES "}", &e) == 0 &&
	    c.block[0].attn == ATTN_FULL && c.block[3].attn == ATTN_CONV && c.block[0].width == 256,
	    "LFM2: %s", e.msg);
	config_free(&c);
}

/* Keys within another object; what is beside it. */
static void test_within(void)
{
#define WITHIN "{\"model_type\":\"qwen3_5_moe\",\"vision_config\":{\"depth\":3},"
	static const char *const set[] = { "num_experts_per_tok=3" };
	struct err e = { 0 };
	struct config c;
	json_t *o = json_loads(WITHIN "\"tie_word_embeddings\":true,\"text_config\":{"
	    "\"eos_token_id\":[7,8],\"tie_word_embeddings\":false," SIZES "}}", 0, NULL), *back;

	ok(config_from_json(&c, o, 1, set, &e) == 0 && c.hidden_size == 32 &&
	    c.num_experts_per_tok == 3 && c.eos_token_id == 7 && c.tie_word_embeddings,
	    "text_config: %s", e.msg);
	back = config_to_json(&c);
	ok(json_integer_value(json_object_get(back, "num_experts_per_tok")) == 3 &&
	    !json_object_get(back, "text_config") && !json_object_get(back, "vision_config") &&
	    json_is_true(json_object_get(back, "tie_word_embeddings")) &&
	    json_array_size(json_object_get(back, "eos_token_id")) == 2,
	    "what is written is the network of text");
	json_decref(back);
	json_decref(o);
	config_free(&c);
	refused(WITHIN "\"hidden_size\":32}", "text_config: is missing");
	refused(WITHIN "\"text_config\":[]}", "text_config: must be an object");
	refused(WITHIN "\"adapters\":[1],\"text_config\":{" SIZES "}}", "adapters");
	refused(WITHIN "\"text_config\":{\"adapters\":[1]," SIZES "}}", "adapters");
	refused(WITHIN "\"tie_word_embeddings\":1,\"text_config\":{" SIZES "}}",
	    "tie_word_embeddings");
	refused(NEXT ",\"linear_num_key_heads\":3,\"linear_num_value_heads\":4}",
	    "linear_num_value_heads: 4 is not a multiple");
	refused(NEXT ",\"linear_conv_kernel_dim\":1}", "linear_conv_kernel_dim");
	refused(NEXT ",\"linear_key_head_dim\":1000000}", "linear_key_head_dim");
	refused(NEXT ",\"full_attention_interval\":0}", "full_attention_interval");
	refused(NEXT ",\"layer_types\":[\"conv\"]}", "layer_types");
	refused(NEXT ",\"hidden_act\":\"gelu\"}", "hidden_act");
	refused("{\"model_type\":\"qwen3_5_text\",\"intermediate_size\":9,"
	    "\"attn_output_gate\":false," SIZES "}", "attn_output_gate");
	refused(LFM "\"full_attn_idxs\":[400]}", "full_attn_idxs");
	refused(LFM "\"conv_L_cache\":1}", "layer_types: is missing");
	refused("{\"model_type\":\"lfm2\",\"intermediate_size\":9,\"num_key_value_heads\":1,"
	    "\"full_attn_idxs\":[400]," SIZES "}", "full_attn_idxs");
}

static void test_refusals(void)
{
	refused("[]", "not a JSON object");
	refused("{\"hidden_size\":0}", "hidden_size");
	refused("{\"hidden_size\":-8}", "hidden_size");
	refused("{\"hidden_size\":1e3}", "must be an integer");
	refused("{\"hidden_size\":99999999999}", "hidden_size");
	refused("{\"hidden_size\":\"768\"}", "must be an integer");
	refused("{\"num_hidden_layers\":257}", "num_hidden_layers");
	refused("{\"num_key_value_heads\":3}", "does not divide");
	refused("{\"hidden_size\":100}", "does not divide hidden_size");
	refused("{\"head_dim\":7}", "odd");
	refused("{\"num_experts_per_tok\":5}", "above num_experts");
	refused("{\"num_hidden_layers\":1,\"mlp_layer_types\":[\"sparse\"],\"num_experts\":0}",
	    "num_experts");
	refused("{\"chronos_format\":3}", "chronos_format");
	refused("{\"chronos_format\":2,\"rope_dim\":31}", "rope_dim");
	refused("{\"chronos_format\":2,\"rope_dim\":96}", "rope_dim");
	refused("{\"layer_types\":[\"full_attention\"]}", "has 1 entries");
	refused("{\"num_hidden_layers\":1,\"layer_types\":[\"linear_attention\"]}",
	    "linear_attention");
	refused("{\"mlp_layer_types\":3}", "must be a list");
	refused("{\"mlp_only_layers\":[300]}", "mlp_only_layers");
	refused("{\"rope_scaling\":{\"type\":\"longrope\",\"factor\":2}}", "yarn");
	refused("{\"hidden_act\":\"gelu\"}", "silu");
	refused("{\"attention_bias\":true}", "only false");
	refused("{\"dropout\":1}", "dropout");
	refused("{\"lookahead_scope\":\"all\"}", "lookahead_scope");
	refused("{\"lookahead_scope\":\"per_layer\"}", "format 1");
	refused("{\"chronos_format\":2,\"lookahead_scope\":\"layer_mean\"}", "format 2");
	refused("{\"eos_token_id\":6400}", "vocab_size");
	refused("{\"tie_word_embeddings\":1}", "true or false");
}

static void test_sets(void)
{
	static const char *const good[] = { "num_experts=16", "chronos_format=2", "dropout=0.25" };
	static const char *const general[] = { "use_hybrid_attention=false", "sliding_window=7" };
	static const char *const unknown[] = { "num_expert=16" }, *const wrong[] =
	    { "num_experts=many" };
	struct err e = { 0 };
	struct config c;
	json_t *o = json_pack("{s:i, s:s}", "num_experts", 8, "_my_note", "kept"), *back;

	ok(config_from_json(&c, o, 3, good, &e) == 0 && c.num_experts == 16 &&
	    c.lookahead_per_layer && c.dropout == 0.25,
	    "--set is applied");
	back = config_to_json(&c);
	ok(json_is_string(json_object_get(back, "_my_note")) &&
	    json_integer_value(json_object_get(back, "num_experts")) == 16 &&
	    json_array_size(json_object_get(back, "layer_types")) == 8,
	    "written back whole, unknown keys kept");
	config_free(&c);
	ok(config_from_json(&c, back, 0, NULL, &e) == 0 && c.num_experts == 16 &&
	    c.rope_dim == 32 && c.num_sparse == 8,
	    "what was written loads again");
	config_free(&c);
	ok(config_from_json(&c, back, 2, general, &e) == 0 && c.block[0].attn == ATTN_FULL &&
	    c.sliding_window_size == 7,
	    "--set of a general key goes before a special one of the file");
	config_free(&c);
	ok(config_from_json(&c, o, 1, unknown, &e) < 0 && e.status == EX_USAGE,
	    "unknown key in --set: %s", e.msg);
	ok(config_from_json(&c, o, 1, wrong, &e) < 0 && e.status == EX_USAGE,
	    "bad value in --set: %s", e.msg);
	json_decref(back);
	json_decref(o);
}

/* Header of a safetensors file, read by hand so that this test leans on no other module of ours. */
static json_t *header(const char *path)
{
	unsigned char n[8];
	FILE *f = fopen(path, "rb");
	json_t *o = NULL;
	char *text;

	if (!f)
		return NULL;
	if (fread(n, 1, 8, f) == 8 && (text = malloc(n[0] | n[1] << 8 | n[2] << 16))) {
		size_t len = fread(text, 1, n[0] | n[1] << 8 | n[2] << 16, f);

		o = json_loadb(text, len, 0, NULL);
		free(text);
	}
	fclose(f);
	return o;
}

static int same_shape(const json_t *entry, const struct param *p)
{
	const json_t *s = json_object_get(entry, "shape");

	return (int)json_array_size(s) == p->ndim && json_integer_value(json_array_get(s, 0)) ==
	    p->rows &&
	    (p->ndim == 1 || json_integer_value(json_array_get(s, 1)) == p->cols);
}

static void test_golden(const char *dir)
{
	struct err e = { 0 };
	struct config c;
	struct params ps;
	char path[512];
	json_t *h;
	int missing = 0, shapes = 0, order = 0;

	snprintf(path, sizeof path, "%s/model.safetensors", dir);
	h = header(path);
	if (!h) {
		ok(1, "golden headers # SKIP no %s", dir);
		return;
	}
	json_object_del(h, "__metadata__");
	ok(config_load(&c, dir, 0, NULL, &e) == 0 && params_build(&ps, &c, &e) == 0, "%s loads",
	    dir);
	for (int i = 0; i < ps.n; i++) {
		const json_t *t = json_object_get(h, ps.p[i].name);

		missing += t == NULL;
		shapes += t && !same_shape(t, &ps.p[i]);
		order += params_find(&ps, ps.p[i].name) != &ps.p[i] ||
		    params_get(&ps, ps.p[i].kind, ps.p[i].layer, ps.p[i].expert) != &ps.p[i] ||
		    ps.p[i].off % 16;
	}
	ok(missing == 0 && ps.n == (int)json_object_size(h), "%s: the same %d names", dir, ps.n);
	ok(shapes == 0, "%s: the same shapes", dir);
	ok(order == 0, "%s: found by name and by place", dir);
	json_decref(h);
	params_free(&ps);
	config_free(&c);
}

static void test_files(void)
{
	struct err e = { 0 };
	struct config c;

	ok(config_load(&c, "no-such-config.json", 0, NULL, &e) < 0 && e.status == EX_NOINPUT,
	    "missing file: %s", e.msg);
	ok(config_load(&c, "tests/tap.h", 0, NULL, &e) < 0 && e.status == EX_DATAERR,
	    "not JSON: %s", e.msg);
}

static void test_dense(void)
{
	struct config c;
	struct err e = {0};

	ok(load(&c, "{\"chronos_format\": 2, \"num_hidden_layers\": 2, \"mlp_layer_types\": "
	    "[\"dense\", \"dense\"], "
	    "\"lookahead_steps\": 2}", &e) == 0 && c.num_sparse == 0 && c.lookahead_steps == 0,
	    "without experts there is nothing to look ahead for");
	config_free(&c);
}

/* Parameters side by side in the array at place `here`, and each once over all places. */
static void test_divide(void)
{
	struct config c;
	struct params ps;
	struct err e = {0};
	int64_t count = 0;
	bool gap = false;

	ok(load(&c, "{\"chronos_format\": 2, \"num_experts\": 6, \"num_shared_experts\": 1, "
	    "\"num_hidden_layers\": 3}", &e) == 0, "a config");
	for (int here = 0; here < 3; here++) {
		int64_t at = 0;

		ok(params_build(&ps, &c, &e) == 0 && params_divide(&ps, 3, here, &e) == 0,
		    "parameters at place %d", here);
		for (int i = 0; i < ps.n; i++) {
			if (!params_here(&ps, &ps.p[i]))
				continue;
			gap |= ps.p[i].off != at;
			at += param_span(&ps.p[i]);
			count += here == 0 || ps.p[i].owner > 0 ? param_size(&ps.p[i]) : 0;
			gap |= (ps.p[i].owner >= 0) != (ps.p[i].kind >= P_EXP_GATE &&
			    ps.p[i].kind <= P_EXP_DOWN);
		}
		gap |= at != ps.total;
		if (here < 2)
			params_free(&ps);
	}
	ok(!gap && count == ps.count, "are side by side, each in one place or in all");
	ok(params_get(&ps, P_EXP_UP, 2, 3)->off == params_get(&ps, P_EXP_UP, 2, 5)->off &&
	    params_get(&ps, P_EXP_UP, 2, 3)->owner == 1, "alike in every place");
	params_free(&ps);
	ok(params_build(&ps, &c, &e) == 0 && params_divide(&ps, 4, 0, &e) < 0 &&
	    e.status == EX_USAGE, "6 experts over 4 places");
	params_free(&ps);
	config_free(&c);
}

int main(void)
{
	const char *shared = getenv("CHR_SHARED");
	char dir[400];

	test_defaults();
	test_formats();
	test_qwen();
	test_dense();
	test_divide();
	test_states();
	test_within();
	test_refusals();
	test_positions();
	test_which_rope();
	test_published();
	test_latent();
	test_head();
	test_spellings();
	test_sets();
	test_files();
	for (int i = 0; i < 2; i++) {
		snprintf(dir, sizeof dir, "%s/golden/%s", shared ? shared : "../shared",
		    i ? "tiny-gqa" : "tiny-hybrid");
		test_golden(dir);
	}
	return tap_done();
}
