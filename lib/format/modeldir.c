#include "format/modeldir.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#include "arch/arch.h"
#include "base/file.h"
#include "base/jsonfile.h"
#include "backend/quant.h"
#include "base/sha256.h"
#include "base/sniff.h"

#define CHUNK ((size_t)64 << 10)	/* elements converted at a time */
#define INDEX "model.safetensors.index.json"

int modeldir_st_err(struct err *e, const char *file, const struct st_error *se)
{
	int status = se->code == ST_EOPEN ? EX_NOINPUT : se->code == ST_EIO ? EX_IOERR :
	    se->code == ST_ENOMEM ? EX_OSERR : se->code == ST_EUSE ? EX_SOFTWARE : EX_DATAERR;
	const char *what = se->code == ST_ESHORT || se->code == ST_EJSON || se->code == ST_EUTF8
	    ? sniff_file(file) : NULL;

	if (what)
		return err_set(e, status, "%s: is %s, where safetensors should be", file, what);
	if (se->pos)
		return err_set(e, status, "%s: %s (byte %llu)", file, se->msg,
		    (unsigned long long)se->pos);
	return err_set(e, status, "%s: %s", file, se->msg);
}

/* ---- reading ---- */

static bool has_file(const struct modeldir *md, const char *name)
{
	char *path = file_join(md->path, name);
	bool there = access(path, F_OK) == 0;

	free(path);
	return there;
}

/* Weights in another form than the one that is read; NULL: none that is known. */
static const char *other_weights(const struct modeldir *md)
{
	static const char *const known[][2] = {
		{ "model-00001-of-00002.safetensors", "shards, but no " INDEX },
		{ "pytorch_model.bin", "pytorch_model.bin, a Python pickle that may run code when "
		    "it is read: convert it to safetensors" },
		{ "pytorch_model.bin.index.json", "pytorch_model-*.bin, Python pickles that may "
		    "run code when they are read: convert them to safetensors" },
		{ "consolidated.safetensors", "consolidated.safetensors, of another layout" },
		{ "adapter_model.safetensors", "an adapter: chr-merge makes a model of it and the "
		    "model that it was trained on" },
		{ "tf_model.h5", "tf_model.h5, of TensorFlow" },
	};

	for (size_t i = 0; i < sizeof known / sizeof *known; i++)
		if (has_file(md, known[i][0]))
			return known[i][1];
	return NULL;
}

static int add_file(struct modeldir *md, const char *name, struct err *e)
{
	char **file = realloc(md->file, ((size_t)md->nfiles + 1) * sizeof *file);
	struct st_file **st;
	struct st_error se;
	int i = md->nfiles;

	if (file)
		md->file = file;
	st = realloc(md->st, ((size_t)md->nfiles + 1) * sizeof *st);
	if (st)
		md->st = st;
	if (!file || !st)
		return err_set(e, EX_OSERR, "out of memory");
	md->file[i] = file_join(md->path, name);
	md->st[i] = st_open(md->file[i], ST_MMAP, &se);
	md->nfiles++;
	if (md->st[i])
		return 0;
	modeldir_st_err(e, md->file[i], &se);
	if (i == 0 && !has_file(md, name) && !has_file(md, INDEX) && other_weights(md))
		return err_set(e, EX_NOINPUT, "%s: is not there; the directory has %s", md->file[i],
		    other_weights(md));
	return -1;
}

static bool is_open(const struct modeldir *md, const char *name)
{
	for (int i = 0; i < md->nfiles; i++)
		if (strcmp(strrchr(md->file[i], '/') + 1, name) == 0)
			return true;
	return false;
}

/* Every shard that the index names; a shard is a plain file of the same directory. */
static int open_shards(struct modeldir *md, const char *index, const json_t *map, struct err *e)
{
	const char *name, *file;
	struct view v;
	json_t *value;

	if (!json_is_object(map) || json_object_size(map) == 0)
		return err_set(e, EX_DATAERR, "%s: missing \"weight_map\"", index);
	json_object_foreach((json_t *)map, name, value) {
		file = json_string_value(value);
		if (!file || !*file || *file == '.' || strchr(file, '/'))
			return err_set(e, EX_DATAERR, "%s: \"%.100s\" is said to be in \"%.100s\", "
			    "which is not the name of a file beside it", index, name,
			    file ? file : "");
		if (!is_open(md, file) && add_file(md, file, e) < 0)
			return -1;
	}
	json_object_foreach((json_t *)map, name, value)
		if (modeldir_find(md, name, &v) < 0)
			return err_set(e, EX_DATAERR, "%s: tensor \"%s\" is in no shard", index,
			    name);
	return 0;
}

static int open_index(struct modeldir *md, struct err *e)
{
	char *index = file_join(md->path, INDEX);
	json_t *o = jsonfile_load(index, e);
	int r = o ? open_shards(md, index, json_object_get(o, "weight_map"), e) : -1;

	json_decref(o);
	free(index);
	return r;
}

/* The same name in two shards would make the result depend on their order. */
static int check_unique(const struct modeldir *md, struct err *e)
{
	const struct st_tensor *t;

	for (int i = 1; i < md->nfiles; i++)
		for (size_t k = 0; (t = st_at(md->st[i], k)); k++)
			for (int j = 0; j < i && strncmp(t->name, "__pad.", 6) != 0; j++)
				if (st_find(md->st[j], t->name))
					return err_set(e, EX_DATAERR,
					    "%s: tensor \"%s\" is in %s too", md->file[i], t->name,
					    md->file[j]);
	return 0;
}

static int open_files(struct modeldir *md, const char *path, int nsets, const char *const sets[],
    struct err *e)
{
	int r;

	memset(md, 0, sizeof *md);
	if (config_load(&md->cfg, path, nsets, sets, e) < 0)
		return -1;
	md->path = strdup(path);
	if (params_build(&md->par, &md->cfg, e) < 0) {
		modeldir_close(md);
		return -1;
	}
	md->packed = has_file(md, "cluster_manifest.json");
	if (has_file(md, "model.safetensors") || !has_file(md, INDEX))
		r = add_file(md, "model.safetensors", e);
	else
		r = open_index(md, e) < 0 || check_unique(md, e) < 0 ? -1 : 0;
	if (r < 0)
		modeldir_close(md);
	return r;
}

void modeldir_close(struct modeldir *md)
{
	for (int i = 0; i < md->nfiles; i++) {
		st_close(md->st[i]);
		free(md->file[i]);
	}
	free(md->st);
	free(md->file);
	free(md->path);
	params_free(&md->par);
	config_free(&md->cfg);
	memset(md, 0, sizeof *md);
}

int modeldir_find(const struct modeldir *md, const char *name, struct view *v)
{
	for (int i = 0; i < md->nfiles; i++)
		if ((v->t = st_find(md->st[i], name))) {
			v->st = md->st[i];
			v->file = md->file[i];
			return 0;
		}
	return -1;
}

const char *modeldir_meta(const struct modeldir *md, const char *key)
{
	return st_meta(md->st[0], key);
}

json_t *modeldir_metadata(const struct modeldir *md)
{
	json_t *o = json_object();
	const char *key, *value;

	for (size_t i = 0; (key = st_meta_at(md->st[0], i, &value)); i++)
		json_object_set_new(o, key, json_string(value));
	return o;
}

/* Float type of a stored tensor, -1 when it is none of ours. */
static int float_type(enum st_dtype t)
{
	enum dtype d;

	return dtype_parse(st_dtype_name(t), &d) < 0 ? -1 : (int)d;
}

static const char *shape_text(const struct param *p, char out[32])
{
	if (p->ndim == 1)
		snprintf(out, 32, "[%d]", p->rows);
	else
		snprintf(out, 32, "[%d,%d]", p->rows, p->cols);
	return out;
}

/* Is it a matrix in blocks, of the shape asked for and all there? */
static bool in_blocks(const struct view *v, const struct param *p, enum dtype *t)
{
	char key[128], name[8];
	const char *text;
	int rows, cols, end = 0;

	if (v->t->dtype != ST_U8 || p->ndim != 2)
		return false;
	snprintf(key, sizeof key, "quant.%s", p->name);
	text = st_meta(v->st, key);
	return text && sscanf(text, "%7s %9d %9d%n", name, &rows, &cols, &end) == 3 &&
	    text[end] == '\0'
	    && dtype_parse(name, t) == 0 && dtype_blocks(*t) && rows == p->rows && cols == p->cols
	    && v->t->nbytes == mat_bytes(*t, rows, cols);
}

static int locate(const struct modeldir *md, const struct param *p, struct view *v, enum dtype *dt,
    struct err *e)
{
	const struct st_tensor *t;
	char shape[32];

	if (modeldir_find(md, p->name, v) < 0)
		return err_set(e, EX_DATAERR, "%s: tensor \"%s\" is missing", md->file[0], p->name);
	t = v->t;
	if (in_blocks(v, p, dt))
		return 0;
	if (t->ndim != p->ndim || t->shape[0] != (uint64_t)p->rows ||
	    (p->ndim == 2 && t->shape[1] != (uint64_t)p->cols))
		return err_set(e, EX_DATAERR, "%s: tensor \"%s\" has not the shape %s that "
		    "config.json asks for", v->file,
		    p->name, shape_text(p, shape));
	if (float_type(t->dtype) < 0)
		return err_set(e, EX_DATAERR, "%s: tensor \"%s\" is %s, not F64, F32, BF16 or F16",
		    v->file, p->name,
		    st_dtype_name(t->dtype));
	*dt = (enum dtype)float_type(t->dtype);
	return 0;
}

int modeldir_type(const struct modeldir *md, const struct param *p, enum dtype *t, struct err *e)
{
	struct view v;

	return locate(md, p, &v, t, e);
}

int modeldir_read(const struct modeldir *md, const struct param *p, void *dst, struct err *e)
{
	struct st_error se;
	enum dtype t;
	struct view v;

	if (locate(md, p, &v, &t, e) < 0)
		return -1;
	return st_read(v.st, v.t, 0, dst, v.t->nbytes, &se) < 0 ? modeldir_st_err(e, v.file, &se)
	    : 0;
}

static int read_blocks(const struct modeldir *md, const struct param *p, enum dtype t, float *dst,
    struct err *e)
{
	void *buf = malloc(mat_bytes(t, p->rows, p->cols));
	int r = buf ? modeldir_read(md, p, buf, e) : err_set(e, EX_OSERR, "out of memory");

	if (r == 0)
		quant_unpack(dst, buf, t, p->rows, p->cols);
	free(buf);
	return r;
}

int modeldir_read_f32(const struct modeldir *md, const struct param *p, float *dst, struct err *e)
{
	size_t n = (size_t)param_size(p), size, k;
	struct st_error se;
	struct view v;
	enum dtype dt;
	char *buf;
	int r = 0;

	if (locate(md, p, &v, &dt, e) < 0)
		return -1;
	if (dtype_blocks(dt))
		return read_blocks(md, p, dt, dst, e);
	if (v.t->dtype == ST_F32)
		return st_read(v.st, v.t, 0, dst, n * sizeof *dst, &se) < 0
		    ? modeldir_st_err(e, v.file, &se) : 0;
	size = st_dtype_size(v.t->dtype);
	buf = malloc(CHUNK * size);
	if (!buf)
		return err_set(e, EX_OSERR, "out of memory");
	for (size_t i = 0; i < n && r == 0; i += k) {
		k = n - i < CHUNK ? n - i : CHUNK;
		r = st_read(v.st, v.t, i * size, buf, k * size, &se);
		if (r == 0)
			tensor_to_f32(dst + i, buf, (enum dtype)float_type(v.t->dtype), k);
	}
	free(buf);
	return r < 0 ? modeldir_st_err(e, v.file, &se) : 0;
}

/* Checkpoints of tied models may hold the head all the same; it must then be the embedding. */
static int check_tied_head(const struct modeldir *md, const struct view *head, struct err *e)
{
	struct view emb;

	if (modeldir_find(md, "model.embed_tokens.weight", &emb) == 0 &&
	    emb.t->dtype == head->t->dtype &&
	    emb.t->nbytes == head->t->nbytes && memcmp(emb.t->data, head->t->data, emb.t->nbytes) ==
	    0)
		return 0;
	return err_set(e, EX_DATAERR, "%s: lm_head.weight differs from the embedding, but "
	    "tie_word_embeddings is true",
	    head->file);
}

/* Tensors that nobody here needs. */
struct skipped {
	int n;
	const char *example, *why;	/* of the first */
};

static bool passed_over(const struct modeldir *md, const char *name, const char **why)
{
	char mark[64];
	struct view v;
	int layer;

	*why = arch_harmless(&md->cfg, name, &layer);
	if (!*why || layer < 0)
		return *why != NULL;
	arch_mtp_mark(layer, mark);
	return modeldir_find(md, mark, &v) == 0;
}

/* Tensors of file i that are no parameters. */
static int check_extra(const struct modeldir *md, int i, const struct params *ps,
    struct skipped *s, struct err *e)
{
	const struct st_tensor *t;
	const char *why;

	for (size_t k = 0; (t = st_at(md->st[i], k)); k++) {
		struct view v = { t, md->st[i], md->file[i] };

		if (strncmp(t->name, "__pad.", 6) == 0 || params_find(ps, t->name))
			continue;
		if (passed_over(md, t->name, &why)) {
			*s = s->n ? (struct skipped){ s->n + 1, s->example, s->why }
			    : (struct skipped){ 1, t->name, why };
		} else if (!md->cfg.tie_word_embeddings || strcmp(t->name, "lm_head.weight") != 0)
			return err_set(e, EX_DATAERR, "%s: unexpected tensor \"%s\"", md->file[i],
			    t->name);
		else if (check_tied_head(md, &v, e) < 0)
			return -1;
	}
	return 0;
}

static int check(const struct modeldir *md, const struct params *ps, struct skipped *s,
    struct err *e)
{
	enum dtype dt;
	struct view v;

	for (int i = 0; i < ps->n; i++)
		if (!(md->packed && param_routed(&ps->p[i])) && locate(md, &ps->p[i], &v, &dt,
		    e) < 0)
			return -1;
	for (int i = 0; i < md->nfiles; i++)
		if (check_extra(md, i, ps, s, e) < 0)
			return -1;
	return 0;
}

int modeldir_check(const struct modeldir *md, const struct params *ps, struct err *e)
{
	struct skipped s = { 0 };

	return check(md, ps, &s, e);
}

/* Once a directory: programs open the same one several times. */
static void say_skipped(const struct modeldir *md, const struct skipped *s)
{
	static char last[1024];

	if (s->n == 0 || strcmp(last, md->path) == 0)
		return;
	snprintf(last, sizeof last, "%s", md->path);
	err_warn("%s: %d tensors are not used: %s%s (%s)", md->path, s->n, s->example,
	    s->n > 1 ? ", ..." : "", s->why);
}

int modeldir_open(struct modeldir *md, const char *path, int nsets, const char *const sets[],
    struct err *e)
{
	struct skipped s = { 0 };
	int r;

	if (open_files(md, path, nsets, sets, e) < 0)
		return -1;
	r = check(md, &md->par, &s, e);
	if (r == 0)
		say_skipped(md, &s);
	else
		modeldir_close(md);
	return r;
}

int modeldir_loadable(const struct modeldir *md, const struct params *ps, struct err *e)
{
	return md->packed ? err_set(e, EX_DATAERR,
	    "%s: packed: its experts are in .ctsr files; use the model it was packed "
	    "from", md->path) : modeldir_check(md, ps, e);
}

int modeldir_load_f32(const struct modeldir *md, const struct params *ps, float *flat,
    struct err *e)
{
	if (modeldir_loadable(md, ps, e) < 0)
		return -1;
	for (int i = 0; i < ps->n; i++)
		if (modeldir_read_f32(md, &ps->p[i], flat + ps->p[i].off, e) < 0)
			return -1;
	return 0;
}

/* ---- fingerprint ---- */

struct print {			/* one line of what is hashed */
	const struct param *p;
	const char *dtype;
	uint32_t crc;
};

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct print *)a)->p->name, ((const struct print *)b)->p->name);
}

static void hash_prints(struct print *pr, int n, char out[33])
{
	struct sha256 s;
	uint8_t digest[32];
	char line[160], shape[32];
	int len;

	qsort(pr, (size_t)n, sizeof *pr, by_name);
	sha256_init(&s);
	for (int i = 0; i < n; i++) {
		len = snprintf(line, sizeof line, "%s %s %s %08x\n", pr[i].p->name, pr[i].dtype,
		    shape_text(pr[i].p, shape),
		    pr[i].crc);
		sha256_update(&s, line, (size_t)len);
	}
	sha256_final(&s, digest);
	for (int i = 0; i < 16; i++)
		snprintf(out + 2 * i, 3, "%02x", digest[i]);
}

static int crc_stored(const struct view *v, char *buf, size_t size, uint32_t *crc, struct err *e)
{
	struct st_error se;
	uint64_t left;

	*crc = (uint32_t)crc32(0, NULL, 0);
	for (uint64_t at = 0; at < v->t->nbytes; at += left) {
		left = v->t->nbytes - at < size ? v->t->nbytes - at : size;
		if (st_read(v->st, v->t, at, buf, (size_t)left, &se) < 0)
			return modeldir_st_err(e, v->file, &se);
		*crc = (uint32_t)crc32(*crc, (const Bytef *)buf, (uInt)left);
	}
	return 0;
}

int modeldir_crc(const struct view *v, uint32_t *crc, struct err *e)
{
	size_t size = CHUNK * sizeof(float);
	char *buf = malloc(size);
	int rc = buf ? crc_stored(v, buf, size, crc, e) : err_set(e, EX_OSERR, "out of memory");

	free(buf);
	return rc;
}

int modeldir_compute_fingerprint(const struct modeldir *md, char out[33], struct err *e)
{
	const struct params *ps = &md->par;
	struct print *pr = malloc((size_t)ps->n * sizeof *pr);
	size_t size = CHUNK * sizeof(float);
	char *buf = malloc(size);
	enum dtype dt;
	struct view v;
	int r = 0;

	if (!pr || !buf)
		r = err_set(e, EX_OSERR, "out of memory");
	for (int i = 0; i < ps->n && r == 0; i++) {
		r = locate(md, &ps->p[i], &v, &dt, e);
		if (r == 0) {
			pr[i].p = &ps->p[i];
			pr[i].dtype = st_dtype_name(v.t->dtype);
			r = crc_stored(&v, buf, size, &pr[i].crc, e);
		}
	}
	if (r == 0)
		hash_prints(pr, ps->n, out);
	free(pr);
	free(buf);
	return r;
}

const char *modeldir_fingerprint(struct modeldir *md, struct err *e)
{
	const char *stored = modeldir_meta(md, "chronos.fingerprint");

	if (md->fingerprint[0])
		return md->fingerprint;
	if (stored && strlen(stored) == 32 && strspn(stored, "0123456789abcdef") == 32) {
		memcpy(md->fingerprint, stored, 33);
		return md->fingerprint;
	}
	if (md->packed) {
		err_set(e, EX_DATAERR, "%s: packed, and its metadata names no chronos.fingerprint",
		    md->path);
		return NULL;
	}
	return modeldir_compute_fingerprint(md, md->fingerprint, e) < 0 ? NULL : md->fingerprint;
}

/* ---- writing ---- */

struct save {
	const char *dir;
	const struct params *ps;
	const float *flat;
	const struct modeldir_out *o;
	const char *fingerprint;
	char *buf;			/* CHUNK elements of the stored type */
	struct err *e;
	int *shard, nshards;		/* (ps->n) shard of each parameter */
};

static enum st_dtype stored_type(const struct save *s)
{
	return (enum st_dtype)st_dtype_parse(dtype_name(s->o->dtype));
}

static int64_t stored_bytes(const struct save *s, const struct param *p)
{
	return param_size(p) * (int64_t)dtype_size(s->o->dtype);
}

static const float *values(const struct save *s, int i)
{
	return s->o->get ? s->o->get(s->o->ctx, i) : s->flat + s->ps->p[i].off;
}

/* Next piece of a parameter x as stored, from element i on; returns its bytes. */
static size_t stored_chunk(const struct save *s, const struct param *p, const float *x, int64_t i)
{
	int64_t left = param_size(p) - i;
	size_t n = left < (int64_t)CHUNK ? (size_t)left : CHUNK;

	tensor_from_f32(s->buf, s->o->dtype, x + i, n);
	return n * dtype_size(s->o->dtype);
}

/* Is there a number among n values that is none as stored, in s->buf? */
static bool overflows(const struct save *s, const float *x, size_t n)
{
	size_t size = dtype_size(s->o->dtype);

	if (tensor_finite(s->buf, s->o->dtype, n))
		return false;
	for (size_t i = 0; i < n; i++)
		if (isfinite(x[i]) && !tensor_finite(s->buf + i * size, s->o->dtype, 1))
			return true;
	return false;
}

/* CRC of a parameter x as stored. What is too large for the type is found here, before anything is
 * written. */
static int crc_values(const struct save *s, const struct param *p, const float *x, uint32_t *crc)
{
	enum dtype t = s->o->dtype;

	*crc = (uint32_t)crc32(0, NULL, 0);
	for (int64_t k = 0; k < param_size(p); k += (int64_t)CHUNK) {
		size_t n = stored_chunk(s, p, x, k);

		if (overflows(s, x + k, n / dtype_size(t)))
			return err_set(s->e, EX_DATAERR, "%s has a value that is too large for %s: "
			    "the model is not written", p->name, dtype_name(t));
		*crc = (uint32_t)crc32(*crc, (Bytef *)s->buf, (uInt)n);
	}
	return 0;
}

static int save_fingerprint(const struct save *s, char out[33])
{
	struct print *pr = malloc((size_t)s->ps->n * sizeof *pr);
	int rc = pr ? 0 : err_set(s->e, EX_OSERR, "out of memory");

	for (int i = 0; i < s->ps->n && rc == 0; i++) {
		pr[i] = (struct print){ .p = &s->ps->p[i], .dtype = dtype_name(s->o->dtype) };
		rc = crc_values(s, pr[i].p, values(s, i), &pr[i].crc);
	}
	if (rc == 0)
		hash_prints(pr, s->ps->n, out);
	free(pr);
	return rc;
}

static void plan_shards(struct save *s)
{
	int64_t size = 0, bytes;

	s->nshards = 1;
	for (int i = 0; i < s->ps->n; i++) {
		bytes = stored_bytes(s, &s->ps->p[i]);
		if (s->o->shard_size > 0 && size > 0 && size + bytes > s->o->shard_size) {
			s->nshards++;
			size = 0;
		}
		size += bytes;
		s->shard[i] = s->nshards - 1;
	}
}

static void shard_name(const struct save *s, int k, char out[64])
{
	if (s->nshards == 1)
		snprintf(out, 64, "model.safetensors");
	else
		snprintf(out, 64, "model-%05d-of-%05d.safetensors", k + 1, s->nshards);
}

/* The writer's errors are sticky: whatever failed here, st_writer_finish() says so. */
static void declare(const struct save *s, int k, struct st_writer *w, struct st_error *se)
{
	const char *key;
	json_t *v;

	if (!json_object_get(s->o->meta, "format"))
		st_writer_meta(w, "format", "pt", se);		/* transformers looks for it */
	json_object_foreach((json_t *)s->o->meta, key, v)
		if (json_is_string(v) && strcmp(key, "chronos.fingerprint") != 0)
			st_writer_meta(w, key, json_string_value(v), se);
	st_writer_meta(w, "chronos.fingerprint", s->fingerprint, se);
	for (int i = 0; i < s->ps->n; i++) {
		const struct param *p = &s->ps->p[i];
		uint64_t shape[2] = { (uint64_t)p->rows, (uint64_t)p->cols };

		if (s->shard[i] == k)
			st_writer_add(w, p->name, stored_type(s), p->ndim, shape, 0, se);
	}
	st_writer_begin(w, se);
}

static int save_shard(const struct save *s, int k)
{
	struct st_error se;
	struct st_writer *w;
	char name[64], *path;
	size_t n;
	int r = 0;

	shard_name(s, k, name);
	path = file_join(s->dir, name);
	w = st_writer_create(path, &se);
	if (!w)
		r = err_set(s->e, EX_CANTCREAT, "%s: %s", path, se.msg);
	else
		declare(s, k, w, &se);
	for (int i = 0; w && i < s->ps->n; i++) {
		const float *x = s->shard[i] == k ? values(s, i) : NULL;

		for (int64_t at = 0; x && at < param_size(&s->ps->p[i]); at += (int64_t)CHUNK) {
			n = stored_chunk(s, &s->ps->p[i], x, at);
			st_writer_data(w, s->buf, n, &se);
		}
	}
	if (w && st_writer_finish(w, &se) < 0)
		r = modeldir_st_err(s->e, path, &se);
	free(path);
	return r;
}

static int put_json(const char *dir, const char *name, json_t *o, struct err *e)
{
	char *path = file_join(dir, name),
	    *text = json_dumps(o, JSON_INDENT(2) | JSON_REAL_PRECISION(15));
	size_t len = text ? strlen(text) : 0;
	int r;

	if (text)
		text[len] = '\n';	/* in place of the NUL */
	r = text ? file_put(path, text, len + 1, e) : err_set(e, EX_OSERR, "out of memory");
	free(text);
	free(path);
	json_decref(o);
	return r;
}

static int save_index(const struct save *s)
{
	json_t *map = json_object();
	int64_t total = 0;
	char name[64];

	for (int i = 0; i < s->ps->n; i++) {
		shard_name(s, s->shard[i], name);
		json_object_set_new(map, s->ps->p[i].name, json_string(name));
		total += stored_bytes(s, &s->ps->p[i]);
	}
	return put_json(s->dir, INDEX, json_pack("{s:{s:I}, s:o}", "metadata", "total_size",
	    (json_int_t)total, "weight_map",
	    map), s->e);
}

/* Files of the model that was here before, under names this one does not use. The new ones are
 * complete by now. */
static void remove_stale(const struct save *s)
{
	DIR *d = opendir(s->dir);
	struct dirent *f;
	unsigned a, b;
	int end;

	while (d && (f = readdir(d))) {
		bool single = strcmp(f->d_name, "model.safetensors") == 0, index = strcmp(f->d_name,
		    INDEX) == 0;
		char *path;

		end = 0;
		a = b = 0;
		if (sscanf(f->d_name, "model-%5u-of-%5u.safetensors%n", &a, &b, &end) != 2 ||
		    !end || f->d_name[end])
			b = 0;
		if (!(s->nshards > 1 ? single || (b && b != (unsigned)s->nshards) : index || b))
			continue;
		path = file_join(s->dir, f->d_name);
		unlink(path);
		free(path);
	}
	if (d)
		closedir(d);
}

static int save_files(struct save *s, const struct config *c, char *fingerprint)
{
	/* by enum dtype */
	static const char *const torch[] = { "float64", "float32", "bfloat16", "float16" };
	json_t *o;

	plan_shards(s);
	if (save_fingerprint(s, fingerprint) < 0)
		return -1;
	s->fingerprint = fingerprint;
	for (int k = 0; k < s->nshards; k++)
		if (save_shard(s, k) < 0)
			return -1;
	if (s->nshards > 1 && save_index(s) < 0)
		return -1;
	remove_stale(s);
	o = config_to_json(c);
	json_object_set_new(o, "torch_dtype", json_string(torch[s->o->dtype]));
	return put_json(s->dir, "config.json", o, s->e);
}

int modeldir_save(const char *dir, const struct config *c, const struct params *ps,
    const float *flat,
    const struct modeldir_out *o, char *fingerprint, struct err *e)
{
	struct save s = { .dir = dir, .ps = ps, .flat = flat, .o = o, .e = e };
	char *manifest = file_join(dir, "cluster_manifest.json"), own[33];
	int r = -1;

	s.buf = malloc(CHUNK * sizeof(double));
	s.shard = malloc((size_t)ps->n * sizeof *s.shard);
	if (access(manifest, F_OK) == 0)
		err_set(e, EX_CANTCREAT, "%s: holds a packed model", dir);
	else if (!s.buf || !s.shard)
		err_set(e, EX_OSERR, "out of memory");
	else
		r = save_files(&s, c, fingerprint ? fingerprint : own);
	free(manifest);
	free(s.buf);
	free(s.shard);
	return r;
}
