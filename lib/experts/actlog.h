/*
 * actlog: activation records (man chr-jsonl.5): which experts every token used in every layer.
 *
 *	{"type":"model","layers":8,"experts":32,"top_k":2,"expert_bytes":98304,"fingerprint":"..."}
 *	{"type":"act","seq":3,"pos":17,"token":512,"layers":[[4,9],[30,1],...]}
 *
 * The model record comes first. "layers" holds every layer in order, [] for a dense one. Records
 * of one sequence are adjacent, and each position from 0 comes once and in order: another is
 * refused, since pairs of neighbours are counted. Logs may be concatenated: a further model
 * record must say the same.
 *
 *	struct actlog a;
 *	if (actlog_open(&a, in, &e) < 0) ...
 *	while (actlog_next(&a, &e) == 1)
 *		for (l) for (i < a.act.n[l]) use(a.act.id[l * a.model.top_k + i]);
 */
#ifndef CHR_ACTLOG_H
#define CHR_ACTLOG_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/json.h"

struct actlog_model {
	int layers, experts, top_k;
	int64_t expert_bytes;		/* of one expert as stored in the model; 0 unknown */
	char fingerprint[132];		/* hex; "" unknown */
};

struct act {				/* one token */
	int64_t seq, pos;
	int64_t token;			/* -1 unknown */
	bool first;			/* begins a sequence: another seq, or after a model
					   record */
	bool next;			/* directly follows the record before it */
	bool answer;			/* of the answer to what comes before: "gen" or "answer" */
	int *n;				/* (layers) experts used: 0 (dense layer) or top_k */
	int *id;			/* (layers, top_k) distinct, in 0..experts-1 */
};

struct actlog {
	struct jsonl *in;
	struct actlog_model model;
	struct act act;			/* the last record */
};

/* Both fill *why with a phrase and return -1 on a record that breaks the rules above.
 * actlog_parse fills all but first and next; n and id are the caller's. */
int actlog_parse_model(const json_t *o, struct actlog_model *m, const char **why);
int actlog_parse(const json_t *o, const struct actlog_model *m, struct act *a, const char **why);

/* reads the model record; in stays the caller's */
int actlog_open(struct actlog *a, struct jsonl *in, struct err *e) CHR_MUST_CHECK;
/* 1, 0 at the end, -1 */
int actlog_next(struct actlog *a, struct err *e) CHR_MUST_CHECK;
void actlog_close(struct actlog *a);

/* The model record; caller decrefs. */
json_t *actlog_model_json(const struct actlog_model *m);

#endif
