#include "format/gguf_model.h"

#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "arch/gguf_names.h"
#include "base/file.h"
#include "base/sniff.h"

/* Of "NAME-00002-of-00003.gguf": 2 and 3, and the length of NAME; false: not such a name. */
static bool split_name(const char *path, size_t *stem, int *no, int *count)
{
	size_t n = strlen(path);
	int end = 0;

	if (n < 20)
		return false;
	*stem = n - 20;
	return sscanf(path + *stem, "-%5d-of-%5d.gguf%n", no, count, &end) == 2 && end == 20 &&
	    *no >= 1 && *count >= *no;
}

static bool is_gguf(const char *path)
{
	char head[SNIFF_BYTES];

	return sniff_head(path, head) >= 4 &&
	    (memcmp(head, "GGUF", 4) == 0 || memcmp(head, "FUGG", 4) == 0);
}

static bool is_dir(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

static bool holds(const char *dir, const char *name)
{
	char *path = file_join(dir, name);
	bool there = path && access(path, F_OK) == 0;

	free(path);
	return there;
}

/* Does a model begin with a file of this name? */
static bool begins_model(const char *name)
{
	size_t n = strlen(name), stem;
	int no, count;

	return n > 5 && *name != '.' && strcmp(name + n - 5, ".gguf") == 0 &&
	    strncmp(name, "mmproj", 6) != 0 && (!split_name(name, &stem, &no, &count) || no == 1);
}

static int in_dir(const char *path, char **file, struct err *e)
{
	DIR *d = opendir(path);
	struct dirent *entry;
	int found = 0;

	if (!d)
		return 0;
	while ((entry = readdir(d)) != NULL)
		if (begins_model(entry->d_name) && found++ == 0)
			*file = file_join(path, entry->d_name);
	closedir(d);
	if (found <= 1)
		return found;
	free(*file);
	*file = NULL;
	return err_set(e, EX_USAGE, "%s: holds %d models of GGUF: name the file of one", path,
	    found);
}

int gguf_path(const char *path, char **file, struct err *e)
{
	size_t stem;
	int no, count;

	*file = NULL;
	if (is_dir(path))
		return holds(path, "config.json") ? 0 : in_dir(path, file, e);
	if (!is_gguf(path))
		return 0;
	if (split_name(path, &stem, &no, &count) && no != 1)
		return err_set(e, EX_NOINPUT, "%s: is number %d of %d files of a model: name the "
		    "first", path, no, count);
	*file = strdup(path);
	return *file ? 1 : err_set(e, EX_OSERR, "out of memory");
}

/* ---- the files of a model ---- */

/* A whole number, or `absent`. */
static int64_t number(const struct gguf *g, const char *key, int64_t absent)
{
	const struct gguf_value *v = gguf_value(g, key);
	struct err none = { 0 };
	json_t *o = v && !v->array ? gguf_json(g, v, &none) : NULL;
	int64_t n = json_is_integer(o) ? (int64_t)json_integer_value(o) : absent;

	json_decref(o);
	return n;
}

static int add_file(struct gguf_model *m, const char *file, struct err *e)
{
	struct gguf *g = gguf_open(file, e);

	if (g)
		m->g[m->n++] = g;
	return g ? 0 : -1;
}

#define MOST_FILES 99999

/* The files behind the first, of which there are `count` in all. */
static int add_splits(struct gguf_model *m, const char *file, int count, struct err *e)
{
	size_t stem;
	int no, named, r = 0;
	char *name;

	if (!split_name(file, &stem, &no, &named) || named != count)
		return err_set(e, EX_NOINPUT, "%s: is the first of %d files of a model, but is "
		    "not named -00001-of-%05d.gguf", file, count, count);
	name = malloc(stem + 40);
	if (!name)
		return err_set(e, EX_OSERR, "out of memory");
	memcpy(name, file, stem);
	for (int i = 2; i <= count && r == 0; i++) {
		snprintf(name + stem, 40, "-%05d-of-%05d.gguf", i, count);
		r = add_file(m, name, e);
		if (r == 0 && number(m->g[i - 1], "split.no", i - 1) != i - 1)
			r = err_set(e, EX_DATAERR, "%s: split.no is not %d", name, i - 1);
	}
	free(name);
	return r;
}

static int check_unique(const struct gguf_model *m, struct err *e)
{
	const struct gguf_tensor *t;

	for (int i = 1; i < m->n; i++)
		for (size_t k = 0; (t = gguf_at(m->g[i], k)); k++)
			for (int j = 0; j < i; j++)
				if (gguf_find(m->g[j], t->name))
					return err_set(e, EX_DATAERR, "%s: tensor \"%s\" is in %s "
					    "too", gguf_name(m->g[i]), t->name, gguf_name(m->g[j]));
	return 0;
}

static int open_all(struct gguf_model *m, const char *file, struct err *e)
{
	int64_t count, have = 0, want;

	m->g = calloc(1, sizeof *m->g);
	if (!m->g)
		return err_set(e, EX_OSERR, "out of memory");
	if (add_file(m, file, e) < 0)
		return -1;
	count = number(m->g[0], "split.count", 1);
	if (count > 1) {
		struct gguf **more = count > MOST_FILES ? NULL : realloc(m->g,
		    (size_t)count * sizeof *more);

		if (!more)
			return err_set(e, EX_DATAERR, "%s: split.count is %lld", file,
			    (long long)count);
		m->g = more;
		if (add_splits(m, file, (int)count, e) < 0)
			return -1;
	}
	for (int i = 0; i < m->n; i++)
		have += (int64_t)gguf_count(m->g[i]);
	want = number(m->g[0], "split.tensors.count", have);
	if (want != have)
		return err_set(e, EX_DATAERR, "%s: there should be %lld tensors, there are %lld",
		    file, (long long)want, (long long)have);
	return check_unique(m, e);
}

/* ---- what it is ---- */

#define LIST_MOST 4096			/* members of a list that may be one a layer */

static int take_meta(const struct gguf *g, json_t *meta, struct err *e)
{
	const struct gguf_value *v;
	json_t *o;

	for (size_t i = 0; (v = gguf_value_at(g, i)); i++) {
		if (v->array && v->n > LIST_MOST)
			continue;
		o = gguf_json(g, v, e);
		if (!o)
			return -1;
		json_object_set_new(meta, v->key, o);
	}
	return 0;
}

static bool has(const void *ctx, const char *tensor)
{
	const struct gguf *g;

	return gguf_model_find(ctx, tensor, &g) != NULL;
}

#define FREQS_MOST 4096

static int describe(struct gguf_model *m, const json_t *meta, struct err *e)
{
	const struct gguf *g, *gf;
	const struct gguf_tensor *emb = gguf_model_find(m, "token_embd.weight", &g);
	const struct gguf_tensor *freqs = gguf_model_find(m, "rope_freqs.weight", &gf);
	struct gguf_facts f = { .meta = meta, .name = gguf_name(m->g[0]), .has = has, .ctx = m };
	float factor[FREQS_MOST];

	if (!emb || emb->ndim != 2 || emb->shape[0] > INT32_MAX)
		return err_set(e, EX_DATAERR, "%s: tensor \"token_embd.weight\" is missing or no "
		    "matrix", gguf_name(m->g[0]));
	f.vocab = (int)emb->shape[0];
	if (freqs) {
		if (freqs->ndim != 1 || freqs->shape[0] > FREQS_MOST)
			return err_set(e, EX_DATAERR, "%s: rope_freqs.weight is no short vector",
			    gguf_name(gf));
		f.n_freqs = (int)freqs->shape[0];
		f.freqs = factor;
		if (gguf_read_f32(gf, freqs, 0, freqs->shape[0], factor, e) < 0)
			return -1;
	}
	m->config = gguf_config(&f, &m->names, e);
	return m->config ? 0 : -1;
}

struct gguf_model *gguf_model_open(const char *file, struct err *e)
{
	struct gguf_model *m = calloc(1, sizeof *m);
	json_t *meta = json_object();
	int r = m && meta ? 0 : err_set(e, EX_OSERR, "out of memory");

	if (r == 0)
		r = open_all(m, file, e);
	if (r == 0)
		r = take_meta(m->g[0], meta, e);
	if (r == 0)
		r = describe(m, meta, e);
	json_decref(meta);
	if (r == 0)
		return m;
	gguf_model_close(m);
	return NULL;
}

void gguf_model_close(struct gguf_model *m)
{
	if (!m)
		return;
	for (int i = 0; i < m->n; i++)
		gguf_close(m->g[i]);
	json_decref(m->config);
	free(m->g);
	free(m);
}

const struct gguf_tensor *gguf_model_find(const struct gguf_model *m, const char *name,
    const struct gguf **g)
{
	const struct gguf_tensor *t;

	for (int i = 0; i < m->n; i++)
		if ((t = gguf_find(m->g[i], name))) {
			*g = m->g[i];
			return t;
		}
	return NULL;
}
