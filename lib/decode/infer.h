/*
 * infer: what the programs that run a model share (chr-generate, chr-score, chr-actlog):
 * options, opening, and what a record asks to be evaluated.
 *
 *	static struct opt opts[] = { ..., { .kind = OPT_TABLE, .value = infer_opts }, { 0 } };
 *	infer_open(max_seqs, max_tokens, max_rows, other);	(ends the program on --dry-run
 *	and on errors)
 *	... infer.g, infer.tok ...
 *	infer_close();
 */
#ifndef CHR_INFER_H
#define CHR_INFER_H

#include <jansson.h>

#include "decode/decode.h"
#include "base/opt.h"
#include "text/tok.h"

struct infer {
	const char *model, *tokenizer, *backend, *sim_ssd, *predict, *oracle, *heat;
	int64_t ram;
	int threads, readers, io, on_miss, evict, pin, kv;
	double waste, route_bias;
	bool buffered, force, cold, dry_run;
	bool pages;			/* the program has human_opts: plans for people too */
	const char *budget;		/* as in struct engine_opt */

	struct config cfg;		/* read by infer_begin */
	struct tok *tok;
	const struct backend *be;
	struct engine *g;
};

extern struct infer infer;
extern struct opt infer_opts[];

/* Checks options, starts threads, reads config and (unless tok is false and there is none) the
 * tokenizer. */
void infer_begin(bool tok);
/* Opens the engine; other: bytes the caller will hold besides. Prints the plan on --dry-run (and
 * exits) or -v. */
void infer_open(int max_seqs, int max_tokens, int max_rows, int64_t other);
void infer_close(void);

/* Tokens of a sequence (asked by --seq; 0: 512, or what the model was made for where that is less),
 * to which `more` will come. Ends the program where the model of this config, called `dir`, was
 * made for fewer. */
int infer_seq(const char *dir, const struct config *c, int asked, int more);

/* Appends the ids of a record: "tokens" as they are, or its conversation through the chat
 * template, or its text between the marks training puts around a document. prompt: without the
 * end mark; a conversation ends with the header of an answer. mask (may be NULL) gets one entry
 * per id: 1 where the record is to be scored (all but the turns of others). 0, or -1 with the
 * reason in e->msg. */
int infer_ids(const json_t *rec, bool prompt, struct ids *ids, struct ids *mask, struct err *e)
    CHR_MUST_CHECK;
/* The same with a tokenizer of one's own: of a thread. */
int infer_ids_by(struct tok *tok, const json_t *rec, bool prompt, struct ids *ids,
    struct ids *mask, struct err *e) CHR_MUST_CHECK;

#endif
