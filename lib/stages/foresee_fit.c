#include "stages/foresee_fit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "base/sig.h"
#include "base/topk.h"

#define AHEAD 1000		/* streams of random numbers that are not those of first weights */

/* ---- memory ---- */

static void carve(struct foresee_fit *t, const struct config *c, int width, int horizons,
    int64_t n, int64_t total, int64_t B, struct carve *dev, struct carve *host)
{
	int64_t D = c->hidden_size, E = c->num_experts, H = horizons, W = width;

	t->w = mem_carve(dev, total, sizeof *t->w);
	t->g = mem_carve(dev, total, sizeof *t->g);
	t->gates = mem_carve(dev, (H + 1) * E * D, sizeof *t->gates);
	t->x = mem_carve(dev, B * D, sizeof *t->x);
	t->pre = mem_carve(dev, B * W, sizeof *t->pre);
	t->hidden = mem_carve(dev, B * W, sizeof *t->hidden);
	t->z = mem_carve(dev, B * H * E, sizeof *t->z);
	t->xs = mem_carve(dev, B * D, sizeof *t->xs);
	t->dz = mem_carve(dev, B * H * E, sizeof *t->dz);
	t->dhidden = mem_carve(dev, B * W, sizeof *t->dhidden);
	t->dx = mem_carve(dev, B * D, sizeof *t->dx);
	t->first = mem_carve(dev, B, sizeof *t->first);
	t->hx = mem_carve(host, B * D, sizeof *t->hx);
	t->hz = mem_carve(host, B * H * E, sizeof *t->hz);
	t->hdx = mem_carve(host, B * D, sizeof *t->hdx);
	t->previous = mem_carve(host, H * E, sizeof *t->previous);
	t->dprevious = mem_carve(host, H * E, sizeof *t->dprevious);
	t->dbias = mem_carve(host, H * E, sizeof *t->dbias);
	t->dscale = mem_carve(host, H * D, sizeof *t->dscale);
	t->wants = mem_carve(host, E, sizeof *t->wants);
	t->row = mem_carve(host, B, sizeof *t->row);
	t->all = mem_carve(host, n * D, sizeof *t->all);
	t->order = mem_carve(host, n, sizeof *t->order);
	t->train = mem_carve(host, n, sizeof *t->train);
	t->popular = mem_carve(host, c->num_sparse * E, sizeof *t->popular);
	t->best = mem_carve(host, c->num_experts_per_tok, sizeof *t->best);
}

/* Values of one layer's heads, with what pads them at most. */
static int64_t one_total(const struct config *c, int64_t W, int64_t H)
{
	int64_t D = c->hidden_size, E = c->num_experts;

	return W * D + H * (D + E * (W + 2)) + 16 * FORESEE_PARTS;
}

int64_t foresee_fit_bytes(const struct config *c, int width, int horizons, int64_t tokens,
    int batch)
{
	struct carve dev = { 0 }, host = { 0 };
	struct foresee_fit t;
	int64_t total = one_total(c, width, horizons);

	carve(&t, c, width, horizons, tokens, total, batch, &dev, &host);
	return dev.used + host.used + 2 * total * (int64_t)sizeof(real);
}

/* The tokens to learn from: those with one before them. */
static void choose_rows(struct foresee_fit *t)
{
	const struct foresee_spool *s = t->spool;

	for (int64_t k = 0; k < s->n; k++)
		if (!s->held[k] && !s->first[k])
			t->train[t->ntrain++] = k;
	for (int i = 0; i < t->f->Ls; i++)
		for (int64_t k = 0; k < t->ntrain; k++) {
			const int32_t *ids = foresee_spool_ids(s, i, t->train[k]);

			for (int j = 0; j < t->K; j++)
				t->popular[(int64_t)i * t->f->E + ids[j]]++;
		}
}

int foresee_fit_open(struct foresee_fit *t, struct foresee *f, const struct foresee_spool *spool,
    const struct foresee_router *router, const struct backend *be, const struct foresee_opt *o,
    struct err *e)
{
	const struct config *c = spool->cfg;
	struct carve dev = { 0 }, host = { 0 };

	*t = (struct foresee_fit){ .f = f, .spool = spool, .router = router, .be = be, .o = *o,
	    .K = c->num_experts_per_tok };
	carve(t, c, f->W, f->H, spool->n, f->one.total, o->batch, &dev, &host);
	t->dev_mem = be->alloc(be, (size_t)dev.used);
	t->host_mem = mem_alloc((size_t)host.used);
	if (t->dev_mem == NULL)
		err_die(EX_OSERR, "out of memory");
	dev = (struct carve){ t->dev_mem, 0 };
	host = (struct carve){ t->host_mem, 0 };
	carve(t, c, f->W, f->H, spool->n, f->one.total, o->batch, &dev, &host);
	choose_rows(t);
	if (t->ntrain == 0) {
		foresee_fit_close(t);
		return err_set(e, EX_DATAERR, "nothing to learn from: %lld tokens, none of them "
		    "after another of a sequence that is not held", (long long)spool->n);
	}
	return 0;
}

void foresee_fit_close(struct foresee_fit *t)
{
	t->be->free(t->be, t->dev_mem);
	mem_free(t->host_mem);
}

/* ---- one batch ---- */

static dev_real *part(const struct foresee_fit *t, dev_real *base, int k)
{
	return base + t->f->one.p[k].off;
}

static struct gemm_job product(dev_real *c, int64_t ldc, const dev_real *a, int64_t lda,
    const dev_real *b, int64_t ldb, int64_t m, int64_t n, int64_t k, real beta)
{
	return (struct gemm_job){ .c = c, .ldc = ldc, .a = a, .lda = lda, .b = b, .ldb = ldb,
	    .bt = DT_REAL, .m = m, .n = n, .k = k, .beta = beta };
}

static void gemm(const struct foresee_fit *t, enum gemm_kind kind, struct gemm_job job)
{
	t->be->gemm_train(t->be, kind, &job, 1);
}

/* The router of horizon h, 0: of the layer in hand. */
static dev_real *gate_of(const struct foresee_fit *t, int h)
{
	return t->gates + (int64_t)h * t->f->E * t->f->D;
}

/* x times the scale of horizon h (from 0), in xs. */
static void scaled(struct foresee_fit *t, int h, int n)
{
	int D = t->f->D;

	t->be->mul(t->be, t->xs, D, t->x, D, part(t, t->w, FORESEE_SCALE) + (int64_t)h * D, 0, n,
	    D);
}

/* Is token r followed by what horizon h of layer i is about? Then *at is that token, *j the
 * layer. */
static bool target(const struct foresee_fit *t, int64_t r, int i, int h, int *j, int64_t *at)
{
	int on;

	*j = foresee_target(t->f, i, h, &on);
	*at = r + on;
	return !on || (*at < t->spool->n && !t->spool->first[*at]);
}

/* z (n, H, E) of the inputs in hx, to hz; without the token before. */
static void forward(struct foresee_fit *t, int n)
{
	const struct backend *be = t->be;
	int D = t->f->D, E = t->f->E, H = t->f->H, W = t->f->W;
	int64_t HE = (int64_t)H * E;

	be->put(be, t->x, t->hx, (size_t)n * (size_t)D * sizeof(real));
	gemm(t, GEMM_NT, product(t->pre, W, t->x, D, part(t, t->w, FORESEE_IN), D, n, W, D, 0));
	be->silu(be, t->hidden, t->pre, (int64_t)n * W);
	gemm(t, GEMM_NT, product(t->z, HE, t->hidden, W, part(t, t->w, FORESEE_OUT), W, n, HE, W,
	    0));
	be->combine(be, t->z, part(t, t->w, FORESEE_BIAS), t->first, NULL, n, 1, (int)HE);
	for (int h = 0; h < H; h++) {
		scaled(t, h, n);
		gemm(t, GEMM_NT, product(t->z + (int64_t)h * E, HE, t->xs, D,
		    gate_of(t, h + 1), D, n, E, D, 1));
	}
	be->get(be, t->hz, t->z, (size_t)(n * HE) * sizeof(real));
}

/* What the token before is worth, added to z (E) of layer j at token `at`, horizon h (from 0). */
static void add_previous(struct foresee_fit *t, const real *worth, real *z, int j, int64_t at)
{
	const int32_t *last = foresee_spool_ids(t->spool, j, at - 1);

	for (int k = 0; k < t->K; k++)
		z[last[k]] += worth[last[k]];
}

/* z (E) becomes the gradient, times scale, of the cross-entropy of its sigmoids against a choice:
 * of each expert whether it is one of the K, the sum divided by K. */
static double cross_entropy(real *z, int E, const int32_t *ids, int K, double scale)
{
	double loss = 0;

	for (int k = 0; k < K; k++)
		loss -= (double)z[ids[k]];
	for (int x = 0; x < E; x++) {
		double v = (double)z[x], p = 1 / (1 + exp(-v));

		loss += v > 0 ? v + log1p(exp(-v)) : log1p(exp(v));
		z[x] = (real)(scale / K * p);
	}
	for (int k = 0; k < K; k++)
		z[ids[k]] -= (real)(scale / K);
	return loss / K;
}

/* Of one token and horizon (from 0): hz becomes dz, and the gradients of bias and previous grow. */
static double loss_of(struct foresee_fit *t, int i, int b, int h, double scale)
{
	int64_t E = t->f->E, at;
	real *z = t->hz + ((int64_t)b * t->f->H + h) * E;
	const int32_t *last;
	double loss;
	int j;

	if (!target(t, t->row[b], i, h + 1, &j, &at)) {
		memset(z, 0, sizeof *z * (size_t)E);
		return 0;
	}
	add_previous(t, t->previous + h * E, z, j, at);
	loss = cross_entropy(z, (int)E, foresee_spool_ids(t->spool, j, at), t->K, scale);
	for (int x = 0; x < E; x++)
		t->dbias[h * E + x] += z[x];
	last = foresee_spool_ids(t->spool, j, at - 1);
	for (int k = 0; k < t->K; k++)
		t->dprevious[h * E + last[k]] += z[last[k]];
	return scale * loss;
}

static void backward_scale(struct foresee_fit *t, int n)
{
	int64_t D = t->f->D, E = t->f->E, H = t->f->H;

	memset(t->dscale, 0, sizeof *t->dscale * (size_t)(H * D));
	for (int h = 0; h < H; h++) {
		gemm(t, GEMM_NN, product(t->dx, D, t->dz + h * E, H * E, gate_of(t, h + 1), D, n, D,
		    E, 0));
		t->be->get(t->be, t->hdx, t->dx, (size_t)(n * D) * sizeof(real));
		for (int64_t k = 0; k < n * D; k++)
			t->dscale[h * D + k % D] += t->hx[k] * t->hdx[k];
	}
}

static void put_gradient(struct foresee_fit *t, int k, const real *from)
{
	t->be->put(t->be, part(t, t->g, k), from, (size_t)param_size(&t->f->one.p[k]) *
	    sizeof(real));
}

/* Gradients of all parts, from dz in hz. */
static void backward(struct foresee_fit *t, int n)
{
	const struct backend *be = t->be;
	int64_t D = t->f->D, W = t->f->W, HE = (int64_t)t->f->H * t->f->E;

	be->put(be, t->dz, t->hz, (size_t)(n * HE) * sizeof(real));
	gemm(t, GEMM_TN, product(part(t, t->g, FORESEE_OUT), W, t->dz, HE, t->hidden, W, HE, W, n,
	    0));
	gemm(t, GEMM_NN, product(t->dhidden, W, t->dz, HE, part(t, t->w, FORESEE_OUT), W, n, W, HE,
	    0));
	be->silu_back(be, t->dhidden, t->dhidden, t->pre, n * W);
	gemm(t, GEMM_TN, product(part(t, t->g, FORESEE_IN), D, t->dhidden, W, t->x, D, W, D, n,
	    0));
	backward_scale(t, n);
	put_gradient(t, FORESEE_SCALE, t->dscale);
	put_gradient(t, FORESEE_BIAS, t->dbias);
	put_gradient(t, FORESEE_PREVIOUS, t->dprevious);
}

double foresee_fit_loss(struct foresee_fit *t, int i, int n)
{
	size_t HE = (size_t)t->f->H * (size_t)t->f->E;
	double loss = 0;

	forward(t, n);
	t->be->get(t->be, t->previous, part(t, t->w, FORESEE_PREVIOUS), HE * sizeof(real));
	memset(t->dbias, 0, HE * sizeof(real));
	memset(t->dprevious, 0, HE * sizeof(real));
	for (int b = 0; b < n; b++)
		for (int h = 0; h < t->f->H; h++)
			loss += loss_of(t, i, b, h, 1.0 / n / t->f->H);
	backward(t, n);
	return loss;
}

/* ---- training a layer ---- */

static int load_layer(struct foresee_fit *t, int i, struct err *e)
{
	int64_t E = t->f->E, D = t->f->D;
	int on;

	for (int h = 0; h <= t->f->H; h++)
		t->be->put(t->be, gate_of(t, h), t->router[foresee_target(t->f, i, h, &on)].gate,
		    (size_t)(E * D) * sizeof(real));
	t->be->put(t->be, t->w, foresee_part(t->f, i, 0), (size_t)t->f->one.total * sizeof(real));
	return foresee_spool_layer(t->spool, i, t->all, e);
}

/* Inputs of the tokens in t->row. */
static void take_inputs(struct foresee_fit *t, int n)
{
	size_t D = (size_t)t->f->D;

	for (int b = 0; b < n; b++)
		memcpy(t->hx + (size_t)b * D, t->all + (size_t)t->row[b] * D, D * sizeof *t->hx);
}

/* The tokens of step `step` (from 0): all in a new order, again and again. */
static void batch(struct foresee_fit *t, int64_t step, int n)
{
	for (int b = 0; b < n; b++) {
		int64_t at = step * n + b;

		if (at % t->ntrain == 0)
			rng_shuffle(t->o.seed, (uint64_t)(AHEAD + at / t->ntrain), t->order,
			    (uint64_t)t->ntrain);
		t->row[b] = t->train[t->order[at % t->ntrain]];
	}
	take_inputs(t, n);
}

int foresee_fit_layer(struct foresee_fit *t, int i, double *loss, struct err *e)
{
	int n = (int)(t->ntrain < t->o.batch ? t->ntrain : t->o.batch);
	int64_t steps = (int64_t)ceil(t->o.epochs * (double)t->ntrain / n), counted = 0;
	struct schedule schedule = { t->o.lr, optim_warmup(steps), steps };
	double sum = 0;

	if (load_layer(t, i, e) < 0 ||
	    optim_open(&t->optim, &t->f->one, NULL, t->be, t->o.decay, e) < 0)
		return -1;
	for (int64_t step = 0; step < steps && !sig_stop; step++) {
		double l, norm;

		batch(t, step, n);
		l = foresee_fit_loss(t, i, n);
		norm = optim_norm(&t->optim, t->g);
		if (!isfinite(l) || !isfinite(norm)) {
			optim_close(&t->optim);
			return err_set(e, EX_DATAERR, "sparse layer %d, step %lld: the loss is not "
			    "finite: lower --lr", i, (long long)step + 1);
		}
		optim_step(&t->optim, t->w, t->g, optim_lr(&schedule, step + 1),
		    optim_clip(norm, 1));
		if (step >= steps - (steps + 9) / 10) {
			sum += l;
			counted++;
		}
	}
	optim_close(&t->optim);
	t->be->get(t->be, foresee_part(t->f, i, 0), t->w, (size_t)t->f->one.total * sizeof(real));
	*loss = counted ? sum / (double)counted : 0;
	return 0;
}

/* ---- measuring it ---- */

static void count(struct foresee_recall *c, enum foresee_by by, const int32_t *named,
    const int32_t *ids, int K)
{
	int right = 0;

	for (int k = 0; k < K; k++)
		for (int l = 0; l < K; l++)
			right += named[k] == ids[l];
	c->n[by]++;
	c->hit[by] += right;
	c->whole[by] += right == K;
}

static void best_of(struct foresee_fit *t, const real *v)
{
	topk_best(v, t->f->E, t->K, t->best);
}

/* What router j would choose of the logits in wants. */
static void ask_router(struct foresee_fit *t, int j)
{
	const struct foresee_router *r = &t->router[j];

	for (int x = 0; r->logit_bias && x < t->f->E; x++)
		t->wants[x] += r->logit_bias[x];
	router_wants(r->r, r->bias, t->wants, t->f->E, t->K, t->wants);
	best_of(t, t->wants);
}

/* The router of horizon h, 0: of the layer itself, on the inputs in x: logits to hz (n, E). */
static void gate_rows(struct foresee_fit *t, int h, int n)
{
	int64_t E = t->f->E, D = t->f->D;

	t->be->gemm(t->be, GEMM_NT, &(struct gemm_job){ .c = t->z, .ldc = E, .a = t->x, .lda = D,
	    .b = gate_of(t, h), .ldb = D, .bt = DT_REAL, .m = n, .n = E, .k = D }, 1);
	t->be->get(t->be, t->hz, t->z, (size_t)(n * E) * sizeof(real));
}

/* Horizon h, 0: the router of layer i itself. */
static void measure_gate(struct foresee_fit *t, int i, int h, int n, struct foresee_recall *c)
{
	int64_t at, E = t->f->E;
	int j = i;

	if (i + h >= t->f->Ls)		/* of another token, of which nothing is known */
		return;
	gate_rows(t, h, n);
	for (int b = 0; b < n; b++) {
		at = t->row[b];
		if (h > 0 && !target(t, at, i, h, &j, &at))
			continue;
		memcpy(t->wants, t->hz + b * E, sizeof *t->wants * (size_t)E);
		ask_router(t, j);
		count(c, h ? FORESEE_BY_GATE : FORESEE_BY_CONTROL, t->best,
		    foresee_spool_ids(t->spool, j, at), t->K);
	}
}

static void measure_others(struct foresee_fit *t, int j, int64_t at, struct foresee_recall *c)
{
	const int32_t *ids = foresee_spool_ids(t->spool, j, at);
	int E = t->f->E;

	count(c, FORESEE_BY_PREVIOUS, foresee_spool_ids(t->spool, j, at - 1), ids, t->K);
	for (int x = 0; x < E; x++)
		t->wants[x] = (real)t->popular[(int64_t)j * E + x];
	best_of(t, t->wants);
	count(c, FORESEE_BY_POPULARITY, t->best, ids, t->K);
}

static void measure_heads(struct foresee_fit *t, int i, int n, struct foresee_recall *recall)
{
	int64_t E = t->f->E, at;
	int H = t->f->H, j;

	forward(t, n);
	t->be->get(t->be, t->previous, part(t, t->w, FORESEE_PREVIOUS),
	    (size_t)(H * E) * sizeof(real));
	for (int b = 0; b < n; b++)
		for (int h = 1; h <= H; h++) {
			real *z = t->hz + ((int64_t)b * H + h - 1) * E;

			if (!target(t, t->row[b], i, h, &j, &at))
				continue;
			add_previous(t, t->previous + (h - 1) * E, z, j, at);
			best_of(t, z);
			count(&recall[h], FORESEE_BY_HEADS, t->best,
			    foresee_spool_ids(t->spool, j, at), t->K);
			measure_others(t, j, at, &recall[h]);
		}
}

void foresee_fit_measure(struct foresee_fit *t, int i, struct foresee_recall *recall)
{
	const struct foresee_spool *s = t->spool;
	int n = 0;

	memset(recall, 0, sizeof *recall * (size_t)(t->f->H + 1));
	for (int64_t k = 0; k <= s->n; k++) {
		if (k < s->n && s->held[k] && !s->first[k])
			t->row[n++] = k;
		if (n == 0 || (n < t->o.batch && k < s->n))
			continue;
		take_inputs(t, n);
		measure_heads(t, i, n, recall);
		for (int h = 0; h <= t->f->H; h++)
			measure_gate(t, i, h, n, &recall[h]);
		n = 0;
	}
}
