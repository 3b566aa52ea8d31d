#include "base/isa.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { SETS = ISA_AVX512 + 1 };

static const char *const names[SETS] = { "portable", "avx2", "avx512" };
static int chosen = -1;

static bool has(enum isa i)
{
#ifdef __x86_64__
	__builtin_cpu_init();
	if (i == ISA_AVX2)
		return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
	if (i == ISA_AVX512)
		return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
		    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
	return i == ISA_PORTABLE;
}

int isa_force(const char *name)
{
	for (int i = 0; i < SETS; i++)
		if (strcmp(names[i], name) == 0 && has((enum isa)i)) {
			chosen = i;
			return 0;
		}
	return -1;
}

enum isa isa_now(void)
{
	const char *want;

	if (chosen >= 0)
		return (enum isa)chosen;
	want = getenv("CHR_ISA");
	if (want && isa_force(want) == 0)
		return (enum isa)chosen;
	for (chosen = SETS - 1; !has((enum isa)chosen); chosen--)
		;
	return (enum isa)chosen;
}

const char *isa_name(void) { return names[isa_now()]; }
