#include "train/ckpt.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/comm.h"
#include "base/file.h"
#include "base/jsonfile.h"
#include "format/modeldir.h"
#include "format/safetensors.h"
#include "model/adapter.h"
#include "model/adapter_save.h"

__attribute__((format(printf, 1, 2)))
static char *format(const char *fmt, ...)
{
	va_list ap;
	char *s;
	int n;

	va_start(ap, fmt);
	n = vasprintf(&s, fmt, ap);
	va_end(ap);
	if (n < 0)
		err_die(EX_OSERR, "out of memory");
	return s;
}

static bool exists(const char *dir, const char *name)
{
	char *path = file_join(dir, name);
	struct stat st;
	bool there = stat(path, &st) == 0;

	free(path);
	return there;
}

/* --- between the device and files --- */

#define WRITE_BUFFER (256 << 10)	/* of st_writer */
#define CONVERTED (64 << 10)		/* elements at a time */
#define HEADER_BYTES 512		/* of a tensor while headers are made, weights and both
					   moments together, about */

/* Is the device's memory ours, and as files have it? */
static bool as_files(const struct backend *be)
{
	return be->host_reads && sizeof(real) == sizeof(float);
}

/* Then it is read into where it is. */
static float *in_place(const struct backend *be, dev_real *x)
{
	return backend_draft(be, x, NULL, 0);
}

int64_t ckpt_bytes(int n, int64_t largest, const struct backend *be)
{
	int64_t copies = as_files(be) ? 0 : largest * (int64_t)(sizeof(real) + sizeof(float));

	return copies + WRITE_BUFFER + (largest < CONVERTED ? largest : CONVERTED) *
	    (int64_t)sizeof(double) +
	    n * (int64_t)HEADER_BYTES;
}

/* A parameter on its way. */
struct transit {
	const struct backend *be;
	float *file;		/* (largest) NULL when the device's memory is as files have it */
	real *host;
};

static int transit_open(struct transit *t, const struct backend *be, const struct params *ps,
    bool always, struct err *e)
{
	int64_t largest = 1;

	*t = (struct transit){ .be = be };
	for (int i = 0; i < ps->n; i++)
		largest = param_size(&ps->p[i]) > largest ? param_size(&ps->p[i]) : largest;
	if (as_files(be) && !always)
		return 0;
	t->file = malloc((size_t)largest * sizeof *t->file);
	t->host = sizeof(real) == sizeof(float) ? (real *)t->file
	    : malloc((size_t)largest * sizeof *t->host);
	return t->file != NULL && t->host != NULL ? 0 : err_set(e, EX_OSERR,
	    "no memory for the largest parameter");
}

static void transit_close(struct transit *t)
{
	if ((void *)t->host != (void *)t->file)
		free(t->host);
	free(t->file);
}

/* n values as files have them. */
static const float *to_file(const struct transit *t, const real *host, int64_t n)
{
	if (sizeof(real) == sizeof(float))
		return (const float *)host;
	for (int64_t i = 0; i < n; i++)
		t->file[i] = (float)host[i];
	return t->file;
}

/* The n floats in t->file as values of the host. */
static const real *from_file(const struct transit *t, int64_t n)
{
	for (int64_t i = 0; (void *)t->host != (void *)t->file && i < n; i++)
		t->host[i] = (real)t->file[i];
	return t->host;
}

/* --- writing --- */

enum array { WEIGHTS, GRADIENTS, MOMENTS_M, MOMENTS_V, NOTHING };

struct saver {
	const struct weights *w;
	struct optim *opt;
	enum array array;	/* that get() is asked for */
	struct transit transit;
};

/* Rank 0 asks for a parameter of an array, and all give what they have of it. */
struct request {
	enum array array;
	int i;
};

static const real *give(const struct saver *s, struct request r)
{
	switch (r.array) {
	case WEIGHTS:
		return optim_values(s->opt, s->w->w, s->w->par, r.i);
	case GRADIENTS:
		return optim_values(s->opt, s->w->g, s->w->par, r.i);
	case MOMENTS_M:
		return optim_moments(s->opt, s->opt->m, s->w->par, r.i);
	case MOMENTS_V:
		return optim_moments(s->opt, s->opt->v, s->w->par, r.i);
	default:
		return NULL;
	}
}

static const float *get(void *ctx, int i)
{
	const struct saver *s = ctx;
	struct request r = { s->array, i };

	comm_bcast(&r, sizeof r);
	return to_file(&s->transit, give(s, r), param_size(&s->w->par->p[i]));
}

/* What ranks above 0 do while rank 0 writes, until it has no more to ask. */
static void serve(const struct saver *s)
{
	struct request r;

	for (;;) {
		comm_bcast(&r, sizeof r);
		if (r.array == NOTHING)
			return;
		give(s, r);
	}
}

static void served(void)
{
	struct request r = { NOTHING, 0 };

	comm_bcast(&r, sizeof r);
}

struct part {			/* an array over parameters; every tensor's name gets the prefix */
	const char *prefix;
	enum array array;
};

static bool in_part(const struct saver *s, const struct part *part, int i)
{
	return part->array == WEIGHTS || s->opt->of[i] >= 0;
}

static void declare(struct st_writer *w, const char *prefix, const struct param *p,
    struct st_error *se)
{
	const uint64_t shape[2] = { (uint64_t)p->rows, (uint64_t)p->cols };
	char name[sizeof p->name + 16];

	snprintf(name, sizeof name, "%s%s", prefix, p->name);
	st_writer_add(w, name, ST_F32, p->ndim, shape, 0, se);
}

/* A failed writer stays failed, so only the last call is looked at. */
static int put_parts(struct saver *s, const char *path, const struct part *part, int nparts,
    const json_t *metadata,
    struct err *e)
{
	const struct params *ps = s->w->par;
	struct st_error se = {0};
	struct st_writer *w = st_writer_create(path, &se);
	const char *key;
	json_t *v;

	if (w == NULL)
		return modeldir_st_err(e, path, &se);
	for (int j = 0; j < nparts; j++)
		for (int i = 0; i < ps->n; i++)
			if (in_part(s, &part[j], i))
				declare(w, part[j].prefix, &ps->p[i], &se);
	if (metadata != NULL)
		json_object_foreach((json_t *)metadata, key, v)
			st_writer_meta(w, key, json_string_value(v), &se);
	st_writer_begin(w, &se);
	for (int j = 0; j < nparts; j++) {
		s->array = part[j].array;
		for (int i = 0; i < ps->n; i++)
			if (in_part(s, &part[j], i))
				st_writer_data(w, get(s, i), (size_t)param_size(&ps->p[i]) *
				    sizeof(float), &se);
	}
	return st_writer_finish(w, &se) < 0 ? modeldir_st_err(e, path, &se) : 0;
}

int ckpt_put_gradients(const char *path, const struct weights *w, struct optim *opt,
    struct err *e)
{
	const struct part part = { "", GRADIENTS };
	struct saver s = { .w = w, .opt = opt };
	int rc;

	if (comm_rank() > 0) {
		serve(&s);
		return 0;
	}
	rc = transit_open(&s.transit, w->be, w->par, false, e);
	if (rc == 0)
		rc = put_parts(&s, path, &part, 1, NULL, e);
	served();
	transit_close(&s.transit);
	return rc;
}

static int put_moments(struct saver *s, const char *dir, const struct ckpt *c, struct err *e)
{
	const struct part part[] = { { "m.", MOMENTS_M }, { "v.", MOMENTS_V },
	    { "master.", WEIGHTS } };
	char *path = file_join(dir, "optimizer.safetensors");
	int rc = put_parts(s, path, part, c->dtype == DT_F32 && c->adapter == NULL ? 2 : 3, NULL,
	    e);

	free(path);
	return rc;
}

static int put_json(const char *dir, const char *name, const json_t *o, struct err *e)
{
	char *path = file_join(dir, name), *text = json_dumps(o, JSON_INDENT(1));
	int rc = text != NULL ? file_put(path, text, strlen(text), e) :
	    err_set(e, EX_SOFTWARE, "%s: cannot be written as JSON", path);

	free(text);
	free(path);
	return rc;
}

static int put_weights(struct saver *s, const char *dir, const struct ckpt *c, struct err *e)
{
	const struct modeldir_out o = { .dtype = c->dtype, .shard_size = c->shard_size,
	    .meta = c->metadata, .get = get, .ctx = s };
	const struct adapter_save a = { .cfg = c->cfg, .lora = c->adapter, .base = c->base,
	    .metadata = c->metadata, .get = get, .ctx = s };

	s->array = WEIGHTS;
	if (c->adapter != NULL)
		return adapter_save(&a, dir, e);
	return modeldir_save(dir, c->cfg, c->w.par, NULL, &o, NULL, e);
}

static int fill(struct saver *s, const char *dir, const struct ckpt *c, struct err *e)
{
	int rc = file_mkdir_new(dir, e);

	if (rc == 0 && c->tok != NULL)
		rc = tok_save(c->tok, dir, e);
	if (rc == 0)
		rc = transit_open(&s->transit, c->w.be, c->w.par, false, e);
	if (rc == 0)
		rc = put_weights(s, dir, c, e);
	if (rc == 0)
		rc = put_moments(s, dir, c, e);
	transit_close(&s->transit);
	if (rc < 0 || put_json(dir, "train_state.json", c->state, e) < 0)
		return -1;
	return file_sync_dir(dir, e);
}

static int move(const char *from, const char *to, struct err *e)
{
	return rename(from, to) < 0 ? err_set(e, EX_CANTCREAT, "%s:", to) : 0;
}

int ckpt_save(const char *out, int64_t step, const struct ckpt *c, struct err *e)
{
	struct saver s = { .w = &c->w, .opt = c->opt };
	char *dir, *tmp;
	int rc = 0;

	if (comm_rank() > 0) {
		serve(&s);
		return 0;
	}
	dir = format("%s/checkpoint-%" PRId64, out, step);
	tmp = format("%s/.checkpoint-%" PRId64 ".tmp", out, step);
	/* The state at a step is always the same: what has this name is what would be written. */
	if (!exists(dir, "train_state.json")) {
		rc = fill(&s, tmp, c, e);
		if (rc == 0)
			rc = move(tmp, dir, e);
		if (rc == 0)
			rc = file_sync_dir(out, e);
		if (rc < 0 && exists(tmp, "")) {	/* leave nothing on a disk that may be
							   full; the first error counts */
			struct err ignored = {0};

			file_remove_tree(tmp, &ignored);
		}
	}
	served();
	free(dir);
	free(tmp);
	return rc;
}

/* A second name for the file where the file system can, else a copy. */
static int publish_file(const char *from, const char *to, struct err *e)
{
	char *tmp = format("%s.publish.tmp", to);
	int rc;

	unlink(tmp);
	if (link(from, tmp) == 0)
		rc = move(tmp, to, e);
	else
		rc = file_copy(from, to, e);
	unlink(tmp);		/* rename() leaves both names when they are one file already */
	free(tmp);
	return rc;
}

static int remove_dir(const char *out, int64_t step, struct err *e)
{
	char *dir = format("%s/checkpoint-%" PRId64, out, step),
	    *tmp = format("%s/.checkpoint-%" PRId64 ".old", out, step);
	int rc = move(dir, tmp, e);	/* half removed, it must not look like a checkpoint */

	if (rc == 0)
		rc = file_remove_tree(tmp, e);
	free(dir);
	free(tmp);
	return rc;
}

static int publish_named(const char *dir, const char *out, const char *name, struct err *e)
{
	char *from = file_join(dir, name), *to = file_join(out, name);
	int rc = publish_file(from, to, e);

	free(from);
	free(to);
	return rc;
}

/* Weights of another model, or of this one before it was cut into other shards. */
static bool stale(const char *dir, const char *name)
{
	return strncmp(name, "model", 5) == 0 && strstr(name, ".safetensors") != NULL &&
	    !exists(dir, name);
}

/* Calls publish on all files of dir but the state, or removes stale files of out. */
static int sweep(const char *dir, const char *out, bool publish, struct err *e)
{
	DIR *d = opendir(publish ? dir : out);
	struct dirent *ent;
	int rc = 0;

	if (d == NULL)
		return err_set(e, EX_NOINPUT, "%s:", publish ? dir : out);
	while (rc == 0 && (ent = readdir(d)) != NULL) {
		char *old = !publish && stale(dir, ent->d_name) ? file_join(out, ent->d_name)
		    : NULL;

		if (publish && ent->d_name[0] != '.' && strcmp(ent->d_name, "train_state.json") !=
		    0)
			rc = publish_named(dir, out, ent->d_name, e);
		if (old != NULL && unlink(old) < 0)
			rc = err_set(e, EX_CANTCREAT, "%s:", old);
		free(old);
	}
	closedir(d);
	return rc;
}

int ckpt_publish(const char *out, int64_t step, struct err *e)
{
	char *dir = format("%s/checkpoint-%" PRId64, out, step);
	int rc = sweep(dir, out, true, e);

	if (rc == 0)
		rc = sweep(dir, out, false, e);
	if (rc == 0)		/* last: it says that the rest is there */
		rc = publish_named(dir, out, "train_state.json", e);
	free(dir);
	if (rc < 0 || file_sync_dir(out, e) < 0)
		return -1;
	return remove_dir(out, step, e);
}

/* --- which checkpoints there are --- */

int64_t ckpt_step(const char *name)
{
	char *end;
	long long n;

	if (strncmp(name, "checkpoint-", 11) != 0 || name[11] < '0' || name[11] > '9')
		return -1;
	errno = 0;
	n = strtoll(name + 11, &end, 10);
	return *end == '\0' && errno == 0 ? n : -1;
}

static int newest_first(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

	return (x < y) - (x > y);
}

/* Steps of the checkpoints in out, newest first, malloc'ed. A directory that is not there has none.
 * Returns how many. */
static int list(const char *out, int64_t **steps, struct err *e)
{
	DIR *d = opendir(out);
	struct dirent *ent;
	int n = 0, cap = 0;

	*steps = NULL;
	if (d == NULL)
		return errno == ENOENT ? 0 : err_set(e, EX_NOINPUT, "%s:", out);
	while ((ent = readdir(d)) != NULL) {
		if (ckpt_step(ent->d_name) < 0)
			continue;
		if (n == cap && (*steps = realloc(*steps, (size_t)(cap = 2 * cap + 16) *
		    sizeof **steps)) == NULL)
			err_die(EX_OSERR, "out of memory");
		(*steps)[n++] = ckpt_step(ent->d_name);
	}
	closedir(d);
	if (n > 0)
		qsort(*steps, (size_t)n, sizeof **steps, newest_first);
	return n;
}

bool ckpt_exists(const char *out, int64_t step)
{
	char *dir = format("%s/checkpoint-%" PRId64, out, step);
	bool there = exists(dir, "train_state.json");

	free(dir);
	return there;
}

int ckpt_prune(const char *out, int keep, int64_t spare, struct err *e)
{
	int64_t *steps;
	int n = list(out, &steps, e), rc = n < 0 ? -1 : 0;

	for (int i = keep; i < n && rc == 0; i++)
		if (steps[i] != spare)
			rc = remove_dir(out, steps[i], e);
	free(steps);
	return rc;
}

/* A lock on the directory itself leaves no file behind, and a killed run none either. */
int ckpt_lock(const char *out, int *fd, struct err *e)
{
	*fd = open(out, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (*fd < 0)
		return errno == ENOENT ? 0 : err_set(e, EX_CANTCREAT, "%s:", out);
	/* not every file system has locks */
	if (flock(*fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK)
		return 0;
	return err_set(e, EX_CANTCREAT, "%s: another run is writing there", out);
}

static bool leftover(const char *name)
{
	size_t n = strlen(name);

	if (n > 12 && strcmp(name + n - 12, ".publish.tmp") == 0)
		return true;
	return n > 4 && strncmp(name, ".checkpoint-", 12) == 0 &&
	    (strcmp(name + n - 4, ".tmp") == 0 || strcmp(name + n - 4, ".old") == 0);
}

int ckpt_clean(const char *out, struct err *e)
{
	DIR *d = opendir(out);
	struct dirent *ent;
	int rc = 0;

	if (d == NULL)
		return errno == ENOENT ? 0 : err_set(e, EX_NOINPUT, "%s:", out);
	while (rc == 0 && (ent = readdir(d)) != NULL) {
		char *path = leftover(ent->d_name) ? file_join(out, ent->d_name) : NULL;

		if (path != NULL && unlink(path) < 0)
			rc = file_remove_tree(path, e);
		free(path);
	}
	closedir(d);
	return rc;
}

int ckpt_remove_all(const char *out, struct err *e)
{
	char *state = file_join(out, "train_state.json");
	int rc = unlink(state) < 0 && errno != ENOENT ? err_set(e, EX_CANTCREAT, "%s:", state) : 0;

	free(state);
	return rc < 0 ? rc : ckpt_prune(out, 0, -1, e);
}

bool ckpt_occupied(const char *out)
{
	struct err e = {0};
	int64_t *steps;
	int n = list(out, &steps, &e);

	free(steps);
	return n != 0 || exists(out, "config.json") || exists(out, "model.safetensors") ||
	    exists(out, ADAPTER_WEIGHTS);
}

int ckpt_state(const char *dir, json_t **state, struct err *e)
{
	char *path = file_join(dir, "train_state.json");
	int rc = 0;

	*state = jsonfile_load(path, e);
	if (!json_is_object(*state)) {
		rc = *state ? err_set(e, EX_DATAERR, "%s: not a JSON object", path) : -1;
		json_decref(*state);
	}
	free(path);
	return rc;
}

int ckpt_newest(const char *out, char **dir, struct err *e)
{
	int64_t *steps, top = -1;
	int n = list(out, &steps, e);
	json_t *state;

	*dir = NULL;
	if (n > 0)
		top = steps[0];
	free(steps);
	if (n < 0)
		return -1;
	if (exists(out, "train_state.json")) {
		if (ckpt_state(out, &state, e) < 0)
			return -1;
		if (json_integer_value(json_object_get(state, "step")) > top)
			*dir = format("%s", out);
		json_decref(state);
	}
	if (*dir == NULL && top >= 0)
		*dir = format("%s/checkpoint-%" PRId64, out, top);
	return 0;
}

/* --- reading --- */

/* Numbers all, and none below `least`. */
static bool sane(const float *x, int64_t n, float least)
{
	for (int64_t i = 0; i < n; i++)
		if (!isfinite(x[i]) || x[i] < least)
			return false;
	return true;
}

/* Values of parameter i of an array from the tensor prefix + name of f. */
static int get_values(const struct st_file *f, const char *path, const char *prefix,
    const struct weights *w, dev_real *array,
    const struct optim *moments, const struct transit *t, int i, struct err *e)
{
	const struct param *p = &w->par->p[i];
	dev_real *place = moments != NULL ? optim_place(moments, array, w->par, i) : array + p->off;
	float *dst = t->file != NULL ? t->file : place != NULL ? in_place(w->be, place)
	    : (float *)moments->whole;	/* cppcheck-suppress nullPointerRedundantCheck */
	struct st_error se = {0};
	const struct st_tensor *x;
	char name[sizeof p->name + 16];

	snprintf(name, sizeof name, "%s%s", prefix, p->name);
	x = st_find(f, name);
	if (x == NULL || x->dtype != ST_F32 || x->nbytes != (uint64_t)param_size(p) * sizeof(float))
		return err_set(e, EX_DATAERR, "%s: %s: absent or not of this model", path, name);
	if (st_read(f, x, 0, dst, (size_t)x->nbytes, &se) < 0)
		return modeldir_st_err(e, path, &se);
	if (!sane(dst, param_size(p), moments != NULL && array == moments->v ? 0 : -FLT_MAX))
		return err_set(e, EX_DATAERR, "%s: %s: holds values that no update leaves there",
		    path, name);
	if (place == NULL)
		optim_take(moments, array, w->par, i, t->file != NULL ? from_file(t, param_size(p))
		    : moments->whole);
	else if (t->file != NULL)
		w->be->put(w->be, place, from_file(t, param_size(p)), (size_t)param_size(p) *
		    sizeof(real));
	return 0;
}

/* moments NULL: an array over parameters; else moments of this optimizer. */
static int read_part(const struct st_file *f, const char *path, const char *prefix,
    const struct weights *w, dev_real *array,
    const struct optim *moments, struct err *e)
{
	struct transit t;
	int rc = transit_open(&t, w->be, w->par, moments != NULL && comm_rank() > 0, e);

	for (int i = 0; rc == 0 && i < w->par->n; i++)
		if (params_here(w->par, &w->par->p[i]) && (moments == NULL || moments->of[i] >= 0))
			rc = get_values(f, path, prefix, w, array, moments, &t, i, e);
	transit_close(&t);
	return rc;
}

static bool has_head(const struct params *ps)
{
	return params_get(ps, P_LOOK0, -1, -1) != NULL;
}

static int load_all(const struct modeldir *md, const struct weights *w, const struct params *ps,
    struct err *e)
{
	struct transit t = {0};
	int rc = transit_open(&t, w->be, w->par, false, e);

	for (int i = 0; rc == 0 && i < ps->n; i++) {
		const struct param *p = &ps->p[i];

		if (!params_here(ps, p))
			continue;
		rc = modeldir_read_f32(md, p, t.file != NULL ? t.file : in_place(w->be,
		    w->w + p->off), e);
		if (rc == 0 && t.file != NULL)
			w->be->put(w->be, w->w + p->off, from_file(&t, param_size(p)),
			    (size_t)param_size(p) * sizeof(real));
	}
	transit_close(&t);
	return rc;
}

/* *fresh: the directory has no lookahead head, which is what w's last parameters are of; NULL: that
 * is an error. */
static int load_weights(const char *dir, const struct weights *w, bool *fresh, struct err *e)
{
	struct params ps = *w->par;
	struct modeldir md;
	int rc;

	if (modeldir_open(&md, dir, 0, NULL, e) < 0)
		return -1;
	if (fresh)
		*fresh = has_head(&ps) && !has_head(&md.par);
	for (int i = ps.n - 1; fresh && *fresh && param_is(&ps.p[i], PARAM_LOOK); i--)
		ps.n--;
	rc = modeldir_loadable(&md, &ps, e);
	if (rc == 0)
		rc = load_all(&md, w, &ps, e);
	modeldir_close(&md);
	return rc;
}

static struct st_file *open_file(const char *dir, const char *name, char **path, struct err *e)
{
	struct st_error se = {0};
	struct st_file *f;

	*path = file_join(dir, name);
	f = st_open(*path, ST_READ, &se);
	if (f == NULL) {
		modeldir_st_err(e, *path, &se);
		free(*path);
	}
	return f;
}

int ckpt_load(const char *dir, const struct weights *w, struct optim *o, struct err *e)
{
	char *path, first[sizeof w->par->p->name + 16];
	struct st_file *f = open_file(dir, "optimizer.safetensors", &path, e);
	int rc;

	if (f == NULL)
		return -1;
	snprintf(first, sizeof first, "master.%s", w->par->p[0].name);
	rc = st_find(f, first) != NULL ? read_part(f, path, "master.", w, w->w, NULL, e)
	    : load_weights(dir, w, NULL, e);
	if (rc == 0)
		rc = read_part(f, path, "m.", w, o->m, o, e);
	if (rc == 0)
		rc = read_part(f, path, "v.", w, o->v, o, e);
	st_close(f);
	free(path);
	return rc;
}

int ckpt_load_weights(const char *dir, struct model *m, struct err *e)
{
	const struct weights w = { &m->par, m->be, m->w, NULL };
	bool fresh;

	if (load_weights(dir, &w, &fresh, e) < 0)
		return -1;
	if (fresh)
		model_init_lookahead(m, 0);
	return 0;
}
