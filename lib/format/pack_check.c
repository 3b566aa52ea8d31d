#include <fnmatch.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "format/fingerprint.h"
#include "format/pack_int.h"
#include "format/stored.h"

#define PIECE ((int64_t)1 << 20)	/* bytes as float32 */

static const char *const part[3] = { "gate_proj", "up_proj", "down_proj" };

/* ---- is the manifest of this model? ---- */

static int check_layer(const struct pack *p, int l, struct err *e)
{
	bool sparse = p->md->cfg.block[l].sparse;
	bool has = manifest_at(p->manifest, l, 0)->cluster >= 0;

	if (sparse == has)
		return 0;
	return err_set(e, EX_DATAERR, "manifest is not of this model: layer %d has %s there and %s "
	    "in %s", l,
	    has ? "experts" : "none", sparse ? "experts" : "none", p->md->path);
}

/* The type to write a parameter in. */
int pack_type(const struct pack *p, const struct param *pa, enum dtype *t, struct err *e)
{
	int want = param_routed(pa) ? p->dtype : param_is(pa, PARAM_QUANTISES) &&
	    p->dense ? p->dense : -1;

	for (int i = 0; i < p->nrules; i++)
		if (fnmatch(p->rule[i].pattern, pa->name, 0) == 0 &&
		    (param_is(pa, PARAM_QUANTISES) || !dtype_blocks(p->rule[i].t)))
			want = (int)p->rule[i].t;
	if (modeldir_type(p->md, pa, t, e) < 0)
		return -1;
	if (want >= 0)
		*t = (enum dtype)want;
	return 0;
}

/* A rule that changes nothing is a mistake. */
static int check_rule(const struct pack *p, const struct pack_rule *r, struct err *e)
{
	const struct params *ps = &p->md->par;
	const char *kept = NULL;

	for (int i = 0; i < ps->n; i++) {
		if (fnmatch(r->pattern, ps->p[i].name, 0) != 0)
			continue;
		if (param_is(&ps->p[i], PARAM_QUANTISES) || !dtype_blocks(r->t))
			return 0;
		kept = ps->p[i].name;
	}
	if (kept)
		return err_set(e, EX_USAGE, "--quant-for %s=%s: %s is never quantised", r->pattern,
		    dtype_name(r->t), kept);
	return err_set(e, EX_USAGE, "--quant-for %s=%s: %s has no such tensor", r->pattern,
	    dtype_name(r->t), p->md->path);
}

/* Shared experts and dense layers: what goes for an expert's three matrices goes for theirs. */
static int check_fixed(const struct pack *p, struct err *e)
{
	const struct params *ps = &p->md->par;

	for (int i = 0; i < ps->n; i++) {
		const struct param *pa = &ps->p[i];
		enum dtype t[3];

		if (!param_is(pa, PARAM_FFN) || param_routed(pa) || param_part(pa) != 0)
			continue;
		for (int k = 0; k < 3; k++)
			if (pack_type(p, params_get(ps, (enum param_kind)(pa->kind + k), pa->layer,
			    pa->expert), &t[k], e) < 0)
				return -1;
		if (dtype_rounded(t[0]) != dtype_rounded(t[1]) || dtype_rounded(t[0]) !=
		    dtype_rounded(t[2]))
			return err_set(e, EX_DATAERR,
			    "%s: with up and down it would be %s, %s and %s: all of them in blocks,"
			    " or none",
			    pa->name, dtype_name(t[0]), dtype_name(t[1]), dtype_name(t[2]));
	}
	return 0;
}

/* The one type that all experts have, for each of their matrices; also the one they are stored
 * in. */
static int expert_types(struct pack *p, struct err *e)
{
	const struct params *ps = &p->md->par;
	int found[3] = { -1, -1, -1 };

	p->model_dtype = -2;
	for (int i = 0; i < ps->n; i++) {
		int k = param_part(&ps->p[i]);
		enum dtype t, was;

		if (!param_routed(&ps->p[i]))
			continue;
		if (pack_type(p, &ps->p[i], &t, e) < 0 || modeldir_type(p->md, &ps->p[i], &was, e) <
		    0)
			return -1;
		p->model_dtype = p->model_dtype == -2 || p->model_dtype == (int)was ? (int)was : -1;
		if (t == DT_F64)
			return err_set(e, EX_DATAERR,
			    "%s: %s is not stored as F32, BF16 or F16: give --dtype",
			    p->md->path, ps->p[i].name);
		if (found[k] >= 0 && found[k] != (int)t)
			return err_set(e, EX_DATAERR,
			    "%s: %s would be %s, that of another expert %s: one type for all of a "
			    "kind, "
			    "as with --quant-for '*.experts.*.%s.weight=%s'", p->md->path,
			    ps->p[i].name, dtype_name(t),
			    dtype_name((enum dtype)found[k]), part[k], dtype_name(t));
		p->dt[k] = t;
		found[k] = (int)t;
	}
	if (dtype_rounded(p->dt[0]) != dtype_rounded(p->dt[1]) || dtype_rounded(p->dt[0]) !=
	    dtype_rounded(p->dt[2]))
		return err_set(e, EX_DATAERR, "gate, up and down of an expert would be %s, %s and "
		    "%s: all of them in blocks, or none",
		    dtype_name(p->dt[0]), dtype_name(p->dt[1]), dtype_name(p->dt[2]));
	return 0;
}

int pack_types(struct pack *p, struct err *e)
{
	if (p->md->packed)
		return err_set(e, EX_DATAERR, "%s is packed already (--unpack undoes it)",
		    p->md->path);
	if (p->md->cfg.num_sparse == 0 && p->dtype >= 0)
		return err_set(e, EX_USAGE, "%s has no experts: --quant-dense is for its matrices",
		    p->md->path);
	if (p->md->cfg.num_sparse == 0 && !p->dense && p->nrules == 0)
		return err_set(e, EX_DATAERR, "%s has no experts: nothing to pack (--quant-dense "
		    "puts its matrices in blocks)", p->md->path);
	for (int i = 0; i < p->nrules; i++)
		if (check_rule(p, &p->rule[i], e) < 0)
			return -1;
	return check_fixed(p, e) < 0 ? -1 : expert_types(p, e);
}

int64_t pack_expert_bytes(const struct pack *p)
{
	int F = p->md->cfg.moe_intermediate_size, D = p->md->cfg.hidden_size;

	return (int64_t)(mat_bytes(p->dt[0], F, D) + mat_bytes(p->dt[1], F, D) +
	    mat_bytes(p->dt[2], D, F));
}

int pack_check_manifest(const struct pack *p, struct err *e)
{
	const struct config *c = &p->md->cfg;
	const struct manifest *m = p->manifest;

	if (m->layers != c->num_hidden_layers || m->experts != c->num_experts)
		return err_set(e, EX_DATAERR, "manifest is not of this model: %d layers of %d "
		    "experts there, %d of %d in %s",
		    m->layers, m->experts, c->num_hidden_layers, c->num_experts, p->md->path);
	for (int l = 0; l < m->layers; l++)
		if (check_layer(p, l, e) < 0)
			return -1;
	return 0;
}

int pack_check_print(const struct pack *p, const char *fingerprint, struct err *e)
{
	const char *noted = p->manifest ? p->manifest->fingerprint : NULL;

	if (!noted || strcmp(noted, fingerprint) == 0)
		return 0;
	return err_set(e, EX_DATAERR, "manifest is not of this model: fingerprint %s there, %s in "
	    "%s", noted, fingerprint, p->md->path);
}

int pack_check(struct pack *p, struct err *e)
{
	const char *fp = fingerprint_stored(p->md);

	if (p->manifest && pack_check_manifest(p, e) < 0)
		return -1;
	if (fp && pack_check_print(p, fp, e) < 0)
		return -1;
	memcpy(p->fingerprint, fp ? fp : PACK_TOKEN_MODEL, sizeof p->fingerprint);
	return 0;
}

/* ---- what cannot be written ---- */

static int not_finite(const struct stored *s, const struct param *pa, struct err *e)
{
	return err_set(e, EX_DATAERR, "%s: %s has a value that is not finite", s->file, pa->name);
}

/* The largest magnitude; infinite when a value is not finite. */
static int largest(const struct stored *s, float *most, struct err *e)
{
	int step = stored_step(s, PIECE), rc = 0;
	float *x = malloc((size_t)step * (size_t)s->cols * sizeof *x);

	*most = 0;
	if (!x)
		return err_set(e, EX_OSERR, "out of memory");
	for (int row = 0; row < s->rows && rc == 0; row += step) {
		int n = s->rows - row < step ? s->rows - row : step;

		rc = stored_read_f32(s, row, n, x, e);
		for (int64_t i = 0; i < (int64_t)n * s->cols && rc == 0; i++)
			*most = !isfinite(x[i]) ? INFINITY : fmaxf(*most, fabsf(x[i]));
	}
	free(x);
	return rc;
}

int pack_refuse(const struct pack *p, const struct param *pa, enum dtype was, enum dtype to,
    struct err *e)
{
	struct stored s;
	float most;

	if (stored_find(p->md, pa, &s, e) < 0 || largest(&s, &most, e) < 0)
		return -1;
	if (was == to || isinf(most))
		return not_finite(&s, pa, e);
	return err_set(e, EX_DATAERR, "%s: %s has values up to %g, too large for %s%s",
	    p->md->path, pa->name, (double)most, dtype_name(to), dtype_blocks(to) ?
	    ", whose scales end at 65504" : "");
}
