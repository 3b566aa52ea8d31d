#include "text/record_load.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/comm.h"
#include "base/pool.h"

struct made {			/* of a line */
	int worker, n;		/* whose words its item is; 0: none */
	int64_t at;
};

struct worker {
	_Alignas(64) struct tok *tok;
	struct ids item, words;	/* of one record; of all that it has made in this block */
	struct record_count count;
	int64_t bad, nbad;	/* the first line that is bad, if any; how many are */
	struct err why;
};

struct block {
	struct head {
		int64_t lines, n, words;	/* that it had; items; words that are there */
		int64_t longest;		/* bytes of a line */
		int64_t bad, nbad;		/* the first line that is bad, from 0, -1: none;
						   how many are */
		struct record_count count;
		struct err why, fatal;		/* why it is bad; why there is nothing more after
						   it */
		bool at_line, end;		/* fatal is about the line after the last */
	} h;
	int64_t *place;			/* (n) */
	uint32_t *len, *word;		/* (n), (words) */
	int64_t cap_place, cap_len, cap_word;
};

struct record_load {
	const struct record_kind *k;
	bool skip_bad;
	int nworkers;
	struct worker *worker;
	struct record_file_block in;
	struct made *made;		/* (lines) */
	int64_t cap_made;

	struct record_file *f;
	const char *path;
	int64_t round, lineno, skipped;
	int turn;			/* the rank whose block is next */
	struct block own, other;	/* what this rank made, and what it got from another */
	struct record_load_block out;
	struct record_count count;
};

static void *more(void *p, int64_t need, int64_t *cap, size_t size)
{
	if (need <= *cap)
		return p;
	*cap = need + need / 4 + 64;
	if ((p = realloc(p, (size_t)*cap * size)) == NULL)
		err_die(EX_OSERR, "no memory to read %" PRId64 " records", need);
	return p;
}

static void room_for(struct block *b, int64_t n, int64_t words)
{
	b->place = more(b->place, n + 1, &b->cap_place, sizeof *b->place);
	b->len = more(b->len, n + 1, &b->cap_len, sizeof *b->len);
	b->word = more(b->word, words + 1, &b->cap_word, sizeof *b->word);
}

static void free_block(struct block *b)
{
	free(b->place);
	free(b->len);
	free(b->word);
}

struct record_load *record_load_open(const struct record_kind *k, bool skip_bad)
{
	struct record_load *l = calloc(1, sizeof *l);
	size_t n = (size_t)pool_threads();

	if (l == NULL || (l->worker = aligned_alloc(64, n * sizeof *l->worker)) == NULL)
		err_die(EX_OSERR, "out of memory");
	memset(l->worker, 0, n * sizeof *l->worker);
	l->k = k;
	l->skip_bad = skip_bad;
	l->nworkers = (int)n;
	for (size_t i = 0; i < n; i++)
		l->worker[i].tok = i == 0 ? k->tok : tok_share(k->tok);
	return l;
}

void record_load_close(struct record_load *l)
{
	if (l == NULL)
		return;
	for (int i = 0; i < l->nworkers; i++) {
		if (i > 0)
			tok_free(l->worker[i].tok);
		ids_free(&l->worker[i].item);
		ids_free(&l->worker[i].words);
	}
	lineblock_free(&l->in.lines);
	free(l->worker);
	free(l->made);
	free_block(&l->own);
	free_block(&l->other);
	free(l);
}

int record_load_begin(struct record_load *l, struct record_file *f, const char *path, struct err *e)
{
	int64_t own = record_file_size(f), size = own;

	l->f = f;
	l->path = path;
	l->round = l->lineno = l->skipped = 0;
	l->turn = 0;
	comm_bcast(&size, sizeof size);
	return comm_agree(own == size ? 0 : err_set(e, EX_DATAERR,
	    "%s: is not the same file on all ranks", path), e);
}

/* --- one block, by all threads --- */

/* A worker takes its lines in their order, so the first that it finds bad is the first of its
 * own. */
static void note_bad(struct worker *w, int64_t line, const struct err *why)
{
	if (w->nbad++ == 0) {
		w->bad = line;
		w->why = *why;
	}
}

static void make_line(struct record_load *l, int64_t i, int worker)
{
	struct worker *w = &l->worker[worker];
	const struct lineblock *in = &l->in.lines;
	struct made *m = &l->made[i];
	struct err why = {0};

	*m = (struct made){ .worker = worker, .at = w->words.n };
	if (record_item(l->k, w->tok, lineblock_text(in, i), in->line[i].len, &w->item, &w->count,
	    &why) < 0) {
		note_bad(w, i, &why);
		return;
	}
	m->n = w->item.n;
	ids_append(&w->words, w->item.v, (size_t)w->item.n);
}

static void make_lines(void *ctx, int64_t i0, int64_t i1, int worker)
{
	for (int64_t i = i0; i < i1; i++)
		make_line(ctx, i, worker);
}

static void clear(struct record_load *l)
{
	for (int i = 0; i < l->nworkers; i++) {
		struct worker *w = &l->worker[i];

		w->words.n = 0;
		w->nbad = 0;
		w->count = (struct record_count){0};
	}
	l->own.h = (struct head){ .bad = -1 };
}

static void add_count(struct record_count *sum, const struct record_count *n)
{
	sum->cut += n->cut;
	sum->dropped += n->dropped;
	sum->empty += n->empty;
}

static void add_up(const struct record_load *l, struct head *h)
{
	for (int i = 0; i < l->nworkers; i++) {
		const struct worker *w = &l->worker[i];

		add_count(&h->count, &w->count);
		h->nbad += w->nbad;
		if (w->nbad > 0 && (h->bad < 0 || w->bad < h->bad)) {
			h->bad = w->bad;
			h->why = w->why;
		}
	}
}

/* Documents are copied rather than made: one thread reads them. */
static void make_docs(struct record_load *l, struct err *e)
{
	struct worker *w = &l->worker[0];

	for (int64_t i = 0; i < l->in.docs && record_file_doc(l->f, l->in.first + i, &w->item, e) ==
	    0; i++) {
		l->made[i] = (struct made){ .n = w->item.n, .at = w->words.n };
		ids_append(&w->words, w->item.v, (size_t)w->item.n);
	}
}

/* Items in their order, and their words side by side, the first `room` of them. */
static void gather(struct record_load *l, int64_t room)
{
	struct block *b = &l->own;
	int64_t all = 0, n;

	for (int i = 0; i < l->nworkers; i++)
		all += l->worker[i].words.n;
	room_for(b, b->h.lines, all < room ? all : room);
	for (int64_t i = 0; i < b->h.lines; i++) {
		const struct made *m = &l->made[i];

		if (m->n == 0)
			continue;
		if (!record_file_is_shard(l->f) && (int64_t)l->in.lines.line[i].len > b->h.longest)
			b->h.longest = (int64_t)l->in.lines.line[i].len;
		b->place[b->h.n] = record_file_is_shard(l->f) ? l->in.first + i
		    : l->in.lines.line[i].place;
		b->len[b->h.n++] = (uint32_t)m->n;
		n = m->n < room - b->h.words ? m->n : room - b->h.words;
		if (n > 0)
			memcpy(b->word + b->h.words, l->worker[m->worker].words.v + m->at,
			    (size_t)n * sizeof *b->word);
		b->h.words += n;
	}
}

static void make_block(struct record_load *l, int64_t k, int64_t room)
{
	struct head *h = &l->own.h;
	bool shard = record_file_is_shard(l->f);

	clear(l);
	h->at_line = record_file_read(l->f, k, &l->in, &h->fatal) < 0 &&
	    h->fatal.status == EX_DATAERR && record_file_seeks(l->f);
	h->lines = shard ? l->in.docs : l->in.lines.count;
	h->end = l->in.end;
	l->made = more(l->made, h->lines + 1, &l->cap_made, sizeof *l->made);
	memset(l->made, 0, (size_t)h->lines * sizeof *l->made);
	if (shard)
		make_docs(l, &h->fatal);
	else
		pool_for(h->lines, 1, make_lines, l);
	add_up(l, h);
	gather(l, room);
	if (h->n > 0 && l->own.place[h->n - 1] >= RECORD_FILE_PLACES)
		err_set(&h->fatal, EX_DATAERR, "%s: more than %"
		    PRId64 " GiB: cut it into several files", l->path,
		    RECORD_FILE_PLACES >> 30);
}

/* --- blocks of all ranks, in turn --- */

/* The block of the rank whose turn it is, which all have then, with as many words as there is
 * still room for: the blocks before it have taken theirs. */
static struct block *share_block(struct record_load *l, int64_t room)
{
	struct block *b = l->turn == comm_rank() ? &l->own : &l->other;

	if (b->h.words > room)
		b->h.words = room;
	if (comm_size() == 1)
		return b;
	comm_share(&b->h, sizeof b->h, l->turn);
	room_for(b, b->h.n, b->h.words);
	comm_share(b->place, (size_t)b->h.n * sizeof *b->place, l->turn);
	comm_share(b->len, (size_t)b->h.n * sizeof *b->len, l->turn);
	comm_share(b->word, (size_t)b->h.words * sizeof *b->word, l->turn);
	return b;
}

/* Bad records, and errors, of a block that all have. */
static int judge(struct record_load *l, const struct head *h, struct err *e)
{
	if (h->bad >= 0 && !l->skip_bad)
		return err_set(e, EX_DATAERR, "%s:%" PRId64 ": %.400s", l->path,
		    l->lineno + h->bad + 1, h->why.msg);
	if (h->bad >= 0 && l->skipped == 0)
		err_warn("%s:%" PRId64 ": %.400s (skipped, like others that follow)", l->path,
		    l->lineno + h->bad + 1, h->why.msg);
	l->skipped += h->nbad;
	l->lineno += h->lines;
	add_count(&l->count, &h->count);
	if (h->at_line)
		return err_set(e, EX_DATAERR, "%s:%" PRId64 ": %.400s", l->path, l->lineno + 1,
		    h->fatal.msg);
	*e = h->fatal.status != 0 ? h->fatal : *e;
	return h->fatal.status != 0 ? -1 : 0;
}

int record_load_next(struct record_load *l, int64_t room, const struct record_load_block **b,
    struct err *e)
{
	struct block *x;

	if (l->turn == 0)
		make_block(l, l->round++ * comm_size() + comm_rank(), room);
	x = share_block(l, room);
	l->turn = (l->turn + 1) % comm_size();
	l->out = (struct record_load_block){ x->h.n, x->place, x->len, x->word, x->h.longest,
	    x->h.end };
	*b = &l->out;
	return judge(l, &x->h, e);
}

void record_load_end(struct record_load *l)
{
	if (l->skipped > 0)
		err_warn("%s: %" PRId64 " bad records passed over", l->path, l->skipped);
	l->skipped = 0;
}

const struct record_count *record_load_count(const struct record_load *l)
{
	return &l->count;
}
