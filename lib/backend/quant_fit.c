#include "backend/quant_fit.h"
#include "base/isa.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif


#define TRIES 16	/* scales to begin with beyond that of plain rounding, each side */

#define FIT fit_portable
#define TARGET
#define VL 4
#define V_MIN(a, b) N(select)((a) < (b), a, b)
#define V_MAX(a, b) N(select)((a) > (b), a, b)
#include "backend/quant_fit_template.h"

#if defined(__x86_64__)
#define FIT fit_avx2
#define TARGET __attribute__((target("avx2")))
#define VL 8
#define V_MIN(a, b) _mm256_min_ps(a, b)
#define V_MAX(a, b) _mm256_max_ps(a, b)
#include "backend/quant_fit_template.h"

#define FIT fit_avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#define VL 16
#define V_MIN(a, b) _mm512_min_ps(a, b)
#define V_MAX(a, b) _mm512_max_ps(a, b)
#include "backend/quant_fit_template.h"
#endif

int quant_fit(struct quant_fit *f, enum dtype t)
{
#if defined(__x86_64__)
	if (strcmp(isa_name(), "avx512") == 0)
		return fit_avx512(f, t);
	if (strcmp(isa_name(), "avx2") == 0)
		return fit_avx2(f, t);
#endif
	return fit_portable(f, t);
}
