/*
 * cpu_template: inner loops, included once per instruction set. The including file defines
 *	KERNELS, ISA	name of the table and of the set
 *	TARGET		function attribute
 *	V, VL		vector type and its lanes
 *	V_ZERO V_LOAD(p) V_LOADN(p,n) V_STORE(p,v) V_STOREN(p,n,v) V_SET1(x) V_FMA(a,b,c)
 *	V_KEEP(v)	keeps a loaded vector in its register: a second load per multiply-add
 *			would be the bottleneck
 *	V_SUM4(a,b,c,d)	vreal4 (as V, of four lanes): sums of lanes, same tree for each
 *	SCORE_M VALUE_M VALUE_V	register tiles of cpu_cached.h
 *	V_LOAD16(p,t) V_LOAD16N(p,n,t)	BF16 or F16 values as floats; when not defined, narrow
 *					and widen are NULL, and what cpu_panel.h needs is not there
 *	NT_M NN_M NN_V	register tiles: NT is NT_M x 4 dot products, NN is NN_M rows x NN_V vectors
 * V_LOADN, V_LOAD16N and V_STOREN touch the first n lanes only, 0 < n <= VL; other lanes read as
 * zero.
 */

#include <math.h>
#include <stdbool.h>
#include <string.h>

#define UNROLL _Pragma("GCC unroll 8")
#define UNROLL16 _Pragma("GCC unroll 16")
#define INLINE static inline __attribute__((always_inline))

INLINE TARGET void put4(real *c, vreal4 s, real beta)
{
	if (beta != 0)
		s += *(vreal4 *)c;
	*(vreal4 *)c = s;
}

/* NT: m (<= NT_M) rows against n (<= 4) columns. */
INLINE TARGET void nt_tile(const int m, const int n, int k, const real *a, int64_t lda,
    const real *b, int64_t ldb,
    real *c, int64_t ldc, real beta)
{
	V acc[NT_M][4];
	int p = 0;

	UNROLL for (int i = 0; i < m; i++) {
		__builtin_prefetch(c + i * ldc + 16, 1);
		for (int j = 0; j < 4; j++)
			acc[i][j] = V_ZERO;
	}
	for (; p + VL <= k; p += VL) {
		V bv[4];

		for (int j = 0; j < n; j++) {
			bv[j] = V_LOAD(b + j * ldb + p);
			V_KEEP(bv[j]);
		}
		UNROLL for (int i = 0; i < m; i++) {
			V av = V_LOAD(a + i * lda + p);

			V_KEEP(av);
			for (int j = 0; j < n; j++)
				acc[i][j] = V_FMA(av, bv[j], acc[i][j]);
		}
	}
	if (p < k) {
		V bv[4];

		for (int j = 0; j < n; j++)
			bv[j] = V_LOADN(b + j * ldb + p, k - p);
		UNROLL for (int i = 0; i < m; i++) {
			V av = V_LOADN(a + i * lda + p, k - p);

			for (int j = 0; j < n; j++)
				acc[i][j] = V_FMA(av, bv[j], acc[i][j]);
		}
	}
	UNROLL for (int i = 0; i < m; i++) {
		vreal4 s = V_SUM4(acc[i][0], acc[i][1], acc[i][2], acc[i][3]);

		if (n == 4)
			put4(c + i * ldc, s, beta);
		else
			for (int j = 0; j < n; j++)
				c[i * ldc + j] = beta == 0 ? s[j] : s[j] + c[i * ldc + j];
	}
}

#define NT_CASE(M) case M: nt_tile(M, 4, k, a, lda, b, ldb, c, ldc, beta); break
#define NT_CASE_EDGE(M) case M: nt_tile(M, n, k, a, lda, b, ldb, c, ldc, beta); break

static TARGET void nt_rows(int m, int n, int k, const real *a, int64_t lda, const real *b,
    int64_t ldb,
    real *c, int64_t ldc, real beta)
{
	if (n == 4)
		switch (m) {
		NT_CASE(1); NT_CASE(2); NT_CASE(3);
#if NT_M > 3
		NT_CASE(4); NT_CASE(5); NT_CASE(6);
#endif
		}
	else
		switch (m) {
		NT_CASE_EDGE(1); NT_CASE_EDGE(2); NT_CASE_EDGE(3);
#if NT_M > 3
		NT_CASE_EDGE(4); NT_CASE_EDGE(5); NT_CASE_EDGE(6);
#endif
		}
}

/* One row of A against many rows of B: eight columns in flight hide the latency of the
 * multiply-add. */
INLINE TARGET void nt_single8(int k, const real *a, const real *b, int64_t ldb, real *c, real beta)
{
	V acc[8];
	vreal4 s[2];
	int p = 0;

	for (int j = 0; j < 8; j++)
		acc[j] = V_ZERO;
	for (; p + VL <= k; p += VL) {
		V av = V_LOAD(a + p);

		for (int j = 0; j < 8; j++)
			acc[j] = V_FMA(av, V_LOAD(b + j * ldb + p), acc[j]);
	}
	if (p < k) {
		V av = V_LOADN(a + p, k - p);

		for (int j = 0; j < 8; j++)
			acc[j] = V_FMA(av, V_LOADN(b + j * ldb + p, k - p), acc[j]);
	}
	s[0] = V_SUM4(acc[0], acc[1], acc[2], acc[3]);
	s[1] = V_SUM4(acc[4], acc[5], acc[6], acc[7]);
	for (int j = 0; j < 2; j++)
		put4(c + 4 * j, s[j], beta);
}

static TARGET void nt(int m, int n, int k, const real *a, int64_t lda, const real *b, int64_t ldb,
    real *c, int64_t ldc, real beta)
{
	int j = 0;

	if (m == 1)
		for (; j + 8 <= n; j += 8)
			nt_single8(k, a, b + j * ldb, ldb, c + j, beta);
	/* Rows of A stay in the first cache while columns stream by, and the next are on their
	 * way. */
	for (int i = 0, j0 = j; i < m; i += NT_M)
		for (j = j0; j < n; j += 4) {
			if (i == 0)
				cpu_ask(b + (j + 4) * ldb, ldb, 4, k, 0, 1);
			if (i + NT_M < m)
				cpu_ask(a + (i + NT_M) * lda, lda, NT_M, k, (j - j0) / 4,
				    (n - j0 + 3) / 4);
			nt_rows(m - i < NT_M ? m - i : NT_M, n - j < 4 ? n - j : 4, k, a + i * lda,
			    lda, b + j * ldb,
			    ldb, c + i * ldc + j, ldc, beta);
		}
}

#ifdef V_LOAD16
/* nt_single8 of a B that is widened on its way: a copy in floats would go through the cache. The
 * next eight rows are asked for ahead: narrow rows are too short for the machine to see where
 * they go. */
INLINE TARGET void narrow8(const enum dtype t, int k, const real *a, const uint16_t *b, int64_t ldb,
    real *c, real beta)
{
	V acc[8];
	vreal4 s[2];
	int p = 0;

	for (int j = 0; j < 8; j++)
		acc[j] = V_ZERO;
	for (; p + VL <= k; p += VL) {
		V av = V_LOAD(a + p);

		for (int j = 0; j < 8; j++) {
			__builtin_prefetch(b + (j + 8) * ldb + p);
			acc[j] = V_FMA(av, V_LOAD16(b + j * ldb + p, t), acc[j]);
		}
	}
	if (p < k) {
		V av = V_LOADN(a + p, k - p);

		for (int j = 0; j < 8; j++)
			acc[j] = V_FMA(av, V_LOAD16N(b + j * ldb + p, k - p, t), acc[j]);
	}
	s[0] = V_SUM4(acc[0], acc[1], acc[2], acc[3]);
	s[1] = V_SUM4(acc[4], acc[5], acc[6], acc[7]);
	for (int j = 0; j < 2; j++)
		put4(c + 4 * j, s[j], beta);
}

static TARGET void narrow(int n, int k, const real *a, const void *b, int64_t ldb, enum dtype t,
    real *c, real beta)
{
	const uint16_t *w = b;

	for (int j = 0; j < n; j += 8)
		if (t == DT_BF16)
			narrow8(DT_BF16, k, a, w + j * ldb, ldb, c + j, beta);
		else
			narrow8(DT_F16, k, a, w + j * ldb, ldb, c + j, beta);
}

static TARGET void widen(real *dst, const void *src, enum dtype t, int64_t n)
{
	const uint16_t *w = src;
	int64_t i = 0;

	for (; i + VL <= n; i += VL)
		V_STORE(dst + i, V_LOAD16(w + i, t));
	if (i < n)
		V_STOREN(dst + i, (int)(n - i), V_LOAD16N(w + i, (int)(n - i), t));
}
#define NARROW .narrow = narrow, .widen = widen,
#else
#define NARROW
#endif

/* NN: m (<= NN_M) rows, v (<= NN_V) vectors of columns, the last of which holds `last` lanes (VL
 * = full). */
INLINE TARGET void nn_tile(const int m, const int v, const int full, int last, int k, const real *a,
    int64_t ars,
    int64_t acs, const real *b, int64_t ldb, real *c, int64_t ldc, real beta)
{
	V acc[NN_M][NN_V];

	for (int i = 0; i < m; i++)
		for (int j = 0; j < v; j++)
			__builtin_prefetch(c + (m + i) * ldc + j * VL, 1);
	for (int i = 0; i < m; i++)
		for (int j = 0; j < v; j++)
			acc[i][j] = beta == 0 ? V_ZERO :
			    full || j < v - 1 ? V_LOAD(c + i * ldc + j * VL)
			    : V_LOADN(c + i * ldc + j * VL, last);
	for (int p = 0; p < k; p++) {
		V bv[NN_V];

		for (int j = 0; j < v; j++)
			bv[j] = full || j < v - 1 ? V_LOAD(b + p * ldb + j * VL) :
			    V_LOADN(b + p * ldb + j * VL, last);
		for (int j = 0; j < v; j++)
			V_KEEP(bv[j]);
		for (int i = 0; i < m; i++) {
			V av = V_SET1(a[i * ars + p * acs]);

			for (int j = 0; j < v; j++)
				acc[i][j] = V_FMA(av, bv[j], acc[i][j]);
		}
	}
	for (int i = 0; i < m; i++)
		for (int j = 0; j < v; j++) {
			if (full || j < v - 1)
				V_STORE(c + i * ldc + j * VL, acc[i][j]);
			else
				V_STOREN(c + i * ldc + j * VL, last, acc[i][j]);
		}
}

#define NN_ARGS k, a, ars, acs, b, ldb, c, ldc, beta
#define NN_CASE(M) case M: if (v == NN_V && last == VL) nn_tile(M, NN_V, 1, VL, NN_ARGS); \
	else if (v == NN_V) nn_tile(M, NN_V, 0, last, NN_ARGS); \
	else if (v == 1) nn_tile(M, 1, 0, last, NN_ARGS); \
	else nn_tile(M, 2, 0, last, NN_ARGS); \
	break

static TARGET void nn_rows(int m, int v, int last, int k, const real *a, int64_t ars, int64_t acs,
    const real *b,
    int64_t ldb, real *c, int64_t ldc, real beta)
{
	switch (m) {
	NN_CASE(1); NN_CASE(2); NN_CASE(3); NN_CASE(4);
#if NN_M > 4
	NN_CASE(5); NN_CASE(6); NN_CASE(7); NN_CASE(8);
#endif
	}
}

/* Columns are taken in panels; with enough rows to pay for it a panel of B is first copied to
 * consecutive memory. */
#define NN_KC 256
INLINE TARGET void nn_pack(real *pack, const real *b, int64_t ldb, int kc, const int v, int last)
{
	for (int q = 0; q < kc; q++, b += ldb, pack += v * VL)
		for (int j = 0; j < v; j++)
			V_STORE(pack + j * VL, j < v - 1 ? V_LOAD(b + j * VL) : V_LOADN(b + j * VL,
			    last));
}

static TARGET void nn_panel(int m, int v, int last, int k, const real *a, int64_t ars, int64_t acs,
    const real *b,
    int64_t ldb, real *c, int64_t ldc, real beta)
{
	static _Thread_local real pack[NN_KC * NN_V * VL] __attribute__((aligned(64)));

	for (int p = 0; p < k; p += NN_KC) {
		int kc = k - p < NN_KC ? k - p : NN_KC;
		const real *bp = b + p * ldb, *next = p + kc < k ? bp + kc * ldb : b + v * VL;
		bool packs = m >= 4 * NN_M;

		if (packs && v == NN_V)
			nn_pack(pack, bp, ldb, kc, NN_V, last);
		else if (packs)
			nn_pack(pack, bp, ldb, kc, v, last);
		for (int i = 0; i < m; i += NN_M) {
			if (packs)
				cpu_ask(next, ldb, kc, v * VL, i / NN_M, (m + NN_M - 1) / NN_M);
			nn_rows(m - i < NN_M ? m - i : NN_M, v, last, kc, a + i * ars + p * acs,
			    ars, acs, packs ? pack : bp,
			    packs ? v * VL : ldb, c + i * ldc, ldc, p == 0 ? beta : 1);
		}
	}
}

static TARGET void nn(int m, int n, int k, const real *a, int64_t ars, int64_t acs, const real *b,
    int64_t ldb,
    real *c, int64_t ldc, real beta)
{
	if (k == 0 && beta == 0)
		for (int i = 0; i < m; i++)
			memset(c + i * ldc, 0, (size_t)n * sizeof(real));
	for (int j = 0; j < n; ) {
		int left = n - j, v = (left + VL - 1) / VL;

		if (v > NN_V)
			v = NN_V;
		int width = left < v * VL ? left : v * VL;

		nn_panel(m, v, width - (v - 1) * VL, k, a, ars, acs, b + j, ldb, c + j, ldc, beta);
		j += width;
	}
}

/* exp for x <= 88 with relative error about 1e-7; the compiler vectorises loops over it. */
INLINE TARGET real kexp(real x)
{
#ifdef CHR_DOUBLE
	return exp(x);
#else
	union { float f; int32_t i; } u;
	float t, r, p;

	x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
	t = x * 1.44269504f + 12582912.0f;	/* rounds to an integer in the low mantissa bits */
	u.f = t;
	t -= 12582912.0f;
	r = x - t * 0.693359375f;
	r -= t * -2.12194440e-4f;
	p = 1.9875691500e-4f;			/* minimax polynomial of Cephes expf (Moshier) */
	p = p * r + 1.3981999507e-3f;
	p = p * r + 8.3334519073e-3f;
	p = p * r + 4.1665795894e-2f;
	p = p * r + 1.6666665459e-1f;
	p = p * r + 5.0000001201e-1f;
	p = p * r * r + r + 1.0f;
	u.i = (int32_t)((uint32_t)(u.i - 0x4b400000 + 127) << 23);	/* unsigned: x may be NaN */
	return p * u.f;
#endif
}

/* Sixteen partial maxima: one would be a chain of comparisons. */
static TARGET real kmax(const real *x, int w)
{
	real m[16], most;
	int i = 0;

	for (int j = 0; j < 16; j++)
		m[j] = x[0];
	for (; i + 16 <= w; i += 16)
		for (int j = 0; j < 16; j++)
			m[j] = x[i + j] > m[j] ? x[i + j] : m[j];
	for (; i < w; i++)
		m[0] = x[i] > m[0] ? x[i] : m[0];
	most = m[0];
	for (int j = 1; j < 16; j++)
		most = m[j] > most ? m[j] : most;
	return most;
}

/* Sixteen partial sums, so that the order is the same for every instruction set width. */
static TARGET real exp_sum(real *x, int w, real max)
{
	real s[16] = { 0 }, t = 0;
	int i = 0;

	for (; i + 16 <= w; i += 16)
		for (int j = 0; j < 16; j++) {
			real e = kexp(x[i + j] - max);

			e = x[i + j] < max - 87 ? 0 : e;
			x[i + j] = e;
			s[j] += e;
		}
	for (; i < w; i++) {
		x[i] = x[i] < max - 87 ? 0 : kexp(x[i] - max);
		s[0] += x[i];
	}
	for (int j = 0; j < 16; j++)
		t += s[j];
	return t;
}

static TARGET void softmax(real *x, int64_t n, int w)
{
	for (int64_t i = 0; i < n; i++, x += w) {
		real inv = 1 / exp_sum(x, w, kmax(x, w));

		for (int j = 0; j < w; j++)
			x[j] *= inv;
	}
}

static TARGET real within(real x, real lo, real hi)
{
	return x > hi ? hi : x < lo ? lo : x;
}

static TARGET void clamped(real *y, const real *g, const real *u, int64_t n, real limit, real alpha)
{
	for (int64_t i = 0; i < n; i++) {
		real x = g[i] > limit ? limit : g[i];

		y[i] = x / (1 + kexp(-alpha * x)) * (within(u[i], -limit, limit) + 1);
	}
}

static TARGET void clamped_back(real *dg, real *du, const real *dy, const real *g, const real *u,
    int64_t n, real limit, real alpha)
{
	for (int64_t i = 0; i < n; i++) {
		real x = g[i] > limit ? limit : g[i], y = within(u[i], -limit, limit),
		    s = 1 / (1 + kexp(-alpha * x)), d = dy[i];

		du[i] = y == u[i] ? d * x * s : 0;
		dg[i] = x == g[i] ? d * (y + 1) * (s + alpha * x * s * (1 - s)) : 0;
	}
}

static TARGET void swiglu(real *y, const real *g, const real *u, int64_t n, struct glu glu)
{
	if (glu.limit > 0) {
		clamped(y, g, u, n, (real)glu.limit, (real)glu.alpha);
		return;
	}
	for (int64_t i = 0; i < n; i++)
		y[i] = g[i] / (1 + kexp(-g[i])) * u[i];
}

static TARGET void swiglu_back(real *dg, real *du, const real *dy, const real *g, const real *u,
    int64_t n, struct glu glu)
{
	if (glu.limit > 0) {
		clamped_back(dg, du, dy, g, u, n, (real)glu.limit, (real)glu.alpha);
		return;
	}
	for (int64_t i = 0; i < n; i++) {
		real s = 1 / (1 + kexp(-g[i])), silu = g[i] * s, d = dy[i];

		du[i] = d * silu;
		dg[i] = d * u[i] * (s + silu * (1 - s));
	}
}

static TARGET real kdot(const real *a, const real *b, int n)
{
	V acc = V_ZERO;
	int p = 0;

	for (; p + VL <= n; p += VL)
		acc = V_FMA(V_LOAD(a + p), V_LOAD(b + p), acc);
	if (p < n)
		acc = V_FMA(V_LOADN(a + p, n - p), V_LOADN(b + p, n - p), acc);
	return V_SUM4(acc, acc, acc, acc)[0];
}

static TARGET void rmsnorm(real *y, real *rstd, const real *x, const real *g, int64_t n, int w,
    double eps)
{
	for (int64_t i = 0; i < n; i++, x += w, y += w) {
		real r = 1 / (real)sqrt((double)kdot(x, x, w) / w + eps);

		for (int j = 0; j < w; j++)
			y[j] = x[j] * r * g[j];
		if (rstd)
			rstd[i] = r;
	}
}

static TARGET void rmsnorm_dx(real *dx, const real *dy, const real *x, const real *g,
    const real *rstd, int64_t n,
    int w, int add)
{
	for (int64_t i = 0; i < n; i++, dx += w, dy += w, x += w) {
		real r = rstd[i], s[16] = { 0 }, c = 0;
		int j = 0;

		for (; j + 16 <= w; j += 16)
			for (int q = 0; q < 16; q++)
				s[q] += dy[j + q] * g[j + q] * x[j + q];
		for (; j < w; j++)
			s[0] += dy[j] * g[j] * x[j];
		for (int q = 0; q < 16; q++)
			c += s[q];
		c *= r * r * r / w;
		if (add)
			for (j = 0; j < w; j++)
				dx[j] += dy[j] * g[j] * r - x[j] * c;
		else
			for (j = 0; j < w; j++)
				dx[j] = dy[j] * g[j] * r - x[j] * c;
	}
}

static TARGET void rmsnorm_dg(real *dg, const real *dy, const real *x, const real *rstd, int64_t n,
    int w)
{
	for (int64_t i = 0; i < n; i++, dy += w, x += w)
		for (int j = 0; j < w; j++)
			dg[j] += dy[j] * x[j] * rstd[i];
}

static TARGET void axpy(real *y, const real *x, real a, int64_t n)
{
	for (int64_t i = 0; i < n; i++)
		y[i] += a * x[i];
}

/* c: lr/(1-beta1^t), beta1, beta2, 1/(1-beta2^t), eps, lr*weight_decay, gradient scale */
static TARGET void adamw(real *w, real *m, real *v, const real *g, int64_t n, const real c[8])
{
	for (int64_t i = 0; i < n; i++) {
		real gi = g[i] * c[6], mi, vi;

		mi = c[1] * m[i] + (1 - c[1]) * gi;
		vi = c[2] * v[i] + (1 - c[2]) * gi * gi;
		m[i] = mi;
		v[i] = vi;
#ifdef CHR_DOUBLE
		w[i] -= c[5] * w[i] + c[0] * mi / (sqrt(vi * c[3]) + c[4]);
#else
		w[i] -= c[5] * w[i] + c[0] * mi / (sqrtf(vi * c[3]) + c[4]);
#endif
	}
}

static TARGET double sumsq(const real *x, int64_t n)
{
	double s[16] = { 0 }, t = 0;
	int64_t i = 0;

	for (; i + 16 <= n; i += 16)
		for (int j = 0; j < 16; j++)
			s[j] += (double)x[i + j] * (double)x[i + j];
	for (; i < n; i++)
		s[0] += (double)x[i] * (double)x[i];
	for (int j = 0; j < 16; j++)
		t += s[j];
	return t;
}

#include "backend/cpu/cpu_cached.h"
#ifdef V_LOAD16
#include "backend/cpu/cpu_panel.h"
#define PANEL .panel = panel, .unfold = unfold,
#else
#define PANEL
#endif
#include "backend/cpu/cpu_recur.h"

const struct cpu_kernels KERNELS = {
	.isa = ISA, .nt = nt, NARROW PANEL .nn = nn, .softmax = softmax, .exp_sum = exp_sum,
	    .max = kmax, .swiglu = swiglu,
	.swiglu_back = swiglu_back, .rmsnorm = rmsnorm, .rmsnorm_dx = rmsnorm_dx, .rmsnorm_dg =
	    rmsnorm_dg,
	.dot = kdot, .axpy = axpy, .adamw = adamw, .sumsq = sumsq,
	.scores = scores, .soften = soften, .values = values, .unpack = unpack,
	.conv = conv, .delta = delta,
};
