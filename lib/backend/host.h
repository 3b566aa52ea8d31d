/*
 * host: arithmetic on memory of the host that is that of the CPU's rows, to the byte.
 */
#ifndef CHR_HOST_H
#define CHR_HOST_H

#include "base/real.h"

/* q = softmax(z), both (n). Returns the logarithm of what the exponentials of z add up to. */
double host_softmax(const real *z, int n, real *q);

#endif
