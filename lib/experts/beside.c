#include "experts/beside.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "format/modeldir.h"

#define CHUNK 4096		/* values converted at a time */
#define FINGERPRINT "chronos.fingerprint"

int beside_open(struct beside *b, const char *dir, const char *name, struct err *e)
{
	struct st_error se;
	int rc = 1;

	*b = (struct beside){ .dir = dir, .path = file_join(dir, name) };
	if (access(b->path, F_OK) != 0)
		rc = 0;
	else if ((b->f = st_open(b->path, ST_READ, &se)) == NULL)
		rc = modeldir_st_err(e, b->path, &se);
	if (rc != 1)
		beside_close(b);
	return rc;
}

void beside_close(struct beside *b)
{
	st_close(b->f);
	free(b->path);
	*b = (struct beside){ 0 };
}

static bool fits(const struct st_tensor *t, const struct param *p)
{
	return t && t->dtype == ST_F32 && t->ndim == p->ndim && t->shape[0] == (uint64_t)p->rows &&
	    (t->ndim == 1 || t->shape[1] == (uint64_t)p->cols);
}

int beside_check(const struct beside *b, const struct params *ps, struct err *e)
{
	for (int i = 0; i < ps->n; i++)
		if (!fits(st_find(b->f, ps->p[i].name), &ps->p[i]))
			return err_set(e, EX_DATAERR, "%s: no tensor %s of type F32 and the shape "
			    "that the model asks for", b->path, ps->p[i].name);
	if (st_count(b->f) != (size_t)ps->n)
		return err_set(e, EX_DATAERR, "%s: has %zu tensors, not %d", b->path,
		    (size_t)st_count(b->f), ps->n);
	return 0;
}

static int read_one(const struct beside *b, const struct param *p, real *w, struct err *e)
{
	const struct st_tensor *t = st_find(b->f, p->name);
	struct st_error se;
	float buf[CHUNK];

	for (int64_t k = 0, n; k < param_size(p); k += n) {
		n = param_size(p) - k < CHUNK ? param_size(p) - k : CHUNK;
		if (st_read(b->f, t, (uint64_t)k * sizeof *buf, buf, (size_t)n * sizeof *buf,
		    &se) < 0)
			return modeldir_st_err(e, b->path, &se);
		for (int64_t j = 0; j < n; j++) {
			if (!isfinite(buf[j]))
				return err_set(e, EX_DATAERR, "%s: %s is not finite at %lld",
				    b->path, p->name, (long long)(k + j));
			w[k + j] = (real)buf[j];
		}
	}
	return 0;
}

int beside_read(const struct beside *b, const struct params *ps, real *w, struct err *e)
{
	for (int i = 0; i < ps->n; i++)
		if (read_one(b, &ps->p[i], w + ps->p[i].off, e) < 0)
			return -1;
	return 0;
}

int beside_model(const struct beside *b, const char *maker, char *fingerprint, struct err *e)
{
	const char *of = st_meta(b->f, FINGERPRINT), *is;
	struct modeldir md;
	int rc = 0;

	if (modeldir_open(&md, b->dir, 0, NULL, e) < 0)
		return -1;
	if (!(is = modeldir_fingerprint(&md, e)))
		rc = -1;
	else if (!of || strcmp(of, is) != 0)
		rc = err_set(e, EX_DATAERR, "%s: of another model: remove it, or train it again "
		    "with %s", b->path, maker);
	else
		memcpy(fingerprint, is, 33);
	modeldir_close(&md);
	return rc;
}

/* The writer's errors are sticky: whatever failed here, st_writer_finish() says so. */
static void put_meta(struct st_writer *w, const json_t *meta, const char *fingerprint,
    struct st_error *se)
{
	const char *key;
	json_t *v;

	json_object_foreach((json_t *)meta, key, v)
		if (json_is_string(v) && strcmp(key, FINGERPRINT) != 0)
			st_writer_meta(w, key, json_string_value(v), se);
	st_writer_meta(w, FINGERPRINT, fingerprint, se);
}

static void put_one(struct st_writer *w, const struct param *p, const real *v, struct st_error *se)
{
	float buf[CHUNK];

	for (int64_t k = 0, n; k < param_size(p); k += n) {
		n = param_size(p) - k < CHUNK ? param_size(p) - k : CHUNK;
		for (int64_t j = 0; j < n; j++)
			buf[j] = (float)v[k + j];
		st_writer_data(w, buf, (size_t)n * sizeof *buf, se);
	}
}

int beside_save(const char *dir, const char *name, const struct params *ps, const real *v,
    const json_t *meta, const char *fingerprint,
    struct err *e)
{
	char *path = file_join(dir, name);
	struct st_error se;
	struct st_writer *w = st_writer_create(path, &se);
	int rc = 0;

	if (!w) {
		rc = err_set(e, EX_CANTCREAT, "%s: %s", path, se.msg);
		free(path);
		return rc;
	}
	put_meta(w, meta, fingerprint, &se);
	for (int i = 0; i < ps->n; i++) {
		uint64_t dim[2] = { (uint64_t)ps->p[i].rows, (uint64_t)ps->p[i].cols };

		st_writer_add(w, ps->p[i].name, ST_F32, ps->p[i].ndim, dim, 0, &se);
	}
	st_writer_begin(w, &se);
	for (int i = 0; i < ps->n; i++)
		put_one(w, &ps->p[i], v + ps->p[i].off, &se);
	if (st_writer_finish(w, &se) < 0)
		rc = modeldir_st_err(e, path, &se);
	free(path);
	return rc;
}
