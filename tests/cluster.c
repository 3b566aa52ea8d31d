/* Louvain and modularity against values recorded from networkx (tests/data/cluster/make.py), and
 * the counting, layout and hostile-input behaviour of activation records. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "experts/actlog.h"
#include "experts/cluster.h"
#include "base/graph.h"
#include "format/manifest.h"
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
			(int)json_integer_value(json_array_get(j, 1)),
			    json_number_value(json_array_get(j, 2)) };
	ok(o && graph_build(g, (int)json_integer_value(json_object_get(o, "nodes")), edge,
	    (int64_t)json_array_size(edges),
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
		is_close(graph_modularity(g, comm, get(p, "resolution")), get(p, "modularity"),
		    1e-9,
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

			ok(q >= want - 0.01 * fabs(want),
			    "resolution %g, seed %d: %.6f, networkx at best %.6f", r, (int)seed,
			    q, want);
			for (int u = 0; u < g->n; u++) {
				dense &= comm[u] <= seen;
				seen += comm[u] == seen;
			}
			ok(dense && seen == k, "communities are numbered 0..%d", k - 1);
			graph_louvain(g, r, seed, 10, again);
			ok(memcmp(comm, again, (size_t)g->n * sizeof *comm) == 0,
			    "same seed, same communities");
		}
}

static void test_networkx(void)
{
	for (size_t i = 0; i < sizeof graphs / sizeof *graphs; i++) {
		struct graph g = {0};
		json_t *o = load(graphs[i], &g);
		int *comm = calloc((size_t)g.n + 1, sizeof *comm), *again = calloc((size_t)g.n + 1,
		    sizeof *again);

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
	struct edge bad[] = { { 0, 3, 1 }, { -1, 0, 1 }, { 0, 1, 0 }, { 0, 1, -2 }, { 0, 1, NAN },
	    { 0, 1, INFINITY } };
	struct graph g;
	struct err e;
	int comm[3];

	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		e = (struct err){0};
		graph_build(&g, 3, &bad[i], 1, &e);
		ok(e.status == EX_DATAERR, "refused: %s", e.msg);
	}
	ok(graph_build(&g, 3, NULL, 0, &e) == 0 && graph_louvain(&g, 1, 1, 1, comm) == 3,
	    "no edges: every node alone");
	ok(graph_modularity(&g, comm, 1) == 0, "no edges: modularity 0");
	graph_free(&g);
}

static const struct cluster_opt plain_opt = { .w_token = 1, .w_next = 0.5, .resolution = 1,
    .seed = 1, .tries = 3,
	.expert_bytes = 98304, .max_bytes = 64 << 20, .min_bytes = 1 };

static void count_log(struct coact *c, int hold_every)
{
	char *files[] = { "tests/data/cluster/act.jsonl.gz" };
	struct err e = {0};
	struct jsonl *in = jsonl_open(1, files, false, &e);
	struct actlog a;
	int rc;

	ok(in && actlog_open(&a, in, &e) == 0 && a.model.experts == 16 && a.model.top_k == 2,
	    "model record read");
	ok(coact_init(c, &a.model, hold_every, &e) == 0, "counters");
	while ((rc = actlog_next(&a, &e)) == 1)
		coact_add(c, &a.act, &e);
	ok(rc == 0 && c->tokens + c->held_tokens == 1200 && c->sequences == 30,
	    "1200 tokens of 30 sequences %s", e.msg);
	actlog_close(&a);
	jsonl_close(in);
}

/* Every expert of the sparse layers once, no cluster above the cap. */
static int plan_holds(const struct cluster_plan *p, const struct coact *c,
    const struct cluster_opt *o)
{
	char seen[48] = {0};
	int good = p->nodes == 32 && p->start[p->n] == 32;

	for (int i = 0; i < p->nodes; i++)
		good &= c->sparse[p->order[i] / 16] && !seen[p->order[i]]++;
	for (int k = 0; k < p->n; k++)
		good &= p->start[k + 1] > p->start[k]
		    && (p->start[k + 1] - p->start[k]) * manifest_align(o->expert_bytes) <=
		    o->max_bytes;
	return good;
}

static void test_sizes(const struct coact *c)
{
	for (int layout = 0; layout < 3; layout++)
		for (int64_t cap = 1; cap < 20; cap += 3)
			for (int64_t min = 0; min <= cap; min += 2) {
				struct cluster_opt o = plain_opt;
				struct cluster_plan p;
				struct err e = {0};

				o.layout = (enum cluster_layout)layout;
				o.max_bytes = cap * 98304 + 5000;
				o.min_bytes = min * 98304;
				cluster_plan(&p, c, &o, &e);
				ok(e.status == 0 && plan_holds(&p, c, &o),
				    "%s, at most %d and at least %d experts: %d clusters",
				    cluster_layout_name(o.layout), (int)cap,
				    (int)min, p.n);
				cluster_plan_free(&p);
			}
}

static void test_default_sizes(void)
{
	struct actlog_model m = { .layers = 3, .experts = 256, .top_k = 1 };
	struct cluster_opt o = { .expert_bytes = 9000 };
	struct err e = {0};
	struct coact c;

	coact_init(&c, &m, 0, &e);
	c.sparse[1] = c.sparse[2] = true;
	cluster_sizes(&c, &o);
	ok(o.max_bytes == 64 << 20 && o.min_bytes == 4 << 20, "a small model: 64 MiB and 4 MiB");
	o = (struct cluster_opt){ .expert_bytes = 50 << 20 };
	cluster_sizes(&c, &o);
	ok(o.max_bytes == 200 << 20 && o.min_bytes == 50 << 20,
	    "a large one: 1/128 and 1/512 of it");
	o = (struct cluster_opt){ .expert_bytes = 9000, .max_bytes = 20000 };
	cluster_sizes(&c, &o);
	ok(o.max_bytes == 20000 && o.min_bytes == 20000, "as given");
	o = (struct cluster_opt){ .expert_bytes = INT64_MAX / 4 };
	cluster_sizes(&c, &o);
	ok(o.max_bytes == INT64_MAX / 128, "absurd sizes do not overflow");
	coact_free(&c);
}

static void test_plan(void)
{
	struct cluster_opt o = plain_opt;
	struct cluster_plan p;
	struct err e = {0};
	struct coact c;
	char *first = NULL;

	count_log(&c, 10);
	ok(c.held_sequences == 3 && c.held_tokens == 120 && c.held_reads == 480,
	    "every tenth sequence is held out");
	ok(!c.sparse[0] && c.sparse[1] && c.sparse[2], "layer 0 is dense");
	for (int i = 0; i < 2; i++) {
		json_t *m;
		char *text;

		ok(cluster_plan(&p, &c, &o, &e) == 0, "planned %s", e.msg);
		m = cluster_manifest(&p, &c, &o, "5eed", &e);
		text = json_dumps(m, JSON_COMPACT);
		ok(!first || strcmp(first, text) == 0, "the same again");
		json_decref(m);
		cluster_plan_free(&p);
		free(first);
		first = text;
	}
	free(first);
	test_sizes(&c);
	o.max_bytes = 98303;
	cluster_plan(&p, &c, &o, &e);
	ok(e.status == EX_USAGE, "refused: %s", e.msg);
	coact_free(&c);
}

/* Chains and the measure on a case worked by hand: tokens use {0,3} three times and {1,2} once;
 * held out {0,3}, {1,3}. */
static void test_by_hand(void)
{
	struct actlog_model m = { .layers = 1, .experts = 4, .top_k = 2 };
	static const int use[6][2] = { { 0, 3 }, { 3, 0 }, { 1, 2 }, { 0, 3 }, { 0, 3 }, { 1, 3 } };
	struct cluster_opt o = plain_opt;
	struct cluster_plan p;
	struct err e = {0};
	struct coact c;
	int n = 2, id[2];

	coact_init(&c, &m, 2, &e);
	for (int i = 0; i < 6; i++) {
		struct act a = { .seq = i / 4, .pos = i % 4, .first = i % 4 == 0,
		    .next = i % 4 != 0, .n = &n, .id = id };

		memcpy(id, use[i], sizeof id);
		ok(coact_add(&c, &a, &e) == 0, "token %d", i);
	}
	ok(c.token[3] == 3 && c.token[2] == 1 && c.held[3] == 1 && c.held[4] == 1, "pairs counted");
	ok(c.next[3] == 2 && c.next[1] == 2 && c.next[0] == 2,
	    "pairs of neighbouring tokens, none of an expert with itself");
	ok(cluster_plan(&p, &c, &o, &e) == 0, "planned");
	is_close(cluster_sequential(&p, &c), 0.25, 0,
	    "louvain: 0 and 3 are neighbours, 1 read of 4 saved");
	cluster_plan_free(&p);
	o.layout = LAYOUT_LAYER;
	cluster_plan(&p, &c, &o, &e);
	is_close(cluster_sequential(&p, &c), 0, 0, "layer order 0 1 2 3: none saved");
	cluster_plan_free(&p);
	o.layout = LAYOUT_HOT;
	cluster_plan(&p, &c, &o, &e);
	is_close(cluster_sequential(&p, &c), 0.5, 0, "hottest first 0 3 1 2: both saved");
	cluster_plan_free(&p);
	coact_free(&c);
}

static void test_hostile(void)
{
	static const char *const models[] = { "{}", "{\"type\":\"act\"}", "{\"type\":\"model\"}",
		"{\"type\":\"model\",\"layers\":0,\"experts\":4,\"top_k\":1}",
		"{\"type\":\"model\",\"layers\":257,\"experts\":4,\"top_k\":1}",
		"{\"type\":\"model\",\"layers\":256,\"experts\":8192,\"top_k\":1}",
		"{\"type\":\"model\",\"layers\":2,\"experts\":4,\"top_k\":5}",
		"{\"type\":\"model\",\"layers\":2,\"experts\":4.5,\"top_k\":1}",
		"{\"type\":\"model\",\"layers\":2,\"experts\":4,\"top_k\":2,\"expert_bytes\":-1}",
		"{\"type\":\"model\",\"layers\":2,\"experts\":4,\"top_k\":2,\"expert_bytes\":0}",
		"{\"type\":\"model\",\"layers\":2,\"experts\":4,\"top_k\":2,"
		    "\"fingerprint\":\"../x\"}" };
	static const char *const acts[] = { "{}", "{\"type\":\"act\"}",
		"{\"type\":\"act\",\"seq\":0,\"layers\":[[0,1],[]]}",
		    "{\"type\":\"act\",\"seq\":-1,\"pos\":0,\"layers\":[[0,1],[]]}",
		"{\"type\":\"act\",\"seq\":0,\"pos\":0,\"layers\":[[0,1]]}",
		    "{\"type\":\"act\",\"seq\":0,\"pos\":0,\"layers\":[[0,1],[],[]]}",
		"{\"type\":\"act\",\"seq\":0,\"pos\":0,\"layers\":[[0,4],[]]}",
		    "{\"type\":\"act\",\"seq\":0,\"pos\":0,\"layers\":[[-1,1],[]]}",
		"{\"type\":\"act\",\"seq\":0,\"pos\":0,\"layers\":[[1],[]]}",
		    "{\"type\":\"act\",\"seq\":0,\"pos\":0,\"layers\":[[0,1,2],[]]}",
		"{\"type\":\"act\",\"seq\":0,\"pos\":0,\"layers\":[[1,1],[]]}",
		    "{\"type\":\"act\",\"seq\":0,\"pos\":0,\"layers\":[[1,\"2\"],[]]}",
		"{\"type\":\"act\",\"seq\":0,\"pos\":0,\"layers\":[[1,2e9],[]]}",
		    "{\"type\":\"act\",\"seq\":0,\"pos\":0,\"layers\":{}}",
		"{\"type\":\"act\",\"seq\":0,\"pos\":0,\"token\":-3,\"layers\":[[1,2],[]]}" };
	struct actlog_model m;
	int n[2], id[4];
	struct act a = { .n = n, .id = id };
	const char *why;

	for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
		json_t *o = json_loads(models[i], 0, NULL);
		int rc = actlog_parse_model(o, &m, &why);

		ok(o && rc < 0, "model refused: %s", why);
		json_decref(o);
	}
	m = (struct actlog_model){ .layers = 2, .experts = 4, .top_k = 2 };
	for (size_t i = 0; i < sizeof acts / sizeof *acts; i++) {
		json_t *o = json_loads(acts[i], 0, NULL);
		int rc = actlog_parse(o, &m, &a, &why);

		ok(o && rc < 0, "record refused: %s", why);
		json_decref(o);
	}
}

static void test_dense_and_sparse(void)
{
	struct actlog_model m = { .layers = 2, .experts = 4, .top_k = 2 };
	int n[2] = { 2, 0 }, id[4] = { 0, 1, 2, 3 };
	struct act a = { .first = true, .n = n, .id = id };
	struct err e = {0};
	struct coact c;

	coact_init(&c, &m, 0, &e);
	ok(coact_add(&c, &a, &e) == 0, "layer 1 dense");
	n[1] = 2;
	ok(coact_add(&c, &a, &e) < 0 && e.status == EX_DATAERR, "refused: %s", e.msg);
	coact_free(&c);
}

int main(void)
{
	test_networkx();
	test_graph_edges();
	test_by_hand();
	test_default_sizes();
	test_plan();
	test_hostile();
	test_dense_and_sparse();
	return tap_done();
}
