#include "train/upcycle.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "arch/arch.h"
#include "base/mem.h"
#include "base/rng.h"
#include "format/modeldir.h"

/* ---- configuration ---- */

static const struct kind {
	const char *dense, *sparse, *architecture;
} kinds[] = {
	{ "llama", "mixtral", "MixtralForCausalLM" },
	{ "qwen3", "qwen3_moe", "Qwen3MoeForCausalLM" },
};

static const struct kind *kind_of(const struct config *dense)
{
	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
		if (strcmp(dense->arch->model_type, kinds[i].dense) == 0)
			return &kinds[i];
	return NULL;
}

/* Both families read these keys alike, but an absent one may mean another value to each. */
static void settle(json_t *o, const struct config *c)
{
	const struct {
		const char *key;
		json_t *value;
	} known[] = {
		{ "vocab_size", json_integer(c->vocab_size) },
		{ "hidden_size", json_integer(c->hidden_size) },
		{ "intermediate_size", json_integer(c->intermediate_size) },
		{ "num_hidden_layers", json_integer(c->num_hidden_layers) },
		{ "num_attention_heads", json_integer(c->num_attention_heads) },
		{ "num_key_value_heads", json_integer(c->num_key_value_heads) },
		{ "head_dim", json_integer(c->head_dim) },
		{ "max_position_embeddings", json_integer(c->max_position_embeddings) },
		{ "rms_norm_eps", json_real(c->rms_norm_eps) },
		{ "tie_word_embeddings", json_boolean(c->tie_word_embeddings) },
	};

	for (size_t i = 0; i < sizeof known / sizeof *known; i++)
		json_object_set_new(o, known[i].key, known[i].value);
	if (!json_object_get(o, "rope_parameters") && !json_object_get(o, "rope_theta"))
		json_object_set_new(o, "rope_theta", json_real(c->rope_theta));
}

/* Keys that the dense family may pass over, and this one does not know. */
static void drop_ignored(json_t *o, const struct arch *dense)
{
	for (const struct key_off *k = dense->ignores; k && k->key; k++)
		json_object_del(o, k->key);
}

static json_t *sparse_object(const struct config *c, const struct kind *kind)
{
	json_t *o = json_deep_copy(c->raw);

	drop_ignored(o, c->arch);
	settle(o, c);
	json_object_set_new(o, "model_type", json_string(kind->sparse));
	json_object_set_new(o, "architectures", json_pack("[s]", kind->architecture));
	json_object_set_new(o, "num_local_experts", json_integer(8));
	json_object_set_new(o, "num_experts_per_tok", json_integer(2));
	if (strcmp(kind->sparse, "qwen3_moe") == 0) {
		json_object_set_new(o, "moe_intermediate_size", json_integer(c->intermediate_size));
		json_object_set_new(o, "norm_topk_prob", json_true());
		json_object_set_new(o, "decoder_sparse_step", json_integer(1));
		json_object_set_new(o, "mlp_only_layers", json_array());
	}
	return o;
}

/* Does the model compute what the dense one does, as long as its experts are alike? */
static int check_same(const struct config *c, const struct config *dense, struct err *e)
{
	const char *what = NULL;

	for (int l = 0; l < c->num_hidden_layers && !what; l++)
		what = !c->block[l].sparse ? "every layer has experts" :
		    c->block[l].width != dense->intermediate_size ? "experts are as wide as the "
		    "dense MLP" : c->block[l].shared ? "there are no shared experts" : NULL;
	if (!what && !c->norm_topk_prob)
		what = "the weights of the chosen are renormalised (norm_topk_prob)";
	if (!what && (c->hidden_size != dense->hidden_size || c->num_hidden_layers !=
	    dense->num_hidden_layers || c->vocab_size != dense->vocab_size))
		what = "sizes are those of the dense model";
	return what ? err_set(e, EX_USAGE, "--upcycle: %s, which --set must not change", what) : 0;
}

int upcycle_config(struct config *c, const char *dir, int nsets, const char *const sets[],
    struct err *e)
{
	struct config dense;
	const struct kind *kind;
	json_t *o;
	int rc;

	if (config_load(&dense, dir, 0, NULL, e) < 0)
		return -1;
	if (!(kind = kind_of(&dense))) {
		err_set(e, EX_DATAERR, "%s: a %s cannot be upcycled: only llama (to mixtral) and "
		    "qwen3 (to qwen3_moe)", dir, dense.arch->model_type ? dense.arch->model_type :
		    "model of ours");
		config_free(&dense);
		return -1;
	}
	o = sparse_object(&dense, kind);
	rc = config_from_json(c, o, nsets, sets, e);
	json_decref(o);
	if (rc == 0 && check_same(c, &dense, e) < 0) {
		config_free(c);
		rc = -1;
	}
	config_free(&dense);
	return rc;
}

/* ---- weights ---- */

/* What a parameter of the new model is a copy of; NULL: it is new. */
static const struct param *origin(const struct params *dense, const struct param *p)
{
	if (p->kind == P_GATE || param_is(p, PARAM_LOOK))
		return NULL;
	if (param_routed(p))
		return params_get(dense, (enum param_kind)(P_MLP_GATE + param_part(p)), p->layer,
		    -1);
	return params_get(dense, p->kind, p->layer, -1);
}

/* Is this column of the expert's width drawn anew? Its gate, up and down go together. */
static bool dropped(const struct param *p, int i, double drop, uint64_t seed)
{
	return rng_uniform(seed, (uint64_t)p->layer * 65536 + (uint64_t)p->expert, (uint64_t)i) <
	    drop;
}

static void redraw(const struct param *p, float *x, double drop, uint64_t seed)
{
	int64_t n = param_size(p);
	bool down = param_part(p) == 2;
	double sum = 0, square = 0, mean, spread;

	for (int64_t i = 0; i < n; i++) {
		sum += (double)x[i];
		square += (double)x[i] * (double)x[i];
	}
	mean = sum / (double)n;
	spread = sqrt(fmax(square / (double)n - mean * mean, 0));
	for (int64_t i = 0; i < n; i++)
		if (dropped(p, (int)(down ? i % p->cols : i / p->cols), drop, seed))
			x[i] = (float)(mean + spread * rng_normal(seed + 1,
			    (uint64_t)(p->layer * 3 + param_part(p)) * 65536 + (uint64_t)p->expert,
			    (uint64_t)i));
}

static void put(struct model *m, const struct param *p, const float *x, real *staged)
{
	for (int64_t i = 0; i < param_size(p); i++)
		staged[i] = (real)x[i];
	m->be->put(m->be, m->w + p->off, staged, (size_t)param_size(p) * sizeof *staged);
}

int upcycle_weights(struct model *m, const char *dir, double drop, uint64_t seed, struct err *e)
{
	struct modeldir md;
	int64_t most = 1;
	real *staged;
	float *x;
	int rc;

	if (modeldir_open(&md, dir, 0, NULL, e) < 0)
		return -1;
	rc = modeldir_loadable(&md, &md.par, e);
	for (int i = 0; i < m->par.n; i++)
		most = param_size(&m->par.p[i]) > most ? param_size(&m->par.p[i]) : most;
	x = mem_alloc((size_t)most * sizeof *x);
	staged = mem_alloc((size_t)most * sizeof *staged);
	for (int i = 0; i < m->par.n && rc == 0; i++) {
		const struct param *p = &m->par.p[i], *from = origin(&md.par, p);

		if (!from || !params_here(&m->par, p))
			continue;
		rc = modeldir_read_f32(&md, from, x, e);
		if (rc == 0 && drop > 0 && param_routed(p))
			redraw(p, x, drop, seed);
		if (rc == 0)
			put(m, p, x, staged);
	}
	mem_free(x);
	mem_free(staged);
	modeldir_close(&md);
	return rc;
}
