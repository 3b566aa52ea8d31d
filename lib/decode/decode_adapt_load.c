/*
 * Opening adapters: they are read once and stay in memory, as floats, beside whatever the model is
 * in.
 */
#include <stdlib.h>
#include <string.h>

#include "decode/decode_int.h"

static dev_real *reals(struct carve *c, int64_t n) { return mem_carve(c, n, sizeof(dev_real)); }

/* The memory of one matrix. */
static struct low place(const struct param *p, int rank, struct carve *c)
{
	struct low w = { .rank = rank, .rows = p->rows, .cols = p->cols };

	w.a = reals(c, (int64_t)rank * p->cols);
	w.b = reals(c, (int64_t)rank * p->rows);
	if (param_is(p, PARAM_TURNED))
		w.turned = reals(c, (int64_t)rank * p->cols);
	if (p->kind == P_CONV)
		w.sum = reals(c, param_size(p));
	return w;
}

/* Rows that are multiplied with A before any is with B, at most. */
static int64_t most_rows(const struct engine *g)
{
	const struct config *c = g->cfg;
	int64_t rows = LINEAR_JOBS;

	for (int l = 0; l < c->num_hidden_layers; l++) {
		const struct block *b = &c->block[l];

		rows = mem_max(rows, 2 * (int64_t)(block_fixed(b) + (b->sparse
		    ? c->num_experts_per_tok : 0)));
		rows = mem_max(rows, block_latent(b) ? c->num_attention_heads : 0);
	}
	return rows * g->opt.max_rows;
}

/* Where everything goes; with bases NULL, nowhere, and only the bytes count. */
static void carve(struct engine *g, struct carve *dev, struct carve *host)
{
	struct adapts *t = &g->adapts;
	const struct config *c = g->cfg;
	int64_t n = g->opt.adapters, parts = c->num_experts + c->num_shared_experts + 1,
	    jobs = n * mem_max(2 * parts, mem_max(LINEAR_JOBS, c->num_attention_heads)), at = 0;
	int rank = 0;

	t->low = mem_carve(host, t->matrices, sizeof(*t->low));
	t->find = mem_carve(host, n * g->par->n, sizeof(*t->find));
	t->of_row = mem_carve(host, g->opt.max_rows, sizeof(*t->of_row));
	t->down = mem_carve(host, jobs, sizeof(*t->down));
	t->up = mem_carve(host, jobs, sizeof(*t->up));
	t->blocks = mem_carve(host, g->opt.blocks ? jobs : 0, sizeof(*t->blocks));
	for (int i = 0; i < n; i++)
		for (int j = 0; j < t->file[i].n; j++, at++) {
			const struct adapter_matrix *m = &t->file[i].matrix[j];
			struct low w = place(&g->par->p[m->param], m->rank, dev);

			rank = w.rank > rank ? w.rank : rank;
			if (host->base)
				t->low[at] = w;
		}
	t->mid = reals(dev, most_rows(g) * rank);
}

/* Values of the largest A or B of all. */
static int64_t largest(const struct engine *g)
{
	int64_t most = 1;

	for (int i = 0; i < g->opt.adapters; i++)
		most = mem_max(most, adapter_largest(&g->adapts.file[i]));
	return most;
}

int adapt_plan(struct engine *g, struct mem_plan *plan, struct err *e)
{
	struct adapts *t = &g->adapts;
	struct carve dev = { 0 }, host = { 0 };
	int64_t reading = 0;

	if (g->opt.adapters == 0)
		return 0;
	t->file = mem_alloc((size_t)g->opt.adapters * sizeof(*t->file));
	for (; t->opened < g->opt.adapters; t->opened++) {
		struct adapter *a = &t->file[t->opened];

		if (adapter_open(a, g->opt.adapter[t->opened].dir, g->cfg, g->par, e) < 0)
			return -1;
		if (adapter_only_adds(a, e) < 0) {
			adapter_close(a);
			return -1;
		}
		t->matrices += a->n;
		reading = mem_max(reading, a->room);
	}
	carve(g, &dev, &host);
	mem_plan_add(plan, "adapters", dev.used + host.used + reading +
	    largest(g) * (int64_t)sizeof(float));
	return 0;
}

int adapt_check(struct engine *g, struct err *e)
{
	int rc = 0;

	for (int i = 0; i < g->opt.adapters && !g->opt.foreign && rc == 0; i++) {
		char *of = adapter_base(g->adapts.file[i].metadata);
		const char *mine = of ? engine_fingerprint(g, e) : NULL;

		if (of)
			rc = mine ? adapter_fits(g->opt.adapter[i].dir, of, g->md.path, mine,
			    modeldir_meta(&g->md, "chronos.ancestry"), e) : -1;
		free(of);
	}
	return rc;
}

/* --- reading --- */

struct reading {
	struct engine *g;
	struct adapter *from;
	const struct adapter_matrix *m;
	const struct param *p;
	float *host;			/* A or B as it is in the file */
	struct mirror *mirror;		/* for what the device is to get, unless the host reads its
					   memory */
};

/* x, of so many rows of `cols`, times a factor to dst; turned: its columns become rows. */
static void put(const struct reading *r, dev_real *dst, int rows, int cols, double factor,
    bool turned)
{
	size_t n = (size_t)rows * (size_t)cols;
	real *out = backend_draft(r->g->be, dst, r->mirror, n * sizeof *out);

	for (size_t i = 0; i < n; i++)
		out[turned ? i % (size_t)cols * (size_t)rows + i / (size_t)cols : i] =
		    (real)(r->host[i] * factor);
	backend_settle(r->g->be, dst, out, n * sizeof *out);
}

/* B, in the order in which the engine has what it is for. */
static void put_turned(const struct reading *r, dev_real *dst)
{
	struct param like = *r->p;
	int64_t n;
	real *out;

	like.cols = r->m->rank;
	n = param_size(&like);
	out = backend_draft(r->g->be, dst, r->mirror, (size_t)n * sizeof *out);
	for (int64_t i = 0; i < n; i++)
		out[load_knope_at(r->g->cfg, &like, i)] = (real)(r->host[i] * r->m->factor);
	backend_settle(r->g->be, dst, out, (size_t)n * sizeof *out);
}

static void add_up(const struct reading *r, const struct low *w)
{
	const struct backend *be = r->g->be;
	struct gemm_job j = { .c = w->sum, .ldc = w->cols, .a = w->b, .lda = w->rank, .b = w->a,
	    .ldb = w->cols, .bt = DT_REAL, .m = w->rows, .n = w->cols, .k = w->rank, .beta = 1 };

	be->copy(be, w->sum, r->g->layer[r->p->layer].conv, sizeof(real) *
	    (size_t)param_size(r->p));
	be->gemm(be, GEMM_NN, &j, 1);
}

static int read_matrix(const struct reading *r, const struct low *w, struct err *e)
{
	if (adapter_read_a(r->from, r->m, r->host, e) < 0)
		return -1;
	put(r, w->a, w->rank, w->cols, 1, false);
	if (w->turned)
		put(r, w->turned, w->rank, w->cols, 1, true);
	if (adapter_read_b(r->from, r->m, r->host, e) < 0)
		return -1;
	if (w->turned)
		put_turned(r, w->b);
	else
		put(r, w->b, w->rows, w->rank, r->m->factor, false);
	if (w->sum)
		add_up(r, w);
	return 0;
}

static int read_all(struct engine *g, float *host, struct mirror *mirror, struct err *e)
{
	struct adapts *t = &g->adapts;
	int64_t at = 0;

	for (int i = 0; i < g->opt.adapters; i++) {
		struct adapter *a = &t->file[i];
		int32_t *find = t->find + (int64_t)i * g->par->n;

		for (int j = 0; j < a->n; j++, at++) {
			struct reading r = { g, a, &a->matrix[j], &g->par->p[a->matrix[j].param],
			    host, mirror };

			find[a->matrix[j].param] = (int32_t)at;
			if (read_matrix(&r, &t->low[at], e) < 0)
				return -1;
		}
		adapter_close(a);
	}
	t->opened = 0;
	return 0;
}

int adapt_load(struct engine *g, struct err *e)
{
	struct adapts *t = &g->adapts;
	struct carve dev = { 0 }, host = { 0 };
	struct mirror mirror = { 0 };
	float *x;
	int rc;

	if (g->opt.adapters == 0)
		return 0;
	carve(g, &dev, &host);
	t->weights = g->be->alloc(g->be, (size_t)dev.used);
	if (!t->weights)
		return err_set(e, EX_OSERR, "%s: out of memory for adapters", g->md.path);
	t->tables = mem_alloc((size_t)host.used);
	dev = (struct carve){ t->weights, 0 };
	host = (struct carve){ t->tables, 0 };
	carve(g, &dev, &host);
	memset(t->find, -1, (size_t)g->opt.adapters * (size_t)g->par->n * sizeof(*t->find));
	x = mem_alloc((size_t)largest(g) * sizeof(*x));
	rc = read_all(g, x, &mirror, e);
	mem_free(x);
	backend_mirror_free(&mirror);
	return rc;
}

void adapt_close(struct engine *g)
{
	struct adapts *t = &g->adapts;

	for (int i = 0; i < t->opened; i++)
		adapter_close(&t->file[i]);
	mem_free(t->file);
	mem_free(t->tables);
	if (g->be)
		g->be->free(g->be, t->weights);
}
