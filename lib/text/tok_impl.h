/*
 * tok_impl: what the files of the tokenizer share and nobody else sees.
 *
 *	tok_load.c	tokenizer.json and tokenizer_config.json in and out
 *	tok_pre.c	text to pieces: the pre-tokenizer, and added tokens in the text
 *	tok.c		pieces to ids, ids to bytes
 *	tok_train.c	merges from counts
 *	tok_chat.c	conversations
 */
#ifndef CHR_TOK_IMPL_H
#define CHR_TOK_IMPL_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "text/bytemap.h"
#include "text/tok.h"

#define TOK_NONE UINT32_MAX
#define TOK_MAX_IDS (1 << 22)	/* far above any tokenizer known; bounds what a hostile file can
				   ask for */
#define TOK_MAX_STEPS 16	/* of a pre-tokenizer */

/* GPT-2's pattern, which ByteLevel means by use_regex. */
#define TOK_GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| " \
	"?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

enum pre_behavior { PRE_ISOLATED, PRE_REMOVED, PRE_PREVIOUS, PRE_NEXT, PRE_CONTIGUOUS };

struct pre_step {
	pcre2_code *code;		/* NULL: this step only adds a space in front */
	pcre2_match_data *match;
	enum pre_behavior behavior;
	bool invert, prefix_space;
};

struct pre {
	int n;
	struct pre_step step[TOK_MAX_STEPS];
	pcre2_match_context *context;
	pcre2_jit_stack *stack;
};

/* Called with each piece, in order. */
struct piece_sink {
	void (*piece)(void *ctx, const char *s, size_t len);
	void *ctx;
};

int pre_add_regex(struct pre *p, const char *pattern, size_t len, bool literal,
    enum pre_behavior behavior, bool invert,
    struct err *e);
int pre_add_space(struct pre *p, struct err *e);
/* any bytes */
void pre_split(struct pre *p, const char *s, size_t len, const struct piece_sink *sink);
void pre_share(const struct pre *p, struct pre *own);	/* the same steps for another thread */
void pre_free(struct pre *p, bool shared);

struct added {
	const char *s;
	uint32_t len, id;
	bool special, lstrip, rstrip, single_word, normalized;
};

/* The leftmost longest added token in s[from..len) among those that are not normalized (or are),
 * special ones only when asked. NULL: none. *start, *end get its place with the blanks it takes
 * along, never before from. */
const struct added *pre_find_added(const struct tok *t, const char *s, size_t len, size_t from,
    bool normalized,
    bool special, size_t *start, size_t *end);

struct token {
	const char *s;			/* NULL: no such id */
	uint32_t len;
	bool special, added;
};

struct word_work;			/* scratch of the merge loop */

struct tok {
	char *json, *config_json;	/* the files, as read or made; config may be NULL */
	size_t json_len, config_len;
	char sha256[65];
	int V;
	struct token *token;		/* (V) */
	char *bytes;			/* of all tokens */
	struct bytemap vocab;		/* bytes of a vocabulary entry to its id */
	uint32_t byte_id[256];
	struct pairmap merges;		/* pair of ids to its rank */
	uint32_t *merge_id;		/* rank to the id the pair becomes */
	bool ignore_merges;
	struct added *added;		/* (n_added), sorted by bytes */
	int n_added;
	bool added_first[256];		/* some added token begins with this byte */
	int bos, eos, pad;

	bool shared;			/* from tok_share(): only what follows is its own */
	struct pre pre;			/* of which the compiled patterns are shared */
	struct bytemap cache;		/* pieces seen, to a place and a count in cache_ids */
	struct ids cache_ids;
	struct word_work *work;
};

/* Takes json over, on error too. name is for messages. Special tokens are guessed from their
 * names. */
struct tok *tok_parse(char *json, size_t len, const char *name, struct err *e);
struct word_work *tok_work_new(void);
void tok_work_free(struct word_work *w);
size_t utf8_valid(const char *s, size_t len);	/* length of the valid UTF-8 that s begins with */
unsigned utf8_put(char *out, uint32_t c);
uint32_t tok_byte_char(unsigned b);		/* GPT-2's printable stand-in for a byte */

#endif
