/*
 * generation: what the maker of a model says of generating with it: generation_config.json of
 * the Hugging Face layout, and the tokens that end a text.
 *
 *	struct generation d;
 *	if (generation_read(&d, "model", &e) < 0) ...
 *	generation_ends(&d, &cfg, tok, &gen);
 *	if (d.temperature >= 0 && !opt_given("temperature")) ...
 */
#ifndef CHR_GENERATION_H
#define CHR_GENERATION_H

#include "arch/config.h"
#include "decode/gentext.h"

struct generation {		/* negative: not said */
	double temperature, top_p, min_p, repetition_penalty;
	int top_k;
	int n_end;
	uint32_t end[GENTEXT_ENDS];	/* eos_token_id: one or a list */
};

/* A directory without the file says nothing; NULL: there is no directory. "do_sample": false is
 * temperature 0. EX_DATAERR names file and key. */
int generation_read(struct generation *d, const char *dir, struct err *e) CHR_MUST_CHECK;

/* Tokens that end a text: those of d (may be NULL) and of config.json, all of a list, and of the
 * tokenizer (may be NULL). */
void generation_ends(const struct generation *d, const struct config *c, const struct tok *t,
    struct gentext_opt *o);

#endif
