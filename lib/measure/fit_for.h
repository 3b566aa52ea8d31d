/*
 * fit_for: the options with which another server holds the same model on one card: how many
 * sequences of which length, what share of the card's memory, which layers or experts stay with
 * the host. Nothing but headers is read.
 *
 *	struct fit_for o = { .server = FOR_VLLM, .vram = 24 << 30, .limit = 23 << 30 };
 *	rc = fit_for("Qwen3-30B-A3B", NULL, &sets, &o, &e);	(1: it fits, 0: it does not)
 *
 * Weights are what the files hold, keys and values what each kind of layer keeps of a token, states
 * what it keeps of a sequence; the rest are estimates, which the record names as such.
 */
#ifndef CHR_FIT_FOR_H
#define CHR_FIT_FOR_H

#include <stdbool.h>
#include <stdint.h>

#include "backend/tensor.h"
#include "base/err.h"
#include "base/opt.h"

enum fit_server { FOR_NONE, FOR_VLLM, FOR_SGLANG, FOR_LLAMA };

struct fit_for {
	enum fit_server server;
	int64_t vram, limit;	/* of the card, and what of it may be taken */
	int64_t ram;		/* of the host, for what does not fit; 0: not asked */
	int seqs, context;	/* asked for; 0: as many, as long as fit */
	bool small_kv;		/* keys and values of 8 bits */
	enum dtype quant;	/* blocks of a GGUF file yet to be made (llama.cpp); DT_F32: as
				   stored */
};

/* Writes one record. Either a model (a directory or a GGUF file) or a config.json. 1, 0, or -1:
 * EX_USAGE for a model that the server cannot read, and the errors of modeldir_open(). */
int fit_for(const char *model, const char *config, const struct opt_list *sets,
    const struct fit_for *o, struct err *e) CHR_MUST_CHECK;

#endif
