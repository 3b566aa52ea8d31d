/* Any JSON as adapter_config.json: refused with a message, or a rank and a factor to go by. */
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
	} else if (p.rank < 1 || p.rank > LORA_MAX_RANK || !isfinite(p.alpha)) {
		abort();
	}
	json_decref(o);
	return 0;
}
