/* Divergences against sums done by hand; equal outputs are at no distance; a NaN is never the
 * same. */
#include <math.h>

#include "measure/fidelity.h"
#include "tap.h"

static void equal(void)
{
	const real z[6] = { 1, -2, 0.5, 3, 3, -1 };
	struct fidelity f;

	fidelity_init(&f, 0);
	fidelity_logits(&f, z, z, 2, 3);
	ok(f.rows == 2 && f.top1 == 2 && f.first == -1 && f.max_abs == 0 && f.sum_abs == 0 &&
	    fabs(f.kl) < 1e-12,
	    "equal logits");
}

static void different(void)
{
	/* p = (3/4, 1/4), q = (1/2, 1/2) */
	const real a[4] = { logf(3), 0, 1, 1 }, b[4] = { 0, 0, 1, 2 };
	double want = 0.75 * log(1.5) + 0.25 * log(0.5);
	struct fidelity f;

	fidelity_init(&f, 0);
	fidelity_logits(&f, a, b, 1, 2);
	ok(fabs(f.kl - want) < 1e-6, "KL(a || b): %g, %g by hand", f.kl, want);
	ok(f.top1 == 1 && f.first == -1, "a tie goes to the lower id");
	fidelity_logits(&f, a + 2, b + 2, 1, 2);
	ok(f.top1 == 1 && f.first == 1, "the first row that differs");
	ok(fabs(f.max_abs - log(3)) < 1e-6 && f.logits == 4, "largest difference %g", f.max_abs);
}

static void nan_is_different(void)
{
	const real a[3] = { 0, 0, 0 }, b[3] = { 0, NAN, 1 };
	struct fidelity f;

	fidelity_init(&f, 0);
	fidelity_logits(&f, a, b, 1, 3);
	ok(!(f.max_abs <= 1e30), "NaN is within no tolerance");
}

static void router(void)
{
	/* two layers, one row, three experts, two chosen */
	const real pa[6] = { 0.5f, 0.25f, 0.25f, 1, 0, 0 }, pb[6] = { 0.25f, 0.25f, 0.5f, 1, 0, 0 };
	const int32_t ta[4] = { 0, 1, 0, 1 }, tb[4] = { 2, 0, 1, 0 };
	struct fidelity f;

	fidelity_init(&f, 2);
	fidelity_router(&f, pa, pb, ta, tb, 1, 3, 2);
	ok(fabs(f.router_kl[0] - 0.25 * log(2)) < 1e-6 && fabs(f.router_kl[1]) < 1e-9,
	    "KL(b || a) by layer: %g %g",
	    f.router_kl[0], f.router_kl[1]);
	ok(f.slots == 4 && f.shared == 3, "three of four experts are the same");
}

int main(void)
{
	equal();
	different();
	nan_is_different();
	router();
	return tap_done();
}
