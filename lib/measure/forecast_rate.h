/*
 * forecast_rate: short measurements of what a forecast goes by: kernels at one row and at many, the
 * reading of memory and drive, and what a layer costs besides its products. About two seconds.
 */
#ifndef CHR_FORECAST_RATE_H
#define CHR_FORECAST_RATE_H

#include <stdbool.h>
#include <stdint.h>

#include "arch/config.h"
#include "backend/backend.h"
#include "base/err.h"

/* Products (multiply-adds) per second of FFNs of a type (D, F), each on `rows` rows of activations,
 * taken in turn from about `bytes` of weights. Threads are those of the pool. */
int forecast_rate_ffn(enum dtype t, int D, int F, int rows, int64_t bytes, double *rate,
    struct err *e) CHR_MUST_CHECK;
/* Products per second of attention of n rows over the last `tokens` positions, H heads of w values
 * over G. */
double forecast_rate_attn(enum kv_type type, int n, int H, int G, int w, int tokens);
/* Seconds of a token per layer and besides layers, with next to no products: of a model 64 wide,
 * evaluated by the engine. */
int forecast_rate_layer(const struct backend *be, double *layer, double *token, struct err *e)
    CHR_MUST_CHECK;
/* bytes per second; 0: out of memory */
double forecast_rate_memory(struct err *e) CHR_MUST_CHECK;

struct forecast_drive {
	double bytes_per_s, latency;	/* a read of n bytes takes latency + n / bytes_per_s */
	char from[512];			/* the file that was read, or the option */
	bool direct;
};

/* Reads pieces of `block` bytes, one and `depth` at a time, of a file of the directory that is
 * large enough, else of one that is made there, or in TMPDIR, and has no name. */
int forecast_rate_drive(const char *dir, int64_t block, int depth, struct forecast_drive *d,
    struct err *e) CHR_MUST_CHECK;

#endif
