/* A model directory of random weights, from config.json's text: norms about 1, matrices of
 * standard deviation `spread`. */
#ifndef TINYMODEL_H
#define TINYMODEL_H

#include <stdlib.h>

#include "format/modeldir.h"
#include "base/rng.h"

static inline int tinymodel(const char *dir, const char *json, enum dtype dt, double spread,
    struct err *e)
{
	struct config c;
	struct params ps;
	json_t *o = json_loads(json, 0, NULL);
	float *flat;
	int rc;

	if (!o || config_from_json(&c, o, 0, NULL, e) < 0 || params_build(&ps, &c, e) < 0)
		return -1;
	flat = calloc((size_t)ps.total, sizeof(*flat));
	for (int i = 0; i < ps.n; i++)
		for (int64_t j = 0; j < param_size(&ps.p[i]); j++)
			flat[ps.p[i].off + j] = (float)(ps.p[i].ndim == 1 ? 1 + 0.2 * rng_normal(3,
			    (uint64_t)i, (uint64_t)j)
			    : spread * rng_normal(3, (uint64_t)i, (uint64_t)j));
	rc = modeldir_save(dir, &c, &ps, flat, &(struct modeldir_out){ .dtype = dt }, NULL, e);
	free(flat);
	params_free(&ps);
	config_free(&c);
	json_decref(o);
	return rc;
}

#endif
