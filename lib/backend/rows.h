/*
 * rows: the operations of a backend, each once: ROW(type, name, arguments). backend.h makes them
 * the members of struct backend, and whatever needs all of them (the check at opening, a backend
 * that wraps another) includes this file with a ROW of its own. The first argument of each is the
 * opened instance.
 */

ROW(const char *, describe, (const struct backend *be))	/* "cpu: avx512, 2 threads" */

/* zeroed, 64-byte aligned; NULL when out of memory */
ROW(void *, alloc, (const struct backend *be, size_t bytes))
ROW(void, free, (const struct backend *be, void *p))
ROW(void, put, (const struct backend *be, void *dev, const void *host, size_t bytes))
ROW(void, get, (const struct backend *be, void *host, const void *dev, size_t bytes))
ROW(void, copy, (const struct backend *be, void *dst, const void *src, size_t bytes))
ROW(void, zero, (const struct backend *be, void *p, size_t bytes))

/* Memory that reads of files go to, whole pages, untouched, and as much of the device in *dev: the
 * same memory where the host reads the device's. NULL when out of memory. put_async copies from
 * the first to the second after all rows that were called before it; an event is past when all
 * that was begun before event_record is done: rows called after event_wait come after that, and
 * host waits for it too. Event 0 is past. */
ROW(void *, alloc_pinned, (const struct backend *be, size_t bytes, void **dev))
ROW(void, free_pinned, (const struct backend *be, void *host, size_t bytes))
ROW(void, put_async, (const struct backend *be, void *dev, const void *host, size_t bytes))
ROW(uint64_t, event_record, (const struct backend *be))
ROW(void, event_wait, (const struct backend *be, uint64_t event, bool host))

/* independent jobs, one parallel region */
ROW(void, gemm, (const struct backend *be, enum gemm_kind kind, const struct gemm_job *jobs, int n))

/* The same where what is computed from one row of A may depend on the others: products of
 * training, which a library of linear algebra may do. */
ROW(void, gemm_train, (const struct backend *be, enum gemm_kind kind, const struct gemm_job *jobs,
    int n))

/* As gemm with A and B rounded to BF16, to nearest, and sums in FP32: what is computed from one
 * row of A (of GEMM_TN: one column) depends on nothing but that, B and K here too. bt is
 * DT_REAL. */
ROW(void, gemm_bf16, (const struct backend *be, enum gemm_kind kind, const struct gemm_job *jobs,
    int n))

ROW(void, quantize, (const struct backend *be, dev_byte *rows, const dev_real *x, int64_t n,
    int w))
ROW(void, qgemm, (const struct backend *be, const struct qgemm_job *jobs, int n))
ROW(void, qffn, (const struct backend *be, const struct qffn_job *jobs, int n))

/* y(n,w) = x * rsqrt(mean(x^2) + eps) * g; rstd(n) kept for backward (may be NULL). In place
 * (y == x) allowed in inference. */
ROW(void, rmsnorm, (const struct backend *be, dev_real *y, dev_real *rstd, const dev_real *x,
    const dev_real *g, int64_t n, int w, double eps))
/* dx += ..., dg += ...; dy and dx may be the same array only if add_dx is false (then dx is
 * overwritten) */
ROW(void, rmsnorm_back, (const struct backend *be, dev_real *dx, dev_real *dg, const dev_real *dy,
    const dev_real *x, const dev_real *g, const dev_real *rstd, int64_t n, int w, bool add_dx))

/* Rotates heads of width w at x + row*ld + head*hs, in place. table (positions, 2, w): cosines
 * then sines. back: the transpose, for gradients. */
ROW(void, rope, (const struct backend *be, dev_real *x, int64_t ld, int64_t hs, int64_t n,
    int heads, int w, const dev_real *table, const dev_i32 *pos, bool back))

/* The same, of the pairs (2i, 2i + 1) instead of (i, i + w/2); w is even. */
ROW(void, rope_pairs, (const struct backend *be, dev_real *x, int64_t ld, int64_t hs, int64_t n,
    int heads, int w, const dev_real *table, const dev_i32 *pos, bool back))

/* n pieces of w values, from src + i*lds to dst + i*ldd */
ROW(void, copy2d, (const struct backend *be, dev_real *dst, int64_t ldd, const dev_real *src,
    int64_t lds, int64_t n, int w))

ROW(void, attn, (const struct backend *be, const struct attn_args *a))
ROW(void, attn_back, (const struct backend *be, const struct attn_args *a))
ROW(void, kv_put, (const struct backend *be, const struct kv_put_args *a))
ROW(void, attn_cached, (const struct backend *be, const struct attn_cached_args *a))

ROW(void, conv, (const struct backend *be, const struct conv_args *a))
ROW(void, delta, (const struct backend *be, const struct delta_args *a))
/* y = a * b, n pieces of w values, each ld apart; y may be a or b */
ROW(void, mul, (const struct backend *be, dev_real *y, int64_t ldy, const dev_real *a, int64_t lda,
    const dev_real *b, int64_t ldb, int64_t n, int w))

/* y of g and u as in glu.h */
ROW(void, swiglu, (const struct backend *be, dev_real *y, const dev_real *g, const dev_real *u,
    int64_t n, struct glu glu))
ROW(void, swiglu_back, (const struct backend *be, dev_real *dg, dev_real *du, const dev_real *dy,
    const dev_real *g, const dev_real *u, int64_t n, struct glu glu))

/* x = x within -limit and limit; back, from x before that: dx = 0 where it was not within */
ROW(void, clip, (const struct backend *be, dev_real *x, double limit, int64_t n))
ROW(void, clip_back, (const struct backend *be, dev_real *dx, const dev_real *x, double limit,
    int64_t n))

/* Rows of router logits -> shares, K best ids (descending; ties: lowest id) and weights. */
ROW(void, route, (const struct backend *be, const struct route_args *a))
/* The weights that route would give a choice made elsewhere. */
ROW(void, route_weights, (const struct backend *be, const struct route_args *a))
/* dlogits from dweights and dprobs */
ROW(void, route_back, (const struct backend *be, const struct route_args *a))

/* dst[i] = src[rows[i]] */
ROW(void, gather, (const struct backend *be, dev_real *dst, const dev_real *src,
    const dev_i32 *rows, int64_t n, int w))
/* dst[i] = values of row `rows[i]` of a matrix in blocks (quant.h) */
ROW(void, gather_blocks, (const struct backend *be, dev_real *dst, const struct mat *w,
    const dev_i32 *rows, int64_t n))
/* dst[i] += sum_j coef[i*k+j] * src[slot[i*k+j]], j in order; slot < 0 is passed over; coef NULL
 * means 1 */
ROW(void, combine, (const struct backend *be, dev_real *dst, const dev_real *src,
    const dev_i32 *slot, const dev_real *coef, int64_t n, int k, int w))
/* out[i] = a[arow[i]] . b[brow[i]] */
ROW(void, dot_rows, (const struct backend *be, dev_real *out, const dev_real *a,
    const dev_i32 *arow, const dev_real *b, const dev_i32 *brow, int64_t n, int w))
/* table[id[i]] += src[i], deterministic order */
ROW(void, scatter_add, (const struct backend *be, dev_real *table, const dev_real *src,
    const dev_i32 *ids, int64_t n, int w))

/* y += a x */
ROW(void, axpy, (const struct backend *be, dev_real *y, const dev_real *x, double a, int64_t n))
ROW(void, scale, (const struct backend *be, dev_real *x, double a, int64_t n))
ROW(void, scale_rows, (const struct backend *be, dev_real *x, const dev_real *s, int64_t n, int w))
ROW(void, silu, (const struct backend *be, dev_real *y, const dev_real *x, int64_t n))
/* dx may be dy */
/* y = 1 / (1 + exp(-x)), y may be x; back, from y: dx may be dy */
ROW(void, sigmoid, (const struct backend *be, dev_real *y, const dev_real *x, int64_t n))
ROW(void, sigmoid_back, (const struct backend *be, dev_real *dx, const dev_real *dy,
    const dev_real *y, int64_t n))
ROW(void, silu_back, (const struct backend *be, dev_real *dx, const dev_real *dy,
    const dev_real *x, int64_t n))
/* rows in place */
ROW(void, softmax, (const struct backend *be, dev_real *x, int64_t n, int w))
/* same call on gradients */
ROW(void, dropout, (const struct backend *be, dev_real *x, int64_t n, double p, uint64_t key))
/* row i += s[i] * uniform in (-1, 1) */
ROW(void, noise, (const struct backend *be, dev_real *x, const dev_real *s, int64_t n, int w,
    uint64_t key))

/* Rows of logits (n,V): logp[i] = log softmax(logits)[target[i]] (0 where target < 0). When coef
 * is given the logits are overwritten by coef[i] * (onehot - softmax), the gradient of sum_i
 * coef[i]*logp[i]. */
ROW(void, logprob, (const struct backend *be, dev_real *logits, dev_real *logp,
    const dev_i32 *target, const dev_real *coef, int64_t n, int V))

ROW(void, diverge, (const struct backend *be, const struct diverge_args *a))

ROW(double, sumsq, (const struct backend *be, const dev_real *x, int64_t n))
/* Loshchilov, Hutter 2019, bias-corrected */
ROW(void, adamw, (const struct backend *be, const struct adamw_args *a))
