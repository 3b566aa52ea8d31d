#include "model/lora.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "format/modeldir.h"
#include "model/peft.h"
#include "model/optim.h"
#include "base/rng.h"
#include "format/safetensors.h"

#define PREFIX "base_model.model."

enum { STREAM_LORA = 0x6c6f7261 };

/* PEFT's name of a part of the adapter of the matrix `name`, which ends in ".weight". */
static void part_name(char *out, size_t size, const char *name, char part)
{
	snprintf(out, size, PREFIX "%.*s.lora_%c.weight", (int)(strlen(name) - strlen(".weight")),
	    name, part);
}

static bool can_adapt(const struct param *p)
{
	return param_is(p, PARAM_ADAPTS);
}

static void add_part(struct params *ps, const struct param *of, char part, int rows, int cols)
{
	struct param *p = &ps->p[ps->n++];

	*p = (struct param){ .kind = of->kind, .layer = of->layer, .expert = of->expert, .ndim = 2,
	    .rows = rows,
	    .cols = cols, .off = ps->total, .owner = -1 };
	part_name(p->name, sizeof p->name, of->name, part);
	ps->total += param_span(p);
	ps->count += param_size(p);
}

/* The adapter's parameters and its targets. each: (n of the model) their shapes, NULL: all
 * alike. */
static int build(struct lora *l, const bool *hit, const struct lora_shape *each, struct err *e)
{
	for (int i = 0; i < l->model->n; i++) {
		if (hit[i] && !can_adapt(&l->model->p[i]))
			return err_set(e, EX_USAGE,
			    "%s: cannot have an adapter, it is not a matrix that multiplies",
			    l->model->p[i].name);
		l->n += hit[i];
	}
	l->target = calloc((size_t)l->n + 1, sizeof *l->target);
	l->each = calloc((size_t)l->n + 1, sizeof *l->each);
	l->par.p = calloc((size_t)l->n * 2 + 1, sizeof *l->par.p);
	if (l->target == NULL || l->each == NULL || l->par.p == NULL)
		return err_set(e, EX_OSERR, "out of memory");
	for (int i = 0, n = 0; i < l->model->n; i++) {
		const struct param *p = &l->model->p[i];

		if (!hit[i])
			continue;
		l->target[n++] = i;
		if (each != NULL)
			l->each[n - 1] = each[i];
		else
			l->each[n - 1] = (struct lora_shape){ l->rank, l->alpha / l->rank };
		add_part(&l->par, p, 'A', l->each[n - 1].rank, p->cols);
		add_part(&l->par, p, 'B', p->rows, l->each[n - 1].rank);
	}
	return 0;
}

/* Elements of the copies W0, and of the largest A or B. */
static void sizes(const struct lora *l, int64_t *copies, int64_t *largest)
{
	*copies = *largest = 0;
	for (int i = 0; i < l->n; i++) {
		const struct param *p = &l->model->p[l->target[i]];
		int64_t side = p->rows > p->cols ? p->rows : p->cols;

		*copies += param_span(p);
		*largest = mem_max(*largest, side * l->each[i].rank);
	}
}

void lora_plan(struct mem_plan *p, const struct params *model, const bool *hit, int rank)
{
	struct lora l = { .model = model, .rank = rank, .alpha = 1 };
	struct err e = {0};
	int64_t copies, largest;

	if (build(&l, hit, NULL, &e) == 0) {	/* else lora_open() will say why not */
		sizes(&l, &copies, &largest);
		mem_plan_add(p, "adapter", (2 * l.par.total + largest) * (int64_t)sizeof(real));
		optim_plan(p, &l.par, NULL);
		mem_plan_add(p, "matrices under the adapter", copies * (int64_t)sizeof(real));
	}
	free(l.target);
	free(l.each);
	free(l.par.p);
}

static int open_with(struct lora *l, const bool *hit, const struct lora_shape *each,
    struct err *e)
{
	const struct backend *be = l->be;
	int64_t copies, largest;

	if (build(l, hit, each, e) < 0) {
		lora_close(l);
		return -1;
	}
	sizes(l, &copies, &largest);
	l->w = be->alloc(be, (size_t)l->par.total * sizeof *l->w);
	l->g = be->alloc(be, (size_t)l->par.total * sizeof *l->g);
	l->w0 = be->alloc(be, (size_t)copies * sizeof *l->w0);
	l->scaled = be->alloc(be, (size_t)largest * sizeof *l->scaled);
	if (l->w == NULL || l->g == NULL || l->w0 == NULL || l->scaled == NULL) {
		lora_close(l);
		return err_set(e, EX_OSERR, "no memory for the adapter");
	}
	return 0;
}

int lora_open(struct lora *l, const struct params *model, const bool *hit, int rank, double alpha,
    const struct backend *be, struct err *e)
{
	*l = (struct lora){ .be = be, .model = model, .rank = rank, .alpha = alpha };
	return open_with(l, hit, NULL, e);
}

void lora_close(struct lora *l)
{
	dev_real *const mine[] = { l->w, l->g, l->w0, l->scaled };

	for (size_t i = 0; i < sizeof mine / sizeof *mine; i++)
		if (mine[i] != NULL)
			l->be->free(l->be, mine[i]);
	free(l->target);
	free(l->each);
	free(l->par.p);
	memset(l, 0, sizeof *l);
}

/* A as PEFT begins it: uniform within 1/sqrt(columns). B is 0, so the adapter begins at nothing. */
static void random_a(struct lora *l, int i, uint64_t seed)
{
	const struct param *p = &l->par.p[2 * i];
	double bound = 1 / sqrt((double)p->cols);
	real *a = mem_alloc((size_t)param_size(p) * sizeof *a);

	for (int64_t j = 0; j < param_size(p); j++)
		a[j] = (real)((2 * rng_uniform(seed, STREAM_LORA + (uint64_t)i, (uint64_t)j) - 1) *
		    bound);
	l->be->put(l->be, l->w + p->off, a, (size_t)param_size(p) * sizeof *a);
	mem_free(a);
}

void lora_start(struct lora *l, const dev_real *w, uint64_t seed)
{
	int64_t at = 0;

	l->be->zero(l->be, l->w, (size_t)l->par.total * sizeof *l->w);
	for (int i = 0; i < l->n; i++) {
		const struct param *p = &l->model->p[l->target[i]];

		l->be->copy(l->be, l->w0 + at, w + p->off,
		    (size_t)param_size(p) * sizeof *w);
		at += param_span(p);
		random_a(l, i, seed);
	}
}

/* The factor times a part of target i, in l->scaled. */
static const dev_real *scale_part(const struct lora *l, int i, const struct param *p)
{
	l->be->copy(l->be, l->scaled, l->w + p->off, (size_t)param_size(p) * sizeof *l->w);
	l->be->scale(l->be, l->scaled, l->each[i].factor, param_size(p));
	return l->scaled;
}

void lora_apply(const struct lora *l, dev_real *w)
{
	int64_t at = 0;

	for (int i = 0; i < l->n; i++) {
		const struct param *p = &l->model->p[l->target[i]], *a = &l->par.p[2 * i];
		struct gemm_job j = { w + p->off, p->cols, scale_part(l, i, a + 1), a->rows,
		    l->w + a->off, p->cols, DT_REAL,
		    p->rows, p->cols, a->rows, 1 };

		l->be->copy(l->be, w + p->off, l->w0 + at,
		    (size_t)param_size(p) * sizeof *w);
		l->be->gemm_train(l->be, GEMM_NN, &j, 1);
		at += param_span(p);
	}
}

void lora_gradients(struct lora *l, const dev_real *g)
{
	for (int i = 0; i < l->n; i++) {
		const struct param *p = &l->model->p[l->target[i]], *a = &l->par.p[2 * i],
		    *b = a + 1;
		const dev_real *dw = g + p->off;
		struct gemm_job db = { l->g + b->off, a->rows, dw, p->cols, NULL, p->cols, DT_REAL,
		    p->rows, a->rows, p->cols, 0 };
		struct gemm_job da = { l->g + a->off, p->cols, NULL, a->rows, dw, p->cols, DT_REAL,
		    a->rows, p->cols, p->rows, 0 };

		db.b = scale_part(l, i, a);
		l->be->gemm_train(l->be, GEMM_NT, &db, 1);
		da.a = scale_part(l, i, b);
		l->be->gemm_train(l->be, GEMM_TN, &da, 1);
	}
}

json_t *lora_config(const struct lora *l, const char *base)
{
	json_t *modules = json_array();

	for (int i = 0; i < l->n; i++) {
		const char *name = l->model->p[l->target[i]].name;

		json_array_append_new(modules,
		    json_stringn(name, strlen(name) - strlen(".weight")));
	}
	return json_pack("{s:s, s:s, s:i, s:f, s:f, s:o, s:s, s:b, s:b, s:b, s:b, s:n, s:b, s:s}",
	    "peft_type", "LORA",
	    "base_model_name_or_path", base, "r", l->rank, "lora_alpha", l->alpha, "lora_dropout",
	    0.0, "target_modules",
	    modules, "bias", "none", "fan_in_fan_out", 0, "use_rslora", 0, "use_dora", 0,
	    "inference_mode", 1,
	    "modules_to_save", "init_lora_weights", 1, "task_type", "CAUSAL_LM");
}

/* --- merging --- */

/* Which parameters of the model the file has parts of, and their shapes; each of its tensors must
 * be one. */
static int find_targets(const struct st_file *f, const char *path, const struct params *model,
    const struct peft *c, bool *hit, struct lora_shape *each, struct err *e)
{
	const struct st_tensor *t;

	for (size_t i = 0; (t = st_at(f, i)) != NULL; i++) {
		char name[sizeof model->p->name];
		size_t n = strlen(t->name), tail = strlen(".lora_A.weight");
		const struct param *p = NULL;
		struct lora_shape *s;
		bool a = n > tail && strcmp(t->name + n - tail, ".lora_A.weight") == 0;
		bool b = n > tail && strcmp(t->name + n - tail, ".lora_B.weight") == 0;

		if ((a || b) && strncmp(t->name, PREFIX, strlen(PREFIX)) == 0 && n < sizeof name) {
			snprintf(name, sizeof name, "%.*s.weight", (int)(n - tail - strlen(PREFIX)),
			    t->name + strlen(PREFIX));
			p = params_find(model, name);
			name[strlen(name) - strlen(".weight")] = '\0';
		}
		if (p == NULL || !can_adapt(p))
			return err_set(e, EX_DATAERR,
			    "%s: %s: no matrix of the model has such a part", path, t->name);
		s = &each[p - model->p];
		if (peft_shape(c, name, &s->rank, &s->factor, e) < 0)
			return -1;
		if (t->ndim != 2 || t->shape[0] != (uint64_t)(a ? s->rank : p->rows) ||
		    t->shape[1] != (uint64_t)(a ? p->cols : s->rank))
			return err_set(e, EX_DATAERR, "%s: %s: not of the shape that the model and "
			    "a rank of %d ask for", path, t->name, s->rank);
		hit[p - model->p] = true;
	}
	return st_at(f, 0) != NULL ? 0 : err_set(e, EX_DATAERR, "%s: holds no adapter", path);
}

static int read_part(const struct st_file *f, const char *path, const struct lora *l,
    const struct param *p, struct err *e)
{
	const struct st_tensor *t = st_find(f, p->name);
	struct st_error se = {0};
	enum dtype dt;
	float *x;
	real *y;
	void *raw;
	int rc;

	if (t == NULL)
		return err_set(e, EX_DATAERR, "%s: %s: absent", path, p->name);
	if (dtype_parse(st_dtype_name(t->dtype), &dt) < 0)
		return err_set(e, EX_DATAERR, "%s: %s: not a float type", path, p->name);
	raw = mem_alloc((size_t)t->nbytes);
	x = mem_alloc((size_t)param_size(p) * sizeof *x);
	y = mem_alloc((size_t)param_size(p) * sizeof *y);
	rc = st_read(f, t, 0, raw, (size_t)t->nbytes, &se) < 0 ? modeldir_st_err(e, path, &se) : 0;
	if (rc == 0)
		tensor_to_f32(x, raw, dt, (size_t)param_size(p));
	if (rc == 0 && !tensor_finite(x, DT_F32, (size_t)param_size(p)))
		rc = err_set(e, EX_DATAERR, "%s: %s: has a value that is not finite", path,
		    p->name);
	for (int64_t i = 0; rc == 0 && i < param_size(p); i++)
		y[i] = (real)x[i];
	if (rc == 0)
		l->be->put(l->be, l->w + p->off, y, (size_t)param_size(p) * sizeof *y);
	mem_free(raw);
	mem_free(x);
	mem_free(y);
	return rc;
}

static json_t *file_metadata(const struct st_file *f)
{
	json_t *o = json_object();
	const char *key, *value;

	for (size_t i = 0; (key = st_meta_at(f, i, &value)) != NULL; i++)
		json_object_set_new(o, key, json_string(value));
	return o;
}

/* The sum of finite numbers may be none: the factor alone can make it so. */
static int check_sum(const struct lora *l, const char *path, const real *w, struct err *e)
{
	for (int i = 0; i < l->n; i++) {
		const struct param *p = &l->model->p[l->target[i]];

		for (int64_t j = 0; j < param_size(p); j++)
			if (!isfinite(w[p->off + j]))
				return err_set(e, EX_DATAERR, "%s: %s is not finite with this "
				    "adapter (r %d, %g times B A)", path, p->name,
				    l->each[i].rank, l->each[i].factor);
	}
	return 0;
}

static int merge_file(const struct st_file *f, const char *path, const struct params *model,
    real *w, const struct peft *c, struct err *e)
{
	bool *hit = mem_alloc((size_t)model->n * sizeof *hit);
	struct lora_shape *each = mem_alloc((size_t)model->n * sizeof *each);
	struct lora l = { .be = &backend_cpu, .model = model };
	int rc = find_targets(f, path, model, c, hit, each, e);

	if (rc == 0)
		rc = open_with(&l, hit, each, e);
	if (rc == 0) {
		lora_start(&l, backend_cpu_memory(w), 0);
		for (int i = 0; i < l.par.n && rc == 0; i++)
			rc = read_part(f, path, &l, &l.par.p[i], e);
		if (rc == 0)
			lora_apply(&l, backend_cpu_memory(w));
		if (rc == 0)
			rc = check_sum(&l, path, w, e);
		lora_close(&l);
	}
	mem_free(hit);
	mem_free(each);
	return rc;
}

/* PEFT wrote pickles once. */
static int unopened(const char *dir, const char *path, const struct st_error *se, struct err *e)
{
	char *pickle = file_join(dir, "adapter_model.bin");

	if (access(path, F_OK) != 0 && access(pickle, F_OK) == 0)
		err_set(e, EX_NOINPUT, "%s: is not there; the directory has adapter_model.bin, a "
		    "Python pickle that may run code when it is read: convert it to safetensors",
		    path);
	else
		modeldir_st_err(e, path, se);
	free(pickle);
	return -1;
}

int lora_merge(const char *dir, const struct params *model, real *w, json_t **metadata,
    struct err *e)
{
	char *path = file_join(dir, "adapter_model.safetensors");
	struct st_error se = {0};
	struct st_file *f;
	struct peft c;
	int rc = -1;

	if (peft_load(&c, dir, e) == 0) {
		f = st_open(path, ST_READ, &se);
		rc = f != NULL ? merge_file(f, path, model, w, &c, e) :
		    unopened(dir, path, &se, e);
		if (rc == 0 && metadata != NULL)
			*metadata = file_metadata(f);
		st_close(f);
		peft_free(&c);
	}
	free(path);
	return rc;
}
