/*
 * tok_foreign: tokenizers that are published in other files than tokenizer.json are made into one,
 * so that there is one loader, and what is saved beside a trained model is what others read.
 *
 *	tiktoken.model, *.tiktoken	a token in base64 and its rank a line (tiktoken_file)
 *	tekken.json			Mistral's: the same with its pattern and special tokens
 *	tokenizer.model, spiece.model	SentencePiece's ModelProto: BPE and Unigram
 *
 * The pattern and the special tokens of a file of ranks are those of tokenizer_config.json
 * (pat_str, added_tokens_decoder), else those of the class that it names, else Llama 3's pattern,
 * as in transformers.
 */
#ifndef CHR_TOK_FOREIGN_H
#define CHR_TOK_FOREIGN_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

/* Is this one of the files that are not JSON? What begins with a line of base64 or a message. */
bool tok_is_ranks(const char *s, size_t len);
bool tok_is_pieces(const char *s, size_t len);

/* A tokenizer.json, new; NULL: EX_DATAERR with name and what is wrong. config may be NULL. */
json_t *tok_of_ranks(const char *s, size_t len, const char *name, const json_t *config,
    struct err *e) CHR_MUST_CHECK;
json_t *tok_of_pieces(const char *s, size_t len, const char *name, const json_t *config,
    struct err *e) CHR_MUST_CHECK;
json_t *tok_of_tekken(const json_t *root, const char *name, struct err *e) CHR_MUST_CHECK;

/* Adds the added_tokens_decoder of a configuration to added, without those whose ids it has. */
int tok_config_added(json_t *added, const json_t *config, const char *name, struct err *e)
    CHR_MUST_CHECK;

/* {"id", "content", "special", ..} at the end of a list. */
void tok_put_added(json_t *added, json_int_t id, const char *content, bool special);

#endif
