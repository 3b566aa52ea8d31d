/* Rows quantize, qgemm and qffn of the cpu backend, and their portable inner loops. */
#include "backend/cpu/cpu_quant.h"
#include "base/isa.h"

#ifdef __x86_64__
#include <cpuid.h>
#endif
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cpu/cpu.h"
#include "backend/cpu/cpu_kernels.h"
#include "base/pool.h"

#ifdef CHR_DOUBLE		/* double precision has no narrow weights */

void cpu_quantize(CPU, dev_byte *rows, const real *x, int64_t n, int w)
{
	(void)rows, (void)x, (void)n, (void)w; abort();
}
void cpu_qgemm(CPU, const struct qgemm_job *jobs, int n) { (void)jobs, (void)n; abort(); }
void cpu_qffn(CPU, const struct qffn_job *jobs, int n) { (void)jobs, (void)n; abort(); }
void cpu_gather_blocks(CPU, real *dst, const struct mat *w, const int32_t *rows, int64_t n)
{
	(void)dst, (void)w, (void)rows, (void)n;
	abort();
}

#else

/* ---- portable ---- */

static void block_values(int8_t q[QUANT_BLOCK], const uint8_t *v, enum dtype t)	/* of one row */
{
	for (int k = 0; k < QUANT_BLOCK; k++)
		if (t == DT_Q8)
			q[k] = (int8_t)(v[k / 4 * 64 + k % 4] - 128);
		else
			q[k] = (int8_t)((v[k % 16 / 4 * 64 + k % 4] >> (k < 16 ? 0 : 4) & 15) -
			    (t == DT_Q4 ? 8 : 0));
}

static void mul(float *out, const void *panel, enum dtype t, int cols, const void *rows, int m)
{
	int nb = quant_blocks(cols), per = t == DT_Q4A ? 2 : 1;
	const uint16_t *scale = panel;
	const uint8_t *v = (const uint8_t *)panel + quant_scale_bytes(t, cols);

	memset(out, 0, sizeof(*out) * (size_t)m * QUANT_PANEL);
	for (int b = 0; b < nb; b++, scale += per * QUANT_PANEL, v += t == DT_Q8 ? 512 : 256) {
		float d[2 * QUANT_PANEL];

		tensor_to_f32(d, scale, DT_F16, (size_t)per * QUANT_PANEL);
		for (int r = 0; r < QUANT_PANEL; r++) {
			int8_t q[QUANT_BLOCK];

			block_values(q, v + r * 4, t);
			for (int i = 0; i < m; i++) {
				struct quant_row a = quant_row_at(rows, i, cols);
				int32_t sum = 0;
				float x;

				for (int k = 0; k < QUANT_BLOCK; k++)
					sum += q[k] * a.q[b * QUANT_BLOCK + k];
				x = (float)sum * (d[r] * a.d[b]);
				if (t == DT_Q4A)
					x += (float)(a.off[b] / -128) *
					    (d[QUANT_PANEL + r] * a.d[b]);
				out[i * QUANT_PANEL + r] += x;
			}
		}
	}
}

static void row(struct quant_row to, const float *x, int cols)
{
	for (int b = 0; b < quant_blocks(cols); b++, x += QUANT_BLOCK, to.q += QUANT_BLOCK) {
		int n = cols - b * QUANT_BLOCK < QUANT_BLOCK ? cols - b * QUANT_BLOCK : QUANT_BLOCK;
		float max = 0, inv;

		for (int k = 0; k < n; k++)
			max = fabsf(x[k]) > max ? fabsf(x[k]) : max;
		inv = max > 0 ? 127 / max : 0;
		to.d[b] = max / 127;
		to.off[b] = 0;
		memset(to.q, 0, QUANT_BLOCK);
		for (int k = 0; k < n; k++) {
			to.q[k] = (int8_t)lrintf(x[k] * inv);
			to.off[b] -= 128 * to.q[k];
		}
	}
}

const struct quant_kernels quant_kernels_portable = { "portable", mul, row };

#ifdef __x86_64__
/* (clang 14 does not know this one's name in __builtin_cpu_supports.) */
static bool has_f16c(void)
{
	unsigned a, b, c, d;

	return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

const struct quant_kernels *quant_kernels(void)
{
#ifdef __x86_64__
	const char *isa = isa_name();

	__builtin_cpu_init();
	if (strcmp(isa, "avx512") == 0 && __builtin_cpu_supports("avx512vnni"))
		return &quant_kernels_vnni;
	if (strcmp(isa, "portable") != 0 && has_f16c())
		return &quant_kernels_avx2;
#endif
	return &quant_kernels_portable;
}

/* ---- threads ---- */

struct ctx {
	const struct quant_kernels *k;
	const void *jobs;
	int n, threads;
	void *rows;		/* quantize */
	const float *x;
	int w;
};

static void quantize_range(void *ctx, int64_t i0, int64_t i1, int worker)
{
	const struct ctx *c = ctx;

	(void)worker;
	for (int64_t i = i0; i < i1; i++)
		c->k->row(quant_row_at(c->rows, i, c->w), c->x + i * c->w, c->w);
}

void cpu_quantize(CPU, dev_byte *rows, const real *x, int64_t n, int w)
{
	struct ctx c = { .k = quant_kernels(), .rows = rows, .x = x, .w = w };

	pool_for(n, 16384 / w + 1, quantize_range, &c);
}

/* Which job task t belongs to; *t becomes the number within it. */
static int find_job(const struct ctx *c, int64_t *t, int64_t (*tasks)(const void *jobs, int i))
{
	int i = 0;
	int64_t n;

	for (; *t >= (n = tasks(c->jobs, i)); i++)
		*t -= n;
	return i;
}

static int64_t total_tasks(const struct ctx *c, int64_t (*tasks)(const void *jobs, int i))
{
	int64_t sum = 0;

	for (int i = 0; i < c->n; i++)
		sum += tasks(c->jobs, i);
	return sum;
}

#define GROUP 4			/* panels in one task of a product */

static int64_t gemm_tasks(const void *jobs, int i)
{
	const struct qgemm_job *j = (const struct qgemm_job *)jobs + i;

	return j->m > 0 ? (quant_panels(j->w.rows) + GROUP - 1) / GROUP : 0;
}

static void store(const struct qgemm_job *j, int64_t i, int c0, const float *out)
{
	int n = j->w.rows - c0 < QUANT_PANEL ? j->w.rows - c0 : QUANT_PANEL;
	real *c = j->c + i * j->ldc + c0;

	if (j->beta == 0)
		memcpy(c, out, (size_t)n * sizeof(*c));
	else
		for (int k = 0; k < n; k++)
			c[k] += out[k];
}

static void gemm_range(void *ctx, int64_t t0, int64_t t1, int worker)
{
	const struct ctx *c = ctx;
	float out[QUANT_ROWS * QUANT_PANEL];

	(void)worker;
	for (; t0 < t1; t0++) {
		int64_t t = t0;
		const struct qgemm_job *j = (const struct qgemm_job *)c->jobs + find_job(c, &t,
		    gemm_tasks);
		size_t bytes = quant_panel_bytes(j->w.dt, j->w.cols),
		    row = quant_row_bytes(j->w.cols);
		int last = quant_panels(j->w.rows);

		for (int p = (int)t * GROUP; p < last && p < ((int)t + 1) * GROUP; p++)
			for (int64_t i = 0; i < j->m; i += QUANT_ROWS) {
				int m = j->m - i < QUANT_ROWS ? (int)(j->m - i) : QUANT_ROWS;

				c->k->mul(out, (const char *)j->w.p + (size_t)p * bytes, j->w.dt,
				    j->w.cols,
				    (const char *)j->a + (size_t)i * row, m);
				for (int r = 0; r < m; r++)
					store(j, i + r, p * QUANT_PANEL, out + r * QUANT_PANEL);
			}
	}
}

void cpu_qgemm(CPU, const struct qgemm_job *jobs, int n)
{
	struct ctx c = { .k = quant_kernels(), .jobs = jobs, .n = n };

	pool_for(total_tasks(&c, gemm_tasks), 1, gemm_range, &c);
}

#define PAIR (QUANT_BLOCK / QUANT_PANEL)	/* panels that make one block of the hidden row:
						   one task */

static int64_t ffn_tasks(const void *jobs, int i)
{
	const struct qffn_job *j = (const struct qffn_job *)jobs + i;

	return j->m > 0 ? quant_blocks(j->gate.rows) : 0;
}

/* Of m rows of a panel, values from `at` on of F. */
static void add_bias(float *x, const float *bias, int at, int F, int m)
{
	int n = F - at < QUANT_PANEL ? F - at : QUANT_PANEL;

	for (int r = 0; bias && r < m; r++)
		for (int i = 0; i < n; i++)
			x[r * QUANT_PANEL + i] += bias[at + i];
}

/* Values b*32.. of the hidden rows i..i+m-1 */
static void ffn_block(const struct ctx *c, const struct qffn_job *j, int b, int64_t i, int m)
{
	float g[QUANT_ROWS * QUANT_PANEL], u[QUANT_ROWS * QUANT_PANEL], h[QUANT_ROWS][QUANT_BLOCK] =
	    { { 0 } };
	const char *a = (const char *)j->a + (size_t)i * quant_row_bytes(j->gate.cols);
	int F = j->gate.rows, n = F - b * QUANT_BLOCK < QUANT_BLOCK ? F - b * QUANT_BLOCK
	    : QUANT_BLOCK;
	size_t gate = quant_panel_bytes(j->gate.dt, j->gate.cols), up = quant_panel_bytes(j->up.dt,
	    j->up.cols);

	for (int p = 0; p * QUANT_PANEL < n; p++) {
		c->k->mul(g, (const char *)j->gate.p + (size_t)(b * PAIR + p) * gate, j->gate.dt,
		    j->gate.cols, a, m);
		c->k->mul(u, (const char *)j->up.p + (size_t)(b * PAIR + p) * up, j->up.dt,
		    j->up.cols, a, m);
		add_bias(g, j->gate_bias, b * QUANT_BLOCK + p * QUANT_PANEL, F, m);
		add_bias(u, j->up_bias, b * QUANT_BLOCK + p * QUANT_PANEL, F, m);
		cpu_kernels()->swiglu(g, g, u, (int64_t)m * QUANT_PANEL, j->glu);
		for (int r = 0; r < m; r++)
			memcpy(h[r] + p * QUANT_PANEL, g + r * QUANT_PANEL,
			    QUANT_PANEL * sizeof(*g));
	}
	for (int r = 0; r < m; r++) {
		struct quant_row to = quant_row_at(j->h, i + r, F);

		to.d += b;
		to.off += b;
		to.q += b * QUANT_BLOCK;
		c->k->row(to, h[r], n);
	}
}

static void ffn_range(void *ctx, int64_t t0, int64_t t1, int worker)
{
	const struct ctx *c = ctx;

	(void)worker;
	for (; t0 < t1; t0++) {
		int64_t t = t0;
		const struct qffn_job *j = (const struct qffn_job *)c->jobs + find_job(c, &t,
		    ffn_tasks);

		for (int64_t i = 0; i < j->m; i += QUANT_ROWS)
			ffn_block(c, j, (int)t, i, j->m - i < QUANT_ROWS ? (int)(j->m - i)
			    : QUANT_ROWS);
	}
}

void cpu_qffn(CPU, const struct qffn_job *jobs, int n)
{
	struct ctx c = { .k = quant_kernels(), .jobs = jobs, .n = n };

	pool_for(total_tasks(&c, ffn_tasks), 1, ffn_range, &c);
}

void cpu_gather_blocks(CPU, real *dst, const struct mat *w, const int32_t *rows, int64_t n)
{
	for (int64_t i = 0; i < n; i++)
		quant_unpack_row(dst + i * w->cols, w->p, w->dt, rows[i], w->cols);
}

#endif
