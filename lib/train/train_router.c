/*
 * train_router: the router's losses and statistics, which are computed on the host: what they
 * see of the models comes from the device, and gradients go back to it.
 */
#include "train/train_impl.h"

static int64_t head_values(const struct train *t, int64_t R)
{
	return R * config_lookahead_rows(&t->cfg);
}

static int64_t router_values(const struct train *t, int64_t R)
{
	return t->cfg.num_sparse * R * t->cfg.num_experts;
}

static int64_t ahead_values(const struct train *t, int64_t R)
{
	return config_ahead_pairs(&t->cfg) * R * t->cfg.num_experts;
}

/* n values of the device for the host, NULL if there are none. */
static const real *seen(const struct train *t, const dev_real *x, struct mirror *m, int64_t n)
{
	return x != NULL ? backend_read(t->be, x, m, (size_t)n * sizeof(real)) : NULL;
}

static struct route_in rows_view(const struct train *t, const struct batch *b)
{
	return (struct route_in){ .cfg = &t->cfg, .B = b->B, .T = b->T,
	    .doc_start = b->doc_start };
}

static struct route_in load_view(struct train *t, const struct batch *b)
{
	struct route_in in = rows_view(t, b);
	const int64_t n = (int64_t)b->B * b->T * t->cfg.num_sparse * t->cfg.num_experts_per_tok;

	in.topk = backend_read(t->be, t->m.topk, &t->seen.topk, (size_t)n * sizeof(int32_t));
	return in;
}

static struct route_in view(struct train *t, const struct batch *b)
{
	const int64_t R = (int64_t)b->B * b->T, n = router_values(t, R);
	struct route_in in = load_view(t, b);

	in.probs = seen(t, t->m.probs, &t->seen.probs, n);
	if (t->cfg.lookahead_steps > 0)
		in.look = seen(t, t->m.look, &t->seen.look, head_values(t, R));
	if (t->has_ref)
		in.ref_probs = seen(t, t->ref.probs, &t->seen.ref, n);
	in.bias = t->choice_bias;
	in.ahead = seen(t, t->m.ahead, &t->seen.ahead, ahead_values(t, R));
	return in;
}

void train_router_rows(struct train *t, const struct batch *b)
{
	const struct route_in in = rows_view(t, b);

	route_step_rows(&t->route, &in);
}

void train_router_load(struct train *t, const struct batch *b)
{
	struct route_in in;

	if (t->cfg.num_sparse == 0)
		return;
	in = load_view(t, b);
	route_step_load(&t->route, &in);
}

/* A gradient of the device, to be added to. */
static real *draft(const struct train *t, dev_real *x, struct mirror *m, int64_t n)
{
	real *host = x != NULL ? backend_draft(t->be, x, m, (size_t)n * sizeof(real)) : NULL;

	if (host != NULL)
		backend_fetch(t->be, host, x, (size_t)n * sizeof(real));
	return host;
}

static void settle(const struct train *t, dev_real *x, const real *host, int64_t n)
{
	if (host != NULL)
		backend_settle(t->be, x, host, (size_t)n * sizeof(real));
}

static double loss_with_gradients(struct train *t, const struct route_in *in)
{
	const int64_t R = (int64_t)in->B * in->T;
	struct model *m = &t->m;
	real *probs = draft(t, m->dprobs, &t->seen.dprobs, router_values(t, R)),
	    *look = draft(t, m->dlook, &t->seen.dlook, head_values(t, R)),
	    *ahead = draft(t, m->dahead, &t->seen.dahead, ahead_values(t, R));
	double loss = route_loss(in, &t->lambda, &t->route, probs, look, ahead, &t->scratch);

	settle(t, m->dprobs, probs, router_values(t, R));
	settle(t, m->dlook, look, head_values(t, R));
	settle(t, m->dahead, ahead, ahead_values(t, R));
	return loss;
}

double train_router_loss(struct train *t, const struct batch *b, bool gradients, bool count)
{
	struct route_in in;
	double loss;

	if (t->cfg.num_sparse == 0)
		return 0;
	in = view(t, b);
	loss = gradients ? loss_with_gradients(t, &in)
	    : route_loss(&in, &t->lambda, &t->route, NULL, NULL, NULL, &t->scratch);
	if (count) {
		route_stats_add(&t->now.stats, &in);
		t->now.counted = true;
	}
	return loss;
}
