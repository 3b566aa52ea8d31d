#include "format/gguf_rows.h"

/* Value i of the value heads, each `width` wide: those of a key head together here, the first of
 * all key heads first in the file. */
static int64_t tiled(const struct delta_heads *d, int64_t i, int width)
{
	int64_t head = i / width, per = d->H / d->G;

	return (head % per * d->G + head / per) * width + i % width;
}

/* Rows that are q and k come first and are as they are. */
static int64_t tiled_row(const struct gguf_rows *g, int64_t r)
{
	const struct delta_heads *d = &g->block->delta;
	int64_t before = 2 * (int64_t)d->G * d->dk;

	if (g->rows != before + (int64_t)d->H * d->dv)
		before = 0;
	return r < before ? r : before + tiled(d, r - before, (int)(g->rows - before) / d->H);
}

/* The rows of a head lie as 0, d/2, 1, d/2 + 1, .. */
static int64_t paired_row(const struct gguf_rows *g, int64_t r)
{
	int64_t i = r % g->head, half = g->head / 2;

	return r - i + (i < half ? 2 * i : 2 * (i - half) + 1);
}

/* Of q, k, v and z of each key head: in which tensor, and where. */
static int64_t apart_row(const struct gguf_rows *g, int64_t r, bool *second)
{
	const struct delta_heads *d = &g->block->delta;
	int64_t v = (int64_t)d->H / d->G * d->dv, each = 2 * d->dk + 2 * v, head = r / each;
	int64_t i = r % each, keys = (int64_t)d->G * d->dk;

	*second = i >= 2 * d->dk + v;
	if (i < d->dk)
		return head * d->dk + i;
	if (i < 2 * d->dk)
		return keys + head * d->dk + i - d->dk;
	return *second ? head * v + i - 2 * d->dk - v : 2 * keys + head * v + i - 2 * d->dk;
}

int64_t gguf_row(const struct gguf_rows *g, int64_t r, bool *second)
{
	*second = false;
	if (g->how & AT_QKVZ_APART)
		return apart_row(g, r, second);
	return g->how & AT_PAIRS ? paired_row(g, r) : tiled_row(g, r);
}

int64_t gguf_col(const struct gguf_rows *g, int64_t c)
{
	return tiled(&g->block->delta, c, g->cols / g->block->delta.H);
}
