/*
 * sample: from logits to the next token. Order: repetition penalty (Keskar et al. 2019,
 * sign-aware), temperature, top-k, top-p (of what top-k left), min-p (arXiv:2407.01082), draw.
 * Temperature 0 is greedy (ties: lowest id).
 *
 *	struct sample_opt o = { .temperature = 0.8, .top_k = 40, .top_p = 0.95, .min_p = 0.05,
 *	    .repetition_penalty = 1 };
 *	struct sampler *s = sampler_new(V);
 *	uint32_t id = sample(s, &o, logits, seen, nseen, stream, n++);
 *
 * A draw depends on (seed, stream, counter) and the logits alone, not on batching or on earlier
 * calls.
 */
#ifndef CHR_SAMPLE_H
#define CHR_SAMPLE_H

#include <stdint.h>

struct sample_opt {
	/* top_p 1, min_p 0, repetition_penalty 1: off */
	double temperature, top_p, min_p, repetition_penalty;
	int top_k;		/* 0: all */
	uint64_t seed;
};

struct sampler;			/* scratch for one vocabulary */
struct sampler *sampler_new(int V);		/* NULL: out of memory */
void sampler_free(struct sampler *s);

/* logits (V) are left as they are; NaN is never chosen. seen: ids that occurred so far, each in
 * the vocabulary (for the penalty; repeats do not add up). counter: number of this draw, stream:
 * the prompt's own number. */
uint32_t sample(struct sampler *s, const struct sample_opt *o, const float *logits,
    const uint32_t *seen, int nseen,
    uint64_t stream, uint64_t counter);

#endif
