#include "train/badstep.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/comm.h"
#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"

enum { NAMED = 4 };		/* records that a message names */

static int ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

bool badstep_spikes(const struct badstep *b, double loss, double *median)
{
	int n = b->seen < BADSTEP_WINDOW ? (int)b->seen : BADSTEP_WINDOW;
	double v[BADSTEP_WINDOW];

	if (b->spike <= 0 || n < BADSTEP_LEAST)
		return false;
	memcpy(v, b->loss, sizeof v);
	qsort(v, (size_t)n, sizeof *v, ascending);
	*median = (v[(n - 1) / 2] + v[n / 2]) / 2;
	return *median > 0 && loss > b->spike * *median;
}

void badstep_good(struct badstep *b, double loss)
{
	b->row = 0;
	if (b->spike > 0)
		b->loss[b->seen++ % BADSTEP_WINDOW] = loss;
}

bool badstep_skip(struct badstep *b)
{
	if (b->row >= b->most)
		return false;
	b->row++;
	b->skipped++;
	return true;
}

/* --- which records --- */

/* Names of all records of the step, NULL for those that are not in its bad micro-batches on any
 * rank. Each rank has the same records, and rows of its own. */
static char **names(const struct badstep_step *s, int records)
{
	char **name = mem_alloc(((size_t)records + 1) * sizeof *name);
	double *in = mem_alloc(((size_t)records + 1) * sizeof *in);

	for (int i = 0; i < s->n; i++) {
		const struct batch *b = &s->micro[i].b;

		for (int64_t r = 0; (s->only < 0 || i == s->only) && r < (int64_t)b->B * b->T; r++)
			if (b->doc_start[r] >= 0 && b->from[r] >= 0 && b->from[r] < records)
				in[b->from[r]] = 1;
	}
	comm_sum(in, records);
	for (int i = 0; i < records; i++)
		if (in[i] > 0)
			name[i] = corpus_where(s->corpus, i);
	mem_free(in);
	return name;
}

static void add_names(struct err *e, char *const *name, int records)
{
	int status = e->status, n = 0;
	char list[sizeof e->msg / 2] = "", what[sizeof e->msg];
	size_t len = 0;

	snprintf(what, sizeof what, "%s", e->msg);
	for (int i = 0; i < records; i++)
		if (name[i] != NULL && n++ < NAMED && len < sizeof list)
			len += (size_t)snprintf(list + len, sizeof list - len, "%s%s", len > 0
			    ? ", " : "", name[i]);
	if (n > NAMED)
		err_set(e, status, "%.200s; records %s and %d more", what, list, n - NAMED);
	else if (n > 0)
		err_set(e, status, "%.200s; records %s", what, list);
}

/* --- the dump --- */

/* One document of a row: its n tokens, and the one after the last if that is to be predicted. */
static int put_document(FILE *f, const struct badstep_step *s, int micro, int64_t at, int64_t n,
    const char *name, struct err *e)
{
	const struct batch *x = &s->micro[micro].b;
	json_t *tokens = json_array(), *mask = json_array();
	json_t *rec = json_pack("{s:s, s:I, s:i, s:I, s:s?, s:o, s:o}", "type", "bad_batch", "step",
	    (json_int_t)s->number,
	    "micro_batch", micro + 1, "row", (json_int_t)(s->row0 + at / x->T), "source", name,
	    "tokens", tokens, "mask", mask);
	int rc;

	for (int64_t i = at; i < at + n; i++) {
		json_array_append_new(tokens, json_integer(x->tok[i]));
		json_array_append_new(mask, json_integer(i > at && x->target[i - 1] >= 0));
	}
	if (x->target[at + n - 1] >= 0) {
		json_array_append_new(tokens, json_integer(x->target[at + n - 1]));
		json_array_append_new(mask, json_integer(1));
	}
	rc = json_put(f, rec, e);
	json_decref(rec);
	return rc;
}

static int put_micro(FILE *f, const struct badstep_step *s, int micro, char *const *name,
    int records, struct err *e)
{
	const struct batch *x = &s->micro[micro].b;
	int64_t R = (int64_t)x->B * x->T, n;
	int rc = 0;

	for (int64_t r = 0; r < R && rc == 0; r += n) {
		int32_t start = x->doc_start[r], from = x->from[r];

		for (n = 1; (r + n) % x->T != 0 && x->doc_start[r + n] == start; n++)
			continue;
		if (start >= 0)
			rc = put_document(f, s, micro, r, n, from >= 0 && from < records
			    ? name[from] : NULL, e);
	}
	return rc;
}

struct text { char *p; size_t n; };

/* To rank 0, which writes those of all ranks, its own first. */
static int write_all(FILE *f, struct text own)
{
	struct text *of = mem_alloc((size_t)comm_size() * sizeof *of);
	bool good = true;
	int from;

	of[0] = own;
	if (comm_rank() > 0)
		comm_send(own.p, own.n);
	for (int i = 1; comm_rank() == 0 && i < comm_size(); i++) {
		struct text t;

		t.p = comm_receive(true, &t.n, &from);
		of[from] = t;
	}
	for (int r = 0; r < comm_size(); r++) {
		good = good && (f == NULL || fwrite(of[r].p, 1, of[r].n, f) == of[r].n);
		free(of[r].p);
	}
	mem_free(of);
	comm_barrier();		/* the next text of a rank does not come before another's first */
	return good && (f == NULL || fflush(f) == 0) ? 0 : -1;
}

static int open_dump(struct badstep *b, struct err *e)
{
	int fd = file_create(b->path, e);

	b->f = fd >= 0 ? fdopen(fd, "w") : NULL;
	return b->f != NULL ? 0 : fd < 0 ? -1 : err_set(e, EX_OSERR, "out of memory");
}

static int dump(struct badstep *b, const struct badstep_step *s, char *const *name, int records,
    struct err *e)
{
	int rc = 0;

	if (b->path == NULL)
		return 0;
	if (comm_rank() == 0 && b->f == NULL)
		rc = open_dump(b, e);
	for (int i = 0; i < s->n; i++) {
		struct text own;
		FILE *f;

		if (s->only >= 0 && i != s->only)
			continue;
		f = open_memstream(&own.p, &own.n);
		if (f == NULL || put_micro(f, s, i, name, records, e) < 0 || fclose(f) != 0)
			err_die(EX_OSERR, "out of memory");
		if (write_all(b->f, own) < 0)
			rc = err_set(e, EX_IOERR, "%s:", b->path);
	}
	return rc;
}

int badstep_report(struct badstep *b, const struct badstep_step *s, struct err *e)
{
	int records = corpus_touched(s->corpus);	/* on every rank the same */
	char **name = names(s, records);

	add_names(e, name, records);
	dump(b, s, name, records, e);
	for (int i = 0; i < records; i++)
		free(name[i]);
	mem_free(name);
	return -1;
}

void badstep_close(struct badstep *b)
{
	if (b->f != NULL)
		fclose(b->f);
	b->f = NULL;
}

/* --- state --- */

json_t *badstep_state(const struct badstep *b)
{
	json_t *loss = json_array();

	for (int64_t i = b->seen > BADSTEP_WINDOW ? b->seen - BADSTEP_WINDOW : 0; i < b->seen; i++)
		json_array_append_new(loss, json_real(b->loss[i % BADSTEP_WINDOW]));
	return json_pack("{s:I, s:I, s:o}", "skipped", (json_int_t)b->skipped, "in_a_row",
	    (json_int_t)b->row, "losses",
	    loss);
}

int badstep_restore(struct badstep *b, const json_t *state, struct err *e)
{
	const json_t *list = json_object_get(state, "losses"), *v;
	size_t i;

	b->skipped = json_integer_value(json_object_get(state, "skipped"));
	json_array_foreach(list, i, v)
		badstep_good(b, json_number_value(v));
	b->row = json_integer_value(json_object_get(state, "in_a_row"));
	return b->row >= 0 && b->skipped >= b->row ? 0 : err_set(e, EX_DATAERR,
	    "train_state.json: no count of skipped steps");
}
