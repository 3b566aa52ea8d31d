#include "text/tokenize.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/jsontext.h"
#include "base/pool.h"
#include "text/lineblock.h"
#include "text/record.h"

enum { BLOCK = 1 << 20 };	/* bytes of records to be worked on together, about */

struct made {			/* of a record: where what its worker made of it is; skip:
				   nothing, the line is blank */
	int worker, n;
	size_t at, bytes;
	bool bad, skip;
};

struct worker {
	_Alignas(64) struct tok *tok;
	struct ids ids, mask;	/* of one record */
	struct ids all;		/* of a block: ids for shards, */
	struct jsontext text;	/* or records, each a line */
	struct err why;		/* of its first bad record in the block */
	bool failed;
};

struct tokenize {
	struct tokenize_opt o;
	int nworkers;
	struct worker *worker;
	struct lineblock lines;
	struct made *made;	/* (lines) */
	int64_t cap_made;
};

struct tokenize *tokenize_open(const struct tokenize_opt *o)
{
	struct tokenize *z = calloc(1, sizeof *z);
	size_t n = (size_t)pool_threads();

	if (z == NULL || (z->worker = aligned_alloc(64, n * sizeof *z->worker)) == NULL)
		err_die(EX_OSERR, "out of memory");
	memset(z->worker, 0, n * sizeof *z->worker);
	z->o = *o;
	z->nworkers = (int)n;
	for (size_t i = 0; i < n; i++)
		z->worker[i].tok = i == 0 ? o->tok : tok_share(o->tok);
	return z;
}

void tokenize_close(struct tokenize *z)
{
	for (int i = 0; i < z->nworkers; i++) {
		struct worker *w = &z->worker[i];

		if (i > 0)
			tok_free(w->tok);
		ids_free(&w->ids);
		ids_free(&w->mask);
		ids_free(&w->all);
		jsontext_free(&w->text);
	}
	lineblock_free(&z->lines);
	free(z->worker);
	free(z->made);
	free(z);
}

/* --- one record --- */

static void encode(const struct tokenize *z, struct worker *w, const char *text, size_t len)
{
	tok_encode(w->tok, text, len, z->o.special, &w->ids);
	while (z->o.mask && w->mask.n < w->ids.n)
		ids_push(&w->mask, 1);		/* of plain text all is to be learned */
}

/* Ids of a record into w->ids, and what is to be learned into w->mask. */
static int to_ids(const struct tokenize *z, struct worker *w, const json_t *rec, struct err *why)
{
	json_t *turns = NULL;
	size_t len;
	char *text;
	int rc;

	w->ids.n = w->mask.n = 0;
	if (z->o.chat && record_turns(rec, &turns, why) < 0)
		return -1;
	if (turns != NULL) {
		const struct tok_chat c = record_chat(rec, turns);

		rc = tok_chat(w->tok, &c, &w->ids, &w->mask, why);
		json_decref(turns);
		return rc;
	}
	if ((text = record_text(rec, &len, why)) == NULL)
		return -1;
	encode(z, w, text, len);
	free(text);
	return 0;
}

static json_t *list_of(const struct ids *a)
{
	json_t *list = json_array();

	for (int i = 0; i < a->n; i++)
		json_array_append_new(list, json_integer(a->v[i]));
	return list;
}

static void add_lists(const struct tokenize *z, const struct worker *w, json_t *rec)
{
	json_object_set_new(rec, "tokens", list_of(&w->ids));
	if (z->o.mask)
		json_object_set_new(rec, "mask", list_of(&w->mask));
}

/* The line with what has been added to it. */
static void add_line(const struct tokenize *z, struct worker *w, const char *line, size_t len)
{
	json_t *set = json_object();

	add_lists(z, w, set);
	jsontext_record(&w->text, line, len, set, false, NULL);
	jsontext_add(&w->text, "\n", 1);
	json_decref(set);
}

/* --- a block of them --- */

static int make(const struct tokenize *z, struct worker *w, const char *line, size_t len,
    const json_t *rec, struct made *m, struct err *why)
{
	int rc = to_ids(z, w, rec, why);

	if (rc == 0 && z->o.shards != NULL) {
		m->at = (size_t)w->all.n;
		m->n = w->ids.n;
		ids_append(&w->all, w->ids.v, (size_t)w->ids.n);
	} else if (rc == 0) {
		m->at = w->text.n;
		add_line(z, w, line, len);
		m->bytes = w->text.n - m->at;
	}
	return rc;
}

/* A worker takes its records in their order: the reason of the first that is bad is kept. */
static void make_record(struct tokenize *z, int64_t i, int worker)
{
	struct worker *w = &z->worker[worker];
	struct err why = {0};
	const char *line = lineblock_text(&z->lines, i);
	size_t len = z->lines.line[i].len;
	json_t *rec = jsonl_parse(line, len, &why);
	struct made m = { .worker = worker, .skip = rec == NULL && why.status == 0,
	    .bad = why.status != 0 };

	if (rec != NULL)
		m.bad = make(z, w, line, len, rec, &m, &why) < 0;
	if (m.bad && !w->failed) {
		w->failed = true;
		w->why = why;
	}
	json_decref(rec);
	z->made[i] = m;
}

static void make_records(void *ctx, int64_t i0, int64_t i1, int worker)
{
	for (int64_t i = i0; i < i1; i++)
		make_record(ctx, i, worker);
}

static void make_block(struct tokenize *z)
{
	int64_t n = z->lines.count;

	if (n > z->cap_made) {
		z->cap_made = 2 * n;
		free(z->made);
		if ((z->made = malloc((size_t)z->cap_made * sizeof *z->made)) == NULL)
			err_die(EX_OSERR, "out of memory");
	}
	for (int i = 0; i < z->nworkers; i++) {
		z->worker[i].all.n = 0;
		z->worker[i].text.n = 0;
		z->worker[i].failed = false;
	}
	pool_for(n, 1, make_records, z);
}

static int put(const struct tokenize *z, const struct made *m, struct err *e)
{
	const struct worker *w = &z->worker[m->worker];

	if (m->skip)
		return 0;
	if (z->o.shards != NULL)
		return shards_add(z->o.shards, w->all.v + m->at, m->n, e);
	return fwrite(w->text.s + m->at, 1, m->bytes, stdout) == m->bytes ? 0 : err_set(e, EX_IOERR,
	    "standard output:");
}

static int flush(int rc, struct err *e)
{
	return fflush(stdout) == EOF && rc == 0 ? err_set(e, EX_IOERR, "standard output:") : rc;
}

/* (Of bad records that are passed over only the first is named, so only its reason need be the
 * right one.) */
static int put_block(const struct tokenize *z, struct jsonl *in, struct err *e)
{
	int rc = 0;

	for (int64_t i = 0; i < z->lines.count && rc == 0; i++) {
		const struct made *m = &z->made[i];

		rc = m->bad ? jsonl_bad_at(in, z->lines.line[i].place, e,
		    z->worker[m->worker].why.msg) : put(z, m, e);
	}
	return flush(rc, e);
}

/* Lines that can be had without waiting for more than the first; what ended them. */
static void read_block(struct tokenize *z, struct jsonl *in, struct err *why)
{
	const char *s;
	size_t len;

	lineblock_clear(&z->lines);
	do {
		if ((s = jsonl_line(in, &len, why)) == NULL)
			return;
		lineblock_add(&z->lines, s, len, jsonl_lineno(in));
	} while (z->lines.n < BLOCK && jsonl_ready(in));
}

int tokenize_records(struct tokenize *z, struct jsonl *in, struct err *e)
{
	struct err why = {0};

	do {
		read_block(z, in, &why);
		make_block(z);
		if (put_block(z, in, e) < 0)
			return -1;
	} while (z->lines.count > 0 && why.status == 0);
	if (why.status != 0)
		*e = why;
	return why.status != 0 ? -1 : 0;
}

int tokenize_text(struct tokenize *z, const char *name, const char *text, size_t len, struct err *e)
{
	struct worker *w = &z->worker[0];
	json_t *rec;
	int rc;

	w->ids.n = w->mask.n = 0;
	encode(z, w, text, len);
	if (z->o.shards != NULL)
		return shards_add(z->o.shards, w->ids.v, w->ids.n, e);
	if ((rec = json_pack("{s:s, s:I}", "file", name, "bytes", (json_int_t)len)) == NULL)
		return err_set(e, EX_DATAERR, "%s: the name is not valid UTF-8", name);
	add_lists(z, w, rec);
	rc = json_put(stdout, rec, e);
	json_decref(rec);
	return rc;
}
