#include "model/adapter.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "arch/homes.h"
#include "base/file.h"
#include "base/mem.h"
#include "format/modeldir.h"
#include "model/peft.h"

#define CHUNK ((size_t)1 << 16)		/* elements that are converted at a time */

#define WEIGHT ".weight"

/* --- finding --- */

/* While the tensors of a file are given to the parameters of a model. */
struct search {
	struct adapter *a;
	const struct peft *said;
	bool *used;		/* (tensors) */
	struct err *e;
};

/* A parameter as PEFT adapts it: a module that is one matrix, or a parameter of a module. */
struct place {
	char name[sizeof ((struct home *)0)->name];	/* that patterns are compared with */
	char key[160];		/* of its tensors, without lora_A and what follows */
	unsigned how;
};

static const struct st_tensor *part(const struct search *s, const struct place *at, char which)
{
	char key[sizeof at->key + 32];

	snprintf(key, sizeof key, "%s.lora_%c" WEIGHT, at->key, which);
	return st_find(s->a->f, key);
}

/* PEFT wraps a module once for each of its parameters that are adapted: a wrapper lies in those of
 * the parameters after its own. Of experts these are gate_up_proj, then down_proj. */
static bool wrapped(const struct search *s, const char *module, const char *leaf)
{
	char after[sizeof ((struct home *)0)->name + 16];

	snprintf(after, sizeof after, "%s.down_proj", module);
	return strcmp(leaf, "gate_up_proj") == 0 && peft_targets(s->said, after);
}

/* Where an adapter of what lies in h would be; false: there can be none. */
static bool place_of(const struct search *s, const struct home *h, struct place *at)
{
	char module[sizeof h->name];
	char *leaf;
	bool asked = peft_targets(s->said, h->name);

	memcpy(module, h->name, sizeof module);
	leaf = strrchr(module, '.');
	if (leaf == NULL)
		return false;
	*leaf++ = '\0';
	if (!asked && strcmp(leaf, "weight") != 0)
		return false;
	memcpy(at->name, asked ? h->name : module, sizeof at->name);
	snprintf(at->key, sizeof at->key, ADAPTER_PREFIX "%s%s", module,
	    wrapped(s, module, leaf) ? ".base_layer" : "");
	at->how = h->how;
	return true;
}

static int check_shape(const struct search *s, const struct st_tensor *t, int64_t rows,
    int64_t cols, int rank)
{
	if (t->ndim == 2 && t->shape[0] == (uint64_t)rows && t->shape[1] == (uint64_t)cols)
		return 0;
	return err_set(s->e, EX_DATAERR, "%s: %s: not of the shape that the model and a rank of "
	    "%d ask for", s->a->path, t->name, rank);
}

/* Gate and up, of twice the rank together: the half that is this one's. */
static void own_block(struct adapter_matrix *m, const struct param *p)
{
	m->rank /= 2;
	if (param_part(p) == 1) {
		m->a.at.first += m->rank * m->a.at.row_step;
		m->b.at.first += m->rank * m->b.at.col_step;
	}
}

/* A and B of parameter p in the tensors of a place. */
static int take(const struct search *s, const struct param *p, const struct place *at,
    const struct st_tensor *ta, const struct st_tensor *tb)
{
	struct adapter_matrix *m = &s->a->matrix[s->a->n];
	const char *blocks = st_meta(s->a->f, ADAPTER_GATE_UP);
	const int E = at->how & AT_STACKED ? s->a->cfg->num_experts : 1;
	const bool half = at->how & (AT_FIRST | AT_SECOND), spread = at->how & (AT_EVEN | AT_ODD);
	const int64_t first = at->how & AT_SECOND ? p->rows : at->how & AT_ODD ? 1 : 0;
	int64_t wide, expert = at->how & AT_STACKED ? p->expert : 0;

	*m = (struct adapter_matrix){ .param = (int)(p - s->a->model->p) };
	if (peft_shape(s->said, at->name, &m->rank, &m->factor, s->e) < 0)
		return -1;
	wide = (int64_t)E * m->rank;
	if (check_shape(s, ta, wide, p->cols, m->rank) < 0 ||
	    check_shape(s, tb, (int64_t)p->rows * (half || spread ? 2 : 1), wide, m->rank) < 0)
		return -1;
	m->a = (struct adapter_part){ ta, { expert * m->rank * p->cols, p->cols, 1 } };
	m->b = (struct adapter_part){ tb, { first * wide + expert, spread ? 2 * wide : wide, E } };
	if ((at->how & AT_STACKED) && (half || spread) && m->rank % 2 == 0 && blocks != NULL &&
	    strcmp(blocks, "blocks") == 0)
		own_block(m, p);
	s->a->n++;
	return 0;
}

static void use(const struct search *s, const struct st_tensor *t)
{
	s->used[t - st_at(s->a->f, 0)] = true;
}

/* What the file has for p, if it has anything. */
static int find_matrix(const struct search *s, const struct param *p)
{
	struct home h[HOMES];
	const int n = homes_of(s->a->cfg, p, h);

	for (int i = 0; i < n; i++) {
		struct place at;
		const struct st_tensor *a, *b;

		if (!place_of(s, &h[i], &at))
			continue;
		a = part(s, &at, 'A');
		b = part(s, &at, 'B');
		if (a == NULL && b == NULL)
			continue;
		if (a == NULL || b == NULL)
			return err_set(s->e, EX_DATAERR, "%s: %s.lora_%c" WEIGHT ": absent",
			    s->a->path, at.key, a == NULL ? 'A' : 'B');
		use(s, a);
		use(s, b);
		return take(s, p, &at, a, b);
	}
	return 0;
}

/* The tensor that has all of what lies in h: of a module of modules_to_save; or, as PEFT saves
 * embedding and head where they have an adapter or are asked for, of what the adapter is on. */
static const struct st_tensor *whole_tensor(const struct search *s, const struct param *p,
    const struct home *h)
{
	const int n = (int)strnlen(h->name, sizeof h->name), tail = (int)strlen(WEIGHT);
	const bool ends = p->kind == P_EMBED || p->kind == P_HEAD;
	const struct st_tensor *t = NULL;
	char key[sizeof ADAPTER_PREFIX + sizeof h->name + 16];

	snprintf(key, sizeof key, ADAPTER_PREFIX "%.*s", n, h->name);
	if (ends || peft_keeps(s->said, h->name))
		t = st_find(s->a->f, key);
	if (t == NULL && ends) {
		snprintf(key, sizeof key, ADAPTER_PREFIX "%.*s.base_layer" WEIGHT, n - tail,
		    h->name);
		t = st_find(s->a->f, key);
	}
	return t;
}

static int find_whole(const struct search *s, const struct param *p)
{
	struct home h[HOMES];
	const int n = homes_of(s->a->cfg, p, h);

	for (int i = 0; i < n; i++) {
		const struct st_tensor *t = whole_tensor(s, p, &h[i]);
		uint64_t shape[3];
		int dims = stored_shape(p, h[i].how, 0, shape);

		if (t == NULL)
			continue;
		if (h[i].how & ~(unsigned)AT_FLAT || t->ndim != dims ||
		    memcmp(t->shape, shape, (size_t)dims * sizeof *shape) != 0)
			return err_set(s->e, EX_DATAERR, "%s: %s: not of the shape that the model "
			    "asks for", s->a->path, t->name);
		if (p->kind == P_EMBED && s->a->cfg->tie_word_embeddings)
			return err_set(s->e, EX_DATAERR, "%s: %s: of this model the head is the "
			    "embedding (tie_word_embeddings), one cannot change alone",
			    s->a->path, t->name);
		use(s, t);
		s->a->whole[s->a->nwhole++] = (struct adapter_whole){
		    .param = (int)(p - s->a->model->p), .t = t,
		    .own = strstr(t->name, ".base_layer.") != NULL };
		return 0;
	}
	return 0;
}

/* Every tensor of the file must be for something. */
static int check_used(const struct search *s)
{
	const struct st_tensor *t;

	for (size_t i = 0; (t = st_at(s->a->f, i)) != NULL; i++)
		if (!s->used[i])
			return err_set(s->e, EX_DATAERR, "%s: %s: %s", s->a->path, t->name,
			    strstr(t->name, "lm_head") && s->a->cfg->tie_word_embeddings ?
			    "of this model the head is the embedding (tie_word_embeddings), it "
			    "cannot have an adapter of its own" :
			    "no matrix of the model has such a part");
	return 0;
}

/* A list of PEFT may have parameters that the model has not, but no others than matrices. */
static int check_targets(const struct search *s)
{
	struct home h[HOMES];

	for (int i = 0; i < s->a->model->n; i++) {
		const struct param *p = &s->a->model->p[i];
		int n = param_is(p, PARAM_ADAPTS) ? 0 : homes_of(s->a->cfg, p, h);

		while (n-- > 0)
			if (peft_targets(s->said, h[n].name))
				return err_set(s->e, EX_DATAERR, "%s: \"target_parameters\" asks "
				    "for %.*s: cannot have an adapter, it is not a matrix that "
				    "multiplies", ADAPTER_CONFIG, (int)sizeof h->name - 1,
				    h[n].name);
	}
	return 0;
}

static int search(const struct search *s)
{
	const struct params *ps = s->a->model;
	int rc = check_targets(s);

	for (int i = 0; i < ps->n && rc == 0; i++)
		if (param_is(&ps->p[i], PARAM_ADAPTS))
			rc = find_matrix(s, &ps->p[i]);
	for (int i = 0; i < ps->n && rc == 0; i++)
		rc = find_whole(s, &ps->p[i]);
	return rc < 0 ? -1 : check_used(s);
}

/* Of one tensor together, in order of parameters. */
static int by_tensor(const void *x, const void *y)
{
	const struct adapter_matrix *a = x, *b = y;

	return a->b.t != b->b.t ? (a->b.t > b->b.t) - (a->b.t < b->b.t) :
	    (a->param > b->param) - (a->param < b->param);
}

static int check_type(const struct adapter *a, const struct st_tensor *t, int64_t *most,
    struct err *e)
{
	enum dtype dt;

	*most = mem_max(*most, (int64_t)st_elements(t));
	return dtype_parse(st_dtype_name(t->dtype), &dt) == 0 ? 0 :
	    err_set(e, EX_DATAERR, "%s: %s: not a float type", a->path, t->name);
}

/* Types, and the room for what is held of A, and of B. */
static int check_types(struct adapter *a, struct err *e)
{
	int64_t most[2] = { 0, 0 };

	for (int i = 0; i < a->n; i++)
		if (check_type(a, a->matrix[i].a.t, &most[0], e) < 0 ||
		    check_type(a, a->matrix[i].b.t, &most[1], e) < 0)
			return -1;
	for (int i = 0; i < a->nwhole; i++)
		if (check_type(a, a->whole[i].t, &most[0], e) < 0)
			return -1;
	a->room = (most[0] + most[1]) * (int64_t)sizeof(float);
	return a->n + a->nwhole > 0 ? 0 : err_set(e, EX_DATAERR, "%s: holds no adapter", a->path);
}

static json_t *file_metadata(const struct st_file *f)
{
	json_t *o = json_object();
	const char *key, *value;

	for (size_t i = 0; (key = st_meta_at(f, i, &value)) != NULL; i++)
		if (strcmp(key, ADAPTER_GATE_UP) != 0)
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

static int open_file(struct adapter *a, const char *dir, const struct peft *said,
    struct err *e)
{
	struct st_error se = { 0 };
	struct search s = { .a = a, .said = said, .e = e };
	int rc;

	a->f = st_open(a->path, ST_READ, &se);
	if (a->f == NULL)
		return unopened(dir, a->path, &se, e);
	s.used = mem_alloc(st_count(a->f) + 1);
	rc = search(&s);
	mem_free(s.used);
	if (rc < 0 || check_types(a, e) < 0)
		return -1;
	qsort(a->matrix, (size_t)a->n, sizeof *a->matrix, by_tensor);
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
	a->whole = mem_alloc((size_t)ps->n * sizeof *a->whole);
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
	mem_free(a->whole);
	free(a->path);
	*a = (struct adapter){ 0 };
}

int64_t adapter_largest(const struct adapter *a)
{
	int64_t most = 1;

	for (int i = 0; i < a->n; i++) {
		const struct param *p = &a->model->p[a->matrix[i].param];

		most = mem_max(most, (int64_t)a->matrix[i].rank * mem_max(p->rows, p->cols));
	}
	return most;
}

int adapter_only_adds(const struct adapter *a, struct err *e)
{
	for (int i = 0; i < a->nwhole; i++)
		if (!a->whole[i].own)
			return err_set(e, EX_DATAERR, "%s: %s: takes the place of one of the "
			    "model's (modules_to_save): chr-merge makes a model of both", a->path,
			    a->whole[i].t->name);
	return 0;
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

int adapter_read_whole(struct adapter *a, const struct adapter_whole *w, float *dst, struct err *e)
{
	return read_tensor(a, w->t, dst, e);
}

/* --- the model it is for --- */

/* The fingerprint of what the last of an ancestry was made from. program: only if that made it;
 * NULL: any. */
static char *parent_of(const char *ancestry, const char *program)
{
	json_t *list = ancestry != NULL ? json_loads(ancestry, 0, NULL) : NULL;
	json_t *last = json_array_get(list, json_array_size(list) - 1);
	const char *by = json_string_value(json_object_get(last, "program"));
	const char *parent = json_string_value(json_object_get(last, "parent"));
	char *copy = NULL;

	if (parent != NULL && (program == NULL || (by != NULL && strcmp(by, program) == 0)))
		copy = strdup(parent);
	json_decref(list);
	return copy;
}

char *adapter_base(const json_t *metadata)
{
	return parent_of(json_string_value(json_object_get(metadata, "chronos.ancestry")), NULL);
}

int adapter_fits(const char *dir, const char *base, const char *model, const char *fingerprint,
    const char *ancestry, struct err *e)
{
	char *packed = parent_of(ancestry, "chr-pack");
	bool fits = strcmp(base, fingerprint) == 0 ||
	    (packed != NULL && strcmp(base, packed) == 0);

	free(packed);
	return fits ? 0 : err_set(e, EX_DATAERR, "%s: was trained on the model %s, %s is %s "
	    "(--force takes it all the same)", dir, base, model, fingerprint);
}
