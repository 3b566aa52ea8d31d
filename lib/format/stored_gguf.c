/* Parameters in GGUF files: rows lie whole, in another order at most; kv_b alone may be apart. */
#include "format/stored.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arch/config.h"
#include "format/gguf_model.h"
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
	unsigned how = s->how & ~(unsigned)AT_FLAT;
	uint64_t want[3];
	int n = stored_shape(p, how, md->cfg.num_experts, want);

	if (!same_shape(s->gt, n, want))
		return wrong_shape(s, s->gt, n, want, e);
	if (stored_layout(p, how, md->cfg.num_experts, n, want, &s->at) < 0)
		return err_set(e, EX_SOFTWARE, "%s: tensor \"%s\"", s->file, s->gt->name);
	s->head = md->cfg.head_dim;
	return 0;
}

/* kv_b apart: row (h, i) is one of the keys of head h for i < N, else one of its values. */
static int place_apart(const struct modeldir *md, const struct param *p, const char *second,
    struct stored *s, struct err *e)
{
	const struct block *b = &md->cfg.block[p->layer];
	uint64_t H = (uint64_t)md->cfg.num_attention_heads, C = (uint64_t)p->cols;
	uint64_t keys[3] = { H, C, (uint64_t)b->nope }, values[3] = { H, (uint64_t)b->value, C };

	s->values = gguf_model_find(md->gguf, second, &s->gv);
	if (!s->values)
		return err_set(e, EX_DATAERR, "%s: tensor \"%s\" is missing", s->file, second);
	s->head = b->nope + b->value;
	return !same_shape(s->gt, 3, keys) ? wrong_shape(s, s->gt, 3, keys, e) :
	    !same_shape(s->values, 3, values) ? wrong_shape(s, s->values, 3, values, e) : 0;
}

static enum dtype type_of(const struct stored *s)
{
	if (s->how & (AT_PLUS_ONE | AT_EXP | AT_KV_APART))
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
		*s = (struct stored){ .rows = p->rows, .cols = p->cols, .how = n->how };
		s->gt = gguf_model_find(md->gguf, name, &s->g);
		if (!s->gt)
			continue;
		s->file = gguf_name(s->g);
		s->type = type_of(s);
		if (!(n->how & AT_KV_APART))
			return place_rows(md, p, s, e);
		snprintf(name, sizeof name, n[1].name, p->layer);
		return place_apart(md, p, name, s, e);
	}
	return err_set(e, EX_DATAERR, "%s: tensor \"%s\" is missing", gguf_name(md->gguf->g[0]),
	    *first ? first : p->name);
}

/* ---- reading ---- */

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

/* The rows of a head lie as 0, d/2, 1, d/2 + 1, .. */
static int read_pairs(const struct stored *s, int row, int n, char *dst, struct err *e)
{
	size_t width = (size_t)s->cols * dtype_size(s->type);

	for (int r = row; r < row + n; r++) {
		int i = r % s->head, half = s->head / 2;
		int at = r - i + (i < half ? 2 * i : 2 * (i - half) + 1);

		if (read_rows(s, at, 1, dst + (size_t)(r - row) * width, e) < 0)
			return -1;
	}
	return 0;
}

/* Row i of the keys of a head is column i of (C, N) in `keys`. */
static void turn(float *dst, const float *keys, int i, int C, int N)
{
	for (int c = 0; c < C; c++)
		dst[c] = keys[(int64_t)c * N + i];
}

static int read_apart(const struct stored *s, int row, int n, float *dst, struct err *e)
{
	int C = s->cols, N = (int)s->gt->shape[s->gt->ndim - 1], V = s->head - N, here = -1, r = 0;
	float *keys = malloc((size_t)C * (size_t)N * sizeof *keys);

	if (!keys)
		return err_set(e, EX_OSERR, "out of memory");
	for (int k = row; k < row + n && r == 0; k++, dst += C) {
		int h = k / s->head, i = k % s->head;

		if (i >= N) {
			r = gguf_read_f32(s->gv, s->values, ((uint64_t)h * (uint64_t)V +
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
	return s->values ? read_apart(s, row, n, dst, e) :
	    s->how & AT_PAIRS ? read_pairs(s, row, n, dst, e) : read_rows(s, row, n, dst, e);
}
