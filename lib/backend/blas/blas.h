/*
 * blas: the CPU backend with the products of training through CBLAS: OpenBLAS, or any library
 * with cblas_sgemm (MKL, BLIS, ArmPL). It is loaded when it is asked for, so programs start
 * without it and run where it is missing.
 *
 * What CBLAS computes from a row may depend on how many rows there are, so only the row
 * gemm_train goes there: decoding and the router keep the kernels whose rows do not depend on
 * each other.
 */
#ifndef CHR_BLAS_H
#define CHR_BLAS_H

#include "backend/backend.h"

/* NULL: EX_UNAVAILABLE, naming the library. CHR_BLAS in the environment names another than the
 * build did. */
const struct backend *blas_open(struct err *e);

/* FLOP/s of gemm_train of a backend, at a product of (n, n) by (n, n) transposed: the best of
 * three samples; 0: no memory. */
double blas_rate(const struct backend *be, int n);

#endif
