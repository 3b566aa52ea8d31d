#include "format/gguf_save.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/quant.h"
#include "base/file.h"
#include "format/gguf_rows.h"
#include "format/pack_int.h"
#include "format/stored.h"

#define CHUNK ((int64_t)1 << 20)	/* bytes of float32 in memory at a time */

struct gguf_tensor_out {
	int param;			/* the first that it holds, of md */
	const struct param_name *as;
	enum gguf_type type;
	int out, second;		/* numbers in the file; second: -1, or of the other half */
};

/* Work on one tensor. */
struct writing {
	struct gguf_save *s;
	const struct gguf_tensor_out *t;
	struct stored from;
	struct gguf_rows rows;
	uint64_t row_bytes, base;	/* base: of this parameter in the tensor */
	float *x, *y;			/* rows as they are read, and in another order */
	char *panels, *buf;		/* in blocks of ours; as they are written */
	struct err *e;
};

/* ---- which tensors, of which type ---- */

static const struct config *config_of(const struct gguf_save *s)
{
	return &s->md->cfg;
}

/* Where parameter p lies. */
static int find(struct gguf_save *s, const struct param *p, struct stored *from, struct err *e)
{
	return s->md->packed && param_routed(p) ? packed_find(&s->experts, p, from, e) :
	    stored_find(s->md, p, from, e);
}

/* What llama.cpp reads as float32 only. */
static bool exact(const struct param *p)
{
	return p->ndim == 1 || p->rows == 1 || p->kind == P_GATE || p->kind == P_CONV ||
	    param_is(p, PARAM_BIAS);
}

/* Columns that are moved tear blocks apart. */
static bool torn(const struct param_name *as)
{
	return as->how & (AT_ACROSS | AT_KV_APART);
}

static enum gguf_type float_of(enum dtype was)
{
	int t = dtype_blocks(was) ? GGUF_F32 : gguf_type_of(was);

	return t < 0 ? GGUF_F32 : (enum gguf_type)t;
}

static bool block_type(int t)
{
	return t >= 0 && gguf_block_values((uint32_t)t) > 1;
}

static enum gguf_type choose(struct gguf_save *s, const struct param *p,
    const struct param_name *as, enum dtype was)
{
	int want = s->type < 0 ? gguf_type_of(was) : s->type;
	bool whole = p->cols % QUANT_BLOCK == 0;

	if (exact(p))
		return GGUF_F32;
	if (want < 0)
		return GGUF_F32;
	if (!block_type(want))
		return (enum gguf_type)want;
	if (!whole && param_is(p, PARAM_QUANTISES) && s->narrow++ == 0)
		snprintf(s->narrow_first, sizeof s->narrow_first, "%s", p->name);
	if (!whole || !param_is(p, PARAM_QUANTISES) || (s->type < 0 && torn(as)))
		return float_of(was);
	return (enum gguf_type)want;
}

static int shape_of(const struct gguf_save *s, const struct param *p, const struct param_name *as,
    bool second, uint64_t shape[3])
{
	const struct config *c = config_of(s);
	const struct block *b = p->layer < 0 ? NULL : &c->block[p->layer];
	int n = 0;

	if (as->how & AT_KV_APART) {
		shape[0] = (uint64_t)c->num_attention_heads;
		shape[1] = second ? (uint64_t)b->value : (uint64_t)p->cols;
		shape[2] = second ? (uint64_t)p->cols : (uint64_t)b->nope;
		return 3;
	}
	if (as->how & AT_STACKED)
		shape[n++] = (uint64_t)c->num_experts;
	if (as->how & AT_QKVZ_APART)
		shape[n++] = (uint64_t)(second ? b->delta.H * b->delta.dv :
		    (int)block_delta_width(b));
	else if (p->rows > 1 || p->ndim == 1 || n > 0)
		shape[n++] = (uint64_t)p->rows;
	if (p->ndim == 2)
		shape[n++] = (uint64_t)p->cols;
	return n;
}

static int declare(struct gguf_save *s, const struct gguf_tensor_out *t, const char *format,
    bool second)
{
	const struct param *p = &s->md->par.p[t->param];
	uint64_t shape[3];
	char name[sizeof p->name];
	int n = shape_of(s, p, t->as, second, shape);

	snprintf(name, sizeof name, format, p->layer);
	return gguf_out_tensor(&s->o, name, t->type, n, shape);
}

/* Parameter i, or that of all experts where they have one tensor: *was is the type that they are
 * stored in, float32 where that is not one, which holds them all. */
static int stored_as(struct gguf_save *s, int i, const struct param_name *as,
    enum dtype *was, struct err *e)
{
	const struct param *p = &s->md->par.p[i];
	int n = as->how & AT_STACKED ? config_of(s)->num_experts : 1;
	struct stored from;

	for (int k = 0; k < n; k++) {
		if (find(s, n > 1 ? params_get(&s->md->par, p->kind, p->layer, k) : p, &from, e)
		    < 0)
			return -1;
		*was = k == 0 || *was == from.type ? from.type : DT_F32;
	}
	return 0;
}

static int add(struct gguf_save *s, int i, const struct param_name *as, struct err *e)
{
	const struct param *p = &s->md->par.p[i];
	struct gguf_tensor_out *t = &s->t[s->n];
	enum dtype was = DT_F32;

	if (as->how & AT_STACKED && p->expert > 0)
		return 0;
	if (stored_as(s, i, as, &was, e) < 0)
		return -1;
	*t = (struct gguf_tensor_out){ .param = i, .as = as, .second = -1 };
	t->type = choose(s, p, as, was);
	t->out = declare(s, t, as->name, false);
	if (as->how & (AT_KV_APART | AT_QKVZ_APART))
		t->second = declare(s, t, as[1].name, true);
	if (gguf_type_of(was) != (int)t->type)
		s->changed += as->how & AT_STACKED ? config_of(s)->num_experts : 1;
	s->n++;
	return 0;
}

/* A tied model for an architecture that wants a head of its own. */
static const struct param_name *head_name(const struct gguf_save *s)
{
	return gguf_meta_name(&s->m, P_HEAD);
}

static int plan_tensors(struct gguf_save *s, struct err *e)
{
	const struct params *ps = &s->md->par;

	s->t = calloc((size_t)ps->n + 1, sizeof *s->t);
	if (!s->t)
		return err_set(e, EX_OSERR, "out of memory");
	for (int i = 0; i < ps->n; i++) {
		const struct param *p = &ps->p[i];
		const struct param_name *as = gguf_meta_name(&s->m, p->kind);

		if (!as && param_is(p, PARAM_LOOK))
			s->left_out++;
		else if (!as)
			return err_set(e, EX_DATAERR, "%s: architecture \"%s\" of llama.cpp has no "
			    "place for %s", s->md->path, s->m.arch, p->name);
		else if (add(s, i, as, e) < 0 || (p->kind == P_EMBED && s->m.head &&
		    add(s, i, head_name(s), e) < 0))
			return -1;
	}
	return 0;
}

/* ---- metadata ---- */

/* As llama.cpp numbers what most of a file is of. */
static int file_type(const struct gguf_save *s)
{
	static const struct { enum gguf_type t; int number; } numbers[] = { { GGUF_F32, 0 },
	    { GGUF_F16, 1 }, { GGUF_Q4_0, 2 }, { GGUF_Q4_1, 3 }, { GGUF_Q8_0, 7 },
	    { GGUF_BF16, 32 }, { GGUF_MXFP4, 38 } };
	double most = 0, values[sizeof numbers / sizeof *numbers] = { 0 };
	int best = 0;

	for (int k = 0; k < s->n; k++) {
		const struct param *p = &s->md->par.p[s->t[k].param];
		double n = (double)param_size(p) * (p->expert < 0 ? 1 : config_of(s)->num_experts);

		for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
			if (numbers[i].t == s->t[k].type && (values[i] += n) > most) {
				most = values[i];
				best = numbers[i].number;
			}
	}
	return best;
}

static json_t *general(const struct gguf_save *s)
{
	char *name = file_last(s->md->path);
	json_t *o = json_object();
	bool blocks = false;

	json_object_set_new(o, "general.type", json_string("model"));
	json_object_set_new(o, "general.name", json_string(name));
	free(name);
	json_object_set_new(o, "general.file_type", json_integer(file_type(s)));
	for (int k = 0; k < s->n; k++)
		blocks |= block_type(s->t[k].type);
	if (blocks)
		json_object_set_new(o, "general.quantization_version", json_integer(2));
	return o;
}

static void put_values(struct gguf_save *s)
{
	json_t *o = general(s);

	gguf_out_values(&s->o, s->m.keys);
	gguf_out_values(&s->o, o);
	if (s->keys)
		gguf_out_values(&s->o, s->keys);
	if (s->meta)
		gguf_out_values(&s->o, s->meta);
	json_decref(o);
}

static int open_packed(struct gguf_save *s, struct err *e)
{
	struct pack p = { .manifest = &s->manifest };

	if (!s->md->packed)
		return 0;
	if (manifest_load_dir(&s->manifest, s->md->path, e) < 0)
		return -1;
	p.md = (struct modeldir *)s->md;
	if (packed_open(&s->experts, s->md, &s->manifest, e) < 0)
		return -1;
	return s->manifest.packed ? pack_check_manifest(&p, e) : err_set(e, EX_DATAERR,
	    "%s is not a packed model", s->md->path);
}

int gguf_save_plan(struct gguf_save *s, struct err *e)
{
	uint64_t n;

	gguf_out_init(&s->o);
	if (open_packed(s, e) < 0)
		return -1;
	if (gguf_meta(config_of(s), &s->md->par, s->md->path, &s->m, e) < 0 || plan_tensors(s, e)
	    < 0)
		return -1;
	n = (uint64_t)s->m.n_freqs;
	if (n > 0)			/* the last one */
		gguf_out_tensor(&s->o, "rope_freqs.weight", GGUF_F32, 1, &n);
	put_values(s);
	s->tensors = (int64_t)s->o.ntensors;
	s->bytes = (int64_t)gguf_out_bytes(&s->o);
	return 0;
}

/* ---- values ---- */

static bool panelled(const struct writing *w)
{
	return block_type(w->t->type);
}

/* Are rows written as the bits that are read? */
static bool same_bits(const struct writing *w)
{
	return gguf_type_of(w->from.type) == (int)w->t->type &&
	    !(w->t->as->how & (AT_PLUS_ONE | AT_EXP)) && !torn(w->t->as);
}

static const struct param *param_of(const struct writing *w)
{
	return &w->s->md->par.p[w->t->param];
}

static int too_large(const struct writing *w)
{
	return err_set(w->e, EX_DATAERR, "%s has a value that is too large for %s: nothing is "
	    "written", param_of(w)->name, gguf_type_name(w->t->type));
}

static enum dtype dtype_of(enum gguf_type t)
{
	for (int d = 0; d < DTYPES; d++)
		if (gguf_type_of((enum dtype)d) == (int)t)
			return (enum dtype)d;
	return DT_F32;
}

/* n rows of panels into w->buf. */
static void from_panels(const struct writing *w, int n)
{
	enum dtype d = dtype_of(w->t->type);
	size_t panel = quant_panel_bytes(d, w->from.cols);

	for (int r = 0; r < n; r += QUANT_PANEL)
		gguf_from_panel(w->buf + (uint64_t)r * w->row_bytes, w->panels + (size_t)(r /
		    QUANT_PANEL) * panel, d, n - r < QUANT_PANEL ? n - r : QUANT_PANEL,
		    w->from.cols);
}

/* n rows of floats x, of so many values together, into w->buf. */
static int from_floats(const struct writing *w, const float *x, int n, int64_t values)
{
	enum dtype d = dtype_of(w->t->type);

	if (panelled(w)) {
		if (quant_pack(w->panels, d, x, n, (int)(values / n)) < 0)
			return too_large(w);
		from_panels(w, n);
		return 0;
	}
	tensor_from_f32(w->buf, d, x, (size_t)values);
	if (tensor_finite(w->buf, d, (size_t)values))
		return 0;
	for (int64_t i = 0; i < values; i++)
		if (isfinite(x[i]) && !tensor_finite(w->buf + (size_t)i * dtype_size(d), d, 1))
			return too_large(w);
	return 0;
}

/* As GGUF has them where it has other values. */
static void change(const struct writing *w, int64_t n)
{
	unsigned how = w->t->as->how;

	for (int64_t i = 0; i < n && how & AT_PLUS_ONE; i++)
		w->x[i] += 1;
	for (int64_t i = 0; i < n && how & AT_EXP; i++)
		w->x[i] = -expf(w->x[i]);
}

static float *across(const struct writing *w, int n)
{
	for (int r = 0; r < n; r++)
		for (int c = 0; c < w->from.cols; c++)
			w->y[(int64_t)r * w->from.cols + gguf_col(&w->rows, c)] =
			    w->x[(int64_t)r * w->from.cols + c];
	return w->y;
}

/* Rows `row` to row + n in w->buf, as they are written. */
static int take_rows(const struct writing *w, int row, int n)
{
	int64_t values = (int64_t)n * w->from.cols;

	if (same_bits(w)) {
		if (stored_read(&w->from, row, n, panelled(w) ? w->panels : w->buf, w->e) < 0)
			return -1;
		if (panelled(w))
			from_panels(w, n);
		return 0;
	}
	if (stored_read_f32(&w->from, row, n, w->x, w->e) < 0)
		return -1;
	change(w, values);
	return from_floats(w, w->t->as->how & AT_ACROSS ? across(w, n) : w->x, n, values);
}

/* ---- to their places ---- */

static int put(const struct writing *w, int out, uint64_t at, const char *p, uint64_t len)
{
	struct gguf_save *s = w->s;

	if (gguf_out_write(&s->o, out, at, p, (size_t)len, w->e) < 0)
		return -1;
	return s->tick ? s->tick(s->ctx, (int64_t)len, w->e) : 0;
}

static int put_rows(const struct writing *w, int row, int n)
{
	if (!(w->t->as->how & GGUF_SCATTERED) || w->t->as->how & AT_ACROSS)
		return put(w, w->t->out, w->base + (uint64_t)row * w->row_bytes, w->buf,
		    (uint64_t)n * w->row_bytes);
	for (int i = 0; i < n; i++) {
		bool second;
		int64_t at = gguf_row(&w->rows, row + i, &second);

		if (put(w, second ? w->t->second : w->t->out, w->base + (uint64_t)at * w->row_bytes,
		    w->buf + (uint64_t)i * w->row_bytes, w->row_bytes) < 0)
			return -1;
	}
	return 0;
}

/* Keys and values of a head: keys (N, C) are written transposed, values as they are. */
static int put_head(const struct writing *w, int h)
{
	int N = w->rows.block->nope, V = w->rows.block->value, C = w->from.cols;
	uint64_t size = dtype_size(dtype_of(w->t->type)), keys = (uint64_t)N * (uint64_t)C * size,
	    values = (uint64_t)V * (uint64_t)C * size;

	if (stored_read_f32(&w->from, h * (N + V), N + V, w->x, w->e) < 0)
		return -1;
	for (int i = 0; i < N; i++)
		for (int c = 0; c < C; c++)
			w->y[(int64_t)c * N + i] = w->x[(int64_t)i * C + c];
	if (from_floats(w, w->y, C, (int64_t)N * C) < 0 ||
	    put(w, w->t->out, (uint64_t)h * keys, w->buf, keys) < 0 ||
	    from_floats(w, w->x + (int64_t)N * C, V, (int64_t)V * C) < 0)
		return -1;
	return put(w, w->t->second, (uint64_t)h * values, w->buf, values);
}

/* ---- all of it ---- */

/* Rows in memory at a time: whole panels of blocks, whole heads. */
static int step_of(const struct writing *w)
{
	int n = stored_step(&w->from, CHUNK);

	if (w->t->as->how & AT_KV_APART)
		return w->rows.block->nope + w->rows.block->value;
	n = (n + QUANT_PANEL - 1) / QUANT_PANEL * QUANT_PANEL;
	return n < w->from.rows ? n : w->from.rows;
}

static int take_room(struct writing *w, int step)
{
	size_t values = (size_t)step * (size_t)w->from.cols;

	w->x = malloc(values * sizeof *w->x);
	w->y = malloc(values * sizeof *w->y);
	w->buf = malloc((size_t)step * (size_t)w->from.cols * sizeof(float));
	w->panels = malloc(panelled(w) ? mat_bytes(dtype_of(w->t->type), step, w->from.cols) : 1);
	return w->x && w->y && w->buf && w->panels ? 0 : err_set(w->e, EX_OSERR, "out of memory");
}

static int write_param(struct writing *w, const struct param *p)
{
	const struct config *c = config_of(w->s);
	int step, rc;

	if ((w->s->md->packed && p->kind == P_EXP_GATE &&
	    packed_check(&w->s->experts, p->layer, p->expert, w->e) < 0) ||
	    find(w->s, p, &w->from, w->e) < 0)
		return -1;
	w->rows = (struct gguf_rows){ w->t->as->how, p->rows, p->cols, c->head_dim,
	    p->layer < 0 ? NULL : &c->block[p->layer] };
	w->row_bytes = (uint64_t)(p->cols / gguf_block_values(w->t->type)) *
	    (uint64_t)gguf_block_bytes(w->t->type);
	w->base = p->expert > 0 ? (uint64_t)p->expert * (uint64_t)p->rows * w->row_bytes : 0;
	step = step_of(w);
	rc = take_room(w, step);
	for (int row = 0; row < p->rows && rc == 0; row += step) {
		int n = p->rows - row < step ? p->rows - row : step;

		rc = w->t->as->how & AT_KV_APART ? put_head(w, row / step) : take_rows(w, row, n);
		if (rc == 0 && !(w->t->as->how & AT_KV_APART))
			rc = put_rows(w, row, n);
	}
	free(w->x);
	free(w->y);
	free(w->buf);
	free(w->panels);
	return rc;
}

static int write_tensor(struct gguf_save *s, const struct gguf_tensor_out *t, struct err *e)
{
	const struct param *p = &s->md->par.p[t->param];
	struct writing w = { .s = s, .t = t, .e = e };
	int n = t->as->how & AT_STACKED ? config_of(s)->num_experts : 1, rc = 0;

	if (n == 1)
		return write_param(&w, p);
	for (int k = 0; k < n && rc == 0; k++)
		rc = write_param(&w, params_get(&s->md->par, p->kind, p->layer, k));
	return rc;
}

int gguf_save_write(struct gguf_save *s, struct err *e)
{
	int rc = gguf_out_open(&s->o, s->out, s->force, e);

	for (int k = 0; k < s->n && rc == 0; k++)
		rc = write_tensor(s, &s->t[k], e);
	if (rc == 0 && s->m.n_freqs > 0)
		rc = gguf_out_write(&s->o, (int)s->o.ntensors - 1, 0, s->m.freqs,
		    (size_t)s->m.n_freqs * sizeof *s->m.freqs, e);
	if (rc == 0)
		rc = gguf_out_commit(&s->o, e);
	if (rc < 0)
		gguf_out_end(&s->o);
	return rc;
}

void gguf_save_end(struct gguf_save *s)
{
	gguf_out_end(&s->o);
	gguf_meta_free(&s->m);
	if (s->experts.ctsr)
		packed_close(&s->experts);
	manifest_free(&s->manifest);
	free(s->t);
	s->t = NULL;
}
