/* foresee: the file of the heads and the many ways in which it can be wrong; logs for the oracle;
 * in an engine that streams experts the heads say what their formula gives. */
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/pool.h"
#include "base/topk.h"
#include "decode/decode.h"
#include "experts/beside.h"
#include "experts/foresee.h"
#include "experts/oracle.h"
#include "format/manifest.h"
#include "tap.h"
#include "tinymodel.h"

enum { D = 16, E = 6, K = 2, LS = 3, H = 3, W = 8, T = 40, SEQS = 2 };

static const char json[] = "{\"chronos_format\":2,\"vocab_size\":40,\"hidden_size\":16,"
    "\"num_hidden_layers\":4,\"num_attention_heads\":2,\"num_key_value_heads\":1,"
    "\"head_dim\":8,\"kv_latent_dim\":8,\"rope_dim\":4,\"moe_intermediate_size\":8,"
    "\"num_experts\":6,\"num_experts_per_tok\":2,\"num_shared_experts\":1,"
    "\"mlp_layer_types\":[\"sparse\",\"dense\",\"sparse\",\"sparse\"],\"lookahead_steps\":0}";
static char top[] = "/tmp/chr-foresee-XXXXXX";
static char *dir, *log_path;
static struct config cfg;
static char print[33];
static struct err e;

static void must(int failed)
{
	if (failed) {
		printf("Bail out! %s\n", e.msg);
		exit(1);
	}
}

static void take_print(const char *model)
{
	struct modeldir md;
	const char *is;

	must(modeldir_open(&md, model, 0, NULL, &e) < 0 ||
	    (is = modeldir_fingerprint(&md, &e)) == NULL);
	memcpy(print, is, sizeof print);
	modeldir_close(&md);
}

static struct foresee *heads_of(const struct config *c, int width, int horizons)
{
	real norms[4 * (D + 1)];
	struct foresee *f;

	for (int k = 0; k < 4 * (D + 1); k++)
		norms[k] = (real)(1 + 0.3 * rng_normal(4, 0, (uint64_t)k));
	must((f = foresee_new(c, print, width, horizons, norms, 1)) == NULL);
	for (int i = 0; i < f->par.n; i++)
		for (int64_t k = 0; k < param_size(&f->par.p[i]); k++)
			f->w[f->par.p[i].off + k] += (real)(0.5 * rng_normal(5, (uint64_t)i,
			    (uint64_t)k));
	return f;
}

/* ---- the file ---- */

static void refused(const char *why, const char *what)
{
	struct err why_not = { 0 };
	struct foresee *f = foresee_load(dir, &cfg, &why_not);

	if (!ok(!f && why_not.status == EX_DATAERR && strstr(why_not.msg, why), "%s", what))
		printf("# %d: %s\n", why_not.status, why_not.msg);
	foresee_free(f);
}

static bool whole(const struct foresee *f, const struct foresee *g)
{
	return g && g->W == f->W && g->H == f->H && g->Ls == f->Ls &&
	    strcmp(g->fingerprint, print) == 0 && g->par.total == f->par.total &&
	    memcmp(g->w, f->w, (size_t)f->par.total * sizeof *f->w) == 0;
}

static void test_file(void)
{
	struct foresee *f = heads_of(&cfg, W, H), *back;
	json_t *meta = json_pack("{s:s, s:s}", "chronos.seed", "9", "chronos.fingerprint",
	    "of something else");
	int width = 0, horizons = 0;

	ok(!foresee_load(dir, &cfg, &e) && e.status == 0 &&
	    foresee_bytes(dir, &cfg, &width, &horizons) == 0, "a model without heads has none");
	ok(foresee_save(f, dir, meta, &e) == 0, "saved");
	back = foresee_load(dir, &cfg, &e);
	ok(whole(f, back), "and loaded");
	ok(foresee_bytes(dir, &cfg, &width, &horizons) >= f->par.total * (int64_t)sizeof *f->w &&
	    width == W && horizons == H, "its size and shape for the plan");
	foresee_free(back);
	foresee_free(f);
	json_decref(meta);
}

static void test_cut(void)
{
	char *path = file_join(dir, FORESEE_NAME), *buf;
	size_t len, bad = 0;

	must(file_get(path, &buf, &len, &e) < 0);
	for (size_t n = 0; n < len; n += n < 2500 ? 1 : 499) {
		struct err why = { 0 };
		struct foresee *f;
		int width, horizons;

		must(file_put(path, buf, n, &e) < 0);
		f = foresee_load(dir, &cfg, &why);
		bad += f || why.status != EX_DATAERR;
		bad += foresee_bytes(dir, &cfg, &width, &horizons) != 0;
		foresee_free(f);
	}
	ok(bad == 0, "cut anywhere it is refused");
	free(buf);
	free(path);
}

/* Heads that are right but for what c, width and horizons say, and the number of their tensors. */
static void put_strange(const struct config *c, int width, int horizons, int more)
{
	struct foresee *f = heads_of(c, width, horizons);
	struct param *p = calloc((size_t)f->par.n + 1, sizeof *p);
	struct params ps = f->par;

	memcpy(p, f->par.p, sizeof *p * (size_t)f->par.n);
	p[f->par.n] = p[0];
	strcpy(p[f->par.n].name, "layers.3.in.weight");
	ps.p = p;
	ps.n += more;
	must(beside_save(dir, FORESEE_NAME, &ps, f->w, NULL, print, &e) < 0);
	free(p);
	foresee_free(f);
}

static void test_shapes(void)
{
	struct config c = cfg;

	put_strange(&cfg, FORESEE_MAX_WIDTH + 1, H, 0);
	refused("width up to 4096", "too wide");
	put_strange(&cfg, W, FORESEE_MAX_HORIZON + 1, 0);
	refused("8 horizons", "more horizons than can be");
	put_strange(&cfg, W, LS + 1, 0);
	refused("horizons", "more than the model has layers");
	put_strange(&cfg, W, H, 1);
	refused("has 16 tensors, not 15", "a tensor more");
	put_strange(&cfg, W, H, -1);
	refused("no tensor layers.2.previous", "one missing");
	c.hidden_size = D + 1;
	put_strange(&c, W, H, 0);
	refused("no tensor layers.0.in.weight", "another width of the model");
	c = cfg;
	c.num_experts = E + 1;
	put_strange(&c, W, H, 0);
	refused("no tensor layers.0.out.weight", "more experts");
	c = cfg;
	c.num_sparse = LS - 1;
	put_strange(&c, W, LS - 1, 0);
	refused("no tensor layers.2.in.weight", "fewer layers");
}

static void test_wrong(void)
{
	struct foresee *f = heads_of(&cfg, W, H), *back;

	foresee_part(f, 1, FORESEE_BIAS)[4] = NAN;
	must(foresee_save(f, dir, NULL, &e) < 0);
	refused("layers.1.bias is not finite at 4", "a weight that is no number");
	foresee_part(f, 1, FORESEE_BIAS)[4] = 0;
	f->fingerprint[0] ^= 1;
	must(foresee_save(f, dir, NULL, &e) < 0);
	refused("of another model", "of another model");
	f->fingerprint[0] ^= 1;
	must(foresee_save(f, dir, NULL, &e) < 0);
	ok(whole(f, back = foresee_load(dir, &cfg, &e)), "and of this one again");
	foresee_free(back);
	foresee_free(f);
}

/* ---- logs for the oracle ---- */

#define MODEL "{\"type\":\"model\",\"layers\":4,\"experts\":6,\"top_k\":2}\n"
#define ACT(seq, pos, token, last) "{\"type\":\"act\",\"seq\":" #seq ",\"pos\":" #pos \
    ",\"token\":" #token ",\"layers\":[[0,1],[],[2,3]," last "]}\n"

static struct oracle *read_log(const char *text, struct err *why)
{
	*why = (struct err){ 0 };
	must(file_put(log_path, text, strlen(text), &e) < 0);
	return oracle_load(log_path, &cfg, why);
}

static void bad_log(const char *text, const char *why, const char *what)
{
	struct err why_not;
	struct oracle *o = read_log(text, &why_not);

	if (!ok(!o && why_not.status == EX_DATAERR && strstr(why_not.msg, why), "a log %s", what))
		printf("# %d: %s\n", why_not.status, why_not.msg);
	oracle_free(o);
}

static void test_oracle(void)
{
	static const uint32_t ask[] = { 7, 8, 9 };
	struct err why;
	struct oracle *o = read_log(MODEL ACT(0, 0, 7, "[4,5]") ACT(0, 1, 8, "[5,4]")
	    ACT(1, 0, 7, "[4,5]") ACT(1, 1, 8, "[0,1]") ACT(1, 2, 9, "[1,0]")
	    ACT(2, 0, 7, "[4,5]") ACT(2, 1, 8, "[0,1]") ACT(2, 2, 9, "[1,0]")
	    ACT(2, 3, 3, "[1,0]"), &why);
	const struct oracle_seq *q;

	must(o == NULL);
	q = oracle_find(o, ask, 1);
	ok(q && q->n == 2 && q->tok[1] == 8, "the first sequence that begins so");
	q = oracle_find(o, ask, 2);
	ok(q && q->n == 3 && q->tok[2] == 9, "and is longer");
	ok(q && q->ids[K] == 2 && q->ids[2 * K] == 4 && q->ids[(2 * LS + 2) * K] == 1,
	    "its experts, of layers that have some");
	q = oracle_find(o, ask, 3);
	ok(q && q->n == 4, "the one that goes on");
	q = oracle_find(o, (const uint32_t[]){ 7, 8, 9, 3 }, 4);
	ok(q && q->n == 4, "a prompt that nothing came after");
	ok(!oracle_find(o, (const uint32_t[]){ 7, 9 }, 2), "none begins with other tokens");
	ok(oracle_bytes(o) > 9 * LS * K * 4 && oracle_bytes(NULL) == 0, "its size for the plan");
	oracle_free(o);
	bad_log("{\"type\":\"model\",\"layers\":3,\"experts\":6,\"top_k\":2}\n", "not of this one",
	    "of a model of fewer layers");
	bad_log("{\"type\":\"model\",\"layers\":4,\"experts\":6,\"top_k\":3}\n", "not of this one",
	    "of one with more experts for a token");
	bad_log(MODEL "{\"type\":\"act\",\"seq\":0,\"pos\":0,\"layers\":[[0,1],[],[2,3],[4,5]]}\n",
	    "no token", "without tokens");
	bad_log(MODEL "{\"type\":\"act\",\"seq\":0,\"pos\":0,\"token\":1,"
	    "\"layers\":[[],[0,1],[2,3],[4,5]]}\n", "other layers", "of experts elsewhere");
	bad_log(MODEL ACT(0, 0, 7, "[4,5]") "{\"type\":\"act\",\"seq\":0,\"pos\":1,\"tok", "",
	    "cut short");
	bad_log("", "", "that is empty");
	remove(log_path);
	ok(!oracle_load(log_path, &cfg, &why) && why.status == EX_NOINPUT, "no log");
}

/* ---- heads at work ---- */

static real gates[LS][E * D];
static real inputs[SEQS][T * LS * D];
static int32_t topk[SEQS][T * LS * K];

static void read_gates(const char *model)
{
	struct modeldir md;

	must(modeldir_open(&md, model, 0, NULL, &e) < 0);
	for (int l = 0, i = 0; l < cfg.num_hidden_layers; l++)
		if (cfg.block[l].sparse)
			must(modeldir_read_f32(&md, params_get(&md.par, P_GATE, l, -1), gates[i++],
			    &e) < 0);
	modeldir_close(&md);
}

/* z (E) that layer i says at token t of sequence s of the next layer, by foresee.h. */
static void by_hand(const struct foresee *f, int s, int t, int i, real *z)
{
	const real *x = inputs[s] + (t * LS + i) * D;
	int on, j = foresee_target(f, i, 1, &on);
	const int32_t *last = topk[s] + ((t + on - 1) * LS + j) * K;

	for (int x2 = 0; x2 < E; x2++) {
		double v = (double)foresee_part(f, i, FORESEE_BIAS)[x2];

		for (int d = 0; d < D; d++)
			v += (double)(gates[j][x2 * D + d] * x[d] *
			    foresee_part(f, i, FORESEE_SCALE)[d]);
		for (int w = 0; w < W; w++) {
			double a = 0;

			for (int d = 0; d < D; d++)
				a += (double)(foresee_part(f, i, FORESEE_IN)[w * D + d] * x[d]);
			v += (double)foresee_part(f, i, FORESEE_OUT)[x2 * W + w] * a /
			    (1 + exp(-a));
		}
		if (last[0] == x2 || last[1] == x2)
			v += (double)foresee_part(f, i, FORESEE_PREVIOUS)[x2];
		z[x2] = (real)v;
	}
}

/* Slots that horizon 1 names right, of what was said after the first token. */
static int right_by_hand(const struct foresee *f, int *slots)
{
	int right = 0, on;
	int32_t best[K];
	real z[E];

	*slots = 0;
	for (int s = 0; s < SEQS; s++)
		for (int t = 1; t < T; t++)
			for (int i = 0; i < LS; i++) {
				int j = foresee_target(f, i, 1, &on);
				const int32_t *ids = topk[s] + ((t + on) * LS + j) * K;

				if (t + on == T)
					continue;
				by_hand(f, s, t, i, z);
				topk_best(z, E, K, best);
				for (int k = 0; k < K; k++)
					right += predict_among(best, K, ids[k]);
				*slots += K;
			}
	return right;
}

static struct engine *open_packed(const char *packed)
{
	struct engine_opt o = { .max_seqs = SEQS, .max_tokens = T, .max_rows = 8,
	    .predict = SRC_BIT(SRC_FORESEE), .store = { .waste = -1 } };
	struct manifest m = { 0 };
	struct engine *g;

	must(manifest_load_dir(&m, packed, &e) < 0);
	o.store.bytes = store_min_bytes(&cfg, &m);
	manifest_free(&m);
	must((g = engine_open(packed, &o, &backend_cpu, NULL, &e)) == NULL);
	return g;
}

/* Token by token, both sequences at once. */
static struct source_stats decode(const char *packed)
{
	struct source_stats sum = { 0 };
	struct engine *g = open_packed(packed);
	struct seq *seq[SEQS];

	for (int s = 0; s < SEQS; s++)
		must((seq[s] = seq_new(g, &e)) == NULL);
	for (int t = 0; t < T; t++) {
		struct eval_item it[SEQS];
		struct eval_stats st;
		uint32_t tok[SEQS];

		for (int s = 0; s < SEQS; s++) {
			tok[s] = (uint32_t)rng_below(9, (uint64_t)s, (uint64_t)t, 40);
			it[s] = (struct eval_item){ .s = seq[s], .tok = &tok[s], .n = 1,
			    .inputs = inputs[s] + t * LS * D, .topk = topk[s] + t * LS * K };
		}
		must(engine_eval(g, it, SEQS, &st, &e) < 0);
		sum.slots += st.source[SRC_FORESEE].slots;
		sum.hit += st.source[SRC_FORESEE].hit;
	}
	engine_close(g);
	return sum;
}

static void test_engine(void)
{
	const char *build = getenv("BUILD");
	char *packed = file_join(top, "packed"), cmd[900];
	struct source_stats got;
	int want, slots;
	struct foresee *f;

	snprintf(cmd, sizeof cmd, "%.300s/chr-pack -q -m %s --layout layer -o %s > /dev/null",
	    build ? build : "build", dir, packed);
	must(system(cmd) != 0);
	read_gates(packed);
	take_print(packed);
	f = heads_of(&cfg, W, H);
	must(foresee_save(f, packed, NULL, &e) < 0);
	got = decode(packed);
	want = right_by_hand(f, &slots);
	ok((int)got.slots == slots, "every layer after the first token is foreseen: %d of %d",
	    (int)got.slots, slots);
	ok(abs((int)got.hit - want) <= 1, "the engine's heads are right as often as by hand: %d, "
	    "%d", (int)got.hit, want);
	foresee_free(f);
	free(packed);
}

int main(void)
{
	json_t *o = json_loads(json, 0, NULL);

	must(!mkdtemp(top) || config_from_json(&cfg, o, 0, NULL, &e) < 0);
	pool_init(1);
	dir = file_join(top, "model");
	log_path = file_join(top, "log");
	must(file_mkdirs(dir, &e) < 0 || tinymodel(dir, json, DT_F32, 0.35, &e) < 0);
	take_print(dir);
	test_file();
	test_cut();
	test_shapes();
	test_wrong();
	test_oracle();
	test_engine();
	pool_quit();
	file_remove_tree(top, &e);
	free(dir);
	free(log_path);
	config_free(&cfg);
	json_decref(o);
	return tap_done();
}
