#include "backend/quant.h"
#include "base/isa.h"

#include <stdlib.h>
#include <string.h>

#include "base/pool.h"
#include "backend/published.h"
#include "backend/quant_fit.h"

struct pack {
	char *dst;
	const float *src;
	float *out;
	enum dtype t;
	int rows, cols;
	_Atomic int bad;
};

/* Block b of the first n rows of a panel. */
static void put_block(char *panel, const struct pack *p, int b, const struct quant_fit *f, int n)
{
	bool affine = p->t == DT_Q4A;
	uint16_t *scale = (uint16_t *)panel + (size_t)b * QUANT_PANEL * (affine ? 2 : 1);
	uint8_t *v = (uint8_t *)panel + quant_scale_bytes(p->t, p->cols) + (size_t)b *
	    quant_block_bytes(p->t);

	tensor_from_f32(scale, DT_F16, f->d, (size_t)n);
	if (affine)
		tensor_from_f32(scale + QUANT_PANEL, DT_F16, f->m, (size_t)n);
	for (int k = 0; k < QUANT_BLOCK; k++)
		for (int r = 0; r < n; r++)
			if (p->t == DT_Q8)
				v[k / 4 * 64 + r * 4 + k % 4] = (uint8_t)(f->q[k][r] + 128);
			else
				v[k % 16 / 4 * 64 + r * 4 + k % 4] |=
				    (uint8_t)((f->q[k][r] + (affine ? 0 : 8)) << (k < 16 ? 0 : 4));
}

static void pack_block(struct pack *p, char *panel, int row, int b)
{
	const float *src = p->src + (int64_t)row * p->cols + b * QUANT_BLOCK;
	int n = p->rows - row < QUANT_PANEL ? p->rows - row : QUANT_PANEL;
	int width = p->cols - b * QUANT_BLOCK < QUANT_BLOCK ? p->cols - b * QUANT_BLOCK
	    : QUANT_BLOCK;
	struct quant_fit f;

	if (n < QUANT_PANEL || width < QUANT_BLOCK)
		memset(f.x, 0, sizeof f.x);
	for (int r = 0; r < n; r++)
		for (int k = 0; k < width; k++)
			f.x[k][r] = src[(int64_t)r * p->cols + k];
	if (quant_fit(&f, p->t) < 0)
		p->bad = 1;
	else
		put_block(panel, p, b, &f, n);
}

int quant_pack_panel(void *dst, enum dtype t, const float *src, int n, int cols)
{
	struct pack p = { .src = src, .t = t, .rows = n, .cols = cols };

	memset(dst, 0, quant_panel_bytes(t, cols));
	for (int b = 0; b < quant_blocks(cols); b++)
		pack_block(&p, dst, 0, b);
	return p.bad ? -1 : 0;
}

static void pack_panels(void *ctx, int64_t i0, int64_t i1, int worker)
{
	struct pack *p = ctx;
	size_t bytes = quant_panel_bytes(p->t, p->cols);

	(void)worker;
	for (int64_t i = i0; i < i1; i++) {
		int row = (int)i * QUANT_PANEL, left = p->rows - row;

		if (quant_pack_panel(p->dst + (size_t)i * bytes, p->t, p->src + (int64_t)row *
		    p->cols, left < QUANT_PANEL ? left : QUANT_PANEL, p->cols) < 0)
			p->bad = 1;
	}
}

int quant_pack(void *dst, enum dtype t, const float *src, int rows, int cols)
{
	struct pack p = { .dst = dst, .src = src, .t = t, .rows = rows, .cols = cols };

	isa_name();		/* chosen before there are threads that ask */
	pool_for(quant_panels(rows), 1, pack_panels, &p);
	return p.bad ? -1 : 0;
}

static float value_at(const struct pack *p, const char *panel, int r, int k)
{
	int b = k / QUANT_BLOCK, j = k % QUANT_BLOCK;
	bool affine = p->t == DT_Q4A;
	const uint16_t *scale = (const uint16_t *)panel + (size_t)b * QUANT_PANEL * (affine ? 2 : 1)
	    + r;
	const uint8_t *v = (const uint8_t *)panel + quant_scale_bytes(p->t, p->cols) + (size_t)b *
	    quant_block_bytes(p->t) + r * 4;
	float d, m = 0;

	tensor_to_f32(&d, scale, DT_F16, 1);
	if (affine)
		tensor_to_f32(&m, scale + QUANT_PANEL, DT_F16, 1);
	if (p->t == DT_Q8)
		return d * (float)(v[j / 4 * 64 + j % 4] - 128);
	return d * (float)((v[j % 16 / 4 * 64 + j % 4] >> (j < 16 ? 0 : 4) & 15) - (affine ? 0 : 8))
	    + m;
}

void quant_unpack_row(float *dst, const void *src, enum dtype t, int row, int cols)
{
	struct pack p = { .t = t, .cols = cols };
	const char *panel = (const char *)src + (size_t)(row / QUANT_PANEL) * quant_panel_bytes(t,
	    cols);

	if (!dtype_rounded(t)) {
		published_row(dst, panel, t, row % QUANT_PANEL, cols);
		return;
	}
	for (int k = 0; k < cols; k++)
		dst[k] = value_at(&p, panel, row % QUANT_PANEL, k);
}

/* The values of a block in the order in which they lie, (8, 16, 4): quad of the row, row, value. */
static void block_values(float x[QUANT_BLOCK * QUANT_PANEL], const struct pack *p,
    const char *panel, int b)
{
	bool affine = p->t == DT_Q4A;
	const uint16_t *scale = (const uint16_t *)panel + (size_t)b * QUANT_PANEL * (affine ? 2
	    : 1);
	const uint8_t *v = (const uint8_t *)panel + quant_scale_bytes(p->t, p->cols) + (size_t)b *
	    quant_block_bytes(p->t);
	float d[QUANT_PANEL], m[QUANT_PANEL] = { 0 }, ds[64], ms[64];
	int half = QUANT_BLOCK * QUANT_PANEL / 2, off = affine ? 0 : 8;

	tensor_to_f32(d, scale, DT_F16, QUANT_PANEL);
	if (affine)
		tensor_to_f32(m, scale + QUANT_PANEL, DT_F16, QUANT_PANEL);
	for (int i = 0; i < 64; i++) {
		ds[i] = d[i / 4];
		ms[i] = m[i / 4];
	}
	if (p->t == DT_Q8) {
		for (int i = 0; i < 2 * half; i++)
			x[i] = ds[i % 64] * (float)(v[i] - 128);
		return;
	}
	for (int i = 0; i < half; i++) {
		x[i] = ds[i % 64] * (float)((v[i] & 15) - off) + ms[i % 64];
		x[half + i] = ds[i % 64] * (float)((v[i] >> 4) - off) + ms[i % 64];
	}
}

void quant_unpack_panel(float *dst, const void *src, enum dtype t, int n, int cols)
{
	struct pack p = { .t = t, .cols = cols };
	float x[QUANT_BLOCK * QUANT_PANEL];

	for (int r = 0; r < n && !dtype_rounded(t); r++)
		published_row(dst + (int64_t)r * cols, src, t, r, cols);
	for (int b = 0; b < quant_blocks(cols) && dtype_rounded(t); b++) {
		int width = cols - b * QUANT_BLOCK < QUANT_BLOCK ? cols - b * QUANT_BLOCK
		    : QUANT_BLOCK;

		block_values(x, &p, src, b);
		for (int r = 0; r < n; r++) {
			float *row = dst + (int64_t)r * cols + b * QUANT_BLOCK;
			int k = 0;

			for (; k + 4 <= width; k += 4)
				memcpy(row + k, x + k * QUANT_PANEL + r * 4, 4 * sizeof *row);
			for (; k < width; k++)
				row[k] = x[k / 4 * 64 + r * 4 + k % 4];
		}
	}
}

static void unpack_panels(void *ctx, int64_t i0, int64_t i1, int worker)
{
	const struct pack *p = ctx;
	size_t bytes = quant_panel_bytes(p->t, p->cols);

	(void)worker;
	for (int64_t i = i0; i < i1; i++) {
		int row = (int)i * QUANT_PANEL, left = p->rows - row;

		quant_unpack_panel(p->out + (int64_t)row * p->cols, p->dst + (size_t)i * bytes,
		    p->t, left < QUANT_PANEL ? left : QUANT_PANEL, p->cols);
	}
}

void quant_unpack(float *dst, const void *src, enum dtype t, int rows, int cols)
{
	struct pack p = { .dst = (char *)src, .out = dst, .t = t, .rows = rows, .cols = cols };

	pool_for(quant_panels(rows), 1, unpack_panels, &p);
}
