/*
 * turn: one turn of a conversation, as records hold it: {role, content} or {from, value}.
 *
 *	if (turns_check(turns, &e) < 0)
 *		return -1;
 *	strcmp(turn_role(json_array_get(turns, 0)), "system") == 0
 *
 * Content is a text or a list of {"type": "text", "text": ...}. What a turn may hold and nothing
 * here reads (pictures, calls in an older form) is refused by name, never left out.
 */
#ifndef CHR_TURN_H
#define CHR_TURN_H

#include <jansson.h>
#include <stdbool.h>

#include "base/err.h"

/* "system", "developer", "user", "assistant" or "tool"; NULL: there is none, or another. */
const char *turn_role(const json_t *turn);
bool turn_is(const json_t *turn, const char *role);	/* turn may be NULL */
const json_t *turn_content(const json_t *turn);		/* borrowed; NULL: there is none */
json_t *turn_text(const json_t *turn);			/* a string, parts put together; new */
/* Do both say the same in the same role? */
bool turn_same(const json_t *a, const json_t *b);

/* "weight": 0, or "train", "training" or "loss": false, of the assistant: it is only read. */
bool turn_learned(const json_t *turn);

/* Is it there, and neither null nor empty? */
bool turn_set(const json_t *v);

/* A list of turns that tok_chat() can write: 0, or -1 with which one cannot and why. */
int turns_check(const json_t *turns, struct err *e) CHR_MUST_CHECK;

#endif
