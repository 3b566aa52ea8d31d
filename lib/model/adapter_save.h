/*
 * adapter_save: an adapter that was trained here (lora.h), as PEFT has it: the files that
 * PeftModel.from_pretrained() puts on the model in transformers.
 *
 * A matrix that is a module of its own there has base_model.model.NAME.lora_A.weight and lora_B,
 * and its name is in target_modules. Experts of published families are one parameter per layer
 * there, and so is the router: these are in target_parameters (adapter.h says how their parts lie).
 * Gate and up of an expert have one A there: it has twice the rank, the rows of both one above the
 * other, and B has zeros where a column is of the other; rank_pattern and alpha_pattern say so, and
 * the sum is the same. ADAPTER_GATE_UP in the metadata lets our reader part them again. An expert
 * without an adapter has zeros.
 *
 * Dense and shared FFNs beside experts are in target_parameters too: PEFT takes gate_proj, up_proj
 * and down_proj in target_modules for those of the experts.
 */
#ifndef CHR_ADAPTER_SAVE_H
#define CHR_ADAPTER_SAVE_H

#include <jansson.h>

#include "arch/config.h"
#include "base/err.h"
#include "model/lora.h"

struct adapter_save {
	const struct config *cfg;	/* of the model */
	const struct lora *lora;
	const char *base;		/* where the model is from */
	const json_t *metadata;		/* of the file, an object of strings */
	/* values of parameter i of lora->par, until the next call */
	const float *(*get)(void *ctx, int i);
	void *ctx;
};

/* Into the existing directory dir. EX_CANTCREAT, EX_IOERR, EX_OSERR. */
int adapter_save(const struct adapter_save *s, const char *dir, struct err *e) CHR_MUST_CHECK;

/* Elements of the largest tensor that is put together of several parts, held while it is written;
 * 0: there is none. hit: (n of ps) what has an adapter. */
int64_t adapter_save_room(const struct config *c, const struct params *ps, const bool *hit,
    int rank);

#endif
