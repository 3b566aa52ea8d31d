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
/* The name of what cuts a text as this does; the text may be normalised or not, which llama.cpp
 * never does. NULL: there is none. */
const char *tok_gguf_pre_name(const struct tok_gguf_pre *p);

/* Both new. EX_DATAERR: there is no tokenizer, or of a kind or with a pre-tokenizer that is not
 * known here. */
int tok_gguf(const struct gguf *g, json_t **tokenizer, json_t **config, struct err *e)
    CHR_MUST_CHECK;
/* The merges of SentencePiece's BPE that follow from scores, new; types may be NULL. NULL:
 * EX_OSERR. */
json_t *tok_gguf_merges(const json_t *tokens, const json_t *types, const json_t *scores,
    struct err *e) CHR_MUST_CHECK;

/* The other way round: what a GGUF file says of the tokenizer of a model. */
struct tok_gguf_of {
	const char *model;		/* a directory or file that tok_load() takes */
	int vocab;			/* rows of its embedding; each gets a token */
	const json_t *ends;		/* eos_token_id of config.json: one, a list, or NULL */
	bool own;			/* trained here: a text always begins with bos */
};
/* *keys: an object of metadata in order, new. EX_DATAERR: llama.cpp has no such tokenizer. */
int tok_gguf_say(const struct tok_gguf_of *of, json_t **keys, struct err *e) CHR_MUST_CHECK;

#endif
