/*
 * tok_gguf: the tokenizer of a GGUF file, written as the files that Hugging Face has: a
 * tokenizer.json and a tokenizer_config.json, which tok_load.c then reads as it does those.
 *
 * What a GGUF file says is less than that: of byte-level BPE it has tokens, their kinds, merges and
 * the name of a pre-tokenizer, whose patterns are the published ones; of SentencePiece's BPE it has
 * tokens and scores, from which merges follow as in transformers.
 */
#ifndef CHR_TOK_GGUF_H
#define CHR_TOK_GGUF_H

#include <jansson.h>
#include <stdbool.h>

#include "base/err.h"
#include "format/gguf.h"

#define TOK_GGUF_NAMES 4
#define TOK_GGUF_SPLITS 5

/* What a pre-tokenizer does, in this order: patterns, digits one by one, GPT-2's pattern, bytes. */
struct tok_gguf_pre {
	const char *names[TOK_GGUF_NAMES];	/* that files have; NULL behind the last */
	const char *split[TOK_GGUF_SPLITS];	/* each match is a piece */
	bool digits, gpt2;
	bool nfc;			/* the text is normalised before */
	bool whole;			/* a piece that is in the vocabulary is not merged */
	bool bos;			/* a text begins with bos where the file does not say */
};

const struct tok_gguf_pre *tok_gguf_pre(const char *name);	/* NULL: not known */

/* Both new. EX_DATAERR: there is no tokenizer, or of a kind or with a pre-tokenizer that is not
 * known here. */
int tok_gguf(const struct gguf *g, json_t **tokenizer, json_t **config, struct err *e)
    CHR_MUST_CHECK;

#endif
