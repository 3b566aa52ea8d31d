/*
 * prefs: preference pairs to batches, the source of chr-dpo and chr-orpo. A record has "chosen" and "rejected", each
 * a string, a turn, or a list of turns; what comes before is its "prompt" or "question" (a string or a list of turns), or
 * its "messages" or "conversations" up to the last turn of the user; or "chosen" and "rejected" are whole conversations.
 * Learned are the assistant's tokens after the turns that both share.
 *
 * The two sequences of each pair are laid into rows one after the other, longest first, with no attention across; rows
 * are as long as the longest of the micro-batch. micro.extra is an array of struct pref (loss_pref.h), prefs_pairs() of
 * them.
 */
#ifndef CHR_PREFS_H
#define CHR_PREFS_H

#include "loss_pref.h"
#include "train.h"

enum { PREFS_DROP, PREFS_KEEP_START, PREFS_KEEP_END };

struct prefs_opt {
	int truncate;			/* what becomes of a sequence that is longer than --seq */
	bool think;			/* an empty think block opens each assistant turn */
	const char *ref;		/* file of reference log-probs (refcache.h), or NULL */
};
extern struct prefs_opt prefs_flags;	/* what the tables fill in */
extern const struct opt prefs_opts[];	/* --truncate, --think */

extern const struct source prefs_source;	/* items are pairs: a stage's group is 2 */

int64_t prefs_pairs(const struct micro *mb);	/* a stage's units */

/* A stage's prepare: when prefs_flags.ref is set, reads the log-probs in that file, or computes those of all pairs under
 * the starting model and writes it. struct pref has them in ref from then on. */
int prefs_prepare(const struct stage_env *v, struct err *e);

#endif
