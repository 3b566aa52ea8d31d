#include "format/fingerprint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/crc.h"
#include "base/sha256.h"
#include "format/modeldir.h"
#include "format/stored.h"

#define CHUNK ((int64_t)1 << 20)	/* bytes as float32 that are read at a time */

static const char *shape_text(const struct param *p, char out[32])
{
	if (p->ndim == 1)
		snprintf(out, 32, "[%d]", p->rows);
	else
		snprintf(out, 32, "[%d,%d]", p->rows, p->cols);
	return out;
}

static int by_name(const void *a, const void *b)
{
	const struct fingerprint_line *x = a, *y = b;

	return strcmp(x->p->name, y->p->name);
}

const char *fingerprint_type(enum dtype t)
{
	return dtype_blocks(t) ? "U8" : dtype_name(t);
}

void fingerprint_of(struct fingerprint_line *pr, int n, char out[33])
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

int fingerprint_line(const struct modeldir *md, const struct param *p, struct fingerprint_line *pr,
    struct err *e)
{
	struct stored s;
	int step, r = stored_find(md, p, &s, e);
	char *buf;

	if (r < 0)
		return -1;
	step = stored_step(&s, CHUNK);
	if (!(buf = malloc((size_t)stored_bytes(&s, step))))
		return err_set(e, EX_OSERR, "out of memory");
	*pr = (struct fingerprint_line){ .p = p,
	    .dtype = fingerprint_type(s.type) };
	for (int row = 0; row < s.rows && r == 0; row += step) {
		int n = s.rows - row < step ? s.rows - row : step;

		r = stored_read(&s, row, n, buf, e);
		if (r == 0)
			pr->crc = crc_32_more(pr->crc, buf, (size_t)stored_bytes(&s, n));
	}
	free(buf);
	return r;
}

int modeldir_compute_fingerprint(const struct modeldir *md, char out[33], struct err *e)
{
	const struct params *ps = &md->par;
	struct fingerprint_line *pr = malloc((size_t)ps->n * sizeof *pr);
	int r = pr ? 0 : err_set(e, EX_OSERR, "out of memory");

	for (int i = 0; i < ps->n && r == 0; i++)
		r = fingerprint_line(md, &ps->p[i], &pr[i], e);
	if (r == 0)
		fingerprint_of(pr, ps->n, out);
	free(pr);
	return r;
}

const char *fingerprint_stored(const struct modeldir *md)
{
	const char *s = modeldir_meta(md, "chronos.fingerprint");

	return s && strlen(s) == 32 && strspn(s, "0123456789abcdef") == 32 ? s : NULL;
}

const char *modeldir_fingerprint(struct modeldir *md, struct err *e)
{
	const char *stored = fingerprint_stored(md);

	if (md->fingerprint[0])
		return md->fingerprint;
	if (stored) {
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
