/*
 * quant: matrices in blocks. What comes back from packing is within a step; the search is never
 * worse than plain rounding, no worse than a slow one in double precision, and the same with
 * every instruction set; every set of kernels gives the bytes of the portable one, whatever rows
 * are computed together, and all are close to the product in floats.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend/backend.h"
#include "base/isa.h"
#include "backend/cpu/cpu_quant.h"
#include "base/pool.h"
#include "backend/published.h"
#include "base/rng.h"
#include "tap.h"

static const enum dtype types[] = { DT_Q8, DT_Q4, DT_Q4A };
static const int shapes[][2] = { { 1, 1 }, { 16, 32 }, { 17, 33 }, { 40, 100 }, { 96, 256 },
    { 5, 31 } };

static float *randoms(int64_t n, uint64_t stream, bool heavy)
{
	float *p = malloc((size_t)n * sizeof(*p));

	for (int64_t i = 0; i < n; i++) {
		float x = (float)rng_normal(5, stream, (uint64_t)i);

		p[i] = heavy ? x * x * x : x;
	}
	return p;
}

static void *blocks_of(const float *w, enum dtype t, int rows, int cols)
{
	void *q = aligned_alloc(64, mat_bytes(t, rows, cols));

	if (quant_pack(q, t, w, rows, cols) < 0)
		abort();
	return q;
}

/* Largest error in steps: of the block's range in 254 or 14 or 15. */
static void test_round_trip(enum dtype t)
{
	double worst = 0;

	for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++) {
		int rows = shapes[s][0], cols = shapes[s][1];
		float *w = randoms((int64_t)rows * cols, s, false),
		    *back = malloc(sizeof(*back) * (size_t)rows * cols);
		void *q = blocks_of(w, t, rows, cols);

		quant_unpack(back, q, t, rows, cols);
		for (int r = 0; r < rows; r++)
			for (int c0 = 0; c0 < cols; c0 += QUANT_BLOCK) {
				float max = 0;

				for (int c = c0; c < cols && c < c0 + QUANT_BLOCK; c++)
					max = fmaxf(max, fabsf(w[r * cols + c]));
				for (int c = c0; c < cols && c < c0 + QUANT_BLOCK; c++) {
					double d = fabs((double)w[r * cols + c] -
					    (double)back[r * cols + c]) / max * (t == DT_Q8 ? 127
					    : 7.5);

					worst = d > worst ? d : worst;
				}
			}
		free(w), free(back), free(q);
	}
	ok(worst < (t == DT_Q8 ? 1 : 1.6), "%s: back from blocks", dtype_name(t));
	printf("# worst %.2f steps\n", worst);
}

/* Against the scale that just fits the largest value. */
static double plain_error(const float *x, enum dtype t)
{
	float min = x[0], max = x[0], d;
	double sum = 0;

	for (int i = 0; i < QUANT_BLOCK; i++) {
		min = fminf(min, x[i]);
		max = fmaxf(max, x[i]);
	}
	d = t == DT_Q4 ? fmaxf(max, -min) / 7 : (max - min) / 15;
	for (int i = 0; i < QUANT_BLOCK; i++) {
		double y = t == DT_Q4 ? d * rintf(x[i] / d) : min + d * rintf((x[i] - min) / d);

		sum += (x[i] - y) * (x[i] - y);
	}
	return sum;
}

static void test_search(enum dtype t, bool heavy)
{
	int n = 512;
	float *w = randoms((int64_t)n * QUANT_BLOCK, 9, heavy),
	    *back = malloc(sizeof(*back) * (size_t)n * QUANT_BLOCK);
	void *q = blocks_of(w, t, n, QUANT_BLOCK);
	double plain = 0, ours = 0;
	int worse = 0;

	quant_unpack(back, q, t, n, QUANT_BLOCK);
	for (int b = 0; b < n; b++) {
		const float *x = w + b * QUANT_BLOCK;
		double e = 0, p = plain_error(x, t);

		for (int i = 0; i < QUANT_BLOCK; i++)
			e += ((double)x[i] - back[b * QUANT_BLOCK + i]) *
			    ((double)x[i] - back[b * QUANT_BLOCK + i]);
		worse += e > p * 1.01;		/* a scale that is a half is not exactly the one
						   in floats */
		plain += p;
		ours += e;
	}
	ok(worse == 0 && sqrt(ours / plain) < 0.97,
	    "%s, %s values: the search beats plain rounding", dtype_name(t),
	    heavy ? "heavy-tailed" : "normal");
	printf("# error %.3f of plain rounding, worse in %d of %d blocks\n", sqrt(ours / plain),
	    worse, n);
	free(w), free(back), free(q);
}

static float to_half(float x)
{
	uint16_t h;
	float y;

	tensor_from_f32(&h, DT_F16, &x, 1);
	tensor_to_f32(&y, &h, DT_F16, 1);
	return y;
}

struct slow {
	float d, m;
	int q[QUANT_BLOCK];
	double error;
};

static void slow_round(struct slow *f, const float *x, int lo, int hi)
{
	f->error = 0;
	for (int i = 0; i < QUANT_BLOCK; i++) {
		float q = f->d == 0 ? 0 : rintf((x[i] - f->m) / f->d);
		double left;

		f->q[i] = q < (float)lo ? lo : q > (float)hi ? hi : (int)q;
		left = (double)x[i] - ((double)f->d * f->q[i] + f->m);
		f->error += left * left;
	}
}

static void slow_scale(struct slow *f, const float *x, bool affine)
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
	f->d = to_half((float)(affine ? (n * sqx - sq * sx) / det : sqx / det));
	f->m = affine ? to_half((float)((sx - f->d * sq) / n)) : 0;
}

static double slow_try(const float *x, float d, float m, int lo, int hi)
{
	struct slow f = { .d = to_half(d), .m = to_half(m) };
	double best = INFINITY;

	for (int i = 0; i < 3; i++) {
		slow_round(&f, x, lo, hi);
		best = fmin(best, f.error);
		slow_scale(&f, x, lo == 0);
	}
	return best;
}

/* The error of a block after the search one value at a time. */
static double slow_error(const float *x, enum dtype t)
{
	float min = x[0], max = x[0], far;
	double best = INFINITY;

	for (int i = 1; i < QUANT_BLOCK; i++) {
		min = fminf(min, x[i]);
		max = fmaxf(max, x[i]);
	}
	far = -min > max ? min : max;
	if (t == DT_Q8)
		return slow_try(x, fabsf(far) / 127, 0, -127, 127);
	for (int i = -16; t == DT_Q4 && i <= 16; i++)
		best = fmin(best, slow_try(x, far / (-8 + 0.1f * (float)i), 0, -8, 7));
	for (int i = 0; t == DT_Q4A && i <= 16; i++)
		for (int side = 0; side < 3; side++) {
			float cut = (max - min) * 0.02f * (float)i;

			best = fmin(best, slow_try(x, (max - min - cut) / 15,
			    min + cut * 0.5f * (float)side, 0, 15));
		}
	return best;
}

/* Values of many sizes, some far from zero, some blocks that are flat or nothing. */
static float *hard_values(int n)
{
	float *w = randoms((int64_t)n * QUANT_BLOCK, 21, true);

	for (int b = 0; b < n; b++)
		for (int i = 0; i < QUANT_BLOCK; i++) {
			float *x = w + b * QUANT_BLOCK + i;

			*x = *x * ldexpf(1, b % 24 - 16) + (float)(b % 3 == 1 ? b % 7 : 0);
			if (b % 29 == 5)
				*x = b % 2 ? 0 : 0.37f;
		}
	return w;
}

static void test_slow(enum dtype t)
{
	static const char *const isa[] = { "portable", "avx2", "avx512" };
	int n = 480;
	float *w = hard_values(n), *back = malloc(sizeof(*back) * (size_t)n * QUANT_BLOCK);
	void *q[3] = { NULL };
	double slow = 0, ours = 0;

	for (int k = 0; k < 3; k++) {
		if (isa_force(isa[k]) < 0)
			continue;
		q[k] = blocks_of(w, t, n, QUANT_BLOCK);
		ok(memcmp(q[0], q[k], mat_bytes(t, n, QUANT_BLOCK)) == 0,
		    "%s: the same search with %s", dtype_name(t), isa[k]);
	}
	quant_unpack(back, q[0], t, n, QUANT_BLOCK);
	for (int b = 0; b < n; b++) {
		const float *x = w + b * QUANT_BLOCK;
		double e = 0, square = 1e-30;

		for (int i = 0; i < QUANT_BLOCK; i++) {
			e += ((double)x[i] - back[b * QUANT_BLOCK + i]) *
			    ((double)x[i] - back[b * QUANT_BLOCK + i]);
			square += (double)x[i] * x[i];
		}
		ours += e / square;
		slow += slow_error(x, t) / square;
	}
	ok(ours <= slow, "%s: no worse than the slow search", dtype_name(t));
	printf("# squared error %.5f of the slow search's\n", ours / slow);
	free(w), free(back), free(q[0]), free(q[1]), free(q[2]);
}

static void test_bad(enum dtype t)
{
	float w[QUANT_BLOCK] = { 1 }, big[QUANT_BLOCK] = { 1e30f };
	char q[4096];

	w[3] = NAN;
	ok(quant_pack(q, t, w, 1, QUANT_BLOCK) < 0, "%s: NaN is refused", dtype_name(t));
	w[3] = INFINITY;
	ok(quant_pack(q, t, w, 1, QUANT_BLOCK) < 0, "%s: infinity is refused", dtype_name(t));
	ok(quant_pack(q, t, big, 1, QUANT_BLOCK) < 0,
	    "%s: a scale beyond half precision is refused", dtype_name(t));
}

/* An outlier either comes back, or is refused: 65504 is the largest half. */
static void test_outlier(enum dtype t)
{
	double steps = t == DT_Q8 ? 127 : t == DT_Q4 ? 8 : 15, top = 65504 * steps;
	char q[4096];

	for (int sign = 1; sign >= (t == DT_Q4A ? 1 : -1); sign -= 2)
		for (int i = 0; i < 5; i++) {
			static const double of[] = { 0.1, 0.999, 1.001, 1.19, 3 };
			float w[QUANT_BLOCK] = { 1, -1 }, back[QUANT_BLOCK];
			int rc;

			w[7] = (float)(sign * of[i] * top);
			rc = quant_pack(q, t, w, 1, QUANT_BLOCK);
			if (of[i] > 1) {
				ok(rc < 0, "%s: %g is refused", dtype_name(t), (double)w[7]);
				continue;
			}
			quant_unpack(back, q, t, 1, QUANT_BLOCK);
			ok(rc == 0 && fabsf(back[7] / w[7] - 1) < 0.001f, "%s: %g comes back as %g",
			    dtype_name(t), (double)w[7], (double)back[7]);
		}
}

/* m rows through a product, `at` rows at a time */
static float *product(const char *isa, enum dtype t, const void *q, const float *x, int m, int rows,
    int cols, int at)
{
	char *a = aligned_alloc(64, quant_row_bytes(cols) * (size_t)m);
	float *c = calloc((size_t)m * rows, sizeof(*c));

	isa_force(isa);
	backend_cpu.quantize(&backend_cpu, a, x, m, cols);
	for (int i = 0; i < m; i += at) {
		struct qgemm_job j = { c + (int64_t)i * rows, rows, a + quant_row_bytes(cols) *
		    (size_t)i, { q, t, rows, cols },
			m - i < at ? m - i : at, 0 };

		backend_cpu.qgemm(&backend_cpu, &j, 1);
	}
	free(a);
	return c;
}

static void test_product(const char *isa, enum dtype t)
{
	bool same = true, split = true;
	double worst = 0;

	for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++) {
		int rows = shapes[s][0], cols = shapes[s][1], m = 19;
		float *w = randoms((int64_t)rows * cols, s, false), *x = randoms((int64_t)m * cols,
		    50 + s, false);
		float *back = malloc(sizeof(*back) * (size_t)rows * cols), *c, *d, *e;
		void *q = blocks_of(w, t, rows, cols);

		quant_unpack(back, q, t, rows, cols);
		c = product(isa, t, q, x, m, rows, cols, m);
		d = product("portable", t, q, x, m, rows, cols, m);
		e = product(isa, t, q, x, m, rows, cols, 1);
		same = same && memcmp(c, d, sizeof(*c) * (size_t)m * rows) == 0;
		split = split && memcmp(c, e, sizeof(*c) * (size_t)m * rows) == 0;
		for (int i = 0; i < m; i++)
			for (int r = 0; r < rows; r++) {
				double sum = 0, norm = 0;

				for (int k = 0; k < cols; k++) {
					sum += (double)x[i * cols + k] * back[r * cols + k];
					norm += fabs((double)x[i * cols + k] * back[r * cols + k]);
				}
				worst = fmax(worst, fabs(c[i * rows + r] - sum) / (norm + 1e-6));
			}
		free(w), free(x), free(back), free(c), free(d), free(e), free(q);
	}
	ok(same, "%s, %s: the bytes of the portable product", isa, dtype_name(t));
	ok(split, "%s, %s: rows together or alone, the same bytes", isa, dtype_name(t));
	ok(worst < 0.02, "%s, %s: close to floats", isa, dtype_name(t));
	printf("# worst %.2g of the sum of magnitudes\n", worst);
}

/* The hidden row of a fused FFN is that of two products, with biases or not, SwiGLU, and
 * quantising. */
static void test_ffn(const char *isa, enum dtype t, bool biased)
{
	int D = 70, F = 50, m = 11;
	float *wg = randoms((int64_t)F * D, 1, false), *wu = randoms((int64_t)F * D, 2, false),
	    *x = randoms((int64_t)m * D, 3, false);
	void *gate = blocks_of(wg, t, F, D), *up = blocks_of(wu, t, F, D);
	float *g = product(isa, t, gate, x, m, F, D, m), *u = product(isa, t, up, x, m, F, D, m);
	size_t bytes = quant_row_bytes(F) * (size_t)m;
	char *a = aligned_alloc(64, quant_row_bytes(D) * (size_t)m), *h = aligned_alloc(64, bytes),
	    *want = aligned_alloc(64, bytes);
	float *bias = biased ? randoms(2 * F, 4, false) : NULL;
	struct glu glu = { biased ? 0.9 : 0, 1.702 };
	struct qffn_job j = { a, h, { gate, t, F, D }, { up, t, F, D }, m, bias, biased ? bias + F
	    : NULL, glu };

	memset(h, 0, bytes);
	memset(want, 0, bytes);
	isa_force(isa);
	backend_cpu.quantize(&backend_cpu, a, x, m, D);
	backend_cpu.qffn(&backend_cpu, &j, 1);
	for (int i = 0; biased && i < m * F; i++) {
		g[i] += bias[i % F];
		u[i] += bias[F + i % F];
	}
	backend_cpu.swiglu(&backend_cpu, g, g, u, (int64_t)m * F, glu);
	backend_cpu.quantize(&backend_cpu, want, g, m, F);
	ok(memcmp(h, want, bytes) == 0, "%s, %s: fused gate, up%s and SwiGLU", isa, dtype_name(t),
	    biased ? ", biases" : "");
	free(wg), free(wu), free(x), free(gate), free(up), free(g), free(u), free(a), free(h),
	    free(want), free(bias);
}

/* Every E4M3 and every E2M1 with every scale, by their definitions. */
static void test_numbers(void)
{
	bool f8 = true, f4 = true;

	for (int u = 0; u < 256; u++) {
		int e = u >> 3 & 15;
		double x = e ? ldexp(1 + (u & 7) / 8.0, e - 7) : ldexp((u & 7) / 8.0, -6);

		x = u & 128 ? -x : x;
		f8 = f8 && ((u & 127) == 127 ? isnan(published_e4m3((uint8_t)u))
		    : (double)published_e4m3((uint8_t)u) == x);
	}
	for (int s = 0; s < 255; s++)
		f4 = f4 && (double)published_e8m0((uint8_t)s) == ldexp(1, s - 127);
	for (int u = 0; u < 16; u++) {
		int e = u >> 1 & 3;
		double x = e ? ldexp(1 + (u & 1) / 2.0, e - 1) : (u & 1) / 2.0;

		f4 = f4 && (double)published_e2m1((uint8_t)u) == (u & 8 ? -x : x);
	}
	ok(f8, "E4M3: all 256 numbers");
	ok(f4 && isinf(published_e8m0(255)), "E2M1 and E8M0: all numbers");
}

static uint8_t *bits(size_t n, uint64_t stream)
{
	uint8_t *p = malloc(n);

	for (size_t i = 0; i < n; i++) {
		p[i] = (uint8_t)rng_hash(stream, i);
		if ((p[i] & 127) == 127)	/* no number in E4M3, or a scale that large */
			p[i] = 64;
	}
	return p;
}

/* FP8 with rectangles of `high` rows and `wide` columns, to panels and back; and its values. */
static void test_f8(int rows, int cols, int high, int wide)
{
	int across = (cols + wide - 1) / wide, down = (rows + high - 1) / high;
	size_t n = (size_t)rows * (size_t)cols, bytes = quant_panel_bytes(DT_F8, cols);
	uint8_t *v = bits(n, 3), *back = calloc(n, 1);
	float *s = randoms((int64_t)down * across, 4, false), *s2 = calloc((size_t)(down * across),
	    sizeof *s2), *x = malloc(n * sizeof *x);
	char *w = aligned_alloc(64, mat_bytes(DT_F8, rows, cols));
	bool same = true;

	for (int r = 0; r < rows; r += QUANT_PANEL) {
		char *panel = w + (size_t)(r / QUANT_PANEL) * bytes;
		int m = rows - r < QUANT_PANEL ? rows - r : QUANT_PANEL;

		published_f8_put(panel, v + (int64_t)r * cols, s + r / high * across, wide, m,
		    cols);
		published_f8_get(back + (int64_t)r * cols, s2 + r / high * across, panel, wide, m,
		    cols);
	}
	quant_unpack(x, w, DT_F8, rows, cols);
	for (int r = 0; r < rows; r++)
		for (int c = 0; c < cols; c++)
			same = same && x[r * cols + c] == published_e4m3(v[r * cols + c]) *
			    s[r / high * across + c / wide];
	ok(same && memcmp(v, back, n) == 0 &&
	    memcmp(s, s2, (size_t)(down * across) * sizeof *s) == 0,
	    "F8: %d x %d, a scale for %d x %d: the same bits back", rows, cols, high, wide);
	free(v), free(back), free(s), free(s2), free(x), free(w);
}

static void test_mxfp4(int rows, int cols)
{
	size_t nb = (size_t)quant_blocks(cols), n = (size_t)rows * nb,
	    bytes = quant_panel_bytes(DT_MXFP4, cols);
	uint8_t *v = bits(n * 16, 5), *s = bits(n, 6), *v2 = calloc(n, 16), *s2 = calloc(n, 1);
	float *x = malloc((size_t)rows * (size_t)cols * sizeof *x);
	char *w = aligned_alloc(64, mat_bytes(DT_MXFP4, rows, cols));
	bool same = true;

	for (size_t i = 0; i < n; i++)
		s[i] = s[i] > 250 ? 250 : s[i];
	for (int r = 0; r < rows; r += QUANT_PANEL) {
		char *panel = w + (size_t)(r / QUANT_PANEL) * bytes;
		int m = rows - r < QUANT_PANEL ? rows - r : QUANT_PANEL;
		size_t at = (size_t)r * nb;

		published_mxfp4_put(panel, v + at * 16, s + at, m, cols);
		published_mxfp4_get(v2 + at * 16, s2 + at, panel, m, cols);
	}
	quant_unpack(x, w, DT_MXFP4, rows, cols);
	for (int r = 0; r < rows; r++)
		for (int c = 0; c < cols; c++) {
			size_t b = (size_t)r * nb + (size_t)(c / 32);
			uint8_t u = v[b * 16 + (size_t)(c % 32 / 2)] >> c % 2 * 4 & 15;

			same = same && (double)x[r * cols + c] == ldexp((double)published_e2m1(u),
			    s[b] - 127);
		}
	ok(same && (cols % 32 || memcmp(v, v2, n * 16) == 0) && memcmp(s, s2, n) == 0,
	    "MXFP4: %d x %d: the same bits back", rows, cols);
	free(v), free(s), free(v2), free(s2), free(x), free(w);
}

/* Bits that are no numbers, in the last of a panel's values and scales. */
static void test_finite(void)
{
	static const uint8_t v8[QUANT_PANEL * 40] = { 0x7e }, v4[QUANT_PANEL * 32] = { 1 },
	    s4[QUANT_PANEL * 2] = { 252 };
	_Alignas(64) char f8[64 + 2 * 512], f4[64 + 2 * 256];
	float d[2] = { 1, 7e35f };
	bool good;

	published_f8_put(f8, v8, d, QUANT_BLOCK, QUANT_PANEL, 40);
	published_mxfp4_put(f4, v4, s4, QUANT_PANEL, 64);
	good = published_finite(f8, DT_F8, 40) && published_finite(f4, DT_MXFP4, 64);
	f8[sizeof f8 - 1] = (char)0xff;
	f4[2 * QUANT_PANEL - 1] = (char)253;
	ok(good && !published_finite(f8, DT_F8, 40) && !published_finite(f4, DT_MXFP4, 64),
	    "a NaN, and a scale that is too large, are found");
	d[1] = 8e35f;
	published_f8_put(f8, v8, d, QUANT_BLOCK, QUANT_PANEL, 40);
	ok(!published_finite(f8, DT_F8, 40), "F8: so is one in floats");
}

static void test_published(void)
{
	test_finite();
	test_numbers();
	test_f8(200, 300, 128, 128);
	test_f8(128, 128, 128, 128);
	test_f8(1, 1, 128, 128);
	test_f8(50, 70, 16, 32);
	test_f8(97, 161, 48, 96);
	test_mxfp4(1, 32);
	test_mxfp4(40, 96);
	test_mxfp4(17, 70);
	ok(mat_bytes(DT_F8, 17, 33) == 2 * (64 + 1024) && mat_bytes(DT_MXFP4, 16, 160) == 128 +
	    5 * 256 && published_f8_fits(128, 128) && !published_f8_fits(8, 128) &&
	    !published_f8_fits(128, 40), "F8 and MXFP4: sizes");
}

int main(void)
{
	static const char *const isa[] = { "portable", "avx2", "avx512" };

	pool_init(2);
	for (size_t i = 0; i < 3; i++) {
		test_round_trip(types[i]);
		test_bad(types[i]);
		test_outlier(types[i]);
		test_slow(types[i]);
		if (types[i] != DT_Q8)
			for (int heavy = 0; heavy < 2; heavy++)
				test_search(types[i], heavy);
	}
	for (size_t k = 0; k < 3; k++) {
		if (isa_force(isa[k]) < 0) {
			ok(1, "%s # SKIP this machine has none", isa[k]);
			continue;
		}
		for (size_t i = 0; i < 3; i++) {
			test_product(isa[k], types[i]);
			test_ffn(isa[k], types[i], false);
			test_ffn(isa[k], types[i], true);
		}
	}
	ok(mat_bytes(DT_Q8, 0, 5) == 0 && mat_bytes(DT_Q4, 16, 32) == 64 + 256 &&
	    mat_bytes(DT_Q8, 17, 33) == 2 * (64 + 1024),
	    "sizes");
	test_published();
	return tap_done();
}
