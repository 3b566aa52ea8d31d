#include "measure/forecast.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "arch/arch.h"
#include "backend/quant.h"
#include "base/human.h"
#include "base/json.h"
#include "decode/decode.h"
#include "decode/report.h"
#include "experts/actlog.h"
#include "experts/predict.h"
#include "experts/replay.h"
#include "experts/store.h"
#include "format/modeldir.h"
#include "measure/forecast_rate.h"

#define PROMPT 512		/* tokens that the speed of prompts is said for, at most */
#define GIB ((int64_t)1 << 30)
#define MIB ((int64_t)1 << 20)

struct work {			/* of a token */
	double dense[DTYPES];	/* products with dense matrices of a type, but for the head */
	double head; enum dtype head_type;
	double expert;		/* of one routed expert */
	double attn;		/* for each position that is seen by all layers alike */
	double states;		/* bytes of states, read and written */
	int width;		/* of a typical matrix */
};

struct rates {
	double memory, layer, token;
	double one[DTYPES], many[DTYPES];	/* products per second: of one row, of a pass's */
	double expert_one, expert_many;
	double attn_one, attn_many;
	struct forecast_drive drive;
};

struct forecast {
	struct fit *f;
	struct fit_opt *o;
	const struct forecast_opt *w;
	struct work work;
	struct rates rate;
	struct replay log;
	int prompt, passes, rows;	/* rows of a pass */
	int64_t expert_bytes, disk;	/* disk: read until all headers were known */
};

/* --- what a token takes --- */

static int type_of(const struct forecast *c, const struct modeldir *md, const struct param *p,
    enum dtype *t, struct err *e)
{
	*t = DT_F32;
	if (c->f->supposed && dtype_blocks(c->o->dense) && param_is(p, PARAM_QUANTISES)) {
		*t = c->o->dense;
		return 0;
	}
	if (md == NULL)
		return 0;
	if (modeldir_type(md, p, t, e) < 0)
		return -1;
	if (!dtype_blocks(*t))
		*t = DT_F32;
	return 0;
}

/* Layers with keys and values see all positions or a window, `seen` of them. */
static void count_attention(struct forecast *c, int seen)
{
	const struct config *g = &c->f->cfg;
	double values;

	for (int l = 0; l < g->num_hidden_layers; l++) {
		const struct block *b = &g->block[l];
		int span = b->window > 0 && b->window < seen ? b->window : seen;

		values = block_latent(b) ? 2.0 * b->latent + b->rope.width : 2.0 * g->head_dim;
		if (b->attn == ATTN_DELTA)
			c->work.states += 8.0 * b->delta.H * b->delta.dk * b->delta.dv;
		else if (!block_recurs(b))
			c->work.attn += values * g->num_attention_heads * span / seen;
	}
}

static int count(struct forecast *c, const struct modeldir *md, struct err *e)
{
	const struct config *g = &c->f->cfg;
	bool look = c->o->predict & (SRC_BIT(SRC_LOOK) | SRC_BIT(SRC_SAME));

	c->work.expert = 3.0 * g->hidden_size * g->moe_intermediate_size;
	c->work.width = g->intermediate_size > 0 ? g->intermediate_size
	    : 2 * g->hidden_size;
	for (int i = 0; i < c->f->ps.n; i++) {
		const struct param *p = &c->f->ps.p[i];
		bool head = p->kind == P_HEAD || (p->kind == P_EMBED && g->tie_word_embeddings);
		enum dtype t;

		if (param_routed(p) || p->ndim < 2 || (p->kind == P_EMBED && !head) ||
		    (param_is(p, PARAM_LOOK) && !(look && c->f->packed)))
			continue;
		if (type_of(c, md, p, &t, e) < 0)
			return -1;
		if (head) {
			c->work.head = (double)param_size(p);
			c->work.head_type = t;
		} else
			c->work.dense[t] += (double)param_size(p);
	}
	count_attention(c, c->f->asked.seq / 2 > 0 ? c->f->asked.seq / 2 : 1);
	return 0;
}

static int count_model(struct forecast *c, struct err *e)
{
	struct modeldir md;
	int64_t rchar;
	int rc;

	if (c->o->model == NULL || !fit_has_weights(c->o->model))
		return count(c, NULL, e);
	if (modeldir_open(&md, c->o->model, c->o->sets.n, (const char *const *)c->o->sets.v, e) < 0)
		return -1;
	rc = count(c, &md, e);
	modeldir_close(&md);
	report_io(&rchar, &c->disk);
	return rc;
}

/* --- rates --- */

/* BYTES_PER_S[,MS] */
static int parse_drive(const char *s, struct forecast_drive *d, struct err *e)
{
	const char *comma = strchr(s, ','), *why = "must be more than 0";
	int64_t bytes;
	double ms = 0;
	char num[64];

	snprintf(num, sizeof num, "%.*s", comma ? (int)(comma - s) : 63, s);
	if (opt_bytes(num, &bytes, &why) < 0 || bytes <= 0 ||
	    (comma && (opt_float(comma + 1, &ms, &why) < 0 || !(ms >= 0 && ms < 1e6))))
		return err_set(e, EX_USAGE, "--drive '%s': %s", s, why);
	*d = (struct forecast_drive){ .bytes_per_s = (double)bytes, .latency = ms / 1000 };
	snprintf(d->from, sizeof d->from, "--drive");
	return 0;
}

/* The directory that the model lies in. */
static char *folder(const struct fit_opt *o)
{
	const char *path = o->model ? o->model : o->config, *slash = strrchr(path, '/');
	struct stat st;

	if (stat(path, &st) == 0 && S_ISDIR(st.st_mode))
		return strdup(path);
	return slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
}

static int measure_drive(struct forecast *c, struct err *e)
{
	char *dir;
	int rc;

	if (c->w->drive)
		return parse_drive(c->w->drive, &c->rate.drive, e);
	if (!c->f->packed)
		return 0;
	if ((dir = folder(c->o)) == NULL)
		return err_set(e, EX_OSERR, "out of memory");
	rc = forecast_rate_drive(dir, c->expert_bytes, c->o->readers, &c->rate.drive, e);
	free(dir);
	return rc;
}

static int measure_dense(struct forecast *c, struct err *e)
{
	struct work *w = &c->work;
	int D = c->f->cfg.hidden_size, rc = 0;

	for (int t = 0; t < DTYPES && rc == 0; t++) {
		double products = w->dense[t] + (w->head_type == (enum dtype)t ? w->head : 0);
		int64_t bytes = (int64_t)(products * (double)mat_bytes((enum dtype)t, 16, 32) /
		    512);

		if (products == 0)
			continue;
		rc = forecast_rate_ffn((enum dtype)t, D, w->width, 1, bytes, &c->rate.one[t], e);
		if (rc == 0)
			rc = forecast_rate_ffn((enum dtype)t, D, w->width, c->rows, 32 * MIB,
			    &c->rate.many[t], e);
	}
	return rc;
}

static int per_expert(const struct forecast *c)
{
	const struct config *g = &c->f->cfg;
	double n = (double)c->rows * g->num_experts_per_tok / g->num_experts;

	return n > 1 ? (int)lround(n) : 1;
}

static int measure_experts(struct forecast *c, struct err *e)
{
	const struct config *g = &c->f->cfg;
	int D = g->hidden_size, F = g->moe_intermediate_size;
	int64_t all = c->expert_bytes * g->num_sparse * g->num_experts;

	if (g->num_sparse == 0)
		return 0;
	if (forecast_rate_ffn(c->f->expert, D, F, 1, all, &c->rate.expert_one, e) < 0)
		return -1;
	return forecast_rate_ffn(c->f->expert, D, F, per_expert(c), all, &c->rate.expert_many, e);
}

static void measure_attention(struct forecast *c)
{
	const struct config *g = &c->f->cfg;
	int H = g->num_attention_heads, G = g->num_key_value_heads, w = g->head_dim,
	    T = c->f->asked.seq < 512 ? c->f->asked.seq : 512;

	for (int l = 0; l < g->num_hidden_layers; l++)
		if (block_latent(&g->block[l])) {
			G = 1;
			w = g->block[l].latent;
			break;
		}
	c->rate.attn_one = forecast_rate_attn((enum kv_type)c->o->kv, 1, H, G, w, T);
	c->rate.attn_many = forecast_rate_attn((enum kv_type)c->o->kv, c->rows < 64 ? c->rows : 64,
	    H, G, w, T);
}

static int measure(struct forecast *c, struct err *e)
{
	struct rates *r = &c->rate;

	if (measure_drive(c, e) < 0 || (r->memory = forecast_rate_memory(e)) == 0 ||
	    measure_dense(c, e) < 0 || measure_experts(c, e) < 0 ||
	    forecast_rate_layer(c->f->be, &r->layer, &r->token, e) < 0)
		return -1;
	measure_attention(c);
	return r->attn_many > 0 ? 0 : err_set(e, EX_OSERR, "out of memory to measure attention on");
}

/* --- routing --- */

static int read_log(struct forecast *c, struct err *e)
{
	char *const names[] = { (char *)c->w->log };
	const struct config *g = &c->f->cfg;
	struct jsonl *in = jsonl_open(1, names, false, e);
	struct actlog a;
	int rc;

	if (in == NULL || actlog_open(&a, in, e) < 0) {
		jsonl_close(in);
		return -1;
	}
	replay_init(&c->log, &a.model);
	rc = a.model.layers == g->num_hidden_layers && a.model.experts == g->num_experts &&
	    a.model.top_k == g->num_experts_per_tok ? 1 : err_set(e, EX_DATAERR,
	    "%s: of another model: %d layers of %d experts, %d used", c->w->log, a.model.layers,
	    a.model.experts, a.model.top_k);
	while (rc == 1 && (rc = actlog_next(&a, e)) == 1)
		if (replay_add(&c->log, &a.act, e) < 0)
			rc = -1;
	if (rc == 0 && c->log.n == 0)
		rc = err_set(e, EX_DATAERR, "%s: no activation records", c->w->log);
	actlog_close(&a);
	jsonl_close(in);
	return rc;
}

struct routing { double hit, waits; };	/* shares of demands, and of layers with a miss */

static int route(const struct forecast *c, int slots, struct routing *r, struct err *e)
{
	const struct config *g = &c->f->cfg;
	int all = g->num_sparse * g->num_experts;
	struct replay_result x;

	*r = (struct routing){ .hit = 1 };
	if (slots < 0 || slots >= all)
		return 0;
	r->hit = (double)slots / all;
	r->waits = 1 - pow(r->hit, g->num_experts_per_tok);
	if (c->w->log == NULL)
		return 0;
	if (replay_run(&c->log, CACHE_AUTO, slots, &x, e) < 0)
		return -1;
	r->hit = (double)x.hits / (double)x.demands;
	r->waits = (double)x.waits / (double)c->log.nsets;
	return 0;
}

/* --- time --- */

struct speed {
	double dense, attention, layers, experts, reads, seconds, bytes;
};

static double dense_time(const struct forecast *c, const double rate[DTYPES])
{
	double t = 0;

	for (int i = 0; i < DTYPES; i++)
		if (c->work.dense[i] > 0)
			t += c->work.dense[i] / rate[i];
	return t;
}

static struct speed decode(const struct forecast *c, const struct routing *r)
{
	const struct config *g = &c->f->cfg;
	const struct rates *m = &c->rate;
	double K = g->num_experts_per_tok, miss = K * (1 - r->hit), one = g->num_sparse > 0
	    ? c->work.expert / m->expert_one : 0, reads = 0;
	struct speed s = { .dense = dense_time(c, m->one) + c->work.head /
	    m->one[c->work.head_type], .attention = c->work.attn * (c->f->asked.seq / 2) /
	    m->attn_one + c->work.states / m->memory,
	    .layers = g->num_hidden_layers * m->layer + m->token };

	if (miss > 0)
		reads = r->waits * m->drive.latency + miss * (double)c->expert_bytes /
		    m->drive.bytes_per_s;
	s.reads = g->num_sparse * reads;
	s.experts = g->num_sparse * K * one;
	s.bytes = g->num_sparse * miss * (double)c->expert_bytes;
	s.seconds = s.dense + s.attention + s.layers + g->num_sparse * fmax(reads + r->waits * one,
	    K * one);
	return s;
}

/* Of a prompt. */
static struct speed prefill(const struct forecast *c, int slots)
{
	const struct config *g = &c->f->cfg;
	const struct rates *m = &c->rate;
	int all = g->num_sparse * g->num_experts;
	double P = c->prompt, n = c->passes, experts = 0, again = 0, touched = 0;
	struct speed s = { .dense = P * dense_time(c, m->many) + c->work.head /
	    m->one[c->work.head_type], .attention = P * (c->work.attn * P / 2 / m->attn_many +
	    c->work.states / m->memory / 8),
	    .layers = n * (g->num_hidden_layers * m->layer + m->token) };

	if (g->num_sparse > 0) {
		touched = all * (1 - pow(1 - (double)g->num_experts_per_tok / g->num_experts,
		    c->rows));
		experts = P * g->num_sparse * g->num_experts_per_tok * c->work.expert /
		    m->expert_many;
	}
	if (slots >= 0 && slots < all) {
		again = touched * (1 - (double)slots / all);
		s.bytes = (touched + (n - 1) * again) * (double)c->expert_bytes;
		s.reads = s.bytes / m->drive.bytes_per_s + n * g->num_sparse * m->drive.latency;
	}
	s.experts = experts;
	s.seconds = s.dense + s.attention + s.layers + fmax(experts, s.reads);
	return s;
}

/* --- records --- */

static int put(json_t *r, struct err *e)
{
	int rc = human_put(r, e);

	json_decref(r);
	return rc;
}

static int put_rates(const struct forecast *c, struct err *e)
{
	const struct rates *m = &c->rate;
	const struct config *g = &c->f->cfg;
	json_t *r = json_pack("{s:s}", "type", "forecast_rates");

	json_set_str(r, "family", g->arch->model_type);
	json_set_int(r, "parameters", c->f->ps.count);
	json_set_int(r, "active", params_active(&c->f->ps, g));
	json_set_int(r, "disk_bytes", c->disk);
	json_set_num(r, "memory_bytes_per_s", m->memory);
	if (m->drive.bytes_per_s > 0) {
		json_set_num(r, "drive_bytes_per_s", m->drive.bytes_per_s);
		json_set_num(r, "drive_latency_s", m->drive.latency);
		json_object_set_new(r, "drive_from", json_text(m->drive.from,
		    strlen(m->drive.from)));
		if (!c->w->drive)
			json_object_set_new(r, "drive_direct", json_boolean(m->drive.direct));
	}
	for (int t = 0; t < DTYPES; t++)
		if (m->one[t] > 0) {
			char key[64];

			snprintf(key, sizeof key, "dense_%s_ops_per_s", dtype_name((enum dtype)t));
			json_set_num(r, key, 2 * m->one[t]);
			snprintf(key, sizeof key, "dense_%s_ops_per_s_prefill",
			    dtype_name((enum dtype)t));
			json_set_num(r, key, 2 * m->many[t]);
		}
	if (g->num_sparse > 0) {
		json_set_str(r, "experts_type", dtype_name(c->f->expert));
		json_set_num(r, "experts_ops_per_s", 2 * m->expert_one);
		json_set_num(r, "experts_ops_per_s_prefill", 2 * m->expert_many);
	}
	json_set_num(r, "attention_ops_per_s", 2 * m->attn_one);
	json_set_num(r, "attention_ops_per_s_prefill", 2 * m->attn_many);
	json_set_num(r, "layer_s", m->layer);
	return put(r, e);
}

static void put_speed(json_t *r, const char *phase, double tokens, const struct speed *s)
{
	json_t *o = json_object();

	json_set_num(o, "dense_s", s->dense / tokens);
	json_set_num(o, "attention_s", s->attention / tokens);
	json_set_num(o, "layers_s", s->layers / tokens);
	json_set_num(o, "experts_s", s->experts / tokens);
	json_set_num(o, "reads_s", s->reads / tokens);
	json_set_num(o, "read_bytes", s->bytes / tokens);
	json_object_set_new(r, phase, o);
}

/* What is not measured, by name. */
static json_t *assumed(const struct forecast *c)
{
	json_t *list = json_array();
	int64_t experts = (int64_t)c->f->cfg.num_sparse * c->f->cfg.num_experts;

	if (c->f->supposed && experts > 0)
		json_array_append_new(list, json_string("packed"));
	if (experts > 0 && c->w->log == NULL)
		json_array_append_new(list, json_string("even routing"));
	if (experts > 0)
		json_array_append_new(list, json_string("no gain from reading ahead"));
	if (c->w->drive)
		json_array_append_new(list, json_string("drive"));
	json_array_append_new(list, json_string("context half full"));
	return list;
}

static void put_fit(const struct forecast *c, json_t *r, int slots, struct err *e)
{
	const struct config *g = &c->f->cfg;
	struct routing how;
	struct speed d, p;

	if (route(c, slots, &how, e) < 0)
		return;
	d = decode(c, &how);
	p = prefill(c, slots);
	json_set_num(r, "decode_tok_per_s", 1 / d.seconds);
	json_set_num(r, "prefill_tok_per_s", c->prompt / p.seconds);
	if (g->num_sparse > 0) {
		json_set_num(r, "hit_rate", how.hit);
		json_set_str(r, "curve", c->w->log ? "log" : "even");
		json_set_num(r, "read_bytes_per_token", d.bytes);
	}
	json_set_int(r, "context", c->f->asked.seq);
	json_set_int(r, "prompt", c->prompt);
	put_speed(r, "decode", 1, &d);
	put_speed(r, "prefill", c->prompt, &p);
}

/* 1: the model fits. */
static int put_budget(struct forecast *c, int64_t budget, struct err *e)
{
	json_t *r = json_pack("{s:s}", "type", "forecast"), *items;
	struct mem_plan plan = { 0 };
	int rc, fits = 0;

	c->o->ram = budget;
	rc = fit_plan(c->f, &c->f->asked, &plan, e);
	if (rc < 0 && (e->status != EX_OSERR || plan.n == 0)) {
		json_decref(r);
		return -1;
	}
	*e = (struct err){ 0 };
	fits = rc == 0 && fit_holds(c->f, &plan);
	json_set_int(r, "budget", budget);
	json_object_set_new(r, "fits", json_boolean(fits));
	json_set_int(r, "bytes", fit_bytes(c->f, &plan));
	if (c->f->cfg.num_sparse > 0) {
		json_set_int(r, "experts", (int64_t)c->f->cfg.num_sparse * c->f->cfg.num_experts);
		json_set_int(r, "slots", fits ? fit_slots(c->f, &plan) : 0);
		json_set_int(r, "expert_bytes", c->expert_bytes);
	}
	if (fits)
		put_fit(c, r, fit_slots(c->f, &plan), e);
	items = mem_plan_json(&plan);
	json_object_set(r, "items", json_object_get(items, "items"));
	json_decref(items);
	json_object_set_new(r, "assumed", assumed(c));
	if (e->status != 0) {
		json_decref(r);
		return -1;
	}
	return put(r, e) < 0 ? -1 : fits;
}

/* --- budgets --- */

static int put_list(struct forecast *c, struct err *e)
{
	char *list = strdup(c->w->budgets), *save = NULL, *word;
	int any = 0, rc = list ? 0 : err_set(e, EX_OSERR, "out of memory");

	for (word = list ? strtok_r(list, ",", &save) : NULL; word && rc >= 0;
	    word = strtok_r(NULL, ",", &save)) {
		const char *why = "must be more than 0";
		int64_t bytes;

		if (opt_bytes(word, &bytes, &why) < 0 || bytes <= 0)
			rc = err_set(e, EX_USAGE, "--budgets '%s': %s", word, why);
		else if ((rc = put_budget(c, bytes, e)) > 0)
			any = 1;
	}
	free(list);
	return rc < 0 ? -1 : any;
}

static int put_usual(struct forecast *c, struct err *e)
{
	struct mem_plan plan = { 0 };
	int64_t all, budget[3] = { 8 * GIB, 16 * GIB, 32 * GIB };
	int any = 0;

	c->o->ram = 0;
	if (fit_plan(c->f, &c->f->asked, &plan, e) < 0)
		return -1;
	all = (fit_bytes(c->f, &plan) / MIB + 2) * MIB;
	for (int i = 0; i < 3; i++) {
		int rc = put_budget(c, all <= 8 * GIB ? all >> (2 - i) : budget[i], e);

		if (rc < 0)
			return -1;
		any |= rc;
	}
	return any;
}

static int begin(struct forecast *c, struct err *e)
{
	const struct config *g = &c->f->cfg;
	const struct manifest *m = &c->f->man;
	int half = c->f->asked.seq / 2 > 0 ? c->f->asked.seq / 2 : 1;

	c->expert_bytes = m->gate_bytes + m->up_bytes + m->down_bytes;
	if (!c->f->packed && g->num_sparse > 0)
		c->expert_bytes = 2 * (int64_t)mat_bytes(c->f->expert, g->moe_intermediate_size,
		    g->hidden_size) + (int64_t)mat_bytes(c->f->expert, g->hidden_size,
		    g->moe_intermediate_size);
	c->prompt = half < PROMPT ? half : PROMPT;
	c->passes = (c->prompt + c->o->chunk - 1) / c->o->chunk;
	c->rows = (c->prompt + c->passes - 1) / c->passes;
	if (c->f->packed && !c->f->supposed)
		c->f->expert = m->dt[0];
	return count_model(c, e);
}

int forecast(struct fit *f, struct fit_opt *o, const struct forecast_opt *w, struct err *e)
{
	struct forecast c = { .f = f, .o = o, .w = w };
	const int64_t ram = o->ram;
	int rc;

	rc = w->log && f->cfg.num_sparse > 0 ? read_log(&c, e) : 0;
	if (rc == 0)
		rc = begin(&c, e);
	if (rc == 0)
		rc = measure(&c, e);
	if (rc == 0 && (rc = put_rates(&c, e)) == 0)
		rc = w->budgets ? put_list(&c, e) : put_usual(&c, e);
	replay_free(&c.log);
	o->ram = ram;
	return rc;
}
