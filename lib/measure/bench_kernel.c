/* What memory, registers and the kernels give, without a model. */
#include <stdlib.h>

#include "measure/bench.h"
#include "base/json.h"
#include "measure/kernel_rate.h"
#include "base/pool.h"

#define EXPERT_D 1024
#define EXPERT_F 768

static void put_kernel(const char *unit, json_t *config, json_t *samples)
{
	json_t *r = bench_capsule("kernel");

	json_object_set_new(config, "threads", json_integer(pool_threads()));
	json_object_set_new(r, "config", config);
	bench_metric(r, unit, true, samples);
	bench_put(r);
}

static void memory(const void *w)
{
	json_t *v = json_array();

	for (int i = 0; i < bench.reps; i++)
		json_array_append_new(v, json_real(kernel_rate_read_rate(w, (size_t)bench.memory)));
	put_kernel("bytes_per_s", json_pack("{s:s, s:I}", "what", "memory read", "bytes",
	    (json_int_t)bench.memory), v);
}

static void registers(void)
{
	json_t *v = json_array();

	for (int i = 0; i < bench.reps; i++)
		json_array_append_new(v, json_real(kernel_rate_fma_rate()));
	if (json_real_value(json_array_get(v, 0)) > 0)
		put_kernel("ops_per_s", json_pack("{s:s}", "what", "multiply-add in registers"), v);
	else
		json_decref(v);
}

static void gemm(const struct backend *be, int m, int n, int k)
{
	struct kernel_rate_gemm g;
	struct err e = { 0 };
	json_t *v = json_array();

	if (kernel_rate_gemm_open(&g, GEMM_NT, m, n, k, &e) < 0)
		err_exit(&e);
	for (int i = -1; i < bench.reps; i++) {
		double x = kernel_rate_gemm_rate(&g, be, false);

		if (i >= 0)
			json_array_append_new(v, json_real(x));
	}
	put_kernel("ops_per_s", json_pack("{s:s, s:s, s:i, s:i, s:i}", "what", "product F32",
	    "backend", be->name, "rows", m, "columns", n, "depth", k), v);
	kernel_rate_gemm_close(&g);
}

static void products(const struct backend *be)
{
	for (int m = 1; m <= 1024; m *= m == 64 ? 16 : 8)
		gemm(be, m, m == 1024 ? 1024 : EXPERT_F, EXPERT_D);
}

/* One row is bound by memory, many by arithmetic: the rate of the one that binds. */
static void experts(const void *w, size_t bytes, enum dtype t, int rows)
{
	int n = (int)(bytes / kernel_rate_expert_bytes(t, EXPERT_D, EXPERT_F));
	struct kernel_rate_ffn f;
	struct err e = { 0 };
	json_t *v = json_array();
	char what[32];

	if (kernel_rate_ffn_open(&f, t, EXPERT_D, EXPERT_F, rows, n, w, &e) < 0)
		err_exit(&e);
	for (int i = -1; i < bench.reps; i++) {
		double seconds = kernel_rate_ffn_seconds(&f);

		if (i >= 0)
			json_array_append_new(v,
			    json_real((rows == 1 ? kernel_rate_ffn_bytes(&f)
			    : kernel_rate_ffn_ops(&f)) / seconds));
	}
	snprintf(what, sizeof what, "experts %s", dtype_name(t));
	put_kernel(rows == 1 ? "bytes_per_s" : "ops_per_s", json_pack("{s:s, s:i, s:i, s:i}",
	    "what", what, "rows", rows, "columns",
	    EXPERT_F, "depth", EXPERT_D), v);
	kernel_rate_ffn_close(&f);
}

void bench_kernel(void)
{
	size_t one = kernel_rate_expert_bytes(DT_Q8, EXPERT_D, EXPERT_F),
	    bytes = (size_t)bench.memory > one ? (size_t)bench.memory : one;
	const struct backend *blas;
	struct err none = { 0 };
	void *w;

	pool_init(infer.threads);
	if ((w = kernel_rate_weights(bytes)) == NULL)
		err_die(EX_OSERR, "out of memory: give a smaller --memory");
	memory(w);
	registers();
	products(&backend_cpu);
	if ((blas = backend_open("blas", &none)) != NULL) {
		err_warn("%s", blas->describe(blas));
		products(blas);
	}
	for (enum dtype t = DT_Q8; t < DTYPES; t++)
		for (int rows = 1; rows <= 128; rows *= rows == 1 ? 16 : 8)
			experts(w, bytes, t, rows);
	free(w);
	pool_quit();
}
