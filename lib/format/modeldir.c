#include "format/modeldir.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "arch/arch.h"
#include "arch/gguf_names.h"
#include "base/file.h"
#include "base/jsonfile.h"
#include "base/sniff.h"
#include "format/gguf_model.h"
#include "format/stored.h"

#define CHUNK ((size_t)256 << 10)	/* bytes compared at a time */

#define INDEX MODELDIR_INDEX

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

bool modeldir_padding(const char *tensor)
{
	return strncmp(tensor, "__pad.", 6) == 0;
}

/* The same name in two shards would make the result depend on their order. */
static int check_unique(const struct modeldir *md, struct err *e)
{
	const struct st_tensor *t;

	for (int i = 1; i < md->nfiles; i++)
		for (size_t k = 0; (t = st_at(md->st[i], k)); k++)
			for (int j = 0; j < i && !modeldir_padding(t->name); j++)
				if (st_find(md->st[j], t->name))
					return err_set(e, EX_DATAERR,
					    "%s: tensor \"%s\" is in %s too", md->file[i], t->name,
					    md->file[j]);
	return 0;
}

static int open_gguf(struct modeldir *md, const char *file, int nsets, const char *const sets[],
    struct err *e)
{
	md->gguf = gguf_model_open(file, e);
	return md->gguf ? config_from_object(&md->cfg, md->gguf->config, file, nsets, sets, e) : -1;
}

static int open_weights(struct modeldir *md, struct err *e)
{
	md->packed = has_file(md, "cluster_manifest.json");
	if (has_file(md, "model.safetensors") || !has_file(md, INDEX))
		return add_file(md, "model.safetensors", e);
	return open_index(md, e) < 0 || check_unique(md, e) < 0 ? -1 : 0;
}

static int open_files(struct modeldir *md, const char *path, int nsets, const char *const sets[],
    struct err *e)
{
	char *file;
	int r;

	memset(md, 0, sizeof *md);
	r = gguf_path(path, &file, e);
	if (r == 0)
		r = config_load(&md->cfg, path, nsets, sets, e);
	else if (r > 0)
		r = open_gguf(md, file, nsets, sets, e);
	free(file);
	md->path = strdup(path);
	if (r == 0)
		r = params_build(&md->par, &md->cfg, e);
	if (r == 0 && !md->gguf)
		r = open_weights(md, e);
	if (r < 0)
		modeldir_close(md);
	return r;
}

int modeldir_config(struct config *c, const char *path, int nsets, const char *const sets[],
    struct err *e)
{
	struct gguf_model *m;
	char *file;
	int r = gguf_path(path, &file, e);

	memset(c, 0, sizeof *c);
	if (r == 0)
		return config_load(c, path, nsets, sets, e);
	m = r > 0 ? gguf_model_open(file, e) : NULL;
	r = m ? config_from_object(c, m->config, file, nsets, sets, e) : -1;
	gguf_model_close(m);
	free(file);
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
	gguf_model_close(md->gguf);
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

static int note_file(json_t *list, const char *name, struct err *e)
{
	struct stat st;

	if (stat(name, &st) < 0)
		return err_set(e, EX_NOINPUT, "%s:", name);
	json_array_append_new(list, json_pack("[s, I, I, I]", name, (json_int_t)st.st_size,
	    (json_int_t)st.st_mtim.tv_sec, (json_int_t)st.st_mtim.tv_nsec));
	return 0;
}

json_t *modeldir_state(const struct modeldir *md, struct err *e)
{
	json_t *files = json_array(), *o = json_pack("{s:O, s:o}", "config", md->cfg.raw, "files",
	    files);
	int rc = 0;

	for (int i = 0; i < md->nfiles && rc == 0; i++)
		rc = note_file(files, md->file[i], e);
	for (int i = 0; md->gguf && i < md->gguf->n && rc == 0; i++)
		rc = note_file(files, gguf_name(md->gguf->g[i]), e);
	if (rc == 0)
		return o;
	json_decref(o);
	return NULL;
}

const char *modeldir_meta(const struct modeldir *md, const char *key)
{
	return md->gguf ? NULL : st_meta(md->st[0], key);
}

json_t *modeldir_metadata(const struct modeldir *md)
{
	json_t *o = json_object();
	const char *key, *value;

	for (size_t i = 0; !md->gguf && (key = st_meta_at(md->st[0], i, &value)); i++)
		json_object_set_new(o, key, json_string(value));
	return o;
}

int modeldir_type(const struct modeldir *md, const struct param *p, enum dtype *t, struct err *e)
{
	struct stored s;
	int r = stored_find(md, p, &s, e);

	*t = s.type;
	return r;
}

int modeldir_read_rows(const struct modeldir *md, const struct param *p, int row, int n, void *dst,
    struct err *e)
{
	struct stored s;

	return stored_find(md, p, &s, e) < 0 ? -1 : stored_read(&s, row, n, dst, e);
}

int modeldir_read_rows_f32(const struct modeldir *md, const struct param *p, int row, int n,
    float *dst, struct err *e)
{
	struct stored s;

	return stored_find(md, p, &s, e) < 0 ? -1 : stored_read_f32(&s, row, n, dst, e);
}

int modeldir_read(const struct modeldir *md, const struct param *p, void *dst, struct err *e)
{
	return modeldir_read_rows(md, p, 0, p->rows, dst, e);
}

int modeldir_read_f32(const struct modeldir *md, const struct param *p, float *dst, struct err *e)
{
	return modeldir_read_rows_f32(md, p, 0, p->rows, dst, e);
}

/* Read, not looked at where they are mapped, so that no pages stay behind. */
static int same_bytes(const struct view *a, const struct view *b, bool *same, struct err *e)
{
	char *buf = malloc(2 * CHUNK);
	struct st_error se;
	int rc = buf ? 0 : err_set(e, EX_OSERR, "out of memory");

	*same = a->t->dtype == b->t->dtype && a->t->nbytes == b->t->nbytes;
	for (uint64_t at = 0; rc == 0 && *same && at < a->t->nbytes; at += CHUNK) {
		size_t n = a->t->nbytes - at < CHUNK ? (size_t)(a->t->nbytes - at) : CHUNK;

		if (st_read(a->st, a->t, at, buf, n, &se) < 0)
			rc = modeldir_st_err(e, a->file, &se);
		else if (st_read(b->st, b->t, at, buf + CHUNK, n, &se) < 0)
			rc = modeldir_st_err(e, b->file, &se);
		else
			*same = memcmp(buf, buf + CHUNK, n) == 0;
	}
	free(buf);
	return rc;
}

/* Checkpoints of tied models may hold the head all the same; it must then be the embedding. */
static int check_tied_head(const struct modeldir *md, const struct view *head, struct err *e)
{
	struct view emb;
	bool same = false;

	if (modeldir_find(md, "model.embed_tokens.weight", &emb) == 0 &&
	    same_bytes(&emb, head, &same, e) < 0)
		return -1;
	return same ? 0 : err_set(e, EX_DATAERR, "%s: lm_head.weight differs from the embedding, "
	    "but tie_word_embeddings is true", head->file);
}

/* Tensors that nobody here needs. */
struct skipped {
	int n;
	const char *example, *why;	/* of the first */
};

static void skip(struct skipped *s, const char *name, const char *why)
{
	if (s->n++ == 0) {
		s->example = name;
		s->why = why;
	}
}

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

/* Tensors that hold parameters, in order of their addresses. */
struct used {
	size_t n;
	const void **t;
};

static int by_address(const void *a, const void *b)
{
	const char *x = *(const char *const *)a, *y = *(const char *const *)b;

	return (x > y) - (x < y);
}

static bool is_used(const struct used *u, const void *t)
{
	return bsearch(&t, u->t, u->n, sizeof *u->t, by_address) != NULL;
}

/* Tensors of file i that hold no parameters. */
static int check_extra(const struct modeldir *md, int i, const struct used *u,
    struct skipped *s, struct err *e)
{
	const struct st_tensor *t;
	const char *why;

	for (size_t k = 0; (t = st_at(md->st[i], k)); k++) {
		struct view v = { t, md->st[i], md->file[i] };

		if (modeldir_padding(t->name) || is_used(u, t))
			continue;
		if (passed_over(md, t->name, &why))
			skip(s, t->name, why);
		else if (!md->cfg.tie_word_embeddings || strcmp(t->name, "lm_head.weight") != 0)
			return err_set(e, EX_DATAERR, "%s: unexpected tensor \"%s\"", md->file[i],
			    t->name);
		else if (check_tied_head(md, &v, e) < 0)
			return -1;
	}
	return 0;
}

static int check_extra_gguf(const struct modeldir *md, const struct used *u, struct skipped *s,
    struct err *e)
{
	const struct gguf_tensor *t;
	const char *why;

	for (int i = 0; i < md->gguf->n; i++)
		for (size_t k = 0; (t = gguf_at(md->gguf->g[i], k)); k++) {
			if (is_used(u, t) || strcmp(t->name, "rope_freqs.weight") == 0)
				continue;
			if ((why = gguf_harmless(t->name, md->cfg.num_hidden_layers)) == NULL)
				return err_set(e, EX_DATAERR, "%s: unexpected tensor \"%s\"",
				    gguf_name(md->gguf->g[i]), t->name);
			skip(s, t->name, why);
		}
	return 0;
}

/* Where every parameter lies. Of a packed model those of experts are not wanted, and no error where
 * they are. */
static int find_all(const struct modeldir *md, const struct params *ps, struct used *u,
    struct err *e)
{
	struct stored s;
	struct err none;

	for (int i = 0; i < ps->n; i++) {
		bool packed = md->packed && param_routed(&ps->p[i]);

		if (stored_find(md, &ps->p[i], &s, packed ? &none : e) == 0)
			u->t[u->n++] = s.g ? (const void *)s.gt : s.t;
		else if (!packed)
			return -1;
		else
			continue;
		if (s.second)
			u->t[u->n++] = s.second;
		if (s.pub.scale.t)
			u->t[u->n++] = s.pub.scale.t;
	}
	qsort(u->t, u->n, sizeof *u->t, by_address);
	return 0;
}

static int check(const struct modeldir *md, const struct params *ps, struct skipped *s,
    struct err *e)
{
	struct used u = { .t = malloc(2 * (size_t)ps->n * sizeof *u.t) };
	int r = u.t ? find_all(md, ps, &u, e) : err_set(e, EX_OSERR, "out of memory");

	for (int i = 0; i < md->nfiles && r == 0; i++)
		r = check_extra(md, i, &u, s, e);
	if (r == 0 && md->gguf)
		r = check_extra_gguf(md, &u, s, e);
	free(u.t);
	return r;
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
