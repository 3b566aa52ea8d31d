/*
 * lora_target: which matrices of a model get an adapter. A target is
 *
 *	all-linear		every matrix that multiplies, but the head
 *	attention, router, experts, shared_experts, mlp
 *				those of a kind; mlp: of layers without experts
 *	q_proj, mlp.gate, mlp.experts.down_proj, lm_head, ...
 *				those whose name ends so, from one of its dots on, as PEFT means
 *				it; in published files or in the memory of transformers (homes.h)
 *	'*.layers.1.*_proj.weight'
 *				those whose name (chr-ls) is like this, which has * ? or [
 */
#ifndef CHR_LORA_TARGET_H
#define CHR_LORA_TARGET_H

#include <stdbool.h>

#include "arch/config.h"
#include "base/err.h"

/* hit: (parameters of ps) true for each of the n targets'. EX_USAGE: one names nothing, or what
 * cannot have an adapter. */
int lora_target(bool *hit, const struct config *c, const struct params *ps, int n,
    const char *const target[], struct err *e) CHR_MUST_CHECK;

#endif
