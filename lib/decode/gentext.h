/*
 * gentext: one text being generated: its tokens, when it ends, and the bytes of it that may be
 * shown already.
 *
 *	gentext_start(&g, prompt, n, stream);
 *	while (!g.finish) {
 *		... logits of the last of g.ids ...
 *		gentext_next(&g, &o, sampler, logits);
 *	}
 */
#ifndef CHR_GENTEXT_H
#define CHR_GENTEXT_H

#include "decode/sample.h"
#include "text/tok.h"

#define GENTEXT_ENDS 64

struct gentext_opt {
	const struct tok *tok;		/* NULL: tokens only, no text */
	int n_end;
	uint32_t end[GENTEXT_ENDS];	/* tokens that end a text */
	int nstop;
	const char *const *stop;	/* strings that end it, not part of it */
};

struct gentext {
	struct ids ids;			/* prompt, then what was generated (with stop tokens left
					   out) */
	int nprompt, max_new;
	struct sample_opt sample;
	uint64_t stream;
	char *text;			/* of what was generated, len bytes, not NUL-terminated */
	size_t len, cap;
	struct tok_stream tail;
	const char *finish;		/* NULL while it goes on; "stop", "length" */
	int32_t end;			/* the end token that stopped it (not in ids), or -1 */
};

/* What chr-generate holds for a vocabulary of V and so many texts at a time: logits, and what a
 * draw sorts. */
int64_t gentext_bytes(int V, int texts);

/* The stream of a prompt's draws, from its tokens: the same prompt has the same wherever it
 * stands. */
uint64_t gentext_stream(const struct ids *prompt);

void gentext_start(struct gentext *g, const struct ids *prompt, const struct sample_opt *so,
    int max_new, uint64_t stream);
void gentext_next(struct gentext *g, const struct gentext_opt *o, struct sampler *s,
    const float *logits);

/* Bytes of g->text that no stop string can take back any more. */
size_t gentext_shown(const struct gentext *g, const struct gentext_opt *o);
void gentext_free(struct gentext *g);

#endif
