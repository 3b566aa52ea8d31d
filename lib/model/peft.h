/*
 * peft: adapter_config.json, as PEFT writes it. What it says decides whether an adapter is the
 * sum W + factor * B A and nothing else; a key that may make it more is refused by name, also one
 * that is not known here. factor is lora_alpha/r, or lora_alpha/sqrt(r) with use_rslora
 * (arXiv:2312.03732); rank_pattern and alpha_pattern give some modules others of both.
 * target_parameters names parameters that are adapted without a module of their own, such as those
 * of all experts (adapter.h), and modules_to_save modules whose weights are there whole.
 *
 *	struct peft p;
 *	if (peft_load(&p, "adapter", &e) < 0 ||
 *	    peft_shape(&p, "model.layers.0.self_attn.q_proj", &rank, &factor, &e) < 0)
 *		err_exit(&e);
 *	peft_free(&p);
 */
#ifndef CHR_PEFT_H
#define CHR_PEFT_H

#include <jansson.h>
#include <stdbool.h>

#include "base/err.h"

struct peft_rule {
	void *code;		/* of PCRE2: the modules it is for */
	double value;
};

struct peft {
	int rank;		/* r */
	double alpha;		/* lora_alpha */
	bool rslora;
	/* rank_pattern and alpha_pattern: the first that fits counts */
	struct peft_rule *ranks, *alphas;
	int nranks, nalphas;
	json_t *parameters, *whole;	/* target_parameters, modules_to_save: arrays of strings */
};

/* -1: EX_DATAERR; messages begin with name, and there is nothing to free. */
int peft_parse(struct peft *p, const json_t *o, const char *name, struct err *e) CHR_MUST_CHECK;
/* dir/adapter_config.json */
int peft_load(struct peft *p, const char *dir, struct err *e) CHR_MUST_CHECK;
void peft_free(struct peft *p);
/* Of the adapter of one module, which is a matrix's name without .weight, or of a parameter of
 * target_parameters. -1: EX_DATAERR, a pattern that takes PCRE2 too long. */
int peft_shape(const struct peft *p, const char *module, int *rank, double *factor,
    struct err *e) CHR_MUST_CHECK;

/* Is the parameter of this name one of target_parameters? */
bool peft_targets(const struct peft *p, const char *parameter);
/* Is the tensor of this name that of a module of modules_to_save, or of one in such a module? */
bool peft_keeps(const struct peft *p, const char *tensor);

#endif
