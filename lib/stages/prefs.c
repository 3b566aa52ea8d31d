#include "stages/prefs.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "train/chat.h"
#include "train/ckpt.h"
#include "base/comm.h"
#include "text/corpus.h"
#include "base/mem.h"
#include "base/progress.h"
#include "base/jsonfile.h"
#include "text/record.h"
#include "text/turn.h"
#include "stages/refcache.h"
#include "base/sha256.h"

const char *prefs_ref;

const struct opt prefs_opts[] = {
	{ 'b', "batch", OPT_INT, &train_flags.batch, 1, 65536, "N", "pairs of a micro-batch" },
	{ .kind = OPT_TABLE, .value = (void *)chat_opts },
	{ .kind = OPT_END }
};

/* An item: header, then the ids of both sequences, targets marked with CHAT_LEARN. */
enum { LEN_W, LEN_L, KEY_LOW, KEY_HIGH, HEADER };

struct span {			/* a sequence on its way into the batch; its rows are all ids but
				   the last */
	const uint32_t *v;
	int32_t rows, pair, side, record;
};

struct prefs {
	struct corpus *corpus;
	int T;
	int64_t limit;			/* pairs to deliver in all, -1 without end */
	int64_t taken;
	bool eval;
	struct refcache *cache;		/* NULL: ref is not known here */
	struct ids copy;		/* items of one batch, side by side */
	struct span *span;		/* (2 * batch) */
	int32_t *room;			/* (2 * batch) columns left in each row */
};

/* --- a record to a pair --- */

static void add_turn(json_t *turns, const char *role, const json_t *content)
{
	json_array_append_new(turns, json_pack("{s:s, s:O}", "role", role, "content", content));
}

/* The turns of the record's conversation up to the last one of the user. */
static int add_asked(json_t *turns, const json_t *rec, struct err *why)
{
	json_t *all;
	size_t n;

	if (record_turns(rec, &all, why) < 0)
		return -1;
	n = json_array_size(all);
	while (n > 0 && !turn_is(json_array_get(all, n - 1), "user"))
		n--;
	for (size_t i = 0; i < n; i++)
		json_array_append(turns, json_array_get(all, i));
	json_decref(all);
	return 0;
}

/* The turns before the completion, which `has` tells from there being nothing that says them. */
static int prompt_of(const json_t *rec, json_t *turns, bool *has, struct err *why)
{
	const json_t *p = json_object_get(rec, "prompt");
	const char *key = "prompt";

	if (p == NULL)
		p = json_object_get(rec, key = "question");
	*has = true;
	if (p != NULL && !json_is_string(p) && !json_is_array(p))
		return err_set(why, EX_DATAERR, "\"%s\" is %s, neither a text nor a list of turns",
		    key, jsonfile_kind(p));
	if (json_is_string(p))
		add_turn(turns, "user", p);
	else if (p != NULL)
		json_array_extend(turns, (json_t *)p);
	else if (record_has_turns(rec))
		return add_asked(turns, rec, why);
	else
		*has = false;
	return *has ? record_context(rec, turns, why) : 0;
}

/* Names of a prompt in other programs: what stands there must not be lost. */
static int no_prompt(const json_t *rec, const char *name, struct err *why)
{
	static const char *const keys[] = { "instruction", "input", "query", "inputs", "context",
	    "user", "source", "text", "post", "history" };

	for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
		if (turn_set(json_object_get(rec, keys[i])))
			return err_set(why, EX_DATAERR, "no prompt: \"%s\" is not read, it must be "
			    "\"prompt\"", keys[i]);
	return err_set(why, EX_DATAERR, "no prompt: \"prompt\" is missing, and \"%s\" does not "
	    "begin with one (\"prompt\":[] says that there is none)", name);
}

/* A list that does not begin with the assistant has its prompt: the one of the record, if that has
 * one as well, before which a system turn may stand that only one of them has. */
static int whole(const json_t *prompt, const json_t *side, const char *name, json_t **turns,
    struct err *why)
{
	size_t n = json_array_size(prompt), at = 0, from = 0;
	bool system = turn_is(json_array_get(prompt, 0), "system");

	if (n > 0 && system != turn_is(json_array_get(side, 0), "system"))
		*(system ? &from : &at) = 1;
	for (size_t i = 0; from + i < n; i++)
		if (!turn_same(json_array_get(prompt, from + i), json_array_get(side, at + i)))
			return err_set(why, EX_DATAERR, "\"%s\" begins with other turns than the "
			    "prompt", name);
	*turns = json_copy((json_t *)side);
	if (from > 0)
		json_array_insert(*turns, 0, json_array_get(prompt, 0));
	return 0;
}

/* Prompt and completion as one list of turns. */
static int conversation(const json_t *rec, const json_t *prompt, bool has, const char *name,
    json_t **turns, struct err *why)
{
	const json_t *side = json_object_get(rec, name);

	if (side == NULL)
		return err_set(why, EX_DATAERR, "missing \"%s\"", name);
	if (!json_is_string(side) && !json_is_object(side) && json_array_size(side) == 0)
		return err_set(why, EX_DATAERR, "\"%s\" is neither text nor turns", name);
	if (json_is_array(side) && turns_check(side, why) < 0)
		return -1;
	if (json_is_array(side) && !turn_is(json_array_get(side, 0), "assistant"))
		return whole(prompt, side, name, turns, why);
	if (!has)
		return no_prompt(rec, name, why);
	*turns = json_copy((json_t *)prompt);
	if (json_is_string(side))
		add_turn(*turns, "assistant", side);
	else if (json_is_object(side))
		json_array_append(*turns, (json_t *)side);
	else
		json_array_extend(*turns, (json_t *)side);
	return 0;
}

/* (Turns of others than the assistant may differ in keys that nobody reads.) */
static bool is_same(const json_t *a, const json_t *b)
{
	return json_equal(a, b) || (turn_same(a, b) && !turn_is(a, "assistant"));
}

/* Leading turns that both have; at least one of each is left to be learned. */
static size_t shared(const json_t *a, const json_t *b)
{
	size_t n = json_array_size(a) < json_array_size(b) ? json_array_size(a)
	    : json_array_size(b), i = 0;

	while (i + 1 < n && is_same(json_array_get(a, i), json_array_get(b, i)))
		i++;
	return i;
}

struct making {			/* of an item */
	struct tok *tok;
	int T;
	struct ids ids, mask;		/* of one side */
	struct record_count count;	/* of both */
};

/* The turns, of which the first `common` are not learned. New reference. */
static json_t *only_after(const json_t *turns, size_t common)
{
	json_t *out = json_array(), *m;
	size_t i;

	json_array_foreach(turns, i, m) {
		json_t *turn = json_copy(m);

		if (i < common && json_is_object(turn))
			json_object_set_new(turn, "weight", json_integer(0));
		json_array_append_new(out, turn);
	}
	return out;
}

static void trim(struct making *p)
{
	while (p->mask.n > 0 && !p->mask.v[p->mask.n - 1])
		p->ids.n = --p->mask.n;
}

/* Appends the sequence of one side, with marks. Its length, 0: the pair must go, -1: bad. */
static int put_side(struct making *p, const json_t *rec, const json_t *turns, size_t common,
    const char *name, struct ids *out, struct err *why)
{
	json_t *learned = only_after(turns, common);
	struct tok_chat c = record_chat(rec, learned);
	int rc;

	p->ids.n = p->mask.n = 0;
	c.think = chat_flags.think;
	rc = tok_chat(p->tok, &c, &p->ids, &p->mask, why);
	json_decref(learned);
	if (rc < 0)
		return -1;
	trim(p);
	if (p->ids.n == 0)
		return err_set(why, EX_DATAERR, "\"%s\": the assistant says nothing", name);
	if (!chat_fit(&p->ids, &p->mask, p->T + 1, &p->count))
		return 0;
	p->mask.v[0] = 0;		/* nothing comes before the first id */
	trim(p);
	p->count.empty += p->ids.n == 0;
	for (int i = 0; i < p->ids.n; i++)
		ids_push(out, p->ids.v[i] | (p->mask.v[i] ? CHAT_LEARN : 0));
	return p->ids.n;
}

static void set_key(uint32_t *item, int n)
{
	struct sha256 s;
	uint8_t digest[32];

	sha256_init(&s);
	sha256_update(&s, item, (size_t)n * sizeof *item);
	sha256_final(&s, digest);
	memcpy(item + KEY_LOW, digest, 8);
}

/* Answers to the same: where the two part, the assistant speaks. */
static int check_parting(json_t *const turns[2], struct err *why)
{
	size_t n = shared(turns[0], turns[1]);

	for (int s = 0; s < 2; s++) {
		const json_t *turn = json_array_get(turns[s], n);

		if (turn_role(turn) != NULL && !turn_is(turn, "assistant") &&
		    n + 1 < json_array_size(turns[s]))
			return err_set(why, EX_DATAERR,
			    "\"chosen\" and \"rejected\" have different prompts");
	}
	return 0;
}

/* Both conversations. 0 or -1; turns are the caller's in any case. */
static int conversations(const json_t *rec, json_t *turns[2], struct err *why)
{
	static const char *const name[2] = { "chosen", "rejected" };
	json_t *prompt = json_array();
	bool has;
	int rc = prompt_of(rec, prompt, &has, why);

	for (int s = 0; s < 2 && rc == 0; s++) {
		rc = conversation(rec, prompt, has, name[s], &turns[s], why);
		if (rc == 0 && !has)
			rc = record_context(rec, turns[s], why);
	}
	if (rc == 0)
		rc = check_parting(turns, why);
	json_decref(prompt);
	return rc;
}

static int item(const void *self, struct tok *t, const json_t *rec, struct ids *out,
    struct record_count *count,
    struct err *why)
{
	const struct prefs *p = self;
	struct making m = { .tok = t, .T = p->T };
	json_t *turns[2] = { NULL, NULL };
	int at = out->n, rc = conversations(rec, turns, why), n[2] = { 0, 0 };

	for (int i = 0; i < HEADER; i++)
		ids_push(out, 0);
	if (rc == 0)
		rc = n[0] = put_side(&m, rec, turns[0], shared(turns[0], turns[1]), "chosen", out,
		    why);
	if (rc > 0)
		rc = n[1] = put_side(&m, rec, turns[1], shared(turns[0], turns[1]), "rejected", out,
		    why);
	json_decref(turns[0]);
	json_decref(turns[1]);
	ids_free(&m.ids);
	ids_free(&m.mask);
	if (rc <= 0) {
		out->n = at;
		count->dropped += m.count.dropped > 0;
		count->empty += m.count.empty > 0;
		return rc;
	}
	count->cut += m.count.cut > 0;
	out->v[at + LEN_W] = (uint32_t)n[CHOSEN];
	out->v[at + LEN_L] = (uint32_t)n[REJECTED];
	set_key(out->v + at, out->n - at);
	return 0;
}

/* --- opening --- */

static void report(const struct prefs *p)
{
	const struct record_count *c = corpus_count(p->corpus);

	if (!opt_quiet && c->cut + c->dropped + c->empty > 0)
		err_warn("%s%" PRId64 " pairs cut to --seq, %" PRId64 " left out as too long, %"
		    PRId64 " with nothing left to learn",
		    p->eval ? "--eval: " : "", c->cut, c->dropped, c->empty);
}

static void prefs_close(void *self)
{
	struct prefs *p = self;

	if (p->corpus != NULL && corpus_streams(p->corpus))
		report(p);
	corpus_close(p->corpus);
	if (!p->eval)
		refcache_free(p->cache);
	ids_free(&p->copy);
	free(p->span);
	free(p->room);
	free(p);
}

static void *prefs_open(const struct train_opt *o, const struct config *c, struct tok *t,
    int nfiles,
    char *const files[], bool eval, struct err *e)
{
	struct prefs *p = calloc(1, sizeof *p);
	const struct corpus_opt co = { .unit = "pairs", .kind = { .item = item, .self = p,
	    .tok = t },
	    .shuffle = o->shuffle && !eval, .window = eval ? 0 : o->shuffle_window,
	    .longest = HEADER + 2 * (o->seq + 1),
	    .ram = o->data_ram, .skip_bad = o->skip_bad, .seed = (uint64_t)o->seed };
	const size_t n = 2 * (size_t)o->batch;

	(void)c;
	if (p == NULL || (p->span = malloc(n * sizeof *p->span)) == NULL ||
	    (p->room = malloc(n * sizeof *p->room)) == NULL)
		err_die(EX_OSERR, "out of memory");
	p->T = o->seq;
	p->eval = eval;
	if (t == NULL)
		err_set(e, EX_USAGE, "pairs are text, which needs a tokenizer: -t FILE");
	if (t != NULL)
		p->corpus = corpus_open(nfiles, files, &co, e);
	if (p->corpus != NULL && !corpus_streams(p->corpus))
		report(p);
	if (p->corpus == NULL) {
		prefs_close(p);
		return NULL;
	}
	p->limit = -1;
	if (!corpus_streams(p->corpus) && (eval || o->epochs > 0))
		p->limit = llround((eval ? 1 : o->epochs) * (double)corpus_items(p->corpus));
	return p;
}

static bool prefs_streams(const void *self)
{
	return corpus_streams(((const struct prefs *)self)->corpus);
}

static int64_t prefs_rows(const void *self)
{
	return ((const struct prefs *)self)->limit;
}

static int64_t prefs_bytes(const void *self)
{
	const struct prefs *p = self;

	return corpus_bytes(p->corpus) + (prefs_ref != NULL ? 24 * corpus_items(p->corpus) : 0);
}

static json_t *prefs_identity(const void *self)
{
	const struct prefs *p = self;
	/* enum chat_truncate */
	static const char *const how[] = { "keep-start", "keep-end", "drop" };

	return json_pack("{s:I, s:I, s:s, s:b}", "pairs", (json_int_t)corpus_items(p->corpus),
	    "data_tokens",
	    (json_int_t)(corpus_words(p->corpus) - HEADER * corpus_items(p->corpus)), "truncate",
	    how[chat_flags.truncate], "think", chat_flags.think);
}

/* --- pairs to rows --- */

static int longest_first(const void *a, const void *b)
{
	const struct span *x = a, *y = b;

	if (x->rows != y->rows)
		return y->rows - x->rows;
	return x->pair != y->pair ? x->pair - y->pair : x->side - y->side;
}

static void place(struct batch *b, const struct span *s, int32_t at, int32_t column)
{
	for (int32_t i = 0; i < s->rows; i++) {
		b->tok[at + i] = CHAT_ID(s->v[i]);
		b->target[at + i] = s->v[i + 1] & CHAT_LEARN ? (int32_t)CHAT_ID(s->v[i + 1]) : -1;
		b->doc_start[at + i] = column;
		if (b->from != NULL)
			b->from[at + i] = s->record;
	}
}

/* First fit of the longest first: at most a row for each sequence. */
static void lay_out(struct prefs *p, struct batch *b, struct pref *pair, int n)
{
	qsort(p->span, 2 * (size_t)n, sizeof *p->span, longest_first);
	b->T = p->span[0].rows;
	b->B = 0;
	for (int i = 0; i < 2 * n; i++) {
		const struct span *s = &p->span[i];
		int32_t row = 0, column;

		while (row < b->B && p->room[row] < s->rows)
			row++;
		if (row == b->B)
			p->room[b->B++] = b->T;
		column = b->T - p->room[row];
		p->room[row] -= s->rows;
		pair[s->pair].first[s->side] = row * b->T + column;
		pair[s->pair].rows[s->side] = s->rows;
		place(b, s, row * b->T + column, column);
	}
	for (int row = 0; row < b->B; row++)
		for (int t = b->T - p->room[row]; t < b->T; t++) {
			b->tok[row * b->T + t] = 0;
			b->target[row * b->T + t] = b->doc_start[row * b->T + t] = -1;
		}
}

/* Up to B items into p->copy, one after the other; what corpus_get() gave lives only until its
 * next call. Or only goes on by as many. */
static int collect(struct prefs *p, bool copy, int B, int64_t limit, struct err *e)
{
	const uint32_t *v = NULL;
	int64_t len;
	int n, rc;

	for (n = 0; n < B && p->taken != limit; n++) {
		if ((rc = corpus_get(p->corpus, copy ? &v : NULL, &len, e)) < 0)
			return -1;
		if (rc == 0)
			break;
		if (copy)
			ids_append(&p->copy, v, (size_t)len);
		corpus_advance(p->corpus);
		p->taken++;
	}
	return n;
}

static int pairs(struct prefs *p, struct micro *mb, int B, int64_t limit, struct err *e)
{
	struct pref *pair = mb->extra;
	const uint32_t *v;
	int n, first;			/* of their records */

	p->copy.n = 0;
	if ((n = collect(p, true, B, limit, e)) <= 0)
		return n;
	first = corpus_touched(p->corpus) - n;
	v = p->copy.v;
	for (int i = 0; i < n; i++) {
		pair[i].n = n;
		memcpy(&pair[i].key, v + KEY_LOW, sizeof pair[i].key);
		for (int s = 0; s < 2; s++) {
			int32_t len = (int32_t)v[s == CHOSEN ? LEN_W : LEN_L];

			p->span[2 * i + s] = (struct span){ v + HEADER + (s == REJECTED ? v[LEN_W]
			    : 0), len - 1, i, s, first + i };
			pair[i].targets[s] = 0;
			for (int32_t j = 1; j < len; j++)
				pair[i].targets[s] += (p->span[2 * i + s].v[j] & CHAT_LEARN) != 0;
		}
		v += HEADER + v[LEN_W] + v[LEN_L];
	}
	lay_out(p, &mb->b, pair, n);
	return 1;
}

static int own_pairs(struct prefs *p, struct micro *mb, int B, struct err *e)
{
	struct pref *pair = mb->extra;
	int rc = pairs(p, mb, B, p->limit, e);

	for (int i = 0; rc > 0 && p->cache != NULL && i < pair[0].n; i++)
		if (!refcache_get(p->cache, pair[i].key, pair[i].ref))
			return err_set(e, EX_DATAERR, "%s: has not the log-probs of pair %"
			    PRId64 "; it was made from other data or"
			    " another --seq", prefs_ref, p->taken - pair[0].n + i + 1);
	return rc;
}

/* Of every rank B pairs: goes by those of others. */
static int prefs_next(void *self, struct micro *mb, int B, struct err *e)
{
	struct prefs *p = self;
	int first = collect(p, false, comm_rank() * B, p->limit, e), rc;

	if (first < 0 || (rc = own_pairs(p, mb, B, e)) < 0 ||
	    collect(p, false, (comm_size() - 1 - comm_rank()) * B, p->limit, e) < 0)
		return -1;
	if (rc == 0)
		mb->b.B = 0;
	return first > 0 || rc > 0;
}

int64_t prefs_pairs(const struct micro *mb)
{
	return ((const struct pref *)mb->extra)->n;
}

static json_t *prefs_position(const void *self)
{
	const struct prefs *p = self;
	json_t *at = corpus_position(p->corpus);

	json_object_set_new(at, "pairs", json_integer(p->taken));
	return at;
}

static int prefs_seek(void *self, const json_t *position, struct err *e)
{
	struct prefs *p = self;
	json_int_t taken = 0;

	if (position != NULL && json_unpack((json_t *)position, "{s:I}", "pairs", &taken) < 0)
		return err_set(e, EX_DATAERR, "train_state.json: no position in the pairs");
	if (corpus_seek(p->corpus, position, e) < 0)
		return -1;
	p->taken = taken;
	return 0;
}

static struct corpus *prefs_corpus(void *self)
{
	return ((struct prefs *)self)->corpus;
}

static json_t *prefs_inputs(const void *self)
{
	return corpus_inputs(((const struct prefs *)self)->corpus);
}

const struct source prefs_source = {
	.extra = sizeof(struct pref), .open = prefs_open, .close = prefs_close,
	    .streams = prefs_streams,
	.rows = prefs_rows, .bytes = prefs_bytes, .identity = prefs_identity, .next = prefs_next,
	.position = prefs_position, .seek = prefs_seek, .inputs = prefs_inputs,
	    .corpus = prefs_corpus,
};

/* --- log-probs of the reference, once --- */

static void open_micro(struct micro *mb, const struct stage_env *v)
{
	size_t n = (size_t)v->sequences * (size_t)v->o->seq;

	mb->b.tok = mem_alloc(n * sizeof *mb->b.tok);
	mb->b.target = mem_alloc(n * sizeof *mb->b.target);
	mb->b.doc_start = mem_alloc(n * sizeof *mb->b.doc_start);
	mb->extra = mem_alloc((size_t)v->o->batch * sizeof(struct pref));
}

static void close_micro(struct micro *mb)
{
	mem_free(mb->b.tok);
	mem_free(mb->b.target);
	mem_free(mb->b.doc_start);
	mem_free(mb->extra);
}

/* Where experts are divided all ranks go through all pairs, for each needs the others' experts;
 * else the first does. */
static bool with_others(const struct stage_env *v)
{
	return v->o->expert_parallel > 1;
}

/* All pairs of one epoch of p into the cache. */
static int compute(struct prefs *p, struct model *m, struct micro *mb, const struct stage_env *v,
    real *logp, struct refcache *c,
    struct progress *bar, struct err *e)
{
	const struct forward_opt plain = {0};
	struct pref *pair = mb->extra;
	int rc = 0;

	if (p == NULL)
		return 0;
	while (p->taken < corpus_items(p->corpus)) {
		rc = pairs(p, mb, v->o->batch, corpus_items(p->corpus), e);
		if ((with_others(v) ? comm_agree(rc, e) : rc) <= 0)
			return -1;
		model_forward(m, &mb->b, &plain);
		loss_pref_reference(m, &mb->b, pair, pair[0].n, logp);
		for (int i = 0; i < pair[0].n; i++)
			refcache_put(c, pair[i].key, pair[i].ref);
		progress_at(bar, (double)p->taken, "reference log-probs");
	}
	return prefs_seek(p, NULL, e);
}

static struct refcache *make_cache(const struct stage_env *v, struct err *e)
{
	const struct model_opt frozen = { .max_b = v->sequences, .max_t = v->o->seq,
	    .bf16 = v->o->compute,
	    .divided = v->o->expert_parallel };
	struct refcache *c = refcache_new();
	struct progress bar;
	struct micro mb = {0};
	struct model m;
	real *logp;
	int rc;

	if (model_open(&m, v->cfg, &frozen, v->be, e) < 0) {
		refcache_free(c);
		return NULL;
	}
	open_micro(&mb, v);
	logp = mem_alloc((size_t)v->sequences * (size_t)v->o->seq * sizeof *logp);
	progress_start(&bar, "reference", "pairs", 0);
	rc = ckpt_load_weights(v->o->model, &m, e);
	if (with_others(v))
		rc = comm_agree(rc, e);
	if (rc == 0)
		rc = compute(v->src, &m, &mb, v, logp, c, &bar, e);
	if (rc == 0)
		rc = compute(v->eval_src, &m, &mb, v, logp, c, &bar, e);
	progress_end(&bar);
	refcache_sort(c);
	if (rc == 0 && comm_rank() == 0)
		rc = refcache_save(c, prefs_ref, v->parent, e);
	mem_free(logp);
	close_micro(&mb);
	model_close(&m);
	if (rc == 0)
		return c;
	refcache_free(c);
	return NULL;
}

/* Every pair in memory must be in the cache, which is found out before the first step. */
static int check_cache(struct prefs *p, const struct refcache *c, struct err *e)
{
	int64_t n = p == NULL ? 0 : corpus_items(p->corpus), lacking = 0;

	for (int64_t i = 0; i < n; i++) {
		const uint32_t *v;
		int64_t len;
		uint64_t key;
		double logp[2];

		if (corpus_get(p->corpus, &v, &len, e) <= 0)
			return -1;
		memcpy(&key, v + KEY_LOW, sizeof key);
		lacking += !refcache_get(c, key, logp);
		corpus_advance(p->corpus);
	}
	if (lacking > 0)
		return err_set(e, EX_DATAERR, "%s: lacks %" PRId64 " of %"
		    PRId64 " pairs: it was made from other data or another"
		    " --seq; without that file they are computed anew", prefs_ref, lacking, n);
	return p == NULL || n == 0 ? 0 : prefs_seek(p, NULL, e);
}

int prefs_prepare(const struct stage_env *v, struct err *e)
{
	struct prefs *p = v->src, *eval = v->eval_src;
	struct refcache *c = NULL;
	bool there, maker;

	if (prefs_ref == NULL)
		return 0;
	if (v->o->model == NULL)
		return err_set(e, EX_USAGE, "--precompute-ref needs the model they are of: -m DIR");
	there = access(prefs_ref, F_OK) == 0;
	comm_bcast(&there, sizeof there);
	if (!there && corpus_streams(p->corpus))
		return err_set(e, EX_USAGE, "--precompute-ref %s: is not there, and pairs from a "
		    "pipe come only once",
		    prefs_ref);
	maker = comm_rank() == 0 || with_others(v);
	if (!there && maker)
		c = make_cache(v, e);
	if (!there && comm_agree(maker && c == NULL ? -1 : 0, e) < 0)
		return -1;
	if (c == NULL)
		c = refcache_load(prefs_ref, v->parent, e);
	if (c == NULL)
		return -1;
	p->cache = c;
	if (eval != NULL)
		eval->cache = c;
	return check_cache(p, c, e) < 0 ? -1 : check_cache(eval, c, e);
}
