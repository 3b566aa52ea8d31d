#include "format/manifest.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "arch/config.h"
#include "base/file.h"
#include "base/jsonfile.h"

#define DENSE "dense_crc32"

struct parse {			/* what the functions below share */
	struct manifest *m;
	const char *name;
	struct err *e;
	int *members;		/* (layers) experts seen so far */
	int cluster, rank;	/* where the next expert goes */
	int64_t end;		/* of the last expert in this file */
};

static int get_int(const struct parse *p, const json_t *o, const char *key, int64_t lo, int64_t hi,
    int64_t *v)
{
	return jsonfile_int(o, key, lo, hi, v, p->name, p->e);
}

int manifest_init(struct manifest *m, int layers, int experts, int nclusters, struct err *e)
{
	char name[32];

	*m = (struct manifest){ .layers = layers, .experts = experts };
	if (layers < 1 || layers > CFG_MAX_LAYERS || experts < 1 || experts > MANIFEST_MAX /
	    layers || nclusters < 0
	    || nclusters > MANIFEST_MAX)
		return err_set(e, EX_DATAERR, "a manifest cannot have %d layers, %d experts, %d "
		    "clusters", layers,
		    experts, nclusters);
	m->place = calloc((size_t)layers * experts, sizeof *m->place);
	m->file = calloc((size_t)nclusters + 1, sizeof *m->file);
	m->raw = json_object();
	if (!m->place || !m->file || !m->raw)
		goto nomem;
	for (int i = 0; i < layers * experts; i++)
		m->place[i].cluster = -1;
	for (; m->nclusters < nclusters; m->nclusters++) {
		snprintf(name, sizeof name, "cluster_%03d.ctsr", m->nclusters);
		if (!(m->file[m->nclusters] = strdup(name)))
			goto nomem;
	}
	return 0;
nomem:
	manifest_free(m);
	return err_set(e, EX_OSERR, "out of memory for a manifest of %d layers, %d experts", layers,
	    experts);
}

void manifest_free(struct manifest *m)
{
	for (int i = 0; m->file && i < m->nclusters; i++)
		free(m->file[i]);
	free(m->file);
	free(m->place);
	free(m->fingerprint);
	json_decref(m->raw);
	*m = (struct manifest){0};
}

/* A name that can only be a file of ours in the packed directory itself. */
static bool plain_name(const json_t *j)
{
	const char *s = json_string_value(j);
	size_t n = json_string_length(j);

	return s && n > 5 && n < 256 && strlen(s) == n && s[0] != '.' && !strchr(s, '/')
	    && strcmp(s + n - 5, ".ctsr") == 0;
}

static int parse_place(struct parse *p, const json_t *o, struct place *pl)
{
	const struct manifest *m = p->m;
	int64_t crc, want = m->gate_bytes + m->up_bytes + m->down_bytes;

	if (get_int(p, o, "offset", 0, INT64_MAX / 2, &pl->offset) < 0
	    || get_int(p, o, "bytes", 1, INT64_MAX / 2, &pl->bytes) < 0
	    || get_int(p, o, "crc32", 0, UINT32_MAX, &crc) < 0)
		return -1;
	if (pl->bytes != want)
		return err_set(p->e, EX_DATAERR, "%s: an expert of %lld bytes, where gate, up and "
		    "down are %lld", p->name,
		    (long long)pl->bytes, (long long)want);
	if (pl->offset % MANIFEST_ALIGN || pl->offset < p->end)
		return err_set(p->e, EX_DATAERR, "%s: offset %lld in %s is not a multiple of %d "
		    "after %lld", p->name,
		    (long long)pl->offset, m->file[p->cluster], MANIFEST_ALIGN, (long long)p->end);
	p->end = pl->offset + pl->bytes;
	pl->crc = (uint32_t)crc;
	return 0;
}

/* The expert's entry, taken by the cluster being read; NULL when another had it. */
static struct place *take(struct parse *p, int64_t layer, int64_t expert)
{
	struct place *pl = manifest_at(p->m, (int)layer, (int)expert);

	if (pl->cluster >= 0) {
		err_set(p->e, EX_DATAERR, "%s: layer %lld, expert %lld is in two places", p->name,
		    (long long)layer,
		    (long long)expert);
		return NULL;
	}
	pl->cluster = p->cluster;
	pl->rank = p->rank++;
	p->members[layer]++;
	return pl;
}

static int parse_member(struct parse *p, const json_t *o)
{
	int64_t layer, expert;
	struct place *pl;

	if (get_int(p, o, "layer", 0, p->m->layers - 1, &layer) < 0
	    || get_int(p, o, "expert", 0, p->m->experts - 1, &expert) < 0 ||
	    !(pl = take(p, layer, expert)))
		return -1;
	return p->m->packed ? parse_place(p, o, pl) : 0;
}

/* The reference's form: the cluster holds these experts of every layer. */
static int parse_experts(struct parse *p, const json_t *ids)
{
	if (p->m->packed)
		return err_set(p->e, EX_DATAERR, "%s: cluster %d has no \"members\"", p->name,
		    p->cluster);
	for (int l = 0; l < p->m->layers; l++)
		for (size_t i = 0; i < json_array_size(ids); i++) {
			const json_t *id = json_array_get(ids, i);
			json_int_t x = json_integer_value(id);

			if (!json_is_integer(id) || x < 0 || x >= p->m->experts)
				return err_set(p->e, EX_DATAERR, "%s: bad expert id in cluster %d",
				    p->name, p->cluster);
			if (!take(p, l, x))
				return -1;
		}
	return 0;
}

static int parse_cluster(struct parse *p, const json_t *o, json_t *names)
{
	const json_t *file = json_object_get(o, "file"), *list = json_object_get(o, "members"), *j;
	size_t i;

	p->rank = 0;
	p->end = 0;
	if (!plain_name(file))
		return err_set(p->e, EX_DATAERR, "%s: cluster %d: \"file\" is not a plain name "
		    "ending in .ctsr", p->name,
		    p->cluster);
	if (json_object_get(names, json_string_value(file)))
		return err_set(p->e, EX_DATAERR, "%s: two clusters in %s", p->name,
		    json_string_value(file));
	free(p->m->file[p->cluster]);
	p->m->file[p->cluster] = strdup(json_string_value(file));
	if (!p->m->file[p->cluster] || json_object_set_new(names, json_string_value(file),
	    json_true()) < 0)
		return err_set(p->e, EX_OSERR, "out of memory");
	if (!list && json_is_array(json_object_get(o, "experts")))
		return parse_experts(p, json_object_get(o, "experts"));
	if (!json_is_array(list))
		return err_set(p->e, EX_DATAERR, "%s: cluster %d has no \"members\"", p->name,
		    p->cluster);
	json_array_foreach(list, i, j)
		if (parse_member(p, j) < 0)
			return -1;
	return 0;
}

/* One type for gate, up and down, or a list of one for each. */
static int parse_types(const json_t *j, enum dtype t[3])
{
	for (size_t i = 0; i < 3; i++) {
		const char *name = json_string_value(json_is_array(j) ? json_array_get(j, i) : j);

		if (!name || dtype_parse(name, &t[i]) < 0 || t[i] == DT_F64)
			return -1;
	}
	if (dtype_rounded(t[0]) != dtype_rounded(t[1]) ||
	    dtype_rounded(t[0]) != dtype_rounded(t[2]))
		return -1;
	return json_is_array(j) && json_array_size(j) != 3 ? -1 : 0;
}

/* CRCs of the other tensors: kept in raw, where manifest_dense() finds them. */
static int parse_dense(struct parse *p, const json_t *o)
{
	json_t *dense = json_object_get(o, DENSE);
	const char *name;
	int64_t crc;
	json_t *v;

	if (dense && !json_is_object(dense))
		return err_set(p->e, EX_DATAERR, "%s: \"" DENSE "\" is not an object", p->name);
	json_object_foreach(dense, name, v)
		if (get_int(p, dense, name, 0, UINT32_MAX, &crc) < 0)
			return -1;
	return 0;
}

/* Keys only a packed manifest has: all of them or none. */
static int parse_packed(struct parse *p, const json_t *o)
{
	const json_t *dt = json_object_get(o, "dtype");
	struct manifest *m = p->m;
	int64_t top = INT64_MAX / 8;

	if (!dt)
		return 0;
	if (parse_types(dt, m->dt) < 0)
		return err_set(p->e, EX_DATAERR, "%s: \"dtype\" is neither F32, BF16 or F16, nor "
		    "Q8, Q4 or Q4A, nor three of one "
		    "kind", p->name);
	if (get_int(p, o, "gate_bytes", 1, top, &m->gate_bytes) < 0 || get_int(p, o, "up_bytes", 1,
	    top, &m->up_bytes) < 0
	    || get_int(p, o, "down_bytes", 1, top, &m->down_bytes) < 0)
		return -1;
	if (!m->fingerprint)
		return err_set(p->e, EX_DATAERR, "%s: missing \"fingerprint\"", p->name);
	m->packed = true;
	return 0;
}

static int parse_fingerprint(struct parse *p, const json_t *o)
{
	const json_t *f = json_object_get(o, "fingerprint");
	const char *s = json_string_value(f);

	if (!f || json_is_null(f))
		return 0;
	if (!s || !*s || strlen(s) > 128 || strspn(s, "0123456789abcdef") != json_string_length(f))
		return err_set(p->e, EX_DATAERR, "%s: \"fingerprint\" is not a hex string",
		    p->name);
	if (!(p->m->fingerprint = strdup(s)))
		return err_set(p->e, EX_OSERR, "out of memory");
	return 0;
}

static int parse_clusters(struct parse *p, const json_t *list)
{
	json_t *names = json_object();
	int rc = names ? 0 : err_set(p->e, EX_OSERR, "out of memory");

	for (p->cluster = 0; rc == 0 && p->cluster < p->m->nclusters; p->cluster++)
		rc = parse_cluster(p, json_array_get(list, (size_t)p->cluster), names);
	json_decref(names);
	for (int l = 0; rc == 0 && l < p->m->layers; l++)
		if (p->members[l] && p->members[l] != p->m->experts)
			rc = err_set(p->e, EX_DATAERR, "%s: layer %d has %d of %d experts", p->name,
			    l, p->members[l],
			    p->m->experts);
	return rc;
}

static int parse_object(struct parse *p, const json_t *o)
{
	const json_t *clusters = json_object_get(o, "clusters");
	int64_t layers, experts, version;

	if (!json_is_object(o))
		return err_set(p->e, EX_DATAERR, "%s: not a JSON object", p->name);
	if (get_int(p, o, "version", 1, 1, &version) < 0 || get_int(p, o, "num_layers", 1,
	    CFG_MAX_LAYERS, &layers) < 0
	    || get_int(p, o, "num_experts", 1, MANIFEST_MAX / layers, &experts) < 0)
		return -1;
	if (!json_is_array(clusters) || json_array_size(clusters) > (size_t)(layers * experts))
		return err_set(p->e, EX_DATAERR, "%s: \"clusters\" is not a list of at most %lld",
		    p->name,
		    (long long)(layers * experts));
	if (manifest_init(p->m, (int)layers, (int)experts, (int)json_array_size(clusters), p->e) <
	    0)
		return -1;
	if (!(p->members = calloc((size_t)layers, sizeof *p->members)))
		return err_set(p->e, EX_OSERR, "out of memory");
	json_decref(p->m->raw);
	/* shallow, so o may be freed but is not changed */
	if (!(p->m->raw = json_copy((json_t *)(uintptr_t)o)))
		return err_set(p->e, EX_OSERR, "out of memory");
	if (parse_fingerprint(p, o) < 0 || parse_packed(p, o) < 0 || parse_dense(p, o) < 0)
		return -1;
	return parse_clusters(p, clusters);
}

int manifest_parse(struct manifest *m, const json_t *o, const char *name, struct err *e)
{
	struct parse p = { .m = m, .name = name, .e = e };
	int rc;

	*m = (struct manifest){0};
	rc = parse_object(&p, o);
	free(p.members);
	if (rc < 0)
		manifest_free(m);
	return rc;
}

int manifest_load(struct manifest *m, const char *path, struct err *e)
{
	json_t *o = jsonfile_input(path, e);
	int rc;

	*m = (struct manifest){0};
	if (!o)
		return -1;
	rc = manifest_parse(m, o, strcmp(path, "-") == 0 ? "<stdin>" : path, e);
	json_decref(o);
	return rc;
}

int manifest_load_dir(struct manifest *m, const char *dir, struct err *e)
{
	char *path = file_join(dir, MANIFEST_NAME);
	json_t *o = jsonfile_load(path, e);
	int rc = -1;

	*m = (struct manifest){0};
	if (o)
		rc = manifest_parse(m, o, path, e);
	json_decref(o);
	free(path);
	return rc;
}

bool manifest_has_dense(const struct manifest *m)
{
	return json_object_get(m->raw, DENSE) != NULL;
}

bool manifest_dense(const struct manifest *m, const char *name, uint32_t *crc)
{
	const json_t *v = json_object_get(json_object_get(m->raw, DENSE), name);

	*crc = (uint32_t)json_integer_value(v);
	return v != NULL;
}

void manifest_clear_dense(struct manifest *m)
{
	json_object_set_new(m->raw, DENSE, json_object());
}

void manifest_set_dense(struct manifest *m, const char *name, uint32_t crc)
{
	json_object_set_new(json_object_get(m->raw, DENSE), name, json_integer(crc));
}

int manifest_order(const struct manifest *m, int **order, int **start, struct err *e)
{
	int all = m->layers * m->experts, n = 0;

	*order = calloc((size_t)all, sizeof **order);
	*start = calloc((size_t)m->nclusters + 2, sizeof **start);
	if (!*order || !*start) {
		free(*order);
		free(*start);
		return err_set(e, EX_OSERR, "out of memory");
	}
	for (int i = 0; i < all; i++)
		if (m->place[i].cluster >= 0)
			(*start)[m->place[i].cluster + 1]++;
	for (int i = 0; i < m->nclusters; i++)
		(*start)[i + 1] += (*start)[i];
	for (int i = 0; i < all; i++) {
		const struct place *p = &m->place[i];

		if (p->cluster < 0)
			continue;
		/* ranks of a cluster are 0..n-1, each once */
		(*order)[(*start)[p->cluster] + p->rank] = i;
		n++;
	}
	return n;
}

static json_t *member_json(const struct manifest *m, int node)
{
	const struct place *p = &m->place[node];
	json_t *o = json_pack("{s:i, s:i}", "layer", node / m->experts, "expert",
	    node % m->experts);

	if (m->packed) {
		json_object_set_new(o, "offset", json_integer(p->offset));
		json_object_set_new(o, "bytes", json_integer(p->bytes));
		json_object_set_new(o, "crc32", json_integer(p->crc));
	}
	return o;
}

/* The reference's "experts": distinct ids in the cluster, ascending. */
static json_t *experts_json(const struct manifest *m, const int *order, int n)
{
	char *seen = calloc((size_t)m->experts, 1);
	json_t *list = json_array();

	for (int i = 0; seen && i < n; i++)
		seen[order[i] % m->experts] = 1;
	for (int x = 0; seen && x < m->experts; x++)
		if (seen[x])
			json_array_append_new(list, json_integer(x));
	free(seen);
	return list;
}

static json_t *cluster_json(const struct manifest *m, int c, const int *order, int n)
{
	json_t *o = json_pack("{s:i, s:s}", "cluster_id", c, "file", m->file[c]),
	    *list = json_array();

	json_object_set_new(o, "experts", experts_json(m, order, n));
	for (int i = 0; i < n; i++)
		json_array_append_new(list, member_json(m, order[i]));
	json_object_set_new(o, "members", list);
	return o;
}

/* The reference's map has one cluster per expert id; ours is the one that holds most of its
 * layers. */
static json_t *home_json(const struct manifest *m)
{
	json_t *o = json_object();
	char key[16];

	for (int x = 0; x < m->experts; x++) {
		int best = -1, most = 0;

		for (int l = 0; l < m->layers; l++) {
			int c = manifest_at(m, l, x)->cluster, n = 0;

			for (int k = 0; c >= 0 && k < m->layers; k++)
				n += manifest_at(m, k, x)->cluster == c;
			if (n > most || (n == most && n > 0 && c < best)) {
				best = c;
				most = n;
			}
		}
		snprintf(key, sizeof key, "%d", x);
		if (best >= 0)
			json_object_set_new(o, key, json_integer(best));
	}
	return o;
}

static void packed_json(const struct manifest *m, json_t *o)
{
	if (m->dt[0] == m->dt[1] && m->dt[0] == m->dt[2])
		json_object_set_new(o, "dtype", json_string(dtype_name(m->dt[0])));
	else
		json_object_set_new(o, "dtype", json_pack("[s, s, s]", dtype_name(m->dt[0]),
		    dtype_name(m->dt[1]),
		    dtype_name(m->dt[2])));
	json_object_set_new(o, "gate_bytes", json_integer(m->gate_bytes));
	json_object_set_new(o, "up_bytes", json_integer(m->up_bytes));
	json_object_set_new(o, "down_bytes", json_integer(m->down_bytes));
}

json_t *manifest_json(const struct manifest *m)
{
	json_t *o = json_pack("{s:i, s:i, s:i, s:s}", "version", 1, "num_experts", m->experts,
	    "num_layers", m->layers,
	    "storage_format", "safetensors"), *list = json_array();
	int *order, *start;
	struct err e;

	if (m->fingerprint)
		json_object_set_new(o, "fingerprint", json_string(m->fingerprint));
	if (m->packed)
		packed_json(m, o);
	if (manifest_order(m, &order, &start, &e) < 0) {
		json_decref(list);
		json_decref(o);
		return NULL;
	}
	for (int c = 0; c < m->nclusters; c++)
		json_array_append_new(list, cluster_json(m, c, order + start[c],
		    start[c + 1] - start[c]));
	free(order);
	free(start);
	json_object_set_new(o, "clusters", list);
	json_object_set_new(o, "expert_to_cluster", home_json(m));
	json_object_update_missing(o, m->raw);
	return o;
}
