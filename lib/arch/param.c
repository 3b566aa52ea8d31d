#include "arch/param.h"

#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arch/config.h"

#define LAYER "model.layers.%d."
#define ATTN LAYER "self_attn."
#define DELTA LAYER "linear_attn."
#define CONV LAYER "conv."
#define MLP LAYER "mlp."

enum {
	MATRIX = PARAM_DECAYS | PARAM_ADAPTS,
	PRODUCT = MATRIX | PARAM_QUANTISES,
	EXPERT = PRODUCT | PARAM_FFN | PARAM_ROUTED,
	SHARED = PRODUCT | PARAM_FFN | PARAM_SHARED,
	DENSE = PRODUCT | PARAM_FFN
};

const struct param_class param_class[P_KINDS] = {
	[P_EMBED] = { "model.embed_tokens.weight", WHEN_ALWAYS, DIM_V, DIM_D,
	    PARAM_QUANTISES | PARAM_ROW },
	[P_HEAD] = { "lm_head.weight", WHEN_UNTIED, DIM_V, DIM_D, PRODUCT | PARAM_LATE },
	[P_NORM] = { "model.norm.weight", WHEN_ALWAYS, DIM_D, DIM_NONE,
	    PARAM_LATE | PARAM_PLUS_ONE },
	[P_IN_NORM] = { LAYER "input_layernorm.weight", WHEN_ALWAYS, DIM_D, DIM_NONE,
	    PARAM_PLUS_ONE },
	[P_POST_NORM] = { LAYER "post_attention_layernorm.weight", WHEN_ALWAYS, DIM_D, DIM_NONE,
	    PARAM_PLUS_ONE },
	[P_Q] = { ATTN "q_proj.weight", WHEN_Q, DIM_Q, DIM_D, PRODUCT },
	[P_K] = { ATTN "k_proj.weight", WHEN_GQA, DIM_KV, DIM_D, PRODUCT },
	[P_V] = { ATTN "v_proj.weight", WHEN_GQA, DIM_KV, DIM_D, PRODUCT },
	[P_Q_BIAS] = { ATTN "q_proj.bias", WHEN_QKV_BIAS, DIM_Q, DIM_NONE, PARAM_BIAS },
	[P_K_BIAS] = { ATTN "k_proj.bias", WHEN_QKV_BIAS, DIM_KV, DIM_NONE, PARAM_BIAS },
	[P_V_BIAS] = { ATTN "v_proj.bias", WHEN_QKV_BIAS, DIM_KV, DIM_NONE, PARAM_BIAS },
	[P_QNORM] = { ATTN "q_norm.weight", WHEN_QK_NORM, DIM_QNORM, DIM_NONE, PARAM_PLUS_ONE },
	[P_KNORM] = { ATTN "k_norm.weight", WHEN_QK_NORM, DIM_KNORM, DIM_NONE, PARAM_PLUS_ONE },
	[P_QA] = { ATTN "q_a_proj.weight", WHEN_Q_RANK, DIM_QA, DIM_D, PRODUCT },
	[P_QA_NORM] = { ATTN "q_a_layernorm.weight", WHEN_Q_RANK, DIM_QA, DIM_NONE, 0 },
	[P_QB] = { ATTN "q_b_proj.weight", WHEN_Q_RANK, DIM_Q, DIM_QA, PRODUCT },
	[P_KVA] = { ATTN "kv_a_proj_with_mqa.weight", WHEN_LATENT, DIM_KVA, DIM_D, PRODUCT },
	[P_KVA_NORM] = { ATTN "kv_a_layernorm.weight", WHEN_LATENT, DIM_C, DIM_NONE, 0 },
	[P_KVB] = { ATTN "kv_b_proj.weight", WHEN_LATENT, DIM_KVB, DIM_C, MATRIX | PARAM_TURNED },
	[P_QNOPE] = { ATTN "q_nope_proj.weight", WHEN_MLA, DIM_HN, DIM_D, PRODUCT },
	[P_QROPE] = { ATTN "q_rope_proj.weight", WHEN_MLA, DIM_HR, DIM_D, PRODUCT },
	[P_QNOPE_NORM] = { ATTN "q_nope_norm.weight", WHEN_MLA, DIM_N, DIM_NONE, 0 },
	[P_QROPE_NORM] = { ATTN "q_rope_norm.weight", WHEN_MLA, DIM_R, DIM_NONE, 0 },
	[P_KVDOWN] = { ATTN "kv_down_proj.weight", WHEN_MLA, DIM_C, DIM_D, PRODUCT },
	[P_KVDOWN_NORM] = { ATTN "kv_down_norm.weight", WHEN_MLA, DIM_C, DIM_NONE, 0 },
	[P_KNOPE] = { ATTN "k_nope_proj.weight", WHEN_MLA, DIM_GN, DIM_C, MATRIX | PARAM_TURNED },
	[P_KROPE] = { ATTN "k_rope_proj.weight", WHEN_MLA, DIM_GR, DIM_C, MATRIX },
	[P_MLA_V] = { ATTN "v_proj.weight", WHEN_MLA, DIM_KV, DIM_C, MATRIX },
	[P_O] = { ATTN "o_proj.weight", WHEN_ATTENTION, DIM_D, DIM_O, PRODUCT },
	[P_O_BIAS] = { ATTN "o_proj.bias", WHEN_O_BIAS, DIM_D, DIM_NONE, PARAM_BIAS },
	[P_DELTA_QKVZ] = { DELTA "in_proj_qkvz.weight", WHEN_GROUPED, DIM_DQKVZ, DIM_D, PRODUCT },
	[P_DELTA_BA] = { DELTA "in_proj_ba.weight", WHEN_GROUPED, DIM_DBA, DIM_D, MATRIX },
	[P_DELTA_QKV] = { DELTA "in_proj_qkv.weight", WHEN_APART, DIM_DQKV, DIM_D, PRODUCT },
	[P_DELTA_Z] = { DELTA "in_proj_z.weight", WHEN_APART, DIM_DZ, DIM_D, PRODUCT },
	[P_DELTA_B] = { DELTA "in_proj_b.weight", WHEN_APART, DIM_DH, DIM_D, MATRIX },
	[P_DELTA_A] = { DELTA "in_proj_a.weight", WHEN_APART, DIM_DH, DIM_D, MATRIX },
	[P_DELTA_LOG_A] = { DELTA "A_log", WHEN_DELTA, DIM_DH, DIM_NONE, 0 },
	[P_DELTA_DT] = { DELTA "dt_bias", WHEN_DELTA, DIM_DH, DIM_NONE, 0 },
	[P_DELTA_NORM] = { DELTA "norm.weight", WHEN_DELTA, DIM_DV, DIM_NONE, 0 },
	[P_CONV_IN] = { CONV "in_proj.weight", WHEN_CONV, DIM_3D, DIM_D, PRODUCT },
	[P_CONV_IN_BIAS] = { CONV "in_proj.bias", WHEN_CONV_BIAS, DIM_3D, DIM_NONE, PARAM_BIAS },
	[P_CONV] = { CONV "conv.weight", WHEN_RECURS, DIM_CHANNELS, DIM_TAPS, PARAM_DECAYS },
	[P_CONV_BIAS] = { CONV "conv.bias", WHEN_CONV_BIAS, DIM_CHANNELS, DIM_NONE, PARAM_BIAS },
	[P_MIX] = { CONV "out_proj.weight", WHEN_RECURS, DIM_D, DIM_MIX, PRODUCT },
	[P_MIX_BIAS] = { CONV "out_proj.bias", WHEN_CONV_BIAS, DIM_D, DIM_NONE, PARAM_BIAS },
	[P_SINKS] = { ATTN "sinks", WHEN_SINKS, DIM_H, DIM_NONE, PARAM_BIAS },
	[P_GATE] = { MLP "gate.weight", WHEN_SPARSE, DIM_E, DIM_D, MATRIX },
	[P_LOGIT_BIAS] = { MLP "gate.bias", WHEN_LOGIT_BIAS, DIM_E, DIM_NONE, PARAM_BIAS },
	[P_GATE_BIAS] = { MLP "gate.e_score_correction_bias", WHEN_ROUTER_BIAS, DIM_BIAS,
	    DIM_BIAS_COLS,
	    PARAM_BIAS },
	[P_EXP_GATE_BIAS] = { MLP "experts.gate_proj_bias", WHEN_EXPERT_BIAS, DIM_E, DIM_F,
	    PARAM_BIAS },
	[P_EXP_UP_BIAS] = { MLP "experts.up_proj_bias", WHEN_EXPERT_BIAS, DIM_E, DIM_F,
	    PARAM_BIAS },
	[P_EXP_DOWN_BIAS] = { MLP "experts.down_proj_bias", WHEN_EXPERT_BIAS, DIM_E, DIM_D,
	    PARAM_BIAS },
	[P_EXP_GATE] = { MLP "experts.%d.gate_proj.weight", WHEN_SPARSE, DIM_F, DIM_D, EXPERT },
	[P_EXP_UP] = { MLP "experts.%d.up_proj.weight", WHEN_SPARSE, DIM_F, DIM_D, EXPERT },
	[P_EXP_DOWN] = { MLP "experts.%d.down_proj.weight", WHEN_SPARSE, DIM_D, DIM_F, EXPERT },
	[P_SH_GATE] = { MLP "shared_experts.%d.gate_proj.weight", WHEN_SPARSE, DIM_SF, DIM_D,
	    SHARED },
	[P_SH_UP] = { MLP "shared_experts.%d.up_proj.weight", WHEN_SPARSE, DIM_SF, DIM_D, SHARED },
	[P_SH_DOWN] = { MLP "shared_experts.%d.down_proj.weight", WHEN_SPARSE, DIM_D, DIM_SF,
	    SHARED },
	[P_SH_SIGMOID] = { MLP "shared_expert_gate.weight", WHEN_SHARED_GATE, DIM_ONE, DIM_D,
	    MATRIX },
	[P_MLP_GATE] = { MLP "gate_proj.weight", WHEN_DENSE, DIM_F, DIM_D, DENSE },
	[P_MLP_UP] = { MLP "up_proj.weight", WHEN_DENSE, DIM_F, DIM_D, DENSE },
	[P_MLP_DOWN] = { MLP "down_proj.weight", WHEN_DENSE, DIM_D, DIM_F, DENSE },
	[P_LOOK0] = { "model.lookahead_router.proj.0.weight", WHEN_LOOK, DIM_QUARTER, DIM_D,
	    MATRIX | PARAM_LOOK },
	[P_LOOK2] = { "model.lookahead_router.proj.2.weight", WHEN_LOOK, DIM_LOOK, DIM_QUARTER,
	    MATRIX | PARAM_LOOK },
};

/* Of layers with a state. */
static int recurrent_dim(const struct config *c, const struct block *b, enum param_dim d)
{
	int values = b->delta.H * b->delta.dv, qkv = (int)block_delta_width(b);

	switch (d) {
	case DIM_DQKVZ: return qkv + values;
	case DIM_DBA: return 2 * b->delta.H;
	case DIM_DQKV: return qkv;
	case DIM_DZ: return values;
	case DIM_DH: return b->delta.H;
	case DIM_DV: return b->delta.dv;
	case DIM_3D: return 3 * c->hidden_size;
	case DIM_CHANNELS: return b->attn == ATTN_DELTA ? qkv : c->hidden_size;
	case DIM_TAPS: return b->taps;
	case DIM_MIX: return b->attn == ATTN_DELTA ? values : c->hidden_size;
	default: return 0;
	}
}

const struct param_name param_also[] = {
	{ P_EXP_GATE, MLP "experts.gate_up_proj", AT_STACKED | AT_FIRST },
	{ P_EXP_UP, MLP "experts.gate_up_proj", AT_STACKED | AT_SECOND },
	{ P_EXP_DOWN, MLP "experts.down_proj", AT_STACKED }, { 0 }
};

static int dim(const struct config *c, const struct block *b, enum param_dim d)
{
	int H = c->num_attention_heads, G = c->num_key_value_heads, D = c->hidden_size;

	switch (d) {
	case DIM_NONE: return 0;
	case DIM_ONE: return 1;
	case DIM_V: return c->vocab_size;
	case DIM_D: return D;
	case DIM_QUARTER: return D / 4;
	case DIM_LOOK: return config_lookahead_rows(c);
	case DIM_Q: return H * c->head_dim * (b->gated ? 2 : 1);
	case DIM_KV: return G * c->head_dim;
	case DIM_QNORM: return b->qk_norm == QK_NORM_WIDTH ? H * c->head_dim : c->head_dim;
	case DIM_KNORM: return b->qk_norm == QK_NORM_WIDTH ? G * c->head_dim : c->head_dim;
	case DIM_N: return b->nope;
	case DIM_R: return b->rope.width;
	case DIM_C: return b->latent;
	case DIM_HN: return H * b->nope;
	case DIM_HR: return H * b->rope.width;
	case DIM_GN: return G * b->nope;
	case DIM_GR: return G * b->rope.width;
	case DIM_QA: return b->q_rank;
	case DIM_KVA: return b->latent + b->rope.width;
	case DIM_KVB: return H * (b->nope + b->value);
	case DIM_O: return H * b->value;
	case DIM_BIAS: return b->router_bias_row ? 1 : c->num_experts;
	case DIM_BIAS_COLS: return b->router_bias_row ? c->num_experts : 0;
	case DIM_E: return c->num_experts;
	case DIM_F: return b->width;
	case DIM_SF: return b->shared_width;
	case DIM_H: return H;
	default: return recurrent_dim(c, b, d);
	}
}

static bool present(const struct config *c, const struct block *b, enum param_when when)
{
	bool mla = b && b->attn == ATTN_MLA, latent = b && b->attn == ATTN_LATENT,
	    recurs = b && block_recurs(b), delta = b && b->attn == ATTN_DELTA,
	    plain = !mla && !latent && !recurs;

	switch (when) {
	case WHEN_ALWAYS: return true;
	case WHEN_UNTIED: return !c->tie_word_embeddings;
	case WHEN_LOOK: return config_lookahead_rows(c) > 0;
	case WHEN_Q: return plain || (latent && !b->q_rank);
	case WHEN_GQA: return plain;
	case WHEN_QKV_BIAS: return plain && b->qkv_bias;
	case WHEN_O_BIAS: return !recurs && b->o_bias;
	case WHEN_QK_NORM: return plain && b->qk_norm != QK_NORM_NONE;
	case WHEN_MLA: return mla;
	case WHEN_LATENT: return latent;
	case WHEN_Q_RANK: return latent && b->q_rank > 0;
	case WHEN_SPARSE: return b->sparse;
	case WHEN_LOGIT_BIAS: return b->sparse && b->logit_bias;
	case WHEN_ROUTER_BIAS: return b->sparse && b->router_bias;
	case WHEN_EXPERT_BIAS: return b->sparse && b->expert_bias;
	case WHEN_SHARED_GATE: return b->sparse && b->shared_gate;
	case WHEN_DENSE: return !b->sparse;
	case WHEN_ATTENTION: return !recurs;
	case WHEN_DELTA: return delta;
	case WHEN_GROUPED: return delta && b->delta.grouped;
	case WHEN_APART: return delta && !b->delta.grouped;
	case WHEN_CONV: return recurs && !delta;
	case WHEN_CONV_BIAS: return recurs && b->conv_bias;
	case WHEN_RECURS: return recurs;
	case WHEN_SINKS: return !mla && !latent && b->sinks;
	}
	return false;
}

static const char *format_of(const struct config *c, enum param_kind k)
{
	for (const struct param_name *n = c->names; n && n->name; n++)
		if (n->kind == k && !(n->how & AT_SEVERAL))
			return n->name;
	return param_class[k].name;
}

/* How many of this kind a layer has (b), or the model (NULL). */
static int copies(const struct config *c, const struct block *b, enum param_kind k)
{
	if (!present(c, b, param_class[k].when))
		return 0;
	if (param_class[k].traits & PARAM_ROUTED)
		return c->num_experts;
	return param_class[k].traits & PARAM_SHARED ? b->shared : 1;
}

static bool is_expert_kind(enum param_kind k)
{
	return param_class[k].traits & (PARAM_ROUTED | PARAM_SHARED);
}

/* The list of parameters; room for all was made. */
struct build {
	struct params *ps;
	const struct config *c;
	bool overflow;
};

static void add(struct build *b, enum param_kind kind, int layer, int expert)
{
	struct params *ps = b->ps;
	const struct block *block = layer >= 0 ? &b->c->block[layer] : NULL;
	int at = kind * (ps->layers + 1) + layer + 1, cols = dim(b->c, block,
	    param_class[kind].cols);
	struct param *p = &ps->p[ps->n];

	memset(p, 0, sizeof *p);
	snprintf(p->name, sizeof p->name, format_of(b->c, kind), layer, expert);
	p->kind = kind;
	p->layer = layer;
	p->expert = expert;
	p->ndim = cols ? 2 : 1;
	p->rows = dim(b->c, block, param_class[kind].rows);
	p->cols = cols ? cols : 1;
	p->off = ps->total;
	p->owner = -1;
	if (ps->first[at] < 0)
		ps->first[at] = ps->n;
	ps->count += param_size(p);
	ps->total += param_span(p);
	b->overflow |= ps->total > INT64_MAX / 16;
	ps->n++;
}

/* All experts of a kind: the three matrices of one, then those of the next. */
static void add_experts(struct build *b, enum param_kind gate, int l)
{
	for (int e = 0; e < copies(b->c, &b->c->block[l], gate); e++)
		for (int i = 0; i < 3; i++)
			add(b, (enum param_kind)(gate + i), l, e);
}

static void add_layer(struct build *b, int l)
{
	for (int k = P_IN_NORM; k < P_LOOK0; k++)
		if (k == P_EXP_GATE || k == P_SH_GATE)
			add_experts(b, (enum param_kind)k, l);
		else if (!is_expert_kind((enum param_kind)k) && copies(b->c, &b->c->block[l],
		    (enum param_kind)k))
			add(b, (enum param_kind)k, l, -1);
}

static void add_all(struct build *b)
{
	static const enum param_kind last[] = { P_NORM, P_LOOK0, P_LOOK2 };

	add(b, P_EMBED, -1, -1);
	if (copies(b->c, NULL, P_HEAD))
		add(b, P_HEAD, -1, -1);
	for (int l = 0; l < b->c->num_hidden_layers; l++)
		add_layer(b, l);
	for (int i = 0; i < 3; i++)
		if (copies(b->c, NULL, last[i]))
			add(b, last[i], -1, -1);
}

static int64_t count_all(const struct config *c)
{
	int64_t n = 5;

	for (int l = 0; l < c->num_hidden_layers; l++)
		for (int k = P_IN_NORM; k < P_LOOK0; k++)
			n += copies(c, &c->block[l], (enum param_kind)k);
	return n;
}

static uint32_t hash_name(const char *s)		/* FNV-1a */
{
	uint32_t h = 2166136261u;

	while (*s)
		h = (h ^ (unsigned char)*s++) * 16777619u;
	return h;
}

static int build_hash(struct params *ps)
{
	ps->hash_size = 16;
	while (ps->hash_size < 2 * ps->n)
		ps->hash_size *= 2;
	ps->hash = malloc((size_t)ps->hash_size * sizeof *ps->hash);
	if (!ps->hash)
		return -1;
	memset(ps->hash, -1, (size_t)ps->hash_size * sizeof *ps->hash);
	for (int i = 0; i < ps->n; i++) {
		uint32_t at = hash_name(ps->p[i].name) & (uint32_t)(ps->hash_size - 1);

		while (ps->hash[at] >= 0)
			at = (at + 1) & (uint32_t)(ps->hash_size - 1);
		ps->hash[at] = i;
	}
	return 0;
}

static int no_room(struct params *ps, struct err *e)
{
	params_free(ps);
	return err_set(e, EX_OSERR, "model is too large: its parameters cannot be listed");
}

int params_build(struct params *ps, const struct config *c, struct err *e)
{
	struct build b = { ps, c, false };
	size_t nfirst = (size_t)P_KINDS * ((size_t)c->num_hidden_layers + 1);
	int64_t room = count_all(c);

	memset(ps, 0, sizeof *ps);
	if (room > PARAMS_MAX)
		return err_set(e, EX_DATAERR,
		    "config asks for %lld tensors (%d layers, %d experts); at most %d "
		    "are supported", (long long)room, c->num_hidden_layers, c->num_experts,
		    PARAMS_MAX);
	ps->layers = c->num_hidden_layers;
	ps->first = malloc(nfirst * sizeof *ps->first);
	ps->p = malloc((size_t)room * sizeof *ps->p);
	if (!ps->first || !ps->p)
		return no_room(ps, e);
	memset(ps->first, -1, nfirst * sizeof *ps->first);
	add_all(&b);
	return b.overflow || build_hash(ps) < 0 ? no_room(ps, e) : 0;
}

int params_divide(struct params *ps, int n, int here, struct err *e)
{
	int experts = 0;

	for (int i = 0; i < ps->n; i++)
		if (param_routed(&ps->p[i]) && ps->p[i].expert >= experts)
			experts = ps->p[i].expert + 1;
	if (n == 1)
		return 0;
	if (experts == 0 || experts % n != 0)
		return err_set(e, EX_USAGE, "%d experts cannot be divided over %d ranks", experts,
		    n);
	ps->here = here;
	ps->total = 0;
	for (int i = 0; i < ps->n; i++) {
		struct param *p = &ps->p[i];

		if (param_routed(p))
			p->owner = p->expert / (experts / n);
		if (p->owner > 0) {
			p->off = params_get(ps, p->kind, p->layer, p->expert % (experts / n))->off;
			continue;
		}
		p->off = ps->total;
		ps->total += param_span(p);
	}
	return 0;
}

const struct param *params_find(const struct params *ps, const char *name)
{
	uint32_t mask = (uint32_t)ps->hash_size - 1;

	for (uint32_t at = hash_name(name) & mask; ps->hash[at] >= 0; at = (at + 1) & mask)
		if (strcmp(ps->p[ps->hash[at]].name, name) == 0)
			return &ps->p[ps->hash[at]];
	return NULL;
}

const struct param *params_get(const struct params *ps, enum param_kind k, int layer, int expert)
{
	bool ffn = is_expert_kind(k);
	int at;

	if (layer < -1 || layer >= ps->layers || (expert >= 0) != ffn)
		return NULL;
	at = ps->first[k * (ps->layers + 1) + layer + 1];
	if (at < 0)
		return NULL;
	if (ffn)
		at = expert < (ps->n - at + 2) / 3 ? at + 3 * expert : ps->n;
	if (at >= ps->n || ps->p[at].kind != k || ps->p[at].layer != layer ||
	    ps->p[at].expert != expert)
		return NULL;
	return &ps->p[at];
}

int params_match(const struct params *ps, int npatterns, const char *const patterns[], bool *hit,
    struct err *e)
{
	for (int i = 0; i < npatterns; i++) {
		bool any = false;

		for (int j = 0; j < ps->n; j++)
			if (fnmatch(patterns[i], ps->p[j].name, 0) == 0)
				hit[j] = any = true;
		if (!any)
			return err_set(e, EX_USAGE,
			    "no parameter has a name like \"%s\" (chr-ls lists them)", patterns[i]);
	}
	return 0;
}

int64_t params_active(const struct params *ps, const struct config *c)
{
	int64_t n = ps->count;

	for (int i = 0; i < ps->n; i++)
		if (param_routed(&ps->p[i]) && ps->p[i].expert >= c->num_experts_per_tok)
			n -= param_size(&ps->p[i]);
	return n;
}

void params_free(struct params *ps)
{
	free(ps->p);
	free(ps->hash);
	free(ps->first);
	memset(ps, 0, sizeof *ps);
}
