/* intent64: the gradient of every tensor of the encoder in double precision against central
 * differences, in a random direction each: (L(w + hv) - L(w - hv)) / 2h must equal g . v. */
#include <stdlib.h>
#include <string.h>

#include "experts/intent.h"
#include "base/rng.h"
#include "tap.h"

enum { LAYERS = 3, EXPERTS = 5, N = 7 };

/* one twice, one outside the vocabulary */
static const uint32_t tok[N] = { 3, 1, 4, 1, 99, 9, 2 };
static real used[LAYERS * EXPERTS];
static real scratch[LAYERS * EXPERTS];

static double check_param(struct intent *m, const real *g, int i)
{
	int64_t n = param_size(&m->p[i]), off = m->p[i].off;
	double h = 1e-5, got = 0, up, down, want;
	real *keep = malloc((size_t)n * sizeof *keep), *v = malloc((size_t)n * sizeof *v);

	memcpy(keep, m->w + off, (size_t)n * sizeof *keep);
	for (int64_t j = 0; j < n; j++) {
		v[j] = rng_normal(5, (uint64_t)i, (uint64_t)j);
		got += g[off + j] * v[j];
		m->w[off + j] = keep[j] + h * v[j];
	}
	up = intent_loss(m, tok, N, used, 0, NULL, scratch);
	for (int64_t j = 0; j < n; j++)
		m->w[off + j] = keep[j] - h * v[j];
	down = intent_loss(m, tok, N, used, 0, NULL, scratch);
	want = 0.7 * (up - down) / (2 * h);
	memcpy(m->w + off, keep, (size_t)n * sizeof *keep);
	free(keep);
	free(v);
	printf("# %s: %g, want %g\n", m->p[i].name, got, want);
	return fabs(want) > 1e-6 ? fabs(got - want) / fabs(want) : 1;
}

int main(void)
{
	struct config c = { .vocab_size = 11, .num_sparse = LAYERS, .num_experts = EXPERTS,
	    .num_experts_per_tok = 2 };
	struct intent *m = intent_new(&c, "", 8, 1);
	real *g = calloc((size_t)m->par.total, sizeof *g);

	for (int i = 0; i < INTENT_PARAMS; i++)		/* far from where it starts: u and B are
							   zero there */
		for (int64_t k = 0; k < param_size(&m->p[i]); k++)
			m->w[m->p[i].off + k] += 0.5 * rng_normal(2, (uint64_t)i, (uint64_t)k);
	for (int i = 0; i < 2 * EXPERTS; i++)		/* the last layer was not used */
		used[i] = (real)rng_below(3, 1, (uint64_t)i, 4);
	intent_loss(m, tok, N, used, 0.7, g, scratch);
	for (int i = 0; i < INTENT_PARAMS; i++)
		ok(check_param(m, g, i) < 1e-6, "gradient of %s", m->p[i].name);
	free(g);
	intent_free(m);
	return tap_done();
}
