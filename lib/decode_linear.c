/* Products of decode with dense weights, which are floats or blocks, and rows of the embedding. */
#include "decode_int.h"
#include "quant.h"

void linear(struct engine *g, const struct linear *l, int n, int rows)
{
	struct gemm_job dense[4];
	struct qgemm_job blocks[4];
	const real *quantised = NULL;
	int nd = 0, nb = 0;

	for (int i = 0; i < n; i++)
		if (!dtype_blocks(l[i].w.dt))
			dense[nd++] = (struct gemm_job){ .c = l[i].y, .ldc = l[i].w.rows, .a = l[i].x, .lda = l[i].w.cols,
			    .b = l[i].w.p, .ldb = l[i].w.cols, .bt = l[i].w.dt, .m = rows, .n = l[i].w.rows, .k = l[i].w.cols,
			    .beta = l[i].beta };
	if (nd > 0)
		g->be->gemm(GEMM_NT, dense, nd);
	for (int i = 0; i < n; i++) {
		if (!dtype_blocks(l[i].w.dt))
			continue;
		if (quantised && quantised != l[i].x) {
			g->be->qgemm(blocks, nb);
			nb = 0;
		}
		if (quantised != l[i].x)
			g->be->quantize(g->s.xq, l[i].x, rows, l[i].w.cols);
		quantised = l[i].x;
		blocks[nb++] = (struct qgemm_job){ l[i].y, l[i].w.rows, g->s.xq, l[i].w, rows, l[i].beta };
	}
	if (nb > 0)
		g->be->qgemm(blocks, nb);
}

void embed_rows(struct engine *g)
{
	const struct mat *w = &g->embed;
	int D = g->cfg->hidden_size;

	if (!dtype_blocks(w->dt)) {
		g->be->gather(g->s.h, w->p, (const int32_t *)g->s.tok, g->rows, D);
		return;
	}
#ifndef CHR_DOUBLE
	for (int r = 0; r < g->rows; r++)
		quant_unpack_row(g->s.h + (int64_t)r * D, w->p, w->dt, (int)g->s.tok[r], D);
#endif
}
