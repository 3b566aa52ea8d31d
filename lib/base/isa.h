/*
 * isa: the vector instructions that kernels are chosen by when a program starts, so that one
 * build runs everywhere. CHR_ISA in the environment forces a lesser set.
 */
#ifndef CHR_ISA_H
#define CHR_ISA_H

enum isa { ISA_PORTABLE, ISA_AVX2, ISA_AVX512 };

enum isa isa_now(void);			/* the best that the processor has, unless forced */
const char *isa_name(void);		/* "portable", "avx2", "avx512" */
int isa_force(const char *name);	/* -1: no such name, or the processor lacks it */

#endif
