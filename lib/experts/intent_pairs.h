/*
 * intent_pairs: activation records as pairs: the tokens of a prompt, and how often its answer
 * used each expert.
 *
 *	intent_pairs_open(&a, &cfg, prompt_tokens, every);
 *	while (actlog_next(&log, &e) == 1)
 *		intent_pairs_add(&a, &log.act, &e);
 *	intent_pairs_end(&a, &e);
 *	... a.v[0..a.n) ...
 *
 * The answer of a sequence are the tokens marked as such (chr-actlog marks what was generated,
 * and the last turn of a conversation), the prompt what comes before the first of them. In a
 * sequence without marks the prompt is the first prompt_tokens tokens, or, 0, the first half.
 * Sequences without prompt or answer are left out, and counted.
 */
#ifndef CHR_INTENT_PAIRS_H
#define CHR_INTENT_PAIRS_H

#include <stdbool.h>
#include <stdint.h>

#include "experts/actlog.h"
#include "arch/config.h"
#include "base/err.h"
#include "base/real.h"

enum answer_part {
	PART_TRAIN,			/* to learn from */
	PART_DEV,			/* every tenth of those that are not held: to choose by */
	PART_HELD			/* to measure */
};

struct answer {
	int n;				/* tokens of the prompt */
	uint32_t *tok;
	int64_t tokens;			/* of the answer */
	real *used;			/* (Ls, E) by the answer */
	real *touched;			/* (Ls, E) by the prompt */
	enum answer_part part;
	int *id;			/* (n + tokens, Ls, K) experts of prompt and answer in
					   order; NULL unless held */
};

struct intent_pairs {
	const struct config *cfg;
	int prompt_tokens, every;	/* each every-th sequence is held; 0: none */
	int n, cap;
	struct answer *v;
	int64_t left_out, count[3];	/* how many of each part */
	struct pending *pending;	/* the sequence being read */
};

int intent_pairs_open(struct intent_pairs *a, const struct config *c, int prompt_tokens, int every,
    struct err *e) CHR_MUST_CHECK;
/* EX_DATAERR: the record holds no token, one outside the vocabulary, or experts where the model
 * has none, or the reverse. */
int intent_pairs_add(struct intent_pairs *a, const struct act *act, struct err *e) CHR_MUST_CHECK;
/* of the last sequence */
int intent_pairs_end(struct intent_pairs *a, struct err *e) CHR_MUST_CHECK;
void intent_pairs_free(struct intent_pairs *a);

#endif
