/* foresee64: the gradient of every part of the heads in double precision against central
 * differences, in a random direction each, from the first, a middle and the last layer: with
 * horizons that reach into the next token, and tokens that nothing follows. */
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "stages/foresee_fit.h"
#include "tap.h"

enum { LAYERS = 3, EXPERTS = 5, WIDTH = 6, HORIZONS = 3, D = 4, K = 2, TOKENS = 11, ROWS = 7 };

static struct config cfg = { .num_sparse = LAYERS, .num_experts = EXPERTS, .hidden_size = D,
    .num_experts_per_tok = K, .num_hidden_layers = LAYERS };
static const char *const name[FORESEE_PARTS] = { "in", "scale", "out", "bias", "previous" };
/* Two sequences, tokens 0-4 and 5-10: 4 and 10 are the last of theirs; one row comes twice. */
static const int64_t row[ROWS] = { 1, 4, 6, 10, 2, 9, 2 };
static struct err e;

static void must(int failed)
{
	if (failed) {
		printf("Bail out! %s\n", e.msg);
		exit(1);
	}
}

static void fill(real *v, int64_t n, uint64_t stream, double size)
{
	for (int64_t k = 0; k < n; k++)
		v[k] = size * rng_normal(7, stream, (uint64_t)k);
}

/* Some choices: K different experts of each token and layer. */
static void run(struct foresee_spool *s)
{
	real inputs[TOKENS * LAYERS * D];
	int32_t topk[TOKENS * LAYERS * K];

	fill(inputs, TOKENS * LAYERS * D, 1, 1);
	for (int i = 0; i < TOKENS * LAYERS; i++) {
		topk[i * K] = (int32_t)rng_below(7, 2, (uint64_t)i, EXPERTS);
		topk[i * K + 1] = (topk[i * K] + 1 + (int32_t)rng_below(7, 3, (uint64_t)i,
		    EXPERTS - 1)) % EXPERTS;
	}
	must(foresee_spool_open(s, "/tmp", &cfg, TOKENS, TOKENS, &e) < 0 ||
	    foresee_spool_add(s, inputs, topk, 5, true, false, &e) < 0 ||
	    foresee_spool_add(s, inputs + 5 * LAYERS * D, topk + 5 * LAYERS * K, 3, true, false,
	    &e) < 0 ||
	    foresee_spool_add(s, inputs + 8 * LAYERS * D, topk + 8 * LAYERS * K, 3, false, false,
	    &e) < 0);
}

static void take_rows(struct foresee_fit *t, int i)
{
	real x[TOKENS * D];

	must(foresee_spool_layer(t->spool, i, x, &e) < 0);
	memcpy(t->row, row, sizeof row);
	for (int b = 0; b < ROWS; b++)
		memcpy(t->hx + b * D, x + row[b] * D, sizeof(real) * D);
}

static double moved(struct foresee_fit *t, int i, int64_t off, int64_t n, const real *keep,
    const real *v, double h)
{
	real *to = calloc((size_t)n, sizeof *to);
	double loss;

	for (int64_t k = 0; k < n; k++)
		to[k] = keep[k] + h * v[k];
	t->be->put(t->be, t->w + off, to, (size_t)n * sizeof *to);
	loss = foresee_fit_loss(t, i, ROWS);
	t->be->put(t->be, t->w + off, keep, (size_t)n * sizeof *keep);
	free(to);
	return loss;
}

static double check_part(struct foresee_fit *t, int i, int part)
{
	int64_t n = param_size(&t->f->one.p[part]), off = t->f->one.p[part].off;
	real *keep = calloc((size_t)n, sizeof *keep), *v = calloc((size_t)n, sizeof *v),
	    *g = calloc((size_t)n, sizeof *g);
	double h = 1e-5, got = 0, want;

	fill(v, n, 10 + (uint64_t)part, 1);
	t->be->get(t->be, keep, t->w + off, (size_t)n * sizeof *keep);
	foresee_fit_loss(t, i, ROWS);
	t->be->get(t->be, g, t->g + off, (size_t)n * sizeof *g);
	for (int64_t k = 0; k < n; k++)
		got += g[k] * v[k];
	want = (moved(t, i, off, n, keep, v, h) - moved(t, i, off, n, keep, v, -h)) / (2 * h);
	free(keep);
	free(v);
	free(g);
	printf("# layer %d, %s: %g, want %g\n", i, name[part], got, want);
	return fabs(want) > 1e-6 ? fabs(got - want) / fabs(want) : 1;
}

/* The loss of one row and the horizons that it has, by the formula in foresee.h. */
static double by_hand(const struct foresee_fit *t, int i, int b)
{
	const struct foresee *f = t->f;
	const real *in = foresee_part(f, i, FORESEE_IN), *x = t->hx + b * D;
	double loss = 0, hidden[WIDTH];

	for (int w = 0; w < WIDTH; w++) {
		double a = 0;

		for (int d = 0; d < D; d++)
			a += in[w * D + d] * x[d];
		hidden[w] = a / (1 + exp(-a));
	}
	for (int h = 0; h < HORIZONS; h++) {
		int on, j = foresee_target(f, i, h + 1, &on);
		int64_t at = row[b] + on;
		const int32_t *ids = foresee_spool_ids(t->spool, j, at),
		    *last = foresee_spool_ids(t->spool, j, at - 1);

		if (at == 5 || at == TOKENS)
			continue;
		for (int k = 0; k < EXPERTS; k++) {
			int r = h * EXPERTS + k;
			double z = foresee_part(f, i, FORESEE_BIAS)[r], y = 0;

			for (int d = 0; d < D; d++)
				z += t->router[j].gate[k * D + d] * x[d] *
				    foresee_part(f, i, FORESEE_SCALE)[h * D + d];
			for (int w = 0; w < WIDTH; w++)
				z += foresee_part(f, i, FORESEE_OUT)[r * WIDTH + w] * hidden[w];
			if (last[0] == k || last[1] == k)
				z += foresee_part(f, i, FORESEE_PREVIOUS)[r];
			y = ids[0] == k || ids[1] == k;
			loss -= (y * log(1 / (1 + exp(-z))) + (1 - y) * log(1 / (1 + exp(z)))) / K;
		}
	}
	return loss / HORIZONS / ROWS;
}

static void check_layer(struct foresee_fit *t, int i)
{
	double unused, want = 0;

	/* Of no epochs: it takes the layer in hand. */
	must(foresee_fit_layer(t, i, &unused, &e) < 0);
	take_rows(t, i);
	for (int b = 0; b < ROWS; b++)
		want += by_hand(t, i, b);
	ok(fabs(foresee_fit_loss(t, i, ROWS) - want) < 1e-12, "layer %d: the loss by hand", i);
	for (int part = 0; part < FORESEE_PARTS; part++)
		ok(check_part(t, i, part) < 1e-6, "layer %d: gradient of %s", i, name[part]);
}

int main(void)
{
	static real gate[LAYERS][EXPERTS * D], norms[LAYERS * D];
	struct foresee_router router[LAYERS] = { { 0 } };
	struct foresee_opt o = { .batch = ROWS };
	struct foresee_spool s;
	struct foresee_fit t;
	struct foresee *f;

	run(&s);
	fill(norms, LAYERS * D, 4, 1);
	f = foresee_new(&cfg, "", WIDTH, HORIZONS, norms, 1);
	for (int k = 0; k < f->par.n; k++) {	/* out, bias and previous begin as 0 */
		real add[WIDTH * EXPERTS * HORIZONS];

		fill(add, param_size(&f->par.p[k]), 100 + (uint64_t)k, 0.4);
		for (int64_t j = 0; j < param_size(&f->par.p[k]); j++)
			f->w[f->par.p[k].off + j] += add[j];
	}
	for (int i = 0; i < LAYERS; i++) {
		fill(gate[i], EXPERTS * D, 20 + (uint64_t)i, 1);
		router[i].gate = gate[i];
	}
	must(foresee_fit_open(&t, f, &s, router, backend_open("cpu", &e), &o, &e) < 0);
	for (int i = 0; i < LAYERS; i++)
		check_layer(&t, i);
	foresee_fit_close(&t);
	foresee_spool_close(&s);
	foresee_free(f);
	return tap_done();
}
