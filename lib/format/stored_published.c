#include "format/stored_published.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arch/config.h"
#include "backend/published.h"
#include "format/modeldir.h"

#define CHUNK ((int64_t)1 << 20)	/* bytes of rows in memory at a time */
#define HALF_BLOCK (QUANT_BLOCK / 2)

/* ---- finding ---- */

static bool is_blocks(const struct st_tensor *t)
{
	size_t n = strlen(t->name), end = strlen(STORED_BLOCKS);

	return t->dtype == ST_U8 && n > end && strcmp(t->name + n - end, STORED_BLOCKS) == 0;
}

bool stored_is_published(const struct st_tensor *t)
{
	return t->dtype == ST_F8_E4M3 || is_blocks(t);
}

static int wrong(const struct tensor_at *x, const char *what, struct err *e)
{
	return err_set(e, EX_DATAERR, "%s: tensor \"%s\" %s", x->file, x->t->name, what);
}

static int find_scales(const struct modeldir *md, const struct stored *s, const char *const end[2],
    struct tensor_at *x, struct err *e)
{
	int n = (int)strlen(s->t->name) - (is_blocks(s->t) ? (int)strlen(STORED_BLOCKS) : 0);
	char name[256];
	struct view v;

	for (int i = 0; i < 2 && end[i]; i++) {
		snprintf(name, sizeof name, "%.*s%s", n, s->t->name, end[i]);
		if (modeldir_find(md, name, &v) == 0) {
			*x = (struct tensor_at){ v.st, v.t, v.file };
			return 0;
		}
	}
	return err_set(e, EX_DATAERR, "%s: tensor \"%s\" needs scales, and \"%.*s%s\" is missing",
	    s->file, s->t->name, n, s->t->name, end[0]);
}

/* The rows of the parameter among those of the tensor, (rows, cols) of each expert. */
static void find_rows(const struct param *p, unsigned how, int64_t rows, struct published_at *at)
{
	at->step = how & (AT_EVEN | AT_ODD) ? 2 : 1;
	at->top = how & AT_SECOND ? p->rows : how & AT_ODD ? 1 : 0;
	at->first = at->top + (how & AT_STACKED ? p->expert * rows : 0);
}

/* Scales in rectangles of so many rows and columns, which may be more than there are? */
static bool grid_is(const uint64_t *shape, int64_t rows, int64_t cols, int64_t high, int64_t wide)
{
	return (int64_t)shape[0] == (rows - 1) / high + 1 &&
	    (int64_t)shape[1] == (cols - 1) / wide + 1;
}

static int find_grid(const struct config *c, struct stored *s, bool stacked, int64_t rows,
    int64_t cols, struct err *e)
{
	struct published_at *at = &s->pub;
	const struct st_tensor *t = at->scale.t;
	const uint64_t *shape = t->shape + stacked;

	if (st_elements(t) == 1) {
		at->high = at->wide = INT_MAX;
		at->across = 1;
		return 0;
	}
	if (t->ndim != 2 + stacked || (stacked && t->shape[0] != s->t->shape[0]) ||
	    shape[0] == 0 || shape[1] == 0)
		return wrong(&at->scale, "has not the shape that scales of its matrix have", e);
	at->high = c->scale_rows;
	at->wide = c->scale_cols;
	if (c->scale_rows == 0 || !grid_is(shape, rows, cols, at->high, at->wide)) {
		if (rows % (int64_t)shape[0] || cols % (int64_t)shape[1])
			return wrong(&at->scale, "has not the shape that scales of its matrix "
			    "have", e);
		at->high = (int)(rows / (int64_t)shape[0]);
		at->wide = (int)(cols / (int64_t)shape[1]);
	}
	at->across = (int)shape[1];
	at->scales = at->first / rows * (int64_t)(shape[0] * shape[1]);
	return 0;
}

/* Does a panel of the parameter lie in one row of rectangles? */
static bool whole_panels(const struct published_at *at)
{
	int64_t span = (int64_t)QUANT_PANEL * at->step;

	return at->high == INT_MAX || (at->high % span == 0 && at->top / at->step * at->step %
	    span == 0);
}

static int find_f8(const struct modeldir *md, const struct param *p, unsigned how,
    struct stored *s, struct err *e)
{
	static const char *const ends[2] = { "_scale_inv", "_scale" };
	struct tensor_at own = { s->st, s->t, s->file };
	const struct st_tensor *t = s->t;
	int64_t rows;

	if (how & (AT_TURNED | AT_FLAT | AT_ACROSS) || stored_layout(p, how,
	    md->cfg.num_experts, t->ndim, t->shape, &s->at) < 0)
		return wrong(&own, "is F8_E4M3, and not of the shape in which that is read", e);
	if (find_scales(md, s, ends, &s->pub.scale, e) < 0)
		return -1;
	switch (s->pub.scale.t->dtype) {
	case ST_F32: case ST_BF16: case ST_F16: case ST_F8_E8M0: break;
	default: return wrong(&s->pub.scale, "is not F32, BF16, F16 or F8_E8M0", e);
	}
	rows = (int64_t)t->shape[t->ndim - (p->ndim == 2 ? 2 : 1)];
	find_rows(p, how, rows, &s->pub);
	if (find_grid(&md->cfg, s, how & AT_STACKED, rows, p->cols, e) < 0)
		return -1;
	s->type = param_is(p, PARAM_QUANTISES) && whole_panels(&s->pub) &&
	    (s->pub.wide == INT_MAX || s->pub.wide % QUANT_BLOCK == 0) ? DT_F8 : DT_F32;
	return 0;
}

static int find_mxfp4(const struct modeldir *md, const struct param *p, unsigned how,
    struct stored *s, struct err *e)
{
	static const char *const ends[2] = { "_scales", NULL };
	struct tensor_at own = { s->st, s->t, s->file };
	const struct st_tensor *t = s->t, *scale;
	uint64_t shape[5];
	int n = stored_shape(p, how & ~(unsigned)AT_TURNED, md->cfg.num_experts, shape);

	if (p->ndim != 2 || p->cols % QUANT_BLOCK != 0 || how & (AT_FLAT | AT_ACROSS))
		return wrong(&own, "is MXFP4, in which this parameter cannot be", e);
	shape[n - 1] /= QUANT_BLOCK;
	shape[n] = HALF_BLOCK;
	if (t->ndim != n + 1 || memcmp(t->shape, shape, (size_t)t->ndim * sizeof *shape) != 0)
		return wrong(&own, "has not the shape that config.json asks for", e);
	if (find_scales(md, s, ends, &s->pub.scale, e) < 0)
		return -1;
	scale = s->pub.scale.t;
	if (scale->dtype != ST_U8 || scale->ndim != n ||
	    memcmp(scale->shape, shape, (size_t)n * sizeof *shape) != 0)
		return wrong(&s->pub.scale, "has not the type or the shape that scales of its "
		    "matrix have", e);
	find_rows(p, how, (int64_t)shape[n - 2], &s->pub);
	s->type = param_is(p, PARAM_QUANTISES) ? DT_MXFP4 : DT_F32;
	return 0;
}

int stored_published(const struct modeldir *md, const struct param *p, unsigned how,
    struct stored *s, struct err *e)
{
	return is_blocks(s->t) ? find_mxfp4(md, p, how, s, e) : find_f8(md, p, how, s, e);
}

/* ---- reading ---- */

static int fetch(const struct tensor_at *x, int64_t from, void *dst, int64_t bytes, struct err *e)
{
	struct st_error se;

	return st_read(x->st, x->t, (uint64_t)from, dst, (size_t)bytes, &se) < 0
	    ? modeldir_st_err(e, x->file, &se) : 0;
}

/* n rows of the parameter, of so many bytes each, from a tensor that has all rows; buf has room for
 * n * step rows. */
static int fetch_rows(const struct stored *s, const struct tensor_at *x, int row, int n,
    int64_t bytes, uint8_t *buf, struct err *e)
{
	const struct published_at *at = &s->pub;
	int64_t first = at->first + (int64_t)row * at->step;

	if (fetch(x, first * bytes, buf, ((int64_t)(n - 1) * at->step + 1) * bytes, e) < 0)
		return -1;
	for (int i = 1; i < n && at->step > 1; i++)
		memmove(buf + i * bytes, buf + (int64_t)i * at->step * bytes, (size_t)bytes);
	return 0;
}

struct piece {				/* what a few rows are read into */
	uint8_t *values, *scales;
	float *grid;			/* of FP8: the scales of one row of rectangles, */
	int64_t have;			/* which is this one; -1: none yet */
};

static int not_finite(const struct tensor_at *x, struct err *e)
{
	return wrong(x, "has a value that is not a finite number", e);
}

static void to_floats(float *dst, const void *src, enum st_dtype t, int n)
{
	const uint8_t *s = src;
	enum dtype own;

	for (int i = 0; t == ST_F8_E8M0 && i < n; i++)
		dst[i] = published_e8m0(s[i]);
	if (t != ST_F8_E8M0 && dtype_parse(st_dtype_name(t), &own) == 0)
		tensor_to_f32(dst, src, own, (size_t)n);
}

/* The scales for row `row` of the parameter, into m->grid. */
static int read_grid(const struct stored *s, int row, struct piece *m, struct err *e)
{
	const struct published_at *at = &s->pub;
	enum st_dtype t = at->scale.t->dtype;
	int64_t size = (int64_t)st_dtype_size(t),
	    down = (at->top + (int64_t)row * at->step) / at->high;

	if (down == m->have)
		return 0;
	if (fetch(&at->scale, (at->scales + down * at->across) * size, m->scales,
	    at->across * size, e) < 0)
		return -1;
	to_floats(m->grid, m->scales, t, at->across);
	for (int i = 0; i < at->across; i++)
		if (!isfinite(m->grid[i] * 448))
			return not_finite(&at->scale, e);
	m->have = down;
	return 0;
}

static bool has_nan(const uint8_t *v, int64_t n)
{
	unsigned bad = 0;

	for (int64_t i = 0; i < n; i++)
		bad |= (v[i] & 127) == 127;
	return bad;
}

/* Values of n rows have been read to m: to floats, or to panels. */
static int put_f8(const struct stored *s, int row, int n, struct piece *m, char *dst,
    struct err *e)
{
	const struct published_at *at = &s->pub;
	int step = s->type == DT_F8 ? QUANT_PANEL : 1;

	if (has_nan(m->values, (int64_t)n * s->cols))
		return not_finite(&(struct tensor_at){ s->st, s->t, s->file }, e);
	for (int r = 0; r < n; r += step) {
		const uint8_t *v = m->values + (int64_t)r * s->cols;
		float *x = (float *)(void *)dst + (int64_t)r * s->cols;

		if (read_grid(s, row + r, m, e) < 0)
			return -1;
		if (s->type == DT_F8)
			published_f8_put(dst + (size_t)(r / QUANT_PANEL) *
			    quant_panel_bytes(DT_F8, s->cols), v, m->grid, at->wide,
			    n - r < QUANT_PANEL ? n - r : QUANT_PANEL, s->cols);
		else
			for (int k = 0; k < s->cols; k++)
				x[k] = published_e4m3(v[k]) * m->grid[k / at->wide];
	}
	return 0;
}

static int put_mxfp4(const struct stored *s, int row, int n, struct piece *m, char *dst,
    struct err *e)
{
	int64_t nb = s->cols / QUANT_BLOCK;

	if (fetch_rows(s, &s->pub.scale, row, n, nb, m->scales, e) < 0)
		return -1;
	for (int64_t i = 0; i < n * nb; i++)
		if (!isfinite(published_e8m0(m->scales[i]) * 6))
			return not_finite(&s->pub.scale, e);
	for (int r = 0; r < n; r += QUANT_PANEL) {
		int left = n - r < QUANT_PANEL ? n - r : QUANT_PANEL;

		published_mxfp4_put(dst + (size_t)(r / QUANT_PANEL) * quant_panel_bytes(DT_MXFP4,
		    s->cols), m->values + r * nb * HALF_BLOCK, m->scales + r * nb, left, s->cols);
	}
	return 0;
}

/* MXFP4 that is wanted as floats goes by a panel. */
static int put_mxfp4_floats(const struct stored *s, int row, int n, struct piece *m, char *dst,
    struct err *e)
{
	char *panels = malloc(mat_bytes(DT_MXFP4, n, s->cols));
	int rc = panels ? put_mxfp4(s, row, n, m, panels, e)
	    : err_set(e, EX_OSERR, "out of memory");

	if (rc == 0)
		quant_unpack((float *)(void *)dst, panels, DT_MXFP4, n, s->cols);
	free(panels);
	return rc;
}

static bool is_f8(const struct stored *s) { return s->t->dtype == ST_F8_E4M3; }

static int64_t row_bytes(const struct stored *s)
{
	return is_f8(s) ? s->cols : s->cols / 2;
}

/* Rows in memory at a time: whole panels. */
static int rows_at_once(const struct stored *s, int n)
{
	int64_t rows = CHUNK / (row_bytes(s) * s->pub.step) / QUANT_PANEL * QUANT_PANEL;

	rows = rows < QUANT_PANEL ? QUANT_PANEL : rows;
	return rows < n ? (int)rows : n;
}

static int read_pieces(const struct stored *s, int row, int n, struct piece *m, char *dst,
    struct err *e)
{
	struct tensor_at own = { s->st, s->t, s->file };
	int step = rows_at_once(s, n), rc = 0;

	for (int r = 0; r < n && rc == 0; r += step) {
		int k = n - r < step ? n - r : step;
		char *to = dst + (s->type == DT_F32 ? (int64_t)r * s->cols *
		    (int64_t)sizeof(float) : (int64_t)mat_bytes(s->type, r > 0 ? r : 1, s->cols) *
		    (r > 0));

		rc = fetch_rows(s, &own, row + r, k, row_bytes(s), m->values, e);
		if (rc == 0)
			rc = (is_f8(s) ? put_f8 : s->type == DT_F32 ? put_mxfp4_floats
			    : put_mxfp4)(s, row + r, k, m, to, e);
	}
	return rc;
}

int stored_published_read(const struct stored *s, int row, int n, void *dst, struct err *e)
{
	size_t rows = (size_t)rows_at_once(s, n) * (size_t)s->pub.step,
	    scales = is_f8(s) ? (size_t)s->pub.across * sizeof(float)
	    : rows * (size_t)(s->cols / QUANT_BLOCK);
	struct piece m = { .values = malloc(rows * (size_t)row_bytes(s)),
	    .scales = malloc(scales), .grid = malloc(scales), .have = -1 };
	int rc = m.values && m.scales && m.grid ? read_pieces(s, row, n, &m, dst, e)
	    : err_set(e, EX_OSERR, "out of memory");

	free(m.values);
	free(m.scales);
	free(m.grid);
	return rc;
}
