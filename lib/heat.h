/*
 * heat: what a run leaves for the next one with the same packed model: how much each expert was used, in a JSON file
 * (chr-jsonl(5), "heat").
 *
 *	rc = heat_load(path, engine_config(g), fingerprint, heat, &e);	1: loaded, 0: there is no file yet, -1: it is wrong
 *	store_warm(store, heat, pins, &e);
 *	... run ...
 *	store_heat(store, heat);
 *	heat_save(path, engine_config(g), fingerprint, heat, &e);
 */
#ifndef CHR_HEAT_H
#define CHR_HEAT_H

#include <stdint.h>

#include "config.h"
#include "err.h"

/* heat: (layers, experts), 0 or more. EX_DATAERR names what is wrong: no heat file, or one of another model. */
int heat_load(const char *path, const struct config *c, const char *fingerprint, float *heat, struct err *e);
int64_t heat_bytes(const struct config *c);	/* what a run with heat holds: those numbers, and an order of them for a while */
int heat_save(const char *path, const struct config *c, const char *fingerprint, const float *heat, struct err *e);

#endif
