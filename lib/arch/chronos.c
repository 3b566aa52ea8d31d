/*
 * chronos: our own models, and those of the reference (chronos_format 1). Keys and defaults are
 * the reference's (man chr-model.5).
 */
#include <limits.h>
#include <math.h>
#include <string.h>

#include "arch/arch.h"
#include "arch/family.h"

#define AT(x) KEY_AT(x)

/* With the reference's defaults. A fallback of 0 below the range is resolved from other values. */
const struct key chronos_keys[] = {
	{ "chronos_format", KEY_INT, AT(format), 1, 1, 2 },
	{ "vocab_size", KEY_INT, AT(vocab_size), 6400, 1, 1 << 28 },
	{ "hidden_size", KEY_INT, AT(hidden_size), 768, 4, 1 << 20 },
	{ "num_hidden_layers", KEY_INT, AT(num_hidden_layers), 8, 1, CFG_MAX_LAYERS },
	{ "num_attention_heads", KEY_INT, AT(num_attention_heads), 8, 1, 1 << 14 },
	{ "num_key_value_heads", KEY_INT, AT(num_key_value_heads), 4, 1, 1 << 14 },
	{ "head_dim", KEY_INT, AT(head_dim), 0, 2, 1 << 16 },
	{ "intermediate_size", KEY_INT, AT(intermediate_size), 0, 0, 1 << 24 },
	{ "moe_intermediate_size", KEY_INT, AT(moe_intermediate_size), 0, 0, 1 << 24 },
	{ "num_experts", KEY_INT, AT(num_experts), 4, 0, 4096 },
	{ "num_experts_per_tok", KEY_INT, AT(num_experts_per_tok), 1, 1, 4096 },
	{ "num_shared_experts", KEY_INT, AT(num_shared_experts), 1, 0, 64 },
	{ "norm_topk_prob", KEY_BOOL, AT(norm_topk_prob), 1, 0, 0 },
	{ "tie_word_embeddings", KEY_BOOL, AT(tie_word_embeddings), 1, 0, 0 },
	{ "kv_latent_dim", KEY_INT, AT(kv_latent_dim), 64, 1, 1 << 20 },
	{ "rope_dim", KEY_INT, AT(rope_dim), 0, 1, 1 << 16 },
	{ "sliding_window_size", KEY_INT, AT(sliding_window_size), 2048, 1, 1 << 30 },
	{ "rope_theta", KEY_REAL, AT(rope_theta), 1e6, 1, 1e18 },
	{ "rms_norm_eps", KEY_REAL, AT(rms_norm_eps), 1e-6, 0, 1 },
	{ "max_position_embeddings", KEY_INT, AT(max_position_embeddings), 32768, 1, 1 << 30 },
	{ "lookahead_steps", KEY_INT, AT(lookahead_steps), 2, 0, 16 },
	{ "lambda_balance", KEY_REAL, AT(lambda_balance), 5e-4, 0, 1e6 },
	{ "lambda_temporal", KEY_REAL, AT(lambda_temporal), 3e-3, 0, 1e6 },
	{ "lambda_lookahead", KEY_REAL, AT(lambda_lookahead), 0.1, 0, 1e6 },
	{ "lambda_lookahead_topk", KEY_REAL, AT(lambda_lookahead_topk), 0.15, 0, 1e6 },
	{ "lambda_lookahead_union", KEY_REAL, AT(lambda_lookahead_union), 0.05, 0, 1e6 },
	{ "lambda_router_locality", KEY_REAL, AT(lambda_router_locality), 0.02, 0, 1e6 },
	{ "lambda_router_anchor", KEY_REAL, AT(lambda_router_anchor), 0, 0, 1e6 },
	{ "lambda_ahead", KEY_REAL, AT(lambda_ahead), 0, 0, 1e6 },
	{ "dropout", KEY_REAL, AT(dropout), 0, 0, 0.99 },
	{ "fallback_mask_prob", KEY_REAL, AT(fallback_mask_prob), 0, 0, 1 },
	{ "bos_token_id", KEY_ID, AT(bos_token_id), 1, -1, INT_MAX },
	{ "eos_token_id", KEY_ID, AT(eos_token_id), 2, -1, INT_MAX },
	{ "pad_token_id", KEY_ID, AT(pad_token_id), 0, -1, INT_MAX },
	{ 0 }
};

static const char *const reads[] = { CHRONOS_READS, NULL };

/* The reference's own keys of its offloading and its page. */
static const struct key_off ignores[] = {
	{ "hidden_act", "\"silu\"" }, { "attention_bias", "false" }, { "mlp_bias", "false" },
	{ "attention_dropout", NULL },
	{ "vram_budget_gb", NULL }, { "prefetch_depth", NULL }, { "pinned_memory_max_fraction",
	NULL },
	{ "storage_format", NULL }, { "cluster_manifest_path", NULL },
	{ "offload_miss_policy_default", NULL }, { "recommended_resident_experts", NULL },
	{ "offload_working_set_experts", NULL }, { "max_seq_len", NULL }, { "max_window_layers",
	NULL },
	{ 0 }
};

const char *const chronos_attn_names[] = {
	[ATTN_MLA] = "mla_attention", [ATTN_SLIDING] = "sliding_attention",
	[ATTN_FULL] = "full_attention",
};

/* In transformers a Qwen3-MoE slides in all layers or in none, whatever layer_types says: one that
 * is not ours must not say something else. */
static int check_published(const struct config *c, const struct keys *k, bool slide)
{
	for (int i = 0; i < c->num_hidden_layers && !keys_get(k, "chronos_format"); i++)
		if ((c->block[i].attn == ATTN_SLIDING) != slide)
			return keys_bad(k, "layer_types", "entry %d is not what use_sliding_window "
			    "and sliding_window say, which alone count in transformers", i);
	return 0;
}

static int read_layer_types(struct config *c, const struct keys *k, bool published)
{
	int type[CFG_MAX_LAYERS];
	const json_t *window = keys_get(k, "sliding_window");
	bool found, hybrid = false, slide = false, slides = false;
	/* null, there: no window; absent: the default one */
	bool none = published && json_is_null(json_object_get(k->o, "sliding_window"));

	if (keys_list(k, "layer_types", c->num_hidden_layers, chronos_attn_names, 3, type, &found) <
	    0 || keys_bool(k, "use_hybrid_attention", !published, &hybrid) < 0 ||
	    keys_bool(k, "use_sliding_window", false, &slide) < 0)
		return -1;
	slide = slide && !none;
	for (int i = 0; i < c->num_hidden_layers; i++) {
		c->block[i].attn = found ? (enum attn_kind)type[i] :
		    hybrid ? (i % 2 ? ATTN_SLIDING : ATTN_MLA) :
		    published && slide ? ATTN_SLIDING : ATTN_FULL;
		slides |= c->block[i].attn == ATTN_SLIDING;
	}
	if (published && found && check_published(c, k, slide) < 0)
		return -1;
	/* Published configs have a window of 0 where nothing slides. */
	if (!window || keys_get(k, "sliding_window_size") ||
	    (!slides && json_is_integer(window) && json_integer_value(window) == 0))
		return 0;
	return keys_int(k, "sliding_window", window, 1, 1 << 30, &c->sliding_window_size);
}

static int read_mlp_types(struct config *c, const struct keys *k)
{
	static const char *const names[] = { "dense", "sparse" };
	int type[CFG_MAX_LAYERS];
	bool found, moe = true;

	if (keys_bool(k, "use_moe", true, &moe) < 0 ||
	    keys_list(k, "mlp_layer_types", c->num_hidden_layers, names, 2, type, &found) < 0)
		return -1;
	if (found)
		for (int i = 0; i < c->num_hidden_layers; i++)
			c->block[i].sparse = type[i] == 1;
	else if (family_sparse_step(c, k) < 0)
		return -1;
	for (int i = 0; i < c->num_hidden_layers; i++)
		c->block[i].sparse = c->block[i].sparse && moe;
	return family_sparse_done(c, k);
}

static bool absent(const json_t *o, const char *key)
{
	const json_t *v = json_object_get(o, key);

	return !v || json_is_null(v);
}

/* As the reference has it: an absent value is its own default, and the ramp ends within the
 * pairs. */
static int read_rope(struct config *c, const struct keys *k)
{
	const char *key = keys_get(k, "rope_scaling") ? "rope_scaling" : "rope_parameters";
	const json_t *o = keys_get(k, key);
	struct rope *r = &c->rope;
	bool on = false;

	if (keys_bool(k, "inference_rope_scaling", false, &on) < 0 ||
	    family_rope(c, k, c->head_dim) < 0)
		return -1;
	if (r->kind != ROPE_YARN && (o || !on))
		return 0;
	if (r->kind != ROPE_YARN)
		*r = (struct rope){ .kind = ROPE_YARN, .width = c->head_dim, .dims = c->head_dim,
		    .theta = c->rope_theta, .slow = 1, .fast = 32, .truncate = true };
	r->last = c->head_dim / 2 - 1;
	if (absent(o, "factor"))
		r->factor = 16;
	if (absent(o, "original_max_position_embeddings"))
		r->original_max = 2048;
	if (absent(o, "attention_factor") && absent(o, "mscale"))
		r->magnitude = 1;
	return 0;
}

static int read_scope(struct config *c, const struct keys *k)
{
	const json_t *v = keys_get(k, "lookahead_scope");
	const char *name = json_string_value(v);

	c->lookahead_per_layer = c->format == 2;
	if (!v)
		return 0;
	if (!name || (strcmp(name, "layer_mean") != 0 && strcmp(name, "per_layer") != 0))
		return keys_bad(k, "lookahead_scope", "must be layer_mean or per_layer");
	if ((strcmp(name, "per_layer") == 0) != c->lookahead_per_layer)
		return keys_bad(k, "lookahead_scope", c->format == 2
		    ? "must be per_layer in format 2" :
		    "must be layer_mean in format 1");
	return 0;
}

/* Format 1 clamps as the reference does, odd widths included. Ours must be a rotation: even, and
 * part of a head. */
static int resolve_rope_dim(struct config *c, const struct keys *k)
{
	int d = c->head_dim, half = d / 2 & ~1;
	bool mla = false;

	for (int i = 0; i < c->num_hidden_layers; i++)
		mla |= c->block[i].attn == ATTN_MLA;
	if (c->format == 1 || !mla) {
		if (c->rope_dim == 0)
			c->rope_dim = 32;
		if (c->rope_dim > d - 1)
			c->rope_dim = d - 1;
		return 0;
	}
	if (c->rope_dim == 0)
		c->rope_dim = half > 32 ? 32 : half;
	if (c->rope_dim < 2 || c->rope_dim % 2 || c->rope_dim >= d)
		return keys_bad(k, "rope_dim", "%d must be even and below head_dim %d", c->rope_dim,
		    d);
	return 0;
}

static void resolve_widths(struct config *c)
{
	if (c->intermediate_size == 0)
		c->intermediate_size = (int)ceil(c->hidden_size * M_PI / 64) * 64;
	if (c->moe_intermediate_size == 0)
		c->moe_intermediate_size = c->intermediate_size;
}

/* Where a stretched model is no longer than it was, the reference keeps the frequencies. */
static bool stretched(const struct config *c)
{
	return (double)c->max_position_embeddings / c->rope.original_max > 1;
}

/* Format 1 cuts the MLA table from the full-width one, so its two halves turn at different rates
 * (not a rotation); format 2 builds it for rope_dim. */
static void mla_rope(const struct config *c, struct block *b)
{
	b->rope.width = c->rope_dim;
	if (c->format == 1)
		return;
	b->rope.dims = c->rope_dim;
	b->rope.last = c->rope_dim / 2 - 1;
}

static void fill_block(const struct config *c, struct block *b, bool published)
{
	b->rope = c->rope;
	if (!published && b->rope.kind == ROPE_YARN && !stretched(c))
		b->rope.kind = ROPE_DEFAULT;
	b->scale = 1 / sqrt((double)c->head_dim);
	b->value = c->head_dim;
	b->qk_norm = QK_NORM_HEAD;
	b->window = b->attn == ATTN_SLIDING ? c->sliding_window_size : 0;
	if (b->attn == ATTN_MLA) {
		mla_rope(c, b);
		b->latent = c->kv_latent_dim;
		b->latent_eps = c->rms_norm_eps;
		b->nope = c->head_dim - c->rope_dim;
	}
	b->width = b->sparse ? c->moe_intermediate_size : c->intermediate_size;
	b->router = (struct router){ .renormalised = c->norm_topk_prob, .scale = 1 };
	b->shared = b->sparse ? c->num_shared_experts : 0;
	b->shared_width = c->moe_intermediate_size;
}

int chronos_layers(struct config *c, const struct keys *k, bool published)
{
	if (read_layer_types(c, k, published) < 0 || read_mlp_types(c, k) < 0 ||
	    family_heads(c, k) < 0 ||
	    (published ? family_rope(c, k, c->head_dim) : read_rope(c, k)) < 0 ||
	    read_scope(c, k) < 0 || resolve_rope_dim(c, k) < 0)
		return -1;
	resolve_widths(c);
	for (int l = 0; l < c->num_hidden_layers; l++)
		fill_block(c, &c->block[l], published);
	return 0;
}

static int read(struct config *c, const struct keys *k)
{
	return chronos_layers(c, k, false);
}

static const char *const architectures[] = { "ChronosForCausalLM", NULL };
static const struct key *const tables[] = { chronos_keys, NULL };

const struct arch arch_chronos = { .model_type = "chronos", .architectures = architectures,
	.keys = tables, .reads = reads, .ignores = ignores, .ours = true, .read = read };
