/*
 * gguf_meta: what the metadata of a GGUF file say of a network, the other way round than
 * gguf_names.h, by the same tables of tensors.
 *
 *	struct gguf_meta m;
 *	if (gguf_meta(&cfg, &params, "model", &m, &e) < 0) ...
 *	... m.keys, m.names ...
 *	gguf_meta_free(&m);
 *
 * Only keys that llama.cpp reads are written. What is written is then read again as any GGUF file
 * is: where a layer would compute something else than it does, the architecture cannot say the
 * model, and it is refused with the name of what differs.
 */
#ifndef CHR_GGUF_META_H
#define CHR_GGUF_META_H

#include <jansson.h>
#include <stdbool.h>

#include "arch/config.h"
#include "arch/param.h"
#include "base/err.h"

struct gguf_meta {
	const char *arch;		/* "qwen3moe" */
	const struct param_name *names;	/* of its tensors (gguf_names.h) */
	json_t *keys;			/* in order: whole numbers, real numbers that a float32
					   holds, truth, texts, lists of these */
	float *freqs;			/* (n_freqs) of rope_freqs.weight; NULL: there is none */
	int n_freqs;
	bool head;			/* the embedding is written as output.weight too */
	const char *note;		/* where llama.cpp computes something else than the file
					   says; NULL: nowhere */
};

/* name: of the model, for messages. EX_DATAERR: no architecture of llama.cpp computes it. */
int gguf_meta(const struct config *c, const struct params *ps, const char *name,
    struct gguf_meta *m, struct err *e) CHR_MUST_CHECK;
void gguf_meta_free(struct gguf_meta *m);

/* How an architecture calls parameters of a kind, and holds them; NULL: it has none. */
const struct param_name *gguf_meta_name(const struct gguf_meta *m, enum param_kind kind);

#endif
