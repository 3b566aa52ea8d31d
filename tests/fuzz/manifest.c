/* cluster_manifest.json and activation records from anywhere: refused with a message, or
 * consistent. The first byte says which: 'a' is a log of lines, anything else a manifest. */
#include <stdlib.h>
#include <string.h>

#include "experts/actlog.h"
#include "experts/cluster.h"
#include "format/manifest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(int good)
{
	if (!good)
		abort();
}

/* What a reader of the manifest relies on. */
static void walk(const struct manifest *m)
{
	int *order, *start;
	struct err e;
	int n = manifest_order(m, &order, &start, &e);
	json_t *o = manifest_json(m), *last;
	struct manifest again;

	check(n == start[m->nclusters]);
	for (int k = 0; k < m->nclusters; k++)
		for (int i = start[k]; i < start[k + 1]; i++) {
			const struct place *p = &m->place[order[i]], *q = i > start[k]
			    ? &m->place[order[i - 1]] : NULL;

			check(p->cluster == k && p->rank == i - start[k] &&
			    p->offset % MANIFEST_ALIGN == 0);
			check(!m->packed || p->bytes == m->gate_bytes + m->up_bytes +
			    m->down_bytes);
			check(!m->packed || !q || p->offset >= q->offset + q->bytes);
		}
	check(o && manifest_parse(&again, o, "again", &e) == 0);
	last = manifest_json(&again);
	check(json_equal(o, last));
	json_decref(last);
	json_decref(o);
	manifest_free(&again);
	free(order);
	free(start);
}

static void try_manifest(const char *text, size_t len)
{
	json_t *o = json_loadb(text, len, 0, NULL);
	struct manifest m;
	struct err e = {0};

	if (!o)
		return;
	if (manifest_parse(&m, o, "fuzz", &e) < 0) {
		check(e.status && e.msg[0] && !m.place);
	} else {
		walk(&m);
		manifest_free(&m);
	}
	json_decref(o);
}

static void use(struct coact *c, struct act *a)
{
	struct cluster_opt o = { .w_token = 1, .w_next = 1, .resolution = 1, .tries = 1,
	    .expert_bytes = 100, .max_bytes = 12288 };
	struct cluster_plan p;
	struct err e = {0};

	if (coact_add(c, a, &e) < 0 || cluster_plan(&p, c, &o, &e) < 0)
		return;
	check(p.start[p.n] == p.nodes);
	cluster_plan_free(&p);
}

static void try_log(const char *text, size_t len)
{
	struct actlog_model m = {0};
	int n[4], id[64];
	struct act a = { .first = true, .n = n, .id = id };
	struct coact c = {0};
	struct err e = {0};
	const char *why;

	while (len) {
		const char *nl = memchr(text, '\n', len);
		size_t k = nl ? (size_t)(nl - text) : len;
		json_t *o = json_loadb(text, k, 0, NULL);

		if (o && !m.layers && (actlog_parse_model(o, &m, &why) < 0 || m.layers > 4 ||
		    m.top_k > 16 || m.experts > 64
		    || coact_init(&c, &m, 0, &e) < 0))
			m.layers = 0;
		else if (o && m.layers && actlog_parse(o, &m, &a, &why) == 0)
			use(&c, &a);
		json_decref(o);
		len -= k + (nl != NULL);
		text += k + (nl != NULL);
	}
	coact_free(&c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size && *data == 'a')
		try_log((const char *)data + 1, size - 1);
	else
		try_manifest((const char *)data, size);
	return 0;
}
