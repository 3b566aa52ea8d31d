#include "stages/refcache.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "format/modeldir.h"
#include "format/safetensors.h"

struct entry {
	uint64_t key;
	double logp[2];
};

struct refcache {
	struct entry *v;
	int64_t n, cap;
};

struct refcache *refcache_new(void)
{
	struct refcache *c = calloc(1, sizeof *c);

	if (c == NULL)
		err_die(EX_OSERR, "out of memory");
	return c;
}

void refcache_free(struct refcache *c)
{
	if (c != NULL)
		free(c->v);
	free(c);
}

void refcache_put(struct refcache *c, uint64_t key, const double logp[2])
{
	if (c->n == c->cap) {
		c->cap = 2 * c->cap + 64;
		if ((c->v = realloc(c->v, (size_t)c->cap * sizeof *c->v)) == NULL)
			err_die(EX_OSERR, "out of memory");
	}
	c->v[c->n++] = (struct entry){ key, { logp[0], logp[1] } };
}

static int by_key(const void *a, const void *b)
{
	uint64_t x = ((const struct entry *)a)->key, y = ((const struct entry *)b)->key;

	return x < y ? -1 : x > y;
}

/* The same pair may have been put several times, each time with the same values. */
void refcache_sort(struct refcache *c)
{
	int64_t n = 0;

	if (c->n > 0)
		qsort(c->v, (size_t)c->n, sizeof *c->v, by_key);
	for (int64_t i = 0; i < c->n; i++)
		if (n == 0 || c->v[i].key != c->v[n - 1].key)
			c->v[n++] = c->v[i];
	c->n = n;
}

bool refcache_get(const struct refcache *c, uint64_t key, double logp[2])
{
	const struct entry want = { .key = key };
	const struct entry *x = c->n > 0 ? bsearch(&want, c->v, (size_t)c->n, sizeof *c->v, by_key)
	    : NULL;

	if (x != NULL)
		memcpy(logp, x->logp, sizeof x->logp);
	return x != NULL;
}

int64_t refcache_entries(const struct refcache *c)
{
	return c->n;
}

/* CRC-32 of the file's data, which is keys, then log-probs. */
static void crc_text(const struct refcache *c, char out[9])
{
	uLong crc = crc32_z(0, NULL, 0);

	for (int64_t i = 0; i < c->n; i++)
		crc = crc32_z(crc, (const Bytef *)&c->v[i].key, sizeof c->v[i].key);
	for (int64_t i = 0; i < c->n; i++)
		crc = crc32_z(crc, (const Bytef *)c->v[i].logp, sizeof c->v[i].logp);
	snprintf(out, 9, "%08lx", crc & 0xffffffff);
}

int refcache_save(const struct refcache *c, const char *path, const char *fingerprint,
    struct err *e)
{
	const uint64_t shape[2] = { (uint64_t)c->n, 2 };
	struct st_error se = {0};
	struct st_writer *w = st_writer_create(path, &se);
	char crc[9];

	crc_text(c, crc);
	if (w != NULL) {
		st_writer_meta(w, "format", "pt", &se);
		st_writer_meta(w, "chronos.reference", fingerprint, &se);
		st_writer_meta(w, "chronos.crc32", crc, &se);
		st_writer_add(w, "keys", ST_U64, 1, shape, 0, &se);
		st_writer_add(w, "logp", ST_F64, 2, shape, 0, &se);
		st_writer_begin(w, &se);
		for (int64_t i = 0; i < c->n; i++)
			st_writer_data(w, &c->v[i].key, sizeof c->v[i].key, &se);
		for (int64_t i = 0; i < c->n; i++)
			st_writer_data(w, c->v[i].logp, sizeof c->v[i].logp, &se);
	}
	return st_writer_finish(w, &se) < 0 ? modeldir_st_err(e, path, &se) : 0;
}

/* Mapped data may be unaligned, hence memcpy. */
static int take(struct refcache *c, const struct st_file *f, const char *path, struct err *e)
{
	const struct st_tensor *k = st_find(f, "keys"), *l = st_find(f, "logp");
	const char *noted = st_meta(f, "chronos.crc32");
	char crc[9];

	if (k == NULL || l == NULL || k->dtype != ST_U64 || k->ndim != 1 || l->dtype != ST_F64 ||
	    l->ndim != 2 ||
	    l->shape[0] != k->shape[0] || l->shape[1] != 2)
		return err_set(e, EX_DATAERR, "%s: not a file of reference log-probs", path);
	for (uint64_t i = 0; i < k->shape[0]; i++) {
		uint64_t key;
		double logp[2];

		memcpy(&key, (const char *)k->data + i * sizeof key, sizeof key);
		memcpy(logp, (const char *)l->data + i * sizeof logp, sizeof logp);
		if (!isfinite(logp[0]) || !isfinite(logp[1]))
			return err_set(e, EX_DATAERR, "%s: log-prob %" PRIu64 " is not finite",
			    path, i);
		refcache_put(c, key, logp);
	}
	crc_text(c, crc);
	if (noted != NULL && strcmp(noted, crc) != 0)	/* files of before it was noted have none */
		return err_set(e, EX_DATAERR, "%s: is corrupt (CRC-32 %s, not %s); without that "
		    "file the log-probs are computed anew", path, crc, noted);
	refcache_sort(c);
	return 0;
}

struct refcache *refcache_load(const char *path, const char *fingerprint, struct err *e)
{
	struct st_error se = {0};
	struct st_file *f = st_open(path, ST_MMAP, &se);
	struct refcache *c = refcache_new();
	const char *of;
	int rc;

	if (f == NULL) {
		rc = modeldir_st_err(e, path, &se);
	} else {
		of = st_meta(f, "chronos.reference");
		rc = take(c, f, path, e);
		if (rc == 0 && (of == NULL || strcmp(of, fingerprint) != 0))
			rc = err_set(e, EX_DATAERR,
			    "%s: log-probs of another model than -m; without that file they are "
			    "computed anew",
			    path);
	}
	st_close(f);
	if (rc == 0)
		return c;
	refcache_free(c);
	return NULL;
}
