/*
 * predict: who is needed next. Sources say how likely each expert of a layer is; what they say
 * together becomes a calibrated probability, and that goes to the store (store_predict), which
 * reads what it can afford when the drive is idle.
 *
 *	gate		the router of the next sparse layer, applied to the router input of this one
 *	shared		the same, with the shared experts' output of this layer added first
 *	same		the lookahead head's offset 0: the other layers of this token, said after
 *			layer 0 (format 2)
 *	lookahead	the head's offsets 1..K: the tokens that follow
 *	previous	what the sequence's last token used
 *	popularity	what has been used of late
 *	foresee		the heads of chr-foresee on the router input of this layer: the next
 *			ones, as many as they have horizons, also those of the token that follows
 *	intent		what a prompt says of its answer (decode_intent.c): before it, for all
 *			layers
 *	oracle		a log of the same run (oracle.h): what the best of all prefetchers would do
 *	control		a layer's own router on its own input: right by construction; if not, the
 *			accounting is wrong
 *
 * A source gives a margin per expert: how far its logit, or what else the router chooses by, is
 * above the border between the K-th and the next, in units of how far those of that layer are apart
 * (previous: 1 or -1; popularity: log of the share over an even one). The probability is a logistic
 * regression on the margins, one for each layer and horizon, learned as the run goes: after each
 * layer the router's choice says what was right. In the middle of a prompt many rows ask at once:
 * there what the gate expects of all of them counts, with a regression of its own.
 *
 * Every source that is on is also measured by itself: of the K experts it names, how many the
 * router then chose, how often all, and how long before.
 */
#ifndef CHR_PREDICT_H
#define CHR_PREDICT_H

#include <stdbool.h>
#include <stdint.h>

#include "arch/config.h"
#include "base/real.h"
#include "experts/store.h"

enum predictor { SRC_GATE, SRC_SHARED, SRC_SAME, SRC_LOOK, SRC_PREVIOUS, SRC_POPULAR, SRC_FORESEE,
    SRC_CONTROL, SRC_TOGETHER, SRC_N,
	/* these only label reads */
	SRC_INTENT = SRC_N, SRC_ORACLE, SRC_HEAT = STORE_HEAT, SRC_ABANDONED = CACHE_ABANDONED,
	SRC_LABELS };
#define SRC_BIT(s) (1 << (s))
#define SRC_MEASURED (SRC_BIT(SRC_CONTROL) - 1)	/* those that have something to say in every
						   layer */

extern const char *const source_name[SRC_LABELS];

/* "gate,lookahead", "none" or "all" (but control); bits, or -1 with *why. */
int source_list(const char *list, const char **why);

struct source_stats {		/* sums over layers and rows */
	uint64_t slots, hit;	/* experts chosen by the router when the source had said
				   something; named by it */
	uint64_t sets, whole;	/* layers of a row; all K named */
	double lead;		/* seconds from the word to the choice, summed over sets */
};

struct predict_row {		/* what is known of a row before its layers are; NULL: nothing */
	const float *expect;	/* (Ls, E) margins the head gave at the token before */
	const float *same;	/* (Ls, E) margins the head gave at this one */
	const int32_t *last;	/* (Ls, K) what the token before used */
	struct foreseen *ahead;	/* what heads said of layers to come, of this one's sequence */
	int pos;		/* of the token */
};

/* What the heads of chr-foresee said, of each layer from each horizon. */
struct foreseen {
	int horizons;		/* H */
	float *margin;		/* (Ls, H, E) */
	int *pos;		/* (Ls, H) of the token that it was said of */
};

bool predict_among(const int32_t *set, int n, int32_t x);	/* is x one of the n? */

struct predict;

/* NULL: out of memory */
struct predict *predict_new(const struct config *c, int max_rows, int sources);
void predict_free(struct predict *p);
/* what predict_new takes */
int64_t predict_bytes(const struct config *c, int max_rows);

/* What layer i's router would choose by (R, E), as `who` computed it: gate, shared or control. The
 * largest K are the choice: logits, or router_wants() of them. i counts sparse layers. */
void predict_hear(struct predict *p, enum predictor who, int i, const real *wants, int R);
/* Tells the store about layer i, the next, all that is known of it. */
void predict_next(struct predict *p, struct store *s, int i, const struct predict_row *row, int R);
/* logits (rows of the head) after layer 0 of a token: same and coming get its offsets 0 and 1 as
 * (Ls, E) margins (same is left alone without offset 0: the return value says so) and the store
 * hears of both. since: sparse layers this token has passed. */
bool predict_look(struct predict *p, struct store *s, const real *logits, int since, float *same,
    float *coming);
/* logits (R, H, E) that heads gave after layer i of the H layers that follow, and which the rows
 * are. The store hears of all but the next of this token, which is for predict_next(). */
void predict_foresee(struct predict *p, struct store *s, int i, const real *logits, int R,
    const struct predict_row *row);
/* Layer i's router chose ids (R, K). stats: (SRC_N). */
void predict_seen(struct predict *p, int i, const int32_t *ids, int R,
    const struct predict_row *row,
    struct source_stats *stats);

#endif
