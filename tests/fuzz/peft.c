/* Any JSON as adapter_config.json: refused with a message, or ranks and factors to go by. */
#include <math.h>
#include <stdlib.h>

#include "base/jsonfile.h"
#include "model/lora.h"
#include "model/peft.h"

int LLVMFuzzerTestOneInput(const uint8_t *buf, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *buf, size_t len)
{
	struct err e = { 0 };
	json_t *o = jsonfile_parse((const char *)buf, len, "fuzz", &e);
	struct peft p;

	if (!o || peft_parse(&p, o, "fuzz", &e) < 0) {
		if (e.status != EX_DATAERR || !e.msg[0])
			abort();
	} else {
		int rank = 0;
		double factor;

		if (p.rank < 1 || p.rank > LORA_MAX_RANK || !isfinite(p.alpha))
			abort();
		if (peft_shape(&p, "model.layers.0.self_attn.q_proj", &rank, &factor, &e) == 0
		    ? rank < 1 || rank > LORA_MAX_RANK || !isfinite(factor)
		    : e.status != EX_DATAERR)
			abort();
		peft_free(&p);
	}
	json_decref(o);
	return 0;
}
