/*
 * coverage: of the experts that answers used, how many are among the N of each layer that
 * somebody named before the answer began? Somebody is, on the same held sequences:
 *
 *	intent			the encoder, from the prompt's tokens
 *	popularity		what the answers of training used most
 *	prompt			what the prompt itself used most, which prefill finds out for
 *				nothing
 *	prompt_popularity	the latter two, weighted
 *	prompt_intent		intent and what the prompt used, weighted
 *	oracle			what the answer used most: the most that N experts can cover
 *	lru			no fixed set: the N used last, from the start of the prompt, as
 *				they change in the answer
 *
 *	coverage_open(&c, &answers, m, popular, &e);
 *	coverage_blends(&c);			(weights, from sequences that are not held)
 *	coverage_put(&c, record);
 */
#ifndef CHR_COVERAGE_H
#define CHR_COVERAGE_H

#include <jansson.h>

#include "experts/intent_pairs.h"
#include "base/err.h"
#include "experts/intent.h"

enum { BY_INTENT, BY_POPULARITY, BY_PROMPT, BY_PROMPT_POPULARITY, BY_PROMPT_INTENT, BY_ORACLE,
    BY_LRU, COVERAGE_SOURCES };

struct coverage {
	const struct intent_pairs *a;
	const struct intent *m;
	double blend, blend_popularity;		/* what the prompt's own uses count beside
						   intent, popularity */
	real *score[COVERAGE_SOURCES];		/* (Ls, E) each */
	int *order;				/* (E) */
};

/* popular: (Ls, E) uses by the answers of training. */
int coverage_open(struct coverage *c, const struct intent_pairs *a, const struct intent *m,
    const double *popular, struct err *e) CHR_MUST_CHECK;
void coverage_blends(struct coverage *c);	/* the best of 0, 0.1, ... 1 on the sequences to
						   choose by */
/* "loss", "kl", "blend", "blend_popularity" and "coverage" (man chr-intent.1), null when no
 * sequence is held. */
void coverage_put(const struct coverage *c, json_t *rec);
void coverage_close(struct coverage *c);

/* Least cross-entropy of uses of experts (Ls, E): their own entropy, mean over layers, in nats. */
double coverage_entropy(const real *used, int Ls, int E);

/* Of the uses in used (Ls, E), how many fall on the N experts of each layer with the highest
 * score (Ls, E); of equal scores the lowest index goes first. order: scratch (E). */
double coverage_of(const real *used, const real *score, int Ls, int E, int N, int *order);
/* Of the uses of the last T - n of T tokens, id (T, Ls, K), how many find their expert among the
 * N that its layer used last. */
int64_t coverage_lru(const int *id, int n, int64_t T, int Ls, int K, int N, int *order);

#endif
