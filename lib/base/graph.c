#include "base/graph.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"

static void graph_alloc(struct graph *g, int n, int64_t ends)
{
	*g = (struct graph){ .n = n };
	g->row = mem_alloc(((size_t)n + 1) * sizeof *g->row);
	g->self = mem_alloc(((size_t)n + 1) * sizeof *g->self);
	g->deg = mem_alloc(((size_t)n + 1) * sizeof *g->deg);
	g->to = mem_alloc(((size_t)ends + 1) * sizeof *g->to);
	g->w = mem_alloc(((size_t)ends + 1) * sizeof *g->w);
}

void graph_free(struct graph *g)
{
	mem_free(g->row);
	mem_free(g->to);
	mem_free(g->w);
	mem_free(g->self);
	mem_free(g->deg);
	*g = (struct graph){0};
}

static void sum_degrees(struct graph *g)
{
	g->total = 0;
	for (int u = 0; u < g->n; u++) {
		g->deg[u] = 2 * g->self[u];
		for (int64_t i = g->row[u]; i < g->row[u + 1]; i++)
			g->deg[u] += g->w[i];
		g->total += g->deg[u];
	}
}

static void put_end(struct graph *g, int64_t *fill, int u, int v, double w)
{
	g->to[fill[u]] = v;
	g->w[fill[u]++] = w;
}

int graph_build(struct graph *g, int n, const struct edge *edge, int64_t m, struct err *e)
{
	int64_t ends = 0, *fill;

	for (int64_t i = 0; i < m; i++) {
		const struct edge *d = &edge[i];

		if (d->u < 0 || d->u >= n || d->v < 0 || d->v >= n || !(d->w > 0) || isinf(d->w))
			return err_set(e, EX_DATAERR,
			    "edge %lld (%d, %d, %g) does not fit a graph of %d nodes",
			    (long long)i, d->u, d->v, d->w, n);
		ends += 2 * (d->u != d->v);
	}
	graph_alloc(g, n, ends);
	for (int64_t i = 0; i < m; i++)
		if (edge[i].u != edge[i].v) {
			g->row[edge[i].u + 1]++;
			g->row[edge[i].v + 1]++;
		}
	for (int u = 0; u < n; u++)
		g->row[u + 1] += g->row[u];
	fill = mem_alloc(((size_t)n + 1) * sizeof *fill);
	memcpy(fill, g->row, (size_t)n * sizeof *fill);
	for (int64_t i = 0; i < m; i++) {
		if (edge[i].u == edge[i].v) {
			g->self[edge[i].u] += edge[i].w;
			continue;
		}
		put_end(g, fill, edge[i].u, edge[i].v, edge[i].w);
		put_end(g, fill, edge[i].v, edge[i].u, edge[i].w);
	}
	mem_free(fill);
	sum_degrees(g);
	return 0;
}

double graph_modularity(const struct graph *g, const int *comm, double resolution)
{
	double *deg, in = 0, sq = 0;

	if (!(g->total > 0))
		return 0;
	deg = mem_alloc((size_t)g->n * sizeof *deg);
	for (int u = 0; u < g->n; u++) {
		deg[comm[u]] += g->deg[u];
		in += 2 * g->self[u];
		for (int64_t i = g->row[u]; i < g->row[u + 1]; i++)
			in += comm[g->to[i]] == comm[u] ? g->w[i] : 0;
	}
	for (int c = 0; c < g->n; c++)
		sq += (deg[c] / g->total) * (deg[c] / g->total);
	mem_free(deg);
	return in / g->total - resolution * sq;
}

struct mover {			/* scratch of one local-moving phase */
	const struct graph *g;
	double resolution;
	int *comm;
	double *tot;		/* (n) sum of deg over the community */
	double *acc;		/* (n) weight from the node at hand into the community; zero
				   between nodes */
	int *near;		/* (n) communities with acc set */
};

/* Moves u where modularity gains most; true when it moved. */
static bool move_node(struct mover *s, int u)
{
	const struct graph *g = s->g;
	double pull = s->resolution * g->deg[u] / g->total, best_gain;
	int home = s->comm[u], best = home, k = 0;

	for (int64_t i = g->row[u]; i < g->row[u + 1]; i++) {
		int c = s->comm[g->to[i]];

		if (s->acc[c] == 0)
			s->near[k++] = c;
		s->acc[c] += g->w[i];
	}
	s->tot[home] -= g->deg[u];
	/* Rounding must not make two equal places trade a node for ever. */
	best_gain = s->acc[home] - pull * s->tot[home] + 1e-12 * g->total;
	for (int i = 0; i < k; i++) {
		int c = s->near[i];
		double gain = s->acc[c] - pull * s->tot[c];

		if (c != home && gain > best_gain) {
			best_gain = gain;
			best = c;
		}
		s->acc[c] = 0;
	}
	s->tot[best] += g->deg[u];
	s->comm[u] = best;
	return best != home;
}

/* Sweeps over the nodes in random order until a sweep moves none; true when any moved. */
static bool local_move(const struct graph *g, double resolution, uint64_t seed, uint64_t stream,
    int *comm)
{
	size_t n = (size_t)g->n;
	struct mover s = { g, resolution, comm, mem_alloc(n * sizeof(double)),
	    mem_alloc(n * sizeof(double)),
		mem_alloc(n * sizeof(int)) };
	uint32_t *order = mem_alloc(n * sizeof *order);
	bool moved = true, any = false;

	for (size_t u = 0; u < n; u++) {
		order[u] = (uint32_t)u;
		s.tot[comm[u]] += g->deg[u];
	}
	rng_shuffle(seed, stream, order, n);
	while (moved) {
		moved = false;
		for (size_t i = 0; i < n; i++)
			moved |= move_node(&s, (int)order[i]);
		any |= moved;
	}
	mem_free(s.tot);
	mem_free(s.acc);
	mem_free(s.near);
	mem_free(order);
	return any;
}

/* Numbers communities 0.. in order of first appearance. */
static int renumber(int n, int *comm)
{
	int *map = mem_alloc(((size_t)n + 1) * sizeof *map), k = 0;

	for (int u = 0; u < n; u++) {
		if (!map[comm[u]])
			map[comm[u]] = ++k;
		comm[u] = map[comm[u]] - 1;
	}
	mem_free(map);
	return k;
}

/* Nodes sorted by community: member[first[c]] .. member[first[c + 1] - 1]. */
static void group(int n, int k, const int *comm, int *first, int *member)
{
	int *fill = mem_alloc(((size_t)k + 1) * sizeof *fill);

	for (int u = 0; u < n; u++)
		first[comm[u] + 1]++;
	for (int c = 0; c < k; c++)
		first[c + 1] += first[c];
	memcpy(fill, first, (size_t)k * sizeof *fill);
	for (int u = 0; u < n; u++)
		member[fill[comm[u]]++] = u;
	mem_free(fill);
}

/* Appends the row of community c to b; acc is zero before and after. */
static void aggregate_row(const struct graph *g, const int *comm, int c, const int *member,
    int nmember,
    struct graph *b, double *acc)
{
	int64_t end = b->row[c];

	for (int k = 0; k < nmember; k++) {
		int u = member[k];

		b->self[c] += g->self[u];
		for (int64_t i = g->row[u]; i < g->row[u + 1]; i++) {
			int d = comm[g->to[i]];

			if (d == c) {
				b->self[c] += g->w[i] / 2;	/* seen from both ends */
				continue;
			}
			if (acc[d] == 0)
				b->to[end++] = d;
			acc[d] += g->w[i];
		}
	}
	for (int64_t i = b->row[c]; i < end; i++) {
		b->w[i] = acc[b->to[i]];
		acc[b->to[i]] = 0;
	}
	b->row[c + 1] = end;
}

/* The graph whose nodes are the k communities of g. */
static void aggregate(const struct graph *g, int k, const int *comm, struct graph *b)
{
	int *first = mem_alloc(((size_t)k + 1) * sizeof *first),
	    *member = mem_alloc((size_t)g->n * sizeof *member);
	double *acc = mem_alloc(((size_t)k + 1) * sizeof *acc);

	graph_alloc(b, k, g->row[g->n]);
	group(g->n, k, comm, first, member);
	for (int c = 0; c < k; c++)
		aggregate_row(g, comm, c, member + first[c], first[c + 1] - first[c], b, acc);
	sum_degrees(b);
	mem_free(first);
	mem_free(member);
	mem_free(acc);
}

/* One run of the method from the partition in comm. */
static void run(const struct graph *g, double resolution, uint64_t seed, uint64_t *stream,
    int *comm)
{
	bool more = local_move(g, resolution, seed, (*stream)++, comm);
	int k = renumber(g->n, comm);

	for (more = more || k < g->n; more;) {
		int *up = mem_alloc(((size_t)k + 1) * sizeof *up);
		struct graph b;

		aggregate(g, k, comm, &b);
		for (int c = 0; c < k; c++)
			up[c] = c;
		more = local_move(&b, resolution, seed, (*stream)++, up);
		renumber(k, up);
		for (int u = 0; u < g->n; u++)
			comm[u] = up[comm[u]];
		k = renumber(g->n, comm);
		graph_free(&b);
		mem_free(up);
	}
}

/* Runs from single nodes until a run gains nothing; returns the modularity. */
static double settle(const struct graph *g, double resolution, uint64_t seed, uint64_t *stream,
    int *comm)
{
	double q, last;

	for (int u = 0; u < g->n; u++)
		comm[u] = u;
	q = graph_modularity(g, comm, resolution);
	do {
		last = q;
		run(g, resolution, seed, stream, comm);
		q = graph_modularity(g, comm, resolution);
	} while (q > last + 1e-9);
	return q;
}

int graph_louvain(const struct graph *g, double resolution, uint64_t seed, int tries, int *comm)
{
	int *c = mem_alloc(((size_t)g->n + 1) * sizeof *c);
	double best = -INFINITY;
	uint64_t stream = 0;

	for (int u = 0; u < g->n; u++)
		comm[u] = u;
	for (int i = 0; i < tries && g->total > 0; i++) {
		double q = settle(g, resolution, seed, &stream, c);

		if (q > best + 1e-12) {
			best = q;
			memcpy(comm, c, (size_t)g->n * sizeof *c);
		}
	}
	mem_free(c);
	return renumber(g->n, comm);
}
