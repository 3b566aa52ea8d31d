#include "train/metric.h"

#include <stdio.h>
#include <string.h>

#include "base/comm.h"
#include "base/json.h"

void metric_clear(struct metric *m)
{
	memset(m, 0, sizeof *m);
}

/* The terms as an array, in the order of the names below. */
#define NTERMS 8
static const char *const term_name[NTERMS] = {
	"balance", "temporal", "locality", "lookahead", "lookahead_topk", "lookahead_union",
	    "anchor", "ahead"
};

static void term_values(const struct route_terms *t, double v[NTERMS])
{
	const double x[NTERMS] = { t->balance, t->temporal, t->locality, t->lookahead, t->topk,
	    t->union_, t->anchor,
	    t->ahead };

	memcpy(v, x, sizeof x);
}

void metric_add(struct metric *m, double base, double route)
{
	m->base += base;
	m->loss += base + route;
}

/* The doubles of *p to the array at `at`, or back. Returns what follows. */
static double *pack(double *at, void *p, size_t size, bool back)
{
	memcpy(back ? p : at, back ? (const void *)at : p, size);
	return at + size / sizeof *at;
}

void metric_reduce(struct metric *m)
{
	double v[2 + (sizeof m->stats + sizeof m->sum + sizeof m->weight) / sizeof(double)], *at;

	for (int back = 0; back < 2; back++) {
		at = pack(v, &m->base, sizeof m->base, back);
		at = pack(at, &m->loss, sizeof m->loss, back);
		at = pack(at, &m->stats, sizeof m->stats, back);
		at = pack(at, m->sum, sizeof m->sum, back);
		at = pack(at, m->weight, sizeof m->weight, back);
		if (!back)
			comm_sum(v, (int)(at - v));
	}
}

void metric_losses(const struct metric *m, json_t *rec)
{
	double v[NTERMS];

	json_set_num(rec, "loss", m->loss);
	json_set_num(rec, "base", m->base);
	term_values(&m->terms, v);
	for (int i = 0; i < NTERMS; i++)
		json_set_num(rec, term_name[i], v[i]);
}

/* A measure of nothing is left out. */
void metric_stage(const struct metric *m, const char *const *names, json_t *rec)
{
	for (int i = 0; names != NULL && names[i] != NULL; i++)
		if (m->weight[i] > 0)
			json_set_num(rec, names[i], m->sum[i] / m->weight[i]);
}

/* name<k><suffix>: hits / all, left out when there was nothing to hit */
static void set_share(json_t *rec, const char *name, int k, const char *suffix, double hits,
    double all)
{
	char key[40];

	if (all <= 0)
		return;
	snprintf(key, sizeof key, "%s%d%s", name, k, suffix);
	json_set_num(rec, key, hits / all);
}

void metric_routing(const struct metric *m, const struct config *c, const double *load,
    json_t *rec)
{
	const struct route_stats *s = &m->stats;

	if (!m->counted || c->num_sparse == 0)
		return;
	for (int k = 1; k <= c->lookahead_steps && k <= ROUTE_MAX_STEPS; k++) {
		set_share(rec, "recall", k, "", s->slot_hit[k], s->slots[k]);
		set_share(rec, "recall", k, "_whole", s->set_hit[k], s->sets[k]);
		set_share(rec, "repeat", k, "", s->repeat_hit[k], s->slots[k]);
		set_share(rec, "repeat", k, "_whole", s->repeat_set[k], s->sets[k]);
	}
	if (s->ahead_sets > 0) {
		json_set_num(rec, "recall_gate", s->ahead_hit / s->ahead_slots);
		json_set_num(rec, "recall_gate_whole", s->ahead_whole / s->ahead_sets);
	}
	if (s->pairs > 0)
		json_set_num(rec, "overlap", s->overlap / s->pairs);
	json_set_num(rec, "load_entropy", route_load_entropy(load, c->num_sparse, c->num_experts));
}
