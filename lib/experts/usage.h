/*
 * usage: what a run leaves for the next one with the same packed model: how much each expert was
 * used, in a JSON file (chr-jsonl(5), "heat").
 *
 *	rc = usage_load(path, engine_config(g), fingerprint, heat, &e);	1: loaded, 0: there is no
 *	file yet, -1: it is wrong
 *	store_warm(store, heat, pins, &e);
 *	... run ...
 *	store_heat(store, heat);
 *	usage_save(path, engine_config(g), fingerprint, heat, &e);
 */
#ifndef CHR_USAGE_H
#define CHR_USAGE_H

#include <stdint.h>

#include "arch/config.h"
#include "base/err.h"

/* heat: (layers, experts), 0 or more. EX_DATAERR names what is wrong: no heat file, or one of
 * another model. */
int usage_load(const char *path, const struct config *c, const char *fingerprint, float *heat,
    struct err *e) CHR_MUST_CHECK;
int64_t usage_bytes(const struct config *c);	/* what a run with heat holds: those numbers, and
						   an order of them for a while */
int usage_save(const char *path, const struct config *c, const char *fingerprint, const float *heat,
    struct err *e) CHR_MUST_CHECK;

#endif
