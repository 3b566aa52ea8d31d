/*
 * model: properties of the forward pass that no gradient check shows: nothing leaks from the
 * future, from behind the window, from other documents or from padding; chunks of the head do
 * not matter; balance is 1 at even load.
 */
#include <stdlib.h>
#include <string.h>

#include "base/topk.h"
#include "model/model_int.h"
#include "base/pool.h"
#include "base/rng.h"
#include "model/route_loss.h"
#include "model/route_stats.h"
#include "tap.h"

#define NT 90		/* more than one attention tile */
#define VOCAB 50

#define COMMON "\"model_type\": \"chronos\", \"chronos_format\": 2, \"vocab_size\": 50, " \
    "\"hidden_size\": 32," \
	"\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"head_dim\": 8, " \
	    "\"moe_intermediate_size\": 24," \
	"\"num_experts\": 6, \"num_experts_per_tok\": 2, \"kv_latent_dim\": 16, \"rope_dim\": 4, " \
	    "\"lookahead_steps\": 2," \
	"\"sliding_window_size\": 7"

struct run {
	struct model m;
	struct batch b;
	float *logits;
};

static void run_open_as(struct run *r, const char *json, struct model_opt o)
{
	int B = o.max_b;
	struct err e = { 0 };
	struct config c;
	json_t *j = json_loads(json, 0, NULL);

	if (config_from_json(&c, j, 0, NULL, &e) < 0 || model_open(&r->m, &c, &o, &backend_cpu, &e)
	    < 0)
		err_exit(&e);
	json_decref(j);
	config_free(&c);
	model_init_weights(&r->m, 4);
	r->b = (struct batch){ .B = B, .T = NT, .tok = calloc((size_t)(B * NT), 4),
	    .target = calloc((size_t)(B * NT), 4), .doc_start = calloc((size_t)(B * NT), 4) };
	r->logits = malloc((size_t)(B * NT * VOCAB) * sizeof(float));
	for (int i = 0; i < B * NT; i++) {
		r->b.tok[i] = (uint32_t)rng_below(3, 1, (uint64_t)i, VOCAB);
		r->b.target[i] = (int32_t)rng_below(3, 2, (uint64_t)i, VOCAB);
	}
}

static void run_open(struct run *r, const char *json, int B, int head_rows)
{
	run_open_as(r, json, (struct model_opt){ .max_b = B, .max_t = NT, .head_rows = head_rows });
}

static const float *run_logits(struct run *r)
{
	struct forward_opt o = { 0 };

	model_forward(&r->m, &r->b, &o);
	model_logits(&r->m, r->logits);
	return r->logits;
}

static void run_close(struct run *r)
{
	free(r->b.tok), free(r->b.target), free(r->b.doc_start), free(r->logits);
	model_close(&r->m);
}

/* First row whose logits change when token t does. */
static int first_change(struct run *r, int t, int *last)
{
	float *was = malloc(NT * VOCAB * sizeof(float));
	int first = NT;

	memcpy(was, run_logits(r), NT * VOCAB * sizeof(float));
	r->b.tok[t] = (r->b.tok[t] + 1) % VOCAB;
	run_logits(r);
	r->b.tok[t] = (r->b.tok[t] + VOCAB - 1) % VOCAB;
	*last = -1;
	for (int i = 0; i < NT; i++)
		if (memcmp(was + i * VOCAB, r->logits + i * VOCAB, VOCAB * sizeof(float)) != 0) {
			first = i < first ? i : first;
			*last = i;
		}
	free(was);
	return first;
}

static void test_leaks(void)
{
	static const int at[] = { 0, 20, 64, 88 };
	int last, good = 1;
	struct run r;

	run_open(&r, "{" COMMON ", \"num_hidden_layers\": 4}", 1, 0);
	for (int i = 0; i < 4; i++)
		good &= first_change(&r, at[i], &last) == at[i];
	ok(good, "hybrid: a token changes nothing before it");
	ok(last == NT - 1, "hybrid: and everything after, through the MLA layers");
	run_close(&r);
	run_open(&r, "{" COMMON ", \"num_hidden_layers\": 2, \"layer_types\": "
	    "[\"sliding_attention\", \"sliding_attention\"]}", 1, 0);
	good = first_change(&r, 20, &last) == 20;
	ok(good && last == 20 + 2 * 6, "two sliding layers of window 7: a token reaches 12 further,"
	    " not more");
	printf("# reaches row %d\n", last);
	run_close(&r);
}

/* Rows from..from+n of a packed run equal the document alone. */
static int same_alone(const struct run *packed, const float *logits, int from, int n)
{
	struct run alone;
	int good;

	run_open(&alone, "{" COMMON ", \"num_hidden_layers\": 4}", 1, 0);
	for (int t = 0; t < NT; t++) {
		alone.b.tok[t] = t < n ? packed->b.tok[from + t] : 0;
		alone.b.doc_start[t] = t < n ? 0 : -1;
	}
	run_logits(&alone);
	good = 1;
	for (int64_t i = 0; i < (int64_t)n * VOCAB; i++)
		good &= fabsf(alone.logits[i] - logits[from * VOCAB + i]) < 1e-5f;
	run_close(&alone);
	return good;
}

static void test_documents(void)
{
	struct run r;

	run_open(&r, "{" COMMON ", \"num_hidden_layers\": 4}", 1, 0);
	for (int t = 0; t < NT; t++)
		r.b.doc_start[t] = t < 30 ? 0 : t < 75 ? 30 : -1;
	run_logits(&r);
	ok(same_alone(&r, r.logits, 0, 30), "a packed document equals the document alone");
	ok(same_alone(&r, r.logits, 30, 45), "and so does the one behind it");
	run_close(&r);
}

static void test_head(void)
{
	float logp[2][NT];
	int good = 1;

	for (int i = 0; i < 2; i++) {
		struct run r;

		run_open(&r, "{" COMMON ", \"num_hidden_layers\": 2}", 1, 0);
		r.m.act->head_rows = i ? 11 : NT;
		run_logits(&r);
		model_head(&r.m, &r.b, NULL, logp[i], NULL);
		for (int t = 0; i == 0 && t < NT; t++) {
			double max = -1e30, sum = 0;

			for (int v = 0; v < VOCAB; v++)
				max = fmax(max, (double)r.logits[t * VOCAB + v]);
			for (int v = 0; v < VOCAB; v++)
				sum += exp((double)r.logits[t * VOCAB + v] - max);
			good &= fabs((double)r.logits[t * VOCAB + r.b.target[t]] - max - log(sum) -
			    (double)logp[0][t]) < 1e-5;
		}
		run_close(&r);
	}
	ok(good, "log-probabilities are those of the logits");
	ok(memcmp(logp[0], logp[1], sizeof(logp[0])) == 0, "chunks of the head do not matter");
}

/* A step of one batch. */
static double whole_step(struct route_step *st, const struct route_in *in,
    const struct route_lambda *lam, struct route_terms *t, real *dprobs, real *dahead)
{
	static struct route_scratch *s;
	double sum;

	route_step_clear(st);
	route_step_rows(st, in);
	route_step_load(st, in);
	sum = route_loss(in, lam, st, dprobs, NULL, dahead, &s);
	route_scratch_free(s);
	s = NULL;
	route_step_end(st);
	route_step_terms(st, t);
	return sum;
}

/* Probabilities 1/E and every expert chosen alike: balance 1, locality ln K + ln(E/K) ... in
 * closed form. */
static void test_route_values(void)
{
	enum { E = 6, K = 2, T = 12 };
	float probs[T * E];
	int32_t ids[T * K], doc[T] = { 0 };
	struct config c = { .format = 2, .num_experts = E, .num_experts_per_tok = K, .num_sparse =
	    1 };
	struct route_in in = { .cfg = &c, .B = 1, .T = T, .doc_start = doc, .probs = probs,
	    .topk = ids };
	struct route_lambda lam = { .balance = 1 };
	struct route_step st;
	struct route_terms t;
	double total;

	route_step_open(&st, &c);
	for (int i = 0; i < T * E; i++)
		probs[i] = 1.0f / E;
	for (int i = 0; i < T * K; i++)
		ids[i] = i % E;
	total = whole_step(&st, &in, &lam, &t, NULL, NULL);
	is_close(t.balance, 1, 1e-6, "balance is 1 at even load");
	is_close(total, 1, 1e-6, "and the weighted sum is the term");
	is_close(t.temporal, 0, 1e-9, "constant probabilities: no temporal loss");
	is_close(t.locality, log(E), 1e-6, "locality of uniform probabilities is ln E");
	is_close(route_load_entropy(st.load, 1, E), 1, 1e-9, "load entropy is 1 at even load");
	memset(doc, 0xff, sizeof(doc));
	total = whole_step(&st, &in, &lam, &t, NULL, NULL);
	is_close(total, 0, 0, "padding alone contributes zero, never NaN");
	route_step_close(&st);
}

/* Two layers: even logits cost ln E, logits that name the choices almost nothing; padding
 * neither costs nor pulls. */
static void test_ahead(void)
{
	enum { E = 6, K = 2, T = 12, PAD = 3 };
	float probs[2 * T * E], dprobs[2 * T * E] = { 0 }, ahead[T * E] = { 0 }, dahead[T * E] =
	    { 0 };
	int32_t ids[2 * T * K], doc[T] = { 0 };
	double pull = 0, stray = 0;
	struct config c = { .format = 2, .num_experts = E, .num_experts_per_tok = K, .num_sparse =
	    2, .num_hidden_layers = 2, .block = { { .sparse = true }, { .sparse = true } } };
	struct route_in in = { .cfg = &c, .B = 1, .T = T, .doc_start = doc, .probs = probs,
	    .topk = ids, .ahead = ahead };
	struct route_lambda lam = { .ahead = 0.5 };
	struct route_stats st = { 0 };
	struct route_step step;
	struct route_terms t;

	route_step_open(&step, &c);
	for (int i = 0; i < 2 * T * E; i++)
		probs[i] = 1.0f / E;
	for (int i = 0; i < 2 * T * K; i++)
		ids[i] = 3 * i % E + i % K;
	for (int r = T - PAD; r < T; r++)
		doc[r] = -1;
	is_close(whole_step(&step, &in, &lam, &t, dprobs, dahead), log(E), 1e-6,
	    "even logits and probabilities: ln E each");
	is_close(t.ahead, 2 * log(E), 1e-6, "before the weight");
	for (int i = 0; i < T * E; i++)
		*(i < (T - PAD) * E ? &pull : &stray) += fabs((double)dahead[i]) +
		    fabs((double)dprobs[T * E + i]);
	ok(pull > 0.1 && stray == 0, "rows of padding pull nothing");
	for (int r = 0; r < T; r++)
		for (int k = 0; k < K; k++)
			ahead[r * E + ids[(T + r) * K + k]] = r == 0 && k == 0 ? -9 : 9;
	whole_step(&step, &in, &lam, &t, NULL, NULL);
	is_close(t.ahead - log(E), (log(K) * (T - PAD - 1) + 9) / (T - PAD), 1e-3,
	    "the right names cost ln K, a wrong one what it misses");
	route_stats_add(&st, &in);
	is_close(st.ahead_hit / st.ahead_slots, 1 - 0.5 / (T - PAD), 1e-9, "recall of slots");
	is_close(st.ahead_whole / st.ahead_sets, 1 - 1.0 / (T - PAD), 1e-9, "and of whole sets");
	route_step_close(&step);
}

/* Values with many ties, against a search for the best not taken yet. */
static void test_choice(void)
{
	enum { E = 13, K = 6 };
	int32_t ids[K], best;
	bool same = true;

	for (uint64_t round = 0; round < 200; round++) {
		real p[E];
		bool taken[E] = { false };

		for (uint64_t e = 0; e < E; e++)
			p[e] = (real)(rng_hash(3, round * E + e) % 5);
		topk_best(p, E, K, ids);
		for (int k = 0; k < K; k++) {
			best = -1;
			for (int e = 0; e < E; e++)
				if (!taken[e] && (best < 0 || p[e] > p[best]))
					best = e;
			taken[best] = true;
			same &= ids[k] == best;
		}
	}
	ok(same, "the best of a few, ties to the lowest id");
}

/* Counts of two layers and two documents, by any number of threads and by hand. */
static void test_stats(void)
{
	enum { E = 6, K = 2, B = 3, T = 31, R = B * T, STEPS = 2, ROWS = (STEPS + 1) * 2 * E };
	struct config c = { .format = 2, .num_experts = E, .num_experts_per_tok = K, .num_sparse =
	    2, .lookahead_steps = STEPS,
	    .lookahead_per_layer = true };
	real probs[2 * R * E], look[R * ROWS];
	int32_t ids[2 * R * K], doc[R];
	struct route_in in = { .cfg = &c, .B = B, .T = T, .doc_start = doc, .probs = probs,
	    .topk = ids, .look = look };
	struct route_stats st[3];
	double pairs = 0, overlap = 0, ahead = 0;

	memset(st, 0, sizeof st);
	for (uint64_t i = 0; i < R * ROWS; i++)
		look[i] = (real)rng_normal(1, 1, i);
	for (uint64_t i = 0; i < 2 * R; i++) {
		ids[i * K] = (int32_t)(rng_hash(2, i) % (E - 1));
		ids[i * K + 1] = E - 1;
	}
	for (int r = 0; r < R; r++)
		doc[r] = r % T < 17 ? 0 : r % T < 29 ? 17 : -1;
	for (int i = 0; i < 3; i++) {
		pool_quit();
		pool_init(i == 0 ? 2 : i == 1 ? 1 : 3);
		route_stats_add(&st[i], &in);
	}
	for (int i = 0; i < 2 * R; i++) {
		int t = i % R % T;

		ahead += t < 15 || (t >= 17 && t < 27);
		if (t == 16 || t >= 28)
			continue;
		pairs++;
		overlap += ids[i * K] == ids[(i + 1) * K] ? 1 : 1.0 / 3;
	}
	ok(memcmp(&st[0], &st[1], sizeof st[0]) == 0 && memcmp(&st[0], &st[2], sizeof st[0]) == 0,
	    "statistics of 1, 2 and 3 threads: the same bytes");
	ok(st[0].pairs == pairs && fabs(st[0].overlap - overlap) < 1e-9,
	    "adjacent pairs and their overlap");
	ok(st[0].sets[2] == ahead && st[0].union_rows == ahead && st[0].slots[2] == K * ahead,
	    "rows two steps before another");
	pool_quit();
	pool_init(2);
}

/* The experts of another model, given to this one: they are the ones used; and its own, given
 * back, change nothing. */
static void test_replay(void)
{
	enum { K = 2, LS = 2 };
	struct forward_opt fo = { 0 };
	int32_t ids[LS * NT * K];
	float own[NT * VOCAB];
	int used = 1;
	struct run r;

	run_open(&r, "{" COMMON ", \"num_hidden_layers\": 2}", 1, 0);
	memcpy(own, run_logits(&r), sizeof(own));
	memcpy(ids, r.m.topk, sizeof(ids));
	fo.replay = ids;
	model_forward(&r.m, &r.b, &fo);
	model_logits(&r.m, r.logits);
	ok(memcmp(own, r.logits, sizeof(own)) == 0, "its own experts replayed: the same bytes");
	ok(r.m.replayed == LS * NT && r.m.moved == 0, "and nothing has moved");
	for (int i = 0; i < LS * NT; i++) {
		ids[i * K] = i % 5 == 0 ? -1 : (ids[i * K] + 1) % 6;
		ids[i * K + 1] = (ids[i * K] + 3) % 6;
	}
	model_forward(&r.m, &r.b, &fo);
	for (int i = 0; i < LS * NT; i++)
		used &= ids[i * K] < 0 || memcmp(ids + i * K, r.m.topk + i * K, K * sizeof(*ids)) ==
		    0;
	ok(used, "other experts replayed are the ones used");
	ok(r.m.replayed == LS * NT - (LS * NT + 4) / 5 && r.m.moved > 0, "and counted as moved");
	run_close(&r);
}

/* Gradients of the mean log-prob into r->m.g. */
static void gradients(struct run *r, const struct forward_opt *fo)
{
	float coef[NT], logp[NT];

	for (int i = 0; i < NT; i++)
		coef[i] = -1.0f / NT;
	memset(r->m.g, 0, (size_t)r->m.par.total * sizeof(*r->m.g));
	model_forward(&r->m, &r->b, fo);
	model_head(&r->m, &r->b, coef, logp, NULL);
	model_backward(&r->m, &r->b);
}

/* Relative error (2-norms) of the whole gradient. */
static double gradient_error(const struct model *want, const struct model *got)
{
	double d = 0, size = 0;

	for (int64_t j = 0; j < want->par.total; j++) {
		d += pow((double)got->g[j] - (double)want->g[j], 2);
		size += pow((double)want->g[j], 2);
	}
	return sqrt(d / size);
}

static void test_bf16(void)
{
	struct run full, half;
	double error;

	run_open_as(&full, "{" COMMON ", \"num_hidden_layers\": 2}", (struct model_opt){ .max_b = 1,
	    .max_t = NT, .train = true });
	run_open_as(&half, "{" COMMON ", \"num_hidden_layers\": 2}", (struct model_opt){ .max_b = 1,
	    .max_t = NT, .train = true,
	    .bf16 = true });
	gradients(&full, &(struct forward_opt){ 0 });
	gradients(&half, &(struct forward_opt){ .replay = full.m.topk });
	error = gradient_error(&full.m, &half.m);
	ok(error < 2e-2, "bf16: gradients are those of f32 up to rounding");
	ok(error > 1e-4, "bf16: and are not computed in f32");
	printf("# relative error %.2g\n", error);
	run_close(&full);
	run_close(&half);
}

/* Four kinds of layers, dropout and missing experts: computing activations again gives the same
 * gradients. */
static void test_recompute(void)
{
	static const char json[] = "{" COMMON ", \"num_hidden_layers\": 4, \"dropout\": 0.1, "
	    "\"num_shared_experts\": 2,"
	    "\"mlp_layer_types\": [\"sparse\", \"dense\", \"sparse\", \"sparse\"], "
	    "\"intermediate_size\": 40}";
	const struct forward_opt fo = { .train = true, .seed = 3, .step = 2, .fallback_mask_prob =
	    0.3 };
	struct run keep, again;

	run_open_as(&keep, json, (struct model_opt){ .max_b = 1, .max_t = NT, .train = true });
	run_open_as(&again, json, (struct model_opt){ .max_b = 1, .max_t = NT, .train = true,
	    .recompute = true });
	gradients(&keep, &fo);
	gradients(&again, &fo);
	ok(memcmp(keep.m.g, again.m.g, (size_t)keep.m.par.total * sizeof(*keep.m.g)) == 0,
	    "recompute: the same gradients");
	run_close(&keep);
	run_close(&again);
}

int main(void)
{
	pool_init(2);
	test_leaks();
	test_documents();
	test_head();
	test_route_values();
	test_ahead();
	test_choice();
	test_stats();
	test_replay();
	test_bf16();
	test_recompute();
	return tap_done();
}
