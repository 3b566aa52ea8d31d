#include "stages/distill.h"

#include <math.h>

#include "base/mem.h"

#define BLOCK ((int64_t)4 << 20)	/* bytes of teacher logits on the device at a time, about */

enum { M_CE, M_KD, M_KL };
const char *const distill_metrics[] = { "ce", "kd", "kl", NULL };

static int64_t capacity(int V)
{
	int64_t n = BLOCK / ((int64_t)V * (int64_t)sizeof(real));

	return n < 8 ? 8 : n > 4096 ? 4096 : n;
}

static bool partial(const struct distill *d)
{
	return d->teacher.complete != NULL;
}

int64_t distill_bytes(const struct distill *d, int V)
{
	return capacity(V) * ((partial(d) ? 3 : 1) * V + 4) * (int64_t)sizeof(real);
}

int distill_open(struct distill *d, const struct backend *be, int V, struct err *e)
{
	size_t n;

	d->be = be;
	d->cap = capacity(V);
	n = (size_t)(d->cap * V) * sizeof(real);
	d->logits = be->alloc(be, n);
	d->dvalue = be->alloc(be, (size_t)d->cap * sizeof(real));
	d->target = be->alloc(be, (size_t)d->cap * sizeof(int32_t));
	if (d->logits == NULL || d->dvalue == NULL || d->target == NULL)
		return err_set(e, EX_OSERR, "out of memory for the teacher's logits");
	d->value = mem_alloc((size_t)d->cap * sizeof(real));
	d->kl = mem_alloc((size_t)d->cap * sizeof(real));
	if (partial(d)) {
		d->student = mem_alloc(n);
		d->full = mem_alloc(n);
	}
	return 0;
}

void distill_close(struct distill *d)
{
	if (d->be != NULL) {
		d->be->free(d->be, d->logits);
		d->be->free(d->be, d->dvalue);
		d->be->free(d->be, d->target);
	}
	mem_free(d->value);
	mem_free(d->kl);
	mem_free(d->student);
	mem_free(d->full);
}

/* A call of distill_loss. */
struct pass {
	struct distill *d;
	const struct stage_in *in;
	double coef;			/* of a row's divergence */
	double kd, kl;			/* sums */
	bool failed;
};

/* Rows of the batch with the student's logits and where their gradient goes, which may be NULL. */
struct rows {
	int64_t first, n;
	int V;
	const dev_real *student;
	dev_real *dstudent;
};

/* The teacher's logits for these rows at a temperature, to the device. */
static void bring(struct pass *p, const struct rows *r, double temperature, const real *known)
{
	struct distill *d = p->d;

	if (partial(d))
		d->teacher.complete(d->teacher.self, p->in->mb, r->first, r->n, r->V, temperature,
		    d->student, d->full);
	d->be->put(d->be, d->logits, partial(d) ? d->full : known,
	    (size_t)(r->n * r->V) * sizeof(real));
}

static void diverge(struct distill *d, const struct diverge_args *a, real *value)
{
	d->be->diverge(d->be, a);
	d->be->get(d->be, value, d->dvalue, (size_t)a->n * sizeof *value);
}

/* known: the teacher's logits, unless it has them only in part. */
static void compare(struct pass *p, const struct rows *r, const real *known)
{
	struct distill *d = p->d;
	struct diverge_args a = { .kind = d->o.kind, .temperature = d->o.temperature, .n = r->n,
	    .V = r->V,
	    .student = r->student, .teacher = d->logits, .target = d->target,
	    .value = d->dvalue,
	    .dstudent = r->dstudent, .coef = p->coef };

	if (partial(d))
		d->be->get(d->be, d->student, r->student,
		    (size_t)(r->n * r->V) * sizeof(real));
	d->be->put(d->be, d->target, p->in->mb->b.target + r->first,
	    (size_t)r->n * sizeof(int32_t));
	bring(p, r, a.temperature, known);
	diverge(d, &a, d->value);
	if (partial(d) && a.temperature != 1)
		bring(p, r, 1, known);
	a.kind = DIVERGE_FORWARD;
	a.temperature = 1;
	a.dstudent = NULL;
	diverge(d, &a, d->kl);
	for (int64_t i = 0; i < r->n; i++) {
		p->kd += (double)d->value[i];
		p->kl += (double)d->kl[i];
	}
}

static void chunk(void *ctx, const dev_real *logits, dev_real *dlogits, int64_t row0, int64_t n,
    int V)
{
	struct pass *p = ctx;
	struct distill *d = p->d;
	const real *known = NULL;
	struct rows r;

	for (int64_t i = 0; i < n && !p->failed; i += r.n) {
		r = (struct rows){ .first = row0 + i, .n = n - i < d->cap ? n - i : d->cap, .V = V,
		    .student = logits + i * V,
		    .dstudent = p->in->coef != NULL ? dlogits + i * V : NULL };
		if (!partial(d))
			r.n = d->teacher.rows(d->teacher.self, p->in->mb, r.first, r.n, &known,
			    &d->e);
		p->failed = r.n < 0;
		if (!p->failed)
			compare(p, &r, known);
	}
}

static void measure(const struct stage_in *in, const struct pass *p, double ce, double square)
{
	const double value[] = { [M_CE] = ce, [M_KD] = square * p->kd, [M_KL] = p->kl };

	for (int i = 0; i < 3; i++) {
		in->sum[i] += value[i];
		in->weight[i] += (double)in->mb->own.targets;
	}
}

double distill_loss(struct distill *d, const struct stage_in *in)
{
	const struct batch *b = &in->mb->b;
	const double mean = in->targets > 0 ? 1 / (double)in->targets : 0,
	    square = d->o.temperature * d->o.temperature;
	struct pass p = { .d = d, .in = in, .coef = d->o.alpha * square * mean };
	const struct head_hook hook = { .fn = chunk, .ctx = &p };
	double ce = 0;

	for (int64_t r = 0; in->coef != NULL && r < (int64_t)b->B * b->T; r++)
		in->coef[r] = b->target[r] >= 0 ? (real)(-(1 - d->o.alpha) * mean) : 0;
	model_head(in->m, b, in->coef, in->logp, in->mb->own.targets > 0 ? &hook : NULL);
	for (int64_t r = 0; r < (int64_t)b->B * b->T; r++)
		if (b->target[r] >= 0)
			ce -= (double)in->logp[r];
	measure(in, &p, ce, square);
	return p.failed ? NAN : p.coef * p.kd + (1 - d->o.alpha) * mean * ce;
}
