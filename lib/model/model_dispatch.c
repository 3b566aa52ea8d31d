/*
 * model_dispatch: experts that are divided over the ranks of a group (comm.h). The rows of all
 * ranks go to those that have their experts, and come back (GShard, arXiv:2006.16668, section 3;
 * but none is dropped).
 *
 * All know how many rows each has for each expert. What is for one rank's experts is put in
 * order, by expert, by rank, by place in that rank's slots, and goes in rounds of at most `room`
 * rows, so that memory does not depend on how uneven the routing is. Nothing is kept for the
 * backward pass, which sends the inputs again and computes g and u again.
 */
#include <string.h>

#include "base/comm.h"
#include "model/model_int.h"

/* Of c rows from `at` on, those in 0 .. room; *before: how many of the c come before these. */
static int within(int64_t at, int64_t c, int room, int64_t *before)
{
	int64_t from = at < 0 ? 0 : at, to = at + c < room ? at + c : room;

	*before = from - at;
	return to > from ? (int)(to - from) : 0;
}

static int32_t count(const struct model *m, int rank, int e)
{
	return m->act->dispatch.count[rank * m->cfg.num_experts + e];
}

/* What this rank sends to the one at place k, of that one's rows from lo on. */
static void plan_out(const struct model *m, int k, int64_t lo, const int32_t *first)
{
	const struct dispatch *d = &m->act->dispatch;
	int each = m->cfg.num_experts / d->n;
	int64_t at = -lo, before;

	d->out_at[k] = d->out_n[k] = 0;
	for (int e = k * each; e < (k + 1) * each; e++)
		for (int r = 0; r < d->n; r++) {
			int n = within(at, count(m, r, e), d->room, &before);

			at += count(m, r, e);
			if (r != d->place || n == 0)
				continue;
			if (d->out_n[k] == 0)
				d->out_at[k] = first[e] + (int)before;
			d->out_n[k] += n;
		}
}

/* What this rank's experts get of their rows from lo on: how many of each expert, how many from
 * each rank. */
static void plan_in(const struct model *m, int64_t lo)
{
	const struct dispatch *d = &m->act->dispatch;
	int E = m->cfg.num_experts, each = E / d->n;
	int64_t at = -lo, before;

	memset(d->in_n, 0, (size_t)d->n * sizeof *d->in_n);
	memset(d->first, 0, ((size_t)E + 1) * sizeof *d->first);
	for (int e = 0; e < E; e++) {
		d->first[e + 1] = d->first[e];
		for (int r = 0; e / each == d->place && r < d->n; r++) {
			int n = within(at, count(m, r, e), d->room, &before);

			at += count(m, r, e);
			d->in_n[r] += n;
			d->first[e + 1] += n;
		}
	}
	for (int r = 0, sum = 0; r < d->n; sum += d->in_n[r++])
		d->in_at[r] = sum;
}

/* Where the rows of each expert are among those of each rank. */
static void plan_order(const struct model *m, int64_t lo)
{
	struct dispatch *d = &m->act->dispatch;
	int each = m->cfg.num_experts / d->n, next[d->n];
	bool biased = config_expert_biased(&m->cfg);
	size_t bytes = (size_t)d->room * sizeof *d->sort;
	int32_t *sort = backend_draft(m->be, d->sort, &d->sorted, bytes), i = 0,
	    *unsort = backend_draft(m->be, d->unsort, &d->unsorted, bytes),
	    *expert = biased ? backend_draft(m->be, d->expert, &d->whose, bytes) : NULL;
	int64_t at = -lo, before;

	memcpy(next, d->in_at, sizeof next);
	for (int e = d->place * each; e < (d->place + 1) * each; e++)
		for (int r = 0; r < d->n; r++) {
			int n = within(at, count(m, r, e), d->room, &before);

			at += count(m, r, e);
			for (int j = 0; j < n; j++, i++) {
				sort[i] = next[r]++;
				unsort[sort[i]] = i;
				if (biased)
					expert[i] = e;
			}
		}
	backend_settle(m->be, d->sort, sort, (size_t)i * sizeof *sort);
	backend_settle(m->be, d->unsort, unsort, (size_t)i * sizeof *unsort);
	if (biased)
		backend_settle(m->be, d->expert, expert, (size_t)i * sizeof *expert);
}

/* Of the rounds that the rank with the most rows takes. */
static bool plan_round(const struct model *m, int round, const int32_t *first)
{
	const struct dispatch *d = &m->act->dispatch;
	int each = m->cfg.num_experts / d->n;
	int64_t lo = (int64_t)round * d->room, most = 0;

	for (int k = 0; k < d->n; k++) {
		int64_t rows = 0;

		for (int e = k * each; e < (k + 1) * each; e++)
			for (int r = 0; r < d->n; r++)
				rows += count(m, r, e);
		most = rows > most ? rows : most;
		plan_out(m, k, lo, first);
	}
	plan_in(m, lo);
	plan_order(m, lo);
	return lo < most;
}

static int64_t total(const int *count, int n)
{
	int64_t sum = 0;

	for (int k = 0; k < n; k++)
		sum += count[k];
	return sum;
}

/* To the experts: n rows of w values in slot order, into `sorted`. */
static void send(struct model *m, dev_real *sorted, const dev_real *slots, int64_t n, int w)
{
	struct dispatch *d = &m->act->dispatch;
	const struct comm_rows r = { d->out_at, d->out_n, d->in_at, d->in_n };
	size_t row = (size_t)w * sizeof(real);
	const real *out;
	real *in;

	profile_begin(m->profile, PROFILE_EXCHANGE);
	out = backend_read(m->be, slots, &d->here, (size_t)n * row);
	in = backend_draft(m->be, d->raw, &d->there, (size_t)d->room * row);
	comm_rows(out, in, w, &r);
	backend_settle(m->be, d->raw, in, (size_t)total(d->in_n, d->n) * row);
	profile_begin(m->profile, PROFILE_SORT);
	m->be->gather(m->be, sorted, d->raw, d->sort, d->first[m->cfg.num_experts], w);
}

/* And back. */
static void back(struct model *m, dev_real *slots, const dev_real *sorted, int64_t n, int w)
{
	struct dispatch *d = &m->act->dispatch;
	const struct comm_rows r = { d->in_at, d->in_n, d->out_at, d->out_n };
	size_t row = (size_t)w * sizeof(real);
	const real *out;
	real *in;

	profile_begin(m->profile, PROFILE_SORT);
	m->be->gather(m->be, d->raw, sorted, d->unsort, d->first[m->cfg.num_experts], w);
	profile_begin(m->profile, PROFILE_EXCHANGE);
	out = backend_read(m->be, d->raw, &d->there, (size_t)total(d->in_n, d->n) * row);
	in = backend_draft(m->be, slots, &d->here, (size_t)n * row);
	comm_rows(out, in, w, &r);
	for (int k = 0; k < d->n; k++)
		backend_settle(m->be, slots + (int64_t)d->out_at[k] * w,
		    in + (int64_t)d->out_at[k] * w, (size_t)d->out_n[k] * row);
}

static void count_rows(struct model *m, const int32_t *first)
{
	struct dispatch *d = &m->act->dispatch;
	int E = m->cfg.num_experts;

	for (int e = 0; e < E; e++)		/* first of the next round is not needed yet */
		d->first[e] = first[e + 1] - first[e];
	profile_begin(m->profile, PROFILE_EXCHANGE);
	comm_counts(d->first, E, d->count);
}

void model_dispatch_forward(struct model *m, int l, const int32_t *first)
{
	struct model_act *a = m->act;
	struct dispatch *d = &a->dispatch;
	int64_t n = first[m->cfg.num_experts];
	const struct rows s = { .first = d->first, .x = d->x, .expert = d->expert, .g = d->g,
	    .u = d->u, .y = d->y };

	count_rows(m, first);
	for (int round = 0; plan_round(m, round, first); round++) {
		send(m, d->x, a->xs, n, m->cfg.hidden_size);
		profile_begin(m->profile, PROFILE_EXPERTS);
		model_experts_forward(m, l, &s);
		back(m, a->ys, d->y, n, m->cfg.hidden_size);
	}
}

void model_dispatch_back(struct model *m, int l, const int32_t *first)
{
	struct model_act *a = m->act;
	struct dispatch *d = &a->dispatch;
	const struct rows up = { .first = d->first, .x = d->x, .expert = d->expert, .g = d->g,
	    .u = d->u };
	const struct rows s = { d->first, d->x, d->expert, d->g, d->u, d->y, d->w, d->dw };
	int64_t n = first[m->cfg.num_experts];
	int D = m->cfg.hidden_size;

	count_rows(m, first);
	for (int round = 0; plan_round(m, round, first); round++) {
		send(m, d->x, a->xs, n, D);
		send(m, d->y, a->ys, n, D);
		send(m, d->w, a->wslot, n, 1);
		profile_begin(m->profile, PROFILE_EXPERTS_BACK);
		model_experts_forward(m, l, &up);
		model_experts_back(m, l, &s);
		back(m, a->ys, d->y, n, D);
		back(m, a->dwslot, d->dw, n, 1);
	}
}
