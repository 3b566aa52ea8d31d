/*
 * What another server's files, caches and flags come to. Names and meanings of the flags: the
 * documentation of vLLM (vllm serve), SGLang (server arguments) and llama.cpp (llama-server).
 */
#include "measure/fit_for.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "arch/arch.h"
#include "arch/config.h"
#include "backend/quant.h"
#include "base/human.h"
#include "base/json.h"
#include "format/gguf_model.h"
#include "format/modeldir.h"
#include "measure/fit.h"

#define GIB ((int64_t)1 << 30)
#define LONGEST 32768		/* context where none is asked for */
#define SHORTEST 256
#define MOST_SEQS 256

static const struct server {
	const char *name, *small_kv, *context, *seqs;
	int rows;			/* tokens of prompts evaluated at a time */
	int page;			/* tokens that a cache grows by */
	int64_t itself;			/* runtime, libraries, graphs: an estimate */
} servers[] = {
	[FOR_VLLM] = { "vllm", "--kv-cache-dtype fp8", "--max-model-len", "--max-num-seqs", 2048,
	    16, 3 * GIB / 2 },
	[FOR_SGLANG] = { "sglang", "--kv-cache-dtype fp8_e4m3", "--context-length",
	    "--max-running-requests", 2048, 1, 3 * GIB / 2 },
	[FOR_LLAMA] = { "llama.cpp", "-ctk q8_0 -ctv q8_0", "-c", "-np", 512, 256, GIB / 2 },
};

/* Bytes of the weights, by where they may lie. */
struct weights {
	int64_t embed, head;		/* head: with the last norm; of tied models what is
					   held twice, if anything is */
	int64_t layer[CFG_MAX_LAYERS], experts[CFG_MAX_LAYERS];
	int64_t unused;			/* tensors that the server passes over */
};

struct setting {				/* a setting */
	int seqs, context;
	bool small_kv;
	int64_t offload;		/* weights that stay with the host, of vLLM and SGLang */
	int layers, host_experts;	/* of llama.cpp: -ngl, --n-cpu-moe */
};

struct held {				/* on the card by a setting */
	int64_t weights, kv, state, activations, itself, total, host;
};

struct served {
	const struct fit_for *o;
	const struct server *s;
	struct config cfg;
	struct params ps;
	struct weights w;
	const char *weights_from;
};

/* --- weights --- */

static void weigh(struct served *m, const char *name, int64_t bytes)
{
	const char *at = strstr(name, "layers.");
	bool embeds = strstr(name, "embed_tokens") || strncmp(name, "token_embd", 10) == 0,
	    routed = strstr(name, ".experts.") || strstr(name, "_exps.");
	int l = -1;

	if ((at == NULL || sscanf(at, "layers.%9d.", &l) != 1) &&
	    sscanf(name, "blk.%9d.", &l) != 1)
		l = -1;
	if (l < 0 || l >= m->cfg.num_hidden_layers)
		*(l >= 0 ? &m->w.unused : embeds ? &m->w.embed : &m->w.head) += bytes;
	else
		*(routed ? &m->w.experts[l] : &m->w.layer[l]) += bytes;
}

/* As GGUF would hold the tensor: FP8 becomes BF16 there and its scales go. */
static int64_t stored_bytes(const struct served *m, const struct st_tensor *t)
{
	if (m->o->server != FOR_LLAMA || st_dtype_size(t->dtype) != 1 ||
	    strncmp(st_dtype_name(t->dtype), "F8_E4M3", 7) != 0)
		return m->o->server == FOR_LLAMA && strstr(t->name, "scale_inv") ? 0
		    : (int64_t)t->nbytes;
	return 2 * (int64_t)t->nbytes;
}

static void weigh_files(struct served *m, const struct modeldir *md)
{
	const struct st_tensor *t;
	int layer;

	m->weights_from = "files";
	for (int i = 0; md->gguf && i < md->gguf->n; i++)
		for (size_t k = 0; k < gguf_count(md->gguf->g[i]); k++)
			weigh(m, gguf_at(md->gguf->g[i], k)->name,
			    (int64_t)gguf_at(md->gguf->g[i], k)->nbytes);
	for (int i = 0; i < md->nfiles; i++)
		for (size_t k = 0; (t = st_at(md->st[i], k)); k++) {
			bool tied = m->cfg.tie_word_embeddings &&
			    strcmp(t->name, "lm_head.weight") == 0;

			if (tied || strncmp(t->name, "__pad.", 6) == 0 ||
			    arch_harmless(&m->cfg, t->name, &layer))
				m->w.unused += (int64_t)t->nbytes;
			else
				weigh(m, t->name, stored_bytes(m, t));
		}
}

/* Blocks of GGUF: a scale of 16 bits for 32 values. Routers and what has no whole blocks stay. */
static int64_t gguf_bytes(const struct param *p, enum dtype quant)
{
	if (p->ndim < 2 || p->kind == P_GATE)
		return 4 * param_size(p);
	if (quant == DT_F32 || p->cols % 32 != 0)
		return 2 * param_size(p);
	return param_size(p) / 32 * (quant == DT_Q8 ? 34 : quant == DT_Q4A ? 20 : 18);
}

static void weigh_params(struct served *m)
{
	int64_t each = (int64_t)dtype_size(fit_config_dtype(&m->cfg));
	bool gguf = m->o->server == FOR_LLAMA;

	m->weights_from = gguf && m->o->quant != DT_F32 ? "blocks" : "config";
	memset(&m->w, 0, sizeof m->w);
	for (int i = 0; i < m->ps.n; i++) {
		const struct param *p = &m->ps.p[i];
		int64_t bytes = gguf ? gguf_bytes(p, m->o->quant) : each * param_size(p);

		if (p->layer < 0)
			*(p->kind == P_EMBED ? &m->w.embed : &m->w.head) += bytes;
		else
			*(param_routed(p) ? &m->w.experts[p->layer] : &m->w.layer[p->layer]) +=
			    bytes;
	}
}

/* --- what a sequence keeps --- */

static int64_t kv_values(const struct config *c, int l)
{
	const struct block *b = &c->block[l];

	return block_recurs(b) ? 0 : b->attn == ATTN_LATENT ? b->latent + b->rope.width
	    : 2 * (int64_t)config_kv_width(c);
}

/* Bytes that one token takes in a layer. */
static int64_t kv_bytes(const struct served *m, int l, bool small)
{
	int64_t n = kv_values(&m->cfg, l);

	return !small ? 2 * n : m->o->server == FOR_LLAMA ? n / 32 * 34 + n % 32 : n;
}

static int64_t pages(const struct served *m, int64_t tokens)
{
	return (tokens + m->s->page - 1) / m->s->page * m->s->page;
}

/* Tokens that a layer keeps of a sequence: past a window, those of the prompt being evaluated. */
static int64_t kept(const struct served *m, int l, int context)
{
	int64_t all = pages(m, context), window = m->cfg.block[l].window,
	    some = pages(m, window + m->s->rows) + (m->o->server == FOR_VLLM ? m->s->page : 0);

	return window > 0 && some < all ? some : all;
}

/* Bytes that a sequence keeps in a layer, however long it is. */
static int64_t state_bytes(const struct served *m, int l)
{
	const struct block *b = &m->cfg.block[l];
	int conv = m->o->server == FOR_LLAMA ? 4 : 2;

	if (b->attn == ATTN_DELTA)
		return (b->taps - 1) * block_delta_width(b) * conv +
		    4 * (int64_t)b->delta.H * b->delta.dk * b->delta.dv;
	return b->attn == ATTN_CONV ? (int64_t)(b->taps - 1) * m->cfg.hidden_size * conv : 0;
}

static int64_t all_states(const struct served *m)
{
	int64_t n = 0;

	for (int l = 0; l < m->cfg.num_hidden_layers; l++)
		n += state_bytes(m, l);
	return n;
}

/* SGLang keeps two more for prefixes that may come again. */
static int states(const struct served *m, int seqs)
{
	return m->o->server == FOR_SGLANG ? 3 * seqs : seqs;
}

/* --- what is only estimated: one layer's rows at a time, and logits --- */

static int64_t widest(const struct config *c)
{
	int64_t w = 0, ffn;

	for (int l = 0; l < c->num_hidden_layers; l++) {
		const struct block *b = &c->block[l];

		ffn = b->sparse ? c->num_experts_per_tok * (3 * (int64_t)b->width +
		    c->hidden_size) + 3 * (int64_t)b->shared * b->shared_width
		    : 3 * (int64_t)b->width;
		w = ffn > w ? ffn : w;
	}
	ffn = 2 * ((int64_t)c->num_attention_heads * c->head_dim + config_kv_width(c));
	return ffn > w ? ffn : w;
}

static int64_t activations(const struct served *m, int seqs)
{
	const struct config *c = &m->cfg;
	int64_t row = 2 * (int64_t)c->hidden_size + widest(c), V = c->vocab_size;

	return m->o->server == FOR_LLAMA ? m->s->rows * 4 * (row + V)
	    : m->s->rows * 2 * row + 8 * V * seqs;
}

/* --- a setting --- */

static int64_t all_weights(const struct served *m)
{
	int64_t n = m->w.embed + m->w.head;

	for (int l = 0; l < m->cfg.num_hidden_layers; l++)
		n += m->w.layer[l] + m->w.experts[l];
	return n;
}

/* llama.cpp: the embedding stays with the host, then the first layers; the output is the first
 * to come to the card, for tied models as a copy. */
static void hold_layers(const struct served *m, const struct setting *p, struct held *h)
{
	const struct weights *w = &m->w;
	int L = m->cfg.num_hidden_layers, first = L + 1 - p->layers;

	h->weights = p->layers > 0 ? w->head + (m->cfg.tie_word_embeddings ? w->embed : 0) : 0;
	for (int l = first > 0 ? first : 0; l < L; l++) {
		h->weights += w->layer[l] + (l < p->host_experts ? 0 : w->experts[l]);
		h->kv += kept(m, l, p->context) * kv_bytes(m, l, p->small_kv) * p->seqs;
		h->state += state_bytes(m, l) * p->seqs;
	}
	h->host = all_weights(m) - h->weights + (m->cfg.tie_word_embeddings && p->layers > 0
	    ? w->embed : 0);
}

static struct held hold(const struct served *m, const struct setting *p)
{
	struct held h = { .activations = activations(m, p->seqs), .itself = m->s->itself };

	if (m->o->server == FOR_LLAMA)
		hold_layers(m, p, &h);
	else {
		h.host = p->offload;
		h.weights = all_weights(m) - p->offload;
		h.state = all_states(m) * states(m, p->seqs);
		for (int l = 0; l < m->cfg.num_hidden_layers; l++)
			h.kv += kept(m, l, p->context) * kv_bytes(m, l, p->small_kv) * p->seqs;
	}
	h.total = h.weights + h.kv + h.state + h.activations + h.itself;
	return h;
}

/* By how much the card is too small; 0: it is not. */
static int64_t over_card(const struct served *m, const struct setting *p)
{
	int64_t n = hold(m, p).total - m->o->limit;

	return n > 0 ? n : 0;
}

/* And the host. */
static int64_t over(const struct served *m, const struct setting *p)
{
	int64_t n = m->o->ram > 0 ? hold(m, p).host - m->o->ram : 0;

	return over_card(m, p) + (n > 0 ? n : 0);
}

/* llama.cpp: experts of as few layers as need be go to the host, then whole layers. */
static bool settle_layers(const struct served *m, struct setting *p)
{
	int L = m->cfg.num_hidden_layers;

	p->layers = L + 1;
	p->host_experts = 0;
	if (m->o->server != FOR_LLAMA)
		return over(m, p) == 0;
	while (over_card(m, p) > 0 && m->cfg.num_sparse > 0 && p->host_experts < L)
		p->host_experts++;
	while (over_card(m, p) > 0 && p->layers > 0)
		p->layers--;
	return over(m, p) == 0;
}

/* The largest *x from lo to hi, a multiple of step, with which it fits; false: none. */
static bool largest(const struct served *m, struct setting *p, int *x, int lo, int hi, int step)
{
	int a = lo / step, b = hi / step;

	for (*x = a * step; a < b; ) {
		int mid = a + (b - a + 1) / 2;

		*x = mid * step;
		if (settle_layers(m, p))
			a = mid;
		else
			b = mid - 1;
	}
	*x = a * step;
	return settle_layers(m, p);
}

/* What was asked for; and where nothing was, what fits. */
static bool settle(const struct served *m, struct setting *p)
{
	const struct fit_for *o = m->o;
	int most = m->cfg.max_position_embeddings;
	bool fits;

	*p = (struct setting){ .seqs = o->seqs > 0 ? o->seqs : 1, .context = o->context > 0
	    ? o->context : most < LONGEST ? most : LONGEST, .small_kv = o->small_kv };
	fits = settle_layers(m, p);
	if (!fits && o->context == 0 && most > SHORTEST) {
		struct setting q = *p;

		if ((fits = largest(m, &q, &q.context, SHORTEST, p->context, SHORTEST)))
			*p = q;
	}
	if (fits && o->seqs == 0 && o->server != FOR_LLAMA)
		largest(m, p, &p->seqs, 1, MOST_SEQS, 1);
	return fits;
}

/* --- flags --- */

static double up(double x, double step) { return ceil(x / step - 1e-9) * step; }

static int vllm_flags(const struct served *m, const struct setting *p, char *s, size_t size)
{
	struct held h = hold(m, p);
	int n = snprintf(s, size, "--max-model-len %d --max-num-seqs %d --max-num-batched-tokens %d"
	    " --gpu-memory-utilization %.3f", p->context, p->seqs, m->s->rows,
	    up((double)h.total / (double)m->o->vram, 0.001));

	if (p->offload > 0)
		n += snprintf(s + n, size - (size_t)n, " --cpu-offload-gb %.1f",
		    up((double)p->offload / (double)GIB, 0.1));
	return n;
}

static int sglang_flags(const struct served *m, const struct setting *p, char *s, size_t size)
{
	struct held h = hold(m, p);
	int64_t fixed = h.weights + h.kv + h.state, full = pages(m, p->context), window = full;
	int n = snprintf(s, size, "--context-length %d --max-running-requests %d "
	    "--chunked-prefill-size %d --mem-fraction-static %.3f", p->context, p->seqs,
	    m->s->rows, up((double)fixed / (double)m->o->vram, 0.001));

	for (int l = 0; l < m->cfg.num_hidden_layers; l++)
		if (kept(m, l, p->context) < window)
			window = kept(m, l, p->context);
	if (window < full)
		n += snprintf(s + n, size - (size_t)n, " --swa-full-tokens-ratio %.3f",
		    up((double)window / (double)full, 0.001));
	if (h.state > 0)
		n += snprintf(s + n, size - (size_t)n, " --max-mamba-cache-size %d",
		    states(m, p->seqs));
	if (p->offload > 0)
		n += snprintf(s + n, size - (size_t)n, " --cpu-offload-gb %.0f",
		    up((double)p->offload / (double)GIB, 1));
	return n;
}

static int llama_flags(const struct served *m, const struct setting *p, char *s, size_t size)
{
	int n = snprintf(s, size, "-c %lld -np %d -ub %d -ngl %d", (long long)pages(m, p->context) *
	    p->seqs, p->seqs, m->s->rows, p->layers);

	if (p->host_experts > 0)
		n += snprintf(s + n, size - (size_t)n, " --n-cpu-moe %d", p->host_experts);
	if (p->small_kv)
		n += snprintf(s + n, size - (size_t)n, " -fa on");
	return n;
}

static void flags(const struct served *m, const struct setting *p, char s[512])
{
	int n = m->o->server == FOR_VLLM ? vllm_flags(m, p, s, 512) : m->o->server == FOR_SGLANG
	    ? sglang_flags(m, p, s, 512) : llama_flags(m, p, s, 512);

	if (p->small_kv)
		snprintf(s + n, 512 - (size_t)n, " %s", m->s->small_kv);
}

/* --- what would help --- */

/* A change of one thing: what it saves, and whether it is enough; then it becomes *best unless
 * there is one. */
static void help(const struct served *m, json_t *list, const char *flag, const struct setting *from,
    struct setting *to, struct setting *best, bool *found)
{
	int64_t saves = m->o->server == FOR_LLAMA ? over(m, from) - over(m, to)
	    : hold(m, from).total - hold(m, to).total;
	bool enough = over(m, to) == 0;
	json_t *r;

	if (saves <= 0)
		return;
	r = json_object();
	json_set_str(r, "flag", flag);
	json_set_int(r, "saves", saves);
	json_object_set_new(r, "enough", json_boolean(enough));
	json_array_append_new(list, r);
	if (enough && !*found)
		*best = *to;
	*found |= enough;
}

/* As much of the weights goes to the host as does not fit, in the steps of the flag. */
static void offload(const struct served *m, struct setting *p)
{
	double step = m->o->server == FOR_VLLM ? 0.1 : 1;
	int64_t all = all_weights(m), n = (int64_t)(up((double)over(m, p) / (double)GIB, step) *
	    (double)GIB);

	p->offload = n < all ? n : all;
}

static json_t *helps(const struct served *m, const struct setting *p, struct setting *best,
    bool *found)
{
	json_t *list = json_array();
	struct setting q = *p;
	char flag[64];

	q.small_kv = true;
	settle_layers(m, &q);
	if (!p->small_kv)
		help(m, list, m->s->small_kv, p, &q, best, found);
	q = *p;
	if (p->seqs > 1) {
		largest(m, &q, &q.seqs, 1, p->seqs, 1);
		snprintf(flag, sizeof flag, "%s %d", m->s->seqs, q.seqs);
		help(m, list, flag, p, &q, best, found);
		q = *p;
	}
	if (p->context > SHORTEST) {
		largest(m, &q, &q.context, SHORTEST, p->context, SHORTEST);
		snprintf(flag, sizeof flag, "%s %lld", m->s->context, m->o->server == FOR_LLAMA
		    ? (long long)q.context * q.seqs : (long long)q.context);
		help(m, list, flag, p, &q, best, found);
		q = *p;
	}
	if (m->o->server != FOR_LLAMA) {
		offload(m, &q);
		snprintf(flag, sizeof flag, "--cpu-offload-gb %g", up((double)q.offload /
		    (double)GIB, m->o->server == FOR_VLLM ? 0.1 : 1));
		help(m, list, flag, p, &q, best, found);
	}
	return list;
}

/* --- the record --- */

static void put_layers(const struct served *m, json_t *r)
{
	static const char *const name[] = { "full", "sliding", "mla", "latent", "delta", "conv" };
	json_t *o = json_object();
	int n[6] = { 0 };

	for (int l = 0; l < m->cfg.num_hidden_layers; l++)
		n[m->cfg.block[l].attn]++;
	for (int i = 0; i < 6; i++)
		if (n[i] > 0)
			json_set_int(o, name[i], n[i]);
	json_object_set_new(r, "layers", o);
}

static void put_held(json_t *r, const struct held *h)
{
	json_t *o = json_object();

	json_set_int(o, "weights", h->weights);
	json_set_int(o, "keys and values", h->kv);
	if (h->state > 0)
		json_set_int(o, "states", h->state);
	json_set_int(o, "activations", h->activations);
	json_set_int(o, "server", h->itself);
	json_object_set_new(r, "items", o);
	json_set_int(r, "total", h->total);
	json_set_int(r, "host", h->host);
}

static void put_model(const struct served *m, json_t *r, const struct setting *p)
{
	int64_t kv = 0;

	for (int l = 0; l < m->cfg.num_hidden_layers; l++)
		kv += kv_bytes(m, l, p->small_kv);
	json_set_int(r, "vram", m->o->vram);
	json_set_int(r, "limit", m->o->limit);
	json_set_int(r, "weights", all_weights(m));
	json_set_str(r, "weights_from", m->weights_from);
	if (m->w.unused > 0)
		json_set_int(r, "unused", m->w.unused);
	put_layers(m, r);
	json_set_int(r, "kv_bytes_per_token", kv);
	if (all_states(m) > 0)
		json_set_int(r, "state_bytes_per_sequence", all_states(m));
	json_object_set_new(r, "assumed", json_pack("[s,s]", "activations", "server"));
}

/* The same choice of experts for -ot, which knows no numbers of layers. */
static void put_tensors(const struct served *m, json_t *r, const struct setting *p)
{
	char s[CFG_MAX_LAYERS * 4 + 64];
	int n = snprintf(s, sizeof s, "blk\\.(");

	if (p->host_experts == 0)
		return;
	for (int l = 0, some = 0; l < p->host_experts; l++)
		if (m->cfg.block[l].sparse)
			n += snprintf(s + n, sizeof s - (size_t)n, "%s%d", some++ ? "|" : "", l);
	snprintf(s + n, sizeof s - (size_t)n, ")\\.ffn_.*_exps\\.=CPU");
	json_set_str(r, "override_tensor", s);
}

static int put(const struct served *m, struct setting *p, bool fits, struct err *e)
{
	json_t *r = json_pack("{s:s, s:s, s:s}", "type", "fit", "step", "for", "server",
	    m->s->name);
	struct held h = hold(m, p);
	struct setting best = *p;
	bool found = false;
	char args[512];
	int rc;

	put_model(m, r, p);
	json_set_int(r, "sequences", p->seqs);
	json_set_int(r, "context", p->context);
	put_held(r, &h);
	json_object_set_new(r, "fits", json_boolean(fits));
	if (!fits) {
		json_set_int(r, "over", over(m, p));
		json_object_set_new(r, "helps", helps(m, p, &best, &found));
	}
	if (fits || found) {
		put_tensors(m, r, &best);
		flags(m, &best, args);
		json_set_str(r, "args", args);
	}
	rc = human_put(r, e);
	if (!opt_quiet && !fits)
		fprintf(stderr, "does not fit by %.2f GiB%s%s\n", (double)over(m, p) / (double)GIB,
		    found ? "; this would: " : ", and no single flag helps", found ? args : "");
	else if (!opt_quiet)
		fprintf(stderr, "fits: %s, %.2f GiB of %.2f\n", args, (double)h.total / (double)GIB,
		    (double)m->o->limit / (double)GIB);
	json_decref(r);
	return rc < 0 ? -1 : fits;
}

/* --- the model --- */

static int refuse(const struct served *m, const char *name, bool packed, struct err *e)
{
	if (packed)
		return err_set(e, EX_DATAERR, "%s: packed: another server needs the model that it "
		    "was packed from", name);
	if (m->cfg.arch == &arch_chronos)
		return err_set(e, EX_DATAERR, "%s: of the family \"%s\", which %s does not know",
		    name, m->cfg.arch->model_type, m->s->name);
	return 0;
}

static int open_model(struct served *m, const char *model, const char *config,
    const struct opt_list *sets, struct err *e)
{
	const char *const *v = (const char *const *)sets->v;
	struct modeldir md;
	int rc;

	if (config == NULL && !fit_has_weights(model))
		config = model;
	if (config != NULL) {
		if (config_load(&m->cfg, config, sets->n, v, e) < 0 ||
		    params_build(&m->ps, &m->cfg, e) < 0 || refuse(m, config, false, e) < 0)
			return -1;
		weigh_params(m);
		return 0;
	}
	if (modeldir_open(&md, model, sets->n, v, e) < 0)
		return -1;
	m->cfg = md.cfg;
	rc = params_build(&m->ps, &md.cfg, e) < 0 ? -1 : refuse(m, model, md.packed, e);
	if (rc == 0 && m->o->server == FOR_LLAMA && m->o->quant != DT_F32)
		weigh_params(m);
	else if (rc == 0)
		weigh_files(m, &md);
	md.cfg = (struct config){ 0 };		/* it goes on as the model's */
	modeldir_close(&md);
	return rc;
}

int fit_for(const char *model, const char *config, const struct opt_list *sets,
    const struct fit_for *o, struct err *e)
{
	static struct served m;		/* too large for a stack */
	struct setting p;
	int rc;

	m = (struct served){ .o = o, .s = &servers[o->server] };
	rc = open_model(&m, model, config, sets, e);
	if (rc == 0) {
		bool fits = settle(&m, &p);

		rc = put(&m, &p, fits, e);
	}
	params_free(&m.ps);
	config_free(&m.cfg);
	return rc;
}
