#include "model/adapter_save.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arch/arch.h"
#include "arch/homes.h"
#include "base/file.h"
#include "base/jsonfile.h"
#include "base/mem.h"
#include "format/export.h"
#include "format/modeldir.h"
#include "format/safetensors.h"
#include "model/adapter.h"

#define WEIGHT ".weight"

/* Has transformers modules for every matrix of it? Then they have our names. */
static bool in_modules(const struct config *c)
{
	return c->arch->ours && !export_as_qwen3_moe(c);
}

static void home_of(const struct config *c, const struct param *p, struct home *h)
{
	if (in_modules(c))
		snprintf(h->name, sizeof h->name, "%s", p->name), h->how = 0;
	else
		homes_memory(c, p, h);
}

/* Is it said in target_parameters? */
static bool by_parameter(const struct config *c, const struct param *p)
{
	return !in_modules(c) && c->num_sparse > 0 && (p->kind == P_GATE ||
	    param_is(p, PARAM_FFN));
}

/* --- tensors --- */

/* The experts of a layer that lie in one tensor. */
struct stack {
	char name[sizeof ((struct home *)0)->name];
	int layer, rows, cols;	/* of one expert, gate and up together */
	int rank;		/* of one, the same */
	int experts;
	bool halves;		/* gate and up */
};

static bool stack_of(const struct config *c, const struct param *p, int rank, struct stack *s)
{
	struct home h;

	if (!param_routed(p))
		return false;
	home_of(c, p, &h);
	if (!(h.how & AT_STACKED))
		return false;
	*s = (struct stack){ .layer = p->layer, .rows = p->rows, .cols = p->cols, .rank = rank,
	    .experts = c->num_experts, .halves = param_part(p) < 2 };
	memcpy(s->name, h.name, sizeof s->name);
	if (s->halves) {
		s->rows *= 2;
		s->rank *= 2;
	}
	return true;
}

static bool is_in(const struct stack *s, const struct param *p)
{
	return p->layer == s->layer && param_routed(p) && (param_part(p) < 2) == s->halves;
}

/* A of one expert's matrix, (rank, cols), into that of all. */
static void put_a(float *dst, const struct stack *s, const struct param *p, int rank,
    const float *a)
{
	int64_t first = (int64_t)p->expert * s->rank + (param_part(p) == 1 ? rank : 0);

	memcpy(dst + first * s->cols, a, (size_t)rank * (size_t)s->cols * sizeof *dst);
}

/* B of one expert's matrix, (rows, rank), into that of all. */
static void put_b(float *dst, const struct stack *s, const struct param *p, unsigned how,
    int rank, const float *b)
{
	const int64_t wide = (int64_t)s->experts * s->rank;
	const int step = how & (AT_EVEN | AT_ODD) ? 2 : 1;
	const int first = how & AT_SECOND ? p->rows : how & AT_ODD ? 1 : 0;
	const int shift = param_part(p) == 1 ? rank : 0;

	for (int r = 0; r < p->rows; r++)
		for (int k = 0; k < rank; k++)
			dst[(first + (int64_t)r * step) * wide + (int64_t)(shift + k) *
			    s->experts + p->expert] = b[(int64_t)r * rank + k];
}

static int64_t elements(const struct stack *s, int part)
{
	return (int64_t)s->experts * s->rank * (part == 0 ? s->cols : s->rows);
}

/* --- the file --- */

struct out {
	const struct adapter_save *s;
	struct st_writer *w;
	float *x;			/* room for the largest stack */
	struct st_error se;
};

static const struct param *target(const struct out *o, int t)
{
	return &o->s->lora->model->p[o->s->lora->target[t]];
}

/* Is target t the first of those in its stack? */
static bool begins(const struct out *o, int t, const struct stack *s)
{
	while (--t >= 0 && target(o, t)->layer == s->layer)
		if (is_in(s, target(o, t)))
			return false;
	return true;
}

static void declare(struct out *o, const char *module, int part, int64_t rows, int64_t cols)
{
	const uint64_t shape[2] = { (uint64_t)rows, (uint64_t)cols };
	char name[192];

	snprintf(name, sizeof name, ADAPTER_PREFIX "%s.lora_%c" WEIGHT, module, 'A' + part);
	st_writer_add(o->w, name, ST_F32, 2, shape, 0, &o->se);
}

/* PEFT wraps a module once for each of its parameters that are adapted, the last outermost. */
static bool has_down(const struct out *o, int layer)
{
	for (int t = 0; t < o->s->lora->n; t++)
		if (target(o, t)->layer == layer && target(o, t)->kind == P_EXP_DOWN)
			return true;
	return false;
}

static void declare_stack(struct out *o, const struct stack *s)
{
	char module[sizeof s->name + 16];
	const int64_t wide = (int64_t)s->experts * s->rank;

	snprintf(module, sizeof module, "%.*s%s", (int)(strrchr(s->name, '.') - s->name),
	    s->name, s->halves && has_down(o, s->layer) ? ".base_layer" : "");
	declare(o, module, 0, wide, s->cols);
	declare(o, module, 1, s->rows, wide);
}

static void declare_plain(struct out *o, int t)
{
	const struct param *a = &o->s->lora->par.p[2 * t];
	struct home h;

	home_of(o->s->cfg, target(o, t), &h);
	h.name[strlen(h.name) - strlen(WEIGHT)] = '\0';
	for (int part = 0; part < 2; part++)
		declare(o, h.name, part, a[part].rows, a[part].cols);
}

static void put_stack(struct out *o, const struct stack *s, int part)
{
	const struct lora *l = o->s->lora;

	memset(o->x, 0, (size_t)elements(s, part) * sizeof *o->x);
	for (int t = 0; t < l->n; t++) {
		const struct param *p = target(o, t);
		const float *x;
		struct home h;

		if (!is_in(s, p))
			continue;
		home_of(o->s->cfg, p, &h);
		x = o->s->get(o->s->ctx, 2 * t + part);
		if (part == 0)
			put_a(o->x, s, p, l->rank, x);
		else
			put_b(o->x, s, p, h.how, l->rank, x);
	}
	st_writer_data(o->w, o->x, (size_t)elements(s, part) * sizeof *o->x, &o->se);
}

static void put_plain(struct out *o, int t)
{
	for (int i = 2 * t; i < 2 * t + 2; i++)
		st_writer_data(o->w, o->s->get(o->s->ctx, i),
		    (size_t)param_size(&o->s->lora->par.p[i]) * sizeof(float), &o->se);
}

/* A failed writer stays failed, so only the last call is looked at. */
static int put_file(struct out *o, const char *path, struct err *e)
{
	const struct lora *l = o->s->lora;
	const char *key;
	struct stack s;
	json_t *v;

	if ((o->w = st_writer_create(path, &o->se)) == NULL)
		return modeldir_st_err(e, path, &o->se);
	for (int t = 0; t < l->n; t++)
		if (!stack_of(o->s->cfg, target(o, t), l->rank, &s))
			declare_plain(o, t);
		else if (begins(o, t, &s))
			declare_stack(o, &s);
	json_object_foreach((json_t *)(uintptr_t)o->s->metadata, key, v)
		st_writer_meta(o->w, key, json_string_value(v), &o->se);
	st_writer_meta(o->w, ADAPTER_GATE_UP, "blocks", &o->se);
	st_writer_begin(o->w, &o->se);
	for (int t = 0; t < l->n; t++)
		if (!stack_of(o->s->cfg, target(o, t), l->rank, &s))
			put_plain(o, t);
		else if (begins(o, t, &s))
			put_stack(o, &s, 0), put_stack(o, &s, 1);
	return st_writer_finish(o->w, &o->se) < 0 ? modeldir_st_err(e, path, &o->se) : 0;
}

int64_t adapter_save_room(const struct config *c, const struct params *ps, const bool *hit,
    int rank)
{
	int64_t n = 0;
	struct stack s;

	for (int i = 0; i < ps->n; i++)
		if (hit[i] && stack_of(c, &ps->p[i], rank, &s))
			n = mem_max(n, mem_max(elements(&s, 0), elements(&s, 1)));
	return n;
}

/* --- the configuration --- */

/* target_modules and target_parameters; true: gate and up of experts are among them. */
static bool targets(const struct adapter_save *s, json_t *modules, json_t *parameters)
{
	const struct lora *l = s->lora;
	struct out o = { .s = s };
	bool halves = false;

	for (int t = 0; t < l->n; t++) {
		const struct param *p = target(&o, t);
		struct stack stack;
		struct home h;

		home_of(s->cfg, p, &h);
		if (stack_of(s->cfg, p, l->rank, &stack)) {
			halves |= stack.halves;
			if (!begins(&o, t, &stack))
				continue;
		}
		if (by_parameter(s->cfg, p))
			json_array_append_new(parameters, json_string(h.name));
		else
			json_array_append_new(modules, json_stringn(h.name,
			    strlen(h.name) - strlen(WEIGHT)));
	}
	return halves;
}

static json_t *config(const struct adapter_save *s)
{
	const struct lora *l = s->lora;
	json_t *modules = json_array(), *parameters = json_array(),
	    *ranks = json_object(), *alphas = json_object();

	if (targets(s, modules, parameters)) {
		json_object_set_new(ranks, "gate_up_proj", json_integer(2 * l->rank));
		json_object_set_new(alphas, "gate_up_proj", json_real(2 * l->alpha));
	}
	return json_pack("{s:s, s:s, s:i, s:f, s:f, s:o, s:o, s:o, s:o, s:s, s:b, s:b, s:b, s:b, "
	    "s:n, s:b, s:s}",
	    "peft_type", "LORA", "base_model_name_or_path", s->base, "r", l->rank, "lora_alpha",
	    l->alpha, "lora_dropout", 0.0, "target_modules", modules, "target_parameters",
	    parameters, "rank_pattern", ranks, "alpha_pattern", alphas, "bias", "none",
	    "fan_in_fan_out", 0, "use_rslora", 0, "use_dora", 0, "inference_mode", 1,
	    "modules_to_save", "init_lora_weights", 1, "task_type", "CAUSAL_LM");
}

int adapter_save(const struct adapter_save *s, const char *dir, struct err *e)
{
	const struct lora *l = s->lora;
	char *path = file_join(dir, ADAPTER_WEIGHTS);
	bool *hit = mem_alloc((size_t)l->model->n * sizeof *hit);
	struct out o = { .s = s };
	int rc;

	for (int t = 0; t < l->n; t++)
		hit[l->target[t]] = true;
	o.x = mem_alloc((size_t)adapter_save_room(s->cfg, l->model, hit, l->rank) * sizeof *o.x);
	rc = put_file(&o, path, e);
	mem_free(o.x);
	mem_free(hit);
	free(path);
	return rc < 0 ? -1 : jsonfile_put(dir, ADAPTER_CONFIG, config(s), JSON_INDENT(1), e);
}
