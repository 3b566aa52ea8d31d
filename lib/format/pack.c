#include "format/pack.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <zlib.h>

#include "base/file.h"
#include "base/jsonfile.h"
#include "base/opt.h"
#include "base/outdir.h"
#include "format/pack_int.h"
#include "format/sidefiles.h"

static const enum param_kind kinds[3] = { P_EXP_GATE, P_EXP_UP, P_EXP_DOWN };
static const char *const part_name[3] = { "gate_proj", "up_proj", "down_proj" };

enum st_dtype pack_st_type(enum dtype t)
{
	return (enum st_dtype)st_dtype_parse(dtype_name(t));
}

void pack_ctsr_key(char key[64], int layer, int expert, int i)
{
	snprintf(key, 64, "l%d_e%d__%s.weight", layer, expert, part_name[i]);
}

/* ---- the work ---- */

static int add_part(struct pack_job *j, const struct param *pa, struct err *e)
{
	struct pack_part *pt = &j->part[j->nparts];

	*pt = (struct pack_part){ .pa = pa };
	if (modeldir_type(j->p->md, pa, &pt->was, e) < 0 || pack_type(j->p, pa, &pt->to, e) < 0)
		return -1;
	j->file[j->nfiles - 1].n++;
	j->nparts++;
	return 0;
}

static void add_file(struct pack_job *j, int cluster)
{
	j->file[j->nfiles++] = (struct pack_file){ .cluster = cluster, .first = j->nparts };
}

static int add_clusters(struct pack_job *j, struct err *e)
{
	const struct manifest *m = j->p->manifest;
	int *order, *start, rc = 0;

	j->p->experts = manifest_order(m, &order, &start, e);
	if (j->p->experts < 0)
		return -1;
	for (int k = 0; k < m->nclusters; k++) {
		add_file(j, k);
		snprintf(j->file[k].name, sizeof j->file[k].name, "%s", m->file[k]);
		for (int i = start[k]; i < start[k + 1]; i++)
			for (int h = 0; h < 3 && rc == 0; h++)
				rc = add_part(j, params_get(&j->p->md->par, kinds[h],
				    order[i] / m->experts, order[i] % m->experts), e);
	}
	free(order);
	free(start);
	return rc;
}

/* All other parameters: one file, or shards where they are many. */
static int add_dense(struct pack_job *j, struct err *e)
{
	const struct params *ps = &j->p->md->par;
	int first = j->nfiles;
	int64_t size = 0;

	for (int i = 0; i < ps->n; i++) {
		const struct param *pa = &ps->p[i];
		enum dtype t;
		int64_t bytes;

		if (param_routed(pa))
			continue;
		if (pack_type(j->p, pa, &t, e) < 0)
			return -1;
		bytes = (int64_t)mat_bytes(t, pa->rows, pa->cols);
		if (size == 0 || (j->p->shard_size && size + bytes > j->p->shard_size)) {
			add_file(j, -1);
			size = 0;
		}
		if (add_part(j, pa, e) < 0)
			return -1;
		size += bytes;
		j->p->dense_bytes += bytes;
	}
	for (int k = first; k < j->nfiles; k++)
		if (j->nfiles - first == 1)
			snprintf(j->file[k].name, sizeof j->file[k].name, "model.safetensors");
		else
			snprintf(j->file[k].name, sizeof j->file[k].name,
			    "model-%05d-of-%05d.safetensors", k - first + 1, j->nfiles - first);
	return 0;
}

static int list_work(struct pack_job *j, struct err *e)
{
	const struct manifest *m = j->p->manifest;
	size_t n = (size_t)j->p->md->par.n;

	j->part = calloc(n + 1, sizeof *j->part);
	j->file = calloc(n + 1 + (m ? (size_t)m->nclusters : 0), sizeof *j->file);
	if (!j->part || !j->file)
		return err_set(e, EX_OSERR, "out of memory");
	return (m && add_clusters(j, e) < 0) || add_dense(j, e) < 0 ? -1 : 0;
}

int pack_plan(struct pack *p, struct mem_plan *plan, int64_t limit, struct err *e)
{
	struct pack_job *j = calloc(1, sizeof *j);

	if (!j)
		return err_set(e, EX_OSERR, "out of memory");
	*j = (struct pack_job){ .p = p, .journal = -1 };
	p->job = j;
	snprintf(j->model, sizeof j->model, "%s", p->fingerprint);
	snprintf(j->self, sizeof j->self, "%s", p->manifest ? j->model : PACK_TOKEN_SELF);
	return list_work(j, e) < 0 || pack_pipe_plan(j, plan, limit, e) < 0 ? -1 : 0;
}

void pack_free(struct pack *p)
{
	if (!p->job)
		return;
	free(p->job->part);
	free(p->job->file);
	free(p->job);
	p->job = NULL;
}

/* ---- files ---- */

int pack_declare(struct st_writer *w, const char *key, const struct param *pa, enum dtype t,
    size_t align, struct st_error *se)
{
	uint64_t shape[2] = { (uint64_t)pa->rows, (uint64_t)pa->cols },
	    bytes = mat_bytes(t, pa->rows, pa->cols);
	char name[128], value[64];

	if (!dtype_blocks(t))
		return st_writer_add(w, key, pack_st_type(t), pa->ndim, shape, align, se);
	snprintf(name, sizeof name, "quant.%s", key);
	snprintf(value, sizeof value, "%s %d %d", dtype_name(t), pa->rows, pa->cols);
	st_writer_meta(w, name, value, se);
	return st_writer_add(w, key, ST_U8, 1, &bytes, align ? align : 64, se);
}

void pack_meta(struct st_writer *w, const struct pack *p, const char *fingerprint)
{
	struct st_error se;
	const char *key;
	json_t *value;

	st_writer_meta(w, "format", "pt", &se);
	if (fingerprint)
		st_writer_meta(w, "chronos.fingerprint", fingerprint, &se);
	json_object_foreach((json_t *)(uintptr_t)p->meta, key, value)
		if (json_is_string(value) && strcmp(key, "format") != 0 &&
		    strcmp(key, "chronos.fingerprint") != 0 && strncmp(key, "quant.", 6) != 0)
			st_writer_meta(w, key, json_string_value(value), &se);
}

/* Metadata and tensors of a cluster file. */
static void declare_cluster(struct pack_job *j, const struct pack_file *f, struct st_writer *w,
    struct st_error *se)
{
	char text[64];

	snprintf(text, sizeof text, "%d", f->cluster);
	st_writer_meta(w, "format", "pt", se);
	st_writer_meta(w, "chronos.cluster", text, se);
	st_writer_meta(w, "chronos.fingerprint", j->self, se);
	for (int i = 0; i < f->n; i++) {
		const struct pack_part *pt = &j->part[f->first + i];

		pack_ctsr_key(text, pt->pa->layer, pt->pa->expert, param_part(pt->pa));
		pack_declare(w, text, pt->pa, pt->to, param_part(pt->pa) ? 0 : MANIFEST_ALIGN, se);
	}
	st_writer_pad(w, MANIFEST_ALIGN, se);
}

struct st_writer *pack_begin_file(struct pack_job *j, const struct pack_file *f, struct err *e)
{
	char *path = file_join(j->dir, f->name);
	struct st_error se;
	struct st_writer *w = st_writer_create(path, &se);

	if (w && f->cluster >= 0) {
		declare_cluster(j, f, w, &se);
	} else if (w) {
		pack_meta(w, j->p, j->self);
		for (int i = 0; i < f->n; i++) {
			const struct pack_part *pt = &j->part[f->first + i];

			pack_declare(w, pt->pa->name, pt->pa, pt->to, 0, &se);
		}
	}
	if (!w || st_writer_begin(w, &se) < 0) {
		modeldir_st_err(e, path, &se);
		st_writer_abort(w);
		w = NULL;
	}
	for (int i = 0; w && i < f->n; i++)
		j->part[f->first + i].offset = (int64_t)st_writer_offset(w, (size_t)i);
	free(path);
	return w;
}

/* The index of shards, where there are several. */
static int put_index(const struct pack_job *j, struct err *e)
{
	json_t *map = json_object();
	int shards = 0;

	for (int k = 0; k < j->nfiles; k++) {
		shards += j->file[k].cluster < 0;
		for (int i = 0; j->file[k].cluster < 0 && i < j->file[k].n; i++)
			json_object_set_new(map, j->part[j->file[k].first + i].pa->name,
			    json_string(j->file[k].name));
	}
	if (shards < 2) {
		json_decref(map);
		return 0;
	}
	return jsonfile_put(j->dir, MODELDIR_INDEX, json_pack("{s:{s:I}, s:o}", "metadata",
	    "total_size", (json_int_t)j->p->dense_bytes, "weight_map", map), JSON_INDENT(2), e);
}

int pack_side_files(const struct pack *p, const char *dir, bool same_weights, struct err *e)
{
	const char *from = p->md->path;

	if (same_weights && !p->md->gguf && (sidefiles_copy_one(from, dir, INTENT_NAME, e) < 0 ||
	    sidefiles_copy_one(from, dir, FORESEE_NAME, e) < 0))
		return -1;
	return sidefiles_model(p->md, dir, p->tokenizer, e);
}

/* ---- the manifest ---- */

/* Where the expert lies whose gate this is; its up and down follow. */
static void note_expert(struct manifest *m, const struct pack_part *gate)
{
	struct place *pl = manifest_at(m, gate->pa->layer, gate->pa->expert);

	pl->offset = gate->offset;
	pl->bytes = m->gate_bytes + m->up_bytes + m->down_bytes;
	pl->crc = (uint32_t)crc32_combine(crc32_combine(gate->crc, gate[1].crc, m->up_bytes),
	    gate[2].crc, m->down_bytes);
}

static int put_manifest(struct pack_job *j, struct err *e)
{
	struct manifest *m = j->p->manifest;
	int was = j->p->model_dtype, converted = 0;

	free(m->fingerprint);
	if (!(m->fingerprint = strdup(j->model)))
		return err_set(e, EX_OSERR, "out of memory");
	m->packed = true;
	manifest_clear_dense(m);
	memcpy(m->dt, j->p->dt, sizeof m->dt);
	m->gate_bytes = (int64_t)pack_bytes(&j->part[0]);
	m->up_bytes = (int64_t)pack_bytes(&j->part[1]);
	m->down_bytes = (int64_t)pack_bytes(&j->part[2]);
	for (int i = 0; i < j->nparts; i++) {
		const struct pack_part *pt = &j->part[i];

		if (!param_routed(pt->pa)) {
			manifest_set_dense(m, pt->pa->name, pt->crc);
			converted += pt->was != pt->to;
		} else if (param_part(pt->pa) == 0) {
			note_expert(m, pt);
		}
	}
	/* Unpacking gives back the model, fingerprint and all, when this equals dtype and
	 * nothing else was converted. */
	json_object_set_new(m->raw, "model_dtype", was < 0 ? json_null()
	    : json_string(dtype_name((enum dtype)was)));
	json_object_set_new(m->raw, "dense_converted", json_integer(converted));
	return jsonfile_put(j->dir, MANIFEST_NAME, manifest_json(m), JSON_COMPACT, e);
}

/* ---- all of it ---- */

int pack_fits(const char *dir, const char *out, int64_t bytes, struct err *e)
{
	struct statvfs fs;
	double left = statvfs(dir, &fs) == 0 ? (double)fs.f_bavail * (double)fs.f_frsize : -1;

	if (left < 0 || left >= (double)bytes)
		return 0;
	return err_set(e, EX_CANTCREAT, "%s needs %lld bytes, its file system has %.0f left", out,
	    (long long)bytes, left);
}

/* What is said of the work, from all parts. */
static void add_up(struct pack_job *j)
{
	struct pack *p = j->p;
	int64_t one = p->manifest ? pack_expert_bytes(p) : 0;

	for (int i = 0; i < j->nparts; i++) {
		const struct pack_part *pt = &j->part[i];
		struct pack_sum *sum = &p->by[pt->to];

		sum->tensors++;
		sum->bytes += (int64_t)pack_bytes(pt);
		p->source_bytes += pt->stored;
		if (pt->was == pt->to)
			continue;
		sum->converted++;
		sum->error += pt->error;
		sum->square += pt->square;
		if (pt->square > 0 && sqrt(pt->error / pt->square) > p->worst) {
			p->worst = sqrt(pt->error / pt->square);
			p->worst_name = pt->pa->name;
			p->worst_type = pt->to;
		}
	}
	p->bytes = one * p->experts;
	p->padding = (manifest_align(one) - one) * p->experts;
}

static int write_all(struct pack_job *j, struct err *e)
{
	int64_t left = 0, all = 0;

	for (int k = 0; k < j->nfiles; k++)
		for (int i = 0; i < j->file[k].n; i++) {
			const struct pack_part *pt = &j->part[j->file[k].first + i];

			left += j->file[k].done ? 0 : (int64_t)pack_bytes(pt);
			all += pt->stored;
		}
	if (pack_fits(j->dir, j->p->out, left, e) < 0)
		return -1;
	progress_start(&j->bar, "packing", "MB", (double)all / 1e6);
	if (pack_pipe(j, e) < 0 || pack_journal_prints(j, e) < 0 ||
	    pack_check_print(j->p, j->model, e) < 0)
		return -1;
	add_up(j);
	memcpy(j->p->fingerprint, j->p->manifest ? j->model : j->self, sizeof j->model);
	return (j->p->manifest && put_manifest(j, e) < 0) || put_index(j, e) < 0 ||
	    pack_side_files(j->p, j->dir, j->p->manifest != NULL, e) < 0 ? -1 : 0;
}

/* What is complete stays for the next run, unless that would fail as well. */
static int give_up(const struct pack_job *j, struct outdir *d, struct err *e)
{
	int done = 0;
	struct err why = *e;

	for (int k = 0; k < j->nfiles; k++)
		done += j->file[k].done;
	if (done && (e->status == EX_TEMPFAIL || e->status == EX_IOERR || e->status == EX_OSERR ||
	    e->status == EX_CANTCREAT)) {
		err_set(e, why.status, "%s; %d of %d files are complete in %s: the same command "
		    "goes on from there", why.msg, done, j->nfiles, d->tmp);
		outdir_leave(d);
		return -1;
	}
	if (e->status == EX_TEMPFAIL)
		err_set(e, why.status, "%s, nothing was written", why.msg);
	outdir_abort(d);
	return -1;
}

static int commit(struct outdir *d, struct err *e)
{
	char *journal = file_join(d->path, PACK_JOURNAL);
	int rc = outdir_commit(d, e);

	/* Last, so that at no moment what is complete could be taken for what is not. */
	if (rc == 0 && unlink(journal) < 0)
		rc = err_set(e, EX_IOERR, "%s:", journal);
	free(journal);
	return rc;
}

int pack_write(struct pack *p, struct err *e)
{
	struct pack_job *j = p->job;
	char text[65];
	struct outdir d;
	int rc;

	if (pack_job_text(j, text, e) < 0 ||
	    outdir_resume(&d, p->out, p->md->path, p->force, text, e) < 0)
		return -1;
	j->dir = d.tmp;
	if (pack_journal_open(j, &p->resumed, e) < 0) {
		pack_journal_close(j);
		outdir_leave(&d);
		return -1;
	}
	if (p->resumed && !opt_quiet)
		err_warn("goes on: %d of %d files are complete in %s", p->resumed, j->nfiles,
		    d.tmp);
	rc = write_all(j, e);
	progress_end(&j->bar);
	pack_journal_close(j);
	return rc < 0 ? give_up(j, &d, e) : commit(&d, e);
}
