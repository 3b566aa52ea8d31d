/*
 * record: what a JSONL record says: its text, its conversation, its tokens. Every program that
 * reads text reads it through here, so all of them understand the same records.
 *
 *	size_t len;
 *	char *text = record_text(rec, &len, &why);
 *	if (!text)
 *		return jsonl_bad(in, &e, "%s", why.msg);
 */
#ifndef CHR_RECORD_H
#define CHR_RECORD_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"
#include "text/tok.h"

/* The text of a record, malloc'ed and NUL-terminated (*len bytes, len may be NULL), or NULL when it
 * has none. The first of these that the record has as strings:
 *	text, content, story, passage, document, article;
 *	instruction+output, instruction+response, prompt+response, prompt+completion,
 *	    input+output, question+answer,
 *	query+answer, joined by a newline, with "system" before the first and, of an instruction,
 *	    "input" or "context" behind it, where they are texts that are not empty;
 *	conversations or messages: the turns' content (or value) joined by newlines, without roles;
 *	else all strings and numbers of the record, joined by newlines; not where one of the first
 *	    six keys holds a list, an object, true or false. */
char *record_text(const json_t *rec, size_t *len, struct err *e) CHR_MUST_CHECK;

bool record_has_turns(const json_t *rec);	/* "messages" or "conversations", not null */

/* The turns of a conversation, which tok_chat() checks, in a new list; NULL: the record has none.
 * 0, or -1: what stands under "messages" or "conversations" is no list, or record_context()
 * fails. */
int record_turns(const json_t *rec, json_t **turns, struct err *e) CHR_MUST_CHECK;

/* A "system" text that stands beside the turns becomes the first of the list. What else stands
 * there for a model to see (pictures) is refused. */
int record_context(const json_t *rec, json_t *turns, struct err *e) CHR_MUST_CHECK;

/* What tok_chat() is to render of a record, with these turns: its "tools" and
 * "chat_template_kwargs" too. */
struct tok_chat record_chat(const json_t *rec, const json_t *messages);

/* Ids of the record, appended to out. 0, or -1 with a reason that jsonl_bad() can put a place
 * to; out is then as it was. record_tokens: what stands under "tokens", each below vocab (vocab
 * 0: not checked). record_ids: "tokens" when there are some, else the conversation through the
 * chat template, else the text without special tokens. t may be NULL: then only "tokens" will
 * do. */
bool record_has_tokens(const json_t *rec);
int record_tokens(const json_t *rec, int vocab, struct ids *out, struct err *e) CHR_MUST_CHECK;
int record_ids(const json_t *rec, struct tok *t, int vocab, struct ids *out, struct err *e)
    CHR_MUST_CHECK;

/* What is to be learned of n "tokens": "mask", a list of 0 and 1, or of false and true. A record
 * without tokens must have no list of that name, which would be passed over. */
int record_mask(const json_t *rec, int n, struct ids *mask, struct err *e) CHR_MUST_CHECK;
int record_no_mask(const json_t *rec, struct err *e) CHR_MUST_CHECK;

/* A document as training takes it: record_ids(), or ids that are there, between bos and eos,
 * unless it brings its own. out is empty before; t may be NULL: then there are no marks. */
int record_document(const json_t *rec, struct tok *t, int vocab, struct ids *out, struct err *e)
    CHR_MUST_CHECK;
void record_frame(const struct tok *t, struct ids *ids);

#endif
