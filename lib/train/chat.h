/*
 * chat: conversations as training data. What the assistant says, with the end of its turns, is
 * to be learned; the rest is only read. Conversations are packed whole, several to a row, with
 * positions that restart and no attention from one to another; none is cut in two.
 *
 *	const struct stage stage = { .name = "sft", .source = &chat_source, ... };
 *	opts includes chat_opts
 *
 * A micro-batch is filled by first fit: a conversation goes to the first row that has room, and
 * when none has, it begins the next micro-batch. So nothing is carried over between
 * micro-batches, and the position is a number of conversations. What comes after the last target
 * of a conversation is left out.
 */
#ifndef CHR_CHAT_H
#define CHR_CHAT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/opt.h"
#include "text/record_file.h"
#include "text/tok.h"
#include "train/train.h"

enum chat_truncate { CHAT_KEEP_START, CHAT_KEEP_END, CHAT_DROP };

struct chat_opt {
	int truncate;		/* enum chat_truncate */
	bool think;
};
extern struct chat_opt chat_flags;		/* what the table fills in */
extern const struct opt chat_opts[];		/* --truncate, --think: of every stage that reads
						   conversations */

#define CHAT_LEARN (1u << 31)	/* on an id that is a target */
#define CHAT_ID(w) ((w) & ~CHAT_LEARN)

/* Shortens ids, and mask unless NULL, to n entries as --truncate says. False: it is to be left
 * out. Counts either. */
bool chat_fit(struct ids *ids, struct ids *mask, int n, struct record_count *count);

/* The conversation of a record (messages, conversations, or tokens with a mask) as ids with
 * CHAT_LEARN, at most n of them, appended to the empty out; nothing when it is left out. t may
 * be NULL: then only tokens will do. 0, or -1 with a reason. */
int chat_words(struct tok *t, int vocab, const json_t *rec, int n, struct ids *out,
    struct record_count *count,
    struct err *why) CHR_MUST_CHECK;

/* "2 conversations cut, 1 left out, ..." on stderr, if there is anything to tell and no --quiet. */
void chat_report(const struct record_count *count);

extern const struct source chat_source;

/* The same, and besides conversations texts (or tokens without a mask), of which all is to be
 * learned; those that are too long are cut into pieces. */
extern const struct source chat_text_source;

/* For sources of other records that are packed the same way: chat_source with another open,
 * which calls chat_open_kind(). Items longer than --seq + 1 tokens are cut into pieces. */
struct chat_kind {
	const char *unit;	/* what an item is, for people */
	int stride;		/* words of a token: its id, with CHAT_LEARN, and those that go
				   to micro.extra, (rows, stride - 1), at the row that it is the
				   input of */
	/* As chat_words(). */
	int (*item)(struct tok *t, int vocab, const json_t *rec, int n, struct ids *out,
	    struct record_count *count,
	    struct err *why);
};
void *chat_open_kind(const struct chat_kind *kind, const struct train_opt *o,
    const struct config *cfg, struct tok *t,
    int nfiles, char *const files[], bool eval, struct err *e);

#endif
