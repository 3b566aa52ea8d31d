#include "format/verify.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/crc.h"
#include "base/file.h"
#include "format/manifest.h"
#include "base/pool.h"

#define PIECE ((size_t)1 << 20)		/* bytes looked at in one go; a multiple of every element
					   size */

struct piece {
	const struct st_tensor *t;
	uint64_t from;
	size_t len;
	uint64_t nan, inf, first;	/* first: index in the tensor */
	struct st_error *why;		/* malloc'ed when it could not be read */
};

struct scan {
	const struct st_file *f;
	struct piece *p;
	int64_t n;
	char *buf;			/* (threads, PIECE) */
};

/* Where the exponent is all ones, a value is infinite if its fraction is zero, else NaN. */
struct float_bits { size_t size; uint64_t exponent, fraction; };

static const struct float_bits *float_bits(enum st_dtype t)
{
	static const struct float_bits f64 = { 8, 0x7ff0000000000000, 0x000fffffffffffff },
	    f32 = { 4, 0x7f800000, 0x007fffff },
	    f16 = { 2, 0x7c00, 0x03ff }, bf16 = { 2, 0x7f80, 0x007f }, e5m2 = { 1, 0x7c, 0x03 };

	switch (t) {
	case ST_F64:	return &f64;
	case ST_F32:
	case ST_C64:	return &f32;
	case ST_F16:	return &f16;
	case ST_BF16:	return &bf16;
	case ST_F8_E5M2: return &e5m2;
	default:	return NULL;
	}
}

static uint64_t element(const char *p, size_t size)
{
	uint64_t u8;
	uint32_t u4;
	uint16_t u2;

	switch (size) {
	case 8:	memcpy(&u8, p, 8); return u8;
	case 4:	memcpy(&u4, p, 4); return u4;
	case 2:	memcpy(&u2, p, 2); return u2;
	default: return (unsigned char)*p;
	}
}

static void count_one(struct piece *p, uint64_t i, bool inf)
{
	if (p->nan + p->inf == 0)
		p->first = i;
	p->inf += inf;
	p->nan += !inf;
}

/* Inlined for each size, so that the usual case, all finite, is a loop the compiler can make
 * wide. */
static inline void scan_sized(struct piece *p, const char *buf, size_t size,
    const struct float_bits *b, uint64_t i0)
{
	size_t n = p->len / size;
	uint64_t any = 0;

	for (size_t i = 0; i < n; i++)
		any |= (element(buf + i * size, size) & b->exponent) == b->exponent;
	for (size_t i = 0; any && i < n; i++) {
		uint64_t x = element(buf + i * size, size);

		if ((x & b->exponent) == b->exponent)
			count_one(p, i0 + i, (x & b->fraction) == 0);
	}
}

/* Bytes that are scales of MXFP4, as it is published. */
static bool mxfp4_scales(const struct st_tensor *t)
{
	size_t n = strlen(t->name);

	return t->dtype == ST_U8 && n > 7 && strcmp(t->name + n - 7, "_scales") == 0;
}

/* F8_E4M3 has no infinity and one NaN of either sign; F8_E8M0, as these scales are, only 0xff. */
static void scan_f8(struct piece *p, const unsigned char *buf)
{
	unsigned mask = p->t->dtype == ST_F8_E4M3 ? 0x7f : 0xff;

	for (size_t i = 0; i < p->len; i++)
		if ((buf[i] & mask) == mask)
			count_one(p, p->from + i, false);
}

static void scan_piece(struct piece *p, const char *buf)
{
	const struct float_bits *b = float_bits(p->t->dtype);
	uint64_t i0 = b ? p->from / b->size : 0;

	if (p->t->dtype == ST_F8_E4M3 || p->t->dtype == ST_F8_E8M0 || mxfp4_scales(p->t))
		scan_f8(p, (const unsigned char *)buf);
	else if (b && b->size == 8)
		scan_sized(p, buf, 8, b, i0);
	else if (b && b->size == 4)
		scan_sized(p, buf, 4, b, i0);
	else if (b && b->size == 2)
		scan_sized(p, buf, 2, b, i0);
	else if (b)
		scan_sized(p, buf, 1, b, i0);
}

static void scan_some(void *ctx, int64_t i0, int64_t i1, int worker)
{
	struct scan *s = ctx;
	char *buf = s->buf + (size_t)worker * PIECE;
	struct st_error se;

	for (int64_t i = i0; i < i1; i++) {
		struct piece *p = &s->p[i];

		if (st_read(s->f, p->t, p->from, buf, p->len, &se) == 0)
			scan_piece(p, buf);
		else if ((p->why = malloc(sizeof se)))
			*p->why = se;
	}
}

static void tell(struct verify *v, const struct verify_bad *b)
{
	v->found++;
	v->bad(v->ctx, b);
}

void verify_tell(struct verify *v, const char *file, const char *why)
{
	tell(v, &(struct verify_bad){ .file = file, .layer = -1, .expert = -1, .why = why });
}

static void tell_unopened(struct verify *v, const char *file, const struct st_error *se)
{
	struct err e = { 0 };

	modeldir_st_err(&e, file, se);
	verify_tell(v, file, e.msg);
}

/* Pieces of one tensor follow each other: their sum is told once. */
static void tell_pieces(struct verify *v, const struct scan *s, const char *name)
{
	struct verify_bad b = { 0 };

	for (int64_t i = 0; i < s->n; i++) {
		const struct piece *p = &s->p[i];

		if (p->from == 0)
			b = (struct verify_bad){ .file = name, .tensor = p->t->name, .layer = -1,
			    .expert = -1 };
		if (b.nan + b.inf == 0)
			b.first = p->first;
		b.nan += p->nan;
		b.inf += p->inf;
		if (p->why && !b.why)
			b.why = p->why->msg;
		if (p->from + p->len == p->t->nbytes && (b.nan || b.inf || b.why))
			tell(v, &b);
	}
}

int verify_file(struct verify *v, const struct st_file *f, const char *name, struct err *e)
{
	struct scan s = { .f = f, .buf = malloc((size_t)pool_threads() * PIECE) };
	const struct st_tensor *t;
	int64_t max = 0;

	for (size_t i = 0; (t = st_at(f, i)); i++)
		max += (int64_t)(t->nbytes / PIECE + 1);
	s.p = calloc((size_t)max + 1, sizeof *s.p);
	if (!s.p || !s.buf) {
		free(s.p);
		free(s.buf);
		return err_set(e, EX_OSERR, "out of memory");
	}
	for (size_t i = 0; (t = st_at(f, i)); i++)
		for (uint64_t from = 0; from < t->nbytes; from += PIECE)
			s.p[s.n++] = (struct piece){ .t = t, .from = from,
			    .len = t->nbytes - from < PIECE ? (size_t)(t->nbytes - from) : PIECE };
	pool_for(s.n, 1, scan_some, &s);
	tell_pieces(v, &s, name);
	v->tensors += (int64_t)st_count(f);
	v->bytes += (int64_t)st_size(f);
	for (int64_t i = 0; i < s.n; i++)
		free(s.p[i].why);
	free(s.p);
	free(s.buf);
	return 0;
}

/* ---- packed experts ---- */

struct experts {
	const struct manifest *m;
	struct st_file **file;		/* (nclusters) */
	const char **why;		/* (layers * experts) */
	char *buf;			/* (threads, size) */
	size_t size;
};

/* The three tensors lie where the manifest says that the expert is. */
static const char *check_place(const struct experts *x, int layer, int expert,
    const struct place *p)
{
	static const char *const part[] = { "gate", "up", "down" };
	const int64_t bytes[] = { x->m->gate_bytes, x->m->up_bytes, x->m->down_bytes };
	uint64_t at = (uint64_t)p->offset;
	char name[64];

	for (int i = 0; i < 3; at += (uint64_t)bytes[i], i++) {
		const struct st_tensor *t;

		snprintf(name, sizeof name, "l%d_e%d__%s_proj.weight", layer, expert, part[i]);
		t = st_find(x->file[p->cluster], name);
		if (!t)
			return "not in the file that the manifest names";
		if (t->offset != at || t->nbytes != (uint64_t)bytes[i])
			return "not at the place that the manifest names";
		if (dtype_blocks(x->m->dt[i]) ? t->dtype != ST_U8 : (int)t->dtype !=
		    st_dtype_parse(dtype_name(x->m->dt[i])))
			return "not of the type that the manifest names";
	}
	return NULL;
}

static const char *check_crc(const struct experts *x, const struct place *p, char *buf)
{
	const struct st_file *f = x->file[p->cluster];
	int64_t got = 0;
	ssize_t r;

	for (; got < p->bytes; got += r)
		if ((r = pread(st_fd(f), buf + got, (size_t)(p->bytes - got), p->offset + got)) <=
		    0)
			return "cannot be read";
	return crc_32(buf, (size_t)p->bytes) == p->crc
	    ? NULL :
	    "CRC differs from the manifest's";
}

static void check_some(void *ctx, int64_t i0, int64_t i1, int worker)
{
	struct experts *x = ctx;

	for (int64_t i = i0; i < i1; i++) {
		const struct place *p = &x->m->place[i];

		if (p->cluster < 0 || !x->file[p->cluster])
			continue;
		x->why[i] = check_place(x, (int)(i / x->m->experts), (int)(i % x->m->experts), p);
		if (!x->why[i])
			x->why[i] = check_crc(x, p, x->buf + (size_t)worker * x->size);
	}
}

static int verify_experts(struct verify *v, const struct manifest *m, struct st_file **file,
    struct err *e)
{
	int64_t n = (int64_t)m->layers * m->experts;
	struct experts x = { .m = m, .file = file, .size = (size_t)(m->gate_bytes + m->up_bytes +
	    m->down_bytes) };

	x.why = calloc((size_t)n + 1, sizeof *x.why);
	x.buf = malloc((size_t)pool_threads() * x.size);
	if (x.why && x.buf) {
		pool_for(n, 1, check_some, &x);
		for (int64_t i = 0; i < n; i++)
			if (x.why[i])
				tell(v, &(struct verify_bad){ .file = m->file[m->place[i].cluster],
				    .why = x.why[i],
				    .layer = (int)(i / m->experts), .expert = (int)(i % m->experts)
				    });
	} else
		err_set(e, EX_OSERR, "out of memory for experts of %zu bytes", x.size);
	free(x.buf);
	free(x.why);
	return e->status ? -1 : 0;
}

static void check_manifest(struct verify *v, struct modeldir *md, const struct manifest *m,
    const char *name)
{
	const char *fp = modeldir_meta(md, "chronos.fingerprint");

	if (!m->packed)
		verify_tell(v, name, "no places of experts: not written by chr-pack");
	if (m->layers != md->cfg.num_hidden_layers || m->experts != md->cfg.num_experts)
		verify_tell(v, name, "layers or experts are not those of config.json");
	else
		for (int l = 0; l < m->layers; l++)
			if ((manifest_at(m, l, 0)->cluster >= 0) != md->cfg.block[l].sparse)
				verify_tell(v, name,
				    "layers with experts are not those of config.json");
	if (!m->fingerprint || !fp || strcmp(m->fingerprint, fp) != 0)
		verify_tell(v, name, "of another model: its fingerprint is not that of "
		    "model.safetensors");
}

/* CRC-32 of a tensor as stored. -1: it cannot be read. */
static int tensor_crc(const struct st_file *f, const struct st_tensor *t, char *buf, uint32_t *crc)
{
	struct st_error se;

	*crc = 0;
	for (uint64_t at = 0; at < t->nbytes; at += PIECE) {
		size_t n = t->nbytes - at < PIECE ? (size_t)(t->nbytes - at) : PIECE;

		if (st_read(f, t, at, buf, n, &se) < 0)
			return -1;
		*crc = crc_32_more(*crc, buf, n);
	}
	return 0;
}

/* The weights beside the cluster files are those that chr-pack wrote. Manifests of before it noted
 * their CRCs cannot tell. */
static int verify_dense(struct verify *v, const struct modeldir *md, const struct manifest *m,
    struct err *e)
{
	const struct st_tensor *t;
	char *buf = malloc(PIECE);
	uint32_t crc, noted;

	if (!buf)
		return err_set(e, EX_OSERR, "out of memory");
	for (int i = 0; i < md->nfiles && manifest_has_dense(m); i++)
		for (size_t k = 0; (t = st_at(md->st[i], k)); k++) {
			struct verify_bad b = { .file = md->file[i], .tensor = t->name, .layer = -1,
			    .expert = -1 };

			if (modeldir_padding(t->name))
				continue;
			if (tensor_crc(md->st[i], t, buf, &crc) < 0)
				continue;		/* verify_file() has told of it */
			if (!manifest_dense(m, t->name, &noted))
				b.why = "not among the tensors that the manifest names";
			else if (crc != noted)
				b.why = "CRC differs from the manifest's";
			if (b.why)
				tell(v, &b);
		}
	free(buf);
	return 0;
}

static int verify_packed(struct verify *v, struct modeldir *md, struct err *e)
{
	char *name = file_join(md->path, MANIFEST_NAME), *path;
	struct st_file **file = NULL;
	struct manifest m;
	struct err why = { 0 };
	int r = 0;

	if (manifest_load_dir(&m, md->path, &why) < 0) {
		verify_tell(v, name, why.msg);
		free(name);
		return 0;
	}
	check_manifest(v, md, &m, name);
	file = calloc((size_t)m.nclusters + 1, sizeof *file);
	if (!file)
		r = err_set(e, EX_OSERR, "out of memory");
	for (int i = 0; i < m.nclusters && r == 0; i++) {
		struct st_error se;

		path = file_join(md->path, m.file[i]);
		file[i] = st_open(path, ST_READ, &se);
		if (file[i])
			r = verify_file(v, file[i], path, e);
		else
			tell_unopened(v, path, &se);
		free(path);
	}
	if (r == 0)
		r = verify_dense(v, md, &m, e);
	if (r == 0 && m.packed)
		r = verify_experts(v, &m, file, e);
	for (int i = 0; file && i < m.nclusters; i++)
		st_close(file[i]);
	free(file);
	free(name);
	manifest_free(&m);
	return r;
}

/* ---- models ---- */

/* What may stand beside the weights. */
static int verify_beside(struct verify *v, const struct modeldir *md, const char *name,
    struct err *e)
{
	char *path = file_join(md->path, name);
	struct st_error se;
	struct st_file *f;
	int r = 0;

	if (access(path, F_OK) == 0) {
		f = st_open(path, ST_READ, &se);
		if (f)
			r = verify_file(v, f, path, e);
		else
			tell_unopened(v, path, &se);
		st_close(f);
	}
	free(path);
	return r;
}

int verify_model(struct verify *v, struct modeldir *md, struct err *e)
{
	const char *stored = modeldir_meta(md, "chronos.fingerprint");
	struct err why = { 0 };
	char now[33];

	for (int i = 0; i < md->nfiles; i++)
		if (verify_file(v, md->st[i], md->file[i], e) < 0)
			return -1;
	if (verify_beside(v, md, "optimizer.safetensors", e) < 0 ||
	    verify_beside(v, md, INTENT_NAME, e) < 0 ||
	    verify_beside(v, md, FORESEE_NAME, e) < 0)
		return -1;
	if (md->packed)
		return verify_packed(v, md, e);
	if (stored && why.status == 0) {
		if (modeldir_compute_fingerprint(md, now, &why) < 0)
			verify_tell(v, md->path, why.msg);
		else if (strcmp(stored, now) != 0)
			verify_tell(v, md->file[0],
			    "weights are not those of the fingerprint in the metadata");
	}
	return 0;
}
