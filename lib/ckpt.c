#include "ckpt.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "comm.h"
#include "file.h"
#include "modeldir.h"
#include "safetensors.h"

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

/* Is the device's memory ours, and as files have it? */
#define WRITE_BUFFER (256 << 10)	/* of st_writer */
#define CONVERTED (64 << 10)		/* elements at a time */
#define HEADER_BYTES 512		/* of a tensor while headers are made, weights and both moments together, about */

static bool in_place(const struct backend *be)
{
	return be == &backend_cpu && sizeof(real) == sizeof(float);
}

int64_t ckpt_bytes(int64_t total, int n, int64_t largest, const struct backend *be)
{
	int64_t copies = in_place(be) ? 0 : total * (int64_t)(sizeof(real) + sizeof(float));

	return copies + WRITE_BUFFER + (largest < CONVERTED ? largest : CONVERTED) * (int64_t)sizeof(double) +
	    n * (int64_t)HEADER_BYTES;
}

/* The n elements at dev as floats of the host: the same memory, or a copy. NULL: no memory. */
static float *from_device(const struct backend *be, real *dev, int64_t n)
{
	float *f;
	real *host;

	if (in_place(be))
		return (float *)dev;
	f = malloc((size_t)n * sizeof *f);
	host = malloc((size_t)n * sizeof *host);
	if (f != NULL && host != NULL) {
		be->get(host, dev, (size_t)n * sizeof *host);
		for (int64_t i = 0; i < n; i++)
			f[i] = (float)host[i];
	}
	free(host);
	return f;
}

/* Puts f, that from_device() gave, back and frees it. */
static int to_device(const struct backend *be, real *dev, float *f, int64_t n, struct err *e)
{
	real *host;

	if (in_place(be))
		return 0;
	if ((host = malloc((size_t)n * sizeof *host)) == NULL)
		return err_set(e, EX_OSERR, "no memory to read weights");
	for (int64_t i = 0; i < n; i++)
		host[i] = (real)f[i];
	be->put(dev, host, (size_t)n * sizeof *host);
	free(host);
	return 0;
}

static void release(const struct backend *be, float *f)
{
	if (!in_place(be))
		free(f);
}

/* --- writing --- */

struct part {			/* an array over parameters; every tensor's name gets the prefix */
	const char *prefix;
	real *from;
	const int64_t *at;	/* where each parameter is, -1: it is not; NULL: at its offset */
	const struct optim *divided;	/* these are its moments, and every rank has a part; NULL: all is here */
};

static int64_t place_of(const struct part *part, const struct params *ps, int i)
{
	return part->at != NULL ? part->at[i] : ps->p[i].off;
}

static void declare(struct st_writer *w, const char *prefix, const struct param *p, struct st_error *se)
{
	const uint64_t shape[2] = { (uint64_t)p->rows, (uint64_t)p->cols };
	char name[sizeof p->name + 16];

	snprintf(name, sizeof name, "%s%s", prefix, p->name);
	st_writer_add(w, name, ST_F32, p->ndim, shape, 0, se);
}

/* Moments by parameter, whichever ranks they are on; w may be NULL, for then too the ranks send them. */
static void put_divided(struct st_writer *w, const struct weights *x, const struct part *part, struct st_error *se)
{
	for (int i = 0; i < x->par->n; i++) {
		const real *v = place_of(part, x->par, i) < 0 ? NULL : optim_whole(part->divided, part->from, x->par, i);

		if (v != NULL && w != NULL)
			st_writer_data(w, v, (size_t)param_size(&x->par->p[i]) * sizeof *v, se);
	}
}

/* -1: no memory for a copy. */
static int put_part(struct st_writer *w, const struct weights *x, const struct part *part, struct st_error *se)
{
	int64_t n = 0;
	float *f;

	if (part->divided != NULL) {
		put_divided(w, x, part, se);
		return 0;
	}
	if (w == NULL)
		return 0;
	for (int i = 0; i < x->par->n; i++)
		if (place_of(part, x->par, i) >= 0)
			n = place_of(part, x->par, i) + param_size(&x->par->p[i]);
	if ((f = from_device(x->be, part->from, n)) == NULL)
		return -1;
	for (int i = 0; i < x->par->n; i++)
		if (place_of(part, x->par, i) >= 0)
			st_writer_data(w, f + place_of(part, x->par, i), (size_t)param_size(&x->par->p[i]) * sizeof *f, se);
	release(x->be, f);
	return 0;
}

/* A failed writer stays failed, so only the last call is looked at. */
static int put_parts(const char *path, const struct weights *x, const struct part *part, int nparts,
    const json_t *metadata, struct err *e)
{
	struct st_error se = {0};
	struct st_writer *w = st_writer_create(path, &se);
	const char *key;
	json_t *v;

	for (int j = 0; w != NULL && j < nparts; j++)
		for (int i = 0; i < x->par->n; i++)
			if (place_of(&part[j], x->par, i) >= 0)
				declare(w, part[j].prefix, &x->par->p[i], &se);
	if (w != NULL && metadata != NULL)
		json_object_foreach((json_t *)metadata, key, v)
			st_writer_meta(w, key, json_string_value(v), &se);
	if (w != NULL)
		st_writer_begin(w, &se);
	for (int j = 0; j < nparts; j++)
		if (put_part(w, x, &part[j], &se) < 0) {
			st_writer_abort(w);
			return err_set(e, EX_OSERR, "no memory to write %s", path);
		}
	return st_writer_finish(w, &se) < 0 ? modeldir_st_err(e, path, &se) : 0;
}

int ckpt_put_gradients(const char *path, const struct weights *w, struct err *e)
{
	const struct part part = { .prefix = "", .from = w->g };

	return put_parts(path, w, &part, 1, NULL, e);
}

static int put_moments(const char *dir, const struct ckpt *c, struct err *e)
{
	const struct optim *divided = comm_size() > 1 ? c->opt : NULL;
	const struct part part[] = { { "m.", c->opt->m, c->opt->at, divided }, { "v.", c->opt->v, c->opt->at, divided },
	    { .prefix = "master.", .from = c->w.w } };
	char *path = file_join(dir, "optimizer.safetensors");
	int rc = put_parts(path, &c->w, part, c->dtype == DT_F32 || c->adapter != NULL ? 2 : 3, NULL, e);

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

static int put_adapter(const char *dir, const struct ckpt *c, struct err *e)
{
	const struct part part = { .prefix = "", .from = c->w.w };
	char *path = file_join(dir, "adapter_model.safetensors");
	int rc = put_parts(path, &c->w, &part, 1, c->metadata, e);

	free(path);
	return rc < 0 ? -1 : put_json(dir, "adapter_config.json", c->adapter, e);
}

static int put_weights(const char *dir, const struct ckpt *c, struct err *e)
{
	const struct modeldir_out o = { .dtype = c->dtype, .shard_size = c->shard_size, .meta = c->metadata };
	float *f;
	int rc;

	if (c->adapter != NULL)
		return put_adapter(dir, c, e);
	if ((f = from_device(c->w.be, c->w.w, c->w.par->total)) == NULL)
		return err_set(e, EX_OSERR, "no memory to write weights");
	rc = modeldir_save(dir, c->cfg, c->w.par, f, &o, NULL, e);
	release(c->w.be, f);
	return rc;
}

/* Rank 0 tells the others whether it will ask for their moments. */
static bool ask_for_moments(bool ask)
{
	comm_bcast(&ask, sizeof ask);
	return ask;
}

static int fill(const char *dir, const struct ckpt *c, struct err *e)
{
	int rc = file_mkdirs(dir, e);

	if (rc == 0 && c->tok != NULL)
		rc = tok_save(c->tok, dir, e);
	if (rc == 0)
		rc = put_weights(dir, c, e);
	if (!ask_for_moments(rc == 0) || put_moments(dir, c, e) < 0 || put_json(dir, "train_state.json", c->state, e) < 0)
		return -1;
	return file_sync_dir(dir, e);
}

/* What ranks above 0 have to do with a checkpoint. */
static int send_moments(const struct ckpt *c)
{
	const struct part m = { "m.", c->opt->m, c->opt->at, c->opt }, v = { "v.", c->opt->v, c->opt->at, c->opt };

	if (!ask_for_moments(false))
		return 0;
	put_divided(NULL, &c->w, &m, NULL);
	put_divided(NULL, &c->w, &v, NULL);
	return 0;
}

static int move(const char *from, const char *to, struct err *e)
{
	return rename(from, to) < 0 ? err_set(e, EX_CANTCREAT, "%s:", to) : 0;
}

int ckpt_save(const char *out, int64_t step, const struct ckpt *c, struct err *e)
{
	char *dir, *tmp;
	int rc = 0;

	if (comm_rank() > 0)
		return send_moments(c);
	dir = format("%s/checkpoint-%" PRId64, out, step);
	tmp = format("%s/.checkpoint-%" PRId64 ".tmp", out, step);
	/* The state at a step is always the same: what has this name is what would be written. */
	if (!exists(dir, "train_state.json")) {
		rc = fill(tmp, c, e);
		if (rc == 0)
			rc = move(tmp, dir, e);
		if (rc == 0)
			rc = file_sync_dir(out, e);
		if (rc < 0 && exists(tmp, "")) {	/* leave nothing on a disk that may be full; the first error counts */
			struct err ignored = {0};

			file_remove_tree(tmp, &ignored);
		}
	} else
		ask_for_moments(false);
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
	char *dir = format("%s/checkpoint-%" PRId64, out, step), *tmp = format("%s/.checkpoint-%" PRId64 ".old", out, step);
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
	return strncmp(name, "model", 5) == 0 && strstr(name, ".safetensors") != NULL && !exists(dir, name);
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
		char *old = !publish && stale(dir, ent->d_name) ? file_join(out, ent->d_name) : NULL;

		if (publish && ent->d_name[0] != '.' && strcmp(ent->d_name, "train_state.json") != 0)
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

static int64_t step_of(const char *name)
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
		if (step_of(ent->d_name) < 0)
			continue;
		if (n == cap && (*steps = realloc(*steps, (size_t)(cap = 2 * cap + 16) * sizeof **steps)) == NULL)
			err_die(EX_OSERR, "out of memory");
		(*steps)[n++] = step_of(ent->d_name);
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
	if (flock(*fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK)	/* not every file system has locks */
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
	    exists(out, "adapter_model.safetensors");
}

int ckpt_state(const char *dir, json_t **state, struct err *e)
{
	char *path = file_join(dir, "train_state.json"), *text = NULL;
	json_error_t je;
	size_t len;
	int rc = file_get(path, &text, &len, e);

	*state = rc == 0 ? json_loadb(text, len, 0, &je) : NULL;
	if (rc == 0 && !json_is_object(*state)) {
		json_decref(*state);
		rc = err_set(e, EX_DATAERR, "%s: not a JSON object", path);
	}
	free(text);
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

/* Tensors prefix + name of f into dst. */
static int get_part(const struct st_file *f, const char *path, const struct part *part, const struct params *ps, float *dst,
    struct err *e)
{
	struct st_error se = {0};

	for (int i = 0; i < ps->n; i++) {
		const struct param *p = &ps->p[i];
		int64_t at = place_of(part, ps, i);
		const struct st_tensor *t;
		char name[sizeof p->name + 16];

		if (at < 0)
			continue;
		snprintf(name, sizeof name, "%s%s", part->prefix, p->name);
		t = st_find(f, name);
		if (t == NULL || t->dtype != ST_F32 || t->nbytes != (uint64_t)param_size(p) * sizeof(float))
			return err_set(e, EX_DATAERR, "%s: %s: absent or not of this model", path, name);
		if (st_read(f, t, 0, part->divided != NULL ? (float *)part->divided->whole : dst + at, (size_t)t->nbytes, &se) < 0)
			return modeldir_st_err(e, path, &se);
		if (part->divided != NULL)
			optim_take(part->divided, part->from, i, part->divided->whole, param_size(p));
	}
	return 0;
}

/* n: elements of the array. */
static int read_part(const struct st_file *f, const char *path, const struct weights *w, const struct part *part,
    int64_t n, struct err *e)
{
	float *flat = part->divided == NULL ? from_device(w->be, part->from, n) : NULL;
	int rc;

	if (part->divided != NULL)
		return get_part(f, path, part, w->par, NULL, e);
	if (flat == NULL)
		return err_set(e, EX_OSERR, "no memory to read %s", path);
	rc = get_part(f, path, part, w->par, flat, e);
	if (rc == 0)
		rc = to_device(w->be, part->from, flat, n, e);
	release(w->be, flat);
	return rc;
}

static int load_flat(const char *dir, const struct weights *w, struct err *e)
{
	struct modeldir md;
	float *flat;
	int rc;

	if (modeldir_open(&md, dir, 0, NULL, e) < 0)
		return -1;
	flat = from_device(w->be, w->w, w->par->total);
	rc = flat == NULL ? err_set(e, EX_OSERR, "no memory to read %s", dir) :
	    modeldir_load_f32(&md, w->par, flat, e);
	if (rc == 0)
		rc = to_device(w->be, w->w, flat, w->par->total, e);
	release(w->be, flat);
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

static int load_adapter(const char *dir, const struct weights *w, struct err *e)
{
	const struct part part = { .prefix = "", .from = w->w };
	char *path;
	struct st_file *f = open_file(dir, "adapter_model.safetensors", &path, e);
	int rc;

	if (f == NULL)
		return -1;
	rc = read_part(f, path, w, &part, w->par->total, e);
	st_close(f);
	free(path);
	return rc;
}

int ckpt_load(const char *dir, const struct weights *w, bool adapter, struct optim *o, struct err *e)
{
	const struct optim *divided = comm_size() > 1 ? o : NULL;
	const struct part master = { .prefix = "master.", .from = w->w }, m = { "m.", o->m, o->at, divided },
	    v = { "v.", o->v, o->at, divided };
	char *path, first[sizeof w->par->p->name + 16];
	struct st_file *f = open_file(dir, "optimizer.safetensors", &path, e);
	int rc;

	if (f == NULL)
		return -1;
	snprintf(first, sizeof first, "master.%s", w->par->p[0].name);
	if (adapter)
		rc = load_adapter(dir, w, e);
	else
		rc = st_find(f, first) != NULL ? read_part(f, path, w, &master, w->par->total, e) : load_flat(dir, w, e);
	if (rc == 0)
		rc = read_part(f, path, w, &m, o->total, e);
	if (rc == 0)
		rc = read_part(f, path, w, &v, o->total, e);
	st_close(f);
	free(path);
	return rc;
}

int ckpt_load_weights(const char *dir, struct model *m, struct err *e)
{
	const struct weights w = { &m->par, m->be, m->w, NULL };

	return load_flat(dir, &w, e);
}
