#include "quant_fit.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu.h"

#define TRIES 16	/* scales to begin with beyond that of plain rounding, each side */

#define FIT fit_portable
#define TARGET
#define VL 4
#define V_MIN(a, b) N(select)((a) < (b), a, b)
#define V_MAX(a, b) N(select)((a) > (b), a, b)
#include "quant_fit_template.h"

#if defined(__x86_64__)
#define FIT fit_avx2
#define TARGET __attribute__((target("avx2")))
#define VL 8
#define V_MIN(a, b) _mm256_min_ps(a, b)
#define V_MAX(a, b) _mm256_max_ps(a, b)
#include "quant_fit_template.h"

#define FIT fit_avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#define VL 16
#define V_MIN(a, b) _mm512_min_ps(a, b)
#define V_MAX(a, b) _mm512_max_ps(a, b)
#include "quant_fit_template.h"
#endif

int quant_fit(struct quant_fit *f, enum dtype t)
{
#if defined(__x86_64__)
	if (strcmp(cpu_isa(), "avx512") == 0)
		return fit_avx512(f, t);
	if (strcmp(cpu_isa(), "avx2") == 0)
		return fit_avx2(f, t);
#endif
	return fit_portable(f, t);
}
