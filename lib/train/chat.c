#include "train/chat.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/comm.h"
#include "text/corpus.h"
#include "base/mem.h"
#include "text/record.h"

struct chat_opt chat_flags;

const struct opt chat_opts[] = {
	{ .kind = OPT_GROUP, .help = "Conversations" },
	{ 0, "truncate", OPT_CHOICE, &chat_flags.truncate, 0, 0, "keep-start|keep-end|drop",
	    "what to do with those longer than --seq" },
	{ 0, "think", OPT_FLAG, &chat_flags.think, 0, 0, NULL,
	    "an empty think block opens each answer that has none" },
	{ .kind = OPT_END }
};

bool chat_fit(struct ids *ids, struct ids *mask, int n, struct record_count *count)
{
	int over = ids->n - n;

	if (over <= 0)
		return true;
	if (chat_flags.truncate == CHAT_DROP) {
		count->dropped++;
		return false;
	}
	count->cut++;
	if (chat_flags.truncate == CHAT_KEEP_END) {
		memmove(ids->v, ids->v + over, (size_t)n * sizeof *ids->v);
		if (mask != NULL)
			memmove(mask->v, mask->v + over, (size_t)n * sizeof *mask->v);
	}
	ids->n = n;
	if (mask != NULL)
		mask->n = n;
	return true;
}

/* The first id is never a target: nothing comes before it. */
static int last_target(const struct ids *mask)
{
	int i = mask->n - 1;

	while (i > 0 && !mask->v[i])
		i--;
	return i;
}

/* Keys of other layouts of the same data, for a message. */
static int no_messages(const json_t *rec, struct err *why)
{
	static const char *const keys[] = { "instruction", "prompt", "question", "query", "input",
	    "completion", "response", "output", "answer", "text", "dialogue", "dialog",
	    "conversation", "turns", "chosen" };

	for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
		if (json_object_get(rec, keys[i]) != NULL)
			return err_set(why, EX_DATAERR, "missing \"messages\"; \"%s\" is not "
			    "read here: make turns of the user and the assistant of it", keys[i]);
	return err_set(why, EX_DATAERR, "missing \"messages\"");
}

static int encode(struct tok *t, int vocab, const json_t *rec, struct ids *out, struct ids *mask,
    struct err *why)
{
	struct tok_chat c;
	json_t *turns;
	int rc;

	if (record_has_tokens(rec))
		return record_tokens(rec, vocab, out, why) < 0 ? -1 : record_mask(rec, out->n,
		    mask, why);
	if (record_no_mask(rec, why) < 0)
		return -1;
	if (record_turns(rec, &turns, why) < 0)
		return -1;
	if (turns == NULL)
		return no_messages(rec, why);
	c = record_chat(rec, turns);
	c.think = chat_flags.think;
	rc = t != NULL ? tok_chat(t, &c, out, mask, why) : err_set(why, EX_DATAERR,
	    "no tokenizer for a conversation");
	json_decref(turns);
	return rc;
}

/* A record that is no conversation: all of it is to be learned. */
static int text_words(struct tok *t, int vocab, const json_t *rec, struct ids *out,
    struct record_count *count,
    struct err *why)
{
	if (record_document(rec, t, vocab, out, why) < 0)
		return -1;
	for (int i = 1; i < out->n; i++)
		out->v[i] |= CHAT_LEARN;
	if (out->n < 2) {
		count->empty++;
		out->n = 0;
	}
	return 0;
}

int chat_words(struct tok *t, int vocab, const json_t *rec, int n, struct ids *out,
    struct record_count *count,
    struct err *why)
{
	struct ids mask = {0};
	int rc = encode(t, vocab, rec, out, &mask, why);

	if (rc < 0 || !chat_fit(out, &mask, n, count)) {
		out->n = 0;
	} else {
		out->n = last_target(&mask) + 1;
		for (int i = 1; i < out->n; i++)
			out->v[i] |= mask.v[i] ? CHAT_LEARN : 0;
		if (out->n < 2) {
			count->empty++;
			out->n = 0;
		}
	}
	ids_free(&mask);
	return rc;
}

void chat_report(const struct record_count *count)
{
	if (opt_quiet || count->cut + count->dropped + count->empty == 0)
		return;
	err_warn("%" PRId64 " conversations cut to --seq, %" PRId64 " left out as too long, %"
	    PRId64
	    " without anything to learn", count->cut, count->dropped, count->empty);
}

/* --- the source --- */

struct chat {
	const struct chat_kind *kind;
	struct tok *tok;
	int vocab, T;
	struct corpus *corpus;
	int64_t limit, rows;		/* items to deliver, rows that they take; -1: no end, or
					   not known */
	int64_t offset;			/* token of the next item at which its next piece begins */
	int *used;			/* (ranks * batch) columns of each row of the
					   micro-batch, of which every rank has some */
};

static int item(const void *self, struct tok *t, const json_t *rec, struct ids *out,
    struct record_count *n,
    struct err *why)
{
	const struct chat *c = self;

	return c->kind->item(t, c->vocab, rec, c->T + 1, out, n, why);
}

static int text_item(struct tok *t, int vocab, const json_t *rec, int n, struct ids *out,
    struct record_count *count,
    struct err *why)
{
	bool tokens = record_has_tokens(rec);

	if (tokens ? json_object_get(rec, "mask") != NULL : record_has_turns(rec))
		return chat_words(t, vocab, rec, n, out, count, why);
	return text_words(t, vocab, rec, out, count, why);
}

/* The first row with room for n, or -1. */
static int find_room(const struct chat *c, int B, int64_t n)
{
	for (int r = 0; r < B; r++)
		if (c->used[r] + n <= c->T)
			return r;
	return -1;
}

/* Row r of the micro-batch in this rank's share of B rows, or -1. */
static int own_row(int r, int B)
{
	return r / B == comm_rank() ? r % B : -1;
}

/* The next n rows into row r of the batch, row `at_row` of this rank; what comes with their
 * tokens into extra. */
static int place(const struct chat *c, struct micro *mb, int r, int at_row, int64_t n,
    struct err *e)
{
	int64_t at = (int64_t)at_row * c->T + c->used[r], all;
	int stride = c->kind->stride, record;
	struct batch *b = &mb->b;
	const uint32_t *word;

	if (corpus_get(c->corpus, &word, &all, e) < 0)
		return -1;
	word += c->offset * stride;
	record = corpus_touch(c->corpus);
	for (int64_t i = 0; i < n; i++) {
		uint32_t next = word[(i + 1) * stride];

		b->tok[at + i] = CHAT_ID(word[i * stride]);
		b->target[at + i] = next & CHAT_LEARN ? (int32_t)CHAT_ID(next) : -1;
		b->doc_start[at + i] = c->used[r];
		if (b->from != NULL)
			b->from[at + i] = record;
		if (stride > 1)
			memcpy((uint32_t *)mb->extra + (at + i) * (stride - 1),
			    word + i * stride + 1,
			    (size_t)(stride - 1) * sizeof *word);
	}
	return 0;
}

static void pad(const struct chat *c, struct batch *b, int r, int at_row)
{
	for (int64_t i = (int64_t)at_row * c->T + c->used[r]; i < (int64_t)(at_row + 1) * c->T;
	    i++) {
		b->tok[i] = 0;
		b->target[i] = -1;
		b->doc_start[i] = -1;
	}
}

/* The piece that is next, at most T rows: rows, 0 at the end, -1. */
static int64_t piece(struct chat *c, int64_t *left, struct err *e)
{
	int64_t n;
	int rc;

	if (c->limit >= 0 && corpus_passed(c->corpus) >= c->limit)
		return 0;
	if ((rc = corpus_get(c->corpus, NULL, &n, e)) <= 0)
		return rc;
	*left = n / c->kind->stride - c->offset - 1;
	return *left < c->T ? *left : c->T;
}

/* Packs one micro-batch of B rows for each rank, this rank's into mb, or only moves on when that
 * is NULL. Of what is not its own it looks at the length. Rows used on all, 0 at the end, -1. */
static int pack(struct chat *c, struct micro *mb, int B, struct err *e)
{
	int64_t n, left;
	int rows = 0, all = B * comm_size(), r;

	memset(c->used, 0, (size_t)all * sizeof *c->used);
	while ((n = piece(c, &left, e)) > 0 && (r = find_room(c, all, n)) >= 0) {
		if (mb != NULL && own_row(r, B) >= 0 && place(c, mb, r, own_row(r, B), n, e) < 0)
			return -1;
		c->used[r] += (int)n;
		rows = r + 1 > rows ? r + 1 : rows;
		c->offset += n;
		if (n == left) {
			corpus_advance(c->corpus);
			c->offset = 0;
		}
	}
	for (r = 0; mb != NULL && r < rows; r++)
		if (own_row(r, B) >= 0)
			pad(c, &mb->b, r, own_row(r, B));
	return n < 0 ? -1 : rows;
}

/* Goes through all the data to see how many micro-batches there are, and back. */
static int count_rows(struct chat *c, int B, struct err *e)
{
	int rows;

	if (c->limit < 0) {
		c->rows = -1;
		return 0;
	}
	while ((rows = pack(c, NULL, B, e)) > 0)
		c->rows += B * comm_size();
	return rows < 0 ? -1 : corpus_seek(c->corpus, NULL, e);
}

static void chat_close(void *self)
{
	struct chat *c = self;

	if (c->corpus != NULL && corpus_streams(c->corpus))
		chat_report(corpus_count(c->corpus));
	corpus_close(c->corpus);
	mem_free(c->used);
	free(c);
}

static int open_corpus(struct chat *c, const struct train_opt *o, int nfiles, char *const files[],
    bool eval,
    struct err *e)
{
	const struct corpus_opt co = { .unit = c->kind->unit, .kind = { .item = item, .self = c,
	    .tok = c->tok },
	    .shuffle = o->shuffle && !eval, .window = eval ? 0 : o->shuffle_window,
	    .longest = (o->seq + 1) * c->kind->stride,
	    .ram = o->data_ram, .skip_bad = o->skip_bad, .seed = (uint64_t)o->seed };

	if ((c->corpus = corpus_open(nfiles, files, &co, e)) == NULL)
		return -1;
	c->limit = corpus_streams(c->corpus) || (o->epochs == 0 && !eval) ? -1 :
	    llround((eval ? 1 : o->epochs) * (double)corpus_items(c->corpus));
	if (!corpus_streams(c->corpus))
		chat_report(corpus_count(c->corpus));
	return count_rows(c, o->batch, e);
}

void *chat_open_kind(const struct chat_kind *kind, const struct train_opt *o,
    const struct config *cfg, struct tok *t,
    int nfiles, char *const files[], bool eval, struct err *e)
{
	struct chat *c = calloc(1, sizeof *c);

	if (c == NULL) {
		err_set(e, EX_OSERR, "out of memory");
		return NULL;
	}
	c->kind = kind;
	c->tok = t;
	c->vocab = cfg->vocab_size;
	c->T = o->seq;
	c->used = mem_alloc((size_t)o->batch * (size_t)comm_size() * sizeof *c->used);
	if (open_corpus(c, o, nfiles, files, eval, e) == 0)
		return c;
	chat_close(c);
	return NULL;
}

static void *chat_open(const struct train_opt *o, const struct config *cfg, struct tok *t,
    int nfiles,
    char *const files[], bool eval, struct err *e)
{
	static const struct chat_kind kind = { "conversations", 1, chat_words };

	return chat_open_kind(&kind, o, cfg, t, nfiles, files, eval, e);
}

static void *text_open(const struct train_opt *o, const struct config *cfg, struct tok *t,
    int nfiles,
    char *const files[], bool eval, struct err *e)
{
	static const struct chat_kind kind = { "conversations and texts", 1, text_item };

	return chat_open_kind(&kind, o, cfg, t, nfiles, files, eval, e);
}

static bool chat_streams(const void *self)
{
	return corpus_streams(((const struct chat *)self)->corpus);
}

static int64_t chat_rows(const void *self)
{
	return ((const struct chat *)self)->rows;
}

static int64_t chat_bytes(const void *self)
{
	return corpus_bytes(((const struct chat *)self)->corpus);
}

static json_t *chat_identity(const void *self)
{
	const struct chat *c = self;

	return json_pack("{s:I, s:I, s:i, s:b}", "conversations",
	    (json_int_t)corpus_items(c->corpus), "data_tokens",
	    (json_int_t)corpus_words(c->corpus), "truncate", chat_flags.truncate, "think",
	    chat_flags.think);
}

static int chat_next(void *self, struct micro *mb, int B, struct err *e)
{
	struct chat *c = self;
	int rows = pack(c, mb, B, e), own = rows - B * comm_rank();

	mb->b.T = c->T;
	mb->b.B = own < 0 ? 0 : own < B ? own : B;
	return rows < 0 ? -1 : rows > 0;
}

static json_t *chat_position(const void *self)
{
	const struct chat *c = self;
	json_t *p = corpus_position(c->corpus);

	json_object_set_new(p, "offset", json_integer(c->offset));
	return p;
}

static int chat_seek(void *self, const json_t *position, struct err *e)
{
	struct chat *c = self;
	json_int_t offset = 0;
	int64_t left;

	if (position != NULL && json_unpack((json_t *)position, "{s:I}", "offset", &offset) < 0)
		return err_set(e, EX_DATAERR, "train_state.json: no position in the data");
	if (corpus_seek(c->corpus, position, e) < 0)
		return -1;
	c->offset = offset;
	if (offset != 0 && (offset < 0 || piece(c, &left, e) <= 0))
		return e->status != 0 ? -1 : err_set(e, EX_DATAERR,
		    "train_state.json: its position is not in this data");
	return 0;
}

static struct corpus *chat_corpus(void *self)
{
	return ((struct chat *)self)->corpus;
}

static json_t *chat_inputs(const void *self)
{
	const struct chat *c = self;
	const struct record_count *n = corpus_count(c->corpus);
	json_t *list = corpus_inputs(c->corpus), *all;

	if (n->cut + n->dropped + n->empty == 0)
		return list;
	all = json_copy(list);
	json_decref(list);
	json_array_append_new(all, json_pack("{s:I, s:I, s:I}", "cut", (json_int_t)n->cut,
	    "too_long",
	    (json_int_t)n->dropped, "nothing_to_learn", (json_int_t)n->empty));
	return all;
}

const struct source chat_source = {
	.open = chat_open, .close = chat_close, .streams = chat_streams, .rows = chat_rows,
	    .bytes = chat_bytes,
	.identity = chat_identity, .next = chat_next, .position = chat_position, .seek = chat_seek,
	.inputs = chat_inputs, .corpus = chat_corpus,
};

const struct source chat_text_source = {
	.open = text_open, .close = chat_close, .streams = chat_streams, .rows = chat_rows,
	    .bytes = chat_bytes,
	.identity = chat_identity, .next = chat_next, .position = chat_position, .seek = chat_seek,
	.inputs = chat_inputs, .corpus = chat_corpus,
};
