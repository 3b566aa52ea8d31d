#include "quant.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "pool.h"

#define TRIES 16	/* scales tried beyond plain rounding, each side */

size_t quant_scale_bytes(enum dtype t, int cols)
{
	return ((size_t)quant_blocks(cols) * QUANT_PANEL * 2 * (t == DT_Q4A ? 2 : 1) + 63) & ~(size_t)63;
}

static size_t block_bytes(enum dtype t)	/* values of 16 rows */
{
	return QUANT_PANEL * QUANT_BLOCK / (t == DT_Q8 ? 1 : 2);
}

size_t quant_panel_bytes(enum dtype t, int cols)
{
	return quant_scale_bytes(t, cols) + (size_t)quant_blocks(cols) * block_bytes(t);
}

size_t mat_bytes(enum dtype t, int rows, int cols)
{
	size_t n;

	if (rows <= 0 || cols <= 0 || cols > INT32_MAX - QUANT_BLOCK)
		return 0;
	if (dtype_blocks(t))
		return __builtin_mul_overflow((size_t)quant_panels(rows), quant_panel_bytes(t, cols), &n) ? 0 : n;
	return __builtin_mul_overflow((size_t)rows * (size_t)cols, dtype_size(t), &n) ? 0 : n;
}

static float half_round(float x)
{
	uint16_t h;
	float y;

	tensor_from_f32(&h, DT_F16, &x, 1);
	tensor_to_f32(&y, &h, DT_F16, 1);
	return y;
}

/* One block on its way: x is approximated by d * q + m. */
struct fit {
	float d, m;
	int8_t q[QUANT_BLOCK];
	double error;
};

static void fit_round(struct fit *f, const float *x, int lo, int hi)
{
	f->error = 0;
	for (int i = 0; i < QUANT_BLOCK; i++) {
		float q = f->d == 0 ? 0 : rintf((x[i] - f->m) / f->d);
		double left;

		f->q[i] = (int8_t)(q < (float)lo ? lo : q > (float)hi ? hi : (int)q);
		left = (double)x[i] - ((double)f->d * f->q[i] + f->m);
		f->error += left * left;
	}
}

/* The best d (and m, when affine) for the q there are: least squares. */
static void fit_scale(struct fit *f, const float *x, bool affine)
{
	double n = QUANT_BLOCK, sq = 0, sqq = 0, sx = 0, sqx = 0, det;

	for (int i = 0; i < QUANT_BLOCK; i++) {
		sq += f->q[i];
		sqq += f->q[i] * f->q[i];
		sx += x[i];
		sqx += (double)x[i] * f->q[i];
	}
	det = affine ? n * sqq - sq * sq : sqq;
	if (det <= 0)
		return;
	f->d = half_round((float)(affine ? (n * sqx - sq * sx) / det : sqx / det));
	f->m = affine ? half_round((float)((sx - f->d * sq) / n)) : 0;
}

static void fit_try(struct fit *best, const float *x, float d, float m, int lo, int hi)
{
	struct fit f = { .d = half_round(d), .m = half_round(m) };

	fit_round(&f, x, lo, hi);
	for (int i = 0; i < 2; i++) {
		if (f.error < best->error)
			*best = f;
		fit_scale(&f, x, lo == 0);
		fit_round(&f, x, lo, hi);
	}
	if (f.error < best->error)
		*best = f;
}

static void fit_block(struct fit *best, const float *x, enum dtype t)
{
	int lo = t == DT_Q8 ? -127 : t == DT_Q4 ? -8 : 0, hi = t == DT_Q8 ? 127 : t == DT_Q4 ? 7 : 15;
	float min = x[0], max = x[0], far;

	for (int i = 1; i < QUANT_BLOCK; i++) {
		min = x[i] < min ? x[i] : min;
		max = x[i] > max ? x[i] : max;
	}
	far = -min > max ? min : max;
	*best = (struct fit){ .error = INFINITY };
	if (t == DT_Q8)		/* what a finer search could gain is lost in the last bit */
		fit_try(best, x, fabsf(far) / 127, 0, lo, hi);
	else if (t == DT_Q4)	/* the end of the range with one value more is on the side of the largest */
		for (int i = -TRIES; i <= TRIES; i++)
			fit_try(best, x, far / (-8 + 0.1f * (float)i), 0, lo, hi);
	else
		for (int i = 0; i <= TRIES; i++) {
			float cut = (max - min) * 0.02f * (float)i;

			for (int side = 0; side < 3; side++)
				fit_try(best, x, (max - min - cut) / 15, min + cut * 0.5f * (float)side, lo, hi);
		}
}

struct pack {
	char *dst;
	const float *src;
	float *out;
	enum dtype t;
	int rows, cols;
	_Atomic int bad;
};

static void put_block(char *panel, const struct pack *p, int r, int b, const struct fit *f)
{
	bool affine = p->t == DT_Q4A;
	uint16_t *scale = (uint16_t *)panel + (size_t)b * QUANT_PANEL * (affine ? 2 : 1) + r;
	uint8_t *v = (uint8_t *)panel + quant_scale_bytes(p->t, p->cols) + (size_t)b * block_bytes(p->t) + r * 4;

	tensor_from_f32(scale, DT_F16, &f->d, 1);
	if (affine)
		tensor_from_f32(scale + QUANT_PANEL, DT_F16, &f->m, 1);
	for (int k = 0; k < QUANT_BLOCK; k++)
		if (p->t == DT_Q8)
			v[k / 4 * 64 + k % 4] = (uint8_t)(f->q[k] + 128);
		else
			v[k % 16 / 4 * 64 + k % 4] |= (uint8_t)((f->q[k] + (affine ? 0 : 8)) << (k < 16 ? 0 : 4));
}

static void pack_row(struct pack *p, char *panel, int row)
{
	const float *src = p->src + (int64_t)row * p->cols;
	struct fit f;

	for (int b = 0; b < quant_blocks(p->cols); b++) {
		int n = p->cols - b * QUANT_BLOCK < QUANT_BLOCK ? p->cols - b * QUANT_BLOCK : QUANT_BLOCK;
		float x[QUANT_BLOCK] = { 0 };

		memcpy(x, src + b * QUANT_BLOCK, (size_t)n * sizeof(*x));
		fit_block(&f, x, p->t);
		if (!isfinite(f.error) || !isfinite(f.d) || !isfinite(f.m))
			p->bad = 1;
		else
			put_block(panel, p, row % QUANT_PANEL, b, &f);
	}
}

static void pack_panels(void *ctx, int64_t i0, int64_t i1, int worker)
{
	struct pack *p = ctx;
	size_t bytes = quant_panel_bytes(p->t, p->cols);

	(void)worker;
	for (int64_t i = i0; i < i1; i++) {
		char *panel = p->dst + (size_t)i * bytes;

		memset(panel, 0, bytes);
		for (int row = (int)i * QUANT_PANEL; row < p->rows && row < ((int)i + 1) * QUANT_PANEL; row++)
			pack_row(p, panel, row);
	}
}

int quant_pack(void *dst, enum dtype t, const float *src, int rows, int cols)
{
	struct pack p = { .dst = dst, .src = src, .t = t, .rows = rows, .cols = cols };

	pool_for(quant_panels(rows), 1, pack_panels, &p);
	return p.bad ? -1 : 0;
}

static float value_at(const struct pack *p, const char *panel, int r, int k)
{
	int b = k / QUANT_BLOCK, j = k % QUANT_BLOCK;
	bool affine = p->t == DT_Q4A;
	const uint16_t *scale = (const uint16_t *)panel + (size_t)b * QUANT_PANEL * (affine ? 2 : 1) + r;
	const uint8_t *v = (const uint8_t *)panel + quant_scale_bytes(p->t, p->cols) + (size_t)b * block_bytes(p->t) + r * 4;
	float d, m = 0;

	tensor_to_f32(&d, scale, DT_F16, 1);
	if (affine)
		tensor_to_f32(&m, scale + QUANT_PANEL, DT_F16, 1);
	if (p->t == DT_Q8)
		return d * (float)(v[j / 4 * 64 + j % 4] - 128);
	return d * (float)((v[j % 16 / 4 * 64 + j % 4] >> (j < 16 ? 0 : 4) & 15) - (affine ? 0 : 8)) + m;
}

void quant_unpack_row(float *dst, const void *src, enum dtype t, int row, int cols)
{
	struct pack p = { .t = t, .cols = cols };
	const char *panel = (const char *)src + (size_t)(row / QUANT_PANEL) * quant_panel_bytes(t, cols);

	for (int k = 0; k < cols; k++)
		dst[k] = value_at(&p, panel, row % QUANT_PANEL, k);
}

static void unpack_rows(void *ctx, int64_t i0, int64_t i1, int worker)
{
	const struct pack *p = ctx;

	(void)worker;
	for (int64_t i = i0; i < i1; i++)
		quant_unpack_row(p->out + i * p->cols, p->dst, p->t, (int)i, p->cols);
}

void quant_unpack(float *dst, const void *src, enum dtype t, int rows, int cols)
{
	struct pack p = { .dst = (char *)src, .out = dst, .t = t, .rows = rows, .cols = cols };

	pool_for(rows, 8, unpack_rows, &p);
}
