/*
 * decode: inference. An engine is the weights (dense part in memory, experts behind a store); a
 * seq is one timeline: its KV caches, the states of layers that have one instead, and its
 * position. One call evaluates new tokens of several sequences at once.
 *
 *	struct engine *g = engine_open(dir, &o, be, &plan, &e);
 *	struct seq *s = seq_new(g, &e);
 *	struct eval_item it = { .s = s, .tok = prompt, .n = n, .logits = logits };
 *	if (engine_eval(g, &it, 1, NULL, &e) < 0)
 *		err_exit(&e);
 *
 * Promise: the result of a token depends on its own sequence only: not on what else is in the
 * call, which adapters others have, how the prompt was chunked, the number of threads, or whether
 * experts were resident or streamed. Bytes, not tolerances. (On-miss shared breaks the last one on
 * purpose and reports the replaced mass.)
 */
#ifndef CHR_DECODE_H
#define CHR_DECODE_H

#include "backend/backend.h"
#include "arch/config.h"
#include "base/mem.h"
#include "experts/predict.h"
#include "experts/store.h"

struct engine;
struct oracle;
struct seq;

enum { ONMISS_WAIT, ONMISS_SHARED };

struct engine_adapter {
	const char *name;	/* for messages */
	const char *dir;	/* as in adapter.h */
};

struct engine_opt {
	int64_t ram;		/* limit on everything planned, 0 = none: all experts resident */
	const char *budget;	/* NULL: ram is a limit on the process. Else on the engine alone,
				   within a program that plans the rest itself; this is then the
				   option that sets it */
	int max_seqs;		/* parallel sequences */
	int max_tokens;		/* capacity of one sequence's caches */
	int max_rows;		/* rows evaluated at a time; longer prompts go in chunks of it.
				   At least max_seqs */
	int64_t other;		/* bytes the caller will hold besides: part of the plan */
	enum kv_type kv;	/* of the caches; all but KV_F32 lose precision, the same way
				   however the text is cut */
	bool blocks;		/* set by engine_plan and engine_open: some weights are quantised */
	int predict;		/* SRC_BIT()s of predict.h */
	const struct oracle *oracle;	/* log of the same run, borrowed; NULL: none */
	int on_miss;		/* this and route_bias apply to single tokens after a prompt;
				   prompts are always exact */
	double route_bias;	/* added to the router's logits of experts in memory; 0: exact */
	struct store_opt store;	/* .bytes 0: what the limit leaves */
	const struct engine_adapter *adapter;	/* (adapters) that sequences may have; they are in
						   memory for as long as the engine is */
	int adapters;
	bool foreign;		/* takes adapters that were trained on another model, too */
};

/* Every byte engine_open would hold, without opening. Includes what the process holds already,
 * unless o->budget. EX_OSERR, with numbers and the flag that would help, when it cannot be
 * within o->ram; the plan is filled then too. */
int engine_plan(const char *dir, const struct engine_opt *o, struct mem_plan *plan, struct err *e)
    CHR_MUST_CHECK;

/* The same for a model that is not there: its configuration and its parameters (ps, of c),
 * matrices in the type dense (floats are held as F32) and expert, in a plain or a packed
 * directory. */
int engine_plan_config(const struct config *c, const struct params *ps, enum dtype dense,
    enum dtype expert, bool packed,
    const struct engine_opt *o, struct mem_plan *plan, struct err *e) CHR_MUST_CHECK;

int64_t engine_program(void);	/* mem_program() of a process whose threads do nothing but this */

/* Opens a model directory, plain or packed. The plan (may be NULL) is filled even on failure,
 * for printing. */
struct engine *engine_open(const char *dir, const struct engine_opt *o, const struct backend *be,
    struct mem_plan *plan,
    struct err *e) CHR_MUST_CHECK;
void engine_close(struct engine *g);

/* An engine over weights that lie in memory already, flat as in struct params (a model in
 * training), and are borrowed, like c and ps, until engine_close(). Nothing is copied but MLA's
 * key projections, in another order; engine_refresh() does that again when the weights have
 * changed. o->ram and o->store do not count. The plan gets what it will hold. */
void engine_over_plan(const struct config *c, const struct params *ps, const struct engine_opt *o,
    struct mem_plan *plan);
struct engine *engine_over(const struct config *c, const struct params *ps, const dev_real *w,
    const struct engine_opt *o,
    const struct backend *be, struct err *e) CHR_MUST_CHECK;
void engine_refresh(struct engine *g);

const char *kv_type_name(enum kv_type t);	/* "f32", "bf16", "q8" */
enum kv_type engine_kv_type(const struct engine *g);
const struct config *engine_config(const struct engine *g);
struct store *engine_store(struct engine *g);
/* hex; may have to read everything; NULL on error */
const char *engine_fingerprint(struct engine *g, struct err *e) CHR_MUST_CHECK;
int64_t engine_expert_bytes(const struct engine *g);	/* of one expert as stored */
/* All that sequences may have; *n of them. */
const struct engine_adapter *engine_adapters(const struct engine *g, int *n);
/* What one token takes besides attention over its context: bytes of weights as they lie in
 * memory and of states, read and written, and multiply-adds. */
void engine_token_cost(const struct engine *g, int64_t *bytes, int64_t *products);

/* NULL when max_seqs are in use */
struct seq *seq_new(struct engine *g, struct err *e) CHR_MUST_CHECK;
/* a new one that has evaluated the same tokens; or NULL */
struct seq *seq_fork(const struct seq *s, struct err *e) CHR_MUST_CHECK;
/* Which adapter a sequence without tokens gets: its number, from 1; 0: none, as seq_new() leaves
 * it. seq_reset() keeps it, and a fork has that of its original. */
void seq_adapt(struct seq *s, int adapter);
void seq_reset(struct seq *s);
void seq_free(struct seq *s);
int seq_len(const struct seq *s);

struct eval_item {		/* new tokens of one sequence; a sequence may appear once in a
				   call */
	struct seq *s;
	const uint32_t *tok;
	int n;
	real *logits;		/* (V) of the last token, or (n, V) when all; NULL: not wanted */
	bool all;
	/* optional traces, for all n tokens; layers counted over sparse layers */
	int32_t *topk;		/* (n, Ls, K) */
	real *probs;		/* (n, Ls, E) */
	real *look;		/* (n, config_lookahead_rows) lookahead probabilities (softmax
				   over E) */
	real *inputs;		/* (n, Ls, D) what routers read */
};

struct eval_stats {		/* of one engine_eval call */
	double wall, compute, stall;		/* seconds; wall = compute + stall */
	double replaced_mass;	/* share of the routing weight not given to the router's own
				   choice, mean over rows and layers */
	struct source_stats source[SRC_N];
};

struct expectation {		/* of a prompt, from rates measured just now on this machine */
	double seconds;		/* the larger of the two */
	double compute, reads;	/* seconds */
	double bytes;		/* to read */
};

/* What n new tokens of one sequence should take before the first logits, routed evenly. The
 * first call reads a few experts and computes with one to know the rates. EX_DATAERR, EX_IOERR. */
int engine_expect(struct engine *g, int n, struct expectation *x, struct err *e) CHR_MUST_CHECK;

/* 0, or -1: EX_DATAERR (token outside the vocabulary, caches full, corrupt expert), EX_IOERR
 * (unreadable expert). The sequences are then as long as before the call, up to chunks that were
 * complete; those of a model with states (config_recurs) that were in the chunk which failed are
 * empty. */
int engine_eval(struct engine *g, struct eval_item *it, int n, struct eval_stats *st,
    struct err *e) CHR_MUST_CHECK;

/* Of n rows of logits that engine_eval gave: logp[i] = log softmax(logits)[target[i]], 0 where
 * target is below 0. */
void engine_logprob(struct engine *g, const real *logits, const int32_t *target, int n,
    real *logp);

#endif
