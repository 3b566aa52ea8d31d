#include "model/lora.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "model/adapter.h"
#include "model/optim.h"

enum { STREAM_LORA = 0x6c6f7261 };

/* PEFT's name of a part of the adapter of the matrix `name`, which ends in ".weight". */
static void part_name(char *out, size_t size, const char *name, char part)
{
	snprintf(out, size, ADAPTER_PREFIX "%.*s.lora_%c.weight",
	    (int)(strlen(name) - strlen(".weight")), name, part);
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

/* The adapter's parameters and its targets. */
static int build(struct lora *l, const bool *hit, struct err *e)
{
	for (int i = 0; i < l->model->n; i++) {
		if (hit[i] && !can_adapt(&l->model->p[i]))
			return err_set(e, EX_USAGE,
			    "%s: cannot have an adapter, it is not a matrix that multiplies",
			    l->model->p[i].name);
		l->n += hit[i];
	}
	l->target = calloc((size_t)l->n + 1, sizeof *l->target);
	l->par.p = calloc((size_t)l->n * 2 + 1, sizeof *l->par.p);
	if (l->target == NULL || l->par.p == NULL)
		return err_set(e, EX_OSERR, "out of memory");
	for (int i = 0, n = 0; i < l->model->n; i++) {
		const struct param *p = &l->model->p[i];

		if (!hit[i])
			continue;
		l->target[n++] = i;
		add_part(&l->par, p, 'A', l->rank, p->cols);
		add_part(&l->par, p, 'B', p->rows, l->rank);
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
		*largest = mem_max(*largest, side * l->rank);
	}
}

void lora_plan(struct mem_plan *p, const struct params *model, const bool *hit, int rank)
{
	struct lora l = { .model = model, .rank = rank, .alpha = 1 };
	struct err e = {0};
	int64_t copies, largest;

	if (build(&l, hit, &e) == 0) {	/* else lora_open() will say why not */
		sizes(&l, &copies, &largest);
		mem_plan_add(p, "adapter", (2 * l.par.total + largest) * (int64_t)sizeof(real));
		optim_plan(p, &l.par, NULL);
		mem_plan_add(p, "matrices under the adapter", copies * (int64_t)sizeof(real));
	}
	free(l.target);
	free(l.par.p);
}

int lora_open(struct lora *l, const struct params *model, const bool *hit, int rank, double alpha,
    const struct backend *be, struct err *e)
{
	int64_t copies, largest;

	*l = (struct lora){ .be = be, .model = model, .rank = rank, .alpha = alpha };
	if (build(l, hit, e) < 0) {
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

void lora_close(struct lora *l)
{
	dev_real *const mine[] = { l->w, l->g, l->w0, l->scaled };

	for (size_t i = 0; i < sizeof mine / sizeof *mine; i++)
		if (mine[i] != NULL)
			l->be->free(l->be, mine[i]);
	free(l->target);
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

/* The factor times A or B of a target, in l->scaled. */
static const dev_real *scale_part(const struct lora *l, const struct param *p)
{
	l->be->copy(l->be, l->scaled, l->w + p->off, (size_t)param_size(p) * sizeof *l->w);
	l->be->scale(l->be, l->scaled, l->alpha / l->rank, param_size(p));
	return l->scaled;
}

void lora_apply(const struct lora *l, dev_real *w)
{
	int64_t at = 0;

	for (int i = 0; i < l->n; i++) {
		const struct param *p = &l->model->p[l->target[i]], *a = &l->par.p[2 * i];
		struct gemm_job j = { w + p->off, p->cols, scale_part(l, a + 1), a->rows,
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

		db.b = scale_part(l, a);
		l->be->gemm_train(l->be, GEMM_NT, &db, 1);
		da.a = scale_part(l, b);
		l->be->gemm_train(l->be, GEMM_TN, &da, 1);
	}
}

/* --- merging --- */

/* The sum of finite numbers may be none: the factor alone can make it so. */
static int check_sum(const char *path, const struct adapter_matrix *m, const struct param *p,
    const real *w, struct err *e)
{
	for (int64_t j = 0; j < param_size(p); j++)
		if (!isfinite(w[j]))
			return err_set(e, EX_DATAERR, "%s: %s is not finite with this adapter "
			    "(r %d, %g times B A)", path, p->name, m->rank, m->factor);
	return 0;
}

static void to_real(real *dst, const float *src, int64_t n)
{
	for (int64_t i = 0; i < n; i++)
		dst[i] = (real)src[i];
}

/* The parameters that the file has whole. x: room for the largest. */
static int replace(struct adapter *ad, real *w, float *x, struct err *e)
{
	for (int i = 0; i < ad->nwhole; i++) {
		const struct param *p = &ad->model->p[ad->whole[i].param];

		if (adapter_read_whole(ad, &ad->whole[i], x, e) < 0)
			return -1;
		to_real(w + p->off, x, param_size(p));
	}
	return 0;
}

/* w (rows, cols) += factor * B A, as lora_apply() does it. x: room for A or B as it is read, a and
 * b: for both. */
static int add(struct adapter *ad, const struct adapter_matrix *m, real *w, float *x, real *a,
    real *b, struct err *e)
{
	const struct backend *be = &backend_cpu;
	const struct param *p = &ad->model->p[m->param];
	int64_t na = (int64_t)m->rank * p->cols, nb = (int64_t)p->rows * m->rank;
	struct gemm_job j = { backend_cpu_memory(w), p->cols, backend_cpu_memory(b), m->rank,
	    backend_cpu_memory(a), p->cols, DT_REAL, p->rows, p->cols, m->rank, 1 };

	if (adapter_read_a(ad, m, x, e) < 0)
		return -1;
	to_real(a, x, na);
	if (adapter_read_b(ad, m, x, e) < 0)
		return -1;
	to_real(b, x, nb);
	be->scale(be, backend_cpu_memory(b), m->factor, nb);
	be->gemm_train(be, GEMM_NN, &j, 1);
	return check_sum(ad->path, m, p, w, e);
}

static int64_t largest_part(const struct adapter *a)
{
	int64_t n = adapter_largest(a);

	for (int i = 0; i < a->nwhole; i++)
		n = mem_max(n, param_size(&a->model->p[a->whole[i].param]));
	return n;
}

int lora_merge(const char *dir, const struct config *c, const struct params *model, real *w,
    json_t **metadata, struct err *e)
{
	struct adapter ad;
	size_t n;
	float *x;
	real *a, *b;
	int rc;

	if (adapter_open(&ad, dir, c, model, e) < 0)
		return -1;
	n = (size_t)largest_part(&ad);
	x = mem_alloc(n * sizeof *x);
	a = mem_alloc(n * sizeof *a);
	b = mem_alloc(n * sizeof *b);
	rc = replace(&ad, w, x, e);
	for (int i = 0; i < ad.n && rc == 0; i++)
		rc = add(&ad, &ad.matrix[i], w + model->p[ad.matrix[i].param].off, x, a, b, e);
	if (rc == 0 && metadata != NULL)
		*metadata = json_incref(ad.metadata);
	mem_free(x);
	mem_free(a);
	mem_free(b);
	adapter_close(&ad);
	return rc;
}
