#include "format/packed.h"

#include <stdlib.h>

#include "backend/quant.h"
#include "base/crc.h"
#include "base/file.h"
#include "format/pack_int.h"

static const enum param_kind kinds[3] = { P_EXP_GATE, P_EXP_UP, P_EXP_DOWN };

int packed_open(struct packed *p, const struct modeldir *md, const struct manifest *m,
    struct err *e)
{
	*p = (struct packed){ md, m, calloc((size_t)m->nclusters + 1, sizeof *p->ctsr) };
	return p->ctsr ? 0 : err_set(e, EX_OSERR, "out of memory");
}

void packed_close(struct packed *p)
{
	for (int k = 0; p->ctsr && k < p->m->nclusters; k++)
		st_close(p->ctsr[k]);
	free(p->ctsr);
	p->ctsr = NULL;
}

static int open_ctsr(struct packed *p, int k, struct err *e)
{
	struct st_error se;
	char *path;
	int rc = 0;

	if (p->ctsr[k])
		return 0;
	path = file_join(p->md->path, p->m->file[k]);
	if (!(p->ctsr[k] = st_open(path, ST_READ, &se)))
		rc = modeldir_st_err(e, path, &se);
	free(path);
	return rc;
}

/* Manifest and file must agree. */
int packed_find(struct packed *p, const struct param *pa, struct stored *s, struct err *e)
{
	const struct manifest *m = p->m;
	const struct place *pl = manifest_at(m, pa->layer, pa->expert);
	int64_t before[3] = { 0, m->gate_bytes, m->gate_bytes + m->up_bytes };
	int i = param_part(pa);
	char key[64];

	if (open_ctsr(p, pl->cluster, e) < 0)
		return -1;
	pack_ctsr_key(key, pa->layer, pa->expert, i);
	*s = (struct stored){ .st = p->ctsr[pl->cluster], .t = st_find(p->ctsr[pl->cluster], key),
	    .file = m->file[pl->cluster], .type = m->dt[i], .rows = pa->rows, .cols = pa->cols,
	    .at = { 0, pa->cols, 1 } };
	if (!s->t || !(dtype_blocks(s->type) ? s->t->dtype == ST_U8 : s->t->dtype ==
	    pack_st_type(s->type) && s->t->ndim == 2 && s->t->shape[0] == (uint64_t)pa->rows
	    && s->t->shape[1] == (uint64_t)pa->cols) ||
	    s->t->nbytes != mat_bytes(s->type, pa->rows, pa->cols) ||
	    s->t->offset != (uint64_t)(pl->offset + before[i]))
		return err_set(e, EX_DATAERR, "%s/%s: %s is not where the manifest says",
		    p->md->path, s->file, key);
	return 0;
}

static int add_crc(const struct stored *s, char *buf, uint32_t *crc, struct err *e)
{
	struct st_error se;

	for (uint64_t at = 0; at < s->t->nbytes; at += PACK_CHUNK) {
		size_t n = s->t->nbytes - at < PACK_CHUNK ? (size_t)(s->t->nbytes - at)
		    : PACK_CHUNK;

		if (st_read(s->st, s->t, at, buf, n, &se) < 0)
			return modeldir_st_err(e, s->file, &se);
		*crc = crc_32_more(*crc, buf, n);
	}
	return 0;
}

int packed_check(struct packed *p, int layer, int expert, struct err *e)
{
	const struct place *pl = manifest_at(p->m, layer, expert);
	char *buf = malloc(PACK_CHUNK);
	uint32_t crc = 0;
	int rc = buf ? 0 : err_set(e, EX_OSERR, "out of memory");

	for (int i = 0; i < 3 && rc == 0; i++) {
		struct stored s;

		rc = packed_find(p, params_get(&p->md->par, kinds[i], layer, expert), &s, e);
		if (rc == 0)
			rc = add_crc(&s, buf, &crc, e);
	}
	free(buf);
	if (rc == 0 && crc != pl->crc)
		return err_set(e, EX_DATAERR, "%s/%s: layer %d, expert %d is corrupt (CRC-32 "
		    "%08x, not %08x)", p->md->path, p->m->file[pl->cluster], layer, expert, crc,
		    pl->crc);
	return rc;
}
