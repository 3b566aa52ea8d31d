/*
 * real: the number type of model arithmetic. Programs use float; the finite-difference tests
 * compile the same sources with CHR_DOUBLE.
 */
#ifndef CHR_REAL_H
#define CHR_REAL_H

#ifdef CHR_DOUBLE
typedef double real;
#define DT_REAL DT_F64
#else
typedef float real;
#define DT_REAL DT_F32
#endif

#endif
