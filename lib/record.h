/*
 * record: what a JSONL record says: its text, its conversation, its tokens. Every program that reads text reads it
 * through here, so all of them understand the same records.
 *
 *	size_t len;
 *	char *text = record_text(rec, &len);
 *	if (!text)
 *		return jsonl_bad(in, &e, "no text in the record");
 */
#ifndef CHR_RECORD_H
#define CHR_RECORD_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "err.h"

/* The text of a record, malloc'ed and NUL-terminated (*len bytes, len may be NULL), or NULL when it has none. The first
 * of these that the record has as strings:
 *	text, content, story, passage, document, article;
 *	instruction+output, instruction+response, prompt+response, prompt+completion, input+output, question+answer,
 *	query+answer, joined by a newline;
 *	conversations or messages: the turns' content (or value) joined by newlines, without roles;
 *	else all strings and numbers of the record, joined by newlines. */
char *record_text(const json_t *rec, size_t *len);

/* The array under "messages" or "conversations" (borrowed), or NULL. Its turns are checked by tok_chat(). */
const json_t *record_messages(const json_t *rec);

#endif
