/* backend: finds a table by name and checks that every row is there. */
#include "backend/backend.h"
#include "base/isa.h"

#include <stdlib.h>
#include <string.h>

static const struct backend *const backends[] = { &backend_cpu };

/* Rows are pointers that follow the name: a NULL among them is a row its backend lacks. */
static const char *missing_row(const struct backend *b)
{
#define ROW(r) { #r, offsetof(struct backend, r) }
	static const struct { const char *name; size_t at; } row[] = {
		ROW(describe), ROW(alloc), ROW(free), ROW(put), ROW(get), ROW(copy), ROW(zero),
		    ROW(gemm), ROW(gemm_bf16), ROW(rmsnorm),
		ROW(quantize), ROW(qgemm), ROW(qffn), ROW(rmsnorm_back), ROW(rope), ROW(copy2d),
		    ROW(attn), ROW(attn_back),
		ROW(kv_put), ROW(attn_cached), ROW(swiglu), ROW(swiglu_back), ROW(route),
		    ROW(route_weights), ROW(route_back), ROW(gather), ROW(combine), ROW(dot_rows),
		ROW(scatter_add), ROW(axpy), ROW(scale), ROW(scale_rows), ROW(silu), ROW(silu_back),
		    ROW(softmax), ROW(dropout),
		ROW(noise), ROW(logprob), ROW(diverge), ROW(sumsq), ROW(adamw),
	};
#undef ROW
	for (size_t i = 0; i < sizeof(row) / sizeof(row[0]); i++) {
		void *p;

		memcpy(&p, (const char *)b + row[i].at, sizeof(p));
		if (!p)
			return row[i].name;
	}
	return NULL;
}

const struct backend *backend_open(const char *name, struct err *e)
{
	for (size_t i = 0; i < sizeof(backends) / sizeof(backends[0]); i++) {
		const struct backend *b = backends[i];
		const char *row;

		if (name && strcmp(name, "auto") != 0 && strcmp(name, b->name) != 0)
			continue;
		if (b == &backend_cpu && getenv("CHR_ISA") && isa_force(getenv("CHR_ISA")) < 0) {
			err_set(e, EX_UNAVAILABLE, "CHR_ISA=%s: this machine has no such kernels",
			    getenv("CHR_ISA"));
			return NULL;
		}
		if ((row = missing_row(b)) != NULL) {
			err_set(e, EX_UNAVAILABLE, "backend %s has no operation %s", b->name, row);
			return NULL;
		}
		return b;
	}
	err_set(e, EX_UNAVAILABLE, "no backend named %s (there is: cpu)", name);
	return NULL;
}
