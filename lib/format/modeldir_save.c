/*
 * Writing of a model directory. Tensors are those that the family publishes: a parameter each, or
 * several in one, as the first entry of its names says (arch/param.h).
 */
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#include "arch/arch.h"
#include "base/file.h"
#include "base/jsonfile.h"
#include "format/fingerprint.h"
#include "format/modeldir.h"
#include "format/stored.h"

#define CHUNK ((size_t)64 << 10)	/* elements converted at a time */

struct tensor {			/* to be written */
	char name[104];
	struct view copy;		/* copy.t: of another file, as it is there; else */
	int param;			/* the first that it holds */
	const struct param_name *as;	/* NULL: that alone */
	int ndim, shard;
	uint64_t shape[3];
};

struct save {
	const char *dir;
	const struct config *c;
	const struct params *ps;
	const float *flat;
	const struct modeldir_out *o;
	const char *fingerprint;
	char *buf;			/* CHUNK elements of the stored type */
	float *slab;			/* what one expert has in the largest tensor of several */
	float *rows;			/* what o->rows gives at a time */
	struct err *e;
	struct tensor *t;
	int n, nshards;
};

static int64_t elements(const struct tensor *t)
{
	int64_t n = 1;

	for (int i = 0; i < t->ndim; i++)
		n *= (int64_t)t->shape[i];
	return n;
}

static enum dtype type_of(const struct save *s, int i)
{
	return s->o->types ? s->o->types[i] : s->o->dtype;
}

static enum st_dtype st_of(enum dtype t)
{
	return (enum st_dtype)st_dtype_parse(dtype_name(t));
}

static int64_t tensor_bytes(const struct save *s, const struct tensor *t)
{
	if (t->copy.t)
		return (int64_t)t->copy.t->nbytes;
	return elements(t) * (int64_t)dtype_size(type_of(s, t->param));
}

/* ---- which tensors ---- */

/* How a family writes a kind; NULL: each in a tensor of its own. */
static const struct param_name *written_as(const struct config *c, enum param_kind k)
{
	for (const struct param_name *n = c->names; n && n->name; n++)
		if (n->kind == k)
			return n->how ? n : NULL;
	return NULL;
}

/* Several parameters are written with the first of them. */
static bool leads(const struct param *p, const struct param_name *as)
{
	return !as || (!(as->how & (AT_SECOND | AT_ODD)) && !(as->how & AT_STACKED &&
	    p->expert > 0));
}

static void add(struct save *s, int i)
{
	const struct param *p = &s->ps->p[i];
	const struct param_name *as = written_as(s->c, p->kind);
	struct tensor *t = &s->t[s->n];

	if (!leads(p, as))
		return;
	*t = (struct tensor){ .param = i, .as = as };
	if (as)
		snprintf(t->name, sizeof t->name, as->name, p->layer, p->expert);
	else
		snprintf(t->name, sizeof t->name, "%s", p->name);
	t->ndim = stored_shape(p, as ? as->how : 0, s->c->num_experts, t->shape);
	s->n++;
}

static int plan_tensors(struct save *s)
{
	int64_t most = 1, width = (int64_t)CHUNK;

	s->t = malloc((size_t)s->ps->n * sizeof *s->t);
	if (!s->t)
		return err_set(s->e, EX_OSERR, "out of memory");
	for (int i = 0; i < s->ps->n; i++)
		add(s, i);
	for (int k = 0; k < s->n; k++) {
		const struct tensor *t = &s->t[k];
		bool stacked = t->as && t->as->how & AT_STACKED;
		int64_t n = stacked ? elements(t) / (int64_t)t->shape[0] : elements(t);

		most = t->as && n > most ? n : most;
		width = s->ps->p[t->param].cols > width ? s->ps->p[t->param].cols : width;
	}
	s->slab = malloc((size_t)most * sizeof *s->slab);
	if (s->o->rows)
		s->rows = malloc((size_t)(most > width ? most : width) * sizeof *s->rows);
	return s->slab && (s->rows || !s->o->rows) ? 0 : err_set(s->e, EX_OSERR, "out of memory");
}

static void plan_shards(struct save *s)
{
	int64_t size = 0, bytes;

	s->nshards = 1;
	for (int k = 0; k < s->n; k++) {
		bytes = tensor_bytes(s, &s->t[k]);
		if (s->o->shard_size > 0 && size > 0 && size + bytes > s->o->shard_size) {
			s->nshards++;
			size = 0;
		}
		size += bytes;
		s->t[k].shard = s->nshards - 1;
	}
}

/* ---- values ---- */

static const float *values(const struct save *s, int i)
{
	return s->o->get ? s->o->get(s->o->ctx, i) : s->flat + s->ps->p[i].off;
}

/* Is there a number among n values that is none as stored, in s->buf? */
static bool overflows(const struct save *s, const float *x, enum dtype t, size_t n)
{
	size_t size = dtype_size(t);

	if (tensor_finite(s->buf, t, n))
		return false;
	for (size_t i = 0; i < n; i++)
		if (isfinite(x[i]) && !tensor_finite(s->buf + i * size, t, 1))
			return true;
	return false;
}

/* What takes the values of parameters as they are stored, piece after piece. */
struct sink {
	struct st_writer *w;		/* NULL: only the CRC is wanted */
	uint32_t crc;
};

/* n values of parameter i. What is too large for its type is found here: before anything is
 * written, where the fingerprint is computed first. */
static int take(const struct save *s, struct sink *k, int i, const float *x, int64_t n)
{
	enum dtype t = type_of(s, i);
	struct st_error se;

	for (int64_t at = 0; at < n; at += (int64_t)CHUNK) {
		size_t m = n - at < (int64_t)CHUNK ? (size_t)(n - at) : CHUNK;

		tensor_from_f32(s->buf, t, x + at, m);
		if (overflows(s, x + at, t, m))
			return err_set(s->e, EX_DATAERR, "%s has a value that is too large for %s: "
			    "the model is not written", s->ps->p[i].name, dtype_name(t));
		if (k->w)
			st_writer_data(k->w, s->buf, m * dtype_size(t), &se);
		else
			k->crc = (uint32_t)crc32(k->crc, (Bytef *)s->buf,
			    (uInt)(m * dtype_size(t)));
	}
	return k->w && s->o->tick ? s->o->tick(s->o->ctx, n * (int64_t)dtype_size(t), s->e) : 0;
}

/* All of parameter i, as much at a time as its source gives. */
static int take_all(const struct save *s, struct sink *k, int i)
{
	const struct param *p = &s->ps->p[i];
	int step = p->cols < (int)CHUNK ? (int)CHUNK / p->cols : 1;

	if (!s->o->rows)
		return take(s, k, i, values(s, i), param_size(p));
	for (int row = 0; row < p->rows; row += step) {
		int n = p->rows - row < step ? p->rows - row : step;

		if (s->o->rows(s->o->ctx, i, row, n, s->rows, s->e) < 0 ||
		    take(s, k, i, s->rows, (int64_t)n * p->cols) < 0)
			return -1;
	}
	return 0;
}

static int save_fingerprint(const struct save *s, char out[33])
{
	struct fingerprint_line *l = malloc((size_t)s->ps->n * sizeof *l);
	int rc = l ? 0 : err_set(s->e, EX_OSERR, "out of memory");

	for (int i = 0; i < s->ps->n && rc == 0; i++) {
		struct sink k = { .crc = (uint32_t)crc32(0, NULL, 0) };

		rc = take_all(s, &k, i);
		l[i] = (struct fingerprint_line){ .p = &s->ps->p[i],
		    .dtype = dtype_name(type_of(s, i)), .crc = k.crc };
	}
	if (rc == 0)
		fingerprint_of(l, s->ps->n, out);
	free(l);
	return rc;
}

/* ---- files ---- */

static void shard_name(const struct save *s, int k, char out[64])
{
	if (s->nshards == 1)
		snprintf(out, 64, "model.safetensors");
	else
		snprintf(out, 64, "model-%05d-of-%05d.safetensors", k + 1, s->nshards);
}

/* The writer's errors are sticky: whatever failed here, st_writer_finish() says so. */
static void declare(const struct save *s, int shard, struct st_writer *w, struct st_error *se)
{
	const char *key;
	json_t *v;

	if (!json_object_get(s->o->meta, "format"))
		st_writer_meta(w, "format", "pt", se);		/* transformers looks for it */
	json_object_foreach((json_t *)s->o->meta, key, v)
		if (json_is_string(v) && strcmp(key, "chronos.fingerprint") != 0)
			st_writer_meta(w, key, json_string_value(v), se);
	if (s->fingerprint)
		st_writer_meta(w, "chronos.fingerprint", s->fingerprint, se);
	for (int k = 0; k < s->n; k++) {
		const struct tensor *t = &s->t[k];

		if (t->shard == shard && t->copy.t)
			st_writer_add(w, t->copy.t->name, t->copy.t->dtype, t->copy.t->ndim,
			    t->copy.t->shape, 0, se);
		else if (t->shard == shard)
			st_writer_add(w, t->name, st_of(type_of(s, t->param)), t->ndim, t->shape,
			    0, se);
	}
	st_writer_begin(w, se);
}

/* The part of parameter i in what expert `expert` has of tensor t; n elements in all. */
static int put_part(const struct save *s, const struct tensor *t, const struct param_name *as,
    int i, int64_t n)
{
	const struct param *p = &s->ps->p[i];
	const float *x = s->rows;
	struct layout at;

	if (!s->o->rows)
		x = values(s, i);
	else if (s->o->rows(s->o->ctx, i, 0, p->rows, s->rows, s->e) < 0)
		return -1;
	stored_layout(p, as->how, s->c->num_experts, t->ndim, t->shape, &at);
	if (as->how & AT_STACKED)
		at.first -= p->expert * n;
	for (int64_t r = 0; r < p->rows; r++)
		for (int64_t c = 0; c < p->cols; c++)
			s->slab[at.first + r * at.row_step + c * at.col_step] = x[r * p->cols + c];
	return 0;
}

/* A tensor of several parameters, expert after expert. */
static int put_several(const struct save *s, const struct tensor *t, struct sink *k)
{
	const struct param *lead = &s->ps->p[t->param];
	int times = t->as->how & AT_STACKED ? (int)t->shape[0] : 1;
	int64_t n = elements(t) / times;

	for (int i = 0; i < times; i++) {
		int expert = lead->expert < 0 ? -1 : lead->expert + i;

		for (const struct param_name *as = s->c->names; as->name; as++) {
			const struct param *p = params_get(s->ps, as->kind, lead->layer, expert);

			if (p && strcmp(as->name, t->as->name) == 0 &&
			    as == written_as(s->c, as->kind) &&
			    put_part(s, t, as, (int)(p - s->ps->p), n) < 0)
				return -1;
		}
		if (take(s, k, t->param, s->slab, n) < 0)
			return -1;
	}
	return 0;
}

static int put_copy(const struct save *s, const struct view *v, struct st_writer *w)
{
	const uint64_t room = CHUNK * sizeof(double);
	struct st_error se;

	for (uint64_t at = 0; at < v->t->nbytes; at += room) {
		size_t n = (size_t)(v->t->nbytes - at < room ? v->t->nbytes - at : room);

		if (st_read(v->st, v->t, at, s->buf, n, &se) < 0)
			return modeldir_st_err(s->e, v->file, &se);
		st_writer_data(w, s->buf, n, &se);
		if (s->o->tick && s->o->tick(s->o->ctx, (int64_t)n, s->e) < 0)
			return -1;
	}
	return 0;
}

static int put_tensors(const struct save *s, int shard, struct st_writer *w)
{
	struct sink k = { .w = w };
	int r = 0;

	for (int i = 0; i < s->n && r == 0; i++) {
		const struct tensor *t = &s->t[i];

		if (t->shard == shard)
			r = t->copy.t ? put_copy(s, &t->copy, w) : t->as ? put_several(s, t, &k) :
			    take_all(s, &k, t->param);
	}
	return r;
}

/* One that is there already. */
static int skip_shard(const struct save *s, int shard)
{
	int64_t bytes = 0;

	for (int i = 0; i < s->n; i++)
		bytes += s->t[i].shard == shard ? tensor_bytes(s, &s->t[i]) : 0;
	return s->o->tick ? s->o->tick(s->o->ctx, bytes, s->e) : 0;
}

static int save_shard(const struct save *s, int shard)
{
	struct st_error se;
	struct st_writer *w;
	char name[64], *path;
	int r;

	shard_name(s, shard, name);
	path = file_join(s->dir, name);
	if (s->o->keep && access(path, F_OK) == 0) {
		free(path);
		return skip_shard(s, shard);
	}
	if (!(w = st_writer_create(path, &se))) {
		r = err_set(s->e, EX_CANTCREAT, "%s: %s", path, se.msg);
	} else {
		declare(s, shard, w, &se);
		if ((r = put_tensors(s, shard, w)) < 0)
			st_writer_abort(w);
		else if (st_writer_finish(w, &se) < 0)
			r = modeldir_st_err(s->e, path, &se);
	}
	free(path);
	return r;
}

#define JSON_FORM (JSON_INDENT(2) | JSON_REAL_PRECISION(15))

static int save_index(const struct save *s)
{
	json_t *map = json_object();
	int64_t total = 0;
	char name[64];

	for (int k = 0; k < s->n; k++) {
		shard_name(s, s->t[k].shard, name);
		json_object_set_new(map, s->t[k].name, json_string(name));
		total += tensor_bytes(s, &s->t[k]);
	}
	return jsonfile_put(s->dir, MODELDIR_INDEX, json_pack("{s:{s:I}, s:o}", "metadata",
	    "total_size", (json_int_t)total, "weight_map", map), JSON_FORM, s->e);
}

/* Files of the model that was here before, under names this one does not use. The new ones are
 * complete by now. */
static void remove_stale(const struct save *s)
{
	DIR *d = opendir(s->dir);
	struct dirent *f;
	unsigned a, b;
	int end;

	while (d && (f = readdir(d))) {
		bool single = strcmp(f->d_name, "model.safetensors") == 0, index = strcmp(f->d_name,
		    MODELDIR_INDEX) == 0;
		char *path;

		end = 0;
		a = b = 0;
		if (sscanf(f->d_name, "model-%5u-of-%5u.safetensors%n", &a, &b, &end) != 2 ||
		    !end || f->d_name[end])
			b = 0;
		if (!(s->nshards > 1 ? single || (b && b != (unsigned)s->nshards) : index || b))
			continue;
		path = file_join(s->dir, f->d_name);
		unlink(path);
		free(path);
	}
	if (d)
		closedir(d);
}

static int save_shards(struct save *s)
{
	for (int k = 0; k < s->nshards; k++)
		if (save_shard(s, k) < 0)
			return -1;
	return s->nshards > 1 ? save_index(s) : 0;
}

static int save_files(struct save *s, char *fingerprint)
{
	/* by enum dtype */
	static const char *const torch[] = { "float64", "float32", "bfloat16", "float16" };
	json_t *o;

	if (plan_tensors(s) < 0)
		return -1;
	plan_shards(s);
	if (!s->o->unprinted) {
		if (save_fingerprint(s, fingerprint) < 0)
			return -1;
		s->fingerprint = fingerprint;
	}
	if (save_shards(s) < 0)
		return -1;
	remove_stale(s);
	o = s->o->config ? json_deep_copy(s->o->config) : config_to_json(s->c);
	json_object_set_new(o, "torch_dtype", json_string(torch[s->o->dtype]));
	return jsonfile_put(s->dir, "config.json", o, JSON_FORM, s->e);
}

static void save_end(struct save *s)
{
	free(s->buf);
	free(s->slab);
	free(s->rows);
	free(s->t);
}

static int save_all(struct save *s, char *fingerprint)
{
	char *manifest = file_join(s->dir, "cluster_manifest.json"), own[33];
	int r = -1;

	s->buf = malloc(CHUNK * sizeof(double));
	if (access(manifest, F_OK) == 0)
		err_set(s->e, EX_CANTCREAT, "%s: holds a packed model", s->dir);
	else if (!s->buf)
		err_set(s->e, EX_OSERR, "out of memory");
	else
		r = save_files(s, fingerprint ? fingerprint : own);
	free(manifest);
	save_end(s);
	return r;
}

/* Its network of text, which has the same parameters under other names. */
static int save_text(struct save *s, char *fingerprint)
{
	json_t *o = config_to_json(s->c);
	struct config text = { 0 };
	struct params ps = { 0 };
	struct save own;
	int r = config_from_json(&text, o, 0, NULL, s->e);

	if (r == 0)
		r = params_build(&ps, &text, s->e);
	if (r == 0 && ps.n != s->ps->n)
		r = err_set(s->e, EX_SOFTWARE, "%s has other parameters than %s",
		    text.arch->model_type, s->c->arch->model_type);
	own = *s;
	own.c = &text;
	own.ps = &ps;
	if (r == 0)
		r = save_all(&own, fingerprint);
	params_free(&ps);
	config_free(&text);
	json_decref(o);
	return r;
}

int modeldir_save(const char *dir, const struct config *c, const struct params *ps,
    const float *flat,
    const struct modeldir_out *o, char *fingerprint, struct err *e)
{
	struct save s = { .dir = dir, .c = c, .ps = ps, .flat = flat, .o = o, .e = e };

	return c->arch->text ? save_text(&s, fingerprint) : save_all(&s, fingerprint);
}

/* Every tensor of a directory, whether it is a parameter or not. */
static int plan_copies(struct save *s, const struct modeldir *md)
{
	const struct st_tensor *t;
	size_t n = 0;

	for (int i = 0; i < md->nfiles; i++)
		for (size_t k = 0; st_at(md->st[i], k); k++)
			n++;
	s->t = calloc(n + 1, sizeof *s->t);
	if (!s->t)
		return err_set(s->e, EX_OSERR, "out of memory");
	for (int i = 0; i < md->nfiles; i++)
		for (size_t k = 0; (t = st_at(md->st[i], k)); k++) {
			if (modeldir_padding(t->name))
				continue;
			if (strlen(t->name) >= sizeof s->t->name)
				return err_set(s->e, EX_DATAERR, "%s: the name \"%s\" is too long",
				    md->file[i], t->name);
			snprintf(s->t[s->n].name, sizeof s->t->name, "%s", t->name);
			s->t[s->n++].copy = (struct view){ t, md->st[i], md->file[i] };
		}
	return 0;
}

int modeldir_copy(const char *dir, const struct modeldir *md, const struct modeldir_out *o,
    struct err *e)
{
	struct save s = { .dir = dir, .o = o, .e = e, .buf = malloc(CHUNK * sizeof(double)) };
	int r = s.buf ? plan_copies(&s, md) : err_set(e, EX_OSERR, "out of memory");

	if (r == 0) {
		plan_shards(&s);
		s.fingerprint = json_string_value(json_object_get(o->meta, "chronos.fingerprint"));
		r = save_shards(&s);
	}
	save_end(&s);
	return r;
}
