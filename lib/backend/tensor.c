#include "backend/tensor.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

static const char *const names[] = { [DT_F64] = "F64", [DT_F32] = "F32", [DT_BF16] = "BF16",
	[DT_F16] = "F16", [DT_Q8] = "Q8", [DT_Q4] = "Q4", [DT_Q4A] = "Q4A",
	[DT_F8] = "F8", [DT_MXFP4] = "MXFP4" };

const char *dtype_name(enum dtype t)
{
	return names[t];
}

int dtype_parse(const char *name, enum dtype *t)
{
	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		if (strcasecmp(name, names[i]) == 0) {
			*t = (enum dtype)i;
			return 0;
		}
	return -1;
}

static uint32_t bits_of(float f)
{
	uint32_t u;

	memcpy(&u, &f, sizeof u);
	return u;
}

static float float_of(uint32_t u)
{
	float f;

	memcpy(&f, &u, sizeof f);
	return f;
}

/* The half's exponent and fraction, moved to where a float has them, are the value times 2^-112;
 * this holds for subnormal halves too, and the product is exact. */
static float f32_from_f16(uint16_t h)
{
	uint32_t sign = (uint32_t)(h & 0x8000) << 16, mag = (uint32_t)(h & 0x7fff) << 13;

	if ((h & 0x7c00) == 0x7c00)
		return float_of(sign | 0x7f800000 | mag);
	return float_of(sign | bits_of(float_of(mag) * 0x1p112f));
}

static uint16_t f16_from_f32(float f)
{
	uint32_t u = bits_of(f), mag = u & 0x7fffffff;
	uint16_t sign = (uint16_t)(u >> 16 & 0x8000);

	if (mag > 0x7f800000)
		return sign | 0x7e00 | (mag >> 13 & 0x3ff);
	if (mag >= 0x477ff000)			/* 65520: half way above the largest half */
		return sign | 0x7c00;
	if (mag < 0x38800000)			/* subnormal half: a unit in the last place of
						   0.5f is 2^-24 */
		return sign | (uint16_t)(bits_of(float_of(mag) + 0.5f) - 0x3f000000);
	return sign | (uint16_t)((mag + 0xfff + (mag >> 13 & 1) - (112u << 23)) >> 13);
}

static uint16_t bf16_from_f32(float f)
{
	uint32_t u = bits_of(f);

	if ((u & 0x7fffffff) > 0x7f800000)
		return (uint16_t)(u >> 16 | 0x40);
	return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* Sources may be unaligned: they can be any place of a mapped file. */
void tensor_to_f32(float *dst, const void *src, enum dtype from, size_t n)
{
	const char *p = src;
	uint16_t h;
	double d;

	switch (from) {
	case DT_F32:
		memcpy(dst, src, n * sizeof *dst);
		break;
	case DT_F64:
		for (size_t i = 0; i < n; i++) {
			memcpy(&d, p + i * sizeof d, sizeof d);
			dst[i] = (float)d;
		}
		break;
	case DT_BF16:
		for (size_t i = 0; i < n; i++) {
			memcpy(&h, p + i * sizeof h, sizeof h);
			dst[i] = float_of((uint32_t)h << 16);
		}
		break;
	case DT_F16:
		for (size_t i = 0; i < n; i++) {
			memcpy(&h, p + i * sizeof h, sizeof h);
			dst[i] = f32_from_f16(h);
		}
		break;
	default:
		abort();		/* matrices only: quant_unpack */
	}
}

void tensor_from_f32(void *dst, enum dtype to, const float *src, size_t n)
{
	char *p = dst;
	uint16_t h;
	double d;

	switch (to) {
	case DT_F32:
		memcpy(dst, src, n * sizeof *src);
		break;
	case DT_F64:
		for (size_t i = 0; i < n; i++) {
			d = src[i];
			memcpy(p + i * sizeof d, &d, sizeof d);
		}
		break;
	case DT_BF16:
		for (size_t i = 0; i < n; i++) {
			h = bf16_from_f32(src[i]);
			memcpy(p + i * sizeof h, &h, sizeof h);
		}
		break;
	case DT_F16:
		for (size_t i = 0; i < n; i++) {
			h = f16_from_f32(src[i]);
			memcpy(p + i * sizeof h, &h, sizeof h);
		}
		break;
	default:
		abort();
	}
}

/* Exponents of all ones are those of no number. The loops have no way out, so that they are
 * wide. */
static bool finite16(const char *p, uint16_t exponent, size_t n)
{
	unsigned bad = 0;
	uint16_t u;

	for (size_t i = 0; i < n; i++) {
		memcpy(&u, p + i * sizeof u, sizeof u);
		bad |= (u & exponent) == exponent;
	}
	return !bad;
}

static bool finite32(const char *p, size_t n)
{
	const uint32_t exponent = 0x7f800000;
	unsigned bad = 0;
	uint32_t u;

	for (size_t i = 0; i < n; i++) {
		memcpy(&u, p + i * sizeof u, sizeof u);
		bad |= (u & exponent) == exponent;
	}
	return !bad;
}

static bool finite64(const char *p, size_t n)
{
	const uint64_t exponent = 0x7ff0000000000000;
	unsigned bad = 0;
	uint64_t u;

	for (size_t i = 0; i < n; i++) {
		memcpy(&u, p + i * sizeof u, sizeof u);
		bad |= (u & exponent) == exponent;
	}
	return !bad;
}

bool tensor_finite(const void *src, enum dtype t, size_t n)
{
	switch (t) {
	case DT_F64:	return finite64(src, n);
	case DT_F32:	return finite32(src, n);
	case DT_BF16:	return finite16(src, 0x7f80, n);
	case DT_F16:	return finite16(src, 0x7c00, n);
	default:	abort();
	}
}
