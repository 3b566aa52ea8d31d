#include "format/stored.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arch/config.h"
#include "backend/quant.h"
#include "format/modeldir.h"
#include "format/stored_published.h"

#define CHUNK ((int64_t)1 << 18)	/* elements in memory at a time */

/* ---- where a parameter lies in a tensor ---- */

static bool halved(unsigned how)
{
	return how & (AT_FIRST | AT_SECOND | AT_EVEN | AT_ODD);
}

int stored_shape(const struct param *p, unsigned how, int experts, uint64_t shape[3])
{
	uint64_t rows = (uint64_t)p->rows, cols = (uint64_t)p->cols;
	int n = 0;

	if (halved(how))
		*(how & AT_ACROSS ? &cols : &rows) *= 2;
	if (how & AT_STACKED)
		shape[n++] = (uint64_t)experts;
	shape[n++] = how & AT_TURNED ? cols : rows;
	if (how & AT_FLAT)
		shape[n++] = 1;
	if (p->ndim == 2)
		shape[n++] = how & AT_TURNED ? rows : cols;
	return n;
}

int stored_layout(const struct param *p, unsigned how, int experts, int ndim,
    const uint64_t shape[], struct layout *at)
{
	int64_t rows = (int64_t)p->rows * (halved(how) && !(how & AT_ACROSS) ? 2 : 1),
	    cols = (int64_t)p->cols * (how & AT_ACROSS ? 2 : 1);
	int64_t down = how & AT_TURNED ? 1 : cols, right = how & AT_TURNED ? rows : 1;
	int64_t *halve = how & AT_ACROSS ? &right : &down;
	int64_t half = how & AT_ACROSS ? p->cols : p->rows;
	uint64_t want[3];

	if (stored_shape(p, how, experts, want) != ndim ||
	    memcmp(shape, want, (size_t)ndim * sizeof *want) != 0)
		return -1;
	at->first = how & AT_SECOND ? half * *halve : how & AT_ODD ? *halve : 0;
	if (how & (AT_EVEN | AT_ODD))
		*halve *= 2;
	at->row_step = down;
	at->col_step = right;
	if (how & AT_STACKED)
		at->first += p->expert * rows * cols;
	return 0;
}

/* ---- finding ---- */

/* Is it a matrix in blocks, of the shape asked for and all there? */
static bool in_blocks(const struct view *v, const struct param *p, enum dtype *t)
{
	char key[128], name[8];
	const char *text;
	int rows, cols, end = 0;

	if (v->t->dtype != ST_U8 || p->ndim != 2)
		return false;
	snprintf(key, sizeof key, "quant.%s", v->t->name);
	text = st_meta(v->st, key);
	return text && sscanf(text, "%7s %9d %9d%n", name, &rows, &cols, &end) == 3 &&
	    text[end] == '\0'
	    && dtype_parse(name, t) == 0 && dtype_blocks(*t) && rows == p->rows && cols == p->cols
	    && v->t->nbytes == mat_bytes(*t, rows, cols);
}

static const char *shape_text(int ndim, const uint64_t shape[], char out[72])
{
	int n = 0;

	for (int i = 0; i < ndim; i++)
		n += snprintf(out + n, 72 - (size_t)n, "%c%llu", i ? ',' : '[',
		    (unsigned long long)shape[i]);
	snprintf(out + n, 72 - (size_t)n, "]");
	return out;
}

static int wrong_shape(const struct view *v, const struct param *p, unsigned how, int experts,
    struct err *e)
{
	uint64_t shape[3];
	char text[72];

	return err_set(e, EX_DATAERR, "%s: tensor \"%s\" has not the shape %s that config.json "
	    "asks for", v->file, v->t->name,
	    shape_text(stored_shape(p, how, experts, shape), shape, text));
}

/* A parameter in the tensor of view v. */
static int place(const struct modeldir *md, const struct param *p, unsigned how,
    const struct view *v, struct stored *s, struct err *e)
{
	*s = (struct stored){ .st = v->st, .t = v->t, .file = v->file, .rows = p->rows,
	    .cols = p->cols };
	if (!(how & AT_SEVERAL) && in_blocks(v, p, &s->type))
		return 0;
	if (stored_is_published(v->t))
		return stored_published(md, p, how, s, e);
	/* a packed model has tensors of one parameter each, as they are */
	if (stored_layout(p, how, md->cfg.num_experts, v->t->ndim, v->t->shape, &s->at) < 0 &&
	    (how & AT_SEVERAL || stored_layout(p, 0, 0, v->t->ndim, v->t->shape, &s->at) < 0))
		return wrong_shape(v, p, how, md->cfg.num_experts, e);
	if (dtype_parse(st_dtype_name(v->t->dtype), &s->type) < 0)
		return err_set(e, EX_DATAERR, "%s: tensor \"%s\" is %s, not F64, F32, BF16 or F16",
		    v->file, v->t->name, st_dtype_name(v->t->dtype));
	return 0;
}

/* The first of a list of names for p whose tensor is there, or its blocks are; NULL: none is. */
static const struct param_name *listed(const struct modeldir *md, const struct param *p,
    const struct param_name *n, struct view *v)
{
	char name[sizeof p->name];

	for (; n && n->name; n++) {
		if (n->kind != p->kind)
			continue;
		snprintf(name, sizeof name, n->name, p->layer, p->expert);
		if (modeldir_find(md, name, v) == 0)
			return n;
		snprintf(name + strlen(name), sizeof name - strlen(name), STORED_BLOCKS);
		if (modeldir_find(md, name, v) == 0)
			return n;
	}
	return NULL;
}

int stored_find(const struct modeldir *md, const struct param *p, struct stored *s, struct err *e)
{
	const struct param_name *n;
	struct view v;

	if (md->gguf)
		return stored_gguf_find(md, p, s, e);
	if ((n = listed(md, p, md->cfg.names, &v)))
		return place(md, p, n->how, &v, s, e);
	if (modeldir_find(md, p->name, &v) == 0)
		return place(md, p, 0, &v, s, e);
	if ((n = listed(md, p, param_also, &v)))
		return place(md, p, n->how, &v, s, e);
	return err_set(e, EX_DATAERR, "%s: tensor \"%s\" is missing", md->file[0], p->name);
}

/* Is there a name in the table for this kind? */
static bool named(const struct param_name *n, enum param_kind kind)
{
	while (n && n->name && n->kind != kind)
		n++;
	return n && n->name;
}

bool stored_as_published(const struct modeldir *md, const struct param *p)
{
	struct view v;
	const struct param_name *n = listed(md, p, md->cfg.names, &v);
	unsigned how = n ? n->how : 0;
	struct layout at;
	enum dtype type;

	if (!n && modeldir_find(md, p->name, &v) < 0)
		return true;			/* under a name of param_also */
	if (!n && named(md->cfg.names, p->kind))
		return false;
	if (!(how & AT_SEVERAL) && in_blocks(&v, p, &type))
		return false;
	return stored_is_published(v.t) || stored_layout(p, how, md->cfg.num_experts, v.t->ndim,
	    v.t->shape, &at) == 0;
}

/* ---- reading ---- */

static int64_t panel_bytes(const struct stored *s)
{
	return (int64_t)quant_panel_bytes(s->type, s->cols);
}

int64_t stored_bytes(const struct stored *s, int n)
{
	return dtype_blocks(s->type) ? (n + QUANT_PANEL - 1) / QUANT_PANEL * panel_bytes(s)
	    : (int64_t)n * s->cols * (int64_t)dtype_size(s->type);
}

int stored_step(const struct stored *s, int64_t bytes)
{
	int64_t n = bytes / ((int64_t)s->cols * (int64_t)sizeof(float));

	if (s->at.col_step > 1 || s->second)
		return s->rows;
	if (dtype_blocks(s->type))
		n = n / QUANT_PANEL * QUANT_PANEL;
	if (n < 1)
		n = dtype_blocks(s->type) ? QUANT_PANEL : 1;
	return n < s->rows ? (int)n : s->rows;
}

/* Bytes of the tensor. */
static int fetch(const struct stored *s, int64_t from, void *dst, int64_t bytes, struct err *e)
{
	struct st_error se;

	return st_read(s->st, s->t, (uint64_t)from, dst, (size_t)bytes, &se) < 0
	    ? modeldir_st_err(e, s->file, &se) : 0;
}

/* dst (n, cols) gets n rows of a matrix that is stored transposed, from a slab of its columns: so
 * many of them, each `step` elements from the next. */
static void turn(char *dst, const char *slab, const struct stored *s, int row, int n, int col,
    int cols, size_t size)
{
	for (int c = 0; c < cols; c++)
		for (int r = 0; r < n; r++)
			memcpy(dst + ((size_t)r * (size_t)s->cols + (size_t)(col + c)) * size,
			    slab + (size_t)(c * s->at.col_step + (row + r) * s->at.row_step) * size,
			    size);
}

/* Columns of a transposed matrix lie one after the other; what is between first and the last value
 * wanted is read, so much at a time. */
static int read_turned(const struct stored *s, int row, int n, char *dst, struct err *e)
{
	const int64_t size = (int64_t)dtype_size(s->type), across = s->at.col_step;
	int64_t span = (int64_t)(s->rows - 1) * s->at.row_step + 1;
	int step = (int)(CHUNK / across > 0 ? CHUNK / across : 1), rc = 0;
	char *slab = malloc((size_t)((step - 1) * across + span) * (size_t)size);

	if (!slab)
		return err_set(e, EX_OSERR, "out of memory");
	for (int c = 0; c < s->cols && rc == 0; c += step) {
		int k = s->cols - c < step ? s->cols - c : step;

		rc = fetch(s, (s->at.first + c * across) * size, slab,
		    ((k - 1) * across + span) * size, e);
		if (rc == 0)
			turn(dst, slab, s, row, n, c, k, (size_t)size);
	}
	free(slab);
	return rc;
}

/* Every second row: both are read, so much at a time. */
static int read_spaced(const struct stored *s, int row, int n, char *dst, struct err *e)
{
	const int64_t size = (int64_t)dtype_size(s->type), width = s->cols * size;
	int64_t apart = s->at.row_step * size;
	int step = (int)(CHUNK / s->at.row_step > 0 ? CHUNK / s->at.row_step : 1), rc = 0;
	char *both = malloc((size_t)(step * apart));

	if (!both)
		return err_set(e, EX_OSERR, "out of memory");
	for (int r = 0; r < n && rc == 0; r += step) {
		int k = n - r < step ? n - r : step;

		rc = fetch(s, s->at.first * size + (row + r) * apart, both, (k - 1) * apart +
		    width, e);
		for (int i = 0; i < k && rc == 0; i++)
			memcpy(dst + (r + i) * width, both + i * apart, (size_t)width);
	}
	free(both);
	return rc;
}

int stored_read(const struct stored *s, int row, int n, void *dst, struct err *e)
{
	if (s->g)
		return stored_gguf_read(s, row, n, dst, e);
	if (s->pub.scale.t)
		return stored_published_read(s, row, n, dst, e);
	if (dtype_blocks(s->type))
		return fetch(s, row / QUANT_PANEL * panel_bytes(s), dst, stored_bytes(s, n),
		    e);
	if (s->at.col_step > 1)
		return read_turned(s, row, n, dst, e);
	if (s->at.row_step != s->cols)
		return read_spaced(s, row, n, dst, e);
	return fetch(s, (s->at.first + row * s->at.row_step) * (int64_t)dtype_size(s->type), dst,
	    stored_bytes(s, n), e);
}

static void to_f32(const struct stored *s, float *dst, const void *src, int n)
{
	if (dtype_blocks(s->type))
		quant_unpack(dst, src, s->type, n, s->cols);
	else
		tensor_to_f32(dst, src, s->type, (size_t)n * (size_t)s->cols);
}

int stored_read_f32(const struct stored *s, int row, int n, float *dst, struct err *e)
{
	int step = stored_step(s, CHUNK * (int64_t)sizeof(float)), rc = 0;
	void *buf;

	if (s->type == DT_F32)
		return stored_read(s, row, n, dst, e);
	if (step > n)
		step = n;
	buf = malloc((size_t)stored_bytes(s, step));
	if (!buf)
		return err_set(e, EX_OSERR, "out of memory");
	for (int r = 0; r < n && rc == 0; r += step) {
		int k = n - r < step ? n - r : step;

		rc = stored_read(s, row + r, k, buf, e);
		if (rc == 0)
			to_f32(s, dst + (int64_t)r * s->cols, buf, k);
	}
	free(buf);
	return rc;
}
