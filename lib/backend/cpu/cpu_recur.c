/*
 * Rows conv and delta of the cpu backend: layers that remember their past in a state of fixed
 * size. A task is one sequence and one piece of channels, or one head; tokens are taken one after
 * the other, always by the same arithmetic, so there is nothing that cutting them could change.
 */
#include <math.h>
#include <string.h>

#include "backend/cpu/cpu.h"
#include "backend/cpu/cpu_kernels.h"
#include "base/pool.h"

/* ---- convolution ---- */

/* The last L - 1 of the inputs before and of these n. */
static void remember(const struct conv_args *a, real *past, const real *x, int n, size_t bytes)
{
	for (int j = 0; j < a->L - 1; j++) {
		int at = n + j - (a->L - 1);

		memcpy(past + (int64_t)j * a->C, at < 0 ? past + (int64_t)(n + j) * a->C
		    : x + at * a->ldx, bytes);
	}
}

static void conv_range(void *ctx, int64_t i0, int64_t i1, int worker)
{
	const struct conv_args *a = ctx;
	int per = (a->C + CPU_CONV_W - 1) / CPU_CONV_W;
	real *w = cpu_thread_buffer(sizeof *w * (size_t)a->L * CPU_CONV_W);

	(void)worker;
	for (int64_t i = i0; i < i1; i++) {
		const struct recur_seg *s = &a->seg[i / per];
		int64_t c0 = i % per * CPU_CONV_W;
		int c = a->C - c0 < CPU_CONV_W ? (int)(a->C - c0) : CPU_CONV_W;
		real *past = s->state + a->at + c0;
		const real *x = a->x + s->row0 * a->ldx + c0;
		struct conv_piece p = { .past = past, .ldp = a->C, .x = x, .ldx = a->ldx,
		    .y = a->y + s->row0 * a->ldy + c0, .ldy = a->ldy, .w = w,
		    .bias = a->bias ? a->bias + c0 : NULL, .L = a->L, .silu = a->silu };

		for (int k = 0; k < c; k++)
			for (int j = 0; j < a->L; j++)
				w[j * CPU_CONV_W + k] = a->w[(c0 + k) * a->L + j];
		cpu_kernels()->conv(&p, c, s->n);
		remember(a, past, x, s->n, (size_t)c * sizeof *x);
	}
}

void cpu_conv(CPU, const struct conv_args *a)
{
	int64_t per = (a->C + CPU_CONV_W - 1) / CPU_CONV_W;

	cpu_kernels();
	pool_for(a->n * per, 8, conv_range, (void *)(uintptr_t)a);
}

/* ---- the delta rule ---- */

#define TOKENS 16	/* at a time, so that a part of the state stays in the first cache */
#define VALUES 4096	/* of q and k of them, at most; of one token, any */

static int tokens_together(const struct delta_args *a)
{
	int n = VALUES / (2 * a->dk);

	return n < 1 ? 1 : n < TOKENS ? n : TOKENS;
}

/* x divided by its length, times `times`. The sum runs in four chains whatever the machine. */
static void to_length(real *y, const real *x, int w, real times)
{
	real s[4] = { 0 }, r;

	for (int i = 0; i < w; i++)
		s[i % 4] += x[i] * x[i];
	r = (real)(1 / sqrt((double)((s[0] + s[2]) + (s[1] + s[3])) + 1e-6)) * times;
	for (int i = 0; i < w; i++)
		y[i] = x[i] * r;
}

static real decay_of(const struct delta_args *a, int64_t row, int h)
{
	double x = (double)a->a[row * a->H + h] + (double)a->dt[h];
	double soft = x > 30 ? x : log1p(exp(x));

	return (real)exp(-exp((double)a->a_log[h]) * soft);
}

/* Rows row..row+p->n-1 of head h. */
static void delta_rows(const struct delta_args *a, int64_t row, int h, struct delta_piece *p,
    real *room)
{
	int64_t g = (int64_t)h * a->G / a->H * a->dk;
	real decay[TOKENS], beta[TOKENS], *q = room, *k = room + (int64_t)p->n * a->dk;
	real times = (real)(1 / sqrt((double)a->dk));

	for (int t = 0; t < p->n; t++) {
		to_length(q + (int64_t)t * a->dk, a->q + (row + t) * a->ldq + g, a->dk, times);
		to_length(k + (int64_t)t * a->dk, a->k + (row + t) * a->ldk + g, a->dk, 1);
		decay[t] = decay_of(a, row + t, h);
		beta[t] = (real)(1 / (1 + exp(-(double)a->b[(row + t) * a->H + h])));
	}
	p->q = q;
	p->k = k;
	p->decay = decay;
	p->beta = beta;
	p->v = a->v + row * a->ldv + (int64_t)h * a->dv;
	p->o = a->o + (row * a->H + h) * a->dv;
	cpu_kernels()->delta(p);
}

static void delta_range(void *ctx, int64_t i0, int64_t i1, int worker)
{
	const struct delta_args *a = ctx;
	int most = tokens_together(a);
	real *room = cpu_thread_buffer(sizeof *room * 2 * (size_t)most * (size_t)a->dk);

	(void)worker;
	for (int64_t i = i0; i < i1; i++) {
		const struct recur_seg *s = &a->seg[i / a->H];
		int h = (int)(i % a->H);
		struct delta_piece p = { .s = s->state + a->at + (int64_t)h * a->dk * a->dv,
		    .ldv = a->ldv, .ldo = (int64_t)a->H * a->dv, .dk = a->dk, .dv = a->dv };

		for (int t = 0; t < s->n; t += p.n) {
			p.n = s->n - t < most ? s->n - t : most;
			delta_rows(a, s->row0 + t, h, &p, room);
		}
	}
}

void cpu_delta(CPU, const struct delta_args *a)
{
	cpu_kernels();
	pool_for((int64_t)a->n * a->H, 1, delta_range, (void *)(uintptr_t)a);
}
