#include "experts/foresee.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "experts/beside.h"

#define RATIO_MOST 10		/* of two norms' weights, where one may be nearly 0 */

static const struct { const char *name; enum param_kind kind; } part_of[FORESEE_PARTS] = {
	[FORESEE_IN] = { "in.weight", P_HEAD },
	[FORESEE_SCALE] = { "scale", P_NORM },
	[FORESEE_OUT] = { "out.weight", P_HEAD },
	[FORESEE_BIAS] = { "bias", P_NORM },
	[FORESEE_PREVIOUS] = { "previous", P_NORM },
};

static void lay_out(struct foresee *f)
{
	const int rows[FORESEE_PARTS] = { f->W, f->H, f->H * f->E, f->H, f->H };
	const int cols[FORESEE_PARTS] = { f->D, f->D, f->W, f->E, f->E };
	int64_t at = 0;

	for (int k = 0; k < f->par.n; k++) {
		int part = k % FORESEE_PARTS, layer = k / FORESEE_PARTS;
		struct param *p = &f->par.p[k];

		*p = (struct param){ .kind = part_of[part].kind, .layer = layer, .expert = -1,
		    .ndim = 2, .rows = rows[part], .cols = cols[part], .off = at, .owner = -1 };
		snprintf(p->name, sizeof p->name, "layers.%d.%s", layer, part_of[part].name);
		f->par.count += param_size(p);
		at += param_span(p);
		if (k == FORESEE_PARTS - 1)
			f->one = (struct params){ .n = FORESEE_PARTS, .p = f->par.p, .total = at,
			    .count = f->par.count };
	}
	f->par.total = at;
}

/* All but the weights. NULL: out of memory. */
static struct foresee *describe(const struct config *c, int width, int horizons)
{
	struct foresee *f = malloc(sizeof *f);

	if (!f)
		return NULL;
	*f = (struct foresee){ .D = c->hidden_size, .Ls = c->num_sparse, .E = c->num_experts,
	    .W = width, .H = horizons };
	f->par.n = f->Ls * FORESEE_PARTS;
	f->par.p = calloc((size_t)f->par.n, sizeof *f->par.p);
	if (f->par.p == NULL) {
		free(f);
		return NULL;
	}
	lay_out(f);
	return f;
}

static bool take_memory(struct foresee *f)
{
	size_t n = (size_t)f->par.total * sizeof *f->w;

	if (posix_memalign((void **)&f->w, 64, n) != 0) {
		f->w = NULL;
		return false;
	}
	memset(f->w, 0, n);
	return true;
}

void foresee_free(struct foresee *f)
{
	if (f) {
		free(f->w);
		free(f->par.p);
	}
	free(f);
}

real *foresee_part(const struct foresee *f, int i, int part)
{
	return f->w + f->par.p[i * FORESEE_PARTS + part].off;
}

/* ---- new ones ---- */

/* What x must be multiplied by to be what the norm of layer j would have made of it. */
static real ratio(real of_j, real of_i)
{
	real r = of_j / of_i;

	return r != r ? 0 : r > RATIO_MOST ? RATIO_MOST : r < -RATIO_MOST ? -RATIO_MOST : r;
}

static void start_layer(struct foresee *f, int i, const real *norms, uint64_t seed)
{
	real *in = foresee_part(f, i, FORESEE_IN), *scale = foresee_part(f, i, FORESEE_SCALE);
	int on;

	for (int64_t k = 0; k < (int64_t)f->W * f->D; k++)
		in[k] = (real)(rng_normal(seed, (uint64_t)i, (uint64_t)k) / sqrt(f->D));
	for (int h = 1; h <= f->H; h++) {
		int j = foresee_target(f, i, h, &on);

		for (int d = 0; d < f->D; d++)
			scale[(int64_t)(h - 1) * f->D + d] = ratio(norms[(int64_t)j * f->D + d],
			    norms[(int64_t)i * f->D + d]);
	}
}

struct foresee *foresee_new(const struct config *c, const char *fingerprint, int width,
    int horizons, const real *norms, uint64_t seed)
{
	struct foresee *f = describe(c, width, horizons);

	if (!f || !take_memory(f)) {
		foresee_free(f);
		return NULL;
	}
	memccpy(f->fingerprint, fingerprint, 0, sizeof f->fingerprint - 1);
	for (int i = 0; i < f->Ls; i++)
		start_layer(f, i, norms, seed);
	return f;
}

/* ---- the file ---- */

int foresee_save(const struct foresee *f, const char *dir, const json_t *meta, struct err *e)
{
	return beside_save(dir, FORESEE_NAME, &f->par, f->w, meta, f->fingerprint, e);
}

/* Rows of a tensor of two dimensions; 0: it is not there, or of another kind. */
static int rows_of(const struct beside *b, const char *name, uint64_t most)
{
	const struct st_tensor *t = st_find(b->f, name);

	return t && t->ndim == 2 && t->shape[0] <= most ? (int)t->shape[0] : 0;
}

/* The heads in the file without their weights, if they have the shapes that c asks for. */
static struct foresee *read_shape(const struct beside *b, const struct config *c, struct err *e)
{
	int width = rows_of(b, "layers.0.in.weight", FORESEE_MAX_WIDTH);
	int horizons = rows_of(b, "layers.0.scale", FORESEE_MAX_HORIZON);
	struct foresee *f;

	if (width == 0 || horizons == 0 || horizons > c->num_sparse) {
		err_set(e, EX_DATAERR, "%s: no layers.0.in.weight of a width up to %d and "
		    "layers.0.scale of up to %d horizons", b->path, FORESEE_MAX_WIDTH,
		    FORESEE_MAX_HORIZON);
		return NULL;
	}
	if ((f = describe(c, width, horizons)) == NULL)
		err_set(e, EX_OSERR, "out of memory");
	else if (beside_check(b, &f->par, e) < 0) {
		foresee_free(f);
		f = NULL;
	}
	return f;
}

struct foresee *foresee_load(const char *dir, const struct config *c, struct err *e)
{
	struct foresee *f;
	struct beside b;

	*e = (struct err){ 0 };
	if (beside_open(&b, dir, FORESEE_NAME, e) != 1)
		return NULL;
	f = read_shape(&b, c, e);
	if (f && !take_memory(f))
		err_set(e, EX_OSERR, "out of memory");
	if (e->status != 0 || beside_read(&b, &f->par, f->w, e) < 0 ||
	    beside_model(&b, "chr-foresee", f->fingerprint, e) < 0) {
		foresee_free(f);
		f = NULL;
	}
	beside_close(&b);
	return f;
}

int64_t foresee_bytes(const char *dir, const struct config *c, int *width, int *horizons)
{
	struct foresee *f = NULL;
	int64_t bytes = 0;
	struct beside b;
	struct err e;

	if (beside_open(&b, dir, FORESEE_NAME, &e) != 1)
		return 0;
	if ((f = read_shape(&b, c, &e)) != NULL) {
		bytes = (int64_t)sizeof *f + f->par.n * (int64_t)sizeof *f->par.p +
		    f->par.total * (int64_t)sizeof *f->w;
		*width = f->W;
		*horizons = f->H;
	}
	foresee_free(f);
	beside_close(&b);
	return bytes;
}
