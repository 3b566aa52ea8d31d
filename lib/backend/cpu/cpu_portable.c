/* Inner loops in plain C with the compiler's generic vectors: the specification, and the path of
 * every machine without AVX2. */
#include "backend/cpu/cpu_kernels.h"

typedef real vreal __attribute__((vector_size(4 * sizeof(real)), aligned(sizeof(real)), may_alias));

static inline vreal load_part(const real *p, int n)
{
	vreal v = { 0 };

	for (int i = 0; i < n; i++)
		v[i] = p[i];
	return v;
}

static inline void store_part(real *p, int n, vreal v)
{
	for (int i = 0; i < n; i++)
		p[i] = v[i];
}

static inline real lane_sum(vreal v)
{
	return (v[0] + v[2]) + (v[1] + v[3]);
}

#define KERNELS cpu_kernels_portable
#define ISA "portable"
#define TARGET
#define V vreal
#define VL 4
#define V_ZERO ((vreal){ 0 })
#define V_LOAD(p) (*(const vreal *)(p))
#define V_LOADN(p, n) load_part(p, n)
#define V_STORE(p, v) ((void)(*(vreal *)(p) = (v)))
#define V_STOREN(p, n, v) store_part(p, n, v)
#define V_SET1(x) ((vreal){ 0 } + (x))
#define V_FMA(a, b, c) ((a) * (b) + (c))
#define V_KEEP(v) ((void)0)
#define V_SUM4(a, b, c, d) ((vreal){ lane_sum(a), lane_sum(b), lane_sum(c), lane_sum(d) })
#define NT_M 3
#define NN_M 4
#define NN_V 2
#define vreal4 vreal
#define FOLD(a) (((a)[0] + (a)[2]) + ((a)[1] + (a)[3]))
#define SCORE_M 1
#define VALUE_M 1
#define VALUE_V 1
#include "backend/cpu/cpu_template.h"
