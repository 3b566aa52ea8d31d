/*
 * gguf_names: what GGUF files call families: their metadata as the config.json of the published
 * family, and the tensors that hold its parameters.
 *
 *	struct gguf_facts f = { .meta = object, .name = file, .has = has, .ctx = g, .. };
 *	json_t *config = gguf_config(&f, &names, &e);	then config_from_object(), as any config
 *
 * Keys of GGUF are described in docs/gguf.md of ggml; what the tensors of an architecture hold is
 * the order in which its programs read them. A key of the architecture that nobody here knows is
 * refused, because it may change the maths.
 */
#ifndef CHR_GGUF_NAMES_H
#define CHR_GGUF_NAMES_H

#include <jansson.h>
#include <stdbool.h>

#include "arch/param.h"
#include "base/err.h"

struct gguf_facts {
	const json_t *meta;		/* key to value: numbers, truth, texts, short lists */
	const char *name;		/* of the file, for messages */
	int vocab;			/* rows of the embedding */
	const float *freqs;		/* (n_freqs) of rope_freqs.weight; NULL: it is not there */
	int n_freqs;
	bool (*has)(const void *ctx, const char *tensor);
	const void *ctx;
};

/* A new object, and the names of tensors (of static storage). NULL: an architecture or a key that
 * is not supported, or a value is missing (EX_DATAERR, named). */
json_t *gguf_config(const struct gguf_facts *f, const struct param_name **names, struct err *e)
    CHR_MUST_CHECK;

/* The tensors of an architecture that gguf_config() knows. */
const struct param_name *gguf_tensors(const char *arch);
/* By how much Llama 3 divides a frequency of this wave length, in positions. */
double gguf_llama3_factor(double wave, double factor, double low, double high, double original);

/* A tensor that inference and training do without: why, or NULL. layers: num_hidden_layers. */
const char *gguf_harmless(const char *tensor, int layers);

#endif
