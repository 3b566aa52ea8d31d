#include "format/gguf_blocks.h"

#include <string.h>

#include "backend/tensor.h"

/* ---- pieces of blocks ---- */

static float half_at(const uint8_t *p)
{
	float x;

	tensor_to_f32(&x, p, DT_F16, 1);
	return x;
}

/* Nibbles of 16 bytes: values 0 to 15 are the low ones, 16 to 31 the high ones. */
static unsigned nibble(const uint8_t *q, int i)
{
	return i < 16 ? q[i] & 15 : q[i - 16] >> 4;
}

/* ---- blocks of 32 values ---- */

/* d * (q - 8): half d, nibbles */
static void q4_0(float *dst, const uint8_t *p)
{
	float d = half_at(p);

	for (int i = 0; i < 32; i++)
		dst[i] = d * (float)((int)nibble(p + 2, i) - 8);
}

/* d * q + m: halves d and m, nibbles */
static void q4_1(float *dst, const uint8_t *p)
{
	float d = half_at(p), m = half_at(p + 2);

	for (int i = 0; i < 32; i++)
		dst[i] = d * (float)nibble(p + 4, i) + m;
}

/* The fifth bits of 32 values are a little-endian word. */
static unsigned fifth(const uint8_t *high, int i)
{
	return (high[i / 8] >> i % 8 & 1u) << 4;
}

static void q5_0(float *dst, const uint8_t *p)
{
	float d = half_at(p);

	for (int i = 0; i < 32; i++)
		dst[i] = d * (float)((int)(nibble(p + 6, i) | fifth(p + 2, i)) - 16);
}

static void q5_1(float *dst, const uint8_t *p)
{
	float d = half_at(p), m = half_at(p + 2);

	for (int i = 0; i < 32; i++)
		dst[i] = d * (float)(nibble(p + 8, i) | fifth(p + 4, i)) + m;
}

static void q8_0(float *dst, const uint8_t *p)
{
	float d = half_at(p);

	for (int i = 0; i < 32; i++)
		dst[i] = d * (float)(int8_t)p[2 + i];
}

static const int8_t iq4_values[16] = { -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53,
	69, 89, 113 };

static void iq4_nl(float *dst, const uint8_t *p)
{
	float d = half_at(p);

	for (int i = 0; i < 32; i++)
		dst[i] = d * (float)iq4_values[nibble(p + 2, i)];
}

/* Half of 2^(e - 127), which for e of 0 and 1 is no normal number. */
static float half_power(unsigned e)
{
	uint32_t bits = e < 2 ? 0x00200000u << e : (e - 1) << 23;
	float x;

	memcpy(&x, &bits, sizeof x);
	return x;
}

static void mxfp4(float *dst, const uint8_t *p)
{
	static const int8_t twice[16] = { 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12 };
	float d = half_power(p[0]);

	for (int i = 0; i < 32; i++)
		dst[i] = d * (float)twice[nibble(p + 1, i)];
}

/* ---- blocks of 256 values ---- */

/* 16 scales and minima of 4 bits, 64 bytes of four values each (the k-th of them in bits 2k), and
 * halves d and m */
static void q2_k(float *dst, const uint8_t *p)
{
	float d = half_at(p + 80), m = half_at(p + 82);

	for (int i = 0; i < 256; i++) {
		unsigned scale = p[i / 16], q = p[16 + i / 128 * 32 + i % 32] >> i / 32 % 4 * 2 &
		    3;

		dst[i] = d * (float)(scale & 15) * (float)q - m * (float)(scale >> 4);
	}
}

/* 32 bytes of third bits (of value i in byte i % 32, bit i / 32), 64 of the lower two, 16 scales
 * of 6 bits in 12 bytes, half d. A third bit of 1 means that 4 is not subtracted. */
static void q3_k(float *dst, const uint8_t *p)
{
	const uint8_t *s = p + 96;
	float d = half_at(p + 108);

	for (int i = 0; i < 256; i++) {
		int k = i / 16, low = s[k % 8] >> k / 8 * 4 & 15;
		int scale = (low | (s[8 + k % 4] >> k / 4 * 2 & 3) << 4) - 32;
		int q = p[32 + i / 128 * 32 + i % 32] >> i / 32 % 4 * 2 & 3;

		q -= p[i % 32] >> i / 32 & 1 ? 0 : 4;
		dst[i] = d * (float)scale * (float)q;
	}
}

/* The k-th of 8 scales and minima of 6 bits in 12 bytes: the first four have bytes of their own,
 * whose upper two bits belong to the last four. */
static void scale_min(const uint8_t *s, int k, float *scale, float *min)
{
	unsigned a, b;

	if (k < 4) {
		a = s[k] & 63;
		b = s[4 + k] & 63;
	} else {
		a = (s[4 + k] & 15) | (s[k - 4] >> 6) << 4;
		b = s[4 + k] >> 4 | (s[k] >> 6) << 4;
	}
	*scale = (float)a;
	*min = (float)b;
}

/* halves d and m, 12 bytes of scales, 128 bytes: in each 32, 64 values as low and high nibbles */
static void q4_k(float *dst, const uint8_t *p)
{
	float d = half_at(p), m = half_at(p + 2), scale, min;

	for (int k = 0; k < 8; k++) {
		scale_min(p + 4, k, &scale, &min);
		scale *= d;
		min *= m;
		for (int i = 0; i < 32; i++)
			dst[k * 32 + i] = scale * (float)(p[16 + k / 2 * 32 + i] >> k % 2 * 4 & 15)
			    - min;
	}
}

/* The same with 32 bytes of fifth bits between (of value i in byte i % 32, bit i / 32). */
static void q5_k(float *dst, const uint8_t *p)
{
	float d = half_at(p), m = half_at(p + 2), scale, min;

	for (int k = 0; k < 8; k++) {
		scale_min(p + 4, k, &scale, &min);
		scale *= d;
		min *= m;
		for (int i = 0; i < 32; i++) {
			unsigned q = p[48 + k / 2 * 32 + i] >> k % 2 * 4 & 15;

			q |= (p[16 + i] >> k & 1u) << 4;
			dst[k * 32 + i] = scale * (float)q - min;
		}
	}
}

/* 128 bytes of lower nibbles (in each 64, 128 values), 64 of the upper two bits, 16 signed scales,
 * half d */
static void q6_k(float *dst, const uint8_t *p)
{
	float d = half_at(p + 208);

	for (int i = 0; i < 256; i++) {
		int low = p[i / 128 * 64 + i % 64] >> i / 64 % 2 * 4 & 15;
		int high = p[128 + i / 128 * 32 + i % 32] >> i / 32 % 4 * 2 & 3;

		dst[i] = d * (float)(int8_t)p[192 + i / 16] * (float)((low | high << 4) - 32);
	}
}

/* half d, 8 scales of 6 bits (upper two bits in a word, lower nibbles in 4 bytes), nibbles of each
 * 32 values as in IQ4_NL */
static void iq4_xs(float *dst, const uint8_t *p)
{
	float d = half_at(p);

	for (int k = 0; k < 8; k++) {
		unsigned high = p[2 + k / 4] >> k % 4 * 2 & 3u, low = p[4 + k / 2] >> k % 2 * 4 &
		    15u;
		float scale = d * (float)((int)(low | high << 4) - 32);

		for (int i = 0; i < 32; i++)
			dst[k * 32 + i] = scale *
			    (float)iq4_values[nibble(p + 8 + k * 16, i)];
	}
}

/* ---- all of them ---- */

#define NTYPES 42

static const struct type {
	const char *name;
	int values, bytes;		/* of a block; 0: not read */
	void (*unpack)(float *dst, const uint8_t *src);		/* of blocks of more than one */
} types[NTYPES] = {
	[GGUF_F32] = { "F32", 1, 4, NULL }, [GGUF_F16] = { "F16", 1, 2, NULL },
	[GGUF_BF16] = { "BF16", 1, 2, NULL },
	[GGUF_Q4_0] = { "Q4_0", 32, 18, q4_0 }, [GGUF_Q4_1] = { "Q4_1", 32, 20, q4_1 },
	[GGUF_Q5_0] = { "Q5_0", 32, 22, q5_0 }, [GGUF_Q5_1] = { "Q5_1", 32, 24, q5_1 },
	[GGUF_Q8_0] = { "Q8_0", 32, 34, q8_0 }, [GGUF_IQ4_NL] = { "IQ4_NL", 32, 18, iq4_nl },
	[GGUF_MXFP4] = { "MXFP4", 32, 17, mxfp4 },
	[GGUF_Q2_K] = { "Q2_K", 256, 84, q2_k }, [GGUF_Q3_K] = { "Q3_K", 256, 110, q3_k },
	[GGUF_Q4_K] = { "Q4_K", 256, 144, q4_k }, [GGUF_Q5_K] = { "Q5_K", 256, 176, q5_k },
	[GGUF_Q6_K] = { "Q6_K", 256, 210, q6_k }, [GGUF_IQ4_XS] = { "IQ4_XS", 256, 136, iq4_xs },
	[9] = { "Q8_1", 0, 0, NULL }, [15] = { "Q8_K", 0, 0, NULL },
	[16] = { "IQ2_XXS", 0, 0, NULL }, [17] = { "IQ2_XS", 0, 0, NULL },
	[18] = { "IQ3_XXS", 0, 0, NULL }, [19] = { "IQ1_S", 0, 0, NULL },
	[21] = { "IQ3_S", 0, 0, NULL }, [22] = { "IQ2_S", 0, 0, NULL },
	[24] = { "I8", 0, 0, NULL }, [25] = { "I16", 0, 0, NULL }, [26] = { "I32", 0, 0, NULL },
	[27] = { "I64", 0, 0, NULL }, [28] = { "F64", 0, 0, NULL },
	[29] = { "IQ1_M", 0, 0, NULL }, [34] = { "TQ1_0", 0, 0, NULL },
	[35] = { "TQ2_0", 0, 0, NULL }, [40] = { "NVFP4", 0, 0, NULL },
	[41] = { "Q1_0", 0, 0, NULL },
};

const char *gguf_type_name(uint32_t type)
{
	return type < NTYPES ? types[type].name : NULL;
}

int gguf_block_values(uint32_t type)
{
	return type < NTYPES ? types[type].values : 0;
}

int gguf_block_bytes(uint32_t type)
{
	return type < NTYPES ? types[type].bytes : 0;
}

void gguf_unpack(float *dst, const void *src, enum gguf_type type, size_t n)
{
	const struct type *t = &types[type];
	const uint8_t *p = src;

	if (type == GGUF_F32)
		memcpy(dst, src, n * sizeof *dst);
	else if (t->values == 1)
		tensor_to_f32(dst, src, type == GGUF_F16 ? DT_F16 : DT_BF16, n);
	else
		for (size_t i = 0; i < n; i++)
			t->unpack(dst + i * (size_t)t->values, p + i * (size_t)t->bytes);
}
