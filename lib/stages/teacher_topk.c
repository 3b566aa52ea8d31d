#include "stages/teacher_topk.h"

#include <math.h>
#include <string.h>

#include "train/chat.h"
#include "base/json.h"
#include "base/pool.h"
#include "text/record.h"

static double add_logs(double a, double b)
{
	return fmax(a, b) + log1p(exp(-fabs(a - b)));
}

/* --- writing --- */

struct choose {
	const real *logits;
	const int32_t *target;
	int V, K;
	double temperature;
	uint32_t *id;
	real *logp, *rest;
};

/* ids of the K largest of z, in falling order */
static void best(const real *z, int V, int K, uint32_t *id)
{
	int n = 0;

	for (int j = 0; j < V; j++) {
		int at = n;

		if (n == K && !(z[j] > z[id[K - 1]]))
			continue;
		for (at = n < K ? n++ : K - 1; at > 0 && z[j] > z[id[at - 1]]; at--)
			id[at] = id[at - 1];
		id[at] = (uint32_t)j;
	}
}

/* ln sum exp((z_j - shift) / t) over all j, or over those that come after id `last` in the order
 * of best(). */
static double log_sum(const real *z, int V, double shift, double t, int last)
{
	double sum = 0;

	for (int j = 0; j < V; j++)
		if (last < 0 || z[j] < z[last] || (z[j] == z[last] && j > last))
			sum += exp(((double)z[j] - shift) / t);
	return log(sum);
}

static void choose_rows(void *ctx, int64_t i0, int64_t i1, int worker)
{
	const struct choose *c = ctx;

	(void)worker;
	for (int64_t i = i0; i < i1; i++) {
		const real *z = c->logits + i * c->V;
		uint32_t *id = c->id + i * c->K;
		double all;

		if (c->target[i] < 0)
			continue;
		best(z, c->V, c->K, id);
		all = (double)z[id[0]] + log_sum(z, c->V, (double)z[id[0]], 1, -1);
		for (int k = 0; k < c->K; k++)
			c->logp[i * c->K + k] = (real)((double)z[id[k]] - all);
		c->rest[i] = (real)log_sum(z, c->V, all, c->temperature, (int)id[c->K - 1]);
	}
}

void teacher_topk_choose(const real *logits, const int32_t *target, int64_t n, int V, int K,
    double temperature, uint32_t *id,
    real *logp, real *rest)
{
	struct choose c = { logits, target, V, K, temperature, id, logp, rest };

	pool_for(n, 4, choose_rows, &c);
}

json_t *teacher_topk_record(int V, double temperature)
{
	return json_pack("{s:s, s:i, s:f, s:[], s:[], s:[], s:[]}", "type", "topk", "vocab", V,
	    "temperature", temperature,
	    "tokens", "topk", "topk_logprob", "topk_rest");
}

/* Five decimals: a relative error of the probability of 1e-5 at most. */
static json_t *number(double x)
{
	return isfinite(x) ? json_real(nearbyint(x * 1e5) / 1e5) : json_null();
}

void teacher_topk_add(json_t *rec, uint32_t token, int K, const uint32_t *id, const real *logp,
    double rest)
{
	json_t *ids = json_array(), *values = json_array();

	for (int k = 0; k < K; k++) {
		json_array_append_new(ids, json_integer(id[k]));
		json_array_append_new(values, number((double)logp[k]));
	}
	json_array_append_new(json_object_get(rec, "tokens"), json_integer(token));
	json_array_append_new(json_object_get(rec, "topk"), ids);
	json_array_append_new(json_object_get(rec, "topk_logprob"), values);
	json_array_append_new(json_object_get(rec, "topk_rest"), K > 0 ? number(rest)
	    : json_null());
}

/* --- reading --- */

/* A token of an item is its id and what is known of the next: K ids, K log-probs, the rest;
 * reals as float bits. */
#define WORDS(K) (2 * (K) + 1)
#define NOTHING (-50.0f)		/* the log of no mass at all */
#define LEAST 1e-6			/* mass below which 1 - sum is rounding */

static struct {
	int K;
	double temperature;
} want;

static uint32_t bits(double x)
{
	float f = (float)x;
	uint32_t w;

	memcpy(&w, &f, sizeof w);
	return w;
}

static double from_bits(uint32_t w)
{
	float f;

	memcpy(&f, &w, sizeof f);
	return (double)f;
}

static int check_record(const json_t *rec, int vocab, struct err *why)
{
	const json_t *V = json_object_get(rec, "vocab"), *t = json_object_get(rec, "temperature");

	if (json_object_get(rec, "topk") == NULL)
		return err_set(why, EX_DATAERR, "missing \"topk\": not a record of chr-score "
		    "--topk");
	if (!json_is_integer(V) || json_integer_value(V) != vocab)
		return err_set(why, EX_DATAERR, "made with a vocabulary of %lld, the student's "
		    "vocab_size is %d",
		    (long long)json_integer_value(V), vocab);
	if (!json_is_number(t))
		return err_set(why, EX_DATAERR, t ? "\"temperature\" is not a number"
		    : "missing \"temperature\"");
	if (fabs(json_number_value(t) - want.temperature) > 1e-9)
		return err_set(why, EX_DATAERR, "made for --temperature %g, this run has %g",
		    json_number_value(t),
		    want.temperature);
	return 0;
}

/* One candidate, to be in [0, vocab) with a log-probability. */
static int candidate(const json_t *id, const json_t *logp, int vocab, struct err *why)
{
	if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= vocab)
		return err_set(why, EX_DATAERR, "\"topk\" holds what is not a token id below %d",
		    vocab);
	if (!json_is_number(logp) || !(json_number_value(logp) < 0.01 && json_number_value(logp) >
	    -1e4))
		return err_set(why, EX_DATAERR, "\"topk_logprob\" holds what is not a "
		    "log-probability");
	return 0;
}

/* The candidates of one token into w (WORDS(K)). Those after the first K go to the rest. */
static int candidates(const json_t *ids, const json_t *logp, const json_t *rest, int vocab,
    uint32_t *w, struct err *why)
{
	double left = json_is_number(rest) ? json_number_value(rest) : (double)NOTHING;
	int n = (int)json_array_size(ids), K = want.K;

	if (!json_is_number(rest) && !json_is_null(rest))
		return err_set(why, EX_DATAERR, "\"topk_rest\" holds what is no number");
	if (n < K || json_array_size(logp) != (size_t)n)
		return err_set(why, EX_DATAERR, "a list of \"topk\" has %d entries "
		    "(\"topk_logprob\" %zu), --topk is %d", n,
		    json_array_size(logp), K);
	for (int i = 0; i < n; i++) {
		const json_t *id = json_array_get(ids, (size_t)i), *lp = json_array_get(logp,
		    (size_t)i);

		if (candidate(id, lp, vocab, why) < 0)
			return -1;
		if (i >= K) {
			left = add_logs(left, json_number_value(lp) / want.temperature);
			continue;
		}
		w[i] = (uint32_t)json_integer_value(id);
		w[K + i] = bits(json_number_value(lp));
	}
	w[2 * K] = bits(left > (double)NOTHING ? left : (double)NOTHING);
	return 0;
}

/* Tokens and candidates as words. *any: something is to be learned. */
static int words(const json_t *rec, const struct ids *tokens, int vocab, struct ids *out, bool *any,
    struct err *why)
{
	const json_t *ids = json_object_get(rec, "topk"), *logp = json_object_get(rec,
	    "topk_logprob");
	const json_t *rest = json_object_get(rec, "topk_rest");
	size_t n = (size_t)tokens->n;
	bool learn = false;

	*any = false;
	if (json_array_size(ids) != n || json_array_size(logp) != n || json_array_size(rest) != n)
		return err_set(why, EX_DATAERR, "\"topk\", \"topk_logprob\" and \"topk_rest\" are "
		    "not as long as \"tokens\"");
	for (size_t i = 0; i < n; i++) {
		const json_t *list = json_array_get(ids, i);
		int at = out->n + 1;

		if (!json_is_array(list))
			return err_set(why, EX_DATAERR, "\"topk\" is not a list of lists, one for "
			    "each token");
		ids_push(out, tokens->v[i] | (learn ? CHAT_LEARN : 0));
		for (int k = 0; k < WORDS(want.K); k++)
			ids_push(out, 0);
		learn = json_array_size(list) > 0;
		*any |= learn && i + 1 < n;
		if (learn && candidates(list, json_array_get(logp, i), json_array_get(rest, i),
		    vocab, out->v + at, why) < 0)
			return -1;
	}
	return 0;
}

static int topk_words(struct tok *t, int vocab, const json_t *rec, int n, struct ids *out,
    struct record_count *count,
    struct err *why)
{
	const char *type = json_string_value(json_object_get(rec, "type"));
	struct ids tokens = {0};
	bool any = true;
	int rc;

	(void)t;
	(void)n;
	if (type != NULL && strcmp(type, "total") == 0)
		return 0;
	rc = check_record(rec, vocab, why);
	if (rc == 0)
		rc = record_tokens(rec, vocab, &tokens, why);
	if (rc == 0)
		rc = words(rec, &tokens, vocab, out, &any, why);
	if (rc == 0 && !any) {
		count->empty++;
		out->n = 0;
	}
	ids_free(&tokens);
	return rc;
}

static void *topk_open(const struct train_opt *o, const struct config *c, struct tok *t, int nfiles,
    char *const files[],
    bool eval, struct err *e)
{
	static struct chat_kind kind = { .unit = "texts", .item = topk_words };

	kind.stride = 1 + WORDS(want.K);
	return chat_open_kind(&kind, o, c, t, nfiles, files, eval, e);
}

const struct source *teacher_topk_source(int K, double temperature, int T)
{
	static struct source s;

	want.K = K;
	want.temperature = temperature;
	s = chat_source;
	s.open = topk_open;
	s.extra = (size_t)T * WORDS((size_t)K) * sizeof(uint32_t);
	return &s;
}

/* --- as a teacher --- */

struct complete {
	const struct micro *mb;
	int64_t row;
	int V;
	double temperature;
	const real *student;
	real *logits;
};

/* ln of the mass that the teacher leaves to ids it does not name, over the sum of its exp(ln p /
 * t). */
static double rest_of(const uint32_t *w, double t)
{
	double sum = 0;

	if (t == want.temperature)
		return from_bits(w[2 * want.K]);
	for (int k = 0; k < want.K; k++)	/* t is 1 */
		sum += exp(from_bits(w[want.K + k]));
	return log(fmax(1 - sum, LEAST));
}

static void complete_row(const uint32_t *w, const real *z, real *out, int V, double t)
{
	double max = -INFINITY, sum = 0, shift;

	memcpy(out, z, (size_t)V * sizeof *out);
	for (int k = 0; k < want.K; k++)
		out[w[k]] = (real)-INFINITY;
	for (int j = 0; j < V; j++)
		max = fmax(max, (double)out[j]);
	for (int j = 0; j < V && max > -INFINITY; j++)
		sum += exp(((double)out[j] - max) / t);
	shift = t * (rest_of(w, t) - log(sum)) - max;
	for (int j = 0; j < V; j++)
		out[j] += (real)shift;
	for (int k = 0; k < want.K; k++)
		out[w[k]] = (real)from_bits(w[want.K + k]);
}

static void complete_rows(void *ctx, int64_t i0, int64_t i1, int worker)
{
	const struct complete *c = ctx;
	const uint32_t *extra = c->mb->extra;

	(void)worker;
	for (int64_t i = i0; i < i1; i++)
		if (c->mb->b.target[c->row + i] >= 0)
			complete_row(extra + (c->row + i) * WORDS(want.K), c->student + i * c->V,
			    c->logits + i * c->V, c->V,
			    c->temperature);
}

static void topk_complete(void *self, const struct micro *mb, int64_t row, int64_t n, int V,
    double temperature,
    const real *student, real *logits)
{
	struct complete c = { mb, row, V, temperature, student, logits };

	(void)self;
	pool_for(n, 4, complete_rows, &c);
}

const struct teacher teacher_topk_teacher = { .complete = topk_complete };
