/* chr-ls: what is in safetensors files and model directories, and whether it is whole and
 * finite. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "arch/arch.h"
#include "backend/quant.h"
#include "base/err.h"
#include "base/file.h"
#include "base/human.h"
#include "base/json.h"
#include "measure/lsview.h"
#include "format/manifest.h"
#include "format/gguf_model.h"
#include "format/modeldir.h"
#include "base/opt.h"
#include "base/pool.h"
#include "base/sniff.h"
#include "format/verify.h"

static struct {
	bool check, all;
	int threads;
} o;

static struct opt opts[] = {
	{ .kind = OPT_TABLE, .value = human_opts },
	{ 0, "check", OPT_FLAG, &o.check, .help = "read everything: whole and finite? status 1 if "
	    "not" },
	{ 'a', "all", OPT_FLAG, &o.all, .help = "list padding too" },
	{ 'j', "threads", OPT_INT, &o.threads, 0, POOL_MAX, "N",
	    "threads of --check; 0: one per CPU" },
	{ .kind = OPT_TABLE, .value = arch_opts },
	{ 0 }
};

static const struct opt_prog prog = { "chr-ls", "[options] [FILE|DIR...]",
	"list tensors, metadata and ancestry of models",
	"FILE is a safetensors or .ctsr file, DIR a model directory, plain, sharded or packed.",
	    true };

static bool answer_no;		/* a check found something */

/* Every line is a record; people get it as a table. */
static void put(json_t *r)
{
	struct err e = { 0 };

	if (human())
		lsview_put(r);
	else if (json_put(stdout, r, &e) < 0)
		err_exit(&e);
	json_decref(r);
}

/* ---- listing ---- */

static void put_tensor(const struct st_tensor *t, const char *file)
{
	json_t *shape = json_array();

	for (int i = 0; i < t->ndim; i++)
		json_array_append_new(shape, json_integer((json_int_t)t->shape[i]));
	put(json_pack("{s:s, s:s, s:s, s:o, s:I, s:I, s:s}", "type", "tensor", "name", t->name,
	    "dtype",
	    st_dtype_name(t->dtype), "shape", shape, "bytes", (json_int_t)t->nbytes, "offset",
	    (json_int_t)t->offset,
	    "file", file));
}

static void put_ancestry(const char *text, const char *file)
{
	json_t *list = text ? json_loads(text, 0, NULL) : NULL, *one;
	size_t i;

	json_array_foreach(list, i, one) {
		json_t *r = json_pack("{s:s, s:i, s:s}", "type", "ancestry", "n", (int)i + 1,
		    "file", file);

		json_object_update_missing(r, one);
		put(r);
	}
	json_decref(list);
}

static void put_metadata(const struct st_file *f, const char *file)
{
	json_t *meta = json_object();
	const char *key, *value;

	for (size_t i = 0; (key = st_meta_at(f, i, &value)); i++)
		json_object_set_new(meta, key, json_string(value));
	if (json_object_size(meta))
		put(json_pack("{s:s, s:s, s:O}", "type", "metadata", "file", file, "metadata",
		    meta));
	json_decref(meta);
	put_ancestry(st_meta(f, "chronos.ancestry"), file);
}

static bool is_pad(const struct st_tensor *t)
{
	return strncmp(t->name, "__pad.", 6) == 0;
}

static void list_file(const struct st_file *f, const char *file)
{
	const struct st_tensor *t;
	int64_t n = 0, pad = 0;

	for (size_t i = 0; (t = st_at(f, i)); i++) {
		n += !is_pad(t);
		pad += is_pad(t) ? (int64_t)t->nbytes : 0;
	}
	put(json_pack("{s:s, s:s, s:I, s:I, s:I, s:I}", "type", "file", "file", file, "tensors",
	    (json_int_t)n, "bytes",
	    (json_int_t)st_size(f), "header_bytes", (json_int_t)st_data_start(f), "pad_bytes",
	    (json_int_t)pad));
	put_metadata(f, file);
	for (size_t i = 0; (t = st_at(f, i)); i++)
		if (o.all || !is_pad(t))
			put_tensor(t, file);
}

/* A file of GGUF: lists of metadata that are longer than this are left out. */
#define LIST_MOST 64

static int list_gguf(const struct gguf *g, struct err *e)
{
	json_t *meta = json_object(), *x, *shape;
	const struct gguf_value *v;
	const struct gguf_tensor *t;

	for (size_t i = 0; (v = gguf_value_at(g, i)); i++) {
		if (v->array && v->n > LIST_MOST)
			continue;
		if (!(x = gguf_json(g, v, e))) {
			json_decref(meta);
			return -1;
		}
		json_object_set_new(meta, v->key, x);
	}
	put(json_pack("{s:s, s:s, s:I}", "type", "file", "file", gguf_name(g), "tensors",
	    (json_int_t)gguf_count(g)));
	put(json_pack("{s:s, s:s, s:o}", "type", "metadata", "file", gguf_name(g), "metadata",
	    meta));
	for (size_t i = 0; (t = gguf_at(g, i)); i++) {
		shape = json_array();
		for (int k = 0; k < t->ndim; k++)
			json_array_append_new(shape, json_integer((json_int_t)t->shape[k]));
		put(json_pack("{s:s, s:s, s:s, s:o, s:I, s:I, s:s}", "type", "tensor", "name",
		    t->name, "dtype", gguf_type_name(t->type), "shape", shape, "bytes",
		    (json_int_t)t->nbytes, "offset", (json_int_t)t->offset, "file", gguf_name(g)));
	}
	return 0;
}

static int64_t param_bytes(const struct modeldir *md, const struct param *p)
{
	struct err none;
	enum dtype t;

	return modeldir_type(md, p, &t, &none) < 0 ? 0 : (int64_t)mat_bytes(t, p->rows, p->cols);
}

/* Bytes of one expert: those of the first sparse layer stand for all. */
static int64_t expert_bytes(const struct modeldir *md, const struct manifest *m)
{
	const struct params *ps = &md->par;
	int64_t n = 0;
	int first = -1;

	if (m)
		return m->gate_bytes + m->up_bytes + m->down_bytes;
	for (int i = 0; i < ps->n; i++) {
		if (!param_routed(&ps->p[i]))
			continue;
		first = first < 0 ? i : first;
		if (i < first + 3)
			n += param_bytes(md, &ps->p[i]);
	}
	return n;
}

static int64_t tensor_bytes(const struct modeldir *md)
{
	int64_t n = 0;

	for (int i = 0; i < md->par.n; i++)
		n += param_bytes(md, &md->par.p[i]);
	return n;
}

static void put_model(const struct modeldir *md, const struct manifest *m)
{
	const struct config *c = &md->cfg;
	int64_t one = expert_bytes(md, m), experts = (int64_t)c->num_sparse * c->num_experts;
	const char *type = json_string_value(json_object_get(c->raw, "model_type"));
	const char *fp = modeldir_meta(md, "chronos.fingerprint");

	put(json_pack("{s:s, s:s, s:s, s:i, s:I, s:I, s:i, s:i, s:i, s:i, s:i, s:I, s:I, s:I, s:b, "
	    "s:s?}", "type", "model",
	    "path", md->path, "model_type", type ? type : "chronos", "format", c->format, "params",
	    (json_int_t)md->par.count, "active_params", (json_int_t)params_active(&md->par, c),
	    "layers",
	    c->num_hidden_layers, "sparse_layers", c->num_sparse, "experts", c->num_experts,
	    "experts_per_token",
	    c->num_experts_per_tok, "shared_experts", c->num_shared_experts, "expert_bytes",
	    (json_int_t)one,
	    "experts_bytes", (json_int_t)(one * experts), "bytes",
	    (json_int_t)(tensor_bytes(md) + (m ? one * experts : 0)),
	    "packed", md->packed, "fingerprint", fp));
}

static int list_clusters(const struct modeldir *md, const struct manifest *m, struct err *e)
{
	for (int i = 0; i < m->nclusters; i++) {
		char *path = file_join(md->path, m->file[i]);
		struct st_error se;
		struct st_file *f = st_open(path, ST_READ, &se);
		int r = f ? 0 : modeldir_st_err(e, path, &se);

		if (f)
			list_file(f, path);
		st_close(f);
		free(path);
		if (r < 0)
			return -1;
	}
	return 0;
}

static int list_model(const struct modeldir *md, struct err *e)
{
	struct manifest m;
	int r = md->packed ? manifest_load_dir(&m, md->path, e) : 0;

	if (r < 0)
		return -1;
	put_model(md, md->packed ? &m : NULL);
	for (int i = 0; i < md->nfiles; i++)
		list_file(md->st[i], md->file[i]);
	for (int i = 0; md->gguf && i < md->gguf->n && r == 0; i++)
		r = list_gguf(md->gguf->g[i], e);
	if (md->packed) {
		r = list_clusters(md, &m, e);
		manifest_free(&m);
	}
	return r;
}

/* ---- checking ---- */

static void put_bad(void *ctx, const struct verify_bad *b)
{
	json_t *r = json_pack("{s:s, s:s}", "type", "bad", "file", b->file);

	(void)ctx;
	if (b->tensor)
		json_set_str(r, "name", b->tensor);
	if (b->expert >= 0) {
		json_set_int(r, "layer", b->layer);
		json_set_int(r, "expert", b->expert);
	}
	if (b->why)
		json_set_str(r, "error", b->why);
	else {
		json_set_int(r, "nan", (int64_t)b->nan);
		json_set_int(r, "inf", (int64_t)b->inf);
		json_set_int(r, "first", (int64_t)b->first);
	}
	put(r);
}

static void put_check(const char *path, const struct verify *v)
{
	answer_no |= v->found > 0;
	put(json_pack("{s:s, s:s, s:b, s:I, s:I, s:I}", "type", "check", "path", path, "ok",
	    v->found == 0, "tensors",
	    (json_int_t)v->tensors, "bytes", (json_int_t)v->bytes, "bad", (json_int_t)v->found));
}

/* What cannot be opened because of its bytes is an answer, what is not there is trouble. */
static int check_refused(const char *path, struct err *e)
{
	struct verify v = { .bad = put_bad };

	if (e->status != EX_DATAERR && e->status != EX_IOERR)
		return -1;
	verify_tell(&v, path, e->msg);
	put_check(path, &v);
	*e = (struct err){ 0 };
	return 0;
}

/* ---- operands ---- */

static int do_model(const char *path, struct err *e)
{
	struct verify v = { .bad = put_bad };
	struct modeldir md;
	int r;

	if (modeldir_open(&md, path, 0, NULL, e) < 0)
		return o.check ? check_refused(path, e) : -1;
	r = o.check ? verify_model(&v, &md, e) : list_model(&md, e);
	if (o.check && r == 0)
		put_check(path, &v);
	modeldir_close(&md);
	return r;
}

static char *read_stdin(size_t *len, struct err *e)
{
	size_t cap = 1 << 20, n;
	char *buf = malloc(cap), *more;

	for (*len = 0; buf && (n = fread(buf + *len, 1, cap - *len, stdin)) > 0;) {
		*len += n;
		if (*len < cap)
			continue;
		if (!sniff_safetensors(buf, *len))	/* however long it goes on */
			break;
		more = realloc(buf, cap *= 2);
		if (!more)
			free(buf);
		buf = more;
	}
	if (!buf)
		err_set(e, EX_OSERR, "<stdin>: out of memory");
	else if (ferror(stdin)) {
		err_set(e, EX_IOERR, "<stdin>:");
		free(buf);
		buf = NULL;
	}
	return buf;
}

static int do_file(const char *path, struct err *e)
{
	bool in = strcmp(path, "-") == 0;
	const char *name = in ? "<stdin>" : path;
	struct verify v = { .bad = put_bad };
	struct st_error se;
	struct st_file *f;
	char *buf = NULL;
	size_t len = 0;
	int r = 0;

	if (in && !(buf = read_stdin(&len, e)))
		return -1;
	f = in ? st_open_mem(buf, len, &se) : st_open(path, ST_READ, &se);
	if (!f) {
		if (!(in && sniff(buf, len)))
			modeldir_st_err(e, name, &se);
		else
			err_set(e, EX_DATAERR, "%s: is %s, where safetensors should be", name,
			    sniff(buf, len));
		r = o.check ? check_refused(name, e) : -1;
	} else if (o.check) {
		r = verify_file(&v, f, name, e);
		if (r == 0)
			put_check(name, &v);
	} else
		list_file(f, name);
	st_close(f);
	free(buf);
	return r;
}

static int do_operand(const char *path, struct err *e)
{
	struct stat st;
	char *file;
	int found = strcmp(path, "-") == 0 ? 0 : gguf_path(path, &file, e);

	if (found != 0)
		free(file);
	if (found < 0)
		return -1;
	return found > 0 || (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) ? do_model(path, e)
	    : do_file(path, e);
}

int main(int argc, char **argv)
{
	static char *standard_input[] = { "-" };
	struct err e = { 0 };
	char **operand;
	int first, n;

	err_init(argv[0]);
	first = opt_parse(argc, argv, opts, &prog);
	n = argc - first;
	operand = n ? argv + first : standard_input;
	pool_init(o.threads);
	for (int i = 0; i < (n ? n : 1); i++)
		if (do_operand(operand[i], &e) < 0) {
			lsview_end();
			err_exit(&e);
		}
	lsview_end();
	pool_quit();
	err_close_stdout();
	return answer_no ? EX_NO : EX_OK;
}
