#include "arch/rope.h"

#include <math.h>
#include <stdint.h>

/* Where on the ramp the wave is that turns `turns` times over the original positions. */
static double ramp_end(const struct rope *r, double turns)
{
	return r->dims * log(r->original_max / (2 * M_PI * turns)) / (2 * log(r->theta));
}

static double yarn(const struct rope *r, double freq, int i)
{
	double lo = ramp_end(r, r->fast), hi = ramp_end(r, r->slow), ramp;

	if (r->truncate) {
		lo = floor(lo);
		hi = ceil(hi);
	}
	lo = lo < 0 ? 0 : lo;
	hi = hi > r->last ? r->last : hi;
	ramp = (i - lo) / (hi - lo > 0.001 ? hi - lo : 0.001);
	ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
	return freq * (1 - ramp + ramp / r->factor);
}

static double llama3(const struct rope *r, double freq)
{
	double turns = r->original_max * freq / (2 * M_PI),
	    blend = (turns - r->slow) / (r->fast - r->slow);

	if (turns < r->slow)
		return freq / r->factor;
	return turns > r->fast ? freq : freq * (blend + (1 - blend) / r->factor);
}

static double frequency(const struct rope *r, int i)
{
	double freq = pow(r->theta, -2.0 * i / r->dims);

	switch (r->kind) {
	case ROPE_DEFAULT: case ROPE_DYNAMIC: return freq;
	case ROPE_LINEAR: return freq / r->factor;
	case ROPE_LLAMA3: return llama3(r, freq);
	case ROPE_YARN: return yarn(r, freq, i);
	}
	return freq;
}

void rope_table(const struct rope *r, int n, real *table)
{
	for (int j = 0; j < r->width; j++) {
		double f = frequency(r, j % (r->dims / 2));

		for (int p = 0; p < n; p++) {
			real *row = table + (int64_t)p * 2 * r->width;

			row[j] = (real)(cos(p * f) * r->magnitude);
			row[r->width + j] = (real)(sin(p * f) * r->magnitude);
		}
	}
}
