/* Any JSON as config.json: refused, or a list of parameters that can be found by name and by
 * place. */
#include <stdlib.h>
#include <string.h>

#include "arch/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *buf, size_t len);

static void check(const struct params *ps)
{
	int64_t end = 0;

	for (int i = 0; i < ps->n; i++) {
		const struct param *p = &ps->p[i];

		if (p->off < end || p->rows < 1 || p->cols < 1 || params_find(ps, p->name) != p ||
		    params_get(ps, p->kind, p->layer, p->expert) != p)
			abort();
		end = p->off + param_size(p);
	}
	if (end > ps->total)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *buf, size_t len)
{
	json_t *o = json_loadb((const char *)buf, len, JSON_REJECT_DUPLICATES, NULL), *out;
	struct err e = { 0 };
	struct config c, again;
	struct params ps;

	if (!o)
		return 0;
	if (config_from_json(&c, o, 0, NULL, &e) == 0) {
		out = config_to_json(&c);
		if (config_from_json(&again, out, 0, NULL, &e) < 0)
			abort();
		config_free(&again);
		json_decref(out);
		if (c.num_hidden_layers * c.num_experts < 2000 && params_build(&ps, &c, &e) == 0) {
			check(&ps);
			params_free(&ps);
		}
		config_free(&c);
	} else if (!e.status || !e.msg[0])
		abort();
	json_decref(o);
	return 0;
}
