#include "measure/fidelity.h"

#include <math.h>
#include <string.h>

#include "base/json.h"

#define P_MIN 1e-9	/* the anchor's clamp under logarithms */

void fidelity_init(struct fidelity *f, int layers)
{
	memset(f, 0, sizeof *f);
	f->layers = layers;
	f->first = -1;
}

static int best_of(const real *z, int V)
{
	int best = 0;

	for (int v = 1; v < V; v++)
		if (z[v] > z[best])
			best = v;
	return best;
}

static double log_sum_exp(const real *z, int V)
{
	double max = z[best_of(z, V)], sum = 0;

	for (int v = 0; v < V; v++)
		sum += exp(z[v] - max);
	return max + log(sum);
}

/* KL(softmax a || softmax b) */
static double row_kl(const real *a, const real *b, int V)
{
	double la = log_sum_exp(a, V), lb = log_sum_exp(b, V), kl = 0;

	for (int v = 0; v < V; v++)
		kl += exp(a[v] - la) * ((a[v] - la) - (b[v] - lb));
	return kl;
}

void fidelity_logits(struct fidelity *f, const real *a, const real *b, int64_t n, int V)
{
	for (int64_t i = 0; i < n; i++, f->rows++, a += V, b += V) {
		for (int v = 0; v < V; v++) {
			double d = fabs((double)a[v] - b[v]);

			f->sum_abs += d;
			/* a NaN stays: it is never the same */
			if (!isnan(f->max_abs) && !(d <= f->max_abs))
				f->max_abs = d;
		}
		f->kl += row_kl(a, b, V);
		if (best_of(a, V) == best_of(b, V))
			f->top1++;
		else if (f->first < 0)
			f->first = f->rows;
	}
	f->logits += n * V;
}

static int common(const int32_t *a, const int32_t *b, int K)
{
	int n = 0;

	for (int i = 0; i < K; i++)
		for (int j = 0; j < K; j++)
			n += a[i] == b[j];
	return n;
}

void fidelity_router(struct fidelity *f, const real *pa, const real *pb, const int32_t *ta,
    const int32_t *tb, int64_t R,
    int E, int K)
{
	for (int l = 0; l < f->layers; l++, pa += R * E, pb += R * E)
		for (int64_t i = 0; i < R * E; i++)
			f->router_kl[l] += pb[i] * (log(fmax(pb[i], P_MIN)) -
			    log(fmax(pa[i], P_MIN)));
	for (int64_t i = 0; i < f->layers * R; i++)
		f->shared += common(ta + i * K, tb + i * K, K);
	f->slots += f->layers * R * K;
	f->routed += R;
}

void fidelity_put(const struct fidelity *f, json_t *rec)
{
	json_t *each = json_array();
	double sum = 0;

	json_set_num(rec, "max_abs", f->max_abs);
	json_set_num(rec, "mean_abs", f->logits > 0 ? f->sum_abs / (double)f->logits : 0);
	json_set_num(rec, "kl", f->rows > 0 ? f->kl / (double)f->rows : 0);
	json_set_num(rec, "top1", f->rows > 0 ? (double)f->top1 / (double)f->rows : 1);
	if (f->first >= 0)
		json_set_int(rec, "first_diff", f->first);
	for (int l = 0; l < f->layers && f->routed > 0; l++) {
		sum += f->router_kl[l];
		json_array_append_new(each, json_real(f->router_kl[l] / (double)f->routed));
	}
	if (f->layers > 0 && f->routed > 0) {
		json_set_num(rec, "router_kl", sum / f->layers / (double)f->routed);
		json_set_num(rec, "experts_same", (double)f->shared / (double)f->slots);
		json_object_set(rec, "router_kl_layers", each);
	}
	json_decref(each);
}
