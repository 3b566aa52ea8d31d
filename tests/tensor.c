/* Conversions: every half and bfloat16 there and back, and rounding to nearest even against
 * double arithmetic. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "tap.h"
#include "backend/tensor.h"

/* Value of a small float format by the book: e exponent bits, f fraction bits. */
static double decode(unsigned x, int e, int f)
{
	int exponent = (int)(x >> f & ((1u << e) - 1)), bias = (1 << (e - 1)) - 1;
	double fraction = (double)(x & ((1u << f) - 1)) / (1 << f), v;

	if (exponent == (1 << e) - 1)
		v = fraction > 0 ? NAN : INFINITY;
	else if (exponent == 0)
		v = ldexp(fraction, 1 - bias);
	else
		v = ldexp(1 + fraction, exponent - bias);
	return x >> (e + f) & 1 ? -v : v;
}

static void test_all(enum dtype t, int e, int f)
{
	int bad = 0, back = 0;

	for (unsigned x = 0; x < 65536; x++) {
		uint16_t h = (uint16_t)x, again;
		double want = decode(x, e, f);
		float got;

		tensor_to_f32(&got, &h, t, 1);
		tensor_from_f32(&again, t, &got, 1);
		bad += isnan(want) ? !isnan(got) : got != (float)want ||
		    !signbit(got) != !signbit(want);
		back += isnan(want) ? !isnan(decode(again, e, f)) : again != h;
	}
	ok(bad == 0, "%s: all 65536 patterns mean what they should", dtype_name(t));
	ok(back == 0, "%s: and come back", dtype_name(t));
}

/* The result must be the nearest of its neighbours, and even when two are equally near. */
static int rounded_well(float x, uint16_t got, int e, int f)
{
	double v = decode(got, e, f), d = fabs(v - x), max = decode(((1u << e) - 1) << f, e, f);

	if (isinf(v))		/* correct from half way to what would be the next power of two */
		return isinf(x) || fabs(x) >= ldexp(2 - ldexp(1, -f - 1), (1 << (e - 1)) - 1);
	for (int step = -1; step <= 1; step += 2) {
		uint16_t other = (uint16_t)(got + step);
		double w = decode(other, e, f);

		if (((got ^ other) & 0x8000) || isnan(w) || isinf(w) || w == max)
			continue;
		if (fabs(w - x) < d || (fabs(w - x) == d && (got & 1)))
			return 0;
	}
	return 1;
}

static void test_rounding(enum dtype t, int e, int f)
{
	int bad = 0;

	for (uint64_t i = 0; i < 300000; i++) {
		uint32_t o[4];
		uint16_t h;
		float x;

		rng_philox(1, 2, i, o);
		if (i % 3 == 0)
			o[0] &= 0xffff8000;		/* many exact ties */
		if (i % 2)				/* and many in the range of a half */
			o[0] = (o[0] & 0x807fffff) | (uint32_t)(100 + o[1] % 45) << 23;
		memcpy(&x, o, sizeof x);
		if (isnan(x))
			continue;
		tensor_from_f32(&h, t, &x, 1);
		bad += !rounded_well(x, h, e, f);
	}
	ok(bad == 0, "%s: rounds to nearest, ties to even", dtype_name(t));
}

int main(void)
{
	const float x[] = { 1.5f, -0.0f, 65519.99f, 65520.0f, NAN, -INFINITY };
	double d[6];
	float back[6];
	char odd[13];
	enum dtype t;

	ok(dtype_parse("bf16", &t) == 0 && t == DT_BF16 && dtype_parse("F9", &t) < 0 &&
	    dtype_size(DT_F16) == 2, "names");
	test_all(DT_F16, 5, 10);
	test_all(DT_BF16, 8, 7);
	test_rounding(DT_F16, 5, 10);
	test_rounding(DT_BF16, 8, 7);
	tensor_from_f32(d, DT_F64, x, 6);
	tensor_to_f32(back, d, DT_F64, 6);
	ok(memcmp(x, back, 4 * sizeof *x) == 0 && isnan(back[4]) && isinf(back[5]), "F64");
	tensor_from_f32(odd + 1, DT_F16, x, 6);
	tensor_to_f32(back, odd + 1, DT_F16, 6);
	ok(back[0] == 1.5f && signbit(back[1]) && back[2] == 65504 && isinf(back[3]) &&
	    isnan(back[4]) && back[5] < 0,
	    "F16 limits, unaligned");
	return tap_done();
}
