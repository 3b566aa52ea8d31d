#include "format/pack.h"

#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <zlib.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/outdir.h"
#include "base/progress.h"
#include "backend/quant.h"
#include "base/sig.h"
#include "format/sidefiles.h"
#include "format/stored.h"

#define CHUNK ((size_t)1 << 20)

static const enum param_kind kinds[3] = { P_EXP_GATE, P_EXP_UP, P_EXP_DOWN };
static const char *const part[3] = { "gate_proj", "up_proj", "down_proj" };

static enum st_dtype st_of(enum dtype t)
{
	return (enum st_dtype)st_dtype_parse(dtype_name(t));
}

static void ctsr_key(char key[64], int layer, int expert, int i)
{
	snprintf(key, 64, "l%d_e%d__%s.weight", layer, expert, part[i]);
}

/* ---- is the manifest of this model? ---- */

static int check_layer(const struct pack *p, int l, struct err *e)
{
	bool sparse = p->md->cfg.block[l].sparse;
	bool has = manifest_at(p->manifest, l, 0)->cluster >= 0;

	if (sparse == has)
		return 0;
	return err_set(e, EX_DATAERR, "manifest is not of this model: layer %d has %s there and %s "
	    "in %s", l,
	    has ? "experts" : "none", sparse ? "experts" : "none", p->md->path);
}

/* The type to write a parameter in. */
static int type_of(const struct pack *p, const struct param *pa, enum dtype *t, struct err *e)
{
	int want = param_routed(pa) ? p->dtype : param_is(pa, PARAM_QUANTISES) &&
	    p->dense ? p->dense : -1;

	for (int i = 0; i < p->nrules; i++)
		if (fnmatch(p->rule[i].pattern, pa->name, 0) == 0 &&
		    (param_is(pa, PARAM_QUANTISES) || !dtype_blocks(p->rule[i].t)))
			want = (int)p->rule[i].t;
	if (modeldir_type(p->md, pa, t, e) < 0)
		return -1;
	if (want >= 0)
		*t = (enum dtype)want;
	return 0;
}

/* A rule that changes nothing is a mistake. */
static int check_rule(const struct pack *p, const struct pack_rule *r, struct err *e)
{
	const struct params *ps = &p->md->par;
	const char *kept = NULL;

	for (int i = 0; i < ps->n; i++) {
		if (fnmatch(r->pattern, ps->p[i].name, 0) != 0)
			continue;
		if (param_is(&ps->p[i], PARAM_QUANTISES) || !dtype_blocks(r->t))
			return 0;
		kept = ps->p[i].name;
	}
	if (kept)
		return err_set(e, EX_USAGE, "--quant-for %s=%s: %s is never quantised", r->pattern,
		    dtype_name(r->t), kept);
	return err_set(e, EX_USAGE, "--quant-for %s=%s: %s has no such tensor", r->pattern,
	    dtype_name(r->t), p->md->path);
}

/* Shared experts and dense layers: what goes for an expert's three matrices goes for theirs. */
static int check_fixed(const struct pack *p, struct err *e)
{
	const struct params *ps = &p->md->par;

	for (int i = 0; i < ps->n; i++) {
		const struct param *pa = &ps->p[i];
		enum dtype t[3];

		if (!param_is(pa, PARAM_FFN) || param_routed(pa) || param_part(pa) != 0)
			continue;
		for (int k = 0; k < 3; k++)
			if (type_of(p, params_get(ps, (enum param_kind)(pa->kind + k), pa->layer,
			    pa->expert), &t[k], e) < 0)
				return -1;
		if (dtype_blocks(t[0]) != dtype_blocks(t[1]) || dtype_blocks(t[0]) !=
		    dtype_blocks(t[2]))
			return err_set(e, EX_DATAERR,
			    "%s: with up and down it would be %s, %s and %s: all of them in blocks,"
			    " or none",
			    pa->name, dtype_name(t[0]), dtype_name(t[1]), dtype_name(t[2]));
	}
	return 0;
}

/* The one type that all experts have, for each of their matrices; also the one they are stored
 * in. */
static int expert_types(struct pack *p, struct err *e)
{
	const struct params *ps = &p->md->par;
	int found[3] = { -1, -1, -1 };

	p->model_dtype = -2;
	for (int i = 0; i < ps->n; i++) {
		int k = param_part(&ps->p[i]);
		enum dtype t, was;

		if (!param_routed(&ps->p[i]))
			continue;
		if (type_of(p, &ps->p[i], &t, e) < 0 || modeldir_type(p->md, &ps->p[i], &was, e) <
		    0)
			return -1;
		p->model_dtype = p->model_dtype == -2 || p->model_dtype == (int)was ? (int)was : -1;
		if (t == DT_F64)
			return err_set(e, EX_DATAERR,
			    "%s: %s is not stored as F32, BF16 or F16: give --dtype",
			    p->md->path, ps->p[i].name);
		if (found[k] >= 0 && found[k] != (int)t)
			return err_set(e, EX_DATAERR,
			    "%s: %s would be %s, that of another expert %s: one type for all of a "
			    "kind, "
			    "as with --quant-for '*.experts.*.%s.weight=%s'", p->md->path,
			    ps->p[i].name, dtype_name(t),
			    dtype_name((enum dtype)found[k]), part[k], dtype_name(t));
		p->dt[k] = t;
		found[k] = (int)t;
	}
	if (dtype_blocks(p->dt[0]) != dtype_blocks(p->dt[1]) || dtype_blocks(p->dt[0]) !=
	    dtype_blocks(p->dt[2]))
		return err_set(e, EX_DATAERR, "gate, up and down of an expert would be %s, %s and "
		    "%s: all of them in blocks, or none",
		    dtype_name(p->dt[0]), dtype_name(p->dt[1]), dtype_name(p->dt[2]));
	return 0;
}

int pack_types(struct pack *p, struct err *e)
{
	if (p->md->packed)
		return err_set(e, EX_DATAERR, "%s is packed already (--unpack undoes it)",
		    p->md->path);
	if (p->md->cfg.num_sparse == 0)
		return err_set(e, EX_DATAERR, "%s has no experts: nothing to pack", p->md->path);
	for (int i = 0; i < p->nrules; i++)
		if (check_rule(p, &p->rule[i], e) < 0)
			return -1;
	return check_fixed(p, e) < 0 ? -1 : expert_types(p, e);
}

int64_t pack_expert_bytes(const struct pack *p)
{
	int F = p->md->cfg.moe_intermediate_size, D = p->md->cfg.hidden_size;

	return (int64_t)(mat_bytes(p->dt[0], F, D) + mat_bytes(p->dt[1], F, D) +
	    mat_bytes(p->dt[2], D, F));
}

int pack_check(struct pack *p, struct err *e)
{
	const struct config *c = &p->md->cfg;
	const struct manifest *m = p->manifest;
	const char *fp;

	if (m->layers != c->num_hidden_layers || m->experts != c->num_experts)
		return err_set(e, EX_DATAERR, "manifest is not of this model: %d layers of %d "
		    "experts there, %d of %d in %s",
		    m->layers, m->experts, c->num_hidden_layers, c->num_experts, p->md->path);
	for (int l = 0; l < m->layers; l++)
		if (check_layer(p, l, e) < 0)
			return -1;
	if (!(fp = modeldir_fingerprint(p->md, e)))
		return -1;
	if (m->fingerprint && strcmp(m->fingerprint, fp) != 0)
		return err_set(e, EX_DATAERR, "manifest is not of this model: fingerprint %s there,"
		    " %s in %s", m->fingerprint,
		    fp, p->md->path);
	memcpy(p->fingerprint, fp, sizeof p->fingerprint);
	return 0;
}

/* ---- tensors from the model to a writer ---- */

struct job {			/* one packing or unpacking */
	struct pack *p;
	struct err *e;
	const char *dir;	/* being written */
	const char *fingerprint;	/* for model.safetensors, NULL: none that holds */
	char *name;		/* of the file being written, for messages */
	struct st_writer *w;
	char *buf;		/* CHUNK, aligned for O_DIRECT */
	float *x;		/* one matrix, when converting */
	char *y;
	float *back;		/* and what its blocks give */
	struct st_file **ctsr;	/* (nclusters) unpacking: opened when first needed */
	struct progress bar;
	int64_t done;		/* bytes written and read back */
};

static bool stopped(const struct job *j)
{
	if (sig_stop)
		err_set(j->e, EX_TEMPFAIL, "stopped by signal %d, nothing was written",
		    (int)sig_stop);
	return sig_stop;
}

static void tick(struct job *j, int64_t bytes)
{
	j->done += bytes;
	progress_at(&j->bar, (double)j->done / 1e6, NULL);
}

static int writer_failed(struct job *j, const struct st_error *se)
{
	return modeldir_st_err(j->e, j->name, se);
}

/* Appends to the file; crc may be NULL. */
static int put(struct job *j, const void *data, size_t len, uint32_t *crc)
{
	struct st_error se;

	if (crc)
		*crc = (uint32_t)crc32_z(*crc, data, len);
	if (st_writer_data(j->w, data, len, &se) < 0)
		return writer_failed(j, &se);
	tick(j, (int64_t)len);
	return 0;
}

static int not_finite(struct job *j, const char *file, const char *name)
{
	return err_set(j->e, EX_DATAERR, "%s: %s has a value that is not finite", file, name);
}

/* A tensor as it is. Read, not mapped, so that a model larger than memory leaves no pages
 * behind. */
static int put_view(struct job *j, const struct view *v, uint32_t *crc)
{
	struct st_error se;
	enum dtype t;
	bool floats = dtype_parse(st_dtype_name(v->t->dtype), &t) == 0;

	for (uint64_t at = 0; at < v->t->nbytes; at += CHUNK) {
		size_t n = v->t->nbytes - at < CHUNK ? (size_t)(v->t->nbytes - at) : CHUNK;

		if (st_read(v->st, v->t, at, j->buf, n, &se) < 0)
			return modeldir_st_err(j->e, v->file, &se);
		if (floats && !tensor_finite(j->buf, t, n / dtype_size(t)))
			return not_finite(j, v->file, v->t->name);
		if (put(j, j->buf, n, crc) < 0)
			return -1;
	}
	return 0;
}

static int too_large(struct job *j, const struct param *pa, enum dtype to)
{
	float most = 0;

	if (!tensor_finite(j->x, DT_F32, (size_t)param_size(pa)))
		return not_finite(j, j->p->md->path, pa->name);
	for (int64_t i = 0; i < param_size(pa); i++)
		most = fabsf(j->x[i]) > most ? fabsf(j->x[i]) : most;
	return err_set(j->e, EX_DATAERR, "%s: %s has values up to %g, too large for %s%s",
	    j->p->md->path, pa->name, (double)most, dtype_name(to), dtype_blocks(to) ?
	    ", whose scales end at 65504" : "");
}

/* The values in j->x, in type `to`, to j->y. What j->y then gives must be numbers: F16 and
 * scales end at 65504. */
static int convert(struct job *j, const struct param *pa, enum dtype to)
{
	size_t n = (size_t)param_size(pa);
	bool blocks = dtype_blocks(to), good = true;
	struct pack_sum *sum = &j->p->by[to];
	double error = 0, square = 0;

	if (blocks)
		good = quant_pack(j->y, to, j->x, pa->rows, pa->cols) == 0;
	else
		tensor_from_f32(j->y, to, j->x, n);
	if (good && blocks)
		quant_unpack(j->back, j->y, to, pa->rows, pa->cols);
	else if (good)
		tensor_to_f32(j->back, j->y, to, n);
	for (size_t i = 0; good && i < n; i++)
		good = isfinite(j->back[i]);
	if (!good)
		return too_large(j, pa, to);
	for (size_t i = 0; i < n; i++) {
		double d = (double)j->back[i] - (double)j->x[i];

		error += d * d;
		square += (double)j->x[i] * (double)j->x[i];
	}
	sum->error += error;
	sum->square += square;
	sum->converted++;
	if (square > 0 && sqrt(error / square) > j->p->worst) {
		j->p->worst = sqrt(error / square);
		j->p->worst_name = pa->name;
		j->p->worst_type = to;
	}
	return 0;
}

/* A parameter in the type it has, so much at a time. */
static int put_stored(struct job *j, const struct param *pa, enum dtype t, uint32_t *crc)
{
	struct stored s;
	int step, rc = stored_find(j->p->md, pa, &s, j->e);

	step = rc < 0 ? 0 : stored_step(&s, CHUNK);
	for (int row = 0; row < pa->rows && rc == 0; row += step) {
		int n = pa->rows - row < step ? pa->rows - row : step;
		size_t bytes = (size_t)stored_bytes(&s, row, n);

		rc = stored_read(&s, row, n, j->y, j->e);
		if (rc == 0 && !dtype_blocks(t) &&
		    !tensor_finite(j->y, t, (size_t)n * (size_t)pa->cols))
			rc = not_finite(j, s.file, pa->name);
		if (rc == 0)
			rc = put(j, j->y, bytes, crc);
	}
	return rc;
}

static int put_param(struct job *j, const struct param *pa, uint32_t *crc)
{
	enum dtype to, was;

	if (type_of(j->p, pa, &to, j->e) < 0 || modeldir_type(j->p->md, pa, &was, j->e) < 0)
		return -1;
	j->p->by[to].tensors++;
	j->p->by[to].bytes += (int64_t)mat_bytes(to, pa->rows, pa->cols);
	if (was == to && !dtype_blocks(was))
		return put_stored(j, pa, to, crc);
	if (modeldir_read_f32(j->p->md, pa, j->x, j->e) < 0)
		return -1;
	if (was == to)		/* in blocks already, whose scales may be no numbers */
		return tensor_finite(j->x, DT_F32, (size_t)param_size(pa))
		    ? put_stored(j, pa, to, crc) : not_finite(j, j->p->md->path, pa->name);
	if (convert(j, pa, to) < 0)
		return -1;
	return put(j, j->y, mat_bytes(to, pa->rows, pa->cols), crc);
}

static int declare_param(struct job *j, const char *key, const struct param *pa, enum dtype t,
    size_t align,
    struct st_error *se)
{
	uint64_t shape[2] = { (uint64_t)pa->rows, (uint64_t)pa->cols },
	    bytes = mat_bytes(t, pa->rows, pa->cols);
	char name[128], value[64];

	if (!dtype_blocks(t))
		return st_writer_add(j->w, key, st_of(t), pa->ndim, shape, align, se);
	snprintf(name, sizeof name, "quant.%s", key);
	snprintf(value, sizeof value, "%s %d %d", dtype_name(t), pa->rows, pa->cols);
	st_writer_meta(j->w, name, value, se);
	return st_writer_add(j->w, key, ST_U8, 1, &bytes, align ? align : 64, se);
}

static int begin_file(struct job *j, const char *name)
{
	struct st_error se;

	free(j->name);
	j->name = file_join(j->dir, name);
	j->w = st_writer_create(j->name, &se);
	return j->w ? 0 : writer_failed(j, &se);
}

static int end_file(struct job *j)
{
	struct st_error se;
	int rc = st_writer_finish(j->w, &se);

	j->w = NULL;
	return rc < 0 ? writer_failed(j, &se) : 0;
}

static void drop_file(struct job *j)
{
	st_writer_abort(j->w);
	j->w = NULL;
}

/* ---- cluster files ---- */

static const struct param *expert_param(const struct job *j, int layer, int expert, int i)
{
	return params_get(&j->p->md->par, kinds[i], layer, expert);
}

static int declare_expert(struct job *j, int layer, int expert, struct st_error *se)
{
	char key[64];

	for (int i = 0; i < 3; i++) {
		ctsr_key(key, layer, expert, i);
		if (declare_param(j, key, expert_param(j, layer, expert, i), j->p->dt[i], i ? 0
		    : MANIFEST_ALIGN, se) < 0)
			return -1;
	}
	return 0;
}

static int declare_cluster(struct job *j, int k, const int *order, int n)
{
	const int E = j->p->manifest->experts;
	struct st_error se;
	char id[16];

	snprintf(id, sizeof id, "%d", k);
	st_writer_meta(j->w, "format", "pt", &se);
	st_writer_meta(j->w, "chronos.cluster", id, &se);
	st_writer_meta(j->w, "chronos.fingerprint", j->p->fingerprint, &se);
	for (int i = 0; i < n; i++)
		if (declare_expert(j, order[i] / E, order[i] % E, &se) < 0)
			return writer_failed(j, &se);
	if (st_writer_pad(j->w, MANIFEST_ALIGN, &se) < 0 || st_writer_begin(j->w, &se) < 0)
		return writer_failed(j, &se);
	return 0;
}

static int put_expert(struct job *j, int node, int rank)
{
	struct manifest *m = j->p->manifest;
	struct place *pl = &m->place[node];
	int layer = node / m->experts, expert = node % m->experts;
	uint32_t crc = 0;

	for (int i = 0; i < 3; i++)
		if (put_param(j, expert_param(j, layer, expert, i), &crc) < 0)
			return -1;
	pl->offset = (int64_t)st_writer_offset(j->w, 3 * (size_t)rank);
	pl->bytes = m->gate_bytes + m->up_bytes + m->down_bytes;
	pl->crc = crc;
	return stopped(j) ? -1 : 0;
}

static int write_cluster(struct job *j, int k, const int *order, int n)
{
	if (begin_file(j, j->p->manifest->file[k]) < 0 || declare_cluster(j, k, order, n) < 0)
		return -1;
	for (int i = 0; i < n; i++)
		if (put_expert(j, order[i], i) < 0)
			return -1;
	return end_file(j);
}

/* ---- reading back ---- */

static int open_disk(struct job *j)
{
	int fd = open(j->name, O_RDONLY | O_CLOEXEC | O_DIRECT);

	j->p->direct = fd >= 0;
	if (fd < 0 && errno == EINVAL)		/* a file system without direct reads */
		fd = open(j->name, O_RDONLY | O_CLOEXEC);
	if (fd >= 0)
		posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	return fd;
}

static int crc_of(struct job *j, int fd, const struct place *pl, uint32_t *crc)
{
	*crc = 0;
	for (int64_t at = 0; at < pl->bytes;) {
		int64_t left = pl->bytes - at, want = manifest_align(left);
		ssize_t got = pread(fd, j->buf, want < (int64_t)CHUNK ? (size_t)want : CHUNK,
		    pl->offset + at);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return err_set(j->e, EX_IOERR, "cannot read back %s:", j->name);
		if (got > left)
			got = left;
		*crc = (uint32_t)crc32_z(*crc, (void *)j->buf, (size_t)got);
		at += got;
		/* a direct read must go on at a block */
		if (got % MANIFEST_ALIGN && at < pl->bytes)
			return err_set(j->e, EX_IOERR, "%s: short read", j->name);
	}
	return 0;
}

static int verify_cluster(struct job *j, const int *order, int n)
{
	const struct manifest *m = j->p->manifest;
	int fd = open_disk(j), rc = 0;

	if (fd < 0)
		return err_set(j->e, EX_IOERR, "cannot read back %s:", j->name);
	for (int i = 0; rc == 0 && i < n; i++) {
		const struct place *pl = &m->place[order[i]];
		uint32_t crc;

		rc = stopped(j) ? -1 : crc_of(j, fd, pl, &crc);
		if (rc == 0 && crc != pl->crc)
			rc = err_set(j->e, EX_IOERR,
			    "%s: layer %d, expert %d reads back with CRC-32 %08x, written with "
			    "%08x",
			    j->name, order[i] / m->experts, order[i] % m->experts, crc, pl->crc);
		tick(j, pl->bytes);
	}
	close(fd);
	return rc;
}

static int write_clusters(struct job *j)
{
	struct manifest *m = j->p->manifest;
	int *order, *start, rc = 0;

	j->p->experts = manifest_order(m, &order, &start, j->e);
	if (j->p->experts < 0)
		return -1;
	for (int k = 0; rc == 0 && k < m->nclusters; k++) {
		int n = start[k + 1] - start[k];

		rc = write_cluster(j, k, order + start[k], n);
		if (rc == 0)
			rc = verify_cluster(j, order + start[k], n);
	}
	free(order);
	free(start);
	j->p->bytes = (m->gate_bytes + m->up_bytes + m->down_bytes) * j->p->experts;
	j->p->padding = manifest_align(m->gate_bytes + m->up_bytes + m->down_bytes) *
	    j->p->experts - j->p->bytes;
	return rc;
}

/* ---- model.safetensors ---- */

static void put_meta(struct job *j, struct st_error *se)	/* errors stick to the writer */
{
	const char *key;
	json_t *value;

	st_writer_meta(j->w, "format", "pt", se);
	if (j->fingerprint)
		st_writer_meta(j->w, "chronos.fingerprint", j->fingerprint, se);
	json_object_foreach((json_t *)(uintptr_t)j->p->meta, key, value)
		if (json_is_string(value) && strcmp(key, "format") != 0 &&
		    strcmp(key, "chronos.fingerprint") != 0)
			st_writer_meta(j->w, key, json_string_value(value), se);
}

static int declare_dense(struct job *j, const struct param *pa)
{
	struct st_error se;
	enum dtype t;

	if (type_of(j->p, pa, &t, j->e) < 0)
		return -1;
	j->p->dense_bytes += (int64_t)mat_bytes(t, pa->rows, pa->cols);
	return declare_param(j, pa->name, pa, t, 0, &se) < 0 ? writer_failed(j, &se) : 0;
}

/* Packing notes what it wrote, unpacking compares with that. */
static int put_dense(struct job *j, const struct param *pa)
{
	struct manifest *m = j->p->manifest;
	uint32_t crc = 0, noted;

	if (put_param(j, pa, &crc) < 0 || stopped(j))
		return -1;
	if (!j->ctsr)
		manifest_set_dense(m, pa->name, crc);
	else if (manifest_dense(m, pa->name, &noted) && noted != crc)
		return err_set(j->e, EX_DATAERR, "%s: %s is corrupt (CRC-32 %08x, not %08x)",
		    j->p->md->path, pa->name, crc, noted);
	return 0;
}

/* Every parameter in order; experts through the two functions given, NULL: left out. */
static int write_model(struct job *j, int (*declare)(struct job *, const struct param *),
    int (*put_it)(struct job *, const struct param *))
{
	const struct params *ps = &j->p->md->par;
	struct st_error se;

	if (begin_file(j, "model.safetensors") < 0)
		return -1;
	put_meta(j, &se);
	for (int i = 0; i < ps->n; i++) {
		if (param_routed(&ps->p[i]) ? declare && declare(j, &ps->p[i]) < 0
		    : declare_dense(j, &ps->p[i]) < 0)
			return -1;
	}
	if (st_writer_begin(j->w, &se) < 0)
		return writer_failed(j, &se);
	for (int i = 0; i < ps->n; i++) {
		if (param_routed(&ps->p[i]) ? put_it && put_it(j, &ps->p[i]) < 0
		    : put_dense(j, &ps->p[i]) < 0)
			return -1;
	}
	return end_file(j);
}

/* ---- the directory ---- */

/* Intents are of these weights: where the model is another one now, they stay behind. */
static int copy_side_files(struct job *j)
{
	const char *from = j->p->md->path;

	if (j->fingerprint && sidefiles_copy_one(from, j->dir, INTENT_NAME, j->e) < 0)
		return -1;
	return sidefiles_copy_one(from, j->dir, "config.json", j->e) < 0 ? -1 :
	    sidefiles_copy(from, j->dir, j->e);
}

static int write_manifest(struct job *j)
{
	json_t *o = manifest_json(j->p->manifest);
	char *text = json_dumps(o, JSON_COMPACT), *path = file_join(j->dir, MANIFEST_NAME);
	size_t n = text ? strlen(text) : 0;
	int rc;

	if (text) {
		text[n] = '\n';		/* in place of the NUL */
		rc = file_put(path, text, n + 1, j->e);
	} else {
		rc = err_set(j->e, EX_OSERR, "out of memory");
	}
	json_decref(o);
	free(text);
	free(path);
	return rc;
}

/* What the largest matrix needs; used only when converting. */
static int job_begin(struct job *j, struct outdir *d, int64_t bytes)
{
	const struct params *ps = &j->p->md->par;
	struct statvfs fs;
	int64_t most = 1, blocks = 1;

	if (outdir_begin(d, j->p->out, j->p->md->path, j->p->force, j->e) < 0)
		return -1;
	j->dir = d->tmp;
	if (statvfs(d->tmp, &fs) == 0 && (double)fs.f_bavail * (double)fs.f_frsize <
	    (double)bytes) {
		err_set(j->e, EX_CANTCREAT, "%s needs %lld bytes, its file system has %.0f left",
		    j->p->out,
		    (long long)bytes, (double)fs.f_bavail * (double)fs.f_frsize);
		outdir_abort(d);
		return -1;
	}
	for (int i = 0; i < ps->n; i++) {
		int64_t n = param_size(&ps->p[i]), q = (int64_t)mat_bytes(DT_Q8, ps->p[i].rows,
		    ps->p[i].cols);

		most = n > most ? n : most;
		blocks = q > blocks ? q : blocks;
	}
	j->x = mem_alloc((size_t)most * sizeof *j->x);
	j->back = mem_alloc((size_t)most * sizeof *j->x);
	j->y = mem_alloc((size_t)most * sizeof *j->x + (size_t)blocks);
	if (posix_memalign((void **)&j->buf, MANIFEST_ALIGN, CHUNK))
		err_die(EX_OSERR, "out of memory");
	return 0;
}

static int job_end(struct job *j, struct outdir *d, int rc)
{
	drop_file(j);
	progress_end(&j->bar);
	for (int k = 0; j->ctsr && k < j->p->manifest->nclusters; k++)
		st_close(j->ctsr[k]);
	free(j->ctsr);
	free(j->name);
	free(j->buf);
	mem_free(j->x);
	mem_free(j->y);
	mem_free(j->back);
	if (rc == 0)
		return outdir_commit(d, j->e);
	outdir_abort(d);
	return -1;
}

/* Bytes of all tensors, experts in the type they will have. */
static int64_t total_bytes(const struct pack *p, bool experts)
{
	const struct params *ps = &p->md->par;
	int64_t sum = 0;
	struct err none;

	for (int i = 0; i < ps->n; i++) {
		const struct param *pa = &ps->p[i];
		enum dtype t = DT_F32;

		if (param_routed(pa))
			sum += experts ? (int64_t)mat_bytes(p->dt[param_part(pa)], pa->rows,
			    pa->cols) : 0;
		else if (type_of(p, pa, &t, &none) == 0)
			sum += (int64_t)mat_bytes(t, pa->rows, pa->cols);
	}
	return sum;
}

/* Tensors of model.safetensors in another type than the model's. */
static int dense_converted(const struct pack *p)
{
	const struct params *ps = &p->md->par;
	enum dtype t, was;
	struct err none;
	int n = 0;

	for (int i = 0; i < ps->n; i++)
		n += !param_routed(&ps->p[i]) && type_of(p, &ps->p[i], &t, &none) == 0
		    && modeldir_type(p->md, &ps->p[i], &was, &none) == 0 && t != was;
	return n;
}

static int note_packed(struct pack *p, struct err *e)
{
	struct manifest *m = p->manifest;
	const struct config *c = &p->md->cfg;
	int F = c->moe_intermediate_size, D = c->hidden_size;
	int was = p->model_dtype;

	free(m->fingerprint);
	m->fingerprint = strdup(p->fingerprint);
	m->packed = true;
	manifest_clear_dense(m);
	memcpy(m->dt, p->dt, sizeof m->dt);
	m->gate_bytes = (int64_t)mat_bytes(m->dt[0], F, D);
	m->up_bytes = (int64_t)mat_bytes(m->dt[1], F, D);
	m->down_bytes = (int64_t)mat_bytes(m->dt[2], D, F);
	/* Unpacking gives back the model, fingerprint and all, when this equals dtype and
	 * nothing else was converted. */
	json_object_set_new(m->raw, "model_dtype", was < 0 ? json_null()
	    : json_string(dtype_name((enum dtype)was)));
	json_object_set_new(m->raw, "dense_converted", json_integer(dense_converted(p)));
	return m->fingerprint ? 0 : err_set(e, EX_OSERR, "out of memory");
}

int pack_write(struct pack *p, struct err *e)
{
	struct job j = { .p = p, .e = e, .fingerprint = p->fingerprint };
	int64_t dense = total_bytes(p, false), all = total_bytes(p, true);
	struct outdir d;
	int rc;

	if (note_packed(p, e) < 0 || job_begin(&j, &d, all) < 0)
		return -1;
	progress_start(&j.bar, "packing", "MB", (double)(2 * all - dense) / 1e6);
	rc = write_clusters(&j) < 0 || write_model(&j, NULL, NULL) < 0 || copy_side_files(&j) < 0
	    || write_manifest(&j) < 0 ? -1 : 0;
	return job_end(&j, &d, rc);
}

/* ---- and back ---- */

static int declare_packed(struct job *j, const struct param *pa)
{
	uint64_t shape[2] = { (uint64_t)pa->rows, (uint64_t)pa->cols };
	struct st_error se;

	if (st_writer_add(j->w, pa->name, st_of(j->p->dt[param_part(pa)]), 2, shape, 0, &se)
	    < 0)
		return writer_failed(j, &se);
	return 0;
}

static int open_ctsr(struct job *j, int k)
{
	struct st_error se;
	char *path;
	int rc = 0;

	if (j->ctsr[k])
		return 0;
	path = file_join(j->p->md->path, j->p->manifest->file[k]);
	if (!(j->ctsr[k] = st_open(path, ST_READ, &se)))
		rc = modeldir_st_err(j->e, path, &se);
	free(path);
	return rc;
}

/* The i-th matrix of an expert, where manifest and file agree that it lies. */
static int find_packed(struct job *j, const struct param *pa, int i, struct view *v)
{
	const struct manifest *m = j->p->manifest;
	const struct place *pl = manifest_at(m, pa->layer, pa->expert);
	int64_t before[3] = { 0, m->gate_bytes, m->gate_bytes + m->up_bytes };
	char key[64];

	if (open_ctsr(j, pl->cluster) < 0)
		return -1;
	ctsr_key(key, pa->layer, pa->expert, i);
	*v = (struct view){ st_find(j->ctsr[pl->cluster], key), j->ctsr[pl->cluster],
	    m->file[pl->cluster] };
	if (!v->t || v->t->dtype != st_of(m->dt[i]) || v->t->ndim != 2 ||
	    v->t->shape[0] != (uint64_t)pa->rows
	    || v->t->shape[1] != (uint64_t)pa->cols ||
	    v->t->offset != (uint64_t)(pl->offset + before[i]))
		return err_set(j->e, EX_DATAERR, "%s/%s: %s is not where the manifest says",
		    j->p->md->path, v->file, key);
	return 0;
}

/* Parameters come gate, up, down, expert after expert (config.h), so the CRC of an expert is
 * taken on its gate. */
static int check_crc(struct job *j, const struct param *pa)
{
	const struct place *pl = manifest_at(j->p->manifest, pa->layer, pa->expert);
	uint32_t crc = 0;

	for (int i = 0; i < 3; i++) {
		const struct param *part_i = params_get(&j->p->md->par, kinds[i], pa->layer,
		    pa->expert);
		struct st_error se;
		struct view v;

		if (find_packed(j, part_i, i, &v) < 0)
			return -1;
		for (uint64_t at = 0; at < v.t->nbytes; at += CHUNK) {
			size_t n = v.t->nbytes - at < CHUNK ? (size_t)(v.t->nbytes - at) : CHUNK;

			if (st_read(v.st, v.t, at, j->buf, n, &se) < 0)
				return modeldir_st_err(j->e, v.file, &se);
			crc = (uint32_t)crc32_z(crc, (void *)j->buf, n);
		}
	}
	if (crc != pl->crc)
		return err_set(j->e, EX_DATAERR, "%s/%s: layer %d, expert %d is corrupt (CRC-32 "
		    "%08x, not %08x)",
		    j->p->md->path, j->p->manifest->file[pl->cluster], pa->layer, pa->expert, crc,
		    pl->crc);
	return 0;
}

static int put_packed(struct job *j, const struct param *pa)
{
	int i = param_part(pa);
	struct view v;

	if (i == 0 && check_crc(j, pa) < 0)
		return -1;
	return find_packed(j, pa, i, &v) < 0 || put_view(j, &v, NULL) < 0 || stopped(j) ? -1 : 0;
}

/* Did packing leave every type as it was? */
static bool types_kept(const struct manifest *m)
{
	const char *was = json_string_value(json_object_get(m->raw, "model_dtype"));

	return was && json_integer_value(json_object_get(m->raw, "dense_converted")) == 0 &&
	    strcmp(was, dtype_name(m->dt[0])) == 0 && m->dt[0] == m->dt[1] && m->dt[0] == m->dt[2];
}

/* Blocks do not give back what they were made of. */
static const char *quantised(const struct pack *p)
{
	const struct params *ps = &p->md->par;
	struct err e;
	enum dtype t;

	for (int i = 0; i < ps->n; i++)
		if (param_routed(&ps->p[i]) ? dtype_blocks(p->manifest->dt[param_part(&ps->p[i])])
		    : modeldir_type(p->md, &ps->p[i], &t, &e) == 0 && dtype_blocks(t))
			return ps->p[i].name;
	return NULL;
}

/* The model that was written is the one that was packed. */
static int check_identity(struct job *j)
{
	struct modeldir md;
	int rc;

	if (modeldir_open(&md, j->dir, 0, NULL, j->e) < 0)
		return -1;
	rc = modeldir_compute_fingerprint(&md, j->p->fingerprint, j->e);
	modeldir_close(&md);
	if (rc == 0 && j->fingerprint && strcmp(j->p->fingerprint, j->fingerprint) != 0)
		return err_set(j->e, EX_DATAERR, "%s: tensors have fingerprint %s, the model that "
		    "was packed had %s",
		    j->p->md->path, j->p->fingerprint, j->fingerprint);
	return rc;
}

int pack_undo(struct pack *p, struct err *e)
{
	struct job j = { .p = p, .e = e };
	const struct manifest *m = p->manifest;
	struct outdir d;
	int rc;

	if (!p->md->packed || !m->packed)
		return err_set(e, EX_DATAERR, "%s is not a packed model", p->md->path);
	if (m->layers != p->md->cfg.num_hidden_layers || m->experts != p->md->cfg.num_experts)
		return err_set(e, EX_DATAERR, "%s: manifest and config.json disagree about layers "
		    "or experts", p->md->path);
	for (int l = 0; l < m->layers; l++)
		if (check_layer(p, l, e) < 0)
			return -1;
	if (quantised(p))
		return err_set(e, EX_DATAERR, "%s: %s is quantised: what it was made from cannot "
		    "be given back", p->md->path,
		    quantised(p));
	j.fingerprint = types_kept(m) ? m->fingerprint : NULL;
	memcpy(p->dt, m->dt, sizeof p->dt);
	p->experts = p->md->cfg.num_sparse * m->experts;
	if (job_begin(&j, &d, total_bytes(p, true)) < 0)
		return -1;
	if (!(j.ctsr = calloc((size_t)m->nclusters + 1, sizeof *j.ctsr)))
		return job_end(&j, &d, err_set(e, EX_OSERR, "out of memory"));
	p->bytes = total_bytes(p, true);
	progress_start(&j.bar, "unpacking", "MB", (double)p->bytes / 1e6);
	rc = write_model(&j, declare_packed, put_packed) < 0 || copy_side_files(&j) < 0 ? -1 : 0;
	if (rc == 0)
		rc = check_identity(&j);
	return job_end(&j, &d, rc);
}
