#include "text/shards.h"

#include <stdlib.h>
#include <string.h>

#include "text/bytemap.h"
#include "base/json.h"
#include "format/safetensors.h"

struct shards {
	char *path;
	const struct tok *t;
	FILE *log;
	int64_t limit;
	int n;			/* shards written */
	unsigned width;		/* bytes of an id */
	char *tokens;		/* (n_tokens, width) of this shard */
	int64_t n_tokens, cap_tokens;
	int64_t *off;		/* (docs + 1) */
	int64_t docs, cap_docs;
};

struct shards *shards_open(const char *path, const struct tok *t, int64_t limit, FILE *log,
    struct err *e)
{
	struct shards *s = calloc(1, sizeof *s);

	if (!s || !(s->path = strdup(path)) || !(s->off = calloc(1, sizeof *s->off))) {
		free(s ? s->path : NULL);
		free(s);
		err_set(e, EX_OSERR, "out of memory");
		return NULL;
	}
	s->t = t;
	s->log = log;
	s->limit = limit;
	s->width = tok_vocab(t) <= 65536 ? 2 : 4;
	return s;
}

/* corpus.safetensors, corpus-00002.safetensors, ... */
static char *shard_name(const struct shards *s)
{
	size_t stem = strlen(s->path), ext = strlen(".safetensors");
	char *name = bytemap_grow(NULL, stem + 16, 1);

	if (!s->n)
		return strcpy(name, s->path);
	if (stem > ext && !strcmp(s->path + stem - ext, ".safetensors"))
		stem -= ext;
	sprintf(name, "%.*s-%05d%s", (int)stem, s->path, s->n + 1, s->path + stem);
	return name;
}

static int fail(const char *name, const struct st_error *se, struct err *e)
{
	return err_set(e, se->code == ST_EOPEN ? EX_CANTCREAT : EX_IOERR, "%s: %s", name, se->msg);
}

static int write_file(const struct shards *s, const char *name, struct err *e)
{
	uint64_t docs = (uint64_t)s->docs + 1, n = (uint64_t)s->n_tokens;
	struct st_error se;
	struct st_writer *w = st_writer_create(name, &se);
	char vocab[16];

	if (!w)
		return fail(name, &se, e);
	snprintf(vocab, sizeof vocab, "%d", tok_vocab(s->t));
	st_writer_meta(w, "chronos.version", CHR_VERSION, &se);
	st_writer_meta(w, "chronos.vocab_size", vocab, &se);
	st_writer_meta(w, "chronos.tokenizer", tok_sha256(s->t), &se);
	st_writer_add(w, "offsets", ST_I64, 1, &docs, 0, &se);
	st_writer_add(w, "tokens", s->width == 2 ? ST_U16 : ST_U32, 1, &n, 0, &se);
	st_writer_begin(w, &se);
	st_writer_data(w, s->off, docs * sizeof *s->off, &se);
	st_writer_data(w, s->tokens, n * s->width, &se);
	return st_writer_finish(w, &se) < 0 ? fail(name, &se, e) : 0;
}

static int flush(struct shards *s, struct err *e)
{
	char *name = shard_name(s);
	json_t *o;
	int rc = write_file(s, name, e);

	if (!rc && s->log) {
		o = json_pack("{s:s, s:s, s:I, s:I}", "type", "shard", "file", name, "documents",
		    (json_int_t)s->docs,
			"tokens", (json_int_t)s->n_tokens);
		rc = json_put(s->log, o, e);
		json_decref(o);
	}
	free(name);
	s->n++;
	s->n_tokens = s->docs = 0;
	return rc;
}

static void reserve(struct shards *s, int n)
{
	if (s->n_tokens + n > s->cap_tokens) {
		s->cap_tokens = 2 * (s->n_tokens + n) + 4096;
		s->tokens = bytemap_grow(s->tokens, (size_t)s->cap_tokens, s->width);
	}
	if (s->docs + 2 > s->cap_docs) {
		s->cap_docs = 2 * s->docs + 1024;
		s->off = bytemap_grow(s->off, (size_t)s->cap_docs, sizeof *s->off);
	}
}

int shards_add(struct shards *s, const uint32_t *ids, int n, struct err *e)
{
	if (s->docs && (s->n_tokens + n) * s->width > s->limit && flush(s, e))
		return -1;
	reserve(s, n);
	for (int i = 0; i < n; i++) {
		uint16_t narrow = (uint16_t)ids[i];

		memcpy(s->tokens + (size_t)s->n_tokens++ * s->width, s->width == 2 ? (void *)&narrow
		    : (void *)&ids[i],
			s->width);
	}
	s->off[++s->docs] = s->n_tokens;
	return 0;
}

int shards_close(struct shards *s, struct err *e)
{
	int rc = flush(s, e);

	shards_abort(s);
	return rc;
}

void shards_abort(struct shards *s)
{
	if (!s)
		return;
	free(s->path);
	free(s->tokens);
	free(s->off);
	free(s);
}
