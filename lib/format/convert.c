#include "format/convert.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "arch/arch.h"
#include "backend/quant.h"
#include "base/file.h"
#include "base/outdir.h"
#include "base/progress.h"
#include "base/sig.h"
#include "format/export.h"
#include "format/gguf_model.h"
#include "format/sidefiles.h"
#include "format/stored.h"

struct job {
	struct convert *c;
	struct progress bar;
	int64_t done;
};

/* ---- what will be written ---- */

/* What a parameter of what is written is in what is read. */
static const struct param *source(const struct convert *c, const struct param *p)
{
	return params_get(&c->md->par, p->kind, p->layer, p->expert);
}

/* The type that parameter p has, and the one that it will have. */
static int types_of(const struct convert *c, const struct param *p, enum dtype *was,
    enum dtype *t, struct err *e)
{
	if (modeldir_type(c->md, source(c, p), was, e) < 0)
		return -1;
	*t = c->dtype >= 0 ? (enum dtype)c->dtype : dtype_blocks(*was) || *was == DT_F64 ? DT_F32 :
	    *was;
	return 0;
}

static void count_copies(struct convert *c)
{
	const struct st_tensor *t;

	for (int i = 0; i < c->md->nfiles; i++)
		for (size_t k = 0; (t = st_at(c->md->st[i], k)); k++) {
			if (modeldir_padding(t->name))
				continue;
			c->tensors++;
			c->bytes += (int64_t)t->nbytes;
		}
}

static int count_params(struct convert *c, struct err *e)
{
	enum dtype t, was;

	for (int i = 0; i < c->ps->n; i++) {
		const struct param *p = &c->ps->p[i];

		if (types_of(c, p, &was, &t, e) < 0)
			return -1;
		c->tensors++;
		c->bytes += (int64_t)mat_bytes(t, p->rows, p->cols);
		c->changed += t != was;
	}
	return 0;
}

/* What is written is another model, or the same in another form. */
static int plan_export(struct convert *c, struct err *e)
{
	if (!(c->config = export_config(&c->md->cfg, c->md->path, &c->python, e)) ||
	    config_from_json(&c->own_cfg, c->config, 0, NULL, e) < 0)
		return -1;
	c->cfg = &c->own_cfg;
	if (params_build(&c->own_ps, &c->own_cfg, e) < 0)
		return -1;
	c->ps = &c->own_ps;
	c->left_out = c->md->par.n - c->ps->n;
	return 0;
}

static int plan_gguf(struct convert *c, struct err *e)
{
	c->gguf = (struct gguf_save){ .md = c->md, .out = c->out, .force = c->force,
	    .type = c->dtype < 0 ? -1 : gguf_type_of((enum dtype)c->dtype), .meta = c->meta };
	if (c->keys(c->md, &c->gguf_keys, e) < 0)
		return -1;
	c->gguf.keys = c->gguf_keys;
	if (gguf_save_plan(&c->gguf, e) < 0)
		return -1;
	c->tensors = c->gguf.tensors;
	c->bytes = c->gguf.bytes;
	c->changed = c->gguf.changed;
	c->left_out = c->gguf.left_out;
	return 0;
}

static bool other_form(const struct convert *c)
{
	for (int i = 0; i < c->ps->n; i++)
		if (!stored_as_published(c->md, &c->ps->p[i]))
			return true;
	return false;
}

int convert_plan(struct convert *c, struct err *e)
{
	if (c->to == CONVERT_GGUF)
		return plan_gguf(c, e);
	if (c->md->packed)
		return err_set(e, EX_DATAERR, "%s is packed (chr-pack --unpack undoes it)",
		    c->md->path);
	c->cfg = &c->md->cfg;
	c->ps = &c->md->par;
	if (c->to == CONVERT_HF && !export_published(&c->md->cfg) && plan_export(c, e) < 0)
		return -1;
	c->copies = c->dtype < 0 && !c->config && !c->md->gguf && !(c->to == CONVERT_HF &&
	    other_form(c));
	if (!c->copies)
		return count_params(c, e);
	count_copies(c);
	return 0;
}

/* ---- writing ---- */

/* Tells this job from others: what is read, as it is now, and what is asked for. */
static char *job_text(const struct convert *c, struct err *e)
{
	char *from = realpath(c->md->path, NULL), *text = NULL;
	json_t *model = modeldir_state(c->md, e), *o = model ? json_pack("{s:s?, s:i, s:b, s:I, "
	    "s:o}", "source", from, "dtype", c->dtype, "hf", c->to == CONVERT_HF, "shard_size",
	    (json_int_t)c->shard_size, "model", model) : NULL;

	if (model && !(text = json_dumps(o, JSON_COMPACT)))
		err_set(e, EX_OSERR, "out of memory");
	json_decref(o);
	free(from);
	return text;
}

static int give_rows(void *ctx, int i, int row, int n, float *dst, struct err *e)
{
	const struct job *j = ctx;
	const struct modeldir *md = j->c->md;

	return modeldir_read_rows_f32(md, source(j->c, &j->c->ps->p[i]), row, n, dst, e);
}

static int tick(void *ctx, int64_t bytes, struct err *e)
{
	struct job *j = ctx;

	j->done += bytes;
	progress_at(&j->bar, (double)j->done / 1e6, NULL);
	return sig_stop ? err_set(e, EX_TEMPFAIL, "stopped by signal %d: %s", (int)sig_stop,
	    j->c->to == CONVERT_GGUF ? "nothing was written" : "the same command goes on") : 0;
}

static int write_params(struct job *j, const char *dir, struct modeldir_out *o, struct err *e)
{
	const struct params *ps = j->c->ps;
	enum dtype was, *types = malloc((size_t)ps->n * sizeof *types);
	int rc = types ? 0 : err_set(e, EX_OSERR, "out of memory");

	for (int i = 0; i < ps->n && rc == 0; i++)
		rc = types_of(j->c, &ps->p[i], &was, &types[i], e);
	o->types = types;
	o->dtype = rc == 0 ? types[0] : DT_F32;
	o->rows = give_rows;
	if (rc == 0)
		rc = modeldir_save(dir, j->c->cfg, ps, NULL, o, NULL, e);
	free(types);
	return rc;
}

/* What stands beside the weights; config.json is there where parameters were written. */
static int beside(const struct convert *c, const char *dir, struct err *e)
{
	if (c->md->gguf && !gguf_value(c->md->gguf->g[0], "tokenizer.ggml.model"))
		return 0;
	if (c->md->gguf)
		return c->tokenizer(c->md->path, dir, e);
	if (c->copies)
		return sidefiles_model(c->md, dir, NULL, e);
	if (sidefiles_copy(c->md->path, dir, e) < 0)
		return -1;
	return c->config && c->md->cfg.arch == &arch_chronos
	    ? export_tokenizer(dir, c->md->cfg.bos_token_id, e) : 0;
}

static int write_all(struct job *j, const char *dir, struct err *e)
{
	struct modeldir_out o = { .shard_size = j->c->shard_size, .meta = j->c->meta,
	    .config = j->c->config, .unprinted = true, .keep = true, .tick = tick, .ctx = j };

	if (j->c->copies ? modeldir_copy(dir, j->c->md, &o, e) < 0 : write_params(j, dir, &o, e)
	    < 0)
		return -1;
	if (j->c->python && export_python(dir, e) < 0)
		return -1;
	return beside(j->c, dir, e);
}

static int write_gguf(struct convert *c, struct err *e)
{
	struct job j = { .c = c };
	int rc;

	c->gguf.tick = tick;
	c->gguf.ctx = &j;
	progress_start(&j.bar, "converting", "MB", (double)c->bytes / 1e6);
	rc = gguf_save_write(&c->gguf, e);
	progress_end(&j.bar);
	return rc;
}

static int write_dir(struct convert *c, struct err *e)
{
	struct job j = { .c = c };
	char *text = job_text(c, e);
	struct outdir d;
	int rc = text ? outdir_resume(&d, c->out, c->md->path, c->force, text, e) : -1;

	free(text);
	if (rc < 0)
		return -1;
	c->resumed = d.resumed;
	progress_start(&j.bar, "converting", "MB", (double)c->bytes / 1e6);
	rc = write_all(&j, d.tmp, e);
	progress_end(&j.bar);
	if (rc == 0)
		return outdir_commit(&d, e);
	if (e->status == EX_DATAERR)	/* the same again would come of it */
		outdir_abort(&d);
	else
		outdir_leave(&d);
	return -1;
}

int convert_write(struct convert *c, struct err *e)
{
	return c->to == CONVERT_GGUF ? write_gguf(c, e) : write_dir(c, e);
}

void convert_end(struct convert *c)
{
	if (c->to == CONVERT_GGUF)
		gguf_save_end(&c->gguf);
	json_decref(c->gguf_keys);
	if (c->ps == &c->own_ps)
		params_free(&c->own_ps);
	if (c->cfg == &c->own_cfg)
		config_free(&c->own_cfg);
	json_decref(c->config);
}
