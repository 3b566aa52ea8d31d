/*
 * reward: what a completion is worth. Built in are `toy`, `number` and `lm:DIR`; everything else
 * is a command that is started once and answers lines with lines, while sampling goes on.
 *
 *	struct reward *r = reward_open("python3 judge.py", &o, &e);
 *	reward_ask(r, &item, &x, &e);		(for each completion, as it ends; may return
 *						before the answer is there)
 *	reward_poll(r, &e);			(now and then: takes the answers there are)
 *	reward_wait(r, &e);			(until every x asked for is there)
 *	reward_close(r);
 *
 *	toy	likes about 24 words, common ones, none twice in a row: min(words / 24, 1) +
 *		share of common words - share of
 *		words that repeat the one before; -1 without any word
 *	number	1 when the last number of the completion equals the last one of the record's
 *		"answer", else 0
 *	lm:DIR	mean log-probability of the completion's tokens under the model in DIR, which
 *		must have the same tokenizer
 *
 * A command reads {"prompt":..,"completion":..,"tokens":[..],"record":{..}} lines and writes
 * {"reward":x} or just x, in the same order. It runs under /bin/sh in a process group of its
 * own, so that a Ctrl-C meant for the trainer does not end it.
 */
#ifndef CHR_REWARD_H
#define CHR_REWARD_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "backend/backend.h"
#include "base/mem.h"
#include "text/tok.h"

struct reward;

struct reward_opt {
	double timeout;			/* seconds of silence of a command that are too many; 0:
					   none are */
	const struct tok *tok;		/* these three for lm */
	const struct backend *be;
	int max_tokens;			/* of prompt and completion */
};

struct reward_item {
	const json_t *record;		/* as it came, */
	const char *source;		/* and its text */
	const json_t *prompt;		/* its text, a string */
	const char *text;		/* the completion, len bytes, not NUL-terminated */
	size_t len;
	const uint32_t *tok;		/* prompt and completion with its end token, */
	int nprompt, n;			/* so many of the prompt, and in all */
};

/* Can the reward judge answers to this record? 0, or -1 with the reason. */
int reward_check(const char *spec, const json_t *record, struct err *why) CHR_MUST_CHECK;
/* memory it takes */
int reward_plan(const char *spec, const struct reward_opt *o, struct mem_plan *p, struct err *e)
    CHR_MUST_CHECK;

/* Of the model that judges; "": no model does. */
int reward_fingerprint(const char *spec, char fingerprint[33], struct err *e) CHR_MUST_CHECK;

struct reward *reward_open(const char *spec, const struct reward_opt *o, struct err *e)
    CHR_MUST_CHECK;
/* *x must stay where it is until it is written. -1: the command has ended, said something else
 * than a number (EX_DATAERR, EX_UNAVAILABLE), or nothing for too long (EX_UNAVAILABLE). */
int reward_ask(struct reward *r, const struct reward_item *it, double *x, struct err *e)
    CHR_MUST_CHECK;
int reward_poll(struct reward *r, struct err *e) CHR_MUST_CHECK;
int reward_wait(struct reward *r, struct err *e) CHR_MUST_CHECK;
void reward_close(struct reward *r);

/* The built-in ones. */
double reward_toy(const char *text, size_t len);
/* 0, or -1: there is none */
int reward_last_number(const char *text, size_t len, double *x);

#endif
