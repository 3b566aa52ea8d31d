/*
 * prompt: what a record asks. The first of these that it has: `prompt` (a text, or a list of
 * turns), `question`, the turns under `messages` or `conversations` up to the last one of the
 * user. To turns, `system` and `tools` beside them belong.
 */
#ifndef CHR_PROMPT_H
#define CHR_PROMPT_H

#include <jansson.h>
#include <stdbool.h>

#include "base/err.h"
#include "text/tok.h"

struct prompt_opt {
	bool chat;		/* a text is what a user says, to be answered; else it is to be
				   continued */
	bool think;		/* answers begin with an empty think block */
};

/* Appends the ids, ending where the completion is to begin. 0, or -1 with a reason. */
int prompt_ids(struct tok *t, const json_t *rec, const struct prompt_opt *o, struct ids *out,
    struct err *why) CHR_MUST_CHECK;

/* The text of the question alone, that of the last user turn: a string; new. */
json_t *prompt_text(const json_t *rec);

#endif
