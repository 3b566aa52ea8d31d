/*
 * peft: adapter_config.json, as PEFT writes it. What it says decides whether an adapter is the
 * sum W + lora_alpha/r * B A and nothing else; a key that may make it more is refused by name,
 * also one that is not known here.
 *
 *	struct peft p;
 *	if (peft_load(&p, "adapter", &e) < 0)
 *		err_exit(&e);
 */
#ifndef CHR_PEFT_H
#define CHR_PEFT_H

#include <jansson.h>

#include "base/err.h"

struct peft {
	int rank;		/* r */
	double alpha;		/* lora_alpha */
};

/* -1: EX_DATAERR; messages begin with name. */
int peft_parse(struct peft *p, const json_t *o, const char *name, struct err *e) CHR_MUST_CHECK;
/* dir/adapter_config.json */
int peft_load(struct peft *p, const char *dir, struct err *e) CHR_MUST_CHECK;

#endif
