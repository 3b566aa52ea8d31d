/* Parameters in GGUF files: rows lie whole, in another order at most, and some in two tensors. */
#include "format/stored.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arch/config.h"
#include "format/gguf_model.h"
#include "format/gguf_rows.h"
#include "format/modeldir.h"

/* ---- finding ---- */

/* Files leave out dimensions of 1 that come first. */
static bool same_shape(const struct gguf_tensor *t, int n, const uint64_t want[])
{
	int i = 0, k = 0;

	while (i < t->ndim - 1 && t->shape[i] == 1)
		i++;
	while (k < n - 1 && want[k] == 1)
		k++;
	return t->ndim - i == n - k &&
	    memcmp(t->shape + i, want + k, (size_t)(n - k) * sizeof *want) == 0;
}

static int wrong_shape(const struct stored *s, const struct gguf_tensor *t, int n,
    const uint64_t want[], struct err *e)
{
	char text[72];
	int len = 0;

	for (int i = 0; i < n; i++)
		len += snprintf(text + len, sizeof text - (size_t)len, "%c%llu", i ? ',' : '[',
		    (unsigned long long)want[i]);
	return err_set(e, EX_DATAERR, "%s: tensor \"%s\" has not the shape %s] that the metadata "
	    "ask for", s->file, t->name, text);
}

/* One tensor, with the parameter's rows from s->at.first on. */
static int place_rows(const struct modeldir *md, const struct param *p, struct stored *s,
    struct err *e)
{
	unsigned how = s->how & (AT_STACKED | AT_FIRST | AT_SECOND);
	uint64_t want[3];
	int n = stored_shape(p, how, md->cfg.num_experts, want);

	if (!same_shape(s->gt, n, want))
		return wrong_shape(s, s->gt, n, want, e);
	if (stored_layout(p, how, md->cfg.num_experts, n, want, &s->at) < 0)
		return err_set(e, EX_SOFTWARE, "%s: tensor \"%s\"", s->file, s->gt->name);
	return 0;
}

/* Two tensors, each of the shape that it must have. */
static int place_two(const struct modeldir *md, const struct param *p, const char *second,
    struct stored *s, struct err *e)
{
	const struct block *b = s->block;
	const struct delta_heads *d = &b->delta;
	uint64_t H = (uint64_t)md->cfg.num_attention_heads, C = (uint64_t)p->cols;
	uint64_t z = (uint64_t)d->H * (uint64_t)d->dv;
	uint64_t qkv = 2 * (uint64_t)d->G * (uint64_t)d->dk + z;
	uint64_t kv[2][3] = { { H, C, (uint64_t)b->nope }, { H, (uint64_t)b->value, C } };
	uint64_t qkvz[2][2] = { { qkv, C }, { z, C } };
	bool apart = s->how & AT_KV_APART;
	int n = apart ? 3 : 2;

	s->second = gguf_model_find(md->gguf, second, &s->g2);
	if (!s->second)
		return err_set(e, EX_DATAERR, "%s: tensor \"%s\" is missing", s->file, second);
	if (!same_shape(s->gt, n, apart ? kv[0] : qkvz[0]))
		return wrong_shape(s, s->gt, n, apart ? kv[0] : qkvz[0], e);
	if (!same_shape(s->second, n, apart ? kv[1] : qkvz[1]))
		return wrong_shape(s, s->second, n, apart ? kv[1] : qkvz[1], e);
	return 0;
}

static enum dtype type_of(const struct stored *s)
{
	if (s->how & (AT_PLUS_ONE | AT_EXP | AT_KV_APART | AT_QKVZ_APART | AT_ACROSS))
		return DT_F32;
	return s->gt->type == GGUF_F16 ? DT_F16 : s->gt->type == GGUF_BF16 ? DT_BF16 : DT_F32;
}

int stored_gguf_find(const struct modeldir *md, const struct param *p, struct stored *s,
    struct err *e)
{
	char name[sizeof p->name], first[sizeof p->name] = "";

	for (const struct param_name *n = md->gguf->names; n->name; n++) {
		if (n->kind != p->kind)
			continue;
		snprintf(name, sizeof name, n->name, p->layer, p->expert);
		if (!*first)
			memcpy(first, name, sizeof first);
		*s = (struct stored){ .rows = p->rows, .cols = p->cols, .how = n->how,
		    .head = md->cfg.head_dim,
		    .block = p->layer < 0 ? NULL : &md->cfg.block[p->layer] };
		s->gt = gguf_model_find(md->gguf, name, &s->g);
		if (!s->gt)
			continue;
		s->file = gguf_name(s->g);
		s->type = type_of(s);
		if (!(n->how & (AT_KV_APART | AT_QKVZ_APART)))
			return place_rows(md, p, s, e);
		snprintf(name, sizeof name, n[1].name, p->layer);
		return place_two(md, p, name, s, e);
	}
	return err_set(e, EX_DATAERR, "%s: tensor \"%s\" is missing", gguf_name(md->gguf->g[0]),
	    *first ? first : p->name);
}

/* ---- reading ---- */

static struct gguf_rows order(const struct stored *s)
{
	return (struct gguf_rows){ s->how, s->rows, s->cols, s->head, s->block };
}

static void mend(const struct stored *s, float *x, int64_t n)
{
	for (int64_t i = 0; i < n && s->how & AT_PLUS_ONE; i++)
		x[i] -= 1;
	for (int64_t i = 0; i < n && s->how & AT_EXP; i++)
		x[i] = logf(-x[i]);
}

/* n rows from `from` on of the tensor, in s->type. */
static int read_rows(const struct stored *s, int64_t from, int n, char *dst, struct err *e)
{
	uint64_t first = (uint64_t)(s->at.first + from * s->at.row_step);
	uint64_t count = (uint64_t)n * (uint64_t)s->cols, size = dtype_size(s->type);

	if (s->type != DT_F32)
		return gguf_read(s->g, s->gt, first * size, dst, count * size, e);
	if (gguf_read_f32(s->g, s->gt, first, count, (float *)dst, e) < 0)
		return -1;
	mend(s, (float *)dst, (int64_t)count);
	return 0;
}

/* Rows in another order. */
static int read_scattered(const struct stored *s, int row, int n, char *dst, struct err *e)
{
	const struct gguf_rows g = order(s);
	size_t width = (size_t)s->cols * dtype_size(s->type);
	bool second;

	for (int r = row; r < row + n; r++, dst += width) {
		int64_t at = gguf_row(&g, r, &second);
		int rc = !(s->how & AT_QKVZ_APART) ? read_rows(s, at, 1, dst, e) :
		    gguf_read_f32(second ? s->g2 : s->g, second ? s->second : s->gt,
		    (uint64_t)(at * s->cols), (uint64_t)s->cols, (float *)dst, e);

		if (rc < 0)
			return -1;
	}
	return 0;
}

/* Columns in another order. */
static int read_across(const struct stored *s, int row, int n, float *dst, struct err *e)
{
	const struct gguf_rows g = order(s);
	float *x = malloc((size_t)s->cols * sizeof *x);
	int r = x ? 0 : err_set(e, EX_OSERR, "out of memory");

	for (int k = row; k < row + n && r == 0; k++, dst += s->cols) {
		r = read_rows(s, k, 1, (char *)x, e);
		for (int c = 0; c < s->cols && r == 0; c++)
			dst[c] = x[gguf_col(&g, c)];
	}
	free(x);
	return r;
}

/* Row i of the keys of a head is column i of (C, N) in `keys`. */
static void turn(float *dst, const float *keys, int i, int C, int N)
{
	for (int c = 0; c < C; c++)
		dst[c] = keys[(int64_t)c * N + i];
}

static int read_kv(const struct stored *s, int row, int n, float *dst, struct err *e)
{
	int C = s->cols, N = s->block->nope, V = s->block->value, here = -1, r = 0;
	float *keys = malloc((size_t)C * (size_t)N * sizeof *keys);

	if (!keys)
		return err_set(e, EX_OSERR, "out of memory");
	for (int k = row; k < row + n && r == 0; k++, dst += C) {
		int h = k / (N + V), i = k % (N + V);

		if (i >= N) {
			r = gguf_read_f32(s->g2, s->second, ((uint64_t)h * (uint64_t)V +
			    (uint64_t)(i - N)) * (uint64_t)C, (uint64_t)C, dst, e);
			continue;
		}
		if (h != here)
			r = gguf_read_f32(s->g, s->gt, (uint64_t)h * (uint64_t)C * (uint64_t)N,
			    (uint64_t)C * (uint64_t)N, keys, e);
		here = h;
		if (r == 0)
			turn(dst, keys, i, C, N);
	}
	free(keys);
	return r;
}

int stored_gguf_read(const struct stored *s, int row, int n, void *dst, struct err *e)
{
	if (s->how & AT_KV_APART)
		return read_kv(s, row, n, dst, e);
	if (s->how & AT_ACROSS)
		return read_across(s, row, n, dst, e);
	if (s->how & GGUF_SCATTERED)
		return read_scattered(s, row, n, dst, e);
	return read_rows(s, row, n, dst, e);
}
