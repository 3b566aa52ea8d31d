/* chr-cluster: activation records in, cluster manifest out. */
#include <math.h>
#include <stdio.h>

#include "experts/actlog.h"
#include "experts/cluster.h"
#include "base/err.h"
#include "base/human.h"
#include "base/json.h"
#include "base/opt.h"

static struct {
	int layout, tries;
	int64_t seed, max_bytes, min_bytes, expert_bytes;
	double w_token, w_next, resolution, holdout;
	bool skip_bad;
} o = { .layout = LAYOUT_LAYER, .tries = 10, .seed = 1, .w_token = 1, .w_next = 0.5, .resolution =
    1, .holdout = 0.1 };

static struct opt opts[] = {
	{ 0, "layout", OPT_CHOICE, &o.layout, 0, 0, "louvain|layer|hot",
	    "order of experts in the files" },
	{ 0, "max-bytes", OPT_BYTES, &o.max_bytes, 0, 0x1p60, "N",
	    "largest cluster; 0: 64M, or 1/128 of a large model" },
	{ 0, "min-bytes", OPT_BYTES, &o.min_bytes, 0, 0x1p60, "N",
	    "join smaller clusters up to this; 0: 4M or 1/512" },
	{ 0, "expert-bytes", OPT_BYTES, &o.expert_bytes, 0, 0x1p60, "N",
	    "size of an expert; 0: as the records say" },
	{ 0, "w-token", OPT_FLOAT, &o.w_token, 0, 1e6, "X", "weight of use by the same token" },
	{ 0, "w-next", OPT_FLOAT, &o.w_next, 0, 1e6, "X", "weight of use by neighbouring tokens" },
	{ 0, "resolution", OPT_FLOAT, &o.resolution, 0, 1e6, "X",
	    "above 1: more and smaller communities" },
	{ 0, "tries", OPT_INT, &o.tries, 1, 1000, "N",
	    "Louvain runs per layer, of which the best counts" },
	{ 's', "seed", OPT_COUNT, &o.seed, 0, 0x1p62, "N",
	    "seed of the order in which nodes move" },
	{ 0, "holdout", OPT_FLOAT, &o.holdout, 0, 0.5, "X",
	    "share of sequences kept aside to measure the layout" },
	{ .kind = OPT_TABLE, .value = human_opts },
	{ 0, "skip-bad", OPT_FLAG, &o.skip_bad, .help = "count and report bad records instead of "
	    "stopping" },
	{ 0 }
};

static const struct opt_prog prog = { "chr-cluster", "[options] [FILE...]",
	"cluster experts by co-activation", "Reads activation records of chr-actlog, writes a "
	    "manifest for chr-pack.",
	true };

static void count(struct jsonl *in, struct actlog *a, struct coact *c)
{
	struct err e = {0}, bad = {0};
	int rc;

	if (actlog_open(a, in, &e) < 0)
		err_exit(&e);
	if (coact_init(c, &a->model, o.holdout > 0 ? (int)lround(fmin(1 / o.holdout, 1e9)) : 0, &e)
	    < 0)
		err_exit(&e);
	while ((rc = actlog_next(a, &e)) == 1)
		if (coact_add(c, &a->act, &bad) < 0 && jsonl_bad(in, &e, "%s", bad.msg) < 0)
			err_exit(&e);
	if (rc < 0)
		err_exit(&e);
}

static void summary(const struct coact *c, const struct cluster_plan *p, const json_t *manifest)
{
	const json_t *held = json_object_get(json_object_get(manifest, "clustering"), "held_out");
	double seq = cluster_sequential(p, c);

	if (opt_quiet)
		return;
	fprintf(stderr, "%lld tokens of %lld sequences (%lld held out), %lld edges\n",
	    (long long)(c->tokens + c->held_tokens),
	    (long long)c->sequences, (long long)c->held_sequences, (long long)p->edges);
	if (p->communities)
		fprintf(stderr, "%d communities, modularity %.4f; ", p->communities, p->modularity);
	fprintf(stderr, "%d experts in %d clusters\n", p->nodes, p->n);
	if (isnan(seq))
		fprintf(stderr, "nothing held out: the sequential-read fraction is not known\n");
	else
		fprintf(stderr, "sequential reads %.2f %%, in plain layer order %.2f %%\n",
		    100 * seq,
		    100 * json_number_value(json_object_get(held, "fraction_layer")));
}

/* On a terminal, where nobody reads a manifest: what is in it. */
static void page(const struct coact *c, const struct cluster_plan *p, const struct cluster_opt *co,
    const json_t *manifest)
{
	const json_t *held = json_object_get(json_object_get(manifest, "clustering"), "held_out");
	json_t *r = json_pack("{s:s, s:i, s:i, s:I, s:I, s:I, s:I, s:I}", "type", "cluster",
	    "clusters", p->n, "experts", p->nodes, "expert_bytes", (json_int_t)co->expert_bytes,
	    "tokens", (json_int_t)(c->tokens + c->held_tokens), "sequences",
	    (json_int_t)c->sequences, "held_out", (json_int_t)c->held_sequences, "edges",
	    (json_int_t)p->edges);
	struct err e = { 0 };

	if (p->communities) {
		json_set_int(r, "communities", p->communities);
		json_set_num(r, "modularity", p->modularity);
	}
	json_set_num(r, "sequential_reads", cluster_sequential(p, c));
	json_object_set(r, "in_layer_order", json_object_get(held, "fraction_layer"));
	json_set_str(r, "manifest", "with --json, or in a pipe to chr-pack");
	if (human_put(r, &e) < 0)
		err_exit(&e);
	json_decref(r);
}

int main(int argc, char **argv)
{
	struct cluster_opt co;
	struct cluster_plan p;
	struct actlog a;
	struct coact c;
	struct err e = {0};
	struct jsonl *in;
	json_t *manifest;
	int first;

	err_init(argv[0]);
	first = opt_parse(argc, argv, opts, &prog);
	if (o.max_bytes && o.min_bytes > o.max_bytes)
		opt_usage("--min-bytes is above --max-bytes");
	if (!(in = jsonl_open(argc - first, argv + first, o.skip_bad, &e)))
		err_exit(&e);
	count(in, &a, &c);
	co = (struct cluster_opt){ .layout = (enum cluster_layout)o.layout, .w_token = o.w_token,
	    .w_next = o.w_next,
		.resolution = o.resolution, .seed = (uint64_t)o.seed, .tries = o.tries, .max_bytes =
		    o.max_bytes,
		.min_bytes = o.min_bytes, .expert_bytes = o.expert_bytes ? o.expert_bytes
		    : a.model.expert_bytes };
	if (!co.expert_bytes)
		opt_usage("the records do not say how large an expert is: give --expert-bytes");
	cluster_sizes(&c, &co);
	if (cluster_plan(&p, &c, &co, &e) < 0 ||
	    !(manifest = cluster_manifest(&p, &c, &co, a.model.fingerprint, &e)))
		err_exit(&e);
	if (human())
		page(&c, &p, &co, manifest);
	else if (json_put(stdout, manifest, &e) < 0)
		err_exit(&e);
	else
		summary(&c, &p, manifest);
	json_decref(manifest);
	cluster_plan_free(&p);
	coact_free(&c);
	actlog_close(&a);
	jsonl_close(in);
	err_close_stdout();
	return EX_OK;
}
