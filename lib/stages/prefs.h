/*
 * prefs: preference pairs to batches, the source of chr-dpo and chr-orpo. A record has "chosen"
 * and "rejected", each a string, a turn, or a list of turns; what comes before is its "prompt"
 * or "question" (a string or a list of turns), or its "messages" or "conversations" up to the
 * last turn of the user; or "chosen" and "rejected" are whole conversations. Learned are the
 * assistant's tokens after the turns that both share.
 *
 * The two sequences of each pair are laid into rows one after the other, longest first, with no
 * attention across; rows are as long as the longest of the micro-batch. micro.extra is an array
 * of struct pref (loss_pref.h), prefs_pairs() of them.
 */
#ifndef CHR_PREFS_H
#define CHR_PREFS_H

#include "stages/loss_pref.h"
#include "train/train.h"

extern const char *prefs_ref;		/* file of reference log-probs (refcache.h), or NULL */
extern const struct opt prefs_opts[];	/* --batch of pairs, and those of conversations */

extern const struct source prefs_source;	/* items are pairs: a stage's group is 2 */

int64_t prefs_pairs(const struct micro *mb);	/* a stage's units */

/* A stage's prepare: when prefs_ref is set, reads the log-probs in that file, or computes those
 * of all pairs under the starting model and writes it. struct pref has them in ref from then on. */
int prefs_prepare(const struct stage_env *v, struct err *e) CHR_MUST_CHECK;

#endif
