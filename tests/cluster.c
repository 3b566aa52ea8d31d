/* Louvain and modularity against values recorded from networkx (tests/data/cluster/make.py), and the counting, layout
 * and hostile-input behaviour of activation records. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "graph.h"
#include "tap.h"

static const char *graphs[] = { "karate", "miserables", "planted", "loops", "tokens", "ring" };

static json_t *load(const char *name, struct graph *g)
{
	char path[128];
	json_t *o, *edges, *j;
	struct edge *edge;
	struct err e = {0};
	size_t i;

	snprintf(path, sizeof path, "tests/data/cluster/%s.json", name);
	o = json_load_file(path, 0, NULL);
	edges = json_object_get(o, "edges");
	edge = calloc(json_array_size(edges) + 1, sizeof *edge);
	json_array_foreach(edges, i, j)
		edge[i] = (struct edge){ (int)json_integer_value(json_array_get(j, 0)),
			(int)json_integer_value(json_array_get(j, 1)), json_number_value(json_array_get(j, 2)) };
	ok(o && graph_build(g, (int)json_integer_value(json_object_get(o, "nodes")), edge, (int64_t)json_array_size(edges),
	    &e) == 0, "%s: %d nodes, %d edges", name, g->n, (int)json_array_size(edges));
	free(edge);
	return o;
}

static double get(const json_t *o, const char *key)
{
	return json_number_value(json_object_get(o, key));
}

static void check_modularity(const struct graph *g, const json_t *o, int *comm)
{
	json_t *p, *c;
	size_t i, u;

	json_array_foreach(json_object_get(o, "partitions"), i, p) {
		json_array_foreach(json_object_get(p, "comm"), u, c)
			comm[u] = (int)json_integer_value(c);
		is_close(graph_modularity(g, comm, get(p, "resolution")), get(p, "modularity"), 1e-9,
		    "modularity of a given partition");
	}
}

static void check_louvain(const struct graph *g, const json_t *o, int *comm, int *again)
{
	json_t *b;
	size_t i;

	json_array_foreach(json_object_get(o, "best"), i, b)
		for (uint64_t seed = 1; seed <= 3; seed++) {
			double r = get(b, "resolution"), want = get(b, "modularity");
			int k = graph_louvain(g, r, seed, 10, comm), seen = 0, dense = 1;
			double q = graph_modularity(g, comm, r);

			ok(q >= want - 0.01 * fabs(want), "resolution %g, seed %d: %.6f, networkx at best %.6f", r, (int)seed,
			    q, want);
			for (int u = 0; u < g->n; u++) {
				dense &= comm[u] <= seen;
				seen += comm[u] == seen;
			}
			ok(dense && seen == k, "communities are numbered 0..%d", k - 1);
			graph_louvain(g, r, seed, 10, again);
			ok(memcmp(comm, again, (size_t)g->n * sizeof *comm) == 0, "same seed, same communities");
		}
}

static void test_networkx(void)
{
	for (size_t i = 0; i < sizeof graphs / sizeof *graphs; i++) {
		struct graph g = {0};
		json_t *o = load(graphs[i], &g);
		int *comm = calloc((size_t)g.n + 1, sizeof *comm), *again = calloc((size_t)g.n + 1, sizeof *again);

		check_modularity(&g, o, comm);
		check_louvain(&g, o, comm, again);
		free(comm);
		free(again);
		graph_free(&g);
		json_decref(o);
	}
}

static void test_graph_edges(void)
{
	struct edge bad[] = { { 0, 3, 1 }, { -1, 0, 1 }, { 0, 1, 0 }, { 0, 1, -2 }, { 0, 1, NAN }, { 0, 1, INFINITY } };
	struct graph g;
	struct err e;
	int comm[3];

	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		e = (struct err){0};
		ok(graph_build(&g, 3, &bad[i], 1, &e) < 0 && e.status == EX_DATAERR, "refused: %s", e.msg);
	}
	ok(graph_build(&g, 3, NULL, 0, &e) == 0 && graph_louvain(&g, 1, 1, 1, comm) == 3, "no edges: every node alone");
	ok(graph_modularity(&g, comm, 1) == 0, "no edges: modularity 0");
	graph_free(&g);
}

int main(void)
{
	test_networkx();
	test_graph_edges();
	return tap_done();
}
