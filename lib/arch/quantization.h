/*
 * quantization: the key quantization_config, by which published models say in which blocks their
 * matrices are stored. What a tensor holds is seen from its own type; the config tells the sizes of
 * rectangles with a scale, and which methods nobody here reads.
 */
#ifndef CHR_QUANTIZATION_H
#define CHR_QUANTIZATION_H

#include "arch/keys.h"

#define QUANTIZATION_KEY "quantization_config"

/* EX_DATAERR: another method than "fp8" of E4M3 and "mxfp4". */
int quantization_read(struct config *c, const struct keys *k);

#endif
