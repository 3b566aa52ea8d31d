/*
 * The heads of chr-foresee (foresee.h) while tokens follow one by one: after a router's choice they
 * say what the layers to come will want, and the predictor tells the store. The oracle does the
 * same from a log.
 */
#include <stdlib.h>
#include <string.h>

#include "decode/decode_int.h"

/* Horizons that are asked. Reads of more layers ahead than these came no better in time (12 layers
 * of 32 experts, a read of 0.5 ms beside 0.3 ms of a layer: misses and late reads 3,160 with 3,
 * 3,140 with 4, 3,330 with 8), and asking costs what the routers of those layers do. */
#define USED 4

static int used(const struct foresee *f)
{
	return f->H < USED ? f->H : USED;
}

/* Arrays for max_seqs rows; with a base of NULL only their bytes count. */
static void carve_heads(struct foreseer *f, const struct config *c, int width, int horizons,
    int64_t R, bool apart, struct carve *dev, struct carve *host)
{
	int64_t Ls = c->num_sparse, E = c->num_experts, H = horizons;

	f->x = mem_carve(dev, R * H * c->hidden_size, sizeof *f->x);
	f->hidden = mem_carve(dev, R * width, sizeof *f->hidden);
	f->z = mem_carve(dev, R * H * E, sizeof *f->z);
	f->first = mem_carve(dev, R, sizeof *f->first);
	f->said = apart ? mem_carve(host, R * H * E, sizeof *f->said) : (real *)f->z;
	f->of = mem_carve(host, R, sizeof *f->of);
	for (int64_t r = 0; r < R; r++) {
		float *margin = mem_carve(host, Ls * H * E, sizeof *margin);
		int *pos = mem_carve(host, Ls * H, sizeof *pos);

		if (host->base)
			f->of[r] = (struct foreseen){ horizons, margin, pos };
	}
}

int64_t foresee_plan(const char *dir, const struct config *c, const struct engine_opt *o)
{
	struct carve dev = { 0 }, host = { 0 };
	struct foreseer f;
	int width, horizons;
	int64_t bytes = o->predict & SRC_BIT(SRC_FORESEE)
	    ? foresee_bytes(dir, c, &width, &horizons) : 0;

	if (bytes == 0)
		return 0;
	carve_heads(&f, c, width, horizons < USED ? horizons : USED, o->max_seqs, false, &dev,
	    &host);
	return bytes + dev.used + host.used;
}

int foresee_open(struct engine *g, const char *dir, struct err *e)
{
	struct foreseer *f = &g->fore;
	struct carve dev = { 0 }, host = { 0 };
	bool apart = !g->be->host_reads;
	size_t n;

	if (!(g->opt.predict & SRC_BIT(SRC_FORESEE)) || store_complete(g->store))
		return 0;
	if ((f->heads = foresee_load(dir, g->cfg, e)) == NULL)
		return e->status == 0 ? 0 : -1;
	carve_heads(f, g->cfg, f->heads->W, used(f->heads), g->opt.max_seqs, apart, &dev, &host);
	f->dev = g->be->alloc(g->be, (size_t)dev.used);
	f->host = calloc(1, (size_t)host.used);
	n = (size_t)f->heads->par.total * sizeof(real);
	f->w = apart ? g->be->alloc(g->be, n) : backend_cpu_memory(f->heads->w);
	if (!f->dev || !f->host || !f->w)
		return err_set(e, EX_OSERR, "%s: out of memory for " FORESEE_NAME, dir);
	if (apart)
		g->be->put(g->be, f->w, f->heads->w, n);
	dev = (struct carve){ f->dev, 0 };
	host = (struct carve){ f->host, 0 };
	carve_heads(f, g->cfg, f->heads->W, used(f->heads), g->opt.max_seqs, apart, &dev, &host);
	for (int i = 0; i < g->opt.max_seqs; i++)
		foresee_forget(g, i);
	return 0;
}

void foresee_close(struct engine *g)
{
	struct foreseer *f = &g->fore;

	if (g->be && f->heads) {
		g->be->free(g->be, f->dev);
		if (!g->be->host_reads)
			g->be->free(g->be, f->w);
	}
	free(f->host);
	foresee_free(f->heads);
}

void foresee_forget(struct engine *g, int seq)
{
	const struct foreseer *f = &g->fore;

	for (int k = 0; f->heads && k < g->cfg->num_sparse * used(f->heads); k++)
		f->of[seq].pos[k] = -1;
}

static const dev_real *weights(const struct foreseer *f, int i, int part)
{
	return f->w + (foresee_part(f->heads, i, part) - f->heads->w);
}

/* z (R, H, E) of the rows of this pass, after the router of sparse layer i, but for the choices of
 * the token before. */
static void heads(struct engine *g, int i)
{
	const struct backend *be = g->be;
	struct foreseer *f = &g->fore;
	int H = used(f->heads), E = g->cfg->num_experts, D = g->cfg->hidden_size, W = f->heads->W,
	    on;
	struct gemm_job job[FORESEE_MAX_HORIZON];

	job[0] = product(f->hidden, W, g->s.x, D, weights(f, i, FORESEE_IN), g->rows, W, D);
	be->gemm(be, GEMM_NT, job, 1);
	be->silu(be, f->hidden, f->hidden, (int64_t)g->rows * W);
	job[0] = product(f->z, H * E, f->hidden, W, weights(f, i, FORESEE_OUT), g->rows, H * E,
	    W);
	be->gemm(be, GEMM_NT, job, 1);
	be->combine(be, f->z, weights(f, i, FORESEE_BIAS), f->first, NULL, g->rows, 1, H * E);
	for (int h = 0; h < H; h++) {
		dev_real *x = f->x + (int64_t)h * D;
		int j = foresee_target(f->heads, i, h + 1, &on);

		be->mul(be, x, H * D, g->s.x, D, weights(f, i, FORESEE_SCALE) + (int64_t)h * D, 0,
		    g->rows, D);
		job[h] = product(f->z + (int64_t)h * E, H * E, x, H * D,
		    g->layer[g->sparse[j]].gate, g->rows, E, D);
		job[h].beta = 1;
	}
	be->gemm(be, GEMM_NT, job, H);
	pull(g, f->said, f->z, (size_t)(g->rows * H * E) * sizeof *f->said);
}

static void add_previous(struct engine *g, int i)
{
	struct foreseer *f = &g->fore;
	const real *worth = foresee_part(f->heads, i, FORESEE_PREVIOUS);
	int H = used(f->heads), E = g->cfg->num_experts, K = g->cfg->num_experts_per_tok, on;

	for (int r = 0; r < g->rows; r++)
		for (int h = 0; h < H; h++) {
			int j = foresee_target(f->heads, i, h + 1, &on);
			const int32_t *last = g->t.about[r].last + (int64_t)j * K;
			real *z = f->said + ((int64_t)r * H + h) * E;

			for (int k = 0; k < K; k++)
				z[last[k]] += worth[(int64_t)h * E + last[k]];
		}
}

void foresee_rows(struct engine *g, int l)
{
	int i = g->layer[l].sparse;

	if (!g->fore.heads || !g->single || store_complete(g->store))
		return;
	heads(g, i);
	add_previous(g, i);
	predict_foresee(g->predict, g->store, i, g->fore.said, g->rows, g->t.about);
}

/* ---- the oracle ---- */

int oracle_begin(const struct engine *g, struct seq *s, const uint32_t *tok, int n, struct err *e)
{
	if (g->opt.oracle == NULL || store_complete(g->store))
		return 0;
	s->known = oracle_find(g->opt.oracle, tok, n);
	return s->known ? 0 : err_set(e, EX_DATAERR, "--oracle: no sequence in the log begins with "
	    "this prompt of %d tokens", n);
}

int oracle_check(const struct seq *s, uint32_t tok, struct err *e)
{
	if (!s->known || s->len >= s->known->n || s->known->tok[s->len] == tok)
		return 0;
	return err_set(e, EX_DATAERR, "--oracle: the log is of another run: it has token %u at "
	    "position %d, not %u", s->known->tok[s->len], s->len, tok);
}

/* Says of each row what the layers after l will use, until l comes again. */
void oracle_rows(struct engine *g, int l)
{
	int Ls = g->cfg->num_sparse, K = g->cfg->num_experts_per_tok, i = g->layer[l].sparse;

	for (int r = 0; g->single && !store_complete(g->store) && r < g->nseg; r++) {
		const struct oracle_seq *q = g->t.seg[r].it->s->known;
		int64_t at = (int64_t)g->t.seg[r].it->s->len * Ls + i;

		for (int h = 1; q && h <= Ls && at + h < (int64_t)q->n * Ls; h++)
			for (int k = 0; k < K; k++)
				store_predict(g->store, g->sparse[(i + h) % Ls],
				    q->ids[(at + h) * K + k], 1, h, SRC_ORACLE);
	}
}
