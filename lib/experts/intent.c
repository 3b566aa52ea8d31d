#include "experts/intent.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/opt.h"
#include "base/rng.h"
#include "experts/beside.h"
#include "format/modeldir.h"

static const struct { const char *name; enum param_kind kind; int ndim; } shape[INTENT_PARAMS] = {
	[INTENT_EMBED] = { "embed.weight", P_EMBED, 2 },
	[INTENT_POOL] = { "pool.weight", P_NORM, 1 },
	[INTENT_HIDDEN] = { "hidden.weight", P_HEAD, 2 },
	[INTENT_HIDDEN_BIAS] = { "hidden.bias", P_NORM, 1 },
	[INTENT_OUT] = { "out.weight", P_HEAD, 2 },
	[INTENT_OUT_BIAS] = { "out.bias", P_NORM, 1 },
};

static void lay_out(struct intent *m)
{
	const int rows[INTENT_PARAMS] = { m->V, m->W, m->W, m->W, m->Ls * m->E, m->Ls * m->E };
	int64_t at = 0;

	for (int i = 0; i < INTENT_PARAMS; i++) {
		struct param *p = &m->p[i];

		*p = (struct param){ .kind = shape[i].kind, .layer = -1, .expert = -1,
		    .ndim = shape[i].ndim,
		    .rows = rows[i], .cols = shape[i].ndim == 2 ? m->W : 1, .off = at,
		    .owner = -1 };
		strcpy(p->name, shape[i].name);
		m->par.count += param_size(p);
		at += param_span(p);
	}
	m->par.n = INTENT_PARAMS;
	m->par.p = m->p;
	m->par.total = at;
}

/* All but the weights. */
static void describe(struct intent *m, const struct config *c, int width)
{
	*m = (struct intent){ .V = c->vocab_size, .W = width, .Ls = c->num_sparse,
	    .E = c->num_experts,
	    .K = c->num_experts_per_tok };
	lay_out(m);
}

static struct intent *make(const struct config *c, int width)
{
	struct intent *m = malloc(sizeof *m);

	if (!m)
		return NULL;
	describe(m, c, width);
	if (posix_memalign((void **)&m->w, 64, (size_t)m->par.total * sizeof *m->w)) {
		free(m);
		return NULL;
	}
	memset(m->w, 0, (size_t)m->par.total * sizeof *m->w);
	return m;
}

static real *part(const struct intent *m, int i)
{
	return m->w + m->p[i].off;
}

struct intent *intent_new(const struct config *c, const char *fingerprint, int width, uint64_t seed)
{
	struct intent *m = make(c, width);

	if (!m)
		return NULL;
	memccpy(m->fingerprint, fingerprint, 0, sizeof m->fingerprint - 1);
	for (int64_t i = 0; i < (int64_t)m->V * m->W; i++)
		part(m, INTENT_EMBED)[i] = (real)(0.3 * rng_normal(seed, INTENT_EMBED,
		    (uint64_t)i));
	for (int64_t i = 0; i < (int64_t)m->W * m->W; i++)
		part(m, INTENT_HIDDEN)[i] = (real)(rng_normal(seed, INTENT_HIDDEN, (uint64_t)i) /
		    sqrt(m->W));
	return m;
}

void intent_free(struct intent *m)
{
	if (m)
		free(m->w);
	free(m);
}

void intent_popular(struct intent *m, const double *used)
{
	for (int l = 0; l < m->Ls; l++) {
		const double *u = used + (int64_t)l * m->E;
		double sum = 0;

		for (int e = 0; e < m->E; e++)
			sum += fmax(u[e], 0.5);
		for (int e = 0; e < m->E; e++)
			part(m, INTENT_OUT_BIAS)[(int64_t)l * m->E + e] =
			    (real)log(fmax(u[e], 0.5) / sum);
	}
}

/* ---- forward ---- */

/* Eight sums side by side, whatever the instruction set. n is a multiple of 8. */
static real dot(const real *a, const real *b, int n)
{
	real s[8] = { 0 };

	for (int i = 0; i < n; i += 8)
		for (int k = 0; k < 8; k++)
			s[k] += a[i + k] * b[i + k];
	return ((s[0] + s[4]) + (s[1] + s[5])) + ((s[2] + s[6]) + (s[3] + s[7]));
}

static void axpy(real *y, real a, const real *x, int n)
{
	for (int i = 0; i < n; i++)
		y[i] += a * x[i];
}

struct encoded {		/* a prompt */
	double lse;		/* log sum exp of u . x_t */
	real p[INTENT_MAX_WIDTH], z[INTENT_MAX_WIDTH], h[INTENT_MAX_WIDTH];
};

static const real *embedding(const struct intent *m, uint32_t tok)
{
	return tok < (uint32_t)m->V ? part(m, INTENT_EMBED) + (int64_t)tok * m->W : NULL;
}

/* Softmax and sum in one pass: what was added is scaled down when a larger score comes. */
static void pool_tokens(const struct intent *m, const uint32_t *tok, int n, struct encoded *c)
{
	double most = -INFINITY, sum = 0;

	memset(c->p, 0, sizeof *c->p * (size_t)m->W);
	for (int t = 0; t < n; t++) {
		const real *x = embedding(m, tok[t]);
		double s = x ? (double)dot(part(m, INTENT_POOL), x, m->W) : 0, a;

		if (!x)
			continue;
		if (s > most) {
			double down = exp(most - s);

			for (int i = 0; i < m->W; i++)
				c->p[i] *= (real)down;
			sum *= down;
			most = s;
		}
		a = exp(s - most);
		sum += a;
		axpy(c->p, (real)a, x, m->W);
	}
	for (int i = 0; sum > 0 && i < m->W; i++)
		c->p[i] /= (real)sum;
	c->lse = most + log(sum);
}

static void encode(const struct intent *m, const uint32_t *tok, int n, struct encoded *c)
{
	pool_tokens(m, tok, n, c);
	for (int i = 0; i < m->W; i++) {
		c->z[i] = part(m, INTENT_HIDDEN_BIAS)[i] + dot(part(m, INTENT_HIDDEN) + (int64_t)i *
		    m->W, c->p, m->W);
		c->h[i] = (real)(0.5 * (double)c->z[i] * (1 + erf((double)c->z[i] * M_SQRT1_2)));
	}
}

/* Shares of one layer, which sum to 1, to q (E). */
static void layer_shares(const struct intent *m, const struct encoded *c, int l, real *q)
{
	const real *b = part(m, INTENT_OUT_BIAS) + (int64_t)l * m->E;
	const real *w = part(m, INTENT_OUT) + (int64_t)l * m->E * m->W;
	real most = -INFINITY, sum = 0;

	for (int e = 0; e < m->E; e++) {
		q[e] = b[e] + dot(w + (int64_t)e * m->W, c->h, m->W);
		most = q[e] > most ? q[e] : most;
	}
	for (int e = 0; e < m->E; e++) {
#ifdef CHR_DOUBLE
		q[e] = exp(q[e] - most);
#else
		q[e] = expf(q[e] - most);
#endif
		sum += q[e];
	}
	for (int e = 0; e < m->E; e++)
		q[e] /= sum;
}

void intent_expect(const struct intent *m, const uint32_t *tok, int n, real *share)
{
	struct encoded c;

	encode(m, tok, n, &c);
	for (int l = 0; l < m->Ls; l++) {
		real *q = share + (int64_t)l * m->E;

		layer_shares(m, &c, l, q);
		for (int e = 0; e < m->E; e++)
			q[e] *= (real)m->K;
	}
}

void intent_blend(const struct intent *m, real *share, const real *used, int n, double blend)
{
	for (int64_t i = 0; n > 0 && i < (int64_t)m->Ls * m->E; i++)
		share[i] = (real)((1 - blend) * (double)share[i] + blend * (double)used[i] / n);
}

/* ---- backward ---- */

/* q (E) becomes what the layer's loss says of its logits, times weight; returns the loss. */
static double layer_loss(const real *used, real *q, int E, real weight)
{
	double sum = 0, loss = 0;

	for (int e = 0; e < E; e++)
		sum += (double)used[e];
	for (int e = 0; e < E; e++) {
		double f = sum > 0 ? (double)used[e] / sum : 0;

		loss -= f > 0 ? f * log(fmax((double)q[e], 1e-30)) : 0;
		q[e] = sum > 0 ? weight * (q[e] - (real)f) : 0;
	}
	return loss;
}

/* From dh (W), which is overwritten, to everything before it. */
static void encode_backward(const struct intent *m, const uint32_t *tok, int n,
    const struct encoded *c, real *dh, real *g)
{
	real dp[INTENT_MAX_WIDTH] = { 0 }, mean;
	const real *u = part(m, INTENT_POOL);

	for (int i = 0; i < m->W; i++) {
		double z = (double)c->z[i];
		double slope = 0.5 * (1 + erf(z * M_SQRT1_2)) + z * exp(-0.5 * z * z) /
		    sqrt(2 * M_PI);

		dh[i] *= (real)slope;
		axpy(g + m->p[INTENT_HIDDEN].off + (int64_t)i * m->W, dh[i], c->p, m->W);
		axpy(dp, dh[i], part(m, INTENT_HIDDEN) + (int64_t)i * m->W, m->W);
	}
	axpy(g + m->p[INTENT_HIDDEN_BIAS].off, 1, dh, m->W);
	mean = dot(dp, c->p, m->W);
	for (int t = 0; t < n; t++) {
		const real *x = embedding(m, tok[t]);
		real a, ds, *dx;

		if (!x)
			continue;
		dx = g + m->p[INTENT_EMBED].off + (int64_t)tok[t] * m->W;
		a = (real)exp((double)dot(u, x, m->W) - c->lse);
		ds = a * (dot(dp, x, m->W) - mean);
		axpy(dx, a, dp, m->W);
		axpy(dx, ds, u, m->W);
		axpy(g + m->p[INTENT_POOL].off, ds, x, m->W);
	}
}

double intent_loss(const struct intent *m, const uint32_t *tok, int n, const real *used,
    real weight, real *g,
    real *scratch)
{
	real dh[INTENT_MAX_WIDTH] = { 0 };
	struct encoded c;
	double loss = 0;

	encode(m, tok, n, &c);
	for (int l = 0; l < m->Ls; l++) {
		int64_t at = (int64_t)l * m->E;

		layer_shares(m, &c, l, scratch + at);
		loss += layer_loss(used + at, scratch + at, m->E, weight / (real)m->Ls);
	}
	for (int64_t i = 0; g && i < (int64_t)m->Ls * m->E; i++) {
		axpy(g + m->p[INTENT_OUT].off + i * m->W, scratch[i], c.h, m->W);
		axpy(dh, scratch[i], part(m, INTENT_OUT) + i * m->W, m->W);
	}
	if (g) {
		axpy(g + m->p[INTENT_OUT_BIAS].off, 1, scratch, m->Ls * m->E);
		encode_backward(m, tok, n, &c, dh, g);
	}
	return loss / m->Ls;
}

/* ---- the file ---- */

#define BLEND "chronos.intent.blend"

int intent_save(const struct intent *m, const char *dir, const json_t *meta, struct err *e)
{
	json_t *own = meta ? json_copy((json_t *)meta) : json_object();
	char blend[32];
	int rc;

	snprintf(blend, sizeof blend, "%.9g", m->blend);
	json_set_str(own, BLEND, blend);
	rc = beside_save(dir, INTENT_NAME, &m->par, m->w, own, m->fingerprint, e);
	json_decref(own);
	return rc;
}

/* Describes the encoder in the file, if its tensors have the shapes that c asks for. */
static int read_shape(struct intent *m, const struct beside *b, const struct config *c,
    struct err *e)
{
	const struct st_tensor *t = st_find(b->f, shape[INTENT_POOL].name);

	if (!t || t->ndim != 1 || t->shape[0] < 8 || t->shape[0] > INTENT_MAX_WIDTH ||
	    t->shape[0] % 8)
		return err_set(e, EX_DATAERR, "%s: no %s of a width that is a multiple of 8, up to "
		    "%d", b->path, shape[INTENT_POOL].name, INTENT_MAX_WIDTH);
	describe(m, c, (int)t->shape[0]);
	return beside_check(b, &m->par, e);
}

static int read_blend(struct intent *m, const struct beside *b, struct err *e)
{
	const char *text = st_meta(b->f, BLEND), *why;

	if (!text || opt_float(text, &m->blend, &why) < 0 || !(m->blend >= 0 && m->blend <= 1))
		return err_set(e, EX_DATAERR, "%s: no " BLEND " from 0 to 1 in its metadata",
		    b->path);
	return 0;
}

static struct intent *read_file(const struct beside *b, const struct config *c, struct err *e)
{
	struct intent like, *m;

	if (read_shape(&like, b, c, e) < 0)
		return NULL;
	if (!(m = make(c, like.W))) {
		err_set(e, EX_OSERR, "out of memory");
		return NULL;
	}
	if (beside_read(b, &m->par, m->w, e) < 0 || read_blend(m, b, e) < 0 ||
	    beside_model(b, "chr-intent", m->fingerprint, e) < 0) {
		intent_free(m);
		return NULL;
	}
	return m;
}

struct intent *intent_load(const char *dir, const struct config *c, struct err *e)
{
	struct intent *m = NULL;
	struct beside b;

	*e = (struct err){ 0 };
	if (beside_open(&b, dir, INTENT_NAME, e) == 1) {
		m = read_file(&b, c, e);
		beside_close(&b);
	}
	return m;
}

int64_t intent_bytes(const char *dir, const struct config *c)
{
	int64_t bytes = 0;
	struct beside b;
	struct intent m;
	struct err e;

	if (beside_open(&b, dir, INTENT_NAME, &e) != 1)
		return 0;
	if (read_shape(&m, &b, c, &e) == 0)
		bytes = (int64_t)sizeof m + m.par.total * (int64_t)sizeof *m.w;
	beside_close(&b);
	return bytes;
}
