/*
 * recur: the rows conv, delta and mul against their definitions in double precision; every
 * instruction set gives the same bytes, whatever the cut of rows into calls and whatever other
 * sequences are in one.
 */
#include <stdlib.h>
#include <string.h>

#include "backend/backend.h"
#include "base/isa.h"
#include "base/pool.h"
#include "base/rng.h"
#include "tap.h"

enum { SEQS = 3, T = 23 };	/* sequences, tokens of each */

static const char *const isas[] = { "portable", "avx2", "avx512" };

static float *randoms(int64_t n, uint64_t stream)
{
	float *x = malloc((size_t)n * sizeof *x);

	for (int64_t i = 0; i < n; i++)
		x[i] = (float)rng_normal(5, stream, (uint64_t)i);
	return x;
}

static double worst(const float *a, const double *b, int64_t n)
{
	double w = 0;

	for (int64_t i = 0; i < n; i++)
		w = fmax(w, isfinite(a[i]) ? fabs((double)a[i] - b[i]) : INFINITY);
	return w;
}

/* Calls f for SEQS sequences of T tokens each, cut tokens of each at a time (0: each sequence by
 * itself, whole); their states begin as zeros. */
typedef void call(const void *args, const struct recur_seg *seg, int n, const float *in,
    float *out);

static void in_pieces(call *f, const void *args, int64_t state, int64_t win, int64_t wout,
    const float *x, float *y, int cut)
{
	float *st = calloc((size_t)(SEQS * state), sizeof *st);
	struct recur_seg seg[SEQS];

	for (int s = 0; cut == 0 && s < SEQS; s++) {
		seg[0] = (struct recur_seg){ st + s * state, 0, T };
		f(args, seg, 1, x + s * T * win, y + s * T * wout);
	}
	for (int t = 0; cut > 0 && t < T; t += cut) {
		int n = T - t < cut ? T - t : cut;
		float *a = malloc((size_t)(SEQS * n * win) * sizeof *a),
		    *b = malloc((size_t)(SEQS * n * wout) * sizeof *b);

		for (int s = 0; s < SEQS; s++) {
			seg[s] = (struct recur_seg){ st + s * state, s * n, n };
			memcpy(a + s * n * win, x + (s * T + t) * win, (size_t)(n * win) *
			    sizeof *a);
		}
		f(args, seg, SEQS, a, b);
		for (int s = 0; s < SEQS; s++)
			memcpy(y + (s * T + t) * wout, b + s * n * wout, (size_t)(n * wout) *
			    sizeof *b);
		free(a);
		free(b);
	}
	free(st);
}

static void check(const char *name, call *f, const void *args, int64_t state, int64_t win,
    int64_t wout, const float *x, const double *want)
{
	static const int cuts[] = { 0, T, 1, 2, 16, 17 };
	size_t size = (size_t)(SEQS * T * wout) * sizeof(float);
	float *first = malloc(size), *y = malloc(size);
	bool same = true;
	double w;

	isa_force("portable");
	in_pieces(f, args, state, win, wout, x, first, 0);
	w = worst(first, want, SEQS * T * wout);
	ok(w < 1e-5, "%s: as defined, at most %.1e away", name, w);
	for (int i = 0; i < 3; i++)
		for (size_t c = 0; c < sizeof cuts / sizeof *cuts; c++) {
			if (isa_force(isas[i]) < 0)
				continue;
			memset(y, 0, size);
			in_pieces(f, args, state, win, wout, x, y, cuts[c]);
			same &= memcmp(y, first, size) == 0;
		}
	ok(same, "%s: the same bytes from every instruction set and cut", name);
	free(first);
	free(y);
}

/* ---- conv ---- */

static void conv_call(const void *args, const struct recur_seg *seg, int n, const float *in,
    float *out)
{
	struct conv_args a = *(const struct conv_args *)args;

	a.seg = seg;
	a.n = n;
	a.x = in;
	a.y = out;
	backend_cpu.conv(&backend_cpu, &a);
}

static void test_conv(int C, int L, bool bias, bool silu)
{
	int64_t ldx = C + 3;
	float *x = randoms(SEQS * T * ldx, 1), *w = randoms((int64_t)C * L, 2), *b = randoms(C, 3);
	double *want = calloc((size_t)(SEQS * T * C), sizeof *want);
	struct conv_args a = { .C = C, .L = L, .at = 5, .ldx = ldx, .ldy = C, .w = w,
	    .bias = bias ? b : NULL, .silu = silu };
	char name[64];

	for (int64_t r = 0; r < SEQS * T; r++)
		for (int c = 0; c < C; c++) {
			double s = bias ? (double)b[c] : 0;

			for (int j = 0; j < L && j <= r % T; j++)
				s += (double)w[c * L + L - 1 - j] * (double)x[(r - j) * ldx + c];
			want[r * C + c] = silu ? s / (1 + exp(-s)) : s;
		}
	snprintf(name, sizeof name, "conv of %d channels over %d%s%s", C, L, bias ? ", bias" : "",
	    silu ? ", silu" : "");
	check(name, conv_call, &a, (int64_t)(L - 1) * C + 5, ldx, C, x, want);
	free(x), free(w), free(b), free(want);
}

/* ---- delta ---- */

struct delta_case {
	struct delta_args a;
	int64_t row;			/* q, k, v, a and b of a token */
};

/* A row of the input is q, k, v, a, b; a and b go to arrays of their own. */
static void delta_call(const void *args, const struct recur_seg *seg, int n, const float *in,
    float *out)
{
	const struct delta_case *c = args;
	struct delta_args a = c->a;
	int rows = seg[n - 1].row0 + seg[n - 1].n;
	int64_t qk = (int64_t)a.G * a.dk, v = (int64_t)a.H * a.dv;
	float *aa = malloc((size_t)(rows * a.H) * sizeof *aa),
	    *bb = malloc((size_t)(rows * a.H) * sizeof *bb);

	for (int r = 0; r < rows; r++) {
		memcpy(aa + r * a.H, in + r * c->row + 2 * qk + v, (size_t)a.H * sizeof *aa);
		memcpy(bb + r * a.H, in + r * c->row + 2 * qk + v + a.H, (size_t)a.H * sizeof *bb);
	}
	a.seg = seg;
	a.n = n;
	a.q = in;
	a.k = in + qk;
	a.v = in + 2 * qk;
	a.ldq = a.ldk = a.ldv = c->row;
	a.a = aa;
	a.b = bb;
	a.o = out;
	backend_cpu.delta(&backend_cpu, &a);
	free(aa);
	free(bb);
}

static double length(const float *x, int n)
{
	double s = 1e-6;

	for (int i = 0; i < n; i++)
		s += (double)x[i] * (double)x[i];
	return sqrt(s);
}

/* One token of one head, S (dk, dv), as backend.h says. */
static void plain_token(double *S, const float *q, const float *k, const float *v, int dk, int dv,
    double decay, double beta, double *o)
{
	double nk = length(k, dk), nq = length(q, dk) * sqrt((double)dk);

	for (int i = 0; i < dk * dv; i++)
		S[i] *= decay;
	for (int j = 0; j < dv; j++) {
		double m = 0;

		for (int i = 0; i < dk; i++)
			m += S[i * dv + j] * (double)k[i] / nk;
		for (int i = 0; i < dk; i++)
			S[i * dv + j] += (double)k[i] / nk * beta * ((double)v[j] - m);
		o[j] = 0;
		for (int i = 0; i < dk; i++)
			o[j] += S[i * dv + j] * (double)q[i] / nq;
	}
}

static void plain_delta(const struct delta_case *c, const float *x, double *o)
{
	const struct delta_args *a = &c->a;
	int qk = a->G * a->dk, v = a->H * a->dv;
	double *S = malloc(sizeof *S * (size_t)(a->dk * a->dv));

	for (int r = 0; r < SEQS * a->H; r++) {
		int h = r % a->H, g = h * a->G / a->H;

		memset(S, 0, sizeof *S * (size_t)(a->dk * a->dv));
		for (int t = 0; t < T; t++) {
			int64_t row = r / a->H * T + t;
			const float *p = x + row * c->row;
			double soft = log1p(exp((double)p[2 * qk + v + h] + (double)a->dt[h]));
			double decay = exp(-exp((double)a->a_log[h]) * soft);
			double beta = 1 / (1 + exp(-(double)p[2 * qk + v + a->H + h]));

			plain_token(S, p + g * a->dk, p + qk + g * a->dk, p + 2 * qk + h * a->dv,
			    a->dk, a->dv, decay, beta, o + row * v + h * a->dv);
		}
	}
	free(S);
}

static void test_delta(int H, int G, int dk, int dv)
{
	struct delta_case c = { { .at = 7, .H = H, .G = G, .dk = dk, .dv = dv },
	    (int64_t)2 * G * dk + (int64_t)H * dv + 2 * H };
	float *x = randoms(SEQS * T * c.row, 4), *log_a = randoms(H, 5), *dt = randoms(H, 6);
	double *want = malloc(sizeof *want * (size_t)(SEQS * T * H * dv));
	char name[64];

	c.a.a_log = log_a;
	c.a.dt = dt;
	plain_delta(&c, x, want);
	snprintf(name, sizeof name, "delta of %d heads of %d x %d, %d of keys", H, dk, dv, G);
	check(name, delta_call, &c, (int64_t)H * dk * dv + 7, c.row, (int64_t)H * dv, x, want);
	free(x), free(log_a), free(dt), free(want);
}

/* Ends of the scale: nothing is forgotten, all is, and a key of zeros. */
static void test_delta_ends(void)
{
	float q[2][2] = { { 1, 0 }, { 1, 0 } }, k[2][2] = { { 1, 0 }, { 0, 0 } },
	    v[2][2] = { { 3, 4 }, { 5, 6 } }, b[2] = { 50, 50 }, a[2] = { 0, 0 }, o[2][2],
	    log_a = 0, dt = -200, state[4];
	struct recur_seg seg = { state, 0, 2 };
	struct delta_args d = { .seg = &seg, .n = 1, .H = 1, .G = 1, .dk = 2, .dv = 2, .q = q[0],
	    .k = k[0], .v = v[0], .ldq = 2, .ldk = 2, .ldv = 2, .a = a, .b = b, .a_log = &log_a,
	    .dt = &dt, .o = o[0] };

	memset(state, 0, sizeof state);
	backend_cpu.delta(&backend_cpu, &d);
	is_close((double)o[1][1], 4 / sqrt(2), 1e-5, "delta: nothing is forgotten");
	dt = 200;
	memset(state, 0, sizeof state);
	backend_cpu.delta(&backend_cpu, &d);
	is_close((double)o[1][1], 0, 1e-6, "delta: all is forgotten");
}

static void test_mul(void)
{
	enum { N = 9, W = 13 };
	float *a = randoms(N * 20, 7), *b = randoms(N * 15, 8), y[N * 14];
	bool good = true;

	memset(y, 0, sizeof y);
	backend_cpu.mul(&backend_cpu, y, 14, a, 20, b, 15, N, W);
	for (int i = 0; i < N; i++)
		for (int j = 0; j < 14; j++)
			good &= y[i * 14 + j] == (j < W ? a[i * 20 + j] * b[i * 15 + j] : 0);
	backend_cpu.mul(&backend_cpu, a, 20, a, 20, b, 15, N, W);
	for (int i = 0; i < N; i++)
		good &= memcmp(a + i * 20, y + i * 14, W * sizeof *a) == 0;
	ok(good, "mul: pieces of rows, in place too");
	free(a);
	free(b);
}

int main(void)
{
	pool_init(2);
	test_conv(64, 4, false, true);
	test_conv(130, 3, false, false);
	test_conv(7, 2, true, true);
	test_conv(65, 30, true, false);
	test_delta(4, 2, 16, 16);
	test_delta(2, 2, 128, 128);
	test_delta(6, 2, 33, 77);
	test_delta(1, 1, 1, 3);
	test_delta(3, 1, 2500, 20);
	test_delta_ends();
	test_mul();
	pool_quit();
	return tap_done();
}
