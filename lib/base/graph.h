/*
 * graph: weighted undirected graphs and their communities.
 *
 *	struct graph g;
 *	graph_build(&g, n, edges, m, &e);
 *	int k = graph_louvain(&g, 1.0, seed, 10, comm);	(comm[u] in 0..k-1)
 *	double q = graph_modularity(&g, comm, 1.0);
 *	graph_free(&g);
 *
 * Louvain: Blondel, Guillaume, Lambiotte, Lefebvre, "Fast unfolding of communities in large
 * networks", 2008. Resolution: Reichardt and Bornholdt 2006; above 1 more and smaller
 * communities.
 */
#ifndef CHR_GRAPH_H
#define CHR_GRAPH_H

#include <stdint.h>

#include "base/err.h"

struct edge {
	int u, v;
	double w;
};

struct graph {			/* compressed rows; an edge is in the rows of both its ends */
	int n;
	int64_t *row;		/* (n + 1) */
	int *to;		/* (row[n]) */
	double *w;		/* (row[n]) */
	double *self;		/* (n) weight of the self-loop */
	double *deg;		/* (n) sum of weights at the node; a self-loop counts twice */
	double total;		/* sum of deg: twice the weight of all edges */
};

/* Ends must be in 0..n-1 and weights finite and positive, or EX_DATAERR. u == v is a self-loop;
 * the weights of edges given twice add up. */
int graph_build(struct graph *g, int n, const struct edge *edge, int64_t m, struct err *e)
    CHR_MUST_CHECK;
void graph_free(struct graph *g);

/* Q = sum over communities of in/2m - resolution (deg/2m)^2, in and deg in units of twice the
 * edge weight. comm in 0..n-1. 0 for a graph without edges. */
double graph_modularity(const struct graph *g, const int *comm, double resolution);

/* Fills comm (n entries, numbered from 0 in order of first appearance) with the best of `tries`
 * runs, and returns how many communities. Deterministic for a seed. A run: local moves and
 * aggregation until neither gains, then again from the partition found until that is stable. */
int graph_louvain(const struct graph *g, double resolution, uint64_t seed, int tries, int *comm);

#endif
