/* Unpacking: cluster files and the rest, one tensor after the other, into one model.safetensors. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/published.h"
#include "base/crc.h"
#include "base/file.h"
#include "base/outdir.h"
#include "base/sig.h"
#include "format/pack_int.h"
#include "format/packed.h"
#include "format/stored.h"

struct job {			/* one unpacking */
	struct pack *p;
	struct err *e;
	const char *dir;	/* being written */
	const char *fingerprint;	/* for model.safetensors, NULL: none that holds */
	char *name;		/* of the file being written, for messages */
	struct st_writer *w;
	char *buf;		/* size bytes */
	size_t size;
	struct packed experts;
	struct progress bar;
	int64_t done;		/* bytes written */
};

/* ---- tensors to the writer ---- */

static int writer_failed(struct job *j, const struct st_error *se)
{
	return modeldir_st_err(j->e, j->name, se);
}

/* Appends to the file; crc may be NULL. */
static int put(struct job *j, const void *data, size_t len, uint32_t *crc)
{
	struct st_error se;

	if (sig_stop)
		return err_set(j->e, EX_TEMPFAIL, "stopped by signal %d, nothing was written",
		    (int)sig_stop);
	if (crc)
		*crc = crc_32_more(*crc, data, len);
	if (st_writer_data(j->w, data, len, &se) < 0)
		return writer_failed(j, &se);
	j->done += (int64_t)len;
	progress_at(&j->bar, (double)j->done / 1e6, NULL);
	return 0;
}

static int not_finite(struct job *j, const char *file, const char *name)
{
	return err_set(j->e, EX_DATAERR, "%s: %s has a value that is not finite", file, name);
}

/* n rows as they are stored; of blocks, which are then published ones, whole panels. */
static bool finite(const char *rows, enum dtype t, int n, int cols)
{
	bool good = true;

	if (!dtype_blocks(t))
		return tensor_finite(rows, t, (size_t)n * (size_t)cols);
	for (int i = 0; i < quant_panels(n); i++, rows += quant_panel_bytes(t, cols))
		good &= published_finite(rows, t, cols);
	return good;
}

/* Packing noted what it wrote: it is compared with that. */
static int put_dense(struct job *j, const struct param *pa)
{
	uint32_t crc = 0, noted;
	struct stored s;
	int step, rc = stored_find(j->p->md, pa, &s, j->e);

	step = rc < 0 ? 0 : stored_step(&s, PACK_CHUNK);
	for (int row = 0; row < pa->rows && rc == 0; row += step) {
		int n = pa->rows - row < step ? pa->rows - row : step;

		rc = stored_read(&s, row, n, j->buf, j->e);
		if (rc == 0 && !finite(j->buf, s.type, n, pa->cols))
			rc = not_finite(j, s.file, pa->name);
		if (rc == 0)
			rc = put(j, j->buf, (size_t)stored_bytes(&s, n), &crc);
	}
	if (rc == 0 && manifest_dense(j->p->manifest, pa->name, &noted) && noted != crc)
		return err_set(j->e, EX_DATAERR, "%s: %s is corrupt (CRC-32 %08x, not %08x)",
		    j->p->md->path, pa->name, crc, noted);
	return rc;
}

/* ---- experts ---- */

/* Parameters come gate, up, down, expert after expert (config.h), so the CRC of an expert is
 * taken on its gate. */
static int put_packed(struct job *j, const struct param *pa)
{
	int rc = 0;
	size_t panel, step;
	struct st_error se;
	struct stored s;

	if ((param_part(pa) == 0 && packed_check(&j->experts, pa->layer, pa->expert, j->e) < 0) ||
	    packed_find(&j->experts, pa, &s, j->e) < 0)
		return -1;
	panel = mat_bytes(s.type, QUANT_PANEL, pa->cols);
	step = PACK_CHUNK / panel > 1 ? PACK_CHUNK / panel * panel : panel;
	for (uint64_t at = 0; at < s.t->nbytes && rc == 0; at += step) {
		size_t n = s.t->nbytes - at < step ? (size_t)(s.t->nbytes - at) : step;
		int row = (int)(at / panel) * QUANT_PANEL, left = pa->rows - row,
		    rows = (int)(step / panel) * QUANT_PANEL;

		if (st_read(s.st, s.t, at, j->buf, n, &se) < 0)
			rc = modeldir_st_err(j->e, s.file, &se);
		else if (!finite(j->buf, s.type, left < rows ? left : rows, pa->cols))
			rc = not_finite(j, s.file, s.t->name);
		else
			rc = put(j, j->buf, n, NULL);
	}
	return rc;
}

/* ---- the file ---- */

static int declare(struct job *j, const struct param *pa, struct st_error *se)
{
	enum dtype t = DT_F32;

	if (param_routed(pa))
		t = j->p->manifest->dt[param_part(pa)];
	else if (modeldir_type(j->p->md, pa, &t, j->e) < 0)
		return -1;
	j->p->bytes += (int64_t)mat_bytes(t, pa->rows, pa->cols);
	if (!param_routed(pa))
		j->p->dense_bytes += (int64_t)mat_bytes(t, pa->rows, pa->cols);
	return pack_declare(j->w, pa->name, pa, t, 0, se) < 0 ? writer_failed(j, se) : 0;
}

static int write_model(struct job *j)
{
	const struct params *ps = &j->p->md->par;
	struct st_error se;

	j->name = file_join(j->dir, "model.safetensors");
	if (!(j->w = st_writer_create(j->name, &se)))
		return writer_failed(j, &se);
	pack_meta(j->w, j->p, j->fingerprint);
	for (int i = 0; i < ps->n; i++)
		if (declare(j, &ps->p[i], &se) < 0)
			return -1;
	if (pack_fits(j->dir, j->p->out, j->p->bytes, j->e) < 0)
		return -1;
	if (st_writer_begin(j->w, &se) < 0)
		return writer_failed(j, &se);
	progress_start(&j->bar, "unpacking", "MB", (double)j->p->bytes / 1e6);
	for (int i = 0; i < ps->n; i++)
		if ((param_routed(&ps->p[i]) ? put_packed(j, &ps->p[i])
		    : put_dense(j, &ps->p[i])) < 0)
			return -1;
	if (st_writer_finish(j->w, &se) < 0) {
		j->w = NULL;
		return writer_failed(j, &se);
	}
	j->w = NULL;
	return 0;
}

/* ---- all of it ---- */

/* Did packing leave every type as it was? */
static bool types_kept(const struct manifest *m)
{
	const char *was = json_string_value(json_object_get(m->raw, "model_dtype"));

	return was && json_integer_value(json_object_get(m->raw, "dense_converted")) == 0 &&
	    strcmp(was, dtype_name(m->dt[0])) == 0 && m->dt[0] == m->dt[1] && m->dt[0] == m->dt[2];
}

/* Blocks that were rounded do not give back what they were made of. */
static const char *quantised(const struct pack *p)
{
	const struct params *ps = &p->md->par;
	struct err e;
	enum dtype t;

	for (int i = 0; i < ps->n; i++)
		if (param_routed(&ps->p[i]) ? dtype_rounded(p->manifest->dt[param_part(&ps->p[i])])
		    : modeldir_type(p->md, &ps->p[i], &t, &e) == 0 && dtype_rounded(t))
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

/* Bytes of the largest piece that is read at a time. */
static int take_buffer(struct job *j)
{
	const struct params *ps = &j->p->md->par;
	struct stored s;

	j->size = PACK_CHUNK;
	for (int i = 0; i < ps->n; i++) {
		if (param_routed(&ps->p[i]))
			continue;
		if (stored_find(j->p->md, &ps->p[i], &s, j->e) < 0)
			return -1;
		j->size = (size_t)mem_max((int64_t)j->size,
		    stored_bytes(&s, stored_step(&s, PACK_CHUNK)));
	}
	for (int i = 0; i < 3; i++)
		j->size = (size_t)mem_max((int64_t)j->size, (int64_t)mat_bytes(
		    j->p->manifest->dt[i], QUANT_PANEL, i == 2 ? j->p->md->cfg.moe_intermediate_size
		    : j->p->md->cfg.hidden_size));
	j->buf = mem_alloc(j->size);
	return packed_open(&j->experts, j->p->md, j->p->manifest, j->e);
}

static void drop(struct job *j)
{
	st_writer_abort(j->w);
	progress_end(&j->bar);
	packed_close(&j->experts);
	free(j->name);
	mem_free(j->buf);
}

int pack_undo(struct pack *p, struct err *e)
{
	struct job j = { .p = p, .e = e };
	const struct manifest *m = p->manifest;
	struct outdir d;
	int rc;

	if (!p->md->packed || !m->packed)
		return err_set(e, EX_DATAERR, "%s is not a packed model", p->md->path);
	if (pack_check_manifest(p, e) < 0)
		return -1;
	if (quantised(p))
		return err_set(e, EX_DATAERR, "%s: %s is quantised: what it was made from cannot "
		    "be given back", p->md->path,
		    quantised(p));
	j.fingerprint = types_kept(m) ? m->fingerprint : NULL;
	memcpy(p->dt, m->dt, sizeof p->dt);
	p->experts = p->md->cfg.num_sparse * m->experts;
	if (outdir_begin(&d, p->out, p->md->path, p->force, e) < 0)
		return -1;
	j.dir = d.tmp;
	rc = take_buffer(&j) < 0 || write_model(&j) < 0 ||
	    pack_side_files(p, d.tmp, j.fingerprint != NULL, e) < 0 || check_identity(&j) < 0 ? -1
	    : 0;
	drop(&j);
	if (rc == 0)
		return outdir_commit(&d, e);
	outdir_abort(&d);
	return -1;
}
