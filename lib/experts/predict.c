#include "experts/predict.h"
#include "base/progress.h"
#include "experts/foresee.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { NEAR, SAME, NEXT, MANY,
	FAR,				/* from the heads of chr-foresee, each of their horizons */
	HORIZONS = FAR + FORESEE_MAX_HORIZON };
enum { TEACHERS = 4 };			/* rows of a pass that teach: rows in the middle of a
					   prompt lack most evidence */
#define RATE 0.5f			/* of learning: AdaGrad (Duchi et al., JMLR 12, 2011) */
#define MOST 8				/* margins are cut to within +-MOST */
#define FADE (1 / 64.0f)		/* weight of the newest in what is remembered */
#define LEAST 0.02f			/* less likely ones are not passed on */

const char *const source_name[SRC_LABELS] = {
	[SRC_GATE] = "gate", [SRC_SHARED] = "shared", [SRC_SAME] = "same", [SRC_LOOK] = "lookahead",
	    [SRC_PREVIOUS] = "previous",
	[SRC_POPULAR] = "popularity", [SRC_CONTROL] = "control", [SRC_TOGETHER] = "together",
	    [SRC_FORESEE] = "foresee", [SRC_INTENT] = "intent", [SRC_ORACLE] = "oracle",
	[SRC_HEAT] = "heat", [SRC_ABANDONED] = "abandoned",
};

struct predict {
	const struct config *cfg;
	int sources;
	int layer[CFG_MAX_LAYERS];	/* real index of the i-th sparse layer */
	float *heard[SRC_CONTROL + 1];	/* (R, E) gate, shared, control: margins, */
	int heard_of[SRC_CONTROL + 1];	/* of this layer; -1: nothing */
	float *popular;			/* (Ls, E) share of recent tokens that used it */
	float *flat, *spare;		/* (E) margins from that; of an offset beyond the next
					   token */
	float *prob;			/* (E) that one of the rows will use it, */
	float *load;			/* (E) and how often they should, when they are many */
	float *later;			/* (E) as prob, of layers further on */
	float *each;			/* (R, E) that this row will, of the layer told last, */
	int each_of;			/* which is this; -1: none */
	/* weights; the last is the bias, since control is no evidence */
	float (*w)[HORIZONS][SRC_CONTROL + 1];		/* (Ls) */
	/* of their gradients, summed */
	float (*squares)[HORIZONS][SRC_CONTROL + 1];	/* (Ls) */
	double told[SRC_N][CFG_MAX_LAYERS];	/* when a source spoke about layer i */
	float spread[SRC_CONTROL + 1][CFG_MAX_LAYERS];	/* standard deviation of a source's
							   logits, of late */
	float far_spread[FORESEE_MAX_HORIZON][CFG_MAX_LAYERS];
	int32_t *best;			/* (K + 1) */
};

int source_list(const char *list, const char **why)
{
	int bits = 0;

	if (strcmp(list, "none") == 0)
		return 0;
	for (size_t n; *list; list += n + (list[n] == ',')) {
		int i = 0;

		n = strcspn(list, ",");
		if (n == 3 && strncmp(list, "all", 3) == 0) {
			bits |= SRC_MEASURED | SRC_BIT(SRC_INTENT);
			continue;
		}
		while (i <= SRC_ORACLE && (i == SRC_TOGETHER || strlen(source_name[i]) != n ||
		    strncmp(list, source_name[i], n) != 0))
			i++;
		if (i > SRC_ORACLE) {
			*why = "not a list of gate, shared, same, lookahead, previous, popularity, "
			    "foresee, intent, oracle, control; or all, or none";
			return -1;
		}
		bits |= SRC_BIT(i);
	}
	*why = "an empty list";
	return bits ? bits : -1;
}

/* How often each source was right on models of random weights and small trained ones, roughly:
 * where learning begins. */
static const float prior[HORIZONS][SRC_CONTROL + 1] = {
	[NEAR] = { [SRC_GATE] = 3, [SRC_SHARED] = 3, [SRC_SAME] = 1, [SRC_LOOK] = 0.1f,
	    [SRC_PREVIOUS] = 0.2f,
	    [SRC_POPULAR] = 0.2f, [SRC_FORESEE] = 3, [SRC_CONTROL] = -0.5f },
	[SAME] = { [SRC_SAME] = 2.5f, [SRC_LOOK] = 0.2f, [SRC_PREVIOUS] = 0.2f, [SRC_POPULAR] =
	    0.2f, [SRC_CONTROL] = -1 },
	[NEXT] = { [SRC_LOOK] = 2, [SRC_POPULAR] = 0.2f, [SRC_CONTROL] = -1 },
	[MANY] = { [SRC_GATE] = 1.5f },		/* of the log of how often the rows should use it */
	[FAR ... HORIZONS - 1] = { [SRC_FORESEE] = 2.5f, [SRC_PREVIOUS] = 0.2f,
	    [SRC_POPULAR] = 0.2f, [SRC_CONTROL] = -1 },
};

int64_t predict_bytes(const struct config *c, int max_rows)
{
	int64_t E = c->num_experts, R = max_rows, K = c->num_experts_per_tok;

	return (int64_t)sizeof(struct predict) + 4 * (c->num_sparse *
	    (E + 2 * HORIZONS * (SRC_CONTROL + 1)) + 4 * R * E + 5 * E + K + 2);
}

struct predict *predict_new(const struct config *c, int max_rows, int sources)
{
	struct predict *p = calloc(1, sizeof *p);
	size_t E = (size_t)c->num_experts, each = (size_t)max_rows * E + 1;

	if (p == NULL)
		return NULL;
	p->cfg = c;
	p->sources = sources;
	p->w = calloc((size_t)c->num_sparse + 1, sizeof *p->w);
	p->squares = calloc((size_t)c->num_sparse + 1, sizeof *p->squares);
	if (!p->w || !p->squares) {
		predict_free(p);
		return NULL;
	}
	for (int h = 0; h < HORIZONS; h++)
		for (int i = 0; i < c->num_sparse; i++)
			memcpy(p->w[i][h], prior[h], sizeof prior[h]);
	p->each_of = -1;
	for (int s = SRC_GATE; s <= SRC_CONTROL; s++)
		p->heard_of[s] = -1;
	p->heard[SRC_GATE] = calloc(each, sizeof(float));
	p->heard[SRC_SHARED] = calloc(each, sizeof(float));
	p->heard[SRC_CONTROL] = calloc(each, sizeof(float));
	p->each = calloc(each, sizeof(float));
	p->popular = calloc((size_t)c->num_sparse * E + 1, sizeof(float));
	p->flat = calloc(E + 1, sizeof(float));
	p->spare = calloc(E + 1, sizeof(float));
	p->prob = calloc(E + 1, sizeof(float));
	p->load = calloc(E + 1, sizeof(float));
	p->later = calloc(E + 1, sizeof(float));
	p->best = calloc((size_t)c->num_experts_per_tok + 2, sizeof *p->best);
	if (!p->heard[SRC_GATE] || !p->heard[SRC_SHARED] || !p->heard[SRC_CONTROL] || !p->each ||
	    !p->popular || !p->flat
	    || !p->spare || !p->prob || !p->load || !p->later || !p->best) {
		predict_free(p);
		return NULL;
	}
	for (int l = 0, i = 0; l < c->num_hidden_layers; l++)
		if (c->block[l].sparse)
			p->layer[i++] = l;
	for (size_t i = 0; i < (size_t)c->num_sparse * E; i++)
		p->popular[i] = (float)c->num_experts_per_tok / (float)E;
	return p;
}

void predict_free(struct predict *p)
{
	if (p == NULL)
		return;
	free(p->w);
	free(p->squares);
	free(p->heard[SRC_GATE]);
	free(p->heard[SRC_SHARED]);
	free(p->heard[SRC_CONTROL]);
	free(p->each);
	free(p->popular);
	free(p->flat);
	free(p->spare);
	free(p->prob);
	free(p->load);
	free(p->later);
	free(p->best);
	free(p);
}

static bool on(const struct predict *p, enum predictor s)
{
	return p->sources & SRC_BIT(s);
}

/* The n largest of v (E) in descending order, ties to the lowest id. */
static void top(int32_t *best, int n, const float *v, int E)
{
	int have = 0;

	for (int x = 0; x < E; x++) {
		int j;

		if (have == n && !(v[x] > v[best[n - 1]]))
			continue;
		j = have < n ? have++ : n - 1;
		for (; j > 0 && v[x] > v[best[j - 1]]; j--)
			best[j] = best[j - 1];
		best[j] = x;
	}
}

static float within(float x)		/* not a number: 0, which says nothing */
{
	return x != x ? 0 : x > MOST ? MOST : x < -MOST ? -MOST : x;
}

/* margin (E) of logits (E) over the border of the top K; all zero when all are chosen anyway.
 * spread: of this source and layer. */
static void margins(struct predict *p, float *spread, float *margin, const real *logits)
{
	int E = p->cfg->num_experts, K = p->cfg->num_experts_per_tok;
	float border, sum = 0, squares = 0;

	for (int x = 0; x < E; x++) {
		margin[x] = K < E ? (float)logits[x] : 0;
		sum += margin[x];
		squares += margin[x] * margin[x];
	}
	if (K >= E)
		return;
	squares = sqrtf(fmaxf(squares / (float)E - sum / (float)E * (sum / (float)E), 1e-12f));
	if (isfinite(squares))
		*spread += (squares - *spread) * (*spread > 0 ? FADE : 1);
	top(p->best, K + 1, margin, E);
	border = (margin[p->best[K - 1]] + margin[p->best[K]]) / 2;
	for (int x = 0; x < E; x++)
		margin[x] = within((margin[x] - border) / *spread);
}

void predict_hear(struct predict *p, enum predictor who, int i, const real *wants, int R)
{
	int64_t E = p->cfg->num_experts;

	for (int r = 0; r < R; r++)
		margins(p, &p->spread[who][i], p->heard[who] + r * E, wants + r * E);
	p->heard_of[who] = i;
	p->told[who][i] = progress_clock();
}

/* Margins of popularity in layer i, in p->flat. */
static const float *flat(struct predict *p, int i)
{
	int E = p->cfg->num_experts;
	const float *share = p->popular + (int64_t)i * E,
	    even = (float)p->cfg->num_experts_per_tok / (float)E;

	for (int x = 0; x < E; x++)
		p->flat[x] = within(logf(share[x] / even + 1e-3f));
	return p->flat;
}

/* (E) margins by source, or NULL */
struct evidence { const float *of[SRC_CONTROL]; const int32_t *last; };

/* (E) margins that heads gave from h layers before layer i of this row's token, or NULL. */
static const float *foreseen(const struct predict *p, int i, int h, const struct predict_row *row)
{
	const struct foreseen *f = row->ahead;
	int at = f ? i * f->horizons + h - 1 : 0;

	return f && f->pos[at] == row->pos ? f->margin + (int64_t)at * p->cfg->num_experts : NULL;
}

static struct evidence evidence(struct predict *p, int i, int r, const struct predict_row *row)
{
	int64_t E = p->cfg->num_experts, K = p->cfg->num_experts_per_tok;
	struct evidence e = { .last = NULL };

	for (int s = SRC_GATE; s <= SRC_SHARED; s++)
		if (p->heard_of[s] == i)
			e.of[s] = p->heard[s] + r * E;
	if (row->same)
		e.of[SRC_SAME] = row->same + i * E;
	if (row->expect)
		e.of[SRC_LOOK] = row->expect + i * E;
	e.of[SRC_FORESEE] = foreseen(p, i, 1, row);
	if (on(p, SRC_POPULAR) && row->last)
		e.of[SRC_POPULAR] = p->flat;
	if (on(p, SRC_PREVIOUS) && row->last)
		e.last = row->last + i * K;
	return e;
}

bool predict_among(const int32_t *set, int n, int32_t x)
{
	for (int i = 0; i < n; i++)
		if (set[i] == x)
			return true;
	return false;
}

static float margin_of(const struct evidence *e, enum predictor s, int K, int x)
{
	if (s == SRC_PREVIOUS)
		return !e->last ? 0 : predict_among(e->last, K, x) ? 1 : -1;
	return e->of[s] ? e->of[s][x] : 0;
}

static float probability(const struct predict *p, int horizon, int i, const struct evidence *e,
    int x)
{
	const float *w = p->w[i][horizon];
	float z = w[SRC_CONTROL];

	for (enum predictor s = SRC_GATE; s < SRC_CONTROL; s++)
		if (e->of[s] || (s == SRC_PREVIOUS && e->last))
			z += w[s] * margin_of(e, s, p->cfg->num_experts_per_tok, x);
	return 1 / (1 + expf(-z));
}

static void tell(struct predict *p, struct store *s, int i, const float *prob, int when,
    enum predictor label)
{
	for (int x = 0; x < p->cfg->num_experts; x++)
		if (prob[x] >= LEAST)
			store_predict(s, p->layer[i], x, prob[x], when, label);
}

void predict_next(struct predict *p, struct store *s, int i, const struct predict_row *row, int R)
{
	const float *many = p->w[i][MANY];
	int64_t E = p->cfg->num_experts;

	flat(p, i);
	memset(p->load, 0, sizeof(float) * (size_t)E);
	for (int r = 0; r < R; r++) {
		struct evidence e = evidence(p, i, r, &row[r]);

		for (int x = 0; x < E; x++)
			p->load[x] += p->each[r * E + x] = probability(p, NEAR, i, &e, x);
	}
	for (int x = 0; x < E; x++) {
		p->load[x] = within(logf(p->load[x]));
		p->prob[x] = R == 1 ? p->each[x]
		    : 1 / (1 + expf(-many[SRC_CONTROL] - many[SRC_GATE] * p->load[x]));
	}
	p->each_of = i;
	p->told[SRC_TOGETHER][i] = progress_clock();
	tell(p, s, i, p->prob, 1, SRC_TOGETHER);
}

/* What the head says of one layer of this token or a later one. */
static void look_layer(struct predict *p, struct store *s, int i, int horizon, enum predictor who,
    const float *margin, int when)
{
	struct evidence e = { .last = NULL };

	e.of[who] = margin;
	if (on(p, SRC_POPULAR))
		e.of[SRC_POPULAR] = flat(p, i);
	for (int x = 0; x < p->cfg->num_experts; x++)
		p->later[x] = probability(p, horizon, i, &e, x);
	tell(p, s, i, p->later, when, who);
}

bool predict_look(struct predict *p, struct store *s, const real *logits, int since, float *same,
    float *coming)
{
	int Ls = p->cfg->num_sparse, E = p->cfg->num_experts, K = p->cfg->lookahead_steps;
	bool layered = p->cfg->lookahead_per_layer;
	double t = progress_clock();

	for (int k = layered ? 0 : 1; k <= K; k++)
		for (int i = 0; i < Ls; i++) {
			float *margin = k == 0 ? same + (int64_t)i * E : k == 1
			    ? coming + (int64_t)i * E : p->spare;

			if (k == 0 && !on(p, SRC_SAME))
				break;
			margins(p, &p->spread[k == 0 ? SRC_SAME : SRC_LOOK][i], margin,
			    logits + (layered ? (int64_t)k * Ls + i : k) * E);
			if (k > 0 && on(p, SRC_LOOK))
				look_layer(p, s, i, NEXT, SRC_LOOK, margin, k * Ls - since + i);
			/* the layer after a sparse one is predict_next's */
			else if (k == 0 && (i > since || since == 0))
				look_layer(p, s, i, SAME, SRC_SAME, margin, i - since);
			if (k <= 1)
				p->told[k == 0 ? SRC_SAME : SRC_LOOK][i] = t;
		}
	return layered && on(p, SRC_SAME);
}

/* What is known of layer i from h layers before it. */
static struct evidence evidence_far(const struct predict *p, int i, int h,
    const struct predict_row *row)
{
	struct evidence e = { .last = on(p, SRC_PREVIOUS) ? row->last +
	    (int64_t)i * p->cfg->num_experts_per_tok : NULL };

	e.of[SRC_FORESEE] = foreseen(p, i, h, row);
	if (on(p, SRC_POPULAR))
		e.of[SRC_POPULAR] = p->flat;
	return e;
}

/* Layer j, h layers on, of the rows' tokens or (next) of those that follow: the chance that one of
 * them will use an expert. */
static void foresee_layer(struct predict *p, int j, int h, bool next, int R,
    const struct predict_row *row)
{
	int E = p->cfg->num_experts;

	flat(p, j);
	for (int x = 0; x < E; x++)
		p->later[x] = 1;
	for (int r = 0; r < R; r++) {
		struct predict_row of = row[r];
		struct evidence e;

		of.pos += next;
		e = evidence_far(p, j, h, &of);
		for (int x = 0; x < E; x++)
			p->later[x] *= 1 - probability(p, FAR + h - 1, j, &e, x);
	}
	for (int x = 0; x < E; x++)
		p->later[x] = 1 - p->later[x];
}

void predict_foresee(struct predict *p, struct store *s, int i, const real *logits, int R,
    const struct predict_row *row)
{
	int Ls = p->cfg->num_sparse, E = p->cfg->num_experts, H = row->ahead->horizons;

	for (int h = 1; h <= H; h++) {
		int j = (i + h) % Ls;
		bool next = i + h >= Ls;

		for (int r = 0; r < R; r++) {
			struct foreseen *f = row[r].ahead;
			int at = j * H + h - 1;

			margins(p, &p->far_spread[h - 1][j], f->margin + (int64_t)at * E,
			    logits + ((int64_t)r * H + h - 1) * E);
			f->pos[at] = row[r].pos + next;
		}
		if (h == 1)
			p->told[SRC_FORESEE][j] = progress_clock();
		if (h == 1 && !next)
			continue;
		foresee_layer(p, j, h, next, R, row);
		tell(p, s, j, p->later, h, SRC_FORESEE);
	}
}

static void follow(struct predict *p, int horizon, int i, const float *slope)
{
	for (enum predictor s = SRC_GATE; s <= SRC_CONTROL; s++) {
		if (!isfinite(slope[s]))
			continue;
		p->squares[i][horizon][s] += slope[s] * slope[s];
		p->w[i][horizon][s] += RATE * slope[s] / sqrtf(p->squares[i][horizon][s] + 1);
	}
}

/* Of the rows that predict_next was told about together. */
static void learn_many(struct predict *p, int i, const int32_t *ids, int n)
{
	float slope[SRC_CONTROL + 1] = { 0 };

	for (int x = 0; x < p->cfg->num_experts; x++) {
		float off = (float)predict_among(ids, n, x) - p->prob[x];

		slope[SRC_GATE] += off * p->load[x];
		slope[SRC_CONTROL] += off;
	}
	follow(p, MANY, i, slope);
}

static void learn(struct predict *p, int horizon, int i, const struct evidence *e,
    const float *prob, const int32_t *ids)
{
	float slope[SRC_CONTROL + 1] = { 0 };
	int K = p->cfg->num_experts_per_tok;

	for (int x = 0; x < p->cfg->num_experts; x++) {
		float off = (float)predict_among(ids, K, x) - (prob ? prob[x]
		    : probability(p, horizon, i, e, x));

		for (enum predictor s = SRC_GATE; s < SRC_CONTROL; s++)
			slope[s] += off * margin_of(e, s, K, x);
		slope[SRC_CONTROL] += off;
	}
	follow(p, horizon, i, slope);
}

static void count(struct source_stats *st, const int32_t *named, const int32_t *ids, int K,
    double lead)
{
	int right = 0;

	for (int k = 0; k < K; k++)
		right += predict_among(named, K, ids[k]);
	st->slots += (uint64_t)K;
	st->hit += (uint64_t)right;
	st->sets++;
	st->whole += right == K;
	st->lead += lead;
}

static void measure(struct predict *p, int i, int r, const struct evidence *e, const int32_t *ids,
    double t,
    struct source_stats *stats)
{
	int E = p->cfg->num_experts, K = p->cfg->num_experts_per_tok;

	for (enum predictor s = SRC_GATE; s < SRC_CONTROL; s++)
		if (e->of[s]) {
			top(p->best, K, e->of[s], E);
			count(&stats[s], p->best, ids, K, s == SRC_POPULAR ? 0 : t - p->told[s][i]);
		}
	if (e->last)
		count(&stats[SRC_PREVIOUS], e->last, ids, K, 0);
	if (p->heard_of[SRC_CONTROL] == i) {
		top(p->best, K, p->heard[SRC_CONTROL] + (int64_t)r * E, E);
		count(&stats[SRC_CONTROL], p->best, ids, K, 0);
	}
	if (p->each_of == i) {
		top(p->best, K, p->each + (int64_t)r * E, E);
		count(&stats[SRC_TOGETHER], p->best, ids, K, t - p->told[SRC_TOGETHER][i]);
	}
}

void predict_seen(struct predict *p, int i, const int32_t *ids, int R,
    const struct predict_row *row,
    struct source_stats *stats)
{
	int64_t E = p->cfg->num_experts, K = p->cfg->num_experts_per_tok;
	double t = progress_clock();

	if (!p->sources)
		return;
	flat(p, i);
	if (R > 1 && p->each_of == i)
		learn_many(p, i, ids, R * (int)K);
	for (int r = 0; r < R; r++) {
		struct evidence e = evidence(p, i, r, &row[r]), ahead = { .last = NULL };

		measure(p, i, r, &e, ids + r * K, t, stats);
		if (r >= TEACHERS || row[r].last == NULL)
			continue;
		if (p->each_of == i)
			learn(p, NEAR, i, &e, p->each + r * E, ids + r * K);
		ahead.of[SRC_POPULAR] = e.of[SRC_POPULAR];
		if ((ahead.of[SRC_SAME] = e.of[SRC_SAME]) != NULL)
			learn(p, SAME, i, &ahead, NULL, ids + r * K);
		ahead.of[SRC_SAME] = NULL;
		if ((ahead.of[SRC_LOOK] = e.of[SRC_LOOK]) != NULL)
			learn(p, NEXT, i, &ahead, NULL, ids + r * K);
		for (int h = 1; row[r].ahead && h <= row[r].ahead->horizons; h++) {
			ahead = evidence_far(p, i, h, &row[r]);
			if (ahead.of[SRC_FORESEE])
				learn(p, FAR + h - 1, i, &ahead, NULL, ids + r * K);
		}
	}
	p->heard_of[SRC_GATE] = p->heard_of[SRC_SHARED] = p->heard_of[SRC_CONTROL] = p->each_of =
	    -1;
	for (int64_t x = 0; x < E; x++)
		p->popular[i * E + x] *= 1 - FADE;
	for (int64_t j = 0; j < R * K; j++)
		p->popular[i * E + ids[j]] += FADE / (float)R;
}
