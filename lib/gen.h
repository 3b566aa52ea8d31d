/*
 * gen: one text being generated: its tokens, when it ends, and the bytes of it that may be shown already.
 *
 *	gen_start(&g, prompt, n, stream);
 *	while (!g.finish) {
 *		... logits of the last of g.ids ...
 *		gen_next(&g, &o, sampler, logits);
 *	}
 */
#ifndef CHR_GEN_H
#define CHR_GEN_H

#include "sample.h"
#include "tok.h"

#define GEN_ENDS 3

struct gen_opt {
	const struct tok *tok;		/* NULL: tokens only, no text */
	int32_t end[GEN_ENDS];		/* tokens that end a text, -1: none */
	int nstop;
	const char *const *stop;	/* strings that end it, not part of it */
};

struct gen {
	struct ids ids;			/* prompt, then what was generated (with stop tokens left out) */
	int nprompt, max_new;
	struct sample_opt sample;
	uint64_t stream;
	char *text;			/* of what was generated, len bytes, not NUL-terminated */
	size_t len, cap;
	struct tok_stream tail;
	const char *finish;		/* NULL while it goes on; "stop", "length" */
	int32_t end;			/* the end token that stopped it (not in ids), or -1 */
};

/* What chr-generate holds for a vocabulary of V and so many texts at a time: logits, and what a draw sorts. */
int64_t gen_bytes(int V, int texts);

void gen_start(struct gen *g, const struct ids *prompt, const struct sample_opt *so, int max_new, uint64_t stream);
void gen_next(struct gen *g, const struct gen_opt *o, struct sampler *s, const float *logits);

/* Bytes of g->text that no stop string can take back any more. */
size_t gen_shown(const struct gen *g, const struct gen_opt *o);
void gen_free(struct gen *g);

#endif
