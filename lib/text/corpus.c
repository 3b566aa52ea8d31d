#include "text/corpus.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/comm.h"
#include "base/json.h"
#include "base/progress.h"
#include "format/prov.h"
#include "text/record_load.h"
#include "base/rng.h"
#include "base/sha256.h"

enum {
	STREAM_ORDER = 0x64617461,	/* random stream of the items' order; number of the pool
					   and epoch are added */
	STREAM_WINDOW = 0x77696e64,	/* of the draws from a window */
	PIECE_BITS = 24,		/* of an item's place */
	LITTLE = 64 << 10		/* bytes that a plan need not name */
};

struct part {			/* a file */
	char *path;			/* without its share */
	double share;			/* 0: none was given */
	struct record_file *f;
	int64_t first;			/* its first item */
};

struct pool {			/* items that are gone through together: all, or those of a file
				   with a share */
	int64_t first, n;
	double share;
	int64_t epoch, index, words;	/* words gone by */
};

struct slot {			/* an item of a pipe */
	struct ids ids;
	const char *file;
	int64_t line;
};

struct used {			/* a record, by item number or by its line in a pipe */
	const char *file;
	int64_t at;
};

struct corpus {
	struct corpus_opt o;
	int nparts, npools;
	struct part *part;
	struct pool *pool;
	json_t *inputs;			/* prov_file() of each file */

	/* files */
	uint64_t *place;		/* (n) where an item's record is in its file, and which
					   piece of it */
	uint32_t *size;			/* (n) words of it */
	int64_t *at;			/* (kept + 1) where each of the first items begins in
					   word */
	uint32_t *word;			/* items one after the other */
	uint32_t *order;		/* (n) of each pool's epoch, counted from its first item */
	int64_t n, kept, words;		/* words: of all items */
	int64_t cap_place, cap_size, cap_at, cap_words;
	int64_t longest_line, longest;	/* bytes and words of a record */
	void *reserve;			/* for one that is made again, until one is */
	struct record_count count;
	int64_t held;			/* the item whose record was made again last, all of it
					   in scratch; -1: none */
	struct ids scratch;

	/* a pipe */
	struct jsonl *in;
	char **names;			/* what jsonl_open() borrows */
	struct slot *slot;		/* read, not yet given: 1, or a window */
	int64_t filled, cap_slots;
	bool ended;
	struct sha256 digest;		/* of the items gone by */

	bool chosen;			/* who is next, and its size: */
	int64_t turn, len;		/* pool or slot */
	int64_t passed;

	struct used *used;
	int nused, cap_used;
	bool noting, touched;		/* touched: the item at hand is the last of them */
};

/* --- names --- */

static bool regular(const char *path)
{
	struct stat st;

	return strcmp(path, "-") != 0 && (stat(path, &st) < 0 || S_ISREG(st.st_mode));
}

static bool all_stdin(const struct corpus *c)
{
	bool all = true;

	for (int i = 0; i < c->nparts; i++)
		all &= strcmp(c->names[i], "-") == 0;
	return all;
}

/* Cuts the share off, if there is one. */
static void set_name(struct part *p, const char *name)
{
	struct stat st;
	char *colon, *end;

	if ((p->path = strdup(name)) == NULL)
		err_die(EX_OSERR, "out of memory");
	colon = strrchr(p->path, ':');
	if (colon == NULL || colon == p->path || colon[1] < '.' || colon[1] > '9' ||
	    stat(name, &st) == 0)
		return;
	p->share = strtod(colon + 1, &end);
	if (*end == '\0' && isfinite(p->share) && p->share > 0)
		*colon = '\0';
	else
		p->share = 0;
}

static int set_names(struct corpus *c, char *const files[], bool *stream, struct err *e)
{
	int shares = 0;

	*stream = false;
	for (int i = 0; i < c->nparts; i++) {
		set_name(&c->part[i], files[i]);
		c->names[i] = c->part[i].path;
		*stream |= !regular(c->part[i].path);
		shares += c->part[i].share > 0;
	}
	if (shares > 0 && *stream)
		return err_set(e, EX_USAGE, "FILE:SHARE mixes regular files, and one of these is a "
		    "pipe");
	if (shares > 0 && shares < c->nparts)
		return err_set(e, EX_USAGE, "FILE:SHARE: either every file has a share or none");
	return 0;
}

/* --- reading files for the first time --- */

/* most: no larger than that. (A rank must not stop alone while the others wait for its blocks.) */
static int grow(void *pp, int64_t need, int64_t *cap, int64_t most, size_t size, struct err *e)
{
	int64_t want = need + need / 2 + 1024;
	void *p, **at = pp;

	if (need <= *cap)
		return 0;
	if (want > most)
		want = most;
	if ((p = realloc(*at, (size_t)want * size)) == NULL && comm_size() > 1)
		err_die(EX_OSERR, "no memory for %" PRId64 " bytes of training data",
		    want * (int64_t)size);
	if (p == NULL)
		return err_set(e, EX_OSERR, "no memory for %" PRId64 " bytes of training data",
		    want * (int64_t)size);
	*at = p;
	*cap = want;
	return 0;
}

/* Words that there is room for: the first items are kept, as long as there is some for the next. */
static int64_t room_left(const struct corpus *c)
{
	return c->kept < c->n ? 0 : c->o.ram / (int64_t)sizeof *c->word - (c->kept > 0
	    ? c->at[c->kept] : 0);
}

static int keep(struct corpus *c, const uint32_t *item, int64_t n, struct err *e)
{
	int64_t room = c->o.ram / (int64_t)sizeof *c->word, end = c->kept > 0 ? c->at[c->kept] : 0;

	if (n > room_left(c))
		return 0;
	if (grow(&c->at, c->kept + 2, &c->cap_at, INT64_MAX, sizeof *c->at, e) < 0 ||
	    grow(&c->word, end + n, &c->cap_words, room, sizeof *c->word, e) < 0)
		return -1;
	c->at[0] = 0;
	memcpy(c->word + end, item, (size_t)n * sizeof *item);
	c->at[++c->kept] = end + n;
	return 0;
}

static int add_item(struct corpus *c, int64_t place, int64_t piece, const uint32_t *item, int64_t n,
    struct err *e)
{
	if (c->n == UINT32_MAX || piece >> PIECE_BITS != 0)
		return err_set(e, EX_DATAERR, "more than %" PRIu32 " %s, or more than %d pieces of "
		    "one", UINT32_MAX, c->o.unit,
		    1 << PIECE_BITS);
	if (keep(c, item, n, e) < 0 || grow(&c->place, c->n + 1, &c->cap_place, INT64_MAX,
	    sizeof *c->place, e) < 0 ||
	    grow(&c->size, c->n + 1, &c->cap_size, INT64_MAX, sizeof *c->size, e) < 0)
		return -1;
	c->size[c->n] = (uint32_t)n;
	c->place[c->n++] = (uint64_t)place << PIECE_BITS | (uint64_t)piece;
	c->words += n;
	return 0;
}

/* The words of an item are there if it is to be kept. */
static int add_record(struct corpus *c, int64_t place, const uint32_t *word, int64_t n,
    struct err *e)
{
	int64_t piece = c->o.piece > 0 ? c->o.piece : n;
	int rc = 0;

	c->longest = n > c->longest ? n : c->longest;
	for (int64_t i = 0; rc == 0 && i < n; i += piece)
		rc = add_item(c, place, i / piece, word + i, n - i < piece ? n - i : piece, e);
	return rc;
}

static int add_block(struct corpus *c, const struct record_load_block *b, struct err *e)
{
	const uint32_t *word = b->word;
	int rc = 0;

	c->longest_line = b->longest > c->longest_line ? b->longest : c->longest_line;
	for (int64_t i = 0; i < b->n && rc == 0; word += b->len[i++])
		rc = add_record(c, b->place[i], word, b->len[i], e);
	return rc;
}

static int load_records(struct corpus *c, struct part *p, struct record_load *l,
    struct progress *bar, struct err *e)
{
	const struct record_load_block *b;
	int rc;

	p->f = record_file_open(p->path, &c->o.kind, comm_size(), e);
	if (comm_agree(p->f != NULL ? 0 : -1, e) < 0 || record_load_begin(l, p->f, p->path, e) < 0)
		return -1;
	do {
		rc = record_load_next(l, room_left(c), &b, e);
		if (rc == 0)
			rc = add_block(c, b, e);
		progress_at(bar, (double)c->n, "%" PRId64 " tokens", c->words);
	} while (rc == 0 && !b->end);
	progress_clear(bar);
	record_load_end(l);
	return rc;
}

/* What one rank, which reads all of the file for it, says to all. */
static json_t *describe(const char *path, int64_t records, struct err *e)
{
	json_t *in = comm_rank() == 0 ? prov_file(path, records, e) : NULL;
	const char *own = json_string_value(json_object_get(in, "sha256"));
	char hex[65] = "";

	if (comm_agree(comm_rank() == 0 && in == NULL ? -1 : 0, e) < 0)
		return NULL;
	if (own != NULL)
		snprintf(hex, sizeof hex, "%s", own);
	comm_bcast(hex, sizeof hex);
	return in != NULL ? in : json_pack("{s:s, s:s, s:I}", "file", path, "sha256", hex,
	    "records", (json_int_t)records);
}

static int load_part(struct corpus *c, struct part *p, struct record_load *l, struct progress *bar,
    struct err *e)
{
	p->first = c->n;
	if (load_records(c, p, l, bar, e) < 0)
		return -1;
	if (c->kept < c->n && !record_file_seeks(p->f))
		return err_set(e, EX_OSERR, "%s: gzip can only be read in one go, and it does not "
		    "fit in --data-ram; unpack it, give"
		    " more, or read it from a pipe with --shuffle-window", p->path);
	record_file_end(p->f, c->kept < c->n);
	return json_array_append_new(c->inputs, describe(p->path, c->n - p->first, e));
}

static void shuffle(struct corpus *c, const struct pool *p)
{
	uint32_t *order = c->order + p->first;

	for (int64_t i = 0; i < p->n; i++)
		order[i] = (uint32_t)i;
	if (c->o.shuffle)
		rng_shuffle(c->o.seed, STREAM_ORDER + (uint64_t)(p - c->pool) +
		    ((uint64_t)p->epoch << 32), order,
		    (uint64_t)p->n);
}

static int open_pools(struct corpus *c, struct err *e)
{
	c->npools = c->part[0].share > 0 ? c->nparts : 1;
	for (int i = 0; i < c->npools; i++) {
		struct pool *p = &c->pool[i];

		p->share = c->part[i].share;
		p->first = c->part[i].first;
		p->n = (i + 1 < c->npools ? c->part[i + 1].first : c->n) - p->first;
		if (p->n == 0)
			return err_set(e, EX_DATAERR, "%s: no %s to train on", c->part[i].path,
			    c->o.unit);
	}
	if ((c->order = malloc((size_t)c->n * sizeof *c->order)) == NULL)
		return err_set(e, EX_OSERR, "no memory for the order of %" PRId64 " %s", c->n,
		    c->o.unit);
	return corpus_seek(c, NULL, e);
}

static void *shrink(void *p, int64_t n, int64_t *cap, size_t size)
{
	void *q = n > 0 ? realloc(p, (size_t)n * size) : NULL;

	*cap = q != NULL ? n : *cap;
	return q != NULL ? q : p;
}

/* What making a record again takes, where that is not little: its words, and its line, twice as
 * JSON, and its text, in arrays that grow (measured with lines of 3 MB). */
static int64_t again_bytes(const struct corpus *c)
{
	int64_t n = 6 * c->longest_line + c->longest * (int64_t)sizeof *c->word;

	return c->kept < c->n && n > LITTLE ? n : 0;
}

/* Touched, so that the plan finds memory as it will be. */
static void take_reserve(struct corpus *c)
{
	size_t n = (size_t)again_bytes(c);

	if (n > 0 && (c->reserve = malloc(n)) != NULL)
		memset(c->reserve, 1, n);
}

static int load(struct corpus *c, struct err *e)
{
	struct record_load *l = record_load_open(&c->o.kind, c->o.skip_bad);
	struct progress bar;
	int rc = 0;

	c->inputs = json_array();
	progress_start(&bar, "reading", c->o.unit, 0);
	for (int i = 0; i < c->nparts && rc == 0; i++)
		rc = comm_agree(load_part(c, &c->part[i], l, &bar, e), e);
	progress_end(&bar);
	c->count = *record_load_count(l);
	record_load_close(l);
	if (rc < 0)
		return -1;
	c->place = shrink(c->place, c->n, &c->cap_place, sizeof *c->place);
	c->size = shrink(c->size, c->n, &c->cap_size, sizeof *c->size);
	c->word = shrink(c->word, c->kept > 0 ? c->at[c->kept] : 0, &c->cap_words, sizeof *c->word);
	c->at = shrink(c->at, c->kept + 1, &c->cap_at, sizeof *c->at);
	take_reserve(c);
	return open_pools(c, e);
}

/* --- opening --- */

static void *zeros(size_t n, size_t size)
{
	void *p = calloc(n, size);

	if (p == NULL)
		err_die(EX_OSERR, "out of memory");
	return p;
}

/* Touched, so that the plan finds the window as it will be. */
static void open_window(struct corpus *c)
{
	c->cap_slots = c->o.window;
	c->slot = c->cap_slots > 0 ? zeros((size_t)c->cap_slots, sizeof *c->slot) : NULL;
	for (int64_t i = 0; i < c->cap_slots; i++) {
		for (int64_t n = 0; n < c->o.longest; n++)
			ids_push(&c->slot[i].ids, 0);
		c->slot[i].ids.n = 0;
	}
}

struct corpus *corpus_open(int nfiles, char *const files[], const struct corpus_opt *o,
    struct err *e)
{
	static char *const from_stdin[] = { "-" };
	struct corpus *c = zeros(1, sizeof *c);
	bool stream;
	int rc;

	c->o = *o;
	c->held = -1;
	sha256_init(&c->digest);
	c->nparts = nfiles > 0 ? nfiles : 1;
	c->part = zeros((size_t)c->nparts, sizeof *c->part);
	c->pool = zeros((size_t)c->nparts, sizeof *c->pool);
	c->names = zeros((size_t)c->nparts, sizeof *c->names);
	rc = set_names(c, nfiles > 0 ? files : from_stdin, &stream, e);
	if (rc == 0 && stream && comm_size() > 1 && !all_stdin(c))
		rc = err_set(e, EX_USAGE, "of several ranks only the first has a pipe: give it as "
		    "the standard input, alone");
	if (rc == 0 && stream)
		open_window(c);
	if (rc == 0 && stream)
		rc = (c->in = jsonl_open(c->nparts, c->names, o->skip_bad, e)) == NULL ? -1 : 0;
	else if (rc == 0)
		rc = load(c, e);
	if (rc < 0) {
		corpus_close(c);
		return NULL;
	}
	return c;
}

void corpus_close(struct corpus *c)
{
	if (c == NULL)
		return;
	if (c->in != NULL)
		jsonl_close(c->in);
	for (int i = 0; i < c->nparts; i++) {
		record_file_close(c->part[i].f);
		free(c->part[i].path);
	}
	for (int64_t i = 0; i < c->cap_slots; i++)
		ids_free(&c->slot[i].ids);
	ids_free(&c->scratch);
	json_decref(c->inputs);
	free(c->part);
	free(c->pool);
	free(c->names);
	free(c->place);
	free(c->size);
	free(c->at);
	free(c->word);
	free(c->order);
	free(c->reserve);
	free(c->slot);
	free(c->used);
	free(c);
}

bool corpus_streams(const struct corpus *c)
{
	return c->in != NULL;
}

int64_t corpus_items(const struct corpus *c)
{
	return c->n;
}

int64_t corpus_words(const struct corpus *c)
{
	return c->words;
}

int64_t corpus_bytes(const struct corpus *c)
{
	int64_t window = c->cap_slots * (int64_t)sizeof *c->slot;

	for (int64_t i = 0; i < c->cap_slots; i++)
		window += c->slot[i].ids.cap * (int64_t)sizeof *c->slot[i].ids.v;
	return c->cap_words * (int64_t)sizeof *c->word + c->cap_at * (int64_t)sizeof *c->at +
	    c->cap_place * (int64_t)sizeof *c->place + c->cap_size * (int64_t)sizeof *c->size +
	    c->n * (int64_t)sizeof *c->order + window +
	    again_bytes(c);
}

const struct record_count *corpus_count(const struct corpus *c)
{
	return &c->count;
}

/* --- the item that is next, of files --- */

static struct part *part_of(const struct corpus *c, int64_t item)
{
	int i = c->nparts - 1;

	while (c->part[i].first > item)
		i--;
	return &c->part[i];
}

static bool same_record(const struct corpus *c, int64_t a, int64_t b)
{
	return a >= 0 && part_of(c, a) == part_of(c, b) && c->place[a] >> PIECE_BITS ==
	    c->place[b] >> PIECE_BITS;
}

/* Makes an item that is not in memory from its record. */
static int make_again(struct corpus *c, int64_t i, const uint32_t **item, struct err *e)
{
	const struct part *p = part_of(c, i);
	int64_t piece = (int64_t)(c->place[i] & ((1u << PIECE_BITS) - 1)), at = piece * c->o.piece;

	free(c->reserve);
	c->reserve = NULL;
	if (!same_record(c, c->held, i)) {
		c->held = -1;
		if (record_file_at(p->f, (int64_t)(c->place[i] >> PIECE_BITS), &c->scratch, e) < 0)
			return -1;
		c->held = i;
	}
	if (at + c->size[i] > c->scratch.n ||
	    (c->o.piece == 0 && c->size[i] != (uint32_t)c->scratch.n))
		return err_set(e, EX_DATAERR, "%s: is not what it was when this run began to read "
		    "it", p->path);
	*item = c->scratch.v + at;
	return 1;
}

/* The pool that is furthest behind its share. */
static int next_pool(const struct corpus *c)
{
	int best = 0;

	for (int i = 1; i < c->npools; i++)
		if ((double)c->pool[i].words / c->pool[i].share < (double)c->pool[best].words /
		    c->pool[best].share)
			best = i;
	return best;
}

static int64_t current(const struct corpus *c)
{
	const struct pool *p = &c->pool[c->turn];

	return p->first + c->order[p->first + p->index];
}

static int get_item(struct corpus *c, const uint32_t **item, struct err *e)
{
	struct pool *p;
	int64_t i;

	if (!c->chosen)
		c->turn = next_pool(c);
	p = &c->pool[c->turn];
	if (p->index == p->n) {
		p->epoch++;
		p->index = 0;
		shuffle(c, p);
	}
	c->chosen = true;
	i = current(c);
	c->len = c->size[i];
	if (item != NULL && i >= c->kept)
		return make_again(c, i, item, e);
	if (item != NULL)
		*item = c->word + c->at[i];
	return 1;
}

/* --- of a pipe --- */

static int add_slot(struct corpus *c, const uint32_t *v, int64_t n, struct err *e)
{
	int64_t cap = c->cap_slots;
	struct slot *s;

	if (grow(&c->slot, c->filled + 1, &c->cap_slots, INT64_MAX, sizeof *c->slot, e) < 0)
		return -1;
	memset(c->slot + cap, 0, (size_t)(c->cap_slots - cap) * sizeof *c->slot);
	s = &c->slot[c->filled++];
	s->ids.n = 0;
	for (int64_t i = 0; i < n; i++)
		ids_push(&s->ids, v[i]);
	s->file = jsonl_name(c->in);
	s->line = jsonl_lineno(c->in);
	return 0;
}

/* Reads until there is an item, or as many as the window has, or no more. */
static int fill(struct corpus *c, struct err *e)
{
	int64_t want = c->o.window > 0 ? c->o.window : 1;
	int rc = 0;

	while (rc == 0 && !c->ended && c->filled < want) {
		int64_t n, piece;

		if ((rc = record_file_item(c->in, &c->o.kind, &c->scratch, &c->count, e)) < 0)
			return -1;
		c->ended = rc == 0;
		n = rc > 0 ? c->scratch.n : 0;
		piece = c->o.piece > 0 && c->o.window > 0 ? c->o.piece : n;
		rc = 0;
		for (int64_t i = 0; i < n && rc == 0; i += piece)
			rc = add_slot(c, c->scratch.v + i, n - i < piece ? n - i : piece, e);
	}
	return rc;
}

static int64_t draw(const struct corpus *c)
{
	if (c->o.window == 0)
		return 0;
	return (int64_t)rng_below(c->o.seed, STREAM_WINDOW, (uint64_t)c->passed,
	    (uint64_t)c->filled);
}

static int get_slot(struct corpus *c, const uint32_t **item, struct err *e)
{
	if (!c->chosen) {
		if (fill(c, e) < 0)
			return -1;
		if (c->filled == 0)
			return 0;
		c->turn = draw(c);
		c->chosen = true;
	}
	if (item != NULL)
		*item = c->slot[c->turn].ids.v;
	c->len = c->slot[c->turn].ids.n;
	return 1;
}

int corpus_get(struct corpus *c, const uint32_t **item, int64_t *n, struct err *e)
{
	int rc = c->in != NULL ? get_slot(c, item, e) : get_item(c, item, e);

	*n = c->len;
	return rc;
}

static void advance(struct corpus *c)
{
	if (c->in != NULL) {
		struct slot s = c->slot[c->turn];

		sha256_update(&c->digest, s.ids.v, (size_t)s.ids.n * sizeof *s.ids.v);
		c->slot[c->turn] = c->slot[--c->filled];
		c->slot[c->filled] = s;		/* its memory stays for the next */
	} else {
		c->pool[c->turn].index++;
		c->pool[c->turn].words += c->len;
	}
	c->passed++;
	c->chosen = c->touched = false;
}

void corpus_advance(struct corpus *c)
{
	corpus_touch(c);
	advance(c);
}

int64_t corpus_passed(const struct corpus *c)
{
	return c->passed;
}

/* --- position --- */

/* Of the items of a pipe gone by, 64 digits. */
static void passed_digest(const struct corpus *c, char hex[65])
{
	struct sha256 s = c->digest;
	uint8_t digest[32];

	sha256_final(&s, digest);
	for (int i = 0; i < 32; i++)
		snprintf(hex + 2 * i, 3, "%02x", digest[i]);
}

static void set_passed(const struct corpus *c, json_t *position)
{
	char hex[65];

	passed_digest(c, hex);
	json_object_set_new(position, "window", json_integer(c->o.window));
	json_object_set_new(position, "sha256", json_string(hex));
}

json_t *corpus_position(const struct corpus *c)
{
	json_t *p = json_pack("{s:I}", "records", (json_int_t)c->passed), *mix = json_array();

	for (int i = 0; c->npools > 1 && i < c->npools; i++)
		json_array_append_new(mix, json_pack("{s:f, s:I, s:I, s:I}", "share",
		    c->pool[i].share, "epoch",
		    (json_int_t)c->pool[i].epoch, "records", (json_int_t)c->pool[i].index, "words",
		    (json_int_t)c->pool[i].words));
	if (c->npools > 1)
		json_object_set(p, "mix", mix);
	if (c->in != NULL)
		set_passed(c, p);
	json_decref(mix);
	return p;
}

/* Reads and drops the items before the place. */
static int seek_stream(struct corpus *c, int64_t passed, int64_t window, const char *sha256,
    struct err *e)
{
	char hex[65];
	int64_t n;
	int rc = 1;

	if (window != c->o.window)
		return err_set(e, EX_USAGE, "--resume: shuffle-window is %" PRId64 ", but was %"
		    PRId64, c->o.window, window);
	if (passed < c->passed)
		return err_set(e, EX_SOFTWARE, "a pipe cannot be rewound");
	while (c->passed < passed && (rc = corpus_get(c, NULL, &n, e)) > 0)
		advance(c);
	if (rc < 0)
		return -1;
	if (rc == 0)
		return err_set(e, EX_DATAERR, "%s: the input is not the one this run began with: "
		    "it ends after %" PRId64 " records", jsonl_name(c->in), c->passed);
	passed_digest(c, hex);
	return strcmp(hex, sha256) == 0 ? 0 : err_set(e, EX_DATAERR, "%s: the input is not the "
	    "one this run began with: its first %" PRId64 " records are others",
	    jsonl_name(c->in), c->passed);
}

static int bad_position(struct err *e)
{
	return err_set(e, EX_DATAERR, "train_state.json: its position is not in this data");
}

static int seek_pool(struct pool *p, const json_t *at, struct err *e)
{
	json_int_t epoch, index, words;
	double share;

	if (json_unpack((json_t *)at, "{s:F, s:I, s:I, s:I}", "share", &share, "epoch", &epoch,
	    "records", &index, "words",
	    &words) < 0 || epoch < 0 || index < 0 || index > p->n || words < 0)
		return bad_position(e);
	if (share != p->share)
		return err_set(e, EX_USAGE, "--resume: a share is %g, but was %g", p->share, share);
	p->epoch = epoch;
	p->index = index;
	p->words = words;
	return 0;
}

static int seek_mix(struct corpus *c, const json_t *mix, struct err *e)
{
	for (int i = 0; i < c->npools; i++)
		if (seek_pool(&c->pool[i], json_array_get(mix, (size_t)i), e) < 0)
			return -1;
	return 0;
}

static void rewind_pools(struct corpus *c)
{
	for (int i = 0; i < c->npools; i++)
		c->pool[i].epoch = c->pool[i].index = c->pool[i].words = 0;
}

int corpus_seek(struct corpus *c, const json_t *position, struct err *e)
{
	const json_t *mix = json_object_get(position, "mix");
	json_int_t passed = 0, window = 0;
	const char *sha256 = "";

	if (position != NULL && (json_unpack((json_t *)position, "{s:I, s?I, s?s}", "records",
	    &passed, "window", &window, "sha256", &sha256) < 0 ||
	    passed < 0))
		return bad_position(e);
	if (c->in != NULL)
		return position != NULL ? seek_stream(c, passed, window, sha256, e) : 0;
	if (json_array_size(mix) != (c->npools > 1 && position != NULL ? (size_t)c->npools : 0))
		return err_set(e, EX_USAGE, "--resume: other files had a share");
	rewind_pools(c);
	if (c->npools > 1 && mix != NULL && seek_mix(c, mix, e) < 0)
		return -1;
	if (c->npools == 1) {
		c->pool[0].epoch = passed / c->n;
		c->pool[0].index = passed % c->n;
	}
	c->passed = passed;
	c->chosen = c->touched = false;
	for (int i = 0; i < c->npools; i++)
		shuffle(c, &c->pool[i]);
	return 0;
}

/* --- which records --- */

void corpus_forget(struct corpus *c)
{
	if (c == NULL)
		return;
	c->noting = true;
	c->nused = 0;
	c->touched = false;
}

int corpus_touch(struct corpus *c)
{
	const struct slot *s = c->in != NULL ? &c->slot[c->turn] : NULL;

	if (c->touched || !c->noting)
		return c->nused - 1;
	if (c->nused == c->cap_used &&
	    (c->used = realloc(c->used, (size_t)(c->cap_used = 2 * c->cap_used + 64) *
	    sizeof *c->used)) == NULL)
		err_die(EX_OSERR, "out of memory");
	c->used[c->nused].file = s != NULL ? s->file : NULL;
	c->used[c->nused].at = s != NULL ? s->line : current(c);
	c->touched = true;
	return c->nused++;
}

int corpus_touched(const struct corpus *c)
{
	return c != NULL ? c->nused : 0;
}

char *corpus_where(struct corpus *c, int i)
{
	const struct used *u = &c->used[i];
	char *s;

	if (u->file == NULL)
		return record_file_where(part_of(c, u->at)->f,
		    (int64_t)(c->place[u->at] >> PIECE_BITS));
	if (asprintf(&s, "%s:%" PRId64, u->file, u->at) < 0)
		err_die(EX_OSERR, "out of memory");
	return s;
}

/* --- provenance --- */

static json_t *shares(const struct corpus *c)
{
	json_t *list = json_array();

	for (int i = 0; i < c->npools; i++) {
		json_t *in = json_copy(json_array_get(c->inputs, (size_t)i));

		json_object_set_new(in, "share", json_real(c->pool[i].share));
		json_array_append_new(list, in);
	}
	return list;
}

json_t *corpus_inputs(const struct corpus *c)
{
	if (c->in == NULL)
		return c->pool[0].share > 0 ? shares(c) : json_incref(c->inputs);
	return json_pack("[{s:s, s:I}]", "file", "<stdin>", "records", (json_int_t)c->passed);
}
