/*
 * tok_impl: what the files of the tokenizer share and nobody else sees.
 *
 *	tok_file.c	files and directories, in and out
 *	tok_load.c	a tokenizer.json to a tokenizer
 *	tok_gguf.c	the same two files out of a GGUF file
 *	tok_ranks.c, tok_pieces.c	other files, made into a tokenizer.json
 *	tok_norm.c	text as the vocabulary spells it: the normalizer
 *	tok_pre.c	text to pieces: the pre-tokenizer, and added tokens in the text
 *	tok.c		pieces to ids by merges, ids to bytes
 *	tok_unigram.c	pieces to ids by likelihood
 *	tok_train.c	merges from counts
 *	tok_chat.c	conversations
 */
#ifndef CHR_TOK_IMPL_H
#define CHR_TOK_IMPL_H

#include "text/bytemap.h"
#include "text/pattern.h"
#include "text/tok.h"

#define TOK_NONE UINT32_MAX
#define TOK_MAX_IDS (1 << 22)	/* far above any tokenizer known; bounds what a hostile file can
				   ask for */
#define TOK_MAX_STEPS 16	/* of a pre-tokenizer */

/* GPT-2's pattern, which ByteLevel means by use_regex. */
#define TOK_GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| " \
	"?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

enum norm_kind { NORM_NFC, NORM_NFD, NORM_NFKC, NORM_NFKD, NORM_LOWER, NORM_STRIP_LEFT,
    NORM_STRIP_RIGHT, NORM_PREPEND,
	NORM_REPLACE, NORM_CHARSMAP };

struct norm_step {
	enum norm_kind kind;
	struct pattern *pattern;	/* of NORM_REPLACE */
	struct charsmap *map;		/* of NORM_CHARSMAP */
	char *to;			/* of NORM_PREPEND and NORM_REPLACE */
	size_t to_len;
};

struct norm_text { char *s; size_t n, cap; };

struct norm {
	int n;
	struct norm_step step[TOK_MAX_STEPS];
	struct norm_text text[2];
};

int norm_add(struct norm *n, enum norm_kind kind, const char *text, size_t len, struct err *e)
    CHR_MUST_CHECK;
int norm_add_replace(struct norm *n, const char *pattern, size_t len, enum pattern_dialect d,
    const char *to, size_t to_len, struct err *e) CHR_MUST_CHECK;
int norm_add_charsmap(struct norm *n, const unsigned char *s, size_t len, struct err *e)
    CHR_MUST_CHECK;
/* s, or a text that the next call overwrites; any bytes. */
const char *norm_run(struct norm *n, const char *s, size_t *len);
/* the same steps for another thread */
void norm_share(const struct norm *n, struct norm *own);
void norm_free(struct norm *n);
void norm_unshare(struct norm *own);

enum pre_behavior { PRE_ISOLATED, PRE_REMOVED, PRE_PREVIOUS, PRE_NEXT, PRE_CONTIGUOUS };
enum pre_kind { PRE_REGEX, PRE_SPACE, PRE_METASPACE };
enum pre_scheme { PRE_NEVER, PRE_FIRST, PRE_ALWAYS };

struct pre_step {
	enum pre_kind kind;
	struct pattern *pattern;	/* PRE_REGEX, and PRE_METASPACE that splits */
	enum pre_behavior behavior;
	bool invert;
	enum pre_scheme scheme;		/* PRE_METASPACE: when the mark is put in front */
	char mark[8];			/* what stands for a space */
};

struct pre {
	int n;
	const char *begin;		/* of the text, if the run in work begins it */
	struct pre_step step[TOK_MAX_STEPS];
};

/* Called with each piece, in order. */
struct piece_sink {
	void (*piece)(void *ctx, const char *s, size_t len);
	void *ctx;
};

int pre_add_regex(struct pre *p, const char *pattern, size_t len, enum pattern_dialect d,
    enum pre_behavior behavior, bool invert, struct err *e) CHR_MUST_CHECK;
int pre_add_space(struct pre *p, struct err *e) CHR_MUST_CHECK;
int pre_add_metaspace(struct pre *p, const char *mark, enum pre_scheme scheme, bool split,
    struct err *e) CHR_MUST_CHECK;
/* any bytes; first: they begin the text */
void pre_split(struct pre *p, const char *s, size_t len, bool first, const struct piece_sink *sink);
void pre_share(const struct pre *p, struct pre *own);	/* the same steps for another thread */
void pre_free(struct pre *p);

struct added {
	const char *s;
	uint32_t len, id;
	bool special, lstrip, rstrip, single_word, normalized;
	char *own;			/* s of one that the normalizer changed, else NULL */
};

/* Which added tokens a text may hold: all, those that are not special, or as `from` says of its
 * bytes (tok_encode_from). */
struct allowed {
	bool special;
	const uint8_t *from;		/* (len) or NULL */
};

/* The leftmost longest added token in s[from..len) among those that are not normalized (or are)
 * and allowed. NULL: none. *start, *end get its place with the blanks it takes along, never
 * before from. */
const struct added *pre_find_added(const struct tok *t, const char *s, size_t len, size_t from,
    bool normalized, const struct allowed *allowed, size_t *start, size_t *end);

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
	bool chars;			/* entries are spelled in characters, not in stand-ins
					   for bytes */
	bool byte_fallback, fuse_unk;	/* only with chars */
	uint32_t unk;			/* TOK_NONE: none */
	uint32_t byte_id[256];		/* of a byte, or of its <0xXX>; TOK_NONE: none */
	struct unigram *unigram;	/* NULL: BPE */
	struct norm norm;
	int strip;			/* spaces that decoding takes away from the start */
	struct pairmap merges;		/* pair of ids to its rank */
	uint32_t *merge_id;		/* rank to the id the pair becomes */
	bool ignore_merges;
	struct added *added;		/* (n_added), sorted by bytes */
	int n_added;
	bool added_first[256];		/* some added token begins with this byte */
	int bos, eos, pad;
	bool adds_bos;
	struct jinja *chat;		/* NULL: conversations cannot be written */
	struct jinja *chat_tools;	/* for those with tools, or NULL: the same */
	bool own_template;		/* it came with the tokenizer, and is not ours */
	struct err chat_error;		/* why it could not be read */
	char *template_text;		/* of chat_template.jinja, or NULL */

	bool shared;			/* from tok_share(): only what follows is its own */
	struct pre pre;			/* of which the compiled patterns are shared */
	struct bytemap cache;		/* pieces seen, to a place and a count in cache_ids */
	struct ids cache_ids;
	struct word_work *work;
};

/* The template of tokenizers that bring none; for tokenizer_config.json too. */
extern const char tok_chat_template[];

/* Takes json, a tokenizer.json or another file of tok_foreign.h, over, on error too. name is for
 * messages. config: the tokenizer_config.json of another file, or NULL. Special tokens are guessed
 * from their names. */
struct tok *tok_parse(char *json, size_t len, const char *name, const json_t *config,
    struct err *e) CHR_MUST_CHECK;
/* bos, eos, pad and the template of a tokenizer that has no configuration: by the names in use. */
void tok_defaults(struct tok *t);
/* The ids of one character that is not in the vocabulary: its bytes, or the unknown token. */
void tok_unknown(const struct tok *t, const char *s, size_t n, struct ids *out);

/* Unigram (Kudo 2018, arXiv:1804.10959): the split of a piece whose tokens' log-probabilities
 * add up to the most. */
struct unigram;
struct unigram *unigram_new(int V, uint32_t longest);
void unigram_set(struct unigram *u, uint32_t id, double score);
void unigram_encode(struct tok *t, const char *s, size_t len, struct ids *out);
struct unigram *unigram_share(const struct unigram *u);
void unigram_free(struct unigram *u, bool shared);
struct word_work *tok_work_new(void);
void tok_work_free(struct word_work *w);
bool tok_blank_after(const char *s, size_t len, size_t *n);	/* a blank begins s; its bytes */
bool tok_blank_before(const char *s, size_t len, size_t *n);	/* a blank ends it */
size_t utf8_char(const char *s, size_t len);	/* bytes of the character at s; 0: not valid */
size_t utf8_valid(const char *s, size_t len);	/* length of the valid UTF-8 that s begins with */
unsigned utf8_put(char *out, uint32_t c);
bool tok_byte_valid(unsigned b);		/* can UTF-8 hold it? */
uint32_t tok_byte_char(unsigned b);		/* GPT-2's printable stand-in for a byte */

#endif
