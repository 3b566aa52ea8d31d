#include "experts/cluster.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/graph.h"
#include "format/manifest.h"
#include "base/mem.h"

const char *cluster_layout_name(enum cluster_layout l)
{
	static const char *const name[] = { "louvain", "layer", "hot" };

	return name[l];
}

/* Row of the lower triangle without diagonal. */
static int64_t pair(int a, int b)
{
	int hi = a > b ? a : b, lo = a > b ? b : a;

	return (int64_t)hi * (hi - 1) / 2 + lo;
}

int coact_init(struct coact *c, const struct actlog_model *m, int hold_every, struct err *e)
{
	size_t nodes = (size_t)m->layers * m->experts, all;

	*c = (struct coact){ .layers = m->layers, .experts = m->experts, .top_k = m->top_k,
	    .hold_every = hold_every };
	c->pairs = pair(m->experts, 0);
	all = (size_t)c->pairs * m->layers + 1;
	if (all > (size_t)1 << 30)
		return err_set(e, EX_DATAERR, "%d layers of %d experts are too many pairs to count",
		    m->layers, m->experts);
	/* calloc gives untouched pages, so what a model could use but does not costs nothing. */
	c->token = calloc(all, sizeof *c->token);
	c->next = calloc(all, sizeof *c->next);
	c->held = calloc(hold_every ? all : 1, sizeof *c->held);
	c->heat = calloc(nodes, sizeof *c->heat);
	c->sparse = calloc((size_t)m->layers, sizeof *c->sparse);
	c->prev = calloc((size_t)m->layers * m->top_k, sizeof *c->prev);
	c->nprev = calloc((size_t)m->layers, sizeof *c->nprev);
	if (c->token && c->next && c->held && c->heat && c->sparse && c->prev && c->nprev)
		return 0;
	coact_free(c);
	return err_set(e, EX_OSERR, "out of memory for the pairs of %d layers of %d experts",
	    m->layers, m->experts);
}

void coact_free(struct coact *c)
{
	free(c->token);
	free(c->next);
	free(c->held);
	free(c->heat);
	free(c->sparse);
	free(c->prev);
	free(c->nprev);
	*c = (struct coact){0};
}

static void count_within(uint32_t *tri, const int *id, int n)
{
	for (int i = 0; i < n; i++)
		for (int k = 0; k < i; k++)
			tri[pair(id[i], id[k])]++;
}

/* An expert that stays has no place to move closer to, so equal ids are not counted. */
static void count_next(uint32_t *tri, const int *was, int nwas, const int *id, int n)
{
	for (int i = 0; i < n; i++)
		for (int k = 0; k < nwas; k++)
			if (id[i] != was[k])
				tri[pair(id[i], was[k])]++;
}

static void count_layer(struct coact *c, int l, const int *id, int n, bool held, const int *was,
    int nwas)
{
	if (held) {
		count_within(c->held + l * c->pairs, id, n);
		c->held_reads += n;
		return;
	}
	count_within(c->token + l * c->pairs, id, n);
	count_next(c->next + l * c->pairs, was, nwas, id, n);
	for (int i = 0; i < n; i++)
		c->heat[(int64_t)l * c->experts + id[i]]++;
}

int coact_add(struct coact *c, const struct act *a, struct err *e)
{
	bool begun = c->tokens + c->held_tokens > 0, held;

	for (int l = 0; l < c->layers; l++) {
		if (begun && c->sparse[l] != (a->n[l] > 0))
			return err_set(e, EX_DATAERR, "layer %d is both dense and sparse", l);
		c->sparse[l] = a->n[l] > 0;
	}
	if (a->first || !begun)
		c->sequences++;
	held = c->hold_every && c->sequences % c->hold_every == 0;
	c->held_sequences += held && (a->first || !begun);
	*(held ? &c->held_tokens : &c->tokens) += 1;
	for (int l = 0; l < c->layers; l++) {
		int *prev = c->prev + (int64_t)l * c->top_k;
		const int *id = a->id + (int64_t)l * c->top_k;

		count_layer(c, l, id, a->n[l], held, prev, a->next ? c->nprev[l] : 0);
		memcpy(prev, id, (size_t)a->n[l] * sizeof *id);
		c->nprev[l] = a->n[l];
	}
	return 0;
}

/* One layer while its experts are put in order. */
struct layer {
	const struct coact *c;
	const struct cluster_opt *o;
	int l, cap;			/* cap: experts that fit in a cluster */
	const uint32_t *token, *next;	/* (pairs) */
	const int64_t *heat;		/* (experts) */
};

static double weight(const struct layer *y, int a, int b)
{
	int64_t i = pair(a, b);

	return y->o->w_token * y->token[i] + y->o->w_next * y->next[i];
}

static int layer_graph(const struct layer *y, struct graph *g, struct err *e)
{
	int64_t m = 0, k = 0;
	struct edge *edge;
	int rc;

	for (int a = 1; a < y->c->experts; a++)
		for (int b = 0; b < a; b++)
			m += weight(y, a, b) > 0;
	edge = mem_alloc(((size_t)m + 1) * sizeof *edge);
	for (int a = 1; a < y->c->experts; a++)
		for (int b = 0; b < a; b++)
			if (weight(y, a, b) > 0)
				edge[k++] = (struct edge){ b, a, weight(y, a, b) };
	rc = graph_build(g, y->c->experts, edge, m, e);
	mem_free(edge);
	return rc;
}

struct item {			/* something to sort: hottest or heaviest first, then by id, so
				   that order is total */
	double key;
	int a, b;
};

static int by_key(const void *p, const void *q)
{
	const struct item *x = p, *y = q;

	if (x->key != y->key)
		return x->key < y->key ? 1 : -1;
	if (x->a != y->a)
		return x->a < y->a ? -1 : 1;
	return (x->b > y->b) - (x->b < y->b);
}

static void sort_hot(const struct layer *y, int *id, int n)
{
	struct item *s = mem_alloc((size_t)n * sizeof *s);

	for (int i = 0; i < n; i++)
		s[i] = (struct item){ (double)y->heat[id[i]], id[i], 0 };
	qsort(s, (size_t)n, sizeof *s, by_key);
	for (int i = 0; i < n; i++)
		id[i] = s[i].a;
	mem_free(s);
}

struct chain {			/* paths that grow by joining ends; indices are positions in the
				   id list */
	int *nb;		/* (n, 2) neighbours, -1 none */
	int *end;		/* (n) of an end: the other end of its path */
};

static void join(struct chain *c, int a, int b)
{
	int far_a = c->end[a], far_b = c->end[b];

	c->nb[2 * a + (c->nb[2 * a] >= 0)] = b;
	c->nb[2 * b + (c->nb[2 * b] >= 0)] = a;
	c->end[far_a] = far_b;
	c->end[far_b] = far_a;
}

static void join_heaviest(const struct layer *y, const int *id, int n, struct chain *c)
{
	struct item *s;
	size_t m = 0;

	for (int a = 0; a < n; a++)
		for (int b = 0; b < a; b++)
			m += y->token[pair(id[a], id[b])] > 0;
	s = mem_alloc(m * sizeof *s);
	m = 0;
	for (int a = 0; a < n; a++)
		for (int b = 0; b < a; b++)
			if (y->token[pair(id[a], id[b])] > 0)
				s[m++] = (struct item){ y->token[pair(id[a], id[b])], b, a };
	qsort(s, m, sizeof *s, by_key);
	for (size_t i = 0; i < m; i++) {
		int a = s[i].a, b = s[i].b;

		if (c->nb[2 * a + 1] < 0 && c->nb[2 * b + 1] < 0 && c->end[a] != b)
			join(c, a, b);
	}
	mem_free(s);
}

/* Orders id so that experts of one token follow each other: pairs are joined to paths, heaviest
 * first (the greedy matching of path covers), and paths come by their hotter end. Only reads of
 * one token can be joined on disk, so w_next has no say here. */
static void chain_order(const struct layer *y, int *id, int n)
{
	struct chain c = { mem_alloc(2 * (size_t)n * sizeof(int)),
	    mem_alloc((size_t)n * sizeof(int)) };
	int *out = mem_alloc((size_t)n * sizeof *out), k = 0;

	sort_hot(y, id, n);
	for (int i = 0; i < n; i++) {
		c.nb[2 * i] = c.nb[2 * i + 1] = -1;
		c.end[i] = i;
	}
	join_heaviest(y, id, n, &c);
	for (int i = 0; i < n; i++)
		/* a path not yet walked, from its hotter end */
		if (c.nb[2 * i + 1] < 0 && c.end[i] >= 0) {
			c.end[c.end[i]] = -1;
			for (int at = i, from = -1; at >= 0;) {
				int to = c.nb[2 * at] == from ? c.nb[2 * at + 1] : c.nb[2 * at];

				out[k++] = id[at];
				from = at;
				at = to;
			}
			c.end[i] = -1;
		}
	memcpy(id, out, (size_t)n * sizeof *id);
	mem_free(out);
	mem_free(c.nb);
	mem_free(c.end);
}

/* Puts first the n best of id[0..all): the hottest, then always the one with most weight to
 * those taken. */
static void take_heavy(const struct layer *y, int *id, int all, int n)
{
	double *pull = mem_alloc((size_t)all * sizeof *pull);

	for (int k = 0; k < n; k++) {
		int best = k, t;
		double p;

		for (int i = k; i < all; i++) {
			if (k > 0)
				pull[i] += weight(y, id[k - 1], id[i]);
			if (pull[i] > pull[best] || (k == 0 && y->heat[id[i]] > y->heat[id[best]]))
				best = i;
		}
		t = id[best]; id[best] = id[k]; id[k] = t;
		p = pull[best]; pull[best] = pull[k]; pull[k] = p;
	}
	mem_free(pull);
}

static void put_group(struct cluster_plan *p, const struct layer *y, const int *id, int n)
{
	p->start[p->n++] = p->nodes;
	for (int i = 0; i < n; i++)
		p->order[p->nodes++] = y->l * y->c->experts + id[i];
}

/* Groups of equal size, none above cap. */
static int pieces(int n, int cap, int i)
{
	int k = (n + cap - 1) / cap;

	return n / k + (i < n % k);
}

static void put_community(struct cluster_plan *p, const struct layer *y, int *id, int n)
{
	int k = (n + y->cap - 1) / y->cap;

	for (int i = 0, at = 0; i < k; i++) {
		int m = pieces(n, y->cap, i);

		take_heavy(y, id + at, n - at, m);
		chain_order(y, id + at, m);
		put_group(p, y, id + at, m);
		at += m;
	}
}

static int put_louvain(struct cluster_plan *p, const struct layer *y, struct err *e)
{
	int E = y->c->experts, *comm, *id, k;
	struct item *by_heat;
	struct graph g;

	if (layer_graph(y, &g, e) < 0)
		return -1;
	comm = mem_alloc((size_t)E * sizeof *comm);
	id = mem_alloc((size_t)E * sizeof *id);
	k = graph_louvain(&g, y->o->resolution, y->o->seed + (uint64_t)y->l, y->o->tries, comm);
	p->communities += k;
	by_heat = mem_alloc((size_t)k * sizeof *by_heat);
	for (int i = 0; i < k; i++)
		by_heat[i].a = i;
	for (int x = 0; x < E; x++)
		by_heat[comm[x]].key += (double)y->heat[x];
	qsort(by_heat, (size_t)k, sizeof *by_heat, by_key);
	p->modularity += graph_modularity(&g, comm, y->o->resolution);
	for (int i = 0; i < k; i++) {
		int n = 0;

		for (int x = 0; x < E; x++)
			if (comm[x] == by_heat[i].a)
				id[n++] = x;
		put_community(p, y, id, n);
	}
	mem_free(by_heat);
	mem_free(comm);
	mem_free(id);
	graph_free(&g);
	return 0;
}

static void put_plain(struct cluster_plan *p, const struct layer *y)
{
	int E = y->c->experts, *id = mem_alloc((size_t)E * sizeof *id), k = (E + y->cap - 1) /
	    y->cap;

	for (int x = 0; x < E; x++)
		id[x] = x;
	if (y->o->layout == LAYOUT_HOT)
		sort_hot(y, id, E);
	for (int i = 0, at = 0; i < k; at += pieces(E, y->cap, i++))
		put_group(p, y, id + at, pieces(E, y->cap, i));
	mem_free(id);
}

/* Joins groups that follow each other until a cluster has min_bytes, never above max_bytes. */
static void join_small(struct cluster_plan *p, const struct cluster_opt *o)
{
	int64_t slot = manifest_align(o->expert_bytes), min = (o->min_bytes + slot - 1) / slot,
	    cap = o->max_bytes / slot;
	int n = 0;

	for (int i = 0; i < p->n; i++) {
		int end = i + 1 < p->n ? p->start[i + 1] : p->nodes;

		if (n > 0 && p->start[i] - p->start[n - 1] < min && end - p->start[n - 1] <= cap)
			continue;
		p->start[n++] = p->start[i];
	}
	p->n = n;
	p->start[n] = p->nodes;
}

static int layer_modularity(const struct layer *y, const int *cluster, struct cluster_plan *p,
    int *layers,
    struct err *e)
{
	struct graph g;

	if (layer_graph(y, &g, e) < 0)
		return -1;
	p->edges += g.row[g.n] / 2;
	p->cluster_modularity += graph_modularity(&g, cluster, y->o->resolution);
	*layers += g.total > 0;
	graph_free(&g);
	return 0;
}

static struct layer layer_of(const struct coact *c, const struct cluster_opt *o, int l, int64_t cap)
{
	return (struct layer){ .c = c, .o = o, .l = l, .cap = cap > c->experts ? c->experts
	    : (int)cap,
		.token = c->token + l * c->pairs, .next = c->next + l * c->pairs,
		.heat = c->heat + (int64_t)l * c->experts };
}

/* Numbers of the clusters as a partition of each layer. */
static int measure(struct cluster_plan *p, const struct coact *c, const struct cluster_opt *o,
    struct err *e)
{
	int E = c->experts, layers = 0, rc = 0;
	int *cluster = mem_alloc((size_t)c->layers * E * sizeof *cluster);

	for (int k = 0, first = 0; k < p->n; k++)
		for (int i = p->start[k]; i < p->start[k + 1]; i++) {
			/* graph_modularity wants numbers below E: those of a layer are
			 * consecutive, as files go by layer. */
			if (i == 0 || p->order[i] / E != p->order[i - 1] / E)
				first = k;
			cluster[p->order[i]] = k - first;
		}
	for (int l = 0; rc == 0 && l < c->layers; l++) {
		struct layer y = layer_of(c, o, l, E);

		if (c->sparse[l])
			rc = layer_modularity(&y, cluster + (int64_t)l * E, p, &layers, e);
	}
	mem_free(cluster);
	if (layers) {
		p->modularity /= layers;
		p->cluster_modularity /= layers;
	}
	return rc;
}

void cluster_sizes(const struct coact *c, struct cluster_opt *o)
{
	int64_t layers = 0, all;

	for (int l = 0; l < c->layers; l++)
		layers += c->sparse[l];
	if (__builtin_mul_overflow(manifest_align(o->expert_bytes), layers * c->experts, &all))
		all = INT64_MAX;
	if (!o->max_bytes)
		o->max_bytes = all / 128 > 64 << 20 ? all / 128 : 64 << 20;
	if (!o->min_bytes)
		o->min_bytes = all / 512 > 4 << 20 ? all / 512 : 4 << 20;
	if (o->min_bytes > o->max_bytes)
		o->min_bytes = o->max_bytes;
}

int cluster_plan(struct cluster_plan *p, const struct coact *c, const struct cluster_opt *o,
    struct err *e)
{
	size_t nodes = (size_t)c->layers * c->experts;
	int64_t slot = manifest_align(o->expert_bytes), cap = o->max_bytes / slot;
	int rc = 0;

	*p = (struct cluster_plan){0};
	if (c->tokens == 0)
		return err_set(e, EX_DATAERR, "no activation records%s", c->held_tokens
		    ? " but held-out ones" : "");
	if (cap < 1)
		return err_set(e, EX_USAGE, "--max-bytes %lld is below one expert (%lld bytes)",
		    (long long)o->max_bytes,
		    (long long)slot);
	p->order = mem_alloc(nodes * sizeof *p->order);
	p->start = mem_alloc((nodes + 1) * sizeof *p->start);
	for (int l = 0; rc == 0 && l < c->layers; l++) {
		struct layer y = layer_of(c, o, l, cap);

		if (!c->sparse[l])
			continue;
		if (o->layout == LAYOUT_LOUVAIN)
			rc = put_louvain(p, &y, e);
		else
			put_plain(p, &y);
	}
	if (rc == 0) {
		join_small(p, o);
		rc = measure(p, c, o, e);
	}
	if (rc < 0)
		cluster_plan_free(p);
	return rc;
}

void cluster_plan_free(struct cluster_plan *p)
{
	mem_free(p->order);
	mem_free(p->start);
	*p = (struct cluster_plan){0};
}

double cluster_sequential(const struct cluster_plan *p, const struct coact *c)
{
	int64_t joined = 0;

	/* A pair of file neighbours saves one read whenever a token needs both, so pair counts
	 * are enough. */
	for (int k = 0; c->held_reads && k < p->n; k++)
		for (int i = p->start[k] + 1; i < p->start[k + 1]; i++) {
			int a = p->order[i - 1], b = p->order[i], l = b / c->experts;

			if (a / c->experts == l)
				joined += c->held[l * c->pairs + pair(a % c->experts,
				    b % c->experts)];
		}
	return c->held_reads ? (double)joined / (double)c->held_reads : NAN;
}

/* The held-out measure of the plan and of the two plain orders under the same sizes. */
static json_t *sequential_json(const struct cluster_plan *p, const struct coact *c,
    const struct cluster_opt *o,
    struct err *e)
{
	json_t *s = json_object();

	json_set_int(s, "sequences", c->held_sequences);
	json_set_int(s, "tokens", c->held_tokens);
	json_set_int(s, "reads", c->held_reads);
	json_set_num(s, "fraction", cluster_sequential(p, c));
	for (enum cluster_layout l = LAYOUT_LAYER; l <= LAYOUT_HOT; l++) {
		struct cluster_opt plain = *o;
		struct cluster_plan q;

		plain.layout = l;
		if (cluster_plan(&q, c, &plain, e) < 0) {
			json_decref(s);
			return NULL;
		}
		json_set_num(s, l == LAYOUT_LAYER ? "fraction_layer" : "fraction_hot",
		    cluster_sequential(&q, c));
		cluster_plan_free(&q);
	}
	return s;
}

static json_t *clustering_json(const struct cluster_plan *p, const struct coact *c,
    const struct cluster_opt *o,
    struct err *e)
{
	json_t *j = json_object(), *s = sequential_json(p, c, o, e);

	json_set_str(j, "layout", cluster_layout_name(o->layout));
	json_set_int(j, "seed", (int64_t)o->seed);
	json_set_num(j, "w_token", o->w_token);
	json_set_num(j, "w_next", o->w_next);
	json_set_num(j, "resolution", o->resolution);
	json_set_int(j, "max_bytes", o->max_bytes);
	json_set_int(j, "min_bytes", o->min_bytes);
	json_set_int(j, "expert_bytes", o->expert_bytes);
	json_set_int(j, "sequences", c->sequences - c->held_sequences);
	json_set_int(j, "tokens", c->tokens);
	json_set_int(j, "edges", p->edges);
	json_set_int(j, "communities", p->communities);
	json_set_num(j, "modularity", o->layout == LAYOUT_LOUVAIN ? p->modularity : NAN);
	json_set_num(j, "cluster_modularity", p->cluster_modularity);
	if (s)
		json_object_set_new(j, "held_out", s);
	else {
		json_decref(j);
		j = NULL;
	}
	return j;
}

/* The manifest of a plan; takes over the reference to clustering, which says how it was made. */
static int plan_manifest(struct manifest *m, const struct cluster_plan *p, const struct coact *c,
    json_t *clustering, struct err *e)
{
	if (manifest_init(m, c->layers, c->experts, p->n, e) < 0) {
		json_decref(clustering);
		return -1;
	}
	for (int k = 0; k < p->n; k++)
		for (int i = p->start[k]; i < p->start[k + 1]; i++)
			m->place[p->order[i]] = (struct place){ .cluster = k,
			    .rank = i - p->start[k] };
	json_object_set_new(m->raw, "clustering", clustering);
	return 0;
}

json_t *cluster_manifest(const struct cluster_plan *p, const struct coact *c,
    const struct cluster_opt *o,
    const char *fingerprint, struct err *e)
{
	json_t *stats = clustering_json(p, c, o, e), *out;
	struct manifest m;

	if (!stats || plan_manifest(&m, p, c, stats, e) < 0)
		return NULL;
	if (*fingerprint)
		m.fingerprint = strdup(fingerprint);
	out = manifest_json(&m);
	manifest_free(&m);
	if (!out)
		err_set(e, EX_OSERR, "out of memory");
	return out;
}

int cluster_in_order(struct manifest *m, const struct config *cfg, int64_t expert_bytes,
    struct err *e)
{
	struct cluster_opt o = { .layout = LAYOUT_LAYER, .expert_bytes = expert_bytes };
	struct coact c = { .layers = cfg->num_hidden_layers, .experts = cfg->num_experts };
	size_t nodes = (size_t)c.layers * (size_t)c.experts;
	struct cluster_plan p = { .order = mem_alloc(nodes * sizeof *p.order),
	    .start = mem_alloc((nodes + 1) * sizeof *p.start) };
	int64_t cap;
	int rc;

	c.sparse = mem_alloc((size_t)c.layers * sizeof *c.sparse);
	for (int l = 0; l < c.layers; l++)
		c.sparse[l] = cfg->block[l].sparse;
	cluster_sizes(&c, &o);
	cap = mem_max(o.max_bytes / manifest_align(expert_bytes), 1);
	for (int l = 0; l < c.layers; l++)
		if (c.sparse[l])
			put_plain(&p, &(struct layer){ .c = &c, .o = &o, .l = l,
			    .cap = cap < c.experts ? (int)cap : c.experts });
	join_small(&p, &o);
	rc = plan_manifest(m, &p, &c, json_pack("{s:s, s:I, s:I, s:I}", "layout", "layer",
	    "max_bytes", (json_int_t)o.max_bytes, "min_bytes", (json_int_t)o.min_bytes,
	    "expert_bytes", (json_int_t)expert_bytes), e);
	cluster_plan_free(&p);
	mem_free(c.sparse);
	return rc;
}
