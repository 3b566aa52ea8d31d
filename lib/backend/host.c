#include "backend/host.h"

#include <math.h>
#include <string.h>

#include "backend/cpu/cpu_kernels.h"

double host_softmax(const real *z, int n, real *q)
{
	const struct cpu_kernels *kern = cpu_kernels();
	real max = kern->max(z, n), sum;

	memcpy(q, z, (size_t)n * sizeof *q);
	sum = kern->exp_sum(q, n, max);
	for (int i = 0; i < n; i++)
		q[i] /= sum;
	return (double)max + log((double)sum);
}
