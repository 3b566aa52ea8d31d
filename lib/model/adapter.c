#include "model/adapter.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "format/modeldir.h"
#include "model/peft.h"

#define PREFIX "base_model.model."
#define CHUNK ((size_t)1 << 16)		/* elements that are converted at a time */

/* --- finding --- */

/* The name of the matrix that tensor t is a part of, without ".weight"; 'A' or 'B', or 0: it is
 * none. */
static char part_of(const struct st_tensor *t, char *module, size_t size)
{
	static const char *const tail[] = { ".lora_A.weight", ".lora_B.weight" };
	size_t n = strlen(t->name), head = strlen(PREFIX);

	for (int i = 0; i < 2; i++) {
		size_t end = strlen(tail[i]);

		if (n <= head + end || n - head - end >= size ||
		    strncmp(t->name, PREFIX, head) != 0 ||
		    strcmp(t->name + n - end, tail[i]) != 0)
			continue;
		snprintf(module, size, "%.*s", (int)(n - head - end), t->name + head);
		return (char)('A' + i);
	}
	return 0;
}

static const struct param *matrix_of(const struct params *ps, const char *module)
{
	char name[sizeof ps->p->name + 8];
	const struct param *p;

	snprintf(name, sizeof name, "%s.weight", module);
	p = params_find(ps, name);
	return p != NULL && param_is(p, PARAM_ADAPTS) ? p : NULL;
}

static struct adapter_matrix *entry(struct adapter *a, const struct param *p)
{
	int i = (int)(p - a->model->p);

	if (a->of[i] < 0) {
		a->of[i] = a->n;
		a->matrix[a->n++] = (struct adapter_matrix){ .param = i };
	}
	return &a->matrix[a->of[i]];
}

/* One tensor of the file is A or B of one matrix. */
static int place(struct adapter *a, const struct st_tensor *t, const struct peft *c, struct err *e)
{
	char module[sizeof a->model->p->name];
	char which = part_of(t, module, sizeof module);
	const struct param *p = which != 0 ? matrix_of(a->model, module) : NULL;
	struct adapter_matrix *m;
	struct adapter_part *part;
	uint64_t rows, cols;

	if (p == NULL)
		return err_set(e, EX_DATAERR, "%s: %s: no matrix of the model has such a part",
		    a->path, t->name);
	m = entry(a, p);
	if (peft_shape(c, module, &m->rank, &m->factor, e) < 0)
		return -1;
	rows = (uint64_t)(which == 'A' ? m->rank : p->rows);
	cols = (uint64_t)(which == 'A' ? p->cols : m->rank);
	if (t->ndim != 2 || t->shape[0] != rows || t->shape[1] != cols)
		return err_set(e, EX_DATAERR, "%s: %s: not of the shape that the model and "
		    "a rank of %d ask for", a->path, t->name, m->rank);
	part = which == 'A' ? &m->a : &m->b;
	*part = (struct adapter_part){ t, { .row_step = (int64_t)cols, .col_step = 1 } };
	return 0;
}

/* Room for what is held of A, or of B. */
static int check_parts(struct adapter *a, struct err *e)
{
	int64_t most[2] = { 0, 0 };

	for (int i = 0; i < a->n; i++) {
		const struct adapter_part *part[] = { &a->matrix[i].a, &a->matrix[i].b };
		enum dtype dt;

		for (int k = 0; k < 2; k++) {
			const struct st_tensor *t = part[k]->t;

			if (t == NULL)
				return err_set(e, EX_DATAERR, "%s: %s: its lora_%c is absent",
				    a->path, a->model->p[a->matrix[i].param].name, 'A' + k);
			if (dtype_parse(st_dtype_name(t->dtype), &dt) < 0)
				return err_set(e, EX_DATAERR, "%s: %s: not a float type", a->path,
				    t->name);
			most[k] = mem_max(most[k], (int64_t)st_elements(t));
		}
	}
	a->room = (most[0] + most[1]) * (int64_t)sizeof(float);
	return a->n > 0 ? 0 : err_set(e, EX_DATAERR, "%s: holds no adapter", a->path);
}

static json_t *file_metadata(const struct st_file *f)
{
	json_t *o = json_object();
	const char *key, *value;

	for (size_t i = 0; (key = st_meta_at(f, i, &value)) != NULL; i++)
		json_object_set_new(o, key, json_string(value));
	return o;
}

/* PEFT wrote pickles once. */
static int unopened(const char *dir, const char *path, const struct st_error *se, struct err *e)
{
	char *pickle = file_join(dir, "adapter_model.bin");

	if (access(path, F_OK) != 0 && access(pickle, F_OK) == 0)
		err_set(e, EX_NOINPUT, "%s: is not there; the directory has adapter_model.bin, a "
		    "Python pickle that may run code when it is read: convert it to safetensors",
		    path);
	else
		modeldir_st_err(e, path, se);
	free(pickle);
	return -1;
}

static int open_file(struct adapter *a, const char *dir, const struct peft *c, struct err *e)
{
	struct st_error se = { 0 };
	const struct st_tensor *t;

	a->f = st_open(a->path, ST_READ, &se);
	if (a->f == NULL)
		return unopened(dir, a->path, &se, e);
	for (size_t i = 0; (t = st_at(a->f, i)) != NULL; i++)
		if (place(a, t, c, e) < 0)
			return -1;
	if (check_parts(a, e) < 0)
		return -1;
	a->metadata = file_metadata(a->f);
	return 0;
}

int adapter_open(struct adapter *a, const char *dir, const struct config *c,
    const struct params *ps, struct err *e)
{
	struct peft said;
	int rc;

	*a = (struct adapter){ .cfg = c, .model = ps };
	if (peft_load(&said, dir, e) < 0)
		return -1;
	a->path = file_join(dir, ADAPTER_WEIGHTS);
	a->matrix = mem_alloc((size_t)ps->n * sizeof *a->matrix);
	a->of = mem_alloc((size_t)ps->n * sizeof *a->of);
	memset(a->of, -1, (size_t)ps->n * sizeof *a->of);
	rc = open_file(a, dir, &said, e);
	peft_free(&said);
	if (rc < 0)
		adapter_close(a);
	return rc;
}

void adapter_close(struct adapter *a)
{
	for (int i = 0; i < 2; i++)
		mem_free(a->held[i].x);
	st_close(a->f);
	json_decref(a->metadata);
	mem_free(a->matrix);
	mem_free(a->of);
	free(a->path);
	*a = (struct adapter){ 0 };
}

const struct adapter_matrix *adapter_find(const struct adapter *a, int param)
{
	return a->of[param] < 0 ? NULL : &a->matrix[a->of[param]];
}

/* --- reading --- */

/* All of tensor t as float32. */
static int read_tensor(const struct adapter *a, const struct st_tensor *t, float *x, struct err *e)
{
	size_t size = st_dtype_size(t->dtype), n = (size_t)st_elements(t);
	enum dtype dt = DT_F32;
	struct st_error se = { 0 };
	char *raw = mem_alloc(CHUNK * size);
	int rc = dtype_parse(st_dtype_name(t->dtype), &dt);

	for (size_t i = 0; i < n && rc == 0; i += CHUNK) {
		size_t k = n - i < CHUNK ? n - i : CHUNK;

		if (st_read(a->f, t, i * size, raw, k * size, &se) < 0)
			rc = modeldir_st_err(e, a->path, &se);
		else
			tensor_to_f32(x + i, raw, dt, k);
		if (rc == 0 && !tensor_finite(x + i, DT_F32, k))
			rc = err_set(e, EX_DATAERR, "%s: %s: has a value that is not finite",
			    a->path, t->name);
	}
	mem_free(raw);
	return rc;
}

static int hold(struct adapter *a, struct adapter_held *h, const struct st_tensor *t,
    struct err *e)
{
	if (h->t == t)
		return 0;
	mem_free(h->x);
	h->t = NULL;
	h->x = mem_alloc((size_t)st_elements(t) * sizeof *h->x);
	if (read_tensor(a, t, h->x, e) < 0)
		return -1;
	h->t = t;
	return 0;
}

/* dst (rows, cols) */
static int read_part(struct adapter *a, struct adapter_held *h, const struct adapter_part *p,
    int rows, int cols, float *dst, struct err *e)
{
	if (hold(a, h, p->t, e) < 0)
		return -1;
	for (int r = 0; r < rows; r++)
		for (int c = 0; c < cols; c++)
			*dst++ = h->x[p->at.first + r * p->at.row_step + c * p->at.col_step];
	return 0;
}

int adapter_read_a(struct adapter *a, const struct adapter_matrix *m, float *dst, struct err *e)
{
	return read_part(a, &a->held[0], &m->a, m->rank, a->model->p[m->param].cols, dst, e);
}

int adapter_read_b(struct adapter *a, const struct adapter_matrix *m, float *dst, struct err *e)
{
	return read_part(a, &a->held[1], &m->b, a->model->p[m->param].rows, m->rank, dst, e);
}

/* --- the model it is for --- */

char *adapter_base(const json_t *metadata)
{
	const char *text = json_string_value(json_object_get(metadata, "chronos.ancestry"));
	json_t *list = text != NULL ? json_loads(text, 0, NULL) : NULL;
	json_t *last = json_array_get(list, json_array_size(list) - 1);
	const char *parent = json_string_value(json_object_get(last, "parent"));
	char *base = parent != NULL ? strdup(parent) : NULL;

	json_decref(list);
	return base;
}

int adapter_fits(const char *dir, const char *base, const char *model, const char *fingerprint,
    struct err *e)
{
	if (strcmp(base, fingerprint) == 0)
		return 0;
	return err_set(e, EX_DATAERR, "%s: was trained on the model %s, %s is %s (--force takes "
	    "it all the same)", dir, base, model, fingerprint);
}
