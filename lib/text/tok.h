/*
 * tok: byte-level BPE. Trains, loads and saves Hugging Face tokenizer.json (BPE model with
 * ByteLevel, or Split+ByteLevel pre-tokenizers), encodes and decodes. Arbitrary bytes round-trip
 * exactly.
 */
#ifndef CHR_TOK_H
#define CHR_TOK_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct tok;

struct ids {			/* a growing array of token ids */
	int n, cap;
	uint32_t *v;
};
void ids_push(struct ids *a, uint32_t id);
void ids_append(struct ids *a, const uint32_t *v, size_t n);
void ids_free(struct ids *a);

/* path: a tokenizer.json or another file of a tokenizer (tok_foreign.h), or a directory that holds
 * one (tokenizer_config.json beside it is read for bos, eos, pad); or a GGUF file, or a directory
 * of one (gguf_model.h). */
struct tok *tok_load(const char *path, struct err *e) CHR_MUST_CHECK;
/* The file that tok_load() would read in a directory (or a GGUF file), malloc'ed; NULL: none is
 * there. */
char *tok_find(const char *dir);
/* The tokenizer of a model, with its names of tokens and its chat template, into a directory. */
int tok_copy(const char *model, const char *dir, struct err *e) CHR_MUST_CHECK;
/* a directory gets tokenizer_config.json too */
int tok_save(const struct tok *t, const char *dir_or_file, struct err *e) CHR_MUST_CHECK;
void tok_free(struct tok *t);
/* The same tokenizer for another thread: encoding writes to a cache and scratch, which are each
 * one's own; all else is that of t, which must stay. tok_free() before that of t. NULL gives
 * NULL. */
struct tok *tok_share(const struct tok *t);
int tok_vocab(const struct tok *t);			/* largest id + 1 */
/* Has a model with so many rows in its embedding one for each token? EX_DATAERR: it has not. path:
 * of the tokenizer, for the message. */
int tok_fits(const struct tok *t, int vocab_size, const char *path, struct err *e) CHR_MUST_CHECK;
int tok_id(const struct tok *t, const char *token);	/* id of a token by its exact text
							   ("<|im_end|>"), or -1 */
/* -1: none */
int tok_bos(const struct tok *t), tok_eos(const struct tok *t), tok_pad(const struct tok *t);
bool tok_adds_bos(const struct tok *t);			/* a text begins with bos, says its maker */
bool tok_is_special(const struct tok *t, uint32_t id);
const char *tok_sha256(const struct tok *t);		/* hex digest of the canonical
							   tokenizer.json */

/* Appends ids of text[0..len). special: recognise special tokens in the text (else they are
 * plain text). */
void tok_encode(struct tok *t, const char *text, size_t len, bool special, struct ids *out);

/* The same where each byte says (from, as in jinja.h) what it may be part of: a special token
 * takes bytes of the template only, another added token those of the assistant as well, and no
 * token is made of what somebody else wrote. */
void tok_encode_from(struct tok *t, const char *text, const uint8_t *from, size_t len,
    struct ids *out);

/* Bytes of one token (not NUL-terminated); special tokens give their text. NULL for an id
 * outside the vocabulary. */
const char *tok_bytes(const struct tok *t, uint32_t id, size_t *len);

/* malloc'ed, NUL-terminated text of ids; *len bytes; skip_special leaves special tokens out.
 * Bytes as they are. */
char *tok_decode(const struct tok *t, const uint32_t *ids, int n, bool skip_special, size_t *len);

/* Streaming decode: bytes that form whole UTF-8 characters so far; holds back an unfinished tail
 * (up to 3 bytes). state is 8 zeroed bytes at the start. Returns the number of bytes written to
 * out (at most token length + 8). */
struct tok_stream { unsigned char tail[8]; };
size_t tok_stream_put(const struct tok *t, struct tok_stream *s, uint32_t id, bool skip_special,
    char *out);
size_t tok_stream_end(struct tok_stream *s, char *out);		/* what was held back, as is */

/* Training. GPT-2's split, bytes, merges of the most frequent pair (ties: the pair with the lower
 * ids), so the result depends on how often each piece occurs and on nothing else. Ids:
 * <|endoftext|> 0 (pad, unk), <|im_start|> 1 (bos), <|im_end|> 2 (eos), then tags that are not
 * special (<think> and the like), 256 bytes, merges.
 *
 *	struct tok_trainer *r = tok_trainer_new();
 *	tok_trainer_add(r, text, len);		(any number of documents)
 *	struct tok *t = tok_trainer_run(r, 6400, 2, NULL, NULL, &e);
 *	tok_trainer_free(r);
 */
#define TOK_MIN_VOCAB 265		/* no merges at all */

struct tok_trainer;
struct tok_trainer *tok_trainer_new(void);
void tok_trainer_add(struct tok_trainer *r, const char *text, size_t len);
/* The tokenizer, smaller than vocab when no pair occurs min_freq times any more. NULL on error.
 * Once per trainer. progress (may be NULL) is called with the size so far, after each merge. */
struct tok *tok_trainer_run(struct tok_trainer *r, int vocab, int64_t min_freq,
    void (*progress)(void *ctx, int size), void *ctx, struct err *e) CHR_MUST_CHECK;
void tok_trainer_free(struct tok_trainer *r);

/* What a conversation is rendered from. */
struct tok_chat {
	const json_t *messages;		/* {role, content}, or {from, value} */
	const json_t *tools;		/* of the record, or NULL */
	const json_t *more;		/* other variables of the template
					   (chat_template_kwargs), or NULL */
	bool generate;			/* end with the header of an assistant turn */
	bool think;			/* an empty think block opens each assistant turn that
					   has no thought */
};

/* A conversation through the chat template: the one of the directory (chat_template.jinja, or
 * chat_template of tokenizer_config.json), else ours (ChatML), which needs <|im_start|> and
 * <|im_end|>. Special tokens come from the template only. mask (may be NULL) gets one entry per
 * id: 1 on what the assistant says, with the end mark of its turn; a turn of "weight" 0 is not
 * learned. EX_DATAERR: no template, a turn that cannot be used, or the template refuses. */
int tok_chat(struct tok *t, const struct tok_chat *c, struct ids *out, struct ids *mask,
    struct err *e) CHR_MUST_CHECK;
#endif
